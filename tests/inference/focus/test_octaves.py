import cv2
import numpy as np
import pytest

from inference.focus.octaves import OCTAVE_FEATURES, OCTAVES, octave_features

_PER_OCTAVE = 9  # of each octave: its energy, six ranks of blocks, two of its peaks
_WIDTHS = OCTAVES * _PER_OCTAVE + OCTAVES - 1


@pytest.fixture
def plane():
    rng = np.random.default_rng(1)
    shapes = np.zeros((256, 256), np.float32)
    for x, y, r in rng.integers(8, 240, (60, 3)):
        cv2.circle(shapes, (int(x), int(y)), 4 + int(r) // 16, float(rng.uniform(20, 200)), -1)
    return shapes + 20.0


def _blurred(plane, sigma_px):
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma_px), np.float32)


@pytest.mark.parametrize(("gain", "offset"), [(3.0, 0.0), (0.01, 0.0), (1.0, 500.0), (40.0, 90.0)])
def test_gain_and_offset_drop_out(plane, gain, offset):
    other = octave_features(plane * np.float32(gain) + np.float32(offset))
    assert other == pytest.approx(octave_features(plane), abs=2e-2)


def test_fine_octaves_and_steep_edges_go_with_blur(plane):
    rows = [octave_features(_blurred(plane, s)) for s in (0.5, 1.0, 2.0, 4.0, 8.0)]
    finest = [row[0] for row in rows]
    widths = [row[_WIDTHS + 1] for row in rows]
    assert finest == sorted(finest, reverse=True)
    assert widths == sorted(widths)
    assert np.all(np.diff(widths)[:3] > 0.1)


def test_width_of_an_edge_is_its_own_whatever_else_is_there(plane):
    alone = np.full((256, 256), 20.0, np.float32)
    alone[:, 100:] = 150.0
    both = alone.copy()
    both[:, 140:] += 40.0 * np.sin(np.arange(116) / 9.0)[None, :]
    for sigma_px in (1.0, 2.5):
        one, two = (octave_features(_blurred(p, sigma_px)) for p in (alone, both))
        assert one[_WIDTHS + 1] == pytest.approx(two[_WIDTHS + 1], abs=0.08)


def test_few_strong_edges_are_told_from_texture(plane):
    texture = np.random.default_rng(2).normal(100.0, 10.0, (256, 256)).astype(np.float32)
    one_disc = np.full((256, 256), 50.0, np.float32)
    cv2.circle(one_disc, (60, 60), 20, 200.0, -1)
    of_texture, of_disc = octave_features(texture), octave_features(one_disc)
    assert of_disc[1] > of_texture[1] + 0.5  # the block of most energy, over the mean
    assert of_disc[7] > of_texture[7] + 1.0  # the fourth moment


@pytest.mark.parametrize("value", [0.0, 7.0, 65_535.0])
def test_a_flat_frame_is_finite(value):
    row = octave_features(np.full((256, 256), value, np.float32))
    assert row.shape == (OCTAVE_FEATURES,) and row.dtype == np.float32
    assert np.all(np.isfinite(row)) and np.abs(row).max() <= 4.0


def test_clipping_shows():
    rng = np.random.default_rng(3)
    plain = rng.normal(100.0, 20.0, (256, 256)).astype(np.float32)
    top = octave_features(np.minimum(plain, 115.0).astype(np.float32))[-2]
    assert top > octave_features(plain)[-2] + 1.0
