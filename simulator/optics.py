"""What a lens makes of a scene: blur that follows aperture and defocus, colours that follow it too.

Blur: the pupil is a filled disc of radius NA/lambda whose phase is that of a plane at the distance
`defocus_um`, exp(2 pi i z sqrt(1/lambda^2 - f^2)); the point spread is the squared modulus of its
transform (J. W. Goodman, Introduction to Fourier Optics, ch. 6), integrated over each pixel. The
transfer function is thus the incoherent one of H. H. Hopkins (Proc. R. Soc. A 231, 91, 1955), of
which Stokseth's formula is the usual approximation, and the depth of field goes as lambda / NA^2 by
itself. One wavelength a channel, the response's centroid.

Left out: partial coherence (condenser and objective aperture are taken as equal, and light from
neighbouring points as unrelated), aberrations, distortion, chromatic shift of focus.

Colour: the reflectance of each stack is averaged over this objective's cone, so the same flake has
a slightly different contrast under another objective, by physics only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from drivers.api import Objective
from inference.flakes.materials import SI, SIO2, constant_curve, curves
from inference.flakes.thin_film import (
    WAVELENGTHS_NM,
    CameraResponse,
    Illuminant,
    colour_weights,
    stack_rgb,
)
from simulator.chip import ChipSettings, Paint

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Kernel = npt.NDArray[np.float32]

_GLUE = constant_curve("organic", 1.5 + 0.0j)
_DEFOCUS_STEPS_PER_DOF = 16  # kernels are cached at this resolution
_KEPT_ENERGY = 0.97


class OpticsSettings(BaseModel):
    """Lamp, light path and colour filters of the microscope."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    colour_temperature_k: float = Field(default=3_200.0, ge=1_500.0, le=20_000.0)
    white_balance_k: float = Field(default=3_200.0, ge=1_500.0, le=20_000.0)  # a mirror is white
    vignetting_ratio: Ratio = 0.12  # light lost in the corners
    vignetting_centre: tuple[
        Annotated[float, Field(ge=-1.0, le=1.0)], Annotated[float, Field(ge=-1.0, le=1.0)]
    ] = (0.06, -0.04)  # off the middle, in half widths of the image, x right and y down
    stray_light_ratio: Ratio = 0.005  # of a mirror's light, everywhere and without an image
    brightness_follows_aperture: bool = False  # else the lamp is set for each objective
    filter_centre_nm: tuple[
        Annotated[float, Field(ge=400.0, le=700.0)],
        Annotated[float, Field(ge=400.0, le=700.0)],
        Annotated[float, Field(ge=400.0, le=700.0)],
    ] = CameraResponse().centre_nm
    filter_sigma_nm: tuple[
        Annotated[float, Field(ge=5.0, le=200.0)],
        Annotated[float, Field(ge=5.0, le=200.0)],
        Annotated[float, Field(ge=5.0, le=200.0)],
    ] = CameraResponse().sigma_nm
    filter_cut_on_nm: tuple[
        Annotated[float, Field(ge=0.0, le=650.0)],
        Annotated[float, Field(ge=0.0, le=650.0)],
        Annotated[float, Field(ge=0.0, le=650.0)],
    ] = CameraResponse().cut_on_nm

    @property
    def illuminant(self) -> Illuminant:
        """The lamp as it burns now."""
        return Illuminant(self.colour_temperature_k)

    @property
    def camera(self) -> CameraResponse:
        """The colour filters."""
        return CameraResponse(self.filter_centre_nm, self.filter_sigma_nm, self.filter_cut_on_nm)

    def balance_rgb(self) -> npt.NDArray[np.float64]:
        """A mirror's signal per channel: 1 where the lamp burns as when the white was set."""
        response = self.camera.filters(WAVELENGTHS_NM)
        now = response @ self.illuminant.spectrum(WAVELENGTHS_NM)
        then = response @ Illuminant(self.white_balance_k).spectrum(WAVELENGTHS_NM)
        return np.asarray(now / then, dtype=np.float64)


