"""The journal: what was acknowledged comes back, damage is named, kill -9 is survived."""

import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from controller import messages
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.record.rundir import BadRecord, DiskFull

PIECE = messages.Piece(
    outline_um=((0.0, 0.0), (10.5, 0.0), (10.5, 9.25)),
    holes_um=(((1.0, 0.5), (2.0, 0.5), (2.0, 1.0)),),
    material="graphene",
    layers=1,
    layer_probabilities=((1, 0.97), (2, 0.02)),
    thickness_nm=0.335,
    contrast_rgb=(-0.05, -0.07, 0.01),
    off_ladder=0.004,
    score=0.9,
    area_um2=48.5625,
    touches_border=False,
)
REVISITED = messages.Revisited(
    entry_id=1,
    shot_index=0,
    centred_error_um=0.4,
    x_um=1.0,
    y_um=2.0,
    area_um2=48.0,
    material="graphene",
    layers=1,
    probability=0.99,
    contrast_rgb=(-0.05, -0.07, 0.01),
    sharpness=12.0,
    found=True,
    reason="",
)
EXPOSED = messages.Exposed(
    "tile", 17, 205, 1.25, 1.26, 100.5, -20.25, 3.125, "20x", 250.0, exposure_s=0.01
)
FACTS: tuple[messages.Fact, ...] = (
    messages.RunStarted("id", "chip", "[run]\n", {"numpy": "2"}, {"stage": "x"}, "2025-01-31", 0),
    messages.PhaseStarted("scan", 12.5),
    EXPOSED,
    messages.Saved("tile", 17, "frames.ome.zarr/tile/17", "crc32:00000000"),
    messages.Analysed("tile", 17, "ladder", 3.5, (150.0, 120.0, 140.0), True, "", (PIECE,), 0.012),
    messages.ChipFound(((0.0, 0.0), (5.0, 0.0), (5.0, 4.0)), 0.0, 0.0, 1.5, 0.9),
    messages.FocusMeasured(1.0, 2.0, 3.0, 0.1, True, "", "20x", 7, 15.0, "seed"),
    messages.CalibrationFitted(90.5, (1.0, 1.01, 0.98), 0.8, "fitted on 12 regions"),
    messages.LightChanged("tile", 7, (70.0, 66.0, 88.0), (60.0, 56.5, 75.0), False, "green -15 %"),
    messages.ScanPlanned((messages.PlannedTile(0, 1.0, 2.0),), "20x", 480.0, 300.0, 0.1),
    messages.RevisitsPlanned((messages.PlannedRevisit(1, 1.0, 2.0),), "50x"),
    REVISITED,
    messages.Skipped("tile 18", "out of the envelope: größer als 10 µm"),
    messages.FramesMissing(206, 207, "gap"),
    messages.CommandRefused("move", "limit"),
    messages.RunFinished("complete", "", 100.0, 80.0, 75.0, 20, 30, 2, 0, 3),
)


def damaged(path: Path, sql: str) -> None:
    database = sqlite3.connect(path)
    database.execute(sql)
    database.commit()
    database.close()


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        yield journal


@pytest.fixture
def closed(journal):
    journal.append(FACTS)
    journal.close()
    return journal.path


def test_every_kind_of_fact_comes_back_equal(journal):
    assert {type(fact) for fact in FACTS} == set(messages.Fact.__args__)
    journal.append(FACTS[:3])
    for fact in FACTS[3:]:
        journal.append([fact])
    assert tuple(journal.replay()) == FACTS
    assert len(journal) == len(FACTS)


def test_facts_come_back_after_reopening_and_go_on(closed):
    with Journal(closed) as journal:
        assert tuple(journal.replay()) == FACTS
        journal.append([EXPOSED])
    with Journal(closed, is_read_only=True) as journal:
        assert tuple(journal.replay()) == (*FACTS, EXPOSED)


def test_numbers_that_json_does_not_know_come_back(journal):
    odd = messages.PhaseStarted("scan", math.nan), messages.PhaseStarted("scan", -math.inf)
    journal.append(odd)
    first, second = journal.replay()
    assert math.isnan(first.at_s)
    assert second == odd[1]
    (text,) = journal._database.execute("SELECT fact FROM facts LIMIT 1").fetchone()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_closed_journal_is_one_plain_file(closed):
    assert [p.name for p in closed.parent.iterdir()] == ["journal.sqlite"]


