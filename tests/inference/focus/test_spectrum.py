import numpy as np
import pytest

from inference.api import BadImage
from inference.focus.spectrum import BANDS, SECTORS, band_edges_cyc_px, band_powers


def _noise(seed: int, dose: float = 200.0, side: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).poisson(dose, (side, side)).astype(np.uint16)


def test_white_noise_is_at_its_floor_in_every_band():
    powers = np.mean([band_powers(_noise(s))[0].isotropic[0] for s in range(12)], axis=0)
    assert powers[5:] == pytest.approx(1 / 200, rel=0.06)  # Poisson: variance 1 / dose
    assert band_powers(_noise(1))[0].floor == pytest.approx(1 / 200, rel=0.15)


def test_a_wave_lands_in_its_band_and_sector():
    y, x = np.mgrid[:256, :256]
    wave = 100 * (1 + 0.3 * np.cos(2 * np.pi * 0.1 * (x + y) / np.sqrt(2)))  # y down
    power = band_powers(wave.astype(np.float32))[0].power
    band, sector = np.unravel_index(int(power.argmax()), power.shape)
    edges = band_edges_cyc_px()
    assert edges[band] <= 0.1 < edges[band + 1]
    assert sector == SECTORS // 4  # 45 degrees from x towards y
    mirrored = band_powers(np.ascontiguousarray(wave[::-1]).astype(np.float32))[0].power
    assert np.unravel_index(int(mirrored.argmax()), power.shape)[1] == 3 * SECTORS // 4


def test_gain_drops_out_and_row_noise_stays_out():
    frame = _noise(3).astype(np.float32)
    power = band_powers(frame)[0].power
    assert band_powers(2.5 * frame)[0].power == pytest.approx(power, rel=1e-3)
    rows = 1 + 0.1 * np.random.default_rng(4).normal(size=(256, 1)).astype(np.float32)
    assert band_powers(frame * rows)[0].power[6:] == pytest.approx(power[6:], rel=0.6)


@pytest.mark.parametrize(("side", "levels"), [(256, 1), (511, 1), (512, 2), (1_024, 3)])
def test_larger_frames_have_wider_levels(side, levels):
    found = band_powers(_noise(5, side=side))
    assert [level.binning for level in found] == [1, 2, 4][:levels]
    # Binning by n averages n^2 pixels' noise.
    for level in found:
        assert level.floor == pytest.approx(1 / 200 / level.binning**2, rel=0.2)


def test_colour_and_black():
    frame = _noise(6).astype(np.uint16)
    colour = np.repeat(frame[:, :, None], 3, axis=2)
    grey, coloured = band_powers(frame)[0], band_powers(colour)[0]
    assert coloured.power == pytest.approx(grey.power, rel=1e-3)
    black = band_powers(np.zeros((256, 256), np.uint8))[0]
    assert black.mean == 0 and black.power.shape == (BANDS, SECTORS)


@pytest.mark.parametrize("shape", [(255, 300), (256,), (256, 256, 4)])
def test_refuses_other_shapes(shape):
    with pytest.raises(BadImage):
        band_powers(np.ones(shape, np.uint8))
