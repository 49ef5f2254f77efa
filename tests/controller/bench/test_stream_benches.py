"""Benches of the frames' path, small: they count right, and see what is wrong."""

import asyncio
import random
from pathlib import Path

import numpy as np

from controller.bench import accounting, frames, halt, labels
from controller.bench.memory_instrument import MemoryCamera, MemoryInstrument, without_gaps
from drivers.api import Frame, Idle, MissingFrames, Moving, Pose


def test_a_frames_cost_is_taken_for_every_pair(tmp_path: Path) -> None:
    turns = asyncio.run(frames.take_turns(tmp_path, 60, 1))
    counts = {len(turns.bare_us), len(turns.added_us), len(turns.added_cpu_us), len(turns.idle_us)}
    assert counts == {60}
    assert min(turns.bare_us) > 0.0
    assert sum(turns.added_us) > 0.0, "the full path cannot cost less than the bare loop"


def test_frames_are_handed_on_by_reference(tmp_path: Path) -> None:
    is_shared, to_lanes, to_disk = asyncio.run(frames.copies(tmp_path, 1))
    assert is_shared
    assert to_lanes < 0.01
    assert 0.9 < to_disk < 3.5  # the compressed chunk of noise is as large as the frame


def test_a_bad_link_does_what_it_says() -> None:
    link = labels.BadLink(random.Random(4), 0.05)
    for number in range(2_000):
        link(number)
    assert min(link.dropped, link.doubled, link.swapped) > 50
    assert len(link.arrived) == 2_000 - link.dropped + link.doubled - (link.arrived[-1] < 1_999)
    assert link.lost == set(range(max(link.arrived))) - set(link.arrived)
    assert any(b < a for a, b in zip(link.arrived, link.arrived[1:], strict=False))


def test_labels_survive_both_paths() -> None:
    for tally in (asyncio.run(labels.triggered(900, 5)), asyncio.run(labels.recorded(900, 6))):
        assert tally.link.dropped > 0
        assert tally.kept > 850
        assert tally.right == tally.kept
        assert tally.named == tally.link.lost
        assert tally.unaccounted == 0


def test_a_wrong_label_is_seen() -> None:
    tally = labels.Tally(labels.BadLink(random.Random(1), 0.01))
    pose = Pose(0.0, 0.0, 0.0, "20x")
    for label, shown in ((7, 7), (8, 7)):
        tally.keep(Frame(labels.picture_of(shown), label, 0.0, 0.0, pose, 384.0, 8), label)
    assert (tally.kept, tally.right) == (2, 1)


def test_losses_of_a_soak_are_all_named() -> None:
    soak = asyncio.run(
        accounting.soaked((32, 32), 500.0, 1.2, 1, warm_up_s=0.1, stall_every_s=0.05)
    )
    assert soak.exposed == 650
    assert soak.unaccounted == 0
    assert soak.missing > 0, "the longest stall was meant to cost frames"
    assert soak.kept + soak.missing == soak.exposed
    assert soak.lane_stalls > 0
    assert soak.most_used == soak.lane_capacity


def test_halts_are_timed_for_both_callers(tmp_path: Path) -> None:
    picture = np.full((120, 160, 3), 130, np.uint8)
    picture[40:60, 40:70] = 110
    picture.setflags(write=False)
    direct_ms, console_ms, looked_at, written = asyncio.run(halt.halted(tmp_path, [picture], 8, 1))
    assert len(direct_ms) == len(console_ms) == 4
    assert min(direct_ms + console_ms) > 0.0
    assert looked_at > 0
    assert written > 0


def test_the_axes_in_memory_move_and_stop() -> None:
    async def story() -> None:
        instrument = MemoryInstrument(MemoryCamera(frames.noise_pictures((4, 4), 1, 1)), 1_000.0)
        async with instrument, instrument.motion() as motion:
            await instrument.stage.start_move_um(100.0, 0.0)
            assert isinstance(await instrument.stage.state(), Moving)
            await asyncio.sleep(0.01)
            await instrument.stage.halt()
            assert isinstance(await instrument.stage.state(), Idle)
            x_um, _ = await instrument.stage.position_um()
            assert 5.0 < x_um < 95.0
            await motion.refresh()
            await motion.move_to_um(5.0, -3.0, 1.0, "test")
            assert await instrument.stage.position_um() == (5.0, -3.0)
            assert await instrument.focus.position_um() == 1.0

    asyncio.run(story())


def test_a_camera_in_memory_that_is_not_read_says_what_it_lost() -> None:
    async def story() -> None:
        camera = MemoryCamera(frames.noise_pictures((4, 4), 2, 1), buffer_frames=3)
        for number in range(5):
            assert await camera.trigger() == number
        camera.close()
        came = [item async for item in camera.frames()]
        assert [without_gaps(item).number for item in came[:3]] == [0, 1, 2]
        assert came[3] == MissingFrames(3, 4, "frame buffer full")

    asyncio.run(story())
