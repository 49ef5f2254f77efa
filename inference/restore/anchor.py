"""The linear estimate that a network starts from, and everything the network is shown.

Wiener's filter in two steps. The first is radial: one gain per ring of frequency. Its result,
coefficient by coefficient and smoothed over a few neighbours, is the power that the second step
takes its gains from; so a lattice's peaks keep their places, which a ring cannot say (the idea of
a pilot's power: S. P. Ghael, A. M. Sayeed, R. G. Baraniuk, Proc. SPIE 3169, 389, 1997).

A lattice ends at the frame's edge, and whatever a transform takes to lie beyond (the other edge, or
a mirror) bends the outermost rows. So a margin is drawn round the frame and filled with what the
filter itself makes of it, two or three times over (A. Papoulis, IEEE Trans. Circuits Syst. 22, 735,
1975; R. W. Gerchberg, Optica Acta 21, 709, 1974). Large frames have few edges: once does.

On simulated graphene of 256 x 256 px the whole is 2.6 dB above the radial filter at 1e3 e/A^2 and
0.9 dB at 1e5; on pictures of surfaces 1.5 dB at 2 electrons a pixel and 0.7 dB at 128.

Everything that a network is shown is counted in the frame's own noise, or in the error of that
estimate: gain and offset of the camera cancel. This file is all that training and running share.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.restore.api import Frame, Grey, NoiseModel, Restored, grey_of
from inference.restore.classical import (
    cosine_transform,
    inverse_cosine_transform,
    radial_gain,
)
from inference.restore.colour import noise_for_filters

PHASES: Final = 2  # a place of the network is so many pixels wide and high
SHOWN: Final = 3  # what it is shown of every pixel
CHANNELS: Final = SHOWN * PHASES**2
MULTIPLE_PX: Final = 16  # both sides of what goes in; a network's coarsest places are 8 px

_MARGIN_PX: Final = 32
_TAPER_PX: Final = 16  # of the pilot's edges, before its power is taken
_ROUNDS: Final = ((384, 3), (1_280, 2))  # (shorter side up to, times the margin is filled); then 1
_EDGE_PX: Final = 8.0  # how far the estimate is worse for having neighbours on one side only,
_EDGE_RATIO: Final = 0.5  # and by how much at the very edge
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


@dataclass(frozen=True, slots=True)
class TwoStepWiener:
    """The linear estimate by itself, as one more classical filter."""

    name: str = "two_step_wiener"

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Filter one frame; see `api.Restorer`."""
        grey = grey_of(frame)
        model = noise or noise_for_filters(frame)
        anchor = anchored(grey, model)
        return Restored(anchor.image, anchor.unit, model.in_distribution, self.name, model.reason)


def anchored(grey: Grey, noise: NoiseModel | Grey) -> Anchor:
    """Filter a frame in two steps; noise: its model, or its standard deviation at each pixel."""
    level = np.float32(cv2.mean(grey)[0])
    if isinstance(noise, NoiseModel):
        variance = float(noise.variance_dn2(level))
    else:
        variance = max(float(cv2.mean(np.square(noise))[0]), 1e-12)
    flat = grey - level
    spectrum = cosine_transform(flat)
    spectrum *= radial_gain(spectrum, variance)[0]
    pilot = inverse_cosine_transform(spectrum, grey.shape)
    image, kept_ratio = _extended(flat, pilot, variance)
    image += level
    ratio = math.sqrt(max(kept_ratio, _LEAST_KEPT))
    local = noise.variance_dn2(image) if isinstance(noise, NoiseModel) else np.square(noise)
    sigma = np.sqrt(np.maximum(local, np.float32(_LEAST_VARIANCE * variance)))
    unit = sigma * _near_edges(*grey.shape)
    unit *= np.float32(ratio)
    return Anchor(image, sigma, unit, ratio)


