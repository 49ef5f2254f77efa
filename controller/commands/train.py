"""`scopeloop train`: the networks anew, from a seed; the only command that needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from rich.console import Console

from controller import app, figures
from controller.commands.screen import Told, bar
from inference.api import NoEngine
from inference.engine import Card, card_path

_QUICK_OBJECTS: Final = 96
_QUICK_EPOCHS: Final = 3
_QUICK_PHOTOGRAPHS: Final = 24
_QUICK_SCENES: Final = 32
_QUICK_STEPS: Final = 60
_QUICK_WAVES: Final = 6
_QUICK_WAVE_CHECKS: Final = 2
_WAVE_CHECKS: Final = 8
_LEAST_CHECKS: Final = 12
_CHECKS_SEED: Final = 900_000
_VIEWED: Final = frozenset({"surface", "picture"})  # what the two views are for
_STRANGE_SHARE: Final = 0.1
_STRANGE_CHECKS_SHARE: Final = 0.3  # what to refuse is learnt from them
_CPU_BATCH, _CPU_CROP = 8, 64

Size: TypeAlias = Literal["live", "quality"]
Task: TypeAlias = Literal["denoise", "refocus", "magnify"]
Thing = TypeVar("Thing")


def train_focus(
    console: Console,
    *,
    seed: int,
    objects: int | None,
    epochs: int | None,
    jobs: int,
    quick: bool,
    out: Path,
) -> None:
    """Train AENet and write its ONNX file and card. Raises NoEngine without torch."""
    _check_torch()
    from inference.training.focus import FocusTraining, train

    if quick:
        objects, epochs = objects or _QUICK_OBJECTS, epochs or _QUICK_EPOCHS
    usual = FocusTraining(out=out)
    asked = FocusTraining(
        out=out,
        objects=usual.objects if objects is None else objects,
        epochs=usual.epochs if epochs is None else epochs,
        seed=seed,
        jobs=jobs,
    )
    with bar(console, "train focus") as told:
        card = train(asked, told)
    _show(console, card, out / "aenet.onnx")


def train_flakes(
    console: Console,
    *,
    seed: int,
    photographs: int,
    steps: int,
    minutes: float,
    jobs: int,
    quick: bool,
    out: Path,
) -> None:
    """Train FlakeNet and write its ONNX file and card. Raises NoEngine without torch."""
    _check_torch()
    from inference.training.flakes import Recipe, train, with_device

    recipe = with_device(replace(Recipe(), seed=seed, steps=steps, most_seconds=60.0 * minutes))
    if recipe.device == "cpu":
        recipe = replace(recipe, batch=_CPU_BATCH, crop=_CPU_CROP)
    if quick:
        recipe, photographs = replace(Recipe.quick(), seed=seed), _QUICK_PHOTOGRAPHS
    checks = max(photographs // 16, _LEAST_CHECKS)
    size = "--quick" if quick else f"--photographs {photographs} --steps {steps}"
    recipe = replace(recipe, command=f"scopeloop train flakes {size}")  # the seed is added to it
    learn = app.flake_examples(seed, photographs, _STRANGE_SHARE, jobs)
    check = app.flake_examples(seed + _CHECKS_SEED, checks, _STRANGE_CHECKS_SHARE, jobs)
    with bar(console, "train flakes") as told:
        card = train(
            list(_counted(learn, photographs, "photographs", told)),
            list(_counted(check, checks, "photographs to check", told)),
            out,
            recipe,
            told,
        )
    _show(console, card, out / "flakenet.onnx")


def train_restore(
    console: Console,
    *,
    size: Size,
    task: Task,
    seed: int,
    scenes: int,
    steps: int,
    minutes: float,
    jobs: int,
    quick: bool,
    out: Path,
) -> None:
    """Train a restoring network, or go on with it; writes ONNX file, card and checkpoint.

    A second file holds the same network in 8-bit integers.
    """
    _check_torch()
    from inference.training.restore import Recipe, train
    from inference.training.restore_quantised import calibration, quantise

    recipe = Recipe(out, size, seed, steps, most_seconds=60.0 * minutes, task=task)
    if quick:
        scenes, recipe = _QUICK_SCENES, replace(recipe, steps=_QUICK_STEPS)
    checks = max(scenes // 32, _LEAST_CHECKS)
    with bar(console, f"train restore, {recipe.name}") as told:
        learn = list(
            _counted(app.restore_scenes(seed, scenes, "train", jobs), scenes, "scenes", told)
        )
        test = app.restore_scenes(seed, checks, "test", jobs)
        check = list(_counted(test, checks, "scenes to check", told))
        if task != "denoise":
            learn, check = (
                [one for one in each if one.family in _VIEWED] for each in (learn, check)
            )
        card = train(learn, check, recipe, told)
    _show(console, card, recipe.model)
    if task != "denoise":
        return
    coarse = recipe.model.with_name(f"{recipe.name}_int8.onnx")
    quantise(recipe.model, coarse, calibration(learn, seed))
    console.print(f"wrote [bold]{coarse}[/]: the same in 8-bit integers", soft_wrap=True)


def train_exit_wave(
    console: Console,
    *,
    seed: int,
    waves: int,
    minutes: float,
    jobs: int,
    quick: bool,
    out: Path,
) -> None:
    """Train the exit wave's network, or go on with it; writes ONNX file, card and checkpoint."""
    _check_torch()
    from inference.training.exit_wave import Recipe, train

    size = f"--seed {seed} --waves {waves} --minutes {minutes:g}"
    recipe = replace(Recipe(), seed=seed + 4, most_seconds=60.0 * minutes)
    if quick:
        waves, recipe, size = _QUICK_WAVES, replace(Recipe.quick(), seed=seed + 4), "--quick"
    recipe = replace(
        recipe,
        command=f"scopeloop train exit_wave {size}",
        checkpoint=out / "exit_wave.checkpoint",
    )
    checks = _QUICK_WAVE_CHECKS if quick else _WAVE_CHECKS
    out.mkdir(parents=True, exist_ok=True)
    with bar(console, "train exit_wave") as told:
        learn = list(_counted(app.wave_examples(seed, waves, "train", jobs), waves, "waves", told))
        card = train(
            learn,
            app.wave_examples(seed + 1, checks, "graphene", jobs),
            app.wave_examples(seed + 1, checks, "unseen", jobs),
            out,
            recipe,
            told,
        )
    _show(console, card, out / "exit_wave.onnx")


def _counted(things: Iterable[Thing], total: int, name: str, told: Told) -> Iterator[Thing]:
    for done, thing in enumerate(things, 1):
        told(done, total, name)
        yield thing


def _check_torch() -> None:
    missing = [name for name in ("torch", "onnx") if find_spec(name) is None]
    if missing:
        message = f"training needs {' and '.join(missing)}: pip install scopeloop[train]"
        raise NoEngine(message)


def _show(console: Console, card: Card, model: Path) -> None:
    """What was reached, and where it lies."""
    rows = [figures.Row(name, value) for name, value in card.figures.items()]
    figures.show(console, f"{card.name}, {card.parameters} parameters", rows)
    console.print(
        f"wrote [bold]{model}[/] and {card_path(model).name}; to use them, put both into "
        "inference/weights",
        soft_wrap=True,
    )
