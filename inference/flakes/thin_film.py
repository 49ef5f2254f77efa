"""Colours of thin films: Fresnel interference in a stack, seen through a lens, a lamp and a camera.

A layer number can be read from a colour because a flake, its oxide and the silicon under it make an
interferometer. This file is that interferometer: arrays in, arrays out, and no image. It is shared
by the detector, which compares pixels with it, and by the simulator, which paints with it.

Physics: the amplitude reflected by a stack follows the recursion of Parratt,

    r = (r01 + R1 e^{2i d1}) / (1 + r01 R1 e^{2i d1}),    d_j = 2 pi kz_j d_j / lambda,

with r01 the Fresnel coefficient of an interface, kz_j = sqrt(n_j^2 - sin^2 theta) and R1 the same
expression one interface further down. The intensity is the mean of s and p, averaged over the cone
of the objective with the weight sin(theta) cos(theta) of a filled, aplanatic pupil. Following
P. Blake et al., Appl. Phys. Lett. 91, 063124 (2007), for graphene on oxide.

Sign of the index: n + ik with k >= 0 absorbing (time factor exp(-i omega t)). Layers are isotropic:
use the in-plane (ordinary) index; at the angles of an objective the p wave is off by little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from inference.flakes.materials import SI, SIO2, Material

FloatArray: TypeAlias = npt.NDArray[np.float64]
ComplexArray: TypeAlias = npt.NDArray[np.complex128]
Layer: TypeAlias = tuple[complex | FloatArray | ComplexArray, float | FloatArray]

WAVELENGTHS_NM: FloatArray = np.arange(400.0, 701.0, 10.0)
"""The grid on which colours are integrated; finer ones change contrasts by less than 0.002."""

_PLANCK_NM_K = 1.438776877e7  # h c / k_B


@dataclass(frozen=True, slots=True)
class Illuminant:
    """A black-body lamp, or daylight, after its filters: what falls on the sample."""

    colour_temperature_k: float = 3200.0

    def spectrum(self, wavelength_nm: FloatArray) -> FloatArray:
        """Radiated power per wavelength (Planck), 1 at 560 nm."""
        x = _PLANCK_NM_K / self.colour_temperature_k
        power = wavelength_nm**-5.0 / np.expm1(x / wavelength_nm)
        return np.asarray(power / (560.0**-5.0 / np.expm1(x / 560.0)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class CameraResponse:
    """Three Gaussian colour filters, with the sensor's own curve folded in; order R, G, B.

    The defaults are a common colour camera behind its infrared filter: the dyes are Gaussians, and
    the red one opens steeply at 565 nm.
    """

    centre_nm: tuple[float, float, float] = (600.0, 535.0, 460.0)
    sigma_nm: tuple[float, float, float] = (32.0, 38.0, 30.0)
    cut_on_nm: tuple[float, float, float] = (565.0, 0.0, 0.0)  # nothing passes below

    def filters(self, wavelength_nm: FloatArray) -> FloatArray:
        """Relative response, (3, n), 1 at each filter's centre."""
        centre = np.asarray(self.centre_nm)[:, None]
        sigma = np.asarray(self.sigma_nm)[:, None]
        bell = np.exp(-0.5 * ((wavelength_nm - centre) / sigma) ** 2)
        passed = wavelength_nm >= np.asarray(self.cut_on_nm)[:, None]
        return np.asarray(bell * passed, dtype=np.float64)


def pupil_nodes(numerical_aperture: float, angles: int = 12) -> tuple[FloatArray, FloatArray]:
    """Sines of the angles in a cone and their weights, which sum to 1 (Gauss-Legendre in theta)."""
    if not 0.0 <= numerical_aperture < 1.0:
        raise ValueError(f"numerical aperture in air must be in 0..1, got {numerical_aperture}")
    if numerical_aperture == 0.0:
        return np.zeros(1), np.ones(1)
    nodes, weights = np.polynomial.legendre.leggauss(angles)
    theta = 0.5 * np.arcsin(numerical_aperture) * (nodes + 1.0)
    weights = weights * np.sin(theta) * np.cos(theta)
    return np.sin(theta), np.asarray(weights / weights.sum(), dtype=np.float64)


