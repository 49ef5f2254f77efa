"""How long until both axes have been told to stop, with everything at full load.

While a move of both axes is under way, a camera free-runs full frames into the record lane, the
writer's thread compresses and journals as fast as it can, and the detector's thread looks at tile
after tile; the real clock runs. Halts are called in turn on the event loop itself and from another
thread, as an operator's console would, which includes waiting for the loop and for the interpreter
lock. The time ends when the last device has received its halt.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from controller.bench.frames import exposed_fact
from controller.bench.memory_instrument import MemoryCamera, MemoryInstrument
from controller.bench.numbers import load, quantile_row
from controller.bench.tiles import OBJECTIVE, TileSource
from controller.errors import Halted
from controller.figures import Row
from controller.motion import Motion
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.record.recorder import Recorder
from controller.stream import FrameStream, RecordLane
from drivers.api import Pixels
from drivers.errors import LinkLost
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector
from inference.focus.gradient import GradientSharpness

_BAR_MS: Final = 5.0
_RATE_HZ: Final = 40.0  # of full frames; more than the writer can take on two cores
_FAR_UM: Final = 40_000.0  # a move of 4 s, which no halt here waits for
_KEPT_SHOTS: Final = 16  # written again and again, so that the disk does not fill


def measure(quick: bool, seed: int) -> list[Row]:
    """Milliseconds from the call to the last axis, p50 and p99, for both callers."""
    halts = 120 if quick else 1_000
    source = TileSource(seed)
    tiles = [source.next_tile() for _ in range(4)]
    with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
        direct_ms, console_ms, looked_at, written = asyncio.run(
            halted(Path(folder), tiles, halts, seed)
        )
    busy = f"meanwhile {looked_at} tiles looked at, {written} frames written; {load()}"
    return [
        quantile_row("called on the loop, p50", direct_ms, 0.5, "ms"),
        quantile_row("called on the loop, p99", direct_ms, 0.99, "ms", _BAR_MS, note=busy),
        quantile_row("called from another thread, p50", console_ms, 0.5, "ms"),
        quantile_row("called from another thread, p99", console_ms, 0.99, "ms", _BAR_MS, note=busy),
    ]


async def halted(
    folder: Path, tiles: list[Pixels], halts: int, seed: int
) -> tuple[list[float], list[float], int, int]:
    """(ms on the loop, ms from a thread, tiles detected, frames saved)."""
    camera = MemoryCamera(tiles, buffer_frames=4)
    instrument = MemoryInstrument(camera, speed_um_per_s=_FAR_UM / 4.0)
    lane = RecordLane(4, "stall")
    chance = random.Random(seed)
    direct_ms: list[float] = []
    console_ms: list[float] = []
    stop = threading.Event()
    with (
        Journal(folder / "halt.sqlite") as journal,
        FrameStore(folder / "halt.ome.zarr") as store,
        ThreadPoolExecutor(1, "record") as writer,
        ThreadPoolExecutor(1, "analyse") as analyst,
        ThreadPoolExecutor(1, "console") as console,
    ):
        recorder = Recorder(lambda _: None, journal, store, writer)
        loop = asyncio.get_running_loop()
        saved = 0

        async def record() -> None:
            nonlocal saved
            try:
                async for frame in lane.frames():
                    exposed = exposed_fact(frame, frame.number % _KEPT_SHOTS)
                    await recorder.save(exposed, frame, (0.0, 0.0))
                    saved += 1
            except LinkLost:  # the camera was closed
                recorder.close()

        async def free_run() -> None:
            while not stop.is_set():
                await camera.run_at(_RATE_HZ, 0.25)

        async with (
            instrument,
            instrument.motion() as motion,
            asyncio.TaskGroup() as group,
            FrameStream(camera, record=lane),
        ):
            group.create_task(recorder.run(), name="record")
            group.create_task(record(), name="lane")
            running = group.create_task(free_run(), name="camera")
            detecting = loop.run_in_executor(analyst, _detect_until, stop, tiles)
            for number in range(halts):
                is_direct = number % 2 == 0
                await motion.move_to_um(0.0, 0.0, 0.0, "bench")
                moving = group.create_task(_move_far(motion), name="move")
                await asyncio.sleep(chance.uniform(0.01, 0.05))
                if is_direct:
                    called_s = time.perf_counter()
                    await motion.halt("bench", "measuring")
                else:
                    called_s = await loop.run_in_executor(console, _call_halt, motion, loop)
                came_s = [axis.halted_at for axis in (instrument.stage.axis, instrument.focus.axis)]
                await moving
                latest_s = max(at for at in came_s if at is not None)
                (direct_ms if is_direct else console_ms).append((latest_s - called_s) * 1e3)
                await motion.resume("bench")
            stop.set()
            await running
            looked_at = await detecting
            camera.close()
    return direct_ms, console_ms, looked_at, saved


async def _move_far(motion: Motion) -> None:
    try:
        await motion.move_to_um(_FAR_UM, _FAR_UM, _FAR_UM, "bench")
    except Halted:
        return


def _call_halt(motion: Motion, loop: asyncio.AbstractEventLoop) -> float:
    """In the console's thread: call, and wait until it is done."""
    called_s = time.perf_counter()
    asyncio.run_coroutine_threadsafe(motion.halt("console", "measuring"), loop).result(10.0)
    return called_s


def _detect_until(stop: threading.Event, tiles: list[Pixels]) -> int:
    """In the detector's thread: look at tile after tile."""
    detector, sharpness = PhysicsDetector(DetectorSettings()), GradientSharpness()
    done = 0
    while not stop.is_set():
        tile = tiles[done % len(tiles)]
        detector.detect(tile, OBJECTIVE.pixel_size_nm)
        sharpness.measure(tile)
        done += 1
    return done
