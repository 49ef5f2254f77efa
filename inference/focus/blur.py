"""How blur of a given radius takes power from a band: a family of probe shapes, as tables.

Defocus spreads every point of the sample over a spot whose radius grows with the distance from
focus; the image's spectrum is the object's times the spot's transform M(f R). Real probes are none
of these shapes exactly, so an estimator asks all of them: a Gaussian, the uniform disc of a filled
aperture, a truncated Gaussian, a cone, and the disc with Stokseth's correction for diffraction (J.
Opt. Soc. Am. 59, 1314, 1969), which blurs less near the aperture's cut-off. All have the second
moment of a disc of radius R, so that R means one thing.

What a band keeps is M^2 averaged over its width, with the weight that objects have there (power
falls about as f^-2) and the smear of the window: taken at the band's centre instead, M^2 would have
zeros that no measurement shows.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import numpy.typing as npt

from inference.focus.spectrum import SIDE_PX, band_edges_cyc_px

SHAPES = ("gauss", "disc", "truncated-gauss", "cone", "wave", "soft-wave")
MOST_RADIUS_PX = 160.0
_STEPS = 192
# Of the aperture: about one pixel of diffraction blur, and two, for lenses that resolve less.
_CUT_OFF_CYC_PX = {"wave": 1.2, "soft-wave": 0.58}
_U_MOST = math.log1p(MOST_RADIUS_PX)
U_STEP = _U_MOST / (_STEPS - 1)  # of log(1 + radius), from one row of the table to the next


@functools.cache
def table(stride: int = 1) -> npt.NDArray[np.float32]:
    """Mean squared transfer of `stride` bands together, (shapes, bands / stride, radius steps)."""
    edges = band_edges_cyc_px()[::stride]
    radii = np.expm1(np.linspace(0.0, _U_MOST, _STEPS))
    tables = []
    for shape in SHAPES:
        rows = []
        for low, high in itertools.pairwise(edges):
            fine = np.linspace(low, high, 17)[:, None] + np.array([-1.2, 0.0, 1.2]) / SIDE_PX
            weight = (fine[:, 1:2] ** -1.0) * np.array([0.25, 0.5, 0.25])  # f df times f^-2
            passed = transfer(shape, np.abs(fine)[:, :, None], radii)
            kept = (weight[:, :, None] * passed**2).sum(axis=(0, 1)) / weight.sum()
            rows.append(kept)
        tables.append(np.array(rows))
    # No spot is dark for ever: scattered electrons and lens errors keep a little.
    result: npt.NDArray[np.float32] = np.maximum(np.array(tables), 1e-7).astype(np.float32)
    result.setflags(write=False)
    return result


def radius_steps(radius_px: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Where a radius lies in the table, as a fractional index."""
    scaled = np.log1p(np.minimum(radius_px, np.float32(MOST_RADIUS_PX * 0.999)))
    steps: npt.NDArray[np.float32] = (scaled * np.float32(1.0 / U_STEP)).astype(np.float32)
    return steps


def transfer(
    shape: str, f_cyc_px: npt.NDArray[np.float64], radius_px: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Transfer of one shape at frequencies and radii that broadcast; signed where lobes are."""
    x = f_cyc_px * radius_px
    match shape:
        case "gauss":
            gauss: npt.NDArray[np.float64] = np.exp(-0.5 * (math.pi * x) ** 2)  # sigma = R / 2
            return gauss
        case "disc":
            return _radial(x, "disc")
        case "wave" | "soft-wave":
            slack = np.clip(1.0 - f_cyc_px / _CUT_OFF_CYC_PX[shape], 0.0, 1.0)
            return _radial(x * slack, "disc")
        case _:
            return _radial(x, shape)


def _radial(x: npt.NDArray[np.float64], shape: str) -> npt.NDArray[np.float64]:
    """Transform of a radial spot with a disc's second moment, at frequency times radius."""
    grid, values = _radial_curve(shape)
    result: npt.NDArray[np.float64] = np.interp(x, grid, values, right=0.0)
    return result


@functools.cache
def _radial_curve(shape: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    # Projected on one axis, a radial spot's transform is a plain cosine transform.
    r = (np.arange(400) + 0.5) / 400
    match shape:
        case "disc":
            density = np.ones_like(r)
        case "truncated-gauss":
            density = np.exp(-0.5 * (r / 0.6) ** 2)
        case _:
            density = 1.0 - r
    ring = density * r
    ring /= ring.sum()
    stretch = math.sqrt(0.5 / float(np.sum(ring * r**2)))  # a disc's mean of r^2 is 1/2
    grid = np.linspace(0.0, 12.0, 1_201)
    phase = (np.arange(64) + 0.5) / 64 * math.pi
    values = np.zeros_like(grid)
    for share, radius in zip(ring, r * stretch, strict=True):
        # J0 by its integral, averaged over the half turn
        values += share * np.cos(
            2.0 * math.pi * radius * grid[:, None] * np.cos(phase)[None, :]
        ).mean(axis=1)
    # Beyond, the lobes of every shape are below the noise of any frame.
    return grid, values
