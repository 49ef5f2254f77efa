"""Few-frame focus against every rival, in one harness on the simulated electron microscope.

One definition for everybody: a run succeeds when it ends within half a depth of field (DOF) of
focus AND the method says that it is sure. A frame is a frame, whatever it was for; the verification
counts, and so does a stale frame that had to be taken again. Dose is what all frames of a run put
into the area to be focused, over that of the one picture at 10 us a pixel that the focus is for.

Run n has one object, one set of optics and one start for all methods and all conditions, and
frame k of it the same noise. The microscope forms its probe from waves and rays, with spherical
aberration; the estimators know a family of simpler blurs. The rivals' measures and settings were
tuned on other objects (`focus_baselines.tuning`).

Runs are spread over processes that are started anew, so that it works alike everywhere; how many
there are changes nothing but the time. What is asked of fewer objects than others is asked of
every second or tenth one, so a bench that is cut short has all its rows, each with the n it came
to. Rows are made of whole stretches of objects only: a cut must not leave out the slow ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import astuple, dataclass
from functools import cache
from typing import Final

import cv2

from controller.bench import Report
from controller.bench.focus_baselines.conditions import (
    BASE,
    CONDITIONS,
    FOR_RIVALS,
    KNOWN,
    LEVELS,
    NO_STIG,
    OTHER_OBJECTS,
    STIG,
)
from controller.bench.focus_baselines.methods import FewFrames, eye, measure_table, rivals
from controller.bench.focus_baselines.problem import (
    Condition,
    RunResult,
    problem_of,
    run_one,
    subject_of,
)
from controller.bench.focus_baselines.rows import (
    OURS,
    estimator_row,
    measure_rows,
    our_rows,
    rival_rows,
)
from controller.errors import BadSettings
from controller.figures import Row
from controller.processes import processes
from inference.focus.evaluate import FocusMethod

_RUNS_A_JOB: Final = 2
_PARTIAL_EVERY_S: Final = 20.0
_RIVALS: Final = "rivals"
_MEASURES: Final = "measures"
_KINDS: Final = (OURS, _RIVALS, _MEASURES)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many objects are asked what."""

    ours: int  # each condition not named below
    astigmatic: int
    no_stigmator: int
    known: int  # two more runs each, to learn from
    levels: int  # of the image's grey levels, five conditions
    other_objects: int  # kinds of object that no bar is about
    rivals: int  # the first condition
    rivals_elsewhere: int
    measures: int  # the table of measures

    @property
    def total(self) -> int:
        """Objects in all."""
        return int(max(astuple(self)))

    def of(self, condition: Condition) -> int:
        """Objects that the few-frame focus meets under a condition."""
        if condition is STIG:
            return self.astigmatic
        if condition is NO_STIG:
            return self.no_stigmator
        if condition is KNOWN:
            return self.known
        if condition in LEVELS:
            return self.levels
        return self.other_objects if condition in OTHER_OBJECTS else self.ours


QUICK: Final = Plan(10, 8, 8, 10, 10, 10, rivals=8, rivals_elsewhere=1, measures=8)
FULL: Final = Plan(
    2_000, 2_000, 1_000, 1_000, 1_000, 200, rivals=200, rivals_elsewhere=50, measures=50
)


