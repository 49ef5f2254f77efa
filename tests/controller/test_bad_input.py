"""What goes wrong, as a table: each case ends in one clear line or goes on, within a stated time.

Every case goes through the real command line, in process. The line must name what is wrong (file,
key and range, or device and what to do). Times are on the instrument's clock: from the start of
the session to its last fact, `RunFinished`, with axes braked and the lamp dark.
"""

import asyncio
import errno
import math
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from controller import app, cli
from controller.commands import search
from controller.messages import Exposed, Fact, RunFinished, Saved
from controller.record import rundir
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from controller.search.darkroom import Darkroom
from drivers.api import Instrument
from drivers.software_camera import FrameBuffer, SoftwareCamera
from simulator.axes import SimulatedFocusAxis, SimulatedStage
from simulator.optical_microscope import SimulatedMicroscope
from simulator.wiring import SimulatedTurret

TILES = 3
MICROSCOPE = f"""\
[run]
name = "tiny"
clock = "ideal"
min_free_gib = 0.0

[instrument]
driver = "simulated_optical"
seed = 5

[instrument.camera]
width_px = 320
height_px = 240

[instrument.chip]
seed = 5
size_mm = [0.8, 0.8]
flakes_per_mm2 = 40.0

[safety]
x_min_um = -200.0
x_max_um = 200.0
y_min_um = -200.0
y_max_um = 200.0

[camera]
frame_timeout_s = 0.5

[focus]
enabled = false

[scan]
area = "limits"
max_tiles = {TILES}

[revisit]
max_flakes = 0
"""
PHOTOGRAPHS = """\
[run]
name = "again"
clock = "ideal"
min_free_gib = 0.0

[instrument]
driver = "replay"
images = "{images}"
pixel_size_nm = 384.0

[focus]
enabled = false

[scan]
area = "limits"
overlap_ratio = 0.0
edge_margin_um = 0.0

[revisit]
max_flakes = 0
"""
NO_FAULT = "\n# faults end here\n"
is_root = hasattr(os, "geteuid") and os.geteuid() == 0

