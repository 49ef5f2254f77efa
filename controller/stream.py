"""Frames from the camera to whoever needs them, every source number accounted for.

Frames are matched by the SOURCE'S counter, never by arrival, so a lost, doubled or late frame can
never shift the labels of the others. Two lanes leave the stream: the record lane is lossless and
bounded, it stalls the camera or fails, it never overwrites; the live lane always shows the newest
frame and counts what a viewer skipped. No pixel is copied: lanes hand on the same read-only array.

The path of one frame is a handful of dictionary operations on the loop's own thread: no task, no
log line, no arithmetic on pixels.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, TypeAlias

import numpy as np

from controller.errors import (
    BadFrame,
    ControllerError,
    FrameMissing,
    FrameTimeout,
    RecordLaneFull,
    StaleFrame,
    StreamError,
)
from controller.motion import Motion
from controller.safety import Expose
from drivers.api import Camera, Frame, MissingFrames
from drivers.errors import DriverError, LinkLost

Arrival: TypeAlias = Literal["new", "reordered", "duplicate", "late"]
# kept: recorded, or handed to whoever triggered it. lost: the record lane could not take it.
Fate: TypeAlias = Literal["kept", "shown", "dropped_by_live", "unwanted", "stale", "bad", "lost"]

_REORDER_FRAMES: Final = 8  # how late a frame may come and still be itself
_UNCLAIMED_FRAMES: Final = 64  # triggered, arrived, and nobody has asked for them yet
_BACKWARDS_FRAMES: Final = 64  # old numbers in a row: the source has started to count anew
_EXPOSURE_MARGIN_S: Final = 2.0  # beyond the exposure itself: shutter, trigger line, driver


def is_evidence(frame: Frame, settled_at_s: float, moved_at_s: float = math.inf) -> bool:
    """Whether the instrument stood still for the whole exposure.

    moved_at_s: when the next move began; infinite if none has.
    """
    return frame.exposed_from_s >= settled_at_s and frame.exposed_until_s <= moved_at_s


class FrameLedger:
    """Every source number since the first, each with exactly one end.

    A number is received, missing, or awaited (skipped a moment ago, may still come out of order).
    `close` declares what is still awaited missing. Memory grows with the gaps, not the frames.
    """

    def __init__(self, reorder_frames: int = _REORDER_FRAMES) -> None:
        """A number skipped is declared missing once the source is `reorder_frames` past it."""
        self._reorder_frames = reorder_frames
        self._first: int | None = None  # the lowest number seen; None: nothing yet
        self._highest = 0
        self._awaited: dict[int, None] = {}
        self._promised: tuple[int, int] | None = None  # lowest and highest; None: none
        self._gaps: list[MissingFrames] = []  # by number, disjoint
        self._fates: dict[Fate, int] = {
            "kept": 0,
            "shown": 0,
            "dropped_by_live": 0,
            "unwanted": 0,
            "stale": 0,
            "bad": 0,
            "lost": 0,
        }
        self.received_frames = 0  # each number once
        self.missing_frames = 0
        self.duplicate_frames = 0
        self.reordered_frames = 0  # received, but after a higher number
        self.late_frames = 0  # came after they had been declared missing; not used
        self.unnumbered_frames = 0  # without a usable number; not used
        self.backwards_frames = 0  # duplicates and late ones since the last new number

    def book(self, number: int) -> tuple[Arrival, tuple[MissingFrames, ...]]:
        """Enter an arrival; also what has become missing by it.

        Only "new" and "reordered" frames may be used, the others have been dealt with before.
        """
        if self._first is None:
            self._first = self._highest = number
            self.received_frames = 1
            return "new", ()
        if number > self._highest:
            lost = self._skip_to(number)
            self._highest = number
            self.received_frames += 1
            self.backwards_frames = 0
            return "new", (*lost, *self._expire())
        if number < self._first and self._first - number <= self._reorder_frames:
            # The very first frame came out of order.
            self._awaited.update(dict.fromkeys(range(number + 1, self._first)))
            self._first = number
            self._awaited[number] = None
        if number in self._awaited:
            del self._awaited[number]
            self.received_frames += 1
            self.reordered_frames += 1
            self.backwards_frames = 0
            return "reordered", ()
        self.backwards_frames += 1
        if self.gap_of(number) is not None:
            self.late_frames += 1
            return "late", ()
        self.duplicate_frames += 1
        return "duplicate", ()

    def book_missing(self, report: MissingFrames) -> tuple[MissingFrames, ...]:
        """Enter what the source says it lost; returns the numbers that this settles."""
        if report.last < report.first:
            return ()
        if self._first is None:
            self._first = report.first
            self._highest = report.first - 1
        lost: list[MissingFrames] = []
        if report.first < self._first and self._first - report.last <= self._reorder_frames:
            # Lost before the first that came, reported after it.
            last = min(report.last, self._first - 1)
            self._awaited.update(dict.fromkeys(range(last + 1, self._first)))
            self._first = report.first
            lost.append(self._lose(report.first, last, report.reason))
        for number in [n for n in self._awaited if report.first <= n <= report.last]:
            del self._awaited[number]
            lost.append(self._lose(number, number, report.reason))
        if report.last > self._highest:
            first = max(report.first, self._highest + 1)
            lost += self._skip_to(first)
            lost.append(self._lose(first, report.last, report.reason))
            self._highest = report.last
        return (*lost, *self._expire())

    def expect(self, number: int) -> None:
        """The source has promised this number: if it never comes, `close` names it."""
        if self._promised is None:
            self._promised = (number, number)
        else:
            self._promised = (min(self._promised[0], number), max(self._promised[1], number))

    def close(self) -> tuple[MissingFrames, ...]:
        """Declare missing what is still awaited; afterwards `unaccounted_frames` must be 0."""
        lost: list[MissingFrames] = []
        if self._promised is not None:
            low, high = self._promised
            if self._first is None:
                self._first, self._highest = low, low - 1
            if low < self._first:
                lost.append(self._lose(low, self._first - 1, "it never came"))
                self._first = low
            if high > self._highest:
                lost.append(self._lose(self._highest + 1, high, "it never came"))
                self._highest = high
        return (*self._expire(everything=True), *lost)

    def gap_of(self, number: int) -> MissingFrames | None:
        """The gap that swallowed `number`; None: it is not missing."""
        at = bisect.bisect_right(self._gaps, number, key=lambda known: known.first)
        gap = self._gaps[at - 1] if at > 0 else None
        return gap if gap is not None and number <= gap.last else None

    def end(self, fate: Fate) -> None:
        """Enter how one received frame ended."""
        self._fates[fate] += 1

    @property
    def missing(self) -> tuple[MissingFrames, ...]:
        """All gaps by number, neighbours with the same reason joined."""
        return tuple(self._gaps)

    @property
    def fates(self) -> dict[Fate, int]:
        """How many received frames ended how."""
        return dict(self._fates)

    @property
    def span_frames(self) -> int:
        """From the first number to the highest."""
        return 0 if self._first is None else self._highest - self._first + 1

    @property
    def undecided_frames(self) -> int:
        """Received and still on their way through the controller."""
        return self.received_frames - sum(self._fates.values())

    @property
    def unaccounted_frames(self) -> int:
        """Numbers without an end. 0 after `close`, whatever the link did."""
        return abs(self.span_frames - self.received_frames - self.missing_frames) + abs(
            self.undecided_frames
        )

    def _skip_to(self, number: int) -> list[MissingFrames]:
        """Await the numbers between the highest and `number`; far ones are missing at once."""
        first = self._highest + 1
        nearest = max(first, number - self._reorder_frames)
        lost = []
        if nearest > first:
            lost.append(self._lose(first, nearest - 1, "the counter jumped"))
        self._awaited.update(dict.fromkeys(range(nearest, number)))
        return lost

    def _expire(self, *, everything: bool = False) -> tuple[MissingFrames, ...]:
        if not self._awaited:
            return ()
        oldest = math.inf if everything else self._highest - self._reorder_frames
        gone = [number for number in self._awaited if number < oldest]
        for number in gone:
            del self._awaited[number]
        return tuple(self._lose(number, number, "the counter jumped") for number in sorted(gone))

    def _lose(self, first: int, last: int, reason: str) -> MissingFrames:
        gap = MissingFrames(first, last, reason)
        self.missing_frames += last - first + 1
        at = bisect.bisect_left(self._gaps, first, key=lambda known: known.first)
        before = self._gaps[at - 1] if at > 0 else None
        if before is not None and before.last + 1 == first and before.reason == reason:
            self._gaps[at - 1] = MissingFrames(before.first, last, reason)
        else:
            self._gaps.insert(at, gap)
        return gap


class RecordLane:
    """Lossless and bounded: frames wait here for the recorder.

    when_full: "stall" holds the reading of the camera, whose own buffer then fills and who reports
    what it had to drop; "fault" ends the stream with RecordLaneFull. Nothing is ever overwritten.
    """

    def __init__(self, capacity_frames: int, when_full: Literal["stall", "fault"]) -> None:
        """One recorder takes frames out; the stream closes the lane at its end."""
        self.capacity_frames = capacity_frames
        self.when_full: Literal["stall", "fault"] = when_full
        self.most_used_frames = 0
        self.stalls = 0
        self.put_frames = 0
        self._frames: deque[Frame] = deque()
        self._fault: Exception | None = None
        self._is_closed = False
        self._news = asyncio.Event()  # something to take, or the end
        self._room = asyncio.Event()

    @property
    def used_frames(self) -> int:
        """Frames waiting now."""
        return len(self._frames)

    async def put(self, frame: Frame) -> None:
        """Hand a frame over. Raises RecordLaneFull in a lane that may not stall."""
        if len(self._frames) >= self.capacity_frames:
            if self.when_full == "fault":
                raise RecordLaneFull(self.capacity_frames, frame.number)
            self.stalls += 1
            while len(self._frames) >= self.capacity_frames:
                self._room.clear()
                await self._room.wait()
        self._frames.append(frame)
        self.put_frames += 1
        self.most_used_frames = max(self.most_used_frames, len(self._frames))
        self._news.set()

    def close(self, fault: Exception | None) -> None:
        """End the lane: what is in it can still be taken, then `frames` ends or raises `fault`."""
        self._is_closed = True
        self._fault = fault
        self._news.set()

    async def frames(self) -> AsyncIterator[Frame]:
        """Take frames out in the order of arrival, until the lane is closed and empty."""
        while True:
            while self._frames:
                frame = self._frames.popleft()
                self._room.set()
                yield frame
            if self._is_closed:
                if self._fault is not None:
                    raise self._fault
                return
            self._news.clear()
            await self._news.wait()


class LiveLane:
    """Newest wins: any number of viewers, each sees the newest frame it has not seen yet."""

    def __init__(self) -> None:
        """The stream closes the lane at its end."""
        self.newest: Frame | None = None
        self.put_frames = 0
        self.skipped_frames = 0  # over all viewers
        self._seen = 0  # how many were shown to at least one viewer
        self._newest_was_seen = False
        self._fault: Exception | None = None
        self._is_closed = False
        self._news = asyncio.Event()

    def put(self, frame: Frame) -> bool:
        """Show a frame; whether the one it replaces was seen by anybody (or there was none)."""
        was_seen = self._newest_was_seen or self.newest is None
        self.newest = frame
        self._newest_was_seen = False
        self.put_frames += 1
        self._news.set()
        return was_seen

    def close(self, fault: Exception | None) -> bool:
        """End all viewers; whether the last frame was seen by anybody (or there was none)."""
        self._is_closed = True
        self._fault = fault
        self._news.set()
        return self._newest_was_seen or self.newest is None

    async def frames(self) -> AsyncIterator[tuple[Frame, int]]:
        """For one viewer: (frame, how many it missed since the last), until the lane closes."""
        seen = self.put_frames if self.newest is None else self.put_frames - 1
        while not self._is_closed:
            if self.newest is not None and self.put_frames > seen:
                skipped = self.put_frames - seen - 1
                seen = self.put_frames
                self.skipped_frames += skipped
                self._newest_was_seen = True
                yield self.newest, skipped
                continue
            self._news.clear()
            await self._news.wait()
        if self._fault is not None:
            raise self._fault


@dataclass(frozen=True, slots=True)
class Exposure:
    """Light was taken: the frame with this number will show the sample as it stood."""

    number: int
    settled_at_s: float  # everything stood still since
    began_s: float
    ended_s: float


class FrameStream:
    """The one consumer of a camera; use with `async with`, inside the instrument's context."""

    def __init__(
        self,
        camera: Camera,
        *,
        ledger: FrameLedger | None = None,
        record: RecordLane | None = None,
        live: LiveLane | None = None,
        on_missing: Callable[[MissingFrames], None] | None = None,
    ) -> None:
        """`record` gets every usable frame, `live` the newest; `on_missing` is told of each gap.

        Without a record lane, a frame is kept by whoever triggered it and asks for it.
        """
        self.ledger = ledger or FrameLedger()
        self._camera = camera
        self._record = record
        self._live = live
        self._on_missing = on_missing
        self._wanted: dict[int, asyncio.Future[Frame]] = {}  # triggered, not yet handed out
        self._triggers = 0  # under way: their numbers are not known yet
        self._early: dict[int, Frame | BadFrame] = {}  # came before its number was known
        self._is_newest_unclaimed = False  # the live lane is the newest frame's only way out
        self._waits: set[asyncio.Timeout] = set()
        self._fault: Exception | None = None
        self._group: asyncio.TaskGroup | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> FrameStream:
        """Start reading."""
        self._group = await asyncio.TaskGroup().__aenter__()
        self._reader = self._group.create_task(self._read(), name=f"{self._camera.name}.frames")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop reading, fail who still waits, close the lanes and the ledger."""
        group, self._group = self._group, None
        if group is None or self._reader is None:
            return
        self._reader.cancel()
        try:
            await group.__aexit__(None, None, None)
        finally:
            # A reader that was cancelled before its first step has not said so itself.
            self._end(self._fault or LinkLost(self._camera.name, "the stream was closed"))
            self._tell_missing(self.ledger.close())
            if self._record is None:
                for waiting in self._wanted.values():
                    if not waiting.cancelled() and waiting.exception() is None:
                        self.ledger.end("unwanted")
            self._wanted.clear()

    @property
    def fault(self) -> Exception | None:
        """Why there will be no more frames; None: the stream runs."""
        return self._fault

    async def expose(
        self, motion: Motion, exposure: Expose, margin_s: float = _EXPOSURE_MARGIN_S
    ) -> Exposure:
        """Take light once everything has settled; returns when the exposure has ENDED.

        No move can begin meanwhile; afterwards the stage may go on while the frame is read out.
        Raises UnsafeCommand, Halted, FrameTimeout, StreamError, DriverError.
        """
        async with motion.still(exposure) as settled_at_s:
            began_s = motion.clock()
            number = await self.trigger(exposure.exposure_s + margin_s)
            return Exposure(number, settled_at_s, began_s, motion.clock())

    async def trigger(self, timeout_s: float) -> int:
        """Expose one frame, whatever moves; its number. Raises FrameTimeout, DriverError."""
        self._check()
        if len(self._wanted) >= _UNCLAIMED_FRAMES:
            msg = (
                f"{self._camera.name}: {len(self._wanted)} triggered frames wait to be asked for; "
                "take them with `frame` before exposing more"
            )
            raise StreamError(msg)
        with self._triggering():
            try:
                async with asyncio.timeout(timeout_s) as wait:
                    self._waits.add(wait)
                    try:
                        number = await self._camera.trigger()
                    finally:
                        self._waits.discard(wait)
            except TimeoutError:
                self._check()
                raise FrameTimeout(self._camera.name, None, timeout_s) from None
            self._want(number)
            return number

    async def frame(self, number: int, timeout_s: float, settled_at_s: float = -math.inf) -> Frame:
        """The frame of a trigger, once; it may have come long before or be on its way.

        Raises FrameMissing as soon as the number is known to be lost, FrameTimeout (the number is
        then given up), BadFrame, StaleFrame (exposed before `settled_at_s`), what ended the stream.
        """
        waiting = self._wanted.get(number)
        if waiting is None:
            self._check()
            raise FrameMissing(number, "it was not triggered, or has been handed out or given up")
        try:
            if not waiting.done():
                async with asyncio.timeout(timeout_s):
                    await asyncio.wait({waiting})  # leaves it alone when this wait ends early
        except TimeoutError:
            if not waiting.done():
                waiting.cancel()
                del self._wanted[number]
                raise FrameTimeout(self._camera.name, number, timeout_s) from None
        self._wanted.pop(number, None)
        frame = waiting.result()
        is_fresh = is_evidence(frame, settled_at_s)
        if self._record is None:
            self.ledger.end("kept" if is_fresh else "stale")
        if not is_fresh:
            raise StaleFrame(number, frame.exposed_from_s, settled_at_s)
        return frame

    async def snap(
        self, motion: Motion, exposure: Expose, timeout_s: float, attempts: int = 3
    ) -> Frame:
        """Expose and wait for the frame; a frame that is lost, late or bad is exposed again.

        Raises what the last attempt raised; at once what another exposure cannot cure.
        """
        for _ in range(attempts - 1):
            try:
                return await self._snap_once(motion, exposure, timeout_s)
            except (FrameMissing, FrameTimeout, BadFrame, StaleFrame):
                self._check()
        return await self._snap_once(motion, exposure, timeout_s)

    async def _snap_once(self, motion: Motion, exposure: Expose, timeout_s: float) -> Frame:
        taken = await self.expose(motion, exposure)
        return await self.frame(taken.number, timeout_s, taken.settled_at_s)

    # --- reading ---------------------------------------------------------------------------

    async def _read(self) -> None:
        """Book each arrival and hand it on; ends with the camera, whose waiters then fail."""
        fault: Exception = LinkLost(self._camera.name, "reading was stopped")
        arrivals = self._camera.frames()
        try:
            async for item in arrivals:
                if isinstance(item, MissingFrames):
                    self._tell_missing(self.ledger.book_missing(item))
                else:
                    await self._take(item)
            fault = LinkLost(self._camera.name, "the camera closed its stream; open it again")
        except (DriverError, ControllerError) as error:
            fault = error
        finally:
            self._end(fault)
            if isinstance(arrivals, AsyncGenerator):
                await arrivals.aclose()

    async def _take(self, frame: Frame) -> None:
        number = frame.number
        if type(number) is not int or number < 0:
            self.ledger.unnumbered_frames += 1
            return
        arrival, lost = self.ledger.book(number)
        if lost:
            self._tell_missing(lost)
        if arrival in ("duplicate", "late"):
            if self.ledger.backwards_frames > _BACKWARDS_FRAMES:
                reason = "the source's counter ran backwards; open the camera again"
                raise BadFrame(self._camera.name, number, reason)
            return
        fault = _fault_of(frame, self._camera)
        if fault:
            self.ledger.end("bad")
            self._deliver(number, BadFrame(self._camera.name, number, fault))
            return
        is_claimed = self._deliver(number, frame)
        if self._live is not None:
            self._book_newest(self._live.put(frame))
        if self._record is not None:
            fate: Fate = "lost"  # unless the lane takes it: it may be full, or closed meanwhile
            try:
                await self._record.put(frame)
                fate = "kept"
            finally:
                self.ledger.end(fate)
        elif not is_claimed:
            if self._live is None:
                self.ledger.end("unwanted")
            else:
                self._is_newest_unclaimed = True

    def _deliver(self, number: int, what: Frame | BadFrame) -> bool:
        """Give a frame, or why there is none, to whoever triggered it; whether there is one."""
        waiting = self._wanted.get(number)
        if waiting is not None:
            _settle(waiting, what)
            return True
        if self._triggers:
            if len(self._early) >= _UNCLAIMED_FRAMES:
                self._give_up_early(next(iter(self._early)))
            self._early[number] = what
            return True
        return False

    def _want(self, number: int) -> None:
        """Expect a frame that may have come, or been lost, before its number was known."""
        self.ledger.expect(number)
        waiting: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        # A failure that nobody asks for is in the ledger; it is not a lost exception.
        waiting.add_done_callback(_retrieve)
        replaced = self._wanted.get(number)
        if replaced is not None:
            reason = "the camera gave its number to a second exposure"
            _settle(replaced, BadFrame(self._camera.name, number, reason))
        self._wanted[number] = waiting
        early = self._early.pop(number, None)
        gap = self.ledger.gap_of(number)
        if early is not None:
            _settle(waiting, early)
        elif gap is not None:
            _settle(waiting, FrameMissing(number, gap.reason))
        elif self._fault is not None:
            _settle(waiting, self._fault)

    def _tell_missing(self, lost: tuple[MissingFrames, ...]) -> None:
        for gap in lost:
            for number in [n for n in self._wanted if gap.first <= n <= gap.last]:
                _settle(self._wanted[number], FrameMissing(number, gap.reason))
            if self._on_missing is not None:
                self._on_missing(gap)

    def _book_newest(self, was_seen: bool) -> None:
        """Enter the end of the frame that the live lane just replaced."""
        if self._is_newest_unclaimed:
            self.ledger.end("shown" if was_seen else "dropped_by_live")
        self._is_newest_unclaimed = False

    @contextmanager
    def _triggering(self) -> Iterator[None]:
        self._triggers += 1
        try:
            yield
        finally:
            self._triggers -= 1
            if not self._triggers:
                for number in tuple(self._early):
                    self._give_up_early(number)

    def _give_up_early(self, number: int) -> None:
        """It came while a trigger was under way, but belongs to none."""
        if isinstance(self._early.pop(number), Frame) and self._record is None:
            self.ledger.end("unwanted")

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _end(self, fault: Exception) -> None:
        """No frame will come any more: fail all waits, close the lanes. Idempotent."""
        if self._fault is not None:
            return
        self._fault = fault
        for waiting in self._wanted.values():
            _settle(waiting, fault)
        now_s = asyncio.get_running_loop().time()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(now_s)
        if self._live is not None:
            self._book_newest(self._live.close(fault))
        if self._record is not None:
            self._record.close(fault)


def _settle(waiting: asyncio.Future[Frame], what: Frame | Exception) -> None:
    if waiting.done():
        return
    if isinstance(what, Frame):
        waiting.set_result(what)
    else:
        waiting.set_exception(what)


def _retrieve(waiting: asyncio.Future[Frame]) -> None:
    if not waiting.cancelled():
        waiting.exception()


def _fault_of(frame: Frame, camera: Camera) -> str:
    """What is wrong with a frame, "" if nothing; no pixel is looked at."""
    pixels = frame.pixels
    if not isinstance(pixels, np.ndarray) or pixels.shape[:2] != tuple(camera.shape_px):
        came = getattr(pixels, "shape", type(pixels).__name__)
        return f"shape {came}, the camera promised {tuple(camera.shape_px)}"
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] == 3):
        return f"shape {pixels.shape}, allowed are (h, w) and (h, w, 3)"
    promised = np.uint8 if frame.bit_depth <= 8 else np.uint16
    if pixels.dtype != promised:
        return f"dtype {pixels.dtype} with {frame.bit_depth} significant bits"
    pose = frame.pose
    numbers = (
        frame.exposed_from_s,
        frame.exposed_until_s,
        pose.stage_x_um,
        pose.stage_y_um,
        pose.focus_z_um,
        frame.pixel_size_nm,
    )
    if not all(map(math.isfinite, numbers)):
        return "a time, a position or the pixel size is not finite"
    if frame.exposed_until_s < frame.exposed_from_s or frame.pixel_size_nm <= 0.0:
        return "the exposure ends before it begins, or a pixel has no size"
    return ""
