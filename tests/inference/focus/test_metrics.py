"""Classical measures: what is taken off, what cancels, and that they peak in focus."""

import cv2
import numpy as np
import pytest

from inference.api import BadImage
from inference.focus.metrics import (
    METRICS,
    NAMES,
    Grey,
    Metric,
    Normaliser,
    Preparation,
    noise_variance,
)

_QUADRATIC_WITH_NOISE = (
    "brenner",
    "tenengrad",
    "squared-gradient",
    "laplacian",
    "modified-laplacian",
    "normalised-variance",
    "gradient-energy",
)


def _object(seed: int = 1) -> Grey:
    rng = np.random.default_rng(seed)
    grains = cv2.GaussianBlur(rng.standard_normal((256, 256)).astype(np.float32), (0, 0), 2.0)
    return (100.0 + 30.0 * np.sign(grains)).astype(np.float32)


def _at(defocus: float, noise: float = 0.0, seed: int = 3) -> Grey:
    image = _object()
    if defocus:
        image = cv2.GaussianBlur(image, (0, 0), abs(defocus)).astype(np.float32)
    noisy = image + noise * np.random.default_rng([seed, int(10 * defocus) + 99]).standard_normal(
        image.shape
    )
    return noisy.astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_peaks_in_focus_and_falls_on_both_sides(name: str, noise: float) -> None:
    metric = Metric(name, Preparation(smooth_px=1.0))
    values = [metric(_at(z, noise)) for z in (-6.0, -3.0, -1.5, 0.0, 1.5, 3.0, 6.0)]
    assert int(np.argmax(values)) == 3
    assert values[:4] == sorted(values[:4])
    assert values[3:] == sorted(values[3:], reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_gain_cancels(name: str) -> None:
    image = _at(1.5, 5.0)
    metric = METRICS[name]
    assert metric(0.5 * image) == pytest.approx(metric(image), rel=2e-3)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "jpeg-size"])
def test_contrast_normaliser_cancels_offset_too(name: str) -> None:
    metric = Metric(name, Preparation(normaliser=Normaliser.CONTRAST))
    image = _at(1.5, 5.0)
    assert metric(2.0 * image + 70.0) == pytest.approx(metric(image), rel=2e-3)
    plain = METRICS[name]
    assert plain(image + 70.0) < 0.75 * plain(image)


@pytest.mark.parametrize("name", _QUADRATIC_WITH_NOISE)
@pytest.mark.parametrize("smooth_px", [0.0, 1.5])
def test_noise_alone_is_taken_off(name: str, smooth_px: float) -> None:
    rng = np.random.default_rng(5)
    frames = [(200.0 + 14.0 * rng.standard_normal((256, 256))).astype(np.float32) for _ in range(8)]
    metric = Metric(name, Preparation(smooth_px))
    raw = Metric(name, Preparation(smooth_px, takes_off_noise=False))
    left = np.mean([metric(frame) for frame in frames])
    assert abs(left) < 0.05 * np.mean([raw(frame) for frame in frames])


@pytest.mark.parametrize("name", ["vollath-f4", "vollath-f5"])
def test_smoothed_noise_is_taken_off_where_unsmoothed_needs_nothing(name: str) -> None:
    rng = np.random.default_rng(6)
    frames = [(200.0 + 14.0 * rng.standard_normal((256, 256))).astype(np.float32) for _ in range(8)]
    smoothed = np.mean([Metric(name, Preparation(1.5))(frame) for frame in frames])
    raw = np.mean([Metric(name, Preparation(1.5, False))(frame) for frame in frames])
    assert abs(smoothed) < 0.06 * raw
    assert abs(np.mean([METRICS[name](frame) for frame in frames])) < 2e-4  # of 14^2 / 200^2 = 5e-3


def test_noise_variance_is_read_from_under_the_structure() -> None:
    assert noise_variance(_at(2.0, 10.0)) == pytest.approx(100.0, rel=0.08)
    assert noise_variance(_at(2.0)) < 2.0


def test_integers_and_colours_are_the_same_image() -> None:
    image = np.rint(_at(1.0)).astype(np.uint8)
    colour = np.repeat(image[..., None], 3, axis=-1)
    for name in NAMES:
        assert METRICS[name](image) == pytest.approx(METRICS[name](image.astype(np.float32)))
        assert METRICS[name](colour) == pytest.approx(METRICS[name](image), rel=1e-3)
        assert METRICS[name](image.astype(np.uint16)) == pytest.approx(METRICS[name](image))


@pytest.mark.parametrize("name", NAMES)
def test_black_and_flat_frames_are_no_error(name: str) -> None:
    assert METRICS[name](np.zeros((64, 64), np.uint8)) == 0.0
    assert METRICS[name](np.full((64, 64), 90, np.uint8)) >= 0.0


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 64), np.uint8), np.zeros((64, 64, 2), np.uint8), np.zeros((64, 64))]
)
def test_what_is_no_image_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(BadImage):
        METRICS["brenner"](bad)


def test_an_unknown_measure_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="tenengrad"):
        Metric("sharpest")(np.zeros((64, 64), np.uint8))


def test_label_says_what_was_prepared() -> None:
    metric = Metric("brenner", Preparation(2.0, normaliser=Normaliser.CONTRAST))
    assert metric.label == "brenner/contrast, smoothed 2 px"
