from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from inference.api import BadModel, Calibration
from inference.flakes.ladder import Optics, ladder
from inference.flakes.material_cards import load_card, load_cards
from inference.flakes.materials import MATERIALS
from inference.flakes.physics_detector import DetectorSettings

MOTE2 = Path(__file__).resolve().parents[3] / "configs" / "materials" / "mote2.toml"

GOOD = """name = "Testide"
layer_thickness_nm = 0.7
source = "nobody, 2024"
[index]
wavelength_nm = [400, 550, 700]
n = [3.0, 4.0, 3.5]
k = [0.5, 0.4, 0.3]
"""


def written(folder, text=GOOD, name="testide.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_card_is_a_material(tmp_path):
    card = load_card(written(tmp_path))
    assert (card.key, card.name, card.layer_thickness_nm) == ("testide", "Testide", 0.7)
    crystal = card.material()
    np.testing.assert_allclose(crystal.index(np.array([475.0])), [3.5 + 0.45j])
    np.testing.assert_allclose(crystal.index(np.array([900.0])), [3.5 + 0.3j])
    assert card == load_card(tmp_path / "testide.toml")
    assert hash(card) == hash(load_card(tmp_path / "testide.toml"))


def test_constants_need_no_wavelengths(tmp_path):
    text = 'name = "X"\nlayer_thickness_nm = 1\nsource = "s"\n[index]\nn = 2.2\nk = 0\n'
    crystal = load_card(written(tmp_path, text)).material()
    np.testing.assert_allclose(crystal.index(np.array([400.0, 700.0])), [2.2, 2.2])


def test_the_card_of_a_built_in_crystal_gives_its_ladder(tmp_path):
    """What is typed into a card goes the same way as what is built in."""
    known = MATERIALS["mos2"]
    grid = known.curve.wavelength_nm
    rows = {
        "wavelength_nm": grid.tolist(),
        "n": known.curve.index.real.tolist(),
        "k": known.curve.index.imag.tolist(),
    }
    text = (
        f'name = "MoS2"\nlayer_thickness_nm = {known.layer_thickness_nm}\nsource = "s"\n[index]\n'
    )
    text += "".join(f"{key} = {values}\n" for key, values in rows.items())
    optics = Optics(cards=(load_card(written(tmp_path, text, "mine.toml")),))
    calibration = Calibration(90.0, (1.0, 1.0, 1.0), 0.0, "")
    mine, theirs = (ladder(key, calibration, optics) for key in ("mine", "mos2"))
    np.testing.assert_allclose(mine.contrast_rgb, theirs.contrast_rgb, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.7", "70", r"layer_thickness_nm is 70; allowed: a number in 0.1..10"),
        ("0.7", "true", r"layer_thickness_nm is True"),
        ("layer_thickness_nm = 0.7\n", "", r"layer_thickness_nm is missing"),
        ('"Testide"', '""', r"name is ; allowed: a text"),
        ('source = "nobody, 2024"\n', "", r"source is missing"),
        ("4.0", "40", r"index.n\[1\] is 40; allowed: a number in 0.05..12"),
        ("0.4", "-0.4", r"index.k\[1\] is -0.4; allowed: a number in 0..12"),
        ("0.4", "nan", r"index.k\[1\] is nan"),
        (", 3.5", "", r"index.n is 2 numbers; allowed: 3, one for each wavelength_nm"),
        ("[400, 550, 700]", "[0.4, 0.55, 0.7]", r"index.wavelength_nm\[0\] is 0.4; .* 100..5000"),
        ("[400, 550, 700]", "[700, 550, 400]", r"index.wavelength_nm is not rising"),
        ("[400, 550, 700]", "[500, 550, 700]", r"500..700; allowed: at least 450..650 nm"),
        ("[400, 550, 700]", "[550]", r"1 numbers"),
        ("wavelength_nm = [400, 550, 700]\n", "", r"index.n is a list; allowed: one number"),
        ("[index]", "[indices]", r"no such key indices; known here: name"),
        ("k = [", "kappa = [", r"no such key index.kappa; known here: wavelength_nm, n, k"),
        (GOOD, "name = ", r"cannot be read as a material card"),
        (GOOD, 'name = "X"\nindex = 3\n', r"index is 3; allowed: a table"),
    ],
)
def test_a_bad_card_is_named(tmp_path, old, new, message):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(BadModel, match=message) as caught:
        load_card(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "message"), [("graphene.toml", "built in"), ("2d.toml", "a letter")]
)
def test_a_bad_name_is_refused(tmp_path, name, message):
    with pytest.raises(BadModel, match=message):
        load_card(written(tmp_path, name=name))


def test_folders(tmp_path):
    with pytest.raises(BadModel, match="without material cards"):
        load_cards([tmp_path])
    one = written(tmp_path)
    assert load_cards([tmp_path, one]) == (load_card(one),)
    other = tmp_path / "other"
    other.mkdir()
    written(other)
    with pytest.raises(BadModel, match=r"is the card .* as well"):
        load_cards([tmp_path, other])
    with pytest.raises(BadModel, match="nowhere"):
        load_cards([tmp_path / "nowhere.toml"])


def test_the_detectors_settings_know_cards(tmp_path):
    card = str(written(tmp_path))
    settings = DetectorSettings(material_cards=(card,), materials=("testide", "graphene"))
    assert settings.optics.material("testide").name == "Testide"
    with pytest.raises(ValidationError, match="no material 'testide'; there are graphene"):
        DetectorSettings(materials=("testide",))
    bad = str(written(tmp_path, GOOD.replace("4.0", "40"), "bad.toml"))
    with pytest.raises(ValidationError, match=r"bad.toml: index.n\[1\] is 40"):
        DetectorSettings(material_cards=(bad,))


def test_the_example_is_a_card():
    crystal = load_card(MOTE2).material()
    index = crystal.index(np.array([550.0]))[0]
    assert index == pytest.approx(4.523 + 1.854j)
