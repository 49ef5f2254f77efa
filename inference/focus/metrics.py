"""The classical measures of sharpness, each at its best: what few-frame focus is compared with.

Every measure is one number that should be largest in focus. What makes or breaks them on an
instrument is not the formula but what is taken off first and what they are divided by, so that is
done alike for all of them here:

- the noise's own share. White noise adds a known multiple of its variance to every quadratic
  measure; a beam or a lamp that flickers moves that share too, often by more than the signal.
  The variance is read from the image itself.
- the gain. Powers of the image are divided by the squared mean, or, where the detector's offset
  wanders as well, by the contrast of the image's coarse blocks, which gain and offset scale alike.
- optional smoothing, because a derivative of an unsmoothed noisy frame is mostly noise.

Sources: Brenner et al., J. Histochem. Cytochem. 24, 100 (1976); Tenenbaum, thesis, Stanford 1970;
Vollath, J. Microsc. 147, 279 (1987); Nayar and Nakagawa, IEEE PAMI 16, 824 (1994), modified
Laplacian; Groen, Young, Ligthart, Cytometry 6, 81 (1985), the survey; band power of 2.5 to 14 % of
the highest frequency is the default band of Micro-Manager's OughtaFocus; the length of the JPEG
file is OpenFlexure's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage

Grey: TypeAlias = npt.NDArray[np.float32]  # (h, w)
Image: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]

Chosen: TypeAlias = npt.NDArray[np.bool_]

_LEAST_SIDE_PX = 32
_BLOCK_PX = 32  # of the coarse contrast: wider than the blur that is to be told from focus
_JPEG_MEAN = 80.0  # grey level that a frame is brought to, which leaves room for its highlights
_JPEG_QUALITY = 75
_BAND = (0.025, 0.14)  # of the highest frequency
_FLOOR_CYC_PX = (0.46, 0.50)


class Normaliser(Enum):
    """What a power of the image is divided by."""

    NOTHING = "nothing"
    MEAN = "mean"  # squared: proof against gain
    CONTRAST = "contrast"  # mean square of the coarse blocks about their mean: and against offset


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done around the formula."""

    smooth_px: float = 0.0  # sigma of a Gaussian; 0: none
    takes_off_noise: bool = True
    normaliser: Normaliser = Normaliser.MEAN


@dataclass(frozen=True, slots=True)
class Metric:
    """One measure with its preparation; call it with a frame, larger is sharper."""

    name: str
    preparation: Preparation = Preparation()

    def __call__(self, pixels: Image) -> float:
        """Measure a frame, (h, w) or (h, w, 3). Raises BadImage for what is no image."""
        grey = _grey(pixels)
        formula = _FORMULAS.get(self.name)
        if formula is None:
            message = f"no measure is called {self.name!r}; there are {', '.join(NAMES)}"
            raise ValueError(message)
        level = self._level(grey)
        if level <= 0.0:
            return 0.0
        variance = noise_variance(grey) if self.preparation.takes_off_noise else 0.0
        if self.preparation.smooth_px > 0.0 and not formula.smooths_itself:
            grey = cv2.GaussianBlur(grey, (0, 0), self.preparation.smooth_px).astype(np.float32)
        value = formula.measure(grey)
        share = formula.noise_gain(self.preparation.smooth_px) * variance
        if formula.is_quadratic:
            return float((value - share) / level)
        return float((value - math.sqrt(share)) / math.sqrt(level))

    @property
    def label(self) -> str:
        """The measure and its preparation, for tables."""
        smooth = (
            f", smoothed {self.preparation.smooth_px:g} px" if self.preparation.smooth_px else ""
        )
        return f"{self.name}/{self.preparation.normaliser.value}{smooth}"

    def _level(self, grey: Grey) -> float:
        match self.preparation.normaliser:
            case Normaliser.NOTHING:
                return 1.0
            case Normaliser.MEAN:
                return float(cv2.mean(grey)[0]) ** 2
            case Normaliser.CONTRAST:
                return _coarse_contrast(grey)


@dataclass(frozen=True, slots=True)
class _Formula:
    measure: Callable[[Grey], float]
    noise: Callable[[Grey], float] | None  # see `_noise_gain`; None: noise adds nothing known
    is_quadratic: bool = True  # in grey levels: else linear, and the noise's share is squared
    smooths_itself: bool = False

    def noise_gain(self, smooth_px: float) -> float:
        """What white noise of unit variance adds, after a Gaussian of `smooth_px`."""
        if self.noise is None:
            return 0.0
        return _noise_gain(self.noise, 0.0 if self.smooths_itself else smooth_px)


