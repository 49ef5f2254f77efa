"""One frame restored, whatever its colours, by what the settings chose.

Each colour has its own noise, hence its own restorer. A restorer with a memory is told to forget
where the caller knows that the next frame cannot continue the last, and by itself where size or
type change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.api import BadImage
from inference.restore.api import Frame as GreyFrame
from inference.restore.api import LiveRestorer, NoiseModel, Restored, Restorer
from inference.restore.channels import in_type_of
from inference.restore.colour import noise_for_filters

Pixels = npt.NDArray[Any]  # (h, w) or (h, w, channels)


@dataclass(frozen=True, slots=True)
class RestorerChoice:
    """A restorer by its name, made anew for every stream and colour."""

    name: str
    make: Callable[[], LiveRestorer]
    # The `Restored.method`s that it makes when all is well; any other one is a fallback.
    expected: frozenset[str]
    scale: int = 1  # pixels of the answer to one of the frame, either way


@dataclass(frozen=True, slots=True, eq=False)
class RestoredFrame:
    """What was computed from one frame; to be labelled as computed wherever it is shown."""

    image: Pixels  # in the frame's own type, read-only; its shape times the choice's scale
    channels: tuple[Restored, ...]
    method: str  # what made it, each filter once
    is_fallback: bool  # another filter than the one asked for made it
    reason: str  # why another one, or what is to be known of it; "" when all is well
    in_distribution: bool
    effective_frames: float  # averaged by variance; 1 without a memory


class FrameRestorer:
    """Restores the frames of one stream, in their order; called from one thread at a time."""

    def __init__(self, choice: RestorerChoice) -> None:
        """Without a memory of other streams."""
        self.choice = choice
        self._channels: list[LiveRestorer] = []
        self._last: tuple[tuple[int, ...], np.dtype[Any]] | None = None

    def reset(self) -> None:
        """The next frame shows another scene."""
        for one in self._channels:
            one.reset()

    def restore(self, pixels: Pixels) -> RestoredFrame:
        """Restore the next frame. Raises BadImage for what is none."""
        if pixels.ndim not in (2, 3):
            raise BadImage(f"needs (h, w) or (h, w, channels), got {pixels.shape}")
        planes = pixels[..., None] if pixels.ndim == 2 else pixels
        if (kind := (pixels.shape, pixels.dtype)) != self._last:
            self._channels = [self.choice.make() for _ in range(planes.shape[2])]
            self._last = kind
        try:
            answers = tuple(
                one.push(np.ascontiguousarray(planes[..., at]))
                for at, one in enumerate(self._channels)
            )
        except BaseException:
            self._last = None  # in what state it was left, nobody knows
            raise
        images = [one.image for one in answers]
        image = in_type_of(images[0] if pixels.ndim == 2 else np.stack(images, axis=-1), pixels)
        image.flags.writeable = False
        methods = tuple(dict.fromkeys(one.method for one in answers))
        return RestoredFrame(
            image=image,
            channels=answers,
            method=", ".join(methods),
            is_fallback=not self.choice.expected.issuperset(methods),
            reason="; ".join(dict.fromkeys(one.reason for one in answers if one.reason)),
            in_distribution=all(one.in_distribution for one in answers),
            effective_frames=max(1.0, min(one.effective_frames for one in self._channels)),
        )


class EachAlone:
    """A restorer without a memory, as a `LiveRestorer`."""

    def __init__(self, inner: Restorer) -> None:
        """Every frame is restored by itself."""
        self._inner = inner
        self._frames = 0.0

    @property
    def name(self) -> str:
        """The inner one's."""
        return self._inner.name

    @property
    def effective_frames(self) -> float:
        """1 after the first."""
        return self._frames

    @property
    def drift_px(self) -> tuple[float, float]:
        """Nothing is followed."""
        return 0.0, 0.0

    def push(self, frame: GreyFrame, noise: NoiseModel | None = None) -> Restored:
        """Restore it."""
        self._frames = 1.0
        return self._inner.restore(frame, noise or noise_for_filters(frame))

    def reset(self) -> None:
        """There is nothing to forget."""
        self._frames = 0.0
