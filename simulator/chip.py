"""A chip of oxidised silicon with exfoliated flakes on it, and the truth about them.

Everything comes from one seed. What lies on the chip is kept twice: as `Patch`es and `Speck`s,
which is all that a picture needs, and as `Flake`s with `Terrace`s, which only `Chip.truth` gives
away. That door is for tests, training and benchmarks; a controller that opens it is cheating.

Three frames: the chip's own (origin at its centre, x right, y up, um), the stage's (rotated by
`rotation_deg` and shifted to `centre_um`), and the images', which only the renderer knows. The
height of the surface is given over the stage's axes: z of best focus with the reference objective.

Crystals consist of whole layers and keep clear of each other and of dirt, so that each region has
one true answer. Dirt does what it does in a laboratory: glue in drops and films of any thickness,
whose colours run through the oxide's own and not along a crystal's ladder; dust that stands out of
focus; blisters with rings; scratches into the oxide; crumbs too small to be of use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from shapely import affinity

from inference.api import BadModel
from inference.flakes.material_cards import load_cards
from inference.flakes.materials import MATERIALS, Material
from simulator import shapes
from simulator.shapes import Points

Ratio: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Density: TypeAlias = Annotated[float, Field(ge=0.0, le=2_000.0)]
_LEAST_PART_UM2 = 3.0  # a smaller shred beside a fold is part of it
_OBJECTS_MAX = 400_000


class ChipSettings(BaseModel):
    """What is asked of a chip; the seed decides the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=1, ge=0, lt=2**63)
    size_mm: tuple[
        Annotated[float, Field(gt=0.0, le=200.0)], Annotated[float, Field(gt=0.0, le=200.0)]
    ] = (6.0, 6.0)
    oxide_nm: float = Field(default=90.0, ge=1.0, le=1_000.0)
    centre_um: tuple[
        Annotated[float, Field(ge=-1e6, le=1e6)], Annotated[float, Field(ge=-1e6, le=1e6)]
    ] = (0.0, 0.0)  # of the chip, on the stage
    rotation_deg: float = Field(default=0.0, ge=-180.0, le=180.0)  # counter-clockwise
    height_um: float = Field(default=0.0, ge=-10_000.0, le=10_000.0)  # z of best focus, centre
    tilt_um_per_mm: tuple[
        Annotated[float, Field(ge=-50.0, le=50.0)], Annotated[float, Field(ge=-50.0, le=50.0)]
    ] = (0.0, 0.0)  # rise along the stage's x and y
    bow_um: float = Field(default=0.0, ge=-200.0, le=200.0)  # > 0: the centre above the corners

    material_cards: tuple[str, ...] = Field(default=(), max_length=64)  # files or folders of them
    materials: tuple[str, ...] = Field(default=("graphene",), min_length=1, max_length=16)
    index_curves: Mapping[str, str] = Field(default_factory=dict)  # material: its measurement
    flakes_per_mm2: Density = 10.0  # of each material, thick ones included
    thick_fraction: Ratio = 0.6  # of the flakes: bulk, far beyond any layer that can be counted
    max_layers: int = Field(default=10, ge=1, le=60)  # of the thin ones
    layer_exponent: float = Field(default=0.8, ge=0.0, le=5.0)  # P(n layers) ~ n ** -exponent
    median_area_um2: float = Field(default=260.0, ge=30.0, le=50_000.0)  # of a thin flake
    area_spread: float = Field(default=0.9, ge=0.0, le=3.0)  # standard deviation of ln(area)
    min_area_um2: float = Field(default=30.0, ge=1.0, le=10_000.0)
    max_area_um2: float = Field(default=5_000.0, ge=30.0, le=1_000_000.0)
    terraces_mean: float = Field(default=1.8, ge=1.0, le=6.0)  # per flake
    cracked_fraction: Ratio = 0.1  # of the flakes: two with a gap of 1.5 to 6 um between them
    folded_fraction: Ratio = 0.06  # of the thin flakes: with a narrow line three times as thick
    empty_fraction: Ratio = 0.25  # of the chip, in patches, that the tape never touched

    debris_per_mm2: Density = 140.0  # crumbs of the same crystals, under 30 um2
    trails_per_mm2: Density = 1.5  # lines of glue drops
    residue_per_mm2: Density = 1.2  # patches of glue
    films_per_mm2: Density = 0.4  # of about 1 nm of glue, wide and ragged
    haze_nm: float = Field(default=0.12, ge=0.0, le=5.0)  # rms of what the air leaves everywhere
    bubbles_per_mm2: Density = 0.5
    dust_per_mm2: Density = 0.7
    scratches_per_mm2: Density = 0.12
    fiducials: bool = True  # gold crosses near the corners, the first of them marked

    @field_validator("material_cards")
    @classmethod
    def _are_readable(cls, material_cards: tuple[str, ...]) -> tuple[str, ...]:
        try:
            load_cards(material_cards)
        except BadModel as error:
            raise ValueError(str(error)) from None
        return material_cards

    @field_validator("materials")
    @classmethod
    def _are_known(cls, materials: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        cards = load_cards(info.data.get("material_cards", ()))
        known = [*MATERIALS, *(card.key for card in cards)]
        unknown = [key for key in materials if key not in known]
        if unknown:
            raise ValueError(f"unknown materials {unknown}; there are {sorted(known)}")
        if len(set(materials)) != len(materials):
            raise ValueError("a material is named twice")
        return materials

    @field_validator("index_curves")
    @classmethod
    def _exist(cls, index_curves: Mapping[str, str]) -> Mapping[str, str]:
        for key, measurement in index_curves.items():
            if key not in MATERIALS:
                raise ValueError(f"unknown material {key!r}; there are {sorted(MATERIALS)}")
            try:
                MATERIALS[key].with_curve(measurement)
            except KeyError as error:
                raise ValueError(str(error.args[0])) from error
        return dict(index_curves)

    @model_validator(mode="after")
    def _is_feasible(self) -> ChipSettings:
        if self.min_area_um2 >= self.max_area_um2:
            raise ValueError("min_area_um2 must be less than max_area_um2")
        per_mm2 = self.flakes_per_mm2 * len(self.materials) + self.debris_per_mm2
        objects = per_mm2 * self.size_mm[0] * self.size_mm[1]
        if objects > _OBJECTS_MAX:
            raise ValueError(
                f"{objects:.0f} flakes and crumbs on one chip; at most {_OBJECTS_MAX} are drawn"
            )
        return self

    def material(self, key: str) -> Material:
        """The crystal, with the index it is painted with here."""
        material = _crystals(self.material_cards)[key]
        return material.with_curve(self.index_curves[key]) if key in self.index_curves else material


@cache
def _crystals(material_cards: tuple[str, ...]) -> Mapping[str, Material]:
    """Built in, and from cards; the cards are read once."""
    cards = load_cards(material_cards)
    return {**MATERIALS, **{card.key: card.material() for card in cards}}


@dataclass(frozen=True, slots=True)
class Paint:
    """What the light meets in one place, from the air down to the silicon."""

    kind: Literal["substrate", "crystal", "organic", "etched", "gold", "ground", "black"]
    thickness_nm: float = 0.0  # of crystal or glue; "etched": of the oxide that is gone
    material: str = ""  # of a crystal


SUBSTRATE = Paint("substrate")
GROUND = Paint("ground")  # the stage beside the chip
BLACK = Paint("black")
GOLD = Paint("gold")


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """One even region of the picture, chip frame; drawn as a change of what is under it."""

    rings_um: tuple[Points, ...]  # the outline counter-clockwise, holes clockwise
    paint: Paint
    under: Paint = SUBSTRATE
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Speck:
    """Dirt whose thickness varies from place to place; its relief comes from its own seed."""

    kind: Literal["residue", "bubble", "dust"]
    x_um: float
    y_um: float
    radius_um: float
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Terrace:
    """One connected region of one material and one thickness."""

    polygon_um: Points  # chip frame, counter-clockwise, not closed
    layers: int
    thickness_nm: float
    area_um2: float
    centroid_um: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Flake:
    """One crystal: terraces that touch."""

    number: int
    material: str
    polygon_um: Points
    area_um2: float
    terraces: tuple[Terrace, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is really there, in the chip's own frame."""

    flakes: tuple[Flake, ...]
    specks: tuple[Speck, ...]
    fiducials_um: tuple[tuple[float, float], ...]
    outline_um: Points


@dataclass(frozen=True, slots=True, eq=False)
class Chip:
    """What a microscope can look at."""

    settings: ChipSettings
    outline_um: Points  # chip frame
    patches: tuple[Patch, ...]
    specks: tuple[Speck, ...]
    fiducials_um: tuple[tuple[float, float], ...]  # chip frame; known from the mask they come from
    _flakes: tuple[Flake, ...] = field(repr=False)

    @classmethod
    def generate(cls, settings: ChipSettings) -> Chip:
        """Lay out everything that the settings ask for; the same settings give the same chip."""
        return _Layout(settings).chip()

    def truth(self) -> Truth:
        """The door for tests, training and benchmarks; nothing that controls may open it."""
        return Truth(self._flakes, self.specks, self.fiducials_um, self.outline_um)

    def chip_to_stage_um(self, points_um: npt.ArrayLike) -> Points:
        """(..., 2) from the chip's frame to the stage's."""
        turn = np.deg2rad(self.settings.rotation_deg)
        matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        turned = np.asarray(points_um, dtype=np.float64) @ matrix
        return np.asarray(turned + np.asarray(self.settings.centre_um), dtype=np.float64)

    def stage_to_chip_um(self, points_um: npt.ArrayLike) -> Points:
        """(..., 2) from the stage's frame to the chip's."""
        turn = np.deg2rad(self.settings.rotation_deg)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shifted = np.asarray(points_um, dtype=np.float64) - np.asarray(self.settings.centre_um)
        return np.asarray(shifted @ matrix, dtype=np.float64)

    def surface_z_um(
        self, x_um: float | npt.NDArray[np.float64], y_um: float | npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Best focus of the reference objective over a point of the stage: tilt plus bow."""
        settings = self.settings
        x_mm = (np.asarray(x_um) - settings.centre_um[0]) * 1e-3
        y_mm = (np.asarray(y_um) - settings.centre_um[1]) * 1e-3
        corner_mm2 = 0.25 * (settings.size_mm[0] ** 2 + settings.size_mm[1] ** 2)
        plane = settings.tilt_um_per_mm[0] * x_mm + settings.tilt_um_per_mm[1] * y_mm
        bow = settings.bow_um * (1.0 - (x_mm**2 + y_mm**2) / corner_mm2)
        return np.asarray(settings.height_um + plane + bow, dtype=np.float64)


class _Occupancy:
    """Circles that must not overlap, on a grid for quick look-up."""

    def __init__(self, cell_um: float = 60.0) -> None:
        self._cell_um = cell_um
        self._cells: dict[tuple[int, int], list[tuple[float, float, float]]] = {}

    def _cells_of(self, x: float, y: float, radius: float) -> list[tuple[int, int]]:
        low_x, high_x = int((x - radius) // self._cell_um), int((x + radius) // self._cell_um)
        low_y, high_y = int((y - radius) // self._cell_um), int((y + radius) // self._cell_um)
        return [(i, j) for i in range(low_x, high_x + 1) for j in range(low_y, high_y + 1)]

    def is_free(self, x: float, y: float, radius: float) -> bool:
        for cell in self._cells_of(x, y, radius):
            for other_x, other_y, other_radius in self._cells.get(cell, ()):
                if (x - other_x) ** 2 + (y - other_y) ** 2 < (radius + other_radius) ** 2:
                    return False
        return True

    def take(self, x: float, y: float, radius: float) -> None:
        for cell in self._cells_of(x, y, radius):
            self._cells.setdefault(cell, []).append((x, y, radius))


def _terrace(region: shapes.Polygon, layers: int, thickness_nm: float) -> Terrace:
    points = np.asarray(shapely.geometry.polygon.orient(region).exterior.coords)[:-1]
    centre = (float(region.centroid.x), float(region.centroid.y))
    return Terrace(points, layers, thickness_nm, float(region.area), centre)


def _parted(terrace: Terrace, band: shapely.Polygon) -> list[Terrace]:
    """What a fold leaves of a terrace: two where it runs right across, else the terrace."""
    parts = [
        part
        for part in shapes.polygons(shapely.Polygon(terrace.polygon_um).difference(band))
        if part.area >= _LEAST_PART_UM2
    ]
    if len(parts) < 2:
        return [terrace]
    return [_terrace(part, terrace.layers, terrace.thickness_nm) for part in parts]


class _Layout:
    """One pass of laying things out, largest first so that they find room."""

    def __init__(self, settings: ChipSettings) -> None:
        self._settings = settings
        names = ["outline", "density", "flakes", "debris", "trails"]
        names += ["residue", "films", "bubbles", "dust", "scratches"]
        streams = np.random.SeedSequence(settings.seed).spawn(len(names))
        self._rng = {
            name: np.random.default_rng(stream) for name, stream in zip(names, streams, strict=True)
        }
        self._half_um = 500.0 * np.asarray(settings.size_mm)
        self._area_mm2 = float(settings.size_mm[0] * settings.size_mm[1])
        self._occupied = _Occupancy()
        self._patches: list[Patch] = []
        self._specks: list[Speck] = []
        self._flakes: list[Flake] = []
        cells = np.maximum(3, np.ceil(np.asarray(settings.size_mm) / 0.9)).astype(int)
        self._tape = self._rng["density"].random((cells[1] + 1, cells[0] + 1))
        places = self._rng["density"].uniform(-self._half_um, self._half_um, (2_000, 2))
        levels = [self._tape_level(float(x), float(y)) for x, y in places]
        self._tape_cut = float(np.quantile(levels, settings.empty_fraction))

    def chip(self) -> Chip:
        outline = self._outline()
        self._patches.append(Patch((outline,), SUBSTRATE, under=GROUND))
        bevel = shapely.Polygon(outline)
        self._add_region(bevel.difference(bevel.buffer(-4.0)), BLACK, SUBSTRATE, opacity=0.75)
        fiducials = self._marks() if self._settings.fiducials else ()
        self._lay_flakes()
        self._lay_specks()
        self._lay_debris()
        self._lay_trails()
        self._lay_films()
        self._lay_scratches()
        return Chip(
            self._settings,
            outline,
            tuple(self._patches),
            tuple(self._specks),
            fiducials,
            tuple(self._flakes),
        )

    def _outline(self) -> Points:
        """Cleaved along the lattice of the silicon, so nearly straight."""
        rng = self._rng["outline"]
        w, h = self._half_um
        corners = np.array([[-w, -h], [w, -h], [w, h], [-w, h]])
        ring = [
            shapes.torn_line(rng, corners[i], corners[(i + 1) % 4], 0.0006, 6) for i in range(4)
        ]
        return np.concatenate(ring)

    def _add_region(
        self, region: shapely.Geometry, paint: Paint, under: Paint, opacity: float = 1.0
    ) -> None:
        for part in shapes.polygons(region):
            oriented = shapely.geometry.polygon.orient(part)
            rings = (oriented.exterior, *oriented.interiors)
            points = tuple(np.asarray(ring.coords)[:-1] for ring in rings)
            self._patches.append(Patch(points, paint, under, opacity))

    def _marks(self) -> tuple[tuple[float, float], ...]:
        inset = np.minimum(350.0, 0.25 * self._half_um)
        arm, width = float(min(60.0, inset.min() / 3.0)), float(min(6.0, inset.min() / 12.0))
        x, y = self._half_um - inset
        centres = ((-x, -y), (x, -y), (x, y), (-x, y))
        for number, (cx, cy) in enumerate(centres):
            cross = shapely.union(
                shapely.box(cx - arm, cy - width, cx + arm, cy + width),
                shapely.box(cx - width, cy - arm, cx + width, cy + arm),
            )
            self._add_region(cross, GOLD, SUBSTRATE)
            if number == 0:  # which corner is which
                dot = shapely.box(cx + arm / 2, cy + arm / 2, cx + arm, cy + arm)
                self._add_region(dot, GOLD, SUBSTRATE)
            self._occupied.take(cx, cy, 1.8 * arm)
        return tuple((float(cx), float(cy)) for cx, cy in centres)

    def _tape_level(self, x: float, y: float) -> float:
        """A smooth random field over the chip; where it is low, the tape never touched."""
        rows, columns = self._tape.shape
        column = (x / (2.0 * self._half_um[0]) + 0.5) * (columns - 1)
        row = (y / (2.0 * self._half_um[1]) + 0.5) * (rows - 1)
        i = min(max(int(row), 0), rows - 2)
        j = min(max(int(column), 0), columns - 2)
        v, u = row - i, column - j
        low = self._tape[i, j] * (1 - u) + self._tape[i, j + 1] * u
        high = self._tape[i + 1, j] * (1 - u) + self._tape[i + 1, j + 1] * u
        return float(low * (1 - v) + high * v)

    def _spot(
        self, rng: np.random.Generator, radius: float, gap_um: float, tries: int = 30
    ) -> tuple[float, float] | None:
        """A free place for a circle, within the chip and where the tape was; None when full."""
        room = self._half_um - radius - 10.0
        if room.min() <= 0.0:
            return None
        for _ in range(tries):
            x, y = (float(v) for v in rng.uniform(-room, room))
            if self._tape_level(x, y) >= self._tape_cut and self._occupied.is_free(
                x, y, radius + gap_um
            ):
                return x, y
        return None

    def _number(self, rng: np.random.Generator, per_mm2: float) -> int:
        return int(rng.poisson(per_mm2 * self._area_mm2))

    def _lay_flakes(self) -> None:
        rng, settings = self._rng["flakes"], self._settings
        weights = np.arange(1, settings.max_layers + 1) ** -settings.layer_exponent
        weights = weights / weights.sum()
        planned: list[tuple[float, str, int]] = []  # area, material, layers of the first terrace
        for key in settings.materials:
            crystal = settings.material(key)
            for _ in range(self._number(rng, settings.flakes_per_mm2)):
                spread = float(np.exp(rng.normal(0.0, settings.area_spread)))
                if rng.random() < settings.thick_fraction:
                    nm = float(np.clip(np.exp(rng.normal(4.1, 0.6)), 15.0, 240.0))
                    layers = round(nm / crystal.layer_thickness_nm)
                    area = 2.2 * settings.median_area_um2 * spread
                else:
                    layers = 1 + int(rng.choice(settings.max_layers, p=weights))
                    area = settings.median_area_um2 * spread
                area = float(np.clip(area, settings.min_area_um2, settings.max_area_um2))
                planned.append((area, key, layers))
        planned.sort(key=lambda plan: -plan[0])
        for area, key, layers in planned:
            lattice = float(rng.uniform(0.0, np.pi))
            outline = shapes.crystal(rng, area, settings.material(key).corner_deg, lattice)
            reach = np.asarray(outline.exterior.coords)
            radius = float(np.hypot(reach[:, 0], reach[:, 1]).max())
            spot = self._spot(rng, radius, gap_um=2.0)
            if spot is None:
                continue
            self._occupied.take(*spot, radius)
            outline = affinity.translate(outline, *spot)
            for piece in self._pieces(rng, outline, lattice):
                self._add_flake(rng, piece, key, layers, lattice)

    def _pieces(
        self, rng: np.random.Generator, outline: shapes.Polygon, lattice: float
    ) -> list[shapes.Polygon]:
        """The flake, or what a crack leaves of it."""
        if rng.random() >= self._settings.cracked_fraction:
            return [outline]
        angle = lattice + float(rng.uniform(0.0, np.pi))
        region = shapes.half_plane(rng, outline, angle, float(rng.uniform(0.3, 0.7)), is_torn=True)
        gap = float(rng.uniform(1.5, 6.0))
        crack = region.boundary.buffer(gap / 2.0)
        pieces = shapes.polygons(outline.difference(crack))
        large = [piece for piece in pieces if piece.area >= self._settings.min_area_um2]
        return large or [outline]

    def _add_flake(
        self,
        rng: np.random.Generator,
        outline: shapes.Polygon,
        key: str,
        layers: int,
        lattice: float,
    ) -> None:
        crystal = self._settings.material(key)
        regions = self._terraces(rng, outline, layers, lattice, crystal)
        terraces: list[Terrace] = []
        for region, count in regions:
            thickness_nm = count * crystal.layer_thickness_nm
            paint = Paint("crystal", thickness_nm, key)
            self._add_region(region, paint, SUBSTRATE)
            if thickness_nm > 25.0:  # a cliff throws light out of the objective's cone
                share = min(0.7, thickness_nm / 130.0)
                self._add_region(region.difference(region.buffer(-0.2)), BLACK, paint, share)
                beside = region.buffer(0.5, join_style="mitre").difference(outline)
                self._add_region(beside, BLACK, SUBSTRATE, share)
            terraces.append(_terrace(region, count, thickness_nm))
        if layers <= self._settings.max_layers and rng.random() < self._settings.folded_fraction:
            band = self._add_fold(rng, regions, crystal)
            terraces = [part for terrace in terraces for part in _parted(terrace, band)]
        points = np.asarray(shapely.geometry.polygon.orient(outline).exterior.coords)[:-1]
        self._flakes.append(
            Flake(len(self._flakes), key, points, float(outline.area), tuple(terraces))
        )

    def _terraces(
        self,
        rng: np.random.Generator,
        outline: shapes.Polygon,
        layers: int,
        lattice: float,
        crystal: Material,
    ) -> list[tuple[shapes.Polygon, int]]:
        """Successive cuts, each of which leaves a step; the pieces cover the outline exactly."""
        settings = self._settings
        is_thick = layers > settings.max_layers
        found: list[tuple[shapes.Polygon, int]] = []
        rest: shapely.Geometry = outline
        count, used = layers, {layers}
        cuts = rng.poisson(settings.terraces_mean - 1.0 + (0.8 if is_thick else 0.0))
        for _ in range(int(cuts)):
            angle = lattice + float(rng.integers(6)) * np.deg2rad(crystal.corner_deg)
            angle += float(rng.normal(0.0, 0.06 if rng.random() < 0.7 else 0.6))
            share = float(rng.beta(1.2, 1.2)) * 0.8 + 0.1
            if is_thick and rng.random() < 0.6:
                share = float(rng.choice([rng.uniform(0.03, 0.15), rng.uniform(0.85, 0.97)]))
            body = shapes.largest(rest)
            region = shapes.half_plane(rng, body, angle, share, is_torn=rng.random() < 0.4)
            cut, kept = body.intersection(region), body.difference(region)
            smallest = 2.0 if is_thick else max(12.0, 0.04 * outline.area)
            parts = shapes.polygons(cut) + shapes.polygons(kept)
            if len(parts) < 2 or min(part.area for part in parts) < smallest:
                continue
            found += [(part, count) for part in shapes.polygons(cut)]
            rest = kept
            while count in used:  # two terraces that touch must differ
                count = self._next_layers(rng, count, is_thick)
            used.add(count)
            others = sorted(shapes.polygons(kept), key=lambda part: float(part.area))
            found += [(part, count) for part in others[:-1]]  # cut off: no further steps
            rest = others[-1]
        return [*found, *((part, count) for part in shapes.polygons(rest))]

    def _next_layers(self, rng: np.random.Generator, count: int, is_thick: bool) -> int:
        if is_thick:
            if rng.random() < 0.3:  # a few layers along the edge of a block
                return int(rng.integers(1, 25))
            share = float(rng.uniform(0.2, 0.9) if rng.random() < 0.7 else rng.uniform(1.1, 1.8))
            return max(1, min(round(count * share), 900))
        step = int(rng.geometric(0.55))
        down = count - step
        return down if down >= 1 and rng.random() < 0.45 else count + step

    def _add_fold(
        self,
        rng: np.random.Generator,
        regions: Sequence[tuple[shapes.Polygon, int]],
        crystal: Material,
    ) -> shapely.Polygon:
        """Draw a fold across the largest terrace; returns the band that it covers."""
        region, count = max(regions, key=lambda pair: float(pair[0].area))
        size = float(np.sqrt(region.area))
        line = shapes.wandering_line(rng, size * float(rng.uniform(0.5, 1.4)), 0.06, 12)
        line = line - line.mean(axis=0) + np.asarray(region.centroid.coords[0])
        band = shapely.Polygon(shapes.ribbon(line, float(rng.uniform(0.3, 0.9)))).buffer(0.0)
        single = Paint("crystal", count * crystal.layer_thickness_nm, crystal.key)
        triple = Paint("crystal", 3 * count * crystal.layer_thickness_nm, crystal.key)
        self._add_region(band.intersection(region), triple, single)
        return band

    def _lay_specks(self) -> None:
        kinds: tuple[tuple[Literal["residue", "bubble", "dust"], str, float, float, float], ...] = (
            ("residue", "residue", self._settings.residue_per_mm2, 2.6, 0.5),
            ("bubble", "bubbles", self._settings.bubbles_per_mm2, 1.6, 0.5),
            ("dust", "dust", self._settings.dust_per_mm2, 1.5, 0.6),
        )
        for kind, stream, per_mm2, log_radius, spread in kinds:
            rng = self._rng[stream]
            for _ in range(self._number(rng, per_mm2)):
                radius = float(np.clip(np.exp(rng.normal(log_radius, spread)), 1.5, 60.0))
                spot = self._spot(rng, 1.3 * radius, gap_um=1.0)
                if spot is not None:
                    self._occupied.take(*spot, 1.3 * radius)
                    self._specks.append(Speck(kind, *spot, radius, int(rng.integers(2**31))))

    def _lay_debris(self) -> None:
        """Crumbs: around the flakes they broke off, in clouds, and anywhere."""
        rng, settings = self._rng["debris"], self._settings
        number = self._number(rng, settings.debris_per_mm2)
        clouds = [self._spot(rng, 5.0, gap_um=-5.0) for _ in range(1 + number // 60)]
        centres = [cloud for cloud in clouds if cloud is not None]
        for _ in range(number):
            key = settings.materials[int(rng.integers(len(settings.materials)))]
            crystal = settings.material(key)
            size = float(np.clip(np.exp(rng.normal(0.15, 0.6)), 0.4, 4.0))
            style = rng.random()
            if style < 0.4 and self._flakes:
                flake = self._flakes[int(rng.integers(len(self._flakes)))]
                edge = flake.polygon_um[int(rng.integers(len(flake.polygon_um)))]
                spot = self._near(rng, (float(edge[0]), float(edge[1])), 16.0, size)
            elif style < 0.7 and centres:
                cloud = centres[int(rng.integers(len(centres)))]
                spot = self._near(rng, cloud, 30.0, size)
            else:
                spot = self._spot(rng, size, gap_um=1.0, tries=4)
            if spot is None:
                continue
            self._occupied.take(*spot, size)
            points = shapes.drop(rng, size, corners=int(rng.integers(3, 8)))
            squeeze = np.exp(abs(rng.normal(0.3, 0.5)))
            points = points * np.array([1.0, 1.0 / squeeze])
            turn = rng.uniform(0.0, np.pi)
            matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            nm = float(np.clip(np.exp(rng.normal(2.6, 1.0)), crystal.layer_thickness_nm, 150.0))
            layers = max(1, round(nm / crystal.layer_thickness_nm))
            paint = Paint("crystal", layers * crystal.layer_thickness_nm, key)
            self._patches.append(Patch((points @ matrix + np.asarray(spot),), paint))

    def _near(
        self, rng: np.random.Generator, point: tuple[float, float], spread_um: float, size_um: float
    ) -> tuple[float, float] | None:
        """A free place on the chip at about this distance; None if the one tried is taken."""
        away = rng.normal(0.0, spread_um, 2)
        x, y = float(point[0] + away[0]), float(point[1] + away[1])
        is_free = self._occupied.is_free(x, y, size_um + 1.0)
        return (x, y) if is_free and self._is_on_chip(np.array([x, y]), size_um) else None

    def _lay_trails(self) -> None:
        """Glue that beaded along the edge where the tape came off."""
        rng = self._rng["trails"]
        for _ in range(self._number(rng, self._settings.trails_per_mm2)):
            length = float(np.exp(rng.normal(4.8, 0.6)))
            spot = self._spot(rng, 1.0, gap_um=0.0)
            if spot is None:
                continue
            path = shapes.wandering_line(rng, length, 0.12, 48) + np.asarray(spot)
            self._lay_thread(rng, path)
            for _ in range(int(rng.poisson(0.5 * length))):
                middle = path[int(rng.integers(len(path)))] + rng.normal(0.0, 1.6, 2)
                radius = float(np.clip(np.exp(rng.normal(-0.8, 0.5)), 0.15, 2.0))
                if not self._is_on_chip(middle, radius):
                    continue
                if not self._occupied.is_free(float(middle[0]), float(middle[1]), radius):
                    continue
                nm = float(np.round(np.clip(rng.normal(90.0, 45.0) * radius**0.5, 5.0, 400.0), -1))
                self._patches.append(
                    Patch((shapes.drop(rng, radius, 8) + middle,), Paint("organic", max(nm, 5.0)))
                )

    def _lay_thread(self, rng: np.random.Generator, path: Points) -> None:
        """The line between the beads, where it has not drawn back into them."""
        for start in range(0, len(path) - 8, 8):
            piece = path[start : start + 9]
            if rng.random() < 0.4 or not all(self._is_on_chip(point, 1.0) for point in piece):
                continue
            if not all(self._occupied.is_free(float(x), float(y), 0.5) for x, y in piece):
                continue
            thread = shapely.Polygon(shapes.ribbon(piece, float(rng.uniform(0.15, 0.6))))
            self._add_region(
                thread.buffer(0.0), Paint("organic", 5.0 * rng.integers(2, 12)), SUBSTRATE
            )

    def _is_on_chip(self, point: Points, margin_um: float) -> bool:
        return bool(np.all(np.abs(point) < self._half_um - margin_um - 5.0))

    def _lay_films(self) -> None:
        """Wide and ragged, thinner than a wavelength by far; they go under and over the rest."""
        rng = self._rng["films"]
        for _ in range(self._number(rng, self._settings.films_per_mm2)):
            radius = float(np.exp(rng.normal(3.9, 0.5)))
            spot = self._spot(rng, 1.5 * radius, gap_um=-1e4)
            if spot is None:
                continue
            ring = shapes.drop(rng, radius, 9)
            torn = [shapes.torn_line(rng, ring[i - 1], ring[i], 0.12, 4) for i in range(len(ring))]
            film = shapely.Polygon(np.concatenate(torn) + np.asarray(spot)).buffer(0.0)
            nm = float(np.round(rng.uniform(0.3, 1.6), 1))
            self._add_region(film, Paint("organic", nm), SUBSTRATE)
            rim = film.difference(film.buffer(-float(rng.uniform(0.4, 1.0))))
            self._add_region(rim, Paint("organic", nm + 3.0), Paint("organic", nm))

    def _lay_scratches(self) -> None:
        rng = self._rng["scratches"]
        for _ in range(self._number(rng, self._settings.scratches_per_mm2)):
            length = float(np.clip(np.exp(rng.normal(5.2, 0.6)), 30.0, 2_000.0))
            line = shapes.wandering_line(rng, length, 0.015, 30)
            line = line + rng.uniform(-self._half_um, self._half_um)
            on_chip = np.all(np.abs(line) < self._half_um - 20.0, axis=1)
            line = line[: int(np.argmin(on_chip))] if not on_chip.all() else line
            if len(line) < 4:
                continue
            depth = float(np.round(rng.uniform(0.05, 0.6) * self._settings.oxide_nm))
            width = float(rng.uniform(0.3, 1.6))
            band = shapely.Polygon(shapes.ribbon(line, width)).buffer(0.0)
            self._add_region(band, Paint("etched", depth), SUBSTRATE)
            centre = np.asarray(shapes.ribbon(line, width / 3.0))
            core = shapely.Polygon(centre).buffer(0.0).intersection(band)
            self._add_region(core, BLACK, Paint("etched", depth), opacity=0.4)
