"""How good restorers are on a folder of frames: with the truth beside them, or without it.

Pairs are told by their names: `NAME_noisy.png` beside `NAME_clean.png`, or the same name in the
folders `noisy` and `clean`. All other frames are single: no truth, only Stein's estimate of the
error. The range of PSNR and SSIM is the clean frame's largest value less its smallest.

There's one row a figure and method, `psnr_db_nlm`; the same without a method, `psnr_db`, is the
one that a user gets unless he chooses: the first restorer given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage
from inference.figures import Row
from inference.restore.anchor import TwoStepWiener
from inference.restore.api import Frame, Grey, NoiseModel, Restorer, grey_of
from inference.restore.classical import classical_restorers
from inference.restore.colour import noise_for_filters
from inference.restore.guard import BestClassical, sure_snr_db, whiteness
from inference.restore.noise import estimate_noise
from inference.restore.scores import psnr_db, snr_db, ssim

SUFFIXES: Final = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")

_TIMED_REPEATS: Final = 2

Progress = Callable[[int, int], None]  # frames done, frames in all


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One frame to restore."""

    name: str
    frame: Frame
    truth: Grey | None  # None: nobody knows
    noise: NoiseModel | None = None  # None: to be estimated from the frame


@dataclass(frozen=True, slots=True)
class SceneResult:
    """How one restorer fared on one frame."""

    scene: str
    method: str  # the restorer asked
    made_by: str  # the filter that answered: another one after a fallback
    psnr_db: float | None  # None: no truth
    ssim: float | None
    snr_db: float | None
    sure_snr_db: float | None  # None: no signal, or the noise is not of the kind it needs
    within_ratio: float | None  # of the remainder's bands; None as above
    sigma_ratio: float | None  # root mean squared error over the sigma said; None: either unknown
    wall_s: float
    in_distribution: bool
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything that an evaluation says."""

    rows: tuple[Row, ...]
    results: tuple[SceneResult, ...]


def default_restorers() -> tuple[Restorer, ...]:
    """What is compared unless told otherwise: what a user gets first, then each filter."""
    return BestClassical(), TwoStepWiener(), *classical_restorers()


def evaluate_folder(
    images: Path,
    restorers: Sequence[Restorer] | None = None,
    *,
    is_timed: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Score restorers on a folder, blind: each frame's noise is estimated from itself.

    Raises BadImage, naming the file, or where the folder holds no frame.
    """
    return evaluate_scenes(scenes_in(images), restorers, is_timed=is_timed, progress=progress)


