"""What searches find on chips of several crystals and oxides, by layer number.

Each combination is searched on chips of its own seed, derived from the seed given, so that a seed
never used before is a chip nobody has looked at. hBN is reported without a bar: one layer of it has
2 % contrast on these oxides.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from controller.bench import Report
from controller.bench.numbers import share_row
from controller.bench.search import Outcome, searched, tables
from controller.figures import Row

_MATERIALS: Final = ("graphene", "mos2", "wse2", "hbn")
_WITH_BAR: Final = ("graphene", "mos2", "wse2")
_OXIDES_NM: Final = (90.0, 285.0)
_LAYERS: Final = (1, 2, 3, 4)
_BAR: Final = 0.95
_EXPOSURES_S: Final = {90.0: 0.02, 285.0: 0.012}  # the thin oxide is darker


def measure(quick: bool, seed: int) -> list[Row]:
    """Recall and precision per material, oxide and layer number, terraces of 100 um2 and more."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """As `measure`, saying how far it is; parts are "graphene on 90 nm" and the like."""
    chips, size_mm = (1, (1.5, 1.2)) if quick else (2, (6.0, 5.0))
    rows: list[Row] = []
    rms_um: list[float] = []
    collisions = searches = 0
    for m, material in enumerate(_MATERIALS):
        for o, oxide_nm in enumerate(_OXIDES_NM):
            name = f"{material} on {oxide_nm:g} nm"
            if report.only and not any(part in name for part in report.only):
                continue
            outcomes = []
            for chip in range(chips):
                if report.progress is not None:
                    report.progress(f"{name}, chip {chip + 1} of {chips}")
                chip_seed = 1_000 * seed + 100 * m + 10 * o + chip
                with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
                    asked = _tables(chip_seed, size_mm, material, oxide_nm)
                    outcomes.append(searched(asked, Path(folder)))
            rows += _rows(material, oxide_nm, outcomes)
            rms_um += [
                out.card.position_rms_um for out in outcomes if out.card.position_rms_um is not None
            ]
            collisions += sum(out.truth.collisions for out in outcomes)
            searches += len(outcomes)
            if report.partial is not None:
                report.partial(rows)
    rows.append(
        Row(
            "positions of found terraces, RMS, worst chip",
            max(rms_um, default=None),
            "um",
            2.0,
            "lower",
            n=len(rms_um),
        )
    )
    rows.append(Row("collisions", float(collisions), "", 0.0, "lower", n=searches))
    return rows


def _tables(
    seed: int, size_mm: tuple[float, float], material: str, oxide_nm: float
) -> dict[str, Any]:
    asked = tables(seed, size_mm)
    asked["instrument"]["chip"] |= {"materials": [material], "oxide_nm": oxide_nm}
    asked["detector"] = {"materials": [material], "oxide_nm": oxide_nm}
    asked["wanted"] = {"materials": [material]}
    asked["camera"] = {"exposure_s": _EXPOSURES_S[oxide_nm]}
    asked["revisit"] = {"max_flakes": 0}
    asked["run"]["clock"] = "ideal"  # a busy machine's searches last longer, and drift further
    return asked


def _rows(material: str, oxide_nm: float, outcomes: list[Outcome]) -> list[Row]:
    bar = _BAR if material in _WITH_BAR else None
    rows = []
    for layers in _LAYERS:
        mine = [row for out in outcomes for row in out.card.rows if row.layers == layers]
        name = f"{material} on {oxide_nm:g} nm, {layers} L"
        present, found = sum(r.present for r in mine), sum(r.found for r in mine)
        entries, false = sum(r.entries for r in mine), sum(r.false for r in mine)
        rows.append(share_row(f"recall, {name}", found, present, bar))
        rows.append(share_row(f"precision, {name}", entries - false, entries, bar))
    return rows
