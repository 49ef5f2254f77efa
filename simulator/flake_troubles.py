"""What detectors stumble over, laid out on purpose: one kind of trouble all over a little chip.

A chip as `simulator.chip` lays it out has each of these here and there. To mend a failure, or to
teach a network about it, it takes many of one kind in one frame. The kinds are those that
photographs of real chips have and that look like flakes or tear flakes apart:

- "specks": crumbs and drops at the limit of resolution, so close together that the lens averages
  them into the colour of a thin flake;
- "cracks": flakes with cracks, narrower than the blur or a few px wide, right across or ending
  within;
- "tips": flakes that run out into points, where ever more substrate mixes into their colour;
- "rims": flakes with a narrow bright or dark band along their edge (rolled, stepped), and terraces
  many layers apart side by side, whose common border passes through all colours in between;
- "plates": even crystals a little beyond any layer that can be counted, with fine steps.

Sizes are in px of the frame, for it is the blur that makes the trouble.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import shapely
from shapely import affinity

from inference.flakes.materials import MATERIALS
from simulator import shapes
from simulator.chip import SUBSTRATE, Chip, ChipSettings, Flake, Paint, Patch, Terrace

Trouble: TypeAlias = Literal["specks", "cracks", "tips", "rims", "plates"]
TROUBLES: tuple[Trouble, ...] = ("specks", "cracks", "tips", "rims", "plates")

_GRID_UM = 1e-3  # on which shapes are cut: exact enough, and never inconsistent
_CELL_PX = 170.0  # one object in each
_LEAST_PX2 = 70.0  # of a piece that is worth being called a terrace


def troubled_chip(
    rng: np.random.Generator, trouble: Trouble, material: str, side_px: int, px_per_um: float
) -> Chip:
    """A chip around the origin, as large as the frame, with nothing on it but this trouble."""
    layout = _Layout(rng, material, px_per_um)
    makers: Mapping[Trouble, Callable[[_Layout], None]] = {
        "specks": _Layout.add_specks,
        "cracks": _Layout.add_cracked,
        "tips": _Layout.add_tipped,
        "rims": _Layout.add_rimmed,
        "plates": _Layout.add_plate,
    }
    cells = max(int(side_px / _CELL_PX), 1)
    pitch_um = side_px / px_per_um / cells
    for row in range(cells):
        for column in range(cells):
            if rng.random() < 0.2:
                continue
            middle = (np.array([column, row]) - 0.5 * (cells - 1)) * pitch_um
            layout.at_um = middle + rng.normal(0.0, 0.04 * pitch_um, 2)
            makers[trouble](layout)
    side_mm = 1e-3 * side_px / px_per_um
    settings = ChipSettings(
        seed=int(rng.integers(2**31)),
        size_mm=(2.0 * side_mm, 2.0 * side_mm),
        materials=(material,),
        fiducials=False,
    )
    reach = 2e3 * side_mm
    outline = np.array([[-reach, -reach], [reach, -reach], [reach, reach], [-reach, reach]])
    return Chip(settings, outline, tuple(layout.patches), (), (), tuple(layout.flakes))


class _Layout:
    """Objects laid one by one around `at_um`."""

    def __init__(self, rng: np.random.Generator, material: str, px_per_um: float) -> None:
        self.at_um = np.zeros(2)
        self.patches: list[Patch] = []
        self.flakes: list[Flake] = []
        self._rng = rng
        self._material = MATERIALS[material]
        self._px_um = 1.0 / px_per_um

    def add_specks(self) -> None:
        """A cloud of crumbs, of glue drops, or of both."""
        rng = self._rng
        spread_px = np.exp(rng.uniform(np.log(9.0), np.log(32.0), 2))
        turn = rng.uniform(0.0, np.pi)
        matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        crowding = float(rng.uniform(0.4, 0.9))  # 0.5: evenly, more: towards the middle
        cover = float(rng.uniform(0.1, 0.6))
        radius_px = float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))
        glue_share = float(rng.choice([0.0, 0.3, 1.0]))
        thickness_nm = np.exp(rng.uniform(np.log(1.0), np.log(12.0)))
        area_px2 = 6.0 * float(np.prod(spread_px))
        number = min(int(cover * area_px2 / (np.pi * radius_px**2)), 3_000)
        for _ in range(number):
            angle, far = rng.uniform(0.0, 2.0 * np.pi), 1.4 * rng.uniform(0.0, 1.0) ** crowding
            away = far * np.array([np.cos(angle), np.sin(angle)]) * spread_px @ matrix
            radius = radius_px * float(np.exp(rng.normal(0.0, 0.4)))
            ring = shapes.drop(rng, radius * self._px_um, int(rng.integers(3, 8)))
            nm = float(thickness_nm * np.exp(rng.normal(0.0, 0.5)))
            if rng.random() < glue_share:
                paint = Paint("organic", round(max(4.0 * nm, 1.0)))
            else:
                paint = self._crystal(max(1, round(nm / self._material.layer_thickness_nm)))
            self.patches.append(Patch((ring + away * self._px_um + self.at_um,), paint))

    def add_cracked(self) -> None:
        """A flake with one to three cracks."""
        rng = self._rng
        body = self._body(float(np.exp(rng.uniform(np.log(35.0), np.log(110.0)))))
        size_um = float(np.sqrt(body.area))
        bands = []
        for _ in range(int(rng.integers(1, 4))):
            is_across = rng.random() < 0.6
            length_um = (2.5 if is_across else rng.uniform(0.4, 0.9)) * size_um
            line = shapes.wandering_line(rng, length_um, 0.07, 16)
            if is_across:
                line = line - line.mean(axis=0) + rng.normal(0.0, 0.2 * size_um, 2)
            else:  # from the edge inwards
                edge = np.array(body.exterior.interpolate(rng.random(), normalized=True).coords[0])
                inward = np.asarray(body.centroid.coords[0]) - edge
                heading = np.arctan2(*(line[-1] - line[0])[::-1])
                turn = np.arctan2(inward[1], inward[0]) - heading
                way = affinity.rotate(shapely.LineString(line), turn, (0, 0), use_radians=True)
                line = np.asarray(way.coords) + edge
            line = line + np.asarray(body.centroid.coords[0]) * is_across
            width_px = float(np.exp(rng.uniform(np.log(0.5), np.log(6.0))))
            bands.append(shapely.Polygon(shapes.ribbon(line, width_px * self._px_um)).buffer(0.0))
        gap = shapely.union_all(bands, grid_size=_GRID_UM)
        rest = shapely.difference(body, gap, grid_size=_GRID_UM)
        self._add_flake([(part, self._count()) for part in [rest]])

    def add_tipped(self) -> None:
        """A flake with one to three long points."""
        rng = self._rng
        body = self._body(float(np.exp(rng.uniform(np.log(25.0), np.log(70.0)))))
        size_um = float(np.sqrt(body.area))
        middle = np.asarray(body.centroid.coords[0])
        parts: list[shapely.Geometry] = [body]
        for _ in range(int(rng.integers(1, 4))):
            angle = float(rng.uniform(0.0, 2.0 * np.pi))
            along = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-along[1], along[0]])
            reach_um = size_um * 0.4 + self._px_um * float(rng.uniform(20.0, 70.0))
            half_um = 0.5 * self._px_um * float(rng.uniform(6.0, 22.0))
            parts.append(
                shapely.Polygon(
                    [
                        middle + across * half_um,
                        middle - across * half_um,
                        middle + along * reach_um,
                    ]
                )
            )
        whole = shapely.union_all(parts, grid_size=_GRID_UM)
        self._add_flake([(whole, self._count())])

    def add_rimmed(self) -> None:
        """A flake of one or two terraces with a narrow band of another thickness along edges."""
        rng = self._rng
        body = self._body(float(np.exp(rng.uniform(np.log(40.0), np.log(110.0)))))
        count = self._count()
        pieces: list[tuple[shapely.Geometry, int]] = [(body, count)]
        if rng.random() < 0.6:
            share = float(rng.uniform(0.3, 0.7))
            side = shapes.half_plane(rng, body, rng.uniform(0.0, 2.0 * np.pi), share, is_torn=False)
            other = count + int(rng.integers(3, 12))
            pieces = [
                (shapely.intersection(body, side, grid_size=_GRID_UM), count),
                (shapely.difference(body, side, grid_size=_GRID_UM), other),
            ]
        self._add_flake(pieces)
        for region, layers in pieces:
            if rng.random() < 0.3:
                continue
            width_um = self._px_um * float(np.exp(rng.uniform(np.log(0.7), np.log(4.0))))
            band = region.difference(region.buffer(-width_um))
            angle, share = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.2, 1.0)
            side = shapes.half_plane(rng, shapes.largest(region), angle, share, is_torn=False)
            band = shapely.intersection(band, side, grid_size=_GRID_UM)
            thicker = layers + int(rng.integers(1, 4 + 2 * layers))
            thinner = max(1, layers - int(rng.integers(1, 4)))
            of_band = thicker if rng.random() < 0.75 or thinner == layers else thinner
            self._add_patches(band, self._crystal(of_band), self._crystal(layers))

    def add_plate(self) -> None:
        """A crystal of 13 to 30 layers, half of them with a staircase of narrow steps."""
        rng = self._rng
        body = self._body(float(np.exp(rng.uniform(np.log(40.0), np.log(120.0)))))
        count = int(rng.integers(13, 31))
        pieces: list[tuple[shapely.Geometry, int]] = []
        rest: shapely.Geometry = body
        if rng.random() < 0.5:
            angle = rng.uniform(0.0, 2.0 * np.pi)
            for share in np.sort(rng.uniform(0.05, 0.6, int(rng.integers(1, 6)))):
                side = shapes.half_plane(rng, body, angle, float(share), is_torn=False)
                step = shapely.intersection(rest, side, grid_size=_GRID_UM)
                pieces.append((step, count))
                rest = shapely.difference(rest, side, grid_size=_GRID_UM)
                count += int(rng.integers(1, 5))
        self._add_flake([*pieces, (rest, count)])

    def _body(self, size_px: float) -> shapes.Polygon:
        area_um2 = (size_px * self._px_um) ** 2
        lattice = float(self._rng.uniform(0.0, np.pi))
        body = shapes.crystal(self._rng, area_um2, self._material.corner_deg, lattice)
        x, y = self.at_um.tolist()
        return affinity.translate(body, x - body.centroid.x, y - body.centroid.y)

    def _count(self) -> int:
        return int(np.clip(round(np.exp(self._rng.uniform(0.0, np.log(9.5)))), 1, 9))

    def _crystal(self, layers: int) -> Paint:
        return Paint("crystal", layers * self._material.layer_thickness_nm, self._material.key)

    def _add_patches(self, region: shapely.Geometry, paint: Paint, under: Paint) -> None:
        for part in shapes.polygons(region):
            oriented = shapely.geometry.polygon.orient(part)
            rings = (oriented.exterior, *oriented.interiors)
            points = tuple(np.asarray(ring.coords)[:-1] for ring in rings)
            self.patches.append(Patch(points, paint, under))

    def _add_flake(self, pieces: list[tuple[shapely.Geometry, int]]) -> None:
        terraces = []
        for region, layers in pieces:
            paint = self._crystal(layers)
            self._add_patches(region, paint, SUBSTRATE)
            for part in shapes.polygons(region):
                if part.area < _LEAST_PX2 * self._px_um**2:
                    continue
                ring = np.asarray(shapely.geometry.polygon.orient(part).exterior.coords)[:-1]
                centre = (float(part.centroid.x), float(part.centroid.y))
                terraces.append(Terrace(ring, layers, paint.thickness_nm, float(part.area), centre))
        if terraces:
            outline = max((t.polygon_um for t in terraces), key=len)
            area_um2 = sum(t.area_um2 for t in terraces)
            number = len(self.flakes)
            self.flakes.append(
                Flake(number, self._material.key, outline, area_um2, tuple(terraces))
            )
