"""Eyes that see frames without their noise: what looks is handed a computed image.

Only on request, `[restore] before_focus` and `before_detection`; the frames that are kept are the
raw ones. Every frame is restored by itself: a focus sweep changes the picture from one to the next.
What `scopeloop bench restore_uses` says of it: see there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy.typing as npt

from controller.restoring.frames import FrameRestorer, RestorerChoice
from drivers.api import Pixels
from inference.api import FlakeAnswer, FlakeDetector, Sharpness, SharpnessMeasure


def restored(pixels: npt.NDArray[Any], choice: RestorerChoice) -> Pixels:
    """One frame without its noise, in its own type. Raises BadImage, ModelError."""
    return cast("Pixels", FrameRestorer(choice).restore(pixels).image)


@dataclass(frozen=True, slots=True)
class RestoredSharpness:
    """A `SharpnessMeasure` of restored frames."""

    inner: SharpnessMeasure
    choice: RestorerChoice

    @property
    def name(self) -> str:
        """Both."""
        return f"{self.inner.name} after {self.choice.name}"

    def measure(self, pixels: Pixels) -> Sharpness:
        """How sharp the restored frame is."""
        return self.inner.measure(restored(pixels, self.choice))


@dataclass(frozen=True, slots=True)
class RestoredDetector:
    """A `FlakeDetector` of restored frames."""

    inner: FlakeDetector
    choice: RestorerChoice

    @property
    def name(self) -> str:
        """Both."""
        return f"{self.inner.name} after {self.choice.name}"

    @property
    def budget_s(self) -> float:
        """The inner one's: restoring is not its time."""
        return self.inner.budget_s

    def detect(
        self, pixels: npt.NDArray[Any], pixel_size_nm: float, bit_depth: int = 8
    ) -> FlakeAnswer:
        """Which flakes are in the restored frame."""
        return self.inner.detect(restored(pixels, self.choice), pixel_size_nm, bit_depth)
