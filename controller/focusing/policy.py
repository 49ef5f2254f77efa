"""One-shot autofocus by sweeps, as a pure state machine: samples in, the next step out.

Always downwards. Every position that counts is reached with the lens coming down from above, after
a retraction of `approach_um`: backlash is then the same for every sample and for the final
position. Down is also the safe side to sweep from: the sweep starts where the lens is furthest
from the sample and ends as soon as the peak has been passed, so the lens comes no closer to the
chip than focus asks for. An upward sweep would begin at the closest point, knowing nothing.

Coarse, then fine. A coarse sweep over what the focus surface leaves open, prolonged on the side
where the peak lies on its edge; then a fine sweep through the peak; then one frame at the
estimate, which must look as good as the sweep promised and no worse than the frame at the start
(autofocus that ends worse than it began is the most common complaint about autofocus). When the
estimator abstains, the answer is `GiveUp` with the place to go back to.

`next_step` is a function of the task and of everything seen so far: no hidden state, so a replay
takes the same steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from inference.api import FocusEstimate, FocusEstimator, FocusSample


class FocusSweepSettings(BaseModel):
    """How an autofocus searches; lengths in depths of field (DOF), so one set serves all lenses."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    coarse_step_dof: float = Field(1.0, gt=0, le=20)
    fine_step_dof: float = Field(0.5, gt=0, le=5)
    fine_samples: int = Field(7, ge=5, le=31)
    least_half_range_dof: float = Field(2.5, ge=1, le=50)
    most_half_range_dof: float = Field(25.0, ge=1, le=500)
    """The sweep is never prolonged further than this from the expected focus."""
    range_sigmas: float = Field(3.0, ge=1, le=10)
    """The first sweep covers this many sigmas of the expectation, within the two bounds above."""
    max_frames: int = Field(60, ge=6, le=1_000)
    approach_um: float = Field(5.0, ge=0, le=500)
    """Retraction before a descent; at least the axis' backlash."""
    enough_sigma_dof: float = Field(0.12, gt=0, le=2)
    """A coarse estimate this sure needs no fine sweep."""
    passed_ratio: float = Field(0.5, gt=0, lt=1)
    """The peak is passed when two samples below it are under this share of its height."""
    least_verify_ratio: float = Field(0.8, gt=0, le=1)
    """Sharpness of the final frame over the best of its sweep."""
    least_start_ratio: float = Field(0.95, gt=0, le=1)
    """Sharpness of the final frame over the frame at the start."""


@dataclass(frozen=True, slots=True)
class FocusTask:
    """What one autofocus is asked: where it starts, where focus is expected, where it may go."""

    start_z_um: float
    expected_z_um: float
    sigma_um: float  # one standard deviation of the expectation
    depth_of_field_um: float
    min_z_um: float  # both included; the safety supervisor refuses beyond them in any case
    max_z_um: float
    settings: FocusSweepSettings

    def __post_init__(self) -> None:
        numbers = (
            self.start_z_um,
            self.expected_z_um,
            self.sigma_um,
            self.depth_of_field_um,
            self.min_z_um,
            self.max_z_um,
        )
        if not all(math.isfinite(number) for number in numbers):
            message = f"every number of a focus task must be finite, got {self}"
            raise ValueError(message)
        if self.depth_of_field_um <= 0 or self.sigma_um < 0 or self.min_z_um >= self.max_z_um:
            message = (
                f"a focus task needs depth_of_field_um > 0, sigma_um >= 0, min_z_um < max_z_um; "
                f"got {self.depth_of_field_um}, {self.sigma_um}, {self.min_z_um}, {self.max_z_um}"
            )
            raise ValueError(message)


_MORE_STEPS = 4  # a sweep is prolonged by so many coarse steps at a time
_CLEAR_DROP_RATIO = 0.1  # a side is closed when the curve fell by this share of its peak


class Side(Enum):
    """A side of the peak."""

    ABOVE = "above"
    BELOW = "below"


