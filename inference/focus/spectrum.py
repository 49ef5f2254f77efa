"""What one frame says about its blur: power in bands of frequency and sectors of direction.

Blur multiplies the object's spectrum, so the logarithm of power in a band is the object's own plus
the blur's; between two frames of one object the object's part drops out. Direction is kept because
astigmatism blurs two axes differently. Noise is white in every frame that a detector counted, and
its floor is read from the same frame's highest frequencies: a beam that flickers by a tenth moves
the floor by more than a weak signal is high.

The frame is divided by its mean, a Hann window keeps the frame's edges from making a spectrum of
their own, and the two axes are left out: lines that are brighter than their neighbours live there.
A frame larger than 256 px also gives a binned level with a larger field: strong blur needs field,
not pixels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage

FloatArray: TypeAlias = npt.NDArray[np.float64]
Grey: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]

SIDE_PX = 256
BANDS = 16
SECTORS = 8  # over half a turn; sector 0 is centred on the x axis
LOWEST_CYC_PX = 2.6 / SIDE_PX  # the window's main lobe reaches two bins
HIGHEST_CYC_PX = 0.44
_FLOOR_CYC_PX = (0.46, 0.50)
_AXIS_BINS = 1  # columns and rows on each side of an axis that belong to line noise
# A Hann window in two dimensions leaves this share of the modes independent: ((3/8)^2/(35/128))^2.
_INDEPENDENT_RATIO = 0.264


@dataclass(frozen=True, slots=True, eq=False)
class BandPower:
    """Power of one frame at one binning, in units of squared contrast per mode."""

    power: FloatArray  # (BANDS, SECTORS), noise included
    modes: FloatArray  # (BANDS, SECTORS), independent ones; 0 where a cell is empty
    squares: FloatArray  # (BANDS, SECTORS), mean of squared powers: few peaks, or many alike
    floor: float  # the noise's share of every power
    floor_modes: float
    binning: int  # raw pixels a side of one pixel here
    mean: float  # grey level of the frame, for the record

    @property
    def isotropic(self) -> tuple[FloatArray, FloatArray]:
        """Power and modes of whole rings, (BANDS,) each."""
        modes = self.modes.sum(axis=1)
        return (self.power * self.modes).sum(axis=1) / modes, modes


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    window: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64]  # flat indices of the half plane, sorted by cell
    starts: npt.NDArray[np.int64]
    filled: npt.NDArray[np.int64]  # cells that hold a mode at all: the lowest have few
    modes: FloatArray
    floor: npt.NDArray[np.int64]
    norm: float


def band_edges_cyc_px() -> FloatArray:
    """Edges of the bands, (BANDS + 1,), evenly spaced in the logarithm."""
    return np.geomspace(LOWEST_CYC_PX, HIGHEST_CYC_PX, BANDS + 1)


def band_powers(pixels: Grey, most_binning: int = 4) -> tuple[BandPower, ...]:
    """Measure a frame: the centre at full resolution, then wider fields binned by 2 and 4.

    pixels: (h, w) or (h, w, 3), at least 256 px a side. Raises BadImage for anything else.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        message = f"needs (h, w) or (h, w, 3), got {pixels.shape}"
        raise BadImage(message)
    if min(pixels.shape[:2]) < SIDE_PX:
        message = f"needs at least {SIDE_PX} px a side, got {pixels.shape[:2]}"
        raise BadImage(message)
    levels = []
    binning = 1
    while binning <= most_binning and min(pixels.shape[:2]) >= SIDE_PX * binning:
        levels.append(power_of(grey_tile(pixels, binning), binning))
        binning *= 2
    return tuple(levels)


def grey_tile(
    pixels: Grey, binning: int = 1, across: float = 0.5, down: float = 0.5
) -> npt.NDArray[np.float32]:
    """Cut 256 * binning pixels a side, grey and binned, (256, 256).

    across, down: where in the frame, 0 for its left or upper end, 0.5 for its centre.
    """
    side_px = SIDE_PX * binning
    row = int((pixels.shape[0] - side_px) * down)
    col = int((pixels.shape[1] - side_px) * across)
    crop = pixels[row : row + side_px, col : col + side_px]
    if crop.ndim == 3:
        grey = crop.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    else:
        grey = crop.astype(np.float32)
    if binning > 1:
        binned = cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
        grey = binned.astype(np.float32, copy=False)
    return np.asarray(grey, dtype=np.float32)


