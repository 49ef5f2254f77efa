"""The filters that every network has to beat, and that stand in where one is not to be believed.

- Radial Wiener: one gain per ring of spatial frequency, from the frame's own power and a white
  noise floor. The best of them on lattices, and the fastest.
- Local Wiener: one gain per pixel, from the variance within a small window (Lee 1980).
- Gaussian: its width chosen by Stein's unbiased risk (SURE), which a linear filter has in closed
  form.
- Non-local means, OpenCV's, after Anscombe's transform has made the noise alike everywhere; the
  inverse is the closed form by Makitalo and Foi, IEEE Trans. Image Process. 20 (2011) 2697.

Whole frames are filtered at once, so there are no seams. Frequencies are those of the cosine
transform: it takes the frame as mirrored at its edges, where a Fourier transform would join the
left edge to the right one. Networks come beside these, in files of their own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.restore.api import Frame, Grey, NoiseModel, Restored, grey_of
from inference.restore.colour import noise_for_filters

FloatArray = npt.NDArray[np.float64]

_GAUSSIAN_SIGMAS_PX: Final = tuple(float(s) for s in np.geomspace(0.3, 8.0, 24))
_NLM_SIGMA_LEVELS: Final = 8.0  # 8-bit levels per standard deviation, where the range allows


@dataclass(frozen=True, slots=True, eq=False)
class RingPower:
    """Power of a frame in rings of spatial frequency, mean removed; 1 per mode for unit noise."""

    power: FloatArray  # (rings,), mean squared coefficient
    modes: FloatArray  # (rings,), how many coefficients
    frequency_cyc_px: FloatArray  # (rings,), centre


@dataclass(frozen=True, slots=True)
class RadialWiener:
    """Wiener filter by rings of frequency."""

    name: str = "radial_wiener"

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Filter one frame; see `api.Restorer`."""
        grey = grey_of(frame)
        model = noise or noise_for_filters(frame)
        level = float(cv2.mean(grey)[0])
        spectrum = cosine_transform(grey - np.float32(level))
        variance = float(model.variance_dn2(level))
        gain, kept_ratio = radial_gain(spectrum, variance)
        spectrum *= gain
        image = inverse_cosine_transform(spectrum, grey.shape) + np.float32(level)
        error = math.sqrt(variance * kept_ratio)
        return _restored(image, np.broadcast_to(np.float32(error), grey.shape), self.name, model)


@dataclass(frozen=True, slots=True)
class LocalWiener:
    """Wiener filter by windows of pixels."""

    window_px: int = 5
    name: str = "local_wiener"

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Filter one frame; see `api.Restorer`."""
        grey = grey_of(frame)
        model = noise or noise_for_filters(frame)
        window = (self.window_px, self.window_px)
        level = np.float32(cv2.mean(grey)[0])  # float32 loses small variances on high levels
        flat = grey - level
        mean = cv2.blur(flat, window, borderType=cv2.BORDER_REFLECT)
        spread = cv2.sqrBoxFilter(flat, cv2.CV_32F, window, borderType=cv2.BORDER_REFLECT)
        spread = spread - mean * mean
        variance = model.variance_dn2(mean + level)
        gain = np.maximum(spread - variance, 0.0) / np.maximum(spread, variance)
        image = mean + gain * (flat - mean) + level
        count = np.float32(self.window_px**2)
        sigma = np.sqrt(variance * (gain + (1.0 - gain) / count))
        return _restored(image, sigma, self.name, model)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Gaussian blur."""

    sigma_px: float | None = None  # None: the width of least estimated error
    name: str = "gaussian"

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Filter one frame; see `api.Restorer`."""
        grey = grey_of(frame)
        model = noise or noise_for_filters(frame)
        level = float(cv2.mean(grey)[0])
        rings = ring_power(cosine_transform(grey - np.float32(level)))
        variance = float(model.variance_dn2(level))
        sigma_px = self.sigma_px or _best_sigma_px(rings, variance)
        image = cv2.GaussianBlur(grey, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
        risk = _gaussian_risk(rings, variance, sigma_px)
        error = math.sqrt(max(risk, 1e-6 * variance))
        sigma = np.broadcast_to(np.float32(error), grey.shape)
        return _restored(image.astype(np.float32, copy=False), sigma, self.name, model)


@dataclass(frozen=True, slots=True)
class NonLocalMeans:
    """Non-local means on noise made alike; slow: a megapixel or two a second on a core."""

    patch_px: int = 5
    search_px: int = 15
    strength: float = 1.1  # width of the weights, in standard deviations of the noise
    name: str = "nlm"

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Filter one frame; see `api.Restorer`."""
        grey = grey_of(frame)
        model = noise or noise_for_filters(frame)
        alike = stabilised(grey, model)  # unit noise
        low, high = float(alike.min()), float(alike.max())
        scale = min(255.0 / max(high - low, 1e-6), 4.0 * _NLM_SIGMA_LEVELS)
        levels = np.rint((alike - low) * np.float32(scale)).astype(np.uint8)
        smooth = cv2.fastNlMeansDenoising(
            levels, None, self.strength * scale, self.patch_px, self.search_px
        )
        image = unstabilised(smooth.astype(np.float32) / np.float32(scale) + low, model)
        return _restored(image, None, self.name, model)


