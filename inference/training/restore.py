"""Train the restoring networks: a noisy frame and its linear estimate -> what is still wrong.

    scopeloop train restore --size live --out inference/weights

Takes clean scenes (the simulator makes them; this room does not know it) and draws noise on them
anew at every step. Needs torch and onnx (extra `train`). Everything follows from the seed; training
goes in steps that can be stopped at any time: weights, ONNX file, card and figures are written
every few minutes, and it goes on from there.

Figures are measured on scenes of other kinds than those learnt from. Half of them set one number,
by which every sigma that the network says is multiplied, so that 90 % of all errors lie within
1.645 of them; the other half says how well that holds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from inference.engine import Card, Tensor, card_path
from inference.restore.anchor import CHANNELS
from inference.restore.scores import psnr_db
from inference.training.restore_examples import CleanScene, Drawn, batch, lesson
from inference.training.restore_network import RestoreNetwork, answers, export, loss
from inference.training.restore_tasks import Denoise, Magnify, Refocus, Task

Size: TypeAlias = Literal["live", "quality"]
TaskName: TypeAlias = Literal["denoise", "refocus", "magnify"]
Report: TypeAlias = Callable[[int, int, str], None]  # done, of how much, doing what

WIDTHS: Final[dict[Size, tuple[int, int, int]]] = {"live": (16, 32, 64), "quality": (32, 64, 128)}
TASKS: Final[dict[TaskName, Task]] = {
    "denoise": Denoise(),
    "refocus": Refocus(),
    "magnify": Magnify(),
}
COVERED: Final = 0.9
Z_COVERED: Final = 1.644854

_AVERAGING: Final = 0.999  # of the weights over the steps


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how to train."""

    out: Path  # a folder; denoise_SIZE.onnx, its card and a checkpoint are written there
    size: Size = "live"
    seed: int = 1
    steps: int = 30_000
    batch: int = 8
    side_px: int = 128
    rate: float = 2e-3
    most_seconds: float = math.inf  # of this run; it can be taken up again
    save_every_s: float = 240.0
    device: str = "cpu"
    threads: int = 1
    task: TaskName = "denoise"

    @property
    def name(self) -> str:
        """Of the files: denoise_live, refocus ..."""
        return f"denoise_{self.size}" if self.task == "denoise" else self.task

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.out / f"{self.name}.onnx"

    @property
    def checkpoint(self) -> Path:
        """From where it goes on."""
        return self.out / f"{self.name}.pt"

    @property
    def command(self) -> str:
        """As it stands in the card."""
        task = "" if self.task == "denoise" else f" --task {self.task}"
        return (
            f"scopeloop train restore{task} --size {self.size} --steps {self.steps}"
            f" --seed {self.seed}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    """One frame to measure on."""

    family: str
    drawn: Drawn


def train(
    scenes: Sequence[CleanScene],
    checks: Sequence[CleanScene],
    recipe: Recipe,
    report: Report = lambda *_: None,
) -> Card:
    """Train until the last step or for `most_seconds`, and leave ONNX file and card in `out`."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    task = TASKS[recipe.task]
    module = RestoreNetwork(WIDTHS[recipe.size], task.scale).to(recipe.device)
    module = module.to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(module)
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.rate, weight_decay=1e-4)
    step = 0
    if recipe.checkpoint.exists():
        kept: dict[str, Any] = torch.load(recipe.checkpoint, weights_only=True)
        module.load_state_dict(kept["module"])
        averaged.load_state_dict(kept["averaged"])
        optimiser.load_state_dict(kept["optimiser"])
        step = int(kept["step"])
    tests = _checks(checks, recipe.seed, task)
    began_s = saved_s = time.monotonic()
    ratio, card = 0.0, None
    while step < recipe.steps and time.monotonic() - began_s < recipe.most_seconds:
        ratio += 0.01 * (_one_step(module, averaged, optimiser, scenes, recipe, step) - ratio)
        step += 1
        if step % 50 == 0:
            report(step, recipe.steps, f"{-10.0 / math.log(10.0) * ratio:.2f} dB over the estimate")
        if time.monotonic() - saved_s > recipe.save_every_s:
            card = _saved(module, averaged, optimiser, step, tests, recipe)
            report(step, recipe.steps, _words(card))
            saved_s = time.monotonic()
    card = _saved(module, averaged, optimiser, step, tests, recipe)
    report(step, recipe.steps, _words(card))
    return card


def _one_step(
    module: RestoreNetwork,
    averaged: RestoreNetwork,
    optimiser: torch.optim.Optimizer,
    scenes: Sequence[CleanScene],
    recipe: Recipe,
    step: int,
) -> float:
    """One batch; returns the log error over the linear estimate's."""
    rng = np.random.default_rng([recipe.seed, 1, step])
    expose = partial(TASKS[recipe.task].expose, plain=False)
    lessons = batch(scenes, recipe.batch, recipe.side_px, rng, expose)
    seen = torch.from_numpy(lessons.seen).to(recipe.device, memory_format=torch.channels_last)
    target = torch.from_numpy(lessons.target).to(recipe.device)
    share = step / recipe.steps
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate * min(1.0, (step + 1) / _rise(recipe)) * _cosine(share)
    module.train()
    with torch.autocast(recipe.device, torch.bfloat16):
        answer = module(seen)
    wanted, ratio = loss(answer.float(), target)
    optimiser.zero_grad(set_to_none=True)
    wanted.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()
    with torch.no_grad():
        kept = min(_AVERAGING, (step + 1) / (step + 10))
        for mean, now in zip(averaged.parameters(), module.parameters(), strict=True):
            mean.lerp_(now, 1.0 - kept)
    return float(ratio)


