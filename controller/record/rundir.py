"""The folder of one run: what lies where, who holds it, and whether there is room on the disk.

    <parent>/<name>-20250131T142502Z/
        scopeloop-run.json     says that this is a run, and of which format
        run.lock               held while a process writes here
        settings.toml          as the user wrote them
        journal.sqlite         the facts, and the finished catalogue
        frames.ome.zarr/       every frame that was kept
        mosaic.ome.zarr/       the stitched chip
        report.html  exports/

The lock is SQLite's own lock on an empty file: it is the operating system's on each platform, so
it dies with the process that holds it, whatever kills it, and needs nothing that only one platform
has. Who holds it is written beside it only to be named in the error.

What the disk or the file system refuses is turned into this room's errors in one place, `writing`
and `reading`, so that a full disk is a `DiskFull` wherever it strikes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from controller.errors import ControllerError

FORMAT = 1
MARKER_NAME = "scopeloop-run.json"
_LOCK_NAME = "run.lock"
_OWNER_NAME = "run.owner.json"
_GIB = float(2**30)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Windows keeps these for devices, whatever follows the first dot.
_RESERVED = frozenset({"CON", "PRN", "AUX", "NUL"}) | {
    f"{port}{digit}" for port in ("COM", "LPT") for digit in range(1, 10)
}
_RENAME_TRIES = 12
_RENAME_PAUSE_S = 0.01
_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


class BadRecord(ControllerError):
    """What lies on the disk is not a run, not readable, or not what was written there."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


class NotARun(BadRecord):
    """What was named is no folder of a run; nothing was touched."""


class TooNew(BadRecord):
    """A later version of the program wrote it."""


class RunLocked(BadRecord):
    """Another live process holds the run."""


class DiskFull(ControllerError):
    """No room is left, or less than the reserve: stop safely. All that was acknowledged is kept."""

    def __init__(self, path: Path | str, free_gib: float | None, min_free_gib: float) -> None:
        """`free_gib` is None where the disk itself refused and could not be asked."""
        free = "no space left" if free_gib is None else f"{free_gib:.2f} GiB free"
        asked = f", {min_free_gib:g} GiB must stay free" if min_free_gib > 0.0 else ""
        super().__init__(
            f"{path}: the disk is full ({free}{asked}); nothing that was acknowledged is lost: "
            "make room, then resume the run"
        )
        self.path = Path(path)
        self.free_gib = free_gib
        self.min_free_gib = min_free_gib


@dataclass(frozen=True, slots=True)
class Marker:
    """What `scopeloop-run.json` says."""

    format: int
    name: str
    created_at_utc: str


class RunDir:
    """One run's folder; use it as a context manager, or `close` it to let others write."""

    def __init__(self, path: Path, marker: Marker, lock: sqlite3.Connection | None) -> None:
        """`lock` is None for a folder opened only to be read."""
        self.path = path
        self.marker = marker
        self._lock = lock

    @property
    def journal_path(self) -> Path:
        """Facts and catalogue: `record.journal`, `record.catalogue`."""
        return self.path / "journal.sqlite"

    @property
    def frames_path(self) -> Path:
        """Every frame that was kept: `record.frames`."""
        return self.path / "frames.ome.zarr"

    @property
    def mosaic_path(self) -> Path:
        """The stitched chip: `search.mosaic`."""
        return self.path / "mosaic.ome.zarr"

    @property
    def settings_path(self) -> Path:
        """The settings as the user wrote them."""
        return self.path / "settings.toml"

    @property
    def report_path(self) -> Path:
        """The page that the user reads."""
        return self.path / "report.html"

    @property
    def exports_path(self) -> Path:
        """The folder of the exports; made when first asked for."""
        folder = self.path / "exports"
        if self._lock is not None:
            with writing(folder):
                folder.mkdir(exist_ok=True)
        return folder

    @property
    def is_held(self) -> bool:
        """Whether this process may write here."""
        return self._lock is not None

    def write_settings(self, settings_toml: str) -> None:
        """Keep the user's settings, whole or not at all."""
        write_atomically(self.settings_path, settings_toml.encode())

    def close(self) -> None:
        """Let go of the lock; safe to call twice."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                (self.path / _OWNER_NAME).unlink()
            lock.close()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def create(
    parent: Path | str, name: str, *, min_free_gib: float = 0.0, now: datetime | None = None
) -> RunDir:
    """Make the folder of a new run, `<parent>/<name>-<utc stamp>`, and hold it.

    now: None means the computer's clock. Raises BadRecord where the folder cannot be made and
    DiskFull where less than `min_free_gib` is free before the start.
    """
    parent = Path(parent)
    if not can_name(name):
        reason = (
            f"{name!r} cannot name a run; allowed: up to 64 letters, digits, '_', '.' and '-', "
            "a letter or digit first, and no device name of Windows"
        )
        raise BadRecord(parent, reason)
    at = (now or datetime.now(UTC)).astimezone(UTC)
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        require_free(parent, min_free_gib)
        path = _new_folder(parent, f"{name}-{at:%Y%m%dT%H%M%SZ}")
    lock = _lock(path)
    try:
        marker = Marker(FORMAT, name, at.isoformat(timespec="seconds"))
        text = json.dumps(
            {
                "format": marker.format,
                "name": marker.name,
                "created_at_utc": marker.created_at_utc,
            },
            indent=2,
        )
        write_atomically(path / MARKER_NAME, text.encode())
    except BaseException:
        lock.close()
        raise
    return RunDir(path, marker, lock)


def can_name(name: str) -> bool:
    """Whether a run may be called so on every operating system."""
    is_device = name.split(".")[0].upper() in _RESERVED
    return bool(_NAME.fullmatch(name)) and not is_device and not name.endswith(".")


def open_existing(path: Path | str, *, is_read_only: bool = False) -> RunDir:
    """Open a run that is there: to go on with it, or only to read it (then nothing is locked).

    Raises NotARun for what is missing or something else, TooNew, RunLocked where another live
    process holds it, and BadRecord for what is damaged.
    """
    path = Path(path)
    marker = _marker(path)
    return RunDir(path, marker, None if is_read_only else _lock(path))


def free_gib(path: Path | str) -> float:
    """Room on the disk that holds `path`, for this user."""
    return shutil.disk_usage(path).free / _GIB


def require_free(path: Path | str, min_free_gib: float, coming_bytes: int = 0) -> None:
    """Raise DiskFull unless `min_free_gib` stays free after `coming_bytes` more are written."""
    free = free_gib(path)
    if free - coming_bytes / _GIB < min_free_gib:
        raise DiskFull(path, free, min_free_gib)


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn what the system says while `path` is written into DiskFull or BadRecord."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(path, _free_or_none(path), 0.0) from error
        raise BadRecord(path, f"cannot be written: {_said(error, path)}") from error
    except sqlite3.Error as error:
        if _sqlite_code(error) == sqlite3.SQLITE_FULL:
            raise DiskFull(path, _free_or_none(path), 0.0) from error
        raise BadRecord(path, f"cannot be written: {error}") from error


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what the system says while `path` is read into BadRecord."""
    try:
        yield
    except OSError as error:
        raise BadRecord(path, f"cannot be read: {_said(error, path)}") from error
    except sqlite3.Error as error:
        raise BadRecord(path, f"cannot be read: {error}") from error


