"""The two computed views against truth: refocused frames, and frames of half the pixel size.

Refocusing: surfaces that training has not seen, through the electron probe of `simulator.probe`
(waves near focus, rays beyond; training knew even ellipses), out of focus and astigmatic, at the
counting noise of 32 electrons a bright pixel. Richardson and Lucy's deconvolution is given the true
kernel and, of its first 60 rounds, the one nearest to the truth: more than it ever gets.

Twice as fine: gold islands on carbon, seen at twice the pixel size at the same electrons a pixel
(200 of a bright one), so at a quarter of the dose on the sample. A gap is what closing (5 pixels
across) fills between bright islands, six pixels of it at least; it's missed where the view, cut by
Otsu's threshold, is dark on less than half of it; and false where the view's gap lies less than
half on the truth's dark places. De Haan et al. (Sci. Rep. 9, 12050, 2019) report 13.9 % missed in
their frames of half the magnification, and 3.7 % after their network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from controller import app
from controller.figures import Row
from inference.restore.api import Grey, NoiseModel
from inference.restore.classical import RadialWiener
from inference.restore.scores import psnr_db
from inference.restore.views import ComputedView, ViewName, enlarged
from simulator.probe import BeamSettings, Probe
from simulator.restore_frames import clean_frame
from simulator.specimen import Specimen, SpecimenSettings

_PEAK_E: Final = 32.0  # electrons of a bright pixel, refocusing
_MAGNIFIED_PEAK_E: Final = 200.0  # as the simulated SEM has by default
_COUNTED: Final = NoiseModel(1.0, 0.0, 0.0)
_ROUNDS: Final = 60
_BEAM: Final = BeamSettings()
_PIXEL_NM: Final = 10.0
_SIDE_PX: Final = 256
_BORDER_PX: Final = 32
_CLOSED_PX: Final = 5
_LEAST_GAP_PX: Final = 6
_FEATURES_NM: Final = (120.0, 160.0, 220.0)

Mask: TypeAlias = npt.NDArray[np.bool_]
Measure: TypeAlias = Callable[[ComputedView, bool, int], list[Row]]


def rows(quick: bool, seed: int) -> list[Row]:
    """Both views; a view whose weights are not here is a row that says so."""
    found = []
    measures: dict[ViewName, Measure] = {"refocus": _refocus_rows, "magnify": _magnify_rows}
    for name, measure in measures.items():
        view = app.computed_view(name)
        if view is None:
            note = f"no weights: scopeloop train restore --task {name}"
            found.append(Row(f"view {name}", None, "", note=note))
        else:
            found += measure(view, quick, seed)
    return found


# --- refocused -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Refocused:
    """PSNR in dB of one frame, data range 32 electrons."""

    input_db: float
    filtered_db: float  # the radial Wiener filter: denoised, as blurred as it was
    richardson_lucy_db: float
    view_db: float


def _refocus_rows(view: ComputedView, quick: bool, seed: int) -> list[Row]:
    count = 6 if quick else 60
    surfaces = [
        _refocused(view, clean_frame(seed, number, "test", family="surface").level, seed, number)
        for number in range(count)
    ]
    unseen = [
        _refocused(view, clean_frame(seed, number, "test", family=family).level, seed, number)
        for family in ("picture", "chip", "stem")
        for number in range(count // 3)
    ]
    mean = {name: _mean(surfaces, name) for name in ("input_db", "filtered_db", "view_db")}
    deconvolved_db = _mean(surfaces, "richardson_lucy_db")
    worse = np.mean([each.view_db < each.input_db for each in [*surfaces, *unseen]])
    blurred = np.mean([each.view_db < each.filtered_db - 0.3 for each in [*surfaces, *unseen]])
    what = f"refocus, unseen surfaces at {_PEAK_E:g} e/px"
    return [
        Row(
            f"{what}: PSNR over the input's",
            mean["view_db"] - mean["input_db"],
            "dB",
            3.0,
            "higher",
            n=count,
            note=f"input {mean['input_db']:.2f} dB, view {mean['view_db']:.2f} dB",
        ),
        Row(
            f"{what}: PSNR over Richardson-Lucy's",
            mean["view_db"] - deconvolved_db,
            "dB",
            1.5,
            "higher",
            n=count,
            note=f"true kernel, best round: {deconvolved_db:.2f} dB",
        ),
        Row(
            f"{what}: PSNR over the radial Wiener's, which does not refocus",
            mean["view_db"] - mean["filtered_db"],
            "dB",
            better="higher",
            n=count,
        ),
        Row(
            "refocus, all unseen classes: frames worse than the input",
            float(worse),
            "",
            0.0,
            "lower",
            n=len(surfaces) + len(unseen),
        ),
        Row(
            "refocus, all unseen classes: frames 0.3 dB worse than the radial Wiener",
            float(blurred),
            "",
            better="lower",
            n=len(surfaces) + len(unseen),
        ),
    ]


def _mean(results: list[_Refocused], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in results]))


def _refocused(view: ComputedView, level: Grey, seed: int, number: int) -> _Refocused:
    rng = np.random.default_rng([0x5EF0, seed, number])
    radius_px = float(rng.uniform(1.0, 5.0) * rng.choice([-1.0, 1.0]))
    to_um = _PIXEL_NM / _BEAM.convergence_mrad  # of defocus, for a pixel of radius
    stig_um = rng.normal(0.0, 0.7, 2) * to_um
    probe = Probe(_BEAM, radius_px * to_um, float(stig_um[0]), float(stig_um[1]))
    seen = _through(level, probe)
    truth = level * np.float32(_PEAK_E)
    counts = rng.poisson(np.maximum(seen, 0.0) * _PEAK_E).astype(np.float32)
    shown = view.view(counts, _COUNTED).image
    filtered = RadialWiener().restore(counts, _COUNTED).image
    inner = (slice(_BORDER_PX, -_BORDER_PX), slice(_BORDER_PX, -_BORDER_PX))

    def score_db(image: Grey) -> float:
        return psnr_db(image[inner], truth[inner], _PEAK_E)

    kernel = probe.point_spread(_PIXEL_NM, 2 * _BORDER_PX + 1)
    deconvolved = max(score_db(each) for each in _richardson_lucy(counts, kernel))
    return _Refocused(score_db(counts), score_db(filtered), deconvolved, score_db(shown))


def _through(level: Grey, probe: Probe) -> Grey:
    """The frame as that probe scans it; mirrored at its edges."""
    wide = cv2.copyMakeBorder(level, *(_BORDER_PX,) * 4, cv2.BORDER_REFLECT_101)
    shape = (wide.shape[0], wide.shape[1])
    spectrum = np.fft.rfft2(wide) * probe.transfer(_PIXEL_NM, shape)
    seen = np.fft.irfft2(spectrum, s=shape)[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX]
    return np.asarray(seen, np.float32)


def _richardson_lucy(counts: Grey, kernel: Grey) -> Iterator[Grey]:
    """The image after each round (W. H. Richardson 1972, L. B. Lucy 1974)."""
    turned = np.ascontiguousarray(kernel[::-1, ::-1])
    image = np.full_like(counts, float(counts.mean()))
    for _ in range(_ROUNDS):
        blurred = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        ratio = counts / np.maximum(blurred, np.float32(1e-3))
        image = image * cv2.filter2D(ratio, -1, turned, borderType=cv2.BORDER_REFLECT_101)
        yield np.asarray(image, np.float32)


# --- twice as fine ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps of one frame."""

    true: int
    missed: int
    said: int
    false: int


