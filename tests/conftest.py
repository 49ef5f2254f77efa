"""Fixtures that every room's tests share."""

import os
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
