"""FlakeNet's training in miniature; needs torch, which running never does."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install scopeloop[train]")
pytest.importorskip("onnx", reason="onnx is not installed: pip install scopeloop[train]")

from inference.api import Calibration  # noqa: E402
from inference.flakes.background import Background, shrunk_half  # noqa: E402
from inference.flakes.evidence import PLANES, evidence, rungs  # noqa: E402
from inference.flakes.ladder import Optics  # noqa: E402
from inference.onnx_engine import OnnxEngine  # noqa: E402
from inference.training.flake_examples import IGNORED, Example  # noqa: E402
from inference.training.flakes import (  # noqa: E402
    _ACROSS,
    _DOWN,
    _TURNED,
    OUTPUTS,
    FlakeNetModule,
    Recipe,
    _by_four,
    _permuted,
    train,
)

NOMINAL = Calibration(90.0, (1.0, 1.0, 1.0), 0.0, "nominal")


def shown(image):
    coarse = np.full((image.shape[0] // 16, image.shape[1] // 16, 3), 128.0, dtype=np.float32)
    even = Background(coarse, image.shape[:2], (128.0, 128.0, 128.0), 1.0, 0.0, "")
    steps = rungs("graphene", NOMINAL, Optics())
    return torch.from_numpy(evidence(shrunk_half(image), even, steps, 255.0)[None])


@pytest.mark.parametrize(
    ("turn", "order", "axes"),
    [
        (lambda a: a[:, ::-1], _ACROSS, "across"),
        (lambda a: a[::-1], _DOWN, "down"),
        (lambda a: a.transpose(1, 0, 2), _TURNED, "turned"),
    ],
)
def test_a_flipped_photograph_has_flipped_evidence(turn, order, axes):
    """Otherwise augmented crops would teach that left is right."""
    image = np.random.default_rng(1).integers(90, 160, (128, 128, 3)).astype(np.uint8)
    wanted = shown(np.ascontiguousarray(turn(image)))
    plain = shown(image)
    flipped = {"across": plain.flip(3), "down": plain.flip(2), "turned": plain.transpose(2, 3)}
    got = _permuted(flipped[axes], order)
    assert torch.allclose(got[:, :31], wanted[:, :31], atol=2e-3)


def test_four_labels_of_a_place():
    labels = torch.arange(16).reshape(1, 1, 4, 4)
    assert _by_four(labels)[0, 0, :, 0, 0].tolist() == [0, 1, 4, 5]


def example(number: int, *, is_strange: bool = False) -> Example:
    """Squares whose class stands in one plane of the evidence."""
    rng = np.random.default_rng(number)
    planes = rng.integers(-20, 20, (PLANES, 64, 64)).astype(np.int8)
    classes = np.zeros((128, 128), dtype=np.uint8)
    planes[15:22] = 100
    planes[15] = 0
    for _ in range(6):
        y, x, k = (int(v) for v in rng.integers((0, 0, 1), (48, 48, 7)))
        classes[2 * y : 2 * y + 32, 2 * x : 2 * x + 32] = k
        planes[15:22, y : y + 16, x : x + 16] = 100
        planes[15 + k, y : y + 16, x : x + 16] = 0
    if is_strange:
        classes[:] = IGNORED
        planes = rng.integers(-127, 127, (PLANES, 64, 64)).astype(np.int8)
    full = np.full((128, 128), 16, dtype=np.uint8)
    return Example(planes, classes, np.zeros_like(classes), full, is_strange)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    done = []
    card = train(
        (example(k, is_strange=k % 5 == 0) for k in range(20)),
        (example(100 + k, is_strange=k % 3 == 0) for k in range(9)),
        out,
        Recipe(steps=200, batch=4, crop=48, rate=1e-2),
        report=lambda *step: done.append(step[:2]),
    )
    return card, out, done


def test_it_learns(trained):
    card, _, done = trained
    assert card.figures["iou_substrate"] > 0.8
    assert card.figures["iou_2"] > 0.5
    assert card.figures["odd_auroc"] > 0.9
    assert card.parameters <= 3_000_000
    assert done == [(100, 200), (200, 200)]


def test_the_file_answers_as_the_card_says(trained):
    card, out, _ = trained
    engine = OnnxEngine(out / "flakenet.onnx", threads=1)
    for rows, columns in ((64, 64), (40, 96)):
        answer = engine.run(np.zeros((2, PLANES, rows, columns), dtype=np.float32))
        assert answer.shape == (2, OUTPUTS, rows, columns)
        assert np.isfinite(answer).all()
    assert card.output.shape[1] == OUTPUTS


def test_the_same_seed_gives_the_same_network(tmp_path):
    digests = set()
    for name in ("one", "two"):
        held_out = [example(50), example(51, is_strange=True)]
        card = train([example(1), example(2)], held_out, tmp_path / name, Recipe.quick())
        digests.add(card.sha256)
    assert len(digests) == 1


def test_nothing_to_learn_from_is_said(tmp_path):
    with pytest.raises(ValueError, match="not one example"):
        train([], [], tmp_path)


def test_parameters():
    assert sum(p.numel() for p in FlakeNetModule().parameters()) < 500_000
