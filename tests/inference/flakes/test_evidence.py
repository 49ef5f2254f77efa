"""What the network is shown: right rungs, right places, no colours, no unit."""

import numpy as np
import pytest

from inference.api import Calibration
from inference.flakes.background import estimate_background, shrunk_half
from inference.flakes.evidence import PLANES, evidence, grid_shape, rungs, rungs_of
from inference.flakes.ladder import Optics, ladder

NOMINAL = Calibration(90.0, (1.0, 1.0, 1.0), 0.0, "nominal")
BARE = np.array([150.0, 120.0, 140.0])


def painted(material: str, squares: list[tuple[int, int, int, int]], shape=(256, 320)):
    """Squares of so many layers, (x, y, side, layers), on bare substrate with a little noise."""
    steps = ladder(material, NOMINAL, Optics())
    image = np.ones((*shape, 3)) * BARE
    for x, y, side, layers in squares:
        image[y : y + side, x : x + side] *= 1.0 + steps.at(layers)
    image += np.random.default_rng(4).normal(0.0, 0.8, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def shown(image, material="graphene"):
    half = shrunk_half(image)
    background = estimate_background(image, 255.0, half=half)
    assert background.reason == ""
    return evidence(half, background.inverse_half(), rungs(material, NOMINAL, Optics()), 255.0)


@pytest.mark.parametrize("material", ["graphene", "mos2", "hbn"])
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_nearest_rung_is_the_right_one(material, layers):
    planes = shown(painted(material, [(80, 80, 48, layers)] if layers else []), material)
    inside = planes[15:22, 22:30, 22:30].mean(axis=(1, 2))
    assert int(np.argmin(inside)) == layers


def test_thicker_crystals_share_classes():
    planes = shown(painted("graphene", [(32, 32, 96, 6), (160, 32, 96, 10)]))
    assert int(np.argmin(planes[15:22, 14:28, 14:28].mean(axis=(1, 2)))) == 5
    assert int(np.argmin(planes[15:22, 14:28, 46:60].mean(axis=(1, 2)))) == 6


def test_places_lie_where_they_should():
    planes = shown(painted("graphene", [(64, 128, 32, 2)]))
    away = planes[15]  # from the substrate's rung
    ys, xs = np.nonzero(away > 0.6)
    assert (xs.min(), xs.max()) == (16, 23)
    assert (ys.min(), ys.max()) == (32, 39)


def test_four_pixels_of_a_place_are_told_apart():
    image = painted("graphene", [])
    image[128:130, 130:132] = 60  # the right upper half-resolution pixel of place (32, 32)
    planes = shown(image)
    fine = planes[0:12, 32, 32].reshape(4, 3).mean(axis=1)
    assert int(np.argmin(fine)) == 1
    assert fine[1] < -0.5
    assert np.all(fine[[0, 2, 3]] > -0.2)


@pytest.mark.parametrize("shape", [(256, 320), (250, 310), (201, 203), (1200, 1920)])
def test_shape_and_bounds(shape):
    planes = shown(painted("graphene", [], shape))
    rows, columns = grid_shape(*shape)
    assert planes.shape == (PLANES, rows, columns)
    assert rows % 8 == columns % 8 == 0
    assert rows * 4 >= shape[0]
    assert columns * 4 >= shape[1]
    assert np.abs(planes).max() <= 1.0
    assert np.isfinite(planes).all()


def test_exposure_and_tint_drop_out():
    image = painted("graphene", [(64, 64, 96, 2)]).astype(np.float64)
    other = np.clip(np.round(image * [0.7, 1.2, 0.9]), 0, 255).astype(np.uint8)
    one, two = shown(image.astype(np.uint8)), shown(other)
    inside = (slice(15, 22), slice(20, 36), slice(20, 36))
    assert np.abs(one[inside].mean(axis=(1, 2)) - two[inside].mean(axis=(1, 2))).max() < 0.03


def test_saturation_is_told():
    image = painted("graphene", [])
    image[64:128, 64:128] = 255
    planes = shown(image)
    assert planes[30, 20:28, 20:28].min() == 1.0
    assert planes[30, 40:, :].max() == 0.0


def test_rungs_follow_the_ladder():
    steps = ladder("graphene", NOMINAL, Optics())
    found = rungs_of(steps)
    assert np.allclose(found.points[:7], steps.at(np.arange(7)))
    assert found.first_contrast == pytest.approx(float(np.linalg.norm(steps.at(1))), rel=1e-5)
    assert found.spacing.shape == (7,)
    assert found.spacing.min() > 0
