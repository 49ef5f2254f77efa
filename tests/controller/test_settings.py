"""Settings: what is accepted, what an error says, and that every file in configs/ is sound."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller import app
from controller.errors import BadSettings
from controller.settings import (
    RunSettings,
    Settings,
    WantedSettings,
    load_settings,
    load_toml,
    validated,
)

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.toml"))
LEAST = {"instrument": {"driver": "simulated_optical"}}


class Leaf(BaseModel):
    """What every kind of bound looks like."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    ratio: float = Field(default=0.5, ge=0.0, le=1.0)
    size_um: float = Field(default=1.0, gt=0.0, lt=3e6)
    count: int | None = Field(default=None, ge=1)
    place_um: tuple[Annotated[float, Field(ge=-5, le=5)], Annotated[float, Field(ge=0)]] = (0, 0)
    sizes: tuple[Annotated[int, Field(gt=2)], ...] = ()
    kind: Literal["a", "b"] = "a"
    name: str = Field(default="x", pattern="^[a-z]$")
    is_on: bool = False


class Tree(BaseModel):
    """A table with tables in it."""

    model_config = ConfigDict(extra="forbid")

    leaf: Leaf = Leaf()
    leaves: tuple[Leaf, ...] = ()
    perhaps: Leaf | None = None
    wanted: Literal["p", "q"]
    needed: float


OK: dict[str, Any] = {"wanted": "p", "needed": 1.0}
MESSAGES: list[tuple[str, dict[str, Any], str]] = [
    # name, the table, the whole message behind "f.toml: tree."
    ("least", {"leaf": {"ratio": -1}}, "leaf.ratio is -1; allowed: a number >= 0 and <= 1"),
    ("most", {"leaf": {"ratio": 2.5}}, "leaf.ratio is 2.5; allowed: a number >= 0 and <= 1"),
    ("open", {"leaf": {"size_um": 0}}, "leaf.size_um is 0; allowed: a number > 0 and < 3000000"),
    ("one side", {"leaf": {"count": 0}}, "leaf.count is 0; allowed: a number >= 1"),
    ("no number", {"leaf": {"count": "n"}}, "leaf.count is 'n'; allowed: a valid integer >= 1"),
    (
        "infinite",
        {"leaf": {"ratio": float("inf")}},
        "leaf.ratio is inf; allowed: a finite number >= 0 and <= 1",
    ),
    (
        "in a pair",
        {"leaf": {"place_um": [0, -1]}},
        "leaf.place_um.1 is -1; allowed: a number >= 0",
    ),
    ("in a list", {"leaf": {"sizes": [3, 2]}}, "leaf.sizes.1 is 2; allowed: a number > 2"),
    (
        "in a list of tables",
        {"leaves": [{}, {"ratio": 9}]},
        "leaves.1.ratio is 9; allowed: a number >= 0 and <= 1",
    ),
    (
        "in a table that may be absent",
        {"perhaps": {"ratio": 9}},
        "perhaps.ratio is 9; allowed: a number >= 0 and <= 1",
    ),
    ("one of", {"leaf": {"kind": "c"}}, "leaf.kind is 'c'; allowed: 'a' or 'b'"),
    ("pattern", {"leaf": {"name": "A"}}, "leaf.name is 'A'; allowed: text of the pattern ^[a-z]$"),
    ("claim", {"leaf": {"is_on": "maybe"}}, "leaf.is_on is 'maybe'; allowed: a valid boolean"),
    (
        "no table",
        {"leaf": 3},
        "leaf is 3; allowed: a table with ratio, size_um, count, place_um, sizes, kind, name, "
        "is_on",
    ),
    (
        "unknown",
        {"leaf": {"rato": 1}},
        "leaf.rato is 1; allowed: no such key (did you mean ratio?); known here: count, is_on, "
        "kind, name, place_um, ratio, size_um, sizes",
    ),
    (
        "unknown, like none",
        {"zzz": 1},
        "zzz is 1; allowed: no such key; known here: leaf, leaves, needed, perhaps, wanted",
    ),
    ("missing", {"needed": None}, "needed is missing; allowed: a value; it has no default"),
    ("missing choice", {"wanted": None}, "wanted is missing; allowed: one of 'p', 'q'"),
]


@pytest.mark.parametrize(("table", "said"), [m[1:] for m in MESSAGES], ids=[m[0] for m in MESSAGES])
def test_a_message_names_file_key_value_and_range(table, said) -> None:
    table = {key: value for key, value in {**OK, **table}.items() if value is not None}
    with pytest.raises(BadSettings) as raised:
        validated(Tree, table, "f.toml", prefix="tree")
    assert str(raised.value) == f"f.toml: tree.{said}"


