"""A scanning electron microscope that knows the truth: lens, stigmator, stage, beam and scan.

It speaks `drivers.api`, so the controller cannot tell it from a real one; what a frame shows comes
from `simulator.column`, which training and benchmarks call without an event loop.

Working distance: what an operator sets is the distance at which the lens focuses. The focus axis
calls it `focus_z_um = -working_distance_um`, so that raising the focus means shortening it, and a
sample that lies further from the lens than focus has `defocus_um > 0` as everywhere:
`defocus_um = focus_z_um - z_of_best_focus_um`, with the best focus at minus the sample's distance.

A magnetic lens is no screw. Behind the current that the power supply reports lie

- settling: eddy currents hold back a share of each change, which decays with a time constant;
- hysteresis: the field lags behind by a share of the last change, in its direction. A change
  smaller than the one before it wears the older lag off only in proportion, so that the field is
  continuous and a small step after a large one still carries most of the large one's lag;
- drift, and backlash if asked for, as of any axis (`simulator.mechanics`).

One frame is one scan: `trigger` returns when the last row has been read, the beam is blanked
between scans, and the exposure is rows x (width x dwell + flyback). All of a frame is drawn with
the defocus of its middle; its rows follow the stage's drift. A stage that moves by more than the
margin of the field during a frame is drawn as if it moved by that margin.
"""

# ruff: noqa: D102 - the Protocols in drivers.api say what their methods mean

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from drivers.api import (
    AxisLimits,
    Frame,
    Kinematics,
    MotionState,
    Objective,
    Pixels,
    Pose,
)
from drivers.errors import Refused
from drivers.software_camera import CameraTiming, SoftwareCamera
from simulator.axes import Axes, SimulatedStage
from simulator.clock import rendering, run_free
from simulator.column import Column, ColumnSettings, DoseLedger, Place
from simulator.faults import FaultKind, FaultSettings
from simulator.mechanics import (
    AxisSettings,
    Drift,
    Motion,
    at_rest,
    halted,
    moved,
    noise_um,
    ring_um,
    seeded_drift,
)
from simulator.probe import BeamSettings
from simulator.scan import DetectorSettings, Scan, ScanSettings, dose_e_per_px
from simulator.specimen import Specimen, SpecimenSettings
from simulator.wiring import SimulatedTurret, Tray, Wiring, joint_kinematics, motion_state

__all__ = ["Column", "ColumnSettings", "SemSettings", "SimulatedSem"]

_PANEL_WIDTH_UM = 127_000.0  # of the print that magnifications of an SEM refer to


class Section(BaseModel):
    """A table of settings: frozen, closed, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FrameSettings(Section):
    """The scan's raster, its pace, and how much can wait to be fetched."""

    height_px: int = Field(default=512, ge=16, le=8_192)
    width_px: int = Field(default=512, ge=16, le=8_192)
    dwell_ns: float = Field(default=640.0, gt=0.0, le=1e9)  # when the instrument is opened
    min_dwell_ns: float = Field(default=20.0, gt=0.0, le=1e9)
    max_dwell_ns: float = Field(default=1e6, gt=0.0, le=1e9)
    buffer_frames: int = Field(default=8, ge=1, le=10_000)
    most_blur_px: int = Field(default=112, ge=8, le=2_048)  # what lies further off is left out

    @model_validator(mode="after")
    def _dwell_is_in_range(self) -> FrameSettings:
        if not self.min_dwell_ns <= self.dwell_ns <= self.max_dwell_ns:
            raise ValueError("dwell_ns must lie between min_dwell_ns and max_dwell_ns")
        return self


class FieldSettings(Section):
    """One magnification, as an entry of the turret."""

    name: str = Field(default="column", min_length=1, max_length=32)
    pixel_size_nm: float = Field(default=5.0, gt=0.0, le=1e6)


class SemStageSettings(AxisSettings):
    """A stage under an electron beam: slower and finer than one under a lens."""

    min_um: float = Field(default=-25_000.0, ge=-1e6, le=1e6)
    max_um: float = Field(default=25_000.0, ge=-1e6, le=1e6)
    speed_um_per_s: float = Field(default=2_000.0, gt=0, le=1e6)
    acceleration_um_per_s2: float = Field(default=20_000.0, gt=0, le=1e8)
    settle_s: float = Field(default=0.2, ge=0, le=10)
    ring_amplitude_um: float = Field(default=0.5, ge=0, le=100)
    ring_frequency_hz: float = Field(default=30.0, gt=0, le=1000)
    backlash_um: float = Field(default=0.5, ge=0, le=100)
    drift_um_per_min: float = Field(default=0.03, ge=0, le=100)  # 0.5 nm/s
    wander_um: float = Field(default=0.02, ge=0, le=100)


