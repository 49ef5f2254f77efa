"""Train the exit wave's network: frames of known waves -> corrections of amplitude and phase.

Takes any iterable of `WaveExample`s (the simulator makes them; this room does not know it). Lens,
focus, dose and camera are drawn anew for every frame, so no frame is seen twice; half of the frames
are said to be focused otherwise than they are, by as much as `ctf` errs. The network's answer goes
through the lens that it was told, and loss is taken of what comes out as of the wave itself:

    log MSE(image) + log MSE(phase) / 2 + log MSE(amplitude) / 10, frame by frame,

so that every dose counts alike. Convolutions are in bfloat16, which takes half the time; weights
are averaged over the steps. A training that was stopped goes on where it was if its checkpoint is
still there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from inference.engine import Card, Tensor, card_path
from inference.restore.api import NoiseModel, Restorer
from inference.restore.classical import LocalWiener, RadialWiener
from inference.restore.electrons import Focus, Lens, frequencies_per_nm, transfer
from inference.restore.exit_wave import (
    MARGIN_PX,
    PIXEL_NM,
    PLANES,
    SCALE,
    ExitWaveRestorer,
    Microscope,
    intensity,
    mtf,
    padded,
    planes,
)
from inference.restore.scores import psnr_db
from inference.training.exit_wave_network import ExitWaveModule, export, seen, wave_of
from inference.training.wave_examples import WaveExample

_LOG = logging.getLogger(__name__)
_FRAME_PX: Final = 128
_AVERAGING: Final = 0.998
_CHECK_DOSES: Final = (1e3, 1e4, 1e5)

F32 = npt.NDArray[np.float32]
Report = Callable[[int, int, str], None]  # done, of how much, doing what


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train; everything follows from the seed, but the length of a step from the machine."""

    seed: int = 5
    most_seconds: float = 1_500.0  # training ends then, its schedule fitted to it
    most_steps: int = 1_000_000
    batch: int = 6
    rate: float = 2e-3
    check_frames: int = 12  # for each of three doses
    save_seconds: float = 240.0  # between checks, each with a model that can be used
    checkpoint: Path | None = None  # None: a training that is stopped is lost
    command: str = "scopeloop train exit_wave"

    @classmethod
    def quick(cls) -> Recipe:
        """The same in miniature, to see that it runs."""
        return cls(most_seconds=60.0, most_steps=3, batch=2, check_frames=1)


# --- frames ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """One frame and its truth. `told`: the microscope as the network believes it to be."""

    contrast: F32  # (h, w): over its mean, less 1
    sigma: float
    told: Microscope
    clean: F32  # contrast without noise
    wave: npt.NDArray[np.complex64]  # (h, w)


def drawn_microscope(
    rng: np.random.Generator, pixel_nm: float, voltage_kv: float, most_defocus_um: float = 0.018
) -> Microscope:
    """A corrected microscope of any make, near focus."""
    lens = Lens(
        voltage_kv=voltage_kv,
        spherical_mm=float(rng.uniform(-0.025, 0.025)),
        focal_spread_um=float(rng.uniform(0.0015, 0.005)),
        direction_mrad=float(rng.uniform(0.02, 0.3)),
        aperture_mrad=float(rng.uniform(40.0, 70.0)),
    )
    stig_x, stig_y = rng.normal(0.0, 0.0015, 2)
    focus = Focus(float(rng.uniform(-1.0, 1.0) * most_defocus_um), (float(stig_x), float(stig_y)))
    return Microscope(lens, focus, pixel_nm, float(rng.uniform(0.4, 1.0)))


def misled(rng: np.random.Generator, true: Microscope) -> Microscope:
    """The same, its focus known as well as a frame shows it."""
    stig_x, stig_y = np.array(true.focus.stig_um) + rng.normal(0.0, 0.0004, 2)
    defocus_um = true.focus.defocus_um + float(rng.normal(0.0, 0.0006))
    focus = Focus(defocus_um, (float(stig_x), float(stig_y)))
    return Microscope(true.lens, focus, true.pixel_size_nm, true.mtf_ratio)


