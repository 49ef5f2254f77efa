"""The table of indices: known values, honest bounds."""

import numpy as np
import pytest

from inference.flakes.materials import MATERIALS, SI, SIO2, curves, curves_of
from inference.flakes.thin_film import contrast_rgb

AT_550_NM = [
    ("sio2/malitson", 1.460 + 0.0j),
    ("si/green", 4.077 + 0.028j),
    ("graphene/weber", 2.68 + 1.25j),
    ("graphene/blake", 2.6 + 1.3j),
    ("hbn/lee", 2.14 + 0.0j),
    ("hbn/grudinin", 2.23 + 0.0j),
    ("mos2/hsu_1l", 4.97 + 0.91j),
    ("ws2/hsu_1l", 4.61 + 0.82j),
    ("wse2/hsu_1l", 4.74 + 1.87j),
    ("mose2/hsu_1l", 5.60 + 1.55j),
    ("wte2/munkhbat_alpha", 3.40 + 1.45j),
]


@pytest.mark.parametrize(("key", "index"), AT_550_NM)
def test_known_values(key: str, index: complex):
    found = curves()[key].at(np.array([550.0]))[0]
    assert found.real == pytest.approx(index.real, abs=0.006)
    assert found.imag == pytest.approx(index.imag, abs=0.006)


def test_every_curve_is_physical_and_says_where_it_comes_from():
    for curve in curves().values():
        assert np.all(np.isfinite(curve.index))
        assert np.all(curve.index.imag >= 0.0)
        assert np.all(curve.index.real > 0.0)
        assert curve.doi
        assert curve.page


def test_every_material_has_a_curve_and_most_have_another():
    assert {"graphene", "hbn", "mos2", "wse2", "wte2"} <= set(MATERIALS)
    for key, material in MATERIALS.items():
        assert material.key == key
        assert 0.3 < material.layer_thickness_nm < 0.8
        assert material.curve.key.partition("/")[2] in curves_of(key)
    for key in ("graphene", "hbn", "mos2", "wse2"):
        assert len(curves_of(key)) >= 3


def test_another_measurement_changes_the_contrast_but_not_the_crystal():
    weber = MATERIALS["graphene"]
    blake = weber.with_curve("blake")
    assert blake.layer_thickness_nm == weber.layer_thickness_nm
    assert np.abs(contrast_rgb(weber, 0.335, 90.0, 0.45)) == pytest.approx(
        np.abs(contrast_rgb(blake, 0.335, 90.0, 0.45)), abs=0.03
    )
    assert contrast_rgb(weber, 0.335, 90.0, 0.45)[0] != contrast_rgb(blake, 0.335, 90.0, 0.45)[0]
    with pytest.raises(KeyError, match="there are"):
        weber.with_curve("nobody")


def test_the_ends_hold_outside_the_range():
    assert SI.at(np.array([300.0]))[0] == SI.index[0]
    assert SIO2.at(np.array([900.0]))[0] == SIO2.index[-1]