class LensSettings(AxisSettings):
    """The objective lens as a focus axis; positions are minus working distances."""

    min_um: float = Field(default=-50_000.0, ge=-1e6, le=1e6)
    max_um: float = Field(default=-1_000.0, ge=-1e6, le=1e6)
    start_um: float = Field(default=-10_000.0, ge=-1e6, le=1e6)
    speed_um_per_s: float = Field(default=5_000.0, gt=0, le=1e6)
    acceleration_um_per_s2: float = Field(default=500_000.0, gt=0, le=1e8)
    settle_s: float = Field(default=0.15, ge=0, le=10)  # declared
    resolution_um: float = Field(default=0.01, gt=0, le=100)
    ring_amplitude_um: float = Field(default=0.0, ge=0, le=100)
    ring_frequency_hz: float = Field(default=80.0, gt=0, le=1000)
    backlash_um: float = Field(default=0.0, ge=0, le=100)
    encoder_noise_um: float = Field(default=0.0, ge=0, le=10)
    drift_um_per_min: float = Field(default=0.2, ge=0, le=1e4)
    wander_um: float = Field(default=0.05, ge=0, le=100)
    settle_tau_s: float = Field(default=0.04, gt=0, le=10)
    settle_ratio: float = Field(default=0.1, ge=0, le=1)  # of a change, missing when it ends
    hysteresis_ratio: float = Field(default=0.03, ge=0, le=0.5)
    wobble_nm_per_um: tuple[float, float] = (0.0, 0.0)  # image shift with defocus, x and y


