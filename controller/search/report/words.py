"""How the report says things: numbers with units and sensible digits, names, safe text."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from datetime import datetime

from controller.search.report.figures import DASH, NNBSP

MATERIAL_NAMES = {
    "graphene": "Graphene",
    "hbn": "hBN",
    "mos2": "MoS\N{SUBSCRIPT TWO}",
    "mose2": "MoSe\N{SUBSCRIPT TWO}",
    "ws2": "WS\N{SUBSCRIPT TWO}",
    "wse2": "WSe\N{SUBSCRIPT TWO}",
    "wte2": "WTe\N{SUBSCRIPT TWO}",
}


def esc(text: object) -> str:
    """Anything from outside, safe between tags and inside quotes."""
    return html.escape(str(text), quote=True)


def material_name(key: str) -> str:
    """As the field writes it; a key nobody listed stays as it is."""
    return MATERIAL_NAMES.get(key, key)


def layer_class(layers: int) -> str:
    """Five colours: 1, 2, 3, 4, and 5 or more."""
    return f"l{min(max(layers, 1), 5)}"


def layers_text(layers: int) -> str:
    """The field's own words up to three."""
    names = {1: "monolayer", 2: "bilayer", 3: "trilayer"}
    return names.get(layers, f"{layers} layers")


def counted(count: int, noun: str) -> str:
    """One tile, two tiles."""
    return f"{count}{NNBSP}{noun}{'' if count == 1 else 's'}"


def area_text(area_um2: float) -> str:
    """Three significant digits; mm² from a hundredth of one."""
    if not math.isfinite(area_um2):
        return DASH
    value, unit = (area_um2 / 1e6, "mm²") if area_um2 >= 1e4 else (area_um2, "µm²")
    if value == 0.0:
        return f"0{NNBSP}{unit}"
    digits = max(0, 2 - math.floor(math.log10(value)))
    text = f"{round(value, digits):.{digits}f}" if digits else f"{round(value):d}"
    return f"{text}{NNBSP}{unit}"


def time_text(duration_s: float) -> str:
    """Tenths of a second below a minute, minutes and seconds below an hour."""
    if not math.isfinite(duration_s):
        return DASH
    if duration_s < 59.95:
        return f"{duration_s:.1f}{NNBSP}s"
    seconds = round(duration_s)
    hours, minutes = seconds // 3_600, seconds // 60 % 60
    if hours:
        return f"{hours}{NNBSP}h {minutes:02d}{NNBSP}min"
    return f"{minutes}{NNBSP}min {seconds % 60:02d}{NNBSP}s"


def when_text(iso: str) -> str:
    """As people write it; what is not ISO 8601 stays as it came."""
    try:
        return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return iso


def percent(ratio: float) -> str:
    """Never "100 %" for what is not certain."""
    if not math.isfinite(ratio):
        return DASH
    if 0.995 <= ratio < 1.0:
        return f">{NNBSP}99{NNBSP}%"
    if 0.0 < ratio < 0.005:
        return f"<{NNBSP}1{NNBSP}%"
    return f"{100 * ratio:.0f}{NNBSP}%"


def detector_name(key: str) -> str:
    """A detector as a heading."""
    return {"physics": "Physics", "flakenet": "FlakeNet"}.get(key, key)


def terms(rows: Sequence[tuple[str, str]]) -> str:
    """A list of names and values, both already safe."""
    return "<dl class=terms>" + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows) + "</dl>"


def relative_path(path: str) -> str:
    """Refuse anything that would make the page depend on more than its own folder."""
    if re.match(r"^(?:[A-Za-z][A-Za-z0-9+.-]*:|/|\\)", path):
        msg = f"a download lies beside the report; its path must be relative, got {path!r}"
        raise ValueError(msg)
    return path
