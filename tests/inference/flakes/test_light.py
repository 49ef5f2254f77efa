import numpy as np
import pytest

from inference.flakes.ladder import Optics, bare_signal
from inference.flakes.light import LightWatch
from inference.flakes.thin_film import WAVELENGTHS_NM, CameraResponse, Illuminant

USUAL = (70.0, 66.0, 88.0)


def run(colours):
    watch = LightWatch()
    return [watch.seen(tuple(map(float, colour))) for colour in colours]


def tiles(count, colour=USUAL, wobble=0.003, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(colour) * np.exp(rng.normal(0.0, wobble, (count, 3)))


def flagged(found):
    return [k for k, change in enumerate(found) if change is not None]


@pytest.mark.parametrize("step", [0.70, 0.85, 0.95, 1.05, 1.15, 1.30])
@pytest.mark.parametrize("seed", range(5))
def test_a_step_of_the_lamp_is_told_of_the_first_tile_after_and_once(step, seed):
    after = tiles(20, np.asarray(USUAL) * step, seed=seed + 50)
    found = run([*tiles(12, seed=seed), *after])
    assert flagged(found) == [12]
    assert not found[12].is_tint
    assert found[12].moved.brightness == pytest.approx(np.log(step), abs=0.012)
    assert "green" in found[12].in_words()


def test_a_hotter_lamp_is_a_tint():
    def white(kelvin):
        lit = Illuminant(kelvin).spectrum(WAVELENGTHS_NM)
        return CameraResponse().filters(WAVELENGTHS_NM) @ lit

    cool, hot = (
        300.0 * white(k) / white(2700.0) * bare_signal(90.0, Optics(lamp_k=k))
        for k in (2700.0, 3500.0)
    )
    found = run([*tiles(6, cool), *tiles(6, hot, seed=3)])
    assert flagged(found) == [6]
    assert found[6].is_tint
    assert found[6].moved.is_deviant
    assert "red/green -2" in found[6].in_words()


def test_one_odd_tile_is_told_and_does_not_become_the_usual_one():
    found = run([*tiles(8), np.asarray(USUAL) * 0.8, *tiles(8, seed=2)])
    assert flagged(found) == [8]


@pytest.mark.parametrize("wobble", [0.002, 0.01, 0.02])
def test_a_restless_chip_is_not_full_of_alarms(wobble):
    alarms = sum(len(flagged(run(tiles(100, wobble=wobble, seed=s)))) for s in range(10))
    assert alarms <= 10 * (1 if wobble < 0.015 else 4)


def test_slow_ageing_is_followed_without_alarm():
    steps = np.exp(np.linspace(0.0, -0.2, 200))[:, None]
    assert flagged(run(tiles(200) * steps)) == []


def test_what_shows_no_substrate_says_nothing():
    assert flagged(run([*tiles(5), (0.0, 0.0, 0.0), *tiles(5, seed=1)])) == []
