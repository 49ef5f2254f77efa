"""Merging against chips whose flakes are known: cut by tiles, shaken by a stage, and put together.

`seen_by` does what a scan does: each tile stands a little off where it says, sees what lies in its
field, and reports it where it believes to be.
"""

import time
from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from shapely import affinity
from shapely.geometry import Polygon, box

from controller.messages import Piece
from controller.search.merging import (
    MergingSettings,
    TerracePiece,
    group_flakes,
    merge,
    merge_terraces,
    terrace_piece,
)
from controller.search.tiling import cover_rectangle, trapezoid_move_time
from drivers.api import Kinematics

MOVE = trapezoid_move_time(Kinematics(20_000.0, 100_000.0, 0.05, 0.1))
FIELD_UM = (737.0, 461.0)
LEAST_AREA_UM2 = 15.0


def plan(width_um, height_um, overlap=0.06):
    return cover_rectangle(0.0, 0.0, width_um, height_um, *FIELD_UM, overlap, MOVE)


def blob(rng, size_um, corners=9):
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = 0.5 * size_um * rng.uniform(0.6, 1.0, corners)
    return Polygon(np.column_stack([radii * np.cos(angles), radii * np.sin(angles)])).convex_hull


def piece(polygon, tile=0, material="graphene", layers=1, border=False, score=0.9, area=None):
    return TerracePiece(
        tile_index=tile,
        polygon=polygon,
        area_um2=polygon.area if area is None else area,
        material=material,
        layers=layers,
        layer_probabilities=((layers, 0.9),),
        thickness_nm=0.335 * layers,
        contrast_rgb=(-0.1 * layers, -0.1, 0.0),
        off_ladder=0.01,
        score=score,
        sharpness=1.0,
        touches_border=border,
    )


def seen_by(tiles, truths, jitter_um, rng):
    """Pieces, and tile boxes as the stage believes them. truths: (polygon, material, layers)."""
    boxes = {tile.index: tiles.box_um(tile.index) for tile in tiles.tiles}
    tree = shapely.STRtree([polygon for polygon, _, _ in truths])
    pieces, views = [], 0
    for index, nominal in boxes.items():
        radius, angle = 0.5 * jitter_um * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        off_x, off_y = radius * np.cos(angle), radius * np.sin(angle)
        field = affinity.translate(box(*nominal), off_x, off_y)
        inner = field.buffer(-0.5, join_style="mitre")
        for i in sorted(tree.query(field, predicate="intersects").tolist()):
            polygon, material, layers = truths[i]
            part = polygon.intersection(field)
            for region in shapely.get_parts(part):
                if not isinstance(region, Polygon) or region.area < LEAST_AREA_UM2:
                    continue
                is_cut = not inner.contains(region)
                views += 1
                believed = affinity.translate(region, -off_x, -off_y)
                pieces.append(piece(believed, index, material, layers, is_cut))
    return pieces, boxes


def scatter(rng, count, width_um, height_um, gap_um=5.0, largest_um=60.0):
    """Flakes at least gap_um apart, sizes spread like exfoliation's: many small, few large."""
    truths, tree_boxes = [], {}
    cell = 2 * largest_um
    while len(truths) < count:
        size = min(largest_um, 7.0 * np.exp(rng.exponential(0.8)))
        polygon = affinity.translate(
            blob(rng, size), rng.uniform(80, width_um - 80), rng.uniform(80, height_um - 80)
        )
        x, y = polygon.centroid.x // cell, polygon.centroid.y // cell
        near = [
            p for i in (-1, 0, 1) for j in (-1, 0, 1) for p in tree_boxes.get((x + i, y + j), ())
        ]
        if any(polygon.dwithin(other, gap_um) for other in near):
            continue
        tree_boxes.setdefault((x, y), []).append(polygon)
        material = ("graphene", "mos2", "wse2")[int(rng.integers(3))]
        truths.append((polygon, material, int(rng.integers(1, 5))))
    return truths


