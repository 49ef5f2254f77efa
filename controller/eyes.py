"""Between the search and the networks: the facts of a run, in the detector's own words.

The journal knows `CalibrationFitted`, the detector a `SubstrateCalibration`; which detector it is,
and for which lens, is decided here from what was handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from controller.messages import CalibrationFitted
from controller.restoring.before import RestoredDetector, restored
from controller.restoring.frames import RestorerChoice
from controller.search.colours import wafer_of
from controller.search.report import Ladder
from controller.search.state import SearchState
from drivers.api import Objective, Pixels
from inference.api import Calibration, FlakeDetector, FocusEstimator, SharpnessMeasure
from inference.flakes import ladder as ladders
from inference.flakes.calibration import SubstrateCalibration, nominal_calibration
from inference.flakes.physics_detector import DetectorSettings, calibrate
from inference.focus.aenet import AENet

# One calibration, or one for each kind of substrate; None: the nominal one.
Calibrations: TypeAlias = Calibration | Sequence[SubstrateCalibration] | None
MakeDetector: TypeAlias = Callable[[DetectorSettings, Calibrations], FlakeDetector]


def of_its_own_mind(make: MakeDetector) -> MakeDetector:
    """A network that judges for itself.

    One that is told of a sure calibration leaves outlines and layer numbers to the physics. For a
    second opinion it is given the same colours, and told that nobody is sure of them.
    """

    def made(settings: DetectorSettings, calibrations: Calibrations) -> FlakeDetector:
        if calibrations is None:
            return make(settings, None)
        if isinstance(calibrations, Calibration):
            return make(settings, replace(calibrations, confidence=0.0))
        doubted = [
            replace(wafer, calibration=replace(wafer.calibration, confidence=0.0))
            for wafer in calibrations
        ]
        return make(settings, doubted)

    return made


def before_detection(make: MakeDetector, choice: RestorerChoice) -> MakeDetector:
    """The same detectors, shown frames without their noise."""

    def made(settings: DetectorSettings, calibrations: Calibrations) -> FlakeDetector:
        return RestoredDetector(make(settings, calibrations), choice)

    return made


@dataclass(frozen=True, slots=True)
class SearchEyes:
    """`controller.search.ports.Eyes`, made of what the composition root chose."""

    settings: DetectorSettings
    make_detector: MakeDetector
    sharpness: SharpnessMeasure
    estimator: FocusEstimator
    aenet: AENet | None  # None: focus by sweeps alone
    everyone: tuple[MakeDetector, ...] = ()  # who is asked once the run is over
    restorer: RestorerChoice | None = None  # takes the noise off what detectors see; None: nothing

    def _for(self, objective: Objective) -> DetectorSettings:
        return self.settings.model_copy(update={"numerical_aperture": objective.numerical_aperture})

    def detector(
        self, objective: Objective, calibrations: Sequence[CalibrationFitted]
    ) -> FlakeDetector:
        """The colours that this lens should show, under the fitted or the nominal calibration."""
        return self._made(self.make_detector, objective, calibrations)

    def everybody(
        self, objective: Objective, calibrations: Sequence[CalibrationFitted]
    ) -> tuple[FlakeDetector, ...]:
        """Every detector that there is, each as `detector` would make it if it led alone."""
        return tuple(self._made(make, objective, calibrations) for make in self.everyone)

    def _made(
        self, make: MakeDetector, objective: Objective, calibrations: Sequence[CalibrationFitted]
    ) -> FlakeDetector:
        if self.restorer is not None:
            make = before_detection(make, self.restorer)
        settings = self._for(objective)
        if not calibrations:
            return make(settings, None)
        fitted = [wafer_of(fact) for fact in calibrations]
        if objective.name != calibrations[0].objective:
            # Another lens shows the bare substrate a little differently: no drift to look for.
            settings = _explaining(settings, calibrations[0])
            return make(settings, fitted[0].calibration)
        return make(settings, fitted)

    def calibrate(
        self, images: Sequence[Pixels], objective: Objective, bit_depth: int
    ) -> Sequence[CalibrationFitted]:
        """One calibration for each kind of substrate, the commonest first."""
        if self.restorer is not None:
            images = [restored(pixels, self.restorer) for pixels in images]
        fitted = calibrate(images, self._for(objective), objective.pixel_size_nm, bit_depth)
        return [
            CalibrationFitted(
                f.calibration.oxide_nm,
                f.calibration.gain_rgb,
                f.calibration.confidence,
                f.calibration.source,
                f.substrate_rgb,
                objective.name,
                f.index_curves,
                f.lamp_k,
            )
            for f in fitted
        ]


def _explaining(settings: DetectorSettings, fitted: CalibrationFitted) -> DetectorSettings:
    """With the index curves and the lamp that the fit chose."""
    chosen: dict[str, object] = {
        "index_curves": {**settings.index_curves, **dict(fitted.index_curves)}
    }
    if fitted.lamp_k is not None:
        chosen["lamp_k"] = fitted.lamp_k
    return settings.model_copy(update=chosen)


def report_ladders(detector: DetectorSettings, state: SearchState) -> list[Ladder]:
    """The contrast curves that the report draws behind every measured colour."""
    fitted = state.calibration
    calibration = nominal_calibration(detector.oxide_nm)
    if fitted is not None:
        calibration = Calibration(
            fitted.oxide_nm, fitted.gain_rgb, fitted.confidence, fitted.source
        )
        detector = _explaining(detector, fitted)
    curves = []
    for material in detector.materials:
        curve = ladders.ladder(material, calibration, detector.optics)
        layers = np.asarray(curve.thickness_layers, dtype=np.float64)
        shown = layers <= 12.0
        curves.append(
            Ladder(material, layers[shown], np.asarray(curve.contrast_rgb, np.float64)[shown])
        )
    return curves
