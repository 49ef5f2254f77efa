"""The command line: every command explains itself, takes what it says, and says what it refuses."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

import inference
from controller import cli
from controller.bench import Report
from controller.errors import BadSettings, SearchFailed, UnsafeCommand
from controller.figures import Row
from controller.record.rundir import BadRecord, NotARun
from drivers.errors import LinkLost
from inference.api import BadImage, NoEngine
from inference.engine import load_card
from inference.flakes.adapt import Adapted, Example, Fitted
from inference.flakes.ladder import Correction
from inference.flakes.microscope import Microscope, load_microscope

COMMANDS = [
    "search",
    "focus",
    "evaluate",
    "evaluate flakes",
    "evaluate focus",
    "evaluate restore",
    "denoise",
    "adapt",
    "adapt flakes",
    "train",
    "train focus",
    "train flakes",
    "bench",
    "doctor",
]
WEIGHTS = Path(inference.__file__).parent / "weights"
CARD = Path(__file__).resolve().parents[2] / "configs" / "materials" / "mote2.toml"
MICROSCOPE = """\
[run]
clock = "ideal"

[instrument]
driver = "simulated_optical"

[instrument.camera]
width_px = 320
height_px = 240

[instrument.chip]
size_mm = [0.5, 0.5]
"""


def called(*words: object) -> Result:
    """As in a shell, but for what `main` makes of errors: those stay in `result.exception`."""
    return CliRunner().invoke(cli.cli, [str(word) for word in words], env={"COLUMNS": "200"})


def plain(result: Result) -> str:
    """All that was printed, without colours, frames and line breaks."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─┃━┏┓┗┛┡┩└┘┴┳╇┤├]", " ", result.output)
    return " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command) -> None:
    result = called(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_help_names_every_command_and_what_it_does() -> None:
    said = plain(called("--help"))
    for word in ("search", "evaluate", "bench", "doctor", "Search a chip for flakes"):
        assert word in said
    options = plain(called("search", "--help"))
    for word in ("--resume", "--seed", "--out", "--set", "KEY=VALUE"):
        assert word in options


REFUSED: list[tuple[list[str], list[str]]] = [
    ([], ["Usage:"]),
    (["frob"], ["No such command 'frob'"]),
    (["search"], ["configuration file", "--resume"]),
    (["search", "--frob"], ["No such option", "--frob"]),
    (["search", "a.toml", "--resume", "run"], ["not both"]),
    (["search", "--resume", "run", "--seed", "3"], ["run's own settings", "--seed"]),
    (["search", "--resume", "run", "--out", "x"], ["run's own settings", "--out"]),
    (["search", "--resume", "run", "--set", "a=1"], ["run's own settings", "--set"]),
    (["search", "--resume", "run", "--material", "a.toml"], ["run's own settings", "--material"]),
    (["search", "a.toml", "--seed", "many"], ["--seed", "valid integer"]),
    (["search", "a.toml", "b.toml"], ["unexpected extra argument"]),
    (["evaluate"], ["Usage:"]),
    (["evaluate", "flakes"], ["Missing option", "--images"]),
    (["evaluate", "flakes", "--images", "x"], ["Missing option", "--masks"]),
    (
        ["evaluate", "flakes", "--images", "x", "--masks", "y", "--pixel-size-nm", "0"],
        ["--pixel-size-nm", "Invalid value"],
    ),
    (
        ["evaluate", "flakes", "--images", "x", "--masks", "y", "--oxide-nm", "5000"],
        ["--oxide-nm", "Invalid value"],
    ),
    (["bench"], ["Missing argument", "name"]),
    (["bench", "all", "--seed", "x"], ["--seed", "valid integer"]),
    (["bench", "all", "--jobs", "0"], ["--jobs", "Invalid value"]),
    (["train", "focus", "--epochs", "0"], ["--epochs", "Invalid value"]),
    (["train", "flakes", "--photographs", "3"], ["--photographs", "Invalid value"]),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(r[0]) or "-" for r in REFUSED])
