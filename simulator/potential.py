"""What atoms do to a fast electron's wave: from positions and species to the wave that leaves.

An atom's projected potential is the transform of its electron scattering factor f_e. Kirkland's
fit, f_e(q) = sum a / (q^2 + b) + sum c exp(-d q^2), has three terms each, q = 1 / d in 1/A, f_e in
A (E. J. Kirkland, Advanced Computing in Electron Microscopy, 2nd ed., appendix C; the numbers of
its table stand in `inference.restore.electrons`, which needs them too). Two things that the fit
does not know of itself hold for it, and are tested: f_e(0) of Doyle and Turner (Acta Cryst. A24,
390, 1968), and the Mott-Bethe limit, sum a = Z / (2 pi^2 a0).

The phase that a slice adds is sigma times its projected potential, sigma = 2 pi m e lambda / h^2,
the potential h^2 / (2 pi m0 e) times the transform of f_e: together gamma lambda f_e over the area,
with no other constant left. The atoms' places enter as the phases of a direct Fourier sum, so no
atom is rounded to a pixel. Thermal motion blurs each atom by its own spread (Debye-Waller).

Thin sheets are one slice: psi = exp(i phase). What is thicker is cut into slices with free space
between them (multislice; Kirkland, ch. 6), band-limited to two thirds of what the grid holds so
that the products do not alias. Signs: exp(+2 pi i k r) are plane waves that move on, a potential
that attracts advances the phase, and free space turns a wave by exp(-i pi lambda k^2 dz).

Left out: absorption, inelastic scattering, bonds (a few percent of the lowest frequencies of a
light sheet; J. C. Meyer et al., Nat. Mater. 10, 209, 2011), correlation between vibrations.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.restore.electrons import KIRKLAND, REST_KEV
from inference.restore.electrons import frequencies_per_nm as frequencies_per_nm
from inference.restore.electrons import scattering_factor_nm as scattering_factor_nm
from inference.restore.electrons import wavelength_nm as wavelength_nm
from simulator.atoms import Atoms

Wave = npt.NDArray[np.complex64]
Numbers = npt.NDArray[np.floating[Any]]

BOHR_A = 0.529177211

ELEMENTS: tuple[int, ...] = tuple(KIRKLAND)
"""The atomic numbers that have parameters."""


def mass_ratio(voltage_kv: float) -> float:
    """Moving over rest mass of the electron."""
    return 1.0 + voltage_kv / REST_KEV


def interaction_rad_per_v_nm(voltage_kv: float) -> float:
    """sigma: the phase that a projected potential of 1 V nm adds; 2 pi m e lambda / h^2."""
    # m0 e / h^2 = 1 / (2 h^2 / (2 m0 e)); h^2 / (2 m0 e) = 1.50412 V nm^2
    return math.pi * mass_ratio(voltage_kv) * wavelength_nm(voltage_kv) / 1.504121416


def ramp(turns: Numbers) -> Wave:
    """exp(-2 pi i turns), whole turns taken away before single precision can lose the rest."""
    angle = ((turns - np.rint(turns)) * (-2.0 * np.pi)).astype(np.float32)
    found = np.empty(angle.shape, np.complex64)
    found.real, found.imag = np.cos(angle), np.sin(angle)
    return found


def structure_factor(
    x_nm: Numbers,
    y_nm: Numbers,
    shape_px: tuple[int, int],
    pixel_size_nm: float,
    *,
    is_half: bool = False,
) -> Wave:
    """Sum over atoms of exp(-2 pi i k r), (h, w); the origin is in the middle of the grid.

    is_half: the frequencies of `numpy.fft.rfft2` alone, (h, w // 2 + 1).
    """
    height, width = shape_px
    column = np.asarray(x_nm, np.float64) / pixel_size_nm + (width - 1) / 2
    row = (height - 1) / 2 - np.asarray(y_nm, np.float64) / pixel_size_nm
    frequencies = np.fft.rfftfreq(width) if is_half else np.fft.fftfreq(width)
    across = ramp(np.outer(column, frequencies))  # (n, w)
    down = ramp(np.outer(np.fft.fftfreq(height), row))  # (h, n)
    return np.asarray(down @ across, np.complex64)


def phase_spectrum(
    atoms: Atoms,
    shape_px: tuple[int, int],
    pixel_size_nm: float,
    voltage_kv: float,
    thermal_nm: float = 0.0,
) -> Wave:
    """`numpy.fft.rfft2` of `projected_phase`, (h, w // 2 + 1)."""
    total = np.zeros((shape_px[0], shape_px[1] // 2 + 1), np.complex64)
    for number in np.unique(atoms.number):
        here = atoms.number == number
        x_nm, y_nm = atoms.x_nm[here], atoms.y_nm[here]
        found = structure_factor(x_nm, y_nm, shape_px, pixel_size_nm, is_half=True)
        total += found * _of_one(int(number), shape_px, pixel_size_nm, voltage_kv, thermal_nm)
    return total


@lru_cache(maxsize=16)
def _of_one(
    number: int,
    shape_px: tuple[int, int],
    pixel_size_nm: float,
    voltage_kv: float,
    thermal_nm: float,
) -> npt.NDArray[np.float32]:
    """The spectrum of one atom's phase, at the origin; read-only."""
    kx, ky = frequencies_per_nm(shape_px, pixel_size_nm)
    squared = kx[:, : shape_px[1] // 2 + 1] ** 2 + ky**2
    scale = mass_ratio(voltage_kv) * wavelength_nm(voltage_kv) / pixel_size_nm**2
    blur = np.exp(-2.0 * (np.pi * thermal_nm) ** 2 * squared)
    found = scale * blur * scattering_factor_nm(number, np.sqrt(squared))
    spectrum = np.asarray(found, np.float32)
    spectrum.flags.writeable = False
    return spectrum


def projected_phase(
    atoms: Atoms,
    shape_px: tuple[int, int],
    pixel_size_nm: float,
    voltage_kv: float,
    thermal_nm: float = 0.0,
) -> npt.NDArray[np.float32]:
    """Phase in radians that all the atoms in one plane add, (h, w), y down; the grid is periodic.

    thermal_nm: one standard deviation of an atom's motion along one direction.
    """
    spectrum = phase_spectrum(atoms, shape_px, pixel_size_nm, voltage_kv, thermal_nm)
    return np.asarray(np.fft.irfft2(spectrum, shape_px), np.float32)


def within_band(shape_px: tuple[int, int], pixel_size_nm: float) -> npt.NDArray[np.bool_]:
    """The frequencies that a wave keeps: up to two thirds of Nyquist's."""
    kx, ky = frequencies_per_nm(shape_px, pixel_size_nm)
    limit = 2.0 / 3.0 * 0.5 / pixel_size_nm
    return np.asarray(kx**2 + ky**2 <= limit**2, np.bool_)


def exit_wave(
    atoms: Atoms,
    shape_px: tuple[int, int],
    pixel_size_nm: float,
    voltage_kv: float,
    *,
    slice_nm: float | None = None,
    thermal_nm: float = 0.0,
) -> Wave:
    """The wave that leaves the sample, (h, w), y down, where one of amplitude 1 came in.

    slice_nm: None: all in one plane, at z = 0. Otherwise slices of this thickness, the highest z
    first; the wave is handed over at the plane z = 0, so a sheet's defocus is that of its middle.
    """
    kx, ky = frequencies_per_nm(shape_px, pixel_size_nm)
    squared = kx**2 + ky**2
    is_inside = within_band(shape_px, pixel_size_nm)
    turn = -np.pi * wavelength_nm(voltage_kv) * squared
    wave = np.ones(shape_px, np.complex64)
    if slice_nm is None:
        planes = np.zeros(len(atoms.z_nm), np.int64)
        slice_nm = 0.0
    else:
        planes = np.round(-atoms.z_nm / slice_nm).astype(np.int64)
    at = int(planes.min(initial=0))  # in slices, down the beam
    for plane in np.unique(planes):
        if plane != at:
            step = np.exp(1j * turn * (slice_nm * (plane - at))) * is_inside
            wave = np.asarray(np.fft.ifft2(np.fft.fft2(wave) * step), np.complex64)
            at = int(plane)
        phase = projected_phase(
            atoms.chosen(planes == plane), shape_px, pixel_size_nm, voltage_kv, thermal_nm
        )
        slab = np.fft.ifft2(np.fft.fft2(np.exp(1j * phase)) * is_inside)
        wave = np.asarray(wave * slab, np.complex64)
    back = np.exp(1j * turn * (-slice_nm * at)) * is_inside
    return np.asarray(np.fft.ifft2(np.fft.fft2(wave) * back), np.complex64)
