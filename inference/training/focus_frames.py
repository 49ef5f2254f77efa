"""Frames to learn focus from: random objects, blurred by geometric probes, seen by any camera.

On purpose not the simulated microscope: probes are spots of geometry (Gaussian, disc, truncated
Gaussian, cone) with glare and astigmatism, a depth of field is anything from a third of a pixel of
blur to four pixels, and the camera may be a counting detector or one with a response curve, a
demosaicing blur, sharpening, clipping and a JPEG behind it. What a network learned here has to
hold for an instrument with a wave-optical probe that it never saw.

Everything follows from the seed of a block, whoever computes it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.focus.aenet import FEATURES, LEAST_PRESENCE, features, presence
from inference.focus.blur import SHAPES, transfer
from inference.focus.spectrum import SIDE_PX, power_of
from inference.training.focus_objects import DIRECTION, FIELD_PX, FREQUENCY, Plane, random_object
from inference.training.focus_outliers import random_outlier

_GEOMETRIC: Final = SHAPES[:4]
_MOST_RADIUS_PX: Final = 80.0
_MOST_DEFOCUS_DOF: Final = 40.0
_LUT_STEP: Final = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """What a network learns from, one row an example.

    Each blurred field is seen twice, by another camera or at another exposure: what the two frames
    say must agree.
    """

    features: npt.NDArray[np.float32]  # (n, FEATURES)
    defocus_dof: npt.NDArray[np.float32]  # (n,), absolute; -1 where the image is an outlier
    partner: npt.NDArray[np.int64]  # (n,), row of the same field's other frame; its own where none


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of work that one process does from one seed."""

    seed: tuple[int, ...]
    kinds: tuple[str, ...]  # of objects, or of outliers
    objects: int
    fields_each: int  # defocused fields of each object, two frames of each; 0: outliers, one each


def joined(parts: Sequence[Examples]) -> Examples:
    """Examples of several blocks as one."""
    starts = np.cumsum([0, *(len(part.features) for part in parts)])
    return Examples(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.defocus_dof for part in parts]),
        np.concatenate([part.partner + start for part, start in zip(parts, starts, strict=False)]),
    )


