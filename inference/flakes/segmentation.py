"""Cut a photograph into terraces: connected regions of one thickness, with sharp borders.

A cascade, because most of a scan is bare substrate. At half resolution everything that differs from
the substrate AND could be a wanted crystal is boxed; only inside those boxes, packed side by side
into one sheet, is the full resolution looked at. On the sheet:

1. Flat cores: connected pixels with a small colour gradient. They are the interior of something.
2. Each core pixel is placed along the contrast ladder; a core whose pixels crowd in several places
   is cut at the valleys between them. The ladder gives the axis only: an even terrace is never cut
   because its colour lies between two layer numbers.
3. Cores grow until they meet; then every border moves to where the closer of both colours changes,
   half way up the blurred step. Substrate and everything that is no flake (bulk, residue) own cores
   too: the rim of a bulk crystal passes through all colours of the ladder and must not become a
   ring of thin flakes.
4. Neighbours of equal colour are joined, unless a crack or a fold runs right between them.
5. How blurred the photograph is, its own borders tell: the slope of a blurred step of known height.
   A region no wider than the blur whose colour is a mixture of two neighbours' (a crack, a point,
   the band along a step) is nothing of its own and goes to these, px by px.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import ImageRGB
from inference.flakes.background import Background, largest_channel
from inference.flakes.ladder import ColourTable, colour_cells

FloatImage = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Box = tuple[int, int, int, int]  # x, y, width, height in px

_RIM_PX = 6  # true surroundings around each box on the sheet, seen by filters but never labelled
_MARGIN_PX = 8  # substrate kept around a candidate
_CELL_PX = 8  # of the half-size image; candidates are boxed in these cells
_ARC_BINS = 600
_ARC_BIN = 0.005  # contrast units per bin along the ladder
_STEP_LEAST = 0.08  # contrast units: a lower step says little about the blur
_STEPS_LEAST_PX = 30
_BLUR_USUAL_PX = 1.6  # of a photograph with hardly a step, the filters' share included
_CONTACT_LEAST_PX = 3  # a shorter contact makes no neighbour
_ALIKE_SHARE = 0.15  # of a crystal's contrast: others so near are the same one, across a crack
_CRACK_BORDER = 0.5  # of a crack's border is the crystal that it runs through
_MIXED_LEAST = 0.05  # of each of two colours in a mixture
_KERNEL3 = np.ones((3, 3), dtype=np.uint8)
_KERNEL5 = np.ones((5, 5), dtype=np.uint8)
_KERNEL9 = np.ones((9, 9), dtype=np.uint8)
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


PLAUSIBLE, DARK = 1, 2
"""Kinds of colour that candidates are looked for by; 0 is neither."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """Thresholds of the segmentation, in contrast units (I / I_substrate - 1) and px."""

    off: float  # a smaller contrast is substrate; half the thinnest wanted flake's
    flat_gradient: float = 0.022  # per px
    calm_gradient_ratio: float = 0.36
    noise_reference: float = 0.006  # noise for which `flat_gradient` is meant
    valley: float = 0.7  # of the smaller peak: a shallower valley does not separate terraces
    core_px: int = 40
    reach_px: int = 8
    foreign_share: float = 0.6
    foreign_contrast: float = 0.06
    merge_contrast: float = 0.015
    merge_share: float = 0.06  # of the contrast beyond `strong_contrast`, added to it
    strong_contrast: float = 0.5
    crack_contrast: float = 0.012  # of the mean along a border: less is no line at all
    gap_contrast: float = 0.02  # of a single px of a border, to be the flake's own colour,
    gap_share: float = 0.03  # plus this share of the flake's contrast
    gap_px: int = 4  # a shorter stretch of own colour joins nothing
    gap_ratio: float = 0.1  # of the border, likewise
    # Half-widths in blurs below which a region may be a mixture of the colours beside it: along a
    # crack, with one crystal's colour on either side; at a point; along a step.
    crack_blurs: float = 2.5
    point_blurs: float = 1.5
    step_blurs: float = 1.2
    mixture_contrast: float = 0.02  # distance from the line between two colours, to lie on it,
    mixture_share: float = 0.12  # plus this share of the two colours' distance


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """Boxes of a photograph packed side by side, in contrast to the substrate."""

    contrast: FloatImage  # (h, w, 3), median-filtered
    inside: npt.NDArray[np.bool_]  # (h, w) belongs to a box; the rest is rim or empty
    offset_x: npt.NDArray[np.int32]  # (n_slots,) photograph x = sheet x + offset
    offset_y: npt.NDArray[np.int32]
    slots: tuple[Box, ...]  # where on the sheet, rim excluded
    saturated: npt.NDArray[np.bool_]  # (h, w)

    def slot_of(self, x: int, y: int) -> int:
        """Which slot holds a pixel of the sheet."""
        for k, (left, top, width, height) in enumerate(self.slots):
            if left <= x < left + width and top <= y < top + height:
                return k
        raise ValueError(f"no slot holds the sheet's pixel ({x}, {y})")


@dataclass(frozen=True, slots=True, eq=False)
class Terraces:
    """Label image of a sheet with statistics of each label 1 ... n, as arrays of length n."""

    labels: Labels  # (h, w), 0: none
    boxes: npt.NDArray[np.int32]  # (n, 4) x, y, width, height on the sheet
    area_px: npt.NDArray[np.int32]
    inner_px: npt.NDArray[np.int32]  # pixels that the contrast is taken from
    flat_px: npt.NDArray[np.int32]  # core pixels
    contrast_rgb: FloatImage  # (n, 3) median over the inner pixels
    spread: npt.NDArray[np.float32]  # (n,) mean over channels of the inner pixels' robust sigma
    evenness: npt.NDArray[np.float32]  # (n,) share of the px away from the border that are flat
    saturated_px: npt.NDArray[np.int32]
    noise: float  # the substrate's own sigma on this sheet
    blur_px: float  # sigma of a step as the filters leave it


def _components(
    mask: npt.NDArray[np.bool_], least_px: int, connectivity: int = 4
) -> tuple[Labels, int]:
    """Connected components of at least so many px, numbered 1 ... n, and n."""
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=connectivity)
    sizes = np.bincount(labels.ravel()[np.flatnonzero(mask)], minlength=count)
    keep = sizes >= least_px
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return numbers[labels], int(keep.sum())


def candidate_boxes(
    half: ImageRGB,
    background: Background,
    off: float,
    kind_of_colour: npt.NDArray[np.uint8],
    least_half_px: int,
    inverse_half: FloatImage | None = None,
) -> list[Box]:
    """Boxes, in px of the photograph, around whatever might be a wanted flake.

    inverse_half: `background.inverse_half()`, where it is at hand.
    """
    height, width = half.shape[:2]
    smooth = cv2.blur(half, (3, 3))
    inverse = background.inverse_half() if inverse_half is None else inverse_half
    ratio = cv2.multiply(smooth, inverse, dtype=cv2.CV_32F)
    channel_off = off / np.sqrt(3.0) if off < 0.03 else off * 0.6
    bare = cv2.inRange(ratio, (1 - channel_off,) * 3, (1 + channel_off,) * 3)
    there = np.flatnonzero(bare == 0)
    if there.size == 0:
        return []
    rows, columns = -(-height // _CELL_PX), -(-width // _CELL_PX)
    mask = np.zeros((rows * _CELL_PX, columns * _CELL_PX), dtype=np.uint8)
    kinds = kind_of_colour[colour_cells(ratio.reshape(-1, 3)[there] - 1.0)]
    wanted, dark = there[kinds == PLAUSIBLE], there[kinds == DARK]
    mask[wanted // width, wanted % width] = 255
    if dark.size:
        # Along the chip's edge the blur runs through all colours, hundreds of px long.
        edge = np.zeros_like(mask)
        edge[dark // width, dark % width] = 255
        mask[cv2.dilate(edge, _KERNEL9) > 0] = 0
    mask = cv2.erode(mask, _KERNEL3)  # rims of bulk crystals are too thin to survive
    # Mean over 8 x 8 half-size px: a map small enough that finding components costs nothing.
    share = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (share > 0).view(np.uint8), connectivity=8
    )
    weights = share.ravel() * (_CELL_PX * _CELL_PX / 255.0)
    area = np.bincount(labels.ravel(), weights=weights, minlength=count)
    side = 2 * _CELL_PX
    return [
        (side * x, side * y, side * w, side * h)
        for (x, y, w, h, _), px in zip(stats[1:].tolist(), area[1:].tolist(), strict=True)
        if px >= least_half_px
    ]


def merged_boxes(boxes: Sequence[Box], width: int, height: int) -> list[Box]:
    """Grow by the margin, clip to the photograph, join whatever overlaps."""
    if not boxes:
        return []
    grown = np.array(boxes, dtype=np.int64)
    left = np.maximum(grown[:, 0] - _MARGIN_PX, 0)
    top = np.maximum(grown[:, 1] - _MARGIN_PX, 0)
    right = np.minimum(grown[:, 0] + grown[:, 2] + _MARGIN_PX, width)
    bottom = np.minimum(grown[:, 1] + grown[:, 3] + _MARGIN_PX, height)
    todo = sorted(zip(left.tolist(), top.tolist(), right.tolist(), bottom.tolist(), strict=True))
    done: list[tuple[int, int, int, int]] = []
    while todo:
        x0, y0, x1, y1 = todo.pop()
        apart = []
        for other in done:  # which never overlap each other
            if other[0] < x1 and other[2] > x0 and other[1] < y1 and other[3] > y0:
                x0, y0 = min(x0, other[0]), min(y0, other[1])
                x1, y1 = max(x1, other[2]), max(y1, other[3])
            else:
                apart.append(other)
        if len(apart) < len(done):
            todo.append((x0, y0, x1, y1))  # grown: it may reach others now
        else:
            apart.append((x0, y0, x1, y1))
        done = apart
    covered = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in done)
    if covered > 0.6 * width * height:
        return [(0, 0, width, height)]
    return [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in done]


def packed_sheet(
    pixels: ImageRGB, background: Background, boxes: Sequence[Box], full_scale: float
) -> Sheet:
    """Copy the boxes onto one sheet and turn it into contrast."""
    height, width = pixels.shape[:2]
    order = sorted(range(len(boxes)), key=lambda k: -boxes[k][3])
    covered = sum((b[2] + 2 * _RIM_PX) * (b[3] + 2 * _RIM_PX) for b in boxes)
    sheet_width = max(int(1.1 * covered**0.5), max(b[2] for b in boxes) + 2 * _RIM_PX)
    places: list[tuple[int, int]] = [(0, 0)] * len(boxes)
    x = y = shelf = 0
    for k in order:
        w, h = boxes[k][2] + 2 * _RIM_PX, boxes[k][3] + 2 * _RIM_PX
        if x + w > sheet_width:
            x, y, shelf = 0, y + shelf, 0
        places[k] = (x, y)
        x, shelf = x + w, max(shelf, h)
    sheet_height = y + shelf
    raw = np.zeros((sheet_height, sheet_width, 3), dtype=pixels.dtype)
    scale = np.zeros((sheet_height, sheet_width, 3), dtype=np.float32)
    inside = np.zeros((sheet_height, sheet_width), dtype=np.bool_)
    slots = []
    for (bx, by, bw, bh), (px, py) in zip(boxes, places, strict=True):
        x0, y0 = bx - _RIM_PX, by - _RIM_PX
        x1, y1 = bx + bw + _RIM_PX, by + bh + _RIM_PX
        cut = pixels[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            cut = cv2.copyMakeBorder(
                cut,
                max(-y0, 0),
                max(y1 - height, 0),
                max(-x0, 0),
                max(x1 - width, 0),
                cv2.BORDER_REPLICATE,
            )  # type: ignore[assignment]
        raw[py : py + y1 - y0, px : px + x1 - x0] = cut
        scale[py : py + y1 - y0, px : px + x1 - x0] = background.window(x0, y0, x1 - x0, y1 - y0)
        left, top = px + _RIM_PX, py + _RIM_PX
        inside[top : top + bh, left : left + bw] = True
        slots.append((left, top, bw, bh))
    np.maximum(scale, 1e-3, out=scale)
    median = cv2.medianBlur(raw, 5)
    ratio = cv2.divide(median, scale, dtype=cv2.CV_32F)
    contrast = np.asarray(ratio, dtype=np.float32)
    contrast -= 1.0
    saturated = cv2.inRange(median, (0, 0, 0), (int(0.88 * full_scale),) * 3) == 0
    offsets = [(b[0] - s[0], b[1] - s[1]) for b, s in zip(boxes, slots, strict=True)]
    return Sheet(
        contrast=contrast,
        inside=inside,
        offset_x=np.array([o[0] for o in offsets], dtype=np.int32),
        offset_y=np.array([o[1] for o in offsets], dtype=np.int32),
        slots=tuple(slots),
        saturated=np.asarray(saturated, dtype=np.bool_),
    )


def gradient(smooth: FloatImage) -> FloatImage:
    """Colour change per px, (h, w): norm over channels and directions of Sobel / 8."""
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    squares = _sum_of_squares(np.asarray(across, dtype=np.float32))
    squares += _sum_of_squares(np.asarray(down, dtype=np.float32))
    return np.sqrt(squares)


def _sum_of_squares(vectors: FloatImage) -> FloatImage:
    """Over the three channels of an image, (h, w)."""
    squares = cv2.multiply(vectors, vectors)
    return np.asarray(cv2.transform(squares, np.ones((1, 3), np.float32)), dtype=np.float32)


def find_terraces(sheet: Sheet, tables: Sequence[ColourTable], cuts: Cuts) -> Terraces:
    """Segment a sheet; see the module's docstring for the steps."""
    smooth = np.asarray(cv2.GaussianBlur(sheet.contrast, (5, 5), 1.0), dtype=np.float32)
    slope = gradient(smooth)
    strength = np.sqrt(_sum_of_squares(smooth))
    quiet = sheet.inside & (strength < cuts.off)
    noise = _robust_sigma(sheet.contrast[..., 1][quiet])
    flat_limit = cuts.flat_gradient * float(np.clip(noise / cuts.noise_reference, 1.0, 2.5))
    is_flat = sheet.inside & (slope < flat_limit)

    is_core = is_flat & (strength > 1.2 * cuts.off)
    cores = _split_cores(is_core, smooth, tables, cuts)
    is_calm = slope < flat_limit * cuts.calm_gradient_ratio
    cores = _recut(cores, is_calm, cuts)
    count = int(cores.max()) if cores.size else 0
    # Substrate is a marker of its own with the last number.
    ground = count + 1
    markers = cores
    markers[is_flat & (strength < 0.8 * cuts.off)] = ground
    means = _mean_colours(markers, sheet.contrast, ground)
    labels = _grown(markers, means, sheet, cuts, ground)
    foreign = _foreign(labels, markers, means, sheet, cuts)
    blur_px = _blur_px(labels, means, slope)
    labels = _joined(labels, means, sheet.contrast, cuts, ground)
    labels.ravel()[foreign] = 0
    labels = _dissolved(labels, sheet, cuts, blur_px)
    return _measured(labels, is_flat, sheet, noise, blur_px)


