import json

import numpy as np
import pytest

from inference.api import BadModel, Calibration
from inference.flakes.calibration import (
    Level,
    SubstrateCalibration,
    drift,
    fit_calibration,
    grouped_by_substrate,
    load_calibration,
    nominal_calibration,
    save_calibration,
)
from inference.flakes.ladder import Optics, bare_signal, ladder

OPTICS = Optics()


def levels(material, oxide_nm, gains, layers, optics=OPTICS, noise=0.004, seed=0):
    rng = np.random.default_rng(seed)
    truth = Calibration(oxide_nm, gains, 1.0, "")
    colours = ladder(material, truth, optics).at(np.asarray(layers, float))
    colours = colours + rng.normal(0, noise, colours.shape)
    return [Level(tuple(map(float, c)), int(rng.integers(200, 3000))) for c in colours]


MANY = [1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 10, 12, 1, 2, 4, 9, 15, 20]


@pytest.mark.parametrize(
    ("material", "oxide_nm", "nominal_nm", "gains"),
    [
        ("graphene", 90.0, 90.0, (1.0, 1.0, 1.0)),
        ("graphene", 97.0, 90.0, (1.0, 1.0, 1.0)),
        ("graphene", 104.0, 90.0, (0.82, 0.97, 1.0)),  # what real grey wafers ask for
        ("graphene", 285.0, 290.0, (0.95, 1.0, 1.0)),
        ("mos2", 285.0, 285.0, (0.95, 0.95, 0.95)),
        ("wse2", 92.0, 90.0, (1.0, 0.95, 1.0)),
    ],
)
def test_fit_recovers_what_counting_layers_needs(material, oxide_nm, nominal_nm, gains):
    measured = levels(material, oxide_nm, gains, MANY)
    found = fit_calibration(measured, (material,), nominal_nm, OPTICS)
    assert found.calibration.confidence > 0.8
    rungs = ladder(material, found.calibration, OPTICS)
    truth = ladder(material, Calibration(oxide_nm, gains, 1.0, ""), OPTICS)
    thickness, distance = rungs.nearest(truth.at([1, 2, 3, 4, 5]))
    np.testing.assert_allclose(thickness, [1, 2, 3, 4, 5], atol=0.3)
    assert distance.max() < 0.04


def test_flare_is_found_as_a_common_gain():
    flare = 0.05
    bare = bare_signal(90.0, OPTICS)
    gains = tuple(float(g) for g in bare / (bare + flare))
    assert max(gains) < 0.75
    found = fit_calibration(levels("graphene", 90.0, gains, MANY), ("graphene",), 90.0, OPTICS)
    np.testing.assert_allclose(found.calibration.gain_rgb, gains, rtol=0.06)


def test_other_laboratorys_index_is_chosen_only_when_it_explains_more():
    other = Optics(index_curves=(("mos2", "song_1l"),))
    measured = levels("mos2", 90.0, (1.0, 1.0, 1.0), MANY, other)
    found = fit_calibration(measured, ("mos2",), 90.0, OPTICS)
    assert found.index_curves == (("mos2", "song_1l"),)
    assert "song_1l" in found.calibration.source
    usual = fit_calibration(levels("mos2", 90.0, (1.0,) * 3, MANY), ("mos2",), 90.0, OPTICS)
    assert usual.index_curves == ()
    fixed = fit_calibration(measured, ("mos2",), 90.0, Optics(index_curves=(("mos2", "hsu_1l"),)))
    assert fixed.index_curves == ()


def test_one_lonely_bilayer_moves_nothing_far():
    lonely = levels("graphene", 90.0, (1.0, 1.0, 1.0), [2, 2, 2])
    found = fit_calibration(lonely, ("graphene",), 90.0, OPTICS).calibration
    thickness, _ = ladder("graphene", found, OPTICS).nearest(
        np.array([lonely[0].contrast_rgb], np.float32)
    )
    assert thickness[0] == pytest.approx(2.0, abs=0.3)


def test_residue_is_not_fitted():
    rng = np.random.default_rng(9)
    colours = rng.uniform(-0.5, 0.5, (60, 3))
    dirt = [Level(tuple(map(float, c)), 400) for c in colours]
    found = fit_calibration(dirt, ("graphene",), 90.0, OPTICS).calibration
    assert found.confidence == 0.0
    assert found.gain_rgb == (1.0, 1.0, 1.0)
    assert found.oxide_nm == 90.0
    assert "nominal" in found.source


