"""`scopeloop evaluate`: a model on real data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import cv2
from rich.console import Console
from rich.markup import escape

from controller import app
from controller.commands.overrides import detector_table
from controller.commands.screen import bar, publish
from controller.record import rundir
from controller.settings import InferenceSettings
from inference.flakes.contact_sheet import write_sheets
from inference.flakes.evaluate import evaluate_folder
from inference.flakes.masks import images_in
from inference.restore import evaluate as restore
from inference.restore.api import Restorer
from inference.restore.contact_sheet import contact_sheet

_FRAMES_A_SHEET: Final = 8


def score_flakes(
    images: Path,
    masks: Path,
    console: Console,
    *,
    predictions: Path | None,
    ignore: Path | None,
    score_cut: float,
    detector: Literal["auto", "network", "physics"],
    pixel_size_nm: float,
    materials: tuple[str, ...],
    cards: Sequence[Path],
    calibration: Path | None,
    oxide_nm: float,
    sheet: Path | None,
    out: Path | None,
) -> None:
    """Score the detector, or another program's masks, on a folder of images."""
    table = detector_table(materials, cards, oxide_nm)
    if calibration is not None:
        table["calibration"] = str(calibration)
    settings = app.detector_settings(table, "")
    make = None
    if predictions is None:
        make = app.flake_detector(InferenceSettings(flakes=detector), console.print)
    with bar(console, "evaluate") as progress:
        found = evaluate_folder(
            images,
            masks,
            settings,
            pixel_size_nm,
            predictions=predictions,
            ignore=ignore,
            score_cut=score_cut,
            make_detector=make,
            progress=progress,
        )
    if sheet is not None:
        with rundir.writing(sheet):
            write_sheets(sheet, images_in(images), found)
        console.print(f"contact sheets [bold]{sheet}[/]")
    publish(console, "evaluate flakes", found.rows, out=out)
    if out is not None:
        instances = out.with_suffix(".csv")
        with rundir.writing(instances):
            instances.write_text(found.csv(), encoding="utf-8")


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


def score_restoration(
    images: Path, console: Console, *, sheet: Path | None, out: Path | None
) -> None:
    """Score networks and filters on a folder of frames, with the truth beside them or without.

    The networks speak for themselves here: no guard puts a filter in their place.
    """
    networks = (app.denoiser(name, InferenceSettings()) for name in ("live", "quality"))
    asked = (*(one for one in networks if one is not None), *restore.default_restorers())
    with bar(console, "evaluate") as progress:
        found = restore.evaluate_folder(images, asked, progress=progress)
    if sheet is not None:
        _write_restored(images, sheet, asked, console)
    publish(console, "evaluate restore", found.rows, out=out)


def _write_restored(
    images: Path, sheet: Path, restorers: Sequence[Restorer], console: Console
) -> None:
    scenes = restore.scenes_in(images)
    starts = range(0, len(scenes), _FRAMES_A_SHEET)
    with bar(console, "contact sheets") as progress:
        for done, start in enumerate(starts):
            progress(done, len(starts))
            picture = contact_sheet(scenes[start : start + _FRAMES_A_SHEET], restorers)
            path = sheet / f"restore_{done + 1:03d}.png"
            with rundir.writing(path):
                sheet.mkdir(parents=True, exist_ok=True)
                path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    console.print(f"contact sheets [bold]{escape(str(sheet))}[/]")
