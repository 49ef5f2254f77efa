"""Two computed views that an operator may switch on: a frame refocused, and a frame twice as fine.

Both are the restoring network's kin: they start from the same linear estimate of `anchor`, are
shown the same planes, and answer with what that estimate lacks of the sharp frame, and how far off
the sum may be. Blind: neither is told a kernel. The first learnt from defocus and astigmatism that
differ over the frame, the second from frames of twice the pixel size at the same electrons a pixel,
so at a quarter of the dose.

What they show was in no frame. They are views: labelled as computed, never kept in the raw frame's
place, never what a decision rests on. Where a frame is so sharp that there is nothing to undo, or
so strange that the network corrects beyond what it learnt, the linear estimate is shown and said.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import cv2
import numpy as np

from inference.engine import Engine
from inference.restore.anchor import anchored, padded, shown
from inference.restore.api import Frame, Grey, NoiseModel, Restored, grey_of
from inference.restore.colour import noise_for_filters
from inference.restore.network import figure_of, is_far, tiled

ViewName: TypeAlias = Literal["refocus", "magnify"]

MAGNIFIED: Final = 2  # pixels of the finer view to one of the frame, either way
SCALES: Final[dict[ViewName, int]] = {"refocus": 1, "magnify": MAGNIFIED}


class ComputedView:
    """One of the two networks on one engine."""

    def __init__(self, engine: Engine, scale: int) -> None:
        """scale: 1 refocuses, 2 magnifies. Raises BadModel where the network is not for this."""
        self._engine = engine
        self._scale = scale
        self._sigma_factor = figure_of(engine.card, "sigma_factor")
        self._most_correction = float(figure_of(engine.card, "most_correction"))

    @property
    def name(self) -> str:
        """As its card says."""
        return self._engine.card.name

    @property
    def scale(self) -> int:
        """Pixels of the view to one of the frame, either way."""
        return self._scale

    def view(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """What the frame may have looked like, (scale h, scale w); noise: None to estimate it."""
        grey = grey_of(frame)
        model = noise or noise_for_filters(frame)
        reason = "" if model.in_distribution else model.reason
        wider = padded(grey)
        anchor = anchored(wider, model)
        answer = tiled(self._engine, shown(wider, anchor), anchor.image.shape, self._scale)
        height, width = (side * self._scale for side in grey.shape)
        image = enlarged(anchor.image, self._scale)[:height, :width]
        unit = enlarged(anchor.unit, self._scale)[:height, :width]
        correction, log_sigma = answer[:, :height, :width]
        if not reason and is_far(correction, self._most_correction):
            reason = "the network corrects far more than it has learnt to"
        sigma = np.exp(log_sigma) * (unit * self._sigma_factor)
        if reason:
            return Restored(image, sigma, False, f"{self.name}: linear estimate", reason)
        return Restored(image + correction * unit, sigma, True, self.name, "")


def enlarged(plane: Grey, scale: int) -> Grey:
    """A plane with `scale` pixels for each of its own, by cubic interpolation; 1: itself."""
    if scale == 1:
        return plane
    height, width = plane.shape
    bigger = cv2.resize(plane, (scale * width, scale * height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(bigger, np.float32)
