"""`scopeloop watch`: a live session without a window: raw frames, and restored ones beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from controller import app
from controller.commands.overrides import overridden, with_words
from controller.commands.screen import Told, bar
from controller.errors import ControllerError
from controller.record import rundir
from controller.restoring.log import WatchLog
from controller.restoring.movie import MovieWriter
from controller.restoring.page import page
from controller.restoring.session import Until, WatchSession
from controller.restoring.stage import LiveView
from controller.restoring.strip import png, strip
from controller.settings import Settings, load_toml, validated
from drivers.errors import DriverError

_STRIP_MOMENTS: Final = 5
_FILES: Final = {
    "raw.ome.zarr": "every frame as it came, with raw.jsonl, a line each",
    "computed.ome.zarr": "what was computed from them, with computed.jsonl",
    "strip.png": "before and after",
    "settings.toml": "the settings",
}


@dataclass(frozen=True, slots=True)
class _SetUp:
    """What a session is of, for its page."""

    instrument: str
    config: str
    method: str  # "": raw frames only


def watch_here(
    config: Path,
    console: Console,
    *,
    until: Until,
    out: Path | None,
    overrides: Iterable[str] = (),
) -> int:
    """Run a session and print what it came to; returns the exit status."""
    tables, text = load_toml(config)
    words = list(overrides)
    settings = validated(Settings, overridden(tables, words), str(config))
    factory = app.loop_factory(settings, str(config))
    instrument = app.open_instrument(settings, str(config))

    def say(said: str) -> None:
        console.print(f"[yellow]{escape(said)}[/]")

    choice = app.live_restorer(settings, say)
    named = "" if choice is None else choice.name
    if choice is not None and settings.restore.recursive:
        named += ", over frames"
    setup = _SetUp(instrument.name, config.name, named)
    parent = out or Path(settings.run.output_dir)
    with rundir.create(parent, "watch", min_free_gib=settings.run.min_free_gib) as run:
        run.write_settings(with_words(text, words))
        free_gib = settings.run.min_free_gib
        status, log = 0, WatchLog()
        try:
            with (
                MovieWriter(run.path, "raw", free_gib) as raw,
                MovieWriter(run.path, "computed", free_gib) as computed,
                bar(console, "watch") as told,
                asyncio.Runner(loop_factory=factory) as runner,
            ):
                teller = _Teller(told, until)
                session = WatchSession(settings, instrument, choice, raw, computed, teller)
                log = teller.log = session.log
                runner.run(session.run(until))
        except KeyboardInterrupt:
            console.print("[yellow]stopped safely; every frame that was taken is kept[/]")
            status = 130
        except (ControllerError, DriverError):
            _conclude(run, setup, log, console)
            raise
        _conclude(run, setup, log, console)
    return status


class _Teller:
    """Keeps the bar going."""

    def __init__(self, told: Told, until: Until) -> None:
        self.log = WatchLog()
        self._told = told
        self._until = until

    def __call__(self, view: LiveView) -> None:
        log, until = self.log, self._until
        method = "raw" if view.restored is None else view.restored.method
        doing = f"frame {view.frame.number} {method}"
        if until.frames is not None or until.seconds is None:
            self._told(log.exposed_frames, until.frames or log.exposed_frames, doing)
        else:
            passed_s = min(view.ready_s - log.began_s, until.seconds)
            self._told(round(10 * passed_s), round(10 * until.seconds), doing)


def _conclude(run: rundir.RunDir, setup: _SetUp, log: WatchLog, console: Console) -> None:
    """Strip, page and table of what there was."""
    figures = figures_of(log)
    views = log.moments.spread(_STRIP_MOMENTS)
    if views:
        rundir.write_atomically(run.path / "strip.png", png(strip(views, log.began_s)))
    restored = f"restored by {setup.method}" if setup.method else "raw frames only"
    lead = f"{setup.instrument}, {setup.config}; {restored}; began {run.marker.created_at_utc}"
    text = page(f"{log.exposed_frames} frames of {setup.instrument}", lead, log, figures, _FILES)
    rundir.write_atomically(run.path / "watch.html", text.encode())
    table = Table(title="watch", title_justify="left", show_header=False)
    for name, value in figures:
        table.add_row(name, escape(value))
    console.print(table)
    for reason, count in log.reasons.most_common(5):
        console.print(f"  {count} x {escape(reason)}", soft_wrap=True)
    console.print(f"session [bold]{escape(str(run.path))}[/]", soft_wrap=True)


def figures_of(log: WatchLog) -> list[tuple[str, str]]:
    """What a session came to, in words."""
    restored = f"{log.restored_frames} ({log.rate_hz(log.restored_frames):.1f} a second)"
    found = [
        (
            "exposed",
            f"{log.exposed_frames} frames in {log.lasted_s:.2f} s, "
            f"{log.rate_hz(log.exposed_frames):.1f} a second",
        ),
        ("kept raw", f"{log.recorded_frames}; {log.lost_frames} lost on the way"),
        ("restored", f"{restored}; {log.skipped_frames} skipped as the next was there already"),
    ]
    if log.restored_frames:
        p50_ms, p95_ms = log.latency_ms(50), log.latency_ms(95)
        latency = f"{p50_ms:.1f} ms, 95 % within {p95_ms:.1f} ms; exposure's end to view"
        if p95_ms < 1e-3:  # a rounded nanosecond
            latency = "not known: on this clock computing costs nothing"
        made = ", ".join(f"{name} {count}" for name, count in log.methods.most_common())
        found += [
            ("made by", made),
            ("fall-backs", f"{log.fallbacks}; {log.doubted_frames} frames beyond judgement"),
            ("latency", latency),
            ("effective frames", f"{log.effective_frames():.1f} at the end"),
        ]
    dose = log.dose_per_frame_e_per_a2
    if dose is not None:
        found.append(("dose", f"{dose:.4g} electrons/A^2 a frame, {log.dose_e_per_a2:.4g} in all"))
    return found
