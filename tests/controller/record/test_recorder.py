"""The recorder: order on the disk, waiting when it is behind, and what a refusal leaves."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from controller.messages import Exposed, Fact, PhaseStarted, Saved, Skipped
from controller.record.frames import FrameStore, checksum_of
from controller.record.journal import Journal
from controller.record.recorder import MAX_FRAMES, Recorder
from controller.record.rundir import DiskFull
from drivers.api import Frame, Pose


def frame(number: int) -> Frame:
    pixels = np.full((8, 10, 3), number, np.uint8)
    pixels.flags.writeable = False
    return Frame(pixels, number, 1.0, 1.01, Pose(0.0, 0.0, 0.0, "20x"), 384.0, 8)


def exposed(number: int) -> Exposed:
    return Exposed("tile", number, number, 1.0, 1.01, 0.0, 0.0, 0.0, "20x", 384.0, 0.01)


def note(number: int) -> Skipped:
    return Skipped(f"note {number}", "")


class GatedStore:
    """A frame store whose disk waits, or refuses, as the test says."""

    def __init__(self, store: FrameStore) -> None:
        self.store = store
        self.gate = threading.Event()
        self.gate.set()
        self.full_from: int | None = None  # index of the first frame that finds no room
        self.began: list[int] = []

    def save(self, shot, index, frame, *, centre_um):
        self.began.append(index)
        assert self.gate.wait(10.0)
        if self.full_from is not None and index >= self.full_from:
            raise DiskFull(self.store.path, 0.0, 1.0)
        return self.store.save(shot, index, frame, centre_um=centre_um)


class Desk:
    """A recorder with all that it works with, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder / "journal.sqlite")
        self.frames = FrameStore(folder / "frames.ome.zarr")
        self.disk = GatedStore(self.frames)
        self.thread = ThreadPoolExecutor(1)
        self.learnt: list[Fact] = []

    def recorder(self) -> Recorder:
        return Recorder(self.learnt.append, self.journal, self.disk, self.thread)  # type: ignore[arg-type]

    def written(self) -> list[Fact]:
        return list(self.journal.replay())

    def close(self) -> None:
        self.disk.gate.set()
        self.thread.shutdown()
        self.frames.close()
        self.journal.close()


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def played(desk: Desk, scene: Callable[[Recorder], Awaitable[None]]) -> None:
    """Play a scene beside `run`, then close."""

    async def main() -> None:
        recorder = desk.recorder()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(recorder.run())
            await scene(recorder)
            recorder.close()

    asyncio.run(main())


async def save(recorder: Recorder, *numbers: int) -> None:
    for number in numbers:
        await recorder.save(exposed(number), frame(number), (0.0, 0.0))


def test_the_order_on_the_disk_is_that_of_posting(desk) -> None:
    async def scene(recorder: Recorder) -> None:
        recorder.post(PhaseStarted("scan", 0.0))
        await save(recorder, 0)
        recorder.post(note(1))
        recorder.post(note(2))
        await save(recorder, 1)
        recorder.post(note(3))

    played(desk, scene)
    written = desk.written()
    assert [fact for fact in written if not isinstance(fact, Saved)] == [
        PhaseStarted("scan", 0.0),
        exposed(0),
        note(1),
        note(2),
        exposed(1),
        note(3),
    ]
    for number in range(2):
        saved = next(f for f in written if isinstance(f, Saved) and f.index == number)
        assert written.index(saved) == written.index(exposed(number)) + 1
        assert saved.path == f"frames.ome.zarr/tile/{number}"
        assert saved.checksum == checksum_of(frame(number).pixels)
        desk.frames.verify("tile", number, saved.checksum)


def test_a_fact_is_known_at_once_and_saved_only_when_it_is_on_the_disk(desk) -> None:
    async def scene(recorder: Recorder) -> None:
        desk.disk.gate.clear()
        recorder.post(note(1))
        assert desk.learnt == [note(1)]
        await save(recorder, 0)
        assert desk.learnt == [note(1), exposed(0)]
        while not desk.disk.began:  # noqa: ASYNC110  a thread
            await asyncio.sleep(0.001)
        assert not any(isinstance(fact, Saved) for fact in desk.learnt)
        assert desk.written() == [note(1), exposed(0)]
        desk.disk.gate.set()
        await recorder.flush()
        assert isinstance(desk.learnt[-1], Saved)

    played(desk, scene)


