"""Pictures of an evaluation to look at: hits, misses and false alarms drawn on the photographs.

Green: a terrace of the truth that was found (the detection's outline). Red: one that was missed.
Yellow: a detection that no terrace of the truth matches; on sets whose labels leave terraces out,
many of these are right. Grey: a detection on a region that nobody judges.

Two forms: a whole photograph with everything on it, and sheets of enlarged crops, one for each
fate, each crop with its own contrast beside it without the outline, as an outline hides the very
edge that one has to look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import ImageRGB
from inference.flakes.evaluate import Evaluation, Fate, ImageResult, Judged
from inference.flakes.masks import read_rgb
from inference.flakes.scoring import Instance, iou_matrix, match_by_iou

Picture = npt.NDArray[np.uint8]

_FOUND, _MISSED, _FALSE, _IGNORED = (60, 220, 60), (255, 60, 60), (255, 225, 40), (170, 170, 170)
_COLOURS: Final[Mapping[Fate, tuple[int, int, int]]] = {
    "hit": _FOUND,
    "miss": _MISSED,
    "false alarm": _FALSE,
    "ignored": _IGNORED,
}
_CROP_PX = 200  # a side, as shown
_LEAST_PX = 60  # of the photograph in a crop
_COLUMNS = 5  # pairs of crops in a row
_CROPS_MOST = 100  # on one sheet


def contact_sheet(
    pixels: ImageRGB,
    predicted: Sequence[Instance],
    true: Sequence[Instance],
    score_cut: float = 0.0,
) -> Picture:
    """(h, w, 3) RGB: the photograph with outlines; detections below `score_cut` are left out."""
    kept = [p for p in predicted if p.score >= score_cut]
    matches = match_by_iou(iou_matrix(kept, true), [p.score for p in kept])
    hit, met = {m.predicted for m in matches}, {m.true for m in matches}
    sheet = _eight_bits(pixels)
    for i, instance in enumerate(true):
        if i not in met:
            _outline(sheet, instance, _MISSED, "")
    for i, instance in enumerate(kept):
        _outline(sheet, instance, _FOUND if i in hit else _FALSE, _label(instance))
    return sheet


def judged_sheet(pixels: ImageRGB, image: ImageResult, score_cut: float = 0.0) -> Picture:
    """The same from an evaluation, with what nobody judges in grey."""
    sheet = _eight_bits(pixels)
    for one in image.judged(score_cut):
        text = "" if one.fate == "miss" else _label(one.instance)
        _outline(sheet, one.instance, _COLOURS[one.fate], text)
    return sheet


def crop_sheet(crops: Iterable[tuple[ImageRGB, Judged]]) -> Picture:
    """(h, w, 3) RGB: enlarged pairs, plain and with the outline; the photograph and the instance.

    At most 100 pairs; what is more is left out.
    """
    tiles = []
    for (pixels, one), _ in zip(crops, range(_CROPS_MOST), strict=False):
        tiles.append(_pair(pixels, one))
    if not tiles:
        return np.full((_CROP_PX, _COLUMNS * 2 * _CROP_PX, 3), 40, dtype=np.uint8)
    while len(tiles) % _COLUMNS:
        tiles.append(np.full_like(tiles[0], 40))
    rows = [np.hstack(tiles[k : k + _COLUMNS]) for k in range(0, len(tiles), _COLUMNS)]
    return np.vstack(rows)


def write_sheets(folder: Path, images: Sequence[Path], found: Evaluation) -> tuple[Path, ...]:
    """Write one picture a photograph, and one sheet of crops a fate. Returns what was written.

    images: the photographs in the evaluation's order. Raises OSError.
    """
    written = []
    for path, image in zip(images, found.images, strict=True):
        written.append(folder / f"{path.stem}.jpg")
        write_sheet(written[-1], judged_sheet(read_rgb(path), image, found.score_cut))
    for fate in _COLOURS:
        crops = list(_crops(images, found, fate))
        if crops:
            written.append(folder / f"all_{fate.replace(' ', '_')}.jpg")
            write_sheet(written[-1], crop_sheet(crops))
    return tuple(written)


def _crops(
    images: Sequence[Path], found: Evaluation, fate: Fate
) -> Iterator[tuple[ImageRGB, Judged]]:
    for path, image in zip(images, found.images, strict=True):
        mine = [one for one in image.judged(found.score_cut) if one.fate == fate]
        if mine:
            pixels = read_rgb(path)
            yield from ((pixels, one) for one in mine)


def _eight_bits(pixels: ImageRGB) -> Picture:
    step = 2 ** (8 * pixels.dtype.itemsize - 8)
    return np.ascontiguousarray((pixels // step).astype(np.uint8))


def _label(instance: Instance) -> str:
    return "" if instance.layers is None else f"{instance.layers}L {instance.score:.2f}"


def _pair(pixels: ImageRGB, one: Judged) -> Picture:
    """A square of the photograph around the instance, plain and with its outline."""
    height, width = one.instance.mask.shape
    side = int(max(1.6 * max(height, width), _LEAST_PX))
    left = one.instance.box_x_px + width // 2 - side // 2
    top = one.instance.box_y_px + height // 2 - side // 2
    x, y = max(left, 0), max(top, 0)
    cut = _eight_bits(pixels[y : max(top + side, y), x : max(left + side, x)])
    low, high = np.percentile(cut, [1, 99]) if cut.size else (0.0, 1.0)
    stretched = np.clip((cut - low) * (255.0 / max(high - low, 12.0)), 0, 255).astype(np.uint8)
    square = np.full((side, side, 3), 40, dtype=np.uint8)
    square[y - top : y - top + cut.shape[0], x - left : x - left + cut.shape[1]] = stretched
    scale = _CROP_PX / side
    plain = cv2.resize(square, (_CROP_PX, _CROP_PX), interpolation=cv2.INTER_CUBIC)
    outlined = plain.copy()
    contours, _ = cv2.findContours(
        one.instance.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    shift = np.array([one.instance.box_x_px - left + 0.5, one.instance.box_y_px - top + 0.5])
    for contour in contours:
        corners = np.round(scale * (contour[:, 0] + shift)).astype(np.int32)
        cv2.polylines(outlined, [corners], True, _COLOURS[one.fate], 1, cv2.LINE_AA)
    said = "" if one.fate == "miss" else _label(one.instance)
    cv2.putText(
        outlined, said, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA
    )
    return np.hstack([np.asarray(plain, dtype=np.uint8), np.asarray(outlined, dtype=np.uint8)])


def _outline(sheet: Picture, instance: Instance, colour: tuple[int, int, int], label: str) -> None:
    contours, _ = cv2.findContours(
        instance.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    offset = (instance.box_x_px, instance.box_y_px)
    cv2.drawContours(sheet, contours, -1, colour, 2, offset=offset)
    if label:
        at = (instance.box_x_px, max(12, instance.box_y_px - 4))
        cv2.putText(sheet, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)


def write_sheet(path: Path, sheet: Picture) -> None:
    """Write a sheet as JPEG, so that a folder of them stays small. Raises OSError."""
    _, data = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
