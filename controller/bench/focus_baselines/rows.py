"""From runs to figures: the focus bench's rows, their bars and their intervals.

Shares carry Wilson's interval, quantiles a bootstrap's. A row that nothing was run for says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from controller.bench.focus_baselines.conditions import (
    BASE,
    EMPTY,
    FAR,
    FOR_RIVALS,
    KNOWN,
    LEVELS,
    LOW,
    LOWEST,
    MECHANICS,
    NO_STIG,
    PERIODIC,
    SPARSE,
    STIG,
)
from controller.bench.focus_baselines.methods import eye, measure_table, rivals
from controller.bench.focus_baselines.problem import (
    FINAL_DWELL_NS,
    Condition,
    RunResult,
    problem_of,
    subject_of,
)
from controller.figures import Row
from inference.figures import wilson_ci95
from inference.focus.acnet import ACNet
from inference.focus.api import FocusCommand
from inference.focus.evaluate import bootstrap
from inference.focus.likelihood import Prior
from simulator.specimen import GENERATED

OURS: Final = "ours"
_TOLERANCE_DOF: Final = 0.5
_STIG_TOLERANCE_DOF: Final = 0.25
_HARM_DOF: Final = 0.25
_FRAME_PX: Final = 256  # a side
_FINAL_PX: Final = (2048, 1536)


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one method under one condition, and what they come to."""

    runs: Sequence[RunResult]

    @property
    def n(self) -> int:
        """How many."""
        return len(self.runs)

    @property
    def successes(self) -> list[bool]:
        """Near enough, and sure."""
        return [r.is_confident and r.error_dof <= _TOLERANCE_DOF for r in self.runs]

    @property
    def false_locks(self) -> list[bool]:
        """Sure, and wrong."""
        return [r.is_confident and r.error_dof > _TOLERANCE_DOF for r in self.runs]

    @property
    def harms(self) -> list[bool]:
        """Ends further off than it began, astigmatism included."""
        return [
            math.hypot(r.error_dof, r.stig_error_dof)
            > math.hypot(r.start_error_dof, r.start_stig_error_dof) + _HARM_DOF
            for r in self.runs
        ]

    @property
    def sure(self) -> list[RunResult]:
        """Those that did not give up."""
        return [r for r in self.runs if r.is_confident]

    @property
    def errors(self) -> list[float]:
        """Of those that did not give up."""
        return [r.error_dof for r in self.sure]


def _group(results: Sequence[RunResult], condition: Condition, method: str) -> Group:
    return Group([r for r in results if r.condition == condition.name and r.method == method])


def _share(
    name: str,
    hits: Sequence[bool],
    bar: float | None = None,
    better: Literal["lower", "higher"] = "higher",
    baseline: float | None = None,
    note: str = "",
) -> Row:
    n, count = len(hits), sum(hits)
    if n == 0:
        return Row(name, None, "", bar, better, baseline, 0, None, note or "nothing to count")
    return Row(name, count / n, "", bar, better, baseline, n, wilson_ci95(count, n), note)


def _quantile(
    name: str,
    values: Sequence[float],
    share: float,
    unit: str,
    bar: float | None = None,
    baseline: float | None = None,
    note: str = "",
) -> Row:
    if not values:
        return Row(name, None, unit, bar, "lower", baseline, 0, None, note or "no run was sure")
    array = np.array(values, dtype=np.float64)
    interval = bootstrap(array, share)
    value = float(np.quantile(array, share))
    return Row(name, value, unit, bar, "lower", baseline, array.size, interval, note)


def _best_rival(results: Sequence[RunResult], condition: Condition) -> tuple[float | None, str]:
    """Highest success of a rival, and whose it is."""
    groups = [(method.name, _group(results, condition, method.name)) for method in rivals()]
    shares = [(sum(g.successes) / g.n, name) for name, g in groups if g.n]
    if not shares:
        return None, ""
    share, name = max(shares)
    return share, f"baseline: {name}"