def _magnify_rows(view: ComputedView, quick: bool, seed: int) -> list[Row]:
    count = 3 if quick else 30
    found: dict[str, list[Gaps]] = {"as it came": [], "radial Wiener": [], "view": []}
    gains = []
    for number in range(count):
        level = islands(seed, number)
        rng = np.random.default_rng([0x3A9, seed, number])
        coarse = _through(level, Probe(_BEAM))
        coarse = coarse.reshape(_SIDE_PX, 2, _SIDE_PX, 2).mean(axis=(1, 3))
        counts = rng.poisson(np.maximum(coarse, 0.0) * _MAGNIFIED_PEAK_E).astype(np.float32)
        filtered = enlarged(RadialWiener().restore(counts, _COUNTED).image, view.scale)
        shown = view.view(counts, _COUNTED).image
        truth = level * np.float32(_MAGNIFIED_PEAK_E)
        gains.append(
            psnr_db(shown, truth, _MAGNIFIED_PEAK_E) - psnr_db(filtered, truth, _MAGNIFIED_PEAK_E)
        )
        for name, image in (
            ("as it came", enlarged(counts, view.scale)),
            ("radial Wiener", filtered),
            ("view", shown),
        ):
            found[name].append(gaps(image, truth))
    listed = []
    for name, results in found.items():
        bars = (0.037, 0.01) if name == "view" else (None, None)
        true, said = sum(each.true for each in results), sum(each.said for each in results)
        missed, false = (sum(getattr(each, key) for each in results) for key in ("missed", "false"))
        what = f"magnify, islands at a quarter of the dose, {name}"
        listed += [
            Row(f"{what}: gaps missed", missed / max(true, 1), "", bars[0], "lower", n=true),
            Row(f"{what}: false gaps", false / max(said, 1), "", bars[1], "lower", n=said),
        ]
    gain_db = float(np.mean(gains))
    listed.append(Row("magnify: PSNR over the enlarged radial Wiener's", gain_db, "dB", n=count))
    return listed


