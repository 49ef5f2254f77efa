"""How much longer the scan's route and the tour of revisits are than they must be.

Both are held against bounds that no route can undercut, in the time of the simulated stage's own
kinematics. The scan: as many moves as tiles but one, none cheaper than the cheapest between two of
its tiles, plus settling and exposure. The tour: spanning trees with penalties on the degree of
each place, raised by subgradients (M. Held and R. M. Karp, Oper. Res. 18, 1138 (1970)); a path is a
spanning tree in which no place has more than two neighbours, and the start no more than one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from shapely import affinity
from shapely.geometry import Polygon, box

from controller.bench.numbers import quantile_row
from controller.figures import Row
from controller.search.tiling import cover_polygon, trapezoid_move_time
from controller.search.tour import visit_order
from drivers.api import Kinematics

_KINEMATICS: Final = Kinematics(20_000.0, 100_000.0, 0.05, 0.1)
_EXPOSURE_S: Final = 0.012
_FIELD_UM: Final = (737.3, 460.8)  # 1920 x 1200 pixels at 20x
_OVERLAP: Final = 0.06
_SCAN_BAR: Final = 1.02
_TOUR_BAR: Final = 1.05
_ROUNDS: Final = 150  # of the ascent

FloatArray = npt.NDArray[np.float64]


def measure(quick: bool, seed: int) -> list[Row]:
    """Ratios to the bounds, medians over chips and over sets of flakes."""
    random = np.random.default_rng(seed)
    chips, tours = (8, 3) if quick else (60, 20)
    scans = [scan_ratio(_chip(random)) for _ in range(chips)]
    rows = [
        quantile_row(
            "scan over its bound",
            scans,
            0.5,
            "",
            _SCAN_BAR,
            note="moves, settling and exposures; rectangular chips of 4 to 10 mm, turned +-5 deg",
        )
    ]
    for places in (12, 60):
        ratios = [tour_ratio(random.uniform(-4_000.0, 4_000.0, (places, 2))) for _ in range(tours)]
        rows.append(
            quantile_row(f"tour of {places} flakes over its bound", ratios, 0.5, "", _TOUR_BAR)
        )
    return rows


def scan_ratio(chip: Polygon) -> float:
    """Time of the planned scan of one chip over its lower bound."""
    move_time = trapezoid_move_time(_KINEMATICS)
    per_tile_s = _KINEMATICS.settle_s + _EXPOSURE_S
    plan = cover_polygon(chip, *_FIELD_UM, _OVERLAP, move_time, per_tile_s=per_tile_s)
    at_um = np.array([(tile.x_um, tile.y_um) for tile in plan.tiles])
    cost_s = _costs_s(at_um)
    np.fill_diagonal(cost_s, np.inf)
    cheapest_s = np.sort(cost_s.min(axis=1))[:-1].sum()  # one tile is left without a next one
    return float(plan.scan_time_bound_s(per_tile_s) / (cheapest_s + per_tile_s * len(plan.tiles)))


def tour_ratio(places_um: FloatArray) -> float:
    """Time of the tour over these places, from the first of them, over its lower bound."""
    start, others = places_um[0], places_um[1:]
    tour = visit_order(
        [(float(x), float(y)) for x, y in others],
        (float(start[0]), float(start[1])),
        trapezoid_move_time(_KINEMATICS),
    )
    return tour.travel_s / path_bound_s(_costs_s(places_um), tour.travel_s)


def path_bound_s(cost_s: FloatArray, upper_s: float) -> float:
    """Lower bound of an open path from place 0 through all; `upper_s` is the length of one."""
    allowed = np.full(len(cost_s), 2.0)
    allowed[0] = 1.0
    penalty = np.zeros(len(cost_s))
    best, step = 0.0, 1.0
    for _ in range(_ROUNDS):
        length, degree = _spanning_tree(cost_s + penalty[:, None] + penalty[None, :])
        bound = length - float(penalty @ allowed)
        if bound > best:
            best = bound
        else:
            step *= 0.95
        over = degree - allowed
        norm = float(over @ over)
        if norm == 0.0:
            break
        penalty = np.maximum(0.0, penalty + step * max(upper_s - bound, 1e-9) / norm * over)
    return best


def _spanning_tree(cost: FloatArray) -> tuple[float, FloatArray]:
    """Length of the shortest spanning tree, and how many neighbours each place has in it."""
    n = len(cost)
    degree = np.zeros(n)
    is_in = np.zeros(n, dtype=np.bool_)
    is_in[0] = True
    nearest, reach, length = np.zeros(n, dtype=np.intp), cost[0].copy(), 0.0
    for _ in range(n - 1):
        new = int(np.argmin(np.where(is_in, np.inf, reach)))
        length += float(reach[new])
        degree[new] += 1
        degree[nearest[new]] += 1
        is_in[new] = True
        is_closer = cost[new] < reach
        reach = np.where(is_closer, cost[new], reach)
        nearest = np.where(is_closer, new, nearest)
    return length, degree


def _costs_s(at_um: FloatArray) -> FloatArray:
    apart_um = at_um[:, None, :] - at_um[None, :, :]
    return trapezoid_move_time(_KINEMATICS)(apart_um[..., 0], apart_um[..., 1])


def _chip(random: np.random.Generator) -> Polygon:
    width_um, height_um = random.uniform(4_000.0, 10_000.0, 2)
    chip = box(-width_um / 2, -height_um / 2, width_um / 2, height_um / 2)
    return affinity.rotate(chip, float(random.uniform(-5.0, 5.0)))
