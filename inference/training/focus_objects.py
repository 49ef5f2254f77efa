"""Objects to learn focus from: random planes of every sort, from smooth to periodic, drawn by rule.

On purpose none of the simulated microscope's specimens: noise with a power law, phases with edges,
leaves that cover one another, spots, lines, crystals' grains, lattices with faults, shaded relief
with highlights, soft hills with hardly a detail, and fields that are mostly empty. `KINDS` names
them; some may be kept from training, to see what the network makes of what it never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inference.focus.spectrum import SIDE_PX

Plane: TypeAlias = npt.NDArray[np.float32]

FIELD_PX: Final = 2 * SIDE_PX
_FREQUENCY_Y: Final = np.fft.fftfreq(FIELD_PX).astype(np.float32)[:, None]
_FREQUENCY_X: Final = np.fft.rfftfreq(FIELD_PX).astype(np.float32)[None, :]
FREQUENCY: Final = np.hypot(_FREQUENCY_X, _FREQUENCY_Y)  # cycles per pixel, of rfft2 of a field
_PLAIN: Final = ("leaves", "lines", "phases", "power-law")  # what may lie under others
DIRECTION: Final = np.arctan2(_FREQUENCY_Y, _FREQUENCY_X + 0.0 * _FREQUENCY_Y)


def random_object(rng: np.random.Generator, kind: str) -> Plane:
    """Brightness of a sharp object, (512, 512), mean 1, nowhere below 0.

    Contrast is a few to many tens of percent; now and then highlights are tens of times brighter.
    """
    size_px = _between(rng, 3.0, 60.0)
    plane = KINDS[kind](rng, size_px)
    if rng.random() < 0.25:  # two things in one field
        other = KINDS[str(rng.choice(_PLAIN))](rng, _between(rng, 3.0, 60.0))
        plane = plane + np.float32(_between(rng, 0.05, 1.0)) * other
    if rng.random() < 0.15:  # only a part of the field holds anything
        mask = _power_law(rng, 0.0, knee=0.004, slope=4.0) > rng.normal()
        plane = np.asarray(plane * mask, dtype=np.float32)
    smooth = cv2.GaussianBlur(plane, (0, 0), float(rng.uniform(0.3, 0.9)))
    signal = np.asarray(smooth, dtype=np.float32)
    if rng.random() < 0.35:  # edges that shine, as tilted surfaces do
        edges = np.asarray(np.abs(cv2.Laplacian(signal, cv2.CV_32F)), dtype=np.float32)
        signal = signal + np.float32(rng.uniform(0.5, 3.0)) * edges
    signal = _standard(signal)
    if rng.random() < 0.2:  # lit from aside: bright against dark
        brightness = np.exp(np.float32(_between(rng, 0.3, 2.0)) * np.clip(signal, -3.0, 4.0))
    else:
        contrast = np.float32(_between(rng, 0.03, 0.6))
        brightness = np.maximum(1.0 + contrast * signal, 0.0)
    if rng.random() < 0.15:
        brightness = brightness + _highlights(rng)
    return np.asarray(brightness / brightness.mean(), dtype=np.float32)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Evenly in the logarithm."""
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _standard(plane: Plane) -> Plane:
    means, spreads = cv2.meanStdDev(plane)
    return np.asarray((plane - means[0, 0]) / max(spreads[0, 0], 1e-6), dtype=np.float32)


def _empty() -> Plane:
    return np.zeros((FIELD_PX, FIELD_PX), dtype=np.float32)


def _noise(rng: np.random.Generator) -> npt.NDArray[np.complex64]:
    spectrum = np.fft.rfft2(rng.standard_normal((FIELD_PX, FIELD_PX), dtype=np.float32))
    return spectrum.astype(np.complex64, copy=False)


def _shaped(spectrum: npt.NDArray[np.complex64]) -> Plane:
    plane = np.fft.irfft2(spectrum, s=(FIELD_PX, FIELD_PX))
    return _standard(plane.astype(np.float32, copy=False))


