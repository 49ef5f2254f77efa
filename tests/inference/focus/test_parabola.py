"""The estimator on curves whose peak is known, on curves that have none, and on a real series."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.api import FocusSample, Sharpness
from inference.focus.gradient import GradientSharpness
from inference.focus.parabola import InverseParabola

ESTIMATOR = InverseParabola()
DOF_UM = 3.0
SHAPES = {
    "texture": lambda u: 1 / (1 + u * u),
    "edges": lambda u: 1 / np.sqrt(1 + u * u),
    "gaussian": lambda u: np.exp(-0.7 * u * u) + 0.02,
    "flat top": lambda u: 1 / (1 + u * u + 0.3 * u**4),
}


def sweep(
    focus_um, z_um, shape="texture", width_dof=1.0, noise=0.01, background=0.05, seed=0, drift=0.0
):
    rng = np.random.default_rng(seed)
    samples = []
    for i, z in enumerate(z_um):
        signal = float(SHAPES[shape]((z - focus_um - drift * i) / (width_dof * DOF_UM)))
        signal *= 1 + noise * rng.standard_normal()
        floor = background * (1 + noise * rng.standard_normal())
        ratio = (signal + floor) / background if background else 1e6
        is_seen = ratio > 1.15
        samples.append(
            FocusSample(
                float(z), Sharpness(signal + floor, ratio, is_seen, "" if is_seen else "empty")
            )
        )
    return samples


def planes(step_dof, half_dof, centre_um=0.0):
    return centre_um + DOF_UM * np.arange(-half_dof, half_dof + 1e-9, step_dof)


@settings(max_examples=200, deadline=None)
@given(
    focus_dof=st.floats(-1.5, 1.5),
    shape=st.sampled_from(sorted(SHAPES)),
    width_dof=st.floats(0.5, 2.0),
    step_dof=st.floats(0.3, 0.6),
    gain=st.floats(1e-6, 1e6),
    seed=st.integers(0, 9_999),
)
def test_it_finds_the_peak_of_any_curve_optics_make(
    focus_dof, shape, width_dof, step_dof, gain, seed
):
    samples = sweep(focus_dof * DOF_UM, planes(step_dof, 4), shape, width_dof, seed=seed)
    samples = [
        FocusSample(
            s.focus_z_um,
            Sharpness(gain * s.sharpness.value, s.sharpness.texture_ratio, True, ""),
        )
        for s in samples
    ]
    found = ESTIMATOR.estimate(samples, DOF_UM)
    assert found.is_confident, found
    assert abs(found.focus_z_um - focus_dof * DOF_UM) < 0.2 * DOF_UM
    assert abs(found.focus_z_um - focus_dof * DOF_UM) < 4 * found.sigma_um


def test_the_error_is_a_small_part_of_a_depth_of_field():
    errors, in_sigmas = [], []
    for seed in range(300):
        focus_um = np.random.default_rng(seed).uniform(-0.5, 0.5) * DOF_UM
        found = ESTIMATOR.estimate(sweep(focus_um, planes(0.5, 4), seed=seed, noise=0.03), DOF_UM)
        assert found.is_confident
        errors.append(abs(found.focus_z_um - focus_um) / DOF_UM)
        in_sigmas.append(abs(found.focus_z_um - focus_um) / found.sigma_um)
    assert np.median(errors) < 0.03
    assert np.percentile(errors, 95) < 0.1
    assert np.mean(np.array(in_sigmas) < 1) > 0.63
    assert np.mean(np.array(in_sigmas) < 2) > 0.93


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_more_noise_than_expected_widens_sigma(noise):
    in_sigmas = []
    for seed in range(300):
        focus_um = np.random.default_rng(seed).uniform(-0.5, 0.5) * DOF_UM
        found = ESTIMATOR.estimate(sweep(focus_um, planes(0.4, 4), seed=seed, noise=noise), DOF_UM)
        if found.is_confident:
            in_sigmas.append(abs(found.focus_z_um - focus_um) / found.sigma_um)
    assert len(in_sigmas) > 200
    assert np.mean(np.array(in_sigmas) < 1) > 0.55
    assert np.mean(np.array(in_sigmas) < 2) > 0.9


def test_a_faint_peak_over_much_noise_is_not_biased():
    errors = []
    for seed in range(100):
        focus_um = np.random.default_rng(seed).uniform(-0.5, 0.5) * DOF_UM
        samples = sweep(focus_um, planes(1.0, 5), background=5.0, noise=0.001, seed=seed)
        found = ESTIMATOR.estimate(samples, DOF_UM)
        assert found.is_confident, found
        errors.append(abs(found.focus_z_um - focus_um) / DOF_UM)
    assert np.percentile(errors, 90) < 0.03


def test_a_coarse_and_a_fine_sweep_work_together():
    samples = sweep(1.0, planes(1.0, 8)) + sweep(1.0, planes(0.35, 1.2, 1.5), seed=9)
    found = ESTIMATOR.estimate(samples, DOF_UM)
    assert found.is_confident
    assert abs(found.focus_z_um - 1.0) < 0.06 * DOF_UM


def test_the_order_of_samples_does_not_matter():
    samples = sweep(1.0, planes(0.5, 4))
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    assert ESTIMATOR.estimate(samples, DOF_UM) == ESTIMATOR.estimate(shuffled, DOF_UM)


EMPTY = [FocusSample(float(z), Sharpness(0.05, 1.0, False, "empty field")) for z in range(9)]
FLAT = [FocusSample(float(z), Sharpness(0.05 + 0.001 * (z % 2), 3.0, True, "")) for z in range(9)]
TWIN = [
    FocusSample(
        float(z),
        Sharpness(
            0.05 + 1 / (1 + ((z - 10) / 3) ** 2) + 0.8 / (1 + ((z + 10) / 3) ** 2), 10.0, True, ""
        ),
    )
    for z in range(-24, 25, 2)
]
FLASH = [
    FocusSample(float(z), Sharpness(0.3 + 5.0 * (z == 0), 10.0, True, "")) for z in range(-9, 10, 1)
]
BLACK = [FocusSample(float(z), Sharpness(0.0, 0.0, False, "black")) for z in range(9)]


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "three are the least"),
        (sweep(0.0, planes(0.5, 4))[:2], "three are the least"),
        (BLACK, "three are the least"),
        (EMPTY, "empty field"),
        (FLAT, "flat"),
        (sweep(0.0, planes(0.5, 4, 6 * DOF_UM)), "lower edge"),
        (sweep(0.0, planes(0.5, 4, -6 * DOF_UM)), "upper edge"),
        (TWIN, "two peaks"),
        (FLASH, "flash"),
        (sweep(0.0, [0.0] * 9), "fewer than three places"),
    ],
)
def test_it_says_no_and_why(samples, reason):
    found = ESTIMATOR.estimate(samples, DOF_UM)
    assert not found.is_confident, found
    assert reason in found.reason


def test_noise_alone_is_hardly_ever_focus():
    sure = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        samples = [
            FocusSample(z, Sharpness(0.05 * v, v, v > 1.15, "empty"))
            for z, v in zip(
                planes(0.5, 5).tolist(), 1 + 0.02 * rng.standard_normal(21), strict=True
            )
        ]
        sure += ESTIMATOR.estimate(samples, DOF_UM).is_confident
    assert sure == 0


def test_one_black_frame_in_the_sweep_does_not_hurt():
    samples = sweep(1.0, planes(0.5, 4))
    samples[8] = FocusSample(samples[8].focus_z_um, Sharpness(0.0, 0.0, False, "black"))
    found = ESTIMATOR.estimate(samples, DOF_UM)
    assert found.is_confident
    assert abs(found.focus_z_um - 1.0) < 0.1 * DOF_UM


@pytest.mark.parametrize("depth_um", [0.0, -1.0, math.nan, math.inf])
def test_a_depth_of_field_that_is_none_is_refused(depth_um):
    with pytest.raises(ValueError, match="depth_of_field_um"):
        ESTIMATOR.estimate(sweep(0.0, planes(0.5, 4)), depth_um)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_real_series_is_solved_to_a_fraction_of_a_plane(shared_data, step):
    measure = GradientSharpness()
    samples = []
    for path in sorted((shared_data / "focus" / "smear").glob("*.png")):
        plane = int(path.stem)
        if plane % step == 0:
            pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
            samples.append(FocusSample(float(plane), measure.measure(pixels)))
    found = ESTIMATOR.estimate(samples, 6.0)
    assert found.is_confident, found
    assert abs(found.focus_z_um) < 0.3