def classical_restorers() -> tuple[RadialWiener | LocalWiener | Gaussian | NonLocalMeans, ...]:
    """All of them, with their defaults; the quick ones first."""
    return RadialWiener(), LocalWiener(), Gaussian(), NonLocalMeans()


# --- frequencies -----------------------------------------------------------------------------


def cosine_transform(grey: Grey) -> Grey:
    """Orthonormal DCT-II of a frame; a side of odd length is repeated by one pixel first."""
    height, width = grey.shape
    if height % 2 or width % 2:
        edge = cv2.BORDER_REPLICATE
        grey = cv2.copyMakeBorder(grey, 0, height % 2, 0, width % 2, edge).astype(np.float32)
    return cv2.dct(grey).astype(np.float32, copy=False)


def inverse_cosine_transform(spectrum: Grey, shape: tuple[int, ...]) -> Grey:
    """Back to a frame of (h, w) pixels."""
    grey = cv2.idct(spectrum).astype(np.float32, copy=False)
    return np.ascontiguousarray(grey[: shape[0], : shape[1]])


def ring_power(spectrum: Grey) -> RingPower:
    """Mean power of a cosine transform in rings as wide as one period over the shorter side."""
    index = _ring_index(*spectrum.shape)
    modes = _ring_modes(*spectrum.shape)
    total = np.bincount(index, np.square(spectrum).ravel(), minlength=len(modes))
    centre = (np.arange(len(modes)) + 0.25) / min(spectrum.shape)
    return RingPower(total / np.maximum(modes, 1.0), np.maximum(modes, 1.0), centre)


def radial_gain(spectrum: Grey, variance: float) -> tuple[Grey, float]:
    """Wiener gain of each coefficient of a cosine transform, (h, w), and the mean of all.

    variance: of the noise, white. The mean is the share of the noise that's let through.
    """
    rings = ring_power(spectrum)
    # Three rings together: one alone has few modes at low frequencies.
    power = _smooth(rings.power * rings.modes) / np.maximum(_smooth(rings.modes), 1.0)
    # A lattice's peak is one ring wide and stands out by itself; chance doesn't, by so much.
    peak = rings.power - variance * (1.0 + 4.0 * np.sqrt(2.0 / rings.modes))
    signal = np.maximum(np.minimum(power, rings.power) - variance, np.maximum(peak, 0.0))
    gain = signal / np.maximum(signal + variance, 1e-30)
    gain[0] = 1.0  # holds the mean itself
    mean = float((gain * rings.modes).sum() / rings.modes.sum())
    return gain.astype(np.float32)[_ring_index(*spectrum.shape)].reshape(spectrum.shape), mean


