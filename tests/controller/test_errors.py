"""Messages answer what was asked, what came, what to do; attributes carry the facts."""

import pytest

from controller.errors import (
    BadFrame,
    BadSettings,
    ControllerError,
    FrameMissing,
    FrameTimeout,
    Halted,
    HaltFailed,
    MoveFailed,
    RecordLaneFull,
    StaleFrame,
    StreamError,
    TurretFailed,
    UnsafeCommand,
)

CASES = [
    (
        BadSettings("run.toml", "scan.overlap_ratio", 0.9, "0 to 0.5"),
        ["run.toml", "scan.overlap_ratio", "0.9", "0 to 0.5"],
    ),
    (BadSettings("run.toml", "", "", "a readable file"), ["run.toml", "a readable file"]),
    (
        UnsafeCommand("MoveStage(x_um=1e9)", "envelope", "x = 1e9 um"),
        ["MoveStage(x_um=1e9)", "envelope", "nothing was sent", "x = 1e9 um"],
    ),
    (Halted("MoveFocus(z_um=1)", "operator: red button"), ["MoveFocus", "red button", "resume"]),
    (HaltFailed({"stage": "silent for 0.5 s"}), ["stage", "silent for 0.5 s", "hardware stop"]),
    (
        MoveFailed("stage", (10.0, -2.5), (9.0, -2.5), "stuck"),
        ["stage", "(10.000, -2.500) um", "(9.000, -2.500) um", "stuck"],
    ),
    (MoveFailed("focus", (), None, "silent"), ["focus", "where it is", "nothing", "silent"]),
    (TurretFailed("turret", "50x", "5x", "jammed"), ["turret", "50x", "5x", "jammed"]),
    (TurretFailed("turret", None, None, "silent"), ["what is in place", "nothing", "silent"]),
    (FrameMissing(7, "the counter jumped"), ["7", "the counter jumped", "expose again"]),
    (FrameTimeout("cam", 7, 0.5), ["cam", "frame 7", "0.5 s"]),
    (FrameTimeout("cam", None, 0.5), ["cam", "exposure did not end", "0.5 s"]),
    (BadFrame("cam", 3, "shape (4, 4)"), ["cam", "3", "shape (4, 4)"]),
    (StaleFrame(3, 1.0, 2.0), ["3", "1.000000 s", "2.000000 s"]),
    (RecordLaneFull(8, 99), ["8", "99"]),
]


@pytest.mark.parametrize(("error", "words"), CASES, ids=lambda v: type(v).__name__)
def test_message_says_what_was_asked_and_what_came(
    error: ControllerError, words: list[str]
) -> None:
    assert isinstance(error, ControllerError)
    for word in words:
        assert word in str(error)


def test_a_frame_error_can_be_caught_as_one_kind() -> None:
    for error, _ in CASES:
        name = type(error).__name__
        assert isinstance(error, StreamError) == ("Frame" in name or name == "RecordLaneFull")


def test_attributes_carry_the_facts() -> None:
    bad = BadSettings("a.toml", "k", 3, "1 to 2")
    assert (bad.file, bad.key, bad.value, bad.allowed) == ("a.toml", "k", 3, "1 to 2")
    failed = MoveFailed("stage", (1.0, 2.0), None, "silent")
    assert (failed.axis, failed.asked_um, failed.came_um) == ("stage", (1.0, 2.0), None)