def _robust_sigma(values: npt.NDArray[np.float32]) -> float:
    if values.size < 50:
        return 0.006
    sample = values[:: max(values.size // 20000, 1)]
    return float(1.48 * np.median(np.abs(sample - np.median(sample))))


def _split_cores(
    is_core: npt.NDArray[np.bool_],
    contrast: FloatImage,
    tables: Sequence[ColourTable],
    cuts: Cuts,
) -> Labels:
    """Connected cores, cut where their pixels crowd at several places of the ladder."""
    components, count = _components(is_core, cuts.core_px)
    if count == 0:
        return components
    where = np.flatnonzero(components)
    owner = components.ravel()[where]
    colours = contrast.reshape(-1, 3)[where]
    arc = _arc_positions(owner, colours, count, tables)
    bins = np.minimum((arc / _ARC_BIN).astype(np.int32), _ARC_BINS - 1)
    histograms = np.bincount(owner * _ARC_BINS + bins, minlength=(count + 1) * _ARC_BINS)
    histograms = histograms.reshape(count + 1, _ARC_BINS)
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2).astype(np.float32)
    smooth = cv2.filter2D(
        histograms.astype(np.float32),
        -1,
        (kernel / kernel.sum())[None],
        borderType=cv2.BORDER_CONSTANT,
    )
    classes = np.ones((count + 1, _ARC_BINS), dtype=np.int32)
    for k in range(1, count + 1):
        for cut in _valleys(smooth[k], cuts.valley, cuts.core_px):
            classes[k, cut:] += 1
    # One image of (core, class) numbers; a morphological opening of all of them at once.
    codes = np.zeros(is_core.shape, dtype=np.uint16)
    codes.ravel()[where] = (np.cumsum(classes[:, -1]) - classes[:, -1])[owner] + classes[
        owner, bins
    ]
    even = (cv2.morphologyEx(codes, cv2.MORPH_GRADIENT, _KERNEL3) == 0) & (codes > 0)
    labels, count = _components(even, 1)
    if count == 0:
        return labels
    code_of = np.zeros(count + 1, dtype=np.uint16)
    seeds = np.flatnonzero(labels)
    code_of[labels.ravel()[seeds]] = codes.ravel()[seeds]
    wide = cv2.dilate(labels.astype(np.uint16), _KERNEL3)
    opened = np.where(code_of[wide] == codes, wide, 0).astype(np.uint16)
    # What erosion had torn apart and dilation brought together again is one piece.
    low, high, _ = _touching(opened)
    family = list(range(count + 1))
    same = code_of[low] == code_of[high]
    for a, b in set(zip(low[same].tolist(), high[same].tolist(), strict=True)):
        roots = _root(family, a), _root(family, b)
        family[max(roots)] = min(roots)
    parent = np.array([_root(family, k) for k in range(count + 1)])
    sizes = np.bincount(parent[opened.ravel()[np.flatnonzero(opened)]], minlength=count + 1)
    keep = sizes >= cuts.core_px
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return np.asarray(numbers[parent][opened], dtype=np.int32)


def _touching(
    labels: npt.NDArray[np.uint16] | Labels,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every contact of two different labels > 0: smaller, larger, and index of its first pixel."""
    width = labels.shape[1]
    across = np.flatnonzero(
        (labels[:, :-1] != labels[:, 1:]) & (labels[:, :-1] > 0) & (labels[:, 1:] > 0)
    )
    across += across // (width - 1)  # index in rows one shorter -> index in the image
    down = np.flatnonzero((labels[:-1] != labels[1:]) & (labels[:-1] > 0) & (labels[1:] > 0))
    flat = labels.ravel().astype(np.int64)
    first = np.concatenate([flat[across], flat[down]])
    second = np.concatenate([flat[across + 1], flat[down + width]])
    return np.minimum(first, second), np.maximum(first, second), np.concatenate([across, down])


def _recut(cores: Labels, is_calm: npt.NDArray[np.bool_], cuts: Cuts) -> Labels:
    """Replace a core by its calmest pieces where it has several: faint steps run between them."""
    pieces, count = _components((cores > 0) & is_calm, cuts.core_px)
    if count == 0:
        return cores
    # A piece may reach over two cores that touch: it belongs to both, as (core, piece).
    where = np.flatnonzero(pieces)
    count = int(cores.max())
    codes = pieces.ravel()[where].astype(np.int64) * (count + 1) + cores.ravel()[where]
    found, index, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    found_core = found % (count + 1)
    big = sizes >= cuts.core_px
    per_core = np.bincount(found_core[big], minlength=count + 1)
    is_several = per_core >= 2
    numbers = np.cumsum(~is_several) - 1  # label 0 stays 0
    numbers[is_several] = 0
    labels = numbers.astype(np.int32)[cores]
    fresh = big & is_several[found_core]
    new_numbers = np.where(fresh, np.cumsum(fresh) + int(labels.max()), 0).astype(np.int32)
    values = new_numbers[index]
    here = where[values > 0]
    labels.ravel()[here] = values[values > 0]
    return labels


def _arc_positions(
    owner: npt.NDArray[np.int32],
    colours: FloatImage,
    count: int,
    tables: Sequence[ColourTable],
) -> npt.NDArray[np.float32]:
    """Length along the ladder, in contrast units, of every core pixel.

    Of several materials each core takes the one whose ladder its pixels lie closest to.
    """
    arcs, errors = [], []
    for table in tables:
        thickness, distance = table.read(colours)
        ladder = table.ladder
        arcs.append(np.interp(thickness, ladder.thickness_layers, ladder.arc).astype(np.float32))
        if len(tables) > 1:
            errors.append(np.bincount(owner, weights=distance, minlength=count + 1))
    if len(tables) == 1:
        return arcs[0]
    best = np.argmin(np.stack(errors), axis=0)
    return np.asarray(np.stack(arcs)[best[owner], np.arange(owner.size)], dtype=np.float32)


def _valleys(histogram: npt.NDArray[np.float32], depth: float, core_px: int) -> list[int]:
    """Bins at which a smoothed histogram should be cut."""
    rising = np.diff(histogram)
    peaks = np.flatnonzero((np.r_[0.0, rising] > 0) & (np.r_[rising, 0.0] <= 0))
    peaks = peaks[histogram[peaks] * 4 >= core_px * 0.25]
    if peaks.size < 2:
        return []
    tops = peaks.tolist()
    floors = [a + int(np.argmin(histogram[a : b + 1])) for a, b in pairwise(tops)]
    while floors:
        ratios = [
            histogram[f] / min(histogram[tops[k]], histogram[tops[k + 1]])
            for k, f in enumerate(floors)
        ]
        worst = int(np.argmax(ratios))
        if ratios[worst] < depth:
            break
        lower = worst if histogram[tops[worst]] < histogram[tops[worst + 1]] else worst + 1
        del tops[lower], floors[worst]
        # The neighbours of a dropped peak keep the deeper of their two floors.
        if lower > 0 and lower < len(tops):
            a, b = tops[lower - 1], tops[lower]
            floors[lower - 1] = a + int(np.argmin(histogram[a : b + 1]))
    return floors


def _grown(markers: Labels, means: FloatImage, sheet: Sheet, cuts: Cuts, ground: int) -> Labels:
    """Grow the cores until they meet, then move borders to where the closer colour changes."""
    labels = np.where(sheet.inside, markers, 0).astype(np.int32)
    is_free = ((labels == 0) & sheet.inside).view(np.uint8)
    width = labels.shape[1]
    flat_labels = labels.ravel()
    colours = sheet.contrast.reshape(-1, 3)
    steps = (-1, 1, -width, width)
    taken = (labels > 0).view(np.uint8)
    for _ in range(cuts.reach_px):
        reached = cv2.bitwise_and(cv2.dilate(taken, _CROSS), is_free)
        edge = np.flatnonzero(reached > taken)
        if edge.size == 0:
            break
        here = colours[edge]
        best, best_error = np.zeros(edge.size, np.int32), np.full(edge.size, np.inf, np.float32)
        for step in steps:
            candidate = flat_labels[edge + step]
            error = _squared(here - means[candidate])
            better = (error < best_error) & (candidate != 0)
            best = np.where(better, candidate, best)
            best_error = np.where(better, error, best_error)
        flat_labels[edge] = best
        taken.ravel()[edge] = 1
    labels[(labels == 0) & sheet.inside] = ground
    for _ in range(6):
        small = labels.astype(np.uint16)
        border = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, _CROSS)
        edge = np.flatnonzero((border > 0) & (is_free > 0))
        if edge.size == 0:
            break
        own = flat_labels[edge]
        here = colours[edge]
        best, best_error = own, _squared(here - means[own])
        for step in steps:
            candidate = flat_labels[edge + step]
            error = _squared(here - means[candidate])
            better = (error < 0.8 * best_error) & (candidate != 0)
            best = np.where(better, candidate, best)
            best_error = np.where(better, error, best_error)
        changed = best != own
        if not changed.any():
            break
        flat_labels[edge[changed]] = best[changed]
    return labels


def _foreign(
    labels: Labels, markers: Labels, means: FloatImage, sheet: Sheet, cuts: Cuts
) -> npt.NDArray[np.int64]:
    """Indices of pixels that are neither their terrace nor a blurred step from it to substrate.

    Something without a core of its own, a strip or a crumb, has been swallowed there.
    """
    grown = np.flatnonzero((markers == 0) & (labels > 0))
    own = means[labels.ravel()[grown]]
    limit = cuts.foreign_share * np.sqrt(_squared(own)) + cuts.foreign_contrast
    error = _squared(sheet.contrast.reshape(-1, 3)[grown] - own)
    return grown[error > limit * limit]


def _squared(vectors: FloatImage) -> FloatImage:
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors), dtype=np.float32)


def _mean_colours(labels: Labels, contrast: FloatImage, ground: int) -> FloatImage:
    """Mean contrast of each label up to the ground's, whose own is 0 by definition, (n, 3)."""
    where = np.flatnonzero((labels > 0) & (labels < ground))
    owner = labels.ravel()[where]
    colours = contrast.reshape(-1, 3)[where]
    area = np.maximum(np.bincount(owner, minlength=ground + 1), 1)
    sums = [np.bincount(owner, weights=colours[:, c], minlength=ground + 1) for c in range(3)]
    return np.asarray(np.stack(sums, axis=1) / area[:, None], dtype=np.float32)


def _blur_px(labels: Labels, means: FloatImage, slope: FloatImage) -> float:
    """Sigma of the sheet's steps: height over slope at the borders.

    A step of height h blurred by a Gaussian rises by h / (sigma sqrt(2 pi)) a px in its middle.
    """
    low, high, at = _touching(labels)
    height = np.sqrt(_squared(means[low] - means[high]))
    is_step = height > _STEP_LEAST
    if int(np.count_nonzero(is_step)) < _STEPS_LEAST_PX:
        return _BLUR_USUAL_PX
    steepness = slope.ravel()[at[is_step]] / height[is_step]
    return float(np.clip(1.0 / (np.sqrt(2.0 * np.pi) * np.median(steepness)), 1.0, 6.0))


def _dissolved(labels: Labels, sheet: Sheet, cuts: Cuts, blur_px: float) -> Labels:
    """Give narrow regions of mixed colour to the two neighbours that mix there."""
    count = int(labels.max()) if labels.size else 0
    small = labels.astype(np.uint16)
    inner = (cv2.morphologyEx(small, cv2.MORPH_GRADIENT, _CROSS) == 0).view(np.uint8)
    depth = cv2.distanceTransform(inner, cv2.DIST_L2, 3)
    is_wide = np.zeros(count + 1, dtype=np.bool_)
    is_wide[labels[depth + 1.0 > cuts.crack_blurs * blur_px]] = True
    is_wide[0] = True
    where = np.flatnonzero(~is_wide[labels])
    if where.size == 0:
        return labels
    means = _mean_colours(labels, sheet.contrast, count + 1)
    owner = labels.ravel()[where]
    order = np.argsort(owner, kind="stable")
    where, owner = where[order], owner[order]
    narrow, starts = np.unique(owner, return_index=True)
    half_widths = (np.maximum.reduceat(depth.ravel()[where], starts) + 1.0) / blur_px
    found = labels.copy()
    before, flat, colours = labels.ravel(), found.ravel(), sheet.contrast.reshape(-1, 3)
    width = labels.shape[1]
    ends = [*starts[1:].tolist(), where.size]
    for k, blurs, start, end in zip(
        narrow.tolist(), half_widths.tolist(), starts.tolist(), ends, strict=True
    ):
        px = where[start:end]
        around = np.concatenate([before[px + step] for step in (-1, 1, -width, width)])
        beside, contact_px = np.unique(around[around != k], return_counts=True)
        contacts = dict(zip(beside.tolist(), contact_px.tolist(), strict=True))
        pair = _mixed(means, k, blurs, contacts, cuts)
        if pair is None:
            continue
        is_second = _squared(colours[px] - means[pair[1]]) < _squared(colours[px] - means[pair[0]])
        flat[px] = np.where(is_second, pair[1], pair[0])
    is_kept = np.bincount(flat, minlength=count + 1) > 0
    is_kept[0] = False
    numbers = np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)
    return numbers[found]


def _mixed(
    means: FloatImage, k: int, blurs: float, contact_px: Mapping[int, int], cuts: Cuts
) -> tuple[int, int] | None:
    """The two of a region's neighbours that its colour is a mixture of; None: it is none.

    blurs: its half-width. The substrate, 0, always takes part: it shows through cracks that are
    narrower than the blur.
    """
    crystals = [n for n, px in contact_px.items() if n > 0 and px >= _CONTACT_LEAST_PX]
    border_px = sum(contact_px.values())
    best, least = None, np.inf
    for number, first in enumerate(crystals):
        # How much of its border has this crystal's colour.
        size = float(np.linalg.norm(means[first]))
        alike_px = sum(
            contact_px[n]
            for n in crystals
            if float(np.linalg.norm(means[n] - means[first])) < _ALIKE_SHARE * size
        )
        is_crack = alike_px > _CRACK_BORDER * border_px
        of_gap = cuts.crack_blurs if is_crack else cuts.point_blurs
        for second in (*crystals[number + 1 :], 0):
            if blurs > (cuts.step_blurs if second else of_gap):
                continue
            line = means[second] - means[first]
            length = float(np.linalg.norm(line))
            if length < _STEP_LEAST:
                continue
            along = float((means[k] - means[first]) @ line) / length**2
            off = float(np.linalg.norm(means[k] - means[first] - along * line))
            limit = cuts.mixture_contrast + cuts.mixture_share * length
            if _MIXED_LEAST < along < 1.0 - _MIXED_LEAST and off < min(limit, least):
                best, least = (first, second), off
    return best


def _joined(
    labels: Labels, means: FloatImage, contrast: FloatImage, cuts: Cuts, ground: int
) -> Labels:
    """Join touching terraces of equal colour with no crack between; drop the ground's label."""
    low, high, at = _touching(labels)
    flakes = high < ground
    low, high, at = low[flakes], high[flakes], at[flakes]
    family = list(range(ground + 1))
    if low.size:
        # Compression writes steps into strong colours, where layers lie far apart.
        strong = np.maximum(np.abs(means[low]).max(axis=1) - cuts.strong_contrast, 0.0)
        limit = cuts.merge_contrast + cuts.merge_share * strong
        similar = np.abs(means[low] - means[high]).max(axis=1) < limit
        low, high = low[similar], high[similar]
        colours = contrast.reshape(-1, 3)[at[similar]]
        order = np.argsort(low * (ground + 1) + high, kind="stable")
        codes = (low * (ground + 1) + high)[order]
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        for start, end in pairwise([*starts.tolist(), codes.size]):
            a, b = divmod(int(codes[start]), ground + 1)
            if _is_open(colours[order[start:end]], 0.5 * (means[a] + means[b]), cuts):
                roots = _root(family, a), _root(family, b)
                family[max(roots)] = min(roots)
    family[ground] = 0
    parent = np.array([_root(family, k) for k in range(ground + 1)])
    kept = np.unique(parent[parent > 0])
    numbers = np.zeros(ground + 1, dtype=np.int32)
    numbers[kept] = np.arange(1, kept.size + 1)
    return np.asarray(numbers[parent][labels], dtype=np.int32)


def _is_open(contact_rgb: FloatImage, flake_rgb: FloatImage, cuts: Cuts) -> bool:
    """Whether two pieces of one colour are one: no line of another colour runs right between them.

    contact_rgb: (n, 3) along their common border. A line that ends within leaves part of the border
    in the flake's own colour; a line across leaves none, but may be faint: hence two tests.
    """
    change = contact_rgb - flake_rgb
    if float(np.abs(change.mean(axis=0)).max()) < cuts.crack_contrast:
        return True
    limit = cuts.gap_contrast + cuts.gap_share * float(np.abs(flake_rgb).max())
    alike = int(np.count_nonzero(largest_channel(np.abs(change)) < limit))
    return alike >= max(cuts.gap_px, cuts.gap_ratio * len(change))


def _root(family: list[int], k: int) -> int:
    while family[k] != k:
        k = family[k]
    return k


def _measured(
    labels: Labels, is_flat: npt.NDArray[np.bool_], sheet: Sheet, noise: float, blur_px: float
) -> Terraces:
    count = int(labels.max()) if labels.size else 0
    small = labels.astype(np.uint16)
    where = np.flatnonzero(small)
    owner = labels.ravel()[where]
    flat_here = is_flat.ravel()[where]
    inner = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, _KERNEL3).ravel()[where] == 0
    calm = inner & flat_here
    deep = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, _KERNEL5).ravel()[where] == 0

    def counted(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        return np.bincount(owner[chosen], minlength=count + 1)[1:].astype(np.int32)

    area = np.bincount(owner, minlength=count + 1)[1:].astype(np.int32)
    flat = counted(flat_here)
    saturated = counted(sheet.saturated.ravel()[where])
    evenness = (counted(deep & flat_here) + 1.0) / (counted(deep) + 1.0)
    # Where next to nothing of a region is flat, its inner pixels have to do.
    poor = np.r_[False, counted(calm) < 20]
    ys, xs = np.divmod(where, labels.shape[1])
    boxes = _boxes(owner, xs, ys, count)
    use = calm | (inner & poor[owner])
    where, owner = where[use], owner[use]
    colours = sheet.contrast.reshape(-1, 3)[where]
    used = np.bincount(owner, minlength=count + 1)[1:]
    median = np.zeros((count, 3), dtype=np.float32)
    spread = np.zeros(count, dtype=np.float32)
    for c in range(3):
        quartiles = _quartiles(owner, colours[:, c], count)
        median[:, c] = quartiles[:, 1]
        spread += (quartiles[:, 2] - quartiles[:, 0]) / (3 * 1.349)
    return Terraces(
        labels=labels,
        boxes=boxes,
        area_px=area,
        inner_px=used.astype(np.int32),
        flat_px=flat,
        contrast_rgb=median,
        spread=spread,
        evenness=evenness.astype(np.float32),
        saturated_px=saturated,
        noise=noise,
        blur_px=blur_px,
    )


def _boxes(
    owner: npt.NDArray[np.int32],
    xs: npt.NDArray[np.int64],
    ys: npt.NDArray[np.int64],
    count: int,
) -> npt.NDArray[np.int32]:
    """Bounding boxes x, y, width, height of the pixels of each owner 1 ... count, (count, 4)."""
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(1, count + 1))
    if count == 0:
        return np.zeros((0, 4), dtype=np.int32)
    xs, ys = xs[order], ys[order]
    x0, y0 = np.minimum.reduceat(xs, starts), np.minimum.reduceat(ys, starts)
    x1, y1 = np.maximum.reduceat(xs, starts), np.maximum.reduceat(ys, starts)
    return np.stack([x0, y0, x1 - x0 + 1, y1 - y0 + 1], axis=1).astype(np.int32)


def _quartiles(
    owner: npt.NDArray[np.int32], values: npt.NDArray[np.float32], count: int
) -> npt.NDArray[np.float32]:
    """25, 50 and 75 % of the values of each owner 1 ... count, (count, 3), from fine histograms."""
    bins, low, step = 1500, -1.0, 0.004  # up to 5: thick transparent crystals
    index = np.clip(((values - low) / step).astype(np.int32), 0, bins - 1)
    histogram = np.bincount((owner - 1) * bins + index, minlength=count * bins)
    cumulative = np.cumsum(histogram.reshape(count, bins), axis=1)
    total = cumulative[:, -1:].astype(np.float32)
    found = np.zeros((count, 3), dtype=np.float32)
    rows = np.arange(count)
    for k, share in enumerate((0.25, 0.5, 0.75)):
        goal = share * total
        at = np.minimum((cumulative < goal).sum(axis=1), bins - 1)
        before = np.where(at > 0, cumulative[rows, np.maximum(at - 1, 0)], 0)
        within = (goal[:, 0] - before) / np.maximum(cumulative[rows, at] - before, 1)
        found[:, k] = low + step * (at + np.clip(within, 0.0, 1.0))
    return found
