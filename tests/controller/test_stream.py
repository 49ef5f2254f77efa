"""Every number accounted for, every frame under its own number, every waiter answered."""

from __future__ import annotations

import asyncio
import selectors
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import (
    BadFrame,
    FrameMissing,
    FrameTimeout,
    RecordLaneFull,
    StaleFrame,
    StreamError,
)
from controller.safety import Expose
from controller.stream import (
    FrameLedger,
    FrameStream,
    LiveLane,
    RecordLane,
    is_evidence,
)
from drivers.api import Frame, MissingFrames, Pose
from drivers.errors import DriverError, LinkLost

SHAPE_PX = (4, 6)
POSE = Pose(0.0, 0.0, 0.0, "20x")
BLANK = np.zeros((*SHAPE_PX, 3), np.uint8)
LIGHT = Expose(0.01, 10.0, 10.0, "search")


def frame_of(number: int, exposed_from_s: float = 0.0, **changes: Any) -> Frame:
    frame = Frame(BLANK, number, exposed_from_s, exposed_from_s + 0.01, POSE, 172.0, 8)
    return replace(frame, **changes)


class _Jump(selectors.DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everybody waits and nothing will ever happen")
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """A clock that jumps to the next timer and stands still in between."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


def run(test: Coroutine[Any, Any, Any]) -> Any:
    async def clean() -> Any:
        result = await test
        assert len(asyncio.all_tasks()) == 1, "a task was left behind"
        return result

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(clean())


def now_s() -> float:
    return asyncio.get_running_loop().time()


class FakeCamera:
    """Delivers what it is given; `trigger` counts and does to its frame what the test asks."""

    name = "cam"
    shape_px = SHAPE_PX
    bit_depth = 8
    exposure_s = 0.01

    def __init__(self, *items: Frame | MissingFrames | Exception) -> None:
        self.queue: asyncio.Queue[Frame | MissingFrames | Exception | None] = asyncio.Queue()
        for item in items:
            self.queue.put_nowait(item)
        self.count = 0
        self.readout_s = 0.02
        self.is_dead = False
        self.spoil: Callable[[Frame], Sequence[Frame | MissingFrames]] = lambda frame: [frame]

    async def set_exposure_s(self, exposure_s: float) -> None: ...
    async def start_live(self) -> None: ...
    async def stop_live(self) -> None: ...

    async def trigger(self) -> int:
        number, began_s = self.count, now_s()
        self.count += 1
        await asyncio.sleep(self.exposure_s)
        if self.is_dead:
            await asyncio.sleep(1e6)
        for item in self.spoil(frame_of(number, began_s)):
            asyncio.get_running_loop().call_later(self.readout_s, self.queue.put_nowait, item)
        return number

    async def frames(self) -> AsyncIterator[Frame | MissingFrames]:
        while True:
            item = await self.queue.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item


class StillMotion:
    """Stands still since `settled_at_s`."""

    def __init__(self, settled_at_s: float = 0.0) -> None:
        self.settled_at_s = settled_at_s
        self.permits = 0

    @property
    def clock(self) -> Callable[[], float]:
        return asyncio.get_running_loop().time

    @asynccontextmanager
    async def still(self, exposure: Expose) -> AsyncIterator[float]:
        self.permits += 1
        await asyncio.sleep(max(0.0, self.settled_at_s - now_s()))
        yield self.settled_at_s


async def drained(camera: FakeCamera) -> None:
    while not camera.queue.empty():  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)


# --- the ledger --------------------------------------------------------------------------------


def booked(numbers: Sequence[int], reorder_frames: int = 4) -> FrameLedger:
    ledger = FrameLedger(reorder_frames)
    for number in numbers:
        arrival, _ = ledger.book(number)
        if arrival in ("new", "reordered"):
            ledger.end("kept")
    ledger.close()
    return ledger


# name, arrivals, (received, missing, duplicate, reordered, late), gaps as (first, last)
LEDGERS = [
    ("nothing", [], (0, 0, 0, 0, 0), []),
    ("in order", [0, 1, 2, 3], (4, 0, 0, 0, 0), []),
    ("starts anywhere", [700, 701], (2, 0, 0, 0, 0), []),
    ("one lost", [0, 1, 3], (3, 1, 0, 0, 0), [(2, 2)]),
    ("a run lost", [0, 20], (2, 19, 0, 0, 0), [(1, 19)]),
    ("doubled", [0, 1, 1, 2], (3, 0, 1, 0, 0), []),
    ("swapped", [0, 2, 1, 3], (4, 0, 0, 1, 0), []),
    ("swapped and doubled", [0, 2, 1, 1, 3], (4, 0, 1, 1, 0), []),
    ("the first two swapped", [1, 0, 2], (3, 0, 0, 1, 0), []),
    ("the first three turned round", [2, 1, 0, 3], (4, 0, 0, 2, 0), []),
    ("too late", [0, 2, 3, 4, 5, 6, 7, 1, 8], (8, 1, 0, 0, 1), [(1, 1)]),
    ("just in time", [0, 2, 3, 4, 5, 1, 6], (7, 0, 0, 1, 0), []),
]


@pytest.mark.parametrize(("name", "arrivals", "counts", "gaps"), LEDGERS)
def test_ledger(
    name: str, arrivals: list[int], counts: tuple[int, ...], gaps: list[tuple[int, int]]
) -> None:
    ledger = booked(arrivals)
    assert (
        ledger.received_frames,
        ledger.missing_frames,
        ledger.duplicate_frames,
        ledger.reordered_frames,
        ledger.late_frames,
    ) == counts, name
    assert [(gap.first, gap.last) for gap in ledger.missing] == gaps
    assert ledger.unaccounted_frames == 0


@pytest.mark.parametrize(
    ("items", "received", "gaps"),
    [
        ([0, MissingFrames(1, 3, "link"), 4], 2, [(1, 3)]),
        ([0, 2, MissingFrames(1, 1, "link"), 3], 3, [(1, 1)]),
        ([MissingFrames(0, 1, "link"), 2], 1, [(0, 1)]),
        ([0, MissingFrames(5, 6, "link"), 7], 2, [(1, 4), (5, 6)]),
        ([5, MissingFrames(3, 4, "link"), 6], 2, [(3, 4)]),
        ([5, MissingFrames(2, 3, "link"), 6], 2, [(2, 3), (4, 4)]),
        ([50, MissingFrames(2, 3, "long ago"), 51], 2, []),
        ([0, 1, MissingFrames(0, 1, "wrong report"), 2], 3, []),
        ([0, MissingFrames(3, 1, "nonsense"), 1], 2, []),
    ],
)
def test_ledger_believes_the_source_about_what_it_lost(
    items: list[int | MissingFrames], received: int, gaps: list[tuple[int, int]]
) -> None:
    ledger = FrameLedger(4)
    for item in items:
        if isinstance(item, MissingFrames):
            ledger.book_missing(item)
        elif ledger.book(item)[0] in ("new", "reordered"):
            ledger.end("kept")
    ledger.close()
    assert ledger.received_frames == received
    assert [(gap.first, gap.last) for gap in ledger.missing] == gaps
    assert ledger.unaccounted_frames == 0


def test_ledger_notices_what_has_no_end() -> None:
    ledger = FrameLedger()
    ledger.book(0)
    ledger.close()
    assert ledger.unaccounted_frames == 1
    ledger.end("kept")
    assert ledger.unaccounted_frames == 0
    assert FrameLedger().span_frames == 0


@given(
    st.lists(
        st.one_of(
            st.integers(0, 60),
            st.builds(
                lambda a, n: MissingFrames(a, a + n, "x"), st.integers(0, 60), st.integers(-2, 9)
            ),
            st.integers(0, 10**12),
        ),
        max_size=60,
    )
)
def test_ledger_accounts_for_anything(items: list[int | MissingFrames]) -> None:
    """Against a plain set: each number is used at most once, and ends exactly once."""
    ledger = FrameLedger(4)
    used: list[int] = []
    lost: list[MissingFrames] = []
    for item in items:
        if isinstance(item, MissingFrames):
            lost += ledger.book_missing(item)
        else:
            arrival, gone = ledger.book(item)
            lost += gone
            if arrival in ("new", "reordered"):
                used.append(item)
                ledger.end("kept")
    lost += ledger.close()
    assert ledger.unaccounted_frames == 0
    assert len(used) == len(set(used)) == ledger.received_frames
    named = sum(gap.last - gap.first + 1 for gap in ledger.missing)
    assert named == sum(gap.last - gap.first + 1 for gap in lost) == ledger.missing_frames
    assert all(ledger.gap_of(number) is None for number in used)
    gaps = ledger.missing
    assert all(a.last < b.first for a, b in pairwise(gaps))


def test_ledger_stays_small_over_hours() -> None:
    """Memory grows with the gaps only: 40 000 frames, every 2000th lost."""
    ledger = FrameLedger()
    for number in range(1000):
        ledger.book(number)
        ledger.end("kept")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(1000, 40_000):
        if number % 2000:
            ledger.book(number)
            ledger.end("kept")
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ledger.missing_frames == 19
    assert after - before < 20_000


# --- labels ------------------------------------------------------------------------------------


def through_a_bad_link(
    count: int, dropped: set[int], doubled: set[int], late_by: dict[int, int]
) -> list[int]:
    """Numbers in the order of arrival."""
    arrivals = [
        (number + late_by.get(number, 0), copy, number)
        for number in range(count)
        for copy in range(2 if number in doubled else 1)
        if number not in dropped
    ]
    return [number for _, _, number in sorted(arrivals)]


@settings(max_examples=60, deadline=None)
@given(
    dropped=st.sets(st.integers(0, 299), max_size=6),
    doubled=st.sets(st.integers(0, 299), max_size=6),
    late_by=st.dictionaries(st.integers(0, 299), st.integers(1, 8), max_size=6),
    is_reported=st.booleans(),
)
def test_every_kept_frame_carries_the_right_number(
    dropped: set[int], doubled: set[int], late_by: dict[int, int], is_reported: bool
) -> None:
    """The pixels know the truth; a lane with 2 % of each fault keeps every label right."""

    def true_frame(number: int) -> Frame:
        pixels = np.zeros((*SHAPE_PX, 3), np.uint8)
        pixels[0, 0] = (number >> 8, number & 255, 7)
        return frame_of(number, number * 0.02, pixels=pixels)

    async def test() -> None:
        camera = FakeCamera()
        for number in through_a_bad_link(300, dropped, doubled, late_by):
            camera.queue.put_nowait(true_frame(number))
        if is_reported:
            for number in dropped:
                camera.queue.put_nowait(MissingFrames(number, number, "buffer"))
        lane = RecordLane(1000, "stall")
        async with FrameStream(camera, record=lane) as stream:
            await drained(camera)
        kept: dict[int, Frame] = {}
        with pytest.raises(LinkLost):
            async for frame in lane.frames():
                kept[frame.number] = frame
        for number, frame in kept.items():
            told = frame.pixels[0, 0]
            assert (int(told[0]) << 8 | int(told[1])) == number
        ledger = stream.ledger
        assert ledger.unaccounted_frames == 0
        seen = set(range(300)) - dropped
        assert set(kept) == seen
        first, last = min(seen), max(seen)
        if is_reported and dropped:
            first, last = min(first, *dropped), max(last, *dropped)
        gone = {n for gap in ledger.missing for n in range(gap.first, gap.last + 1)}
        assert gone == {n for n in dropped if first <= n <= last}

    run(test())


# --- the stream: waiting for a frame -----------------------------------------------------------


def test_a_frame_is_found_by_the_number_of_its_trigger() -> None:
    async def test() -> None:
        camera, motion = FakeCamera(), StillMotion()
        async with FrameStream(camera) as stream:
            taken = [await stream.expose(motion, LIGHT) for _ in range(3)]  # type: ignore[arg-type]
            for exposure in reversed(taken):
                frame = await stream.frame(exposure.number, 1.0, exposure.settled_at_s)
                assert frame.number == exposure.number
                assert frame.exposed_from_s == exposure.began_s
        assert stream.ledger.fates["kept"] == 3
        assert stream.ledger.unaccounted_frames == 0
        assert motion.permits == 3

    run(test())


def test_the_exposure_waits_until_the_stage_has_settled() -> None:
    async def test() -> None:
        camera = FakeCamera()
        async with FrameStream(camera) as stream:
            frame = await stream.snap(StillMotion(settled_at_s=0.5), LIGHT, 1.0)  # type: ignore[arg-type]
            assert frame.exposed_from_s >= 0.5

    run(test())


def test_pixels_that_arrive_before_the_number_are_kept_for_it() -> None:
    async def test() -> None:
        camera = FakeCamera()
        trigger = camera.trigger

        async def slow_answer() -> int:
            number = await trigger()
            await asyncio.sleep(0.1)  # the frame overtakes the command's answer
            return number

        camera.trigger = slow_answer  # type: ignore[method-assign]
        async with FrameStream(camera) as stream:
            number = await stream.trigger(1.0)
            assert (await stream.frame(number, 0.0)).number == number
        assert stream.ledger.unaccounted_frames == 0

    run(test())


def test_a_stranger_during_a_trigger_is_not_mistaken_for_it() -> None:
    async def test() -> None:
        camera = FakeCamera()
        camera.count = 5
        camera.queue.put_nowait(frame_of(4))
        async with FrameStream(camera) as stream:
            number = await stream.trigger(1.0)
            assert (await stream.frame(number, 1.0)).number == 5
        assert stream.ledger.fates == {**stream.ledger.fates, "kept": 1, "unwanted": 1}
        assert stream.ledger.unaccounted_frames == 0

    run(test())


@pytest.mark.parametrize("is_early", [False, True])
def test_a_reported_loss_fails_the_waiter_at_once(is_early: bool) -> None:
    async def test() -> None:
        camera = FakeCamera()
        trigger = camera.trigger

        async def slow_answer() -> int:
            number = await trigger()
            await asyncio.sleep(0.1 if is_early else 0.0)
            return number

        camera.trigger = slow_answer  # type: ignore[method-assign]
        camera.spoil = lambda f: [MissingFrames(f.number, f.number, "buffer full")]
        told: list[MissingFrames] = []
        async with FrameStream(camera, on_missing=told.append) as stream:
            number = await stream.trigger(1.0)
            with pytest.raises(FrameMissing, match="buffer full"):
                await stream.frame(number, 100.0)
            assert now_s() < 1.0
        assert told == [MissingFrames(0, 0, "buffer full")]

    run(test())


def test_a_gap_fails_the_waiter_as_soon_as_the_counter_is_past_it() -> None:
    async def test() -> None:
        camera = FakeCamera()
        camera.spoil = lambda f: [] if f.number == 1 else [f]
        async with FrameStream(camera, ledger=FrameLedger(2)) as stream:
            numbers = [await stream.trigger(1.0) for _ in range(6)]
            with pytest.raises(FrameMissing):
                await stream.frame(numbers[1], 100.0)
            assert now_s() < 1.0
            assert [(await stream.frame(n, 1.0)).number for n in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]
        assert stream.ledger.missing == (MissingFrames(1, 1, "the counter jumped"),)

    run(test())


def test_silence_ends_at_the_deadline_and_a_later_frame_is_unwanted() -> None:
    async def test() -> None:
        camera = FakeCamera()
        camera.readout_s = 3.0
        async with FrameStream(camera) as stream:
            number = await stream.trigger(1.0)
            began_s = now_s()
            with pytest.raises(FrameTimeout, match="frame 0"):
                await stream.frame(number, 1.0)
            assert now_s() - began_s == pytest.approx(1.0)
            with pytest.raises(FrameMissing, match="given up"):
                await stream.frame(number, 1.0)
            await asyncio.sleep(5.0)
        assert stream.ledger.fates["unwanted"] == 1
        assert stream.ledger.unaccounted_frames == 0

    run(test())


@pytest.mark.parametrize("lost", [{0, 1, 2}, {0}, {2}, {1}, {0, 2}])
def test_what_was_triggered_and_never_came_is_named(lost: set[int]) -> None:
    async def test() -> None:
        camera = FakeCamera()
        camera.count = 7
        camera.spoil = lambda f: [] if f.number - 7 in lost else [f]
        told: list[MissingFrames] = []
        async with FrameStream(camera, on_missing=told.append) as stream:
            for _ in range(3):
                await stream.trigger(1.0)
            await asyncio.sleep(1.0)
        named = {n - 7 for gap in told for n in range(gap.first, gap.last + 1)}
        assert named == lost
        assert (stream.ledger.span_frames, stream.ledger.missing_frames) == (3, len(lost))
        assert stream.ledger.unaccounted_frames == 0

    run(test())


def test_an_exposure_that_does_not_end_is_a_timeout() -> None:
    async def test() -> None:
        camera = FakeCamera()
        camera.is_dead = True
        async with FrameStream(camera) as stream:
            with pytest.raises(FrameTimeout, match="exposure did not end"):
                await stream.trigger(0.5)
            assert now_s() == pytest.approx(0.5)

    run(test())


BAD_FRAMES = [
    ("half the rows", {"pixels": np.zeros((2, 6, 3), np.uint8)}),
    ("turned", {"pixels": np.zeros((6, 4, 3), np.uint8)}),
    ("four channels", {"pixels": np.zeros((4, 6, 4), np.uint8)}),
    ("flat", {"pixels": np.zeros(24, np.uint8)}),
    ("float", {"pixels": np.zeros((4, 6, 3), np.float32)}),
    ("16 bit said to be 8", {"pixels": np.zeros((4, 6, 3), np.uint16)}),
    ("8 bit said to be 12", {"bit_depth": 12}),
    ("a list", {"pixels": [[0] * 6] * 4}),
    ("no time", {"exposed_from_s": float("nan")}),
    ("backwards", {"exposed_until_s": -1.0}),
    ("nowhere", {"pose": Pose(float("inf"), 0.0, 0.0, "20x")}),
    ("no pixel size", {"pixel_size_nm": 0.0}),
]


@pytest.mark.parametrize(("name", "changes"), BAD_FRAMES)
def test_a_frame_that_is_not_what_was_promised(name: str, changes: dict[str, Any]) -> None:
    async def test() -> None:
        camera = FakeCamera()
        camera.spoil = lambda f: [replace(f, **changes)] if f.number == 0 else [f]
        async with FrameStream(camera) as stream:
            number = await stream.trigger(1.0)
            with pytest.raises(BadFrame):
                await stream.frame(number, 1.0)
            assert (await stream.snap(StillMotion(), LIGHT, 1.0)).number == 1  # type: ignore[arg-type]
        assert stream.ledger.fates["bad"] == 1
        assert stream.ledger.unaccounted_frames == 0

    run(test())


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint16), BLANK.astype(np.uint16)]
)
def test_grey_and_deep_frames_are_as_good(pixels: Any) -> None:
    async def test() -> None:
        camera = FakeCamera()
        depth = 8 * pixels.itemsize
        camera.spoil = lambda f: [replace(f, pixels=pixels, bit_depth=depth)]
        async with FrameStream(camera) as stream:
            frame = await stream.frame(await stream.trigger(1.0), 1.0)
            assert frame.pixels is pixels  # no copy

    run(test())


def test_a_frame_without_a_number_is_counted_and_nothing_more() -> None:
    async def test() -> None:
        camera = FakeCamera(*(frame_of(n) for n in (-1, True, 1.5, None)))  # type: ignore[arg-type]
        async with FrameStream(camera) as stream:
            await drained(camera)
        assert stream.ledger.unnumbered_frames == 4
        assert stream.ledger.unaccounted_frames == 0

    run(test())


def test_a_frame_exposed_before_settling_is_evidence_of_nothing() -> None:
    frame = frame_of(0, 1.0)
    assert is_evidence(frame, 1.0)
    assert not is_evidence(frame, 1.0 + 1e-9)
    assert is_evidence(frame, 0.0, moved_at_s=1.01)
    assert not is_evidence(frame, 0.0, moved_at_s=1.005)

    async def test() -> None:
        camera = FakeCamera()
        camera.spoil = lambda f: [replace(f, exposed_from_s=0.0) if f.number == 0 else f]
        motion = StillMotion(settled_at_s=0.5)
        async with FrameStream(camera) as stream:
            exposure = await stream.expose(motion, LIGHT)  # type: ignore[arg-type]
            with pytest.raises(StaleFrame):
                await stream.frame(exposure.number, 1.0, exposure.settled_at_s)
            assert (await stream.snap(motion, LIGHT, 1.0)).number == 1  # type: ignore[arg-type]
        assert stream.ledger.fates == {**stream.ledger.fates, "stale": 1, "kept": 1}
        assert stream.ledger.unaccounted_frames == 0

    run(test())


def test_snap_gives_up_after_its_attempts() -> None:
    async def test() -> None:
        camera = FakeCamera()
        camera.spoil = lambda f: [MissingFrames(f.number, f.number, "buffer")]
        async with FrameStream(camera) as stream:
            with pytest.raises(FrameMissing):
                await stream.snap(StillMotion(), LIGHT, 1.0, attempts=3)  # type: ignore[arg-type]
        assert camera.count == 3

    run(test())


def test_triggering_without_ever_asking_is_refused_in_time() -> None:
    async def test() -> None:
        camera = FakeCamera()
        async with FrameStream(camera) as stream:
            for _ in range(64):
                await stream.trigger(1.0)
            with pytest.raises(StreamError, match="wait to be asked for"):
                await stream.trigger(1.0)
            await asyncio.sleep(1.0)
        assert stream.ledger.fates["unwanted"] == 64
        assert stream.ledger.unaccounted_frames == 0

    run(test())


# --- the stream: a dead camera -----------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [LinkLost("cam", "unplugged"), DriverError("cam", "smoke"), None], ids=repr
)
def test_a_dead_camera_fails_all_who_wait(end: Exception | None) -> None:
    async def test() -> None:
        camera = FakeCamera()
        camera.spoil = lambda f: []
        live = LiveLane()
        lane = RecordLane(4, "stall")
        errors: list[str] = []

        async def wait(what: Coroutine[Any, Any, Any]) -> None:
            try:
                await what
            except DriverError as error:
                errors.append(type(error).__name__)

        async def all_of(frames: AsyncIterator[Any]) -> None:
            async for _ in frames:
                pass

        async with FrameStream(camera, record=lane, live=live) as stream:
            numbers = [await stream.trigger(1.0) for _ in range(2)]
            camera.is_dead = True
            async with asyncio.TaskGroup() as group:
                for what in (
                    stream.frame(numbers[0], 1e3),
                    stream.frame(numbers[1], 1e3),
                    stream.trigger(1e3),
                    all_of(live.frames()),
                    all_of(lane.frames()),
                ):
                    group.create_task(wait(what))
                await asyncio.sleep(0.1)
                camera.queue.put_nowait(end)
            assert now_s() < 1.0
            assert len(errors) == 5
            assert stream.fault is not None
            with pytest.raises(DriverError):
                await stream.trigger(1.0)

    run(test())


def test_a_frame_that_came_before_the_end_can_still_be_asked_for() -> None:
    async def test() -> None:
        camera = FakeCamera()
        async with FrameStream(camera) as stream:
            number = await stream.trigger(1.0)
            await asyncio.sleep(0.1)
            camera.queue.put_nowait(LinkLost("cam", "unplugged"))
            await asyncio.sleep(0.1)
            assert (await stream.frame(number, 1.0)).number == number

    run(test())


def test_a_counter_that_runs_backwards_is_noticed() -> None:
    async def test() -> None:
        camera = FakeCamera(*(frame_of(n) for n in range(100, 200)))
        for number in range(70):
            camera.queue.put_nowait(frame_of(number))
        async with FrameStream(camera) as stream:
            await faulted(stream)
            assert isinstance(stream.fault, BadFrame)
            assert "backwards" in str(stream.fault)

    run(test())


def test_an_error_of_ours_in_reading_is_not_hidden() -> None:
    async def test() -> None:
        camera = FakeCamera(frame_of(0), MissingFrames(1, 1, "x"))

        def broken(gap: MissingFrames) -> None:
            raise ZeroDivisionError

        with pytest.raises(ExceptionGroup) as group:
            async with FrameStream(camera, on_missing=broken) as stream:
                await asyncio.sleep(10.0)
        assert group.group_contains(ZeroDivisionError)
        assert isinstance(stream.fault, LinkLost)

    run(test())


def test_an_error_of_the_user_leaves_as_itself() -> None:
    async def test() -> None:
        with pytest.raises(ZeroDivisionError):
            async with FrameStream(FakeCamera()):
                raise ZeroDivisionError

    run(test())


# --- lanes -------------------------------------------------------------------------------------


def test_the_record_lane_stalls_the_reading_and_loses_nothing() -> None:
    async def test() -> None:
        camera = FakeCamera(*(frame_of(n) for n in range(50)))
        lane = RecordLane(4, "stall")
        kept = []

        async def recorder() -> None:
            async for frame in lane.frames():
                kept.append(frame.number)
                await asyncio.sleep(0.1)
                if len(kept) == 50:
                    return

        async with FrameStream(camera, record=lane) as stream:
            await asyncio.sleep(0.05)
            assert camera.queue.qsize() >= 45  # the reading stands still
            await recorder()
        assert kept == list(range(50))
        assert (lane.most_used_frames, lane.put_frames) == (4, 50)
        assert lane.stalls > 0
        assert stream.ledger.fates["kept"] == 50
        assert stream.ledger.unaccounted_frames == 0

    run(test())


def test_a_lane_that_may_not_stall_ends_the_stream_instead_of_overwriting() -> None:
    async def test() -> None:
        camera = FakeCamera(*(frame_of(n) for n in range(50)))
        lane = RecordLane(4, "fault")
        async with FrameStream(camera, record=lane) as stream:
            await faulted(stream)
            assert isinstance(stream.fault, RecordLaneFull)
        kept = []
        with pytest.raises(RecordLaneFull):
            async for frame in lane.frames():
                kept.append(frame.number)
        assert kept == [0, 1, 2, 3]
        assert stream.ledger.fates == {**stream.ledger.fates, "kept": 4, "lost": 1}
        assert stream.ledger.unaccounted_frames == 0

    run(test())


async def faulted(stream: FrameStream) -> None:
    while stream.fault is None:  # noqa: ASYNC110
        await asyncio.sleep(0)


def test_closing_a_stalled_stream_does_not_hang_and_accounts_for_the_frame() -> None:
    async def test() -> None:
        camera = FakeCamera(*(frame_of(n) for n in range(10)))
        async with FrameStream(camera, record=RecordLane(2, "stall")) as stream:
            await asyncio.sleep(0.1)
        assert stream.ledger.fates == {**stream.ledger.fates, "kept": 2, "lost": 1}
        assert stream.ledger.unaccounted_frames == 0

    run(test())


def test_the_live_lane_shows_the_newest_and_counts_what_was_skipped() -> None:
    async def test() -> None:
        camera = FakeCamera()
        live = LiveLane()
        slow: list[tuple[int, int]] = []
        quick: list[int] = []

        async def viewer(pause_s: float, seen: list[Any], is_slow: bool) -> None:
            with pytest.raises(LinkLost):
                async for frame, skipped in live.frames():
                    seen.append((frame.number, skipped) if is_slow else frame.number)
                    await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as group:
            group.create_task(viewer(0.0, quick, False))
            group.create_task(viewer(0.1, slow, True))
            async with FrameStream(camera, live=live) as stream:
                for number in range(30):
                    camera.queue.put_nowait(frame_of(number))
                    await asyncio.sleep(0.03)
        assert quick == list(range(30))
        assert slow[0] == (0, 0)
        assert all(b[0] - a[0] - 1 == b[1] for a, b in pairwise(slow))
        assert sum(skipped for _, skipped in slow) == live.skipped_frames > 10
        assert stream.ledger.fates["shown"] == 30
        assert stream.ledger.unaccounted_frames == 0

    run(test())


def test_what_no_viewer_saw_is_dropped_by_live_and_says_so() -> None:
    async def test() -> None:
        camera = FakeCamera(*(frame_of(n) for n in range(10)))
        live = LiveLane()
        async with FrameStream(camera, live=live) as stream:
            await drained(camera)
            assert live.newest is not None
            assert live.newest.number == 9
        assert stream.ledger.fates["dropped_by_live"] == 10
        assert stream.ledger.unaccounted_frames == 0

    run(test())


def test_a_triggered_frame_is_kept_even_when_it_is_shown_too() -> None:
    async def test() -> None:
        camera = FakeCamera()
        live = LiveLane()
        async with FrameStream(camera, live=live) as stream:
            for _ in range(5):
                await stream.snap(StillMotion(), LIGHT, 1.0)  # type: ignore[arg-type]
        assert stream.ledger.fates["kept"] == 5
        assert live.put_frames == 5
        assert stream.ledger.unaccounted_frames == 0

    run(test())


# --- cost --------------------------------------------------------------------------------------


def test_a_frame_costs_little() -> None:
    """From the camera's iterator through ledger, live and record lane to the recorder."""
    count = 2000
    pixels = np.zeros((512, 512), np.uint8)

    class Quick(FakeCamera):
        shape_px = (512, 512)

        async def frames(self) -> AsyncIterator[Frame | MissingFrames]:
            for number in range(count):
                yield replace(frame_of(number), pixels=pixels)
                await asyncio.sleep(0)

    async def bare() -> None:
        async for _ in Quick().frames():
            pass

    async def streamed() -> None:
        lane, seen = RecordLane(8, "stall"), 0
        async with FrameStream(Quick(), record=lane, live=LiveLane()):
            with pytest.raises(LinkLost):
                async for _ in lane.frames():
                    seen += 1
        assert seen == count

    def best_s(what: Callable[[], Coroutine[Any, Any, None]]) -> float:
        took = []
        for _ in range(3):
            began = time.perf_counter()
            asyncio.run(what())
            took.append(time.perf_counter() - began)
        return min(took)

    per_frame_s = (best_s(streamed) - best_s(bare)) / count
    assert per_frame_s < 100e-6, f"{per_frame_s * 1e6:.0f} us a frame"
