"""One frame restored: colours, types, memory and fallbacks."""

import cv2
import numpy as np
import pytest

from controller.restoring.choice import restorer_choice
from controller.restoring.frames import EachAlone, FrameRestorer
from inference.api import BadImage, NoEngine
from inference.restore.api import Restored
from inference.restore.classical import Gaussian
from inference.restore.guard import BestClassical


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_shape_and_type_stay(halving, shape, dtype):
    choice, made = halving()
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    answer = FrameRestorer(choice).restore(pixels)
    assert answer.image.dtype == dtype
    assert np.abs(answer.image.astype(float) - pixels / 2.0).max() <= 0.5
    assert not answer.image.flags.writeable
    assert len(made) == (1 if len(shape) == 2 else 3)
    assert all(np.array_equal(made[c].seen[0], pixels[..., c]) for c in range(len(made)) if c)


def test_a_memory_ends_with_the_size_of_frames(halving):
    choice, made = halving()
    restorer = FrameRestorer(choice)
    small, large = np.zeros((24, 32), np.uint8), np.zeros((32, 32), np.uint8)
    depths = [restorer.restore(each).effective_frames for each in (small, small, large, large)]
    assert depths == [1.0, 2.0, 1.0, 2.0]
    assert len(made) == 2
    restorer.reset()
    assert made[1].resets == 1
    assert restorer.restore(large).effective_frames == 1.0


def test_after_a_failure_nothing_is_remembered(halving):
    choice, made = halving()
    restorer = FrameRestorer(choice)
    restorer.restore(np.zeros((24, 32), np.uint8))
    with pytest.raises(BadImage):
        restorer.restore(np.full((24, 32), 13, np.uint8))
    assert restorer.restore(np.zeros((24, 32), np.uint8)).effective_frames == 1.0
    assert len(made) == 2


def test_a_fallback_is_said(halving):
    choice, _ = halving(method="gaussian", reason="halving: not believed")
    answer = FrameRestorer(choice).restore(np.zeros((24, 32, 3), np.uint8))
    assert answer.is_fallback
    assert answer.method == "gaussian"
    assert answer.reason == "halving: not believed"


def test_what_is_no_frame(halving):
    with pytest.raises(BadImage, match=r"\(2, 2, 2, 2\)"):
        FrameRestorer(halving()[0]).restore(np.zeros((2, 2, 2, 2), np.uint8))


def test_each_alone_has_no_memory():
    one = EachAlone(Gaussian())
    assert one.effective_frames == 0.0
    noisy = np.random.default_rng(1).poisson(50.0, (64, 64)).astype(np.uint16)
    assert np.array_equal(one.push(noisy).image, Gaussian().restore(noisy).image)
    assert one.effective_frames == 1.0
    assert one.drift_px == (0.0, 0.0)
    one.reset()
    assert one.effective_frames == 0.0


# --- what a word means ------------------------------------------------------------------------


class Net:
    name = "network_live"

    def restore(self, frame, noise=None):
        image = np.asarray(frame, np.float32)
        return Restored(image, None, True, self.name, "")


NOISY = np.random.default_rng(1).poisson(40.0, (96, 96)).astype(np.uint16)


@pytest.mark.parametrize("word", ["radial_wiener", "local_wiener", "nlm", "gaussian"])
def test_a_filter_by_its_name(word):
    choice = restorer_choice(word, recursive=False, open_network=lambda _: Net())
    answer = FrameRestorer(choice).restore(NOISY)
    assert answer.method == choice.name == word
    assert not answer.is_fallback


def test_auto_without_weights_is_the_best_classical():
    choice = restorer_choice("auto", recursive=False, open_network=lambda _: None)
    assert choice.name == BestClassical().name
    answer = FrameRestorer(choice).restore(NOISY)
    assert not answer.is_fallback
    assert answer.method in choice.expected


@pytest.mark.parametrize("word", ["live", "quality"])
def test_a_network_without_weights_is_refused(word):
    with pytest.raises(NoEngine, match=f'"{word}".*scopeloop train restore'):
        restorer_choice(word, recursive=False, open_network=lambda _: None)


@pytest.mark.parametrize(
    ("word", "asked"), [("auto", "live"), ("live", "live"), ("quality", "quality")]
)
def test_a_network_that_does_nothing_is_replaced(word, asked):
    """It takes no noise away, so the guard has the best filter stand in, and says why."""
    opened = []

    def open_network(name):
        opened.append(name)
        return Net()

    choice = restorer_choice(word, recursive=False, open_network=open_network)
    answer = FrameRestorer(choice).restore(NOISY)
    assert opened == [asked]
    assert answer.is_fallback
    assert "network_live" in answer.reason
    assert answer.method != "network_live"


def test_recursion_goes_deeper():
    rng = np.random.default_rng(2)
    grain = cv2.GaussianBlur(rng.standard_normal((96, 96)), (0, 0), 2.0)
    scene = 40.0 + 15.0 * grain / grain.std()
    choice = restorer_choice("radial_wiener", recursive=True, open_network=lambda _: None)
    restorer = FrameRestorer(choice)
    deep = [restorer.restore(rng.poisson(scene.clip(1)).astype(np.uint16)) for _ in range(6)]
    assert deep[-1].effective_frames > 3.0
