"""The electron probe of a scanning microscope: from aperture angle and lens errors to a blur.

The beam is a converging wave of half-angle alpha whose phase error over the aperture is
chi(a) = 2 pi W(a) / lambda, with a the angle vector of a ray and

    W(a) = D |a|^2 / 2  +  (X (ax^2 - ay^2) + 2 Y ax ay) / 2  +  Cs |a|^4 / 4

(P. W. Hawkes, E. Kasper, Principles of Electron Optics; J. C. H. Spence, High-Resolution Electron
Microscopy, ch. 3). A ray meets the sample at grad W, so with the astigmatism A at azimuth phi,
X = A cos 2 phi, Y = A sin 2 phi, the defocus seen along azimuth theta is
D + A cos(2 (theta - phi)): at D = -A the probe shrinks to a line across phi, at D = +A to a line
along phi. Azimuths count from the stage's x towards its y, which is UP in the image. D > 0 is a
sample further from the lens than focus, as everywhere; Cs > 0 then adds to it, so over- and
under-focus do not look alike.

Two ways lead from W to the transfer function, the Fourier transform of the probe's intensity:

- near focus the wave itself: |FFT(pupil)|^2 on a grid fine enough for its fringes, up to
  `_WAVE_GRID_PX` samples a side;
- beyond, where the fringes are far below a pixel, the rays of geometrical optics, times the
  transfer function of the unaberrated wave. For one ring of the aperture the rays' density has the
  closed form J0(2 pi |a| |M f|), M f = (D + Cs |a|^2) f + (X fx + Y fy, Y fx - X fy), so the
  aperture is a handful of rings with the defocus of each and a jinc function for its area.

Between `_BLEND_FROM` of that grid and all of it the two are mixed. The source is a Gaussian.

Focus: `defocus_um` counts from the plane of best focus, not from the paraxial one: that in which an
edge has the steepest image, where the mean square of the transfer function up to the image's
Nyquist frequency is largest. Spherical aberration puts it somewhat before the paraxial plane.

Left out: chromatic aberration, Coulomb repulsion, coma and everything else of odd order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Transfer = npt.NDArray[np.float32]
"""(h, w // 2 + 1) on the frequencies of `numpy.fft.rfft2`; real, because all errors are even."""

_WAVE_GRID_PX = 320
_BLEND_FROM = 0.8
_WINDOW_RATIO = 1.3  # side of the wave's window over the probe's extent
_AIRY_RADII = 10.0  # of the wave's rings, kept beyond the outermost ray
_STEPS_PER_DOF = 256  # transfer functions are computed at this resolution of defocus
_LARGEST_PHASE = 200.0  # the rays' transfer function is below 6e-4 beyond: taken as zero
_RINGS_PER_CYCLE = 16.0  # of the aperture, per cycle that Cs adds over it at Nyquist
_MOST_RINGS = 16
_NO_CYCLES = 0.01  # so few that one ring is as good


class BeamSettings(BaseModel):
    """What forms the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    voltage_kv: float = Field(default=5.0, ge=0.1, le=60.0)
    current_pa: float = Field(default=50.0, ge=0.01, le=1e6)
    convergence_mrad: float = Field(default=6.0, ge=0.05, le=60.0)  # half-angle
    spherical_mm: float = Field(default=5.0, ge=0.0, le=1_000.0)
    source_nm: float = Field(default=2.0, ge=0.0, le=1_000.0)  # holds half the current; its image

    @property
    def wavelength_pm(self) -> float:
        """Relativistic: h / sqrt(2 m e U (1 + e U / 2 m c^2))."""
        volts = self.voltage_kv * 1e3
        return 1226.426 / math.sqrt(volts * (1.0 + 0.978476e-6 * volts))

    @property
    def diameter_nm(self) -> float:
        """Of the circle that holds half the current, in focus; root-power sum of its causes.

        Source: J. E. Barth, P. Kruit, Optik 101, 101 (1996), without the chromatic term.
        """
        alpha = self.convergence_mrad * 1e-3
        diffraction_nm = 0.54 * self.wavelength_pm * 1e-3 / alpha
        spherical_nm = 0.18 * self.spherical_mm * 1e6 * alpha**3
        aberrated_nm = (diffraction_nm**4 + spherical_nm**4) ** 0.25
        return float((self.source_nm**1.3 + aberrated_nm**1.3) ** (1.0 / 1.3))

    def depth_of_field_um(self, pixel_size_nm: float) -> float:
        """Total: max(pixel, probe) / alpha."""
        return max(pixel_size_nm, self.diameter_nm) / self.convergence_mrad


@dataclass(frozen=True, slots=True)
class Probe:
    """A beam as it meets the sample."""

    beam: BeamSettings
    defocus_um: float = 0.0  # > 0: the sample is further from the lens than BEST focus
    stig_x_um: float = 0.0  # astigmatism left in the beam, as in the module's text
    stig_y_um: float = 0.0

    def reach_px(self, pixel_size_nm: float) -> int:
        """How far from its middle the probe puts current, generously."""
        alpha = self.beam.convergence_mrad
        rays_nm = (
            alpha * (abs(self.defocus_um) + math.hypot(self.stig_x_um, self.stig_y_um))
            + self.beam.spherical_mm * 1e-3 * alpha**3
        )
        reach_nm = rays_nm + 1.5 * self.beam.source_nm + _airy_radii_nm(self.beam)
        return math.ceil(reach_nm / pixel_size_nm) + 2

    def transfer(self, pixel_size_nm: float, shape_px: tuple[int, int]) -> Transfer:
        """The transfer function on an image of `shape_px`; read-only, 1 at frequency 0."""
        step_um = self.beam.depth_of_field_um(pixel_size_nm) / _STEPS_PER_DOF
        steps = (
            round(self.defocus_um / step_um),
            round(self.stig_x_um / step_um),
            round(self.stig_y_um / step_um),
        )
        return _cached_transfer(self.beam, steps, pixel_size_nm, shape_px)

    def point_spread(self, pixel_size_nm: float, side_px: int) -> npt.NDArray[np.float32]:
        """The probe's current density on a grid, sum 1, its middle at [side // 2, side // 2]."""
        spread = np.fft.irfft2(self.transfer(pixel_size_nm, (side_px, side_px)), s=(side_px,) * 2)
        return np.fft.fftshift(spread).astype(np.float32)


@lru_cache(maxsize=256)
def best_focus_um(beam: BeamSettings, pixel_size_nm: float) -> float:
    """Defocus of best focus, counted from the paraxial plane; <= 0, for Cs >= 0.

    Found by golden section on the mean square of the transfer function below Nyquist.
    """
    spherical_um = beam.spherical_mm * 1e-3 * beam.convergence_mrad**2
    depth_um = beam.depth_of_field_um(pixel_size_nm)
    if spherical_um < 1e-3 * depth_um:
        return -0.5 * spherical_um
    low_um, high_um = -spherical_um - 0.1 * depth_um, 0.1 * depth_um
    grid_um = np.linspace(low_um, high_um, 25)
    values = [_sharpness(beam, float(each), pixel_size_nm) for each in grid_um]
    middle = int(np.clip(np.argmax(values), 1, len(values) - 2))
    low_um, high_um = float(grid_um[middle - 1]), float(grid_um[middle + 1])
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    inner = [high_um - ratio * (high_um - low_um), low_um + ratio * (high_um - low_um)]
    heights = [_sharpness(beam, each, pixel_size_nm) for each in inner]
    while high_um - low_um > 2e-3 * depth_um:
        if heights[0] >= heights[1]:
            high_um = inner[1]
            inner = [high_um - ratio * (high_um - low_um), inner[0]]
            heights = [_sharpness(beam, inner[0], pixel_size_nm), heights[0]]
        else:
            low_um = inner[0]
            inner = [inner[1], low_um + ratio * (high_um - low_um)]
            heights = [heights[1], _sharpness(beam, inner[1], pixel_size_nm)]
    return (low_um + high_um) / 2.0


def _sharpness(beam: BeamSettings, paraxial_um: float, pixel_size_nm: float) -> float:
    reach_px = Probe(beam, paraxial_um).reach_px(pixel_size_nm)
    side_px = cv2.getOptimalDFTSize(max(32, min(2 * reach_px + 8, 512)))
    values = _transfer(beam, paraxial_um, 0.0, 0.0, pixel_size_nm, (side_px, side_px))
    return float(np.mean(values[:, 1:] ** 2))


@lru_cache(maxsize=24)
def _cached_transfer(
    beam: BeamSettings,
    steps: tuple[int, int, int],
    pixel_size_nm: float,
    shape_px: tuple[int, int],
) -> Transfer:
    step_um = beam.depth_of_field_um(pixel_size_nm) / _STEPS_PER_DOF
    defocus_um, x_um, y_um = (step * step_um for step in steps)
    paraxial_um = defocus_um + best_focus_um(beam, pixel_size_nm)
    values = _transfer(beam, paraxial_um, x_um, y_um, pixel_size_nm, shape_px)
    values.flags.writeable = False
    return values


def _transfer(
    beam: BeamSettings,
    paraxial_um: float,
    x_um: float,
    y_um: float,
    pixel_size_nm: float,
    shape_px: tuple[int, int],
) -> Transfer:
    grid_px = _wave_grid_px(beam, paraxial_um, x_um, y_um, pixel_size_nm)[0]
    rays_share = (grid_px / _WAVE_GRID_PX - _BLEND_FROM) / (1.0 - _BLEND_FROM)
    rays_share = min(max(rays_share, 0.0), 1.0)
    rays_share = rays_share**2 * (3.0 - 2.0 * rays_share)
    total = np.zeros((shape_px[0], shape_px[1] // 2 + 1), np.float32)
    if rays_share < 1.0:
        wave = _wave_transfer(beam, paraxial_um, x_um, y_um, pixel_size_nm, shape_px)
        total += np.float32(1.0 - rays_share) * wave
    if rays_share > 0.0:
        rays = _rays_transfer(beam, paraxial_um, x_um, y_um, pixel_size_nm, shape_px)
        total += np.float32(rays_share) * rays
    if beam.source_nm > 0.0:
        sigma_px = beam.source_nm / math.sqrt(8.0 * math.log(2.0)) / pixel_size_nm
        down, right = _frequencies(shape_px)
        total *= np.exp(-2.0 * (np.pi * sigma_px * down[:, None]) ** 2)
        total *= np.exp(-2.0 * (np.pi * sigma_px * right[None, :]) ** 2)
    return total


def _airy_radii_nm(beam: BeamSettings) -> float:
    return _AIRY_RADII * 0.61 * beam.wavelength_pm / beam.convergence_mrad


def _frequencies(
    shape_px: tuple[int, int],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """In cycles per pixel: down the image and to the right."""
    down = np.fft.fftfreq(shape_px[0]).astype(np.float32)
    if shape_px[0] % 2 == 0:
        down[shape_px[0] // 2] = 0.5  # as for the width: Nyquist counts as positive
    right = np.fft.rfftfreq(shape_px[1]).astype(np.float32)
    return down, right


def _wave_grid_px(
    beam: BeamSettings, paraxial_um: float, x_um: float, y_um: float, pixel_size_nm: float
) -> tuple[int, int]:
    """(side of the wave's grid, its samples per pixel)."""
    finest_nm = beam.wavelength_pm / (4.0 * beam.convergence_mrad)  # Nyquist of the intensity
    parts = max(1, math.ceil(pixel_size_nm / finest_nm))
    parts += 1 - parts % 2  # odd: the probe's centre lies in the middle of a pixel
    alpha = beam.convergence_mrad
    spherical_um = beam.spherical_mm * 1e-3 * alpha**2
    # The outermost ray, over the whole aperture (inside of it Cs may send a ray further out).
    rays_nm = alpha * (
        max(abs(paraxial_um), abs(paraxial_um + spherical_um)) + math.hypot(x_um, y_um)
    )
    reach_nm = rays_nm + _airy_radii_nm(beam)
    radius_px = math.ceil(reach_nm / pixel_size_nm)
    side = math.ceil((2 * radius_px + 1) * parts * _WINDOW_RATIO)
    return cv2.getOptimalDFTSize(min(side, 2 * _WAVE_GRID_PX)), parts  # beyond it is not used


def _wave_transfer(
    beam: BeamSettings,
    paraxial_um: float,
    x_um: float,
    y_um: float,
    pixel_size_nm: float,
    shape_px: tuple[int, int],
) -> Transfer:
    """From the wave itself, without the source."""
    side, parts = _wave_grid_px(beam, paraxial_um, x_um, y_um, pixel_size_nm)
    step_nm = pixel_size_nm / parts
    alpha, wavelength_nm = beam.convergence_mrad * 1e-3, beam.wavelength_pm * 1e-3
    angle_step = wavelength_nm / (side * step_nm)
    half = min(math.ceil(alpha / angle_step) + 1, side // 2 - 1)
    angle = (np.arange(-half, half + 1) * angle_step).astype(np.float32)  # x to the right, y UP
    squared = angle**2
    radius2 = squared[:, None] + squared[None, :]
    error_nm = (500.0 * paraxial_um) * radius2 + (0.25e6 * beam.spherical_mm) * radius2**2
    if x_um or y_um:
        error_nm += (500.0 * x_um) * (squared[None, :] - squared[:, None])
        error_nm += (1000.0 * y_um) * (angle[None, ::1] * angle[:, None])
    # The rim is softened over one sample of the grid, which keeps the energy smooth.
    pupil = np.clip((alpha - np.sqrt(radius2)) / angle_step + 0.5, 0.0, 1.0).astype(np.float32)
    chi = (error_nm * (2.0 * np.pi / wavelength_nm)).astype(np.float32)
    wave = np.zeros((side, side), np.complex64)
    place = np.arange(-half, half + 1) % side
    wave[(-place % side)[:, None], place[None, :]] = pupil * (np.cos(chi) + 1j * np.sin(chi))
    field = np.fft.fft2(wave)
    intensity = np.asarray(field.real**2 + field.imag**2, np.float32)
    return _transfer_of(intensity, parts, shape_px)


def _transfer_of(
    intensity: npt.NDArray[np.float32], parts: int, shape_px: tuple[int, int]
) -> Transfer:
    """Of a fine and periodic picture of the probe, even about [0, 0], on an image's frequencies.

    intensity: (n, n), `parts` samples a pixel. A Fourier sum with matrices: the frequencies of an
    image are none of the small window's own.
    """
    place = np.fft.fftfreq(intensity.shape[0], 1.0 / intensity.shape[0]) / parts  # in pixels
    height, width = shape_px
    down = np.arange(height // 2 + 1) / height
    right = np.arange(width // 2 + 1) / width
    down_phase = (2.0 * np.pi * down[:, None] * place[None, :]).astype(np.float32)
    right_phase = (2.0 * np.pi * place[:, None] * right[None, :]).astype(np.float32)
    even = np.cos(down_phase) @ (intensity @ np.cos(right_phase))
    odd = np.sin(down_phase) @ (intensity @ np.sin(right_phase))
    values = np.empty((height, width // 2 + 1), np.float32)
    np.subtract(even, odd, out=values[: height // 2 + 1])
    upper = (height - 1) // 2  # the negative frequencies, from the last row up
    values[height - upper :] = (even[1 : upper + 1] + odd[1 : upper + 1])[::-1]
    values /= values[0, 0]
    return values


def _rays_transfer(
    beam: BeamSettings,
    paraxial_um: float,
    x_um: float,
    y_um: float,
    pixel_size_nm: float,
    shape_px: tuple[int, int],
) -> Transfer:
    """From the rays, times the transfer function of the unaberrated wave, without the source."""
    alpha = beam.convergence_mrad  # um times this is nm
    down, right = _frequencies(shape_px)
    # Frequencies of a cycle over the outermost ray of 1 um defocus.
    scale = alpha / pixel_size_nm
    spherical_um = beam.spherical_mm * 1e-3 * alpha**2
    # Beyond the frequency where even the slowest-turning direction has turned often, all is zero.
    stig_um = math.hypot(x_um, y_um)
    slowest_um = min(
        abs(abs(paraxial_um) - stig_um), abs(abs(paraxial_um + spherical_um) - stig_um)
    )
    if paraxial_um * (paraxial_um + spherical_um) <= 0.0:
        slowest_um = 0.0
    highest = 1.0
    if slowest_um > 0.0:
        highest = _LARGEST_PHASE / (2.0 * math.pi * scale * slowest_um)
    keep_down = np.flatnonzero(np.abs(down) <= highest)
    keep_right = np.flatnonzero(right <= highest)
    fx = right[keep_right][None, :]
    fy = -down[keep_down][:, None]  # up
    squared = fx**2 + fy**2
    mixed = x_um * (fx**2 - fy**2) + (2.0 * y_um) * (fx * fy) if stig_um else None
    cycles = spherical_um * scale * 0.5
    rings = 1
    if cycles > _NO_CYCLES:
        rings = min(_MOST_RINGS, math.ceil(2.0 + _RINGS_PER_CYCLE * cycles))
    cut_off = 2.0 * alpha * pixel_size_nm / beam.wavelength_pm  # cycles per pixel
    ratio = np.sqrt(squared) / np.float32(cut_off)
    # What two apertures share is narrower than one of them: 1 - 5 / (3 pi) of its shift in units of
    # alpha, from the second moment of the shared area at small shifts.
    narrowed = np.maximum(1.0 - np.float32(10.0 / (3.0 * math.pi)) * ratio, 0.0)
    turns = narrowed * np.float32(2.0 * math.pi * scale)
    total = np.zeros(squared.shape, np.float32)
    for ring in range(rings):
        inner, outer = ring / rings, (ring + 1) / rings  # of the aperture's area
        q_um = paraxial_um + spherical_um * (inner + outer) / 2.0
        bent = np.float32(q_um**2 + stig_um**2) * squared
        if mixed is not None:
            bent += np.float32(2.0 * q_um) * mixed
        phase = np.sqrt(np.maximum(bent, 0.0)) * turns
        total += np.float32(outer) * _jinc(phase * np.float32(math.sqrt(outer)))
        if inner > 0.0:
            total -= np.float32(inner) * _jinc(phase * np.float32(math.sqrt(inner)))
    total *= unaberrated_transfer(ratio)
    values = np.zeros((shape_px[0], shape_px[1] // 2 + 1), np.float32)
    values[keep_down[:, None], keep_right[None, :]] = total
    return values


def unaberrated_transfer(frequency_ratio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of a round aperture; argument: frequency over the cut-off 2 alpha / lambda.

    Source: M. Born, E. Wolf, Principles of Optics, 9.5: the overlap of two circles.
    """
    s = np.minimum(frequency_ratio, np.float32(1.0))
    return np.asarray((2.0 / np.pi) * (np.arccos(s) - s * np.sqrt(1.0 - s * s)), np.float32)


_JINC_STEP = 0.04


@cache
def _jinc_table() -> npt.NDArray[np.float32]:
    """2 J1(z) / z from Bessel's integral; the trapezium rule converges faster than any power."""
    z = np.arange(0.0, 2.0 * _LARGEST_PHASE + 2 * _JINC_STEP, _JINC_STEP)
    tau = (np.arange(512) + 0.5) * (np.pi / 512)
    j1 = np.cos(tau[None, :] - z[:, None] * np.sin(tau)[None, :]).mean(axis=1)
    table = np.ones(z.size)
    table[1:] = 2.0 * j1[1:] / z[1:]
    table[-2:] = 0.0
    return table.astype(np.float32)


def _jinc(z: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    table = _jinc_table()
    place = np.minimum(z * np.float32(1.0 / _JINC_STEP), np.float32(table.size - 2))
    index = place.astype(np.int32)
    share = place - index
    low = table[index]
    return np.asarray(low + share * (table[index + 1] - low), np.float32)
