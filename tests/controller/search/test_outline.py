"""Finding the chip on overviews that were drawn, so that its sides are known to a micrometre."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from shapely import affinity
from shapely.geometry import Polygon, box

from controller.search.outline import (
    ChipFrame,
    ChipOutline,
    NoChip,
    OutlineSettings,
    OverviewFrame,
    find_chip,
    fit_frame,
)

UM_PER_PX = 7.7
CHIP_RGB = (110.0, 60.0, 140.0)  # purple, as 285 nm of oxide
GROUND_RGB = (10.0, 10.0, 11.0)


def overview(
    chip,
    spots=(),
    vignette=0.15,
    noise=1.5,
    half_um=(3_600.0, 3_000.0),
    ground=GROUND_RGB,
    seed=0,
    bits=8,
    step_um=(2_050.0, 1_350.0),
):
    """Frames over a drawn chip; edges are smooth over a pixel, as an image's are."""
    rng = np.random.default_rng(seed)
    frames, (w, h), fine = [], (288, 190), 4
    for y_um in np.arange(-half_um[1], half_um[1] + 1, step_um[1]):
        for x_um in np.arange(-half_um[0], half_um[0] + 1, step_um[0]):

            def to_px(points, x_um=x_um, y_um=y_um):
                px = np.empty((len(points), 2))
                px[:, 0] = (points[:, 0] - x_um) / UM_PER_PX * fine + (w * fine - 1) / 2
                px[:, 1] = (y_um - points[:, 1]) / UM_PER_PX * fine + (h * fine - 1) / 2
                return np.round(px * 16).astype(np.int32)

            image = np.empty((h * fine, w * fine, 3), np.float32)
            image[:] = ground
            if chip is not None:
                cv2.fillPoly(image, [to_px(np.asarray(chip.exterior.coords))], CHIP_RGB, shift=4)
            for spot, colour in spots:
                cv2.fillPoly(image, [to_px(np.asarray(spot.exterior.coords))], colour, shift=4)
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
            yy, xx = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
            light = 1 - vignette * (xx**2 + yy**2) / 2
            image = image * light[:, :, None] + rng.normal(0, noise, image.shape)
            image = np.clip(image, 0, 255) * (2**bits - 1) / 255
            dtype = np.uint8 if bits == 8 else np.uint16
            frames.append(
                OverviewFrame(image.astype(dtype), float(x_um), float(y_um), UM_PER_PX, bits)
            )
    return frames


def found(frames, **more):
    chip = find_chip(frames, OutlineSettings(**more))
    assert isinstance(chip, ChipOutline), chip
    return chip