class StigmatorSettings(Section):
    """The coils, and the astigmatism that they are there for."""

    limit_um: float = Field(default=50.0, gt=0, le=1e4)
    settle_s: float = Field(default=0.05, ge=0, le=10)
    own_x_um: float = Field(default=0.0, ge=-1e3, le=1e3)  # of the column, to be taken away
    own_y_um: float = Field(default=0.0, ge=-1e3, le=1e3)
    start_x_um: float = Field(default=0.0, ge=-1e4, le=1e4)
    start_y_um: float = Field(default=0.0, ge=-1e4, le=1e4)
    hysteresis_ratio: float = Field(default=0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _start_is_in_range(self) -> StigmatorSettings:
        if max(abs(self.start_x_um), abs(self.start_y_um)) > self.limit_um:
            raise ValueError("start_x_um and start_y_um must lie within limit_um of zero")
        return self


class SemSettings(Section):
    """A whole simulated SEM with a specimen in it. Everything follows from the seeds."""

    seed: int = Field(default=1, ge=0, le=2**31)  # of the machinery: drift, noise, faults
    specimen: SpecimenSettings = SpecimenSettings()
    specimen_distance_um: float = Field(default=10_000.0, gt=0, le=1e6)  # lens to surface height 0
    beam: BeamSettings = BeamSettings()
    scan: ScanSettings = ScanSettings()
    detector: DetectorSettings = DetectorSettings()
    frame: FrameSettings = FrameSettings()
    fields: tuple[FieldSettings, ...] = Field(default=(FieldSettings(),), min_length=1)
    start_field: str | None = None  # None: the first
    field_swap_s: float = Field(default=0.2, ge=0, le=60)
    stage_x: SemStageSettings = SemStageSettings()
    stage_y: SemStageSettings = SemStageSettings()
    lens: LensSettings = LensSettings()
    stigmator: StigmatorSettings = StigmatorSettings()
    link_s: float = Field(default=0.001, ge=0, le=1)  # a command's way to its device
    faults: tuple[FaultSettings, ...] = ()

    @model_validator(mode="after")
    def _names_are_clear(self) -> SemSettings:
        names = [each.name for each in self.fields]
        if len(set(names)) != len(names):
            raise ValueError("every field needs a name of its own")
        if self.start_field is not None and self.start_field not in names:
            raise ValueError(f"start_field must be one of {', '.join(names)}")
        return self

    def column(self) -> ColumnSettings:
        """The same without machinery, for `simulator.column.Column`."""
        return ColumnSettings(
            seed=self.seed,
            height_px=self.frame.height_px,
            width_px=self.frame.width_px,
            pixel_size_nm=self.fields[0].pixel_size_nm,
            dwell_ns=self.frame.dwell_ns,
            most_blur_px=self.frame.most_blur_px,
            beam=self.beam,
            scan=self.scan,
            detector=self.detector,
            specimen=self.specimen,
        )

    def objectives(self) -> tuple[Objective, ...]:
        """The fields in the drivers' words."""
        return tuple(
            Objective(
                name=each.name,
                magnification=_PANEL_WIDTH_UM / (each.pixel_size_nm * 1e-3 * self.frame.width_px),
                numerical_aperture=math.sin(self.beam.convergence_mrad * 1e-3),
                pixel_size_nm=each.pixel_size_nm,
                free_working_distance_um=self.specimen_distance_um,
            )
            for each in self.fields
        )


@dataclass(frozen=True, slots=True)
class Lag:
    """What a field still owes to its current: hysteresis before and after the last change."""

    before_um: float = 0.0
    after_um: float = 0.0
    memory_um: float = 0.0  # a change of this size wears the older lag off entirely

    def changed(self, now_um: float, change_um: float, ratio: float) -> Lag:
        """After one more change; now_um: the lag at the moment it begins."""
        size_um = abs(change_um)
        if size_um == 0.0:
            return Lag(now_um, now_um, self.memory_um)
        kept = max(0.0, 1.0 - size_um / self.memory_um) if self.memory_um > 0.0 else 0.0
        return Lag(
            before_um=now_um,
            after_um=kept * now_um - ratio * change_um,
            memory_um=max(size_um, self.memory_um - size_um),
        )


@dataclass(frozen=True, slots=True)
class LensMotion:
    """A lens from its last command on: the current's way, and what the field makes of it."""

    current: Motion
    from_um: float  # of the current, when the command came
    to_um: float
    lag: Lag
    unsettled_um: float  # left over from the command before, decaying from `from_s` on
    from_s: float

    def focus_um(self, lens: LensSettings, now_s: float) -> float:
        """Where the lens truly focuses, drift left out."""
        return (
            self.current.sample_um(now_s)
            + self.lag_um(now_s)
            + self.unsettled_at_um(lens, now_s)
            + ring_um(lens, self.current, now_s)
        )

    def lag_um(self, now_s: float) -> float:
        """What hysteresis takes away."""
        if self.to_um == self.from_um:
            return self.lag.after_um
        done = (self.current.encoder_um(now_s) - self.from_um) / (self.to_um - self.from_um)
        return self.lag.before_um + (self.lag.after_um - self.lag.before_um) * done

    def unsettled_at_um(self, lens: LensSettings, now_s: float) -> float:
        """What eddy currents take away."""
        came_um = self.current.encoder_um(now_s) - self.from_um
        since_s = max(0.0, now_s - self.current.ends_s)
        older_um = self.unsettled_um * math.exp(-max(0.0, now_s - self.from_s) / lens.settle_tau_s)
        return older_um - lens.settle_ratio * came_um * math.exp(-since_s / lens.settle_tau_s)

    def then(self, lens: LensSettings, now_s: float, current: Motion, to_um: float) -> LensMotion:
        """After a new command."""
        from_um = current.encoder_um(now_s)
        return LensMotion(
            current=current,
            from_um=from_um,
            to_um=to_um,
            lag=self.lag.changed(self.lag_um(now_s), to_um - from_um, lens.hysteresis_ratio),
            unsettled_um=self.unsettled_at_um(lens, now_s),
            from_s=now_s,
        )


@dataclass(frozen=True, slots=True)
class SemExposure:
    """What truly happened while one frame was scanned."""

    number: int
    exposed_from_s: float
    exposed_until_s: float
    x_um: float  # the sample point under the middle of the field, mid-exposure
    y_um: float
    focus_z_um: float  # where the lens truly focused
    defocus_um: float  # > 0: the sample is further from the lens than best focus
    stig_x_um: float  # astigmatism left in the beam
    stig_y_um: float
    electrons_per_px: float  # 0: the beam was blanked
    objective: str


@dataclass(frozen=True, slots=True)
class SemCommand:
    """A change that a device accepted."""

    at_s: float
    device: Literal["stage", "focus", "stigmator"]
    target_um: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SemTruth:
    """The door for tests, training and benchmarks; nothing that controls may open it."""

    specimen: Specimen
    x_um: float  # stage, behind backlash, ring-down and drift
    y_um: float
    focus_z_um: float  # where the lens truly focuses
    defocus_um: float
    best_focus_z_um: float  # the true focus that would make it 0, at this place
    hysteresis_um: float  # true focus less set focus, as far as hysteresis goes
    stig_x_um: float  # left in the beam
    stig_y_um: float
    depth_of_field_um: float  # with the field in use
    ledger: DoseLedger
    exposures: tuple[SemExposure, ...]
    commands: tuple[SemCommand, ...]


class SimulatedSem:
    """One SEM, opened and closed with `async with`; implements `drivers.api.Instrument`.

    specimen: what lies under the beam; None: that of the settings.
    """

    def __init__(self, settings: SemSettings, specimen: Specimen | None = None) -> None:
        self._settings = settings
        self._body = _Body(settings, specimen)
        self._film = _Film(self._body)
        self._camera = _camera(settings, self._film)
        self._stage = SimulatedStage("simulated SEM stage", self._body.stage_axes())
        self._focus = SemFocusAxis(self._body)
        self._turret = self._body.turret
        self._stigmator = SemStigmator(self._body)
        self._beam = SemBeam(self._body, self._camera)

    @property
    def name(self) -> str:
        return "simulated SEM"

    @property
    def camera(self) -> SoftwareCamera[_Latent]:
        return self._camera

    @property
    def stage(self) -> SimulatedStage:
        return self._stage

    @property
    def focus(self) -> SemFocusAxis:
        return self._focus

    @property
    def turret(self) -> SimulatedTurret:
        return self._turret

    @property
    def illumination(self) -> None:
        return None

    @property
    def stigmator(self) -> SemStigmator:
        return self._stigmator

    @property
    def beam(self) -> SemBeam:
        return self._beam

    async def __aenter__(self) -> SimulatedSem:
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
            "specimen": settings.specimen.kind,
            "specimen_seed": str(settings.specimen.seed),
            "voltage_kv": f"{settings.beam.voltage_kv:g}",
            "convergence_mrad": f"{settings.beam.convergence_mrad:g}",
        }

    def truth(self) -> SemTruth:
        """What is really there and what really happened. Not for anything that controls."""
        body = self._body
        now_s = body.wiring.now_s()
        x_um, y_um = body.point_um(now_s)
        defocus_um = body.defocus_um(now_s)
        focus_z_um = body.focus_um(now_s)
        stig_x_um, stig_y_um = body.stig_um()
        return SemTruth(
            specimen=body.column.specimen,
            x_um=x_um,
            y_um=y_um,
            focus_z_um=focus_z_um,
            defocus_um=defocus_um,
            best_focus_z_um=focus_z_um - defocus_um,
            hysteresis_um=body.lens.lag_um(now_s),
            stig_x_um=stig_x_um,
            stig_y_um=stig_y_um,
            depth_of_field_um=body.settings.beam.depth_of_field_um(
                body.turret.in_use.pixel_size_nm
            ),
            ledger=body.column.ledger,
            exposures=tuple(body.exposures),
            commands=tuple(body.commands),
        )