@pytest.mark.parametrize("few", [0, 1, 2])
def test_too_few_levels_leave_the_nominal(few):
    measured = levels("graphene", 90.0, (1.0,) * 3, MANY[:few])
    found = fit_calibration(measured, ("graphene",), 90.0, OPTICS, (1.0, 2.0, 3.0))
    assert found == SubstrateCalibration((1.0, 2.0, 3.0), nominal_calibration(90.0))


@pytest.mark.parametrize(
    ("now", "is_warning", "is_deviant"),
    [
        ((130.0, 112.0, 155.0), False, False),
        ((104.0, 90.0, 124.0), False, False),  # darker all over
        ((118.0, 112.0, 155.0), True, False),
        ((103.0, 112.0, 175.0), True, True),  # the filter that was seen: R -21 %, B +13 %
        ((60.0, 52.0, 71.0), False, True),  # less than half the light
    ],
)
def test_drift(now, is_warning, is_deviant):
    moved = drift(now, (130.0, 112.0, 155.0))
    assert (moved.is_warning, moved.is_deviant) == (is_warning, is_deviant)


def test_groups_by_substrate():
    purple, grey, dark = (130.0, 112.0, 155.0), (195.0, 196.0, 198.0), (48.0, 44.0, 78.0)
    colours = [purple, grey, (132.0, 113.0, 158.0), dark, (190.0, 190.0, 194.0)]
    assert grouped_by_substrate(colours) == [[0, 2], [1, 4], [3]]
    assert grouped_by_substrate([]) == []


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "calibration.json"
    kept = (
        SubstrateCalibration((1.5, 2.5, 3.5), Calibration(97.1, (0.9, 1.0, 1.1), 0.7, "fitted")),
        SubstrateCalibration((9.0, 8.0, 7.0), nominal_calibration(285.0), (("mos2", "song_1l"),)),
    )
    save_calibration(path, kept)
    assert load_calibration(path) == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "[]", "format"),
        (lambda c: "not json", "cannot be read"),
        (lambda c: c.update(entries=3), "entries"),
        (lambda c: c["entries"][0].update(oxide_nm=-5), r"entries\[0\].oxide_nm is -5"),
        (lambda c: c["entries"][0].update(oxide_nm=True), "oxide_nm"),
        (lambda c: c["entries"][0].update(gain_rgb=[1, 2]), "gain_rgb"),
        (lambda c: c["entries"][0].update(gain_rgb=[1, 2, "x"]), "gain_rgb"),
        (lambda c: c["entries"][0].update(confidence=float("nan")), "confidence"),
        (lambda c: c["entries"][0].update(index_curves=[["mos2", "nobody"]]), "index_curves"),
        (lambda c: c["entries"].append(7), r"entries\[1\]"),
    ],
)
def test_a_bad_file_is_named(tmp_path, change, message):
    path = tmp_path / "calibration.json"
    save_calibration(path, [SubstrateCalibration((1.0, 2.0, 3.0), nominal_calibration(90.0))])
    content = json.loads(path.read_text())
    text = change(content)
    path.write_text(text if isinstance(text, str) else json.dumps(content))
    with pytest.raises(BadModel, match=message) as caught:
        load_calibration(path)
    assert "calibration.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadModel, match=r"nowhere\.json"):
        load_calibration(tmp_path / "nowhere.json")


@pytest.mark.parametrize("lamp_k", [2600.0, 6500.0])
def test_another_lamp_is_found_where_gains_cannot_stand_for_it(lamp_k):
    other = Optics(lamp_k=lamp_k)
    measured = levels("mos2", 90.0, (1.0, 1.0, 1.0), MANY, other)
    found = fit_calibration(measured, ("mos2",), 90.0, OPTICS)
    assert found.lamp_k == pytest.approx(lamp_k, rel=0.03)
    assert "lamp" in found.calibration.source
    usual = fit_calibration(levels("mos2", 90.0, (1.0,) * 3, MANY), ("mos2",), 90.0, OPTICS)
    assert usual.lamp_k is None


def test_the_fit_does_not_stop_at_the_first_hill():
    """10 nm more oxide than its label says; another index and a green gain nearly explain it."""
    measured = levels("wte2", 295.0, (1.0, 1.0, 1.0), MANY)
    found = fit_calibration(measured, ("wte2",), 285.0, OPTICS)
    assert found.calibration.oxide_nm == pytest.approx(295.0, abs=2.0)
    assert found.index_curves == ()
