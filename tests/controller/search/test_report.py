"""The report on a drawn chip: complete, closed, escaped, small, and alive in a real browser."""

import base64
import math
import re
import shutil
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from controller.messages import (
    CalibrationFitted,
    CatalogueEntry,
    ChipFound,
    CommandRefused,
    FocusMeasured,
    FramesMissing,
    Piece,
    PlannedTile,
    Revisited,
    RunFinished,
    RunStarted,
    SecondReading,
    Skipped,
)
from controller.search.report import (
    Crop,
    Download,
    EntryCrops,
    Ladder,
    LoneTerrace,
    MapImage,
    PhaseTime,
    ReportContent,
    ScanBound,
    SurfaceGrid,
    TileQuality,
    TruthRow,
    report_html,
    write_report,
)
from controller.search.report.figures import nice_length, number, picture_uri, svg_xy
from controller.search.report.flakes import CARDS
from controller.search.report.words import area_text, percent, time_text

SUBSTRATE = np.array([137.0, 108.0, 150.0])
ORIGIN = (-2950.0, -2380.0)
ROTATION_DEG = 2.4
CHIP_W, CHIP_H = 6100.0, 4900.0
FIELD_W, FIELD_H = 737.0, 461.0
SLOPES = {
    "graphene": ((-0.128, -0.133, -0.091), 0.028),
    "mos2": ((-0.46, -0.30, -0.17), 0.18),
    "wse2": ((-0.46, -0.50, -0.25), 0.20),
}
NM_PER_LAYER = {"graphene": 0.335, "mos2": 0.65, "wse2": 0.65}


def to_stage(x_um, y_um):
    a = math.radians(ROTATION_DEG)
    return (
        ORIGIN[0] + x_um * math.cos(a) - y_um * math.sin(a),
        ORIGIN[1] + x_um * math.sin(a) + y_um * math.cos(a),
    )


def contrast(material, layers):
    slopes, bend = SLOPES[material]
    return tuple(float(s * layers * math.exp(-bend * layers)) for s in slopes)


def flake_ring(rng, centre, size_um):
    """A crystal: edges turn by multiples of 30 degrees, sides of very different lengths."""
    angles = np.sort(rng.choice(np.arange(0, 360, 30), size=rng.integers(4, 8), replace=False))
    turn = rng.uniform(0, 60)
    stretch = rng.uniform(0.45, 1.0)
    out = []
    for angle in np.radians(angles + turn):
        r = size_um * rng.uniform(0.75, 1.1)
        out.append((centre[0] + r * np.cos(angle), centre[1] + r * stretch * np.sin(angle)))
    return tuple((float(x), float(y)) for x, y in out)


