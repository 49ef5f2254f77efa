"""`scopeloop adapt`: a microscope learnt from a handful of known flakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from controller import app
from controller.commands.overrides import detector_table
from controller.commands.screen import bar
from controller.record import rundir
from inference.flakes.adapt import Adapted, adapt_folder
from inference.flakes.microscope import save_microscope


def adapt_flakes(
    images: Path,
    console: Console,
    *,
    out: Path,
    materials: tuple[str, ...],
    cards: Sequence[Path],
    oxide_nm: float,
    numerical_aperture: float,
    pixel_size_nm: float,
) -> None:
    """Fit the camera's correction and the oxide, print what was made of each flake, keep it."""
    table = detector_table(materials, cards, oxide_nm)
    settings = app.detector_settings({**table, "numerical_aperture": numerical_aperture}, "")
    with bar(console, "adapt flakes") as progress:
        adapted = adapt_folder(images, settings, pixel_size_nm, progress=progress)
    with rundir.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        save_microscope(out, adapted.microscope)
    _print(console, adapted)
    line = f'[detector] calibration = "{out.as_posix()}"'
    console.print(f"use it: [bold]{escape(line)}[/]", soft_wrap=True)


def _print(console: Console, adapted: Adapted) -> None:
    table = Table(title="flakes", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("image", "material"):
        table.add_column(heading)
    for heading in ("layers", "off the ladder"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for flake in adapted.flakes:
        table.add_row(
            escape(flake.example.image),
            flake.material,
            str(flake.layers),
            f"{flake.off_ladder:.3f}",
            "[yellow]set aside[/]" if flake.is_outlier else "",
        )
    console.print(table)
    microscope = adapted.microscope
    gains = ", ".join(f"{gain:.3f}" for gain in microscope.correction.gain_rgb)
    offsets = ", ".join(f"{offset:+.4f}" for offset in microscope.correction.offset_rgb)
    oxides = ", ".join(f"{w.calibration.oxide_nm:.1f}" for w in microscope.wafers) or "nominal"
    console.print(
        f"oxide {oxides} nm; contrast gains {gains}; offsets {offsets}; "
        f"confidence {microscope.confidence:.2f}"
    )
