"""The two-step Wiener estimate, and what a network is shown of it."""

import numpy as np
import pytest

from inference.restore import anchor as anchor_module
from inference.restore.anchor import CHANNELS, PHASES, TwoStepWiener, anchored, shown
from inference.restore.api import NoiseModel
from inference.restore.classical import RadialWiener
from inference.restore.scores import psnr_db

COUNTS = NoiseModel(1.0, 0.0, 0.0)


def lattice(side_px=256, contrast=0.1, period_px=13.3, turn=0.4):
    """Three waves at 60 degrees, that fit into no frame."""
    y, x = np.mgrid[:side_px, :side_px]
    waves = [
        np.cos(2 * np.pi / period_px * (x * np.cos(turn + k) + y * np.sin(turn + k)))
        for k in (0.0, np.pi / 3, 2 * np.pi / 3)
    ]
    return (1.0 + contrast * sum(waves) / 3.0).astype(np.float32)


def counted(truth, seed=1):
    return np.random.default_rng(seed).poisson(truth).astype(np.float32)


@pytest.mark.parametrize("dose_e", [25.0, 250.0])
def test_a_lattice_is_kept_up_to_the_edges(dose_e):
    truth = lattice() * np.float32(dose_e)
    noisy = counted(truth)
    span = float(np.ptp(truth))
    radial = RadialWiener().restore(noisy, COUNTS).image
    image = anchored(noisy, COUNTS).image
    assert psnr_db(image, truth, span) > psnr_db(radial, truth, span) + 2.5
    # The outermost rows are hardly worse than the middle.
    error = np.square(image - truth)
    assert error[:4].mean() < 6.0 * error[32:-32, 32:-32].mean()


def test_large_frames_are_filtered_with_fewer_rounds(monkeypatch):
    truth = lattice(192) * np.float32(50.0)
    noisy = counted(truth)
    thrice = anchored(noisy, COUNTS).image
    monkeypatch.setattr(anchor_module, "_ROUNDS", ())
    once = anchored(noisy, COUNTS).image
    edge = np.s_[:6]
    assert np.square(thrice - truth)[edge].mean() < 0.8 * np.square(once - truth)[edge].mean()
    middle = np.s_[64:-64, 64:-64]
    assert np.allclose(thrice[middle], once[middle], atol=0.1 * truth.std())


@pytest.mark.parametrize("shape", [(48, 60), (64, 64), (50, 96)])
def test_power_is_that_of_an_ordinary_transform(shape, monkeypatch):
    import cv2

    monkeypatch.setattr(anchor_module, "_POWER_PX", 1)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    power = anchor_module._power(cv2.dft(x))
    usual = np.square(np.abs(np.fft.fft2(x)))
    height, width = shape
    assert np.allclose(power[:, 1:-1:2], usual[:, 1 : width // 2], rtol=1e-3, atol=1e-3)
    assert np.allclose(power[:, 2:-1:2], usual[:, 1 : width // 2], rtol=1e-3, atol=1e-3)
    for place, column in ((0, 0), (-1, width // 2)):
        assert power[0, place] == pytest.approx(usual[0, column], rel=1e-3, abs=1e-2)
        assert power[-1, place] == pytest.approx(usual[height // 2, column], rel=1e-3, abs=1e-2)
        some = usual[1 : height // 2, column]
        assert np.allclose(power[1:-1:2, place], some, rtol=1e-3, atol=1e-2)


def test_gain_and_offset_of_the_camera_are_not_seen():
    noisy = counted(lattice() * np.float32(40.0))
    plain = anchored(noisy, COUNTS)
    gain, offset = 7.0, 300.0
    model = NoiseModel(gain, offset, 0.0)
    digital = noisy * np.float32(gain) + np.float32(offset)
    scaled = anchored(digital, model)
    assert np.allclose(scaled.image, plain.image * gain + offset, rtol=1e-4)
    assert np.allclose(shown(digital, scaled), shown(noisy, plain), atol=0.02)


def test_noise_may_differ_from_pixel_to_pixel():
    noisy = counted(lattice() * np.float32(40.0))
    sigma = np.full(noisy.shape, np.sqrt(40.0), np.float32)
    sigma[:, :128] *= 0.25
    found = anchored(noisy, sigma)
    assert np.allclose(found.unit[64, 64] / found.unit[64, 192], 0.25, rtol=1e-3)
    seen = shown(noisy, found)
    assert seen.shape == (CHANNELS, 128, 128)
    # What was taken away is counted in each pixel's own noise.
    taken = seen[4:8]
    assert taken[:, :, :60].std() == pytest.approx(4.0 * taken[:, :, 68:].std(), rel=0.1)


def test_four_pixels_are_one_place():
    noisy = counted(lattice(64) * np.float32(40.0))
    found = anchored(noisy, COUNTS)
    seen = shown(noisy, found)
    taken = (noisy - found.image) / found.sigma
    for row in range(PHASES):
        for column in range(PHASES):
            plane = seen[PHASES**2 + PHASES * row + column]
            assert np.array_equal(plane, taken[row::PHASES, column::PHASES])


def test_nothing_but_noise_leaves_nothing():
    noisy = counted(np.full((256, 256), 30.0))
    image = TwoStepWiener().restore(noisy).image
    assert image.std() < 0.05 * np.sqrt(30.0)
    assert image.mean() == pytest.approx(30.0, abs=0.2)


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (100, 33)])
def test_any_size(shape):
    noisy = counted(np.full(shape, 30.0))
    answer = TwoStepWiener().restore(noisy, COUNTS)
    assert answer.image.shape == shape and np.isfinite(answer.image).all()
    assert answer.method == "two_step_wiener"


def test_a_frame_without_noise_is_left_alone():
    truth = lattice() * np.float32(100.0)
    image = anchored(truth, NoiseModel(0.0, 0.0, 1e-3)).image
    assert psnr_db(image, truth, float(np.ptp(truth))) > 50.0
