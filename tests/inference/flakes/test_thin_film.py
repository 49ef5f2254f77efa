"""The interferometer against an independent implementation and an independent table."""

import json
from pathlib import Path

import numpy as np
import pytest
from tmm import coh_tmm

from inference.flakes.materials import MATERIALS, SI, SIO2
from inference.flakes.thin_film import (
    WAVELENGTHS_NM,
    CameraResponse,
    Illuminant,
    colour_weights,
    contrast_rgb,
    pupil_nodes,
    reflectance,
    stack_rgb,
)

STACKS = {
    "bare silicon": [],
    "oxide": [(SIO2, 90.0)],
    "monolayer graphene": [(MATERIALS["graphene"].curve, 0.335), (SIO2, 285.0)],
    "bulk MoS2, absorbing": [(MATERIALS["mos2"].curve, 200.0), (SIO2, 90.0)],
    "three layers": [(MATERIALS["hbn"].curve, 20.0), (MATERIALS["wse2"].curve, 0.65), (SIO2, 90.0)],
}


def tmm_reflectance(curves, wavelength_nm, sine):
    """Mean of s and p by the `tmm` package, whose angles are real in air."""
    wavelength = np.array([wavelength_nm])
    index = [1.0, *(complex(curve.at(wavelength)[0]) for curve, _ in curves)]
    index.append(complex(SI.at(wavelength)[0]))
    thickness = [np.inf, *(thickness_nm for _, thickness_nm in curves), np.inf]
    theta = np.arcsin(sine)
    return np.mean([coh_tmm(pol, index, thickness, theta, wavelength_nm)["R"] for pol in "sp"])


def ours(curves, wavelength_nm, numerical_aperture, angles=12):
    layers = [(curve.at(wavelength_nm), thickness_nm) for curve, thickness_nm in curves]
    return reflectance(wavelength_nm, layers, SI.at(wavelength_nm), numerical_aperture, angles)