def compare(truths, terraces):
    """(lost, duplicates, wrong labels, worst relative area error, centroid errors in um)."""
    tree = shapely.STRtree([polygon for polygon, _, _ in truths])
    claims = {}
    for terrace in terraces:
        hits = tree.query(terrace.polygon, predicate="intersects").tolist()
        best = max(
            hits, key=lambda i: truths[i][0].intersection(terrace.polygon).area, default=None
        )
        claims.setdefault(best, []).append(terrace)
    duplicates = sum(len(found) - 1 for i, found in claims.items() if i is not None)
    duplicates += len(claims.get(None, ()))
    lost = [
        i for i, (p, _, _) in enumerate(truths) if i not in claims and p.area > 2 * LEAST_AREA_UM2
    ]
    wrong, area_errors, off_um = 0, [], []
    for i, found in claims.items():
        if i is None:
            continue
        polygon, material, layers = truths[i]
        wrong += (found[0].material, found[0].layers) != (material, layers)
        area_errors.append(abs(found[0].area_um2 / polygon.area - 1))
        off_um.append(
            np.hypot(found[0].x_um - polygon.centroid.x, found[0].y_um - polygon.centroid.y)
        )
    return len(lost), duplicates, wrong, np.array(area_errors), np.array(off_um)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 100_000), st.sampled_from([0.04, 0.06, 0.1, 0.2]))
def test_random_flakes_are_recovered_exactly(seed, overlap):
    rng = np.random.default_rng(seed)
    truths = scatter(rng, 150, 2_200.0, 1_400.0)
    pieces, boxes = seen_by(plan(2_200.0, 1_400.0, overlap), truths, 2.0, rng)
    lost, duplicates, wrong, area_errors, off_um = compare(truths, merge_terraces(pieces, boxes))
    assert (lost, duplicates, wrong) == (0, 0, 0)
    assert np.percentile(area_errors, 99) < 0.05
    assert off_um.max() < 2.5


def test_ten_thousand_flakes_none_twice_none_lost():
    rng = np.random.default_rng(11)
    width_um, height_um = 20_000.0, 14_000.0
    truths = scatter(rng, 10_000, width_um, height_um)
    tiles = plan(width_um, height_um, 0.08)
    pieces, boxes = seen_by(tiles, truths, 2.0, rng)
    views = len(pieces) - len(truths)
    assert views >= 0.1 * len(truths)  # that many lie across or beside a border
    began_s = time.perf_counter()
    flakes = merge(pieces, boxes)
    took_s = time.perf_counter() - began_s
    terraces = [terrace for flake in flakes for terrace in flake.terraces]
    lost, duplicates, wrong, area_errors, off_um = compare(truths, terraces)
    assert (lost, duplicates, wrong) == (0, 0, 0)
    assert len(flakes) == len(terraces)  # all are more than touching apart
    assert np.percentile(area_errors, 99.9) < 0.02
    assert np.sqrt(np.mean(off_um**2)) < 1.0
    assert took_s < 10.0  # a second or two when the machine is idle


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    size_um=st.floats(14, 80),
    layers=st.integers(1, 2),
    angle_deg=st.floats(0, 360),
)
def test_neighbours_five_um_apart_stay_two(seed, size_um, layers, angle_deg):
    # On the corner of four tiles, where everything is seen up to four times.
    rng = np.random.default_rng(seed)
    tiles = plan(1_400.0, 880.0)
    left, right = blob(rng, size_um), blob(rng, size_um)
    right = affinity.translate(right, left.bounds[2] - right.bounds[0], 0.0)
    reach_um = np.linspace(0.0, 10.0, 201)
    gap_um = [left.distance(affinity.translate(right, d, 0.0)) for d in reach_um]
    right = affinity.translate(right, float(np.interp(5.0, gap_um, reach_um)), 0.0)
    turn = [affinity.rotate(p, angle_deg, origin=(0, 0)) for p in (left, right)]
    x_um, y_um = 700.0 + rng.uniform(-30, 30), 440.0 + rng.uniform(-20, 20)
    truths = [
        (affinity.translate(turn[0], x_um, y_um), "graphene", 1),
        (affinity.translate(turn[1], x_um, y_um), "graphene", layers),
    ]
    pieces, boxes = seen_by(tiles, truths, 2.0, rng)
    flakes = merge(pieces, boxes)
    assert len(flakes) == 2
    assert compare(truths, [f.terraces[0] for f in flakes])[:3] == (0, 0, 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100_000), st.floats(300, 1_500))
def test_a_flake_larger_than_tiles_comes_out_whole(seed, size_um):
    rng = np.random.default_rng(seed)
    tiles = plan(2_600.0, 2_600.0)
    giant = affinity.translate(blob(rng, size_um), 1_300.0, 1_300.0)
    giant = giant.intersection(box(10.0, 10.0, 2_590.0, 2_590.0))
    pieces, boxes = seen_by(tiles, [(giant, "hbn", 3)], 2.0, rng)
    (flake,) = merge(pieces, boxes)
    (terrace,) = flake.terraces
    assert terrace.area_um2 == pytest.approx(giant.area, rel=0.02)
    assert terrace.polygon.symmetric_difference(giant).area < 0.03 * giant.area + 4 * giant.length
    assert not terrace.is_cut
    assert len(terrace.tiles) >= 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100_000), st.floats(60, 160))
