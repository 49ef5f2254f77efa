"""What runs a network: a card says what a file promises, an engine keeps the promise.

A card lies beside every ONNX file and is checked before a number is believed: the file's hash, the
names, shapes and units of inputs and outputs, how it was trained, what it measured, its licence.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.api import BadModel

# int8: the file itself says which numbers are integers; the others are float32.
Precision: TypeAlias = Literal["float32", "bfloat16", "int8"]


class Tensor(BaseModel):
    """One input or output; -1 is a free (batch) dimension."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1)
    shape: tuple[int, ...] = Field(min_length=1)
    meaning: str = Field(min_length=1)  # each number and its unit


class Card(BaseModel):
    """What a model file promises."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    parameters: int = Field(ge=1, le=10_000_000_000)
    input: Tensor
    output: Tensor
    training_command: str
    training_data: str
    figures: dict[str, float]
    licence: str
    # The coarsest arithmetic that its own figures were seen to bear.
    precision: Precision = "float32"


class Engine(Protocol):
    """Runs one network on one device. Called from one thread at a time."""

    @property
    def card(self) -> Card:
        """What the file promises."""
        ...

    def describe(self) -> str:
        """Model, runtime, device and precision, for the record."""
        ...

    def run(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Answer for one batch. Raises BadModel if shapes are not those of the card."""
        ...


def card_path(model: Path) -> Path:
    """Where a model's card lies: model.onnx -> model.card.json."""
    return model.with_suffix(".card.json")


def load_card(model: Path) -> Card:
    """Read a model's card and check the file against it. Raises BadModel."""
    path = card_path(model)
    try:
        text = path.read_text(encoding="utf-8")
        content = model.read_bytes()
    except OSError as error:
        message = f"cannot read {error.filename}: {error.strerror}"
        raise BadModel(message) from error
    try:
        card = Card.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        message = f"{path.name} is not a card: {error}"
        raise BadModel(message) from error
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        message = f"{model.name} has hash {found[:12]}, its card says {card.sha256[:12]}"
        raise BadModel(message)
    return card


def check_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise BadModel where an array has not the shape a card promises."""
    fits = len(shape) == len(tensor.shape) and all(
        want in (-1, got) for want, got in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        message = f"{tensor.name} must be {tensor.shape}, got {shape}"
        raise BadModel(message)
