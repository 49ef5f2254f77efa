"""What the controller adds to one frame, and how often it copies the pixels.

The bare loop triggers and takes the frame out of the camera, nothing else. The full path asks the
supervisor, waits for stillness, triggers, books the number in the ledger, matches frame and
trigger, checks shape, times and freshness, and posts the exposure to a recorder whose journal
is written meanwhile. Both loops take turns on two cameras of one kind; each figure is of the
difference between neighbours, so that the machine's mood cancels. The bare loop never yields to
the event loop, hence what the recorder does there is charged to the full path as well.

Copies are counted as allocated bytes over the frame's own (`tracemalloc` sees numpy's arrays), and
by asking whether both ends of the path show the same memory.
"""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from controller.bench.memory_instrument import (
    OBJECTIVE,
    MemoryCamera,
    MemoryInstrument,
    without_gaps,
)
from controller.bench.numbers import load, quantile, quantile_row
from controller.figures import Row
from controller.messages import Exposed
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.record.recorder import Recorder
from controller.safety import Expose
from controller.stream import FrameStream, LiveLane, RecordLane
from drivers.api import Frame, Pixels, Pose

_P50_BAR_US: Final = 100.0
_P99_BAR_US: Final = 500.0
_EXPOSE: Final = Expose(1e-3, 200.0, 200.0, "bench")
_TIMEOUT_S: Final = 5.0
_WARM_UP: Final = 200
_COUNT_TO: Final = 4_000  # about as long as the full path


def measure(quick: bool, seed: int) -> list[Row]:
    """Costs in us for 512 x 512, copies for 2048 x 2048."""
    pairs = 3_000 if quick else 20_000
    with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
        turns = asyncio.run(take_turns(Path(folder), pairs, seed))
        shared, path_copies, disk_copies = asyncio.run(copies(Path(folder), seed))
    return [
        quantile_row("bare trigger and get, p50", turns.bare_us, 0.5, "us"),
        quantile_row(
            "added per frame, p50",
            turns.added_us,
            0.5,
            "us",
            _P50_BAR_US,
            note="512 x 512; safety, stillness, ledger, lanes, journal; no metrics exist yet",
        ),
        quantile_row(
            "added per frame, p99",
            turns.added_us,
            0.99,
            "us",
            _P99_BAR_US,
            baseline=quantile(turns.idle_us, 0.99),
            note=f"baseline: p99 of counting for about as long; {load()}",
        ),
        quantile_row(
            "added per frame, processor time, p99",
            turns.added_cpu_us,
            0.99,
            "us",
            _P99_BAR_US,
            note="of the event loop's thread: what other programs take is left out",
        ),
        Row(
            "copies, camera to lanes",
            path_copies,
            "",
            1.0,
            "lower",
            n=1,
            note="2048 x 2048; both ends show the same memory"
            if shared
            else "2048 x 2048; the ends do NOT share memory",
        ),
        Row(
            "copies, camera to disk",
            disk_copies,
            "",
            None,
            "lower",
            n=1,
            note="peak of all allocations over the frame's bytes; the compressed chunk included",
        ),
    ]


def exposed_fact(frame: Frame, index: int) -> Exposed:
    """What the search posts about a tile."""
    return Exposed(
        shot="tile",
        index=index,
        number=frame.number,
        exposed_from_s=frame.exposed_from_s,
        exposed_until_s=frame.exposed_until_s,
        stage_x_um=frame.pose.stage_x_um,
        stage_y_um=frame.pose.stage_y_um,
        focus_z_um=frame.pose.focus_z_um,
        objective=frame.pose.objective,
        pixel_size_nm=frame.pixel_size_nm,
        exposure_s=frame.exposed_until_s - frame.exposed_from_s,
    )


def noise_pictures(shape_px: tuple[int, int], count: int, seed: int) -> list[Pixels]:
    """Pictures that do not compress; read-only as a driver's must be."""
    random = np.random.default_rng(seed)
    pictures: list[Pixels] = []
    for _ in range(count):
        picture = random.integers(0, 256, shape_px, np.uint8)
        picture.setflags(write=False)
        pictures.append(picture)
    return pictures


@dataclass(slots=True)
class Turns:
    """One number for each turn, in us, the warm-up left out."""

    bare_us: list[float] = field(default_factory=list)
    added_us: list[float] = field(default_factory=list)  # full path minus bare loop
    added_cpu_us: list[float] = field(default_factory=list)
    idle_us: list[float] = field(default_factory=list)  # counting: the machine's own unrest


async def take_turns(folder: Path, pairs: int, seed: int) -> Turns:
    """Bare loop and full path, one frame each, in turn."""
    pictures = noise_pictures((512, 512), 4, seed)
    bare_camera = MemoryCamera(pictures)
    instrument = MemoryInstrument(MemoryCamera(pictures))
    arrivals = bare_camera.frames()
    turns = Turns()
    with (
        Journal(folder / "frames.sqlite") as journal,
        FrameStore(folder / "frames.ome.zarr") as store,
        ThreadPoolExecutor(1, "record") as thread,
    ):
        recorder = Recorder(lambda _: None, journal, store, thread)
        async with (
            instrument,
            instrument.motion() as motion,
            FrameStream(instrument.camera) as stream,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(recorder.run(), name="record")
            for pair in range(_WARM_UP + pairs):
                began_s = time.perf_counter()
                for _ in range(_COUNT_TO):
                    pass
                counted_s = time.perf_counter()
                await bare_camera.trigger()
                without_gaps(await anext(arrivals))
                between_s, between_cpu_s = time.perf_counter(), time.thread_time()
                exposure = await stream.expose(motion, _EXPOSE)
                frame = await stream.frame(exposure.number, _TIMEOUT_S, exposure.settled_at_s)
                recorder.post(exposed_fact(frame, pair))
                ended_cpu_s, ended_s = time.thread_time(), time.perf_counter()
                if pair >= _WARM_UP:
                    bare_s = between_s - counted_s
                    turns.idle_us.append((counted_s - began_s) * 1e6)
                    turns.bare_us.append(bare_s * 1e6)
                    turns.added_us.append((ended_s - between_s - bare_s) * 1e6)
                    turns.added_cpu_us.append((ended_cpu_s - between_cpu_s - bare_s) * 1e6)
            recorder.close()
    return turns


async def copies(folder: Path, seed: int) -> tuple[bool, float, float]:
    """Whether the lanes show the camera's own memory; copies up to the lanes, and to the disk."""
    pictures = noise_pictures((2048, 2048), 1, seed)
    camera = MemoryCamera(pictures)
    record, live = RecordLane(4, "stall"), LiveLane()
    recorded = record.frames()
    with FrameStore(folder / "copies.ome.zarr") as store:
        async with FrameStream(camera, record=record, live=live):
            await camera.trigger()
            await anext(recorded)  # the first frame pays for imports and caches
            store.save("tile", 0, Frame(pictures[0], 0, 0.0, 0.0, _pose(), 384.0, 8))
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                await camera.trigger()
                frame = await anext(recorded)
                _, path_peak = tracemalloc.get_traced_memory()
                store.save("tile", 1, frame)
                _, disk_peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            newest = live.newest
    is_shared = np.shares_memory(frame.pixels, pictures[0]) and (
        newest is not None and np.shares_memory(newest.pixels, pictures[0])
    )
    size = pictures[0].nbytes
    return is_shared, (path_peak - before) / size, (disk_peak - before) / size


def _pose() -> Pose:
    return Pose(0.0, 0.0, 0.0, OBJECTIVE.name)
