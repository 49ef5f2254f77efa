"""Pictures to measure with: tiles of a simulated chip, as the scanning objective shows them."""

from __future__ import annotations

import numpy as np

from drivers.api import Objective, Pixels
from simulator.chip import Chip, ChipSettings
from simulator.optics import OpticsSettings
from simulator.render import Renderer
from simulator.sensor import SensorSettings

OBJECTIVE = Objective("20x", 20.0, 0.45, 384.0)
FULL_PX = (1200, 1920)  # (h, w) of one scan tile


class TileSource:
    """Renders tile after tile of one seeded chip of graphene on 90 nm of oxide."""

    def __init__(self, seed: int, shape_px: tuple[int, int] = FULL_PX) -> None:
        self._chip = Chip.generate(
            ChipSettings(seed=seed, size_mm=(3.0, 3.0), flakes_per_mm2=14.0, empty_fraction=0.0)
        )
        self._renderer = Renderer(self._chip, OpticsSettings(), SensorSettings(), seed)
        self._random = np.random.default_rng(seed)
        self._shape_px = shape_px
        self._number = 0

    def next_tile(self) -> Pixels:
        """(h, w, 3) RGB uint8, read-only, in focus, somewhere inside the chip."""
        x_um, y_um = self._random.uniform(-900.0, 900.0, 2)
        pixels = self._renderer.render(
            OBJECTIVE,
            float(x_um),
            float(y_um),
            0.0,
            self._shape_px,
            frame_number=self._number,
            exposure_s=0.012,
            lamp_ratio=1.0,
            started_s=0.1 * self._number,
            velocity_um_per_s=(0.0, 0.0),
        )
        self._number += 1
        pixels.setflags(write=False)
        return pixels
