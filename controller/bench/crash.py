"""What `kill -9` at random instants of a search, resume, kill, resume ... loses.

A small simulated search runs in a process of its own, started as a user would start it, and is
killed at a random instant of its life, the writing of the report included; then `--resume` is
killed likewise, until one of them comes to its end. One kill in five may fall anywhere between the
start of Python and the end of an undisturbed run; the others, which find more to destroy, are timed
from the first fact that the process journals, and come sooner where there is less left to do. After
every kill the folder is audited from outside: the journal must replay and begin with all that it
held before, and every frame it calls saved must load and have the checksum it names.

An exposure in flight at the instant of a kill was never acknowledged and is taken again. Those that
had reached the journal are counted here; up to six that had not even done that cannot be counted
by anybody but the instrument.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from controller.bench.numbers import load, quantile_row
from controller.errors import ControllerError
from controller.figures import Row
from controller.messages import (
    CatalogueEntry,
    Exposed,
    Fact,
    PhaseStarted,
    RunFinished,
    RunStarted,
    Saved,
    ShotKind,
)
from controller.record.catalogue import read_catalogue
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.record.rundir import BadRecord
from controller.search.state import folded

_RESUME_BAR_S: Final = 3.0
_POLL_S: Final = 0.004
_LONGEST_S: Final = 120.0  # for one process, before it counts as hanging
_SAME_PLACE_UM: Final = 5.0
_MOST_SESSIONS: Final = 60  # of one run, before it counts as one that never ends
_COMMAND: Final = (sys.executable, "-c", "from controller.cli import main; main()", "search")

_CONFIG: Final = """
[run]
name = "crash"
clock = "virtual"
min_free_gib = 0.0
[instrument]
driver = "simulated_optical"
seed = {seed}
[instrument.camera]
width_px = 480
height_px = 360
[instrument.chip]
seed = {seed}
size_mm = [0.7, 0.5]
tilt_um_per_mm = [2.0, -1.0]
height_um = -12.0
flakes_per_mm2 = 40.0
thick_fraction = 0.4
empty_fraction = 0.0
[overview]
width_um = 1500.0
height_um = 1200.0
[focus]
seed_points = 3
[revisit]
max_flakes = 2
"""


def measure(quick: bool, seed: int) -> list[Row]:
    """What was lost over all kills, and how long a resume takes."""
    kills = 6 if quick else 100
    with TemporaryDirectory(prefix="scopeloop-bench-", ignore_cleanup_errors=True) as name:
        return rows_of(killed(Path(name), kills, seed))


@dataclass(slots=True)
class Damage:
    """Everything that was seen."""

    kills: int = 0
    runs: int = 0  # brought to their end
    killed_in: Counter[str] = field(default_factory=Counter)  # phase: kills
    stillborn: int = 0  # killed before there was anything to resume
    acknowledged: int = 0  # frames of which a `Saved` was ever seen
    lost_frames: set[tuple[str, ShotKind, int]] = field(default_factory=set)
    lost_facts: int = 0  # journals that no longer began with what they had held
    exposed_twice: int = 0
    tiles: int = 0
    tiles_lost: int = 0
    retaken: int = 0  # exposures journalled, never saved, taken again
    failed: list[str] = field(default_factory=list)  # what a run said that could not go on
    to_first_fact_s: list[float] = field(default_factory=list)
    to_work_s: list[float] = field(default_factory=list)
    import_s: list[float] = field(default_factory=list)
    entries: int = 0  # of all finished catalogues: wanted ones
    other_entries: int = 0  # without a counterpart of the same label in the undisturbed catalogue
    missing_entries: int = 0  # the reverse


def rows_of(damage: Damage) -> list[Row]:
    """As figures."""
    where = ", ".join(f"{n} in {phase}" for phase, n in damage.killed_in.most_common())
    differing = damage.other_entries + damage.missing_entries
    return [
        Row("kills", damage.kills, note=where),
        Row("runs brought to their end", damage.runs, note=f"{damage.stillborn} begun anew"),
        Row(
            "acknowledged frames lost",
            len(damage.lost_frames),
            "frames",
            0.0,
            "lower",
            n=damage.acknowledged,
            note="each one loaded, and its checksum compared with the journal's, after every kill",
        ),
        Row("journals that lost a fact", damage.lost_facts, "", 0.0, "lower", n=damage.kills),
        Row("exposed again after saved", damage.exposed_twice, "shots", 0.0, "lower"),
        Row("tiles lost", damage.tiles_lost, "tiles", 0.0, "lower", n=damage.tiles),
        Row(
            "resumes that failed",
            len(damage.failed),
            "",
            0.0,
            "lower",
            note=damage.failed[0] if damage.failed else "",
        ),
        Row(
            "exposures in flight, taken again",
            damage.retaken,
            "shots",
            note="of those that the journal knew of",
        ),
        quantile_row(
            "resume to the first new fact, p95",
            damage.to_first_fact_s,
            0.95,
            "s",
            _RESUME_BAR_S,
            note=f"from the start of the process, Python's own included; {load()}",
        ),
        quantile_row("resume to the first new fact, p50", damage.to_first_fact_s, 0.5, "s"),
        quantile_row("resume to the first step of work, p50", damage.to_work_s, 0.5, "s"),
        quantile_row("of which importing the program", damage.import_s, 0.5, "s"),
        Row(
            "wanted entries unlike those of an undisturbed run",
            differing,
            "",
            n=damage.entries,
            note=f"{damage.other_entries} only after kills, {damage.missing_entries} only without; "
            "noise and drift are others in another session",
        ),
    ]


def killed(folder: Path, kills: int, seed: int) -> Damage:
    """Kill searches under `folder` until `kills` have struck, and finish the last one."""
    config = folder / "crash.toml"
    config.write_text(_CONFIG.format(seed=seed), encoding="utf-8")
    damage = Damage()
    for _ in range(3):
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import controller.cli"], cwd=folder, check=True)
        damage.import_s.append(time.perf_counter() - began_s)
    undisturbed = _Session(config, folder / "undisturbed", None)
    undisturbed.run(None)
    reference = undisturbed.catalogue()
    start_s, work_s = undisturbed.start_s, undisturbed.work_s
    chance = random.Random(seed)
    for number in itertools.count():
        if damage.kills >= kills:
            break
        run = _Session(config, folder / f"run-{number}", damage)
        for _ in range(_MOST_SESSIONS):
            strike = None
            if damage.kills < kills:
                left_s = work_s * (1.0 - run.share_done(undisturbed.facts))
                strike = _Strike(chance.uniform(0.0, left_s), is_from_first_fact=True)
                if chance.random() < 0.2:
                    anywhere_s = chance.uniform(0.0, start_s + work_s)
                    strike = _Strike(anywhere_s, is_from_first_fact=False)
            if run.run(strike):
                _judge(run, reference, damage)
                break
            if run.is_over:
                break
    return damage


@dataclass(frozen=True, slots=True)
class _Strike:
    """When to kill."""

    after_s: float
    is_from_first_fact: bool  # else from the start of the process


class _Session:
    """One run's folder and the processes that work on it, one after the other."""

    def __init__(self, config: Path, parent: Path, damage: Damage | None) -> None:
        """damage: where to enter what is seen; None: nothing is expected to go wrong."""
        self._config = config
        self._parent = parent
        self._damage = damage or Damage()
        self._facts: list[Fact] = []  # of the journal, as last seen
        self._saved: set[tuple[ShotKind, int]] = set()
        self.is_over = False  # it cannot be resumed
        self.start_s = 0.0  # of the last process: until its first fact
        self.work_s = 0.0  # and from there to its end

    @property
    def folder(self) -> Path | None:
        """The run's own folder; None: it was not made yet."""
        made = sorted(self._parent.iterdir()) if self._parent.is_dir() else []
        return made[0] if made else None

    @property
    def facts(self) -> Sequence[Fact]:
        """The journal, as it was after the last process had ended."""
        return self._facts

    def share_done(self, facts: Sequence[Fact]) -> float:
        """How much of a whole run's facts this one has; at most half, for reopening takes time."""
        return min(0.5, len(self._facts) / len(facts))

    def run(self, strike: _Strike | None) -> bool:
        """Start or resume, and kill (None: do not); whether it came to its end."""
        folder = self.folder
        is_resume = folder is not None
        words = ["--resume", str(folder)] if is_resume else [str(self._config)]
        if not is_resume:
            words += ["--out", str(self._parent)]
        said = self._parent.with_suffix(".txt")
        with said.open("wb") as out:
            began_s = time.perf_counter()
            process = subprocess.Popen(
                [*_COMMAND, *words], cwd=self._config.parent, stdout=out, stderr=out
            )
            try:
                is_killed = self._watch(process, began_s, strike)
            finally:
                process.kill()
                process.wait()
        if is_killed:
            self._damage.kills += 1
            known = len(self._facts)
            self._audit()
            is_at_work = len(self._facts) > known
            self._damage.killed_in[_phase(self._facts) if is_at_work else "start"] += 1
            if not self._facts and (self.folder is None or not self._has_settings()):
                self._damage.stillborn += 1
                self.is_over = True
            return False
        self._audit()
        if process.returncode != 0:
            text = said.read_text(encoding="utf-8", errors="replace").strip()
            self._damage.failed.append(f"status {process.returncode}: {text[-300:]}")
            self.is_over = True
            return False
        return True

    def catalogue(self) -> tuple[CatalogueEntry, ...]:
        """The wanted entries of the finished run."""
        folder = self.folder
        if folder is None:
            return ()
        return tuple(e for e in read_catalogue(folder / "journal.sqlite") if e.rank)

    def _has_settings(self) -> bool:
        folder = self.folder
        return folder is not None and (folder / "settings.toml").is_file()

    def _watch(
        self, process: subprocess.Popen[bytes], began_s: float, strike: _Strike | None
    ) -> bool:
        """Wait for the end or the moment of the kill; note when the first facts were written."""
        known = len(self._facts)
        is_resume = known > 0
        fact_s: float | None = None  # when the first new fact was there
        is_working = False  # the second one
        is_killed = False
        while process.poll() is None:
            now_s = time.perf_counter()
            if strike is not None:
                from_s = fact_s if strike.is_from_first_fact else began_s
                if from_s is not None and now_s >= from_s + strike.after_s:
                    process.kill()
                    is_killed = process.wait() != 0
                    break
            if now_s > began_s + _LONGEST_S:
                self._damage.failed.append(f"no end within {_LONGEST_S:g} s")
                break
            if not is_working:
                new = self._length() - known
                now_s = time.perf_counter()
                if new >= 1 and fact_s is None:
                    fact_s = now_s
                    if is_resume:
                        self._damage.to_first_fact_s.append(now_s - began_s)
                if new >= 2:
                    is_working = True
                    if is_resume:
                        self._damage.to_work_s.append(now_s - began_s)
            time.sleep(_POLL_S)
        first_s = began_s if fact_s is None else fact_s
        self.start_s, self.work_s = first_s - began_s, time.perf_counter() - first_s
        return is_killed

    def _length(self) -> int:
        """Facts in the journal that the process is writing; 0 where it cannot be said."""
        folder = self.folder
        journal = None if folder is None else folder / "journal.sqlite"
        if journal is None or not journal.is_file():
            return 0
        try:
            uri = f"{journal.absolute().as_uri()}?mode=ro"
            database = sqlite3.connect(uri, uri=True, timeout=0.0)
        except sqlite3.Error:
            return 0
        try:
            return int(database.execute("SELECT max(seq) FROM facts").fetchone()[0] or 0)
        except sqlite3.Error:
            return 0
        finally:
            database.close()

    def _audit(self) -> None:
        """From outside: nothing that was acknowledged may be gone."""
        folder = self.folder
        if folder is None or not (folder / "journal.sqlite").is_file():
            return
        before, damage = self._facts, self._damage
        try:
            with Journal(folder / "journal.sqlite", is_read_only=True) as journal:
                self._facts = list(journal.replay())
        except BadRecord:
            if before:  # else it was killed while it made the file
                damage.lost_facts += 1
            return
        if repr(self._facts[: len(before)]) != repr(before):  # NaN is not equal to itself
            damage.lost_facts += 1
        state = folded(self._facts)
        damage.acknowledged += len(state.saved.keys() - self._saved)
        self._saved |= state.saved.keys()
        if not state.saved:
            return
        with FrameStore(folder / "frames.ome.zarr", is_read_only=True) as frames:
            for (shot, index), saved in state.saved.items():
                try:
                    frames.verify(shot, index, saved.checksum)
                except ControllerError:
                    damage.lost_frames.add((folder.name, shot, index))


