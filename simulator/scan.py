"""One scan: the probe taken over a field row by row, and what the detector makes of it.

`frame_of` is a pure function of a field, a probe, a scan and a random generator; the same four give
the same bytes. The blur, the place of every row and the tails of charge along it are all done among
the frequencies of one Fourier transform, so a displaced row is as sharp as its neighbours.

The beam moves to the right along a row, flies back and takes the next one below. Left out: the
lag of the scan coils, the detector's bandwidth, what the beam does to a sample beyond charging it.

Counting: a pixel's electrons are current x dwell / e, and the detector counts a Poisson number
whose mean is that times the yield. The gain decides which grey value a yield of 1 has; the dose
decides the noise only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from drivers.api import Pixels
from simulator.probe import Probe
from simulator.specimen import SpecimenField

ELECTRON_PA_NS = 1.602176634e-19 * 1e21
"""The charge of one electron, in pA ns: current x dwell over this is a number of electrons."""

_MAINS_HZ = 50.0
_STILL_PX = 2e-3  # displacements below this are not drawn
_LOWEST_ROW_PX = 0.05  # rows that drift along the slow axis by less than this stay where they are


class ScanSettings(BaseModel):
    """How steadily the beam moves, and what it leaves behind."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    flyback_us: float = Field(default=20.0, ge=0.0, le=1e5)  # at the end of each row
    jitter_px: float = Field(default=0.05, ge=0.0, le=20.0)  # of each row, one sd, along it
    mains_px: float = Field(default=0.05, ge=0.0, le=50.0)  # amplitude of the 50 Hz along the rows
    flicker_ratio: float = Field(default=0.0, ge=0.0, le=1.0)  # of the current, frame to frame, sd
    row_flicker_ratio: float = Field(default=0.003, ge=0.0, le=1.0)  # and row to row
    charging_ratio: float = Field(default=0.8, ge=0.0, le=10.0)  # of what insulates, signal lost
    charging_tail_px: float = Field(default=60.0, gt=0.0, le=1e4)  # along the row, 1/e


class DetectorSettings(BaseModel):
    """From electrons to digital numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bit_depth: Literal[8, 12, 16] = 8
    gain_ratio: float = Field(default=0.6, gt=0.0, le=100.0)  # of full scale, for a yield of 1
    offset_ratio: float = Field(default=0.05, ge=-1.0, le=1.0)  # of full scale
    gamma: float = Field(default=1.0, ge=0.2, le=5.0)  # number ~ signal ** (1 / gamma)
    read_noise_e: float = Field(default=0.5, ge=0.0, le=1_000.0)  # one sd, per pixel
    is_noisy: bool = True  # False: the mean of what it would count

    @property
    def largest_dn(self) -> int:
        """The number at which it saturates."""
        return int(2**self.bit_depth - 1)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Of the pixels."""
        return np.uint8 if self.bit_depth == 8 else np.uint16


@dataclass(frozen=True, slots=True)
class Scan:
    """One frame's worth of scanning."""

    settings: ScanSettings
    detector: DetectorSettings
    dwell_ns: float
    started_s: float = 0.0  # decides the phase of the mains
    shift_px: tuple[float, float] = (0.0, 0.0)  # of the frame's middle from the field's
    drift_nm_per_s: tuple[float, float] = (0.0, 0.0)  # of the sample, to the right and up

    def row_s(self, width_px: int) -> float:
        """From the start of one row to that of the next."""
        return width_px * self.dwell_ns * 1e-9 + self.settings.flyback_us * 1e-6

    def frame_s(self, shape_px: tuple[int, int]) -> float:
        """How long the beam takes over the frame."""
        return shape_px[0] * self.row_s(shape_px[1])


def dose_e_per_px(current_pa: float, dwell_ns: float) -> float:
    """Electrons that the beam puts into one pixel."""
    return current_pa * dwell_ns / ELECTRON_PA_NS


def padded_px(field: SpecimenField, reach_px: int) -> tuple[int, int]:
    """A size for the transforms: the field and a margin as wide as blur and shifts ask for."""
    rows, columns = (
        min(cv2.getOptimalDFTSize(size + reach_px), size + 2 * field.margin_px)
        for size in field.shape_px
    )
    return rows, columns - columns % 2


def frame_of(field: SpecimenField, probe: Probe, scan: Scan, rng: np.random.Generator) -> Pixels:
    """What the detector shows: (h, w) uint8 for 8 bits, else uint16; y down, read-only."""
    signal = _signal(field, probe, scan, rng)
    return _digital(signal, dose_e_per_px(probe.beam.current_pa, scan.dwell_ns), scan, rng)


