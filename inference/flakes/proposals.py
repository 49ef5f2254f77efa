"""Where flakes may lie, and what FlakeNet's posterior says there: all proposals at once.

A crowded photograph has a hundred proposals, and a dozen small numpy calls for each of them cost
more than the network. So they are painted into one image of numbers at half resolution; insides,
rims and means follow from that image for all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import Detection
from inference.flakes.evidence import CLASSES, DIRT_CLASS, LEAST_CONTENT, NO_CONTENT
from inference.flakes.frame import PreparedFrame

FloatArray = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.intp]

LOGITS = 4 * len(CLASSES)
"""Planes of the network's answer before those of the borders."""

_WORTH_LOOKING = -3.0  # log odds against bare substrate below which a place is left out
_KERNEL3 = np.ones((3, 3), dtype=np.uint8)
_INNER_PX = 12  # half-resolution pixels that a judgement should rest on
_OWN_SHARE = 0.45  # probability from which a pixel belongs to a region of the network's own


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """What the network says of one photograph, for one material, on the half-resolution grid."""

    best: npt.NDArray[np.uint8]  # (h, w) index into CLASSES
    places: npt.NDArray[np.int32]  # (h // 2, w // 2) its n in `shares`, -1: bare substrate
    shares: FloatArray  # (4, len(CLASSES), n) probabilities of the four pixels of a place
    borders: FloatArray  # (4, n) probability of a border
    oddity: float  # the odder, the larger

    def border(self, rows: Numbers, columns: Numbers) -> FloatArray:
        """Probability of a border at half-resolution pixels, (n,)."""
        place, part = self._where(rows, columns)
        found = np.zeros(place.size, dtype=np.float32)
        there = place >= 0
        found[there] = self.borders[part[there], place[there]]
        return found

    def share(self, number: int, rows: Numbers, columns: Numbers) -> FloatArray:
        """Probability of one class at half-resolution pixels, (n,)."""
        place, part = self._where(rows, columns)
        found = np.full(place.size, float(number == 0), dtype=np.float32)
        there = place >= 0
        found[there] = self.shares[part[there], number, place[there]]
        return found

    def plane(self, number: int, rows: slice, columns: slice) -> FloatArray:
        """Probability of one class in a box of half-resolution pixels."""
        y, x = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        place = self.places[np.ix_(y >> 1, x >> 1)]
        part = ((y & 1) * 2)[:, None] + (x & 1)
        if not self.shares.size:
            return np.full(place.shape, float(number == 0), dtype=np.float32)
        bare = np.float32(number == 0)
        return np.where(place < 0, bare, self.shares[part, number, np.maximum(place, 0)])

    def _where(self, rows: Numbers, columns: Numbers) -> tuple[npt.NDArray[np.int32], Numbers]:
        return self.places[rows >> 1, columns >> 1], (rows & 1) * 2 + (columns & 1)


