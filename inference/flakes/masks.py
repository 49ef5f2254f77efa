"""Photographs and the instances that somebody outlined on them, from the forms they come in.

A photograph's instances may be one label image (8 or 16 bit, one value an instance, 0 for none,
same stem as the photograph), a folder of its own with one mask an instance (`STEM/*.png`, or
`STEM_1.png`, `STEM_2.png` ... side by side; anything but 0 belongs to it), or entries of a COCO
file: run lengths as numbers or as COCO's text, or polygons; an annotation may say `layers`,
`material` and `iscrowd`, and a category named "2 layers" or "bilayer" says layers as well. What a
program found may also be a COCO result list, whose `image_id` is the truth's or a file name.

Formats: https://cocodataset.org, data and results format. Everything that is wrong is named with
its file and key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage, BadModel, ImageRGB, Mask
from inference.flakes.scoring import Instance, instances_from_labels

IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
LABEL_SUFFIXES: tuple[str, ...] = (".png", ".tif", ".tiff")

_LAYER_WORDS = {"mono": 1, "single": 1, "bi": 2, "tri": 3, "tetra": 4, "quad": 4, "penta": 5}
_LAYER_NUMBER = re.compile(r"\b(\d{1,2}) ?(?:l|layers?)\b|^(\d{1,2})$")
_LAYER_WORD = re.compile(rf"\b({'|'.join(_LAYER_WORDS)}) ?layers?\b")


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


def rle_mask(counts: Sequence[int], height: int, width: int) -> Mask:
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


def mask_counts(mask: Mask) -> list[int]:
    """Run lengths down the columns of a mask (h, w), the first of zeros: COCO's plain RLE."""
    flat = np.asarray(mask, dtype=np.int8).T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.r_[0, edges, flat.size]).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def layers_of_name(name: str) -> int | None:
    """Number of layers that a category's name says: "2L", "3 layers", "bilayer"; None: none."""
    plain = re.sub(r"[\s_-]+", " ", name).strip().lower()
    number = _LAYER_NUMBER.search(plain)
    if number is not None:
        return int(number[1] or number[2]) or None
    word = _LAYER_WORD.search(plain)
    return None if word is None else _LAYER_WORDS[word[1]]


@dataclass(frozen=True, slots=True)
class CocoImage:
    """What a COCO file says about one photograph."""

    stem: str  # of its file name, by which photographs are found
    height_px: int
    width_px: int


@dataclass(frozen=True, slots=True, eq=False)
class CocoFile:
    """A COCO file's photographs and the instances on them."""

    images: Mapping[int | str, CocoImage]  # by id
    instances: Mapping[str, tuple[Instance, ...]]  # by stem; every photograph is in it
    categories: Mapping[int, str]


