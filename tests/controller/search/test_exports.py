"""Exports: every file read back, in the chip's own frame, with areas and places to 1 nm."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import gdstk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import Point, Polygon, wkt
from shapely.geometry import shape

from controller.geometry import CameraGeometry
from controller.messages import (
    CatalogueEntry,
    ChipFound,
    PlannedTile,
    Revisited,
    ScanPlanned,
    SecondReading,
)
from controller.record.rundir import BadRecord, DiskFull
from controller.search.exports import (
    GDS_LAYERS,
    KeptImage,
    chip_to_stage_um,
    coco,
    csv_text,
    filled,
    gds_layers,
    geojson,
    mask_of,
    rle_of,
    stage_to_chip_um,
    write_exports,
    write_gds,
)
from drivers.api import Objective, Pose

CHIP = ChipFound(
    outline_um=((1000.0, 2000.0), (5924.04, 2868.24), (5229.45, 6807.47), (305.41, 5939.23)),
    origin_x_um=1000.0,
    origin_y_um=2000.0,
    rotation_deg=10.0,
    confidence=0.9,
)
SQUARE = ((2000.0, 3000.0), (2020.0, 3000.0), (2020.0, 3010.0), (2000.0, 3010.0))
HOLES = (
    ((2002.0, 3002.0), (2004.0, 3002.0), (2004.0, 3005.0), (2002.0, 3005.0)),
    ((2010.0, 3002.0), (2010.0, 3008.0), (2012.5, 3008.0)),
)
REVISIT = Revisited(
    entry_id=1,
    shot_index=0,
    centred_error_um=0.4,
    x_um=2010.0,
    y_um=3005.0,
    area_um2=187.0,
    material="graphene",
    layers=1,
    probability=0.99,
    contrast_rgb=(-0.05, -0.07, 0.01),
    sharpness=12.0,
    found=True,
    reason="",
)


def entry(**changes):
    plain = CatalogueEntry(
        entry_id=1,
        flake_id=1,
        rank=1,
        material="graphene",
        layers=1,
        probability=0.97,
        layer_probabilities=((1, 0.97), (2, 0.02)),
        thickness_nm=0.335,
        area_um2=186.5,
        aspect_ratio=2.0,
        outline_um=SQUARE,
        holes_um=HOLES,
        stage_x_um=2010.0,
        stage_y_um=3005.0,
        chip_x_um=0.0,
        chip_y_um=0.0,
        contrast_rgb=(-0.05, -0.07, 0.01),
        off_ladder=0.004,
        score=0.9,
        sharpness=3.5,
        tiles=(3, 4),
        revisit=REVISIT,
    )
    made = replace(plain, **changes)
    ((x, y),) = stage_to_chip_um(CHIP, [(made.stage_x_um, made.stage_y_um)])
    return replace(made, chip_x_um=x, chip_y_um=y)


ALL_SIX = {(row, column) for row in range(2) for column in range(3)}
TRIANGLE = ((1500.0, 2500.0), (1530.123, 2500.5), (1510.0, 2533.3337))
ENTRIES = (
    entry(),
    entry(
        entry_id=2,
        flake_id=2,
        material="mos2",
        layers=3,
        outline_um=TRIANGLE,
        holes_um=(),
        stage_x_um=1513.3743,
        stage_y_um=2511.2779,
        area_um2=Polygon(TRIANGLE).area,
        tiles=(3,),
        revisit=None,
        sharpness=math.nan,
    ),
    entry(entry_id=3, flake_id=3, material="bismuthene", layers=300, revisit=None),
)
SCAN = ScanPlanned(
    (PlannedTile(0, 1500.0, 2500.0), PlannedTile(1, 1900.0, 2500.0)), "20x", 480.0, 300.0, 0.1
)
OBJECTIVE = Objective("20x", 20.0, 0.45, 250.0)


def image(tile, x_um, y_um, **changes):
    plain = KeptImage(
        tile,
        f"frames.ome.zarr/tile/{tile}",
        (300, 480),
        Pose(x_um, y_um, 0.0, "20x"),
        OBJECTIVE,
        CameraGeometry(),
    )
    return replace(plain, **changes)


# --- the chip's frame -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rotation_deg", "stage", "chip"),
    [
        (0.0, (110.0, 220.0), (10.0, 20.0)),
        (90.0, (110.0, 220.0), (20.0, -10.0)),  # the chip's x points along the stage's y
        (-90.0, (110.0, 220.0), (-20.0, 10.0)),
        (180.0, (110.0, 220.0), (-10.0, -20.0)),
        (30.0, (100.0 + math.cos(math.pi / 6), 200.5), (1.0, 0.0)),
    ],
)
def test_the_chip_frame_shifts_then_turns_back(rotation_deg, stage, chip):
    found = ChipFound((), 100.0, 200.0, rotation_deg, 1.0)
    (came,) = stage_to_chip_um(found, [stage])
    assert came == pytest.approx(chip, abs=1e-9)
    (back,) = chip_to_stage_um(found, [came])
    assert back == pytest.approx(stage, abs=1e-9)


def test_the_chip_corner_and_edge_are_the_frame():
    ring = stage_to_chip_um(CHIP, CHIP.outline_um)
    assert ring[0] == (0.0, 0.0)
    assert ring[1] == pytest.approx((5000.0, 0.0), abs=0.01)
    assert ring[3] == pytest.approx((0.0, 4000.0), abs=0.01)


# --- CSV --------------------------------------------------------------------------------------


def test_csv_says_its_units_and_comes_back():
    rows = list(csv.DictReader(io.StringIO(csv_text(ENTRIES, CHIP))))
    assert [row["entry_id"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["area_um2"]) == 186.5
    assert float(rows[0]["chip_x_um"]) == pytest.approx(ENTRIES[0].chip_x_um, abs=1e-6)
    assert rows[0]["tiles"] == "3 4"
    assert (rows[0]["is_revisited"], rows[0]["revisit_area_um2"]) == ("1", "187.0")
    assert (rows[1]["is_revisited"], rows[1]["revisit_area_um2"]) == ("0", "")
    assert rows[1]["sharpness"] == ""  # not measured
    outline = wkt.loads(rows[0]["outline_chip_um"])
    assert outline.area == pytest.approx(186.5, abs=0.05)
    assert len(outline.interiors) == 2
    assert outline.exterior.coords[0] == pytest.approx(
        stage_to_chip_um(CHIP, SQUARE)[0], abs=0.0006
    )


def test_a_thickness_has_its_interval_and_an_unknown_one_an_empty_cell():
    known = entry(thickness_nm=12.0, thickness_interval_nm=(11.0, 13.5))
    first, second = csv.DictReader(io.StringIO(csv_text((known, entry()), CHIP)))
    assert (first["thickness_low_nm"], first["thickness_high_nm"]) == ("11.0", "13.5")
    assert (second["thickness_low_nm"], second["thickness_high_nm"]) == ("", "")


def test_the_second_detector_has_columns_of_its_own():
    apart = SecondReading(
        "flakenet", "physics", 3, "", ("layers", "area"), "graphene", 2, 0.8, 90.0, 0.5, SQUARE
    )
    none = SecondReading("flakenet", "physics", 3, differs=("existence",))
    same = replace(apart, differs=())
    unknown = SecondReading("flakenet", "physics", 3, "unlike any chip")
    entries = [entry(second=one) for one in (apart, none, same, unknown, None)]
    rows = list(csv.DictReader(io.StringIO(csv_text(entries, CHIP))))
    said = [row["detectors_differ"] for row in rows]
    assert said == ["layers area", "existence", "no", "unlike any chip", ""]
    assert [row["other_layers"] for row in rows] == ["2", "", "2", "", ""]
    assert (rows[0]["detector"], rows[0]["other_detector"]) == ("physics", "flakenet")
    assert (rows[0]["other_probability"], rows[0]["other_area_um2"]) == ("0.8", "90.0")
    attributes = coco(entries[:1], [image(3, 2000.0, 3000.0)])["annotations"][0]["attributes"]
    assert (attributes["detectors_differ"], attributes["other_layers"]) == ("layers area", 2)
    (feature,) = (
        f for f in geojson(entries[:1], CHIP)["features"] if f["properties"]["kind"] == "terrace"
    )
    assert feature["properties"]["other_area_um2"] == 90.0


def test_an_empty_catalogue_still_has_a_header():
    full, empty = csv_text(ENTRIES, CHIP), csv_text((), CHIP)
    assert empty == full.splitlines(keepends=True)[0]
    assert "area_um2" in empty


# --- COCO -------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(1, 20), st.randoms(use_true_random=False))
def test_rle_comes_back(h_px, w_px, dice):
    share = dice.random()
    mask = np.array([[dice.random() < share for _ in range(w_px)] for _ in range(h_px)])
    np.testing.assert_array_equal(mask_of(rle_of(mask)), mask)


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        # As pycocotools 2.0.11 encodes them.
        (np.random.default_rng(0).random((5, 7)) > 0.5, "031N0001020O0N31M11O"),
        (np.zeros((2, 3), bool), "6"),
        (np.ones((2, 3), bool), "06"),
    ],
)
def test_rle_is_that_of_the_coco_tools(mask, counts):
    assert rle_of(mask) == {"size": list(mask.shape), "counts": counts}


def test_uncompressed_rle_is_read_too():
    mask = mask_of({"size": [2, 3], "counts": [1, 2, 3]})  # column by column
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


@pytest.mark.parametrize("counts", ["5", [1, 2], [-1, 7]])
def test_a_code_that_does_not_cover_the_image_is_refused(counts):
    with pytest.raises(ValueError, match="the image has 6"):
        mask_of({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize(
    ("ring", "pixels"),
    [
        ([(-0.5, -0.5), (1.5, -0.5), (1.5, 0.5), (-0.5, 0.5)], {(0, 0), (0, 1)}),
        ([(0.6, 0.6), (1.4, 0.6), (1.4, 1.4), (0.6, 1.4)], {(1, 1)}),
        ([(0.6, 0.6), (0.9, 0.6), (0.9, 0.9)], set()),  # between centres
        ([(-9.0, -9.0), (9.0, -9.0), (9.0, 9.0), (-9.0, 9.0)], ALL_SIX),
        ([(5.0, 5.0), (9.0, 5.0), (9.0, 9.0)], set()),  # beyond
        ([(-5.0, 0.0), (-1.0, 3.0), (-1.0, -3.0)], set()),
    ],
)  # fmt: skip
def test_filled_counts_pixel_centres(ring, pixels):
    mask = filled([np.array(ring)], (2, 3))
    assert set(zip(*np.nonzero(mask), strict=True)) == pixels


def test_filled_agrees_with_geometry():
    dice = np.random.default_rng(5)
    for _ in range(20):
        angles = np.sort(dice.uniform(0.0, 2 * math.pi, 12))
        radii = dice.uniform(5.0, 30.0, 12)
        ring = np.stack([24 + radii * np.cos(angles), 20 + radii * np.sin(angles)], axis=1)
        hole = np.array([[22.1, 18.1], [26.3, 18.2], [25.2, 22.7]])
        mask = filled([ring, hole], (40, 50))
        solid = Polygon(ring).symmetric_difference(Polygon(hole))
        for row, column in dice.integers(0, 40, (60, 2)):
            assert mask[row, column] == solid.contains(Point(column, row))


def test_coco_masks_lie_where_the_flake_is_seen():
    # The square's corner lies in the middle of tile 3; tile 4 shows its right half only.
    made = coco(ENTRIES[:2], [image(3, 2000.0, 3000.0), image(4, 2070.0, 3005.0)])
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert [picture["file_name"] for picture in made["images"]] == [
        "frames.ome.zarr/tile/3",
        "frames.ome.zarr/tile/4",
    ]
    assert [(c["name"], c["supercategory"]) for c in made["categories"]] == [
        ("graphene 1L", "graphene"),
        ("mos2 3L", "mos2"),
    ]
    whole, part = made["annotations"]  # the triangle lies outside of both
    mask = mask_of(whole["segmentation"])
    assert mask.shape == (300, 480)
    # Stage (2000, 3000) is pixel (239.5, 149.5), 4 pixels a um, y down.
    assert whole["bbox"] == [240, 110, 80, 40]
    assert not mask[150:].any()
    assert whole["area"] == mask.sum()
    assert mask.sum() / 16 == pytest.approx(186.5, rel=0.01)  # holes left out
    assert not mask[149 - 14, 239 + 12]  # in the first hole, at (2003, 3003.5)
    assert mask[149 - 36, 239 + 12]  # above it
    assert mask_of(part["segmentation"])[:, 0].any()  # cut by the image's border
    assert part["bbox"][0] == 0
    assert part["image_id"] == 2
    assert whole["attributes"]["entry_id"] == 1


def test_coco_knows_how_the_camera_is_mounted():
    turned = image(3, 2010.0, 3005.0, geometry=CameraGeometry(flip_x=True))
    (mirrored,) = coco(ENTRIES[:1], [turned])["annotations"]
    (upright,) = coco(ENTRIES[:1], [image(3, 2010.0, 3005.0)])["annotations"]
    np.testing.assert_array_equal(
        mask_of(mirrored["segmentation"]), mask_of(upright["segmentation"])[:, ::-1]
    )


# --- GeoJSON ----------------------------------------------------------------------------------


def test_geojson_holds_chip_tiles_and_terraces():
    made = json.loads(json.dumps(geojson(ENTRIES, CHIP, SCAN), allow_nan=False))
    kinds = [feature["properties"]["kind"] for feature in made["features"]]
    assert kinds == ["chip", "tile", "tile", "terrace", "terrace", "terrace"]
    first = made["features"][3]
    polygon = shape(first["geometry"])
    assert polygon.is_valid
    assert polygon.area == pytest.approx(186.5, abs=0.05)
    assert polygon.centroid.distance(
        Polygon(stage_to_chip_um(CHIP, SQUARE), [stage_to_chip_um(CHIP, h) for h in HOLES]).centroid
    ) == pytest.approx(0.0, abs=0.001)
    assert first["properties"]["material"] == "graphene"
    assert first["properties"]["layers"] == 1
    assert "sharpness" not in made["features"][4]["properties"]  # not measured
    for feature in made["features"]:
        outer, *holes = feature["geometry"]["coordinates"]
        assert outer[0] == outer[-1]
        assert Polygon(outer).exterior.is_ccw
        assert not any(Polygon(hole).exterior.is_ccw for hole in holes)


def test_geojson_of_a_terrace_without_outline():
    made = geojson([entry(outline_um=())], CHIP)
    assert made["features"][-1]["geometry"] is None


# --- GDS --------------------------------------------------------------------------------------


@pytest.fixture
def gds(tmp_path):
    write_gds(tmp_path / "flakes.gds", ENTRIES, CHIP, SCAN)
    library = gdstk.read_gds(tmp_path / "flakes.gds")
    assert (library.unit, library.precision) == pytest.approx((1e-6, 1e-9))
    (cell,) = library.cells
    return cell


def of_entry(cell, entry_id):
    wanted = f"entry_id={entry_id}"
    return [p for p in cell.polygons if (p.get_gds_property(1) or "").rstrip("\0") == wanted]


def test_gds_layers_are_materials_and_datatypes_are_layers(gds):
    assert {(p.layer, p.datatype) for p in of_entry(gds, 1)} == {(GDS_LAYERS["graphene"], 1)}
    assert {(p.layer, p.datatype) for p in of_entry(gds, 2)} == {(GDS_LAYERS["mos2"], 3)}
    assert {(p.layer, p.datatype) for p in of_entry(gds, 3)} == {(20, 255)}
    assert gds_layers(["zirconene", "bismuthene", "graphene"])["zirconene"] == 21
    tiles = [p for p in gds.polygons if p.layer == GDS_LAYERS["tiles"]]
    assert [p.area() for p in tiles] == pytest.approx([480.0 * 300.0] * 2, rel=1e-5)
    (outline,) = [p for p in gds.polygons if p.layer == GDS_LAYERS["chip"]]
    assert outline.area() == pytest.approx(Polygon(CHIP.outline_um).area, rel=1e-6)
    assert any(p.contain((0.0, 0.0)) for p in gds.polygons if p.layer == GDS_LAYERS["marks"])


@pytest.mark.parametrize(("entry_id", "rings"), [(1, (SQUARE, *HOLES)), (2, (TRIANGLE,))])
def test_gds_areas_and_places_are_right_to_the_grid(gds, entry_id, rings):
    outer, *holes = [stage_to_chip_um(CHIP, ring) for ring in rings]
    wanted = Polygon(outer, holes)
    parts = of_entry(gds, entry_id)
    # Each vertex may be off by half a grid step in x and y.
    length_um = wanted.length
    assert sum(p.area() for p in parts) == pytest.approx(wanted.area, abs=length_um * 0.00071)
    vertices = np.concatenate([p.points for p in parts])
    assert np.abs(vertices * 1000 - np.rint(vertices * 1000)).max() < 1e-3
    for point in (point for ring in (outer, *holes) for point in ring):
        assert np.abs(vertices - point).max(axis=1).min() <= 0.0005 + 1e-9


def test_gds_keeps_holes(gds):
    parts = of_entry(gds, 1)
    inside, hole, second_hole, outside = stage_to_chip_um(
        CHIP, [(2001.0, 3001.0), (2003.0, 3003.5), (2010.5, 3007.0), (1999.9, 3001.0)]
    )
    assert any(p.contain(inside) for p in parts)
    for empty in (hole, second_hole, outside):
        assert not any(p.contain(empty) for p in parts)


def test_gds_labels_say_what_and_where(gds):
    labels = {label.text: label for label in gds.labels}
    label = labels["#1 graphene 1L 97% 186um2"]
    assert label.origin == pytest.approx((ENTRIES[0].chip_x_um, ENTRIES[0].chip_y_um), abs=0.0006)
    assert (label.layer, label.texttype) == (GDS_LAYERS["graphene"], 1)
    assert "tile 1" in labels


def test_a_long_outline_stays_one_polygon(tmp_path):
    angles = np.linspace(0.0, 2 * math.pi, 2_000, endpoint=False)
    ring = tuple((2000 + 50 * math.cos(a), 3000 + 50 * math.sin(a)) for a in angles)
    write_gds(tmp_path / "long.gds", [entry(outline_um=ring, holes_um=())], CHIP)
    (part,) = of_entry(gdstk.read_gds(tmp_path / "long.gds").cells[0], 1)
    assert part.area() == pytest.approx(Polygon(ring).area, rel=1e-4)


# --- all together -----------------------------------------------------------------------------


def test_the_same_catalogue_gives_the_same_bytes(tmp_path):
    images = [image(3, 2000.0, 3000.0)]
    first = write_exports(tmp_path / "a" / "exports", ENTRIES, CHIP, SCAN, images)
    second = write_exports(tmp_path / "b" / "exports", ENTRIES, CHIP, SCAN, images)
    assert [p.name for p in first] == [
        "flakes.csv",
        "flakes.coco.json",
        "flakes.geojson",
        "flakes.gds",
    ]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert sorted(p.name for p in first[0].parent.iterdir()) == sorted(p.name for p in first)
    write_exports(tmp_path / "a" / "exports", (), CHIP, None, ())  # again, and empty


def test_exports_stop_at_a_full_disk(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(28, "No space left on device")

    write_exports(tmp_path, ENTRIES[:1], CHIP, None, ())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DiskFull):
        write_exports(tmp_path, ENTRIES, CHIP, None, ())
    with pytest.raises(DiskFull):
        write_gds(tmp_path / "flakes.gds", ENTRIES, CHIP)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "exports").write_text("")
    with pytest.raises(BadRecord, match="exports: cannot be written"):
        write_exports(tmp_path / "exports", ENTRIES, CHIP, None, ())
