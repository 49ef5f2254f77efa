"""`scopeloop doctor`: what is installed, and whether an instrument opens and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from controller import app, figures
from controller.record import rundir
from controller.settings import InferenceSettings, Settings, load_toml
from drivers.api import Frame, Instrument
from drivers.errors import NoAnswer
from inference.api import ModelError


def examine(config: Path | None, console: Console) -> None:
    """What is installed; and for a configuration, whether its instrument opens and answers."""
    table = Table(title="installed", title_justify="left", show_header=False)
    for key, value in {**figures.machine(), **figures.versions()}.items():
        table.add_row(key, str(value))
    free_gib = rundir.free_gib(Path.cwd())
    table.add_row("free disk here", f"{free_gib:.1f} GiB")
    for engine in app.engines():
        table.add_row(engine.name, engine.version or f"[yellow]none[/]: {escape(engine.lack)}")
    for model in app.models():
        table.add_row(f"network {model.stem}", escape(_opened(model)))
    console.print(table)
    if config is None:
        return
    tables, _ = load_toml(config)
    chosen = app.set_up(tables, str(config))
    materials = ", ".join(chosen.detector.materials)
    console.print(f"[green]settings are sound[/] ({escape(str(config))}); detector: {materials}")
    with asyncio.Runner(loop_factory=chosen.factory) as runner:
        checks = runner.run(_examined(chosen.instrument, chosen.settings))
    report = Table(title=chosen.instrument.name, title_justify="left")
    for heading in ("device", "answer", "limits", "round trip"):
        report.add_column(heading)
    for row in checks:
        report.add_row(*row)
    console.print(report)


def _opened(model: Path) -> str:
    """What runs a network here, and why it is not what one would have liked."""
    said: list[str] = []
    try:
        engine = app.open_engine(model, InferenceSettings(), said.append)
    except ModelError as error:
        return f"does not run: {error}"
    return "; ".join([engine.describe(), *said])


async def _examined(instrument: Instrument, settings: Settings) -> list[tuple[str, str, str, str]]:
    """Ask every device something that moves nothing, and take one frame."""
    clock = asyncio.get_running_loop().time
    rows = []
    async with instrument:

        async def timed(device: str, what: Awaitable[object]) -> tuple[str, str]:
            began_s, patience_s = clock(), settings.camera.frame_timeout_s + 5.0
            try:
                async with asyncio.timeout(patience_s):
                    answer = await what
            except TimeoutError:
                reason = f"asked, and nothing came within {patience_s:g} s; check its link"
                raise NoAnswer(device, reason) from None
            return str(answer), f"{(clock() - began_s) * 1e3:.2f} ms"

        stage, focus, turret = instrument.stage, instrument.focus, instrument.turret
        x, y = stage.limits_um

        async def stands() -> str:
            x_um, y_um = await stage.position_um()
            return f"at ({x_um:.2f}, {y_um:.2f}) um"

        async def focus_stands() -> str:
            return f"at {await focus.position_um():.3f} um"

        answer, took = await timed(stage.name, stands())
        limits = f"x {x.min_um:g} to {x.max_um:g}, y {y.min_um:g} to {y.max_um:g} um"
        rows.append((stage.name, answer, limits, took))
        answer, took = await timed(focus.name, focus_stands())
        z = focus.limits_um
        rows.append((focus.name, answer, f"{z.min_um:g} to {z.max_um:g} um", took))
        answer, took = await timed(turret.name, turret.current())
        names = ", ".join(objective.name for objective in turret.objectives)
        rows.append((turret.name, (await turret.current()).name, names, took))
        camera = instrument.camera

        async def one_frame() -> str:
            await camera.trigger()
            async for frame in camera.frames():
                if isinstance(frame, Frame):
                    return f"frame {frame.number}, {frame.pixels.shape} {frame.pixels.dtype}"
            return "no frame"

        answer, took = await timed(camera.name, one_frame())
        rows.append((camera.name, answer, f"{camera.bit_depth} bit", took))
    return rows
