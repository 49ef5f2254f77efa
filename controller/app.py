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
from inference.focus.parabola import InverseParabola
from inference.focus.posterior import Prior
from inference.onnx_engine import OnnxEngine
from simulator.clock import VirtualTimeLoop
from simulator.optical_microscope import MicroscopeSettings, SimulatedMicroscope
from simulator.sem import SemSettings, SimulatedSem

# --- what runs -----------------------------------------------------------------------------


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


def check_resumable(set_up: SetUp, state: SearchState) -> None:
    """The scan that was planned must still fit the settings. Raises BadSettings."""
    scan, settings = state.scan, set_up.settings
    if scan is None:
        return
    if settings.scan.objective != scan.objective:
        asked, allowed = repr(settings.scan.objective), f"{scan.objective!r}, as it was planned"
        raise BadSettings(set_up.file, "scan.objective", asked, allowed)
    camera, instrument = settings.camera, set_up.instrument
    lens = next(o for o in instrument.turret.objectives if o.name == scan.objective)
    geometry = CameraGeometry(camera.rotation_deg, camera.flip_x, camera.flip_y)
    w_um, h_um = footprint_um(instrument.camera.shape_px, lens.pixel_size_nm, geometry)
    if not np.allclose((w_um, h_um), (scan.field_w_um, scan.field_h_um), rtol=1e-6):
        asked = f"a camera that sees {w_um:.1f} x {h_um:.1f} um through {lens.name}"
        allowed = f"{scan.field_w_um:.1f} x {scan.field_h_um:.1f} um, as the tiles were planned"
        raise BadSettings(set_up.file, "instrument", asked, allowed)


