"""One focus by the networks, and by the classical sweep where they do not know.

The few-frame focus goes first. It hands over when what it sees is unlike anything its network
knows, and when it gives up; then the sweep, which asks nothing but where a curve has its top, has
its turn from the same start, and the result says why. Where neither sees anything at all in the
frames that were taken, a sweep would only take more of them: an empty field is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from controller.focusing.few_frames import FewFrames, FewFramesResult, FewFramesStep, Lens
from controller.focusing.loop import FocusMotion, FocusResult, Observe, autofocus
from controller.focusing.policy import FocusTask
from inference.api import FocusEstimator, SharpnessMeasure

Method: TypeAlias = Literal["few_frames", "sweep"]


class FocusDrive(Lens, FocusMotion, Protocol):
    """Moves for both; `controller.motion.Motion` is one."""


@dataclass(frozen=True, slots=True)
class Classical:
    """What a sweep measures and how its curve is read."""

    measure: SharpnessMeasure
    estimator: FocusEstimator


@dataclass(frozen=True, slots=True, eq=False)
class EitherResult:
    """How a focus ended, and by which method."""

    is_focused: bool
    method: Method  # the one that ended it
    focus_z_um: float  # where the lens was left
    sigma_um: float  # infinite when nothing was believed
    frames: int  # of both methods together
    reason: str  # why there is no focus, "" when there is
    doubt: str  # why the networks' answer was not taken, "" where it was or none was asked
    samples: tuple[tuple[float, float], ...]  # (z in um, score or sharpness), as exposed
    few: FewFramesResult | None  # None: not asked
    swept: FocusResult | None


async def focus_either(
    task: FocusTask,
    motion: FocusDrive,
    observe: Observe,
    few: FewFrames | None,
    classical: Classical,
    *,
    source: str = "focus",
    thread: Executor | None = None,
    on_step: Callable[[FewFramesStep], None] = lambda _: None,
) -> EitherResult:
    """Focus once from `task.start_z_um`; ends in focus, or back there. few None: by sweep alone.

    Raises what motion or `observe` raise, after the lens was sent back.
    """
    tried: FewFramesResult | None = None
    if few is not None:
        tried = await few.focus(motion, observe, task.start_z_um, None, thread, on_step)
        if tried.is_focused:
            return _of_few(tried, "", "")
        loop = asyncio.get_running_loop()
        steps = tried.steps
        if await loop.run_in_executor(thread, _is_empty, steps, classical.measure):
            reason = f"nothing to focus on, in any of {len(steps)} frames: {tried.reason}"
            return _of_few(tried, reason, "")
    swept = await autofocus(
        task, motion, observe, classical.measure, classical.estimator, source=source
    )
    before = () if tried is None else _scores(tried)
    return EitherResult(
        is_focused=swept.is_focused,
        method="sweep",
        focus_z_um=swept.focus_z_um,
        sigma_um=float("inf") if swept.estimate is None else swept.estimate.sigma_um,
        frames=swept.frames + len(before),
        reason=swept.reason,
        doubt="" if tried is None else tried.reason,
        samples=tuple((r.focus_z_um, r.sharpness.value) for r in swept.records),
        few=tried,
        swept=swept,
    )


def _of_few(tried: FewFramesResult, reason: str, doubt: str) -> EitherResult:
    return EitherResult(
        is_focused=tried.is_focused,
        method="few_frames",
        focus_z_um=tried.focus_z_um,
        sigma_um=tried.sigma_um,
        frames=len(tried.steps),
        reason=reason,
        doubt=doubt,
        samples=_scores(tried),
        few=tried,
        swept=None,
    )


def _scores(tried: FewFramesResult) -> tuple[tuple[float, float], ...]:
    return tuple((step.focus_z_um, step.view.score) for step in tried.steps)


def _is_empty(steps: tuple[FewFramesStep, ...], measure: SharpnessMeasure) -> bool:
    """Whether no frame shows anything to either: not to AENet, not to the classical measure."""
    if any(step.view.in_distribution for step in steps[-2:]):
        return False
    return not any(measure.measure(step.frame.pixels).in_distribution for step in steps)
