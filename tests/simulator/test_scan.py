"""One scan: where rows lie, what electrons cost, what charge leaves behind."""

import numpy as np
import pytest

from simulator.probe import BeamSettings, Probe
from simulator.scan import (
    ELECTRON_PA_NS,
    DetectorSettings,
    Scan,
    ScanSettings,
    dose_e_per_px,
    frame_of,
)
from simulator.specimen import Specimen, SpecimenField, SpecimenSettings

STILL = ScanSettings(jitter_px=0.0, mains_px=0.0, row_flicker_ratio=0.0, charging_ratio=0.0)
QUIET = DetectorSettings(is_noisy=False, bit_depth=16, gain_ratio=0.5, offset_ratio=0.0)
PROBE = Probe(BeamSettings())
DWELL_NS = 640.0


def even(value=0.5, shape=(128, 160), margin=16):
    plane = np.full((shape[0] + 2 * margin, shape[1] + 2 * margin), value, np.float32)
    return SpecimenField(plane, None, 5.0, shape, margin, 0.0, 0.0)


def islands(shape=(128, 160), margin=40, x_um=0.0, y_um=0.0, **more):
    settings = SpecimenSettings(kind="gold_on_carbon", seed=2, **more)
    return Specimen(settings).field(x_um, y_um, 5.0, shape, margin)


def shown(field, probe=PROBE, scan=STILL, detector=QUIET, seed=1, **more):
    taken = Scan(scan, detector, DWELL_NS, **more)
    return frame_of(field, probe, taken, np.random.default_rng(seed))


def test_an_electron_has_its_charge():
    assert pytest.approx(160.2177, rel=1e-5) == ELECTRON_PA_NS
    assert dose_e_per_px(50.0, 640.9) == pytest.approx(200.0, rel=1e-3)  # 50 pA: 312 a us


@pytest.mark.parametrize("dose_e", [2.0, 20.0, 200.0])
def test_counts_are_poisson(dose_e):
    beam = BeamSettings(current_pa=dose_e * ELECTRON_PA_NS / DWELL_NS)
    detector = DetectorSettings(bit_depth=16, gain_ratio=0.1, offset_ratio=0.0, read_noise_e=0.0)
    pixels = shown(even(0.5, (300, 300)), Probe(beam), detector=detector)
    counts = pixels / 65535 * dose_e / 0.1
    assert counts.mean() == pytest.approx(0.5 * dose_e, rel=0.01)
    assert counts.var() == pytest.approx(0.5 * dose_e, rel=0.02)
    # Whole electrons, and as many pixels without any as there should be.
    assert np.abs(counts - np.round(counts)).max() < 0.02
    assert (np.round(counts) == 0).mean() == pytest.approx(np.exp(-0.5 * dose_e), abs=0.01)


def test_the_dose_decides_the_noise_and_the_gain_the_grey():
    low, high = (
        shown(even(), Probe(BeamSettings(current_pa=pa)), detector=DetectorSettings(bit_depth=16))
        for pa in (5.0, 500.0)
    )
    assert low.mean() == pytest.approx(high.mean(), rel=0.01)
    assert low.mean() / 65535 == pytest.approx(0.05 + 0.6 * 0.5, rel=0.01)
    assert low.std() > 8 * high.std()


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (12, np.uint16), (16, np.uint16)])
def test_numbers_saturate_and_are_read_only(bits, dtype):
    detector = DetectorSettings(bit_depth=bits, gain_ratio=20.0)
    pixels = shown(islands(), detector=detector)
    assert pixels.dtype == dtype
    assert pixels.shape == (128, 160)
    assert pixels.max() == 2**bits - 1
    assert (pixels == 2**bits - 1).mean() > 0.5
    assert not pixels.flags.writeable


