"""The running search: overview, focus, scan, revisit, as one task group on one instrument.

What happens to one frame: the stage arrives and settles, light is taken, and as soon as the shutter
is shut the stage is on its way to the next field. While it moves, the frame is read out, written
and looked at, each on its own thread; `_develop` takes frames in the order of exposure. So the
scan's time is moves, settling and exposures, and everything else hides behind the moves. When disk
or detector cannot keep up, the exposures wait (`stalled_s` says how long); nothing is dropped.

What is known is the fold of the facts (`controller.search.state`); every step first asks what is
still missing, so a resumed run continues where the journal ends, without a code path of its own.
An exposure whose pixels never reached the disk is taken again; one that is on the disk never is.

Leaving, for whatever reason, happens in one order: no new commands, axes halted, what was taken is
written, the journal is told how it ended, links closed by the instrument's own context.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from shapely.geometry import Polygon, box

from controller.errors import (
    BadFrame,
    ControllerError,
    HaltFailed,
    SearchFailed,
    StreamError,
    UnsafeCommand,
)
from controller.focusing.loop import FocusResult, autofocus
from controller.focusing.policy import FocusTask
from controller.focusing.surface import FocusPoint, FocusSurface
from controller.geometry import (
    CameraGeometry,
    axis_point_um,
    footprint_um,
    pixel_to_stage_um,
    stage_for_point_um,
)
from controller.messages import (
    Analysed,
    CalibrationFitted,
    CatalogueEntry,
    ChipFound,
    CommandRefused,
    Exposed,
    Fact,
    FocusMeasured,
    FocusPurpose,
    FramesMissing,
    Outcome,
    Phase,
    PhaseStarted,
    Piece,
    PlannedRevisit,
    PlannedTile,
    Revisited,
    RevisitsPlanned,
    RunFinished,
    ScanPlanned,
    ShotKind,
    Skipped,
)
from controller.motion import Motion, ideal_move_s
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.record.recorder import Recorder
from controller.safety import Envelope, Expose, Supervisor
from controller.search.entries import catalogue_of
from controller.search.outline import NoChip, OverviewFrame, find_chip
from controller.search.pieces import pieces_of
from controller.search.state import SearchState, advance
from controller.search.tiling import cover_polygon, cover_rectangle, trapezoid_move_time
from controller.search.tour import visit_order
from controller.settings import Settings
from controller.stream import Exposure, FrameStream
from drivers.api import Frame, Instrument, MissingFrames, Objective, Pixels, Pose
from drivers.errors import DriverError
from inference.api import FlakeDetector, FocusEstimator, SharpnessMeasure

_IN_FLIGHT: Final = 6  # frames exposed and not yet looked at
_OVERVIEW_PX: Final = 320  # width of the small pictures that find the chip
_CALIBRATION_TILES: Final = 12  # tiles with flakes that the colour calibration is fitted on
_FAILED_IN_A_ROW: Final = 3  # frames that did not come: then the camera is given up
_UNLIT_IN_A_ROW: Final = 10  # frames that show nothing: then the lamp is
_RETAKES: Final = 2  # rounds over tiles whose frame was lost
_DOUBT_SIGMAS: Final = 5.0  # of the surface's own, beyond which a focus is not believed
_DOUBT_DOF: Final = 0.75
_FOCUS_TRIES: Final = 5  # places tried when the field is empty
_MOST_TILES: Final = 100_000  # of one plan: a year's travel is a slip in a number
_BLACK: Final = "black: no light came; check lamp, shutter and camera.exposure_s"
_SATURATED: Final = "saturated: every pixel is at its end; lower camera.exposure_s or the lamp"
_STOP_DEADLINE_S: Final = 20.0  # for writing what was taken, after a stop


class Eyes(Protocol):
    """What the search asks of inference; `app` fills it."""

    @property
    def sharpness(self) -> SharpnessMeasure:
        """How sharp a frame is."""
        ...

    @property
    def estimator(self) -> FocusEstimator:
        """Where focus is, given a sweep."""
        ...

    def detector(
        self, objective: Objective, calibrations: Sequence[CalibrationFitted]
    ) -> FlakeDetector:
        """The detector for one lens; empty: nothing was fitted yet."""
        ...

    def calibrate(
        self, images: Sequence[Pixels], objective: Objective, bit_depth: int
    ) -> Sequence[CalibrationFitted]:
        """Fit the microscope's colours; empty: there was nothing to fit on."""
        ...


class Watcher(Protocol):
    """Who is told how far the search is; must return at once."""

    def phase(self, phase: Phase, total: int, done: int) -> None:
        """A phase begins, of `total` steps of which `done` are behind an earlier session."""

    def step(self, phase: Phase, done: int, at_s: float) -> None:
        """So many steps are done, at this time on the instrument's clock."""

    def note(self, text: str) -> None:
        """Something the user should read now."""


class _Unlit(BadFrame):
    """The frame shows nothing at all: expose again."""


