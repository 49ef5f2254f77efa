"""Samples for a transmission microscope, atom by atom: 2D sheets with their defects, particles.

Sheets are ideal lattices, seeded defects cut into them: vacancies, foreign atoms on lattice sites,
round holes, a grain boundary between two halves turned against each other, adatoms that hop from
site to site between frames. Every defect is listed beside the atoms, for it is what is searched
for. Nothing relaxes: bonds round a defect keep their lengths, so pictures near one are right in
kind and not to the picometre.

Lattice constants: graphene 0.2461 nm and hBN 0.2504 nm (A. H. Castro Neto et al., Rev. Mod. Phys.
81, 109, 2009; L. Liu et al., Phys. Rev. B 68, 104102, 2003), 2H-MoS2 0.3160 nm with its two planes
of sulphur 0.3172 nm apart (R. G. Dickinson, L. Pauling, J. Am. Chem. Soc. 45, 1466, 1923, gives
0.315; K. D. Bronsema et al., Z. anorg. allg. Chem. 540, 15, 1986), gold 0.4078 nm, platinum 0.3924.

Coordinates: x to the right, y UP, z towards the source, nm; the origin is the middle of the sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

SampleKind = Literal["graphene", "hbn", "mos2", "gold_particle", "platinum_particle", "vacuum"]
DefectKind = Literal["vacancy", "dopant", "hole", "adatom"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

NUMBERS = {"B": 5, "C": 6, "N": 7, "Si": 14, "S": 16, "Cu": 29, "Mo": 42, "Pt": 78, "Au": 79}
"""Atomic numbers of the elements that occur."""

_SHEETS: dict[str, tuple[float, tuple[tuple[str, int, float], ...]]] = {
    # lattice constant in nm; (element, site 0 or 1 of the honeycomb, z in nm)
    "graphene": (0.2461, (("C", 0, 0.0), ("C", 1, 0.0))),
    "hbn": (0.2504, (("B", 0, 0.0), ("N", 1, 0.0))),
    "mos2": (0.3160, (("Mo", 0, 0.0), ("S", 1, 0.1586), ("S", 1, -0.1586))),
}
_PARTICLES = {"gold_particle": ("Au", 0.4078), "platinum_particle": ("Pt", 0.3924)}
_CLOSEST_RATIO = 0.8  # of a bond: what comes closer across a grain boundary is left out
_ADATOM_Z_NM = 0.2
_SUPPORT_PER_NM3 = 100.0  # carbon atoms in amorphous carbon of 2.0 g/cm3


class SampleSettings(BaseModel):
    """One sample; everything follows from the seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: SampleKind = "graphene"
    seed: int = Field(default=1, ge=0, le=2**31)
    width_nm: float = Field(default=8.0, gt=0.0, le=100.0)
    height_nm: float = Field(default=8.0, gt=0.0, le=100.0)
    turn_deg: float | None = Field(default=None, ge=-360.0, le=360.0)  # None: by the seed
    vacancy_ratio: Share = 0.0  # of the lattice's atoms that are missing
    dopant_ratio: Share = 0.0  # of the lattice's atoms that are of another element
    dopants: tuple[Literal["Si", "Cu"], ...] = Field(default=("Si", "Cu"), min_length=1)
    holes: int = Field(default=0, ge=0, le=100)
    hole_radius_nm: float = Field(default=0.6, gt=0.0, le=50.0)  # each within a factor of 1.5
    boundary_deg: float = Field(default=0.0, ge=0.0, le=60.0)  # between two grains; 0: one crystal
    adatoms: int = Field(default=0, ge=0, le=1_000)
    adatom: Literal["C", "Si", "Cu", "Pt", "Au"] = "Au"
    hop_ratio: Share = 0.1  # chance that an adatom hops from one frame to the next
    particle_radius_nm: float = Field(default=1.5, gt=0.1, le=5.0)
    particle_tilt_deg: float = Field(default=0.0, ge=0.0, le=90.0)  # away from [110] along the beam
    support_nm: float = Field(default=0.0, ge=0.0, le=10.0)  # amorphous carbon under a particle


