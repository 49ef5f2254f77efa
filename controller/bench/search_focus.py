"""The same chips searched twice: focused by the networks, and by classical sweeps.

Counted are the frames that went into focusing, where the tiles truly stood while they were exposed,
and the minutes on the instrument's clock, computing included. A tile is in focus within half a
depth of field (DOF) at its middle. A focus is wrong that is sure of itself and more than half a DOF
off the chip's true surface at the point that it claims.

Three chips: one with flakes, tilted and a little bowed; a bare one on which dust lies, and little
else; and 10 x 10 tiles with a bow of 8 DOF, which is what a surface fed by few frames must follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from controller.bench import Report
from controller.bench.numbers import load, quantile_row, share_row
from controller.bench.search import Outcome, searched, tables
from controller.errors import ControllerError
from controller.figures import Row
from controller.messages import Exposed
from simulator.optical_microscope import MicroscopeSettings

METHODS: Final = ("few_frames", "sweep")
_NAMES: Final = {"few_frames": "networks", "sweep": "sweeps"}
_IN_FOCUS_DOF: Final = 0.5
_FRAMES_A_TILE_BAR: Final = 0.3
_BARE: Final = {
    "flakes_per_mm2": 0.0,
    "debris_per_mm2": 0.0,
    "trails_per_mm2": 0.0,
    "residue_per_mm2": 0.0,
    "films_per_mm2": 0.0,
    "bubbles_per_mm2": 0.0,
    "scratches_per_mm2": 0.0,
    "dust_per_mm2": 3.0,
}
_LENSES: Final = {o.name: o.objective() for o in MicroscopeSettings().turret.objectives}


@dataclass(frozen=True, slots=True)
class Figures:
    """What one search's focusing came to."""

    foci: int
    sure: int
    frames: int
    scan_frames: int  # those that seeded and kept the surface of the scan
    wrong: int  # sure, and off the chip
    handed_over: int  # to the sweep, by the networks
    tiles_off_dof: tuple[float, ...]  # |defocus| in the middle of each tile as it was exposed
    minutes: float
    scan_minutes: float
    collisions: int


