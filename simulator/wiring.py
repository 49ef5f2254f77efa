"""What every simulated instrument has: a clock, cables that can come out, a turret, a tray.

Before `open` and after `close` no device answers; while it is open, the script of faults says who
does not. The body of an instrument (where everything truly is) keeps its own file.
"""

# ruff: noqa: D102 - the Protocols in drivers.api say what their methods mean

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from drivers.api import Frame, Idle, Kinematics, MotionState, Moving, Objective, Unknown
from drivers.errors import LinkLost, Refused
from drivers.software_camera import until
from simulator.faults import FaultKind, FaultScript, FaultSettings, FaultyDevice
from simulator.mechanics import AxisSettings


class Wiring:
    """The cables of one instrument and its clock."""

    def __init__(self, instrument: str, faults: Sequence[FaultSettings], seed: int) -> None:
        self._instrument = instrument
        self._script = FaultScript(faults, seed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened_s = 0.0
        self.is_open = False

    def open(self) -> None:
        if self._loop is not None:
            raise Refused(self._instrument, "it was opened before; make a new one")
        self._loop = asyncio.get_running_loop()
        self._opened_s = self._loop.time()
        self.is_open = True

    def now_s(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()

    def since_s(self, now_s: float) -> float:
        """From opening until then; what was before counts as the beginning."""
        return max(0.0, now_s - self._opened_s)

    def check(self, device: FaultyDevice) -> frozenset[FaultKind]:
        """The lasting faults of a device. Raises LinkLost if nobody would answer."""
        if not self.is_open:
            raise LinkLost(device, f"the {self._instrument} is closed; open it first")
        faults = self._script.lasting(device, self.since_s(self.now_s()))
        if "link_lost" in faults:
            raise LinkLost(device, "no answer, the cable is out; reconnect or stop")
        return faults

    def strike(self, device: FaultyDevice) -> frozenset[FaultKind]:
        """Count a command of a device. Raises LinkLost or Refused if the script says so."""
        self.check(device)
        faults = self._script.struck(device, self.since_s(self.now_s()))
        self.check(device)
        if "refused" in faults:
            raise Refused(device, "the controller answered no; the command had no effect")
        return faults


class SimulatedTurret:
    """`drivers.api.Turret`; the field is dark until what was selected is in place."""

    def __init__(
        self,
        name: str,
        wiring: Wiring,
        objectives: Sequence[Objective],
        start: str,
        swap_s: float,
        *,
        look: Callable[[], None] = lambda: None,  # taken before and after each turn
    ) -> None:
        self._name = name
        self._wiring = wiring
        self._objectives = tuple(objectives)
        self._swap_s = swap_s
        self._look = look
        self.in_use = self._named(start)
        self.in_place_s = -math.inf

    @property
    def name(self) -> str:
        return self._name

    @property
    def objectives(self) -> Sequence[Objective]:
        return self._objectives

    async def select(self, objective: str) -> None:
        chosen = self._named(objective)
        self._wiring.strike("turret")
        await until(self.in_place_s)
        if chosen == self.in_use:
            return
        self._look()
        self.in_use = chosen
        self.in_place_s = self._wiring.now_s() + self._swap_s
        await until(self.in_place_s)
        self._look()

    async def current(self) -> Objective:
        self._wiring.check("turret")
        await until(self.in_place_s)
        return self.in_use

    def _named(self, name: str) -> Objective:
        for objective in self._objectives:
            if objective.name == name:
                return objective
        known = ", ".join(objective.name for objective in self._objectives)
        raise Refused("turret", f"asked for {name!r}; there are {known}")


class Tray:
    """Frames on their way out of a camera, as its faults let them through."""

    def __init__(self) -> None:
        self._late: list[Frame] = []  # held back by the fault "reordered"

    def handed_out(self, frame: Frame, faults: frozenset[FaultKind]) -> Sequence[Frame]:
        if faults & {"dropped", "stopped"}:
            return ()
        if "reordered" in faults:
            self._late.append(frame)
            return ()
        copies = [frame, frame] if "doubled" in faults else [frame]
        return [*copies, *self.left_over()]

    def left_over(self) -> Sequence[Frame]:
        late, self._late = self._late, []
        return late


def motion_state(faults: frozenset[FaultKind], *, is_moving: bool) -> MotionState:
    """What an axis with these faults says."""
    if "unknown_state" in faults:
        return Unknown("the controller's answer made no sense")
    if "stuck_moving" in faults or is_moving:
        return Moving()
    return Idle()


def joint_kinematics(axes: Sequence[AxisSettings]) -> Kinematics:
    """Of axes that are commanded together: the slowest of each."""
    return Kinematics(
        speed_um_per_s=min(axis.speed_um_per_s for axis in axes),
        acceleration_um_per_s2=min(axis.acceleration_um_per_s2 for axis in axes),
        settle_s=max(axis.settle_s for axis in axes),
        resolution_um=max(axis.resolution_um for axis in axes),
    )