def point_spread(
    numerical_aperture: float, wavelength_nm: float, defocus_um: float, pixel_um: float
) -> Kernel:
    """Share of a point's light in each pixel around it; (k, k) with k odd, sum 1.

    Cut off where `_KEPT_ENERGY` of the light is inside, and at a sensible size before that.
    """
    wavelength_um = wavelength_nm * 1e-3
    finest_um = wavelength_um / (4.0 * numerical_aperture)  # Nyquist of the intensity
    parts = max(1, int(np.ceil(pixel_um / finest_um)))
    parts += 1 - parts % 2  # odd: the kernel's centre lies in the middle of a pixel
    step_um = pixel_um / parts
    slope = numerical_aperture / np.sqrt(1.0 - numerical_aperture**2)
    reach_um = abs(defocus_um) * slope + 8.0 * 0.61 * wavelength_um / numerical_aperture
    radius_px = int(np.ceil(reach_um / pixel_um))
    size = _smooth_length(int(2 * (radius_px + 1) * parts * 1.5))
    frequency = np.fft.fftfreq(size, step_um)
    squared = frequency[:, None] ** 2 + frequency[None, :] ** 2
    # The rim of the disc is softened over one sample of the grid, which keeps the energy smooth.
    rim = (numerical_aperture / wavelength_um - np.sqrt(squared)) * size * step_um
    pupil = np.clip(rim + 0.5, 0.0, 1.0)
    axial = np.sqrt(np.maximum(1.0 / wavelength_um**2 - squared, 0.0))
    field_at = np.fft.ifft2(pupil * np.exp(2j * np.pi * defocus_um * axial))
    intensity = np.fft.fftshift(field_at.real**2 + field_at.imag**2)
    middle = size // 2
    half = radius_px * parts + parts // 2
    window = intensity[middle - half : middle + half + 1, middle - half : middle + half + 1]
    k = 2 * radius_px + 1
    kernel = window.reshape(k, parts, k, parts).sum(axis=(1, 3))
    kernel /= kernel.sum()
    for radius in range(1, radius_px):
        cut = kernel[radius_px - radius : radius_px + radius + 1]
        cut = cut[:, radius_px - radius : radius_px + radius + 1]
        if cut.sum() >= _KEPT_ENERGY:
            kernel = cut / cut.sum()
            break
    return np.ascontiguousarray(kernel, dtype=np.float32)


def _smooth_length(least: int) -> int:
    """The next length whose transform is fast: 2^a 3^b 5^c, even."""
    length = max(least + least % 2, 32)
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


