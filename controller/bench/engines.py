"""What the networks cost on every engine that is here: milliseconds a batch, medians.

Inputs are random in the shape that the card promises (the time depends on the shape alone): two in
a batch, or one picture whose free sides are 512 px; upload and download are in it. AENet's rows
"two frames" are the whole way from two frames of 256 x 256 px to what it says of them. An engine
that is not here, or does not serve this GPU, is a row without a value that says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from controller import app
from controller.bench.numbers import load, quantile_row
from controller.figures import Row
from controller.settings import InferenceSettings
from inference.api import ModelError
from inference.engine import Engine, load_card
from inference.focus.aenet import AENet
from inference.focus.api import FocusCommand
from inference.tensorrt_engine import profile_for

EngineName: TypeAlias = Literal["tensorrt", "openvino", "onnx"]

_WORDS: Final[dict[EngineName, str]] = {
    "onnx": "onnxruntime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}
_TWO_FRAMES_BAR_MS: Final[dict[EngineName, float]] = {
    "onnx": 15.0,
    "openvino": 15.0,
    "tensorrt": 2.0,
}
_DIFFERENCE_BAR: Final = 1e-3
_FRAME_PX: Final = 256
_LEAST_REPEATS: Final = 3
_MOST_MS_A_REPEAT: Final = 5.0  # on average


def measure(quick: bool, seed: int) -> list[Row]:
    """Every model on every engine."""
    rows: list[Row] = []
    for model in app.models():
        answers: dict[EngineName, npt.NDArray[np.float32]] = {}
        for name in _WORDS:
            rows += _rows(model, name, 50 if quick else 500, seed, answers)
        for name in answers.keys() - {"onnx"}:
            off = float(np.max(np.abs(answers[name] - answers["onnx"])))
            row = f"{model.stem}: {_WORDS[name]}'s answer against onnxruntime's, largest difference"
            rows.append(Row(row, off, "", _DIFFERENCE_BAR, "lower"))
    return rows


def _rows(
    model: Path,
    name: EngineName,
    repeats: int,
    seed: int,
    answers: dict[EngineName, npt.NDArray[np.float32]],
) -> list[Row]:
    """One model on one engine."""
    words = f"{model.stem} on {_WORDS[name]}"
    wanted = InferenceSettings(engine=name)
    card = load_card(model)
    shape = profile_for(card.input).usual
    batch = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    try:
        with TemporaryDirectory(prefix="scopeloop-engines-") as folder:
            first, again = (
                _times_ms(lambda: app.open_engine(model, wanted, cache=Path(folder)), 1)
                for _ in range(2)
            )
            engine = app.open_engine(model, wanted, cache=Path(folder))
        answers[name] = engine.run(batch)
        times_ms = _times_ms(lambda: engine.run(batch), repeats)
    except ModelError as error:
        return [Row(f"{words}, batch of {shape}", None, "ms", better="lower", note=str(error))]
    rows = [
        quantile_row(
            f"{words}, batch of {shape}",
            times_ms,
            0.5,
            "ms",
            note=f"{engine.describe()}; {load()}",
        ),
        quantile_row(f"{words}, p99", times_ms, 0.99, "ms"),
        quantile_row(f"{words}, opened the first time", first, 0.5, "ms"),
        quantile_row(f"{words}, opened again", again, 0.5, "ms"),
    ]
    if model.stem == "aenet":
        bar_ms = _TWO_FRAMES_BAR_MS[name]
        looks_ms = _times_ms(_two_looks(engine, seed), max(20, repeats // 5))
        rows.append(quantile_row(f"{words}, two frames", looks_ms, 0.5, "ms", bar_ms, note=load()))
    return rows


def _two_looks(engine: Engine, seed: int) -> Callable[[], object]:
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.normal(size=(_FRAME_PX, _FRAME_PX)), (0, 0), 1.5)
    frames = [
        np.clip(120.0 + 200.0 * texture + rng.normal(0.0, 5.0, texture.shape), 0, 255).astype(
            np.uint8
        )
        for _ in range(2)
    ]
    network, command = AENet(engine), FocusCommand(0.0)
    return lambda: [network.look(frame, command) for frame in frames]


def _times_ms(work: Callable[[], object], repeats: int) -> list[float]:
    """So many times, fewer of what takes long."""
    times_ms: list[float] = []
    for _ in range(repeats):
        if len(times_ms) >= _LEAST_REPEATS and sum(times_ms) > _MOST_MS_A_REPEAT * repeats:
            break
        began_s = time.perf_counter()
        work()
        times_ms.append((time.perf_counter() - began_s) * 1e3)
    return times_ms
