"""The instrument of a run: a simulated column with its faults, and an honest account of costs.

Everybody meets the same object, the same start and, frame by frame, the same noise. A command is in
nominal depths of field; the aperture is known to a tenth only, so the blur is not quite what it
should be. The truth is asked by the harness alone, when a run has ended.

What any careful program does is done here for all methods alike: where the instrument has backlash,
each place is approached from below; a frame that was exposed before its move had ended is
thrown away and taken again, at its price in frames and dose.

Mechanics: play (position follows within a gap) for backlash; for the lens's hysteresis a sum of
four plays of growing width whose shares add up to `hysteresis_ratio` (Prandtl and Ishlinskii's
model); drift of the sample at a constant speed while frames are taken.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import numpy as np

from drivers.api import Pixels
from inference.focus.api import FocusCommand
from inference.focus.evaluate import FocusMethod, FocusOutcome, Observation
from simulator.column import Column, ColumnSettings, Place
from simulator.probe import BeamSettings
from simulator.scan import ELECTRON_PA_NS, DetectorSettings, ScanSettings
from simulator.specimen import (
    GENERATED,
    Specimen,
    SpecimenField,
    SpecimenKind,
    SpecimenSettings,
)

FINAL_DWELL_NS: Final = 10_000.0  # of the picture that the focus is for
_FRAME_S: Final = 0.15  # a frame and the settling before it
_BRIGHT: Final = 0.9  # of full scale, where the brightest 0.2 % of a sharp frame lie
_FEATURE_PX: Final = (12.0, 50.0)
_SPECK_PX: Final = (3.5, 6.0)  # some four to one specks in a field: they lie 25 of these apart
_HEADROOM: Final = 1.8  # of the brightest over the mean, at least
_FEW: Final = 0.01  # of a frame's pixels, saturated: more is on purpose
_CURRENT_PA: Final = 50.0
_WIDEST: Final = 4.0
_PLAY_WIDTHS_DOF: Final = (2.0, 6.0, 18.0, 54.0)
_APPROACH_DOF: Final = 12.0
_LEAST_SIGNED_DOF: Final = 1.0


@dataclass(frozen=True, slots=True)
class Condition:
    """What a group of runs has in common."""

    name: str
    half_range_dof: float = 25.0
    dose_e_per_px: float = 200.0
    kinds: tuple[SpecimenKind, ...] = GENERATED
    gain: tuple[float, float] = (1.0, 1.0)  # least and most, drawn for a run
    offset_ratio: tuple[float, float] = (0.0, 0.0)  # of the frame's mean, likewise
    gamma: tuple[float, float] = (1.0, 1.0)
    flicker_ratio: float = 0.02  # of the beam, frame to frame, sd
    saturated_ratio: float = 0.002  # of a sharp frame's pixels
    astigmatism_dof: float = 0.0  # at most, in any direction
    has_stigmator: bool = False
    backlash_dof: float = 0.0
    hysteresis_ratio: float = 0.0
    drift_dof_per_s: float = 0.0
    stale_ratio: float = 0.0  # of the frames
    is_hopeless: bool = False  # nothing in the field: the right answer is to give up

    @property
    def is_mechanical(self) -> bool:
        """Whether positions depend on where they are approached from."""
        return self.backlash_dof > 0.0 or self.hysteresis_ratio > 0.0


@dataclass(frozen=True, slots=True)
class Subject:
    """One run's object and optics, shared by all conditions and methods that use its kind."""

    seed: int
    run: int
    kind: SpecimenKind
    specimen: Specimen
    pixel_size_nm: float
    beam: BeamSettings
    nominal_alpha_ratio: float  # what the program believes over what is
    frames: dict[tuple[object, ...], Pixels] = field(default_factory=dict, compare=False)
    """Taken already, under some condition at some place: methods that look alike see the same."""


class _Fields:
    """A specimen that remembers the fields it drew: columns with other levels see the same."""

    def __init__(self, specimen: Specimen) -> None:
        self.settings = specimen.settings
        self._specimen = specimen
        self._fields: dict[tuple[float, ...], SpecimenField] = {}

    def surface_z_um(self, x_um: float, y_um: float) -> float:
        return self._specimen.surface_z_um(x_um, y_um)

    def field(
        self,
        x_um: float,
        y_um: float,
        pixel_size_nm: float,
        shape_px: tuple[int, int],
        margin_px: int = 0,
    ) -> SpecimenField:
        key = (x_um, y_um, pixel_size_nm, *shape_px, margin_px)
        found = self._fields.get(key)
        if found is None:
            found = self._specimen.field(x_um, y_um, pixel_size_nm, shape_px, margin_px)
            self._fields[key] = found
        return found


