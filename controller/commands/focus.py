"""`scopeloop focus`: focus once where the instrument stands, and print every step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from controller import app
from controller.commands.overrides import overridden
from controller.focusing.few_frames import FewFrames, FewFramesStep
from controller.focusing.once import focus_instrument, write_strip
from controller.settings import Settings, load_toml, validated


def focus_once(
    config: Path, console: Console, *, strip: Path | None, overrides: Iterable[str] = ()
) -> int:
    """Focus once and print every step; returns the exit status: 1 where it gave up."""
    tables, _ = load_toml(config)
    settings = validated(Settings, overridden(tables, overrides), str(config))
    instrument = app.open_instrument(settings, str(config))

    def say(words: str) -> None:
        console.print(f"[yellow]{escape(words)}[/]")

    engine = app.open_network("aenet", settings.inference, say)

    def make(depth_of_field_um: float, has_stigmator: bool) -> FewFrames:
        few = app.few_frames(depth_of_field_um, has_stigmator, settings.focus.range_dof, engine)
        console.print(f"{instrument.name}: {few.aenet.name}, 1 DOF = {depth_of_field_um:.3f} um")
        return few

    def on_step(step: FewFramesStep) -> None:
        view = step.view
        console.print(
            f"  {step.purpose:8s} z {step.focus_z_um:10.3f} um  "
            f"stig {step.stig_x_um:+.2f} {step.stig_y_um:+.2f} um  "
            f"score {view.score:.1f}  |defocus| {view.defocus_dof:.1f} "
            f"+- {view.defocus_sigma_dof:.1f} DOF  {view.reason}",
            highlight=False,
        )

    with asyncio.Runner(loop_factory=app.loop_factory(settings, str(config))) as runner:
        result, dof_um = runner.run(focus_instrument(settings, instrument, make, on_step))
    if strip is not None:
        write_strip(strip, result.steps, dof_um)
        console.print(f"strip [bold]{strip}[/]")
    if not result.is_focused:
        console.print(f"[yellow]cannot focus[/]: {result.reason}; back at the start")
        return 1
    console.print(
        f"[green]in focus[/] at z {result.focus_z_um:.3f} +- {result.sigma_um:.3f} um, stigmator "
        f"{result.stig_x_um:+.2f} {result.stig_y_um:+.2f} um, after {len(result.steps)} frames"
    )
    off_um = app.true_defocus_um(instrument)
    if off_um is not None:
        console.print(f"the truth: {off_um / dof_um:+.3f} DOF ({off_um:+.3f} um) from focus")
    return 0
