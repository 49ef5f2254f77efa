"""What a search asks of the rooms it does not know: eyes to see with, and someone to tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controller.messages import CalibrationFitted, Phase
from drivers.api import Objective, Pixels
from inference.api import FlakeDetector, FocusEstimator, SharpnessMeasure
from inference.focus.aenet import AENet


class Eyes(Protocol):
    """What the search asks of inference; `app` fills it."""

    @property
    def sharpness(self) -> SharpnessMeasure:
        """How sharp a frame is."""
        ...

    @property
    def estimator(self) -> FocusEstimator:
        """Where focus is, given a sweep."""
        ...

    @property
    def aenet(self) -> AENet | None:
        """What looks at the frames of a few-frame focus; None: focus by sweeps alone."""
        ...

    def detector(
        self, objective: Objective, calibrations: Sequence[CalibrationFitted]
    ) -> FlakeDetector:
        """The detector for one lens; empty: nothing was fitted yet."""
        ...

    def calibrate(
        self, images: Sequence[Pixels], objective: Objective, bit_depth: int
    ) -> Sequence[CalibrationFitted]:
        """Fit the microscope's colours; empty: there was nothing to fit on."""
        ...


class Watcher(Protocol):
    """Who is told how far the search is; must return at once."""

    def phase(self, phase: Phase, total: int, done: int) -> None:
        """A phase begins, of `total` steps of which `done` are behind an earlier session."""

    def step(self, phase: Phase, done: int, at_s: float) -> None:
        """So many steps are done, at this time on the instrument's clock."""

    def note(self, text: str) -> None:
        """Something the user should read now."""
