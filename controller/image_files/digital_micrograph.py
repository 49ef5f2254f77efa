"""DM3 and DM4 files, which Gatan's DigitalMicrograph writes: a tree of tags with images in it.

Source: the public description by G. Jefferis ("DM3 image format"); DM4 has wider places. Places and
lengths in the tree are big-endian, 32 bits wide in DM3 and 64 in DM4; the values themselves have
the byte order that the head of the file names. A file holds a small picture of the image too:
the largest image that is none is taken.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from controller.image_files.api import (
    Bytes,
    ImageFile,
    checked_size,
    frame_reader,
    length_nm,
)
from inference.api import BadImage

_GROUP, _DATA = 20, 21
_STRUCT, _STRING, _ARRAY = 15, 18, 20
_TYPES: Final = {
    2: "i2",
    3: "i4",
    4: "u2",
    5: "u4",
    6: "f4",
    7: "f8",
    8: "u1",
    9: "i1",
    10: "u1",
    11: "i8",
    12: "u8",
}
# `DataType` of an image. 23: four bytes a pixel, with the thumbnail's colours.
_IMAGES: Final = {
    1: "i2",
    2: "f4",
    6: "u1",
    7: "i4",
    9: "i1",
    10: "u2",
    11: "u4",
    12: "f8",
    14: "u1",
}
_OTHER_IMAGES: Final = {3: "complex float32", 13: "complex float64", 23: "colours"}
_DEEPEST: Final = 64
_MOST_TAGS: Final = 1_000_000
_MOST_WORDS: Final = 512  # of a type; each may lie in the one before
_LONGEST_TEXT: Final = 256
_LONGEST_NAME: Final = 80  # in an error
_LETTER: Final = 4  # of the types, 16 bits
_UNITS: Final = "Units"


@dataclass(frozen=True, slots=True)
class _Block:
    """An array that stays in the file."""

    at: int
    bytes: int


Value: TypeAlias = int | float | str | _Block
Tags: TypeAlias = dict[tuple[str, ...], Value]


def open_dm(path: Path) -> ImageFile:
    """The image of a file; a third dimension counts frames. Raises BadImage."""
    try:
        with path.open("rb") as file:
            data = Bytes(path, file)
            order, tags = _tree(data)
    except OSError as error:
        raise BadImage(f"{path}: cannot be read: {error}") from error
    numbers = sorted({key[1] for key in tags if key[0] == "ImageList" and len(key) > 1})
    found = [image for number in numbers if (image := _image(path, tags, number, order))]
    if not found:
        kinds = {tags.get(("ImageList", number, "ImageData", "DataType")) for number in numbers}
        named = ", ".join(_OTHER_IMAGES[kind] for kind in _OTHER_IMAGES if kind in kinds)
        raise BadImage(f"{path}: holds no image that is read here{named and f'; only {named}'}")
    return max(found, key=lambda image: math.prod(image.shape_px) * image.frames)


def _image(path: Path, tags: Tags, number: str, order: str) -> ImageFile | None:
    """One entry of the list of images; None: none that is read here."""
    root = ("ImageList", number, "ImageData")
    kind = tags.get((*root, "DataType"))
    block = tags.get((*root, "Data"))
    if not isinstance(kind, int) or kind not in _IMAGES or not isinstance(block, _Block):
        return None
    sides: list[int] = []
    while isinstance(side := tags.get((*root, "Dimensions", str(len(sides)))), int):
        sides.append(side)
    if len(sides) not in (2, 3):
        return None
    width_px, height_px = sides[:2]
    frames = sides[2] if len(sides) == 3 else 1
    checked_size(path, width_px, height_px, frames)
    dtype = np.dtype(order + _IMAGES[kind])
    frame_bytes = width_px * height_px * dtype.itemsize
    if frames * frame_bytes > block.bytes:
        raise BadImage(
            f"{path}: {frames} frames of {width_px} x {height_px} px need {frames * frame_bytes} "
            f"bytes, the image has {block.bytes}: damaged"
        )
    scale = tags.get((*root, "Calibrations", "Dimension", "0", "Scale"))
    unit = tags.get((*root, "Calibrations", "Dimension", "0", _UNITS))
    pixel_nm = None
    if isinstance(scale, int | float) and isinstance(unit, str):
        pixel_nm = length_nm(float(scale), unit)
    begin = block.at
    return ImageFile(
        path=path,
        format="DM",
        frames=frames,
        shape_px=(height_px, width_px),
        pixel_size_nm=pixel_nm,
        frame=frame_reader(
            path, dtype.str, (height_px, width_px), lambda frame: begin + frame * frame_bytes
        ),
    )


# --- the tree --------------------------------------------------------------------------------


def _tree(data: Bytes) -> tuple[str, Tags]:
    """Byte order of the values, and all tags by their path; tags without a name are counted."""
    what = "the head of a DM file"
    version = data.whole(">u4", what)
    if version not in (3, 4):
        raise BadImage(f"{data.path}: is not a DM3 or DM4 file: it begins with something else")
    wide = ">i8" if version == 4 else ">i4"
    data.whole(wide, what)
    is_little = data.whole(">i4", what)
    if is_little not in (0, 1):
        raise BadImage(f"{data.path}: names byte order {is_little}: damaged")
    order = "<" if is_little else ">"
    reader = _TreeReader(data, wide, order)
    reader.group(())
    return order, reader.tags


class _TreeReader:
    """Reads the tags of one file."""

    def __init__(self, data: Bytes, wide: str, order: str) -> None:
        self.tags: Tags = {}
        self._data = data
        self._wide = wide
        self._is_wide = wide == ">i8"
        self._order = order
        self._letters = "utf-16-le" if order == "<" else "utf-16-be"
        self._seen = 0

    def group(self, path: tuple[str, ...]) -> None:
        """A group's tags, those of its groups included."""
        data, what = self._data, "a group of tags"
        if len(path) > _DEEPEST:
            raise BadImage(f"{data.path}: tags in tags, more than {_DEEPEST} deep: damaged")
        data.skip(2, what)  # whether it is sorted, and unfolded on the screen
        for at in range(self._count(data.whole(self._wide, what), "tags")):
            self._seen += 1
            if self._seen > _MOST_TAGS:
                raise BadImage(f"{data.path}: more than {_MOST_TAGS} tags: damaged")
            kind = data.whole(">u1", "a tag")
            label = data.take(data.whole(">u2", "a tag"), "a tag's name").decode("latin-1")
            if self._is_wide:
                data.skip(8, "a tag")  # its length
            here = (*path, label or str(at))
            if kind == _GROUP:
                self.group(here)
            elif kind == _DATA:
                value = self._value(is_text=here[-1] == _UNITS)
                if value is not None:
                    self.tags[here] = value
            else:
                named = repr(".".join(here))[:_LONGEST_NAME]
                raise BadImage(f"{data.path}: tag {named} is of kind {kind}: damaged")

    def _value(self, *, is_text: bool) -> Value | None:
        """A tag's value; None for structures and what nobody asks for."""
        data, what = self._data, "a tag's type"
        if data.take(4, what) != b"%%%%":
            raise BadImage(f"{data.path}: a tag at byte {data.at - 4} has no mark: damaged")
        words = data.whole(self._wide, what)
        if not 0 < words <= _MOST_WORDS:
            raise BadImage(f"{data.path}: a tag's type has {words} words: damaged")
        code = f">{words}{'q' if self._is_wide else 'i'}"
        kinds = list(struct.unpack(code, data.take(struct.calcsize(code), what)))
        if len(kinds) == 1:
            return data.number(self._order + self._type(kinds[0]), "a tag")
        if kinds[0] != _ARRAY:
            data.skip(self._bytes(kinds), "a structure")
            return None
        block = _Block(data.at, self._bytes(kinds))
        if is_text and kinds[1] == _LETTER and block.bytes <= 2 * _LONGEST_TEXT:
            return data.take(block.bytes, "a text").decode(self._letters, "replace")
        data.skip(block.bytes, "an array")
        return block

    def _bytes(self, kinds: list[int]) -> int:
        """Length of one value of a type."""
        if kinds and kinds[0] == _STRUCT:
            fields = kinds[4::2]  # the name's length and the count before, then (length, type)
            return sum(int(self._type(kind)[1]) for kind in fields)
        if kinds and kinds[0] == _STRING and len(kinds) == 2:
            return 2 * self._count(kinds[1], "letters")
        if kinds and kinds[0] == _ARRAY:
            return self._bytes(kinds[1:-1]) * self._count(kinds[-1], "numbers")
        if len(kinds) == 1:
            return int(self._type(kinds[0])[1])
        raise BadImage(f"{self._data.path}: a tag's type is {kinds}: damaged")

    def _type(self, kind: int) -> str:
        name = _TYPES.get(kind)
        if name is None:
            raise BadImage(f"{self._data.path}: a tag holds numbers of kind {kind}: damaged")
        return name

    def _count(self, count: int, what: str) -> int:
        """Nothing can be more than there are bytes in the file."""
        if not 0 <= count <= self._data.size:
            raise BadImage(f"{self._data.path}: says that there are {count} {what}: damaged")
        return count