@dataclass(frozen=True, slots=True, eq=False)
class Atoms:
    """Positions in nm and atomic numbers, each (n,), read-only."""

    x_nm: npt.NDArray[np.float64]
    y_nm: npt.NDArray[np.float64]
    z_nm: npt.NDArray[np.float64]
    number: npt.NDArray[np.int64]

    @classmethod
    def at(cls, places_nm: npt.ArrayLike, number: npt.ArrayLike) -> Atoms:
        """From (n, 3) positions and (n,) atomic numbers."""
        places = np.asarray(places_nm, np.float64).reshape(-1, 3)
        columns = [np.ascontiguousarray(column) for column in places.T]
        numbers = np.array(np.broadcast_to(np.asarray(number, np.int64), len(places)))
        for column in (*columns, numbers):
            column.flags.writeable = False
        return cls(columns[0], columns[1], columns[2], numbers)

    @property
    def places_nm(self) -> npt.NDArray[np.float64]:
        """(n, 3): x, y, z."""
        return np.stack([self.x_nm, self.y_nm, self.z_nm], axis=1)

    def chosen(self, which: npt.NDArray[np.bool_]) -> Atoms:
        """Those for which (n,) is true."""
        return Atoms.at(self.places_nm[which], self.number[which])

    def joined(self, others: Atoms) -> Atoms:
        """These, then the others."""
        places = np.concatenate([self.places_nm, others.places_nm])
        return Atoms.at(places, np.concatenate([self.number, others.number]))

    def seen_from(self, x_nm: float, y_nm: float, width_nm: float, height_nm: float) -> Atoms:
        """Those in a window about (x, y), which becomes the origin."""
        x, y = self.x_nm - x_nm, self.y_nm - y_nm
        is_inside = (np.abs(x) <= width_nm / 2) & (np.abs(y) <= height_nm / 2)
        moved = np.stack([x, y, self.z_nm], axis=1)[is_inside]
        return Atoms.at(moved, self.number[is_inside])


@dataclass(frozen=True, slots=True)
class Defect:
    """Something that is not as in the ideal sheet."""

    kind: DefectKind
    x_nm: float
    y_nm: float
    number: int  # of the atom that is there now, or for vacancies of the one that was; holes: 0
    radius_nm: float = 0.0  # of holes


