"""`kill -9` at the worst instants: a search in a process of its own, killed from within, resumed.

Where `scopeloop bench crash` draws its instants at random, here each one is aimed: between a
frame's rename and its entry in the journal, in the middle of writing a frame, between two facts, in
the middle of the report. One run suffers all of them, one after the other.
"""

import itertools
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from controller.bench.crash import exposed_again, without_counterpart
from controller.messages import Exposed, Fact, RunFinished, RunStarted
from controller.record.catalogue import read_catalogue
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.search.state import folded

CONFIG = """
[run]
name = "crash"
clock = "virtual"
min_free_gib = 0.0
[instrument]
driver = "simulated_optical"
seed = 5
[instrument.camera]
width_px = 320
height_px = 240
[instrument.chip]
seed = 5
size_mm = [0.6, 0.5]
tilt_um_per_mm = [2.0, -1.0]
height_um = -12.0
flakes_per_mm2 = 60.0
thick_fraction = 0.4
empty_fraction = 0.0
[overview]
width_um = 1000.0
height_um = 800.0
[focus]
seed_points = 1
[scan]
max_tiles = 6
[revisit]
max_flakes = 1
"""

# Runs the command line in a process that kills itself when `at` is reached.
PROGRAM = """
import os, signal, sys
from controller.record.frames import FrameStore
from controller.record.journal import Journal
import controller.record.frames as frames_file
import controller.search.conclude as conclude_file

def die():
    sys.stdout.flush()
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

at, *words = sys.argv[1:]
save, append = FrameStore.save, Journal.append
write_image, write_report = frames_file._write_image, conclude_file.write_report

def dying_save(self, shot, index, frame, **more):
    saved = save(self, shot, index, frame, **more)
    if at == f"saved {shot} {index}":
        die()
    return saved

def dying_append(self, facts):
    facts = list(facts)
    append(self, facts)
    for fact in facts:
        words = ["fact", fact.kind, getattr(fact, "shot", ""), getattr(fact, "index", "")]
        if at == " ".join(str(word) for word in words if word != ""):
            die()

def dying_write_image(folder, *more, **named):
    write_image(folder, *more, **named)
    if at == f"staged {folder.name}":
        die()

def dying_report(path, content):
    if at == "report":
        path.write_text("half a page")
        die()
    write_report(path, content)

FrameStore.save, Journal.append = dying_save, dying_append
frames_file._write_image, conclude_file.write_report = dying_write_image, dying_report
sys.argv = ["scopeloop", "search", *words]
from controller.cli import main
main()
"""
# In the order of a run, so that each one is reached after the one before.
INSTANTS = (
    "saved overview 4",  # on the disk, not in the journal
    "fact scan_planned",
    "staged tile-2",  # written beside the store, not renamed into it
    "fact exposed tile 4",  # in the journal, not on the disk
    "fact analysed revisit 0",
    "report",
)


def start(at: str, words: Sequence[str], folder: Path) -> int:
    """The exit status of one process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, at, *words], cwd=folder, capture_output=True, check=False
    )
    if done.returncode not in (0, -getattr(signal, "SIGKILL", signal.SIGTERM)):
        raise AssertionError(done.stdout.decode() + done.stderr.decode())
    return done.returncode


def facts_of(run: Path) -> list[Fact]:
    with Journal(run / "journal.sqlite", is_read_only=True) as journal:
        return list(journal.replay())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "crash.toml").write_text(CONFIG, encoding="utf-8")
    assert start("never", ["crash.toml", "--out", "runs"], folder) == 0
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Fact]]]:
    """A run that was killed at every instant and then finished; its facts after each session."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "crash.toml").write_text(CONFIG, encoding="utf-8")
    words = ["crash.toml", "--out", "runs"]
    seen = []
    for at in INSTANTS:
        assert start(at, words, folder) != 0, f"{at!r} was never reached"
        (run,) = (folder / "runs").iterdir()
        words = ["--resume", str(run)]
        facts = facts_of(run)
        state = folded(facts)
        with FrameStore(run / "frames.ome.zarr", is_read_only=True) as frames:
            for (shot, index), saved in state.saved.items():
                frames.verify(shot, index, saved.checksum)
        seen.append(facts)
    assert start("never", words, folder) == 0
    seen.append(facts_of(run))
    return run, seen


def test_nothing_that_was_acknowledged_is_lost(killed: tuple[Path, list[list[Fact]]]) -> None:
    run, seen = killed
    for before, after in itertools.pairwise(seen):
        assert len(after) > len(before)
        assert repr(after[: len(before)]) == repr(before)
    state = folded(seen[-1])
    assert len(state.sessions) == len(INSTANTS) + 1
    with FrameStore(run / "frames.ome.zarr", is_read_only=True) as frames:
        assert set(frames.shots()) == set(state.saved)
        for (shot, index), saved in state.saved.items():
            frames.verify(shot, index, saved.checksum)


def test_nothing_is_exposed_after_it_was_saved(killed: tuple[Path, list[list[Fact]]]) -> None:
    _, seen = killed
    twice, retaken = exposed_again(seen[-1])
    assert twice == 0
    # Tile 4's exposure was journalled and its pixels were lost; of tile 2's as well.
    assert 1 <= retaken <= 4
    overview_4 = [
        f for f in seen[-1] if isinstance(f, Exposed) and (f.shot, f.index) == ("overview", 4)
    ]
    assert len(overview_4) == 1, "a frame that had reached the disk was taken again"


def test_every_tile_is_there_and_the_run_is_complete(
    killed: tuple[Path, list[list[Fact]]],
) -> None:
    run, seen = killed
    state = folded(seen[-1])
    assert state.scan is not None
    assert all(state.is_done("tile", tile.index) for tile in state.scan.tiles)
    assert all(("tile", tile.index) in state.analysed for tile in state.scan.tiles)
    assert len(state.revisited) == 1
    assert isinstance(seen[-1][-1], RunFinished)
    assert seen[-1][-1].outcome == "complete"
    assert "half a page" not in (run / "report.html").read_text(encoding="utf-8")


def test_what_was_planned_is_not_planned_again(killed: tuple[Path, list[list[Fact]]]) -> None:
    _, seen = killed
    kinds = [fact.kind for fact in seen[-1]]
    assert kinds.count("chip_found") == kinds.count("scan_planned") == 1
    assert kinds.count("revisits_planned") == 1
    # After the last kill only the report was missing: nothing was moved or exposed for it.
    last = seen[-1][len(seen[-2]) :]
    assert isinstance(last[0], RunStarted)
    assert not [f for f in last if isinstance(f, Exposed) or f.kind == "focus_measured"]


def test_the_catalogue_is_that_of_an_undisturbed_run(
    killed: tuple[Path, list[list[Fact]]], undisturbed: Path
) -> None:
    run, _ = killed
    ours = [e for e in read_catalogue(run / "journal.sqlite") if e.rank]
    theirs = [e for e in read_catalogue(undisturbed / "journal.sqlite") if e.rank]
    assert theirs, "the chip has nothing on it to compare"
    assert without_counterpart(ours, theirs) == []
    assert without_counterpart(theirs, ours) == []
    for entry in ours:
        other = min(
            theirs,
            key=lambda e: math.dist(
                (e.stage_x_um, e.stage_y_um), (entry.stage_x_um, entry.stage_y_um)
            ),
        )
        assert other.area_um2 == pytest.approx(entry.area_um2, rel=0.1)
