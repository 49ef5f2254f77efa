"""Every method runs on the simulated instrument and ends as it should."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from controller.bench.focus_baselines.chart import error_against_frames
from controller.bench.focus_baselines.methods import (
    ClassicalSweep,
    FewFrames,
    eye,
    measure_table,
    rivals,
    sharpness,
)
from controller.bench.focus_baselines.problem import (
    Condition,
    RunResult,
    problem_of,
    run_one,
    subject_of,
)
from controller.bench.focus_baselines.score_loop import ScoreLoop
from controller.bench.focus_baselines.spectral_pair import SpectralPair, _pair_statistics
from inference.focus.evaluate import FocusMethod

PLAIN = Condition("plain")
_POOR = {"three-image quadratic"}  # as published, three frames and no more


def _result(method: FocusMethod, condition: Condition = PLAIN, run: int = 1) -> RunResult:
    subject = subject_of(11, run, condition.kinds)
    return run_one(problem_of(subject, condition), method, subject)


@pytest.mark.parametrize("method", rivals(), ids=lambda m: m.name)
def test_rivals_focus(method: FocusMethod) -> None:
    result = _result(method)
    assert result.is_confident
    assert result.error_dof < (8.0 if method.name in _POOR else 0.6)
    assert len(result.trace_error_dof) == result.frames
    assert result.trace_error_dof[-1] == pytest.approx(result.error_dof, abs=1e-6)


@pytest.mark.parametrize("name", ["brenner", "band-power", "jpeg-size"])
def test_measures_focus(name: str) -> None:
    method = next(m for m in measure_table() if f"measure {name}," in m.name)
    assert _result(method).error_dof < 0.6


def test_names_are_all_different() -> None:
    names = [m.name for m in (*rivals(), *measure_table())]
    assert len(set(names)) == len(names)


def test_ours_focuses_in_a_handful_of_frames_and_believes_as_it_goes() -> None:
    result = _result(FewFrames(eye()))
    assert result.is_confident
    assert result.error_dof < 0.5
    assert result.frames <= 8
    assert len(result.trace_error_dof) == result.frames
    assert result.trace_error_dof[-1] < 0.5
    assert result.sigma_dof is not None


def test_what_was_learnt_before_is_carried_over() -> None:
    subject = subject_of(11, 2, PLAIN.kinds)
    plain = FewFrames(eye(), traces=False)
    taught = plain.taught_by([problem_of(subject, PLAIN, k) for k in (1, 2)])
    assert taught.prior.blur_log_sd < plain.prior.blur_log_sd
    assert sum(taught.prior.shape_probabilities) == pytest.approx(1.0)
    # The program believes in an aperture that is off by this: the runs found it out.
    assert taught.blur_ratio * subject.nominal_alpha_ratio == pytest.approx(1.0, abs=0.12)
    assert plain.taught_by([]) is plain
    results = [
        run_one(problem_of(subject, PLAIN), replace(plain, blur_ratio=ratio), subject)
        for ratio in (1.0, 1.4)
    ]
    assert results[0].sigma_dof != results[1].sigma_dof


def test_the_fallback_gives_up_on_an_empty_field_and_goes_back() -> None:
    result = _result(ClassicalSweep(), Condition("empty", kinds=("empty",), dose_e_per_px=50.0))
    assert not result.is_confident
    assert result.is_restored
    assert result.reason


@pytest.mark.parametrize("method", [rivals()[1], rivals()[-2], rivals()[-1]], ids=lambda m: m.name)
def test_far_off_the_wide_field_comes_first(method: FocusMethod) -> None:
    result = _result(method, Condition("far", 100.0, kinds=("tin_balls",)))
    assert result.error_dof < 1.0
    # Wide frames cost a sixteenth of a fine one's dose on the area that counts.
    assert result.electrons_per_px < 200.0 * result.frames * 0.9


def test_the_pair_corrects_astigmatism() -> None:
    condition = Condition("stig", astigmatism_dof=6.0, has_stigmator=True)
    result = _result(SpectralPair(test_dof=6.0, rounds=3), condition)
    assert result.start_stig_error_dof > 1.0
    assert result.stig_error_dof < 0.5 * result.start_stig_error_dof


def test_the_pair_is_registered_before_it_is_compared() -> None:
    subject = subject_of(11, 2, PLAIN.kinds)
    problem = problem_of(subject, PLAIN)
    pair = [problem.observe(replace(problem.focus, z_dof=problem.focus.z_dof + z)) for z in (-3, 5)]
    first, second = (_pair_statistics(pair[0].pixels, seen.pixels) for seen in (pair[1], pair[0]))
    moved = np.roll(pair[1].pixels, (3, -5), axis=(0, 1))
    still = _pair_statistics(pair[0].pixels, moved)
    low = slice(0, 40)
    assert second.product[low] == pytest.approx(second.first[low])
    assert still.product[low].sum() == pytest.approx(first.product[low].sum(), rel=0.05)


def test_the_score_loop_stops_at_a_score_of_nine() -> None:
    loop = ScoreLoop(sharpness("jpeg-size", 2.0), log_sharp=-20.0, log_blurred=-21.0)
    assert _result(loop).frames == 4


def test_a_search_that_is_not_sure_goes_back() -> None:
    sweep = next(m for m in rivals() if m.name == "21 planes + parabola")
    results = [_result(sweep, Condition("empty", kinds=("empty",)), run) for run in range(4)]
    unsure = [r for r in results if not r.is_confident]
    assert unsure
    assert all(r.is_restored and r.reason for r in unsure)


def test_the_score_loop_never_takes_more_than_it_says() -> None:
    loop = next(m for m in rivals() if isinstance(m, ScoreLoop))
    result = _result(loop, Condition("empty", kinds=("empty",)))
    assert result.frames <= 12 + 20
    assert result.is_confident  # as published, it has no idea


def test_the_chart_draws_a_curve_for_each_method() -> None:
    results = [_result(rivals()[k]) for k in (6, 9)]
    svg = error_against_frames(results, rivals()[9].name)
    assert svg.count("<polyline") == 2
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "#d62728" in svg
    assert "nan" not in svg
    assert error_against_frames([], "ours").count("<polyline") == 0
