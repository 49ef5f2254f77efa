"""The composition root: the only file that chooses drivers, engines, detectors and clocks by name.

Everything else is handed what it works with; what a command does with it stands in `commands/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from shapely.geometry import Polygon

import inference
from controller.errors import BadSettings
from controller.eyes import MakeDetector, SearchEyes, of_its_own_mind
from controller.focusing.few_frames import FewFrames
from controller.processes import mapped
from controller.record import rundir
from controller.restoring.before import RestoredSharpness
from controller.restoring.choice import Method, NetworkName, restorer_choice, view_choice
from controller.restoring.frames import RestorerChoice
from controller.safety import Envelope
from controller.search.scorecard import TruthTerrace
from controller.settings import InferenceSettings, Settings, validated
from drivers.api import Instrument, Pixels
from drivers.replay import ReplayMicroscope, ReplaySettings
from inference.api import ModelError, NoEngine, SharpnessMeasure
from inference.engine import Engine, load_card
from inference.engine_cache import EngineCache, default_folder
from inference.flakes.flakenet import FlakeNetDetector, detector_that_leads
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, checked_image
from inference.focus.acnet import ACNet, Limits
from inference.focus.aenet import AENet
from inference.focus.gradient import GradientSharpness
from inference.focus.likelihood import Prior
from inference.focus.parabola import InverseParabola
from inference.onnx_engine import OnnxEngine, onnxruntime_here
from inference.openvino_engine import OpenVinoEngine, openvino_here
from inference.restore.exit_wave import ExitWaveRestorer
from inference.restore.network import NetworkDenoiser
from inference.restore.views import SCALES, ComputedView, ViewName
from inference.tensorrt_engine import TensorRTEngine, tensorrt_here
from inference.training.flake_examples import Example, example_of
from inference.training.restore_examples import CleanScene
from inference.training.wave_examples import WaveExample
from simulator.clock import VirtualTimeLoop
from simulator.exit_waves import Role, wave_scene
from simulator.flake_frames import labelled_frame
from simulator.optical_microscope import MicroscopeSettings, SimulatedMicroscope
from simulator.restore_frames import Domain, clean_frame
from simulator.sem import SemSettings, SimulatedSem
from simulator.tem_instrument import SimulatedTem, TemInstrumentSettings

_KEEPS_ANY_TIME = {"simulated_optical", "simulated_sem", "simulated_tem", "replay"}


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
    detector = detector_settings(settings.detector, file)
    factory = loop_factory(settings, file)
    instrument = open_instrument(settings, file)
    check_together(settings, detector, instrument, file)
    return SetUp(settings, detector, instrument, factory, file)


def detector_settings(table: dict[str, Any], file: str) -> DetectorSettings:
    """What `[detector]` asks for. Raises BadSettings."""
    return validated(DetectorSettings, table, file, prefix="detector")


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
        case "simulated_tem":
            return SimulatedTem(
                validated(TemInstrumentSettings, options, file, prefix="instrument")
            )
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
    if settings.instrument.driver not in _KEEPS_ANY_TIME:
        raise BadSettings(
            file, "run.clock", repr(settings.run.clock), "'real' with a real instrument"
        )
    return partial(VirtualTimeLoop, charges_compute=settings.run.clock == "virtual")


def eyes(
    settings: Settings, detector: DetectorSettings, say: Callable[[str], None] | None = None
) -> SearchEyes:
    """What a search sees with; `say` hears what could not be had."""
    aenet = None
    if settings.focus.method == "few_frames":
        aenet = AENet(open_network("aenet", settings.inference, say))
    leader, everyone = flake_detectors(settings.inference, say)
    choice = restorer_before(settings, say)
    sharpness: SharpnessMeasure = GradientSharpness()
    if choice is not None and settings.restore.before_focus:
        sharpness = RestoredSharpness(sharpness, choice)
    return SearchEyes(
        detector,
        leader,
        sharpness,
        InverseParabola(),
        aenet,
        tuple(everyone),
        choice if settings.restore.before_detection else None,
    )


def true_terraces(instrument: Instrument) -> tuple[TruthTerrace, ...] | None:
    """What a simulated chip really carries, in stage um; None: this instrument does not know."""
    if not isinstance(instrument, SimulatedMicroscope):
        return None
    chip = instrument.truth().chip
    if chip is None:
        return ()
    terraces = []
    for flake in chip.truth().flakes:
        for terrace in flake.terraces:
            shape = Polygon(chip.chip_to_stage_um(terrace.polygon_um))
            shape = shape if shape.is_valid else shape.buffer(0)
            terraces.append(TruthTerrace(flake.material, terrace.layers, shape))
    return tuple(terraces)


def true_defocus_um(instrument: Instrument) -> float | None:
    """How far a simulated sample really is from focus; None: this instrument does not know."""
    if isinstance(instrument, SimulatedSem | SimulatedMicroscope):
        return instrument.truth().defocus_um
    if isinstance(instrument, SimulatedTem):  # there the best focus is not the Gaussian one
        truth = instrument.truth()
        return truth.focus_z_um - truth.best_focus_z_um
    return None


def flake_examples(
    seed: int, photographs: int, strange_share: float, jobs: int = 0
) -> Iterator[Example]:
    """What FlakeNet learns from, out of simulated laboratories; the same seed gives the same.

    Frames whose substrate is not found are left out. jobs 0: one process a core; 1: this one.
    """
    tasks = [(seed, number, strange_share) for number in range(photographs)]
    return filter(None, mapped(_flake_example, tasks, jobs))


def restore_scenes(seed: int, scenes: int, domain: Domain, jobs: int = 0) -> Iterator[CleanScene]:
    """What the restoring networks learn from, or are measured on; the same seed gives the same."""
    tasks = [(seed, number, domain) for number in range(scenes)]
    return mapped(_restore_scene, tasks, jobs)


def wave_examples(seed: int, waves: int, role: Role, jobs: int = 0) -> Iterator[WaveExample]:
    """What the exit wave's network learns from, or is measured on; the same seed gives the same."""
    tasks = [(seed, number, role) for number in range(waves)]
    return mapped(_wave_example, tasks, jobs)


