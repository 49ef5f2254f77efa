"""Textbook segmentations of what is darker than the substrate: no colour physics, no training.

Each gets the same help as everybody: the substrate-normalised contrast after a median of 5 x 5, the
least size, regions that are too uneven or not darker in red and green removed, and a ranking by how
even and how large a region is. Their free parameters were chosen by a search over a few values for
the best AP50 on the very photographs on which they are judged (`graphene_masked`), which flatters
them; the search is `tuned_on` in each docstring.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from controller.bench.flakes_baselines.gaussian_mixture import (
    LEAST_PX,
    contrast_of,
    regions,
    solidity,
)
from inference.api import ImageRGB
from inference.flakes.scoring import Instance

FloatImage = npt.NDArray[np.float32]

_SPREAD_MOST: Final = 0.06
_DARKER: Final = -0.04


def otsu(pixels: ImageRGB) -> tuple[Instance, ...]:
    """Two thresholds of N. Otsu (IEEE Trans. SMC 9, 62, 1979) on red: dark, substrate, bright.

    One threshold would part bulk from all the rest: the second is found within the darker class,
    and the lower of "halfway to the dark class" and Otsu's own is taken, as flakes are few.
    tuned_on: red, green or grey; opening of 3 or 5 px.
    """
    contrast = contrast_of(pixels)
    scaled = np.clip((contrast[..., 0] + 1.0) * 200.0, 0, 255).astype(np.uint8)
    dark = scaled[scaled < 215]  # what is brighter than the substrate is bulk
    threshold, _ = cv2.threshold(dark[None], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = (scaled <= threshold).astype(np.uint8)
    return _judged(contrast, regions(mask))


def adaptive_threshold(
    pixels: ImageRGB, block_px: int = 251, below: float = 4.0
) -> tuple[Instance, ...]:
    """Darker than the Gaussian mean of the neighbourhood by so much (OpenCV's adaptiveThreshold).

    tuned_on: block of 101, 251, 401 px; 4, 8, 12, 16 of 200 grey levels below.
    """
    contrast = contrast_of(pixels)
    scaled = np.clip((contrast[..., 0] + 1.0) * 200.0, 0, 215).astype(np.uint8)
    mask = cv2.adaptiveThreshold(
        scaled, 1, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY_INV, block_px, below
    )
    return _judged(contrast, regions(np.asarray(mask, dtype=np.uint8)))


def watershed(pixels: ImageRGB, flat_below: float = 0.010) -> tuple[Instance, ...]:
    """Flooding of the gradient (F. Meyer, 1994; OpenCV) from flat regions as markers.

    Markers are connected regions of small gradient: each terrace of a stepped flake is one, and so
    are substrate and bulk. The stronger of the usual recipes: markers from a distance transform of
    a thresholded image (the tutorial's) reach less.
    tuned_on: gradient below 0.006, 0.008, 0.010, 0.014, 0.018, 0.025, 0.035.
    """
    contrast = contrast_of(pixels)
    smooth = cv2.GaussianBlur(contrast, (0, 0), 1.0)
    squares = np.zeros(contrast.shape[:2], dtype=np.float32)
    for dx, dy in ((1, 0), (0, 1)):
        slope = cv2.Sobel(smooth, cv2.CV_32F, dx, dy)
        squares += np.einsum("hwc,hwc->hw", slope, slope)
    gradient = np.sqrt(squares) / 8.0
    flat = (gradient < flat_below).astype(np.uint8)
    count, markers = cv2.connectedComponents(flat, connectivity=4, ltype=cv2.CV_32S)
    sizes = np.bincount(markers.ravel(), minlength=count)
    renumbered = np.cumsum((sizes >= 40) & (np.arange(count) > 0)) * (sizes >= 40)
    renumbered[0] = 0
    markers = renumbered[markers].astype(np.int32)
    steep = np.clip(gradient * 1200.0, 0, 255).astype(np.uint8)
    steep_rgb = np.repeat(steep[..., None], 3, axis=2)
    flooded = np.asarray(cv2.watershed(steep_rgb, markers), dtype=np.int32)
    found = []
    for label, box in enumerate(_boxes(flooded, int(renumbered.max())), start=1):
        x, y, width, height = box
        mask = (flooded[y : y + height, x : x + width] == label).astype(np.uint8)
        if LEAST_PX <= int(mask.sum()) <= 0.1 * flooded.size:
            found += [
                replace(part, box_x_px=part.box_x_px + x, box_y_px=part.box_y_px + y)
                for part in regions(mask)
            ]
    return _judged(contrast, found)


def _boxes(labels: npt.NDArray[np.int32], count: int) -> list[tuple[int, int, int, int]]:
    """Bounding boxes (x, y, width, height) of the labels from 1 on."""
    low = np.full((count + 1, 2), 1 << 30)
    high = np.full((count + 1, 2), -1)
    rows, columns = np.nonzero(labels > 0)
    values = labels[rows, columns]
    for axis, places in enumerate((columns, rows)):
        np.minimum.at(low[:, axis], values, places)
        np.maximum.at(high[:, axis], values, places)
    size = np.maximum(high - low + 1, 0)
    return [
        (int(low[k, 0]), int(low[k, 1]), int(size[k, 0]), int(size[k, 1]))
        if high[k, 0] >= 0
        else (0, 0, 0, 0)
        for k in range(1, count + 1)
    ]


def _judged(contrast: FloatImage, found: list[Instance]) -> tuple[Instance, ...]:
    """Keep what is evenly darker than the substrate, and rank it."""
    kept = []
    for one in found:
        height, width = one.mask.shape
        cut = contrast[one.box_y_px : one.box_y_px + height, one.box_x_px : one.box_x_px + width]
        inner = cv2.erode(one.mask.astype(np.uint8), np.ones((3, 3), dtype=np.uint8)) > 0
        inside = cut[inner if np.count_nonzero(inner) > 20 else one.mask]
        middle = np.median(inside, axis=0)
        spread = float(np.max(1.48 * np.median(np.abs(inside - middle), axis=0)))
        if middle[0] > _DARKER or middle[1] > _DARKER or spread > _SPREAD_MOST:
            continue
        largeness = 1.0 - np.exp(-inside.shape[0] / 500.0)
        score = float(np.exp(-spread / 0.02) * largeness * solidity(one.mask))
        kept.append(replace(one, score=score))
    return tuple(kept)
