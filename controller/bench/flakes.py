"""Flake detection against its rivals: real photographs, and simulated ones with one thing changed.

Real and simulated figures stand apart. A simulated one is a regression bar and says nothing about
the world: its chips are painted by the same physics that the ladder is made of, though with other
measurements of the indices, and the "laboratories" by other lamps, filters and tone curves as well.

One scoring for everybody (`inference.flakes.scoring`). Our detectors calibrate themselves on the
photographs, without any truth; rivals have their best documented settings, or better ones: see
`flakes_baselines`. "With the list" means that the committed list of real terraces which the labels
leave out counts neither as hit nor as false alarm; it was drawn before any detector was looked at.
Precision and recall are of everything that a method says, whatever its score.

Rows that name no method are of the detector that a search uses: the physics where its calibration
holds, else FlakeNet. Both are measured alone as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np

from controller.bench import Report
from controller.bench.flakes_baselines.merged_chip import merged_chip
from controller.bench.flakes_baselines.methods import NET, PHYSICS, USED, ours, rivals
from controller.bench.flakes_baselines.photographs import Photograph, Scene, real_masked
from controller.bench.flakes_baselines.tasks import (
    BLUR,
    LABORATORY,
    MICROGRAPHS,
    REAL,
    RESIDUE,
    UNSEEN,
    Result,
    Task,
    Who,
    run_all,
)
from controller.bench.flakes_baselines.unseen import (
    BY_CARD,
    BY_FLAKES,
    PAINTED,
    TAUGHT_PHOTOGRAPHS,
)
from controller.bench.numbers import load, quantile_row, share_row
from controller.errors import BadSettings
from controller.figures import Row
from inference.figures import wilson_ci95
from inference.flakes.scoring import Overlaps, Scores, score_overlaps

_MATERIALS: Final = ("graphene", "wse2", "mos2", "wte2")
_OXIDES_NM: Final = (90.0, 285.0, 300.0)
_LAYERS: Final = (1, 2, 3, 4)
_HBN_OXIDES_NM: Final = (70.0, 90.0, 285.0)
_THICK_OXIDES_NM: Final = (90.0, 285.0)
_THICK_NM: Final = (5.0, 40.0)
_LARGE_UM2: Final = 100.0
_HBN_UM2: Final = 200.0
_REAL_COUNTED: Final = 6
_FALSE_UM2: Final = 200 * 0.384**2  # 200 px of the real photographs
_PUBLISHED: Final = "their own program, measured on these: AP50 0.276, P 0.60, R 0.35"
_NO_DATA: Final = "no real photographs here: set SCOPELOOP_DATA"

LAYERS: Final = "layers"
HBN: Final = "hbn"
THICKNESS: Final = "thickness"
CHANGE: Final = "change"
DIRT: Final = "dirt"
IMBALANCE: Final = "imbalance"
TIME: Final = "time"
MERGING: Final = "merging"
PARTS: Final = (
    REAL,
    LAYERS,
    HBN,
    THICKNESS,
    CHANGE,
    DIRT,
    IMBALANCE,
    UNSEEN,
    LABORATORY,
    TIME,
    MERGING,
)

_BASE: Final = "as it is"
_CHANGES: Final[dict[str, dict[str, object]]] = {
    "red +30 %, blue -30 %": {"gains": (1.3, 1.0, 0.7)},
    "red -30 %, blue +30 %": {"gains": (0.7, 1.0, 1.3)},
    "lamp 2,700 K": {"lamp_k": 2_700.0},
    "lamp 6,500 K": {"lamp_k": 6_500.0},
    "vignette 30 %": {"vignette": 0.30},
    "oxide +10 nm": {"oxide_error_nm": 10.0},
    "oxide -10 nm": {"oxide_error_nm": -10.0},
    "NA 0.25": {"numerical_aperture": 0.25},
    "NA 0.8": {"numerical_aperture": 0.8},
    "JPEG 85": {"jpeg_quality": 85},
    "blur 1.5 px": {"blur_px": 1.5},
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How many photographs of each kind."""

    layers: int
    changes: int
    hbn: int
    imbalance: int
    residue: int
    laboratories: int
    photographs: int | None  # real ones; None: all
    micrographs: int
    timed: int
    merged: int
    shape_px: tuple[int, int]
    change_wafers: tuple[tuple[str, float], ...]
    unseen: tuple[tuple[str, float], ...]


