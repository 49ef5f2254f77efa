import json
import time

import cv2
import numpy as np
import pytest

from inference.api import BadImage, BadModel, Calibration
from inference.flakes.adapt import (
    FLAKES_FILE,
    LABELS_FOLDER,
    Example,
    adapt,
    adapt_folder,
    read_points,
)
from inference.flakes.ladder import Correction, Optics, ladder
from inference.flakes.microscope import Microscope, load_microscope, save_microscope
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector

SUBSTRATE = (70.0, 66.0, 88.0)
ODD = Correction((0.78, 1.08, 0.9), (0.02, -0.03, 0.03))


def true_ladder(oxide_nm=97.0, correction=ODD, material="graphene"):
    optics = Optics(correction=correction)
    return ladder(material, Calibration(oxide_nm, (1.0, 1.0, 1.0), 1.0, ""), optics)


def examples(layers, noise=0.005, seed=0, named=True, **truth):
    rng = np.random.default_rng(seed)
    rungs = true_ladder(**truth)
    return [
        Example(
            "a.png",
            tuple(float(v) for v in rungs.at(n) + rng.normal(0, noise, 3)),
            500,
            n if named else None,
            None,
        )
        for n in layers
    ]


def worst_reading(found, layers=(1, 2, 3, 4, 5, 6), **truth):
    """In layers, over what the truth's ladder shows."""
    wafer = found.microscope.wafers[0].calibration
    mine = ladder("graphene", wafer, Optics(correction=found.microscope.correction))
    read, distance = mine.nearest(true_ladder(**truth).at(np.asarray(layers, float)))
    return float(np.abs(read - np.asarray(layers)).max()), float(distance.max())


@pytest.mark.parametrize("seed", range(4))
def test_five_named_flakes_teach_an_odd_camera(seed):
    found = adapt([(SUBSTRATE, examples((1, 2, 3, 4, 6), seed=seed))], DetectorSettings())
    off_layers, off_ladder = worst_reading(found)
    assert off_layers < 0.3
    assert off_ladder < 0.03
    assert found.microscope.confidence > 0.5
    assert not any(flake.is_outlier for flake in found.flakes)
    # Unlearnt, the same flakes would be read wrongly.
    plain = worst_reading(
        type(found)(Microscope(wafers=found.microscope.wafers), ()),
    )
    assert plain[1] > 2 * off_ladder


def test_a_wrong_click_does_no_harm():
    flakes = examples((1, 2, 3, 4, 5, 6), seed=2)
    wrong = Example("a.png", (0.31, -0.22, 0.4), 300, 2, None)
    found = adapt([(SUBSTRATE, [*flakes, wrong])], DetectorSettings())
    assert [flake.is_outlier for flake in found.flakes] == [False] * 6 + [True]
    assert worst_reading(found)[0] < 0.3


def test_unnamed_flakes_teach_what_the_physics_can_tell():
    mild = Correction((0.85, 1.0, 1.0), (0.0, 0.0, 0.0))
    flakes = examples((1, 1, 2, 2, 3, 4, 5, 7), named=False, correction=mild)
    found = adapt([(SUBSTRATE, flakes)], DetectorSettings())
    assert [flake.layers for flake in found.flakes] == [1, 1, 2, 2, 3, 4, 5, 7]
    assert worst_reading(found, correction=mild)[0] < 0.3


def test_what_nobody_asked_for_stays_with_the_physics():
    """Five monolayers on the nominal oxide say nothing against it."""
    plain = {"oxide_nm": 90.0, "correction": Correction()}
    found = adapt([(SUBSTRATE, examples((1, 1, 1, 1, 1), **plain))], DetectorSettings())
    assert found.microscope.wafers[0].calibration.oxide_nm == pytest.approx(90.0, abs=4.0)
    np.testing.assert_allclose(found.microscope.correction.gain_rgb, 1.0, atol=0.08)
    np.testing.assert_allclose(found.microscope.correction.offset_rgb, 0.0, atol=0.01)
    several = adapt([(SUBSTRATE, examples((1, 2, 3, 4, 5), **plain))], DetectorSettings())
    assert found.microscope.confidence < several.microscope.confidence


def test_another_wafer_shares_the_camera_and_has_its_own_oxide():
    grey = (120.0, 130.0, 110.0)
    first = examples((1, 2, 3, 4, 5, 6))
    second = examples((1, 2, 3), oxide_nm=84.0, seed=5)
    found = adapt([(SUBSTRATE, first), (grey, second)], DetectorSettings())
    oxides = [w.calibration.oxide_nm for w in found.microscope.wafers]
    assert oxides[0] - oxides[1] == pytest.approx(13.0, abs=4.0)
    assert found.microscope.wafers[1].substrate_rgb == pytest.approx(grey, abs=0.1)


