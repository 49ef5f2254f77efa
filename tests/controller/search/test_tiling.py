"""Tiles: all of the chip, nothing but the chip, in a short order."""

import itertools
import math

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import Point, Polygon, box

from controller.search.tiling import (
    cover_polygon,
    cover_rectangle,
    trapezoid_move_time,
    travel_time_s,
)
from drivers.api import Kinematics

MOVE = trapezoid_move_time(Kinematics(20_000.0, 100_000.0, 0.05, 0.1))
FIELD_UM = (737.0, 461.0)


def boxes_of(plan):
    return [box(*plan.box_um(i)) for i in range(len(plan.tiles))]


@st.composite
def outlines(draw):
    """Chips as they break: anything from a sliver to a star, turned any way."""
    count = draw(st.integers(3, 9))
    radii = draw(st.lists(st.floats(300, 4_000), min_size=count, max_size=count))
    angles = np.arange(count) * 2 * np.pi / count + draw(st.floats(0, 6.3))
    shift = draw(st.tuples(st.floats(-5e4, 5e4), st.floats(-5e4, 5e4)))
    return Polygon(
        [
            (shift[0] + r * np.cos(a), shift[1] + r * np.sin(a))
            for r, a in zip(radii, angles, strict=True)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(
    outline=outlines(),
    overlap=st.floats(0, 0.4),
    margin_um=st.floats(0, 150),
    seed=st.integers(0, 999),
)
def test_every_point_is_seen_and_no_tile_misses_the_chip(outline, overlap, margin_um, seed):
    plan = cover_polygon(outline, *FIELD_UM, overlap, MOVE, edge_margin_um=margin_um)
    target = outline.buffer(-margin_um, join_style="mitre") if margin_um else outline
    assume(target.area > 1.0)
    boxes = boxes_of(plan)
    assert shapely.union_all(boxes).buffer(1e-3).covers(target)
    assert all(tile.intersects(target.buffer(1e-3)) for tile in boxes)
    tree = shapely.STRtree(boxes)
    for x_um, y_um in np.random.default_rng(seed).uniform(
        target.bounds[:2], target.bounds[2:], (50, 2)
    ):
        if target.buffer(-1e-3).contains(Point(x_um, y_um)):
            assert len(tree.query(Point(x_um, y_um), predicate="intersects")) > 0
    assert [tile.index for tile in plan.tiles] == list(range(len(plan.tiles)))
    assert len({(tile.row, tile.column) for tile in plan.tiles}) == len(plan.tiles)


@settings(max_examples=40, deadline=None)
@given(outline=outlines(), overlap=st.floats(0.02, 0.4))
def test_neighbours_overlap_by_what_was_asked_at_least(outline, overlap):
    plan = cover_polygon(outline.convex_hull, *FIELD_UM, overlap, MOVE)
    by_row = {}
    for tile in plan.tiles:
        by_row.setdefault(tile.row, []).append(tile)
    along_x = len({tile.y_um for tile in plan.tiles}) == len(by_row)
    side, get = (FIELD_UM[0], lambda t: t.x_um) if along_x else (FIELD_UM[1], lambda t: t.y_um)
    for row in by_row.values():
        places = sorted(get(tile) for tile in row)
        assert all(b - a <= side * (1 - overlap) + 1e-6 for a, b in itertools.pairwise(places))


@pytest.mark.parametrize("angle_deg", [0.0, 7.0, 23.0, 45.0, 88.0])
def test_few_tiles_are_wasted(angle_deg):
    chip = affinity.rotate(box(0, 0, 10_000, 8_000), angle_deg)
    plan = cover_polygon(chip, *FIELD_UM, 0.06, MOVE)
    least = chip.area / (FIELD_UM[0] * FIELD_UM[1] * 0.94**2)
    rim = chip.length / min(FIELD_UM)
    assert len(plan.tiles) < least + 0.75 * rim


@settings(max_examples=30, deadline=None)
@given(outline=outlines())
def test_the_route_is_near_its_bound(outline):
    chip = outline.convex_hull
    plan = cover_polygon(chip, *FIELD_UM, 0.06, MOVE)
    assume(len(plan.tiles) >= 30)
    # No move can be shorter than to the nearest other tile.
    places = np.array([(tile.x_um, tile.y_um) for tile in plan.tiles])
    step_s = MOVE(places[:, None, 0] - places[None, :, 0], places[:, None, 1] - places[None, :, 1])
    np.fill_diagonal(step_s, np.inf)
    bound_s = np.sum(np.sort(step_s.min(axis=1))[:-1])
    assert plan.travel_s <= 1.25 * bound_s
    assert plan.travel_s == pytest.approx(travel_time_s(places.tolist(), MOVE))


def test_a_square_chip_is_mown_within_two_per_cent_of_the_bound_with_settling():
    plan = cover_polygon(box(0, 0, 10_000, 10_000), *FIELD_UM, 0.06, MOVE)
    pitch_s = float(MOVE(np.array([0.0]), np.array([FIELD_UM[1] * 0.94]))[0])
    bound_s = (len(plan.tiles) - 1) * pitch_s + 0.06 * len(plan.tiles)
    assert plan.scan_time_bound_s(0.06) <= 1.02 * bound_s


def test_moves_along_the_faster_direction():
    # One axis costs ten times the other: the serpentine must run along the cheap one.
    def slow_x(dx_um, dy_um):
        return np.maximum(np.abs(dx_um) * 10.0, np.abs(dy_um))

    def slow_y(dx_um, dy_um):
        return np.maximum(np.abs(dx_um), np.abs(dy_um) * 10.0)

    chip = box(0, 0, 5_000, 5_000)
    for move, same in ((slow_x, "x_um"), (slow_y, "y_um")):
        plan = cover_polygon(chip, 500.0, 500.0, 0.0, move)
        turns = sum(getattr(a, same) != getattr(b, same) for a, b in itertools.pairwise(plan.tiles))
        assert turns == 9


def test_it_begins_near_the_stage():
    chip = box(0, 0, 5_000, 4_000)
    for corner in ((0.0, 0.0), (5_000.0, 0.0), (5_000.0, 4_000.0), (0.0, 4_000.0)):
        plan = cover_polygon(chip, *FIELD_UM, 0.1, MOVE, start_um=corner)
        first = plan.tiles[0]
        assert math.dist((first.x_um, first.y_um), corner) < math.hypot(*FIELD_UM)


def test_two_islands_and_a_hole():
    two = shapely.union_all([box(0, 0, 1_000, 1_000), box(9_000, 0, 10_000, 1_000)])
    plan = cover_polygon(two, *FIELD_UM, 0.0, MOVE)
    assert all(tile.x_um < 1_500 or tile.x_um > 8_500 for tile in plan.tiles)
    frame = box(0, 0, 6_000, 6_000).difference(box(1_000, 1_000, 5_000, 5_000))
    plan = cover_polygon(frame, 500.0, 500.0, 0.0, MOVE)
    assert len(plan.tiles) < 0.7 * 144
    assert shapely.union_all(boxes_of(plan)).buffer(1e-3).covers(frame)


def test_a_chip_smaller_than_a_tile_is_one_tile():
    plan = cover_polygon(box(100, 100, 300, 200), *FIELD_UM, 0.1, MOVE)
    assert [(t.x_um, t.y_um) for t in plan.tiles] == [(200.0, 150.0)]
    assert plan.travel_s == 0.0
    assert plan.box_um(0) == (200 - 368.5, 150 - 230.5, 200 + 368.5, 150 + 230.5)


def test_a_margin_that_eats_the_chip_leaves_nothing():
    assert cover_polygon(box(0, 0, 100, 100), *FIELD_UM, 0.1, MOVE, edge_margin_um=60).tiles == ()
    assert cover_polygon(Polygon(), *FIELD_UM, 0.1, MOVE).tiles == ()


def test_an_overview_covers_its_rectangle():
    plan = cover_rectangle(-500, -400, 9_000, 8_000, 2_949.0, 1_843.0, 0.08, MOVE)
    assert shapely.union_all(boxes_of(plan)).buffer(1e-6).covers(box(-500, -400, 9_000, 8_000))
    assert len(plan.tiles) == 4 * 5
    with pytest.raises(ValueError, match="empty rectangle"):
        cover_rectangle(5, 0, 5, 10, 1.0, 1.0, 0.0, MOVE)


@pytest.mark.parametrize(
    ("width", "height", "overlap", "margin", "message"),
    [
        (0.0, 1.0, 0.1, 0.0, "field"),
        (1.0, math.nan, 0.1, 0.0, "field"),
        (1.0, 1.0, 1.0, 0.0, "overlap_ratio"),
        (1.0, 1.0, -0.1, 0.0, "overlap_ratio"),
        (1.0, 1.0, 0.1, -5.0, "edge_margin_um"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(width, height, overlap, margin, message):
    with pytest.raises(ValueError, match=message):
        cover_polygon(box(0, 0, 9, 9), width, height, overlap, MOVE, edge_margin_um=margin)


def test_the_time_of_a_move():
    # 100 um/s at 50 um/s2: 200 um of ramps.
    move = trapezoid_move_time(Kinematics(100.0, 50.0, 0.3, 0.1))
    seconds = move(np.array([0.0, 50.0, 200.0, -500.0, 50.0]), np.array([0.0, 0, 0, 0, 500.0]))
    assert seconds == pytest.approx([0.0, 2.0, 4.0, 7.0, 7.0])
