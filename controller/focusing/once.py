"""One focus on an opened instrument: motion, stream and the few-frame loop put together.

The strip is the run as a picture: every frame that was taken, in order, with what was seen in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from controller.focusing.few_frames import FewFrames, FewFramesResult, FewFramesStep
from controller.geometry import CameraGeometry, footprint_um
from controller.motion import Motion
from controller.record.rundir import writing
from controller.safety import Envelope, Expose, Supervisor
from controller.settings import Settings
from controller.stream import FrameStream
from drivers.api import Beam, Frame, Instrument, Stigmator

_TILE_PX = 256
_TEXT_PX = 54


def stigmator_of(instrument: Instrument) -> Stigmator | None:
    """The stigmator, where the instrument has one."""
    found = getattr(instrument, "stigmator", None)
    return found if isinstance(found, Stigmator) else None


def depth_of_field_um(instrument: Instrument, pixel_size_nm: float, objective_um: float) -> float:
    """Of the beam where there is one, else of the objective."""
    beam = getattr(instrument, "beam", None)
    return beam.depth_of_field_um(pixel_size_nm) if isinstance(beam, Beam) else objective_um


async def focus_instrument(
    settings: Settings,
    instrument: Instrument,
    make: Callable[[float, bool], FewFrames],
    on_step: Callable[[FewFramesStep], None],
) -> tuple[FewFramesResult, float]:
    """Focus where the instrument stands; returns the result and the depth of field in um.

    make: (depth of field in um, whether there is a stigmator) -> the eyes and the controller.
    """
    supervisor = Supervisor(
        Envelope.within(settings.safety, instrument.stage.limits_um, instrument.focus.limits_um),
        instrument.turret.objectives,
        settings.safety,
    )
    camera = settings.camera
    geometry = CameraGeometry(camera.rotation_deg, camera.flip_x, camera.flip_y)
    async with (
        instrument,
        Motion(instrument, supervisor, settings.motion) as motion,
        FrameStream(instrument.camera) as stream,
    ):
        await instrument.camera.set_exposure_s(camera.exposure_s)
        objective = await instrument.turret.current()
        dof_um = depth_of_field_um(
            instrument, objective.pixel_size_nm, objective.depth_of_field_um()
        )
        field_um = footprint_um(instrument.camera.shape_px, objective.pixel_size_nm, geometry)
        light = Expose(camera.exposure_s, *field_um, "focus")

        async def observe() -> Frame:
            return await stream.snap(motion, light, camera.frame_timeout_s + camera.exposure_s)

        stigmator = stigmator_of(instrument)
        few = make(dof_um, stigmator is not None)
        with ThreadPoolExecutor(1, "focus") as thread:
            result = await few.focus(
                motion, observe, motion.where.z.low_um, stigmator, thread, on_step
            )
        return result, dof_um


def strip(steps: Sequence[FewFramesStep], dof_um: float) -> npt.NDArray[np.uint8]:
    """(h, w, 3) RGB: the middle of every frame in order, with its position and score."""
    tiles: list[npt.NDArray[np.uint8]] = []
    start_um = steps[0].focus_z_um
    for step in steps:
        pixels = step.frame.pixels
        grey = pixels if pixels.ndim == 2 else pixels[..., 1]
        h_px, w_px = grey.shape
        side = min(h_px, w_px, 2 * _TILE_PX)
        top, left = (h_px - side) // 2, (w_px - side) // 2
        window = grey[top : top + side, left : left + side].astype(np.float32)
        low, high = np.percentile(window[::4, ::4], [0.5, 99.5])
        shown = np.clip((window - low) * (255.0 / max(float(high - low), 1.0)), 0, 255)
        small = cv2.resize(shown, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA)
        tile = np.full((_TILE_PX + _TEXT_PX, _TILE_PX + 4, 3), 24, dtype=np.uint8)
        tile[:_TILE_PX, :_TILE_PX] = small[..., None].astype(np.uint8)
        off_dof = (step.focus_z_um - start_um) / dof_um
        for line, text in enumerate(
            (
                f"{len(tiles) + 1} {step.purpose}  {off_dof:+.2f} DOF",
                f"stig {step.stig_x_um:+.2f} {step.stig_y_um:+.2f}  score {step.view.score:.1f}",
            )
        ):
            cv2.putText(
                tile,
                text,
                (6, _TILE_PX + 20 + 22 * line),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.42,
                (235, 235, 235),
                1,
                cv2.LINE_AA,
            )
        tiles.append(tile)
    return np.ascontiguousarray(np.hstack(tiles))


def write_strip(path: Path, steps: Sequence[FewFramesStep], dof_um: float) -> None:
    """Write the strip as a PNG. Raises BadRecord or DiskFull."""
    is_encoded, data = cv2.imencode(".png", strip(steps, dof_um)[..., ::-1])
    if is_encoded:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.tobytes())