def loop_factory(settings: Settings, file: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The clock that `[run] clock` names."""
    if settings.run.clock == "real":
        return asyncio.new_event_loop
    if settings.instrument.driver not in {"simulated_optical", "simulated_sem", "replay"}:
        raise BadSettings(
            file, "run.clock", repr(settings.run.clock), "'real' with a real instrument"
        )
    return partial(VirtualTimeLoop, charges_compute=settings.run.clock == "virtual")


def overridden(tables: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Settings with `KEY=VALUE` words applied; VALUE is TOML, or a bare string."""
    for word in overrides:
        key, is_pair, text = word.partition("=")
        if not is_pair or not key.strip() or len(word.splitlines()) > 1:
            raise BadSettings("--set", "", repr(word), "KEY=VALUE, as in scan.max_tiles=20")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *path, last = key.strip().split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise BadSettings("--set", key, repr(text), f"a key in a table; {part} is none")
        table[last] = value
    return tables


_CHANGES = "# changed by the command line:"
_CHANGE = "# --set "
_JOURNAL_CURE = "restore it from a copy, or begin a new run; no frame of this one was touched"


# --- scopeloop search ----------------------------------------------------------------------


def start_search(
    config: Path,
    console: Console,
    *,
    seed: int | None = None,
    out: Path | None = None,
    overrides: Iterable[str] = (),
) -> int:
    """Begin a new run; returns the exit status."""
    tables, text = load_toml(config)
    words = list(overrides)
    if seed is not None:
        words += [f"instrument.seed={seed}", f"instrument.chip.seed={seed}"]
    chosen = set_up(overridden(tables, words), str(config))
    run_settings = chosen.settings.run
    # Relative paths in the file mean: from where the command was given.
    parent = out or Path(run_settings.output_dir)
    with rundir.create(parent, run_settings.name, min_free_gib=run_settings.min_free_gib) as run:
        run.write_settings(_with_words(text, words))
        return _search(run, chosen, console)


def resume_search(folder: Path, console: Console) -> int:
    """Go on with a run that was stopped or cut off."""
    with rundir.open_existing(folder) as run:
        tables, text = load_toml(run.settings_path)
        chosen = set_up(overridden(tables, _words_in(text)), str(run.settings_path))
        return _search(run, chosen, console)


def _with_words(text: str, words: Sequence[str]) -> str:
    """The settings as the user wrote them, and below what the command line changed."""
    if not words:
        return text
    return "\n".join([text.rstrip(), "", _CHANGES, *(f"{_CHANGE}{word}" for word in words), ""])


def _words_in(text: str) -> list[str]:
    """What the command line changed, out of a run's settings."""
    lines = text.splitlines()
    if _CHANGES not in lines:
        return []
    last = len(lines) - 1 - lines[::-1].index(_CHANGES)
    return [line.removeprefix(_CHANGE) for line in lines[last + 1 :] if line.startswith(_CHANGE)]


def _search(run: rundir.RunDir, chosen: SetUp, console: Console) -> int:
    settings, instrument, camera = chosen.settings, chosen.instrument, chosen.settings.camera
    geometry = CameraGeometry(camera.rotation_deg, camera.flip_x, camera.flip_y)
    with (
        _journal_of(run) as journal,
        FrameStore(
            run.frames_path, geometry=geometry, min_free_gib=settings.run.min_free_gib
        ) as frames,
    ):
        state = _known(journal, frames)
        check_resumable(chosen, state)
        started = RunStarted(
            run_id=run.path.name,
            name=settings.run.name,
            settings_toml=run.settings_path.read_text(encoding="utf-8"),
            versions={**figures.versions(), "python": platform.python_version()},
            instrument=dict(instrument.describe()),
            started_at_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            session=len(state.sessions),
        )
        journal.append([started])
        advance(state, started)
        console.print(f"run [bold]{escape(str(run.path))}[/]", soft_wrap=True)
        card: list[Scorecard] = []

        def truth(entries: tuple[CatalogueEntry, ...]) -> tuple[TruthRow, ...]:
            card.append(scorecard(entries, state, settings, instrument))
            return tuple(
                TruthRow(row.material, row.layers, row.present, row.found, row.false)
                for row in card[0].rows
            )

        eyes = PhysicsEyes(chosen.detector)
        is_simulated = isinstance(instrument, SimulatedMicroscope)
        try:
            with SearchProgress(console, settings.run.clock) as progress:
                search = Search(settings, instrument, eyes, state, journal, frames, progress)
                with asyncio.Runner(loop_factory=chosen.factory) as runner:
                    result = runner.run(search.run())
                with rundir.writing(run.path):
                    entries = conclude(
                        state,
                        settings,
                        run,
                        frames,
                        instrument.turret.objectives,
                        instrument.camera.shape_px,
                        report_ladders(chosen.detector, state),
                        truth if is_simulated else None,
                        progress.note,
                    )
        except KeyboardInterrupt:
            _say_how_to_go_on(console, run)
            return 130
        except (ControllerError, DriverError, ModelError):
            _say_how_to_go_on(console, run)
            raise
        print_result(console, settings, state, entries, result, card[0] if card else None)
        console.print(f"report [bold]{escape(str(run.report_path))}[/]", soft_wrap=True)
    return 0


def _journal_of(run: rundir.RunDir) -> Journal:
    try:
        return Journal(run.journal_path)
    except rundir.TooNew:
        raise
    except rundir.BadRecord as error:
        raise rundir.BadRecord(error.path, f"{error.reason}; {_JOURNAL_CURE}") from error


def _known(journal: Journal, frames: FrameStore) -> SearchState:
    """What earlier sessions found out. Raises BadRecord rather than begin anew over a record."""
    try:
        state = folded(journal.replay())
    except rundir.BadRecord as error:
        raise rundir.BadRecord(error.path, f"{error.reason}; {_JOURNAL_CURE}") from error
    if not state.sessions and frames.shots():
        reason = f"it is empty, yet frames lie beside it; {_JOURNAL_CURE}"
        raise rundir.BadRecord(journal.path, reason)
    return state


def _say_how_to_go_on(console: Console, run: rundir.RunDir) -> None:
    path = str(run.path)
    shown = f'"{path}"' if " " in path else path
    console.print(
        "[yellow]stopped safely; everything taken is kept. Go on with[/]\n"
        f"  scopeloop search --resume {escape(shown)}",
        soft_wrap=True,
    )


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


def print_result(
    console: Console,
    settings: Settings,
    state: SearchState,
    entries: Sequence[CatalogueEntry],
    result: SearchResult,
    card: Scorecard | None,
) -> None:
    """The closing table."""
    finished = result.finished
    least = f"{settings.wanted.min_area_um2:g} µm²"
    table = Table(
        title=f"terraces of at least {least}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("material")
    for heading in ("layers", "entries"):
        table.add_column(heading, justify="right")
    if card is not None:
        for heading in ("present", "found", "missed", "false", "recall", "precision"):
            table.add_column(heading, justify="right")
        for row in card.rows:
            table.add_row(
                row.material,
                str(row.layers),
                str(row.entries),
                str(row.present),
                str(row.found),
                str(row.missed),
                str(row.false),
                "-" if row.recall is None else f"{row.recall:.3f}",
                "-" if row.precision is None else f"{row.precision:.3f}",
            )
    else:
        for material in settings.wanted.materials:
            for layers in settings.wanted.layers:
                count = sum(
                    (e.material, e.layers) == (material, layers)
                    and e.area_um2 >= settings.wanted.min_area_um2
                    and e.score >= settings.wanted.min_score
                    for e in entries
                )
                table.add_row(material, str(layers), str(count))
    console.print(table)
    doubtful = [
        seen.reason.partition(":")[0]
        for (shot, _), seen in state.analysed.items()
        if shot == "tile" and not seen.in_distribution
    ]
    if doubtful:
        reason, times = Counter(doubtful).most_common(1)[0]
        console.print(
            f"[yellow]{len(doubtful)} of {finished.tiles} tiles could not be judged[/], "
            f"{times} of them: {escape(reason)}"
        )
    if finished.scan_s > 0.0 and settings.instrument.driver != "replay":
        per_min = 60.0 * finished.tiles / finished.scan_s
        share = finished.scan_bound_s / finished.scan_s
        console.print(
            f"{finished.tiles} tiles at {per_min:.0f} tiles/min on the instrument's clock, "
            f"{100 * share:.1f} % of the scan-time bound "
            f"(moves, settling and exposures alone: {finished.scan_bound_s:.1f} s "
            f"of {finished.scan_s:.1f} s); waited {result.stalled_s:.2f} s for disk or detector"
        )
    console.print(
        f"{finished.autofocus_runs} autofocus runs for the scan, "
        f"{len(state.revisited)} flakes revisited, "
        f"{finished.frames_received} frames, {finished.frames_missing} missing, "
        f"{finished.frames_unaccounted} unaccounted for"
    )
    if card is not None and card.position_rms_um is not None:
        console.print(
            f"positions of found terraces: {card.position_rms_um:.2f} um RMS from the truth; "
            f"{card.duplicates} duplicates"
        )


class _Rate(ProgressColumn):
    """Steps a minute on the instrument's clock."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("per_min")
        return Text("" if not rate else f"{rate:.0f}/min", style="cyan")


class SearchProgress:
    """A bar that names the phase, the rate and the time left; a `Watcher`."""

    def __init__(self, console: Console, clock: str) -> None:
        self._clock = clock
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: Any = None
        self._began: tuple[int, float | None] = (0, None)

    def __enter__(self) -> SearchProgress:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def phase(self, phase: Phase, total: int, done: int) -> None:
        """Begin a bar."""
        self._task = self._progress.add_task(f"{phase:9s}", total=total, completed=done)
        self._began = (done, None)

    def step(self, phase: Phase, done: int, at_s: float) -> None:
        """Move it."""
        done_before, began_s = self._began
        if began_s is None:
            self._began = (done, at_s)
        rate = None
        if began_s is not None and at_s > began_s:
            rate = 60.0 * (done - done_before) / (at_s - began_s)
        if self._task is not None:
            self._progress.update(self._task, completed=done, per_min=rate)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(f"[dim]{escape(text)}[/]", highlight=False)


# --- scopeloop bench, doctor ---------------------------------------------------------------


def bench(name: str, console: Console, *, quick: bool, seed: int, out: Path | None) -> int:
    """Run one bench, or all; prints its table and writes its JSON."""
    from controller.bench import BENCHES, Report, run_bench

    if name == "list":
        for key, entry in BENCHES.items():
            console.print(f"[bold]{key}[/]  {entry.description}")
        return 0
    if name != "all" and name not in BENCHES:
        raise BadSettings("", "bench", repr(name), f"all, list, {', '.join(BENCHES)}")
    rows: list[figures.Row] = []
    for key in BENCHES if name == "all" else (name,):
        with console.status(f"bench {key}") as status:

            def say(words: str, key: str = key, status: Status = status) -> None:
                status.update(f"bench {key}: {words}")

            report = Report(say)
            found = run_bench(key, quick=quick, seed=seed, report=report)
        figures.show(console, key, found)
        rows += found
        if out is not None:
            with rundir.writing(out):
                out.parent.mkdir(parents=True, exist_ok=True)
                for title, svg in report.pictures.items():
                    picture = out.with_name(f"{out.stem}_{title}.svg")
                    picture.write_text(svg, encoding="utf-8")
    if out is not None:
        with rundir.writing(out):
            figures.write_json(out, name, rows, seed)
    return 0


def doctor(config: Path | None, console: Console) -> int:
    """What is installed; and for a configuration, whether its instrument opens and answers."""
    table = Table(title="installed", title_justify="left", show_header=False)
    for key, value in {**figures.machine(), **figures.versions()}.items():
        table.add_row(key, str(value))
    free_gib = rundir.free_gib(Path.cwd())
    table.add_row("free disk here", f"{free_gib:.1f} GiB")
    console.print(table)
    if config is None:
        return 0
    tables, _ = load_toml(config)
    chosen = set_up(tables, str(config))
    materials = ", ".join(chosen.detector.materials)
    console.print(f"[green]settings are sound[/] ({escape(str(config))}); detector: {materials}")
    with asyncio.Runner(loop_factory=chosen.factory) as runner:
        checks = runner.run(_examined(chosen.instrument, chosen.settings))
    report = Table(title=chosen.instrument.name, title_justify="left")
    for heading in ("device", "answer", "limits", "round trip"):
        report.add_column(heading)
    for row in checks:
        report.add_row(*row)
    console.print(report)
    return 0


async def _examined(instrument: Instrument, settings: Settings) -> list[tuple[str, str, str, str]]:
    """Ask every device something that moves nothing, and take one frame."""
    clock = asyncio.get_running_loop().time
    rows = []
    async with instrument:

        async def timed(device: str, what: Awaitable[object]) -> tuple[str, str]:
            began_s, patience_s = clock(), settings.camera.frame_timeout_s + 5.0
            try:
                async with asyncio.timeout(patience_s):
                    answer = await what
            except TimeoutError:
                reason = f"asked, and nothing came within {patience_s:g} s; check its link"
                raise NoAnswer(device, reason) from None
            return str(answer), f"{(clock() - began_s) * 1e3:.2f} ms"

        stage, focus, turret = instrument.stage, instrument.focus, instrument.turret
        x, y = stage.limits_um

        async def stands() -> str:
            x_um, y_um = await stage.position_um()
            return f"at ({x_um:.2f}, {y_um:.2f}) um"

        async def focus_stands() -> str:
            return f"at {await focus.position_um():.3f} um"

        answer, took = await timed(stage.name, stands())
        limits = f"x {x.min_um:g} to {x.max_um:g}, y {y.min_um:g} to {y.max_um:g} um"
        rows.append((stage.name, answer, limits, took))
        answer, took = await timed(focus.name, focus_stands())
        z = focus.limits_um
        rows.append((focus.name, answer, f"{z.min_um:g} to {z.max_um:g} um", took))
        answer, took = await timed(turret.name, turret.current())
        names = ", ".join(objective.name for objective in turret.objectives)
        rows.append((turret.name, (await turret.current()).name, names, took))
        camera = instrument.camera

        async def one_frame() -> str:
            await camera.trigger()
            async for frame in camera.frames():
                if isinstance(frame, Frame):
                    return f"frame {frame.number}, {frame.pixels.shape} {frame.pixels.dtype}"
            return "no frame"

        answer, took = await timed(camera.name, one_frame())
        rows.append((camera.name, answer, f"{camera.bit_depth} bit", took))
    return rows


# --- scopeloop evaluate --------------------------------------------------------------------


def evaluate_flakes(
    images: Path,
    masks: Path,
    console: Console,
    *,
    predictions: Path | None,
    pixel_size_nm: float,
    materials: tuple[str, ...],
    oxide_nm: float,
    sheet: Path | None,
    out: Path | None,
) -> None:
    """Score the detector, or another program's masks, on a folder of images."""
    settings = validated(
        DetectorSettings, {"materials": materials, "oxide_nm": oxide_nm}, "", prefix="detector"
    )
    with Progress(console=console) as progress:
        task = progress.add_task("evaluate", total=None)
        found = evaluate_folder(
            images,
            masks,
            settings,
            pixel_size_nm,
            predictions=predictions,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    rows = [
        figures.Row(r.name, r.value, r.unit, r.bar, r.better, r.baseline, r.n, r.ci95, r.note)
        for r in found.rows
    ]
    figures.show(console, "evaluate flakes", rows)
    if sheet is not None:
        _write_sheets(sheet, images, masks, predictions, found)
        console.print(f"contact sheets [bold]{sheet}[/]")
    if out is not None:
        with rundir.writing(out):
            figures.write_json(out, "flakes", rows, None)


def _write_sheets(
    folder: Path, images: Path, masks: Path, predictions: Path | None, found: Evaluation
) -> None:
    """One picture a photograph: hits, misses and false alarms."""
    paths = images_in(images)
    truths = truth_for(paths, masks)
    others = None if predictions is None else truth_for(paths, predictions)
    for i, (path, result) in enumerate(zip(paths, found.images, strict=True)):
        answer = result.answer
        said = others[i] if others is not None else ()
        if answer is not None:
            said = instances_from_detections(answer.detections)
        target = folder / f"{path.stem}.jpg"
        with rundir.writing(target):
            write_sheet(target, contact_sheet(read_rgb(path), said, truths[i]))


# --- scopeloop focus -----------------------------------------------------------------------


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


def focus(
    config: Path, console: Console, *, strip: Path | None, overrides: Iterable[str] = ()
) -> int:
    """Focus once and print every step; returns the exit status: 1 where it gave up."""
    tables, _ = load_toml(config)
    settings = validated(Settings, overridden(tables, overrides), str(config))
    instrument = open_instrument(settings, str(config))

    def make(depth_of_field_um: float, has_stigmator: bool) -> FewFrames:
        few = few_frames(depth_of_field_um, has_stigmator, settings.focus.range_dof)
        console.print(f"{instrument.name}: {few.aenet.name}, 1 DOF = {depth_of_field_um:.3f} um")
        return few

    def on_step(step: FewFramesStep) -> None:
        view = step.view
        console.print(
            f"  {step.purpose:8s} z {step.focus_z_um:10.3f} um  "
            f"stig {step.stig_x_um:+.2f} {step.stig_y_um:+.2f} um  "
            f"score {view.score:.1f}  |defocus| {view.defocus_dof:.1f} "
            f"+- {view.defocus_sigma_dof:.1f} DOF  {view.reason}",
            highlight=False,
        )

    with asyncio.Runner(loop_factory=loop_factory(settings, str(config))) as runner:
        result, dof_um = runner.run(focus_instrument(settings, instrument, make, on_step))
    if strip is not None:
        write_strip(strip, result.steps, dof_um)
        console.print(f"strip [bold]{strip}[/]")
    if not result.is_focused:
        console.print(f"[yellow]cannot focus[/]: {result.reason}; back at the start")
        return 1
    console.print(
        f"[green]in focus[/] at z {result.focus_z_um:.3f} +- {result.sigma_um:.3f} um, stigmator "
        f"{result.stig_x_um:+.2f} {result.stig_y_um:+.2f} um, after {len(result.steps)} frames"
    )
    if isinstance(instrument, SimulatedSem | SimulatedMicroscope):
        off_um = instrument.truth().defocus_um
        console.print(f"the truth: {off_um / dof_um:+.3f} DOF ({off_um:+.3f} um) from focus")
    return 0


def evaluate_focus(
    stack: Path,
    pattern: str,
    console: Console,
    *,
    truth: float,
    dof_steps: float,
    with_rivals: bool,
    seed: int,
    out: Path | None,
) -> None:
    """Replay a real through-focus stack from every start: ours, and every rival."""
    from controller.bench.focus_baselines.stacks import stack_rows
    from inference.focus.evaluate import read_stack

    planes = read_stack(stack, pattern)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("evaluate", total=None)
        rows = stack_rows(
            planes,
            truth=truth,
            dof_steps=dof_steps,
            seed=seed,
            with_rivals=with_rivals,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    figures.show(console, "evaluate focus", rows)
    if out is not None:
        with rundir.writing(out):
            figures.write_json(out, "focus", rows, seed)
