import builtins
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from inference.api import NoEngine
from inference.engine import load_card
from inference.focus.aenet import AENet
from inference.focus.api import FocusCommand
from inference.onnx_engine import OnnxEngine
from inference.training import focus
from inference.training.focus import FocusTraining, auroc, train


def test_torch_is_not_imported_before_it_is_needed():
    code = "import sys, inference.training.focus; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert done.returncode == 0


def test_without_torch_it_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def none(name, *args, **kwargs):
        if name.split(".")[0] == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(NoEngine, match="pip install"):
        train(FocusTraining(tmp_path))
    assert not list(tmp_path.iterdir())


def test_auroc():
    low, high = np.array([0.0, 1.0, 2.0]), np.array([3.0, 4.0])
    assert auroc(high, low) == 1.0
    assert auroc(low, high) == 0.0
    rng = np.random.default_rng(1)
    assert auroc(rng.normal(size=4_000), rng.normal(size=4_000)) == pytest.approx(0.5, abs=0.03)


def test_frames_do_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(focus, "_BLOCK_OBJECTS", 1)
    monkeypatch.setattr(focus, "_FIELDS_EACH", 1)
    alone = FocusTraining(tmp_path, objects=8, jobs=1)
    found = [focus._made(each, lambda *_: None) for each in (alone, replace(alone, jobs=2))]
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one.features, two.features)


def test_a_small_training_gives_a_network_that_answers(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    said = []
    settings = FocusTraining(tmp_path, objects=80, epochs=2, jobs=1, device="cpu")
    card = train(settings, lambda *words: said.append(words))
    assert [done for done, _, _ in said] == sorted(done for done, _, _ in said)
    assert said[-1][0] == said[-1][1]
    assert card == load_card(tmp_path / "aenet.onnx")
    assert card.parameters <= 300_000 and card.figures["test_frames"] > 0
    frame = np.random.default_rng(1).poisson(50, (256, 256)).astype(np.uint16)
    frame[64:192, 64:192] += 60
    view = AENet(OnnxEngine(tmp_path / "aenet.onnx")).look(frame, FocusCommand(0.0))
    assert 0.0 <= view.score <= 9.0 and view.defocus_sigma_dof > 0.0
