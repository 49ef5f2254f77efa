import hashlib
import json

import pytest

from inference.api import BadModel
from inference.engine import Card, Tensor, card_path, check_shape, load_card


def _card(content: bytes) -> Card:
    return Card(
        name="m",
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=3,
        input=Tensor(name="x", shape=(-1, 4), meaning="four"),
        output=Tensor(name="y", shape=(-1, 1), meaning="one"),
        training_command="none",
        training_data="none",
        figures={"error": 0.1},
        licence="MIT",
    )


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"weights")
    card_path(path).write_text(json.dumps(_card(b"weights").model_dump()))
    return path


def test_reads_a_card(model):
    assert load_card(model) == _card(b"weights")


def test_file_and_card_must_agree(model):
    model.write_bytes(b"other weights")
    with pytest.raises(BadModel, match="hash"):
        load_card(model)


@pytest.mark.parametrize("text", ["", "{}", '{"name": "m", "extra": 1}', "[1]"])
def test_nonsense_is_no_card(model, text):
    card_path(model).write_text(text)
    with pytest.raises(BadModel, match="not a card"):
        load_card(model)


def test_a_missing_card_is_named(model):
    card_path(model).unlink()
    with pytest.raises(BadModel, match=r"m\.card\.json"):
        load_card(model)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 4, 1)])
def test_shapes_are_checked(shape):
    with pytest.raises(BadModel, match="must be"):
        check_shape(_card(b"").input, shape)
    check_shape(_card(b"").input, (7, 4))
