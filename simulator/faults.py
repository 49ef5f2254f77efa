"""What goes wrong, when: a seeded script of faults that a configuration file can ask for.

    [[instrument.faults]]
    device = "camera"
    kind = "dropped"
    probability = 0.01

A fault begins at the n-th call of its device (`at_call`, counting from 1: a move, an exposure, a
turn of the turret), at a time after opening (`at_s`), or strikes each call with a `probability`. A
passing fault spoils `calls` calls (or all in a window of `duration_s` after `at_s`); a lasting
one (`stuck_moving`, `unknown_state`, `stopped`, `link_lost`) holds for `duration_s`, and for ever
if that is not given.

The script only says which faults hold; the device plays them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

FaultyDevice: TypeAlias = Literal["camera", "stage", "focus", "turret", "lamp"]
FaultKind: TypeAlias = Literal[
    "link_lost",  # every word to the device raises LinkLost
    "refused",  # the command is refused, nothing happens
    "ignored_move",  # accepted, and the axis stays where it is
    "stalled_move",  # the axis stops half-way and reports Idle
    "stuck_moving",  # the axis stays where it is and reports Moving
    "unknown_state",  # the axis moves but will not say whether
    "dropped",  # the frame is lost and nobody says so
    "doubled",  # the frame comes twice
    "reordered",  # the frame comes after the next one
    "stopped",  # exposures end as usual, no frames come
    "wrong_size",  # the frame has half its rows
    "saturated",
    "black",
]

_MOTION: frozenset[FaultKind] = frozenset(
    {"link_lost", "refused", "ignored_move", "stalled_move", "stuck_moving", "unknown_state"}
)
_IMAGE: frozenset[FaultKind] = frozenset(
    {"dropped", "doubled", "reordered", "stopped", "wrong_size", "saturated", "black"}
)
KINDS: Mapping[FaultyDevice, frozenset[FaultKind]] = {
    "camera": _IMAGE | {"link_lost", "refused"},
    "stage": _MOTION,
    "focus": _MOTION,
    "turret": frozenset({"link_lost", "refused"}),
    "lamp": frozenset({"link_lost", "refused"}),
}
LASTING: frozenset[FaultKind] = frozenset({"link_lost", "stuck_moving", "unknown_state", "stopped"})


class FaultSettings(BaseModel):
    """One fault of one device."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: FaultyDevice
    kind: FaultKind
    at_call: int | None = Field(default=None, ge=1)  # None: not by count
    at_s: float | None = Field(default=None, ge=0, le=1e7)  # after opening; None: not by time
    probability: float | None = Field(default=None, gt=0, le=1)  # of each call; None: not by chance
    calls: int = Field(default=1, ge=1, le=1_000_000)  # spoilt from `at_call` on
    duration_s: float | None = Field(default=None, gt=0, le=1e7)  # None: for ever

    @model_validator(mode="after")
    def _makes_sense(self) -> FaultSettings:
        if self.kind not in KINDS[self.device]:
            known = ", ".join(sorted(KINDS[self.device]))
            raise ValueError(f"a {self.device} cannot be {self.kind}; it can be {known}")
        if [self.at_call, self.at_s, self.probability].count(None) != 2:
            raise ValueError("give exactly one of at_call, at_s and probability")
        return self


class FaultScript:
    """The faults of one session: told of every call, it answers which faults hold."""

    def __init__(self, faults: Sequence[FaultSettings], seed: int) -> None:
        self._faults = tuple(faults)
        self._random = np.random.default_rng([seed, 0xFA017])
        self._calls: dict[FaultyDevice, int] = {}
        self._lasts_until_s: dict[int, float] = {}  # by index of a lasting fault that has begun

    def struck(self, device: FaultyDevice, since_s: float) -> frozenset[FaultKind]:
        """Count one call of `device`, `since_s` after opening; return the faults that spoil it."""
        call = self._calls[device] = self._calls.get(device, 0) + 1
        struck: set[FaultKind] = set()
        for index, fault in enumerate(self._faults):
            if fault.device != device:
                continue
            if fault.at_call is not None:
                hit = fault.at_call <= call < fault.at_call + fault.calls
            elif fault.probability is not None:
                hit = bool(self._random.random() < fault.probability)
            else:
                hit = self._in_window(fault, since_s)
            if hit and fault.kind in LASTING:
                self._begin(index, fault, since_s)
            elif hit:
                struck.add(fault.kind)
        return frozenset(struck) | self.lasting(device, since_s)

    def lasting(self, device: FaultyDevice, since_s: float) -> frozenset[FaultKind]:
        """The lasting faults that hold for `device` at this moment; counts nothing."""
        holding: set[FaultKind] = set()
        for index, fault in enumerate(self._faults):
            if fault.device != device or fault.kind not in LASTING:
                continue
            if self._in_window(fault, since_s) or since_s < self._lasts_until_s.get(index, 0.0):
                holding.add(fault.kind)
        return frozenset(holding)

    def _begin(self, index: int, fault: FaultSettings, since_s: float) -> None:
        duration_s = math.inf if fault.duration_s is None else fault.duration_s
        self._lasts_until_s[index] = since_s + duration_s

    @staticmethod
    def _in_window(fault: FaultSettings, since_s: float) -> bool:
        if fault.at_s is None or since_s < fault.at_s:
            return False
        return fault.duration_s is None or since_s < fault.at_s + fault.duration_s