def read_coco(path: Path) -> CocoFile:
    """Raises BadModel, naming the file and the entry."""
    content = _json(path)
    try:
        images = {e["id"]: _coco_image(e) for e in content["images"]}
        annotations = list(content["annotations"])
        categories = {c["id"]: str(c["name"]) for c in content.get("categories", [])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{path}: cannot be read as a COCO file: {_said(error)}") from error
    found = _collected(path, "annotations", annotations, images, categories)
    return CocoFile(images, found, categories)


def read_results(
    path: Path, images: Mapping[int | str, CocoImage], categories: Mapping[int, str] | None = None
) -> dict[str, tuple[Instance, ...]]:
    """A COCO result list, or a whole COCO file, by stem. Raises BadModel, naming the entry."""
    content = _json(path)
    if not isinstance(content, list):
        return dict(read_coco(path).instances)
    return _collected(path, "", content, images, categories or {})


def layer_points(path: Path) -> dict[str, tuple[tuple[int, int, int], ...]]:
    """Points (x, y, layers) by stem from a COCO file's `layer_points`; empty where it has none."""
    content = _json(path)
    try:
        return {
            Path(name).stem: tuple((int(x), int(y), int(n)) for x, y, n in points)
            for name, points in content.get("layer_points", {}).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise BadModel(
            f"{path}: layer_points: need {{image: [[x, y, layers]]}}: {error}"
        ) from error


def _json(path: Path) -> Any:  # noqa: ANN401 - as far as anybody knows
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"{path}: cannot be read as a COCO file: {error}") from error


def _coco_image(entry: Mapping[str, Any]) -> CocoImage:
    return CocoImage(Path(str(entry["file_name"])).stem, int(entry["height"]), int(entry["width"]))


def _collected(
    path: Path,
    key: str,
    annotations: Sequence[Mapping[str, Any]],
    images: Mapping[int | str, CocoImage],
    categories: Mapping[int, str],
) -> dict[str, tuple[Instance, ...]]:
    found: dict[str, list[Instance]] = {image.stem: [] for image in images.values()}
    for number, annotation in enumerate(annotations):
        try:
            image_id = annotation["image_id"]
            if image_id not in images:
                raise KeyError(f"image_id {image_id!r} is no photograph's")
            found[images[image_id].stem].append(
                _coco_instance(annotation, images[image_id], categories)
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BadModel(f"{path}: {key}[{number}]: {_said(error)}") from error
    return {stem: tuple(instances) for stem, instances in found.items()}


def _said(error: Exception) -> str:
    """What an error means to somebody who looks at the file."""
    if isinstance(error, KeyError):
        key = str(error.args[0])
        return key if " " in key else f"no {key!r}"
    return str(error)


def _coco_instance(
    annotation: Mapping[str, Any], image: CocoImage, categories: Mapping[int, str]
) -> Instance:
    mask = _coco_mask(annotation["segmentation"], image.height_px, image.width_px)
    category = categories.get(annotation.get("category_id", -1))
    layers = annotation.get("layers")
    if layers is None and category is not None:
        layers = layers_of_name(category)
    cut = cut_out(
        mask,
        float(annotation.get("score", 1.0)),
        None if layers is None else int(layers),
        annotation.get("material") or category,
    )
    return replace(cut, is_crowd=bool(annotation.get("iscrowd", 0)))


def _coco_mask(segmentation: object, height: int, width: int) -> Mask:
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
    mask: Mask, score: float = 1.0, layers: int | None = None, material: str | None = None
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
    """Instances of each photograph, from a folder of label images or masks, or a COCO file.

    Raises BadImage where a photograph has none: a photograph without flakes has an empty label
    image, a missing one is a mistake.
    """
    coco = _coco_file_at(images, masks)
    if coco is not None:
        table = read_coco(coco).instances
        missing = [image.name for image in images if image.stem not in table]
        if missing:
            raise BadImage(f"{coco}: says nothing about {missing[0]}")
        return [table[image.stem] for image in images]
    return [_from_folder(image, masks) for image in images]


def predictions_for(
    images: Sequence[Path], predictions: Path, masks: Path
) -> list[tuple[Instance, ...]]:
    """What another program found on each photograph; of a result list, possibly nothing.

    masks: where the truth is; if that is a COCO file, the result list's `image_id` is the one
    there. A file name or its stem will do as well.
    """
    coco = _coco_file_at(images, predictions)
    if coco is None:
        return truth_for(images, predictions)
    truth = _coco_file_at(images, masks)
    known: dict[int | str, CocoImage] = {}
    categories: Mapping[int, str] = {}
    if truth is not None:
        said = read_coco(truth)
        known.update(said.images)
        categories = said.categories
    by_stem = {image.stem: image for image in known.values()}
    for path in images:
        entry = by_stem.get(path.stem)
        if entry is None:
            height_px, width_px = read_rgb(path).shape[:2]
            entry = CocoImage(path.stem, height_px, width_px)
        known[path.stem] = known[path.name] = entry
    table = read_results(coco, known, categories)
    return [table.get(image.stem, ()) for image in images]


def _coco_file_at(images: Sequence[Path], place: Path) -> Path | None:
    if place.is_file():
        return place
    if not place.is_dir():
        raise BadImage(f"{place}: neither a folder of label images nor a COCO file")
    if any(_label_path(place, image.stem) or _mask_paths(place, image.stem) for image in images):
        return None
    files = sorted(place.glob("*.json"))
    return files[0] if len(files) == 1 else None


def _from_folder(image: Path, folder: Path) -> tuple[Instance, ...]:
    path = _label_path(folder, image.stem)
    several = _mask_paths(folder, image.stem)
    if path is None and several is None:
        raise BadImage(f"{folder}: no label image for {image.name} (same stem, .png or .tif)")
    size_px = read_rgb(image).shape[:2]
    if path is not None:
        return instances_from_labels(_of_size(path, read_labels(path), image, size_px))
    found = []
    for each in several or ():
        mask = _of_size(each, read_labels(each), image, size_px) > 0
        if not mask.any():
            raise BadImage(f"{each}: the mask is empty")
        found.append(cut_out(mask))
    return tuple(found)


def _of_size(
    path: Path, labels: npt.NDArray[np.integer], image: Path, size_px: tuple[int, ...]
) -> npt.NDArray[np.integer]:
    if labels.shape != size_px:
        raise BadImage(
            f"{path}: {labels.shape[1]} x {labels.shape[0]} px, but {image.name} has "
            f"{size_px[1]} x {size_px[0]} px"
        )
    return labels


def _label_path(folder: Path, stem: str) -> Path | None:
    for suffix in LABEL_SUFFIXES:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    return None


def _mask_paths(folder: Path, stem: str) -> list[Path] | None:
    """Masks of single instances; None where there are none, and no folder for them either."""
    own = folder / stem
    if own.is_dir():
        return sorted(p for p in own.iterdir() if p.suffix.lower() in LABEL_SUFFIXES)
    numbered = re.compile(re.escape(stem) + r"[_-]\d+")
    found = [
        p
        for p in folder.iterdir()
        if p.suffix.lower() in LABEL_SUFFIXES and numbered.fullmatch(p.stem)
    ]
    return sorted(found) or None
