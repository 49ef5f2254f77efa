"""The whole search on the simulated microscope: what it finds, and what it does when things fail.

One search through `app`, as the command line runs it, is looked at from all sides; small ones each
meet faults that the settings ask for. All run on the virtual clock; in the small ones computing
costs nothing on it, so that the n-th exposure is the same one every time, on any machine.
"""

import asyncio
import csv
import io
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gdstk
import pytest
from rich.console import Console

from controller import app
from controller.commands.search import start_search
from controller.errors import ControllerError, MoveFailed, SearchFailed
from controller.geometry import CameraGeometry
from controller.messages import (
    Analysed,
    CatalogueEntry,
    Exposed,
    Fact,
    FocusMeasured,
    FramesMissing,
    Phase,
    Revisited,
    RunFinished,
    RunStarted,
    Saved,
    ShotKind,
)
from controller.record import rundir
from controller.record.catalogue import read_catalogue
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.search.entries import catalogue_of
from controller.search.run import Search
from controller.search.scorecard import Scorecard, scorecard
from controller.search.state import SearchState, advance, folded
from controller.settings import Settings, load_toml, validated
from drivers.errors import DriverError, LinkLost
from inference.flakes.physics_detector import DetectorSettings
from simulator import clock
from simulator.optical_microscope import MicroscopeSettings, SimulatedMicroscope, Truth

SMOKE = Path(__file__).resolve().parents[3] / "configs" / "simulated_smoke.toml"
SMALL: dict[str, Any] = {
    "run": {"name": "small", "clock": "virtual", "min_free_gib": 0.0},
    "instrument": {
        "driver": "simulated_optical",
        "seed": 5,
        "camera": {"width_px": 320, "height_px": 240},
        "chip": {
            "seed": 5,
            "size_mm": [0.6, 0.5],
            "tilt_um_per_mm": [2.0, -1.0],
            "height_um": -12.0,
            "flakes_per_mm2": 60.0,
            "thick_fraction": 0.4,
            "empty_fraction": 0.0,
        },
    },
    "overview": {"width_um": 1_000.0, "height_um": 800.0},
    "focus": {"seed_points": 1},
    "scan": {"max_tiles": 8},
    "revisit": {"max_flakes": 0},
}


@dataclass(slots=True)
class Watch:
    """A `Watcher` that remembers, and may do something at a step."""

    notes: list[str] = field(default_factory=list)
    at_step: Callable[[Phase, int], None] | None = None

    def phase(self, phase: Phase, total: int, done: int) -> None:
        pass

    def step(self, phase: Phase, done: int, at_s: float) -> None:
        if self.at_step is not None:
            self.at_step(phase, done)

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass(frozen=True, slots=True)
class Run:
    """One session of a search, looked at after its end."""

    folder: Path
    settings: Settings
    instrument: SimulatedMicroscope
    truth: Truth
    facts: tuple[Fact, ...]  # of all sessions, from the journal
    state: SearchState
    error: BaseException | None
    notes: tuple[str, ...]

    @property
    def finished(self) -> RunFinished:
        assert isinstance(self.facts[-1], RunFinished)
        return self.facts[-1]

    @property
    def entries(self) -> tuple[CatalogueEntry, ...]:
        return catalogue_of(self.state, self.settings.wanted)

    @property
    def card(self) -> Scorecard:
        terraces = app.true_terraces(self.instrument)
        assert terraces is not None
        return scorecard(self.entries, terraces, self.state, self.settings.wanted)

    def exposed(self, shot: ShotKind) -> Counter[int]:
        """How often each index was exposed."""
        return Counter(f.index for f in self.facts if isinstance(f, Exposed) and f.shot == shot)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables over tables."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def searched(
    parent: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    faults: Sequence[Mapping[str, Any]] = (),
    resume: Path | None = None,
    at_step: Callable[[Phase, int], None] | None = None,
) -> Run:
    """Begin or resume a small search and let it run to whatever end it comes to."""
    tables = merged(SMALL, changes or {})
    tables["instrument"] = {**tables["instrument"], "faults": [dict(fault) for fault in faults]}
    settings = validated(Settings, tables, "test")
    detector = validated(DetectorSettings, settings.detector, "test", prefix="detector")
    instrument = app.open_instrument(settings, "test")
    assert isinstance(instrument, SimulatedMicroscope)
    camera = settings.camera
    geometry = CameraGeometry(camera.rotation_deg, camera.flip_x, camera.flip_y)
    watch = Watch(at_step=at_step)
    error: BaseException | None = None
    opened = rundir.create(parent, "small") if resume is None else rundir.open_existing(resume)
    with (
        opened as run,
        Journal(run.journal_path) as journal,
        FrameStore(run.frames_path, geometry=geometry) as frames,
    ):
        state = folded(journal.replay())
        started = RunStarted(run.path.name, "small", "", {}, {}, "", len(state.sessions))
        journal.append([started])
        advance(state, started)
        eyes = app.eyes(settings, detector)
        search = Search(settings, instrument, eyes, state, journal, frames, watch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clock, "time", SimpleNamespace(perf_counter_ns=lambda: 0))
            try:
                with asyncio.Runner(loop_factory=app.loop_factory(settings, "test")) as runner:
                    runner.run(search.run())
            except (ControllerError, DriverError, asyncio.CancelledError) as came:
                error = came
            truth = instrument.truth()
        facts = tuple(journal.replay())
        for (shot, index), saved in state.saved.items():
            frames.verify(shot, index, saved.checksum)
    assert repr(folded(facts)) == repr(state), "the journal tells another story than the search"
    return Run(run.path, settings, instrument, truth, facts, state, error, tuple(watch.notes))


