"""A transmission microscope without an event loop: a sample, a lens, a camera, and `expose`.

The objective adds the phase chi to every frequency k of the wave that leaves the sample and damps
it by what its source is not: of one energy, and of one direction,

    chi = pi lambda (D k^2 + X (kx^2 - ky^2) + 2 Y kx ky) + pi Cs lambda^3 k^4 / 2
    damping = exp(-(pi lambda s k^2)^2 / 2 - t^2 |grad chi|^2 / (2 lambda^2)),

s the spread of focus and t that of directions, one standard deviation each (L. Reimer, H. Kohl,
Transmission Electron Microscopy, 5th ed., ch. 6; J. Frank, Optik 38, 519, 1973). Both are applied
to the wave, the quasi-coherent approximation: exact for what is linear in a weak object. Terms are
those of `simulator.probe`: D > 0 is a sample further from the lens than focus, which the literature
calls overfocus; Scherzer's underfocus for Cs > 0 is thus D < 0. Azimuths count from x to y, y UP.

HRTEM: |transformed wave|^2, integrated over each pixel. STEM: each atom scatters like Z^1.7 into
the annular detector (P. Hartel, H. Rose, C. Dinges, Ultramicroscopy 63, 93, 1996: between 1.6 and
2), so the image is the probe's intensity convolved with that; its absolute scale is Rutherford's
cross-section of carbon, right within a factor of about two.

Camera: the image reaches it through `mtf`; electrons are counted with the chance `dqe_ratio`, and
their noise is passed on through `ntf`, so DQE(f) = dqe_ratio (mtf / ntf)^2 (R. R. Meyer, A. I.
Kirkland, Microsc. Res. Tech. 49, 269, 2000). STEM rows jitter, and the sample drifts while
they are scanned.
Frames follow from seed and number: the same shot is the same to the last bit whenever it is taken.

Left out: dynamic scattering in STEM, higher aberrations, damage, the smear of a HRTEM frame by
drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from drivers.api import Pixels
from simulator.atoms import Atoms, Defect, Sample, SampleSettings
from simulator.potential import (
    BOHR_A,
    Wave,
    exit_wave,
    frequencies_per_nm,
    mass_ratio,
    structure_factor,
    wavelength_nm,
)

Image = npt.NDArray[np.float32]
Mode = Literal["hrtem", "haadf"]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]

_FINEST_NM = 0.021  # a wave is computed on pixels no larger than this
_MARGIN_NM = 0.8  # drawn round the field, so that what wraps round stays out of it
_Z_POWER = 1.7


class LensSettings(BaseModel):
    """The objective and what comes through it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    voltage_kv: float = Field(default=80.0, ge=10.0, le=1_000.0)
    spherical_mm: float = Field(default=-0.01, ge=-10.0, le=10.0)
    focal_spread_um: float = Field(default=0.003, ge=0.0, le=1.0)  # one sd
    direction_mrad: float = Field(default=0.1, ge=0.0, le=10.0)  # of the illumination, one sd
    aperture_mrad: float = Field(default=60.0, gt=0.0, le=300.0)  # half-angle, behind the sample
    probe_mrad: float = Field(default=30.0, gt=0.0, le=100.0)  # half-angle of the STEM probe
    source_nm: float = Field(default=0.03, ge=0.0, le=10.0)  # its image in the probe, one sd
    annulus_mrad: tuple[float, float] = (80.0, 200.0)  # that the annular detector takes

    @property
    def scherzer_um(self) -> float:
        """The defocus of widest pass band, 1.2 sqrt(Cs lambda); against the sign of Cs."""
        nm = 1.2 * math.sqrt(abs(self.spherical_mm) * 1e6 * wavelength_nm(self.voltage_kv))
        return -math.copysign(nm * 1e-3, self.spherical_mm)

    def wanted_um(self, mode: Mode) -> float:
        """The defocus that an operator wants: Scherzer's, or the one of the narrowest probe.

        The probe's takes from chi, in the mean over the aperture, what Cs adds.
        """
        if mode == "hrtem":
            return self.scherzer_um
        return -0.5 * self.spherical_mm * 1e-3 * self.probe_mrad**2

    def half_angle_mrad(self, mode: Mode, pixel_size_nm: float) -> float:
        """Of the cone that one point of the image is made of.

        HRTEM: as wide as aperture, spread of focus (down to e^-2) and pixels let through.
        """
        if mode == "haadf":
            return self.probe_mrad
        length_nm = wavelength_nm(self.voltage_kv)
        spread_nm = math.sqrt(0.5 * math.pi * length_nm * 1e3 * self.focal_spread_um)
        finest_nm = max(1e3 * length_nm / self.aperture_mrad, spread_nm, 2.0 * pixel_size_nm)
        return 1e3 * length_nm / finest_nm

    def depth_of_field_um(self, mode: Mode, pixel_size_nm: float) -> float:
        """Total: max(pixel, lambda / angle) / angle."""
        angle = 1e-3 * self.half_angle_mrad(mode, pixel_size_nm)
        return 1e-3 * max(pixel_size_nm, wavelength_nm(self.voltage_kv) / angle) / angle


