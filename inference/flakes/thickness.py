"""How thick, in nm, with an interval: what a colour says about crystals too thick to count.

A layer number is the question for a few layers; for 5 to 40 nm of hBN it is the thickness. The
colour's likelihood is computed over a dense grid of thicknesses for every measurement of the
material's index there is, for laboratories disagree by more than a camera's noise: the two extreme
curves of hBN (n = 2.14 and 2.23 at 550 nm) read the same colour 10 % apart. Where terraces have
shown which curve explains them (`fit_calibration`), that one weighs most. The answer is the median
of the posterior and the interval that holds 95 % of it, thickness being equally likely beforehand
from nothing to 150 nm. Interference repeats: where a much thicker crystal has the same colour the
answer says so instead of widening the interval over what lies between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from inference.api import Calibration
from inference.flakes.ladder import FloatArray, Optics, contrast_at
from inference.flakes.materials import curves, curves_of
from inference.flakes.thin_film import WAVELENGTHS_NM

_THICKEST_NM = 150.0
_FINE_NM, _COARSE_NM = 0.1, 0.5
_FINE_TO_NM = 6.0
_OTHER_CURVE = 0.1  # weight of a laboratory that the terraces did not choose, against the chosen
_LEAST_LOG = -40.0  # of a likelihood relative to the best: no colour is impossible
_TAIL = 0.025
_SAME_PEAK = 1e-4  # of the posterior's height: lower valleys separate two answers
_NEAR, _NEAR_NM = 1.3, 0.5  # a factor and a distance within which they do not
_OTHER_SHARE = 0.05  # of the probability: another answer with more is named


@dataclass(frozen=True, slots=True)
class Thickness:
    """A thickness with the interval that holds 95 % of its probability."""

    nm: float
    low_nm: float
    high_nm: float
    other_nm: float | None  # of another crystal with that colour; None: there is none


def estimate_thickness(
    contrast_rgb: FloatArray,
    sigma_rgb: FloatArray,
    material: str,
    calibration: Calibration,
    optics: Optics,
    *,
    is_curve_known: bool = False,
    ceiling_rgb: FloatArray | None = None,
) -> Thickness:
    """Read one colour.

    sigma_rgb: one standard deviation per channel, noise and systematic error together.
    is_curve_known: the curve that `optics` names was chosen by fitted terraces, not by default.
    ceiling_rgb: contrasts at which the camera's channels end; None where nothing is saturated.
    """
    grid_nm, gaps_nm = _grid()
    posterior = np.zeros_like(grid_nm)
    for weight, curve_rgb in _curves(material, round(calibration.oxide_nm, 1), optics,
                                     is_curve_known):  # fmt: skip
        curve = curve_rgb * np.asarray(calibration.gain_rgb)
        if ceiling_rgb is not None:
            curve = np.minimum(curve, ceiling_rgb)
        off = (curve - contrast_rgb) / sigma_rgb
        logs = -0.5 * np.einsum("ij,ij->i", off, off)
        posterior += weight * np.exp(np.maximum(logs, logs.max() + _LEAST_LOG))
    height = posterior / posterior.max()
    share = posterior * gaps_nm
    share = share / share.sum()
    # The hill around the likeliest thickness, down to where next to nothing is left.
    top = int(np.argmax(height))
    below = np.flatnonzero(height[:top] < _SAME_PEAK)
    above = np.flatnonzero(height[top:] < _SAME_PEAK)
    first = int(below[-1]) + 1 if below.size else 0
    last = top + int(above[0]) if above.size else height.size
    # Two laboratories' answers a little apart are one answer.
    low_nm, high_nm = grid_nm[top] / _NEAR - _NEAR_NM, grid_nm[top] * _NEAR + _NEAR_NM
    first = min(first, int(np.searchsorted(grid_nm, low_nm)))
    last = max(last, int(np.searchsorted(grid_nm, high_nm)))
    hill = share[first:last]
    inside = np.cumsum(hill) - 0.5 * hill
    low, middle, high = np.interp(
        np.array([_TAIL, 0.5, 1.0 - _TAIL]) * hill.sum(), inside, grid_nm[first:last]
    )
    rest = share.copy()
    rest[first:last] = 0.0
    other = float(grid_nm[int(np.argmax(rest))]) if rest.sum() > _OTHER_SHARE else None
    return Thickness(float(middle), float(low), float(high), other)


@lru_cache(maxsize=1)
def _grid() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Thicknesses, and how many nm each of them stands for."""
    fine = np.arange(0.0, _FINE_TO_NM, _FINE_NM)
    grid = np.concatenate([fine, np.arange(_FINE_TO_NM, _THICKEST_NM, _COARSE_NM)])
    return grid, np.gradient(grid)


@lru_cache(maxsize=64)
def _curves(
    material: str, oxide_nm: float, optics: Optics, is_curve_known: bool
) -> tuple[tuple[float, FloatArray], ...]:
    """Contrasts on the grid by each measurement of the index, with the weight of each."""
    grid_nm, _ = _grid()
    chosen = optics.material(material).curve.key
    measurements = curves_of(material) or ("",)
    apart = np.ones(len(measurements))
    if len(measurements) > 1:  # two that agree are no two witnesses
        n = np.array([curves()[f"{material}/{m}"].at(WAVELENGTHS_NM) for m in measurements])
        apart = np.abs(n[:, None] - n[None, :]).mean(axis=2).sum(axis=1)
    found = []
    for measurement, distance in zip(measurements, apart / apart.max(), strict=True):
        others = tuple(pair for pair in optics.index_curves if pair[0] != material)
        own = ((material, measurement),) if measurement else ()
        mine = replace(optics, index_curves=(*others, *own))
        is_chosen = mine.material(material).curve.key == chosen
        weight = float(distance) if not is_curve_known else 1.0 if is_chosen else _OTHER_CURVE
        found.append((weight, contrast_at(material, oxide_nm, mine, grid_nm)))
    return tuple(found)