def ring_area(ring):
    x, y = np.array(ring).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def paint(shapes, centre, um_per_px, w, h, rng, noise=2.2):
    """Chip ground with flakes, bulk pieces and noise, seen at one magnification."""
    picture = np.tile(SUBSTRATE, (h, w, 1))
    for ring, rgb in shapes:
        points = np.array(
            [
                ((x - centre[0]) / um_per_px + w / 2, (centre[1] - y) / um_per_px + h / 2)
                for x, y in ring
            ]
        )
        if points.max() < -50 or points.min() > max(w, h) + 50:
            continue
        cv2.fillPoly(
            picture,
            [np.round(points * 16).astype(np.int32)],
            (SUBSTRATE * (1 + np.array(rgb))).tolist(),
            cv2.LINE_AA,
            4,
        )
    yy, xx = np.mgrid[0:h, 0:w]
    light = 1.02 - 0.07 * (((xx / w - 0.5) ** 2) + ((yy / h - 0.5) ** 2))
    picture = picture * light[..., None] + rng.normal(0, noise, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def sample(count=46, revisits=12, with_pictures=True, seed=5):
    rng = np.random.default_rng(seed)
    outline = tuple(
        to_stage(x, y)
        for x, y in (
            (0, 0),
            (CHIP_W, 0),
            (CHIP_W, CHIP_H - 700),
            (CHIP_W - 500, CHIP_H),
            (0, CHIP_H),
        )
    )
    entries, crops, shapes = [], [], []
    for _ in range(40):  # bulk pieces and residue, which make a chip look like one
        centre = to_stage(rng.uniform(100, CHIP_W - 100), rng.uniform(100, CHIP_H - 100))
        shade = rng.choice([0.55, 0.9, -0.5, 0.3])
        shapes.append(
            (flake_ring(rng, centre, rng.uniform(15, 120)), (shade, shade * 0.9, shade * 0.2))
        )
    for i in range(count):
        material = ["graphene", "graphene", "graphene", "mos2", "wse2"][i % 5]
        layers = int(rng.choice([1, 1, 2, 2, 3, 4, 6]))
        chip_x, chip_y = rng.uniform(200, CHIP_W - 300), rng.uniform(200, CHIP_H - 300)
        x, y = to_stage(chip_x, chip_y)
        ring = flake_ring(rng, (x, y), rng.uniform(9, 32))
        true = contrast(material, layers)
        seen = tuple(c + float(rng.normal(0, 0.006)) for c in true)
        shapes.append((ring, true))
        p = float(rng.uniform(0.72, 0.999))
        is_wanted = layers <= 4 and i % 9 != 8
        revisit = None
        if is_wanted and sum(e.revisit is not None for e in entries) < revisits:
            found = i != 7
            revisit = Revisited(
                entry_id=i + 1,
                shot_index=i,
                centred_error_um=float(abs(rng.normal(0, 1.2))),
                x_um=x + 1.6 + float(rng.normal(0, 0.3)),
                y_um=y - 1.1 + float(rng.normal(0, 0.3)),
                area_um2=ring_area(ring) * 1.02,
                material=material,
                layers=layers,
                probability=min(0.999, p + 0.05),
                contrast_rgb=tuple(c + float(rng.normal(0, 0.003)) for c in true),
                sharpness=0.9,
                found=found,
                reason="" if found else "nothing of that contrast within 20 um",
            )
        entries.append(
            CatalogueEntry(
                entry_id=i + 1,
                flake_id=100 + i - (1 if i % 11 == 10 else 0),
                rank=0,
                material=material,
                layers=layers,
                probability=p,
                layer_probabilities=tuple(
                    x
                    for x in ((layers, p), (layers + 1, (1 - p) * 0.7), (layers - 1, (1 - p) * 0.3))
                    if x[0] > 0
                ),
                thickness_nm=layers * NM_PER_LAYER[material],
                area_um2=ring_area(ring),
                aspect_ratio=float(rng.uniform(1, 3)),
                outline_um=ring,
                holes_um=(),
                stage_x_um=x,
                stage_y_um=y,
                chip_x_um=chip_x,
                chip_y_um=chip_y,
                contrast_rgb=seen,
                off_ladder=float(abs(rng.normal(0, 0.01))),
                score=float(rng.uniform(0.5, 1)),
                sharpness=float(rng.uniform(0.6, 1.1)),
                tiles=(i,),
                revisit=revisit,
            )
        )
        if not is_wanted:
            entries[-1] = replace(entries[-1], rank=-1)
    ranked, rank = [], 0
    for e in sorted(entries, key=lambda e: (e.revisit is None, -e.area_um2)):
        rank += e.rank == 0
        ranked.append(replace(e, rank=rank if e.rank == 0 else 0))
    entries = sorted(ranked, key=lambda e: e.entry_id)
    tiles = []
    for row, cy in enumerate(np.arange(100, CHIP_H + 200, FIELD_H * 0.94)):
        line = [to_stage(cx, cy) for cx in np.arange(150, CHIP_W + 300, FIELD_W * 0.94)]
        for at in line if row % 2 == 0 else reversed(line):
            tiles.append(PlannedTile(len(tiles), *at))
    mosaic = None
    if with_pictures:
        um_per_px, w, h = 3.6, 1880, 1560
        left, top = -3330.0, 2950.0
        centre = (left + w * um_per_px / 2, top - h * um_per_px / 2)
        picture = paint(shapes, centre, um_per_px, w, h, rng, 1.6)
        on_chip = np.zeros((h, w), np.uint8)
        chip_px = np.array([((x - left) / um_per_px, (top - y) / um_per_px) for x, y in outline])
        cv2.fillPoly(on_chip, [chip_px.astype(np.int32)], 1)
        picture[on_chip == 0] = (34, 33, 36)
        seen_px = np.zeros((h, w), np.uint8)
        for t in tiles:
            corner = [
                (
                    (t.x_um + sx * FIELD_W / 2 - left) / um_per_px,
                    (top - t.y_um + sy * FIELD_H / 2) / um_per_px,
                )
                for sx, sy in ((-1, -1), (1, 1))
            ]
            (x0, y0), (x1, y1) = np.round(corner).astype(int)
            seen_px[max(y0, 0) : y1, max(x0, 0) : x1] = 1
            picture[max(y0, 0) : y1, max(x0, 0) : x1] = np.clip(
                picture[max(y0, 0) : y1, max(x0, 0) : x1] * rng.uniform(0.985, 1.015), 0, 255
            )
        picture[seen_px == 0] = 0
        mosaic = MapImage(picture, left + um_per_px / 2, top - um_per_px / 2, um_per_px)
        for e in entries:
            at = (e.stage_x_um, e.stage_y_um)
            again = None
            if e.revisit is not None and e.revisit.found:
                # there everything lies a little elsewhere, as the revisit measured
                there = (e.revisit.x_um + 1.0, e.revisit.y_um - 0.5)
                eye = (e.stage_x_um + 1.0, e.stage_y_um - 0.5)
                again = Crop(paint(shapes, eye, 0.154, 520, 520, rng), 154.0, *there, "50x")
            crops.append(
                EntryCrops(
                    e.entry_id,
                    Crop(paint(shapes, at, 0.384, 260, 260, rng), 384.0, *at, "20x"),
                    again,
                )
            )

    def z_of(x, y):
        return 12.0 + 0.0031 * x - 0.0012 * y + 4e-7 * (x * x + y * y)

    points = []
    for k, (cx, cy) in enumerate(
        [
            (400, 400),
            (5700, 400),
            (5500, 4300),
            (400, 4500),
            (3000, 2500),
            (1500, 2400),
            (4500, 2500),
            (3000, 900),
            (3000, 4200),
        ]
    ):
        x, y = to_stage(cx, cy)
        points.append(
            FocusMeasured(
                x,
                y,
                z_of(x, y) + float(rng.normal(0, 0.15)),
                0.1,
                k != 6,
                "" if k != 6 else "empty field",
                "20x",
                21,
                3.0 * k,
                "seed" if k < 5 else "track",
            )
        )
    gx, gy = np.linspace(-3200, 3200, 33), np.linspace(-2500, 2800, 29)
    gz = z_of(*np.meshgrid(gx, gy))
    layer_axis = np.linspace(0, 12, 49)
    return ReportContent(
        started=RunStarted(
            "2025-06-03T09-14-22_a41c",
            "chip-A17 graphene",
            '[run]\nname = "chip-A17"\n\n[scan]\nobjective = "20x"\n',
            {
                "scopeloop": "0.1.0",
                "numpy": "2.4.6",
                "detector": "contrast-ladder 1",
                "python": "3.11.2",
            },
            {
                "name": "Simulated optical microscope",
                "camera": "1920x1200, 8 bit, rolling shutter",
                "stage": "5 mm/s, 20 mm/s²",
            },
            "2025-06-03T09:14:22Z",
            0,
        ),
        finished=RunFinished(
            "complete", "", 161.4, 98.2, 92.6, len(tiles), len(tiles) + 260, 1, 0, len(points)
        ),
        sessions=1,
        instrument_time_s=161.4,
        wanted="graphene, MoS₂, WSe₂; 1–4 layers; at least 100 µm²",
        entries=tuple(entries),
        crops=tuple(crops),
        chip=ChipFound(outline, *ORIGIN, ROTATION_DEG, 0.97),
        mosaic=mosaic,
        calibration=CalibrationFitted(91.3, (0.98, 1.01, 0.96), 0.83, "fitted on 412 regions"),
        ladders=tuple(
            Ladder(m, layer_axis, np.array([contrast(m, n) for n in layer_axis])) for m in SLOPES
        ),
        tiles=tuple(tiles),
        field_w_um=FIELD_W,
        field_h_um=FIELD_H,
        tile_quality=tuple(
            TileQuality(
                t.index,
                float(rng.uniform(0.5, 1.2)),
                t.index % 47 != 46,
                "" if t.index % 47 != 46 else "saturated",
            )
            for t in tiles
        ),
        focus_points=tuple(points),
        focus_surface=SurfaceGrid(gx, gy, gz, "quadratic"),
        phases=(
            PhaseTime("overview", 14.2),
            PhaseTime("focus", 21.9),
            PhaseTime("scan", 98.2),
            PhaseTime("revisit", 27.1),
        ),
        scan_bound=ScanBound(46.1, 35.2, 11.3),
        skipped=(
            Skipped("revisit of #7", "nothing of that contrast within 20 um"),
            Skipped("autofocus at tile 61", "empty field: no texture above noise"),
        ),
        refused=(
            CommandRefused(
                "focus to -412.0 um", "below the envelope's -300.0 um; nothing was sent"
            ),
        ),
        frames_missing=(FramesMissing(204, 204, "counter jumped"),),
        warnings=(),
        truth=(
            TruthRow("graphene", 1, 9, 9, 0),
            TruthRow("graphene", 2, 11, 10, 1),
            TruthRow("mos2", 1, 4, 4, 0),
            TruthRow("wse2", 3, 0, 0, 1),
        ),
        downloads=(
            Download("CSV", "catalogue.csv", "one row a terrace"),
            Download("COCO", "catalogue.coco.json", "masks as RLE"),
            Download("GeoJSON", "catalogue.geojson", "outlines, chip frame"),
            Download("GDS", "catalogue.gds", "outlines, one layer a layer number"),
        ),
    )


class Page(HTMLParser):
    """Checks nesting and collects what matters."""

    VOID = frozenset({"meta", "img", "input", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.stack, self.problems, self.tags = [], [], []
        self.cards, self.marks, self.rows, self.ids, self.text = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        classes = (attrs.get("class") or "").split()
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "article":
            self.cards.append(int(attrs["data-id"]))
        if tag == "tr" and "data-id" in attrs:
            self.rows.append(int(attrs["data-id"]))
        if tag == "a" and "mark" in classes:
            self.marks.append(int(attrs["data-id"]))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.stack or self.stack[-1] != tag:
            self.problems.append((self.getpos(), tag, self.stack[-3:]))
        else:
            self.stack.pop()

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def content():
    return sample()


@pytest.fixture(scope="module")
def text(content):
    return report_html(content)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def empty(content):
    finished = replace(
        content.finished,
        outcome="failed",
        reason="the stage did not answer",
        tiles=0,
        scan_s=0.0,
        scan_bound_s=0.0,
        frames_received=0,
        autofocus_runs=0,
    )
    return ReportContent(
        started=content.started,
        finished=finished,
        sessions=1,
        instrument_time_s=3.4,
        wanted="graphene",
        entries=(),
    )


def test_every_tag_is_closed_and_every_id_is_unique(page):
    assert page.problems == []
    assert page.stack == []
    assert len(page.ids) == len(set(page.ids))


def test_the_page_needs_nothing_from_outside(text, page):
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    for tag, attrs in page.tags:
        for name in ("src", "href", "data", "srcset", "action", "poster"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:image/", "catalogue")), (tag, value[:60])
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_every_entry_is_on_the_map_in_the_table_and_on_a_card(content, page):
    ids = {e.entry_id for e in content.entries}
    assert set(page.rows) == set(page.marks) == set(page.cards) == ids
    ranks = {e.entry_id: e.rank for e in content.entries}
    order = [ranks[i] for i in page.cards if ranks[i] > 0]
    assert order == sorted(order)
    assert page.cards[0] == next(e.entry_id for e in content.entries if e.rank == 1)


def test_every_link_inside_the_page_leads_somewhere(page):
    for tag, attrs in page.tags:
        href = attrs.get("href") or ""
        if tag == "a" and href.startswith("#"):
            assert href[1:] in page.ids, href


def test_entries_without_pictures_stand_in_the_table_and_links_still_work(content):
    page = Page(report_html(replace(content, crops=content.crops[:9])))
    assert len(page.cards) == 9
    assert len(page.rows) == len(content.entries)
    best = replace(content.entries[0], rank=1)
    pair = tuple(replace(best, entry_id=i) for i in (1, 2))  # one with a card, one without
    page = Page(report_html(replace(content, entries=pair, crops=content.crops[:1])))
    assert page.cards == [1]
    assert ("a", {"href": "#r2", "data-id": "2"}) in page.tags
    test_every_link_inside_the_page_leads_somewhere(page)


def test_the_verdict_counts(content, text):
    wanted = [e for e in content.entries if e.rank > 0]
    flakes = len({e.flake_id for e in wanted})
    assert flakes < len(wanted)  # terraces share flakes: the count is of flakes
    title = re.search(r"<h1>(.*?)</h1>", text)[1].replace("\u202f", " ")
    chip_mm2 = (CHIP_W * CHIP_H - 500 * 700 / 2) / 1e6
    searched_mm2 = float(re.search(r"on ([\d.]+) mm²", title)[1])
    assert searched_mm2 == pytest.approx(chip_mm2, rel=0.01)  # overlaps once, ground beside never
    assert title.startswith(f"{flakes} wanted flakes on ")
    assert title.endswith(
        "in 2 min 41 s of instrument time; 12 revisited, 1 of them not found again."
    )


def test_tiles_not_yet_judged_do_not_count_as_searched(content):
    half = content.tile_quality[: len(content.tiles) // 2]
    title = re.search(r"on ([\d.]+)", report_html(replace(content, tile_quality=half, crops=())))[1]
    assert 12.0 < float(title) < 17.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finished": None}, "The run has no end"),
        ({"chip": None}, "No chip outline was found"),
        ({"calibration": None}, "Uncalibrated"),
        ({"warnings": ("lamp drifted by 4 %",)}, "lamp drifted by 4 %"),
        ({}, "2\u202ftiles of 120 did not look like what the detector knows: saturated (2)"),
    ],
)
def test_what_is_wrong_is_said_at_the_top(content, change, said):
    lean = replace(content, crops=(), mosaic=None)
    top = report_html(replace(lean, **change)).split("<section")[0]
    assert said in top


def test_text_from_outside_is_escaped(content):
    evil = "<b>&\"'</script><script>alert(1)</script>"
    entry = replace(content.entries[0], material=evil)
    crop = replace(content.crops[0].scan, objective=evil)
    hostile = replace(
        content,
        entries=(entry, *content.entries[1:]),
        crops=(EntryCrops(entry.entry_id, crop, None), *content.crops[1:]),
        wanted=evil,
        warnings=(evil,),
        skipped=(Skipped(evil, evil),),
        refused=(CommandRefused(evil, evil),),
        started=replace(
            content.started,
            name=evil,
            run_id=evil,
            started_at_utc=evil,
            settings_toml=evil,
            versions={evil: evil},
            instrument={"name": evil},
        ),
        finished=replace(content.finished, outcome="stopped", reason=evil),
        truth=(TruthRow(evil, 1, 1, 1, 0),),
        downloads=(Download(evil, "catalogue.csv", evil),),
        tile_quality=tuple(
            replace(q, in_distribution=False, reason=evil) for q in content.tile_quality
        ),
        focus_points=tuple(
            replace(p, is_confident=False, reason=evil, purpose="seed")
            for p in content.focus_points
        ),
        focus_surface=replace(content.focus_surface, model=evil),
        phases=(PhaseTime(evil, 3.0),),
        frames_missing=(FramesMissing(1, 2, evil),),
        calibration=replace(content.calibration, source=evil),
    )
    text = report_html(hostile)
    assert "<b>&" not in text
    assert "<script>alert" not in text
    page = Page(text)
    assert page.problems == []
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert any(evil in t for t in page.text)


def test_braces_from_outside_are_not_filled_in(content):
    text = report_html(replace(content, crops=(), mosaic=None, wanted="{{css}} {{nosuch}}"))
    assert "Asked for: {{css}} {{nosuch}}" in text


@pytest.mark.parametrize(
    "path", ["http://x.org/a.csv", "javascript:alert(1)", "/etc/passwd", "\\\\host\\a", "C:\\a.csv"]
)
def test_a_download_outside_the_folder_is_refused(content, path):
    with pytest.raises(ValueError, match="must be relative"):
        report_html(replace(content, crops=(), downloads=(Download("CSV", path, ""),)))


def test_a_run_that_found_nothing_still_makes_a_page(content, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, empty(content))
    page = Page(path.read_text(encoding="utf-8"))
    said = " ".join(page.text)
    assert page.problems == []
    assert "Nothing was scanned in 3.4\u202fs of instrument time." in said
    assert "The run failed: the stage did not answer." in said
    assert "nan" not in said.lower().split()
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written is left
    test_every_link_inside_the_page_leads_somewhere(page)


def test_an_empty_chip_has_a_map_but_no_cards(content):
    page = Page(report_html(replace(content, entries=(), crops=())))
    assert page.problems == []
    assert page.cards == page.rows == page.marks == []
    assert "mapsvg" in page.ids
    assert any("No wanted flakes on 29.7\u202fmm²" in t for t in page.text)


def test_numbers_that_are_not_numbers_do_no_harm(content):
    odd = replace(
        content.entries[0],
        area_um2=math.nan,
        probability=math.nan,
        stage_x_um=math.nan,
        aspect_ratio=math.inf,
        contrast_rgb=(math.nan, 0.1, math.inf),
        layer_probabilities=((1, math.nan),),
        outline_um=(),
    )
    focus_z_um = content.focus_surface.focus_z_um.copy()
    focus_z_um[:5] = np.nan
    lost = replace(content.focus_points[0], focus_z_um=math.nan, is_confident=False)
    page = Page(
        report_html(
            replace(
                content,
                entries=(odd,),
                crops=(),
                focus_surface=replace(content.focus_surface, focus_z_um=focus_z_um),
                focus_points=(lost, *content.focus_points[1:]),
            )
        )
    )
    assert page.problems == []
    for tag, attrs in page.tags:
        for name in ("d", "cx", "cy", "x", "y", "viewbox", "style", "width", "height"):
            value = attrs.get(name) or ""
            assert "nan" not in value, (tag, name, value)
            assert "inf" not in value, (tag, name, value)


def test_marks_and_outlines_lie_where_the_stage_says(content, text):
    entry = next(e for e in content.entries if e.rank == 1)
    mark = re.search(rf'<a class="mark[^"]*" data-id="{entry.entry_id}".*?</a>', text)[0]
    at = [float(re.search(rf'{name}="([-\d.]+)"', mark)[1]) for name in ("cx", "cy")]
    assert at == pytest.approx([entry.stage_x_um, -entry.stage_y_um], abs=0.06)
    card = re.search(rf'<article [^>]*id="f{entry.entry_id}".*?</article>', text)[0]
    drawn = re.search(r'<path d="M([^"]*)Z"', card)[1]
    points = np.array([[float(v) for v in p.split()] for p in drawn.split("L")], np.float32)
    for x, y in entry.outline_um:  # the crop is 260 px wide, 384 nm a pixel
        at = ((x - entry.stage_x_um) / 0.384 + 130, (entry.stage_y_um - y) / 0.384 + 130)
        assert abs(cv2.pointPolygonTest(points, at, measureDist=True)) < 0.5


def test_the_drawn_outline_lies_on_the_flake_in_the_picture(content):
    pair = next(c for c in content.crops if c.revisit is not None)
    entry = next(e for e in content.entries if e.entry_id == pair.entry_id)
    text = report_html(replace(content, entries=(entry,), crops=(pair,), mosaic=None))
    outlines = re.findall(r'<path class=halo d="M([^"]*)Z"', text)
    for crop, drawn in zip((pair.scan, pair.revisit), outlines, strict=True):
        points = np.array([[float(v) for v in p.split()] for p in drawn.split("L")])
        inside = np.zeros(crop.pixels.shape[:2], np.uint8)
        cv2.fillPoly(inside, [points.astype(np.int32)], 1)
        core = cv2.erode(inside, np.ones((5, 5))) > 0
        around = cv2.dilate(inside, np.ones((25, 25))) - cv2.dilate(inside, np.ones((9, 9))) > 0
        green = crop.pixels[..., 1].astype(float)
        expected = SUBSTRATE[1] * (1 + entry.contrast_rgb[1])
        assert np.percentile(green[core], [5, 95]) == pytest.approx(expected, rel=0.12)
        assert np.percentile(green[around], [5, 95]) == pytest.approx(SUBSTRATE[1], rel=0.12)


def test_a_revisits_own_outline_is_preferred(content):
    pair = next(c for c in content.crops if c.revisit is not None)
    x, y = pair.revisit.stage_x_um, pair.revisit.stage_y_um
    square = ((x, y), (x + 1.54, y), (x + 1.54, y + 1.54), (x, y + 1.54))
    entry = next(e for e in content.entries if e.entry_id == pair.entry_id)
    own = replace(pair, revisit=replace(pair.revisit, outline_um=square))
    text = report_html(replace(content, entries=(entry,), crops=(own,), mosaic=None))
    assert 'd="M260 260L270 260L270 250L260 250Z"' in text


def test_many_entries_are_fast_and_small():
    many = sample(count=500, with_pictures=False)
    start_s = time.perf_counter()
    text = report_html(many)
    assert time.perf_counter() - start_s < 5.0
    assert len(text) < 1_500_000
    page = Page(text)
    assert len(page.rows) == len(page.marks) == 500
    assert len(page.cards) == CARDS


def test_a_hundred_flakes_with_noisy_pictures_stay_below_fifteen_megabytes(content):
    rng = np.random.default_rng(0)
    noisy = rng.integers(108, 148, (420, 420, 3)).astype(np.uint8)
    ground = rng.integers(118, 138, (2800, 2800, 3)).astype(np.uint8)
    crop = Crop(noisy, 154.0, 0.0, 0.0, "50x")
    entries = tuple(replace(content.entries[0], entry_id=i + 1, rank=i + 1) for i in range(100))
    crops = tuple(EntryCrops(i + 1, crop, crop) for i in range(60))
    mosaic = MapImage(ground, 0.0, 0.0, 2.2)
    text = report_html(replace(content, entries=entries, crops=crops, mosaic=mosaic))
    assert len(text) < 15_000_000


def test_a_colour_stays_that_colour():
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 200
    data = base64.b64decode(picture_uri(red, 100, 90).split(",")[1])
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert back.shape == (20, 30, 3)
    assert back[10, 15].tolist() == pytest.approx([0, 0, 200], abs=6)  # imdecode says B, G, R


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint16)])
def test_a_picture_of_another_kind_is_refused(pixels):
    with pytest.raises(ValueError, match=r"\(h, w, 3\) uint8"):
        picture_uri(pixels, 100, 90)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (area_text(1243.7), "1244 µm²"),
        (area_text(62.34), "62.3 µm²"),
        (area_text(31_240_000.0), "31.2 mm²"),
        (area_text(0.0), "0 µm²"),
        (area_text(math.nan), "–"),
        (time_text(161.4), "2 min 41 s"),
        (time_text(59.94), "59.9 s"),
        (time_text(59.97), "1 min 00 s"),
        (time_text(7384.0), "2 h 03 min"),
        (percent(0.998), "> 99 %"),
        (percent(1.0), "100 %"),
        (percent(0.002), "< 1 %"),
        (percent(0.0), "0 %"),
        (number(-0.04, 1), "0.0"),
        (number(-12.34, 1), "−12.3"),
        (nice_length(37.0), 20.0),
        (nice_length(1000.0), 1000.0),
        (nice_length(0.6), 0.5),
        (svg_xy((1.0, 2.0)), (1.0, -2.0)),
    ],
)
def test_words(got, expected):
    assert (got.replace("\u202f", " ") if isinstance(got, str) else got) == expected


