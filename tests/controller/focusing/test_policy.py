"""The sweep policy against lenses, fields and limits whose truth is known; no clock, no device."""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from controller.focusing.policy import (
    Done,
    FocusSweepSettings,
    FocusTask,
    GiveUp,
    MeasureAt,
    MoveTo,
    Phase,
    begin,
    moved,
    next_step,
    observed,
)
from inference.api import FocusSample, Sharpness
from inference.focus.parabola import InverseParabola

DOF_UM = 3.0
SETTINGS = FocusSweepSettings()


@dataclass
class Bench:
    """A lens with backlash over a field with a known focus."""

    focus_um: float
    lens_um: float = 0.0
    backlash_um: float = 0.0
    noise: float = 0.005
    is_empty: bool = False
    second_focus_um: float | None = None
    seed: int = 0
    visited_um: list[float] = field(default_factory=list)
    measured_um: list[float] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)

    def __post_init__(self):
        self._rng = np.random.default_rng(self.seed)
        self._true_um = self.lens_um
        self._went_down = True

    def go(self, z_um: float) -> None:
        if z_um != self.lens_um:
            self._went_down = z_um < self.lens_um
        self.lens_um = z_um
        # Lost motion: coming from below the lens stops short.
        self._true_um = z_um if self._went_down else z_um - self.backlash_um
        self.visited_um.append(z_um)

    def look(self) -> FocusSample:
        self.measured_um.append(self.lens_um)
        background = 0.2 * (1 + self.noise * self._rng.standard_normal())
        if self.is_empty:
            return FocusSample(self.lens_um, Sharpness(background, 1.0, False, "empty field"))
        value = 1.0 / (1.0 + ((self._true_um - self.focus_um) / (0.9 * DOF_UM)) ** 2)
        if self.second_focus_um is not None:
            value += 0.9 / (1.0 + ((self._true_um - self.second_focus_um) / (0.9 * DOF_UM)) ** 2)
        value = value * (1 + self.noise * self._rng.standard_normal()) + background
        return FocusSample(self.lens_um, Sharpness(value, value / 0.2, value > 0.23, "empty field"))


def run(bench: Bench, task: FocusTask, estimator=None):
    estimator = estimator or InverseParabola()
    search = begin(task)
    for _ in range(1_000):
        search, step = next_step(search, estimator)
        match step:
            case MoveTo(z_um):
                bench.go(z_um)
                search = moved(search, z_um)
            case MeasureAt(z_um):
                if z_um != bench.lens_um:
                    bench.go(z_um)
                bench.phases.append(search.phase)
                search = observed(search, bench.look())
            case _:
                return search, step
    pytest.fail("the policy does not end")


def task(start_um=0.0, expected_um=0.0, sigma_um=2.0, low_um=-500.0, high_um=500.0, **changes):
    chosen = SETTINGS.model_copy(update=changes)
    return FocusTask(start_um, expected_um, sigma_um, DOF_UM, low_um, high_um, chosen)


@settings(max_examples=150, deadline=None)
@given(
    focus_dof=st.floats(-20, 20),
    start_dof=st.floats(-20, 20),
    sigma_dof=st.floats(0.1, 10),
    seed=st.integers(0, 9_999),
)
def test_it_finds_focus_wherever_it_is_within_reach(focus_dof, start_dof, sigma_dof, seed):
    assume(abs(focus_dof) < max(3 * sigma_dof, 2.5) + 4)  # else the field looks empty
    bench = Bench(focus_dof * DOF_UM, start_dof * DOF_UM, backlash_um=4.0, seed=seed)
    search, step = run(bench, task(start_dof * DOF_UM, 0.0, sigma_dof * DOF_UM))
    assert isinstance(step, Done), step
    assert abs(bench.lens_um - bench.focus_um) < 0.3 * DOF_UM
    assert search.frames == len(bench.measured_um) <= SETTINGS.max_frames


def test_a_small_uncertainty_costs_few_frames():
    frames = []
    for seed in range(50):
        focus_um = np.random.default_rng(seed).normal(0, 0.7 * DOF_UM)
        bench = Bench(focus_um, 0.0, seed=seed)
        search, step = run(bench, task(sigma_um=0.7 * DOF_UM))
        assert isinstance(step, Done)
        frames.append(search.frames)
    assert np.median(frames) <= 9
    assert max(frames) <= 18


def test_every_sample_and_the_last_move_are_reached_from_above():
    bench = Bench(7.0, 0.0, backlash_um=4.0)
    _, step = run(bench, task(sigma_um=6.0))
    assert isinstance(step, Done)
    path = [0.0, *bench.visited_um]
    arrivals = [(a, b) for a, b in itertools.pairwise(path) if b in bench.measured_um[1:]]
    assert arrivals
    assert all(to_um < from_um for from_um, to_um in arrivals)
    assert abs(bench.lens_um - 7.0) < 0.3 * DOF_UM


