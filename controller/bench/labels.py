"""Does every kept frame carry the right number when the link loses, doubles and swaps frames?

Every picture has its true number written into its pixels, so the label can be checked against what
the frame shows. Two paths: triggered frames, asked for by the number of their exposure, several in
flight as in a scan; and a free-running camera into the record lane. The baseline is what matching
by order of arrival makes of the very same frames: the first lost one shifts all that follow.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from controller.bench.memory_instrument import MemoryCamera, MemoryInstrument
from controller.bench.numbers import share_row
from controller.errors import FrameMissing
from controller.figures import Row
from controller.safety import Expose
from controller.stream import Exposure, FrameStream, RecordLane
from drivers.api import Frame, MissingFrames, Pixels

_RATE: Final = 0.01  # of each kind of mischief
_IN_FLIGHT: Final = 6
_SHAPE_PX: Final = (16, 16)
_EXPOSE: Final = Expose(1e-3, 10.0, 10.0, "bench")
_TIMEOUT_S: Final = 5.0


def measure(quick: bool, seed: int) -> list[Row]:
    """Share of right labels, and of losses that were named."""
    frames = 4_000 if quick else 50_000
    triggered = asyncio.run(_triggered(frames, seed))
    recorded = asyncio.run(_recorded(frames, seed + 1))
    rows = []
    for name, tally in (("triggered", triggered), ("free-running", recorded)):
        by_arrival = sum(i == number for i, number in enumerate(tally.link.arrived))
        rows += [
            share_row(
                f"{name}: kept frames with the right number",
                tally.right,
                tally.kept,
                1.0,
                baseline=by_arrival / len(tally.link.arrived),
                note=f"{tally.link.mischief}; baseline: by order of arrival",
            ),
            share_row(
                f"{name}: lost frames named",
                len(tally.link.dropped & tally.named),
                len(tally.link.dropped),
                1.0,
            ),
            Row(
                f"{name}: frames called lost that came",
                len(tally.named - tally.link.dropped),
                "frames",
                0.0,
                "lower",
                n=frames,
            ),
            Row(f"{name}: unaccounted", tally.unaccounted, "frames", 0.0, "lower", n=frames),
        ]
    return rows


@dataclass(slots=True)
class BadLink:
    """A link with a seeded hand in the frames' way; `arrived` is what came out of it, in order."""

    random: random.Random
    rate: float
    arrived: list[int] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    doubled: int = 0
    swapped: int = 0
    _held: list[int] = field(default_factory=list)

    def __call__(self, number: int) -> Sequence[int]:
        """What arrives when `number` was exposed."""
        late, self._held = self._held, []
        throw = self.random.random() / self.rate
        if throw < 1.0:
            self.dropped.add(number)
            came = late
        elif throw < 2.0:
            self.doubled += 1
            came = [number, number, *late]
        elif throw < 3.0:
            self.swapped += 1
            self._held = [number]
            came = late
        else:
            came = [number, *late]
        self.arrived += came
        return came

    @property
    def mischief(self) -> str:
        """What was done, in words."""
        return f"{len(self.dropped)} dropped, {self.doubled} doubled, {self.swapped} out of order"


@dataclass(slots=True)
class _Tally:
    link: BadLink
    right: int = 0
    kept: int = 0
    unaccounted: int = 0
    named: set[int] = field(default_factory=set)

    def name(self, gap: MissingFrames) -> None:
        self.named.update(range(gap.first, gap.last + 1))

    def keep(self, frame: Frame, number: int) -> None:
        self.kept += 1
        self.right += number == frame.number == number_in(frame.pixels)


def picture_of(number: int) -> Pixels:
    """A picture that shows its number."""
    pixels = np.zeros(_SHAPE_PX, np.uint8)
    pixels.reshape(-1)[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    pixels.setflags(write=False)
    return pixels


def number_in(pixels: Pixels) -> int:
    """The number that a picture shows."""
    return int.from_bytes(pixels.reshape(-1)[:8].tobytes(), "little")


def _camera(link: BadLink) -> MemoryCamera:
    return MemoryCamera([picture_of(0)], link=link, picture_of=picture_of)


async def _triggered(frames: int, seed: int) -> _Tally:
    """As in a scan: expose, go on, and collect each frame by its number a few exposures later."""
    link = BadLink(random.Random(seed), _RATE)
    tally = _Tally(link)
    instrument = MemoryInstrument(_camera(link))
    waiting: deque[Exposure] = deque()
    async with instrument, instrument.motion() as motion:
        async with FrameStream(instrument.camera, on_missing=tally.name) as stream:

            async def collect() -> None:
                exposure = waiting.popleft()
                try:
                    frame = await stream.frame(exposure.number, _TIMEOUT_S, exposure.settled_at_s)
                except FrameMissing:
                    return
                tally.keep(frame, exposure.number)

            for _ in range(frames):
                waiting.append(await stream.expose(motion, _EXPOSE))
                # A loss is known for certain only 16 numbers later; a scan waits for it likewise.
                if len(waiting) >= _IN_FLIGHT + 20:
                    await collect()
            instrument.camera.close()
            while waiting:
                try:
                    await collect()
                except Exception:  # noqa: BLE001 - the end of the stream: the rest was not decided
                    break
        tally.unaccounted = stream.ledger.unaccounted_frames
    return tally


async def _recorded(frames: int, seed: int) -> _Tally:
    """A free-running camera into the lossless lane."""
    link = BadLink(random.Random(seed), _RATE)
    tally = _Tally(link)
    camera = _camera(link)
    lane = RecordLane(32, "stall")
    async with FrameStream(camera, record=lane, on_missing=tally.name) as stream:
        recorded = lane.frames()
        for number in range(frames):
            await camera.trigger()
            while camera.waiting_frames or lane.used_frames:
                frame = await anext(recorded)
                tally.keep(frame, frame.number)
                await asyncio.sleep(0)
            if number == frames - 1:
                break
    tally.unaccounted = stream.ledger.unaccounted_frames
    return tally
