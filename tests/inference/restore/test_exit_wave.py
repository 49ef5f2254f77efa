"""Exit waves from one frame: the classical anchor, the network's place, and the refocused frame."""

import dataclasses

import numpy as np
import pytest

from inference.api import BadImage, BadModel
from inference.restore.api import NoiseModel
from inference.restore.electrons import Focus, Lens, frequencies_per_nm, phase_contrast
from inference.restore.exit_wave import (
    MARGIN_PX,
    SCALE,
    ExitWaveRestorer,
    Microscope,
    intensity,
    padded,
    planes,
    wiener_gain,
)
from inference.restore.scores import psnr_db
from simulator.exit_waves import wave_scene

COUNTS = NoiseModel(1.0, 0.0, 0.0)
MICROSCOPE = Microscope(Lens(80.0, -0.01), Focus(0.009, (0.001, 0.0)), 0.0154)


class Engine:
    """A network that says what it is told."""

    def __init__(self, answer):
        self._answer = answer

    def run(self, array):
        self.seen = array
        return self._answer(array)


def frame(dose=1e4, number=3):
    wave = wave_scene(3, number, "impurities", 192).wave
    clean = intensity(wave, MICROSCOPE)[24:-24, 24:-24] * np.float32(dose * 0.154**2)
    noisy = np.random.default_rng(2).poisson(clean).astype(np.float32)
    return noisy, clean, np.angle(wave)[24:-24, 24:-24]


def test_the_anchor_denoises_and_finds_the_phase():
    noisy, clean, phase = frame(1e5)
    answer = ExitWaveRestorer().recover(noisy, MICROSCOPE, COUNTS)
    span = float(np.ptp(clean))
    assert psnr_db(answer.image, clean, span) > psnr_db(noisy, clean, span) + 8.0
    assert np.corrcoef(answer.phase_rad.ravel(), phase.ravel())[0, 1] > 0.6
    assert answer.method == "weak_phase"
    assert answer.in_distribution


def test_a_network_without_corrections_answers_as_the_anchor():
    noisy, _, _ = frame()
    engine = Engine(lambda array: np.zeros((1, 2, *array.shape[2:]), np.float32))
    answer = ExitWaveRestorer(engine).recover(noisy, MICROSCOPE, COUNTS)
    plain = ExitWaveRestorer().recover(noisy, MICROSCOPE, COUNTS)
    assert np.array_equal(answer.image, plain.image)
    assert answer.method == "cddae"
    assert all(side % 16 == 0 for side in engine.seen.shape[2:])


def test_corrections_are_added_in_their_unit():
    noisy, _, _ = frame()
    engine = Engine(lambda array: np.ones((1, 2, *array.shape[2:]), np.float32))
    answer = ExitWaveRestorer(engine).recover(noisy, MICROSCOPE, COUNTS)
    plain = ExitWaveRestorer().recover(noisy, MICROSCOPE, COUNTS)
    assert np.allclose(answer.amplitude, 1.0 + SCALE)
    assert np.allclose(answer.phase_rad - plain.phase_rad, SCALE, atol=1e-6)
    assert answer.image.mean() == pytest.approx(noisy.mean(), rel=1e-4)  # its mean is measured


def test_gain_and_offset_of_the_camera_change_nothing_else():
    noisy, _, _ = frame()
    plain = ExitWaveRestorer().recover(noisy, MICROSCOPE, COUNTS)
    digital = (16.0 * noisy + 200.0).astype(np.float32)
    answer = ExitWaveRestorer().recover(digital, MICROSCOPE, NoiseModel(16.0, 200.0, 0.0))
    assert np.allclose(answer.image, 16.0 * plain.image + 200.0, rtol=1e-4)
    assert np.allclose(answer.phase_rad, plain.phase_rad, atol=1e-5)


def test_refocusing_gives_the_frame_of_another_focus():
    wave = wave_scene(3, 3, "impurities", 192).wave
    clean = intensity(wave, MICROSCOPE) * np.float32(1e4)
    answer = ExitWaveRestorer().recover(clean, MICROSCOPE, NoiseModel(1e-3, 0.0, 0.0))
    other = Focus(-0.007)
    wanted = intensity(wave, dataclasses.replace(MICROSCOPE, focus=other)) * 1e4
    inner = slice(24, -24)
    got = answer.refocused(other)[inner, inner]
    assert np.corrcoef(got.ravel(), wanted[inner, inner].ravel())[0, 1] > 0.8
    same = answer.refocused(MICROSCOPE.focus)[inner, inner]
    assert np.corrcoef(same.ravel(), answer.image[inner, inner].ravel())[0, 1] > 0.99


def test_planes_turn_a_weak_phase_the_right_way():
    kx, ky = frequencies_per_nm((64, 64), 0.0154)
    phase = 1e-3 * np.random.default_rng(0).standard_normal((64, 64))
    seen = phase_contrast(MICROSCOPE.lens, MICROSCOPE.focus, kx, ky)
    contrast = np.fft.ifft2(np.fft.fft2(phase) * seen).real.astype(np.float32)
    given = planes(contrast, 1e-6, MICROSCOPE) * SCALE
    back = np.fft.fft2(given[2])
    strong = np.abs(seen) > 1.0
    assert np.allclose(back[strong], np.fft.fft2(phase)[strong], rtol=0.05, atol=1e-4)


def test_noise_alone_is_filtered_away_and_a_spot_is_kept():
    noise = np.random.default_rng(3).standard_normal((128, 128)).astype(np.float32)
    x = np.arange(128)
    wave = 0.5 * np.cos(2 * np.pi * 20 * x / 128)[None, :] * np.ones((128, 1))
    spectrum = np.fft.rfft2(noise + wave)
    gain = wiener_gain(spectrum, (128, 128), 1.0)
    assert gain.mean() < 0.05
    assert gain[0, 20] > 0.9


def test_padding_mirrors_and_tells_where_the_frame_lies():
    contrast = np.random.default_rng(1).standard_normal((70, 90)).astype(np.float32)
    wide, inner = padded(contrast)
    assert np.array_equal(wide[inner], contrast)
    assert wide.shape == (128, 144)
    assert inner[0].start == MARGIN_PX
    assert np.abs(wide[0]).max() < 0.05


def test_what_was_not_learnt_is_flagged():
    noisy, _, _ = frame()
    coarse = dataclasses.replace(MICROSCOPE, pixel_size_nm=0.05)
    answer = ExitWaveRestorer().recover(noisy, coarse, COUNTS)
    assert not answer.in_distribution
    assert "0.05 nm" in answer.reason
    other = dataclasses.replace(MICROSCOPE, lens=Lens(20.0))
    assert "20 kV" in ExitWaveRestorer().recover(noisy, other, COUNTS).reason


def test_refusals():
    with pytest.raises(BadImage, match="above the offset"):
        ExitWaveRestorer().recover(np.zeros((64, 64), np.float32), MICROSCOPE, COUNTS)
    engine = Engine(lambda array: np.zeros((1, 2, 8, 8), np.float32))
    with pytest.raises(BadModel, match="answer of"):
        ExitWaveRestorer(engine).recover(frame()[0], MICROSCOPE, COUNTS)
