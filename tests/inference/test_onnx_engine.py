import shutil
from pathlib import Path

import numpy as np
import pytest

import inference
from inference.api import BadModel, NoEngine
from inference.engine import card_path
from inference.onnx_engine import OnnxEngine

WEIGHTS = Path(inference.__file__).parent / "weights" / "aenet.onnx"


def test_runs_batches_that_agree_with_single_rows():
    engine = OnnxEngine(WEIGHTS, threads=1)
    rows = np.random.default_rng(1).normal(size=(5, engine.card.input.shape[1])).astype(np.float32)
    together = engine.run(rows)
    assert together.shape == (5, 3) and together.dtype == np.float32
    for row, answer in zip(rows, together, strict=True):
        assert engine.run(row[None])[0] == pytest.approx(answer, rel=1e-4, abs=1e-5)
    assert "onnxruntime" in engine.describe() and engine.card.name in engine.describe()


def test_refuses_other_shapes():
    with pytest.raises(BadModel, match="must be"):
        OnnxEngine(WEIGHTS, threads=1).run(np.zeros((1, 31), np.float32))


def test_a_broken_file_is_refused(tmp_path):
    model = tmp_path / "aenet.onnx"
    shutil.copy(card_path(WEIGHTS), card_path(model))
    model.write_bytes(b"not an onnx file")
    with pytest.raises(BadModel, match="hash"):
        OnnxEngine(model)
    card = (
        card_path(model)
        .read_text()
        .replace(
            __import__("json").loads(card_path(model).read_text())["sha256"],
            __import__("hashlib").sha256(b"not an onnx file").hexdigest(),
        )
    )
    card_path(model).write_text(card)
    with pytest.raises(BadModel, match="cannot load"):
        OnnxEngine(model)


def test_without_the_runtime_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(NoEngine, match="pip install onnxruntime"):
        OnnxEngine(WEIGHTS)
