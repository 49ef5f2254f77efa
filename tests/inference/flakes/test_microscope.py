import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from inference.api import BadModel, Calibration
from inference.flakes.calibration import (
    Level,
    SubstrateCalibration,
    fit_calibration,
    nominal_calibration,
    save_calibration,
)
from inference.flakes.ladder import Correction, Optics, bare_signal, ladder
from inference.flakes.microscope import (
    Microscope,
    load_microscope,
    microscope_of,
    oxide_from_substrate,
    save_microscope,
    white_of,
)
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, calibrate

OPTICS = Optics()
WHITE = (610.0, 800.0, 540.0)


def substrate(oxide_nm, exposure=1.0, white=WHITE):
    r, g, b = exposure * np.asarray(white) * bare_signal(oxide_nm, OPTICS)
    return float(r), float(g), float(b)


def wafer(oxide_nm, gains=(1.0, 1.0, 1.0), confidence=0.9):
    return SubstrateCalibration(
        substrate(oxide_nm), Calibration(oxide_nm, gains, confidence, "fitted on 9 regions")
    )


# --- the substrate's tint --------------------------------------------------------------------


@pytest.mark.parametrize("oxide_nm", [80.0, 90.0, 98.0, 275.0, 300.0])
@pytest.mark.parametrize("exposure", [0.5, 1.0, 1.7])
def test_the_oxide_is_read_from_a_bare_substrate(oxide_nm, exposure):
    nominal = 90.0 if oxide_nm < 200.0 else 285.0
    read = oxide_from_substrate(substrate(oxide_nm, exposure), WHITE, nominal, OPTICS)
    assert read.oxide_nm == pytest.approx(oxide_nm, abs=1.5)
    assert 0.3 < read.confidence < 0.9
    assert "substrate" in read.source


def test_the_white_comes_from_wafers_that_terraces_have_explained():
    known = [wafer(88.0), wafer(96.0), wafer(285.0, confidence=0.0)]
    np.testing.assert_allclose(white_of(known, OPTICS), WHITE, rtol=0.01)
    assert white_of([wafer(90.0, confidence=0.0)], OPTICS) == (0.0, 0.0, 0.0)


def test_a_tint_that_no_oxide_has_is_not_read():
    r, g, b = substrate(90.0)
    assert oxide_from_substrate((r * 1.5, g, b), WHITE, 90.0, OPTICS) is None
    assert oxide_from_substrate((r, g, b), (0.0, 0.0, 0.0), 90.0, OPTICS) is None
    assert oxide_from_substrate((0.0, 0.0, 0.0), WHITE, 90.0, OPTICS) is None


# --- the correction --------------------------------------------------------------------------


def test_what_wafers_share_is_the_microscopes():
    known = [wafer(88.0, (0.8, 0.95, 1.0)), wafer(96.0, (0.82, 0.95, 1.0), 0.5)]
    found = microscope_of(known, OPTICS, "two wafers")
    np.testing.assert_allclose(found.correction.gain_rgb, (0.807, 0.95, 1.0), atol=0.002)
    assert found.wafers[0].calibration.gain_rgb[0] == pytest.approx(0.8 / 0.807, abs=0.002)
    corrected = replace(OPTICS, correction=found.correction)
    for before, after in zip(known, found.wafers, strict=True):
        np.testing.assert_allclose(
            ladder("graphene", after.calibration, corrected).contrast_rgb,
            ladder("graphene", before.calibration, OPTICS).contrast_rgb,
            atol=2e-3,
        )
    assert microscope_of([wafer(90.0, confidence=0.0)], OPTICS, "").correction == Correction()


def test_a_correction_leaves_the_bare_substrate_at_zero():
    odd = Correction((0.8, 1.0, 1.1), (0.03, -0.02, 0.01))
    optics = replace(OPTICS, correction=odd)
    corrected = ladder("graphene", nominal_calibration(90.0), optics)
    plain = ladder("graphene", nominal_calibration(90.0), OPTICS)
    np.testing.assert_allclose(corrected.at(0.0), 0.0, atol=1e-6)
    expected = plain.at(8.0) * odd.gain_rgb + odd.offset_rgb
    np.testing.assert_allclose(corrected.at(8.0), expected, atol=2e-3)


def test_with_its_correction_a_microscope_needs_fewer_flakes():
    """Three terraces of a camera with a weak red: alone they are a riddle."""
    gains = (0.72, 1.0, 1.0)
    truth = ladder("graphene", Calibration(90.0, gains, 1.0, ""), OPTICS)
    seen = [Level(tuple(map(float, truth.at(n))), 800) for n in (1, 2, 4, 1)]
    known = replace(OPTICS, correction=Correction(gains))
    fitted = fit_calibration(seen, ("graphene",), 90.0, known)
    read, _ = ladder("graphene", fitted.calibration, known).nearest(truth.at([1, 2, 3, 4, 5, 6]))
    np.testing.assert_allclose(read, [1, 2, 3, 4, 5, 6], atol=0.25)