@functools.lru_cache(maxsize=128)
def _noise_gain(noise: Callable[[Grey], float], smooth_px: float) -> float:
    """Expected measure of white noise that was smoothed: the measure of one smoothed point."""
    side = 2 * (math.ceil(4.0 * smooth_px) + 16) + 1
    point = np.zeros((side, side), np.float32)
    point[side // 2, side // 2] = 1.0
    if smooth_px > 0.0:
        point = cv2.GaussianBlur(point, (0, 0), smooth_px).astype(np.float32)
    return noise(point)


def _through(point: Grey, kernels: tuple[Grey, ...]) -> float:
    return sum(float(np.sum(np.square(cv2.filter2D(point, cv2.CV_32F, k)))) for k in kernels)


def noise_variance(grey: Grey) -> float:
    """Variance of white noise, blind to steps and ramps (Immerkaer, CVIU 64, 300, 1996; by median).

    The mask [[1, -2, 1], [-2, 4, -2], [1, -2, 1]] has a squared norm of 36; the median of a squared
    Gaussian is 0.4549 of its variance.
    """
    side = np.array([1.0, -2.0, 1.0])
    second = cv2.sepFilter2D(grey, cv2.CV_32F, side, side)[2:-2:2, 2:-2:2]
    return float(np.median(np.square(second))) / (0.4549 * 36.0)


def _grey(pixels: Image) -> Grey:
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not is_image or pixels.dtype not in (np.uint8, np.uint16, np.float32):
        message = (
            f"needs (h, w) or (h, w, 3) uint8, uint16 or float32, got {pixels.shape} {pixels.dtype}"
        )
        raise BadImage(message)
    if min(pixels.shape[:2]) < _LEAST_SIDE_PX:
        message = f"needs at least {_LEAST_SIDE_PX} px a side, got {pixels.shape[:2]}"
        raise BadImage(message)
    if pixels.ndim == 3:
        # Not cv2.cvtColor: it rounds integers.
        return np.asarray(
            pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32), np.float32
        )
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _coarse_contrast(grey: Grey) -> float:
    h_px, w_px = grey.shape
    block_px = min(_BLOCK_PX, min(h_px, w_px) // 4)
    size = (max(2, w_px // block_px), max(2, h_px // block_px))
    blocks = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return float(np.var(blocks))


def _mean_square(values: npt.NDArray[np.float32]) -> float:
    return float(np.mean(np.square(values)))


def _filtered(grey: Grey, kernel: Grey) -> Grey:
    reach = max(kernel.shape) // 2  # the rim holds invented pixels
    result = cv2.filter2D(grey, cv2.CV_32F, kernel)[reach:-reach, reach:-reach]
    return np.asarray(result, np.float32)


def _row(*values: float) -> Grey:
    return np.array([values], np.float32)


def _brenner_noise(point: Grey) -> float:
    return _through(point, (_row(-1.0, 0.0, 1.0), _row(-1.0, 0.0, 1.0).T))


def _brenner(grey: Grey) -> float:
    """Differences over two pixels, along both axes."""
    return _mean_square(grey[:, 2:] - grey[:, :-2]) + _mean_square(grey[2:] - grey[:-2])


def _step_noise(point: Grey) -> float:
    return _through(point, (_row(-1.0, 1.0, 0.0), _row(-1.0, 1.0, 0.0).T))


def _squared_gradient(grey: Grey) -> float:
    return _mean_square(grey[:, 1:] - grey[:, :-1]) + _mean_square(grey[1:] - grey[:-1])


_SOBEL: Final = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)


_SOBELS: Final = (_SOBEL, np.ascontiguousarray(_SOBEL.T))


def _sobel_noise(point: Grey) -> float:
    return _through(point, _SOBELS)


def _tenengrad(grey: Grey) -> float:
    return sum(_mean_square(_filtered(grey, kernel)) for kernel in _SOBELS)


_LAPLACE: Final = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)


def _laplacian_noise(point: Grey) -> float:
    return _through(point, (_LAPLACE,))


def _laplacian(grey: Grey) -> float:
    return _mean_square(_filtered(grey, _LAPLACE))


def _modified_laplacian(grey: Grey) -> float:
    """Absolute second differences along the two axes, so that they cannot cancel; linear."""
    along_x = np.abs(2.0 * grey[:, 1:-1] - grey[:, :-2] - grey[:, 2:])
    along_y = np.abs(2.0 * grey[1:-1] - grey[:-2] - grey[2:])
    return float(np.mean(along_x)) + float(np.mean(along_y))


def _modified_noise(point: Grey) -> float:
    """Of a Gaussian, E|x| is sqrt(2 / pi) of its spread; two such, squared."""
    kernel = _row(-1.0, 2.0, -1.0)
    return 8.0 / math.pi * _through(point, (kernel,))


def _variance_noise(point: Grey) -> float:
    return float(np.sum(np.square(point)))


def _variance(grey: Grey) -> float:
    return float(np.var(grey, dtype=np.float64))


def _vollath4(grey: Grey) -> float:
    """Autocorrelation at one pixel less that at two, along both axes."""
    centred = grey - np.float32(cv2.mean(grey)[0])
    return _correlation(centred, 1) - _correlation(centred, 2)


def _vollath4_noise(point: Grey) -> float:
    return (_correlation(point, 1) - _correlation(point, 2)) * point.size


def _vollath5(grey: Grey) -> float:
    """Autocorrelation at one pixel, of the image about its mean."""
    return _correlation(grey - np.float32(cv2.mean(grey)[0]), 1)


def _vollath5_noise(point: Grey) -> float:
    return _correlation(point, 1) * point.size


def _correlation(grey: Grey, lag_px: int) -> float:
    """Mean product of pixels `lag_px` apart, over the image's size, both axes together."""
    along_x = float(np.sum(grey[:, :-lag_px] * grey[:, lag_px:]))
    return (along_x + float(np.sum(grey[:-lag_px] * grey[lag_px:]))) / grey.size


@functools.lru_cache(maxsize=8)
def _band_layout(shape: tuple[int, int]) -> tuple[Grey, Chosen, Chosen]:
    """Window, and what belongs to the band and to the floor, on the frequencies of cv2.dft."""
    window = np.outer(np.hanning(shape[0] + 2)[1:-1], np.hanning(shape[1] + 2)[1:-1])
    down = np.fft.fftfreq(shape[0])[:, None]
    right = np.abs(np.fft.fftfreq(shape[1]))[None, :]
    radius = np.hypot(down, right)
    band = (radius >= 0.5 * _BAND[0]) & (radius < 0.5 * _BAND[1])
    floor = (radius >= _FLOOR_CYC_PX[0]) & (radius < _FLOOR_CYC_PX[1])
    window /= math.sqrt(float(np.sum(window**2)))
    return window.astype(np.float32), band, floor


def _band_power(grey: Grey) -> float:
    """Mean power of the band less that of the highest frequencies, which is noise."""
    window, band, floor = _band_layout((grey.shape[0], grey.shape[1]))
    centred = (grey - np.float32(cv2.mean(grey)[0])) * window
    spectrum = cv2.dft(centred, flags=cv2.DFT_COMPLEX_OUTPUT)
    power = np.square(spectrum[:, :, 0]) + np.square(spectrum[:, :, 1])
    return float(np.mean(power[band])) - float(np.mean(power[floor]))


def _jpeg_size(grey: Grey) -> float:
    """Bytes a pixel of the frame as a JPEG file, brought to one mean brightness first."""
    mean = float(cv2.mean(grey)[0])
    if mean <= 0.0:
        return 0.0
    levelled = np.clip(grey * np.float32(_JPEG_MEAN / mean), 0.0, 255.0).astype(np.uint8)
    done, data = cv2.imencode(".jpg", levelled, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise BadImage(f"no JPEG could be made of {grey.shape} {grey.dtype}")
    # A number of its own, not in grey levels: the caller divides by the mean.
    return data.size / grey.size * mean


@functools.cache
def _gauss_pair() -> tuple[Grey, Grey]:
    """A Gaussian of 2 px and its slope, (n,) each; a ramp of 1 a pixel has the slope 1."""
    offsets = np.arange(-6, 7, dtype=np.float64)
    smooth = np.exp(-0.5 * np.square(offsets / 2.0))
    smooth /= smooth.sum()
    slope = offsets * smooth
    slope /= np.sum(offsets * slope)
    return smooth.astype(np.float32), slope.astype(np.float32)


def _gauss_noise(point: Grey) -> float:
    smooth, slope = _gauss_pair()
    return _through(point, (np.outer(smooth, slope), np.outer(slope, smooth)))


def _gradient_energy(grey: Grey) -> float:
    """Of a gradient taken with a Gaussian of 2 px."""
    smooth, slope = _gauss_pair()
    reach = smooth.size // 2
    inner = np.s_[reach:-reach, reach:-reach]
    along_x = np.asarray(cv2.sepFilter2D(grey, cv2.CV_32F, slope, smooth)[inner], np.float32)
    along_y = np.asarray(cv2.sepFilter2D(grey, cv2.CV_32F, smooth, slope)[inner], np.float32)
    return _mean_square(along_x) + _mean_square(along_y)


_FORMULAS: Final[Mapping[str, _Formula]] = MappingProxyType(
    {
        "brenner": _Formula(_brenner, _brenner_noise),
        "tenengrad": _Formula(_tenengrad, _sobel_noise),
        "squared-gradient": _Formula(_squared_gradient, _step_noise),
        "laplacian": _Formula(_laplacian, _laplacian_noise),
        "modified-laplacian": _Formula(_modified_laplacian, _modified_noise, is_quadratic=False),
        "normalised-variance": _Formula(_variance, _variance_noise),
        "vollath-f4": _Formula(_vollath4, _vollath4_noise),
        "vollath-f5": _Formula(_vollath5, _vollath5_noise),
        "band-power": _Formula(_band_power, None, smooths_itself=True),
        "jpeg-size": _Formula(_jpeg_size, None, is_quadratic=False),
        "gradient-energy": _Formula(_gradient_energy, _gauss_noise, smooths_itself=True),
    }
)
NAMES: Final = tuple(_FORMULAS)
METRICS: Final[Mapping[str, Metric]] = MappingProxyType({name: Metric(name) for name in NAMES})
"""Every measure with the common preparation: noise taken off, over the squared mean."""
