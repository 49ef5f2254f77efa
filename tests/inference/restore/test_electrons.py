"""The lens as inference knows it, beside the simulator's and theory."""

import numpy as np
import pytest

from inference.restore.electrons import (
    Focus,
    Lens,
    atom_phase_nm2,
    frequencies_per_nm,
    phase_contrast,
    scattering_factor_nm,
    transfer,
    wavelength_nm,
)
from simulator import potential, tem
from simulator.atoms import Atoms

LENS = {"voltage_kv": 120.0, "spherical_mm": -0.013, "focal_spread_um": 0.004}


def test_wavelengths_are_the_textbook_ones():
    assert wavelength_nm(80.0) == pytest.approx(4.1757e-3, rel=1e-4)
    assert wavelength_nm(300.0) == pytest.approx(1.9687e-3, rel=1e-4)


@pytest.mark.parametrize("number", [5, 6, 7, 14, 16, 29, 42])
def test_factors_are_those_of_the_simulator(number):
    q = np.linspace(0.0, 15.0, 31)
    ours = scattering_factor_nm(number, q)
    assert np.allclose(ours, potential.scattering_factor_nm(number, q), rtol=1e-12)


def test_an_unknown_element_is_refused():
    with pytest.raises(ValueError, match="atomic number 92"):
        scattering_factor_nm(92, np.zeros(1))


@pytest.mark.parametrize("defocus_um", [-0.02, 0.007])
def test_the_lens_is_that_of_the_simulator(defocus_um):
    kx, ky = frequencies_per_nm((48, 64), 0.02)
    stig_um = (0.002, -0.003)
    theirs = tem.transfer(tem.LensSettings(**LENS), defocus_um, stig_um, kx, ky)
    ours = transfer(Lens(**LENS), Focus(defocus_um, stig_um), kx, ky)
    assert np.allclose(ours, theirs, atol=1e-6)
    assert np.allclose(
        phase_contrast(Lens(**LENS), Focus(defocus_um, stig_um), kx, ky),
        -2.0 * theirs.imag,
        atol=1e-5,
    )


def test_one_atom_adds_the_phase_that_the_simulator_gives_it():
    phase = potential.projected_phase(Atoms.at([[0.0, 0.0, 0.0]], 14), (64, 64), 0.02, 80.0)
    total = float(phase.sum()) * 0.02**2
    assert total == pytest.approx(float(atom_phase_nm2(14, np.zeros(1), 80.0)[0]), rel=1e-4)