def reflectance(
    wavelength_nm: FloatArray,
    layers: Sequence[Layer],
    substrate_index: complex | FloatArray | ComplexArray,
    numerical_aperture: float,
    angles: int = 12,
) -> FloatArray:
    """Share of unpolarised light that a stack in air reflects into the lens, per wavelength.

    layers: from the air down, each (index, thickness_nm); an index is one number or (n,), a
    thickness one number or an array; arrays broadcast against each other to a ladder's shape.
    Returns (*ladder, n) for n wavelengths. `numerical_aperture` 0 is normal incidence.
    """
    wavelength_nm = np.asarray(wavelength_nm, dtype=np.float64)
    sines, weights = pupil_nodes(numerical_aperture, angles)
    transverse2 = (sines**2)[:, None]  # (a, 1)
    stack = [np.asarray(index, dtype=np.complex128) for index, _ in layers]
    media2 = [np.ones((), dtype=np.complex128)]
    media2 += [index**2 for index in stack]
    media2.append(np.asarray(substrate_index, dtype=np.complex128) ** 2)
    kz = [np.sqrt(index2 - transverse2) for index2 in media2]  # (a, n) or (a, 1)

    total: FloatArray | float = 0.0
    for polarisation in ("s", "p"):
        admittance = kz if polarisation == "s" else [k / e for k, e in zip(kz, media2, strict=True)]
        steps = [(above - below) / (above + below) for above, below in pairwise(admittance)]
        amplitude = steps[-1]
        for number in range(len(layers) - 1, -1, -1):
            thickness_nm = np.asarray(layers[number][1], dtype=np.float64)[..., None, None]
            phase = np.exp((4j * np.pi / wavelength_nm) * kz[number + 1] * thickness_nm)
            returned = amplitude * phase
            amplitude = (steps[number] + returned) / (1.0 + steps[number] * returned)
        total = total + 0.5 * (amplitude.real**2 + amplitude.imag**2)
    mean = np.einsum("...an,a->...n", np.broadcast_arrays(total, sines[:, None])[0], weights)
    shape = np.broadcast_shapes(mean.shape, wavelength_nm.shape)
    return np.asarray(np.broadcast_to(mean, shape), dtype=np.float64)


def stack_rgb(
    wavelength_nm: FloatArray,
    layers: Sequence[Layer],
    substrate_index: complex | FloatArray | ComplexArray,
    numerical_aperture: float,
    illuminant: Illuminant | None = None,
    camera: CameraResponse | None = None,
    angles: int = 12,
) -> FloatArray:
    """Linear camera signal of a stack, (*ladder, 3); a perfect mirror is (1, 1, 1).

    That is a camera whose white balance was set on a mirror. `wavelength_nm` must be even.
    """
    reflected = reflectance(wavelength_nm, layers, substrate_index, numerical_aperture, angles)
    weights = colour_weights(wavelength_nm, illuminant, camera)
    return np.asarray(reflected @ weights.T, dtype=np.float64)


def contrast_rgb(
    material: Material,
    thickness_nm: float | FloatArray,
    oxide_nm: float | FloatArray,
    numerical_aperture: float,
    illuminant: Illuminant | None = None,
    camera: CameraResponse | None = None,
    angles: int = 12,
) -> FloatArray:
    """Contrast V_flake / V_substrate - 1 of a crystal on oxidised silicon, per linear channel.

    thickness_nm and oxide_nm broadcast against each other to the ladder's shape; for layers use
    `layers * material.layer_thickness_nm`. Returns (*ladder, 3). Exposure and white balance cancel.
    """
    grid = WAVELENGTHS_NM
    oxide = (SIO2.at(grid), oxide_nm)
    lit = (SI.at(grid), numerical_aperture, illuminant, camera, angles)
    flake = stack_rgb(grid, [(material.index(grid), thickness_nm), oxide], *lit)
    return np.asarray(flake / stack_rgb(grid, [oxide], *lit) - 1.0, dtype=np.float64)


def colour_weights(
    wavelength_nm: FloatArray,
    illuminant: Illuminant | None = None,
    camera: CameraResponse | None = None,
) -> FloatArray:
    """Lamp times filter per channel, (3, n), each summing to 1."""
    lamp = (illuminant or Illuminant()).spectrum(wavelength_nm)
    weights = (camera or CameraResponse()).filters(wavelength_nm) * lamp
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)
