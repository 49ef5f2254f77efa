"""How often a detector is right: counted, drawn as a curve, written down, read back."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from inference.engine import load_card
from inference.flakes.belief import KNOTS, Belief, Beliefs, beliefs_in
from inference.flakes.physics_detector import PhysicsDetector
from inference.training import flake_beliefs
from inference.training.flake_beliefs import (
    Saying,
    calibration_error,
    corrected,
    curve,
    fitted,
    main,
    risen,
    sayings,
    settings_for,
)
from simulator.flake_frames import labelled_frame

WEIGHTS = flake_beliefs._WEIGHTS


def too_sure(count, seed=1, confidence=0.0):
    """Right 30 points less often than said."""
    rng = np.random.default_rng(seed)
    said = rng.uniform(0.4, 1.0, count)
    right = rng.random(count) < said - 0.3
    return [Saying(float(p), bool(r), confidence) for p, r in zip(said, right, strict=True)]


def test_the_curve_says_how_often():
    found = curve(too_sure(20_000))
    for knot, right in zip(KNOTS[2:], found.right[2:], strict=True):
        assert right == pytest.approx(knot - 0.3, abs=0.03)
    assert list(found.right) == sorted(found.right)


def test_it_holds_on_other_sayings():
    beliefs = fitted(too_sure(2_000, 1))
    others = too_sure(2_000, 2)
    assert calibration_error(others) == pytest.approx(0.3, abs=0.03)
    assert calibration_error(corrected(others, beliefs)) < 0.04


def test_each_kind_of_ladder_has_its_own():
    sure = [Saying(0.9, True, 1.0)] * 400
    beliefs = fitted([*sure, *too_sure(2_000)])
    assert 0.91 < beliefs.calibrated.of(0.9) < 0.95  # a quarter of it
    assert beliefs.nominal.of(0.9) < 0.7
    assert fitted([]) == Beliefs()


def test_few_sayings_change_little():
    assert curve([Saying(0.9, False, 0.0)]).of(0.9) > 0.6


def test_pools():
    values = np.array([1.0, 3.0, 2.0, 2.0, 5.0, 0.0])
    found = risen(values, np.array([1.0, 1.0, 1.0, 2.0, 1.0, 1.0]))
    assert found == pytest.approx([1.0, 2.25, 2.25, 2.25, 2.5, 2.5])


def test_what_is_said_is_held_against_the_truth():
    frame = labelled_frame(11, 3, "train", 512)
    detector = PhysicsDetector(settings_for(frame))
    shown = frame.pixels, frame.pixel_size_nm, frame.bit_depth
    answer = detector.detect_prepared(detector.prepared(*shown))
    said = sayings(frame, answer)
    assert said
    assert len(said) <= len(answer.detections)
    none = replace(frame, instance_layers=np.zeros_like(frame.instance_layers) + 30)
    assert sayings(none, answer) == []


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no trained weights in the tree")
def test_the_command_writes_card_and_file(tmp_path, monkeypatch):
    # The fit itself is slow, and tested elsewhere.
    monkeypatch.setattr(flake_beliefs, "calibrate", lambda *_: ())
    for path in WEIGHTS.parent.glob("flakenet.*"):
        shutil.copy(path, tmp_path)
    network, file = tmp_path / "flakenet.onnx", tmp_path / "physics.json"
    words = ["--frames", "simulator.flake_frames:labelled_frame", "--photographs", "1"]
    words += [
        "--side-px",
        "384",
        "--seed",
        "8",
        "--network",
        str(network),
        "--physics-file",
        str(file),
    ]
    main(words)
    before = load_card(WEIGHTS)
    after = load_card(network)
    assert beliefs_in(after.figures) != Beliefs()
    kept = {k: v for k, v in after.figures.items() if not k.startswith("right_")}
    assert kept == {k: v for k, v in before.figures.items() if not k.startswith("right_")}
    written = json.loads(file.read_text())
    assert beliefs_in(written["figures"]) != Beliefs(Belief(), Belief())
    assert "--photographs 1" in written["made_by"]
