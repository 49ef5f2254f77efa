"""The command line: reads words, calls a command, turns errors into one clear line and a status.

Status 0: done. 1: something failed safely. 2: the settings or the arguments are wrong, nothing was
started. 130: stopped by Ctrl-C, safely, resumable.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from controller.commands.adapt import adapt_flakes
from controller.commands.bench import print_benches
from controller.commands.denoise import Method
from controller.commands.denoise import denoise as denoise_frames
from controller.commands.doctor import examine
from controller.commands.evaluate import replay_stack, score_flakes, score_restoration
from controller.commands.focus import Asked, focus_here
from controller.commands.search import resume_search, start_search
from controller.commands.train import train_exit_wave, train_flakes, train_focus, train_restore
from controller.commands.watch import watch_here
from controller.errors import BadSettings, ControllerError
from controller.record.rundir import NotARun
from controller.restoring.session import Until
from drivers.errors import DriverError
from inference.api import ModelError

cli = typer.Typer(
    name="scopeloop",
    help="A live microscope controller: it streams, focuses, finds flakes and moves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
evaluate_cli = typer.Typer(help="Measure a model on real data.", no_args_is_help=True)
cli.add_typer(evaluate_cli, name="evaluate")
adapt_cli = typer.Typer(help="Learn one microscope from known samples.", no_args_is_help=True)
cli.add_typer(adapt_cli, name="adapt")
train_cli = typer.Typer(help="Train a network anew, from a seed.", no_args_is_help=True)
cli.add_typer(train_cli, name="train")

OutFile = Annotated[Path | None, typer.Option(help="also write the figures to this JSON file")]
Miniature = Annotated[bool, typer.Option("--quick", help="a miniature that learns little")]
PixelSize = Annotated[float, typer.Option(min=1.0, max=100_000.0)]
Materials = Annotated[str, typer.Option(help="comma-separated")]
Oxide = Annotated[float, typer.Option(min=1.0, max=1_000.0)]
Cards = Annotated[
    list[Path] | None,
    typer.Option("--material", help="TOML card of a crystal to look for as well; repeatable"),
]
OutFolder = Annotated[Path, typer.Option(help="folder for the ONNX file and its card")]
Jobs = Annotated[int, typer.Option(min=0, max=256, help="processes; 0: one a core")]
Quick = Annotated[bool, typer.Option("--quick", help="fewer repeats, same rows, under 45 s")]


@cli.command()
def search(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file; not needed with --resume")
    ] = None,
    *,
    resume: Annotated[
        Path | None, typer.Option(help="go on with the run in this folder, after a crash or a stop")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="seed of the simulated chip and instrument")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="parent folder of the run's own folder")] = None,
    material: Cards = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE in TOML, e.g. --set wanted.min_area_um2=50"),
    ] = None,
) -> None:
    """Search a chip for flakes: scan, focus, detect, revisit, report."""
    if (config is None) == (resume is None):
        msg = "name a configuration file, or --resume the folder of a run (not both)"
        raise typer.BadParameter(msg)
    if resume is not None:
        if seed is not None or out is not None or override or material:
            msg = (
                "--resume goes on with the run's own settings: no --seed, --out, --material or "
                "--set"
            )
            raise typer.BadParameter(msg)
        status = resume_search(resume, _console())
    else:
        if config is None:
            raise typer.BadParameter("name a configuration file")
        status = start_search(
            config,
            _console(),
            seed=seed,
            out=out,
            materials=material or (),
            overrides=override or (),
        )
    if status:
        raise typer.Exit(status)


@evaluate_cli.command("flakes")
def evaluate_flakes(
    images: Annotated[Path, typer.Option(help="folder of images")],
    masks: Annotated[
        Path,
        typer.Option(help="folder of label PNGs or of PNGs of single masks, or a COCO JSON file"),
    ],
    *,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="score these masks (a folder or COCO results) instead of running the detector"
        ),
    ] = None,
    ignore: Annotated[
        Path | None, typer.Option(help="COCO JSON file of regions that count neither way")
    ] = None,
    score_cut: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="least score for precision and recall")
    ] = 0.0,
    detector: Annotated[
        Literal["auto", "network", "physics"],
        typer.Option(help="auto: FlakeNet where its weights are, else the physics alone"),
    ] = "auto",
    pixel_size_nm: PixelSize = 384.0,
    materials: Materials = "graphene",
    material: Cards = None,
    calibration: Annotated[
        Path | None, typer.Option(help="a microscope's JSON file, from `scopeloop adapt flakes`")
    ] = None,
    oxide_nm: Oxide = 90.0,
    sheet: Annotated[
        Path | None, typer.Option(help="write contact sheets (JPEG) into this folder")
    ] = None,
    out: OutFile = None,
) -> None:
    """Score flake detection on images with instance masks: AP50, AP, precision, recall, time."""
    score_flakes(
        images,
        masks,
        _console(),
        predictions=predictions,
        ignore=ignore,
        score_cut=score_cut,
        detector=detector,
        pixel_size_nm=pixel_size_nm,
        materials=_listed(materials),
        cards=material or (),
        calibration=calibration,
        oxide_nm=oxide_nm,
        sheet=sheet,
        out=out,
    )


@cli.command()
def focus(
    config: Annotated[Path, typer.Argument(help="TOML file")],
    *,
    range_dof: Annotated[
        float | None,
        typer.Option(min=1.0, max=200.0, help="how far off it may be, in depths of field"),
    ] = None,
    measure_backlash: Annotated[
        bool, typer.Option("--measure-backlash", help="then from both sides, to see what is lost")
    ] = False,
    hold: Annotated[
        float, typer.Option(min=0.0, max=1e6, help="then hold focus for so many seconds")
    ] = 0.0,
    strip: Annotated[
        Path | None, typer.Option(help="write what was seen, frame by frame, to this PNG")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE in TOML, as for search")
    ] = None,
) -> None:
    """Focus where the instrument stands, in a handful of frames, and print each step."""
    overrides = [*(override or ())]
    if range_dof is not None:
        overrides.append(f"focus.range_dof={range_dof}")
    asked = Asked(measure_backlash, hold)
    status = focus_here(config, _console(), asked=asked, strip=strip, overrides=overrides)
    if status:
        raise typer.Exit(status)


@cli.command()
def watch(
    config: Annotated[Path, typer.Argument(help="TOML file")],
    *,
    frames: Annotated[
        int | None, typer.Option(min=1, max=100_000_000, help="end after so many exposures")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e7, help="end after so long; neither: until Ctrl-C"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="parent folder of the session's own folder")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE in TOML, as for search")
    ] = None,
) -> None:
    """Stream frames and restore them live; raw ones are always kept, computed ones beside them."""
    status = watch_here(
        config, _console(), until=Until(frames, seconds), out=out, overrides=override or ()
    )
    if status:
        raise typer.Exit(status)


@cli.command()
def denoise(
    frames: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="PNG, TIFF, Zarr, MRC, DM3, DM4 or SER, or a folder of them"
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="PNG, TIFF or Zarr, or folder for a folder's NAME_denoised; never written over"
        ),
    ],
    method: Annotated[
        Method,
        typer.Option(
            help="auto: the live network where its weights are, else the classical filter of "
            "least estimated error on each frame; refocus, magnify: views of what was in no frame"
        ),
    ] = "auto",
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            help="the frames of a file, or a folder's files by name, show one scene: average over "
            "them, drift followed",
        ),
    ] = False,
) -> None:
    """Take the noise off frames and movies; computed files say that they are."""
    status = denoise_frames(frames, out, method, _console(), recursive=recursive)
    if status:
        raise typer.Exit(status)


@cli.command()
def bench(
    name: Annotated[
        str, typer.Argument(help="all, or one of those that `scopeloop bench list` names")
    ],
    *,
    quick: Quick = False,
    seed: int = 1,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=256, help="processes, where a bench takes several")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="this part only, where a bench has parts; repeatable")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, max=1_440.0, help="begin nothing new after so long"),
    ] = None,
    out: OutFile = None,
) -> None:
    """Measure the budgets on this machine and print them beside their bars."""
    print_benches(
        name,
        _console(),
        quick=quick,
        seed=seed,
        jobs=jobs,
        only=only or (),
        most_s=None if minutes is None else 60.0 * minutes,
        out=out,
    )


@cli.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="TOML file to check and open")] = None,
) -> None:
    """Say what is installed, and whether a configuration's instrument opens and answers."""
    examine(config, _console())


