"""FlakeNet's joining of physics and network, with networks made by hand in place of the trained."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import inference.flakes.flakenet as flakenet
from inference.api import BadImage, BadModel, Calibration
from inference.engine import Card, Tensor, load_card
from inference.flakes.belief import physics_beliefs
from inference.flakes.calibration import SubstrateCalibration, nominal_calibration
from inference.flakes.evidence import CLASSES, PLANES
from inference.flakes.flakenet import FlakeNetDetector, detector_that_leads
from inference.flakes.ladder import Optics, ladder
from inference.flakes.microscope import Microscope, save_microscope
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector
from inference.flakes.proposals import decoded
from inference.onnx_engine import OnnxEngine

OUTPUTS = 4 * len(CLASSES) + 5
NOMINAL = Calibration(90.0, (1.0, 1.0, 1.0), 0.0, "nominal")
SETTINGS = DetectorSettings(min_area_um2=25.0)
PIXEL_NM = 384.0
WEIGHTS = Path(flakenet.__file__).parent.parent / "weights" / "flakenet.onnx"


class ByEvidence:
    """A network that believes the ladder's nearest rung, and nothing that is far from all."""

    def __init__(self, oddity=-1.0, broken=None):
        self.oddity, self.broken, self.seen = oddity, broken, []

    @property
    def card(self):
        shape = (-1, PLANES, -1, -1)
        tensor = Tensor(name="evidence", shape=shape, meaning="as the trained one's")
        answer = Tensor(name="answer", shape=(-1, OUTPUTS, -1, -1), meaning="likewise")
        return Card(
            name="by hand", sha256="0" * 64, parameters=1, input=tensor, output=answer,
            training_command="", training_data="", figures={}, licence="MIT",
        )  # fmt: skip

    def describe(self):
        return "by hand"

    def run(self, array):
        self.seen.append(array.shape)
        _, _, rows, columns = array.shape
        answer = np.full((1, OUTPUTS, rows, columns), -8.0, dtype=np.float32)
        logits = answer[0, : 4 * len(CLASSES)].reshape(4, len(CLASSES), rows, columns)
        logits[:, :7] = -12.0 * array[0, 15:22]
        logits[:, 7] = -8.0
        answer[0, -1] = self.oddity
        if self.broken == "nan":
            answer[0, 0, 0, 0] = np.nan
        return answer[:, :-1] if self.broken == "shape" else answer