class CameraSettings(BaseModel):
    """From electrons to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mtf_ratio: Ratio = 0.5  # of a signal's contrast that is left at Nyquist's frequency
    ntf_ratio: Ratio = 0.8  # and of the noise's
    dqe_ratio: Ratio = 0.9  # at frequency 0
    read_noise_e: float = Field(default=0.1, ge=0.0, le=1_000.0)  # one sd, a pixel
    gain_dn_per_e: float = Field(default=16.0, gt=0.0, le=1e5)
    offset_dn: float = Field(default=200.0, ge=0.0, le=60_000.0)

    def digital(self, electrons: Image) -> npt.NDArray[np.uint16]:
        """Grey values, 16 bits."""
        numbers = np.rint(electrons * np.float32(self.gain_dn_per_e) + np.float32(self.offset_dn))
        return np.asarray(np.clip(numbers, 0, 65_535), np.uint16)


class TemSettings(BaseModel):
    """A microscope with a sample in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=1, ge=0, le=2**31)
    height_px: int = Field(default=256, ge=16, le=4_096)
    width_px: int = Field(default=256, ge=16, le=4_096)
    pixel_size_nm: float = Field(default=0.02, gt=0.0, le=0.5)
    dose_e_per_a2: float = Field(default=1e4, gt=0.0, le=1e12)  # electrons per square angstrom
    thermal_nm: float = Field(default=0.006, ge=0.0, le=0.1)  # of an atom, one sd along one axis
    slice_nm: float | None = Field(default=None, gt=0.0, le=5.0)  # None: one plane
    drift_nm_per_frame: tuple[float, float] = (0.0, 0.0)  # of the sample, to the right and up
    unrest_nm: float = Field(default=0.0, ge=0.0, le=10.0)  # added to it by chance each frame, sd
    row_jitter_px: float = Field(default=0.05, ge=0.0, le=10.0)  # of STEM rows, one sd, along x
    lens: LensSettings = LensSettings()
    camera: CameraSettings = CameraSettings()
    sample: SampleSettings = SampleSettings()

    @property
    def dose_e_per_px(self) -> float:
        """Electrons that reach each pixel where no sample is."""
        return self.dose_e_per_a2 * (10.0 * self.pixel_size_nm) ** 2


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One frame and the truth about it; images (h, w) float32, electrons a pixel, read-only."""

    number: int
    noisy_e: Image
    clean_e: Image  # the mean of many such frames, displaced rows and all
    atoms: Atoms  # that may be seen; x_nm, y_nm from the middle of the frame
    defects: tuple[Defect, ...]  # likewise
    x_nm: float  # the sample's point that lies in the middle of the frame
    y_nm: float
    defocus_um: float
    stig_um: tuple[float, float]
    electrons_per_px: float


def transfer(
    lens: LensSettings,
    defocus_um: float,
    stig_um: tuple[float, float],
    kx_per_nm: npt.NDArray[np.float64],
    ky_per_nm: npt.NDArray[np.float64],
    half_angle_mrad: float | None = None,
) -> Wave:
    """What each frequency of the wave is multiplied with; half_angle_mrad: None: the aperture's."""
    length_nm = wavelength_nm(lens.voltage_kv)
    square = kx_per_nm**2 + ky_per_nm**2
    focus_nm, x_nm, y_nm = (1e3 * um for um in (defocus_um, *stig_um))
    sphere = lens.spherical_mm * 1e6 * length_nm**2 * square  # nm, as a defocus
    chi = (
        np.pi
        * length_nm
        * (
            (focus_nm + 0.5 * sphere) * square
            + x_nm * (kx_per_nm**2 - ky_per_nm**2)
            + 2.0 * y_nm * kx_per_nm * ky_per_nm
        )
    )
    # grad chi / (2 pi lambda)
    slope_x = (focus_nm + sphere + x_nm) * kx_per_nm + y_nm * ky_per_nm
    slope_y = (focus_nm + sphere - x_nm) * ky_per_nm + y_nm * kx_per_nm
    temporal = 0.5 * (np.pi * length_nm * 1e3 * lens.focal_spread_um * square) ** 2
    spread = 1e-3 * lens.direction_mrad
    spatial = 2.0 * (np.pi * spread) ** 2 * (slope_x**2 + slope_y**2)
    half_angle = 1e-3 * (lens.aperture_mrad if half_angle_mrad is None else half_angle_mrad)
    is_open = square * length_nm**2 <= half_angle**2
    return np.asarray(np.exp(-1j * chi - temporal - spatial) * is_open, np.complex64)


