"""How the run went: truth, focus, time, what was left out, the chip's frame, the record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from controller.messages import ChipFound, FocusMeasured, Point
from controller.search.outline import ChipFrame
from controller.search.report.content import ReportContent, SurfaceGrid, TruthRow
from controller.search.report.figures import (
    NNBSP,
    Extent,
    band_step,
    bands_uri,
    chip_axes,
    extent_of,
    fixed,
    heat_css,
    heat_gradient_css,
    number,
    rectangles_path,
    stage_path,
    svg_xy,
)
from controller.search.report.words import (
    counted,
    esc,
    layer_class,
    material_name,
    percent,
    relative_path,
    time_text,
)

PHASE_NAMES = {
    "overview": "Overview",
    "focus": "Focus",
    "scan": "Scan",
    "revisit": "Revisits",
    "report": "Report",
}


def truth_section(rows: Sequence[TruthRow]) -> str:
    """Found against present; empty for a real sample."""
    if not rows:
        return ""
    body = []
    for row in sorted(rows, key=lambda r: (r.material, r.layers)):
        recall = row.found / row.present if row.present else math.nan
        claimed = row.found + row.false
        precision = row.found / claimed if claimed else math.nan
        meters = "".join(
            f"<td class=meter><i><b style='width:{100 * v if math.isfinite(v) else 0:.1f}%'></b>"
            f"</i>{percent(v)}</td>"
            for v in (recall, precision)
        )
        body.append(
            f"<tr><td>{esc(material_name(row.material))}</td><td><span class='lay "
            f"{layer_class(row.layers)}'>{row.layers}L</span></td><td>{row.present}</td>"
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
    if points:  # the surface is one objective's; others focus elsewhere
        objective = Counter(p.objective for p in points).most_common(1)[0][0]
        points = [p for p in points if p.objective == objective]
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
    unit_um = max(extent.width_um / 520, extent.height_um / 340)
    parts, clip = [], ""
    if content.chip is not None:
        outline = stage_path([content.chip.outline_um], 2.0)
        parts.append(f'<clipPath id="onchip"><path d="{outline}"/></clipPath>')
        clip = ' clip-path="url(#onchip)"'
    if surface is not None and surface.focus_z_um.size >= 4:
        left, right = float(surface.x_um[0]), float(surface.x_um[-1])
        bottom, top = float(surface.y_um[0]), float(surface.y_um[-1])
        x, y = svg_xy((left, top))
        uri = bands_uri(np.asarray(surface.focus_z_um, dtype=np.float64), low_um, step_um, bands)
        parts.append(
            f'<image href="{uri}" x="{fixed(x, 1)}" y="{fixed(y, 1)}" width="'
            f'{fixed(right - left, 1)}" height="{fixed(top - bottom, 1)}" '
            f'preserveAspectRatio="none"{clip}/>'
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
        tip = f"<title>{esc(said)}</title>"
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
        f"{counted(len(sure), 'point')} in focus"
        + (f", {failed} abstained (crosses)" if failed else "")
        + ("" if surface is None else f"; surface: {esc(surface.model)}")
        + (f", rms residual {number(rms, 2)}{NNBSP}µm" if residuals else "")
    )
    digits = max(0, -math.floor(math.log10(step_um) + 1e-9))
    return (
        f'<figure class=small><svg viewBox="{extent.view_box()}" role=img '
        f'aria-label="Focus over the chip, {esc(number(min(heights), 1))} to '
        f'{esc(number(max(heights), 1))} µm">{"".join(parts)}</svg>'
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
        f"{counted(len(odd), 'tile')} framed in red did not look like what the detector knows."
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


def focus_section(content: ReportContent, extent: Extent | None) -> str:
    """The focus surface and the sharpness of the tiles, side by side."""
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
        text = f"{name} {time_text(duration_s)}"
        inside = f"<span>{esc(text)}</span>" if share > 13 else ""
        out.append(f'<i class={css} style="width:{share:.2f}%" title="{esc(text)}">{inside}</i>')
    return f"<div class=stack>{''.join(out)}</div>"


def _legend(title: str, parts: Sequence[tuple[str, float, str]]) -> str:
    items = "".join(
        f"<span><i class={css}></i>{esc(name)} {time_text(duration_s)}</span>"
        for name, duration_s, css in parts
    )
    return f"<p class=legend><b>{title}</b>{items}</p>"


def time_section(content: ReportContent) -> str:
    """Where the time went, and how near the scan came to its bound."""
    rows, legends = [], []
    phases = [p for p in content.phases if p.duration_s > 0.0 and math.isfinite(p.duration_s)]
    if phases:
        total_s = sum(p.duration_s for p in phases)
        parts = [
            (PHASE_NAMES.get(p.phase, p.phase), p.duration_s, f"p{i % 5}")
            for i, p in enumerate(phases)
        ]
        rows.append(("Whole run", _segments(parts, total_s), time_text(total_s)))
        legends.append(_legend("Run", parts))
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
        rows.append(("Scan, bound", _segments(bound, longest_s), time_text(done.scan_bound_s)))
        over_s = max(0.0, done.scan_s - done.scan_bound_s)
        actual = [("Bound", min(done.scan_s, done.scan_bound_s), "b3"), ("Rest", over_s, "b4")]
        rows.append(("Scan, actual", _segments(actual, longest_s), time_text(done.scan_s)))
        legends.append(_legend("Scan", [*bound, actual[1]]))
        lead = (
            f"<p class=lead>The scan took {time_text(done.scan_s)}. Moving, settling and exposing "
            f"alone take {time_text(done.scan_bound_s)}: "
            f"<b>{percent(done.scan_bound_s / done.scan_s)}</b> of the time was the instrument's "
            "own. The rest is autofocus and waiting.</p>"
        )
    if not rows:
        return "<section id=time><h2>Time</h2><p class=empty>No times were recorded.</p></section>"
    body = "".join(
        f"<div class=timerow><span>{name}</span>{bar}<span>{total}</span></div>"
        for name, bar, total in rows
    )
    return (
        f"<section id=time><h2>Time</h2>{lead}<div class=times>{body}</div>"
        f"{''.join(legends)}</section>"
    )


def not_done_section(content: ReportContent) -> str:
    """What was skipped, refused or lost, and why."""
    items = [(s.what, s.reason) for s in content.skipped]
    items += [(f"Command refused: {c.command}", c.reason) for c in content.refused]
    for gap in content.frames_missing:
        name = f"frame {gap.first}" if gap.first == gap.last else f"frames {gap.first}–{gap.last}"
        items.append((f"Missing {name}", gap.reason))
    if not items:
        inner = (
            "<p class=empty>Nothing was skipped, no command was refused, no frame is missing.</p>"
        )
    else:
        rows = "".join(f"<tr><td>{esc(w)}</td><td>{esc(r)}</td></tr>" for w, r in items[:200])
        more = f"<p class=hint>and {len(items) - 200} more.</p>" if len(items) > 200 else ""
        inner = (
            "<div class=scroll><table class='plain first'><thead><tr><th scope=col>What</th>"
            f"<th scope=col>Why</th></tr></thead><tbody>{rows}</tbody></table></div>{more}"
        )
    return f"<section id=notdone><h2>Not done</h2>{inner}</section>"


def _pairs(title: str, values: dict[str, str]) -> str:
    rows = "".join(f"<tr><td>{esc(k)}</td><td>{esc(v)}</td></tr>" for k, v in values.items())
    return f"<div><h3>{title}</h3><table class=plain><tbody>{rows}</tbody></table></div>"


def record_section(content: ReportContent) -> str:
    """What the run ran on."""
    started = content.started
    run = {
        "Name": started.name,
        "Run": started.run_id,
        "Started (UTC)": started.started_at_utc,
        "Sessions": str(content.sessions),
        "Instrument time": time_text(content.instrument_time_s),
    }
    if content.calibration is not None:
        fitted = content.calibration
        run["Oxide, effective"] = f"{number(fitted.oxide_nm, 1)} nm"
        run["Gain R, G, B"] = ", ".join(number(g, 3) for g in fitted.gain_rgb)
        run["Calibration"] = f"{fitted.source}, confidence {percent(fitted.confidence)}"
    files = "".join(
        f'<li><a href="{esc(relative_path(d.path))}">{esc(d.label)}</a> {esc(d.note)}</li>'
        for d in content.downloads
    )
    listed = f"<div><h3>Files beside this page</h3><ul>{files}</ul></div>" if files else ""
    return (
        "<section id=record><h2>Record</h2><div class=trio>"
        f"{_pairs('Run', run)}{_pairs('Instrument', started.instrument)}"
        f"{_pairs('Versions', started.versions)}{listed}</div>"
        "<details><summary>Settings, as written</summary>"
        f"<pre>{esc(started.settings_toml)}</pre></details></section>"
    )


def _corners(chip: ChipFound) -> list[tuple[str, str, Point, Point]]:
    """The outline's corners: letter, words, chip um, stage um; from the origin anticlockwise."""
    frame = ChipFrame(chip.origin_x_um, chip.origin_y_um, chip.rotation_deg)
    spots = [(p, frame.to_chip(*p)) for p in chip.outline_um]
    if not spots:
        return []
    out = []
    for letter, words, sign_x, sign_y in (
        ("A", "lower left", -1, -1),
        ("B", "lower right", 1, -1),
        ("C", "upper right", 1, 1),
        ("D", "upper left", -1, 1),
    ):
        best = max(spots, key=lambda s: sign_x * s[1][0] + sign_y * s[1][1])
        out.append((letter, words, best[1], best[0]))
    return out


def find_again_section(content: ReportContent) -> str:
    """The chip's frame, and a form that carries it over to another stage."""
    chip = content.chip
    if chip is None:
        return (
            "<section id=again><h2>Finding a flake again</h2><p class=lead>No outline was found, "
            "so there are no corners to refer to. The stage coordinates hold for this stage as "
            "long as the chip has not been moved.</p></section>"
        )
    corners = _corners(chip)
    rows, options = [], []
    drawn = [f'<path class="chip" d="{stage_path([chip.outline_um], 2.0)}"/>']
    for letter, words, (chip_x_um, chip_y_um), (x_um, y_um) in corners:
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
            f'style="--u:{size_um * 1.24 / 176:.4g}">{"".join(drawn)}{axes}</svg>'
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
        f"{percent(chip.confidence)}.</p><div class=frames>{picture}"
        "<div class=scroll><table class='plain nums'><thead><tr><th scope=col>Corner</th>"
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
