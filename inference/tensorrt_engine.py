"""Networks on an NVIDIA GPU, by TensorRT 10 or 11 or TensorRT for RTX: the only file that names it.

The same ONNX file and the same card as on the processor. An engine is built for one GPU, one
release and one range of shapes, once: it is kept on disk and taken from there at the next start, if
it is still the same in every respect. TensorRT for RTX builds without a GPU, so that a test can say
whether a network is understood at all. Numbers are float32 and stay so (no TF32): the answers are
those of the processor; a smaller precision would be in the ONNX file, never in a flag here.

A batch is copied to page-locked memory, uploaded, computed and downloaded on one stream with
buffers that are kept; the caller's thread waits. Free spatial dimensions may be used up to
`MOST_PX`. Source: TensorRT API reference 11.4, TensorRT for RTX API reference 1.7, NVIDIA.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from inference.api import BadModel, NoEngine
from inference.cuda import Cuda, Gpu, Mirror
from inference.engine import Card, Tensor, check_shape, load_card
from inference.engine_cache import EngineCache, EngineKey

Package: TypeAlias = Any  # tensorrt or tensorrt_rtx; neither has types
Theirs: TypeAlias = Any  # an object of that package
PACKAGES: Final = ("tensorrt", "tensorrt_rtx")  # in this order
MOST_BATCH: Final = 64
MOST_PICTURES: Final = 4
MOST_PX: Final = 1_024
_LEAST_PX, _USUAL_PX = 8, 512
_PRECISION: Final = "float32"
_ITEM_BYTES: Final = 4
_INSTALL: Final = "pip install scopeloop[tensorrt-rtx], or tensorrt from NVIDIA"


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes of the input that an engine is built for."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


def profile_for(tensor: Tensor) -> Profile:
    """Free first dimensions are batches, other free ones pixels.

    TensorRT sets memory aside for the largest shape, so that pictures come in small batches.
    """
    is_picture = -1 in tensor.shape[1:]

    def filled(batch: int, size_px: int) -> tuple[int, ...]:
        free = (batch if axis == 0 else size_px for axis in range(len(tensor.shape)))
        return tuple(
            at if at != -1 else chosen for at, chosen in zip(tensor.shape, free, strict=True)
        )

    return Profile(
        least=filled(1, _LEAST_PX),
        usual=filled(1 if is_picture else 2, _USUAL_PX),
        most=filled(MOST_PICTURES if is_picture else MOST_BATCH, MOST_PX),
    )


def find_package() -> Package:
    """TensorRT, whichever is installed. Raises NoEngine, saying what to install."""
    for name in PACKAGES:
        try:
            return importlib.import_module(name)
        except ImportError:  # not there, or its libraries are not
            continue
    message = f"neither of {', '.join(PACKAGES)} is installed: {_INSTALL}"
    raise NoEngine(message)


def tensorrt_here() -> str:
    """Package, release and GPU. Raises NoEngine, saying what is missing."""
    gpu, package = Cuda().gpu, find_package()
    return (
        f"{package.__name__} {package.__version__}, {gpu.name} "
        f"(compute capability {gpu.compute_capability}, CUDA {gpu.driver})"
    )


def build_plan(package: Package, model: Path, card: Card, profile: Profile) -> bytes:
    """A serialised engine for an ONNX file. Raises BadModel, naming what is not understood."""
    log, said = _log_of(package)
    said.clear()
    builder = package.Builder(log)
    typed = 1 << int(package.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = package.OnnxParser(network, log)
    if not parser.parse(model.read_bytes()):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        message = f"{package.__name__} does not understand {model.name}: {errors}"
        raise BadModel(message)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for tensors, promised in ((inputs, card.input), (outputs, card.output)):
        names = [tensor.name for tensor in tensors]
        if names != [promised.name] or tensors[0].dtype != package.float32:
            message = f"{model.name} has tensors {names}, its card says {promised.name}, float32"
            raise BadModel(message)
    config = builder.create_builder_config()
    config.clear_flag(package.BuilderFlag.TF32)
    if -1 in tuple(inputs[0].shape):
        shapes = builder.create_optimization_profile()
        shapes.set_shape(card.input.name, profile.least, profile.usual, profile.most)
        config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        message = f"{package.__name__} cannot build {model.name}: {'; '.join(said)}"
        raise BadModel(message)
    return bytes(plan)


class TensorRTEngine:
    """One ONNX file on the GPU; an `Engine`."""

    def __init__(
        self,
        model: Path,
        cache: EngineCache | None = None,
        *,
        profile: Profile | None = None,
        package: Package = None,
        cuda: Cuda | None = None,
    ) -> None:
        """Load and check `model`, and build it unless the cache has it; cache None: always build.

        Raises BadModel if file and card disagree or the network is not understood, NoEngine without
        TensorRT or a GPU that it serves.
        """
        self._card = load_card(model)
        self._package = find_package() if package is None else package
        self._cuda = Cuda() if cuda is None else cuda
        self._profile = profile_for(self._card.input) if profile is None else profile
        self._key = engine_key(self._card, self._package, self._cuda.gpu, self._profile)
        self._runtime = self._package.Runtime(_log_of(self._package)[0])
        self._engine = self._loaded(model, cache)
        self._context, kernels = self._context_of(cache)
        self._fed = self._cuda.mirror(_ITEM_BYTES * math.prod(self._profile.usual))
        self._answered = self._cuda.mirror(_ITEM_BYTES)
        self._shape: tuple[int, ...] = ()
        self._run(np.zeros(self._profile.usual, np.float32))  # kernels are made and warmed here
        if cache is not None and kernels is not None:
            cache.save(self._key, bytes(kernels.serialize()), "kernels")

    @property
    def card(self) -> Card:
        """What the file promises."""
        return self._card

    def describe(self) -> str:
        """Model, runtime, device and precision."""
        return f"{self._card.name}, {self._key.backend}, {self._cuda.gpu.name}, {_PRECISION}"

    def run(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Answer for one batch. Raises BadModel if shapes are not those of the card or profile."""
        check_shape(self._card.input, array.shape)
        limits = zip(self._profile.least, array.shape, self._profile.most, strict=True)
        if not all(least <= size <= most for least, size, most in limits):
            message = (
                f"{self._card.input.name} must be from {self._profile.least} to "
                f"{self._profile.most}, got {array.shape}"
            )
            raise BadModel(message)
        result = self._run(array)
        check_shape(self._card.output, result.shape)
        return result

    def _run(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        cuda, context = self._cuda, self._context
        cuda.make_current()
        size_bytes = _ITEM_BYTES * array.size
        if array.shape != self._shape:
            self._take_shape(array.shape)
        np.copyto(self._fed.host[:size_bytes].view(np.float32).reshape(array.shape), array)
        cuda.upload(self._fed, size_bytes)
        if not context.execute_async_v3(cuda.stream):
            message = f"{self._key.backend} failed: {'; '.join(_log_of(self._package)[1])}"
            raise NoEngine(message)
        shape = tuple(context.get_tensor_shape(self._card.output.name))
        answer_bytes = _ITEM_BYTES * math.prod(shape)
        cuda.download(self._answered, answer_bytes)
        cuda.wait()
        return self._answered.host[:answer_bytes].view(np.float32).reshape(shape).copy()

    def _take_shape(self, shape: tuple[int, ...]) -> None:
        """Another shape than before: tell the runtime, and grow the buffers if need be."""
        fed, answered = self._card.input.name, self._card.output.name
        if not self._context.set_input_shape(fed, shape):
            message = f"{self._key.backend} refuses the shape {shape} of {fed}"
            raise BadModel(message)
        self._fed = self._grown(self._fed, shape)
        self._answered = self._grown(self._answered, self._context.get_tensor_shape(answered))
        self._context.set_tensor_address(fed, self._fed.address)
        self._context.set_tensor_address(answered, self._answered.address)
        self._shape = shape

    def _grown(self, mirror: Mirror, shape: tuple[int, ...]) -> Mirror:
        size_bytes = _ITEM_BYTES * math.prod(shape)
        if size_bytes <= mirror.host.size:
            return mirror
        self._cuda.free(mirror)
        return self._cuda.mirror(size_bytes)

    def _loaded(self, model: Path, cache: EngineCache | None) -> Theirs:
        """The engine of the cache if it still runs here, else a new one."""
        plan = None if cache is None else cache.load(self._key)
        if plan is not None and self._is_valid(plan):
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is not None:
                return engine
        plan = build_plan(self._package, model, self._card, self._profile)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            said = "; ".join(_log_of(self._package)[1])
            message = f"{self._key.backend} does not run on {self._cuda.gpu.name}: {said}"
            raise NoEngine(message)
        if cache is not None:
            cache.save(self._key, plan)
        return engine

    def _is_valid(self, plan: bytes) -> bool:
        """TensorRT for RTX can say so beforehand; TensorRT says so by loading it or not."""
        if not hasattr(self._package, "EngineValidity"):
            return True
        validity, _ = self._runtime.get_engine_validity(plan)
        return bool(validity == self._package.EngineValidity.VALID)

    def _context_of(self, cache: EngineCache | None) -> tuple[Theirs, Theirs | None]:
        """What runs; and, where kernels are made at the first run, what will hold them."""
        if not hasattr(self._package, "IRuntimeCache"):
            return self._engine.create_execution_context(), None
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._package.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        kernels = config.create_runtime_cache()
        kept = None if cache is None else cache.load(self._key, "kernels")
        if kept is not None:
            kernels.deserialize(kept)  # false where it no longer fits: made anew
        config.set_runtime_cache(kernels)
        return self._engine.create_execution_context(config), kernels


def engine_key(card: Card, package: Package, gpu: Gpu, profile: Profile) -> EngineKey:
    """Under what a built engine is kept."""
    return EngineKey(
        model_sha256=card.sha256,
        backend=f"{package.__name__} {package.__version__}",
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        memory_bytes=gpu.memory_bytes,
        driver=gpu.driver,
        precision=_PRECISION,
        shapes=(profile.least, profile.usual, profile.most),
    )


@functools.cache
def _log_of(package: Package) -> tuple[Theirs, deque[str]]:
    """The one logger of a package, and the last that it complained of."""
    said: deque[str] = deque(maxlen=8)
    worst = (package.ILogger.Severity.INTERNAL_ERROR, package.ILogger.Severity.ERROR)

    class Log(package.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            package.ILogger.__init__(self)

        def log(self, severity: Theirs, message: str) -> None:
            if severity in worst:
                said.append(message)

    return Log(), said
