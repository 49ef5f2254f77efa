"""`scopeloop focus`: focus where the instrument stands, print every step, and hold it if asked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from controller import app
from controller.commands.overrides import overridden
from controller.focusing.few_frames import FewFrames, FewFramesResult, FewFramesStep
from controller.focusing.hold import HoldSettings
from controller.focusing.holding import Hold, HoldFrame, HoldResult
from controller.focusing.once import Stand, focus_at, opened, write_strip
from controller.focusing.phase import (
    PhaseResult,
    PhaseStep,
    PhaseTask,
    focus_by_phase,
    phase_lens,
)
from controller.focusing.play import PlayFound, measure_play
from controller.settings import Settings, load_toml, validated
from inference.focus.phase_series import scherzer_um
from inference.restore.electrons import Lens


@dataclass(frozen=True, slots=True)
class Asked:
    """What to do once it is in focus."""

    measures_backlash: bool = False
    hold_s: float = 0.0


def focus_here(
    config: Path,
    console: Console,
    *,
    asked: Asked,
    strip: Path | None,
    overrides: Iterable[str] = (),
) -> int:
    """Focus and print every step; returns the exit status: 1 where it gave up."""
    tables, _ = load_toml(config)
    settings = validated(Settings, overridden(tables, overrides), str(config))
    instrument = app.open_instrument(settings, str(config))

    def say(words: str) -> None:
        console.print(f"[yellow]{escape(words)}[/]")

    engine = app.open_network("aenet", settings.inference, say)

    def make(depth_of_field_um: float, has_stigmator: bool) -> FewFrames:
        few = app.few_frames(depth_of_field_um, has_stigmator, settings.focus.range_dof, engine)
        eyes = few.aenet.name if phase_lens(instrument) is None else "a series of phase contrast"
        console.print(f"{instrument.name}: {eyes}, 1 DOF = {depth_of_field_um:.4f} um")
        return few

    async def session() -> tuple[FewFramesResult | PhaseResult, float]:
        async with opened(settings, instrument, make) as stand:
            lens, dof_um = phase_lens(instrument), stand.optics.depth_of_field_um
            if lens is None:
                return await _on(stand, asked, console, strip), dof_um
            range_um = settings.focus.range_dof * dof_um
            if strip is not None:
                say("no strip: it shows what a network saw, and none was asked")
            return await _by_phase(stand, lens, range_um, asked, console), dof_um

    with asyncio.Runner(loop_factory=app.loop_factory(settings, str(config))) as runner:
        try:
            result, dof_um = runner.run(session())
        except KeyboardInterrupt:
            console.print("[yellow]stopped safely[/]")
            return 130
    off_um = app.true_defocus_um(instrument)
    if off_um is not None and result.is_focused:
        console.print(f"the truth: {off_um / dof_um:+.3f} DOF ({off_um:+.4f} um) from focus")
    return 0 if result.is_focused else 1


async def _by_phase(
    stand: Stand, lens: Lens, range_um: float, asked: Asked, console: Console
) -> PhaseResult:
    """Focus a lens that images phases, on an open instrument."""

    def on_step(step: PhaseStep) -> None:
        found = step.found
        words = ""
        if found is not None and math.isfinite(found.gaussian_um):
            words = (
                f"wanted at {found.wanted_um(lens):+.4f} um, likelier than without phases by "
                f"{found.gain:.0f}, than elsewhere by {found.lead:.0f}"
            )
        console.print(
            f"  {step.purpose:8s} z {step.focus_z_um:+9.4f} um  "
            f"stig {step.stig_um[0]:+.4f} {step.stig_um[1]:+.4f} um  {words}",
            highlight=False,
        )

    limits = stand.few
    task = PhaseTask(
        start_z_um=stand.z_um,
        lowest_z_um=limits.lowest_z_um,
        highest_z_um=limits.highest_z_um,
        depth_of_field_um=stand.optics.depth_of_field_um,
        range_um=range_um,
    )
    result = await focus_by_phase(
        lens, task, stand.motion, stand.observe, stand.stigmator, stand.thread, on_step
    )
    if not result.is_focused:
        console.print(f"[yellow]cannot focus[/]: {escape(result.reason)}; back at the start")
    elif result.found is not None:
        stig_x_um, stig_y_um = result.stig_um
        console.print(
            f"[green]in focus[/] at z {result.focus_z_um:.4f} +- {result.found.sigma_um:.4f} um "
            f"({scherzer_um(lens):+.4f} um from Gaussian focus), stigmator {stig_x_um:+.4f} "
            f"{stig_y_um:+.4f} um, after {len(result.steps)} frames"
        )
    if asked.measures_backlash or asked.hold_s > 0.0:
        console.print("[yellow]neither backlash nor holding[/]: they need a lens that blurs")
    return result


async def _on(stand: Stand, asked: Asked, console: Console, strip: Path | None) -> FewFramesResult:
    """Focus on an open instrument, and what comes after."""
    dof_um = stand.optics.depth_of_field_um

    def on_step(step: FewFramesStep) -> None:
        view = step.view
        console.print(
            f"  {step.purpose:12s} z {step.focus_z_um:10.3f} um  "
            f"stig {step.stig_x_um:+.2f} {step.stig_y_um:+.2f} um  "
            f"score {view.score:.1f}  |defocus| {view.defocus_dof:.1f} "
            f"+- {view.defocus_sigma_dof:.1f} DOF  {view.reason}",
            highlight=False,
        )

    def on_frame(frame: HoldFrame) -> None:
        if frame.purpose == "check":
            console.print(
                f"  {'check':12s} z {frame.focus_z_um:10.3f} um  believed off by "
                f"{frame.believed_off:+.2f} +- {frame.sigma:.2f}",
                highlight=False,
            )

    result = await focus_at(stand, on_step)
    if strip is not None:
        write_strip(strip, result.steps, dof_um)
        console.print(f"strip [bold]{strip}[/]")
    _print_result(console, result)
    if result.is_focused and asked.measures_backlash:
        _print_play(console, await measure_play(stand))
    if result.is_focused and asked.hold_s > 0.0:
        _print_hold(console, await Hold(stand, HoldSettings(), on_frame).run(asked.hold_s))
    return result


def _print_result(console: Console, result: FewFramesResult) -> None:
    stale = f", {result.stale_frames} stale ones dropped" if result.stale_frames else ""
    if not result.is_focused:
        console.print(f"[yellow]cannot focus[/]: {escape(result.reason)}; back at the start{stale}")
        return
    console.print(
        f"[green]in focus[/] at z {result.focus_z_um:.3f} +- {result.sigma_um:.3f} um, stigmator "
        f"{result.stig_x_um:+.2f} {result.stig_y_um:+.2f} um, after {len(result.steps)} frames"
        f"{stale}"
    )


def _print_play(console: Console, found: PlayFound) -> None:
    play = found.play
    if play is None:
        console.print(f"[yellow]backlash not measured[/]: {escape(found.reason)}")
        return
    console.print(
        f"backlash {play.backlash_um:.2f} +- {play.backlash_sigma_um:.2f} um, hysteresis "
        f"{100 * play.hysteresis_ratio:.1f} %, after {found.frames} frames; "
        f"{escape('[motion]')} focus_overshoot_um = {play.overshoot_um:.1f} takes it up"
    )


def _print_hold(console: Console, held: HoldResult) -> None:
    console.print(
        f"held over {held.frames} frames: {held.checks} checks, {held.failed_checks} of them "
        f"failed, {held.corrections} corrections, {held.refused} refused; left at z "
        f"{held.focus_z_um:.3f} um"
    )
