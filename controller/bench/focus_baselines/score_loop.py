"""The published loop of a score network and a controller network, with a score of our own.

After W. Lee et al., Sci. Rep. 11, 20933 (2021), from a description of its loop: a score of 0 to 9
for each frame; coarse steps in one direction from one end of the range until the score passes 1.8
and four frames are there; then steps by the controller, which has learnt to answer with the
distance to the best place, limited to a largest step, from a memory of twenty frames; stop at a
score of 9, when the best has stood for eight frames, or after twenty; go to the best place in
memory. Nothing is interpolated, and nothing says whether it succeeded.

Two parts are not theirs and stand in for them. The score is a classical sharpness on a logarithmic
scale, fitted once to development specimens as a network of 51 million parameters would be trained
once. The controller answers with what its training was aimed at: the position that explains the
remembered scores best, by least squares on the mean curve of the score, which is no worse than an
imitation of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from inference.focus.api import FocusCommand
from inference.focus.evaluate import FocusOutcome, FocusProblem
from inference.focus.metrics import Metric

_MEMORY = 20
_MOST_CONTROLLED = 20
_PATIENCE = 8
_ENOUGH = 9.0
_SEEN = 1.8


@dataclass(frozen=True, slots=True)
class ScoreLoop:
    """The loop; a `FocusMethod`."""

    metric: Metric
    log_sharp: float  # of the measure in focus, mean over development specimens
    log_blurred: float  # and at `far_dof` off it
    far_dof: float = 25.0
    half_dof: float = 1.0  # off focus at which the score is half-way, for the controller's curve
    most_step_dof: float = 12.0
    coarse_ratio: float = 0.4  # of it
    label: str = "ACNet-style loop, 20 frames"
    memory: int = field(default=_MEMORY)

    @property
    def name(self) -> str:
        """For tables."""
        return self.label

    def run(self, problem: FocusProblem) -> FocusOutcome:
        """Climb from one end, as published; far off in the wide field first."""
        start, reach = problem.start, problem.half_range_dof
        trace: list[float] = []
        z = start.z_dof
        ratios = (problem.widest_ratio, 1.0) if problem.widest_ratio > 1.0 else (1.0,)
        for ratio in ratios:
            z = self._focused(problem, z, reach, ratio, trace)
            reach = 2.0 * ratio
        command = FocusCommand(z, start.stig_x_dof, start.stig_y_dof)
        return FocusOutcome(command, True, trace_z_dof=tuple(trace))

    def _score(self, value: float) -> float:
        if value <= 0.0:
            return 0.0
        share = (math.log(value) - self.log_blurred) / (self.log_sharp - self.log_blurred)
        return 9.0 * min(max(share, 0.0), 1.0)

    def _focused(
        self, problem: FocusProblem, centre: float, reach: float, ratio: float, trace: list[float]
    ) -> float:
        places: list[float] = []
        scores: list[float] = []

        def look(z_dof: float) -> float:
            seen = problem.observe(
                FocusCommand(z_dof, problem.start.stig_x_dof, problem.start.stig_y_dof, ratio)
            )
            places.append(seen.command.z_dof)
            scores.append(self._score(self.metric(seen.pixels)))
            trace.append(
                places[int(np.argmax(scores[-self.memory :])) - min(self.memory, len(scores))]
            )
            return scores[-1]

        low, high = centre - reach, centre + reach
        step = self.coarse_ratio * self.most_step_dof * ratio
        z = low
        while (look(z) <= _SEEN or len(places) < 4) and z + step <= high + 0.5 * step:
            z += step
        best, stood = max(scores), 0
        for _ in range(_MOST_CONTROLLED):
            if scores[-1] >= _ENOUGH or stood >= _PATIENCE:
                break
            wanted = self._explained(
                places[-self.memory :], scores[-self.memory :], low, high, ratio
            )
            wanted = _unvisited(wanted, places, 0.5 * self.half_dof * ratio)
            limit = self.most_step_dof * ratio
            z = places[-1] + float(np.clip(wanted - places[-1], -limit, limit))
            look(z)
            stood = 0 if scores[-1] > best else stood + 1
            best = max(best, scores[-1])
        recent = scores[-self.memory :]
        return places[-self.memory :][int(np.argmax(recent))]

    def _explained(
        self, places: list[float], scores: list[float], low: float, high: float, ratio: float
    ) -> float:
        """Position whose curve, with a height of its own, fits the remembered scores best."""
        grid = np.linspace(low, high, 401)
        off = np.abs(np.array(places)[:, None] - grid[None, :]) / ratio
        far = math.log1p(self.far_dof / self.half_dof)
        curve = np.maximum(1.0 - np.log1p(off / self.half_dof) / far, 0.0)
        score = np.array(scores)[:, None]
        height = np.clip((curve * score).sum(axis=0) / ((curve**2).sum(axis=0) + 1e-9), 4.0, 11.0)
        cost = np.square(score - height * curve).sum(axis=0)
        return float(grid[int(np.argmin(cost))])


def _unvisited(wanted: float, places: list[float], apart: float) -> float:
    """The nearest place that has not been looked at: standing still teaches nothing."""
    tries = (wanted + side * k * apart for k in range(20) for side in (1.0, -1.0))
    free = (z for z in tries if all(abs(z - seen) > 0.5 * apart for seen in places))
    return next(free, wanted)
