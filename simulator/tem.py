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

A HRTEM frame is smeared along the way that the sample takes while it is exposed.

Left out: dynamic scattering in STEM, higher aberrations, damage.
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
    phase_spectrum,
    ramp,
    structure_factor,
    wavelength_nm,
    within_band,
)

Image = npt.NDArray[np.float32]
Mode = Literal["hrtem", "haadf"]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]

_FINEST_NM = 0.021  # a wave is computed on pixels no larger than this
_MARGIN_NM = 0.8  # drawn round the field, so that what wraps round stays out of it
_SPARE_PX = 8  # that the frame may lie beside the middle of what is drawn
_MOST_MARGINS = 24  # tried for one that transforms quickly
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
    kx, ky = np.broadcast_arrays(kx_per_nm, ky_per_nm)
    half_angle = 1e-3 * (lens.aperture_mrad if half_angle_mrad is None else half_angle_mrad)
    is_open = (kx**2 + ky**2) * length_nm**2 <= half_angle**2
    kx, ky = kx[is_open], ky[is_open]
    square = kx**2 + ky**2
    focus_nm, x_nm, y_nm = (1e3 * um for um in (defocus_um, *stig_um))
    sphere = lens.spherical_mm * 1e6 * length_nm**2 * square  # nm, as a defocus
    turns = (0.5 * length_nm) * (  # chi / (2 pi)
        (focus_nm + 0.5 * sphere) * square + x_nm * (kx**2 - ky**2) + 2.0 * y_nm * kx * ky
    )
    # grad chi / (2 pi lambda)
    slope_x = (focus_nm + sphere + x_nm) * kx + y_nm * ky
    slope_y = (focus_nm + sphere - x_nm) * ky + y_nm * kx
    temporal = 0.5 * (np.pi * length_nm * 1e3 * lens.focal_spread_um * square) ** 2
    spatial = 2.0 * (np.pi * 1e-3 * lens.direction_mrad) ** 2 * (slope_x**2 + slope_y**2)
    passed = np.zeros(is_open.shape, np.complex64)
    passed[is_open] = ramp(turns) * np.exp(-temporal - spatial).astype(np.float32)
    return passed


def annular_share_nm2(lens: LensSettings) -> float:
    """Cross-section into the annulus over Z^1.7; Rutherford's, set right at carbon."""
    inner, outer = (1e-3 * mrad for mrad in lens.annulus_mrad)
    length_a = 10.0 * wavelength_nm(lens.voltage_kv)
    strength = mass_ratio(lens.voltage_kv) * length_a**2 / (2.0 * math.pi**2 * BOHR_A)
    carbon_a2 = math.pi * (6.0 * strength) ** 2 * (1.0 / inner**2 - 1.0 / outer**2)
    return float(0.01 * carbon_a2 / 6.0**_Z_POWER)


@dataclass(frozen=True, slots=True, eq=False)
class _Patch:
    """What of the sample is drawn at once, adatoms left out."""

    x_nm: float  # its middle
    y_nm: float
    atoms: Atoms  # seen from there


