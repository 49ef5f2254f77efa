"""Pictures of terraces, with their outlines and a scale bar."""

from __future__ import annotations

from collections.abc import Sequence

from controller.messages import CatalogueEntry, Ring
from controller.search.report.content import Crop
from controller.search.report.figures import crop_path, length_text, nice_length, picture_uri
from controller.search.report.words import esc, layer_class, layers_text, material_name

CROP_SIDE_PX = 420
CROPS_MAX_BYTES = 6_500_000  # shared evenly: noise is what makes pictures large


def entry_shot(crop: Crop | None, what: str, entry: CatalogueEntry, max_bytes: int) -> str:
    """One picture of an entry, with what either detector outlines where they differ."""
    if crop is None:
        return ""
    outline, holes = crop.outline_um, crop.holes_um
    if not outline:
        dx = dy = 0.0
        if what == "revisit" and entry.revisit is not None and entry.revisit.found:
            # the revisit measured the position anew: the outline goes where the terrace is there
            dx = entry.revisit.x_um - entry.stage_x_um
            dy = entry.revisit.y_um - entry.stage_y_um
        outline = tuple((x + dx, y + dy) for x, y in entry.outline_um)
        holes = tuple(tuple((x + dx, y + dy) for x, y in hole) for hole in entry.holes_um)
    second = entry.second
    shows_second = what == "scan" and second is not None and second.differs and second.outline_um
    others = (second.outline_um, *second.holes_um) if second and shows_second else ()
    alt = (
        f"{material_name(entry.material)} {layers_text(entry.layers)} #{entry.entry_id}, "
        f"{crop.objective} {what}"
    )
    return picture(crop, what, alt, (outline, *holes), entry.layers, others, max_bytes)


def picture(
    crop: Crop,
    what: str,
    alt: str,
    rings: Sequence[Ring],
    layers: int,
    others: Sequence[Ring],
    max_bytes: int,
) -> str:
    """One square picture with outlines and scale bar; the crop's centre stays its centre.

    others: as the detector sees it that did not lead; () for nothing of its own.
    """
    uri = picture_uri(crop.pixels, CROP_SIDE_PX, 85, max_bytes)
    if uri is None:
        return ""
    height_px, width_px = crop.pixels.shape[:2]
    um_per_px = crop.pixel_size_nm * 1e-3
    side_px = max(height_px, width_px)
    bar_um = nice_length(side_px * um_per_px * 0.3)
    paths = []
    for drawn, halo, line in ((rings, "halo", ""), (others, '"halo other"', " class=other")):
        if not drawn:
            continue
        at = (crop.stage_x_um, crop.stage_y_um)
        path = crop_path(tuple(drawn), at, um_per_px, width_px, height_px)
        paths.append(f'<path class={halo} d="{path}"/><path{line} d="{path}"/>')
    return (
        f'<figure class=shot><img src="{uri}" alt="{esc(alt)}" loading=lazy decoding=async>'
        f'<svg viewBox="0 0 {width_px} {height_px}" aria-hidden=true class="out '
        f'{layer_class(layers)}">{"".join(paths)}</svg>'
        f'<div class=bar style="width:{100 * bar_um / (side_px * um_per_px):.2f}%">'
        f"{length_text(bar_um)}</div>"
        f"<figcaption>{esc(crop.objective)} · {what}</figcaption></figure>"
    )
