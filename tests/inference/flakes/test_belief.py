"""Layer probabilities as they should be said."""

import json

import numpy as np
import pytest

from inference.api import BadModel
from inference.flakes import belief
from inference.flakes.belief import (
    KNOTS,
    PHYSICS_FILE,
    Belief,
    Beliefs,
    beliefs_in,
    believed,
    faint_materials,
    physics_beliefs,
)
from inference.flakes.calibration import nominal_calibration
from inference.flakes.ladder import Optics, ladder
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector

MODEST = Belief(tuple(0.5 * knot for knot in KNOTS))
RANKED = ((2, 0.9), (3, 0.06), (1, 0.02))


@pytest.fixture
def a_photograph():
    """Two squares of graphene."""
    steps = ladder("graphene", nominal_calibration(90.0), Optics())
    image = np.ones((256, 320, 3)) * np.array([150.0, 120.0, 140.0])
    for x, layers in ((60, 1), (180, 3)):
        image[80:130, x : x + 50] *= 1.0 + steps.at(layers)
    image += np.random.default_rng(3).normal(0.0, 0.7, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def test_nothing_fitted_changes_nothing():
    for confidence in (0.0, 0.3, 1.0):
        found = Beliefs().applied(RANKED, confidence)
        assert [n for n, _ in found] == [2, 3, 1]
        assert [p for _, p in found] == pytest.approx([p for _, p in RANKED])


@pytest.mark.parametrize(
    ("confidence", "first"), [(0.0, 0.45), (0.4, 0.675), (0.8, 0.9), (1.0, 0.9)]
)
def test_the_calibrations_confidence_decides_between_the_curves(confidence, first):
    found = Beliefs(nominal=MODEST).applied(RANKED, confidence)
    assert found[0] == (2, pytest.approx(first))


def test_faint_crystals_have_a_curve_of_their_own():
    calibration = nominal_calibration(90.0)
    ladders = [ladder(key, calibration, Optics()) for key in ("graphene", "hbn", "mos2")]
    assert faint_materials(ladders) == {"hbn"}
    beliefs = Beliefs(faint=MODEST)
    assert beliefs.applied(RANKED, 1.0)[0] == (2, pytest.approx(0.9))
    assert beliefs.applied(RANKED, 1.0, True)[0] == (2, pytest.approx(0.45))


def test_what_the_first_loses_goes_to_the_others():
    found = Beliefs(nominal=MODEST).applied(RANKED, 0.0)
    assert found[1][1] / found[2][1] == pytest.approx(3.0)
    assert 1.0 - found[0][1] - found[1][1] - found[2][1] == pytest.approx(0.55 * 0.2)


@pytest.mark.parametrize("said", [1.0, 0.51, 0.4, 0.05])
def test_the_order_stays(said):
    ranked = ((5, said), (6, 0.9 * min(said, 1.0 - said)), (7, 0.0))
    low = Beliefs(nominal=Belief(tuple(0.1 * knot for knot in KNOTS)))
    found = [p for _, p in low.applied(ranked, 0.0)]
    assert found == sorted(found, reverse=True)
    assert sum(found) <= 1.0
    assert low.applied((), 0.0) == ()


def test_figures_bring_the_curves_back():
    beliefs = Beliefs(MODEST, Belief(tuple(0.9 * knot for knot in KNOTS)))
    back = beliefs_in({**beliefs.as_figures(), "iou_1": 0.6})
    assert back.nominal.right == pytest.approx(beliefs.nominal.right, abs=1e-4)
    assert back.calibrated.right == pytest.approx(beliefs.calibrated.right, abs=1e-4)
    assert beliefs_in({"iou_1": 0.6}) == Beliefs()


@pytest.mark.parametrize("change", [None, 1.5, -0.1])
def test_a_broken_curve_is_refused(change):
    figures = Beliefs(MODEST, MODEST).as_figures()
    name = next(iter(figures))
    if change is None:
        del figures[name]
    else:
        figures[name] = change
    with pytest.raises(BadModel, match="no curve"):
        beliefs_in(figures)


def test_the_physics_curves_are_there():
    figures = json.loads(PHYSICS_FILE.read_text())["figures"]
    assert physics_beliefs() == beliefs_in(figures)
    assert physics_beliefs() != Beliefs()


@pytest.mark.parametrize("text", ["", "[]", '{"figures": 3}', '{"figures": {"a": "b"}}'])
def test_a_broken_file_is_named(tmp_path, monkeypatch, text):
    path = tmp_path / "beliefs.json"
    path.write_text(text)
    monkeypatch.setattr(belief, "PHYSICS_FILE", path)
    physics_beliefs.cache_clear()
    with pytest.raises(BadModel, match=r"beliefs\.json"):
        physics_beliefs()
    physics_beliefs.cache_clear()


def test_an_answer_keeps_everything_else(a_photograph):
    detector = PhysicsDetector(DetectorSettings())
    answer = detector.detect_prepared(detector.prepared(a_photograph, 384.0))
    found = believed(answer, Beliefs(MODEST, MODEST), [])
    assert len(found.detections) == len(answer.detections) > 0
    for one, two in zip(answer.detections, found.detections, strict=True):
        assert one.layers == two.layers == two.layer_probabilities[0][0]
        assert two.score == one.score
        assert two.mask is one.mask
        said = one.layer_probabilities[0][1]
        assert two.layer_probabilities[0][1] == pytest.approx(MODEST.of(said))
