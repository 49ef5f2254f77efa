"""Exit waves to learn from and to measure on: random thin samples, and the truth about each.

Sheets with vacancies, foreign atoms, holes, grain boundaries, adatoms and dirt, of random turn,
pixel and voltage. What a network never sees in training is kept for measuring: hexagonal boron
nitride, and voltages below 75 kV. The lens, the dose and the camera are drawn later, by whoever
takes the wave: one wave serves many frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from simulator.atoms import NUMBERS, Atoms, Defect, Sample, SampleKind, SampleSettings
from simulator.potential import Wave, exit_wave

Role = Literal["train", "graphene", "impurities", "unseen"]

_MARGIN_NM: Final = 0.5  # drawn round the field: the grid is periodic, the sample is not
_DIRT_PER_NM2: Final = 20.0  # carbon atoms on the sheet where it is dirty, at most
_ROLES: Final[dict[Role, int]] = {"train": 11, "graphene": 12, "unseen": 13, "impurities": 14}


@dataclass(frozen=True, slots=True, eq=False)
class WaveScene:
    """One exit wave and what it came from; coordinates in nm from its middle, y UP."""

    wave: Wave  # (h, w), y down
    pixel_size_nm: float
    voltage_kv: float
    kind: SampleKind
    atoms: Atoms
    defects: tuple[Defect, ...]


def wave_scene(
    seed: int, number: int, role: Role = "train", side_px: int = 256, dirt: bool = True
) -> WaveScene:
    """Draw scene `number`; the same arguments give the same scene to the last bit.

    role: "train": anything but what is held out; "graphene": at 80 kV and 0.0154 nm a pixel, with
    foreign atoms; "impurities": the same without adatoms, dirt or second grains; "unseen": boron
    nitride below 75 kV. dirt: carbon may lie about.
    """
    rng = np.random.default_rng([seed, _ROLES[role], number])
    if role == "train":
        kind: SampleKind = "mos2" if rng.random() < 0.15 else "graphene"
        pixel_nm = float(np.exp(rng.uniform(math.log(0.012), math.log(0.028))))
        voltage_kv = 80.0 if rng.random() < 0.5 else float(rng.uniform(75.0, 300.0))
    elif role in ("graphene", "impurities"):
        kind, pixel_nm, voltage_kv = "graphene", 0.0154, 80.0
    else:
        kind, pixel_nm = "hbn", float(rng.uniform(0.014, 0.024))
        voltage_kv = float(rng.uniform(60.0, 74.0))
    margin_px = math.ceil(_MARGIN_NM / pixel_nm)
    padded_px = side_px + 2 * margin_px
    field_nm = padded_px * pixel_nm
    settings = _settings(rng, kind, field_nm)
    if role == "impurities":
        shares = {"vacancy_ratio": 0.003, "dopant_ratio": 0.01, "holes": int(rng.random() < 0.3)}
        settings = settings.model_copy(update=shares | {"adatoms": 0, "boundary_deg": 0.0})
        dirt = False
    sample = Sample(settings)
    atoms, defects = sample.atoms(), list(sample.defects_in())
    if dirt and rng.random() < 0.35:
        dirty = _dirt(rng, field_nm)
        atoms = atoms.joined(dirty)
    wave = exit_wave(
        atoms,
        (padded_px, padded_px),
        pixel_nm,
        voltage_kv,
        slice_nm=None if rng.random() < 0.7 else 0.1,
        thermal_nm=float(rng.uniform(0.004, 0.009)),
    )
    half_nm = side_px * pixel_nm / 2
    inside = [one for one in defects if abs(one.x_nm) <= half_nm and abs(one.y_nm) <= half_nm]
    return WaveScene(
        np.ascontiguousarray(wave[margin_px:-margin_px, margin_px:-margin_px]),
        pixel_nm,
        voltage_kv,
        kind,
        atoms.seen_from(0.0, 0.0, 2 * half_nm, 2 * half_nm),
        tuple(inside),
    )


def _settings(rng: np.random.Generator, kind: SampleKind, field_nm: float) -> SampleSettings:
    is_plain = rng.random() < 0.15
    return SampleSettings(
        kind=kind,
        seed=int(rng.integers(2**31)),
        width_nm=field_nm,
        height_nm=field_nm,
        vacancy_ratio=0.0 if is_plain else float(10.0 ** rng.uniform(-3.5, -1.5)),
        dopant_ratio=0.0 if is_plain else float(10.0 ** rng.uniform(-3.5, -1.6)),
        holes=int(rng.choice(4, p=(0.45, 0.3, 0.15, 0.1))),
        hole_radius_nm=float(rng.uniform(0.3, 0.9)),
        boundary_deg=float(rng.uniform(5.0, 55.0)) if rng.random() < 0.15 else 0.0,
        adatoms=0 if is_plain else int(rng.choice((0, 1, 2, 4))),
        adatom=("C", "Si", "Cu", "Pt", "Au")[int(rng.integers(5))],
    )


def _dirt(rng: np.random.Generator, field_nm: float) -> Atoms:
    """Carbon without order, thicker about some places than about others."""
    count = rng.poisson(_DIRT_PER_NM2 * field_nm**2 * rng.uniform(0.0, 0.5))
    places = rng.uniform(-0.5, 0.5, (count, 3)) * (field_nm, field_nm, 0.4)
    density = np.zeros(count)
    for _ in range(int(rng.integers(1, 4))):
        middle = rng.uniform(-0.5, 0.5, 2) * field_nm
        width_nm = rng.uniform(0.4, 2.0)
        square: npt.NDArray[np.float64] = ((places[:, :2] - middle) ** 2).sum(axis=1)
        density = np.maximum(density, np.exp(-0.5 * square / width_nm**2))
    kept = places[rng.random(count) < density]
    return Atoms.at(kept, NUMBERS["C"])
