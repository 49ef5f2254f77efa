"""The guard: inventions weaker than the noise are caught, honest filters pass."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest

from inference.restore.api import LiveRestorer, NoiseModel, Restored, grey_of
from inference.restore.classical import Gaussian, RadialWiener, classical_restorers
from inference.restore.colour import Colour, noise_colour
from inference.restore.evaluate import at_dose
from inference.restore.guard import (
    BestClassical,
    Guarded,
    GuardedLive,
    coloured,
    judge,
    sure_mse_dn2,
    thinned,
    twin_test,
    whiteness,
)
from inference.restore.noise import estimate_noise
from inference.restore.recursive import RecursiveSettings

COUNTS = NoiseModel(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Inventing:
    """Adds smooth structure, `amount` standard deviations of the noise, that no frame holds."""

    amount: float
    name: str = "inventing"

    def restore(self, frame, noise=None):
        plain = RadialWiener().restore(frame, noise)
        rng = np.random.default_rng(99)
        extra = cv2.GaussianBlur(rng.normal(size=frame.shape).astype(np.float32), (0, 0), 2.0)
        extra *= self.amount * noise.sigma_dn(float(plain.image.mean())) / extra.std()
        return replace(plain, image=plain.image + extra)


@dataclass(frozen=True)
class Noisy:
    """Gives the frame back."""

    name: str = "noisy"

    def restore(self, frame, noise=None):
        return Restored(grey_of(frame), None, True, self.name, "")


@dataclass(frozen=True)
class Knowing:
    """Knows the truth, up to a share of noise: adds detail that is really there."""

    truth: np.ndarray
    name: str = "knowing"

    def restore(self, frame, noise=None):
        return Restored(self.truth, None, True, self.name, "")


@dataclass(frozen=True)
class Unsure:
    name: str = "unsure"

    def restore(self, frame, noise=None):
        return Restored(grey_of(frame), None, False, self.name, "never saw such a frame")


@pytest.fixture(scope="module")
def counted(truth):
    return at_dose(truth, 30.0)


def judged(restorer, counted, noise=COUNTS):
    frame, _ = counted
    return judge(frame, restorer.restore(frame, noise), noise, restorer)


def test_radial_wiener_and_the_truth_pass(counted):
    assert judged(RadialWiener(), counted).passed
    verdict = judged(Knowing(counted[1]), counted)
    assert verdict.passed, verdict.reason
    assert verdict.whiteness.within_ratio >= 0.95
    assert abs(verdict.whiteness.lag_correlation) < 0.03
    assert verdict.whiteness.removed_ratio == pytest.approx(1.0, abs=0.03)
    assert verdict.twin.slope == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("restorer", "why"),
    [
        (Inventing(0.2), "taken away"),
        (Gaussian(4.0), "taken away"),
        (Noisy(), "only"),
        (Unsure(), "never saw"),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_failures(counted, restorer, why):
    verdict = judged(restorer, counted)
    assert not verdict.passed
    assert why in verdict.reason


def test_the_twin_test_sees_what_the_remainder_hides(counted):
    """Structure of a fifth of the noise: half of the counts doesn't confirm it."""
    frame, _ = counted
    twin = twin_test(frame, Inventing(0.2), COUNTS)
    assert twin.slope + 3 * twin.slope_sigma < 0.2
    assert twin.slope_sigma < 0.05
    # Its said error is honest: over seeds the slope scatters by as much.
    slopes = [twin_test(frame, Inventing(0.2), COUNTS, seed).slope for seed in range(12)]
    assert 0.4 < np.std(slopes) / twin.slope_sigma < 1.8


@dataclass(frozen=True)
class Leaving:
    """Leaves half of the noise in, and says so or not."""

    is_said: bool
    name: str = "leaving"

    def restore(self, frame, noise=None):
        plain = RadialWiener().restore(frame, noise)
        image = 0.5 * (plain.image + grey_of(frame))
        sigma = 0.5 * np.sqrt(noise.variance_dn2(plain.image))
        return replace(plain, image=image, sigma=sigma if self.is_said else plain.sigma * 0.1)


def test_noise_that_is_left_is_no_invention_if_it_is_said(counted):
    frame, _ = counted
    assert not twin_test(frame, Leaving(True), COUNTS).is_failed
    assert twin_test(frame, Leaving(False), COUNTS).is_failed


