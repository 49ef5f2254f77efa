"""Where the detector that did not lead reads a terrace otherwise: on cards, in the table, alone."""

from __future__ import annotations

from controller.messages import CatalogueEntry, SecondReading
from controller.search.report.content import LoneTerrace, ReportContent
from controller.search.report.figures import DASH, NNBSP, number
from controller.search.report.shots import CROPS_MAX_BYTES, picture
from controller.search.report.words import (
    area_text,
    counted,
    detector_name,
    esc,
    layer_class,
    layers_text,
    material_name,
    percent,
    terms,
)

SECOND_COLUMN = (
    "differs",
    "2nd detector",
    "What the detector says that did not lead, where it was asked",
)


def is_asked(content: ReportContent) -> bool:
    """Whether a second detector was asked about anything."""
    return any(entry.second is not None for entry in content.entries)


def differs(entry: CatalogueEntry) -> bool:
    """Whether two detectors were asked and disagree."""
    return entry.second is not None and bool(entry.second.differs)


def _said_by_the_second(second: SecondReading) -> str:
    """One reading in words."""
    if second.reason:
        return esc(second.reason)
    if not second.layers:
        return "sees no flake here"
    more = 100.0 * (second.area_ratio - 1.0)
    apart = f" ({'+' if more > 0 else '−'}{abs(more):.0f}{NNBSP}%)" if abs(more) >= 0.5 else ""
    return (
        f"{esc(material_name(second.material))}, {layers_text(second.layers)}, "
        f"{percent(second.probability)}; {area_text(second.area_um2)}{apart}"
    )


def both_readings(entry: CatalogueEntry) -> list[tuple[str, str]]:
    """Rows of a card: what either detector says, or that they agree."""
    second = entry.second
    if second is None:
        return []
    names = detector_name(second.leader), detector_name(second.detector)
    if not second.differs and not second.reason:
        return [("Detectors", f"{names[0]} and {names[1]} agree")]
    first = (
        f"{esc(material_name(entry.material))}, {layers_text(entry.layers)}, "
        f"{percent(entry.probability)}; {area_text(entry.area_um2)}"
    )
    said = _said_by_the_second(second)
    if second.differs:
        said = f"<b class=apart>{said}</b>"
    return [(names[0], first), (names[1], said)]


def second_cell(entry: CatalogueEntry) -> str:
    """The table's cell."""
    second = entry.second
    if second is None:
        return ""
    if second.reason:
        return DASH
    if not second.layers:
        return f"{detector_name(second.detector)}: none"
    said = f"{detector_name(second.detector)}: {second.layers}L, {number(second.area_um2, 0)} µm²"
    return said if second.differs else "agrees"


def second_hint(content: ReportContent) -> str:
    """How many were read twice, and what the marks mean."""
    asked = [e for e in content.entries if e.second is not None]
    if not asked:
        return ""
    differ = sum(differs(e) for e in asked)
    return (
        f" After the run {counted(len(asked), 'terrace')} were read a second time by the detector "
        f"that had not led there: {differ} {'is' if differ == 1 else 'are'} read differently (≠: "
        "another layer number, an area apart by more than 30 %, or nothing there at all); the "
        "dashed outline is the second reading."
    )


def lone_section(content: ReportContent) -> str:
    """What only the second detector saw, on the tiles that it was shown."""
    if not content.alone:
        return ""
    max_bytes = CROPS_MAX_BYTES // max(1, len(content.alone) + 2 * len(content.crops))
    cards = "".join(_lone_card(lone, max_bytes) for lone in content.alone)
    return (
        "<section id=lone><h2>Seen by the second detector alone</h2>"
        f"<div class=cards>{cards}</div>"
        "<p class=hint>Not in the catalogue: on the tiles of the cards above, the detector that "
        "had not led there sees these, and the one that led does not.</p></section>"
    )


def _lone_card(lone: LoneTerrace, max_bytes: int) -> str:
    piece = lone.piece
    title = f"{material_name(piece.material)}, {layers_text(piece.layers)}"
    share = dict(piece.layer_probabilities).get(piece.layers, 0.0)
    rings = (piece.outline_um, *piece.holes_um)
    shot = ""
    if lone.crop is not None:
        alt = f"{title}, seen by {detector_name(lone.detector)} alone"
        shot = picture(lone.crop, "scan", alt, (), piece.layers, rings, max_bytes)
    rows = [
        (detector_name(lone.detector), f"{layers_text(piece.layers)}, {percent(share)}"),
        (detector_name(lone.leader), "<b class=apart>sees no flake here</b>"),
        ("Area", area_text(piece.area_um2)),
        ("Flake score", number(piece.score, 2)),
    ]
    if lone.chip_um is not None:
        x_um, y_um = lone.chip_um
        rows.append(("Chip", f"{number(x_um, 1)}, {number(y_um, 1)}{NNBSP}µm"))
    x_um, y_um = lone.stage_um
    rows.append(("Stage", f"{number(x_um, 1)}, {number(y_um, 1)}{NNBSP}µm"))
    return (
        f'<article class="card un n1" aria-label="{esc(title)}"><h3>'
        f'<span class="lay {layer_class(piece.layers)}">{piece.layers}L</span>'
        f"<span class=name>{esc(material_name(piece.material))}</span>"
        f"<span class=differ>≠</span><span class=prob>{percent(share)}</span></h3>"
        f"<div class=body><div class=shots>{shot}</div>{terms(rows)}</div></article>"
    )
