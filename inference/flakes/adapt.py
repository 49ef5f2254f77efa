"""A microscope learnt from a handful of flakes that somebody has clicked or outlined.

Where the physics does not fit a camera (a colour matrix, a gamma curve, stray light), five flakes
of known thickness say by how much: per channel one gain and one offset of the contrast, and the
effective oxide. The fit is robust, so one wrong click does no harm, and it is held to the physics:
what few flakes do not ask for stays at gain one, offset zero and the nominal oxide. The result is
a `Microscope`, for `[detector] calibration`.

What a user prepares is a folder of photographs with either or both of

- `flakes.json`: a list of `{"image": "a.png", "x_px": 812, "y_px": 355, "layers": 2}`; `layers`
  and `material` may be left out, then the ladder says what the flake most likely is;
- `labels/a.png` beside `a.png`: a label image, one value a flake, 0 for none. A point of
  `flakes.json` inside such a flake gives its layers.

For each oxide of a range the gains and offsets are a linear least-squares problem with a prior, so
the whole fit takes well under a second; reading the photographs takes longer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage, BadModel, Calibration, ImageRGB
from inference.flakes.background import Background, estimate_background
from inference.flakes.calibration import (
    Level,
    SubstrateCalibration,
    checked_number,
    fit_calibration,
    grouped_by_substrate,
    nominal_calibration,
)
from inference.flakes.ladder import Correction, Optics, correction_onset, layer_grid, model_contrast
from inference.flakes.masks import images_in, read_labels, read_rgb
from inference.flakes.microscope import Microscope, white_of
from inference.flakes.physics_detector import DetectorSettings, checked_image

FLAKES_FILE, LABELS_FOLDER = "flakes.json", "labels"
LEAST_FLAKES = 5

_GAIN_SIGMA, _OFFSET_SIGMA = 0.12, 0.025  # of the prior around gain one and offset zero
_OXIDE_SIGMA = 0.12  # of ln(oxide / nominal)
_OXIDES = np.linspace(-0.25, 0.25, 51)
_NOISE, _RELATIVE_NOISE = 0.012, 0.02  # of a flake's contrast: absolute, and as a share of it
_ROBUST_SIGMAS = 2.0  # a deviation beyond that counts as one of a wrong click
_ROUNDS = 6
_CLICK_PX = 40  # how far a clicked flake is followed
_SAME_COLOUR = 0.035  # contrast units: belongs to the clicked flake
_LEAST_PX = 30
_MOST_LAYERS = 30

Progress = Callable[[int, int], None]  # photographs done, photographs in all


@dataclass(frozen=True, slots=True)
class Point:
    """One click, as `flakes.json` has it."""

    x_px: float
    y_px: float
    layers: int | None = None  # None: nobody said
    material: str | None = None  # None: nobody said


@dataclass(frozen=True, slots=True)
class Example:
    """One flake's colour."""

    image: str
    contrast_rgb: tuple[float, float, float]
    area_px: int
    layers: int | None
    material: str | None


@dataclass(frozen=True, slots=True)
class Fitted:
    """One flake after the fit: what it was taken for, and how far from the ladder it still is."""

    example: Example
    material: str
    layers: int
    off_ladder: float  # contrast units
    is_outlier: bool  # it was set aside: a wrong click, or no such flake


@dataclass(frozen=True, slots=True)
class Adapted:
    """What the flakes have taught."""

    microscope: Microscope
    flakes: tuple[Fitted, ...]


def adapt_folder(
    folder: Path,
    settings: DetectorSettings,
    pixel_size_nm: float,
    *,
    bit_depth: int | None = None,
    progress: Progress | None = None,
) -> Adapted:
    """Learn from a folder as described above. Raises BadImage or BadModel, naming the file.

    bit_depth: None for all bits of the files.
    """
    points = read_points(folder / FLAKES_FILE) if (folder / FLAKES_FILE).is_file() else {}
    paths = images_in(folder)
    missing = set(points) - {path.name for path in paths}
    if missing:
        raise BadImage(f"{folder / FLAKES_FILE}: no image {sorted(missing)[0]!r} beside it")
    seen: list[tuple[tuple[float, float, float], list[Example]]] = []
    for done, path in enumerate(paths):
        labels_path = folder / LABELS_FOLDER / f"{path.stem}.png"
        labels = read_labels(labels_path) if labels_path.is_file() else None
        clicked = points.get(path.name, ())
        if labels is not None or clicked:
            pixels = read_rgb(path)
            depth = bit_depth or 8 * pixels.dtype.itemsize
            checked_image(pixels, pixel_size_nm, depth)
            if labels is not None and labels.shape != pixels.shape[:2]:
                raise BadImage(f"{labels_path}: {labels.shape} is not the photograph's shape")
            found = examples_in(path.name, pixels, float(2**depth - 1), clicked, labels)
            if found is not None:
                seen.append(found)
        if progress is not None:
            progress(done + 1, len(paths))
    return adapt(seen, settings, folder.name)


