"""A live session without a window: expose, keep every raw frame, restore what there is time for.

Three threads of their own, none of which waits for another: the raw frames' writer, the restorer,
and the computed frames' writer. Exposures go through the supervisor one by one, with the axes held
still; they wait only for the raw frames' writer, whose queue is bounded. A session that is
cancelled still writes what was taken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from controller.errors import StreamError
from controller.geometry import CameraGeometry, footprint_um
from controller.motion import Motion
from controller.restoring.frames import RestorerChoice
from controller.restoring.log import WatchLog
from controller.restoring.movie import MovieWriter
from controller.restoring.stage import LiveView, RestoreStage
from controller.safety import Envelope, Expose, Supervisor
from controller.settings import Settings
from controller.stream import FrameStream, LiveLane, RecordLane
from drivers.api import Instrument

_LANE_FRAMES: Final = 16
_CLAIMED_FRAMES: Final = 4  # exposed, and not waited for yet
_LOST_IN_A_ROW: Final = 10
_LAST_VIEW_S: Final = 10.0  # at the end, for the view of the last frame
_LAST_WRITE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Until:
    """When a session ends by itself; both None: only when it is stopped."""

    frames: int | None = None
    seconds: float | None = None


OnView = Callable[[LiveView], None]


class WatchSession:
    """One session; `log` is complete whenever it is asked."""

    def __init__(
        self,
        settings: Settings,
        instrument: Instrument,
        choice: RestorerChoice | None,
        raw: MovieWriter,
        computed: MovieWriter,
        on_view: OnView | None = None,
    ) -> None:
        """choice: None shows raw frames. The movies are closed by whoever made them."""
        self.log = WatchLog()
        self._settings = settings
        self._instrument = instrument
        self._choice = choice
        self._raw = raw
        self._computed = computed
        self._on_view = on_view
        self._progress = asyncio.Event()  # a frame was written, or viewed
        self._viewed: int | None = None  # source number

    async def run(self, until: Until) -> WatchLog:
        """Until it has enough, or is cancelled. Raises ControllerError or DriverError."""
        with (
            ThreadPoolExecutor(1, "record") as raw,
            ThreadPoolExecutor(1, "restore") as restore,
            ThreadPoolExecutor(1, "computed") as computed,
        ):
            try:
                await self._run(until, raw, restore, computed)
            except BaseExceptionGroup as group:
                raise _first_cause(group) from group
        return self.log

    async def _run(
        self, until: Until, raw: Executor, restore: Executor, computed: Executor
    ) -> None:
        settings, instrument = self._settings, self._instrument
        envelope = Envelope.within(
            settings.safety, instrument.stage.limits_um, instrument.focus.limits_um
        )
        supervisor = Supervisor(envelope, instrument.turret.objectives, settings.safety)
        record, live = RecordLane(_LANE_FRAMES, "stall"), LiveLane()
        clock = asyncio.get_running_loop().time
        async with (
            instrument,
            Motion(instrument, supervisor, settings.motion) as motion,
            FrameStream(instrument.camera, record=record, live=live) as stream,
        ):
            await instrument.camera.set_exposure_s(settings.camera.exposure_s)
            stage = RestoreStage(live, self._choice, restore)
            self.log.began_s = clock()
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep(record, raw), name="watch.keep")
                looker = group.create_task(self._look(stage, computed), name="watch.look")
                try:
                    await self._expose(motion, stream, until)
                finally:
                    self.log.ended_s = clock()
                    if not (keeper.done() or looker.done()):
                        await self._wind_down(record, live)
                    keeper.cancel()
                    looker.cancel()

    async def _expose(self, motion: Motion, stream: FrameStream, until: Until) -> None:
        """One exposure after the other; a frame that is lost is counted."""
        loop = asyncio.get_running_loop()
        camera = self._settings.camera
        geometry = CameraGeometry(camera.rotation_deg, camera.flip_x, camera.flip_y)
        lens = motion.objective or await self._instrument.turret.current()
        field_um = footprint_um(self._instrument.camera.shape_px, lens.pixel_size_nm, geometry)
        light = Expose(camera.exposure_s, *field_um, "watch")
        ends_s = None if until.seconds is None else loop.time() + until.seconds
        claimed: deque[int] = deque()
        lost_in_a_row = 0

        async def claim() -> None:
            nonlocal lost_in_a_row
            try:
                await stream.frame(claimed.popleft(), camera.frame_timeout_s + camera.exposure_s)
            except StreamError:
                self.log.lost_frames += 1
                lost_in_a_row += 1
                if lost_in_a_row >= _LOST_IN_A_ROW:
                    raise
            else:
                lost_in_a_row = 0

        while (until.frames is None or self.log.exposed_frames < until.frames) and (
            ends_s is None or loop.time() < ends_s
        ):
            taken = await stream.expose(motion, light)
            self.log.exposed_frames += 1
            claimed.append(taken.number)
            if len(claimed) > _CLAIMED_FRAMES:
                await claim()
        while claimed:
            await claim()

    async def _keep(self, record: RecordLane, thread: Executor) -> None:
        loop = asyncio.get_running_loop()
        async for frame in record.frames():
            await loop.run_in_executor(thread, self._raw.append, frame)
            self.log.recorded(frame)
            self._progress.set()

    async def _look(self, stage: RestoreStage, thread: Executor) -> None:
        loop = asyncio.get_running_loop()
        async for view in stage.views():
            self.log.viewed(view)
            if self._on_view is not None:
                self._on_view(view)
            await loop.run_in_executor(thread, self._computed.append_view, view)
            self._viewed = view.frame.number
            self._progress.set()

    async def _wind_down(self, record: RecordLane, live: LiveLane) -> None:
        """Let the raw frames come to the disk and the last one to the view."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WRITE_S):
                while self._raw.frames < record.put_frames:
                    await self._news()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_VIEW_S):
                while live.newest is not None and self._viewed != live.newest.number:
                    await self._news()

    async def _news(self) -> None:
        self._progress.clear()
        await self._progress.wait()


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception that is not itself a group."""
    for error in group.exceptions:
        return _first_cause(error) if isinstance(error, BaseExceptionGroup) else error
    return group
