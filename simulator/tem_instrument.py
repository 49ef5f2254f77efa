"""A transmission electron microscope that knows the truth: column, goniometer, stigmator, camera.

It speaks `drivers.api`, so the controller cannot tell it from a real one; what a frame shows comes
from `simulator.tem`, which training and benchmarks call without an event loop.

- Lengths are those of the Protocols, um, and small: the stage is a goniometer with a piezo whose
  steps are tenths of a nanometre, and so are those of the objective's focus.
- Focus: `focus_z_um` is the height of the plane that the objective images, less that of a sample at
  height 0, so `defocus_um = focus_z_um - height of the sample there`. 0 is Gaussian focus. An HRTEM
  image of a thin object has next to no contrast there; what an operator wants, Scherzer's defocus,
  is `LensSettings.wanted_um`.
- Each entry of the turret is a mode (HRTEM or HAADF-STEM) at a magnification.
- Dose: HRTEM frames get `dose_rate_e_per_a2_per_s` for the exposure, STEM frames the current of the
  probe, spread over the field. The beam is off the sample between exposures.
- Adatoms hop from frame to frame, by the beam that takes it.

Drift, backlash and ring-down are those of any axis (`simulator.mechanics`). A HRTEM frame is drawn
at the place of its middle and smeared along the way that the sample takes meanwhile; the rows of a
STEM frame follow it. Left out: hysteresis of the lens, image shift and rotation with focus.
"""

# ruff: noqa: D102 - the Protocols in drivers.api say what their methods mean

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from drivers.api import AxisLimits, Frame, Objective, Pixels, Pose
from drivers.errors import Refused
from drivers.software_camera import CameraTiming, SoftwareCamera
from simulator.atoms import Sample, SampleSettings
from simulator.axes import Axes, SimulatedFocusAxis, SimulatedStage
from simulator.clock import rendering, run_free
from simulator.column import Dose, DoseLedger
from simulator.faults import FaultKind, FaultSettings
from simulator.mechanics import (
    AxisSettings,
    Drift,
    at_rest,
    noise_um,
    ring_um,
    seeded_drift,
)
from simulator.tem import CameraSettings, LensSettings, Mode, Shot, Tem, TemSettings
from simulator.wiring import SimulatedTurret, Tray, Wiring

_ELECTRON_PAS: Final = 1.602176634e-7  # the charge of one, in pA s
_SENSOR_PIXEL_NM: Final = 14_000.0  # what magnifications refer to
_A2_PER_UM2: Final = 1e8
_BIT_DEPTH: Final = 16


class Section(BaseModel):
    """A table of settings: frozen, closed, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FrameSettings(Section):
    """The camera's raster and pace, and how much can wait to be fetched."""

    height_px: int = Field(default=512, ge=16, le=4_096)
    width_px: int = Field(default=512, ge=16, le=4_096)
    exposure_s: float = Field(default=0.1, gt=0.0, le=100.0)  # when the instrument is opened
    min_exposure_s: float = Field(default=0.001, gt=0.0, le=100.0)
    max_exposure_s: float = Field(default=30.0, gt=0.0, le=1_000.0)
    max_rate_hz: float = Field(default=100.0, gt=0.0, le=10_000.0)
    buffer_frames: int = Field(default=8, ge=1, le=10_000)

    @model_validator(mode="after")
    def _exposure_is_in_range(self) -> FrameSettings:
        if not self.min_exposure_s <= self.exposure_s <= self.max_exposure_s:
            raise ValueError("exposure_s must lie between min_exposure_s and max_exposure_s")
        return self


class BeamSettings(Section):
    """How many electrons come down."""

    dose_rate_e_per_a2_per_s: float = Field(default=1e4, gt=0.0, le=1e9)  # HRTEM
    probe_pa: float = Field(default=20.0, gt=0.0, le=1e5)  # STEM


class FieldSettings(Section):
    """One mode at one magnification, as an entry of the turret."""

    name: str = Field(default="hrtem", min_length=1, max_length=32)
    mode: Mode = "hrtem"
    pixel_size_nm: float = Field(default=0.02, gt=0.0, le=0.5)


