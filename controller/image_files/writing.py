"""Computed frames into a PNG, a TIFF of any number of pages, or an OME-Zarr image.

Every one says in its metadata that it is computed, by what and from what. Nothing that exists is
written over. TIFF: baseline, uncompressed, little-endian, a description and the pixel size on every
page (TIFF revision 6.0, sections 2 and 8); pages are written as they come, so a long movie needs no
memory. Up to 4 GB, as its places are 32 bits wide.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import cv2
import numpy as np
import zarr
from zarr.storage import LocalStore

from controller.image_files.api import Pixels
from controller.image_files.zarr_images import in_opencv_order
from controller.record.movies import movie_array, movie_attributes
from controller.record.rundir import retrying, writing
from inference.api import BadImage

SUFFIXES: Final = (".png", ".tif", ".tiff", ".zarr")

_PNG_HEAD_BYTES: Final = 33  # signature and IHDR
_MOST_TIFF_BYTES: Final = 2**32 - 2**20
_CM_NM: Final = 1e7
_SHORT, _LONG, _RATIONAL, _ASCII = 3, 4, 5, 2
_SAMPLE_FORMAT: Final = {"u": 1, "i": 2, "f": 3}


class FrameWriter(Protocol):
    """Takes the computed frames of one file, one after the other."""

    def append(self, pixels: Pixels, words: str) -> None:
        """The next frame; words: what made it. Raises BadImage, or what the disk says."""
        ...

    def close(self) -> None:
        """All are there. Raises what the disk says."""
        ...

    def discard(self) -> None:
        """Something failed: leave nothing behind."""
        ...


def open_writer(out: Path, given: Path, frames: int, pixel_size_nm: float | None) -> FrameWriter:
    """A writer for what `out` ends in. Raises BadImage where it exists or cannot hold it.

    given: the file that it is made from. Nothing is written before the first frame.
    """
    if out.exists():
        raise BadImage(f"{given}: {out} exists and is not written over; name another --out")
    suffix = out.suffix.lower()
    if suffix == ".png" and frames > 1:
        raise BadImage(f"{given}: holds {frames} frames, a PNG one; name a .tif or .zarr as --out")
    if suffix == ".png":
        return _PngWriter(out, given)
    if suffix == ".zarr":
        return _ZarrWriter(out, frames, pixel_size_nm)
    return _TiffWriter(out, given, pixel_size_nm)


class _PngWriter:
    """One frame."""

    def __init__(self, out: Path, given: Path) -> None:
        self._out = out
        self._given = given

    def append(self, pixels: Pixels, words: str) -> None:
        """Write it."""
        if pixels.dtype not in (np.uint8, np.uint16):
            raise BadImage(
                f"{self._given}: gives {pixels.dtype}, which PNG cannot hold; name a .tif as --out"
            )
        try:
            data = cv2.imencode(".png", pixels)[1].tobytes()
        except cv2.error as error:
            raise BadImage(f"{self._given}: cannot be written as PNG: {error}") from error
        with writing(self._out):
            self._out.parent.mkdir(parents=True, exist_ok=True)
            with self._out.open("xb") as file:
                file.write(png_labelled(data, words.encode("ascii", "replace")))

    def close(self) -> None:
        """It is there already."""

    def discard(self) -> None:
        """It was written as a whole or not at all."""


def png_labelled(data: bytes, label: bytes) -> bytes:
    """The same PNG with a text chunk "Description" behind its header."""
    body = b"tEXt" + b"Description\0" + label
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:_PNG_HEAD_BYTES] + chunk + data[_PNG_HEAD_BYTES:]


class _TiffWriter:
    """A page a frame."""

    def __init__(self, out: Path, given: Path, pixel_size_nm: float | None) -> None:
        self._out = out
        self._given = given
        self._pixel_size_nm = pixel_size_nm
        self._file: BinaryIO | None = None
        self._next_at = 4  # where the place of the next page's directory is to be written

    def append(self, pixels: Pixels, words: str) -> None:
        """Write a page."""
        with writing(self._out):
            if self._file is None:
                self._out.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._out.open("xb")
                self._file.write(b"II*\0\0\0\0\0")
            file = self._file
            at = file.seek(0, 2)
            if at + pixels.nbytes > _MOST_TIFF_BYTES:
                raise BadImage(f"{self._given}: more than a TIFF of 4 GB holds; name a .zarr")
            data = in_opencv_order(pixels)  # a TIFF has red first
            file.write(np.ascontiguousarray(data).astype(data.dtype.newbyteorder("<")).tobytes())
            label = words.encode("ascii", "replace") + b"\0"
            page, next_at = self._page(data, at, file.tell(), label)
            begin = file.tell() + file.tell() % 2
            file.seek(begin)
            file.write(page)
            file.seek(self._next_at)
            file.write(struct.pack("<I", begin))
            self._next_at = next_at

    def close(self) -> None:
        """All pages are there."""
        file, self._file = self._file, None
        if file is not None:
            with writing(self._out):
                file.close()

    def discard(self) -> None:
        """Remove it."""
        was_begun = self._file is not None
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None
        if was_begun:
            with suppress(OSError):
                self._out.unlink(missing_ok=True)

    def _page(self, pixels: Pixels, at: int, end: int, label: bytes) -> tuple[bytes, int]:
        """A directory and what it points to; and where its own link to the next one lies."""
        h_px, w_px = pixels.shape[:2]
        samples = 1 if pixels.ndim == 2 else pixels.shape[2]
        bits = [8 * pixels.dtype.itemsize] * samples
        kind = [_SAMPLE_FORMAT[pixels.dtype.kind]] * samples
        per_cm = _CM_NM / (self._pixel_size_nm or _CM_NM)
        entries: list[tuple[int, int, list[int] | bytes]] = [
            (256, _LONG, [w_px]),
            (257, _LONG, [h_px]),
            (258, _SHORT, bits),
            (259, _SHORT, [1]),
            (262, _SHORT, [2 if samples >= 3 else 1]),
            (270, _ASCII, label),
            (273, _LONG, [at]),
            (277, _SHORT, [samples]),
            (278, _LONG, [h_px]),
            (279, _LONG, [pixels.nbytes]),
            (282, _RATIONAL, _rational(per_cm)),
            (283, _RATIONAL, _rational(per_cm)),
            (284, _SHORT, [1]),
            (296, _SHORT, [3 if self._pixel_size_nm else 1]),
            *([(338, _SHORT, [0])] if samples == 4 else []),
            (339, _SHORT, kind),
        ]
        begin = end + end % 2
        behind = begin + 2 + 12 * len(entries) + 4
        head, tail = struct.pack("<H", len(entries)), b""
        for tag, code, value in entries:
            data, count = _packed(code, value)
            if len(data) > 4:
                place = behind + len(tail)
                tail += data + b"\0" * (len(data) % 2)
                data = struct.pack("<I", place)
            head += struct.pack("<HHI", tag, code, count) + data.ljust(4, b"\0")
        return head + b"\0\0\0\0" + tail, behind - 4


def _packed(code: int, value: list[int] | bytes) -> tuple[bytes, int]:
    if isinstance(value, bytes):
        return value, len(value)
    letter = "H" if code == _SHORT else "I"
    count = len(value) // 2 if code == _RATIONAL else len(value)
    return struct.pack(f"<{len(value)}{letter}", *value), count


def _rational(value: float) -> list[int]:
    """A fraction of two 32-bit numbers, as near as it gets."""
    below = 1
    while below < 10**6 and value * below * 10 < 2**32:
        below *= 10
    return [min(2**32 - 1, round(value * below)), below]


class _ZarrWriter:
    """A chunk a frame."""

    def __init__(self, out: Path, frames: int, pixel_size_nm: float | None) -> None:
        self._out = out
        self._staged = out.with_name(out.name + ".partial")
        self._frames = frames
        self._pixel_um = (pixel_size_nm or 0.0) * 1e-3
        self._words: dict[str, None] = {}  # each once
        self._group: zarr.Group | None = None
        self._array: zarr.Array[Any] | None = None
        self._done = 0

    def append(self, pixels: Pixels, words: str) -> None:
        """Write a frame."""
        shown = in_opencv_order(pixels)
        planes = shown[np.newaxis] if shown.ndim == 2 else shown.transpose(2, 0, 1)
        with writing(self._out):
            if self._array is None:
                self._array = self._begun(planes)
            self._array[self._done] = planes
        self._words[words] = None
        self._done += 1

    def close(self) -> None:
        """All frames are there: now it gets its name."""
        with writing(self._out):
            if self._group is not None:
                said = {"kind": "computed", "label": "; ".join(self._words)}
                self._group.attrs["scopeloop"] = said
                retrying(lambda: self._staged.rename(self._out))

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self._staged, ignore_errors=True)

    def _begun(self, planes: Pixels) -> zarr.Array[Any]:
        attributes = {"ome": movie_attributes("computed, not raw", self._pixel_um or None)}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._group = zarr.create_group(
            LocalStore(self._staged), overwrite=True, attributes=attributes
        )
        return movie_array(self._group, self._frames, planes)
