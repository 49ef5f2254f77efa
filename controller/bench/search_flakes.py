"""The same chips searched by the physics, by FlakeNet and by whichever leads: found and false.

Simulated chips carry a truth, and are dirtier than usual, since dirt is what the two detectors
differ about; on the second one the oxide is 8 nm off what the settings say, and flakes are few. The
real photographs are searched as `configs/replay_real.toml` does; nobody knows the whole truth of
them (`evaluate flakes` has what is labelled), so there the catalogues are held against each other.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console

from controller.bench import Report
from controller.bench.flakes_baselines.photographs import data_folder
from controller.bench.numbers import share_row
from controller.bench.search import searched, tables
from controller.commands.search import start_search
from controller.errors import BadSettings
from controller.figures import Row
from controller.search.scorecard import Scorecard

LEADERS: Final = ("physics", "network", "auto")
_DIRT: Final = {
    "flakes_per_mm2": 40.0,
    "residue_per_mm2": 12.0,
    "trails_per_mm2": 8.0,
    "films_per_mm2": 4.0,
}
REAL: Final = "real photographs"
_BAR: Final = 0.95
_REPLAY: Final = """
[run]
name = "replay"
clock = "virtual"
[instrument]
driver = "replay"
images = "{images}"
pixel_size_nm = 384.0
objective = "20x"
[focus]
enabled = false
[scan]
objective = "20x"
area = "limits"
overlap_ratio = 0.0
edge_margin_um = 0.0
[detector]
materials = ["graphene"]
oxide_nm = 90.0
[wanted]
materials = ["graphene"]
layers = [1, 2, 3, 4]
min_area_um2 = 40.0
[revisit]
max_flakes = 0
"""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a report's table says, as far as it is compared."""

    wanted: tuple[tuple[int, float, float, float], ...]  # layers, area um2, chip x and y um
    read_twice: int
    differ: int


def measure(quick: bool, seed: int) -> list[Row]:
    """Rows of every chip, and of the real photographs where they are."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """As `measure`, saying how far it is; parts are the chips' names and "real photographs"."""
    size_mm = (1.5, 1.2) if quick else (3.0, 2.4)
    chips = {"dirty chip": _dirty(seed, size_mm), "oxide 8 nm off": _off(seed + 1, size_mm)}
    for part in report.only:
        if part not in (*chips, REAL):
            raise BadSettings("bench search_flakes", "only", repr(part), ", ".join((*chips, REAL)))
    rows: list[Row] = []
    for name, asked in chips.items():
        if report.only and name not in report.only:
            continue
        for leader in LEADERS:
            if report.progress is not None:
                report.progress(f"{name}, led by {leader}")
            with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
                card = searched({**asked, "inference": {"flakes": leader}}, Path(folder)).card
            rows += _scored(f"simulated, {name}", leader, card)
        if report.partial is not None:
            report.partial(rows)
    if report.only and REAL not in report.only:
        return rows
    images = data_folder() / "flakes" / "graphene_masked" / "images"
    if not images.is_dir():
        return [*rows, Row("real", None, note="no real photographs here: set SCOPELOOP_DATA")]
    catalogues = {}
    for leader in LEADERS:
        if report.progress is not None:
            report.progress(f"real photographs, led by {leader}")
        with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
            catalogues[leader] = replayed(images, leader, Path(folder))
    return [*rows, *real_rows(catalogues)]


def _dirty(seed: int, size_mm: tuple[float, float]) -> dict[str, Any]:
    asked = tables(seed, size_mm)
    asked["instrument"]["chip"] |= _DIRT
    asked["revisit"] = {"max_flakes": 0}
    asked["run"]["clock"] = "ideal"  # a busy machine's searches last longer, and drift further
    return asked


def _off(seed: int, size_mm: tuple[float, float]) -> dict[str, Any]:
    asked = _dirty(seed, size_mm)
    asked["instrument"]["chip"] |= {"oxide_nm": 98.0, "flakes_per_mm2": 12.0}
    return asked


def _scored(name: str, leader: str, card: Scorecard) -> list[Row]:
    present, found = sum(r.present for r in card.rows), sum(r.found for r in card.rows)
    entries, false = sum(r.entries for r in card.rows), sum(r.false for r in card.rows)
    bar = _BAR if leader == "auto" else None
    wrong = sum(r.mislabelled for r in card.rows)
    note = f"{wrong} of them under another layer number" if wrong else ""
    return [
        share_row(f"{name}: recall, 1 to 4 L, {leader}", found, present, bar, note=note),
        share_row(f"{name}: precision, 1 to 4 L, {leader}", entries - false, entries, bar),
    ]


def replayed(images: Path, leader: str, folder: Path) -> Catalogue:
    """Search the photographs as a user would, and read the table that it leaves."""
    config = folder / "replay.toml"
    config.write_text(_REPLAY.format(images=images.as_posix()), encoding="utf-8")
    words = [f'inference.flakes="{leader}"']
    start_search(config, Console(file=io.StringIO()), out=folder / "runs", overrides=words)
    (run,) = (folder / "runs").iterdir()
    with (run / "exports" / "flakes.csv").open(encoding="utf-8", newline="") as file:
        return catalogue_of(list(csv.DictReader(file)))


def catalogue_of(rows: Sequence[dict[str, str]]) -> Catalogue:
    """From the lines of an exported table."""
    wanted = [row for row in rows if row["rank"] != "0"]
    asked = [row["detectors_differ"] for row in wanted if row["detectors_differ"]]
    return Catalogue(
        tuple(
            (
                int(row["layers"]),
                float(row["area_um2"]),
                float(row["chip_x_um"]),
                float(row["chip_y_um"]),
            )
            for row in wanted
        ),
        len(asked),
        sum(said != "no" for said in asked),
    )


def real_rows(catalogues: dict[str, Catalogue]) -> list[Row]:
    """Catalogues of the same photographs beside each other."""
    rows = []
    for leader, catalogue in catalogues.items():
        layers = [terrace[0] for terrace in catalogue.wanted]
        counted = ", ".join(f"{layers.count(n)} of {n} L" for n in sorted(set(layers)))
        name = f"real: wanted terraces, {leader}"
        rows.append(Row(name, float(len(layers)), "terraces", note=counted))
    physics = catalogues["physics"]
    for leader in ("network", "auto"):
        catalogue = catalogues[leader]
        same = sum(_is_in(terrace, physics) for terrace in catalogue.wanted)
        name = f"real: of the wanted by {leader}, share that the physics wants"
        rows.append(share_row(name, same, len(catalogue.wanted)))
        name = f"real: of the wanted by {leader}, share that the other reads differently"
        rows.append(share_row(name, catalogue.differ, catalogue.read_twice, better="lower"))
    return rows


def _is_in(terrace: tuple[int, float, float, float], catalogue: Catalogue) -> bool:
    """Same layer number, same place within half its size, much the same area."""
    layers, area_um2, x_um, y_um = terrace
    reach_um = 0.5 * area_um2**0.5
    return any(
        layers == n
        and abs(x_um - x) < reach_um
        and abs(y_um - y) < reach_um
        and 0.7 * area_um2 <= a <= area_um2 / 0.7
        for n, a, x, y in catalogue.wanted
    )