def twice_read(content):
    """The same run, with a second detector that differs about two of the best and sees one more."""
    first, second, third, *_ = sorted(
        (e for e in content.entries if e.rank > 0), key=lambda e: e.rank
    )
    x, y = first.stage_x_um, first.stage_y_um
    ring = ((x, y), (x + 9.0, y), (x + 9.0, y + 9.0), (x, y + 9.0))
    apart = SecondReading(
        "flakenet", "physics", 0, "", ("layers", "area"), first.material, 7, 0.66, 81.0, 0.4, ring
    )
    said = {
        first.entry_id: apart,
        second.entry_id: SecondReading("flakenet", "physics", 0, differs=("existence",)),
        third.entry_id: replace(apart, differs=()),
    }
    entries = tuple(replace(e, second=said.get(e.entry_id)) for e in content.entries)
    piece = Piece(ring, (), "mos2", 3, ((3, 0.7),), 1.9, (-0.1,) * 3, 0.0, 0.5, 81.0, False)
    crop = next(c.scan for c in content.crops if c.entry_id == first.entry_id)
    crop = replace(crop, outline_um=ring)
    lone = LoneTerrace("flakenet", "physics", piece, (x, y), (12.3, 45.6), crop)
    return replace(content, entries=entries, alone=(lone,)), (first, second, third)


