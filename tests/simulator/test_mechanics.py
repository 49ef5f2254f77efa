"""One axis against elementary mechanics."""

import itertools
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.mechanics import (
    AxisSettings,
    at_rest,
    halted,
    move_time_s,
    moved,
    noise_um,
    ring_um,
    seeded_drift,
)

AXIS = AxisSettings(
    speed_um_per_s=1000, acceleration_um_per_s2=10_000, backlash_um=2, ring_amplitude_um=1
)
POSITIONS_UM = st.floats(-5000, 5000)


@pytest.mark.parametrize(
    ("distance_um", "time_s"),
    [
        (0.0, 0.0),
        (25.0, 0.1),  # triangle: 2 sqrt(25 / 1e4)
        (100.0, 0.2),  # just reaches full speed
        (1000.0, 1.1),  # 1 s of cruise after 0.1 s of ramp and before another
        (-1000.0, 1.1),
    ],
)
def test_time_of_a_move(distance_um: float, time_s: float) -> None:
    motion = moved(AXIS, at_rest(7.0, 2.0), 3.0, 7.0 + distance_um)
    assert motion.ends_s - 3.0 == pytest.approx(time_s)
    assert move_time_s(distance_um, 1000, 10_000) == pytest.approx(time_s)
    assert motion.encoder_um(3.0) == pytest.approx(7.0)
    assert motion.encoder_um(3.0 + time_s / 2) == pytest.approx(7.0 + distance_um / 2)
    assert motion.encoder_um(100.0) == 7.0 + distance_um
    assert not motion.is_moving(3.0 + time_s + 1e-9)


@settings(max_examples=150, deadline=None)
@given(
    targets=st.lists(st.tuples(POSITIONS_UM, st.floats(0, 2)), min_size=1, max_size=6),
    play_um=st.floats(0, 10),
)
def test_no_sequence_of_commands_breaks_speed_acceleration_play_or_target(
    targets: list[tuple[float, float]], play_um: float
) -> None:
    motion, now_s = at_rest(0.0, play_um), 0.0
    for target_um, wait_s in targets:
        before_um = motion.encoder_um(now_s), motion.sample_um(now_s)
        motion = moved(AXIS, motion, now_s, target_um)
        assert motion.encoder_um(now_s) == pytest.approx(before_um[0], abs=1e-6)
        assert motion.sample_um(now_s) == pytest.approx(before_um[1], abs=1e-6)
        for first, second in itertools.pairwise(motion.legs):
            lasts_s = second.start_s - first.start_s
            end_speed = first.velocity_um_per_s + first.acceleration_um_per_s2 * lasts_s
            mean = (first.velocity_um_per_s + end_speed) / 2
            assert second.velocity_um_per_s == pytest.approx(end_speed, abs=1e-3)
            assert second.position_um == pytest.approx(first.position_um + mean * lasts_s, abs=1e-3)
            assert first.velocity_um_per_s * end_speed >= -1e-3  # no reversal within a leg
            assert max(abs(first.velocity_um_per_s), abs(end_speed)) <= 1000 * (1 + 1e-9)
            assert abs(first.acceleration_um_per_s2) <= 10_000
        now_s += wait_s
        assert abs(motion.sample_um(now_s) - motion.encoder_um(now_s)) <= play_um / 2 + 1e-6
    assert motion.encoder_um(motion.ends_s) == targets[-1][0]


@settings(max_examples=100, deadline=None)
@given(target_um=POSITIONS_UM, at=st.floats(0, 1.2))
def test_halt_stops_within_its_braking_time(target_um: float, at: float) -> None:
    motion = moved(AXIS, at_rest(0.0, 0.0), 0.0, target_um)
    speed = motion.velocity_um_per_s(at)
    stopped = halted(AXIS, motion, at)
    braking_s = abs(speed) / 10_000
    assert stopped.encoder_um(at) == pytest.approx(motion.encoder_um(at), abs=1e-6)
    assert not stopped.is_moving(at + braking_s + 1e-9)
    assert abs(stopped.encoder_um(at + 5) - motion.encoder_um(at)) <= 50 + 1e-3  # v^2 / 2a
    assert stopped.velocity_um_per_s(at + 5) == 0


