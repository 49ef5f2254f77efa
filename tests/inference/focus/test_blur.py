import numpy as np
import pytest

from inference.focus import blur
from inference.focus.spectrum import BANDS


@pytest.mark.parametrize("shape", blur.SHAPES[:4])
def test_shapes_share_their_second_moment(shape):
    """1 - M falls as 2 pi^2 f^2 sigma^2 with sigma^2 = R^2 / 4 an axis, for all of them."""
    f = np.array([0.01])
    fall = 1.0 - float(blur.transfer(shape, f, np.array([3.0]))[0])
    assert fall == pytest.approx(2 * np.pi**2 * 0.01**2 * 9 / 4, rel=0.02)


def test_disc_has_its_first_zero_where_a_jinc_has():
    f = np.linspace(0.01, 1.0, 2_000)
    values = blur.transfer("disc", f, np.array([1.0]))
    assert f[np.argmax(values < 0)] == pytest.approx(3.8317 / (2 * np.pi), abs=0.002)


def test_table_starts_at_one_and_falls_at_first():
    table = blur.table()
    assert table.shape[:2] == (len(blur.SHAPES), BANDS)
    assert table[:, :, 0] == pytest.approx(1.0, abs=0.03)
    steps = blur.radius_steps(np.array([0.0, 1.0, 5.0, 1e6], np.float32))
    assert np.all(np.diff(steps) > 0) and steps[-1] < table.shape[2] - 1
    low = table[:, 3, : int(steps[2])]  # a coarse band and small radii
    assert np.all(np.diff(low, axis=1) <= 0)
