"""One figure of a result: the row that every `bench` and `evaluate` table is made of.

It lies here and not beside the printing, because what is measured in this room is printed in
another one, which may import from here and not the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
