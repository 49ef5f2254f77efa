"""What one full scan tile costs: detecting, measuring focus, saving; and drawing it.

Tiles are 1920 x 1200 RGB from a simulated chip of graphene on 90 nm of oxide, each one seen once.
The detector is the physics detector with its own flat field and background, as the search uses it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import cv2

from controller.bench.numbers import load, quantile_row
from controller.bench.tiles import OBJECTIVE, TileSource
from controller.figures import Row
from controller.record.frames import FrameStore
from drivers.api import Frame, Pose
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector
from inference.focus.gradient import GradientSharpness

_BAR_MS: Final = 20.0
# 2DMatGMM (J.-L. Uslu et al.), flat field included, on a machine of two such cores.
_RIVAL_MS: Final = 87.0
_KEPT_SHOTS: Final = 8  # written again and again, so that the disk does not fill


@dataclass(slots=True)
class _Cost:
    """What one kind of work took, each time it was done."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)  # all threads of this process

    @contextmanager
    def taken(self) -> Iterator[None]:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        yield
        self.cpu_ms.append((time.process_time() - began_cpu_s) * 1e3)
        self.wall_ms.append((time.perf_counter() - began_s) * 1e3)


def measure(quick: bool, seed: int) -> list[Row]:
    """Milliseconds a tile, medians."""
    return costs(TileSource(seed), 40 if quick else 300)


def costs(source: TileSource, tiles: int) -> list[Row]:
    """The rows, from so many tiles of that source."""
    detector, sharpness = PhysicsDetector(DetectorSettings()), GradientSharpness()
    drawing, detecting, focusing, saving = _Cost(), _Cost(), _Cost(), _Cost()
    detections = 0
    with (
        TemporaryDirectory(prefix="scopeloop-bench-") as folder,
        FrameStore(Path(folder) / "tiles.ome.zarr") as store,
    ):
        first = source.next_tile()  # caches, lookup tables and imports are paid here
        detector.detect(first, OBJECTIVE.pixel_size_nm)
        sharpness.measure(first)
        for number in range(tiles):
            with drawing.taken():
                pixels = source.next_tile()
            with detecting.taken():
                answer = detector.detect(pixels, OBJECTIVE.pixel_size_nm)
            detections += len(answer.detections)
            with focusing.taken():
                sharpness.measure(pixels)
            frame = Frame(pixels, number, 0.0, 0.0, Pose(0.0, 0.0, 0.0, OBJECTIVE.name), 384.0, 8)
            with saving.taken():
                store.save("tile", number % _KEPT_SHOTS, frame)
    return [
        quantile_row(
            "detect",
            detecting.wall_ms,
            0.5,
            "ms",
            _BAR_MS,
            baseline=_RIVAL_MS,
            note=f"flat field included, {detections / tiles:.1f} terraces a tile; baseline: "
            f"2DMatGMM, measured on two such cores; {cv2.getNumThreads()} threads, {load()}",
        ),
        quantile_row("detect, processor time", detecting.cpu_ms, 0.5, "ms"),
        quantile_row("detect, p95", detecting.wall_ms, 0.95, "ms"),
        quantile_row("measure sharpness", focusing.wall_ms, 0.5, "ms"),
        quantile_row("save a frame", saving.wall_ms, 0.5, "ms", note="OME-Zarr, blosc-lz4"),
        quantile_row("save a frame, processor time", saving.cpu_ms, 0.5, "ms"),
        quantile_row(
            "draw the tile (simulator)",
            drawing.wall_ms,
            0.5,
            "ms",
            note="not part of a search on a real microscope",
        ),
    ]
