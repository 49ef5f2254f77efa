"""The running focus of a lens that images phases: a few frames at known steps, one fit, one look.

Neither a network that knows blur nor a sweep for the sharpest frame is of use there (why:
`inference.focus.phase_series`). The steps are uneven, so that no two places of a lattice's
repeating contrast see the same series. Only an answer that is sure moves anything: stigmators and
focus go to where they belong, one more frame has to agree, and otherwise all goes back to where it
stood, with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Protocol

from controller.errors import ControllerError
from drivers.api import Frame, Instrument, PhaseContrast, Stigmator
from drivers.errors import DriverError
from inference.focus.phase_series import (
    PhaseLook,
    PhaseModes,
    SeriesFocus,
    focus_of,
    scherzer_um,
)
from inference.restore.electrons import Focus, Lens

_STEPS_DOF: Final = (0.0, 2.3, -2.3, 6.1, -6.1, 13.0, -13.0, 4.3, -9.0)
_LEAST_FRAMES: Final = 5  # before the fit is asked
_SURE_DOF: Final = 0.5  # sigma of the end, at most
_CLOSE_DOF: Final = 0.05  # a last move that is not worth making
_RESTORE_DEADLINE_S: Final = 10.0


class FocusMotion(Protocol):
    """What moves the focus; `controller.motion.Motion` is one."""

    async def move_focus_um(self, z_um: float, source: str) -> None:
        """Return once the focus stands at z; raises ControllerError or DriverError."""


@dataclass(frozen=True, slots=True, eq=False)
class PhaseStep:
    """One frame, and where it was taken."""

    purpose: str  # "series" or "verify"
    frame: Frame
    focus_z_um: float
    stig_um: tuple[float, float]
    found: SeriesFocus | None  # by all frames so far; None: not asked yet


@dataclass(frozen=True, slots=True, eq=False)
class PhaseResult:
    """How it ended."""

    is_focused: bool
    focus_z_um: float  # where the lens was left
    stig_um: tuple[float, float]
    found: SeriesFocus | None  # None: it was never asked
    reason: str  # why it gave up
    steps: tuple[PhaseStep, ...]


@dataclass(frozen=True, slots=True)
class PhaseTask:
    """Where to look."""

    start_z_um: float
    lowest_z_um: float
    highest_z_um: float
    depth_of_field_um: float
    range_um: float  # how far the best focus may be from the start


def phase_lens(instrument: Instrument) -> Lens | None:
    """The objective, where what is in use images phases."""
    found = getattr(instrument, "phase_contrast", None)
    if not isinstance(found, PhaseContrast) or not found.is_in_use:
        return None
    return Lens(
        voltage_kv=found.voltage_kv,
        spherical_mm=found.spherical_mm,
        focal_spread_um=found.focal_spread_um,
        direction_mrad=found.direction_mrad,
        aperture_mrad=found.aperture_mrad,
    )


async def focus_by_phase(
    lens: Lens,
    task: PhaseTask,
    motion: FocusMotion,
    observe: Callable[[], Awaitable[Frame]],
    stigmator: Stigmator | None = None,
    thread: Executor | None = None,
    on_step: Callable[[PhaseStep], None] = lambda _: None,
) -> PhaseResult:
    """Focus once, from where the lens stands; it ends at Scherzer's defocus or back there.

    Raises what `motion` or `observe` raise, after all was sent back.
    """
    own_um = (0.0, 0.0) if stigmator is None else await stigmator.get_um()
    run = _Run(lens, task, motion, observe, stigmator, thread, on_step, own_um)
    try:
        result = await run.focused()
        if not result.is_focused:
            await run.restored()
        return result
    except BaseException as error:
        try:
            await run.restored()
        except (ControllerError, DriverError, TimeoutError) as second:
            error.add_note(f"focus was not restored to {task.start_z_um} um: {second}")
        raise


class _Run:
    """One focus under way."""

    def __init__(
        self,
        lens: Lens,
        task: PhaseTask,
        motion: FocusMotion,
        observe: Callable[[], Awaitable[Frame]],
        stigmator: Stigmator | None,
        thread: Executor | None,
        on_step: Callable[[PhaseStep], None],
        own_um: tuple[float, float],
    ) -> None:
        self._lens = lens
        self._task = task
        self._motion = motion
        self._observe = observe
        self._stigmator = stigmator
        self._thread = thread
        self._on_step = on_step
        self._own_um = own_um
        self._stig_um = own_um
        self._modes: PhaseModes | None = None
        self._looks: list[PhaseLook] = []
        self._steps: list[PhaseStep] = []

    async def focused(self) -> PhaseResult:
        task, found = self._task, None
        for offset_dof in _STEPS_DOF:
            z_um = task.start_z_um + offset_dof * task.depth_of_field_um
            if not task.lowest_z_um <= z_um <= task.highest_z_um:
                continue
            found = await self._step("series", z_um, is_asked=len(self._looks) + 1 >= _LEAST_FRAMES)
            if found is not None and found.is_sure:
                break
        if found is None or not found.is_sure:
            reason = "no room for the series" if found is None else found.reason
            return self._given_up(found, f"{reason}; longer exposures or a wider field tell more")
        z_um = found.wanted_um(self._lens)
        if not task.lowest_z_um <= z_um <= task.highest_z_um:
            return self._given_up(found, f"{z_um:.4f} um is wanted, which is beyond the limits")
        if self._stigmator is not None:
            wanted_um = (-found.stig_um[0], -found.stig_um[1])
            for um, limits in zip(wanted_um, self._stigmator.limits_um, strict=True):
                if not limits.min_um <= um <= limits.max_um:
                    return self._given_up(found, f"a stigmator of {um:.4f} um is beyond its limits")
            await self._set_stigmator(wanted_um)
        found = await self._step("verify", z_um, is_asked=True)
        if found is None or not found.is_sure:
            reason = "" if found is None else found.reason
            return self._given_up(found, f"the frame at the answer did not agree: {reason}")
        if found.sigma_um > _SURE_DOF * task.depth_of_field_um:
            return self._given_up(found, f"not sure: sigma {found.sigma_um:.4f} um")
        last_um = found.wanted_um(self._lens)
        if abs(last_um - z_um) > _CLOSE_DOF * task.depth_of_field_um:
            z_um = last_um
            await self._motion.move_focus_um(z_um, "focus")
        return PhaseResult(True, z_um, self._stig_um, found, "", tuple(self._steps))

    async def restored(self) -> None:
        async with asyncio.timeout(_RESTORE_DEADLINE_S):
            if self._stigmator is not None and self._stig_um != self._own_um:
                await self._set_stigmator(self._own_um)
            await self._motion.move_focus_um(self._task.start_z_um, "focus")

    def _given_up(self, found: SeriesFocus | None, reason: str) -> PhaseResult:
        start_um = self._task.start_z_um
        return PhaseResult(False, start_um, self._own_um, found, reason, tuple(self._steps))

    async def _set_stigmator(self, to_um: tuple[float, float]) -> None:
        if self._stigmator is not None:
            self._stig_um = to_um
            await self._stigmator.set_um(*to_um)
            await asyncio.sleep(self._stigmator.settle_s)

    async def _step(self, purpose: str, z_um: float, *, is_asked: bool) -> SeriesFocus | None:
        await self._motion.move_focus_um(z_um, "focus")
        frame = await self._observe()
        loop = asyncio.get_running_loop()
        at = Focus(z_um, self._stig_um)
        found = await loop.run_in_executor(self._thread, self._seen, frame, at, is_asked)
        step = PhaseStep(purpose, frame, z_um, self._stig_um, found)
        self._steps.append(step)
        self._on_step(step)
        return found

    def _seen(self, frame: Frame, at: Focus, is_asked: bool) -> SeriesFocus | None:
        grey = frame.pixels if frame.pixels.ndim == 2 else frame.pixels[..., 1]
        if self._modes is None:
            shape_px = grey.shape[0], grey.shape[1]
            self._modes = PhaseModes.of(self._lens, shape_px, frame.pixel_size_nm)
        if self._modes is None:
            return SeriesFocus.unknown(
                f"{grey.shape[1]} x {grey.shape[0]} pixels of {frame.pixel_size_nm:g} nm show "
                "too few phases"
            )
        self._looks.append(self._modes.look(grey, at))
        if not is_asked:
            return None
        task, scherzer = self._task, scherzer_um(self._lens)
        middle_um = task.start_z_um - scherzer  # of Gaussian focus, if the start is right
        search_um = middle_um - task.range_um, middle_um + task.range_um
        return focus_of(self._looks, self._modes, search_um)
