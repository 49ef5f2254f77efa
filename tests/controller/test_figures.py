"""Figures: met or missed, the record's form, and a table that shows everything."""

import json
import math

import pytest
from rich.console import Console

from controller.figures import Row, as_json, machine, show, versions, write_json

FIELDS = {"name", "value", "unit", "bar", "better", "baseline", "n", "ci95", "note", "met"}


@pytest.mark.parametrize(
    ("value", "bar", "better", "met"),
    [
        (1.0, 1.0, "lower", True),
        (1.1, 1.0, "lower", False),
        (1.0, 1.0, "higher", True),
        (0.9, 1.0, "higher", False),
        (0.0, 0.0, "lower", True),
        (5.0, None, "lower", None),
        (None, 1.0, "higher", None),
        (None, None, "higher", None),
        (math.nan, 1.0, "lower", False),
        (math.nan, 1.0, "higher", False),
    ],
)
def test_met(value, bar, better, met) -> None:
    assert Row("x", value, bar=bar, better=better).met is met


def test_the_record_has_the_agreed_form(tmp_path) -> None:
    rows = [
        Row("p50", 12.5, "us", bar=100.0, better="lower", baseline=3.0, n=10, ci95=(1.0, 2.0)),
        Row("gpu", None, note="no GPU here"),
        Row("nothing", math.nan, bar=math.inf, better="lower"),
    ]
    path = tmp_path / "new" / "figures.json"
    write_json(path, "frames", rows, 4)
    written = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert list(written) == ["name", "machine", "versions", "seed", "rows"]
    assert (written["name"], written["seed"]) == ("frames", 4)
    assert all(set(row) == FIELDS for row in written["rows"])
    first, second, third = written["rows"]
    assert (first["value"], first["bar"], first["met"], first["baseline"]) == (12.5, 100.0, True, 3)
    assert (first["n"], first["ci95"]) == (10, [1.0, 2.0])
    assert (second["value"], second["bar"], second["met"]) == (None, None, None)
    assert (third["value"], third["bar"]) == (None, None)


def test_machine_and_versions_say_something() -> None:
    assert machine()["cores"] >= 1
    assert machine()["python"].count(".") == 2
    assert {"numpy", "pydantic"} <= set(versions())
    assert as_json("x", [], None)["seed"] is None


def test_the_table_shows_everything() -> None:
    console = Console(width=200, force_terminal=False, record=True, quiet=False)
    rows = [
        Row("small", 0.12345678, "ms", bar=0.2, better="lower", baseline=1.5, n=7, note="as [is]"),
        Row("large", 123456.0, "frames", bar=200000.0),
        Row("absent", None),
        Row("broken", math.nan),
    ]
    with console.capture() as capture:
        show(console, "the title", rows)
    lines = {
        line.split()[0]: " ".join(line.split())
        for line in capture.get().splitlines()
        if line.strip()
    }
    assert lines["the"] == "the title"
    assert lines["small"] == "small 0.1235 ms <= 0.2 yes 1.5 7 as [is]"
    assert lines["large"] == "large 123456 frames >= 200000 no"
    assert lines["absent"] == "absent -"
    assert lines["broken"] == "broken nan"


def test_the_table_has_intervals_where_there_are_any() -> None:
    console = Console(width=200, force_terminal=False)
    share = Row("share", 0.9, bar=0.8, n=50, ci95=(0.78639, 0.95652))
    with console.capture() as capture:
        show(console, "x", [share, Row("other", 1.0)])
    (line,) = (line for line in capture.get().splitlines() if line.split()[:1] == ["share"])
    assert "baseline" not in capture.get()  # nothing stands there
    assert " ".join(line.split()) == "share 0.9 0.786..0.957 >= 0.8 yes 50"


def test_numbers_are_whole_however_narrow_the_screen() -> None:
    console = Console(width=90, force_terminal=False)
    note = "of matched terraces; layers counted by eye in steps of contrast"
    name = "real: AP50 with the list, Gaussian mixture, refitted on labels"
    row = Row(name, 0.81234567, "points", 0.85, "higher", 0.6414, 1446, (0.66711, 0.92102), note)
    with console.capture() as capture:
        show(console, "x", [row])
    for whole in ("0.8123", "0.667..0.921", ">= 0.85", "0.6414", "1446", "points"):
        assert whole in capture.get()
