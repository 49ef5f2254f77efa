"""One figure of a result: the row that every `bench` and `evaluate` table is made of.

It lies here and not beside the printing, because what is measured in this room is printed in
another one, which may import from here and not the other way round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

_Z95: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    name: str
    value: float | None  # None: could not be measured here; `note` says why
    unit: str = ""
    bar: float | None = None
    better: Literal["lower", "higher"] = "higher"  # which side of the bar is good
    baseline: float | None = None  # the rival's or the older figure, measured or cited in `note`
    n: int | None = None
    ci95: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None where there is no bar or no value."""
        if self.bar is None or self.value is None:
            return None
        return self.value <= self.bar if self.better == "lower" else self.value >= self.bar


def wilson_ci95(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22, 209, 1927)."""
    z2 = _Z95**2
    middle = (hits + z2 / 2) / (n + z2)
    half = _Z95 * math.sqrt(hits * (n - hits) / n + z2 / 4) / (n + z2)
    return max(0.0, middle - half), min(1.0, middle + half)
