"""Stacks: how names are read, what a replay shows and counts, and how runs become rows."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference.api import BadImage
from inference.figures import wilson_ci95
from inference.focus.api import FocusCommand
from inference.focus.evaluate import (
    AS_IT_IS,
    FocusOutcome,
    FocusProblem,
    Levels,
    Plane,
    StackBars,
    StackProblem,
    StackRun,
    bootstrap,
    rank_correlation,
    rank_rows,
    read_stack,
    run_on_stack,
    summary_rows,
)


def _planes(positions: range = range(-4, 5)) -> list[Plane]:
    rng = np.random.default_rng(2)
    sharp = (40.0 + 100.0 * (rng.random((80, 90)) > 0.5)).astype(np.float32)
    planes = []
    for z in positions:
        blurred = cv2.GaussianBlur(sharp, (0, 0), abs(z)) if z else sharp
        planes.append(Plane(float(z), "", f"{z}.png", blurred.astype(np.uint8)))
    return planes


@dataclass(frozen=True)
class _Sharpest:
    """Looks at every whole DOF within its range; the harness must not tell it more."""

    offset_dof: float = 0.0
    is_sure: bool = True

    @property
    def name(self) -> str:
        return "sharpest"

    def run(self, problem: FocusProblem) -> FocusOutcome:
        lowest, highest = problem.limits_dof
        seen = []
        for z in np.arange(np.ceil(lowest), highest + 0.5):
            found = problem.observe(FocusCommand(float(z)))
            seen.append((float(np.var(found.pixels / found.pixels.mean())), found.command.z_dof))
        z = max(seen)[1] + self.offset_dof
        return FocusOutcome(FocusCommand(z), self.is_sure, "" if self.is_sure else "doubt")


# --- reading --------------------------------------------------------------------------------


def _written(folder: Path, names: list[str], shapes: list[tuple[int, int]]) -> None:
    for k, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        cv2.imwrite(str(folder / name), np.full(shape, 20 + k, np.uint8))


def test_planes_are_sorted_and_cut_to_the_common_centre(tmp_path: Path) -> None:
    names = ["10.png", "-2.png", "0.png", "notes.txt", "x.png"]
    _written(
        tmp_path, [n for n in names if n != "notes.txt"], [(60, 70), (50, 80), (64, 64), (9, 9)]
    )
    (tmp_path / "notes.txt").write_text("no image")
    planes = read_stack(tmp_path, r"(-?\d+)\.png")
    assert [p.position for p in planes] == [-2.0, 0.0, 10.0]
    assert {p.pixels.shape for p in planes} == {(50, 64)}


def test_groups_part_stacks(tmp_path: Path) -> None:
    _written(tmp_path, ["0_20.png", "1_20.png", "0_30.png"], [(40, 40)] * 3)
    planes = read_stack(tmp_path, r"(?P<z>\d+)_(?P<group>\d+)\.png")
    assert [(p.group, p.position) for p in planes] == [("20", 0.0), ("20", 1.0), ("30", 0.0)]


def test_the_centre_is_kept_when_images_differ_in_size(tmp_path: Path) -> None:
    wide = np.zeros((60, 100), np.uint8)
    wide[:, 50] = 200
    cv2.imwrite(str(tmp_path / "0.png"), wide)
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((60, 50), np.uint8))
    planes = read_stack(tmp_path, r"(\d)\.png")
    assert int(np.argmax(planes[0].pixels[30])) == 25


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(\d+", "regular expression"),
        (r"\d+\.png", "group"),
        (r"(\d+)\.tif", "no image"),
        (r"(\w+)\.png", "no position"),
    ],
)
def test_patterns_that_cannot_be_meant(tmp_path: Path, pattern: str, said: str) -> None:
    _written(tmp_path, ["a.png"], [(40, 40)])
    with pytest.raises(BadImage, match=said):
        read_stack(tmp_path, pattern)


def test_a_broken_file_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(b"not a png")
    with pytest.raises(BadImage, match=r"3\.png"):
        read_stack(tmp_path, r"(\d+)\.png")
    with pytest.raises(BadImage, match="no folder"):
        read_stack(tmp_path / "nowhere", r"(\d+)\.png")


# --- replaying ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_command_is_answered_by_the_nearest_plane_and_its_place(direction: float) -> None:
    planes = _planes()
    problem = StackProblem(planes, 1, direction, dof_steps=2.0)
    seen = problem.observe(FocusCommand(0.7))
    assert seen.command.z_dof == pytest.approx(0.5)
    assert problem.seen_names == [f"{-3 + int(direction)}.png"]
    assert problem.position(seen.command) == -3.0 + direction
    assert problem.limits_dof == ((-0.5, 3.5) if direction > 0 else (-3.5, 0.5))
    assert problem.half_range_dof == 3.5


def test_frames_are_counted_and_flicker_is_drawn_for_each() -> None:
    problem = StackProblem(_planes(), 4, 1.0, 1.0, Levels("flicker", flicker_ratio=0.2))
    means = [float(problem.observe(FocusCommand(0.0)).pixels.mean()) for _ in range(6)]
    assert problem.frames == 6
    assert np.std(means) / np.mean(means) > 0.05


def test_gain_is_one_for_a_run_within_its_bounds_and_saturates_nothing() -> None:
    planes = _planes()
    gains = []
    for start in range(len(planes)):
        problem = StackProblem(planes, start, 1.0, 1.0, Levels("gain", most_gain=2.0), seed=4)
        first, second = (problem.observe(FocusCommand(0.0)).pixels for _ in range(2))
        assert np.array_equal(first, second)
        gains.append(float(first.mean()) / float(planes[start].pixels.mean()) / 80.0)
        assert first.max() < 65_535
    assert 0.5 <= min(gains) < 0.85
    assert 1.2 < max(gains) <= 2.0


def test_every_start_and_both_directions_are_run() -> None:
    planes = _planes()
    runs = run_on_stack(planes, _Sharpest())
    assert len(runs) == 18
    assert {(r.start_position, r.direction) for r in runs} == {
        (float(z), d) for z in range(-4, 5) for d in (1.0, -1.0)
    }
    assert all(abs(r.error_steps) < 1e-9 for r in runs)
    assert all(r.frames == 9 and r.planes == 9 for r in runs)


def test_errors_are_in_steps_and_signed_by_the_stack() -> None:
    runs = run_on_stack(_planes(), _Sharpest(offset_dof=0.5), dof_steps=0.5)
    assert {round(r.error_steps, 6) for r in runs if r.direction > 0} == {0.25}
    assert {round(r.error_steps, 6) for r in runs if r.direction < 0} == {-0.25}
    elsewhere = run_on_stack(_planes(), _Sharpest(), truth=1.0)
    assert {r.error_steps for r in elsewhere} == {-1.0}


# --- rows -----------------------------------------------------------------------------------


def _run(error: float, frames: int = 5, sure: bool = True, start: float = 3.0) -> StackRun:
    return StackRun("m", AS_IT_IS.name, start, 1.0, error, start, sure, frames, frames, 0.0, "")


def test_success_asks_for_error_frames_and_confidence_together() -> None:
    runs = [_run(0.1), _run(0.31), _run(0.1, frames=7), _run(0.1, sure=False), _run(-0.3)]
    rows = {row.name: row for row in summary_rows(runs, StackBars(0.3, 6), "x: ")}
    assert rows["x: success_rate"].value == pytest.approx(2 / 5)
    assert rows["x: within_tolerance"].value == pytest.approx(4 / 5)
    assert rows["x: confidently_wrong"].value == pytest.approx(1 / 5)
    assert rows["x: median_frames"].value == 5.0
    assert rows["x: median_error_steps"].value == pytest.approx(0.1)
    assert rows["x: success_rate"].n == 5


def test_harm_is_ending_further_off_than_it_began() -> None:
    rows = summary_rows([_run(0.2, start=0.0), _run(-1.4, start=1.0), _run(2.0, start=-2.0)])
    assert next(r.value for r in rows if r.name == "harm_rate") == pytest.approx(1 / 3)


def test_intervals_hold_what_they_should() -> None:
    low, high = wilson_ci95(0, 38)
    assert low == 0.0
    assert high == pytest.approx(0.0918, abs=1e-3)
    assert wilson_ci95(38, 38)[1] == 1.0
    values = np.random.default_rng(1).standard_normal(400)
    interval = bootstrap(values, 0.5)
    assert interval is not None
    assert interval[0] < np.median(values) < interval[1]
    assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * 1.2533 / 20.0, rel=0.35)
    assert bootstrap(np.array([1.0]), 0.5) is None


def test_rank_correlation_shares_ties() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 45]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 2, 2], [1, 2, 3, 4]) == pytest.approx(0.894427, abs=1e-6)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0


def test_ranks_within_groups_and_across_them_are_told_apart() -> None:
    planes = [
        Plane(float(z), group, "", np.full((40, 40), 100 + 10 * z + offset, np.uint8))
        for group, offset in (("a", 0), ("b", 60))
        for z in range(5)
    ]
    rows = rank_rows(planes, {"mean": lambda pixels: float(np.mean(pixels))})
    assert rows[0].value == pytest.approx(1.0)
    assert rows[1].value is not None
    assert rows[1].value < 0.8


def test_real_stack_is_read_whole(shared_data: Path) -> None:
    planes = read_stack(shared_data / "focus" / "smear", r"(?P<z>-?\d+)\.png")
    assert [p.position for p in planes] == [float(z) for z in range(-9, 10)]
    runs = run_on_stack(planes[:11], _Sharpest())
    assert len(runs) == 22
