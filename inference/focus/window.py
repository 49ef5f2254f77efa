"""Which part of a large frame to focus on: the square that shows the most structure.

A frame's spectrum is taken of one square in its middle (`spectrum.py`), and a field of flakes is
empty nearly everywhere, its middle included. Blur moves no structure, so the square is chosen once,
from the first frame, however blurred, and kept: two frames can be compared only if they show the
same.

Structure is the energy of the differences between blocks, less what noise alone gives them (the
median over all blocks, since most are empty). What changes by a constant slope is shading. Blocks
in and around saturated ones do not count: an edge that is cut off blurs like no optics does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from inference.focus.spectrum import Grey

_BLOCK_PX = 8
_STRIDE_BLOCKS = 4
_SATURATED_RATIO = 0.9  # of full scale, of a block's mean
_GLARE_BLOCKS = 9  # side of the square around a saturated block that is left out: 36 px each way
_MIDDLE_RATIO = 1.15  # how much more another square must show than the one in the middle


@dataclass(frozen=True, slots=True)
class Window:
    """A square of a frame, in pixels, y down."""

    row: int
    col: int
    side_px: int

    def of(self, pixels: Grey) -> Grey:
        """The square alone; a view."""
        return pixels[self.row : self.row + self.side_px, self.col : self.col + self.side_px]


def middle_window(shape_px: tuple[int, int], side_px: int) -> Window:
    """The square in the middle."""
    h_px, w_px = shape_px
    return Window((h_px - side_px) // 2, (w_px - side_px) // 2, side_px)


def telling_window(pixels: Grey, side_px: int, bit_depth: int = 0) -> Window:
    """The square of that side which shows most; the middle one unless another is clearly better.

    pixels: (h, w) or (h, w, 3). The whole frame's smaller side where side_px is larger. bit_depth
    0: nothing is taken for saturated.
    """
    h_px, w_px = pixels.shape[:2]
    side_px = min(side_px, h_px, w_px)
    middle = middle_window((h_px, w_px), side_px)
    h, w = h_px // _BLOCK_PX, w_px // _BLOCK_PX
    half = max(1, side_px // _BLOCK_PX // 2)
    if min(h, w) <= 2 * half:
        return middle
    grey = pixels if pixels.ndim == 2 else pixels[..., 1]
    small = cv2.resize(
        grey[: h * _BLOCK_PX, : w * _BLOCK_PX].astype(np.float32),
        (w, h),
        interpolation=cv2.INTER_AREA,
    )
    # Second differences: a slope is shading.
    rough = np.zeros((h, w), dtype=np.float32)
    rough[:, 1:-1] += np.square(small[:, 2:] - 2.0 * small[:, 1:-1] + small[:, :-2])
    rough[1:-1] += np.square(small[2:] - 2.0 * small[1:-1] + small[:-2])
    rough = np.maximum(rough - np.float32(np.median(rough)), 0.0)
    if bit_depth > 0:
        glare = (small > _SATURATED_RATIO * (2**bit_depth - 1)).astype(np.uint8)
        rough[cv2.dilate(glare, np.ones((_GLARE_BLOCKS, _GLARE_BLOCKS), np.uint8)) > 0] = 0.0
    # The fine level sees half of the square's side, and a Hann window its middle.
    weight = np.hanning(2 * half + 2)[1:-1].astype(np.float32)
    seen = cv2.sepFilter2D(rough, cv2.CV_32F, weight, weight, borderType=cv2.BORDER_CONSTANT)
    rows = np.arange(half, h - half, _STRIDE_BLOCKS)
    cols = np.arange(half, w - half, _STRIDE_BLOCKS)
    found = seen[np.ix_(rows, cols)]
    best = np.unravel_index(int(np.argmax(found)), found.shape)
    if float(found[best]) <= _MIDDLE_RATIO * float(seen[h // 2, w // 2]):
        return middle
    row = int(rows[best[0]]) * _BLOCK_PX - side_px // 2
    col = int(cols[best[1]]) * _BLOCK_PX - side_px // 2
    return Window(min(max(row, 0), h_px - side_px), min(max(col, 0), w_px - side_px), side_px)
