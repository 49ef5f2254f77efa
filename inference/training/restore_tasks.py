"""What a network of this family may be taught: to denoise, to refocus, to see twice as fine.

A task draws a frame from a clean scene, and says what should come out of it. Refocusing: the scene
is out of focus by an amount that slopes over the frame, and astigmatic, so that a point becomes an
ellipse: geometric optics, with the probe's own width. Magnifying: the frame has twice the pixel
size, each pixel the mean of four and of a probe wider than they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

import cv2
import numpy as np

from inference.restore.api import Grey
from inference.restore.views import MAGNIFIED
from inference.training.restore_examples import Drawn, noisy_frame

_MOST_BLUR_PX: Final = 5.0  # semi-axis of the ellipse that a point becomes
_LEVELS: Final = 5  # of defocus, between which places are interpolated


class Task(Protocol):
    """Question: what is the frame, and what should the answer be."""

    @property
    def scale(self) -> int:
        """Pixels of the answer to one of the frame, either way."""
        ...

    def expose(self, clean: Grey, dose_e: float, rng: np.random.Generator, *, plain: bool) -> Drawn:
        """Expose a clean frame; plain: counting noise alone, told without an error."""
        ...


@dataclass(frozen=True, slots=True)
class Denoise:
    """The frame without its noise."""

    scale: int = 1

    def expose(self, clean: Grey, dose_e: float, rng: np.random.Generator, *, plain: bool) -> Drawn:
        """See `Task`."""
        return noisy_frame(clean, dose_e, rng, plain=plain)


@dataclass(frozen=True, slots=True)
class Refocus:
    """The frame without its noise, and in focus."""

    scale: int = 1

    def expose(self, clean: Grey, dose_e: float, rng: np.random.Generator, *, plain: bool) -> Drawn:
        """See `Task`. One frame in eight is sharp: to leave it alone is learnt, too."""
        seen = clean if rng.random() < 0.125 else defocused(clean, random_blur(rng))
        drawn = noisy_frame(seen, dose_e, rng, plain=plain)
        return Drawn(drawn.noisy, clean * np.float32(dose_e), drawn.noise)


@dataclass(frozen=True, slots=True)
class Magnify:
    """The frame without its noise, of half the pixel size."""

    scale: int = MAGNIFIED

    def expose(self, clean: Grey, dose_e: float, rng: np.random.Generator, *, plain: bool) -> Drawn:
        """See `Task`."""
        drawn = noisy_frame(coarser(clean, float(rng.uniform(0.0, 0.8))), dose_e, rng, plain=plain)
        return Drawn(drawn.noisy, clean * np.float32(dose_e), drawn.noise)


@dataclass(frozen=True, slots=True)
class Blur:
    """What a point becomes at the frame's centre, and how that changes over it."""

    semi_axis_px: float  # signed: over or under focus
    astigmatism_px: float  # semi-axes are |a + s| and |a - s|
    turn_rad: float
    slope_px: tuple[float, float]  # change of semi_axis_px from the centre to the right, lower edge
    probe_px: float  # one sd, of the probe in focus


def random_blur(rng: np.random.Generator) -> Blur:
    """As an operator meets it: out of focus, somewhat astigmatic, the sample somewhat tilted."""
    return Blur(
        semi_axis_px=float(rng.uniform(0.5, _MOST_BLUR_PX) * rng.choice([-1.0, 1.0])),
        astigmatism_px=float(rng.choice([0.0, rng.uniform(0.0, 2.0)])),
        turn_rad=float(rng.uniform(0.0, math.pi)),
        slope_px=(float(rng.normal(0.0, 0.8)), float(rng.normal(0.0, 0.8))),
        probe_px=float(rng.uniform(0.0, 0.6)),
    )


def defocused(clean: Grey, blur: Blur) -> Grey:
    """The scene as it is seen, (h, w); edges are mirrored."""
    height, width = clean.shape
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    local = blur.semi_axis_px + blur.slope_px[0] * x + blur.slope_px[1] * y
    low, high = float(local.min()), float(local.max())
    if high - low < 0.05:
        return _blurred(clean, blur, blur.semi_axis_px)
    levels = np.linspace(low, high, _LEVELS)
    planes = [_blurred(clean, blur, float(level)) for level in levels]
    seen = np.zeros_like(clean)
    for level, plane in zip(levels, planes, strict=True):
        share = 1.0 - np.abs(local - level) * ((_LEVELS - 1) / (high - low))
        seen += np.maximum(share, 0.0).astype(np.float32) * plane
    return seen


def kernel(blur: Blur, semi_axis_px: float) -> Grey:
    """Of one place: an ellipse that rays fill evenly, and the probe; odd sides, sum 1."""
    first = max(abs(semi_axis_px + blur.astigmatism_px), 0.05)
    second = max(abs(semi_axis_px - blur.astigmatism_px), 0.05)
    reach = math.ceil(max(first, second) + 3.0 * blur.probe_px) + 1
    fine = 4  # steps a pixel, so that small ellipses are not squares
    steps = (np.arange((2 * reach + 1) * fine, dtype=np.float32) + 0.5) / fine - reach - 0.5
    x, y = steps[None, :], steps[:, None]
    u = x * math.cos(blur.turn_rad) + y * math.sin(blur.turn_rad)
    v = y * math.cos(blur.turn_rad) - x * math.sin(blur.turn_rad)
    # A rim an eighth of a pixel soft keeps an ellipse thinner than a step from vanishing.
    soft = np.clip(((1.0 - np.hypot(u / first, v / second)) * min(first, second)) * 8.0 + 0.5, 0, 1)
    plane = np.asarray(soft, np.float32)
    if blur.probe_px > 0.0:
        plane = np.asarray(cv2.GaussianBlur(plane, (0, 0), blur.probe_px * fine), np.float32)
    side = 2 * reach + 1
    binned = plane.reshape(side, fine, side, fine).sum(axis=(1, 3))
    total = float(binned.sum())
    if total <= 0.0:
        binned[reach, reach] = total = 1.0
    return np.asarray(binned / total, np.float32)


def _blurred(clean: Grey, blur: Blur, semi_axis_px: float) -> Grey:
    found = cv2.filter2D(clean, -1, kernel(blur, semi_axis_px), borderType=cv2.BORDER_REFLECT_101)
    # Large kernels go through a Fourier transform, which leaves a little below zero.
    return np.asarray(np.maximum(found, 0.0), np.float32)


def coarser(clean: Grey, probe_px: float) -> Grey:
    """The scene at twice the pixel size; probe_px: one sd, in the coarse pixels. Even sides."""
    if probe_px > 0.0:
        clean = np.asarray(cv2.GaussianBlur(clean, (0, 0), probe_px * MAGNIFIED), np.float32)
    height, width = (side // MAGNIFIED for side in clean.shape)
    binned = clean[: height * MAGNIFIED, : width * MAGNIFIED]
    return np.asarray(
        binned.reshape(height, MAGNIFIED, width, MAGNIFIED).mean(axis=(1, 3)), np.float32
    )
