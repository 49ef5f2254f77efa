"""The part of a frame to focus on: where the structure is, whatever the light does."""

import cv2
import numpy as np
import pytest

from inference.focus.window import middle_window, telling_window


def scene(noise: float = 2.0, shade: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(3)
    h, w = 800, 1_280
    slope = 1.0 + shade * np.linspace(-1.0, 1.0, w)[None, :]
    return 90.0 * slope + noise * rng.standard_normal((h, w))


def with_texture(grey: np.ndarray, row: int, col: int, blur_px: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(4)
    patch = np.zeros_like(grey)
    patch[row : row + 120, col : col + 120] = 40.0 * rng.random((120, 120)).round()
    patch = cv2.resize(cv2.resize(patch, None, fx=0.25, fy=0.25), grey.shape[::-1])
    return grey + (cv2.GaussianBlur(patch, (0, 0), blur_px) if blur_px else patch)


def frame(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("shade", [0.0, 0.4])
@pytest.mark.parametrize("blur_px", [0.0, 12.0])
def test_structure_is_found_sharp_or_blurred_under_shading(shade: float, blur_px: float) -> None:
    found = telling_window(frame(with_texture(scene(shade=shade), 120, 1_000, blur_px)), 512, 8)
    assert found.row <= 120
    assert found.col + found.side_px >= 1_120
    assert found.of(frame(scene())).shape == (512, 512, 3)


def test_an_empty_field_is_looked_at_in_the_middle() -> None:
    # What noise alone does differs from place to place by much less than by what is asked for.
    assert telling_window(frame(scene(noise=0.0)), 512, 8) == middle_window((800, 1_280), 512)


def test_the_middle_stays_unless_another_place_shows_clearly_more() -> None:
    both = with_texture(with_texture(scene(), 340, 580), 340, 60)
    assert telling_window(frame(both), 512, 8) == middle_window((800, 1_280), 512)


def test_glare_is_no_structure() -> None:
    grey = with_texture(scene(), 500, 150)
    grey[80:260, 900:1_200] = 400.0  # saturated, with the strongest edges of all
    found = telling_window(frame(grey), 512, 8)
    assert found.col < 300
    assert telling_window(frame(grey), 512).col > 300  # where nothing is known of the depth


def test_a_small_frame_is_looked_at_as_it_is() -> None:
    grey = frame(scene())[:300, :400]
    found = telling_window(grey, 512, 8)
    assert (found.side_px, found.row) == (300, 0)
