"""Axes as every simulated instrument has them: a trapezoid each, behind one wire.

Where an axis truly is stands in the body's list of motions; this only commands, reads and halts.
"""

# ruff: noqa: D102 - the Protocols in drivers.api say what their methods mean

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from drivers.api import AxisLimits, Kinematics, MotionState
from drivers.errors import Refused
from simulator.mechanics import AxisSettings, Motion, halted, moved
from simulator.wiring import Wiring, joint_kinematics, motion_state


class Axes:
    """One or more axes that are commanded together."""

    def __init__(
        self,
        wiring: Wiring,
        device: Literal["stage", "focus"],
        axes: Sequence[tuple[str, AxisSettings]],  # with the letter of each
        motions: list[Motion],  # the body's, of all its axes
        first: int,  # of these in that list
        *,
        link_s: float,
        reading_um: Callable[[int, float], float],  # (index in the list, now_s)
        note: Callable[[float, tuple[float, ...]], None],  # (now_s, targets_um): it was accepted
        look: Callable[[float], None] = lambda _: None,  # before anything changes
    ) -> None:
        self._wiring = wiring
        self._device: Literal["stage", "focus"] = device
        self._axes = tuple(axes)
        self._motions = motions
        self._indices = tuple(range(first, first + len(self._axes)))
        self._link_s = link_s
        self._reading_um = reading_um
        self._note = note
        self._look = look

    def limits_um(self) -> tuple[AxisLimits, ...]:
        return tuple(AxisLimits(axis.min_um, axis.max_um) for _, axis in self._axes)

    def kinematics(self) -> Kinematics:
        return joint_kinematics([axis for _, axis in self._axes])

    async def start_move_um(self, targets_um: tuple[float, ...]) -> None:
        self._wiring.check(self._device)
        await asyncio.sleep(self._link_s)
        faults = self._wiring.strike(self._device)
        for target_um, (letter, axis) in zip(targets_um, self._axes, strict=True):
            if not axis.min_um <= target_um <= axis.max_um:  # nan too is refused here
                raise Refused(
                    self._device,
                    f"asked for {letter} = {target_um} um; travel is {axis.min_um:g} to "
                    f"{axis.max_um:g} um; nothing moved",
                )
        now_s = self._wiring.now_s()
        self._look(now_s)
        self._note(now_s, targets_um)
        if faults & {"ignored_move", "stuck_moving"}:
            return
        moves = zip(self._indices, self._axes, targets_um, strict=True)
        for index, (_, axis), target_um in moves:
            motion = self._motions[index]
            if "stalled_move" in faults:
                target_um = (motion.encoder_um(now_s) + target_um) / 2
            self._motions[index] = moved(axis, motion, now_s, target_um)

    async def readings_um(self) -> tuple[float, ...]:
        self._wiring.check(self._device)
        now_s = self._wiring.now_s()
        return tuple(self._reading_um(index, now_s) for index in self._indices)

    async def state(self) -> MotionState:
        faults = self._wiring.check(self._device)
        now_s = self._wiring.now_s()
        is_moving = any(self._motions[index].is_moving(now_s) for index in self._indices)
        return motion_state(faults, is_moving=is_moving)

    async def halt(self) -> None:
        # A separate wire: it works when the commands' link is lost, and after closing.
        now_s = self._wiring.now_s()
        self._look(now_s)
        for index, (_, axis) in zip(self._indices, self._axes, strict=True):
            self._motions[index] = halted(axis, self._motions[index], now_s)


class SimulatedStage:
    """`drivers.api.Stage`: two axes, each with its own trapezoid, started together."""

    def __init__(self, name: str, axes: Axes) -> None:
        self._name = name
        self._axes = axes

    @property
    def name(self) -> str:
        return self._name

    @property
    def limits_um(self) -> tuple[AxisLimits, AxisLimits]:
        x, y = self._axes.limits_um()
        return x, y

    @property
    def kinematics(self) -> Kinematics:
        return self._axes.kinematics()

    async def start_move_um(self, x_um: float, y_um: float) -> None:
        await self._axes.start_move_um((x_um, y_um))

    async def position_um(self) -> tuple[float, float]:
        x_um, y_um = await self._axes.readings_um()
        return x_um, y_um

    async def state(self) -> MotionState:
        return await self._axes.state()

    async def halt(self) -> None:
        await self._axes.halt()


class SimulatedFocusAxis:
    """`drivers.api.FocusAxis`: one axis, moved by a screw."""

    def __init__(self, name: str, axes: Axes) -> None:
        self._name = name
        self._axes = axes

    @property
    def name(self) -> str:
        return self._name

    @property
    def limits_um(self) -> AxisLimits:
        return self._axes.limits_um()[0]

    @property
    def kinematics(self) -> Kinematics:
        return self._axes.kinematics()

    async def start_move_um(self, z_um: float) -> None:
        await self._axes.start_move_um((z_um,))

    async def position_um(self) -> float:
        return (await self._axes.readings_um())[0]

    async def state(self) -> MotionState:
        return await self._axes.state()

    async def halt(self) -> None:
        await self._axes.halt()