def annular_share_nm2(lens: LensSettings) -> float:
    """Cross-section into the annulus over Z^1.7; Rutherford's, set right at carbon."""
    inner, outer = (1e-3 * mrad for mrad in lens.annulus_mrad)
    length_a = 10.0 * wavelength_nm(lens.voltage_kv)
    strength = mass_ratio(lens.voltage_kv) * length_a**2 / (2.0 * math.pi**2 * BOHR_A)
    carbon_a2 = math.pi * (6.0 * strength) ** 2 * (1.0 / inner**2 - 1.0 / outer**2)
    return float(0.01 * carbon_a2 / 6.0**_Z_POWER)


class Tem:
    """Lens, sample and camera; `expose` and `video` are all that anybody needs."""

    def __init__(self, settings: TemSettings, sample: Sample | None = None) -> None:
        self.settings = settings
        self.sample = Sample(settings.sample) if sample is None else sample
        self._finer = math.ceil(settings.pixel_size_nm / _FINEST_NM)  # wave pixels a pixel
        margin_px = math.ceil(_MARGIN_NM / settings.pixel_size_nm)
        self._padded_px = settings.height_px + 2 * margin_px, settings.width_px + 2 * margin_px
        self._margin_px = margin_px
        self._last: tuple[Atoms, Wave] | None = None

    def expose(
        self,
        defocus_um: float,
        stig_um: tuple[float, float] = (0.0, 0.0),
        *,
        number: int = 0,
        x_nm: float = 0.0,
        y_nm: float = 0.0,
        mode: Mode = "hrtem",
        dose_e_per_a2: float | None = None,
        moving_nm: tuple[float, float] | None = None,
    ) -> Shot:
        """One frame about the sample's point (x, y), before what drift has done to it by then.

        number: decides noise, drift and where the adatoms are. dose_e_per_a2: None: the settings'.
        moving_nm: how far the sample moves to the right and up while the frame is taken; None: as
        far as drift has it.
        """
        settings = self.settings
        drift_x, drift_y = self.drift_nm(number)
        x_nm, y_nm = x_nm - drift_x, y_nm - drift_y
        atoms = self.sample.atoms(number)
        dose_e = settings.dose_e_per_px
        if dose_e_per_a2 is not None:
            dose_e *= dose_e_per_a2 / settings.dose_e_per_a2
        rng = np.random.default_rng([settings.seed, 3, number])
        height_nm, width_nm = (side * settings.pixel_size_nm for side in self._padded_px)
        seen = atoms.seen_from(x_nm, y_nm, width_nm, height_nm)
        if mode == "hrtem":
            clean, noisy = self._photographed(
                self._hrtem(seen, defocus_um, stig_um) * np.float32(dose_e), rng
            )
        else:
            if moving_nm is None:
                after_x, after_y = self.drift_nm(number + 1)
                moving_nm = after_x - drift_x, after_y - drift_y
            signal = self._haadf(seen, defocus_um, stig_um, moving_nm, rng) * np.float32(dose_e)
            clean, noisy = signal, rng.poisson(signal).astype(np.float32)
        clean.flags.writeable = noisy.flags.writeable = False
        side_nm = (
            settings.width_px * settings.pixel_size_nm,
            settings.height_px * (settings.pixel_size_nm),
        )
        defects = tuple(
            Defect(each.kind, each.x_nm - x_nm, each.y_nm - y_nm, each.number, each.radius_nm)
            for each in self.sample.defects_in(number)
            if abs(each.x_nm - x_nm) <= side_nm[0] / 2 and abs(each.y_nm - y_nm) <= side_nm[1] / 2
        )
        return Shot(
            number=number,
            noisy_e=noisy,
            clean_e=clean,
            atoms=atoms.seen_from(x_nm, y_nm, *side_nm),
            defects=defects,
            x_nm=x_nm,
            y_nm=y_nm,
            defocus_um=defocus_um,
            stig_um=stig_um,
            electrons_per_px=dose_e,
        )

    def observe(
        self,
        defocus_um: float,
        stig_um: tuple[float, float] = (0.0, 0.0),
        *,
        number: int = 0,
        mode: Mode = "hrtem",
    ) -> Pixels:
        """One frame as the camera hands it out, (h, w) uint16, read-only."""
        shot = self.expose(defocus_um, stig_um, number=number, mode=mode)
        pixels = self.settings.camera.digital(shot.noisy_e)
        pixels.flags.writeable = False
        return pixels

    def video(
        self,
        frames: int,
        defocus_um: float,
        stig_um: tuple[float, float] = (0.0, 0.0),
        *,
        mode: Mode = "hrtem",
    ) -> Iterator[Shot]:
        """Frames 0, 1, ... of the same place: it drifts, and adatoms hop."""
        for number in range(frames):
            yield self.expose(defocus_um, stig_um, number=number, mode=mode)

    def drift_nm(self, number: int) -> tuple[float, float]:
        """How far the sample has moved to the right and up by frame `number`."""
        settings = self.settings
        unrest = np.zeros(2)
        if settings.unrest_nm > 0.0:
            rng = np.random.default_rng([settings.seed, 4])
            unrest = settings.unrest_nm * rng.standard_normal((number, 2)).sum(axis=0)
        drift_x, drift_y = settings.drift_nm_per_frame
        return number * drift_x + float(unrest[0]), number * drift_y + float(unrest[1])

    def wave(self, atoms: Atoms) -> Wave:
        """The wave that leaves these atoms, on the padded, finer grid; the last is kept."""
        settings = self.settings
        if self._last is not None and _is_same(self._last[0], atoms):
            return self._last[1]
        height, width = (side * self._finer for side in self._padded_px)
        found = exit_wave(
            atoms,
            (height, width),
            settings.pixel_size_nm / self._finer,
            settings.lens.voltage_kv,
            slice_nm=settings.slice_nm,
            thermal_nm=settings.thermal_nm,
        )
        self._last = atoms, found
        return found

    def _hrtem(self, atoms: Atoms, defocus_um: float, stig_um: tuple[float, float]) -> Image:
        """Electrons a pixel, per electron that comes in; through the lens and on to each pixel."""
        wave = self.wave(atoms)
        finer, margin = self._finer, self._margin_px
        shape_px = wave.shape[0], wave.shape[1]
        kx, ky = frequencies_per_nm(shape_px, self.settings.pixel_size_nm / finer)
        passed = transfer(self.settings.lens, defocus_um, stig_um, kx, ky)
        intensity = np.abs(np.fft.ifft2(np.fft.fft2(wave) * passed)) ** 2
        rows, columns = self._padded_px
        binned = intensity.reshape(rows, finer, columns, finer).mean(axis=(1, 3))
        inner = binned[margin : rows - margin, margin : columns - margin]
        return np.asarray(inner, np.float32)

    def _haadf(
        self,
        atoms: Atoms,
        defocus_um: float,
        stig_um: tuple[float, float],
        moving_nm: tuple[float, float],
        rng: np.random.Generator,
    ) -> Image:
        """Electrons a pixel that the annulus takes, per electron that comes in."""
        settings, lens, pixel_nm = self.settings, self.settings.lens, self.settings.pixel_size_nm
        kx, ky = frequencies_per_nm(self._padded_px, pixel_nm)
        spectrum = np.zeros(self._padded_px, np.complex128)
        for element in np.unique(atoms.number):
            here = atoms.number == element
            found = structure_factor(atoms.x_nm[here], atoms.y_nm[here], self._padded_px, pixel_nm)
            spectrum += float(element) ** _Z_POWER * found
        coherent = lens.model_copy(update={"direction_mrad": 0.0})
        # The probe is squared from its amplitude: on finer pixels, or it would fold onto itself.
        finer = 2 * self._finer
        fine_px = finer * self._padded_px[0], finer * self._padded_px[1]
        fine_kx, fine_ky = frequencies_per_nm(fine_px, pixel_nm / finer)
        pupil = transfer(coherent, defocus_um, stig_um, fine_kx, fine_ky, lens.probe_mrad)
        probe = np.abs(np.fft.ifft2(pupil)) ** 2
        kept = (np.rint(np.fft.fftfreq(side, 1.0 / side)).astype(int) for side in self._padded_px)
        blur = lens.source_nm**2 + settings.thermal_nm**2
        spectrum *= np.fft.fft2(probe / probe.sum())[np.ix_(*kept)]
        spectrum *= np.exp(-2.0 * np.pi**2 * blur * (kx**2 + ky**2))
        # Row by row, at the places that the scan really visits while the sample moves on.
        rows, margin = settings.height_px, self._margin_px
        share = np.arange(rows)[:, None] / rows
        along_px = share * (-moving_nm[0] / pixel_nm)
        along_px = along_px + settings.row_jitter_px * rng.standard_normal((rows, 1))
        down_px = np.arange(rows)[:, None] + margin + share * (moving_nm[1] / pixel_nm)
        down = np.exp(2j * np.pi * down_px * np.fft.fftfreq(self._padded_px[0])[None, :])
        moved = (down @ spectrum) * np.exp(
            2j * np.pi * along_px * np.fft.fftfreq(self._padded_px[1])[None, :]
        )
        density = np.fft.ifft(moved, axis=1).real[:, margin : margin + settings.width_px]
        scale = annular_share_nm2(lens) / (self._padded_px[0] * pixel_nm**2)
        return np.asarray(np.maximum(density * scale, 0.0), np.float32)

    def _photographed(self, incident_e: Image, rng: np.random.Generator) -> tuple[Image, Image]:
        """(clean, noisy) from the mean number of electrons at each pixel."""
        camera = self.settings.camera
        ratio = np.maximum(_filtered(incident_e, camera.mtf_ratio, 1.0 / camera.ntf_ratio), 0.0)
        counted = rng.poisson(camera.dqe_ratio * ratio) / camera.dqe_ratio
        noisy = _filtered(counted.astype(np.float32), camera.ntf_ratio)
        noisy += camera.read_noise_e * rng.standard_normal(noisy.shape, np.float32)
        return _filtered(ratio, camera.ntf_ratio), noisy


def _is_same(first: Atoms, second: Atoms) -> bool:
    return np.array_equal(first.places_nm, second.places_nm) and np.array_equal(
        first.number, second.number
    )


def _filtered(image: Image, *at_nyquist: float) -> Image:
    """Through Lorentzians that are r at Nyquist, and 1 at 0; r > 1: one over that of 1 / r."""
    height, width = image.shape
    square = (2.0 * np.fft.fftfreq(height)[:, None]) ** 2 + (2.0 * np.fft.rfftfreq(width)) ** 2
    spectrum = np.fft.rfft2(image)
    for ratio in at_nyquist:
        if ratio <= 1.0:
            spectrum /= 1.0 + (1.0 / ratio - 1.0) * square
        else:
            spectrum *= 1.0 + (ratio - 1.0) * square
    return np.asarray(np.fft.irfft2(spectrum, image.shape), np.float32)
