"""What was found: the map, a card for each of the best, and a table of all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

from controller.messages import CatalogueEntry
from controller.search.report.content import EntryCrops, Ladder, ReportContent
from controller.search.report.figures import (
    DASH,
    NNBSP,
    Extent,
    Measured,
    chip_axes,
    extent_of,
    fixed,
    ladder_plot,
    length_text,
    nice_length,
    number,
    picture_uri,
    rectangles_path,
    stage_path,
    svg_xy,
)
from controller.search.report.second import (
    SECOND_COLUMN,
    both_readings,
    differs,
    is_asked,
    second_cell,
    second_hint,
)
from controller.search.report.shots import CROPS_MAX_BYTES, entry_shot
from controller.search.report.words import (
    area_text,
    counted,
    esc,
    layer_class,
    layers_text,
    material_name,
    percent,
    relative_path,
    terms,
)

CARDS = 60  # where no pictures are given; with pictures, what has one has a card
CROWD = 60  # marks beyond these are labelled only when the map is zoomed in


MAP_SIDE_PX = 2_800


MAP_MAX_BYTES = 3_500_000


COLUMNS = (  # key in the page's data, heading, title
    ("rank", "Rank", "1 is the best by what was asked for"),
    ("id", "Id", "Stable within the run"),
    ("flake", "Flake", "Terraces that touch share one"),
    ("material", "Material", ""),
    ("layers", "Layers", ""),
    ("probability", "P", "Probability of the layer number"),
    ("area", "Area µm²", ""),
    ("aspect", "Aspect", "Longest over shortest side"),
    ("thickness", "nm", "Thickness"),
    ("cx", "Chip x µm", "In the chip's own frame"),
    ("cy", "Chip y µm", "In the chip's own frame"),
    ("sx", "Stage x µm", ""),
    ("sy", "Stage y µm", ""),
    ("sharpness", "Focus", "Sharpness of the tile"),
    ("off", "Off ladder", "Distance from the expected contrasts"),
    ("revisited", "Revisit", ""),
)


def _thickness(entry: CatalogueEntry) -> str:
    """In nm, with the interval that holds 95 % of its probability."""
    text = f"{number(entry.thickness_nm, 2)}{NNBSP}nm"
    if entry.thickness_interval_nm is None:
        return text
    low_nm, high_nm = entry.thickness_interval_nm
    digits = 2 if high_nm < 3.0 else 1
    return f"{text} ({number(low_nm, digits)} to {number(high_nm, digits)})"


def ordered(entries: Iterable[CatalogueEntry]) -> list[CatalogueEntry]:
    """Best first; what nobody asked for comes last."""
    return sorted(entries, key=lambda e: (e.rank <= 0, e.rank, -e.score, e.entry_id))


def with_cards(content: ReportContent) -> list[CatalogueEntry]:
    """The entries that get a card; the others stand in the table only, so the page stays small."""
    pictured = {c.entry_id for c in content.crops}
    if not pictured:
        return ordered(content.entries)[:CARDS]
    return [e for e in ordered(content.entries) if e.entry_id in pictured]


def filters_form(content: ReportContent) -> str:
    """One form for map, cards and table."""
    if not content.entries:
        return ""
    keys = sorted({e.material for e in content.entries})
    options = "".join(f'<option value="{esc(k)}">{esc(material_name(k))}</option>' for k in keys)
    classes = sorted({min(max(e.layers, 1), 5) for e in content.entries})
    layers = "".join(
        f'<label class="lay l{n}"><input type=checkbox name=layers value={n} checked>'
        f"{n}{'+' if n == 5 else ''}L</label>"
        for n in classes
    )
    differ = (
        "<label class=tick><input type=checkbox name=differs>detectors differ</label>"
        if is_asked(content)
        else ""
    )
    return (
        '<form class="filters js-only" id=filters aria-label="Filter flakes">'
        f"<label>Material<select name=material><option value=''>all</option>{options}</select>"
        f"</label><fieldset aria-label=Layers>{layers}</fieldset>"
        "<label>Area ≥<input type=number name=area min=0 step=any inputmode=decimal>µm²</label>"
        "<label>P ≥<input type=number name=probability min=0 max=100 step=1>%</label>"
        "<label class=tick><input type=checkbox name=wanted>wanted</label>"
        "<label class=tick><input type=checkbox name=revisited>revisited</label>"
        f"{differ}<label>Sort<select name=sort>"
        "<option value=rank>rank</option><option value=-area>area</option>"
        "<option value=-probability>probability</option><option value=layers>layers</option>"
        "<option value=-sharpness>focus score</option><option value=id>id</option>"
        "</select></label>"
        "<output id=shown></output><button type=reset>Reset</button></form>"
    )


def map_extent(content: ReportContent) -> Extent | None:
    """The part of the stage that the maps show; None where there is nothing to show."""
    points: list[tuple[float, float]] = []
    if content.mosaic is not None and content.mosaic.pixels.size:
        mosaic = content.mosaic
        height_px, width_px = mosaic.pixels.shape[:2]
        half = mosaic.um_per_px / 2
        points += [
            (mosaic.x_um - half, mosaic.y_um + half),
            (
                mosaic.x_um - half + width_px * mosaic.um_per_px,
                mosaic.y_um + half - height_px * mosaic.um_per_px,
            ),
        ]
    if content.chip is not None:
        points += content.chip.outline_um
    for tile in content.tiles:
        for sign in (-0.5, 0.5):
            points.append(
                (tile.x_um + sign * content.field_w_um, tile.y_um + sign * content.field_h_um)
            )
    points += [(e.stage_x_um, e.stage_y_um) for e in content.entries]
    extent = extent_of(points)
    if extent is None:
        return None
    return extent.grown(max(0.015 * max(extent.width_um, extent.height_um), 10.0))


def _place(entry: CatalogueEntry, card_ids: set[int]) -> str:
    """The id of the entry's card, or of its row where it has no card."""
    return f"{'f' if entry.entry_id in card_ids else 'r'}{entry.entry_id}"


