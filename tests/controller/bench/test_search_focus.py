"""The comparison of networks and sweeps: what is counted, and against what."""

from dataclasses import replace

import pytest

from controller.bench import BENCHES, search_focus
from controller.bench.search import searched, tables
from controller.bench.search_focus import Figures, figures_of, rows_of

ONE = Figures(8, 8, 36, 20, 0, 1, (0.1, 0.2, 0.6, 0.3), 0.5, 0.1, 0)


def test_it_is_listed() -> None:
    assert BENCHES["search_focus"].name == "search_focus"


def test_the_sweeps_stand_beside_the_networks() -> None:
    sweeps = replace(ONE, frames=80, scan_frames=40, wrong=2, tiles_off_dof=(0.1,) * 4, minutes=0.6)
    rows = {row.name: row for row in rows_of("chip", [ONE, ONE], [sweeps, sweeps], 2)}
    assert rows["chip: frames for focus"].value == 72
    assert rows["chip: frames for focus"].baseline == 160
    assert rows["chip: tiles in focus"].value == pytest.approx(0.75)
    assert rows["chip: tiles in focus"].baseline == pytest.approx(1.0)
    assert rows["chip: frames for focus a tile"].value == pytest.approx(5.0)
    assert rows["chip: frames for focus a tile"].bar is None
    assert rows["chip: wrong focuses"].value == 0
    assert rows["chip: wrong focuses"].baseline == pytest.approx(0.25)
    assert rows["chip: handed over to the sweep"].value == 2
    assert rows["chip: searches that could begin"].value == 1.0


def test_the_surface_has_its_bar() -> None:
    rows = {row.name: row for row in rows_of("10 x 10 tiles, x", [ONE], [], 1)}
    assert rows["10 x 10 tiles, x: frames for focus a tile"].bar == 0.3
    assert rows["10 x 10 tiles, x: searches that could begin"].baseline == 0.0


def test_a_search_that_finds_no_focus_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    name, asked, _ = search_focus._chips(True, 1)[1]
    bare = asked(1)
    bare["instrument"]["chip"] |= {"dust_per_mm2": 0.0, "fiducials": False, "size_mm": [4.0, 4.0]}
    bare["instrument"]["camera"] = {"width_px": 640, "height_px": 480}
    assert name.startswith("bare")
    assert search_focus._searched(bare, "few_frames") is None


def test_figures_are_asked_of_the_truth(tmp_path) -> None:
    asked = tables(4, (1.0, 0.8))
    asked["run"]["clock"] = "ideal"
    asked["instrument"]["camera"] = {"width_px": 960, "height_px": 720}
    asked["overview"] = {"width_um": 1_500.0, "height_um": 1_300.0}
    asked["scan"] = {"max_tiles": 3}
    asked["revisit"] = {"max_flakes": 0}
    outcome = searched(asked, tmp_path)
    found = figures_of(outcome)
    assert len(found.tiles_off_dof) == 3
    assert max(found.tiles_off_dof) < 1.0
    assert found.frames == sum(p.frames for p in outcome.state.focus_points)
    assert 0 < found.scan_frames < found.frames
    assert found.wrong == 0
    # A focus that lies about where the chip is would be counted.
    points = outcome.state.focus_points
    outcome.state.focus_points[:] = [replace(p, focus_z_um=p.focus_z_um + 40.0) for p in points]
    assert figures_of(outcome).wrong == found.sure
