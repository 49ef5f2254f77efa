"""Whether taking the noise off helps what comes after: focus at low dose, detection of flakes.

Focus: the simulated column at 20 and at 5 electrons a pixel, the harness and the methods of
`bench focus`; every frame is shown to the method raw, and restored. Detection: simulated
photographs of graphene on 90 nm of oxide, counted anew at so many electrons in a pixel at full
scale; colours fitted on what is looked at. Each condition meets the same noise with and without.

`[restore] before_focus` and `before_detection` stay off unless these rows say that they help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np

from controller import app
from controller.bench import Report
from controller.bench.flakes_baselines.methods import Ours, leading
from controller.bench.flakes_baselines.photographs import Photograph, Scene, simulated
from controller.bench.focus_baselines.conditions import LOW, LOWEST
from controller.bench.focus_baselines.methods import ClassicalSweep, FewFrames, eye
from controller.bench.focus_baselines.problem import (
    RunResult,
    problem_of,
    run_one,
    subject_of,
)
from controller.bench.numbers import share_row
from controller.figures import Row
from controller.restoring.before import restored
from controller.restoring.frames import RestorerChoice
from inference.flakes.evaluate import image_result
from inference.flakes.scoring import Scores, score_overlaps
from inference.focus.api import FocusCommand
from inference.focus.evaluate import FocusMethod, FocusOutcome, FocusProblem, Observation

_IN_FOCUS_DOF: Final = 0.5
_FULL_SCALE_E: Final = (2_000.0, 200.0)  # electrons in a pixel at 255; a photograph has some 10,000
_SHAPE_PX: Final = (600, 960)
_CONDITIONS: Final = (LOW, LOWEST)


def measure(quick: bool, seed: int) -> list[Row]:
    """Run everything; see the module."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """Run it part by part: focus, detection."""
    parts: dict[str, Callable[[], list[Row]]] = {
        "focus": lambda: focus_rows(2 if quick else 8, seed, choices()),
        "detection": lambda: detection_rows(1 if quick else 3, seed, choices()),
    }
    rows: list[Row] = []
    for name, part in parts.items():
        if report.only and name not in report.only:
            continue
        if report.progress is not None:
            report.progress(name)
        rows += part()
        if report.partial is not None:
            report.partial(rows)
    return rows


def choices() -> tuple[RestorerChoice, ...]:
    """The quickest filter, and what a user gets who names none."""
    return (
        app.restorer_named("radial_wiener", recursive=False),
        app.restorer_named("auto", recursive=False),
    )


# --- focus -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _After:
    """A way to focus that is shown restored frames; a `FocusMethod`."""

    inner: FocusMethod
    choice: RestorerChoice

    @property
    def name(self) -> str:
        """The inner one's."""
        return self.inner.name

    def run(self, problem: FocusProblem) -> FocusOutcome:
        """As the inner one does."""
        return self.inner.run(cast("FocusProblem", _Shown(problem, self.choice)))


class _Shown:
    """A problem whose frames are restored before they are shown."""

    def __init__(self, problem: FocusProblem, choice: RestorerChoice) -> None:
        self._problem = problem
        self._choice = choice

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the problem has
        return getattr(self._problem, name)

    def observe(self, command: FocusCommand) -> Observation:
        found = self._problem.observe(command)
        return replace(found, pixels=restored(found.pixels, self._choice))


def focus_rows(runs: int, seed: int, restorers: Sequence[RestorerChoice]) -> list[Row]:
    """Share of runs that end in focus, raw and restored."""
    methods: dict[str, FocusMethod] = {
        "few_frames": FewFrames(eye(1), traces=False),
        "sweep": ClassicalSweep(),
    }
    subjects = [subject_of(seed, run, _CONDITIONS[0].kinds) for run in range(runs)]
    rows = []
    for condition in _CONDITIONS:
        dose = f"{condition.dose_e_per_px:g}_e_per_px"
        for label, method in methods.items():
            ends = [run_one(problem_of(each, condition), method, each) for each in subjects]
            raw = sum(map(is_in_focus, ends))
            name = f"focus_{label}_{dose}"
            rows.append(share_row(f"{name}_raw", raw, runs, note=_frames(ends)))
            for choice in restorers:
                after = _After(method, choice)
                ends = [run_one(problem_of(each, condition), after, each) for each in subjects]
                hits = sum(map(is_in_focus, ends))
                note = f"{_frames(ends)}; baseline: raw frames"
                row = share_row(f"{name}_{choice.name}", hits, runs, baseline=raw / runs, note=note)
                rows.append(row)
    return rows


def is_in_focus(end: RunResult) -> bool:
    """Whether a run ended within half a depth of field, and said so."""
    return end.is_confident and end.error_dof <= _IN_FOCUS_DOF


def _frames(ends: Sequence[RunResult]) -> str:
    wrong = sum(end.is_confident and end.error_dof > _IN_FOCUS_DOF for end in ends)
    frames = float(np.median([end.frames for end in ends]))
    return f"median of {frames:g} frames; {wrong} sure and wrong"


# --- detection -------------------------------------------------------------------------------


def detection_rows(photographs: int, seed: int, restorers: Sequence[RestorerChoice]) -> list[Row]:
    """Recall and precision of flakes on noisy photographs, raw and restored."""
    clean = [
        simulated(Scene(shape_px=_SHAPE_PX), 1_000 * seed + number) for number in range(photographs)
    ]
    rows = []
    for full_e in _FULL_SCALE_E:
        rng = np.random.default_rng([seed, int(full_e)])
        noisy = [counted_anew(photograph, full_e, rng) for photograph in clean]
        name = f"detection_{full_e:g}_e"
        raw = found_on(noisy)
        rows += _score_rows(f"{name}_raw", raw, None)
        for choice in restorers:
            shown = [replace(one, pixels=restored(one.pixels, choice)) for one in noisy]
            rows += _score_rows(f"{name}_{choice.name}", found_on(shown), raw)
    return rows


def counted_anew(photograph: Photograph, full_e: float, rng: np.random.Generator) -> Photograph:
    """The same with so many electrons in a pixel at full scale."""
    counts = rng.poisson(photograph.pixels * (full_e / 255.0))
    pixels = np.clip(np.rint(counts * (255.0 / full_e)), 0, 255).astype(np.uint8)
    return replace(photograph, pixels=pixels)


def found_on(photographs: Sequence[Photograph]) -> Scores:
    """What the detector in use finds, its colours fitted on these."""
    finder = Ours("in use", leading).taught(photographs)
    overlaps = []
    for one in photographs:
        found = finder(one)
        overlaps.append(image_result(one.name, one.true, found.instances, one.ignored).overlaps)
    return score_overlaps(overlaps)


def _score_rows(name: str, scores: Scores, raw: Scores | None) -> list[Row]:
    note = "baseline: raw frames" if raw is not None else ""
    return [
        Row(
            f"{name}_{figure}",
            getattr(scores, figure),
            baseline=None if raw is None else getattr(raw, figure),
            n=scores.n_true if figure != "precision" else scores.n_predicted,
            note=note,
        )
        for figure in ("recall", "precision", "ap50")
    ]
