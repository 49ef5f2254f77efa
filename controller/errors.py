"""What can go wrong in the controller: one family, named for what happened.

Like the drivers' errors, each message answers three questions: what was asked, what came, what to
do. Attributes carry the same facts for code; nobody has to read a number out of a sentence.
"""

from __future__ import annotations


class ControllerError(Exception):
    """The root: the controller could not, or would not, do what was asked."""


class BadSettings(ControllerError):
    """A setting is unknown, of the wrong type or out of range; nothing was started."""

    def __init__(self, file: str, key: str, value: object, allowed: str) -> None:
        """`value` is shown as it was found; `allowed` says in words what would be accepted."""
        where = ": ".join(part for part in (file, key) if part) or "settings"
        found = "" if value is None or value == "" else f" is {value}"
        super().__init__(f"{where}{found}; allowed: {allowed}")
        self.file = file
        self.key = key
        self.value = value
        self.allowed = allowed


class UnsafeCommand(ControllerError):
    """The supervisor said no; nothing was sent."""

    def __init__(self, command: str, rule: str, reason: str) -> None:
        """`rule` is the short name of the rule that refused (`controller.safety.Rule`)."""
        super().__init__(f"{command} refused ({rule}), nothing was sent: {reason}")
        self.command = command
        self.rule = rule
        self.reason = reason


class Halted(ControllerError):
    """A halt stopped this command, or forbids it until `resume`."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"{command}: halted ({reason}); find out why, then resume")
        self.command = command
        self.reason = reason


class HaltFailed(ControllerError):
    """At least one axis did not confirm the halt; it may still be moving: use the hardware stop."""

    def __init__(self, failures: dict[str, str]) -> None:
        """`failures` names each axis that did not answer and what came instead."""
        said = "; ".join(f"{axis}: {what}" for axis, what in failures.items())
        super().__init__(f"halt was not confirmed ({said}); use the hardware stop")
        self.failures = failures


class MoveFailed(ControllerError):
    """A move did not end where it should; the axis was told to stop and its position is in doubt.

    asked_um, came_um: in the axis' own coordinates. `asked_um` is () when the axis was only read;
    `came_um` is None when no position came at all.
    """

    def __init__(
        self,
        axis: str,
        asked_um: tuple[float, ...],
        came_um: tuple[float, ...] | None,
        reason: str,
    ) -> None:
        asked = f"asked for {_position(asked_um)}" if asked_um else "asked where it is"
        came = "nothing" if came_um is None else _position(came_um)
        super().__init__(f"{axis}: {asked}, came {came}: {reason}; check the axis before moving on")
        self.axis = axis
        self.asked_um = asked_um
        self.came_um = came_um
        self.reason = reason


class TurretFailed(ControllerError):
    """The turret did not bring the objective that was asked for; which one is in place is unknown.

    asked: None when the turret was only read. came: None when nothing was said.
    """

    def __init__(self, turret: str, asked: str | None, came: str | None, reason: str) -> None:
        what = "asked what is in place" if asked is None else f"asked for {asked}"
        super().__init__(
            f"{turret}: {what}, came {came or 'nothing'}: {reason}; check the turret before "
            "the focus moves down"
        )
        self.turret = turret
        self.asked = asked
        self.came = came
        self.reason = reason


class SearchFailed(ControllerError):
    """The search cannot go on; what was found so far is kept and can be resumed."""


class StreamError(ControllerError):
    """The root of what can go wrong with one frame."""


class FrameMissing(StreamError):
    """The frame's number was skipped by the source: it will never come. Expose again."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"frame {number} is missing: {reason}; expose again")
        self.number = number
        self.reason = reason


class FrameTimeout(StreamError):
    """The deadline passed without frame `number`, or (None) without the end of an exposure."""

    def __init__(self, camera: str, number: int | None, timeout_s: float) -> None:
        what = "the exposure did not end" if number is None else f"frame {number} did not come"
        super().__init__(f"{camera}: {what} within {timeout_s:g} s; check the camera and its link")
        self.camera = camera
        self.number = number
        self.timeout_s = timeout_s


class BadFrame(StreamError):
    """What came is not the frame that the camera promised (shape, dtype, number, times)."""

    def __init__(self, camera: str, number: int | None, reason: str) -> None:
        super().__init__(f"{camera}: frame {number} is not usable: {reason}")
        self.camera = camera
        self.number = number
        self.reason = reason


class StaleFrame(StreamError):
    """The frame was exposed before the last move had settled: it is evidence of nothing."""

    def __init__(self, number: int, exposed_from_s: float, settled_at_s: float) -> None:
        super().__init__(
            f"frame {number} was exposed from {exposed_from_s:.6f} s, but the instrument stood "
            f"still only from {settled_at_s:.6f} s; expose again"
        )
        self.number = number
        self.exposed_from_s = exposed_from_s
        self.settled_at_s = settled_at_s


class RecordLaneFull(StreamError):
    """The recorder is too slow and its lane may not stall the camera: nothing is overwritten."""

    def __init__(self, capacity_frames: int, number: int) -> None:
        super().__init__(
            f"record lane holds {capacity_frames} frames and frame {number} found no room; "
            "record to a faster disk, or let the lane stall the camera"
        )
        self.capacity_frames = capacity_frames
        self.number = number


def _position(position_um: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in position_um) + ") um"
