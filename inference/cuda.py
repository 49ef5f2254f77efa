"""The few words of NVIDIA's driver that an engine needs: one context, one stream, buffers, copies.

Through ctypes, because the driver library comes with the driver itself: nothing has to be installed
for it, and its interface has been stable for a decade. Memory on the host is page-locked, so that
copies run beside the processor. Source: CUDA Driver API reference manual, NVIDIA, 13.0.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from inference.api import NoEngine

Word: TypeAlias = Any  # what ctypes takes for one
_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NON_BLOCKING: Final = 1  # the stream does not wait for the default stream
_CAPABILITY_MAJOR: Final = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_CAPABILITY_MINOR: Final = 76

_WORDS: Final[dict[str, tuple[Word, ...]]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """What an engine was built for."""

    name: str
    compute_capability: str  # "9.0"
    memory_bytes: int
    driver: str  # the newest CUDA that it serves, "13.0"


@dataclass(frozen=True, slots=True, eq=False)
class Mirror:
    """The same number of bytes on both sides."""

    host: npt.NDArray[np.uint8]  # page-locked
    address: int  # on the GPU


class Cuda:
    """The first GPU that may be seen (CUDA_VISIBLE_DEVICES chooses)."""

    def __init__(self, library: Word = None) -> None:
        """Open it. Raises NoEngine, saying why there is none."""
        if library is None:
            try:
                library = ctypes.CDLL(_LIBRARY)
            except OSError as error:
                message = f"no NVIDIA driver here ({_LIBRARY} cannot be loaded)"
                raise NoEngine(message) from error
        self._words: dict[str, Callable[..., int]] = {}
        for name, arguments in _WORDS.items():
            word = getattr(library, name)
            word.argtypes, word.restype = arguments, c_int
            self._words[name] = word
        self._call("cuInit", 0)
        device, version = c_int(), c_int()
        self._call("cuDeviceGet", byref(device), 0)
        self._call("cuDriverGetVersion", byref(version))
        self.gpu = self._described(device.value, version.value)
        context, stream = c_void_p(), c_void_p()
        # The primary context is the one that TensorRT's own runtime calls use.
        self._call("cuDevicePrimaryCtxRetain", byref(context), device.value)
        self._context = context
        self.make_current()
        self._call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        self._stream = stream

    @property
    def stream(self) -> int:
        """The handle that a runtime enqueues on."""
        return int(self._stream.value or 0)

    def make_current(self) -> None:
        """Give the calling thread this context; cheap, and each thread needs it."""
        self._call("cuCtxSetCurrent", self._context)

    def mirror(self, size_bytes: int) -> Mirror:
        """Memory on both sides; give it back with `free`."""
        host, address = c_void_p(), c_uint64()
        self._call("cuMemHostAlloc", byref(host), size_bytes, 0)
        self._call("cuMemAlloc_v2", byref(address), size_bytes)
        cells = (ctypes.c_uint8 * size_bytes).from_address(host.value or 0)
        return Mirror(np.ctypeslib.as_array(cells), address.value)

    def free(self, mirror: Mirror) -> None:
        """Give memory back; its array must not be looked at again."""
        self._call("cuMemFreeHost", mirror.host.ctypes.data)
        self._call("cuMemFree_v2", mirror.address)

    def upload(self, mirror: Mirror, size_bytes: int) -> None:
        """Begin to copy so many bytes to the GPU."""
        source, stream = mirror.host.ctypes.data, self._stream
        self._call("cuMemcpyHtoDAsync_v2", mirror.address, source, size_bytes, stream)

    def download(self, mirror: Mirror, size_bytes: int) -> None:
        """Begin to copy so many bytes from the GPU."""
        target, stream = mirror.host.ctypes.data, self._stream
        self._call("cuMemcpyDtoHAsync_v2", target, mirror.address, size_bytes, stream)

    def wait(self) -> None:
        """Until all that was begun is done."""
        self._call("cuStreamSynchronize", self._stream)

    def _described(self, device: int, version: int) -> Gpu:
        name, memory = ctypes.create_string_buffer(256), c_size_t()
        major, minor = c_int(), c_int()
        self._call("cuDeviceGetName", name, len(name), device)
        self._call("cuDeviceTotalMem_v2", byref(memory), device)
        self._call("cuDeviceGetAttribute", byref(major), _CAPABILITY_MAJOR, device)
        self._call("cuDeviceGetAttribute", byref(minor), _CAPABILITY_MINOR, device)
        return Gpu(
            name=name.value.decode(errors="replace"),
            compute_capability=f"{major.value}.{minor.value}",
            memory_bytes=memory.value,
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )

    def _call(self, word: str, *arguments: Word) -> None:
        status = self._words[word](*arguments)
        if status:
            said = c_char_p()
            self._words["cuGetErrorString"](status, byref(said))
            reason = (said.value or b"unknown error").decode(errors="replace")
            message = f"the NVIDIA driver answered {word} with error {status}: {reason}"
            raise NoEngine(message)