@pytest.mark.parametrize("name", STACKS)
def test_agrees_with_tmm_at_normal_incidence(name):
    grid = np.array([405.0, 460.0, 550.0, 633.0, 700.0])
    expected = [tmm_reflectance(STACKS[name], wavelength_nm, 0.0) for wavelength_nm in grid]
    assert ours(STACKS[name], grid, 0.0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("numerical_aperture", [0.25, 0.45, 0.8])
@pytest.mark.parametrize("name", STACKS)
def test_agrees_with_tmm_averaged_over_the_cone(name, numerical_aperture):
    grid = np.array([450.0, 600.0])
    # A midpoint rule of its own in sin^2, the measure of a filled pupil's area.
    sines = np.sqrt((np.arange(200) + 0.5) / 200) * numerical_aperture
    expected = [
        np.mean([tmm_reflectance(STACKS[name], wavelength_nm, sine) for sine in sines])
        for wavelength_nm in grid
    ]
    assert ours(STACKS[name], grid, numerical_aperture) == pytest.approx(expected, abs=1e-5)


def test_agrees_with_tmm_at_the_nodes_of_the_cone():
    grid = np.array([530.0])
    stack = STACKS["monolayer graphene"]
    sines, weights = pupil_nodes(0.8)
    expected = np.dot(weights, [tmm_reflectance(stack, 530.0, sine) for sine in sines])
    assert ours(stack, grid, 0.8)[0] == pytest.approx(expected, abs=1e-12)


def test_twelve_angles_are_enough():
    for stack in STACKS.values():
        coarse = ours(stack, WAVELENGTHS_NM, 0.9)
        assert coarse == pytest.approx(ours(stack, WAVELENGTHS_NM, 0.9, angles=64), abs=1e-6)


def test_ladders_broadcast_like_single_stacks():
    thickness_nm = np.arange(4) * 0.335
    oxide_nm = np.array([85.0, 90.0, 285.0])[:, None]
    ladder = contrast_rgb(MATERIALS["graphene"], thickness_nm, oxide_nm, 0.45)
    assert ladder.shape == (3, 4, 3)
    assert ladder[:, 0] == pytest.approx(0.0, abs=1e-12)
    single = contrast_rgb(MATERIALS["graphene"], 2 * 0.335, 285.0, 0.45)
    assert ladder[2, 2] == pytest.approx(single, abs=1e-12)


def test_energy_is_conserved_and_a_lossless_layer_of_the_substrates_index_vanishes():
    grid = WAVELENGTHS_NM
    for stack in STACKS.values():
        shone = ours(stack, grid, 0.8)
        assert np.all((shone > 0.0) & (shone < 1.0))
    glass = SIO2.at(grid)
    bare = reflectance(grid, [], glass, 0.5)
    assert reflectance(grid, [(glass, 123.0)], glass, 0.5) == pytest.approx(bare, abs=1e-12)


@pytest.mark.parametrize(
    ("label", "material", "measurement"),
    [
        ("graphene(2.6+1.3i Blake)", "graphene", "blake"),
        ("graphene(Weber)", "graphene", "weber"),
        ("hBN(Lee o)", "hbn", "lee"),
        ("hBN(Grudinin o)", "hbn", "grudinin"),
        ("MoS2(Hsu 1L)", "mos2", "hsu_1l"),
        ("WS2(Hsu 1L)", "ws2", "hsu_1l"),
        ("WSe2(Hsu 1L)", "wse2", "hsu_1l"),
        ("MoSe2(Hsu 1L)", "mose2", "hsu_1l"),
        ("WTe2(Munkhbat a)", "wte2", "munkhbat_alpha"),
    ],
)
def test_reproduces_the_independent_contrast_table(
    shared_data: Path, label: str, material: str, measurement: str
):
    """To the four digits that the table prints."""
    table = json.loads((shared_data / "optics" / "contrast_table.json").read_text("utf-8"))
    rows = [row for row in table if row["mat"] == label]
    assert len(rows) == 9
    crystal = MATERIALS[material].with_curve(measurement)
    thickness_nm = np.arange(1, 5) * crystal.layer_thickness_nm
    for row in rows:
        contrast = contrast_rgb(crystal, thickness_nm, float(row["oxide"]), row["NA"])
        assert contrast == pytest.approx(np.array(row["rgb_1_4L"]), abs=6e-5)


@pytest.mark.parametrize(
    ("name", "material", "oxide_nm", "tolerance"),
    [("graphene_90nm.json", "graphene", 91.0, 0.02)],
)
def test_explains_a_real_microscopes_fitted_contrasts(
    shared_data: Path, name: str, material: str, oxide_nm: float, tolerance: float
):
    """Means fitted by others to labelled flakes; one effective oxide, nothing else, is ours."""
    fitted = json.loads((shared_data / "flakes" / "gmm_parameters" / name).read_text("utf-8"))
    crystal = MATERIALS[material]
    measured = np.array(
        [[fitted[str(n)]["contrast"][c] for c in "rgb"] for n in range(1, len(fitted) + 1)]
    )
    thickness_nm = np.arange(1, len(measured) + 1) * crystal.layer_thickness_nm
    model = contrast_rgb(crystal, thickness_nm, oxide_nm, 0.45)
    assert np.sqrt(np.mean((model - measured) ** 2)) < tolerance


def test_a_hotter_lamp_is_bluer_and_planck_is_planck():
    cool, hot = (Illuminant(k).spectrum(WAVELENGTHS_NM) for k in (2800.0, 6500.0))
    assert cool[0] < hot[0]
    assert cool[-1] > hot[-1]
    grid = np.arange(300.0, 2000.0, 0.5)
    peak_nm = grid[np.argmax(Illuminant(4000.0).spectrum(grid))]
    assert peak_nm == pytest.approx(2.897771955e6 / 4000.0, abs=1.0)  # Wien's law


def test_a_mirror_is_white():
    assert colour_weights(WAVELENGTHS_NM).sum(axis=1) == pytest.approx(1.0)
    silver_like = np.full_like(WAVELENGTHS_NM, 1e-6) + 1e6j
    assert stack_rgb(WAVELENGTHS_NM, [], silver_like, 0.45) == pytest.approx(1.0, abs=1e-4)


def test_the_camera_can_be_changed():
    narrow = CameraResponse(sigma_nm=(5.0, 5.0, 5.0), cut_on_nm=(0.0, 0.0, 0.0))
    grid = np.array([600.0, 535.0, 460.0])
    curve = MATERIALS["wse2"].curve
    lines = ours([(curve, 0.649), (SIO2, 90.0)], grid, 0.45) / ours([(SIO2, 90.0)], grid, 0.45) - 1
    contrast = contrast_rgb(MATERIALS["wse2"], 0.649, 90.0, 0.45, camera=narrow)
    assert contrast == pytest.approx(lines, abs=0.05)


def test_an_impossible_aperture_is_refused():
    with pytest.raises(ValueError, match="numerical aperture"):
        reflectance(WAVELENGTHS_NM, [], 1.5, 1.4)
