"""The one owner of moves: asked, permitted, sent, arrived, verified, settled.

Nothing else in the controller starts a move. Every command passes the supervisor immediately before
it is sent, with no await in between, so nothing can change the answer on the way. A move has ended
only when the device says Idle AND stands within tolerance of the target; `Unknown` and silence
never count as arrival. Its deadline follows from its length; when it passes, the axis is told to
stop, its position counts as unknown between start and target, and `MoveFailed` says what was asked
and what came. The next command reads the position anew before anything moves.

Halt is out of band: it takes no lock and waits for no move. Waits under way are ended by moving
their deadlines to now, which costs a move no task of its own. A start that was on its way to the
device when the halt went out is followed by a second halt once it has ended.

A frame exposed before `settled_at_s` is evidence of nothing; `still` hands out moments in which no
move can begin.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, TypeAlias

from controller.errors import Halted, HaltFailed, MoveFailed, TurretFailed
from controller.geometry import axis_point_um, stage_for_point_um
from controller.safety import (
    Command,
    Expose,
    MoveFocus,
    MoveStage,
    Refusal,
    Resume,
    SelectObjective,
    Span,
    Supervisor,
    Whereabouts,
)
from controller.settings import MotionSettings
from drivers.api import (
    FocusAxis,
    Idle,
    Instrument,
    Kinematics,
    MotionState,
    Moving,
    Objective,
    Stage,
    Unknown,
)
from drivers.errors import BadReply, DriverError, NoAnswer

# "direct": whichever way is shortest. The others end every move in one direction, which takes up
# the backlash of the spindle: from above means that the lens comes down on the sample last.
FocusApproach: TypeAlias = Literal["direct", "from_above", "from_below"]
StageApproach: TypeAlias = Literal["direct", "from_below"]  # from lower x and lower y

_DEADLINE_RATIO: Final = 1.5  # devices run slower under load than their data sheet says
_TOLERANCE_RESOLUTIONS: Final = 3.0
# Most moves end within a fraction of a millisecond of the computed time, so the first questions
# come close together; asking on in that pace would only load the line.
_FIRST_POLLS: Final = 16
_TURRET_S: Final = 20.0  # the slowest motorised nosepiece seen takes about 3 s a position
_BACKLASH_UM: Final = 10.0  # of a lateral spindle stage, generous


def ideal_move_s(distance_um: float, kinematics: Kinematics) -> float:
    """Time of a move with constant acceleration up to speed and down again; settling excluded."""
    distance_um = abs(distance_um)
    speed = kinematics.speed_um_per_s
    acceleration = kinematics.acceleration_um_per_s2
    if distance_um == 0.0:
        return 0.0
    if not acceleration > 0.0 or math.isinf(acceleration):
        return distance_um / speed
    if distance_um < speed**2 / acceleration:  # never reaches full speed
        return 2.0 * math.sqrt(distance_um / acceleration)
    return distance_um / speed + speed / acceleration


@dataclass(slots=True)
class MotionAccount:
    """What the moves cost and what they would cost at best: one side of the scan-time bound.

    Overlapping stage and focus moves count once, as the longer. Ideal is the direct way: overshoot
    against backlash and steps down are the controller's expense, lifting for the turret is not.
    """

    moves: int = 0
    ideal_s: float = 0.0  # moves alone
    settle_s: float = 0.0
    actual_s: float = 0.0  # from the permit to the settled arrival
    turret_s: float = 0.0  # the swings themselves, as measured; part of both sides
    exposures: int = 0
    exposure_s: float = 0.0

    @property
    def bound_s(self) -> float:
        """Moves, settling, swings and exposures, nothing else."""
        return self.ideal_s + self.settle_s + self.turret_s + self.exposure_s


@dataclass(slots=True, eq=False)
class _Axis:
    """A stage or a focus drive as a vector of one kind, and what is known of it."""

    name: str
    kinematics: Kinematics
    tolerance_um: float
    start: Callable[[tuple[float, ...]], Awaitable[None]]
    position: Callable[[], Awaitable[tuple[float, ...]]]
    state: Callable[[], Awaitable[MotionState]]
    halt: Callable[[], Awaitable[None]]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    hull: tuple[Span, ...] = ()  # where it may be; meaningless before the first reading
    target_um: tuple[float, ...] = ()  # last verified target; () after a failure
    is_known: bool = False  # standing, and its position was read since it last moved
    is_moving: bool = False  # a move of ours is under way
    taken_up_um: tuple[float, ...] = ()  # signed travel since each coordinate last turned round
    settled_at_s: float = math.inf

    @property
    def at_um(self) -> tuple[float, ...]:
        return tuple(span.low_um for span in self.hull)

    def depart(self, target_um: tuple[float, ...]) -> None:
        self.hull = tuple(s.including(t) for s, t in zip(self.hull, target_um, strict=True))
        self.target_um = ()
        self.is_known = False
        self.is_moving = True
        self.settled_at_s = math.inf

    def stand(self, position_um: tuple[float, ...], settled_at_s: float) -> None:
        self.hull = tuple(Span.at(p) for p in position_um)
        self.is_known = True
        self.is_moving = False
        self.settled_at_s = settled_at_s

    def travel(self, from_um: tuple[float, ...], to_um: tuple[float, ...]) -> tuple[float, ...]:
        """`taken_up_um` after a leg."""
        before = self.taken_up_um or tuple(0.0 for _ in to_um)
        steps = (b - a for a, b in zip(from_um, to_um, strict=True))
        return tuple(
            had if step == 0.0 else had + step if had * step > 0.0 else step
            for had, step in zip(before, steps, strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Leg:
    axis: _Axis
    target_um: tuple[float, ...]
    command: Command


class Motion:
    """Use with `async with`, inside the instrument's own context; see the module's words."""

    def __init__(
        self, instrument: Instrument, supervisor: Supervisor, settings: MotionSettings
    ) -> None:
        """Nothing is asked of the instrument before the context is entered."""
        self._instrument = instrument
        self._supervisor = supervisor
        self._settings = settings
        self._objectives = {o.name: o for o in instrument.turret.objectives}
        self._stage = _stage_axis(instrument.stage, settings.stage_tolerance_um)
        self._focus = _focus_axis(instrument.focus, settings.focus_tolerance_um)
        self._axes = (self._stage, self._focus)
        self._objective: str | None = None
        self._turret_settled_at_s = -math.inf
        self._group: asyncio.TaskGroup | None = None  # None: not entered, or left
        self._halts: set[asyncio.Task[str | None]] = set()
        self._waits: set[asyncio.Timeout] = set()
        self.account = MotionAccount()

    async def __aenter__(self) -> Motion:
        """Read where everything is. Raises MoveFailed or TurretFailed without a sane answer."""
        self._clock = asyncio.get_running_loop().time
        self._group = await asyncio.TaskGroup().__aenter__()
        try:
            await self.refresh()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        self._supervisor.begin(self.where)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop what still moves; halts under way are waited for."""
        group, self._group = self._group, None
        if group is None:
            return
        for axis in self._axes:
            if axis.is_moving:
                self._spawn_halt(group, axis)
        if self._halts:
            await asyncio.wait(self._halts)
        await group.__aexit__(None, None, None)

    # --- what is known ---------------------------------------------------------------------

    @property
    def clock(self) -> Callable[[], float]:
        """The running loop's monotonic clock."""
        return self._clock

    @property
    def supervisor(self) -> Supervisor:
        """The one supervisor under all commands."""
        return self._supervisor

    @property
    def where(self) -> Whereabouts:
        """Where the instrument may be right now."""
        (x, y), (z,) = self._stage.hull, self._focus.hull
        return Whereabouts(x, y, z, self._objective)

    @property
    def objective(self) -> Objective | None:
        """The objective in place; None: the turret's position is not known."""
        return None if self._objective is None else self._objectives[self._objective]

    @property
    def halted(self) -> str | None:
        """Why nothing may move; None: nothing is halted."""
        return self._supervisor.halted

    @property
    def settled_at_s(self) -> float:
        """Since when everything stands still; infinite while something moves or is in doubt."""
        settled_at_s = max(self._stage.settled_at_s, self._focus.settled_at_s)
        return max(settled_at_s, self._turret_settled_at_s)

    # --- moves -----------------------------------------------------------------------------

    async def move_stage_um(
        self, x_um: float, y_um: float, source: str, approach: StageApproach = "direct"
    ) -> None:
        """Move, and return once the stage stands at (x, y); it is settled at `settled_at_s`.

        Raises UnsafeCommand (nothing was sent), MoveFailed, Halted.
        """
        async with self._stage.lock:
            await self._know(self._stage)
            legs = self._stage_legs(x_um, y_um, source, approach)
            self._permit_all(legs, self.where)
            await self._accounted(self._travel(legs), self._stage)

    async def move_focus_um(
        self, z_um: float, source: str, approach: FocusApproach = "direct"
    ) -> None:
        """Move, and return once the focus stands at z; downwards near the sample in steps.

        Raises UnsafeCommand (nothing was sent), MoveFailed, Halted.
        """
        async with self._focus.lock:
            await self._know(self._focus)
            legs = self._focus_legs(z_um, source, approach, self.where)
            self._permit_all(legs, self.where)
            await self._accounted(self._travel(legs), self._focus)

    async def move_to_um(
        self,
        x_um: float,
        y_um: float,
        z_um: float,
        source: str,
        *,
        stage_approach: StageApproach = "direct",
        focus_approach: FocusApproach = "direct",
    ) -> None:
        """Move stage and focus at the same time; one after the other where only that is safe.

        Raises UnsafeCommand (nothing was sent), MoveFailed, Halted; if one axis fails the other
        is stopped too.
        """
        async with self._stage.lock, self._focus.lock:
            await self._know(self._stage)
            await self._know(self._focus)
            await self._go_both((x_um, y_um, z_um), source, stage_approach, focus_approach)

    async def select_objective(
        self, name: str, source: str, then_to_um: tuple[float, float, float] | None = None
    ) -> None:
        """Lift the focus, swing, and go to `then_to_um` (stage x, y, focus z).

        None: the sample point now on the axis stays there, and the focus returns to the same
        height over the sample, both corrected by the objectives' offsets.
        Raises UnsafeCommand (nothing was sent), MoveFailed, TurretFailed, Halted.
        """
        async with self._stage.lock, self._focus.lock:
            await self._know(self._stage)
            await self._know(self._focus)
            old, here = self.objective, self.where
            goal_um = then_to_um or self._same_place_um(old, name)
            if name == self._objective:
                self._permit(SelectObjective(name, source), here)
                if then_to_um is not None:
                    await self._go_both(goal_um, source, "direct", "direct")
                return
            # The lift must still be high enough where it ends, which is within tolerance.
            safe_um = self._supervisor.turret_z_um(here, name) + self._focus.tolerance_um
            lift_um = max(safe_um, here.z.high_um)
            above = Whereabouts(here.x, here.y, Span.at(lift_um), self._objective)
            self._permit(SelectObjective(name, source), above)
            lift = [_Leg(self._focus, (lift_um,), MoveFocus(lift_um, source))]
            self._permit_all(lift, here)
            swung = Whereabouts(here.x, here.y, Span.at(lift_um), name)
            self._plan_both(goal_um, source, "direct", "direct", swung)
            await self._accounted(self._travel(lift), self._focus)
            await self._swing(name, source)
            await self._go_both(goal_um, source, "direct", "direct")

    @asynccontextmanager
    async def still(self, exposure: Expose) -> AsyncIterator[float]:
        """Permit an exposure, wait until everything has settled, and let nothing move inside.

        Yields `settled_at_s`. The light is booked when the block ends, whether or not a frame came.
        Raises UnsafeCommand, Halted, MoveFailed or TurretFailed (something is in doubt).
        """
        async with self._stage.lock, self._focus.lock:
            await self._know(self._stage)
            await self._know(self._focus)
            wait_s = self.settled_at_s - self._clock()
            if math.isinf(wait_s):
                turret = self._instrument.turret.name
                raise TurretFailed(turret, None, None, "in doubt since its last turn")
            if wait_s > 0.0:
                async with self._until(self._clock() + wait_s + 1.0, "settling"):
                    await asyncio.sleep(wait_s)
            self._permit(exposure, self.where)
            try:
                yield self.settled_at_s
            finally:
                self._supervisor.book(exposure, self.where)
                self.account.exposures += 1
                self.account.exposure_s += exposure.exposure_s

    # --- halt and recovery -----------------------------------------------------------------

    async def halt(self, source: str = "operator", reason: str = "halt") -> None:
        """Stop both axes now, whatever is under way, and refuse moves until `resume`.

        Raises HaltFailed, after every axis was told, if one did not confirm in time.
        """
        self._supervisor.halt(f"{source}: {reason}")
        if self._group is None:
            async with asyncio.TaskGroup() as group:
                tasks = {axis: self._spawn_halt(group, axis) for axis in self._axes}
        else:
            tasks = {axis: self._spawn_halt(self._group, axis) for axis in self._axes}
            self._end_waits()
            await asyncio.wait(tasks.values())  # goes on when the caller is cancelled
        answers = {axis.name: task.result() for axis, task in tasks.items()}
        failures = {name: answer for name, answer in answers.items() if answer is not None}
        if failures:
            raise HaltFailed(failures)

    async def resume(self, source: str) -> None:
        """Read where everything stopped, then allow commands again.

        Raises UnsafeCommand (somebody else holds the instrument), MoveFailed (an axis does not come
        to rest or does not answer: the halt stays in force).
        """
        self._permit(Resume(source), self.where)
        halted = self._supervisor.halted
        async with self._stage.lock, self._focus.lock:
            self._supervisor.resume()
            try:
                await self._read_all()
            except BaseException:
                self._supervisor.halt(self._supervisor.halted or halted or "resume failed")
                raise

    async def refresh(self) -> None:
        """Read positions and objective anew, for instance after the operator used a joystick."""
        async with self._stage.lock, self._focus.lock:
            await self._read_all()

    # --- planning --------------------------------------------------------------------------

    def _stage_legs(
        self, x_um: float, y_um: float, source: str, approach: StageApproach
    ) -> list[_Leg]:
        target = (x_um, y_um)
        if self._stands_at(self._stage, target):
            return []
        way = [target]
        if approach == "from_below" and not self._is_taken_up(
            self._stage, target, +1.0, _BACKLASH_UM
        ):
            way.insert(0, (x_um - _BACKLASH_UM, y_um - _BACKLASH_UM))
        return [_Leg(self._stage, to, MoveStage(to[0], to[1], source)) for to in way]

    def _focus_legs(
        self, z_um: float, source: str, approach: FocusApproach, where: Whereabouts
    ) -> list[_Leg]:
        target = (z_um,)
        overshoot_um = self._settings.focus_overshoot_um
        direction = {"direct": 0.0, "from_above": -1.0, "from_below": 1.0}[approach]
        is_ready = direction == 0.0 or self._is_taken_up(
            self._focus, target, direction, overshoot_um
        )
        is_here = where.z == self._focus.hull[0]
        if is_ready and is_here and self._stands_at(self._focus, target):
            return []
        turns = [z_um] if is_ready else [z_um - direction * overshoot_um, z_um]
        way: list[float] = []
        for turn in turns:
            way += self._supervisor.descent_um(turn, where)
            where = Whereabouts(where.x, where.y, Span.at(turn), where.objective)
        return [_Leg(self._focus, (to,), MoveFocus(to, source)) for to in way]

    def _stands_at(self, axis: _Axis, target_um: tuple[float, ...]) -> bool:
        """Whether a move to `target_um` would be shorter than the axis can resolve."""
        least_um = axis.kinematics.resolution_um / 2.0
        return (
            axis.is_known
            and len(axis.target_um) == len(target_um)
            and all(abs(a - b) <= least_um for a, b in zip(axis.target_um, target_um, strict=True))
        )

    def _is_taken_up(
        self, axis: _Axis, target_um: tuple[float, ...], direction: float, backlash_um: float
    ) -> bool:
        """Whether a direct move ends with the backlash taken up in `direction` everywhere."""
        if not axis.is_known:
            return False
        after = axis.travel(axis.at_um, target_um)
        return all(travel * direction >= backlash_um for travel in after)

    def _same_place_um(self, old: Objective | None, name: str) -> tuple[float, float, float]:
        (x_um, y_um), (z_um,) = self._stage.at_um, self._focus.at_um
        new = self._objectives.get(name)
        if old is None or new is None:
            return x_um, y_um, z_um
        x_um, y_um = stage_for_point_um(*axis_point_um(x_um, y_um, old), new)
        return x_um, y_um, z_um - old.parfocal_z_um + new.parfocal_z_um

    def _plan_both(
        self,
        to_um: tuple[float, float, float],
        source: str,
        stage_approach: StageApproach,
        focus_approach: FocusApproach,
        where: Whereabouts,
    ) -> list[list[_Leg]]:
        """Legs in stages: legs of one axis in a row, lists of both axes at the same time.

        [stage, focus] at once if that is safe over the whole box that the axes may cross, else
        one list with the focus first when it rises and last when it falls.
        """
        x_um, y_um, z_um = to_um
        stage = self._stage_legs(x_um, y_um, source, stage_approach)
        passed = where
        for leg in stage:
            answer = self._supervisor.check(leg.command, where, self._clock())
            if isinstance(answer, Refusal) and answer.rule != "approach":
                self._permit(leg.command, where)  # no order of the two can cure this
            passed = passed.towards_xy(*leg.target_um)
        focus = self._focus_legs(z_um, source, focus_approach, passed)
        low = passed
        for leg in focus:
            low = low.towards_z(*leg.target_um)
        refused = self._first_refusal(stage, low) or self._first_refusal(focus, passed)
        if refused is None:
            return [stage, focus]
        if z_um > where.z.high_um:
            in_turn = self._focus_legs(z_um, source, focus_approach, where) + stage
        else:
            there = Whereabouts(Span.at(x_um), Span.at(y_um), where.z, where.objective)
            in_turn = stage + self._focus_legs(z_um, source, focus_approach, there)
        self._permit_all(in_turn, where)
        return [in_turn]

    # --- doing -----------------------------------------------------------------------------

    async def _go_both(
        self,
        to_um: tuple[float, float, float],
        source: str,
        stage_approach: StageApproach,
        focus_approach: FocusApproach,
    ) -> None:
        runs = self._plan_both(to_um, source, stage_approach, focus_approach, self.where)
        await self._accounted(self._at_once([legs for legs in runs if legs]), *self._axes)

    async def _at_once(self, runs: list[list[_Leg]]) -> None:
        if len(runs) == 1:
            await self._travel(runs[0])
        elif runs:
            try:
                async with asyncio.TaskGroup() as group:
                    for legs in runs:
                        group.create_task(self._travel(legs), name=f"move.{legs[0].axis.name}")
            except ExceptionGroup as failures:
                first, *others = failures.exceptions
                for other in others:
                    first.add_note(f"and at the same time: {other}")
                raise first from first.__cause__

    async def _accounted(self, moves: Awaitable[None], *axes: _Axis) -> None:
        """Enter what `moves` of `axes` cost; the permit has just been given."""
        began_s = self._clock()
        before = [(axis, axis.at_um, axis.target_um) for axis in axes]
        await moves
        went = [
            (axis, _distance_um(from_um, axis.at_um))
            for axis, from_um, target_um in before
            if axis.target_um != target_um
        ]
        if not went:
            return
        ideal_s = max(ideal_move_s(d, axis.kinematics) for axis, d in went)
        still_s = max(ideal_move_s(d, a.kinematics) + a.kinematics.settle_s for a, d in went)
        self.account.moves += 1
        self.account.ideal_s += ideal_s
        self.account.settle_s += still_s - ideal_s
        self.account.actual_s += max(axis.settled_at_s for axis, _ in went) - began_s

    async def _travel(self, legs: list[_Leg]) -> None:
        for leg in legs:
            await self._know(leg.axis)
            await self._drive(leg)

    async def _drive(self, leg: _Leg) -> None:
        """One command to one axis: permit, send, wait, verify; on failure stop the axis."""
        axis, target_um = leg.axis, leg.target_um
        self._permit(leg.command, self.where)
        from_um = axis.at_um
        expected_s = ideal_move_s(_distance_um(from_um, target_um), axis.kinematics)
        began_s = self._clock()
        deadline_s = expected_s * _DEADLINE_RATIO + self._settings.margin_s
        taken_up_um = axis.travel(from_um, target_um)
        axis.depart(target_um)
        seen = _Seen()
        try:
            async with self._until(began_s + deadline_s, repr(leg.command)):
                await axis.start(target_um)  # nothing is awaited between the permit and this
                await asyncio.sleep(max(0.0, began_s + expected_s - self._clock()))
                pause_s = self._settings.poll_s / _FIRST_POLLS
                while not await self._is_there(axis, target_um, seen):
                    await asyncio.sleep(pause_s)
                    pause_s = min(2.0 * pause_s, self._settings.poll_s)
        except DriverError as error:
            await self._stop(axis)
            raise MoveFailed(axis.name, target_um, seen.position_um, str(error)) from error
        except TimeoutError:
            await self._stop(axis)
            reason = f"not there after {deadline_s:.3f} s, last state {seen.state}"
            raise MoveFailed(axis.name, target_um, seen.position_um, reason) from None
        except BaseException:  # Halted, or this task was cancelled: the axis must not run on
            await self._stop(axis)
            raise
        axis.stand(seen.position_um or target_um, self._clock() + axis.kinematics.settle_s)
        axis.target_um = target_um
        axis.taken_up_um = taken_up_um

    async def _is_there(self, axis: _Axis, target_um: tuple[float, ...], seen: _Seen) -> bool:
        """Idle, and where it should be. A reading that fails is asked for again."""
        if not await self._is_idle(axis, seen):
            return False
        return (
            seen.position_um is not None
            and _distance_um(seen.position_um, target_um) <= axis.tolerance_um
        )

    async def _is_idle(self, axis: _Axis, seen: _Seen) -> bool:
        """Idle, with its position in `seen`."""
        try:
            seen.state = await axis.state()
            match seen.state:
                case Idle():
                    position_um = await axis.position()
                case Moving() | Unknown():
                    return False
        except (NoAnswer, BadReply) as error:
            seen.state = Unknown(str(error))
            return False
        if not all(map(math.isfinite, position_um)):
            seen.state = Unknown(f"position {position_um}")
            return False
        seen.position_um = position_um
        return True

    async def _know(self, axis: _Axis) -> None:
        """Make sure that the axis stands and its position is known, without moving it."""
        if axis.is_known:
            return
        seen = _Seen()
        wait_s = self._settings.margin_s
        try:
            async with self._until(self._clock() + wait_s, f"reading {axis.name}"):
                while not await self._is_idle(axis, seen):  # noqa: ASYNC110  a device
                    await asyncio.sleep(self._settings.poll_s)
        except DriverError as error:
            raise MoveFailed(axis.name, (), None, f"position unknown: {error}") from error
        except TimeoutError:
            reason = f"not at rest within {wait_s:g} s, last state {seen.state}"
            raise MoveFailed(axis.name, (), seen.position_um, reason) from None
        # When it came to rest is not known: settling counts from now.
        axis.stand(seen.position_um or (), self._clock() + axis.kinematics.settle_s)
        axis.taken_up_um = ()

    async def _swing(self, name: str, source: str) -> None:
        """The turret's own move; in doubt from its start to its verified end."""
        self._permit(SelectObjective(name, source), self.where)
        turret = self._instrument.turret
        began_s = self._clock()
        self._objective = None
        self._turret_settled_at_s = math.inf
        came: str | None = None
        try:
            async with self._until(began_s + _TURRET_S, f"selecting {name}"):
                await turret.select(name)
                came = (await turret.current()).name
        except DriverError as error:
            raise TurretFailed(turret.name, name, came, str(error)) from error
        except TimeoutError:
            raise TurretFailed(turret.name, name, came, f"silent for {_TURRET_S:g} s") from None
        if came != name:
            raise TurretFailed(turret.name, name, came, "another objective is in place")
        self._objective = name
        self._turret_settled_at_s = self._clock()
        self.account.turret_s += self._turret_settled_at_s - began_s

    async def _read_all(self) -> None:
        """Under both locks."""
        for axis in self._axes:
            axis.is_known = False
            await self._know(axis)
        turret = self._instrument.turret
        try:
            async with self._until(self._clock() + self._settings.margin_s, "reading the turret"):
                came = (await turret.current()).name
        except DriverError as error:
            raise TurretFailed(turret.name, None, None, str(error)) from error
        except TimeoutError:
            raise TurretFailed(turret.name, None, None, "silent") from None
        if came not in self._objectives:
            raise TurretFailed(turret.name, None, came, "no such objective is declared")
        self._objective = came
        if math.isinf(self._turret_settled_at_s):
            self._turret_settled_at_s = self._clock()

    # --- permits, deadlines, halts ---------------------------------------------------------

    def _permit(self, command: Command, where: Whereabouts) -> None:
        answer = self._supervisor.check(command, where, self._clock())
        if isinstance(answer, Refusal):
            if answer.rule == "halted":
                raise Halted(repr(command), self._supervisor.halted or "")
            raise answer.error()

    def _permit_all(self, legs: list[_Leg], where: Whereabouts) -> None:
        refusal = self._first_refusal(legs, where)
        if refusal is not None:
            self._permit(refusal[0], refusal[1])

    def _first_refusal(
        self, legs: list[_Leg], where: Whereabouts
    ) -> tuple[Command, Whereabouts] | None:
        """The first leg that would be refused, with where the instrument would be then."""
        for leg in legs:
            answer = self._supervisor.check(leg.command, where, self._clock())
            if isinstance(answer, Refusal):
                return leg.command, where
            at = tuple(Span.at(value) for value in leg.target_um)
            if leg.axis is self._stage:
                where = Whereabouts(at[0], at[1], where.z, where.objective)
            else:
                where = Whereabouts(where.x, where.y, at[0], where.objective)
        return None

    @asynccontextmanager
    async def _until(self, at_s: float, what: str) -> AsyncIterator[None]:
        """A deadline that a halt brings forward to now. Raises TimeoutError, or Halted."""
        if self._supervisor.halted is not None:
            raise Halted(what, self._supervisor.halted)
        try:
            async with asyncio.timeout_at(at_s) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if self._supervisor.halted is not None:
                raise Halted(what, self._supervisor.halted) from None
            raise
        if self._supervisor.halted is not None:  # the wait ended in the same moment
            raise Halted(what, self._supervisor.halted)

    def _end_waits(self) -> None:
        now_s = self._clock()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(now_s)

    def _spawn_halt(self, group: asyncio.TaskGroup, axis: _Axis) -> asyncio.Task[str | None]:
        axis.target_um = ()
        axis.is_known = False
        axis.settled_at_s = math.inf
        task = group.create_task(self._halt_axis(axis), name=f"halt.{axis.name}")
        self._halts.add(task)
        task.add_done_callback(self._halts.discard)
        return task

    async def _halt_axis(self, axis: _Axis) -> str | None:
        """What came instead of a confirmation; None: halted."""
        try:
            async with asyncio.timeout(self._settings.halt_deadline_s):
                await axis.halt()
        except TimeoutError:
            return f"silent for {self._settings.halt_deadline_s:g} s"
        except (DriverError, OSError) as error:
            return str(error)
        return None

    async def _stop(self, axis: _Axis) -> None:
        """Halt one axis; goes on in the background when the caller is cancelled meanwhile."""
        axis.is_moving = False
        if self._group is not None:
            await asyncio.wait({self._spawn_halt(self._group, axis)})
        else:
            await self._halt_axis(axis)