def _mark(entry: CatalogueEntry, tolerance_um: float, card_ids: set[int]) -> str:
    x, y = svg_xy((entry.stage_x_um, entry.stage_y_um))
    if not (math.isfinite(x) and math.isfinite(y)):
        return ""
    kind = "un" if entry.rank <= 0 else "re" if entry.revisit is not None else ""
    title = (
        f"#{entry.entry_id} {material_name(entry.material)}, {layers_text(entry.layers)}, "
        f"{area_text(entry.area_um2)}"
    )
    label = ""
    if entry.rank > 0:
        low = ' class="low"' if entry.rank > CROWD // 2 else ""
        label = f'<text{low} x="{fixed(x, 1)}" y="{fixed(y, 1)}" dy="-.85em">{entry.rank}</text>'
    return (
        f'<a class="mark {layer_class(entry.layers)} {kind}" data-id="{entry.entry_id}" '
        f'href="#{_place(entry, card_ids)}" tabindex="-1" '
        f'aria-label="{esc(title)}"><title>{esc(title)}</title>'
        f'<path d="{stage_path((entry.outline_um, *entry.holes_um), tolerance_um)}"/>'
        f'<circle cx="{fixed(x, 1)}" cy="{fixed(y, 1)}" r="8"/>{label}</a>'
    )


