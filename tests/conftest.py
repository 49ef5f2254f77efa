"""Fixtures that every room's tests share."""

import os
import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images; a test that needs it skips where it is absent."""
    folder = Path(
        os.environ.get("SCOPELOOP_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    if not folder.is_dir():
        pytest.skip(f"real images not found at {folder}; set SCOPELOOP_DATA to use them")
    return folder


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """A shell that starts the tests in the background has them ignore Ctrl-C; some test it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