class TemStageSettings(AxisSettings):
    """A goniometer with a piezo: nanometres, drifting ones."""

    min_um: float = Field(default=-1_000.0, ge=-1e6, le=1e6)
    max_um: float = Field(default=1_000.0, ge=-1e6, le=1e6)
    speed_um_per_s: float = Field(default=20.0, gt=0, le=1e6)
    acceleration_um_per_s2: float = Field(default=200.0, gt=0, le=1e8)
    settle_s: float = Field(default=0.3, ge=0, le=10)
    resolution_um: float = Field(default=2e-4, gt=0, le=100)
    ring_amplitude_um: float = Field(default=2e-3, ge=0, le=100)
    ring_frequency_hz: float = Field(default=25.0, gt=0, le=1000)
    backlash_um: float = Field(default=0.0, ge=0, le=100)
    encoder_noise_um: float = Field(default=2e-5, ge=0, le=10)
    drift_um_per_min: float = Field(default=5e-4, ge=0, le=100)  # 0.5 nm a minute
    wander_um: float = Field(default=2e-4, ge=0, le=100)


class TemFocusSettings(AxisSettings):
    """The objective's current, as the height of the plane that it images."""

    min_um: float = Field(default=-20.0, ge=-1e6, le=1e6)
    max_um: float = Field(default=20.0, ge=-1e6, le=1e6)
    speed_um_per_s: float = Field(default=50.0, gt=0, le=1e6)
    acceleration_um_per_s2: float = Field(default=5_000.0, gt=0, le=1e8)
    settle_s: float = Field(default=0.1, ge=0, le=10)
    resolution_um: float = Field(default=1e-4, gt=0, le=100)
    ring_amplitude_um: float = Field(default=0.0, ge=0, le=100)
    ring_frequency_hz: float = Field(default=80.0, gt=0, le=1000)
    backlash_um: float = Field(default=0.0, ge=0, le=100)
    encoder_noise_um: float = Field(default=0.0, ge=0, le=10)
    drift_um_per_min: float = Field(default=5e-4, ge=0, le=1e4)
    wander_um: float = Field(default=2e-4, ge=0, le=100)


class StigmatorSettings(Section):
    """The coils, and the astigmatism that they are there for."""

    limit_um: float = Field(default=0.5, gt=0, le=1e4)
    settle_s: float = Field(default=0.05, ge=0, le=10)
    own_x_um: float = Field(default=0.0, ge=-1e3, le=1e3)  # of the lens, to be taken away
    own_y_um: float = Field(default=0.0, ge=-1e3, le=1e3)
    start_x_um: float = Field(default=0.0, ge=-1e4, le=1e4)
    start_y_um: float = Field(default=0.0, ge=-1e4, le=1e4)

    @model_validator(mode="after")
    def _start_is_in_range(self) -> StigmatorSettings:
        if max(abs(self.start_x_um), abs(self.start_y_um)) > self.limit_um:
            raise ValueError("start_x_um and start_y_um must lie within limit_um of zero")
        return self


