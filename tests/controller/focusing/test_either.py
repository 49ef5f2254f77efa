"""Networks first, the sweep behind them: who ends it, what it costs and what is said."""

import asyncio
import math

import numpy as np
import pytest

from controller.focusing.either import Classical, focus_either
from controller.focusing.few_frames import FewFramesResult, FewFramesStep
from controller.focusing.policy import FocusSweepSettings, FocusTask
from drivers.api import Frame, Pose
from inference.api import Sharpness
from inference.focus.api import FocusCommand, FocusView
from inference.focus.parabola import InverseParabola

FOCUS_UM, DOF_UM = 4.0, 3.0


class Lens:
    def __init__(self):
        self.z_um = 0.0
        self.frames = 0
        self.is_empty = False

    async def move_focus_um(self, z_um, source, approach="direct"):
        self.z_um = z_um

    async def observe(self):
        self.frames += 1
        now_s = asyncio.get_running_loop().time()
        value = 1.0 / (1.0 + ((self.z_um - FOCUS_UM) / DOF_UM) ** 2)
        level = 0 if self.is_empty else int(60_000 * value)
        pixels = np.full((4, 4), level, np.uint16)
        return Frame(pixels, self.frames, now_s, now_s, Pose(0, 0, self.z_um, "20x"), 384.0, 16)


class Eye:
    name = "eye"

    def measure(self, pixels):
        value = float(pixels[0, 0]) + 1_000.0
        return Sharpness(value, value / 1_000.0, value > 1_100, "empty field")


class Few:
    """A few-frame focus that ends as told, after two frames."""

    def __init__(self, is_focused, sees=True):
        self.is_focused = is_focused
        self.sees = sees

    async def focus(self, lens, observe, start_z_um, stigmator, thread, on_step):
        steps = []
        for _ in range(2):
            view = FocusView(FocusCommand(0.0), 1.0, (), 9.0, 4.5, 1.0, 1.0, self.sees, "")
            steps.append(FewFramesStep("start", await observe(), view, lens.z_um, 0.0, 0.0))
            on_step(steps[-1])
        z_um = FOCUS_UM if self.is_focused else start_z_um
        await lens.move_focus_um(z_um, "focus", "from_above")
        sigma_um = 0.1 if self.is_focused else math.inf
        reason = "" if self.is_focused else "out of distribution: odd"
        return FewFramesResult(
            self.is_focused, z_um, 0.0, 0.0, sigma_um, None, reason, tuple(steps)
        )


def run(few, lens=None):
    lens = lens or Lens()
    task = FocusTask(0.0, 0.0, 3.0, DOF_UM, -200.0, 200.0, FocusSweepSettings())
    classical = Classical(Eye(), InverseParabola())
    return asyncio.run(focus_either(task, lens, lens.observe, few, classical)), lens


def test_the_networks_end_it_where_they_are_sure():
    result, lens = run(Few(is_focused=True))
    assert (result.method, result.is_focused, result.doubt) == ("few_frames", True, "")
    assert result.frames == lens.frames == 2
    assert result.samples == ((0.0, 4.5), (0.0, 4.5))


def test_the_sweep_takes_over_and_the_result_says_why_and_what_both_cost():
    result, lens = run(Few(is_focused=False))
    assert (result.method, result.is_focused) == ("sweep", True)
    assert result.doubt == "out of distribution: odd"
    assert result.reason == ""
    assert result.focus_z_um == pytest.approx(FOCUS_UM, abs=0.3)
    assert lens.z_um == result.focus_z_um
    assert result.frames == lens.frames > 2 + 5


def test_an_empty_field_is_not_swept_as_well():
    lens = Lens()
    lens.is_empty = True
    result, lens = run(Few(is_focused=False, sees=False), lens)
    assert not result.is_focused
    assert result.reason.startswith("nothing to focus on, in any of 2 frames")
    assert lens.frames == 2
    assert lens.z_um == 0.0


def test_what_the_sweep_still_sees_is_swept():
    result, _ = run(Few(is_focused=False, sees=False))
    assert (result.method, result.is_focused) == ("sweep", True)


def test_without_networks_it_is_the_sweep_alone():
    result, lens = run(None)
    assert (result.method, result.doubt) == ("sweep", "")
    assert result.frames == lens.frames
