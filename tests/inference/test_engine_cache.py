import json
import os
import sys
from dataclasses import replace

import pytest

from inference import engine_cache
from inference.engine_cache import EngineCache, EngineKey, default_folder

KEY = EngineKey(
    model_sha256="a" * 64,
    backend="tensorrt_rtx 1.7",
    gpu="H100",
    compute_capability="9.0",
    memory_bytes=80 << 30,
    driver="13.0",
    precision="float32",
    shapes=((1, 4), (2, 4), (64, 4)),
)


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def test_gives_back_what_was_kept(cache):
    assert cache.load(KEY) is None
    cache.save(KEY, b"plan\nwith a line break")
    cache.save(KEY, b"kernels", "kernels")
    assert cache.load(KEY) == b"plan\nwith a line break"
    assert cache.load(KEY, "kernels") == b"kernels"
    assert not list(cache.folder.glob("*.new"))


OTHERS = [
    ("model_sha256", "b" * 64),
    ("backend", "tensorrt_rtx 1.8"),
    ("gpu", "H200"),
    ("compute_capability", "12.0"),
    ("memory_bytes", 1),
    ("driver", "13.1"),
    ("precision", "float16"),
    ("shapes", ((1, 4), (2, 4), (32, 4))),
    ("platform", "win32 nt"),
]


@pytest.mark.parametrize(("field", "value"), OTHERS, ids=[o[0] for o in OTHERS])
def test_another_key_is_another_engine(cache, field, value):
    cache.save(KEY, b"plan")
    other = replace(KEY, **{field: value})
    assert cache.load(other) is None
    # not even under the same name, should two ever share one
    next(cache.folder.iterdir()).rename(cache.folder / f"{other.name()}.plan")
    assert cache.load(other) is None


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_a_damaged_file_is_none(cache, cut):
    cache.save(KEY, b"plan" * 20)
    (path,) = cache.folder.iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    assert cache.load(KEY) is None


def test_a_flipped_bit_is_none(cache):
    cache.save(KEY, b"plan" * 20)
    (path,) = cache.folder.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert cache.load(KEY) is None


@pytest.mark.parametrize("header", [b"", b"[]\n", b"null\n", b"{", b"\xff\n"])
def test_nonsense_is_none(cache, header):
    cache.save(KEY, b"plan")
    (path,) = cache.folder.iterdir()
    path.write_bytes(header)
    assert cache.load(KEY) is None


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize("is_folder", [True, False])
def test_what_others_may_write_is_not_run(cache, is_folder):
    cache.save(KEY, b"plan")
    (path,) = cache.folder.iterdir()
    (cache.folder if is_folder else path).chmod(0o777)
    assert cache.load(KEY) is None


def test_a_folder_that_cannot_be_made_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file" / "engines")
    cache.save(KEY, b"plan")
    assert cache.load(KEY) is None


def test_a_write_that_breaks_leaves_the_old_one(cache, monkeypatch):
    cache.save(KEY, b"old")

    def breaks(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", breaks)
    cache.save(KEY, b"new")
    assert cache.load(KEY) == b"old"
    assert not list(cache.folder.glob("*.new"))


def test_the_oldest_go_first(cache, monkeypatch):
    monkeypatch.setattr(engine_cache, "_MOST_FILES", 2)
    for number in range(3):
        cache.save(replace(KEY, memory_bytes=number), b"plan")
        for path in cache.folder.iterdir():  # the file system's clock is coarse
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    kept = [cache.load(replace(KEY, memory_bytes=number)) for number in range(3)]
    assert kept == [None, b"plan", b"plan"]


def test_the_users_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(
        "XDG_CACHE_HOME" if sys.platform != "win32" else "LOCALAPPDATA", str(tmp_path)
    )
    assert default_folder() == tmp_path / "scopeloop" / "engines"


def test_the_header_reads(cache):
    cache.save(KEY, b"plan")
    (path,) = cache.folder.iterdir()
    header = json.loads(path.read_bytes().split(b"\n")[0])
    assert header["key"]["gpu"] == "H100"
