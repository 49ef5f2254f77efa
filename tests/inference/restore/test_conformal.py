"""Intervals cover what they say, in every class, whatever sigma was said."""

import numpy as np
import pytest

from inference.restore.api import NoiseModel
from inference.restore.classical import NonLocalMeans, RadialWiener
from inference.restore.conformal import Factors, covered_ratio, fitted, twin_coverage
from inference.restore.evaluate import at_dose

COUNTS = NoiseModel(1.0, 0.0, 0.0)


def drawn(rng, count=40_000):
    """A sigma that is wrong by a factor which differs from place to place; heavy tails."""
    sigma = rng.uniform(0.1, 1.0, count)
    return rng.standard_t(4, count) * sigma * (0.5 + 1.5 * sigma), sigma


def test_coverage_holds_in_every_class():
    rng = np.random.default_rng(0)
    factors = fitted(*drawn(rng), 1.0, coverage=0.9)
    errors, sigma = drawn(rng)
    half = factors.half_width(sigma.astype(np.float32), 1.0)
    assert covered_ratio(errors, half) == pytest.approx(0.9, abs=0.01)
    for low, high in ((0.1, 0.3), (0.4, 0.6), (0.8, 1.0)):
        mine = (sigma >= low) & (sigma < high)
        assert covered_ratio(errors[mine], half[mine]) == pytest.approx(0.9, abs=0.025)


def test_one_factor_for_all_would_not_do():
    rng = np.random.default_rng(0)
    errors, sigma = drawn(rng)
    half = fitted(errors, sigma, 1.0, classes=1).half_width(sigma.astype(np.float32), 1.0)
    hard = sigma > 0.8
    assert covered_ratio(errors[hard], half[hard]) < 0.85


def test_too_few_pixels_are_refused():
    with pytest.raises(ValueError, match="at least"):
        fitted(np.ones(10), np.ones(10), 1.0)


def test_a_constant_sigma_makes_one_class():
    errors = np.random.default_rng(1).standard_normal(5_000)
    factors = fitted(errors, np.ones(5_000), 1.0)
    assert len(factors.factors) == len(factors.edges) + 1
    assert factors.half_width(np.ones((2, 2), np.float32), 1.0)[0, 0] == pytest.approx(
        1.645, abs=0.1
    )


def test_the_twin_tells_narrow_intervals_from_right_ones(truth):
    restorer = RadialWiener()
    frames = [at_dose(truth, 30.0, seed) for seed in range(2)]
    # Fitted at half the dose, as the twin restores it.
    halves = NoiseModel(2.0, 0.0, 0.0)
    frame, true = at_dose(truth, 15.0, 7)
    answer = restorer.restore(2.0 * frame, halves)
    right = fitted(
        answer.image - 2.0 * true, answer.sigma, np.sqrt(halves.variance_dn2(2.0 * true))
    )
    noisy, noises = [one for one, _ in frames], [COUNTS, COUNTS]
    assert twin_coverage(noisy, restorer, noises, right) == pytest.approx(0.9, abs=0.06)
    narrow = Factors(right.edges, tuple(0.4 * one for one in right.factors), 0.9)
    assert twin_coverage(noisy, restorer, noises, narrow) < 0.7
    assert twin_coverage(noisy, NonLocalMeans(), noises, right) is None