class _Body:
    """Currents, coils and steel: what everything truly is, shared by the devices."""

    def __init__(self, settings: SemSettings, specimen: Specimen | None) -> None:
        self.settings = settings
        self.column = Column(settings.column(), specimen)
        self.wiring = Wiring("SEM", settings.faults, settings.seed)
        self.axes = (settings.stage_x, settings.stage_y)
        self.motions = [at_rest(axis.start_um, axis.backlash_um) for axis in self.axes]
        self.drifts: list[Drift] = [
            seeded_drift(axis, settings.seed * 3 + index)
            for index, axis in enumerate((*self.axes, settings.lens))
        ]
        start_um = settings.lens.start_um
        current = at_rest(start_um, settings.lens.backlash_um)
        self.lens = LensMotion(current, start_um, start_um, Lag(), 0.0, 0.0)
        fields = settings.objectives()
        self.turret = SimulatedTurret(
            "simulated SEM magnification",
            self.wiring,
            fields,
            settings.start_field or fields[0].name,
            settings.field_swap_s,
        )
        self.is_blanked = False
        stigmator = settings.stigmator
        self.coils_um = (stigmator.start_x_um, stigmator.start_y_um)
        self.coil_lags = (Lag(), Lag())
        self.exposures: list[SemExposure] = []
        self.commands: list[SemCommand] = []

    def stage_axes(self) -> Axes:
        return Axes(
            self.wiring,
            "stage",
            tuple(zip("xy", self.axes, strict=True)),
            self.motions,
            0,
            link_s=self.settings.link_s,
            reading_um=self.reading_um,
            note=lambda now_s, to_um: self.commands.append(SemCommand(now_s, "stage", to_um)),
        )

    def drift_um(self, axis: int, now_s: float) -> float:
        return self.drifts[axis].at_um(self.wiring.since_s(now_s))

    def reading_um(self, axis: int, now_s: float) -> float:
        noise = noise_um(self.axes[axis], self.settings.seed * 3 + axis, now_s)
        return self.motions[axis].encoder_um(now_s) + noise

    def point_um(self, now_s: float) -> tuple[float, float]:
        """The sample point under the middle of the field."""
        x_um, y_um = (
            motion.sample_um(now_s) + ring_um(axis, motion, now_s) + self.drift_um(index, now_s)
            for index, (axis, motion) in enumerate(zip(self.axes, self.motions, strict=True))
        )
        return x_um, y_um

    def focus_um(self, now_s: float) -> float:
        return self.lens.focus_um(self.settings.lens, now_s) + self.drift_um(2, now_s)

    def defocus_um(self, now_s: float) -> float:
        surface_um = self.column.specimen.surface_z_um(*self.point_um(now_s))
        return self.focus_um(now_s) + self.settings.specimen_distance_um - surface_um

    def stig_um(self) -> tuple[float, float]:
        """What the column has, what the coils add and what they still owe."""
        own = self.settings.stigmator
        x_um = own.own_x_um + self.coils_um[0] + self.coil_lags[0].after_um
        y_um = own.own_y_um + self.coils_um[1] + self.coil_lags[1].after_um
        return x_um, y_um


