"""Every method of the comparison, with the settings that served it best.

Measure, smoothing, spacing and tolerance of each rival were chosen by `tuning` on development
specimens (other seeds than any bench's), at 200 and at 20 electrons a pixel together; see there.
What a published method fixes in its text stays as published: numbers of planes, ratios of passes,
stopping rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from controller.bench.focus_baselines.searches import Found, Look, SearchAround
from controller.focusing.policy import (
    Done,
    FocusSweepSettings,
    FocusTask,
    GiveUp,
    MeasureAt,
    MoveTo,
    begin,
    moved,
    next_step,
    observed,
)
from inference.api import FocusSample
from inference.focus.acnet import ACNet, Limits
from inference.focus.aenet import AENet
from inference.focus.api import Done as NetDone
from inference.focus.api import FocusView, Measure
from inference.focus.api import GiveUp as NetGiveUp
from inference.focus.evaluate import FocusOutcome, FocusProblem
from inference.focus.gradient import GradientSharpness
from inference.focus.metrics import Image, Metric, Normaliser, Preparation
from inference.focus.parabola import InverseParabola
from inference.focus.posterior import Prior, believe

SharpnessOf = Callable[[Image], float]

_FINE_HALF_DOF = 8.0  # searched in the fine field, once the wide one has said where


@dataclass(frozen=True, slots=True)
class SearchMethod:
    """A search through the curve of one measure; a `FocusMethod`."""

    label: str
    measure: SharpnessOf
    search: SearchAround

    @property
    def name(self) -> str:
        """For tables."""
        return self.label

    def run(self, problem: FocusProblem) -> FocusOutcome:
        """Search; where the field can be widened, there first, with all lengths scaled."""
        start = problem.start
        trace: list[float] = []
        centre, half = start.z_dof, problem.half_range_dof
        if problem.widest_ratio > 1.0:
            found = self._stage(problem, centre, half, problem.widest_ratio, trace)
            centre, half = found.z_dof, _FINE_HALF_DOF
        found = self._stage(problem, centre, half, 1.0, trace)
        if trace:
            trace[-1] = found.z_dof
        end = replace(start, z_dof=found.z_dof) if found.is_confident else start
        return FocusOutcome(end, found.is_confident, found.reason, trace_z_dof=tuple(trace))

    def _stage(
        self,
        problem: FocusProblem,
        centre_dof: float,
        half_dof: float,
        ratio: float,
        trace: list[float],
    ) -> Found:
        start = problem.start
        seen: list[tuple[float, float]] = []
        search = self.search(centre_dof / ratio, half_dof / ratio)
        try:
            step = next(search)
            while True:
                command = replace(start, z_dof=step.z_dof * ratio, field_ratio=ratio)
                if isinstance(step, Look):
                    found = problem.observe(command)
                    value = self.measure(found.pixels)
                    seen.append((value, found.command.z_dof))
                    trace.append(max(seen)[1])
                    step = search.send(value)
                else:
                    problem.move(command)
                    step = search.send(0.0)
        except StopIteration as stop:
            end: Found = stop.value
            return replace(end, z_dof=end.z_dof * ratio)


@dataclass(frozen=True, slots=True)
class ClassicalSweep:
    """Our fallback: the sweep of `controller.focusing.policy`, its measure and its estimator."""

    label: str = "ours, classical fallback"

    @property
    def name(self) -> str:
        """For tables."""
        return self.label

    def run(self, problem: FocusProblem) -> FocusOutcome:
        """Sweep, refine, verify; 1 DOF is 1 um to the policy."""
        measure, estimator = GradientSharpness(), InverseParabola()
        start, reach = problem.start, problem.half_range_dof
        task = FocusTask(
            start_z_um=start.z_dof,
            expected_z_um=start.z_dof,
            sigma_um=reach / 3.0,
            depth_of_field_um=1.0,
            min_z_um=start.z_dof - 1.3 * reach - 10.0,
            max_z_um=start.z_dof + 1.3 * reach + 10.0,
            settings=FocusSweepSettings(
                most_half_range_dof=reach,
                coarse_step_dof=max(1.0, min(2.5, reach / 10.0)),
                max_frames=200,
                approach_um=0.0,
            ),
        )
        search, trace = begin(task), list[float]()
        best = (-1.0, start.z_dof)
        while True:
            search, step = next_step(search, estimator)
            match step:
                case MoveTo(z_um):
                    problem.move(replace(start, z_dof=z_um))
                    search = moved(search, z_um)
                case MeasureAt(z_um):
                    seen = problem.observe(replace(start, z_dof=z_um))
                    sharpness = measure.measure(_counts(seen.pixels))
                    best = max(best, (sharpness.value, seen.command.z_dof))
                    trace.append(best[1])
                    sample = FocusSample(seen.command.z_dof, sharpness)
                    search = observed(search, sample)
                case Done(estimate):
                    trace[-1] = estimate.focus_z_um
                    end = replace(start, z_dof=estimate.focus_z_um)
                    sigma = estimate.sigma_um
                    return FocusOutcome(end, True, "", sigma, tuple(trace))
                case GiveUp(reason, restore_z_um):
                    end = replace(start, z_dof=restore_z_um)
                    return FocusOutcome(end, False, reason, trace_z_dof=tuple(trace))


def _counts(pixels: Image) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    if pixels.dtype == np.uint8:
        return pixels.view(np.uint8)
    return np.clip(pixels, 0.0, 65_535.0).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class FewFrames:
    """Ours: AENet looks, ACNet decides; a `FocusMethod`."""

    eye: AENet
    limits: Limits = field(default_factory=Limits)
    prior: Prior = field(default_factory=Prior)
    label: str = "ours"
    traces: bool = True  # what is believed after each frame; costs time, which is not the method's

    @property
    def name(self) -> str:
        """For tables."""
        return self.label

    def run(self, problem: FocusProblem) -> FocusOutcome:
        """Measure where told until done, or until told to give up."""
        stig_dof = problem.stig_range_dof
        prior = replace(
            self.prior,
            range_dof=1.1 * problem.half_range_dof,
            astigmatism_dof=stig_dof,
            blur_px_per_dof=problem.blur_px_per_dof,
        )
        limits = replace(
            self.limits, has_stigmator=problem.has_stigmator, wide_ratio=problem.widest_ratio
        )
        net = ACNet(limits, prior)
        views: list[FocusView] = []
        step: Measure | NetDone | NetGiveUp = Measure(problem.start, "start")
        while isinstance(step, Measure):
            seen = problem.observe(step.command)
            views.append(self.eye.look(seen.pixels, seen.command, seen.command.field_ratio))
            step = net.next_step(views)
        trace: tuple[float, ...] = ()
        if self.traces:
            trace = self._trace(views, prior)
        belief = step.belief
        sigma = None if belief is None else belief.sigma_dof
        if isinstance(step, NetDone):
            return FocusOutcome(step.command, True, "", sigma, trace)
        return FocusOutcome(step.command, False, step.reason, sigma, trace)

    def _trace(self, views: Sequence[FocusView], prior: Prior) -> tuple[float, ...]:
        return tuple(
            believe(views[: k + 1], prior).z_dof if k else views[0].command.z_dof
            for k in range(len(views))
        )


def sharpness(
    name: str, smooth_px: float = 0.0, normaliser: Normaliser = Normaliser.MEAN
) -> Metric:
    """A measure, prepared."""
    return Metric(name, Preparation(smooth_px=smooth_px, normaliser=normaliser))