def measure(quick: bool, seed: int) -> list[Row]:
    """Run everything; see the module."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """Run what is asked for, say how far it is, and leave the plot of error against frames."""
    from controller.bench.focus_baselines.chart import error_against_frames

    _check(report.only)
    took = estimator_row()  # before the machine is busy

    def rows(results: Sequence[RunResult]) -> list[Row]:
        found = [*our_rows(results, took), *rival_rows(results), *measure_rows(results)]
        return [row for row in found if row.n] if report.only else found

    def partly(results: Sequence[RunResult]) -> None:
        if report.partial is not None:
            report.partial(rows(results))

    results = run_all(QUICK if quick else FULL, seed, report, partly)
    base = [r for r in results if r.condition == BASE.name]
    report.pictures["error_against_frames"] = error_against_frames(base, OURS)
    return rows(results)


def _check(only: Sequence[str]) -> None:
    names = [condition.name for condition in CONDITIONS]
    for part in only:
        if part not in _KINDS and not any(part.lower() in name.lower() for name in names):
            raise BadSettings("", "bench focus --only", repr(part), ", ".join([*_KINDS, *names]))


# --- runs -----------------------------------------------------------------------------------


@cache
def _methods() -> dict[str, FocusMethod]:
    """Every method, by name; one set a process."""
    found: list[FocusMethod] = [*rivals(), *measure_table()]
    table: dict[str, FocusMethod] = {method.name: method for method in found}
    table[OURS] = FewFrames(eye(threads=1), label=OURS, traces=False)
    table[f"{OURS}, traced"] = FewFrames(eye(threads=1), label=OURS)
    return table


def _is_wanted(kind: str, condition: Condition, only: Sequence[str]) -> bool:
    kinds = [part for part in only if part in _KINDS]
    parts = [part.lower() for part in only if part not in _KINDS]
    name = condition.name.lower()
    return (not kinds or kind in kinds) and (not parts or any(part in name for part in parts))


def _todo(run: int, plan: Plan, only: Sequence[str]) -> Iterator[tuple[Condition, str]]:
    """What is asked of one run's object."""

    def is_met(count: int) -> bool:
        return run * count % plan.total < count  # evenly spread over all objects

    for condition in CONDITIONS:
        if _is_wanted(OURS, condition, only) and is_met(plan.of(condition)):
            yield condition, f"{OURS}, traced" if condition is BASE else OURS
        most = plan.rivals if condition is BASE else plan.rivals_elsewhere
        is_wanted = _is_wanted(_RIVALS, condition, only)
        if is_wanted and condition in FOR_RIVALS and is_met(most):
            for method in rivals():
                yield condition, method.name
    if _is_wanted(_MEASURES, BASE, only) and is_met(plan.measures):
        for method in measure_table():
            yield BASE, method.name


def run_job(
    seed: int, runs: Sequence[int], plan: Plan, only: Sequence[str] = ()
) -> list[RunResult]:
    """Some runs, in a worker; objects are drawn once for all that is asked of them."""
    cv2.setNumThreads(1)
    methods = _methods()
    results = []
    for run in runs:
        subjects = {}
        for condition, name in _todo(run, plan, only):
            if condition.kinds not in subjects:
                subjects[condition.kinds] = subject_of(seed, run, condition.kinds)
            subject = subjects[condition.kinds]
            method = methods[name]
            if condition is KNOWN and isinstance(method, FewFrames):
                method = method.taught_by([problem_of(subject, BASE, k) for k in (1, 2)])
            results.append(run_one(problem_of(subject, condition), method, subject))
    return results


def run_all(
    plan: Plan,
    seed: int,
    report: Report | None = None,
    partly: Callable[[Sequence[RunResult]], None] = lambda _: None,
) -> list[RunResult]:
    """All runs, in order, whatever process they ran in; fewer where the report sets a time.

    partly: handed what there is, now and then.
    """
    asked = report or Report()
    jobs = [range(k, min(k + _RUNS_A_JOB, plan.total)) for k in range(0, plan.total, _RUNS_A_JOB)]
    workers = max(1, min(asked.jobs or os.cpu_count() or 1, len(jobs)))
    began_s = told_s = time.perf_counter()
    found: dict[int, list[RunResult]] = {}
    with processes(workers) as pool:
        waiting: dict[Future[list[RunResult]], int] = {
            pool.submit(run_job, seed, job, plan, asked.only): number
            for number, job in enumerate(jobs)
        }
        done = 0
        for future in as_completed(waiting):
            if future.cancelled():
                continue
            number = waiting[future]
            found[number] = future.result()
            done += len(jobs[number])
            if asked.progress is not None:
                asked.progress(f"{done} of {plan.total} objects")
            now_s = time.perf_counter()
            if asked.most_s is not None and now_s - began_s > asked.most_s:
                for other in waiting:
                    other.cancel()
            elif now_s - told_s > _PARTIAL_EVERY_S:
                told_s = now_s
                partly(_from_the_first(found))
    return _from_the_first(found)


def _from_the_first(found: dict[int, list[RunResult]]) -> list[RunResult]:
    """Results of all jobs up to the first one that is missing."""
    results: list[RunResult] = []
    for number in range(len(found)):
        if number not in found:
            break
        results += found[number]
    return results
