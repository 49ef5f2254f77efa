"""`scopeloop evaluate`: a model on real data."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from controller import app, figures
from controller.commands.screen import bar, publish
from controller.record import rundir
from inference.flakes.contact_sheet import contact_sheet, write_sheet
from inference.flakes.evaluate import Evaluation, evaluate_folder, images_in, read_rgb, truth_for
from inference.flakes.scoring import instances_from_detections


def score_flakes(
    images: Path,
    masks: Path,
    console: Console,
    *,
    predictions: Path | None,
    pixel_size_nm: float,
    materials: tuple[str, ...],
    oxide_nm: float,
    sheet: Path | None,
    out: Path | None,
) -> None:
    """Score the detector, or another program's masks, on a folder of images."""
    settings = app.detector_settings({"materials": materials, "oxide_nm": oxide_nm}, "")
    with bar(console, "evaluate") as progress:
        found = evaluate_folder(
            images,
            masks,
            settings,
            pixel_size_nm,
            predictions=predictions,
            progress=progress,
        )
    rows = [
        figures.Row(r.name, r.value, r.unit, r.bar, r.better, r.baseline, r.n, r.ci95, r.note)
        for r in found.rows
    ]
    if sheet is not None:
        _write_sheets(sheet, images, masks, predictions, found)
        console.print(f"contact sheets [bold]{sheet}[/]")
    publish(console, "evaluate flakes", rows, out=out)


def _write_sheets(
    folder: Path, images: Path, masks: Path, predictions: Path | None, found: Evaluation
) -> None:
    """One picture a photograph: hits, misses and false alarms."""
    paths = images_in(images)
    truths = truth_for(paths, masks)
    others = None if predictions is None else truth_for(paths, predictions)
    for i, (path, result) in enumerate(zip(paths, found.images, strict=True)):
        answer = result.answer
        said = others[i] if others is not None else ()
        if answer is not None:
            said = instances_from_detections(answer.detections)
        target = folder / f"{path.stem}.jpg"
        with rundir.writing(target):
            write_sheet(target, contact_sheet(read_rgb(path), said, truths[i]))


def replay_stack(
    stack: Path,
    pattern: str,
    console: Console,
    *,
    truth: float,
    dof_steps: float,
    with_rivals: bool,
    seed: int,
    out: Path | None,
) -> None:
    """Replay a real through-focus stack from every start: ours, and every rival."""
    from controller.bench.focus_baselines.stacks import stack_rows
    from inference.focus.evaluate import read_stack

    planes = read_stack(stack, pattern)
    with bar(console, "evaluate") as progress:
        rows = stack_rows(
            planes,
            truth=truth,
            dof_steps=dof_steps,
            seed=seed,
            with_rivals=with_rivals,
            progress=progress,
        )
    publish(console, "evaluate focus", rows, seed=seed, out=out)