@evaluate_cli.command("focus")
def evaluate_focus(
    stack: Annotated[Path, typer.Option(help="folder of a through-focus series")],
    pattern: Annotated[
        str,
        typer.Option(
            help="regular expression of file names: groups z (position), group (exposure)"
        ),
    ] = r"(?P<z>-?\d+(?:\.\d+)?)\.\w+",
    *,
    truth: Annotated[float, typer.Option(help="position of focus, as the names count")] = 0.0,
    dof_steps: Annotated[
        float, typer.Option(help="steps in one depth of field", min=1e-3, max=1e3)
    ] = 1.0,
    rivals: Annotated[bool, typer.Option(help="run the classical searches as well")] = True,
    seed: int = 1,
    out: OutFile = None,
) -> None:
    """Replay a real through-focus series from every start: success, error in steps, frames."""
    replay_stack(
        stack,
        pattern,
        _console(),
        truth=truth,
        dof_steps=dof_steps,
        with_rivals=rivals,
        seed=seed,
        out=out,
    )


@evaluate_cli.command("restore")
def evaluate_restore(
    images: Annotated[
        Path,
        typer.Option(
            help="folder of frames; truth: NAME_noisy.png beside NAME_clean.png, or in the "
            "folders noisy and clean"
        ),
    ],
    *,
    sheet: Annotated[
        Path | None, typer.Option(help="write contact sheets (PNG) into this folder")
    ] = None,
    out: OutFile = None,
) -> None:
    """Score networks and filters: PSNR, SSIM, SNR where the truth is known; whiteness; speed."""
    score_restoration(images, _console(), sheet=sheet, out=out)


