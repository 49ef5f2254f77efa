"""What takes noise off frames, against its rivals: atoms, surfaces, real micrographs; and its cost.

Everybody is blind: the noise is estimated from each frame. Data range of PSNR and SSIM: largest
less smallest value of the clean frame. The oracle is the Wiener filter that knows the clean frame's
power, coefficient by coefficient: no filter of its kind can do better.

- graphene: the microscope that the literature reports on (80 kV, 0.154 A a pixel, spherical
  aberration within 20 um, defocus within 10 nm), a voltage and a band of defoci that no network was
  trained on; 256 x 256 px.
- other lattices: MoS2 and platinum, which none was trained on either.
- surfaces: superalloys and square grids out of the simulator, likewise; real oxides of
  $SCOPELOOP_DATA binned 2 x 2 as truth, and counted anew.
- micrographs: real frames as they are, no truth: Stein's estimate of the error.
- guard: what the networks' sigma covers; what was taken away, band by band; frames without anything
  in them.
- speed: wall-clock, one run after the other in this process.
- video, features, views: `restore_video` and `restore_views`.

VST+BM3D is measured, and its rows have a bar, where the package `bm3d` happens to be; its licence
is not for everyone, so it is no dependency.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from controller import app
from controller.bench import Report, restore_views
from controller.bench.flakes_baselines.photographs import data_folder
from controller.bench.numbers import load, share_row
from controller.bench.restore_video import feature_rows, video_rows
from controller.errors import BadSettings
from controller.figures import Row
from inference.api import ModelError
from inference.engine import Engine
from inference.onnx_engine import OnnxEngine
from inference.openvino_engine import OpenVinoEngine
from inference.restore.anchor import CHANNELS, PHASES, TwoStepWiener
from inference.restore.api import Frame, Grey, NoiseModel, Restored, Restorer, grey_of
from inference.restore.classical import (
    Gaussian,
    LocalWiener,
    NonLocalMeans,
    RadialWiener,
    cosine_transform,
    inverse_cosine_transform,
    stabilised,
    unstabilised,
)
from inference.restore.colour import noise_for_filters
from inference.restore.evaluate import at_dose, read_grey
from inference.restore.guard import Guarded, judge, sure_snr_db, thinned, whiteness
from inference.restore.network import NetworkDenoiser
from inference.restore.noise import estimate_noise
from inference.restore.scores import psnr_db, ssim
from simulator.restore_frames import CleanFrame, clean_frame, graphene_at_80_kv

_NETWORKS: Final = ("denoise_live", "denoise_quality")
_DOSES_E_PER_A2: Final = (300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
_BARRED_DOSES: Final = (1e3, 3e3, 1e4, 3e4)
_PEAKS_E: Final = (2.0, 8.0, 32.0, 128.0)
_OVER_RADIAL_DB: Final = 2.0
_OVER_BM3D_DB: Final = 1.0
_OVER_BM3D_SSIM: Final = 0.03
_BELOW_BEST_DB: Final = -0.3
_Z90: Final = 1.644854
_SPEED_BARS: Final = {"denoise_live": 40.0, "denoise_quality": 20.0}
_INT8_LOSS_DB: Final = 0.1
_PARTS: Final = (
    "graphene",
    "lattices",
    "surfaces",
    "micrographs",
    "guard",
    "speed",
    "video",
    "features",
    "views",
)
_RIVAL: Final = "vst_bm3d"
_ORACLE: Final = "oracle_wiener"
_NO_DATA: Final = "no micrographs here: set SCOPELOOP_DATA"


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A frame with the truth about it, electrons."""

    noisy: Grey
    truth: Grey


@dataclass(slots=True)
class Scores:
    """Of one method on some scenes."""

    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    @property
    def mean_db(self) -> float:
        """PSNR, mean over frames."""
        return float(np.mean(self.psnr_db))

    @property
    def mean_ssim(self) -> float:
        """SSIM, mean over frames."""
        return float(np.mean(self.ssim))

    def ci95_db(self) -> tuple[float, float] | None:
        """Of the mean, from frames drawn with replacement."""
        if len(self.psnr_db) < 2:
            return None
        values = np.array(self.psnr_db)
        drawn = np.random.default_rng(0).integers(0, values.size, (400, values.size))
        low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
        return float(low), float(high)


