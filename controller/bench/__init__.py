"""Benches: the budgets of the design, measured on the machine at hand, one small module a subject.

Each module has `measure(quick, seed)`, which returns rows with the bar and, where there is one, the
rival's figure beside them. Ratios and differences are taken within one run, against a bare loop or
a lower bound that was measured a moment before, because absolute times say more about the machine
than about the program.

The table below names the modules without importing them, so that `scopeloop search` does not pay
for what only `scopeloop bench` needs. A bench may open the simulator's truth door.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, cast

from controller.errors import BadSettings
from controller.figures import Row


@dataclass(frozen=True, slots=True)
class Report:
    """What a long bench is asked, and what it says beside its rows.

    One with `measure_with` is handed this.
    """

    progress: Callable[[str], None] | None = None  # None: nobody listens
    pictures: dict[str, str] = field(default_factory=dict)  # name -> SVG, left by the bench
    partial: Callable[[list[Row]], None] | None = None  # handed the rows so far, now and then
    jobs: int | None = None  # processes; None: one a core
    only: tuple[str, ...] = ()  # parts to measure, as the bench names them; (): all
    most_s: float | None = None  # begin nothing new after this time; None: to the end


@dataclass(frozen=True, slots=True)
class Bench:
    """One subject that can be measured."""

    name: str
    description: str  # one line

    def measure(self, *, quick: bool, seed: int, report: Report | None = None) -> list[Row]:
        """Measure it here and now; quick: fewer repeats, same rows, under 45 s on 2 cores."""
        module = importlib.import_module(f"controller.bench.{self.name}")
        if report is not None and hasattr(module, "measure_with"):
            talking = cast("Callable[[bool, int, Report], list[Row]]", module.measure_with)
            return talking(quick, seed, report)
        return cast("Callable[[bool, int], list[Row]]", module.measure)(quick, seed)


def _table(*benches: Bench) -> Mapping[str, Bench]:
    return MappingProxyType({bench.name: bench for bench in benches})


BENCHES: Final = _table(
    Bench("frames", "what the controller adds to each frame, over a bare trigger and get"),
    Bench("labels", "frames dropped, doubled and reordered: who still carries the right number"),
    Bench("accounting", "frames at full rate with a consumer that stalls: none without an end"),
    Bench("halt", "from the call to both axes, with detector, disk and camera at full load"),
    Bench("detector", "milliseconds for one 1920 x 1200 tile: detect, focus measure, save, render"),
    Bench("engines", "milliseconds for every network on every engine that is here"),
    Bench("pipeline", "stream, record and detect together, over detecting alone"),
    Bench("tour", "length of the scan's route over a lower bound"),
    Bench("search", "a whole simulated search: share of the scan-time bound, recall, positions"),
    Bench("chips", "searches over four crystals on two oxides: recall and precision per layer"),
    Bench("crash", "kill -9 at random instants of a search, and resume: what is lost"),
    Bench("flakes", "flake detection against its rivals, on real and on simulated photographs"),
    Bench("focus_loop", "the running focus: backlash, drift, stale frames, far starts, hold"),
    Bench("search_focus", "the same chips focused by the networks and by sweeps: frames, minutes"),
    Bench("search_flakes", "the same chips searched by physics, by FlakeNet and by who leads"),
    Bench("restore", "noise taken off: atoms, surfaces, micrographs; intervals, guard, speed"),
    Bench("restore_uses", "focus and detection at low dose, on raw frames and on restored ones"),
    Bench("focus", "few-frame focus against every rival: success, error, frames, dose, harm"),
    Bench("exit_wave", "exit waves, focus and foreign atoms from one frame, over dose"),
)


def run_bench(
    name: str, quick: bool = False, seed: int = 1, report: Report | None = None
) -> list[Row]:
    """The rows of one bench. Raises BadSettings for a name that is not in `BENCHES`."""
    bench = BENCHES.get(name)
    if bench is None:
        raise BadSettings("bench", "", name, f"one of {', '.join(BENCHES)}")
    return bench.measure(quick=quick, seed=seed, report=report)