def read_points(path: Path) -> Mapping[str, tuple[Point, ...]]:
    """Clicks by image name. Raises BadModel, naming the entry, what it has and what is allowed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadModel(f"{path}: cannot be read as clicked flakes: {error}") from error
    if not isinstance(content, list):
        raise BadModel(f"{path}: not a list of flakes")
    found: dict[str, list[Point]] = {}
    for number, entry in enumerate(content):
        where = f"{path}: [{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise BadModel(f"{where}: not an object with an image")
        layers = entry.get("layers")
        if layers is not None and (
            isinstance(layers, bool)
            or not isinstance(layers, int)
            or not 1 <= layers <= _MOST_LAYERS
        ):
            raise BadModel(f"{where}.layers is {layers!r}, not a whole number in 1..{_MOST_LAYERS}")
        material = entry.get("material")
        found.setdefault(entry["image"], []).append(
            Point(
                checked_number(entry, "x_px", where, 0.0, 1e5),
                checked_number(entry, "y_px", where, 0.0, 1e5),
                layers,
                None if material is None else str(material),
            )
        )
    return {image: tuple(points) for image, points in found.items()}


def examples_in(
    image: str,
    pixels: ImageRGB,
    full_scale: float,
    points: Sequence[Point],
    labels: npt.NDArray[np.integer] | None = None,
) -> tuple[tuple[float, float, float], list[Example]] | None:
    """The substrate's colour and the flakes' contrasts; None where no substrate was found."""
    background = estimate_background(pixels, full_scale)
    if background.reason:
        return None
    height, width = pixels.shape[:2]
    names: dict[int, Point] = {}
    clicks = []
    for point in points:
        column, row = round(point.x_px), round(point.y_px)
        if not (0 <= column < width and 0 <= row < height):
            raise BadImage(f"{image}: the click ({point.x_px:g}, {point.y_px:g}) lies outside")
        value = 0 if labels is None else int(labels[row, column])
        if value:
            names[value] = point
        else:
            clicks.append(point)
    found = []
    if labels is not None:
        for value in np.unique(labels[labels > 0]).tolist():
            example = _masked(image, pixels, background, labels == value, names.get(value))
            if example is not None:
                found.append(example)
    for point in clicks:
        example = _clicked(image, pixels, background, point)
        if example is not None:
            found.append(example)
    return background.rgb, found


def _masked(
    image: str,
    pixels: ImageRGB,
    background: Background,
    mask: npt.NDArray[np.bool_],
    point: Point | None,
) -> Example | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = max(int(rows[0]) - 2, 0), max(int(columns[0]) - 2, 0)
    box = mask[top : int(rows[-1]) + 3, left : int(columns[-1]) + 3]
    inner = cv2.erode(box.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return _example(image, pixels, background, left, top, inner, point)


def _clicked(image: str, pixels: ImageRGB, background: Background, point: Point) -> Example | None:
    """The even region around a click."""
    left, top = max(round(point.x_px) - _CLICK_PX, 0), max(round(point.y_px) - _CLICK_PX, 0)
    contrast = _contrast(pixels, background, left, top, 2 * _CLICK_PX + 1, 2 * _CLICK_PX + 1)
    contrast = np.asarray(cv2.medianBlur(contrast, 5), dtype=np.float32)
    column, row = round(point.x_px) - left, round(point.y_px) - top
    around = contrast[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    colour = np.median(around.reshape(-1, 3), axis=0)
    alike = np.abs(contrast - colour).max(axis=2) < _SAME_COLOUR
    _, pieces = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    mask = pieces == pieces[row, column]
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return _example(image, pixels, background, left, top, inner, point)


def _example(
    image: str,
    pixels: ImageRGB,
    background: Background,
    left: int,
    top: int,
    inner: npt.NDArray[np.bool_],
    point: Point | None,
) -> Example | None:
    if int(inner.sum()) < _LEAST_PX:
        return None
    contrast = _contrast(pixels, background, left, top, inner.shape[1], inner.shape[0])
    red, green, blue = (float(v) for v in np.median(contrast[inner], axis=0))
    if max(abs(red), abs(green), abs(blue)) < _NOISE:
        return None  # bare substrate
    return Example(
        image,
        (red, green, blue),
        int(inner.sum()),
        None if point is None else point.layers,
        None if point is None else point.material,
    )


def _contrast(
    pixels: ImageRGB, background: Background, left: int, top: int, width: int, height: int
) -> npt.NDArray[np.float32]:
    cut = pixels[top : top + height, left : left + width]
    ground = background.window(left, top, cut.shape[1], cut.shape[0])
    return np.asarray(cut / np.maximum(ground, 1e-3) - 1.0, dtype=np.float32)


# --- the fit -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """Gains and offsets under one oxide."""

    cost: float
    oxide_nm: float
    gain_rgb: npt.NDArray[np.float64]
    offset_rgb: npt.NDArray[np.float64]
    taken: tuple[tuple[str, int], ...]  # (material, layers) of each flake
    sigmas: npt.NDArray[np.float64]  # of each flake's deviation


def adapt(
    seen: Iterable[tuple[tuple[float, float, float], Sequence[Example]]],
    settings: DetectorSettings,
    name: str = "",
) -> Adapted:
    """Fit flakes by photograph: (substrate's colour, flakes). Raises BadImage for too few."""
    seen = list(seen)
    examples = [example for _, found in seen for example in found]
    if len(examples) < LEAST_FLAKES:
        raise BadImage(
            f"{name}: {len(examples)} usable flakes; {LEAST_FLAKES} are needed "
            f"({FLAKES_FILE} and {LABELS_FOLDER}/ say where they are)"
        )
    unknown = {e.material for e in examples if e.material} - set(settings.materials)
    if unknown:
        raise BadImage(f"{name}: material {sorted(unknown)[0]!r} is not among the detector's")
    plain = replace(settings.optics, correction=Correction())
    groups = grouped_by_substrate([rgb for rgb, _ in seen])
    groups.sort(key=lambda group: -sum(len(seen[k][1]) for k in group))
    # The wafer with most flakes tells the microscope; the others only their own oxide.
    first = [example for k in groups[0] for example in seen[k][1]]
    best = _fitted(first, settings, plain, None)
    correction = Correction(_rounded(best.gain_rgb, 4), _rounded(best.offset_rgb, 5))
    flakes: list[Fitted] = []
    wafers = []
    for number, group in enumerate(groups):
        mine = [example for k in group for example in seen[k][1]]
        answer = best if number == 0 else _fitted(mine, settings, plain, best) if mine else None
        rgb = np.median(np.array([seen[k][0] for k in group]), axis=0)
        substrate_rgb = _rounded(rgb, 2)
        if answer is None:
            wafers.append(
                SubstrateCalibration(substrate_rgb, nominal_calibration(settings.oxide_nm))
            )
            continue
        wafers.append(
            SubstrateCalibration(
                substrate_rgb,
                Calibration(
                    round(answer.oxide_nm, 1),
                    (1.0, 1.0, 1.0),
                    _confidence(answer),
                    f"adapted to {len(mine)} flakes",
                ),
            )
        )
        flakes += _judged(mine, answer, plain, correction)
    corrected = replace(plain, correction=correction)
    microscope = Microscope(
        correction,
        _rounded(np.asarray(white_of(wafers, corrected)), 2),
        _confidence(best),
        f"{len(examples)} flakes in {name}" if name else f"{len(examples)} flakes",
        tuple(wafers),
    )
    return Adapted(microscope, tuple(flakes))


def _confidence(answer: _Answer) -> float:
    """Many flakes, of several thicknesses, near the ladder."""
    good = answer.sigmas < 2.0 * _ROBUST_SIGMAS
    kinds = len({taken for taken, is_good in zip(answer.taken, good, strict=True) if is_good})
    count = int(good.sum())
    share = count / max(len(good), 1)
    found = share * (1.0 - np.exp(-count / 4.0)) * (1.0 - np.exp(-kinds / 1.5))
    return round(float(found), 3)


def _fitted(
    examples: Sequence[Example],
    settings: DetectorSettings,
    optics: Optics,
    known: _Answer | None,
) -> _Answer:
    """The best oxide with its gains and offsets, or with those that are known already."""
    # Where nobody said the layers, the fit that needs no flakes' names gives a first guess.
    start = None
    if any(example.layers is None for example in examples):
        levels = [Level(e.contrast_rgb, e.area_px) for e in examples]
        start = fit_calibration(levels, settings.materials, settings.oxide_nm, optics).calibration
    answers = []
    for log in _OXIDES:
        oxide_nm = round(settings.oxide_nm * float(np.exp(log)), 1)
        gain = np.ones(3) if known is None else known.gain_rgb
        offset = np.zeros(3) if known is None else known.offset_rgb
        if known is None and start is not None and start.confidence > 0.0:
            gain = np.asarray(start.gain_rgb, dtype=np.float64)
        answer = _under(examples, settings, optics, oxide_nm, gain, offset, known is not None)
        answers.append(replace(answer, cost=answer.cost + (log / _OXIDE_SIGMA) ** 2))
    return min(answers, key=lambda answer: answer.cost)


def _under(
    examples: Sequence[Example],
    settings: DetectorSettings,
    optics: Optics,
    oxide_nm: float,
    gain: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    is_held: bool,
) -> _Answer:
    """Name the flakes, fit, and again, until the names stay."""
    ladders = {m: _rungs(m, oxide_nm, optics) for m in settings.materials}
    colours = np.array([example.contrast_rgb for example in examples], dtype=np.float64)
    noise = _NOISE + _RELATIVE_NOISE * np.abs(colours)
    taken: tuple[tuple[str, int], ...] = ()
    for _ in range(_ROUNDS):
        before = taken
        taken = tuple(
            _named(example, sigma, ladders, gain, offset)
            for example, sigma in zip(examples, noise, strict=True)
        )
        if taken == before:
            break
        model = np.array([ladders[material][layers - 1] for material, layers in taken])
        onset = correction_onset(np.linalg.norm(model, axis=1))
        if not is_held:
            gain, offset = _solved(colours, noise, model, onset)
    model = np.array([ladders[material][layers - 1] for material, layers in taken])
    onset = correction_onset(np.linalg.norm(model, axis=1))
    off = (colours - gain * model - onset[:, None] * offset) / noise
    sigmas = np.sqrt(np.mean(off**2, axis=1))
    cost = float(np.sum(_robust(off)))
    cost += float(np.sum(((gain - 1.0) / _GAIN_SIGMA) ** 2 + (offset / _OFFSET_SIGMA) ** 2))
    return _Answer(cost, oxide_nm, gain, offset, taken, sigmas)


def _rungs(material: str, oxide_nm: float, optics: Optics) -> npt.NDArray[np.float64]:
    """Contrasts of 1, 2, 3 ... layers, (_MOST_LAYERS, 3)."""
    grid = layer_grid(optics.material(material).layer_thickness_nm)
    curve = model_contrast(material, oxide_nm, optics)
    wanted = np.arange(1, _MOST_LAYERS + 1)
    return np.stack([np.interp(wanted, grid, curve[:, c]) for c in range(3)], axis=1)


def _named(
    example: Example,
    noise: npt.NDArray[np.float64],
    ladders: Mapping[str, npt.NDArray[np.float64]],
    gain: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
) -> tuple[str, int]:
    """What was said of a flake, or else what its colour is nearest to."""
    best, least = ("", 0), np.inf
    for material, rungs in ladders.items():
        if example.material not in (None, material):
            continue
        onset = correction_onset(np.linalg.norm(rungs, axis=1))[:, None]
        off = (np.asarray(example.contrast_rgb) - gain * rungs - onset * offset) / noise
        distance = np.einsum("ij,ij->i", off, off)
        layers = example.layers or int(np.argmin(distance)) + 1
        if distance[layers - 1] < least:
            best, least = (material, layers), float(distance[layers - 1])
    return best


def _solved(
    colours: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    model: npt.NDArray[np.float64],
    onset: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Gain and offset of each channel: least squares with a prior, outliers weighing less."""
    gain, offset = np.ones(3), np.zeros(3)
    for _ in range(4):
        off = (colours - gain * model - onset[:, None] * offset) / noise
        # A flake is wrong as a whole, not in one channel.
        size = np.sqrt(np.mean(off**2, axis=1))
        trust = 1.0 / np.maximum(1.0, size / _ROBUST_SIGMAS) ** 2
        for c in range(3):
            weight = np.sqrt(trust) / noise[:, c]
            design = np.stack([model[:, c], onset], axis=1) * weight[:, None]
            target = colours[:, c] * weight
            design = np.vstack([design, np.diag([1.0 / _GAIN_SIGMA, 1.0 / _OFFSET_SIGMA])])
            target = np.r_[target, 1.0 / _GAIN_SIGMA, 0.0]
            (gain[c], offset[c]), *_ = np.linalg.lstsq(design, target, rcond=None)
    return gain, offset


def _robust(off: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squares of small deviations; large ones count only as much as they are surprising."""
    size = np.sqrt(np.mean(off**2, axis=1)) / _ROBUST_SIGMAS
    return np.asarray(3.0 * _ROBUST_SIGMAS**2 * np.log1p(size**2), dtype=np.float64)


def _judged(
    examples: Sequence[Example], answer: _Answer, optics: Optics, correction: Correction
) -> list[Fitted]:
    judged = []
    for example, (material, layers), sigmas in zip(
        examples, answer.taken, answer.sigmas.tolist(), strict=True
    ):
        rung = _rungs(material, answer.oxide_nm, optics)[layers - 1].astype(np.float32)
        off = correction.applied(rung) - np.asarray(example.contrast_rgb)
        judged.append(
            Fitted(
                example,
                material,
                layers,
                round(float(np.linalg.norm(off)), 4),
                sigmas > 2.0 * _ROBUST_SIGMAS,
            )
        )
    return judged


def _rounded(values: npt.NDArray[np.float64], digits: int) -> tuple[float, float, float]:
    red, green, blue = (round(float(v), digits) for v in values)
    return red, green, blue
