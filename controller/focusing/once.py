"""One focus on an opened instrument: motion, stream and the few-frame loop put together.

The strip is the run as a picture: every frame that was taken, in order, with what was seen in it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from controller.focusing.few_frames import FewFrames, FewFramesResult, FewFramesStep, Observe
from controller.focusing.optics import FocusOptics, focus_optics
from controller.geometry import CameraGeometry, footprint_um
from controller.motion import Motion
from controller.record.rundir import writing
from controller.safety import Envelope, Expose, Supervisor
from controller.settings import Settings
from controller.stream import FrameStream
from drivers.api import Beam, Frame, Instrument, Objective, Stigmator

_TILE_PX = 256
_TEXT_PX = 54
FAR_DOF: Final = 110.0  # searched when the start seems far: 100 and a little
LAST_MOVE_UNITS: Final = 8.0
_LEAST_WIDE, _BEST_WIDE, _MOST_WIDE = 2.0, 4.0, 8.5


def stigmator_of(instrument: Instrument) -> Stigmator | None:
    """The stigmator, where the instrument has one."""
    found = getattr(instrument, "stigmator", None)
    return found if isinstance(found, Stigmator) else None


@dataclass(frozen=True, slots=True)
class Magnification:
    """The fields of an electron beam, as a `Zoom`: the turret's entries that see wider."""

    motion: Motion
    fine: Objective
    wide: Objective

    @property
    def ratio(self) -> float:
        """Of the wide field over the fine one."""
        return self.wide.pixel_size_nm / self.fine.pixel_size_nm

    async def set_ratio(self, ratio: float) -> float:
        """Select one of the two; returns how far the focus was lifted for it."""
        name, motion = (self.fine.name if ratio == 1.0 else self.wide.name), self.motion
        if motion.objective is not None and motion.objective.name == name:
            return 0.0
        here = motion.where
        await motion.select_objective(name, "focus")
        return max(0.0, motion.supervisor.turret_z_um(here, name) - here.z.low_um)


def wide_field(
    motion: Motion, instrument: Instrument, objective: Objective
) -> Magnification | None:
    """The field that is nearest to four times as wide; None: there is none, or light makes it.

    A lens for light with less magnification has another focus and another depth of field. There
    the frame itself is wide: it is looked at in squares of up to four times the side, binned.
    """
    if not isinstance(getattr(instrument, "beam", None), Beam):
        return None
    ratios = {
        o.name: o.pixel_size_nm / objective.pixel_size_nm for o in instrument.turret.objectives
    }
    wider = [o for o in instrument.turret.objectives if _LEAST_WIDE < ratios[o.name] < _MOST_WIDE]
    if not wider:
        return None
    return Magnification(
        motion, objective, min(wider, key=lambda o: abs(math.log(ratios[o.name] / _BEST_WIDE)))
    )


@dataclass(frozen=True, slots=True, eq=False)
class Stand:
    """An opened instrument, and everything that a focus on it takes."""

    motion: Motion
    observe: Observe
    few: FewFrames
    optics: FocusOptics
    stigmator: Stigmator | None
    zoom: Magnification | None  # None: there is no wider field
    thread: Executor

    @property
    def z_um(self) -> float:
        """Where the focus axis says that it stands."""
        return self.motion.where.z.low_um


@asynccontextmanager
async def opened(
    settings: Settings, instrument: Instrument, make: Callable[[float, bool], FewFrames]
) -> AsyncIterator[Stand]:
    """Open links and stream, and fit the focus to the lens that is in.

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
        optics = focus_optics(instrument, objective)

        async def observe() -> Frame:
            lens = motion.objective or objective
            field_um = footprint_um(instrument.camera.shape_px, lens.pixel_size_nm, geometry)
            light = Expose(camera.exposure_s, *field_um, "focus")
            return await stream.snap(motion, light, camera.frame_timeout_s + camera.exposure_s)

        stigmator = stigmator_of(instrument)
        zoom = wide_field(motion, instrument, objective)
        few = fitted_to(
            make(optics.depth_of_field_um, stigmator is not None),
            optics,
            1.0 if zoom is None else zoom.ratio,
            motion.where.z.low_um,
            supervisor.envelope,
            settings.motion.focus_overshoot_um,
        )
        with ThreadPoolExecutor(1, "focus") as thread:
            yield Stand(motion, observe, few, optics, stigmator, zoom, thread)


async def focus_instrument(
    settings: Settings,
    instrument: Instrument,
    make: Callable[[float, bool], FewFrames],
    on_step: Callable[[FewFramesStep], None],
) -> tuple[FewFramesResult, float]:
    """Focus where the instrument stands; returns the result and the depth of field in um.

    make: as for `opened`. A first frame that lies beyond the range of the settings, and a range
    beyond 40 DOF, bring in the wide field where there is one.
    """
    async with opened(settings, instrument, make) as stand:
        return await focus_at(stand, on_step), stand.optics.depth_of_field_um


async def focus_at(stand: Stand, on_step: Callable[[FewFramesStep], None]) -> FewFramesResult:
    """Focus once on what is open, from where it stands, and once more if that seems far off."""
    few, start_um = stand.few, stand.z_um

    async def run(few: FewFrames) -> FewFramesResult:
        return await few.focus(
            stand.motion,
            stand.observe,
            start_um,
            stand.stigmator,
            stand.thread,
            on_step,
            stand.zoom,
        )

    result = await run(few)
    if result.is_focused or not seems_far(result, few.acnet.prior.range_dof):
        return result
    again = await run(reaching(few, FAR_DOF))
    return replace(again, steps=(*result.steps, *again.steps))


def fitted_to(
    few: FewFrames,
    optics: FocusOptics,
    wide_ratio: float,
    start_z_um: float,
    envelope: Envelope,
    overshoot_um: float,
) -> FewFrames:
    """The same for one lens: its blur, its unit, its wide field, its limits, its last move.

    Every position is reached by the same last move, of at least two brackets: then what a lens of
    iron owes to earlier moves is the same for all, and cancels.
    """
    unit_um = optics.unit_um
    units = optics.depth_of_field_um / unit_um
    net = few.acnet
    prior = replace(
        net.prior,
        range_dof=net.prior.range_dof * units,
        astigmatism_dof=net.prior.astigmatism_dof * units,
        blur_px_per_dof=optics.blur_px_per_unit,
    )
    limits = replace(
        net.limits,
        wide_ratio=wide_ratio,
        lowest_z_dof=(envelope.z.min_um - start_z_um) / unit_um,
        highest_z_dof=(envelope.z.max_um - start_z_um) / unit_um,
    )
    return replace(
        few,
        acnet=replace(net, prior=prior, limits=limits),
        depth_of_field_um=unit_um,
        overshoot_um=few.overshoot_um or max(overshoot_um, LAST_MOVE_UNITS * unit_um),
        lowest_z_um=envelope.z.min_um,
        highest_z_um=envelope.z.max_um,
    )


def reaching(few: FewFrames, range_dof: float) -> FewFrames:
    """The same, looking that far; the wide field comes in by itself where there is one."""
    prior = replace(few.acnet.prior, range_dof=range_dof)
    return replace(few, acnet=replace(few.acnet, prior=prior))


def seems_far(result: FewFramesResult, range_dof: float) -> bool:
    """Whether the frame at the start lay beyond what was searched, or showed nothing at all."""
    if range_dof >= FAR_DOF:
        return False
    first = result.steps[0].view
    if not first.in_distribution:
        return not first.reason.startswith(("black", "saturated"))
    return first.defocus_dof + 2.0 * first.defocus_sigma_dof > range_dof


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
