"""The stage: newest frames only, on its own thread, whatever the restorer does."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from controller.restoring.stage import RestoreStage, continues
from controller.stream import LiveLane
from drivers.errors import LinkLost


async def shown(frames, choice, *, between=None):
    """Views of frames that come one at a time, each when the last was shown."""
    live, views = LiveLane(), []
    with ThreadPoolExecutor(1) as thread:
        stage = RestoreStage(live, choice, thread)
        live.put(frames[0])
        async for view in stage.views():
            views.append(view)
            if between is not None:
                between(stage, len(views))
            if len(views) == len(frames):
                break
            live.put(frames[len(views)])
    return views


def test_raw_stays_beside_computed(make_frame, halving):
    choice, _ = halving()
    frames = [make_frame(n) for n in range(3)]
    views = asyncio.run(shown(frames, choice))
    assert [view.frame for view in views] == frames
    assert all(view.frame.pixels[0, 0] == 100 for view in views)
    assert all(view.restored.image[0, 0] == 50 for view in views)
    assert all(view.ready_s >= view.begun_s for view in views)
    assert views[1].latency_s == views[1].ready_s - frames[1].exposed_until_s


def test_without_a_restorer_raw_frames_are_shown(make_frame):
    view = asyncio.run(shown([make_frame()], None))[0]
    assert view.restored is None
    assert view.unable == view.reason == ""


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ({}, True),
        ({"pose": {"stage_x_um": 0.02}}, True),
        ({"pose": {"stage_x_um": 0.07}}, False),
        ({"pose": {"stage_y_um": -0.07}}, False),
        ({"pose": {"focus_z_um": 3.0}}, True),
        ({"pose": {"objective": "50x"}}, False),
        ({"pixel_size_nm": 4.0}, False),
        ({"optics": {"exposure_s": 0.2}}, False),
        ({"pixels": np.zeros((24, 30), np.uint8)}, False),
        ({"pixels": np.zeros((24, 32), np.uint16)}, False),
    ],
)
def test_what_continues_a_scene(make_frame, change, goes_on):
    first = make_frame()
    change = dict(change)
    pose = replace(first.pose, **change.pop("pose", {}))
    assert continues(first, replace(first, pose=pose, **change)) is goes_on


def test_another_scene_is_forgotten(make_frame, halving):
    choice, made = halving()
    frames = [make_frame(0), make_frame(1), make_frame(2, stage_x_um=5.0)]
    views = asyncio.run(shown(frames, choice))
    assert [view.restored.effective_frames for view in views] == [1.0, 2.0, 1.0]
    assert made[0].resets == 1


def test_the_operator_chooses_another(make_frame, halving):
    (choice, _), (other, _) = halving(), halving(method="gaussian")

    def between(stage, count):
        stage.choose({1: None, 2: other}.get(count, choice))

    views = asyncio.run(shown([make_frame(n) for n in range(3)], choice, between=between))
    assert views[0].restored.method == "halving"
    assert views[1].restored is None
    assert views[2].restored.method == "gaussian"


def test_a_restorer_that_fails_stops_nothing(make_frame, halving):
    choice, _ = halving()
    bad = make_frame(1, np.full((24, 32), 13, np.uint8))
    views = asyncio.run(shown([make_frame(0), bad, make_frame(2)], choice))
    assert views[1].restored is None
    assert "13 is no image" in views[1].reason
    assert views[2].restored.effective_frames == 1.0


def test_a_slow_restorer_skips_frames_and_delays_nobody(make_frame, halving):
    """Fifty frames come while one is restored; the next view is of the newest."""

    async def main():
        live, choice = LiveLane(), halving()
        busy, go_on = threading.Event(), threading.Event()
        push = choice[0].make().__class__.push

        class Slow(type(choice[1][0])):
            def push(self, frame, noise=None):
                busy.set()
                assert go_on.wait(5.0)
                return push(self, frame, noise)

        slow = replace(choice[0], make=Slow)
        with ThreadPoolExecutor(1) as thread:
            views = RestoreStage(live, slow, thread).views()
            live.put(make_frame(0))
            first = asyncio.ensure_future(anext(views))
            assert await asyncio.to_thread(busy.wait, 5.0)
            for number in range(1, 51):  # put returns at once: nobody waits for the thread
                live.put(make_frame(number))
            assert not first.done()
            go_on.set()
            seen = [await first, await anext(views)]
            live.close(LinkLost("camera", "gone"))
            with pytest.raises(LinkLost):
                await anext(views)
        return seen

    first, second = asyncio.run(main())
    assert (first.frame.number, first.skipped_frames) == (0, 0)
    assert (second.frame.number, second.skipped_frames) == (50, 49)
