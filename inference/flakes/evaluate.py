"""How good a flake detector is on a folder of photographs whose flakes somebody has outlined.

One way of measuring for everybody: our detector, or what another program left in a folder, go
through the same matching (`scoring`), and truth and predictions come in the same forms (`masks`).
Regions that nobody judges, such as real terraces that the labels leave out, count neither as hit
nor as false alarm; beside that precision stands the stricter one, in which each of those regions
excuses one prediction only, and only one that outlines it (IoU 0.5).

The detector is calibrated on the photographs themselves, never on their masks. Figures come with a
bootstrap over photographs: flakes of one photograph stand and fall together.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import numpy as np

from inference.api import BadImage, BadModel, FlakeAnswer, FlakeDetector
from inference.figures import Row
from inference.flakes.calibration import SubstrateCalibration
from inference.flakes.masks import (
    images_in,
    layer_points,
    predictions_for,
    read_coco,
    read_rgb,
    truth_for,
)
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, calibrate
from inference.flakes.scoring import (
    Instance,
    Overlaps,
    Scores,
    instances_from_detections,
    iou_matrix,
    match_by_iou,
    overlaps_of,
    score_overlaps,
)

SCORE_CUTS: Final = (0.1, 0.2, 0.3)
SIZES_UM2: Final = (0.0, 100.0, 300.0, 1000.0, float("inf"))  # bins of area
COUNTED_LAYERS: Final = 6  # up to here a layer number is expected to be exact

_RESAMPLES = 200
_TIMED_REPEATS = 3

Progress = Callable[[int, int], None]  # photographs done, photographs in all
MakeDetector = Callable[[DetectorSettings, Sequence[SubstrateCalibration]], FlakeDetector]
Fate = Literal["hit", "miss", "false alarm", "ignored"]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One instance and what became of it."""

    fate: Fate
    instance: Instance  # the prediction; of a miss, the truth
    truth: Instance | None  # of a hit
    iou: float  # with its truth; else the largest with any


@dataclass(frozen=True, slots=True, eq=False)
class ImageResult:
    """One photograph: what was found and how it fared."""

    name: str
    scores: Scores
    answer: FlakeAnswer | None  # None: predictions came from files
    wall_s: float | None  # None: nothing was run
    cpu_s: float | None  # of all threads; None: nothing was run
    true: tuple[Instance, ...]
    predicted: tuple[Instance, ...]
    ignored: tuple[Instance, ...]  # regions that nobody judges
    overlaps: Overlaps

    def judged(self, score_cut: float = 0.0) -> tuple[Judged, ...]:
        """Every instance with its fate: predictions in the order given, then misses."""
        keep = np.flatnonzero(self.overlaps.scores >= score_cut)
        real = [t for t in self.true if not t.is_crowd]
        ious = self.overlaps.ious
        matches = {
            int(keep[m.predicted]): m for m in match_by_iou(ious[keep], self.overlaps.scores[keep])
        }
        found = []
        for k in keep.tolist():
            best = float(ious[k].max(initial=0.0))
            if k in matches:
                match = matches[k]
                found.append(Judged("hit", self.predicted[k], real[match.true], match.iou))
            elif self.overlaps.ignored[k] >= 0.5:
                found.append(Judged("ignored", self.predicted[k], None, best))
            else:
                found.append(Judged("false alarm", self.predicted[k], None, best))
        met = {m.true for m in matches.values()}
        for j, instance in enumerate(real):
            if j not in met:
                best = float(ious[keep, j].max(initial=0.0))
                found.append(Judged("miss", instance, None, best))
        return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything that an evaluation says."""

    rows: tuple[Row, ...]
    scores: Scores
    images: tuple[ImageResult, ...]
    calibrations: tuple[SubstrateCalibration, ...]  # empty: predictions came from files
    pixel_size_nm: float
    score_cut: float

    def csv(self) -> str:
        """One line an instance: what it is, where it lies and what became of it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["image", "fate", "x_px", "y_px", "area_um2", "score", "layers", "true_layers", "iou"]
        )
        for image in self.images:
            for one in image.judged(self.score_cut):
                what, truth = one.instance, one.truth
                is_miss = one.fate == "miss"
                true_layers = what.layers if is_miss else None if truth is None else truth.layers
                rows, columns = np.nonzero(what.mask)
                writer.writerow(
                    [
                        image.name,
                        one.fate,
                        f"{what.box_x_px + columns.mean():.1f}",
                        f"{what.box_y_px + rows.mean():.1f}",
                        f"{what.area_px * _px_um2(self.pixel_size_nm):.1f}",
                        "" if is_miss else f"{what.score:.4f}",
                        "" if is_miss or what.layers is None else what.layers,
                        "" if true_layers is None else true_layers,
                        f"{one.iou:.3f}",
                    ]
                )
        return text.getvalue()


