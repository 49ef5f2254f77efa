"""Every model on every engine; one that is missing is a row that says why."""

import numpy as np
import pytest

from controller import app
from controller.bench import engines
from inference.api import NoEngine
from inference.focus.aenet import FEATURES
from inference.onnx_engine import OnnxEngine


@pytest.fixture
def rows(monkeypatch):
    """What is measured, by name, on a machine whose TensorRT is `tensorrt(model)`."""

    def measured(tensorrt):
        def lacks(model):
            raise NoEngine("openvino is not installed")

        monkeypatch.setattr(app, "TensorRTEngine", lambda model, cache: tensorrt(model))
        monkeypatch.setattr(app, "OpenVinoEngine", lacks)
        return {row.name: row for row in engines.measure(quick=True, seed=1)}

    return measured


def test_a_missing_engine_says_why(rows):
    def lacks(model):
        raise NoEngine("no NVIDIA driver here")

    found = rows(lacks)
    missing = found[f"aenet on TensorRT, batch of (2, {FEATURES})"]
    assert (missing.value, missing.note) == (None, "no NVIDIA driver here")
    assert found[f"aenet on onnxruntime, batch of (2, {FEATURES})"].value > 0
    assert found["aenet on onnxruntime, two frames"].bar == 15.0
    assert not any("difference" in name for name in found)


def test_answers_are_compared(rows):
    class Off(OnnxEngine):
        def run(self, array):
            return super().run(array) + np.float32(0.25)

    found = rows(Off)
    differences = [row for name, row in found.items() if "difference" in name]
    assert len(differences) == len(app.models())
    for difference in differences:
        assert difference.value == pytest.approx(0.25, rel=1e-3)
        assert not difference.met
    assert found["aenet on TensorRT, two frames"].bar == 2.0
