"""What the detector that did not lead says of the flakes on the cards, once the run is over.

The scan asks one detector, whichever leads, because every tile waits for it. Here nobody waits: the
tiles that show the cards' flakes are read once more from the disk by the other one. Where the two
disagree the user should know, since neither is always right: physics knows colours and no dirt, the
network shapes it was taught and no others.

Two readings of a terrace are compared on one tile, within its frame. The other detector's terrace
is the one that shares most ground with the catalogue's; if that is less than a quarter of it, the
other does not see the flake at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from shapely.geometry import box
from shapely.geometry.base import BaseGeometry

from controller.geometry import CameraGeometry, pixel_to_stage_um
from controller.messages import (
    Analysed,
    CalibrationFitted,
    CatalogueEntry,
    Difference,
    Exposed,
    Piece,
    SecondReading,
)
from controller.record.frames import FrameStore
from controller.search.entries import tile_boxes_um
from controller.search.merging import BoxUm, TerracePiece, terrace_piece
from controller.search.pieces import pieces_of
from controller.search.scorecard import shape_of
from controller.search.state import SearchState
from controller.settings import WantedSettings
from drivers.api import Objective, Pixels, Pose
from inference.api import FlakeAnswer, FlakeDetector
from inference.flakes.flakenet import UNKNOWN_TO_NETWORK

# Every detector there is, for one lens under these calibrations.
Everybody: TypeAlias = Callable[[Objective, Sequence[CalibrationFitted]], Sequence[FlakeDetector]]

LEAST_SHARED: Final = 0.25  # of a terrace: less is no reading of it
AREA_APART: Final = 0.30  # areas differ where one is so much larger or smaller
LAYERS_APART: Final = 0.2  # layer numbers differ beyond such a share: all to 4, not 8 from 9
_COVERED: Final = 0.25  # of a terrace that the catalogue has under another outline


@dataclass(frozen=True, slots=True)
class LoneReading:
    """A wanted terrace on a tile that was looked at twice, and only the second look saw it."""

    detector: str
    leader: str
    tile: int
    piece: Piece
    stage_x_um: float
    stage_y_um: float


@dataclass(frozen=True, slots=True)
class SecondLook:
    """All that came of it."""

    entries: tuple[CatalogueEntry, ...]  # those on the cards with `second`, the others as they were
    alone: tuple[LoneReading, ...]  # the likeliest first


@dataclass(frozen=True, slots=True, eq=False)
class OtherTile:
    """One tile as the detector saw it that did not lead there."""

    detector: str
    leader: str
    reason: str  # why it has nothing to say, "" where it has
    pieces: tuple[TerracePiece, ...]
    seen: tuple[Piece, ...]  # the same, as they are told


def second_look(
    entries: Sequence[CatalogueEntry],
    on_cards: Iterable[CatalogueEntry],
    state: SearchState,
    wanted: WantedSettings,
    other_of: Callable[[int, Analysed], OtherTile | None],
) -> SecondLook:
    """Ask of each card's tile what the other detector sees there, and compare.

    other_of: by the tile's index and what led there; None: there is no other detector, or no frame.
    """
    boxes = tile_boxes_um(state)
    tile_of = {entry.entry_id: best_tile(entry, boxes) for entry in on_cards}
    others: dict[int, OtherTile] = {}
    for tile in sorted(set(tile_of.values())):
        analysed = state.analysed.get(("tile", tile))
        other = None if analysed is None else other_of(tile, analysed)
        if other is not None:
            others[tile] = other
    looked = []
    for entry in entries:
        at = tile_of.get(entry.entry_id)
        if at is not None and at in others:
            looked.append(replace(entry, second=compared(entry, at, others[at], boxes[at])))
        else:
            looked.append(entry)
    return SecondLook(tuple(looked), tuple(_alone(entries, others, wanted)))


def best_tile(entry: CatalogueEntry, boxes: Mapping[int, BoxUm]) -> int:
    """The tile whose middle is nearest to the entry."""

    def distance_um(tile: int) -> float:
        x_min, y_min, x_max, y_max = boxes[tile]
        middle = ((x_min + x_max) / 2, (y_min + y_max) / 2)
        return math.dist(middle, (entry.stage_x_um, entry.stage_y_um))

    return min(entry.tiles, key=distance_um)


def compared(entry: CatalogueEntry, tile: int, other: OtherTile, field_um: BoxUm) -> SecondReading:
    """The other detector's reading of one entry."""
    nothing = SecondReading(other.detector, other.leader, tile, other.reason)
    if other.reason:
        return nothing
    mine = shape_of(entry).intersection(box(*field_um))
    best, shared_um2 = _most_shared(mine, other.pieces)
    if best is None or shared_um2 < LEAST_SHARED * mine.area:
        return replace(nothing, differs=("existence",))
    piece, seen = other.pieces[best], other.seen[best]
    ratio = piece.polygon.area / max(float(mine.area), 1e-9)
    differs: list[Difference] = []
    if piece.material != entry.material:
        differs.append("material")
    if abs(piece.layers - entry.layers) > LAYERS_APART * min(piece.layers, entry.layers):
        differs.append("layers")
    if not 1.0 - AREA_APART <= ratio <= 1.0 + AREA_APART:
        differs.append("area")
    return replace(
        nothing,
        differs=tuple(differs),
        material=piece.material,
        layers=piece.layers,
        probability=dict(piece.layer_probabilities).get(piece.layers, 0.0),
        area_um2=piece.area_um2,
        area_ratio=float(ratio),
        outline_um=seen.outline_um,
        holes_um=seen.holes_um,
    )


