"""The running autofocus on a lens of a few lines: cancel, failures, stale frames, going back."""

import asyncio

import numpy as np
import pytest

from controller.errors import Halted, StaleFrame
from controller.focusing.loop import autofocus
from controller.focusing.policy import FocusSweepSettings, FocusTask, Phase
from drivers.api import Frame, Pose
from inference.api import Sharpness
from inference.focus.parabola import InverseParabola

FOCUS_UM = 12.0
DOF_UM = 3.0


class Lens:
    """Motion and camera at once; pixels carry the true position, so that `Eye` can judge them."""

    def __init__(self, focus_um=FOCUS_UM, is_empty=False):
        self.z_um = 0.0
        self.moves_um = []
        self.focus_um = focus_um
        self.is_empty = is_empty
        self.number = 0
        self.stale_frames = 0
        self.hang_at_frame = None
        self.hangs = asyncio.Event()
        self.halt_at_frame = None
        self.fail_at_move = None
        self.is_halted = False

    async def move_focus_um(self, z_um, source):
        assert source == "test"
        if self.is_halted:
            raise Halted("move", "operator")
        if self.fail_at_move is not None and len(self.moves_um) == self.fail_at_move:
            self.fail_at_move = None
            self.moves_um.append(z_um)
            raise Halted("move", "somebody")
        await asyncio.sleep(0)
        self.moves_um.append(z_um)
        self.z_um = z_um

    async def observe(self):
        self.number += 1
        self.is_halted = self.is_halted or self.halt_at_frame == self.number
        if self.hang_at_frame == self.number:
            self.hangs.set()
            await asyncio.sleep(3_600)
        await asyncio.sleep(0)
        now_s = asyncio.get_running_loop().time()
        if self.stale_frames:
            self.stale_frames -= 1
            now_s -= 60.0
        value = 1.0 / (1.0 + ((self.z_um - self.focus_um) / DOF_UM) ** 2)
        level = 0 if self.is_empty else int(60_000 * value)
        pixels = np.full((4, 4), level, np.uint16)
        return Frame(pixels, self.number, now_s, now_s, Pose(0.0, 0.0, self.z_um, "20x"), 384.0, 16)


class Eye:
    name = "eye"

    def measure(self, pixels):
        value = float(pixels[0, 0]) + 1_000.0
        return Sharpness(value, value / 1_000.0, value > 1_100, "empty field")


def task(start_um=0.0):
    return FocusTask(start_um, 8.0, 5.0, DOF_UM, -200.0, 200.0, FocusSweepSettings())


async def focus(lens, **more):
    return await autofocus(
        task(), lens, lens.observe, Eye(), InverseParabola(), source="test", **more
    )


def test_it_ends_in_focus_and_tells_every_frame():
    lens = Lens()
    result = asyncio.run(focus(lens))
    assert result.is_focused
    assert result.estimate is not None
    assert abs(lens.z_um - FOCUS_UM) < 0.2 * DOF_UM
    assert result.focus_z_um == lens.z_um == result.estimate.focus_z_um
    assert [record.frame_number for record in result.records] == list(range(1, result.frames + 1))
    assert result.records[0].phase is Phase.START
    assert result.records[-1].phase is Phase.VERIFY
    assert result.reason == ""


def test_an_empty_field_ends_where_it_began():
    lens = Lens(is_empty=True)
    result = asyncio.run(focus(lens))
    assert not result.is_focused
    assert "empty field" in result.reason
    assert lens.z_um == 0.0 == result.focus_z_um
    assert lens.moves_um[-2] > 0.0  # from above


@pytest.mark.parametrize("frame", [2, 5, 9])
def test_a_cancel_is_honoured_at_once_and_the_lens_goes_back(frame):
    lens = Lens()
    lens.hang_at_frame = frame

    async def scenario():
        async with asyncio.TaskGroup() as group:
            running = group.create_task(focus(lens), name="autofocus")
            await lens.hangs.wait()
            running.cancel()
            began_s = asyncio.get_running_loop().time()
            await asyncio.wait([running])
            assert asyncio.get_running_loop().time() - began_s < 0.5
            return running

    running = asyncio.run(scenario())
    assert running.cancelled()
    assert lens.z_um == 0.0


def test_a_cancel_before_the_first_move_moves_nothing():
    lens = Lens()
    lens.hang_at_frame = 1

    async def scenario():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await focus(lens)

    asyncio.run(scenario())
    assert lens.moves_um == []


def test_a_failed_move_sends_the_lens_back_and_is_told():
    lens = Lens()
    lens.fail_at_move = 3
    with pytest.raises(Halted):
        asyncio.run(focus(lens))
    assert lens.z_um == 0.0


def test_when_it_cannot_go_back_the_error_says_so():
    lens = Lens()

    lens.halt_at_frame = 4
    with pytest.raises(Halted) as told:
        asyncio.run(focus(lens))
    assert any("not restored" in note for note in told.value.__notes__)


def test_going_back_has_a_deadline_of_its_own():
    lens = Lens(is_empty=True)

    async def stuck(z_um, source):
        if z_um == 0.0:
            await asyncio.sleep(3_600)
        lens.moves_um.append(z_um)

    lens.move_focus_um = stuck
    with pytest.raises(TimeoutError):
        asyncio.run(focus(lens, restore_deadline_s=0.02))


def test_stale_frames_are_passed_over():
    lens = Lens()
    lens.stale_frames = 3
    result = asyncio.run(focus(lens))
    assert result.is_focused
    assert result.records[0].frame_number == 4


def test_a_camera_that_only_sends_stale_frames_is_an_error():
    lens = Lens()
    lens.stale_frames = 10**6
    with pytest.raises(StaleFrame):
        asyncio.run(focus(lens))
