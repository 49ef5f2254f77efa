"""The headless transmission microscope: its lens against theory, its camera against counting."""

import numpy as np
import pytest

from simulator.atoms import Atoms
from simulator.potential import exit_wave, frequencies_per_nm, wavelength_nm
from simulator.tem import LensSettings, Tem, TemSettings, annular_share_nm2, transfer

PERFECT = {"mtf_ratio": 1.0, "ntf_ratio": 1.0, "dqe_ratio": 1.0, "read_noise_e": 0.0}
COHERENT = {"focal_spread_um": 0.0, "direction_mrad": 0.0, "aperture_mrad": 300.0}


def tem(kind="graphene", sample=None, **more):
    shape = {"height_px": 96, "width_px": 128, "pixel_size_nm": 0.02, **more}
    inside = {"kind": kind, "seed": 3, "width_nm": 6.0, "height_nm": 6.0, **(sample or {})}
    return Tem(TemSettings(sample=inside, **shape))


def pixel_of(shot, x_nm, y_nm):
    height, width = shot.clean_e.shape
    return (height - 1) / 2 - y_nm / 0.02, (width - 1) / 2 + x_nm / 0.02


@pytest.mark.parametrize("stig_um", [(0.0, 0.0), (0.004, -0.003)])
@pytest.mark.parametrize("defocus_um", [-0.06, 0.02])
def test_a_weak_phase_is_seen_through_the_sine_of_chi(defocus_um, stig_um):
    shape_px, pixel_nm = (128, 160), 0.02
    lens = LensSettings(spherical_mm=1.2, **COHERENT)
    kx, ky = frequencies_per_nm(shape_px, pixel_nm)
    phase = 1e-4 * np.angle(exit_wave(Atoms.at([[0.1, -0.2, 0.0]], 6), shape_px, pixel_nm, 80.0))
    phase -= phase.mean()
    wave = np.exp(1j * phase)
    passed = transfer(lens, defocus_um, stig_um, kx, ky).astype(complex)
    image = np.abs(np.fft.ifft2(np.fft.fft2(wave) * passed)) ** 2 - 1.0
    length, square = wavelength_nm(80.0), kx**2 + ky**2
    focus_nm = 1e3 * (
        defocus_um * square + stig_um[0] * (kx**2 - ky**2) + 2.0 * stig_um[1] * kx * ky
    )
    chi = np.pi * length * focus_nm + 0.5 * np.pi * 1.2e6 * length**3 * square**2
    expected = np.fft.ifft2(np.fft.fft2(phase) * 2.0 * np.sin(chi)).real
    assert np.abs(image - expected).max() < 1e-3 * np.abs(expected).max()


def test_zeros_lie_where_the_analytic_transfer_has_them():
    lens = LensSettings(spherical_mm=0.0, **COHERENT)
    k = np.sqrt(np.arange(1, 6) / (wavelength_nm(80.0) * 50.0))  # at 50 nm: pi lambda D k^2 = n pi
    found = transfer(lens, -0.05, (0.0, 0.0), k[None, :], np.zeros((1, 1)))
    assert np.abs(found.imag).max() < 1e-5
    between = transfer(lens, -0.05, (0.0, 0.0), k[None, :] / np.sqrt(2.0), np.zeros((1, 1)))
    assert between[0, 0].imag == pytest.approx(1.0, abs=1e-5)  # exp(-i chi), chi = - pi / 2


def test_under_and_overfocus_are_each_others_negative_without_spherical_aberration():
    lens = {"spherical_mm": 0.0}
    shots = [tem(lens=lens, camera=PERFECT).expose(sign * 0.008) for sign in (1, -1)]
    over, under = (shot.clean_e / shot.electrons_per_px - 1.0 for shot in shots)
    assert np.corrcoef(over.ravel(), under.ravel())[0, 1] < -0.9
    # Underfocus: phases are negative contrast without Cs, so atoms are dark; over: bright.
    atom = min(shots[0].atoms.places_nm.tolist(), key=lambda place: np.hypot(place[0], place[1]))
    row, column = (round(at) for at in pixel_of(shots[0], atom[0], atom[1]))
    assert over[row, column] > 0.02
    assert under[row, column] < -0.02


