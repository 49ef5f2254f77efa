"""Two frames at a known distance and the most probable aberrations: after MAPFoSt.

Own code from the idea of J. Binding, S. Mikula, W. Denk, Microsc. Microanal. 19, 38 (2013): two
images with a known test defocus, the blur's transfer function from the aperture angle (a Gaussian,
or the disc that a filled aperture makes), white noise, and the aberrations that make both
spectra most probable. The object is unknown: here
it is a Gaussian variate whose power in each cell of frequency is fitted along, so the phases count
as well as the powers. Frames are registered first. Done again about the answer, as the original
is, it converges; every round costs two frames. A model error of a few percent keeps bright cells
from being believed beyond what a Gaussian blur can be.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inference.focus.api import FocusCommand
from inference.focus.evaluate import FocusOutcome, FocusProblem, Image

F64: TypeAlias = npt.NDArray[np.float64]
Shape: TypeAlias = Literal["gauss", "disc"]

_BANDS = 14
_SECTORS = 8
_SIDE_PX = 256
_MOST_SHIFT_PX = 8


@dataclass(frozen=True, slots=True)
class SpectralPair:
    """Two frames, one estimate, and the same again about it; a `FocusMethod`."""

    test_dof: float = 8.0  # of each frame from the place in hand, one to each side
    shrink: float = 0.5  # of the test defocus, from one round to the next
    rounds: int = 2
    shape: Shape = "disc"
    model_error: float = 0.1  # of amplitudes, relative
    label: str = "two-image spectral MAP"

    @property
    def name(self) -> str:
        """For tables."""
        return self.label

    def run(self, problem: FocusProblem) -> FocusOutcome:
        """Estimate and jump; sure of itself, as published."""
        z, x, y = problem.start.z_dof, problem.start.stig_x_dof, problem.start.stig_y_dof
        test, reach = self.test_dof, problem.half_range_dof
        stig = problem.stig_range_dof if problem.has_stigmator else 0.0
        trace: list[float] = []
        # Far off, the first round looks at a wider field, in which the blur is small again.
        ratio = problem.widest_ratio
        for _ in range(self.rounds + (1 if ratio > 1.0 else 0)):
            pair = []
            for offset in (-test * ratio, test * ratio):
                command = FocusCommand(z + offset, x, y, ratio)
                pair.append(problem.observe(command))
                trace.append(z)
            places = [seen.command.z_dof for seen in pair]
            if places[0] == places[1]:
                break
            scale = problem.blur_px_per_dof / ratio
            statistics = _pair_statistics(pair[0].pixels, pair[1].pixels)
            model = _Model((places[0] - z, places[1] - z), scale, self.shape, self.model_error)
            answer = _most_probable(statistics, model, reach, stig)
            z, x, y = z + answer[0], x + answer[1], y + answer[2]
            trace[-1] = z
            reach = min(reach, 2.0 * test * ratio)
            if ratio > 1.0:
                ratio = 1.0
            else:
                test *= self.shrink
        return FocusOutcome(FocusCommand(z, x, y), True, trace_z_dof=tuple(trace))


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Power of both frames and the real part of their product, summed over each cell's modes."""

    first: F64  # (cells,)
    second: F64
    product: F64
    modes: F64
    noise: float  # of a mode, both frames' mean


def _pair_statistics(first: Image, second: Image) -> _Pair:
    cells, modes, floor, window = _layout()
    fy = np.fft.fftfreq(_SIDE_PX)[:, None]
    fx = np.fft.fftfreq(_SIDE_PX)[None, :]
    a, b = (np.fft.fft2(_contrast(frame) * window) for frame in (first, second))
    shift_y, shift_x = _shift(a, b)
    b = b * np.exp(-2j * math.pi * (fx * shift_x + fy * shift_y))
    power_a, power_b = np.abs(a) ** 2, np.abs(b) ** 2
    product = (a * np.conj(b)).real
    noise = 0.5 * (float(power_a[floor].mean()) + float(power_b[floor].mean()))
    sums = [
        np.bincount(cells.ravel() + 1, weights=part.ravel(), minlength=modes.size + 1)[1:].astype(
            np.float64
        )
        for part in (power_a, power_b, product)
    ]
    return _Pair(sums[0], sums[1], sums[2], modes, max(noise, 1e-12))


@dataclass(frozen=True, slots=True)
class _Model:
    places_dof: tuple[float, float]
    scale: float  # blur radius, pixels per DOF
    shape: Shape
    error: float


def _transfer(x: F64, shape: Shape) -> F64:
    """Of a blur of radius R at frequency f, x = f R; sign and all."""
    if shape == "gauss":
        return np.exp(-0.5 * (math.pi * x) ** 2)  # the disc's second moment
    grid, values = _disc()
    return np.interp(x, grid, values, right=0.0)


@functools.cache
def _disc() -> tuple[F64, F64]:
    """2 J1(2 pi x) / (2 pi x), as the transform of a disc's projection, a half ellipse."""
    grid = np.arange(0.0, 12.0, 0.01)
    place = (np.arange(400) + 0.5) / 400.0
    width = np.sqrt(1.0 - place**2)
    values = np.cos(2.0 * math.pi * grid[:, None] * place) @ width / width.sum()
    return grid, values


