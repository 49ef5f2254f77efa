"""Cut a photograph into terraces: connected regions of one thickness, with sharp borders.

A cascade, because most of a scan is bare substrate. At half resolution everything that differs from
the substrate AND could be a wanted crystal is boxed; only inside those boxes, packed side by side
into one sheet, is the full resolution looked at. On the sheet:

1. Flat cores: connected pixels with a small colour gradient. They are the interior of something.
2. Each core pixel is placed along the contrast ladder; a core whose pixels crowd in several places
   is cut at the valleys between them. The ladder gives the axis only: an even terrace is never cut
   because its colour lies between two layer numbers.
3. Pixels between cores go to the nearest one, then along every border to whichever side's colour is
   closer, which puts the border half way up the blurred step. Substrate and everything that is no
   flake (bulk, residue) own cores too: the rim of a bulk crystal passes through all colours of the
   ladder and must not become a ring of thin flakes.
4. Neighbours of equal colour are joined, unless a crack runs between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import ImageRGB
from inference.flakes.background import Background, shrunk_half
from inference.flakes.ladder import ColourTable, colour_cells

FloatImage = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Box = tuple[int, int, int, int]  # x, y, width, height in px

_RIM_PX = 6  # true surroundings around each box on the sheet, seen by filters but never labelled
_MARGIN_PX = 12  # substrate kept around a candidate
_SHEET_WIDTH_PX = 1024
_ARC_BIN = 0.01  # contrast units per bin along the ladder
_KERNEL3 = np.ones((3, 3), dtype=np.uint8)
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass(frozen=True, slots=True)
class Cuts:
    """Thresholds of the segmentation, in contrast units (I / I_substrate - 1) and px."""

    off: float  # a smaller contrast is substrate; half the thinnest wanted flake's
    flat_gradient: float = 0.018  # per px
    noise_reference: float = 0.006  # noise for which `flat_gradient` is meant
    valley: float = 0.7  # of the smaller peak: a shallower valley does not separate terraces
    core_px: int = 40
    reach_px: float = 12.0
    merge_contrast: float = 0.025
    crack_contrast: float = 0.012


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
    saturated_px: npt.NDArray[np.int32]
    noise: float  # the substrate's own sigma on this sheet


def candidate_boxes(
    half: ImageRGB,
    background: Background,
    off: float,
    plausible: npt.NDArray[np.bool_],
    least_half_px: int,
) -> list[Box]:
    """Boxes, in px of the photograph, around whatever might be a wanted flake."""
    height, width = half.shape[:2]
    inverse = 1.0 / np.maximum(background.coarse, 1e-3)
    step = 2.0 / 16.0
    matrix = np.array([[step, 0.0, 0.5 * step - 0.5], [0.0, step, 0.5 * step - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    scale = cv2.warpAffine(
        inverse, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    smooth = cv2.blur(half, (3, 3))
    ratio = cv2.multiply(smooth, scale, dtype=cv2.CV_32F)
    channel_off = off / np.sqrt(3.0) if off < 0.03 else off * 0.6
    bare = cv2.inRange(ratio, (1 - channel_off,) * 3, (1 + channel_off,) * 3)
    there = np.flatnonzero(bare.ravel() == 0)
    if there.size == 0:
        return []
    mask = np.zeros(height * width, dtype=np.uint8)
    mask[there] = plausible[colour_cells(ratio.reshape(-1, 3)[there] - 1.0)]
    mask = cv2.morphologyEx(mask.reshape(height, width), cv2.MORPH_OPEN, _CROSS)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    boxes = []
    for x, y, w, h, area in stats[1:count].tolist():
        if area >= least_half_px:
            boxes.append((2 * x, 2 * y, 2 * w, 2 * h))
    return boxes


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
        rest = []
        changed = False
        for other in todo:
            if other[0] < x1 and other[2] > x0 and other[1] < y1 and other[3] > y0:
                x0, y0 = min(x0, other[0]), min(y0, other[1])
                x1, y1 = max(x1, other[2]), max(y1, other[3])
                changed = True
            else:
                rest.append(other)
        if changed:
            todo = [*rest, (x0, y0, x1, y1)]
        else:
            done.append((x0, y0, x1, y1))
            todo = rest
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
    sheet_width = max(_SHEET_WIDTH_PX, max(b[2] for b in boxes) + 2 * _RIM_PX)
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
    saturated = (median >= 0.88 * full_scale).any(axis=-1)
    offsets = [(b[0] - s[0], b[1] - s[1]) for b, s in zip(boxes, slots, strict=True)]
    return Sheet(
        contrast=contrast,
        inside=inside,
        offset_x=np.array([o[0] for o in offsets], dtype=np.int32),
        offset_y=np.array([o[1] for o in offsets], dtype=np.int32),
        slots=tuple(slots),
        saturated=np.asarray(saturated, dtype=np.bool_),
    )


def gradient(contrast: FloatImage) -> FloatImage:
    """Colour change per px, (h, w): norm over channels and directions of Sobel / 8."""
    smooth = cv2.GaussianBlur(contrast, (5, 5), 1.0)
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    squares = cv2.multiply(across, across) + cv2.multiply(down, down)
    return np.asarray(np.sqrt(cv2.transform(squares, np.ones((1, 3), np.float32))), np.float32)


def find_terraces(sheet: Sheet, tables: Sequence[ColourTable], cuts: Cuts) -> Terraces:
    """Segment a sheet; see the module's docstring for the steps."""
    smooth = cv2.GaussianBlur(sheet.contrast, (5, 5), 1.0)
    slope = gradient(sheet.contrast)
    strength = np.sqrt(cv2.transform(smooth * smooth, np.ones((1, 3), np.float32)))
    quiet = sheet.inside & (strength < cuts.off)
    noise = _robust_sigma(sheet.contrast[..., 1][quiet])
    flat_limit = cuts.flat_gradient * float(np.clip(noise / cuts.noise_reference, 1.0, 2.5))
    is_flat = sheet.inside & (slope < flat_limit)

    is_core = is_flat & (strength > 1.2 * cuts.off)
    cores = _split_cores(is_core, sheet.contrast, tables, cuts)
    count = int(cores.max()) if cores.size else 0
    # Substrate is a marker of its own with the last number.
    ground = count + 1
    markers = cores
    markers[is_flat & (strength < 0.8 * cuts.off)] = ground
    labels = _grown(markers, sheet, cuts, ground)
    labels = _joined(labels, sheet.contrast, cuts, ground)
    return _measured(labels, is_flat, sheet, noise)


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
    mask = is_core.view(np.uint8)
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    big = stats[:, cv2.CC_STAT_AREA] >= cuts.core_px
    big[0] = False
    renumber = np.where(big, np.cumsum(big), 0).astype(np.int32)
    components = renumber[components]
    count = int(big.sum())
    if count == 0:
        return np.zeros(mask.shape, dtype=np.int32)
    where = np.flatnonzero(components)
    owner = components.ravel()[where]
    colours = contrast.reshape(-1, 3)[where]
    arc = _arc_positions(owner, colours, count, tables)
    bins = np.minimum((arc / _ARC_BIN).astype(np.int32), 399)
    histograms = np.bincount(owner * 400 + bins, minlength=(count + 1) * 400)
    histograms = histograms.reshape(count + 1, 400)
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2).astype(np.float32)
    smooth = cv2.filter2D(
        histograms.astype(np.float32),
        -1,
        (kernel / kernel.sum())[None],
        borderType=cv2.BORDER_CONSTANT,
    )
    classes = np.ones((count + 1, 400), dtype=np.uint8)
    for k in range(1, count + 1):
        for cut in _valleys(smooth[k], cuts.valley, cuts.core_px):
            classes[k, cut:] += 1
    per_pixel = classes[owner, bins]
    image = np.zeros(mask.shape, dtype=np.uint8)
    image.ravel()[where] = per_pixel
    labels = np.zeros(mask.shape, dtype=np.int32)
    total = 0
    for level in range(1, int(per_pixel.max()) + 1):
        one = cv2.morphologyEx((image == level).view(np.uint8), cv2.MORPH_OPEN, _KERNEL3)
        n, pieces, piece_stats, _ = cv2.connectedComponentsWithStats(one, connectivity=4)
        keep = piece_stats[:, cv2.CC_STAT_AREA] >= cuts.core_px
        keep[0] = False
        numbers = np.where(keep, np.cumsum(keep) + total, 0).astype(np.int32)
        if n > 1:
            labels += numbers[pieces]
        total += int(keep.sum())
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


