"""A sample that has flat places, edges and a lattice, in units of its largest value."""

import cv2
import numpy as np
import pytest


def scene(side_px=256, seed=3):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side_px, :side_px].astype(np.float32)
    image = 0.25 + 0.25 * x / side_px
    for _ in range(12):
        cy, cx = rng.uniform(0, side_px, 2)
        image[np.hypot(y - cy, x - cx) < rng.uniform(8, 24)] = rng.uniform(0.2, 0.9)
    lattice = np.cos(x * 0.9) + np.cos(0.45 * x + 0.78 * y) + np.cos(0.45 * x - 0.78 * y)
    image[: side_px // 3] += 0.03 * lattice[: side_px // 3]
    return cv2.GaussianBlur(np.clip(image, 0.02, 1.0), (0, 0), 0.8).astype(np.float32)


@pytest.fixture(scope="session")
def truth():
    return scene()
