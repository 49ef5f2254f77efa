"""Which measure and which settings serve each classical search best, on development specimens.

Frames of a development object are taken once on a grid of defocus, each with noise of its own, and
every measure of every preparation is tabulated; a search is then replayed on the table, where a
place is answered by the nearest frame and that frame's place. That makes thousands of
combinations cheap enough to ask all of them. The best has the highest rate of runs within half a
depth of field, the smaller median error breaking ties; at both doses together, because nobody
tunes a microscope anew for every dose.

`python -m controller.bench.focus_baselines.tuning` prints the table that `methods` was set from.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from controller.bench.focus_baselines import searches
from controller.bench.focus_baselines.problem import Condition, problem_of, subject_of
from controller.bench.focus_baselines.searches import Look, PeakFit, SearchAround
from inference.focus.api import FocusCommand
from inference.focus.metrics import NAMES, Metric, Normaliser, Preparation
from simulator.specimen import GENERATED

F64 = npt.NDArray[np.float64]

DEVELOPMENT_SEED: Final = 7_000_001  # no bench draws from it
_DOSES_E_PER_PX: Final = (200.0, 20.0)
_HALF_RANGE_DOF: Final = 25.0
_TOLERANCE_DOF: Final = 0.5
_STARTS: Final = 24


@dataclass(frozen=True, slots=True)
class Option:
    """One search with its settings."""

    search: str
    settings: str
    around: SearchAround


@dataclass(frozen=True, slots=True)
class Score:
    """How one option fared with one measure."""

    option: Option
    measure: str
    success: float
    median_dof: float
    p95_dof: float
    median_frames: float


def measures() -> list[Metric]:
    """Every formula, unsmoothed and smoothed, against gain and against gain and offset."""
    found = []
    for name, normaliser in itertools.product(NAMES, (Normaliser.MEAN, Normaliser.CONTRAST)):
        smoothing = (0.0,) if name in ("band-power", "gradient-energy") else (0.0, 1.0, 2.0)
        found += [Metric(name, Preparation(s, normaliser=normaliser)) for s in smoothing]
    return found


def options() -> list[Option]:
    """Every search, with the settings that its text leaves open."""
    found = []
    for points, curve in itertools.product((3, 5), ("value", "log", "inverse")):
        fit = PeakFit(points, curve)  # type: ignore[arg-type]
        text = f"{points} points, {curve}"
        found += [
            Option("sweep", text, partial(searches.sweep, fit=fit)),
            Option("two-pass + parabola", text, partial(searches.two_pass, fit=fit)),
            Option("sweep and return", text, partial(searches.sweep_and_return, fit=fit)),
        ]
        for first, last in ((4.0, 1.0), (6.0, 0.75), (6.0, 1.5), (8.0, 2.0), (10.0, 2.5)):
            climb = partial(searches.hill_climb, first_step_dof=first, last_step_dof=last, fit=fit)
            found.append(Option("hill climb", f"{first:g} to {last:g} DOF, {text}", climb))
    found.append(Option("two-pass", "", searches.two_pass))
    for tol in (0.1, 0.25, 0.5):
        text = f"tolerance {tol:g} DOF"
        found += [
            Option("golden section", text, partial(searches.golden_section, tolerance_dof=tol)),
            Option("fibonacci", text, partial(searches.fibonacci, tolerance_dof=tol)),
            Option("brent", text, partial(searches.brent, tolerance_dof=tol)),
        ]
    for spread, rounds in itertools.product((0.4, 0.7, 1.0), (1, 2, 3)):
        for curve in ("value", "inverse"):
            three = partial(
                searches.three_point,
                spread_ratio=spread,
                rounds=rounds,
                curve=curve,  # type: ignore[arg-type]
            )
            found.append(Option("three-image", f"{spread:g}, {rounds} rounds, {curve}", three))
    return found


def grid_dof() -> F64:
    """Defocus of the tabulated frames: dense near focus."""
    near, middle = np.arange(0.0, 6.0, 0.2), np.arange(6.0, 20.0, 0.5)
    half = np.concatenate([near, middle, np.arange(20.0, 2.2 * _HALF_RANGE_DOF, 1.0)])
    return np.concatenate([-half[:0:-1], half])


def table_of(
    run: int, dose_e_per_px: float, metrics: Sequence[Metric], grid: F64
) -> dict[str, F64]:
    """Every measure of one development object on the grid."""
    cv2.setNumThreads(1)
    subject = subject_of(DEVELOPMENT_SEED, run, GENERATED)
    condition = Condition("development", dose_e_per_px=dose_e_per_px, flicker_ratio=0.05)
    problem = replace(problem_of(subject, condition), focus=FocusCommand(0.0))
    rows = []
    for z in grid:
        pixels = problem.observe(FocusCommand(float(z))).pixels
        rows.append([metric(pixels) for metric in metrics])
    columns = np.array(rows).T
    return {m.label: column for m, column in zip(metrics, columns, strict=True)}


def replay(around: SearchAround, grid: F64, values: F64, start_dof: float) -> tuple[float, int]:
    """(error, frames) of a search from `start_dof`, with focus at 0; 99 where it is not sure."""
    search = around(start_dof, _HALF_RANGE_DOF)
    frames = 0
    try:
        step = next(search)
        while True:
            if isinstance(step, Look):
                frames += 1
                step = search.send(float(values[int(np.argmin(np.abs(grid - step.z_dof)))]))
            else:
                step = search.send(0.0)
    except StopIteration as stop:
        found: searches.Found = stop.value
    return (abs(found.z_dof) if found.is_confident else 99.0), frames


def tune(
    tables: Sequence[Mapping[str, F64]], grid: F64, chosen: Sequence[Option], labels: Sequence[str]
) -> list[Score]:
    """Every option with every measure, best first within each search."""
    starts = np.linspace(-0.98, 0.98, _STARTS) * _HALF_RANGE_DOF
    scores = []
    for option, label in itertools.product(chosen, labels):
        ends = [
            replay(option.around, grid, table[label], float(start))
            for k, table in enumerate(tables)
            for start in starts[k % 3 :: 3]
        ]
        errors = np.array([error for error, _ in ends])
        scores.append(
            Score(
                option,
                label,
                float(np.mean(errors <= _TOLERANCE_DOF)),
                float(np.median(errors)),
                float(np.quantile(errors, 0.95)),
                float(np.median([frames for _, frames in ends])),
            )
        )
    return sorted(scores, key=lambda s: (s.option.search, -round(s.success, 2), s.median_dof))


def main(objects: int = 16, workers: int = 2) -> None:
    """Tabulate, tune, print the five best of each search."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    grid, metrics = grid_dof(), measures()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(table_of, run, dose, metrics, grid)
            for run in range(objects)
            for dose in _DOSES_E_PER_PX
        ]
        tables = [job.result() for job in jobs]
    scores = tune(tables, grid, options(), [metric.label for metric in metrics])
    shown = Table(title=f"{objects} development objects, {_DOSES_E_PER_PX} electrons a pixel")
    for heading in ("search", "settings", "measure", "<= 0.5 DOF", "median", "p95", "frames"):
        shown.add_column(heading)
    for _, group in itertools.groupby(scores, key=lambda s: s.option.search):
        for s in itertools.islice(group, 5):
            shown.add_row(
                s.option.search,
                s.option.settings,
                s.measure,
                f"{s.success:.2f}",
                f"{s.median_dof:.2f}",
                f"{s.p95_dof:.2f}",
                f"{s.median_frames:.0f}",
            )
    Console(width=140).print(shown)


if __name__ == "__main__":
    main()
