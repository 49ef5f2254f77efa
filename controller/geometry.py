"""Pixels to stage and back: the one place of flips and signs.

A sample point is named by the stage position that would bring it onto the optical axis of an
objective without parcentric offset. An objective with an offset sees, on its axis, the point
`stage + parcentric`. A pixel's place relative to the axis is the camera's doing: the image's y
grows downwards, the stage's upwards; the camera may be mirrored and turned. So

    point = stage + parcentric + R(rotation) F(flips) p [ (col - (w-1)/2), -(row - (h-1)/2) ]

with p the pixel's side in the plane of the sample, F = diag(+-1, +-1) and R counter-clockwise.
(0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drivers.api import Objective, Pose

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CameraGeometry:
    """How the camera is mounted. The default: image right is stage +x, image up is stage +y."""

    rotation_deg: float = 0.0  # counter-clockwise turn from the camera's right to the stage's +x
    flip_x: bool = False  # the image is mirrored left to right, before the turn
    flip_y: bool = False  # the image is mirrored top to bottom, before the turn

    def matrix(self) -> Floats:
        """(2, 2): (right, up) in the image to (x, y) of the stage; orthogonal."""
        quarter_turns, rest_deg = divmod(self.rotation_deg, 90.0)
        if rest_deg == 0.0:  # exact, so that a quarter turn adds no rounding
            cosine, sine = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[
                int(quarter_turns) % 4
            ]
        else:
            cosine = math.cos(math.radians(self.rotation_deg))
            sine = math.sin(math.radians(self.rotation_deg))
        sx = -1.0 if self.flip_x else 1.0
        sy = -1.0 if self.flip_y else 1.0
        return np.array([[cosine * sx, -sine * sy], [sine * sx, cosine * sy]])


def pixel_to_stage_um(
    col: npt.ArrayLike,
    row: npt.ArrayLike,
    pose: Pose,
    objective: Objective,
    shape_px: tuple[int, int],
    geometry: CameraGeometry,
) -> tuple[Floats, Floats]:
    """Sample points (x, y) under pixels (col, row); arrays of any one shape, or scalars.

    shape_px: (h, w) of the image. Raises ValueError if `pose` was taken with another objective.
    """
    _check_objective(pose, objective)
    h_px, w_px = shape_px
    right_px = np.asarray(col, dtype=np.float64) - (w_px - 1) / 2
    up_px = (h_px - 1) / 2 - np.asarray(row, dtype=np.float64)
    turn = geometry.matrix() * (objective.pixel_size_nm * 1e-3)
    x_um = turn[0, 0] * right_px + turn[0, 1] * up_px
    y_um = turn[1, 0] * right_px + turn[1, 1] * up_px
    axis_x_um, axis_y_um = axis_point_um(pose.stage_x_um, pose.stage_y_um, objective)
    return axis_x_um + x_um, axis_y_um + y_um


def stage_to_pixel(
    x_um: npt.ArrayLike,
    y_um: npt.ArrayLike,
    pose: Pose,
    objective: Objective,
    shape_px: tuple[int, int],
    geometry: CameraGeometry,
) -> tuple[Floats, Floats]:
    """Pixels (col, row) that show sample points (x, y): the inverse of `pixel_to_stage_um`."""
    _check_objective(pose, objective)
    h_px, w_px = shape_px
    axis_x_um, axis_y_um = axis_point_um(pose.stage_x_um, pose.stage_y_um, objective)
    dx_um = np.asarray(x_um, dtype=np.float64) - axis_x_um
    dy_um = np.asarray(y_um, dtype=np.float64) - axis_y_um
    back = geometry.matrix().T / (objective.pixel_size_nm * 1e-3)  # orthogonal: inverse = transpose
    right_px = back[0, 0] * dx_um + back[0, 1] * dy_um
    up_px = back[1, 0] * dx_um + back[1, 1] * dy_um
    return right_px + (w_px - 1) / 2, (h_px - 1) / 2 - up_px


def axis_point_um(
    stage_x_um: float, stage_y_um: float, objective: Objective
) -> tuple[float, float]:
    """The sample point on the optical axis when the stage stands at (x, y)."""
    return stage_x_um + objective.parcentric_x_um, stage_y_um + objective.parcentric_y_um


def stage_for_point_um(x_um: float, y_um: float, objective: Objective) -> tuple[float, float]:
    """Where the stage must stand to bring sample point (x, y) onto the optical axis."""
    return x_um - objective.parcentric_x_um, y_um - objective.parcentric_y_um


def field_um(shape_px: tuple[int, int], pixel_size_nm: float) -> tuple[float, float]:
    """(width, height) of the field along the IMAGE's axes, pixel edges included."""
    h_px, w_px = shape_px
    return w_px * pixel_size_nm * 1e-3, h_px * pixel_size_nm * 1e-3


def footprint_um(
    shape_px: tuple[int, int], pixel_size_nm: float, geometry: CameraGeometry
) -> tuple[float, float]:
    """(x, y) extent of the field along the STAGE's axes: the smallest upright box around it."""
    extent = np.abs(geometry.matrix()) @ np.array(field_um(shape_px, pixel_size_nm))
    return float(extent[0]), float(extent[1])


def field_corners_um(
    pose: Pose, objective: Objective, shape_px: tuple[int, int], geometry: CameraGeometry
) -> Floats:
    """(4, 2) sample points at the image's outer corners, clockwise from the top left."""
    h_px, w_px = shape_px
    left, right, top, bottom = -0.5, w_px - 0.5, -0.5, h_px - 0.5
    x_um, y_um = pixel_to_stage_um(
        [left, right, right, left], [top, top, bottom, bottom], pose, objective, shape_px, geometry
    )
    return np.stack([x_um, y_um], axis=1)


def _check_objective(pose: Pose, objective: Objective) -> None:
    if pose.objective != objective.name:
        msg = f"the pose was taken with {pose.objective!r}, not with {objective.name!r}"
        raise ValueError(msg)