# --- one search through the command's own path ---------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """The smoke configuration, as `scopeloop search` runs it, and what was printed."""
    opened: list[SimulatedMicroscope] = []
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        open_instrument = app.open_instrument

        def spy(settings: Settings, file: str) -> SimulatedMicroscope:
            instrument = open_instrument(settings, file)
            assert isinstance(instrument, SimulatedMicroscope)
            opened.append(instrument)
            return instrument

        patch.setattr(app, "open_instrument", spy)
        parent = tmp_path_factory.mktemp("smoke")
        status = start_search(SMOKE, Console(file=printed, width=200), out=parent)
    assert status == 0
    (folder,) = parent.iterdir()
    with Journal(folder / "journal.sqlite", is_read_only=True) as journal:
        facts = tuple(journal.replay())
    settings = validated(Settings, load_toml(SMOKE)[0], str(SMOKE))
    (instrument,) = opened
    truth = instrument.truth()
    run = Run(folder, settings, instrument, truth, facts, folded(facts), None, ())
    return run, printed.getvalue()


def test_everything_wanted_is_found_where_it_is(smoke: tuple[Run, str]) -> None:
    run, printed = smoke
    card = run.card
    assert sum(row.present for row in card.rows) >= 10, "the chip has too little on it to show much"
    assert [(row.layers, row.missed, row.false) for row in card.rows] == [
        (layers, 0, 0) for layers in (1, 2, 3, 4)
    ]
    assert card.duplicates == 0
    assert card.position_rms_um is not None
    assert card.position_rms_um <= 2.0
    for word in ("recall", "precision", "scan-time bound", "tiles/min", "networks", "report"):
        assert word in printed


def test_every_tile_is_taken_once_at_rest_and_nothing_is_touched(smoke: tuple[Run, str]) -> None:
    run, _ = smoke
    assert run.state.scan is not None
    planned = {tile.index for tile in run.state.scan.tiles}
    assert run.exposed("tile") == Counter(planned)
    assert {i for shot, i in run.state.saved if shot == "tile"} == planned
    assert {i for shot, i in run.state.analysed if shot == "tile"} == planned
    assert run.truth.collisions == 0
    numbers = {e.number for (shot, _), e in run.state.exposed.items() if shot == "tile"}
    tiles = [e for e in run.truth.exposures if e.number in numbers]
    assert len(tiles) == len(planned)
    assert max(e.smear_um for e in tiles) < 0.4, "exposed while it moved"
    # 1.5 depths of field of the scanning lens either side
    assert max(abs(e.defocus_um) for e in tiles) < 5.3, "out of focus"


