"""Moves arrive, fail and halt as they should; no sequence of commands and faults gets past safety.

The fake instrument here records every command that reaches it. Its loop has a clock of its own that
jumps to the next timer and stands still in between, so every run is the same and 5 ms are 5 ms.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from controller.errors import (
    ControllerError,
    Halted,
    HaltFailed,
    MoveFailed,
    TurretFailed,
    UnsafeCommand,
)
from controller.motion import Motion, ideal_move_s
from controller.safety import Envelope, Expose, Supervisor
from controller.settings import MotionSettings, SafetySettings
from drivers.api import (
    AxisLimits,
    Idle,
    Kinematics,
    MotionState,
    Moving,
    Objective,
    Unknown,
)
from drivers.errors import BadReply, LinkLost, NoAnswer, Refused

OBJECTIVES = (
    Objective("5x", 5, 0.15, 690.0, parfocal_z_um=12.0, free_working_distance_um=20_000.0),
    Objective("20x", 20, 0.45, 172.0, free_working_distance_um=3_000.0),
    Objective(
        "100x",
        100,
        0.9,
        34.5,
        parfocal_z_um=-8.0,
        parcentric_x_um=3.0,
        parcentric_y_um=-2.0,
        free_working_distance_um=210.0,
    ),
)
SAFETY = SafetySettings(
    x_min_um=-1000.0,
    x_max_um=1000.0,
    y_min_um=-800.0,
    y_max_um=800.0,
    z_min_um=-300.0,
    z_max_um=2000.0,
    max_step_down_um=100.0,
    safe_lift_um=150.0,
)
MOTION = MotionSettings(
    poll_s=0.002,
    margin_s=0.5,
    stage_tolerance_um=1.0,
    focus_tolerance_um=0.3,
    focus_overshoot_um=4.0,
    halt_deadline_s=0.2,
)
STAGE = Kinematics(10_000.0, 100_000.0, settle_s=0.05, resolution_um=0.1)
FOCUS = Kinematics(1_000.0, 20_000.0, settle_s=0.03, resolution_um=0.02)


class _Jump(selectors.DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everybody waits and nothing will ever happen")
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


def run(test: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(test)


def now_s() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class FakeAxis:
    """Goes straight to its target in the ideal time, unless a fault is on."""

    name: str
    kinematics: Kinematics
    limits: tuple[AxisLimits, ...]
    at_um: tuple[float, ...]
    on_start: Callable[[FakeAxis, tuple[float, ...]], None] = lambda axis, target: None
    fault: str = ""
    sent: list[tuple[float, ...]] = field(default_factory=list)
    halts_s: list[float] = field(default_factory=list)
    reads: int = 0
    target_um: tuple[float, ...] = ()
    began_s: float = 0.0
    takes_s: float = 0.0

    def position(self) -> tuple[float, ...]:
        if not self.target_um:
            return self.at_um
        part = 1.0 if self.takes_s == 0 else min((now_s() - self.began_s) / self.takes_s, 1.0)
        if math.isinf(self.takes_s):
            part = min(now_s() - self.began_s, 1.0) * 0.5
        return tuple(a + (b - a) * part for a, b in zip(self.at_um, self.target_um, strict=True))

    def is_running(self) -> bool:
        return bool(self.target_um) and now_s() < self.began_s + self.takes_s

    async def start(self, target_um: tuple[float, ...]) -> None:
        if self.fault == "hangs_at_start":
            self.sent.append(target_um)  # the bytes left; the device never says it heard
            self.on_start(self, target_um)
            await asyncio.sleep(1e6)
        if self.fault == "slow_to_start":
            await asyncio.sleep(0.1)
        if self.fault == "link_lost":
            raise LinkLost(self.name, "unplugged")
        self.sent.append(target_um)
        self.on_start(self, target_um)
        if self.fault == "refused":
            raise Refused(self.name, "no")
        if self.fault == "silent":
            raise NoAnswer(self.name, "nothing came")
        if self.fault == "ignored":
            return
        distance = max(abs(a - b) for a, b in zip(self.position(), target_um, strict=True))
        self.at_um, self.target_um, self.began_s = self.position(), target_um, now_s()
        self.takes_s = ideal_move_s(distance, self.kinematics)
        if self.fault == "slow":
            self.takes_s *= 1.4
        if self.fault == "stuck":
            self.takes_s = math.inf
        if self.fault == "short":
            half = zip(self.at_um, target_um, strict=True)
            self.target_um = tuple(a + (b - a) * 0.5 for a, b in half)

    async def read(self) -> tuple[float, ...]:
        self.reads += 1
        if self.fault == "link_lost":
            raise LinkLost(self.name, "unplugged")
        if self.fault == "nan":
            return tuple(math.nan for _ in self.at_um)
        if self.fault == "flaky" and self.reads % 2:
            raise NoAnswer(self.name, "nothing came")
        return self.position()

    async def state(self) -> MotionState:
        self.reads += 1
        if self.fault == "link_lost":
            raise LinkLost(self.name, "unplugged")
        if self.fault == "flaky" and self.reads % 3:
            raise BadReply(self.name, "b'?~'")
        if self.fault == "unknown":
            return Unknown("communication failed")
        if self.fault == "hangs_at_read":
            await asyncio.sleep(1e6)
        if self.fault == "lying_idle":
            return Idle()
        return Moving() if self.is_running() else Idle()

    async def halt(self) -> None:
        self.halts_s.append(now_s())
        if self.fault in ("halt_silent",):
            await asyncio.sleep(1e6)
        if self.fault in ("link_lost",):
            raise LinkLost(self.name, "unplugged")
        self.at_um, self.target_um = self.position(), ()


class FakeStage(FakeAxis):
    @property
    def limits_um(self) -> tuple[AxisLimits, AxisLimits]:
        return self.limits[0], self.limits[1]

    async def start_move_um(self, x_um: float, y_um: float) -> None:
        await self.start((x_um, y_um))

    async def position_um(self) -> tuple[float, float]:
        x_um, y_um = await self.read()
        return x_um, y_um


class FakeFocus(FakeAxis):
    @property
    def limits_um(self) -> AxisLimits:
        return self.limits[0]

    async def start_move_um(self, z_um: float) -> None:
        await self.start((z_um,))

    async def position_um(self) -> float:
        return (await self.read())[0]


class FakeTurret:
    name = "turret"
    objectives = OBJECTIVES

    def __init__(self, on_select: Callable[[str], None]) -> None:
        self.place = OBJECTIVES[1]
        self.fault = ""
        self.selected: list[str] = []
        self.on_select = on_select

    async def select(self, objective: str) -> None:
        if self.fault == "link_lost":
            raise LinkLost("turret", "unplugged")
        self.selected.append(objective)
        self.on_select(objective)
        if self.fault == "hangs":
            await asyncio.sleep(1e6)
        await asyncio.sleep(1.0)
        if self.fault != "jammed":
            self.place = next(o for o in OBJECTIVES if o.name == objective)

    async def current(self) -> Objective:
        return self.place


class FakeInstrument:
    name = "fake"
    illumination = None

    def __init__(self) -> None:
        wide = AxisLimits(-5000.0, 5000.0)
        self.stage = FakeStage("stage", STAGE, (wide, wide), (0.0, 0.0))
        self.focus = FakeFocus("focus", FOCUS, (AxisLimits(-1000.0, 10_000.0),), (0.0,))
        self.turret = FakeTurret(lambda name: None)
        self.camera: Any = None

    async def __aenter__(self) -> FakeInstrument:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    def describe(self) -> dict[str, str]:
        return {}

    @property
    def sent(self) -> list[tuple[float, ...]]:
        return [*self.stage.sent, *self.focus.sent]


def motion_of(instrument: FakeInstrument, confirmed: bool = True) -> Motion:
    envelope = Envelope.within(SAFETY, instrument.stage.limits_um, instrument.focus.limits_um)
    supervisor = Supervisor(envelope, OBJECTIVES, SAFETY)
    if confirmed:
        supervisor.confirm_focus(0.0, 0.0, 0.0, "20x")
    return Motion(instrument, supervisor, MOTION)


Body = Callable[[FakeInstrument, Motion], Coroutine[Any, Any, None]]


def on_the_fake(confirmed: bool = True) -> Callable[[Body], Callable[[], None]]:
    """Run a test's body inside an entered Motion, on the jumping clock."""

    def decorate(body: Body) -> Callable[[], None]:
        async def test() -> None:
            instrument = FakeInstrument()
            async with motion_of(instrument, confirmed) as motion:
                await body(instrument, motion)
            assert len(asyncio.all_tasks()) == 1, "a task was left behind"

        def run_it() -> None:
            run(test())

        run_it.__name__ = body.__name__
        return run_it

    return decorate