class TemInstrumentSettings(Section):
    """A whole simulated TEM with a sample in it. Everything follows from the seeds."""

    seed: int = Field(default=1, ge=0, le=2**31)  # of noise, drift and faults
    sample: SampleSettings = SampleSettings(width_nm=40.0, height_nm=40.0)
    sample_height_um: float = Field(default=0.0, ge=-1e3, le=1e3)  # at the stage's (0, 0)
    tilt_um_per_mm: tuple[float, float] = (0.0, 0.0)  # of that height, along x and y
    thermal_nm: float = Field(default=0.006, ge=0.0, le=0.1)
    slice_nm: float | None = Field(default=None, gt=0.0, le=5.0)  # None: one plane
    lens: LensSettings = LensSettings()
    camera: CameraSettings = CameraSettings()
    row_jitter_px: float = Field(default=0.05, ge=0.0, le=10.0)
    frame: FrameSettings = FrameSettings()
    beam: BeamSettings = BeamSettings()
    fields: tuple[FieldSettings, ...] = Field(default=(FieldSettings(),), min_length=1)
    start_field: str | None = None  # None: the first
    field_swap_s: float = Field(default=0.5, ge=0, le=60)
    stage_x: TemStageSettings = TemStageSettings()
    stage_y: TemStageSettings = TemStageSettings()
    focus: TemFocusSettings = TemFocusSettings()
    stigmator: StigmatorSettings = StigmatorSettings()
    link_s: float = Field(default=0.001, ge=0, le=1)  # a command's way to its device
    faults: tuple[FaultSettings, ...] = ()

    @model_validator(mode="after")
    def _names_are_clear(self) -> TemInstrumentSettings:
        names = [each.name for each in self.fields]
        if len(set(names)) != len(names):
            raise ValueError("every field needs a name of its own")
        if self.start_field is not None and self.start_field not in names:
            raise ValueError(f"start_field must be one of {', '.join(names)}")
        return self

    def tem(self, field: FieldSettings) -> TemSettings:
        """The same without machinery, for `simulator.tem.Tem`; what drifts is the stage."""
        return TemSettings(
            seed=self.seed,
            height_px=self.frame.height_px,
            width_px=self.frame.width_px,
            pixel_size_nm=field.pixel_size_nm,
            dose_e_per_a2=self.dose_e_per_a2(field, self.frame.exposure_s),
            thermal_nm=self.thermal_nm,
            slice_nm=self.slice_nm,
            row_jitter_px=self.row_jitter_px,
            lens=self.lens,
            camera=self.camera,
            sample=self.sample,
        )

    def dose_e_per_a2(self, field: FieldSettings, exposure_s: float) -> float:
        """What one frame puts into each square angstrom of its field."""
        if field.mode == "hrtem":
            return self.beam.dose_rate_e_per_a2_per_s * exposure_s
        electrons = self.beam.probe_pa * exposure_s / _ELECTRON_PAS
        return electrons / self.area_a2(field)

    def area_a2(self, field: FieldSettings) -> float:
        """Of one frame."""
        return self.frame.height_px * self.frame.width_px * (10.0 * field.pixel_size_nm) ** 2

    def objective(self, field: FieldSettings) -> Objective:
        """A field in the drivers' words."""
        half_angle = 1e-3 * self.lens.half_angle_mrad(field.mode, field.pixel_size_nm)
        return Objective(
            name=field.name,
            magnification=_SENSOR_PIXEL_NM / field.pixel_size_nm,
            numerical_aperture=math.sin(half_angle),
            pixel_size_nm=field.pixel_size_nm,
        )


@dataclass(frozen=True, slots=True)
class TemExposure:
    """What truly happened while one frame was taken."""

    number: int
    exposed_from_s: float
    exposed_until_s: float
    x_um: float  # the sample point under the middle of the field, mid-exposure
    y_um: float
    moving_nm: tuple[float, float]  # of the sample, to the right and up, until the end
    focus_z_um: float
    defocus_um: float  # > 0: the sample is further from the lens than Gaussian focus
    stig_x_um: float  # astigmatism left
    stig_y_um: float
    dose_e_per_a2: float  # 0: the beam was blanked
    electrons_per_px: float
    objective: str


@dataclass(frozen=True, slots=True)
class TemCommand:
    """A change that a device accepted."""

    at_s: float
    device: Literal["stage", "focus", "stigmator"]
    target_um: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TemTruth:
    """The door for tests, training and benchmarks; nothing that controls may open it."""

    sample: Sample
    x_um: float  # the sample point under the middle of the field
    y_um: float
    focus_z_um: float
    defocus_um: float  # from Gaussian focus
    wanted_defocus_um: float  # Scherzer's in HRTEM, that of the narrowest probe in STEM
    best_focus_z_um: float  # the true focus that would make defocus the wanted one, at this place
    stig_x_um: float  # left in the lens
    stig_y_um: float
    depth_of_field_um: float  # with the field in use
    ledger: DoseLedger
    exposures: tuple[TemExposure, ...]
    commands: tuple[TemCommand, ...]