def test_a_split_flake_keeps_its_area(seed, size_um):
    # Wider than the overlap, so that no tile shows it whole, and the tiles are shaken. Its sides
    # converge: along parallel ones a shift shows nowhere, and the area is out by as much.
    rng = np.random.default_rng(seed)
    tiles = plan(1_400.0, 461.0, 0.04)
    half_um = size_um / 2
    truth = Polygon([(-half_um, -30), (half_um, -12), (half_um, 12), (-half_um, 30)])
    truth = affinity.translate(truth, 700.0, 230.0)
    pieces, boxes = seen_by(tiles, [(truth, "mos2", 1)], 2.0, rng)
    (terrace,) = merge_terraces(pieces, boxes)
    assert terrace.area_um2 == pytest.approx(truth.area, rel=0.02)
    centre = truth.centroid
    assert np.hypot(terrace.x_um - centre.x, terrace.y_um - centre.y) < 1.1


def test_a_thin_strip_along_a_step_is_not_swallowed_by_the_next_terrace():
    boxes = {0: (0.0, 0.0, 100.0, 100.0), 1: (80.0, 0.0, 200.0, 100.0)}
    strip = piece(box(60, 58.4, 100, 60.4), 0, layers=1, border=True)
    step = piece(box(82, 60.5, 150, 80), 1, layers=2)
    assert len(merge_terraces([strip, step], boxes)) == 2
    assert len(merge([strip, step], boxes)) == 1


def test_the_arms_of_a_u_become_one():
    # The bend lies in the upper tile only; the lower one sees two arms.
    bend = Polygon([(80, 80), (220, 80), (220, 130), (80, 130)])
    shape = shapely.union_all([bend, box(80, 20, 110, 100), box(190, 20, 220, 100)])
    boxes = {0: (0.0, 0.0, 300.0, 70.0), 1: (0.0, 60.0, 300.0, 200.0)}
    lower = shapely.get_parts(shape.intersection(box(*boxes[0])))
    pieces = [piece(p, 0, border=True) for p in lower]
    pieces.append(piece(shape.intersection(box(*boxes[1])), 1, border=True))
    (flake,) = merge(pieces, boxes)
    assert flake.area_um2 == pytest.approx(shape.area, rel=1e-6)
    assert flake.terraces[0].pieces == (0, 1, 2)


@pytest.mark.parametrize("gap_um", [-0.8, 0.0, 1.5])
def test_without_overlap_the_halves_are_joined_across_the_border(gap_um):
    boxes = {0: (0.0, 0.0, 100.0, 100.0), 1: (100.0, 0.0, 200.0, 100.0)}
    pieces = [
        piece(box(60, 40, 100, 60), 0, border=True),
        piece(box(100 + gap_um, 40.5, 150 + gap_um, 60.5), 1, border=True),
        piece(box(105, 70, 130, 90), 1),
    ]
    joined, other = merge_terraces(pieces, boxes)
    assert joined.pieces == (0, 1)
    assert joined.area_um2 == pytest.approx(20 * 90, rel=0.04)
    assert other.pieces == (2,)
    # Ends that do not face each other are two flakes.
    aside = [pieces[0], piece(box(100, 61, 150, 80), 1, border=True)]
    assert len(merge_terraces(aside, boxes)) == 2


def test_touching_terraces_stay_terraces_of_one_flake():
    # Steps of one, two and three layers side by side, on the border of two shaken tiles.
    truths = [(box(700, 200 + 15 * i, 780, 215 + 15 * i), "wse2", i + 1) for i in range(3)]
    truths.append((box(700, 245.8, 780, 260), "hbn", 5))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        pieces, boxes = seen_by(plan(1_400.0, 461.0), truths, 2.0, rng)
        flakes = merge(pieces, boxes)
        assert [f.material for f in flakes] == ["wse2", "hbn"]
        assert sorted(t.layers for t in flakes[0].terraces) == [1, 2, 3]
        assert flakes[0].area_um2 == pytest.approx(3 * 80 * 15, rel=0.02)