class Sample:
    """Atoms that stay, defects, and adatoms that are somewhere else in every frame."""

    def __init__(self, settings: SampleSettings) -> None:
        self.settings = settings
        rng = np.random.default_rng([settings.seed, 1])
        turn = math.radians(rng.uniform(0.0, 360.0))
        if settings.turn_deg is not None:
            turn = math.radians(settings.turn_deg)
        self.still = Atoms.at(np.zeros((0, 3)), np.zeros(0))  # all but the adatoms
        self.defects: tuple[Defect, ...] = ()
        if settings.kind in _SHEETS:
            ideal = _two_grains(settings, turn, rng)
            self.still, self.defects = _with_defects(ideal, settings, rng)
        elif settings.kind in _PARTICLES:
            self.still = _particle(settings, turn, rng)
        sites = self.still if settings.kind in _SHEETS else Atoms.at(np.zeros((0, 3)), np.zeros(0))
        self._sites_nm = np.stack([sites.x_nm, sites.y_nm], axis=1)
        count = settings.adatoms if len(self._sites_nm) else 0
        half_nm = np.array([settings.width_nm, settings.height_nm]) / 2
        start_nm = rng.uniform(-half_nm, half_nm, (count, 2))
        self._walk = [np.array([self._nearest(place) for place in start_nm], np.int64)]

    def atoms(self, frame: int = 0) -> Atoms:
        """All that is there in frame 0, 1, ...; the adatoms come last."""
        return self.still.joined(self.moving(frame))

    def moving(self, frame: int = 0) -> Atoms:
        """The adatoms alone."""
        places = self._sites_nm[self._walked(frame)]
        lifted = np.column_stack([places, np.full(len(places), _ADATOM_Z_NM)])
        return Atoms.at(lifted, NUMBERS[self.settings.adatom])

    def defects_in(self, frame: int = 0) -> tuple[Defect, ...]:
        """What an observer of that frame could find."""
        number = NUMBERS[self.settings.adatom]
        places = self._sites_nm[self._walked(frame)]
        moving = (Defect("adatom", float(x), float(y), number) for x, y in places)
        return (*self.defects, *moving)

    def hopped(self, frame: int) -> npt.NDArray[np.bool_]:
        """Which adatoms are not where they were in the frame before, (n,)."""
        if frame == 0:
            return np.zeros(len(self._walk[0]), np.bool_)
        return np.asarray(self._walked(frame) != self._walked(frame - 1), np.bool_)

    def _nearest(self, place_nm: npt.NDArray[np.float64]) -> int:
        return int(np.argmin(((self._sites_nm - place_nm) ** 2).sum(axis=1)))

    def _walked(self, frame: int) -> npt.NDArray[np.int64]:
        while len(self._walk) <= frame:
            rng = np.random.default_rng([self.settings.seed, 2, len(self._walk)])
            now = self._walk[-1].copy()
            for i in np.flatnonzero(rng.random(len(now)) < self.settings.hop_ratio):
                # To one of the three nearest atoms of the sheet that are at another place.
                square = ((self._sites_nm - self._sites_nm[now[i]]) ** 2).sum(axis=1)
                square[square < 1e-6] = np.inf
                now[i] = rng.choice(np.argsort(square)[:3])
            self._walk.append(now)
        return self._walk[frame]


def _lattice(settings: SampleSettings, turn_rad: float, shift_nm: npt.ArrayLike) -> Atoms:
    constant_nm, basis = _SHEETS[settings.kind]
    radius_nm = math.hypot(settings.width_nm, settings.height_nm) / 2 + 2.0 * constant_nm
    reach = math.ceil(radius_nm / (constant_nm * math.sqrt(0.75)))
    i, j = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    x, y = constant_nm * (i + 0.5 * j), constant_nm * math.sqrt(0.75) * j
    cos, sin = math.cos(turn_rad), math.sin(turn_rad)
    move_x, move_y = np.asarray(shift_nm, np.float64)
    found = Atoms.at(np.zeros((0, 3)), np.zeros(0))
    for element, site, z_nm in basis:
        u, v = x, y + site * constant_nm / math.sqrt(3.0)
        places = (cos * u - sin * v + move_x, sin * u + cos * v + move_y, np.full(len(u), z_nm))
        found = found.joined(Atoms.at(np.stack(places, axis=1), NUMBERS[element]))
    return found.seen_from(0.0, 0.0, settings.width_nm, settings.height_nm)


def _two_grains(settings: SampleSettings, turn_rad: float, rng: np.random.Generator) -> Atoms:
    """The sheet; with a boundary, two of them that meet along a line through about the middle."""
    shifts_nm = rng.uniform(0.0, 0.3, (2, 2))
    first = _lattice(settings, turn_rad, shifts_nm[0])
    angle, offset = rng.uniform(0.0, math.pi), rng.uniform(-0.15, 0.15) * settings.width_nm
    if settings.boundary_deg == 0.0:
        return first
    second = _lattice(settings, turn_rad + math.radians(settings.boundary_deg), shifts_nm[1])
    normal_x, normal_y = math.cos(angle), math.sin(angle)
    # How far each atom lies beyond the boundary.
    beyond_first, beyond_second = (
        normal_x * grain.x_nm + normal_y * grain.y_nm - offset for grain in (first, second)
    )
    closest_nm = _CLOSEST_RATIO * _SHEETS[settings.kind][0] / math.sqrt(3.0)
    near = first.chosen((beyond_first < 0.0) & (beyond_first > -closest_nm))
    is_second = beyond_second >= 0.0
    strip = np.flatnonzero(is_second & (beyond_second < closest_nm))
    gaps_nm = np.hypot(
        second.x_nm[strip, None] - near.x_nm[None, :], second.y_nm[strip, None] - near.y_nm[None, :]
    )
    is_second[strip] = gaps_nm.min(axis=1, initial=np.inf) >= closest_nm
    return first.chosen(beyond_first < 0.0).joined(second.chosen(is_second))


