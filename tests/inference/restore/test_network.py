"""The denoisers that are kept with the program, and how any such network is run."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import inference
from inference.api import BadImage, BadModel
from inference.engine import Card, Tensor
from inference.onnx_engine import OnnxEngine
from inference.restore import network as network_module
from inference.restore.anchor import CHANNELS, TwoStepWiener
from inference.restore.api import MapRestorer, NoiseModel
from inference.restore.guard import Guarded
from inference.restore.network import NetworkDenoiser
from inference.restore.scores import psnr_db

COUNTS = NoiseModel(1.0, 0.0, 0.0)
WEIGHTS = Path(inference.__file__).parent / "weights"
MODELS = sorted(WEIGHTS.glob("denoise_*.onnx"))

pytestmark = pytest.mark.skipif(not MODELS, reason="no weights: scopeloop train restore")


@pytest.fixture(scope="module", params=MODELS, ids=lambda path: path.stem)
def network(request):
    return NetworkDenoiser(OnnxEngine(request.param, threads=1))


@pytest.fixture(scope="module")
def live():
    return NetworkDenoiser(OnnxEngine(WEIGHTS / "denoise_live.onnx", threads=1))


def discs(side_px=192, count=60, seed=3):
    """Flat discs of any brightness that cover one another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side_px, :side_px]
    image = np.full((side_px, side_px), 0.5, np.float32)
    for _ in range(count):
        row, column, radius = (*rng.uniform(0, side_px, 2), rng.uniform(6, 40))
        image[np.hypot(y - row, x - column) < radius] = rng.uniform(0.1, 1.0)
    return image


def counted(truth, seed=1):
    return np.random.default_rng(seed).poisson(truth).astype(np.float32)


@pytest.mark.parametrize(("dose_e", "over_db"), [(4.0, 0.8), (60.0, 0.8)])
def test_better_than_what_it_starts_from(network, dose_e, over_db):
    truth = discs() * np.float32(dose_e)
    noisy = counted(truth)
    span = float(np.ptp(truth))
    linear = psnr_db(TwoStepWiener().restore(noisy, COUNTS).image, truth, span)
    answer = network.restore(noisy)  # blind
    assert psnr_db(answer.image, truth, span) > linear + over_db
    assert answer.in_distribution and answer.reason == ""
    assert answer.method == network.name and network.name.startswith("network_")


def test_the_sigma_that_is_said_holds(network):
    truth = discs(256, 90, seed=8) * np.float32(20.0)
    answer = network.restore(counted(truth), COUNTS)
    covered = np.mean(np.abs(answer.image - truth) <= 1.645 * answer.sigma)
    assert 0.82 <= covered <= 0.97


def test_gain_and_offset_do_not_matter(network):
    noisy = counted(discs() * np.float32(30.0))
    plain = network.restore(noisy, COUNTS)
    digital = np.rint(noisy * 12.0 + 500.0).astype(np.uint16)
    scaled = network.restore(digital, NoiseModel(12.0, 500.0, 0.0))
    # Where integers are cut, the last bit of what is shown may move an answer by a whole step.
    room = 0.3 if network.name.endswith("int8") else 0.05
    assert np.abs((scaled.image - 500.0) / 12.0 - plain.image).max() < room
    assert np.allclose(scaled.sigma / 12.0, plain.sigma, rtol=0.02 if room < 0.1 else 0.1)


def test_nothing_is_made_of_noise(network):
    answer = network.restore(counted(np.full((256, 256), 40.0)))
    assert answer.image.std() < 0.06 * np.sqrt(40.0)


def test_tiles_meet_without_a_seam(network, monkeypatch):
    noisy = counted(discs(320, 150) * np.float32(15.0))[:, :300]
    whole = network.restore(noisy, COUNTS)
    monkeypatch.setattr(network_module, "TILE_PX", 96)
    tiled = network.restore(noisy, COUNTS)
    # Integers are rounded alike, but a runtime may add in another order.
    assert np.abs(tiled.image - whole.image).max() < 0.02 * np.sqrt(15.0)
    assert np.allclose(tiled.sigma, whole.sigma, rtol=0.02)


def test_a_margin_too_narrow_would_show(live, monkeypatch):
    noisy = counted(discs(320, 150) * np.float32(15.0))
    whole = live.restore(noisy, COUNTS).image
    monkeypatch.setattr(network_module, "TILE_PX", 96)
    monkeypatch.setattr(network_module, "MARGIN_PX", 0)
    assert np.abs(live.restore(noisy, COUNTS).image - whole).max() > 0.02 * np.sqrt(15.0)


