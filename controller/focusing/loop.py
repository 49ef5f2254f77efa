"""The running autofocus: carries out what the policy decides, one move and one frame at a time.

It owns no device and no limit. Moves go through whatever `FocusMotion` it is given (and so past
the safety supervisor), frames come from `observe`, which must return one that was exposed after
everything had settled; the loop checks that again, because a stale frame is the commonest way in
which an autofocus finds the place it has just left.

However it ends other than in focus (the policy gives up, the task is cancelled, a move or a frame
fails), the lens goes back to where it started, under a deadline of its own. A cancel is honoured
at once: nothing here waits longer than one move or one frame, and every sample taken until then is
in the result or lost with the task, never half booked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from controller.errors import ControllerError, StaleFrame
from controller.focusing.policy import (
    Done,
    FocusSearch,
    FocusTask,
    GiveUp,
    MeasureAt,
    MoveTo,
    Phase,
    begin,
    moved,
    next_step,
    observed,
)
from drivers.api import Frame
from drivers.errors import DriverError
from inference.api import (
    FocusEstimate,
    FocusEstimator,
    FocusSample,
    Sharpness,
    SharpnessMeasure,
)

_MOST_STALE_FRAMES = 5  # in a row; a camera that has more in its buffer is not being read
_RESTORE_DEADLINE_S = 10.0


class FocusMotion(Protocol):
    """What moves the lens; `controller.motion.Motion` is one."""

    async def move_focus_um(self, z_um: float, source: str) -> None:
        """Return once the focus stands at z; raises ControllerError or DriverError."""


Observe: TypeAlias = Callable[[], Awaitable[Frame]]
"""Expose one frame after everything has settled, and return it."""


@dataclass(frozen=True, slots=True)
class FocusRecord:
    """One sample of an autofocus, for the journal."""

    focus_z_um: float  # what the instrument said in mid exposure
    sharpness: Sharpness
    frame_number: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class FocusResult:
    """How an autofocus ended."""

    is_focused: bool
    focus_z_um: float  # where the lens was left
    estimate: FocusEstimate | None  # None: it gave up
    reason: str  # why it gave up, "" when focused
    records: tuple[FocusRecord, ...]  # in order of exposure
    began_s: float
    ended_s: float

    @property
    def frames(self) -> int:
        """Frames that were exposed and used."""
        return len(self.records)


async def autofocus(
    task: FocusTask,
    motion: FocusMotion,
    observe: Observe,
    measure: SharpnessMeasure,
    estimator: FocusEstimator,
    *,
    source: str = "autofocus",
    restore_deadline_s: float = _RESTORE_DEADLINE_S,
) -> FocusResult:
    """Focus once; the lens ends in focus or where `task.start_z_um` says.

    Raises what motion or `observe` raise, after the lens was sent back; a failure to send it back
    is a note on that error, or, when the policy had given up, an error of its own.
    """
    clock = asyncio.get_running_loop().time
    began_s = clock()
    search = begin(task)
    records: list[FocusRecord] = []
    is_at_rest = True  # the lens stands where it started, or where the result says
    try:
        while True:
            search, step = next_step(search, estimator)
            match step:
                case MoveTo(z_um):
                    is_at_rest = False
                    await motion.move_focus_um(z_um, source)
                    search = moved(search, z_um)
                case MeasureAt(z_um):
                    if search.phase is not Phase.START:
                        is_at_rest = False
                        await motion.move_focus_um(z_um, source)
                    record = await _measured(search, observe, measure, clock())
                    records.append(record)
                    search = observed(search, FocusSample(record.focus_z_um, record.sharpness))
                case Done(estimate):
                    is_at_rest = True
                    return FocusResult(
                        True, search.lens_z_um, estimate, "", tuple(records), began_s, clock()
                    )
                case GiveUp(reason, restore_z_um):
                    if not is_at_rest:
                        await _go_back(task, motion, source, restore_deadline_s)
                    is_at_rest = True
                    return FocusResult(
                        False, restore_z_um, None, reason, tuple(records), began_s, clock()
                    )
    except BaseException as error:
        if not is_at_rest:
            try:
                await _go_back(task, motion, source, restore_deadline_s)
            except (ControllerError, DriverError, TimeoutError) as second:
                error.add_note(f"the focus was not restored to {task.start_z_um} um: {second}")
        raise


async def _measured(
    search: FocusSearch, observe: Observe, measure: SharpnessMeasure, still_since_s: float
) -> FocusRecord:
    """One frame that is newer than the last move, and its sharpness."""
    for _ in range(_MOST_STALE_FRAMES + 1):
        frame = await observe()
        if frame.exposed_from_s >= still_since_s:
            sharpness = measure.measure(frame.pixels)
            return FocusRecord(frame.pose.focus_z_um, sharpness, frame.number, search.phase)
    raise StaleFrame(frame.number, frame.exposed_from_s, still_since_s)


async def _go_back(task: FocusTask, motion: FocusMotion, source: str, deadline_s: float) -> None:
    """Return to the start, from above like every other approach."""
    above_um = min(task.start_z_um + task.settings.approach_um, task.max_z_um)
    async with asyncio.timeout(deadline_s):
        if above_um > task.start_z_um:
            await motion.move_focus_um(above_um, source)
        await motion.move_focus_um(task.start_z_um, source)