def test_where_two_detectors_differ_the_card_says_both(content):
    read, (first, second, third) = twice_read(content)
    text = report_html(read)
    cards = [
        re.search(rf'<article [^>]*id="f{e.entry_id}".*?</article>', text)[0]
        for e in (first, second, third)
    ]
    assert "<dt>Physics</dt>" in cards[0]
    assert "7 layers, 66" in cards[0]
    assert "−60" in cards[0]
    assert cards[0].count("class=other") == 1
    assert "sees no flake here" in cards[1]
    assert "class=other" not in cards[1]
    assert "Physics and FlakeNet agree" in cards[2]
    assert "class=other" not in cards[2]
    assert [card.count("class=differ ") for card in cards] == [1, 1, 0]
    assert "3\u202fterraces were read a second time" in text
    assert "2 are read differently" in text
    row = re.search(rf'<tr id="r{first.entry_id}".*?</tr>', text)[0]
    assert "FlakeNet: 7L, 81 µm²" in row


def test_what_only_the_second_detector_sees_has_a_section(content):
    read, _ = twice_read(content)
    section = re.search(r"<section id=lone>.*?</section>", report_html(read))[0]
    assert section.count("<article") == 1
    assert "<dt>Physics</dt><dd><b class=apart>sees no flake here</b>" in section
    assert "12.3, 45.6" in section
    assert section.count("class=other") == 1


