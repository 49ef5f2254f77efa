"""Photographs of simulated laboratories: their truth holds, and the two domains differ."""

import numpy as np
import pytest

from inference.flakes.labelled import DIRT, SUBSTRATE, UNKNOWN
from inference.flakes.materials import MATERIALS
from simulator.flake_frames import INDEX_CURVES, labelled_frame, labelled_frames

SIDE_PX = 512


@pytest.fixture(scope="module")
def frames():
    return [labelled_frame(3, k, "train", SIDE_PX, material="mos2") for k in range(6)]


def test_same_arguments_give_the_same_bytes(frames):
    again = labelled_frame(3, 2, "train", SIDE_PX, material="mos2")
    assert np.array_equal(again.pixels, frames[2].pixels)
    assert np.array_equal(again.instances, frames[2].instances)
    assert again.calibration == frames[2].calibration


def test_frames_and_domains_differ(frames):
    assert not np.array_equal(frames[0].pixels, frames[1].pixels)
    other = labelled_frame(3, 2, "test", SIDE_PX, material="mos2")
    assert not np.array_equal(other.pixels, frames[2].pixels)


def test_domains_share_no_index():
    for material, measurements in INDEX_CURVES["train"].items():
        assert not set(measurements) & set(INDEX_CURVES["test"].get(material, ()))
    for domain in INDEX_CURVES.values():
        for material, measurements in domain.items():
            assert all(MATERIALS[material].with_curve(m) for m in measurements)
    assert set(INDEX_CURVES["test"]) - set(INDEX_CURVES["train"]), "no material is kept back"


def test_truth_is_consistent(frames):
    for frame in frames:
        assert frame.pixels.shape == (SIDE_PX, SIDE_PX, 3)
        assert frame.layers.shape == frame.instances.shape == (SIDE_PX, SIDE_PX)
        inside = (frame.instances > 0) & (frame.layers > 0)
        told = frame.instance_layers[frame.instances]
        assert np.array_equal(frame.layers[inside], told[inside])
        assert not np.any(frame.instances[frame.layers == DIRT])
        assert not np.any(frame.instances[frame.layers == SUBSTRATE])
        assert frame.layers.min() >= UNKNOWN


def test_flakes_are_where_the_truth_says(frames):
    """Inside a terrace the colour differs from the substrate's, beside it, it does not."""
    judged = 0
    for frame in frames:
        pixels = frame.pixels.astype(np.float32)
        bare = np.median(pixels[frame.layers == SUBSTRATE], axis=0)
        for number in range(1, len(frame.instance_layers)):
            mask = (frame.instances == number) & (frame.layers > 0)
            if mask.sum() < 400 or frame.instance_layers[number] > 3:
                continue
            contrast = np.abs(np.median(pixels[mask], axis=0) / bare - 1.0).max()
            assert contrast > 0.05, f"{frame.instance_layers[number]} layers"
            judged += 1
    assert judged >= 3


def test_strange_frames_say_so():
    frames = list(labelled_frames(5, "train", 12, 256, strange_share=0.5))
    assert 0 < sum(f.is_strange for f in frames) < 12
    blurred = labelled_frame(5, 0, "test", 256, oddity="blur")
    assert blurred.is_strange
    for oddity in ("texture", "residue"):
        assert labelled_frame(5, 1, "train", 256, oddity=oddity).is_strange
