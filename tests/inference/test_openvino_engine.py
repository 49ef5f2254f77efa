import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import inference
from inference.api import BadModel, NoEngine
from inference.engine import card_path
from inference.onnx_engine import OnnxEngine
from inference.openvino_engine import OpenVinoEngine, openvino_here

MODELS = sorted((Path(inference.__file__).parent / "weights").glob("*.onnx"))
AENET = next(model for model in MODELS if model.stem == "aenet")


@pytest.fixture
def _installed():
    try:
        openvino_here()
    except NoEngine as error:
        pytest.skip(str(error))


def _batch(engine):
    first, *others = engine.card.input.shape
    shape = [first if first > 0 else 2, *(64 if side < 0 else side for side in others)]
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.stem)
def test_says_what_onnxruntime_says(model):
    ours, theirs = OpenVinoEngine(model, threads=1, precision="float32"), OnnxEngine(model, 1)
    batch = _batch(ours)
    expected = theirs.run(batch)
    # int8 files are rounded alike in both, but a value on a rounding edge may fall either way.
    room = 5e-2 if ours.card.precision == "int8" else 1e-3
    np.testing.assert_allclose(ours.run(batch), expected, atol=room * (1 + np.abs(expected).max()))
    assert "OpenVINO" in ours.describe() and "float32" in ours.describe()


@pytest.mark.usefixtures("_installed")
def test_an_answer_is_not_written_over_by_the_next():
    engine = OpenVinoEngine(AENET, threads=1)
    batch = _batch(engine)
    first = engine.run(batch)
    kept = first.copy()
    engine.run(batch + 1.0)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.usefixtures("_installed")
def test_refuses_other_shapes_and_broken_files(tmp_path):
    with pytest.raises(BadModel, match="must be"):
        OpenVinoEngine(AENET, threads=1).run(np.zeros((1, 31), np.float32))
    broken = tmp_path / "aenet.onnx"
    broken.write_bytes(b"not an onnx file")
    shutil.copy(card_path(AENET), card_path(broken))
    with pytest.raises(BadModel, match="hash"):
        OpenVinoEngine(broken)
    card = json.loads(card_path(AENET).read_text(encoding="utf-8"))
    card["sha256"] = __import__("hashlib").sha256(broken.read_bytes()).hexdigest()
    card_path(broken).write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(BadModel, match="cannot load"):
        OpenVinoEngine(broken)


@pytest.mark.usefixtures("_installed")
def test_without_a_word_the_arithmetic_is_the_cards():
    assert "float32" in OpenVinoEngine(AENET, threads=1).describe()


def test_without_the_runtime_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(NoEngine, match=r"scopeloop\[openvino\]"):
        OpenVinoEngine(AENET)
