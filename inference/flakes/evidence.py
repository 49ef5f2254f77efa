"""What the network is shown of a photograph: contrasts, and what each rung of the ladder says.

A network that saw colours would learn the microscopes it was trained on. This one sees how a place
differs from its own substrate and how far that is from 0, 1, 2 ... layers of the crystal that is
looked for, in units of the rungs' own spacing; the crystal, the oxide and the lamp enter by the
ladder alone. So one network serves every material, and a new one needs only n, k and a thickness.

Everything lives on a grid of a quarter of the photograph: 2.3 Mpx become 0.14 million places, which
two cores can afford. Detail is not lost with it: each place carries the contrasts of its four
half-resolution pixels side by side. Faint crystals (hBN, 2.5 %) drown in one place's noise, so the
means over 5 x 5 places are shown too, with a finer scale.

Every number is squeezed into -1 ... 1 by x / (|x| + scale), which is steep where contrasts are
small, never saturates, and costs a tenth of a logarithm or a tanh.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import Calibration, ImageRGB
from inference.flakes.ladder import Ladder, Optics, ladder

FloatArray = npt.NDArray[np.float32]

CLASSES = ("substrate", "1", "2", "3", "4", "5-6", "thick", "dirt")
"""What each half-resolution pixel may be; thick is 7 layers and more, dirt is off the ladder."""

SUBSTRATE_CLASS, FIVE_CLASS, THICK_CLASS, DIRT_CLASS = 0, 5, 6, 7
PLANES = 33
RUNG_PLANE = 15
"""Of the first of seven planes: how far a place is from the rungs of substrate ... thick."""

GRID_PX = 4
"""Pixels of the photograph along one side of a place of the grid."""

NO_CONTENT = 0.1
"""Share of anything but substrate at a place below which there is nothing to see."""

LEAST_CONTENT = 0.02
"""What a bare place counts for where oddity is averaged over what there is to see."""

_GRID_STEP = 8  # the grid's sides are multiples of it: the network halves it three times
_LAST_COUNTED = 6
_MOST_THICK = 24  # points that stand for 7 layers to bulk
_IN_CACHE = 16_384  # places compared at a time


@dataclass(frozen=True, slots=True, eq=False)
class Rungs:
    """A ladder reduced to points that pixels are compared with."""

    points: FloatArray  # (k, 3): contrasts of 0 ... 6 layers, then of thicker crystals
    spacing: FloatArray  # (7,) of classes substrate ... thick: a deviation that matters
    first_contrast: float  # length of the first rung


@lru_cache(maxsize=64)
def rungs(material: str, calibration: Calibration, optics: Optics) -> Rungs:
    """Rungs of the ladder that a calibrated microscope should see; cached."""
    return rungs_of(ladder(material, calibration, optics))


def rungs_of(steps: Ladder) -> Rungs:
    """Rungs of any ladder."""
    counted = steps.at(np.arange(_LAST_COUNTED + 2))  # (8, 3): 0 ... 7 layers
    apart = np.linalg.norm(np.diff(counted, axis=0), axis=1)  # (7,)
    nearest = np.minimum(apart, np.r_[apart[:1], apart[:-1]])[:_LAST_COUNTED]
    spacing = np.r_[nearest[:5], nearest[5], apart[-1]]
    beyond = np.flatnonzero(steps.thickness_layers >= _LAST_COUNTED + 1)
    arc = steps.arc[beyond]
    wanted = np.linspace(float(arc[0]), float(arc[-1]), _MOST_THICK)
    thick = steps.contrast_rgb[beyond[np.searchsorted(arc, wanted).clip(0, beyond.size - 1)]]
    return Rungs(
        points=np.concatenate([counted[: _LAST_COUNTED + 1], thick]).astype(np.float32),
        spacing=np.clip(0.35 * spacing, 0.004, 0.08).astype(np.float32),
        first_contrast=float(np.clip(apart[0], 0.01, 0.5)),
    )


def evidence(
    half: ImageRGB, inverse_half: FloatArray, steps: Rungs, full_scale: float
) -> FloatArray:
    """Planes of evidence, (PLANES, rows, columns), rows and columns multiples of 8.

    half, inverse_half: `shrunk_half` of the photograph and 1 / its background. Beyond the
    photograph the last pixels are repeated.
    """
    height, width = half.shape[:2]
    rows, columns = grid_shape(2 * height, 2 * width)
    ratio = cv2.multiply(half, inverse_half, dtype=cv2.CV_32F)
    pad = 2 * rows - height, 2 * columns - width
    if pad != (0, 0):
        ratio = cv2.copyMakeBorder(ratio, 0, pad[0], 0, pad[1], cv2.BORDER_REPLICATE)
    fine = np.empty((12, rows, columns), dtype=np.float32)  # row, column, channel
    for k in range(4):
        part = ratio[k // 2 :: 2, k % 2 :: 2]
        for c in range(3):
            np.subtract(part[..., c], np.float32(1.0), out=fine[3 * k + c])
    mean = (fine[0:3] + fine[3:6] + fine[6:9] + fine[9:12]) * np.float32(0.25)
    wide = np.stack([cv2.blur(plane, (5, 5)) for plane in mean])
    first = np.float32(steps.first_contrast)
    noise = _noise(fine[1], fine[4])
    planes = np.empty((PLANES, rows, columns), dtype=np.float32)
    _squeezed(fine, np.float32(0.5) * first, planes[0:12])
    _squeezed(mean, np.float32(0.1), planes[12:15])
    nearest = _class_distances(mean, steps)
    scales = steps.spacing[:, None, None]
    _squeezed(nearest, scales, planes[15:22])
    size = np.sqrt(np.einsum("crw,crw->rw", mean, mean))
    _squeezed(nearest.min(axis=0), np.float32(0.03) + np.float32(0.1) * size, planes[22])
    _squeezed(wide, np.float32(0.15) * first, planes[23:26])
    _squeezed(_first_distances(wide, steps, 4), scales[:4] / np.float32(3.0), planes[26:30])
    largest = np.maximum(np.maximum(half[..., 0], half[..., 1]), half[..., 2])
    bright = (largest >= 0.96 * full_scale).astype(np.float32)
    if pad != (0, 0):
        bright = cv2.copyMakeBorder(bright, 0, pad[0], 0, pad[1], cv2.BORDER_REPLICATE)  # type: ignore[assignment]
    cv2.resize(bright, (columns, rows), dst=planes[30], interpolation=cv2.INTER_AREA)
    planes[31] = first / (first + np.float32(0.1))
    planes[32] = noise / (noise + np.float32(0.25) * first)
    return planes


def grid_shape(height_px: int, width_px: int) -> tuple[int, int]:
    """Rows and columns of the grid over a photograph, padded."""
    step = GRID_PX * _GRID_STEP
    return -(-height_px // step) * _GRID_STEP, -(-width_px // step) * _GRID_STEP


def _squeezed(values: FloatArray, scale: np.float32 | FloatArray, out: FloatArray) -> None:
    """Write x / (|x| + scale) into `out`."""
    np.abs(values, out=out)
    out += scale
    np.divide(values, out, out=out)


def _class_distances(contrast: FloatArray, steps: Rungs) -> FloatArray:
    """Distance of each place from the nearest rung of each class but dirt, (7, rows, columns)."""
    flat = contrast.reshape(3, -1)
    found = np.empty((7, flat.shape[1]), dtype=np.float32)
    for start in range(0, flat.shape[1], _IN_CACHE):
        part = slice(start, start + _IN_CACHE)
        squares = _squared_distances(flat[:, part], steps.points)  # (k, n)
        found[:5, part] = squares[:5]
        np.minimum(squares[5], squares[6], out=found[5, part])
        np.min(squares[7:], axis=0, out=found[6, part])
    np.maximum(found, np.float32(0.0), out=found)
    np.sqrt(found, out=found)
    return found.reshape(7, *contrast.shape[1:])


def _first_distances(contrast: FloatArray, steps: Rungs, count: int) -> FloatArray:
    """Distance from the first rungs alone, (count, rows, columns)."""
    squares = _squared_distances(contrast.reshape(3, -1), steps.points[:count])
    found = np.sqrt(np.maximum(squares, np.float32(0.0)))
    return np.asarray(found.reshape(count, *contrast.shape[1:]), dtype=np.float32)


def _squared_distances(flat: FloatArray, points: FloatArray) -> FloatArray:
    """(3, n) against (k, 3), as one product of (k, 5) and (5, n)."""
    count, places = len(points), flat.shape[1]
    left = np.empty((count, 5), dtype=np.float32)
    left[:, :3] = np.float32(-2.0) * points
    left[:, 3] = np.einsum("kc,kc->k", points, points)
    left[:, 4] = 1.0
    right = np.empty((5, places), dtype=np.float32)
    right[:3] = flat
    right[3] = 1.0
    np.einsum("cn,cn->n", flat, flat, out=right[4])
    return left @ right


def _noise(one: FloatArray, other: FloatArray) -> np.float32:
    """One sigma of half-resolution pixels of the green channel, from neighbours."""
    return np.float32(1.05 * np.median(np.abs(one[::4] - other[::4])))
