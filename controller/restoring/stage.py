"""Between the camera and the live view: each frame that there is time for, restored.

The stage is one viewer of the live lane, so a restorer that is too slow skips frames, counted, and
delays nobody. It works on a thread of its own. A view carries the raw frame as it came beside what
was computed from it; the computed image never takes the raw one's place. What shows the views, a
page or a window, is not known here.

A restorer with a memory is told to forget when the next frame cannot continue the last: another
magnification, exposure or size, or a move across a large part of the field. Smaller moves and
drift are its own to follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import cv2

from controller.restoring.frames import FrameRestorer, RestoredFrame, RestorerChoice
from controller.stream import LiveLane
from drivers.api import Frame, Pixels
from inference.api import ModelError

_FAR_RATIO: Final = 0.5  # of the field: after a longer move the next frame is another scene

# What a restorer may raise on a frame that it was not made for. The stream goes on.
_UNABLE = (ModelError, cv2.error, ValueError, ArithmeticError, RuntimeError, MemoryError)


@dataclass(frozen=True, slots=True, eq=False)
class LiveView:
    """One frame as it came, and what was computed from it."""

    frame: Frame
    restored: RestoredFrame | None  # None: `unable` says why, "" where raw frames were asked for
    unable: str
    skipped_frames: int  # that came and were not restored since the view before
    begun_s: float  # on the loop's clock
    ready_s: float

    @property
    def reason(self) -> str:
        """What is to be known of it; "" when all is well."""
        return self.unable if self.restored is None else self.restored.reason

    @property
    def latency_s(self) -> float:
        """From the end of the exposure until it can be shown."""
        return self.ready_s - self.frame.exposed_until_s

    @property
    def work_s(self) -> float:
        """In the restorer, waiting for its thread included."""
        return self.ready_s - self.begun_s


class RestoreStage:
    """Restores what a live lane shows; `views` has exactly one consumer."""

    def __init__(self, live: LiveLane, choice: RestorerChoice | None, thread: Executor) -> None:
        """choice: None shows raw frames only. thread: one worker, this stage's alone."""
        self._live = live
        self._thread = thread
        self._restorer: FrameRestorer | None = None
        self._last: Frame | None = None
        self.choose(choice)

    @property
    def choice(self) -> RestorerChoice | None:
        """What restores; None: nothing does."""
        return None if self._restorer is None else self._restorer.choice

    def choose(self, choice: RestorerChoice | None) -> None:
        """Restore with another one from the next frame on; it begins without a memory."""
        self._restorer = None if choice is None else FrameRestorer(choice)

    async def views(self) -> AsyncIterator[LiveView]:
        """The newest frame not seen yet, restored, until the lane closes; raises its fault."""
        async for frame, skipped in self._live.frames():
            yield await self._view(frame, skipped)

    async def _view(self, frame: Frame, skipped: int) -> LiveView:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        last, self._last = self._last, frame
        restorer = self._restorer
        if restorer is None:
            return LiveView(frame, None, "", skipped, begun_s, begun_s)
        is_new = last is not None and not continues(last, frame)
        restored, reason = None, ""
        try:
            restored = await loop.run_in_executor(
                self._thread, _restored, restorer, frame.pixels, is_new
            )
        except _UNABLE as error:
            reason = f"{restorer.choice.name}: {type(error).__name__}: {error}"
        return LiveView(frame, restored, reason, skipped, begun_s, loop.time())


def _restored(restorer: FrameRestorer, pixels: Pixels, is_new: bool) -> RestoredFrame:
    """Runs in the stage's thread."""
    if is_new:
        restorer.reset()
    return restorer.restore(pixels)


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
