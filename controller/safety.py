"""What may be sent to the instrument: one supervisor under every path, pure and without a clock.

Search, autofocus, jog, console and replay all end in `Motion`, and `Motion` asks here before each
single command. The answer is a `Permit` or a `Refusal` that says why; a target is never clipped to
the nearest allowed one, because a move to a place nobody asked for is a lie in the record.

What is believed about the sample is kept in the z of the reference objective (focus_z minus
`Objective.parfocal_z_um`), so that one belief serves all objectives:

- before any focus was confirmed: the height at which the operator left the lens is taken as clear;
- then the lowest and the highest confirmed focus;
- and, once there is one, the focus surface over the sample.

The rules, each named in `Rule`:

number     finite numbers only.
halted     after a halt nothing but another halt, until `resume`.
lease      while somebody holds the instrument, others' commands are refused; the operator may
           always take it over.
envelope   the settings' limits intersected with the device's own.
approach   never lower than `max_step_down_um`, nor than a share of the objective's free working
           distance, below the lowest confirmed focus or below the surface; lateral moves included,
           over every place the stage may pass.
step       near the sample no single move down is longer than `max_step_down_um`.
lift       the turret turns only `safe_lift_um` or more above the highest sample below; to an
           objective with a shorter free working distance only after a focus was confirmed.
objective  known names only.
exposure   bounded exposure, lamp between dark and full.
dose       a ceiling of light per region of the sample.

Where an axis is, is a span, not a number: a point when it stands verified, the hull of start and
target while it moves or when a move failed. Rules hold for the whole span. Moving up, away from the
sample, is held by the envelope alone, so a lens found too low can always be lifted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from controller.errors import BadSettings, UnsafeCommand
from controller.settings import SafetySettings
from drivers.api import AxisLimits, Objective

Rule: TypeAlias = Literal[
    "number",
    "halted",
    "lease",
    "envelope",
    "approach",
    "step",
    "lift",
    "objective",
    "exposure",
    "dose",
]
# z of best focus at stage (x, y), in the reference objective's z; finite wherever it is asked.
SurfaceZ: TypeAlias = Callable[[float, float], float]

# Half of the free working distance stays between lens and sample whatever else is believed: it
# absorbs a wrong parfocal offset, drift and the thickness of tape residue together.
_WORKING_DISTANCE_SHARE: Final = 0.5
_SURFACE_GRID: Final = 5  # points per axis at which a surface is looked at under a lateral move
_REMEMBERED_TOPS: Final = 16  # one move asks about the same three places a dozen times
_STEP_SHARE: Final = 0.9  # of the longest step, in a descent that is planned ahead
_ROUNDING_UM: Final = 1e-6  # of the arithmetic on positions; not a tolerance
_LARGEST_FIELD_UM: Final = 50_000.0  # a field larger than any sample is an error of units
_OPERATOR: Final = "operator"


@dataclass(frozen=True, slots=True)
class Span:
    """Where one axis may be, both ends included."""

    low_um: float
    high_um: float

    @staticmethod
    def at(position_um: float) -> Span:
        """A known position."""
        return Span(position_um, position_um)

    def including(self, position_um: float) -> Span:
        """The hull with one more position."""
        return Span(min(self.low_um, position_um), max(self.high_um, position_um))

    @property
    def is_point(self) -> bool:
        """Whether the position is known."""
        return self.low_um == self.high_um


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the instrument may be right now."""

    x: Span
    y: Span
    z: Span
    objective: str | None  # None: the turret's position is not known

    @staticmethod
    def at(x_um: float, y_um: float, z_um: float, objective: str | None) -> Whereabouts:
        """A verified pose."""
        return Whereabouts(Span.at(x_um), Span.at(y_um), Span.at(z_um), objective)

    def towards_xy(self, x_um: float, y_um: float) -> Whereabouts:
        """Also anywhere on the way to (x, y); the axes need not run along a straight line."""
        return replace(self, x=self.x.including(x_um), y=self.y.including(y_um))

    def towards_z(self, z_um: float) -> Whereabouts:
        """Also anywhere on the way to z."""
        return replace(self, z=self.z.including(z_um))


@dataclass(frozen=True, slots=True)
class MoveStage:
    """Go to (x, y)."""

    x_um: float
    y_um: float
    source: str  # who asks: "search", "focus", "operator", "replay"


@dataclass(frozen=True, slots=True)
class MoveFocus:
    """Go to z."""

    z_um: float
    source: str


