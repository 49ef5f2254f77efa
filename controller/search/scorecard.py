"""How a search did against a known truth: found, missed and false per layer number. Pure.

Only simulated instruments know the truth, and only after the run is over does anybody ask: the
composition root hands it in here. The search itself cannot see it.

A terrace of the truth is found when a catalogue entry of the same material and layer number
overlaps it with IoU >= 0.5; it is mislabelled when the best such overlap has another label. An
entry is false when no terrace of the truth with its label overlaps it so, whatever that terrace's
area (an entry of 101 um2 on a terrace of 99 um2 is right). Misses are counted among terraces at or
above the least area, false entries among entries at or above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from shapely import unary_union
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry
from shapely.strtree import STRtree

from controller.messages import CatalogueEntry
from controller.search.entries import tile_boxes_um
from controller.search.state import SearchState
from controller.settings import WantedSettings

MATCH_IOU = 0.5


@dataclass(frozen=True, slots=True)
class TruthTerrace:
    """One terrace as it really is, in stage um."""

    material: str
    layers: int
    shape_um: BaseGeometry


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One material and layer number."""

    material: str
    layers: int
    present: int  # terraces of the truth at or above the least area
    found: int
    missed: int  # present - found, mislabelled ones included
    mislabelled: int  # seen, but under another material or layer number
    entries: int  # catalogue entries with this label at or above the least area
    false: int

    @property
    def recall(self) -> float | None:
        """None: nothing was there to be found."""
        return self.found / self.present if self.present else None

    @property
    def precision(self) -> float | None:
        """None: nothing was reported."""
        return 1.0 - self.false / self.entries if self.entries else None


@dataclass(frozen=True, slots=True)
class Scorecard:
    """All rows, and how well positions were met."""

    rows: tuple[ScoreRow, ...]
    position_rms_um: float | None  # centroid of matched entries against the truth; None: no match
    duplicates: int  # terraces of the truth with more than one entry of their label


def _iou(a: BaseGeometry, b: BaseGeometry) -> float:
    shared = a.intersection(b).area
    return float(shared / (a.area + b.area - shared)) if shared > 0.0 else 0.0


def shape_of(entry: CatalogueEntry) -> BaseGeometry:
    """The entry's outline with its holes, valid, in stage um."""
    shape = Polygon(entry.outline_um, entry.holes_um)
    return shape if shape.is_valid else shape.buffer(0)


def score(
    entries: Sequence[CatalogueEntry],
    truth: Sequence[TruthTerrace],
    materials: Sequence[str],
    layers: Sequence[int],
    min_area_um2: float,
) -> Scorecard:
    """Compare a catalogue with the truth of the area that was searched."""
    shapes = [shape_of(entry) for entry in entries]
    tree = STRtree([t.shape_um for t in truth])
    best_iou_of_truth: dict[int, float] = {}  # any label
    matches: dict[int, list[int]] = {}  # truth -> entries of its label
    is_right = [False] * len(entries)
    squared_um2: list[float] = []
    for e, (entry, shape) in enumerate(zip(entries, shapes, strict=True)):
        for t in tree.query(shape):
            iou = _iou(shape, truth[t].shape_um)
            if iou < MATCH_IOU:
                continue
            best_iou_of_truth[int(t)] = max(iou, best_iou_of_truth.get(int(t), 0.0))
            if (truth[t].material, truth[t].layers) == (entry.material, entry.layers):
                is_right[e] = True
                matches.setdefault(int(t), []).append(e)
                there = truth[t].shape_um.centroid
                squared_um2.append(
                    (entry.stage_x_um - there.x) ** 2 + (entry.stage_y_um - there.y) ** 2
                )
    rows = []
    for material in materials:
        for count in layers:
            present = [
                t
                for t, terrace in enumerate(truth)
                if (terrace.material, terrace.layers) == (material, count)
                and terrace.shape_um.area >= min_area_um2
            ]
            found = sum(t in matches for t in present)
            mine = [
                e
                for e, entry in enumerate(entries)
                if (entry.material, entry.layers) == (material, count)
                and entry.area_um2 >= min_area_um2
            ]
            rows.append(
                ScoreRow(
                    material=material,
                    layers=count,
                    present=len(present),
                    found=found,
                    missed=len(present) - found,
                    mislabelled=sum(t not in matches and t in best_iou_of_truth for t in present),
                    entries=len(mine),
                    false=sum(not is_right[e] for e in mine),
                )
            )
    return Scorecard(
        rows=tuple(rows),
        position_rms_um=float(np.sqrt(np.mean(squared_um2))) if squared_um2 else None,
        duplicates=sum(len(found_by) > 1 for found_by in matches.values()),
    )


def scanned_area(state: SearchState) -> BaseGeometry:
    """Union of the fields that were scanned."""
    boxes = tile_boxes_um(state)
    return unary_union([box(*boxes[i]) for shot, i in state.analysed if shot == "tile"])


def scorecard(
    entries: Sequence[CatalogueEntry],
    truth: Sequence[TruthTerrace],
    state: SearchState,
    wanted: WantedSettings,
) -> Scorecard:
    """The catalogue against what the simulated chip really carries, where tiles looked.

    A terrace counts when the scanned area shows all of it, an entry when it does not touch the
    area's border: what goes on where nobody looked can be neither right nor wrong.
    """
    seen = scanned_area(state)
    inside = seen.buffer(-1.0)
    kept = [
        e for e in entries if e.score >= wanted.min_score and inside.contains(Polygon(e.outline_um))
    ]
    shown = [terrace for terrace in truth if seen.contains(terrace.shape_um)]
    return score(kept, shown, wanted.materials, wanted.layers, wanted.min_area_um2)