def map_section(content: ReportContent, extent: Extent | None, card_ids: set[int]) -> str:
    """The stitched chip with every entry marked, and room for the one selected."""
    if extent is None:
        return (
            "<section id=map><h2>Chip map</h2><p class=empty>There is no map: no tile was planned, "
            "and nothing was found.</p></section>"
        )
    unit_um = max(extent.width_um / 820, extent.height_um / 600)  # about one screen pixel
    layers = []
    if content.mosaic is not None:
        mosaic = content.mosaic
        uri = picture_uri(mosaic.pixels, MAP_SIDE_PX, 84, MAP_MAX_BYTES)
        if uri is not None:
            x, y = svg_xy((mosaic.x_um - mosaic.um_per_px / 2, mosaic.y_um + mosaic.um_per_px / 2))
            height_px, width_px = mosaic.pixels.shape[:2]
            layers.append(
                f'<image href="{uri}" x="{fixed(x, 3)}" y="{fixed(y, 3)}" '
                f'width="{fixed(width_px * mosaic.um_per_px, 3)}" '
                f'height="{fixed(height_px * mosaic.um_per_px, 3)}" preserveAspectRatio="none"/>'
            )
    fields = rectangles_path(
        [(t.x_um, t.y_um) for t in content.tiles], content.field_w_um, content.field_h_um
    )
    layers.append(f'<path class="tiles" d="{fields}"/>')
    frame = ""
    if content.chip is not None:
        chip = content.chip
        layers.append(f'<path class="chip" d="{stage_path([chip.outline_um], 1.0)}"/>')
        axis_um = 0.13 * max(extent.width_um, extent.height_um)
        axes = chip_axes((chip.origin_x_um, chip.origin_y_um), chip.rotation_deg, axis_um)
        layers.append(f'<g class="axes">{axes}</g>')
        frame = (
            f' data-origin-x="{chip.origin_x_um}" data-origin-y="{chip.origin_y_um}"'
            f' data-rotation="{chip.rotation_deg}"'
        )
    spots = []
    for point in content.focus_points:
        x, y = svg_xy((point.stage_x_um, point.stage_y_um))
        if math.isfinite(x) and math.isfinite(y):
            kind = "ok" if point.is_confident else "no"
            spots.append(f'<circle class="{kind}" cx="{fixed(x, 1)}" cy="{fixed(y, 1)}" r="5"/>')
    layers.append(f'<g class="spots">{"".join(spots)}</g>')
    tolerance_um = 0.25
    marks = [_mark(e, tolerance_um, card_ids) for e in ordered(content.entries)]
    layers.append(f'<g class="marks">{"".join(reversed(marks))}</g>')  # the best drawn last
    bar_um = nice_length(unit_um * 150)
    crowd = " crowd" if len(content.entries) > CROWD else ""
    label = f"Chip map with {counted(len(content.entries), 'terrace')} marked"
    ticks = "".join(
        f'<label><input type=checkbox data-layer="{name}"{" checked" if on else ""}>{text}</label>'
        for name, text, on in (
            ("marks", "flakes", True),
            ("axes", "chip frame", True),
            ("tiles", "tiles", False),
            ("spots", "autofocus", False),
        )
    )
    return (
        "<section id=map><h2>Chip map</h2><div class=mapgrid><div class=mapbox id=mapbox>"
        f'<svg id=mapsvg viewBox="{extent.view_box()}" role=group tabindex=0 '
        f'aria-label="{esc(label)}" class="no-tiles no-spots{crowd}" '
        f'style="--u:{unit_um:.4g}"{frame}>'
        f"{''.join(layers)}</svg>"
        '<div class="maptools js-only"><button type=button data-zoom=in aria-label="Zoom in">+'
        '</button><button type=button data-zoom=out aria-label="Zoom out">−</button>'
        "<button type=button data-zoom=fit>Fit</button></div>"
        f'<div class="maplayers js-only">{ticks}</div>'
        f'<div class=mapscale id=mapscale><i style="width:{bar_um / unit_um:.0f}px"></i>'
        f"<span>{length_text(bar_um)}</span></div>"
        "<div class=mapread id=mapread aria-hidden=true></div></div>"
        '<div class="inspector js-only" id=inspector aria-live=polite>'
        "<p class=empty>Nothing selected.</p></div></div>"
        '<p class="hint js-only">Drag to pan; click the map once, then the wheel zooms. '
        "<kbd>←</kbd> <kbd>→</kbd> or <kbd>k</kbd> <kbd>j</kbd> step through the flakes, "
        "<kbd>Enter</kbd> enlarges, <kbd>Esc</kbd> closes. "
        "Rings are numbered by rank; filled ones were revisited; small dots were not asked for.</p>"
        "</section>"
    )


def _bars(entry: CatalogueEntry) -> str:
    rows = []
    for layers, probability in entry.layer_probabilities[:4]:
        width = 100 * min(max(probability if math.isfinite(probability) else 0.0, 0.0), 1.0)
        rows.append(
            f"<div class={layer_class(layers)}><span>{layers}L</span>"
            f'<i><b style="width:{width:.1f}%"></b></i><span>{percent(probability)}</span></div>'
        )
    return f'<div class=probs role=group aria-label="Layer probabilities">{"".join(rows)}</div>'