def test_the_label_goes_with_the_evidence():
    boxes = {0: (0.0, 0.0, 100.0, 100.0), 1: (80.0, 0.0, 200.0, 100.0)}
    whole = box(60, 40, 98, 60)
    pieces = [
        piece(whole, 0, layers=2),
        piece(whole.intersection(box(*boxes[1])), 1, layers=3, border=True),
    ]
    (terrace,) = merge_terraces(pieces, boxes)
    assert terrace.layers == 2
    probabilities = dict(terrace.layer_probabilities)
    assert probabilities[2] > probabilities[3] > 0
    assert sum(probabilities.values()) <= 1.0 + 1e-9


def test_different_things_on_one_spot_are_not_mixed_up():
    # A flake in one tile, a neighbour of another label that only touches it in the next tile.
    boxes = {0: (0.0, 0.0, 100.0, 100.0), 1: (80.0, 0.0, 200.0, 100.0)}
    pieces = [
        piece(box(82, 40, 90, 60), 0, layers=1),
        piece(box(91, 40, 99, 60), 0, layers=2),
        piece(box(82.7, 40, 90.7, 60), 1, layers=1),
        piece(box(91.7, 40, 99.7, 60), 1, layers=2),
    ]
    terraces = merge_terraces(pieces, boxes)
    assert [t.layers for t in terraces] == [1, 2]
    assert [t.pieces for t in terraces] == [(0, 2), (1, 3)]


def test_a_hole_survives():
    ring = Polygon(box(0, 0, 40, 40).exterior, [box(10, 10, 30, 30).exterior])
    (terrace,) = merge_terraces([piece(ring)], {0: (-50, -50, 90, 90)})
    assert len(terrace.polygon.interiors) == 1
    assert terrace.area_um2 == pytest.approx(1_200.0)


def test_a_flake_at_the_scans_edge_is_marked_as_cut():
    boxes = {0: (0.0, 0.0, 100.0, 100.0)}
    (cut,) = merge_terraces([piece(box(80, 40, 100, 60), border=True)], boxes)
    (inner,) = merge_terraces([piece(box(70, 40, 90, 60))], boxes)
    assert cut.is_cut
    assert not inner.is_cut


def test_nothing_gives_nothing():
    assert merge([], {}) == ()
    assert group_flakes([]) == ()
    with pytest.raises(KeyError):
        merge([piece(box(0, 0, 1, 1), tile=7)], {0: (0, 0, 1, 1)})
    with pytest.raises(ValidationError):
        MergingSettings(least_iou=0)


def test_a_journals_piece_becomes_a_polygon():
    def fact(outline, holes=()):
        return Piece(
            outline, holes, "mos2", 2, ((2, 0.8), (1, 0.2)), 1.3, (-0.3, -0.1, 0.1), 0.02, 0.9,
            95.0, False,
        )  # fmt: skip

    square = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
    hole = ((4.0, 4.0), (6.0, 4.0), (6.0, 6.0), (4.0, 6.0))
    made = terrace_piece(3, fact(square, (hole, ((1.0, 1.0),))), 0.7)
    assert made is not None
    assert (made.tile_index, made.sharpness, made.area_um2) == (3, 0.7, 95.0)
    assert made.polygon.area == pytest.approx(96.0)
    bow_tie = ((0.0, 0.0), (10.0, 10.0), (10.0, 0.0), (0.0, 10.0))
    tied = terrace_piece(0, fact(bow_tie), 0.7)
    assert tied is not None
    assert tied.polygon.is_valid
    assert terrace_piece(0, fact(((0.0, 0.0), (1.0, 1.0))), 0.7) is None
    assert terrace_piece(0, fact(((0.0, 0.0), (1.0, 1.0), (2.0, 2.0))), 0.7) is None


def test_looking_twice_makes_no_thickness_surer():
    """What tiles disagree about averages out; what the optics got wrong they share."""
    square = box(0.0, 0.0, 20.0, 20.0)
    known = [
        replace(piece(square, tile), thickness_nm=nm, thickness_interval_nm=(nm - 1.0, nm + 2.0))
        for tile, nm in ((0, 11.0), (1, 13.0))
    ]
    boxes = {0: (-10.0, -10.0, 40.0, 40.0), 1: (-10.0, -10.0, 40.0, 40.0)}
    ((terrace,),) = (flake.terraces for flake in merge(known, boxes))
    assert terrace.thickness_nm == pytest.approx(12.0)
    assert terrace.thickness_interval_nm == pytest.approx((11.0, 14.0))
    unknown = [known[0], replace(known[1], thickness_interval_nm=None)]
    ((terrace,),) = (flake.terraces for flake in merge(unknown, boxes))
    assert terrace.thickness_interval_nm is None
