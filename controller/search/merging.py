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
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from pydantic import BaseModel, ConfigDict, Field
from shapely import affinity
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.strtree import STRtree

from controller.messages import Piece

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoxUm: TypeAlias = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max on the stage


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
    thickness_interval_nm: tuple[float, float] | None = None


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
    thickness_interval_nm: tuple[float, float] | None = None


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
        thickness_interval_nm=piece.thickness_interval_nm,
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
    coverage = _Coverage(tile_boxes_um)
    terraces = []
    seen: set[int] = set()
    for i in range(len(pieces)):
        if i in seen:
            continue
        offsets = _offsets(i, shifts)
        seen.update(offsets)
        terraces.append(_unite(pieces, offsets, coverage, settings))
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
    shift_um = _shift_um(a, b, box_a, box_b, jitter_um)
    moved_b = affinity.translate(b.polygon, *shift_um)
    shared = box_a.intersection(affinity.translate(box_b, *shift_um))
    part_a, part_b = a.polygon.intersection(shared), moved_b.intersection(shared)
    common_um2 = part_a.intersection(part_b).area
    union_um2 = part_a.area + part_b.area - common_um2
    if union_um2 > 0 and common_um2 / union_um2 >= settings.least_iou:
        return shift_um
    if (a.material, a.layers) != (b.material, b.layers):
        return None
    # A cut piece that lies on its neighbour, give or take what the stage is out.
    for cut, part, other in ((a, part_a, moved_b), (b, part_b, a.polygon)):
        if cut.touches_border and part.area > 0:
            cover = part.intersection(other.buffer(jitter_um)).area / part.area
            if cover >= settings.least_cover:
                return shift_um
    if a.touches_border and b.touches_border and _is_opposite(a.polygon, moved_b, box_a, box_b):
        return shift_um
    return None


def _is_opposite(a: Polygon, b: Polygon, box_a: Polygon, box_b: Polygon) -> bool:
    """Say whether two pieces end at the border between two tiles beside each other.

    For tiles that hardly overlap: along the border, most of the shorter end faces the other.
    """
    ax0, ay0, ax1, ay1 = box_a.bounds
    bx0, by0, bx1, by1 = box_b.bounds
    width_um = min(ax1, bx1) - max(ax0, bx0)
    height_um = min(ay1, by1) - max(ay0, by0)
    near_um = max(2.0 * a.distance(b), 2.0)
    if width_um < height_um:  # the border runs along y
        border = box(min(ax1, bx1) - near_um, ay0, max(ax0, bx0) + near_um, ay1)
        axis = 1
    else:
        border = box(ax0, min(ay1, by1) - near_um, ax1, max(ay0, by0) + near_um)
        axis = 0
    end_a, end_b = a.intersection(border), b.intersection(border)
    if end_a.is_empty or end_b.is_empty or min(width_um, height_um) > 2.0 * near_um:
        return False
    from_um = max(end_a.bounds[axis], end_b.bounds[axis])
    to_um = min(end_a.bounds[axis + 2], end_b.bounds[axis + 2])
    shorter_um = min(
        end_a.bounds[axis + 2] - end_a.bounds[axis], end_b.bounds[axis + 2] - end_b.bounds[axis]
    )
    return bool(to_um - from_um >= 0.5 * shorter_um)


def _shift_um(
    a: TerracePiece, b: TerracePiece, box_a: Polygon, box_b: Polygon, most_um: float
) -> tuple[float, float]:
    """Estimate by how much b must move to lie on a; (0, 0) where nothing speaks for a shift."""
    if not (a.touches_border or b.touches_border):
        centre_a, centre_b = a.polygon.centroid, b.polygon.centroid
        dx_um, dy_um = centre_a.x - centre_b.x, centre_a.y - centre_b.y
    else:
        dx_um, dy_um = _outline_shift_um(a.polygon, b.polygon, box_a, box_b, most_um)
    is_believable = math.hypot(dx_um, dy_um) <= most_um
    return (dx_um, dy_um) if is_believable else (0.0, 0.0)


def _outline_shift_um(
    a: Polygon, b: Polygon, box_a: Polygon, box_b: Polygon, most_um: float
) -> tuple[float, float]:
    """Bring the outlines that both tiles show onto each other, as far as they determine it.

    Points on b's outline, away from where a border cut it, are drawn to the nearest point of a's
    (iterated closest points, with distances along the normal: Chen and Medioni 1992). A straight
    edge fixes only the direction across it, and nothing is done along it.
    """
    shared = box_a.intersection(box_b)
    inner = shared.buffer(-1.5 * most_um, join_style="mitre")
    if inner.is_empty:
        return 0.0, 0.0
    points, normals = _outline_points(b, 1.0)
    seen = shapely.contains_xy(inner, points[:, 0], points[:, 1])
    points, normals = points[seen], normals[seen]
    outline = shapely.boundary(a)
    shift = np.zeros(2)
    if len(points) < 4:
        return 0.0, 0.0
    for _ in range(6):
        lines = shapely.shortest_line(shapely.points(points + shift), outline)
        gap = shapely.get_coordinates(lines).reshape(-1, 2, 2)
        gap = gap[:, 1] - gap[:, 0]  # (n, 2) from b's outline to a's
        near = np.hypot(gap[:, 0], gap[:, 1]) <= 2.0 * most_um
        if np.count_nonzero(near) < 4:
            return 0.0, 0.0
        across = normals[near]
        normal_matrix = across.T @ across + 0.05 * len(across) * np.eye(2)
        step = np.linalg.solve(normal_matrix, across.T @ np.sum(across * gap[near], axis=1))
        shift = shift + step
        if np.hypot(step[0], step[1]) < 0.02:
            break
    return float(shift[0]), float(shift[1])


