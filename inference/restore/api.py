"""The words of restoration: a frame's noise, and what a frame looks like without it.

Every restorer answers in the frame's own digital numbers and says how far off it may be; the frame
itself is never replaced. The classical filters stand in `classical`; networks come beside them,
through the same Protocol, and pass through `guard` before anybody sees what they made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from inference.api import BadImage

Frame: TypeAlias = (
    npt.NDArray[np.uint8]
    | npt.NDArray[np.uint16]
    | npt.NDArray[np.float32]
    | npt.NDArray[np.float64]
)  # (h, w), y down
Grey: TypeAlias = npt.NDArray[np.float32]  # (h, w)

LEAST_SIDE_PX: Final = 16


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Noise that counting and reading put into a frame, white from pixel to pixel.

    Variance of a pixel whose true value is m: gain_dn * (m - offset_dn) + read_noise_dn^2. One
    frame cannot tell an offset from read noise, only their sum; of the two, a blind estimate sets
    one to zero. The variance is what it claims to know.
    """

    gain_dn: float  # digital numbers per electron; 0: noise is the same at every level
    offset_dn: float  # digital number of no electrons
    read_noise_dn: float  # standard deviation
    gain_sigma_dn: float = 0.0  # one standard deviation; inf: one level only, gain is not seen
    level_dn: float = 0.0  # typical level of the frame it was estimated from
    variance_sigma_ratio: float = 0.0  # relative error of the variance at that level
    in_distribution: bool = True
    reason: str = ""  # why not, or what is not known; "" when all is

    def variance_dn2(self, level_dn: npt.ArrayLike) -> Grey:
        """Variance at true values; never below a hundredth of an electron's or of the read noise's.

        level_dn: any shape; the answer has the same.
        """
        level = np.asarray(level_dn, dtype=np.float32)
        slope = np.float32(self.gain_dn)
        constant = np.float32(self.read_noise_dn**2 - self.gain_dn * self.offset_dn)
        least = max(1e-2 * self.gain_dn**2, 1e-2 * self.read_noise_dn**2, 1e-12)
        return np.asarray(np.maximum(level * slope + constant, np.float32(least)), dtype=np.float32)

    def sigma_dn(self, level_dn: float) -> float:
        """Standard deviation of a pixel at one level."""
        return math.sqrt(float(self.variance_dn2(level_dn)))


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """What a restorer makes of a frame; a computed image, to be labelled as one."""

    image: Grey  # (h, w), digital numbers of the frame
    sigma: (
        Grey | None
    )  # (h, w), one standard deviation of image - truth; None: nobody worked it out
    in_distribution: bool
    method: str  # the filter that made this image: after a fallback, the one fallen back to
    reason: str  # why not in distribution, or why another filter was taken; "" when neither


class Restorer(Protocol):
    """Question: what is in this frame besides noise? Deterministic; one frame, no memory."""

    @property
    def name(self) -> str: ...
    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """noise: None to estimate it from the frame. Raises BadImage for what is no frame."""
        ...


@runtime_checkable
class MapRestorer(Protocol):
    """A restorer that also takes noise which differs from pixel to pixel, as averages have it."""

    @property
    def name(self) -> str: ...
    @property
    def takes_sigma(self) -> bool:
        """Whether it does today: a wrapper may or may not, by what it wraps."""
        ...

    def restore(
        self, frame: Frame, noise: NoiseModel | None = None, sigma: Grey | None = None
    ) -> Restored:
        """sigma: (h, w), one standard deviation of each pixel, in place of the noise model's."""
        ...


class LiveRestorer(Protocol):
    """Question: what is in this scene besides noise, given all frames so far? Deterministic.

    Bounded memory; one stream each. Frames may drift; what changes is shown from one frame alone.
    """

    @property
    def name(self) -> str: ...
    @property
    def effective_frames(self) -> float:
        """Frames averaged, by variance; the median over the frame. 0 before the first."""
        ...

    @property
    def drift_px(self) -> tuple[float, float]:
        """How far the scene has moved since the last reset: to the right, and down."""
        ...

    def push(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """The scene as it lies in this frame. noise: of one frame; None to estimate it."""
        ...

    def reset(self) -> None:
        """Forget all frames: after a move, or a change of focus, dose or magnification."""
        ...


def grey_of(frame: Frame) -> Grey:
    """The frame as float32. Raises BadImage for anything but a finite (h, w) of numbers."""
    if frame.ndim != 2 or min(frame.shape) < LEAST_SIDE_PX:
        raise BadImage(f"needs (h, w), {LEAST_SIDE_PX} px a side at least, got {frame.shape}")
    if frame.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise BadImage(f"needs uint8, uint16, float32 or float64, got {frame.dtype}")
    grey = np.ascontiguousarray(frame, dtype=np.float32)
    if frame.dtype.kind == "f" and not np.isfinite(grey).all():
        raise BadImage("holds values that are not finite numbers")
    return grey
