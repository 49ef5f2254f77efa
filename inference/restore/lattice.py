"""A sheet's lattice in a frame: which way it lies, how large it is, where its hexagons are.

Spots are found where a lattice of known size, turned anyhow, has most of its power, and are then
followed to their tops; the reciprocal vectors are those that fit the three shortest best, so a
sheet that is sheared or a scale that is off by a per cent is followed. Reciprocal vectors g1, g2
stand at 60 degrees, real ones at 120; atoms sit at +(1/3, -1/3) and -(1/3, -1/3) in fractions of
the real cell, from a hexagon's middle. Coordinates: nm from the frame's middle, y UP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from inference.restore.electrons import Doubles, atom_phase_nm2

Material = Literal["graphene", "hbn", "mos2"]
Complexes = npt.NDArray[np.complex128]

CELLS: Final[dict[Material, tuple[float, tuple[tuple[int, int], ...]]]] = {
    # lattice constant in nm; (atomic number, site 0 or 1 of the honeycomb)
    "graphene": (0.2461, ((6, 0), (6, 1))),
    "hbn": (0.2504, ((5, 0), (7, 1))),
    "mos2": (0.3160, ((42, 0), (16, 1), (16, 1))),
}

_SHORTEST: Final = np.array([[1, 0], [0, 1], [1, -1]], np.float64)
_LEAST_GAIN: Final = 12.0  # of power over noise, beyond what the best of many turns has by chance
_CLIMBS: Final = 6
_MOST_MISFIT: Final = 0.03  # of the three shortest vectors' lengths


@dataclass(frozen=True, slots=True)
class Lattice:
    """Reciprocal vectors of a hexagonal lattice."""

    g1_per_nm: tuple[float, float]
    g2_per_nm: tuple[float, float]

    def spots(self, hk: Doubles) -> tuple[Doubles, Doubles]:
        """(kx, ky) of spots (n, 2)."""
        places = hk @ np.array([self.g1_per_nm, self.g2_per_nm])
        return places[:, 0], places[:, 1]

    @property
    def cell_nm(self) -> Doubles:
        """Rows: the real lattice's vectors a1, a2; a_i g_j = 1 where i = j, else 0."""
        return np.asarray(np.linalg.inv(np.array([self.g1_per_nm, self.g2_per_nm])).T)

    @property
    def area_nm2(self) -> float:
        """Of one cell."""
        return float(abs(np.linalg.det(self.cell_nm)))

    def sites(
        self, origin_nm: tuple[float, float], half_width_nm: float, half_height_nm: float
    ) -> tuple[Doubles, npt.NDArray[np.int64]]:
        """All atoms' places (n, 2) within a rectangle about the middle, and which of two each is.

        origin_nm: the middle of a hexagon.
        """
        a1, a2 = self.cell_nm
        reach = math.ceil(1.5 * (half_width_nm + half_height_nm) / math.sqrt(self.area_nm2)) + 2
        i, j = (axis.ravel() for axis in np.mgrid[-reach : reach + 1, -reach : reach + 1])
        places, kinds = [], []
        for kind, sign in ((0, 1.0), (1, -1.0)):
            u, v = i + sign / 3.0, j - sign / 3.0
            places.append(np.outer(u, a1) + np.outer(v, a2) + np.asarray(origin_nm))
            kinds.append(np.full(len(u), kind))
        every, which = np.concatenate(places), np.concatenate(kinds)
        is_inside = (np.abs(every[:, 0]) <= half_width_nm) & (np.abs(every[:, 1]) <= half_height_nm)
        return every[is_inside], which[is_inside]