class Phase(Enum):
    """Which part of the search a step belongs to."""

    START = "start"
    COARSE = "coarse"
    FINE = "fine"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class MoveTo:
    """Go there; no frame is wanted."""

    z_um: float


@dataclass(frozen=True, slots=True)
class MeasureAt:
    """Go there and measure one frame exposed after the move has settled."""

    z_um: float


@dataclass(frozen=True, slots=True)
class Done:
    """The lens stands at focus, reached from above, and the frame there proves it."""

    estimate: FocusEstimate


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No trustworthy focus: go back."""

    reason: str
    restore_z_um: float


FocusStep: TypeAlias = MoveTo | MeasureAt | Done | GiveUp


@dataclass(frozen=True, slots=True)
class FocusSearch:
    """The state: what is going on, what was seen. Start with `begin`, go on with `next_step`."""

    task: FocusTask
    phase: Phase
    lens_z_um: float  # where the last step left the lens
    pending_z_um: tuple[float, ...]  # still to be measured in this phase, descending
    start: FocusSample | None  # None until the frame at the start was measured
    sweep: tuple[FocusSample, ...]  # all samples that were reached from above
    fine: tuple[FocusSample, ...]  # those of the fine sweep in hand
    estimate: FocusEstimate | None  # None until the estimator was confident
    frames: int
    fine_sweeps: int


def begin(task: FocusTask) -> FocusSearch:
    """Start: the first step is to measure where the lens stands."""
    return FocusSearch(
        task=task,
        phase=Phase.START,
        lens_z_um=task.start_z_um,
        pending_z_um=(task.start_z_um,),
        start=None,
        sweep=(),
        fine=(),
        estimate=None,
        frames=0,
        fine_sweeps=0,
    )


def next_step(search: FocusSearch, estimator: FocusEstimator) -> tuple[FocusSearch, FocusStep]:
    """Decide; call `observed` after a MeasureAt was carried out, `moved` after a MoveTo."""
    while not search.pending_z_um:
        conclusion = _conclude_phase(search, estimator)
        if not isinstance(conclusion, FocusSearch):
            return search, conclusion
        search = conclusion
    target_um = search.pending_z_um[0]
    if search.frames >= search.task.settings.max_frames:
        reason = f"no focus within {search.frames} frames, the most that settings allow"
        return search, GiveUp(reason, search.task.start_z_um)
    above_um = min(target_um + search.task.settings.approach_um, search.task.max_z_um)
    if search.phase is not Phase.START and target_um >= search.lens_z_um and above_um > target_um:
        return search, MoveTo(above_um)
    return search, MeasureAt(target_um)


def moved(search: FocusSearch, z_um: float) -> FocusSearch:
    """Take note that a MoveTo was carried out."""
    return replace(search, lens_z_um=z_um)


def observed(search: FocusSearch, sample: FocusSample) -> FocusSearch:
    """Take note of the frame that a MeasureAt asked for."""
    target_um = search.pending_z_um[0]
    search = replace(
        search,
        lens_z_um=target_um,
        pending_z_um=search.pending_z_um[1:],
        frames=search.frames + 1,
    )
    if search.phase is Phase.START:
        return replace(search, start=sample)
    if search.phase is Phase.VERIFY:
        return replace(search, fine=(*search.fine, sample))
    search = replace(search, sweep=(*search.sweep, sample))
    if search.phase is Phase.FINE:
        return replace(search, fine=(*search.fine, sample))
    if _is_passed(search):
        return replace(search, pending_z_um=())
    return search


def _conclude_phase(search: FocusSearch, estimator: FocusEstimator) -> FocusSearch | FocusStep:
    match search.phase:
        case Phase.START:
            return _begin_coarse(search)
        case Phase.COARSE:
            return _conclude_coarse(search, estimator)
        case Phase.FINE:
            return _conclude_fine(search, estimator)
        case Phase.VERIFY:
            return _conclude_verify(search)


def _begin_coarse(search: FocusSearch) -> FocusSearch | FocusStep:
    task, settings = search.task, search.task.settings
    dof_um = task.depth_of_field_um
    half_um = min(
        max(settings.range_sigmas * task.sigma_um, settings.least_half_range_dof * dof_um),
        settings.most_half_range_dof * dof_um,
    )
    highest_um = min(task.expected_z_um + half_um, task.max_z_um)
    lowest_um = max(task.expected_z_um - half_um, task.min_z_um)
    pending = _descent(highest_um, lowest_um, settings.coarse_step_dof * dof_um)
    if len(pending) < 3:
        reason = (
            f"focus is expected at {task.expected_z_um:.2f} um, outside what may be swept, "
            f"{task.min_z_um:.2f} to {task.max_z_um:.2f} um"
        )
        return GiveUp(reason, task.start_z_um)
    return replace(search, phase=Phase.COARSE, pending_z_um=pending)


def _conclude_coarse(search: FocusSearch, estimator: FocusEstimator) -> FocusSearch | FocusStep:
    task, settings = search.task, search.task.settings
    usable = [sample for sample in search.sweep if sample.sharpness.in_distribution]
    if not usable:
        seen = search.sweep[-1].sharpness.reason if search.sweep else "nothing was measured"
        return GiveUp(f"nothing to focus on: {seen}", task.start_z_um)
    more = _prolonged(search)
    if more:
        return replace(search, pending_z_um=more)
    estimate = estimator.estimate(search.sweep, task.depth_of_field_um)
    if not estimate.is_confident:
        # A bracketed peak may just be too narrow for the coarse step; an edge is not bracketed.
        if _open_side(search.sweep) is not None:
            return GiveUp(estimate.reason, task.start_z_um)
        return _begin_fine(search, estimate.focus_z_um)
    if estimate.sigma_um <= settings.enough_sigma_dof * task.depth_of_field_um:
        return _begin_verify(search, estimate)
    return _begin_fine(search, estimate.focus_z_um)


def _prolonged(search: FocusSearch) -> tuple[float, ...]:
    """Where to go on when the peak lies at an edge of the sweep; () when that is not needed."""
    task, settings = search.task, search.task.settings
    step_um = settings.coarse_step_dof * task.depth_of_field_um
    reach_um = settings.most_half_range_dof * task.depth_of_field_um
    heights_um = [sample.focus_z_um for sample in search.sweep]
    match _open_side(search.sweep):
        case Side.BELOW:
            floor_um = max(task.min_z_um, task.expected_z_um - reach_um)
            lowest_um = min(heights_um)
            return _descent(
                lowest_um - step_um, max(floor_um, lowest_um - _MORE_STEPS * step_um), step_um
            )
        case Side.ABOVE:
            ceiling_um = min(task.max_z_um, task.expected_z_um + reach_um)
            steps = int((ceiling_um - max(heights_um)) / step_um + 1e-9)
            highest_um = max(heights_um) + min(_MORE_STEPS, steps) * step_um
            return _descent(min(highest_um, ceiling_um), max(heights_um) + 0.5 * step_um, step_um)
        case None:
            return ()


def _open_side(sweep: tuple[FocusSample, ...]) -> Side | None:
    """The side on which the curve has not come down from its peak; None: both are closed."""
    usable = [sample for sample in sweep if sample.sharpness.in_distribution]
    if not usable:
        return None
    peak = max(usable, key=lambda sample: sample.sharpness.value)
    limit = peak.sharpness.value * (1.0 - _CLEAR_DROP_RATIO)
    below = [s for s in sweep if s.focus_z_um < peak.focus_z_um and s.sharpness.value < limit]
    above = [s for s in sweep if s.focus_z_um > peak.focus_z_um and s.sharpness.value < limit]
    if below and above:
        return None
    if not below and not above:
        # Flat: the nearer edge, and downwards last.
        middle_um = 0.5 * (min(s.focus_z_um for s in sweep) + max(s.focus_z_um for s in sweep))
        return Side.ABOVE if peak.focus_z_um >= middle_um else Side.BELOW
    return Side.BELOW if above else Side.ABOVE


def _begin_fine(search: FocusSearch, centre_um: float) -> FocusSearch:
    task, settings = search.task, search.task.settings
    step_um = settings.fine_step_dof * task.depth_of_field_um
    half_um = 0.5 * (settings.fine_samples - 1) * step_um
    pending = _descent(
        min(centre_um + half_um, task.max_z_um), max(centre_um - half_um, task.min_z_um), step_um
    )
    return replace(
        search,
        phase=Phase.FINE,
        pending_z_um=pending,
        fine=(),
        fine_sweeps=search.fine_sweeps + 1,
    )


def _conclude_fine(search: FocusSearch, estimator: FocusEstimator) -> FocusSearch | FocusStep:
    # All descents together: the coarse tails fix the floor under the peak.
    estimate = estimator.estimate(search.sweep, search.task.depth_of_field_um)
    if not estimate.is_confident:
        return GiveUp(estimate.reason, search.task.start_z_um)
    return _begin_verify(search, estimate)


def _begin_verify(search: FocusSearch, estimate: FocusEstimate) -> FocusSearch | FocusStep:
    task = search.task
    if not task.min_z_um <= estimate.focus_z_um <= task.max_z_um:
        reason = f"focus is believed at {estimate.focus_z_um:.2f} um, outside the limits"
        return GiveUp(reason, task.start_z_um)
    return replace(
        search,
        phase=Phase.VERIFY,
        pending_z_um=(estimate.focus_z_um,),
        fine=(),
        estimate=estimate,
    )


def _conclude_verify(search: FocusSearch) -> FocusSearch | FocusStep:
    task, settings = search.task, search.task.settings
    if search.estimate is None or search.start is None:
        return GiveUp("verified before anything was estimated", task.start_z_um)
    final = search.fine[-1].sharpness
    best = max(sample.sharpness.value for sample in search.sweep)
    start = search.start.sharpness
    if not final.in_distribution:
        return GiveUp(f"the frame at the estimate is unusable: {final.reason}", task.start_z_um)
    if final.value < settings.least_verify_ratio * best:
        if search.fine_sweeps < 2:
            return _begin_fine(search, search.estimate.focus_z_um)
        reason = (
            f"the frame at the estimate has {final.value / best:.2f} of the sweep's best sharpness"
        )
        return GiveUp(reason, task.start_z_um)
    if start.in_distribution and final.value < settings.least_start_ratio * start.value:
        reason = f"the result is less sharp than the start, {final.value / start.value:.2f} of it"
        return GiveUp(reason, task.start_z_um)
    return Done(search.estimate)


def _descent(highest_um: float, lowest_um: float, step_um: float) -> tuple[float, ...]:
    """Positions from `highest_um` downwards, spaced by `step_um`, none below `lowest_um`."""
    if highest_um < lowest_um:
        return ()
    count = int((highest_um - lowest_um) / step_um + 1e-9) + 1
    return tuple(max(highest_um - i * step_um, lowest_um) for i in range(count))


def _is_passed(search: FocusSearch) -> bool:
    """Say whether the descent left a peak behind: two samples in a row far below the best one.

    Height counts from the lowest sample seen, because noise alone gives every frame some sharpness.
    """
    values = [sample.sharpness.value for sample in search.sweep]
    if len(values) < 5:
        return False
    best = max(range(len(values)), key=values.__getitem__)
    if not search.sweep[best].sharpness.in_distribution or not 0 < best <= len(values) - 3:
        return False
    floor = min(values)
    if values[best] < 1.5 * floor:
        return False
    limit = floor + search.task.settings.passed_ratio * (values[best] - floor)
    return max(values[-2:]) < limit