@pytest.mark.parametrize("shape", [(16, 16), (17, 250), (101, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_any_size_and_type(live, shape, dtype):
    frame = counted(np.full(shape, 40.0)).astype(dtype)
    answer = live.restore(frame, COUNTS)
    assert answer.image.shape == shape == answer.sigma.shape
    assert answer.image.dtype == np.float32
    assert np.isfinite(answer.image).all() and (answer.sigma > 0.0).all()


def test_noise_told_pixel_by_pixel(live):
    """Where many frames were averaged, more is believed."""
    assert isinstance(live, MapRestorer) and live.takes_sigma
    truth = discs(256, 90) * np.float32(10.0)
    rng = np.random.default_rng(4)
    share = np.ones_like(truth)
    share[:, 128:] = 0.25
    sigma = np.float32(np.sqrt(5.0)) * share
    noisy = (truth + sigma * rng.standard_normal(truth.shape)).astype(np.float32)
    told = live.restore(noisy, sigma=sigma)
    alike = live.restore(noisy, NoiseModel(0.0, 0.0, float(np.sqrt(np.mean(sigma**2)))))
    quiet = np.s_[:, 140:]

    def error(image):
        return float(np.mean(np.square(image - truth)[quiet]))

    assert error(told.image) < 0.95 * error(alike.image)
    assert told.sigma[quiet].mean() < 0.85 * told.sigma[:, :116].mean()
    with pytest.raises(BadImage, match="sigma"):
        live.restore(noisy, sigma=sigma[:-1])


def test_the_same_frame_has_the_same_answer(live):
    noisy = counted(discs() * np.float32(30.0))
    assert np.array_equal(live.restore(noisy).image, live.restore(noisy).image)


def test_correlated_noise_is_flagged(live):
    noise = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    alike = noise + np.roll(noise, 1, axis=0) + np.roll(noise, 1, axis=1)
    answer = live.restore(alike + 100.0)
    assert not answer.in_distribution and "white" in answer.reason


def test_the_guard_lets_it_pass_and_stands_in(live):
    noisy = counted(discs() * np.float32(30.0))
    assert Guarded(live).restore(noisy).method == live.name

    @dataclasses.dataclass(frozen=True)
    class Inventor:
        """Adds a wave that nobody has seen."""

        name: str = "inventor"

        def restore(self, frame, noise=None):
            answer = live.restore(frame, noise)
            wave = 2.0 * np.sin(np.arange(frame.shape[1]) / 3.0).astype(np.float32)
            return dataclasses.replace(answer, image=answer.image + wave, method=self.name)

    assert Guarded(Inventor()).restore(noisy).method != "inventor"


def test_integers_lose_little():
    for path in MODELS:
        coarse = path.with_name(f"{path.stem}_int8.onnx")
        if not coarse.exists():
            continue
        losses = []
        for dose_e in (4.0, 60.0):
            truth = discs() * np.float32(dose_e)
            span = float(np.ptp(truth))
            fine, rough = (
                psnr_db(
                    NetworkDenoiser(OnnxEngine(each, 1)).restore(counted(truth)).image, truth, span
                )
                for each in (path, coarse)
            )
            losses.append(fine - rough)
        assert np.mean(losses) <= 0.1


class Silent:
    """An engine whose network is another one, or corrects beyond reason."""

    def __init__(self, shape=(-1, CHANNELS, -1, -1), figures=None, correction=0.0):
        self.correction = correction
        self.card = Card(
            name="denoise_silent",
            sha256="0" * 64,
            parameters=1,
            input=Tensor(name="seen", shape=shape, meaning="-"),
            output=Tensor(name="answer", shape=(-1, 2, -1, -1), meaning="-"),
            training_command="",
            training_data="",
            figures={"sigma_factor": 1.0} if figures is None else figures,
            licence="MIT",
        )

    def describe(self):
        return "silent"

    def run(self, array):
        answer = np.zeros((1, 2, 2 * array.shape[2], 2 * array.shape[3]), np.float32)
        answer[:, 0] = self.correction
        return answer


def test_a_silent_network_leaves_the_linear_estimate():
    noisy = counted(discs() * np.float32(30.0))
    answer = NetworkDenoiser(Silent()).restore(noisy, COUNTS)
    linear = TwoStepWiener().restore(noisy, COUNTS)
    assert np.array_equal(answer.image, linear.image)
    assert np.allclose(answer.sigma, linear.sigma)


@pytest.mark.parametrize("correction", [8.0, np.nan])
def test_corrections_beyond_what_was_learnt_are_flagged(correction):
    noisy = counted(discs() * np.float32(30.0))
    answer = NetworkDenoiser(Silent(correction=correction)).restore(noisy, COUNTS)
    assert not answer.in_distribution and "corrects far more" in answer.reason


def test_other_networks_are_refused():
    with pytest.raises(BadModel, match="takes"):
        NetworkDenoiser(Silent(shape=(-1, 3)))
    with pytest.raises(BadModel, match="sigma_factor"):
        NetworkDenoiser(Silent(figures={}))