@functools.lru_cache(maxsize=2)  # 8 bytes a pixel
def _ring_index(height: int, width: int) -> npt.NDArray[np.intp]:
    fy = np.arange(height, dtype=np.float32)[:, None] / (2.0 * height)
    fx = np.arange(width, dtype=np.float32)[None, :] / (2.0 * width)
    return np.ascontiguousarray((np.hypot(fy, fx) * min(height, width)).astype(np.intp).ravel())


@functools.lru_cache(maxsize=2)
def _ring_modes(height: int, width: int) -> FloatArray:
    return np.bincount(_ring_index(height, width)).astype(np.float64)


def _smooth(values: FloatArray) -> FloatArray:
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.asarray((padded[:-2] + padded[1:-1] + padded[2:]) / 3.0, dtype=np.float64)


def _gaussian_risk(rings: RingPower, variance: float, sigma_px: float) -> float:
    """Stein's estimate of the mean squared error of a Gaussian blur."""
    gain = np.exp(-2.0 * (math.pi * sigma_px * rings.frequency_cyc_px) ** 2)
    share = rings.modes / rings.modes.sum()
    left = (share * rings.power * (1.0 - gain) ** 2).sum()
    return float(left + 2.0 * variance * (share * gain).sum() - variance)


def _best_sigma_px(rings: RingPower, variance: float) -> float:
    """The width of least estimated error, between the tried ones too.

    Without that the answer would jump with the data, and no probe could estimate its error.
    """
    risks = [_gaussian_risk(rings, variance, sigma_px) for sigma_px in _GAUSSIAN_SIGMAS_PX]
    best = min(max(int(np.argmin(risks)), 1), len(risks) - 2)
    before, at, after = risks[best - 1 : best + 2]
    bend = before - 2.0 * at + after
    shift = 0.5 * (before - after) / bend if bend > 0.0 else 0.0
    step = math.log(_GAUSSIAN_SIGMAS_PX[1] / _GAUSSIAN_SIGMAS_PX[0])
    return float(_GAUSSIAN_SIGMAS_PX[best] * math.exp(min(max(shift, -1.0), 1.0) * step))


# --- noise made alike ------------------------------------------------------------------------


def stabilised(grey: Grey, noise: NoiseModel) -> Grey:
    """Generalised Anscombe transform: unit noise everywhere."""
    if noise.gain_dn <= 0.0:
        return grey / np.float32(max(noise.read_noise_dn, 1e-6))
    electrons = (grey - np.float32(noise.offset_dn)) / np.float32(noise.gain_dn)
    read = (noise.read_noise_dn / noise.gain_dn) ** 2
    root = np.sqrt(np.maximum(electrons + np.float32(0.375 + read), 0.0))
    return np.asarray(2.0 * root, dtype=np.float32)


def unstabilised(alike: Grey, noise: NoiseModel) -> Grey:
    """The closed form of the exact unbiased inverse of `stabilised`."""
    if noise.gain_dn <= 0.0:
        return np.asarray(alike * np.float32(max(noise.read_noise_dn, 1e-6)), dtype=np.float32)
    read = (noise.read_noise_dn / noise.gain_dn) ** 2
    d = np.maximum(alike.astype(np.float32, copy=False), np.float32(1.0))
    root = math.sqrt(1.5)
    electrons = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - (0.125 + read)
    # Below 2 sqrt(3/8) there were no electrons at all; read noise may still lie below zero.
    electrons = np.maximum(electrons, 0.0) if read == 0.0 else electrons
    return np.asarray(electrons * noise.gain_dn + noise.offset_dn, dtype=np.float32)


def _restored(image: Grey, sigma: Grey | None, method: str, noise: NoiseModel) -> Restored:
    return Restored(image, sigma, noise.in_distribution, method, noise.reason)
