"""Frames without their noise, by a small network that corrects a linear estimate.

The network (`inference.training.restore`) is shown what `anchor` works out of a frame and answers
with what the linear estimate still lacks and how far off the sum may be. It never sees digital
numbers: a frame's gain and offset cannot matter. Blind: the noise is estimated from the frame
itself unless it's told, as a model or, for averages of many frames, pixel by pixel.

Frames beyond a thousand pixels a side go through the network in tiles. Each is cut with a margin as
wide as the network looks, so tiles meet as if there had been one frame; the linear estimate is made
of the whole frame at once.

What it answers is to be judged by `guard` before anybody sees it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from inference.api import BadImage, BadModel
from inference.engine import Card, Engine
from inference.restore.anchor import CHANNELS, PHASES, anchored, padded, shown
from inference.restore.api import Frame, Grey, NoiseModel, Restored, grey_of
from inference.restore.colour import noise_for_filters

TILE_PX: Final = 1_024
MARGIN_PX: Final = 64  # the network looks 48 px far; a multiple of its places
MOST_CORRECTION: Final = 6.0  # root mean square, in errors of the estimate: training stays below 3


class NetworkDenoiser:
    """One network on one engine; a `MapRestorer`."""

    def __init__(self, engine: Engine) -> None:
        """Raises BadModel where the engine's network is none of these."""
        self._engine = engine
        self._sigma_factor = figure_of(engine.card, "sigma_factor")
        self._name = f"network_{engine.card.name.removeprefix('denoise_')}"

    @property
    def name(self) -> str:
        """network_live, network_quality ..."""
        return self._name

    @property
    def takes_sigma(self) -> bool:
        """It does."""
        return True

    def restore(
        self, frame: Frame, noise: NoiseModel | None = None, sigma: Grey | None = None
    ) -> Restored:
        """Restore one frame of any size.

        sigma: (h, w), in place of the noise's. 90 % of all errors lie within 1.645 times the
        answer's own sigma, on simulated frames of kinds that training has not seen.
        """
        grey = grey_of(frame)
        if sigma is not None and sigma.shape != grey.shape:
            raise BadImage(f"needs a sigma of {grey.shape}, got {sigma.shape}")
        wider = padded(grey)
        if sigma is not None:
            anchor = anchored(wider, padded(sigma))
            reason = ""
        else:
            model = noise or noise_for_filters(frame)
            anchor = anchored(wider, model)
            reason = "" if model.in_distribution else model.reason
        answer = tiled(self._engine, shown(wider, anchor), anchor.image.shape)
        height, width = grey.shape
        correction, log_sigma = answer[:, :height, :width]
        unit = anchor.unit[:height, :width]
        if not reason and is_far(correction, MOST_CORRECTION):
            reason = "the network corrects far more than it has learnt to"
        return Restored(
            image=anchor.image[:height, :width] + correction * unit,
            sigma=np.exp(log_sigma) * (unit * self._sigma_factor),
            in_distribution=not reason,
            method=self._name,
            reason=reason,
        )


def figure_of(card: Card, name: str) -> np.float32:
    """What the card of such a network measured. Raises BadModel for another kind or without it."""
    if card.input.shape != (-1, CHANNELS, -1, -1) or card.output.shape != (-1, 2, -1, -1):
        raise BadModel(f"{card.name} takes {card.input.shape}, gives {card.output.shape}")
    if name not in card.figures:
        raise BadModel(f"{card.name}: its card does not say {name}")
    return np.float32(card.figures[name])


def tiled(
    engine: Engine, seen: npt.NDArray[np.float32], shape: tuple[int, ...], scale: int = 1
) -> Grey:
    """A network's two planes for a padded frame of `shape`, (2, scale h, scale w).

    seen: (CHANNELS, h / PHASES, w / PHASES).
    """
    height, width = shape
    if max(height, width) <= TILE_PX + 2 * MARGIN_PX:
        whole: Grey = engine.run(seen[None])[0]
        return whole
    answer = np.empty((2, scale * height, scale * width), np.float32)
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            rows = max(top - MARGIN_PX, 0), min(top + TILE_PX + MARGIN_PX, height)
            columns = max(left - MARGIN_PX, 0), min(left + TILE_PX + MARGIN_PX, width)
            tile = seen[
                :,
                rows[0] // PHASES : rows[1] // PHASES,
                columns[0] // PHASES : columns[1] // PHASES,
            ]
            found = engine.run(np.ascontiguousarray(tile[None]))[0]
            bottom, right = min(top + TILE_PX, height), min(left + TILE_PX, width)
            answer[:, scale * top : scale * bottom, scale * left : scale * right] = found[
                :,
                scale * (top - rows[0]) : scale * (bottom - rows[0]),
                scale * (left - columns[0]) : scale * (right - columns[0]),
            ]
    return answer


def is_far(correction: Grey, most: float) -> bool:
    """Whether a network is outside what it was trained on; most: root mean square, in its units."""
    mean_square = float(np.mean(np.square(correction)))
    return not mean_square <= most**2  # nan too
