"""An objective that images by interference, as one more thing that an instrument may have.

A bright-field transmission microscope shows phases: what is in a frame follows from the lens's
transfer, and no sharpness tells its focus. Whoever focuses has to know that, and the lens.
"""

# ruff: noqa: D102 - what the properties mean stands in the class

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class PhaseContrast(Protocol):
    """The objective and its illumination. An instrument that has one shows it as `phase_contrast`.

    Widths are one standard deviation, angles half-angles.
    """

    @property
    def is_in_use(self) -> bool:  # False: the field in use is scanned, say
        ...

    @property
    def voltage_kv(self) -> float: ...
    @property
    def spherical_mm(self) -> float: ...
    @property
    def focal_spread_um(self) -> float: ...
    @property
    def direction_mrad(self) -> float: ...
    @property
    def aperture_mrad(self) -> float:  # behind the sample
        ...