def test_saving_waits_when_the_disk_is_behind_and_posting_does_not(desk) -> None:
    async def scene(recorder: Recorder) -> None:
        desk.disk.gate.clear()
        await save(recorder, *range(MAX_FRAMES))
        assert recorder.stalled_s < 0.05
        late = asyncio.create_task(save(recorder, MAX_FRAMES))
        await asyncio.sleep(0.05)
        assert not late.done()
        assert exposed(MAX_FRAMES) not in desk.learnt  # light that is not kept yet is no fact
        recorder.post(note(1))
        assert desk.learnt[-1] == note(1)
        desk.disk.gate.set()
        await late
        assert recorder.stalled_s >= 0.04

    played(desk, scene)
    assert desk.disk.began == list(range(MAX_FRAMES + 1))
    assert sum(isinstance(fact, Saved) for fact in desk.written()) == MAX_FRAMES + 1


def test_flush_returns_when_all_is_on_the_disk(desk) -> None:
    async def scene(recorder: Recorder) -> None:
        await save(recorder, 0, 1, 2)
        recorder.post(note(1))
        await recorder.flush()
        assert len(desk.written()) == 7
        await recorder.flush()  # nothing to wait for

    played(desk, scene)


def test_closing_writes_what_is_queued(desk) -> None:
    async def scene(recorder: Recorder) -> None:
        await save(recorder, 0, 1)
        recorder.post(note(1))

    played(desk, scene)
    assert len(desk.written()) == 5


def test_a_full_disk_ends_run_and_what_was_acknowledged_stays(desk) -> None:
    desk.disk.full_from = 2

    async def scene(recorder: Recorder) -> None:
        await save(recorder, 0, 1, 2, 3)
        recorder.post(note(1))
        await recorder.flush()

    with pytest.raises(BaseExceptionGroup) as raised:
        played(desk, scene)
    assert raised.group_contains(DiskFull)
    saved = [fact.index for fact in desk.written() if isinstance(fact, Saved)]
    assert saved == [0, 1]
    assert desk.written()[-1] == exposed(2)  # the light was taken, the frame was not kept
    assert desk.frames.shots() == (("tile", 0), ("tile", 1))
    assert desk.disk.began == [0, 1, 2]


async def broken_off(desk: Desk) -> Recorder:
    """A recorder whose `run` was cancelled with one frame under way and more behind it."""
    recorder = desk.recorder()
    desk.disk.gate.clear()
    running = asyncio.create_task(recorder.run())
    await save(recorder, 0)
    while not desk.disk.began:  # noqa: ASYNC110  a thread
        await asyncio.sleep(0.001)
    await save(recorder, 1, 2)
    recorder.post(note(1))
    recorder.close()
    running.cancel()
    await asyncio.wait([running])
    desk.disk.gate.set()
    desk.thread.shutdown()
    return recorder


def test_what_was_queued_when_run_was_broken_off_can_still_be_written(desk) -> None:
    recorder = asyncio.run(broken_off(desk))
    assert [f.index for f in desk.written() if isinstance(f, Saved)] == [0]
    recorder.write_rest()
    written = desk.written()
    assert [f.index for f in written if isinstance(f, Saved)] == [0, 1, 2]
    assert [f for f in written if not isinstance(f, Saved)] == [
        exposed(0),
        exposed(1),
        exposed(2),
        note(1),
    ]
    recorder.write_rest()  # nothing is left
    assert desk.written() == written


def test_the_rest_is_not_forced_onto_a_disk_that_refused(desk) -> None:
    desk.disk.full_from = 0
    recorder = asyncio.run(broken_off(desk))
    before = desk.written()
    recorder.write_rest()
    assert desk.written() == before
    assert desk.disk.began == [0]
