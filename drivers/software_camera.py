"""The part of a camera that every instrument made of software shares: numbers, pace, buffer, live.

What is exposed and how a picture comes of it is the `Film`'s business: the simulator's knows a
sample, the replay's a folder of photographs. The camera numbers the exposures, one at a time on the
loop's clock, lets the readout of one overlap the next, and keeps what has been read out until the
one consumer fetches it. What finds no room is lost, and said so: `MissingFrames`, never silence.
"""

# ruff: noqa: D102 - the Protocol in drivers.api says what its methods mean

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from drivers.api import Frame, MissingFrames
from drivers.errors import DriverError, LinkLost, Refused

Latent = TypeVar("Latent")


@dataclass(frozen=True, slots=True)
class CameraTiming:
    """How fast the camera is."""

    min_exposure_s: float
    max_exposure_s: float
    readout_s: float  # from the exposure's end until the pixels are there
    max_rate_hz: float
    rolling_s: float = 0.0  # rolling shutter: the last row begins and ends this much later
    latency_s: float = 0.0  # from the trigger to the light
    buffer_frames: int = 8


class Film(Protocol[Latent]):
    """What the camera looks at; called on the loop's thread, one exposure at a time."""

    def check_link(self) -> None:
        """Raises LinkLost."""

    def begin(self, number: int) -> None:
        """The shutter is about to open. Raises LinkLost or Refused."""

    def expose(self, number: int, from_s: float, until_s: float, exposure_s: float) -> Latent:
        """The shutter has closed; keep all that decides the picture."""
        ...

    async def develop(self, latent: Latent, due_s: float) -> Sequence[Frame]:
        """What arrives at `due_s` or later, in order: the frame, normally."""
        ...

    def left_over(self) -> Sequence[Frame]:
        """Frames held back until the camera closes."""
        ...


async def until(moment_s: float) -> None:
    """Wait for a moment on the loop's clock; never ends before it, as a timer may."""
    loop = asyncio.get_running_loop()
    while (left_s := moment_s - loop.time()) > 0:  # noqa: ASYNC110
        await asyncio.sleep(left_s)