def _check_travel(device: str, what: str, target_um: float, low_um: float, high_um: float) -> None:
    if not low_um <= target_um <= high_um:  # nan too is refused here
        raise Refused(
            device,
            f"asked for {what} = {target_um} um; possible is {low_um:g} to {high_um:g} um; "
            "nothing moved",
        )


class SemFocusAxis:
    """`drivers.api.FocusAxis`: the lens; it reports what was set, not what the field does."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._settings = body.settings.lens

    @property
    def name(self) -> str:
        return "simulated SEM lens"

    @property
    def limits_um(self) -> AxisLimits:
        return AxisLimits(self._settings.min_um, self._settings.max_um)

    @property
    def kinematics(self) -> Kinematics:
        return joint_kinematics([self._settings])

    async def start_move_um(self, z_um: float) -> None:
        body, lens = self._body, self._settings
        body.wiring.check("focus")
        await asyncio.sleep(body.settings.link_s)
        faults = body.wiring.strike("focus")
        _check_travel("focus", "z", z_um, lens.min_um, lens.max_um)
        now_s = body.wiring.now_s()
        body.commands.append(SemCommand(now_s, "focus", (z_um,)))
        if faults & {"ignored_move", "stuck_moving"}:
            return
        motion = body.lens.current
        if "stalled_move" in faults:
            z_um = (motion.encoder_um(now_s) + z_um) / 2
        body.lens = body.lens.then(lens, now_s, moved(lens, motion, now_s, z_um), z_um)

    async def position_um(self) -> float:
        self._body.wiring.check("focus")
        return self._body.lens.current.encoder_um(self._body.wiring.now_s())

    async def state(self) -> MotionState:
        faults = self._body.wiring.check("focus")
        return motion_state(
            faults, is_moving=self._body.lens.current.is_moving(self._body.wiring.now_s())
        )

    async def halt(self) -> None:
        body, lens = self._body, self._settings
        now_s = body.wiring.now_s()
        motion = body.lens.current
        if motion.is_moving(now_s):
            stopped = halted(lens, motion, now_s)
            body.lens = body.lens.then(lens, now_s, stopped, stopped.legs[-1].position_um)


class SemStigmator:
    """`drivers.api.Stigmator`; it hangs on the lens's power supply and shares its faults."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._settings = body.settings.stigmator

    @property
    def name(self) -> str:
        return "simulated SEM stigmator"

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
        for target_um, letter in zip((x_um, y_um), "xy", strict=True):
            _check_travel("stigmator", letter, target_um, -limit_um, limit_um)
        body.commands.append(SemCommand(body.wiring.now_s(), "stigmator", (x_um, y_um)))
        if faults & {"ignored_move", "stuck_moving"}:
            return
        ratio = self._settings.hysteresis_ratio
        x_lag, y_lag = (
            lag.changed(lag.after_um, to_um - from_um, ratio)
            for lag, from_um, to_um in zip(body.coil_lags, body.coils_um, (x_um, y_um), strict=True)
        )
        body.coil_lags = (x_lag, y_lag)
        body.coils_um = (float(x_um), float(y_um))

    async def get_um(self) -> tuple[float, float]:
        self._body.wiring.check("focus")
        return self._body.coils_um