def counted(
    rng: np.random.Generator, ratio: F32, dose_e_per_px: float, mtf_ratio: float, ntf_ratio: float
) -> F32:
    """Electrons a pixel over the dose, what the camera does to their noise included.

    ratio: the clean frame as the camera gives it, whose noise passes `ntf_ratio` at Nyquist.
    """
    if ntf_ratio >= 1.0:
        return (rng.poisson(ratio * dose_e_per_px) / dose_e_per_px).astype(np.float32)
    passes = mtf((ratio.shape[0], ratio.shape[1]), ntf_ratio)[:, : ratio.shape[1] // 2 + 1]
    before = np.fft.irfft2(np.fft.rfft2(ratio) / passes, ratio.shape)
    noisy = rng.poisson(np.maximum(before, 0.0) * dose_e_per_px) / dose_e_per_px
    return np.fft.irfft2(np.fft.rfft2(noisy) * passes, ratio.shape).astype(np.float32)


def _frame(rng: np.random.Generator, example: WaveExample) -> _Frame:
    side = _FRAME_PX + 2 * MARGIN_PX
    row, column = (int(rng.integers(full - side + 1)) for full in example.phase_rad.shape)
    wave = example.wave(slice(row, row + side), slice(column, column + side))
    wave = np.rot90(wave, int(rng.integers(4)))
    wave = np.ascontiguousarray(wave[:, ::-1] if rng.random() < 0.5 else wave)
    true = drawn_microscope(rng, example.pixel_size_nm, example.voltage_kv)
    told = misled(rng, true) if rng.random() < 0.5 else true
    inner = slice(MARGIN_PX, MARGIN_PX + _FRAME_PX)
    ratio = intensity(wave, true)[inner, inner]
    dose = float(10.0 ** rng.uniform(2.5, 5.3)) * (10.0 * example.pixel_size_nm) ** 2
    ntf_ratio = float(rng.uniform(0.7, 1.0)) if rng.random() < 0.5 else 1.0
    noisy = counted(rng, ratio, dose, true.mtf_ratio, ntf_ratio)
    level = float(noisy.mean(dtype=np.float64))
    sigma = math.sqrt(level / dose) / level
    contrast = (noisy / level - 1.0).astype(np.float32)
    clean = (ratio / level - 1.0).astype(np.float32)
    return _Frame(contrast, sigma, told, clean, wave[inner, inner])


@dataclass(frozen=True, slots=True)
class _Batch:
    planes: torch.Tensor  # (n, PLANES, H, W), padded
    passed: torch.Tensor  # (n, H, W) complex
    damping: torch.Tensor  # (n, H, W)
    clean: torch.Tensor  # (n, h, w)
    wave: torch.Tensor  # (n, h, w) complex


def _batch(rng: np.random.Generator, shelf: Sequence[WaveExample], size: int) -> _Batch:
    given, passed, damping, clean, waves = [], [], [], [], []
    for _ in range(size):
        frame = _frame(rng, shelf[int(rng.integers(len(shelf)))])
        wide, _ = padded(frame.contrast)
        given.append(planes(wide, frame.sigma, frame.told))
        shape = wide.shape[0], wide.shape[1]
        kx, ky = frequencies_per_nm(shape, frame.told.pixel_size_nm)
        passed.append(transfer(frame.told.lens, frame.told.focus, kx, ky))
        damping.append(mtf(shape, frame.told.mtf_ratio).astype(np.float32))
        clean.append(frame.clean)
        waves.append(frame.wave)
    stacked = (torch.from_numpy(np.stack(part)) for part in (given, passed, damping, clean, waves))
    return _Batch(*stacked)


def _loss(module: ExitWaveModule, batch: _Batch) -> tuple[torch.Tensor, tuple[float, float]]:
    """The loss, and the frames' root mean squared errors of image and phase in units of SCALE."""
    with torch.autocast("cpu", torch.bfloat16):
        correction = module(batch.planes.contiguous(memory_format=torch.channels_last))
    wave = wave_of(batch.planes, correction)
    height, width = batch.clean.shape[1:]
    rows, columns = slice(MARGIN_PX, MARGIN_PX + height), slice(MARGIN_PX, MARGIN_PX + width)
    image = seen(wave, batch.passed, batch.damping)[:, rows, columns]
    image = image - 1.0
    off_image = _about_mean(image - batch.clean) / SCALE
    inner = wave[:, rows, columns]
    off_phase = _about_mean(inner.angle() - batch.wave.angle()) / SCALE
    off_amplitude = (inner.abs() - batch.wave.abs()) / SCALE
    errors = [off.square().mean(dim=(1, 2)) for off in (off_image, off_phase, off_amplitude)]
    least = (1e-5, 1e-3, 1e-3)
    logs = [torch.log(error + small).mean() for error, small in zip(errors, least, strict=True)]
    loss = logs[0] + 0.5 * logs[1] + 0.1 * logs[2]
    with torch.no_grad():
        shown = tuple(float(error.mean().sqrt()) for error in errors[:2])
    return loss, (shown[0], shown[1])


def _about_mean(values: torch.Tensor) -> torch.Tensor:
    return values - values.mean(dim=(1, 2), keepdim=True)


# --- training ----------------------------------------------------------------------------------


def train(
    examples: Iterable[WaveExample],
    checks: Iterable[WaveExample],
    unseen: Iterable[WaveExample],
    out: Path,
    recipe: Recipe = Recipe(),
    report: Report = lambda *_: None,
) -> Card:
    """Train, measure, export; what `scopeloop train exit_wave` calls. Writes exit_wave.onnx."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    shelf, shown = list(examples), {"": list(checks), "_unseen": list(unseen)}
    module = ExitWaveModule().to(memory_format=torch.channels_last)
    average = copy.deepcopy(module)
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.rate, weight_decay=1e-4)
    step, spent_s = _resumed(recipe.checkpoint, module, average, optimiser)
    started_s = saved_s = time.monotonic()
    smooth = 0.0
    card: Card | None = None
    while step < recipe.most_steps:
        elapsed_s = spent_s + time.monotonic() - started_s
        share = max(elapsed_s / recipe.most_seconds, step / recipe.most_steps)
        if share >= 1.0:
            break
        rng = np.random.default_rng([recipe.seed, step])
        rate = recipe.rate * min(1.0, (step + 1) / 100.0) * (0.5 + 0.5 * math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = max(rate, 1e-6)
        loss, (image, phase) = _loss(module, _batch(rng, shelf, recipe.batch))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        step += 1
        keep = min(_AVERAGING, step / (step + 10.0))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), module.parameters(), strict=True):
                mean.lerp_(now, 1.0 - keep)
        smooth = float(loss.detach()) if step == 1 else 0.98 * smooth + 0.02 * float(loss.detach())
        if step % 10 == 0:
            words = f"step {step}: loss {smooth:.3f}, image {image:.3f}, phase {phase:.3f}"
            report(int(1000 * share), 1000, words)
        if time.monotonic() - saved_s > recipe.save_seconds:
            _save(recipe.checkpoint, module, average, optimiser, step, elapsed_s)
            card = _written(average, shown, out, recipe, step, len(shelf))
            report(int(1000 * share), 1000, _summary(card))
            # Checking is no part of training.
            spent_s -= time.monotonic() - saved_s - recipe.save_seconds
            saved_s = time.monotonic()
    _save(recipe.checkpoint, module, average, optimiser, step, recipe.most_seconds)
    card = _written(average, shown, out, recipe, step, len(shelf))
    report(1000, 1000, _summary(card))
    return card


def _summary(card: Card) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in card.figures.items())


def _resumed(
    checkpoint: Path | None,
    module: ExitWaveModule,
    average: ExitWaveModule,
    optimiser: torch.optim.Optimizer,
) -> tuple[int, float]:
    """Step and seconds spent; 0, 0 without a checkpoint."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0.0
    kept = torch.load(checkpoint, weights_only=True)
    module.load_state_dict(kept["module"])
    average.load_state_dict(kept["average"])
    optimiser.load_state_dict(kept["optimiser"])
    _LOG.info("resumed at step %d", kept["step"])
    return int(kept["step"]), float(kept["spent_s"])


def _save(
    checkpoint: Path | None,
    module: ExitWaveModule,
    average: ExitWaveModule,
    optimiser: torch.optim.Optimizer,
    step: int,
    spent_s: float,
) -> None:
    if checkpoint is None:
        return
    kept = {
        "module": module.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "spent_s": spent_s,
    }
    half = checkpoint.with_suffix(".part")
    torch.save(kept, half)
    half.replace(checkpoint)


class _ModuleEngine:
    """The module itself in an engine's place, to be checked before it is a file."""

    def __init__(self, module: ExitWaveModule) -> None:
        self._module = module.eval()

    @property
    def card(self) -> Card:
        raise NotImplementedError

    def describe(self) -> str:
        return "torch"

    def run(self, array: F32) -> F32:
        with torch.no_grad():
            found: F32 = self._module(torch.from_numpy(array)).numpy()
        return found


def figures_of(
    restorer: ExitWaveRestorer, examples: Sequence[WaveExample], frames: int, name: str = ""
) -> dict[str, float]:
    """Mean PSNR in dB at three doses beside the Wiener filters', and phase errors in radians.

    Frames of 0.95 of a wave's side, the camera sharp and its noise white; range: the clean frame's.
    """
    found: dict[str, float] = {}
    filters: dict[str, Restorer] = {"local": LocalWiener(), "radial": RadialWiener()}
    anchor = ExitWaveRestorer()
    for dose in _CHECK_DOSES:
        scores: dict[str, list[float]] = {}
        for number in range(frames):
            example = examples[number % len(examples)]
            rng = np.random.default_rng([int(dose), number])
            drawn = drawn_microscope(rng, example.pixel_size_nm, example.voltage_kv, 0.01)
            microscope = Microscope(drawn.lens, drawn.focus, drawn.pixel_size_nm)
            wave = example.wave(slice(None), slice(None))
            inner = slice(MARGIN_PX, -MARGIN_PX)
            ratio = intensity(wave, microscope)[inner, inner]
            per_px = dose * (10.0 * example.pixel_size_nm) ** 2
            noisy = counted(rng, ratio, per_px, 1.0, 1.0) * np.float32(per_px)
            noise = NoiseModel(1.0, 0.0, 0.0)
            clean = ratio * np.float32(per_px)
            span = float(np.ptp(clean))
            phase = np.angle(wave)[inner, inner]
            for label, answer in (
                ("net", restorer.recover(noisy, microscope, noise)),
                ("weak", anchor.recover(noisy, microscope, noise)),
            ):
                scores.setdefault(f"psnr_{label}", []).append(psnr_db(answer.image, clean, span))
                off = answer.phase_rad - phase
                scores.setdefault(f"phase_rmse_{label}", []).append(float(off.std()))
            for label, one in filters.items():
                image = one.restore(noisy, noise).image
                scores.setdefault(f"psnr_{label}", []).append(psnr_db(image, clean, span))
        for label, values in scores.items():
            digits = 4 if label.startswith("phase") else 2
            found[f"{label}{name}_{dose:.0e}"] = round(float(np.mean(values)), digits)
    return found


def _written(
    average: ExitWaveModule,
    shown: dict[str, list[WaveExample]],
    out: Path,
    recipe: Recipe,
    step: int,
    waves: int,
) -> Card:
    figures: dict[str, float] = {"steps": float(step), "waves": float(waves)}
    restorer = ExitWaveRestorer(_ModuleEngine(average))
    for name, examples in shown.items():
        if examples:
            figures |= figures_of(restorer, examples, recipe.check_frames, name)
    if not all(math.isfinite(value) for value in figures.values()):
        message = f"training diverged: {figures}"
        raise RuntimeError(message)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "exit_wave.onnx"
    parameters = export(average, path)
    card = Card(
        name="ExitWave",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameters=parameters,
        input=Tensor(
            name="planes",
            shape=(-1, PLANES, -1, -1),
            meaning=f"in units of {SCALE}: contrast; contrast filtered; phase filtered and "
            "deconvolved, rad; phase turned right only; then log10 of the noise over that unit. "
            "Sides: multiples of 16; pixels of "
            f"{PIXEL_NM[0]} to {PIXEL_NM[1]} nm",
        ),
        output=Tensor(
            name="correction",
            shape=(-1, 2, -1, -1),
            meaning=f"to add to the amplitude 1 and to plane 2 (rad), in units of {SCALE}",
        ),
        training_command=recipe.command,
        training_data="exit waves of simulated graphene and MoS2 with defects, adatoms and dirt; "
        "hexagonal boron nitride and voltages below 75 kV kept out (figures named unseen)",
        figures=figures,
        licence="MIT",
    )
    text = json.dumps(card.model_dump(), indent=1)
    card_path(path).write_text(text + "\n", encoding="utf-8")
    return card
