"""What the views are taught: blur and coarser pixels that follow their own formulas."""

import math

import numpy as np
import pytest

from inference.training.restore_tasks import (
    Blur,
    Denoise,
    Magnify,
    Refocus,
    coarser,
    defocused,
    kernel,
)


def _spread_px(plane):
    """Second moments of a kernel, (xx, yy)."""
    side = plane.shape[0]
    at = np.arange(side) - side // 2
    return float((plane * at[None, :] ** 2).sum()), float((plane * at[:, None] ** 2).sum())


@pytest.mark.parametrize("radius_px", [3.0, 4.0, 5.0])
def test_a_point_out_of_focus_is_an_even_disc(radius_px):
    plane = kernel(Blur(radius_px, 0.0, 0.3, (0.0, 0.0), 0.0), radius_px)
    assert plane.sum() == pytest.approx(1.0)
    # An even disc has r^2 / 4 along each axis; a pixel adds a twelfth.
    for spread in _spread_px(plane):
        assert spread == pytest.approx(radius_px**2 / 4 + 1 / 12, rel=0.03)


def test_astigmatism_stretches_one_way_and_the_other_beyond_focus():
    over = _spread_px(kernel(Blur(3.0, 1.5, 0.0, (0.0, 0.0), 0.0), 3.0))
    under = _spread_px(kernel(Blur(-3.0, 1.5, 0.0, (0.0, 0.0), 0.0), -3.0))
    assert over[0] > 3 * over[1] and under[1] > 3 * under[0]


def test_in_focus_nothing_is_changed():
    plane = kernel(Blur(0.0, 0.0, 0.0, (0.0, 0.0), 0.0), 0.0)
    assert plane[plane.shape[0] // 2, plane.shape[1] // 2] == pytest.approx(1.0)


def test_a_tilted_sample_is_sharper_on_one_side():
    rng = np.random.default_rng(3)
    clean = rng.random((64, 128), dtype=np.float32)
    seen = defocused(clean, Blur(2.0, 0.0, 0.0, (2.0, 0.0), 0.0))
    assert seen[:, :24].std() > 2 * seen[:, -24:].std()
    assert seen.mean() == pytest.approx(clean.mean(), rel=0.01) and seen.min() >= 0.0


def test_coarser_pixels_hold_the_mean_of_four():
    clean = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_allclose(coarser(clean, 0.0), [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize("task", [Denoise(), Refocus(), Magnify()])
def test_truth_is_the_sharp_scene_at_its_dose(task):
    clean = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    drawn = task.expose(clean, 50.0, np.random.default_rng(1), plain=True)
    np.testing.assert_allclose(drawn.truth, clean * 50.0, rtol=1e-6)
    assert [side * task.scale for side in drawn.noisy.shape] == [64, 64]
    assert math.isclose(drawn.noisy.mean(), drawn.truth.mean(), rel_tol=0.05)
