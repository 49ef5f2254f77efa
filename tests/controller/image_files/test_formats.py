"""MRC, SER and DM files: every number type, both byte orders, and no crash on damage."""

import struct

import numpy as np
import pytest

from controller.image_files.reading import open_images
from inference.api import BadImage


def write(path, data):
    path.write_bytes(data)
    return path


def read(path):
    images = open_images(path)
    return images, np.stack([images.frame(number) for number in range(images.frames)])


MRC_MODES = [(0, "i1", "f4"), (1, "i2", "f4"), (2, "f4", "f4"), (6, "u2", "u2"), (12, "f2", "f4")]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("mode", "kind", "becomes"), MRC_MODES)
def test_mrc(tmp_path, make, stack, order, mode, kind, becomes):
    pixels = (stack - (40 if kind[0] == "i" else 0)).astype(order + kind)
    path = write(tmp_path / "a.mrc", make["mrc"](pixels, mode, order=order, extended=b"x" * 80))
    images, back = read(path)
    assert (images.format, images.shape_px) == ("MRC", (18, 24))
    assert images.pixel_size_nm == pytest.approx(0.05)
    assert back.dtype == np.dtype(becomes)
    assert np.array_equal(back, pixels)


def test_mrc_of_bytes_by_imods_stamp(tmp_path, make, stack):
    pixels = (stack + 120).astype("u1")
    unsigned = write(tmp_path / "u.mrc", make["mrc"](pixels, 0, imod=0))
    assert np.array_equal(read(unsigned)[1], pixels)
    signed = write(tmp_path / "s.mrc", make["mrc"](pixels, 0, imod=1))
    assert np.array_equal(read(signed)[1], pixels.view("i1"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_mrc_without_a_stamp(tmp_path, make, stack, order):
    pixels = stack.astype(order + "i2")
    path = write(tmp_path / "old.mrc", make["mrc"](pixels, 1, order=order, stamp=False))
    assert np.array_equal(read(path)[1], pixels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": 4}, "complex float32"),
        ({"mode": 77}, r"mode 77 \(unknown\)"),
        ({"width": 0}, "0 x 18 px"),
        ({"frames": -1}, "-1 frames"),
        ({"frames": 9}, "ends early"),
        ({"extended": -5}, "ends early"),
        ({"width": 2_000_000}, "2000000 x 18"),
    ],
)
def test_mrc_refused(tmp_path, make, stack, change, said):
    data = bytearray(make["mrc"](stack.astype("<i2"), 1))
    at = {"width": 0, "height": 4, "frames": 8, "mode": 12, "extended": 92}
    for key, value in change.items():
        struct.pack_into("<i", data, at[key], value)
    with pytest.raises(BadImage, match=rf"a\.mrc: .*{said}"):
        open_images(write(tmp_path / "a.mrc", bytes(data)))


SER_KINDS = [
    (1, "u1", "u1"),
    (2, "u2", "u2"),
    (3, "u4", "f4"),
    (4, "i1", "f4"),
    (5, "i2", "f4"),
    (6, "i4", "f4"),
    (7, "f4", "f4"),
    (8, "f8", "f8"),
]


@pytest.mark.parametrize("version", [0x0210, 0x0220])
@pytest.mark.parametrize(("kind", "name", "becomes"), SER_KINDS)
def test_ser(tmp_path, make, stack, version, kind, name, becomes):
    pixels = (stack - (40 if name[0] == "i" else 0)).astype("<" + name)
    path = write(tmp_path / "a.ser", make["ser"](pixels, kind, version=version, total=5))
    images, back = read(path)
    assert (images.format, images.frames, images.shape_px) == ("SER", 3, (18, 24))
    assert images.pixel_size_nm == pytest.approx(0.05)
    assert back.dtype == np.dtype(becomes)
    assert np.array_equal(back, pixels)


def test_ser_refused(tmp_path, make, stack):
    good = make["ser"](stack.astype("<u2"), 2)
    cases = [
        (make["ser"](stack.astype("<u2"), 2, data_kind=0x4120), "spectra"),
        (make["ser"](stack.astype("<u2"), 2, version=0x0999), "version 0x0999"),
        (make["ser"](stack.astype("<u2"), 99), "kind 99"),
        (make["ser"](stack.astype("<c8"), 9), "complex64"),
        (b"II" + b"\0" * 40, "begins with something else"),
        (good[:-1], "ends early"),
        (good[:14] + struct.pack("<ii", 3, 0) + good[22:], "0 of 3 frames"),
    ]
    for number, (data, said) in enumerate(cases):
        path = write(tmp_path / f"{number}.ser", data)
        with pytest.raises(BadImage, match=rf"{number}\.ser: .*({said})"):
            read(path)


DM_KINDS = [
    (1, 2, "i2", "f4"),
    (2, 6, "f4", "f4"),
    (6, 8, "u1", "u1"),
    (7, 3, "i4", "f4"),
    (10, 4, "u2", "u2"),
    (11, 5, "u4", "f4"),
    (12, 7, "f8", "f8"),
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(("data_type", "kind", "name", "becomes"), DM_KINDS)
def test_dm(tmp_path, make, stack, order, version, data_type, kind, name, becomes):
    for number, pixels in enumerate((stack, stack[0])):
        pixels = (pixels - (40 if name[0] == "i" else 0)).astype(order + name)
        data = make["dm"](pixels, data_type, kind, version=version, order=order)
        path = write(tmp_path / f"{number}.dm{version}", data)
        images, back = read(path)
        assert (images.format, images.shape_px) == ("DM", (18, 24))
        assert images.pixel_size_nm == pytest.approx(0.05)
        assert back.dtype == np.dtype(becomes)
        assert np.array_equal(back.reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    ("unit", "pixel_nm"), [("nm", 2.0), ("µm", 2_000.0), ("1/nm", None), ("", None)]
)
def test_units_of_dm(tmp_path, make, stack, unit, pixel_nm):
    data = make["dm"](stack[0].astype("<u2"), 10, 4, scale=2.0, unit=unit)
    assert open_images(write(tmp_path / "a.dm4", data)).pixel_size_nm == pixel_nm


def test_dm_refused(tmp_path, make, stack):
    tree = make["tree"]()
    deep = tree.number(1)
    for _ in range(80):
        deep = tree.list(deep)
    cases = [
        (tree.file(("ImageList", tree.list())), "no image"),
        (make["dm"](stack[0].astype("<c8"), 3, [15, 0, 2, 0, 6, 0, 6]), "only complex float32"),
        (tree.file(("a", (33, b""))), "of kind 33"),
        (tree.file(("a", (21, b"%%%!" + b"\0" * 16))), "no mark"),
        (tree.file(("a", tree.data([99], b"\0" * 8))), "kind 99"),
        (tree.file(("a", tree.data([20] * 500, b"\0" * 8))), "damaged"),
        (tree.file(("a", tree.data([20, 2, -4], b"\0" * 8))), "-4 numbers"),
        (tree.file(("a", deep)), "deep"),
        (b"\0\0\0\x07" + b"\0" * 60, "begins with something else"),
    ]
    for number, (data, said) in enumerate(cases):
        path = write(tmp_path / f"{number}.dm4", data)
        with pytest.raises(BadImage, match=rf"{number}\.dm4: .*{said}"):
            read(path)


@pytest.mark.parametrize("format_", ["mrc", "ser", "dm4", "dm3"])
def test_cut_at_every_byte(tmp_path, make, stack, format_):
    """Of a file that is too short nothing is shown, and nothing else is raised."""
    pixels = stack.astype("<u2")
    data = {
        "mrc": lambda: make["mrc"](pixels, 6),
        "ser": lambda: make["ser"](pixels, 2),
        "dm4": lambda: make["dm"](pixels, 10, 4),
        "dm3": lambda: make["dm"](pixels, 10, 4, version=3),
    }[format_]()
    path = tmp_path / f"a.{format_}"
    header = len(data) - pixels.nbytes
    ends = [*range(300), *range(300, header, 5), *range(header, len(data) - 30, 97)]
    for end in ends:
        path.write_bytes(data[:end])
        with pytest.raises(BadImage, match=rf"a\.{format_}"):
            read(path)


@pytest.mark.parametrize("format_", ["mrc", "ser", "dm4", "dm3"])
def test_damaged_bytes_never_crash(tmp_path, make, stack, format_):
    pixels = stack.astype("<u2")
    data = {
        "mrc": lambda: make["mrc"](pixels, 6),
        "ser": lambda: make["ser"](pixels, 2),
        "dm4": lambda: make["dm"](pixels, 10, 4),
        "dm3": lambda: make["dm"](pixels, 10, 4, version=3),
    }[format_]()
    rng = np.random.default_rng(3)
    path = tmp_path / f"a.{format_}"
    refused = 0
    for _ in range(150):
        bad = bytearray(data)
        for at in rng.integers(0, min(len(data) - pixels.nbytes, 1_100), 3):
            bad[at] = rng.integers(0, 256)
        path.write_bytes(bytes(bad))
        try:
            assert read(path)[1].ndim >= 3
        except BadImage as error:
            assert f"a.{format_}" in str(error)
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.emi", r"\.ser file beside"),
        ("a.emd", "HDF5"),
        ("a.czi", "OME-TIFF"),
        ("a.jpg", "compressed"),
        ("a.txt", "only .*mrc.* are read here"),
        ("gone.mrc", "cannot be read"),
        ("gone.ser", "cannot be read"),
        ("gone.dm3", "cannot be read"),
        ("gone.tif", "cannot be read"),
    ],
)
def test_refused_by_name(tmp_path, name, said):
    if not name.startswith("gone"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadImage, match=rf"{name}: .*{said}"):
        open_images(tmp_path / name)