class SoftwareCamera(Generic[Latent]):
    """`drivers.api.Camera` over a film; its instrument opens and closes it."""

    def __init__(
        self,
        name: str,
        shape_px: tuple[int, int],
        bit_depth: int,
        exposure_s: float,
        timing: CameraTiming,
        film: Film[Latent],
    ) -> None:
        self._name = name
        self._shape_px = shape_px
        self._bit_depth = bit_depth
        self._exposure_s = exposure_s
        self._timing = timing
        self._film = film
        self._next_number = 0
        self._last_from_s = -math.inf
        self._read_until_s = -math.inf
        self._is_exposing = False
        self._buffer = FrameBuffer(timing.buffer_frames)
        self._latent: deque[tuple[int, float, Latent]] = deque()  # number, due_s
        self._latent_came = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._live: asyncio.Task[None] | None = None
        self._live_stops = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def shape_px(self) -> tuple[int, int]:
        return self._shape_px

    @property
    def bit_depth(self) -> int:
        return self._bit_depth

    @property
    def exposure_s(self) -> float:
        return self._exposure_s

    async def set_exposure_s(self, exposure_s: float) -> None:
        self._film.check_link()
        low_s, high_s = self._timing.min_exposure_s, self._timing.max_exposure_s
        if not low_s <= exposure_s <= high_s:  # nan too is refused here
            raise Refused(
                self._name,
                f"asked for an exposure of {exposure_s} s; possible: {low_s} to {high_s} s",
            )
        self._exposure_s = float(exposure_s)

    async def trigger(self) -> int:
        self._film.check_link()
        if self._live is not None:
            raise Refused(self._name, "trigger while it free-runs; stop_live first")
        return await self._expose()

    async def start_live(self) -> None:
        self._film.check_link()
        if self._live is not None:
            raise Refused(self._name, "start_live while it free-runs already")
        if self._is_exposing:
            raise Refused(self._name, "start_live while it exposes; wait for the last trigger")
        self._live_stops = False
        self._live = asyncio.create_task(self._free_run(), name=f"{self._name}: live")

    async def stop_live(self) -> None:
        if self._live is None:
            return
        self._live_stops = True
        await asyncio.wait([self._live])
        self._live = None

    def frames(self) -> FrameBuffer:
        return self._buffer

    def open(self) -> None:
        """Start reading out."""
        self._reader = asyncio.create_task(self._read_out(), name=f"{self._name}: readout")

    async def close(self) -> None:
        """Stop everything; what was exposed and not read out is reported, then `frames` ends."""
        try:
            for task in (self._live, self._reader):
                if task is not None and not task.done():
                    task.cancel()
                    await asyncio.wait([task])
        finally:
            self._live = None
            for number, _, _ in self._latent:
                self._buffer.miss(number, "camera closed")
            self._latent.clear()
            for frame in self._film.left_over():
                self._buffer.put(frame)
            self._buffer.end()

    async def _free_run(self) -> None:
        try:
            while not self._live_stops:
                await self._expose()
        except DriverError as error:
            self._buffer.fail(error)

    async def _expose(self) -> int:
        """One exposure at the earliest moment the sensor allows; its number, at its end."""
        if self._is_exposing:
            raise Refused(self._name, "trigger while it exposes; wait for the last trigger")
        self._is_exposing = True
        try:
            return await self._expose_alone()
        finally:
            self._is_exposing = False

    async def _expose_alone(self) -> int:
        timing, exposure_s = self._timing, self._exposure_s
        number = self._next_number
        self._film.begin(number)
        self._next_number += 1
        lasts_s = exposure_s + timing.rolling_s
        from_s = max(
            asyncio.get_running_loop().time() + timing.latency_s,
            self._last_from_s + 1 / timing.max_rate_hz,
            self._read_until_s - lasts_s,  # the last picture must have left the sensor
        )
        until_s = from_s + lasts_s
        due_s = until_s + timing.readout_s
        self._last_from_s, self._read_until_s = from_s, due_s
        try:
            await until(until_s)
            self._film.check_link()
        except (asyncio.CancelledError, LinkLost) as error:
            self._buffer.miss(number, f"the exposure was broken off: {type(error).__name__}")
            raise
        latent = self._film.expose(number, from_s, until_s, exposure_s)
        if len(self._latent) >= timing.buffer_frames:
            self._buffer.miss(number, "frame buffer full")
        else:
            self._latent.append((number, due_s, latent))
            self._latent_came.set()
        return number

    async def _read_out(self) -> None:
        try:
            while True:
                await self._latent_came.wait()
                _, due_s, latent = self._latent[0]
                arrived = await self._film.develop(latent, due_s)
                self._latent.popleft()
                if not self._latent:
                    self._latent_came.clear()
                for frame in arrived:
                    self._buffer.put(frame)
        except Exception as error:  # noqa: BLE001 - whoever waits for frames has to learn of it
            self._buffer.fail(error)


class FrameBuffer:
    """A camera's memory, and the iterator that its one consumer reads; no loss is silent."""

    def __init__(self, room_frames: int) -> None:
        self._room_frames = room_frames
        self._items: deque[Frame | MissingFrames] = deque()
        self._frames = 0  # among the items
        self._changed = asyncio.Event()
        self._has_ended = False
        self._error: Exception | None = None

    def put(self, frame: Frame) -> None:
        """Keep a frame, or say that it is missing."""
        if self._frames >= self._room_frames:
            self.miss(frame.number, "frame buffer full")
            return
        self._items.append(frame)
        self._frames += 1
        self._changed.set()

    def miss(self, number: int, reason: str) -> None:
        """Say that a frame is missing; neighbours become one record, so memory stays bounded."""
        last = self._items[-1] if self._items else None
        if isinstance(last, MissingFrames) and last.last == number - 1 and last.reason == reason:
            self._items[-1] = replace(last, last=number)
        else:
            self._items.append(MissingFrames(number, number, reason))
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """No further frame will come; the consumer gets `error` after what is left."""
        self._error = error
        self._changed.set()

    def end(self) -> None:
        """The camera is closed; the iteration ends after what is left."""
        self._has_ended = True
        self._changed.set()

    def __aiter__(self) -> FrameBuffer:
        return self

    async def __anext__(self) -> Frame | MissingFrames:
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._has_ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        if isinstance(item, Frame):
            self._frames -= 1
        return item
