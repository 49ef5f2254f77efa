"""Focus from a series: synthetic phase objects of every kind, and what nothing can be said of.

The simulated microscope's own frames are asked in tests/controller/focusing/test_phase.py.
"""

import numpy as np
import pytest

from inference.focus.phase_series import PhaseModes, focus_of, highest_per_nm, scherzer_um
from inference.restore.electrons import Focus, Lens, frequencies_per_nm, phase_contrast

LENS = Lens(voltage_kv=80.0, spherical_mm=-0.01, focal_spread_um=0.003, direction_mrad=0.1)
SHAPE_PX, PIXEL_NM = (256, 256), 0.03
STEPS_UM = 0.0047 * np.array([0.0, 2.3, -2.3, 6.1, -6.1])


def speckle(rng):
    """A thin film: phases of all frequencies, fainter the higher."""
    kx, ky = frequencies_per_nm(SHAPE_PX, PIXEL_NM)
    white = np.fft.fft2(rng.standard_normal(SHAPE_PX))
    phase = np.fft.ifft2(white / (1.0 + (kx**2 + ky**2) / 4.0)).real
    return 0.05 * phase / phase.std()


def lattice(rng):
    x, y = np.meshgrid(np.arange(SHAPE_PX[1]), np.arange(SHAPE_PX[0]))
    waves = [np.cos(2 * np.pi * 4.69 * PIXEL_NM * (x * c + y * s)) for c, s in DIRECTIONS]
    return 0.05 * np.sum(waves, axis=0)


DIRECTIONS = [(np.cos(a), np.sin(a)) for a in np.radians([12.0, 72.0, 132.0])]


def frames(phase, rng, defocus_um, stig_um=(0.0, 0.0), counts=400.0, set_stigs_um=None):
    """(pixels, where it was set); the axis stands at 0 when the defocus is defocus_um."""
    kx, ky = frequencies_per_nm(SHAPE_PX, PIXEL_NM)
    spectrum = np.fft.fft2(phase)
    for i, step_um in enumerate(STEPS_UM):
        set_um = (0.0, 0.0) if set_stigs_um is None else set_stigs_um[i]
        total_um = stig_um[0] + set_um[0], stig_um[1] + set_um[1]
        passed = phase_contrast(LENS, Focus(defocus_um + step_um, total_um), kx, ky)
        shift = np.exp(2j * np.pi * i * (0.07 * kx - 0.03 * ky))  # it drifts between frames
        clean = 1.0 + np.fft.ifft2(spectrum * passed * shift).real
        pixels = np.clip(16.0 * rng.poisson(counts * clean) + 200.0, 0, 65_535)
        yield pixels.astype(np.uint16), Focus(float(step_um), set_um)


def found(phase, rng, defocus_um, search_um=(-0.12, 0.12), **more):
    modes = PhaseModes.of(LENS, SHAPE_PX, PIXEL_NM)
    looks = [modes.look(pixels, at) for pixels, at in frames(phase, rng, defocus_um, **more)]
    return focus_of(looks, modes, search_um)


@pytest.mark.parametrize("defocus_um", [0.0078, -0.04, 0.08])
def test_a_film_is_focused_and_its_astigmatism_found(defocus_um):
    rng = np.random.default_rng(3)
    seen = found(speckle(rng), rng, defocus_um, stig_um=(0.002, -0.001))
    assert seen.is_sure, seen.reason
    assert seen.gaussian_um == pytest.approx(-defocus_um, abs=0.0007)
    assert seen.stig_um == pytest.approx((0.002, -0.001), abs=0.0006)
    assert 0.0 < seen.sigma_um < 0.001
    assert seen.wanted_um(LENS) == pytest.approx(-defocus_um + 0.00775, abs=0.0008)


def test_what_the_coils_add_is_taken_off():
    rng = np.random.default_rng(4)
    coils = [(0.003, 0.0), (0.0, 0.002), (-0.002, 0.0), (0.0, 0.0), (0.001, -0.002)]
    seen = found(speckle(rng), rng, 0.01, stig_um=(-0.001, 0.002), set_stigs_um=coils)
    assert seen.is_sure, seen.reason
    assert seen.stig_um == pytest.approx((-0.001, 0.002), abs=0.0006)


def test_a_lattice_alone_repeats_itself_and_that_is_said():
    rng = np.random.default_rng(5)
    seen = found(lattice(rng), rng, 0.01)
    assert not seen.is_sure
    assert "a lattice alone" in seen.reason
    # Its images repeat every 1 / (lambda k^2) = 10.9 nm; within one period it is right.
    near = found(lattice(rng), np.random.default_rng(5), 0.01, search_um=(-0.014, -0.006))
    assert near.gaussian_um == pytest.approx(-0.01, abs=0.0015)


def test_an_empty_field_and_a_picture_that_never_changes_are_no_phases():
    rng = np.random.default_rng(6)
    empty = found(np.zeros(SHAPE_PX), rng, 0.0)
    assert not empty.is_sure
    assert "nothing" in empty.reason
    modes = PhaseModes.of(LENS, SHAPE_PX, PIXEL_NM)
    dirt = 1.0 + speckle(rng)
    still = [
        modes.look((16.0 * rng.poisson(400.0 * dirt)).astype(np.uint16), Focus(float(step)))
        for step in STEPS_UM
    ]
    seen = focus_of(still, modes, (-0.12, 0.12))
    assert not seen.is_sure


def test_a_focus_beyond_the_search_is_not_said_to_be_in_it():
    rng = np.random.default_rng(7)
    seen = found(speckle(rng), rng, 0.06, search_um=(-0.03, 0.03))
    assert not seen.is_sure or abs(seen.gaussian_um + 0.06) < 0.001


def test_too_little_to_go_by():
    assert PhaseModes.of(LENS, (32, 32), PIXEL_NM) is None
    assert PhaseModes.of(LENS, (256, 256), 1.0) is None
    modes = PhaseModes.of(LENS, SHAPE_PX, PIXEL_NM)
    rng = np.random.default_rng(8)
    looks = [modes.look(*each) for each in frames(speckle(rng), rng, 0.01)]
    few = focus_of(looks[:2], modes, (-0.1, 0.1))
    assert not few.is_sure
    assert "2 frames" in few.reason


def test_scherzer_and_the_highest_frequency():
    assert scherzer_um(Lens(300.0, 1.2)) == pytest.approx(-0.0583, abs=1e-4)
    assert scherzer_um(LENS) == pytest.approx(0.00775, abs=1e-5)
    assert 0.0 < abs(scherzer_um(Lens(80.0, 0.0))) < 0.005
    # exp(-(pi lambda s k^2)^2) = 0.01
    assert highest_per_nm(LENS) == pytest.approx(7.38, abs=0.05)
    assert highest_per_nm(Lens(80.0, 0.0, 0.0, 0.1, 20.0)) == pytest.approx(4.79, abs=0.01)
