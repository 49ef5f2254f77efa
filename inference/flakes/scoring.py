"""Score predicted instances against true ones: matching by overlap, average precision, P, R, F1.

Written once and used for every detector, ours or another program's, so that two figures can be put
side by side. Matching is greedy in the order of falling score, each truth taken once, as in the
COCO evaluation; average precision is the mean of the precision envelope at 101 recalls, average
recall the mean over the ten overlaps. Predictions of equal score are one step of the curve: a
program that gives no scores is judged by its single operating point and not by the order in which
it happened to list its instances.

Regions that nobody judges count neither way, as COCO's crowds do: a prediction that met no truth
and lies on them with at least the share that is asked of an overlap is left out. A truth may be
found in such a region too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference.api import Detection, Mask

COCO_IOUS: tuple[float, ...] = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One region in one image, cut out at its bounding box; `score` counts for predictions only."""

    mask: Mask  # (box_h_px, box_w_px)
    box_x_px: int
    box_y_px: int
    score: float = 1.0
    layers: int | None = None  # None: nobody said
    material: str | None = None  # None: nobody said
    is_crowd: bool = False  # a truth: the region counts neither as hit nor as false alarm

    @property
    def area_px(self) -> int:
        """Number of pixels set."""
        return int(np.count_nonzero(self.mask))

    def holds(self, x_px: int, y_px: int) -> bool:
        """Whether a pixel of the image belongs to it."""
        row, column = y_px - self.box_y_px, x_px - self.box_x_px
        height, width = self.mask.shape
        return 0 <= row < height and 0 <= column < width and bool(self.mask[row, column])


@dataclass(frozen=True, slots=True)
class Match:
    """One prediction with the truth it was given, at one IoU threshold."""

    predicted: int  # index into the predictions
    true: int  # index into the truths
    iou: float


@dataclass(frozen=True, slots=True)
class Scores:
    """What a set of images says about a detector; P, R and F1 are at IoU 0.5 and `score_cut`."""

    ap50: float
    ap75: float
    ap: float  # mean over IoU 0.50, 0.55 ... 0.95
    ar: float  # recall of all predictions, mean over the same
    precision: float
    recall: float
    f1: float
    mean_iou: float  # of the matched instances at IoU 0.5; nan where none matched
    score_cut: float
    n_true: int
    n_predicted: int  # with score >= score_cut, those left out not among them
    n_matched: int
    n_ignored: int = 0  # with score >= score_cut, on regions that nobody judges


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """One image's predictions against what is true there: all that scoring needs, cheap to keep."""

    ious: npt.NDArray[np.float64]  # (n_predicted, n_true)
    scores: npt.NDArray[np.float64]  # (n_predicted,)
    ignored: npt.NDArray[np.float64]  # (n_predicted,) share that lies on regions nobody judges


def instances_from_labels(
    labels: npt.NDArray[np.integer], scores: dict[int, float] | None = None
) -> tuple[Instance, ...]:
    """One instance per non-zero value of a label image (h, w); a value may be in several pieces."""
    _, width = labels.shape
    flat_index = np.flatnonzero(labels)
    values = labels.ravel()[flat_index]
    order = np.argsort(values, kind="stable")
    flat_index, values = flat_index[order], values[order]
    if values.size == 0:
        return ()
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]).tolist()
    found: list[Instance] = []
    for start, end in zip(starts, [*starts[1:], values.size], strict=True):
        ys, xs = np.divmod(flat_index[start:end], width)
        top, left = int(ys.min()), int(xs.min())
        mask = np.zeros((int(ys.max()) - top + 1, int(xs.max()) - left + 1), dtype=np.bool_)
        mask[ys - top, xs - left] = True
        value = int(values[start])
        score = 1.0 if scores is None else scores.get(value, 1.0)
        found.append(Instance(mask, left, top, score))
    return tuple(found)


def instances_from_detections(detections: Sequence[Detection]) -> tuple[Instance, ...]:
    """The detector's own answer in the scorer's words."""
    return tuple(
        Instance(d.mask, d.box_x_px, d.box_y_px, d.score, d.layers, d.material) for d in detections
    )


def iou_matrix(predicted: Sequence[Instance], true: Sequence[Instance]) -> npt.NDArray[np.float64]:
    """Overlap over union of every pair, (n_predicted, n_true)."""
    ious = np.zeros((len(predicted), len(true)))
    true_areas = [t.area_px for t in true]
    for i, p in enumerate(predicted):
        p_area = p.area_px
        p_h, p_w = p.mask.shape
        for j, t in enumerate(true):
            t_h, t_w = t.mask.shape
            left, top = max(p.box_x_px, t.box_x_px), max(p.box_y_px, t.box_y_px)
            right = min(p.box_x_px + p_w, t.box_x_px + t_w)
            bottom = min(p.box_y_px + p_h, t.box_y_px + t_h)
            if right <= left or bottom <= top:
                continue
            p_cut = p.mask[
                top - p.box_y_px : bottom - p.box_y_px, left - p.box_x_px : right - p.box_x_px
            ]
            t_cut = t.mask[
                top - t.box_y_px : bottom - t.box_y_px, left - t.box_x_px : right - t.box_x_px
            ]
            common = int(np.count_nonzero(p_cut & t_cut))
            union = p_area + true_areas[j] - common
            ious[i, j] = common / union if union else 0.0
    return ious