def _with_defects(
    atoms: Atoms, settings: SampleSettings, rng: np.random.Generator
) -> tuple[Atoms, tuple[Defect, ...]]:
    half_nm = np.array([settings.width_nm, settings.height_nm]) / 2
    defects: list[Defect] = []
    is_left = np.ones(len(atoms.number), np.bool_)
    for _ in range(settings.holes):
        x, y = rng.uniform(-half_nm, half_nm)
        radius_nm = settings.hole_radius_nm * 1.5 ** rng.uniform(-1.0, 1.0)
        is_left &= np.hypot(atoms.x_nm - x, atoms.y_nm - y) > radius_nm
        defects.append(Defect("hole", float(x), float(y), 0, float(radius_nm)))
    atoms = atoms.chosen(is_left)
    fate = rng.random(len(atoms.number))
    is_missing = fate < settings.vacancy_ratio
    is_foreign = (fate >= 1.0 - settings.dopant_ratio) & ~is_missing
    number = atoms.number.copy()
    for i in np.flatnonzero(is_missing | is_foreign):
        if is_foreign[i]:
            number[i] = NUMBERS[settings.dopants[int(rng.integers(len(settings.dopants)))]]
        kind: DefectKind = "dopant" if is_foreign[i] else "vacancy"
        place = float(atoms.x_nm[i]), float(atoms.y_nm[i])
        defects.append(Defect(kind, *place, int(number[i])))
    return Atoms.at(atoms.places_nm, number).chosen(~is_missing), tuple(defects)


def _particle(settings: SampleSettings, turn_rad: float, rng: np.random.Generator) -> Atoms:
    """A truncated octahedron of an fcc metal, [110] along the beam, on its support."""
    element, constant_nm = _PARTICLES[settings.kind]
    radius_nm = settings.particle_radius_nm
    reach = math.ceil(radius_nm / constant_nm) + 1
    cells = np.mgrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1].reshape(3, -1).T
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    crystal = constant_nm * (cells[:, None, :] + corners[None]).reshape(-1, 3)
    cube = np.abs(crystal).max(axis=1) <= radius_nm
    octahedron = np.abs(crystal).sum(axis=1) / math.sqrt(3.0) <= 0.87 * radius_nm
    crystal = crystal[cube & octahedron]
    axes = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 1.0, 0.0]])  # rows: x, y, z
    places = crystal @ (axes / np.linalg.norm(axes, axis=1, keepdims=True)).T
    for angle, (first, second) in (
        (math.radians(settings.particle_tilt_deg), (1, 2)),
        (turn_rad, (0, 1)),
    ):
        u, v = places[:, first].copy(), places[:, second].copy()
        places[:, first] = math.cos(angle) * u - math.sin(angle) * v
        places[:, second] = math.sin(angle) * u + math.cos(angle) * v
    metal = Atoms.at(places, NUMBERS[element])
    if settings.support_nm == 0.0:
        return metal
    box_nm = np.array([settings.width_nm, settings.height_nm, settings.support_nm])
    count = rng.poisson(_SUPPORT_PER_NM3 * float(box_nm.prod()))
    carbon = rng.uniform(-0.5, 0.5, (count, 3)) * box_nm
    carbon[:, 2] += places[:, 2].min() - 0.2 - settings.support_nm / 2
    return metal.joined(Atoms.at(carbon, NUMBERS["C"]))
