"""Atoms and particles in a restored frame, each weighed against the raw one.

A restorer may draw an atom that the electrons do not support, so a restored image only proposes
places: the extrema of it, matched to the size of an atom. For each the raw frame is asked: how much
likelier are its counts with a spot of that size there than with the local background alone (a
plane, fitted both times)? Whole electrons are weighed by Poisson's law, other numbers by Gauss's
with the variance of the noise model. The answer is a log-likelihood ratio; where it is below what
noise comes to by chance, the feature is said to be unsupported and is to be drawn hollow.

How much noise comes to follows from theory: the weight of a spot, sqrt(2 llr), is a smooth Gaussian
field over the frame, and the number of its peaks above t is area * t exp(-t^2 / 2) / (2 pi)^1.5
times the variance of its slope (R. J. Adler, The Geometry of Random Fields, 1981, ch. 6), which for
spots of one standard deviation s is 1 / (2 s^2), and more once the background is taken away. So a
rate of false atoms can be asked for, and no simulation was needed to set a threshold.

The error of a position is the bound of Cramer and Rao for that spot, noise and strength.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.restore.api import Frame, Grey, NoiseModel, grey_of
from inference.restore.colour import WHITE, Colour

FloatArray = npt.NDArray[np.float64]

_REACH: Final = 3.0  # of a spot's surroundings, in its standard deviations
_WIDER: Final = 1.6  # the background's blur over the spot's
_ROUGHER: Final = 2.0  # slope's variance of a spot less its background, over that of the spot
_WHOLE: Final = 1e-3  # of an electron
_MOST: Final = 20_000  # candidates that are weighed: the strongest
_GRID: Final = 64  # frequencies a side, for the power of coloured noise under a spot


@dataclass(frozen=True, slots=True)
class Feature:
    """One bright or dark spot."""

    x_px: float  # centres of pixels are whole numbers, y down
    y_px: float
    strength_dn: float  # of its centre above the background in the RAW frame; < 0: darker
    strength_sigma_dn: float
    sigma_px: float  # of either coordinate, one standard deviation
    llr: float  # log-likelihood of the raw frame with it over that without; 0 where it has none
    is_supported: bool  # by the raw frame, and not only by the restored one


def features(
    frame: Frame,
    restored: Grey,
    noise: NoiseModel,
    size_px: float,
    *,
    sign: int = 1,
    least_llr: float,
    colour: Colour = WHITE,
) -> tuple[Feature, ...]:
    """Spots of a restored frame, the likeliest first, and what the raw frame says of them.

    size_px: one standard deviation of a spot. sign: 1 for bright ones, -1 for dark ones.
    least_llr: see `llr_of_chance`. colour: of the noise, see `colour`.
    """
    grey = grey_of(frame)
    places = _candidates(restored * np.float32(sign), size_px)
    if not len(places):
        return ()
    found = _weighed(grey, places, noise, size_px, _under_spot(colour, size_px))
    strength, variance, llr = found
    llr = np.where(strength * sign > 0.0, llr, 0.0)
    # Information of a shift: strength^2 * sum of (dT/dx)^2 over the variance, pi / 2 for a Gaussian
    slope = math.pi / 2.0 / (math.pi * size_px**2)
    error = np.sqrt(variance / slope) / np.maximum(np.abs(strength), 1e-12)
    order = np.argsort(-llr, kind="stable")
    return tuple(
        Feature(
            x_px=float(places[i, 1]),
            y_px=float(places[i, 0]),
            strength_dn=float(strength[i]),
            strength_sigma_dn=float(math.sqrt(variance[i])),
            sigma_px=float(min(error[i], _REACH * size_px)),
            llr=float(llr[i]),
            is_supported=bool(llr[i] >= least_llr),
        )
        for i in order
    )


def llr_of_chance(area_px: float, size_px: float, false_features: float = 1.0) -> float:
    """The ratio that noise exceeds so many times in such an area, at most.

    False spots of 1 per 1e5 square angstrom: area_px = 1e5 / pixel size^2.
    """
    density = _ROUGHER / (2.0 * size_px**2) / (2.0 * math.pi) ** 1.5
    low, high = 1.5, 20.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        too_many = area_px * density * middle * math.exp(-0.5 * middle**2) > false_features
        low, high = (middle, high) if too_many else (low, middle)
    return 0.5 * high**2


# --- places ----------------------------------------------------------------------------------


def _candidates(restored: Grey, size_px: float) -> FloatArray:
    """Extrema of an image matched to a spot less its surroundings, (n, 2): y, x, subpixel."""
    edge = cv2.BORDER_REFLECT
    narrow = cv2.GaussianBlur(restored, (0, 0), 0.5 * size_px, borderType=edge)
    wide = cv2.GaussianBlur(restored, (0, 0), _WIDER * size_px, borderType=edge)
    matched = np.asarray(narrow - wide, dtype=np.float32)
    side = 2 * max(1, round(size_px)) + 1
    largest = cv2.dilate(matched, np.ones((side, side), np.uint8))
    margin = math.ceil(_REACH * size_px)
    inner = np.s_[margin:-margin, margin:-margin]
    is_peak = (matched >= largest) & (matched > 1e-6 * max(float(np.abs(restored).max()), 1e-12))
    at = np.argwhere(is_peak[inner]) + margin
    if len(at) > _MOST:
        at = at[np.argsort(-matched[at[:, 0], at[:, 1]], kind="stable")[:_MOST]]
    y, x = at[:, 0], at[:, 1]
    shift = [
        _vertex(matched[y - 1, x], matched[y, x], matched[y + 1, x]),
        _vertex(matched[y, x - 1], matched[y, x], matched[y, x + 1]),
    ]
    return np.asarray(at + np.stack(shift, axis=1), dtype=np.float64)


def _vertex(before: Grey, at: Grey, after: Grey) -> FloatArray:
    """Where the parabola through three values has its extremum."""
    bend = before - 2.0 * at + after
    shift = 0.5 * (before - after) / np.where(np.abs(bend) > 1e-12, bend, 1.0)
    return np.clip(np.where(bend < 0.0, shift, 0.0), -0.5, 0.5).astype(np.float64)


# --- weights ---------------------------------------------------------------------------------


def _weighed(
    grey: Grey, places: FloatArray, noise: NoiseModel, size_px: float, more: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Strength, its variance and the log-likelihood ratio of each place, (n,) each.

    more: power of the noise under a spot over the model's.
    """
    reach = math.ceil(_REACH * size_px)
    v, u = (axis.ravel() for axis in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    centre = np.rint(places).astype(int)
    rows, columns = centre[:, :1] + v, centre[:, 1:] + u
    values = grey[rows, columns].astype(np.float64)  # (n, p)
    away_y, away_x = rows - places[:, :1], columns - places[:, 1:]
    spot = np.exp(-(away_y**2 + away_x**2) / (2.0 * size_px**2))
    plane = np.stack([np.ones_like(away_y), away_y / reach, away_x / reach], axis=2)  # (n, p, 3)
    level = values.mean(axis=1)
    variance = noise.variance_dn2(level).astype(np.float64)[:, None]
    # The spot, as far as no plane explains it.
    gram = np.einsum("npi,npj->nij", plane, plane)
    weights = np.linalg.solve(gram, np.einsum("npi,np->ni", plane, spot)[:, :, None])
    pure = spot - np.einsum("npi,ni->np", plane, weights[:, :, 0])
    power = np.square(pure).sum(axis=1)
    strength = (pure * values).sum(axis=1) / power
    base = np.linalg.solve(gram, np.einsum("npi,np->ni", plane, values)[:, :, None])
    without = np.einsum("npi,ni->np", plane, base[:, :, 0])
    within = without + strength[:, None] * pure
    if noise.gain_dn > 0.0 and noise.read_noise_dn == 0.0:
        electrons = (values - noise.offset_dn) / noise.gain_dn
        is_whole = float(np.abs(electrons - np.rint(electrons)).max()) < _WHOLE
        if is_whole and more == 1.0:
            mean0, mean1 = (
                np.maximum((one - noise.offset_dn) / noise.gain_dn, 1e-2)
                for one in (without, within)
            )
            llr = (electrons * np.log(mean1 / mean0) - (mean1 - mean0)).sum(axis=1)
            return strength, variance[:, 0] / power, np.maximum(llr, 0.0)
    llr = 0.5 * strength**2 * power / (variance[:, 0] * more)
    return strength, more * variance[:, 0] / power, llr


def _under_spot(colour: Colour, size_px: float) -> float:
    """Power of coloured noise in a spot, over that of white noise of the model's variance."""
    if colour == WHITE:
        return 1.0
    f = np.arange(_GRID) / (2.0 * _GRID)
    weight = np.exp(-4.0 * (math.pi * size_px) ** 2 * (f[:, None] ** 2 + f[None, :] ** 2))
    return float((weight * colour.power(_GRID, _GRID)).sum() / weight.sum())