def subject_of(seed: int, run: int, kinds: tuple[SpecimenKind, ...]) -> Subject:
    """Object and optics of a run: pixel, aperture, Cs and size of the features at random."""
    rng = np.random.default_rng([seed, run, 1])
    kind = kinds[int(rng.integers(len(kinds)))]
    pixel_nm = float(np.exp(rng.uniform(math.log(3.0), math.log(40.0))))
    least_px, most_px = _SPECK_PX if kind == "near_empty" else _FEATURE_PX
    feature_px = float(np.exp(rng.uniform(math.log(least_px), math.log(most_px))))
    beam = BeamSettings(
        convergence_mrad=float(rng.uniform(4.0, 9.0)),
        spherical_mm=float(rng.uniform(0.0, 10.0)),
        source_nm=float(rng.uniform(1.0, 3.0)),
        current_pa=_CURRENT_PA,
    )
    settings = SpecimenSettings(
        kind=kind,
        seed=int(rng.integers(2**31)),
        feature_nm=feature_px * pixel_nm,
        contrast_ratio=2.0 if kind == "near_empty" else 1.0,  # specks that can be seen at all
    )
    specimen = cast("Specimen", _Fields(Specimen(settings)))
    alpha_ratio = float(np.exp(0.1 * rng.standard_normal()))
    return Subject(seed, run, kind, specimen, pixel_nm, beam, alpha_ratio)


class Truth(Protocol):
    """What only the harness asks."""

    def off_focus(self) -> tuple[float, float]:
        """(|defocus|, astigmatism left), in nominal DOF, where the instrument stands now."""
        ...


@dataclass(slots=True)
class _Play:
    """Follows its input within a gap."""

    width: float
    at: float

    def follow(self, to: float) -> float:
        self.at = min(max(self.at, to - self.width / 2.0), to + self.width / 2.0)
        return self.at


