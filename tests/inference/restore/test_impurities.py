"""Foreign atoms: found where they are, not where they are not, and told apart."""

import math

import numpy as np
import pytest

from inference.api import BadImage
from inference.restore.api import NoiseModel
from inference.restore.electrons import Focus, Lens
from inference.restore.exit_wave import ExitWaveRestorer, Microscope, intensity
from inference.restore.impurities import LEAST_LLR, find_impurities
from simulator.atoms import Atoms, Sample, SampleSettings
from simulator.potential import exit_wave

COUNTS = NoiseModel(1.0, 0.0, 0.0)
PIXEL_NM = 0.016
MICROSCOPE = Microscope(Lens(80.0, -0.01), Focus(0.009), PIXEL_NM)
SIDE_PX, MARGIN_PX = 160, 32


def frame(changes, dose=5e4, seed=0, offset=0.0):
    """Graphene with the atoms nearest to places in nm changed: (x, y, number), 0 takes it out."""
    full = SIDE_PX + 2 * MARGIN_PX
    settings = SampleSettings(seed=2, width_nm=full * PIXEL_NM, height_nm=full * PIXEL_NM)
    atoms = Sample(settings).still
    number = atoms.number.copy()
    truth = []
    for x, y, element in changes:
        at = int(np.hypot(atoms.x_nm - x, atoms.y_nm - y).argmin())
        number[at] = element
        truth.append((float(atoms.x_nm[at]), float(atoms.y_nm[at]), element))
    changed = Atoms.at(atoms.places_nm, number).chosen(number > 0)
    wave = exit_wave(changed, (full, full), PIXEL_NM, 80.0, thermal_nm=0.006)
    inner = slice(MARGIN_PX, -MARGIN_PX)
    clean = intensity(wave, MICROSCOPE)[inner, inner] * dose * (10 * PIXEL_NM) ** 2
    return np.random.default_rng(seed).poisson(clean).astype(np.float32) + np.float32(offset), truth


def place_nm(one):
    middle = (SIDE_PX - 1) / 2
    return (one.x_px - middle) * PIXEL_NM, (middle - one.y_px) * PIXEL_NM


def test_silicon_copper_and_an_empty_site_are_told_apart():
    noisy, truth = frame([(0.5, 0.4, 14), (-0.6, -0.5, 29), (-0.4, 0.7, 0)])
    found = find_impurities(noisy, MICROSCOPE, COUNTS)
    assert found.in_distribution
    assert sorted(one.number for one in found.found) == [14, 29]
    for one in found.found:
        x, y, _ = next(each for each in truth if each[2] == one.number)
        assert place_nm(one) == pytest.approx((x, y), abs=0.03)
        assert one.llr > LEAST_LLR
        assert one.probability > 0.9
        assert one.amount_ratio == pytest.approx(1.0, abs=4 * one.amount_sigma + 0.1)
    x, y, _ = truth[2]
    column, row = found.missing[0]
    middle = (SIDE_PX - 1) / 2
    assert len(found.missing) == 1
    assert math.hypot((column - middle) * PIXEL_NM - x, (middle - row) * PIXEL_NM - y) < 0.03


@pytest.mark.parametrize("seed", [1, 2])
def test_a_perfect_sheet_has_none(seed):
    noisy, _ = frame([], dose=1e4, seed=seed)
    found = find_impurities(noisy, MICROSCOPE, COUNTS)
    assert found.in_distribution
    assert found.found == ()
    assert found.sites > 100


def test_too_few_electrons_are_not_enough_and_it_says_how_many_nats_to_expect():
    noisy, _ = frame([(0.5, 0.4, 14)], dose=5e4)
    high = find_impurities(noisy, MICROSCOPE, COUNTS)
    low = find_impurities(frame([(0.5, 0.4, 14)], dose=1e4)[0], MICROSCOPE, COUNTS)
    assert high.expected_llr[14] / low.expected_llr[14] == pytest.approx(5.0, rel=0.1)
    assert high.found[0].llr == pytest.approx(
        high.expected_llr[14], abs=5 * math.sqrt(2 * high.expected_llr[14])
    )


def test_noise_without_a_sheet_is_out_of_distribution():
    noisy = np.random.default_rng(5).poisson(100.0, (128, 128)).astype(np.float32)
    found = find_impurities(noisy, MICROSCOPE, COUNTS)
    assert not found.in_distribution
    assert "no lattice" in found.reason
    assert found.found == ()


def test_the_cameras_offset_and_the_waves_phase():
    noisy, _ = frame([(0.5, 0.4, 29)], offset=300.0)
    noise = NoiseModel(1.0, 300.0, 0.0)
    wave = ExitWaveRestorer().recover(noisy, MICROSCOPE, noise)
    found = find_impurities(noisy, MICROSCOPE, noise, wave=wave)
    assert [one.number for one in found.found] == [29]
    assert found.found[0].phase_rad > 0.05
    with pytest.raises(BadImage, match="offset"):
        find_impurities(noisy, MICROSCOPE, NoiseModel(1.0, 1e4, 0.0))
