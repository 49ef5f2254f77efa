"""What noise one frame carries, told from the frame alone.

The frame is cut into blocks of 8 x 8 and transformed (DCT). In each class of brightness the blocks
with the least power at low frequencies are kept: nothing but noise is there if anywhere. Their
power at high frequencies is the noise's variance; that the choice looks at other coefficients than
the measurement keeps it from choosing lucky noise. Variance against brightness is then a straight
line: Poisson's gain is its slope. The idea of choosing by low frequencies: Ponomarenko et al.
2007, "An automatic approach to lossy compression of AVIRIS images"; the line: Foi et al., IEEE
Trans. Image Process. 17 (2008) 1737.

Row and column coefficients are left out, since scan lines differ in brightness. What it can't
know: fine texture without a smooth place in it looks like noise. Noise that is correlated between
pixels (frames that were filtered, interpolated or compressed) has more power at middle frequencies
than at the highest even in the quietest blocks, and the answer is then flagged.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
import numpy.typing as npt

from inference.restore.api import Frame, Grey, NoiseModel, grey_of

FloatArray = npt.NDArray[np.float64]

_SIDE_PX: Final = 8
_MOST_BLOCKS: Final = 16_384  # more are thinned out evenly: 1 MP says enough
_BLOCKS_PER_CLASS: Final = 160
_MOST_CLASSES: Final = 16
_KEPT_RATIO: Final = 0.2  # of a class, the smoothest
_LEAST_KEPT: Final = 24
_WHITE_RATIO: Final = 1.25  # power at middle over that at high frequencies; 1 when white
_CLIPPED_RATIO: Final = 0.8  # of a block's pixels at a limit: such a block says nothing


def estimate_noise(frame: Frame) -> NoiseModel:
    """Estimate the Poisson-Gaussian noise of one frame.

    Raises BadImage for what is no frame. A frame without noise gets a variance near zero.
    """
    grey = grey_of(frame)
    coefficients, is_clipped = _blocks(grey)
    typical = float(np.mean(grey))
    if np.count_nonzero(~is_clipped) < _LEAST_KEPT:
        return NoiseModel(
            0.0,
            0.0,
            float(np.sqrt(np.mean(coefficients[:, _high()] ** 2))),
            math.inf,
            typical,
            1.0,
            in_distribution=False,
            reason="too small a frame"
            if len(coefficients) < _LEAST_KEPT
            else "nearly all blocks lie at the limits of the camera's range",
        )
    coefficients = coefficients[~is_clipped]
    levels, variances, errors, white_ratio = _classes(coefficients)
    white = white_ratio <= _WHITE_RATIO
    reason = (
        ""
        if white
        else f"noise is not white: {white_ratio:.2f} times the power at middle frequencies as at "
        "the highest, in the smoothest places too"
    )
    slope, constant, slope_sigma, ratio = _line(levels, variances, errors, typical)
    # Level by level nothing but a constant is seen where the slope is lost in its error.
    if slope <= 2.0 * slope_sigma:
        weight = 1.0 / errors**2
        constant = float((weight * variances).sum() / weight.sum())
        spread = max(1.0, float((weight * (variances - constant) ** 2).mean()))
        ratio = math.sqrt(spread / weight.sum()) / max(constant, 1e-30)
        slope = 0.0
        if not reason and not math.isfinite(slope_sigma):
            reason = "one level only: gain cannot be told from read noise"
    offset = max(0.0, -constant / slope) if slope > 0.0 else 0.0
    return NoiseModel(
        gain_dn=slope,
        offset_dn=offset,
        read_noise_dn=math.sqrt(max(constant, 0.0)),
        gain_sigma_dn=slope_sigma,
        level_dn=typical,
        variance_sigma_ratio=ratio,
        in_distribution=white,
        reason=reason,
    )


def _blocks(grey: Grey) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """DCT of blocks, (n, 64), orthonormal, and which of them are clipped."""
    rows, columns = grey.shape[0] // _SIDE_PX, grey.shape[1] // _SIDE_PX
    low, high = float(grey.min()), float(grey.max())
    tiles = grey[: rows * _SIDE_PX, : columns * _SIDE_PX]
    tiles = tiles.reshape(rows, _SIDE_PX, columns, _SIDE_PX).transpose(0, 2, 1, 3)
    step = max(1, math.ceil(rows * columns / _MOST_BLOCKS))
    flat = tiles.reshape(-1, _SIDE_PX * _SIDE_PX)[::step]  # (n, 64)
    at_limit = (flat == low) | (flat == high)
    return flat @ _transform(), at_limit.mean(axis=1) > _CLIPPED_RATIO


@functools.cache
def _transform() -> npt.NDArray[np.float32]:
    """Matrix (64 pixels, 64 coefficients) of the orthonormal two-dimensional DCT-II."""
    n = np.arange(_SIDE_PX)
    one = np.cos(math.pi * np.outer(n + 0.5, n) / _SIDE_PX) * math.sqrt(2.0 / _SIDE_PX)
    one[:, 0] = math.sqrt(1.0 / _SIDE_PX)
    return np.kron(one, one).astype(np.float32)


@functools.cache
def _orders() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Order u + v of each coefficient, (64,), and whether it belongs to a row or a column."""
    u, v = np.divmod(np.arange(_SIDE_PX * _SIDE_PX), _SIDE_PX)
    return u + v, (u == 0) | (v == 0)


