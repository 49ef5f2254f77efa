"""The bench of the running focus: its faults are real, its rows say what happened."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from controller.bench import BENCHES, Report, focus_loop
from controller.bench.focus_loop import LoopRun, _Tardy, measure_with, rows_of, run_job, run_once
from controller.errors import BadSettings
from drivers.api import Frame, MissingFrames, Pose

PLAIN = LoopRun("mechanics", 0, True, 0.1, 20.0, 5, 2, 0, None, (), 0.0, 0, 0, "")


def by_name(*runs: LoopRun):
    return {row.name: row for row in rows_of(runs)}


def test_it_is_listed() -> None:
    assert BENCHES["focus_loop"].name == "focus_loop"


def test_success_is_near_and_sure() -> None:
    rows = by_name(
        PLAIN,
        replace(PLAIN, off_dof=0.6),
        replace(PLAIN, is_focused=False, off_dof=0.1),
        replace(PLAIN, stale_taken=1),
    )
    name = "backlash 5 DOF, hysteresis 3 %, drift 0.3 DOF/s, 5 % stale: success"
    assert rows[name].value == pytest.approx(0.5)
    assert rows["mechanics: sure and wrong"].value == pytest.approx(0.25)
    assert rows["stale frames taken for fresh"].value == 1.0
    assert rows["stale frames taken for fresh"].met is False
    assert "100 DOF, wide field: success" not in rows


def test_a_hold_is_judged_frame_by_frame() -> None:
    hold = replace(
        PLAIN, task="hold still", live_off_dof=(0.1, 0.2, 0.7, 0.1), hold_s=30.0, corrections=1
    )
    rows = by_name(hold)
    assert rows["hold, no drift: live frames within 0.5 DOF"].value == pytest.approx(0.75)
    assert rows["hold, no drift: corrections"].value == pytest.approx(2.0)
    assert rows["hold, no drift: corrections"].met is False


def test_a_tardy_frame_carries_the_number_and_shows_the_one_before() -> None:
    class Inner:
        name = "camera"

        async def frames(self):
            for k in range(200):
                yield Frame(np.full((2, 2), k, np.uint8), k, k, k + 0.5, Pose(0, 0, k, "a"), 5.0, 8)
            yield MissingFrames(200, 201, "gone")

    async def taken():
        tardy = _Tardy(Inner(), 0.1, 3)
        assert tardy.name == "camera"
        return [item async for item in tardy.frames()], tardy.given

    items, given = asyncio.run(taken())
    frames = [item for item in items if isinstance(item, Frame)]
    late = [f for f in frames if f.exposed_from_s != f.number]
    assert len(frames) == 200
    assert given == len(late)
    assert 8 <= given <= 35
    assert all(
        f.exposed_from_s == f.number - 1 == f.pixels[0, 0] == f.pose.focus_z_um for f in late
    )
    assert isinstance(items[-1], MissingFrames)


def test_one_run_with_everything_wrong_with_the_drive() -> None:
    run = run_once(1, 2, "mechanics")
    assert run.is_focused
    assert run.off_dof < 0.5
    assert run.stale_taken == 0
    assert (run.task, run.number) == ("mechanics", 2)
    assert run == run_once(1, 2, "mechanics")


def test_what_is_asked_of_few_is_spread_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        focus_loop, "run_once", lambda seed, n, task: replace(PLAIN, number=n, task=task)
    )
    plan = {"mechanics": 10, "far": 5, "wide gap": 0, "hold": 1, "hold still": 0}
    tasks = [[run.task for run in run_job(1, n, plan)] for n in range(10)]
    assert sum("far" in t for t in tasks) == 5
    assert tasks[0] == ["mechanics", "far", "hold"]
    assert tasks[1] == ["mechanics"]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(BadSettings, match="wide gap"):
        measure_with(True, 1, Report(only=("nonsense",)))