QUICK: Final = Plan(
    layers=1,
    changes=1,
    hbn=1,
    imbalance=2,
    residue=1,
    laboratories=1,
    photographs=4,
    micrographs=3,
    timed=1,
    merged=2_000,
    shape_px=(600, 960),
    change_wafers=(("graphene", 90.0),),
    unseen=(("mose2", 90.0),),
)
FULL: Final = Plan(
    layers=8,
    changes=6,
    hbn=8,
    imbalance=10,
    residue=10,
    laboratories=40,
    photographs=None,
    micrographs=27,
    timed=10,
    merged=10_000,
    shape_px=(1200, 1920),
    change_wafers=(("graphene", 90.0), ("mos2", 285.0)),
    unseen=(("mose2", 90.0), ("mose2", 285.0), ("ws2", 90.0), ("ws2", 285.0)),
)


def measure(quick: bool, seed: int) -> list[Row]:
    """Measure everything; see the module."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """Measure everything, or the parts named in `PARTS`, and say how far it is."""
    plan = QUICK if quick else FULL
    unknown = [part for part in report.only if part not in PARTS]
    if unknown:
        raise BadSettings("bench flakes", "only", repr(unknown[0]), f"one of {', '.join(PARTS)}")
    wanted = set(report.only or PARTS)
    rows: list[Row] = []
    if TIME in wanted:  # before other processes keep the machine busy
        rows += time_rows(real_masked(plan.timed))
    if MERGING in wanted:
        rows += merging_rows(plan.merged, seed)
    todo = [task for task in tasks(plan, seed) if task.group.partition(":")[0] in wanted]
    results = run_all(todo, report.jobs, report.progress, report.most_s) if todo else []
    makers: dict[str, Callable[[Sequence[Result]], list[Row]]] = {
        REAL: real_rows,
        LAYERS: lambda found: [*layer_rows(found), *method_rows(found)],
        HBN: hbn_rows,
        THICKNESS: thickness_rows,
        CHANGE: change_rows,
        DIRT: dirt_rows,
        IMBALANCE: imbalance_rows,
        UNSEEN: unseen_rows,
        LABORATORY: laboratory_rows,
    }
    found = [row for part, rows_of in makers.items() if part in wanted for row in rows_of(results)]
    if not report.only:
        found += [*probability_rows(results), *strangeness_rows(results)]
    return [*found, *rows]


# --- what is asked ---------------------------------------------------------------------------


def tasks(plan: Plan, seed: int) -> list[Task]:
    """All tasks, the longest first."""
    first = 100_000 * seed

    def seeds(kind: int, count: int) -> tuple[int, ...]:
        return tuple(first + 1_000 * kind + k for k in range(count))

    # Ours in one task, so that the photographs are calibrated once.
    real = Task(REAL, seeds(1, plan.micrographs), at_most=plan.photographs)
    found = [real]
    found += [replace(real, seeds=(), who="everybody", only=(m.name,)) for m in rivals()]
    # A laboratory's photographs have nothing in common: each is a user of its own.
    found += [Task(LABORATORY, (one,), who="everybody") for one in seeds(2, plan.laboratories)]
    for number, material in enumerate(_MATERIALS):
        for k, oxide_nm in enumerate(_OXIDES_NM):
            scene = Scene(material, oxide_nm, shape_px=plan.shape_px)
            who: Who = "everybody" if oxide_nm == _OXIDES_NM[0] else "ours"
            found.append(Task(LAYERS, seeds(10 + 3 * number + k, plan.layers), scene, who))
    for k, oxide_nm in enumerate(_HBN_OXIDES_NM):
        thin = {"max_layers": 4, "thick_fraction": 0.2}
        scene = Scene("hbn", oxide_nm, shape_px=plan.shape_px, chip=thin)
        found.append(Task(HBN, seeds(30 + k, plan.hbn), scene))
    for k, oxide_nm in enumerate(_THICK_OXIDES_NM):
        tall = {"max_layers": 60, "layer_exponent": 0.0, "thick_fraction": 0.5}
        scene = Scene("hbn", oxide_nm, shape_px=plan.shape_px, max_thickness_nm=45.0, chip=tall)
        found.append(Task(THICKNESS, seeds(35 + k, plan.hbn), scene))
    for k, (material, oxide_nm) in enumerate(plan.change_wafers):
        scene = Scene(material, oxide_nm, shape_px=plan.shape_px)
        for name, change in ((_BASE, {}), *_CHANGES.items()):
            changed = replace(scene, **change)  # type: ignore[arg-type]
            found.append(Task(f"{CHANGE}: {name}", seeds(40 + k, plan.changes), changed))
    rare = {
        "layer_exponent": 1.904,  # 4 ** 1.904 = 14
        "max_layers": 4,
        "thick_fraction": 0.1,
        "flakes_per_mm2": 300.0,
        "median_area_um2": 200.0,
    }
    found.append(Task(IMBALANCE, seeds(50, plan.imbalance), Scene(chip=rare)))
    for number, (material, oxide_nm) in enumerate(plan.unseen):
        scene = Scene(material, oxide_nm, curve=PAINTED[material], shape_px=plan.shape_px)
        count = plan.changes + TAUGHT_PHOTOGRAPHS
        found.append(Task(UNSEEN, seeds(60 + number, count), scene))
    dirty = {
        "flakes_per_mm2": 0.0,
        "debris_per_mm2": 0.0,
        "residue_per_mm2": 40.0,
        "trails_per_mm2": 25.0,
        "films_per_mm2": 8.0,
        "bubbles_per_mm2": 8.0,
    }
    dirt = Scene(shape_px=plan.shape_px, chip=dirty)
    found.append(Task(DIRT, seeds(51, plan.residue), dirt, "everybody"))
    return found


# --- figures ---------------------------------------------------------------------------------


def _of(results: Sequence[Result], group: str, method: str | None = None) -> list[Result]:
    """Results of a group; method None: those of the detector in use."""
    name = ours()[0].name if method is None else method
    return [r for r in results if r.task.group == group and r.method == name]


def _scores(results: Iterable[Result]) -> Scores | None:
    overlaps: list[Overlaps] = [one for result in results for one in result.overlaps]
    return score_overlaps(overlaps) if overlaps else None


def _beside(method: str, figure: str) -> str:
    """The name of a row: the detector in use has its figures without a name."""
    return figure if method == ours()[0].name else f"{figure}, {method}"


def real_rows(results: Sequence[Result]) -> list[Row]:
    """The labelled photographs of graphene, every method."""
    rows = []
    names = [method.name for method in (*ours(), *rivals())]
    best: dict[str, float] = {}
    for name in reversed(names):
        mine = _of(results, REAL, name)
        is_first, is_rival = name == names[0], name not in {m.name for m in ours()}
        labels = [one for result in mine for one in result.labels_only]
        if not labels:
            rows.append([Row(f"real: {_beside(name, 'AP50')}", None, note=_NO_DATA)])
            continue
        plain, listed = score_overlaps(labels), _scores(mine)
        if listed is None:
            continue
        note = _PUBLISHED if name == "Gaussian mixture" else ""
        figures = {
            "AP50": (plain.ap50, plain.n_true, 0.80),
            "AP50 with the list": (listed.ap50, listed.n_true, None),
            "AP": (plain.ap, plain.n_true, None),
            "recall": (plain.recall, plain.n_true, 0.90),
            "precision": (plain.precision, plain.n_predicted, None),
            "precision with the list": (listed.precision, listed.n_predicted, 0.85),
        }
        block = []
        for figure, (value, n, bar) in figures.items():
            if is_rival:
                best[figure] = max(best.get(figure, 0.0), value)
            interval = None
            if n and not figure.startswith("AP"):
                interval = wilson_ci95(round(value * n), n)
            elif is_first and figure.startswith("AP50"):
                judged = [one for result in mine for one in result.overlaps]
                interval = resampled_ci95(labels if figure == "AP50" else judged)
            block.append(
                Row(
                    f"real: {_beside(name, figure)}",
                    value if np.isfinite(value) else None,
                    bar=bar if is_first else None,
                    baseline=best.get(figure) if is_first else None,
                    n=n,
                    ci95=interval,
                    note="baseline: the best rival's" if is_first else note,
                )
            )
        known = [
            t for r in mine for t in r.truths if t.is_met and (t.layers or 99) <= _REAL_COUNTED
        ]
        right = sum(t.layers == t.said_layers for t in known)
        if any(t.said_layers is not None for t in known):
            block.append(
                share_row(
                    f"real: {_beside(name, 'layers right, to 6 L')}",
                    right,
                    len(known),
                    0.90 if is_first else None,
                    note="of matched terraces; layers counted by eye in steps of contrast",
                )
            )
        rows.append(block)
    return [row for block in reversed(rows) for row in block]


def resampled_ci95(photographs: Sequence[Overlaps], times: int = 200) -> tuple[float, float]:
    """Where AP50 would lie with other photographs of this kind: a bootstrap over photographs."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(photographs), size=(times, len(photographs)))
    values = [score_overlaps([photographs[k] for k in row]).ap50 for row in drawn.tolist()]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def time_rows(photographs: Sequence[Photograph]) -> list[Row]:
    """Time for 2.3 Mpx, flat field included, with as many threads as the libraries take."""
    rows = []
    for method in (*ours(), *rivals()):
        if method.name == USED:
            continue  # it is one of the two
        walls_ms, cpus_ms = [], []
        finder = method.taught(photographs) if photographs else None
        for photograph in photographs if finder is not None else ():
            if finder is None:
                break
            finder(photograph)
            for _ in range(3):
                began_s, began_cpu_s = time.perf_counter(), time.process_time()
                finder(photograph)
                cpus_ms.append(1e3 * (time.process_time() - began_cpu_s))
                walls_ms.append(1e3 * (time.perf_counter() - began_s))
        bar = {PHYSICS: 20.0, NET: 60.0}.get(method.name)
        note = f"{cv2.getNumThreads()} threads, {load()}" if walls_ms else _NO_DATA
        if method.name == "Gaussian mixture":
            note += "; their own program: 87 ms on two such cores"
        rows.append(
            quantile_row(
                f"time for 2.3 Mpx, {method.name}",
                walls_ms,
                0.5,
                "ms",
                bar,
                baseline=87.0 if bar else None,
                note=note,
            )
        )
        rows.append(quantile_row(f"processor time for 2.3 Mpx, {method.name}", cpus_ms, 0.5, "ms"))
    return rows


