"""Networks on the processor, by OpenVINO: the only file that imports it.

It earns its place where arithmetic may be coarse: bfloat16, or integers that the model file itself
asks for, take a third to a half of float32's time on a processor that has them; at float32 it is
no faster than onnxruntime. So the card says what a model bears, and it is always said to OpenVINO:
left alone, it takes bfloat16 in silence wherever the processor can.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from inference.api import BadModel, NoEngine
from inference.engine import Card, Precision, check_shape, load_card

Package: TypeAlias = Any  # openvino: its types are those of a compiled module

_HINTS: Final[dict[Precision, str]] = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


def find_package() -> Package:
    """The runtime. Raises NoEngine, saying what to install."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        message = "openvino is not installed: pip install 'scopeloop[openvino]'"
        raise NoEngine(message) from error


def openvino_here() -> str:
    """Release and processor. Raises NoEngine, saying what is missing."""
    package = find_package()
    core = package.Core()
    if "CPU" not in core.available_devices:
        message = "openvino finds no processor that it serves"
        raise NoEngine(message)
    name = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
    return f"{package.__version__.split('-')[0]}, {name}"


class OpenVinoEngine:
    """One ONNX file on the processor; an `Engine`."""

    def __init__(
        self, model: Path, threads: int = 0, *, precision: Precision | None = None
    ) -> None:
        """Load and check `model`; threads 0: all cores but one.

        precision: of the arithmetic; None: the card's, float32 where the processor has no other.
        Raises BadModel if file and card disagree, NoEngine without openvino.
        """
        package = find_package()
        self._card = load_card(model)
        core = package.Core()
        able = set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        wanted = precision or self._card.precision
        if wanted == "bfloat16" and "BF16" not in able:
            wanted = "float32"
        self._precision: Precision = wanted
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            "INFERENCE_NUM_THREADS": threads or max(1, (os.cpu_count() or 2) - 1),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # Pinned threads would fight over one core with whatever else is pinned to it.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            network = core.read_model(str(model))
            self._compiled: Any = core.compile_model(network, "CPU", settings)
        except Exception as error:
            message = f"openvino cannot load {model.name}: {error}"
            raise BadModel(message) from error
        names = (
            [found.any_name for found in self._compiled.inputs],
            [found.any_name for found in self._compiled.outputs],
        )
        if names != ([self._card.input.name], [self._card.output.name]):
            message = f"{model.name} has tensors {names}, its card says others"
            raise BadModel(message)
        self._request: Any = self._compiled.create_infer_request()
        self._version = package.__version__.split("-")[0]

    @property
    def card(self) -> Card:
        """What the file promises."""
        return self._card

    def describe(self) -> str:
        """Model, runtime, device and precision."""
        return f"{self._card.name}, OpenVINO {self._version}, CPU, {self._precision}"

    def run(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Answer for one batch. Raises BadModel if shapes are not those of the card."""
        check_shape(self._card.input, array.shape)
        fed = np.ascontiguousarray(array, dtype=np.float32)
        answer = self._request.infer({0: fed}, share_inputs=True)[0]
        # A copy: the runtime writes the next answer into the same memory.
        result = np.array(answer, dtype=np.float32)
        check_shape(self._card.output, result.shape)
        return result