class SimulatedTem:
    """One TEM, opened and closed with `async with`; implements `drivers.api.Instrument`.

    sample: what lies in the beam; None: that of the settings.
    """

    def __init__(self, settings: TemInstrumentSettings, sample: Sample | None = None) -> None:
        self._settings = settings
        self._body = _Body(settings, sample)
        self._film = _Film(self._body)
        self._camera = _camera(settings, self._film)
        self._stage = SimulatedStage("simulated TEM goniometer", self._body.stage_axes())
        self._focus = SimulatedFocusAxis("simulated TEM objective", self._body.focus_axes())
        self._turret = self._body.turret
        self._stigmator = TemStigmator(self._body)
        self._beam = TemBeam(self._body, self._camera)
        self._phase_contrast = TemObjective(self._body)

    @property
    def name(self) -> str:
        return "simulated TEM"

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
    def illumination(self) -> None:
        return None

    @property
    def stigmator(self) -> TemStigmator:
        return self._stigmator

    @property
    def beam(self) -> TemBeam:
        return self._beam

    @property
    def phase_contrast(self) -> TemObjective:
        return self._phase_contrast

    async def __aenter__(self) -> SimulatedTem:
        self._body.wiring.open()
        self._camera.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._body.is_blanked = True
        await self._stage.halt()
        await self._focus.halt()
        await self._camera.close()
        self._film.close()
        self._body.wiring.is_open = False

    def describe(self) -> Mapping[str, str]:
        settings = self._settings
        return {
            "instrument": self.name,
            "seed": str(settings.seed),
            "sample": settings.sample.kind,
            "sample_seed": str(settings.sample.seed),
            "voltage_kv": f"{settings.lens.voltage_kv:g}",
            "spherical_mm": f"{settings.lens.spherical_mm:g}",
        }

    def truth(self) -> TemTruth:
        """What is really there and what really happened. Not for anything that controls."""
        body = self._body
        now_s = body.wiring.now_s()
        x_um, y_um = body.point_um(now_s)
        field = body.field
        lens = body.settings.lens
        focus_z_um, defocus_um = body.focus_um(now_s), body.defocus_um(now_s)
        wanted_um = lens.wanted_um(field.mode)
        stig_x_um, stig_y_um = body.stig_um()
        return TemTruth(
            sample=body.sample,
            x_um=x_um,
            y_um=y_um,
            focus_z_um=focus_z_um,
            defocus_um=defocus_um,
            wanted_defocus_um=wanted_um,
            best_focus_z_um=focus_z_um - defocus_um + wanted_um,
            stig_x_um=stig_x_um,
            stig_y_um=stig_y_um,
            depth_of_field_um=lens.depth_of_field_um(field.mode, field.pixel_size_nm),
            ledger=body.ledger,
            exposures=tuple(body.exposures),
            commands=tuple(body.commands),
        )

    def shot(self, number: int) -> Shot:
        """Frame `number` once more, with all that is known of it: the same truth's door.

        Raises KeyError for a frame that was not exposed or that saw no beam.
        """
        for exposure in self._body.exposures:
            if exposure.number == number and exposure.dose_e_per_a2 > 0.0:
                return self._body.shot(exposure, self._body.column(exposure.objective))
        raise KeyError(number)