@dataclass(slots=True, eq=False)
class SimulatedProblem:
    """A `FocusProblem` on a simulated column, and its account."""

    condition: Condition
    column: Column
    taken: dict[tuple[object, ...], Pixels]
    start: FocusCommand
    focus: FocusCommand  # the command sought, at time 0
    dof_um: float  # nominal: the unit of commands
    blur_px_per_dof: float  # nominal
    drift_dof_per_s: float
    rng: np.random.Generator  # of stale frames only
    backlash: _Play
    hysteresis: tuple[_Play, ...]
    frames: int = 0
    time_s: float = 0.0
    electrons_per_px: float = 0.0  # on the area of the fine field, all frames together
    busy_s: float = 0.0
    _at: FocusCommand = field(default_factory=lambda: FocusCommand(0.0))
    _z_dof: float = 0.0  # where the lens really is

    @property
    def half_range_dof(self) -> float:
        """As the condition says."""
        return self.condition.half_range_dof

    @property
    def limits_dof(self) -> tuple[float, float]:
        """The travel is long."""
        return -math.inf, math.inf

    @property
    def stig_range_dof(self) -> float:
        """As the condition says."""
        return self.condition.astigmatism_dof

    @property
    def has_stigmator(self) -> bool:
        """As the condition says."""
        return self.condition.has_stigmator

    @property
    def widest_ratio(self) -> float:
        """Coarse recovery may zoom out."""
        return _WIDEST if self.condition.half_range_dof > 40.0 else 1.0

    def observe(self, command: FocusCommand) -> Observation:
        """Approach, settle, and take frames until one is fresh."""
        began_s = time.perf_counter()
        stale = self.condition.stale_ratio > 0.0 and self.frames > 0
        while stale and self.rng.random() < self.condition.stale_ratio:
            self._spend(command)  # of the place before: nobody may use it
        self._approach(command)
        pixels = self._expose(command)
        self._spend(command)
        self.busy_s += time.perf_counter() - began_s
        return Observation(pixels, command)

    def move(self, command: FocusCommand) -> None:
        """Go there without a frame."""
        self._approach(command)

    def off_focus(self) -> tuple[float, float]:
        """(|defocus|, astigmatism left) where the instrument stands now."""
        z, x, y = self._residual(self._at)
        return abs(z), math.hypot(x, y)

    def _approach(self, command: FocusCommand) -> None:
        if self.condition.is_mechanical:
            self._lens(command.z_dof - _APPROACH_DOF)
        self._lens(command.z_dof)
        self._at = command

    def _lens(self, z_dof: float) -> None:
        moved = self.backlash.follow(z_dof)
        ratio = self.condition.hysteresis_ratio / len(self.hysteresis)
        lag = sum(ratio * (play.follow(z_dof) - z_dof) for play in self.hysteresis)
        self._z_dof = moved + lag

    def _residual(self, command: FocusCommand) -> tuple[float, float, float]:
        drift = self.drift_dof_per_s * self.time_s
        stig_x = command.stig_x_dof if self.condition.has_stigmator else self.start.stig_x_dof
        stig_y = command.stig_y_dof if self.condition.has_stigmator else self.start.stig_y_dof
        return (
            self._z_dof - self.focus.z_dof - drift,
            stig_x - self.focus.stig_x_dof,
            stig_y - self.focus.stig_y_dof,
        )

    def _expose(self, command: FocusCommand) -> Pixels:
        """A lens focused beyond the sample is a sample too near: the sign turns.

        The command's astigmatism counts azimuths in the image, y down; the probe's, y up.
        """
        z, x, y = self._residual(command)
        place = None
        if command.field_ratio != 1.0:
            pixel_nm = self.column.settings.pixel_size_nm * command.field_ratio
            place = Place(pixel_size_nm=pixel_nm)
        key = (self.condition.name, self.frames, z, x, y, command.field_ratio)
        found = self.taken.get(key)
        if found is None:
            stig_um = (-x * self.dof_um, y * self.dof_um)
            found = self.column.observe(-z * self.dof_um, stig_um, number=self.frames, place=place)
            self.taken[key] = found
        return found

    def _spend(self, command: FocusCommand) -> None:
        self.frames += 1
        self.time_s += _FRAME_S
        self.electrons_per_px += self.condition.dose_e_per_px / command.field_ratio**2


def problem_of(subject: Subject, condition: Condition, other: int = 0) -> SimulatedProblem:
    """One run's instrument, in the state in which every method meets it.

    other: > 0 for another start and other noise, as of runs before this one.
    """
    rng = np.random.default_rng([subject.seed, subject.run, 2 + 10 * other])
    # As many numbers for every condition: a run's start is the same under all of them.
    start_z, offset, turn, axis = (float(u) for u in rng.uniform(-1.0, 1.0, 4))
    gain_u, level_u, gamma_u, drift_u = (float(u) for u in rng.uniform(0.0, 1.0, 4))
    gap_u = float(rng.uniform(-0.5, 0.5))
    amount = condition.astigmatism_dof * math.sqrt(abs(turn))
    gamma = _between(condition.gamma, gamma_u)
    dwell_ns = condition.dose_e_per_px * ELECTRON_PA_NS / _CURRENT_PA
    plain = ColumnSettings(
        seed=(subject.seed * 1_000_003 + subject.run + 500_009 * other) % 2**31,
        pixel_size_nm=subject.pixel_size_nm,
        dwell_ns=dwell_ns,
        beam=subject.beam,
    )
    bright, mean = brightness(Column(plain, subject.specimen), condition.saturated_ratio)
    span = condition.gain[1] / condition.gain[0]
    gain = math.exp(math.log(condition.gain[0]) + gain_u * math.log(span))
    # A gain drawn up to twice the usual one starts from half of it: a detector has its top.
    level = (1.0 if condition.saturated_ratio > _FEW else _BRIGHT) / condition.gain[1] / bright
    detector = DetectorSettings(
        gain_ratio=gain * level,
        offset_ratio=0.05 + _between(condition.offset_ratio, level_u) * mean * level,
        gamma=gamma,
    )
    settings = plain.model_copy(
        update={
            "detector": detector,
            "scan": ScanSettings(flicker_ratio=condition.flicker_ratio),
        }
    )
    dof_um = plain.depth_of_field_um / subject.nominal_alpha_ratio
    start = FocusCommand(40.0 * offset)
    focus = FocusCommand(
        start.z_dof + start_z * condition.half_range_dof,
        amount * math.cos(math.pi * axis),
        amount * math.sin(math.pi * axis),
    )
    gap = gap_u * condition.backlash_dof
    problem = SimulatedProblem(
        condition=condition,
        column=Column(settings, subject.specimen),
        taken={} if other else subject.frames,
        start=start,
        focus=focus,
        dof_um=dof_um,
        blur_px_per_dof=max(1.0, subject.beam.diameter_nm / subject.pixel_size_nm),
        drift_dof_per_s=condition.drift_dof_per_s * math.copysign(1.0, drift_u - 0.5),
        rng=np.random.default_rng([subject.seed, subject.run, 3]),
        backlash=_Play(condition.backlash_dof, start.z_dof + gap),
        hysteresis=tuple(_Play(width, start.z_dof + gap_u * width) for width in _PLAY_WIDTHS_DOF),
        _at=start,
    )
    problem._lens(start.z_dof)  # noqa: SLF001 - its own maker
    return problem


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + share * (ends[1] - ends[0])