def islands(seed: int, number: int) -> Grey:
    """Gold on carbon, (512, 512), bright pixels about 1."""
    settings = SpecimenSettings(
        kind="gold_on_carbon",
        seed=77_000 + 1_000 * seed + number,
        feature_nm=_FEATURES_NM[number % len(_FEATURES_NM)],
    )
    side_px = 2 * _SIDE_PX
    field = Specimen(settings).field(0.0, 0.0, _PIXEL_NM, (side_px, side_px), 0)
    plane = np.asarray(cv2.GaussianBlur(field.yield_ratio, (0, 0), 0.6), np.float32)
    return plane / np.float32(np.percentile(plane, 99.5))


def gaps(image: Grey, truth: Grey) -> Gaps:
    """What a view makes of the gaps that are there; both (h, w), in the same numbers."""
    is_dark, is_truly_dark = _dark(image), _dark(truth)
    true = _components(_narrow(is_truly_dark))
    said = _components(_narrow(is_dark))
    missed = sum(bool(is_dark[each].mean() < 0.5) for each in true)
    false = sum(bool(is_truly_dark[each].mean() < 0.5) for each in said)
    return Gaps(len(true), missed, len(said), false)


def _dark(image: Grey) -> Mask:
    top = max(float(np.percentile(image, 99.5)), 1e-6)
    levels = np.clip(image * (255.0 / top), 0.0, 255.0).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0.0, 255.0, cv2.THRESH_OTSU)
    return np.asarray(levels <= threshold)


def _narrow(is_dark: Mask) -> Mask:
    """The dark that closing fills."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_CLOSED_PX, _CLOSED_PX))
    bright = (~is_dark).astype(np.uint8)
    return np.asarray((cv2.morphologyEx(bright, cv2.MORPH_CLOSE, disc) > 0) & is_dark)


def _components(mask: Mask) -> list[Mask]:
    """Its pieces that are large enough, each (h, w)."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    large = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] >= _LEAST_GAP_PX]
    return [np.asarray(labels == k) for k in large]
