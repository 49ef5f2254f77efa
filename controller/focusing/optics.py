"""What a lens means to the few-frame focus: how its blur grows, and in what unit it counts.

A cone of light or of electrons with half-angle a spreads a point over a disc of radius a z at the
distance z from focus; the radius in pixels is all that the estimator asks of an instrument. For
light a is the numerical aperture: what rays at the rim of a wide cone add in tangent over sine, the
phase of a real pupil takes away again (measured on the simulated microscope at 0.15 to 0.9:
1.0 to 1.2 times the paraxial radius).

The estimator's steps are lengths at which blur grows by a pixel or so. That is the depth of field
of an electron beam, max(pixel, probe) / a. Of light, whose depth of field also holds lambda / NA^2,
a quarter of it: at 20x a whole one is five pixels of blur.
"""

from __future__ import annotations

from dataclasses import dataclass

from drivers.api import Beam, Instrument, Objective

_UNIT_RATIO = 0.25  # of light's depth of field


@dataclass(frozen=True, slots=True)
class FocusOptics:
    """One lens at one magnification."""

    depth_of_field_um: float
    unit_um: float  # what the few-frame focus calls one depth of field
    blur_px_per_unit: float  # radius of the blur at that distance from focus, nominal


def focus_optics(instrument: Instrument, objective: Objective) -> FocusOptics:
    """Of the beam where there is one, else of the objective."""
    pixel_um = objective.pixel_size_nm * 1e-3
    beam = getattr(instrument, "beam", None)
    if isinstance(beam, Beam):
        dof_um = beam.depth_of_field_um(objective.pixel_size_nm)
        return FocusOptics(dof_um, dof_um, dof_um * beam.convergence_mrad * 1e-3 / pixel_um)
    dof_um = objective.depth_of_field_um()
    unit_um = _UNIT_RATIO * dof_um
    return FocusOptics(dof_um, unit_um, unit_um * objective.numerical_aperture / pixel_um)
