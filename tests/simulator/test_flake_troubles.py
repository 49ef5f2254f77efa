"""Chips full of one kind of trouble: what they show is what their truth says."""

import numpy as np
import pytest

from inference.flakes.labelled import DIRT, SUBSTRATE, UNKNOWN
from simulator.flake_frames import labelled_frame
from simulator.flake_troubles import TROUBLES, troubled_chip

SIDE_PX = 512


def frame(trouble, number=0):
    return labelled_frame(4, number, "train", SIDE_PX, material="graphene", trouble=trouble)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_same_arguments_give_the_same_bytes_and_each_its_own(trouble):
    one, again, plain = frame(trouble), frame(trouble), frame(None)
    assert np.array_equal(one.pixels, again.pixels)
    assert np.array_equal(one.instances, again.instances)
    assert not np.array_equal(one.instances, plain.instances)


def test_specks_are_dirt_and_no_terrace():
    shown = frame("specks")
    assert len(shown.instance_layers) == 1
    assert np.mean(shown.layers == DIRT) > 0.003
    rough = shown.pixels[shown.layers == DIRT].astype(np.float32).std(axis=0)
    bare = shown.pixels[shown.layers == SUBSTRATE].astype(np.float32).std(axis=0)
    assert (rough > 1.5 * bare).any()


def test_cracks_show_bare_substrate_and_part_terraces():
    """A wide crack is labelled substrate, and there are more terraces than flakes."""
    rng = np.random.default_rng(2)
    chip = troubled_chip(rng, "cracks", "graphene", SIDE_PX, 2.6)
    flakes = chip.truth().flakes
    assert sum(len(flake.terraces) for flake in flakes) > len(flakes)
    for flake in flakes:
        assert len({terrace.layers for terrace in flake.terraces}) == 1


def test_tips_are_one_terrace_longer_than_wide():
    rng = np.random.default_rng(2)
    flakes = troubled_chip(rng, "tips", "graphene", SIDE_PX, 2.6).truth().flakes
    assert flakes
    for flake in flakes:
        (terrace,) = flake.terraces
        spans_um = np.ptp(terrace.polygon_um, axis=0)
        assert terrace.area_um2 < 0.65 * spans_um.prod()


def test_rims_belong_to_their_terrace_and_their_colour_is_nobodys():
    shown = frame("rims", 1)
    rims = (shown.layers == UNKNOWN) & (shown.instances > 0)
    assert 0.0 < rims.sum() < 0.5 * (shown.instances > 0).sum()


def test_plates_are_thicker_than_what_is_counted():
    shown = frame("plates")
    assert len(shown.instance_layers) > 3
    assert shown.instance_layers[1:].min() > 12
