"""A restoring network in 8-bit integers: the same file with each tensor's range written into it.

The ranges are found by running frames through the network (static quantisation), 99.995 % of all
values kept; weights have a range a channel. The first and the last convolution stay as they are:
few operations, and all that is seen or said passes through them.

The file is for processors. TensorRT wants symmetric ranges and biases in floats, which onnxruntime
runs at less than half the speed: on a GPU the float file is the one to take.

Needs onnx and onnxruntime's tools for files, which run nothing but this.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from inference.engine import Card, card_path, load_card
from inference.training.restore_examples import CleanScene, lesson, noisy_frame

F32 = npt.NDArray[np.float32]

_FRAMES: Final = 64
_KEPT_PERCENT: Final = 99.995


def quantise(model: Path, out: Path, seen: Sequence[F32]) -> Card:
    """Write `out` and its card from a float model; seen: frames as it is shown them, (c, h, w).

    The card's figures are those of the float model.
    """
    tools: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    card = load_card(model)
    with TemporaryDirectory(prefix="scopeloop-") as folder:
        ready = Path(folder) / "ready.onnx"
        with redirect_stdout(StringIO()):  # the tools talk of their progress
            shapes.quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
            tools.quantize_static(
                str(ready),
                str(out),
                _Frames(card.input.name, iter(seen)),
                quant_format=tools.QuantFormat.QDQ,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                per_channel=True,
                calibrate_method=tools.CalibrationMethod.Percentile,
                nodes_to_exclude=_first_and_last(ready),
                extra_options={"CalibPercentile": _KEPT_PERCENT},
            )
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    coarse = card.model_copy(update={"name": out.stem, "sha256": digest, "precision": "int8"})
    write_card(out, coarse)
    return coarse


def calibration(scenes: Sequence[CleanScene], seed: int) -> list[F32]:
    """Frames to find the ranges on, as the network is shown them."""
    found = []
    for number, scene in enumerate(scenes[:: max(len(scenes) // _FRAMES, 1)]):
        rng = np.random.default_rng([seed, 3, number])
        dose_e = math.exp(rng.uniform(math.log(scene.least_e), math.log(scene.most_e)))
        found.append(lesson(noisy_frame(scene.clean(), dose_e, rng, plain=True))[0])
    return found


def write_card(model: Path, card: Card) -> None:
    """Lay a card beside its file."""
    text = json.dumps(card.model_dump(), indent=1)
    card_path(model).write_text(text + "\n", encoding="utf-8")


def _first_and_last(model: Path) -> list[str]:
    onnx: Any = importlib.import_module("onnx")
    nodes = onnx.load(str(model)).graph.node
    names = [str(node.name) for node in nodes if node.op_type == "Conv"]
    return [names[0], names[-1]]


class _Frames:
    """Hands out frames as the tools ask for them."""

    def __init__(self, name: str, frames: Iterator[F32]) -> None:
        self._name = name
        self._frames = frames

    def get_next(self) -> dict[str, F32] | None:
        """The next one; None: no more."""
        frame = next(self._frames, None)
        return None if frame is None else {self._name: frame[None]}