def _grown(markers: Labels, sheet: Sheet, cuts: Cuts, ground: int) -> Labels:
    """Give every pixel between cores to the nearest, then to the closer colour along borders."""
    blank = (markers == 0).view(np.uint8)
    distance, nearest = cv2.distanceTransformWithLabels(
        blank, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # `nearest` numbers the marker pixels; look their labels up.
    seeds = np.zeros(int(nearest.max()) + 1, dtype=np.int32)
    on_marker = np.flatnonzero(markers)
    seeds[nearest.ravel()[on_marker]] = markers.ravel()[on_marker]
    labels = seeds[nearest]
    labels[distance > cuts.reach_px] = ground
    labels[~sheet.inside] = 0
    means = _mean_colours(markers, sheet.contrast, ground)
    means[ground] = 0.0
    free = np.flatnonzero((markers == 0) & sheet.inside)
    if free.size == 0:
        return labels
    width = labels.shape[1]
    flat_labels = labels.ravel()
    colours = sheet.contrast.reshape(-1, 3)
    for _ in range(6):
        own = flat_labels[free]
        neighbours = [flat_labels[free + step] for step in (-1, 1, -width, width)]
        at_border = np.zeros(free.size, dtype=np.bool_)
        for other in neighbours:
            at_border |= (other != own) & (other != 0)
        edge = np.flatnonzero(at_border)
        if edge.size == 0:
            break
        here = colours[free[edge]]
        best = own[edge]
        offset = here - means[best]
        best_error = np.einsum("ij,ij->i", offset, offset)
        for other in neighbours:
            candidate = other[edge]
            offset = here - means[candidate]
            error = np.einsum("ij,ij->i", offset, offset)
            better = (error < best_error) & (candidate != 0)
            best = np.where(better, candidate, best)
            best_error = np.where(better, error, best_error)
        if np.array_equal(best, own[edge]):
            break
        flat_labels[free[edge]] = best
    return labels


def _mean_colours(labels: Labels, contrast: FloatImage, last: int) -> FloatImage:
    where = np.flatnonzero(labels)
    owner = labels.ravel()[where]
    colours = contrast.reshape(-1, 3)[where]
    area = np.maximum(np.bincount(owner, minlength=last + 1), 1)
    sums = [np.bincount(owner, weights=colours[:, c], minlength=last + 1) for c in range(3)]
    return np.asarray(np.stack(sums, axis=1) / area[:, None], dtype=np.float32)


def _joined(labels: Labels, contrast: FloatImage, cuts: Cuts, ground: int) -> Labels:
    """Join touching terraces of equal colour with no crack between; drop the ground's label."""
    means = _mean_colours(labels, contrast, ground)
    first: list[npt.NDArray[np.int32]] = []
    second: list[npt.NDArray[np.int32]] = []
    border: list[FloatImage] = []
    for a, b, ca, cb in (
        (labels[:, :-1], labels[:, 1:], contrast[:, :-1], contrast[:, 1:]),
        (labels[:-1], labels[1:], contrast[:-1], contrast[1:]),
    ):
        touching = (a != b) & (a > 0) & (b > 0) & (a < ground) & (b < ground)
        ys, xs = np.nonzero(touching)
        first.append(a[ys, xs])
        second.append(b[ys, xs])
        border.append(0.5 * (ca[ys, xs] + cb[ys, xs]))
    low = np.minimum(np.concatenate(first), np.concatenate(second)).astype(np.int64)
    high = np.maximum(np.concatenate(first), np.concatenate(second)).astype(np.int64)
    family = list(range(ground + 1))
    if low.size:
        similar = np.abs(means[low] - means[high]).max(axis=1) < cuts.merge_contrast
        low, high = low[similar], high[similar]
        colours = np.concatenate(border)[similar]
        pairs, owner = np.unique(low * (ground + 1) + high, return_inverse=True)
        lengths = np.bincount(owner)
        sums = np.stack([np.bincount(owner, weights=colours[:, c]) for c in range(3)], axis=1)
        seam = sums / np.maximum(lengths, 1)[:, None]
        for k, pair in enumerate(pairs.tolist()):
            a, b = divmod(pair, ground + 1)
            between = 0.5 * (means[a] + means[b])
            if np.abs(seam[k] - between).max() < cuts.crack_contrast:
                roots = _root(family, a), _root(family, b)
                family[max(roots)] = min(roots)
    family[ground] = 0
    parent = np.array([_root(family, k) for k in range(ground + 1)])
    kept = np.unique(parent[parent > 0])
    numbers = np.zeros(ground + 1, dtype=np.int32)
    numbers[kept] = np.arange(1, kept.size + 1)
    return np.asarray(numbers[parent][labels], dtype=np.int32)


def _root(family: list[int], k: int) -> int:
    while family[k] != k:
        k = family[k]
    return k


def _measured(
    labels: Labels, is_flat: npt.NDArray[np.bool_], sheet: Sheet, noise: float
) -> Terraces:
    count = int(labels.max()) if labels.size else 0
    small = labels.astype(np.uint16)
    inner = (cv2.erode(small, _KERNEL3) == cv2.dilate(small, _KERNEL3)) & (labels > 0)
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    flat = np.bincount(labels[is_flat], minlength=count + 1)[1:]
    saturated = np.bincount(labels[sheet.saturated], minlength=count + 1)[1:]
    calm = inner & is_flat
    calm_area = np.bincount(labels[calm], minlength=count + 1)[1:]
    # Where next to nothing of a region is flat, its inner pixels have to do.
    poor = np.r_[False, calm_area < 20]
    use = calm | (inner & poor[labels])
    where = np.flatnonzero(use)
    owner = labels.ravel()[where]
    colours = sheet.contrast.reshape(-1, 3)[where]
    used = np.bincount(owner, minlength=count + 1)[1:]
    median = np.zeros((count, 3), dtype=np.float32)
    spread = np.zeros(count, dtype=np.float32)
    for c in range(3):
        quartiles = _quartiles(owner, colours[:, c], count)
        median[:, c] = quartiles[:, 1]
        spread += (quartiles[:, 2] - quartiles[:, 0]) / (3 * 1.349)
    ys, xs = np.nonzero(labels)
    owner = labels[ys, xs] - 1
    x0, y0 = np.full(count, 1 << 30), np.full(count, 1 << 30)
    x1, y1 = np.full(count, -1), np.full(count, -1)
    np.minimum.at(x0, owner, xs)
    np.maximum.at(x1, owner, xs)
    np.minimum.at(y0, owner, ys)
    np.maximum.at(y1, owner, ys)
    boxes = np.stack([x0, y0, x1 - x0 + 1, y1 - y0 + 1], axis=1).astype(np.int32)
    return Terraces(
        labels=labels,
        boxes=boxes,
        area_px=area.astype(np.int32),
        inner_px=used.astype(np.int32),
        flat_px=flat.astype(np.int32),
        contrast_rgb=median,
        spread=spread,
        saturated_px=saturated.astype(np.int32),
        noise=noise,
    )


def _quartiles(
    owner: npt.NDArray[np.int32], values: npt.NDArray[np.float32], count: int
) -> npt.NDArray[np.float32]:
    """25, 50 and 75 % of the values of each owner 1 ... count, (count, 3), from fine histograms."""
    bins, low, step = 640, -1.0, 0.004
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


def half_resolution(pixels: ImageRGB) -> ImageRGB:
    """The photograph at which candidates are looked for."""
    return shrunk_half(pixels)