@dataclass(frozen=True, slots=True, eq=False)
class ObjectiveOptics:
    """One objective in one light path; remembers the kernels and colours it has worked out."""

    objective: Objective
    settings: OpticsSettings
    _kernels: dict[tuple[int, int, int], Kernel] = field(default_factory=dict, repr=False)

    @property
    def wavelengths_nm(self) -> tuple[float, float, float]:
        """Centroid of each channel's light; R, G, B."""
        weights = colour_weights(WAVELENGTHS_NM, self.settings.illuminant, self.settings.camera)
        red, green, blue = (float(v) for v in weights @ WAVELENGTHS_NM)
        return red, green, blue

    @property
    def defocus_step_um(self) -> float:
        """Kernels for defoci nearer than this are the same."""
        return self.objective.depth_of_field_um() / _DEFOCUS_STEPS_PER_DOF

    def kernels(self, defocus_um: float, binning: int = 1) -> tuple[Kernel, Kernel, Kernel]:
        """Point spread per channel, on pixels `binning` times as large as the camera's."""
        step = round(defocus_um / self.defocus_step_um)
        found = []
        for channel, wavelength_nm in enumerate(self.wavelengths_nm):
            key = (channel, step, binning)
            if key not in self._kernels:
                self._kernels[key] = point_spread(
                    self.objective.numerical_aperture,
                    wavelength_nm,
                    step * self.defocus_step_um,
                    self.objective.pixel_size_nm * 1e-3 * binning,
                )
            found.append(self._kernels[key])
        return found[0], found[1], found[2]

    def blur_radius_px(self, defocus_um: float) -> float:
        """Geometric radius of the disc of confusion, in camera pixels."""
        aperture = self.objective.numerical_aperture
        slope = aperture / np.sqrt(1.0 - aperture**2)
        return float(abs(defocus_um) * slope / (self.objective.pixel_size_nm * 1e-3))

    def brightness_ratio(self) -> float:
        """Light on the sensor relative to a 20x/0.45, if nobody sets the lamp: NA^4 / M^2."""
        if not self.settings.brightness_follows_aperture:
            return 1.0
        aperture = self.objective.numerical_aperture / 0.45
        return float(aperture**4 / (self.objective.magnification / 20.0) ** 2)

    def light_field(self, shape_px: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Vignetting: 1 at its centre, falling with the square of the distance; (h, w)."""
        h, w = shape_px
        x0, y0 = self.settings.vignetting_centre
        x = (np.arange(w) - (w - 1) / 2.0) / (w / 2.0) - x0
        y = (np.arange(h) - (h - 1) / 2.0) / (h / 2.0) - y0
        squared = (x[None, :] ** 2 + (y[:, None] * h / w) ** 2) / (1.0 + (h / w) ** 2)
        return np.asarray(1.0 - self.settings.vignetting_ratio * squared, dtype=np.float32)

    def colours(self, paints: tuple[Paint, ...], chip: ChipSettings) -> npt.NDArray[np.float32]:
        """Linear signal of each paint, (n, 3); 1 is a mirror in the light of the white balance."""
        table = np.zeros((len(paints), 3))
        groups: dict[tuple[str, str], list[int]] = {}
        for number, paint in enumerate(paints):
            groups.setdefault((paint.kind, paint.material), []).append(number)
        for (kind, material), numbers in groups.items():
            nm = np.array([paints[number].thickness_nm for number in numbers])
            table[numbers] = self._stack_colours(kind, material, nm, chip)
        return np.asarray(table * self.settings.balance_rgb(), dtype=np.float32)

    def _stack_colours(
        self, kind: str, material: str, thickness_nm: npt.NDArray[np.float64], chip: ChipSettings
    ) -> npt.NDArray[np.float64]:
        """(n,) thicknesses of one kind of paint -> (n, 3)."""
        grid = WAVELENGTHS_NM
        silicon, oxide = SI.at(grid), (SIO2.at(grid), chip.oxide_nm)
        light = (
            self.objective.numerical_aperture,
            self.settings.illuminant,
            self.settings.camera,
        )
        if kind == "black":
            return np.zeros((len(thickness_nm), 3))
        if kind == "ground":  # black anodised aluminium, half a millimetre below focus
            return np.tile([0.021, 0.020, 0.022], (len(thickness_nm), 1))
        if kind == "gold":
            gold = curves()["au/johnson"].at(grid)
            return np.tile(stack_rgb(grid, [], gold, *light), (len(thickness_nm), 1))
        if kind == "etched":
            left = np.maximum(chip.oxide_nm - thickness_nm, 0.0)
            return stack_rgb(grid, [(SIO2.at(grid), left)], silicon, *light)
        if kind == "organic":
            return stack_rgb(grid, [(_GLUE.at(grid), thickness_nm), oxide], silicon, *light)
        if kind == "crystal":
            index = chip.material(material).index(grid)
            return stack_rgb(grid, [(index, thickness_nm), oxide], silicon, *light)
        bare = stack_rgb(grid, [oxide], silicon, *light)
        return np.tile(bare, (len(thickness_nm), 1))