Edit = tuple[str, str]  # what stands in the file, what shall stand there


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    said: str  # standard output
    line: str  # standard error, without the "error: "
    microscopes: tuple[Instrument, ...]  # that were made


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line: `command("search", path, "--seed", 3)`."""
    made: list[Instrument] = []
    open_instrument = app.open_instrument

    def remembered(*args, **kwargs):
        made.append(open_instrument(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(app, "open_instrument", remembered)

    def call(*words: object) -> Ended:
        made.clear()
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["scopeloop", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Ended(ended.value.code or 0, said.out, said.err, tuple(made))

    return call


@pytest.fixture
def config(tmp_path) -> Callable[..., Path]:
    def written(*edits: Edit, text: str = MICROSCOPE, more: str = "") -> Path:
        for old, new in edits:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "config.toml"
        path.write_text(text + more, encoding="utf-8")
        return path

    return written


def complaint(ended: Ended, status: int, words: Sequence[str]) -> None:
    """One line that says it all."""
    assert ended.status == status, ended
    assert ended.line.startswith("error: "), ended.line
    assert ended.line.count("\n") == 1, ended.line
    for word in words:
        assert word in ended.line, ended.line


def the_run(parent: Path) -> Path:
    (path,) = parent.iterdir()
    return path


def facts_of(run: Path) -> tuple[Fact, ...]:
    with Journal(run / "journal.sqlite", is_read_only=True) as journal:
        return tuple(journal.replay())


def last_of(run: Path) -> RunFinished:
    finished = facts_of(run)[-1]
    assert isinstance(finished, RunFinished)
    return finished


def is_safe(microscope: Instrument) -> None:
    """Lamp dark, and every axis at rest or at full braking."""
    assert isinstance(microscope, SimulatedMicroscope)
    body = microscope._body
    assert body.intensity_ratio == 0.0
    assert not body.wiring.is_open
    for axis, motion in zip(body.axes, body.motions, strict=True):
        braking_s = axis.speed_um_per_s / axis.acceleration_um_per_s2
        assert motion.ends_s <= body.wiring.now_s() + braking_s
    assert microscope.truth().collisions == 0


def is_whole(run: Path) -> None:
    """All that was acknowledged can be read, and nothing was saved twice."""
    saved = [fact for fact in facts_of(run) if isinstance(fact, Saved)]
    assert len({(fact.shot, fact.index) for fact in saved}) == len(saved)
    with FrameStore(run / "frames.ome.zarr", is_read_only=True) as frames:
        for fact in saved:
            frames.verify(fact.shot, fact.index, fact.checksum)


# --- settings: status 2, nothing is started -----------------------------------------------------

SETTINGS: list[tuple[str, Sequence[Edit], str, Sequence[str]]] = [
    # name, changes to the file, what is added to its end, what the line must contain
    ("unknown key at the top", [("[run]", "colour = 1\n[run]")], "", ["colour is 1", "scan"]),
    ("unknown section", [], "[scna]\nx = 1\n", ["scna", "did you mean scan?"]),
    ("unknown key", [("max_tiles", "max_tile")], "", ["scan.max_tile is 3", "max_tiles?"]),
    ("unknown key, deeper", [], "[focus.sweep]\nfoo = 1\n", ["focus.sweep.foo", "fine_samples"]),
    ("unknown key of the driver", [], "[instrument.lamp]\nw = 1\n", ["instrument.lamp", "turret"]),
    ("unknown key of the chip", [("size_mm", "size_um")], "", ["chip.size_um", "size_mm?"]),
    ("unknown key of the detector", [], "[detector]\noxide = 90\n", ["detector.oxide", "oxide_nm"]),
    (
        "a word for a number",
        [("tiles = 3", 'tiles = "three"')],
        "",
        ["scan.max_tiles", "integer >= 1"],
    ),
    ("a number for a word", [('"limits"', "4")], "", ["scan.area is 4", "'chip' or 'limits'"]),
    ("a word for a claim", [("false", '"maybe"')], "", ["focus.enabled is 'maybe'", "boolean"]),
    (
        "a value for a section",
        [("[run]", "wanted = 3\n[run]")],
        "",
        ["wanted is 3", "min_area_um2"],
    ),
    (
        "a section for a value",
        [("tiles = 3", "tiles = {a = 1}")],
        "",
        ["scan.max_tiles is {'a': 1}", ">= 1"],
    ),
    ("one wrong in a list", [], "[wanted]\nlayers = [1, 'two']\n", ["wanted.layers.1 is 'two'"]),
    ("an empty list", [], "[wanted]\nlayers = []\n", ["wanted", "at least one"]),
    ("below the range", [("tiles = 3", "tiles = 0")], "", ["scan.max_tiles is 0", "a number >= 1"]),
    ("above the range", [("= 0.5", "= 1e3")], "", ["frame_timeout_s is 1000.0", "> 0 and <= 120"]),
    ("chip out of range", [("0.8, 0.8", "0.8, 800.0")], "", ["size_mm.1 is 800.0", "<= 200"]),
    ("detector out of range", [], "[detector]\noxide_nm = 5\n", ["oxide_nm is 5", ">= 10 and"]),
    ("NaN", [("= -200.0\nx", "= nan\nx")], "", ["safety.x_min_um is nan", "finite"]),
    ("infinite", [("= 0.5", "= inf")], "", ["camera.frame_timeout_s is inf", "finite", "<= 120"]),
    ("NaN in the chip", [("0.8, 0.8", "nan, 0.8")], "", ["instrument.chip.size_mm.0 is nan"]),
    ("no driver", [('driver = "simulated_optical"', "")], "", ["instrument.driver is missing"]),
    ("unknown driver", [("simulated_optical", "leica")], "", ["'leica'", "'replay'"]),
    (
        "unknown objective",
        [("tiles = 3", 'tiles = 3\nobjective = "63x"')],
        "",
        ["scan.objective is '63x'", "20x"],
    ),
    ("unknown overview lens", [('"limits"', '"chip"')], '[overview]\nobjective = "4x"\n', ["'4x'"]),
    ("unknown revisit lens", [("flakes = 0", 'flakes = 1\nobjective = "7x"')], "", ["'7x'", "50x"]),
    ("unknown material", [], '[detector]\nmaterials = ["tin"]\n', ["no material 'tin'", "wse2"]),
    ("unknown on the chip", [("size_mm", 'materials = ["tin"]\nsize_mm')], "", ["'tin'", "mos2"]),
    ("wanted, not looked for", [], '[wanted]\nmaterials = ["mos2"]\n', ["'mos2'", "graphene"]),
    ("unknown clock", [('"ideal"', '"warp"')], "", ["run.clock is 'warp'", "'virtual'"]),
    ("no name for a folder", [('"tiny"', '"a/b"')], "", ["run.name is 'a/b'"]),
    ("a name that Windows keeps", [('"tiny"', '"CON"')], "", ["run.name is 'CON'", "Windows"]),
    ("limits the wrong way", [("= -200.0\nx", "= 300.0\nx")], "", ["safety.x", "[300.0, 200.0]"]),
    ("limits out of reach", [("= 200.0\ny", "= -1e6\ny")], "", ["safety.x", "-60000 to 60000 um"]),
    (
        "exposure beyond safety",
        [("[camera]", "max_exposure_s = 0.001\n[camera]")],
        "",
        ["camera.exposure_s is 0.01", "safety.max_exposure_s = 0.001"],
    ),
    ("a camera too small", [("320", "40")], "", ["instrument", "40 x 240 px", "64 x 64"]),
    (
        "a fault that cannot be",
        [],
        '[[instrument.faults]]\ndevice = "stage"\nkind = "black"\nat_call = 1\n',
        ["instrument.faults.0", "a stage cannot be black", "stalled_move"],
    ),
]


@pytest.mark.parametrize(
    ("edits", "more", "words"), [c[1:] for c in SETTINGS], ids=[c[0] for c in SETTINGS]
)
def test_settings(command, config, tmp_path, edits, more, words) -> None:
    ended = command("search", config(*edits, more=more), "--out", tmp_path / "runs")
    complaint(ended, 2, [str(tmp_path / "config.toml"), *words])
    assert not (tmp_path / "runs").exists()


FILES: list[tuple[str, bytes | None, Sequence[str]]] = [
    ("absent", None, ["is missing", "TOML"]),
    ("empty", b"", ["instrument is missing", "driver"]),
    ("not TOML", b"[run]\nname tiny\n", ["is not TOML", "line 2"]),
    ("a key twice", b"[run]\nname = 'a'\nname = 'b'\n", ["is not TOML", "line 3"]),
    ("not UTF-8", b"[run]\nname = 'caf\xe9'\n", ["is not UTF-8", "byte 17"]),
    ("binary", bytes(range(256)), ["is not"]),
]


@pytest.mark.parametrize(("content", "words"), [c[1:] for c in FILES], ids=[c[0] for c in FILES])
@pytest.mark.parametrize("verb", ["search", "doctor", "focus"])
def test_file(command, tmp_path, verb, content, words) -> None:
    path = tmp_path / "some.toml"
    if content is not None:
        path.write_bytes(content)
    complaint(command(verb, path), 2, [str(path), *words])


def test_folder_instead_of_a_file(command, tmp_path) -> None:
    complaint(command("search", tmp_path), 2, [str(tmp_path), "is not readable"])


def test_the_mark_of_windows_editors_is_no_error(command, config, tmp_path) -> None:
    path = config()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert command("search", path, "--out", tmp_path / "runs").status == 0


WORDS: list[tuple[str, Sequence[str], Sequence[str]]] = [
    ("no value", ["scan.max_tiles"], ["--set is 'scan.max_tiles'", "KEY=VALUE"]),
    ("no key", ["=3"], ["--set is '=3'", "KEY=VALUE"]),
    ("into a value", ["scan.area.deep=3"], ["--set: scan.area.deep", "area is none"]),
    ("two lines", ["scan.max_tiles=2\nrun.name='x'"], ["--set", "KEY=VALUE"]),
    ("unknown key", ["scan.max_tile=3"], ["scan.max_tile is 3", "max_tiles?"]),
    ("a word for a number", ["scan.max_tiles=many"], ["scan.max_tiles is 'many'", "integer >= 1"]),
    ("NaN", ["camera.exposure_s=nan"], ["camera.exposure_s is nan", "finite"]),
    ("the second is wrong", ["scan.max_tiles=2", "camera=1"], ["camera is 1", "exposure_s"]),
]


@pytest.mark.parametrize(("words", "said"), [c[1:] for c in WORDS], ids=[c[0] for c in WORDS])
def test_set(command, config, tmp_path, words, said) -> None:
    options = [option for word in words for option in ("--set", word)]
    complaint(command("search", config(), *options, "--out", tmp_path / "runs"), 2, said)
    assert not (tmp_path / "runs").exists()


def test_what_the_command_line_changed_holds_after_a_resume(command, config, tmp_path) -> None:
    """A comment of the user's own that looks like a change is none."""
    path = config(("[run]", "# --set wanted.min_area_um2=-1\n[run]"))
    ended = command("search", path, "--set", "scan.max_tiles=2", "--out", tmp_path / "runs")
    assert ended.status == 0
    run = the_run(tmp_path / "runs")
    assert sum(isinstance(fact, Saved) for fact in facts_of(run)) == 2
    assert command("search", "--resume", run).status == 0
    assert sum(isinstance(fact, Saved) for fact in facts_of(run)) == 2