def _signal(
    field: SpecimenField, probe: Probe, scan: Scan, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The yield along the beam's way, (h, w), free of noise."""
    height, width = field.shape_px
    settings = scan.settings
    right_px, up_px = _ways_px(field, scan, rng)
    wander_px = float(max(np.abs(right_px).max(), np.abs(up_px).max()))
    reach_px = 2 * (probe.reach_px(field.pixel_size_nm) + math.ceil(wander_px)) + 4
    size = padded_px(field, reach_px)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    transfer = probe.transfer(field.pixel_size_nm, size)
    fast = np.fft.rfftfreq(size[1]).astype(np.float32)
    slow = np.fft.fftfreq(size[0])
    # A point that is up_px higher on the sample lies further up the field's rows.
    middle_px = float(up_px.mean())
    steps_px = up_px - middle_px
    if abs(middle_px) > _STILL_PX:
        lifted = np.exp(-2j * np.pi * slow * middle_px).astype(np.complex64)[:, None]
    else:
        lifted = None

    def rows_of(what: Literal["yield", "charging"]) -> npt.NDArray[np.complex64]:
        blurred = field.spectrum(what, size) * transfer
        if lifted is not None:
            blurred *= lifted
        rows = np.fft.ifft(blurred, axis=0)[top : top + height]
        return np.asarray(_rows_at(rows, steps_px), np.complex64)

    rows = rows_of("yield")
    if field.charging_ratio is not None and settings.charging_ratio > 0.0:
        tail = 1.0 / (1.0 + 2j * np.pi * settings.charging_tail_px * fast)
        strength = settings.charging_ratio * _streaks(height, rng)
        rows -= rows_of("charging") * tail.astype(np.complex64) * strength[:, None]
    if float(np.abs(right_px).max()) > _STILL_PX:
        phase = np.multiply.outer((2.0 * np.pi * right_px).astype(np.float32), fast)
        turned = np.empty(phase.shape, np.complex64)
        np.cos(phase, out=turned.real)
        np.sin(phase, out=turned.imag)
        rows = rows * turned
    found = np.fft.irfft(rows, size[1], axis=1)[:, left : left + width]
    return np.asarray(found, np.float32)


def _ways_px(
    field: SpecimenField, scan: Scan, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where each row lies, to the right and up, from where it should."""
    height, width = field.shape_px
    settings = scan.settings
    moments_s = (np.arange(height) + 0.5) * scan.row_s(width)
    # A sample that drifts to the right takes the beam to what lies further left.
    since_s = moments_s - moments_s[-1] / 2
    drift_px = -np.multiply.outer(since_s, np.array(scan.drift_nm_per_s) / field.pixel_size_nm)
    right_px = scan.shift_px[0] + drift_px[:, 0]
    up_px = scan.shift_px[1] + drift_px[:, 1]
    right_px = right_px + settings.jitter_px * rng.standard_normal(height)
    turns = _MAINS_HZ * (scan.started_s + moments_s)
    right_px += settings.mains_px * np.sin(2.0 * np.pi * turns)
    return right_px, up_px


def _rows_at(
    rows: npt.NDArray[np.complexfloating], up_px: npt.NDArray[np.float64]
) -> npt.NDArray[np.complexfloating]:
    """Rows taken `up_px` above their own place, by the cubic of Catmull and Rom through four."""
    if float(np.abs(up_px).max()) < _LOWEST_ROW_PX:
        return rows
    place = np.arange(rows.shape[0]) - up_px
    base = np.floor(place).astype(np.int64)
    t = (place - base)[:, None].astype(np.float32)
    last = rows.shape[0] - 1
    p0, p1, p2, p3 = (rows[np.clip(base + step, 0, last)] for step in (-1, 0, 1, 2))
    return np.asarray(
        p1
        + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    )


def _streaks(height: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """How strongly each row charges: mean 1, wandering over tens of rows, now and then none."""
    steps = rng.standard_normal(height)
    wander = np.empty(height)
    value = float(rng.standard_normal())
    for row in range(height):
        value = 0.95 * value + 0.31 * steps[row]
        wander[row] = value
    strength = np.maximum(1.0 + 0.5 * wander, 0.0)
    strength[rng.random(height) < 0.03] = 0.0  # it has leaked away
    return strength.astype(np.float32)


def _digital(
    signal: npt.NDArray[np.float32], dose_e: float, scan: Scan, rng: np.random.Generator
) -> Pixels:
    """Count and digitise; uses up `signal`."""
    settings, detector = scan.settings, scan.detector
    height = signal.shape[0]
    current = 1.0 + settings.flicker_ratio * float(rng.standard_normal())
    rows = current * (1.0 + settings.row_flicker_ratio * rng.standard_normal(height))
    signal = signal * np.maximum(rows, 0.0).astype(np.float32)[:, None]
    np.maximum(signal, np.float32(0.0), out=signal)
    if dose_e > 0.0:
        if detector.is_noisy:
            signal *= np.float32(dose_e)
            counts = rng.poisson(signal).astype(np.float32)
        else:
            counts = signal * np.float32(dose_e)
        if detector.is_noisy and detector.read_noise_e > 0.0:
            noise = rng.standard_normal(signal.shape, dtype=np.float32)
            counts += np.float32(detector.read_noise_e) * noise
        signal = counts
        signal *= np.float32(detector.gain_ratio / dose_e)
    else:
        signal = np.zeros_like(signal)
    signal += np.float32(detector.offset_ratio)
    np.clip(signal, 0.0, 1.0, out=signal)
    if detector.gamma != 1.0:
        np.power(signal, np.float32(1.0 / detector.gamma), out=signal)
    signal *= np.float32(detector.largest_dn)
    signal += np.float32(0.5)  # the conversion truncates
    pixels: Pixels = (
        signal.astype(np.uint8) if detector.bit_depth == 8 else signal.astype(np.uint16)
    )
    pixels.flags.writeable = False
    return pixels
