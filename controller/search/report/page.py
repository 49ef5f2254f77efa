"""The page itself: the verdict, the warnings, the order of the sections, the file.

Everything the page shows is rendered here, into plain HTML and SVG, so that it can be read without
scripts, printed, and opened in ten years; the script only filters, sorts, zooms and selects. The
page refers to nothing outside itself but the exports that lie beside it: pictures are data URIs,
and a content security policy, with the script's own hash, keeps it so.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import shapely

from controller.messages import ChipFound
from controller.search.report.content import ReportContent
from controller.search.report.course import (
    find_again_section,
    focus_section,
    not_done_section,
    record_section,
    time_section,
    truth_section,
)
from controller.search.report.figures import DASH, NNBSP
from controller.search.report.flakes import (
    entries_json,
    filters_form,
    gallery_section,
    map_extent,
    map_section,
    table_section,
    with_cards,
)
from controller.search.report.second import lone_section
from controller.search.report.words import area_text, counted, esc, percent, time_text, when_text

BOOST = 2.4  # how much the enhanced view stretches contrast about the substrate's colour


NAVIGATION = (
    ("map", "Map"),
    ("flakes", "Flakes"),
    ("lone", "Seen by one"),
    ("table", "Table"),
    ("truth", "Truth"),
    ("focus", "Focus"),
    ("time", "Time"),
    ("notdone", "Not done"),
    ("again", "Find again"),
    ("record", "Record"),
)
OUTCOME_NAMES = {"complete": "Complete", "stopped": "Stopped", "failed": "Failed"}


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


def _verdict(content: ReportContent) -> str:
    """The run in one sentence."""
    flakes = len({e.flake_id for e in content.entries if e.rank > 0})
    searched_um2 = _searched_um2(content)
    if searched_um2 <= 0.0 and not content.entries:
        return f"Nothing was scanned in {time_text(content.instrument_time_s)} of instrument time."
    again = [e.revisit for e in content.entries if e.revisit is not None]
    text = f"{counted(flakes, 'wanted flake') if flakes else 'No wanted flakes'}"
    if searched_um2 > 0.0:
        text += f" on {area_text(searched_um2)}"
    text += f" in {time_text(content.instrument_time_s)} of instrument time"
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
    if content.entries and (content.calibration is None or content.calibration.confidence <= 0.0):
        out.append(
            "Uncalibrated: colours were compared with the nominal optics, so layer numbers may be "
            "off by one on an oxide that differs from the settings."
        )
    odd = [t for t in content.tile_quality if not t.in_distribution]
    if odd:
        reasons = Counter(t.reason or "no reason given" for t in odd)
        said = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        out.append(
            f"{counted(len(odd), 'tile')} of {len(content.tile_quality)} did not look like what "
            f"the detector knows: {said}. Flakes there may be missed or misnamed."
        )
    if content.finished is not None and content.finished.frames_unaccounted:
        out.append(f"{counted(content.finished.frames_unaccounted, 'frame')} unaccounted for.")
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
            f"on {counted(flakes, 'flake')}; {len(content.entries)} terraces in all",
        ),
        _figure(f"<span class=lays>{chips or DASH}</span>", "By layer number"),
    ]
    searched_um2, chip_um2 = _searched_um2(content), _chip_um2(content.chip)
    share = f"{percent(min(1.0, searched_um2 / chip_um2))} of the chip" if chip_um2 else ""
    out.append(_figure(area_text(searched_um2), "Searched", share))
    done = content.finished
    if done is not None and done.scan_s > 0.0 and done.tiles:
        rate = f"{60 * done.tiles / done.scan_s:.0f}{NNBSP}tiles/min"
        out.append(_figure(rate, "Scan rate", f"{counted(done.tiles, 'tile')}"))
        out.append(
            _figure(
                percent(done.scan_bound_s / done.scan_s),
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
    facts = [content.started.name, when_text(content.started.started_at_utc), device]
    line = " · ".join(esc(f) for f in facts if f)
    asked = f"<p class=asked>Asked for: {esc(content.wanted)}</p>" if content.wanted else ""
    warnings = [*_own_warnings(content), *content.warnings]
    box = ""
    if warnings:
        items = "".join(f"<li>{esc(w)}</li>" for w in warnings)
        box = f'<aside class=warn aria-label="Warnings"><ul>{items}</ul></aside>'
    return (
        f"<header class=top><p class=over><span class='badge {outcome}'>{badge}</span>{line}</p>"
        f"<h1>{esc(_verdict(content))}</h1>{asked}{box}{_key_figures(content)}</header>"
    )


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
    return resources.files("controller.search.report").joinpath(name).read_text(encoding="utf-8")


def report_html(content: ReportContent) -> str:
    """The whole page."""
    shown = with_cards(content)
    card_ids = {e.entry_id for e in shown}
    extent = map_extent(content)
    sections = [
        filters_form(content),
        map_section(content, extent, card_ids),
        gallery_section(content, shown),
        lone_section(content),
        table_section(content, card_ids),
        truth_section(content.truth),
        focus_section(content, extent),
        time_section(content),
        not_done_section(content),
        find_again_section(content),
        record_section(content),
    ]
    body = "".join(sections)
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    parts = {
        "title": esc(f"{content.started.name}: flake search"),
        "css": _asset("page.css"),
        "script": script,
        "script_hash": f"sha256-{digest}",
        "data": entries_json(content, card_ids),
        "links": "".join(
            f'<a href="#{name}">{text}</a>'
            for name, text in NAVIGATION
            if f"<section id={name}>" in body
        ),
        "boost": _boost_filter(content),
        "header": _header(content),
        "sections": body,
    }
    # One pass: what was put in is never looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _asset("page.html"))


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page to `path`, whole or not at all; the folder must exist."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(report_html(content), encoding="utf-8", newline="\n")
    partial.replace(path)
