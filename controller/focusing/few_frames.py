"""The running few-frame focus: carries out what ACNet decides, one move and one frame at a time.

ACNet (inference.focus.acnet) is pure: views in, the next step out, lengths in depths of field. Here
a step becomes a move of the focus axis and of the stigmator, a change of the field of view where
there is one, a frame that was exposed after all had settled, and AENet's view of it. A frame that
is older than the last move is counted, dropped and taken again. Every position is reached from
above by the same last move (`approach.py`), so that backlash and the lens's hysteresis are the same
for all.

However it ends other than in focus (ACNet gives up, the task is cancelled, a move or a frame
fails), focus and stigmator go back to where they started, under a deadline of their own: an
autofocus that leaves the instrument worse than it found it is the commonest complaint about them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Protocol

from controller.errors import ControllerError, StaleFrame
from controller.focusing.approach import LastMove
from controller.motion import FocusApproach
from drivers.api import Frame, Stigmator
from drivers.errors import DriverError
from inference.focus.acnet import ACNet
from inference.focus.aenet import AENet
from inference.focus.api import (
    Done,
    FocusBelief,
    FocusCommand,
    FocusView,
    GiveUp,
    Measure,
)
from inference.focus.window import Window, telling_window

_RESTORE_DEADLINE_S: Final = 10.0
_MOST_STALE_FRAMES: Final = 5  # in a row; a camera that has more in its buffer is not being read
_MOST_UNFAMILIAR: Final = 3  # frames unlike what the network knows, with none that it does


class Lens(Protocol):
    """What moves the focus; `controller.motion.Motion` is one."""

    async def move_focus_um(
        self, z_um: float, source: str, approach: FocusApproach = "direct"
    ) -> None:
        """Return once the focus stands at z; raises ControllerError or DriverError."""


class Zoom(Protocol):
    """What changes the field of view, on the same point of the sample."""

    async def set_ratio(self, ratio: float) -> float:
        """Field of view over the one to be focused; 1 goes back to that.

        Returns by how much the focus axis was moved for it, there and back, in um.
        """


Observe = Callable[[], Awaitable[Frame]]
"""Expose one frame after everything has settled, and return it."""


@dataclass(frozen=True, slots=True, eq=False)
class FewFramesStep:
    """One frame, what was seen in it, and what was believed before it."""

    purpose: str  # "start", "probe", "bracket", "verify" ...
    frame: Frame
    view: FocusView
    focus_z_um: float  # as commanded
    stig_x_um: float
    stig_y_um: float


@dataclass(frozen=True, slots=True, eq=False)
class FewFramesResult:
    """How it ended."""

    is_focused: bool
    focus_z_um: float  # where the lens was left
    stig_x_um: float
    stig_y_um: float
    sigma_um: float  # of the focus; infinite when nothing was believed
    belief: FocusBelief | None
    reason: str  # why it gave up, or what was out of the ordinary
    steps: tuple[FewFramesStep, ...]
    window: Window | None = None  # the part of the frame that was looked at; None: all of it
    stale_frames: int = 0  # exposed before the last move had ended: dropped


@dataclass(frozen=True, slots=True)
class FewFrames:
    """The eyes and the controller of one focus, for one lens."""

    aenet: AENet
    acnet: ACNet
    depth_of_field_um: float  # the unit of the controller's steps
    source: str = "focus"
    window_px: int = 0  # side of the square that is looked at, where it tells most; 0: the frame
    # The last move to each position: > 0 from so far above, < 0 from below, 0 as the lens will.
    overshoot_um: float = 0.0
    lowest_z_um: float = -math.inf  # of the overshoot
    highest_z_um: float = math.inf

    async def focus(
        self,
        lens: Lens,
        observe: Observe,
        start_z_um: float,
        stigmator: Stigmator | None = None,
        thread: Executor | None = None,
        on_step: Callable[[FewFramesStep], None] = lambda _: None,
        zoom: Zoom | None = None,
    ) -> FewFramesResult:
        """Focus once, from where the lens stands; it ends in focus or back there.

        stigmator: None leaves astigmatism alone. thread: where views are computed; None means the
        loop's default executor. zoom: None where the controller's limits know no wide field.
        Raises what `lens` or `observe` raise, after all was restored.
        """
        loop = asyncio.get_running_loop()
        own_um = (0.0, 0.0) if stigmator is None else await stigmator.get_um()
        here = _Place(start_z_um, *own_um)
        views: list[FocusView] = []
        steps: list[FewFramesStep] = []
        at, purpose = here, "start"
        is_at_rest = True
        window: Window | None = None
        # Where it stands, and what it owes to earlier moves, nobody knows.
        devices = _Devices(
            lens, stigmator, zoom, LastMove(self.overshoot_um, self.highest_z_um, self.lowest_z_um)
        )
        stale = 0
        try:
            if self.overshoot_um != 0.0:
                is_at_rest = False
                at = await self._go(devices, here, None)
            still_since_s = loop.time()
            while True:
                frame, older = await self._fresh(observe, still_since_s)
                stale += older
                command = self._command(at, here)
                if self.window_px > 0 and window is None:
                    window = await loop.run_in_executor(
                        thread, telling_window, frame.pixels, self.window_px, frame.bit_depth
                    )
                view = await loop.run_in_executor(thread, self._seen, frame, command, window)
                views.append(view)
                step = FewFramesStep(purpose, frame, view, at.z_um, at.stig_x_um, at.stig_y_um)
                steps.append(step)
                on_step(step)
                end = _End(tuple(steps), window, stale)
                if is_unfamiliar(views):
                    await self._restore(devices, here, at)
                    is_at_rest = True
                    reason = f"out of distribution: {view.reason}"
                    return self._result(here, None, reason, end, is_focused=False)
                match await loop.run_in_executor(thread, self.acnet.next_step, tuple(views)):
                    case Measure(wanted, purpose):
                        is_at_rest = False
                        at = await self._go(devices, self._place(wanted, here), at)
                        still_since_s = loop.time()
                    case Done(wanted, belief, reason):
                        at = await self._go(devices, self._place(wanted, here), at)
                        is_at_rest = True
                        return self._result(at, belief, reason, end, is_focused=True)
                    case GiveUp(_, belief, reason):
                        await self._restore(devices, here, at)
                        is_at_rest = True
                        return self._result(here, belief, reason, end, is_focused=False)
        except BaseException as error:
            if not is_at_rest:
                try:
                    await self._restore(devices, here, None)
                except (ControllerError, DriverError, TimeoutError) as second:
                    error.add_note(f"focus was not restored to {start_z_um} um: {second}")
            raise

    async def _fresh(self, observe: Observe, still_since_s: float) -> tuple[Frame, int]:
        """A frame that is newer than the last move, and how many were not."""
        for older in range(_MOST_STALE_FRAMES + 1):
            frame = await observe()
            if frame.exposed_from_s >= still_since_s:
                return frame, older
        raise StaleFrame(frame.number, frame.exposed_from_s, still_since_s)

    def _seen(self, frame: Frame, command: FocusCommand, window: Window | None) -> FocusView:
        pixels = frame.pixels if window is None else window.of(frame.pixels)
        ratio = command.field_ratio
        return self.aenet.look(pixels, command, ratio, bit_depth=frame.bit_depth)

    # An azimuth is counted upwards by the stigmator and downwards in the image, whose rows run
    # down: the sin(2 theta) part changes its sign on the way.

    def _command(self, at: _Place, here: _Place) -> FocusCommand:
        dof_um = self.depth_of_field_um
        return FocusCommand(
            (at.z_um - here.z_um) / dof_um,
            at.stig_x_um / dof_um,
            -at.stig_y_um / dof_um,
            at.field_ratio,
        )

    def _place(self, command: FocusCommand, here: _Place) -> _Place:
        dof_um = self.depth_of_field_um
        return _Place(
            here.z_um + command.z_dof * dof_um,
            command.stig_x_dof * dof_um,
            -command.stig_y_dof * dof_um,
            command.field_ratio,
        )

    async def _go(self, devices: _Devices, to: _Place, at: _Place | None) -> _Place:
        """Set what differs. at: None means that nothing is known of where it stands."""
        zoom, stigmator = devices.zoom, devices.stigmator
        has_zoomed = zoom is not None and (at is None or at.field_ratio != to.field_ratio)
        if zoom is not None and has_zoomed:
            devices.last.excursion(await zoom.set_ratio(to.field_ratio))
        if stigmator is not None and (
            at is None or (at.stig_x_um, at.stig_y_um) != (to.stig_x_um, to.stig_y_um)
        ):
            await stigmator.set_um(to.stig_x_um, to.stig_y_um)
            await asyncio.sleep(stigmator.settle_s)
        if at is None or at.z_um != to.z_um or has_zoomed:
            if self.overshoot_um != 0.0:
                for z_um in devices.last.way_to(to.z_um, is_exact=to.field_ratio == 1.0):
                    await devices.lens.move_focus_um(z_um, self.source)
            else:
                await devices.lens.move_focus_um(to.z_um, self.source, "from_above")
        return to

    async def _restore(self, devices: _Devices, here: _Place, at: _Place | None) -> None:
        async with asyncio.timeout(_RESTORE_DEADLINE_S):
            await self._go(devices, here, at)

    def _result(
        self,
        at: _Place,
        belief: FocusBelief | None,
        reason: str,
        end: _End,
        *,
        is_focused: bool,
    ) -> FewFramesResult:
        sigma_um = float("inf") if belief is None else belief.sigma_dof * self.depth_of_field_um
        return FewFramesResult(
            is_focused,
            at.z_um,
            at.stig_x_um,
            at.stig_y_um,
            sigma_um,
            belief,
            reason,
            end.steps,
            end.window,
            end.stale_frames,
        )


def is_unfamiliar(views: Sequence[FocusView]) -> bool:
    """Whether the network knows nothing like these frames: then the classical method is asked.

    A frame that shows nothing is no such frame; blur may hide everything, for a while.
    """
    strange = sum(view.reason.startswith("unlike") for view in views)
    return strange >= _MOST_UNFAMILIAR and not any(view.in_distribution for view in views)


@dataclass(frozen=True, slots=True)
class _Place:
    z_um: float
    stig_x_um: float
    stig_y_um: float
    field_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class _Devices:
    lens: Lens
    stigmator: Stigmator | None
    zoom: Zoom | None
    last: LastMove


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    steps: tuple[FewFramesStep, ...]
    window: Window | None
    stale_frames: int
