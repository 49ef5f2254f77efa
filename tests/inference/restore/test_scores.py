"""PSNR, SSIM and SNR against cases worked out by hand."""

import math

import numpy as np
import pytest

from inference.api import BadImage
from inference.restore.scores import psnr_db, snr_db, ssim


def test_psnr_by_hand():
    truth = np.zeros((20, 20))
    image = truth + 0.1  # mean squared error 0.01
    assert psnr_db(image, truth, 1.0) == pytest.approx(20.0)
    assert psnr_db(image, truth, 10.0) == pytest.approx(40.0)
    assert psnr_db(truth, truth, 1.0) == math.inf


def test_snr_by_hand():
    truth = np.tile([0.0, 2.0], (20, 10))  # variance 1
    assert snr_db(truth + 0.1, truth) == pytest.approx(20.0)
    assert snr_db(np.ones((20, 20)), np.zeros((20, 20))) == -math.inf


def test_ssim_of_two_constants_by_hand():
    # No variance: only the brightness term is left, (2ab + c1) / (a^2 + b^2 + c1), c1 = 1e-4.
    image, truth = np.full((16, 16), 0.5), np.full((16, 16), 0.7)
    assert ssim(image, truth, 1.0) == pytest.approx((0.7 + 1e-4) / (0.25 + 0.49 + 1e-4), abs=1e-9)


def test_ssim_of_one_window_by_hand():
    """A frame of 11 x 11 has one pixel whose window fits: every sum can be written out."""
    rng = np.random.default_rng(1)
    image, truth = rng.uniform(0, 200, (2, 11, 11))
    taps = [math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)]
    weight = np.outer(taps, taps) / sum(taps) ** 2
    ma, mb = (weight * image).sum(), (weight * truth).sum()
    va, vb = (weight * (image - ma) ** 2).sum(), (weight * (truth - mb) ** 2).sum()
    cov = (weight * (image - ma) * (truth - mb)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim(image, truth, 255.0) == pytest.approx(expected, abs=1e-9)
    assert ssim(truth, truth, 255.0) == pytest.approx(1.0)


@pytest.mark.parametrize("data_range", [0.0, -1.0, math.nan, math.inf])
def test_a_range_must_be_one(data_range):
    with pytest.raises(BadImage, match="range"):
        psnr_db(np.zeros((20, 20)), np.zeros((20, 20)), data_range)


def test_unequal_shapes_are_refused():
    with pytest.raises(BadImage):
        ssim(np.zeros((20, 20)), np.zeros((20, 21)), 1.0)
    with pytest.raises(BadImage):
        ssim(np.zeros((10, 20)), np.zeros((10, 20)), 1.0)
