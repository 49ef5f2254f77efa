"""Scattering factors, phases and waves against tables, limits and a second program's numbers."""

import math

import numpy as np
import pytest

from simulator.atoms import NUMBERS, Atoms
from simulator.potential import (
    BOHR_A,
    ELEMENTS,
    exit_wave,
    frequencies_per_nm,
    interaction_rad_per_v_nm,
    mass_ratio,
    projected_phase,
    scattering_factor_nm,
    wavelength_nm,
)
from simulator.tem import LensSettings, transfer

# L. Reimer, H. Kohl, Transmission Electron Microscopy: wavelength in pm, sigma in rad / (V nm).
BEAMS = [(100.0, 3.701, 0.009244), (200.0, 2.508, 0.007288), (300.0, 1.969, 0.006526)]

# P. A. Doyle, P. S. Turner, Acta Cryst. A24, 390 (1968): sum of a, f_e(0) in A.
AT_REST = [("B", 2.79), ("C", 2.51), ("N", 2.21), ("Si", 5.82), ("S", 5.16), ("Cu", 5.59)]
AT_REST += [("Mo", 10.24), ("Au", 10.56)]

# abTEM 1.0.11 (GPL; run beside, only its numbers are here): a 12.8 A cell, 320 x 320 samples,
# Kirkland's parameters, finite projections, 80 kV, aperture 40 mrad; every 40th sample of the
# intensity, less 1, in 1e-5. thin: C, Mo, S in one plane, defocus 60 A (under), Cs -20 um, spread
# 20 A; far: the same, -300 A (over), Cs 100 um, astigmatism 50 A at 0.5 rad; thick: Au, Mo, S, Au
# 2 A apart down the beam, 40 A, Cs -20 um. abTEM hands its wave over one slice below the last
# plane: 2 and 8 A were added to its defocus for that.
ABTEM = {
    "thin": (
        -1769,
        -106,
        -648,
        -220,
        -812,
        -2804,
        -1491,
        880,
        -1433,
        -1662,
        333,
        575,
        644,
        -3178,
        2055,
        -945,
        2027,
        4496,
        -2481,
        -2459,
        7316,
        5579,
        -5123,
        188,
        885,
        5372,
        1041,
        3688,
        -8800,
        -13471,
        2966,
        1501,
        1176,
        1329,
        2821,
        -4020,
        5315,
        306,
        -1598,
        4252,
        -441,
        -225,
        -831,
        1961,
        -5199,
        718,
        3879,
        -2780,
        3102,
        2862,
        2433,
        1737,
        -14,
        -3965,
        -8647,
        5097,
        1355,
        2269,
        1453,
        823,
        -3587,
        3305,
        4585,
        499,
    ),
    "far": (
        4458,
        -5727,
        -2715,
        5317,
        -1673,
        -4687,
        -1822,
        -2238,
        -2288,
        -1661,
        1671,
        -2414,
        -1494,
        -5569,
        -1268,
        8502,
        -6808,
        1246,
        -4343,
        -4257,
        -883,
        2592,
        -1378,
        -5549,
        -7767,
        -1929,
        478,
        1026,
        7042,
        5764,
        3253,
        -3467,
        1689,
        966,
        -4103,
        -1233,
        3737,
        3748,
        -2312,
        -682,
        -3223,
        -3913,
        6090,
        -3315,
        -9855,
        321,
        -2041,
        2372,
        3203,
        -2323,
        -7760,
        3911,
        2163,
        5638,
        11185,
        993,
        -331,
        2537,
        -5240,
        -5625,
        -4483,
        5528,
        -2761,
        1253,
    ),
    "thick": (
        -3801,
        2570,
        4094,
        5379,
        141,
        -6888,
        4372,
        -3392,
        7859,
        -5853,
        11580,
        -11113,
        16913,
        9330,
        6447,
        5438,
        -11106,
        7474,
        -27947,
        11471,
        7046,
        -2646,
        -11214,
        -4016,
        -10101,
        8388,
        -28198,
        13107,
        -8266,
        -20389,
        -5474,
        -1868,
        8696,
        -4408,
        9052,
        -10900,
        21159,
        8077,
        -269,
        686,
        -6639,
        -1423,
        3458,
        2825,
        -8901,
        -7812,
        6072,
        -5314,
        -7747,
        6446,
        6860,
        3573,
        -3575,
        2665,
        785,
        11259,
        -6347,
        6941,
        8453,
        4200,
        -5972,
        7535,
        13866,
        5225,
    ),
}
THIN = [(3.0, 4.0, 0.0), (7.3, 5.1, 0.0), (9.0, 9.5, 0.0)], ["C", "Mo", "S"]
THICK = (
    [(3.0, 4.0, 0.0), (7.3, 5.1, 2.0), (9.0, 9.5, 4.0), (3.1, 4.1, 6.0)],
    ["Au", "Mo", "S", "Au"],
)
SIDE_PX = 128
PIXEL_NM = 1.28 / SIDE_PX


