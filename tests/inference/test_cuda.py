import sys

import numpy as np
import pytest

from inference import cuda
from inference.api import NoEngine
from inference.cuda import Cuda, Gpu


def test_says_which_gpu(driver):
    assert Cuda(driver()).gpu == Gpu("Fake GPU", "9.0", 1 << 34, "13.1")


def test_bytes_go_there_and_back(driver):
    words = driver()
    gpu = Cuda(words)
    sent, got = gpu.mirror(64), gpu.mirror(64)
    sent.host[:] = np.arange(64)
    gpu.upload(sent, 64)
    gpu.download(cuda.Mirror(got.host, sent.address), 32)
    gpu.wait()
    assert got.host[:32].tolist() == list(range(32))
    assert got.host[32:].sum() == 0
    gpu.free(sent)
    gpu.free(got)
    assert not words.kept


@pytest.mark.parametrize("word", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_driver_that_refuses_is_no_engine(driver, word):
    with pytest.raises(NoEngine, match=f"{word} with error 700: an illegal memory access"):
        Cuda(driver({word}))


def test_without_a_driver_it_says_so(monkeypatch):
    monkeypatch.setattr(cuda, "_LIBRARY", "no_such_library.so.7")
    with pytest.raises(NoEngine, match="no NVIDIA driver"):
        Cuda()


def test_a_real_gpu():
    try:
        gpu = Cuda()
    except NoEngine as error:
        pytest.skip(str(error))
    mirror = gpu.mirror(1 << 20)
    mirror.host[:] = np.random.default_rng(1).integers(0, 256, 1 << 20)
    was = mirror.host.copy()
    gpu.upload(mirror, 1 << 20)
    gpu.wait()
    mirror.host[:] = 0
    gpu.download(mirror, 1 << 20)
    gpu.wait()
    assert np.array_equal(mirror.host, was)
    assert sys.platform == "win32" or gpu.gpu.name
    gpu.free(mirror)
