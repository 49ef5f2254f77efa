"""The colour of noise: told from a frame, white where it is white, refused by another law."""

import cv2
import numpy as np
import pytest

from inference.restore.api import NoiseModel
from inference.restore.colour import WHITE, Colour, mixed, noise_colour, noise_for_filters
from inference.restore.guard import coloured
from inference.restore.noise import estimate_noise

NOISE = NoiseModel(0.0, 0.0, 5.0)


def drawn(colour, seed=0, side_px=512):
    white = np.random.default_rng(seed).standard_normal((side_px, side_px)).astype(np.float32)
    return (200.0 + 5.0 * coloured(white, colour)).astype(np.float32)


@pytest.mark.parametrize("across_down", [(0.0, 0.0), (2.0, 2.0), (8.0, 0.0)])
def test_it_is_told_from_one_frame(across_down):
    told = noise_colour(drawn(Colour(*across_down, 1.0)), NOISE)
    assert told.across_px2 == pytest.approx(across_down[0], abs=0.9)
    assert told.down_px2 == pytest.approx(across_down[1], abs=0.9)


def test_noise_of_that_colour_has_that_power():
    colour = Colour(4.0, 1.0, 1.0)
    rest = (drawn(colour) - 200.0) / 5.0
    power = np.square(cv2.dct(rest)) / colour.power(512, 512)
    for place in (np.s_[8:64, 8:64], np.s_[300:, 300:], np.s_[8:64, 300:], np.s_[300:, 8:64]):
        assert float(power[place].mean()) == pytest.approx(1.0, abs=0.08)


def test_a_blurred_frame_follows_another_law():
    assert noise_colour(cv2.GaussianBlur(drawn(WHITE), (0, 0), 1.5), NOISE) is None
    assert noise_colour(drawn(WHITE, side_px=32), NOISE) is None


def test_filters_are_told_of_more_noise():
    colour = Colour(2.0, 2.0, 1.4)
    told = colour.for_filters(NoiseModel(2.0, 10.0, 3.0))
    ratio = float(told.variance_dn2(50.0)) / float(NoiseModel(2.0, 10.0, 3.0).variance_dn2(50.0))
    assert 1.1 < ratio < 1.4
    assert WHITE.for_filters(NOISE) == NOISE


def test_estimates_are_mixed():
    one, other = Colour(2.0, 0.0, 1.0), Colour(4.0, 1.0, 2.0)
    assert mixed(None, one, 0.5) == one
    assert mixed(one, None, 0.5) == one
    assert mixed(one, other, 0.5) == Colour(3.0, 0.5, 1.5)


def test_a_white_frame_is_left_alone_and_a_coloured_one_is_not():
    for colour, low, high in ((WHITE, 0.97, 1.03), (Colour(2.0, 2.0, 1.0), 1.15, 1.45)):
        frame = drawn(colour)
        told = noise_for_filters(frame)
        assert told.in_distribution
        ratio = told.sigma_dn(200.0) ** 2 / estimate_noise(frame).sigma_dn(200.0) ** 2
        assert low < ratio < high
