"""Outlines of the things that lie on a chip: cleaved crystals, steps, torn edges, drops.

Pure geometry in um, seeded by the generator that is passed in. A crystal torn off a block by tape
shows straight edges along few directions, edges torn freely between them, bites, slivers, and steps
that mostly run along the same directions. So a flake is an intersection of half planes with the
normals of its lattice, some of them turned at random, some edges roughened; its terraces are what
successive cuts leave.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from shapely import affinity

Points: TypeAlias = npt.NDArray[np.float64]  # (n, 2) x, y in um
Polygon: TypeAlias = shapely.Polygon


def signed_area_um2(points: Points) -> float:
    """Shoelace area; > 0 for counter-clockwise with y up."""
    x, y = points[:, 0], points[:, 1]
    return float(0.5 * np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def cut_convex(points: Points, normal: Points, offset_um: float) -> Points:
    """The part of a convex polygon with point . normal <= offset (Sutherland-Hodgman)."""
    height = points @ normal - offset_um
    inside = height <= 0.0
    if inside.all():
        return points
    kept: list[Points] = []
    for i in range(len(points)):
        j = (i + 1) % len(points)
        if inside[i]:
            kept.append(points[i])
        if inside[i] != inside[j]:
            share = height[i] / (height[i] - height[j])
            kept.append(points[i] + share * (points[j] - points[i]))
    return np.asarray(kept).reshape(-1, 2)


def torn_line(
    rng: np.random.Generator, start: Points, end: Points, roughness: float, levels: int
) -> Points:
    """Points from start to before end, displaced midway and midway again: a torn edge."""
    line = np.stack([start, end])
    for level in range(levels):
        step = np.diff(line, axis=0)
        across = np.stack([-step[:, 1], step[:, 0]], axis=1)
        shift = rng.normal(0.0, roughness * 0.75**level, len(step))[:, None] * across
        share = rng.uniform(0.35, 0.65, len(step))[:, None]
        middle = line[:-1] + share * step + shift
        woven = np.empty((2 * len(step) + 1, 2))
        woven[0::2], woven[1::2] = line, middle
        line = woven
    return line[:-1]


def crystal(
    rng: np.random.Generator, area_um2: float, corner_deg: float, lattice_rad: float
) -> Polygon:
    """One cleaved flake around the origin with about this area; simple, without holes."""
    sides = round(360.0 / corner_deg)
    angles = lattice_rad + np.arange(sides) * np.deg2rad(corner_deg)
    if sides > 4:  # a triangle, a trapezium ... rarely the whole hexagon
        angles = rng.permutation(angles)[: rng.integers(3, sides + 1)]
    torn = rng.random(len(angles)) < 0.4
    angles = angles + np.where(torn, rng.normal(0.0, 0.35, len(angles)), 0.0)
    angles = angles + rng.normal(0.0, np.deg2rad(1.2), len(angles))
    points = np.array([[-6.0, -6.0], [6.0, -6.0], [6.0, 6.0], [-6.0, 6.0]])
    for angle in angles:
        normal = np.array([np.cos(angle), np.sin(angle)])
        points = cut_convex(points, normal, float(np.exp(rng.normal(0.0, 0.35))))
    # The directions drawn may leave it open towards one side: a tear closes it.
    for angle in rng.uniform(0.0, 2.0 * np.pi) + np.arange(3) * 2.1:
        points = cut_convex(points, np.array([np.cos(angle), np.sin(angle)]), 2.0)
    stretch = float(np.exp(abs(rng.normal(0.0, 0.35))))
    turn = lattice_rad + rng.integers(sides) * np.deg2rad(corner_deg) + np.pi / 2.0
    along = np.array([np.cos(turn), np.sin(turn)])
    points = points + np.outer(points @ along, along) * (stretch - 1.0)
    outline: list[Points] = []
    for i in range(len(points)):
        start, end = points[i], points[(i + 1) % len(points)]
        style = rng.random()
        if style < 0.55:
            outline.append(start[None])
        else:
            outline.append(torn_line(rng, start, end, 0.05 if style < 0.85 else 0.11, 4))
    shape = largest(shapely.Polygon(np.concatenate(outline)).buffer(0.0))
    for _ in range(rng.choice(3, p=[0.5, 0.35, 0.15])):
        shape = largest(shape.difference(_bite(rng, shape)))
    shape = affinity.translate(shape, -shape.centroid.x, -shape.centroid.y)
    scale = float(np.sqrt(area_um2 / max(shape.area, 1e-9)))
    return affinity.scale(shape, scale, scale, origin=(0.0, 0.0))


def _bite(rng: np.random.Generator, shape: Polygon) -> Polygon:
    """A wedge from outside into the shape, as if a piece had stayed on the tape."""
    size = float(np.sqrt(shape.area))
    tip = np.array(shape.exterior.interpolate(rng.random(), normalized=True).coords[0])
    middle = np.array(shape.centroid.coords[0])
    inward = middle - tip
    inward = inward / max(float(np.hypot(*inward)), 1e-9)
    depth = rng.uniform(0.1, 0.45) * size
    opening = rng.uniform(0.25, 0.9)
    across = np.array([-inward[1], inward[0]])
    lean = rng.normal(0.0, 0.5)
    far = tip - inward * 0.5 * size
    point = tip + (inward + lean * across) * depth
    left = torn_line(rng, far + across * opening * size, point, 0.06, 3)
    right = torn_line(rng, point, far - across * opening * size, 0.06, 3)
    return shapely.Polygon(np.concatenate([left, right, far[None] - across * 0.01])).buffer(0.0)


def largest(shape: shapely.Geometry) -> Polygon:
    """The largest part, without holes."""
    parts = polygons(shape)
    if not parts:
        return shapely.Polygon()
    return shapely.Polygon(max(parts, key=lambda part: part.area).exterior)


def polygons(shape: shapely.Geometry) -> list[Polygon]:
    """The polygons a geometry consists of; lines and points dropped."""
    parts = shapely.get_parts(shape)
    return [part for part in parts if isinstance(part, shapely.Polygon) and not part.is_empty]


def half_plane(
    rng: np.random.Generator, shape: Polygon, angle_rad: float, share: float, is_torn: bool
) -> Polygon:
    """A region whose edge crosses the shape and leaves about this share of its width inside."""
    normal = np.array([np.cos(angle_rad), np.sin(angle_rad)])
    along = np.array([-normal[1], normal[0]])
    points = np.asarray(shape.exterior.coords)
    low, high = float((points @ normal).min()), float((points @ normal).max())
    level = low + share * (high - low)
    reach = 3.0 * float(np.ptp(points, axis=0).max()) + 1.0
    middle = along * float(np.mean(points @ along)) + normal * level
    roughness, levels = (0.012, 7) if is_torn else (0.0, 0)
    edge = torn_line(rng, middle + along * reach, middle - along * reach, roughness, levels)
    left, right = middle - along * reach, middle + along * reach
    far = np.stack([left, left - normal * reach, right - normal * reach])
    return shapely.Polygon(np.concatenate([edge, far])).buffer(0.0)


def drop(rng: np.random.Generator, radius_um: float, corners: int = 10) -> Points:
    """A roundish outline around the origin."""
    angle = (np.arange(corners) + rng.uniform(0.0, 1.0)) * 2.0 * np.pi / corners
    radius = radius_um * np.exp(rng.normal(0.0, 0.12, corners))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def ribbon(points: Points, width_um: float) -> Points:
    """A band of constant width along a line, as one ring."""
    step = np.gradient(points, axis=0)
    across = np.stack([-step[:, 1], step[:, 0]], axis=1)
    across = across / np.maximum(np.hypot(across[:, 0], across[:, 1])[:, None], 1e-9)
    across = across * (width_um / 2.0)
    return np.concatenate([points + across, (points - across)[::-1]])


def wandering_line(
    rng: np.random.Generator, length_um: float, bend_rad: float, points: int
) -> Points:
    """A smooth random path from the origin; `bend_rad` is its change of heading, rms, per step."""
    heading = rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(rng.normal(0.0, bend_rad, points))
    step = length_um / points
    return np.cumsum(step * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
