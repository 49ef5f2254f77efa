"""Pictures of an evaluation to look at: hits, misses and false alarms drawn on the photographs.

Green: a terrace of the truth that was found (the detection's outline). Red: one that was missed.
Yellow: a detection that no terrace of the truth matches; on sets whose labels leave terraces out,
many of these are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import ImageRGB
from inference.flakes.scoring import Instance, iou_matrix, match_by_iou

_FOUND, _MISSED, _FALSE = (60, 220, 60), (255, 60, 60), (255, 225, 40)


def contact_sheet(
    pixels: ImageRGB,
    predicted: Sequence[Instance],
    true: Sequence[Instance],
    score_cut: float = 0.0,
) -> npt.NDArray[np.uint8]:
    """(h, w, 3) RGB: the photograph with outlines; detections below `score_cut` are left out."""
    kept = [p for p in predicted if p.score >= score_cut]
    matches = match_by_iou(iou_matrix(kept, true), [p.score for p in kept])
    hit, met = {m.predicted for m in matches}, {m.true for m in matches}
    step = 2 ** (8 * pixels.dtype.itemsize - 8)
    sheet = np.ascontiguousarray((pixels // step).astype(np.uint8))
    for i, instance in enumerate(true):
        if i not in met:
            _outline(sheet, instance, _MISSED, "")
    for i, instance in enumerate(kept):
        label = "" if instance.layers is None else f"{instance.layers}L {instance.score:.2f}"
        _outline(sheet, instance, _FOUND if i in hit else _FALSE, label)
    return sheet


def _outline(
    sheet: npt.NDArray[np.uint8], instance: Instance, colour: tuple[int, int, int], label: str
) -> None:
    contours, _ = cv2.findContours(
        instance.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    offset = (instance.box_x_px, instance.box_y_px)
    cv2.drawContours(sheet, contours, -1, colour, 2, offset=offset)
    if label:
        at = (instance.box_x_px, max(12, instance.box_y_px - 4))
        cv2.putText(sheet, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)


def write_sheet(path: Path, sheet: npt.NDArray[np.uint8]) -> None:
    """Write a sheet as JPEG, so that a folder of them stays small. Raises OSError."""
    _, data = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