def test_refused(words, said) -> None:
    result = called(*words)
    assert result.exit_code == 2
    for word in said:
        assert word in plain(result)


def test_arguments_reach_the_search(monkeypatch, tmp_path) -> None:
    asked = []
    monkeypatch.setattr(cli, "start_search", lambda *a, **k: asked.append((a, k)) or 0)
    monkeypatch.setattr(cli, "resume_search", lambda *a: asked.append(a) or 0)
    words = ["--seed", "7", "--out", tmp_path, "--set", "a.b=1", "--set", "c='x y'"]
    words += ["--material", "mote2.toml"]
    assert called("search", "some.toml", *words).exit_code == 0
    assert called("search", "--resume", tmp_path).exit_code == 0
    (config, _), options = asked[0]
    assert config == Path("some.toml")
    assert options == {
        "seed": 7,
        "out": tmp_path,
        "materials": [Path("mote2.toml")],
        "overrides": ["a.b=1", "c='x y'"],
    }
    assert asked[1][0] == tmp_path


@pytest.mark.parametrize("status", [0, 1, 130])
def test_the_search_decides_the_exit_status(monkeypatch, status) -> None:
    monkeypatch.setattr(cli, "start_search", lambda *_, **__: status)
    assert called("search", "some.toml").exit_code == status


