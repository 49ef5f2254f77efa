"""The run's report: one self-contained HTML page that a group reads, prints and keeps.

Everything the page shows is rendered here, into plain HTML and SVG, so that it can be read without
scripts, printed, and opened in ten years; the script only filters, sorts, zooms and selects. The
page refers to nothing outside itself but the exports that lie beside it: pictures are data URIs,
and a content security policy keeps it so. What comes in is plain data: this file decides nothing
about flakes and reads no journal.

Coordinates are stage um (x right, y up) unless a name says `chip`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

from controller.messages import (
    CalibrationFitted,
    CatalogueEntry,
    ChipFound,
    CommandRefused,
    FocusMeasured,
    FramesMissing,
    PlannedTile,
    Ring,
    RunFinished,
    RunStarted,
    Skipped,
)
from controller.search.report_figures import (
    DASH,
    NNBSP,
    Extent,
    Measured,
    band_step,
    bands_uri,
    chip_axes,
    crop_path,
    extent_of,
    fixed,
    heat_css,
    heat_gradient_css,
    ladder_plot,
    length_text,
    nice_length,
    number,
    picture_uri,
    rectangles_path,
    stage_path,
    svg_xy,
)

RGB8: TypeAlias = npt.NDArray[np.uint8]  # (h, w, 3), R, G, B, y down
Grid: TypeAlias = npt.NDArray[np.float64]

CARDS = 60  # entries beyond these, by rank, stand in the table only: the page stays small
MAP_SIDE_PX = 2_800
MAP_MAX_BYTES = 3_500_000
CROP_SIDE_PX = 420
BOOST = 2.4  # how much the enhanced view stretches contrast about the substrate's colour
MATERIAL_NAMES = {
    "graphene": "Graphene",
    "hbn": "hBN",
    "mos2": "MoS\N{SUBSCRIPT TWO}",
    "mose2": "MoSe\N{SUBSCRIPT TWO}",
    "ws2": "WS\N{SUBSCRIPT TWO}",
    "wse2": "WSe\N{SUBSCRIPT TWO}",
    "wte2": "WTe\N{SUBSCRIPT TWO}",
}
PHASE_NAMES = {
    "overview": "Overview",
    "focus": "Focus",
    "scan": "Scan",
    "revisit": "Revisits",
    "report": "Report",
}
OUTCOME_NAMES = {"complete": "Complete", "stopped": "Stopped", "failed": "Failed"}


@dataclass(frozen=True, slots=True, eq=False)
class MapImage:
    """The stitched chip; y down in the picture is decreasing stage y."""

    pixels: RGB8
    x_um: float  # stage position of the CENTRE of pixel (0, 0), the upper left one
    y_um: float
    um_per_px: float


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One picture of one entry; the crop's centre lies at (stage_x_um, stage_y_um)."""

    pixels: RGB8
    pixel_size_nm: float
    stage_x_um: float
    stage_y_um: float
    objective: str
    outline_um: Ring = ()  # as seen in this picture; empty: the catalogue's outline is drawn
    holes_um: tuple[Ring, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class EntryCrops:
    """The pictures of one catalogue entry."""

    entry_id: int
    scan: Crop | None  # None: no picture was kept
    revisit: Crop | None  # None: not revisited, or no picture was kept


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The contrast that physics expects of a material on this substrate, as a curve."""

    material: str
    layers: Grid  # (n,) ascending; fractions allowed
    contrast_rgb: Grid  # (n, 3), I / I_substrate - 1


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceGrid:
    """The focus surface, sampled."""

    x_um: Grid  # (nx,) ascending
    y_um: Grid  # (ny,) ascending
    focus_z_um: Grid  # (ny, nx); NaN where the surface is not claimed
    model: str  # "plane", "quadratic" ...


@dataclass(frozen=True, slots=True)
class TileQuality:
    """What the detector said of one tile's picture."""

    index: int  # `PlannedTile.index`
    sharpness: float
    in_distribution: bool
    reason: str


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Instrument time spent in one phase, all sessions together."""

    phase: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class ScanBound:
    """What the scan's time bound is made of."""

    moves_s: float
    settling_s: float
    exposures_s: float


@dataclass(frozen=True, slots=True)
class TruthRow:
    """Found against present, for runs on a simulated chip, whose truth is known."""

    material: str
    layers: int
    present: int
    found: int  # of those present
    false: int  # in the catalogue, not on the chip


@dataclass(frozen=True, slots=True)
class Download:
    """A file that lies beside the report."""

    label: str
    path: str  # relative to the report
    note: str


@dataclass(frozen=True, slots=True, eq=False)
class ReportContent:
    """All that the page shows."""

    started: RunStarted  # of the first session
    finished: RunFinished | None  # None: the last session was cut off
    sessions: int
    instrument_time_s: float  # on the instrument's clock, all sessions together
    wanted: str  # what the user asked for, in words
    entries: tuple[CatalogueEntry, ...]
    crops: tuple[EntryCrops, ...] = ()
    chip: ChipFound | None = None  # None: no outline was found
    mosaic: MapImage | None = None  # None: no tile was saved
    calibration: CalibrationFitted | None = None  # None: the nominal optics were used
    ladders: tuple[Ladder, ...] = ()
    tiles: tuple[PlannedTile, ...] = ()
    field_w_um: float = 0.0
    field_h_um: float = 0.0
    tile_quality: tuple[TileQuality, ...] = ()
    focus_points: tuple[FocusMeasured, ...] = ()
    focus_surface: SurfaceGrid | None = None  # None: too few points
    phases: tuple[PhaseTime, ...] = ()
    scan_bound: ScanBound | None = None  # None: only the sum is known
    skipped: tuple[Skipped, ...] = ()
    refused: tuple[CommandRefused, ...] = ()
    frames_missing: tuple[FramesMissing, ...] = ()
    warnings: tuple[str, ...] = ()
    truth: tuple[TruthRow, ...] = ()  # empty: a real sample
    downloads: tuple[Download, ...] = ()


def _e(text: object) -> str:
    """Anything from outside, safe between tags and inside quotes."""
    return html.escape(str(text), quote=True)


def _material(key: str) -> str:
    return MATERIAL_NAMES.get(key, key)


def _layer_class(layers: int) -> str:
    """Five colours: 1, 2, 3, 4, and 5 or more."""
    return f"l{min(max(layers, 1), 5)}"


def _layers_text(layers: int) -> str:
    names = {1: "monolayer", 2: "bilayer", 3: "trilayer"}
    return names.get(layers, f"{layers} layers")


def _counted(count: int, noun: str) -> str:
    return f"{count}{NNBSP}{noun}{'' if count == 1 else 's'}"


def _area_text(area_um2: float) -> str:
    """Three significant digits; mm² from a hundredth of one."""
    if not math.isfinite(area_um2):
        return DASH
    value, unit = (area_um2 / 1e6, "mm²") if area_um2 >= 1e4 else (area_um2, "µm²")
    if value == 0.0:
        return f"0{NNBSP}{unit}"
    digits = max(0, 2 - math.floor(math.log10(value)))
    text = f"{round(value, digits):.{digits}f}" if digits else f"{round(value):d}"
    return f"{text}{NNBSP}{unit}"


def _time_text(duration_s: float) -> str:
    if not math.isfinite(duration_s):
        return DASH
    if duration_s < 60.0:
        return f"{duration_s:.1f}{NNBSP}s"
    seconds = round(duration_s)
    hours, minutes = seconds // 3_600, seconds // 60 % 60
    if hours:
        return f"{hours}{NNBSP}h {minutes:02d}{NNBSP}min"
    return f"{minutes}{NNBSP}min {seconds % 60:02d}{NNBSP}s"


def _percent(ratio: float) -> str:
    """Never "100 %" for what is not certain."""
    if not math.isfinite(ratio):
        return DASH
    if 0.995 <= ratio < 1.0:
        return f">{NNBSP}99{NNBSP}%"
    if 0.0 < ratio < 0.005:
        return f"<{NNBSP}1{NNBSP}%"
    return f"{100 * ratio:.0f}{NNBSP}%"


def _ordered(entries: Iterable[CatalogueEntry]) -> list[CatalogueEntry]:
    """Best first; what nobody asked for comes last."""
    return sorted(entries, key=lambda e: (e.rank <= 0, e.rank, -e.area_um2, e.entry_id))


def _searched_um2(content: ReportContent) -> float:
    """Ground seen by the scan, overlaps counted once and ground beside the chip not at all."""
    half_w, half_h = content.field_w_um / 2, content.field_h_um / 2
    if not content.tiles or half_w <= 0.0 or half_h <= 0.0:
        return 0.0
    seen = {t.index for t in content.tile_quality}
    fields = shapely.union_all(
        [
            shapely.box(t.x_um - half_w, t.y_um - half_h, t.x_um + half_w, t.y_um + half_h)
            for t in content.tiles
            if not seen or t.index in seen
        ]
    )
    if content.chip is not None and len(content.chip.outline_um) >= 3:
        chip = shapely.make_valid(shapely.Polygon(content.chip.outline_um))
        fields = shapely.intersection(fields, chip)
    return float(fields.area)


def _chip_um2(chip: ChipFound | None) -> float:
    if chip is None or len(chip.outline_um) < 3:
        return 0.0
    return float(shapely.make_valid(shapely.Polygon(chip.outline_um)).area)


def _chip_xy(chip: ChipFound, x_um: float, y_um: float) -> tuple[float, float]:
    """Stage um to the chip's own frame."""
    angle = math.radians(chip.rotation_deg)
    dx, dy = x_um - chip.origin_x_um, y_um - chip.origin_y_um
    return (
        dx * math.cos(angle) + dy * math.sin(angle),
        dy * math.cos(angle) - dx * math.sin(angle),
    )


def _verdict(content: ReportContent) -> str:
    """The run in one sentence."""
    flakes = len({e.flake_id for e in content.entries if e.rank > 0})
    searched_um2 = _searched_um2(content)
    if searched_um2 <= 0.0 and not content.entries:
        return f"Nothing was scanned in {_time_text(content.instrument_time_s)} of instrument time."
    again = [e.revisit for e in content.entries if e.revisit is not None]
    text = f"{_counted(flakes, 'wanted flake') if flakes else 'No wanted flakes'}"
    if searched_um2 > 0.0:
        text += f" on {_area_text(searched_um2)}"
    text += f" in {_time_text(content.instrument_time_s)} of instrument time"
    if again:
        text += f"; {len(again)} revisited"
        lost = sum(not r.found for r in again)
        text += f", {lost} of them not found again" if lost else ""
    return text + "."


def _own_warnings(content: ReportContent) -> list[str]:
    """What the numbers themselves give reason to warn of."""
    out = []
    if content.finished is None:
        out.append("The run has no end: the report shows what was on record when it was drawn.")
    elif content.finished.outcome != "complete":
        reason = content.finished.reason or "no reason was recorded"
        out.append(f"The run {content.finished.outcome}: {reason}.")
    if content.chip is None:
        out.append(
            "No chip outline was found: chip coordinates are not tied to the chip, and flakes "
            "cannot be found again on another stage from corners."
        )
    if content.calibration is None or content.calibration.confidence <= 0.0:
        out.append(
            "Uncalibrated: colours were compared with the nominal optics, so layer numbers may be "
            "off by one on an oxide that differs from the settings."
        )
    odd = [t for t in content.tile_quality if not t.in_distribution]
    if odd:
        reasons = Counter(t.reason or "no reason given" for t in odd)
        said = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        out.append(
            f"{_counted(len(odd), 'tile')} of {len(content.tile_quality)} did not look like what "
            f"the detector knows: {said}. Flakes there may be missed or misnamed."
        )
    if content.finished is not None and content.finished.frames_unaccounted:
        out.append(f"{_counted(content.finished.frames_unaccounted, 'frame')} unaccounted for.")
    return out


def _figure(value: str, label: str, note: str = "") -> str:
    below = f"<small>{note}</small>" if note else ""
    return f"<div class=fig><dt>{label}</dt><dd>{value}{below}</dd></div>"


def _key_figures(content: ReportContent) -> str:
    wanted = [e for e in content.entries if e.rank > 0]
    by_layers = Counter(min(max(e.layers, 1), 5) for e in wanted)
    chips = "".join(
        f'<span class="lay l{n}">{n}{"+" if n == 5 else ""}L<b>{by_layers[n]}</b></span>'
        for n in sorted(by_layers)
    )
    flakes = len({e.flake_id for e in wanted})
    out = [
        _figure(
            str(len(wanted)),
            "Wanted terraces",
            f"on {_counted(flakes, 'flake')}; {len(content.entries)} terraces in all",
        ),
        _figure(f"<span class=lays>{chips or DASH}</span>", "By layer number"),
    ]
    searched_um2, chip_um2 = _searched_um2(content), _chip_um2(content.chip)
    share = f"{_percent(min(1.0, searched_um2 / chip_um2))} of the chip" if chip_um2 else ""
    out.append(_figure(_area_text(searched_um2), "Searched", share))
    done = content.finished
    if done is not None and done.scan_s > 0.0 and done.tiles:
        rate = f"{60 * done.tiles / done.scan_s:.0f}{NNBSP}tiles/min"
        out.append(_figure(rate, "Scan rate", f"{_counted(done.tiles, 'tile')}"))
        out.append(
            _figure(
                _percent(done.scan_bound_s / done.scan_s),
                "Of the time bound",
                "moves + settling + exposures",
            )
        )
    if done is not None:
        missing = f"{done.frames_missing} missing, {done.frames_unaccounted} unaccounted"
        out.append(_figure(str(done.frames_received), "Frames", missing))
        per = f"1 per {done.tiles / done.autofocus_runs:.0f} tiles" if done.autofocus_runs else ""
        out.append(_figure(str(done.autofocus_runs), "Autofocus runs", per))
    return f"<dl class=figs>{''.join(out)}</dl>"


def _header(content: ReportContent) -> str:
    outcome = "cut" if content.finished is None else content.finished.outcome
    badge = OUTCOME_NAMES.get(outcome, "Cut off")
    device = content.started.instrument.get("name", "") or content.started.instrument.get(
        "driver", ""
    )
    facts = [content.started.name, content.started.started_at_utc, device]
    line = " · ".join(_e(f) for f in facts if f)
    asked = f"<p class=asked>Asked for: {_e(content.wanted)}</p>" if content.wanted else ""
    warnings = [*_own_warnings(content), *content.warnings]
    box = ""
    if warnings:
        items = "".join(f"<li>{_e(w)}</li>" for w in warnings)
        box = f'<aside class=warn aria-label="Warnings"><ul>{items}</ul></aside>'
    return (
        f"<header class=top><p class=over><span class='badge {outcome}'>{badge}</span>{line}</p>"
        f"<h1>{_e(_verdict(content))}</h1>{asked}{box}{_key_figures(content)}</header>"
    )


def _filters(content: ReportContent) -> str:
    if not content.entries:
        return ""
    keys = sorted({e.material for e in content.entries})
    options = "".join(f'<option value="{_e(k)}">{_e(_material(k))}</option>' for k in keys)
    classes = sorted({min(max(e.layers, 1), 5) for e in content.entries})
    layers = "".join(
        f'<label class="lay l{n}"><input type=checkbox name=layers value={n} checked>'
        f"{n}{'+' if n == 5 else ''}L</label>"
        for n in classes
    )
    return (
        '<form class="filters js-only" id=filters aria-label="Filter flakes">'
        f"<label>Material<select name=material><option value=''>all</option>{options}</select>"
        f"</label><fieldset><legend>Layers</legend>{layers}</fieldset>"
        "<label>Area ≥<input type=number name=area min=0 step=any inputmode=decimal>µm²</label>"
        "<label>Probability ≥<input type=number name=probability min=0 max=100 step=1>%</label>"
        "<label class=tick><input type=checkbox name=wanted>wanted only</label>"
        "<label class=tick><input type=checkbox name=revisited>revisited only</label>"
        "<label>Sort by<select name=sort>"
        "<option value=rank>rank</option><option value=-area>area</option>"
        "<option value=-probability>probability</option><option value=layers>layers</option>"
        "<option value=-sharpness>focus score</option><option value=id>id</option>"
        "</select></label>"
        "<output id=shown></output><button type=reset>Reset</button></form>"
    )


def _mark(entry: CatalogueEntry, tolerance_um: float, has_card: bool) -> str:
    x, y = svg_xy((entry.stage_x_um, entry.stage_y_um))
    if not (math.isfinite(x) and math.isfinite(y)):
        return ""
    kind = "un" if entry.rank <= 0 else "re" if entry.revisit is not None else ""
    title = (
        f"#{entry.entry_id} {_material(entry.material)}, {_layers_text(entry.layers)}, "
        f"{_area_text(entry.area_um2)}"
    )
    label = ""
    if entry.rank > 0:
        label = f'<text x="{fixed(x, 1)}" y="{fixed(y, 1)}" dy="-.85em">{entry.rank}</text>'
    target = f"f{entry.entry_id}" if has_card else f"r{entry.entry_id}"
    return (
        f'<a class="mark {_layer_class(entry.layers)} {kind}" data-id="{entry.entry_id}" '
        f'href="#{target}" tabindex="-1" aria-label="{_e(title)}"><title>{_e(title)}</title>'
        f'<path d="{stage_path((entry.outline_um, *entry.holes_um), tolerance_um)}"/>'
        f'<circle cx="{fixed(x, 1)}" cy="{fixed(y, 1)}" r="8"/>{label}</a>'
    )


def _map_extent(content: ReportContent) -> Extent | None:
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


def _map(content: ReportContent, extent: Extent | None, card_ids: set[int]) -> str:
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
    marks = [_mark(e, tolerance_um, e.entry_id in card_ids) for e in _ordered(content.entries)]
    layers.append(f'<g class="marks">{"".join(reversed(marks))}</g>')  # the best drawn last
    bar_um = nice_length(unit_um * 150)
    label = f"Chip map with {_counted(len(content.entries), 'terrace')} marked"
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
        f'aria-label="{_e(label)}" class="no-tiles no-spots" style="--u:{unit_um:.4g}"{frame}>'
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


def _shot(crop: Crop | None, what: str, entry: CatalogueEntry) -> str:
    """One square picture with its outline and scale bar; the crop's centre stays its centre."""
    if crop is None:
        return ""
    uri = picture_uri(crop.pixels, CROP_SIDE_PX, 85)
    if uri is None:
        return ""
    height_px, width_px = crop.pixels.shape[:2]
    um_per_px = crop.pixel_size_nm * 1e-3
    side_px = max(height_px, width_px)
    bar_um = nice_length(side_px * um_per_px * 0.3)
    outline, holes = crop.outline_um, crop.holes_um
    if not outline:
        dx = dy = 0.0
        if what == "revisit" and entry.revisit is not None and entry.revisit.found:
            # the revisit measured the position anew: the outline goes where the terrace is there
            dx = entry.revisit.x_um - entry.stage_x_um
            dy = entry.revisit.y_um - entry.stage_y_um
        outline = tuple((x + dx, y + dy) for x, y in entry.outline_um)
        holes = tuple(tuple((x + dx, y + dy) for x, y in hole) for hole in entry.holes_um)
    drawn = crop_path(
        (outline, *holes), (crop.stage_x_um, crop.stage_y_um), um_per_px, width_px, height_px
    )
    alt = (
        f"{_material(entry.material)} {_layers_text(entry.layers)} #{entry.entry_id}, "
        f"{crop.objective} {what}"
    )
    return (
        f'<figure class=shot><img src="{uri}" alt="{_e(alt)}" loading=lazy decoding=async>'
        f'<svg viewBox="0 0 {width_px} {height_px}" aria-hidden=true class="out '
        f'{_layer_class(entry.layers)}"><path class=halo d="{drawn}"/><path d="{drawn}"/></svg>'
        f'<div class=bar style="width:{100 * bar_um / (side_px * um_per_px):.2f}%">'
        f"{length_text(bar_um)}</div>"
        f"<figcaption>{_e(crop.objective)} · {what}</figcaption></figure>"
    )


def _bars(entry: CatalogueEntry) -> str:
    rows = []
    for layers, probability in entry.layer_probabilities[:4]:
        width = 100 * min(max(probability if math.isfinite(probability) else 0.0, 0.0), 1.0)
        rows.append(
            f"<div class={_layer_class(layers)}><span>{layers}L</span>"
            f'<i><b style="width:{width:.1f}%"></b></i><span>{_percent(probability)}</span></div>'
        )
    return f'<div class=probs role=group aria-label="Layer probabilities">{"".join(rows)}</div>'


def _terms(rows: Sequence[tuple[str, str]]) -> str:
    return "<dl class=terms>" + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows) + "</dl>"


