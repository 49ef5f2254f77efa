"""What a live session came to: counts, times, dose, and a few frames to look at afterwards.

Pure, and complete at every instant: a session that is stopped, or fails, is told of like one that
ended by itself. Memory is bounded, however long it runs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from controller.restoring.stage import LiveView
from drivers.api import Frame

_MOST_MOMENTS: Final = 8
_MOST_POINTS: Final = 2_048  # of a curve
_MOST_REASONS: Final = 32
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Thinned:
    """Values of a run of any length, evenly thinned: when full, every other one goes."""

    def __init__(self, most: int = _MOST_POINTS) -> None:
        """Keeps between half of `most` and `most`, and the newest beside them."""
        self._most = most
        self._stride = 1
        self._seen = 0
        self._kept: list[LiveView] = []
        self._newest: LiveView | None = None

    def add(self, view: LiveView) -> None:
        """Enter the next one."""
        if self._seen % self._stride == 0:
            self._kept.append(view)
            if len(self._kept) > self._most:
                self._kept = self._kept[::2]
                self._stride *= 2
        self._seen += 1
        self._newest = view

    @property
    def all(self) -> tuple[LiveView, ...]:
        """In their order, first and newest included."""
        newest = self._newest
        if newest is None or (self._kept and self._kept[-1] is newest):
            return tuple(self._kept)
        return (*self._kept, newest)

    def spread(self, count: int) -> tuple[LiveView, ...]:
        """At most so many, evenly chosen, first and newest included."""
        known = self.all
        if len(known) <= count:
            return known
        at = np.linspace(0, len(known) - 1, count).round().astype(int)
        return tuple(known[index] for index in at)


@dataclass(frozen=True, slots=True)
class Point:
    """One view's figures, without its pixels."""

    at_s: float  # since the session began
    latency_s: float
    work_s: float
    effective_frames: float
    is_fallback: bool


class Curve:
    """Figures of a run of any length: full, every other one goes."""

    def __init__(self, most: int = _MOST_POINTS) -> None:
        self._most = most
        self._stride = 1
        self._seen = 0
        self.points: list[Point] = []

    def add(self, point: Point) -> None:
        """Enter the next one."""
        if self._seen % self._stride == 0:
            self.points.append(point)
            if len(self.points) > self._most:
                self.points = self.points[::2]
                self._stride *= 2
        self._seen += 1


@dataclass(slots=True, eq=False)
class WatchLog:
    """Filled by a session while it runs."""

    began_s: float = math.nan  # on the loop's clock
    ended_s: float = math.nan
    exposed_frames: int = 0
    recorded_frames: int = 0
    lost_frames: int = 0
    viewed_frames: int = 0
    restored_frames: int = 0
    skipped_frames: int = 0
    fallbacks: int = 0
    doubted_frames: int = 0  # outside what the restorer can judge
    dose_e_per_a2: float = 0.0  # 0: not known, or light
    dosed_frames: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # numbers in them left out
    moments: Thinned = field(default_factory=lambda: Thinned(_MOST_MOMENTS))
    curve: Curve = field(default_factory=Curve)

    def recorded(self, frame: Frame) -> None:
        """A raw frame is on the disk."""
        self.recorded_frames += 1
        dose = dose_e_per_a2(frame)
        if dose is not None:
            self.dose_e_per_a2 += dose
            self.dosed_frames += 1

    def viewed(self, view: LiveView) -> None:
        """A view could be shown."""
        self.viewed_frames += 1
        self.skipped_frames += view.skipped_frames
        self.moments.add(view)
        restored = view.restored
        if restored is not None:
            self.restored_frames += 1
            self.methods[restored.method] += 1
            self.fallbacks += restored.is_fallback
            self.doubted_frames += not restored.in_distribution
            self.curve.add(
                Point(
                    at_s=view.ready_s - self.began_s,
                    latency_s=view.latency_s,
                    work_s=view.work_s,
                    effective_frames=restored.effective_frames,
                    is_fallback=restored.is_fallback,
                )
            )
        if view.reason:
            kind = _NUMBER.sub("#", view.reason)
            known = kind in self.reasons or len(self.reasons) < _MOST_REASONS
            self.reasons[kind if known else "other reasons"] += 1

    @property
    def lasted_s(self) -> float:
        """Nan where it has not begun or not ended."""
        return self.ended_s - self.began_s

    @property
    def dose_per_frame_e_per_a2(self) -> float | None:
        """None: no frame said what it had."""
        return self.dose_e_per_a2 / self.dosed_frames if self.dosed_frames else None

    def rate_hz(self, frames: int) -> float:
        """Frames over the session's time; nan where that is not known."""
        return frames / self.lasted_s if self.lasted_s > 0.0 else math.nan

    def latency_ms(self, percent: float) -> float:
        """A percentile of exposure's end to view; nan where nothing was restored."""
        times = [point.latency_s for point in self.curve.points]
        return 1e3 * float(np.percentile(times, percent)) if times else math.nan

    def effective_frames(self) -> float:
        """Of the last quarter of the views, the median; nan where nothing was restored."""
        last = [point.effective_frames for point in self.curve.points]
        return float(np.median(last[-max(1, len(last) // 4) :])) if last else math.nan


def dose_e_per_a2(frame: Frame) -> float | None:
    """Electrons per square angstrom that the sample got for this frame; None: not said."""
    electrons = frame.optics.get("electrons_per_px")
    if not isinstance(electrons, int | float) or not math.isfinite(electrons):
        return None
    return float(electrons) / (10.0 * frame.pixel_size_nm) ** 2
