"""The finished catalogue, in the same SQLite file as the journal, for people who speak SQL.

Two tables: `entries`, one row a terrace, and `flakes`, one row a flake (terraces that touch). Every
column's unit and meaning stands in a third table, `catalogue_columns`, so that the file explains
itself. The catalogue can be made again from the facts at any time; it is rewritten as a whole, in
one transaction, so a reader sees the old one or the new one.

    SELECT entry_id, layers, area_um2, chip_x_um, chip_y_um FROM entries
    WHERE material = 'graphene' AND layers = 1 AND area_um2 > 100 ORDER BY rank;
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import ConfigDict, TypeAdapter, ValidationError

from controller.messages import CatalogueEntry
from controller.record.journal import open_database
from controller.record.rundir import BadRecord, reading, writing

Column: TypeAlias = tuple[str, str, str, str]  # name, SQL type, unit, meaning
Value: TypeAlias = str | int | float | None

_ENTRIES: tuple[Column, ...] = (
    ("entry_id", "INTEGER PRIMARY KEY", "", "terrace; 1 is the first found in scan order"),
    ("flake_id", "INTEGER NOT NULL", "", "terraces that touch share one"),
    ("rank", "INTEGER NOT NULL", "", "1 is the best by what was asked for; 0: not wanted"),
    ("material", "TEXT NOT NULL", "", "key of the material"),
    ("layers", "INTEGER NOT NULL", "", "most probable number of layers"),
    ("probability", "REAL", "1", "of that number of layers"),
    ("thickness_nm", "REAL", "nm", "read from the colour"),
    ("thickness_low_nm", "REAL", "nm", "97.5 % of the probability lies above"),
    ("thickness_high_nm", "REAL", "nm", "97.5 % of the probability lies below"),
    ("area_um2", "REAL", "um2", "area without holes"),
    ("aspect_ratio", "REAL", "1", "long over short side of the smallest enclosing rectangle"),
    ("stage_x_um", "REAL", "um", "centroid, stage, x right"),
    ("stage_y_um", "REAL", "um", "centroid, stage, y up"),
    ("chip_x_um", "REAL", "um", "centroid in the chip's own frame"),
    ("chip_y_um", "REAL", "um", "centroid in the chip's own frame"),
    ("contrast_r", "REAL", "1", "I / I_substrate - 1, red"),
    ("contrast_g", "REAL", "1", "I / I_substrate - 1, green"),
    ("contrast_b", "REAL", "1", "I / I_substrate - 1, blue"),
    ("off_ladder", "REAL", "1", "distance from the material's contrast ladder"),
    ("score", "REAL", "1", "0..1: how surely a flake of that material at all"),
    ("sharpness", "REAL", "arbitrary", "of the image that showed it"),
    ("is_revisited", "INTEGER NOT NULL", "", "1: found again at higher magnification"),
    ("entry_json", "TEXT NOT NULL", "", "everything, outline and holes (stage um) included"),
)
_FLAKES: tuple[Column, ...] = (
    ("flake_id", "INTEGER PRIMARY KEY", "", "flake"),
    ("terraces", "INTEGER NOT NULL", "", "number of its entries"),
    ("best_rank", "INTEGER NOT NULL", "", "least rank among its wanted entries; 0: none wanted"),
    ("material", "TEXT NOT NULL", "", "of its largest entry"),
    ("min_layers", "INTEGER NOT NULL", "", "of its thinnest entry"),
    ("max_layers", "INTEGER NOT NULL", "", "of its thickest entry"),
    ("area_um2", "REAL", "um2", "sum over its entries"),
    ("stage_x_um", "REAL", "um", "area-weighted mean of its entries' centroids"),
    ("stage_y_um", "REAL", "um", "area-weighted mean of its entries' centroids"),
    ("chip_x_um", "REAL", "um", "the same in the chip's own frame"),
    ("chip_y_um", "REAL", "um", "the same in the chip's own frame"),
)
_INDEXED = {
    "entries": ("flake_id", "rank", "material, layers", "area_um2"),
    "flakes": ("best_rank", "area_um2"),
}
# As a tuple, because a bare dataclass takes no config; NaN has no other way through JSON.
_ROWS: TypeAdapter[tuple[CatalogueEntry, ...]] = TypeAdapter(
    tuple[CatalogueEntry, ...], config=ConfigDict(ser_json_inf_nan="strings")
)


def write_catalogue(path: Path | str, entries: Sequence[CatalogueEntry]) -> None:
    """Put the catalogue into a run's SQLite file, in place of the one that is there."""
    path = Path(path)
    with contextlib.closing(open_database(path)) as database, writing(path):
        database.execute("BEGIN IMMEDIATE")
        try:
            _rewrite(database, entries)
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise


def read_catalogue(path: Path | str) -> tuple[CatalogueEntry, ...]:
    """The whole catalogue by entry_id. Raises BadRecord where none was written."""
    return query(path, order_by="entry_id")


