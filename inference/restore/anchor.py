"""The linear estimate that a network starts from, and everything the network is shown.

Wiener's filter in two steps. The first is radial: one gain per ring of frequency. Its result,
coefficient by coefficient and smoothed over a few neighbours, is the power that the second step
takes its gains from; so a lattice's peaks keep their places, which a ring cannot say (the idea of
a pilot's power: S. P. Ghael, A. M. Sayeed, R. G. Baraniuk, Proc. SPIE 3169, 389, 1997). On
simulated graphene that is 0.4 dB (1e5 e/A^2) to 2 dB (300) above the radial filter, and within
0.1 dB of it on pictures of surfaces. Both steps are the cosine transform's, so there are no seams,
and nothing is joined round the edges.

Everything that a network is shown is counted in the frame's own noise, or in the error of that
estimate: gain and offset of the camera cancel. This file is all that training and running share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.restore.api import Grey, NoiseModel
from inference.restore.classical import (
    cosine_transform,
    inverse_cosine_transform,
    radial_gain,
)

PHASES: Final = 2  # a place of the network is so many pixels wide and high
SHOWN: Final = 3  # what it is shown of every pixel
CHANNELS: Final = SHOWN * PHASES**2
MULTIPLE_PX: Final = 16  # both sides of what goes in; a network's coarsest places are 8 px

_POWER_PX: Final = 3  # coefficients that the pilot's power is averaged over, either way
_LEAST_KEPT: Final = 4e-4  # share of the noise's power that counts as let through, at least
_LEVEL_PX: Final = 33  # window of the local level
_SOFT: Final = 40.0  # contrasts beyond so many errors are compressed
_LEAST_VARIANCE: Final = 0.02  # over the frame's mean one; less would outweigh all


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """A linear estimate of a frame."""

    image: Grey  # (h, w), the frame's digital numbers
    sigma: Grey  # (h, w), standard deviation of the frame's noise
    unit: Grey  # (h, w), error of the image as estimated: what corrections are counted in
    error_ratio: float  # that error over the noise


def anchored(grey: Grey, noise: NoiseModel | Grey) -> Anchor:
    """Filter a frame in two steps; noise: its model, or its standard deviation at each pixel."""
    level = np.float32(cv2.mean(grey)[0])
    if isinstance(noise, NoiseModel):
        variance = float(noise.variance_dn2(level))
    else:
        variance = max(float(cv2.mean(np.square(noise))[0]), 1e-12)
    spectrum = cosine_transform(grey - level)
    gain, _ = radial_gain(spectrum, variance)
    gain *= spectrum
    power = cv2.blur(np.square(gain), (_POWER_PX, _POWER_PX), borderType=cv2.BORDER_REFLECT)
    gain = power / (power + np.float32(variance))
    gain[0, 0] = 1.0
    ratio = math.sqrt(max(float(cv2.mean(gain)[0]), _LEAST_KEPT))
    spectrum *= gain
    image = inverse_cosine_transform(spectrum, grey.shape)
    image += level
    local = noise.variance_dn2(image) if isinstance(noise, NoiseModel) else np.square(noise)
    sigma = np.sqrt(np.maximum(local, np.float32(_LEAST_VARIANCE * variance)))
    return Anchor(image, sigma, sigma * np.float32(ratio), ratio)


def shown(grey: Grey, anchor: Anchor) -> npt.NDArray[np.float32]:
    """What the network sees, (CHANNELS, h / 2, w / 2); sides must be even. See the module.

    Each pixel's contrast against its surroundings, what the linear estimate took away, and how much
    noise is let through by it here; four pixels to a place.
    """
    noise = math.sqrt(max(float(cv2.mean(np.square(anchor.sigma))[0]), 1e-12))
    window = (_LEVEL_PX, _LEVEL_PX)
    contrast = anchor.image - cv2.blur(anchor.image, window, borderType=cv2.BORDER_REFLECT)
    contrast *= np.float32(1.0 / (anchor.error_ratio * noise))
    contrast /= np.sqrt(1.0 + np.square(contrast * np.float32(1.0 / _SOFT)))
    taken = (grey - anchor.image) / anchor.sigma
    local = np.log(anchor.unit * np.float32(1.0 / noise))
    height, width = grey.shape
    seen = np.empty((CHANNELS, height // PHASES, width // PHASES), np.float32)
    for number, plane in enumerate((contrast, taken, local)):
        for row in range(PHASES):
            for column in range(PHASES):
                place = number * PHASES**2 + row * PHASES + column
                seen[place] = plane[row::PHASES, column::PHASES]
    return seen


def padded(grey: Grey) -> Grey:
    """With both sides a multiple of `MULTIPLE_PX`, mirrored to the right and below."""
    height, width = grey.shape
    more = -height % MULTIPLE_PX, -width % MULTIPLE_PX
    if more == (0, 0):
        return grey
    bigger = cv2.copyMakeBorder(grey, 0, more[0], 0, more[1], cv2.BORDER_REFLECT)
    return np.asarray(bigger, np.float32)
