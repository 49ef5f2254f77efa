"""The composition root: the only file that chooses drivers, detectors and clocks by name.

Everything else is handed what it works with. What a command of the command line does, from the
settings to the printed result, is one function here.
"""

from __future__ import annotations

import asyncio
import platform
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Table
from rich.text import Text
from shapely import unary_union
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

import inference
from controller import figures
from controller.errors import BadSettings, ControllerError
from controller.focusing.few_frames import FewFrames, FewFramesStep
from controller.focusing.once import focus_instrument, write_strip
from controller.geometry import CameraGeometry, footprint_um
from controller.messages import CalibrationFitted, CatalogueEntry, Phase, RunStarted
from controller.record import rundir
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.safety import Envelope
from controller.search.conclude import conclude
from controller.search.entries import tile_boxes_um
from controller.search.report import Ladder, TruthRow
from controller.search.run import Search, SearchResult
from controller.search.scorecard import Scorecard, TruthTerrace, score
from controller.search.state import SearchState, advance, folded
from controller.settings import Settings, load_toml, validated
from drivers.api import Frame, Instrument, Objective, Pixels
from drivers.errors import DriverError, NoAnswer
from drivers.replay import ReplayMicroscope, ReplaySettings
from inference.api import (
    Calibration,
    FlakeDetector,
    FocusEstimator,
    ModelError,
    NoEngine,
    SharpnessMeasure,
)
from inference.engine import Engine
from inference.flakes import ladder as ladders
from inference.flakes.calibration import SubstrateCalibration, nominal_calibration
from inference.flakes.contact_sheet import contact_sheet, write_sheet
from inference.flakes.evaluate import (
    Evaluation,
    evaluate_folder,
    images_in,
    read_rgb,
    truth_for,
)
from inference.flakes.physics_detector import (
    DetectorSettings,
    PhysicsDetector,
    calibrate,
    checked_image,
)
from inference.flakes.scoring import instances_from_detections
from inference.focus.acnet import ACNet, Limits
from inference.focus.aenet import AENet
from inference.focus.gradient import GradientSharpness
from inference.focus.likelihood import Prior
from inference.focus.parabola import InverseParabola
from inference.onnx_engine import OnnxEngine
from simulator.clock import VirtualTimeLoop
from simulator.optical_microscope import MicroscopeSettings, SimulatedMicroscope



@dataclass(frozen=True, slots=True)
class PhysicsEyes:
    """Focus by sharpness and parabola, flakes by thin-film physics: no training."""

    settings: DetectorSettings
    sharpness: SharpnessMeasure = field(default_factory=GradientSharpness)
    estimator: FocusEstimator = field(default_factory=InverseParabola)

    def _for(self, objective: Objective) -> DetectorSettings:
        return self.settings.model_copy(update={"numerical_aperture": objective.numerical_aperture})

    def detector(
        self, objective: Objective, calibrations: Sequence[CalibrationFitted]
    ) -> FlakeDetector:
        """The colours that this lens should show, under the fitted or the nominal calibration."""
        settings = self._for(objective)
        if not calibrations:
            return PhysicsDetector(settings)
        fitted = [
            SubstrateCalibration(
                c.substrate_rgb,
                Calibration(c.oxide_nm, c.gain_rgb, c.confidence, c.source),
                c.index_curves,
            )
            for c in calibrations
        ]
        if objective.name != calibrations[0].objective:
            # Another lens shows the bare substrate a little differently: no drift to look for.
            curves = {**settings.index_curves, **dict(fitted[0].index_curves)}
            settings = settings.model_copy(update={"index_curves": curves})
            return PhysicsDetector(settings, fitted[0].calibration)
        return PhysicsDetector(settings, fitted)

    def calibrate(
        self, images: Sequence[Pixels], objective: Objective, bit_depth: int
    ) -> Sequence[CalibrationFitted]:
        """One calibration for each kind of substrate, the commonest first."""
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
            )
            for f in fitted
        ]


@dataclass(frozen=True, slots=True)
class SetUp:
    """A configuration that was found sound, and what it names."""

    settings: Settings
    detector: DetectorSettings
    instrument: Instrument
    factory: Callable[[], asyncio.AbstractEventLoop]  # of the loop, hence the clock
    file: str  # where the settings stand, for later errors


def set_up(tables: dict[str, Any], file: str) -> SetUp:
    """Everything that a configuration asks for; raises BadSettings, and nothing was started."""
    settings = validated(Settings, tables, file)
    detector = validated(DetectorSettings, settings.detector, file, prefix="detector")
    factory = loop_factory(settings, file)
    instrument = open_instrument(settings, file)
    check_together(settings, detector, instrument, file)
    return SetUp(settings, detector, instrument, factory, file)


def open_instrument(settings: Settings, file: str) -> Instrument:
    """The instrument that `[instrument] driver` names; nothing is moved yet."""
    options = settings.instrument.options()
    match settings.instrument.driver:
        case "simulated_optical":
            return SimulatedMicroscope(
                validated(MicroscopeSettings, options, file, prefix="instrument")
            )
        case "simulated_sem":
            return SimulatedSem(validated(SemSettings, options, file, prefix="instrument"))
        case "replay":
            replay = validated(ReplaySettings, options, file, prefix="instrument")
            return ReplayMicroscope(replay)


