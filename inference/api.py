"""The answers' words: what an image can be asked, and what an honest answer carries.

Every answer has a probability or a sigma and says whether the question made sense for this image
(`in_distribution`). A flagged answer never moves anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

ImageRGB: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]  # (h, w, 3), y down
Mask: TypeAlias = npt.NDArray[np.bool_]  # (h, w)


class ModelError(Exception):
    """The root: something about a model or an engine."""


class BadModel(ModelError):
    """File and card disagree (hash, shape, dtype), or the answer has not the promised form."""


class NoEngine(ModelError):
    """The runtime is absent; the message says what to install."""


class BadImage(ModelError):
    """The image cannot be analysed at all (wrong dtype or shape); the message says what came."""


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One terrace: a connected region of one material and one thickness, in one image.

    Coordinates are pixels of the image, x right and y down, (0, 0) the centre of the first pixel.
    """

    mask: Mask  # the region inside its bounding box, (box_h_px, box_w_px)
    box_x_px: int  # column of the mask's first column in the image
    box_y_px: int
    area_px: int  # mask.sum()
    centroid_x_px: float
    centroid_y_px: float
    outline_px: npt.NDArray[np.float32]  # (n, 2) x, y of the outer contour
    material: str  # key of the material card: "graphene", "hbn", "mos2", "wse2", "wte2"
    layers: int  # most probable number of layers, >= 1
    layer_probabilities: tuple[tuple[int, float], ...]  # (layers, p), p descending, sum <= 1
    thickness_nm: float
    contrast_rgb: tuple[float, float, float]  # I / I_substrate - 1, median over the inner pixels
    off_ladder: float  # distance of the contrast from the material's ladder, in contrast units
    score: float  # 0..1: how surely this is a flake of that material at all; ranks detections
    touches_border: bool  # of the image: the region may go on in the neighbouring tile
    # Holds 95 % of the probability; None: nobody worked it out.
    thickness_interval_nm: tuple[float, float] | None = None
    # Who drew the outline, where several look: "physics" or "network"; "": there is but one.
    source: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a microscope's colours say about its optics: fitted, saved with the run, reusable.

    The oxide is an effective one: it absorbs errors of lamp, NA and camera curve.
    """

    oxide_nm: float
    gain_rgb: tuple[float, float, float]  # measured contrast = gain * model contrast, per channel
    confidence: float  # 0: nominal, nothing fitted; 1: many levels explained within noise
    source: str  # "nominal", "fitted on n regions", or the file it came from


@dataclass(frozen=True, slots=True, eq=False)
class FlakeAnswer:
    """All flakes in one image, with what the image's substrate looked like."""

    detections: tuple[Detection, ...]
    substrate_rgb: tuple[float, float, float]  # digital numbers; the background's typical colour
    calibration: Calibration
    in_distribution: bool
    reason: str  # why not, "" when in distribution


class FlakeDetector(Protocol):
    """Question: which flakes are in this image? Deterministic; called from one thread at a time."""

    @property
    def name(self) -> str: ...
    @property
    def budget_s(self) -> float:
        """Declared time for one full frame on two cores."""
        ...

    def detect(self, pixels: ImageRGB, pixel_size_nm: float, bit_depth: int = 8) -> FlakeAnswer:
        """Raises BadImage for anything but (h, w, 3) uint8 or uint16."""
        ...


@dataclass(frozen=True, slots=True)
class Sharpness:
    """How well one frame is focused, in arbitrary units that grow with sharpness."""

    value: float
    texture_ratio: float  # structure over what noise alone would give; ~1 means an empty field
    in_distribution: bool
    reason: str


class SharpnessMeasure(Protocol):
    """Question: how sharp is this image? One frame, no memory."""

    @property
    def name(self) -> str: ...
    def measure(
        self, pixels: ImageRGB | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    ) -> Sharpness: ...


@dataclass(frozen=True, slots=True)
class FocusSample:
    """One frame's sharpness at the position it was exposed at."""

    focus_z_um: float
    sharpness: Sharpness


@dataclass(frozen=True, slots=True)
class FocusEstimate:
    """Where focus is believed to be; not `is_confident` means: do not move for this."""

    focus_z_um: float
    sigma_um: float
    is_confident: bool
    reason: str  # why not, "" when confident


class FocusEstimator(Protocol):
    """Question: given what was seen at which z, where is focus? The networks will fill this too."""

    @property
    def name(self) -> str: ...
    def estimate(
        self, samples: Sequence[FocusSample], depth_of_field_um: float
    ) -> FocusEstimate: ...
