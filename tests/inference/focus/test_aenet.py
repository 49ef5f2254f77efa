from pathlib import Path

import cv2
import numpy as np
import pytest

import inference
from inference.api import BadModel
from inference.engine import Card, Tensor, load_card
from inference.focus.aenet import FEATURES, AENet, features, presence
from inference.focus.api import FocusCommand
from inference.focus.blur import transfer
from inference.focus.spectrum import band_powers, grey_tile
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
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert scores[0] > 6.5 and max(scores[2:]) < 2 and all(0 <= s <= 9 for s in scores)
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


def _blurred_squares(z_dof, dose, seed):
    """Broad squares and nothing finer, seen through a disc: what looks smooth at any focus."""
    y, x = np.mgrid[:512, :512]
    plane = 1.0 + 0.5 * ((x // 60 + y // 60) % 2)
    f_y, f_x = np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None, :]
    kept = transfer("disc", np.hypot(f_x, f_y), z_dof + 0.0 * f_x * f_y)
    clean = np.fft.irfft2(np.fft.rfft2(plane) * kept, s=(512, 512))[100:356, 100:356]
    counted = np.random.default_rng(seed).poisson(np.maximum(clean, 0.0) * dose)
    return counted.astype(np.uint16)


@pytest.mark.parametrize("z_dof", [9.0, 14.0, 20.0])
@pytest.mark.parametrize("dose", [20, 200])
def test_a_far_frame_is_not_praised(network, z_dof, dose):
    view = network.look(_blurred_squares(z_dof, dose, 1), FocusCommand(0.0))
    assert view.score < 3.5
    assert z_dof < view.defocus_dof + 3.0 * view.defocus_sigma_dof


def test_sigma_is_honest(network, make_instrument):
    """Objects, probe and aperture of the tests, at any defocus."""
    rng = np.random.default_rng(8)
    off, widest = [], []
    for seed in range(40):
        z_dof = float(rng.uniform(0.0, 4.0) if seed % 2 else rng.uniform(4.0, 25.0))
        (view,) = _looks(network, make_instrument, seed, z_dof)
        off.append((view.defocus_dof - z_dof) / view.defocus_sigma_dof)
        widest.append(view.defocus_sigma_dof / (z_dof + 1.0))
    within = np.abs(off)
    assert np.mean(within < 1.0) > 0.6 and np.mean(within < 2.0) > 0.9
    assert np.median(widest) < 1.2  # sure of nothing would be easy


def test_what_the_network_does_not_know_falls_back_and_is_marked(network):
    y, x = np.mgrid[:256, :256]
    checks = 100 + 80 * np.sign(np.sin(x * 1.3) * np.sin(y * 1.3))
    page = np.full((256, 256), 230, np.uint8)
    for row in range(10, 280, 16):
        cv2.putText(page, "What it says here no lens blurs", (-4, row), 0, 0.5, (20,), 1)
    waves = 120 + 90 * np.sin(0.31 * x + 0.12 * y)
    for frame in (checks, page, waves):
        view = network.look(frame.astype(np.uint8), FocusCommand(0.0))
        assert "physics only" in view.reason and not view.in_distribution
        assert view.defocus_sigma_dof >= 1.0


def test_the_rest_of_a_larger_frame_is_asked_too(network, make_instrument):
    """The centre holds little; the corners tell."""
    sharp = make_instrument(9).frame(FocusCommand(0.5))
    rng = np.random.default_rng(9)
    wide = rng.poisson(200, (600, 600)).astype(np.uint16)
    for down in (0, 344):
        for across in (0, 344):
            wide[down : down + 256, across : across + 256] = sharp
    assert network.look(wide, FocusCommand(0.0)).defocus_dof < 2.5
    assert len(_Counting(network.engine).rows(wide)) == 5


class _Counting:
    def __init__(self, engine):
        self._engine = engine
        self.card = engine.card
        self.asked = []

    def describe(self):
        return "counting"

    def run(self, array):
        self.asked.append(array)
        return self._engine.run(array)

    def rows(self, frame):
        AENet(self).look(frame, FocusCommand(0.0))
        return self.asked[0]


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
        return np.full((len(array), 3), np.nan, np.float32)


def test_nonsense_from_an_engine_is_refused(make_instrument):
    with pytest.raises(BadModel, match="finite"):
        _looks(AENet(_Liar()), make_instrument, 6, 1.0)


def test_features_and_card_agree(make_instrument):
    frame = make_instrument(7).frame(FocusCommand(1.0))
    row = features(band_powers(frame)[0], grey_tile(frame))
    card = load_card(WEIGHTS)
    assert row.shape == (FEATURES,) and np.all(np.isfinite(row))
    assert card.input.shape == (-1, FEATURES)
    assert card.parameters <= 300_000
