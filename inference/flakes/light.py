"""Has the light changed? Said of the first photograph after it did, from the bare substrate alone.

A lamp that ages by an hour or is bumped, a filter swung in, a camera that sets its own gain: the
substrate shows it before any flake does. The brightness cancels in a contrast, the tint nearly so,
but a photograph from after a change is not evidence of the same kind as those from before, and no
flake may get another layer number because of it without anybody being told.

The watch compares each photograph with the ones just before. How much tiles of this very chip
differ anyhow (dirt, thick flakes, the vignette seen through fewer gaps) is measured as it goes, so
that a quiet scan notices 3 % and a restless one is not full of alarms. A change that stays is the
new normal: it is told once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from inference.flakes.calibration import Drift, drift

_REMEMBERED = 15  # photographs
_LEAST = 3  # fewer say nothing about what is usual
_BRIGHTNESS_LEAST = 0.02  # of ln(G): a change less than this is none, however quiet the scan
_TINT_LEAST = 0.02  # of ln(R/G) and ln(B/G)
_SIGMAS = 5.0  # of the chip's own wobble
_WOBBLE_USUAL = 0.004  # until the chip has shown its own
_WOBBLE_MOST = 0.03  # a wobble beyond that is no wobble: lamps that flicker are told each time


@dataclass(frozen=True, slots=True)
class LightChange:
    """What the first photograph after a change shows."""

    moved: Drift  # against the photographs just before
    before_rgb: tuple[float, float, float]  # digital numbers of the substrate
    after_rgb: tuple[float, float, float]

    @property
    def is_tint(self) -> bool:
        """The colour changed, not only the strength: contrasts may have moved as well."""
        return max(abs(self.moved.red_over_green), abs(self.moved.blue_over_green)) > _TINT_LEAST

    def in_words(self) -> str:
        """For the record."""
        moved = self.moved
        words = [
            f"{name} {100 * (np.exp(value) - 1):+.0f} %"
            for name, value in (
                ("green", moved.brightness),
                ("red/green", moved.red_over_green),
                ("blue/green", moved.blue_over_green),
            )
            if abs(value) > 0.01
        ]
        return "the bare substrate changed: " + ", ".join(words)


class LightWatch:
    """Fold of the substrates' colours, photograph by photograph, of one lens and exposure."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=_REMEMBERED)
        self._wobbles: deque[tuple[float, float]] = deque(maxlen=2 * _REMEMBERED)
        self._doubted: LightChange | None = None

    def seen(self, substrate_rgb: tuple[float, float, float]) -> LightChange | None:
        """One photograph's substrate, in the order of exposure; what changed, None if nothing.

        A substrate of (0, 0, 0), where none was found, says nothing.
        """
        if min(substrate_rgb) <= 0.0:
            return None
        if self._doubted is not None:
            # One odd photograph, or the new normal?
            changed, self._doubted = self._doubted, None
            if not self._differs(drift(substrate_rgb, changed.after_rgb)):
                self._seen.clear()
                self._seen += [changed.after_rgb, substrate_rgb]
                return None
            self._wobbles.append(_sizes(changed.moved))
        if len(self._seen) < _LEAST:
            self._seen.append(substrate_rgb)
            return None
        red, green, blue = (float(v) for v in np.median(np.array(self._seen), axis=0))
        usual_rgb = red, green, blue
        moved = drift(substrate_rgb, usual_rgb)
        if self._differs(moved):
            self._doubted = LightChange(moved, usual_rgb, substrate_rgb)
            return self._doubted
        self._wobbles.append(_sizes(moved))
        self._seen.append(substrate_rgb)
        return None

    def _differs(self, moved: Drift) -> bool:
        tint, brightness = _sizes(moved)
        usual_tint = usual_brightness = _WOBBLE_USUAL
        if len(self._wobbles) >= 2 * _LEAST:
            # One robust sigma each, of the photographs remembered.
            sigmas = 1.48 * np.median(np.array(self._wobbles), axis=0)
            usual_tint, usual_brightness = (float(v) for v in np.minimum(sigmas, _WOBBLE_MOST))
        return (
            tint > _TINT_LEAST + _SIGMAS * usual_tint
            or brightness > _BRIGHTNESS_LEAST + _SIGMAS * usual_brightness
        )


def _sizes(moved: Drift) -> tuple[float, float]:
    """Of the change of tint and of brightness."""
    return max(abs(moved.red_over_green), abs(moved.blue_over_green)), abs(moved.brightness)