class _Body:
    """Currents, coils and steel: what everything truly is, shared by the devices."""

    def __init__(self, settings: TemInstrumentSettings, sample: Sample | None) -> None:
        self.settings = settings
        self.sample = Sample(settings.sample) if sample is None else sample
        self.wiring = Wiring("TEM", settings.faults, settings.seed)
        self.axes = (settings.stage_x, settings.stage_y, settings.focus)
        self.motions = [at_rest(axis.start_um, axis.backlash_um) for axis in self.axes]
        self.drifts: list[Drift] = [
            seeded_drift(axis, settings.seed * 3 + index) for index, axis in enumerate(self.axes)
        ]
        self.fields = {each.name: each for each in settings.fields}
        self.turret = SimulatedTurret(
            "simulated TEM magnification",
            self.wiring,
            tuple(settings.objective(each) for each in settings.fields),
            settings.start_field or settings.fields[0].name,
            settings.field_swap_s,
        )
        self.is_blanked = False
        self.coils_um = (settings.stigmator.start_x_um, settings.stigmator.start_y_um)
        self.ledger = DoseLedger()
        self.exposures: list[TemExposure] = []
        self.commands: list[TemCommand] = []

    @property
    def field(self) -> FieldSettings:
        return self.fields[self.turret.in_use.name]

    def column(self, field: str) -> Tem:
        """The optics of one entry of the turret; each user its own, for it remembers."""
        return Tem(self.settings.tem(self.fields[field]), self.sample)

    def stage_axes(self) -> Axes:
        return self._axes("stage", ("x", "y"), 0)

    def focus_axes(self) -> Axes:
        return self._axes("focus", ("z",), 2)

    def _axes(
        self, device: Literal["stage", "focus"], letters: tuple[str, ...], first: int
    ) -> Axes:
        axes = self.axes[first : first + len(letters)]
        return Axes(
            self.wiring,
            device,
            tuple(zip(letters, axes, strict=True)),
            self.motions,
            first,
            link_s=self.settings.link_s,
            reading_um=self.reading_um,
            note=lambda now_s, to_um: self.commands.append(TemCommand(now_s, device, to_um)),
        )

    def reading_um(self, axis: int, now_s: float) -> float:
        noise = noise_um(self.axes[axis], self.settings.seed * 3 + axis, now_s)
        return self.motions[axis].encoder_um(now_s) + noise

    def true_um(self, axis: int, now_s: float) -> float:
        motion, settings = self.motions[axis], self.axes[axis]
        drift_um = self.drifts[axis].at_um(self.wiring.since_s(now_s))
        return motion.sample_um(now_s) + ring_um(settings, motion, now_s) + drift_um

    def point_um(self, now_s: float) -> tuple[float, float]:
        """The sample point under the middle of the field."""
        return self.true_um(0, now_s), self.true_um(1, now_s)

    def focus_um(self, now_s: float) -> float:
        return self.true_um(2, now_s)

    def defocus_um(self, now_s: float) -> float:
        x_um, y_um = self.point_um(now_s)
        tilt_x, tilt_y = self.settings.tilt_um_per_mm
        height_um = self.settings.sample_height_um + 1e-3 * (tilt_x * x_um + tilt_y * y_um)
        return self.focus_um(now_s) - height_um

    def stig_um(self) -> tuple[float, float]:
        """What the lens has and what the coils add."""
        own = self.settings.stigmator
        return own.own_x_um + self.coils_um[0], own.own_y_um + self.coils_um[1]

    def shot(self, exposure: TemExposure, column: Tem) -> Shot:
        """What the sample and the lens made of one exposure."""
        mode = self.fields[exposure.objective].mode
        # A scan is drawn from where its first row is.
        share = 0.5 if mode == "haadf" else 0.0
        moving_x, moving_y = exposure.moving_nm
        return column.expose(
            exposure.defocus_um,
            (exposure.stig_x_um, exposure.stig_y_um),
            number=exposure.number,
            x_nm=1e3 * exposure.x_um + share * moving_x,
            y_nm=1e3 * exposure.y_um + share * moving_y,
            mode=mode,
            dose_e_per_a2=exposure.dose_e_per_a2,
            moving_nm=exposure.moving_nm,
        )