def test_backlash_does_not_bias_the_result():
    errors_um = []
    for seed in range(30):
        bench = Bench(3.0, -10.0, backlash_um=5.0, seed=seed)
        _, step = run(bench, task(-10.0, 0.0, 5.0, approach_um=6.0))
        assert isinstance(step, Done)
        errors_um.append(bench.lens_um - 3.0)
    assert abs(np.mean(errors_um)) < 0.05 * DOF_UM


def test_the_descent_ends_soon_after_the_peak():
    bench = Bench(30.0, 0.0)
    _, step = run(bench, task(sigma_um=12.0))
    assert isinstance(step, Done)
    # The first sweep would go down to -36 um; the peak at +30 um was passed long before.
    assert min(bench.visited_um) > 15.0


def test_an_empty_field_is_left_as_it_was():
    bench = Bench(0.0, 5.0, is_empty=True)
    _, step = run(bench, task(5.0))
    assert step == GiveUp("nothing to focus on: empty field", 5.0)


def test_focus_out_of_reach_is_said():
    bench = Bench(200.0, 0.0)
    _, step = run(bench, task(most_half_range_dof=10.0))
    assert isinstance(step, GiveUp)
    assert step.restore_z_um == 0.0


def test_two_planes_are_not_guessed_between():
    bench = Bench(-18.0, 0.0, second_focus_um=18.0)
    # Wide enough to see both: the sweep may not stop after the first one.
    _, step = run(bench, task(sigma_um=12.0, passed_ratio=0.01))
    assert isinstance(step, GiveUp)
    assert "two peaks" in step.reason


@settings(max_examples=80, deadline=None)
@given(
    focus_um=st.floats(-40, 40),
    low_um=st.floats(-30, -6),
    high_um=st.floats(6, 30),
    sigma_um=st.floats(0.5, 40),
)
def test_no_step_ever_leaves_the_limits(focus_um, low_um, high_um, sigma_um):
    bench = Bench(focus_um, 0.0)
    _, step = run(bench, task(0.0, 0.0, sigma_um, low_um, high_um))
    assert all(low_um <= z_um <= high_um for z_um in bench.visited_um)
    if isinstance(step, Done):
        assert abs(bench.lens_um - focus_um) < 0.4 * DOF_UM
    if low_um + 3 * DOF_UM < focus_um < high_um - 3 * DOF_UM:
        assert isinstance(step, Done)


def test_limits_that_leave_no_room_are_said_at_once():
    _, step = run(bench := Bench(0.0, 0.0), task(0.0, 100.0, 1.0, -10.0, 10.0))
    assert isinstance(step, GiveUp)
    assert "outside what may be swept" in step.reason
    assert len(bench.measured_um) == 1


class Liar:
    """An estimator that is sure of the wrong place."""

    name = "liar"

    def estimate(self, samples, depth_of_field_um):
        honest = InverseParabola().estimate(samples, depth_of_field_um)
        return type(honest)(honest.focus_z_um + 3 * DOF_UM, 0.01, True, "")


def test_a_wrong_estimate_is_caught_by_the_last_frame():
    bench = Bench(0.0, 1.0)
    _, step = run(bench, task(1.0), Liar())
    assert isinstance(step, GiveUp)
    assert step.restore_z_um == 1.0
    assert "of the sweep's best" in step.reason
    assert 1 < bench.phases.count(Phase.VERIFY) <= 3  # with a sweep in between


def test_it_never_ends_worse_than_it_began():
    # The field was sharp at the start and something moved into it meanwhile.
    class Fading(Bench):
        def look(self):
            sample = super().look()
            if len(self.measured_um) == 1:
                brighter = Sharpness(3 * sample.sharpness.value, 20.0, True, "")
                return FocusSample(sample.focus_z_um, brighter)
            return sample

    _, step = run(Fading(0.0, 0.0), task())
    assert isinstance(step, GiveUp)
    assert "less sharp than the start" in step.reason


def test_the_number_of_frames_is_bounded():
    bench = Bench(0.0, 0.0, noise=0.0)
    _, step = run(bench, task(sigma_um=300.0, max_frames=10, most_half_range_dof=100.0))
    assert isinstance(step, GiveUp)
    assert len(bench.measured_um) == 10


def test_the_same_samples_give_the_same_steps():
    runs = [Bench(11.0, -4.0, seed=3) for _ in range(2)]
    ends = [run(bench, task(-4.0, 0.0, 5.0)) for bench in runs]
    assert runs[0].visited_um == runs[1].visited_um
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize(
    "changes",
    [{"start_um": math.nan}, {"sigma_um": -1.0}, {"low_um": 5.0, "high_um": 5.0}],
)
def test_a_task_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ValueError, match="focus task"):
        task(**changes)


@pytest.mark.parametrize(
    "wrong", [{"fine_samples": 4}, {"passed_ratio": 1.0}, {"steps": 3}, {"approach_um": math.inf}]
)
def test_settings_are_bounded(wrong):
    with pytest.raises(ValidationError):
        FocusSweepSettings(**wrong)
