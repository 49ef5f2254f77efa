"""Benches of tiles, routes and whole searches, small; timings are printed, never judged here."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from controller.bench import crash, detector, pipeline, search, tour
from controller.bench.tiles import TileSource
from controller.messages import CatalogueEntry, Exposed, Saved
from controller.search.tiling import trapezoid_move_time
from drivers.api import Kinematics

SMALL_PX = (240, 320)


def test_every_kind_of_work_is_timed() -> None:
    rows = {row.name: row for row in detector.costs(TileSource(1, SMALL_PX), 3)}
    assert rows["detect"].bar == 20.0
    assert rows["detect"].baseline == 87.0
    assert all(row.value is not None and row.value > 0.0 for row in rows.values())
    assert all(row.n == 3 for row in rows.values())


def test_tiles_are_reproducible_and_not_empty() -> None:
    first, second = TileSource(7, SMALL_PX), TileSource(7, SMALL_PX)
    assert np.array_equal(first.next_tile(), second.next_tile())
    tile = first.next_tile()
    assert tile.shape == (*SMALL_PX, 3)
    assert not tile.flags.writeable
    assert tile.std() > 1.0


def test_the_pipeline_is_held_against_inference_alone() -> None:
    source = TileSource(1, SMALL_PX)
    rows = pipeline.ratios_of([source.next_tile() for _ in range(3)], 2)
    assert [row.bar for row in rows] == [1.10, None, None, None]
    assert all(row.value is not None and row.value > 0.0 for row in rows)


def test_no_path_undercuts_the_bound_and_the_bound_is_near() -> None:
    move_time = trapezoid_move_time(Kinematics(20_000.0, 100_000.0, 0.05, 0.1))
    for seed in range(4):
        at_um = np.random.default_rng(seed).uniform(-3_000.0, 3_000.0, (7, 2))
        apart = at_um[:, None, :] - at_um[None, :, :]
        cost_s = move_time(apart[..., 0], apart[..., 1])
        shortest_s = min(
            sum(cost_s[a, b] for a, b in itertools.pairwise((0, *order)))
            for order in itertools.permutations(range(1, 7))
        )
        bound_s = tour.path_bound_s(cost_s, float(shortest_s) * 1.1)
        assert bound_s <= shortest_s * (1 + 1e-9)
        assert bound_s >= 0.9 * shortest_s


def test_a_search_gives_its_figures(tmp_path: Path) -> None:
    tables = search.tables(5, (0.6, 0.5))
    tables["instrument"]["camera"] = {"width_px": 320, "height_px": 240}
    tables["instrument"]["chip"]["flakes_per_mm2"] = 60.0
    tables["overview"] = {"width_um": 1_000.0, "height_um": 800.0}
    tables["focus"] = {"seed_points": 1}
    tables["scan"] = {"max_tiles": 6}
    tables["revisit"] = {"max_flakes": 1}
    tables["run"]["min_free_gib"] = 0.0
    outcome = search.searched(tables, tmp_path)
    rows = {row.name: row for row in search.rows_of([outcome])}
    share = rows["share of the scan-time bound"]
    assert share.value is not None
    assert 0.2 < share.value <= 1.0
    assert share.n == 6
    assert rows["tiles per autofocus"].value == 6.0
    assert rows["collisions"].value == 0
    assert rows["unaccounted frames"].met
    together = {row.name: row for row in search.rows_of([outcome, outcome])}
    assert together["share of the scan-time bound"].n == 12
    assert together["share of the scan-time bound"].value == pytest.approx(share.value)


def exposed(index: int) -> Exposed:
    return Exposed("tile", index, index, 0.0, 0.1, 0.0, 0.0, 0.0, "20x", 384.0, 0.1)


def saved(index: int) -> Saved:
    return Saved("tile", index, f"tile/{index}", "crc32:0")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([exposed(0), saved(0), exposed(1), saved(1)], (0, 0)),
        ([exposed(0), exposed(0), saved(0)], (0, 1)),
        ([exposed(0), saved(0), exposed(0), saved(0)], (1, 0)),
        ([exposed(0), exposed(1), saved(1), exposed(0), saved(0), exposed(1)], (1, 1)),
    ],
)
def test_shots_exposed_again_are_told_apart(
    facts: list[Exposed | Saved], expected: tuple[int, int]
) -> None:
    assert crash.exposed_again(facts) == expected


def entry(layers: int, x_um: float) -> CatalogueEntry:
    return CatalogueEntry(
        entry_id=1,
        flake_id=1,
        rank=1,
        material="graphene",
        layers=layers,
        probability=1.0,
        layer_probabilities=((layers, 1.0),),
        thickness_nm=0.34 * layers,
        area_um2=200.0,
        aspect_ratio=1.5,
        outline_um=((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),
        holes_um=(),
        stage_x_um=x_um,
        stage_y_um=0.0,
        chip_x_um=x_um,
        chip_y_um=0.0,
        contrast_rgb=(-0.05, -0.06, -0.02),
        off_ladder=0.0,
        score=0.9,
        sharpness=1.0,
        tiles=(0,),
        revisit=None,
    )


def test_counterparts_need_the_same_label_and_place() -> None:
    ours = [entry(1, 0.0), entry(2, 100.0), entry(3, 200.0)]
    theirs = [entry(1, 3.0), entry(1, 100.0), entry(3, 208.0)]
    assert crash.without_counterpart(ours, theirs) == ours[1:]
    assert crash.without_counterpart(ours, ours) == []


def test_damage_becomes_rows_with_verdicts() -> None:
    clean = crash.Damage(kills=3, acknowledged=40, tiles=16, to_first_fact_s=[1.0, 1.2])
    verdicts = {row.name: row.met for row in crash.rows_of(clean)}
    assert verdicts["acknowledged frames lost"] is True
    assert verdicts["tiles lost"] is True
    assert verdicts["resume to the first new fact, p95"] is True
    assert verdicts["kills"] is None
    bad = crash.Damage(
        kills=3,
        lost_frames={("run", "tile", 3)},
        exposed_twice=1,
        tiles_lost=2,
        failed=["status 1: no"],
        to_first_fact_s=[9.0],
    )
    verdicts = {row.name: row.met for row in crash.rows_of(bad)}
    assert not any(
        verdicts[name]
        for name in (
            "acknowledged frames lost",
            "exposed again after saved",
            "tiles lost",
            "resumes that failed",
            "resume to the first new fact, p95",
        )
    )
