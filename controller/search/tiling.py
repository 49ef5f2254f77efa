"""Which frames cover the chip, and in which order.

Rows are packed one by one: every row is spread over just that stretch of it where the chip lies,
so a turned chip costs few tiles that show mostly ground, and no tile misses the chip altogether.
The overlap asked for is the least one: spreading a row evenly can only enlarge it. Tiles stay
aligned with the stage's axes, as the camera is.

Both directions (rows along x, rows along y) and all four starting corners are tried; the
serpentine that takes the least time wins, with time from the stage's own kinematics, both axes
moving at once. Nothing here moves anything or knows a clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import MultiPolygon, Polygon, box

from drivers.api import Kinematics

FloatArray: TypeAlias = npt.NDArray[np.float64]
MoveTime: TypeAlias = Callable[[FloatArray, FloatArray], FloatArray]
"""Travel along x and y in um (signs do not matter), arrays of one shape -> seconds, same shape."""

_SLIVER_UM = 1e-6  # lengths below this are rounding


@dataclass(frozen=True, slots=True)
class Tile:
    """One frame to take: `x_um`, `y_um` is its centre on the stage."""

    index: int  # in the order of visit
    row: int
    column: int
    x_um: float
    y_um: float


@dataclass(frozen=True, slots=True)
class TilePlan:
    """A route over tiles of one size."""

    tiles: tuple[Tile, ...]
    field_width_um: float
    field_height_um: float
    travel_s: float  # moves alone, from the first tile to the last

    def box_um(self, index: int) -> tuple[float, float, float, float]:
        """x_min, y_min, x_max, y_max of one tile on the stage."""
        tile = self.tiles[index]
        half_w_um, half_h_um = 0.5 * self.field_width_um, 0.5 * self.field_height_um
        return (
            tile.x_um - half_w_um,
            tile.y_um - half_h_um,
            tile.x_um + half_w_um,
            tile.y_um + half_h_um,
        )

    def scan_time_bound_s(self, per_tile_s: float) -> float:
        """Compute the least wall time: all moves, plus settling and exposure of every tile."""
        return self.travel_s + per_tile_s * len(self.tiles)


def trapezoid_move_time(kinematics: Kinematics) -> MoveTime:
    """Time of a move from rest to rest, both axes at once, each with a trapezoidal profile.

    Settling is not included: it belongs to the tile, as the exposure does.
    """
    speed = kinematics.speed_um_per_s
    acceleration = kinematics.acceleration_um_per_s2
    ramps_um = speed**2 / acceleration

    def axis_s(distance_um: FloatArray) -> FloatArray:
        far = np.abs(distance_um)
        short_s = 2.0 * np.sqrt(far / acceleration)
        long_s = far / speed + speed / acceleration
        return np.where(far < ramps_um, short_s, long_s)

    def move_s(dx_um: FloatArray, dy_um: FloatArray) -> FloatArray:
        return np.maximum(axis_s(dx_um), axis_s(dy_um))

    return move_s


def cover_polygon(
    polygon: Polygon | MultiPolygon,
    field_width_um: float,
    field_height_um: float,
    overlap_ratio: float,
    move_time: MoveTime,
    *,
    edge_margin_um: float = 0.0,
    per_tile_s: float = 0.0,
    start_um: tuple[float, float] | None = None,
) -> TilePlan:
    """Cover a polygon (the chip's outline on the stage, in um) with frames in a good order.

    overlap_ratio: least shared part of neighbouring tiles, of the field's side, 0 to 0.9.
    edge_margin_um: the outline is shrunk by this first; chips break and shine along their edges.
    start_um: where the stage stands, None when it does not matter.
    Every point of the shrunk outline is in some tile; every tile shows some of it. An outline that
    shrinks to nothing gives an empty plan. Raises ValueError for sizes that make no sense.
    """
    _check(field_width_um, field_height_um, overlap_ratio, edge_margin_um)
    target = polygon if polygon.is_valid else shapely.make_valid(polygon)
    if edge_margin_um > 0:
        target = target.buffer(-edge_margin_um, join_style="mitre")
    if target.is_empty or target.area <= _SLIVER_UM**2:
        return TilePlan((), field_width_um, field_height_um, 0.0)
    along_x = _rows(target, field_width_um, field_height_um, overlap_ratio)
    turned = shapely.transform(target, lambda xy: xy[:, ::-1])
    along_y = [
        [(y_um, x_um) for x_um, y_um in row]
        for row in _rows(turned, field_height_um, field_width_um, overlap_ratio)
    ]
    best: tuple[float, list[tuple[int, int, float, float]], float] | None = None
    for rows in (along_x, along_y):
        for route in _serpentines(rows):
            travel_s = _route_s(route, move_time)
            total_s = travel_s + per_tile_s * len(route)
            if start_um is not None:
                total_s += _route_s([(0, 0, *start_um), route[0]], move_time)
            # Ties fall to the first tried, whatever the rounding.
            if best is None or total_s < best[0] - 1e-9:
                best = (total_s, route, travel_s)
    if best is None:  # a target that is not empty always has a route
        return TilePlan((), field_width_um, field_height_um, 0.0)
    tiles = tuple(
        Tile(index, row, column, x_um, y_um)
        for index, (row, column, x_um, y_um) in enumerate(best[1])
    )
    return TilePlan(tiles, field_width_um, field_height_um, best[2])


def cover_rectangle(
    x_min_um: float,
    y_min_um: float,
    x_max_um: float,
    y_max_um: float,
    field_width_um: float,
    field_height_um: float,
    overlap_ratio: float,
    move_time: MoveTime,
    *,
    start_um: tuple[float, float] | None = None,
) -> TilePlan:
    """Cover a rectangle, for an overview; see `cover_polygon`."""
    if not (x_min_um < x_max_um and y_min_um < y_max_um):
        message = f"an empty rectangle: x {x_min_um} to {x_max_um}, y {y_min_um} to {y_max_um} um"
        raise ValueError(message)
    return cover_polygon(
        box(x_min_um, y_min_um, x_max_um, y_max_um),
        field_width_um,
        field_height_um,
        overlap_ratio,
        move_time,
        start_um=start_um,
    )


def travel_time_s(places_um: Sequence[tuple[float, float]], move_time: MoveTime) -> float:
    """Time of the moves along a route."""
    return _route_s([(0, 0, x_um, y_um) for x_um, y_um in places_um], move_time)


def _check(width_um: float, height_um: float, overlap_ratio: float, margin_um: float) -> None:
    if not (0 < width_um < math.inf and 0 < height_um < math.inf):
        message = f"the field must be a finite size > 0 um, got {width_um} x {height_um}"
        raise ValueError(message)
    if not 0 <= overlap_ratio <= 0.9:
        message = f"overlap_ratio must be 0 to 0.9, got {overlap_ratio}"
        raise ValueError(message)
    if not 0 <= margin_um < math.inf:
        message = f"edge_margin_um must be >= 0, got {margin_um}"
        raise ValueError(message)


def _spread(from_um: float, to_um: float, side_um: float, overlap_ratio: float) -> list[float]:
    """Centres of the fewest fields that cover a stretch, evenly spaced, not beyond its ends."""
    length_um = to_um - from_um
    if length_um <= side_um:
        return [0.5 * (from_um + to_um)]
    pitch_um = side_um * (1.0 - overlap_ratio)
    count = math.ceil((length_um - side_um) / pitch_um - 1e-9) + 1
    step_um = (length_um - side_um) / (count - 1)
    return [from_um + 0.5 * side_um + i * step_um for i in range(count)]


def _rows(
    target: Polygon | MultiPolygon, width_um: float, height_um: float, overlap_ratio: float
) -> list[list[tuple[float, float]]]:
    """Centres, row by row upwards, each row from left to right."""
    x_min_um, y_min_um, x_max_um, y_max_um = target.bounds
    shapely.prepare(target)
    rows = []
    for y_um in _spread(y_min_um, y_max_um, height_um, overlap_ratio):
        band = box(x_min_um - 1, y_um - 0.5 * height_um, x_max_um + 1, y_um + 0.5 * height_um)
        stretches = _stretches(target.intersection(band), width_um * (1.0 - overlap_ratio))
        row = [
            (x_um, y_um)
            for from_um, to_um in stretches
            for x_um in _spread(from_um, to_um, width_um, overlap_ratio)
        ]
        if row:
            rows.append(row)
    return rows


def _stretches(part: shapely.Geometry, least_gap_um: float) -> list[tuple[float, float]]:
    """Intervals of x in which a band of the chip lies; gaps that save no tile are closed.

    A closed gap is narrower than a tile, so no tile can fall into it.
    """
    pieces = sorted(
        (piece.bounds[0], piece.bounds[2]) for piece in shapely.get_parts(part) if piece.area > 0
    )
    merged: list[tuple[float, float]] = []
    for from_um, to_um in pieces:
        if merged and from_um - merged[-1][1] < least_gap_um:
            merged[-1] = (merged[-1][0], max(merged[-1][1], to_um))
        else:
            merged.append((from_um, to_um))
    return merged


def _serpentines(
    rows: list[list[tuple[float, float]]],
) -> list[list[tuple[int, int, float, float]]]:
    """Return the four ways to mow: from the first or last row, first to the left or the right."""
    numbered = [
        [(r, c, x_um, y_um) for c, (x_um, y_um) in enumerate(row)] for r, row in enumerate(rows)
    ]
    routes = []
    for ordered in (numbered, numbered[::-1]):
        for first in (0, 1):
            route: list[tuple[int, int, float, float]] = []
            for i, row in enumerate(ordered):
                route.extend(row if (i + first) % 2 == 0 else row[::-1])
            routes.append(route)
    return routes


def _route_s(route: Sequence[tuple[int, int, float, float]], move_time: MoveTime) -> float:
    places = np.array([(x_um, y_um) for _, _, x_um, y_um in route])
    if len(places) < 2:
        return 0.0
    steps = np.diff(places, axis=0)
    return float(np.sum(move_time(steps[:, 0], steps[:, 1])))
