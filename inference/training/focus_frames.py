"""Frames to learn focus from: random objects, blurred by geometric probes, counted.

On purpose not the simulated microscope: objects here are noise with a power law, leaves that cover
one another, spots and lines, in any size; probes are spots of geometry (Gaussian, disc, truncated
Gaussian, cone). What a network learned here has to hold for an instrument with a wave-optical probe
that it never saw. Real micrographs may be mixed in as objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from inference.focus.aenet import LEAST_PRESENCE, features, presence
from inference.focus.blur import SHAPES, transfer
from inference.focus.spectrum import SIDE_PX, band_powers

_FIELD_PX = 2 * SIDE_PX
_FREQUENCY_Y = np.fft.fftfreq(_FIELD_PX)[:, None]
_FREQUENCY_X = np.fft.rfftfreq(_FIELD_PX)[None, :]
_FREQUENCY = np.hypot(_FREQUENCY_X, _FREQUENCY_Y)
_DIRECTION = np.arctan2(_FREQUENCY_Y, _FREQUENCY_X + 0.0 * _FREQUENCY_Y)
_GEOMETRIC = SHAPES[:4]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """What a network learns from, one row an example."""

    features: npt.NDArray[np.float32]  # (n, FEATURES)
    defocus_dof: npt.NDArray[np.float32]  # (n,), absolute


def make_examples(
    seed: int, objects: int, frames_each: int, micrographs: Sequence[Path] = ()
) -> Examples:
    """Blur and count random objects, `frames_each` times each; what shows nothing is left out."""
    rng = np.random.default_rng([2_021, seed])
    rows, defocus = [], []
    for _ in range(objects):
        spectrum = _object_spectrum(rng, micrographs)
        for _ in range(frames_each):
            z_dof = _random_defocus(rng)
            frame = _frame(spectrum, z_dof, rng)
            level = band_powers(frame, most_binning=1)[0]
            if presence(level) < LEAST_PRESENCE:
                continue
            rows.append(features(level))
            defocus.append(z_dof)
    return Examples(np.array(rows, dtype=np.float32), np.array(defocus, dtype=np.float32))


def _random_defocus(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.0, 30.0) if rng.random() < 0.6 else rng.exponential(3.0))


def _object_spectrum(
    rng: np.random.Generator, micrographs: Sequence[Path]
) -> npt.NDArray[np.complex64]:
    """Spectrum of an object of mean 0, contrast a few to a few tens of percent."""
    kind = int(rng.integers(6 if micrographs else 5))
    size_px = float(np.exp(rng.uniform(math.log(3.0), math.log(60.0))))
    match kind:
        case 0:
            plane = _power_law(rng)
        case 1:
            plane = np.tanh(2.0 * _power_law(rng) + rng.normal())  # phases with edges
        case 2:
            plane = _leaves(rng, size_px)
        case 3:
            plane = _spots(rng, size_px)
        case 4:
            plane = _lines(rng, size_px)
        case _:
            plane = _micrograph(rng, micrographs)
    smooth = cv2.GaussianBlur(plane.astype(np.float32), (0, 0), float(rng.uniform(0.3, 0.9)))
    signal = smooth.astype(np.float64)
    if rng.random() < 0.4:  # edges that shine, as tilted surfaces do
        signal += rng.uniform(0.5, 3.0) * np.abs(cv2.Laplacian(smooth, cv2.CV_32F))
    contrast = float(np.exp(rng.uniform(math.log(0.03), math.log(0.6))))
    signal = (signal - signal.mean()) * (contrast / max(float(signal.std()), 1e-6))
    return np.fft.rfft2(signal).astype(np.complex64)


def _power_law(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    noise = np.fft.rfft2(rng.normal(size=(_FIELD_PX, _FIELD_PX)))
    knee = rng.uniform(0.003, 0.05)
    amplitude = (_FREQUENCY**2 + knee**2) ** (-0.25 * rng.uniform(1.5, 4.0))
    stretch = 1.0 + rng.uniform(0.0, 0.8) * np.cos(2.0 * (_DIRECTION - rng.uniform(0.0, math.pi)))
    plane = np.fft.irfft2(noise * amplitude * stretch, s=(_FIELD_PX, _FIELD_PX))
    result: npt.NDArray[np.float32] = (plane / plane.std()).astype(np.float32)
    return result


def _leaves(rng: np.random.Generator, size_px: float) -> npt.NDArray[np.float32]:
    plane = np.zeros((_FIELD_PX, _FIELD_PX), dtype=np.float32)
    for _ in range(min(int(3.0 * (_FIELD_PX / size_px) ** 2), 4_000)):
        x, y = (int(v) for v in rng.uniform(0, _FIELD_PX, 2))
        axes = np.maximum(size_px * rng.uniform(0.3, 1.2, 2), 1.0).astype(int)
        shade = float(rng.uniform())
        if rng.random() < 0.5:
            axis = (int(axes[0]), int(axes[1]))
            cv2.ellipse(plane, (x, y), axis, float(rng.uniform(0, 180)), 0, 360, shade, -1)
        else:
            box = cv2.boxPoints(((x, y), (2.0 * axes[0], 2.0 * axes[1]), float(rng.uniform(0, 90))))
            cv2.fillConvexPoly(plane, box.astype(np.int32), shade)
    return plane


def _spots(rng: np.random.Generator, size_px: float) -> npt.NDArray[np.float32]:
    plane = np.zeros((_FIELD_PX, _FIELD_PX), dtype=np.float32)
    spots = int(np.exp(rng.uniform(math.log(8), math.log(1_500))))
    for _ in range(spots):
        x, y = (int(v) for v in rng.uniform(0, _FIELD_PX, 2))
        radius = max(1, int(0.4 * size_px * rng.uniform(0.4, 1.3)))
        cv2.circle(plane, (x, y), radius, float(rng.uniform(0.3, 1.0)), -1)
    return plane


def _lines(rng: np.random.Generator, size_px: float) -> npt.NDArray[np.float32]:
    plane = np.zeros((_FIELD_PX, _FIELD_PX), dtype=np.float32)
    main = rng.uniform(0.0, math.pi)
    scatter = rng.uniform(0.02, 1.5)
    for _ in range(int(rng.integers(10, 250))):
        x, y = rng.uniform(0, _FIELD_PX, 2)
        angle = main + scatter * rng.normal()
        reach = size_px * rng.uniform(1.0, 12.0)
        ends = [
            (int(x + s * reach * math.cos(angle)), int(y + s * reach * math.sin(angle)))
            for s in (-0.5, 0.5)
        ]
        width = max(1, int(0.3 * size_px * rng.uniform(0.3, 1.0)))
        cv2.line(plane, ends[0], ends[1], float(rng.uniform(0.2, 1.0)), width)
    return plane


def _micrograph(rng: np.random.Generator, micrographs: Sequence[Path]) -> npt.NDArray[np.float32]:
    """A real image, halved against its own blur and noise, mirrored to the field."""
    path = micrographs[int(rng.integers(len(micrographs)))]
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        message = f"cannot read {path}"
        raise FileNotFoundError(message)
    kept = image[: int(0.9 * image.shape[0])].astype(np.float32)  # the legend is below
    half = cv2.resize(kept, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    half = cv2.GaussianBlur(half, (0, 0), 0.6)
    side = min(SIDE_PX, *half.shape)
    row, col = (int(rng.integers(size - side + 1)) for size in half.shape)
    tile = cv2.resize(half[row : row + side, col : col + side], (SIDE_PX, SIDE_PX))
    tile = np.rot90(tile, int(rng.integers(4)))
    mirrored = np.block([[tile, tile[:, ::-1]], [tile[::-1], tile[::-1, ::-1]]])
    return mirrored.astype(np.float32)


def _frame(
    spectrum: npt.NDArray[np.complex64], z_dof: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """One counted frame, (256, 256), with a gain, an offset and a gamma of its own."""
    shape = _GEOMETRIC[int(rng.integers(len(_GEOMETRIC)))]
    scale = math.exp(0.15 * rng.normal())
    astigmatism = float(rng.exponential(0.5)) if rng.random() < 0.5 else 0.0
    axis = rng.uniform(0.0, math.pi)
    along = z_dof**2 + astigmatism**2 + 2 * z_dof * astigmatism * np.cos(2 * (_DIRECTION - axis))
    radius = scale * np.sqrt(np.maximum(along, 0.0))
    blurred = spectrum * transfer(shape, _FREQUENCY, radius)
    row, col = (int(v) for v in rng.integers(0, SIDE_PX, 2))
    plane = np.fft.irfft2(blurred, s=(_FIELD_PX, _FIELD_PX))
    clean = 1.0 + plane[row : row + SIDE_PX, col : col + SIDE_PX]
    dose = float(np.exp(rng.uniform(math.log(3.0), math.log(1_000.0))))
    rows = 1.0 + 0.004 * rng.normal(size=(SIDE_PX, 1))
    counts = rng.poisson(np.maximum(clean * rows, 0.0) * dose).astype(np.float32)
    counts += rng.normal(0.0, 0.7, counts.shape).astype(np.float32)
    counts += np.float32(dose * rng.uniform(0.0, 0.2))
    gamma = rng.uniform(0.7, 1.4) if rng.random() < 0.3 else 1.0
    result: npt.NDArray[np.float32] = (np.maximum(counts, 0.0) ** gamma).astype(np.float32)
    return result
