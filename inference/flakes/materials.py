"""The materials a flake may be made of: how thick a layer is and what index it has.

The numbers lie beside this file in `indices.json`: pages of the refractiveindex.info database
(public domain, CC0 1.0), resampled to 380-750 nm in steps of 10 nm, each with its page and DOI.
Outside the range that was measured the end value holds.

A material has one curve it is used with and others to choose from, because laboratories disagree:
monolayer, few-layer and bulk crystals have different indices, and two measurements of the same
thing differ by 5 %. A detector judged on pictures that were computed with its own curve would be
flattered; `Material.with_curve` gives the other one.

Layer thicknesses are half the c axis of the bulk crystal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class IndexCurve:
    """A complex refractive index n + ik, k >= 0 absorbing, against wavelength."""

    key: str  # "graphene/weber"
    page: str  # of the database, or the paper of a constant
    doi: str
    wavelength_nm: npt.NDArray[np.float64]
    index: npt.NDArray[np.complex128]

    def at(self, wavelength_nm: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
        """Interpolate linearly; the end values hold outside."""
        n = np.interp(wavelength_nm, self.wavelength_nm, self.index.real)
        k = np.interp(wavelength_nm, self.wavelength_nm, self.index.imag)
        return np.asarray(n + 1j * k, dtype=np.complex128)


@cache
def curves() -> Mapping[str, IndexCurve]:
    """All index curves by key, "material/measurement"."""
    table = json.loads(files(__package__).joinpath("indices.json").read_text(encoding="utf-8"))
    found = {}
    for key, entry in table["curves"].items():
        n = np.asarray(entry["n"], dtype=np.float64)
        k = np.asarray(entry.get("k", np.zeros_like(n)), dtype=np.float64)
        wavelength_nm = table["first_nm"] + table["step_nm"] * np.arange(n.size, dtype=np.float64)
        found[key] = IndexCurve(key, entry["page"], entry["doi"], wavelength_nm, n + 1j * k)
    found["graphene/blake"] = constant_curve(
        "graphene/blake", 2.6 + 1.3j, page="P. Blake et al., 2007", doi="10.1063/1.2768624"
    )
    return MappingProxyType(found)


def constant_curve(key: str, index: complex, page: str = "", doi: str = "") -> IndexCurve:
    """A material without dispersion."""
    return IndexCurve(key, page, doi, np.array([380.0, 750.0]), np.array([index, index]))


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """One layered crystal."""

    key: str
    name: str
    layer_thickness_nm: float
    curve: IndexCurve
    corner_deg: float  # between the edges along which it cleaves: 60 (hexagonal) or 90

    def index(self, wavelength_nm: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
        """In-plane index n + ik at these wavelengths."""
        return self.curve.at(wavelength_nm)

    def with_curve(self, measurement: str) -> Material:
        """The same crystal with another measurement of its index, e.g. "song_1l"."""
        key = f"{self.key}/{measurement}"
        if key not in curves():
            raise KeyError(f"no index curve {key!r}; there are {', '.join(curves_of(self.key))}")
        return replace(self, curve=curves()[key])


def curves_of(material: str) -> tuple[str, ...]:
    """Names of the measurements of a material's index, to be given to `Material.with_curve`."""
    return tuple(key.partition("/")[2] for key in curves() if key.partition("/")[0] == material)


def _material(
    key: str, name: str, layer_thickness_nm: float, measurement: str, corner_deg: float = 60.0
) -> Material:
    return Material(key, name, layer_thickness_nm, curves()[f"{key}/{measurement}"], corner_deg)


MATERIALS: Mapping[str, Material] = MappingProxyType(
    {
        material.key: material
        for material in (
            _material("graphene", "graphene", 0.335, "weber"),
            _material("hbn", "hBN", 0.333, "lee"),
            _material("mos2", "MoS2", 0.615, "hsu_1l"),
            _material("wse2", "WSe2", 0.649, "hsu_1l"),
            _material("wte2", "WTe2", 0.70, "munkhbat_alpha", corner_deg=90.0),
            _material("ws2", "WS2", 0.618, "hsu_1l"),
            _material("mose2", "MoSe2", 0.646, "hsu_1l"),
            _material("tas2", "TaS2", 0.60, "bulk_munkhbat"),
        )
    }
)

SIO2: IndexCurve = curves()["sio2/malitson"]
SI: IndexCurve = curves()["si/green"]
