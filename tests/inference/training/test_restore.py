"""The restoring networks' training in miniature; needs torch, which running never does."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install scopeloop[train]")
pytest.importorskip("onnx", reason="onnx is not installed: pip install scopeloop[train]")

from inference.engine import card_path, load_card  # noqa: E402
from inference.onnx_engine import OnnxEngine  # noqa: E402
from inference.restore.anchor import CHANNELS  # noqa: E402
from inference.restore.network import NetworkDenoiser  # noqa: E402
from inference.training.restore import WIDTHS, Recipe, train  # noqa: E402
from inference.training.restore_examples import CleanScene  # noqa: E402
from inference.training.restore_network import RestoreNetwork, answers, loss  # noqa: E402
from inference.training.restore_quantised import calibration, quantise  # noqa: E402


def scene(number):
    rng = np.random.default_rng(number)
    level = np.full((160, 160), 0.4, np.float32)
    for _ in range(20):
        row, column = rng.integers(0, 140, 2)
        level[row : row + rng.integers(8, 60), column : column + rng.integers(8, 60)] = rng.random()
    return CleanScene.of("picture", level + 0.1, 5.0, 60.0)


SCENES = [scene(number) for number in range(8)]
CHECKS = [scene(100 + number) for number in range(4)]


def test_untrained_it_leaves_the_linear_estimate():
    module = RestoreNetwork(WIDTHS["live"])
    said = answers(module, np.random.default_rng(1).normal(size=(CHANNELS, 24, 32)).astype("f4"))
    assert said.shape == (2, 48, 64) and not said.any()


def test_a_pixel_looks_no_further_than_the_margin():
    module = RestoreNetwork(WIDTHS["live"])
    torch.nn.init.normal_(module.head.weight)
    seen = torch.zeros(1, CHANNELS, 128, 128, requires_grad=True)
    module(seen)[0, 0, 128:136, 128:136].sum().backward()
    rows = torch.nonzero(seen.grad.abs().sum(dim=(0, 1, 3)))
    assert 2 * (64 - int(rows.min())) <= 64 and 2 * (int(rows.max()) - 67) <= 64


def test_sizes():
    counts = [
        sum(each.numel() for each in RestoreNetwork(widths).parameters())
        for widths in WIDTHS.values()
    ]
    assert counts[0] == pytest.approx(142_000, rel=0.03)
    assert counts[1] == pytest.approx(560_000, rel=0.03)


def test_the_loss_asks_for_the_truth_and_an_honest_sigma():
    target = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(1))
    answer = torch.zeros(4, 2, 32, 32)
    nothing, ratio = loss(answer, target)
    assert float(ratio) == pytest.approx(0.0, abs=1e-4)
    answer[:, 0] = 0.9 * target
    assert float(loss(answer, target)[1]) == pytest.approx(2.0 * np.log(0.1), abs=0.02)
    answer[:, 1] = np.log(0.1)
    honest = float(loss(answer, target)[0])
    for wrong in (np.log(0.02), np.log(0.5)):
        answer[:, 1] = wrong
        assert float(loss(answer, target)[0]) > honest
    assert honest < float(nothing)


def test_it_learns_stops_goes_on_and_is_run(tmp_path):
    recipe = Recipe(tmp_path, steps=60, batch=4, side_px=64, rate=4e-3)
    half = Recipe(tmp_path, steps=60, batch=4, side_px=64, most_seconds=0.0)
    assert train(SCENES, CHECKS, half).figures["steps"] == 0.0
    seen = []
    card = train(SCENES, CHECKS, recipe, lambda done, total, words: seen.append((done, words)))
    assert card.figures["steps"] == 60.0 and seen[-1][0] == 60
    assert card.figures["gain_db_picture"] > 0.02
    assert card.figures["within_90"] == pytest.approx(0.9, abs=0.04)
    assert load_card(recipe.model) == card

    denoiser = NetworkDenoiser(OnnxEngine(recipe.model, threads=1))
    noisy = np.random.default_rng(1).poisson(20.0, (75, 90)).astype(np.float32)
    assert denoiser.name == "network_live" and denoiser.restore(noisy).image.shape == (75, 90)

    coarse = tmp_path / "denoise_live_int8.onnx"
    said = quantise(recipe.model, coarse, calibration(SCENES, 1))
    assert said.precision == "int8" == load_card(coarse).precision
    assert json.loads(card_path(coarse).read_text())["name"] == "denoise_live_int8"
    rough = NetworkDenoiser(OnnxEngine(coarse, threads=1)).restore(noisy).image
    assert np.allclose(rough, denoiser.restore(noisy).image, atol=0.1 * np.sqrt(20.0))
    assert coarse.stat().st_size < 0.5 * recipe.model.stat().st_size


def test_the_same_seed_teaches_the_same(tmp_path):
    first, again = (
        train(SCENES, CHECKS, Recipe(tmp_path / name, steps=6, batch=2, side_px=64))
        for name in ("a", "b")
    )
    assert first.sha256 == again.sha256
