"""Labelled photographs turned into what FlakeNet learns from; no torch, so workers start fast.

The evidence is kept as signed bytes: it lies in -1 ... 1 and is far noisier than 1/127. Labels live
on the half-resolution grid on which the network answers. Where a border runs through a pixel
nothing is learnt about its class: annotators and cameras do not know it either.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from inference.flakes.background import estimate_background, shrunk_half
from inference.flakes.evidence import (
    CLASSES,
    DIRT_CLASS,
    FIVE_CLASS,
    SUBSTRATE_CLASS,
    THICK_CLASS,
    evidence,
    rungs,
)
from inference.flakes.labelled import DIRT, SUBSTRATE, UNKNOWN, LabelledFrame

IGNORED = 255
"""Class of pixels that nothing is learnt from."""

_WRONG_SUBSTRATE = 0.04  # contrast of the true substrate: more, and another colour was taken for it


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One photograph as the network sees it, with what it should answer."""

    planes: npt.NDArray[np.int8]  # (PLANES, rows, columns), 127 is 1
    classes: npt.NDArray[np.uint8]  # (2 rows, 2 columns), index into CLASSES or IGNORED
    borders: npt.NDArray[np.uint8]  # (2 rows, 2 columns), 1 beside another terrace or the ground
    weights: npt.NDArray[np.uint8]  # (2 rows, 2 columns), 16 is 1; small flakes weigh more
    is_strange: bool


def class_of_layers(layers: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Values of `LabelledFrame.layers` to indices into CLASSES, or IGNORED."""
    table = np.full(9, THICK_CLASS, dtype=np.uint8)  # of -2 ... 6
    table[UNKNOWN + 2], table[DIRT + 2], table[SUBSTRATE + 2] = IGNORED, DIRT_CLASS, SUBSTRATE_CLASS
    table[3:7] = np.arange(1, 5)
    table[7:9] = FIVE_CLASS
    return np.where(layers > 6, THICK_CLASS, table[np.clip(layers, -2, 6) + 2]).astype(np.uint8)


def example_of(frame: LabelledFrame) -> Example | None:
    """None where the substrate was not found: no detector looks at such a frame."""
    full_scale = float(2**frame.bit_depth - 1)
    half = shrunk_half(frame.pixels)
    background = estimate_background(frame.pixels, full_scale, half=half)
    if background.reason:
        return None
    inverse_half = background.inverse_half()
    if not frame.is_strange and _is_wrong(half, inverse_half, frame.layers):
        return None
    steps = rungs(frame.material, frame.calibration, frame.optics)
    planes = evidence(half, inverse_half, steps, full_scale)
    rows, columns = 2 * planes.shape[1], 2 * planes.shape[2]
    classes = np.full((rows, columns), IGNORED, dtype=np.uint8)
    borders = np.zeros((rows, columns), dtype=np.uint8)
    weights = np.full((rows, columns), 16, dtype=np.uint8)
    height, width = half.shape[:2]
    inside = (slice(height), slice(width))
    classes[inside], borders[inside], weights[inside] = _targets(frame, height, width)
    if frame.is_strange:
        classes[:] = IGNORED
    quantised = np.round(planes * 127.0).astype(np.int8)
    return Example(quantised, classes, borders, weights, frame.is_strange)


def _is_wrong(
    half: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    inverse: npt.NDArray[np.float32],
    layers: npt.NDArray[np.int16],
) -> bool:
    bare = layers[1 : 2 * half.shape[0] : 2, 1 : 2 * half.shape[1] : 2] == SUBSTRATE
    if int(bare.sum()) < 500:
        return True
    contrast = half[bare] * inverse[bare] - 1.0
    return bool(np.abs(np.median(contrast, axis=0)).max() > _WRONG_SUBSTRATE)


def _targets(
    frame: LabelledFrame, height: int, width: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    layers = frame.layers[: 2 * height, : 2 * width]
    instances = frame.instances[: 2 * height, : 2 * width]
    full = class_of_layers(layers)
    four = np.stack([full[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    classes = four[0].copy()
    classes[(four != four[0]).any(axis=0)] = IGNORED
    # Beside a border a pixel is blurred: only the inner side of it is asked for.
    small = instances[::2, ::2].astype(np.float32)
    kernel = np.ones((3, 3), dtype=np.uint8)
    borders = ((cv2.dilate(small, kernel) != cv2.erode(small, kernel)) & (small > 0)).astype(
        np.uint8
    )
    area = np.bincount(instances.ravel(), minlength=len(frame.instance_layers)).astype(np.float64)
    factor = np.clip(np.sqrt(2500.0 / np.maximum(area, 1.0)), 0.7, 4.0)
    factor[0] = 1.0
    weights = np.round(16.0 * factor[instances[::2, ::2]]).astype(np.uint8)
    weights[classes == DIRT_CLASS] = 24
    # Masks are judged by their edges: both sides of them weigh more.
    outer = (cv2.dilate((small > 0).astype(np.uint8), kernel) > 0) & (small == 0)
    weights[outer] = 40
    weights[borders > 0] = np.minimum(2.0 * weights[borders > 0], 255.0).astype(np.uint8)
    if classes.max(initial=0) not in range(len(CLASSES)) and classes.max() != IGNORED:
        raise ValueError(f"class {classes.max()} is unknown")
    return classes, borders, weights