def test_values_that_are_no_numbers_fail(counted):
    frame, _ = counted
    answer = replace(RadialWiener().restore(frame, COUNTS), image=np.full(frame.shape, np.nan))
    assert not judge(frame, answer, COUNTS).passed


def test_noise_of_no_known_colour_is_not_judged_and_does_not_pass(counted):
    frame = cv2.GaussianBlur(counted[0], (0, 0), 1.5)
    noise = replace(COUNTS, in_distribution=False, reason="noise is not white")
    verdict = judged(RadialWiener(), (frame, counted[1]), noise)
    assert not verdict.passed
    assert verdict.whiteness is None
    assert "cannot be checked" in verdict.reason


def in_colour(truth, across, down, seed=0):
    """A frame whose noise a detector has smoothed, and the truth in its numbers."""
    rng = np.random.default_rng(seed)
    colour = Colour(across, down, 1.0)
    noise = coloured(rng.standard_normal(truth.shape).astype(np.float32), colour)
    return (200.0 * truth + 20.0 * noise).astype(np.float32), (200.0 * truth).astype(np.float32)


@pytest.mark.parametrize("across_down", [(10.0, 10.0), (12.0, 0.0)], ids=["camera", "slow scan"])
def test_coloured_noise_is_judged_against_its_colour(truth, across_down):
    frame, true = in_colour(truth, *across_down)
    noise = estimate_noise(frame)
    assert not noise.in_distribution
    colour = noise_colour(frame, noise)
    assert colour.across_px2 == pytest.approx(across_down[0], rel=0.35)
    assert colour.down_px2 == pytest.approx(across_down[1], rel=0.35, abs=1.0)
    honest = judge(frame, Knowing(true).restore(frame), noise, Knowing(true))
    assert honest.passed, honest.reason
    assert honest.whiteness.within_ratio >= 0.75
    assert not judge(frame, Inventing(1.0).restore(frame, noise), noise, Inventing(1.0)).passed
    assert not judge(frame, Gaussian(5.0).restore(frame, noise), noise).passed


@pytest.mark.parametrize("model", [COUNTS, NoiseModel(2.5, 30.0, 4.0)])
def test_thinned_halves_are_independent_and_keep_the_level(truth, model):
    rng = np.random.default_rng(4)
    true = np.full((256, 256), 25.0)
    frame = model.gain_dn * rng.poisson(true) + model.offset_dn
    frame = (frame + rng.normal(0, 1, true.shape) * model.read_noise_dn).astype(np.float32)
    first, second, halves = thinned(frame, model, rng)
    level = model.gain_dn * 25.0 + model.offset_dn
    variance = float(halves.variance_dn2(level))
    assert np.allclose((first + second) / 2.0, frame, atol=1e-2)
    for half in (first, second):
        assert float(half.mean()) == pytest.approx(level, rel=0.01)
        assert float(half.var()) == pytest.approx(variance, rel=0.03)
    assert variance == pytest.approx(2.0 * float(model.variance_dn2(level)), rel=1e-5)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.012


@pytest.mark.parametrize("restorer", classical_restorers(), ids=lambda one: one.name)
def test_stein_finds_the_error_without_the_truth(counted, restorer):
    frame, true = counted
    error = float(np.mean((restorer.restore(frame, COUNTS).image - true) ** 2))
    # Chance in the noise's own mean square: 0.6 % of its variance, here 14.
    said = sure_mse_dn2(frame, restorer, COUNTS)
    assert said == pytest.approx(error, abs=0.25 + 0.12 * error)


def test_the_best_classical_is_the_best(counted):
    frame, true = counted
    best = BestClassical().restore(frame, COUNTS)
    errors = {
        one.name: float(np.mean((one.restore(frame, COUNTS).image - true) ** 2))
        for one in BestClassical().restorers
    }
    assert errors[best.method] <= 1.05 * min(errors.values())
    assert best.reason == ""


def test_a_failure_is_replaced_and_says_so(counted):
    frame, _ = counted
    answer, verdict = Guarded(Inventing(0.3)).restore_and_judge(frame, COUNTS)
    expected = BestClassical().restore(frame, COUNTS)
    assert not verdict.passed
    assert np.array_equal(answer.image, expected.image)
    assert answer.method == expected.method != "inventing"
    assert answer.reason.startswith("inventing: ")
    assert Guarded(Inventing(0.3)).name == "inventing"


