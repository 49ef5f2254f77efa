"""Whether every kept frame has the right number when the link loses, doubles and swaps frames.

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
from drivers.errors import LinkLost

_RATE: Final = 0.01  # of each kind of mischief
_IN_FLIGHT: Final = 24  # beyond the number of frames after which a gap is taken for a loss
_SHAPE_PX: Final = (16, 16)
_EXPOSE: Final = Expose(1e-3, 10.0, 10.0, "bench")
_TIMEOUT_S: Final = 5.0


def measure(quick: bool, seed: int) -> list[Row]:
    """Share of right labels, and of losses that were named."""
    frames = 4_000 if quick else 50_000
    tallies = {
        "triggered": asyncio.run(triggered(frames, seed)),
        "free-running": asyncio.run(recorded(frames, seed + 1)),
    }
    rows = []
    for name, tally in tallies.items():
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
                len(tally.link.lost & tally.named),
                len(tally.link.lost),
                1.0,
            ),
            Row(
                f"{name}: frames called lost that came",
                len(tally.named - tally.link.lost),
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
    dropped: int = 0
    doubled: int = 0
    swapped: int = 0
    _held: list[int] = field(default_factory=list)

    def __call__(self, number: int) -> Sequence[int]:
        """What arrives when `number` was exposed."""
        late, self._held = self._held, []
        throw = self.random.random() / self.rate
        if throw < 1.0:
            self.dropped += 1
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
    def lost(self) -> set[int]:
        """What never came out, up to the last that did: of later ones no receiver can know."""
        return set(range(max(self.arrived))) - set(self.arrived)

    @property
    def mischief(self) -> str:
        """What was done, in words."""
        return f"{self.dropped} dropped, {self.doubled} doubled, {self.swapped} out of order"


@dataclass(slots=True)
class Tally:
    """What came of the frames behind a bad link."""

    link: BadLink
    right: int = 0
    kept: int = 0
    unaccounted: int = 0
    named: set[int] = field(default_factory=set)

    def name(self, gap: MissingFrames) -> None:
        """Enter numbers that were declared missing."""
        self.named.update(range(gap.first, gap.last + 1))

    def keep(self, frame: Frame, number: int) -> None:
        """Enter a frame that came as `number`."""
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


async def triggered(frames: int, seed: int) -> Tally:
    """As in a scan: expose, go on, and collect each frame by its number some exposures later."""
    link = BadLink(random.Random(seed), _RATE)
    tally = Tally(link)
    instrument = MemoryInstrument(_camera(link))
    waiting: deque[Exposure] = deque()
    async with (
        instrument,
        instrument.motion() as motion,
        FrameStream(instrument.camera, on_missing=tally.name) as stream,
    ):
        for _ in range(frames):
            waiting.append(await stream.expose(motion, _EXPOSE))
            if len(waiting) > _IN_FLIGHT:
                await _collect(stream, waiting.popleft(), tally)
        instrument.camera.close()
        for exposure in waiting:
            await _collect(stream, exposure, tally)
    tally.unaccounted = stream.ledger.unaccounted_frames
    return tally


async def _collect(stream: FrameStream, exposure: Exposure, tally: Tally) -> None:
    try:
        frame = await stream.frame(exposure.number, _TIMEOUT_S, exposure.settled_at_s)
    except (FrameMissing, LinkLost):  # the last few may be cut off by the camera's end
        return
    tally.keep(frame, exposure.number)


async def recorded(frames: int, seed: int) -> Tally:
    """A free-running camera into the lossless lane."""
    link = BadLink(random.Random(seed), _RATE)
    tally = Tally(link)
    camera = _camera(link)
    lane = RecordLane(32, "stall")

    async def record() -> None:
        try:
            async for frame in lane.frames():
                tally.keep(frame, frame.number)
        except LinkLost:  # the camera was closed
            return

    async with (
        asyncio.TaskGroup() as group,
        FrameStream(camera, record=lane, on_missing=tally.name) as stream,
    ):
        recording = group.create_task(record(), name="record")
        for _ in range(frames):
            await camera.trigger()
            await asyncio.sleep(0)
        camera.close()
        await recording
    tally.unaccounted = stream.ledger.unaccounted_frames
    return tally