def evaluate_scenes(
    scenes: Sequence[Scene],
    restorers: Sequence[Restorer] | None = None,
    *,
    is_timed: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Score restorers on frames in memory."""
    asked = tuple(restorers) if restorers is not None else default_restorers()
    results = []
    for done, scene in enumerate(scenes):
        noise = scene.noise or estimate_noise(scene.frame)
        shown = scene.noise or noise_for_filters(scene.frame)
        results += [_result(scene, restorer, noise, shown, is_timed) for restorer in asked]
        if progress is not None:
            progress(done + 1, len(scenes))
    sizes = {scene.name: scene.frame.size for scene in scenes}
    rows = _rows(results, [restorer.name for restorer in asked], sizes)
    return Evaluation(tuple(rows), tuple(results))


def at_dose(
    clean: npt.NDArray[Any], peak_e_px: float, seed: int = 0
) -> tuple[npt.NDArray[np.float32], Grey]:
    """Count electrons over a clean frame whose largest value is to give `peak_e_px` a pixel.

    Returns counts and the truth in electrons.
    """
    grey = clean.astype(np.float32)
    truth = np.maximum(grey, np.float32(0.0)) * np.float32(peak_e_px / max(float(grey.max()), 1e-6))
    counts = np.random.default_rng(seed).poisson(truth).astype(np.float32)
    return counts, truth


# --- files -----------------------------------------------------------------------------------


def scenes_in(folder: Path) -> list[Scene]:
    """Pairs and single frames of a folder, by name. Raises BadImage where there's none."""
    if not folder.is_dir():
        raise BadImage(f"{folder}: no such folder")
    if (folder / "noisy").is_dir() and (folder / "clean").is_dir():
        clean = {path.stem: path for path in _images(folder / "clean")}
        noisy = _images(folder / "noisy")
        missing = [path.name for path in noisy if path.stem not in clean]
        if missing:
            raise BadImage(f"{folder / 'clean'}: no frame named {missing[0]}")
        pairs = [(path.stem, path, clean[path.stem]) for path in noisy]
        singles: list[Path] = []
    else:
        paths = {path.stem: path for path in _images(folder)}
        names = [stem.removesuffix("_noisy") for stem in paths if stem.endswith("_noisy")]
        names = [name for name in names if f"{name}_clean" in paths]
        pairs = [(name, paths[f"{name}_noisy"], paths[f"{name}_clean"]) for name in names]
        paired = {path for _, *both in pairs for path in both}
        singles = [path for path in paths.values() if path not in paired]
    if not pairs and not singles:
        raise BadImage(f"{folder}: no frame with one of {', '.join(SUFFIXES)}")
    scenes = []
    for name, noisy_path, clean_path in pairs:
        frame, truth = read_grey(noisy_path), read_grey(clean_path).astype(np.float32)
        if frame.shape != truth.shape:
            raise BadImage(f"{clean_path}: {truth.shape} px, the noisy one {frame.shape}")
        scenes.append(Scene(name, frame, truth))
    return scenes + [Scene(path.stem, read_grey(path), None) for path in singles]


def read_grey(path: Path) -> Frame:
    """Read a frame as (h, w); of a colour one, green. Raises BadImage, naming the file."""
    try:
        # Not cv2.imread: it cannot open paths with letters beyond ASCII on Windows.
        data = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (OSError, cv2.error) as error:
        raise BadImage(f"{path}: cannot be read: {error}") from error
    if image is None:
        raise BadImage(f"{path}: not an image that can be decoded")
    frame: Any = np.ascontiguousarray(image if image.ndim == 2 else image[..., 1])
    try:
        grey_of(frame)
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error
    read: Frame = frame
    return read


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


# --- figures ---------------------------------------------------------------------------------


def _result(
    scene: Scene, restorer: Restorer, noise: NoiseModel, shown: NoiseModel, is_timed: bool
) -> SceneResult:
    """noise: what the checks are made with; shown: what the restorer is told."""
    began_s = time.perf_counter()
    answer = restorer.restore(scene.frame, shown)
    wall_s = time.perf_counter() - began_s
    for _ in range(_TIMED_REPEATS if is_timed and wall_s < 0.5 else 0):
        began_s = time.perf_counter()
        restorer.restore(scene.frame, shown)
        wall_s = min(wall_s, time.perf_counter() - began_s)
    psnr = likeness = snr = ratio = None
    if scene.truth is not None:
        span = float(np.ptp(scene.truth))
        psnr = psnr_db(answer.image, scene.truth, span)
        likeness = ssim(answer.image, scene.truth, span)
        snr = snr_db(answer.image, scene.truth)
        if answer.sigma is not None:
            error = np.sqrt(np.mean(np.square(answer.image - scene.truth), dtype=np.float64))
            said = np.sqrt(np.mean(np.square(answer.sigma), dtype=np.float64))
            ratio = float(error / max(said, 1e-12))
    sure = within = None
    if noise.in_distribution:
        sure = sure_snr_db(scene.frame, restorer, noise)
        sure = sure if math.isfinite(sure) else None
        within = whiteness(scene.frame, answer, noise).within_ratio
    return SceneResult(
        scene=scene.name,
        method=restorer.name,
        made_by=answer.method,
        psnr_db=psnr,
        ssim=likeness,
        snr_db=snr,
        sure_snr_db=sure,
        within_ratio=within,
        sigma_ratio=ratio,
        wall_s=wall_s,
        in_distribution=answer.in_distribution,
        reason=answer.reason,
    )


def _rows(
    results: Sequence[SceneResult], methods: Sequence[str], sizes: dict[str, int]
) -> list[Row]:
    known: dict[str, Callable[[SceneResult], float | None]] = {
        "psnr_db": lambda one: one.psnr_db,
        "ssim": lambda one: one.ssim,
        "snr_db": lambda one: one.snr_db,
        "sure_snr_db": lambda one: one.sure_snr_db,
        "bands_within_ratio": lambda one: one.within_ratio,
        "sigma_ratio": lambda one: one.sigma_ratio,
    }
    absent = {
        "sure_snr_db": "needs white noise and some signal",
        "bands_within_ratio": "needs white noise",
    }
    notes = {
        "psnr_db": "range: largest less smallest of the clean frame",
        "ssim": "Gaussian weights of 1.5 px, the same range",
        "sure_snr_db": "no truth used; median over frames",
        "bands_within_ratio": "of what was taken away, within 1 +- 0.05",
        "sigma_ratio": "error over the sigma said; 1 when honest",
    }
    units = {"psnr_db": "dB", "snr_db": "dB", "sure_snr_db": "dB"}
    rows = []
    for figure, value_of in known.items():
        for label, method in (("", methods[0]), *((f"_{name}", name) for name in methods)):
            values = [value_of(one) for one in results if one.method == method]
            found = np.array([value for value in values if value is not None])
            middle = np.median if figure == "sure_snr_db" else np.mean
            note = notes.get(figure, "") if found.size else absent.get(figure, "no truth at hand")
            if not label:
                note = f"{method}: {note}"
            value = float(middle(found)) if found.size else None
            span = _span(found, middle)
            unit = units.get(figure, "")
            rows.append(
                Row(f"{figure}{label}", value, unit, n=int(found.size), ci95=span, note=note)
            )
    for name in methods:
        mine = [one for one in results if one.method == name]
        speeds = [1e-6 * sizes[one.scene] / max(one.wall_s, 1e-9) for one in mine]
        speed = float(np.median(speeds)) if speeds else None
        rows.append(Row(f"mp_per_s_{name}", speed, "MP/s", n=len(speeds), note="noise known"))
    flagged = [one for one in results if one.method == methods[0] and not one.in_distribution]
    rows.append(
        Row(
            "flagged",
            float(len(flagged)),
            better="lower",
            n=sum(one.method == methods[0] for one in results),
            note=f"frames outside what can be judged; first: {flagged[0].reason}"
            if flagged
            else "frames outside what can be judged",
        )
    )
    return rows


def _span(found: npt.NDArray[np.float64], middle: Callable[..., Any]) -> tuple[float, float] | None:
    """95 % interval from frames drawn with replacement; None for fewer than two."""
    if found.size < 2 or not np.isfinite(found).all():
        return None
    drawn = np.random.default_rng(0).integers(0, found.size, (200, found.size))
    low, high = np.percentile(middle(found[drawn], axis=1), [2.5, 97.5])
    return float(low), float(high)
