"""Pixels to stage and back: signs pinned by hand-made cases, the inverse by random ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.geometry import (
    CameraGeometry,
    axis_point_um,
    field_corners_um,
    field_um,
    footprint_um,
    pixel_to_stage_um,
    stage_for_point_um,
    stage_to_pixel,
)
from drivers.api import Objective, Pose

PLAIN = Objective("20x", 20, 0.45, pixel_size_nm=200.0)
OFFSET = Objective("50x", 50, 0.8, pixel_size_nm=100.0, parcentric_x_um=7.0, parcentric_y_um=-4.0)
SHAPE_PX = (5, 9)  # h, w: the axis is on pixel (4, 2)


def pose(objective: Objective, x_um: float = 100.0, y_um: float = -50.0) -> Pose:
    return Pose(x_um, y_um, 0.0, objective.name)


# name, geometry, (col, row) -> (x, y) away from the pose, in pixels
CORNERS = [
    ("axis", CameraGeometry(), (4, 2), (0, 0)),
    ("right is +x", CameraGeometry(), (5, 2), (1, 0)),
    ("down is -y", CameraGeometry(), (4, 3), (0, -1)),
    ("mirrored", CameraGeometry(flip_x=True), (5, 3), (-1, -1)),
    ("upside down", CameraGeometry(flip_y=True), (5, 3), (1, 1)),
    ("quarter turn: right becomes +y", CameraGeometry(rotation_deg=90), (5, 2), (0, 1)),
    ("quarter turn: up becomes -x", CameraGeometry(rotation_deg=90), (4, 1), (-1, 0)),
    ("half turn", CameraGeometry(rotation_deg=180), (5, 1), (-1, -1)),
    ("backwards quarter", CameraGeometry(rotation_deg=-90), (5, 2), (0, -1)),
    ("mirror first, then turn", CameraGeometry(90, flip_x=True), (5, 2), (0, -1)),
]


@pytest.mark.parametrize(("name", "geometry", "pixel", "away_px"), CORNERS)
def test_signs(
    name: str,
    geometry: CameraGeometry,
    pixel: tuple[int, int],
    away_px: tuple[int, int],
) -> None:
    x_um, y_um = pixel_to_stage_um(*pixel, pose(PLAIN), PLAIN, SHAPE_PX, geometry)
    assert (float(x_um), float(y_um)) == pytest.approx(
        (100.0 + 0.2 * away_px[0], -50.0 + 0.2 * away_px[1])
    ), name


def test_the_parcentric_offset_is_on_the_axis() -> None:
    x_um, y_um = pixel_to_stage_um(4, 2, pose(OFFSET), OFFSET, SHAPE_PX, CameraGeometry())
    assert (float(x_um), float(y_um)) == pytest.approx((107.0, -54.0))


def test_a_point_is_brought_onto_the_axis() -> None:
    stage_um = stage_for_point_um(107.0, -54.0, OFFSET)
    assert stage_um == pytest.approx((100.0, -50.0))
    assert axis_point_um(*stage_um, OFFSET) == pytest.approx((107.0, -54.0))


@given(
    rotation_deg=st.floats(-400, 400),
    flip_x=st.booleans(),
    flip_y=st.booleans(),
    col=st.floats(-5000, 5000),
    row=st.floats(-5000, 5000),
    x_um=st.floats(-1e5, 1e5),
    y_um=st.floats(-1e5, 1e5),
)
def test_there_and_back(
    rotation_deg: float,
    flip_x: bool,
    flip_y: bool,
    col: float,
    row: float,
    x_um: float,
    y_um: float,
) -> None:
    geometry = CameraGeometry(rotation_deg, flip_x, flip_y)
    at = pose(OFFSET, x_um, y_um)
    point = pixel_to_stage_um(col, row, at, OFFSET, SHAPE_PX, geometry)
    back = stage_to_pixel(*point, at, OFFSET, SHAPE_PX, geometry)
    assert (float(back[0]), float(back[1])) == pytest.approx((col, row), abs=1e-5)


def test_arrays_keep_their_shape() -> None:
    rows, cols = np.mgrid[0:5, 0:9]
    x_um, y_um = pixel_to_stage_um(cols, rows, pose(PLAIN), PLAIN, SHAPE_PX, CameraGeometry())
    assert x_um.shape == y_um.shape == (5, 9)
    assert np.all(np.diff(x_um, axis=1) > 0)
    assert np.all(np.diff(y_um, axis=0) < 0)


def test_the_field_includes_the_edges_of_the_outer_pixels() -> None:
    assert field_um((1200, 1920), 345.0) == pytest.approx((662.4, 414.0))
    corners = field_corners_um(pose(PLAIN), PLAIN, SHAPE_PX, CameraGeometry())
    assert corners.max(axis=0) - corners.min(axis=0) == pytest.approx(field_um(SHAPE_PX, 200.0))
    assert corners[0] == pytest.approx([100.0 - 0.9, -50.0 + 0.5])  # top left


@pytest.mark.parametrize(("rotation_deg", "swapped"), [(0, False), (90, True), (180, False)])
def test_a_turned_camera_has_a_turned_footprint(rotation_deg: float, swapped: bool) -> None:
    w_um, h_um = field_um((1200, 1920), 345.0)
    expected = (h_um, w_um) if swapped else (w_um, h_um)
    assert footprint_um((1200, 1920), 345.0, CameraGeometry(rotation_deg)) == pytest.approx(
        expected
    )


def test_a_pose_of_another_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="20x"):
        pixel_to_stage_um(0, 0, pose(PLAIN), OFFSET, SHAPE_PX, CameraGeometry())
