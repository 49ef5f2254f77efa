"""TensorRT: parsed and built for real where a package is; run on a stand-in, and on a GPU's own."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import inference
from inference import tensorrt_engine
from inference.api import BadModel, NoEngine
from inference.cuda import Cuda
from inference.engine import Tensor, card_path, load_card
from inference.engine_cache import EngineCache
from inference.onnx_engine import OnnxEngine
from inference.tensorrt_engine import (
    MOST_BATCH,
    Profile,
    TensorRTEngine,
    build_plan,
    find_package,
    profile_for,
)

# Those in 8-bit integers are for processors: biases as integers, ranges that are not symmetric.
MODELS = [
    model
    for model in sorted((Path(inference.__file__).parent / "weights").glob("*.onnx"))
    if load_card(model).precision != "int8"
]


@pytest.fixture(scope="module")
def package():
    try:
        return find_package()
    except NoEngine as error:
        pytest.skip(str(error))


# --- parsed and built, no GPU needed ------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=[m.stem for m in MODELS])
def test_every_model_is_understood_and_built(package, model):
    if package.__name__ == "tensorrt":
        pytest.skip("TensorRT builds only where a GPU is; TensorRT for RTX anywhere")
    card = load_card(model)
    plan = build_plan(package, model, card, profile_for(card.input))
    assert len(plan) > 4 * card.parameters  # the weights are in it


def test_what_is_no_network_is_named(package, doubling):
    with pytest.raises(BadModel, match=r"does not understand doubling\.onnx"):
        build_plan(package, doubling, load_card(doubling), profile_for(load_card(doubling).input))


def test_a_card_of_other_tensors_is_refused(package):
    card = load_card(MODELS[0])
    other = card.model_copy(update={"input": card.input.model_copy(update={"name": "pixels"})})
    with pytest.raises(BadModel, match="its card says pixels"):
        build_plan(package, MODELS[0], other, profile_for(card.input))


def test_free_dimensions_are_batches_and_pixels():
    tensor = Tensor(name="x", shape=(-1, 3, -1, 64), meaning="pixels")
    assert profile_for(tensor) == Profile((1, 3, 8, 64), (1, 3, 512, 64), (4, 3, 1_024, 64))
    tensor = Tensor(name="x", shape=(-1, 3, 64), meaning="rows")
    assert profile_for(tensor) == Profile((1, 3, 64), (2, 3, 64), (64, 3, 64))


# --- run, on a stand-in -------------------------------------------------------------------------


@pytest.fixture
def engine(doubling, rtx, driver):
    return TensorRTEngine(doubling, package=rtx, cuda=Cuda(driver()))


def test_runs_any_batch_in_turn(engine):
    rng = np.random.default_rng(1)
    for rows in (1, 2, 7, 64, 3, 3):
        batch = rng.normal(size=(rows, 4)).astype(np.float32)
        assert np.array_equal(engine.run(batch), 2 * batch)
    strided = rng.normal(size=(4, 6)).astype(np.float32).T[:, ::1]
    assert np.array_equal(engine.run(strided), 2 * strided)
    assert engine.describe() == "doubling, tensorrt_rtx 9.9, Fake GPU, float32"
    assert engine.card.name == "doubling"


def test_an_answer_outlives_the_next_run(engine):
    first = engine.run(np.ones((2, 4), np.float32))
    engine.run(np.zeros((2, 4), np.float32))
    assert np.array_equal(first, np.full((2, 4), 2, np.float32))


def test_buffers_are_kept(doubling, rtx, driver):
    words = driver()
    engine = TensorRTEngine(doubling, package=rtx, cuda=Cuda(words))
    engine.run(np.ones((8, 4), np.float32))
    words.done.clear()
    for rows in (8, 8, 2, 8):
        engine.run(np.ones((rows, 4), np.float32))
    assert not [word for word in words.done if "Alloc" in word or "Free" in word]


def test_buffers_that_are_outgrown_are_given_back(doubling, rtx, driver):
    words = driver()
    engine = TensorRTEngine(doubling, package=rtx, cuda=Cuda(words))
    for rows in (4, 16, 64):
        engine.run(np.ones((rows, 4), np.float32))
        assert len(words.kept) == 4  # of input and answer, on both sides


def test_runs_in_another_thread(engine):
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(engine.run, np.ones((2, 4), np.float32)).result()
    assert np.array_equal(answer, np.full((2, 4), 2, np.float32))


@pytest.mark.parametrize("shape", [(1, 5), (4,), (MOST_BATCH + 1, 4), (0, 4)])
def test_refuses_other_shapes(engine, shape):
    with pytest.raises(BadModel, match="must be"):
        engine.run(np.zeros(shape, np.float32))


def test_an_answer_of_another_shape_is_refused(doubling, rtx, driver):
    rtx.answer_columns = 5
    with pytest.raises(BadModel, match="y must be"):
        TensorRTEngine(doubling, package=rtx, cuda=Cuda(driver())).run(np.zeros((2, 4), np.float32))


def test_built_once(doubling, rtx, driver, tmp_path):
    cache = EngineCache(tmp_path / "engines")
    for _ in range(3):
        TensorRTEngine(doubling, cache, package=rtx, cuda=Cuda(driver()))
    assert rtx.built == 1
    assert rtx.kernels == [b"kernels", b"kernels"]


def test_built_again_for_another_gpu_or_release(doubling, rtx, driver, tmp_path):
    cache = EngineCache(tmp_path / "engines")
    TensorRTEngine(doubling, cache, package=rtx, cuda=Cuda(driver()))
    other = Cuda(driver())
    other.gpu = replace(other.gpu, name="Another GPU")
    TensorRTEngine(doubling, cache, package=rtx, cuda=other)
    assert rtx.built == 2
    rtx.__version__ = "10.0"
    TensorRTEngine(doubling, cache, package=rtx, cuda=Cuda(driver()))
    assert rtx.built == 3


def test_a_plan_that_is_no_longer_valid_is_built_again(doubling, rtx, driver, tmp_path):
    cache = EngineCache(tmp_path / "engines")
    first = TensorRTEngine(doubling, cache, package=rtx, cuda=Cuda(driver()))
    cache.save(first._key, b"plan of yesterday")
    TensorRTEngine(doubling, cache, package=rtx, cuda=Cuda(driver()))
    assert rtx.built == 2
    assert cache.load(first._key) == b"plan"


def test_a_gpu_that_is_not_served(doubling, rtx, driver):
    rtx.is_served = False
    with pytest.raises(NoEngine, match="does not run on Fake GPU: no kernels for this GPU"):
        TensorRTEngine(doubling, package=rtx, cuda=Cuda(driver()))


def test_a_gpu_that_fails(engine, rtx):
    rtx.is_run = False
    with pytest.raises(NoEngine, match="the GPU fell off the bus"):
        engine.run(np.zeros((2, 4), np.float32))


def test_without_a_package_it_says_what_to_install(monkeypatch):
    for name in tensorrt_engine.PACKAGES:
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(NoEngine, match=r"pip install scopeloop\[tensorrt-rtx\]"):
        find_package()


def test_file_and_card_must_agree(doubling, rtx, driver):
    doubling.write_bytes(b"other weights")
    with pytest.raises(BadModel, match="hash"):
        TensorRTEngine(doubling, package=rtx, cuda=Cuda(driver()))


# --- run, on a GPU ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=[m.stem for m in MODELS])
def test_the_gpu_answers_as_the_processor_does(package, model, tmp_path):
    copy = tmp_path / model.name
    shutil.copy(model, copy)
    shutil.copy(card_path(model), card_path(copy))
    cache = EngineCache(tmp_path / "engines")
    try:
        engine = TensorRTEngine(copy, cache)
    except NoEngine as error:
        pytest.skip(str(error))
    shape = profile_for(engine.card.input).usual
    batch = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    wanted = OnnxEngine(model, threads=1).run(batch)
    assert engine.run(batch) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert TensorRTEngine(copy, cache).run(batch) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
