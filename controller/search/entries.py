"""From the facts of a run to its catalogue: merged, placed on the chip, ranked. Pure.

The same facts give the same catalogue, so `entry_id` means the same terrace in the search, in a
resumed search and in the report. Entries are numbered in scan order: by the first tile that shows
them, then from left to right, then upwards.
"""

from __future__ import annotations

import numpy as np

from controller.messages import Analysed, CatalogueEntry, ChipFound, Ring
from controller.search.exports import stage_to_chip_um
from controller.search.merging import BoxUm, Terrace, merge, terrace_piece
from controller.search.ranking import Ranking, rank
from controller.search.state import SearchState
from controller.settings import WantedSettings
from inference.flakes.flakenet import UNKNOWN_TO_NETWORK


def tile_boxes_um(state: SearchState) -> dict[int, BoxUm]:
    """What each tile really saw, by its index: x_min, y_min, x_max, y_max.

    The plan says where the sample point on the axis should be, the exposure where the stage stood;
    the two differ by the objective's parcentric offset, the same for all tiles, and by how well the
    stage stood, which is what matters here.
    """
    scan = state.scan
    if scan is None:
        return {}
    off_um = {
        tile.index: (tile.x_um - at.stage_x_um, tile.y_um - at.stage_y_um)
        for tile in scan.tiles
        if (at := state.exposed.get(("tile", tile.index))) is not None
    }
    parcentric = np.median(np.array(list(off_um.values())), axis=0) if off_um else (0.0, 0.0)
    boxes = {}
    for tile in scan.tiles:
        dx_um, dy_um = off_um.get(tile.index, parcentric)
        x_um = tile.x_um - dx_um + float(parcentric[0])
        y_um = tile.y_um - dy_um + float(parcentric[1])
        boxes[tile.index] = (
            x_um - scan.field_w_um / 2,
            y_um - scan.field_h_um / 2,
            x_um + scan.field_w_um / 2,
            y_um + scan.field_h_um / 2,
        )
    return boxes


def catalogue_of(state: SearchState, wanted: WantedSettings) -> tuple[CatalogueEntry, ...]:
    """The catalogue of a run, by `entry_id`; `rank` 0 for what was not asked for."""
    if state.scan is None or state.chip is None:
        return ()
    pieces = [
        converted
        for (shot, index), seen in sorted(state.analysed.items())
        if shot == "tile" and _is_read(seen)
        for piece in seen.pieces
        if (converted := terrace_piece(index, piece, seen.sharpness)) is not None
    ]
    flakes = merge(pieces, tile_boxes_um(state))
    numbered = sorted(
        ((terrace, flake) for flake in flakes for terrace in flake.terraces),
        key=lambda pair: (pair[0].tiles[0], round(pair[0].x_um, 1), round(pair[0].y_um, 1)),
    )
    rankings = rank([terrace for terrace, _ in numbered], wanted)
    flake_ids: dict[int, int] = {}
    return tuple(
        _entry(
            entry_id,
            flake_ids.setdefault(id(flake), len(flake_ids) + 1),
            terrace,
            ranking,
            state,
            state.chip,
        )
        for entry_id, ((terrace, flake), ranking) in enumerate(
            zip(numbered, rankings, strict=True), start=1
        )
    )


def _is_read(seen: Analysed) -> bool:
    """Whether what was seen there counts.

    Where the network does not know a frame, the physics answered, whose colours hold; where these
    do not hold either, another reason is given first.
    """
    return seen.in_distribution or seen.reason.startswith(UNKNOWN_TO_NETWORK)


def _entry(
    entry_id: int,
    flake_id: int,
    terrace: Terrace,
    ranking: Ranking,
    state: SearchState,
    chip: ChipFound,
) -> CatalogueEntry:
    ((chip_x_um, chip_y_um),) = stage_to_chip_um(chip, [(terrace.x_um, terrace.y_um)])
    outline = _ring(terrace.polygon.exterior.coords)
    return CatalogueEntry(
        entry_id=entry_id,
        flake_id=flake_id,
        rank=ranking.rank,
        material=terrace.material,
        layers=terrace.layers,
        probability=dict(terrace.layer_probabilities).get(terrace.layers, 0.0),
        layer_probabilities=terrace.layer_probabilities,
        thickness_nm=terrace.thickness_nm,
        area_um2=terrace.area_um2,
        aspect_ratio=min(ranking.aspect_ratio, 1e6),
        outline_um=outline,
        holes_um=tuple(_ring(ring.coords) for ring in terrace.polygon.interiors),
        stage_x_um=terrace.x_um,
        stage_y_um=terrace.y_um,
        chip_x_um=chip_x_um,
        chip_y_um=chip_y_um,
        contrast_rgb=terrace.contrast_rgb,
        off_ladder=terrace.off_ladder,
        score=terrace.score,
        sharpness=terrace.sharpness,
        tiles=terrace.tiles,
        revisit=state.revisited.get(entry_id),
        thickness_interval_nm=terrace.thickness_interval_nm,
    )


def _ring(coords: object) -> Ring:
    points = np.asarray(coords, dtype=np.float64)[:-1, :2]
    return tuple((round(float(x), 3), round(float(y), 3)) for x, y in points)
