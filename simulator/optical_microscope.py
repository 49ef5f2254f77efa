"""A bright-field microscope that knows the truth: stage, focus, turret, lamp and camera.

It speaks `drivers.api` and nothing else, so the controller cannot tell it from a real one. Time is
the running loop's: on `simulator.clock.VirtualTimeLoop` a night's scan takes minutes, and drawing
the pictures costs the instrument nothing.

What a frame shows follows from where the sample truly was while the shutter stood open, backlash,
ring-down, drift and all; what it SAYS follows from the encoders. The difference is the point.
Pictures come from a `Scene`; this file is about machinery.

The truth leaves through `SimulatedMicroscope.truth()`, a door for tests, training and benchmarks.
A lens that touches the sample is not stopped, only counted there: `Truth.collisions`.
"""

# ruff: noqa: D102 - the Protocols in drivers.api say what their methods mean

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from drivers.api import (
    Frame,
    Objective,
    Pixels,
    Pose,
)
from drivers.errors import Refused
from drivers.software_camera import CameraTiming, SoftwareCamera
from simulator.axes import Axes, SimulatedFocusAxis, SimulatedStage
from simulator.chip import Chip, ChipSettings
from simulator.clock import rendering, run_free
from simulator.faults import FaultKind, FaultSettings
from simulator.mechanics import (
    AxisSettings,
    Drift,
    at_rest,
    noise_um,
    ring_um,
    seeded_drift,
)
from simulator.optics import OpticsSettings
from simulator.render import Renderer
from simulator.sensor import SensorSettings
from simulator.wiring import SimulatedTurret, Tray, Wiring

_STILL_BELOW_PX = 0.2  # a shorter smear than this is not seen beside the pixel itself


class Section(BaseModel):
    """A table of settings: frozen, closed, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CameraSettings(Section):
    """The camera's pace, how it is mounted and how much it can keep."""

    height_px: int = Field(default=1200, ge=8, le=16_384)
    width_px: int = Field(default=1920, ge=8, le=16_384)
    exposure_s: float = Field(default=0.012, gt=0, le=3600)  # when the instrument is opened
    min_exposure_s: float = Field(default=1e-4, gt=0, le=3600)
    max_exposure_s: float = Field(default=10.0, gt=0, le=3600)
    max_rate_hz: float = Field(default=40.0, gt=0, le=100_000)
    buffer_frames: int = Field(default=8, ge=1, le=10_000)
    rotation_deg: Literal[0, 90, 180, 270] = 0  # counter-clockwise, camera's right to stage's +x
    flip_x: bool = False  # mirrored left to right, before the turn
    flip_y: bool = False

    @model_validator(mode="after")
    def _exposure_is_in_range(self) -> CameraSettings:
        if not self.min_exposure_s <= self.exposure_s <= self.max_exposure_s:
            raise ValueError("exposure_s must lie between min_exposure_s and max_exposure_s")
        return self


class FocusAxisSettings(AxisSettings):
    """The same mechanics, a hundred times finer."""

    min_um: float = Field(default=-3_000.0, ge=-1e6, le=1e6)
    max_um: float = Field(default=3_000.0, ge=-1e6, le=1e6)
    speed_um_per_s: float = Field(default=1_000.0, gt=0, le=1e6)
    acceleration_um_per_s2: float = Field(default=20_000.0, gt=0, le=1e8)
    settle_s: float = Field(default=0.03, ge=0, le=10)
    resolution_um: float = Field(default=0.025, gt=0, le=100)
    ring_amplitude_um: float = Field(default=0.3, ge=0, le=100)
    ring_frequency_hz: float = Field(default=80.0, gt=0, le=1000)
    backlash_um: float = Field(default=0.6, ge=0, le=100)
    encoder_noise_um: float = Field(default=0.005, ge=0, le=10)
    drift_um_per_min: float = Field(default=0.02, ge=0, le=100)
    wander_um: float = Field(default=0.05, ge=0, le=100)


class ObjectiveSettings(Section):
    """One position of the turret; offsets as in `drivers.api.Objective`."""

    name: str = Field(min_length=1, max_length=32)
    magnification: float = Field(gt=0, le=1000)
    numerical_aperture: float = Field(gt=0, lt=1.6)
    pixel_size_nm: float = Field(gt=0, le=1e5)
    parfocal_z_um: float = Field(default=0.0, ge=-1e4, le=1e4)
    parcentric_x_um: float = Field(default=0.0, ge=-1e4, le=1e4)
    parcentric_y_um: float = Field(default=0.0, ge=-1e4, le=1e4)
    free_working_distance_um: float = Field(default=1_000.0, gt=0, le=1e5)

    def objective(self) -> Objective:
        """The same in the drivers' words."""
        return Objective(**self.model_dump())