@train_cli.command("focus")
def focus_network(
    *,
    seed: int = 1,
    objects: Annotated[
        int | None, typer.Option(min=96, max=1_000_000, help="simulated samples to learn from")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, max=10_000)] = None,
    jobs: Jobs = 0,
    out: OutFolder = Path("trained"),
    quick: Miniature = False,
) -> None:
    """Train AENet: how far one frame is from focus. Needs torch: pip install scopeloop[train]."""
    train_focus(
        _console(), seed=seed, objects=objects, epochs=epochs, jobs=jobs, quick=quick, out=out
    )


@train_cli.command("flakes")
def flakes_network(
    *,
    seed: int = 1,
    photographs: Annotated[
        int, typer.Option(min=24, max=100_000, help="simulated; 3 MB of memory each")
    ] = 3_000,
    steps: Annotated[int, typer.Option(min=60, max=1_000_000)] = 20_000,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=1_440.0, help="of training proper, at most")
    ] = 60.0,
    jobs: Jobs = 0,
    out: OutFolder = Path("trained"),
    quick: Miniature = False,
) -> None:
    """Train FlakeNet: what each pixel is, and how odd. Needs torch; uses a GPU where one is."""
    train_flakes(
        _console(),
        seed=seed,
        photographs=photographs,
        steps=steps,
        minutes=minutes,
        jobs=jobs,
        quick=quick,
        out=out,
    )


@train_cli.command("restore")
def restore_network(
    *,
    size: Annotated[
        Literal["live", "quality"], typer.Option(help="live: at the camera's speed")
    ] = "live",
    task: Annotated[
        Literal["denoise", "refocus", "magnify"],
        typer.Option(help="what to make of a frame; the last two are computed views"),
    ] = "denoise",
    seed: int = 1,
    scenes: Annotated[
        int, typer.Option(min=32, max=100_000, help="simulated; 130 kB of memory each")
    ] = 4_000,
    steps: Annotated[int, typer.Option(min=60, max=10_000_000)] = 36_000,
    minutes: Annotated[
        float,
        typer.Option(min=0.1, max=10_000.0, help="of this run; called again, it goes on"),
    ] = 60.0,
    jobs: Jobs = 0,
    out: OutFolder = Path("trained"),
    quick: Miniature = False,
) -> None:
    """Train a network that takes noise off frames. Needs torch: pip install scopeloop[train]."""
    train_restore(
        _console(),
        size=size,
        task=task,
        seed=seed,
        scenes=scenes,
        steps=steps,
        minutes=minutes,
        jobs=jobs,
        quick=quick,
        out=out,
    )


@train_cli.command("exit_wave")
def exit_wave_network(
    *,
    seed: int = 1,
    waves: Annotated[int, typer.Option(min=8, max=10_000, help="simulated; 260 kB each")] = 1_200,
    minutes: Annotated[
        float,
        typer.Option(min=0.1, max=1_440.0, help="of training proper; called again, it goes on"),
    ] = 35.5,
    jobs: Jobs = 0,
    out: OutFolder = Path("trained"),
    quick: Miniature = False,
) -> None:
    """Train the exit wave's network (CDDAE). Needs torch: pip install scopeloop[train]."""
    train_exit_wave(
        _console(), seed=seed, waves=waves, minutes=minutes, jobs=jobs, quick=quick, out=out
    )


@adapt_cli.command("flakes")
def adapt(
    images: Annotated[
        Path,
        typer.Option(help="folder of photographs with flakes.json, or labels/NAME.png beside them"),
    ],
    *,
    out: Annotated[Path, typer.Option(help="JSON file of the microscope")] = Path(
        "microscope.json"
    ),
    materials: Materials = "graphene",
    material: Cards = None,
    oxide_nm: Oxide = 90.0,
    na: Annotated[float, typer.Option(min=0.01, max=0.99, help="numerical aperture")] = 0.45,
    pixel_size_nm: PixelSize = 384.0,
) -> None:
    """Learn a camera's colours from five flakes or more that were clicked or outlined."""
    adapt_flakes(
        images,
        _console(),
        out=out,
        materials=_listed(materials),
        cards=material or (),
        oxide_nm=oxide_nm,
        numerical_aperture=na,
        pixel_size_nm=pixel_size_nm,
    )


def _listed(words: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in words.split(",") if part.strip())


def _console() -> Console:
    """What is printed on; a file or a pipe has no screen whose width would have to be kept."""
    screen = Console()
    return screen if screen.is_terminal else Console(width=150)


def main() -> None:
    """Entry point of `scopeloop`."""
    try:
        cli()
    except (BadSettings, NotARun) as error:
        _complain(error)
        sys.exit(2)
    except (ControllerError, DriverError, ModelError) as error:
        _complain(error)
        sys.exit(1)


def _complain(error: Exception) -> None:
    """One line, whatever the error quotes."""
    said = "; ".join([str(error), *getattr(error, "__notes__", ())])
    line = Text.assemble(("error:", "bold red"), " ", " ".join(said.split()))
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)
