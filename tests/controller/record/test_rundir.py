"""A run's folder: made, opened, refused, locked, and stopped before the disk is full."""

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import namedtuple
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.record.rundir import (
    FORMAT,
    MARKER_NAME,
    BadRecord,
    DiskFull,
    RunLocked,
    create,
    open_existing,
    require_free,
    write_atomically,
    writing,
)

NOW = datetime(2025, 1, 31, 14, 25, 2, tzinfo=UTC)
GIB = 2**30
Usage = namedtuple("Usage", "total used free")

is_root = hasattr(os, "geteuid") and os.geteuid() == 0


def marker(folder: Path, **changes: object) -> Path:
    said = {"format": FORMAT, "name": "chip", "created_at_utc": "2025-01-31T14:25:02+00:00"}
    folder.mkdir(exist_ok=True)
    (folder / MARKER_NAME).write_text(json.dumps({**said, **changes}))
    return folder


def test_create_names_the_folder_and_holds_it(tmp_path):
    with create(tmp_path / "runs", "chip-A.1", now=NOW) as run:
        assert run.path == tmp_path / "runs" / "chip-A.1-20250131T142502Z"
        assert run.is_held
        run.write_settings("[run]\nname = 'chip'\n")
        assert run.settings_path.read_text() == "[run]\nname = 'chip'\n"
        assert run.exports_path.is_dir()
        assert {run.journal_path.name, run.frames_path.name, run.report_path.name} == {
            "journal.sqlite",
            "frames.ome.zarr",
            "report.html",
        }
    assert not run.is_held
    with open_existing(run.path) as again:
        assert again.marker == run.marker
        assert again.marker.name == "chip-A.1"


def test_two_runs_of_one_second_get_two_folders(tmp_path):
    with create(tmp_path, "chip", now=NOW) as first, create(tmp_path, "chip", now=NOW) as second:
        assert first.path != second.path
        assert second.path.name == "chip-20250131T142502Z-2"


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-x", "CON", "nul.1", "x" * 65, "a:b"])
def test_a_name_that_cannot_be_a_folder_everywhere_is_refused(tmp_path, name):
    with pytest.raises(BadRecord, match="cannot name a run"):
        create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(BadRecord, match="runs: cannot be written"):
        create(tmp_path / "runs", "chip")


@pytest.mark.skipif(is_root or sys.platform == "win32", reason="root may write anywhere")
def test_read_only_parent_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadRecord, match="cannot be written: Permission denied"):
            create(tmp_path, "chip")
    finally:
        tmp_path.chmod(0o700)


def _absent(folder: Path) -> Path:
    return folder / "absent"


def _file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def _foreign(folder: Path) -> Path:
    (folder / "holiday").mkdir()
    (folder / "holiday" / "photo.jpg").write_bytes(b"x")
    return folder / "holiday"


def _garbled(folder: Path) -> Path:
    (folder / "garbled").mkdir()
    (folder / "garbled" / MARKER_NAME).write_bytes(b"{\x00\xff")
    return folder / "garbled"


def _incomplete(folder: Path) -> Path:
    return marker(folder / "incomplete", name=None)


def _newer(folder: Path) -> Path:
    return marker(folder / "newer", format=FORMAT + 1)


def _newer_and_different(folder: Path) -> Path:
    return marker(folder / "newer", format=FORMAT + 1, name={"first": "chip"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_absent, "there is no such folder"),
        (_file, "this is a file"),
        (_foreign, "not the folder of a run"),
        (_garbled, "is damaged"),
        (_incomplete, "format, name or created_at_utc is missing"),
        (_newer, f"format {FORMAT + 1}, this program reads up to {FORMAT}"),
        (_newer_and_different, f"format {FORMAT + 1}, newer than {FORMAT}"),
    ],
)
def test_what_is_not_a_run_is_refused_and_left_alone(tmp_path, make, message):
    path = make(tmp_path)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(BadRecord, match=message) as caught:
        open_existing(path)
    assert str(path) in str(caught.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_held_run_is_refused_but_can_be_read(tmp_path):
    with create(tmp_path, "chip") as run:
        with pytest.raises(RunLocked, match=f"process {os.getpid()} on "):
            open_existing(run.path)
        with open_existing(run.path, is_read_only=True) as reader:
            assert reader.marker.name == "chip"
            assert not reader.is_held
    with open_existing(run.path):
        pass


def test_a_garbled_lock_is_named(tmp_path):
    with create(tmp_path, "chip") as run:
        pass
    (run.path / "run.lock").write_bytes(b"not a database" * 100)
    with pytest.raises(BadRecord, match="delete it and try again"):
        open_existing(run.path)


HOLD = """
import sys, time
from controller.record.rundir import open_existing
run = open_existing(sys.argv[1])
print("held", flush=True)
time.sleep(30)
"""


def test_the_lock_dies_with_its_process(tmp_path):
    with create(tmp_path, "chip") as run:
        pass
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[3],
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(RunLocked, match=f"process {other.pid} on "):
            open_existing(run.path)
        other.kill()
        other.wait()
        with open_existing(run.path) as mine:
            assert mine.is_held


def test_too_little_room_refuses_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 99 * GIB, 1 * GIB))
    with pytest.raises(DiskFull, match=r"1\.00 GiB free, 2 GiB must stay free") as caught:
        create(tmp_path / "runs", "chip", min_free_gib=2.0)
    assert caught.value.min_free_gib == 2.0
    assert list((tmp_path / "runs").iterdir()) == []
    create(tmp_path / "runs", "chip", min_free_gib=0.5).close()


def test_what_is_about_to_be_written_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 99 * GIB, 1 * GIB))
    require_free(tmp_path, 0.5, coming_bytes=GIB // 4)
    with pytest.raises(DiskFull):
        require_free(tmp_path, 0.5, coming_bytes=GIB)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull, "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), BadRecord, "cannot be written: Input/output"),
        (PermissionError(errno.EACCES, "Permission denied"), BadRecord, "Permission denied"),
        (sqlite3.OperationalError("readonly database"), BadRecord, "readonly database"),
    ],
)
def test_writing_names_what_the_system_says(tmp_path, raised, expected, message):
    with pytest.raises(expected, match=message), writing(tmp_path / "x"):
        raise raised


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "settings.toml"
    write_atomically(path, b"old")

    def refuse(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DiskFull):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["settings.toml"]