# --- arrival -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance_um", "expected_s"),
    [
        (0.0, 0.0),
        (1000.0, 0.2),  # 10 mm/s reached after 0.5 mm, left 0.5 mm before the end
        (10_000.0, 1.1),
        (100.0, 2 * math.sqrt(100.0 / 100_000.0)),
        (-100.0, 2 * math.sqrt(100.0 / 100_000.0)),
    ],
)
def test_ideal_move(distance_um: float, expected_s: float) -> None:
    assert ideal_move_s(distance_um, STAGE) == pytest.approx(expected_s)


def test_without_a_known_acceleration_the_speed_decides() -> None:
    for acceleration in (0.0, math.inf):
        assert ideal_move_s(500.0, Kinematics(1000.0, acceleration, 0.0, 0.1)) == 0.5


@on_the_fake()
async def test_a_move_ends_verified_and_settles_later(
    instrument: FakeInstrument, motion: Motion
) -> None:
    began_s = now_s()
    await motion.move_stage_um(500.0, -200.0, "search")
    took_s = now_s() - began_s
    ideal_s = ideal_move_s(500.0, STAGE)
    assert ideal_s <= took_s <= ideal_s + 2 * MOTION.poll_s
    assert instrument.stage.sent == [(500.0, -200.0)]
    assert motion.settled_at_s == pytest.approx(now_s() + STAGE.settle_s)
    assert motion.where.x.is_point
    assert motion.where.x.low_um == pytest.approx(500.0)


