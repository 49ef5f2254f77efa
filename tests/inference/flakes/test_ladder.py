import json

import numpy as np
import pytest

from inference.api import Calibration
from inference.flakes.ladder import (
    Optics,
    bare_signal,
    colour_table,
    ladder,
    layer_grid,
    model_contrast,
)

NOMINAL = Calibration(90.0, (1.0, 1.0, 1.0), 0.0, "nominal")
OPTICS = Optics()


@pytest.mark.parametrize(
    ("material", "name", "oxide_nm"),
    [
        ("graphene", "graphene(Weber)", 90),
        ("graphene", "graphene(Weber)", 285),
        ("hbn", "hBN(Lee o)", 90),
        ("mos2", "MoS2(Hsu 1L)", 90),
        ("mos2", "MoS2(Hsu 1L)", 285),
        ("wse2", "WSe2(Hsu 1L)", 300),
    ],
)
def test_against_the_independent_table(shared_data, material, name, oxide_nm):
    table = json.loads((shared_data / "optics" / "contrast_table.json").read_text())
    (row,) = [r for r in table if (r["mat"], r["oxide"], r["NA"]) == (name, oxide_nm, 0.45)]
    calibration = Calibration(float(oxide_nm), (1.0, 1.0, 1.0), 0.0, "")
    mine = ladder(material, calibration, OPTICS).at([1, 2, 3, 4])
    np.testing.assert_allclose(mine, row["rgb_1_4L"], atol=0.02)


def test_thickness_zero_is_the_substrate_and_gains_scale():
    plain = ladder("graphene", NOMINAL, OPTICS)
    np.testing.assert_allclose(plain.at(0.0), 0.0, atol=1e-6)
    scaled = ladder("graphene", Calibration(90.0, (0.5, 1.0, 2.0), 1.0, ""), OPTICS)
    np.testing.assert_allclose(scaled.at(3.0), plain.at(3.0) * [0.5, 1.0, 2.0], rtol=1e-5)


def test_grid_holds_every_whole_layer_to_be_counted():
    grid = layer_grid(0.335)
    assert set(range(14)) <= set(grid.tolist())
    assert (np.diff(grid) > 0).all()
    assert grid[-1] * 0.335 == pytest.approx(60.0, abs=0.4)


@pytest.mark.parametrize("material", ["graphene", "mos2", "wse2", "wte2", "hbn"])
def test_nearest_finds_the_rung(material):
    rungs = ladder(material, NOMINAL, OPTICS)
    wanted = np.array([1.0, 2.0, 3.0, 4.0, 6.0])
    thickness, distance = rungs.nearest(rungs.at(wanted))
    np.testing.assert_allclose(thickness, wanted, atol=1e-3)
    np.testing.assert_allclose(distance, 0.0, atol=1e-3)


def test_distance_is_measured_at_right_angles():
    curve = ladder("graphene", NOMINAL, OPTICS)
    tangent = curve.at(1.6) - curve.at(1.4)
    across = np.cross(tangent, [0.0, 0.0, 1.0])
    across = 0.03 * across / np.linalg.norm(across)
    thickness, distance = curve.nearest(curve.at(1.5) + across)
    assert thickness[0] == pytest.approx(1.5, abs=0.05)
    assert distance[0] == pytest.approx(0.03, abs=0.002)


def test_colour_table_agrees_with_the_exact_search():
    rng = np.random.default_rng(5)
    curve = ladder("graphene", NOMINAL, OPTICS)
    colours = curve.at(rng.uniform(0, 12, 2000)) + rng.normal(0, 0.02, (2000, 3))
    colours = colours.astype(np.float32)
    exact_t, exact_d = curve.nearest(colours)
    table_t, table_d = colour_table("graphene", NOMINAL, OPTICS).read(colours)
    assert np.percentile(np.abs(table_d - exact_d), 99) < 0.005
    assert np.percentile(np.abs(table_t - exact_t), 95) < 0.25
    # Colours outside the table's range are clipped into it, not refused.
    colour_table("graphene", NOMINAL, OPTICS).read(np.array([[9, -9, 9]], np.float32))


def test_layer_probabilities():
    curve = ladder("graphene", NOMINAL, OPTICS)
    sharp = curve.layer_probabilities(curve.at(2.0), np.full(3, 0.01, np.float32), 6)
    assert sharp.argmax() == 1
    assert sharp[1] > 0.999
    assert sharp.sum() == pytest.approx(1.0)
    between = curve.layer_probabilities(curve.at(2.5), np.full(3, 0.02, np.float32), 6)
    assert 0.2 < between[1] < 0.8
    assert 0.2 < between[2] < 0.8
    blunt = curve.layer_probabilities(curve.at(2.0), np.full(3, 0.3, np.float32), 6)
    assert blunt.max() < 0.4


def test_another_laboratorys_index_is_another_ladder():
    other = Optics(index_curves=(("mos2", "song_1l"),))
    assert (
        np.abs(model_contrast("mos2", 90.0, other) - model_contrast("mos2", 90.0, OPTICS)).max()
        > 0.05
    )
    with pytest.raises(KeyError, match="no index curve 'mos2/nobody'"):
        model_contrast("mos2", 90.0, Optics(index_curves=(("mos2", "nobody"),)))
    with pytest.raises(KeyError, match="no material 'unobtainium'"):
        model_contrast("unobtainium", 90.0, OPTICS)


def test_cached_arrays_cannot_be_spoilt():
    for array in (model_contrast("graphene", 90.0, OPTICS), bare_signal(90.0, OPTICS)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    assert ladder("graphene", NOMINAL, OPTICS) is ladder("graphene", NOMINAL, OPTICS)