@dataclass(frozen=True, slots=True)
class SelectObjective:
    """Swing another objective in."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Expose:
    """Put light on the field below."""

    exposure_s: float
    field_w_um: float  # along the stage's axes
    field_h_um: float
    source: str
    intensity_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop everything. Never refused."""

    source: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Allow commands again after a halt."""

    source: str


Command: TypeAlias = MoveStage | MoveFocus | SelectObjective | Expose | Halt | Resume


@dataclass(frozen=True, slots=True)
class Permit:
    """The command may be sent now, from where the instrument is now."""

    command: Command


@dataclass(frozen=True, slots=True)
class Refusal:
    """The command must not be sent."""

    command: Command
    rule: Rule
    reason: str

    def error(self) -> UnsafeCommand:
        """The exception for whoever asked."""
        return UnsafeCommand(repr(self.command), self.rule, self.reason)


@dataclass(frozen=True, slots=True)
class Lease:
    """Who has the instrument, until when, and on whose behalf others may act."""

    holder: str
    until_s: float
    admits: frozenset[str] = frozenset()  # further sources that act for the holder

    def covers(self, source: str) -> bool:
        """Whether `source` may command under this lease."""
        return source == self.holder or source in self.admits


@dataclass(frozen=True, slots=True)
class DoseRules:
    """Light per region, in seconds of the full lamp. Generous: a chip outlives a night of scans."""

    region_um: float = 500.0
    ceiling_lamp_s: float = 3_600.0


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where the axes may be sent: the settings' limits within the device's own."""

    x: AxisLimits
    y: AxisLimits
    z: AxisLimits

    @staticmethod
    def within(
        settings: SafetySettings, stage: tuple[AxisLimits, AxisLimits], focus: AxisLimits
    ) -> Envelope:
        """The intersection. Raises BadSettings where nothing is left of an axis."""
        return Envelope(
            x=_intersection("x", settings.x_min_um, settings.x_max_um, stage[0]),
            y=_intersection("y", settings.y_min_um, settings.y_max_um, stage[1]),
            z=_intersection("z", settings.z_min_um, settings.z_max_um, focus),
        )


def _intersection(axis: str, low: float | None, high: float | None, own: AxisLimits) -> AxisLimits:
    low_um = own.min_um if low is None else max(low, own.min_um)
    high_um = own.max_um if high is None else min(high, own.max_um)
    if not low_um <= high_um:  # NaN from a device ends here too
        key = f"safety.{axis}_min_um" if high is None else f"safety.{axis}_max_um"
        raise BadSettings(
            "",
            key,
            f"[{low}, {high}]",
            f"limits that leave some travel within the device's own {own.min_um:g} to "
            f"{own.max_um:g} um",
        )
    return AxisLimits(low_um, high_um)


