"""The composition root: which engine is opened, and what is said when it is not the wanted one."""

import numpy as np
import pytest

from controller import app
from controller.settings import InferenceSettings, Settings
from inference.api import BadModel, NoEngine

AUTO, ONNX, TENSORRT = (InferenceSettings(engine=e) for e in ("auto", "onnx", "tensorrt"))


@pytest.fixture
def machine(monkeypatch):
    """One with a GPU, or not, and a TensorRT that loads, or not."""

    class Opened:
        def __init__(self, model, *_):
            self.model = model

    def with_gpu(error=None):
        def opened(model, *_):
            if error is not None:
                raise error
            return Opened(model)

        monkeypatch.setattr(app, "tensorrt_here", lambda: "tensorrt 11.4, H100")
        monkeypatch.setattr(app, "TensorRTEngine", opened)

    def without_gpu():
        def lacks(*_):
            raise NoEngine("no NVIDIA driver here")

        monkeypatch.setattr(app, "tensorrt_here", lacks)
        monkeypatch.setattr(app, "TensorRTEngine", lacks)

    def without_onnxruntime():
        def lacks(*_):
            raise NoEngine("onnxruntime is not installed")

        monkeypatch.setattr(app, "onnxruntime_here", lacks)
        monkeypatch.setattr(app, "OnnxEngine", lacks)

    def lacks_openvino():
        raise NoEngine("openvino is not installed")

    monkeypatch.setattr(app, "openvino_here", lacks_openvino)

    class Machine:
        pass

    made = Machine()
    made.with_gpu, made.without_gpu = with_gpu, without_gpu
    made.without_onnxruntime = without_onnxruntime
    made.tensorrt = Opened
    return made


@pytest.fixture
def said():
    return []


def test_the_gpu_where_there_is_one(machine, said):
    machine.with_gpu()
    for wanted in (AUTO, TENSORRT):
        assert isinstance(app.open_network("aenet", wanted, said.append), machine.tensorrt)
    assert "onnxruntime" in app.open_network("aenet", ONNX, said.append).describe()
    assert not said


def test_the_processor_where_there_is_none(machine, said):
    machine.without_gpu()
    assert "onnxruntime" in app.open_network("aenet", AUTO, said.append).describe()
    assert not said  # nothing is wrong with a machine without a GPU
    with pytest.raises(NoEngine, match="no NVIDIA driver"):
        app.open_network("aenet", TENSORRT, said.append)


def test_openvino_for_what_bears_coarser_arithmetic(machine, monkeypatch, said):
    machine.without_gpu()
    monkeypatch.setattr(app, "openvino_here", lambda: "2026.4")
    monkeypatch.setattr(app, "OpenVinoEngine", lambda model: f"openvino runs {model.stem}")
    assert "onnxruntime" in app.open_network("aenet", AUTO, said.append).describe()
    wanted = InferenceSettings(engine="openvino")
    assert app.open_network("aenet", wanted) == "openvino runs aenet"
    card = app.load_card(app.models()[0]).model_copy(update={"precision": "bfloat16"})
    monkeypatch.setattr(app, "load_card", lambda model: card)
    assert app.open_network("aenet", AUTO, said.append) == "openvino runs aenet"
    assert not said


@pytest.mark.parametrize("error", [NoEngine("no kernels for H100"), BadModel("no Frobnicate")])
def test_a_gpu_that_does_not_serve_is_said(machine, said, error):
    machine.with_gpu(error)
    assert "onnxruntime" in app.open_network("aenet", AUTO, said.append).describe()
    assert said == [f"aenet: not on TensorRT, because {error}"]
    with pytest.raises(type(error), match=str(error)):
        app.open_network("aenet", TENSORRT, said.append)


def test_physics_where_nothing_runs(machine, said):
    machine.without_gpu()
    machine.without_onnxruntime()
    assert app.open_network("aenet", AUTO, said.append) is None
    assert said == ["aenet: physics only, because onnxruntime is not installed"]
    with pytest.raises(NoEngine):
        app.open_network("aenet", ONNX, said.append)


@pytest.fixture
def flakenet(monkeypatch, tmp_path):
    """Weights by that name; what they are does not matter to who chooses."""
    model = tmp_path / "flakenet.onnx"
    monkeypatch.setattr(app, "models", lambda: (model,))
    monkeypatch.setattr(app, "OnnxEngine", lambda model: f"engine of {model.stem}")
    return model


def test_flakenet_where_it_is(machine, flakenet):
    machine.without_gpu()
    for flakes in ("auto", "network"):
        made = app.flake_detector(InferenceSettings(flakes=flakes))
        leads = app.detector_that_leads if flakes == "auto" else app.FlakeNetDetector
        assert made.func is leads
        assert made.args == ("engine of flakenet",)
    assert app.flake_detector(InferenceSettings(flakes="physics")) is app.PhysicsDetector


def test_physics_where_flakenet_is_not(machine, monkeypatch):
    machine.without_gpu()
    monkeypatch.setattr(app, "models", lambda: ())
    assert app.flake_detector(InferenceSettings()) is app.PhysicsDetector
    with pytest.raises(NoEngine, match="scopeloop train flakes"):
        app.flake_detector(InferenceSettings(flakes="network"))


def test_sweeps_alone_need_no_network(machine):
    settings = Settings.model_validate(
        {"instrument": {"driver": "replay"}, "focus": {"method": "sweep"}}
    )
    assert app.eyes(settings, app.DetectorSettings()).aenet is None


def test_engines_say_what_they_lack(machine):
    machine.without_gpu()
    tensorrt, _, onnx = app.engines()
    assert (tensorrt.version, tensorrt.lack) == ("", "no NVIDIA driver here")
    assert onnx.version.endswith("CPU")
    assert not onnx.lack
    machine.with_gpu()
    assert app.engines()[0].version == "tensorrt 11.4, H100"


def test_flake_examples_follow_from_the_seed():
    first = list(app.flake_examples(3, 2, 0.0, jobs=1))
    assert 1 <= len(first) <= 2
    again = list(app.flake_examples(3, 2, 0.0, jobs=2))
    assert len(again) == len(first)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.planes, other.planes)
        assert np.array_equal(one.classes, other.classes)
    (other,) = list(app.flake_examples(4, 1, 0.0, jobs=1))
    assert not np.array_equal(first[0].planes, other.planes)
