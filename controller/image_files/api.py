"""Frames in a file, whatever its format: how many, how large, and one at a time.

Readers take nothing on trust: every length and place is held against the file before it is used,
so a damaged or truncated file is a `BadImage` that names it and says what is wrong. Numbers that
restorers do not take (signed or wide integers, half floats) become float32, which holds 16 bits
exactly and is what restorers compute in.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from inference.api import BadImage

Pixels = npt.NDArray[Any]  # (h, w) or (h, w, channels), channels in OpenCV's order

MOST_SIDE_PX: Final = 1_000_000
MOST_FRAMES: Final = 100_000_000
_CODES: Final = {  # struct's
    "u1": "B",
    "i1": "b",
    "u2": "H",
    "i2": "h",
    "u4": "I",
    "i4": "i",
    "u8": "Q",
    "i8": "q",
    "f4": "f",
    "f8": "d",
}
_AS_THEY_ARE: Final = frozenset({"uint8", "uint16", "float32", "float64"})
_NM: Final = {"nm": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3, "mm": 1e6, "m": 1e9, "A": 0.1, "Å": 0.1}


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """A file that was found sound as far as its header goes."""

    path: Path
    format: str  # "MRC"
    frames: int
    shape_px: tuple[int, ...]  # of one frame: (h, w) or (h, w, channels)
    pixel_size_nm: float | None  # None: the file does not say
    frame: Callable[[int], Pixels]  # raises BadImage


def usable(pixels: Pixels, path: Path) -> Pixels:
    """The same numbers in a type that restorers take. Raises BadImage for complex ones."""
    name = pixels.dtype.newbyteorder("=").name
    if name in _AS_THEY_ARE:
        return np.ascontiguousarray(pixels, dtype=name)
    if pixels.dtype.kind in "iuf":
        return np.ascontiguousarray(pixels, dtype=np.float32)
    if pixels.dtype.kind == "b":
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    raise BadImage(f"{path}: holds {name} numbers; only real ones can be restored")


def length_nm(value: float, unit: str) -> float | None:
    """A pixel's side; None for what is no length, or not finite and above zero."""
    factor = _NM.get(unit.strip())
    if factor is None or not math.isfinite(value) or value == 0.0:
        return None
    return abs(value) * factor


class Bytes:
    """A file read by place; beyond its end is a `BadImage`, never a short answer."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """The file stays the caller's to close."""
        self.path = path
        self._file = file
        self.size = file.seek(0, 2)
        self.at = 0

    def take(self, count: int, what: str) -> bytes:
        """The next so many bytes."""
        if count < 0 or self.at + count > self.size:
            raise BadImage(
                f"{self.path}: ends early: {what} needs {count} bytes at {self.at}, "
                f"the file has {self.size}"
            )
        self._file.seek(self.at)
        data = self._file.read(count)
        if len(data) != count:
            raise BadImage(f"{self.path}: became shorter while it was read")
        self.at += count
        return data

    def skip(self, count: int, what: str) -> None:
        """Leave out so many bytes, which must be there."""
        if count < 0 or self.at + count > self.size:
            self.take(count, what)
        self.at += count

    def number(self, kind: str, what: str) -> int | float:
        """The next number; kind: numpy's, with its byte order: "<u2"."""
        code = kind[0] + _CODES[kind[1:]]
        value: int | float = struct.unpack(code, self.take(int(kind[2]), what))[0]
        return value

    def whole(self, kind: str, what: str) -> int:
        """The next number, a whole one."""
        return int(self.number(kind, what))


def frame_reader(
    path: Path, dtype: str, shape_px: tuple[int, ...], place_of: Callable[[int], int]
) -> Callable[[int], Pixels]:
    """Frames that lie in the file uncompressed; place_of: where each begins, in bytes."""
    count = int(np.dtype(dtype).itemsize * math.prod(shape_px))

    def frame(number: int) -> Pixels:
        try:
            with path.open("rb") as file:
                data = Bytes(path, file)
                data.at = place_of(number)
                pixels = np.frombuffer(data.take(count, f"frame {number}"), dtype)
        except OSError as error:
            raise BadImage(f"{path}: cannot be read: {error}") from error
        return usable(pixels.reshape(shape_px), path)

    return frame


def checked_size(path: Path, width_px: int, height_px: int, frames: int) -> None:
    """Raises BadImage for sizes that no frame has."""
    if not (0 < width_px <= MOST_SIDE_PX and 0 < height_px <= MOST_SIDE_PX):
        raise BadImage(f"{path}: says that a frame is {width_px} x {height_px} px: damaged")
    if not 0 < frames <= MOST_FRAMES:
        raise BadImage(f"{path}: says that it holds {frames} frames: damaged")
