"""Images that no focus should be read from: what AENet learns to call unfamiliar, and its exam.

`SEEN` are shown to the network while it learns, `UNSEEN` only when it is measured. Whatever looks
like a photograph of a specimen is not here: text in focus is sharp, but a network that learned from
specimens has no business saying by how many depths of field.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np

from inference.focus.spectrum import SIDE_PX
from inference.training.focus_objects import Plane, random_object


def random_outlier(rng: np.random.Generator, kind: str) -> Plane:
    """One image of no use, (256, 256), grey levels of about 8 bits, noise and offset included."""
    plane = {**SEEN, **UNSEEN}[kind](rng)
    plane = plane - plane.min()
    plane = plane / max(float(plane.max()), 1e-6) * rng.uniform(60.0, 235.0)
    plane = plane + rng.uniform(0.0, 20.0)
    if kind not in _EXACT:
        plane = plane + rng.normal(0.0, _between(rng, 0.1, 6.0), plane.shape)
    return np.asarray(np.rint(np.clip(plane, 0.0, 255.0)), dtype=np.float32)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _grid() -> tuple[Plane, Plane]:
    u = np.arange(SIDE_PX, dtype=np.float32)
    return u[None, :] + 0 * u[:, None], u[:, None] + 0 * u[None, :]


def _specimen(rng: np.random.Generator) -> Plane:
    kind = str(rng.choice(["leaves", "lines", "phases", "power-law", "relief", "spots"]))
    plane = random_object(rng, kind)[:SIDE_PX, :SIDE_PX]
    blur_px = _between(rng, 0.3, 8.0)
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), blur_px), dtype=np.float32)


def _gratings(rng: np.random.Generator) -> Plane:
    x, y = _grid()
    plane = 0.0 * x
    for _ in range(int(rng.integers(1, 4))):
        angle = rng.uniform(0.0, math.pi)
        pitch = _between(rng, 2.5, 60.0)
        wave = (x * math.cos(angle) + y * math.sin(angle)) * 2.0 * math.pi / pitch
        plane = plane + np.cos(wave + rng.uniform(0.0, 6.0))
    if rng.random() < 0.4:
        plane = np.sign(plane)
    return np.asarray(plane, dtype=np.float32)


def _coloured_noise(rng: np.random.Generator) -> Plane:
    """Noise of the read-out alone, as filters and enlargement leave it: no specimen at all."""
    low, high = sorted(rng.uniform(0.03, 0.5, 2))
    noise = rng.standard_normal((SIDE_PX, SIDE_PX), dtype=np.float32)
    spectrum = np.fft.rfft2(noise)
    f = np.hypot(np.fft.rfftfreq(SIDE_PX)[None, :], np.fft.fftfreq(SIDE_PX)[:, None])
    spectrum *= np.exp(-((f / high) ** 8)) * (1.0 - np.exp(-((f / low) ** 4)))
    return np.fft.irfft2(spectrum, s=(SIDE_PX, SIDE_PX)).astype(np.float32)


def _enlarged(rng: np.random.Generator) -> Plane:
    """Few pixels blown up to squares; blown up smoothly, they would be what a blur leaves."""
    times = _between(rng, 3.0, 12.0)
    side = max(int(SIDE_PX / times), 12)
    small = cv2.resize(_specimen(rng), (side, side), interpolation=cv2.INTER_AREA)
    blown_up = cv2.resize(small, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_NEAREST)
    return np.asarray(blown_up, dtype=np.float32)


def _posterised(rng: np.random.Generator) -> Plane:
    plane = _specimen(rng)
    low, high = np.quantile(plane, [0.02, 0.98])
    levels = int(rng.integers(2, 6))
    steps = np.clip((plane - low) / max(high - low, 1e-6), 0.0, 1.0) * levels
    return np.asarray(np.floor(steps), dtype=np.float32)


def _filtered(rng: np.random.Generator) -> Plane:
    """Noise that a median has drawn into patches, as painting filters do."""
    plane = _specimen(rng)
    low, high = np.quantile(plane, [0.005, 0.995])
    noisy = (plane - low) / max(high - low, 1e-6) * 220.0 + rng.normal(
        0.0, _between(rng, 20.0, 60.0), plane.shape
    )
    image = np.clip(noisy, 0.0, 255.0).astype(np.uint8)
    painted = cv2.medianBlur(image, int(rng.choice([9, 13, 17])))
    return np.asarray(painted, dtype=np.float32)


def _text(rng: np.random.Generator) -> Plane:
    page = np.zeros((SIDE_PX, SIDE_PX), dtype=np.uint8)
    size = _between(rng, 0.3, 1.6)
    letters = list(string.ascii_letters + string.digits + "    .,")
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX]))
    for row in range(int(-4 * size), SIDE_PX + 30, max(int(34 * size), 12)):
        line = "".join(rng.choice(letters, 60))
        cv2.putText(page, line, (-8, row), font, size, (255.0,), max(1, int(2 * size)), cv2.LINE_AA)
    return (page if rng.random() < 0.5 else 255 - page).astype(np.float32)


def _bar_code(rng: np.random.Generator) -> Plane:
    pitch = int(rng.integers(3, 16))
    side = SIDE_PX // pitch + 1
    shape = (side, side) if rng.random() < 0.5 else (1, side)
    cells = (rng.random(shape) > 0.5).astype(np.float32)
    return np.asarray(
        np.broadcast_to(
            np.kron(cells, np.ones((SIDE_PX if shape[0] == 1 else pitch, pitch))),
            (SIDE_PX if shape[0] == 1 else side * pitch, side * pitch),
        )[:SIDE_PX, :SIDE_PX],
        dtype=np.float32,
    )


def _zone_plate(rng: np.random.Generator) -> Plane:
    x, y = _grid()
    at = rng.uniform(0.0, SIDE_PX, 2)
    squared = np.square(x - np.float32(at[0])) + np.square(y - np.float32(at[1]))
    return np.asarray(np.cos(squared * _between(rng, 0.0008, 0.01)), dtype=np.float32)


def _spot_pattern(rng: np.random.Generator) -> Plane:
    """Diffraction: a lattice of points that fade from a bright centre."""
    x, y = _grid()
    plane = np.exp(-np.hypot(x - 128, y - 128) / _between(rng, 8.0, 60.0))
    a = rng.uniform(10.0, 40.0) * np.exp(1j * rng.uniform(0.0, math.pi))
    b = a * rng.uniform(0.7, 1.3) * np.exp(1j * rng.uniform(1.0, 2.1))
    width = np.float32(_between(rng, 0.8, 3.0))
    for i in range(-12, 13):
        for j in range(-12, 13):
            at = i * a + j * b + 128 * (1 + 1j)
            if 0 <= at.real < SIDE_PX and 0 <= at.imag < SIDE_PX:
                row, col = int(at.imag), int(at.real)
                plane[row, col] += 40.0 * math.exp(-0.15 * math.hypot(i, j)) * rng.uniform(0.3, 1.5)
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), float(width)), dtype=np.float32)


def _edge_map(rng: np.random.Generator) -> Plane:
    """Not an image any more: its outlines."""
    plane = _specimen(rng)
    low, high = np.quantile(plane, [0.01, 0.99])
    image = np.clip((plane - low) / max(high - low, 1e-6) * 255.0, 0.0, 255.0).astype(np.uint8)
    return np.asarray(cv2.Canny(image, 40.0, 90.0), dtype=np.float32)


SEEN: Final[Mapping[str, Callable[[np.random.Generator], Plane]]] = MappingProxyType(
    {
        "coloured noise": _coloured_noise,
        "enlarged": _enlarged,
        "filtered": _filtered,
        "gratings": _gratings,
        "posterised": _posterised,
    }
)
UNSEEN: Final[Mapping[str, Callable[[np.random.Generator], Plane]]] = MappingProxyType(
    {
        "bar code": _bar_code,
        "diffraction spots": _spot_pattern,
        "edge map": _edge_map,
        "text": _text,
        "zone plate": _zone_plate,
    }
)
_EXACT: Final = frozenset({"enlarged", "posterised", "filtered", "edge map"})
