import numpy as np
import pytest

from inference.flakes.background import (
    coarse_flat_field,
    estimate_background,
    shrunk_half,
)

SUBSTRATE = np.array([130.0, 112.0, 155.0])
SHAPE = (600, 960)


def vignette(shape=SHAPE, loss=0.3):
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    h, w = shape
    r2 = ((x - w / 2) ** 2 + (y - h / 2) ** 2) / ((w / 2) ** 2 + (h / 2) ** 2)
    return (1.0 - loss * r2)[..., None]


def crowded(rng, shape=SHAPE, share=0.55):
    """Flakes of many colours over more than half of the frame."""
    picture = np.broadcast_to(SUBSTRATE, (*shape, 3)).copy()
    covered = np.zeros(shape, dtype=bool)
    while covered.mean() < share:
        x, y = rng.integers(0, shape[1]), rng.integers(0, shape[0])
        w, h = rng.integers(30, 160, 2)
        colour = SUBSTRATE * rng.uniform(0.5, 1.5, 3)
        picture[y : y + h, x : x + w] = colour
        covered[y : y + h, x : x + w] = True
    return picture


def taken(picture, rng, noise=1.5):
    return np.clip(picture + rng.normal(0, noise, picture.shape) + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_light_is_recovered_on_a_crowded_frame(loss):
    rng = np.random.default_rng(1)
    light = vignette(loss=loss)
    found = estimate_background(taken(crowded(rng) * light, rng), 255.0)
    assert found.reason == ""
    ratio = found.window(0, 0, SHAPE[1], SHAPE[0]) / (SUBSTRATE * light)
    inner = ratio[20:-20, 20:-20]  # the last half cell is not extrapolated
    assert np.abs(np.percentile(inner, [1, 50, 99]) - 1).max() < 0.012
    assert 0.2 < found.share < 0.6


def test_half_size_inverse_lies_on_the_same_pixels():
    rng = np.random.default_rng(2)
    picture = SUBSTRATE * vignette()
    found = estimate_background(taken(picture, rng), 255.0)
    flat = shrunk_half(taken(picture, rng, 0.5)) * found.inverse_half()
    assert np.abs(flat[10:-10, 10:-10].mean(axis=(0, 1)) - 1).max() < 0.005
    box = found.window(200, 100, 64, 32)
    np.testing.assert_array_equal(box, found.window(0, 0, 960, 600)[100:132, 200:264])
    assert found.window(-5, -5, 20, 20).shape == (20, 20, 3)


@pytest.mark.parametrize("shape", [(64, 64), (97, 131), (75, 1201)])
def test_odd_shapes(shape):
    rng = np.random.default_rng(3)
    found = estimate_background(taken(np.broadcast_to(SUBSTRATE, (*shape, 3)), rng), 255.0)
    assert found.reason == ""
    np.testing.assert_allclose(found.rgb, SUBSTRATE, rtol=0.02)
    assert found.window(0, 0, shape[1], shape[0]).shape == (*shape, 3)
    assert found.inverse_half().shape == (shape[0] // 2, shape[1] // 2, 3)


def test_dark_ground_beside_the_chip_is_not_the_substrate():
    rng = np.random.default_rng(4)
    picture = np.broadcast_to(SUBSTRATE, (*SHAPE, 3)).copy()
    picture[:, :700] = 14.0
    found = estimate_background(taken(picture, rng), 255.0)
    assert found.reason == ""
    np.testing.assert_allclose(found.rgb, SUBSTRATE, rtol=0.03)


def test_expected_colour_decides_between_two():
    rng = np.random.default_rng(5)
    picture = np.broadcast_to(SUBSTRATE, (*SHAPE, 3)).copy()
    picture[:, :600] = 60.0  # a grey stage, larger than the chip in view
    seen = taken(picture, rng)
    assert estimate_background(seen, 255.0).rgb[0] == pytest.approx(60.0, rel=0.03)
    expected = estimate_background(seen, 255.0, (128.0, 110.0, 156.0))
    np.testing.assert_allclose(expected.rgb, SUBSTRATE, rtol=0.03)


def test_measured_flat_field_takes_out_what_a_polynomial_cannot():
    rng = np.random.default_rng(6)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    shadow = 1 - 0.2 * np.exp(-((x - 300) ** 2 + (y - 200) ** 2) / (2 * 60.0**2))
    light = shadow[..., None]
    flat = coarse_flat_field(taken(200.0 * light * np.ones(3), rng))
    seen = taken(SUBSTRATE * light, rng)
    with_flat = estimate_background(seen, 255.0, flat_field=flat).window(0, 0, 960, 600)
    without = estimate_background(seen, 255.0).window(0, 0, 960, 600)
    truth = SUBSTRATE * light
    assert np.abs(with_flat / truth - 1)[150:250, 250:350].mean() < 0.01
    assert np.abs(without / truth - 1)[150:250, 250:350].mean() > 0.05


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("black", lambda rng: np.zeros((200, 300, 3), np.uint8), "black"),
        ("dark noise", lambda rng: rng.integers(0, 8, (200, 300, 3)).astype(np.uint8), "black"),
        ("saturated", lambda rng: np.full((200, 300, 3), 255, np.uint8), "saturated"),
        ("noise", lambda rng: rng.integers(0, 256, (200, 300, 3)).astype(np.uint8), "noise"),
        (
            "ramp",
            lambda rng: (
                np.repeat(np.linspace(15, 250, 960), 600).reshape(960, 600).T[..., None]
                * np.ones(3)
            ),
            "uneven light",
        ),
    ],
)
def test_a_frame_without_a_substrate_says_so(name, make, reason):
    frame = make(np.random.default_rng(7)).astype(np.uint8)
    found = estimate_background(frame, 255.0)
    assert reason in found.reason
    assert np.isfinite(found.coarse).all()


def test_half_and_full_agree_and_bits_do_not_matter():
    rng = np.random.default_rng(8)
    seen = taken(crowded(rng) * vignette(), rng)
    full = estimate_background(seen, 255.0)
    half = estimate_background(seen, 255.0, half=shrunk_half(seen))
    np.testing.assert_allclose(half.coarse, full.coarse, rtol=0.02)
    deep = estimate_background(seen.astype(np.uint16) * 16, 4095.0)
    np.testing.assert_allclose(deep.coarse / 16, full.coarse, rtol=0.02)