def test_envelopes_damp_as_the_formulas_say():
    k = np.linspace(0.0, 10.0, 21)[None, :]
    none = np.zeros((1, 1))
    spread = LensSettings(spherical_mm=0.0, focal_spread_um=0.004, direction_mrad=0.0)
    found = np.abs(transfer(spread, 0.0, (0.0, 0.0), k, none))
    expected = np.exp(-0.5 * (np.pi * wavelength_nm(80.0) * 4.0 * k**2) ** 2)
    assert np.allclose(found, expected, atol=1e-6)
    # A plane wave tilted by t moves the image by t D: the mean over t is a Gaussian blur.
    tilted = LensSettings(spherical_mm=0.0, focal_spread_um=0.0, direction_mrad=0.5)
    found = np.abs(transfer(tilted, 0.1, (0.0, 0.0), k, none))
    assert np.allclose(found, np.exp(-2.0 * (np.pi * 0.5e-3 * 100.0 * k) ** 2), atol=1e-6)
    assert np.abs(transfer(tilted, 0.0, (0.0, 0.0), none, k.T + 10.0))[-1, 0] == 0.0  # 60 mrad


def test_scherzer_is_underfocus_for_a_positive_lens():
    assert LensSettings(voltage_kv=300.0, spherical_mm=1.2).scherzer_um == pytest.approx(
        -0.0583, abs=1e-4
    )
    assert LensSettings(spherical_mm=-0.01).scherzer_um > 0.0


def test_a_vacuum_counts_like_poisson():
    shot = tem("vacuum", dose_e_per_a2=1e3, camera=PERFECT).expose(0.01)
    assert shot.electrons_per_px == pytest.approx(1e3 * 0.2**2)
    assert np.allclose(shot.clean_e, 40.0, rtol=1e-5)
    pixels = shot.noisy_e.size
    assert shot.noisy_e.mean() == pytest.approx(40.0, abs=5 * np.sqrt(40.0 / pixels))
    assert shot.noisy_e.var() == pytest.approx(40.0, rel=5 * np.sqrt(2.0 / pixels))


@pytest.mark.parametrize("mode", ["hrtem", "haadf"])
def test_the_signal_grows_with_the_dose_and_the_noise_with_its_root(mode):
    microscope = tem("mos2", camera=PERFECT)
    low, high = (microscope.expose(0.005, mode=mode, dose_e_per_a2=dose) for dose in (1e6, 1.6e7))
    assert np.allclose(high.clean_e, 16.0 * low.clean_e, rtol=1e-3)
    for shot in (low, high):
        away = (shot.noisy_e - shot.clean_e) / np.sqrt(shot.clean_e)
        assert away.mean() == pytest.approx(0.0, abs=0.05)
        assert away.std() == pytest.approx(1.0, abs=0.03)


def test_the_camera_has_the_dqe_that_it_says():
    camera = {"mtf_ratio": 0.4, "ntf_ratio": 0.7, "dqe_ratio": 0.5, "read_noise_e": 0.0}
    shot = tem("vacuum", height_px=256, width_px=256, dose_e_per_a2=1e4, camera=camera).expose(0.0)
    power = np.abs(np.fft.fft2(shot.noisy_e - 400.0)) ** 2 / shot.noisy_e.size / 400.0
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256))) * 2.0
    low, nyquist = (radius > 0.02) & (radius < 0.12), np.abs(radius - 1.0) < 0.03
    assert power[low].mean() == pytest.approx(2.0, rel=0.1)  # 1 / DQE
    assert power[nyquist].mean() == pytest.approx(2.0 * 0.7**2, rel=0.1)
    # The image's own contrast, by the same lattice without and with the camera.
    cameras = {**PERFECT}, {**PERFECT, "mtf_ratio": 0.4, "ntf_ratio": 0.7}
    sharp, seen = (tem(camera=each).expose(0.0077).clean_e for each in cameras)
    bare = np.abs(np.fft.rfft2(sharp - sharp.mean()))
    at = np.unravel_index(bare.argmax(), bare.shape)
    frequency = np.hypot(2.0 * np.fft.fftfreq(96)[at[0]], 2.0 * np.fft.rfftfreq(128)[at[1]])
    left = np.abs(np.fft.rfft2(seen - seen.mean()))[at] / bare[at]
    assert left == pytest.approx(1.0 / (1.0 + 1.5 * frequency**2), rel=1e-3)


class Few:
    """A sample of a few atoms, in the place of a seeded one."""

    def __init__(self, places_nm, numbers):
        self.still = Atoms.at(places_nm, numbers)

    def moving(self, frame):
        return Atoms.at([], [])

    def defects_in(self, frame):
        return ()


