"""Every method of the comparison, with the settings that served it best.

Measure, smoothing, spacing and tolerance of each rival were chosen by `tuning` on development
specimens (other seeds than any bench's), at 200 and at 20 electrons a pixel together, with 5 %
flicker; see there. What a published method fixes in its text stays as published: numbers of
planes, ratios of passes, stopping rules. On 12 objects, 96 runs a dose, the choices below had

| search | within 0.5 DOF | median | p95 | frames |
|---|---|---|---|---|
| 21 planes and parabola | 1.00 | 0.05 | 0.15 | 21 |
| two passes of 11, best plane | 0.98 | 0.26 | 0.50 | 22 |
| two passes of 11 and parabola | 1.00 | 0.04 | 0.13 | 22 |
| hill climb, 8 to 2 DOF | 1.00 | 0.07 | 0.23 | 7 |
| golden section, 0.5 DOF | 0.98 | 0.10 | 0.41 | 11 |
| Fibonacci, 0.25 DOF | 0.98 | 0.12 | 0.46 | 11 |
| Brent, 0.25 DOF | 0.97 | 0.13 | 0.44 | 9 |
| sweep of 41 and return | 1.00 | 0.03 | 0.10 | 41 |
| three images, three times | 0.98 | 0.06 | 0.21 | 9 |
| three images once, as published | 0.40 | 0.76 | 5.2 | 3 |
| two-image MAP, three pairs | 0.96 | 0.07 | 0.33 | 6 |
| score loop | 0.86 | 0.20 | 0.63 | 20 |

The parabola goes through the inverse of three values nearly everywhere: a gradient's energy falls
off like 1 / (1 + (z / w)^2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import inference
from controller.bench.focus_baselines import searches
from controller.bench.focus_baselines.score_loop import ScoreLoop
from controller.bench.focus_baselines.searches import Found, Look, PeakFit, SearchAround
from controller.bench.focus_baselines.spectral_pair import SpectralPair
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
from inference.api import FocusSample, NoEngine
from inference.focus.acnet import ACNet, Limits
from inference.focus.aenet import AENet
from inference.focus.api import Done as NetDone
from inference.focus.api import FocusBelief, FocusView, Measure
from inference.focus.api import GiveUp as NetGiveUp
from inference.focus.evaluate import FocusMethod, FocusOutcome, FocusProblem
from inference.focus.gradient import GradientSharpness
from inference.focus.likelihood import Prior
from inference.focus.metrics import NAMES, Image, Metric, Normaliser, Preparation
from inference.focus.parabola import InverseParabola
from inference.focus.posterior import believe
from inference.onnx_engine import OnnxEngine

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
        lowest, highest = problem.limits_dof
        search = self.search(centre_dof / ratio, half_dof / ratio)
        try:
            step = next(search)
            while True:
                z_dof = min(max(step.z_dof * ratio, lowest), highest)
                command = replace(start, z_dof=z_dof, field_ratio=ratio)
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
            min_z_um=max(start.z_dof - 1.3 * reach - 10.0, problem.limits_dof[0]),
            max_z_um=min(start.z_dof + 1.3 * reach + 10.0, problem.limits_dof[1]),
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
    blur_ratio: float = 1.0  # of the instrument's blur over its nominal one, as earlier runs said
    traces: bool = True  # what is believed after each frame; costs time, which is not the method's

    @property
    def name(self) -> str:
        """For tables."""
        return self.label

    def run(self, problem: FocusProblem) -> FocusOutcome:
        """Measure where told until done, or until told to give up."""
        return self._followed(problem)[0]

    def taught_by(self, problems: Sequence[FocusProblem]) -> FewFrames:
        """Carry over what earlier runs on the same instrument said of its blur, one by one."""
        taught = self
        for problem in problems:
            outcome, belief = taught._followed(problem)
            if belief is None or not outcome.is_confident:
                continue
            nominal = problem.blur_px_per_dof
            before = replace(taught.prior, blur_px_per_dof=nominal * taught.blur_ratio)
            prior = before.carried_over(belief)
            taught = replace(taught, prior=prior, blur_ratio=prior.blur_px_per_dof / nominal)
        return taught

    def _followed(self, problem: FocusProblem) -> tuple[FocusOutcome, FocusBelief | None]:
        stig_dof = problem.stig_range_dof
        prior = replace(
            self.prior,
            range_dof=1.1 * problem.half_range_dof,
            astigmatism_dof=stig_dof,
            blur_px_per_dof=problem.blur_px_per_dof * self.blur_ratio,
        )
        lowest, highest = problem.limits_dof
        limits = replace(
            self.limits,
            has_stigmator=problem.has_stigmator,
            wide_ratio=problem.widest_ratio,
            lowest_z_dof=lowest,
            highest_z_dof=highest,
        )
        net = ACNet(limits, prior)
        views: list[FocusView] = []
        step: Measure | NetDone | NetGiveUp = Measure(problem.start, "start")
        while isinstance(step, Measure):
            seen = problem.observe(step.command)
            views.append(self.eye.look(seen.pixels, seen.command, seen.command.field_ratio))
            step = net.next_step(views)
        began_s = time.perf_counter()
        trace = self._trace(views, prior) if self.traces else ()
        aside_s = time.perf_counter() - began_s
        belief = step.belief
        sigma = None if belief is None else belief.sigma_dof
        if isinstance(step, NetDone):
            return FocusOutcome(step.command, True, "", sigma, trace, aside_s), belief
        return FocusOutcome(step.command, False, step.reason, sigma, trace, aside_s), belief

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


def eye(threads: int = 0) -> AENet:
    """AENet with its network, or physics only where that is not to be had; threads 0: most."""
    model = Path(inference.__file__).parent / "weights" / "aenet.onnx"
    if not model.is_file():
        return AENet()
    try:
        return AENet(OnnxEngine(model, threads))
    except NoEngine:
        return AENet()


@cache
def rivals() -> tuple[FocusMethod, ...]:
    """Everybody that the few-frame focus is measured against, our own fallback first."""
    inverse = PeakFit(3, "inverse")
    energy = "vollath-f5"
    return (
        ClassicalSweep(),
        SearchMethod(
            "21 planes + parabola",
            sharpness("vollath-f4", 1.0),
            partial(searches.sweep, fit=inverse),
        ),
        SearchMethod("two-pass 11+11, best plane", sharpness("vollath-f4"), searches.two_pass),
        SearchMethod(
            "two-pass 11+11 + parabola",
            sharpness("laplacian", 1.0),
            partial(searches.two_pass, fit=PeakFit(5, "log")),
        ),
        SearchMethod(
            "hill climb, stop at 0.85",
            sharpness("normalised-variance", 1.0),
            partial(searches.hill_climb, first_step_dof=8.0, last_step_dof=2.0, fit=inverse),
        ),
        SearchMethod(
            "golden section",
            sharpness(energy),
            partial(searches.golden_section, tolerance_dof=0.5),
        ),
        SearchMethod("Fibonacci", sharpness(energy), searches.fibonacci),
        SearchMethod("Brent, as OughtaFocus", sharpness(energy), searches.brent),
        SearchMethod(
            "sweep and return, as OpenFlexure",
            sharpness("laplacian", 2.0),
            partial(searches.sweep_and_return, fit=PeakFit(5, "log")),
        ),
        SearchMethod(
            "three-image quadratic",
            sharpness("vollath-f5", 2.0),
            partial(searches.three_point, spread_ratio=1.0),
        ),
        SearchMethod(
            "three-image quadratic, 3 rounds",
            sharpness("vollath-f4", 2.0),
            partial(searches.three_point, spread_ratio=1.0, rounds=3),
        ),
        SpectralPair(test_dof=4.0, rounds=3, label="two-image spectral MAP, 3 pairs"),
        ScoreLoop(sharpness("jpeg-size", 2.0), log_sharp=-1.15, log_blurred=-3.07),
    )


@cache
def measure_table() -> tuple[FocusMethod, ...]:
    """Every measure, each smoothed as serves it best, under one search."""
    smooth_px = {
        "normalised-variance": 1.0,
        "vollath-f4": 1.0,
        "vollath-f5": 1.0,
        "band-power": 0.0,
        "gradient-energy": 0.0,
    }
    search = partial(searches.sweep, fit=PeakFit(3, "inverse"))
    measures = (sharpness(name, smooth_px.get(name, 2.0)) for name in NAMES)
    return tuple(
        SearchMethod(f"measure {measure.name}, 21 planes", measure, search) for measure in measures
    )
