"""How good a flake detector is on a folder of photographs whose flakes somebody has outlined.

One way of measuring for everybody: our detector, or label images that another program left in a
folder, go through the same matching (`scoring`). Truth is either one label image a photograph
(8 or 16 bit, one value an instance, 0 for none, same stem as the photograph) or one COCO file
(RLE or polygons; an annotation may say `layers` and `material`).

The detector is calibrated on the photographs themselves, never on their masks. Figures come with a
bootstrap over photographs: flakes of one photograph stand and fall together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage, BadModel, FlakeAnswer, ImageRGB
from inference.flakes.calibration import SubstrateCalibration
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, calibrate
from inference.flakes.scoring import (
    Instance,
    Scores,
    instances_from_detections,
    instances_from_labels,
    iou_matrix,
    match_by_iou,
    score_overlaps,
)

IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
LABEL_SUFFIXES: tuple[str, ...] = (".png", ".tif", ".tiff")
SCORE_CUTS: tuple[float, ...] = (0.1, 0.2, 0.3)

_RESAMPLES = 200
_TIMED_REPEATS = 3

Progress = Callable[[int, int], None]  # photographs done, photographs in all


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the result, in the words of every `evaluate` command."""

    name: str
    value: float | None  # None: could not be measured here; `note` says why
    unit: str = ""
    bar: float | None = None
    better: Literal["lower", "higher"] = "higher"
    baseline: float | None = None
    n: int | None = None
    ci95: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ImageResult:
    """One photograph: what was found and how it fared."""

    name: str
    scores: Scores
    answer: FlakeAnswer | None  # None: predictions came from files
    wall_s: float | None  # None: nothing was run


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything that an evaluation says."""

    rows: tuple[Row, ...]
    scores: Scores
    images: tuple[ImageResult, ...]
    calibrations: tuple[SubstrateCalibration, ...]  # empty: predictions came from files


def read_rgb(path: Path) -> ImageRGB:
    """Read a photograph as (h, w, 3) RGB of 8 or 16 bits. Raises BadImage, naming the file."""
    image = _decoded(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image.dtype not in (np.uint8, np.uint16):
        raise BadImage(f"{path}: need 8 or 16 bits a channel, got {image.dtype}")
    if image.ndim == 2:
        return np.ascontiguousarray(np.repeat(image[..., None], 3, axis=-1))
    return np.ascontiguousarray(image[..., 2::-1])


def read_labels(path: Path) -> npt.NDArray[np.integer]:
    """Read a label image, (h, w) of 8 or 16 bits. Raises BadImage, naming the file."""
    labels = _decoded(path, cv2.IMREAD_UNCHANGED)
    if labels.ndim == 3 and all(np.array_equal(labels[..., 0], labels[..., c]) for c in (1, 2)):
        labels = labels[..., 0]
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
        raise BadImage(
            f"{path}: a label image has one channel of 8 or 16 bits, got "
            f"{labels.shape} {labels.dtype}"
        )
    return labels


def _decoded(path: Path, flags: int) -> npt.NDArray[Any]:
    try:
        # Not cv2.imread: it cannot open paths with letters beyond ASCII on Windows.
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise BadImage(f"{path}: cannot be read: {error}") from error
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise BadImage(f"{path}: cannot be decoded as an image: {error}") from error
    if image is None:
        raise BadImage(f"{path}: cannot be decoded as an image")
    return np.asarray(image)


# --- COCO ------------------------------------------------------------------------------------


def rle_mask(counts: Sequence[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Mask (h, w) from run lengths down the columns, the first of them of zeros."""
    runs = np.asarray(counts, dtype=np.int64)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(f"runs sum to {int(runs.sum())}, not to {height} x {width}")
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def rle_counts(text: str) -> list[int]:
    """Run lengths from COCO's compressed text.

    Each number is written in groups of five bits, the lowest first, as characters from 48 on; bit
    32 says that more follows, bit 16 of the last group is the sign; from the fourth number on, what
    is written is the difference to the number two places before.
    """
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(text):
                raise ValueError("the text ends within a number")
            group = ord(text[at]) - 48
            if not 0 <= group < 64:
                raise ValueError(f"character {text[at]!r} cannot occur")
            value |= (group & 31) << shift
            more = bool(group & 32)
            at, shift = at + 1, shift + 5
            if not more and group & 16:
                value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def read_coco(path: Path) -> dict[str, tuple[Instance, ...]]:
    """Instances by the stem of the photograph's file name. Raises BadModel, naming the entry."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {entry["id"]: entry for entry in content["images"]}
        annotations = content["annotations"]
        categories = {c["id"]: str(c["name"]) for c in content.get("categories", [])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{path}: cannot be read as a COCO file: {error!r}") from error
    found: dict[str, list[Instance]] = {Path(str(e["file_name"])).stem: [] for e in images.values()}
    for number, annotation in enumerate(annotations):
        try:
            image = images[annotation["image_id"]]
            mask = _coco_mask(annotation["segmentation"], int(image["height"]), int(image["width"]))
            layers = annotation.get("layers")
            found[Path(str(image["file_name"])).stem].append(
                cut_out(
                    mask,
                    float(annotation.get("score", 1.0)),
                    None if layers is None else int(layers),
                    annotation.get("material") or categories.get(annotation.get("category_id")),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BadModel(f"{path}: annotations[{number}]: {error!r}") from error
    return {stem: tuple(instances) for stem, instances in found.items()}


def _coco_mask(segmentation: object, height: int, width: int) -> npt.NDArray[np.bool_]:
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        size = tuple(int(v) for v in segmentation.get("size", (height, width)))
        if size != (height, width):
            raise ValueError(f"size {size} is not the image's {(height, width)}")
        if isinstance(counts, str):
            counts = rle_counts(counts)
        return rle_mask(counts, height, width)
    mask = np.zeros((height, width), dtype=np.uint8)
    if not isinstance(segmentation, list):
        raise TypeError(f"segmentation is a {type(segmentation).__name__}")
    for ring in segmentation:
        # COCO's corners lie on the grid between pixels, OpenCV's on their centres.
        corners = np.asarray(ring, dtype=np.float64).reshape(-1, 2) - 0.5
        cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], 1, shift=4)
    return mask > 0


def cut_out(
    mask: npt.NDArray[np.bool_],
    score: float = 1.0,
    layers: int | None = None,
    material: str | None = None,
) -> Instance:
    """An instance from a mask of the whole photograph. Raises ValueError if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise ValueError("the mask is empty")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return Instance(mask[top:bottom, left:right], int(left), int(top), score, layers, material)