def layer_rows(results: Sequence[Result]) -> list[Row]:
    """Precision and recall per crystal, oxide and layer number, from 100 um2 on."""
    rows = []
    mine = _of(results, LAYERS)
    for material in _MATERIALS:
        for oxide_nm in _OXIDES_NM:
            here = [
                r
                for r in mine
                if r.task.scene is not None
                and (r.task.scene.material, r.task.scene.oxide_nm) == (material, oxide_nm)
            ]
            for layers in _LAYERS:
                name = f"{material} on {oxide_nm:g} nm, {layers} L"
                hits, present = recalled(here, layers, _LARGE_UM2)
                rows.append(share_row(f"simulated: recall, {name}", hits, present, 0.97))
                right, said = precise(here, layers, _LARGE_UM2)
                rows.append(share_row(f"simulated: precision, {name}", right, said, 0.97))
    for layers in _LAYERS:
        hits, present = recalled(mine, layers, _LARGE_UM2)
        rows.append(share_row(f"simulated: recall, all, {layers} L", hits, present, 0.97))
        right, said = precise(mine, layers, _LARGE_UM2)
        rows.append(share_row(f"simulated: precision, all, {layers} L", right, said, 0.97))
    met = [
        t
        for r in mine
        for t in r.truths
        if t.is_met and t.layers in _LAYERS and t.area_um2 >= _LARGE_UM2
    ]
    right = sum(t.layers == t.said_layers for t in met)
    rows.append(share_row("simulated: layer right, 1 to 4 L", right, len(met), 0.99))
    return rows