def our_rows(results: Sequence[RunResult], estimator: Row | None = None) -> list[Row]:
    """The few-frame focus, row by row of what is asked of it; estimator: its time, if taken."""
    base = _group(results, BASE, OURS)
    rows = []

    def success(name: str, condition: Condition, bar: float | None) -> Group:
        group = _group(results, condition, OURS)
        baseline, note = _best_rival(results, condition)
        rows.append(_share(name, group.successes, bar, baseline=baseline, note=note))
        return group

    success("success within 25 DOF", BASE, 0.99)
    success("success within 100 DOF", FAR, 0.97)
    rows += [
        _quantile("error, median", base.errors, 0.5, "DOF", 0.07, *_least(results, 0.5)),
        _quantile("error, p95", base.errors, 0.95, "DOF", 0.30, *_least(results, 0.95)),
        *_frames_rows(results, base),
        _share(
            "sign after two frames, >= 1 DOF off",
            [r.has_right_sign for r in base.runs if r.has_right_sign is not None],
            0.995,
            note="nearer to focus there is no sign to tell",
        ),
        *_dose_rows(results, base),
        *([] if estimator is None else [estimator]),
    ]
    for condition, bar in ((LOW, 0.98), (LOWEST, 0.92)):
        group = success(f"{condition.name}: success", condition, bar)
        rows.append(_quantile(f"{condition.name}: error, median", group.errors, 0.5, "DOF", 0.2))
        rows.append(_share(f"{condition.name}: sure and wrong", group.false_locks, 0.005, "lower"))
    rows += [_loss_row(results, base, condition) for condition in LEVELS]
    rows += _stig_rows(results)
    rows += _empty_rows(results, base)
    rows += _calibration_rows(base)
    success("backlash 5 DOF, hysteresis 3 %, drift 0.3 DOF/s, 5 % stale", MECHANICS, 0.98)
    everywhere = Group(
        [
            r
            for r in results
            if r.method == OURS and r.condition not in (MECHANICS.name, LOWEST.name)
        ]
    )
    rows.append(_share("harm: ends worse by > 0.25 DOF", base.harms, 0.0, "lower"))
    rows.append(
        _share(
            "harm, all conditions",
            everywhere.harms,
            0.0,
            "lower",
            note="but 5 e-/px and mechanics, whose start cannot be returned to exactly",
        )
    )
    for condition in (PERIODIC, SPARSE):
        group = success(f"{condition.name}: success", condition, None)
        rows.append(_share(f"{condition.name}: sure and wrong", group.false_locks, None, "lower"))
    return rows


def _least(results: Sequence[RunResult], share: float) -> tuple[float | None, str]:
    """The rivals' smallest such error under the first condition, and whose."""
    groups = [(m.name, _group(results, BASE, m.name).errors) for m in rivals()]
    found = [(float(np.quantile(errors, share)), name) for name, errors in groups if errors]
    if not found:
        return None, ""
    value, name = min(found)
    return value, f"of runs that were sure; baseline: {name}"


def _frames_rows(results: Sequence[RunResult], base: Group) -> list[Row]:
    frames = [float(r.frames) for r in base.runs]
    known = _group(results, KNOWN, OURS)
    groups = [(m.name, _group(results, BASE, m.name)) for m in rivals()]
    useful = [
        (float(np.median([r.frames for r in g.runs])), name)
        for name, g in groups
        if g.n and sum(g.successes) >= 0.9 * g.n
    ]
    baseline, note = min(useful) if useful else (None, "")
    said = f"baseline: {note}, the fewest with >= 90 % success" if note else ""
    return [
        _quantile("frames, median", frames, 0.5, "frames", 5.0, baseline, said),
        _quantile("frames, p95", frames, 0.95, "frames", 7.0),
        _quantile(
            "frames, median, blur carried over",
            [float(r.frames) for r in known.runs],
            0.5,
            "frames",
            4.0,
            note=f"from two runs before; success {np.mean(known.successes or [False]):.3f}",
        ),
    ]


def _dose_rows(results: Sequence[RunResult], base: Group) -> list[Row]:
    low = _group(results, LOW, OURS)
    final = f"of a picture at {FINAL_DWELL_NS / 1e3:g} us and 50 pA, on the same area"
    whole = f"of a picture of {_FINAL_PX[0]} x {_FINAL_PX[1]} at the same dwell"
    in_all = [
        r.frames
        * BASE.dose_e_per_px
        * _FRAME_PX**2
        / (r.final_electrons_per_px * np.prod(_FINAL_PX))
        for r in base.runs
    ]
    return [
        _quantile("dose of all frames", _doses(base), 0.5, "", 0.10, note=final),
        _quantile("electrons of all frames", in_all, 0.5, "", note=whole),
        _quantile("dose of all frames at 20 e-/px", _doses(low), 0.5, "", 0.10, note=final),
    ]


def _doses(group: Group) -> list[float]:
    return [r.electrons_per_px / r.final_electrons_per_px for r in group.runs]


def estimator_row() -> Row:
    """Two frames of 256 x 256 looked at, and the next step, in this process."""
    subject = subject_of(0, 0, GENERATED)
    problem = problem_of(subject, BASE)
    looker, net = eye(), ACNet(prior=Prior(range_dof=BASE.half_range_dof))
    start = problem.start
    commands = (start, FocusCommand(start.z_dof + 10.0))
    frames = [problem.observe(command).pixels for command in commands]
    took_ms = []
    for _ in range(24):
        began_s = time.perf_counter()
        views = [looker.look(f, c) for f, c in zip(frames, commands, strict=True)]
        net.next_step(views)
        took_ms.append((time.perf_counter() - began_s) * 1e3)
    name = "estimator, two frames of 256 x 256"
    return _quantile(name, took_ms[4:], 0.5, "ms", 15.0, note=looker.name)


