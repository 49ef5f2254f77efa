"""What the exit wave's network learns from: waves, without torch and without the simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class WaveExample:
    """One exit wave, (h, w) each, y down; at least 192 px a side."""

    amplitude: npt.NDArray[np.float16]
    phase_rad: npt.NDArray[np.float16]
    pixel_size_nm: float
    voltage_kv: float

    @classmethod
    def of(cls, wave: npt.NDArray[np.complexfloating], pixel_nm: float, kv: float) -> WaveExample:
        """From a complex wave."""
        amplitude, phase = np.abs(wave) - 1.0, np.angle(wave)
        return cls(amplitude.astype(np.float16), phase.astype(np.float16), pixel_nm, kv)

    def wave(self, rows: slice, columns: slice) -> npt.NDArray[np.complex64]:
        """A part of it."""
        amplitude = 1.0 + self.amplitude[rows, columns].astype(np.float32)
        turned = np.exp(1j * self.phase_rad[rows, columns].astype(np.float32))
        return np.asarray(amplitude * turned, np.complex64)
