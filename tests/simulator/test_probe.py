"""The probe against optics that is known exactly: numbers, limits, other ways of integration."""

import math
from itertools import pairwise

import numpy as np
import pytest

from simulator import probe as probes
from simulator.probe import BeamSettings, Probe, best_focus_um, unaberrated_transfer

CLEAN = BeamSettings(spherical_mm=0.0, source_nm=0.0)  # 5 kV, 6 mrad


def radial(side_px):
    """(h, w / 2 + 1): frequency in cycles per pixel of a square transform."""
    return np.hypot(np.fft.fftfreq(side_px)[:, None], np.fft.rfftfreq(side_px)[None, :])


def widths_px(spread):
    """Standard deviations to the right and down."""
    side = spread.shape[0]
    place = np.arange(side) - side // 2
    right = (spread.sum(axis=0) * place**2).sum()
    down = (spread.sum(axis=1) * place**2).sum()
    return math.sqrt(right), math.sqrt(down)


@pytest.mark.parametrize(("kv", "pm"), [(1.0, 38.764), (5.0, 17.302), (30.0, 6.979), (60.0, 4.866)])
def test_the_wavelength_is_that_of_the_tables(kv, pm):
    assert BeamSettings(voltage_kv=kv).wavelength_pm == pytest.approx(pm, rel=5e-4)


def test_in_focus_without_errors_it_is_limited_by_diffraction():
    pixel_nm, side = 0.4, 96
    cut_off = 2 * CLEAN.convergence_mrad * pixel_nm / CLEAN.wavelength_pm
    expected = unaberrated_transfer((radial(side) / cut_off).astype(np.float32))
    assert cut_off < 0.5  # so that all of it is seen
    found = Probe(CLEAN).transfer(pixel_nm, (side, side))
    assert np.abs(found - expected).max() < 0.02
    assert expected[0, 20] == pytest.approx(
        2 / np.pi * (np.arccos(s := 20 / 96 / cut_off) - s * np.sqrt(1 - s**2)), abs=1e-6
    )


@pytest.mark.parametrize("pixel_nm", [5.0, 40.0])
def test_far_from_focus_it_is_an_even_disc_of_radius_alpha_times_defocus(pixel_nm):
    defocus_um = 24 * pixel_nm / CLEAN.convergence_mrad  # 24 px
    spread = Probe(CLEAN, defocus_um).point_spread(pixel_nm, 128)
    place = np.arange(128) - 64
    radius = np.hypot(place[:, None], place[None, :])
    for r in (8, 12, 16, 20):
        assert spread[radius <= r].sum() == pytest.approx((r / 24) ** 2, abs=0.03)
    assert spread[radius > 26.5].sum() == pytest.approx(0.0, abs=0.015)
    assert widths_px(spread)[0] == pytest.approx(12.0, rel=0.03)  # a disc's sd is half its radius


def exact_transfer(beam, paraxial_um, x_um, y_um, fx_per_nm, fy_per_nm):
    """The definition, by brute force: the aperture against itself, shifted by lambda f."""
    alpha, wavelength_nm = beam.convergence_mrad * 1e-3, beam.wavelength_pm * 1e-3
    grid = (np.arange(-600, 600) + 0.5) * (alpha / 600 * 1.05)
    ax, ay = grid[None, :], grid[:, None]

    def wave(ax, ay):
        squared = ax**2 + ay**2
        error_nm = (
            500 * paraxial_um * squared
            + 500 * x_um * (ax**2 - ay**2)
            + 1000 * y_um * ax * ay
            + 0.25e6 * beam.spherical_mm * squared**2
        )
        return np.where(squared <= alpha**2, np.exp(2j * np.pi / wavelength_nm * error_nm), 0)

    dx, dy = wavelength_nm * fx_per_nm / 2, wavelength_nm * fy_per_nm / 2
    shared = (wave(ax + dx, ay + dy) * wave(ax - dx, ay - dy).conj()).sum()
    return shared.real / (np.abs(wave(ax, ay)) ** 2).sum()


@pytest.mark.parametrize(
    ("paraxial_dof", "x_dof", "y_dof", "pixel_nm", "tolerance"),
    [
        (0.0, 0.0, 0.0, 2.0, 0.015),
        (-1.0, 0.7, 0.4, 2.0, 0.015),
        (2.5, -1.0, 1.5, 2.0, 0.015),
        (6.0, 2.0, -3.0, 5.0, 0.01),
        (9.0, 0.0, 2.0, 5.0, 0.012),  # half-way from the wave to the rays
        (-14.0, 3.0, 1.0, 5.0, 0.012),  # rays alone
        (5.0, 1.0, 2.0, 50.0, 0.005),
    ],
)
def test_it_is_the_aperture_correlated_with_itself(paraxial_dof, x_dof, y_dof, pixel_nm, tolerance):
    beam = BeamSettings(spherical_mm=20.0, source_nm=0.0)
    dof_um = beam.depth_of_field_um(pixel_nm)
    side = 64
    lens_um = (paraxial_dof * dof_um, x_dof * dof_um, y_dof * dof_um)
    found = probes._transfer(beam, *lens_um, pixel_nm, (side, side))
    for row, column in ((0, 3), (3, 0), (2, 2), (-2, 2), (5, 1), (-9, 4), (0, 14), (12, 12)):
        fx, fy = column / side / pixel_nm, -row / side / pixel_nm  # rows go down, y goes up
        expected = exact_transfer(beam, *lens_um, fx, fy)
        assert found[row, column] == pytest.approx(expected, abs=tolerance), (row, column)


