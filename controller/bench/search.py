"""A whole simulated search on the virtual clock: how fast, what it finds, and where.

The bound is what moves, settling and exposures of the planned route cost at the least; autofocus,
one-sided approaches and waiting for detector or disk are on the other side. Truth comes through the
simulator's own door, after the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from controller import app
from controller.bench.numbers import load, share_row
from controller.figures import Row, versions
from controller.geometry import CameraGeometry
from controller.messages import CatalogueEntry, Phase, RunStarted
from controller.record import rundir
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.search.entries import catalogue_of
from controller.search.run import Search, SearchResult
from controller.search.scorecard import Scorecard, scorecard
from controller.search.state import SearchState, advance, folded
from controller.settings import Settings, validated
from inference.flakes.physics_detector import DetectorSettings
from simulator.optical_microscope import SimulatedMicroscope, Truth

_BOUND_BAR: Final = 0.90
_TILES_PER_FOCUS_BAR: Final = 25.0
_POSITION_BAR_UM: Final = 2.0
_RECALL_BAR: Final = 0.95


def tables(seed: int, size_mm: Sequence[float]) -> dict[str, Any]:
    """A configuration as its TOML would read: graphene on 90 nm of oxide, tilted and bowed."""
    return {
        "run": {"name": "bench", "clock": "virtual"},
        "instrument": {
            "driver": "simulated_optical",
            "seed": seed,
            "chip": {
                "seed": seed,
                "size_mm": list(size_mm),
                "tilt_um_per_mm": [1.2, -0.7],
                "bow_um": 3.0,
                "rotation_deg": 2.0,
            },
        },
        "overview": {
            "width_um": 1_000.0 * size_mm[0] + 2_000.0,
            "height_um": 1_000.0 * size_mm[1] + 2_000.0,
        },
        "revisit": {"max_flakes": 4},
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that is known of one search after its end."""

    result: SearchResult
    state: SearchState
    entries: tuple[CatalogueEntry, ...]
    card: Scorecard
    truth: Truth


def measure(quick: bool, seed: int) -> list[Row]:
    """Speed, finds, positions and safety over one chip, or four."""
    chips, size_mm = (1, (6.0, 5.0)) if quick else (4, (6.0, 5.0))
    outcomes = []
    for number in range(chips):
        with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
            outcomes.append(searched(tables(seed + number, size_mm), Path(folder)))
    return rows_of(outcomes)


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """The figures of some searches together."""
    ends = [o.result.finished for o in outcomes]
    tiles = sum(end.tiles for end in ends)
    scan_s = sum(end.scan_s for end in ends)
    tracked = sum(p.purpose == "track" for o in outcomes for p in o.state.focus_points)
    focused = sum(end.autofocus_runs for end in ends)
    counts = [row for o in outcomes for row in o.card.rows]
    present, found = sum(r.present for r in counts), sum(r.found for r in counts)
    entries, false = sum(r.entries for r in counts), sum(r.false for r in counts)
    rms_um = [o.card.position_rms_um for o in outcomes if o.card.position_rms_um is not None]
    revisits = [r for o in outcomes for r in o.state.revisited.values()]
    return [
        Row(
            "share of the scan-time bound",
            sum(end.scan_bound_s for end in ends) / scan_s,
            "",
            _BOUND_BAR,
            n=tiles,
            note="moves, settling and exposures over the scan's time on the instrument's clock; "
            f"computing counts as measured here; {load()}",
        ),
        Row("tiles per minute", 60.0 * tiles / scan_s, "1/min", n=tiles),
        Row(
            "tiles per autofocus",
            tiles / max(1, focused),
            "",
            _TILES_PER_FOCUS_BAR,
            n=focused,
            note=f"the seeds of the focus surface included; {tracked} of them during the scan",
        ),
        share_row("recall, 1 to 4 layers", found, present, _RECALL_BAR),
        share_row("precision, 1 to 4 layers", entries - false, entries, _RECALL_BAR),
        Row(
            "positions of found terraces, RMS",
            max(rms_um, default=None),
            "um",
            _POSITION_BAR_UM,
            "lower",
            n=found,
            note="the worst chip",
        ),
        Row("collisions", sum(o.truth.collisions for o in outcomes), "", 0.0, "lower"),
        share_row("revisits that found their flake", sum(r.found for r in revisits), len(revisits)),
        Row("waited for detector or disk", sum(o.result.stalled_s for o in outcomes), "s"),
        Row(
            "unaccounted frames",
            sum(end.frames_unaccounted for end in ends),
            "frames",
            0.0,
            "lower",
            n=sum(end.frames_received for end in ends),
        ),
    ]


class _Nobody:
    """A `Watcher` that looks away."""

    def phase(self, phase: Phase, total: int, done: int) -> None:
        return

    def step(self, phase: Phase, done: int, at_s: float) -> None:
        return

    def note(self, text: str) -> None:
        return


def searched(tables: Mapping[str, Any], parent: Path) -> Outcome:
    """Run one search to its end in a new run folder under `parent`; no report is written."""
    settings = validated(Settings, dict(tables), "bench")
    detector = validated(DetectorSettings, settings.detector, "bench", prefix="detector")
    instrument = app.open_instrument(settings, "bench")
    if not isinstance(instrument, SimulatedMicroscope):
        raise TypeError("only a simulated instrument knows the truth")
    geometry = CameraGeometry(
        settings.camera.rotation_deg, settings.camera.flip_x, settings.camera.flip_y
    )
    with (
        rundir.create(parent, settings.run.name) as run,
        Journal(run.journal_path) as journal,
        FrameStore(run.frames_path, geometry=geometry) as frames,
    ):
        state = folded(())
        started = RunStarted(
            run_id=run.path.name,
            name=settings.run.name,
            settings_toml="",
            versions=versions(),
            instrument=dict(instrument.describe()),
            started_at_utc="",
            session=0,
        )
        journal.append([started])
        advance(state, started)
        eyes = app.eyes(settings, detector)
        search = Search(settings, instrument, eyes, state, journal, frames, _Nobody())
        with asyncio.Runner(loop_factory=app.loop_factory(settings, "bench")) as runner:
            result = runner.run(search.run())
        entries = catalogue_of(state, settings.wanted)
        card = scorecard(entries, app.true_terraces(instrument) or (), state, settings.wanted)
    return Outcome(result, state, entries, card, instrument.truth())
