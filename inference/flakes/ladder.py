"""The contrast ladder: which colours a crystal of 1, 2, 3 ... layers has on this substrate.

A ladder is a curve in the space of (R, G, B) contrasts, parametrised by thickness in layers: steep
near the substrate, then curling through blue to the bulk crystal. Whole layer numbers are its
rungs. A pixel is read by finding the nearest point of the curve; how far away that point is says
whether the pixel can be this material at all. The curve is dense and goes on far beyond the layers
that anyone wants, so that thick crystals are explained as thick ones and not as ill-fitting thin
ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from inference.api import Calibration
from inference.flakes.material_cards import MaterialCard
from inference.flakes.materials import MATERIALS, SI, SIO2, Material
from inference.flakes.thin_film import (
    WAVELENGTHS_NM,
    Illuminant,
    Layer,
    colour_weights,
    reflectance,
)

FloatArray = npt.NDArray[np.float32]

THICKEST_NM = 60.0
"""Beyond that thickness a layered crystal looks like its bulk, within noise."""

_COLOUR_CELLS = 64  # per channel of the colour table
_COLOUR_FROM, _COLOUR_TO = -1.0, 1.56  # contrasts the table covers; cells of 0.04
_COLOUR_SEEN = 1.54  # the middle of the last cell


@dataclass(frozen=True, slots=True)
class Correction:
    """What a microscope's camera makes of a contrast beyond thin-film physics, per channel.

    measured = gain * model + offset * (1 - exp(-|model| / 0.1)): affine for anything that can be
    seen, and still zero on the bare substrate, whose contrast is zero by definition.
    """

    gain_rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)  # contrast units

    def applied(self, contrast_rgb: FloatArray) -> FloatArray:
        """Corrected contrasts of (..., 3) model contrasts."""
        if self == NO_CORRECTION:
            return contrast_rgb
        size = np.linalg.norm(contrast_rgb, axis=-1, keepdims=True)
        offset = np.asarray(self.offset_rgb) * correction_onset(size)
        return np.asarray(contrast_rgb * np.asarray(self.gain_rgb) + offset, dtype=np.float32)


def correction_onset(size: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """How much of a correction's offset a colour gets that is so far from the substrate's, 0..1."""
    return np.asarray(1.0 - np.exp(-size / _OFFSET_ONSET), dtype=np.float64)


_OFFSET_ONSET = 0.1
NO_CORRECTION = Correction()


@dataclass(frozen=True, slots=True)
class Optics:
    """What the ladder's physics needs to know of the microscope, and of crystals not built in."""

    numerical_aperture: float = 0.45
    lamp_k: float = 3200.0
    index_curves: tuple[tuple[str, str], ...] = ()  # (material, measurement); else the usual one
    cards: tuple[MaterialCard, ...] = ()  # crystals known from a card only
    correction: Correction = NO_CORRECTION

    def material(self, key: str) -> Material:
        """The crystal with the index curve chosen for it. Raises KeyError for unknown names."""
        for new in self.cards:
            if new.key == key:
                return new.material()
        if key not in MATERIALS:
            known = sorted([*MATERIALS, *(new.key for new in self.cards)])
            raise KeyError(f"no material {key!r}; there are {', '.join(known)}")
        measurement = dict(self.index_curves).get(key)
        card = MATERIALS[key]
        return card if measurement is None else card.with_curve(measurement)


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """One material's contrasts against thickness under one calibration."""

    material: str
    layer_nm: float
    thickness_layers: FloatArray  # (n,) ascending from 0
    contrast_rgb: FloatArray  # (n, 3)
    gain_rgb: tuple[float, float, float]

    def at(self, thickness_layers: npt.ArrayLike) -> FloatArray:
        """Contrast at any thickness, (..., 3)."""
        wanted = np.asarray(thickness_layers, dtype=np.float32)
        channels = [
            np.interp(wanted, self.thickness_layers, self.contrast_rgb[:, c]) for c in range(3)
        ]
        return np.stack(channels, axis=-1).astype(np.float32)

    @property
    def arc(self) -> FloatArray:
        """Length along the curve, in contrast units, at each point."""
        steps = np.linalg.norm(np.diff(self.contrast_rgb, axis=0), axis=1)
        return np.concatenate([[0.0], np.cumsum(steps)]).astype(np.float32)

    def nearest(self, contrast_rgb: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Thickness in layers and distance of the nearest point of the curve, each (n,).

        contrast_rgb: (n, 3). Exact on the polyline through the ladder's points.
        """
        points = np.atleast_2d(np.asarray(contrast_rgb, dtype=np.float32))
        curve = self.contrast_rgb
        squares = np.einsum("ij,ij->i", curve, curve)
        nearest = np.empty(len(points), dtype=np.int64)
        for start in range(0, len(points), 8192):
            block = points[start : start + 8192]
            nearest[start : start + 8192] = np.argmin(squares - 2.0 * (block @ curve.T), axis=1)
        return self.refined(points, nearest)

    def refined(
        self, points: FloatArray, nearest: npt.NDArray[np.integer]
    ) -> tuple[FloatArray, FloatArray]:
        """Project on the two segments that meet at the nearest point; keep the better."""
        curve, thickness = self.contrast_rgb, self.thickness_layers
        last = len(curve) - 1
        best_t = thickness[nearest].copy()
        offset = points - curve[nearest]
        best_d2 = np.einsum("ij,ij->i", offset, offset)
        for step in (-1, 1):
            other = np.clip(nearest + step, 0, last)
            along = curve[other] - curve[nearest]
            length2 = np.einsum("ij,ij->i", along, along)
            share = np.einsum("ij,ij->i", offset, along) / np.maximum(length2, 1e-12)
            share = np.clip(share, 0.0, 1.0)
            rest = offset - share[:, None] * along
            d2 = np.einsum("ij,ij->i", rest, rest)
            better = d2 < best_d2
            best_d2 = np.where(better, d2, best_d2)
            moved = thickness[nearest] + share * (thickness[other] - thickness[nearest])
            best_t = np.where(better, moved, best_t)
        return best_t.astype(np.float32), np.sqrt(np.maximum(best_d2, 0.0)).astype(np.float32)

    def cut_off(self, ceiling_rgb: FloatArray) -> Ladder:
        """The ladder as a camera sees it whose channels end at these contrasts."""
        return replace(self, contrast_rgb=np.minimum(self.contrast_rgb, ceiling_rgb))

    def colour_table(self) -> ColourTable:
        """The nearest point precomputed over colour space, for whole images."""
        seen = self.cut_off(np.full(3, _COLOUR_SEEN, dtype=np.float32))
        return ColourTable(self, seen, _nearest_of_cells(seen))

    def log_likelihoods(
        self, contrast_rgb: FloatArray, sigma_rgb: FloatArray, max_layers: int
    ) -> FloatArray:
        """Logarithm of how well 1 ... max_layers layers explain a region's contrast, (max_layers,).

        sigma_rgb: one standard deviation per channel, noise and systematic error together.
        """
        deviation = (self.at(np.arange(1, max_layers + 1)) - contrast_rgb) / sigma_rgb
        return np.asarray(-0.5 * np.einsum("ij,ij->i", deviation, deviation), dtype=np.float32)

    def layer_probabilities(
        self, contrast_rgb: FloatArray, sigma_rgb: FloatArray, max_layers: int
    ) -> FloatArray:
        """Probability of 1 ... max_layers layers, equally likely beforehand, summing to 1."""
        logs = self.log_likelihoods(contrast_rgb, sigma_rgb, max_layers)
        likelihood = np.exp(logs - logs.max())
        return np.asarray(likelihood / likelihood.sum(), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ColourTable:
    """Nearest ladder point of every colour, in cells; refined per pixel along the curve.

    Thick transparent crystals are far brighter than the cells go: colour and curve are cut off
    there alike.
    """

    ladder: Ladder
    seen: Ladder  # the same, cut off where the cells end
    nearest: npt.NDArray[np.int16]  # (64 * 64 * 64,)

    def read(self, contrast_rgb: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What `Ladder.nearest` says, distances within 0.005 of it, for (n, 3) contrasts."""
        points = np.minimum(contrast_rgb, np.float32(_COLOUR_SEEN))
        return self.seen.refined(points, self.nearest[colour_cells(points)])


def colour_cells(contrast_rgb: FloatArray) -> npt.NDArray[np.int32]:
    """Index of each contrast, (n, 3), in a table over colour space."""
    scale = _COLOUR_CELLS / (_COLOUR_TO - _COLOUR_FROM)
    cells = ((contrast_rgb - _COLOUR_FROM) * scale).astype(np.int32)
    np.clip(cells, 0, _COLOUR_CELLS - 1, out=cells)
    return np.asarray(
        (cells[:, 0] * _COLOUR_CELLS + cells[:, 1]) * _COLOUR_CELLS + cells[:, 2], dtype=np.int32
    )


def colour_cell_centres() -> FloatArray:
    """Contrast in the middle of each cell, (64 ** 3, 3), in the order of `colour_cells`."""
    step = (_COLOUR_TO - _COLOUR_FROM) / _COLOUR_CELLS
    axis = (_COLOUR_FROM + step * (np.arange(_COLOUR_CELLS) + 0.5)).astype(np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def _nearest_of_cells(ladder: Ladder) -> npt.NDArray[np.int16]:
    step = (_COLOUR_TO - _COLOUR_FROM) / _COLOUR_CELLS
    axis = (_COLOUR_FROM + step * (np.arange(_COLOUR_CELLS) + 0.5)).astype(np.float32)
    curve = ladder.contrast_rgb
    squares = np.einsum("ij,ij->i", curve, curve)
    table = np.empty((_COLOUR_CELLS, _COLOUR_CELLS * _COLOUR_CELLS), dtype=np.int16)
    plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    in_plane = squares - 2.0 * (plane @ curve[:, 1:].T)  # (4096, n)
    for k, red in enumerate(axis):
        table[k] = np.argmin(in_plane - 2.0 * red * curve[:, 0], axis=1)
    return table.ravel()


def layer_grid(layer_nm: float, fine_layers: float = 14.0) -> FloatArray:
    """Thicknesses in layers at which a ladder is computed: dense where the colour moves fast."""
    thickest = THICKEST_NM / layer_nm
    fine = np.arange(0.0, min(fine_layers, thickest), 0.25)
    coarse = np.arange(min(fine_layers, thickest), thickest, 1.0)
    return np.concatenate([fine, coarse]).astype(np.float32)


@lru_cache(maxsize=4096)
def model_contrast(material: str, oxide_nm: float, optics: Optics) -> FloatArray:
    """Contrasts on `layer_grid`, (n, 3), before any fitted gain; read-only."""
    reflected = _grid_reflectance(material, oxide_nm, _lampless(optics))
    weights = colour_weights(WAVELENGTHS_NM, Illuminant(optics.lamp_k))
    flake = reflected @ weights.T
    contrast = (flake / bare_signal(oxide_nm, optics) - 1.0).astype(np.float32)
    contrast = optics.correction.applied(contrast)
    contrast.setflags(write=False)
    return contrast


@lru_cache(maxsize=256)
def _lampless(optics: Optics) -> Optics:
    """What the reflectance depends on."""
    return replace(optics, lamp_k=0.0, correction=NO_CORRECTION)


@lru_cache(maxsize=1024)
def _grid_reflectance(material: str, oxide_nm: float, optics: Optics) -> FloatArray:
    """Reflectance on `layer_grid`, (n, wavelengths), whatever the lamp."""
    card = optics.material(material)
    layer_nm = card.layer_thickness_nm
    grid_nm = layer_grid(layer_nm).astype(np.float64) * layer_nm
    films: list[Layer] = [(card.index(WAVELENGTHS_NM), grid_nm)]
    return _reflectance(oxide_nm, optics, films).astype(np.float32)


def contrast_at(
    material: str, oxide_nm: float, optics: Optics, thickness_nm: npt.NDArray[np.float64]
) -> FloatArray:
    """Contrasts of crystals that thick, (n,) -> (n, 3), before any fitted gain."""
    index = optics.material(material).index(WAVELENGTHS_NM)
    flake = _signal(oxide_nm, optics, [(index, thickness_nm)])
    contrast = (flake / bare_signal(oxide_nm, optics) - 1.0).astype(np.float32)
    return optics.correction.applied(contrast)


@lru_cache(maxsize=4096)
def bare_signal(oxide_nm: float, optics: Optics) -> FloatArray:
    """Camera signal of the bare substrate, (3,), a mirror being 1; read-only."""
    signal = _signal(oxide_nm, optics, []).astype(np.float32)
    signal.setflags(write=False)
    return signal


def _signal(oxide_nm: float, optics: Optics, films: list[Layer]) -> npt.NDArray[np.float64]:
    weights = colour_weights(WAVELENGTHS_NM, Illuminant(optics.lamp_k))
    return np.asarray(_reflectance(oxide_nm, optics, films) @ weights.T, dtype=np.float64)


def _reflectance(oxide_nm: float, optics: Optics, films: list[Layer]) -> npt.NDArray[np.float64]:
    return reflectance(
        WAVELENGTHS_NM,
        [*films, (SIO2.at(WAVELENGTHS_NM), oxide_nm)],
        SI.at(WAVELENGTHS_NM),
        optics.numerical_aperture,
        angles=6,  # of 12: contrasts change by less than 1e-6
    )


@lru_cache(maxsize=64)
def ladder(material: str, calibration: Calibration, optics: Optics) -> Ladder:
    """The ladder that a calibrated microscope should see."""
    layer_nm = optics.material(material).layer_thickness_nm
    gain = np.asarray(calibration.gain_rgb, dtype=np.float32)
    contrast = model_contrast(material, round(calibration.oxide_nm, 1), optics) * gain
    return Ladder(material, layer_nm, layer_grid(layer_nm), contrast, calibration.gain_rgb)


@lru_cache(maxsize=16)
def colour_table(material: str, calibration: Calibration, optics: Optics) -> ColourTable:
    """Colour table of the same; 30 ms to build, cached."""
    return ladder(material, calibration, optics).colour_table()