def test_an_atom_shines_like_z_to_the_1_7():
    settings = TemSettings(height_px=128, width_px=128, row_jitter_px=0.0)
    atoms = Few([[-0.6, 0.0, 0.0], [0.6, 0.0, 0.0]], [14, 42])
    microscope = Tem(settings, atoms)
    shot = microscope.expose(0.0, mode="haadf", dose_e_per_a2=1e8)
    left, right = shot.clean_e[:, :64].sum(), shot.clean_e[:, 64:].sum()
    assert right / left == pytest.approx(3.0**1.7, rel=0.02)
    # All that an atom scatters is its cross-section times the dose.
    expected = annular_share_nm2(settings.lens) * (14**1.7 + 42**1.7) * 1e10
    assert left + right == pytest.approx(expected, rel=0.02)
    # Out of focus the same electrons are spread further.
    blurred = microscope.expose(0.01, mode="haadf", dose_e_per_a2=1e8)
    assert blurred.clean_e.max() < 0.6 * shot.clean_e.max()
    assert blurred.clean_e.sum() == pytest.approx(shot.clean_e.sum(), rel=0.05)


def test_coarse_pixels_see_the_same_probe():
    atoms = Few([[-0.3, 0.1, 0.0], [0.5, -0.2, 0.0]], [14, 42])
    fine, coarse = (
        Tem(
            TemSettings(
                height_px=side, width_px=side, pixel_size_nm=2.56 / side, row_jitter_px=0.0
            ),
            atoms,
        )
        for side in (128, 64)
    )
    # Half a fine pixel aside, every other fine pixel is where a coarse one is.
    shot = fine.expose(0.004, x_nm=0.01, y_nm=-0.01, mode="haadf")
    other = coarse.expose(0.004, mode="haadf")
    away = 4.0 * shot.clean_e[::2, ::2] - other.clean_e
    assert np.abs(away).max() < 0.01 * other.clean_e.max()


def test_sulphur_pairs_are_fainter_than_molybdenum():
    shot = tem("mos2", {"turn_deg": 0.0}, row_jitter_px=0.0).expose(0.0, mode="haadf")
    peaks = {}
    for number in (16, 42):
        here = shot.atoms.chosen(shot.atoms.number == number)
        at = [pixel_of(shot, x, y) for x, y in zip(here.x_nm, here.y_nm, strict=True)]
        inside = [(r, c) for r, c in at if 8 < r < 87 and 8 < c < 119]
        peaks[number] = np.mean([shot.clean_e[round(r), round(c)] for r, c in inside])
    # 2 x 16^1.7 / 42^1.7 = 0.388, and a little of three neighbours' tails.
    assert 0.38 < peaks[16] / peaks[42] < 0.55


def test_the_truth_lies_where_the_picture_has_it():
    microscope = tem("graphene", {"adatoms": 12}, row_jitter_px=0.0)
    shot = microscope.expose(0.0, x_nm=0.3, y_nm=-0.5, mode="haadf")
    gold = [each for each in shot.defects if each.kind == "adatom"]
    rows, columns = np.mgrid[:96, :128]
    seen = 0
    for each in gold:
        row, column = pixel_of(shot, each.x_nm, each.y_nm)
        if 6 < row < 89 and 6 < column < 121:
            near = np.hypot(rows - row, columns - column) < 5.0
            weight = np.where(near, shot.clean_e, 0.0)
            assert (weight * rows).sum() / weight.sum() == pytest.approx(row, abs=0.3)
            assert (weight * columns).sum() / weight.sum() == pytest.approx(column, abs=0.3)
            assert weight.max() > 20.0 * np.median(shot.clean_e)
            seen += 1
    assert seen >= 1


def test_molybdenum_sulphide_has_several_times_the_contrast_of_graphene():
    graphene, sulphide = (
        tem(kind, camera=PERFECT).expose(LensSettings().scherzer_um)
        for kind in ("graphene", "mos2")
    )
    ratios = [float(shot.clean_e.std() / shot.clean_e.mean()) for shot in (graphene, sulphide)]
    assert 0.02 < ratios[0] < 0.08
    assert 2.0 < ratios[1] / ratios[0] < 6.0
    assert graphene.clean_e.mean() / graphene.electrons_per_px == pytest.approx(1.0, abs=0.01)


