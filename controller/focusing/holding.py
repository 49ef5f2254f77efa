"""The running hold: live frames in, now and then a move out; `hold.py` says when.

Every frame that is taken is handed on as it comes, the two of a check marked as such. The lens is
only moved under the same supervisor as everything else: while somebody else holds the instrument
nothing is moved and no frame is taken, and what they leave behind is where the hold goes on.
However it ends, the lens ends where focus is believed to be, never where a check had put it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from controller.errors import ControllerError, UnsafeCommand
from controller.focusing.approach import LastMove
from controller.focusing.hold import (
    Check,
    Correct,
    Held,
    HoldSettings,
    Watch,
    begin_hold,
    found,
    moved_by_hand,
    next_hold_step,
    not_found,
    predicted,
    seen,
)
from controller.focusing.once import Stand
from drivers.api import Frame
from drivers.errors import DriverError
from inference.focus.acnet import fineness_of_rings
from inference.focus.api import FocusBelief, FocusCommand, FocusView
from inference.focus.posterior import believe

Purpose: TypeAlias = Literal["live", "check"]

SOURCE: Final = "hold"
_RESTORE_DEADLINE_S: Final = 10.0
_LEAST_EVIDENCE: Final = 4.0
_CHECK_RANGE: Final = 10.0
_LEASE_POLL_S: Final = 0.1
_HAND_UNITS: Final = 0.5  # a lens that stands further from where it was put was moved by somebody


@dataclass(frozen=True, slots=True, eq=False)
class HoldFrame:
    """One frame of a held view."""

    frame: Frame
    purpose: Purpose
    focus_z_um: float  # where the lens had been put
    believed_off: float  # of focus, in units
    sigma: float


@dataclass(frozen=True, slots=True)
class HoldResult:
    """What a hold did."""

    frames: int
    checks: int
    failed_checks: int
    corrections: int
    refused: int  # moves that the supervisor did not permit: somebody else has the instrument
    rate_per_s: float  # drift as believed at the end, in units
    focus_z_um: float  # where the lens was left


class Hold:
    """Holds focus on an opened stand until `run` ends or is cancelled; begin it in focus."""

    def __init__(
        self,
        stand: Stand,
        settings: HoldSettings,
        on_frame: Callable[[HoldFrame], None] = lambda _: None,
    ) -> None:
        """on_frame: called for every frame, must return at once."""
        self._stand = stand
        self._settings = settings
        self._on_frame = on_frame
        self._unit_um = stand.few.depth_of_field_um
        self._origin_um = stand.z_um
        self._lens_um = self._origin_um  # where it was put last
        self._last = LastMove(stand.few.overshoot_um, stand.few.highest_z_um)
        self._prior = replace(stand.few.acnet.prior, range_dof=_CHECK_RANGE, astigmatism_dof=0.0)
        self._clock = asyncio.get_running_loop().time
        self._held: Held = begin_hold(0.0, settings.most_sigma, self._clock(), settings)
        self._was_taken = False  # by somebody else, since the last step
        self._latest: tuple[FocusView, float] | None = None  # live, and when it was exposed
        self._frames = self._checks = self._failed = self._corrections = self._refused = 0

    async def run(self, for_s: float) -> HoldResult:
        """Hold for so long. Raises what the instrument raises; the lens was put back then."""
        ends_s = self._clock() + for_s
        try:
            while self._clock() < ends_s:
                await self._step()
        except BaseException as error:
            await self._leave(error)
            raise
        return self.result()

    def result(self) -> HoldResult:
        """What was done so far."""
        return HoldResult(
            self._frames,
            self._checks,
            self._failed,
            self._corrections,
            self._refused,
            self._held.rate,
            self._lens_um,
        )

    async def _step(self) -> None:
        now_s, lens_z = self._clock(), self._units(self._lens_um)
        if self._is_taken():
            await asyncio.sleep(_LEASE_POLL_S)
            self._was_taken = True
            return
        stands_um = self._stand.z_um
        if self._was_taken or abs(stands_um - self._lens_um) > _HAND_UNITS * self._unit_um:
            self._last.excursion(abs(stands_um - self._lens_um))
            self._was_taken, self._lens_um = False, stands_um
            z = self._units(stands_um)
            self._held = moved_by_hand(self._held, z, now_s, self._settings)
            lens_z = z
        try:
            match next_hold_step(self._held, lens_z, now_s, self._settings):
                case Check(first, second):
                    await self._check(first, second)
                case Correct(z):
                    await self._go(self._um(z))
                    self._corrections += 1
                case Watch():
                    pass
            await self._live()
        except UnsafeCommand:
            # Taken over between asking and moving, or beyond a limit: leave it for a while.
            self._refused += 1
            self._held = not_found(self._held, self._clock(), self._settings)
            await asyncio.sleep(_LEASE_POLL_S)

    def _is_taken(self) -> bool:
        """Whether somebody else holds the instrument."""
        lease = self._stand.motion.supervisor.lease_at(self._clock())
        return lease is not None and not lease.covers(SOURCE)

    async def _live(self) -> None:
        frame, view = await self._look("live")
        self._latest = view, (frame.exposed_from_s + frame.exposed_until_s) / 2.0
        level = view.levels[0] if view.levels else None
        if level is not None and level.mean > 0.0:
            sharp, spread = fineness_of_rings(view)
            self._held = seen(self._held, sharp, max(spread, 0.02), self._settings)

    async def _check(self, first: float, second: float) -> None:
        """One frame on each side; what they say counts for the time between the two."""
        self._checks += 1
        # Two frames that are equally blurred are no evidence that anything is there: the last one
        # in focus comes first.
        views, times_s = list[FocusView](), list[float]()
        if self._latest is not None:
            views.append(self._latest[0])
            times_s.append(self._latest[1])
        for z in (first, second):
            await self._go(self._um(z))
            frame, view = await self._look("check")
            views.append(view)
            times_s.append((frame.exposed_from_s + frame.exposed_until_s) / 2.0)
        middle_s = (times_s[-2] + times_s[-1]) / 2.0
        # What drifted between them is taken off their positions.
        drifted = [self._held.rate * (at_s - middle_s) for at_s in times_s]
        still = [
            replace(view, command=FocusCommand(view.command.z_dof - by))
            for view, by in zip(views, drifted, strict=True)
        ]
        belief = await self._in_thread(still)
        most = 0.5 * self._settings.check_distance
        is_found = belief.evidence > _LEAST_EVIDENCE and belief.sigma_dof < most
        if is_found:
            z, sigma = belief.z_dof, belief.sigma_dof
            self._held = found(self._held, z, sigma, middle_s, self._settings)
        else:
            self._failed += 1
            self._held = not_found(self._held, self._clock(), self._settings)
        await self._go(self._um(predicted(self._held, self._clock(), self._settings).z))

    async def _in_thread(self, views: list[FocusView]) -> FocusBelief:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._stand.thread, believe, views, self._prior)

    async def _look(self, purpose: Purpose) -> tuple[Frame, FocusView]:
        frame = await self._stand.observe()
        command = FocusCommand(self._units(self._lens_um))
        loop = asyncio.get_running_loop()
        view = await loop.run_in_executor(
            self._stand.thread, self._stand.few.aenet.look, frame.pixels, command
        )
        self._frames += 1
        here = predicted(self._held, self._clock(), self._settings)
        self._on_frame(
            HoldFrame(
                frame,
                purpose,
                self._lens_um,
                self._units(self._lens_um) - here.z,
                here.z_variance**0.5,
            )
        )
        return frame, view

    async def _go(self, z_um: float) -> None:
        for stop_um in self._last.way_to(z_um):
            await self._stand.motion.move_focus_um(stop_um, SOURCE)
            self._lens_um = stop_um
        self._lens_um = z_um

    async def _leave(self, error: BaseException) -> None:
        """To where focus is believed to be, if nobody else has the instrument."""
        z_um = self._um(predicted(self._held, self._clock(), self._settings).z)
        if self._is_taken() or abs(z_um - self._lens_um) < 0.01 * self._unit_um:
            return
        try:
            async with asyncio.timeout(_RESTORE_DEADLINE_S):
                await self._go(z_um)
        except (ControllerError, DriverError, TimeoutError) as second:
            error.add_note(f"focus was not put back to {z_um:.3f} um: {second}")

    def _units(self, z_um: float) -> float:
        return (z_um - self._origin_um) / self._unit_um

    def _um(self, z: float) -> float:
        return self._origin_um + z * self._unit_um
