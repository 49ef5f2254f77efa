"""The overview: look at everything with the weakest lens, and find the chip."""

from __future__ import annotations

import asyncio

from controller.errors import SearchFailed
from controller.messages import ChipFound, Skipped
from controller.safety import Envelope
from controller.search.chip_focus import ChipFocus
from controller.search.darkroom import RETAKES, Darkroom
from controller.search.outline import NoChip, find_chip
from controller.search.scan import check_size
from controller.search.session import Session
from controller.search.tiling import cover_rectangle


async def find_the_chip(session: Session, darkroom: Darkroom, focus: ChipFocus) -> None:
    """Look at everything with the weakest lens, and find the chip."""
    state, settings = session.state, session.settings
    if settings.scan.area == "limits":
        if state.chip is None:
            session.post(_chip_of_limits(session.supervisor.envelope))
        await focus.first_focus(settings.scan.objective)
        return
    if state.chip is not None:
        if not session.is_scanned():  # the small pictures tell where there is something to see
            for index in sorted(i for shot, i in state.saved if shot == "overview"):
                await darkroom.look_again("overview", index)
        return
    await focus.first_focus(settings.overview.objective)
    objective = session.objective()
    area = session.overview_rectangle()
    width_um, height_um = session.field_um(objective)
    check_size(area, width_um, height_um, settings.overview.overlap_ratio, "overview")
    x_min, y_min, x_max, y_max = area.bounds
    here = session.motion.where
    plan = cover_rectangle(
        x_min,
        y_min,
        x_max,
        y_max,
        width_um,
        height_um,
        settings.overview.overlap_ratio,
        session.move_time,
        start_um=(here.x.low_um, here.y.low_um),
    )
    session.enter("overview", len(plan.tiles), 0)
    for tile in plan.tiles:
        if state.is_done("overview", tile.index):
            await darkroom.look_again("overview", tile.index)
    todo = [tile for tile in plan.tiles if not state.is_done("overview", tile.index)]
    for _ in range(1 + RETAKES):
        for tile in todo:
            await focus.go(tile.x_um, tile.y_um, objective)
            await darkroom.take("overview", tile.index)
            session.watcher.step("overview", tile.index + 1, session.now_s())
        await darkroom.drain()
        lost = darkroom.lost_indices("overview")
        todo = [tile for tile in todo if tile.index in lost]
    for tile in todo:
        session.post(Skipped(f"overview {tile.index}", "its frame was lost every time"))
    found = await asyncio.get_running_loop().run_in_executor(
        session.analyst, find_chip, [darkroom.small[i] for i in sorted(darkroom.small)]
    )
    if isinstance(found, NoChip):
        raise SearchFailed(f"no chip was found in the overview: {found.reason}")
    session.post(
        ChipFound(
            outline_um=tuple(found.polygon.exterior.coords[:-1]),
            origin_x_um=found.frame.origin_x_um,
            origin_y_um=found.frame.origin_y_um,
            rotation_deg=found.frame.rotation_deg,
            confidence=found.confidence,
        )
    )


def _chip_of_limits(envelope: Envelope) -> ChipFound:
    """No chip was looked for: its frame is the envelope's lower left corner."""
    ring = (
        (envelope.x.min_um, envelope.y.min_um),
        (envelope.x.max_um, envelope.y.min_um),
        (envelope.x.max_um, envelope.y.max_um),
        (envelope.x.min_um, envelope.y.max_um),
    )
    return ChipFound(ring, envelope.x.min_um, envelope.y.min_um, 0.0, 0.0)