def write_atomically(path: Path, content: bytes, *, is_power_safe: bool = False) -> None:
    """Write a file so that it is there wholly or not at all, also if the process is killed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                if is_power_safe:
                    file.flush()
                    os.fsync(file.fileno())
            retrying(lambda: partial.replace(path))
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def retrying(act: Callable[[], object]) -> None:
    """Do it, on Windows again if an indexer or a virus scanner holds a fresh file for a moment."""
    for tried in range(1, _RENAME_TRIES + 1):
        try:
            act()
        except PermissionError:
            if tried == _RENAME_TRIES or os.name != "nt":
                raise
            time.sleep(_RENAME_PAUSE_S * tried)
        else:
            return


def _new_folder(parent: Path, stem: str) -> Path:
    """A folder that was not there before: two runs of one second get two folders."""
    path = parent / stem
    for again in range(2, 100):
        try:
            path.mkdir()
        except FileExistsError:
            path = parent / f"{stem}-{again}"
        else:
            return path
    raise BadRecord(path, "a hundred runs of this second are there already; wait a second")


def _marker(path: Path) -> Marker:
    with reading(path):
        if not path.exists():
            raise NotARun(path, "there is no such folder; name the folder of a run")
        if not path.is_dir():
            raise NotARun(path, "this is a file; name the folder of a run")
        try:
            raw = (path / MARKER_NAME).read_bytes()
        except FileNotFoundError:
            reason = f"this is not the folder of a run (it holds no {MARKER_NAME})"
            raise NotARun(path, reason) from None
    where = path / MARKER_NAME
    try:
        said = json.loads(raw)
    except ValueError as error:
        raise BadRecord(where, f"is damaged: {error}") from error
    match said:
        case {"format": int(version), "name": str(name), "created_at_utc": str(created_at_utc)}:
            if version > FORMAT:
                reason = (
                    f"this run has format {version}, this program reads up to {FORMAT}; "
                    "update the program"
                )
                raise TooNew(path, reason)
            return Marker(version, name, created_at_utc)
        case {"format": int(version)} if version > FORMAT:
            raise TooNew(path, f"this run has format {version}, newer than {FORMAT}; update")
    raise BadRecord(where, "is damaged: format, name or created_at_utc is missing")


def _lock(path: Path) -> sqlite3.Connection:
    """Hold the folder; the connection IS the lock.

    POSIX drops a process' locks on a file when ANY of its handles to it closes: nobody else in this
    process may open `run.lock`.
    """
    with writing(path):
        lock = sqlite3.connect(
            path / _LOCK_NAME, timeout=0.0, isolation_level=None, check_same_thread=False
        )
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        # The primary result code is the low byte of the extended one.
        if _sqlite_code(error) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            reason = f"another process is writing to this run ({_owner(path)}); let it finish"
            raise RunLocked(path, reason) from error
        raise BadRecord(path, f"cannot be written: {error}") from error
    except sqlite3.Error as error:
        lock.close()
        reason = f"{_LOCK_NAME} is not what was written there: {error}; delete it and try again"
        raise BadRecord(path, reason) from error
    owner = {"pid": os.getpid(), "host": platform.node()}
    try:
        write_atomically(path / _OWNER_NAME, json.dumps(owner).encode())
    except BaseException:
        lock.close()
        raise
    return lock


def _owner(path: Path) -> str:
    try:
        match json.loads((path / _OWNER_NAME).read_bytes()):
            case {"pid": int(pid), "host": str(host)}:
                return f"process {pid} on {host}"
    except (OSError, ValueError):
        pass
    return "it left no name"


def _free_or_none(path: Path | str) -> float | None:
    try:
        return free_gib(Path(path).parent)
    except OSError:
        return None


def _said(error: OSError, path: Path | str) -> str:
    """What the system said, and of which file if that is another than `path`."""
    said = error.strerror or type(error).__name__
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return said if not files or str(path) in files else f"{said} ({files[-1]})"


def _sqlite_code(error: sqlite3.Error) -> int:
    """SQLite's extended result code; -1 where the module itself complains."""
    return getattr(error, "sqlite_errorcode", -1)