def _shift(
    first: npt.NDArray[np.complex128], second: npt.NDArray[np.complex128]
) -> tuple[float, float]:
    """Down and right that the second must go to lie on the first: peak of the correlation.

    Not whitened: one of the two is blurred, and its high frequencies are noise.
    """
    product = first * np.conj(second)
    product[0, 0] = 0.0
    near = np.r_[0 : _MOST_SHIFT_PX + 1, -_MOST_SHIFT_PX:0]
    correlation = np.fft.ifft2(product).real
    small = correlation[np.ix_(near, near)]
    row, col = np.unravel_index(int(np.argmax(small)), small.shape)
    found = []
    for axis, at in enumerate((int(near[row]), int(near[col]))):
        other = (int(near[row]), int(near[col]))
        left, middle, right = (
            float(correlation[(at + d, other[1]) if axis == 0 else (other[0], at + d)])
            for d in (-1, 0, 1)
        )
        bend = left - 2.0 * middle + right
        found.append(at + (0.5 * (left - right) / bend if bend < 0.0 else 0.0))
    return found[0], found[1]


def _contrast(pixels: Image) -> npt.NDArray[np.float32]:
    grey = pixels.astype(np.float32)
    if grey.ndim == 3:
        grey = grey @ np.array([0.299, 0.587, 0.114], np.float32)
    row, col = ((size - _SIDE_PX) // 2 for size in grey.shape)
    grey = grey[row : row + _SIDE_PX, col : col + _SIDE_PX]
    spread = float(grey.std())
    mean = float(grey.mean())
    return np.ascontiguousarray((grey - mean) / max(mean, 1e-3 * spread, 1e-6), dtype=np.float32)


@functools.cache
def _layout() -> tuple[npt.NDArray[np.intp], F64, npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Cell of each mode (-1: none), modes a cell, the noise's modes, window."""
    fy = np.fft.fftfreq(_SIDE_PX)[:, None]
    fx = np.fft.fftfreq(_SIDE_PX)[None, :]
    radius = np.hypot(fx, fy)
    edges = _edges()
    band = np.searchsorted(edges, radius, side="right") - 1
    sector = np.round(np.arctan2(fy, fx) / (math.pi / _SECTORS)).astype(np.intp) % _SECTORS
    inside = (band >= 0) & (band < _BANDS)
    cells = np.where(inside, band * _SECTORS + sector, -1).astype(np.intp)
    modes = np.bincount(cells.ravel() + 1, minlength=_BANDS * _SECTORS + 1)[1:].astype(np.float64)
    floor = (radius >= 0.46) & (radius < 0.5)
    window = cv2.createHanningWindow((_SIDE_PX, _SIDE_PX), cv2.CV_32F)
    return cells, modes, floor, np.asarray(window, np.float32)


def _edges() -> F64:
    return np.geomspace(2.5 / _SIDE_PX, 0.42, _BANDS + 1)


def _most_probable(
    pair: _Pair, model: _Model, reach: float, stig: float
) -> tuple[float, float, float]:
    """Defocus and both astigmatisms, as commands from the place in hand: by grids, then finer."""
    z = np.linspace(-reach, reach, 161)
    best = _best_of(pair, model, z, np.zeros(1), np.zeros(1))
    if stig > 0.0:
        coarse = np.linspace(-stig, stig, 9)
        best = _best_of(pair, model, z[::4], coarse, coarse)
    step, stig_step = 2.0 * reach / 160.0 * (4.0 if stig > 0.0 else 1.0), stig / 4.0
    for _ in range(4):
        around = np.linspace(-1.0, 1.0, 9)
        steps = around * stig_step if stig > 0.0 else np.zeros(1)
        best = _best_of(pair, model, best[0] + around * step, best[1] + steps, best[2] + steps)
        step, stig_step = step / 3.0, stig_step / 3.0
    return best


def _best_of(pair: _Pair, model: _Model, z: F64, x: F64, y: F64) -> tuple[float, float, float]:
    grid = np.stack(np.meshgrid(z, x, y, indexing="ij"), axis=-1).reshape(-1, 3)
    edges = _edges()
    radius = np.repeat(np.sqrt(edges[:-1] * edges[1:]), _SECTORS)[:, None]
    angle = np.tile(np.arange(_SECTORS) * (2.0 * math.pi / _SECTORS), _BANDS)[:, None]
    transfer = []
    for place in model.places_dof:
        off = place - grid[:, 0]
        a, b = -grid[:, 1], -grid[:, 2]
        turned = a * np.cos(angle) + b * np.sin(angle)
        blur2 = (off**2 + a**2 + b**2) + 2.0 * off * turned
        x_turns = model.scale * radius * np.sqrt(np.maximum(blur2, 0.0))
        transfer.append(_transfer(x_turns, model.shape))
    m1, m2 = transfer
    n = np.maximum(pair.modes, 1e-9)[:, None]
    first, second, product = (part[:, None] for part in (pair.first, pair.second, pair.product))
    norm = np.maximum(m1**2 + m2**2, 1e-12)
    along = (m1**2 * first + m2**2 * second + 2.0 * m1 * m2 * product) / norm
    across = np.maximum(first + second - along, 0.0)
    noise = pair.noise + model.error**2 * (first + second) / n
    signal = np.maximum(along / n, noise)
    log_likelihood = -n * np.log(signal) - along / signal - across / noise
    total = log_likelihood.sum(axis=0)
    return tuple(float(v) for v in grid[int(np.argmax(total))])  # type: ignore[return-value]
