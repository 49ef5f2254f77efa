"""What the views' bench calls a gap, and that a missing view is a row that says so."""

import cv2
import numpy as np
import pytest

from controller import app
from controller.bench import restore_views
from controller.bench.restore_views import gaps, islands


@pytest.fixture
def truth():
    return islands(1, 0)[:256, :256]


def test_the_truth_misses_nothing(truth):
    found = gaps(truth, truth)
    assert found.true == found.said > 100
    assert found.missed == found.false == 0


def test_a_blurred_image_misses_gaps_and_a_noisy_one_invents_them(truth):
    blurred = gaps(np.asarray(cv2.GaussianBlur(truth, (0, 0), 2.0)), truth)
    assert blurred.missed > 0.3 * blurred.true
    noise = np.random.default_rng(0).normal(0.0, 0.25, truth.shape).astype(np.float32)
    noisy = gaps(truth + noise, truth)
    assert noisy.false > 0.1 * noisy.said


def test_a_view_that_is_not_here_says_so(monkeypatch):
    monkeypatch.setattr(app, "computed_view", lambda name: None)
    found = restore_views.rows(True, 1)
    assert [row.value for row in found] == [None, None]
    assert all("scopeloop train restore --task" in row.note for row in found)
