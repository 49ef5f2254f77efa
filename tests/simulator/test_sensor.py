"""The camera by the tests one would give a real one (photon transfer, linearity, saturation)."""

import numpy as np
import pytest

from simulator.sensor import (
    NOISELESS_FULL_WELL_E,
    Exposure,
    SensorSettings,
    expose,
    flicker_rows,
    noise_bank,
)

SHAPE = (200, 320)
EVEN = np.ones(SHAPE, dtype=np.float32)
STEADY = {"wander_ratio": 0.0}


def shot(level, settings, number=0, seed=3, light_field=EVEN, **how):
    """One frame of an even scene; level 1 fills the well."""
    planes = np.full((3, *SHAPE), level * settings.full_well_mirror_ratio, dtype=np.float32)
    exposure = Exposure(seed, number, settings.exposure_for_full_well_s, **how)
    return expose(planes, light_field, settings, exposure)


def test_photon_transfer_gives_the_gain_and_the_read_noise():
    settings = SensorSettings(bit_depth=12, black_level_ratio=0.05, read_noise_e=20.0, **STEADY)
    levels = np.linspace(0.02, 0.8, 12)
    pairs = [(shot(level, settings, 1), shot(level, settings, 2)) for level in levels]
    mean = np.array([one.mean() for one, _ in pairs]) - 0.05 * 4095
    variance = [np.var(one.astype(float) - two.astype(float)) / 2.0 for one, two in pairs]
    slope, offset = np.polyfit(mean, variance, 1)
    dn_per_e = 4095 * 0.95 / settings.full_well_e
    assert slope == pytest.approx(dn_per_e, rel=0.03)
    assert offset == pytest.approx((20.0 * dn_per_e) ** 2 + 1 / 12, rel=0.2)


def test_the_mean_is_linear_and_unbiased_by_rounding():
    settings = SensorSettings(**STEADY)
    for level in (0.1, 0.25, 0.5, 0.75):
        assert shot(level, settings).mean() == pytest.approx(255 * level, abs=0.05)


def test_without_noise_it_is_exact():
    settings = SensorSettings(full_well_e=NOISELESS_FULL_WELL_E, read_noise_e=0.0, **STEADY)
    assert np.unique(shot(0.6, settings)).tolist() == [153]
    assert np.unique(shot(0.0, settings)).tolist() == [0]


@pytest.mark.parametrize(
    ("bit_depth", "dtype", "largest"),
    [(8, np.uint8, 255), (12, np.uint16, 4095), (16, np.uint16, 65535)],
)
def test_it_saturates_at_the_largest_number(bit_depth, dtype, largest):
    pixels = shot(3.0, SensorSettings(bit_depth=bit_depth))
    assert pixels.dtype == dtype
    assert pixels.shape == (*SHAPE, 3)
    assert np.all(pixels == largest)
    assert not pixels.flags.writeable


def test_dark_frames_sit_on_the_black_level():
    settings = SensorSettings(bit_depth=12, black_level_ratio=0.02, read_noise_e=8.0, **STEADY)
    dark = shot(0.0, settings)
    assert dark.mean() == pytest.approx(0.02 * 4095, abs=0.1)
    assert dark.min() > 0


def test_gamma_bends_the_curve_and_white_balance_scales_it():
    plain = {"full_well_e": NOISELESS_FULL_WELL_E, "read_noise_e": 0.0, **STEADY}
    bent = shot(0.25, SensorSettings(gamma=2.2, **plain))
    assert np.unique(bent) == pytest.approx(255 * 0.25 ** (1 / 2.2), abs=0.6)
    balanced = shot(0.25, SensorSettings(white_balance_rgb=(2.0, 1.0, 0.5), **plain))
    assert balanced[0, 0] == pytest.approx([127.5, 63.75, 31.9], abs=1.0)
    weak = shot(2.0, SensorSettings(white_balance_rgb=(1.0, 1.0, 0.5), gamma=1.5, **plain))
    assert weak[0, 0, 2] < 255  # a full well under a gain below 1


def test_exposure_and_lamp_scale_the_light_until_the_well_is_full():
    settings = SensorSettings(**STEADY)
    planes = np.full((3, *SHAPE), 0.1, dtype=np.float32)
    short, long = (
        expose(planes.copy(), EVEN, settings, Exposure(1, 1, exposure_s)).mean()
        for exposure_s in (0.004, 0.008)
    )
    assert long == pytest.approx(2.0 * short, rel=0.01)
    dim = expose(planes.copy(), EVEN, settings, Exposure(1, 1, 0.008, lamp_ratio=0.5)).mean()
    assert dim == pytest.approx(short, rel=0.01)


def test_the_same_number_gives_the_same_bytes_and_another_fresh_noise():
    settings = SensorSettings(bit_depth=12)
    first, again = shot(0.4, settings, 7), shot(0.4, settings, 7)
    assert np.array_equal(first, again)
    noise = [shot(0.4, settings, n).astype(float) - 0.4 * 4095 for n in range(6)]
    flat = [(one - one.mean()).ravel() for one in noise]
    for i, one in enumerate(flat):
        for other in flat[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    other_seed = shot(0.4, settings, 7, seed=4)
    assert not np.array_equal(first, other_seed)


def test_noise_differs_between_channels_and_rows():
    deviation = shot(0.4, SensorSettings(bit_depth=12)).astype(float)
    red, green = deviation[..., 0].ravel(), deviation[..., 1].ravel()
    assert abs(np.corrcoef(red, green)[0, 1]) < 0.02
    rows = deviation[..., 0] - deviation[..., 0].mean()
    assert abs(np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]) < 0.02
    assert noise_bank(3).std() == pytest.approx(1.0, abs=0.01)


def test_vignetting_shapes_the_frame():
    field = np.tile(np.linspace(0.5, 1.0, SHAPE[1], dtype=np.float32), (SHAPE[0], 1))
    pixels = shot(0.6, SensorSettings(**STEADY), light_field=field)
    assert pixels[:, :8].mean() == pytest.approx(0.5 * 255 * 0.6, rel=0.03)
    assert pixels[:, -8:].mean() == pytest.approx(255 * 0.6, rel=0.03)


def test_flicker_stripes_a_rolling_shutter_and_dims_a_global_one():
    rolling = SensorSettings(shutter="rolling", readout_s=0.02, flicker_ratio=0.1, **STEADY)
    exposure = Exposure(1, 1, exposure_s=0.001, started_s=0.0023)
    rows = flicker_rows(rolling, exposure, 400)
    assert np.ptp(rows) == pytest.approx(0.2, rel=0.1)
    spectrum = np.abs(np.fft.rfft(rows - rows.mean()))
    assert np.argmax(spectrum) == 2  # 100 Hz for 20 ms
    still = flicker_rows(rolling.model_copy(update={"shutter": "global"}), exposure, 400)
    assert np.ptp(still) == 0.0
    # A whole period in the exposure: nothing is left of it.
    whole = flicker_rows(rolling, Exposure(1, 1, exposure_s=0.01), 400)
    assert whole == pytest.approx(1.0, abs=1e-9)
    frame = shot(0.5, rolling, started_s=0.0023)
    assert frame.mean(axis=(1, 2)).std() > 0.5


def test_the_lamp_wanders_from_frame_to_frame():
    settings = SensorSettings(wander_ratio=0.02)
    means = [shot(0.5, settings, n).mean() for n in range(40)]
    assert np.std(means) / np.mean(means) == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("change", [{"bit_depth": 9}, {"gamma": 0.0}, {"read_noise": 1.0}])
def test_settings_refuse(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SensorSettings(**change)