def other_atoms(places_a, names):
    """From x right, y down, z down the beam, in A from the first pixel."""
    half = (SIDE_PX - 1) / 2 * PIXEL_NM
    x, y, z = 0.1 * np.array(places_a).T
    return Atoms.at(np.stack([x - half, half - y, -z], axis=1), [NUMBERS[n] for n in names])


def seen(wave, defocus_um, stig_um=(0.0, 0.0), **lens):
    settings = LensSettings(direction_mrad=0.0, aperture_mrad=40.0, **lens)
    kx, ky = frequencies_per_nm(wave.shape, PIXEL_NM)
    return np.abs(np.fft.ifft2(np.fft.fft2(wave) * transfer(settings, defocus_um, stig_um, kx, ky)))


@pytest.mark.parametrize(("voltage_kv", "wavelength_pm", "sigma"), BEAMS)
def test_the_beam_is_that_of_the_textbook(voltage_kv, wavelength_pm, sigma):
    assert wavelength_nm(voltage_kv) * 1e3 == pytest.approx(wavelength_pm, abs=1e-3)
    assert interaction_rad_per_v_nm(voltage_kv) == pytest.approx(sigma, rel=2e-4)


@pytest.mark.parametrize(("name", "expected_a"), AT_REST)
def test_forward_scattering_is_that_of_doyle_and_turner(name, expected_a):
    found = scattering_factor_nm(NUMBERS[name], np.zeros(1))[0]
    assert found * 10.0 == pytest.approx(expected_a, rel=0.01)


@pytest.mark.parametrize("number", ELEMENTS)
def test_far_out_only_the_nucleus_scatters(number):
    far_a = scattering_factor_nm(number, np.array([300.0]))[0] * 10.0 * 30.0**2
    assert far_a * 2.0 * math.pi**2 * BOHR_A / number == pytest.approx(1.0, abs=0.05)


def test_every_element_of_a_sample_has_parameters():
    assert set(NUMBERS.values()) == set(ELEMENTS)
    with pytest.raises(ValueError, match="atomic number 92"):
        scattering_factor_nm(92, np.zeros(1))


def test_the_phase_of_an_atom_adds_up_to_its_forward_scattering():
    atom = Atoms.at([[0.003, -0.017, 0.0]], 6)
    phase = projected_phase(atom, (64, 96), 0.02, 80.0, thermal_nm=0.006)
    expected = mass_ratio(80.0) * wavelength_nm(80.0) * scattering_factor_nm(6, np.zeros(1))[0]
    assert phase.sum() * 0.02**2 == pytest.approx(expected, rel=1e-4)
    row, column = np.unravel_index(phase.argmax(), phase.shape)
    assert (row, column) == (32, 48)  # 31.5 + 0.85, 47.5 + 0.15


def test_an_atom_between_pixels_is_not_rounded_to_one():
    shape_px, pixel_nm = (64, 64), 0.02
    still = projected_phase(Atoms.at([[0.0, 0.0, 0.0]], 14), shape_px, pixel_nm, 80.0, 0.01)
    moved = projected_phase(Atoms.at([[0.006, 0.0, 0.0]], 14), shape_px, pixel_nm, 80.0, 0.01)
    columns = np.arange(64) - 31.5
    shift_px = ((moved - still) * columns).sum() / still.sum()
    assert shift_px == pytest.approx(0.3, abs=0.01)