class Tem:
    """Lens, sample and camera; `expose` and `video` are all that anybody needs.

    What does not change from frame to frame is kept: the spectrum of all that stays where it is,
    about a place within a few pixels of the frame's (moving a spectrum is exact), and the lens.
    """

    def __init__(self, settings: TemSettings, sample: Sample | None = None) -> None:
        self.settings = settings
        self.sample = Sample(settings.sample) if sample is None else sample
        self._finer = math.ceil(settings.pixel_size_nm / _FINEST_NM)  # wave pixels a pixel
        least_px = math.ceil(_MARGIN_NM / settings.pixel_size_nm) + _SPARE_PX
        self._margins_px = tuple(
            _margin_px(side_px, least_px) for side_px in (settings.height_px, settings.width_px)
        )
        self._padded_px = (
            settings.height_px + 2 * self._margins_px[0],
            settings.width_px + 2 * self._margins_px[1],
        )
        self._patch: _Patch | None = None
        self._phase: tuple[_Patch, Wave] | None = None
        self._shine: tuple[_Patch, Wave] | None = None
        self._thick: tuple[_Patch, Atoms, Wave] | None = None
        self._lens: tuple[tuple[float, ...], Wave] | None = None
        self._probe: tuple[tuple[float, ...], Wave] | None = None

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
        patch = self._patch_about(x_nm, y_nm)
        dose_e = settings.dose_e_per_px
        if dose_e_per_a2 is not None:
            dose_e *= dose_e_per_a2 / settings.dose_e_per_a2
        rng = np.random.default_rng([settings.seed, 3, number])
        if moving_nm is None:
            after_x, after_y = self.drift_nm(number + 1)
            moving_nm = after_x - drift_x, after_y - drift_y
        height_nm, width_nm = (side * settings.pixel_size_nm for side in self._padded_px)
        moving = self.sample.moving(number).seen_from(patch.x_nm, patch.y_nm, width_nm, height_nm)
        away_nm = x_nm - patch.x_nm, y_nm - patch.y_nm
        if mode == "hrtem":
            image = self._hrtem(patch, moving, away_nm, defocus_um, stig_um)
            clean, noisy = self._photographed(image * np.float32(dose_e), moving_nm, rng)
        else:
            image = self._haadf(patch, moving, away_nm, defocus_um, stig_um, moving_nm, rng)
            clean = image * np.float32(dose_e)
            noisy = rng.poisson(clean).astype(np.float32)
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
            atoms=patch.atoms.joined(moving).seen_from(*away_nm, *side_nm),
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

    def _patch_about(self, x_nm: float, y_nm: float) -> _Patch:
        """On a grid of places, so that a frame does not depend on those taken before."""
        pixel_nm = self.settings.pixel_size_nm
        step_nm = 2 * _SPARE_PX * pixel_nm
        x_nm, y_nm = step_nm * round(x_nm / step_nm), step_nm * round(y_nm / step_nm)
        if self._patch is None or (self._patch.x_nm, self._patch.y_nm) != (x_nm, y_nm):
            height_nm, width_nm = (side * pixel_nm for side in self._padded_px)
            atoms = self.sample.still.seen_from(x_nm, y_nm, width_nm, height_nm)
            self._patch = _Patch(x_nm, y_nm, atoms)
        return self._patch

    def _wave_spectrum(self, patch: _Patch, moving: Atoms, away_nm: tuple[float, float]) -> Wave:
        """`numpy.fft.fft2` of the wave that leaves the sample, on the finer grid."""
        settings, finer = self.settings, self._finer
        shape_px = finer * self._padded_px[0], finer * self._padded_px[1]
        pixel_nm, voltage_kv = settings.pixel_size_nm / finer, settings.lens.voltage_kv
        if settings.slice_nm is None:
            grid = shape_px, pixel_nm, voltage_kv, settings.thermal_nm
            if self._phase is None or self._phase[0] is not patch:
                self._phase = patch, phase_spectrum(patch.atoms, *grid)
            spectrum = self._phase[1]
            if len(moving.number):
                spectrum = spectrum + phase_spectrum(moving, *grid)
            phase = np.fft.irfft2(_moved(spectrum, shape_px[1], pixel_nm, away_nm), shape_px)
            wave = np.empty(shape_px, np.complex64)
            wave.real, wave.imag = np.cos(phase), np.sin(phase)
            return np.asarray(np.fft.fft2(wave), np.complex64)
        thick = self._thick
        if thick is None or thick[0] is not patch or not _is_same(thick[1], moving):
            wave = exit_wave(
                patch.atoms.joined(moving),
                shape_px,
                pixel_nm,
                voltage_kv,
                slice_nm=settings.slice_nm,
                thermal_nm=settings.thermal_nm,
            )
            thick = self._thick = patch, moving, np.asarray(np.fft.fft2(wave), np.complex64)
        return _moved(thick[2], shape_px[1], pixel_nm, away_nm)

    def _hrtem(
        self,
        patch: _Patch,
        moving: Atoms,
        away_nm: tuple[float, float],
        defocus_um: float,
        stig_um: tuple[float, float],
    ) -> Image:
        """Electrons a pixel, per electron that comes in; through the lens and on to each pixel."""
        spectrum = self._wave_spectrum(patch, moving, away_nm)
        key = defocus_um, *stig_um
        if self._lens is None or self._lens[0] != key:
            shape_px = spectrum.shape[0], spectrum.shape[1]
            pixel_nm = self.settings.pixel_size_nm / self._finer
            kx, ky = frequencies_per_nm(shape_px, pixel_nm)
            passed = transfer(self.settings.lens, defocus_um, stig_um, kx, ky)
            self._lens = key, passed * within_band(shape_px, pixel_nm)
        wave = np.fft.ifft2(spectrum * self._lens[1])
        intensity = np.asarray(wave.real**2 + wave.imag**2, np.float32)
        if self._finer > 1:
            rows, columns = self._padded_px
            folded = intensity.reshape(rows, self._finer, columns, self._finer)
            intensity = folded.mean(axis=(1, 3), dtype=np.float32)
        return self._inner(intensity)

    def _haadf(
        self,
        patch: _Patch,
        moving: Atoms,
        away_nm: tuple[float, float],
        defocus_um: float,
        stig_um: tuple[float, float],
        moving_nm: tuple[float, float],
        rng: np.random.Generator,
    ) -> Image:
        """Electrons a pixel that the annulus takes, per electron that comes in."""
        settings, pixel_nm = self.settings, self.settings.pixel_size_nm
        if self._shine is None or self._shine[0] is not patch:
            self._shine = patch, self._shining(patch.atoms)
        spectrum = self._shine[1]
        if len(moving.number):
            spectrum = spectrum + self._shining(moving)
        key = defocus_um, *stig_um
        if self._probe is None or self._probe[0] != key:
            self._probe = key, self._probe_spectrum(defocus_um, stig_um)
        # Row by row, at the places that the scan really visits while the sample moves on.
        rows, (padded_rows, padded_columns) = settings.height_px, self._padded_px
        spectrum = _moved(spectrum * self._probe[1], padded_columns, pixel_nm, away_nm)
        share = np.arange(rows)[:, None] / rows
        along_px = share * (-moving_nm[0] / pixel_nm)
        along_px = along_px + settings.row_jitter_px * rng.standard_normal((rows, 1))
        down_px = np.arange(rows)[:, None] + self._margins_px[0] + share * (moving_nm[1] / pixel_nm)
        scanned = ramp(-down_px * np.fft.fftfreq(padded_rows)[None, :]) @ spectrum
        scanned *= ramp(-along_px * np.fft.rfftfreq(padded_columns)[None, :])
        margin = self._margins_px[1]
        density = np.fft.irfft(scanned, padded_columns)[:, margin : margin + settings.width_px]
        scale = annular_share_nm2(settings.lens) / (padded_rows * pixel_nm**2)
        return np.asarray(np.maximum(density * np.float32(scale), 0.0), np.float32)

    def _shining(self, atoms: Atoms) -> Wave:
        """`numpy.fft.rfft2` of what atoms scatter at points of their own."""
        pixel_nm, padded_px = self.settings.pixel_size_nm, self._padded_px
        total = np.zeros((padded_px[0], padded_px[1] // 2 + 1), np.complex64)
        for element in np.unique(atoms.number):
            here = atoms.number == element
            x_nm, y_nm = atoms.x_nm[here], atoms.y_nm[here]
            found = structure_factor(x_nm, y_nm, padded_px, pixel_nm, is_half=True)
            total += np.float32(float(element) ** _Z_POWER) * found
        return total

    def _probe_spectrum(self, defocus_um: float, stig_um: tuple[float, float]) -> Wave:
        """`numpy.fft.rfft2` of the probe's intensity, source and atoms' motion in it; 1 at 0."""
        settings, lens, pixel_nm = self.settings, self.settings.lens, self.settings.pixel_size_nm
        coherent = lens.model_copy(update={"direction_mrad": 0.0})
        # Squared from its amplitude, the probe holds twice the frequencies of its pupil.
        widest = 4.0 * 1e-3 * lens.probe_mrad / wavelength_nm(lens.voltage_kv)
        finer = max(1, math.ceil(widest * pixel_nm))
        fine_px = finer * self._padded_px[0], finer * self._padded_px[1]
        kx, ky = frequencies_per_nm(fine_px, pixel_nm / finer)
        pupil = transfer(coherent, defocus_um, stig_um, kx, ky, lens.probe_mrad)
        probe = np.fft.ifft2(pupil)
        intensity = probe.real**2 + probe.imag**2
        spectrum = np.fft.rfft2(intensity / intensity.sum())
        kept_rows = np.rint(np.fft.fftfreq(self._padded_px[0], 1.0 / self._padded_px[0]))
        kept_columns = np.arange(self._padded_px[1] // 2 + 1)
        spectrum = spectrum[np.ix_(kept_rows.astype(int), kept_columns)]
        kx, ky = frequencies_per_nm(self._padded_px, pixel_nm)
        blur = lens.source_nm**2 + settings.thermal_nm**2
        damping = np.exp(-2.0 * np.pi**2 * blur * (kx[:, kept_columns] ** 2 + ky**2))
        return np.asarray(spectrum * damping, np.complex64)

    def _inner(self, padded: Image) -> Image:
        (rows, columns), (down, right) = self._padded_px, self._margins_px
        return padded[down : rows - down, right : columns - right]

    def _photographed(
        self, incident_e: Image, moving_nm: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Image, Image]:
        """(clean, noisy) from the mean number of electrons at each pixel."""
        camera, pixel_nm = self.settings.camera, self.settings.pixel_size_nm
        smear_px = moving_nm[0] / pixel_nm, -moving_nm[1] / pixel_nm
        ratio = _filtered(incident_e, camera.mtf_ratio, 1.0 / camera.ntf_ratio, smear_px=smear_px)
        ratio = np.maximum(ratio, 0.0)
        counted = rng.poisson(camera.dqe_ratio * ratio) / camera.dqe_ratio
        noisy = _filtered(counted.astype(np.float32), camera.ntf_ratio)
        noisy += np.float32(camera.read_noise_e) * rng.standard_normal(noisy.shape, np.float32)
        return _filtered(ratio, camera.ntf_ratio), noisy


def _margin_px(side_px: int, least_px: int) -> int:
    """The next margin with which the whole has small factors only, and transforms quickly."""
    return next(
        margin
        for margin in range(least_px, least_px + _MOST_MARGINS)
        if _has_small_factors(side_px + 2 * margin) or margin == least_px + _MOST_MARGINS - 1
    )


def _has_small_factors(number: int) -> bool:
    for factor in (2, 3, 5, 7, 11):
        while number % factor == 0:
            number //= factor
    return number == 1


def _moved(spectrum: Wave, width_px: int, pixel_nm: float, away_nm: tuple[float, float]) -> Wave:
    """Of a picture of that width, seen from a place away from its middle; full or half spectra."""
    if away_nm == (0.0, 0.0):
        return spectrum
    height_px, columns = spectrum.shape
    across = np.fft.fftfreq(width_px) if columns == width_px else np.fft.rfftfreq(width_px)
    right, up = away_nm[0] / pixel_nm, away_nm[1] / pixel_nm
    moved = spectrum * ramp(up * np.fft.fftfreq(height_px))[:, None]
    moved *= ramp(-right * across)
    return moved


def _is_same(first: Atoms, second: Atoms) -> bool:
    return np.array_equal(first.places_nm, second.places_nm) and np.array_equal(
        first.number, second.number
    )


def _filtered(
    image: Image, *at_nyquist: float, smear_px: tuple[float, float] = (0.0, 0.0)
) -> Image:
    """Through Lorentzians that are r at Nyquist, and 1 at 0; r > 1: one over that of 1 / r.

    smear_px: to the right and down, the way that the image has moved meanwhile.
    """
    down = np.fft.fftfreq(image.shape[0]).astype(np.float32)[:, None]
    across = np.fft.rfftfreq(image.shape[1]).astype(np.float32)[None, :]
    square = 4.0 * (down**2 + across**2)
    spectrum = np.fft.rfft2(image)
    for ratio in at_nyquist:
        if ratio <= 1.0:
            spectrum /= np.float32(1.0) + np.float32(1.0 / ratio - 1.0) * square
        else:
            spectrum *= np.float32(1.0) + np.float32(ratio - 1.0) * square
    if smear_px != (0.0, 0.0):
        spectrum *= np.sinc(np.float32(smear_px[0]) * across + np.float32(smear_px[1]) * down)
    return np.asarray(np.fft.irfft2(spectrum, image.shape), np.float32)
