"""The average: what stands still gains, what moves is followed, what changes is seen."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from inference.restore.api import LiveRestorer, NoiseModel
from inference.restore.classical import LocalWiener, RadialWiener
from inference.restore.recursive import Recursive, RecursiveSettings, averaged_noise, shifted

COUNTS = NoiseModel(1.0, 0.0, 0.0)
DOSE = 30.0  # electrons a pixel where the scene is brightest


@dataclass(frozen=True)
class Mapped:
    """Takes a sigma map, and remembers the last one."""

    seen: list
    name: str = "mapped"
    takes_sigma: bool = True

    def restore(self, frame, noise=None, sigma=None):
        self.seen.append(sigma)
        return RadialWiener().restore(frame, noise)


def moved(truth, right_px, down_px):
    """By a Fourier shift of the mirrored scene: exact for what is band-limited."""
    whole = np.pad(truth, 32, mode="reflect")
    fy, fx = np.fft.fftfreq(whole.shape[0])[:, None], np.fft.fftfreq(whole.shape[1])[None, :]
    ramp = np.exp(-2j * np.pi * (fx * right_px + fy * down_px))
    return np.fft.ifft2(np.fft.fft2(whole) * ramp).real[32:-32, 32:-32]


def exposed(truth, seed, dose=DOSE):
    rng = np.random.default_rng((5, seed))
    return rng.poisson(np.maximum(truth, 0.0) * dose).astype(np.float32)


def error(image, truth, edge=16, dose=DOSE):
    inner = np.s_[edge:-edge, edge:-edge]
    return float(np.mean((image - dose * truth)[inner] ** 2))


def gain_db(image, frame, truth, edge=16):
    single = error(RadialWiener().restore(frame, COUNTS).image, truth, edge)
    return 10.0 * np.log10(single / error(image, truth, edge))


def with_atom(truth, x_px, y_px, strength=0.5):
    y, x = np.mgrid[: truth.shape[0], : truth.shape[1]]
    return truth + strength * np.exp(-((x - x_px) ** 2 + (y - y_px) ** 2) / (2.0 * 1.8**2))


def contrast_at(image, x_px, y_px, before, strength=0.5):
    """Of an atom, 1 where it is all there."""
    there = with_atom(np.zeros_like(before), x_px, y_px, strength)
    place = np.s_[y_px - 5 : y_px + 6, x_px - 5 : x_px + 6]
    gap = (image / DOSE - before)[place]
    return float((gap * there[place]).sum() / np.square(there[place]).sum())


def test_a_still_scene_gains(truth):
    live: LiveRestorer = Recursive(RadialWiener())
    assert live.effective_frames == 0.0
    for number in range(24):
        frame = exposed(truth, number)
        answer = live.push(frame, COUNTS)
    assert live.effective_frames >= 16.0
    assert gain_db(answer.image, frame, truth) >= 4.0
    assert np.hypot(*live.drift_px) < 0.2
    assert answer.sigma.shape == frame.shape
    live.reset()
    assert live.effective_frames == 0.0
    assert live.drift_px == (0.0, 0.0)


@pytest.mark.parametrize("step", [(0.37, -0.21), (1.4, 0.8)], ids=["slow", "fast"])
def test_drift_is_followed(truth, step):
    live = Recursive(RadialWiener())
    wander = np.cumsum(np.random.default_rng(1).normal(0.0, 0.15, (20, 2)), axis=0)
    for number in range(20):
        at = np.array(step) * number + wander[number] - wander[0]
        scene = moved(truth, *at)
        frame = exposed(scene, number)
        answer = live.push(frame, COUNTS)
        assert np.abs(np.array(live.drift_px) - at).max() < 0.2, number
    assert live.effective_frames >= 10.0
    assert live.restarts == 0
    # The margin has been in view for a few frames only.
    assert gain_db(answer.image, frame, scene, edge=64) >= 4.0


def test_a_lattice_is_followed_where_drift_is_steady():
    """All shifts by a period are alike: only steadiness tells them apart."""
    y, x = np.mgrid[:128, :128].astype(np.float64)

    def lattice(right_px):
        u = x - right_px
        waves = [np.cos(1.05 * u), np.cos(0.525 * u + 0.91 * y), np.cos(0.525 * u - 0.91 * y)]
        return 0.5 + 0.06 * sum(waves)

    live = Recursive(RadialWiener())
    for number in range(16):
        live.push(exposed(lattice(1.3 * number), number), COUNTS)
    assert live.drift_px[0] == pytest.approx(1.3 * 15, abs=0.2)


def test_a_jump_by_half_a_period_is_refused():
    x = np.mgrid[:128, :128][1].astype(np.float64)
    live = Recursive(RadialWiener(), RecursiveSettings(speed_px=4.0))
    stripes = [0.5 + 0.2 * np.cos(2.0 * np.pi * (x - at) / 6.0) for at in (0.0, 3.0)]
    live.push(exposed(stripes[0], 0), COUNTS)
    answer = live.push(exposed(stripes[1], 1), COUNTS)
    assert "drift is not known" in answer.reason
    assert live.effective_frames == 1.0
    assert live.restarts == 1


def test_an_atom_that_hops_is_seen_at_once_and_leaves_no_ghost(truth):
    before, after = (90, 150), (101, 150)
    base = 0.5 + 0.2 * (truth - truth.mean())
    live = Recursive(LocalWiener())
    for number in range(16):
        live.push(exposed(with_atom(base, *before), number), COUNTS)
    hopped = with_atom(base, *after)
    frame = exposed(hopped, 16)
    first = live.push(frame, COUNTS).image
    alone = LocalWiener().restore(frame, COUNTS).image
    assert contrast_at(alone, *after, base) > 0.6
    assert contrast_at(first, *after, base) > 0.8 * contrast_at(alone, *after, base)
    second = live.push(exposed(hopped, 17), COUNTS).image
    assert abs(contrast_at(second, *before, base)) < 0.25
    for number in range(18, 22):
        image = live.push(exposed(hopped, number), COUNTS).image
    assert abs(contrast_at(image, *before, base)) < 0.15
    assert contrast_at(image, *after, base) > 0.7
    assert live.effective_frames >= 12.0  # the rest of the frame knows nothing of it


def test_a_false_doubt_is_forgotten(truth):
    """One bad frame in a place: shown as it came, and without consequence."""
    live = Recursive(RadialWiener())
    for number in range(16):
        live.push(exposed(truth, number), COUNTS)
    bad = exposed(truth, 16)
    bad[100:110, 60:70] += 60.0
    assert float(live.push(bad, COUNTS).image[102:108, 62:68].mean()) > DOSE * 0.9
    frame = exposed(truth, 17)
    image = live.push(frame, COUNTS).image
    place = np.s_[96:114, 56:74]
    single = RadialWiener().restore(frame, COUNTS).image[place] - DOSE * truth[place]
    assert np.mean((image[place] - DOSE * truth[place]) ** 2) < 0.7 * np.mean(single**2)


def test_a_cut_starts_anew(truth):
    live = Recursive(RadialWiener())
    for number in range(8):
        live.push(exposed(truth, number), COUNTS)
    other = truth[::-1, ::-1].copy()
    frame = exposed(other, 8)
    answer = live.push(frame, COUNTS)
    assert "anew" in answer.reason
    assert live.effective_frames == 1.0
    assert np.array_equal(answer.image, RadialWiener().restore(frame, COUNTS).image)
    assert live.push(exposed(other, 9), COUNTS).reason == ""


def test_flicker_is_no_change(truth):
    live = Recursive(RadialWiener())
    for number in range(12):
        frame = exposed(truth, number) + np.float32(3.0 * (number % 2))
        answer = live.push(frame, replace(COUNTS, offset_dn=3.0 * (number % 2)))
    assert live.restarts == 0
    assert live.effective_frames >= 10.0
    assert float(answer.image.mean()) == pytest.approx(float(frame.mean()), rel=0.01)


def test_a_restorer_that_takes_a_map_gets_one(truth):
    seen: list = []
    live = Recursive(Mapped(seen))
    for number in range(6):
        live.push(exposed(truth, number), COUNTS)
    expected = np.sqrt(DOSE * truth / 6.0)
    inner = np.s_[16:-16, 16:-16]
    assert float(np.median(seen[-1][inner] / expected[inner])) == pytest.approx(1.0, abs=0.1)
    plain = Recursive(replace(Mapped(seen), takes_sigma=False))
    seen.clear()
    for number in range(2):
        plain.push(exposed(truth, number), COUNTS)
    assert seen == [None, None]


def test_shapes_may_change_and_noise_is_estimated(truth):
    live = Recursive(RadialWiener())
    for number in range(3):
        live.push(exposed(truth, number))
    assert live.effective_frames > 2.0
    answer = live.push(exposed(truth[:128, :200], 3))
    assert answer.image.shape == (128, 200)
    assert live.effective_frames == 1.0


def test_the_same_frames_make_the_same_images(truth):
    runs = []
    for _ in range(2):
        live = Recursive(RadialWiener())
        runs.append([live.push(exposed(truth, number)).image for number in range(4)])
    for one, other in zip(*runs, strict=True):
        assert np.array_equal(one, other)


def test_shifting_there_and_back(truth):
    image = truth.astype(np.float32)
    there = shifted(image, np.array([0.4, -0.3]))
    assert np.abs(there - moved(truth, -0.3, 0.4))[8:-8, 8:-8].max() < 0.02
    back = shifted(there, np.array([-0.4, 0.3]))
    assert np.abs(back - image)[16:-16, 16:-16].max() < 0.02


def test_noise_of_an_average():
    noise = NoiseModel(2.0, 10.0, 3.0)
    assert float(averaged_noise(noise, 4.0).variance_dn2(50.0)) == pytest.approx(
        float(noise.variance_dn2(50.0)) / 4.0
    )