def _wave_example(task: tuple[int, int, Role]) -> WaveExample:
    scene = wave_scene(*task)
    return WaveExample.of(scene.wave, scene.pixel_size_nm, scene.voltage_kv)


def _restore_scene(task: tuple[int, int, Domain]) -> CleanScene:
    cv2.setNumThreads(1)
    frame = clean_frame(*task)
    return CleanScene.of(frame.family, frame.level, *frame.doses_e)


def _flake_example(task: tuple[int, int, float]) -> Example | None:
    seed, number, strange_share = task
    cv2.setNumThreads(1)
    return example_of(labelled_frame(seed, number, "train", strange_share=strange_share))


@dataclass(frozen=True, slots=True)
class EngineFound:
    """What could run a network here."""

    name: str
    version: str  # and the device; "" where it cannot
    lack: str = ""  # why it cannot


def engines() -> tuple[EngineFound, ...]:
    """Every runtime that is known, the preferred first."""
    return (
        _found("TensorRT", tensorrt_here),
        _found("OpenVINO", openvino_here),
        _found("onnxruntime", onnxruntime_here),
    )


def _found(name: str, here: Callable[[], str]) -> EngineFound:
    try:
        return EngineFound(name, here())
    except NoEngine as error:
        return EngineFound(name, "", str(error))


def models() -> tuple[Path, ...]:
    """The networks that are kept with the program."""
    return tuple(sorted((Path(inference.__file__).parent / "weights").glob("*.onnx")))


def open_engine(
    model: Path,
    wanted: InferenceSettings,
    say: Callable[[str], None] | None = None,
    *,
    cache: Path | None = None,
) -> Engine:
    """A network, ready to run; `say` hears why a faster engine that is there is not used.

    cache: where built engines are kept; None: in the user's own caches. Raises NoEngine, BadModel.
    """
    kept = EngineCache(cache or default_folder())
    match wanted.engine:
        case "tensorrt":
            return TensorRTEngine(model, kept)
        case "openvino":
            return OpenVinoEngine(model)
        case "onnx":
            return OnnxEngine(model)
        case "auto":
            pass
    if _found("TensorRT", tensorrt_here).version:
        try:
            return TensorRTEngine(model, kept)
        except ModelError as error:
            if say is not None:
                say(f"{model.stem}: not on TensorRT, because {error}")
    # At float32 OpenVINO is no faster than onnxruntime, which every installation has: whether it is
    # here, which takes loading it, is asked only for what bears less.
    if _bears_less(model) and _found("OpenVINO", openvino_here).version:
        try:
            return OpenVinoEngine(model)
        except ModelError as error:
            if say is not None:
                say(f"{model.stem}: not on OpenVINO, because {error}")
    return OnnxEngine(model)


def _bears_less(model: Path) -> bool:
    """Whether the card allows coarser arithmetic; what is wrong with a card, the engine says."""
    try:
        return load_card(model).precision != "float32"
    except ModelError:
        return False


def open_network(
    name: str, wanted: InferenceSettings, say: Callable[[str], None] | None = None
) -> Engine | None:
    """A network by its name; None: no weights are here, or nothing runs them.

    Raises NoEngine where a runtime was asked for by name and is not here, BadModel.
    """
    model = next((model for model in models() if model.stem == name), None)
    if model is None:
        return None
    try:
        return open_engine(model, wanted, say)
    except NoEngine as error:
        if wanted.engine != "auto":
            raise
        if say is not None:
            say(f"{name}: physics only, because {error}")
        return None


def flake_detector(
    wanted: InferenceSettings, say: Callable[[str], None] | None = None
) -> MakeDetector:
    """FlakeNet, the physics, or whichever leads. Raises NoEngine, BadModel."""
    return flake_detectors(wanted, say)[0]


