"""Whether all frames end somewhere and memory stays flat, at full rate with a slow consumer.

A camera in memory free-runs on the real clock; frames pass the ledger into the record lane, whose
consumer stands still for a while every second, longer than lane and camera can hold, so that real
losses occur and have to be named. A viewer looks at the live lane now and then. At the end each
source number must be received or missing, and each received one kept.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.bench.frames import noise_pictures
from controller.bench.memory_instrument import MemoryCamera
from controller.bench.numbers import load
from controller.figures import Row
from controller.stream import FrameStream, LiveLane, RecordLane
from drivers.errors import LinkLost

_RATES: Final = (((512, 512), 800.0), ((2048, 2048), 100.0))  # (h, w), frames/s
_LANE_S: Final = 0.15  # what the record lane holds
_CAMERA_S: Final = 0.10  # what the camera holds
_STALLS_S: Final = (0.05, 0.05, 0.05, 0.4)  # the last one is more than both can hold
_GROWTH_BAR_PERCENT: Final = 1.0


def measure(quick: bool, seed: int) -> list[Row]:
    """Unaccounted frames, memory's growth and the lane's use, for both rates."""
    duration_s = 5.0 if quick else 60.0
    rows = []
    for shape_px, rate_hz in _RATES:
        name = f"{shape_px[0]} x {shape_px[1]} at {rate_hz:g}/s"
        soak = asyncio.run(soaked(shape_px, rate_hz, duration_s, seed))
        rows += [
            Row(f"{name}: unaccounted", soak.unaccounted, "frames", 0.0, "lower", n=soak.exposed),
            Row(
                f"{name}: kept or named missing",
                (soak.kept + soak.missing) / soak.exposed,
                "",
                1.0,
                n=soak.exposed,
                note=f"{soak.kept} kept, {soak.missing} missing and named, "
                f"{soak.lane_stalls} stalls of the lane",
            ),
            Row(
                f"{name}: highest use of the lane",
                100.0 * soak.most_used / soak.lane_capacity,
                "%",
                n=soak.exposed,
                note="every fourth stall is longer than lane and camera can hold, on purpose",
            ),
            Row(
                f"{name}: growth of memory",
                soak.growth_percent,
                "%",
                _GROWTH_BAR_PERCENT,
                "lower",
                n=1,
                note=f"resident, {duration_s:g} s after the warm-up"
                if soak.growth_percent is not None
                else "only Linux tells a process its resident memory without a library",
            ),
            Row(
                f"{name}: frames behind the schedule at worst",
                soak.latest_s * rate_hz,
                "frames",
                n=soak.exposed,
                note=f"how late the loop was in asking the camera; {load()}",
            ),
        ]
    return rows


@dataclass(frozen=True, slots=True)
class Soak:
    """How a soak ended."""

    exposed: int
    kept: int
    missing: int
    unaccounted: int
    lane_stalls: int
    most_used: int
    lane_capacity: int
    growth_percent: float | None
    latest_s: float


async def soaked(
    shape_px: tuple[int, int],
    rate_hz: float,
    duration_s: float,
    seed: int,
    *,
    warm_up_s: float = 2.0,
    stall_every_s: float = 1.0,
) -> Soak:
    """Free-run for `warm_up_s` and then for `duration_s`, over which memory is compared."""
    camera = MemoryCamera(
        noise_pictures(shape_px, 4, seed), buffer_frames=max(4, round(_CAMERA_S * rate_hz))
    )
    lane = RecordLane(max(4, round(_LANE_S * rate_hz)), "stall")
    live = LiveLane()
    loop = asyncio.get_running_loop()
    kept = 0

    async def record() -> None:
        nonlocal kept
        next_stall_s, stalls = loop.time() + stall_every_s, 0
        try:
            async for frame in lane.frames():
                kept += int(frame.pixels[0, 0] >= 0)
                if loop.time() >= next_stall_s:
                    await asyncio.sleep(_STALLS_S[stalls % len(_STALLS_S)])
                    stalls += 1
                    next_stall_s = loop.time() + stall_every_s
        except LinkLost:  # the camera was closed
            return

    async def watch() -> None:
        try:
            async for _ in live.frames():
                await asyncio.sleep(1 / 30)
        except LinkLost:
            return

    async with (
        asyncio.TaskGroup() as group,
        FrameStream(camera, record=lane, live=live) as stream,
    ):
        recording = group.create_task(record(), name="record")
        group.create_task(watch(), name="watch")
        await camera.run_at(rate_hz, warm_up_s)
        before = resident_bytes()
        latest_s = await camera.run_at(rate_hz, duration_s)
        after = resident_bytes()
        camera.close()
        await recording
    ledger = stream.ledger
    growth = None if before is None or after is None else 100.0 * (after - before) / before
    return Soak(
        exposed=camera.triggered,
        kept=kept,
        missing=ledger.missing_frames,
        unaccounted=ledger.unaccounted_frames + abs(camera.triggered - ledger.span_frames),
        lane_stalls=lane.stalls,
        most_used=lane.most_used_frames,
        lane_capacity=lane.capacity_frames,
        growth_percent=growth,
        latest_s=latest_s,
    )


def resident_bytes() -> int | None:
    """Resident memory of this process; None: the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