# --- devices: status 1, everything stands still, the run can go on -----------------------------


def fault(device: str, kind: str, when: str = "at_call = 2") -> str:
    return f'\n[[instrument.faults]]\ndevice = "{device}"\nkind = "{kind}"\n{when}\n'


async def _never(*_: object) -> None:
    await asyncio.Event().wait()


async def _nowhere(*_: object) -> tuple[float, float]:
    return math.nan, math.nan


async def _no_height(*_: object) -> float:
    return math.nan


def from_call(
    owner: type, name: str, first: int, instead: Callable, last: float = math.inf
) -> Callable:
    """A patch: from its n-th call on, a method of the instrument is another."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        own, calls = getattr(owner, name), 0

        async def method(self, *args):
            nonlocal calls
            calls += 1
            return await (instead if first <= calls <= last else own)(self, *args)

        monkeypatch.setattr(owner, name, method)

    return patch


def every_frame(change: Callable) -> Callable:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        put = FrameBuffer.put
        monkeypatch.setattr(FrameBuffer, "put", lambda self, frame: put(self, change(frame)))

    return patch


def all_of(*patches: Callable) -> Callable:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for each in patches:
            each(monkeypatch)

    return patch


def _deep(frame):
    return replace(frame, pixels=frame.pixels.astype(np.uint16))


def _grown(frame):
    return replace(frame, pixels=np.concatenate([frame.pixels] * 2, axis=2))


def _nowhere_taken(frame):
    return replace(frame, pose=replace(frame.pose, stage_x_um=math.nan))


MOVE_S = 3.0  # a second beside 1.5 x the move's own time, and what went before
FRAMES_S = 4.0  # three frames of 0.51 s, and what went before
TRIGGER_S = 4.0  # two seconds beside the exposure
FOCUSED = [("enabled = false", "enabled = true\nstart_sigma_um = 4.0")]
CHIP = [('area = "limits"', 'area = "chip"')]
WIDE = (
    "x_min_um = -200.0\nx_max_um = 200.0\ny_min_um = -200.0\ny_max_um = 200.0",
    "x_min_um = -1200.0\nx_max_um = 1200.0\ny_min_um = -1200.0\ny_max_um = 1200.0",
)
EMPTY = ("flakes_per_mm2 = 40.0", "flakes_per_mm2 = 0.0\ndebris_per_mm2 = 0.0\nhaze_nm = 0.0")


@dataclass(frozen=True)
class Device:
    """One case: what is done, what is said, and after how long at most it is over."""

    name: str
    words: Sequence[str]
    within_s: float
    faults: str = ""
    edits: Sequence[Edit] = ()
    patch: Callable[[pytest.MonkeyPatch], None] | None = None
    is_cured: bool = False  # and then `--resume` completes the run


STAGE, FOCUS, CAMERA = "simulated stage", "simulated focus", "simulated camera"
DEVICES = [
    Device(
        "stage stays where it is",
        [STAGE, "asked for", "not there after", "check the axis"],
        MOVE_S,
        fault("stage", "ignored_move"),
        is_cured=True,
    ),
    Device(
        "stage stops half-way",
        [STAGE, "came (", "last state Idle"],
        MOVE_S,
        fault("stage", "stalled_move"),
    ),
    Device(
        "stage moves for ever", [STAGE, "last state Moving"], MOVE_S, fault("stage", "stuck_moving")
    ),
    Device(
        "stage never says", [STAGE, "last state Unknown"], MOVE_S, fault("stage", "unknown_state")
    ),
    Device(
        "stage moves from the start",
        [STAGE, "not at rest within 1 s"],
        MOVE_S,
        fault("stage", "stuck_moving", "at_s = 0.0"),
    ),
    Device(
        "stage refuses", [STAGE, "answered no", "check the axis"], MOVE_S, fault("stage", "refused")
    ),
    Device(
        "stage's link is lost",
        [STAGE, "cable is out", "reconnect"],
        MOVE_S,
        fault("stage", "link_lost"),
        is_cured=True,
    ),
    Device(
        "stage was never there",
        [STAGE, "asked where it is", "cable is out"],
        MOVE_S,
        fault("stage", "link_lost", "at_s = 0.0"),
    ),
    Device(
        "stage is nowhere",
        [STAGE, "position (nan, nan)"],
        MOVE_S,
        patch=from_call(SimulatedStage, "position_um", 3, _nowhere),
    ),
    Device(
        "stage is nowhere at the start",
        [STAGE, "not at rest", "(nan, nan)"],
        MOVE_S,
        patch=from_call(SimulatedStage, "position_um", 1, _nowhere),
    ),
    Device(
        "stage does not answer",
        [STAGE, "not there after"],
        MOVE_S,
        patch=from_call(SimulatedStage, "state", 4, _never),
    ),
    Device(
        "stage does not take a move",
        [STAGE, "not there after"],
        MOVE_S,
        patch=from_call(SimulatedStage, "start_move_um", 2, _never),
    ),
    Device(
        "stage cannot be halted",
        [STAGE, "halt was not confirmed", "hardware stop", "it began with", "cable is out"],
        MOVE_S,
        fault("stage", "link_lost"),
        patch=from_call(SimulatedStage, "halt", 1, _never, 2),
        is_cured=True,
    ),
    Device(
        "focus stays where it is",
        [FOCUS, "not there after", "check the axis"],
        MOVE_S,
        fault("focus", "ignored_move"),
    ),
    Device(
        "focus moves for ever",
        [FOCUS, "last state Moving"],
        MOVE_S,
        fault("focus", "stuck_moving"),
        is_cured=True,
    ),
    Device(
        "focus never says", [FOCUS, "last state Unknown"], MOVE_S, fault("focus", "unknown_state")
    ),
    Device("focus refuses", [FOCUS, "answered no"], MOVE_S, fault("focus", "refused")),
    Device(
        "focus's link is lost",
        [FOCUS, "cable is out", "reconnect"],
        MOVE_S,
        fault("focus", "link_lost"),
    ),
    Device(
        "focus is nowhere",
        [FOCUS, "position (nan,)"],
        MOVE_S,
        patch=from_call(SimulatedFocusAxis, "position_um", 3, _no_height),
    ),
    Device(
        "turret refuses",
        ["simulated turret", "asked for 10x", "answered no"],
        MOVE_S,
        fault("turret", "refused", "at_call = 1"),
        [("tiles = 3", 'tiles = 3\nobjective = "10x"')],
        is_cured=True,
    ),
    Device(
        "turret's link is lost",
        ["simulated turret", "cable is out"],
        MOVE_S,
        fault("turret", "link_lost", "at_call = 1"),
        [("tiles = 3", 'tiles = 3\nobjective = "10x"')],
    ),
    Device(
        "turret never arrives",
        ["simulated turret", "silent for 20 s", "check the turret"],
        23.0,
        "",
        [("tiles = 3", 'tiles = 3\nobjective = "10x"')],
        from_call(SimulatedTurret, "select", 1, _never),
    ),
    Device(
        "camera stops",
        [CAMERA, "3 frames in a row", "did not come within 0.51 s", "check the camera"],
        FRAMES_S,
        fault("camera", "stopped"),
        is_cured=True,
    ),
    Device(
        "camera drops all",
        [CAMERA, "3 frames in a row", "did not come"],
        FRAMES_S,
        fault("camera", "dropped", "at_call = 1\ncalls = 99"),
    ),
    Device(
        "camera halves all",
        [CAMERA, "shape (120, 320, 3)", "promised (240, 320)"],
        FRAMES_S,
        fault("camera", "wrong_size", "at_call = 1\ncalls = 99"),
        is_cured=True,
    ),
    Device(
        "camera changes its depth",
        [CAMERA, "dtype uint16 with 8"],
        FRAMES_S,
        patch=every_frame(_deep),
    ),
    Device(
        "camera has six colours",
        [CAMERA, "shape (240, 320, 6)"],
        FRAMES_S,
        patch=every_frame(_grown),
    ),
    Device(
        "camera was nowhere", [CAMERA, "not finite"], FRAMES_S, patch=every_frame(_nowhere_taken)
    ),
    Device("camera refuses", ["camera", "answered no"], FRAMES_S, fault("camera", "refused")),
    Device(
        "camera's link is lost",
        ["camera", "cable is out", "reconnect"],
        FRAMES_S,
        fault("camera", "link_lost"),
    ),
    Device(
        "camera exposes for ever",
        [CAMERA, "exposure did not end within 2.01 s"],
        TRIGGER_S,
        patch=from_call(SoftwareCamera, "trigger", 2, _never),
        is_cured=True,
    ),
    Device(
        "exposure beyond the camera",
        [CAMERA, "20.0 s", "possible: 0.0001 to 10.0 s"],
        FRAMES_S,
        edits=[("[camera]", "[camera]\nexposure_s = 20.0")],
    ),
    Device(
        "all saturated",
        ["saturated", "camera.exposure_s", "lamp"],
        FRAMES_S,
        fault("camera", "saturated", "at_call = 1\ncalls = 99"),
        is_cured=True,
    ),
    Device(
        "many saturated",
        ["10 frames in a row", "saturated"],
        8.0,
        fault("camera", "saturated", "at_call = 3\ncalls = 99"),
        [("tiles = 3", "tiles = 14")],
    ),
    Device(
        "all black",
        ["all 3 tiles were black", "lamp, shutter", "new run"],
        FRAMES_S,
        fault("camera", "black", "at_call = 1\ncalls = 99"),
    ),
    Device(
        "black while focusing",
        ["no focus at 5 places"],
        60.0,
        fault("camera", "black", "at_call = 1\ncalls = 999"),
        FOCUSED,
    ),
    Device(
        "nothing to focus on",
        ["no focus at 5 places"],
        60.0,
        edits=[*FOCUSED, EMPTY],
    ),
    Device(
        "no chip",
        ["no chip was found"],
        60.0,
        edits=[
            *CHIP,
            ("seed = 5\nsize", "seed = 5\ncentre_um = [40000.0, 0.0]\nsize"),
            WIDE,
        ],
    ),
    Device(
        "a plan without end",
        ["would take", "at most 100000", "[safety]", "scan.objective"],
        1.0,
        edits=[
            ("x_max_um = 200.0", "x_max_um = 60000.0"),
            ("y_max_um = 200.0", "y_max_um = 60000.0"),
        ],
    ),
    Device(
        "no room for a tile",
        ["no tile fits"],
        1.0,
        edits=[("tiles = 3", "tiles = 3\nedge_margin_um = 300.0")],
    ),
]


@pytest.mark.parametrize("case", DEVICES, ids=[case.name for case in DEVICES])
def test_device(command, config, tmp_path, monkeypatch, case) -> None:
    more = NO_FAULT + case.faults
    with monkeypatch.context() as patched:
        if case.patch is not None:
            case.patch(patched)
        path = config(*case.edits, more=more)
        ended = command("search", path, "--out", tmp_path / "runs")
    complaint(ended, 1, case.words)
    run = the_run(tmp_path / "runs")
    assert f"scopeloop search --resume {run}" in ended.said
    finished = last_of(run)
    assert finished.outcome == "failed"
    assert finished.reason
    assert finished.elapsed_s <= case.within_s
    assert finished.frames_unaccounted == 0
    is_safe(ended.microscopes[0])
    is_whole(run)
    if case.is_cured:
        settings = run / "settings.toml"
        settings.write_text(settings.read_text(encoding="utf-8").partition(NO_FAULT)[0])
        assert command("search", "--resume", run).status == 0
        assert last_of(run).outcome == "complete"
        is_whole(run)


# --- nuisances: the run goes on and says so ----------------------------------------------------

NUISANCES: list[tuple[str, str, Sequence[Edit], str, float]] = [
    ("one frame dropped", fault("camera", "dropped"), [], "tile 1: ", FRAMES_S),
    ("one frame halved", fault("camera", "wrong_size"), [], "shape (120, 320, 3)", FRAMES_S),
    ("one frame saturated", fault("camera", "saturated"), [], "saturated", FRAMES_S),
    ("one frame late", fault("camera", "reordered"), [], "report", FRAMES_S),
    ("every frame twice", fault("camera", "doubled", "at_call = 1\ncalls = 99"), [], "report", 2.0),
    ("black beyond the chip", fault("camera", "black"), [], "1 of 3 tiles", 2.0),
    (
        "frames dropped while focusing",
        fault("camera", "dropped", "probability = 0.15"),
        FOCUSED,
        "report",
        40.0,
    ),
]


@pytest.mark.parametrize(
    ("faults", "edits", "word", "within_s"),
    [c[1:] for c in NUISANCES],
    ids=[c[0] for c in NUISANCES],
)
def test_nuisance(command, config, tmp_path, faults, edits, word, within_s) -> None:
    ended = command("search", config(*edits, more=faults), "--out", tmp_path / "runs")
    assert (ended.status, ended.line) == (0, "")
    assert word in ended.said
    run = the_run(tmp_path / "runs")
    finished = last_of(run)
    assert (finished.outcome, finished.tiles, finished.frames_unaccounted) == ("complete", TILES, 0)
    assert finished.elapsed_s <= within_s
    is_safe(ended.microscopes[0])
    is_whole(run)


def test_a_lost_frame_of_the_overview_is_taken_again(command, config, tmp_path) -> None:
    path = config(*CHIP, WIDE, more=fault("camera", "dropped", "at_call = 3"))
    ended = command("search", path, "--out", tmp_path / "runs")
    assert (ended.status, ended.line) == (0, "")
    assert "overview 2: " in ended.said
    saved = [fact for fact in facts_of(the_run(tmp_path / "runs")) if isinstance(fact, Saved)]
    overview = [fact.index for fact in saved if fact.shot == "overview"]
    assert overview[-1] == 2
    assert sorted(overview) == list(range(len(overview)))


# --- a run's folder: what lies there is refused or repaired, never overwritten ------------------


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """A run that came to its end, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "config.toml").write_text(MICROSCOPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as ended:
        words = ["search", str(folder / "config.toml"), "--out", str(folder / "runs")]
        patched.setattr(sys, "argv", ["scopeloop", *words])
        cli.main()
    assert not ended.value.code
    return the_run(folder / "runs")


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    path = tmp_path / finished_run.name
    shutil.copytree(finished_run, path)
    return path


def sql(run: Path, *commands: str) -> None:
    with closing(sqlite3.connect(run / "journal.sqlite")) as database:
        for command in commands:
            database.execute(command)
        database.commit()


def cut(run: Path) -> None:
    """As a kill would have left it: one tile was acknowledged, the second only written."""
    sql(run, "DELETE FROM facts WHERE seq > (SELECT min(seq) FROM facts WHERE kind = 'saved')")
    shutil.rmtree(run / "frames.ome.zarr" / "tile" / "2")


def chunk(run: Path, index: int = 0) -> Path:
    return run / "frames.ome.zarr" / "tile" / str(index) / "0" / "c" / "0" / "0" / "0"


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def emptied(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


def foreign(run: Path) -> None:
    emptied(run)
    (run / "holiday.jpg").write_bytes(b"\xff\xd8")


def instead_of(path: Path) -> None:
    """A folder in the place of a file."""
    path.unlink()
    (path / "x").mkdir(parents=True)


JOURNAL, ZARR, SETTINGS_TOML = "journal.sqlite", "frames.ome.zarr", "settings.toml"
MARKER = rundir.MARKER_NAME
CURE = "restore it from a copy"
RECORDS: list[tuple[str, Callable[[Path], object], int, Sequence[str]]] = [
    ("no folder", shutil.rmtree, 2, ["no such folder"]),
    ("an empty folder", emptied, 2, ["not the folder of a run", MARKER]),
    ("a foreign folder", foreign, 2, ["not the folder of a run", MARKER]),
    ("marker is cut", lambda r: shortened(r / MARKER), 1, [MARKER, "is damaged"]),
    (
        "marker is newer",
        lambda r: changed(r / MARKER, '"format": 1', '"format": 9'),
        1,
        ["format 9", "update"],
    ),
    ("journal is cut", lambda r: shortened(r / JOURNAL), 1, [JOURNAL, CURE]),
    (
        "journal is empty",
        lambda r: (r / JOURNAL).write_bytes(b""),
        1,
        [JOURNAL, "frames lie beside", CURE],
    ),
    ("journal is gone", lambda r: (r / JOURNAL).unlink(), 1, [JOURNAL, "frames lie beside", CURE]),
    (
        "journal is no database",
        lambda r: (r / JOURNAL).write_bytes(b"text" * 999),
        1,
        [JOURNAL, "not a database", CURE],
    ),
    (
        "journal is newer",
        lambda r: sql(r, "PRAGMA user_version = 9"),
        1,
        [JOURNAL, "format 9", "update"],
    ),
    (
        "journal is another's",
        lambda r: sql(r, "PRAGMA application_id = 9"),
        1,
        [JOURNAL, "not the journal"],
    ),
    (
        "a row was changed",
        lambda r: sql(r, "UPDATE facts SET fact = fact || ' ' WHERE seq = 4"),
        1,
        [JOURNAL, "row 4 of", "wrong checksum", CURE],
    ),
    (
        "a row is gone",
        lambda r: sql(r, "DELETE FROM facts WHERE seq = 3"),
        1,
        [JOURNAL, "row 3 of", "missing", CURE],
    ),
    (
        "frames are no store",
        lambda r: (r / ZARR / "zarr.json").write_text("{"),
        1,
        [ZARR, "is damaged"],
    ),
    ("settings are gone", lambda r: (r / SETTINGS_TOML).unlink(), 2, [SETTINGS_TOML, "is missing"]),
    (
        "settings are cut",
        lambda r: (r / SETTINGS_TOML).write_text("[run"),
        2,
        [SETTINGS_TOML, "not TOML"],
    ),
    (
        "settings are wrong",
        lambda r: changed(r / SETTINGS_TOML, "tiles = 3", "tiles = 0"),
        2,
        [SETTINGS_TOML, "scan.max_tiles is 0", ">= 1"],
    ),
    (
        "another objective",
        lambda r: changed(r / SETTINGS_TOML, "tiles = 3", 'tiles = 3\nobjective = "10x"'),
        2,
        [SETTINGS_TOML, "scan.objective is '10x'", "'20x'"],
    ),
    (
        "another camera",
        lambda r: changed(r / SETTINGS_TOML, "320", "400"),
        2,
        [SETTINGS_TOML, "instrument", "153.6 x 92.2 um", "122.9 x 92.2 um"],
    ),
    (
        "report cannot be written",
        lambda r: instead_of(r / "report.html"),
        1,
        ["report.html", "cannot be written"],
    ),
]


@pytest.mark.parametrize(
    ("spoil", "status", "words"), [c[1:] for c in RECORDS], ids=[c[0] for c in RECORDS]
)
def test_record(command, run, spoil, status, words) -> None:
    spoil(run)
    before = {p: p.read_bytes() for p in run.glob("frames.ome.zarr/tile/**/*") if p.is_file()}
    complaint(command("search", "--resume", run), status, [str(run), *words])
    assert {path: path.read_bytes() for path in before} == before


def test_a_file_is_no_run(command, tmp_path) -> None:
    (tmp_path / "run").write_text("")
    complaint(command("search", "--resume", tmp_path / "run"), 2, ["this is a file"])


def test_a_run_that_is_held(command, run) -> None:
    with rundir.open_existing(run):
        words = [str(run), "another process", str(os.getpid())]
        complaint(command("search", "--resume", run), 1, words)
    assert command("search", "--resume", run).status == 0


@pytest.mark.parametrize("spoil", [shortened, flipped], ids=["cut", "flipped"])
@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "killed"])
def test_a_damaged_frame(command, run, spoil, is_finished) -> None:
    """It is named with what to do; done so, it is taken again, and it alone."""
    if not is_finished:
        cut(run)
    spoil(chunk(run))
    folder = run / "frames.ome.zarr" / "tile" / "0"
    complaint(command("search", "--resume", run), 1, [str(folder), "damaged", "delete", "again"])
    shutil.rmtree(folder)
    ended = command("search", "--resume", run)
    assert ended.status == 0
    assert "taken again: 1 frames" in ended.said
    again = [fact.index for fact in facts_of(run) if isinstance(fact, Exposed)]
    assert sorted(again) == [0, 0, 1, 2]
    FrameStore(run / "frames.ome.zarr", is_read_only=True).load("tile", 0)