@functools.cache
def _high() -> npt.NDArray[np.bool_]:
    order, _ = _orders()
    return np.asarray(order >= 8, dtype=np.bool_)


def _classes(
    coefficients: npt.NDArray[np.float32],
) -> tuple[FloatArray, FloatArray, FloatArray, float]:
    """Level, variance and its error of each class of brightness; and how red the noise is."""
    order, is_line = _orders()
    power = np.square(coefficients)
    mean = coefficients[:, 0] / _SIDE_PX
    low = power[:, (order >= 1) & (order <= 4)].sum(axis=1)
    high = power[:, _high()].mean(axis=1)
    middle = power[:, (order >= 5) & (order <= 7) & ~is_line].mean(axis=1)
    middle_n = int(np.count_nonzero((order >= 5) & (order <= 7) & ~is_line))
    high_n = int(np.count_nonzero(_high()))
    classes = int(np.clip(len(mean) // _BLOCKS_PER_CLASS, 1, _MOST_CLASSES))
    levels, variances, errors = [], [], []
    reds = []
    for members in np.array_split(np.argsort(mean, kind="stable"), classes):
        kept = max(_LEAST_KEPT, int(_KEPT_RATIO * len(members)))
        members = members[np.argsort(low[members], kind="stable")[:kept]]
        variance = float(np.median(high[members])) / _quantile(high_n, 0.0)
        levels.append(float(np.mean(mean[members])))
        variances.append(variance)
        # A median costs pi/2 in variance; the scatter seen may exceed that of noise alone.
        counted = variance * math.sqrt(2.0 / high_n)
        low_q, high_q = np.percentile(high[members], [16, 84])
        scatter = max(counted, 0.5 * float(high_q - low_q))
        errors.append(max(1.25 * scatter / math.sqrt(len(members)), 1e-12))
        # Texture differs from block to block, noise does not: the quietest blocks tell them apart.
        quiet = float(np.percentile(middle[members], 15.9)) / _quantile(middle_n, -1.0)
        reds.append(quiet / max(variance, 1e-12))
    red = float(np.percentile(reds, 25))
    return np.array(levels), np.array(variances), np.array(errors), red


def _quantile(n: int, deviates: float) -> float:
    """Quantile of chi^2 / n, so many standard normal deviates from the median.

    Wilson and Hilferty's approximation.
    """
    return float((1.0 - 2.0 / (9.0 * n) + deviates * math.sqrt(2.0 / (9.0 * n))) ** 3)


def _line(
    levels: FloatArray, variances: FloatArray, errors: FloatArray, typical: float
) -> tuple[float, float, float, float]:
    """Fit variance = slope * level + constant.

    Returns slope, constant, the slope's standard deviation (inf with one level) and the relative
    one of the variance at the typical level. Texture can only add: classes above the line lose
    weight.
    """
    spread = float(np.ptp(levels))
    if len(levels) < 3 or spread <= 1e-3 * abs(typical):
        return 0.0, float(np.mean(variances)), math.inf, float(np.mean(errors / variances))
    weight = 1.0 / errors**2
    slope = constant = 0.0
    covariance: FloatArray = np.eye(2)
    centred = levels - typical
    design = np.stack([centred, np.ones_like(centred)], axis=1)
    for _ in range(8):
        covariance = np.asarray(np.linalg.pinv(design.T @ (design * weight[:, None])))
        slope, constant = (covariance @ (design.T @ (variances * weight))).tolist()
        pull = (variances - design @ (slope, constant)) / errors
        weight = np.minimum(1.0, 1.5 / np.maximum(pull, 1e-9)) ** 2 / errors**2
        weight = np.where(pull <= 0.0, 1.0 / errors**2, weight)
    misfit = float((weight * (variances - design @ (slope, constant)) ** 2).sum())
    covariance = covariance * max(1.0, misfit / (len(levels) - 2))
    at_typical = max(constant, float(variances.min()), 1e-30)
    ratio = math.sqrt(float(covariance[1, 1])) / at_typical
    return slope, constant - slope * typical, math.sqrt(float(covariance[0, 0])), ratio
