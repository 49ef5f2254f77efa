"""`scopeloop watch`: on every simulated instrument and the replay, and how it is stopped."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller import cli
from controller.errors import BadSettings
from controller.restoring.session import WatchSession
from inference.api import NoEngine

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SMALL = {
    "simulated_sem": ["instrument.frame.height_px=96", "instrument.frame.width_px=96"],
    "simulated_tem": ["instrument.frame.height_px=96", "instrument.frame.width_px=96"],
    "simulated_smoke": ["instrument.camera.width_px=128", "instrument.camera.height_px=96"],
}


def called(config, out, *words):
    asked = ["watch", str(CONFIGS / f"{config}.toml"), "--out", str(out), *map(str, words)]
    for change in (*SMALL.get(config, ()), "run.clock=ideal"):
        asked += ["--set", change]
    result = CliRunner().invoke(cli.cli, asked, env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """The filters alone, whatever was trained."""
    monkeypatch.setattr("controller.app.models", tuple)


@pytest.mark.parametrize("config", list(SMALL))
def test_a_session(tmp_path, config):
    status, said = called(config, tmp_path, "--frames", 4)
    assert status == 0
    (folder,) = tmp_path.iterdir()
    assert "kept raw" in said
    assert "made by" in said
    assert ("computing costs nothing" in said) == (config != "simulated_smoke")  # its readout
    names = {path.name for path in folder.iterdir()}
    assert {"raw.ome.zarr", "computed.ome.zarr", "strip.png", "watch.html"} <= names
    lines = (folder / "raw.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2, 3]
    assert ("electrons/A^2" in said) == (config != "simulated_smoke")


def test_raw_frames_only(tmp_path):
    status, said = called("simulated_sem", tmp_path, "--frames", 3, "--set", "restore.method=off")
    assert status == 0
    assert "made by" not in said
    (folder,) = tmp_path.iterdir()
    assert not (folder / "computed.ome.zarr").exists()
    assert "raw frames only" in (folder / "watch.html").read_text(encoding="utf-8")


def test_the_network_must_be_there_before_anything_starts(tmp_path):
    with pytest.raises(NoEngine, match="method auto does without"):
        called("simulated_sem", tmp_path, "--set", "restore.method=quality")
    assert list(tmp_path.iterdir()) == []


def test_stopped_by_the_user(tmp_path, monkeypatch):
    async def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(WatchSession, "_expose", interrupted)
    status, said = called("simulated_sem", tmp_path)
    assert status == 130
    assert "every frame that was taken is kept" in said
    (folder,) = tmp_path.iterdir()
    assert (folder / "watch.html").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("restore.method=bm3d", "'off', 'auto'|radial_wiener"),
        ("restore.twin_test_every_frames=0", ">= 1"),
        ("restore.recursiv=true", "did you mean recursive"),
        ("restore.recursive=2.5", "restore.recursive"),
    ],
)
def test_settings_that_are_wrong(tmp_path, word, said):
    with pytest.raises(BadSettings, match=said):
        called("simulated_sem", tmp_path, "--set", word)
    assert list(tmp_path.iterdir()) == []


def test_before_needs_a_method(tmp_path):
    words = ["--set", "restore.method=off", "--set", "restore.before_focus=true"]
    with pytest.raises(BadSettings, match="before_focus"):
        called("simulated_sem", tmp_path, *words)