# --- folders ---------------------------------------------------------------------------------


def images_in(folder: Path) -> list[Path]:
    """Photographs of a folder by name. Raises BadImage if there are none."""
    if not folder.is_dir():
        raise BadImage(f"{folder}: no such folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise BadImage(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def truth_for(images: Sequence[Path], masks: Path) -> list[tuple[Instance, ...]]:
    """Instances of each photograph, from a folder of label images or a COCO file.

    Raises BadImage where a photograph has none: a photograph without flakes has an empty label
    image, a missing one is a mistake.
    """
    coco = masks if masks.is_file() else None
    if masks.is_dir() and not any(_label_path(masks, image.stem) for image in images):
        files = sorted(masks.glob("*.json"))
        coco = files[0] if len(files) == 1 else None
    if coco is not None:
        table = read_coco(coco)
        missing = [image.name for image in images if image.stem not in table]
        if missing:
            raise BadImage(f"{coco}: says nothing about {missing[0]}")
        return [table[image.stem] for image in images]
    if not masks.is_dir():
        raise BadImage(f"{masks}: neither a folder of label images nor a COCO file")
    found = []
    for image in images:
        path = _label_path(masks, image.stem)
        if path is None:
            raise BadImage(f"{masks}: no label image for {image.name} (same stem, .png or .tif)")
        found.append(instances_from_labels(read_labels(path)))
    return found


def _label_path(folder: Path, stem: str) -> Path | None:
    for suffix in LABEL_SUFFIXES:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    return None


# --- the evaluation --------------------------------------------------------------------------


def evaluate_folder(
    images: Path,
    masks: Path,
    settings: DetectorSettings,
    pixel_size_nm: float = 384.0,
    *,
    bit_depth: int | None = None,
    predictions: Path | None = None,
    calibrations: Sequence[SubstrateCalibration] | None = None,
    score_cut: float = 0.0,
    is_timed: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the physics detector, or the label images in `predictions`, against masks.

    bit_depth: None for all bits of the files. calibrations: None to fit them on the photographs.
    score_cut: for precision, recall and F1; average precision uses all predictions.
    Raises BadImage or BadModel, naming the file.
    """
    paths = images_in(images)
    truths = truth_for(paths, masks)
    if predictions is not None:
        predicted = truth_for(paths, predictions)
        results = _judged(paths, truths, predicted, [None] * len(paths), [None] * len(paths))
        return _evaluation(paths, truths, predicted, results, (), score_cut)
    if calibrations is None:
        depth = bit_depth or 8 * read_rgb(paths[0]).dtype.itemsize
        calibrations = calibrate((read_rgb(p) for p in paths), settings, pixel_size_nm, depth)
    detector = PhysicsDetector(settings, calibrations)
    predicted, answers, times = [], [], []
    for done, path in enumerate(paths):
        pixels = read_rgb(path)
        depth = bit_depth or 8 * pixels.dtype.itemsize
        answer = detector.detect(pixels, pixel_size_nm, depth)
        for instance in truths[done]:
            height, width = instance.mask.shape
            if (
                instance.box_x_px + width > pixels.shape[1]
                or instance.box_y_px + height > pixels.shape[0]
            ):
                raise BadImage(f"{masks}: the mask of {path.name} is larger than the photograph")
        spent: list[float] = []
        for _ in range(_TIMED_REPEATS if is_timed else 0):
            started = time.perf_counter()
            detector.detect(pixels, pixel_size_nm, depth)
            spent.append(time.perf_counter() - started)
        predicted.append(instances_from_detections(answer.detections))
        answers.append(answer)
        times.append(float(np.median(spent)) if spent else None)
        if progress is not None:
            progress(done + 1, len(paths))
    results = _judged(paths, truths, predicted, answers, times)
    return _evaluation(paths, truths, predicted, results, tuple(calibrations), score_cut)


def _judged(
    paths: Sequence[Path],
    truths: Sequence[Sequence[Instance]],
    predicted: Sequence[Sequence[Instance]],
    answers: Sequence[FlakeAnswer | None],
    times: Sequence[float | None],
) -> tuple[ImageResult, ...]:
    return tuple(
        ImageResult(
            path.name, score_overlaps([(iou_matrix(p, t), [i.score for i in p])]), answer, wall_s
        )
        for path, t, p, answer, wall_s in zip(paths, truths, predicted, answers, times, strict=True)
    )


def _evaluation(
    paths: Sequence[Path],
    truths: Sequence[Sequence[Instance]],
    predicted: Sequence[Sequence[Instance]],
    results: tuple[ImageResult, ...],
    calibrations: tuple[SubstrateCalibration, ...],
    score_cut: float,
) -> Evaluation:
    overlaps = [
        (iou_matrix(p, t), [i.score for i in p]) for p, t in zip(predicted, truths, strict=True)
    ]
    scores = score_overlaps(overlaps, score_cut)
    spans = _bootstrap(overlaps, score_cut)
    cut = f"score >= {score_cut:g}"
    rows = [
        Row("ap50", scores.ap50, n=scores.n_true, ci95=spans["ap50"]),
        Row("ap75", scores.ap75, n=scores.n_true, ci95=spans["ap75"]),
        Row("ap", scores.ap, n=scores.n_true, ci95=spans["ap"], note="mean over IoU .50:.95"),
        Row("precision", scores.precision, n=scores.n_predicted, ci95=spans["precision"], note=cut),
        Row("recall", scores.recall, n=scores.n_true, ci95=spans["recall"], note=cut),
        Row("f1", scores.f1, n=scores.n_true, ci95=spans["f1"], note=cut),
        Row("mean_iou", _finite(scores.mean_iou), n=scores.n_matched, note="of matched instances"),
    ]
    if len({i.score for p in predicted for i in p}) > 1:
        for other in SCORE_CUTS:
            at = score_overlaps(overlaps, other)
            note = f"score >= {other:g}"
            rows.append(Row(f"precision_at_{other:g}", at.precision, n=at.n_predicted, note=note))
            rows.append(Row(f"recall_at_{other:g}", at.recall, n=at.n_true, note=note))
    rows += _layer_rows(truths, predicted, overlaps, score_cut)
    times = [r.wall_s for r in results if r.wall_s is not None]
    rows.append(
        Row(
            "ms_per_image",
            1e3 * float(np.median(times)) if times else None,
            unit="ms",
            better="lower",
            n=len(times),
            note="median wall time of one detection" if times else "predictions came from files",
        )
    )
    rows = [
        row if row.value is None or np.isfinite(row.value) else Row(row.name, None, n=row.n)
        for row in rows
    ]
    return Evaluation(tuple(rows), scores, results, calibrations)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _layer_rows(
    truths: Sequence[Sequence[Instance]],
    predicted: Sequence[Sequence[Instance]],
    overlaps: Sequence[tuple[npt.NDArray[np.float64], Sequence[float]]],
    score_cut: float,
) -> list[Row]:
    """Precision and recall per layer number, where the truth names layers: both must agree."""
    right: dict[int, int] = {}
    true: dict[int, int] = {}
    claimed: dict[int, int] = {}
    for t, p, (ious, image_scores) in zip(truths, predicted, overlaps, strict=True):
        keep = [k for k, score in enumerate(image_scores) if score >= score_cut]
        for instance in t:
            if instance.layers is not None:
                true[instance.layers] = true.get(instance.layers, 0) + 1
        for k in keep:
            layers = p[k].layers
            if layers is not None:
                claimed[layers] = claimed.get(layers, 0) + 1
        for match in match_by_iou(ious[keep], [image_scores[k] for k in keep]):
            found, real = p[keep[match.predicted]], t[match.true]
            if real.layers is not None and real.layers == found.layers:
                right[real.layers] = right.get(real.layers, 0) + 1
    rows = []
    for layers in sorted(true):
        hits, said = right.get(layers, 0), claimed.get(layers, 0)
        note = f"IoU >= 0.5 and the number exact, score >= {score_cut:g}"
        precision = hits / said if said else None
        rows.append(Row(f"precision_{layers}_layers", precision, n=said, note=note))
        rows.append(Row(f"recall_{layers}_layers", hits / true[layers], n=true[layers], note=note))
    return rows


def _bootstrap(
    overlaps: Sequence[tuple[npt.NDArray[np.float64], Sequence[float]]], score_cut: float
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals from photographs drawn with replacement; None for a single photograph."""
    names = ("ap50", "ap75", "ap", "precision", "recall", "f1")
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