def test_without_a_second_detector_the_page_does_not_speak_of_it(text):
    for word in ("second detector", "2nd detector", "detectors differ", "class=differ", "id=lone"):
        assert word not in text


BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next((path for path in BROWSERS if path), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def browse(path, profile):
    """The page's DOM after its scripts ran."""
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync dump-dom"
    options += " disable-background-networking disable-component-update"
    command = [CHROMIUM, *(f"--{option}" for option in options.split())]
    command += [f"--user-data-dir={profile}", "--window-size=1280,900"]
    command += ["--virtual-time-budget=2000", path.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=40, check=True)
    return done.stdout.decode("utf-8")


ACT = """
const seen = (name, value) => document.body.setAttribute('data-test-' + name, value);
const q = (s) => document.querySelector(s);
const all = (s) => [...document.querySelectorAll(s)];
const key = (key) => new KeyboardEvent('keydown', {key, bubbles: true});
const press = (name) => document.body.dispatchEvent(key(name));
const picked = () => q('#inspector .card').dataset.id + '/' + q('#cards .card.sel').dataset.id;
const click = { bubbles: true, cancelable: true };
seen('first', picked());
q('.mark[data-id="%(id)d"]').dispatchEvent(new MouseEvent('click', click));
seen('clicked', picked());
press('j'); seen('next', picked());
press('ArrowLeft'); seen('back', picked());
press('Enter'); seen('zoomed', q('#zoom').open + '/' + all('#zoom img').length);
q('#zoom').close();
const form = q('#filters');
form.elements.material.value = 'mos2'; form.dispatchEvent(new Event('input'));
seen('cards', all('#cards .card:not([hidden])').length);
seen('marks', all('.mark:not([hidden])').length);
form.elements.material.value = ''; form.dispatchEvent(new Event('input'));
q('.all th button[data-sort=area]').click();
seen('least', q('#rows tr').dataset.id);
const f = q('#elsewhere').elements;
[f.x1.value, f.y1.value, f.x2.value, f.y2.value] = [1000, 2000, 1000, 2000 + %(width)f];
q('#elsewhere').dispatchEvent(new Event('input'));
seen('there', all('#r%(id)d .there').map((c) => c.textContent).join(' '));
const before = q('#mapsvg').getAttribute('viewBox');
q('[data-zoom=in]').click();
seen('zoom', before !== q('#mapsvg').getAttribute('viewBox'));
q('#theme').click(); seen('theme', document.documentElement.dataset.theme);
"""
WATCH = (
    "<script>window.onerror = (message) => "
    "document.documentElement.setAttribute('data-test-error', message);</script>"
)


@needs_chromium
def test_in_a_browser_marks_keys_filters_and_the_other_stage_work(content, text, tmp_path):
    ranked = sorted((e for e in content.entries if e.rank > 0), key=lambda e: e.rank)
    target = ranked[4]
    act = ACT % {"id": target.entry_id, "width": CHIP_W}
    # the test's own script is not in the page's policy: without it here, as written below
    opened = re.sub(r"<meta http-equiv=[^>]*>", WATCH, text)
    path = tmp_path / "act.html"
    path.write_text(opened.replace("</body>", f"<script>{act}</script></body>"), encoding="utf-8")
    seen = dict(re.findall(r'data-test-(\w+)="([^"]*)"', browse(path, tmp_path / "profile")))
    first, second = ranked[0].entry_id, ranked[5].entry_id
    assert "error" not in seen
    assert seen["first"] == f"{first}/{first}"
    assert seen["clicked"] == f"{target.entry_id}/{target.entry_id}"
    assert seen["next"] == f"{second}/{second}"
    assert seen["back"] == seen["clicked"]
    pictures = 1 + (target.revisit is not None and target.revisit.found)
    assert seen["zoomed"] == f"true/{pictures}"
    of_kind = sum(e.material == "mos2" for e in content.entries)
    assert int(seen["cards"]) == int(seen["marks"]) == of_kind
    assert int(seen["least"]) == min(content.entries, key=lambda e: e.area_um2).entry_id
    # corner A at (1000, 2000) and B straight above it: the chip is turned by 90 degrees there
    there = [float(v) for v in seen["there"].split()]
    assert there == pytest.approx([1000 - target.chip_y_um, 2000 + target.chip_x_um], abs=0.3)
    assert seen["zoom"] == "true"
    assert seen["theme"] in ("light", "dark")


@needs_chromium
def test_in_a_browser_the_filter_leaves_what_detectors_differ_about(content, tmp_path):
    read, (first, second, _) = twice_read(content)
    act = (
        "const form = document.querySelector('#filters'); form.elements.differs.checked = true;"
        "form.dispatchEvent(new Event('input')); document.body.setAttribute('data-test-left',"
        "[...document.querySelectorAll('#cards .card:not([hidden])')].map((c) => c.dataset.id));"
    )
    opened = re.sub(r"<meta http-equiv=[^>]*>", WATCH, report_html(read))
    path = tmp_path / "differ.html"
    path.write_text(opened.replace("</body>", f"<script>{act}</script></body>"), encoding="utf-8")
    seen = dict(re.findall(r'data-test-(\w+)="([^"]*)"', browse(path, tmp_path / "profile")))
    assert seen == {"left": f"{first.entry_id},{second.entry_id}"}


@needs_chromium
def test_in_a_browser_the_page_as_written_runs_under_its_own_policy(content, tmp_path):
    for name, what in (("report", content), ("empty", empty(content))):
        path = tmp_path / f"{name}.html"
        write_report(path, what)
        assert 'data-ready="1"' in browse(path, tmp_path / "profile")
