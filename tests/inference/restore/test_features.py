"""Spots: found where electrons say so, with honest errors, and hardly ever in noise."""

import numpy as np
import pytest

from inference.restore.api import NoiseModel
from inference.restore.classical import Gaussian
from inference.restore.colour import Colour
from inference.restore.features import features, llr_of_chance
from inference.restore.guard import coloured

COUNTS = NoiseModel(1.0, 0.0, 0.0)
SIZE_PX = 1.6
LEVEL = 40.0


def spots(places, strength, side_px=192):
    y, x = np.mgrid[:side_px, :side_px]
    image = np.full((side_px, side_px), LEVEL)
    for py, px in places:
        image += strength * np.exp(-((y - py) ** 2 + (x - px) ** 2) / (2.0 * SIZE_PX**2))
    return image


def grid(side_px=192, step_px=24, seed=0):
    rng = np.random.default_rng(seed)
    at = np.arange(step_px, side_px - step_px + 1, step_px)
    return np.array([(y, x) for y in at for x in at]) + rng.uniform(-0.5, 0.5, (len(at) ** 2, 2))


def nearest(found, place):
    gaps = [np.hypot(one.y_px - place[0], one.x_px - place[1]) for one in found]
    return found[int(np.argmin(gaps))], min(gaps)


@pytest.mark.parametrize("noise", [COUNTS, NoiseModel(0.0, 0.0, np.sqrt(LEVEL))], ids=["p", "g"])
def test_spots_are_found_where_they_are(noise):
    places, strength = grid(), 20.0
    truth = spots(places, strength)
    frame = np.random.default_rng(1).poisson(truth).astype(np.float32)
    least = llr_of_chance(1e7, SIZE_PX)
    found = features(frame, truth.astype(np.float32), noise, SIZE_PX, least_llr=least)
    supported = [one for one in found if one.is_supported]
    assert len(supported) >= 0.95 * len(places)
    strengths = [nearest(supported, place)[0].strength_dn for place in places]
    assert np.mean(strengths) == pytest.approx(strength, rel=0.06)
    pulls = [
        (one.strength_dn - strength) / one.strength_sigma_dn
        for one, gap in (nearest(found, place) for place in places)
        if gap < 1.0
    ]
    assert np.std(pulls) == pytest.approx(1.0, abs=0.35)


def test_positions_are_as_good_as_said_and_no_better():
    places, strength = grid(), 30.0
    truth = spots(places, strength)
    frame = np.random.default_rng(2).poisson(truth).astype(np.float32)
    restored = Gaussian(SIZE_PX).restore(frame, COUNTS).image
    found = features(frame, restored, COUNTS, SIZE_PX, least_llr=8.0)
    pulls = []
    for place in places:
        one, gap = nearest(found, place)
        if gap < 2.0:
            pulls += [(one.y_px - place[0]) / one.sigma_px, (one.x_px - place[1]) / one.sigma_px]
    assert len(pulls) > 0.9 * 2 * len(places)
    assert 0.8 < float(np.std(pulls)) < 1.8


def test_invented_spots_are_not_supported():
    places = grid(seed=3)
    frame = np.random.default_rng(3).poisson(np.full((192, 192), LEVEL)).astype(np.float32)
    invented = spots(places, 20.0).astype(np.float32)
    found = features(
        frame, invented, COUNTS, SIZE_PX, least_llr=llr_of_chance(frame.size * 10, SIZE_PX)
    )
    assert len(found) >= len(places)
    assert not any(one.is_supported for one in found)


def test_dark_spots_are_found_as_dark_ones():
    truth = spots([(60.0, 70.0)], -25.0)
    frame = np.random.default_rng(4).poisson(truth).astype(np.float32)
    dark = features(frame, truth.astype(np.float32), COUNTS, SIZE_PX, sign=-1, least_llr=12.0)
    assert dark[0].is_supported
    assert dark[0].strength_dn < 0.0
    bright = features(frame, truth.astype(np.float32), COUNTS, SIZE_PX, least_llr=12.0)
    assert not any(one.is_supported for one in bright)


@pytest.mark.parametrize("size_px", [1.3, 2.5])
def test_false_spots_in_noise_are_as_few_as_asked(size_px):
    """All extrema of lightly smoothed noise are asked about: the worst that could be proposed."""
    rng = np.random.default_rng(5)
    asked, count = 6.0, 0
    frames, side_px = 12, 256
    least = llr_of_chance(frames * side_px**2, size_px, asked)
    for _ in range(frames):
        frame = rng.poisson(np.full((side_px, side_px), LEVEL)).astype(np.float32)
        smooth = Gaussian(0.9 * size_px).restore(frame, COUNTS).image
        found = features(frame, smooth, COUNTS, size_px, least_llr=least)
        count += sum(one.is_supported for one in found)
    assert 0.1 * asked <= count <= 2.0 * asked


def test_false_spots_in_coloured_noise_are_as_few():
    colour = Colour(10.0, 10.0, 2.5)
    white = np.random.default_rng(6).standard_normal((512, 512)).astype(np.float32)
    frame = (200.0 + 5.0 * coloured(white, colour)).astype(np.float32)
    noise = NoiseModel(0.0, 0.0, 5.0)
    smooth = Gaussian(1.5).restore(frame, noise).image
    least = llr_of_chance(frame.size, SIZE_PX, 1.0)
    counts = [
        sum(
            one.is_supported
            for one in features(frame, smooth, noise, SIZE_PX, least_llr=least, colour=each)
        )
        for each in (Colour(0.0, 0.0, 1.0), colour)
    ]
    assert counts[1] <= 4 < counts[0]


def test_an_empty_frame_has_none():
    frame = np.full((64, 64), 10.0, np.float32)
    assert features(frame, frame, COUNTS, SIZE_PX, least_llr=10.0) == ()
