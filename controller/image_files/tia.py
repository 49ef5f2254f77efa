"""SER files, which FEI's TIA writes: one frame or a series of them.

Source: C. Boothroyd, "The format of TIA .ser files" (2009, public description), with version 0x0220
of 64-bit places. Rows lie in the file from the lowest up; they are turned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from controller.image_files.api import (
    Bytes,
    ImageFile,
    Pixels,
    checked_size,
    length_nm,
    usable,
)
from inference.api import BadImage

_LITTLE: Final = 0x4949
_SERIES: Final = 0x0197
_OLD, _NEW = 0x0210, 0x0220
_SPECTRA, _IMAGES = 0x4120, 0x4122
_KINDS: Final = {
    1: "<u1",
    2: "<u2",
    3: "<u4",
    4: "<i1",
    5: "<i2",
    6: "<i4",
    7: "<f4",
    8: "<f8",
    9: "<c8",
    10: "<c16",
}


def open_ser(path: Path) -> ImageFile:
    """The frames that a series holds. Raises BadImage."""
    try:
        with path.open("rb") as file:
            data = Bytes(path, file)
            places = _places(data)
            first = _element(data, places[0], 0)
    except OSError as error:
        raise BadImage(f"{path}: cannot be read: {error}") from error
    shape_px, pixel_m, _ = first

    def frame(number: int) -> Pixels:
        try:
            with path.open("rb") as file:
                data = Bytes(path, file)
                shape, _, kind = _element(data, places[number], number)
                if shape != shape_px:
                    raise BadImage(
                        f"{path}: frame {number} is {shape} px, the first {shape_px}; such series "
                        "are not read here"
                    )
                count = shape[0] * shape[1] * np.dtype(kind).itemsize
                pixels = np.frombuffer(data.take(count, f"frame {number}"), kind)
        except OSError as error:
            raise BadImage(f"{path}: cannot be read: {error}") from error
        return usable(pixels.reshape(shape)[::-1], path)

    return ImageFile(path, "SER", len(places), shape_px, length_nm(pixel_m, "m"), frame)


def _places(data: Bytes) -> list[int]:
    """Where each element begins."""
    what = "the header of a SER file"
    if data.whole("<u2", what) != _LITTLE or data.whole("<u2", what) != _SERIES:
        raise BadImage(f"{data.path}: is not a SER file: it begins with something else")
    version = data.whole("<u2", what)
    if version not in (_OLD, _NEW):
        raise BadImage(f"{data.path}: SER version {version:#06x} is not known here")
    kind = data.whole("<i4", what)
    if kind != _IMAGES:
        named = "spectra" if kind == _SPECTRA else f"data of kind {kind:#06x}"
        raise BadImage(f"{data.path}: holds {named}, no images")
    data.whole("<i4", what)  # what each element is tagged with
    total, valid = data.whole("<i4", what), data.whole("<i4", what)
    place_kind = "<i4" if version == _OLD else "<i8"
    at = data.whole(place_kind, what)
    if not 0 < valid <= total:
        raise BadImage(f"{data.path}: says that {valid} of {total} frames are there: damaged")
    if at < data.at:
        raise BadImage(f"{data.path}: its table of frames begins at byte {at}: damaged")
    data.at = at
    table = data.take(valid * np.dtype(place_kind).itemsize, "the table of frames")
    return [int(place) for place in np.frombuffer(table, place_kind)]


def _element(data: Bytes, at: int, number: int) -> tuple[tuple[int, int], float, str]:
    """Size, side of a pixel in m, and kind of number; `data` then stands at the pixels."""
    what = f"the header of frame {number}"
    if at < 0:
        raise BadImage(f"{data.path}: {what} lies at byte {at}: damaged")
    data.at = at
    data.skip(8, what)
    pixel_m = float(data.number("<f8", what))
    data.skip(4 + 8 + 8 + 4, what)
    kind = data.whole("<u2", what)
    width_px, height_px = data.whole("<i4", what), data.whole("<i4", what)
    if kind not in _KINDS:
        raise BadImage(f"{data.path}: {what} names numbers of kind {kind}, which is unknown")
    checked_size(data.path, width_px, height_px, 1)
    if data.at + width_px * height_px * np.dtype(_KINDS[kind]).itemsize > data.size:
        raise BadImage(
            f"{data.path}: ends early: frame {number} of {width_px} x {height_px} px is not whole"
        )
    return (height_px, width_px), pixel_m, _KINDS[kind]
