"""`evaluate focus`: the promised rows, on a made stack and on the real one."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from controller.bench.focus_baselines import stacks
from controller.bench.focus_baselines.methods import rivals
from controller.bench.focus_baselines.stacks import stack_rows
from inference.focus.evaluate import LEVELS, Plane, StackBars, read_stack


def _stack(groups: tuple[str, ...] = ("",), reach: int = 6) -> list[Plane]:
    rng = np.random.default_rng(8)
    grains = cv2.GaussianBlur(rng.standard_normal((300, 300)).astype(np.float32), (0, 0), 3.0)
    sharp = (90.0 + 50.0 * (grains > 0)).astype(np.float32)
    planes = []
    for k, group in enumerate(groups):
        for z in range(-reach, reach + 1):
            blurred = cv2.GaussianBlur(sharp, (0, 0), 0.5 * abs(z) + 0.4)
            noisy = (1.0 + 0.3 * k) * blurred + 2.0 * rng.standard_normal(sharp.shape)
            planes.append(Plane(float(z), group, f"{z}_{group}.png", noisy.astype(np.uint8)))
    return planes


def test_the_promised_rows_come_first_and_every_level_has_its_own() -> None:
    rows = stack_rows(_stack(reach=4), with_rivals=False)
    names = [row.name for row in rows]
    assert names[:4] == [
        "success_rate",
        "median_error_steps",
        "p95_error_steps",
        "median_frames",
    ]
    assert "flicker 10 %: success_rate" in names
    assert "gain x0.5-2: median_frames" in names
    assert all(row.n == 18 for row in rows)
    assert {row.name: row.bar for row in rows}["median_frames"] == 6.0


def test_rivals_are_helped_and_bear_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    some = tuple(m for m in rivals() if m.name.startswith(("two-pass 11+11 +", "ACNet", "ours")))
    monkeypatch.setattr(stacks, "rivals", lambda: some)
    monkeypatch.setattr(stacks, "LEVELS", LEVELS[:1])
    told: list[tuple[int, int]] = []
    rows = stack_rows(_stack(), progress=lambda done, total: told.append((done, total)))
    by_name = {row.name: row for row in rows}
    parabola = by_name["two-pass 11+11 + parabola: within_tolerance"]
    assert parabola.value is not None
    assert parabola.value > 0.9
    assert by_name["two-pass 11+11 + parabola: success_rate"].note.startswith("with ")
    assert by_name["ACNet-style loop, 20 frames: success_rate"].note == "score fitted to this stack"
    assert all(row.bar is None for row in rows if ":" in row.name and row.name[0] in "tA")
    assert told[-1] == (4, 4)


def test_exposures_are_ranked_and_each_is_a_stack_of_its_own() -> None:
    planes = [plane for plane in _stack(("a", "b"), reach=4) if plane.position >= 0]
    rows = {row.name: row for row in stack_rows(planes, with_rivals=False)}
    assert rows["success_rate"].n == 2 * 2 * 5
    assert rows["brenner: rank correlation within"].value == pytest.approx(1.0)
    assert rows["ours: rank correlation across"].bar == 0.98
    assert rows["brenner: rank correlation across"].bar is None
    # Focus is the first plane of each: nobody can look at it from both sides.
    assert rows["success_rate"].bar is None


def test_bars_are_the_callers() -> None:
    rows = stack_rows(_stack(reach=2), with_rivals=False, bars=StackBars(0.5, 9))
    assert {row.name: row.bar for row in rows}["median_frames"] == 9.0


def test_the_fallback_is_within_a_third_of_a_step_on_the_real_stack(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "rivals", lambda: rivals()[:1])
    monkeypatch.setattr(stacks, "LEVELS", LEVELS[:1])
    planes = read_stack(shared_data / "focus" / "smear", r"(?P<z>-?\d+)\.png")
    rows = {row.name: row for row in stack_rows(planes)}
    assert rows["ours, classical fallback: within_tolerance"].value == 1.0