def evaluate_folder(
    images: Path,
    masks: Path,
    settings: DetectorSettings,
    pixel_size_nm: float = 384.0,
    *,
    bit_depth: int | None = None,
    predictions: Path | None = None,
    ignore: Path | None = None,
    calibrations: Sequence[SubstrateCalibration] | None = None,
    make_detector: MakeDetector | None = None,
    score_cut: float = 0.0,
    is_timed: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a detector, or what another program left in `predictions`, against masks.

    bit_depth: None for all bits of the files. ignore: a COCO file of regions that nobody judges;
    it may also say how many layers the truths have, see `with_layers`.
    calibrations: None to fit them on the photographs. make_detector: None for the physics detector.
    score_cut: for precision, recall and F1; average precision uses all predictions.
    Raises BadImage or BadModel, naming the file.
    """
    paths = images_in(images)
    truths = truth_for(paths, masks)
    unjudged: list[tuple[Instance, ...]] = [()] * len(paths)
    if ignore is not None:
        unjudged = ignored_in(paths, ignore)
        truths = with_layers(paths, truths, ignore)
    results: list[ImageResult] = []
    if predictions is not None:
        predicted = predictions_for(paths, predictions, masks)
        for path, true, found, skipped in zip(paths, truths, predicted, unjudged, strict=True):
            results.append(image_result(path.name, true, found, skipped))
        return evaluation(results, pixel_size_nm, score_cut=score_cut)
    if calibrations is None:
        depth = bit_depth or 8 * read_rgb(paths[0]).dtype.itemsize
        calibrations = calibrate((read_rgb(p) for p in paths), settings, pixel_size_nm, depth)
    detector = (make_detector or PhysicsDetector)(settings, calibrations)
    for done, (path, true, skipped) in enumerate(zip(paths, truths, unjudged, strict=True)):
        pixels = read_rgb(path)
        depth = bit_depth or 8 * pixels.dtype.itemsize
        _check_fits(true, pixels.shape, f"{masks}: the mask of {path.name}")
        answer = detector.detect(pixels, pixel_size_nm, depth)
        walls_s, cpus_s = [], []
        for _ in range(_TIMED_REPEATS if is_timed else 0):
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            detector.detect(pixels, pixel_size_nm, depth)
            cpus_s.append(time.process_time() - began_cpu_s)
            walls_s.append(time.perf_counter() - began_s)
        found = instances_from_detections(answer.detections)
        result = image_result(path.name, true, found, skipped)
        results.append(
            replace(
                result,
                answer=answer,
                wall_s=float(np.median(walls_s)) if walls_s else None,
                cpu_s=float(np.median(cpus_s)) if cpus_s else None,
            )
        )
        if progress is not None:
            progress(done + 1, len(paths))
    return evaluation(results, pixel_size_nm, tuple(calibrations), score_cut)


def ignored_in(images: Sequence[Path], path: Path) -> list[tuple[Instance, ...]]:
    """Regions of each photograph that nobody judges; photographs it does not name have none."""
    coco = read_coco(path)
    sizes = {image.stem: (image.height_px, image.width_px) for image in coco.images.values()}
    for image in images:
        if image.stem in sizes and read_rgb(image).shape[:2] != sizes[image.stem]:
            raise BadImage(f"{path}: {image.name} is not {sizes[image.stem]} px (height, width)")
    return [coco.instances.get(image.stem, ()) for image in images]


def with_layers(
    images: Sequence[Path], truths: Sequence[tuple[Instance, ...]], path: Path
) -> list[tuple[Instance, ...]]:
    """Truths with the layer numbers that a file's `layer_points` say: {image: [[x, y, n], ...]}.

    A truth that holds the point (px of the photograph) has n layers. Raises BadModel for a point
    that lies in no truth.
    """
    said = layer_points(path)
    found = []
    for image, instances in zip(images, truths, strict=True):
        numbered = list(instances)
        for x, y, layers in said.get(image.stem, ()):
            holders = [k for k, one in enumerate(numbered) if one.holds(x, y)]
            if not holders:
                raise BadModel(f"{path}: layer_points: {image.name}: no mask at ({x}, {y})")
            for k in holders:
                numbered[k] = replace(numbered[k], layers=layers)
        found.append(tuple(numbered))
    return found


def _check_fits(instances: Iterable[Instance], shape: tuple[int, ...], what: str) -> None:
    for instance in instances:
        height, width = instance.mask.shape
        if instance.box_x_px + width > shape[1] or instance.box_y_px + height > shape[0]:
            raise BadImage(f"{what} is larger than the photograph")


def image_result(
    name: str,
    true: Sequence[Instance],
    predicted: Sequence[Instance],
    ignored: Sequence[Instance] = (),
) -> ImageResult:
    """One photograph's predictions, judged; what ran, and for how long, is not known here."""
    overlaps = overlaps_of(predicted, true, ignored)
    scores = score_overlaps([overlaps])
    parts = tuple(true), tuple(predicted), tuple(ignored)
    return ImageResult(name, scores, None, None, None, *parts, overlaps)


# --- figures ---------------------------------------------------------------------------------


def evaluation(
    images: Sequence[ImageResult],
    pixel_size_nm: float,
    calibrations: tuple[SubstrateCalibration, ...] = (),
    score_cut: float = 0.0,
) -> Evaluation:
    """The figures of photographs that were judged."""
    overlaps = [image.overlaps for image in images]
    scores = score_overlaps(overlaps, score_cut)
    spans = _bootstrap(overlaps, score_cut)
    cut = f"score >= {score_cut:g}"
    rows = [
        Row("ap50", scores.ap50, n=scores.n_true, ci95=spans["ap50"]),
        Row("ap75", scores.ap75, n=scores.n_true, ci95=spans["ap75"]),
        Row("ap", scores.ap, n=scores.n_true, ci95=spans["ap"], note="mean over IoU .50:.95"),
        Row("ar", scores.ar, n=scores.n_true, ci95=spans["ar"], note="mean over IoU .50:.95"),
        Row("precision", scores.precision, n=scores.n_predicted, ci95=spans["precision"], note=cut),
        Row("recall", scores.recall, n=scores.n_true, ci95=spans["recall"], note=cut),
        Row("f1", scores.f1, n=scores.n_true, ci95=spans["f1"], note=cut),
        Row("mean_iou", _finite(scores.mean_iou), n=scores.n_matched, note="of matched instances"),
    ]
    if len({float(s) for image in overlaps for s in image.scores}) > 1:
        for other in SCORE_CUTS:
            at = score_overlaps(overlaps, other)
            note = f"score >= {other:g}"
            rows.append(Row(f"precision_at_{other:g}", at.precision, n=at.n_predicted, note=note))
            rows.append(Row(f"recall_at_{other:g}", at.recall, n=at.n_true, note=note))
    if any(image.ignored or any(t.is_crowd for t in image.true) for image in images):
        rows += _ignored_rows(images, score_cut)
    rows += _size_rows(images, score_cut, _px_um2(pixel_size_nm))
    rows += _class_rows(images, score_cut)
    rows += _time_rows(images)
    rows = [r if r.value is None or np.isfinite(r.value) else replace(r, value=None) for r in rows]
    return Evaluation(tuple(rows), scores, tuple(images), calibrations, pixel_size_nm, score_cut)


def _px_um2(pixel_size_nm: float) -> float:
    return (pixel_size_nm * 1e-3) ** 2


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _ignored_rows(images: Sequence[ImageResult], score_cut: float) -> list[Row]:
    """How many predictions lie on regions that nobody judges, and precision if those were few."""
    ignored = hits = false = 0
    for image in images:
        judged = image.judged(score_cut)
        skipped = [one.instance for one in judged if one.fate == "ignored"]
        regions = [*image.ignored, *(t for t in image.true if t.is_crowd)]
        excused = match_by_iou(iou_matrix(skipped, regions), [s.score for s in skipped])
        ignored += len(skipped)
        hits += sum(one.fate == "hit" for one in judged)
        false += sum(one.fate == "false alarm" for one in judged)
        false += len(skipped) - len(excused)
        hits += len(excused)
    return [
        Row("ignored", float(ignored), note="predictions on regions that nobody judges"),
        Row(
            "precision_strict",
            hits / (hits + false) if hits + false else None,
            n=hits + false,
            note="a region excuses one prediction, of IoU >= 0.5, which counts as a hit",
        ),
    ]


def _size_rows(images: Sequence[ImageResult], score_cut: float, px_um2: float) -> list[Row]:
    """Recall by the truth's area, precision by the prediction's."""
    rows = []
    judged = [one for image in images for one in image.judged(score_cut)]
    for low, high in pairwise(SIZES_UM2):
        span = f"{low:g}_{high:g}_um2" if np.isfinite(high) else f"from_{low:g}_um2"

        def within(instance: Instance, low: float = low, high: float = high) -> bool:
            return low <= instance.area_px * px_um2 < high

        met = sum(one.truth is not None and within(one.truth) for one in judged)
        missed = sum(one.fate == "miss" and within(one.instance) for one in judged)
        hits = sum(one.fate == "hit" and within(one.instance) for one in judged)
        false = sum(one.fate == "false alarm" and within(one.instance) for one in judged)
        real, said = met + missed, hits + false
        rows.append(Row(f"recall_{span}", met / real if real else None, n=real))
        rows.append(Row(f"precision_{span}", hits / said if said else None, n=said))
    return rows


def _class_rows(images: Sequence[ImageResult], score_cut: float) -> list[Row]:
    """Per class, where the truth names any: layer numbers, and materials if several.

    Each class is scored by itself, as COCO does: truth and predictions of that class only.
    """
    layers = sorted({t.layers for image in images for t in image.true if t.layers is not None})
    materials = sorted(
        {t.material for image in images for t in image.true if t.material is not None}
    )
    if not layers and len(materials) < 2:
        return []
    rows = []
    for n in layers:
        rows += _one_class(images, f"{n}_layers", partial(_has_layers, n), score_cut)
    for key in materials if len(materials) > 1 else ():
        rows += _one_class(images, key, partial(_is_of, key), score_cut)
    if layers:
        hits = [
            (one.truth.layers, one.instance.layers)
            for image in images
            for one in image.judged(score_cut)
            if one.truth is not None and one.truth.layers is not None
        ]
        hits = [(true, said) for true, said in hits if true is not None and true <= COUNTED_LAYERS]
        right = sum(true == said for true, said in hits)
        rows.append(
            Row(
                f"layers_right_to_{COUNTED_LAYERS}",
                right / len(hits) if hits else None,
                n=len(hits),
                note="of matched instances with so many true layers",
            )
        )
    return rows


def _has_layers(layers: int, instance: Instance) -> bool:
    return instance.layers == layers


def _is_of(material: str, instance: Instance) -> bool:
    return instance.material == material


def _one_class(
    images: Sequence[ImageResult],
    name: str,
    belongs: Callable[[Instance], bool],
    score_cut: float,
) -> list[Row]:
    mine = []
    for image in images:
        true = [t for t in image.true if t.is_crowd or belongs(t)]
        predicted = [p for p in image.predicted if belongs(p)]
        mine.append(overlaps_of(predicted, true, image.ignored))
    scores = score_overlaps(mine, score_cut)
    return [
        Row(f"ap50_{name}", scores.ap50, n=scores.n_true),
        Row(f"precision_{name}", scores.precision, n=scores.n_predicted),
        Row(f"recall_{name}", scores.recall, n=scores.n_true),
    ]


def _time_rows(images: Sequence[ImageResult]) -> list[Row]:
    rows = []
    for name, times, what in (
        ("ms_per_image", [i.wall_s for i in images], "wall"),
        ("cpu_ms_per_image", [i.cpu_s for i in images], "processor"),
    ):
        known = [t for t in times if t is not None]
        rows.append(
            Row(
                name,
                1e3 * float(np.median(known)) if known else None,
                unit="ms",
                better="lower",
                n=len(known),
                note=f"median {what} time of one detection" if known else "nothing was run",
            )
        )
    return rows


def _bootstrap(
    overlaps: Sequence[Overlaps], score_cut: float
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals from photographs drawn with replacement; None for a single photograph."""
    names = ("ap50", "ap75", "ap", "ar", "precision", "recall", "f1")
    if len(overlaps) < 2:
        return dict.fromkeys(names)
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_RESAMPLES):
        chosen = rng.integers(0, len(overlaps), len(overlaps))
        scores = score_overlaps([overlaps[k] for k in chosen], score_cut)
        for name in names:
            drawn[name].append(float(getattr(scores, name)))
    spans: dict[str, tuple[float, float] | None] = {}
    for name, values in drawn.items():
        finite = np.array([v for v in values if np.isfinite(v)])
        spans[name] = None
        if finite.size:
            low, high = np.percentile(finite, [2.5, 97.5])
            spans[name] = (float(low), float(high))
    return spans
