"""The average over frames: what stands still gains, what moves is followed, what changes is seen."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from inference.restore.api import LiveRestorer, NoiseModel
from inference.restore.classical import RadialWiener
from inference.restore.recursive import Recursive, RecursiveSettings, averaged_noise, shifted

COUNTS = NoiseModel(1.0, 0.0, 0.0)
DOSE = 30.0  # electrons a pixel where the scene is brightest


def moved(truth, right_px, down_px):
    """By a Fourier shift of the mirrored scene: exact for what is band-limited."""
    whole = np.pad(truth, 32, mode="reflect")
    fy, fx = np.fft.fftfreq(whole.shape[0])[:, None], np.fft.fftfreq(whole.shape[1])[None, :]
    ramp = np.exp(-2j * np.pi * (fx * right_px + fy * down_px))
    return np.fft.ifft2(np.fft.fft2(whole) * ramp).real[32:-32, 32:-32]


def exposed(truth, seed, dose=DOSE):
    rng = np.random.default_rng((5, seed))
    return rng.poisson(np.maximum(truth, 0.0) * dose).astype(np.float32)


def error(image, truth, edge=16):
    inner = np.s_[edge:-edge, edge:-edge]
    return float(np.mean((image - DOSE * truth)[inner] ** 2))


def test_a_still_scene_gains(truth):
    live: LiveRestorer = Recursive(RadialWiener())
    assert live.effective_frames == 0.0
    for number in range(24):
        frame = exposed(truth, number)
        image = live.push(frame, COUNTS).image
    single = error(RadialWiener().restore(frame, COUNTS).image, truth)
    assert live.effective_frames >= 16.0
    assert 10.0 * np.log10(single / error(image, truth)) >= 4.0
    assert np.hypot(*live.drift_px) < 0.2
    live.reset()
    assert live.effective_frames == 0.0