@pytest.mark.parametrize("astigmatism", ["x > 0", "x < 0", "y > 0", "y < 0"])
def test_line_foci_lie_at_plus_and_minus_a_along_the_right_axes(astigmatism):
    pixel_nm, a_um = 20.0, 30.0  # 9 px
    axis, sign = astigmatism[0], 1 if astigmatism.endswith("> 0") else -1
    stig = {"x": (sign * a_um, 0.0), "y": (0.0, sign * a_um)}[axis]
    for defocus_um in (a_um, -a_um):
        spread = Probe(CLEAN, defocus_um, *stig).point_spread(pixel_nm, 96)
        place = np.arange(96) - 48
        right, up = place[None, :], -place[:, None]
        # Along phi the defocus is D + A; phi is 0 for x and 45 degrees for y, where A > 0.
        phi = {"x": 0.0, "y": math.pi / 4}[axis]
        along = right * math.cos(phi) + up * math.sin(phi)
        across = up * math.cos(phi) - right * math.sin(phi)
        sd_along = math.sqrt(abs((spread * along**2).sum()))
        sd_across = math.sqrt(abs((spread * across**2).sum()))
        full = abs(defocus_um + sign * a_um) * CLEAN.convergence_mrad / pixel_nm / 2
        assert sd_along == pytest.approx(full, abs=1.0)
        assert sd_across == pytest.approx(9.0 - full, abs=1.0)
        assert max(sd_along, sd_across) > 8.0  # a line of 18 px, not a blob


def test_the_rows_of_a_wave_near_focus_agree_with_the_axes_too():
    # As above where the wave is used: a probe that is long to the upper right for y > 0, D > 0.
    beam = BeamSettings(spherical_mm=0.0, source_nm=0.0)
    spread = Probe(beam, 1.5, 0.0, 1.5).point_spread(1.0, 64)
    place = np.arange(64) - 32
    product = (spread * place[None, :] * -place[:, None]).sum()
    assert product > 5.0


def test_depth_of_field_goes_as_one_over_alpha():
    for pixel_nm in (10.0, 100.0):
        wide, narrow = (BeamSettings(convergence_mrad=a) for a in (8.0, 4.0))
        assert max(wide.diameter_nm, narrow.diameter_nm) < pixel_nm
        ratio = narrow.depth_of_field_um(pixel_nm) / wide.depth_of_field_um(pixel_nm)
        assert ratio == pytest.approx(2.0)
        # And it is what it says: one more of them, one more pixel of radius.
        for beam in (wide, narrow):
            dof_um = beam.depth_of_field_um(pixel_nm)
            sds = [
                widths_px(Probe(beam, n * dof_um).point_spread(pixel_nm, 96))[0] for n in (10, 20)
            ]
            assert sds[1] - sds[0] == pytest.approx(5.0, rel=0.05)


def test_depth_of_field_of_a_blunt_probe_is_that_of_the_probe():
    beam = BeamSettings(source_nm=30.0)
    assert beam.depth_of_field_um(1.0) == beam.diameter_nm / beam.convergence_mrad
    assert beam.depth_of_field_um(100.0) == pytest.approx(100.0 / beam.convergence_mrad)


@pytest.mark.parametrize(
    ("spherical_mm", "alpha_mrad", "source_nm"),
    [(0.0, 6.0, 0.0), (0.0, 6.0, 3.0), (30.0, 6.0, 0.0), (60.0, 12.0, 2.0), (5.0, 6.0, 2.0)],
)
def test_half_the_current_lies_within_the_diameter_in_best_focus(
    spherical_mm, alpha_mrad, source_nm
):
    beam = BeamSettings(spherical_mm=spherical_mm, convergence_mrad=alpha_mrad, source_nm=source_nm)
    pixel_nm = beam.diameter_nm / 16
    # Best for half the current, as the formula is meant, not for edges.
    found = []
    for shift in np.linspace(-0.6, 0.3, 13):
        defocus_um = shift * beam.spherical_mm * 1e-3 * beam.convergence_mrad**2
        spread = Probe(beam, defocus_um).point_spread(pixel_nm, 320)
        place = np.arange(320) - 160
        radius = np.hypot(place[:, None], place[None, :]).ravel()
        order = np.argsort(radius)
        current = np.cumsum(spread.ravel()[order])
        found.append(2 * pixel_nm * radius[order][np.searchsorted(current, 0.5)])
    assert min(found) == pytest.approx(beam.diameter_nm, rel=0.2)


def sharpness(beam, defocus_um, pixel_nm):
    transfer = Probe(beam, defocus_um).transfer(pixel_nm, (128, 128))
    return float((transfer[:, 1:] ** 2).mean())


