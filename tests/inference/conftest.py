"""A machine with a GPU, as far as an engine can tell: driver and TensorRT in host memory."""

import ctypes
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from inference.engine import Card, Tensor, card_path


class FakeDriver:
    """The driver's words over ordinary memory; `broken` names words that answer with error 700."""

    def __init__(self, broken=()):
        self.kept = {}
        self.done = []
        self.thread = threading.local()
        self.pending = []  # downloads, until somebody waits for them
        for name in vars(FakeDriver):
            if name.startswith("cu"):
                setattr(self, name, self._word(name, broken))

    def _word(self, name, broken):
        def word(*arguments):  # a function of its own, as ctypes' are: it takes `argtypes`
            self.done.append(name)
            return 700 if name in broken else getattr(type(self), name)(self, *arguments) or 0

        return word

    def _memory(self, out, size_bytes):
        cells = ctypes.create_string_buffer(size_bytes)
        out._obj.value = ctypes.addressof(cells)
        self.kept[out._obj.value] = cells

    def cuInit(self, flags):  # noqa: N802
        return 0

    def cuDriverGetVersion(self, out):  # noqa: N802
        out._obj.value = 13_010

    def cuDeviceGet(self, out, number):  # noqa: N802
        out._obj.value = number

    def cuDeviceGetName(self, text, room, device):  # noqa: N802
        text.value = b"Fake GPU"

    def cuDeviceGetAttribute(self, out, attribute, device):  # noqa: N802
        out._obj.value = {75: 9, 76: 0}[attribute]

    def cuDeviceTotalMem_v2(self, out, device):  # noqa: N802
        out._obj.value = 1 << 34

    def cuDevicePrimaryCtxRetain(self, out, device):  # noqa: N802
        out._obj.value = 11

    def cuCtxSetCurrent(self, context):  # noqa: N802
        assert context.value == 11
        self.thread.is_current = True

    def cuStreamCreate(self, out, flags):  # noqa: N802
        assert flags == 1
        out._obj.value = 12

    def cuStreamSynchronize(self, stream):  # noqa: N802
        assert stream.value == 12
        while self.pending:
            ctypes.memmove(*self.pending.pop(0))

    def cuMemAlloc_v2(self, out, size_bytes):  # noqa: N802
        self._memory(out, size_bytes)

    def cuMemHostAlloc(self, out, size_bytes, flags):  # noqa: N802
        self._memory(out, size_bytes)

    def cuMemFree_v2(self, address):  # noqa: N802
        del self.kept[address]

    def cuMemFreeHost(self, address):  # noqa: N802
        del self.kept[address]

    def cuMemcpyHtoDAsync_v2(self, to, source, size_bytes, stream):  # noqa: N802
        if not hasattr(self.thread, "is_current"):
            return 201
        return ctypes.memmove(to, source, size_bytes) and 0

    def cuMemcpyDtoHAsync_v2(self, to, source, size_bytes, stream):  # noqa: N802
        self.pending.append((to, source, size_bytes))

    def cuGetErrorString(self, status, out):  # noqa: N802
        out._obj.value = b"an illegal memory access"


class FakeRTX:
    """`tensorrt_rtx` for one network, y = 2 x, (n, 4) -> (n, 4), with a count of what was done."""

    __name__ = "tensorrt_rtx"
    __version__ = "9.9"
    float32 = "float32"
    BuilderFlag = SimpleNamespace(TF32="TF32")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0)
    EngineValidity = SimpleNamespace(VALID="valid")
    IRuntimeCache = object
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

    def __init__(self):
        self.built = 0
        self.kernels = []
        self.is_understood = self.is_run = self.is_served = True
        self.answer_columns = 4

    def Builder(self, log):  # noqa: N802
        self.log = log
        config = SimpleNamespace(clear_flag=lambda _: None, add_optimization_profile=lambda _: None)
        tensor = SimpleNamespace(dtype="float32", shape=(-1, 4))
        return SimpleNamespace(
            create_network=lambda _: SimpleNamespace(
                num_inputs=1,
                num_outputs=1,
                get_input=lambda _: SimpleNamespace(name="x", **vars(tensor)),
                get_output=lambda _: SimpleNamespace(name="y", **vars(tensor)),
            ),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *_: None),
            build_serialized_network=self._build,
        )

    def OnnxParser(self, network, log):  # noqa: N802
        error = SimpleNamespace(desc=lambda: "no such operator: Frobnicate")
        return SimpleNamespace(
            parse=lambda _: self.is_understood, num_errors=1, get_error=lambda _: error
        )

    def _build(self, network, config):
        self.built += 1
        return b"plan"

    def Runtime(self, log):  # noqa: N802
        return SimpleNamespace(
            deserialize_cuda_engine=self._engine,
            get_engine_validity=lambda plan: ("valid" if plan == b"plan" else "invalid", 0),
        )

    def _engine(self, plan):
        if not self.is_served:
            self.log.log(1, "no kernels for this GPU")
            return None
        cache = SimpleNamespace(deserialize=self.kernels.append, serialize=lambda: b"kernels")
        config = SimpleNamespace(
            create_runtime_cache=lambda: cache, set_runtime_cache=lambda _: True
        )
        return SimpleNamespace(
            create_runtime_config=lambda: config,
            create_execution_context=lambda _: FakeContext(self),
        )


class FakeContext:
    def __init__(self, package):
        self.package, self.addresses, self.shape = package, {}, ()

    def set_input_shape(self, name, shape):
        assert name == "x"
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        assert name == "y"
        return (self.shape[0], self.package.answer_columns)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 12
        if not self.package.is_run:
            self.package.log.log(1, "the GPU fell off the bus")
            return False
        count = int(np.prod(self.shape))
        x = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["x"]))
        y = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["y"]))
        y[:] = 2 * x
        return True


@pytest.fixture
def doubling(tmp_path):
    """A model file and its card, for `FakeRTX`."""
    path = tmp_path / "doubling.onnx"
    path.write_bytes(b"weights")
    card = Card(
        name="doubling",
        sha256=__import__("hashlib").sha256(b"weights").hexdigest(),
        parameters=1,
        input=Tensor(name="x", shape=(-1, 4), meaning="four"),
        output=Tensor(name="y", shape=(-1, 4), meaning="twice that"),
        training_command="none",
        training_data="none",
        figures={},
        licence="MIT",
    )
    card_path(path).write_text(json.dumps(card.model_dump()))
    return path


@pytest.fixture
def driver():
    return FakeDriver


@pytest.fixture
def rtx():
    return FakeRTX()
