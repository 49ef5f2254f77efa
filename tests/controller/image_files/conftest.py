"""Microscopes' files, made byte by byte from the descriptions of their formats."""

import struct

import numpy as np
import pytest


def mrc(pixels, mode, *, order="<", extended=b"", pixel_nm=0.05, stamp=True, imod=None):
    """(n, h, w) of the mode's type."""
    frames, h_px, w_px = pixels.shape
    words = np.zeros(256, dtype=f"{order}i4")
    words[:4] = w_px, h_px, frames, mode
    words[7:10] = w_px, h_px, frames
    words[10:13] = np.array([w_px * pixel_nm * 10] * 3, f"{order}f4").view(f"{order}i4")
    words[23] = len(extended)
    if imod is not None:
        words[38:40] = 1_146_047_817, imod
    head = bytearray(words.tobytes())
    if stamp:
        head[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    return bytes(head) + extended + pixels.tobytes()


def ser(pixels, kind, *, version=0x0220, total=None, pixel_nm=0.05, data_kind=0x4122):
    """(n, h, w) of the kind's type; rows lie in the file from the lowest up."""
    frames, h_px, w_px = pixels.shape
    total = total or frames
    place = "<i" if version == 0x0210 else "<q"
    head = struct.pack("<HHHiiii", 0x4949, 0x0197, version, data_kind, 0x4152, total, frames)
    dimension = struct.pack("<iddi", total, 0.0, 1.0, 0)
    dimension += struct.pack("<i", 6) + b"Number" + struct.pack("<i", 0)
    table_at = len(head) + struct.calcsize(place) + 4 + len(dimension)
    head += struct.pack(place, table_at) + struct.pack("<i", 1) + dimension
    table_bytes = 2 * total * struct.calcsize(place)
    body, places = b"", []
    for frame in pixels:
        places.append(table_at + table_bytes + len(body))
        size_m = pixel_nm * 1e-9
        body += struct.pack("<ddi", 0.0, size_m, 0) * 2
        body += struct.pack("<Hii", kind, w_px, h_px) + frame[::-1].tobytes()
    places += [0] * (2 * total - len(places))
    return head + b"".join(struct.pack(place, at) for at in places) + body


class DmTree:
    """Tags of a DM3 or DM4 file."""

    def __init__(self, version=4, order="<"):
        self.version = version
        self.wide = ">q" if version == 4 else ">i"
        self.order = order

    def number(self, value, kind=5, letter="I"):
        return self.data([kind], struct.pack(self.order + letter, value))

    def text(self, words):
        letters = words.encode("utf-16-le" if self.order == "<" else "utf-16-be")
        return self.data([20, 4, len(letters) // 2], letters)

    def array(self, kind, values):
        kinds = kind if isinstance(kind, list) else [kind]
        return self.data([20, *kinds, values.size], values.tobytes())

    def structure(self):
        return self.data([15, 0, 2, 0, 6, 0, 2], struct.pack(self.order + "fh", 1.0, 2))

    def data(self, kinds, value):
        head = b"%%%%" + struct.pack(self.wide, len(kinds))
        return 21, head + b"".join(struct.pack(self.wide, kind) for kind in kinds) + value

    def group(self, **tags):
        return 20, self.body(list(tags.items()))

    def list(self, *tags):
        return 20, self.body([("", tag) for tag in tags])

    def body(self, tags):
        out = b"\1\0" + struct.pack(self.wide, len(tags))
        for label, (kind, content) in tags:
            name = label.encode("latin-1")
            out += struct.pack(">BH", kind, len(name)) + name
            if self.version == 4:
                out += struct.pack(">q", len(content))
            out += content
        return out

    def file(self, *tags):
        body = self.body([*tags])
        head = struct.pack(">i", self.version) + struct.pack(self.wide, len(body))
        return head + struct.pack(">i", int(self.order == "<")) + body + b"\0" * 8

    def image(self, pixels, data_type, kind, scale=0.05, unit="nm"):
        sides = [self.number(side) for side in reversed(pixels.shape)]
        dimension = self.group(
            Origin=self.number(0.0, 6, "f"),
            Scale=self.number(scale, 6, "f"),
            Units=self.text(unit),
        )
        image = self.group(
            Calibrations=self.group(Dimension=self.list(*[dimension] * len(sides))),
            Data=self.array(kind, pixels),
            DataType=self.number(data_type),
            Dimensions=self.list(*sides),
            PixelDepth=self.number(pixels.dtype.itemsize),
        )
        return self.group(ImageData=image, Name=self.text("frame"))


def dm(pixels, data_type, kind, *, version=4, order="<", scale=0.05, unit="nm"):
    """(h, w) or (n, h, w) behind the thumbnail that every file has."""
    tree = DmTree(version, order)
    small = np.zeros((4, 4), f"{order}u4")
    images = tree.list(tree.image(small, 23, 5), tree.image(pixels, data_type, kind, scale, unit))
    return tree.file(
        ("ApplicationBounds", tree.structure()),
        ("ImageList", images),
        ("InImageMode", tree.number(1)),
    )


@pytest.fixture(scope="session")
def make():
    """The builders, by format."""
    return {"mrc": mrc, "ser": ser, "dm": dm, "tree": DmTree}


@pytest.fixture(scope="session")
def stack():
    """(3, h, w), whole numbers of either sign where the type has them."""
    return np.random.default_rng(5).integers(0, 100, (3, 18, 24))