@pytest.mark.parametrize(
    "loose",
    [
        "not a fact",
        messages.PhaseStarted("scan", np.float32(1.0)),
        messages.FramesMissing(np.int64(1), 2, ""),
        messages.PhaseStarted("scan", "soon"),
        messages.ChipFound(((0.0, 0.0), (np.int32(5), 0.0)), 0.0, 0.0, 1.5, 0.9),
    ],
)
def test_an_append_is_all_or_nothing(journal, loose):
    with pytest.raises(BadRecord, match="not a fact of plain Python numbers"):
        journal.append([EXPOSED, loose])
    journal.append([])
    assert len(journal) == 0
    journal.append([EXPOSED])
    assert list(journal.replay()) == [EXPOSED]


def test_a_reader_may_look_while_facts_are_written(journal):
    journal.append([EXPOSED])
    with Journal(journal.path, is_read_only=True) as reader:
        journal.append([EXPOSED])
        assert len(list(reader.replay())) == 2
        with pytest.raises(BadRecord, match="readonly"):
            reader.append([EXPOSED])


def test_an_append_is_cheap(journal):
    """Typically 15 us for two facts; the bound leaves room for a busy machine."""
    costs_s = []
    for _ in range(500):
        began = time.process_time()
        journal.append(FACTS[2:4])
        costs_s.append(time.process_time() - began)
    assert np.median(costs_s) < 100e-6 * 3


def test_power_safe_flushes_every_commit(tmp_path):
    with Journal(tmp_path / "safe.sqlite", is_power_safe=True) as journal:
        assert journal._database.execute("PRAGMA synchronous").fetchone() == (2,)
        journal.append(FACTS)
        assert tuple(journal.replay()) == FACTS
    with Journal(tmp_path / "plain.sqlite") as journal:
        assert journal._database.execute("PRAGMA synchronous").fetchone() == (1,)


def test_a_full_disk_loses_only_what_was_refused(journal):
    """SQLite's own page limit stands for the disk: it refuses with the same code."""
    journal.append(FACTS)
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count={pages + 4}")
    acknowledged = list(FACTS)
    with pytest.raises(DiskFull, match="nothing that was acknowledged is lost"):
        for _ in range(1000):
            journal.append(FACTS)
            acknowledged.extend(FACTS)
    assert len(acknowledged) < 15_000
    assert list(journal.replay()) == acknowledged
    journal._database.execute("PRAGMA max_page_count=1000000")
    journal.append(FACTS)  # room was made
    assert list(journal.replay()) == [*acknowledged, *FACTS]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE facts SET fact = replace(fact, '205', '206') WHERE seq = 3", "row 3 .*checksum"),
        ("UPDATE facts SET kind = 'saved' WHERE seq = 3", "row 3 of 16 is damaged"),
        ("UPDATE facts SET crc32 = crc32 + 1 WHERE seq = 16", "row 16 of 16 is damaged"),
        ("DELETE FROM facts WHERE seq = 3", r"row 3 of 16 is missing \(row 4 follows\)"),
        ("UPDATE facts SET fact = x'00ff' WHERE seq = 3", "row 3 of 16 is damaged: not text"),
    ],
)
def test_a_damaged_row_is_named_and_what_came_before_is_kept(closed, damage, message):
    damaged(closed, damage)
    with Journal(closed) as journal:
        with pytest.raises(BadRecord, match=message):
            list(journal.replay())
        salvage = journal.salvage()
    assert salvage.damage != ""
    assert salvage.facts == (FACTS[:15] if "16" in damage else FACTS[:2])


def test_nothing_damaged_nothing_reported(closed):
    with Journal(closed) as journal:
        assert journal.salvage().damage == ""


def test_a_fact_of_another_version_is_told_from_damage(journal, monkeypatch):
    monkeypatch.setattr(
        "controller.record.journal._FACT.dump_json", lambda fact, warnings: b'{"kind":"teleported"}'
    )
    journal.append([EXPOSED])
    monkeypatch.undo()
    with pytest.raises(BadRecord, match="another version"):
        list(journal.replay())


def _text(path):
    path.write_text("this is a diary, not a database; " * 50)


def _foreign(path):
    damaged(path, "CREATE TABLE holidays (day TEXT)")


def _newer(path):
    with Journal(path):
        pass
    damaged(path, "PRAGMA user_version = 2")


def _torn_page(path):
    """A page in the middle of the file is overwritten, as a dying disk does."""
    with Journal(path) as journal:
        for _ in range(40):
            journal.append(FACTS)
    raw = bytearray(path.read_bytes())
    raw[8 * 4096 : 9 * 4096] = random.Random(1).randbytes(4096)
    path.write_bytes(raw)