@pytest.mark.parametrize("spherical_mm", [0.0, 5.0, 60.0])
@pytest.mark.parametrize("pixel_nm", [1.0, 5.0, 40.0])
def test_best_focus_is_where_edges_are_sharpest(spherical_mm, pixel_nm):
    beam = BeamSettings(spherical_mm=spherical_mm)
    spherical_um = spherical_mm * 1e-3 * beam.convergence_mrad**2
    assert -1.05 * spherical_um - 1e-9 <= best_focus_um(beam, pixel_nm) <= 1e-9
    dof_um = beam.depth_of_field_um(pixel_nm)
    middle = sharpness(beam, 0.0, pixel_nm)
    assert middle >= sharpness(beam, 0.1 * dof_um, pixel_nm)
    assert middle >= sharpness(beam, -0.1 * dof_um, pixel_nm)
    assert middle > 1.05 * sharpness(beam, dof_um, pixel_nm)
    assert middle > 1.05 * sharpness(beam, -dof_um, pixel_nm)


def test_over_and_under_focus_differ_by_spherical_aberration_only():
    pixel_nm = 2.0
    for spherical_mm, differ in ((0.0, False), (40.0, True)):
        beam = BeamSettings(spherical_mm=spherical_mm, source_nm=1.0)
        defocus_um = 4 * beam.depth_of_field_um(pixel_nm)
        over = Probe(beam, defocus_um).transfer(pixel_nm, (64, 64))
        under = Probe(beam, -defocus_um).transfer(pixel_nm, (64, 64))
        assert (np.abs(over - under).max() > 0.1) == differ
    # Over-focus the outer rays go further still: they make a bright core within a wide halo, while
    # under focus they come back and pile up at the rim.
    defocus_um = 6 * beam.depth_of_field_um(pixel_nm)
    core = [
        Probe(beam, d).point_spread(pixel_nm, 96)[46:51, 46:51].sum()
        for d in (defocus_um, -defocus_um)
    ]
    assert core[0] > 1.2 * core[1]


@pytest.mark.parametrize("dof", [0.0, 3.0, 8.0, -30.0, 100.0])
@pytest.mark.parametrize("shape_px", [(96, 128), (97, 90)])
def test_every_transfer_function_is_one(dof, shape_px):
    beam = BeamSettings()
    probe = Probe(beam, dof * beam.depth_of_field_um(5.0), 1.0, -0.5)
    found = probe.transfer(5.0, shape_px)
    assert found.shape == (shape_px[0], shape_px[1] // 2 + 1)
    assert found.dtype == np.float32
    assert not found.flags.writeable
    assert found[0, 0] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(found).max() <= 1.0 + 1e-4
    # Even about the origin: the negative frequencies down, in the column of none to the right.
    assert found[1:, 0] == pytest.approx(found[:0:-1, 0], abs=2e-4)


def test_blur_changes_smoothly_with_defocus_from_the_wave_to_the_rays():
    beam = BeamSettings()
    dof_um = beam.depth_of_field_um(5.0)
    steps = np.arange(7.0, 16.0, 0.25)  # the wave's grid ends at 12
    found = [Probe(beam, dof * dof_um).transfer(5.0, (96, 96)) for dof in steps]
    changes = [np.abs(b - a).max() for a, b in pairwise(found)]
    assert max(changes) < 1.6 * np.median(changes)


def test_the_source_is_a_gaussian_of_its_own():
    beam, sharp = BeamSettings(source_nm=8.0, spherical_mm=0.0), CLEAN
    side, pixel_nm = 64, 2.0
    ratio = Probe(beam).transfer(pixel_nm, (side, side)) / Probe(sharp).transfer(
        pixel_nm, (side, side)
    )
    sigma_px = 8.0 / 2.3548 / pixel_nm
    assert ratio[0, 10] == pytest.approx(
        math.exp(-2 * (math.pi * sigma_px * 10 / side) ** 2), rel=1e-3
    )


def test_the_reach_holds_the_current():
    beam = BeamSettings(spherical_mm=30.0)
    for dof in (0.0, 5.0, 30.0):
        probe = Probe(beam, dof * beam.depth_of_field_um(4.0), 2.0, 1.0)
        reach = probe.reach_px(4.0)
        spread = probe.point_spread(4.0, 256)
        inside = spread[128 - reach : 129 + reach, 128 - reach : 129 + reach].sum()
        assert inside == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("beam", "defocus_um", "pixel_nm"),
    [
        (BeamSettings(), 1e6, 5.0),
        (BeamSettings(convergence_mrad=60.0, spherical_mm=1_000.0), 100.0, 1.0),
        (BeamSettings(voltage_kv=0.1, convergence_mrad=0.05), 10.0, 1.0),
        (BeamSettings(), 0.0, 1e6),
    ],
)
def test_absurd_beams_are_no_error(beam, defocus_um, pixel_nm):
    found = Probe(beam, defocus_um, 5.0, 5.0).transfer(pixel_nm, (48, 48))
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1.001
