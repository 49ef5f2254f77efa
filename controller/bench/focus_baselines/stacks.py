"""Everybody on a real through-focus stack: the rows of `scopeloop evaluate focus`.

Ours first, under each kind of brightness; then every rival on the frames as they are. On a stack
nobody could tune beforehand, so each search is run with its own measure and with two that are known
to be robust, and the best of the three is reported; the score of the score loop is fitted to the
very stack. The rivals are helped, not hindered.

Beyond its ends a stack has no planes, and a search that asks for one is given the last. Where focus
is the stack's own end it cannot be bracketed, and its rows bear no bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from controller.bench.focus_baselines.methods import (
    FewFrames,
    SearchMethod,
    SharpnessOf,
    eye,
    rivals,
    sharpness,
)
from controller.bench.focus_baselines.score_loop import ScoreLoop
from controller.figures import Row
from inference.focus.aenet import AENet
from inference.focus.api import FocusCommand
from inference.focus.evaluate import (
    AS_IT_IS,
    LEVELS,
    FocusMethod,
    Image,
    Plane,
    Progress,
    StackBars,
    StackRun,
    rank_rows,
    run_on_stack,
    summary_rows,
)
from inference.focus.likelihood import Prior
from inference.focus.metrics import METRICS

_ROBUST: Final = (sharpness("gradient-energy"), sharpness("tenengrad", 1.0))
_BLUR_LOG_SD: Final = 0.5  # of the blur a step: nobody measured it


def stack_rows(
    planes: Sequence[Plane],
    *,
    truth: float = 0.0,
    dof_steps: float = 1.0,
    seed: int = 1,
    bars: StackBars | None = None,
    with_rivals: bool = True,
    progress: Progress | None = None,
) -> list[Row]:
    """Replay each group of the stack; rank single frames where there are several groups."""
    bars = bars or StackBars()
    groups = sorted({plane.group for plane in planes})
    stacks = [[plane for plane in planes if plane.group == group] for group in groups]
    ours = FewFrames(eye(), prior=Prior(blur_log_sd=_BLUR_LOG_SD), label="ours", traces=False)
    others = rivals() if with_rivals else ()
    total, done = len(LEVELS) + len(others), 0

    def ran(method: FocusMethod, levels_index: int) -> list[StackRun]:
        found: list[StackRun] = []
        for stack in stacks:
            found += run_on_stack(
                stack, method, LEVELS[levels_index], truth=truth, dof_steps=dof_steps, seed=seed
            )
        return found

    def advanced() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    rows: list[Row] = []
    is_inside = min(p.position for p in planes) < truth < max(p.position for p in planes)
    for k, levels in enumerate(LEVELS):
        runs = ran(ours, k)
        found = summary_rows(runs, bars, "" if levels is AS_IT_IS else f"{levels.name}: ")
        if not is_inside:
            found = [replace(row, bar=None, note="focus is the stack's end") for row in found]
        rows += found
        if levels is AS_IT_IS:
            rows.append(_time_row(runs))
        advanced()
    if len(groups) > 1 or len({plane.position for plane in planes}) < len(planes):
        ranked = rank_rows(planes, _single_frame(ours.eye))
        rows += [r if r.name.startswith("ours") else replace(r, bar=None) for r in ranked]
    for method in others:
        named = [(how, ran(each, 0)) for how, each in _variants(method, planes, truth)]
        how, best = max(named, key=lambda item: _rank(item[1], bars.tolerance_steps))
        kept = summary_rows(best, bars, f"{method.name}: ")[:5]
        rows += [replace(row, bar=None, note=how if k == 0 else "") for k, row in enumerate(kept)]
        advanced()
    return rows


def _variants(
    method: FocusMethod, planes: Sequence[Plane], truth: float
) -> list[tuple[str, FocusMethod]]:
    if isinstance(method, ScoreLoop):
        return [("score fitted to this stack", _fitted(method, planes, truth))]
    if not isinstance(method, SearchMethod):
        return [("", method)]
    measures: list[SharpnessOf] = [method.measure, *_ROBUST]
    return [
        (f"with {getattr(each, 'label', 'its own')}", replace(method, measure=each))
        for each in measures
    ]


def _fitted(method: ScoreLoop, planes: Sequence[Plane], truth: float) -> ScoreLoop:
    values = [max(method.metric(plane.pixels), 1e-9) for plane in planes]
    sharp = min(range(len(planes)), key=lambda k: abs(planes[k].position - truth))
    least = min(values)
    if values[sharp] <= least:
        return method
    log_sharp, log_blurred = math.log(values[sharp]), math.log(least)
    reach = max(abs(plane.position - truth) for plane in planes)
    # A little above what is there, so that the climb does not stop at the first good score.
    margin = 0.1 * (log_sharp - log_blurred)
    return replace(
        method,
        log_sharp=log_sharp + margin,
        log_blurred=log_blurred - margin,
        far_dof=reach,
        half_dof=2.0,  # so that a step to what is unseen is a whole plane
        most_step_dof=min(method.most_step_dof, 0.5 * reach),
    )


def _rank(runs: Sequence[StackRun], tolerance_steps: float) -> tuple[float, float]:
    errors = np.array([abs(run.error_steps) for run in runs])
    return float(np.mean(errors <= tolerance_steps)), -float(np.median(errors))


def _single_frame(looker: AENet) -> Mapping[str, Callable[[Image], float]]:
    """|defocus| of one frame: ours, and minus the sharpness of every measure."""

    def ours(pixels: Image) -> float:
        return looker.look(pixels, FocusCommand(0.0)).defocus_dof

    def blunt(pixels: Image, name: str) -> float:
        return -METRICS[name](pixels)

    return {"ours": ours, **{name: partial(blunt, name=name) for name in METRICS}}


def _time_row(runs: Sequence[StackRun]) -> Row:
    took_ms = np.array([run.wall_s / max(run.frames, 1) * 1e3 for run in runs])
    return Row(
        "ms_per_frame",
        float(np.median(took_ms)),
        "ms",
        better="lower",
        n=len(runs),
        note="the method's own time",
    )
