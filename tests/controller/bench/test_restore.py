"""The restoration bench: what its rows mean, on frames whose answer is known."""

import numpy as np
import pytest

from controller.bench import Report, restore
from controller.bench.restore import Scene, counted, oracle_wiener, scored
from controller.errors import BadSettings
from inference.restore.api import NoiseModel, Restored
from inference.restore.classical import RadialWiener
from simulator.restore_frames import CleanFrame, clean_frame


class Perfect:
    """Knows the truth, and how far off it says to be."""

    name = "network_perfect"
    takes_sigma = True

    def __init__(self, off=0.0, said=1.0):
        self.off, self.said = off, said
        self.truth = None

    def restore(self, frame, noise=None, sigma=None):
        rng = np.random.default_rng(1)
        level = np.full(frame.shape, frame.mean()) if self.truth is None else self.truth
        image = level + self.off * rng.standard_normal(frame.shape)
        said = np.full(frame.shape, self.said, np.float32)
        return Restored(image.astype(np.float32), said, True, self.name, "")


@pytest.fixture
def scene():
    return counted(clean_frame(1, 0, "test", family="surface", side_px=128), 20.0, 1)


def test_counts_are_those_of_the_dose(scene):
    assert scene.noisy.mean() == pytest.approx(scene.truth.mean(), rel=0.02)
    again = counted(clean_frame(1, 0, "test", family="surface", side_px=128), 20.0, 1)
    assert np.array_equal(scene.noisy, again.noisy)


def test_the_oracle_beats_what_estimates_the_same(scene):
    scores = scored([scene], [RadialWiener()])
    assert scores["oracle_wiener"].mean_db > scores["radial_wiener"].mean_db + 1.0
    rest = oracle_wiener(scene) - scene.truth
    assert abs(float(rest.mean())) < 0.1


def test_only_networks_have_bars(scene):
    network = Perfect()
    network.truth = scene.truth
    scores = scored([scene], [RadialWiener(), network])
    rows = {row.name: row for row in restore._rows("x", scores, [network], 30.0, 0.9)}
    assert rows["x, radial_wiener"].bar is None
    assert rows["x, network_perfect"].met and rows["x, network_perfect"].value == np.inf
    assert rows["x, network_perfect, SSIM"].met
    assert rows["x, network_perfect"].baseline == rows["x, radial_wiener"].value


@pytest.mark.parametrize(("said", "met"), [(1.0, True), (0.5, False), (3.0, False)])
def test_intervals_are_counted(said, met, monkeypatch):
    """An error of one standard deviation, said rightly, too small, too large."""
    network = Perfect(off=1.0, said=said)
    truth = np.full((64, 64), 40.0, np.float32)

    def one(*_):
        return Scene(np.random.default_rng(1).poisson(truth).astype(np.float32), truth)

    monkeypatch.setattr(restore, "counted", one)
    monkeypatch.setattr(restore, "_micrographs", lambda at_most: [])
    rows = {row.name: row for row in restore._covered_rows(network, 1, 1)}
    assert rows["network_perfect, 90 % on graphene: off by"].met is met


def test_what_is_made_of_noise_is_measured():
    quiet, loud = (restore._nothing_rows(Perfect(off=off), 1, 1)[0].value for off in (0.0, 5.0))
    assert quiet < 1e-6 < 0.1 < loud


def test_without_data_and_without_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("SCOPELOOP_DATA", str(tmp_path))
    monkeypatch.setattr(restore.app, "models", lambda: ())
    rows = restore.measure_with(True, 1, Report(only=("micrographs", "speed")))
    notes = {row.name: row.note for row in rows}
    assert "SCOPELOOP_DATA" in notes["micrographs"]
    assert notes["512 px, denoise_live, OpenVINO int8"] == "no denoise_live_int8.onnx here"
    assert "scopeloop train restore" in notes["networks"]
    speeds = {row.name: row.value for row in rows}
    assert speeds["512 px, whole way, radial_wiener"] > 0.0


def test_real_frames_are_judged_by_stein(shared_data):
    network = Perfect()
    rows = {row.name: row for row in restore.micrograph_rows([network], 1)}
    # A mean instead of the frame is far below any filter, and the guard does not show it.
    assert rows["micrographs, network_perfect over the best, worst"].met is False
    assert rows["micrographs, network_perfect, guarded over the best, worst"].met


def test_a_part_that_is_none():
    with pytest.raises(BadSettings, match="graphene"):
        restore.measure_with(True, 1, Report(only=("graphite",)))


def test_the_rival_is_the_transform_and_back():
    asked = []

    def bm3d(frame, sigma):
        asked.append(sigma)
        return frame

    frame = np.random.default_rng(1).poisson(50.0, (64, 64)).astype(np.float32)
    answer = restore.VstBm3d(bm3d).restore(frame, NoiseModel(1.0, 0.0, 0.0))
    assert asked == [1.0]
    assert answer.image.mean() == pytest.approx(50.0, abs=0.5)


def test_a_clean_frame_is_counted_where_its_level_is_one():
    frame = CleanFrame("surface", "flat", np.ones((64, 64), np.float32), 10.0)
    assert counted(frame, 9.0, 1).truth.mean() == pytest.approx(9.0)