def match_by_iou(
    ious: npt.NDArray[np.float64],
    scores: Sequence[float] | npt.NDArray[np.float64],
    iou_threshold: float = 0.5,
) -> tuple[Match, ...]:
    """Give each prediction, best score first, the free truth that it overlaps most."""
    taken: set[int] = set()
    matches: list[Match] = []
    for i in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable"):
        best, best_iou = -1, iou_threshold
        for j in np.argsort(-ious[i]):
            if ious[i, j] < best_iou:
                break
            if int(j) not in taken:
                best, best_iou = int(j), float(ious[i, j])
                break
        if best >= 0:
            taken.add(best)
            matches.append(Match(int(i), best, best_iou))
    return tuple(matches)


def average_precision(
    scores: npt.NDArray[np.float64], is_hit: npt.NDArray[np.bool_], n_true: int
) -> float:
    """Mean of the precision envelope at recalls 0, .01 ... 1; nan where there is no truth."""
    if n_true == 0:
        return float("nan")
    if scores.size == 0:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_hit[order])
    is_step = np.r_[scores[order][1:] != scores[order][:-1], True]  # equal scores: one step
    hits, seen = hits[is_step], np.flatnonzero(is_step) + 1
    precision = hits / seen
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / n_true, np.linspace(0.0, 1.0, 101) - 1e-12, side="left")
    return float(np.mean(np.r_[envelope, 0.0][np.minimum(at, envelope.size)]))


def ignored_shares(
    predicted: Sequence[Instance], regions: Sequence[Instance]
) -> npt.NDArray[np.float64]:
    """Share of each prediction's area that lies on any of the regions, (n_predicted,)."""
    shares = np.zeros(len(predicted))
    for i, p in enumerate(predicted):
        covered = np.zeros_like(p.mask)
        height, width = p.mask.shape
        for region in regions:
            r_height, r_width = region.mask.shape
            left, top = max(p.box_x_px, region.box_x_px), max(p.box_y_px, region.box_y_px)
            right = min(p.box_x_px + width, region.box_x_px + r_width)
            bottom = min(p.box_y_px + height, region.box_y_px + r_height)
            if right <= left or bottom <= top:
                continue
            covered[
                top - p.box_y_px : bottom - p.box_y_px, left - p.box_x_px : right - p.box_x_px
            ] |= region.mask[
                top - region.box_y_px : bottom - region.box_y_px,
                left - region.box_x_px : right - region.box_x_px,
            ]
        shares[i] = np.count_nonzero(covered & p.mask) / max(p.area_px, 1)
    return shares


def overlaps_of(
    predicted: Sequence[Instance], true: Sequence[Instance], ignored: Sequence[Instance] = ()
) -> Overlaps:
    """Compare one image's predictions with its truths; crowds among these are ignored too."""
    regions = [*ignored, *(t for t in true if t.is_crowd)]
    return Overlaps(
        iou_matrix(predicted, [t for t in true if not t.is_crowd]),
        np.array([p.score for p in predicted], dtype=np.float64),
        ignored_shares(predicted, regions),
    )


def score_images(
    images: Sequence[tuple[Sequence[Instance], Sequence[Instance]]], score_cut: float = 0.0
) -> Scores:
    """Pool (predicted, true) pairs of many images into one set of figures."""
    return score_overlaps([overlaps_of(predicted, true) for predicted, true in images], score_cut)


def score_overlaps(images: Sequence[Overlaps], score_cut: float = 0.0) -> Scores:
    """Same as `score_images`, from overlaps: cheap to resample."""
    n_true = sum(image.ious.shape[1] for image in images)
    scores = np.concatenate([image.scores for image in images] or [np.zeros(0)])
    ignored = np.concatenate([image.ignored for image in images] or [np.zeros(0)])
    precisions: dict[float, float] = {}
    recalls: dict[float, float] = {}
    for threshold in COCO_IOUS:
        hits = np.zeros(scores.size, dtype=np.bool_)
        offset = 0
        for image in images:
            for match in match_by_iou(image.ious, image.scores, threshold):
                hits[offset + match.predicted] = True
            offset += image.scores.size
        counts = hits | (ignored < threshold)
        precisions[threshold] = average_precision(scores[counts], hits[counts], n_true)
        recalls[threshold] = np.count_nonzero(hits) / n_true if n_true else float("nan")
    n_predicted = n_matched = n_ignored = 0
    matched_ious: list[float] = []
    for image in images:
        keep = np.flatnonzero(image.scores >= score_cut)
        matches = match_by_iou(image.ious[keep], image.scores[keep])
        left_out = image.ignored[keep] >= 0.5
        left_out[[m.predicted for m in matches]] = False
        n_ignored += int(np.count_nonzero(left_out))
        n_predicted += int(np.count_nonzero(~left_out))
        n_matched += len(matches)
        matched_ious += [m.iou for m in matches]
    precision = n_matched / n_predicted if n_predicted else float("nan")
    recall = n_matched / n_true if n_true else float("nan")
    f1 = 2 * n_matched / (n_predicted + n_true) if n_predicted + n_true else float("nan")
    return Scores(
        ap50=precisions[0.5],
        ap75=precisions[0.75],
        ap=float(np.mean([precisions[t] for t in COCO_IOUS])),
        ar=float(np.mean([recalls[t] for t in COCO_IOUS])),
        precision=precision,
        recall=recall,
        f1=f1,
        mean_iou=float(np.mean(matched_ious)) if matched_ious else float("nan"),
        score_cut=score_cut,
        n_true=n_true,
        n_predicted=n_predicted,
        n_matched=n_matched,
        n_ignored=n_ignored,
    )