@on_the_fake()
async def test_nothing_is_settled_while_something_moves(
    instrument: FakeInstrument, motion: Motion
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(motion.move_stage_um(800.0, 0.0, "search"))
        await asyncio.sleep(0.01)
        assert math.isinf(motion.settled_at_s)
        assert (motion.where.x.low_um, motion.where.x.high_um) == (0.0, 800.0)
    assert math.isfinite(motion.settled_at_s)


@on_the_fake()
async def test_stage_and_focus_move_at_the_same_time(
    instrument: FakeInstrument, motion: Motion
) -> None:
    began_s = now_s()
    await motion.move_to_um(900.0, 0.0, 50.0, "search")
    longest_s = max(ideal_move_s(900.0, STAGE), ideal_move_s(50.0, FOCUS))
    assert now_s() - began_s <= longest_s + 2 * MOTION.poll_s
    bound_s = max(
        ideal_move_s(900.0, STAGE) + STAGE.settle_s, ideal_move_s(50.0, FOCUS) + FOCUS.settle_s
    )
    account = motion.account
    assert account.ideal_s + account.settle_s == pytest.approx(bound_s)
    assert bound_s <= account.actual_s <= bound_s + 2 * MOTION.poll_s


@on_the_fake()
async def test_what_stands_there_already_is_not_sent_again(
    instrument: FakeInstrument, motion: Motion
) -> None:
    await motion.move_to_um(10.0, 10.0, 5.0, "search")
    await motion.move_to_um(10.0, 10.0, 5.0, "search")
    await motion.move_to_um(20.0, 10.0, 5.0, "search")
    assert instrument.stage.sent == [(10.0, 10.0), (20.0, 10.0)]
    assert instrument.focus.sent == [(5.0,)]
    assert motion.account.moves == 2


@on_the_fake()
async def test_one_sided_approach_takes_up_the_backlash(
    instrument: FakeInstrument, motion: Motion
) -> None:
    await motion.move_focus_um(10.0, "focus", "from_above")
    assert instrument.focus.sent == [(14.0,), (10.0,)]
    await motion.move_focus_um(9.5, "focus", "from_above")  # already going down: no detour
    await motion.move_focus_um(9.0, "focus", "from_above")
    await motion.move_focus_um(9.2, "focus", "from_above")
    await motion.move_focus_um(0.0, "focus", "from_above")
    assert instrument.focus.sent[2:] == [(9.5,), (9.0,), (13.2,), (9.2,), (0.0,)]
    await motion.move_focus_um(0.5, "focus", "from_below")
    assert instrument.focus.sent[7:] == [(-3.5,), (0.5,)]
    await motion.move_stage_um(100.0, 100.0, "search", "from_below")
    await motion.move_stage_um(50.0, 150.0, "search", "from_below")
    assert instrument.stage.sent == [(100.0, 100.0), (40.0, 140.0), (50.0, 150.0)]


@on_the_fake()
async def test_a_deep_descent_is_made_in_steps(instrument: FakeInstrument, motion: Motion) -> None:
    await motion.move_focus_um(1000.0, "search")
    await motion.move_focus_um(0.0, "search")
    assert instrument.focus.sent == [(1000.0,), (100.0,), (50.0,), (0.0,)]


@on_the_fake()
async def test_going_up_a_slope_lifts_first_and_going_down_moves_first(
    instrument: FakeInstrument, motion: Motion
) -> None:
    motion.supervisor.set_surface(lambda x, y: 0.4 * x)
    order: list[str] = []
    instrument.stage.on_start = lambda axis, target: order.append("stage")
    instrument.focus.on_start = lambda axis, target: order.append("focus")
    await motion.move_to_um(800.0, 0.0, 320.0, "search")
    assert order == ["focus", "stage"]
    order.clear()
    await motion.move_to_um(0.0, 0.0, 0.0, "search")
    assert order[0] == "stage"
    assert set(order[1:]) == {"focus"}


# --- the turret --------------------------------------------------------------------------------


@on_the_fake()
async def test_the_turret_turns_lifted_and_comes_back_to_the_same_place(
    instrument: FakeInstrument, motion: Motion
) -> None:
    heights: list[float] = []
    instrument.turret.on_select = lambda name: heights.append(instrument.focus.position()[0])
    await motion.move_to_um(100.0, 50.0, 20.0, "search")
    await motion.select_objective("100x", "search")
    assert heights[0] >= 150.0
    assert instrument.turret.place.name == "100x"
    assert instrument.stage.position() == pytest.approx((97.0, 52.0))  # parcentric
    assert instrument.focus.position() == pytest.approx((12.0,))  # parfocal
    assert motion.objective is not None
    assert motion.objective.name == "100x"
    await motion.select_objective("5x", "search", then_to_um=(0.0, 0.0, 12.0))
    assert heights[1] >= 162.0
    assert instrument.stage.position() == pytest.approx((0.0, 0.0))
    assert instrument.focus.position() == pytest.approx((12.0,))
    assert motion.account.turret_s == pytest.approx(2.0)


@on_the_fake()
async def test_selecting_what_is_in_place_moves_nothing(
    instrument: FakeInstrument, motion: Motion
) -> None:
    await motion.select_objective("20x", "search")
    assert instrument.sent == []
    assert instrument.turret.selected == []


@pytest.mark.parametrize("then_to_um", [(2000.0, 0.0, 0.0), (0.0, 0.0, -290.0), (0, 0, math.nan)])
def test_a_turret_change_with_an_unsafe_end_never_begins(
    then_to_um: tuple[float, float, float],
) -> None:
    @on_the_fake()
    async def body(instrument: FakeInstrument, motion: Motion) -> None:
        with pytest.raises(UnsafeCommand):
            await motion.select_objective("5x", "search", then_to_um=then_to_um)
        assert instrument.sent == []
        assert instrument.turret.selected == []

    body()


@pytest.mark.parametrize("fault", ["jammed", "hangs", "link_lost"])
def test_a_turret_in_doubt_stops_exposures_and_descents(fault: str) -> None:
    @on_the_fake()
    async def body(instrument: FakeInstrument, motion: Motion) -> None:
        instrument.turret.fault = fault
        with pytest.raises(TurretFailed):
            await motion.select_objective("5x", "search")
        in_doubt = motion.where.objective
        assert in_doubt is None
        with pytest.raises(TurretFailed):
            async with motion.still(Expose(0.1, 10.0, 10.0, "search")):
                pass
        with pytest.raises(UnsafeCommand):  # with the worst of all objectives
            await motion.move_focus_um(-100.0, "search")
        instrument.turret.fault = ""
        await motion.refresh()
        assert motion.where.objective is not None
        async with motion.still(Expose(0.1, 10.0, 10.0, "search")):
            pass

    body()


@on_the_fake()
async def test_an_unknown_objective_is_refused(instrument: FakeInstrument, motion: Motion) -> None:
    with pytest.raises(UnsafeCommand, match="7x"):
        await motion.select_objective("7x", "search")
    assert instrument.sent == []


# --- faults ------------------------------------------------------------------------------------

FAULTS = ["ignored", "stuck", "unknown", "short", "link_lost", "refused", "silent", "nan"]
FAULTS += ["hangs_at_start", "hangs_at_read", "lying_idle_stuck"]


@pytest.mark.parametrize("axis", ["stage", "focus"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_the_move_in_its_time_and_stops_the_axis(fault: str, axis: str) -> None:
    @on_the_fake()
    async def body(instrument: FakeInstrument, motion: Motion) -> None:
        device = instrument.stage if axis == "stage" else instrument.focus
        device.fault = fault.removesuffix("_stuck")
        if fault == "lying_idle_stuck":
            device.kinematics = Kinematics(1e-3, 1.0, 0.0, 0.1)  # says Idle, hardly moves
        began_s = now_s()
        with pytest.raises(MoveFailed) as failure:
            if axis == "stage":
                await motion.move_stage_um(500.0, 0.0, "search")
            else:
                await motion.move_focus_um(80.0, "search")
        ideal_s = ideal_move_s(500.0, STAGE) if axis == "stage" else ideal_move_s(80.0, FOCUS)
        assert now_s() - began_s <= 1.5 * ideal_s + MOTION.margin_s + MOTION.halt_deadline_s
        assert failure.value.axis == axis
        assert failure.value.asked_um == ((500.0, 0.0) if axis == "stage" else (80.0,))
        assert device.halts_s, "the axis was not told to stop"
        assert math.isinf(motion.settled_at_s)
        span = motion.where.x if axis == "stage" else motion.where.z
        assert not span.is_point, "a failed move leaves the position in doubt"
        device.fault = ""
        device.kinematics = STAGE if axis == "stage" else FOCUS
        sent = len(device.sent)
        if axis == "stage":  # the next command reads first, then goes on
            await motion.move_stage_um(400.0, 0.0, "search")
        else:
            await motion.move_focus_um(90.0, "search")
        assert len(device.sent) == sent + 1
        assert math.isfinite(motion.settled_at_s)

    body()


@on_the_fake()
async def test_a_slow_axis_and_a_flaky_line_are_waited_for(
    instrument: FakeInstrument, motion: Motion
) -> None:
    for fault in ("slow", "flaky", "slow_to_start"):
        instrument.stage.fault = fault
        await motion.move_stage_um(500.0, 0.0, "search")
        assert instrument.stage.position() == (500.0, 0.0)
        await motion.move_stage_um(0.0, 0.0, "search")
    assert len(instrument.stage.sent) == 6  # a move is never repeated


@on_the_fake()
async def test_one_axis_failing_stops_the_other(instrument: FakeInstrument, motion: Motion) -> None:
    instrument.focus.fault = "refused"
    with pytest.raises(MoveFailed, match="focus"):
        await motion.move_to_um(900.0, 0.0, 50.0, "search")
    assert instrument.stage.halts_s
    assert instrument.stage.position()[0] < 900.0


@on_the_fake()
async def test_a_cancelled_move_stops_the_axis(instrument: FakeInstrument, motion: Motion) -> None:
    move = asyncio.ensure_future(motion.move_stage_um(900.0, 0.0, "search"))
    await asyncio.sleep(0.05)
    move.cancel()
    with pytest.raises(asyncio.CancelledError):
        await move
    assert len(instrument.stage.halts_s) == 1
    assert instrument.stage.position()[0] < 900.0
    await motion.move_stage_um(0.0, 0.0, "search")


def test_leaving_the_context_stops_what_moves() -> None:
    async def test() -> None:
        instrument = FakeInstrument()
        with pytest.raises(ZeroDivisionError):
            async with motion_of(instrument) as motion:
                move = asyncio.ensure_future(motion.move_stage_um(900.0, 0.0, "search"))
                await asyncio.sleep(0.01)
                raise ZeroDivisionError
        assert instrument.stage.halts_s
        await asyncio.wait({move})
        assert isinstance(move.exception(), MoveFailed)

    run(test())


@pytest.mark.parametrize("fault", ["link_lost", "unknown", "nan", "hangs_at_read"])
def test_an_instrument_that_does_not_answer_is_not_entered(fault: str) -> None:
    async def test() -> None:
        instrument = FakeInstrument()
        instrument.focus.fault = fault
        with pytest.raises(MoveFailed, match="focus"):
            async with motion_of(instrument):
                pass
        assert now_s() <= MOTION.margin_s + MOTION.halt_deadline_s
        assert instrument.sent == []

    run(test())


# --- refusals ----------------------------------------------------------------------------------


@on_the_fake()
async def test_a_refused_pair_sends_neither(instrument: FakeInstrument, motion: Motion) -> None:
    for x_um, y_um, z_um in (
        (5000.0, 0.0, 10.0),
        (math.nan, 0.0, 10.0),
        (10.0, 0.0, -250.0),
        (10.0, 0.0, math.inf),
    ):
        with pytest.raises(UnsafeCommand):
            await motion.move_to_um(x_um, y_um, z_um, "search")
    assert instrument.sent == []
    assert motion.where.x.low_um == 0.0
    assert math.isfinite(motion.settled_at_s)


@on_the_fake()
async def test_an_approach_that_would_leave_the_envelope_sends_nothing(
    instrument: FakeInstrument, motion: Motion
) -> None:
    with pytest.raises(UnsafeCommand):
        await motion.move_stage_um(-995.0, 0.0, "search", "from_below")
    with pytest.raises(UnsafeCommand):
        await motion.move_focus_um(1999.0, "focus", "from_above")
    assert instrument.sent == []


@on_the_fake()
async def test_a_surface_is_not_asked_about_places_outside_the_envelope(
    instrument: FakeInstrument, motion: Motion
) -> None:
    def surface(x_um: float, y_um: float) -> float:
        assert abs(x_um) <= 1000.0
        assert abs(y_um) <= 800.0
        return 0.0

    motion.supervisor.set_surface(surface)
    for x_um, y_um in ((math.nan, 0.0), (1e308, 0.0), (0.0, math.inf), (1001.0, 0.0)):
        with pytest.raises(UnsafeCommand):
            await motion.move_to_um(x_um, y_um, -200.0, "search")
        with pytest.raises(UnsafeCommand):
            await motion.select_objective("5x", "search", (x_um, y_um, 0.0))
    assert instrument.sent == []


@on_the_fake()
async def test_a_permit_is_asked_for_again_before_each_step(
    instrument: FakeInstrument, motion: Motion
) -> None:
    """Somebody takes the instrument while a descent, or the lift for the turret, is under way."""
    await motion.move_focus_um(1000.0, "search")

    def take(axis: FakeAxis, target_um: tuple[float, ...]) -> None:
        motion.supervisor.take_lease("operator", now_s(), 60.0)

    instrument.focus.on_start = take
    with pytest.raises(UnsafeCommand, match="lease"):
        await motion.move_focus_um(0.0, "search")
    assert instrument.focus.sent == [(1000.0,), (100.0,)]
    motion.supervisor.release_lease("operator")
    with pytest.raises(UnsafeCommand, match="lease"):
        await motion.select_objective("5x", "search")
    assert instrument.focus.sent[2:] == [(pytest.approx((162.3,)))]
    assert instrument.turret.selected == []


# --- exposures ---------------------------------------------------------------------------------


@on_the_fake()
async def test_still_waits_for_settling_and_keeps_moves_out(
    instrument: FakeInstrument, motion: Motion
) -> None:
    await motion.move_stage_um(500.0, 0.0, "search")
    arrived_s = now_s()
    async with motion.still(Expose(0.1, 10.0, 10.0, "search")) as settled_at_s:
        assert now_s() >= settled_at_s >= arrived_s + STAGE.settle_s
        intruder = asyncio.ensure_future(motion.move_focus_um(5.0, "operator"))
        await asyncio.sleep(0.1)
        assert instrument.focus.sent == []
    await intruder
    assert instrument.focus.sent == [(5.0,)]
    assert (motion.account.exposures, motion.account.exposure_s) == (1, 0.1)


@on_the_fake()
async def test_halt_ends_the_wait_for_settling(instrument: FakeInstrument, motion: Motion) -> None:
    await motion.move_stage_um(500.0, 0.0, "search")

    async def expose() -> None:
        async with motion.still(Expose(0.1, 10.0, 10.0, "search")):
            pytest.fail("exposed after a halt")

    waiting = asyncio.ensure_future(expose())
    await asyncio.sleep(0.001)
    await motion.halt()
    with pytest.raises(Halted):
        await waiting


# --- halt --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["", "stuck", "unknown", "hangs_at_start", "hangs_at_read"])
def test_halt_reaches_both_axes_at_once_and_ends_the_move(fault: str) -> None:
    @on_the_fake()
    async def body(instrument: FakeInstrument, motion: Motion) -> None:
        instrument.stage.fault = fault
        move = asyncio.ensure_future(motion.move_to_um(900.0, 0.0, 50.0, "search"))
        queued = asyncio.ensure_future(motion.move_stage_um(1.0, 1.0, "search"))
        await asyncio.sleep(0.02)
        called_s = now_s()
        await motion.halt("operator", "red button")
        for axis in (instrument.stage, instrument.focus):
            assert axis.halts_s[0] - called_s <= 0.005
        with pytest.raises(Halted, match="red button"):
            await move
        with pytest.raises(Halted):
            await queued
        assert now_s() - called_s <= MOTION.halt_deadline_s
        sent = len(instrument.sent)
        for refused in (
            motion.move_stage_um(0.0, 0.0, "operator"),
            motion.move_focus_um(10.0, "focus"),
            motion.select_objective("5x", "search"),
        ):
            with pytest.raises(Halted):
                await refused
        assert len(instrument.sent) == sent
        instrument.stage.fault = ""
        await motion.resume("operator")
        await motion.move_stage_um(0.0, 0.0, "operator")
        assert motion.halted is None

    body()


@on_the_fake()
async def test_a_start_on_its_way_is_followed_by_a_second_halt(
    instrument: FakeInstrument, motion: Motion
) -> None:
    """The driver is busy: the move's bytes would leave after the halt's."""

    async def stubborn(x_um: float, y_um: float) -> None:
        try:
            await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            instrument.stage.at_um = instrument.stage.position()
            instrument.stage.fault = ""
            await instrument.stage.start((x_um, y_um))
            raise

    instrument.stage.start_move_um = stubborn  # type: ignore[method-assign]
    motion_ = motion_of(instrument)
    async with motion_:
        move = asyncio.ensure_future(motion_.move_stage_um(900.0, 0.0, "search"))
        await asyncio.sleep(0.01)
        await motion_.halt()
        with pytest.raises(Halted):
            await move
        assert len(instrument.stage.halts_s) == 2
        assert not instrument.stage.is_running()


@on_the_fake()
async def test_an_axis_that_does_not_confirm_a_halt_is_named_and_the_other_is_stopped(
    instrument: FakeInstrument, motion: Motion
) -> None:
    instrument.stage.fault = "halt_silent"
    called_s = now_s()
    with pytest.raises(HaltFailed) as failure:
        await motion.halt()
    assert list(failure.value.failures) == ["stage"]
    assert now_s() - called_s <= MOTION.halt_deadline_s + 0.001
    assert instrument.focus.halts_s == [called_s]
    assert motion.halted


@on_the_fake()
async def test_halt_goes_on_when_its_caller_is_cancelled(
    instrument: FakeInstrument, motion: Motion
) -> None:
    halting = asyncio.ensure_future(motion.halt())
    await asyncio.sleep(0)
    halting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await halting
    assert instrument.stage.halts_s
    assert instrument.focus.halts_s


def test_halt_works_before_and_after_the_context() -> None:
    async def test() -> None:
        instrument = FakeInstrument()
        motion = motion_of(instrument)
        await motion.halt()
        motion.supervisor.resume()
        async with motion:
            pass
        await motion.halt()
        assert len(instrument.stage.halts_s) == len(instrument.focus.halts_s) == 2

    run(test())


@on_the_fake()
async def test_resume_that_cannot_read_the_axes_stays_halted(
    instrument: FakeInstrument, motion: Motion
) -> None:
    await motion.halt("operator", "red button")
    instrument.focus.fault = "unknown"
    with pytest.raises(MoveFailed):
        await motion.resume("operator")
    assert motion.halted == "operator: red button"
    with pytest.raises(Halted):
        await motion.move_stage_um(1.0, 1.0, "operator")


@on_the_fake()
async def test_only_the_holder_may_resume(instrument: FakeInstrument, motion: Motion) -> None:
    motion.supervisor.take_lease("operator", now_s(), 60.0)
    await motion.halt("replay")
    with pytest.raises(UnsafeCommand, match="lease"):
        await motion.resume("search")
    await motion.resume("operator")


def test_halt_is_quick_on_the_real_clock() -> None:
    async def test() -> list[float]:
        instrument = FakeInstrument()
        delays_s = []
        async with motion_of(instrument) as motion:
            for _ in range(20):
                move = asyncio.ensure_future(motion.move_stage_um(900.0, 0.0, "search"))
                await asyncio.sleep(0.002)
                called_s = time.perf_counter()
                await motion.halt()
                delays_s.append(time.perf_counter() - called_s)
                with pytest.raises(Halted):
                    await move
                await motion.resume("operator")
                instrument.stage.at_um = (0.0, 0.0)
                await motion.refresh()
        return delays_s

    delays_s = sorted(asyncio.run(test()))
    assert delays_s[len(delays_s) // 2] <= 0.005


# --- whatever happens --------------------------------------------------------------------------

SOURCES = st.sampled_from(["search", "focus", "operator", "replay"])
NASTY_UM = st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 1e7, 0.0, -0.0])
LATERAL_UM = st.one_of(NASTY_UM, st.floats(-1100.0, 1100.0), st.floats(-6000.0, 6000.0))
HEIGHT_UM = st.one_of(NASTY_UM, st.floats(-400.0, 400.0), st.floats(-2000.0, 12_000.0))
AXIS_FAULTS = ["", "", "ignored", "stuck", "unknown", "short", "slow", "flaky", "link_lost"]
AXIS_FAULTS += [
    "slow_to_start",
    "refused",
    "silent",
    "nan",
    "hangs_at_start",
    "hangs_at_read",
    "halt_silent",
]


class Anything(RuleBasedStateMachine):
    """Commands of every kind from everybody, with faults; what reached the devices is checked.

    Two worlds: in an honest one the beliefs about the sample are true to 5 um and the lens must
    never touch it; in the other they are anything, and only the envelope is guaranteed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=JumpingLoop)
        self.instrument = FakeInstrument()
        self.motion = motion_of(self.instrument, confirmed=False)
        self.wrong: list[str] = []
        self.sent = 0
        self.is_honest = True
        self.slope = (0.0, 0.0)
        self.instrument.stage.on_start = self.watch
        self.instrument.focus.on_start = self.watch
        self.instrument.turret.on_select = self.watch_turret
        self.leave = asyncio.Event()
        self.host: asyncio.Task[None] | None = None

    @initialize(
        is_honest=st.booleans(), slope_x=st.floats(-0.05, 0.05), slope_y=st.floats(-0.05, 0.05)
    )
    def open(self, is_honest: bool, slope_x: float, slope_y: float) -> None:
        self.is_honest = is_honest
        self.slope = (slope_x, slope_y)

        async def host(entered: asyncio.Event) -> None:
            async with self.motion:
                entered.set()
                await self.leave.wait()

        async def enter() -> None:
            entered = asyncio.Event()
            self.host = asyncio.ensure_future(host(entered))
            await entered.wait()

        self.runner.run(enter())
        if is_honest:
            self.motion.supervisor.confirm_focus(0.0, 0.0, 0.0, "20x")
            self.motion.supervisor.set_surface(self.true_z_um)

    def teardown(self) -> None:
        async def exit_() -> None:
            self.leave.set()
            if self.host is not None:
                await self.host

        self.runner.run(exit_())
        self.runner.close()

    # what the devices saw

    def true_z_um(self, x_um: float, y_um: float) -> float:
        return self.slope[0] * x_um + self.slope[1] * y_um

    def watch(self, axis: FakeAxis, target_um: tuple[float, ...]) -> None:
        self.sent += 1
        limits = (
            ((-1000.0, 1000.0), (-800.0, 800.0)) if axis.name == "stage" else ((-300.0, 2000.0),)
        )
        for value, (low, high) in zip(target_um, limits, strict=True):
            if not low <= value <= high:
                self.wrong.append(f"{axis.name} was sent to {target_um}")
        if self.motion.halted:
            self.wrong.append(f"{axis.name} was sent to {target_um} while halted")
        if self.is_honest:
            self.look_for_contact(axis, target_um)

    def look_for_contact(self, axis: FakeAxis, target_um: tuple[float, ...]) -> None:
        """The lens' face against the true sample over the box that the axes may now cross."""
        ends = {}
        for device in (self.instrument.stage, self.instrument.focus):
            goal = target_um if device is axis else (device.target_um or device.position())
            ends[device.name] = (device.position(), goal)
        lowest = min(z for (z,) in ends["focus"])
        highest = max(
            self.true_z_um(x, y)
            for x in (ends["stage"][0][0], ends["stage"][1][0])
            for y in (ends["stage"][0][1], ends["stage"][1][1])
        )
        lens = self.instrument.turret.place
        clearance = lowest - lens.parfocal_z_um - highest + lens.free_working_distance_um
        (now_z,), (goal_z,) = ends["focus"]
        is_rising = axis.name == "focus" and goal_z >= now_z
        if clearance < 0.4 * lens.free_working_distance_um and not is_rising:
            self.wrong.append(f"{axis.name} to {target_um}: {clearance:.1f} um to the sample")

    def watch_turret(self, name: str) -> None:
        z_um = self.instrument.focus.position()[0]
        x_um, y_um = self.instrument.stage.position()
        if self.instrument.focus.is_running() or self.instrument.stage.is_running():
            self.wrong.append("the turret turned during a move")
        if self.motion.halted:
            self.wrong.append("the turret turned while halted")
        if self.is_honest and z_um - self.true_z_um(x_um, y_um) < 100.0:
            self.wrong.append(f"the turret turned {z_um:.1f} um above the sample")

    # what people do

    def try_(self, *commands: Coroutine[Any, Any, None], halt_after_s: float | None = None) -> None:
        async def all_of_them() -> None:
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(command) for command in commands]
            if halt_after_s is not None:
                await asyncio.sleep(halt_after_s)
                await self.halt_now()
            await asyncio.wait(tasks)
            for task in tasks:
                if task.cancelled():
                    continue
                error = task.exception()
                event("done" if error is None else type(error).__name__)
                if error is not None and not isinstance(error, ControllerError):
                    raise error

        began_s = self.runner.get_loop().time()
        self.runner.run(all_of_them())
        took_s = self.runner.get_loop().time() - began_s
        assert took_s < 60.0, f"hung for {took_s} s"

    async def halt_now(self) -> None:
        called_s = now_s()
        axes = (self.instrument.stage, self.instrument.focus)
        before = [len(axis.halts_s) for axis in axes]
        try:
            await self.motion.halt("operator")
        except HaltFailed:
            event("HaltFailed")
        for axis, had in zip(axes, before, strict=True):
            assert len(axis.halts_s) > had, f"{axis.name} was not halted"
            assert axis.halts_s[had] - called_s <= 0.005
        assert now_s() - called_s <= MOTION.halt_deadline_s + 0.005

    @rule(x_um=LATERAL_UM, y_um=LATERAL_UM, source=SOURCES, one_sided=st.booleans())
    def stage(self, x_um: float, y_um: float, source: str, one_sided: bool) -> None:
        self.try_(
            self.motion.move_stage_um(x_um, y_um, source, "from_below" if one_sided else "direct")
        )

    @rule(
        z_um=HEIGHT_UM,
        source=SOURCES,
        approach=st.sampled_from(["direct", "from_above", "from_below"]),
    )
    def focus(self, z_um: float, source: str, approach: Any) -> None:
        self.try_(self.motion.move_focus_um(z_um, source, approach))

    @rule(x_um=LATERAL_UM, y_um=LATERAL_UM, z_um=HEIGHT_UM, source=SOURCES)
    def both(self, x_um: float, y_um: float, z_um: float, source: str) -> None:
        self.try_(self.motion.move_to_um(x_um, y_um, z_um, source))

    @rule(
        name=st.sampled_from(["5x", "20x", "100x", "7x", ""]),
        source=SOURCES,
        place=st.none() | st.tuples(LATERAL_UM, LATERAL_UM, HEIGHT_UM),
    )
    def turret(self, name: str, source: str, place: tuple[float, float, float] | None) -> None:
        self.try_(self.motion.select_objective(name, source, place))

    @rule(
        x_um=st.floats(-1000.0, 1000.0),
        y_um=st.floats(-800.0, 800.0),
        z_um=st.floats(-150.0, 300.0),
        name=st.sampled_from(["5x", "20x", "100x"]),
        halt_after_s=st.none() | st.floats(0.0, 0.5),
    )
    def all_at_once(
        self, x_um: float, y_um: float, z_um: float, name: str, halt_after_s: float | None
    ) -> None:
        self.try_(
            self.motion.move_stage_um(x_um, y_um, "search"),
            self.motion.move_focus_um(z_um, "focus"),
            self.motion.move_to_um(-x_um, -y_um, z_um / 2, "operator"),
            self.motion.select_objective(name, "replay"),
            halt_after_s=halt_after_s,
        )

    @rule(x_um=st.floats(-1000.0, 1000.0), z_um=st.floats(-150.0, 300.0), at_s=st.floats(0, 0.3))
    def cancelled(self, x_um: float, z_um: float, at_s: float) -> None:
        async def start_and_cancel() -> None:
            move = asyncio.ensure_future(self.motion.move_to_um(x_um, 0.0, z_um, "search"))
            await asyncio.sleep(at_s)
            move.cancel()
            await asyncio.wait({move})
            assert move.cancelled() or isinstance(move.exception(), ControllerError | None)

        self.runner.run(start_and_cancel())

    @rule()
    def halt(self) -> None:
        self.runner.run(self.halt_now())

    @precondition(lambda self: self.motion.halted)
    @rule(source=SOURCES)
    def resume(self, source: str) -> None:
        self.try_(self.motion.resume(source))

    @rule()
    def refresh(self) -> None:
        self.try_(self.motion.refresh())

    @rule(holder=SOURCES, duration_s=st.floats(-1.0, 30.0))
    def lease(self, holder: str, duration_s: float) -> None:
        self.motion.supervisor.take_lease(holder, self.runner.get_loop().time(), duration_s)

    @rule(holder=SOURCES)
    def give_back(self, holder: str) -> None:
        self.motion.supervisor.release_lease(holder)

    @rule(fault=st.sampled_from(AXIS_FAULTS), axis=st.sampled_from(["stage", "focus"]))
    def break_axis(self, fault: str, axis: str) -> None:
        getattr(self.instrument, axis).fault = fault

    @rule(fault=st.sampled_from(["", "", "jammed", "hangs", "link_lost"]))
    def break_turret(self, fault: str) -> None:
        self.instrument.turret.fault = fault

    @rule()
    def repair(self) -> None:
        for device in (self.instrument.stage, self.instrument.focus, self.instrument.turret):
            device.fault = ""
        self.try_(self.motion.resume("operator"))

    @rule(x_um=LATERAL_UM, y_um=LATERAL_UM, z_um=HEIGHT_UM)
    def believe(self, x_um: float, y_um: float, z_um: float) -> None:
        supervisor = self.motion.supervisor
        name = "20x"
        if self.is_honest:
            if not (abs(x_um) <= 1000.0 and abs(y_um) <= 800.0):
                return
            z_um = self.true_z_um(x_um, y_um) + (3.0 if x_um > 0 else -3.0)
        try:
            supervisor.confirm_focus(x_um, y_um, z_um, name)
        except UnsafeCommand:
            event("not believed")

    @precondition(lambda self: not self.is_honest)
    @rule(
        surface=st.sampled_from(
            [
                None,
                lambda x, y: math.nan,
                lambda x, y: math.inf,
                lambda x, y: -1e9,
                lambda x, y: 0.2 * x - 0.1 * y,
                lambda x, y: x * y * 1e-3,
            ]
        )
    )
    def believe_surface(self, surface: Any) -> None:
        self.motion.supervisor.set_surface(surface)

    @invariant()
    def nothing_unsafe_was_sent(self) -> None:
        assert not self.wrong, self.wrong

    @invariant()
    def nothing_is_settled_in_doubt(self) -> None:
        if math.isfinite(self.motion.settled_at_s) and self.host is not None:
            where = self.motion.where
            assert where.x.is_point
            assert where.z.is_point
            assert where.objective is not None


Anything.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnything = Anything.TestCase