def make_examples(block: Block) -> Examples:
    """Blur and expose random objects, or draw outliers; what shows nothing is left out."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([2_021, *block.seed])
    rows: list[npt.NDArray[np.float32]] = []
    defocus: list[float] = []
    partner: list[int] = []

    def keep(frames: Sequence[Plane], z_dof: float) -> None:
        seen = []
        for frame in frames:
            level = power_of(frame)
            if level.mean > 0.0 and presence(level) >= LEAST_PRESENCE:
                seen.append(features(level, frame))
        first = len(rows)
        rows.extend(seen)
        defocus.extend([z_dof] * len(seen))
        partner.extend([first + 1, first] if len(seen) == 2 else [first] * len(seen))

    for index in range(block.objects):
        kind = block.kinds[index % len(block.kinds)]
        if block.fields_each == 0:
            keep([random_outlier(rng, kind)], -1.0)
            continue
        spectrum = np.fft.rfft2(random_object(rng, kind)).astype(np.complex64)
        dof_px = _dof_px(rng)
        for _ in range(block.fields_each):
            z_dof = _random_defocus(rng, dof_px)
            keep(random_pair(random_field(spectrum, z_dof, dof_px, rng), rng), z_dof)
    return Examples(
        np.array(rows, dtype=np.float32).reshape(-1, FEATURES),
        np.array(defocus, dtype=np.float32),
        np.array(partner, dtype=np.int64),
    )


def _dof_px(rng: np.random.Generator) -> float:
    """Radius of blur at 1 DOF: 1 px where the pixel sets the depth of field, which is usual."""
    if rng.random() < 0.8:
        return math.exp(0.2 * rng.normal())
    return float(np.exp(rng.uniform(math.log(0.3), math.log(4.0))))


def _random_defocus(rng: np.random.Generator, dof_px: float) -> float:
    most = min(_MOST_RADIUS_PX / dof_px, _MOST_DEFOCUS_DOF)
    return min(float(rng.uniform(0.0, most) if rng.random() < 0.5 else rng.exponential(3.0)), most)


@functools.cache
def _curve(shape: str) -> npt.NDArray[np.float32]:
    x = np.arange(0.0, 12.0, _LUT_STEP)
    return transfer(shape, x, np.ones_like(x)).astype(np.float32)


def random_field(
    spectrum: npt.NDArray[np.complex64], z_dof: float, dof_px: float, rng: np.random.Generator
) -> Plane:
    """Brightness of an object at a defocus, (256, 256), through random optics."""
    shape = str(rng.choice(_GEOMETRIC))
    radius_px = z_dof * dof_px * math.exp(0.1 * rng.normal())
    astigmatism_px = float(rng.exponential(0.5)) * dof_px if rng.random() < 0.5 else 0.0
    axis = rng.uniform(0.0, math.pi)
    along = radius_px**2 + astigmatism_px**2
    both = 2.0 * radius_px * astigmatism_px
    squared = along + both * np.cos(2.0 * (DIRECTION - np.float32(axis)))
    x = FREQUENCY * np.sqrt(np.maximum(squared, 0.0))
    curve = _curve(shape)
    kept = curve[np.minimum(x * np.float32(1.0 / _LUT_STEP), len(curve) - 1).astype(np.int32)]
    probe_px = rng.uniform(0.3, 0.5) * dof_px if dof_px > 1.2 else rng.uniform(0.15, 0.6)
    kept = kept * np.exp(np.float32(-2.0 * (math.pi * probe_px) ** 2) * FREQUENCY**2)
    if rng.random() < 0.3:  # glare, scattered electrons
        share, wide_px = np.float32(rng.uniform(0.0, 0.3)), rng.uniform(5.0, 60.0)
        glare = np.exp(np.float32(-2.0 * (math.pi * wide_px) ** 2) * FREQUENCY**2)
        kept = (1.0 - share) * kept + share * glare
    blurred = np.fft.irfft2(spectrum * kept, s=(FIELD_PX, FIELD_PX))
    row, col = (int(v) for v in rng.integers(0, SIDE_PX, 2))
    clean = np.maximum(blurred[row : row + SIDE_PX, col : col + SIDE_PX], 0.0)
    clean = clean.astype(np.float32, copy=False)
    if rng.random() < 0.3:
        clean = clean * _shading(rng)
    return np.asarray(clean, dtype=np.float32)


def random_pair(field: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Two frames of one field: different detectors, or one camera at two exposures."""
    match int(rng.integers(4)):
        case 0:
            return _counted(field, rng), _counted(field, rng)
        case 1:
            return _counted(field, rng), _photographed(field, rng, _exposure(field, rng))
        case _:
            camera = int(rng.integers(2**31))
            return (
                _photographed(field, rng, _exposure(field, rng), camera),
                _photographed(field, rng, _exposure(field, rng), camera),
            )


def _exposure(field: Plane, rng: np.random.Generator) -> float:
    """Of full scale at brightness 1; now and then a good part of the pixels is clipped."""
    brightest = float(np.quantile(field, rng.choice([0.8, 0.9, 0.98, 1.0])))
    return float(np.exp(rng.uniform(math.log(0.1), math.log(1.15)))) / max(brightest, 1e-6)


def _shading(rng: np.random.Generator) -> Plane:
    u = np.linspace(-1.0, 1.0, SIDE_PX, dtype=np.float32)
    slope = rng.uniform(-0.25, 0.25, 2)
    fall = 1.0 - rng.uniform(0.0, 0.3) * (u[None, :] ** 2 + u[:, None] ** 2) / 2.0
    shade = fall * (1.0 + slope[0] * u[None, :] + slope[1] * u[:, None])
    return np.asarray(shade, dtype=np.float32)


