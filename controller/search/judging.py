"""Which of the terraces seen on a revisit is the one that was visited, pure.

The stage may be some um off and another lens draws another outline: of the terraces near the place,
laid on the entry centre on centre, the one that shares most with it is taken; a like label helps.
"""

from __future__ import annotations

import math

from shapely.geometry import Polygon

from controller.messages import Analysed, CatalogueEntry, Piece, Revisited


def judged(
    entry: CatalogueEntry, seen: Analysed, shot_index: int, centre_um: tuple[float, float]
) -> Revisited:
    """Which of the terraces seen at higher magnification is the entry, and what it says of it."""
    outline = Polygon(entry.outline_um).buffer(0)
    best: tuple[float, Piece, Polygon] | None = None
    for piece in seen.pieces:
        shape = Polygon(piece.outline_um, piece.holes_um).buffer(0)
        # The stage may be some um off: the overlap counts after centring one on the other.
        shift_x_um = outline.centroid.x - shape.centroid.x
        shift_y_um = outline.centroid.y - shape.centroid.y
        if math.hypot(shift_x_um, shift_y_um) > 15.0 + 0.3 * math.sqrt(entry.area_um2):
            continue
        shared = outline.intersection(_shifted(shape, shift_x_um, shift_y_um)).area
        overlap = shared / (outline.area + shape.area - shared)
        if piece.material == entry.material and piece.layers == entry.layers:
            overlap *= 1.2
        if best is None or overlap > best[0]:
            best = (overlap, piece, shape)
    if best is None or best[0] < 0.25:
        return Revisited(
            entry_id=entry.entry_id,
            shot_index=shot_index,
            centred_error_um=math.nan,
            x_um=entry.stage_x_um,
            y_um=entry.stage_y_um,
            area_um2=entry.area_um2,
            material=entry.material,
            layers=entry.layers,
            probability=entry.probability,
            contrast_rgb=entry.contrast_rgb,
            sharpness=seen.sharpness,
            found=False,
            reason=seen.reason or "no terrace of like shape at the place",
        )
    _, piece, shape = best
    x_um, y_um = shape.centroid.x, shape.centroid.y
    probability = dict(piece.layer_probabilities).get(piece.layers, 0.0)
    return Revisited(
        entry_id=entry.entry_id,
        shot_index=shot_index,
        centred_error_um=math.hypot(x_um - centre_um[0], y_um - centre_um[1]),
        x_um=x_um,
        y_um=y_um,
        area_um2=piece.area_um2,
        material=piece.material,
        layers=piece.layers,
        probability=probability,
        contrast_rgb=piece.contrast_rgb,
        sharpness=seen.sharpness,
        found=True,
        reason="",
    )


def _shifted(shape: Polygon, x_um: float, y_um: float) -> Polygon:
    return Polygon(
        [(x + x_um, y + y_um) for x, y in shape.exterior.coords],
        [[(x + x_um, y + y_um) for x, y in ring.coords] for ring in shape.interiors],
    )
