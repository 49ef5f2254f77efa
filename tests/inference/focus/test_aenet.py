from pathlib import Path

import numpy as np
import pytest

import inference
from inference.api import BadModel
from inference.engine import Card, Tensor, load_card
from inference.focus.aenet import FEATURES, AENet, features, presence
from inference.focus.api import FocusCommand
from inference.focus.spectrum import band_powers
from inference.onnx_engine import OnnxEngine

WEIGHTS = Path(inference.__file__).parent / "weights" / "aenet.onnx"


@pytest.fixture(scope="module")
def network():
    return AENet(OnnxEngine(WEIGHTS, threads=1))


def _looks(network, make_instrument, seed, *z_dof):
    instrument = make_instrument(seed)
    return [network.look(instrument.frame(FocusCommand(z)), FocusCommand(z)) for z in z_dof]


def test_score_falls_and_defocus_grows(network, make_instrument):
    views = _looks(network, make_instrument, 1, 0.0, 3.0, 8.0, 16.0)
    scores = [v.score for v in views]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 7.5 and scores[3] < 2 and all(0 <= s <= 9 for s in scores)
    defocus = [v.defocus_dof for v in views]
    assert defocus == sorted(defocus)
    for view, truth in zip(views, (0.0, 3.0, 8.0, 16.0), strict=True):
        assert abs(view.defocus_dof - truth) < 3 * view.defocus_sigma_dof + 0.5


def test_gain_and_depth_do_not_matter(network, make_instrument):
    frame = make_instrument(2).frame(FocusCommand(4.0))
    plain = network.look(frame, FocusCommand(4.0))
    other = network.look(frame * np.uint16(7), FocusCommand(4.0))
    assert other.defocus_dof == pytest.approx(plain.defocus_dof, rel=1e-2)


def test_empty_black_and_saturated_are_flagged(network):
    rng = np.random.default_rng(3)
    empty = rng.poisson(100, (256, 256)).astype(np.uint8)
    black = np.zeros((256, 256), np.uint8)
    full = np.full((256, 256), 255, np.uint8)
    for frame, word in ((empty, "nothing"), (black, "black"), (full, "saturated")):
        view = network.look(frame, FocusCommand(0.0))
        assert not view.in_distribution and word in view.reason


def test_empty_fields_do_not_show_presence():
    rng = np.random.default_rng(4)
    highest = [
        presence(band_powers(rng.poisson(50, (256, 256)).astype(np.uint8))[0]) for _ in range(60)
    ]
    assert max(highest) < 5.0 and np.median(highest) < 2.5


def test_without_a_network_physics_answers_and_says_so(make_instrument):
    view = _looks(AENet(), make_instrument, 5, 2.0)[0]
    assert view.in_distribution and "physics only" in view.reason
    assert view.defocus_sigma_dof > 1


def test_what_the_network_does_not_know_falls_back(network):
    y, x = np.mgrid[:256, :256]
    checks = 100 + 80 * np.sign(np.sin(x * 1.3) * np.sin(y * 1.3))
    view = network.look(checks.astype(np.uint8), FocusCommand(0.0))
    assert "physics only" in view.reason


class _Liar:
    card = Card(
        name="liar",
        sha256="0" * 64,
        parameters=1,
        input=Tensor(name="a", shape=(-1, FEATURES), meaning="x"),
        output=Tensor(name="b", shape=(-1, 3), meaning="x"),
        training_command="",
        training_data="",
        figures={},
        licence="",
    )

    def describe(self):
        return "liar"

    def run(self, array):
        return np.full((1, 3), np.nan, np.float32)


def test_nonsense_from_an_engine_is_refused(make_instrument):
    with pytest.raises(BadModel, match="finite"):
        _looks(AENet(_Liar()), make_instrument, 6, 1.0)


def test_features_and_card_agree(make_instrument):
    row = features(band_powers(make_instrument(7).frame(FocusCommand(1.0)))[0])
    assert row.shape == (FEATURES,) and np.all(np.isfinite(row))
    assert load_card(WEIGHTS).parameters < 1_000_000