def flake_detectors(
    wanted: InferenceSettings, say: Callable[[str], None] | None = None
) -> tuple[MakeDetector, tuple[MakeDetector, ...]]:
    """Who leads, and everyone who may be asked after the run. Raises NoEngine, BadModel.

    Who asks for the physics hears nobody else.
    """
    engine = None if wanted.flakes == "physics" else open_network("flakenet", wanted, say)
    if engine is None and wanted.flakes == "network":
        message = "the network is not in inference/weights: scopeloop train flakes makes it"
        raise NoEngine(message)
    if engine is None:
        return PhysicsDetector, (PhysicsDetector,)
    network: MakeDetector = partial(FlakeNetDetector, engine)
    leader = network if wanted.flakes == "network" else partial(detector_that_leads, engine)
    return leader, (PhysicsDetector, of_its_own_mind(network))


def few_frames(
    depth_of_field_um: float, has_stigmator: bool, range_dof: float, engine: Engine | None
) -> FewFrames:
    """The eyes and the controller of the few-frame focus; physics only where no network is."""
    prior = Prior(range_dof=range_dof, astigmatism_dof=10.0 if has_stigmator else 0.0)
    limits = Limits(has_stigmator=has_stigmator, wide_ratio=1.0)
    return FewFrames(AENet(engine), ACNet(limits, prior), depth_of_field_um)


def live_restorer(
    settings: Settings, say: Callable[[str], None] | None = None
) -> RestorerChoice | None:
    """What `[restore]` puts between camera and live view; None: raw frames only.

    Raises NoEngine, BadModel.
    """
    restore = settings.restore
    if restore.method == "off":
        return None
    return restorer_named(
        restore.method,
        recursive=restore.recursive,
        wanted=settings.inference,
        twin_test_every_frames=restore.twin_test_every_frames,
        say=say,
    )


def restorer_before(
    settings: Settings, say: Callable[[str], None] | None = None
) -> RestorerChoice | None:
    """What `[restore]` puts before focus or detection, frame by frame; None: neither asks for it.

    Raises NoEngine, BadModel.
    """
    restore = settings.restore
    if restore.method == "off" or not (restore.before_focus or restore.before_detection):
        return None
    return restorer_named(restore.method, recursive=False, wanted=settings.inference, say=say)


def restorer_named(
    method: Method,
    *,
    recursive: bool,
    wanted: InferenceSettings | None = None,
    twin_test_every_frames: int = 1,
    say: Callable[[str], None] | None = None,
) -> RestorerChoice:
    """A restorer by its name in the settings. Raises NoEngine, BadModel."""
    return restorer_choice(
        method,
        recursive=recursive,
        open_network=partial(denoiser, wanted=wanted or InferenceSettings(), say=say),
        twin_test_every_frames=twin_test_every_frames,
    )


def computed_view(
    name: ViewName,
    wanted: InferenceSettings | None = None,
    say: Callable[[str], None] | None = None,
) -> ComputedView | None:
    """A view that the operator may switch on; None: no weights are here, or nothing runs them.

    Raises NoEngine where a runtime was asked for by name and is not here, BadModel.
    """
    engine = open_network(name, wanted or InferenceSettings(), say)
    return None if engine is None else ComputedView(engine, SCALES[name])


def view_named(name: ViewName, say: Callable[[str], None] | None = None) -> RestorerChoice:
    """A computed view as a restorer of single frames. Raises NoEngine, BadModel."""
    view = computed_view(name, say=say)
    if view is None:
        message = (
            f'the network "{name}" is not in inference/weights; scopeloop train restore makes it'
        )
        raise NoEngine(message)
    return view_choice(view)


def denoiser(
    name: NetworkName, wanted: InferenceSettings, say: Callable[[str], None] | None = None
) -> NetworkDenoiser | None:
    """A denoising network; None: no weights are here, or nothing runs them.

    Raises NoEngine where a runtime was asked for by name and is not here, BadModel.
    """
    here = {model.stem for model in models()}
    names = [f"denoise_{name}_int8", f"denoise_{name}"]
    if wanted.engine == "tensorrt" or (
        wanted.engine == "auto" and _found("TensorRT", tensorrt_here).version
    ):
        names.reverse()  # the integers are a processor's; a GPU takes the floats
    named = next((one for one in names if one in here), None)
    engine = None if named is None else open_network(named, wanted, say)
    return None if engine is None else NetworkDenoiser(engine)


def exit_wave_restorer(
    wanted: InferenceSettings | None = None, say: Callable[[str], None] | None = None
) -> ExitWaveRestorer:
    """What recovers exit waves, by its network; NoEngine where that is not here, BadModel."""
    engine = open_network("exit_wave", wanted or InferenceSettings(), say)
    if engine is None:
        message = "the network is not in inference/weights: scopeloop train exit_wave makes it"
        raise NoEngine(message)
    return ExitWaveRestorer(engine)
