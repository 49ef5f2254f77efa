"""Fast electrons: their wavelength, how atoms scatter them, what the objective makes of the wave.

The objective turns each frequency k of the wave that leaves the sample by exp(-i chi) and damps it,

    chi = pi lambda (D k^2 + X (kx^2 - ky^2) + 2 Y kx ky) + pi Cs lambda^3 k^4 / 2
    damping = exp(-(pi lambda s k^2)^2 / 2 - t^2 |grad chi|^2 / (2 lambda^2)),

s the spread of focus, t that of directions (L. Reimer, H. Kohl, Transmission Electron Microscopy,
5th ed., ch. 6). D > 0: the sample is further from the lens than focus, overfocus in the literature.
A weak phase phi is then seen as contrast 2 sin(chi) phi(k), with no sign in front. Azimuths count
from x to y, y UP, while images are stored y down.

Scattering factors are fits, sum a / (q^2 + b) + sum c exp(-d q^2) with q = 1 / d in 1/A (E. J.
Kirkland, Advanced Computing in Electron Microscopy, 2nd ed., appendix C).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Waves = npt.NDArray[np.complex64]

REST_KEV: Final = 510.99895

_Triple = tuple[float, float, float]
# (a, b, c, d); A, 1/A^2, A, A^2. By atomic number.
KIRKLAND: Final[dict[int, tuple[_Triple, _Triple, _Triple, _Triple]]] = {
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


@dataclass(frozen=True, slots=True)
class Lens:
    """What is known of an objective and its illumination, apart from focus and stigmators."""

    voltage_kv: float
    spherical_mm: float = 0.0
    focal_spread_um: float = 0.003  # one sd
    direction_mrad: float = 0.1  # of the illumination, one sd
    aperture_mrad: float = 60.0  # half-angle, behind the sample


@dataclass(frozen=True, slots=True)
class Focus:
    """What the operator sets."""

    defocus_um: float  # > 0: sample further from the lens than focus
    stig_um: tuple[float, float] = (0.0, 0.0)  # X and Y of the module's chi


def wavelength_nm(voltage_kv: float) -> float:
    """Relativistic de Broglie wavelength, h c / sqrt(E (E + 2 m c^2))."""
    return 1.23984198 / math.sqrt(voltage_kv * (voltage_kv + 2.0 * REST_KEV))


def scattering_factor_nm(number: int, q_per_nm: Numbers) -> Doubles:
    """f_e of a resting electron at frequencies q = 1 / d; raises ValueError without parameters."""
    found = KIRKLAND.get(number)
    if found is None:
        raise ValueError(
            f"no scattering factor for atomic number {number}; there are {(*KIRKLAND,)}"
        )
    squared = (np.asarray(q_per_nm, np.float64) * 0.1) ** 2  # 1/A^2
    total = np.zeros_like(squared)
    for a, b, c, d in zip(*found, strict=True):
        total += a / (squared + b) + c * np.exp(-d * squared)
    return total * 0.1


def atom_phase_nm2(number: int, q_per_nm: Numbers, voltage_kv: float) -> Doubles:
    """Transform of the phase that one atom adds: gamma lambda f_e."""
    scale = (1.0 + voltage_kv / REST_KEV) * wavelength_nm(voltage_kv)
    return scale * scattering_factor_nm(number, q_per_nm)


def frequencies_per_nm(shape_px: tuple[int, int], pixel_size_nm: float) -> tuple[Doubles, Doubles]:
    """(kx (1, w), ky (h, 1)) of `numpy.fft.fft2`; x to the right, y UP in the image."""
    kx = np.fft.fftfreq(shape_px[1], pixel_size_nm).astype(np.float64)
    ky = -np.fft.fftfreq(shape_px[0], pixel_size_nm).astype(np.float64)
    return kx[None, :], ky[:, None]


def chi_rad(lens: Lens, focus: Focus, kx_per_nm: Doubles, ky_per_nm: Doubles) -> Doubles:
    """How far the lens turns each frequency back; for the sign, see the module."""
    length_nm = wavelength_nm(lens.voltage_kv)
    square = kx_per_nm**2 + ky_per_nm**2
    focus_nm, x_nm, y_nm = (1e3 * um for um in (focus.defocus_um, *focus.stig_um))
    sphere_nm = lens.spherical_mm * 1e6 * length_nm**2 * square  # as a defocus
    return np.asarray(
        np.pi
        * length_nm
        * (
            (focus_nm + 0.5 * sphere_nm) * square
            + x_nm * (kx_per_nm**2 - ky_per_nm**2)
            + 2.0 * y_nm * kx_per_nm * ky_per_nm
        )
    )


def damping_ratio(lens: Lens, focus: Focus, kx_per_nm: Doubles, ky_per_nm: Doubles) -> Doubles:
    """What the lens leaves of each frequency; 0 outside its aperture."""
    length_nm = wavelength_nm(lens.voltage_kv)
    square = kx_per_nm**2 + ky_per_nm**2
    focus_nm, x_nm, y_nm = (1e3 * um for um in (focus.defocus_um, *focus.stig_um))
    sphere_nm = lens.spherical_mm * 1e6 * length_nm**2 * square
    # grad chi / (2 pi lambda)
    slope_x = (focus_nm + sphere_nm + x_nm) * kx_per_nm + y_nm * ky_per_nm
    slope_y = (focus_nm + sphere_nm - x_nm) * ky_per_nm + y_nm * kx_per_nm
    temporal = 0.5 * (np.pi * length_nm * 1e3 * lens.focal_spread_um * square) ** 2
    spread = 1e-3 * lens.direction_mrad
    spatial = 2.0 * (np.pi * spread) ** 2 * (slope_x**2 + slope_y**2)
    is_open = square * length_nm**2 <= (1e-3 * lens.aperture_mrad) ** 2
    return np.asarray(np.exp(-temporal - spatial) * is_open)


def transfer(lens: Lens, focus: Focus, kx_per_nm: Doubles, ky_per_nm: Doubles) -> Waves:
    """What each frequency of the wave is multiplied with."""
    chi = chi_rad(lens, focus, kx_per_nm, ky_per_nm)
    damping = damping_ratio(lens, focus, kx_per_nm, ky_per_nm)
    return np.asarray(damping * np.exp(-1j * chi), np.complex64)


def phase_contrast(lens: Lens, focus: Focus, kx_per_nm: Doubles, ky_per_nm: Doubles) -> Doubles:
    """2 sin(chi) damped: what a weak phase's transform is multiplied with in the image."""
    chi = chi_rad(lens, focus, kx_per_nm, ky_per_nm)
    return np.asarray(2.0 * np.sin(chi) * damping_ratio(lens, focus, kx_per_nm, ky_per_nm))
