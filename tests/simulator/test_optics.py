"""Blur and colour of an objective against the formulas of textbooks."""

import numpy as np
import pytest

from drivers.api import Objective
from inference.flakes.materials import MATERIALS
from inference.flakes.thin_film import contrast_rgb
from simulator.chip import BLACK, GOLD, GROUND, SUBSTRATE, ChipSettings, Paint
from simulator.optics import ObjectiveOptics, OpticsSettings, point_spread

OBJECTIVE = Objective("20x", 20.0, 0.45, 384.0)


def transfer(kernel, pixel_um):
    """Frequencies (1/um) and the transfer along x."""
    padded = np.zeros((512, 512))
    k = kernel.shape[0]
    padded[:k, :k] = kernel
    half = np.abs(np.fft.fft2(padded))[0, :256]
    return np.fft.fftfreq(512, pixel_um)[:256], half


def diffraction_limit(s):
    s = np.clip(s, 0.0, 1.0)
    return 2.0 / np.pi * (np.arccos(s) - s * np.sqrt(1.0 - s**2))


def bessel_j1(a):
    tau = np.linspace(0.0, np.pi, 2001)
    return np.trapezoid(np.cos(tau - a[:, None] * np.sin(tau)), tau, axis=1) / np.pi


@pytest.mark.parametrize(
    ("aperture", "wavelength_nm"), [(0.15, 535.0), (0.45, 460.0), (0.8, 600.0)]
)
def test_in_focus_it_is_the_diffraction_limit(monkeypatch, aperture, wavelength_nm):
    monkeypatch.setattr("simulator.optics._KEPT_ENERGY", 2.0)  # keep the whole window
    pixel_um = 0.1 * wavelength_nm * 1e-3 / aperture
    frequency, found = transfer(point_spread(aperture, wavelength_nm, 0.0, pixel_um), pixel_um)
    expected = diffraction_limit(frequency * wavelength_nm * 1e-3 / (2.0 * aperture))
    expected = expected * np.sinc(frequency * pixel_um)  # the pixel's own
    assert found == pytest.approx(expected, abs=0.025)  # the window cuts the outer rings off
    assert np.abs(found - expected)[100:].max() < 0.002


@pytest.mark.parametrize("depths", [1.0, 2.0, 4.0])
def test_out_of_focus_it_is_hopkins_by_stokseths_formula(monkeypatch, depths):
    """2 J1(a) / a times the diffraction limit, a = 4 pi w s (1 - s/2) / lambda (Stokseth 1969)."""
    monkeypatch.setattr("simulator.optics._KEPT_ENERGY", 2.0)
    aperture, wavelength_um = 0.2, 0.55
    pixel_um = 0.1 * wavelength_um / aperture
    defocus_um = depths * wavelength_um / aperture**2
    kernel = point_spread(aperture, wavelength_um * 1e3, defocus_um, pixel_um)
    frequency, found = transfer(kernel, pixel_um)
    s = frequency * wavelength_um / aperture  # 0..2
    path_um = defocus_um * (1.0 - np.sqrt(1.0 - aperture**2))
    a = 4.0 * np.pi / wavelength_um * path_um * s * (1.0 - s / 2.0)
    safe = np.where(np.abs(a) < 1e-6, 1e-6, a)
    expected = np.abs(diffraction_limit(s / 2.0) * 2.0 * bessel_j1(safe) / safe)
    wanted = (s > 0.02) & (s < 2.0)
    assert found[wanted] == pytest.approx(expected[wanted], abs=0.06)


def test_depth_of_field_goes_with_the_inverse_square_of_the_aperture():
    """Defocus at which the energy of the kernel (its sharpness) has fallen to a half."""
    widths = []
    apertures = np.array([0.1, 0.2, 0.4])
    for aperture in apertures:
        pixel_um = 0.25 * 0.55 / aperture  # the same sampling of the same spot
        unit_um = 0.55 / aperture**2
        defoci = np.linspace(0.0, 2.0, 41) * unit_um
        energy = np.array([np.sum(point_spread(aperture, 550.0, z, pixel_um) ** 2) for z in defoci])
        assert np.argmax(energy) == 0
        widths.append(np.interp(-energy[0] / 2.0, -energy, defoci))
    slope = np.polyfit(np.log(apertures), np.log(widths), 1)[0]
    assert slope == pytest.approx(-2.0, abs=0.06)
    assert widths[1] / OBJECTIVE.depth_of_field_um() > 1.0  # um, and of the right size


