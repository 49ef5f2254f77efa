"""What one focus teaches the next about the lens's blur."""

import math
from dataclasses import replace

import pytest

from controller.focusing.carried import KnownBlur
from inference.focus.api import FocusBelief
from inference.focus.blur import SHAPES
from inference.focus.likelihood import Prior

PRIOR = Prior(blur_px_per_dof=2.0, blur_log_sd=0.2)
SHAPE = tuple(1.0 if k == 1 else 0.0 for k in range(len(SHAPES)))
BELIEF = FocusBelief(
    z_dof=0.0,
    sigma_dof=0.1,
    stig_x_dof=0.0,
    stig_y_dof=0.0,
    stig_sigma_dof=0.0,
    sign_probability=1.0,
    evidence=100.0,
    misfit=1.0,
    scale=2.6,
    scale_log_sd=0.05,
    shape_probabilities=SHAPE,
)


def taught(*scales: float, misfit: float = 1.0) -> KnownBlur:
    known = KnownBlur()
    for scale in scales:
        known = known.with_belief(replace(BELIEF, scale=scale, misfit=misfit), 2.0)
    return known


def test_one_run_alone_teaches_nothing() -> None:
    assert taught(2.6).carried_into(PRIOR) == PRIOR


def test_scale_and_shape_are_carried_and_something_is_left_open() -> None:
    prior = taught(2.6, 2.6, 2.6).carried_into(PRIOR)
    assert prior.blur_px_per_dof == pytest.approx(2.6)
    assert 0.08 < prior.blur_log_sd < PRIOR.blur_log_sd
    assert sum(prior.shape_probabilities) == pytest.approx(1.0)
    assert prior.shape_probabilities[1] > 0.7
    assert min(prior.shape_probabilities) > 0.02


def test_one_odd_run_does_not_move_it() -> None:
    prior = taught(2.6, 2.6, 1.2, 2.6, 2.6).carried_into(PRIOR)
    assert prior.blur_px_per_dof == pytest.approx(2.6)


def test_a_run_that_fits_badly_is_left_out() -> None:
    assert taught(1.2, 1.2, misfit=5.0).carried_into(PRIOR) == PRIOR


def test_only_the_latest_count() -> None:
    known = taught(*[1.5] * 30, *[2.6] * 12)
    assert len(known.log_ratios) == 12
    assert known.carried_into(PRIOR).blur_px_per_dof == pytest.approx(2.6)
    assert math.isclose(known.log_ratios[0], math.log(1.3))
