"""What earlier focuses on the same lens taught about its blur, for the next one to begin with.

The blur's scale is known to a fifth from a lens's data, and its shape not at all; every focus that
was verified says both for the lens as it is. The next one then needs a frame less, and a scale that
no longer fits is noticed sooner. Objects differ in what they say, so something is always left open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from inference.focus.api import FocusBelief
from inference.focus.likelihood import Prior

_LEFT_LOG_SD = 0.08  # of the scale, however many runs there were
_MOST_RUNS = 12
_LEAST_RUNS = 2  # one run alone may have been an odd one
_MOST_MISFIT = 3.0  # a run that fitted worse teaches nothing
_LEFT_OPEN = 0.3  # of the shape


@dataclass(frozen=True, slots=True)
class KnownBlur:
    """Immutable; the latest runs on one lens."""

    log_ratios: tuple[float, ...] = ()  # of the blur's scale over the nominal one
    shapes: tuple[tuple[float, ...], ...] = ()

    def with_belief(self, belief: FocusBelief, nominal: float) -> KnownBlur:
        """After one more verified focus; nominal: blur_px_per_dof from the lens's data."""
        if belief.misfit > _MOST_MISFIT or not belief.scale > 0.0:
            return self
        return KnownBlur(
            (*self.log_ratios, math.log(belief.scale / nominal))[-_MOST_RUNS:],
            (*self.shapes, belief.shape_probabilities)[-_MOST_RUNS:],
        )

    def carried_into(self, prior: Prior) -> Prior:
        """The nominal prior, with what is known."""
        runs = len(self.log_ratios)
        if runs < _LEAST_RUNS:
            return prior
        ratio = math.exp(float(np.median(self.log_ratios)))
        shape = np.mean(self.shapes, axis=0)
        shape = (1.0 - _LEFT_OPEN) * shape + _LEFT_OPEN / len(shape)
        return replace(
            prior,
            blur_px_per_dof=prior.blur_px_per_dof * ratio,
            blur_log_sd=math.hypot(_LEFT_LOG_SD, prior.blur_log_sd / (1.0 + runs)),
            shape_probabilities=tuple(float(p) for p in shape),
        )