def brightness(column: Column, saturated_ratio: float) -> tuple[float, float]:
    """Yield that all but `saturated_ratio` of a field's pixels stay under, and its mean.

    An empty field's noise needs room above its mean, whatever the brightest pixels are.
    """
    seen = column.field(0.0, 0.0, column.settings.pixel_size_nm).yield_ratio
    bright, mean = float(np.quantile(seen[::2, ::2], 1.0 - saturated_ratio)), float(seen.mean())
    return max(bright, 1e-3 if saturated_ratio > _FEW else _HEADROOM * mean, 1e-3), mean


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of one run; all lengths in DOF."""

    condition: str
    method: str
    run: int
    kind: str
    error_dof: float  # |defocus| at the end
    stig_error_dof: float
    start_error_dof: float
    start_stig_error_dof: float
    is_confident: bool
    is_restored: bool  # the last command is the first
    frames: int
    electrons_per_px: float
    final_electrons_per_px: float
    method_s: float  # its own time, all estimates together
    sigma_dof: float | None
    trace_error_dof: tuple[float, ...]  # |believed - true| after each frame
    has_right_sign: bool | None  # after two frames; None: not told, or too near for a sign
    reason: str


def run_one(problem: SimulatedProblem, method: FocusMethod, subject: Subject) -> RunResult:
    """Run one method on a problem that nobody has touched, and ask the truth afterwards."""
    condition = problem.condition
    began_error, began_stig = problem.off_focus()
    began_s = time.perf_counter()
    outcome = method.run(problem)
    method_s = time.perf_counter() - began_s - problem.busy_s - outcome.aside_s
    problem.move(outcome.command)
    error, stig_error = problem.off_focus()
    focus_z = problem.focus.z_dof
    trace = tuple(abs(z - focus_z) for z in outcome.trace_z_dof)
    return RunResult(
        condition=condition.name,
        method=method.name,
        run=subject.run,
        kind=subject.kind,
        error_dof=error,
        stig_error_dof=stig_error,
        start_error_dof=began_error,
        start_stig_error_dof=began_stig,
        is_confident=outcome.is_confident,
        is_restored=abs(outcome.command.z_dof - problem.start.z_dof) < 1e-6,
        frames=problem.frames,
        electrons_per_px=problem.electrons_per_px,
        final_electrons_per_px=FINAL_DWELL_NS * _CURRENT_PA / ELECTRON_PA_NS,
        method_s=method_s,
        sigma_dof=outcome.sigma_dof,
        trace_error_dof=trace,
        has_right_sign=_sign_after_two(outcome, problem),
        reason=outcome.reason,
    )


def _sign_after_two(outcome: FocusOutcome, problem: SimulatedProblem) -> bool | None:
    wanted = problem.focus.z_dof - problem.start.z_dof
    if len(outcome.trace_z_dof) < 2 or abs(wanted) < _LEAST_SIGNED_DOF:
        return None
    return (outcome.trace_z_dof[1] - problem.start.z_dof) * wanted > 0.0
