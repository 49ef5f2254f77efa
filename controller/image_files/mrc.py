"""MRC files: images, stacks and volumes of electron microscopes.

Source: A. Cheng et al., "MRC2014: Extensions to the MRC format header for electron cryo-microscopy
and tomography", J. Struct. Biol. 192, 146 (2015), table 1; byte order and the older signedness of
mode 0 as in IMOD's description of its stamp. Rows come in the file's order, in which the first one
is the lowest of the picture by convention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from controller.image_files.api import Bytes, ImageFile, checked_size, frame_reader, length_nm
from inference.api import BadImage

_HEADER_BYTES: Final = 1_024
_MODES: Final = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_OTHER_MODES: Final = {3: "complex int16", 4: "complex float32", 101: "4-bit integers"}
_STAMP: Final = (208, b"MAP ")
_BYTE_ORDERS: Final = {0x44: "<", 0x11: ">"}
_IMOD: Final = 1_146_047_817


def open_mrc(path: Path) -> ImageFile:
    """The sections of a file, each a frame. Raises BadImage."""
    try:
        with path.open("rb") as file:
            data = Bytes(path, file)
            header = data.take(_HEADER_BYTES, "the header of an MRC file")
            size = data.size
    except OSError as error:
        raise BadImage(f"{path}: cannot be read: {error}") from error
    order = _byte_order(path, header)

    def whole(word: int) -> int:
        return int(np.frombuffer(header, f"{order}i4", 1, 4 * (word - 1))[0])

    width_px, height_px, frames, mode = (whole(word) for word in (1, 2, 3, 4))
    checked_size(path, width_px, height_px, frames)
    kind = _MODES.get(mode)
    if kind is None:
        named = _OTHER_MODES.get(mode, "unknown")
        raise BadImage(f"{path}: holds MRC mode {mode} ({named}), which is not read here")
    if mode == 0 and whole(39) == _IMOD and not whole(40) & 1:
        kind = "u1"
    extended = whole(24)
    dtype = np.dtype(order + kind)
    frame_bytes = width_px * height_px * dtype.itemsize
    needed = _HEADER_BYTES + extended + frames * frame_bytes
    if extended < 0 or needed > size:
        raise BadImage(
            f"{path}: ends early: {frames} frames of {width_px} x {height_px} px need {needed} "
            f"bytes, the file has {size}"
        )
    begin = _HEADER_BYTES + extended
    cell_a = float(np.frombuffer(header, f"{order}f4", 1, 40)[0])
    intervals = whole(8)
    return ImageFile(
        path=path,
        format="MRC",
        frames=frames,
        shape_px=(height_px, width_px),
        pixel_size_nm=length_nm(cell_a / intervals, "A") if intervals > 0 else None,
        frame=frame_reader(
            path, dtype.str, (height_px, width_px), lambda number: begin + number * frame_bytes
        ),
    )


def _byte_order(path: Path, header: bytes) -> str:
    """The stamp says it; files older than the stamp are told by a mode that makes sense."""
    at, mark = _STAMP
    order = _BYTE_ORDERS.get(header[at + 4])
    if header[at : at + 4] == mark and order is not None:
        return order
    for order in "<>":
        width_px, height_px, frames, mode = np.frombuffer(header, f"{order}i4", 4).tolist()
        if mode in {*_MODES, *_OTHER_MODES} and 0 < min(width_px, height_px, frames) < 65_536:
            return order
    raise BadImage(f"{path}: is not an MRC file: no stamp, and no size and mode that make sense")
