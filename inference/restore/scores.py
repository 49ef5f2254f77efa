"""How near a restored frame is to the truth: PSNR, SSIM and SNR, the data's range always said.

Both PSNR and SSIM depend on a range that programs guess differently, so it has no default here.
SSIM is Wang et al., IEEE Trans. Image Process. 13 (2004) 600, in the variant that papers mean:
Gaussian weights of 1.5 px cut at 3.5 standard deviations (11 x 11), K1 = 0.01, K2 = 0.03, variances
of the population, and the mean over pixels whose window lies inside the frame; as scikit-image
computes it with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
"""

from __future__ import annotations

import math
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage

_WINDOW_PX: Final = 11
_SIGMA_PX: Final = 1.5
_K1: Final = 0.01
_K2: Final = 0.03

Numbers = npt.NDArray[Any]


def psnr_db(image: Numbers, truth: Numbers, data_range: float) -> float:
    """Peak signal-to-noise ratio; inf for equal frames. Raises BadImage for unequal shapes."""
    a, b = _pair(image, truth, data_range)
    mse = float(np.mean((a - b) ** 2))
    return 10.0 * math.log10(data_range**2 / mse) if mse > 0.0 else math.inf


def snr_db(image: Numbers, truth: Numbers) -> float:
    """Variance of the truth over the mean squared error; inf for equal frames."""
    a, b = _pair(image, truth, 1.0)
    mse = float(np.mean((a - b) ** 2))
    variance = float(np.var(b))
    if mse <= 0.0:
        return math.inf
    return 10.0 * math.log10(variance / mse) if variance > 0.0 else -math.inf


def ssim(image: Numbers, truth: Numbers, data_range: float) -> float:
    """Structural similarity, -1..1; frames of at least 11 px a side."""
    a, b = _pair(image, truth, data_range)
    if min(a.shape) < _WINDOW_PX:
        raise BadImage(f"needs {_WINDOW_PX} px a side at least, got {a.shape}")
    mean_a, mean_b = _weighted(a), _weighted(b)
    variance_a = _weighted(a * a) - mean_a**2
    variance_b = _weighted(b * b) - mean_b**2
    covariance = _weighted(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    likeness = (2.0 * mean_a * mean_b + c1) * (2.0 * covariance + c2)
    likeness /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    edge = _WINDOW_PX // 2
    return float(np.mean(likeness[edge:-edge, edge:-edge]))


def _weighted(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    window = (_WINDOW_PX, _WINDOW_PX)
    blurred = cv2.GaussianBlur(values, window, _SIGMA_PX, borderType=cv2.BORDER_REFLECT)
    return np.asarray(blurred, dtype=np.float64)


def _pair(
    image: Numbers, truth: Numbers, data_range: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if image.shape != truth.shape or image.ndim != 2:
        raise BadImage(f"needs two (h, w) of one size, got {image.shape} and {truth.shape}")
    if not (data_range > 0.0 and math.isfinite(data_range)):
        raise BadImage(f"needs a range above zero, got {data_range}")
    return image.astype(np.float64), truth.astype(np.float64)