def measure(quick: bool, seed: int) -> list[Row]:
    """Run everything; see the module."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """Run what's asked for, part by part."""
    for part in report.only:
        if part not in _PARTS:
            raise BadSettings("", "bench restore --only", repr(part), ", ".join(_PARTS))
    networks = open_networks()
    rows: list[Row] = []
    parts: dict[str, Callable[[], list[Row]]] = {
        "graphene": lambda: graphene_rows(networks, 2 if quick else 12, seed, quick=quick),
        "lattices": lambda: lattice_rows(networks, 2 if quick else 12, seed),
        "surfaces": lambda: surface_rows(networks, 2 if quick else 8, seed),
        "micrographs": lambda: micrograph_rows(networks, 3 if quick else 100),
        "guard": lambda: guard_rows(networks, 2 if quick else 8, seed),
        "speed": lambda: [*speed_rows(quick=quick), *int8_loss_rows(1 if quick else 6, seed)],
        "video": lambda: video_rows(_shown_live(networks, quick), quick=quick, seed=seed),
        "features": lambda: feature_rows(_shown_live(networks, quick), quick=quick, seed=seed),
        "views": lambda: restore_views.rows(quick, seed),
    }
    began_s = time.monotonic()
    for name, part_rows in parts.items():
        if report.only and name not in report.only:
            continue
        if report.most_s is not None and time.monotonic() - began_s > report.most_s:
            break
        if report.progress is not None:
            report.progress(name)
        rows += part_rows()
        if report.partial is not None:
            report.partial(rows)
    if not networks:
        rows.append(Row("networks", None, note="no weights: scopeloop train restore"))
    return rows


def open_networks() -> list[NetworkDenoiser]:
    """Those whose weights are here, on onnxruntime, in float32."""
    here = {model.stem: model for model in app.models()}
    return [NetworkDenoiser(OnnxEngine(here[name])) for name in _NETWORKS if name in here]


def _shown_live(networks: Sequence[NetworkDenoiser], quick: bool) -> list[Restorer]:
    """What frames of a video are restored with; one of them when in a hurry."""
    found: list[Restorer] = [*networks[:1], RadialWiener()]
    return found[:1] if quick else found


# --- with the truth --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VstBm3d:
    """Anscombe's transform, BM3D, and back; the package's own defaults."""

    bm3d: Callable[..., Any]
    name: str = _RIVAL

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Filter one frame; see `api.Restorer`."""
        model = noise or estimate_noise(frame)
        alike = np.asarray(self.bm3d(stabilised(grey_of(frame), model), 1.0), np.float32)
        image = unstabilised(alike, model)
        return Restored(image, None, model.in_distribution, self.name, model.reason)


def rivals() -> list[Restorer]:
    """Everything that needs no weights; BM3D where the package is."""
    found: list[Restorer] = [RadialWiener(), LocalWiener(), Gaussian(), NonLocalMeans()]
    with suppress(ImportError):
        found.append(VstBm3d(importlib.import_module("bm3d").bm3d))
    return [*found, TwoStepWiener()]


def scored(scenes: Sequence[Scene], methods: Sequence[Restorer]) -> dict[str, Scores]:
    """Every method on every scene, the noise estimated once a frame; and the oracle."""
    scores = {name: Scores() for name in [*(each.name for each in methods), _ORACLE]}
    for scene in scenes:
        noise = noise_for_filters(scene.noisy)
        span = float(np.ptp(scene.truth))
        for method in methods:
            _add(scores[method.name], method.restore(scene.noisy, noise).image, scene.truth, span)
        _add(scores[_ORACLE], oracle_wiener(scene), scene.truth, span)
    return scores


def _add(scores: Scores, image: Grey, truth: Grey, span: float) -> None:
    scores.psnr_db.append(psnr_db(image, truth, span))
    scores.ssim.append(ssim(image, truth, span))


def oracle_wiener(scene: Scene) -> Grey:
    """The Wiener filter that knows the clean frame's power at every coefficient."""
    level = np.float32(scene.truth.mean())
    spectrum = cosine_transform(scene.noisy - level)
    power = np.square(cosine_transform(scene.truth - level))
    spectrum *= power / (power + level)  # counting noise: variance and mean are one
    return inverse_cosine_transform(spectrum, scene.truth.shape) + level


