"""Networks on the processor, by onnxruntime: the only file that imports it.

One core is left to the acquisition, and the runtime's threads do not spin while they wait: a
spinning pool takes a core from the frame path for nothing.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from inference.api import BadModel, NoEngine
from inference.engine import Card, check_shape, load_card

Package: TypeAlias = Any  # onnxruntime, which has no types


def find_package() -> Package:
    """The runtime. Raises NoEngine, saying what to install."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        message = "onnxruntime is not installed: pip install onnxruntime"
        raise NoEngine(message) from error


def onnxruntime_here() -> str:
    """Release and device. Raises NoEngine, saying what is missing."""
    return f"{find_package().__version__}, CPU"


class OnnxEngine:
    """One ONNX file on the processor; an `Engine`."""

    def __init__(self, model: Path, threads: int = 0) -> None:
        """Load and check `model`; threads 0: all cores but one.

        Raises BadModel if file and card disagree, NoEngine without onnxruntime.
        """
        onnxruntime = find_package()
        self._card = load_card(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or max(1, (os.cpu_count() or 2) - 1)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            message = f"onnxruntime cannot load {model.name}: {error}"
            raise BadModel(message) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        names = ([i.name for i in inputs], [o.name for o in outputs])
        if names != ([self._card.input.name], [self._card.output.name]):
            message = f"{model.name} has tensors {names}, its card says others"
            raise BadModel(message)
        self._version = str(onnxruntime.__version__)

    @property
    def card(self) -> Card:
        """What the file promises."""
        return self._card

    def describe(self) -> str:
        """Model, runtime, device and precision."""
        return f"{self._card.name}, onnxruntime {self._version}, CPU, float32"

    def run(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Answer for one batch. Raises BadModel if shapes are not those of the card."""
        check_shape(self._card.input, array.shape)
        fed = np.ascontiguousarray(array, dtype=np.float32)
        (answer,) = self._session.run(None, {self._card.input.name: fed})
        result = np.asarray(answer, dtype=np.float32)
        check_shape(self._card.output, result.shape)
        return result