def test_what_passes_goes_through_untouched(counted):
    frame, true = counted
    answer = Guarded(Knowing(true)).restore(frame)  # noise: estimated
    assert answer.method == "knowing"
    assert answer.reason == ""
    assert np.array_equal(answer.image, true)


def test_false_alarms_are_rare(truth):
    """Perfect restorations with perfect noise: 40 frames, at most one alarm."""
    alarms = 0
    for seed in range(40):
        frame, true = at_dose(truth[:128, :128], 20.0, seed)
        alarms += not judge(frame, Knowing(true).restore(frame), COUNTS, Knowing(true)).passed
    assert alarms <= 1


def test_bands_count_chance():
    frame = np.random.default_rng(0).normal(100.0, 5.0, (64, 64)).astype(np.float32)
    noise = NoiseModel(0.0, 0.0, 5.0)
    rest = whiteness(frame, Knowing(np.full((64, 64), 100.0, np.float32)).restore(frame), noise)
    assert rest.within_ratio > 0.9
    assert rest.excess < 0.05
    assert math.isclose(rest.removed_ratio, 1.0, abs_tol=0.1)


# --- live ------------------------------------------------------------------------------------


@dataclass
class Counting:
    """Counts how often it is asked; invents from the frame `bad_from` on."""

    asked: int = 0
    amount: float = 0.0
    name: str = "counting"

    def restore(self, frame, noise=None):
        self.asked += 1
        if self.amount:
            return Inventing(self.amount).restore(frame, noise)
        return RadialWiener().restore(frame, noise)


def frames_of(truth, count):
    return [at_dose(truth[:128, :128], 30.0, seed)[0] for seed in range(count)]


def test_live_the_twin_test_is_sampled_and_sticks_when_it_fails(truth):
    inner = Counting()
    live: LiveRestorer = GuardedLive(inner, twin_every_frames=4)
    twins = []
    for number, frame in enumerate(frames_of(truth, 12)):
        inner.amount = 0.2 if number >= 8 else 0.0
        answer = live.push(frame, COUNTS)
        twins.append(live.verdict.twin is not None)
        assert (answer.method == "radial_wiener") or number >= 8
    assert twins == [True, False, False, False] * 2 + [True] * 4
    assert "counting: " in answer.reason
    assert live.effective_frames == 1.0
    live.reset()
    assert live.verdict is None


def test_live_average_is_judged_by_the_frame_and_replaced_by_an_average(truth):
    good = GuardedLive(RadialWiener(), recursion=RecursiveSettings(), twin_every_frames=16)
    bad = GuardedLive(Counting(amount=0.3), recursion=RecursiveSettings())
    for frame in frames_of(truth, 10):
        shown, instead = good.push(frame, COUNTS), bad.push(frame, COUNTS)
        assert good.verdict.passed, good.verdict.reason
        assert not bad.verdict.passed
    assert good.effective_frames > 8.0
    assert good.name == "radial_wiener_recursive"
    _, true = at_dose(truth[:128, :128], 30.0)
    single = np.mean((RadialWiener().restore(frame, COUNTS).image - true) ** 2)
    assert np.mean((shown.image - true) ** 2) < 0.5 * single
    assert np.mean((instead.image - true) ** 2) < 0.5 * single


def test_a_camera_that_colours_its_noise_is_seen_through(truth):
    """Filters are told how strong noise is where samples are, and the guard lets them pass."""
    live, blind = GuardedLive(RadialWiener()), []
    errors = []
    for seed in range(4):
        frame, true = in_colour(truth, 2.0, 2.0, seed)
        answer = live.push(frame)
        assert live.verdict.passed, live.verdict.reason
        errors.append(float(np.mean((answer.image - true) ** 2)))
        plain = RadialWiener().restore(frame, estimate_noise(frame)).image
        blind.append(float(np.mean((plain - true) ** 2)))
        told = RadialWiener().restore(frame).image  # sees to it by itself
        assert float(np.mean((told - true) ** 2)) < 0.9 * blind[-1]
    assert np.mean(errors) < 0.8 * np.mean(blind)
    single, verdict = Guarded(RadialWiener()).restore_and_judge(frame)
    assert verdict.passed, verdict.reason
    assert float(np.mean((single.image - true) ** 2)) < 0.9 * blind[-1]