def _objective(
    magnification: float,
    numerical_aperture: float,
    z_um: float,
    x_um: float,
    y_um: float,
    free_um: float,
) -> ObjectiveSettings:
    return ObjectiveSettings(
        name=f"{magnification:g}x",
        magnification=magnification,
        numerical_aperture=numerical_aperture,
        pixel_size_nm=384.0 * 20 / magnification,  # that of the camera in the shared photographs
        parfocal_z_um=z_um,
        parcentric_x_um=x_um,
        parcentric_y_um=y_um,
        free_working_distance_um=free_um,
    )


# Apertures and working distances as in common lines of bright-field plan objectives.
_OBJECTIVES = (
    _objective(5, 0.15, -40.0, 41.0, -43.0, 23_500.0),
    _objective(10, 0.30, -12.0, 18.0, 12.0, 17_500.0),
    _objective(20, 0.45, 0.0, 0.0, 0.0, 4_500.0),
    _objective(50, 0.80, 13.0, 10.0, -10.0, 1_000.0),
    _objective(100, 0.90, 15.0, -30.0, 30.0, 1_000.0),
)


class TurretSettings(Section):
    """The objectives and the time from one to another."""

    objectives: tuple[ObjectiveSettings, ...] = Field(default=_OBJECTIVES, min_length=1)
    start: str = "20x"
    swap_s: float = Field(default=1.5, ge=0, le=60)

    @model_validator(mode="after")
    def _names_are_clear(self) -> TurretSettings:
        names = [objective.name for objective in self.objectives]
        if len(set(names)) != len(names):
            raise ValueError("every objective needs a name of its own")
        if self.start not in names:
            raise ValueError(f"start must be one of {', '.join(names)}")
        return self


