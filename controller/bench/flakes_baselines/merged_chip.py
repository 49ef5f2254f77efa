"""Ten thousand terraces on a tiled chip, some across tile borders, to be counted once each.

Terraces are convex polygons of 30 to 2,000 um2 that keep 3 um clear of each other; a tenth of them
lie across a border on purpose. Each tile sees what is inside it, at a place that is wrong by up to
1 um, and says so with the label that is true. Nothing is detected here: this asks what
`controller.search.merging` makes of the pieces.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.strtree import STRtree

from controller.search.merging import TerracePiece, merge_terraces

_TILE_UM: Final = (737.0, 461.0)
_STEP_UM: Final = (700.0, 430.0)
_ON_BORDERS: Final = 0.10
_CLEAR_UM: Final = 3.0
_JITTER_UM: Final = 0.7  # each way: two tiles may be out by twice that


@dataclass(frozen=True, slots=True)
class Merged:
    """How the terraces came through."""

    present: int
    across: int  # of them, those that more than one tile shows
    lost: int  # no entry lies on them
    doubled: int  # entries too many
    glued: int  # entries that cover more than one
    merging_s: float


def merged_chip(count: int, seed: int) -> Merged:
    """Lay out, cut, merge and count."""
    rng = np.random.default_rng(seed)
    columns = int(np.ceil(np.sqrt(count / 35.0)))
    size_um = (columns * _STEP_UM[0], columns * _STEP_UM[1] * 1.6)
    rows = int(np.ceil(size_um[1] / _STEP_UM[1]))
    terraces = _laid_out(rng, count, size_um)
    boxes, pieces = {}, []
    tree = STRtree(terraces)
    for row in range(rows):
        for column in range(columns):
            index = row * columns + column
            left, bottom = column * _STEP_UM[0], row * _STEP_UM[1]
            frame = box(left, bottom, left + _TILE_UM[0], bottom + _TILE_UM[1])
            boxes[index] = frame.bounds
            shift = rng.uniform(-_JITTER_UM, _JITTER_UM, 2)
            for k in np.sort(tree.query(frame, predicate="intersects")).tolist():
                moved = affinity.translate(terraces[k], *shift)
                seen = _largest(moved.intersection(frame))
                if seen is None or seen.area < 10.0:
                    continue
                pieces.append(_piece(index, seen, k, is_cut=seen.area < moved.area - 1e-6))
    began_s = time.perf_counter()
    found = merge_terraces(pieces, boxes)
    merging_s = time.perf_counter() - began_s
    entries = [terrace.polygon for terrace in found]
    hits = np.zeros(len(terraces), dtype=int)
    glued = 0
    for entry in entries:
        met = [
            k
            for k in tree.query(entry, predicate="intersects").tolist()
            if entry.intersection(terraces[k]).area > 0.3 * min(entry.area, terraces[k].area)
        ]
        hits[met] += 1
        glued += len(met) > 1
    across = len(pieces) - len({piece.thickness_nm for piece in pieces})
    return Merged(
        present=len(terraces),
        across=across,
        lost=int(np.count_nonzero(hits == 0)),
        doubled=int(np.sum(np.maximum(hits - 1, 0))),
        glued=glued,
        merging_s=merging_s,
    )


def _laid_out(rng: np.random.Generator, count: int, size_um: tuple[float, float]) -> list[Polygon]:
    """Polygons that keep clear of each other, a tenth of them on borders between tiles."""
    cell_um = 70.0
    taken: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    found: list[Polygon] = []
    while len(found) < count:
        radius = float(np.sqrt(np.exp(rng.uniform(np.log(30.0), np.log(2_000.0))) / np.pi))
        x, y = rng.uniform(radius + 5.0, np.asarray(size_um) - radius - 5.0)
        if len(found) < _ON_BORDERS * count:
            if rng.random() < 0.5:
                x = _STEP_UM[0] * rng.integers(1, max(2, round(size_um[0] / _STEP_UM[0])))
                x += rng.uniform(0.0, _TILE_UM[0] - _STEP_UM[0])
            else:
                y = _STEP_UM[1] * rng.integers(1, max(2, round(size_um[1] / _STEP_UM[1])))
                y += rng.uniform(0.0, _TILE_UM[1] - _STEP_UM[1])
        reach = 1.5 * radius
        cell = (int(x // cell_um), int(y // cell_um))
        near = [
            other
            for i in range(cell[0] - 2, cell[0] + 3)
            for j in range(cell[1] - 2, cell[1] + 3)
            for other in taken.get((i, j), ())
        ]
        if any(np.hypot(x - a, y - b) < reach + r + _CLEAR_UM for a, b, r in near):
            continue
        taken.setdefault(cell, []).append((float(x), float(y), reach))
        angles = np.sort(rng.uniform(0.0, 2.0 * np.pi, 9))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        corners *= radius * np.array([1.4, 0.8])
        shape = shapely.MultiPoint(corners + np.array([x, y])).convex_hull
        if isinstance(shape, Polygon) and shape.area > 25.0:
            found.append(shape)
    return found


def _piece(tile: int, seen: Polygon, number: int, *, is_cut: bool) -> TerracePiece:
    layers = 1 + number % 4
    return TerracePiece(
        tile_index=tile,
        polygon=seen,
        area_um2=seen.area,
        material="graphene",
        layers=layers,
        layer_probabilities=((layers, 0.99),),
        thickness_nm=float(number),  # its number on the chip, to count by
        contrast_rgb=(-0.1, -0.1, -0.1),
        off_ladder=0.0,
        score=0.9,
        sharpness=1.0,
        touches_border=is_cut,
    )


def _largest(shape: shapely.Geometry) -> Polygon | None:
    if isinstance(shape, Polygon):
        return shape if not shape.is_empty else None
    if isinstance(shape, MultiPolygon):
        return max(shape.geoms, key=lambda part: part.area)
    return None