def test_what_a_kill_left_half_written_is_taken_again(command, run) -> None:
    cut(run)
    shortened(chunk(run, 1))
    assert command("search", "--resume", run).status == 0
    is_whole(run)


# --- disks: nothing that was acknowledged is lost -----------------------------------------------


def test_too_little_room_at_the_start(command, config, tmp_path) -> None:
    path = config(("min_free_gib = 0.0", "min_free_gib = 9999.0"))
    ended = command("search", path, "--out", tmp_path / "runs")
    complaint(ended, 1, [str(tmp_path / "runs"), "disk is full", "9999 GiB must stay free"])
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_disk_fills_up(command, config, tmp_path, monkeypatch, frames) -> None:
    """After `frames` frames no more finds room; with room again the run goes on to its end."""
    path = config(("min_free_gib = 0.0", "min_free_gib = 0.5"))
    asked = 0

    def free_gib(_: object) -> float:
        nonlocal asked
        asked += 1
        return 100.0 if asked <= 1 + frames else 0.1  # once before the start

    with monkeypatch.context() as patched:
        patched.setattr(rundir, "free_gib", free_gib)
        ended = command("search", path, "--out", tmp_path / "runs")
    complaint(ended, 1, ["disk is full", "0.10 GiB free", "0.5 GiB", "make room, then resume"])
    run = the_run(tmp_path / "runs")
    assert f"--resume {run}" in ended.said
    assert last_of(run).outcome == "failed"
    assert last_of(run).elapsed_s <= 2.0
    is_safe(ended.microscopes[0])
    kept = [fact for fact in facts_of(run) if isinstance(fact, Saved)]
    assert len(kept) == frames
    is_whole(run)
    assert command("search", "--resume", run).status == 0
    saved = [fact for fact in facts_of(run) if isinstance(fact, Saved)]
    assert saved[:frames] == kept
    assert len(saved) == TILES
    is_whole(run)