def test_every_frame_has_an_end(smoke: tuple[Run, str]) -> None:
    run, _ = smoke
    finished = run.finished
    assert finished.outcome == "complete"
    assert finished.frames_unaccounted == finished.frames_missing == 0
    assert finished.frames_received == len(run.truth.exposures)
    assert finished.tiles == run.exposed("tile").total()
    with FrameStore(run.folder / "frames.ome.zarr", is_read_only=True) as frames:
        assert set(frames.shots()) == set(run.state.saved)
        for (shot, index), saved in run.state.saved.items():
            frames.verify(shot, index, saved.checksum)


def test_the_lens_comes_down_on_every_tile(smoke: tuple[Run, str]) -> None:
    run, _ = smoke
    heights = [(c.at_s, c.target_um[0]) for c in run.truth.commands if c.device == "focus"]
    for (shot, _), exposed in run.state.exposed.items():
        if shot != "tile":
            continue
        until_now = [z_um for at_s, z_um in heights if at_s < exposed.exposed_from_s]
        turns = [a for a, b in itertools.pairwise(until_now) if a != b]
        assert until_now[-1] < turns[-1], f"tile {exposed.index} was approached from below"


def test_focus_is_found_rarely_and_surely(smoke: tuple[Run, str]) -> None:
    run, _ = smoke
    assert run.finished.autofocus_runs <= run.settings.focus.seed_points + 1
    points = [p for p in run.state.focus_points if p.is_confident]
    assert len(points) >= run.settings.focus.seed_points
    assert all(0.0 < p.sigma_um < 3.0 for p in points)


def test_revisits_are_centred(smoke: tuple[Run, str]) -> None:
    run, _ = smoke
    assert len(run.state.revisited) == run.settings.revisit.max_flakes
    truth_by_number = {e.number: e for e in run.truth.exposures}
    entries = {entry.entry_id: entry for entry in run.entries}
    for revisit in run.state.revisited.values():
        assert isinstance(revisit, Revisited)
        assert revisit.found, revisit.reason
        assert revisit.centred_error_um <= run.settings.revisit.centre_within_um
        entry = entries[revisit.entry_id]
        assert (revisit.material, revisit.layers) == (entry.material, entry.layers)
        shown = truth_by_number[run.state.exposed["revisit", revisit.shot_index].number]
        assert shown.objective == "50x"
        assert math.dist((shown.x_um, shown.y_um), (entry.stage_x_um, entry.stage_y_um)) < 6.0
        assert abs(shown.defocus_um) < 1.5, "revisited out of focus"