def test_gamma_and_offset():
    plain = shown(even(0.5))[64, 80] / 65535
    assert plain == pytest.approx(0.25, abs=1e-3)
    bent = QUIET.model_copy(update={"gamma": 2.0, "offset_ratio": 0.11})
    assert shown(even(0.5), detector=bent)[64, 80] / 65535 == pytest.approx(0.6, abs=1e-3)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    field, busy = islands(insulating_ratio=0.5), ScanSettings(flicker_ratio=0.1)
    one, two, three = (
        shown(field, scan=busy, detector=DetectorSettings(), seed=seed) for seed in (7, 7, 8)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


def test_in_focus_it_shows_the_specimen():
    field = islands()
    pixels = shown(field) / 65535 / 0.5
    inner = field.yield_ratio[40:-40, 40:-40]
    assert np.corrcoef(pixels.ravel(), inner.ravel())[0, 1] > 0.97


def test_the_margin_is_what_blur_brings_in_from_outside():
    # The middle of a large frame and a small one with its margin: the same to the eye.
    probe = Probe(BeamSettings(), 9.0)  # 11 px of radius
    large = shown(islands((256, 288)), probe)
    small = shown(islands((128, 160)), probe)
    difference = large[64:-64, 64:-64].astype(float) - small
    assert np.abs(difference).max() < 0.01 * small.mean()


def test_a_displaced_frame_shows_its_neighbourhood():
    field = islands()
    here = shown(field)
    right = shown(field, shift_px=(6.0, 0.0))  # the beam is 6 px to the right of the middle
    up = shown(field, shift_px=(0.0, 5.0))
    inner = np.s_[8:-8, 8:-8]
    assert right[:, :-6][inner] == pytest.approx(here[:, 6:][inner], rel=0.05, abs=300)
    assert up[5:][inner] == pytest.approx(here[:-5][inner], rel=0.05, abs=300)
    soft = Probe(BeamSettings(), 4.0)  # drawn edges are too sharp for a grid that is shifted
    half = shown(field, soft, shift_px=(0.5, 0.0))
    drawn = shown(islands(x_um=2.5e-3), soft)  # half a pixel further right
    assert np.corrcoef(half.ravel(), drawn.ravel())[0, 1] > 0.999


def rows_shift_px(reference, pixels):
    """How far each row has gone to the left, by the phase of its transform."""
    a, b = np.fft.rfft(reference, axis=1)[:, 2:30], np.fft.rfft(pixels, axis=1)[:, 2:30]
    cross = b * a.conj()
    frequency = np.arange(2, 30) / reference.shape[1]
    weight = np.abs(cross)
    return (np.angle(cross) * frequency * weight).sum(axis=1) / (
        2 * np.pi * (frequency**2 * weight).sum(axis=1)
    )


def test_jitter_moves_rows_and_leaves_them_sharp():
    field = islands((256, 256))
    still = shown(field).astype(float)
    jitter = STILL.model_copy(update={"jitter_px": 0.3})
    moved = shown(field, scan=jitter).astype(float)
    assert rows_shift_px(still, moved).std() == pytest.approx(0.3, rel=0.25)
    sharp, still_sharp = (np.abs(np.fft.rfft(each, axis=1)) ** 2 for each in (moved, still))
    assert sharp[:, 90:].sum() == pytest.approx(still_sharp[:, 90:].sum(), rel=0.1)


def test_the_mains_bends_upright_edges_at_50_hz():
    field = islands((256, 256))
    scan = STILL.model_copy(update={"mains_px": 1.0})
    still = shown(field).astype(float)
    shifts = rows_shift_px(still, shown(field, scan=scan, started_s=0.003).astype(float))
    row_s = Scan(scan, QUIET, DWELL_NS).row_s(256)
    turns = 50.0 * (0.003 + (np.arange(256) + 0.5) * row_s)
    fit = np.polyfit(np.sin(2 * np.pi * turns), shifts, 1)
    assert fit[0] == pytest.approx(1.0, rel=0.15)
    assert np.corrcoef(np.sin(2 * np.pi * turns), shifts)[0, 1] > 0.95


def test_drift_shears_and_stretches_the_frame():
    field = islands((256, 256))
    still = shown(field).astype(float)
    seconds = Scan(STILL, QUIET, DWELL_NS).frame_s((256, 256))
    # The sample goes 6 px to the right during the frame: later rows show what was further left.
    right = shown(field, drift_nm_per_s=(6 * 5.0 / seconds, 0.0)).astype(float)
    shifts = rows_shift_px(still, right)
    slope = np.polyfit(np.arange(256), shifts, 1)[0] * 255
    assert slope == pytest.approx(-6.0, rel=0.15)
    # It goes 8 px up: what is scanned later has come towards the top, so the frame is compressed.
    up = shown(field, drift_nm_per_s=(0.0, 8 * 5.0 / seconds)).astype(float)
    early = np.corrcoef(up[8:24].ravel(), still[8 - 4 : 24 - 4].ravel())[0, 1]
    late = np.corrcoef(up[-24:-8].ravel(), still[-24 + 4 : -8 + 4].ravel())[0, 1]
    assert early > 0.8
    assert late > 0.8


def test_charge_darkens_what_follows_a_bright_insulator_along_the_row():
    shape, margin = (64, 256), 16
    plane = np.full((96, 288), 0.3, np.float32)
    plane[:, margin + 60 : margin + 80] = 1.0
    charging = np.where(plane > 0.5, 0.7, 0.0).astype(np.float32)
    with_charge = SpecimenField(plane, charging, 5.0, shape, margin, 0.0, 0.0)
    without = SpecimenField(plane, None, 5.0, shape, margin, 0.0, 0.0)
    scan = STILL.model_copy(update={"charging_ratio": 1.0, "charging_tail_px": 40.0})
    lost = shown(without).astype(float) - shown(with_charge, scan=scan)
    after, later, before = (
        lost[:, at].mean() for at in (slice(85, 95), slice(150, 160), slice(20, 50))
    )
    assert after > 4 * later > 0
    assert after > 8 * abs(before)
    rows = lost[:, 85:95].mean(axis=1)
    assert rows.std() > 0.2 * rows.mean()  # streaks: some rows more than others


def test_flicker_is_of_the_frame_or_of_the_row():
    frames = STILL.model_copy(update={"flicker_ratio": 0.1})
    means = [shown(even(shape=(32, 32)), scan=frames, seed=seed).mean() for seed in range(60)]
    assert np.std(means) / np.mean(means) == pytest.approx(0.1, rel=0.35)
    rows = STILL.model_copy(update={"row_flicker_ratio": 0.05})
    lines = shown(even(shape=(256, 32)), scan=rows).mean(axis=1)
    assert lines.std() / lines.mean() == pytest.approx(0.05, rel=0.2)


def test_time_is_rows_of_dwell_and_flyback():
    scan = Scan(ScanSettings(flyback_us=10.0), QUIET, 1_000.0)
    assert scan.row_s(512) == pytest.approx(522e-6)
    assert scan.frame_s((100, 512)) == pytest.approx(52.2e-3)
