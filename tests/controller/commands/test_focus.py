"""`scopeloop focus` on the simulated SEM and TEM: every step, what comes after, and giving up."""

import re
from pathlib import Path

from typer.testing import CliRunner

from controller import cli

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "simulated_sem.toml"
TEM = CONFIG.with_name("simulated_tem.toml")


def called(*words: object, config: Path = CONFIG) -> tuple[int, str]:
    asked = ["focus", str(config), "--set", "run.clock=ideal", *map(str, words)]
    result = CliRunner().invoke(cli.cli, asked, env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_in_focus_then_backlash_then_held(tmp_path):
    strip = tmp_path / "strip.png"
    status, said = called("--strip", strip, "--measure-backlash", "--hold", 3)
    assert status == 0
    assert strip.is_file()
    order = ["start", "verify", "in focus at z", "hysteresis", "held over", "the truth"]
    at = [said.index(word) for word in order]
    assert at == sorted(at)
    truth = re.search(r"the truth: ([-+.\d]+) DOF", said)
    assert truth is not None
    assert abs(float(truth[1])) <= 0.5


def test_an_empty_field_is_given_up():
    status, said = called("--set", "instrument.specimen.kind=near_empty", "--range-dof", 10)
    assert status == 1
    assert "cannot focus" in said
    assert "the truth" not in said


def test_stopped_by_the_user(monkeypatch):
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("controller.commands.focus.focus_at", interrupted)
    status, said = called()
    assert status == 130
    assert "stopped safely" in said
    assert "in focus" not in said


def test_a_lens_that_images_phases_is_focused_by_a_series(tmp_path):
    far, dose = ("--set", "instrument.focus.start_um=0.04"), ("--set", "camera.exposure_s=1")
    strip = tmp_path / "strip.png"
    status, said = called(*far, *dose, "--hold", 3, "--strip", strip, config=TEM)
    assert status == 0
    assert "AENet" not in said
    assert "neither backlash nor holding" in said
    assert "no strip" in said
    truth = re.search(r"the truth: ([-+.\d]+) DOF", said)
    assert truth is not None
    assert abs(float(truth[1])) <= 0.25


def test_at_the_dose_of_a_live_view_a_lattice_is_not_focused_by_guess():
    status, said = called("--set", "instrument.focus.start_um=0.04", config=TEM)
    assert status == 1
    assert "a lattice alone" in said
