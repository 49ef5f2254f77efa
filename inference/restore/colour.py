"""The colour of a frame's noise: how its power falls with frequency where a detector smooths it.

A detector that passes noise through a Lorentzian (a scintillator's spread; an amplifier slower than
the scan, along the lines only) leaves power P = P0 / (1 + (a fx)^2 + (b fy)^2). The places with the
least power at low frequencies, where nothing but noise is if anywhere, give P at middle and high
ones; low frequencies are what the fit says they are, since there noise and sample cannot be told
apart in one frame. Medians over places, as texture is in some of them only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from inference.restore.api import Frame, Grey, NoiseModel, grey_of
from inference.restore.noise import estimate_noise

_SIDE_PX: Final = 8
_GRID: Final = 32
_LEAST_MORE: Final = 1.05  # less is the chance of one estimate
_MOST_PLACES: Final = 8_192
_LEAST_PLACES: Final = 48
_KEPT_RATIO: Final = 0.2
_CHI2_MEDIAN: Final = 0.4549  # of one degree of freedom
_MOST_MISFIT: Final = 0.15  # root mean square, relative, beyond chance
_MOST_RATIO: Final = 50.0  # of power at frequency 0 to that at the highest


@dataclass(frozen=True, slots=True)
class Colour:
    """Power of noise by frequency, over the mean of the highest ones, which a noise model tells."""

    across_px2: float  # a^2 above, 0 for white
    down_px2: float
    scale: float

    def power(self, height: int, width: int) -> Grey:
        """Of each coefficient of a cosine transform, (h, w)."""
        fy = np.arange(height, dtype=np.float32)[:, None] / np.float32(2 * height)
        fx = np.arange(width, dtype=np.float32)[None, :] / np.float32(2 * width)
        fall = 1.0 + self.across_px2 * fx**2 + self.down_px2 * fy**2
        return np.asarray(self.scale / fall, dtype=np.float32)

    def for_filters(self, noise: NoiseModel) -> NoiseModel:
        """White noise as strong as this is at the frequencies that samples are seen at.

        For restorers, which know of white noise only: told of the highest frequencies' power, they
        would take what is more at low ones for the sample.
        """
        more = float(self.power(_GRID, _GRID)[: _GRID // 2, : _GRID // 2].mean())
        if more < _LEAST_MORE:
            return noise
        return replace(
            noise,
            gain_dn=more * noise.gain_dn,
            gain_sigma_dn=more * noise.gain_sigma_dn,
            read_noise_dn=math.sqrt(more) * noise.read_noise_dn,
        )


WHITE: Final = Colour(0.0, 0.0, 1.0)


def noise_colour(frame: Frame, noise: NoiseModel) -> Colour | None:
    """The colour of a frame's noise; None where it does not follow the law above.

    noise: levels are evened out by it.
    """
    grey = grey_of(frame)
    rows, columns = grey.shape[0] // _SIDE_PX, grey.shape[1] // _SIDE_PX
    tiles = grey[: rows * _SIDE_PX, : columns * _SIDE_PX].reshape(rows, _SIDE_PX, columns, _SIDE_PX)
    step = max(1, math.ceil(rows * columns / _MOST_PLACES))
    places = tiles.transpose(0, 2, 1, 3).reshape(-1, _SIDE_PX, _SIDE_PX)[::step]
    is_free = (places > grey.min()).mean(axis=(1, 2)) > 0.9  # and not at the camera's limits
    is_free &= (places < grey.max()).mean(axis=(1, 2)) > 0.9
    places = places[is_free]
    if len(places) < _LEAST_PLACES:
        return None
    matrix = _cosines()
    power = np.square(matrix @ places @ matrix.T) / noise.variance_dn2(
        places.mean(axis=(1, 2), keepdims=True)
    )
    v, u = np.mgrid[:_SIDE_PX, :_SIDE_PX]
    order, is_line = u + v, (u == 0) | (v == 0)
    low = power[:, (order >= 1) & (order <= 4)].sum(axis=1)
    kept = max(_LEAST_PLACES, int(_KEPT_RATIO * len(places)))
    quiet = power[np.argsort(low, kind="stable")[:kept]]
    told = (order >= 5) & ~is_line
    seen = np.median(quiet[:, told], axis=0).astype(np.float64) / _CHI2_MEDIAN
    if float(seen.min()) <= 0.0:
        return None
    fx, fy = u[told] / (2.0 * _SIDE_PX), v[told] / (2.0 * _SIDE_PX)
    # 1 / P is linear in the squares; relative errors are alike.
    design = np.stack([np.ones_like(fx), fx**2, fy**2], axis=1)
    base, across, down = np.linalg.lstsq(design * seen[:, None], np.ones(len(seen)), rcond=None)[0]
    if base <= 0.0:
        return None
    across, down = max(float(across / base), 0.0), max(float(down / base), 0.0)
    shape = 1.0 / (1.0 + across * fx**2 + down * fy**2)
    ratio = seen / shape
    misfit = float(np.std(ratio / ratio.mean()))
    chance = 1.25 * math.sqrt(2.0 / len(quiet)) * 1.3  # of a median, as its density has it
    if misfit > math.hypot(chance, _MOST_MISFIT) or 1.0 + 0.25 * (across + down) > _MOST_RATIO:
        return None
    return Colour(across, down, 1.0 / float(shape[order[told] >= 8].mean()))


def noise_for_filters(frame: Frame) -> NoiseModel:
    """Estimate a frame's noise, as strong as it is at the frequencies that samples are seen at.

    What every restorer wants; `in_distribution` and `reason` are those of `estimate_noise`, which
    tells the power at the highest frequencies. Raises BadImage for what is no frame.
    """
    noise = estimate_noise(frame)
    return (noise_colour(frame, noise) or WHITE).for_filters(noise)


def mixed(known: Colour | None, newest: Colour | None, share: float) -> Colour | None:
    """What is known of a stream's colour after one more estimate, of which `share` is taken."""
    if known is None or newest is None:
        return known or newest
    rest = 1.0 - share
    return Colour(
        rest * known.across_px2 + share * newest.across_px2,
        rest * known.down_px2 + share * newest.down_px2,
        rest * known.scale + share * newest.scale,
    )


def _cosines() -> npt.NDArray[np.float32]:
    """Matrix (8, 8) of the orthonormal DCT-II."""
    n = np.arange(_SIDE_PX)
    matrix = np.cos(math.pi * np.outer(n, n + 0.5) / _SIDE_PX) * math.sqrt(2.0 / _SIDE_PX)
    matrix[0] = math.sqrt(1.0 / _SIDE_PX)
    return matrix.astype(np.float32)