class SemBeam:
    """`drivers.api.Beam`."""

    def __init__(self, body: _Body, camera: SoftwareCamera[_Latent]) -> None:
        self._body = body
        self._settings = body.settings.beam
        self._camera = camera

    @property
    def name(self) -> str:
        return "simulated SEM beam"

    @property
    def voltage_kv(self) -> float:
        return self._settings.voltage_kv

    @property
    def current_pa(self) -> float:
        return self._settings.current_pa

    @property
    def convergence_mrad(self) -> float:
        return self._settings.convergence_mrad

    @property
    def dwell_ns(self) -> float:
        return _dwell_ns(self._body.settings, self._camera.exposure_s)

    def depth_of_field_um(self, pixel_size_nm: float) -> float:
        return self._settings.depth_of_field_um(pixel_size_nm)

    async def blank(self, is_blanked: bool) -> None:
        self._body.wiring.check("camera")
        await asyncio.sleep(self._body.settings.link_s)
        self._body.is_blanked = bool(is_blanked)


def _exposure_s(settings: SemSettings, dwell_ns: float) -> float:
    shape_px = settings.frame.height_px, settings.frame.width_px
    return Scan(settings.scan, settings.detector, dwell_ns).frame_s(shape_px)


def _dwell_ns(settings: SemSettings, exposure_s: float) -> float:
    row_s = exposure_s / settings.frame.height_px - settings.scan.flyback_us * 1e-6
    return row_s / settings.frame.width_px * 1e9


@dataclass(frozen=True, slots=True)
class _Latent:
    """A scanned frame that has not been drawn yet."""

    number: int
    place: Place
    defocus_um: float
    stig_um: tuple[float, float]
    pose: Pose
    pixel_size_nm: float
    from_s: float
    until_s: float
    optics: Mapping[str, float | str]
    faults: frozenset[FaultKind]
    is_dark: bool  # the beam was blanked, or the magnification was changing


