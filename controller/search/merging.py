"""From what each tile saw to what lies on the chip: no terrace twice, none lost, none glued.

Two pieces from different tiles are the same terrace if they agree on the ground that BOTH tiles
saw, the shared overlap. A distance threshold cannot do this: wide enough for a large flake whose
halves have far centroids, it also swallows true neighbours. Three cases:

- Both show it: inside the overlap the two masks cover each other (IoU), after a shift of at most
  `jitter_um` that takes up where the stage did not quite stand.
- A tile's border cuts it: the cut piece lies on a piece of the neighbour which goes on beyond that
  border, and carries the same label.
- There is no overlap, or less than the jitter: both pieces end at the common border, opposite each
  other, with the same label.

Pieces of ONE tile are never compared: the detector has told them apart on one image already. They
can still become one through a third piece, as the arms of a U do whose bend lies in the next tile.

A stage that does not stand quite where it says would fatten every union, so pieces are brought to
each other before they are united; a terrace that some tile shows whole is taken from there alone.
Positions are the mean over the tiles that saw it. The label is what most of the seen area says.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from pydantic import BaseModel, ConfigDict, Field
from shapely import affinity
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.strtree import STRtree

from controller.messages import Piece

BoxUm = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max on the stage


class MergingSettings(BaseModel):
    """When two pieces are one terrace, and when two terraces are one flake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    jitter_um: float = Field(2.5, ge=0, le=50)
    """Most that two tiles may be out relative to each other, as a length."""
    least_iou: float = Field(0.5, gt=0, le=1)
    """Inside the shared overlap, after the shift."""
    least_cover: float = Field(0.6, gt=0, le=1)
    """Share of a cut piece, inside the overlap, that lies on the neighbour's piece."""
    touch_um: float = Field(1.5, ge=0, le=50)
    """Terraces of one material that are closer belong to one flake."""


@dataclass(frozen=True, slots=True, eq=False)
class TerracePiece:
    """One terrace as one tile shows it."""

    tile_index: int
    polygon: Polygon  # stage um, holes included
    area_um2: float  # of the mask; an outline through pixel centres encloses a little less
    material: str
    layers: int
    layer_probabilities: tuple[tuple[int, float], ...]
    thickness_nm: float
    contrast_rgb: tuple[float, float, float]
    off_ladder: float
    score: float
    sharpness: float
    touches_border: bool  # of its tile


@dataclass(frozen=True, slots=True, eq=False)
class Terrace:
    """One terrace of the chip."""

    polygon: Polygon  # stage um
    x_um: float  # centroid
    y_um: float
    area_um2: float
    material: str
    layers: int
    layer_probabilities: tuple[tuple[int, float], ...]  # descending
    thickness_nm: float
    contrast_rgb: tuple[float, float, float]
    off_ladder: float
    score: float
    sharpness: float
    is_cut: bool  # it goes on where no tile looked
    pieces: tuple[int, ...]  # indices into what was merged
    tiles: tuple[int, ...]  # that show it, ascending


@dataclass(frozen=True, slots=True, eq=False)
class Flake:
    """Touching terraces of one material."""

    terraces: tuple[Terrace, ...]
    material: str
    x_um: float  # area-weighted centroid
    y_um: float
    area_um2: float


def terrace_piece(tile_index: int, piece: Piece, sharpness: float) -> TerracePiece | None:
    """Turn a journal's piece into a polygon; None where the outline encloses nothing."""
    if len(piece.outline_um) < 3:
        return None
    holes = [hole for hole in piece.holes_um if len(hole) >= 3]
    polygon = _largest(shapely.make_valid(Polygon(piece.outline_um, holes)))
    if polygon is None:
        return None
    return TerracePiece(
        tile_index=tile_index,
        polygon=polygon,
        area_um2=piece.area_um2,
        material=piece.material,
        layers=piece.layers,
        layer_probabilities=piece.layer_probabilities,
        thickness_nm=piece.thickness_nm,
        contrast_rgb=piece.contrast_rgb,
        off_ladder=piece.off_ladder,
        score=piece.score,
        sharpness=sharpness,
        touches_border=piece.touches_border,
    )


def merge(
    pieces: Sequence[TerracePiece],
    tile_boxes_um: Mapping[int, BoxUm],
    settings: MergingSettings | None = None,
) -> tuple[Flake, ...]:
    """Merge the pieces of all tiles into flakes, in the order in which the tiles met them.

    tile_boxes_um: what each tile saw, by its index. Raises KeyError for a piece of no known tile.
    """
    return group_flakes(merge_terraces(pieces, tile_boxes_um, settings), settings)