def test_report_and_exports_say_the_same(smoke: tuple[Run, str]) -> None:
    run, _ = smoke
    entries = run.entries
    kept = read_catalogue(run.folder / "journal.sqlite")
    assert tuple(replace(entry, second=None) for entry in kept) == entries
    if any(model.stem == "flakenet" for model in app.models()):
        # All stand on cards; nobody but who reads them a second time knows `second`.
        readings = [entry.second for entry in kept]
        assert {(r.leader, r.detector) for r in readings if r} == {("physics", "flakenet")}
        assert None not in readings
    html = (run.folder / "report.html").read_text(encoding="utf-8")
    assert html.lstrip().lower().startswith("<!doctype html")
    assert 'src="http' not in html, "the page must be self-contained"
    exports = run.folder / "exports"
    with (exports / "flakes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(entries)
    geojson = json.loads((exports / "flakes.geojson").read_text(encoding="utf-8"))
    assert len([f for f in geojson["features"] if f["geometry"]["type"] != "Point"]) >= len(entries)
    coco = json.loads((exports / "flakes.coco.json").read_text(encoding="utf-8"))
    assert len(coco["images"]) == run.finished.tiles
    assert len(coco["annotations"]) >= len(entries)
    library = gdstk.read_gds(exports / "flakes.gds")
    polygons = [p for cell in library.cells if isinstance(cell, gdstk.Cell) for p in cell.polygons]
    assert len(polygons) >= len(entries)


# --- small searches that meet faults -------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The small search undisturbed: where its frames and moves are."""
    run = searched(tmp_path_factory.mktemp("base"))
    assert run.error is None
    assert run.exposed("tile") == Counter(range(8))
    return run


def test_the_same_seeds_tell_the_same_story(tmp_path: Path, base: Run) -> None:
    again = searched(tmp_path)
    assert again.truth.exposures == base.truth.exposures
    assert again.truth.commands == base.truth.commands
    assert again.entries == base.entries


def test_a_slow_disk_changes_nothing(
    tmp_path: Path, base: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = FrameStore.save

    def slow(self: FrameStore, *what: Any, **more: Any) -> tuple[str, str]:
        time.sleep(0.05)
        return save(self, *what, **more)

    monkeypatch.setattr(FrameStore, "save", slow)
    again = searched(tmp_path)
    assert again.error is None
    assert again.state.calibrations == base.state.calibrations
    assert again.entries == base.entries


def camera_fault(base: Run, kind: str, tile: int, **more: Any) -> dict[str, Any]:
    """A fault at the exposure of that tile; the camera's calls count from 1."""
    return {
        "device": "camera",
        "kind": kind,
        "at_call": base.state.exposed["tile", tile].number + 1,
        **more,
    }


def seconds_from_exposure(run: Run, number: int) -> float:
    """From the end of an exposure to the end of the session, on the instrument's clock."""
    (exposure,) = [e for e in run.truth.exposures if e.number == number]
    return run.finished.elapsed_s - exposure.exposed_until_s


def is_at_rest(run: Run) -> bool:
    """Nothing was commanded after the stop, and both axes were halted or had arrived."""
    assert run.finished.outcome in ("failed", "stopped")
    last_s = max(command.at_s for command in run.truth.commands)
    return last_s <= run.finished.elapsed_s and run.truth.collisions == 0


def test_spoilt_frames_are_named_and_taken_again(tmp_path: Path, base: Run) -> None:
    faults = {
        1: "dropped",
        3: "black",
        4: "doubled",
        5: "saturated",
        6: "reordered",
        7: "wrong_size",
    }
    run = searched(
        tmp_path, faults=[camera_fault(base, kind, tile) for tile, kind in faults.items()]
    )
    assert run.error is None
    first_number = base.state.exposed["tile", 0].number
    dropped = first_number + 1
    gaps = [f for f in run.facts if isinstance(f, FramesMissing)]
    assert [(g.first, g.last) for g in gaps] == [(dropped, dropped)]
    assert run.finished.frames_missing == 1
    assert run.finished.frames_unaccounted == 0
    # Every tile is there, and those that were spoilt show a frame from after the first round.
    assert run.exposed("tile") == Counter(range(8))
    for tile in range(8):
        number = run.state.exposed["tile", tile].number
        is_retaken = faults.get(tile) in ("dropped", "black", "saturated", "wrong_size")
        assert (number > first_number + 7) == is_retaken, f"tile {tile} shows frame {number}"
        assert run.state.analysed["tile", tile].in_distribution
    for tile in (1, 3, 5, 7):
        assert any(note.startswith(f"tile {tile}:") for note in run.notes), run.notes
    assert without_place(run.entries) == without_place(base.entries)


def without_place(entries: Sequence[CatalogueEntry]) -> Counter[tuple[str, int]]:
    """The labels alone, of what is wanted."""
    return Counter((entry.material, entry.layers) for entry in entries if entry.rank)


def test_a_lost_frame_does_not_end_an_autofocus(tmp_path: Path, base: Run) -> None:
    (seed,) = [p for p in base.state.focus_points if p.purpose == "seed"]
    first_of_seed = base.state.exposed["tile", 0].number - seed.frames
    fault = {"device": "camera", "kind": "dropped", "at_call": first_of_seed + 3}
    run = searched(tmp_path, faults=[fault])
    assert run.error is None
    assert any(p.purpose == "seed" and p.is_confident for p in run.state.focus_points)
    assert run.finished.frames_missing == 1


@pytest.mark.parametrize("kind", ["stopped", "wrong_size"])
def test_a_camera_that_fails_ends_the_search_safely(tmp_path: Path, base: Run, kind: str) -> None:
    more = {"calls": 1000} if kind == "wrong_size" else {}
    run = searched(tmp_path, faults=[camera_fault(base, kind, 3, **more)])
    assert isinstance(run.error, SearchFailed)
    assert "frames in a row" in str(run.error)
    assert run.finished.outcome == "failed"
    assert "frames in a row" in run.finished.reason
    assert {i for shot, i in run.state.saved if shot == "tile"} == {0, 1, 2}
    assert is_at_rest(run)
    # Three deadlines of a frame, and the stop.
    allowed_s = 3 * (run.settings.camera.frame_timeout_s + 0.1) + 2.0
    number = base.state.exposed["tile", 3].number
    assert seconds_from_exposure(run, number) < (allowed_s if kind == "stopped" else 3.0)


def test_a_camera_whose_link_is_lost_ends_the_search_safely(tmp_path: Path, base: Run) -> None:
    run = searched(tmp_path, faults=[camera_fault(base, "link_lost", 3)])
    assert isinstance(run.error, LinkLost)
    assert run.finished.outcome == "failed"
    assert is_at_rest(run)
    assert seconds_from_exposure(run, base.state.exposed["tile", 2].number) < 3.0


@pytest.mark.parametrize(
    ("device", "kind"),
    [("stage", "ignored_move"), ("stage", "stalled_move"), ("focus", "stuck_moving")],
)
def test_an_axis_that_fails_ends_the_search_within_its_deadline(
    tmp_path: Path, base: Run, device: str, kind: str
) -> None:
    until_s = base.state.exposed["tile", 4].exposed_from_s
    spoilt = sum(c.device == device and c.at_s < until_s for c in base.truth.commands)
    run = searched(tmp_path, faults=[{"device": device, "kind": kind, "at_call": spoilt}])
    error = run.error
    assert isinstance(error, MoveFailed)
    assert error.axis == f"simulated {device}"
    assert error.asked_um
    assert f"asked for ({error.asked_um[0]:.3f}" in str(error)
    assert run.finished.outcome == "failed"
    assert "MoveFailed" in run.finished.reason
    mine = [command for command in run.truth.commands if command.device == device]
    assert len(mine) == spoilt, "something was sent to the axis after it had failed"
    # Moves here take under 0.2 s, half as long again is granted, and the margin of a second.
    margin_s = run.settings.motion.margin_s
    assert run.finished.elapsed_s - mine[-1].at_s < 0.3 + margin_s + 1.0
    assert run.truth.collisions == 0
    # Repaired, the search goes on where it was.
    again = searched(tmp_path, resume=run.folder)
    assert again.error is None
    assert again.exposed("tile") == Counter(range(8))
    assert without_place(again.entries) == without_place(base.entries)


def test_no_chip_in_view_says_so(tmp_path: Path) -> None:
    run = searched(tmp_path, {"instrument": {"chip": {"centre_um": [15_000.0, 0.0]}}})
    assert isinstance(run.error, SearchFailed)
    assert "no focus" in str(run.error) or "no chip" in str(run.error)
    assert run.finished.outcome == "failed"
    assert run.finished.reason.endswith(str(run.error))
    assert run.finished.tiles == 0
    assert is_at_rest(run)


@pytest.mark.parametrize(("phase", "steps"), [("overview", 4), ("scan", 3)])
def test_stopped_by_the_operator_and_resumed(
    tmp_path: Path, base: Run, phase: Phase, steps: int
) -> None:
    def stop(entered: Phase, done: int) -> None:
        task = asyncio.current_task()
        if (entered, done) == (phase, steps) and task is not None:
            task.cancel()  # what asyncio.Runner makes of Ctrl-C

    run = searched(tmp_path, at_step=stop)
    assert isinstance(run.error, asyncio.CancelledError)
    assert run.finished.outcome == "stopped"
    assert is_at_rest(run)
    kind: ShotKind = "tile" if phase == "scan" else "overview"
    taken = {i for shot, i in run.state.saved if shot == kind}
    assert taken == set(range(steps)), "what was exposed before the stop is kept"
    assert set(run.state.exposed) == set(run.state.saved)
    again = searched(tmp_path, resume=run.folder)
    assert again.error is None
    assert again.finished.outcome == "complete"
    for shot in ("overview", "tile"):
        assert max(again.exposed(shot).values()) == 1, f"an {shot} was exposed twice"
    assert again.exposed("tile") == Counter(range(8))
    assert without_place(again.entries) == without_place(base.entries)
    for ours, theirs in zip(by_place(again), by_place(base), strict=True):
        assert math.dist(ours, theirs) < 3.0
    # A finished run has nothing left to do.
    once_more = searched(tmp_path, resume=run.folder)
    assert once_more.error is None
    new = once_more.facts[len(again.facts) :]
    assert not [f for f in new if isinstance(f, Exposed | Saved | Analysed | FocusMeasured)]


def by_place(run: Run) -> list[tuple[float, float]]:
    """Where the wanted entries lie, in an order that does not depend on when they were found."""
    return sorted(
        (round(e.stage_x_um, -1) + 0.0, round(e.stage_y_um, -1) + 0.0)
        for e in run.entries
        if e.rank
    )


def test_a_turned_and_mirrored_camera_of_12_bits_finds_the_same(tmp_path: Path, base: Run) -> None:
    mounting = {"rotation_deg": 90, "flip_y": True}
    run = searched(
        tmp_path,
        {
            "instrument": {"camera": mounting, "sensor": {"bit_depth": 12}},
            "camera": mounting,
            "scan": {"max_tiles": 12},
        },
    )
    assert run.error is None
    card = run.card
    assert sum(row.found for row in card.rows) >= 3
    assert sum(row.missed for row in card.rows) == 0
    assert card.position_rms_um is not None
    assert card.position_rms_um <= 2.0


@pytest.mark.parametrize(
    ("optics", "lamp_ratio", "is_tint"),
    [({}, 0.95, False), ({}, 0.75, False), ({"colour_temperature_k": 3_900.0}, 1.0, True)],
)
def test_a_change_of_the_light_is_told_of_the_first_tile_and_moves_no_label(
    tmp_path: Path,
    base: Run,
    monkeypatch: pytest.MonkeyPatch,
    optics: dict[str, float],
    lamp_ratio: float,
    is_tint: bool,
) -> None:
    opened: list[SimulatedMicroscope] = []
    open_instrument = app.open_instrument

    def opening(settings: Settings, file: str) -> Any:
        opened.append(open_instrument(settings, file))
        return opened[-1]

    monkeypatch.setattr(app, "open_instrument", opening)
    changed = merged(SMALL, {"instrument": {"optics": optics}})["instrument"]
    other = SimulatedMicroscope(
        MicroscopeSettings(**{k: v for k, v in changed.items() if k != "driver"})
    )

    def at_step(phase: Phase, done: int) -> None:
        if phase == "scan" and done == 4:
            opened[0]._body.scene = other._body.scene
            opened[0]._body.intensity_ratio = lamp_ratio

    run = searched(tmp_path, at_step=at_step)
    assert run.error is None
    reds = [run.state.analysed["tile", tile].substrate_rgb[0] for tile in range(8)]
    first = next(tile for tile in range(8) if abs(reds[tile] / reds[0] - 1.0) > 0.03)
    assert first >= 3
    (told,) = run.state.light_changes
    assert (told.shot, told.index) == ("tile", first)
    assert told.is_tint is is_tint
    assert any(note.startswith(f"tile {first}: the bare substrate changed") for note in run.notes)
    assert without_place(run.entries) == without_place(base.entries)
    assert base.state.light_changes == []
    # What was read under another tint was read with colours fitted for it, which is on record.
    assert not is_tint or len(run.state.calibrations) == 2
