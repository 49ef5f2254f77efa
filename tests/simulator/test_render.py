"""The picture against the truth: positions, areas, contrasts, focus, seams, reproducibility."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import shapely

from drivers.api import Objective
from inference.flakes.materials import MATERIALS
from inference.flakes.thin_film import contrast_rgb
from simulator.chip import Chip, ChipSettings, Paint, Patch, Speck
from simulator.optics import OpticsSettings
from simulator.render import Renderer
from simulator.sensor import NOISELESS_FULL_WELL_E, SensorSettings

X5 = Objective("5x", 5.0, 0.15, 1536.0)
X20 = Objective("20x", 20.0, 0.45, 384.0)
X50 = Objective("50x", 50.0, 0.8, 153.6)
SHAPE = (240, 320)
CLEAN = OpticsSettings(vignetting_ratio=0.0, stray_light_ratio=0.0)
EMPTY = {
    "size_mm": (2.0, 2.0),
    "flakes_per_mm2": 0.0,
    "debris_per_mm2": 0.0,
    "trails_per_mm2": 0.0,
    "residue_per_mm2": 0.0,
    "films_per_mm2": 0.0,
    "bubbles_per_mm2": 0.0,
    "dust_per_mm2": 0.0,
    "scratches_per_mm2": 0.0,
    "fiducials": False,
    "haze_nm": 0.0,
}
PENTAGON = np.array([(0.0, 0.0), (14.3, 2.1), (17.9, 11.7), (8.4, 19.2), (-3.3, 9.6)])


def chip_with(*patches: Patch, specks: tuple[Speck, ...] = (), **settings: object) -> Chip:
    chip = Chip.generate(ChipSettings(**{**EMPTY, **settings}))
    return replace(chip, patches=(*chip.patches, *patches), specks=specks)


def monolayer(points=PENTAGON, layers=1, material="graphene") -> Patch:
    nm = layers * MATERIALS[material].layer_thickness_nm
    return Patch((np.asarray(points, dtype=float),), Paint("crystal", nm, material))


def centroid_px(signal):
    rows, columns = np.mgrid[: signal.shape[0], : signal.shape[1]]
    return (signal * columns).sum() / signal.sum(), (signal * rows).sum() / signal.sum()


@pytest.mark.parametrize("objective", [X5, X20, X50])
@pytest.mark.parametrize("rotation_deg", [0.0, 23.0])
def test_a_flake_is_where_it_is_and_as_large_as_it_is(objective, rotation_deg):
    chip = chip_with(monolayer(), rotation_deg=rotation_deg, centre_um=(310.0, -120.0))
    middle = shapely.Polygon(PENTAGON).centroid
    at = chip.chip_to_stage_um((middle.x, middle.y))
    x, y = at[0] + 3.217, at[1] - 5.713
    light = Renderer(chip, CLEAN).light(objective, x, y, 0.0, SHAPE)[1].astype(float)
    signal = light / light[0, 0] - 1.0
    column, row = centroid_px(signal)
    pixel_um = objective.pixel_size_nm * 1e-3
    assert column == pytest.approx((SHAPE[1] - 1) / 2 - 3.217 / pixel_um, abs=0.02)
    assert row == pytest.approx((SHAPE[0] - 1) / 2 - 5.713 / pixel_um, abs=0.02)
    depth = contrast_rgb(
        MATERIALS["graphene"], 0.335, chip.settings.oxide_nm, objective.numerical_aperture
    )[1]
    area_um2 = signal.sum() / depth * pixel_um**2
    assert area_um2 == pytest.approx(shapely.Polygon(PENTAGON).area, rel=0.005)


def test_with_noise_the_centroid_still_holds_to_a_tenth_of_a_pixel():
    chip = chip_with(monolayer(layers=3))
    middle = shapely.Polygon(PENTAGON).centroid
    pixels = Renderer(chip, CLEAN, seed=5).render(X20, middle.x, middle.y, 0.0, SHAPE)
    smooth = cv2.GaussianBlur(pixels[..., 1].astype(np.float32), (0, 0), 1.5)
    ground = float(np.median(smooth))
    signal = np.where(smooth < 0.85 * ground, ground - smooth, 0.0)
    column, row = centroid_px(signal)
    assert column == pytest.approx((SHAPE[1] - 1) / 2, abs=0.1)
    assert row == pytest.approx((SHAPE[0] - 1) / 2, abs=0.1)


def test_stage_y_points_up_in_the_image():
    chip = chip_with(monolayer(PENTAGON + np.array([10.0, 30.0])))
    light = Renderer(chip, CLEAN).light(X20, 0.0, 0.0, 0.0, SHAPE)[1]
    column, row = centroid_px(np.abs(light - light[0, 0]).astype(float))
    assert column > SHAPE[1] / 2
    assert row < SHAPE[0] / 2


@pytest.mark.parametrize("oxide_nm", [90.0, 285.0])
@pytest.mark.parametrize(("material", "layers"), [("graphene", 1), ("mos2", 2), ("hbn", 3)])
@pytest.mark.parametrize("objective", [X20, X50])
def test_measured_contrast_is_the_ladders(oxide_nm, material, layers, objective):
    box = np.array([(-12.0, -9.0), (12.0, -9.0), (12.0, 9.0), (-12.0, 9.0)])
    chip = chip_with(monolayer(box, layers, material), oxide_nm=oxide_nm)
    sensor = SensorSettings(wander_ratio=0.0)
    pixels = Renderer(chip, CLEAN, sensor, seed=2).render(objective, 0.0, 0.0, 0.0, SHAPE)
    inner = pixels[110:130, 145:175].reshape(-1, 3).astype(float).mean(axis=0)
    outer = np.concatenate([pixels[:8], pixels[-8:]]).reshape(-1, 3).astype(float).mean(axis=0)
    nm = layers * MATERIALS[material].layer_thickness_nm
    expected = contrast_rgb(MATERIALS[material], nm, oxide_nm, objective.numerical_aperture)
    assert inner / outer - 1.0 == pytest.approx(expected, abs=0.004)


def test_the_same_seed_gives_the_same_bytes():
    settings = ChipSettings(seed=4, size_mm=(1.0, 1.0))
    frames = [
        Renderer(Chip.generate(settings), seed=9).render(
            X20, 50.0, 20.0, 1.0, SHAPE, frame_number=n
        )
        for n in (3, 3, 4)
    ]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])
    other = Renderer(Chip.generate(settings), seed=10)
    assert not np.array_equal(frames[0], other.render(X20, 50.0, 20.0, 1.0, SHAPE, frame_number=3))


@pytest.mark.parametrize(
    ("tilt", "defocus_um", "tolerance"), [(0.0, 0.0, 2e-5), (12.0, 0.0, 0.05), (0.0, 30.0, 0.01)]
)
def test_neighbouring_tiles_agree_where_they_overlap(tilt, defocus_um, tolerance):
    settings = ChipSettings(seed=4, size_mm=(1.5, 1.5), tilt_um_per_mm=(tilt, 0.0))
    chip = Chip.generate(settings)
    renderer = Renderer(chip, CLEAN)
    step_px = 200
    step_um = step_px * X20.pixel_size_nm * 1e-3
    flake = max(chip.truth().flakes, key=lambda one: one.area_um2)
    x, y = flake.polygon_um.mean(axis=0)
    left = renderer.light(X20, x, y, defocus_um, SHAPE)
    # Both are focused at their own middle: the neighbour's height differs by the tilt.
    right = renderer.light(X20, x + step_um, y, defocus_um - tilt * step_um * 1e-3, SHAPE)
    one, other = left[:, :, step_px:], right[:, :, :-step_px]
    assert np.ptp(one) > 0.1  # something is there
    assert np.abs(one - other).max() < tolerance


@pytest.mark.parametrize("defocus_um", [0.0, 6.0])
def test_blurring_in_cells_leaves_no_seams(monkeypatch, defocus_um):
    chip = Chip.generate(ChipSettings(seed=4, size_mm=(1.0, 1.0), debris_per_mm2=2_000.0))
    renderer = Renderer(chip, CLEAN)
    in_cells = renderer.light(X20, 0.0, 0.0, defocus_um, SHAPE)
    monkeypatch.setattr("simulator.render._CELL_PX", 100_000)
    at_once = renderer.light(X20, 0.0, 0.0, defocus_um, SHAPE)
    assert np.ptp(at_once) > 0.04
    assert in_cells == pytest.approx(at_once, abs=1e-5)


def test_defocus_varies_across_a_tilted_field():
    settings = ChipSettings(**{**EMPTY, "tilt_um_per_mm": (12.0, 0.0)})
    chip = Chip.generate(settings)
    stripes = [
        monolayer([(x, -40), (x + 2, -40), (x + 2, 40), (x, 40)], 4) for x in range(-350, 350, 5)
    ]
    chip = replace(chip, patches=(*chip.patches, *stripes))
    light = Renderer(chip, CLEAN).light(X20, 0.0, 0.0, 0.0, (160, 1800))[1]
    swing = [float(part.std()) for part in np.array_split(light[60:100], 9, axis=1)]
    assert swing[4] == max(swing)
    assert swing[0] < 0.7 * swing[4]
    assert swing[8] < 0.7 * swing[4]
    assert swing == pytest.approx(swing[::-1], rel=0.1)


@pytest.mark.parametrize("objective", [X5, X20, X50])
def test_depth_of_field_follows_the_objective(objective):
    """Sharpness falls to half within two depths of field, and stays above it within a quarter."""
    pixel_um = objective.pixel_size_nm * 1e-3
    rng = np.random.default_rng(1)
    dots = [
        monolayer(PENTAGON * 0.12 * pixel_um + centre, 4)
        for centre in rng.uniform(-60.0, 60.0, (40, 2)) * pixel_um
    ]
    renderer = Renderer(chip_with(*dots), CLEAN)
    depth_um = objective.depth_of_field_um()
    defoci = np.array([-2.0, -1.0, -0.25, 0.0, 0.25, 1.0, 2.0]) * depth_um
    sharpness = []
    for defocus_um in defoci:
        light = renderer.light(objective, 0.0, 0.0, float(defocus_um), (160, 160))[1]
        sharpness.append(float(np.mean(np.diff(light, axis=1) ** 2)))
    relative = np.array(sharpness) / sharpness[3]
    assert relative.max() == 1.0
    assert relative == pytest.approx(relative[::-1], rel=0.02)
    assert np.all(relative[[2, 4]] > 0.7)
    assert np.all(relative[[0, 6]] < 0.4)


def test_strong_defocus_keeps_the_light():
    renderer = Renderer(chip_with(monolayer(PENTAGON * 3.0, 200)), CLEAN)
    sums = []
    for defocus_um in (0.0, 10.0, 40.0, 90.0):
        light = renderer.light(X20, 15.0, 25.0, defocus_um, (900, 900))[1].astype(float)
        sums.append(float((light - light[0, 0]).sum()))
    assert sums == pytest.approx([sums[0]] * 4, rel=0.02)


def test_beside_the_chip_it_is_dark_and_the_edge_is_where_it_is():
    renderer = Renderer(chip_with(size_mm=(1.0, 1.0)), CLEAN)
    light = renderer.light(X20, 500.0, 0.0, 0.0, SHAPE)[1]
    inside, outside = light[:, :40].mean(), light[:, -40:].mean()
    assert outside < 0.4 * inside
    edge = np.argmax(light < 0.5 * (inside + outside), axis=1)
    assert np.median(edge) == pytest.approx(SHAPE[1] / 2, abs=20)  # the bevel starts 4 um before
    far = renderer.light(X20, 5_000.0, 0.0, 0.0, SHAPE)
    assert np.ptp(far, axis=(1, 2)).max() < 1e-6


def test_dirt_is_drawn_at_its_place_and_off_the_ladder():
    specks = (
        Speck("dust", -20.0, 0.0, 5.0, seed=3),
        Speck("bubble", 0.0, 20.0, 8.0, seed=4),
        Speck("residue", 20.0, 0.0, 9.0, seed=5),
    )
    renderer = Renderer(chip_with(specks=specks, rotation_deg=90.0), CLEAN)
    light = renderer.light(X20, 0.0, 0.0, 0.0, SHAPE)
    contrast = light / light[:, :1, :1] - 1.0
    # Turned by 90 degrees: dust at (0, -20), the bubble at (-20, 0), residue at (0, 20).
    assert contrast[1, 120 + 52, 160] < -0.5
    assert np.abs(contrast[:, 120, 160 - 52]).max() > 0.1
    assert np.abs(contrast[:, 120 - 70 : 120 - 30, 140:180]).max() > 0.2
    assert np.abs(contrast[:, :20]).max() < 1e-4


def test_haze_is_slight_and_moves_with_the_chip():
    chip = chip_with(haze_nm=0.5, rotation_deg=10.0)
    renderer = Renderer(chip, CLEAN)
    one = renderer.light(X20, 0.0, 0.0, 0.0, SHAPE)[2]
    other = renderer.light(X20, 38.4, -19.2, 0.0, SHAPE)[2]
    spread = one.std() / one.mean()
    assert 0.001 < spread < 0.03
    assert one[50:, 100:] == pytest.approx(other[:-50, :-100], abs=0.1 * float(one.std()))


def dip_of_a_stripe(shutter: str, velocity_um_per_s: tuple[float, float], exposure_s: float):
    """How much darker than the ground each pixel is; a stripe 4 um wide, along y, no noise."""
    chip = chip_with(monolayer([(-2, -90), (2, -90), (2, 90), (-2, 90)], 4))
    sensor = SensorSettings(
        bit_depth=16,
        full_well_e=NOISELESS_FULL_WELL_E,
        read_noise_e=0.0,
        wander_ratio=0.0,
        shutter=shutter,
        readout_s=0.02,
    )
    pixels = Renderer(chip, CLEAN, sensor).render(
        X20, 0.0, 0.0, 0.0, SHAPE, velocity_um_per_s=velocity_um_per_s, exposure_s=exposure_s
    )
    green = pixels[..., 1].astype(float)
    return 1.0 - green / green.max()


def test_a_moving_stage_smears_along_its_path_only():
    widths = []
    for velocity in ((0.0, 0.0), (1_000.0, 0.0), (0.0, 1_000.0)):
        profile = dip_of_a_stripe("global", velocity, exposure_s=0.012)[100:140].mean(axis=0)
        widths.append((profile > 0.5 * profile.max()).sum() * 0.384)
    assert widths == pytest.approx([4.0, 12.0, 4.0], abs=0.8)


def test_a_rolling_shutter_leans_a_moving_stripe():
    """The first row looks 10 ms early, when the stripe was 10 um further to the right."""
    dip = dip_of_a_stripe("rolling", (1_000.0, 0.0), exposure_s=0.0005)
    top, bottom = (centroid_px(dip[rows])[0] for rows in (slice(5, 25), slice(215, 235)))
    assert top - bottom == pytest.approx(20.0 * 210 / 240 / 0.384, abs=0.5)
    upright = dip_of_a_stripe("rolling", (0.0, 0.0), exposure_s=0.0005)
    assert centroid_px(upright[5:25])[0] == pytest.approx(centroid_px(upright[215:235])[0])


def test_bit_depth_and_white_balance_reach_the_pixels():
    renderer = Renderer(chip_with(), CLEAN, SensorSettings(bit_depth=12))
    pixels = renderer.render(X20, 0.0, 0.0, 0.0, SHAPE)
    assert pixels.dtype == np.uint16
    assert 255 < np.median(pixels) < 4095
    assert not pixels.flags.writeable
    small = renderer.render(X20, 0.0, 0.0, 0.0, (61, 83))
    assert small.shape == (61, 83, 3)
