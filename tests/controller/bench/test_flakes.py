"""The flake bench: rivals find what they should, truth lies where it is, sums add up."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from controller.bench import Report
from controller.bench import flakes as bench
from controller.bench.flakes_baselines import classical, merged_chip, methods, tasks, unseen
from controller.bench.flakes_baselines.gaussian_mixture import (
    GaussianMixture,
    Layer,
    contrast_of,
    read_layers,
    refitted,
    solidity,
)
from controller.bench.flakes_baselines.photographs import Photograph, Scene, simulated
from controller.bench.flakes_baselines.tasks import Claim, Result, Task, Truth, run_task
from controller.errors import BadSettings
from inference.api import Calibration
from inference.flakes.calibration import SubstrateCalibration
from inference.flakes.evidence import CLASSES
from inference.flakes.flakenet import ODDITY_OF_ORDINARY, FlakeNetDetector
from inference.flakes.material_cards import load_card
from inference.flakes.materials import MATERIALS, curves
from inference.flakes.physics_detector import UNKNOWN_RGB, DetectorSettings, PhysicsDetector
from inference.flakes.scoring import Instance, Overlaps, iou_matrix, overlaps_of

SUBSTRATE = np.array([130.0, 115.0, 155.0])
MONO, BI = np.array([-0.13, -0.14, -0.09]), np.array([-0.25, -0.26, -0.17])
SPREAD = np.diag([3e-4, 2e-4, 4e-4])
LAYERS = (Layer(1, MONO, SPREAD), Layer(2, BI, SPREAD))


def painted(regions, seed=0, shape=(240, 320)):
    """A photograph with rectangles (x, y, w, h) of given contrasts, with noise."""
    ratio = np.ones((*shape, 3))
    for (x, y, w, h), contrast in regions:
        ratio[y : y + h, x : x + w] = 1.0 + contrast
    noise = np.random.default_rng(seed).normal(0.0, 1.0, ratio.shape)
    return np.clip(ratio * SUBSTRATE + noise + 0.5, 0, 255).astype(np.uint8)


def rectangle(x, y, w, h, layers=None):
    return Instance(np.ones((h, w), bool), x, y, layers=layers)


PLACES = [((30, 30, 50, 40), MONO), ((200, 120, 60, 50), BI)]
TRUE = [rectangle(*PLACES[0][0], 1), rectangle(*PLACES[1][0], 2)]


def test_the_mixture_finds_its_layers():
    found = GaussianMixture(LAYERS).find(painted(PLACES))
    assert sorted(f.layers for f in found) == [1, 2]
    ious = iou_matrix(sorted(found, key=lambda f: f.layers), TRUE)
    assert np.all(np.diag(ious) > 0.85)
    assert GaussianMixture(LAYERS).find(painted([((30, 30, 50, 40), -0.6 * np.ones(3))])) == ()


def test_contrast_is_against_the_commonest_colour():
    contrast = contrast_of(painted(PLACES))
    assert np.abs(np.median(contrast[0:20, 0:20], axis=(0, 1))).max() < 0.012
    assert np.median(contrast[40:60, 40:70], axis=(0, 1)) == pytest.approx(MONO, abs=0.012)


def test_the_rivals_file_has_blue_first(tmp_path):
    """Its covariances are B, G, R; its means have names. Read from the real file: blue is wide."""
    entry = {
        "contrast": {"r": -0.1, "g": -0.2, "b": -0.3},
        "covariance_matrix": [[9.0, 1.0, 2.0], [1.0, 4.0, 3.0], [2.0, 3.0, 1.0]],
    }
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"2": entry, "1": entry}))
    first, second = read_layers(path)
    assert (first.layers, second.layers) == (1, 2)
    assert first.mean.tolist() == [-0.1, -0.2, -0.3]
    assert first.covariance.tolist() == [[1.0, 3.0, 2.0], [3.0, 4.0, 1.0], [2.0, 1.0, 9.0]]


def test_refitting_moves_towards_the_labels_and_keeps_what_is_not_labelled():
    moved = MONO * 1.3
    other = Photograph("a", painted([((30, 30, 50, 40), moved)]), (rectangle(30, 30, 50, 40, 1),))
    first, second = refitted([other], LAYERS)
    assert first.mean == pytest.approx(moved, abs=0.012)
    assert first.covariance == pytest.approx(SPREAD * 2 / 3, abs=1e-5)
    assert second.mean.tolist() == BI.tolist()


def test_a_photograph_is_never_refitted_on_itself(monkeypatch):
    told = []
    monkeypatch.setattr(methods, "shipped", lambda *_: LAYERS)
    monkeypatch.setattr(methods, "refitted", lambda others, _: (told.append(others), LAYERS)[1])
    shown = [Photograph(name, painted(PLACES, k), ()) for k, name in enumerate("abc")]
    pink = replace(shown[0], pixels=(shown[0].pixels * [1.0, 0.6, 1.0]).astype(np.uint8))
    finder = methods.RefittedMixture().taught([*shown, pink])
    for photograph in shown:
        finder(photograph)
        assert [o.name for o in told[-1]] == [p.name for p in shown if p is not photograph]


@pytest.mark.parametrize(
    "segment", [classical.otsu, classical.adaptive_threshold, classical.watershed]
)
def test_textbook_methods_find_what_is_plain_to_see(segment):
    found = segment(painted(PLACES))
    ious = iou_matrix(found, TRUE)
    assert np.all(ious.max(axis=0) > 0.7)
    bright = segment(painted([((30, 30, 50, 40), np.array([0.5, 0.6, 0.5]))]))
    assert bright == ()


def test_watershed_parts_terraces():
    touching = [((100, 80, 40, 60), MONO), ((140, 80, 50, 60), BI)]
    found = classical.watershed(painted(touching))
    ious = iou_matrix(found, [rectangle(*place) for place, _ in touching])
    assert np.all(ious.max(axis=0) > 0.8)


def test_solidity():
    ell = np.ones((10, 10), bool)
    assert solidity(ell) == 1.0
    ell[:5, 5:] = False
    assert 0.75 < solidity(ell) < 0.95


SMALL = Scene("graphene", 90.0, shape_px=(480, 640))


def test_the_truth_of_a_simulated_photograph_lies_where_the_flakes_are():
    shown = simulated(SMALL, 7)
    assert shown.pixels.shape == (480, 640, 3)
    assert shown.true
    contrast = contrast_of(shown.pixels)
    for one in shown.true:
        y, x = one.box_y_px, one.box_x_px
        h, w = one.mask.shape
        inside = np.median(contrast[y : y + h, x : x + w][one.mask], axis=0)
        assert inside[1] < -0.08 * min(one.layers, 3), one.layers
    again = simulated(SMALL, 7)
    np.testing.assert_array_equal(again.pixels, shown.pixels)
    assert not np.array_equal(simulated(SMALL, 8).pixels, shown.pixels)


@pytest.mark.parametrize(
    "change",
    [{"jpeg_quality": 85}, {"blur_px": 1.5}, {"vignette": 0.3}, {"oxide_error_nm": 10.0}],
)
def test_conditions_change_the_picture_and_not_the_truth(change):
    before, after = simulated(SMALL, 7), simulated(replace(SMALL, **change), 7)
    assert not np.array_equal(before.pixels, after.pixels)
    assert [t.area_px for t in before.true] == [t.area_px for t in after.true]


def test_gains_are_those_asked_for():
    plain = simulated(SMALL, 7)
    turned = simulated(replace(SMALL, gains=(1.3, 1.0, 0.7)), 7)
    ratio = np.median(turned.pixels, axis=(0, 1)) / np.median(plain.pixels, axis=(0, 1))
    assert ratio / ratio[1] == pytest.approx([1.3, 1.0, 0.7], abs=0.04)


def test_a_task_gives_results_of_each_method_that_serves():
    results = run_task(Task("layers", (7,), SMALL, "everybody"))
    names = [r.method for r in results]
    assert methods.PHYSICS in names
    assert {"Otsu", "adaptive threshold", "watershed"} < set(names)
    ours = next(r for r in results if r.method == methods.PHYSICS)
    assert sum(t.is_met for t in ours.truths) >= 0.7 * len(ours.truths)
    assert len(ours.truths) == ours.overlaps[0].ious.shape[1]
    assert all(c.top_probability is not None for c in ours.claims)
    silicon = run_task(
        Task("hbn", (7,), replace(SMALL, material="hbn", oxide_nm=300.0), "everybody")
    )
    assert "Gaussian mixture" not in [r.method for r in silicon]


def result(truths=(), claims=(), group="layers"):
    empty = Overlaps(np.zeros((0, 0)), np.zeros(0), np.zeros(0))
    task = Task(group, (1,), SMALL)
    return Result(task, methods.ours()[0].name, (empty,), (empty,), truths, claims, (0.0,))


def test_recall_asks_for_place_and_layer():
    truths = (
        Truth(2, 200.0, True, 2),
        Truth(2, 200.0, True, 3),
        Truth(2, 200.0, False),
        Truth(2, 50.0, False),
        Truth(1, 200.0, False),
    )
    assert bench.recalled([result(truths)], 2, 100.0) == (1, 3)


def test_precision_leaves_out_what_nobody_judges_unless_it_is_thick():
    claims = (
        Claim(2, 200.0, "hit", False, 2, 0.9),
        Claim(2, 200.0, "hit", False, 3, 0.9),
        Claim(2, 200.0, "false alarm", False, None, 0.9),
        Claim(2, 200.0, "ignored", False, None, 0.9),
        Claim(2, 200.0, "ignored", True, None, 0.9),
        Claim(2, 50.0, "false alarm", False, None, 0.9),
        Claim(1, 200.0, "hit", False, 1, 0.9),
    )
    assert bench.precise([result(claims=claims)], 2, 100.0) == (1, 4)


def test_calibration_error_by_hand():
    pairs = [(0.95, True)] * 9 + [(0.95, False)] + [(0.55, True)] * 5 + [(0.55, False)] * 5
    assert bench.calibration_error(pairs) == pytest.approx(0.05)
    assert bench.calibration_error([(1.0, True)] * 4) == 0.0
    assert bench.calibration_error([(1.0, False)] * 4) == 1.0


def test_area_under_curve_by_hand():
    assert bench.area_under_curve([0.0, 1.0], [2.0, 3.0]) == 1.0
    assert bench.area_under_curve([0.0, 2.0], [1.0, 3.0]) == 0.75
    assert bench.area_under_curve([0.0, 0.0], [0.0]) == 0.5
    assert bench.area_under_curve([], [1.0]) is None
    assert bench.area_under_curve([0.0, None], [np.inf]) == 1.0


def test_quick_and_full_ask_the_same():
    quick, full = bench.tasks(bench.QUICK, 1), bench.tasks(bench.FULL, 1)

    def asked(tasks):
        return {
            (t.group, t.only, t.scene and (t.scene.material, t.scene.oxide_nm))
            for t in tasks
            if not t.group.startswith(("change", "unseen"))
        }

    assert asked(quick) == asked(full)
    assert {t.group for t in quick} == {t.group for t in full}
    used = [seed for t in full if t.group == "layers" for seed in t.seeds]
    assert len(used) == len(set(used))  # no chip is looked at twice
    assert not set(used) & {s for t in bench.tasks(bench.FULL, 2) for s in t.seeds}


def test_rows_without_any_data_say_so():
    names = [row.name for row in bench.real_rows([])]
    assert names[0] == "real: AP50"
    assert all(row.value is None and row.note for row in bench.real_rows([]))
    assert all(row.value is None for row in bench.strangeness_rows([]))
    assert all(row.value is None for row in bench.time_rows([]))


class Claims:
    """A method that claims one thing, wherever it is."""

    def __init__(self, name, layers):
        self.name, self.layers = name, layers

    def taught(self, photographs):
        assert self.name != methods.USED, "it is not asked again"
        found = methods.Found((rectangle(30, 30, 50, 40, self.layers),), (0.9,), strangeness=0.0)
        return lambda photograph: found


@pytest.mark.parametrize(("leader", "layers"), [(methods.NET, 1), (methods.PHYSICS, 2)])
def test_the_one_in_use_is_the_one_that_leads(monkeypatch, leader, layers):
    shown = Photograph("a", painted(PLACES), (rectangle(30, 30, 50, 40, 1),))
    three = [Claims(methods.USED, 0), Claims(methods.NET, 1), Claims(methods.PHYSICS, 2)]
    monkeypatch.setattr(tasks, "ours", lambda: tuple(three))
    monkeypatch.setattr(tasks, "who_leads", lambda photographs: leader)
    monkeypatch.setattr(tasks, "simulated", lambda scene, seed: shown)
    by_name = {r.method: r for r in run_task(Task("layers", (7,), SMALL))}
    assert len(by_name) == 3
    (claim,) = by_name[methods.USED].claims
    assert (claim.layers, claim.fate) == (layers, "hit")


def test_a_wrong_layer_number_is_no_overlap_where_layers_count():
    said = [rectangle(*place, layers) for (place, _), layers in zip(PLACES, (1, 3), strict=True)]
    plain = overlaps_of(said, TRUE)
    strict = tasks.with_layers(plain, said, TRUE)
    assert plain.ious.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert strict.ious.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    nothing = overlaps_of([], TRUE)
    assert tasks.with_layers(nothing, [], TRUE).ious.shape == (0, 2)


UNSEEN = Scene("mose2", 90.0, curve="hsu_3l", shape_px=(480, 640))


def test_a_card_is_what_a_table_says(tmp_path):
    card = load_card(unseen.written_card("mose2", tmp_path))
    assert card.key == "new_mose2"
    assert card.layer_thickness_nm == MATERIALS["mose2"].layer_thickness_nm
    table = curves()["mose2/bulk_munkhbat"].at(np.array([600.0]))[0]
    at = card.wavelength_nm.index(600.0)
    assert (card.n[at], card.k[at]) == pytest.approx((table.real, abs(table.imag)), abs=1e-4)


def test_examples_are_outlined_and_counted():
    shown = simulated(UNSEEN, 7)
    labels, points = unseen.labels_of(shown), unseen.points_in(shown.true)
    assert len(points) == len(shown.true) > 0
    for number, (one, point) in enumerate(zip(shown.true, points, strict=True), start=1):
        assert labels[int(point.y_px), int(point.x_px)] == number
        assert np.count_nonzero(labels == number) >= 0.9 * one.area_px  # neighbours share a rim
        assert point.layers == one.layers


def test_an_unseen_crystal_is_found_both_ways(monkeypatch):
    fitted = SubstrateCalibration(UNKNOWN_RGB, Calibration(90.0, (1.0, 1.0, 1.0), 0.5, "told"))
    monkeypatch.setattr(unseen, "told_by", lambda photographs, settings: (fitted,))
    found = run_task(Task("unseen", tuple(range(7, 13)), UNSEEN))
    assert [r.method for r in found] == [unseen.BY_CARD, unseen.BY_FLAKES]
    rows = {row.name: row for row in bench.unseen_rows(found)}
    lost = rows["simulated, unseen crystal: AP50, layers right lost by the card"]
    assert (lost.bar, lost.better) == (5.0, "lower")
    assert all(len(r.overlaps) == 1 for r in found)  # the other five are examples
    assert rows[f"simulated, unseen crystal: AP50, {unseen.BY_CARD}"].value > 0.5
    (wafer,) = (row for name, row in rows.items() if "mose2 on 90 nm" in name)
    assert wafer.value == rows["simulated, unseen crystal: AP50 lost by the card"].value
    assert all(row.value is None for row in bench.unseen_rows([]))


def test_a_chip_of_tiles_keeps_every_terrace_once():
    found = merged_chip.merged_chip(400, 3)
    assert (found.present, found.lost, found.doubled, found.glued) == (400, 0, 0, 0)
    assert found.across >= 40


def test_losses_and_duplicates_would_be_seen(monkeypatch):
    merge = merged_chip.merge_terraces
    alone = lambda pieces, boxes: tuple(merge([p], boxes)[0] for p in pieces)  # noqa: E731
    monkeypatch.setattr(merged_chip, "merge_terraces", alone)
    found = merged_chip.merged_chip(200, 3)
    assert found.doubled == found.across > 0
    monkeypatch.setattr(
        merged_chip, "merge_terraces", lambda pieces, boxes: merge(pieces, boxes)[7:]
    )
    assert merged_chip.merged_chip(200, 3).lost == 7


def test_a_part_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(BadSettings, match=r"layres.*real, layers"):
        bench.measure_with(True, 1, Report(only=("layres",)))


def test_parts_are_measured_alone_and_without_processes_where_none_are_needed():
    rows = bench.measure_with(True, 1, Report(only=("merging",)))
    assert [row.name for row in rows] == ["tiled chip: duplicates", "tiled chip: losses"]
    assert [row.met for row in rows] == [True, True]


def test_points_lost_are_between_the_same_chips():
    def of(group, seed, hit):
        ious = np.array([[0.9 if hit else 0.0]])
        overlaps = (Overlaps(ious, np.ones(1), np.zeros(1)),)
        task = Task(f"change: {group}", (seed,), SMALL)
        return Result(task, methods.ours()[0].name, overlaps, overlaps, (), (), (0.0,))

    found = [of("as it is", 1, True), of("as it is", 2, False), of("JPEG 85", 2, False)]
    values = {row.name: row.value for row in bench.change_rows(found)}
    assert values["simulated: AP50 lost, JPEG 85"] == 0.0
    assert values["simulated: AP50 lost, NA 0.8"] is None
    found.append(of("JPEG 85", 1, False))
    values = {row.name: row.value for row in bench.change_rows(found)}
    assert values["simulated: AP50 lost, JPEG 85"] == pytest.approx(100 * 0.5 * 51 / 101)


class Undecided:
    """A network that finds everything equally likely, and frames as odd as it is told."""

    name = "undecided"
    runs_on = "nothing"
    card = SimpleNamespace(figures={})

    def __init__(self, oddity):
        self.oddity = oddity

    def run(self, planes):
        answer = np.zeros((1, 4 * len(CLASSES) + 5, planes.shape[2], planes.shape[3]), np.float32)
        answer[:, -1] = self.oddity
        return answer


@pytest.mark.parametrize("oddity", [-2.0, 3.0])
def test_the_network_says_how_odd_a_photograph_is(oddity):
    shown = Photograph("a", painted(PLACES), ())
    finder = methods.asked(FlakeNetDetector(Undecided(oddity), DetectorSettings()))
    assert finder(shown).strangeness == pytest.approx(oddity - ODDITY_OF_ORDINARY, abs=1e-5)
    physics = methods.asked(PhysicsDetector(DetectorSettings()))(shown)
    assert physics.strangeness == 0.0
    assert len(physics.thickness_nm) == len(physics.instances) == 2
