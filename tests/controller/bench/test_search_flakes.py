"""Searches beside each other: what is read from a table, and what counts as the same terrace."""

from types import SimpleNamespace

from controller.bench import Report, chips, run_bench, search_flakes
from controller.bench.search_flakes import Catalogue, catalogue_of, real_rows
from controller.search.scorecard import Scorecard, ScoreRow

ROWS = [
    {"rank": "1", "layers": "1", "area_um2": "100.0", "chip_x_um": "10", "chip_y_um": "20",
     "detectors_differ": "no"},
    {"rank": "2", "layers": "2", "area_um2": "50.0", "chip_x_um": "90", "chip_y_um": "20",
     "detectors_differ": "layers area"},
    {"rank": "3", "layers": "2", "area_um2": "50.0", "chip_x_um": "90", "chip_y_um": "60",
     "detectors_differ": ""},
    {"rank": "0", "layers": "9", "area_um2": "50.0", "chip_x_um": "0", "chip_y_um": "0",
     "detectors_differ": "existence"},
]  # fmt: skip


def test_a_table_is_read_for_what_was_wanted():
    read = catalogue_of(ROWS)
    assert read.wanted == ((1, 100.0, 10.0, 20.0), (2, 50.0, 90.0, 20.0), (2, 50.0, 90.0, 60.0))
    assert (read.read_twice, read.differ) == (2, 1)


def test_the_same_terrace_has_its_place_its_layers_and_its_size():
    physics = Catalogue(((1, 100.0, 10.0, 20.0),), 0, 0)
    others = ((1, 100.0, 14.0, 17.0), (1, 100.0, 16.0, 20.0), (2, 100.0, 10.0, 20.0),
              (1, 150.0, 10.0, 20.0), (1, 75.0, 10.0, 20.0))  # fmt: skip
    network = Catalogue(others, 4, 3)
    found = {
        r.name: r for r in real_rows({"physics": physics, "network": network, "auto": physics})
    }
    share = found["real: of the wanted by network, share that the physics wants"]
    assert (share.value, share.n) == (0.4, 5)
    differ = found["real: of the wanted by network, share that the other reads differently"]
    assert (differ.value, differ.n) == (0.75, 4)
    assert found["real: wanted terraces, network"].note == "4 of 1 L, 1 of 2 L"


class Outcome:
    card = Scorecard(
        (
            ScoreRow("graphene", 1, 10, 9, 1, 1, 10, 2),
            ScoreRow("graphene", 2, 10, 10, 0, 0, 10, 0),
        ),
        0.5,
        0,
    )


def test_every_leader_searches_the_same_chips(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        search_flakes, "searched", lambda tables, folder: (asked.append(tables), Outcome)[1]
    )
    monkeypatch.setattr(search_flakes, "data_folder", lambda: tmp_path)
    rows = {row.name: row for row in run_bench("search_flakes", True, 3, Report())}
    leaders = [tables["inference"]["flakes"] for tables in asked]
    assert leaders == ["physics", "network", "auto"] * 2
    chips = [tables["instrument"]["chip"] for tables in asked]
    assert chips[0] == chips[1] == chips[2] != chips[3]
    recall = rows["simulated, dirty chip: recall, 1 to 4 L, auto"]
    assert (recall.value, recall.n, recall.met) == (0.95, 20, True)
    assert recall.note == "1 of them under another layer number"
    precision = rows["simulated, dirty chip: precision, 1 to 4 L, auto"]
    assert (precision.value, precision.met) == (0.9, False)
    assert rows["simulated, dirty chip: recall, 1 to 4 L, physics"].bar is None
    assert "SCOPELOOP_DATA" in rows["real"].note


def test_chips_are_searched_in_parts_and_told_of_as_they_end(monkeypatch):
    seeds, said, kept = [], [], []

    def searched(tables, folder):
        seeds.append(tables["instrument"]["chip"]["seed"])
        return SimpleNamespace(card=Outcome.card, truth=SimpleNamespace(collisions=0))

    monkeypatch.setattr(chips, "searched", searched)
    report = Report(
        said.append, only=("mos2", "hbn on 90"), partial=lambda rows: kept.append(len(rows))
    )
    rows = {row.name: row for row in run_bench("chips", True, 7, report)}
    assert seeds == [7100, 7110, 7300]
    assert said[0] == "mos2 on 90 nm, chip 1 of 1"
    assert kept == [8, 16, 24]
    assert rows["recall, mos2 on 90 nm, 1 L"].bar == 0.95
    assert rows["recall, hbn on 90 nm, 1 L"].bar is None
    assert rows["collisions"].n == 3
    assert not any("graphene" in name for name in rows)
