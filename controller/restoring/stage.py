"""Between the camera and the live view: each frame that there is time for, restored.

The stage is one viewer of the live lane, so a restorer that is too slow skips frames, counted, and
delays nobody. It works on a thread of its own. A view carries the raw frame as it came beside what
was computed from it; the computed image never takes the raw one's place. What shows the views, a
page or a window, is not known here.

A restorer with a memory is told to forget when the next frame cannot continue the last: another
magnification, exposure or size, or a move across a large part of the field. Smaller moves and
drift are its own to follow. Each colour has its own noise, hence its own restorer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

import cv2
import numpy as np

from controller.stream import LiveLane
from drivers.api import Frame, Pixels
from inference.api import ModelError
from inference.restore.api import Frame as GreyFrame
from inference.restore.api import LiveRestorer, NoiseModel, Restored, Restorer
from inference.restore.channels import in_type_of

_FAR_RATIO: Final = 0.5  # of the field: after a longer move the next frame is another scene

# What a restorer may raise on a frame that it was not made for. The stream goes on.
_UNABLE = (ModelError, cv2.error, ValueError, ArithmeticError, RuntimeError, MemoryError)


@dataclass(frozen=True, slots=True)
class RestorerChoice:
    """A restorer by its name, made anew for every stream and colour."""

    name: str  # as the settings say it
    make: Callable[[], LiveRestorer]
    # The `Restored.method`s that it makes when all is well; any other one is a fallback.
    expected: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class LiveView:
    """One frame as it came, and what was computed from it."""

    frame: Frame
    image: Pixels | None  # computed, in the frame's own shape and type; None: `reason` says why
    method: str  # what made it, each filter once; "" where nothing was computed
    is_fallback: bool  # another filter than the one asked for made it
    reason: str  # why another one, or what is to be known of it; "" when all is well
    in_distribution: bool
    effective_frames: float  # averaged by variance; 1 without a memory
    skipped_frames: int  # that came and were not restored since the view before
    begun_s: float  # on the loop's clock
    ready_s: float

    @property
    def latency_s(self) -> float:
        """From the end of the exposure until it can be shown."""
        return self.ready_s - self.frame.exposed_until_s

    @property
    def work_s(self) -> float:
        """In the restorer, waiting for its thread included."""
        return self.ready_s - self.begun_s


Answer: TypeAlias = tuple[Restored, ...]  # a channel each


class RestoreStage:
    """Restores what a live lane shows; `views` has exactly one consumer."""

    def __init__(self, live: LiveLane, choice: RestorerChoice | None, thread: Executor) -> None:
        """choice: None shows raw frames only. thread: one worker, this stage's alone."""
        self._live = live
        self._choice = choice
        self._thread = thread
        self._channels: list[LiveRestorer] = []
        self._last: Frame | None = None
        self.restored_frames = 0
        self.skipped_frames = 0
        self.fallbacks = 0
        self.resets = 0

    @property
    def choice(self) -> RestorerChoice | None:
        """What restores; None: nothing does."""
        return self._choice

    def choose(self, choice: RestorerChoice | None) -> None:
        """Restore with another one from the next frame on; it begins without a memory."""
        self._choice = choice
        self._channels = []

    async def views(self) -> AsyncIterator[LiveView]:
        """The newest frame not seen yet, restored, until the lane closes; raises its fault."""
        async for frame, skipped in self._live.frames():
            self.skipped_frames += skipped
            yield await self._view(frame, skipped)

    async def _view(self, frame: Frame, skipped: int) -> LiveView:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        choice = self._choice
        if choice is None:
            return _raw(frame, "", skipped, begun_s, begun_s)
        channels = self._prepared(frame, choice)
        try:
            restored = await loop.run_in_executor(self._thread, _restored, frame.pixels, channels)
        except _UNABLE as error:
            self._channels = []  # in what state it was left, nobody knows
            reason = f"{choice.name}: {type(error).__name__}: {error}"
            return _raw(frame, reason, skipped, begun_s, loop.time())
        self.restored_frames += 1
        methods = tuple(dict.fromkeys(one.method for one in restored))
        is_fallback = not choice.expected.issuperset(methods)
        self.fallbacks += is_fallback
        return LiveView(
            frame=frame,
            image=image_of(restored, frame.pixels),
            method=", ".join(methods),
            is_fallback=is_fallback,
            reason="; ".join(dict.fromkeys(one.reason for one in restored if one.reason)),
            in_distribution=all(one.in_distribution for one in restored),
            effective_frames=max(1.0, min(one.effective_frames for one in channels)),
            skipped_frames=skipped,
            begun_s=begun_s,
            ready_s=loop.time(),
        )

    def _prepared(self, frame: Frame, choice: RestorerChoice) -> list[LiveRestorer]:
        """A restorer a channel, without a memory where the frame does not continue the last."""
        last, self._last = self._last, frame
        wanted = 1 if frame.pixels.ndim == 2 else frame.pixels.shape[2]
        if len(self._channels) != wanted:
            self._channels = [choice.make() for _ in range(wanted)]
        elif last is not None and not continues(last, frame):
            self.resets += 1
            for one in self._channels:
                one.reset()
        return self._channels


def continues(last: Frame, frame: Frame) -> bool:
    """Whether a frame may show the same scene as the last one, moved by less than half a field."""
    far_um = _FAR_RATIO * 1e-3 * frame.pixel_size_nm * min(frame.pixels.shape[:2])
    return (
        last.pixels.shape == frame.pixels.shape
        and last.pixels.dtype == frame.pixels.dtype
        and last.pixel_size_nm == frame.pixel_size_nm
        and last.pose.objective == frame.pose.objective
        and last.optics.get("exposure_s") == frame.optics.get("exposure_s")
        and abs(last.pose.stage_x_um - frame.pose.stage_x_um) < far_um
        and abs(last.pose.stage_y_um - frame.pose.stage_y_um) < far_um
    )


def image_of(restored: Answer, pixels: Pixels) -> Pixels:
    """The channels of an answer put together as the frame's are, in its number type."""
    images = [one.image for one in restored]
    joined = images[0] if pixels.ndim == 2 else np.stack(images, axis=-1)
    image = in_type_of(joined, pixels)
    image.flags.writeable = False
    return cast("Pixels", image)


def _restored(pixels: Pixels, channels: list[LiveRestorer]) -> Answer:
    """Runs in the stage's thread."""
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    answers = []
    for at, one in enumerate(channels):
        plane = cast("Pixels", np.ascontiguousarray(planes[..., at]))
        answers.append(one.push(plane))
    return tuple(answers)


def _raw(frame: Frame, reason: str, skipped: int, begun_s: float, ready_s: float) -> LiveView:
    return LiveView(frame, None, "", False, reason, True, 1.0, skipped, begun_s, ready_s)


class EachAlone:
    """A restorer without a memory, as a `LiveRestorer`."""

    def __init__(self, inner: Restorer) -> None:
        """Every frame is restored by itself."""
        self._inner = inner
        self._frames = 0.0

    @property
    def name(self) -> str:
        """The inner one's."""
        return self._inner.name

    @property
    def effective_frames(self) -> float:
        """1 after the first."""
        return self._frames

    @property
    def drift_px(self) -> tuple[float, float]:
        """Nothing is followed."""
        return 0.0, 0.0

    def push(
        self,
        frame: GreyFrame,
        noise: NoiseModel | None = None,
    ) -> Restored:
        """Restore it."""
        self._frames = 1.0
        return self._inner.restore(frame, noise)

    def reset(self) -> None:
        """There is nothing to forget."""
        self._frames = 0.0