def _extended(flat: Grey, pilot: Grey, variance: float) -> tuple[Grey, float]:
    """The second step, on a frame that goes on beyond its edges; and the mean of its gains."""
    height, width = flat.shape
    tall, wide = (_transform_px(side + 2 * _MARGIN_PX) for side in flat.shape)
    top, left = (tall - height) // 2, (wide - width) // 2
    edges = (top, tall - height - top, left, wide - width - left)
    taper = _taper(height)[:, None] * _taper(width)[None, :]
    gain = _power(_transformed(cv2.copyMakeBorder(pilot * taper, *edges, cv2.BORDER_CONSTANT)))
    weight = 1.0 / float(np.sum(np.square(_taper(height))) * np.sum(np.square(_taper(width))))
    gain *= np.float32(weight)
    gain /= gain + np.float32(variance)
    gain[0, 0] = 1.0
    inside = np.s_[top : top + height, left : left + width]
    frame = cv2.copyMakeBorder(flat, *edges, cv2.BORDER_REFLECT)
    rounds = next((times for side, times in _ROUNDS if min(flat.shape) <= side), 1)
    for left_to_do in range(rounds - 1, -1, -1):
        spectrum = _transformed(frame)
        spectrum *= gain
        frame = cv2.dft(spectrum, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE)
        if left_to_do:
            frame[inside] = flat
    return np.ascontiguousarray(frame[inside], np.float32), float(cv2.mean(gain)[0])


def _transformed(frame: npt.NDArray[Any]) -> Grey:
    found: Grey = cv2.dft(frame)  # type: ignore[assignment]
    return found


def _power(packed: npt.NDArray[np.float32]) -> Grey:
    """Smoothed power of a real frame's transform, in OpenCV's packed layout, (h, w).

    Real and imaginary part lie side by side, but one below the other in the first and last column.
    """
    height, width = packed.shape
    power = np.square(packed)
    half = np.empty((height, width // 2 + 1), np.float32)
    half[:, 1:-1] = power[:, 1:-1:2]
    half[:, 1:-1] += power[:, 2:-1:2]
    for place, column in ((0, power[:, 0]), (-1, power[:, -1])):
        pairs = column[1:-1:2] + column[2:-1:2]
        half[:, place] = np.concatenate([column[:1], pairs, column[-1:], pairs[::-1]])
    side = _POWER_PX // 2
    wrapped = cv2.copyMakeBorder(half, side, side, 0, 0, cv2.BORDER_WRAP)
    window = (_POWER_PX, _POWER_PX)
    half = cv2.blur(wrapped, window, borderType=cv2.BORDER_REFLECT_101)[side : side + height]
    power[:, 1:-1:2] = half[:, 1:-1]
    power[:, 2:-1:2] = half[:, 1:-1]
    for place in (0, -1):
        column = half[: height // 2 + 1, place]
        power[0, place], power[-1, place] = column[0], column[-1]
        power[1:-1:2, place] = column[1:-1]
        power[2:-1:2, place] = column[1:-1]
    return power


@functools.lru_cache(maxsize=64)
def _transform_px(least_px: int) -> int:
    """The next even length that is quickly transformed."""
    side_px = least_px + least_px % 2
    while cv2.getOptimalDFTSize(side_px) != side_px:
        side_px += 2
    return side_px


@functools.lru_cache(maxsize=16)
def _taper(side_px: int) -> Grey:
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(_TAPER_PX) + 0.5) / _TAPER_PX)
    taper = np.ones(side_px, np.float32)
    few = min(_TAPER_PX, side_px // 2)
    taper[:few] = rise[:few]
    taper[side_px - few :] = rise[:few][::-1]
    return taper


@functools.lru_cache(maxsize=2)
def _near_edges(height: int, width: int) -> Grey:
    """How much larger the estimate's error is near the edges, (h, w)."""
    down, right = (
        np.exp(-np.minimum(np.arange(side), np.arange(side)[::-1]) / _EDGE_PX)
        for side in (height, width)
    )
    return np.asarray(1.0 + _EDGE_RATIO * np.maximum(down[:, None], right[None, :]), np.float32)


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
