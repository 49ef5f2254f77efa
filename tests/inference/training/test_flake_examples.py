"""Labels as the network learns them."""

import numpy as np
import pytest

from inference.api import Calibration
from inference.flakes.evidence import CLASSES, PLANES
from inference.flakes.labelled import DIRT, SUBSTRATE, UNKNOWN, LabelledFrame
from inference.flakes.ladder import Optics, ladder
from inference.training.flake_examples import IGNORED, class_of_layers, example_of

NOMINAL = Calibration(90.0, (1.0, 1.0, 1.0), 0.0, "nominal")


def a_frame(*, is_strange=False, tint=1.0, pixels=None) -> LabelledFrame:
    rng = np.random.default_rng(2)
    layers = np.zeros((256, 256), dtype=np.int16)
    instances = np.zeros((256, 256), dtype=np.int32)
    layers[64:128, 64:128], instances[64:128, 64:128] = 2, 1
    layers[64:128, 128:161], instances[64:128, 128:161] = 2, 2
    layers[180:200, 20:60] = DIRT
    layers[180:200, 100:120] = UNKNOWN
    steps = ladder("graphene", NOMINAL, Optics())
    light = np.array([150.0, 120.0, 140.0]) * (1.0 + (layers == 2)[..., None] * steps.at(2))
    light[layers == SUBSTRATE] *= tint
    image = np.clip(light + rng.normal(0, 0.7, light.shape), 0, 255).astype(np.uint8)
    return LabelledFrame(
        image if pixels is None else pixels, 8, 300.0, "graphene", NOMINAL, Optics(),
        layers, instances, np.array([0, 2, 2], dtype=np.int16), is_strange,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        (0, "substrate"), (1, "1"), (4, "4"), (5, "5-6"), (6, "5-6"),
        (7, "thick"), (900, "thick"), (DIRT, "dirt"),
    ],
)  # fmt: skip
def test_classes(layers, name):
    assert CLASSES[class_of_layers(np.array([layers]))[0]] == name


def test_unknown_is_ignored():
    assert class_of_layers(np.array([UNKNOWN]))[0] == IGNORED


def test_targets():
    example = example_of(a_frame())
    assert example is not None
    assert example.planes.shape == (PLANES, 64, 64)
    assert example.planes.dtype == np.int8
    assert example.classes[40, 40] == 2
    assert example.classes[5, 5] == 0
    assert CLASSES[example.classes[95, 20]] == "dirt"
    assert example.classes[95, 55] == IGNORED
    # Column 160 of the photograph is the left half of a pixel whose right half is bare.
    assert example.classes[40, 80] == IGNORED
    assert example.classes[40, 81] == 0


def test_borders_part_equal_neighbours():
    example = example_of(a_frame())
    assert example is not None
    assert example.borders[40, 63] == example.borders[40, 64] == 1
    assert example.borders[40, 50] == 0
    assert example.borders[5, 5] == 0


def test_small_flakes_weigh_more():
    example = example_of(a_frame())
    assert example is not None
    assert example.weights[40, 75] > example.weights[40, 40] > 0


def test_strange_frames_teach_no_classes():
    example = example_of(a_frame(is_strange=True))
    assert example is not None
    assert example.is_strange
    assert np.all(example.classes == IGNORED)


def test_a_frame_without_light_is_no_example():
    assert example_of(a_frame(pixels=np.zeros((256, 256, 3), dtype=np.uint8))) is None
