"""The hardware's words: frames, poses and the small Protocols every instrument speaks.

A driver never decides. It moves when told, exposes when told, stamps what it did and says honestly
what it does not know. Implementations do not inherit from anything here; optional abilities are
separate Protocols (`Turret`, `Illumination`) that an `Instrument` has or has not.

Conventions, stated once:

- Stage: x to the right, y up, in the plane of the sample, in um. The stage's position is the point
  of the sample that lies on the optical axis of the objective in use, up to that objective's
  parcentric offset, which belongs to the objective (`Objective.parcentric_*_um`).
- Focus: `focus_z_um` grows upwards as the lens is lifted from the sample.
  `defocus_um > 0`: the sample is further from the lens than focus, hence
  `defocus_um = focus_z_um - z_of_best_focus_um`.
- Images: (h, w) or (h, w, 3) in R, G, B order, uint8 or uint16, y down, read-only.
- Time: seconds on the running event loop's own clock (`loop.time()`), which is monotonic. The
  simulator runs the same code on a loop whose clock jumps; nobody else can tell.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the instrument said it was, in the middle of the exposure."""

    stage_x_um: float
    stage_y_um: float
    focus_z_um: float
    objective: str  # `Objective.name`


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One exposure, as it came.

    pixels: (h, w) or (h, w, 3) RGB, uint8 or uint16, read-only, y down; never copied between
    rooms. number: the SOURCE's own counter since it was opened; frames are matched by it, never by
    arrival.
    """

    pixels: Pixels
    number: int
    exposed_from_s: float
    exposed_until_s: float
    pose: Pose
    pixel_size_nm: float  # side of one pixel in the plane of the sample
    bit_depth: int  # significant bits in `pixels`: 8, 10, 12, 14 or 16
    optics: Mapping[str, float | str] = field(default_factory=dict)  # lamp, exposure_s, gain ...


@dataclass(frozen=True, slots=True)
class MissingFrames:
    """The source's counter jumped: frames `first` to `last`, both included, never arrived."""

    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class Idle:
    """Known to stand still."""


@dataclass(frozen=True, slots=True)
class Moving:
    """Known to be on its way."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody knows. Never satisfies a wait: "communication failed" is not "not busy"."""

    reason: str


MotionState: TypeAlias = Idle | Moving | Unknown


@dataclass(frozen=True, slots=True)
class AxisLimits:
    """Travel that the device itself declares, both ends included."""

    min_um: float
    max_um: float


@dataclass(frozen=True, slots=True)
class Kinematics:
    """What the device's axis can do; deadlines and the scan-time bound are computed from it."""

    speed_um_per_s: float
    acceleration_um_per_s2: float
    settle_s: float  # after the device reports Idle until an image is sharp
    resolution_um: float  # a position is "reached" within a few of these


@dataclass(frozen=True, slots=True)
class Objective:
    """One position of the turret."""

    name: str  # "20x"
    magnification: float
    numerical_aperture: float
    pixel_size_nm: float  # in the plane of the sample, with this camera
    parfocal_z_um: float = 0.0  # best focus with this objective minus that with the reference one
    parcentric_x_um: float = 0.0  # sample point on the axis = stage position + this
    parcentric_y_um: float = 0.0
    free_working_distance_um: float = 1_000.0

    def depth_of_field_um(self, wavelength_nm: float = 550.0, medium_index: float = 1.0) -> float:
        """Lambda n / NA^2 + n e / (M NA), with e the pixel on the sensor: n pixel_size / NA."""
        na = self.numerical_aperture
        diffraction_um = wavelength_nm * 1e-3 * medium_index / na**2
        return diffraction_um + medium_index * self.pixel_size_nm * 1e-3 / na


class Camera(Protocol):
    """A source of numbered frames.

    `trigger` returns as soon as the exposure has ENDED (the stage may move again); the pixels come
    out of `frames` when they have been read out. Exactly one consumer iterates `frames`.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape_px(self) -> tuple[int, int]:  # (h, w)
        ...

    @property
    def bit_depth(self) -> int: ...
    @property
    def exposure_s(self) -> float: ...
    async def set_exposure_s(self, exposure_s: float) -> None:
        """Raises Refused outside the camera's range."""

    async def trigger(self) -> int:
        """Expose one frame; return the number its Frame will carry, once the light is in."""
        ...

    async def start_live(self) -> None:
        """Free-run: frames come by themselves until `stop_live`; `trigger` is refused meanwhile."""

    async def stop_live(self) -> None: ...
    def frames(self) -> AsyncIterator[Frame | MissingFrames]:
        """Frames as they arrive (a bad link may disturb the order), until the camera closes."""
        ...