def painted(squares, shape=(384, 512), noise=0.7, seed=1):
    """Squares of graphene, (x, y, side, layers), on bare substrate."""
    steps = ladder("graphene", NOMINAL, Optics())
    image = np.ones((*shape, 3)) * np.array([150.0, 120.0, 140.0])
    for x, y, side, layers in squares:
        image[y : y + side, x : x + side] *= 1.0 + steps.at(layers)
    image += np.random.default_rng(seed).normal(0.0, noise, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


SQUARES = [(60, 60, 40, 1), (200, 80, 48, 2), (330, 200, 36, 3), (100, 250, 44, 4)]


def test_finds_what_was_painted():
    answer = FlakeNetDetector(ByEvidence(), SETTINGS).detect(painted(SQUARES), PIXEL_NM)
    assert answer.in_distribution
    assert len(answer.detections) == len(SQUARES)
    for x, y, side, layers in SQUARES:
        middle = x + side / 2, y + side / 2
        (found,) = [
            d for d in answer.detections
            if abs(d.centroid_x_px - middle[0]) < 3 and abs(d.centroid_y_px - middle[1]) < 3
        ]  # fmt: skip
        assert found.layers == layers
        assert found.layer_probabilities[0][0] == layers
        assert 0.9 < sum(p for _, p in found.layer_probabilities) <= 1.0 + 1e-5
        assert found.area_px == pytest.approx(side * side, rel=0.15)
        assert found.material == "graphene"
        assert 0.0 <= found.score <= 1.0


def test_detections_are_ranked_and_apart():
    found = FlakeNetDetector(ByEvidence(), SETTINGS).detect(painted(SQUARES), PIXEL_NM).detections
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    covered = np.zeros((384, 512), dtype=int)
    for d in found:
        h, w = d.mask.shape
        covered[d.box_y_px : d.box_y_px + h, d.box_x_px : d.box_x_px + w] += d.mask
    assert covered.max() == 1


def test_same_image_same_answer():
    detector = FlakeNetDetector(ByEvidence(), SETTINGS)
    one, two = (detector.detect(painted(SQUARES), PIXEL_NM) for _ in range(2))
    assert [d.score for d in one.detections] == [d.score for d in two.detections]


def test_an_odd_frame_is_left_to_physics_and_flagged():
    image = painted(SQUARES)
    view = FlakeNetDetector(ByEvidence(oddity=5.5), SETTINGS).view(image, PIXEL_NM)
    physics = PhysicsDetector(SETTINGS).detect(image, PIXEL_NM)
    assert view.is_physics
    assert view.oddity == pytest.approx(2.0)
    assert not view.answer.in_distribution
    assert "physics only" in view.answer.reason
    assert [d.score for d in view.answer.detections] == [d.score for d in physics.detections]


def test_without_a_substrate_the_network_is_not_asked():
    engine = ByEvidence()
    black = np.zeros((256, 256, 3), dtype=np.uint8)
    view = FlakeNetDetector(engine, SETTINGS).view(black, PIXEL_NM)
    assert view.is_physics
    assert not view.answer.in_distribution
    assert engine.seen == []


def test_a_picture_without_colour_is_refused():
    grey = painted(SQUARES)
    grey[..., 0] = grey[..., 2] = grey[..., 1]
    view = FlakeNetDetector(ByEvidence(), SETTINGS).view(grey, PIXEL_NM)
    assert view.is_physics
    assert not view.answer.in_distribution
    assert "no colour" in view.answer.reason


def test_a_calibrated_ladder_leads():
    """Masks and layers stay the physics'; the network lowers scores and adds what it is sure of."""
    image = painted(SQUARES)
    sure = Calibration(90.0, (1.0, 1.0, 1.0), 0.9, "fitted")
    alone = PhysicsDetector(SETTINGS, sure).detect(image, PIXEL_NM).detections
    detector = FlakeNetDetector(ByEvidence(), SETTINGS, sure, beliefs=physics_beliefs())
    joint = detector.detect(image, PIXEL_NM).detections
    assert len(joint) == len(alone)
    for one, two in zip(alone, joint, strict=True):
        assert np.array_equal(one.mask, two.mask)
        assert one.layer_probabilities == two.layer_probabilities
        assert (one.source, two.source) == ("", "physics")
        assert 0.3 * one.score <= two.score <= one.score


@pytest.mark.parametrize(
    ("confidences", "leads"),
    [((), FlakeNetDetector), ((0.9, 0.8), PhysicsDetector), ((0.9, 0.1), FlakeNetDetector)],
)
def test_the_physics_leads_where_every_calibration_holds(confidences, leads):
    nominal = nominal_calibration(90.0)
    fits = [replace(nominal, confidence=c) for c in confidences]
    wafers = [SubstrateCalibration((80.0, 80.0, 120.0), fit) for fit in fits]
    engine = ByEvidence()
    assert isinstance(detector_that_leads(engine, DetectorSettings(), wafers), leads)
    one = detector_that_leads(engine, DetectorSettings(), fits[0] if fits else None)
    assert isinstance(one, PhysicsDetector if fits else FlakeNetDetector)


def test_a_saved_microscope_is_read_as_the_physics_reads_it(tmp_path):
    """Its wafers by the substrate's colour; what looks like none of them, by the nominal oxide."""
    image = painted(SQUARES)
    fit = Calibration(90.0, (1.0, 1.0, 1.0), 0.9, "fitted")
    wafer = SubstrateCalibration((150.0, 120.0, 140.0), fit)
    path = tmp_path / "microscope.json"
    save_microscope(path, Microscope(wafers=(wafer,)))
    saved = SETTINGS.model_copy(update={"calibration": str(path)})
    detector = FlakeNetDetector(ByEvidence(), saved)
    assert isinstance(detector_that_leads(ByEvidence(), saved), FlakeNetDetector)
    assert detector.detect(image, PIXEL_NM).calibration.confidence == 0.9
    other = image.copy()
    other[..., 0] //= 2
    answer = detector.detect(other, PIXEL_NM)
    assert answer.calibration.confidence == 0.0
    assert answer.in_distribution


def test_dirt_is_no_flake():
    class AllDirt(ByEvidence):
        def run(self, array):
            answer = super().run(array)
            rows, columns = array.shape[2:]
            logits = answer[0, : 4 * len(CLASSES)].reshape(4, len(CLASSES), rows, columns)
            logits[:, 7] = np.where(np.abs(array[0, 15]) > 0.5, 20.0, -20.0)
            return answer

    image = painted(SQUARES)
    assert PhysicsDetector(SETTINGS).detect(image, PIXEL_NM).detections
    view = FlakeNetDetector(AllDirt(), SETTINGS).view(image, PIXEL_NM)
    assert view.answer.detections == ()
    assert view.dirt_share > 0.02


def test_the_networks_own_regions_are_found():
    """A faint terrace that the physics' gradients and thresholds pass over."""
    faint = painted([(150, 120, 90, 0)])
    ys, xs = slice(120, 210), slice(150, 240)

    class SeesIt(ByEvidence):
        def run(self, array):
            answer = super().run(array)
            rows, columns = array.shape[2:]
            logits = answer[0, : 4 * len(CLASSES)].reshape(4, len(CLASSES), rows, columns)
            logits[:, 1, ys.start // 4 : ys.stop // 4, xs.start // 4 : xs.stop // 4] = 30.0
            return answer

    assert PhysicsDetector(SETTINGS).detect(faint, PIXEL_NM).detections == ()
    (found,) = FlakeNetDetector(SeesIt(), SETTINGS).detect(faint, PIXEL_NM).detections
    assert found.layers == 1
    assert found.source == "network"
    assert found.centroid_x_px == pytest.approx(193.5, abs=2.5)
    assert found.centroid_y_px == pytest.approx(163.5, abs=2.5)
    assert found.mask.shape == pytest.approx((88, 88), abs=5)


@pytest.mark.parametrize("broken", ["nan", "shape"])
def test_a_broken_network_is_refused(broken):
    with pytest.raises(BadModel):
        FlakeNetDetector(ByEvidence(broken=broken), SETTINGS).detect(painted(SQUARES), PIXEL_NM)


def test_not_an_image():
    with pytest.raises(BadImage):
        FlakeNetDetector(ByEvidence(), SETTINGS).detect(np.zeros((200, 200)), PIXEL_NM)


def test_every_material_is_asked_for_once():
    engine = ByEvidence()
    settings = DetectorSettings(materials=("graphene", "hbn"))
    FlakeNetDetector(engine, settings).detect(painted(SQUARES), PIXEL_NM)
    assert len(engine.seen) == 2


def test_decoding_puts_the_four_pixels_in_their_places():
    answer = np.zeros((OUTPUTS, 8, 8), dtype=np.float32)
    logits = answer[: 4 * len(CLASSES)].reshape(4, len(CLASSES), 8, 8)
    logits[:, 0] = 10.0
    for k, layers in enumerate((1, 2, 3, 4)):
        logits[k, layers, 3, 5] = 20.0
    answer[-1] = 0.25
    found = decoded(answer, 16, 16)
    assert found.best[6:8, 10:12].tolist() == [[1, 2], [3, 4]]
    assert np.count_nonzero(found.best) == 4
    assert found.oddity == pytest.approx(0.25)
    where = np.array([6, 7, 0]), np.array([11, 10, 0])
    assert found.border(*where).tolist() == [0.5, 0.5, 0.0]
    shares = np.stack([found.share(number, *where) for number in range(len(CLASSES))], axis=1)
    assert found.plane(4, slice(6, 8), slice(10, 12))[1, 1] > 0.99
    assert shares[0, 2] > 0.99
    assert shares[1, 3] > 0.99
    assert shares[2, 0] == 1.0
    assert np.allclose(shares.sum(axis=1), 1.0)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no trained weights in the tree")
def test_card_and_weights_agree():
    card = load_card(WEIGHTS)
    assert card.input.shape == (-1, PLANES, -1, -1)
    assert card.output.shape == (-1, OUTPUTS, -1, -1)
    assert card.parameters <= 3_000_000


@pytest.fixture(scope="module")
def trained():
    if not WEIGHTS.exists():
        pytest.skip("no trained weights in the tree")
    return OnnxEngine(WEIGHTS, threads=1)


def test_the_trained_network_finds_what_was_painted(trained):
    """Painted by another hand than its training's, and under half a pixel of blur."""
    image = cv2.GaussianBlur(painted(SQUARES), (0, 0), 0.8)
    view = FlakeNetDetector(trained, SETTINGS).view(image, PIXEL_NM)
    assert not view.is_physics
    found = [d for d in view.answer.detections if d.score > 0.5]
    assert len(found) == len(SQUARES)
    for x, y, side, layers in SQUARES:
        (one,) = [d for d in found if x < d.centroid_x_px < x + side]
        assert one.centroid_y_px == pytest.approx(y + side / 2, abs=2)
        assert one.area_px == pytest.approx(side * side, rel=0.15)
        assert one.layers == layers


def test_the_trained_network_finds_nothing_on_bare_substrate(trained):
    for seed in range(3):
        view = FlakeNetDetector(trained, SETTINGS).view(painted([], seed=seed), PIXEL_NM)
        assert view.answer.detections == ()


def rgb(path: Path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_the_trained_network_knows_chips_from_other_micrographs(trained, shared_data):
    detector = FlakeNetDetector(trained, SETTINGS)
    chips = sorted((shared_data / "flakes" / "unmasked").glob("*.jpg"))[:3]
    others = sorted((shared_data / "micrographs" / "sem_superalloy").glob("*.png"))[:3]
    familiar = [detector.view(rgb(p)[:768, :1024], PIXEL_NM).oddity for p in chips]
    strange = [detector.view(rgb(p), PIXEL_NM).oddity for p in others]
    assert max(familiar) < 0.0 < min(strange)
