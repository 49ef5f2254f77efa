"""What a restoring network learns from: clean frames, and noise drawn anew each time.

The noise: counting, at a dose drawn anew; read noise; a camera's steps. Now and then it is a little
alike from pixel to pixel, or differs over the frame as where a moving average has seen some places
more often than others. How much of it there is, is told to the network with an error, as it is when
it has been estimated from the frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inference.restore.anchor import anchored, shown
from inference.restore.api import Grey, NoiseModel
from inference.restore.views import enlarged

F32 = npt.NDArray[np.float32]

_COLOURED: Final = 0.12  # share of frames
_AVERAGED: Final = 0.2
_STEPPED: Final = 0.12
_READ: Final = 0.4
_MANY_E: Final = 40.0
_FRAME_SIDES_PX: Final = (160, 160, 192, 256)  # of what is drawn from a scene, by chance
_TOLD_ERROR: Final = 0.05  # of the variance, one standard deviation


@dataclass(frozen=True, slots=True, eq=False)
class CleanScene:
    """A frame without noise, and the doses it may be seen at."""

    family: str
    level: npt.NDArray[np.uint16]  # (h, w), of the span below: half the memory
    low: float  # level 0
    high: float  # level 65,535
    least_e: float  # electrons a pixel where the level is 1
    most_e: float

    @classmethod
    def of(cls, family: str, level: Grey, least_e: float, most_e: float) -> CleanScene:
        """From a frame of floats."""
        low, high = float(level.min()), float(level.max())
        steps = np.rint((level - np.float32(low)) * np.float32(65_535.0 / max(high - low, 1e-9)))
        return cls(family, steps.astype(np.uint16), low, high, least_e, most_e)

    def clean(self) -> Grey:
        """The frame as float32."""
        step = (self.high - self.low) / 65_535.0
        return np.asarray(self.level * np.float32(step) + np.float32(self.low), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One noisy frame; electrons a pixel."""

    noisy: Grey  # (h, w)
    truth: Grey  # (scale h, scale w)
    noise: NoiseModel | Grey  # as the network will be told


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the network is shown and what it should say."""

    seen: F32  # (n, CHANNELS, h / 2, w / 2)
    target: F32  # (n, scale h, scale w), truth - estimate, in units of the estimate's error


Expose: TypeAlias = Callable[[Grey, float, np.random.Generator], Drawn]  # a clean frame at a dose


def noisy_frame(clean: Grey, dose_e: float, rng: np.random.Generator, *, plain: bool) -> Drawn:
    """Expose a clean frame; plain: counting noise alone, told without an error."""
    truth = clean * np.float32(dose_e)
    counts = _counted(truth, rng)
    if plain:
        return Drawn(counts, truth, NoiseModel(1.0, 0.0, 0.0))
    read_e = float(math.exp(rng.uniform(math.log(0.2), math.log(4.0)))) * (rng.random() < _READ)
    noise = counts - truth
    if read_e:
        noise += np.float32(read_e) * rng.standard_normal(truth.shape, np.float32)
    way = rng.random()
    told = math.exp(0.5 * _TOLD_ERROR * rng.standard_normal())
    if way < _COLOURED:
        blurred = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.25, 0.5)))
        told *= float(rng.uniform(0.9, 1.0)) * float(blurred.std() / max(float(noise.std()), 1e-9))
        noise = blurred
    elif way < _COLOURED + _AVERAGED:
        share = _averaged(rng, truth.shape)
        variance = np.maximum(truth, np.float32(0.02)) + np.float32(read_e**2)
        sigma = np.sqrt(cv2.blur(variance, (9, 9))) * share
        return Drawn(truth + share * noise, truth, np.asarray(sigma * np.float32(told), np.float32))
    noisy = truth + noise
    step_e = 0.0
    if way > 1.0 - _STEPPED:
        step_e = float(np.ptp(noisy)) / 255.0
        noisy = np.rint(noisy / np.float32(step_e)) * np.float32(step_e)
    read = math.sqrt(read_e**2 + step_e**2 / 12.0)
    return Drawn(noisy.astype(np.float32), truth, NoiseModel(told**2, 0.0, told * read))


def _counted(truth: Grey, rng: np.random.Generator) -> Grey:
    """Electrons; where there are many everywhere, Gauss's law is ten times as fast as Poisson's."""
    if float(truth.min()) < _MANY_E:
        return rng.poisson(truth).astype(np.float32)
    noise = rng.standard_normal(truth.shape, np.float32)
    return np.asarray(np.rint(truth + np.sqrt(truth) * noise), np.float32)


_NOISE_ALONE: Final[Expose] = partial(noisy_frame, plain=False)


def batch(
    scenes: Sequence[CleanScene],
    count: int,
    side_px: int,
    rng: np.random.Generator,
    expose: Expose = _NOISE_ALONE,
) -> Batch:
    """Crops of noisy frames, two of each; turned and mirrored by chance.

    side_px: of a crop of the frame. expose: what is made of a clean frame; its noise alone.
    """
    seen: list[F32] = []
    target: list[F32] = []
    while len(seen) < count:
        scene = scenes[int(rng.integers(len(scenes)))]
        clean = _turned(_part(scene.clean(), rng), rng)
        dose_e = math.exp(rng.uniform(math.log(scene.least_e), math.log(scene.most_e)))
        drawn = expose(clean, dose_e, rng)
        planes, wanted = lesson(drawn)
        height, width = drawn.noisy.shape
        scale = wanted.shape[0] // height
        for _ in range(2):
            row, column = (2 * int(rng.integers((s - side_px) // 2 + 1)) for s in (height, width))
            half = side_px // 2
            rows, columns = row // 2, column // 2
            seen.append(planes[:, rows : rows + half, columns : columns + half])
            target.append(
                wanted[
                    scale * row : scale * (row + side_px),
                    scale * column : scale * (column + side_px),
                ]
            )
    return Batch(np.stack(seen[:count]), np.stack(target[:count]))


def lesson(drawn: Drawn) -> tuple[F32, Grey]:
    """What the network is shown of a whole frame, and what it should answer."""
    anchor = anchored(drawn.noisy, drawn.noise)
    scale = drawn.truth.shape[0] // drawn.noisy.shape[0]
    estimate, unit = enlarged(anchor.image, scale), enlarged(anchor.unit, scale)
    return shown(drawn.noisy, anchor), (drawn.truth - estimate) / unit


def _part(clean: Grey, rng: np.random.Generator) -> Grey:
    side_px = int(rng.choice(_FRAME_SIDES_PX))
    row, column = (int(rng.integers(max(side - side_px, 0) + 1)) for side in clean.shape)
    return clean[row : row + side_px, column : column + side_px]


def _turned(clean: Grey, rng: np.random.Generator) -> Grey:
    turned = np.rot90(clean, int(rng.integers(4)))
    if rng.random() < 0.5:
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def _averaged(rng: np.random.Generator, shape: tuple[int, ...]) -> Grey:
    """Share of one frame's noise that's left: low over most of the frame, 1 where it changed."""
    cells = rng.standard_normal((int(rng.integers(3, 20)),) * 2).astype(np.float32)
    bumps = cv2.resize(cells, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    settled = 1.0 / math.sqrt(rng.uniform(1.0, 24.0))
    changed = np.clip((bumps - np.float32(rng.uniform(0.5, 2.5))) * np.float32(4.0), 0.0, 1.0)
    return np.asarray(settled + (1.0 - settled) * changed, np.float32)