def _cut_off(path):
    _torn_page(path)
    path.write_bytes(path.read_bytes()[: 10 * 4096])


def _folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_text, "not a database"),
        (_foreign, "not the journal of a run"),
        (_newer, "format 2, this program reads up to 1"),
        (_torn_page, "the journal is damaged"),
        (_cut_off, "malformed|damaged"),
        (_folder, "unable to open"),
    ],
)
def test_what_is_not_a_sound_journal_is_refused_and_left_alone(tmp_path, make, message):
    path = tmp_path / "journal.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(BadRecord, match=message) as caught:
        Journal(path)
    assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_reading_needs_a_journal(tmp_path):
    with pytest.raises(BadRecord, match="there is no journal here"):
        Journal(tmp_path / "none.sqlite", is_read_only=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.sqlite").write_bytes(b"")
    with pytest.raises(BadRecord, match="not the journal of a run"):
        Journal(tmp_path / "empty.sqlite", is_read_only=True)


# Writes shots as a run does and says so on its standard output only after each acknowledgement.
# One process imports everything, then forks a writer for each line it is given: 50 ms each.
WRITERS = """
import os, sys
import numpy as np
from controller.messages import Exposed, Saved
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from drivers.api import Frame, Pose

def write(folder, first):
    journal = Journal(folder + "/journal.sqlite")
    store = FrameStore(folder + "/frames.ome.zarr")
    os.write(1, b"ready %d\\n" % os.getpid())
    for i in range(first, 100_000):
        pixels = np.random.default_rng(i).integers(0, 255, (160, 240, 3), dtype=np.uint8)
        exposed = Exposed("tile", i, i, 0.0, 0.01, 0.0, 0.0, 0.0, "20x", 250.0, 0.01)
        journal.append([exposed])
        os.write(1, b"exposed %d\\n" % i)
        frame = Frame(pixels, i, 0.0, 0.01, Pose(0.0, 0.0, 0.0, "20x"), 250.0, 8)
        path, checksum = store.save("tile", i, frame)
        journal.append([Saved("tile", i, path, checksum)])
        os.write(1, b"saved %d\\n" % i)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        write(sys.argv[1], int(line))
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL are POSIX'")
def test_kill_9_loses_nothing_acknowledged(tmp_path):
    """40 writers killed at random instants, each going on where the last one was killed."""
    dice = random.Random(20)
    said: list[bytes] = []
    exposed: dict[int, messages.Exposed] = {}
    saved: dict[int, messages.Saved] = {}
    kills_inside = 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[3],
    ) as writers:
        assert writers.stdin is not None
        assert writers.stdout is not None
        for _ in range(40):
            writers.stdin.write(b"%d\n" % (max(exposed, default=-1) + 1))
            writers.stdin.flush()
            what, pid = writers.stdout.readline().split()
            assert what == b"ready"
            time.sleep(dice.uniform(0.0, 0.05))
            os.kill(int(pid), signal.SIGKILL)
            said.extend(iter(writers.stdout.readline, b"dead\n"))
            with (
                Journal(tmp_path / "journal.sqlite") as journal,
                FrameStore(tmp_path / "frames.ome.zarr") as store,
            ):
                facts = list(journal.replay())
                exposed = {fact.index: fact for fact in facts if isinstance(fact, messages.Exposed)}
                saved = {fact.index: fact for fact in facts if isinstance(fact, messages.Saved)}
                for index in sorted(exposed.keys() - saved.keys()):
                    adopted = store.adopt(exposed[index])
                    kills_inside += index == max(exposed)
                    if adopted is not None:
                        journal.append([adopted])
                        saved[index] = adopted
                assert all(index in exposed for _, index in store.shots())
        writers.stdin.close()
        assert writers.wait(10.0) == 0
    for line in said:
        what, number = line.split()
        assert int(number) in (exposed if what == b"exposed" else saved), line
    with FrameStore(tmp_path / "frames.ome.zarr", is_read_only=True) as store:
        for index, fact in saved.items():
            store.verify("tile", index, fact.checksum)
            pixels = np.random.default_rng(index).integers(0, 255, (160, 240, 3), dtype=np.uint8)
            np.testing.assert_array_equal(store.load("tile", index), pixels)
    assert len(said) > 20
    assert kills_inside > 0  # else the killing missed what it is about