def test_reversal_brakes_before_it_goes_back() -> None:
    out = moved(AXIS, at_rest(0.0, 0.0), 0.0, 1000.0)
    back = moved(AXIS, out, 0.5, 0.0)  # full speed at 450 um: turns at 500
    turn_s = 0.5 + 1000 / 10_000
    assert back.encoder_um(turn_s) == pytest.approx(500.0)
    assert back.velocity_um_per_s(turn_s) == pytest.approx(0.0, abs=1e-6)
    assert back.ends_s == pytest.approx(turn_s + move_time_s(500, 1000, 10_000))


def test_backlash_depends_on_the_side_of_approach() -> None:
    motion = at_rest(0.0, 2.0)
    below = moved(AXIS, motion, 0.0, 100.0)
    assert below.sample_um(10.0) == pytest.approx(99.0)
    above = moved(AXIS, moved(AXIS, motion, 0.0, 200.0), 10.0, 100.0)
    assert above.sample_um(20.0) == pytest.approx(101.0)
    within_play = moved(AXIS, below, 10.0, 98.5)  # crosses 1.5 of the 2 um: nothing is dragged
    assert within_play.sample_um(20.0) == pytest.approx(99.0)


def test_ring_down_is_small_once_settled_and_grows_with_speed() -> None:
    slow = moved(AXIS, at_rest(0.0, 0.0), 0.0, 1.0)
    fast = moved(AXIS, at_rest(0.0, 0.0), 0.0, 1000.0)

    def swing_um(motion_ends_s: float, motion: object, from_s: float) -> float:
        moments_s = [motion_ends_s + from_s + step * 1e-4 for step in range(500)]
        return max(abs(ring_um(AXIS, motion, moment_s)) for moment_s in moments_s)  # type: ignore[arg-type]

    assert ring_um(AXIS, fast, fast.ends_s - 0.01) == 0
    assert 0.3 < swing_um(fast.ends_s, fast, 0.0) <= 1
    assert swing_um(fast.ends_s, fast, AXIS.settle_s) < 0.02
    assert swing_um(slow.ends_s, slow, 0.0) < 0.11


def test_encoder_noise_is_white_gaussian_and_repeatable() -> None:
    moments_s = [step * 1e-3 for step in range(4000)]
    noise = [noise_um(AXIS, 5, moment_s) for moment_s in moments_s]
    sigma_um = AXIS.encoder_noise_um
    assert noise == [noise_um(AXIS, 5, moment_s) for moment_s in moments_s]
    assert abs(statistics.fmean(noise)) < 4 * sigma_um / math.sqrt(4000)
    assert statistics.pstdev(noise) == pytest.approx(sigma_um, rel=0.05)
    within = sum(abs(value) < sigma_um for value in noise) / len(noise)
    assert within == pytest.approx(0.683, abs=0.03)
    neighbours = statistics.correlation(noise[1:], noise[:-1])
    assert abs(neighbours) < 0.06
    assert noise != [noise_um(AXIS, 6, moment_s) for moment_s in moments_s]


def test_drift_starts_at_nothing_creeps_at_its_rate_and_follows_its_seed() -> None:
    axis = AxisSettings(drift_um_per_min=0.3, wander_um=0.0)
    drift = seeded_drift(axis, 1)
    assert drift.at_um(0.0) == 0
    assert abs(drift.at_um(600.0)) == pytest.approx(3.0)
    wandering = AxisSettings(drift_um_per_min=0.0, wander_um=0.5)
    assert seeded_drift(wandering, 1) == seeded_drift(wandering, 1)
    assert seeded_drift(wandering, 1) != seeded_drift(wandering, 2)
    spread_um = statistics.fmean(
        seeded_drift(wandering, seed).at_um(moment_s) ** 2
        for seed in range(100)
        for moment_s in (1000.0, 4000.0)
    )
    assert math.sqrt(spread_um) == pytest.approx(0.5, rel=0.2)
    jump_um = seeded_drift(wandering, 3).at_um(500.1) - seeded_drift(wandering, 3).at_um(500.0)
    assert abs(jump_um) < 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"speed_um_per_s": 0},
        {"acceleration_um_per_s2": -1},
        {"settle_s": math.nan},
        {"backlash": 1},
        {"min_um": 1.0, "max_um": 2.0},
        {"min_um": 0.0, "max_um": 0.0},
    ],
)
def test_impossible_axes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AxisSettings.model_validate(wrong)
