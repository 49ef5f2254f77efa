"""Engines that were built before, on disk: found by what they were built from and for.

A file is one line of JSON (the key, and the checksum of what follows) and the engine's bytes. It
appears whole or not at all: written beside, synced, renamed. What does not match in every word is
built again. A plan holds code for the GPU, so nothing is read from a folder that others may write.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_MOST_FILES: Final = 64  # the ones used longest ago go first
_LONGEST_HEADER_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that makes a built engine this one and no other."""

    model_sha256: str
    backend: str  # "tensorrt_rtx 1.7.1.116"
    gpu: str  # name
    compute_capability: str
    memory_bytes: int
    driver: str
    precision: str
    shapes: tuple[tuple[int, ...], ...]  # of the input: least, usual, most
    platform: str = f"{sys.platform} {os.name}"

    def name(self) -> str:
        """What a file of it is called."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


def default_folder() -> Path:
    """Where the user's caches lie."""
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(parent) / "scopeloop" / "engines"


@dataclass(frozen=True, slots=True)
class EngineCache:
    """A folder of built engines; a folder that cannot be used costs time and nothing else."""

    folder: Path

    def load(self, key: EngineKey, part: str = "plan") -> bytes | None:
        """The bytes kept under that key; None: none, damaged, or not safely ours."""
        path = self._path(key, part)
        if not (_is_own(self.folder) and _is_own(path)):
            return None
        try:
            with path.open("rb") as file:
                header = json.loads(file.readline(_LONGEST_HEADER_BYTES))
                content = file.read()
            os.utime(path)
        except (OSError, ValueError):
            return None
        wanted = {"key": _plain(key), "sha256": hashlib.sha256(content).hexdigest()}
        return content if header == wanted else None

    def save(self, key: EngineKey, content: bytes, part: str = "plan") -> None:
        """Keep them; nothing is said where that fails: the next start builds again."""
        checksum = hashlib.sha256(content).hexdigest()
        header = json.dumps({"key": _plain(key), "sha256": checksum}).encode() + b"\n"
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_own(self.folder):
                return
            handle, beside = tempfile.mkstemp(dir=self.folder, suffix=".new")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(header)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(beside).replace(self._path(key, part))
            except OSError:
                Path(beside).unlink(missing_ok=True)
                raise
            self._forget_oldest()

    def _path(self, key: EngineKey, part: str) -> Path:
        return self.folder / f"{key.name()}.{part}"

    def _forget_oldest(self) -> None:
        files = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in files[:-_MOST_FILES]:
            path.unlink(missing_ok=True)


def _plain(key: EngineKey) -> object:
    """As it reads in JSON: tuples are lists there."""
    return json.loads(json.dumps(asdict(key)))


def _is_own(path: Path) -> bool:
    """Ours, and nobody else may write it. Windows keeps a user's folders to the user."""
    if sys.platform == "win32":
        return path.exists()
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