class TemStigmator:
    """`drivers.api.Stigmator`; it hangs on the lens's power supply and shares its faults."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._settings = body.settings.stigmator

    @property
    def name(self) -> str:
        return "simulated TEM stigmator"

    @property
    def limits_um(self) -> tuple[AxisLimits, AxisLimits]:
        limits = AxisLimits(-self._settings.limit_um, self._settings.limit_um)
        return limits, limits

    @property
    def settle_s(self) -> float:
        return self._settings.settle_s

    async def set_um(self, x_um: float, y_um: float) -> None:
        body, limit_um = self._body, self._settings.limit_um
        body.wiring.check("focus")
        await asyncio.sleep(body.settings.link_s)
        faults = body.wiring.strike("focus")
        for target_um, letter in ((x_um, "x"), (y_um, "y")):
            if not -limit_um <= target_um <= limit_um:  # nan too is refused here
                raise Refused(
                    "stigmator",
                    f"asked for {letter} = {target_um} um; possible is {-limit_um:g} to "
                    f"{limit_um:g} um; nothing changed",
                )
        body.commands.append(TemCommand(body.wiring.now_s(), "stigmator", (x_um, y_um)))
        if faults & {"ignored_move", "stuck_moving"}:
            return
        body.coils_um = (float(x_um), float(y_um))

    async def get_um(self) -> tuple[float, float]:
        self._body.wiring.check("focus")
        return self._body.coils_um


class TemBeam:
    """`drivers.api.Beam`, in the mode of the field in use."""

    def __init__(self, body: _Body, camera: SoftwareCamera[_Latent]) -> None:
        self._body = body
        self._camera = camera

    @property
    def name(self) -> str:
        return "simulated TEM beam"

    @property
    def voltage_kv(self) -> float:
        return self._body.settings.lens.voltage_kv

    @property
    def current_pa(self) -> float:
        """Into the field of view."""
        settings, field = self._body.settings, self._body.field
        return settings.dose_e_per_a2(field, 1.0) * settings.area_a2(field) * _ELECTRON_PAS

    @property
    def convergence_mrad(self) -> float:
        """Of the cone that one point of the image is made of, before or behind the sample."""
        field = self._body.field
        return self._body.settings.lens.half_angle_mrad(field.mode, field.pixel_size_nm)

    @property
    def dwell_ns(self) -> float:
        return _dwell_ns(self._body.settings, self._body.field, self._camera.exposure_s)

    def depth_of_field_um(self, pixel_size_nm: float) -> float:
        return self._body.settings.lens.depth_of_field_um(self._body.field.mode, pixel_size_nm)

    async def blank(self, is_blanked: bool) -> None:
        self._body.wiring.check("camera")
        await asyncio.sleep(self._body.settings.link_s)
        self._body.is_blanked = bool(is_blanked)


class TemObjective:
    """`drivers.api.PhaseContrast`."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._lens = body.settings.lens

    @property
    def is_in_use(self) -> bool:
        return self._body.field.mode == "hrtem"

    @property
    def voltage_kv(self) -> float:
        return self._lens.voltage_kv

    @property
    def spherical_mm(self) -> float:
        return self._lens.spherical_mm

    @property
    def focal_spread_um(self) -> float:
        return self._lens.focal_spread_um

    @property
    def direction_mrad(self) -> float:
        return self._lens.direction_mrad

    @property
    def aperture_mrad(self) -> float:
        return self._lens.aperture_mrad


def _dwell_ns(settings: TemInstrumentSettings, field: FieldSettings, exposure_s: float) -> float:
    """A camera's pixels see the whole exposure, a scan's one after the other."""
    pixels = settings.frame.height_px * settings.frame.width_px if field.mode == "haadf" else 1
    return exposure_s * 1e9 / pixels


@dataclass(frozen=True, slots=True)
class _Latent:
    """A frame that has not been drawn yet."""

    exposure: TemExposure
    pose: Pose
    pixel_size_nm: float
    optics: Mapping[str, float | str]
    faults: frozenset[FaultKind]


