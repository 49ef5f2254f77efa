"""The exit wave's training: its parts, and a miniature of all of it where torch is."""

import numpy as np
import pytest

from inference.training.wave_examples import WaveExample
from simulator.exit_waves import wave_scene


def examples(role, many):
    for number in range(many):
        scene = wave_scene(9, number, role, 192)
        yield WaveExample.of(scene.wave, scene.pixel_size_nm, scene.voltage_kv)


def test_a_wave_survives_being_kept():
    scene = wave_scene(9, 0, "train", 192)
    kept = WaveExample.of(scene.wave, scene.pixel_size_nm, scene.voltage_kv)
    back = kept.wave(slice(10, 50), slice(0, 30))
    assert np.allclose(back, scene.wave[10:50, :30], atol=2e-3)


def test_a_miniature_training_writes_a_network_that_can_be_used(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from inference.engine import load_card
    from inference.onnx_engine import OnnxEngine
    from inference.restore.exit_wave import PLANES
    from inference.training.exit_wave import Recipe, train

    words = []
    card = train(
        examples("train", 2),
        examples("graphene", 1),
        examples("unseen", 1),
        tmp_path,
        Recipe.quick(),
        lambda done, total, doing: words.append(doing),
    )
    assert load_card(tmp_path / "exit_wave.onnx") == card
    assert "psnr_net_1e+04" in card.figures
    engine = OnnxEngine(tmp_path / "exit_wave.onnx", 1)
    answer = engine.run(np.zeros((1, PLANES, 48, 64), np.float32))
    assert answer.shape == (1, 2, 48, 64)
    assert words