@pytest.mark.parametrize("facts", [1, 4, 9])
def test_journal_cannot_be_written(command, config, tmp_path, monkeypatch, facts) -> None:
    append, appended = Journal.append, 0

    def failing(self, these):
        nonlocal appended
        these = list(these)
        appended += len(these)
        if these and appended > facts:
            with rundir.writing(self.path):
                raise OSError(errno.EIO, "Input/output error")
        append(self, these)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", failing)
        ended = command("search", config(), "--out", tmp_path / "runs")
    complaint(ended, 1, ["journal.sqlite", "cannot be written", "Input/output error"])
    is_safe(ended.microscopes[0])
    run = the_run(tmp_path / "runs")
    is_whole(run)
    assert command("search", "--resume", run).status == 0
    is_whole(run)


def test_frame_cannot_be_written(command, config, tmp_path, monkeypatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("controller.record.frames._write_image", refused)
        ended = command("search", config(), "--out", tmp_path / "runs")
    complaint(ended, 1, ["frames.ome.zarr", "tile", "cannot be written: Permission denied"])
    run = the_run(tmp_path / "runs")
    assert last_of(run).outcome == "failed"
    is_safe(ended.microscopes[0])
    assert command("search", "--resume", run).status == 0
    is_whole(run)


def test_output_is_a_file(command, config, tmp_path) -> None:
    (tmp_path / "runs").write_text("")
    ended = command("search", config(), "--out", tmp_path / "runs")
    complaint(ended, 1, [str(tmp_path / "runs"), "cannot be written"])


@pytest.mark.skipif(is_root or sys.platform == "win32", reason="root may write anywhere")
def test_output_may_not_be_written(command, config, tmp_path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    ended = command("search", config(), "--out", tmp_path / "runs")
    complaint(ended, 1, [str(tmp_path / "runs"), "cannot be written", "Permission denied"])


def test_a_path_with_brackets_is_shown_as_it_is(command, config, tmp_path) -> None:
    """They are markup to the library that prints."""
    parent = tmp_path / "[bold]runs[/]"
    ended = command("search", config(more=fault("stage", "refused")), "--out", parent)
    complaint(ended, 1, ["simulated stage"])
    assert f"--resume {the_run(parent)}" in ended.said
    complaint(command("search", parent / "no.toml"), 2, [str(parent / "no.toml")])


# --- the user stops it ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in the scan", "in the report"])
def test_control_c(command, config, tmp_path, monkeypatch, where) -> None:
    take, taken = Darkroom.take, 0

    async def interrupted(self, *args):
        nonlocal taken
        taken += 1
        if taken == 2:
            signal.raise_signal(signal.SIGINT)
        return await take(self, *args)

    def at_once(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if where == "in the scan":
            patched.setattr(Darkroom, "take", interrupted)
        else:
            patched.setattr(search, "conclude", at_once)
        ended = command("search", config(), "--out", tmp_path / "runs")
    assert (ended.status, ended.line) == (130, "")
    run = the_run(tmp_path / "runs")
    assert f"--resume {run}" in ended.said
    assert last_of(run).outcome == ("stopped" if where == "in the scan" else "complete")
    assert last_of(run).elapsed_s <= 2.0
    is_safe(ended.microscopes[0])
    is_whole(run)
    assert command("search", "--resume", run).status == 0
    is_whole(run)


# --- photographs: the file is named --------------------------------------------------------------


def photograph(
    path: Path, value: int | tuple[int, ...] = (150, 120, 140), **others: object
) -> None:
    shape, dtype = others.get("shape", (100, 120)), others.get("dtype", np.uint8)
    noise = np.random.default_rng(1).integers(0, 6, (*shape, 3))
    cv2.imwrite(
        str(path), (np.array(value) + noise * (np.max(value) not in (0, 255))).astype(dtype)
    )


def spoilt_pixels(folder: Path) -> None:
    content = bytearray((folder / "p2.png").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    (folder / "p2.png").write_bytes(content)


def all_photographs(value: int) -> Callable[[Path], None]:
    def paint(folder: Path) -> None:
        for path in folder.iterdir():
            photograph(path, value)

    return paint


def table(text: str | bytes) -> Callable[[Path], object]:
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / "at.csv").write_bytes(content)


AT = [("pixel_size_nm", 'positions_csv = "at.csv"\npixel_size_nm')]
HEAD = "file,stage_x_um,stage_y_um\np0.png,0,0\n"
REPLAYS: list[tuple[str, Callable[[Path], object], Sequence[Edit], int, Sequence[str]]] = [
    ("no folder", shutil.rmtree, [], 1, ["images = ", "no such folder"]),
    (
        "no photograph",
        lambda f: [p.unlink() for p in f.iterdir()],
        [],
        1,
        ["images = ", "no photograph in it", "tiff"],
    ),
    (
        "the first is a text",
        lambda f: (f / "p0.png").write_text("hello"),
        [],
        1,
        ["p0.png", "no picture"],
    ),
    (
        "a later one is a text",
        lambda f: (f / "p2.png").write_text("hello"),
        [],
        1,
        ["p2.png", "no picture"],
    ),
    ("one is cut off", lambda f: shortened(f / "p2.png"), [], 1, ["p2.png", "cut off"]),
    ("one is empty", lambda f: (f / "p2.png").write_bytes(b""), [], 1, ["p2.png"]),
    ("damage within", spoilt_pixels, [], 1, ["p2.png", "damaged"]),
    (
        "mixed sizes",
        lambda f: photograph(f / "p2.png", shape=(90, 120)),
        [],
        1,
        ["p0.png is 120 x 100 px", "p2.png is 120 x 90 px", "positions_csv"],
    ),
    (
        "mixed depths",
        lambda f: photograph(f / "p2.png", 9000, dtype=np.uint16),
        [],
        1,
        ["p2.png holds uint16", "p0.png uint8"],
    ),
    (
        "numbers with NaN",
        lambda f: photograph(f / "p2.tif", 0, dtype=np.float32),
        [],
        1,
        ["p2.tif", "float32", "8 or 16 bit"],
    ),
    (
        "depth that cannot be",
        lambda _: None,
        [("pixel_size_nm", "bit_depth = 12\npixel_size_nm")],
        1,
        ["p0.png", "bit_depth = 12", "8-bit"],
    ),
    (
        "too small",
        lambda f: [photograph(p, shape=(9, 9)) for p in f.iterdir()],
        [],
        2,
        ["config.toml", "instrument", "25 x 25 px", "64 x 64"],
    ),
    ("all black", all_photographs(0), [], 1, ["all 4 tiles were black"]),
    ("all white", all_photographs(255), [], 1, ["saturated", "replay camera"]),
    ("no table", lambda _: None, AT, 1, ["positions_csv = ", "at.csv", "No such file"]),
    ("an empty table", table(""), AT, 1, ["at.csv", "file,stage_x_um,stage_y_um"]),
    (
        "other columns",
        table("file,x,y\np0.png,0,0\n"),
        AT,
        1,
        ["at.csv", "'x'", "file,stage_x_um,stage_y_um"],
    ),
    ("no row", table("file,stage_x_um,stage_y_um\n"), AT, 1, ["at.csv", "no photograph in it"]),
    (
        "NaN for a place",
        table(HEAD + "p1.png,nan,0\n"),
        AT,
        1,
        ["at.csv, line 3", "nan", "two numbers"],
    ),
    ("a word for a place", table(HEAD + "p1.png,0,there\n"), AT, 1, ["at.csv, line 3", "there"]),
    ("a short row", table(HEAD + "p1.png\n"), AT, 1, ["at.csv, line 3", "p1.png"]),
    ("an unknown file", table(HEAD + "zz.png,50,0\n"), AT, 1, ["zz.png", "No such file"]),
    (
        "out of this world",
        table(HEAD + "p1.png,1e300,0\n"),
        AT,
        1,
        ["would take", "at most 100000"],
    ),
    ("not a table", table(b"\xff\xfe\x00\x80"), AT, 1, ["at.csv", "utf-8"]),
    (
        "unknown key",
        lambda _: None,
        [("pixel_size_nm", "pixel_size_um = 1\npixel_size_nm")],
        2,
        ["config.toml", "instrument.pixel_size_um", "pixel_size_nm?"],
    ),
    (
        "no pixel size",
        lambda _: None,
        [("pixel_size_nm = 384.0", "")],
        2,
        ["config.toml", "instrument.pixel_size_nm is missing"],
    ),
    (
        "unknown objective",
        lambda _: None,
        [("pixel_size_nm", 'objective = "7x"\npixel_size_nm')],
        2,
        ["config.toml", "instrument", "must be one of 5x"],
    ),
]


@pytest.mark.parametrize(
    ("spoil", "edits", "status", "words"), [c[1:] for c in REPLAYS], ids=[c[0] for c in REPLAYS]
)
def test_replay(command, config, tmp_path, spoil, edits, status, words) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        photograph(folder / f"p{number}.png")
    spoil(folder)
    path = config(*edits, text=PHOTOGRAPHS.replace("{images}", folder.as_posix()))
    complaint(command("search", path, "--out", tmp_path / "runs"), status, words)
    if (tmp_path / "runs").exists():
        finished = last_of(the_run(tmp_path / "runs"))
        assert finished.outcome == "failed"
        assert finished.elapsed_s <= 1.0


def test_the_photographs_are_sound_before_they_are_spoilt(command, config, tmp_path) -> None:
    for number in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        photograph(tmp_path / "images" / f"p{number}.png")
    table(HEAD + "p1.png,46,0\n")(tmp_path / "images")
    for edits in ([], AT):
        path = config(
            *edits, text=PHOTOGRAPHS.replace("{images}", (tmp_path / "images").as_posix())
        )
        assert command("search", path, "--out", tmp_path / "runs").status == 0
