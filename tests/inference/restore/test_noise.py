"""The blind noise model: right on counts whose truth is known, and frank on real frames."""

import math

import cv2
import numpy as np
import pytest

from inference.api import BadImage
from inference.restore.api import NoiseModel
from inference.restore.evaluate import read_grey
from inference.restore.noise import estimate_noise

CASES = [
    # name, peak e/px, gain, offset, read noise
    ("counts at 2 e/px", 2.0, 1.0, 0.0, 0.0),
    ("counts at 20 e/px", 20.0, 1.0, 0.0, 0.0),
    ("a camera", 400.0, 0.5, 12.0, 1.5),
    ("16 bits", 900.0, 40.0, 500.0, 60.0),
    ("reading only", 0.0, 0.0, 0.0, 4.0),
]


def counted(truth, peak_e, gain, offset, read, seed=0):
    rng = np.random.default_rng(seed)
    if gain == 0.0:
        level = truth * np.float32(100.0)
    else:
        level = gain * rng.poisson(truth * peak_e) + offset
    frame = level + rng.normal(0.0, 1.0, truth.shape) * read
    true_level = truth * (gain * peak_e) + offset if gain else truth * 100.0
    return frame.astype(np.float32), true_level


@pytest.mark.parametrize(("name", "peak_e", "gain", "offset", "read"), CASES)
def test_simulated_counts(truth, name, peak_e, gain, offset, read):
    frame, level = counted(truth, peak_e, gain, offset, read)
    model = estimate_noise(frame)
    assert model.in_distribution, model.reason
    assert model.gain_dn == pytest.approx(gain, abs=4 * model.gain_sigma_dn)
    assert model.gain_sigma_dn < 0.35 * max(gain, 1.0)
    known = NoiseModel(gain, offset, read)
    for at in np.percentile(level, [20, 50, 80]):
        assert float(model.variance_dn2(at) / known.variance_dn2(at)) == pytest.approx(1, abs=0.12)


def test_said_errors_hold_over_many_frames(truth):
    pulls = []
    for seed in range(20):
        frame, level = counted(truth, 60.0, 1.0, 0.0, 2.0, seed)
        model = estimate_noise(frame)
        true = float(level.mean()) + 4.0
        error = float(model.variance_dn2(level.mean())) / true - 1.0
        pulls.append(error / model.variance_sigma_ratio)
    assert 0.3 < math.sqrt(np.mean(np.square(pulls))) < 1.8


def test_correlated_noise_is_flagged_and_texture_is_not(truth):
    frame, _ = counted(truth, 60.0, 1.0, 0.0, 0.0)
    blurred = cv2.GaussianBlur(frame, (0, 0), 0.6)
    assert estimate_noise(frame).in_distribution
    answer = estimate_noise(blurred)
    assert not answer.in_distribution
    assert "not white" in answer.reason


def test_one_level_says_that_gain_is_not_seen():
    frame = np.random.default_rng(0).normal(50.0, 3.0, (128, 128)).astype(np.float32)
    model = estimate_noise(frame)
    assert model.gain_dn == 0.0 or model.gain_sigma_dn > 0.2 * model.gain_dn
    assert model.sigma_dn(50.0) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("value", [0, 255])
def test_a_constant_frame_breaks_nothing(value):
    model = estimate_noise(np.full((64, 64), value, dtype=np.uint8))
    assert not model.in_distribution
    assert math.isfinite(model.sigma_dn(value))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((8, 64), np.uint8),
        np.zeros((64, 64), np.int32),
        np.full((64, 64), np.nan, np.float32),
    ],
)
def test_what_is_no_frame_is_refused(frame):
    with pytest.raises(BadImage):
        estimate_noise(frame)


def test_real_frames(shared_data):
    folder = shared_data / "micrographs"
    if not folder.is_dir():
        pytest.skip(f"no micrographs at {folder}")
    # Raw detector frames are white; the oxide set came through the instrument's own filter.
    for name in ("sem_superalloy/spot2_0d_0.png", "sem_superalloy/pt2_15kx_3kv_7.png"):
        model = estimate_noise(read_grey(folder / name))
        assert model.in_distribution, model.reason
        assert model.variance_sigma_ratio < 0.05
    # Twice the noise put upon a frame is found again: what was there before and what was added.
    frame = read_grey(folder / "sem_superalloy/spot2_0d_0.png").astype(np.float32)
    before = estimate_noise(frame).sigma_dn(float(frame.mean()))
    more = frame + np.random.default_rng(0).normal(0, 2 * before, frame.shape).astype(np.float32)
    after = estimate_noise(more).sigma_dn(float(frame.mean()))
    assert after == pytest.approx(math.sqrt(5.0) * before, rel=0.03)
    assert not estimate_noise(read_grey(folder / "sem_oxide/070516_1_S1160030.png")).in_distribution