class _Film:
    """What the camera sees: the sample, through faults."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._columns: dict[str, Tem] = {}  # the painter's
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="simulated-tem")
        self._faults: frozenset[FaultKind] = frozenset()  # of the exposure under way
        self._tray = Tray()

    def check_link(self) -> None:
        self._body.wiring.check("camera")

    def begin(self, number: int) -> None:
        self._faults = self._body.wiring.strike("camera")

    def expose(self, number: int, from_s: float, until_s: float, exposure_s: float) -> _Latent:
        body = self._body
        settings, field = body.settings, body.field
        middle_s = (from_s + until_s) / 2
        x_um, y_um = body.point_um(middle_s)
        begin_um, end_um = body.point_um(from_s), body.point_um(until_s)
        # The stage's position is the point under the beam: the sample itself goes the other way.
        moving_x, moving_y = (1e3 * (a - b) for a, b in zip(begin_um, end_um, strict=True))
        is_dark = body.is_blanked or from_s < body.turret.in_place_s
        dose = 0.0 if is_dark else settings.dose_e_per_a2(field, exposure_s)
        stig_x_um, stig_y_um = body.stig_um()
        exposure = TemExposure(
            number=number,
            exposed_from_s=from_s,
            exposed_until_s=until_s,
            x_um=x_um,
            y_um=y_um,
            moving_nm=(moving_x, moving_y),
            focus_z_um=body.focus_um(middle_s),
            defocus_um=body.defocus_um(middle_s),
            stig_x_um=stig_x_um,
            stig_y_um=stig_y_um,
            dose_e_per_a2=dose,
            electrons_per_px=dose * (10.0 * field.pixel_size_nm) ** 2,
            objective=field.name,
        )
        body.exposures.append(exposure)
        self._count(exposure, field)
        pose = Pose(
            stage_x_um=body.reading_um(0, middle_s),
            stage_y_um=body.reading_um(1, middle_s),
            focus_z_um=body.reading_um(2, middle_s),
            objective=field.name,
        )
        lens, camera = settings.lens, settings.camera
        optics: dict[str, float | str] = {
            "mode": field.mode,
            "exposure_s": exposure_s,
            "dwell_ns": _dwell_ns(settings, field, exposure_s),
            "dose_e_per_a2": dose,
            "electrons_per_px": exposure.electrons_per_px,
            "voltage_kv": lens.voltage_kv,
            "spherical_mm": lens.spherical_mm,
            "focal_spread_um": lens.focal_spread_um,
            "direction_mrad": lens.direction_mrad,
            "aperture_mrad": lens.aperture_mrad,
            "depth_of_field_um": lens.depth_of_field_um(field.mode, field.pixel_size_nm),
            "gain_dn_per_e": camera.gain_dn_per_e,
            "offset_dn": camera.offset_dn,
            "stig_x_um": body.coils_um[0],
            "stig_y_um": body.coils_um[1],
        }
        return _Latent(exposure, pose, field.pixel_size_nm, optics, self._faults)

    def _count(self, exposure: TemExposure, field: FieldSettings) -> None:
        if exposure.dose_e_per_a2 == 0.0:
            return
        frame, pixel_um = self._body.settings.frame, 1e-3 * field.pixel_size_nm
        self._body.ledger.add(
            Dose(
                x_um=exposure.x_um,
                y_um=exposure.y_um,
                width_um=frame.width_px * pixel_um,
                height_um=frame.height_px * pixel_um,
                electrons_per_px=exposure.electrons_per_px,
                electrons_per_um2=exposure.dose_e_per_a2 * _A2_PER_UM2,
            )
        )

    async def develop(self, latent: _Latent, due_s: float) -> Sequence[Frame]:
        pixels = await run_free(self._painter, self._developed, latent, due_s=due_s)
        self._body.wiring.check("camera")
        exposure = latent.exposure
        frame = Frame(
            pixels=pixels,
            number=exposure.number,
            exposed_from_s=exposure.exposed_from_s,
            exposed_until_s=exposure.exposed_until_s,
            pose=latent.pose,
            pixel_size_nm=latent.pixel_size_nm,
            bit_depth=_BIT_DEPTH,
            optics=latent.optics,
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
        camera, exposure = self._body.settings.camera, latent.exposure
        if "black" in latent.faults:
            pixels = self._flat(0)
        elif "saturated" in latent.faults:
            pixels = self._flat(2**_BIT_DEPTH - 1)
        elif exposure.dose_e_per_a2 == 0.0:
            pixels = self._dark(exposure.number)
        else:
            column = self._columns.get(exposure.objective)
            if column is None:
                column = self._columns[exposure.objective] = self._body.column(exposure.objective)
            pixels = camera.digital(self._body.shot(exposure, column).noisy_e)
        if "wrong_size" in latent.faults:
            pixels = cast(Pixels, np.ascontiguousarray(pixels[: pixels.shape[0] // 2]))
        pixels.setflags(write=False)
        return pixels

    def _dark(self, number: int) -> Pixels:
        settings = self._body.settings
        rng = np.random.default_rng([settings.seed, 5, number])
        noise = rng.standard_normal((settings.frame.height_px, settings.frame.width_px), np.float32)
        return settings.camera.digital(np.float32(settings.camera.read_noise_e) * noise)

    def _flat(self, value: int) -> Pixels:
        frame = self._body.settings.frame
        return cast(Pixels, np.full((frame.height_px, frame.width_px), value, np.uint16))


def _camera(settings: TemInstrumentSettings, film: _Film) -> SoftwareCamera[_Latent]:
    frame = settings.frame
    timing = CameraTiming(
        min_exposure_s=frame.min_exposure_s,
        max_exposure_s=frame.max_exposure_s,
        readout_s=0.0,
        max_rate_hz=frame.max_rate_hz,
        latency_s=settings.link_s,
        buffer_frames=frame.buffer_frames,
    )
    shape_px = frame.height_px, frame.width_px
    name = "simulated TEM camera"
    return SoftwareCamera(name, shape_px, _BIT_DEPTH, frame.exposure_s, timing, film)