def decoded(answer: FloatArray, height: int, width: int) -> Posterior:
    """The network's planes, (OUTPUTS, rows, columns), for a half-size image of (height, width)."""
    rows, columns = answer.shape[1:]
    logits = answer[:LOGITS].reshape(4, len(CLASSES), rows * columns)
    other = logits[0, 1].copy()
    for k in range(4):
        for number in range(1, len(CLASSES)):
            np.maximum(other, logits[k, number], out=other)
    bare = np.minimum(np.minimum(logits[0, 0], logits[1, 0]), np.minimum(*logits[2:, 0]))
    looked_at = np.flatnonzero(other - bare > _WORTH_LOOKING)
    places = np.full(rows * columns, -1, dtype=np.int32)
    places[looked_at] = np.arange(looked_at.size)
    shares = np.take(logits, looked_at, axis=2)  # (4, classes, n)
    largest = shares[:, 0].copy()
    winner = np.zeros(largest.shape, dtype=np.uint8)
    for number in range(1, len(CLASSES)):
        winner[shares[:, number] > largest] = number
        np.maximum(largest, shares[:, number], out=largest)
    shares -= largest[:, None]
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=1)[:, None]
    best = np.zeros((2 * rows, 2 * columns), dtype=np.uint8)
    y, x = np.divmod(looked_at, columns)
    for k in range(4):
        best[2 * y + k // 2, 2 * x + k % 2] = winner[k]
    borders = np.take(answer[LOGITS : LOGITS + 4].reshape(4, -1), looked_at, axis=1)
    there = np.zeros(rows * columns, dtype=np.float32)
    there[looked_at] = 1.0 - shares[:, 0].mean(axis=0)
    there[there <= NO_CONTENT] = 0.0
    content = there.reshape(rows // 8, 8, columns // 8, 8).mean(axis=(1, 3)) + LEAST_CONTENT
    return Posterior(
        best=best[:height, :width],
        places=places.reshape(rows, columns),
        shares=shares,
        borders=np.asarray(1.0 / (1.0 + np.exp(-borders)), dtype=np.float32),
        oddity=float((content * answer[-1, ::8, ::8]).sum() / content.sum()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A proposal: where something may lie, and which contrast it has."""

    mask: npt.NDArray[np.bool_]  # (h, w) inside its box, pixels of the photograph
    left: int
    top: int
    contrast_rgb: tuple[float, float, float]
    physics: Detection | None  # None: the network's own

    @classmethod
    def of(cls, detection: Detection) -> Region:
        """A terrace of the physics' segmentation."""
        return cls(
            detection.mask,
            detection.box_x_px,
            detection.box_y_px,
            detection.contrast_rgb,
            detection,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Measures:
    """What the posterior says of regions, one row each."""

    shares: FloatArray  # (n, len(CLASSES)) mean over the inner pixels; all 0 where there is none
    inner_border: FloatArray  # (n,) mean probability of a border there
    rim_border: FloatArray  # (n,) and along the edge
    rim_px: npt.NDArray[np.int64]  # (n,) half-resolution pixels along the edge


def measured(regions: Sequence[Region], posterior: Posterior) -> Measures:
    """Means over each region, deep inside where it has enough pixels there.

    Where two regions overlap, the common pixels count for the later one.
    """
    count = len(regions)
    height, width = posterior.best.shape
    labels = np.zeros((height + 2, width + 2), dtype=np.uint16)
    for number, region in enumerate(regions, 1):
        top, left = (region.top + 1) // 2, (region.left + 1) // 2
        small = region.mask[region.top & 1 :: 2, region.left & 1 :: 2]
        small = small[: height - top, : width - left]
        box = labels[top + 1 : top + 1 + small.shape[0], left + 1 : left + 1 + small.shape[1]]
        box[small] = number
    once = _shrunk(labels)
    twice = _shrunk(once)
    where = np.flatnonzero(labels)
    owner = labels.ravel()[where]
    is_once, is_twice = once.ravel()[where] > 0, twice.ravel()[where] > 0
    enough = [
        np.bincount(owner[kept], minlength=count + 1) >= _INNER_PX for kept in (is_twice, is_once)
    ]
    inside = np.where(enough[0][owner], is_twice, ~enough[1][owner] | is_once)
    rows, columns = np.divmod(where, width + 2)
    rows, columns = rows - 1, columns - 1
    shares = np.zeros((count, len(CLASSES)), dtype=np.float32)
    mine, y, x = owner[inside], rows[inside], columns[inside]
    for number in range(len(CLASSES)):
        shares[:, number] = _means(mine, posterior.share(number, y, x), count)
    rim = ~is_once
    return Measures(
        shares=shares,
        inner_border=_means(mine, posterior.border(y, x), count),
        rim_border=_means(owner[rim], posterior.border(rows[rim], columns[rim]), count),
        rim_px=np.bincount(owner[rim], minlength=count + 1)[1:],
    )


def _shrunk(labels: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Each label without the pixels that touch another one, or none."""
    changes = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, _KERNEL3)
    return np.where(changes == 0, labels, 0).astype(np.uint16)


def _means(owner: npt.NDArray[np.uint16], values: FloatArray, count: int) -> FloatArray:
    """Mean of each owner 1 ... count, 0 where it has nothing."""
    sums = np.bincount(owner, weights=values, minlength=count + 1)[1:]
    return (sums / np.maximum(np.bincount(owner, minlength=count + 1)[1:], 1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Connected half-resolution pixels of one class."""

    number: int  # its class
    label: int
    left: int
    top: int
    width: int
    height: int


def own_regions(posterior: Posterior, frame: PreparedFrame, min_area_px: float) -> list[Region]:
    """Connected pixels of one flake class, as the network alone would cut them."""
    pieces, labels = _pieces(posterior.best, min_area_px)
    if not pieces:
        return []
    contrasts = _contrasts(labels, frame, len(pieces))
    found = []
    for piece, contrast in zip(pieces, contrasts, strict=True):
        cut = _at_full_size(piece, labels, posterior)
        if cut is not None:
            mask, left, top = cut
            found.append(Region(mask, left, top, contrast, None))
    return found


def _pieces(
    best: npt.NDArray[np.uint8], min_area_px: float
) -> tuple[list[_Piece], npt.NDArray[np.uint16]]:
    """Connected pixels of each flake class where there are enough, and the image of them."""
    labels = np.zeros(best.shape, dtype=np.uint16)
    parts = np.zeros(best.shape, dtype=np.int32)
    first = np.zeros(len(CLASSES), dtype=np.int64)  # of each class's numbers, less one
    count = 0
    for number in range(1, DIRT_CLASS):
        found, of_class = cv2.connectedComponents(
            cv2.inRange(best, (number,), (number,)), connectivity=4
        )
        first[number] = count
        count += found - 1
        if found > 1:
            parts += np.asarray(of_class, dtype=np.int32)
    where = np.flatnonzero(parts)
    classes = best.ravel()[where]
    owner = parts.ravel()[where] + first[classes]
    large = 4 * np.bincount(owner, minlength=count + 1) >= min_area_px
    large[0] = False
    numbers = np.where(large, np.cumsum(large), 0)
    keep = large[owner]
    where, owner, classes = where[keep], numbers[owner[keep]], classes[keep]
    labels.ravel()[where] = owner
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(1, int(large.sum()) + 1))
    if not starts.size:
        return [], labels
    rows, columns = np.divmod(where[order], best.shape[1])
    left, top = np.minimum.reduceat(columns, starts), np.minimum.reduceat(rows, starts)
    width = np.maximum.reduceat(columns, starts) - left + 1
    height = np.maximum.reduceat(rows, starts) - top + 1
    boxes = np.stack([classes[order][starts], left, top, width, height], axis=1).tolist()
    pieces = [_Piece(n, k, x, y, w, h) for k, (n, x, y, w, h) in enumerate(boxes, 1)]
    return pieces, labels


def _contrasts(
    labels: npt.NDArray[np.uint16], frame: PreparedFrame, count: int
) -> list[tuple[float, float, float]]:
    """Median contrast of each label's inner pixels, of all where these are few."""
    inner = _shrunk(np.pad(labels, 1))[1:-1, 1:-1]
    enough = np.bincount(inner.ravel(), minlength=count + 1) >= _INNER_PX
    where = np.flatnonzero(labels)
    owner = labels.ravel()[where]
    use = (inner.ravel()[where] > 0) | ~enough[owner]
    where, owner = where[use], owner[use]
    order = np.argsort(owner, kind="stable")
    where = where[order]
    ratio = frame.half.reshape(-1, 3)[where] * frame.inverse_half.reshape(-1, 3)[where]
    starts = np.searchsorted(owner[order], np.arange(2, count + 1))
    found = []
    for part in np.split(ratio, starts):
        red, green, blue = (np.median(part, axis=0) - 1.0).tolist()
        found.append((red, green, blue))
    return found


def _at_full_size(
    piece: _Piece, labels: npt.NDArray[np.uint16], posterior: Posterior
) -> tuple[npt.NDArray[np.bool_], int, int] | None:
    """Where the class's interpolated probability is high enough: mask, left, top."""
    height, width = labels.shape
    x0, y0 = max(piece.left - 1, 0), max(piece.top - 1, 0)
    x1, y1 = min(piece.left + piece.width + 1, width), min(piece.top + piece.height + 1, height)
    part = (labels[y0:y1, x0:x1] == piece.label).view(np.uint8)
    share = posterior.plane(piece.number, slice(y0, y1), slice(x0, x1))
    share *= cv2.dilate(part, _KERNEL3)
    size = (2 * (x1 - x0), 2 * (y1 - y0))
    fine = cv2.resize(share, size, interpolation=cv2.INTER_LINEAR)
    mask = _largest(np.asarray(fine > _OWN_SHARE, dtype=np.bool_))
    return None if mask is None else (mask, 2 * x0, 2 * y0)


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
    """Its largest connected piece; None where it is empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    if count < 2:
        return None
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), dtype=np.bool_)