def _card(
    entry: CatalogueEntry,
    crops: EntryCrops | None,
    ladder: Ladder | None,
    siblings: Sequence[CatalogueEntry],
) -> str:
    shots = [
        _shot(crops.scan, "scan", entry) if crops else "",
        _shot(crops.revisit, "revisit", entry) if crops else "",
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
        ("Area", _area_text(entry.area_um2)),
        ("Aspect", number(entry.aspect_ratio, 1)),
        ("Thickness", f"{number(entry.thickness_nm, 2)}{NNBSP}nm"),
        ("Focus score", number(entry.sharpness, 2)),
        ("Off ladder", number(entry.off_ladder, 3)),
        ("Flake score", number(entry.score, 2)),
    ]
    places = [
        ("Chip", f"{number(entry.chip_x_um, 1)}, {number(entry.chip_y_um, 1)}{NNBSP}µm"),
        ("Stage", f"{number(entry.stage_x_um, 1)}, {number(entry.stage_y_um, 1)}{NNBSP}µm"),
    ]
    if again is not None:
        said = (
            f"{_e(_material(again.material))}, {_layers_text(again.layers)}, "
            f"{_percent(again.probability)}; centred within "
            f"{number(again.centred_error_um, 1)}{NNBSP}µm"
            if again.found
            else f"not found again: {_e(again.reason or 'no reason recorded')}"
        )
        places.append(("Revisit", said))
    if siblings:
        links = ", ".join(
            f'<a href="#f{s.entry_id}" data-id="{s.entry_id}">#{s.entry_id}</a>'
            for s in siblings[:6]
        )
        more = f" and {len(siblings) - 6} more" if len(siblings) > 6 else ""
        places.append(("Same flake", links + more))
    title = f"{_material(entry.material)}, {_layers_text(entry.layers)}"
    rank = f"<span class=rank>{entry.rank}</span>" if entry.rank > 0 else ""
    enlarge = (
        f'<button type=button class="shots n{2 if all(shots) else 1}" '
        f'aria-label="Enlarge the pictures of #{entry.entry_id}">{pictures}</button>'
        if pictures
        else '<p class="shots empty">No picture was kept.</p>'
    )
    side = _bars(entry) + _terms(rows)
    return (
        f'<article class="card {_layer_class(entry.layers)}{"" if entry.rank > 0 else " un"}" '
        f'id="f{entry.entry_id}" data-id="{entry.entry_id}" aria-label="{_e(title)} '
        f'#{entry.entry_id}"><h3>{rank}<span class="lay {_layer_class(entry.layers)}">'
        f"{entry.layers}L</span><span class=name>{_e(_material(entry.material))}</span>"
        f"<span class=prob>{_percent(entry.probability)}</span>"
        f'<a class=id href="#f{entry.entry_id}" data-id="{entry.entry_id}">'
        f"#{entry.entry_id}</a></h3>{enlarge}"
        f"<div class=two>{plot}<div>{side}</div></div>{_terms(places)}</article>"
    )