def recalled(results: Sequence[Result], layers: int, least_um2: float) -> tuple[int, int]:
    """(found with the right layer number, present) of terraces so large."""
    mine = [t for r in results for t in r.truths if t.layers == layers and t.area_um2 >= least_um2]
    return sum(t.said_layers == layers for t in mine), len(mine)


def precise(results: Sequence[Result], layers: int, least_um2: float) -> tuple[int, int]:
    """(right in place and layer number, claimed) of claims so large.

    What lies on things that nobody asked for is left out, unless these are thick.
    """
    mine = [
        c
        for r in results
        for c in r.claims
        if c.layers == layers and c.area_um2 >= least_um2 and (c.fate != "ignored" or c.is_thick)
    ]
    return sum(c.fate == "hit" and c.true_layers == layers for c in mine), len(mine)


def method_rows(results: Sequence[Result]) -> list[Row]:
    """Every method on the simulated photographs of 90 nm of oxide, whatever the layer number."""
    rows = []
    for method in (*ours(), *rivals()):
        mine = [r for r in _of(results, LAYERS, method.name) if r.task.who == "everybody"]
        scores = _scores(mine)
        where = f"{len(mine)} of {len(_MATERIALS)} crystals"
        for figure in ("ap50", "precision", "recall"):
            shown = {"ap50": "AP50"}.get(figure, figure)
            value = None if scores is None else float(getattr(scores, figure))
            rows.append(
                Row(
                    f"simulated, 90 nm: {shown}, {method.name}",
                    value,
                    n=None if scores is None else scores.n_true,
                    note=where if scores is not None else "has no parameters for these",
                )
            )
    return rows