def find_lattice(
    windowed: Doubles, weight: float, noise: float, pixel_size_nm: float, material: Material
) -> Lattice | None:
    """The lattice of a material in contrast that fades to the frame's edges; None: none stands out.

    weight: sum of the window; noise: variance of one spot's coefficient, without a lattice.
    """
    constant_nm, _ = CELLS[material]
    length = 2.0 / (math.sqrt(3.0) * constant_nm)
    if length >= 0.5 / pixel_size_nm:
        return None
    step = 0.4 / (length * min(windowed.shape) * pixel_size_nm)
    turns = np.arange(0.0, math.pi / 3.0, step)
    powers = np.array(
        [
            np.abs(coefficients(windowed, weight, pixel_size_nm, *_turned(length, turn))) ** 2
            for turn in turns
        ]
    )  # (turns, 3)
    best = int(powers.sum(axis=1).argmax())
    if powers[best].sum() < noise * (3.0 + math.log(len(turns)) + _LEAST_GAIN):
        return None
    gx, gy = _turned(length, float(turns[best]))
    reach = 0.35 / (min(windowed.shape) * pixel_size_nm)
    tops = [
        _top(windowed, weight, pixel_size_nm, float(x), float(y), reach)
        for x, y in zip(gx, gy, strict=True)
    ]
    # A spot that noise drowns says nothing: it has the weight of its power.
    power = np.array([top[2] for top in tops])
    places = np.array([top[:2] for top in tops])
    root = np.sqrt(power / power.max())[:, None]
    found, *_ = np.linalg.lstsq(_SHORTEST * root, places * root, rcond=None)
    lengths = np.hypot(*(_SHORTEST @ found).T)
    if np.abs(lengths / length - 1.0).max() > _MOST_MISFIT:
        return None
    (x1, y1), (x2, y2) = found.tolist()
    return Lattice((x1, y1), (x2, y2))


def coefficients(
    windowed: Doubles, weight: float, pixel_size_nm: float, gx: Doubles, gy: Doubles
) -> Complexes:
    """Fourier coefficients at any frequencies, about the frame's middle."""
    height, width = windowed.shape
    x_nm = (np.arange(width) - (width - 1) / 2) * pixel_size_nm
    y_nm = ((height - 1) / 2 - np.arange(height)) * pixel_size_nm
    down = np.exp(-2j * np.pi * np.outer(gy, y_nm))
    across = np.exp(-2j * np.pi * np.outer(gx, x_nm))
    return np.asarray(((down @ windowed) * across).sum(axis=1) / weight)


def orders(lattice_constant_nm: float, highest_per_nm: float) -> Doubles:
    """Half of the spots of a hexagonal lattice up to a frequency, (n, 2)."""
    length = 2.0 / (math.sqrt(3.0) * lattice_constant_nm)
    found = [
        (h, k)
        for h in range(-4, 5)
        for k in range(-4, 5)
        if (h > 0 or (h == 0 and k > 0))
        and math.sqrt(h * h + k * k + h * k) * length <= highest_per_nm
    ]
    return np.array(found, np.float64).reshape(-1, 2)


def ideal_phase(material: Material, lattice: Lattice, hk: Doubles, voltage_kv: float) -> Complexes:
    """Coefficients of a perfect sheet's phase in radians, its origin in a hexagon's middle."""
    gx, gy = lattice.spots(hk)
    total = np.zeros(len(hk), np.complex128)
    for number, site in CELLS[material][1]:
        sign = 1.0 if site == 0 else -1.0
        turned = np.exp(-2j * np.pi * sign * (hk[:, 0] - hk[:, 1]) / 3.0)
        total += atom_phase_nm2(number, np.hypot(gx, gy), voltage_kv) * turned
    return np.asarray(total / lattice.area_nm2)


def _turned(length_per_nm: float, turn_rad: float) -> tuple[Doubles, Doubles]:
    """The three shortest of a perfect lattice."""
    angles = np.array([turn_rad, turn_rad + math.pi / 3.0, turn_rad - math.pi / 3.0])
    return length_per_nm * np.cos(angles), length_per_nm * np.sin(angles)


def _top(
    windowed: Doubles, weight: float, pixel_size_nm: float, gx: float, gy: float, reach: float
) -> tuple[float, float, float]:
    """Where the power near (gx, gy) is greatest, by parabolas through 3 x 3; and how great."""
    power = 0.0
    offsets = np.array([(i, j) for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0)])
    for _ in range(_CLIMBS):
        at = np.array([gx, gy]) + reach * offsets
        found = coefficients(windowed, weight, pixel_size_nm, at[:, 0], at[:, 1])
        grid = np.log(np.abs(found).reshape(3, 3) ** 2 + 1e-300)
        power = float(np.exp(grid[1, 1]))
        move = []
        for before, middle, after in (grid[:, 1], grid[1, :]):
            bend = before - 2.0 * middle + after
            uphill = math.copysign(1.0, after - before)
            move.append(0.5 * (before - after) / bend if bend < 0.0 else uphill)
        gx += reach * float(np.clip(move[0], -1.0, 1.0))
        gy += reach * float(np.clip(move[1], -1.0, 1.0))
        reach *= 0.6
    return gx, gy, power