class _Film:
    """What the detector sees: the sample, through faults."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._frame = body.settings.frame
        self._detector = body.settings.detector
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="simulated-sem")
        self._faults: frozenset[FaultKind] = frozenset()  # of the scan under way
        self._tray = Tray()

    def check_link(self) -> None:
        self._body.wiring.check("camera")

    def begin(self, number: int) -> None:
        self._faults = self._body.wiring.strike("camera")

    def expose(self, number: int, from_s: float, until_s: float, exposure_s: float) -> _Latent:
        body = self._body
        settings, objective = body.settings, body.turret.in_use
        middle_s = (from_s + until_s) / 2
        dwell_ns = _dwell_ns(settings, exposure_s)
        defocus_um = body.defocus_um(middle_s)
        stig_um = body.stig_um()
        x_um, y_um = body.point_um(middle_s)
        begin_um, end_um = body.point_um(from_s), body.point_um(until_s)
        is_dark = body.is_blanked or from_s < body.turret.in_place_s
        dose_e = 0.0 if is_dark else dose_e_per_px(settings.beam.current_pa, dwell_ns)
        body.exposures.append(
            SemExposure(
                number=number,
                exposed_from_s=from_s,
                exposed_until_s=until_s,
                x_um=x_um,
                y_um=y_um,
                focus_z_um=body.focus_um(middle_s),
                defocus_um=defocus_um,
                stig_x_um=stig_um[0],
                stig_y_um=stig_um[1],
                electrons_per_px=dose_e,
                objective=objective.name,
            )
        )
        wobble_x, wobble_y = settings.lens.wobble_nm_per_um
        # The stage's position is the point under the beam: the sample itself goes the other way.
        most_nm = self._frame.most_blur_px * objective.pixel_size_nm
        drift_x, drift_y = (
            -max(-most_nm, min(most_nm, (end - begin) * 1e3)) / (until_s - from_s)
            for begin, end in zip(begin_um, end_um, strict=True)
        )
        place = Place(
            x_um=x_um + wobble_x * defocus_um * 1e-3,
            y_um=y_um + wobble_y * defocus_um * 1e-3,
            pixel_size_nm=objective.pixel_size_nm,
            dwell_ns=dwell_ns,
            started_s=from_s,
            drift_nm_per_s=(drift_x, drift_y),
        )
        set_um = body.lens.current.encoder_um(middle_s)
        if not is_dark:  # the sample gets its dose, whatever becomes of the picture
            body.column.count(place)
        pose = Pose(
            stage_x_um=body.reading_um(0, middle_s),
            stage_y_um=body.reading_um(1, middle_s),
            focus_z_um=set_um,
            objective=objective.name,
        )
        optics: dict[str, float | str] = {
            "exposure_s": exposure_s,
            "dwell_ns": dwell_ns,
            "working_distance_mm": -set_um * 1e-3,
            "voltage_kv": settings.beam.voltage_kv,
            "current_pa": settings.beam.current_pa,
            "convergence_mrad": settings.beam.convergence_mrad,
            "depth_of_field_um": settings.beam.depth_of_field_um(objective.pixel_size_nm),
            "electrons_per_px": dose_e,
            "stig_x_um": body.coils_um[0],
            "stig_y_um": body.coils_um[1],
        }
        return _Latent(
            number=number,
            place=place,
            defocus_um=defocus_um,
            stig_um=stig_um,
            pose=pose,
            pixel_size_nm=objective.pixel_size_nm,
            from_s=from_s,
            until_s=until_s,
            optics=optics,
            faults=self._faults,
            is_dark=is_dark,
        )

    async def develop(self, latent: _Latent, due_s: float) -> Sequence[Frame]:
        pixels = await run_free(self._painter, self._developed, latent, due_s=due_s)
        self._body.wiring.check("camera")
        frame = Frame(
            pixels=pixels,
            number=latent.number,
            exposed_from_s=latent.from_s,
            exposed_until_s=latent.until_s,
            pose=latent.pose,
            pixel_size_nm=latent.pixel_size_nm,
            bit_depth=self._detector.bit_depth,
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
        """The picture as the detector hands it out; runs in the painter's thread."""
        detector = self._detector
        if latent.is_dark or "black" in latent.faults:
            dark = round(max(0.0, detector.offset_ratio) * detector.largest_dn)
            pixels = self._flat(0 if "black" in latent.faults else dark)
        elif "saturated" in latent.faults:
            pixels = self._flat(detector.largest_dn)
        else:
            pixels = self._body.column.picture(
                latent.defocus_um, latent.stig_um, latent.number, latent.place
            )
        if "wrong_size" in latent.faults:
            pixels = cast(Pixels, np.ascontiguousarray(pixels[: pixels.shape[0] // 2]))
        pixels.setflags(write=False)
        return pixels

    def _flat(self, value: int) -> Pixels:
        shape_px = self._frame.height_px, self._frame.width_px
        return cast(Pixels, np.full(shape_px, value, self._detector.dtype))


def _camera(settings: SemSettings, film: _Film) -> SoftwareCamera[_Latent]:
    frame = settings.frame
    timing = CameraTiming(
        min_exposure_s=_exposure_s(settings, frame.min_dwell_ns),
        max_exposure_s=_exposure_s(settings, frame.max_dwell_ns),
        readout_s=0.0,  # a row is read while it is scanned
        max_rate_hz=1e5,
        latency_s=settings.link_s,
        buffer_frames=frame.buffer_frames,
    )
    shape_px = frame.height_px, frame.width_px
    exposure_s = _exposure_s(settings, frame.dwell_ns)
    bits = settings.detector.bit_depth
    return SoftwareCamera("simulated SEM detector", shape_px, bits, exposure_s, timing, film)
