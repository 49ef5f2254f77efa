"""What happens to an exposure: taken, read out, recorded, looked at.

The stage arrives and settles, light is taken, and as soon as the shutter is shut the stage is on
its way to the next field. While it moves, the frame is read out, written and looked at, each on its
own thread; `develop` takes frames in the order of exposure. When disk or detector cannot keep up,
the exposures wait (`stalled_s` says how long); nothing is dropped.

A frame that did not come, or that shows nothing, is lost: `lost_indices` names it to whoever wants
it exposed again. Too many in a row end the search.

The detector's colours are fitted in passing, on the first tiles that show flakes; what was seen
before is looked at again from the disk once the scan has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from controller.errors import BadFrame, SearchFailed, StreamError
from controller.geometry import CameraGeometry, pixel_to_stage_um
from controller.messages import (
    Analysed,
    CalibrationFitted,
    Exposed,
    LightChanged,
    ShotKind,
    Skipped,
)
from controller.record.frames import FrameStore
from controller.record.recorder import Recorder
from controller.search.outline import OverviewFrame
from controller.search.pieces import pieces_of
from controller.search.ports import Eyes
from controller.search.session import Session
from controller.stream import Exposure
from drivers.api import Frame, Objective, Pixels, Pose
from inference.api import FlakeDetector
from inference.flakes.light import LightWatch
from inference.flakes.physics_detector import OTHER_LIGHT

RETAKES: Final = 2  # rounds over tiles whose frame was lost
BLACK: Final = "black: no light came; check lamp, shutter and camera.exposure_s"
_SATURATED: Final = "saturated: every pixel is at its end; lower camera.exposure_s or the lamp"
IN_FLIGHT: Final = 6  # frames exposed and not yet looked at
_OVERVIEW_PX: Final = 320  # width of the small pictures that find the chip
_CALIBRATION_TILES: Final = 12  # tiles with flakes that the colour calibration is fitted on
_STRANGE_TILES: Final = 3  # under another light: fewer are not worth colours of their own
_INHERITED: Final = 0.5  # of its confidence is left of a calibration under another light
_FAILED_IN_A_ROW: Final = 3  # frames that did not come: then the camera is given up
_UNLIT_IN_A_ROW: Final = 10  # frames that show nothing: then the lamp is


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


class Darkroom:
    """Feed it with `take` while `develop` runs in `group`."""

    def __init__(
        self,
        session: Session,
        eyes: Eyes,
        recorder: Recorder,
        frames: FrameStore,
        group: asyncio.TaskGroup,
        fitter: Executor,
    ) -> None:
        """fitter: a thread for the colour calibration, which delays nobody."""
        self._session = session
        self._eyes = eyes
        self._recorder = recorder
        self._frames = frames
        self._group = group
        self._fitter = fitter
        self.small: dict[int, OverviewFrame] = {}  # the overview, by index
        self.stalled_s = 0.0  # waiting for disk or detector
        self.blacks = 0  # among the tiles kept in this session
        self.last_loss = ""
        self._shots: asyncio.Queue[_Shot | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._lost: list[_Shot] = []
        self._lost_in_a_row = 0
        self._detectors: dict[str, FlakeDetector] = {}
        self._calibrating: asyncio.Task[None] | None = None
        self._light = LightWatch()

    # --- one exposure ----------------------------------------------------------------------

    async def take(self, shot: ShotKind, index: int) -> asyncio.Future[bool]:
        """Expose here and hand the frame on; returns when the stage may move again."""
        session = self._session
        loop = asyncio.get_running_loop()
        waited_from_s = loop.time()
        await self._room.acquire()
        self.stalled_s += loop.time() - waited_from_s
        exposure = await session.stream.expose(session.motion, session.light("search"))
        done: asyncio.Future[bool] = loop.create_future()
        self._shots.put_nowait(_Shot(shot, index, exposure, session.objective(), done))
        return done

    async def develop(self) -> None:
        """Frames in the order of exposure: read out, recorded, looked at."""
        session = self._session
        while (shot := await self._shots.get()) is not None:
            try:
                frame = await session.stream.frame(
                    shot.exposure.number,
                    session.settings.camera.frame_timeout_s + session.settings.camera.exposure_s,
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
            await self._recorder.save(exposed, frame, session.centre_um(frame.pose))
            await self._look(shot.shot, shot.index, frame.pixels, frame.pose, frame.bit_depth)
            self._room.release()
            shot.done.set_result(True)

    def _lose(self, shot: _Shot, error: StreamError) -> None:
        self._lost.append(shot)
        self._lost_in_a_row += 1
        self.last_loss = str(error)
        self._session.watcher.note(f"{shot.shot} {shot.index}: {error}")
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
        if fault == BLACK and self._session.settings.scan.area == "limits":
            self.blacks += 1  # the area is the user's own: it may well reach beyond the chip
        elif fault:
            raise _Unlit(self._session.instrument.camera.name, frame.number, fault)

    async def drain(self) -> None:
        """Wait until every frame taken so far was looked at."""
        for _ in range(IN_FLIGHT):
            await self._room.acquire()
        for _ in range(IN_FLIGHT):
            self._room.release()

    def lost_indices(self, kind: ShotKind) -> set[int]:
        """What has to be taken again; asked once."""
        lost = {shot.index for shot in self._lost if shot.shot == kind}
        self._lost.clear()
        return lost

    def close(self, *, is_in_order: bool) -> None:
        """Let `develop` end with the last shot; out of order, the colours are left unfitted."""
        if self._calibrating is not None and not is_in_order:
            self._calibrating.cancel()
        self._shots.put_nowait(None)

    # --- looking ---------------------------------------------------------------------------

    async def _look(
        self, shot: ShotKind, index: int, pixels: Pixels, pose: Pose, bit_depth: int
    ) -> None:
        """Analyse on the analyst's thread, and post what was seen."""
        session = self._session
        loop = asyncio.get_running_loop()
        if shot == "overview":
            self.small[index] = await loop.run_in_executor(
                session.analyst, self._shrunk, pixels, pose
            )
        else:
            seen = await loop.run_in_executor(
                session.analyst, self._analysed, shot, index, pixels, pose, bit_depth
            )
            session.post(seen)
            if shot == "tile":
                self._watch_light(seen)
                self._calibrate_in_passing()

    def _watch_light(self, seen: Analysed) -> None:
        """Tell of the first tile that shows another light; frames come in the order of exposure."""
        if not seen.in_distribution and not seen.reason.startswith(OTHER_LIGHT):
            return  # whatever fills the frame, it is no bare substrate
        change = self._light.seen(seen.substrate_rgb)
        if change is not None:
            words = change.in_words()
            self._session.post(
                LightChanged(
                    seen.shot,
                    seen.index,
                    change.before_rgb,
                    change.after_rgb,
                    change.is_tint,
                    words,
                )
            )
            self._session.watcher.note(f"{seen.shot} {seen.index}: {words}")

    async def look_again(self, shot: ShotKind, index: int) -> None:
        """Analyse a frame that is on the disk."""
        session = self._session
        exposed = session.state.exposed[shot, index]
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(session.analyst, self._frames.load, shot, index)
        pose = Pose(exposed.stage_x_um, exposed.stage_y_um, exposed.focus_z_um, exposed.objective)
        bit_depth = session.instrument.camera.bit_depth
        if shot == "overview":
            await self._look(shot, index, pixels, pose, bit_depth)
        else:
            session.post(
                await loop.run_in_executor(
                    session.analyst, self._analysed, shot, index, pixels, pose, bit_depth
                )
            )

    def _analysed(
        self, shot: ShotKind, index: int, pixels: Pixels, pose: Pose, bit_depth: int
    ) -> Analysed:
        session = self._session
        began_s = time.perf_counter()
        objective = session.objectives[pose.objective]
        detector = self._detector(objective)
        answer = detector.detect(pixels, objective.pixel_size_nm, bit_depth)
        sharpness = self._eyes.sharpness.measure(pixels)

        def to_stage(
            columns: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]
        ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
            return pixel_to_stage_um(
                columns, rows, pose, objective, session.shape_px, session.geometry
            )

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
        session = self._session
        objective = session.objectives[pose.objective]
        h_px, w_px = session.shape_px
        factor = _OVERVIEW_PX / w_px
        size = (_OVERVIEW_PX, max(1, round(h_px * factor)))
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        if small.ndim == 2:
            small = np.repeat(small[:, :, None], 3, axis=2)
        x_um, y_um = session.centre_um(pose)
        um_per_px = objective.pixel_size_nm * 1e-3 / factor
        bit_depth = session.instrument.camera.bit_depth
        return OverviewFrame(_upright(small, session.geometry), x_um, y_um, um_per_px, bit_depth)

    def _detector(self, objective: Objective) -> FlakeDetector:
        detector = self._detectors.get(objective.name)
        if detector is None:
            detector = self._eyes.detector(objective, self._session.state.calibrations)
            self._detectors[objective.name] = detector
        return detector

    # --- the detector's colours -------------------------------------------------------------

    def _calibrate_in_passing(self) -> None:
        """Start fitting the colours once enough tiles show flakes; the scan goes on meanwhile."""
        if self._calibrating is None and self._session.state.calibration is None:
            rich = self._rich_tiles()
            if len(rich) >= _CALIBRATION_TILES:
                self._calibrating = self._group.create_task(
                    self._calibrate(rich[:_CALIBRATION_TILES]), name="calibrate"
                )

    def _rich_tiles(self) -> list[int]:
        """Saved tiles that show flakes, in the order in which they were looked at."""
        return [
            index
            for (shot, index), seen in self._session.state.analysed.items()
            if shot == "tile"
            and seen.in_distribution
            and seen.pieces
            and self._session.state.is_done("tile", index)
        ]

    async def _calibrate(self, tiles: Sequence[int]) -> None:
        """Fit the microscope's colours on kept frames, on a thread that delays nobody."""
        session = self._session
        objective = session.objectives[session.settings.scan.objective]
        bit_depth = session.instrument.camera.bit_depth

        def fit() -> Sequence[CalibrationFitted]:
            images = [self._frames.load("tile", index) for index in tiles]
            return self._eyes.calibrate(images, objective, bit_depth)

        fitted = await asyncio.get_running_loop().run_in_executor(self._fitter, fit)
        if not fitted:
            session.post(
                Skipped("colour calibration", "nothing to fit on; nominal colours are used")
            )
        known = session.state.calibration
        for calibration in fitted:
            session.post(calibration if known is None else _inherited(calibration, known))
        self._detectors.clear()

    async def finish_calibration(self) -> None:
        """One calibration for all tiles: those seen under an older one are looked at again."""
        await self._recorder.flush()  # only what is on the disk can be looked at again
        if self._calibrating is not None:
            await self._calibrating
        elif self._session.state.calibration is None and (rich := self._rich_tiles()):
            await self._calibrate(rich[:_CALIBRATION_TILES])
        strange = self._tiles_under_another_light()
        if len(strange) >= _STRANGE_TILES:
            await self._calibrate(strange[:_CALIBRATION_TILES])
        for shot, index in sorted(self._session.state.outdated):
            await self.look_again(shot, index)

    def _tiles_under_another_light(self) -> list[int]:
        """Set aside because their substrate is not that of any calibration."""
        return [
            index
            for (shot, index), seen in sorted(self._session.state.analysed.items())
            if shot == "tile" and seen.reason.startswith(OTHER_LIGHT)
        ]


def _inherited(fitted: CalibrationFitted, known: CalibrationFitted) -> CalibrationFitted:
    """Of a later light on the same wafer: what is surer, its own fit or the first light's."""
    confidence = _INHERITED * known.confidence
    if fitted.confidence >= confidence:
        return fitted
    return replace(
        known,
        confidence=confidence,
        source=f"{known.source}, under another light",
        substrate_rgb=fitted.substrate_rgb,
    )


# --- pure helpers --------------------------------------------------------------------------


def _no_light(pixels: Pixels, bit_depth: int) -> str:
    """Why a frame shows nothing at all, "" if it does; looks at every 16th row and column."""
    some, top = pixels[::16, ::16], 2**bit_depth - 1
    if np.count_nonzero(some > top // 50) <= some.size // 1000:
        return BLACK
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