def _gallery(content: ReportContent, shown: Sequence[CatalogueEntry]) -> str:
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
    cards = "".join(
        _card(
            entry,
            crops.get(entry.entry_id),
            ladders.get(entry.material),
            [s for s in families[entry.flake_id] if s.entry_id != entry.entry_id],
        )
        for entry in shown
    )
    rest = len(content.entries) - len(shown)
    more = (
        f"<p class=hint>{_counted(rest, 'more terrace')}, ranked lower, "
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
        "is the layer number chosen.</p></section>"
    )


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


def _table(content: ReportContent, card_ids: set[int]) -> str:
    files = "".join(
        f'<a href="{_e(_relative(d.path))}" title="{_e(d.note)}">{_e(d.label)}</a>'
        for d in content.downloads
    )
    links = f"<span class=files>{files}</span>" if files else ""
    if not content.entries:
        return f"<section id=table><h2>All entries{links}</h2><p class=empty>None.</p></section>"
    head = "".join(
        f"<th scope=col{' aria-sort=ascending' if key == 'rank' else ''}>"
        f'<button type=button data-sort="{key}" title="{title}">{name}</button></th>'
        for key, name, title in COLUMNS
    )
    rows = []
    for entry in _ordered(content.entries):
        again = entry.revisit
        state = "" if again is None else "yes" if again.found else "not found"
        target = f"f{entry.entry_id}" if entry.entry_id in card_ids else f"r{entry.entry_id}"
        cells = (
            str(entry.rank) if entry.rank > 0 else DASH,
            f'<a href="#{target}" data-id="{entry.entry_id}">#{entry.entry_id}</a>',
            str(entry.flake_id),
            _e(_material(entry.material)),
            f'<span class="lay {_layer_class(entry.layers)}">{entry.layers}L</span>',
            _percent(entry.probability),
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


def _relative(path: str) -> str:
    """Refuse anything that would make the page depend on more than its own folder."""
    if re.match(r"^(?:[A-Za-z][A-Za-z0-9+.-]*:|/|\\)", path):
        msg = f"a download lies beside the report; its path must be relative, got {path!r}"
        raise ValueError(msg)
    return path


def _truth(rows: Sequence[TruthRow]) -> str:
    if not rows:
        return ""
    body = []
    for row in sorted(rows, key=lambda r: (r.material, r.layers)):
        recall = row.found / row.present if row.present else math.nan
        claimed = row.found + row.false
        precision = row.found / claimed if claimed else math.nan
        meters = "".join(
            f"<td class=meter><i><b style='width:{100 * v if math.isfinite(v) else 0:.1f}%'></b>"
            f"</i>{_percent(v)}</td>"
            for v in (recall, precision)
        )
        body.append(
            f"<tr><td>{_e(_material(row.material))}</td><td><span class='lay "
            f"{_layer_class(row.layers)}'>{row.layers}L</span></td><td>{row.present}</td>"
            f"<td>{row.found}</td><td>{row.present - row.found}</td><td>{row.false}</td>"
            f"{meters}</tr>"
        )
    names = ("Material", "Layers", "On the chip", "Found", "Missed", "False", "Recall", "Precision")
    head = "".join(f"<th scope=col>{n}</th>" for n in names)
    return (
        "<section id=truth><h2>Against the truth</h2><p class=lead>This chip was simulated, so "
        "what is on it is known. The search itself never saw these numbers.</p><div class=scroll>"
        f"<table class=truth><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        "</div></section>"
    )


def _residuals_um(surface: SurfaceGrid, points: Sequence[FocusMeasured]) -> list[float]:
    """Measured minus surface, bilinear, where the surface is claimed."""
    out: list[float] = []
    xs, ys, zs = surface.x_um, surface.y_um, surface.focus_z_um
    if len(xs) < 2 or len(ys) < 2:
        return out
    for point in points:
        if not (xs[0] <= point.stage_x_um <= xs[-1] and ys[0] <= point.stage_y_um <= ys[-1]):
            continue
        i = min(int(np.searchsorted(xs, point.stage_x_um, side="right")) - 1, len(xs) - 2)
        j = min(int(np.searchsorted(ys, point.stage_y_um, side="right")) - 1, len(ys) - 2)
        u = (point.stage_x_um - xs[i]) / (xs[i + 1] - xs[i])
        v = (point.stage_y_um - ys[j]) / (ys[j + 1] - ys[j])
        low = zs[j, i] * (1 - u) + zs[j, i + 1] * u
        high = zs[j + 1, i] * (1 - u) + zs[j + 1, i + 1] * u
        value = float(point.focus_z_um - (low * (1 - v) + high * v))
        if math.isfinite(value):
            out.append(value)
    return out


def _focus_map(content: ReportContent, extent: Extent) -> str:
    surface = content.focus_surface
    points = [p for p in content.focus_points if p.purpose in ("seed", "track")]
    sure = [p for p in points if p.is_confident and math.isfinite(p.focus_z_um)]
    heights = [p.focus_z_um for p in sure]
    if surface is not None and np.isfinite(surface.focus_z_um).any():
        heights += [
            float(np.nanmin(surface.focus_z_um)),
            float(np.nanmax(surface.focus_z_um)),
        ]
    if not heights:
        return "<p class=empty>No focus was measured.</p>"
    step_um = band_step(min(heights), max(heights), 10)
    low_um = math.floor(min(heights) / step_um) * step_um
    bands = max(1, math.ceil((max(heights) - low_um) / step_um + 1e-9))
    unit_um = max(extent.width_um / 520, extent.height_um / 380)
    parts = []
    if surface is not None and surface.focus_z_um.size >= 4:
        left, right = float(surface.x_um[0]), float(surface.x_um[-1])
        bottom, top = float(surface.y_um[0]), float(surface.y_um[-1])
        x, y = svg_xy((left, top))
        uri = bands_uri(np.asarray(surface.focus_z_um, dtype=np.float64), low_um, step_um, bands)
        parts.append(
            f'<image href="{uri}" x="{fixed(x, 1)}" y="{fixed(y, 1)}" width="'
            f'{fixed(right - left, 1)}" height="{fixed(top - bottom, 1)}" '
            'preserveAspectRatio="none"/>'
        )
    if content.chip is not None:
        parts.append(f'<path class="chip" d="{stage_path([content.chip.outline_um], 2.0)}"/>')
    for point in points:
        x, y = svg_xy((point.stage_x_um, point.stage_y_um))
        said = (
            f"z {number(point.focus_z_um, 2)} ± {number(point.sigma_um, 2)} µm, {point.purpose}"
            if point.is_confident
            else f"no focus: {point.reason}"
        )
        tip = f"<title>{_e(said)}</title>"
        if point.is_confident:
            colour = heat_css((point.focus_z_um - low_um) / (step_um * bands))
            parts.append(
                f'<circle class="af" cx="{fixed(x, 1)}" cy="{fixed(y, 1)}" '
                f'r="{fixed(5.5 * unit_um, 2)}" fill="{colour}">{tip}</circle>'
            )
        else:
            arm = fixed(5 * unit_um, 2)
            back = fixed(-10 * unit_um, 2)
            forth = fixed(10 * unit_um, 2)
            parts.append(
                f'<path class="afno" d="M{fixed(x, 1)} {fixed(y, 1)}m-{arm} -{arm}l{forth} {forth}'
                f'm0 {back}l{back} {forth}">{tip}</path>'
            )
    residuals = [] if surface is None else _residuals_um(surface, sure)
    rms = math.sqrt(sum(r * r for r in residuals) / len(residuals)) if residuals else math.nan
    failed = len(points) - len(sure)
    said = (
        f"{_counted(len(sure), 'point')} in focus"
        + (f", {failed} abstained (crosses)" if failed else "")
        + ("" if surface is None else f"; surface: {_e(surface.model)}")
        + (f", rms residual {number(rms, 2)}{NNBSP}µm" if residuals else "")
    )
    digits = max(0, -math.floor(math.log10(step_um) + 1e-9))
    return (
        f'<figure class=small><svg viewBox="{extent.view_box()}" role=img '
        f'aria-label="Focus over the chip, {_e(number(min(heights), 1))} to '
        f'{_e(number(max(heights), 1))} µm">{"".join(parts)}</svg>'
        f'<div class=scale><span>{number(low_um, digits)}</span><i style="background:'
        f'{heat_gradient_css(bands)}"></i><span>{number(low_um + bands * step_um, digits)}'
        f"{NNBSP}µm</span></div><figcaption><b>Focus surface.</b> {said}. One band is "
        f"{number(step_um, digits)}{NNBSP}µm.</figcaption></figure>"
    )


def _sharpness_map(content: ReportContent, extent: Extent) -> str:
    where = {t.index: t for t in content.tiles}
    seen = [q for q in content.tile_quality if q.index in where and math.isfinite(q.sharpness)]
    if not seen or content.field_w_um <= 0.0:
        return "<p class=empty>No tile was judged.</p>"
    low, high = (float(v) for v in np.percentile([q.sharpness for q in seen], [2, 98]))
    odd = []
    groups: dict[int, list[tuple[float, float]]] = {}
    for quality in seen:
        tile = where[quality.index]
        band = math.floor(12 * (quality.sharpness - low) / (high - low)) if high > low else 6
        groups.setdefault(min(max(band, 0), 11), []).append((tile.x_um, tile.y_um))
        if not quality.in_distribution:
            odd.append((tile.x_um, tile.y_um))
    parts = [
        f'<path fill="{heat_css(band / 11)}" d="'
        f'{rectangles_path(at, content.field_w_um, content.field_h_um)}"/>'
        for band, at in sorted(groups.items())
    ]
    if content.chip is not None:
        parts.append(f'<path class="chip" d="{stage_path([content.chip.outline_um], 2.0)}"/>')
    parts.append(
        f'<path class="odd" d="'
        f'{rectangles_path(odd, content.field_w_um * 0.86, content.field_h_um * 0.86)}"/>'
    )
    note = (
        f"{_counted(len(odd), 'tile')} framed in red did not look like what the detector knows."
        if odd
        else "All tiles looked like what the detector knows."
    )
    return (
        f'<figure class=small><svg viewBox="{extent.view_box()}" role=img aria-label="Sharpness '
        f'of {len(seen)} tiles, {len(odd)} flagged">{"".join(parts)}</svg>'
        f"<div class=scale><span>{number(low, 2)}</span><i style='background:"
        f"{heat_gradient_css(12)}'></i><span>{number(high, 2)}</span></div>"
        f"<figcaption><b>Sharpness of the tiles.</b> Empty ground has little to be sharp about. "
        f"{note}</figcaption></figure>"
    )


def _focus(content: ReportContent, extent: Extent | None) -> str:
    if extent is None:
        inner = "<p class=empty>Nothing was focused.</p>"
    else:
        inner = (
            f"<div class=pair>{_focus_map(content, extent)}{_sharpness_map(content, extent)}</div>"
        )
    return f"<section id=focus><h2>Focus</h2>{inner}</section>"


def _segments(parts: Sequence[tuple[str, float, str]], total_s: float) -> str:
    out = []
    for name, duration_s, css in parts:
        share = 100 * duration_s / total_s if total_s > 0.0 else 0.0
        text = f"{name} {_time_text(duration_s)}"
        inside = f"<span>{_e(text)}</span>" if share > 13 else ""
        out.append(f'<i class={css} style="width:{share:.2f}%" title="{_e(text)}">{inside}</i>')
    return f"<div class=stack>{''.join(out)}</div>"


def _time(content: ReportContent) -> str:
    rows = []
    phases = [p for p in content.phases if p.duration_s > 0.0 and math.isfinite(p.duration_s)]
    if phases:
        total_s = sum(p.duration_s for p in phases)
        parts = [
            (PHASE_NAMES.get(p.phase, p.phase), p.duration_s, f"p{i % 5}")
            for i, p in enumerate(phases)
        ]
        rows.append(("Whole run", _segments(parts, total_s), _time_text(total_s)))
    done = content.finished
    lead = ""
    if done is not None and done.scan_s > 0.0:
        if content.scan_bound is None:
            bound = [("Moves, settling, exposures", done.scan_bound_s, "b0")]
        else:
            bound = [
                ("Moves", content.scan_bound.moves_s, "b0"),
                ("Settling", content.scan_bound.settling_s, "b1"),
                ("Exposures", content.scan_bound.exposures_s, "b2"),
            ]
        longest_s = max(done.scan_s, done.scan_bound_s)
        rows.append(("Scan, bound", _segments(bound, longest_s), _time_text(done.scan_bound_s)))
        over_s = max(0.0, done.scan_s - done.scan_bound_s)
        actual = [("Bound", min(done.scan_s, done.scan_bound_s), "b3"), ("Rest", over_s, "b4")]
        rows.append(("Scan, actual", _segments(actual, longest_s), _time_text(done.scan_s)))
        lead = (
            f"<p class=lead>The scan took {_time_text(done.scan_s)}. Moving, settling and exposing "
            f"alone take {_time_text(done.scan_bound_s)}: "
            f"<b>{_percent(done.scan_bound_s / done.scan_s)}</b> of the time was the instrument's "
            "own. The rest is autofocus and waiting.</p>"
        )
    if not rows:
        return "<section id=time><h2>Time</h2><p class=empty>No times were recorded.</p></section>"
    body = "".join(
        f"<div class=timerow><span>{name}</span>{bar}<span>{total}</span></div>"
        for name, bar, total in rows
    )
    legend = "".join(
        f"<span><i class=p{i % 5}></i>{_e(PHASE_NAMES.get(p.phase, p.phase))} "
        f"{_time_text(p.duration_s)}</span>"
        for i, p in enumerate(phases)
    )
    return (
        f"<section id=time><h2>Time</h2>{lead}<div class=times>{body}</div>"
        f"<p class=legend>{legend}</p></section>"
    )


def _not_done(content: ReportContent) -> str:
    items = [(s.what, s.reason) for s in content.skipped]
    items += [(f"Command refused: {c.command}", c.reason) for c in content.refused]
    for gap in content.frames_missing:
        name = f"frame {gap.first}" if gap.first == gap.last else f"frames {gap.first}–{gap.last}"
        items.append((f"Missing {name}", gap.reason))
    if not items:
        inner = "<p class=empty>Everything planned was done, and every frame arrived.</p>"
    else:
        rows = "".join(f"<tr><td>{_e(w)}</td><td>{_e(r)}</td></tr>" for w, r in items[:200])
        more = f"<p class=hint>and {len(items) - 200} more.</p>" if len(items) > 200 else ""
        inner = (
            "<div class=scroll><table class=plain><thead><tr><th scope=col>What</th>"
            f"<th scope=col>Why</th></tr></thead><tbody>{rows}</tbody></table></div>{more}"
        )
    return f"<section id=notdone><h2>Not done</h2>{inner}</section>"


def _corners(chip: ChipFound) -> list[tuple[str, str, float, float]]:
    """The outline's corners: letter, words, stage x, stage y; from the origin anticlockwise."""
    spots = [(p, _chip_xy(chip, *p)) for p in chip.outline_um]
    if not spots:
        return []
    out = []
    for letter, words, sign_x, sign_y in (
        ("A", "lower left", -1, -1),
        ("B", "lower right", 1, -1),
        ("C", "upper right", 1, 1),
        ("D", "upper left", -1, 1),
    ):
        best = max(spots, key=lambda s: sign_x * s[1][0] + sign_y * s[1][1])[0]
        out.append((letter, words, best[0], best[1]))
    return out


def _find_again(content: ReportContent) -> str:
    chip = content.chip
    if chip is None:
        return (
            "<section id=again><h2>Finding a flake again</h2><p class=lead>No outline was found, "
            "so there are no corners to refer to. The stage coordinates hold for this stage as long "
            "as the chip has not been moved.</p></section>"
        )
    corners = _corners(chip)
    rows, options = [], []
    drawn = [f'<path class="chip" d="{stage_path([chip.outline_um], 2.0)}"/>']
    for letter, words, x_um, y_um in corners:
        chip_x_um, chip_y_um = _chip_xy(chip, x_um, y_um)
        rows.append(
            f"<tr><td><b>{letter}</b> {words}</td><td>{number(chip_x_um, 1)}</td>"
            f"<td>{number(chip_y_um, 1)}</td><td>{number(x_um, 1)}</td>"
            f"<td>{number(y_um, 1)}</td></tr>"
        )
        options.append(
            f'<option value="{chip_x_um:.3f},{chip_y_um:.3f}">{letter}, {words}</option>'
        )
        x, y = svg_xy((x_um, y_um))
        drawn.append(f'<text x="{fixed(x, 1)}" y="{fixed(y, 1)}" class="corner">{letter}</text>')
    extent = extent_of(chip.outline_um)
    picture = ""
    if extent is not None:
        size_um = max(extent.width_um, extent.height_um)
        axes = chip_axes((chip.origin_x_um, chip.origin_y_um), chip.rotation_deg, 0.3 * size_um)
        picture = (
            f'<svg class=frame viewBox="{extent.grown(0.12 * size_um).view_box()}" role=img '
            f'aria-label="The chip frame: origin at corner A, x towards B" '
            f'style="--u:{size_um * 1.24 / 220:.4g}">{"".join(drawn)}{axes}</svg>'
        )

    def reference(number_: int, chosen: int) -> str:
        picked = "".join(
            o.replace("<option", "<option selected", 1) if i == chosen else o
            for i, o in enumerate(options)
        )
        return (
            f"<fieldset><legend>Reference {number_}</legend><select name=ref{number_} "
            f'aria-label="Which corner">{picked}</select>'
            f"<label>x<input name=x{number_} type=number step=any>µm</label>"
            f"<label>y<input name=y{number_} type=number step=any>µm</label></fieldset>"
        )

    return (
        "<section id=again><h2>Finding a flake again</h2><div class=pair><div>"
        f"<p class=lead>Chip coordinates belong to the chip, not to this stage: the origin is "
        f"corner A of the outline, x runs along the lower edge towards B, y is 90° anticlockwise "
        f"from it. On this stage the chip frame was turned by {number(chip.rotation_deg, 2)}° "
        f"(anticlockwise), with its origin at {number(chip.origin_x_um, 1)}, "
        f"{number(chip.origin_y_um, 1)}{NNBSP}µm; outline confidence "
        f"{_percent(chip.confidence)}.</p><div class=frames>{picture}"
        "<div class=scroll><table class=plain><thead><tr><th scope=col>Corner</th>"
        "<th scope=col>Chip x</th><th scope=col>y</th><th scope=col>Stage x</th>"
        f"<th scope=col>y{NNBSP}µm</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "</div></div>"
        '<form class="elsewhere js-only" id=elsewhere><h3>On another stage</h3>'
        "<p>Drive the other microscope to two corners, type in what its stage reads there, and "
        "every flake's position on that stage appears below and in the table.</p>"
        f"{reference(1, 0)}{reference(2, 1)}"
        "<label class=tick><input type=checkbox name=down>its y axis points down</label>"
        "<output id=there>Two corners are enough.</output></form></div></section>"
    )


def _pairs(title: str, values: dict[str, str]) -> str:
    rows = "".join(f"<tr><td>{_e(k)}</td><td>{_e(v)}</td></tr>" for k, v in values.items())
    return f"<div><h3>{title}</h3><table class=plain><tbody>{rows}</tbody></table></div>"


def _record(content: ReportContent) -> str:
    started = content.started
    run = {
        "Name": started.name,
        "Run": started.run_id,
        "Started (UTC)": started.started_at_utc,
        "Sessions": str(content.sessions),
        "Instrument time": _time_text(content.instrument_time_s),
    }
    if content.calibration is not None:
        fitted = content.calibration
        run["Oxide, effective"] = f"{number(fitted.oxide_nm, 1)} nm"
        run["Gain R, G, B"] = ", ".join(number(g, 3) for g in fitted.gain_rgb)
        run["Calibration"] = f"{fitted.source}, confidence {_percent(fitted.confidence)}"
    files = "".join(
        f'<li><a href="{_e(_relative(d.path))}">{_e(d.label)}</a> {_e(d.note)}</li>'
        for d in content.downloads
    )
    listed = f"<div><h3>Files beside this page</h3><ul>{files}</ul></div>" if files else ""
    return (
        "<section id=record><h2>Record</h2><div class=trio>"
        f"{_pairs('Run', run)}{_pairs('Instrument', started.instrument)}"
        f"{_pairs('Versions', started.versions)}{listed}</div>"
        "<details><summary>Settings, as written</summary>"
        f"<pre>{_e(started.settings_toml)}</pre></details></section>"
    )


def _json_number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _data(content: ReportContent, card_ids: set[int]) -> str:
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
        }
        for e in _ordered(content.entries)
    ]
    text = json.dumps(rows, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _boost_filter(content: ReportContent) -> str:
    """Stretch contrast about the substrate's colour, which stays what it is."""
    medians = [
        np.median(shot.pixels.reshape(-1, 3), axis=0)
        for pair in content.crops[:40]
        for shot in (pair.scan, pair.revisit)
        if shot is not None and shot.pixels.size
    ]
    grey = np.median(medians, axis=0) / 255.0 if medians else np.full(3, 0.5)
    functions = "".join(
        f'<feFunc{name} type="linear" slope="{BOOST}" intercept="{float(v) * (1 - BOOST):.4f}"/>'
        for name, v in zip("RGB", grey, strict=True)
    )
    return (
        '<svg width="0" height="0" aria-hidden=true class=defs><filter id="boosted" '
        f'color-interpolation-filters="sRGB"><feComponentTransfer>{functions}'
        "</feComponentTransfer></filter></svg>"
    )


def _asset(name: str) -> str:
    return resources.files("controller.search").joinpath(name).read_text(encoding="utf-8")


def report_html(content: ReportContent) -> str:
    """The whole page."""
    shown = _ordered(content.entries)[:CARDS]
    card_ids = {e.entry_id for e in shown}
    extent = _map_extent(content)
    sections = (
        _filters(content),
        _map(content, extent, card_ids),
        _gallery(content, shown),
        _table(content, card_ids),
        _truth(content.truth),
        _focus(content, extent),
        _time(content),
        _not_done(content),
        _find_again(content),
        _record(content),
    )
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    parts = {
        "title": _e(f"{content.started.name}: flake search"),
        "css": _asset("report.css"),
        "script": script,
        "script_hash": f"sha256-{digest}",
        "data": _data(content, card_ids),
        "truth_link": '<a href="#truth">Truth</a>' if content.truth else "",
        "boost": _boost_filter(content),
        "header": _header(content),
        "sections": "".join(sections),
    }
    # One pass: what was put in is never looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _asset("report_template.html"))


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page to `path`, whole or not at all; the folder must exist."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(report_html(content), encoding="utf-8", newline="\n")
    partial.replace(path)