def counted(frame: CleanFrame, dose_e: float, seed: int) -> Scene:
    """Count electrons over a clean frame; dose_e: a pixel, where its level is 1."""
    truth = frame.level * np.float32(dose_e)
    noisy = np.random.default_rng([0xD05E, seed]).poisson(truth).astype(np.float32)
    return Scene(noisy, truth)


def graphene_rows(
    networks: Sequence[NetworkDenoiser], frames: int, seed: int, *, quick: bool = False
) -> list[Row]:
    """PSNR and SSIM against dose; the radial Wiener filter is what the bar counts from."""
    clean = [graphene_at_80_kv(seed, number) for number in range(frames)]
    methods = [*rivals(), *networks]
    rows = []
    for dose in (1e3, 1e4) if quick else _DOSES_E_PER_A2:
        per_px = [(10.0 * frame.pixel_size_nm) ** 2 * dose for frame in clean]
        scenes = [
            counted(frame, e, number)
            for number, (frame, e) in enumerate(zip(clean, per_px, strict=True))
        ]
        scores = scored(scenes, methods)
        bar = scores["radial_wiener"].mean_db + _OVER_RADIAL_DB if dose in _BARRED_DOSES else None
        rows += _rows(f"graphene, {dose:g} e/A2", scores, networks, bar)
    return rows


def lattice_rows(networks: Sequence[NetworkDenoiser], frames: int, seed: int) -> list[Row]:
    """Materials that no network has seen."""
    clean = [clean_frame(seed, number, "test", family="hrtem") for number in range(frames)]
    rows = []
    for dose in (1e3, 1e4):
        scenes = [
            counted(frame, (10.0 * frame.pixel_size_nm) ** 2 * dose, number)
            for number, frame in enumerate(clean)
        ]
        scores = scored(scenes, [RadialWiener(), TwoStepWiener(), *networks])
        bar = scores["radial_wiener"].mean_db + _OVER_RADIAL_DB
        rows += _rows(f"MoS2 and platinum, {dose:g} e/A2", scores, networks, bar)
    return rows


def surface_rows(networks: Sequence[NetworkDenoiser], frames: int, seed: int) -> list[Row]:
    """Surfaces under the electron beam, simulated and real, at few electrons a pixel."""
    clean = [clean_frame(seed, number, "test", family="surface") for number in range(frames)]
    real = list(oxides(frames))
    methods = [*rivals(), *networks]
    rows = []
    for peak_e in _PEAKS_E:
        scenes = [counted(frame, peak_e, number) for number, frame in enumerate(clean)]
        rows += _surface_rows(f"surfaces, {peak_e:g} e/px", scored(scenes, methods), networks)
        if real:
            pairs = [at_dose(truth, peak_e, number) for number, truth in enumerate(real)]
            scenes = [Scene(noisy, truth) for noisy, truth in pairs]
            rows += _surface_rows(
                f"real oxides, {peak_e:g} e/px", scored(scenes, methods), networks
            )
    if not real:
        rows.append(Row("real oxides", None, "dB", note=_NO_DATA))
    return rows


def _surface_rows(
    name: str, scores: dict[str, Scores], networks: Sequence[NetworkDenoiser]
) -> list[Row]:
    rival = scores.get(_RIVAL)
    if rival is None:
        return _rows(name, scores, networks, None)
    return _rows(
        name,
        scores,
        networks,
        rival.mean_db + _OVER_BM3D_DB,
        rival.mean_ssim + _OVER_BM3D_SSIM,
        "vst_bm3d",
    )


def _rows(
    name: str,
    scores: dict[str, Scores],
    networks: Sequence[NetworkDenoiser],
    bar_db: float | None,
    bar_ssim: float | None = None,
    against: str = "radial_wiener",
) -> list[Row]:
    """A row a method; only networks have a bar."""
    ours = {network.name for network in networks}
    rows = []
    for method, found in scores.items():
        rows.append(
            Row(
                f"{name}, {method}",
                found.mean_db,
                "dB",
                bar_db if method in ours else None,
                baseline=scores[against].mean_db if method in ours else None,
                n=len(found.psnr_db),
                ci95=found.ci95_db(),
                note=f"SSIM {found.mean_ssim:.3f}",
            )
        )
        if method in ours and bar_ssim is not None:
            rows.append(
                Row(
                    f"{name}, {method}, SSIM",
                    found.mean_ssim,
                    "",
                    bar_ssim,
                    baseline=scores[against].mean_ssim,
                    n=len(found.ssim),
                )
            )
    return rows