def power_of(grey: npt.NDArray[np.float32], binning: int = 1) -> BandPower:
    """Measure one tile, (256, 256); `binning` is kept for the record."""
    mean = float(cv2.mean(grey)[0])
    layout = _layout()
    if not mean > 0 or not math.isfinite(mean):
        dark = np.full((BANDS, SECTORS), 1e-12)
        return BandPower(dark, layout.modes, 2.0 * dark**2, 1e-12, 1.0, binning, mean)
    contrast = (grey * np.float32(1.0 / mean) - np.float32(1.0)) * layout.window
    contrast -= layout.window * np.float32(
        float(cv2.mean(contrast)[0]) / float(cv2.mean(layout.window)[0])
    )
    spectrum = cv2.dft(contrast, flags=cv2.DFT_COMPLEX_OUTPUT)[:, : SIDE_PX // 2 + 1]
    power = np.square(spectrum).sum(axis=2).ravel() * np.float32(layout.norm)
    ordered = power[layout.order]
    cells = np.zeros((2, BANDS * SECTORS))
    cells[0, layout.filled] = np.add.reduceat(ordered, layout.starts)
    cells[1, layout.filled] = np.add.reduceat(ordered * ordered, layout.starts)
    floor = float(np.mean(power[layout.floor]))
    means = cells.reshape(2, BANDS, SECTORS) * _INDEPENDENT_RATIO
    means /= np.maximum(layout.modes, _INDEPENDENT_RATIO)
    return BandPower(
        power=np.maximum(means[0], 1e-12),
        modes=layout.modes,
        squares=np.maximum(means[1], 2e-24),
        floor=max(floor, 1e-12),
        floor_modes=len(layout.floor) * _INDEPENDENT_RATIO,
        binning=binning,
        mean=mean,
    )


@functools.cache
def _layout() -> _Layout:
    n = np.arange(SIDE_PX)
    hann = 0.5 - 0.5 * np.cos(2.0 * math.pi * (n + 0.5) / SIDE_PX)
    window = np.outer(hann, hann)
    fy = np.fft.fftfreq(SIDE_PX)[:, None]
    fx = np.abs(np.fft.fftfreq(SIDE_PX))[None, : SIDE_PX // 2 + 1]
    fx, fy = np.broadcast_arrays(fx, fy)
    radius = np.hypot(fx, fy)
    off_axis = (fx * SIDE_PX > _AXIS_BINS + 0.5) & (np.abs(fy) * SIDE_PX > _AXIS_BINS + 0.5)
    band = np.searchsorted(band_edges_cyc_px(), radius, side="right") - 1
    angle = np.arctan2(fy, fx)
    sector = np.round(angle / (math.pi / SECTORS)).astype(int) % SECTORS
    wanted = (band >= 0) & (band < BANDS) & off_axis
    # The lowest bands would be empty in the axes' own sectors: there the rule is relaxed by a bin.
    near = (band >= 0) & (band < 5) & (fx * SIDE_PX > 0.5) & (np.abs(fy) * SIDE_PX > 0.5)
    wanted |= near
    cell = np.where(wanted, band * SECTORS + sector, -1).ravel()
    order = np.argsort(cell, kind="stable")
    order = order[np.count_nonzero(cell < 0) :]
    counts = np.bincount(cell[cell >= 0], minlength=BANDS * SECTORS)
    filled = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
    low, high = _FLOOR_CYC_PX
    floor = np.flatnonzero(((radius >= low) & (radius < high) & off_axis).ravel())
    return _Layout(
        window=window.astype(np.float32),
        order=order,
        starts=starts,
        filled=filled,
        modes=(counts * _INDEPENDENT_RATIO).reshape(BANDS, SECTORS).astype(np.float64),
        floor=floor,
        norm=1.0 / float(np.sum(window**2)),
    )