def _card(
    entry: CatalogueEntry,
    crops: EntryCrops | None,
    ladder: Ladder | None,
    siblings: Sequence[CatalogueEntry],
    card_ids: set[int],
    max_bytes: int,
) -> str:
    shots = [
        entry_shot(crops.scan, "scan", entry, max_bytes) if crops else "",
        entry_shot(crops.revisit, "revisit", entry, max_bytes) if crops else "",
    ]
    pictures = "".join(shots)
    again = entry.revisit
    measured = [Measured(entry.contrast_rgb, is_revisit=False)]
    if again is not None and again.found:
        measured.append(Measured(again.contrast_rgb, is_revisit=True))
    plot = ladder_plot(
        np.zeros(0) if ladder is None else np.asarray(ladder.layers, dtype=np.float64),
        np.zeros((0, 3)) if ladder is None else np.asarray(ladder.contrast_rgb, dtype=np.float64),
        entry.layers,
        measured,
    )
    rows = [
        ("Area", area_text(entry.area_um2)),
        ("Aspect", number(entry.aspect_ratio, 1)),
        ("Thickness", _thickness(entry)),
        ("Focus score", f"{1e3 * entry.sharpness:.2g}{NNBSP}·10⁻³"),
        ("Off ladder", number(entry.off_ladder, 3)),
        ("Flake score", number(entry.score, 2)),
    ]
    places = [
        ("Chip", f"{number(entry.chip_x_um, 1)}, {number(entry.chip_y_um, 1)}{NNBSP}µm"),
        ("Stage", f"{number(entry.stage_x_um, 1)}, {number(entry.stage_y_um, 1)}{NNBSP}µm"),
    ]
    if again is not None:
        said = (
            f"{esc(material_name(again.material))}, {layers_text(again.layers)}, "
            f"{percent(again.probability)}; centred within "
            f"{number(again.centred_error_um, 1)}{NNBSP}µm"
            if again.found
            else f"not found again: {esc(again.reason or 'no reason recorded')}"
        )
        places.append(("Revisit", said))
    if siblings:
        links = ", ".join(
            f'<a href="#{_place(s, card_ids)}" data-id="{s.entry_id}">#{s.entry_id}</a>'
            for s in siblings[:6]
        )
        more = f" and {len(siblings) - 6} more" if len(siblings) > 6 else ""
        places.append(("Same flake", links + more))
    places += both_readings(entry)
    apart = '<span class=differ title="The two detectors differ">≠</span>' if differs(entry) else ""
    title = f"{material_name(entry.material)}, {layers_text(entry.layers)}"
    rank = f"<span class=rank>{entry.rank}</span>" if entry.rank > 0 else ""
    enlarge = (
        "<button type=button class=shots "
        f'aria-label="Enlarge the pictures of #{entry.entry_id}">{pictures}</button>'
        if pictures
        else '<p class="noshot empty">No picture was kept.</p>'
    )
    side = _bars(entry) + terms(rows)
    pair = "n2" if all(shots) else "n1"
    return (
        f'<article class="card {pair}{"" if entry.rank > 0 else " un"}" '
        f'id="f{entry.entry_id}" data-id="{entry.entry_id}" aria-label="{esc(title)} '
        f'#{entry.entry_id}"><h3>{rank}<span class="lay {layer_class(entry.layers)}">'
        f"{entry.layers}L</span><span class=name>{esc(material_name(entry.material))}</span>"
        f"{apart}<span class=prob>{percent(entry.probability)}</span>"
        f'<a class=id href="#f{entry.entry_id}" data-id="{entry.entry_id}">'
        f"#{entry.entry_id}</a></h3><div class=body>{enlarge}{plot}"
        f"<div class=side>{side}</div></div>{terms(places)}</article>"
    )


