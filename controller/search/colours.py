"""The colours that a search has fitted: from facts to the detector's words, and to a file.

The file stands in the run's folder and goes into `[detector] calibration` of the next one: the same
microscope, and wafers that look the same, need not be learnt again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from controller.messages import CalibrationFitted
from controller.record.rundir import writing
from controller.settings import Settings
from inference.api import BadModel, Calibration
from inference.flakes.calibration import SubstrateCalibration
from inference.flakes.microscope import Microscope, load_microscope, save_microscope

CALIBRATION_FILE = "calibration.json"


def wafer_of(fact: CalibrationFitted) -> SubstrateCalibration:
    """A fact of the journal, as the detector knows it."""
    return SubstrateCalibration(
        fact.substrate_rgb,
        Calibration(fact.oxide_nm, fact.gain_rgb, fact.confidence, fact.source),
        fact.index_curves,
        fact.lamp_k,
    )


def write_colours(
    folder: Path, settings: Settings, calibrations: Sequence[CalibrationFitted]
) -> Path | None:
    """Write what was fitted into a run's folder; None where nothing was. Raises DiskFull."""
    wafers = tuple(wafer_of(fact) for fact in calibrations if fact.confidence > 0.0)
    if not wafers:
        return None
    microscope = Microscope()
    used = settings.detector.get("calibration")
    if used is not None:
        # The wafers' gains are beyond the microscope's own correction: they belong together.
        try:
            microscope = load_microscope(Path(str(used)))
        except BadModel:
            return None  # it has gone since the search began
    path = folder / CALIBRATION_FILE
    with writing(path):
        save_microscope(path, replace(microscope, wafers=wafers))
    return path