def _most_shared(mine: BaseGeometry, pieces: Sequence[TerracePiece]) -> tuple[int | None, float]:
    """Which piece shares most ground with a shape, and how much; of equals the smaller piece."""
    best, most_um2 = None, 0.0
    for k, piece in enumerate(pieces):
        if not piece.polygon.intersects(mine):
            continue
        shared_um2 = float(piece.polygon.intersection(mine).area)
        if shared_um2 > most_um2:
            best, most_um2 = k, shared_um2
    return best, most_um2


def _alone(
    entries: Sequence[CatalogueEntry],
    others: Mapping[int, OtherTile],
    wanted: WantedSettings,
) -> list[LoneReading]:
    """Wanted terraces that no entry covers, each told once."""
    found: list[tuple[LoneReading, BaseGeometry]] = []
    for tile, other in others.items():
        here = [shape_of(entry) for entry in entries if tile in entry.tiles]
        for piece, seen in zip(other.pieces, other.seen, strict=True):
            is_wanted = (
                piece.material in wanted.materials
                and piece.layers in wanted.layers
                and wanted.min_area_um2 <= piece.area_um2 <= (wanted.max_area_um2 or math.inf)
                and piece.score >= wanted.min_score
                and not piece.touches_border
            )
            shape = piece.polygon
            known = [*here, *(one for _, one in found)]
            if not is_wanted or any(
                one.intersection(shape).area > _COVERED * shape.area for one in known
            ):
                continue
            middle = shape.centroid
            lone = LoneReading(other.detector, other.leader, tile, seen, middle.x, middle.y)
            found.append((lone, shape))
    return sorted((lone for lone, _ in found), key=lambda lone: -lone.piece.score)


def spoken(detector: str) -> str:
    """Which one a detector's full name speaks of: "physics", "flakenet"."""
    return detector.partition("(")[0]


@dataclass(frozen=True, slots=True, eq=False)
class OtherEyes:
    """Reads kept tiles with the detector that did not lead there: what `second_look` asks."""

    state: SearchState
    frames: FrameStore
    objectives: Mapping[str, Objective]
    geometry: CameraGeometry
    everybody: Everybody

    def __call__(self, tile: int, analysed: Analysed) -> OtherTile | None:
        """None: nobody else is there, or the frame is not."""
        exposed = self.state.exposed.get(("tile", tile))
        if exposed is None or ("tile", tile) not in self.state.saved:
            return None
        objective = self.objectives[exposed.objective]
        leader = spoken(analysed.detector)
        others = [
            detector
            for detector in self.everybody(objective, self.state.calibrations)
            if spoken(detector.name) != leader
        ]
        if not others:
            return None
        detector = others[0]
        if analysed.reason.startswith(UNKNOWN_TO_NETWORK):
            # There the network has stood back already, for the physics.
            return OtherTile(leader, spoken(detector.name), analysed.reason, (), ())
        pixels = self.frames.load("tile", tile)
        bit_depth = int(self.frames.attributes("tile", tile).get("bit_depth", 8))
        answer = detector.detect(pixels, objective.pixel_size_nm, bit_depth)
        reason = "" if answer.in_distribution else answer.reason
        told = () if reason else self._told(answer, exposed, objective, pixels)
        pairs = [(p, piece) for p in told if (piece := terrace_piece(tile, p, 0.0)) is not None]
        return OtherTile(
            spoken(detector.name),
            leader,
            reason,
            tuple(piece for _, piece in pairs),
            tuple(p for p, _ in pairs),
        )

    def _told(
        self, answer: FlakeAnswer, exposed: Exposed, objective: Objective, pixels: Pixels
    ) -> tuple[Piece, ...]:
        pose = Pose(exposed.stage_x_um, exposed.stage_y_um, exposed.focus_z_um, exposed.objective)
        shape_px = (pixels.shape[0], pixels.shape[1])
        return pieces_of(
            answer,
            lambda columns, rows: pixel_to_stage_um(
                columns, rows, pose, objective, shape_px, self.geometry
            ),
            (objective.pixel_size_nm * 1e-3) ** 2,
        )