def test_kernels_sum_to_one_and_are_the_same_on_both_sides():
    for defocus_um in (0.0, 0.7, 5.0, 30.0):
        above = point_spread(0.45, 535.0, defocus_um, 0.384)
        below = point_spread(0.45, 535.0, -defocus_um, 0.384)
        assert above.sum() == pytest.approx(1.0, abs=1e-5)
        assert above.min() >= 0.0
        assert above.shape[0] % 2 == 1
        assert above == pytest.approx(below, abs=1e-6)
        assert above == pytest.approx(above[::-1, ::-1], abs=1e-6)
        assert above == pytest.approx(above.T, abs=1e-6)


def test_far_from_focus_the_spot_is_the_geometric_disc():
    optics = ObjectiveOptics(OBJECTIVE, OpticsSettings())
    kernel = optics.kernels(60.0)[1]
    half = kernel.shape[0] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    rms_px = np.sqrt(np.sum(kernel * (x**2 + y**2)))
    # A uniform disc in the pupil's angles has an rms radius of about R / sqrt(2).
    assert rms_px == pytest.approx(optics.blur_radius_px(60.0) / np.sqrt(2.0), rel=0.08)


def test_kernels_are_kept_and_coarser_pixels_give_smaller_ones():
    optics = ObjectiveOptics(OBJECTIVE, OpticsSettings())
    near = optics.defocus_step_um / 5.0
    assert optics.kernels(10.0)[0] is optics.kernels(10.0 + near)[0]
    assert optics.kernels(30.0, binning=4)[0].shape[0] < optics.kernels(30.0)[0].shape[0] / 2
    red, green, blue = optics.wavelengths_nm
    assert 700.0 > red > green > blue > 400.0


def test_colours_are_those_of_the_thin_film_at_this_aperture():
    chip = ChipSettings(oxide_nm=285.0, index_curves={"graphene": "blake"})
    paints = (SUBSTRATE, Paint("crystal", 0.335, "graphene"), Paint("crystal", 1.23, "mos2"))
    for aperture in (0.25, 0.8):
        optics = ObjectiveOptics(Objective("x", 20.0, aperture, 384.0), OpticsSettings())
        table = optics.colours(paints, chip).astype(float)
        graphene = MATERIALS["graphene"].with_curve("blake")
        expected = contrast_rgb(graphene, 0.335, 285.0, aperture)
        assert table[1] / table[0] - 1.0 == pytest.approx(expected, abs=1e-5)
        expected = contrast_rgb(MATERIALS["mos2"], 1.23, 285.0, aperture)
        assert table[2] / table[0] - 1.0 == pytest.approx(expected, abs=1e-5)


def test_other_grounds_look_like_themselves():
    optics = ObjectiveOptics(OBJECTIVE, OpticsSettings())
    chip = ChipSettings()
    paints = (SUBSTRATE, GROUND, GOLD, BLACK, Paint("organic", 0.0), Paint("etched", 0.0))
    bare, ground, gold, black, no_glue, not_etched = optics.colours(paints, chip)
    assert np.all(ground < 0.3 * bare)
    assert gold[0] > gold[1] > gold[2] > bare.max()
    assert np.all(black == 0.0)
    assert no_glue == pytest.approx(bare)
    assert not_etched == pytest.approx(bare)


def test_a_hotter_lamp_turns_a_fixed_white_balance_blue():
    assert OpticsSettings().balance_rgb() == pytest.approx([1.0, 1.0, 1.0])
    red, green, blue = OpticsSettings(colour_temperature_k=4_500.0).balance_rgb()
    assert blue > green > red


def test_vignetting_takes_its_share_of_the_corners():
    settings = OpticsSettings(vignetting_ratio=0.3, vignetting_centre=(0.0, 0.0))
    found = ObjectiveOptics(OBJECTIVE, settings).light_field((301, 481))
    assert found[150, 240] == pytest.approx(1.0)
    assert found[0, 0] == pytest.approx(0.7, abs=0.01)
    assert found == pytest.approx(found[::-1, ::-1], abs=1e-6)


def test_brightness_follows_the_aperture_only_if_asked():
    weak = Objective("5x", 5.0, 0.15, 1536.0)
    assert ObjectiveOptics(weak, OpticsSettings()).brightness_ratio() == 1.0
    settings = OpticsSettings(brightness_follows_aperture=True)
    assert ObjectiveOptics(weak, settings).brightness_ratio() == pytest.approx(16.0 / 81.0)
    assert ObjectiveOptics(OBJECTIVE, settings).brightness_ratio() == pytest.approx(1.0)
