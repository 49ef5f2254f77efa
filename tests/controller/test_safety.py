"""Every rule refuses what it should, permits what it should, and says why."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import BadSettings, UnsafeCommand
from controller.safety import (
    Command,
    DoseRules,
    Envelope,
    Expose,
    Halt,
    MoveFocus,
    MoveStage,
    Permit,
    Refusal,
    Resume,
    SelectObjective,
    Span,
    Supervisor,
    Whereabouts,
)
from controller.settings import SafetySettings
from drivers.api import AxisLimits, Objective

OBJECTIVES = (
    Objective("5x", 5, 0.15, 690.0, parfocal_z_um=12.0, free_working_distance_um=20_000.0),
    Objective("20x", 20, 0.45, 172.0, free_working_distance_um=3_000.0),
    Objective("100x", 100, 0.9, 34.5, parfocal_z_um=-8.0, free_working_distance_um=120.0),
)
SETTINGS = SafetySettings(
    x_min_um=-1000.0,
    x_max_um=1000.0,
    y_min_um=-800.0,
    y_max_um=800.0,
    z_min_um=-300.0,
    z_max_um=2000.0,
    max_step_down_um=100.0,
    safe_lift_um=150.0,
    max_exposure_s=2.0,
)
DEVICE = (AxisLimits(-5000.0, 5000.0), AxisLimits(-5000.0, 5000.0))
FOCUS = AxisLimits(-1000.0, 10_000.0)
HOME = Whereabouts.at(0.0, 0.0, 0.0, "20x")
NASTY = (math.nan, math.inf, -math.inf, 1e300, 10**400, True, None, "5", 1j)


def supervisor(**beliefs: float) -> Supervisor:
    """At z = 0 with the 20x; focus confirmed at 0 unless told otherwise."""
    one = Supervisor(Envelope.within(SETTINGS, DEVICE, FOCUS), OBJECTIVES, SETTINGS)
    one.begin(HOME)
    if beliefs.get("confirmed", 1.0):
        one.confirm_focus(0.0, 0.0, 0.0, "20x")
    return one


def rule_of(answer: Permit | Refusal) -> str:
    return "" if isinstance(answer, Permit) else answer.rule


# name, command, from where, expected rule ("" is a permit)
TABLE: list[tuple[str, Command, Whereabouts, str]] = [
    ("inside", MoveStage(999.0, -799.0, "search"), HOME, ""),
    ("on the edge", MoveStage(1000.0, 800.0, "search"), HOME, ""),
    ("beyond x", MoveStage(1000.1, 0.0, "search"), HOME, "envelope"),
    ("beyond y", MoveStage(0.0, -800.1, "operator"), HOME, "envelope"),
    ("ten metres", MoveStage(1e7, 0.0, "operator"), HOME, "envelope"),
    ("up", MoveFocus(2000.0, "operator"), HOME, ""),
    ("too high", MoveFocus(2000.1, "operator"), HOME, "envelope"),
    ("under the table", MoveFocus(-300.1, "operator"), HOME, "envelope"),
    ("a step down", MoveFocus(-100.0, "focus"), HOME, ""),
    ("below the confirmed focus", MoveFocus(-100.1, "focus"), HOME, "approach"),
    ("a plunge", MoveFocus(0.0, "focus"), Whereabouts.at(0, 0, 500.0, "20x"), "step"),
    ("down, still far", MoveFocus(100.0, "focus"), Whereabouts.at(0, 0, 500.0, "20x"), ""),
    (
        "lateral below the floor",
        MoveStage(1, 1, "a"),
        Whereabouts.at(0, 0, -101, "20x"),
        "approach",
    ),
    ("rescue from too low", MoveFocus(-150.0, "a"), Whereabouts.at(0, 0, -200, "20x"), ""),
    ("100x is nearer", MoveFocus(-68.1, "a"), Whereabouts.at(0, 0, -20, "100x"), "approach"),
    ("100x within its margin", MoveFocus(-67.9, "a"), Whereabouts.at(0, 0, -20, "100x"), ""),
    ("turret too low", SelectObjective("5x", "search"), HOME, "lift"),
    ("turret lifted", SelectObjective("5x", "a"), Whereabouts.at(0, 0, 162.0, "20x"), ""),
    ("almost lifted", SelectObjective("5x", "a"), Whereabouts.at(0, 0, 161.9, "20x"), "lift"),
    ("same objective", SelectObjective("20x", "search"), HOME, ""),
    ("no such objective", SelectObjective("7x", "search"), HOME, "objective"),
    ("light", Expose(0.1, 500.0, 300.0, "search"), HOME, ""),
    ("too long", Expose(2.1, 500.0, 300.0, "search"), HOME, "exposure"),
    ("no time", Expose(0.0, 500.0, 300.0, "search"), HOME, "exposure"),
    ("lamp beyond full", Expose(0.1, 500.0, 300.0, "search", 1.1), HOME, "exposure"),
    ("a field of metres", Expose(0.1, 1e6, 300.0, "search"), HOME, "exposure"),
    ("halt", Halt("anybody"), HOME, ""),
    ("resume", Resume("anybody"), HOME, ""),
]


@pytest.mark.parametrize(("name", "command", "where", "rule"), TABLE)
def test_rules(name: str, command: Command, where: Whereabouts, rule: str) -> None:
    answer = supervisor().check(command, where, 0.0)
    assert rule_of(answer) == rule, (name, answer)
    if isinstance(answer, Refusal):
        error = answer.error()
        assert isinstance(error, UnsafeCommand)
        assert "nothing was sent" in str(error)
        assert error.rule == rule


@pytest.mark.parametrize("value", NASTY)
def test_only_finite_numbers(value: float) -> None:
    one = supervisor()
    for command in (
        MoveStage(value, 0.0, "a"),
        MoveStage(0.0, value, "a"),
        MoveFocus(value, "a"),
        Expose(value, 1.0, 1.0, "a"),
        Expose(0.1, 1.0, value, "a"),
        Expose(0.1, 1.0, 1.0, "a", value),
    ):
        assert rule_of(one.check(command, HOME, 0.0)) in (
            ("number", "envelope", "exposure") if value == 1e300 else ("number",)
        )


def test_an_axis_in_doubt_is_judged_by_its_whole_span() -> None:
    one = supervisor()
    somewhere = Whereabouts(Span.at(0.0), Span.at(0.0), Span(-150.0, 300.0), "20x")
    assert rule_of(one.check(MoveStage(1.0, 1.0, "a"), somewhere, 0.0)) == "approach"
    assert rule_of(one.check(MoveFocus(50.0, "a"), somewhere, 0.0)) == "step"
    assert rule_of(one.check(MoveFocus(300.0, "a"), somewhere, 0.0)) == ""


def test_before_any_focus_the_start_is_the_measure() -> None:
    one = supervisor(confirmed=0.0)
    assert rule_of(one.check(MoveFocus(-100.0, "focus"), HOME, 0.0)) == ""
    assert rule_of(one.check(MoveFocus(-100.1, "focus"), HOME, 0.0)) == "approach"
    low = Whereabouts.at(0.0, 0.0, -100.0, "20x")
    assert rule_of(one.check(MoveFocus(-120.0, "focus"), low, 0.0)) == "approach"  # no crawling
    lifted = Whereabouts.at(0.0, 0.0, 500.0, "20x")
    assert rule_of(one.check(SelectObjective("5x", "a"), lifted, 0.0)) == ""
    assert rule_of(one.check(SelectObjective("100x", "a"), lifted, 0.0)) == "lift"
    one.confirm_focus(0.0, 0.0, 0.0, "20x")
    assert rule_of(one.check(SelectObjective("100x", "a"), lifted, 0.0)) == ""


def test_nothing_moves_down_or_sideways_before_the_start_is_known() -> None:
    one = Supervisor(Envelope.within(SETTINGS, DEVICE, FOCUS), OBJECTIVES, SETTINGS)
    assert rule_of(one.check(MoveStage(1.0, 1.0, "a"), HOME, 0.0)) == "approach"
    assert rule_of(one.check(MoveFocus(-1.0, "a"), HOME, 0.0)) == "approach"
    assert rule_of(one.check(MoveFocus(1.0, "a"), HOME, 0.0)) == ""


def test_the_users_word_moves_the_start() -> None:
    one = supervisor(confirmed=0.0)
    high = Whereabouts.at(0.0, 0.0, 1500.0, "20x")
    one.begin(high)
    assert rule_of(one.check(MoveFocus(1300.0, "a"), high, 0.0)) == "approach"
    one.trust_start_z_um(0.0, "20x")
    assert rule_of(one.check(MoveFocus(1300.0, "a"), high, 0.0)) == ""
    for z_um in (math.nan, -301.0, 1e9):
        with pytest.raises(UnsafeCommand):
            one.trust_start_z_um(z_um, "20x")


def test_the_surface_rules_the_whole_way() -> None:
    """A ridge of 150 um in the middle: neither over it at z = 0, nor into it."""
    one = supervisor()
    one.set_surface(lambda x, y: 150.0 if abs(x) < 100.0 else 0.0)
    left = Whereabouts.at(-500.0, 0.0, 0.0, "20x")
    assert rule_of(one.check(MoveStage(500.0, 0.0, "a"), left, 0.0)) == "approach"
    assert rule_of(one.check(MoveStage(-500.0, 300.0, "a"), left, 0.0)) == ""
    high = Whereabouts.at(-500.0, 0.0, 50.0, "20x")
    assert rule_of(one.check(MoveStage(500.0, 0.0, "a"), high, 0.0)) == ""
    on_top = Whereabouts.at(0.0, 0.0, 100.0, "20x")
    assert rule_of(one.check(MoveFocus(49.0, "a"), on_top, 0.0)) == "approach"


@pytest.mark.parametrize("height", [math.nan, math.inf])
def test_a_surface_that_is_not_finite_forbids(height: float) -> None:
    one = supervisor()
    one.set_surface(lambda x, y: height if x > 500.0 else 0.0)
    assert rule_of(one.check(MoveStage(400.0, 0.0, "a"), HOME, 0.0)) == ""
    assert rule_of(one.check(MoveStage(600.0, 0.0, "a"), HOME, 0.0)) == "approach"


def test_another_surface_counts_at_once() -> None:
    one = supervisor()
    for height_um in (0.0, 80.0, -20.0, 40.0):
        one.set_surface(lambda x, y, height_um=height_um: height_um)  # type: ignore[misc]
        assert one.floor_z_um(HOME) == max(height_um, 0.0) - 100.0
    one.set_surface(None)
    assert one.floor_z_um(HOME) == -100.0


def test_a_focus_below_the_envelope_is_not_believed() -> None:
    one = supervisor()
    for x_um, y_um, z_um, name in (
        (0.0, 0.0, -301.0, "20x"),
        (0.0, 0.0, math.nan, "20x"),
        (math.nan, 0.0, 0.0, "20x"),
        (0.0, 0.0, 0.0, "7x"),
    ):
        with pytest.raises(UnsafeCommand):
            one.confirm_focus(x_um, y_um, z_um, name)
    assert one.floor_z_um(HOME) == -100.0


def test_another_sample_begins_anew() -> None:
    one = supervisor()
    one.set_surface(lambda x, y: 0.0)
    high = Whereabouts.at(0.0, 0.0, 1000.0, "20x")
    one.forget_sample(high)
    assert one.floor_z_um(high) == 900.0


def test_the_lease_lets_others_only_halt() -> None:
    one = supervisor()
    assert one.take_lease("search", 0.0, 10.0, admits=("focus",)) is not None
    assert one.take_lease("replay", 1.0, 10.0) is None
    for source, rule in (("search", ""), ("focus", ""), ("replay", "lease"), ("operator", "lease")):
        for command in (
            MoveStage(1.0, 1.0, source),
            MoveFocus(1.0, source),
            SelectObjective("20x", source),
            Expose(0.1, 10.0, 10.0, source),
            Resume(source),
        ):
            assert rule_of(one.check(command, HOME, 5.0)) == rule, command
        assert rule_of(one.check(Halt(source), HOME, 5.0)) == ""
    assert one.take_lease("operator", 6.0, 10.0) is not None  # takes over
    assert rule_of(one.check(MoveFocus(1.0, "search"), HOME, 7.0)) == "lease"
    one.release_lease("search")  # not theirs
    assert one.lease_at(7.0) is not None
    one.release_lease("operator")
    assert one.lease_at(7.0) is None


def test_a_lease_runs_out() -> None:
    one = supervisor()
    one.take_lease("search", 0.0, 10.0)
    assert rule_of(one.check(MoveFocus(1.0, "replay"), HOME, 9.999)) == "lease"
    assert rule_of(one.check(MoveFocus(1.0, "replay"), HOME, 10.0)) == ""
    for duration_s in (0.0, -1.0, math.nan, math.inf):
        assert one.take_lease("search", 20.0, duration_s) is None


def test_halted_refuses_all_but_halt_and_resume() -> None:
    one = supervisor()
    one.halt("operator: red button")
    for command in (MoveFocus(1.0, "a"), MoveStage(0.0, 0.0, "a"), Expose(0.1, 1.0, 1.0, "a")):
        answer = one.check(command, HOME, 0.0)
        assert rule_of(answer) == "halted"
    assert rule_of(one.check(Halt("a"), HOME, 0.0)) == ""
    assert rule_of(one.check(Resume("a"), HOME, 0.0)) == ""
    one.resume()
    assert rule_of(one.check(MoveFocus(1.0, "a"), HOME, 0.0)) == ""


def test_the_dose_is_counted_by_region() -> None:
    one = Supervisor(
        Envelope.within(SETTINGS, DEVICE, FOCUS),
        OBJECTIVES,
        SETTINGS,
        DoseRules(region_um=100.0, ceiling_lamp_s=1.0),
    )
    one.begin(HOME)
    here, far = Whereabouts.at(50.0, 50.0, 0.0, "20x"), Whereabouts.at(550.0, 50.0, 0.0, "20x")
    light = Expose(0.5, 20.0, 20.0, "a")
    for _ in range(2):
        assert rule_of(one.check(light, here, 0.0)) == ""
        one.book(light, here)
    assert rule_of(one.check(light, here, 0.0)) == "dose"
    assert rule_of(one.check(Expose(0.5, 20.0, 20.0, "a", 0.0), here, 0.0)) == ""  # in the dark
    assert rule_of(one.check(light, far, 0.0)) == ""
    wide = Expose(0.5, 1100.0, 20.0, "a")
    assert rule_of(one.check(wide, far, 0.0)) == "dose"  # reaches the tired region
    one.forget_sample(HOME)
    assert rule_of(one.check(light, here, 0.0)) == ""


def test_limits_are_intersected_and_must_leave_something() -> None:
    envelope = Envelope.within(
        SafetySettings(x_min_um=-1e9, x_max_um=10.0), DEVICE, AxisLimits(-1.0, 1.0)
    )
    assert envelope.x == AxisLimits(-5000.0, 10.0)
    assert envelope.z == AxisLimits(-1.0, 1.0)
    with pytest.raises(BadSettings, match=r"safety\.x"):
        Envelope.within(SafetySettings(x_min_um=6000.0), DEVICE, FOCUS)
    with pytest.raises(BadSettings, match=r"safety\.z"):
        Envelope.within(SafetySettings(), DEVICE, AxisLimits(math.nan, 1.0))


@given(
    z_um=st.floats(-300.0, 2000.0),
    target_um=st.floats(-300.0, 2000.0),
    name=st.sampled_from(["5x", "20x", "100x"]),
    slip_um=st.floats(-1.0, 1.0),
)
def test_a_planned_descent_is_permitted_step_by_step(
    z_um: float, target_um: float, name: str, slip_um: float
) -> None:
    """Wherever a single move would be allowed by floor and envelope, its descent is allowed too."""
    one = supervisor()
    where = Whereabouts.at(0.0, 0.0, z_um, name)
    steps = one.descent_um(target_um, where)
    assert steps[-1] == target_um
    if target_um < one.floor_z_um(where):
        return
    for step_um in steps:
        assert rule_of(one.check(MoveFocus(step_um, "a"), where, 0.0)) == "", (steps, step_um)
        where = Whereabouts.at(0.0, 0.0, step_um + slip_um, name)
