"""One picture to judge restorers by eye: a row a frame, raw first, then each method, then truth.

Each row has one scale of grey, taken from the first restored frame, so that a method that changes
brightness shows it. Centre crops, one pixel of the frame to one of the sheet: shrinking hides
noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.restore.api import Grey, Restorer
from inference.restore.colour import noise_for_filters
from inference.restore.evaluate import Scene, default_restorers

_CAPTION_PX: Final = 20
_GAP_PX: Final = 4
_INK: Final = 235


def contact_sheet(
    scenes: Sequence[Scene],
    restorers: Sequence[Restorer] | None = None,
    side_px: int = 256,
) -> npt.NDArray[np.uint8]:
    """Draw the sheet, (h, w) grey; computed frames bear the name of what made them."""
    asked = tuple(restorers) if restorers is not None else default_restorers()
    has_truth = any(scene.truth is not None for scene in scenes)
    columns = 1 + len(asked) + has_truth
    pitch_x, pitch_y = side_px + _GAP_PX, side_px + _CAPTION_PX
    sheet = np.zeros((pitch_y * len(scenes), pitch_x * columns - _GAP_PX), dtype=np.uint8)
    for row, scene in enumerate(scenes):
        noise = scene.noise or noise_for_filters(scene.frame)
        answers = [restorer.restore(scene.frame, noise) for restorer in asked]
        named = [(f"{scene.name}: raw", scene.frame.astype(np.float32))]
        named += [
            (one.method if one.method == asker.name else f"{asker.name}: {one.method}", one.image)
            for asker, one in zip(asked, answers, strict=True)
        ]
        if scene.truth is not None:
            named.append(("truth", scene.truth))
        low, high = np.percentile(_centre(named[1][1], side_px), [0.5, 99.5])
        for column, (caption, image) in enumerate(named):
            crop = (_centre(image, side_px) - low) * (255.0 / max(float(high - low), 1e-6))
            tile = np.clip(crop, 0.0, 255.0).astype(np.uint8)
            top, left = row * pitch_y, column * pitch_x
            at = (left + 2, top + _CAPTION_PX - 6)
            room = sheet[:, left : left + side_px]
            words = cv2.putText(
                np.zeros_like(room), caption, (2, at[1]), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK
            )
            room[top : top + _CAPTION_PX] = words[top : top + _CAPTION_PX]
            top += _CAPTION_PX
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _centre(image: Grey, side_px: int) -> Grey:
    row, column = (max(side - side_px, 0) // 2 for side in image.shape)
    return image[row : row + side_px, column : column + side_px]