def _loss_row(results: Sequence[RunResult], base: Group, condition: Condition) -> Row:
    """Success lost against the same runs without it."""
    group = _group(results, condition, OURS)
    plain = {r.run: good for r, good in zip(base.runs, base.successes, strict=True)}
    pairs = [
        (plain[r.run], good)
        for r, good in zip(group.runs, group.successes, strict=True)
        if r.run in plain
    ]
    name = f"{condition.name}: success lost"
    if not pairs:
        return Row(name, None, "", 0.01, "lower", n=0, note="nothing to count")
    losses = np.array([float(before) - float(after) for before, after in pairs])
    rng = np.random.default_rng(0)
    means = losses[rng.integers(0, losses.size, (1_000, losses.size))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Row(
        name,
        float(losses.mean()),
        "",
        0.01,
        "lower",
        n=len(pairs),
        ci95=(float(low), float(high)),
        note=f"sure and wrong: {sum(group.false_locks)} of {group.n}",
    )


def _stig_rows(results: Sequence[RunResult]) -> list[Row]:
    corrected = _group(results, STIG, OURS)
    good = [
        r.is_confident
        and math.hypot(r.error_dof, r.stig_error_dof) <= _STIG_TOLERANCE_DOF
        and r.frames <= 8
        for r in corrected.runs
    ]
    left = [math.hypot(r.error_dof, r.stig_error_dof) for r in corrected.sure]
    alone = _group(results, NO_STIG, OURS)
    # A line focus lies an astigmatism's length off the circle of least confusion.
    lines = [
        r.is_confident
        and r.error_dof > _TOLERANCE_DOF
        and abs(r.error_dof - r.start_stig_error_dof) < 0.5 * r.start_stig_error_dof
        for r in alone.runs
    ]
    return [
        _share(
            "astigmatism corrected with defocus",
            good,
            0.98,
            note=f"to {_STIG_TOLERANCE_DOF:g} DOF together, in at most 8 frames",
        ),
        _quantile("astigmatism and defocus left, median", left, 0.5, "DOF"),
        _quantile("astigmatism: frames, median", [r.frames for r in corrected.runs], 0.5, "frames"),
        _share("no stigmator: circle of least confusion", alone.successes),
        _share("no stigmator: line focus", lines, 0.0, "lower"),
    ]


def _empty_rows(results: Sequence[RunResult], base: Group) -> list[Row]:
    empty = _group(results, EMPTY, OURS)
    refused = [not r.is_confident and r.is_restored for r in empty.runs]
    groups = [_group(results, EMPTY, m.name) for m in rivals()]
    locks = [sum(r.is_confident for r in g.runs) / g.n for g in groups if g.n]
    return [
        _share("empty field: cannot focus, position restored", refused, 0.99),
        _share(
            "empty field: false lock",
            [r.is_confident for r in empty.runs],
            0.005,
            "lower",
            float(np.median(locks)) if locks else None,
            "baseline: the rivals' median",
        ),
        _share("abstains on a good field", [not r.is_confident for r in base.runs], 0.01, "lower"),
        _share("sure and wrong", base.false_locks, 0.005, "lower"),
    ]


def _calibration_rows(base: Group) -> list[Row]:
    """Errors in units of their own sigma."""
    ratios = [r.error_dof / r.sigma_dof for r in base.sure if r.sigma_dof]
    one, two = [x <= 1.0 for x in ratios], [x <= 2.0 for x in ratios]
    return [
        _share("within 1 sigma, at least", one, 0.63),
        _share("within 1 sigma, at most", one, 0.73, "lower"),
        _share("within 2 sigma", two, 0.93),
    ]


def rival_rows(results: Sequence[RunResult]) -> list[Row]:
    """Every rival on the same runs."""
    rows = []
    for method in rivals():
        base, name = _group(results, BASE, method.name), method.name
        rows += [
            _share(f"{name}: success", base.successes),
            _quantile(f"{name}: error, median", base.errors, 0.5, "DOF"),
            _quantile(f"{name}: error, p95", base.errors, 0.95, "DOF"),
            _quantile(f"{name}: frames", [float(r.frames) for r in base.runs], 0.5, "frames"),
            _quantile(f"{name}: dose", _doses(base), 0.5, ""),
            _quantile(
                f"{name}: time a frame",
                [r.method_s / max(1, r.frames) * 1e3 for r in base.runs],
                0.5,
                "ms",
            ),
            _share(f"{name}: sure and wrong", base.false_locks, better="lower"),
            _share(f"{name}: harm", base.harms, better="lower"),
        ]
        for condition in FOR_RIVALS:
            if condition in (BASE, EMPTY):
                continue
            group = _group(results, condition, name)
            rows.append(_share(f"{name}: success, {condition.name}", group.successes))
        locks = [r.is_confident for r in _group(results, EMPTY, name).runs]
        rows.append(_share(f"{name}: false lock, empty field", locks, better="lower"))
    return rows


def measure_rows(results: Sequence[RunResult]) -> list[Row]:
    """Every measure under the one search, 21 planes and a parabola."""
    rows = []
    for method in measure_table():
        group = _group(results, BASE, method.name)
        rows.append(
            _share(
                method.name,
                group.successes,
                note=f"median error {np.median(group.errors):.3f} DOF of the sure"
                if group.errors
                else "",
            )
        )
    return rows
