"""A photograph made ready: what physics and network both need of it, worked out once.

On bare substrate the half-size image and the background are most of what a detector spends; two
that look at the same photograph should not each pay for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference.api import ImageRGB
from inference.flakes.background import Background, estimate_background, shrunk_half

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedFrame:
    """One photograph with its half-size image and its substrate."""

    pixels: ImageRGB  # (h, w, 3)
    pixel_size_nm: float
    bit_depth: int
    half: ImageRGB  # (h // 2, w // 2, 3)
    background: Background
    inverse_half: FloatImage  # 1 / background at the half-size image's pixels

    @property
    def full_scale(self) -> float:
        """The largest digital number that the camera gives."""
        return full_scale_of(self.bit_depth)


def prepared_frame(
    pixels: ImageRGB,
    pixel_size_nm: float,
    bit_depth: int = 8,
    expected_rgb: tuple[float, float, float] | None = None,
    flat_field: FloatImage | None = None,
) -> PreparedFrame:
    """Halve a photograph that was checked, and find its substrate.

    expected_rgb, flat_field: as of `estimate_background`.
    """
    half = shrunk_half(pixels)
    full_scale = full_scale_of(bit_depth)
    background = estimate_background(pixels, full_scale, expected_rgb, flat_field, half)
    inverse_half = background.inverse_half()
    return PreparedFrame(pixels, pixel_size_nm, bit_depth, half, background, inverse_half)


def full_scale_of(bit_depth: int) -> float:
    """The largest digital number of so many bits."""
    return float(2**bit_depth - 1)