@pytest.mark.parametrize("angle_deg", [0.0, 3.0, -17.0, 44.0, 60.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_rectangle_is_found_to_a_few_um(angle_deg, seed):
    rng = np.random.default_rng(seed)
    truth = affinity.rotate(box(-1_900, -1_300, 1_900, 1_300), angle_deg)
    truth = affinity.translate(truth, rng.uniform(-300, 300), rng.uniform(-300, 300))
    chip = found(overview(truth, seed=seed))
    corners = np.asarray(truth.exterior.coords)[:4]
    for corner in chip.corners_um:
        assert min(math.dist(corner, c) for c in corners) < 4.0
    turn = (chip.frame.rotation_deg - angle_deg + 45) % 90 - 45
    assert abs(turn) < 0.05
    assert abs(chip.frame.rotation_deg) <= 45.001
    assert chip.polygon.symmetric_difference(truth).area < 0.005 * truth.area
    assert chip.is_complete
    assert not chip.fills_overview
    assert chip.confidence > 0.9


def test_the_origin_is_the_lower_left_corner_and_the_chip_lies_in_the_first_quadrant():
    truth = affinity.rotate(box(-1_900, -1_300, 1_900, 1_300), 20)
    chip = found(overview(truth))
    local = np.array([chip.frame.to_chip(x, y) for x, y in chip.corners_um])
    expected = np.array([(0, 0), (3_800, 0), (3_800, 2_600), (0, 2_600)])
    assert np.abs(local - expected).max() < 6.0


def test_flakes_dust_and_tape_on_the_chip_do_not_matter():
    truth = affinity.rotate(box(-1_900, -1_300, 1_900, 1_300), 9)
    rng = np.random.default_rng(4)
    spots = []
    for _ in range(60):
        x, y = rng.uniform(-1_700, 1_700), rng.uniform(-1_100, 1_100)
        size = rng.uniform(20, 250)
        colour = [(2.0, 2.0, 2.0), (250.0, 240.0, 200.0), (60.0, 50.0, 90.0)][rng.integers(3)]
        spots.append((affinity.rotate(box(x, y, x + size, y + size), 30), colour))
    # One black speck right on an edge, and one bright crumb beside the chip.
    spots.append((box(-100, -1_500, 100, -1_200), (2.0, 2.0, 2.0)))
    spots.append((box(2_600, 0, 2_750, 150), (200.0, 200.0, 200.0)))
    chip = found(overview(truth, spots))
    assert chip.polygon.symmetric_difference(truth).area < 0.01 * truth.area
    assert abs(chip.frame.rotation_deg - 9) < 0.1


def test_a_broken_corner_leaves_the_frame_where_it_was():
    truth = affinity.rotate(box(-1_900, -1_300, 1_900, 1_300), 12)
    bite = affinity.rotate(Polygon([(1_100, 1_300), (1_900, 1_300), (1_900, 400)]), 12, (0, 0))
    chip = found(overview(truth.difference(bite)))
    assert abs(chip.frame.rotation_deg - 12) < 0.1
    corners = np.asarray(truth.exterior.coords)[:4]
    assert min(math.dist(chip.corners_um[0], c) for c in corners) < 5.0
    assert chip.polygon.symmetric_difference(truth.difference(bite)).area < 0.01 * truth.area


def test_an_irregular_shard_keeps_its_shape_and_says_that_it_has_no_sides():
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radii = 1_400 * np.random.default_rng(2).uniform(0.75, 1.0, 24)
    truth = Polygon(np.column_stack([radii * np.cos(angles), radii * np.sin(angles)]))
    chip = found(overview(truth))
    assert chip.polygon.symmetric_difference(truth).area < 0.03 * truth.area
    assert chip.confidence < 0.8


def test_a_chip_that_goes_on_beyond_the_overview_is_not_complete():
    truth = affinity.rotate(box(-1_000, -1_300, 9_000, 1_300), 5)
    truth = affinity.translate(truth, -3_000, 0)
    chip = found(overview(truth))
    assert not chip.is_complete
    assert not chip.fills_overview
    assert abs(chip.frame.rotation_deg - 5) < 0.3


@pytest.mark.parametrize("vignette", [0.0, 0.3])
def test_a_chip_that_fills_everything_is_the_overview_itself(vignette):
    frames = overview(box(-2e4, -2e4, 2e4, 2e4), vignette=vignette)
    chip = found(frames)
    assert chip.fills_overview
    assert not chip.is_complete
    assert chip.confidence < 0.5
    width_um = np.ptp([f.centre_x_um for f in frames]) + 288 * UM_PER_PX
    height_um = np.ptp([f.centre_y_um for f in frames]) + 190 * UM_PER_PX
    assert chip.polygon.area == pytest.approx(width_um * height_um, rel=0.01)


@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_darkness_is_no_chip(noise):
    answer = find_chip(overview(None, noise=noise))
    assert isinstance(answer, NoChip)
    assert "dark" in answer.reason


def test_a_crumb_is_no_chip():
    answer = find_chip(overview(box(0, 0, 400, 400)))
    assert isinstance(answer, NoChip)
    assert "a chip must have" in answer.reason


def test_no_frames_is_no_chip():
    assert isinstance(find_chip([]), NoChip)


def test_twelve_bits_and_full_size_frames_give_the_same():
    truth = affinity.rotate(box(-1_900, -1_300, 1_900, 1_300), -8)
    eight, twelve = found(overview(truth)), found(overview(truth, bits=12))
    assert math.dist(eight.corners_um[0], twelve.corners_um[0]) < 2.0
    # The same overview in frames twice as fine, odd sizes included.
    doubled = [
        OverviewFrame(
            np.repeat(np.repeat(f.pixels, 3, axis=0), 3, axis=1), f.centre_x_um, f.centre_y_um,
            f.um_per_px / 3,
        )
        for f in overview(truth)
    ]  # fmt: skip
    finer = found(doubled)
    assert math.dist(eight.corners_um[0], finer.corners_um[0]) < 2.0


def test_gaps_in_the_overview_are_neither_chip_nor_ground():
    truth = affinity.rotate(box(-1_900, -1_300, 1_900, 1_300), 7)
    frames = [
        f
        for f in overview(truth)
        if not (abs(f.centre_x_um) > 3_000 and abs(f.centre_y_um) > 2_500)
    ]
    chip = found(frames)
    assert chip.is_complete
    assert chip.polygon.symmetric_difference(truth).area < 0.01 * truth.area


@pytest.mark.parametrize(
    "wrong",
    [
        OverviewFrame(np.zeros((10, 10), np.uint8), 0.0, 0.0, 1.0),
        OverviewFrame(np.zeros((10, 10, 3), np.float32), 0.0, 0.0, 1.0),
        OverviewFrame(np.zeros((10, 10, 3), np.uint8), math.nan, 0.0, 1.0),
        OverviewFrame(np.zeros((10, 10, 3), np.uint8), 0.0, 0.0, 0.0),
    ],
)
def test_what_is_not_an_overview_frame_is_refused(wrong):
    with pytest.raises(ValueError, match="overview frame"):
        find_chip([wrong])


def test_settings_are_bounded():
    with pytest.raises(ValidationError):
        OutlineSettings(map_um_per_px=0)


COORDINATES = st.floats(-1e5, 1e5)


@given(COORDINATES, COORDINATES, st.floats(-180, 180), COORDINATES, COORDINATES)
def test_to_the_chip_and_back(origin_x, origin_y, turn, x, y):
    frame = ChipFrame(origin_x, origin_y, turn)
    assert frame.to_stage(*frame.to_chip(x, y)) == pytest.approx((x, y), abs=1e-6)
    assert frame.to_chip(origin_x, origin_y) == pytest.approx((0, 0), abs=1e-6)


def test_the_chips_x_axis_points_where_the_rotation_says():
    frame = ChipFrame(100.0, 50.0, 90.0)
    assert frame.to_stage(10.0, 0.0) == pytest.approx((100.0, 60.0))
    assert frame.to_stage(0.0, 10.0) == pytest.approx((90.0, 50.0))


@settings(max_examples=50)
@given(
    st.floats(-180, 180),
    COORDINATES,
    COORDINATES,
    st.integers(2, 6),
    st.integers(0, 9_999),
)
def test_marks_bring_a_flake_to_another_stage(turn, x_um, y_um, count, seed):
    rng = np.random.default_rng(seed)
    truth = ChipFrame(x_um, y_um, turn)
    chip = np.vstack([[(0.0, 0.0), (6_000.0, 5_000.0)], rng.uniform(0, 6_000, (count - 2, 2))])
    stage = [truth.to_stage(x, y) for x, y in chip.tolist()]
    frame, residual_um = fit_frame(chip.tolist(), stage)
    assert residual_um < 1e-6
    assert frame.to_stage(3_000, 1_000) == pytest.approx(truth.to_stage(3_000, 1_000), abs=1e-5)


def test_three_marks_with_errors_of_a_micrometre():
    rng = np.random.default_rng(0)
    marks = [(0.0, 0.0), (6_000.0, 0.0), (0.0, 5_000.0)]
    off_um = []
    for _ in range(200):
        truth = ChipFrame(*rng.uniform(-1e4, 1e4, 2), rng.uniform(-180, 180))
        stage = [np.array(truth.to_stage(*m)) + rng.normal(0, 1.0, 2) for m in marks]
        frame, _ = fit_frame(marks, [tuple(s) for s in stage])
        flake = rng.uniform((0, 0), (6_000, 5_000))
        off_um.append(math.dist(frame.to_stage(*flake), truth.to_stage(*flake)))
    assert np.percentile(off_um, 95) < 3.0


@pytest.mark.parametrize(
    ("chip", "stage"),
    [([(0, 0)], [(1, 1)]), ([(0, 0), (1, 0)], [(0, 0)]), ([(1, 1), (1, 1)], [(0, 0), (5, 5)])],
)
def test_marks_that_fix_nothing_are_refused(chip, stage):
    with pytest.raises(ValueError, match="marks"):
        fit_frame(chip, stage)