def measure(quick: bool, seed: int) -> list[Row]:
    """Rows of every chip, the networks' with the sweeps' beside them."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """As `measure`, saying how far it is."""
    chips = 1 if quick else 4
    rows: list[Row] = []
    for name, asked, count in _chips(quick, chips):
        if report.only and not any(part in name for part in report.only):
            continue
        found: dict[str, list[Figures]] = {method: [] for method in METHODS}
        for number in range(count):
            for method in METHODS:
                if report.progress is not None:
                    report.progress(f"{name}, {number + 1} of {count}, {_NAMES[method]}")
                figures = _searched(asked(seed + number), method)
                if figures is not None:
                    found[method].append(figures)
        rows += rows_of(name, found["few_frames"], found["sweep"], count)
        if report.partial is not None:
            report.partial(rows)
    return rows


def _chips(quick: bool, chips: int) -> list[tuple[str, Any, int]]:
    size_mm = (2.0, 1.5) if quick else (6.0, 5.0)
    small_mm = (1.3, 1.0) if quick else (3.0, 2.4)

    def flakes(seed: int) -> dict[str, Any]:
        return tables(seed, size_mm)

    def bare(seed: int) -> dict[str, Any]:
        asked = tables(seed, small_mm)
        asked["instrument"]["chip"] |= _BARE
        asked["revisit"] = {"max_flakes": 0}
        return asked

    def bowed(seed: int) -> dict[str, Any]:
        asked = tables(seed, (6.6, 4.2))  # 10 x 10 tiles
        if quick:
            asked["scan"] = {"max_tiles": 30}
        dof_um = _LENSES["20x"].depth_of_field_um()
        asked["instrument"]["chip"] |= {"bow_um": 8.0 * dof_um, "tilt_um_per_mm": [3.0, -2.0]}
        asked["revisit"] = {"max_flakes": 0}
        return asked

    return [
        ("chip", flakes, chips),
        ("bare chip with dust", bare, max(1, chips // 2)),
        ("10 x 10 tiles, tilt, bow of 8 DOF", bowed, max(1, chips // 2)),
    ]


def _searched(asked: dict[str, Any], method: str) -> Figures | None:
    """None: the search could not go on, for want of a focus."""
    asked["focus"] = {"method": method}
    with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
        try:
            return figures_of(searched(asked, Path(folder)))
        except ControllerError:
            return None


def figures_of(outcome: Outcome) -> Figures:
    """Ask the truth, now that the run has ended."""
    truth = outcome.truth
    if truth.chip is None:
        raise TypeError("only a chip's surface says where focus was")
    taken = {exposure.number: exposure for exposure in truth.exposures}
    points = outcome.state.focus_points
    sure = [point for point in points if point.is_confident]
    wrong = 0
    for point in sure:
        lens = _LENSES[point.objective]
        true_um = float(truth.chip.surface_z_um(point.stage_x_um, point.stage_y_um))
        off_um = point.focus_z_um - lens.parfocal_z_um - true_um
        wrong += abs(off_um) > _IN_FOCUS_DOF * lens.depth_of_field_um()
    shots: list[Exposed] = [e for (kind, _), e in outcome.state.exposed.items() if kind == "tile"]
    off = [
        abs(taken[shot.number].defocus_um) / _LENSES[shot.objective].depth_of_field_um()
        for shot in shots
        if shot.number in taken
    ]
    finished = outcome.result.finished
    return Figures(
        foci=len(points),
        sure=len(sure),
        frames=sum(point.frames for point in points),
        scan_frames=sum(p.frames for p in points if p.purpose in {"seed", "track"}),
        wrong=wrong,
        handed_over=sum(bool(point.doubt) for point in points),
        tiles_off_dof=tuple(off),
        minutes=finished.elapsed_s / 60.0,
        scan_minutes=finished.scan_s / 60.0,
        collisions=truth.collisions,
    )


def rows_of(chip: str, ours: Sequence[Figures], theirs: Sequence[Figures], asked: int) -> list[Row]:
    """The networks' figures; the sweeps' are the baseline."""

    def total(runs: Sequence[Figures], of: str) -> float:
        return float(sum(getattr(run, of) for run in runs))

    def off(runs: Sequence[Figures]) -> list[float]:
        return [d for run in runs for d in run.tiles_off_dof]

    mine, other = off(ours), off(theirs)
    in_focus = sum(d <= _IN_FOCUS_DOF for d in mine)
    tiles = max(1, len(mine))
    swept = sum(d <= _IN_FOCUS_DOF for d in other) / max(1, len(other))
    theirs_a_tile = total(theirs, "scan_frames") / max(1, len(other))
    bar = _FRAMES_A_TILE_BAR if chip.startswith("10 x 10") else None
    return [
        share_row(
            f"{chip}: searches that could begin",
            len(ours),
            asked,
            baseline=len(theirs) / asked,
            note="baseline: the same chips with sweeps",
        ),
        share_row(f"{chip}: tiles in focus", in_focus, len(mine), baseline=swept),
        quantile_row(
            f"{chip}: tiles' defocus, p95",
            mine,
            0.95,
            "DOF",
            _IN_FOCUS_DOF,
            baseline=float(np.quantile(other, 0.95)) if other else None,
            note="in the middle of each tile, as it was exposed",
        ),
        Row(
            f"{chip}: frames for focus",
            total(ours, "frames"),
            "frames",
            None,
            "lower",
            total(theirs, "frames"),
            n=int(total(ours, "foci")),
            note="n: focuses, failed ones and all lenses included",
        ),
        Row(
            f"{chip}: frames for focus a tile",
            total(ours, "scan_frames") / tiles,
            "frames",
            bar,
            "lower",
            theirs_a_tile,
            n=len(mine),
            note="those of the scan's lens: before the scan and on the way",
        ),
        Row(
            f"{chip}: handed over to the sweep",
            total(ours, "handed_over"),
            "focuses",
            n=int(total(ours, "foci")),
        ),
        share_row(
            f"{chip}: wrong focuses",
            int(total(ours, "wrong")),
            int(total(ours, "sure")),
            better="lower",
            baseline=total(theirs, "wrong") / max(1.0, total(theirs, "sure")),
            note="sure, and more than half a DOF off the chip's surface",
        ),
        Row(
            f"{chip}: minutes",
            total(ours, "minutes"),
            "min",
            None,
            "lower",
            total(theirs, "minutes"),
            n=len(ours),
            note=f"on the instrument's clock, computing as measured here; {load()}",
        ),
        Row(
            f"{chip}: minutes of the scan",
            total(ours, "scan_minutes"),
            "min",
            None,
            "lower",
            total(theirs, "scan_minutes"),
            n=len(ours),
        ),
        Row(f"{chip}: collisions", total(ours, "collisions"), "", 0.0, "lower", n=len(ours)),
    ]
