"""The focus surface against planes, bows, drift and liars whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from controller.focusing.surface import FocusPoint, FocusSurface, FocusSurfaceSettings

SETTINGS = FocusSurfaceSettings()
HALF_UM = 4_000.0


def empty(prior_z_um: float = 0.0) -> FocusSurface:
    return FocusSurface(SETTINGS, 0.0, 0.0, HALF_UM, prior_z_um, 50.0)


def measured(surface, truth, places, noise_um=0.0, seed=0, every_s=0.0):
    rng = np.random.default_rng(seed)
    for i, (x, y) in enumerate(places):
        z = truth(x, y, i * every_s) + noise_um * rng.standard_normal()
        surface = surface.with_point(FocusPoint(x, y, z, max(noise_um, 0.05), i * every_s))
    return surface


def grid(count: int) -> list[tuple[float, float]]:
    line = np.linspace(-HALF_UM, HALF_UM, count)
    return [(float(x), float(y)) for y in line for x in line]


def test_before_any_point_it_says_the_prior():
    expected = empty(123.0).at(0.0, 0.0, 5.0)
    assert expected.z_um == 123.0
    assert expected.sigma_um == pytest.approx(50.0, rel=0.01)
    assert empty().order == "none"


def test_one_point_makes_it_flat_there():
    surface = measured(empty(), lambda x, y, t: 40.0, [(1_000.0, -500.0)])
    near = surface.at(1_050.0, -500.0, 0.0)
    assert near.z_um == pytest.approx(40.0, abs=0.2)
    assert near.sigma_um < 1.0
    assert surface.at(-3_000.0, 3_000.0, 0.0).sigma_um > 20.0
    assert surface.order == "offset"


@settings(max_examples=40, deadline=None)
@given(st.floats(-12, 12), st.floats(-12, 12), st.floats(-200, 200), st.integers(0, 10_000))
def test_three_points_make_any_plane(tilt_x, tilt_y, offset_um, seed):
    def truth(x, y, t):
        return offset_um + tilt_x * x * 1e-3 + tilt_y * y * 1e-3

    places = [(-3_000.0, -3_000.0), (3_000.0, -2_500.0), (-200.0, 3_200.0)]
    surface = measured(empty(), truth, places, seed=seed)
    assert surface.order == "plane"
    rng = np.random.default_rng(seed)
    for x, y in rng.uniform(-HALF_UM, HALF_UM, (20, 2)):
        expected = surface.at(x, y, 0.0)
        error_um = abs(expected.z_um - truth(x, y, 0.0))
        assert error_um < 1.2
        assert error_um < 3.0 * expected.sigma_um


def test_points_on_a_line_do_not_make_a_plane():
    places = [(x, 2.0 * x) for x in (-1_000.0, 0.0, 1_000.0, 1_500.0)]
    assert measured(empty(), lambda x, y, t: 0.0, places).order == "offset"


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-10, 10), st.floats(-6, 6), st.floats(-6, 6), st.floats(-3, 3), st.integers(0, 999)
)
def test_a_bow_is_learnt_from_nine_points(tilt, bow_x_um, bow_y_um, twist_um, seed):
    def truth(x, y, t):
        u, v = x / HALF_UM, y / HALF_UM
        return 30.0 + tilt * x * 1e-3 + bow_x_um * u * u + bow_y_um * v * v + twist_um * u * v

    surface = measured(empty(), truth, grid(3), noise_um=0.05, seed=seed)
    assert surface.order == "quadratic"
    everywhere = np.random.default_rng(seed).uniform(-HALF_UM, HALF_UM, (200, 2))
    z_um, _ = surface.at_many(everywhere, 0.0)
    errors_um = z_um - np.array([truth(x, y, 0.0) for x, y in everywhere])
    assert np.percentile(np.abs(errors_um), 95) < 0.25


def test_the_stated_sigma_is_the_error_one_makes():
    rng = np.random.default_rng(5)
    in_sigmas = []
    for seed in range(60):
        tilt = rng.normal(0, SETTINGS.tilt_um_per_mm, 2) * 1e-3
        bow = rng.normal(0, SETTINGS.bow_um, 2) / HALF_UM**2

        def truth(x, y, t, tilt=tilt, bow=bow):
            return tilt[0] * x + tilt[1] * y + bow[0] * x * x + bow[1] * y * y

        places = rng.uniform(-HALF_UM, HALF_UM, (rng.integers(3, 12), 2))
        surface = measured(empty(), truth, places, noise_um=0.2, seed=seed)
        for x, y in rng.uniform(-HALF_UM, HALF_UM, (20, 2)):
            expected = surface.at(x, y, 0.0)
            in_sigmas.append(abs(expected.z_um - truth(x, y, 0.0)) / expected.sigma_um)
    within = np.array(in_sigmas)
    assert 0.6 < np.mean(within < 1) < 0.95  # the truth has no roughness, the prior has
    assert np.mean(within < 2) > 0.93


@pytest.mark.parametrize("lie_um", [-60.0, -8.0, 5.0, 40.0])
@pytest.mark.parametrize("liar", [0, 3, 7])
def test_one_liar_is_set_aside(lie_um, liar):
    def truth(x, y, t):
        return 8e-3 * x - 3e-3 * y

    rng = np.random.default_rng(liar)
    places = rng.uniform(-HALF_UM, HALF_UM, (8, 2))
    surface = empty()
    for i, (x, y) in enumerate(places):
        z = truth(x, y, 0.0) + (lie_um if i == liar else 0.1 * rng.standard_normal())
        surface = surface.with_point(FocusPoint(x, y, z, 0.1, 0.0))
    assert [surface.points.index(p) for p in surface.outliers] == [liar]
    inner = places * 0.5
    z_um, _ = surface.at_many(inner, 0.0)
    assert np.max(np.abs(z_um - [truth(x, y, 0.0) for x, y in inner])) < 1.5


def test_honest_points_are_not_set_aside():
    rejected = 0
    for seed in range(40):
        surface = measured(empty(), lambda x, y, t: 5e-3 * x, grid(3), noise_um=0.1, seed=seed)
        rejected += len(surface.outliers)
    assert rejected <= 2


@pytest.mark.parametrize("bow_um", [-40.0, 15.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_chip_bent_far_more_than_expected_is_believed(bow_um, seed):
    def truth(x, y, t):
        return 5e-3 * x + bow_um * (x * x + y * y) / HALF_UM**2

    places = np.random.default_rng(seed).uniform(-HALF_UM, HALF_UM, (10, 2))
    surface = measured(empty(), truth, places, noise_um=0.15, seed=seed)
    assert surface.outliers == ()
    inner = np.random.default_rng(seed + 50).uniform(-0.6 * HALF_UM, 0.6 * HALF_UM, (100, 2))
    z_um, sigma_um = surface.at_many(inner, 0.0)
    errors_um = np.abs(z_um - [truth(x, y, 0.0) for x, y in inner])
    assert np.percentile(errors_um, 95) < 0.8
    assert np.mean(errors_um < 3 * sigma_um) > 0.97


def test_extrapolation_stays_tame():
    # Two points 200 um apart that differ by noise: the far corner must not fly away unannounced.
    surface = empty()
    for x_um, z_um in ((-100.0, 0.0), (100.0, 0.5)):
        surface = surface.with_point(FocusPoint(x_um, 0.0, z_um, 0.3, 0.0))
    far = surface.at(HALF_UM, 0.0, 0.0)
    assert abs(far.z_um) < 3.0 * far.sigma_um
    assert abs(far.z_um) < 2.0 * SETTINGS.tilt_um_per_mm * HALF_UM * 1e-3


def test_drift_is_followed_and_old_points_fade():
    def truth(x, y, t):
        return 4e-3 * x + 0.002 * t

    places = [*grid(3), (0.0, 0.0), (1_000.0, 1_000.0), (-2_000.0, 500.0)]
    surface = measured(empty(), truth, places, noise_um=0.05, every_s=120.0)
    now_s = 120.0 * (len(places) - 1)
    assert surface.at(500.0, -500.0, now_s).z_um == pytest.approx(
        truth(500.0, -500.0, now_s), abs=0.4
    )
    here = [surface.at(0.0, 0.0, now_s + later_s).sigma_um for later_s in (0.0, 600.0, 6_000.0)]
    assert here == sorted(here)
    assert here[2] > 2.0 * here[0]


def test_an_old_point_says_less_even_without_a_steady_drift():
    restless = FocusSurfaceSettings(drift_um_per_s=0.0, walk_um_per_sqrt_s=0.05)
    surface = FocusSurface(restless, 0.0, 0.0, HALF_UM, 0.0, 50.0)
    surface = surface.with_point(FocusPoint(0.0, 0.0, 0.0, 0.05, 0.0))
    surface = surface.with_point(FocusPoint(0.0, 0.0, 2.0, 0.05, 3_600.0))
    now = surface.at(0.0, 0.0, 3_700.0)
    assert now.z_um == pytest.approx(2.0, abs=0.2)
    assert now.sigma_um > 0.3
    assert surface.at(0.0, 0.0, 3_600.0).sigma_um < 0.1


def test_seeds_are_spread_and_the_next_place_is_the_least_known():
    places = grid(7)
    seeds = empty().seed_points(places, 6, 0.0)
    assert len(set(seeds)) == 6
    surface = measured(empty(), lambda x, y, t: 0.0, [places[i] for i in seeds], noise_um=0.1)
    assert surface.order in ("plane", "quadratic")
    sigma_um = surface.at_many(np.array(places), 0.0)[1]
    assert np.max(sigma_um) < 1.5
    next_place = surface.where_next(places, 0.0)
    assert next_place is not None
    assert sigma_um[next_place] > np.median(sigma_um)
    assert empty().where_next([], 0.0) is None
    assert empty().seed_points([], 3, 0.0) == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_point_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        empty().with_point(FocusPoint(0.0, 0.0, bad, 0.1, 0.0))


def test_settings_refuse_what_makes_no_sense():
    with pytest.raises(ValidationError):
        FocusSurfaceSettings(tilt_um_per_mm=-1)
    with pytest.raises(ValidationError):
        FocusSurfaceSettings(unknown=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="half_size_um"):
        FocusSurface(SETTINGS, 0, 0, 0, 0, 1)
