"""The catalogue: comes back equal, explains its columns, is rewritten at once, is queried."""

import math
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from controller.messages import CatalogueEntry, Revisited, Skipped
from controller.record.catalogue import query, read_catalogue, write_catalogue
from controller.record.journal import Journal
from controller.record.rundir import BadRecord

REVISIT = Revisited(
    entry_id=1,
    shot_index=0,
    centred_error_um=0.4,
    x_um=12.0,
    y_um=-7.0,
    area_um2=148.0,
    material="graphene",
    layers=1,
    probability=0.99,
    contrast_rgb=(-0.05, -0.07, 0.01),
    sharpness=12.0,
    found=True,
    reason="",
)
FIRST = CatalogueEntry(
    entry_id=1,
    flake_id=1,
    rank=2,
    material="graphene",
    layers=1,
    probability=0.97,
    layer_probabilities=((1, 0.97), (2, 0.02)),
    thickness_nm=0.335,
    area_um2=150.0,
    aspect_ratio=1.5,
    outline_um=((5.0, -12.0), (20.0, -12.0), (20.0, -2.0), (5.0, -2.0)),
    holes_um=(((8.0, -8.0), (9.0, -8.0), (9.0, -7.0)),),
    stage_x_um=12.5,
    stage_y_um=-7.0,
    chip_x_um=112.5,
    chip_y_um=93.0,
    contrast_rgb=(-0.05, -0.07, 0.01),
    off_ladder=0.004,
    score=0.9,
    sharpness=3.5,
    tiles=(3, 4),
    revisit=REVISIT,
)
ENTRIES = (
    FIRST,
    replace(FIRST, entry_id=2, layers=2, area_um2=50.0, rank=0, revisit=None, stage_x_um=22.5),
    replace(FIRST, entry_id=3, flake_id=2, material="mos2", rank=1, probability=0.6, revisit=None),
    replace(
        FIRST, entry_id=4, flake_id=3, rank=3, area_um2=99.0, aspect_ratio=math.inf, revisit=None
    ),
)


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.append([Skipped("tile 3", "test")])
    write_catalogue(journal.path, ENTRIES)
    return journal.path


def sql(path, statement):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()


def test_entries_come_back_equal(path):
    assert read_catalogue(path) == ENTRIES


def test_the_catalogue_stands_beside_the_facts(path):
    with Journal(path) as journal:
        assert list(journal.replay()) == [Skipped("tile 3", "test")]
        write_catalogue(path, ENTRIES[:1])  # while the run still holds its journal
        journal.append([Skipped("tile 4", "test")])
    assert read_catalogue(path) == ENTRIES[:1]


def test_writing_twice_is_writing_once(path):
    before = sql(path, "SELECT * FROM entries"), sql(path, "SELECT * FROM flakes")
    write_catalogue(path, ENTRIES)
    assert (sql(path, "SELECT * FROM entries"), sql(path, "SELECT * FROM flakes")) == before
    assert sql(path, "PRAGMA quick_check") == [("ok",)]


def test_an_empty_catalogue_is_a_catalogue(path):
    write_catalogue(path, ())
    assert read_catalogue(path) == ()


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        ({}, [3, 1, 4, 2]),
        ({"is_wanted": True}, [3, 1, 4]),
        ({"material": "graphene"}, [1, 4, 2]),
        ({"material": "unobtainium"}, []),
        ({"layers": [1]}, [3, 1, 4]),
        ({"layers": []}, []),
        ({"layers": (1, 2), "min_area_um2": 99.0}, [3, 1, 4]),
        ({"min_probability": 0.9, "order_by": "area_um2"}, [2, 4, 1]),
        ({"limit": 2}, [3, 1]),
        ({"material": "x' OR 1=1 --"}, []),
    ],
)
def test_questions(path, conditions, ids):
    assert [entry.entry_id for entry in query(path, **conditions)] == ids


def test_only_columns_can_order(path):
    with pytest.raises(ValueError, match="a column of the table"):
        query(path, order_by="rank; DROP TABLE entries")


def test_every_column_is_explained_with_its_unit(path):
    for table in ("entries", "flakes"):
        columns = [row[1] for row in sql(path, f"PRAGMA table_info({table})")]
        explained = sql(
            path,
            f'SELECT "column", unit, meaning FROM catalogue_columns WHERE "table" = \'{table}\'',
        )
        assert [name for name, _, _ in explained] == columns
        for name, unit, meaning in explained:
            assert meaning
            for suffix in ("um", "nm", "um2"):
                assert not name.endswith(f"_{suffix}") or unit == suffix


def test_columns_hold_what_their_names_say(path):
    (row,) = sql(
        path,
        "SELECT flake_id, rank, material, layers, probability, thickness_nm, area_um2, "
        "aspect_ratio, stage_x_um, stage_y_um, chip_x_um, chip_y_um, contrast_r, contrast_g, "
        "contrast_b, off_ladder, score, sharpness, is_revisited FROM entries WHERE entry_id = 1",
    )
    assert row == (
        *(1, 2, "graphene", 1, 0.97, 0.335, 150.0, 1.5, 12.5, -7.0, 112.5, 93.0),
        *(-0.05, -0.07, 0.01, 0.004, 0.9, 3.5, 1),
    )


def test_flakes_sum_up_their_terraces(path):
    rows = sql(
        path,
        "SELECT flake_id, terraces, best_rank, material, min_layers, max_layers, area_um2, "
        "stage_x_um FROM flakes",
    )
    assert rows[0] == (1, 2, 2, "graphene", 1, 2, 200.0, 15.0)  # (12.5 * 150 + 22.5 * 50) / 200
    assert [row[0] for row in rows] == [1, 2, 3]


def test_a_search_uses_an_index(path):
    plan = sql(path, "EXPLAIN QUERY PLAN SELECT * FROM entries WHERE material='mos2' AND layers=1")
    assert "USING INDEX" in plan[0][3]


def test_a_failed_rewrite_keeps_the_old_catalogue(path):
    with pytest.raises(BadRecord, match="UNIQUE"):
        write_catalogue(path, (FIRST, FIRST))
    assert read_catalogue(path) == ENTRIES


def test_without_a_catalogue_the_advice_is_to_resume(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        pass
    with pytest.raises(BadRecord, match="no catalogue in it yet"):
        read_catalogue(journal.path)


def test_a_damaged_entry_is_named(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE entries SET entry_json = '{}' WHERE entry_id = 2")
        database.commit()
    with pytest.raises(BadRecord, match="catalogue entry 2 is damaged"):
        read_catalogue(path)


def test_a_foreign_file_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as database:
        database.execute("CREATE TABLE entries (x)")
        database.commit()
    with pytest.raises(BadRecord, match="not the journal of a run"):
        write_catalogue(tmp_path / "other.sqlite", ENTRIES)