# --- real micrographs ------------------------------------------------------------------------


def oxides(at_most: int) -> Iterator[Grey]:
    """Real surfaces, binned until they are nearly clean; 256 x 256 px out of the middle."""
    folder = data_folder() / "micrographs" / "sem_oxide"
    for path in sorted(folder.glob("*.png"))[:at_most] if folder.is_dir() else ():
        grey = grey_of(read_grey(path))
        half = (grey.shape[1] // 2, grey.shape[0] // 2)
        binned = np.asarray(cv2.resize(grey, half, interpolation=cv2.INTER_AREA), np.float32)
        yield _middle(binned, 256)


def _middle(grey: Grey, side_px: int) -> Grey:
    top, left = (max(side - side_px, 0) // 2 for side in grey.shape)
    return np.ascontiguousarray(grey[top : top + side_px, left : left + side_px])


def micrograph_rows(networks: Sequence[NetworkDenoiser], at_most: int) -> list[Row]:
    """Signal over Stein's estimate of the error, against the best of the classical filters.

    Frames whose noise is not white cannot be judged so; they are counted.
    """
    folder = data_folder() / "micrographs"
    paths = sorted(folder.rglob("*.png"))[:at_most] if folder.is_dir() else []
    if not paths:
        return [Row("micrographs", None, "dB", note=_NO_DATA)]
    classical = [each for each in rivals() if each.name != TwoStepWiener().name]
    over: dict[str, list[float]] = {each.name: [] for each in networks}
    over |= {f"{each.name}, guarded": [] for each in networks}
    over_bm3d: dict[str, list[float]] = {each.name: [] for each in networks}
    left_out = 0
    for path in paths:
        grey = _middle(grey_of(read_grey(path)), 512)
        noise = estimate_noise(grey)
        snrs = {each.name: sure_snr_db(grey, each, noise) for each in classical}
        if not noise.in_distribution or not all(map(math.isfinite, snrs.values())):
            left_out += 1
            continue
        best = max(snr for name, snr in snrs.items() if name != _RIVAL)
        for network in networks:
            mine = sure_snr_db(grey, network, noise)
            over[network.name].append(mine - best)
            if _RIVAL in snrs:
                over_bm3d[network.name].append(mine - snrs[_RIVAL])
            shown = Guarded(network).restore(grey, noise)
            stands = mine if shown.method == network.name else best
            over[f"{network.name}, guarded"].append(stands - best)
    words = f"of the classical filters, by SURE; {left_out} of {len(paths)} frames not white"
    rows = []
    for name, gains in over.items():
        if not gains:
            rows.append(Row(f"micrographs, {name}", None, "dB", note=words))
            continue
        median, worst = float(np.median(gains)), float(np.min(gains))
        row = f"micrographs, {name} over the best"
        rows.append(Row(f"{row}, median", median, "dB", n=len(gains), note=words))
        rows.append(Row(f"{row}, worst", worst, "dB", _BELOW_BEST_DB, n=len(gains)))
    for name, gains in over_bm3d.items():
        hits = sum(gain >= _OVER_BM3D_DB for gain in gains)
        if gains:
            row = f"micrographs, {name} 1 dB over BM3D"
            rows.append(share_row(row, hits, len(gains), 0.5))
    return rows


# --- whether to believe it -------------------------------------------------------------------


def guard_rows(networks: Sequence[NetworkDenoiser], frames: int, seed: int) -> list[Row]:
    """What the sigma covers, what was taken away, and what is made of nothing."""
    rows = []
    for network in networks:
        rows += _covered_rows(network, frames, seed)
        rows += _nothing_rows(network, frames, seed)
    return rows


def _covered_rows(network: NetworkDenoiser, frames: int, seed: int) -> list[Row]:
    covered: dict[str, list[float]] = {"graphene": [], "surfaces": []}
    within: list[float] = []
    passed = 0
    scenes: list[tuple[str, Scene]] = []
    for number in range(frames):
        graphene = graphene_at_80_kv(seed, number)
        surface = clean_frame(seed, number, "test", family="surface")
        for dose in (1e3, 1e4, 1e5):
            per_px = (10.0 * graphene.pixel_size_nm) ** 2 * dose
            scenes.append(("graphene", counted(graphene, per_px, number)))
        scenes += [("surfaces", counted(surface, peak_e, number)) for peak_e in _PEAKS_E]
    for kind, scene in scenes:
        noise = estimate_noise(scene.noisy)
        answer = network.restore(scene.noisy, noise)
        if answer.sigma is not None:
            off = np.abs(answer.image - scene.truth) <= np.float32(_Z90) * answer.sigma
            covered[kind].append(float(off.mean()))
        within.append(whiteness(scene.noisy, answer, noise).within_ratio)
        passed += judge(scene.noisy, answer, noise, network).passed
    rows = []
    for kind, shares in covered.items():
        share = float(np.mean(shares))
        words = f"they cover {share:.3f}; by frame {min(shares):.3f} to {max(shares):.3f}"
        row = f"{network.name}, 90 % on {kind}: off by"
        rows.append(Row(row, abs(share - 0.9), "", 0.02, "lower", n=len(shares), note=words))
    halves = [_twin_covered(network, path) for path in _micrographs(frames)]
    real = [each for each in halves if each is not None]
    if real:
        share = float(np.mean(real))
        row = f"{network.name}, 90 % on real halves: off by"
        words = f"they cover {share:.3f}, the judging half's noise included"
        rows.append(Row(row, abs(share - 0.9), "", 0.05, "lower", n=len(real), note=words))
    row = f"{network.name}, bands within 1 +- 0.05"
    rows.append(Row(row, float(np.mean(within)), "", 0.95, n=len(within)))
    rows.append(share_row(f"{network.name}, passed by the guard", passed, len(scenes)))
    return rows


def _micrographs(at_most: int) -> list[Path]:
    folder = data_folder() / "micrographs"
    return sorted(folder.rglob("*.png"))[:at_most] if folder.is_dir() else []


def _twin_covered(network: NetworkDenoiser, path: Path) -> float | None:
    """Share of the judging half's pixels within 90 % of what the other half says of them."""
    grey = _middle(grey_of(read_grey(path)), 512)
    noise = estimate_noise(grey)
    if not noise.in_distribution:
        return None
    first, second, halves = thinned(grey, noise, np.random.default_rng(1))
    answer = network.restore(first, halves)
    if answer.sigma is None:
        return None
    spread = np.sqrt(np.square(answer.sigma) + halves.variance_dn2(answer.image))
    return float(np.mean(np.abs(second - answer.image) <= np.float32(_Z90) * spread))


def _nothing_rows(network: NetworkDenoiser, frames: int, seed: int) -> list[Row]:
    """Frames of counting noise and nothing else: all that's left of it is invented."""
    left, passed, pairs = [], 0, 0
    for number in range(4 * frames):
        dose_e = (24.0, 240.0, 4.0, 2_400.0)[number % 4]
        rng = np.random.default_rng([0x0, seed, number])
        noisy = rng.poisson(dose_e, (256, 256)).astype(np.float32)
        noise = estimate_noise(noisy)
        answer = network.restore(noisy, noise)
        left.append(float(np.std(answer.image)) / math.sqrt(dose_e))
        pairs += 1
        passed += judge(noisy, answer, noise, network).passed
    row = f"{network.name}, left of noise alone"
    note = f"standard deviation over the noise's, worst {max(left):.3f}; guard passed {passed}"
    return [Row(row, float(np.mean(left)), "", better="lower", n=pairs, note=note)]


# --- speed -----------------------------------------------------------------------------------


def speed_rows(*, quick: bool) -> list[Row]:
    """Megapixels a second: networks alone on every runtime, and whole restorations."""
    rows = []
    for side_px in (512,) if quick else (512, 2_048):
        for name in _NETWORKS:
            rows += _network_speeds(name, side_px, quick=quick)
        noisy = np.random.default_rng(0).poisson(40.0, (side_px, side_px)).astype(np.float32)
        told = NoiseModel(1.0, 0.0, 0.0)
        whole: list[Restorer] = [RadialWiener(), TwoStepWiener(), LocalWiener(), Gaussian()]
        whole += [] if side_px > 512 else [NonLocalMeans()]
        for restorer in [*whole, *_fast_networks()]:
            speed = _speed(partial(restorer.restore, noisy, told), noisy.size, quick=quick)
            row = f"{side_px} px, whole way, {restorer.name}"
            rows.append(Row(row, speed, "MP/s", note=load()))
        speed = _speed(partial(estimate_noise, noisy), noisy.size, quick=quick)
        rows.append(Row(f"{side_px} px, estimating the noise", speed, "MP/s"))
    return rows


def _fast_networks() -> list[Restorer]:
    """As a user gets them."""
    found: list[Restorer] = []
    here = {model.stem: model for model in app.models()}
    for name in _NETWORKS:
        for stem in (name, f"{name}_int8"):
            if stem in here:
                try:
                    engine = OpenVinoEngine(here[stem], os.cpu_count() or 1)
                except ModelError:
                    continue
                found.append(NetworkDenoiser(engine))
    return found


def _network_speeds(name: str, side_px: int, *, quick: bool) -> list[Row]:
    here = {model.stem: model for model in app.models()}
    cores = os.cpu_count() or 1
    ways: dict[str, tuple[str, Callable[[Path], Engine]]] = {
        "onnxruntime float32": (name, lambda path: OnnxEngine(path, cores)),
        "onnxruntime int8": (f"{name}_int8", lambda path: OnnxEngine(path, cores)),
        "OpenVINO float32": (name, lambda path: OpenVinoEngine(path, cores, precision="float32")),
        "OpenVINO bfloat16": (name, lambda path: OpenVinoEngine(path, cores, precision="bfloat16")),
        "OpenVINO int8": (f"{name}_int8", lambda path: OpenVinoEngine(path, cores)),
    }
    half = side_px // PHASES
    seen = np.random.default_rng(0).standard_normal((1, CHANNELS, half, half), dtype=np.float32)
    rows = []
    for way, (stem, opened) in ways.items():
        row = f"{side_px} px, {name}, {way}"
        bar = _SPEED_BARS[name] if way == "OpenVINO int8" else None
        if stem not in here:
            rows.append(Row(row, None, "MP/s", bar, note=f"no {stem}.onnx here"))
            continue
        try:
            engine = opened(here[stem])
        except ModelError as error:
            rows.append(Row(row, None, "MP/s", bar, note=str(error)))
            continue
        speed = _speed(partial(engine.run, seen), side_px**2, quick=quick)
        rows.append(Row(row, speed, "MP/s", bar, note=load()))
    return rows


def _speed(work: Callable[[], object], pixels: int, *, quick: bool) -> float:
    """Megapixels a second in the best of several runs: what the machine does when left alone."""
    work()
    best_s = math.inf
    began_s = time.perf_counter()
    for _ in range(5 if quick else 30):
        start_s = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - start_s)
        if time.perf_counter() - began_s > (1.0 if quick else 5.0):
            break
    return 1e-6 * pixels / best_s


def int8_loss_rows(frames: int, seed: int) -> list[Row]:
    """What 8-bit arithmetic costs in PSNR, on graphene and surfaces."""
    here = {model.stem: model for model in app.models()}
    rows = []
    for name in _NETWORKS:
        stem = f"{name}_int8"
        if name not in here or stem not in here:
            continue
        fine, coarse = (
            NetworkDenoiser(OnnxEngine(here[name])),
            NetworkDenoiser(OnnxEngine(here[stem])),
        )
        losses = []
        for number in range(frames):
            clean = graphene_at_80_kv(seed, number)
            scenes = [
                counted(clean, (10.0 * clean.pixel_size_nm) ** 2 * dose, number)
                for dose in (1e3, 1e4)
            ]
            surface = clean_frame(seed, number, "test", family="surface")
            scenes += [counted(surface, peak_e, number) for peak_e in (2.0, 32.0)]
            for scene in scenes:
                span = float(np.ptp(scene.truth))
                a, b = (
                    psnr_db(each.restore(scene.noisy).image, scene.truth, span)
                    for each in (fine, coarse)
                )
                losses.append(a - b)
        row = f"{name}, what int8 loses, mean"
        note = f"worst frame {max(losses):.3f} dB"
        mean = float(np.mean(losses))
        rows.append(Row(row, mean, "dB", _INT8_LOSS_DB, "lower", n=len(losses), note=note))
    return rows