def _normal(rng: np.random.Generator, sd: float) -> Plane:
    return rng.standard_normal((SIDE_PX, SIDE_PX), dtype=np.float32) * np.float32(sd)


def _soft(plane: Plane, sigma_px: float) -> Plane:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma_px), dtype=np.float32)


def _counted(clean: Plane, rng: np.random.Generator) -> Plane:
    """An electron detector: Poisson counts, lines that differ, a gain, an offset, a gamma."""
    dose = float(np.exp(rng.uniform(math.log(3.0), math.log(1_500.0))))
    lines = 1.0 + 0.004 * rng.standard_normal((SIDE_PX, 1), dtype=np.float32)
    if rng.random() < 0.2:  # rows that start too early or too late
        shifts = np.clip(0.4 * rng.standard_normal(SIDE_PX), -1.0, 1.0).astype(np.float32)[:, None]
        beside = np.roll(clean, 1, axis=1)
        clean = np.where(shifts >= 0, clean + shifts * (beside - clean), clean)
    counts = rng.poisson(np.maximum(clean * lines, 0.0) * dose).astype(np.float32)
    counts += _normal(rng, 0.7)
    counts += np.float32(dose * rng.uniform(0.0, 0.3))
    counts = np.maximum(counts, 0.0)
    if rng.random() < 0.3:
        counts = counts ** np.float32(rng.uniform(0.6, 1.5))
    if rng.random() < 0.5:  # brightness and contrast set for 8 bits, not always well
        low, high = np.quantile(counts, [rng.uniform(0.0, 0.02), 1.0 - rng.uniform(0.0, 0.03)])
        span = max(float(high - low), 1e-6) * rng.uniform(0.9, 3.0)
        base = low - rng.uniform(0.0, 0.5) * span
        counts = np.rint(np.clip((counts - base) / span * 255.0, 0.0, 255.0))
    return np.asarray(counts, dtype=np.float32)


def _photographed(
    clean: Plane, noise_rng: np.random.Generator, exposure: float, camera: int | None = None
) -> Plane:
    """A camera: exposure with clipping, noise, a response curve and what its software does.

    camera: which one; None for any.
    """
    rng = noise_rng if camera is None else np.random.default_rng(camera)
    electrons = float(np.exp(rng.uniform(math.log(100.0), math.log(100_000.0))))  # at full scale
    light = clean * np.float32(exposure) + np.float32(rng.uniform(0.0, 0.03))
    noise_sd = np.sqrt(np.maximum(light, 0.0) / np.float32(electrons))
    dark = float(rng.uniform(1.0, 12.0)) / electrons
    noise = noise_sd * _normal(noise_rng, 1.0) + _normal(noise_rng, dark)
    if rng.random() < 0.6:  # demosaicing: neighbours share what each counted
        noise = _soft(noise, float(rng.uniform(0.35, 1.1)))
        light = _soft(light, float(rng.uniform(0.2, 0.7)))
    image = np.clip(light + noise, 0.0, 1.0)
    curve = int(rng.integers(3))
    if curve == 0:
        image = image ** np.float32(1.0 / rng.uniform(1.4, 2.6))
    elif curve == 1:  # a shoulder and a toe
        gamma = np.float32(1.0 / rng.uniform(1.0, 2.4))
        image = image**gamma
        image = image + np.float32(rng.uniform(0.0, 1.0)) * image * (1 - image) * (2 * image - 1)
    if rng.random() < 0.4:  # sharpening, with its halos
        wide = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 2.5)))
        image = image + np.float32(rng.uniform(0.2, 1.5)) * (image - wide)
    if rng.random() < 0.15:
        image = cv2.medianBlur(np.asarray(image, dtype=np.float32), 3)
    image = np.rint(np.clip(image, 0.0, 1.0) * 255.0)
    if rng.random() < 0.5:
        quality = int(rng.integers(40, 99))
        done, data = cv2.imencode(
            ".jpg", image.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        if done:
            image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    return np.asarray(image, dtype=np.float32)