ERRORS: list[tuple[Exception, int]] = [
    (BadSettings("a.toml", "scan.max_tiles", 0, "a number >= 1"), 2),
    (NotARun("runs/x", "there is no such folder"), 2),
    (BadRecord("runs/x", "is damaged"), 1),
    (SearchFailed("no focus at 5 places"), 1),
    (UnsafeCommand("MoveStage", "envelope", "x = 1e9 um"), 1),
    (LinkLost("stage", "the cable is out"), 1),
    (BadImage("need at least 64 x 64 px"), 1),
]


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda v: type(v).__name__)
def test_an_error_is_one_line_and_a_status(monkeypatch, capsys, error, status) -> None:
    def fails(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(cli, "start_search", fails)
    monkeypatch.setattr("sys.argv", ["scopeloop", "search", "some.toml"])
    error.add_note("and something [red]else[/]\non two lines")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == status
    assert said.err == f"error: {error}; and something [red]else[/] on two lines\n"


def test_a_mistake_in_the_program_is_not_hidden(monkeypatch) -> None:
    monkeypatch.setattr(cli, "start_search", lambda *_, **__: 1 // 0)
    monkeypatch.setattr("sys.argv", ["scopeloop", "search", "some.toml"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# --- doctor -------------------------------------------------------------------------------------


def test_doctor_says_what_is_installed() -> None:
    said = plain(called("doctor"))
    for word in ("python", "numpy", "zarr", "cores", "free disk here", "onnxruntime", "TensorRT"):
        assert word in said


def test_doctor_asks_every_device(tmp_path) -> None:
    (tmp_path / "a.toml").write_text(MICROSCOPE)
    result = called("doctor", tmp_path / "a.toml")
    assert result.exit_code == 0
    said = plain(result)
    assert "settings are sound" in said
    for word in ("simulated stage", "simulated focus", "simulated turret", "simulated camera"):
        assert word in said
    assert "frame 0, (240, 320, 3) uint8" in said
    assert "20x" in said
    assert [p.name for p in tmp_path.iterdir()] == ["a.toml"]


SICK = [
    ("stage", "link_lost", "at_s = 0.0", "stage: no answer"),
    ("focus", "link_lost", "at_s = 0.0", "focus: no answer"),
    ("turret", "link_lost", "at_s = 0.0", "turret: no answer"),
    ("camera", "refused", "at_call = 1", "camera: the controller answered no"),
    ("camera", "stopped", "at_s = 0.0", "simulated camera: asked, and nothing came within 8 s"),
    ("camera", "dropped", "at_call = 1", "simulated camera: asked, and nothing came within 8 s"),
]


@pytest.mark.parametrize(("device", "kind", "when", "words"), SICK)
def test_doctor_names_the_sick_device(tmp_path, device, kind, when, words) -> None:
    fault = f'\n[[instrument.faults]]\ndevice = "{device}"\nkind = "{kind}"\n{when}\n'
    (tmp_path / "a.toml").write_text(MICROSCOPE + fault)
    result = called("doctor", tmp_path / "a.toml")
    assert words in str(result.exception)


# --- bench --------------------------------------------------------------------------------------


def test_bench_list() -> None:
    result = called("bench", "list")
    assert result.exit_code == 0
    assert "frames" in result.output


def test_bench_unknown() -> None:
    error = called("bench", "nope").exception
    assert isinstance(error, BadSettings)
    assert "'nope'" in str(error)
    assert "frames" in str(error)


@pytest.fixture
def quick_bench(monkeypatch):
    asked = []

    def run(name: str, *, quick: bool, seed: int, report: Report) -> list[Row]:
        asked.append((name, quick, seed, report.jobs, report.only, report.most_s))
        report.partial([Row(f"{name} half", 1.0)])
        return [Row(f"{name} p50", 12.5, "us", bar=100.0, better="lower", n=10)]

    monkeypatch.setattr("controller.bench.run_bench", run)
    return asked


def test_bench_prints_and_writes(quick_bench, tmp_path) -> None:
    out = tmp_path / "new" / "figures.json"
    words = ["--jobs", 3, "--only", "a", "--only", "b", "--minutes", 0.5]
    result = called("bench", "frames", "--quick", "--seed", 4, "--out", out, *words)
    assert result.exit_code == 0
    assert quick_bench == [("frames", True, 4, 3, ("a", "b"), 30.0)]
    assert "frames p50" in result.output
    written = json.loads(out.read_text())
    assert (written["name"], written["seed"]) == ("frames", 4)
    assert written["rows"][0]["met"] is True


def test_a_bench_that_breaks_leaves_what_it_had(monkeypatch, tmp_path) -> None:
    def breaks(name: str, *, quick: bool, seed: int, report: Report) -> list[Row]:
        report.partial([Row("half", 1.0)])
        raise SearchFailed("the other half")

    monkeypatch.setattr("controller.bench.run_bench", breaks)
    out = tmp_path / "figures.json"
    assert isinstance(called("bench", "frames", "--out", out).exception, SearchFailed)
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["half"]


def test_bench_out_that_cannot_be_written(quick_bench, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    error = called("bench", "frames", "--out", tmp_path / "file" / "x.json").exception
    assert isinstance(error, BadRecord)
    assert "x.json" in str(error)
    assert "cannot be written" in str(error)


# --- evaluate -----------------------------------------------------------------------------------


@pytest.fixture
def flakes(tmp_path) -> tuple[Path, Path]:
    """Two photographs of substrate with one flake each, and where the flakes are."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    noise = np.random.default_rng(1).integers(0, 4, (128, 160, 3))
    for number in range(2):
        picture = (np.array([150, 120, 140]) + noise).astype(np.uint8)
        picture[40:80, 50:90] -= np.array([10, 8, 2], np.uint8)
        labels = np.zeros(picture.shape[:2], np.uint8)
        labels[40:80, 50:90] = 1
        cv2.imwrite(str(images / f"{number}.png"), picture)
        cv2.imwrite(str(masks / f"{number}.png"), labels)
    return images, masks


def test_evaluate_a_programs_own_masks(flakes, tmp_path) -> None:
    images, masks = flakes
    out = tmp_path / "score.json"
    words = ["--images", images, "--masks", masks, "--predictions", masks, "--out", out]
    result = called("evaluate", "flakes", *words)
    assert result.exit_code == 0
    assert "ap50" in result.output
    rows = {row["name"]: row["value"] for row in json.loads(out.read_text())["rows"]}
    assert (rows["ap50"], rows["precision"], rows["recall"]) == (1.0, 1.0, 1.0)


BAD_FOLDERS = [
    (["--images", "nope", "--masks", "masks"], ["nope", "no such folder"]),
    (["--images", "empty", "--masks", "masks"], ["empty", "no images"]),
    (["--images", "images", "--masks", "nope"], ["nope", "neither a folder"]),
    (["--images", "images", "--masks", "empty"], ["empty", "0.png"]),
    (["--images", "images", "--masks", "masks", "--predictions", "empty"], ["empty", "0.png"]),
    (["--images", "images", "--masks", "masks", "--materials", "tin"], ["'tin'", "graphene"]),
    (["--images", "images", "--masks", "masks", "--materials", ","], ["materials", "at least 1"]),
    (["--images", "images", "--masks", "masks", "--oxide-nm", "5"], ["oxide_nm is 5.0", ">= 10"]),
]


@pytest.mark.parametrize(("words", "said"), BAD_FOLDERS, ids=[" ".join(b[0]) for b in BAD_FOLDERS])
def test_evaluate_refuses(flakes, tmp_path, monkeypatch, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    error = str(called("evaluate", "flakes", *words).exception)
    for word in said:
        assert word in error


def test_evaluate_names_the_damaged_file(flakes) -> None:
    images, masks = flakes
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    error = called("evaluate", "flakes", "--images", images, "--masks", masks).exception
    assert isinstance(error, BadImage)
    assert str(images / "1.png") in str(error)


def test_evaluate_says_what_became_of_each(flakes, tmp_path) -> None:
    images, masks = flakes
    out, sheet = tmp_path / "score.json", tmp_path / "sheets"
    words = ["--images", images, "--masks", masks, "--predictions", masks, "--score-cut", "0.5"]
    assert called("evaluate", "flakes", *words, "--out", out, "--sheet", sheet).exit_code == 0
    assert out.with_suffix(".csv").read_text().count("\n") == 3  # a heading, two flakes
    assert {"0.jpg", "1.jpg"} <= {path.name for path in sheet.iterdir()}


# --- train --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FocusTraining:
    """As `inference.training.focus` has it."""

    out: Path
    objects: int = 2_400
    epochs: int = 60
    seed: int = 1
    jobs: int = 0


@pytest.fixture
def training(monkeypatch):
    """A stand-in for the training itself; what it was asked for."""
    asked = []

    def train(settings, report):
        asked.append(settings)
        report(1, 2, "frames")
        card = load_card(WEIGHTS / "aenet.onnx")
        return card.model_copy(update={"figures": {"median_error_dof": 0.125}})

    room = SimpleNamespace(FocusTraining=FocusTraining, train=train)
    monkeypatch.setattr("controller.commands.train.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "inference.training.focus", room)
    return asked


def test_train_focus(training, tmp_path) -> None:
    words = ["--seed", 5, "--objects", 960, "--epochs", 7, "--jobs", 2, "--out", tmp_path]
    result = called("train", "focus", *words)
    assert result.exit_code == 0, result.exception
    assert called("train", "focus").exit_code == 0
    assert called("train", "focus", "--quick", "--epochs", 4).exit_code == 0
    assert training == [
        FocusTraining(tmp_path, 960, 7, 5, 2),
        FocusTraining(Path("trained")),
        FocusTraining(Path("trained"), 96, 4),
    ]
    assert "median_error_dof" in result.output
    assert "0.125" in result.output
    assert str(tmp_path / "aenet.onnx") in result.output


@pytest.mark.parametrize("missing", ["torch", "onnx"])
def test_training_says_what_to_install(training, monkeypatch, missing) -> None:
    monkeypatch.setattr(
        "controller.commands.train.find_spec", lambda name: None if name == missing else name
    )
    error = called("train", "focus").exception
    assert isinstance(error, NoEngine)
    assert str(error) == f"training needs {missing}: pip install scopeloop[train]"
    assert not training


@dataclass(frozen=True)
class Recipe:
    """As `inference.training.flakes` has it."""

    seed: int = 1
    steps: int = 20_000
    batch: int = 48
    crop: int = 96
    most_seconds: float = 3_600.0
    device: str = "cpu"
    command: str = ""

    @classmethod
    def quick(cls) -> "Recipe":
        return cls(steps=60, batch=4, crop=64)


def test_train_flakes(training, monkeypatch, tmp_path) -> None:
    made, asked = [], []

    def examples(*task):
        made.append(task)
        return iter(["an example"] * 2)

    def train(examples, held_out, out, recipe, report):
        asked.append((examples, held_out, out, recipe))
        report(100, 200, "loss 0.5")
        return load_card(WEIGHTS / "aenet.onnx")

    room = SimpleNamespace(Recipe=Recipe, train=train, with_device=lambda recipe: recipe)
    monkeypatch.setitem(sys.modules, "inference.training.flakes", room)
    monkeypatch.setattr("controller.app.flake_examples", examples)
    words = ["--seed", 5, "--photographs", 320, "--steps", 600, "--minutes", 2, "--jobs", 3]
    result = called("train", "flakes", *words, "--out", tmp_path)
    assert result.exit_code == 0, result.exception
    assert "flakenet.onnx" in result.output
    assert called("train", "flakes", "--quick").exit_code == 0
    assert made == [
        (5, 320, 0.1, 3),
        (900_005, 20, 0.3, 3),
        (1, 24, 0.1, 0),
        (900_001, 12, 0.3, 0),
    ]
    whole = "scopeloop train flakes --photographs 320 --steps 600"
    assert asked[0] == (["an example"] * 2,) * 2 + (
        tmp_path,
        Recipe(5, 600, 8, 64, 120.0, "cpu", whole),
    )
    assert (asked[1][3].steps, asked[1][3].batch) == (60, 4)


# --- adapt --------------------------------------------------------------------------------------


def test_adapt_flakes(monkeypatch, tmp_path) -> None:
    asked = []

    def adapt_folder(images, settings, pixel_size_nm, *, progress):
        asked.append((images, settings, pixel_size_nm))
        progress(1, 1)
        microscope = Microscope(Correction((1.1, 1.0, 0.9)), confidence=0.8, source="5 flakes")
        right = Fitted(
            Example("a.png", (0.0, -0.1, 0.0), 400, 1, None), "graphene", 1, 0.002, False
        )
        wrong = Fitted(Example("b.png", (0.0, 0.3, 0.0), 400, 1, None), "graphene", 1, 0.31, True)
        return Adapted(microscope, (right, wrong))

    monkeypatch.setattr("controller.commands.adapt.adapt_folder", adapt_folder)
    out = tmp_path / "new" / "mine.json"
    words = ["--images", tmp_path, "--out", out, "--oxide-nm", 285, "--na", 0.8]
    result = called("adapt", "flakes", *words, "--material", CARD, "--pixel-size-nm", 100)
    assert result.exit_code == 0, result.exception
    ((images, settings, pixel_size_nm),) = asked
    assert (images, pixel_size_nm) == (tmp_path, 100.0)
    assert settings.materials == ("graphene", "mote2")
    assert (settings.oxide_nm, settings.numerical_aperture) == (285.0, 0.8)
    said = plain(result)
    for word in ("a.png", "set aside", "1.100, 1.000, 0.900", "confidence 0.80", str(out)):
        assert word in said
    assert load_microscope(out).correction.gain_rgb == (1.1, 1.0, 0.9)


def test_adapt_refuses_what_is_no_card(tmp_path) -> None:
    error = called("adapt", "flakes", "--images", tmp_path, "--material", "no.toml").exception
    assert isinstance(error, BadSettings)
    assert "no.toml" in str(error)
