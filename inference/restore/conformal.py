"""Intervals that cover: the sigma said, widened by what errors came to where truth is known.

Split conformal prediction (V. Vovk et al., Algorithmic Learning in a Random World, 2005; J. Lei et
al., J. Am. Stat. Assoc. 113, 1094, 2018): on frames that were not trained on, the error of each
pixel is divided by the sigma said, and the quantile of that is the factor which the next pixel's
interval needs. One factor for all pixels would cover the easy ones too often and the hard ones too
seldom, so there is one a class of sigma over the noise's sigma (Mondrian conformal prediction).

Pixels of one frame are not independent, so the coverage holds on average over frames like those
which the factors were fitted on, and `twin_coverage` asks a real frame whether it is like them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from inference.restore.api import Frame, Grey, NoiseModel, Restorer
from inference.restore.guard import thinned

FloatArray = npt.NDArray[np.float64]

_LEAST_PIXELS: Final = 400  # in a class
_STREAM: Final = 20_078
_CLASSES: Final = 8


@dataclass(frozen=True, slots=True)
class Factors:
    """What sigma is multiplied with, by class of sigma over the noise's sigma."""

    edges: tuple[float, ...]  # between the classes, rising
    factors: tuple[float, ...]  # one more than edges
    coverage: float

    def half_width(self, sigma: Grey, noise_sigma: npt.ArrayLike) -> Grey:
        """Half of the interval of each pixel, (h, w), in the units of sigma."""
        ratio = sigma / np.maximum(np.asarray(noise_sigma, dtype=np.float32), 1e-12)
        chosen = np.searchsorted(np.array(self.edges), ratio)
        return np.asarray(sigma * np.array(self.factors)[chosen], dtype=np.float32)


def fitted(
    errors: npt.ArrayLike,
    sigmas: npt.ArrayLike,
    noise_sigmas: npt.ArrayLike,
    *,
    coverage: float = 0.9,
    classes: int = _CLASSES,
) -> Factors:
    """Factors from pixels whose truth is known.

    errors: restored less true. All of one shape, or noise_sigmas a scalar. Raises ValueError where
    there are too few pixels for one class.
    """
    sigma = np.maximum(np.asarray(sigmas, dtype=np.float64), 1e-12)
    noise = np.broadcast_to(np.asarray(noise_sigmas, dtype=np.float64), sigma.shape)
    score = (np.abs(np.asarray(errors, dtype=np.float64)) / sigma).ravel()
    ratio = (sigma / np.maximum(noise, 1e-12)).ravel()
    if score.size < _LEAST_PIXELS:
        raise ValueError(f"needs {_LEAST_PIXELS} pixels at least, got {score.size}")
    classes = max(1, min(classes, score.size // _LEAST_PIXELS))
    shares = np.arange(1, classes) / classes
    edges = np.unique(np.quantile(ratio, shares))
    chosen = np.searchsorted(edges, ratio)
    overall = _quantile(score, coverage)
    factors = [
        _quantile(mine, coverage) if len(mine := score[chosen == i]) >= _LEAST_PIXELS else overall
        for i in range(len(edges) + 1)
    ]
    return Factors(tuple(edges.tolist()), tuple(factors), coverage)


def _quantile(score: FloatArray, coverage: float) -> float:
    """With the correction for a finite sample."""
    rank = min(math.ceil((len(score) + 1) * coverage), len(score))
    return float(np.partition(score, rank - 1)[rank - 1])


def covered_ratio(errors: npt.ArrayLike, half_width: npt.ArrayLike) -> float:
    """Share of pixels whose error lies within the interval."""
    return float(np.mean(np.abs(np.asarray(errors)) <= np.asarray(half_width)))


def twin_coverage(
    frames: Sequence[Frame],
    restorer: Restorer,
    noises: Sequence[NoiseModel],
    factors: Factors,
    seed: int = 0,
) -> float | None:
    """Coverage on real frames: one half of the counts is restored, the other stands for the truth.

    The judging half is noisy, far more than the interval is wide, so pixels cannot be counted one
    by one. Its noise's variance is known, though: what the squared differences hold beyond it is
    the squared error. In each class that gives the spread of errors over the interval's, and the
    coverage of a normal error of that spread. None where nothing is known: no sigma is said.
    """
    share, pixels = 0.0, 0
    for i, (frame, noise) in enumerate(zip(frames, noises, strict=True)):
        first, second, halves = thinned(frame, noise, np.random.default_rng((_STREAM, seed, i)))
        answer = restorer.restore(first, halves)
        if answer.sigma is None:
            return None
        variance = halves.variance_dn2(answer.image)
        half = factors.half_width(answer.sigma, np.sqrt(variance))
        excess = np.square(second - answer.image, dtype=np.float64) - variance
        chosen = np.searchsorted(np.quantile(half, np.arange(1, _CLASSES) / _CLASSES), half.ravel())
        for each in range(_CLASSES):
            mine = chosen == each
            count = int(np.count_nonzero(mine))
            if count < _LEAST_PIXELS:
                continue
            error2 = max(float(excess.ravel()[mine].mean()), 0.0)
            width = float(np.sqrt(np.mean(np.square(half.ravel()[mine], dtype=np.float64))))
            inside = 1.0 if error2 == 0.0 else math.erf(width / math.sqrt(2.0 * error2))
            share += count * inside
            pixels += count
    return share / pixels if pixels else None