def hbn_rows(results: Sequence[Result]) -> list[Row]:
    """Monolayers of hBN, whose contrast is 2.5 % or less."""
    rows = []
    for oxide_nm in _HBN_OXIDES_NM:
        here = [
            r
            for r in _of(results, HBN)
            if r.task.scene is not None and r.task.scene.oxide_nm == oxide_nm
        ]
        name = f"hBN monolayer on {oxide_nm:g} nm"
        hits, present = recalled(here, 1, _HBN_UM2)
        rows.append(share_row(f"simulated: recall, {name}", hits, present, 0.80))
        right, said = precise(here, 1, _HBN_UM2)
        rows.append(share_row(f"simulated: precision, {name}", right, said, 0.90))
    return rows


def thickness_rows(results: Sequence[Result]) -> list[Row]:
    """How far off the thickness of hBN is that is too thick to count."""
    rows = []
    for method in ours():
        for oxide_nm in _THICK_OXIDES_NM:
            errors = [
                abs(c.thickness_nm - c.true_nm) / c.true_nm
                for r in _of(results, THICKNESS, method.name)
                if r.task.scene is not None and r.task.scene.oxide_nm == oxide_nm
                for c in r.claims
                if c.thickness_nm is not None
                and c.true_nm is not None
                and _THICK_NM[0] <= c.true_nm <= _THICK_NM[1]
            ]
            name = _beside(method.name, f"hBN of 5-40 nm on {oxide_nm:g} nm, thickness error")
            bar = 0.10 if method.name == ours()[0].name else None
            rows.append(quantile_row(f"simulated: {name}, median", errors, 0.5, ""))
            rows.append(quantile_row(f"simulated: {name}, p90", errors, 0.9, "", bar))
            near = sum(error <= 0.10 for error in errors)
            rows.append(share_row(f"simulated: {name} of 10 % at most", near, len(errors)))
    return rows


def change_rows(results: Sequence[Result]) -> list[Row]:
    """Points of AP50 that each change of the microscope costs, on the same chips."""
    rows = []
    for method in ours():
        unchanged = _of(results, f"{CHANGE}: {_BASE}", method.name)
        base = _scores(unchanged)
        rows.append(
            Row(
                f"simulated: {_beside(method.name, 'AP50 before any change')}",
                None if base is None else base.ap50,
                n=None if base is None else base.n_true,
            )
        )
        for name in _CHANGES:
            found = _of(results, f"{CHANGE}: {name}", method.name)
            seeds = {result.task.seeds for result in found}  # where time ran out, not all
            before = _scores([result for result in unchanged if result.task.seeds in seeds])
            changed = _scores(found)
            lost = None
            if before is not None and changed is not None:
                lost = 100.0 * (before.ap50 - changed.ap50)
            rows.append(
                Row(
                    f"simulated: {_beside(method.name, f'AP50 lost, {name}')}",
                    lost,
                    "points",
                    3.0 if method.name == ours()[0].name else None,
                    "lower",
                    n=None if changed is None else changed.n_true,
                )
            )
    return rows