def gallery_section(content: ReportContent, shown: Sequence[CatalogueEntry]) -> str:
    """A card for each entry of `shown`."""
    if not content.entries:
        return (
            "<section id=flakes><h2>Flakes</h2><p class=empty>Nothing was found. The sections "
            "below say what was looked at, and how.</p></section>"
        )
    crops = {c.entry_id: c for c in content.crops}
    ladders = {ladder.material: ladder for ladder in content.ladders}
    families: dict[int, list[CatalogueEntry]] = {}
    for entry in content.entries:
        families.setdefault(entry.flake_id, []).append(entry)
    card_ids = {e.entry_id for e in shown}
    pictures = sum((c.scan is not None) + (c.revisit is not None) for c in content.crops)
    max_bytes = CROPS_MAX_BYTES // max(1, pictures)
    cards = "".join(
        _card(
            entry,
            crops.get(entry.entry_id),
            ladders.get(entry.material),
            [s for s in families[entry.flake_id] if s.entry_id != entry.entry_id],
            card_ids,
            max_bytes,
        )
        for entry in shown
    )
    rest = len(content.entries) - len(shown)
    more = (
        f"<p class=hint>{counted(rest, 'more terrace')}, ranked lower, "
        f"{'stands' if rest == 1 else 'stand'} in the table below.</p>"
        if rest
        else ""
    )
    return (
        "<section id=flakes><h2>Flakes<span class='tools js-only'>"
        "<label><input type=checkbox id=outlines checked>outlines</label>"
        "<label><input type=checkbox id=boost>enhanced contrast</label></span></h2>"
        f"<div class=cards id=cards>{cards}</div>"
        f"<p class=empty id=none hidden>No flake passes the filter.</p>{more}"
        "<p class=hint>Contrast plots: curves are what thin-film optics expects of each camera "
        "channel (R, G, B), dots what the scan measured, rings what the revisit measured; the band "
        f"is the layer number chosen.{second_hint(content)}</p></section>"
    )


def table_section(content: ReportContent, card_ids: set[int]) -> str:
    """Every entry as a row, and links to the exports."""
    files = "".join(
        f'<a href="{esc(relative_path(d.path))}" title="{esc(d.note)}">{esc(d.label)}</a>'
        for d in content.downloads
    )
    links = f"<span class=files>{files}</span>" if files else ""
    if not content.entries:
        return ""
    has_second = is_asked(content)
    head = "".join(
        f"<th scope=col{' aria-sort=ascending' if key == 'rank' else ''}>"
        f'<button type=button data-sort="{key}" title="{title}">{name}</button></th>'
        for key, name, title in (*COLUMNS, *((SECOND_COLUMN,) if has_second else ()))
    )
    rows = []
    for entry in ordered(content.entries):
        again = entry.revisit
        place = _place(entry, card_ids)
        state = "" if again is None else "yes" if again.found else "not found"
        cells = (
            str(entry.rank) if entry.rank > 0 else DASH,
            f'<a href="#{place}" data-id="{entry.entry_id}">#{entry.entry_id}</a>',
            str(entry.flake_id),
            esc(material_name(entry.material)),
            f'<span class="lay {layer_class(entry.layers)}">{entry.layers}L</span>',
            percent(entry.probability),
            number(entry.area_um2, 0),
            number(entry.aspect_ratio, 1),
            number(entry.thickness_nm, 2),
            number(entry.chip_x_um, 1),
            number(entry.chip_y_um, 1),
            number(entry.stage_x_um, 1),
            number(entry.stage_y_um, 1),
            number(entry.sharpness, 2),
            number(entry.off_ladder, 3),
            state,
            *((second_cell(entry),) if has_second else ()),
        )
        rows.append(
            f'<tr id="r{entry.entry_id}" data-id="{entry.entry_id}">'
            f"{''.join(f'<td>{c}</td>' for c in cells)}</tr>"
        )
    return (
        f"<section id=table><h2>All entries{links}</h2><div class=scroll tabindex=0 role=region "
        f'aria-label="Table of all entries"><table class=all><thead><tr>{head}</tr></thead>'
        f"<tbody id=rows>{''.join(rows)}</tbody></table></div></section>"
    )


def _json_number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def entries_json(content: ReportContent, card_ids: set[int]) -> str:
    """What the script needs to filter and sort, safe inside a script element."""
    rows = [
        {
            "id": e.entry_id,
            "card": e.entry_id in card_ids,
            "rank": e.rank if e.rank > 0 else None,
            "flake": e.flake_id,
            "material": e.material,
            "layers": e.layers,
            "probability": _json_number(e.probability),
            "area": _json_number(e.area_um2),
            "aspect": _json_number(e.aspect_ratio),
            "thickness": _json_number(e.thickness_nm),
            "cx": _json_number(e.chip_x_um),
            "cy": _json_number(e.chip_y_um),
            "sx": _json_number(e.stage_x_um),
            "sy": _json_number(e.stage_y_um),
            "sharpness": _json_number(e.sharpness),
            "off": _json_number(e.off_ladder),
            "revisited": 0 if e.revisit is None else 1,
            "differs": 1 if differs(e) else 0,
        }
        for e in ordered(content.entries)
    ]
    text = json.dumps(rows, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