def test_motion_blurs_an_atom_by_its_spread():
    atom = Atoms.at([[0.0, 0.0, 0.0]], 42)
    still, warm = (
        np.fft.fft2(projected_phase(atom, (64, 64), 0.02, 80.0, thermal_nm)).ravel()
        for thermal_nm in (0.0, 0.012)
    )
    kx, ky = frequencies_per_nm((64, 64), 0.02)
    k = np.sqrt(kx**2 + ky**2).ravel()
    inside = k < 20.0
    blur = np.exp(-2.0 * (np.pi * 0.012 * k[inside]) ** 2)
    assert np.allclose((warm[inside] / still[inside]).real, blur, atol=2e-3)


@pytest.mark.parametrize(
    ("case", "sample", "slice_nm", "lens"),
    [
        ("thin", THIN, None, {"defocus_um": -0.006, "spherical_mm": -0.02, "focal_spread_um": 2.0}),
        ("far", THIN, None, {"defocus_um": 0.030, "spherical_mm": 0.1, "stig_nm": 5.0}),
        ("thick", THICK, 0.2, {"defocus_um": -0.004, "spherical_mm": -0.02}),
    ],
)
def test_images_are_those_of_another_program(case, sample, slice_nm, lens):
    wave = exit_wave(other_atoms(*sample), (SIDE_PX, SIDE_PX), PIXEL_NM, 80.0, slice_nm=slice_nm)
    # Its spread of focus is sqrt(2) of ours; its y, so its azimuths, are the other way round.
    spread_um = lens.pop("focal_spread_um", 0.0) * 1e-3 / math.sqrt(2.0)
    stig_um = lens.pop("stig_nm", 0.0) * 1e-3
    stig = stig_um * math.cos(1.0), -stig_um * math.sin(1.0)
    image = seen(wave, lens.pop("defocus_um"), stig, focal_spread_um=spread_um, **lens) ** 2
    expected = 1.0 + 1e-5 * np.array(ABTEM[case]).reshape(8, 8)
    found = image[:: SIDE_PX // 8, :: SIDE_PX // 8]
    # Measured: 0.9, 1.4 and 2.8 % of the contrast at the worst pixel.
    assert np.abs(found - expected).max() < 0.04 * expected.std()


def test_an_atom_nearer_the_source_is_an_overfocused_one():
    shape_px = 96, 96
    low = exit_wave(Atoms.at([[0.0, 0.0, 0.0]], 14), shape_px, PIXEL_NM, 80.0, slice_nm=0.5)
    high = exit_wave(Atoms.at([[0.0, 0.0, 3.0]], 14), shape_px, PIXEL_NM, 80.0, slice_nm=0.5)
    lens = {"spherical_mm": 0.0, "focal_spread_um": 0.0}
    over, under = seen(low, 0.003, **lens), seen(low, -0.003, **lens)
    assert np.abs(seen(high, 0.0, **lens) - over).max() < 1e-3
    assert np.abs(seen(high, 0.0, **lens) - under).max() > 0.05


def test_no_electron_is_lost_in_a_thick_sample():
    rng = np.random.default_rng(3)
    atoms = Atoms.at(rng.uniform(-0.6, 0.6, (60, 3)), 6)
    wave = exit_wave(atoms, (128, 128), 0.01, 200.0, slice_nm=0.2, thermal_nm=0.008)
    assert (np.abs(wave) ** 2).mean() == pytest.approx(1.0, abs=5e-3)


def test_a_vacuum_leaves_the_wave_alone():
    empty = Atoms.at(np.zeros((0, 3)), np.zeros(0))
    assert np.abs(exit_wave(empty, (32, 48), 0.02, 80.0, slice_nm=0.3) - 1.0).max() < 1e-5