def dirt_rows(results: Sequence[Result]) -> list[Row]:
    """Residue and no flake at all, and what rivals see in it."""
    bar = 0.5
    return [
        _false_row(
            _of(results, DIRT, method.name),
            f"simulated: {_beside(method.name, 'false flakes a photograph of residue')}",
            bar if method.name == ours()[0].name else None,
        )
        for method in (*ours(), *rivals())
        if _of(results, DIRT, method.name) or method in ours()
    ]


def _false_row(mine: Sequence[Result], name: str, bar: float | None = None) -> Row:
    photographs = sum(len(r.overlaps) for r in mine)
    false = sum(c.fate == "false alarm" and c.area_um2 > _FALSE_UM2 for r in mine for c in r.claims)
    value = false / photographs if photographs else None
    return Row(name, value, "", bar, "lower", n=photographs, note=f"> {_FALSE_UM2:.0f} um2")


def imbalance_rows(results: Sequence[Result]) -> list[Row]:
    """Rare layer numbers among common ones."""
    mine = _of(results, IMBALANCE)
    counts = {n: recalled(mine, n, _LARGE_UM2) for n in (1, 4)}
    shares = {n: hits / present for n, (hits, present) in counts.items() if present}
    is_known = 1 in shares and 4 in shares and shares[1] > 0
    return [
        Row(
            "simulated: recall of 4 L over that of 1 L, at 1 : 14",
            shares[4] / shares[1] if is_known else None,
            "",
            0.90,
            n=counts[4][1],
            note=f"{counts[1][1]} monolayers" if is_known else "none of the rare ones there",
        )
    ]


def unseen_rows(results: Sequence[Result]) -> list[Row]:
    """What a card of n and k costs beside a calibration with flakes, in points of AP50."""
    ways = {way: _of(results, UNSEEN, way) for way in (BY_CARD, BY_FLAKES)}
    shown = sorted({r.task.scene.material for r in ways[BY_CARD] if r.task.scene is not None})
    rows = []
    for is_strict, demand in ((False, ""), (True, ", layers right")):
        found: list[float | None] = []
        n = 0
        for way, mine in ways.items():
            judged = [o for r in mine for o in (r.with_layers if is_strict else r.overlaps)]
            scores = score_overlaps(judged) if judged else None
            n = 0 if scores is None else scores.n_true
            found.append(None if scores is None else scores.ap50)
            rows.append(Row(f"simulated, unseen crystal: AP50{demand}, {way}", found[-1], n=n))
        card, flakes = found
        rows.append(
            Row(
                f"simulated, unseen crystal: AP50{demand} lost by the card",
                None if card is None or flakes is None else 100.0 * (flakes - card),
                "points",
                5.0,
                "lower",
                n=n,
                note=f"{', '.join(shown)}; painted with another laboratory's indices",
            )
        )
    for by_card, by_flakes in zip(ways[BY_CARD], ways[BY_FLAKES], strict=False):
        scene, card_scores, taught = by_card.task.scene, _scores([by_card]), _scores([by_flakes])
        if scene is None or card_scores is None or taught is None:
            continue
        name = f"{scene.material} on {scene.oxide_nm:g} nm, AP50 lost by the card"
        lost = 100.0 * (taught.ap50 - card_scores.ap50)
        note = f"{card_scores.ap50:.3f} by the card, {taught.ap50:.3f} after five photographs"
        rows.append(Row(f"simulated, unseen: {name}", lost, "points", n=taught.n_true, note=note))
    return rows


def probability_rows(results: Sequence[Result]) -> list[Row]:
    """How far beliefs and truth are apart: 90 % should be right nine times in ten."""
    rows = []
    for method in ours():
        pairs = [
            (c.top_probability, c.layers == c.true_layers)
            for group in (LAYERS, f"{CHANGE}: {_BASE}", LABORATORY)
            for r in _of(results, group, method.name)
            for c in r.claims
            if c.fate == "hit" and c.top_probability is not None
        ]
        rows.append(
            Row(
                f"simulated: {_beside(method.name, 'calibration error of the layer probability')}",
                calibration_error(pairs) if pairs else None,
                "",
                0.05 if method.name == ours()[0].name else None,
                "lower",
                n=len(pairs),
                note="ECE, ten bins, matched terraces, laboratories included",
            )
        )
    return rows


