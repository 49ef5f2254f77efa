"""A photograph whose every pixel is known: what the network learns from and is judged by.

Only the words; who makes such frames (a simulator) and who uses them (training) do not know each
other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference.api import Calibration, ImageRGB
from inference.flakes.ladder import Optics

SUBSTRATE, DIRT, UNKNOWN = 0, -1, -2
"""Values of `LabelledFrame.layers` that are no layer number; UNKNOWN is neither learnt nor judged
(overlaps, folds, crumbs)."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFrame:
    """One photograph with its truth, and what a user would have told the detector about it."""

    pixels: ImageRGB  # (h, w, 3)
    bit_depth: int
    pixel_size_nm: float
    material: str
    calibration: Calibration  # as good as a user's: fitted with errors, or nominal
    optics: Optics
    layers: npt.NDArray[np.int16]  # (h, w): layers, or SUBSTRATE, DIRT, UNKNOWN
    instances: npt.NDArray[np.int32]  # (h, w): 0, or the number of the terrace
    instance_layers: npt.NDArray[np.int16]  # (n + 1,): of each terrace; [0] is 0
    is_strange: bool  # a frame on which no flake detector should be believed
