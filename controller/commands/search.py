"""`scopeloop search`: begin a run, or go on with one."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from controller import app, figures
from controller.app import SetUp
from controller.commands.overrides import material_words, overridden, with_words, words_in
from controller.commands.search_screen import SearchProgress, print_result
from controller.errors import BadSettings, ControllerError
from controller.eyes import report_ladders
from controller.geometry import CameraGeometry, footprint_um
from controller.messages import CatalogueEntry, RunStarted
from controller.record import rundir
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.search.conclude import conclude
from controller.search.report import TruthRow
from controller.search.run import Search
from controller.search.scorecard import Scorecard, scorecard
from controller.search.state import SearchState, advance, folded
from controller.settings import load_toml
from drivers.errors import DriverError
from inference.api import ModelError

_JOURNAL_CURE = "restore it from a copy, or begin a new run; no frame of this one was touched"


def start_search(
    config: Path,
    console: Console,
    *,
    seed: int | None = None,
    out: Path | None = None,
    materials: Iterable[Path] = (),
    overrides: Iterable[str] = (),
) -> int:
    """Begin a new run; returns the exit status. materials: cards of crystals to look for too."""
    tables, text = load_toml(config)
    words = list(overrides)
    if seed is not None:
        words += [f"instrument.seed={seed}", f"instrument.chip.seed={seed}"]
    tables = overridden(tables, words)
    usual = app.detector_settings({}, "").materials
    words += (more := material_words(tables, materials, usual))
    chosen = app.set_up(overridden(tables, more), str(config))
    run_settings = chosen.settings.run
    # Relative paths in the file mean: from where the command was given.
    parent = out or Path(run_settings.output_dir)
    with rundir.create(parent, run_settings.name, min_free_gib=run_settings.min_free_gib) as run:
        run.write_settings(with_words(text, words))
        return _search(run, chosen, console)


def resume_search(folder: Path, console: Console) -> int:
    """Go on with a run that was stopped or cut off."""
    with rundir.open_existing(folder) as run:
        tables, text = load_toml(run.settings_path)
        chosen = app.set_up(overridden(tables, words_in(text)), str(run.settings_path))
        return _search(run, chosen, console)


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
        _check_resumable(chosen, state)
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
            card.append(scorecard(entries, terraces or (), state, settings.wanted))
            return tuple(
                TruthRow(row.material, row.layers, row.present, row.found, row.false)
                for row in card[0].rows
            )

        eyes = app.eyes(
            settings,
            chosen.detector,
            lambda words: console.print(f"[yellow]{escape(words)}[/]"),
        )
        try:
            with SearchProgress(console, settings.run.clock) as progress:
                search = Search(settings, instrument, eyes, state, journal, frames, progress)
                with asyncio.Runner(loop_factory=chosen.factory) as runner:
                    result = runner.run(search.run())
                terraces = app.true_terraces(instrument)
                with rundir.writing(run.path):
                    entries = conclude(
                        state,
                        settings,
                        run,
                        frames,
                        instrument.turret.objectives,
                        instrument.camera.shape_px,
                        report_ladders(chosen.detector, state),
                        None if terraces is None else truth,
                        progress.note,
                        eyes.everybody,
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


def _check_resumable(set_up: SetUp, state: SearchState) -> None:
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