def _rise(recipe: Recipe) -> float:
    """Steps until the full rate."""
    return max(1.0, min(200.0, 0.1 * recipe.steps))


def _cosine(share: float) -> float:
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


# --- figures ---------------------------------------------------------------------------------


def _checks(scenes: Sequence[CleanScene], seed: int, task: Task) -> list[_Check]:
    """Each scene at a dose of its own, counting noise alone."""
    found = []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, 2, number])
        dose_e = math.exp(rng.uniform(math.log(scene.least_e), math.log(scene.most_e)))
        found.append(_Check(scene.family, task.expose(scene.clean(), dose_e, rng, plain=True)))
    return found


def _figures(module: RestoreNetwork, tests: Sequence[_Check]) -> dict[str, float]:
    """Gain over the linear estimate by family; how sigma must be widened, and what it covers."""
    gains: dict[str, list[float]] = {}
    ratios, sizes = [], []
    for test in tests:
        seen, target = lesson(test.drawn)
        correction, log_sigma = answers(module, seen)
        rest = target - correction
        before = psnr_db(np.zeros_like(target), target, 1.0)
        gains.setdefault(test.family, []).append(psnr_db(correction, target, 1.0) - before)
        sizes.append(float(np.sqrt(np.mean(np.square(correction)))))
        ratios.append((np.abs(rest) * np.exp(-log_sigma)).ravel()[::7])
    first, second = np.concatenate(ratios[::2]), np.concatenate(ratios[1::2])
    factor = float(np.quantile(first, COVERED)) / Z_COVERED
    figures = {f"gain_db_{family}": float(np.mean(each)) for family, each in gains.items()}
    figures["gain_db"] = float(np.mean([value for each in gains.values() for value in each]))
    figures["sigma_factor"] = factor
    figures["within_90"] = float(np.mean(second <= factor * Z_COVERED))
    figures["most_correction"] = 2.0 * max(sizes)  # root mean square over a frame, in units
    figures["test_frames"] = float(len(tests))
    return {name: round(value, 4) for name, value in figures.items()}


def _saved(
    module: RestoreNetwork,
    averaged: RestoreNetwork,
    optimiser: torch.optim.Optimizer,
    step: int,
    tests: Sequence[_Check],
    recipe: Recipe,
) -> Card:
    torch.save(
        {
            "module": module.state_dict(),
            "averaged": averaged.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
        },
        recipe.checkpoint,
    )
    plain = copy.deepcopy(averaged).to("cpu", memory_format=torch.contiguous_format).eval()
    figures = _figures(plain, tests)
    figures["steps"] = float(step)
    if not all(math.isfinite(value) for value in figures.values()):
        message = f"training diverged: {figures}"
        raise RuntimeError(message)
    parameters = export(plain, recipe.model)
    card = card_of(recipe.model, parameters, figures, recipe)
    text = json.dumps(card.model_dump(), indent=1)
    card_path(recipe.model).write_text(text + "\n", encoding="utf-8")
    return card


def card_of(model: Path, parameters: int, figures: dict[str, float], recipe: Recipe) -> Card:
    """What a file of this recipe promises."""
    return Card(
        name=model.stem,
        sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        parameters=parameters,
        input=Tensor(
            name="seen",
            shape=(-1, CHANNELS, -1, -1),
            meaning="four pixels a place, of each: contrast to its surroundings in errors of the "
            "linear estimate, what that took away in sigmas of noise, log of its error over the "
            "noise (inference.restore.anchor)",
        ),
        output=Tensor(
            name="answer",
            shape=(-1, 2, -1, -1),
            meaning="truth less linear estimate, and log of the standard deviation of what is "
            "left; in errors of the estimate; sigma_factor widens the latter to 90 % intervals",
        ),
        training_command=recipe.command,
        training_data="simulated atoms, surfaces, chips and random pictures, counting noise; "
        "measured on materials, voltages, defoci and surfaces kept out",
        figures=figures,
        licence="MIT",
    )


def _words(card: Card) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in card.figures.items())


def scenes_from(arrays: dict[str, npt.NDArray[Any]]) -> list[CleanScene]:
    """Scenes as `packed` has put them into arrays."""
    spans = arrays["spans"]
    return [
        CleanScene(str(family), level, *(float(value) for value in span))
        for family, level, span in zip(arrays["family"], arrays["level"], spans, strict=True)
    ]


def packed(scenes: Sequence[CleanScene]) -> dict[str, npt.NDArray[Any]]:
    """Arrays to keep in one file; frames must be of one size."""
    return {
        "family": np.array([scene.family for scene in scenes]),
        "level": np.stack([scene.level for scene in scenes]),
        "spans": np.array([[s.low, s.high, s.least_e, s.most_e] for s in scenes]),
    }
