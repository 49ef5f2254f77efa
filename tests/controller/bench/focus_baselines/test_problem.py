"""The instrument of a run: alike for everybody, honest about costs, and off by what it says."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from controller.bench.focus_baselines.problem import (
    Condition,
    SimulatedProblem,
    Subject,
    problem_of,
    run_one,
    subject_of,
)
from inference.focus.api import FocusCommand
from inference.focus.evaluate import FocusOutcome, FocusProblem
from inference.focus.metrics import METRICS
from simulator.specimen import SpecimenKind

PLAIN = Condition("plain")
KINDS: tuple[SpecimenKind, ...] = ("gold_on_carbon",)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(5, 3, KINDS)


@dataclass(frozen=True)
class _Goes:
    """Takes some frames, then ends where it is told."""

    to: FocusCommand
    frames: int = 3
    is_sure: bool = True
    sigma: float | None = 0.1

    @property
    def name(self) -> str:
        return "goes"

    def run(self, problem: FocusProblem) -> FocusOutcome:
        for k in range(self.frames):
            problem.observe(FocusCommand(problem.start.z_dof + k))
        trace = (problem.start.z_dof, self.to.z_dof, self.to.z_dof)
        return FocusOutcome(self.to, self.is_sure, "", self.sigma, trace)


def _sharpness(problem: SimulatedProblem, z_dof: float) -> float:
    return METRICS["tenengrad"](problem.observe(FocusCommand(z_dof)).pixels)


def test_everybody_meets_the_same_frames(subject: Subject) -> None:
    one, two = problem_of(subject, PLAIN), problem_of(subject_of(5, 3, KINDS), PLAIN)
    assert one.start == two.start
    assert one.focus == two.focus
    for z in (0.0, 3.0):
        command = FocusCommand(one.start.z_dof + z)
        assert np.array_equal(one.observe(command).pixels, two.observe(command).pixels)


def test_noise_changes_from_frame_to_frame_and_from_run_to_run(subject: Subject) -> None:
    problem = problem_of(subject, PLAIN)
    first, second = (problem.observe(problem.start).pixels for _ in range(2))
    assert not np.array_equal(first, second)
    other = problem_of(subject, PLAIN, other=1)
    assert other.start != problem.start


def test_a_start_is_the_same_under_every_condition(subject: Subject) -> None:
    starts = {
        (problem_of(subject, c).start, round(problem_of(subject, c).off_focus()[0], 9))
        for c in (PLAIN, Condition("dim", dose_e_per_px=5.0), Condition("gain", gain=(0.5, 2.0)))
    }
    assert len(starts) == 1


def test_focus_is_where_frames_are_sharpest(subject: Subject) -> None:
    problem = problem_of(subject, PLAIN)
    z = problem.focus.z_dof
    sharp = [_sharpness(problem, z + off) for off in (-8.0, -3.0, 0.0, 3.0, 8.0)]
    assert int(np.argmax(sharp)) == 2
    problem.move(FocusCommand(z))
    assert problem.off_focus() == pytest.approx((0.0, 0.0), abs=1e-9)


def test_the_stigmator_corrects_what_the_estimators_conventions_say(subject: Subject) -> None:
    condition = Condition("stig", astigmatism_dof=10.0, has_stigmator=True)
    problem = problem_of(subject, condition)
    focus = problem.focus
    assert np.hypot(focus.stig_x_dof, focus.stig_y_dof) > 1.0
    right = METRICS["tenengrad"](problem.observe(focus).pixels)
    for wrong in (
        replace(focus, stig_x_dof=-focus.stig_x_dof),
        replace(focus, stig_y_dof=-focus.stig_y_dof),
        FocusCommand(focus.z_dof),
    ):
        if abs(wrong.stig_x_dof - focus.stig_x_dof) + abs(wrong.stig_y_dof - focus.stig_y_dof) > 2:
            assert METRICS["tenengrad"](problem.observe(wrong).pixels) < 0.8 * right
    # The direction that is still sharp at a line focus: R^2 = z^2 + A^2 + 2 z (a cos + b sin).
    problem.focus = FocusCommand(problem.start.z_dof, -6.0, 0.0)
    pixels = problem.observe(FocusCommand(problem.start.z_dof - 6.0)).pixels.astype(np.float32)
    across = float(np.mean(np.square(np.diff(pixels, axis=1))))
    down = float(np.mean(np.square(np.diff(pixels, axis=0))))
    # z = -6, a = +6: along x (2 theta = 0) the radius is |z + a| = 0.
    assert across > 1.3 * down
    # And b = +6: sharp along the diagonal to the right and down, for the image's y runs down.
    problem.focus = FocusCommand(problem.start.z_dof, 0.0, -6.0)
    pixels = problem.observe(FocusCommand(problem.start.z_dof - 6.0)).pixels.astype(np.float32)
    falling = float(np.mean(np.square(pixels[2:, 2:] - pixels[:-2, :-2])))
    rising = float(np.mean(np.square(pixels[2:, :-2] - pixels[:-2, 2:])))
    assert falling > 1.3 * rising


def test_without_a_stigmator_its_commands_do_nothing(subject: Subject) -> None:
    problem = problem_of(subject, Condition("none", astigmatism_dof=10.0))
    problem.move(problem.focus)
    assert problem.off_focus()[1] == pytest.approx(
        np.hypot(problem.focus.stig_x_dof, problem.focus.stig_y_dof)
    )


def test_dose_counts_every_frame_and_spreads_over_wide_fields(subject: Subject) -> None:
    problem = problem_of(subject, Condition("far", half_range_dof=100.0))
    assert problem.widest_ratio == 4.0
    problem.observe(problem.start)
    assert problem.electrons_per_px == pytest.approx(200.0)
    wide = problem.observe(replace(problem.start, field_ratio=4.0)).pixels
    assert problem.electrons_per_px == pytest.approx(200.0 + 200.0 / 16.0)
    assert wide.shape == (256, 256)
    assert problem_of(subject, PLAIN).widest_ratio == 1.0


def test_stale_frames_cost_a_frame_and_are_never_shown(subject: Subject) -> None:
    condition = Condition("stale", stale_ratio=0.5)
    problem, fresh = problem_of(subject, condition), problem_of(subject, PLAIN)
    for k in range(12):
        seen = problem.observe(FocusCommand(problem.start.z_dof + 20.0 * (k % 2)))
        assert seen.command.z_dof == problem.start.z_dof + 20.0 * (k % 2)
    fresh.observe(fresh.start)
    assert problem.frames > 16
    assert fresh.frames == 1


def test_backlash_is_the_same_each_time_because_places_are_approached_from_below(
    subject: Subject,
) -> None:
    problem = problem_of(subject, Condition("play", backlash_dof=5.0))
    ends = []
    for before in (-20.0, 30.0):
        problem.move(FocusCommand(problem.start.z_dof + before))
        problem.move(problem.start)
        ends.append(problem._z_dof - problem.start.z_dof)
    assert ends == pytest.approx([-2.5, -2.5])


def test_hysteresis_depends_on_the_way_by_a_few_percent(subject: Subject) -> None:
    problem = problem_of(subject, Condition("lag", hysteresis_ratio=0.03))
    places = []
    for way in ((60.0, 0.0), (-60.0, 0.0)):
        for z in way:
            problem._lens(problem.start.z_dof + z)
        places.append(problem._z_dof)
    assert 0.1 < abs(places[1] - places[0]) < 0.05 * 60.0


def test_drift_goes_on_while_frames_are_taken(subject: Subject) -> None:
    problem = problem_of(subject, Condition("drift", drift_dof_per_s=0.3))
    before = problem.off_focus()[0]
    for _ in range(10):
        problem.observe(problem.start)
    assert abs(problem.off_focus()[0] - before) == pytest.approx(0.3 * 1.5, abs=0.02)


@pytest.mark.parametrize(
    ("condition", "least", "most"),
    [
        (PLAIN, 0.0, 0.01),
        (Condition("sat", saturated_ratio=0.05), 0.02, 0.12),
        (Condition("gain", gain=(0.5, 2.0)), 0.0, 0.01),
        (Condition("empty", kinds=("empty",)), 0.0, 0.01),
        (Condition("sparse", kinds=("near_empty",)), 0.0, 0.02),
    ],
)
def test_saturation_is_what_the_condition_says(
    condition: Condition, least: float, most: float
) -> None:
    problem = problem_of(subject_of(5, 3, condition.kinds), condition)
    pixels = problem.observe(problem.focus).pixels
    assert least <= float(np.mean(pixels == 255)) <= most
    assert pixels.mean() > 12


def test_a_result_is_judged_where_the_instrument_ends(subject: Subject) -> None:
    problem = problem_of(subject, PLAIN)
    to = FocusCommand(problem.focus.z_dof + 0.3)
    result = run_one(problem, _Goes(to), subject)
    assert result.error_dof == pytest.approx(0.3)
    assert result.start_error_dof == pytest.approx(abs(problem.focus.z_dof - problem.start.z_dof))
    assert result.frames == 3
    assert result.electrons_per_px == pytest.approx(600.0)
    assert result.final_electrons_per_px == pytest.approx(3_121.0, rel=1e-3)
    assert result.has_right_sign is True
    assert not result.is_restored
    assert result.trace_error_dof[1] == pytest.approx(0.3)
    assert result.method_s < 1.0


def test_going_back_is_seen(subject: Subject) -> None:
    problem = problem_of(subject, PLAIN)
    result = run_one(problem, _Goes(problem.start, is_sure=False), subject)
    assert result.is_restored
    assert result.error_dof == pytest.approx(result.start_error_dof)
    assert result.has_right_sign is False
