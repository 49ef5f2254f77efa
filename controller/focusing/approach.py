"""Reaching a focus so that backlash and hysteresis are the same every time; and measuring both.

A screw follows its nut through a gap, and a lens of iron lags behind its current by a share of its
last change, on top of what is left of earlier and larger ones. Neither can be seen in what the axis
reports. Both are the same for all positions whose last move was the same: down, from so far above,
with nothing larger left over. After a larger excursion, moves of half the size, a quarter and so on
wear it off, as one degausses a magnet. All of them lie above the target: below it is the sample.

How far is enough is measured, not assumed: the same focus is looked for once more with positions
reached from below. Where the two disagree, the difference is the gap, and the part that grows with
the length of the last move is the iron.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

_WORN_RATIO: Final = 1.5  # of the last move: a larger excursion than this must be worn off first
_MOST_CYCLES: Final = 6
_UNKNOWN_ABOVE, _UNKNOWN_BELOW = 4.0, 2.0  # last moves, of a lens whose past nobody knows
_MARGIN_RATIO: Final = 1.5  # of the measured gap


@dataclass(slots=True, eq=False)
class LastMove:
    """Ways that end with the same move; remembers what earlier moves have left behind."""

    overshoot_um: float  # > 0: down, from so far above; < 0: up, which only measuring asks for
    highest_z_um: float = math.inf
    lowest_z_um: float = -math.inf
    _at_um: float | None = field(default=None, init=False)  # None: nobody knows
    _left_um: float = field(default=math.inf, init=False)  # size of the largest move not worn off

    def excursion(self, size_um: float) -> None:
        """Something else moved the axis by that much, there and back."""
        if size_um > 0.0:
            self._book(size_um)
            self._book(size_um)

    def way_to(self, z_um: float, *, is_exact: bool = True) -> tuple[float, ...]:
        """Positions to visit in turn, the last of which is z.

        is_exact False: what is left of earlier moves does not matter here.
        """
        way: list[float] = []
        for above_um in self._heights(z_um) if is_exact else [abs(self.overshoot_um)]:
            turn_um = z_um + math.copysign(above_um, self.overshoot_um)
            top_um = min(max(turn_um, self.lowest_z_um), self.highest_z_um)
            for to_um in (top_um, z_um):
                if self._at_um is None or to_um != self._at_um:
                    self._book(math.inf if self._at_um is None else abs(to_um - self._at_um))
                    self._at_um = to_um
                    way.append(to_um)
        return tuple(way)

    @property
    def _unknown_um(self) -> float:
        """Taken for what is left of moves that nobody saw; less far where the sample is."""
        return abs(self.overshoot_um) * (
            _UNKNOWN_ABOVE if self.overshoot_um > 0.0 else _UNKNOWN_BELOW
        )

    def _heights(self, z_um: float) -> list[float]:
        """Of the cycles above z, falling, the overshoot last."""
        last_um = abs(self.overshoot_um)
        up_um = 0.0 if self._at_um is None else abs(z_um + self.overshoot_um - self._at_um)
        left_um = max(self._left_um, up_um)
        if not math.isfinite(left_um):
            left_um = self._unknown_um
        heights: list[float] = []
        if left_um > _WORN_RATIO * last_um:
            while left_um > last_um and len(heights) < _MOST_CYCLES:
                heights.append(left_um)
                left_um /= 2.0
        return [*heights, last_um]

    def _book(self, size_um: float) -> None:
        if not math.isfinite(size_um):
            self._left_um = math.inf
        elif not math.isfinite(self._left_um):
            self._left_um = self._unknown_um
        else:
            self._left_um = max(size_um, self._left_um - size_um)


@dataclass(frozen=True, slots=True)
class FoundFrom:
    """Where focus was found when all positions were reached by one kind of last move."""

    last_move_um: float  # > 0: upwards, from below
    focus_z_um: float
    sigma_um: float
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Play:
    """What an axis owes to the direction it comes from."""

    backlash_um: float  # >= 0
    backlash_sigma_um: float
    hysteresis_ratio: float  # of the last move; 0 where it could not be told
    hysteresis_sigma: float

    @property
    def overshoot_um(self) -> float:
        """A last move that takes the gap up, with a margin."""
        return _MARGIN_RATIO * (self.backlash_um + self.backlash_sigma_um)


def play_of(found: Sequence[FoundFrom]) -> Play:
    """Least squares of focus = there + gap / 2 * direction + ratio * last move + drift * time.

    Coming from below the axis lies behind by half the gap and by a share of the way it came, so it
    is told to go further up. Two kinds of last move tell the gap alone, three the share as well, a
    fourth focus the drift meanwhile. Raises ValueError where all came from one side.
    """
    moves = [f.last_move_um for f in found]
    if not moves or min(moves) >= 0.0 or max(moves) <= 0.0:
        message = "backlash shows only between focuses reached from above and from below"
        raise ValueError(message)
    tells_ratio = len({round(m, 6) for m in moves}) >= 3
    times_s = [f.at_s - found[0].at_s for f in found]
    tells_drift = tells_ratio and len(found) >= 4 and max(times_s) > 0.0
    columns = np.array(
        [
            [
                1.0,
                0.5 * math.copysign(1.0, m),
                *([m] if tells_ratio else []),
                *([t] if tells_drift else []),
            ]
            for m, t in zip(moves, times_s, strict=True)
        ]
    )
    weights = 1.0 / np.maximum([f.sigma_um for f in found], 1e-6)
    covariance = np.linalg.inv((columns * weights[:, None] ** 2).T @ columns)
    solution = covariance @ (columns.T @ (weights**2 * np.array([f.focus_z_um for f in found])))
    sigmas = np.sqrt(np.diag(covariance))
    return Play(
        backlash_um=max(float(solution[1]), 0.0),
        backlash_sigma_um=float(sigmas[1]),
        hysteresis_ratio=float(solution[2]) if tells_ratio else 0.0,
        hysteresis_sigma=float(sigmas[2]) if tells_ratio else math.inf,
    )