@dataclass(slots=True)
class _Seen:
    """The last that an axis said of itself."""

    state: MotionState = Unknown("nothing was said")  # noqa: RUF009  frozen
    position_um: tuple[float, ...] | None = None


def _distance_um(a_um: tuple[float, ...], b_um: tuple[float, ...]) -> float:
    """The longest of the coordinates' ways: they run at the same time."""
    return max((abs(a - b) for a, b in zip(a_um, b_um, strict=True)), default=0.0)


def _stage_axis(stage: Stage, tolerance_um: float) -> _Axis:
    async def start(target_um: tuple[float, ...]) -> None:
        await stage.start_move_um(float(target_um[0]), float(target_um[1]))

    async def position() -> tuple[float, ...]:
        x_um, y_um = await stage.position_um()
        return float(x_um), float(y_um)

    least_um = _TOLERANCE_RESOLUTIONS * stage.kinematics.resolution_um
    return _Axis(
        name=stage.name,
        kinematics=stage.kinematics,
        tolerance_um=max(tolerance_um, least_um),
        start=start,
        position=position,
        state=stage.state,
        halt=stage.halt,
    )


def _focus_axis(focus: FocusAxis, tolerance_um: float) -> _Axis:
    async def start(target_um: tuple[float, ...]) -> None:
        await focus.start_move_um(float(target_um[0]))

    async def position() -> tuple[float, ...]:
        return (float(await focus.position_um()),)

    least_um = _TOLERANCE_RESOLUTIONS * focus.kinematics.resolution_um
    return _Axis(
        name=focus.name,
        kinematics=focus.kinematics,
        tolerance_um=max(tolerance_um, least_um),
        start=start,
        position=position,
        state=focus.state,
        halt=focus.halt,
    )