@dataclass(slots=True, eq=False)
class _Shot:
    """An exposure on its way to the disk and the detector."""

    shot: ShotKind
    index: int
    exposure: Exposure
    objective: Objective
    done: asyncio.Future[bool]  # False: the frame was lost


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
        self._shape_px = instrument.camera.shape_px
        self._objectives = {o.name: o for o in instrument.turret.objectives}
        self._move_time = trapezoid_move_time(instrument.stage.kinematics)
        self._writer = ThreadPoolExecutor(1, "record")
        self._analyst = ThreadPoolExecutor(1, "analyse")
        self._fitter = ThreadPoolExecutor(1, "calibrate")
        self._calibrating: asyncio.Task[None] | None = None
        self._supervisor = Supervisor(
            Envelope.within(
                settings.safety, instrument.stage.limits_um, instrument.focus.limits_um
            ),
            instrument.turret.objectives,
            settings.safety,
        )
        self._recorder = Recorder(self._learn, journal, frames, self._writer)
        self._shots: asyncio.Queue[_Shot | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_IN_FLIGHT)
        self._small: dict[int, OverviewFrame] = {}
        self._lost: list[_Shot] = []
        self._lost_in_a_row = 0
        self._last_loss = ""
        self._blacks = 0  # among the tiles kept in this session
        self._surface: FocusSurface | None = None
        self._detectors: dict[str, FlakeDetector] = {}
        self._offset_um: deque[tuple[float, float]] = deque(maxlen=9)
        self._stalled_s = 0.0
        self._scan_s = 0.0
        self._scan_least_s = np.zeros(3)  # moves, settling, exposures
        self._tiles_since_focus = 0
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
            await self._session()
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
        return SearchResult(finished, self._stalled_s)

    async def _session(self) -> None:
        async with (
            self._instrument as instrument,
            Motion(instrument, self._supervisor, self._settings.motion) as motion,
            FrameStream(instrument.camera, on_missing=self._book_missing) as stream,
        ):
            self._motion = motion
            self._stream = stream
            await instrument.camera.set_exposure_s(self._settings.camera.exposure_s)
            async with asyncio.TaskGroup() as group:
                self._group = group
                recording = group.create_task(self._recorder.run(), name="record")
                developing = group.create_task(self._develop(), name="develop")
                try:
                    await self._phases()
                except (ControllerError, DriverError) as error:
                    if isinstance(error, UnsafeCommand):
                        self._post(CommandRefused(error.command, error.reason))
                    try:
                        await self._wind_down(developing, recording, is_in_order=False)
                    except HaltFailed as worse:
                        worse.add_note(f"it began with: {error}")
                        raise
                    raise
                except asyncio.CancelledError:
                    # Also when a sibling failed: then what is left to write may not be writable.
                    if not (recording.done() or developing.done()):
                        await asyncio.shield(
                            self._wind_down(developing, recording, is_in_order=False)
                        )
                    raise
                await self._wind_down(developing, recording, is_in_order=True)

    async def _wind_down(
        self, developing: asyncio.Task[None], recording: asyncio.Task[None], *, is_in_order: bool
    ) -> None:
        """Halt if need be, then let what was taken reach the disk."""
        if not is_in_order:
            await self._motion.halt("search", "leaving")
        if self._calibrating is not None and not is_in_order:
            self._calibrating.cancel()
        self._shots.put_nowait(None)
        try:
            async with asyncio.timeout(None if is_in_order else _STOP_DEADLINE_S):
                await asyncio.wait([developing])
                self._recorder.close()
                await asyncio.wait([recording])
        except TimeoutError:
            self._watcher.note(f"not all was written within {_STOP_DEADLINE_S:g} s")

    def _finish(self, outcome: Outcome, reason: str) -> RunFinished:
        stream = getattr(self, "_stream", None)
        fates = stream.ledger if stream is not None else None
        finished = RunFinished(
            outcome=outcome,
            reason=reason,
            elapsed_s=asyncio.get_running_loop().time() - self._began_s,
            scan_s=self._scan_s,
            scan_bound_s=float(self._scan_least_s.sum()),
            tiles=sum(kind == "tile" for kind, _ in self._state.saved),
            frames_received=0 if fates is None else fates.received_frames,
            frames_missing=len(self._state.missing),
            frames_unaccounted=0 if fates is None else fates.unaccounted_frames,
            autofocus_runs=sum(p.purpose in {"seed", "track"} for p in self._state.focus_points),
            scan_moves_s=float(self._scan_least_s[0]),
            scan_settling_s=float(self._scan_least_s[1]),
            scan_exposures_s=float(self._scan_least_s[2]),
        )
        advance(self._state, finished)
        try:
            self._recorder.write_rest()
            self._journal.append([finished])
        except ControllerError as error:
            self._watcher.note(f"the end of the session could not be journalled: {error}")
        return finished

    async def _phases(self) -> None:
        await self._overview()
        await self._prepare_scan()
        await self._scan()
        await self._revisit()

    # --- facts -----------------------------------------------------------------------------

    def _learn(self, fact: Fact) -> None:
        advance(self._state, fact)

    def _post(self, fact: Fact) -> None:
        self._recorder.post(fact)

    def _now_s(self) -> float:
        """Seconds on the instrument's clock since the run began, earlier sessions included."""
        return self._epoch_s + asyncio.get_running_loop().time() - self._began_s

    def _enter(self, phase: Phase, total: int, done: int) -> None:
        self._post(PhaseStarted(phase, self._now_s()))
        self._watcher.phase(phase, total, done)

    def _book_missing(self, gap: MissingFrames) -> None:
        self._post(FramesMissing(gap.first, gap.last, gap.reason))

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

    # --- one exposure ----------------------------------------------------------------------

    def _light(self, source: str) -> Expose:
        objective = self._objective()
        width_um, height_um = footprint_um(self._shape_px, objective.pixel_size_nm, self._geometry)
        return Expose(self._settings.camera.exposure_s, width_um, height_um, source)

    async def _take(self, shot: ShotKind, index: int) -> asyncio.Future[bool]:
        """Expose here and hand the frame on; returns when the stage may move again."""
        loop = asyncio.get_running_loop()
        waited_from_s = loop.time()
        await self._room.acquire()
        self._stalled_s += loop.time() - waited_from_s
        exposure = await self._stream.expose(self._motion, self._light("search"))
        done: asyncio.Future[bool] = loop.create_future()
        self._shots.put_nowait(_Shot(shot, index, exposure, self._objective(), done))
        return done

    async def _develop(self) -> None:
        """Frames in the order of exposure: read out, recorded, looked at."""
        while (shot := await self._shots.get()) is not None:
            try:
                frame = await self._stream.frame(
                    shot.exposure.number,
                    self._settings.camera.frame_timeout_s + self._settings.camera.exposure_s,
                    shot.exposure.settled_at_s,
                )
                self._check_light(shot, frame)
            except StreamError as error:
                self._lose(shot, error)
                shot.done.set_result(False)
                self._room.release()
                continue
            self._lost_in_a_row = 0
            exposed = _exposed(shot, frame)
            await self._recorder.save(exposed, frame, self._centre_um(frame.pose))
            await self._look(shot.shot, shot.index, frame.pixels, frame.pose, frame.bit_depth)
            self._room.release()
            shot.done.set_result(True)

    def _lose(self, shot: _Shot, error: StreamError) -> None:
        self._lost.append(shot)
        self._lost_in_a_row += 1
        self._last_loss = str(error)
        self._watcher.note(f"{shot.shot} {shot.index}: {error}")
        most = _UNLIT_IN_A_ROW if isinstance(error, _Unlit) else _FAILED_IN_A_ROW
        if self._lost_in_a_row >= most:
            raise SearchFailed(
                f"{self._lost_in_a_row} frames in a row were lost, the last: {error}"
            ) from error

    def _check_light(self, shot: _Shot, frame: Frame) -> None:
        """Raises a BadFrame for a frame that shows nothing: it has to be exposed again."""
        if shot.shot == "overview":
            return  # beside the chip there may be nothing to see
        fault = _no_light(frame.pixels, frame.bit_depth)
        if fault == _BLACK and self._settings.scan.area == "limits":
            self._blacks += 1  # the area is the user's own: it may well reach beyond the chip
        elif fault:
            raise _Unlit(self._instrument.camera.name, frame.number, fault)

    async def _look(
        self, shot: ShotKind, index: int, pixels: Pixels, pose: Pose, bit_depth: int
    ) -> None:
        """Analyse on the analyst's thread, and post what was seen."""
        loop = asyncio.get_running_loop()
        if shot == "overview":
            self._small[index] = await loop.run_in_executor(
                self._analyst, self._shrunk, pixels, pose
            )
        else:
            self._post(
                await loop.run_in_executor(
                    self._analyst, self._analysed, shot, index, pixels, pose, bit_depth
                )
            )
            if shot == "tile":
                self._calibrate_in_passing()

    def _analysed(
        self, shot: ShotKind, index: int, pixels: Pixels, pose: Pose, bit_depth: int
    ) -> Analysed:
        began_s = time.perf_counter()
        objective = self._objectives[pose.objective]
        detector = self._detector(objective)
        answer = detector.detect(pixels, objective.pixel_size_nm, bit_depth)
        sharpness = self._eyes.sharpness.measure(pixels)

        def to_stage(
            columns: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]
        ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
            return pixel_to_stage_um(columns, rows, pose, objective, self._shape_px, self._geometry)

        return Analysed(
            shot=shot,
            index=index,
            detector=detector.name,
            sharpness=sharpness.value,
            substrate_rgb=answer.substrate_rgb,
            in_distribution=answer.in_distribution,
            reason=answer.reason,
            pieces=pieces_of(answer, to_stage, (objective.pixel_size_nm * 1e-3) ** 2),
            compute_s=time.perf_counter() - began_s,
        )

    def _shrunk(self, pixels: Pixels, pose: Pose) -> OverviewFrame:
        objective = self._objectives[pose.objective]
        h_px, w_px = self._shape_px
        factor = _OVERVIEW_PX / w_px
        size = (_OVERVIEW_PX, max(1, round(h_px * factor)))
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        if small.ndim == 2:
            small = np.repeat(small[:, :, None], 3, axis=2)
        x_um, y_um = self._centre_um(pose)
        um_per_px = objective.pixel_size_nm * 1e-3 / factor
        bit_depth = self._instrument.camera.bit_depth
        return OverviewFrame(_upright(small, self._geometry), x_um, y_um, um_per_px, bit_depth)

    def _detector(self, objective: Objective) -> FlakeDetector:
        detector = self._detectors.get(objective.name)
        if detector is None:
            detector = self._eyes.detector(objective, self._state.calibrations)
            self._detectors[objective.name] = detector
        return detector

    def _calibrate_in_passing(self) -> None:
        """Start fitting the colours once enough tiles show flakes; the scan goes on meanwhile."""
        if self._calibrating is None and self._state.calibration is None:
            rich = self._rich_tiles()
            if len(rich) >= _CALIBRATION_TILES:
                self._calibrating = self._group.create_task(
                    self._calibrate(rich[:_CALIBRATION_TILES]), name="calibrate"
                )

    def _rich_tiles(self) -> list[int]:
        """Saved tiles that show flakes, in the order in which they were looked at."""
        return [
            index
            for (shot, index), seen in self._state.analysed.items()
            if shot == "tile"
            and seen.in_distribution
            and seen.pieces
            and self._state.is_done("tile", index)
        ]

    async def _calibrate(self, tiles: Sequence[int]) -> None:
        """Fit the microscope's colours on kept frames, on a thread that delays nobody."""
        objective = self._objectives[self._settings.scan.objective]
        bit_depth = self._instrument.camera.bit_depth

        def fit() -> Sequence[CalibrationFitted]:
            images = [self._frames.load("tile", index) for index in tiles]
            return self._eyes.calibrate(images, objective, bit_depth)

        fitted = await asyncio.get_running_loop().run_in_executor(self._fitter, fit)
        if not fitted:
            self._post(Skipped("colour calibration", "nothing to fit on; nominal colours are used"))
        for calibration in fitted:
            self._post(calibration)
        self._detectors.clear()

    async def _finish_calibration(self) -> None:
        """One calibration for all tiles: those seen under an older one are looked at again."""
        await self._recorder.flush()  # only what is on the disk can be looked at again
        if self._calibrating is not None:
            await self._calibrating
        elif self._state.calibration is None and (rich := self._rich_tiles()):
            await self._calibrate(rich[:_CALIBRATION_TILES])
        for shot, index in sorted(self._state.outdated):
            await self._look_again(shot, index)

    async def _look_again(self, shot: ShotKind, index: int) -> None:
        """Analyse a frame that is on the disk."""
        exposed = self._state.exposed[shot, index]
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._analyst, self._frames.load, shot, index)
        pose = Pose(exposed.stage_x_um, exposed.stage_y_um, exposed.focus_z_um, exposed.objective)
        bit_depth = self._instrument.camera.bit_depth
        if shot == "overview":
            await self._look(shot, index, pixels, pose, bit_depth)
        else:
            self._post(
                await loop.run_in_executor(
                    self._analyst, self._analysed, shot, index, pixels, pose, bit_depth
                )
            )

    # --- focus -----------------------------------------------------------------------------

    def _objective(self) -> Objective:
        objective = self._motion.objective
        if objective is None:
            raise SearchFailed("the turret's position is not known")
        return objective

    def _centre_um(self, pose: Pose) -> tuple[float, float]:
        return axis_point_um(pose.stage_x_um, pose.stage_y_um, self._objectives[pose.objective])

    async def _autofocus(
        self,
        purpose: FocusPurpose,
        x_um: float,
        y_um: float,
        expected_z_um: float,
        sigma_um: float,
    ) -> FocusResult:
        """Focus where the stage stands; (x, y) is the sample point on the axis."""
        objective = self._objective()
        envelope = self._supervisor.envelope
        floor_um = self._supervisor.floor_z_um(self._motion.where)
        task = FocusTask(
            start_z_um=self._motion.where.z.low_um,
            expected_z_um=expected_z_um,
            sigma_um=sigma_um,
            depth_of_field_um=objective.depth_of_field_um(),
            min_z_um=max(envelope.z.min_um, floor_um),
            max_z_um=envelope.z.max_um,
            settings=self._settings.focus.sweep,
        )

        async def observe() -> Frame:
            return await self._stream.snap(
                self._motion, self._light("focus"), self._settings.camera.frame_timeout_s
            )

        result = await autofocus(
            task, self._motion, observe, self._eyes.sharpness, self._eyes.estimator, source="focus"
        )
        estimate = result.estimate
        if result.is_focused and purpose in {"track", "revisit"}:
            # Dust and tape stand high above the chip, and where nothing else shows any structure
            # they are what a sweep finds.
            off_um = result.focus_z_um - expected_z_um
            if abs(off_um) > _DOUBT_SIGMAS * sigma_um + _DOUBT_DOF * task.depth_of_field_um:
                doubt = f"{off_um:+.2f} um from where the chip is expected: dust?"
                await self._motion.move_focus_um(expected_z_um, "focus", "from_above")
                result = replace(result, is_focused=False, focus_z_um=expected_z_um, reason=doubt)
        self._post(
            FocusMeasured(
                stage_x_um=x_um,
                stage_y_um=y_um,
                focus_z_um=result.focus_z_um,
                sigma_um=0.0 if estimate is None else estimate.sigma_um,
                is_confident=result.is_focused,
                reason=result.reason,
                objective=objective.name,
                frames=result.frames,
                at_s=self._now_s(),
                purpose=purpose,
                samples=tuple((r.focus_z_um, r.sharpness.value) for r in result.records),
            )
        )
        if result.is_focused:
            self._believe(self._state.focus_points[-1])
        return result

    def _trust_start(self) -> None:
        """Without autofocus the user's word is that the lens stands in focus now."""
        here, objective = self._motion.where, self._objective()
        z_um = here.z.low_um
        self._supervisor.confirm_focus(here.x.low_um, here.y.low_um, z_um, objective.name)
        self._surface = self._flat_surface(z_um - objective.parfocal_z_um)

    def _flat_surface(self, reference_z_um: float) -> FocusSurface:
        """What is expected before anything was measured."""
        chip = self._chip_polygon()
        x_min, y_min, x_max, y_max = chip.bounds
        return FocusSurface(
            self._settings.focus.surface,
            chip.centroid.x,
            chip.centroid.y,
            max(x_max - x_min, y_max - y_min) / 2,
            reference_z_um,
            max(self._settings.focus.start_sigma_um, 1.0),
        )

    def _believe(self, point: FocusMeasured) -> None:
        """Let a confident focus shape the surface and the safety floor."""
        objective = self._objectives[point.objective]
        self._supervisor.confirm_focus(
            point.stage_x_um, point.stage_y_um, point.focus_z_um, point.objective
        )
        reference_z_um = point.focus_z_um - objective.parfocal_z_um
        if self._surface is None:
            self._surface = self._flat_surface(reference_z_um)
        self._surface = self._surface.with_point(
            FocusPoint(
                point.stage_x_um, point.stage_y_um, reference_z_um, point.sigma_um, point.at_s
            )
        )
        surface, at_s = self._surface, point.at_s
        self._supervisor.set_surface(lambda x_um, y_um: surface.at(x_um, y_um, at_s).z_um)

    def _expected_z_um(self, x_um: float, y_um: float, objective: Objective) -> tuple[float, float]:
        """Best focus there with `objective`, and one sigma."""
        if self._surface is None:
            raise SearchFailed("no focus was found anywhere on the chip")
        expected = self._surface.at(x_um, y_um, self._now_s())
        return expected.z_um + objective.parfocal_z_um, expected.sigma_um

    def _chip_polygon(self) -> Polygon:
        if self._state.chip is not None:
            return Polygon(self._state.chip.outline_um)
        return self._overview_rectangle()

    # --- overview --------------------------------------------------------------------------

    def _overview_rectangle(self) -> Polygon:
        """Where the chip is looked for, within the envelope."""
        overview, envelope = self._settings.overview, self._supervisor.envelope
        x_um, y_um = overview.centre_x_um, overview.centre_y_um
        here = self._motion.where
        x_um = here.x.low_um if x_um is None else x_um
        y_um = here.y.low_um if y_um is None else y_um
        wanted = box(
            x_um - overview.width_um / 2,
            y_um - overview.height_um / 2,
            x_um + overview.width_um / 2,
            y_um + overview.height_um / 2,
        )
        allowed = box(envelope.x.min_um, envelope.y.min_um, envelope.x.max_um, envelope.y.max_um)
        area = wanted.intersection(allowed)
        if not isinstance(area, Polygon) or area.is_empty:
            raise SearchFailed("the overview's rectangle lies outside the safety envelope")
        return area

    async def _overview(self) -> None:
        """Look at everything with the weakest lens, and find the chip."""
        state, settings = self._state, self._settings
        if settings.scan.area == "limits":
            if state.chip is None:
                self._post(_chip_of_limits(self._supervisor.envelope))
            await self._first_focus(settings.scan.objective)
            return
        if state.chip is not None:
            if not self._scan_is_done():  # the small pictures tell where there is something to see
                for index in sorted(i for shot, i in state.saved if shot == "overview"):
                    await self._look_again("overview", index)
            return
        await self._first_focus(settings.overview.objective)
        objective = self._objective()
        area = self._overview_rectangle()
        width_um, height_um = footprint_um(self._shape_px, objective.pixel_size_nm, self._geometry)
        _check_size(area, width_um, height_um, settings.overview.overlap_ratio, "overview")
        x_min, y_min, x_max, y_max = area.bounds
        here = self._motion.where
        plan = cover_rectangle(
            x_min,
            y_min,
            x_max,
            y_max,
            width_um,
            height_um,
            settings.overview.overlap_ratio,
            self._move_time,
            start_um=(here.x.low_um, here.y.low_um),
        )
        self._enter("overview", len(plan.tiles), 0)
        for tile in plan.tiles:
            if state.is_done("overview", tile.index):
                await self._look_again("overview", tile.index)
        todo = [tile for tile in plan.tiles if not state.is_done("overview", tile.index)]
        for _ in range(1 + _RETAKES):
            for tile in todo:
                await self._go(tile.x_um, tile.y_um, objective)
                await self._take("overview", tile.index)
                self._watcher.step("overview", tile.index + 1, self._now_s())
            await self._drain()
            lost = self._lost_indices("overview")
            todo = [tile for tile in todo if tile.index in lost]
        for tile in todo:
            self._post(Skipped(f"overview {tile.index}", "its frame was lost every time"))
        found = await asyncio.get_running_loop().run_in_executor(
            self._analyst, find_chip, [self._small[i] for i in sorted(self._small)]
        )
        if isinstance(found, NoChip):
            raise SearchFailed(f"no chip was found in the overview: {found.reason}")
        self._post(
            ChipFound(
                outline_um=tuple(found.polygon.exterior.coords[:-1]),
                origin_x_um=found.frame.origin_x_um,
                origin_y_um=found.frame.origin_y_um,
                rotation_deg=found.frame.rotation_deg,
                confidence=found.confidence,
            )
        )

    async def _first_focus(self, objective_name: str) -> None:
        """Select the lens and find focus from scratch, or take up the surface of earlier facts."""
        settings = self._settings.focus
        if self._surface is None:
            for point in self._state.focus_points:
                if point.is_confident:
                    self._believe(point)
        if self._surface is None and not settings.enabled:
            self._trust_start()
        await self._motion.select_objective(objective_name, "search")
        if self._surface is not None:
            return
        here = self._motion.where
        objective = self._objective()
        start_z_um = here.z.low_um if settings.start_z_um is None else settings.start_z_um
        width_um, _ = footprint_um(self._shape_px, objective.pixel_size_nm, self._geometry)
        tries: list[tuple[float, float]] = [(0.0, 0.0)]
        tries += [(0.7, 0.0), (-0.7, 0.0), (0.0, 0.7), (0.0, -0.7)]
        reasons = []
        for right, up in tries[:_FOCUS_TRIES]:
            x_um, y_um = here.x.low_um + right * width_um, here.y.low_um + up * width_um
            await self._motion.move_stage_um(x_um, y_um, "search")
            at_x_um, at_y_um = axis_point_um(x_um, y_um, objective)
            result = await self._autofocus(
                "overview", at_x_um, at_y_um, start_z_um, settings.start_sigma_um
            )
            if result.is_focused:
                return
            reasons.append(result.reason)
        raise SearchFailed(f"no focus at {len(reasons)} places; the last: {reasons[-1]}")

    async def _go(self, x_um: float, y_um: float, objective: Objective) -> None:
        """Bring a sample point onto the axis, in expected focus, coming down on it last."""
        z_um, _ = self._expected_z_um(x_um, y_um, objective)
        stage_x_um, stage_y_um = stage_for_point_um(x_um, y_um, objective)
        await self._motion.move_to_um(
            stage_x_um, stage_y_um, z_um, "search", focus_approach="from_above"
        )

    def _lost_indices(self, kind: ShotKind) -> set[int]:
        """What has to be taken again; asked once."""
        lost = {shot.index for shot in self._lost if shot.shot == kind}
        self._lost.clear()
        return lost

    async def _drain(self) -> None:
        """Wait until every frame taken so far was looked at."""
        for _ in range(_IN_FLIGHT):
            await self._room.acquire()
        for _ in range(_IN_FLIGHT):
            self._room.release()

    # --- scan ------------------------------------------------------------------------------

    async def _prepare_scan(self) -> None:
        """Plan the tiles, swing the lens in, and seed the focus surface."""
        state, settings = self._state, self._settings
        objective = self._objectives.get(settings.scan.objective)
        if objective is None:
            known = ", ".join(self._objectives)
            raise SearchFailed(f"no objective {settings.scan.objective!r}; there are {known}")
        if self._scan_is_done():
            return
        if state.scan is None:
            self._plan_scan(objective)
        await self._first_focus(objective.name)
        seeded = sum(p.purpose == "seed" and p.is_confident for p in state.focus_points)
        wanted = min(settings.focus.seed_points, len(self._tiles()))
        if not settings.focus.enabled or seeded >= wanted:
            return
        self._enter("focus", wanted, seeded)
        tries = 0
        failed: set[int] = set()
        while seeded < wanted and tries < wanted + _FOCUS_TRIES:
            tries += 1
            candidates = [t for t in self._focus_candidates() if t.index not in failed]
            if not candidates or self._surface is None:
                break
            choice = self._surface.where_next([(t.x_um, t.y_um) for t in candidates], self._now_s())
            if choice is None:
                break
            tile = candidates[choice]
            await self._go(tile.x_um, tile.y_um, objective)
            z_um, sigma_um = self._expected_z_um(tile.x_um, tile.y_um, objective)
            result = await self._autofocus("seed", tile.x_um, tile.y_um, z_um, sigma_um)
            failed.add(tile.index)
            if result.is_focused:
                seeded += 1
                self._watcher.step("focus", seeded, self._now_s())
            else:
                self._post(Skipped(f"focus seed at tile {tile.index}", result.reason))

    def _plan_scan(self, objective: Objective) -> None:
        settings = self._settings.scan
        width_um, height_um = footprint_um(self._shape_px, objective.pixel_size_nm, self._geometry)
        here = self._motion.where
        kinematics = self._instrument.stage.kinematics
        chip = self._chip_polygon()
        _check_size(chip, width_um, height_um, settings.overlap_ratio, "scan")
        plan = cover_polygon(
            chip,
            width_um,
            height_um,
            settings.overlap_ratio,
            self._move_time,
            edge_margin_um=settings.edge_margin_um,
            per_tile_s=kinematics.settle_s + self._settings.camera.exposure_s,
            start_um=(here.x.low_um, here.y.low_um),
        )
        tiles = plan.tiles[: settings.max_tiles]
        if not tiles:
            raise SearchFailed("no tile fits on the chip inside its edge margin")
        self._post(
            ScanPlanned(
                tiles=tuple(PlannedTile(t.index, t.x_um, t.y_um) for t in tiles),
                objective=objective.name,
                field_w_um=width_um,
                field_h_um=height_um,
                overlap_ratio=settings.overlap_ratio,
            )
        )

    def _tiles(self) -> tuple[PlannedTile, ...]:
        return () if self._state.scan is None else self._state.scan.tiles

    def _scan_is_done(self) -> bool:
        tiles = self._tiles()
        return bool(tiles) and all(self._state.is_done("tile", t.index) for t in tiles)

    def _focus_candidates(self) -> list[PlannedTile]:
        """The tiles with the most structure in the overview: an empty field cannot be focused."""
        tiles = list(self._tiles())
        if not self._small:
            return tiles
        scored = sorted(tiles, key=self._structure_of, reverse=True)
        return scored[: max(3, len(scored) // 3)]

    def _structure_of(self, tile: PlannedTile) -> float:
        """How much the overview shows within a tile's field, away from the chip's edge."""
        scan = self._state.scan
        if scan is None:
            return 0.0
        field = box(
            tile.x_um - scan.field_w_um / 2,
            tile.y_um - scan.field_h_um / 2,
            tile.x_um + scan.field_w_um / 2,
            tile.y_um + scan.field_h_um / 2,
        )
        if not self._chip_polygon().buffer(-20.0).contains(field):
            return 0.0
        return max(_structure(picture, tile, scan) for picture in self._small.values())

    async def _scan(self) -> None:
        """Every tile once, in order; lost ones again at the end."""
        state = self._state
        tiles = self._tiles()
        objective = self._objectives[self._settings.scan.objective]
        for tile in tiles:  # seen by an earlier session, but not looked at
            if state.is_done("tile", tile.index) and ("tile", tile.index) not in state.analysed:
                await self._look_again("tile", tile.index)
        todo = [t for t in tiles if not state.is_done("tile", t.index)]
        if todo:
            self._enter("scan", len(tiles), len(tiles) - len(todo))
            await self._first_focus(objective.name)
            await self._scan_tiles(todo, objective)
        await self._finish_calibration()

    async def _scan_tiles(self, todo: Sequence[PlannedTile], objective: Objective) -> None:
        loop = asyncio.get_running_loop()
        tiles = len(self._tiles())
        is_resumed, planned = len(todo) < tiles, len(todo)
        # The first move, from wherever the stage stood, belongs to neither side of the ratio.
        await self._go(todo[0].x_um, todo[0].y_um, objective)
        began_s = loop.time()
        least_s, at = np.zeros(3), todo[0]
        self._tiles_since_focus = self._settings.focus.most_tiles_between if is_resumed else 0
        for round_ in range(1 + _RETAKES):
            for tile in todo:
                await self._go(tile.x_um, tile.y_um, objective)
                await self._track_focus(tile, objective)
                await self._take("tile", tile.index)
                least_s += self._least_s(at, tile)
                at = tile
                done = tiles - len(todo) + todo.index(tile) + 1
                self._watcher.step("scan", done, self._now_s())
            await self._drain()
            lost = self._lost_indices("tile")
            todo = [t for t in todo if t.index in lost]
            if not todo:
                break
            if round_ == _RETAKES:
                for tile in todo:
                    self._post(Skipped(f"tile {tile.index}", "its frame was lost every time"))
                self._watcher.note(f"{len(todo)} tiles were lost every time and are left out")
        if self._blacks and self._blacks == planned:
            raise SearchFailed(f"all {planned} tiles were {_BLACK}; then begin a new run")
        if not any(self._state.is_done("tile", tile.index) for tile in self._tiles()):
            raise SearchFailed(f"no tile could be taken, the last loss: {self._last_loss}")
        self._scan_s += loop.time() - began_s
        self._scan_least_s += least_s

    def _least_s(self, a: PlannedTile, b: PlannedTile) -> npt.NDArray[np.float64]:
        """The least time from the exposure of one tile to the end of that of the next.

        (3,): move, settling, exposure, in seconds; focus moves hide behind the stage's.
        """
        kinematics = self._instrument.stage.kinematics
        distance_um = max(abs(a.x_um - b.x_um), abs(a.y_um - b.y_um))
        settle_s = kinematics.settle_s if distance_um > 0.0 else 0.0
        move_s = ideal_move_s(distance_um, kinematics)
        return np.array([move_s, settle_s, self._settings.camera.exposure_s])

    async def _track_focus(self, tile: PlannedTile, objective: Objective) -> None:
        """Refresh the surface now and then, on a tile that has something to focus on."""
        if not self._settings.focus.enabled:
            return
        settings = self._settings.focus
        self._tiles_since_focus += 1
        if self._tiles_since_focus <= settings.least_tiles_between:
            return
        z_um, sigma_um = self._expected_z_um(tile.x_um, tile.y_um, objective)
        is_unsure = sigma_um > settings.refresh_sigma_dof * objective.depth_of_field_um()
        is_late = self._tiles_since_focus > settings.most_tiles_between
        if not (is_unsure or is_late):
            return
        # An empty field cannot be focused: wait for a better one, but not for ever.
        patience = settings.least_tiles_between * 1.5
        if tile not in self._focus_candidates() and self._tiles_since_focus < patience:
            return
        result = await self._autofocus("track", tile.x_um, tile.y_um, z_um, sigma_um)
        self._tiles_since_focus = 0
        if not result.is_focused:
            self._post(Skipped(f"focus tracking at tile {tile.index}", result.reason))

    # --- revisit ---------------------------------------------------------------------------

    async def _revisit(self) -> None:
        """Go back to the best at higher magnification: centred, focused, measured again."""
        state, settings = self._state, self._settings
        loop = asyncio.get_running_loop()
        entries = await loop.run_in_executor(self._analyst, catalogue_of, state, settings.wanted)
        best = sorted((e for e in entries if e.rank), key=lambda e: e.rank)
        best = best[: settings.revisit.max_flakes]
        if not best:
            return
        objective = self._objectives.get(settings.revisit.objective)
        if objective is None:
            known = ", ".join(self._objectives)
            self._post(Skipped("revisits", f"no objective {settings.revisit.objective!r}; {known}"))
            return
        if state.revisits is None:
            here = self._motion.where
            order = visit_order(
                [(e.stage_x_um, e.stage_y_um) for e in best],
                (here.x.low_um, here.y.low_um),
                self._move_time,
            ).order
            planned = tuple(
                PlannedRevisit(best[i].entry_id, best[i].stage_x_um, best[i].stage_y_um)
                for i in order
            )
            self._post(RevisitsPlanned(planned, objective.name))
        plan = state.revisits
        if plan is None:
            return
        todo = [r for r in plan.revisits if r.entry_id not in state.revisited]
        if not todo:
            return
        self._enter("revisit", len(plan.revisits), len(plan.revisits) - len(todo))
        await self._first_focus(objective.name)
        by_id = {entry.entry_id: entry for entry in entries}
        for revisit in todo:
            entry = by_id.get(revisit.entry_id)
            if entry is None:
                self._post(Skipped(f"revisit of {revisit.entry_id}", "no longer in the catalogue"))
                continue
            await self._revisit_one(entry, revisit, objective)
            self._watcher.step("revisit", len(state.revisited), self._now_s())

    async def _revisit_one(
        self, entry: CatalogueEntry, planned: PlannedRevisit, objective: Objective
    ) -> None:
        state = self._state
        offset_x_um, offset_y_um = (
            np.median(np.array(self._offset_um), axis=0) if self._offset_um else (0.0, 0.0)
        )
        x_um, y_um = planned.x_um + float(offset_x_um), planned.y_um + float(offset_y_um)
        for attempt in range(2):
            index = state.next_index("revisit")
            await self._go(x_um, y_um, objective)
            if attempt == 0 and self._settings.focus.enabled:
                z_um, sigma_um = self._expected_z_um(x_um, y_um, objective)
                focused = await self._autofocus("revisit", x_um, y_um, z_um, sigma_um)
                if not focused.is_focused:
                    self._post(Skipped(f"focus at revisit of {entry.entry_id}", focused.reason))
            if not await (await self._take("revisit", index)):
                continue
            revisited = _judged(entry, state.analysed["revisit", index], index, (x_um, y_um))
            if (
                revisited.found
                and attempt == 0
                and revisited.centred_error_um > self._settings.revisit.centre_within_um
            ):
                self._offset_um.append(
                    (revisited.x_um - planned.x_um, revisited.y_um - planned.y_um)
                )
                x_um, y_um = revisited.x_um, revisited.y_um
                continue
            self._post(revisited)
            return
        if planned.entry_id not in state.revisited:
            self._post(Skipped(f"revisit of {entry.entry_id}", "its frame was lost twice"))


# --- pure helpers --------------------------------------------------------------------------


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception that is not itself a group."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first_cause(error)
        return error
    return group


def _check_size(
    area: Polygon, width_um: float, height_um: float, overlap_ratio: float, what: str
) -> None:
    """Raises SearchFailed for an area that nobody means to cover."""
    tiles = area.area / (width_um * height_um * (1.0 - overlap_ratio) ** 2)
    if not tiles <= _MOST_TILES:
        x_min, y_min, x_max, y_max = area.bounds
        raise SearchFailed(
            f"the {what} of {x_max - x_min:.4g} x {y_max - y_min:.4g} um would take {tiles:.3g} "
            f"frames of {width_um:.4g} x {height_um:.4g} um, at most {_MOST_TILES} are planned; "
            f"narrow [safety], or choose another {what}.objective"
        )


def _no_light(pixels: Pixels, bit_depth: int) -> str:
    """Why a frame shows nothing at all, "" if it does; looks at every 16th row and column."""
    some, top = pixels[::16, ::16], 2**bit_depth - 1
    if np.count_nonzero(some > top // 50) <= some.size // 1000:
        return _BLACK
    return _SATURATED if np.count_nonzero(some >= top) >= 0.99 * some.size else ""


def _exposed(shot: _Shot, frame: Frame) -> Exposed:
    return Exposed(
        shot=shot.shot,
        index=shot.index,
        number=frame.number,
        exposed_from_s=frame.exposed_from_s,
        exposed_until_s=frame.exposed_until_s,
        stage_x_um=frame.pose.stage_x_um,
        stage_y_um=frame.pose.stage_y_um,
        focus_z_um=frame.pose.focus_z_um,
        objective=frame.pose.objective,
        pixel_size_nm=frame.pixel_size_nm,
        exposure_s=frame.exposed_until_s - frame.exposed_from_s,
    )


def _upright(picture: npt.NDArray[Any], geometry: CameraGeometry) -> npt.NDArray[Any]:
    """Turn a small picture so that right is stage +x and up is stage +y."""
    if geometry.flip_x:
        picture = picture[:, ::-1]
    if geometry.flip_y:
        picture = picture[::-1]
    return np.ascontiguousarray(np.rot90(picture, round(geometry.rotation_deg / 90.0)))


def _chip_of_limits(envelope: Envelope) -> ChipFound:
    """No chip was looked for: its frame is the envelope's lower left corner."""
    ring = (
        (envelope.x.min_um, envelope.y.min_um),
        (envelope.x.max_um, envelope.y.min_um),
        (envelope.x.max_um, envelope.y.max_um),
        (envelope.x.min_um, envelope.y.max_um),
    )
    return ChipFound(ring, envelope.x.min_um, envelope.y.min_um, 0.0, 0.0)


def _structure(picture: OverviewFrame, tile: PlannedTile, scan: ScanPlanned) -> float:
    """Mean gradient of the overview within a tile's field; 0 where this picture misses it."""
    h_px, w_px = picture.pixels.shape[:2]
    col = (tile.x_um - picture.centre_x_um) / picture.um_per_px + (w_px - 1) / 2
    row = (picture.centre_y_um - tile.y_um) / picture.um_per_px + (h_px - 1) / 2
    half_w_px = scan.field_w_um / picture.um_per_px / 2
    half_h_px = scan.field_h_um / picture.um_per_px / 2
    left, right = math.floor(col - half_w_px), math.ceil(col + half_w_px)
    top, bottom = math.floor(row - half_h_px), math.ceil(row + half_h_px)
    if left < 0 or top < 0 or right >= w_px or bottom >= h_px:
        return 0.0
    grey = picture.pixels[top : bottom + 1, left : right + 1].mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def _judged(
    entry: CatalogueEntry, seen: Analysed, shot_index: int, centre_um: tuple[float, float]
) -> Revisited:
    """Which of the terraces seen at higher magnification is the entry, and what it says of it."""
    outline = Polygon(entry.outline_um).buffer(0)
    best: tuple[float, Piece, Polygon] | None = None
    for piece in seen.pieces:
        shape = Polygon(piece.outline_um, piece.holes_um).buffer(0)
        # The stage may be some um off: the overlap counts after centring one on the other.
        shift_x_um = outline.centroid.x - shape.centroid.x
        shift_y_um = outline.centroid.y - shape.centroid.y
        if math.hypot(shift_x_um, shift_y_um) > 15.0 + 0.3 * math.sqrt(entry.area_um2):
            continue
        shared = outline.intersection(_shifted(shape, shift_x_um, shift_y_um)).area
        overlap = shared / (outline.area + shape.area - shared)
        if piece.material == entry.material and piece.layers == entry.layers:
            overlap *= 1.2
        if best is None or overlap > best[0]:
            best = (overlap, piece, shape)
    if best is None or best[0] < 0.25:
        return Revisited(
            entry_id=entry.entry_id,
            shot_index=shot_index,
            centred_error_um=math.nan,
            x_um=entry.stage_x_um,
            y_um=entry.stage_y_um,
            area_um2=entry.area_um2,
            material=entry.material,
            layers=entry.layers,
            probability=entry.probability,
            contrast_rgb=entry.contrast_rgb,
            sharpness=seen.sharpness,
            found=False,
            reason=seen.reason or "no terrace of like shape at the place",
        )
    _, piece, shape = best
    x_um, y_um = shape.centroid.x, shape.centroid.y
    probability = dict(piece.layer_probabilities).get(piece.layers, 0.0)
    return Revisited(
        entry_id=entry.entry_id,
        shot_index=shot_index,
        centred_error_um=math.hypot(x_um - centre_um[0], y_um - centre_um[1]),
        x_um=x_um,
        y_um=y_um,
        area_um2=piece.area_um2,
        material=piece.material,
        layers=piece.layers,
        probability=probability,
        contrast_rgb=piece.contrast_rgb,
        sharpness=seen.sharpness,
        found=True,
        reason="",
    )


def _shifted(shape: Polygon, x_um: float, y_um: float) -> Polygon:
    return Polygon(
        [(x + x_um, y + y_um) for x, y in shape.exterior.coords],
        [[(x + x_um, y + y_um) for x, y in ring.coords] for ring in shape.interiors],
    )