def merge_terraces(
    pieces: Sequence[TerracePiece],
    tile_boxes_um: Mapping[int, BoxUm],
    settings: MergingSettings | None = None,
) -> tuple[Terrace, ...]:
    """Merge the pieces of all tiles into terraces; see `merge`."""
    settings = settings or MergingSettings()
    if not pieces:
        return ()
    links = _links(pieces, tile_boxes_um, settings)
    shifts: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    for (a, b), (dx_um, dy_um) in links.items():
        shifts[a][b] = (dx_um, dy_um)
        shifts[b][a] = (-dx_um, -dy_um)
    terraces = []
    seen: set[int] = set()
    for i in range(len(pieces)):
        if i in seen:
            continue
        offsets = _offsets(i, shifts)
        seen.update(offsets)
        terraces.append(_unite(pieces, offsets, tile_boxes_um, settings))
    return tuple(terraces)


def group_flakes(
    terraces: Sequence[Terrace], settings: MergingSettings | None = None
) -> tuple[Flake, ...]:
    """Group touching terraces of one material."""
    settings = settings or MergingSettings()
    if not terraces:
        return ()
    polygons = np.array([terrace.polygon for terrace in terraces])
    first, second = STRtree(polygons).query(
        polygons, predicate="dwithin", distance=settings.touch_um
    )
    root = list(range(len(terraces)))
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        if a < b and terraces[a].material == terraces[b].material:
            root_a, root_b = _root(root, a), _root(root, b)
            root[max(root_a, root_b)] = min(root_a, root_b)
    groups: dict[int, list[Terrace]] = defaultdict(list)
    for i, terrace in enumerate(terraces):
        groups[_root(root, i)].append(terrace)
    flakes = []
    for members in groups.values():
        area_um2 = sum(terrace.area_um2 for terrace in members)
        weight = area_um2 or 1.0
        flakes.append(
            Flake(
                terraces=tuple(members),
                material=members[0].material,
                x_um=sum(t.x_um * t.area_um2 for t in members) / weight,
                y_um=sum(t.y_um * t.area_um2 for t in members) / weight,
                area_um2=area_um2,
            )
        )
    return tuple(flakes)


