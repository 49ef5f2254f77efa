"""Frames and restorers that do as they are told."""

from dataclasses import replace

import numpy as np
import pytest

from controller.restoring.frames import RestoredFrame, RestorerChoice
from controller.restoring.stage import LiveView
from drivers.api import Frame, Pose
from inference.api import BadImage
from inference.restore.api import Restored


def frame(number=0, pixels=None, *, at_s=0.0, pixel_size_nm=5.0, **pose):
    pixels = np.full((24, 32), 100, np.uint8) if pixels is None else pixels
    where = replace(Pose(0.0, 0.0, 0.0, "10x"), **pose)
    depth = 8 if pixels.dtype == np.uint8 else 16
    optics = {"exposure_s": 0.1, "electrons_per_px": 10.0}
    return Frame(pixels, number, at_s, at_s + 0.1, where, pixel_size_nm, depth, optics)


def view(number=0, method="gaussian", *, reason="", fallback=False, ready_s=None, pixels=None):
    raw = frame(number, pixels, at_s=0.1 * number)
    restored = None
    if method:
        restored = RestoredFrame(raw.pixels // 2, (), method, fallback, reason, True, 3.0)
    ready_s = raw.exposed_until_s + 0.02 if ready_s is None else ready_s
    return LiveView(raw, restored, reason, 1, raw.exposed_until_s, ready_s)


class Halving:
    """Halves every number, and counts what it saw since it was told to forget."""

    name = "halving"
    drift_px = (0.0, 0.0)

    def __init__(self, method="halving", reason=""):
        self.method, self.reason = method, reason
        self.seen = []
        self.resets = 0

    @property
    def effective_frames(self):
        return float(len(self.seen))

    def push(self, frame, noise=None):
        if frame.max() == 13:
            raise BadImage("13 is no image")
        self.seen.append(frame)
        return Restored(frame.astype(np.float32) / 2, None, True, self.method, self.reason)

    def reset(self):
        self.seen.clear()
        self.resets += 1


@pytest.fixture
def make_frame():
    return frame


@pytest.fixture
def make_view():
    return view


@pytest.fixture
def halving():
    """A choice, and the restorers that it made."""

    def choice(**words):
        made = []

        def make():
            made.append(Halving(**words))
            return made[-1]

        return RestorerChoice("halving", make, frozenset({"halving"})), made

    return choice