class Supervisor:
    """Decides about one command at a time. Its state changes only through its verbs.

    It reads no clock and does nothing by itself: the same calls give the same answers.
    """

    def __init__(
        self,
        envelope: Envelope,
        objectives: Sequence[Objective],
        settings: SafetySettings,
        dose: DoseRules | None = None,
    ) -> None:
        """`dose` is None for the generous default."""
        self._envelope = envelope
        self._objectives = {objective.name: objective for objective in objectives}
        self._settings = settings
        self._dose_rules = dose or DoseRules()
        self._dose_lamp_s: dict[tuple[int, int], float] = {}
        self._lease: Lease | None = None
        self._halted: str | None = None
        self._start_z_um: float | None = None  # reference z left clear by the operator
        self._start_objective: str | None = None
        self._lowest_z_um: float | None = None  # reference z of confirmed foci; None: none yet
        self._highest_z_um: float | None = None
        self._surface: SurfaceZ | None = None
        self._tops_um: dict[tuple[Span, Span], float] = {}  # of the surface, by where it was asked

    # --- what the supervisor is told -------------------------------------------------------

    @property
    def envelope(self) -> Envelope:
        """The limits in force."""
        return self._envelope

    @property
    def halted(self) -> str | None:
        """Why nothing may move; None: nothing is halted."""
        return self._halted

    def begin(self, where: Whereabouts) -> None:
        """Take the height at which the lens was left as clear, until a focus is confirmed."""
        self._start_z_um = where.z.low_um - self._parfocal_um(where.objective)
        self._start_objective = where.objective

    def trust_start_z_um(self, z_um: float, objective: str) -> None:
        """Take the user's word that the lens is clear at `z_um` with `objective`.

        Raises UnsafeCommand outside the envelope or for an unknown objective.
        """
        self._believable(0.0, 0.0, z_um, objective)
        self._start_z_um = z_um - self._parfocal_um(objective)
        self._start_objective = objective

    def confirm_focus(self, x_um: float, y_um: float, z_um: float, objective: str) -> None:
        """Learn that the sample was seen in focus at this pose.

        Raises UnsafeCommand for a pose that cannot have been taken (not finite, outside the
        envelope, unknown objective): a belief below the envelope would lower every floor.
        """
        self._believable(x_um, y_um, z_um, objective)
        reference_z_um = z_um - self._parfocal_um(objective)
        low, high = self._lowest_z_um, self._highest_z_um
        self._lowest_z_um = reference_z_um if low is None else min(low, reference_z_um)
        self._highest_z_um = reference_z_um if high is None else max(high, reference_z_um)

    def set_surface(self, surface_z_um: SurfaceZ | None) -> None:
        """Use a focus surface, in the reference objective's z; None: forget it.

        It must answer the same for the same place until another one is set.
        """
        self._surface = surface_z_um
        self._tops_um.clear()

    def forget_sample(self, where: Whereabouts) -> None:
        """Another sample lies there now: begin again from `where`. The dose starts at zero."""
        self._lowest_z_um = self._highest_z_um = None
        self.set_surface(None)
        self._dose_lamp_s.clear()
        self.begin(where)

    def take_lease(
        self, holder: str, now_s: float, duration_s: float, admits: Sequence[str] = ()
    ) -> Lease | None:
        """Give the instrument to `holder` or renew it; None: somebody else has it.

        The operator takes it over from anybody.
        """
        if not (_is_finite(now_s) and _is_finite(duration_s) and duration_s > 0):
            return None
        held = self.lease_at(now_s)
        if held is not None and held.holder != holder and holder != _OPERATOR:
            return None
        self._lease = Lease(holder, now_s + duration_s, frozenset(admits))
        return self._lease

    def release_lease(self, holder: str) -> None:
        """Give it back; anybody else's word is ignored."""
        if self._lease is not None and self._lease.holder == holder:
            self._lease = None

    def lease_at(self, now_s: float) -> Lease | None:
        """The lease in force; None: nobody's, or it has run out."""
        lease = self._lease
        return lease if lease is not None and now_s < lease.until_s else None

    def halt(self, reason: str) -> None:
        """Refuse everything but a halt from now on."""
        self._halted = reason

    def resume(self) -> None:
        """Allow commands again; `check(Resume(...))` says whether that may be asked."""
        self._halted = None

    def book(self, exposure: Expose, where: Whereabouts) -> None:
        """Add the light of one exposure to the regions it fell on."""
        dose = exposure.exposure_s * exposure.intensity_ratio
        for region in self._regions(exposure, where):
            self._dose_lamp_s[region] = self._dose_lamp_s.get(region, 0.0) + dose

    # --- what the supervisor answers -------------------------------------------------------

    def check(self, command: Command, where: Whereabouts, now_s: float) -> Permit | Refusal:
        """Whether `command` may be sent now, with the instrument anywhere in `where`."""
        if isinstance(command, Halt):
            return Permit(command)
        lease = self.lease_at(now_s)
        if lease is not None and not lease.covers(command.source):
            return Refusal(command, "lease", f"{lease.holder} holds the instrument")
        if isinstance(command, Resume):
            return Permit(command)
        if self._halted is not None:
            return Refusal(command, "halted", f"{self._halted}; resume first")
        match command:
            case MoveStage():
                found = self._against_move_stage(command, where)
            case MoveFocus():
                found = self._against_move_focus(command, where)
            case SelectObjective():
                found = self._against_select(command, where)
            case Expose():
                found = self._against_expose(command, where)
        return Permit(command) if found is None else Refusal(command, found[0], found[1])

    def floor_z_um(self, where: Whereabouts) -> float:
        """The lowest z allowed over `where`; infinite where nothing reliable is known."""
        names = self._objectives if where.objective is None else (where.objective,)
        return max(self._floor_with(name, where) for name in names)

    def turret_z_um(self, where: Whereabouts, name: str) -> float:
        """The lowest z at which the turret may turn to `name` over `where`."""
        old = self._objectives.values() if where.objective is None else ()
        parfocal_um = max(
            self._parfocal_um(where.objective),
            self._parfocal_um(name),
            *(objective.parfocal_z_um for objective in old),
        )
        return self._sample_top_um(where) + parfocal_um + self._settings.safe_lift_um

    def descent_um(self, z_um: float, where: Whereabouts) -> tuple[float, ...]:
        """Targets on the way down to `z_um` that keep the rule of steps; the last is `z_um`."""
        step_um = self._settings.max_step_down_um
        if not _is_finite(z_um) or where.z.high_um - z_um <= step_um:
            return (z_um,)
        near_um = self._near_um(where)
        if z_um >= near_um or z_um < self.floor_z_um(where):  # far away, or to be refused anyhow
            return (z_um,)
        top_um = min(near_um, where.z.high_um)
        # Each step begins where the one before ended, which is within tolerance of its target.
        steps = max(math.ceil((top_um - z_um) / (_STEP_SHARE * step_um)), 1)
        way = [z_um + (top_um - z_um) * (steps - k) / steps for k in range(1, steps)]
        return (*([top_um] if top_um < where.z.high_um else []), *way, z_um)

    # --- the rules -------------------------------------------------------------------------

    def _against_move_stage(
        self, command: MoveStage, where: Whereabouts
    ) -> tuple[Rule, str] | None:
        for axis, value, limits in (
            ("x", command.x_um, self._envelope.x),
            ("y", command.y_um, self._envelope.y),
        ):
            found = _against_envelope(axis, value, limits)
            if found is not None:
                return found
        passed = where.towards_xy(command.x_um, command.y_um)
        floor_um = self.floor_z_um(passed)
        if where.z.low_um < floor_um - _ROUNDING_UM:
            return "approach", (
                f"the lens may be at z = {where.z.low_um:.3f} um, the way needs at least "
                f"{floor_um:.3f} um; lift the focus first"
            )
        return None

    def _against_move_focus(
        self, command: MoveFocus, where: Whereabouts
    ) -> tuple[Rule, str] | None:
        found = _against_envelope("z", command.z_um, self._envelope.z)
        if found is not None or command.z_um >= where.z.high_um:
            return found
        floor_um = self.floor_z_um(where)
        if command.z_um < floor_um - _ROUNDING_UM:
            return "approach", (
                f"lower than {floor_um:.3f} um, the limit that the confirmed focus sets here; "
                "confirm a focus nearby first"
            )
        drop_um = where.z.high_um - command.z_um
        step_um = self._settings.max_step_down_um
        if drop_um > step_um + _ROUNDING_UM and command.z_um < self._near_um(where) - _ROUNDING_UM:
            return "step", (
                f"{drop_um:.3f} um down in one move near the sample; at most {step_um:g} um at once"
            )
        return None

    def _against_select(
        self, command: SelectObjective, where: Whereabouts
    ) -> tuple[Rule, str] | None:
        wanted = self._objectives.get(command.name)
        if wanted is None:
            known = ", ".join(self._objectives)
            return "objective", f"no objective {command.name!r} here; known: {known}"
        if where.objective == command.name:
            return None
        if self._lowest_z_um is None:
            start = self._objectives.get(self._start_objective or "")
            if start is None or (
                wanted.free_working_distance_um < start.free_working_distance_um - _ROUNDING_UM
            ):
                return "lift", (
                    f"{command.name} works closer to the sample than "
                    f"{self._start_objective or 'an unknown objective'}, and no focus is confirmed "
                    "yet; focus first"
                )
        need_um = self.turret_z_um(where, command.name)
        if not where.z.low_um >= need_um - _ROUNDING_UM:
            return "lift", (
                f"the lens may be at z = {where.z.low_um:.3f} um; the turret turns only from "
                f"{need_um:.3f} um up"
            )
        return None

    def _against_expose(self, command: Expose, where: Whereabouts) -> tuple[Rule, str] | None:
        numbers = (
            command.exposure_s,
            command.intensity_ratio,
            command.field_w_um,
            command.field_h_um,
        )
        if not all(_is_finite(number) for number in numbers):
            return "number", f"finite numbers only, not {numbers}"
        longest_s = self._settings.max_exposure_s
        if not 0.0 < command.exposure_s <= longest_s:
            return "exposure", f"an exposure above 0 and up to {longest_s:g} s is allowed"
        if not 0.0 <= command.intensity_ratio <= 1.0:
            return "exposure", "the lamp goes from 0 to 1"
        if not all(0.0 < side <= _LARGEST_FIELD_UM for side in numbers[2:]):
            return "exposure", f"a field above 0 and up to {_LARGEST_FIELD_UM:g} um is allowed"
        ceiling = self._dose_rules.ceiling_lamp_s
        dose = command.exposure_s * command.intensity_ratio
        had = max(self._dose_lamp_s.get(r, 0.0) for r in self._regions(command, where))
        if had + dose > ceiling:
            return "dose", (
                f"this region had {had:.3f} of {ceiling:g} lamp seconds; {dose:.3f} more exceed it"
            )
        return None

    # --- what is believed about the sample -------------------------------------------------

    def _believable(self, x_um: float, y_um: float, z_um: float, objective: str) -> None:
        where = f"focus at ({x_um}, {y_um}, {z_um}) um with {objective}"
        if objective not in self._objectives:
            raise UnsafeCommand(where, "objective", f"known: {', '.join(self._objectives)}")
        if not (_is_finite(x_um) and _is_finite(y_um)):
            raise UnsafeCommand(where, "number", "finite numbers only")
        found = _against_envelope("z", z_um, self._envelope.z)
        if found is not None:
            raise UnsafeCommand(where, found[0], found[1])

    def _floor_with(self, name: str, where: Whereabouts) -> float:
        objective = self._objectives.get(name)
        bottom_um = self._lowest_z_um if self._lowest_z_um is not None else self._start_z_um
        if objective is None or bottom_um is None:
            return math.inf
        if self._surface is not None:
            bottom_um = max(bottom_um, self._surface_top_um(where))
        below_um = min(
            self._settings.max_step_down_um,
            objective.free_working_distance_um * _WORKING_DISTANCE_SHARE,
        )
        return max(bottom_um + objective.parfocal_z_um - below_um, self._envelope.z.min_um)

    def _sample_top_um(self, where: Whereabouts) -> float:
        """The highest that the sample is believed to be under `where`, in reference z."""
        top_um = self._highest_z_um if self._highest_z_um is not None else self._start_z_um
        if top_um is None:
            return math.inf
        return top_um if self._surface is None else max(top_um, self._surface_top_um(where))

    def _near_um(self, where: Whereabouts) -> float:
        """Below this z every move down is a step."""
        return (
            self._sample_top_um(where)
            + self._parfocal_um(where.objective)
            + self._settings.max_step_down_um
        )

    def _surface_top_um(self, where: Whereabouts) -> float:
        surface = self._surface
        if surface is None:
            return -math.inf
        key = (where.x, where.y)
        top_um = self._tops_um.get(key)
        if top_um is None:
            heights = [surface(x, y) for x in _grid(where.x) for y in _grid(where.y)]
            # max() drops a NaN silently; a surface that is not finite forbids the place instead.
            top_um = max(heights) if all(map(_is_finite, heights)) else math.inf
            if len(self._tops_um) >= _REMEMBERED_TOPS:
                self._tops_um.clear()
            self._tops_um[key] = top_um
        return top_um

    def _parfocal_um(self, name: str | None) -> float:
        if name is None:
            return max((o.parfocal_z_um for o in self._objectives.values()), default=0.0)
        objective = self._objectives.get(name)
        return 0.0 if objective is None else objective.parfocal_z_um

    def _regions(self, exposure: Expose, where: Whereabouts) -> Iterator[tuple[int, int]]:
        region_um = self._dose_rules.region_um
        columns = _cells(where.x, exposure.field_w_um, region_um)
        rows = _cells(where.y, exposure.field_h_um, region_um)
        return ((column, row) for column in columns for row in rows)


def _is_finite(value: object) -> bool:
    # bool is an int to Python and a slip of the pen here; an int may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _against_envelope(axis: str, value: float, limits: AxisLimits) -> tuple[Rule, str] | None:
    if not _is_finite(value):
        return "number", f"{axis} must be a finite number, not {value!r}"
    if not limits.min_um <= value <= limits.max_um:
        return "envelope", (
            f"{axis} = {value:g} um; allowed {limits.min_um:g} to {limits.max_um:g} um"
        )
    return None


def _grid(span: Span) -> tuple[float, ...]:
    if span.is_point:
        return (span.low_um,)
    step_um = (span.high_um - span.low_um) / (_SURFACE_GRID - 1)
    return tuple(span.low_um + k * step_um for k in range(_SURFACE_GRID))


def _cells(span: Span, field_side_um: float, region_um: float) -> range:
    first = math.floor((span.low_um - field_side_um / 2) / region_um)
    last = math.floor((span.high_um + field_side_um / 2) / region_um)
    return range(first, last + 1)