def _judge(run: _Session, reference: Sequence[CatalogueEntry], damage: Damage) -> None:
    """Enter what a finished run is worth."""
    damage.runs += 1
    twice, retaken = exposed_again(run.facts)
    damage.exposed_twice += twice
    damage.retaken += retaken
    state = folded(run.facts)
    planned = () if state.scan is None else state.scan.tiles
    damage.tiles += len(planned)
    damage.tiles_lost += sum(("tile", tile.index) not in state.saved for tile in planned)
    entries = run.catalogue()
    damage.entries += len(entries)
    damage.other_entries += len(without_counterpart(entries, reference))
    damage.missing_entries += len(without_counterpart(reference, entries))


def exposed_again(facts: Sequence[Fact]) -> tuple[int, int]:
    """(shots exposed after they had been saved, shots exposed anew because they had not)."""
    exposed: set[tuple[ShotKind, int]] = set()
    saved: set[tuple[ShotKind, int]] = set()
    twice = retaken = 0
    for fact in facts:
        match fact:
            case Exposed(shot=shot, index=index):
                twice += (shot, index) in saved
                retaken += (shot, index) in exposed and (shot, index) not in saved
                exposed.add((shot, index))
            case Saved(shot=shot, index=index):
                saved.add((shot, index))
            case _:
                pass
    return twice, retaken


def without_counterpart(
    entries: Sequence[CatalogueEntry], others: Sequence[CatalogueEntry]
) -> list[CatalogueEntry]:
    """Entries that have no other of the same material and layer number in the same place."""
    return [
        entry
        for entry in entries
        if not any(
            (other.material, other.layers) == (entry.material, entry.layers)
            and abs(other.stage_x_um - entry.stage_x_um) <= _SAME_PLACE_UM
            and abs(other.stage_y_um - entry.stage_y_um) <= _SAME_PLACE_UM
            for other in others
        )
    ]


def _phase(facts: Sequence[Fact]) -> str:
    """What the last session was doing when it ended."""
    phase = "start"
    for fact in facts:
        match fact:
            case RunStarted():
                phase = "opening"
            case PhaseStarted(phase=entered):
                phase = entered
            case RunFinished():
                phase = "report"
            case _:
                pass
    return phase
