"""The best first: flakes ordered by what the user asked for.

Wanted is a hard question with a yes or a no for each criterion, and every no is named, so that
the report can say why a flake is not on the list. Among the wanted, the worth is the product of
how surely it is what was asked for (score and the probability of a wanted layer number), how
large it is (the logarithm of its area over the least one: twice as large is better, not twice as
good), how compact and how isolated it is. Nothing here depends on the order of the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from shapely.geometry import Polygon
from shapely.strtree import STRtree

from controller.search.merging import Terrace

_ISOLATED_UM = 20.0  # room for a stamp's edge; further neighbours do not matter


class Wish(Protocol):
    """What the user is looking for; `controller.settings.WantedSettings` is one."""

    @property
    def materials(self) -> tuple[str, ...]:
        """Keys of materials."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Wanted numbers of layers."""

    @property
    def min_area_um2(self) -> float:
        """Least area."""

    @property
    def max_area_um2(self) -> float | None:
        """Largest area, None for any."""

    @property
    def max_aspect_ratio(self) -> float | None:
        """Longest over shortest side at most, None for any."""

    @property
    def min_score(self) -> float:
        """Least score."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where one terrace stands, in the order of the input."""

    rank: int  # 1 is the best, 0 is not wanted
    worth: float  # 0..1; 0 for the unwanted
    reason: str  # why it is not wanted, "" if it is
    aspect_ratio: float
    isolation_um: float  # to the nearest other terrace, infinite when alone


def rank(terraces: Sequence[Terrace], wish: Wish) -> tuple[Ranking, ...]:
    """Rank terraces; one answer each, in the order given."""
    isolation_um = _isolation_um([terrace.polygon for terrace in terraces])
    aspects = [aspect_ratio(terrace.polygon) for terrace in terraces]
    reasons = [_refusal(t, a, wish) for t, a in zip(terraces, aspects, strict=True)]
    worths = [
        0.0 if reason else _worth(terrace, aspect, alone_um, wish)
        for terrace, aspect, alone_um, reason in zip(
            terraces, aspects, isolation_um, reasons, strict=True
        )
    ]
    wanted = [i for i, reason in enumerate(reasons) if not reason]
    wanted.sort(
        key=lambda i: (-worths[i], -terraces[i].area_um2, terraces[i].x_um, terraces[i].y_um)
    )
    places = {i: place for place, i in enumerate(wanted, start=1)}
    return tuple(
        Ranking(places.get(i, 0), worths[i], reasons[i], aspects[i], isolation_um[i])
        for i in range(len(terraces))
    )


def aspect_ratio(polygon: Polygon) -> float:
    """Longest over shortest side of the smallest enclosing rectangle, >= 1; infinite for a line."""
    rectangle = polygon.minimum_rotated_rectangle
    if not isinstance(rectangle, Polygon):
        return math.inf
    corners = np.asarray(rectangle.exterior.coords)[:3]
    sides = np.hypot(*np.diff(corners, axis=0).T)
    return float(sides.max() / sides.min()) if sides.min() > 0 else math.inf


def _refusal(terrace: Terrace, aspect: float, wish: Wish) -> str:
    if terrace.material not in wish.materials:
        return f"material {terrace.material} is not among {', '.join(wish.materials)}"
    if terrace.layers not in wish.layers:
        return f"{terrace.layers} layers are not among {', '.join(map(str, wish.layers))}"
    if terrace.area_um2 < wish.min_area_um2:
        return f"area {terrace.area_um2:.0f} um2 is less than {wish.min_area_um2:g}"
    if wish.max_area_um2 is not None and terrace.area_um2 > wish.max_area_um2:
        return f"area {terrace.area_um2:.0f} um2 is more than {wish.max_area_um2:g}"
    if wish.max_aspect_ratio is not None and aspect > wish.max_aspect_ratio:
        return f"aspect {aspect:.1f} is more than {wish.max_aspect_ratio:g}"
    if terrace.score < wish.min_score:
        return f"score {terrace.score:.2f} is less than {wish.min_score:g}"
    return ""


def _worth(terrace: Terrace, aspect: float, isolation_um: float, wish: Wish) -> float:
    sure = sum(p for layers, p in terrace.layer_probabilities if layers in wish.layers)
    least_um2 = max(wish.min_area_um2, 1.0)
    doublings = math.log2(max(terrace.area_um2, least_um2) / least_um2)
    large = (1.0 + doublings) / (4.0 + doublings)  # 1/4 at the least area, towards 1
    compact = math.pow(max(1.0, aspect / 2.0), -0.25)  # no penalty up to 2 to 1
    alone = 0.8 + 0.2 * min(isolation_um, _ISOLATED_UM) / _ISOLATED_UM
    return terrace.score * min(1.0, sure) * large * compact * alone


def _isolation_um(polygons: Sequence[Polygon]) -> list[float]:
    """Distance of each polygon to its nearest other one."""
    if len(polygons) < 2:
        return [math.inf] * len(polygons)
    tree = STRtree(polygons)
    (own, _), distances_um = tree.query_nearest(
        polygons, exclusive=True, return_distance=True, all_matches=False
    )
    nearest_um = [math.inf] * len(polygons)
    for i, distance_um in zip(own.tolist(), distances_um.tolist(), strict=True):
        nearest_um[i] = min(nearest_um[i], distance_um)
    return nearest_um
