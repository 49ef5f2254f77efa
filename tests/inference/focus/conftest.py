"""Frames of known focus: random textures and a probe outside the estimator's family."""

import numpy as np
import pytest

from inference.focus.blur import transfer

_F_Y = np.fft.fftfreq(512)[:, None]
_F_X = np.fft.rfftfreq(512)[None, :]
_F = np.hypot(_F_X, _F_Y)
_THETA = np.arctan2(_F_Y, _F_X + 0 * _F_Y)


class Instrument:
    """Focus at z_dof, astigmatism to be taken off at (x, y); a disc with a hole in its middle."""

    def __init__(self, seed, z_dof=0.0, stig=(0.0, 0.0), dose=200.0, contrast=0.25, flicker=0.1):
        self.rng = np.random.default_rng([5, seed])
        noise = np.fft.rfft2(self.rng.normal(size=(512, 512)))
        plane = np.fft.irfft2(noise * (_F**2 + 0.01**2) ** -0.65, s=(512, 512))
        plane = np.tanh(2 * plane / plane.std())
        self.spectrum = np.fft.rfft2(contrast * plane)
        self.z_dof, self.stig, self.dose, self.flicker = z_dof, stig, dose, flicker

    def frame(self, command):
        z = command.z_dof - self.z_dof
        a, b = command.stig_x_dof - self.stig[0], command.stig_y_dof - self.stig[1]
        squared = z**2 + a**2 + b**2 + 2 * z * (a * np.cos(2 * _THETA) + b * np.sin(2 * _THETA))
        radius = np.sqrt(np.maximum(squared, 0)) / command.field_ratio
        outer, inner = transfer("disc", _F, radius), transfer("disc", _F, 0.3 * radius)
        ring = (outer - 0.09 * inner) / 0.91 * np.exp(-2 * (np.pi * _F * 0.45) ** 2)
        clean = 1 + np.fft.irfft2(self.spectrum * ring, s=(512, 512))[128:384, 128:384]
        dose = self.dose * (1 + self.flicker * self.rng.normal())
        return self.rng.poisson(np.maximum(clean, 0) * dose).astype(np.uint16)


@pytest.fixture(scope="session")
def make_instrument():
    """The class itself: importlib mode has no place to import a helper from."""
    return Instrument
