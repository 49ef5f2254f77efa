"""Quantiles and shares with their uncertainty, in the form of rows.

Timings on a shared machine have long tails, so a median or a percentile is reported with the 95 %
interval that its rank allows, whatever the distribution (W. J. Conover, Practical Nonparametric
Statistics, 3rd ed., 1999, section 3.2). Shares carry Wilson's interval.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Final, Literal

from controller.figures import Row
from inference.figures import wilson_ci95

_Z95: Final = 1.959964


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, interpolated."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def quantile_ci95(values: Sequence[float], share: float) -> tuple[float, float]:
    """95 % interval of that quantile, from ranks alone."""
    ordered, n = sorted(values), len(values)
    half = _Z95 * math.sqrt(n * share * (1.0 - share))
    low = min(n - 1, max(0, math.floor(n * share - half)))
    high = min(n - 1, max(0, math.ceil(n * share + half) - 1))
    return ordered[low], ordered[max(low, high)]


def load() -> str:
    """How busy the machine is with everything together, for the note of a timing."""
    if not hasattr(os, "getloadavg"):  # Windows
        return f"{os.cpu_count()} cores"
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def quantile_row(
    name: str,
    values: Sequence[float],
    share: float,
    unit: str,
    bar: float | None = None,
    *,
    baseline: float | None = None,
    note: str = "",
) -> Row:
    """A row of a time or cost: the lower the better."""
    if not values:
        return Row(name, None, unit, bar, "lower", baseline, 0, None, note or "nothing measured")
    return Row(
        name=name,
        value=quantile(values, share),
        unit=unit,
        bar=bar,
        better="lower",
        baseline=baseline,
        n=len(values),
        ci95=quantile_ci95(values, share),
        note=note,
    )


def share_row(
    name: str,
    hits: int,
    n: int,
    bar: float | None = None,
    *,
    better: Literal["lower", "higher"] = "higher",
    baseline: float | None = None,
    note: str = "",
) -> Row:
    """A row of a share of `n`."""
    if n == 0:
        return Row(name, None, "", bar, better, baseline, 0, None, note or "nothing to count")
    return Row(name, hits / n, "", bar, better, baseline, n, wilson_ci95(hits, n), note)