def test_a_video_drifts_and_hops_and_can_be_had_again():
    settings = {"drift_nm_per_frame": (0.04, -0.02), "row_jitter_px": 0.0}
    one, two = (tem("mos2", {"turn_deg": 10.0}, **settings) for _ in range(2))
    shots = list(one.video(6, 0.005))
    assert np.array_equal(shots[4].noisy_e, two.expose(0.005, number=4).noisy_e)
    assert not np.array_equal(shots[4].noisy_e, shots[3].noisy_e)
    # 0.04 nm right is 2 pixels right, 0.02 nm down is 1 pixel down, each frame.
    first, later = shots[0].clean_e, shots[5].clean_e
    inner = first[20:-20, 20:-20]
    shifted = later[20 + 5 : -20 + 5, 20 + 10 : -20 + 10]
    assert np.corrcoef(inner.ravel(), shifted.ravel())[0, 1] > 0.995
    assert not shots[0].noisy_e.flags.writeable
    hopping = tem("graphene", {"adatoms": 5, "hop_ratio": 1.0})
    places = [[(d.x_nm, d.y_nm) for d in shot.defects] for shot in hopping.video(3, 0.005)]
    assert places[0] != places[1] != places[2]


def test_drift_within_a_scan_shears_it():
    still = {"row_jitter_px": 0.0, "pixel_size_nm": 0.02}
    calm = tem("mos2", {"turn_deg": 0.0}, **still)
    moving = tem("mos2", {"turn_deg": 0.0}, drift_nm_per_frame=(0.2, 0.0), **still)
    straight, sheared = (each.expose(0.0, mode="haadf").clean_e for each in (calm, moving))
    assert np.abs(straight[0] - sheared[0]).max() < 1e-3 * straight.max()
    # Upwards, rows come to meet what they scan: the same rows of the sample pass sooner.
    rising = tem("mos2", {"turn_deg": 0.0}, drift_nm_per_frame=(0.0, 0.2), **still)
    found = rising.expose(0.0, mode="haadf").clean_e
    worst = [float(np.abs(straight[row] - found[48]).max() / straight.max()) for row in (53, 43)]
    assert worst[0] < 0.01
    assert worst[1] > 0.05
    # By the middle row the sample has gone 0.1 nm, 5 pixels, to the right.
    moved = np.roll(straight[48], 5)
    assert np.corrcoef(moved[10:-10], sheared[48][10:-10])[0, 1] > 0.999


def test_numbers_are_clipped_at_sixteen_bits():
    camera = TemSettings().camera
    found = camera.digital(np.array([[-100.0, 0.0, 1.0, 1e9]], np.float32))
    assert found.dtype == np.uint16
    assert found.tolist() == [[0, 200, 216, 65_535]]


def test_any_place_of_a_large_sample_can_be_looked_at():
    microscope = tem("graphene", {"vacancy_ratio": 0.02}, camera=PERFECT)
    here, there = microscope.expose(0.006), microscope.expose(0.006, x_nm=0.4, y_nm=0.2)
    inner = here.clean_e[15:-15, 25:-25]
    same = there.clean_e[15 + 10 : -15 + 10, 25 - 20 : -25 - 20]
    assert np.corrcoef(inner.ravel(), same.ravel())[0, 1] > 0.999


def test_it_is_looked_into_as_the_scanning_microscope_is():
    microscope = tem("mos2")
    pixels = microscope.observe(0.004, (0.001, 0.0), number=2)
    shot = microscope.expose(0.004, (0.001, 0.0), number=2)
    assert pixels.dtype == np.uint16
    assert pixels.shape == (96, 128)
    assert not pixels.flags.writeable
    assert np.array_equal(pixels, microscope.settings.camera.digital(shot.noisy_e))
    scanned = microscope.observe(0.004, number=2, mode="haadf")
    assert not np.array_equal(scanned, pixels)


def test_a_coarse_pixel_holds_the_electrons_of_its_fine_ones():
    fine, coarse = (
        tem("mos2", height_px=side, width_px=side, pixel_size_nm=2.56 / side, camera=PERFECT)
        for side in (128, 64)
    )
    binned = fine.expose(0.005).clean_e.reshape(64, 2, 64, 2).sum(axis=(1, 3))
    inner = np.s_[8:-8, 8:-8]  # atoms cut off further out are seen at the rim
    away = (coarse.expose(0.005).clean_e - binned)[inner]
    assert np.abs(away).max() < 0.02 * binned.std()


def test_what_lies_beyond_one_edge_is_not_seen_at_the_other():
    settings = TemSettings(height_px=96, width_px=96, camera=PERFECT)
    beyond = Few([[0.96 + 0.1, 0.0, 0.0]], [79])
    for mode in ("hrtem", "haadf"):
        clean = Tem(settings, beyond).expose(0.008, mode=mode, dose_e_per_a2=1e8).clean_e
        change = np.abs(clean - np.median(clean))
        assert change[:, :24].max() < 0.05 * change[:, -24:].max()
