"""Tuning asks every combination, on tables, and puts the best first."""

import numpy as np
import pytest

from controller.bench.focus_baselines.tuning import (
    Option,
    grid_dof,
    measures,
    options,
    replay,
    table_of,
    tune,
)
from inference.focus.metrics import NAMES


def test_the_grid_is_symmetric_dense_in_focus_and_long_enough() -> None:
    grid = grid_dof()
    assert grid == pytest.approx(-grid[::-1])
    assert np.diff(grid[np.abs(grid) < 5.0]).max() < 0.21
    assert grid.max() >= 2.05 * 25.0


def test_every_measure_and_every_search_is_asked() -> None:
    assert {m.name for m in measures()} == set(NAMES)
    assert len({m.label for m in measures()}) == len(measures())
    searches = {option.search for option in options()}
    assert {"sweep", "two-pass", "hill climb", "golden section", "fibonacci", "brent"} <= searches
    assert len({(o.search, o.settings) for o in options()}) == len(options())


def test_a_replay_is_answered_by_the_nearest_frame_and_judged_from_focus_at_0() -> None:
    grid = np.arange(-60.0, 61.0)
    values = 1.0 / (1.0 + (grid / 5.0) ** 2)
    two_pass = next(o for o in options() if o.search == "two-pass")
    error, frames = replay(two_pass.around, grid, values, 13.0)
    assert error <= 1.0
    assert frames == 22
    sweep = next(o for o in options() if o.search == "sweep")
    assert replay(sweep.around, grid, np.ones_like(grid), 13.0)[0] == 99.0


def test_the_better_measure_comes_first() -> None:
    grid = np.arange(-60.0, 61.0, 0.2)
    good = 1.0 / (1.0 + (grid / 5.0) ** 2)
    bad = 1.0 / (1.0 + ((grid - 3.0) / 5.0) ** 2)
    chosen: list[Option] = [o for o in options() if o.search == "golden section"]
    scores = tune([{"good": good, "bad": bad}], grid, chosen, ["bad", "good"])
    assert scores[0].measure == "good"
    assert scores[0].success > 0.9
    assert scores[-1].measure == "bad"
    assert scores[-1].success < 0.2  # its peak lies outside of the range for some starts


def test_a_table_peaks_at_0() -> None:
    grid = np.array([-12.0, -4.0, 0.0, 4.0, 12.0])
    table = table_of(0, 200.0, measures()[:4], grid)
    assert all(int(np.argmax(column)) == 2 for column in table.values())
