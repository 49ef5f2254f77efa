"""The running search: overview, focus, scan, revisit, as one task group on one instrument.

Read here how a session begins and ends; each phase and each part has its own file:

- `session`: what all of them are given; `ports`: what the search asks of others;
- `overview`, `scan`, `revisits`: the phases, in this order;
- `darkroom`: what happens to an exposure, from the shutter to what was seen;
- `chip_focus`: where the chip is in focus, and going to a point of it.

What is known is the fold of the facts (`controller.search.state`); every step first asks what is
still missing, so a resumed run continues where the journal ends, without a code path of its own.
An exposure whose pixels never reached the disk is taken again; one that is on the disk never is.

Leaving, for whatever reason, happens in one order: no new commands, axes halted, what was taken is
written, the journal is told how it ended, links closed by the instrument's own context.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from controller.errors import ControllerError, HaltFailed, UnsafeCommand
from controller.geometry import CameraGeometry
from controller.messages import CommandRefused, Fact, FramesMissing, Outcome, RunFinished
from controller.motion import Motion
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.record.recorder import Recorder
from controller.safety import Envelope, Supervisor
from controller.search.chip_focus import ChipFocus
from controller.search.darkroom import IN_FLIGHT, Darkroom
from controller.search.overview import find_the_chip
from controller.search.ports import Eyes, Watcher
from controller.search.revisits import Revisits
from controller.search.scan import Scan, ScanTime
from controller.search.session import Session
from controller.search.state import SearchState, advance
from controller.settings import Settings
from controller.stream import FrameLedger, FrameStream
from drivers.api import Instrument, MissingFrames
from drivers.errors import DriverError

_STOP_DEADLINE_S: Final = 20.0  # for writing what was taken, after a stop


@dataclass(frozen=True, slots=True)
class SearchResult:
    """How a session of a search ended."""

    finished: RunFinished
    stalled_s: float  # waiting for disk or detector


class Search:
    """One session of a run. `await search.run()` inside an event loop of either clock."""

    def __init__(
        self,
        settings: Settings,
        instrument: Instrument,
        eyes: Eyes,
        state: SearchState,
        journal: Journal,
        frames: FrameStore,
        watcher: Watcher,
    ) -> None:
        """`state` is the fold of the journal so far, `RunStarted` of this session included."""
        self._settings = settings
        self._instrument = instrument
        self._eyes = eyes
        self._state = state
        self._journal = journal
        self._frames = frames
        self._watcher = watcher
        camera = settings.camera
        self._geometry = CameraGeometry(camera.rotation_deg, camera.flip_x, camera.flip_y)
        self._writer = ThreadPoolExecutor(1, "record")
        self._analyst = ThreadPoolExecutor(1, "analyse")
        self._fitter = ThreadPoolExecutor(1, "calibrate")
        self._supervisor = Supervisor(
            Envelope.within(
                settings.safety, instrument.stage.limits_um, instrument.focus.limits_um
            ),
            instrument.turret.objectives,
            settings.safety,
        )
        self._recorder = Recorder(self._learn, journal, frames, self._writer)
        self._stream: FrameStream | None = None  # None: the links were never open
        self._scan_time = ScanTime()
        # The clock of an earlier session is gone; this one goes on where it ended.
        self._epoch_s = max(
            [0.0, *(p.at_s for p in state.phases), *(p.at_s for p in state.focus_points)]
        )

    # --- the session -----------------------------------------------------------------------

    async def run(self) -> SearchResult:
        """Search until everything is done; raises what stopped it after all is safe and written."""
        loop = asyncio.get_running_loop()
        self._began_s = loop.time()
        self._adopt()
        outcome: Outcome = "failed"
        reason = ""
        try:
            stalled_s = await self._session()
            outcome = "complete"
        except asyncio.CancelledError:
            outcome, reason = "stopped", "stopped by the operator"
            raise
        except BaseExceptionGroup as group:
            cause = _first_cause(group)
            reason = f"{type(cause).__name__}: {cause}"
            raise cause from group
        except (ControllerError, DriverError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            for thread in (self._writer, self._analyst, self._fitter):
                thread.shutdown()
            finished = self._finish(outcome, reason)
        return SearchResult(finished, stalled_s)

    async def _session(self) -> float:
        """Open the links, work, wind down; returns how long disk or detector were waited for."""
        async with (
            self._instrument as instrument,
            Motion(instrument, self._supervisor, self._settings.motion) as motion,
            # A lost frame is named while the others of its flight are still coming in.
            FrameStream(
                instrument.camera,
                ledger=FrameLedger(IN_FLIGHT - 2),
                on_missing=self._book_missing,
            ) as stream,
        ):
            self._stream = stream
            await instrument.camera.set_exposure_s(self._settings.camera.exposure_s)
            session = self._session_of(motion, stream)
            async with asyncio.TaskGroup() as group:
                darkroom = Darkroom(
                    session, self._eyes, self._recorder, self._frames, group, self._fitter
                )
                recording = group.create_task(self._recorder.run(), name="record")
                developing = group.create_task(darkroom.develop(), name="develop")
                wind_down = partial(self._wind_down, motion, darkroom, developing, recording)
                try:
                    await self._phases(session, darkroom)
                except (ControllerError, DriverError) as error:
                    if isinstance(error, UnsafeCommand):
                        self._recorder.post(CommandRefused(error.command, error.reason))
                    try:
                        await wind_down(is_in_order=False)
                    except HaltFailed as worse:
                        worse.add_note(f"it began with: {error}")
                        raise
                    raise
                except asyncio.CancelledError:
                    # Also when a sibling failed: then what is left to write may not be writable.
                    if not (recording.done() or developing.done()):
                        await asyncio.shield(wind_down(is_in_order=False))
                    raise
                await wind_down(is_in_order=True)
        return darkroom.stalled_s

    def _session_of(self, motion: Motion, stream: FrameStream) -> Session:
        return Session(
            settings=self._settings,
            instrument=self._instrument,
            supervisor=self._supervisor,
            motion=motion,
            stream=stream,
            geometry=self._geometry,
            objectives={o.name: o for o in self._instrument.turret.objectives},
            analyst=self._analyst,
            watcher=self._watcher,
            state=self._state,
            post=self._recorder.post,
            now_s=self._now_s,
        )

    async def _phases(self, session: Session, darkroom: Darkroom) -> None:
        with ThreadPoolExecutor(1, "focus") as thread:
            focus = ChipFocus(session, self._eyes, thread)
            scan = Scan(session, darkroom, focus, self._scan_time)
            await find_the_chip(session, darkroom, focus)
            await scan.prepare()
            await scan.run()
            await Revisits(session, darkroom, focus).run()

    async def _wind_down(
        self,
        motion: Motion,
        darkroom: Darkroom,
        developing: asyncio.Task[None],
        recording: asyncio.Task[None],
        *,
        is_in_order: bool,
    ) -> None:
        """Halt if need be, then let what was taken reach the disk."""
        if not is_in_order:
            await motion.halt("search", "leaving")
        darkroom.close(is_in_order=is_in_order)
        try:
            async with asyncio.timeout(None if is_in_order else _STOP_DEADLINE_S):
                await asyncio.wait([developing])
                self._recorder.close()
                await asyncio.wait([recording])
        except TimeoutError:
            self._watcher.note(f"not all was written within {_STOP_DEADLINE_S:g} s")

    def _finish(self, outcome: Outcome, reason: str) -> RunFinished:
        fates = None if self._stream is None else self._stream.ledger
        least_s = self._scan_time.least_s
        finished = RunFinished(
            outcome=outcome,
            reason=reason,
            elapsed_s=asyncio.get_running_loop().time() - self._began_s,
            scan_s=self._scan_time.taken_s,
            scan_bound_s=float(least_s.sum()),
            tiles=sum(kind == "tile" for kind, _ in self._state.saved),
            frames_received=0 if fates is None else fates.received_frames,
            frames_missing=len(self._state.missing),
            frames_unaccounted=0 if fates is None else fates.unaccounted_frames,
            autofocus_runs=sum(p.purpose in {"seed", "track"} for p in self._state.focus_points),
            scan_moves_s=float(least_s[0]),
            scan_settling_s=float(least_s[1]),
            scan_exposures_s=float(least_s[2]),
        )
        advance(self._state, finished)
        try:
            self._recorder.write_rest()
            self._journal.append([finished])
        except ControllerError as error:
            self._watcher.note(f"the end of the session could not be journalled: {error}")
        return finished

    # --- facts -----------------------------------------------------------------------------

    def _learn(self, fact: Fact) -> None:
        advance(self._state, fact)

    def _now_s(self) -> float:
        """Seconds on the instrument's clock since the run began, earlier sessions included."""
        return self._epoch_s + asyncio.get_running_loop().time() - self._began_s

    def _book_missing(self, gap: MissingFrames) -> None:
        self._recorder.post(FramesMissing(gap.first, gap.last, gap.reason))

    def _adopt(self) -> None:
        """What is on the disk counts, whatever the journal says.

        A frame that reached it just before a crash is not taken again; one that somebody deleted,
        because it was damaged, is.
        """
        saved_before = self._state.saved
        gone = [key for key in saved_before if not self._frames.exists_complete(*key)]
        for key in gone:
            del saved_before[key]
        if gone:
            self._watcher.note(f"no longer on the disk, taken again: {len(gone)} frames")
        found = [
            saved
            for key, exposed in self._state.exposed.items()
            if key not in self._state.saved and (saved := self._frames.adopt(exposed)) is not None
        ]
        if found:
            self._journal.append(found)
            for saved in found:
                self._learn(saved)


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception that is not itself a group."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first_cause(error)
        return error
    return group