def _power_law(
    rng: np.random.Generator, size_px: float, knee: float | None = None, slope: float | None = None
) -> Plane:
    low = rng.uniform(0.003, 0.05) if knee is None else knee
    fall = rng.uniform(1.2, 4.0) if slope is None else slope
    amplitude = (FREQUENCY**2 + np.float32(low**2)) ** np.float32(-0.25 * fall)
    stretch = 1.0 + rng.uniform(0.0, 0.8) * np.cos(2.0 * (DIRECTION - rng.uniform(0.0, math.pi)))
    return _shaped(_noise(rng) * amplitude * stretch.astype(np.float32))


def _phases(rng: np.random.Generator, size_px: float) -> Plane:
    steep = _between(rng, 0.5, 6.0)
    return np.asarray(np.tanh(steep * _power_law(rng, size_px) + rng.normal()), dtype=np.float32)


def _hills(rng: np.random.Generator, size_px: float) -> Plane:
    """Soft all over: in focus it looks like something blurred."""
    soft_px = _between(rng, 2.0, 24.0)
    plane = KINDS[str(rng.choice(["phases", "leaves", "spots", "lines"]))](rng, 2.0 * soft_px)
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), soft_px), dtype=np.float32)


def _leaves(rng: np.random.Generator, size_px: float) -> Plane:
    plane = _empty()
    for _ in range(min(int(3.0 * (FIELD_PX / size_px) ** 2), 3_000)):
        x, y = (int(v) for v in rng.uniform(0, FIELD_PX, 2))
        axes = np.maximum(size_px * rng.uniform(0.3, 1.2, 2), 1.0).astype(int)
        shade = float(rng.uniform())
        if rng.random() < 0.5:
            axis = (int(axes[0]), int(axes[1]))
            cv2.ellipse(plane, (x, y), axis, float(rng.uniform(0, 180)), 0, 360, shade, -1)
        else:
            box = cv2.boxPoints(((x, y), (2.0 * axes[0], 2.0 * axes[1]), float(rng.uniform(0, 90))))
            cv2.fillConvexPoly(plane, box.astype(np.int32), shade)
    return plane


