"""What the whole pipeline takes over the inference alone, on the same frames.

Bare: detect and measure sharpness on frame after frame, in one thread. Whole: trigger, stream,
ledger, journal, OME-Zarr on the writer's thread, and the same inference on the analyst's thread, at
most six frames in flight, as the search does it. Blocks of both take turns, and each ratio is of
neighbouring blocks.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from controller.bench.frames import exposed_fact
from controller.bench.memory_instrument import MemoryCamera, MemoryInstrument
from controller.bench.numbers import load, quantile, quantile_row
from controller.bench.tiles import OBJECTIVE, TileSource
from controller.figures import Row
from controller.messages import Analysed
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.record.recorder import Recorder
from controller.safety import Expose
from controller.search.pieces import pieces_of
from controller.stream import Exposure, FrameStream
from drivers.api import Pixels
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector
from inference.focus.gradient import GradientSharpness

_BAR: Final = 1.10
_IN_FLIGHT: Final = 6
_BLOCK_FRAMES: Final = 16
_EXPOSE: Final = Expose(1e-3, 700.0, 450.0, "bench")
_TIMEOUT_S: Final = 30.0


def measure(quick: bool, seed: int) -> list[Row]:
    """Ratio of wall times, and the milliseconds behind it."""
    source = TileSource(seed)
    tiles = [source.next_tile() for _ in range(_BLOCK_FRAMES)]
    return ratios_of(tiles, 6 if quick else 60)


def ratios_of(tiles: list[Pixels], blocks: int) -> list[Row]:
    """The rows, from so many blocks of these tiles."""
    with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
        bare_s, whole_s, cores = asyncio.run(_take_turns(Path(folder), tiles, blocks))
    ratios = [whole / bare for bare, whole in zip(bare_s, whole_s, strict=True)]
    return [
        quantile_row(
            "whole pipeline over bare inference",
            ratios,
            0.5,
            "",
            _BAR,
            note=f"every frame recorded; blocks of {len(tiles)} frames; {load()}",
        ),
        quantile_row("bare inference", [s / len(tiles) * 1e3 for s in bare_s], 0.5, "ms/frame"),
        quantile_row("whole pipeline", [s / len(tiles) * 1e3 for s in whole_s], 0.5, "ms/frame"),
        Row(
            "processors at work in the whole pipeline",
            quantile(cores, 0.5),
            "",
            n=blocks,
            note="near 1 on a machine that others keep busy: then nothing can overlap",
        ),
    ]


class _Inference:
    """Detector and sharpness as the search asks them, on one thread."""

    def __init__(self) -> None:
        self._detector, self._sharpness = PhysicsDetector(DetectorSettings()), GradientSharpness()

    def look(self, pixels: Pixels, index: int) -> Analysed:
        began_s = time.perf_counter()
        answer = self._detector.detect(pixels, OBJECTIVE.pixel_size_nm)
        sharpness = self._sharpness.measure(pixels)
        return Analysed(
            shot="tile",
            index=index,
            detector=self._detector.name,
            sharpness=sharpness.value,
            substrate_rgb=answer.substrate_rgb,
            in_distribution=answer.in_distribution,
            reason=answer.reason,
            pieces=pieces_of(answer, lambda x, y: (x, y), 1.0),
            compute_s=time.perf_counter() - began_s,
        )

    def look_at_all(self, tiles: list[Pixels]) -> None:
        for index, tile in enumerate(tiles):
            self.look(tile, index)


async def _take_turns(
    folder: Path, tiles: list[Pixels], blocks: int
) -> tuple[list[float], list[float], list[float]]:
    """(bare s, whole s, processors in the whole) of each block; the first is not counted."""
    loop = asyncio.get_running_loop()
    instrument = MemoryInstrument(MemoryCamera(tiles))
    inference = _Inference()
    bare_s: list[float] = []
    whole_s: list[float] = []
    cores: list[float] = []
    with (
        Journal(folder / "pipeline.sqlite") as journal,
        FrameStore(folder / "pipeline.ome.zarr") as store,
        ThreadPoolExecutor(1, "record") as writer,
        ThreadPoolExecutor(1, "analyse") as analyst,
    ):
        recorder = Recorder(lambda _: None, journal, store, writer)
        async with (
            instrument,
            instrument.motion() as motion,
            asyncio.TaskGroup() as group,
            FrameStream(instrument.camera) as stream,
        ):
            group.create_task(recorder.run(), name="record")

            async def develop(shots: asyncio.Queue[Exposure], room: asyncio.Semaphore) -> None:
                for index in range(len(tiles)):
                    exposure = await shots.get()
                    frame = await stream.frame(exposure.number, _TIMEOUT_S, exposure.settled_at_s)
                    await recorder.save(exposed_fact(frame, index), frame, (0.0, 0.0))
                    recorder.post(
                        await loop.run_in_executor(analyst, inference.look, frame.pixels, index)
                    )
                    room.release()

            async def whole() -> None:
                shots: asyncio.Queue[Exposure] = asyncio.Queue()
                room = asyncio.Semaphore(_IN_FLIGHT)
                developing = group.create_task(develop(shots, room), name="develop")
                for _ in tiles:
                    await room.acquire()
                    shots.put_nowait(await stream.expose(motion, _EXPOSE))
                await developing
                await recorder.flush()

            for block in range(blocks + 1):
                began_s = time.perf_counter()
                await loop.run_in_executor(analyst, inference.look_at_all, tiles)
                between_s, between_cpu_s = time.perf_counter(), time.process_time()
                await whole()
                if block > 0:
                    bare_s.append(between_s - began_s)
                    whole_s.append(time.perf_counter() - between_s)
                    cores.append((time.process_time() - between_cpu_s) / whole_s[-1])
            recorder.close()
    return bare_s, whole_s, cores
