"""A session on simulated instruments: everything exposed is kept, whatever restoring does."""

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from controller import app
from controller.errors import ControllerError
from controller.record.rundir import DiskFull
from controller.restoring.movie import MovieWriter
from controller.restoring.session import Until, WatchSession
from controller.settings import Settings, load_toml, validated
from drivers.errors import LinkLost

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def sem(**changes):
    tables, _ = load_toml(CONFIGS / "simulated_sem.toml")
    tables["run"]["clock"] = "ideal"
    tables["instrument"]["frame"] = {"height_px": 96, "width_px": 128, "dwell_ns": 200.0}
    tables["camera"]["exposure_s"] = 0.01
    for key, value in changes.items():
        section, name = key.split("__")
        tables.setdefault(section, {})[name] = value
    return validated(Settings, tables, "test")


def watched(folder, settings, until, choice=None, on_view=None):
    instrument = app.open_instrument(settings, "test")
    with MovieWriter(folder, "raw") as raw, MovieWriter(folder, "computed") as computed:
        session = WatchSession(settings, instrument, choice, raw, computed, on_view)
        with asyncio.Runner(loop_factory=app.loop_factory(settings, "test")) as runner:
            runner.run(session.run(until))
    return session.log


def lines_of(folder, kind):
    path = folder / f"{kind}.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def test_every_frame_is_kept_and_restored_beside(tmp_path, halving):
    log = watched(tmp_path, sem(), Until(frames=12), halving()[0])
    assert log.exposed_frames == log.recorded_frames == 12
    assert log.restored_frames + log.skipped_frames == 12
    raw = zarr.open_array(tmp_path / "raw.ome.zarr" / "0", mode="r")[...]
    computed = zarr.open_array(tmp_path / "computed.ome.zarr" / "0", mode="r")[...]
    assert len(raw) == 12
    of = [line["computed_from"] for line in lines_of(tmp_path, "computed")]
    assert of[-1] == 11
    numbers = [line["number"] for line in lines_of(tmp_path, "raw")]
    chosen = raw[[numbers.index(number) for number in of]]
    assert np.abs(computed - chosen / 2.0).max() <= 0.5
    electrons = lines_of(tmp_path, "raw")[0]["optics"]["electrons_per_px"]
    assert log.dose_per_frame_e_per_a2 == pytest.approx(electrons / 50.0**2)  # 5 nm pixels


def test_raw_frames_are_the_same_without_restoring(tmp_path, halving):
    frames = []
    for name, choice in (("with", halving()[0]), ("without", None)):
        (tmp_path / name).mkdir()
        watched(tmp_path / name, sem(), Until(frames=5), choice)
        frames.append(zarr.open_array(tmp_path / name / "raw.ome.zarr" / "0", mode="r")[...])
    assert np.array_equal(*frames)
    assert not (tmp_path / "without" / "computed.ome.zarr").exists()


def test_a_session_by_time(tmp_path):
    log = watched(tmp_path, sem(), Until(seconds=0.5))
    assert 0.5 <= log.lasted_s < 0.6
    assert log.recorded_frames == log.exposed_frames > 10


class Slow:
    name = "halving"
    drift_px = (0.0, 0.0)
    effective_frames = 1.0

    def __init__(self, inner):
        self._inner = inner

    def push(self, frame, noise=None):
        time.sleep(0.2)
        return self._inner.push(frame)

    def reset(self):
        self._inner.reset()


def test_a_slow_restorer_delays_no_exposure(tmp_path, halving):
    """On the clock that charges for computing: 0.2 s a frame beside exposures of 0.01 s."""
    inner, _ = halving()
    slow = type(inner)("halving", lambda: Slow(inner.make()), inner.expected)
    log = watched(tmp_path, sem(run__clock="virtual"), Until(frames=40), slow)
    assert log.recorded_frames == 40
    assert log.skipped_frames >= 15
    assert log.lasted_s < 40 * 0.2


def test_lost_frames_are_counted_and_the_session_goes_on(tmp_path, halving):
    faults = [
        {"device": "camera", "kind": kind, "at_call": call}
        for kind, call in (("dropped", 3), ("doubled", 6), ("wrong_size", 9), ("dropped", 12))
    ]
    log = watched(tmp_path, sem(instrument__faults=faults), Until(frames=20), halving()[0])
    assert log.exposed_frames == 20
    assert log.lost_frames == 3
    assert log.recorded_frames == 17


def test_a_lost_link_ends_it_with_what_was_taken(tmp_path, halving):
    faults = [{"device": "camera", "kind": "link_lost", "at_call": 8}]
    with pytest.raises(LinkLost):
        watched(tmp_path, sem(instrument__faults=faults), Until(frames=20), halving()[0])
    assert 5 <= len(lines_of(tmp_path, "raw")) <= 7


def test_a_stop_keeps_what_was_taken(tmp_path, halving):
    settings = sem()

    async def main():
        instrument = app.open_instrument(settings, "test")
        with MovieWriter(tmp_path, "raw") as raw, MovieWriter(tmp_path, "computed") as computed:
            session = WatchSession(settings, instrument, halving()[0], raw, computed, None)
            task = asyncio.create_task(session.run(Until()))
            while session.log.exposed_frames < 7:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return session.log

    with asyncio.Runner(loop_factory=app.loop_factory(settings, "test")) as runner:
        log = runner.run(main())
    assert log.recorded_frames >= 6
    assert len(lines_of(tmp_path, "raw")) == log.recorded_frames
    assert log.lasted_s > 0.0


def test_a_full_disk_ends_it(tmp_path):
    settings = sem()
    instrument = app.open_instrument(settings, "test")
    with MovieWriter(tmp_path, "raw", 1e9) as raw, MovieWriter(tmp_path, "computed") as computed:
        session = WatchSession(settings, instrument, None, raw, computed)
        with (
            asyncio.Runner(loop_factory=app.loop_factory(settings, "test")) as runner,
            pytest.raises(DiskFull),
        ):
            runner.run(session.run(Until(frames=5)))
    assert session.log.recorded_frames == 0


def test_an_exposure_that_is_not_allowed(tmp_path):
    settings = sem(safety__max_exposure_s=0.001)
    with pytest.raises(ControllerError, match="exposure"):
        watched(tmp_path, settings, Until(frames=5))