def check_together(
    settings: Settings, detector: DetectorSettings, instrument: Instrument, file: str
) -> None:
    """What no section can know alone. Raises BadSettings."""
    names = [objective.name for objective in instrument.turret.objectives]
    for key, name in (
        ("overview.objective", settings.overview.objective),
        ("scan.objective", settings.scan.objective),
        ("revisit.objective", settings.revisit.objective),
    ):
        is_used = not (
            (key.startswith("overview") and settings.scan.area == "limits")
            or (key.startswith("revisit") and settings.revisit.max_flakes == 0)
        )
        if is_used and name not in names:
            raise BadSettings(file, key, repr(name), f"one of {', '.join(names)}")
    for material in settings.wanted.materials:
        if material not in detector.materials:
            raise BadSettings(
                file,
                "wanted.materials",
                repr(material),
                f"materials that the detector looks for: {', '.join(detector.materials)}",
            )
    camera = instrument.camera
    try:
        blank = np.zeros((*camera.shape_px, 3), np.uint8 if camera.bit_depth <= 8 else np.uint16)
        checked_image(cast(Pixels, blank), 100.0, camera.bit_depth)
    except ModelError as error:
        h_px, w_px = camera.shape_px
        asked = f"a camera of {w_px} x {h_px} px, {camera.bit_depth} bit"
        raise BadSettings(file, "instrument", asked, f"what the detector takes: {error}") from None
    longest_s = settings.safety.max_exposure_s
    if settings.camera.exposure_s > longest_s:
        allowed = f"at most safety.max_exposure_s = {longest_s:g}"
        raise BadSettings(file, "camera.exposure_s", settings.camera.exposure_s, allowed)
    try:
        Envelope.within(settings.safety, instrument.stage.limits_um, instrument.focus.limits_um)
    except BadSettings as error:
        raise BadSettings(file, error.key, error.value, error.allowed) from None
    if not rundir.can_name(settings.run.name):
        allowed = "a name that is no device on Windows and does not end in a dot"
        raise BadSettings(file, "run.name", repr(settings.run.name), allowed)


def loop_factory(settings: Settings, file: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The clock that `[run] clock` names."""
    if settings.run.clock == "real":
        return asyncio.new_event_loop
    if settings.instrument.driver not in {"simulated_optical", "simulated_sem", "replay"}:
        raise BadSettings(
            file, "run.clock", repr(settings.run.clock), "'real' with a real instrument"
        )
    return partial(VirtualTimeLoop, charges_compute=settings.run.clock == "virtual")


def report_ladders(detector: DetectorSettings, state: SearchState) -> list[Ladder]:
    """The contrast curves that the report draws behind every measured colour."""
    fitted = state.calibration
    calibration = nominal_calibration(detector.oxide_nm)
    if fitted is not None:
        calibration = Calibration(
            fitted.oxide_nm, fitted.gain_rgb, fitted.confidence, fitted.source
        )
        index_curves = {**detector.index_curves, **dict(fitted.index_curves)}
        detector = detector.model_copy(update={"index_curves": index_curves})
    curves = []
    for material in detector.materials:
        curve = ladders.ladder(material, calibration, detector.optics)
        layers = np.asarray(curve.thickness_layers, dtype=np.float64)
        shown = layers <= 12.0
        curves.append(
            Ladder(material, layers[shown], np.asarray(curve.contrast_rgb, np.float64)[shown])
        )
    return curves


def scorecard(
    entries: Sequence[CatalogueEntry],
    state: SearchState,
    settings: Settings,
    instrument: Instrument,
) -> Scorecard:
    """The catalogue against what the simulated chip really carries, where tiles looked.

    A terrace counts when the scanned area shows all of it, an entry when it does not touch the
    area's border: what goes on where nobody looked can be neither right nor wrong.
    """
    if not isinstance(instrument, SimulatedMicroscope):
        raise TypeError("only a simulated instrument knows the truth")
    chip = instrument.truth().chip
    terraces: list[TruthTerrace] = []
    if chip is not None and state.scan is not None:
        seen = scanned_area(state)
        for flake in chip.truth().flakes:
            for terrace in flake.terraces:
                shape = Polygon(chip.chip_to_stage_um(terrace.polygon_um))
                shape = shape if shape.is_valid else shape.buffer(0)
                if seen.contains(shape):
                    terraces.append(TruthTerrace(flake.material, terrace.layers, shape))
    wanted = settings.wanted
    inside = scanned_area(state).buffer(-1.0)
    kept = [
        e for e in entries if e.score >= wanted.min_score and inside.contains(Polygon(e.outline_um))
    ]
    return score(kept, terraces, wanted.materials, wanted.layers, wanted.min_area_um2)


def scanned_area(state: SearchState) -> BaseGeometry:
    """Union of the fields that were scanned."""
    boxes = tile_boxes_um(state)
    return unary_union([box(*boxes[i]) for shot, i in state.analysed if shot == "tile"])


def few_frames(depth_of_field_um: float, has_stigmator: bool, range_dof: float) -> FewFrames:
    """The eyes and the controller of the few-frame focus; physics only where no network is."""
    prior = Prior(range_dof=range_dof, astigmatism_dof=10.0 if has_stigmator else 0.0)
    limits = Limits(has_stigmator=has_stigmator, wide_ratio=1.0)
    return FewFrames(AENet(focus_engine()), ACNet(limits, prior), depth_of_field_um)


def focus_engine() -> Engine | None:
    """The network of AENet; None: onnxruntime or the weights are not there."""
    model = Path(inference.__file__).parent / "weights" / "aenet.onnx"
    if not model.is_file():
        return None
    try:
        return OnnxEngine(model)
    except NoEngine:
        return None
