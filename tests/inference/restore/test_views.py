"""The computed views: what they sharpen, what they refuse, and what they say."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import inference
from inference.api import BadModel
from inference.onnx_engine import OnnxEngine
from inference.restore.api import NoiseModel
from inference.restore.classical import RadialWiener
from inference.restore.scores import psnr_db
from inference.restore.views import SCALES, ComputedView, enlarged

WEIGHTS = Path(inference.__file__).parent / "weights"
COUNTS = NoiseModel(1.0, 0.0, 0.0)


def discs(side_px=192, count=40, seed=4):
    rng = np.random.default_rng(seed)
    plane = np.full((side_px, side_px), 0.3, np.float32)
    for x, y, r in rng.uniform((0, 0, 4), (side_px, side_px, 14), (count, 3)).astype(int):
        cv2.circle(plane, (int(x), int(y)), int(r), float(rng.uniform(0.4, 1.0)), -1)
    return plane


def view(name):
    return ComputedView(OnnxEngine(WEIGHTS / f"{name}.onnx", threads=1), SCALES[name])


def counted(plane, seed=1):
    return np.random.default_rng(seed).poisson(plane).astype(np.float32)


def test_a_blurred_frame_is_nearer_to_the_sharp_one_than_a_filter_brings_it():
    truth = discs() * np.float32(64.0)
    frame = counted(cv2.GaussianBlur(truth, (0, 0), 1.8))
    answer = view("refocus").view(frame, COUNTS)
    filtered = RadialWiener().restore(frame, COUNTS).image
    assert psnr_db(answer.image, truth, 64.0) > psnr_db(filtered, truth, 64.0) + 0.5
    assert answer.in_distribution and answer.method == "refocus" and answer.reason == ""


def test_twice_as_fine_has_twice_the_pixels_and_the_same_level():
    truth = discs(side_px=190) * np.float32(200.0)
    coarse = truth.reshape(95, 2, 95, 2).mean(axis=(1, 3))
    answer = view("magnify").view(counted(coarse), COUNTS)
    assert answer.image.shape == answer.sigma.shape == truth.shape
    assert answer.image.mean() == pytest.approx(truth.mean(), rel=0.01)
    filtered = enlarged(RadialWiener().restore(counted(coarse), COUNTS).image, 2)
    assert psnr_db(answer.image, truth, 200.0) > psnr_db(filtered, truth, 200.0)


def test_beyond_what_it_learnt_the_linear_estimate_is_shown_and_said():
    class Wild:
        card = OnnxEngine(WEIGHTS / "refocus.onnx", threads=1).card

        def run(self, seen):
            n, _, height, width = seen.shape
            answer = np.full((n, 2, 2 * height, 2 * width), 99.0, np.float32)
            answer[:, 1] = 1.0  # of its error it says no more than it ever may
            return answer

    answer = ComputedView(Wild(), 1).view(counted(discs() * np.float32(40.0)), COUNTS)
    assert not answer.in_distribution and "far more" in answer.reason
    assert answer.method == "refocus: linear estimate"
    assert 0.0 < answer.image.mean() < 80.0


def test_another_network_is_refused():
    with pytest.raises(BadModel, match="takes"):
        ComputedView(OnnxEngine(WEIGHTS / "aenet.onnx", threads=1), 1)
    with pytest.raises(BadModel, match="does not say most_correction"):
        engine = OnnxEngine(WEIGHTS / "refocus.onnx", threads=1)
        figures = {k: v for k, v in engine.card.figures.items() if k != "most_correction"}

        class Silent:
            card = engine.card.model_copy(update={"figures": figures})

        ComputedView(Silent(), 1)
