"""Frames restored before something looks at them: what is shown, and that it is asked for."""

from pathlib import Path

import numpy as np
import pytest

from controller import app
from controller.restoring.before import RestoredDetector, RestoredSharpness
from controller.settings import Settings, load_toml, validated
from drivers.api import Objective
from inference.api import Sharpness
from inference.flakes.physics_detector import DetectorSettings


class Looking:
    name = "looking"
    budget_s = 0.5

    def __init__(self):
        self.seen = []

    def measure(self, pixels):
        self.seen.append(pixels)
        return Sharpness(1.0, 2.0, True, "")

    def detect(self, pixels, pixel_size_nm, bit_depth=8):
        self.seen.append(pixels)
        return pixel_size_nm, bit_depth


def test_what_looks_is_shown_the_restored_frame(halving):
    choice, _ = halving()
    looking = Looking()
    pixels = np.full((24, 32, 3), 100, np.uint8)
    RestoredSharpness(looking, choice).measure(pixels)
    assert RestoredDetector(looking, choice).detect(pixels, 384.0, 12) == (384.0, 12)
    assert [one.max() for one in looking.seen] == [50, 50]
    assert pixels.min() == 100
    assert RestoredDetector(looking, choice).name == "looking after halving"
    assert RestoredDetector(looking, choice).budget_s == 0.5


def test_each_frame_by_itself(halving):
    choice, made = halving()
    sharp = RestoredSharpness(Looking(), choice)
    for _ in range(3):
        sharp.measure(np.zeros((24, 32), np.uint8))
    assert len(made) == 3


@pytest.mark.parametrize(
    ("asked", "focus", "detection"),
    [
        ({}, False, False),
        ({"before_focus": True}, True, False),
        ({"before_detection": True}, False, True),
        ({"before_focus": True, "before_detection": True}, True, True),
    ],
)
def test_only_on_request(asked, focus, detection):
    tables = {
        "instrument": {"driver": "simulated_optical"},
        "restore": {"method": "gaussian", **asked},
        "focus": {"method": "sweep"},
        "inference": {"flakes": "physics"},
    }
    settings = validated(Settings, tables, "test")
    eyes = app.eyes(settings, DetectorSettings())
    objective = Objective("20x", 20.0, 0.45, 384.0)
    assert isinstance(eyes.sharpness, RestoredSharpness) is focus
    for detector in (eyes.detector(objective, ()), *eyes.everybody(objective, ())):
        assert isinstance(detector, RestoredDetector) is detection


def test_configs_leave_it_off():
    tables, _ = load_toml(Path(__file__).resolve().parents[3] / "configs/simulated_smoke.toml")
    settings = validated(Settings, tables, "test")
    assert app.restorer_before(settings) is None
