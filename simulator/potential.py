"""What atoms do to a fast electron's wave: from positions and species to the wave that leaves.

An atom's projected potential is the transform of its electron scattering factor f_e. Kirkland's
fit, f_e(q) = sum a / (q^2 + b) + sum c exp(-d q^2), has three terms each, q = 1 / d in 1/A, f_e in
A (E. J. Kirkland, Advanced Computing in Electron Microscopy, 2nd ed., appendix C; the numbers below
are those of its table for the elements that our samples are made of). Two things that the fit does
not know of itself hold for it, and are tested: f_e(0) of Doyle and Turner (Acta Cryst. A24, 390,
1968), and the Mott-Bethe limit, sum a = Z / (2 pi^2 a0).

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

from simulator.atoms import Atoms

Wave = npt.NDArray[np.complex64]
Numbers = npt.NDArray[np.floating[Any]]

BOHR_A = 0.529177211
REST_KEV = 510.99895

# Atomic number: (a, b, c, d); A, 1/A^2, A, A^2.
_Triple = tuple[float, float, float]
_KIRKLAND: dict[int, tuple[_Triple, _Triple, _Triple, _Triple]] = {
    5: (
        (0.125716066, 0.173314452, 0.184774811),
        (0.14825883, 0.148257216, 3.34227311),
        (0.195250221, 0.529642075, 0.001082305),
        (1.97339463, 5.70035553, 0.0564857237),
    ),
    6: (
        (0.212080767, 0.199811865, 0.168254385),
        (0.208605417, 0.208610186, 5.57870773),
        (0.14204836, 0.363830672, 0.000835012),
        (1.33311887, 3.80800263, 0.040398262),
    ),
    7: (
        (0.533015554, 0.0529008883, 0.0924159648),
        (0.290952515, 10.3547896, 10.3540028),
        (0.261799101, 0.0008802621, 0.110166555),
        (2.76252723, 0.0347681236, 0.993421736),
    ),
    14: (
        (1.06543892, 0.120143691, 0.180915263),
        (1.04118455, 68.7113368, 0.0887533926),
        (1.1206562, 0.0305452816, 1.59963502),
        (3.70062619, 0.214097897, 9.99096638),
    ),
    16: (
        (1.01646916, 0.441766748, 0.121503863),
        (1.69181965, 0.174180288, 167.011091),
        (0.82796667, 0.0233022533, 1.18302846),
        (2.3034281, 0.15695415, 5.85782891),
    ),
    29: (
        (0.358774531, 1.76181348, 0.636905053),
        (0.106153463, 1.01640995, 15.3659093),
        (0.0074493067, 0.189002347, 0.229619589),
        (0.0385345989, 0.39842779, 0.901419843),
    ),
    42: (
        (0.61016012, 1.26544, 1.97428762),
        (0.0911628054, 0.506776025, 5.89590381),
        (0.648028962, 0.0026038082, 0.113887493),
        (1.46634108, 0.0078433631, 0.15511434),
    ),
    78: (
        (0.98469794, 2.73987079, 3.61696715),
        (0.160910839, 0.718971667, 12.9281016),
        (0.302885602, 0.278370726, 0.0152124129),
        (0.170134854, 1.49862703, 0.0283510822),
    ),
    79: (
        (0.961263398, 3.6958103, 2.77567491),
        (0.170932277, 12.9335319, 0.68999707),
        (0.295414176, 0.311475743, 0.0143237267),
        (0.16352551, 1.39200901, 0.0271265337),
    ),
}
ELEMENTS: tuple[int, ...] = tuple(_KIRKLAND)
"""The atomic numbers that have parameters."""


def wavelength_nm(voltage_kv: float) -> float:
    """Relativistic de Broglie wavelength, h c / sqrt(E (E + 2 m c^2))."""
    return 1.23984198 / math.sqrt(voltage_kv * (voltage_kv + 2.0 * REST_KEV))


def mass_ratio(voltage_kv: float) -> float:
    """Moving over rest mass of the electron."""
    return 1.0 + voltage_kv / REST_KEV


def interaction_rad_per_v_nm(voltage_kv: float) -> float:
    """sigma: the phase that a projected potential of 1 V nm adds; 2 pi m e lambda / h^2."""
    # m0 e / h^2 = 1 / (2 h^2 / (2 m0 e)); h^2 / (2 m0 e) = 1.50412 V nm^2
    return math.pi * mass_ratio(voltage_kv) * wavelength_nm(voltage_kv) / 1.504121416


def scattering_factor_nm(number: int, q_per_nm: Numbers) -> npt.NDArray[np.float64]:
    """f_e of a resting electron at frequencies q = 1 / d; raises ValueError without parameters."""
    found = _KIRKLAND.get(number)
    if found is None:
        raise ValueError(f"no scattering factor for atomic number {number}; there are {ELEMENTS}")
    squared = (np.asarray(q_per_nm, np.float64) * 0.1) ** 2  # 1/A^2
    total = np.zeros_like(squared)
    for a, b, c, d in zip(*found, strict=True):
        total += a / (squared + b) + c * np.exp(-d * squared)
    return total * 0.1


def frequencies_per_nm(
    shape_px: tuple[int, int], pixel_size_nm: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(kx (1, w), ky (h, 1)) of `numpy.fft.fft2`; x to the right, y UP in the image."""
    kx = np.fft.fftfreq(shape_px[1], pixel_size_nm).astype(np.float64)
    ky = -np.fft.fftfreq(shape_px[0], pixel_size_nm).astype(np.float64)
    return kx[None, :], ky[:, None]


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