class MicroscopeSettings(Section):
    """A whole simulated microscope with a chip under it. Everything follows from the seeds."""

    seed: int = Field(default=1, ge=0, le=2**31)  # of the machinery: drift, noise, faults
    chip: ChipSettings = ChipSettings()
    optics: OpticsSettings = OpticsSettings()
    sensor: SensorSettings = SensorSettings()
    camera: CameraSettings = CameraSettings()
    stage_x: AxisSettings = AxisSettings()
    stage_y: AxisSettings = AxisSettings()
    focus: FocusAxisSettings = FocusAxisSettings()
    turret: TurretSettings = TurretSettings()
    lamp_intensity_ratio: float = Field(default=1.0, ge=0, le=1)  # when the instrument is opened
    link_s: float = Field(default=0.001, ge=0, le=1)  # a command's way to its device
    faults: tuple[FaultSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """All that decides what one frame looks like, but for the scene itself."""

    number: int  # of the frame
    x_um: float  # the sample point that is truly on the optical axis, mid-exposure
    y_um: float
    defocus_um: float  # > 0: the sample is further from the lens than focus
    objective: Objective
    shape_px: tuple[int, int]  # (h, w), stage's x to the right and y up
    exposed_from_s: float
    exposure_s: float
    intensity_ratio: float
    velocity_um_per_s: tuple[float, float]  # of that point, mean over the exposure; 0 when still


class Scene(Protocol):
    """What lies under the lens and how light makes a picture of it."""

    def surface_z_um(self, x_um: float, y_um: float) -> float:
        """Where the reference objective is in focus, over a point of the sample."""
        ...

    def picture(self, view: View) -> Pixels:
        """(h, w, 3) RGB, uint8 for 8 bits and uint16 beyond; called from one worker thread."""
        ...


@dataclass(frozen=True, slots=True)
class Exposure:
    """What truly happened while one frame was exposed."""

    number: int
    exposed_from_s: float
    exposed_until_s: float
    x_um: float  # sample point on the optical axis, mid-exposure
    y_um: float
    focus_z_um: float
    defocus_um: float
    smear_um: float  # how far the sample came during the exposure
    objective: str


@dataclass(frozen=True, slots=True)
class Command:
    """A move that a device accepted."""

    at_s: float
    device: Literal["stage", "focus"]
    target_um: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The door for tests, training and benchmarks; nothing that controls may open it."""

    chip: Chip | None  # None: the scene was given, and is not a chip
    x_um: float  # stage, behind backlash, ring-down and drift
    y_um: float
    focus_z_um: float
    defocus_um: float
    clearance_um: float  # between lens and sample; <= 0: they touch
    collisions: int  # how often lens and sample came to touch
    exposures: tuple[Exposure, ...]
    commands: tuple[Command, ...]


class SimulatedMicroscope:
    """One microscope, opened and closed with `async with`; implements `drivers.api.Instrument`.

    scene: what lies under the lens; None: the chip of the settings.
    """

    def __init__(self, settings: MicroscopeSettings, scene: Scene | None = None) -> None:
        self._settings = settings
        self._chip: Chip | None = None
        if scene is None:
            self._chip = Chip.generate(settings.chip)
            scene = _ChipScene(self._chip, settings)
        self._body = _Body(settings, scene)
        self._film = _Film(self._body)
        self._camera = _camera(self._body, self._film)
        self._stage = SimulatedStage("simulated stage", self._body.axes_of("stage", "xy", 0))
        self._focus = SimulatedFocusAxis("simulated focus", self._body.axes_of("focus", "z", 2))
        self._turret = self._body.turret
        self._lamp = SimulatedLamp(self._body)

    @property
    def name(self) -> str:
        return "simulated optical microscope"

    @property
    def camera(self) -> SoftwareCamera[_Latent]:
        return self._camera

    @property
    def stage(self) -> SimulatedStage:
        return self._stage

    @property
    def focus(self) -> SimulatedFocusAxis:
        return self._focus

    @property
    def turret(self) -> SimulatedTurret:
        return self._turret

    @property
    def illumination(self) -> SimulatedLamp:
        return self._lamp

    async def __aenter__(self) -> SimulatedMicroscope:
        self._body.wiring.open()
        self._camera.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._lamp.extinguish()
        await self._stage.halt()
        await self._focus.halt()
        await self._camera.close()
        self._film.close()
        self._body.close()

    def describe(self) -> Mapping[str, str]:
        return {
            "instrument": self.name,
            "seed": str(self._settings.seed),
            "chip_seed": str(self._settings.chip.seed),
        }

    def truth(self) -> Truth:
        """What is really there and what really happened. Not for anything that controls."""
        body = self._body
        now_s = body.wiring.now_s()
        body.look_for_collision(now_s)
        x_um, y_um, z_um = body.sample_um(now_s)
        return Truth(
            chip=self._chip,
            x_um=x_um,
            y_um=y_um,
            focus_z_um=z_um,
            defocus_um=body.defocus_um(now_s),
            clearance_um=body.clearance_um(now_s),
            collisions=body.collisions,
            exposures=tuple(body.exposures),
            commands=tuple(body.commands),
        )


class _ChipScene:
    """The chip of the settings, drawn as the optics and the sensor of the settings show it."""

    def __init__(self, chip: Chip, settings: MicroscopeSettings) -> None:
        self._chip = chip
        self._renderer = Renderer(chip, settings.optics, settings.sensor, settings.seed)

    def surface_z_um(self, x_um: float, y_um: float) -> float:
        return float(self._chip.surface_z_um(x_um, y_um))

    def picture(self, view: View) -> Pixels:
        return self._renderer.render(
            view.objective,
            view.x_um,
            view.y_um,
            view.defocus_um,
            view.shape_px,
            frame_number=view.number,
            exposure_s=view.exposure_s,
            lamp_ratio=view.intensity_ratio,
            started_s=view.exposed_from_s,
            velocity_um_per_s=view.velocity_um_per_s,
        )


class _Body:
    """The steel: where every axis truly is, shared by the devices."""

    def __init__(self, settings: MicroscopeSettings, scene: Scene) -> None:
        self.settings = settings
        self.scene = scene
        self.wiring = Wiring("microscope", settings.faults, settings.seed)
        self.axes: tuple[AxisSettings, ...] = (settings.stage_x, settings.stage_y, settings.focus)
        self.motions = [at_rest(axis.start_um, axis.backlash_um) for axis in self.axes]
        self.drifts: list[Drift] = [
            seeded_drift(axis, settings.seed * 3 + index) for index, axis in enumerate(self.axes)
        ]
        self.turret = SimulatedTurret(
            "simulated turret",
            self.wiring,
            [each.objective() for each in settings.turret.objectives],
            settings.turret.start,
            settings.turret.swap_s,
            look=lambda: self.look_for_collision(self.wiring.now_s()),
        )
        self.intensity_ratio = settings.lamp_intensity_ratio
        self.collisions = 0
        self.exposures: list[Exposure] = []
        self.commands: list[Command] = []
        self._touching = False

    def close(self) -> None:
        self.look_for_collision(self.wiring.now_s())
        self.wiring.is_open = False

    def axes_of(self, device: Literal["stage", "focus"], letters: str, first: int) -> Axes:
        mine = self.axes[first : first + len(letters)]
        return Axes(
            self.wiring,
            device,
            tuple(zip(letters, mine, strict=True)),
            self.motions,
            first,
            link_s=self.settings.link_s,
            reading_um=self.reading_um,
            note=lambda now_s, to_um: self.commands.append(Command(now_s, device, to_um)),
            look=self.look_for_collision,
        )

    def reading_um(self, axis: int, now_s: float) -> float:
        noise = noise_um(self.axes[axis], self.settings.seed * 3 + axis, now_s)
        return self.motions[axis].encoder_um(now_s) + noise

    def sample_um(self, now_s: float) -> tuple[float, float, float]:
        """(x, y, z) of the mechanics behind the encoders, drift included."""
        since_s = self.wiring.since_s(now_s)
        x_um, y_um, z_um = (
            motion.sample_um(now_s) + ring_um(axis, motion, now_s) + drift.at_um(since_s)
            for axis, motion, drift in zip(self.axes, self.motions, self.drifts, strict=True)
        )
        return x_um, y_um, z_um

    def axis_point_um(self, now_s: float) -> tuple[float, float]:
        x_um, y_um, _ = self.sample_um(now_s)
        return x_um + self.turret.in_use.parcentric_x_um, y_um + self.turret.in_use.parcentric_y_um

    def defocus_um(self, now_s: float) -> float:
        best_um = self.scene.surface_z_um(*self.axis_point_um(now_s))
        return self.sample_um(now_s)[2] - best_um - self.turret.in_use.parfocal_z_um

    def clearance_um(self, now_s: float) -> float:
        return self.turret.in_use.free_working_distance_um + self.defocus_um(now_s)

    def look_for_collision(self, now_s: float) -> None:
        """Count it when lens and sample have come to touch.

        Each move is monotonic, so asking before every new command sees its lowest point.
        """
        touching = self.clearance_um(now_s) <= 0
        if touching and not self._touching:
            self.collisions += 1
        self._touching = touching


class SimulatedLamp:
    """`drivers.api.Illumination`."""

    def __init__(self, body: _Body) -> None:
        self._body = body

    @property
    def name(self) -> str:
        return "simulated lamp"

    async def set_intensity_ratio(self, ratio: float) -> None:
        self._body.wiring.check("lamp")
        await asyncio.sleep(self._body.settings.link_s)
        self._body.wiring.strike("lamp")
        if not 0 <= ratio <= 1:
            raise Refused("lamp", f"asked for an intensity of {ratio}; 0 to 1 is possible")
        self._body.intensity_ratio = float(ratio)

    async def intensity_ratio(self) -> float:
        self._body.wiring.check("lamp")
        return self._body.intensity_ratio

    def extinguish(self) -> None:
        """Dark at once, whatever the link does."""
        self._body.intensity_ratio = 0.0


@dataclass(frozen=True, slots=True)
class _Latent:
    """An exposed frame that has not been read out yet."""

    view: View
    pose: Pose
    from_s: float
    until_s: float
    faults: frozenset[FaultKind]
    is_dark: bool  # the turret was turning


class _Film:
    """What the camera sees: the sample, through faults."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._settings = body.settings.camera
        self._sensor = body.settings.sensor
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="simulated-camera")
        self._faults: frozenset[FaultKind] = frozenset()  # of the exposure under way
        self._tray = Tray()

    def check_link(self) -> None:
        self._body.wiring.check("camera")

    def begin(self, number: int) -> None:
        self._faults = self._body.wiring.strike("camera")

    def expose(self, number: int, from_s: float, until_s: float, exposure_s: float) -> _Latent:
        with rendering():  # knowing the truth costs a real microscope no time
            return self._exposed(number, from_s, until_s, exposure_s)

    def _exposed(self, number: int, from_s: float, until_s: float, exposure_s: float) -> _Latent:
        body = self._body
        body.look_for_collision(until_s)
        middle_s = (from_s + until_s) / 2
        x_um, y_um = body.axis_point_um(middle_s)
        begin_um, end_um = body.sample_um(from_s), body.sample_um(until_s)
        way_um = end_um[0] - begin_um[0], end_um[1] - begin_um[1]
        smear_um = math.hypot(*way_um)
        objective = body.turret.in_use
        is_still = smear_um * 1e3 < _STILL_BELOW_PX * objective.pixel_size_nm
        velocity_um_per_s = way_um[0] / (until_s - from_s), way_um[1] / (until_s - from_s)
        defocus_um = body.defocus_um(middle_s)
        body.exposures.append(
            Exposure(
                number=number,
                exposed_from_s=from_s,
                exposed_until_s=until_s,
                x_um=x_um,
                y_um=y_um,
                focus_z_um=body.sample_um(middle_s)[2],
                defocus_um=defocus_um,
                smear_um=smear_um,
                objective=objective.name,
            )
        )
        shape_px = self._settings.height_px, self._settings.width_px
        view = View(
            number=number,
            x_um=x_um,
            y_um=y_um,
            defocus_um=defocus_um,
            objective=objective,
            shape_px=shape_px if self._settings.rotation_deg % 180 == 0 else shape_px[::-1],
            exposed_from_s=from_s,
            exposure_s=exposure_s,
            intensity_ratio=body.intensity_ratio,
            velocity_um_per_s=(0.0, 0.0) if is_still else velocity_um_per_s,
        )
        pose = Pose(
            stage_x_um=body.reading_um(0, middle_s),
            stage_y_um=body.reading_um(1, middle_s),
            focus_z_um=body.reading_um(2, middle_s),
            objective=objective.name,
        )
        is_dark = from_s < body.turret.in_place_s
        return _Latent(view, pose, from_s, until_s, self._faults, is_dark)

    async def develop(self, latent: _Latent, due_s: float) -> Sequence[Frame]:
        pixels = await run_free(self._painter, self._developed, latent, due_s=due_s)
        self._body.wiring.check("camera")
        view = latent.view
        frame = Frame(
            pixels=pixels,
            number=view.number,
            exposed_from_s=latent.from_s,
            exposed_until_s=latent.until_s,
            pose=latent.pose,
            pixel_size_nm=view.objective.pixel_size_nm,
            bit_depth=self._sensor.bit_depth,
            optics={
                "exposure_s": view.exposure_s,
                "intensity_ratio": view.intensity_ratio,
                "colour_temperature_k": self._body.settings.optics.colour_temperature_k,
            },
        )
        return self._tray.handed_out(frame, latent.faults)

    def left_over(self) -> Sequence[Frame]:
        return self._tray.left_over()

    def close(self) -> None:
        """Let go of the thread."""
        with rendering():
            self._painter.shutdown(cancel_futures=True)

    def _developed(self, latent: _Latent) -> Pixels:
        """The picture as the camera hands it out; runs in the painter's thread."""
        if latent.is_dark or "black" in latent.faults:
            pixels = self._flat(0)
        elif "saturated" in latent.faults:
            pixels = self._flat(self._sensor.largest_dn)
        else:
            pixels = self._scene_picture(latent.view)
        if "wrong_size" in latent.faults:
            pixels = cast(Pixels, np.ascontiguousarray(pixels[: pixels.shape[0] // 2]))
        pixels.setflags(write=False)
        return pixels

    def _scene_picture(self, view: View) -> Pixels:
        pixels = self._body.scene.picture(view)
        # The camera's right shows the stage's direction R F right: undo the turn, then mirror.
        pixels = np.rot90(pixels, -(self._settings.rotation_deg // 90))
        if self._settings.flip_x:
            pixels = pixels[:, ::-1]
        if self._settings.flip_y:
            pixels = pixels[::-1]
        return cast(Pixels, np.ascontiguousarray(pixels))

    def _flat(self, value: int) -> Pixels:
        shape_px = self._settings.height_px, self._settings.width_px
        return cast(Pixels, np.full((*shape_px, 3), value, self._sensor.dtype))


def _camera(body: _Body, film: _Film) -> SoftwareCamera[_Latent]:
    settings, sensor = body.settings.camera, body.settings.sensor
    # A rolling shutter reads a row as soon as it is exposed; a global one afterwards.
    is_rolling = sensor.shutter == "rolling"
    timing = CameraTiming(
        min_exposure_s=settings.min_exposure_s,
        max_exposure_s=settings.max_exposure_s,
        readout_s=0.0 if is_rolling else sensor.readout_s,
        max_rate_hz=settings.max_rate_hz,
        rolling_s=sensor.readout_s if is_rolling else 0.0,
        latency_s=body.settings.link_s,
        buffer_frames=settings.buffer_frames,
    )
    shape_px = settings.height_px, settings.width_px
    return SoftwareCamera(
        "simulated camera", shape_px, sensor.bit_depth, settings.exposure_s, timing, film
    )
