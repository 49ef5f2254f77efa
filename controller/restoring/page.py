"""A session as one self-contained page: the last frame with raw one key away, moments, curves.

It is whole without scripts; the script only exchanges raw and computed in the large picture. The
page refers to nothing outside itself, and a content security policy, with the script's own hash,
keeps it so.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, Final

import numpy.typing as npt

from controller.restoring.log import Point, WatchLog
from controller.restoring.stage import LiveView
from controller.restoring.strip import png, tile
from controller.search.report.figures import nice_length

_LARGE_PX: Final = 512
_MOMENTS: Final = 5
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1100, 190, 62, 16, 34, 30
_MOST_REASONS: Final = 4


def page(
    title: str,
    lead: str,
    log: WatchLog,
    figures: Sequence[tuple[str, str]],
    files: Mapping[str, str],
) -> str:
    """The page, HTML. figures: (name, value) in order; files: name -> what it holds."""
    views = log.moments.spread(_MOMENTS)
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": html.escape(title),
        "lead": html.escape(lead),
        "now": _now(views[-1], figures) if views else _facts(figures),
        "notes": _notes(log),
        "moments": _moments(views, log.began_s),
        "curves": _curves(log.curve.points),
        "footer": _footer(files),
        "script": script,
        "script_hash": f"sha256-{digest}",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return (resources.files("controller.restoring") / name).read_text(encoding="utf-8")


def _now(view: LiveView, figures: Sequence[tuple[str, str]]) -> str:
    """The last view, raw one key away, and the figures beside it."""
    raw = _picture(view.frame.pixels, view, _LARGE_PX)
    restored, number = view.restored, view.frame.number
    if restored is None:
        screen = (
            f'<div class="screen"><img src="{raw}" alt="raw frame {number}">'
            f'<div class="label"><span>raw, frame {number}</span></div></div>'
        )
    else:
        computed = _picture(restored.image, view, _LARGE_PX)
        made = html.escape(restored.method)
        screen = (
            '<div class="screen" id="screen">'
            f'<div style="position: relative"><img src="{computed}" alt="computed from frame '
            f'{number}"><img class="raw" src="{raw}" alt="raw frame {number}"></div>'
            f'<div class="label"><span class="of-computed"><span class="computed-mark">computed'
            f"</span>: {made}, from frame {number}</span>"
            f'<span class="of-raw">raw, frame {number}</span>'
            '<button type="button" id="raw" class="js-only" aria-pressed="false">raw '
            "<kbd>R</kbd></button></div></div>"
        )
    return f'<div class="now">{screen}{_facts(figures)}</div>'


def _facts(figures: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in figures
    )
    return f"<dl>{rows}</dl>"


def _notes(log: WatchLog) -> str:
    return "".join(
        f'<p class="note">{count} &times; {html.escape(reason)}</p>'
        for reason, count in log.reasons.most_common(_MOST_REASONS)
    )


def _moments(views: Sequence[LiveView], began_s: float) -> str:
    if not views:
        return '<p class="soft">No frame was viewed.</p>'
    figures = []
    for view in views:
        raw = _picture(view.frame.pixels, view)
        at = f"frame {view.frame.number}, {view.frame.exposed_until_s - began_s:.2f} s"
        pictures = f'<img src="{raw}" alt="raw, {at}">'
        restored = view.restored
        said = f"Above: <b>raw</b>, {at}."
        if restored is not None:
            pictures += f'<img src="{_picture(restored.image, view)}" alt="computed, {at}">'
            fallback = ' <span class="fallback">fallback</span>' if restored.is_fallback else ""
            said += (
                f" Below: <b>computed</b>, {html.escape(restored.method)}{fallback}, "
                f"{restored.effective_frames:.1f} effective frames."
            )
        elif view.unable:
            said += f' <span class="fallback">Nothing computed: {html.escape(view.unable)}</span>'
        figures.append(f"<figure>{pictures}<figcaption>{said}</figcaption></figure>")
    return (
        "<h2>Before and after</h2>"
        '<p class="soft">The middle of the frame, pixel by pixel; raw and computed have each their '
        f'own scale of grey.</p><div class="moments">{"".join(figures)}</div>'
    )


def _picture(pixels: npt.NDArray[Any], view: LiveView, side_px: int = 0) -> str:
    """A PNG data URI: JPEG would smooth what noise is left."""
    pixel_nm = view.frame.pixel_size_nm
    data = png(tile(pixels, pixel_nm, side_px) if side_px else tile(pixels, pixel_nm))
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


# --- curves ----------------------------------------------------------------------------------


def _curves(points: Sequence[Point]) -> str:
    if len(points) < 2:
        return ""
    effective = _curve("Effective frames", points, lambda point: point.effective_frames)
    latency = ""
    if max(point.latency_s for point in points) > 1e-6:  # on some clocks computing costs nothing
        latency = _curve(
            "Latency from exposure's end to view, ms", points, lambda point: 1e3 * point.latency_s
        )
    marked = (
        " Marks: frames that another filter made." if any(p.is_fallback for p in points) else ""
    )
    return (
        f'<h2>Over time</h2><p class="soft">Seconds of the session.{marked}</p>{effective}{latency}'
    )


def _curve(title: str, points: Sequence[Point], value_of: Callable[[Point], float]) -> str:
    values = [value_of(point) for point in points]
    top = max(*values, 1e-9) * 1.08
    ends_s = max(points[-1].at_s, 1e-9)

    def at(point: Point, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(point.at_s / ends_s, 0.0), 1.0)
        return x, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top

    places = [at(point, value) for point, value in zip(points, values, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(
        f'<circle class="fallback" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        for point, (x, y) in zip(points, places, strict=True)
        if point.is_fallback
    )
    ticks = ""
    step = nice_length(top / 2.5)
    for count in range(math.floor(top / step) + 1):
        y = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * count * step / top
        ticks += (
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{count * step:g}</text>'
        )
    step = nice_length(ends_s / 4.0)
    for count in range(math.floor(ends_s / step) + 1):
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * count * step / ends_s
        ticks += (
            f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{count * step:g}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
        f'<text class="title" x="{_LEFT - 46}" y="20">{title}</text>{ticks}'
        f'<polyline class="curve" points="{line}"/>{marks}</svg>'
    )


def _footer(files: Mapping[str, str]) -> str:
    named = "; ".join(
        f"<b>{html.escape(name)}</b> {html.escape(what)}" for name, what in files.items()
    )
    return f"Beside this page: {named}."