class Stage(Protocol):
    """Two lateral axes moved together."""

    @property
    def name(self) -> str: ...
    @property
    def limits_um(self) -> tuple[AxisLimits, AxisLimits]: ...
    @property
    def kinematics(self) -> Kinematics: ...
    async def start_move_um(self, x_um: float, y_um: float) -> None:
        """Start towards an absolute target; returns when it is ACCEPTED, not when it is reached."""

    async def position_um(self) -> tuple[float, float]: ...
    async def state(self) -> MotionState: ...
    async def halt(self) -> None:
        """Stop now. Out of band: waits for nothing, works while a move is under way or stuck."""


class FocusAxis(Protocol):
    """The axis along the light; `focus_z_um` grows away from the sample."""

    @property
    def name(self) -> str: ...
    @property
    def limits_um(self) -> AxisLimits: ...
    @property
    def kinematics(self) -> Kinematics: ...
    async def start_move_um(self, z_um: float) -> None: ...
    async def position_um(self) -> float: ...
    async def state(self) -> MotionState: ...
    async def halt(self) -> None: ...


class Turret(Protocol):
    """A changer of objectives."""

    @property
    def name(self) -> str: ...
    @property
    def objectives(self) -> Sequence[Objective]: ...
    async def select(self, objective: str) -> None:
        """Swing in by name and return when it is in place; raises Refused for an unknown name.

        The driver does NOT lift the focus first nor correct any offset: the controller does.
        """

    async def current(self) -> Objective: ...


@runtime_checkable
class Illumination(Protocol):
    """A lamp."""

    @property
    def name(self) -> str: ...
    async def set_intensity_ratio(self, ratio: float) -> None:
        """0 is dark, 1 the lamp's full power; also closes the shutter at 0."""

    async def intensity_ratio(self) -> float: ...


@runtime_checkable
class Stigmator(Protocol):
    """Two coils that add astigmatism to an electron beam, to take away what it has.

    In um of focal difference: with A the strength and phi the azimuth, x = A cos 2 phi and
    y = A sin 2 phi ADD A cos(2 (theta - phi)) to the defocus of the rays at azimuth theta, counted
    from the stage's x towards its y (up in the image). The beam is round where the sum of what the
    column has and what the stigmator adds is zero. An instrument that has one shows it as
    `stigmator`.
    """

    @property
    def name(self) -> str: ...
    @property
    def limits_um(self) -> tuple[AxisLimits, AxisLimits]: ...
    @property
    def settle_s(self) -> float:  # after `set_um` returns until an image shows it
        ...

    async def set_um(self, x_um: float, y_um: float) -> None:
        """Returns when the currents flow. Raises Refused beyond the limits; nothing changes."""

    async def get_um(self) -> tuple[float, float]: ...


@runtime_checkable
class Beam(Protocol):
    """An electron beam. An instrument that has one shows it as `beam`."""

    @property
    def name(self) -> str: ...
    @property
    def voltage_kv(self) -> float: ...
    @property
    def current_pa(self) -> float: ...
    @property
    def convergence_mrad(self) -> float:  # half-angle
        ...

    @property
    def dwell_ns(self) -> float:  # on one pixel, with the camera's present exposure
        ...

    def depth_of_field_um(self, pixel_size_nm: float) -> float:
        """Total: max(pixel, probe diameter) / convergence; not that of `Objective`, for light."""
        ...

    async def blank(self, is_blanked: bool) -> None:
        """A blanked beam does not reach the sample: no dose, frames are dark."""


@runtime_checkable
class PhaseContrast(Protocol):
    """An objective that images by interference, and its illumination.

    A bright-field transmission microscope shows phases: what is in a frame follows from the lens's
    transfer, and no sharpness tells its focus. An instrument that has such a lens shows it as
    `phase_contrast`. Widths are one standard deviation, angles half-angles.
    """

    @property
    def is_in_use(self) -> bool:
        """False: the field in use is scanned, say."""
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
    def aperture_mrad(self) -> float:
        """Behind the sample."""
        ...


class Instrument(Protocol):
    """The devices of one microscope, opened and closed together with `async with`."""

    @property
    def name(self) -> str: ...
    @property
    def camera(self) -> Camera: ...
    @property
    def stage(self) -> Stage: ...
    @property
    def focus(self) -> FocusAxis: ...
    @property
    def turret(self) -> Turret: ...
    @property
    def illumination(self) -> Illumination | None: ...
    async def __aenter__(self) -> Instrument: ...
    async def __aexit__(self, *exc: object) -> None:
        """Lamp off, axes halted, links closed, each under its own deadline; never raises."""

    def describe(self) -> Mapping[str, str]:
        """Names and versions that belong into the record."""
        ...