def test_a_long_value_is_not_shown_whole() -> None:
    with pytest.raises(BadSettings) as raised:
        validated(Tree, {**OK, "needed": "x" * 9_999}, "f.toml")
    assert len(str(raised.value)) < 250


def test_the_error_carries_its_parts() -> None:
    with pytest.raises(BadSettings) as raised:
        validated(Settings, {**LEAST, "scan": {"max_tiles": 0}}, "f.toml")
    error = raised.value
    assert (error.file, error.key, error.value) == ("f.toml", "scan.max_tiles", "0")
    assert error.allowed == "a number >= 1"


def bounded(model: type[BaseModel]) -> list[tuple[str, str, float]]:
    """(section, key, a value just outside) of every bound of every section."""
    found = []
    for section, table in model.model_fields.items():
        inner = table.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            continue
        for key, field in inner.model_fields.items():
            for bound in field.metadata:
                for sign, beyond in (("ge", -1), ("le", 1), ("gt", 0), ("lt", 0)):
                    edge = getattr(bound, sign, None)
                    if edge is not None:
                        found.append((section, key, edge + beyond))
    return found


@pytest.mark.parametrize(("section", "key", "value"), bounded(Settings))
def test_every_bound_holds_and_is_named(section, key, value) -> None:
    with pytest.raises(BadSettings) as raised:
        validated(Settings, {**LEAST, section: {**_needed(section), key: value}}, "f.toml")
    assert f"f.toml: {section}.{key} is {value}; allowed: a number " in str(raised.value)


def _needed(section: str) -> dict[str, str]:
    return LEAST["instrument"] if section == "instrument" else {}


def test_every_number_has_a_bound_or_a_reason() -> None:
    """A limit of the stage, a height and the overview's centre are bounded by the instrument."""
    free = {
        (section, key)
        for section, table in Settings.model_fields.items()
        if isinstance(table.annotation, type) and issubclass(table.annotation, BaseModel)
        for key, field in table.annotation.model_fields.items()
        if field.annotation in (float, int, float | None, int | None) and not field.metadata
    }
    of_the_device = {("safety", f"{a}_{end}_um") for a in "xyz" for end in ("min", "max")}
    positions = {("focus", "start_z_um"), ("overview", "centre_x_um"), ("overview", "centre_y_um")}
    assert free == of_the_device | positions


@pytest.mark.parametrize("name", ["a", "chip-7.2_b", "x" * 64])
def test_names_of_runs(name) -> None:
    assert RunSettings(name=name).name == name


@pytest.mark.parametrize("name", ["", "../x", "a b", "-a", "x" * 65, "größe"])
def test_names_that_are_no_folder(name) -> None:
    with pytest.raises(ValidationError):
        RunSettings(name=name)


@pytest.mark.parametrize("bad", [{"layers": ()}, {"layers": (0,)}, {"materials": ()}])
def test_something_must_be_wanted(bad) -> None:
    with pytest.raises(ValidationError, match=r"at least one|1 up"):
        WantedSettings(**bad)


def test_settings_are_frozen() -> None:
    settings = validated(Settings, LEAST, "f.toml")
    with pytest.raises(ValidationError, match="frozen"):
        settings.run.name = "other"  # type: ignore[misc]


def test_the_drivers_keys_are_its_own() -> None:
    settings = validated(Settings, {"instrument": {"driver": "replay", "images": "x"}}, "f.toml")
    assert settings.instrument.options() == {"images": "x"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs(path, monkeypatch) -> None:
    """Every file shipped is sound by all the checks that a start makes."""
    monkeypatch.chdir(path.parents[1])  # relative paths in it mean: from the repository
    settings, text = load_settings(path)
    assert settings.run.name == path.stem
    assert text == path.read_text(encoding="utf-8")
    images = settings.instrument.options().get("images")
    if images is not None and not Path(images).is_dir():
        pytest.skip(f"real images not found at {images}")
    tables, _ = load_toml(path)
    chosen = app.set_up(tables, str(path))
    assert chosen.settings == settings
    assert set(settings.wanted.materials) <= set(chosen.detector.materials)
    assert chosen.instrument.camera.shape_px > (0, 0)


def test_there_are_configs() -> None:
    assert {"simulated_flake_search", "simulated_smoke", "replay_real"} <= {p.stem for p in CONFIGS}
