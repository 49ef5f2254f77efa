"""What restoring networks learn from."""

import numpy as np
import pytest

from inference.restore.anchor import CHANNELS
from inference.restore.api import NoiseModel
from inference.training import restore_examples
from inference.training.restore_examples import CleanScene, batch, lesson, noisy_frame


def scene(family="surface", side_px=160, low=0.2):
    y, x = np.mgrid[:side_px, :side_px] / np.float32(side_px)
    level = low + (1.0 - low) * (0.5 + 0.5 * np.sin(12.0 * x + 5.0 * y * y))
    return CleanScene.of(family, level.astype(np.float32), 2.0, 200.0)


def test_a_scene_keeps_its_levels():
    kept = scene()
    assert kept.level.dtype == np.uint16
    assert kept.clean().min() == pytest.approx(0.2, abs=1e-4)
    assert kept.clean().max() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dose_e", [3.0, 400.0])
def test_plain_noise_is_that_of_counting(dose_e):
    """At many electrons Gauss's law stands in: its moments are the same."""
    clean = np.full((256, 256), 1.0, np.float32)
    drawn = noisy_frame(clean, dose_e, np.random.default_rng(1), plain=True)
    assert drawn.noisy.mean() == pytest.approx(dose_e, rel=0.01)
    assert drawn.noisy.var() == pytest.approx(dose_e, rel=0.03)
    assert np.array_equal(drawn.noisy, np.rint(drawn.noisy))
    assert drawn.noise == NoiseModel(1.0, 0.0, 0.0)


def test_the_noise_that_is_told_is_about_what_there_is():
    """Of every kind that is drawn: counting, read noise, steps, averages, coloured."""
    clean = scene().clean()
    kinds = set()
    for seed in range(60):
        drawn = noisy_frame(clean, 30.0, np.random.default_rng(seed), plain=False)
        rest = drawn.noisy - drawn.truth
        if isinstance(drawn.noise, NoiseModel):
            sigma = np.sqrt(drawn.noise.variance_dn2(drawn.truth))
            kinds.add("read" if drawn.noise.read_noise_dn else "counted")
        else:
            sigma = drawn.noise
            kinds.add("averaged")
            assert sigma.std() > 0.0
        assert 0.85 < float(np.std(rest / sigma)) < 1.25
    assert kinds == {"read", "counted", "averaged"}


def test_a_batch_follows_from_its_seed():
    scenes = [scene(), scene("hrtem", low=0.9)]
    first = batch(scenes, 6, 64, np.random.default_rng(3))
    again = batch(scenes, 6, 64, np.random.default_rng(3))
    other = batch(scenes, 6, 64, np.random.default_rng(4))
    assert first.seen.shape == (6, CHANNELS, 32, 32) and first.target.shape == (6, 64, 64)
    assert np.array_equal(first.seen, again.seen) and np.array_equal(first.target, again.target)
    assert not np.array_equal(first.seen, other.seen)


def test_crops_of_question_and_answer_lie_over_each_other(monkeypatch):
    """What was taken away, plus what is still wrong, is the noise: in every crop."""
    monkeypatch.setattr(restore_examples, "_COLOURED", 0.0)
    monkeypatch.setattr(restore_examples, "_AVERAGED", 0.0)
    lessons = batch([scene(low=0.8)], 4, 64, np.random.default_rng(1))
    for seen, target in zip(lessons.seen, lessons.target, strict=True):
        taken = np.empty((64, 64), np.float32)
        for place in range(4):
            taken[place // 2 :: 2, place % 2 :: 2] = seen[4 + place]
        local = np.exp(np.median(seen[8:]))
        noise = taken - target * local  # both in sigmas
        assert float(np.std(noise)) == pytest.approx(1.0, abs=0.15)
        assert abs(float(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1])) < 0.1


def test_a_lesson_is_counted_in_errors_of_the_estimate():
    drawn = noisy_frame(scene().clean(), 30.0, np.random.default_rng(1), plain=True)
    seen, target = lesson(drawn)
    assert seen.shape == (CHANNELS, 80, 80) and target.shape == (160, 160)
    assert 0.3 < float(np.sqrt(np.mean(target**2))) < 3.0