def query(
    path: Path | str,
    *,
    material: str | None = None,
    layers: Iterable[int] | None = None,
    min_area_um2: float = 0.0,
    min_probability: float = 0.0,
    is_wanted: bool = False,
    order_by: str = "rank",
    limit: int | None = None,
) -> tuple[CatalogueEntry, ...]:
    """Entries that satisfy every condition given; `None` asks nothing.

    order_by: a column of `entries`; rank 0 (not wanted) comes last. Raises BadRecord.
    """
    path = Path(path)
    if order_by not in {name for name, *_ in _ENTRIES}:
        msg = f"order_by is {order_by!r}; allowed: a column of the table `entries`"
        raise ValueError(msg)
    conditions: list[str] = []
    values: list[Value] = []
    if min_area_um2 > 0.0:
        conditions.append("area_um2 >= ?")
        values.append(min_area_um2)
    if min_probability > 0.0:
        conditions.append("probability >= ?")
        values.append(min_probability)
    if material is not None:
        conditions.append("material = ?")
        values.append(material)
    if layers is not None:
        wanted = tuple(layers)
        conditions.append(f"layers IN ({', '.join('?' * len(wanted))})")
        values.extend(wanted)
    if is_wanted:
        conditions.append("rank > 0")
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    order = "rank = 0, rank, entry_id" if order_by == "rank" else f"{order_by}, entry_id"
    values.append(-1 if limit is None else limit)
    with contextlib.closing(open_database(path, is_read_only=True)) as database, reading(path):
        _check(path, database)
        sql = f"SELECT entry_id, entry_json FROM entries {where}ORDER BY {order} LIMIT ?"
        return tuple(_entry(path, *row) for row in database.execute(sql, values))


def _rewrite(database: sqlite3.Connection, entries: Sequence[CatalogueEntry]) -> None:
    execute = database.execute
    documented = [
        (table, name, unit, meaning)
        for table, columns in (("entries", _ENTRIES), ("flakes", _FLAKES))
        for name, _, unit, meaning in columns
    ]
    execute("DROP TABLE IF EXISTS catalogue_columns")
    execute('CREATE TABLE catalogue_columns ("table" TEXT, "column" TEXT, unit TEXT, meaning TEXT)')
    database.executemany("INSERT INTO catalogue_columns VALUES (?, ?, ?, ?)", documented)
    _make(database, "entries", _ENTRIES, [_entry_row(entry) for entry in entries])
    _make(database, "flakes", _FLAKES, _flake_rows(entries))


def _make(
    database: sqlite3.Connection,
    table: str,
    columns: Sequence[Column],
    rows: Sequence[tuple[Value, ...]],
) -> None:
    spelled = ", ".join(f"{name} {sql_type}" for name, sql_type, *_ in columns)
    database.execute(f"DROP TABLE IF EXISTS {table}")
    database.execute(f"CREATE TABLE {table} ({spelled})")
    marks = ", ".join("?" * len(columns))
    database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    for key in _INDEXED[table]:
        name = f"{table}_by_{key.replace(', ', '_')}"
        database.execute(f"CREATE INDEX {name} ON {table} ({key})")


def _entry_row(entry: CatalogueEntry) -> tuple[Value, ...]:
    return (
        entry.entry_id,
        entry.flake_id,
        entry.rank,
        entry.material,
        entry.layers,
        entry.probability,
        entry.thickness_nm,
        *(entry.thickness_interval_nm or (None, None)),
        entry.area_um2,
        entry.aspect_ratio,
        entry.stage_x_um,
        entry.stage_y_um,
        entry.chip_x_um,
        entry.chip_y_um,
        *entry.contrast_rgb,
        entry.off_ladder,
        entry.score,
        entry.sharpness,
        int(entry.revisit is not None and entry.revisit.found),
        _ROWS.dump_json((entry,)).decode()[1:-1],
    )


def _flake_rows(entries: Sequence[CatalogueEntry]) -> list[tuple[Value, ...]]:
    flakes: dict[int, list[CatalogueEntry]] = defaultdict(list)
    for entry in entries:
        flakes[entry.flake_id].append(entry)
    rows: list[tuple[Value, ...]] = []
    for flake_id, terraces in sorted(flakes.items()):
        largest = max(terraces, key=lambda entry: entry.area_um2)
        rows.append(
            (
                flake_id,
                len(terraces),
                min((entry.rank for entry in terraces if entry.rank > 0), default=0),
                largest.material,
                min(entry.layers for entry in terraces),
                max(entry.layers for entry in terraces),
                sum(entry.area_um2 for entry in terraces),
                *_centre(terraces),
            )
        )
    return rows


def _centre(terraces: Sequence[CatalogueEntry]) -> tuple[float, ...]:
    """(stage x, stage y, chip x, chip y) of a flake: the mean of its terraces by area."""
    weights = [max(entry.area_um2, 1e-9) for entry in terraces]
    places = [
        (entry.stage_x_um, entry.stage_y_um, entry.chip_x_um, entry.chip_y_um) for entry in terraces
    ]
    return tuple(
        sum(weight * place[axis] for weight, place in zip(weights, places, strict=True))
        / sum(weights)
        for axis in range(4)
    )


def _check(path: Path, database: sqlite3.Connection) -> None:
    found = database.execute("SELECT name FROM sqlite_schema WHERE name = 'entries'").fetchone()
    if found is None:
        raise BadRecord(path, "there is no catalogue in it yet: the run did not finish; resume it")


def _entry(path: Path, entry_id: int, entry_json: str) -> CatalogueEntry:
    try:
        return _ROWS.validate_json(f"[{entry_json}]")[0]
    except ValidationError as error:
        raise BadRecord(path, f"catalogue entry {entry_id} is damaged: {error}") from error
