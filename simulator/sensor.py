"""From light to digital numbers: exposure, shot and read noise, black level, gamma, bits.

The chain is the EMVA 1288 one: electrons = light x exposure, noise of variance electrons +
read_noise^2, a black level, saturation at the full well, a gain that maps the full well to the
largest number, a gamma curve if the camera applies one, rounding.

Noise has to be cheap, for a frame has seven million values: one bank of normal deviates is drawn
per process seed and each frame reads it from places that (seed, frame number) decides. The rows of
a frame are taken in strips that stay in the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from drivers.api import Pixels

Gain = Annotated[float, Field(gt=0.0, le=16.0)]

NOISELESS_FULL_WELL_E = 1e9
"""A well this deep, without read noise, is taken as free of noise."""

_BANK_SIZE = 1 << 22  # deviates; 16 MB
_STRIP_ROWS = 48


class SensorSettings(BaseModel):
    """A colour camera."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bit_depth: Literal[8, 10, 12, 14, 16] = 8
    exposure_for_full_well_s: float = Field(default=0.012, gt=0.0, le=100.0)  # of a dim mirror
    full_well_mirror_ratio: float = Field(default=0.42, gt=0.01, le=10.0)  # its reflectance
    full_well_e: float = Field(default=10_500.0, ge=100.0, le=1e9)
    read_noise_e: float = Field(default=7.0, ge=0.0, le=10_000.0)
    black_level_ratio: float = Field(default=0.0, ge=0.0, le=0.5)  # of the full scale
    gamma: float = Field(default=1.0, ge=0.2, le=5.0)  # number ~ light ** (1 / gamma)
    white_balance_rgb: tuple[Gain, Gain, Gain] = (1.0, 1.0, 1.0)
    shutter: Literal["global", "rolling"] = "global"
    readout_s: float = Field(default=0.015, ge=0.0, le=10.0)  # first row to last, if rolling
    flicker_ratio: float = Field(default=0.0, ge=0.0, le=1.0)  # of the lamp's light, peak
    flicker_hz: float = Field(default=100.0, gt=0.0, le=1e6)
    wander_ratio: float = Field(default=0.002, ge=0.0, le=0.5)  # of the lamp, frame to frame

    @model_validator(mode="after")
    def _black_leaves_room(self) -> SensorSettings:
        if self.black_level_ratio > 0.4 and self.gamma != 1.0:
            raise ValueError("black_level_ratio above 0.4 leaves no range for a gamma curve")
        return self

    @property
    def largest_dn(self) -> int:
        """The number at which it saturates."""
        return int(2**self.bit_depth - 1)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Of the pixels."""
        return np.uint8 if self.bit_depth == 8 else np.uint16


@dataclass(frozen=True, slots=True)
class Exposure:
    """How one frame is taken."""

    seed: int
    number: int  # of the frame; with the seed it decides all that is random
    exposure_s: float = 0.012
    started_s: float = 0.0  # phase of the lamp's flicker
    lamp_ratio: float = 1.0


@cache
def noise_bank(seed: int) -> npt.NDArray[np.float32]:
    """Normal deviates; read-only."""
    bank = np.random.default_rng([seed, 0x5EED]).standard_normal(_BANK_SIZE, dtype=np.float32)
    bank.flags.writeable = False
    return bank


def flicker_rows(
    settings: SensorSettings, exposure: Exposure, rows: int
) -> npt.NDArray[np.float64]:
    """The lamp's light during each row's exposure, mean 1; equal rows under a global shutter."""
    delay_s = np.zeros(rows)
    if settings.shutter == "rolling":
        delay_s = np.linspace(0.0, settings.readout_s, rows)
    if settings.flicker_ratio == 0.0:
        return np.ones(rows)
    omega = 2.0 * np.pi * settings.flicker_hz
    start = omega * (exposure.started_s + delay_s)
    turned = omega * exposure.exposure_s
    mean = (np.cos(start) - np.cos(start + turned)) / max(turned, 1e-12)
    return np.asarray(1.0 + settings.flicker_ratio * mean, dtype=np.float64)


def expose(
    planes: npt.NDArray[np.float32],
    light_field: npt.NDArray[np.float32],
    settings: SensorSettings,
    exposure: Exposure,
) -> Pixels:
    """Linear light, (3, h, w) with a mirror at 1, to pixels (h, w, 3), read-only.

    `planes` is used up. The same settings and the same `exposure` give the same bytes.
    """
    _, h, w = planes.shape
    rng = np.random.default_rng([exposure.seed, exposure.number])
    lamp = exposure.lamp_ratio * max(0.0, 1.0 + settings.wander_ratio * rng.standard_normal())
    relative = exposure.exposure_s / settings.exposure_for_full_well_s
    electrons = relative * lamp * settings.full_well_e / settings.full_well_mirror_ratio
    bank = noise_bank(exposure.seed)
    starts = rng.integers(0, bank.size - _STRIP_ROWS * w, (-(-h // _STRIP_ROWS), 3))
    rows = flicker_rows(settings, exposure, h).astype(np.float32)[:, None]
    curve = _curve(settings)
    is_noisy = settings.full_well_e < NOISELESS_FULL_WELL_E or settings.read_noise_e > 0.0
    pixels: Pixels = np.empty((h, w, 3), dtype=np.uint8)
    if settings.bit_depth > 8:
        pixels = np.empty((h, w, 3), dtype=np.uint16)
    for strip, top in enumerate(range(0, h, _STRIP_ROWS)):
        bottom = min(top + _STRIP_ROWS, h)
        light = light_field[top:bottom] * (rows[top:bottom] * np.float32(electrons))
        for channel in range(3):
            signal = planes[channel, top:bottom]
            np.multiply(signal, light, out=signal)
            np.maximum(signal, np.float32(0.0), out=signal)
            if is_noisy:
                start = int(starts[strip, channel])
                sigma = np.sqrt(signal + np.float32(settings.read_noise_e**2))
                sigma *= bank[start : start + signal.size].reshape(signal.shape)
                signal += sigma
            gain = settings.white_balance_rgb[channel]
            pixels[top:bottom, :, channel] = _numbers(signal, gain, settings, curve)
    pixels.flags.writeable = False
    return pixels


def _numbers(
    signal_e: npt.NDArray[np.float32], gain: float, settings: SensorSettings, curve: Pixels | None
) -> Pixels:
    """Electrons to digital numbers; uses up `signal_e`.

    What the well cannot hold is lost before any gain; a gain above 1 clips earlier, one below 1
    saturates below the largest number, as in a real camera.
    """
    np.minimum(signal_e, np.float32(settings.full_well_e), out=signal_e)
    if curve is not None:
        signal_e *= np.float32(gain * (len(curve) - 1) / settings.full_well_e)
        np.clip(signal_e, 0.0, np.float32(len(curve) - 1), out=signal_e)
        found: Pixels = curve[signal_e.astype(np.intp)]
        return found
    largest = settings.largest_dn
    black_dn = largest * settings.black_level_ratio
    signal_e *= np.float32(gain * (largest - black_dn) / settings.full_well_e)
    signal_e += np.float32(black_dn + 0.5)  # the conversion truncates
    np.clip(signal_e, 0.0, np.float32(largest), out=signal_e)
    if settings.bit_depth == 8:
        return signal_e.astype(np.uint8)
    return signal_e.astype(np.uint16)


@cache
def _curve(settings: SensorSettings) -> Pixels | None:
    """Light, in 1/65535 of the full well, to numbers; None while that is a straight line."""
    if settings.gamma == 1.0:
        return None
    black = settings.black_level_ratio
    numbers = black + (1.0 - black) * np.linspace(0.0, 1.0, 65536) ** (1.0 / settings.gamma)
    rounded = np.rint(settings.largest_dn * numbers)
    return rounded.astype(np.uint8) if settings.bit_depth == 8 else rounded.astype(np.uint16)