def test_too_few_flakes_and_unknown_materials_are_refused():
    with pytest.raises(BadImage, match="4 usable flakes; 5 are needed"):
        adapt([(SUBSTRATE, examples((1, 2, 3, 4)))], DetectorSettings())
    odd = Example("a.png", (-0.1, -0.1, -0.1), 100, 1, "mos2")
    with pytest.raises(BadImage, match="material 'mos2' is not among"):
        adapt([(SUBSTRATE, [*examples((1, 2, 3, 4)), odd])], DetectorSettings())


# --- folders ---------------------------------------------------------------------------------


def photograph(layers, seed=0):
    rng = np.random.default_rng(seed)
    picture = np.ones((300, 640, 3))
    rungs = true_ladder()
    for k, n in enumerate(layers):
        picture[100:160, 30 + 100 * k : 90 + 100 * k] += rungs.at(float(n))
    picture = cv2.GaussianBlur(picture, (0, 0), 1.0) * SUBSTRATE
    return np.clip(picture + rng.normal(0, 1.0, picture.shape) + 0.5, 0, 255).astype(np.uint8)


def write(folder, name, pixels):
    assert cv2.imwrite(str(folder / name), pixels[..., ::-1])


def clicks(image, layers):
    return [
        {"image": image, "x_px": 60 + 100 * k, "y_px": 130, "layers": n}
        for k, n in enumerate(layers)
    ]


def test_a_folder_of_clicks_and_labels_becomes_a_file_that_the_detector_uses(tmp_path):
    write(tmp_path, "a.png", photograph((1, 2, 3)))
    write(tmp_path, "b.png", photograph((4, 5, 6), seed=1))
    labels = np.zeros((300, 640), np.uint8)
    for k in range(3):
        labels[100:160, 30 + 100 * k : 90 + 100 * k] = k + 1
    (tmp_path / LABELS_FOLDER).mkdir()
    assert cv2.imwrite(str(tmp_path / LABELS_FOLDER / "b.png"), labels)
    content = clicks("a.png", (1, 2, 3)) + clicks("b.png", (4, 5, 6))
    (tmp_path / FLAKES_FILE).write_text(json.dumps(content))
    started, seen = time.perf_counter(), []
    found = adapt_folder(
        tmp_path, DetectorSettings(), 384.0, progress=lambda done, total: seen.append((done, total))
    )
    assert time.perf_counter() - started < 30.0  # a busy machine; 0.5 s on a quiet one
    assert seen == [(1, 2), (2, 2)]
    assert sorted(flake.layers for flake in found.flakes) == [1, 2, 3, 4, 5, 6]
    file = tmp_path / "microscope.json"
    save_microscope(file, found.microscope)
    assert load_microscope(file) == found.microscope
    detector = PhysicsDetector(DetectorSettings(calibration=str(file)))
    answer = detector.detect(photograph((6, 1, 4, 2, 5, 3), seed=7), 384.0)
    flakes = sorted(answer.detections, key=lambda d: d.centroid_x_px)
    assert [flake.layers for flake in flakes] == [6, 1, 4, 2, 5, 3]
    assert answer.calibration.confidence > 0.5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "a.png", "x_px": 1}, r"\[0\].y_px is None, not a number in 0..100000"),
        ({"image": "a.png", "x_px": -1, "y_px": 1}, r"\[0\].x_px is -1"),
        ({"image": "a.png", "x_px": 1, "y_px": 1, "layers": 0}, r"layers is 0, not a whole number"),
        ({"x_px": 1, "y_px": 1}, "not an object with an image"),
        (7, "not an object with an image"),
    ],
)
def test_a_bad_click_is_named(tmp_path, entry, message):
    path = tmp_path / FLAKES_FILE
    path.write_text(json.dumps([entry]))
    with pytest.raises(BadModel, match=message) as caught:
        read_points(path)
    assert str(path) in str(caught.value)


def test_bad_folders_are_named(tmp_path):
    write(tmp_path, "a.png", photograph((1, 2, 3)))
    with pytest.raises(BadImage, match="0 usable flakes"):
        adapt_folder(tmp_path, DetectorSettings(), 384.0)
    (tmp_path / FLAKES_FILE).write_text(json.dumps(clicks("b.png", (1,))))
    with pytest.raises(BadImage, match=r"no image 'b\.png'"):
        adapt_folder(tmp_path, DetectorSettings(), 384.0)
    beyond = [{"image": "a.png", "x_px": 900, "y_px": 10}]
    (tmp_path / FLAKES_FILE).write_text(json.dumps(beyond))
    with pytest.raises(BadImage, match=r"a\.png: the click \(900, 10\) lies outside"):
        adapt_folder(tmp_path, DetectorSettings(), 384.0)
    (tmp_path / FLAKES_FILE).write_text("{")
    with pytest.raises(BadModel, match="cannot be read"):
        adapt_folder(tmp_path, DetectorSettings(), 384.0)