def _outline_points(polygon: Polygon, spacing_um: float) -> tuple[FloatArray, FloatArray]:
    """Points along the outer outline, at most 200, and the unit normals there; (n, 2) each."""
    corners = shapely.get_coordinates(polygon.exterior)
    edges = np.diff(corners, axis=0)
    lengths_um = np.hypot(edges[:, 0], edges[:, 1])
    keep = lengths_um > 0
    corners, edges, lengths_um = corners[:-1][keep], edges[keep], lengths_um[keep]
    ends_um = np.cumsum(lengths_um)
    count = int(np.clip(ends_um[-1] / spacing_um, 12, 200))
    along_um = (np.arange(count) + 0.5) * ends_um[-1] / count
    which = np.minimum(np.searchsorted(ends_um, along_um, side="right"), len(edges) - 1)
    unit = edges[which] / lengths_um[which, None]
    points = corners[which] + unit * (along_um - (ends_um - lengths_um)[which])[:, None]
    return points, np.column_stack([unit[:, 1], -unit[:, 0]])


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
    coverage: _Coverage,
    settings: MergingSettings,
) -> Terrace:
    indices = sorted(offsets)
    members = [pieces[i] for i in indices]
    outline = _whole_outline(members) or _joined_outline(members, indices, offsets, settings)
    polygon, area_um2, is_whole = outline
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
        area_um2=area_um2,
        material=material,
        layers=layers,
        layer_probabilities=tuple((n, p) for (m, n), p in labels if m == material),
        thickness_nm=float(np.dot(share, [p.thickness_nm for p in spoken])),
        contrast_rgb=_weighted_rgb(share, spoken),
        off_ladder=float(np.dot(share, [p.off_ladder for p in spoken])),
        score=float(np.dot(share, [p.score for p in spoken])),
        sharpness=max(p.sharpness for p in members),
        is_cut=not is_whole and coverage.ends_at(polygon, settings.jitter_um),
        pieces=tuple(indices),
        tiles=tuple(sorted({p.tile_index for p in members})),
        thickness_interval_nm=_mean_interval(share, spoken),
    )


def _mean_interval(
    share: npt.NDArray[np.float64], spoken: Sequence[TerracePiece]
) -> tuple[float, float] | None:
    """What several tiles share is systematic: the interval gets no narrower by looking twice."""
    intervals = [p.thickness_interval_nm for p in spoken if p.thickness_interval_nm is not None]
    if len(intervals) < len(spoken):
        return None
    low_nm, high_nm = share @ np.array(intervals)
    return float(low_nm), float(high_nm)


def _whole_outline(members: Sequence[TerracePiece]) -> tuple[Polygon, float, bool] | None:
    """Take a terrace from a tile that shows it whole, at the mean of where such tiles put it."""
    whole = [p for p in members if not p.touches_border]
    if not whole:
        return None
    best = max(whole, key=lambda p: (p.sharpness, p.area_um2))
    # A piece that others outgrow is no whole one: its tile lost the rest to dust or to shading.
    if max(p.polygon.area for p in members) > 1.25 * best.polygon.area:
        return None
    if len(whole) == 1:
        return best.polygon, best.area_um2, True
    # Cut pieces have their centroid elsewhere.
    alike = [p for p in whole if abs(p.polygon.area / best.polygon.area - 1.0) < 0.1]
    mean_um = np.mean([p.polygon.centroid.coords[0] for p in alike], axis=0)
    own = best.polygon.centroid
    polygon = affinity.translate(best.polygon, float(mean_um[0] - own.x), float(mean_um[1] - own.y))
    return polygon, best.area_um2, True


def _joined_outline(
    members: Sequence[TerracePiece],
    indices: Sequence[int],
    offsets: Mapping[int, tuple[float, float]],
    settings: MergingSettings,
) -> tuple[Polygon, float, bool]:
    """Unite pieces, brought to each other, at the mean of where their tiles put them."""
    seen_um2 = np.array([piece.polygon.area for piece in members])
    total_um2 = max(float(seen_um2.sum()), 1e-12)
    offset_um = np.array([offsets[i] for i in indices])
    mean_um = seen_um2 @ offset_um / total_um2
    moved = [
        affinity.translate(piece.polygon, float(x_um), float(y_um))
        for piece, (x_um, y_um) in zip(members, offset_um - mean_um, strict=True)
    ]
    united = shapely.union_all(moved)
    if len(members) > 1:
        united = _closed(united, settings.jitter_um)
    polygon = _largest(united) or members[0].polygon
    grain = sum(piece.area_um2 for piece in members) / total_um2  # mask over outline
    return polygon, float(polygon.area * grain), False


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


def _weighted_rgb(share: FloatArray, spoken: Sequence[TerracePiece]) -> tuple[float, float, float]:
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


class _Coverage:
    """What the tiles have seen together, in the stage's own belief."""

    def __init__(self, tile_boxes_um: Mapping[int, BoxUm]) -> None:
        self._rim = shapely.boundary(shapely.union_all([box(*b) for b in tile_boxes_um.values()]))
        shapely.prepare(self._rim)

    def ends_at(self, polygon: Polygon, within_um: float) -> bool:
        """Say whether a polygon reaches the rim, beyond which nothing was seen."""
        return bool(shapely.dwithin(self._rim, polygon, within_um))