def _spots(rng: np.random.Generator, size_px: float) -> Plane:
    plane = _empty()
    domed = rng.random() < 0.4
    for _ in range(int(_between(rng, 8.0, 1_200.0))):
        x, y = (int(v) for v in rng.uniform(0, FIELD_PX, 2))
        radius = max(1, int(0.4 * size_px * rng.uniform(0.4, 1.3)))
        shade = float(rng.uniform(0.3, 1.0))
        cv2.circle(plane, (x, y), radius, shade, -1)
        if domed and radius > 2:  # a ball, lit from above
            shift = int(0.3 * radius)
            cv2.circle(plane, (x - shift, y - shift), max(radius // 3, 1), 1.3 * shade, -1)
    return plane


def _lines(rng: np.random.Generator, size_px: float) -> Plane:
    plane = _empty()
    main = rng.uniform(0.0, math.pi)
    scatter = rng.uniform(0.02, 1.5)
    for _ in range(int(rng.integers(10, 250))):
        x, y = rng.uniform(0, FIELD_PX, 2)
        angle = main + scatter * rng.normal()
        reach = size_px * rng.uniform(1.0, 12.0)
        ends = [
            (int(x + s * reach * math.cos(angle)), int(y + s * reach * math.sin(angle)))
            for s in (-0.5, 0.5)
        ]
        width = max(1, int(0.3 * size_px * rng.uniform(0.3, 1.0)))
        cv2.line(plane, ends[0], ends[1], float(rng.uniform(0.2, 1.0)), width)
    return plane


def _grains(rng: np.random.Generator, size_px: float) -> Plane:
    """Cells about random seeds, each with its shade; walls between them, or none."""
    across = max(size_px, 6.0)
    seeds = np.full((FIELD_PX, FIELD_PX), 255, dtype=np.uint8)
    many = min(max(int((FIELD_PX / across) ** 2), 4), 4_000)
    at = rng.integers(0, FIELD_PX, (many, 2))
    seeds[at[:, 0], at[:, 1]] = 0
    far, labels = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    shades = rng.standard_normal(int(labels.max()) + 1).astype(np.float32)
    plane: Plane = shades[labels]
    match int(rng.integers(3)):
        case 0:
            return plane
        case 1:
            return np.asarray(plane + 0.3 * far * shades[::-1][labels] / across, dtype=np.float32)
        case _:
            walls = (cv2.Laplacian(plane, cv2.CV_32F) != 0.0).astype(np.float32)
            return np.asarray(0.3 * plane + 2.0 * walls, dtype=np.float32)


def _lattice(rng: np.random.Generator, size_px: float) -> Plane:
    """A pattern that repeats, with faults, on a ground that does not."""
    pitch = _between(rng, 6.0, 64.0)
    u = np.arange(FIELD_PX, dtype=np.float32)
    angle = rng.uniform(0.0, math.pi)
    warp = np.float32(_between(rng, 0.02, 0.6)) * _power_law(rng, size_px, slope=3.5)
    along = u[None, :] * math.cos(angle) + u[:, None] * math.sin(angle)
    across = u[:, None] * math.cos(angle) - u[None, :] * math.sin(angle)
    one = np.cos(2.0 * math.pi * along / pitch + warp)
    two = np.cos(2.0 * math.pi * across / (pitch * rng.uniform(0.7, 1.4)) + warp)
    kind = int(rng.integers(3))
    plane = one if kind == 0 else np.maximum(one, two) if kind == 1 else one + two
    steep = _between(rng, 1.0, 20.0)
    ground = np.float32(_between(rng, 0.03, 0.6)) * _power_law(rng, size_px)
    return np.asarray(np.tanh(steep * (plane - rng.uniform(-0.8, 0.8))) + ground, dtype=np.float32)


def _relief(rng: np.random.Generator, size_px: float) -> Plane:
    """A surface lit from one side; slopes that mirror the lamp shine."""
    if rng.random() < 0.5:
        height = _power_law(rng, size_px, slope=float(rng.uniform(2.5, 4.5)))
    else:
        soft_px = float(rng.uniform(0.7, 3.0))
        height = np.asarray(cv2.GaussianBlur(_leaves(rng, size_px), (0, 0), soft_px), np.float32)
    down, across = np.gradient(height)
    azimuth = rng.uniform(0.0, 2.0 * math.pi)
    slope = _standard(
        np.asarray(across * math.cos(azimuth) + down * math.sin(azimuth), dtype=np.float32)
    )
    shine = np.exp(-np.square(slope - np.float32(rng.uniform(0.5, 2.0))) / 0.1)
    return np.asarray(slope + rng.uniform(0.0, 6.0) * shine, dtype=np.float32)


def _laths(rng: np.random.Generator, size_px: float) -> Plane:
    """Packets of fine parallel plates, each packet with its direction."""
    pick = _grains(rng, 4.0 * size_px)
    plane = _empty()
    u = np.arange(FIELD_PX, dtype=np.float32)
    wobble = _power_law(rng, size_px, slope=3.0)
    for k, edge in enumerate(np.quantile(pick, [0.0, 0.3, 0.6])):
        angle = rng.uniform(0.0, math.pi)
        along = u[None, :] * math.cos(angle) + u[:, None] * math.sin(angle)
        plates = np.cos(2.0 * math.pi * along / max(0.4 * size_px, 3.0) + 2.0 * wobble + k)
        plane = np.where(pick >= edge, np.tanh(3.0 * plates), plane)
    return np.asarray(plane + 0.3 * pick, dtype=np.float32)


def _highlights(rng: np.random.Generator) -> Plane:
    """A few points or streaks, tens of times as bright as the rest."""
    plane = _empty()
    for _ in range(int(_between(rng, 2.0, 60.0))):
        x, y = (int(v) for v in rng.integers(0, FIELD_PX, 2))
        axes = (max(1, int(_between(rng, 0.6, 20.0))), max(1, int(_between(rng, 0.6, 6.0))))
        turn = float(rng.uniform(0.0, 180.0))
        cv2.ellipse(plane, (x, y), axes, turn, 0, 360, _between(rng, 3.0, 60.0), -1)
    return plane


KINDS: Final[Mapping[str, Callable[[np.random.Generator, float], Plane]]] = MappingProxyType(
    {
        "leaves": _leaves,
        "lines": _lines,
        "phases": _phases,
        "power-law": _power_law,
        "grains": _grains,
        "hills": _hills,
        "laths": _laths,
        "lattice": _lattice,
        "relief": _relief,
        "spots": _spots,
    }
)