# --- the file --------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "microscope.json"
    kept = Microscope(
        Correction((0.8, 0.95, 1.0), (0.01, 0.0, -0.02)), WHITE, 0.7, "5 flakes", (wafer(90.0),)
    )
    save_microscope(path, kept)
    assert load_microscope(path) == kept


def test_a_file_of_wafers_alone_is_a_microscope_without_correction(tmp_path):
    path = tmp_path / "wafers.json"
    save_calibration(path, [wafer(90.0)])
    found = load_microscope(path)
    assert found.correction == Correction()
    assert found.wafers == (wafer(90.0),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain_rgb": [1, 2]}, r"microscope.gain_rgb is \[1, 2\], not three numbers"),
        ({"gain_rgb": [1, 1, 9]}, r"gain_rgb is 9, not a number in 0.2..5"),
        ({"offset_rgb": [0, 0, 3]}, r"offset_rgb is 3, not a number in -0.5..0.5"),
        ({"white_rgb": None}, r"white_rgb is None"),
        ({"confidence": 2}, r"confidence is 2, not a number in 0..1"),
    ],
)
def test_a_bad_file_is_named(tmp_path, change, message):
    path = tmp_path / "microscope.json"
    save_microscope(path, Microscope())
    content = json.loads(path.read_text())
    content["microscope"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(BadModel, match=message):
        load_microscope(path)
    with pytest.raises(ValidationError, match=r"microscope\.json"):
        DetectorSettings(calibration=str(path))
    content["microscope"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(BadModel, match="microscope is not an object"):
        load_microscope(path)


# --- in the detector -------------------------------------------------------------------------


def scene(oxide_nm, gains, layers, exposure=0.8):
    """Boxes of graphene of these layers on a substrate of that oxide, under that camera."""
    truth = ladder("graphene", Calibration(oxide_nm, gains, 1.0, ""), OPTICS)
    picture = np.ones((300, 640, 3))
    for k, n in enumerate(layers):
        picture[100:160, 30 + 100 * k : 90 + 100 * k] += truth.at(n)
    picture *= substrate(oxide_nm, exposure)
    rng = np.random.default_rng(3)
    return np.clip(picture + rng.normal(0, 1.0, picture.shape) + 0.5, 0, 255).astype(np.uint8)


def read_layers(answer):
    return [d.layers for d in sorted(answer.detections, key=lambda d: d.centroid_x_px)]


def test_a_kept_calibration_is_found_by_its_substrate(tmp_path):
    gains = (0.75, 1.0, 1.0)
    path = tmp_path / "microscope.json"
    mine = SubstrateCalibration(
        substrate(97.0, 0.8), Calibration(97.0, (1.0, 1.0, 1.0), 0.9, "mine")
    )
    kept = Microscope(Correction(gains), WHITE, 0.9, "kept", (mine,))
    save_microscope(path, kept)
    settings = DetectorSettings(calibration=str(path))
    detector = PhysicsDetector(settings)
    answer = detector.detect(scene(97.0, gains, (1, 2, 3, 4, 6)), 384.0)
    assert answer.in_distribution
    assert answer.calibration.source == "mine"
    assert read_layers(answer) == [1, 2, 3, 4, 6]
    # Another wafer is met with the nominal oxide, and with a confidence that says so.
    other = detector.detect(scene(84.0, gains, (1, 2)), 384.0)
    assert other.calibration == nominal_calibration(90.0)


def test_a_new_wafer_without_flakes_is_calibrated_by_its_tint(tmp_path):
    path = tmp_path / "microscope.json"
    save_microscope(path, Microscope(white_rgb=WHITE, confidence=0.9, source="kept"))
    settings = DetectorSettings(calibration=str(path))
    (found,) = calibrate([scene(99.0, (1.0, 1.0, 1.0), ())], settings, 384.0)
    assert found.calibration.oxide_nm == pytest.approx(99.0, abs=1.5)
    answer = PhysicsDetector(settings, (found,)).detect(scene(99.0, (1.0,) * 3, (1, 2, 3)), 384.0)
    assert read_layers(answer) == [1, 2, 3]
    (blind,) = calibrate([scene(99.0, (1.0, 1.0, 1.0), ())], DetectorSettings(), 384.0)
    assert blind.calibration.oxide_nm == 90.0
    assert blind.calibration.confidence == 0.0