def _root(root: list[int], i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = root[i]
    return i


def _links(
    pieces: Sequence[TerracePiece],
    tile_boxes_um: Mapping[int, BoxUm],
    settings: MergingSettings,
) -> dict[tuple[int, int], tuple[float, float]]:
    """Pairs (a, b), a < b, that are one terrace, with the shift that brings b onto a."""
    boxes = {index: box(*tile_boxes_um[index]) for index in {p.tile_index for p in pieces}}
    polygons = np.array([piece.polygon for piece in pieces])
    first, second = STRtree(polygons).query(
        polygons, predicate="dwithin", distance=settings.jitter_um
    )
    links: dict[tuple[int, int], tuple[float, float]] = {}
    for a, b in sorted(zip(first.tolist(), second.tolist(), strict=True)):
        if a >= b or pieces[a].tile_index == pieces[b].tile_index:
            continue
        shift_um = _same_terrace(
            pieces[a], pieces[b], boxes[pieces[a].tile_index], boxes[pieces[b].tile_index], settings
        )
        if shift_um is not None:
            links[a, b] = shift_um
    return links


def _same_terrace(
    a: TerracePiece, b: TerracePiece, box_a: Polygon, box_b: Polygon, settings: MergingSettings
) -> tuple[float, float] | None:
    """Return the shift that brings b onto a if they are one terrace, else None."""
    jitter_um = settings.jitter_um
    # Widened by the jitter, because neither border lies quite where the stage says.
    shared = box_a.intersection(box_b).buffer(jitter_um, join_style="mitre")
    if shared.is_empty:
        return None
    part_a, part_b = a.polygon.intersection(shared), b.polygon.intersection(shared)
    if part_a.is_empty or part_b.is_empty:
        return None
    shift_um = _shift_um(part_a, part_b, jitter_um)
    moved_b = affinity.translate(part_b, *shift_um)
    common = part_a.intersection(moved_b).area
    union = part_a.area + moved_b.area - common
    if union > 0 and common / union >= settings.least_iou:
        return shift_um
    if (a.material, a.layers) != (b.material, b.layers):
        return None
    if not (a.touches_border or b.touches_border):
        return None
    least = min(part_a.area, moved_b.area)
    if least > 0 and common / least >= settings.least_cover:
        return shift_um
    return None


def _shift_um(part_a: Polygon, part_b: Polygon, most_um: float) -> tuple[float, float]:
    dx_um = part_a.centroid.x - part_b.centroid.x
    dy_um = part_a.centroid.y - part_b.centroid.y
    length_um = math.hypot(dx_um, dy_um)
    return (dx_um, dy_um) if length_um <= most_um else (0.0, 0.0)


def _offsets(
    start: int, shifts: Mapping[int, Mapping[int, tuple[float, float]]]
) -> dict[int, tuple[float, float]]:
    """Offsets that bring every linked piece onto `start`, by piece."""
    offsets = {start: (0.0, 0.0)}
    queue = [start]
    while queue:
        here = queue.pop(0)
        x_um, y_um = offsets[here]
        for other in sorted(shifts.get(here, {})):
            if other not in offsets:
                dx_um, dy_um = shifts[here][other]
                offsets[other] = (x_um + dx_um, y_um + dy_um)
                queue.append(other)
    return offsets


def _unite(
    pieces: Sequence[TerracePiece],
    offsets: Mapping[int, tuple[float, float]],
    tile_boxes_um: Mapping[int, BoxUm],
    settings: MergingSettings,
) -> Terrace:
    indices = sorted(offsets)
    members = [pieces[i] for i in indices]
    whole = [i for i in indices if not pieces[i].touches_border]
    if whole:
        best = max(whole, key=lambda i: (pieces[i].sharpness, pieces[i].area_um2, -i))
        centroids = np.array([pieces[i].polygon.centroid.coords[0] for i in whole])
        mean_x_um, mean_y_um = centroids.mean(axis=0)
        own = pieces[best].polygon.centroid
        polygon = affinity.translate(
            pieces[best].polygon, float(mean_x_um - own.x), float(mean_y_um - own.y)
        )
        area_um2 = pieces[best].area_um2
    else:
        seen_um2 = np.array([piece.polygon.area for piece in members])
        weight = seen_um2 / max(float(seen_um2.sum()), 1e-12)
        mean_x_um = float(sum(w * offsets[i][0] for w, i in zip(weight, indices, strict=True)))
        mean_y_um = float(sum(w * offsets[i][1] for w, i in zip(weight, indices, strict=True)))
        moved = [
            affinity.translate(
                pieces[i].polygon, offsets[i][0] - mean_x_um, offsets[i][1] - mean_y_um
            )
            for i in indices
        ]
        united = _largest(_closed(shapely.union_all(moved), settings.jitter_um))
        polygon = united if united is not None else members[0].polygon
        grain = sum(piece.area_um2 for piece in members) / max(float(seen_um2.sum()), 1e-12)
        area_um2 = polygon.area * grain
    labels = _labels(members)
    material, layers = labels[0][0]
    spoken = [p for p in members if (p.material, p.layers) == (material, layers)] or members
    share = np.array([max(p.area_um2, 1e-9) for p in spoken])
    share = share / share.sum()
    centroid = polygon.centroid
    return Terrace(
        polygon=polygon,
        x_um=centroid.x,
        y_um=centroid.y,
        area_um2=float(area_um2),
        material=material,
        layers=layers,
        layer_probabilities=tuple((n, p) for (m, n), p in labels if m == material),
        thickness_nm=float(np.dot(share, [p.thickness_nm for p in spoken])),
        contrast_rgb=_weighted_rgb(share, spoken),
        off_ladder=float(np.dot(share, [p.off_ladder for p in spoken])),
        score=float(np.dot(share, [p.score for p in spoken])),
        sharpness=max(p.sharpness for p in members),
        is_cut=not whole and _is_cut(polygon, tile_boxes_um, settings),
        pieces=tuple(indices),
        tiles=tuple(sorted({p.tile_index for p in members})),
    )


def _labels(members: Sequence[TerracePiece]) -> list[tuple[tuple[str, int], float]]:
    """Evidence for each (material, layers), weighted by seen area and score, descending."""
    votes: dict[tuple[str, int], float] = defaultdict(float)
    total = 0.0
    for piece in members:
        weight = max(piece.area_um2, 1e-9) * max(piece.score, 1e-3)
        total += weight
        for layers, probability in piece.layer_probabilities or ((piece.layers, 1.0),):
            votes[piece.material, layers] += weight * probability
    ranked = sorted(votes.items(), key=lambda item: (-item[1], item[0]))
    return [(label, vote / total) for label, vote in ranked]


def _weighted_rgb(
    share: np.ndarray[tuple[int], np.dtype[np.float64]], spoken: Sequence[TerracePiece]
) -> tuple[float, float, float]:
    red, green, blue = share @ np.array([p.contrast_rgb for p in spoken])
    return float(red), float(green), float(blue)


def _closed(shape: shapely.Geometry, gap_um: float) -> shapely.Geometry:
    """Close slits narrower than `gap_um`, which a union at a border leaves."""
    if isinstance(shape, Polygon) and not shape.interiors:
        return shape
    half_um = 0.5 * gap_um + 1e-3
    return shape.buffer(half_um, join_style="mitre").buffer(-half_um, join_style="mitre")


def _largest(shape: shapely.Geometry) -> Polygon | None:
    parts = [p for p in shapely.get_parts(shape) if isinstance(p, Polygon | MultiPolygon)]
    flat = [q for p in parts for q in shapely.get_parts(p) if q.area > 0]
    return max(flat, key=lambda p: p.area) if flat else None


def _is_cut(
    polygon: Polygon, tile_boxes_um: Mapping[int, BoxUm], settings: MergingSettings
) -> bool:
    return True