def calibration_error(pairs: Sequence[tuple[float, bool]], bins: int = 10) -> float:
    """Expected calibration error (C. Guo et al., ICML 2017): mean gap of belief and truth."""
    said = np.array([p for p, _ in pairs], dtype=np.float64)
    true = np.array([t for _, t in pairs], dtype=np.float64)
    where = np.minimum((said * bins).astype(int), bins - 1)
    gaps = [
        np.count_nonzero(where == k) * abs(said[where == k].mean() - true[where == k].mean())
        for k in range(bins)
        if np.any(where == k)
    ]
    return float(np.sum(gaps) / said.size)


def strangeness_rows(results: Sequence[Result]) -> list[Row]:
    """Whether a detector notices that it is shown something else than a chip in focus."""
    rows = []
    for method in ours():
        for shown, group, among in (
            (MICROGRAPHS, REAL, "real: "),
            (BLUR, REAL, "real: "),
            (RESIDUE, LABORATORY, "simulated: "),
        ):
            usual = [s for r in _of(results, group, method.name) for s in r.strangeness]
            odd = [s for r in _of(results, shown, method.name) for s in r.strangeness]
            value = area_under_curve(usual, odd)
            rows.append(
                Row(
                    among + _beside(method.name, f"in-distribution AUROC, {shown}"),
                    value,
                    "",
                    0.95 if method.name == NET else None,
                    n=len(odd),
                    note=_NO_DATA if value is None else f"against {len(usual)} proper ones",
                )
            )
    return rows


def area_under_curve(usual: Sequence[float | None], odd: Sequence[float | None]) -> float | None:
    """Chance that an odd one is stranger than a usual one; ties count half. None: nothing to do."""
    low = [s for s in usual if s is not None]
    high = [s for s in odd if s is not None]
    if not low or not high:
        return None
    wins = sum((h > l) + 0.5 * (h == l) for h in high for l in low)
    return float(wins) / (len(low) * len(high))


def laboratory_rows(results: Sequence[Result]) -> list[Row]:
    """Other lamps, filters, tone curves, crystals: each photograph a user of its own."""
    rows = []
    for method in (*ours(), *rivals()):
        mine = _of(results, LABORATORY, method.name)
        scores = _scores(mine)
        if scores is None:
            continue
        for figure in ("ap50", "precision", "recall"):
            shown = {"ap50": "AP50"}.get(figure, figure)
            value = float(getattr(scores, figure))
            rows.append(
                Row(
                    f"simulated laboratories: {_beside(method.name, shown)}",
                    value if np.isfinite(value) else None,
                    n=scores.n_true,
                    note=f"{len(mine)} photographs, a microscope and a crystal each",
                )
            )
        met = [t for r in mine for t in r.truths if t.is_met and t.layers in _LAYERS]
        if not any(method.name == one.name for one in ours()):
            continue
        rows.append(
            _false_row(
                _of(results, RESIDUE, method.name),
                "simulated laboratories: "
                + _beside(method.name, "false flakes a photograph of unseen residue"),
            )
        )
        right = sum(t.layers == t.said_layers for t in met)
        rows.append(
            share_row(
                f"simulated laboratories: {_beside(method.name, 'layer right, 1 to 4 L')}",
                right,
                len(met),
            )
        )
    return rows


def merging_rows(count: int, seed: int) -> list[Row]:
    """Terraces across tile borders, through the search's own merging."""
    found = merged_chip(count, seed)
    note = f"{found.across} across borders, {found.glued} glued, {found.merging_s:.1f} s"
    return [
        Row(
            "tiled chip: duplicates",
            float(found.doubled),
            "",
            0.0,
            "lower",
            None,
            count,
            None,
            note,
        ),
        Row("tiled chip: losses", float(found.lost), "", 0.0, "lower", None, count, None, note),
    ]
