"""The catalogue for other programs: CSV, COCO, GeoJSON and GDS.

CSV, GeoJSON and GDS speak um in the chip's OWN frame (origin in a corner of its outline, x along an
edge), so that a flake can be found again on another stage, or contacts be drawn onto it: align the
corner and the edge, and the numbers hold. COCO speaks pixels of the kept images.

    flakes.csv          one row a terrace, units in the header
    flakes.coco.json    one instance for every image that shows a terrace; RLE masks
    flakes.geojson      polygons with holes, the chip's outline, the tiles
    flakes.gds          one layer a material, the number of layers as datatype; see `GDS_LAYERS`

Each file is written wholly or not at all, and the same catalogue gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import gdstk
import numpy as np
import numpy.typing as npt

from controller.geometry import CameraGeometry, stage_to_pixel
from controller.messages import CatalogueEntry, ChipFound, Point, Ring, ScanPlanned
from controller.record.rundir import write_atomically, writing
from drivers.api import Objective, Pose

Json: TypeAlias = dict[str, Any]
Mask: TypeAlias = npt.NDArray[np.bool_]

# Materials that the catalogue does not know yet follow from 20 on, in alphabetical order.
GDS_LAYERS: Mapping[str, int] = {
    "chip": 1,  # outline
    "marks": 2,  # cross at the origin, ticks along the chip's x and y
    "tiles": 3,  # fields of the scan
    "graphene": 10,
    "hbn": 11,
    "mos2": 12,
    "wse2": 13,
    "wte2": 14,
}
_FIRST_OTHER_LAYER = 20
_MAX_DATATYPE = 255  # what every reader accepts; thicker terraces share it
_GDS_GRID_UM = 1e-3
_GDS_MAX_POINTS = 4_000  # the format's limit is 8191; more vertices are cut into several polygons
_GDS_TIME = datetime(2000, 1, 1)
_MARK_ARM_UM = 50.0
_ID_PROPERTY = 1  # GDS property number that carries "entry_id=..."


@dataclass(frozen=True, slots=True)
class KeptImage:
    """One image that the masks are drawn for."""

    tile: int  # as in `CatalogueEntry.tiles`
    path: str  # relative to the run's folder
    shape_px: tuple[int, int]  # (h, w)
    pose: Pose
    objective: Objective
    geometry: CameraGeometry


def write_exports(
    folder: Path,
    entries: Sequence[CatalogueEntry],
    chip: ChipFound,
    scan: ScanPlanned | None,
    images: Sequence[KeptImage],
) -> tuple[Path, ...]:
    """Write all four files into `folder`, made if need be; raises DiskFull or BadRecord."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"flakes.{kind}" for kind in ("csv", "coco.json", "geojson", "gds"))
    csv_path, coco_path, geojson_path, gds_path = paths
    write_atomically(csv_path, csv_text(entries, chip).encode())
    write_atomically(coco_path, _json_bytes(coco(entries, images)))
    write_atomically(geojson_path, _json_bytes(geojson(entries, chip, scan)))
    write_gds(gds_path, entries, chip, scan)
    return paths


def stage_to_chip_um(chip: ChipFound, points: Iterable[Point]) -> Ring:
    """Stage um -> chip um: shift to the chip's origin, then turn by -rotation_deg."""
    cosine, sine = _cosine_sine(chip)
    return tuple(
        (
            cosine * (x - chip.origin_x_um) + sine * (y - chip.origin_y_um),
            -sine * (x - chip.origin_x_um) + cosine * (y - chip.origin_y_um),
        )
        for x, y in points
    )


def chip_to_stage_um(chip: ChipFound, points: Iterable[Point]) -> Ring:
    """Chip um -> stage um: the inverse of `stage_to_chip_um`."""
    cosine, sine = _cosine_sine(chip)
    return tuple(
        (
            cosine * x - sine * y + chip.origin_x_um,
            sine * x + cosine * y + chip.origin_y_um,
        )
        for x, y in points
    )


def csv_text(entries: Sequence[CatalogueEntry], chip: ChipFound) -> str:
    """One row a terrace; an empty cell means: not measured."""
    text = io.StringIO()
    rows = [_csv_row(entry, chip) for entry in entries]
    header = list(_csv_row(_NOBODY, chip))
    writer = csv.DictWriter(text, fieldnames=header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def coco(entries: Sequence[CatalogueEntry], images: Sequence[KeptImage]) -> Json:
    """COCO "instances": a category is a material with its number of layers, a mask is an RLE.

    Pixels count by their centres. A terrace is drawn in every image of its `tiles`, whole or cut by
    the border, from its merged outline.
    """
    classes = sorted({(entry.material, entry.layers) for entry in entries})
    category_ids = {pair: number for number, pair in enumerate(classes, start=1)}
    by_tile = {image.tile: (number, image) for number, image in enumerate(images, start=1)}
    annotations: list[Json] = []
    for entry in entries:
        for tile in entry.tiles:
            if tile not in by_tile:
                continue
            image_id, image = by_tile[tile]
            mask = _mask_in(image, entry)
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[entry.material, entry.layers],
                    "segmentation": rle_of(mask),
                    "area": int(mask.sum()),
                    "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                    "iscrowd": 0,
                    "score": _finite(entry.score),
                    "attributes": {
                        "entry_id": entry.entry_id,
                        "flake_id": entry.flake_id,
                        "layers": entry.layers,
                        "probability": _finite(entry.probability),
                        "thickness_nm": _finite(entry.thickness_nm),
                        "thickness_interval_nm": entry.thickness_interval_nm,
                        "area_um2": _finite(entry.area_um2),
                        **{k: v for k, v in _second_reading(entry).items() if v != ""},
                    },
                }
            )
    return {
        "info": {"description": "terraces found by Scopeloop; masks in pixels of the kept images"},
        "images": [
            {
                "id": number,
                "file_name": image.path,
                "width": image.shape_px[1],
                "height": image.shape_px[0],
                "pixel_size_nm": image.objective.pixel_size_nm,
                "stage_x_um": image.pose.stage_x_um,
                "stage_y_um": image.pose.stage_y_um,
            }
            for number, image in by_tile.values()
        ],
        "categories": [
            {"id": number, "name": f"{material} {layers}L", "supercategory": material}
            for (material, layers), number in category_ids.items()
        ],
        "annotations": annotations,
    }


def geojson(
    entries: Sequence[CatalogueEntry], chip: ChipFound, scan: ScanPlanned | None = None
) -> Json:
    """A FeatureCollection in chip um: planar, not longitude and latitude.

    Rings as RFC 7946 wants them: closed, outer ones counter-clockwise, holes clockwise.
    """
    features = [_feature("chip", [stage_to_chip_um(chip, chip.outline_um)], {})]
    for index, corners in _tile_corners(scan):
        ring = stage_to_chip_um(chip, corners)
        features.append(_feature("tile", [ring], {"tile": index}))
    for entry in entries:
        rings = [stage_to_chip_um(chip, ring) for ring in _rings(entry)]
        properties = {
            name: value
            for name, value in _csv_row(entry, chip).items()
            if name not in {"outline_chip_um", "stage_x_um", "stage_y_um"} and value != ""
        }
        features.append(_feature("terrace", rings, properties))
    return {
        "type": "FeatureCollection",
        "coordinate_frame": "planar, um, chip's own frame; not WGS 84",
        "features": features,
    }


def write_gds(
    path: Path,
    entries: Sequence[CatalogueEntry],
    chip: ChipFound,
    scan: ScanPlanned | None = None,
) -> None:
    """One cell "CHIP" in chip um on a grid of 1 nm; holes are cut out as keyholes.

    Layer: the material, by `GDS_LAYERS`. Datatype: the number of layers, 255 for more than that.
    A label at each centroid says what it is; the property 1 of each polygon names its entry_id.
    """
    library = gdstk.Library("SCOPELOOP", unit=1e-6, precision=_GDS_GRID_UM * 1e-6)
    cell = library.new_cell("CHIP")
    if len(chip.outline_um) >= 3:
        outline = _on_grid(stage_to_chip_um(chip, chip.outline_um))
        cell.add(gdstk.Polygon(outline, layer=GDS_LAYERS["chip"]))
    _mark_origin(cell)
    for index, corners in _tile_corners(scan):
        ring = _on_grid(stage_to_chip_um(chip, corners))
        cell.add(gdstk.Polygon(ring, layer=GDS_LAYERS["tiles"]))
        cell.add(gdstk.Label(f"tile {index}", _middle(ring), layer=GDS_LAYERS["tiles"]))
    layers = gds_layers(entry.material for entry in entries)
    for entry in entries:
        layer, datatype = layers[entry.material], min(entry.layers, _MAX_DATATYPE)
        for polygon in _gds_polygons(entry, chip, layer, datatype):
            polygon.set_gds_property(_ID_PROPERTY, f"entry_id={entry.entry_id}")
            cell.add(polygon)
        text = (
            f"#{entry.entry_id} {entry.material} {entry.layers}L "
            f"{entry.probability:.0%} {entry.area_um2:.0f}um2"
        )
        centre = (entry.chip_x_um, entry.chip_y_um)
        cell.add(gdstk.Label(text, centre, layer=layer, texttype=datatype))
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            library.write_gds(partial, max_points=_GDS_MAX_POINTS, timestamp=_GDS_TIME)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def gds_layers(materials: Iterable[str]) -> dict[str, int]:
    """The GDS layer of each material, also of those that `GDS_LAYERS` has never heard of."""
    others = sorted(set(materials) - set(GDS_LAYERS))
    return {**GDS_LAYERS, **{name: _FIRST_OTHER_LAYER + i for i, name in enumerate(others)}}


def rle_of(mask: Mask) -> Json:
    """COCO's compressed run-length code: column by column, runs of 0 and 1 in turn, 0 first.

    From the third on a run is written as its difference from the run two before; each number in
    groups of 5 bits, least first, bit 6 says "more", offset 48 makes them printable.
    Source: the COCO API's mask format.
    """
    columns = np.flatnonzero(mask.any(axis=0))  # only those: a flake is small in a large image
    low, high = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)
    flat = np.concatenate([[False], mask[:, low:high].ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + low * mask.shape[0]
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    code = bytearray()
    for i, count in enumerate(counts):
        left = count - counts[i - 2] if i > 2 else count
        while True:
            group = left & 0x1F
            left >>= 5
            is_more = left != (-1 if group & 0x10 else 0)
            code.append((group | 0x20 if is_more else group) + 48)
            if not is_more:
                break
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": code.decode("ascii")}


def mask_of(rle: Mapping[str, Any]) -> Mask:
    """The mask (h, w) of COCO's run-length code, compressed (a string) or not (a list)."""
    h_px, w_px = rle["size"]
    code = rle["counts"]
    counts: list[int] = []
    if isinstance(code, str):
        at = 0
        while at < len(code):
            value, shift = 0, 0
            while True:
                group = ord(code[at]) - 48
                at += 1
                value |= (group & 0x1F) << shift
                shift += 5
                if not group & 0x20:
                    break
            if group & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
    else:
        counts = list(code)
    if sum(counts) != h_px * w_px or min(counts, default=0) < 0:
        msg = f"the run-length code covers {sum(counts)} pixels, the image has {h_px * w_px}"
        raise ValueError(msg)
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    mask: Mask = flat.reshape((h_px, w_px), order="F")
    return mask


def filled(rings_px: Sequence[npt.NDArray[np.float64]], shape_px: tuple[int, int]) -> Mask:
    """The pixels whose centres lie inside rings (n, 2) of x, y by the even-odd rule; holes cut."""
    mask = np.zeros(shape_px, dtype=np.bool_)
    if not rings_px:
        return mask
    points = np.concatenate(rings_px)
    left, top = np.clip(np.floor(points.min(axis=0)), 0, shape_px[::-1]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(axis=0)) + 1, 0, shape_px[::-1]).astype(int).tolist()
    toggles = np.zeros((max(bottom - top, 0), max(right - left, 0) + 1), dtype=np.uint8)
    for ring in rings_px:
        ends = np.roll(ring, -1, axis=0)
        for (x0, y0), (x1, y1) in zip(ring.tolist(), ends.tolist(), strict=True):
            low, high = (y0, y1) if y0 < y1 else (y1, y0)
            # Rows whose centre the edge crosses, lower end included: no vertex counts twice.
            rows = np.arange(max(top, math.ceil(low)), min(bottom, math.ceil(high)))
            if rows.size == 0:
                continue
            crossings = x0 + (rows - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.clip(np.ceil(crossings), left, right).astype(np.intp)
            toggles[rows - top, columns - left] ^= 1
    inside = np.bitwise_xor.accumulate(toggles, axis=1)[:, :-1]
    mask[top:bottom, left:right] = inside.astype(np.bool_)
    return mask


def _rings(entry: CatalogueEntry) -> list[Ring]:
    """Outline first, then holes; nothing where the outline encloses nothing."""
    if len(entry.outline_um) < 3:
        return []
    return [entry.outline_um, *(hole for hole in entry.holes_um if len(hole) >= 3)]


def _mask_in(image: KeptImage, entry: CatalogueEntry) -> Mask:
    rings = []
    for ring in _rings(entry):
        points = np.asarray(ring, dtype=np.float64)
        columns, rows = stage_to_pixel(
            points[:, 0], points[:, 1], image.pose, image.objective, image.shape_px, image.geometry
        )
        rings.append(np.stack([columns, rows], axis=1))
    return filled(rings, image.shape_px)


def _gds_polygons(
    entry: CatalogueEntry, chip: ChipFound, layer: int, datatype: int
) -> list[gdstk.Polygon]:
    rings = [_on_grid(stage_to_chip_um(chip, ring)) for ring in _rings(entry)]
    if not rings:
        return []
    outline, *holes = rings
    if not holes:
        return [gdstk.Polygon(outline, layer=layer, datatype=datatype)]
    cut: list[gdstk.Polygon] = gdstk.boolean(
        gdstk.Polygon(outline),
        [gdstk.Polygon(hole) for hole in holes],
        "not",
        precision=_GDS_GRID_UM,
        layer=layer,
        datatype=datatype,
    )
    return cut


def _mark_origin(cell: gdstk.Cell) -> None:
    """A cross at (0, 0), and ticks at 100 um along x (one) and y (two) that tell the axes apart."""
    layer = GDS_LAYERS["marks"]
    arm, half = _MARK_ARM_UM, 1.0
    for low, high in (
        ((-arm, -half), (arm, half)),
        ((-half, -arm), (half, arm)),
        ((100.0 - half, -10.0), (100.0 + half, 10.0)),
        ((-10.0, 100.0 - half), (10.0, 100.0 + half)),
        ((-10.0, 106.0 - half), (10.0, 106.0 + half)),
    ):
        cell.add(gdstk.rectangle(low, high, layer=layer))
    cell.add(gdstk.Label("origin of the chip's frame", (0.0, 0.0), anchor="sw", layer=layer))
    cell.add(gdstk.Label("x", (104.0, 0.0), anchor="w", layer=layer))
    cell.add(gdstk.Label("y", (0.0, 112.0), anchor="s", layer=layer))


def _tile_corners(scan: ScanPlanned | None) -> list[tuple[int, Ring]]:
    """Each tile's four corners in stage um, counter-clockwise."""
    if scan is None:
        return []
    half_w, half_h = scan.field_w_um / 2, scan.field_h_um / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [
        (tile.index, tuple((tile.x_um + sx * half_w, tile.y_um + sy * half_h) for sx, sy in signs))
        for tile in scan.tiles
    ]


def _csv_row(entry: CatalogueEntry, chip: ChipFound) -> dict[str, object]:
    revisit = entry.revisit if entry.revisit is not None and entry.revisit.found else None
    interval: tuple[object, object] = entry.thickness_interval_nm or ("", "")
    values: dict[str, object] = {
        "entry_id": entry.entry_id,
        "flake_id": entry.flake_id,
        "rank": entry.rank,
        "material": entry.material,
        "layers": entry.layers,
        "probability": entry.probability,
        "layer_probabilities": " ".join(f"{n}:{p:.4f}" for n, p in entry.layer_probabilities),
        "thickness_nm": entry.thickness_nm,
        "thickness_low_nm": interval[0],
        "thickness_high_nm": interval[1],
        "area_um2": entry.area_um2,
        "aspect_ratio": entry.aspect_ratio,
        "chip_x_um": entry.chip_x_um,
        "chip_y_um": entry.chip_y_um,
        "stage_x_um": entry.stage_x_um,
        "stage_y_um": entry.stage_y_um,
        "contrast_r": entry.contrast_rgb[0],
        "contrast_g": entry.contrast_rgb[1],
        "contrast_b": entry.contrast_rgb[2],
        "off_ladder": entry.off_ladder,
        "score": entry.score,
        "sharpness": entry.sharpness,
        "tiles": " ".join(str(tile) for tile in entry.tiles),
        "is_revisited": int(revisit is not None),
        "revisit_layers": "" if revisit is None else revisit.layers,
        "revisit_probability": "" if revisit is None else revisit.probability,
        "revisit_area_um2": "" if revisit is None else revisit.area_um2,
        **_second_reading(entry),
        "outline_chip_um": _wkt(entry, chip),
    }
    return {name: _cell(value) for name, value in values.items()}


def _second_reading(entry: CatalogueEntry) -> dict[str, object]:
    """What the detector says that did not lead; empty where none was asked.

    `detectors_differ`: "no", or in what ("existence": it sees no such terrace).
    """
    second = entry.second
    if second is None:
        names = ("detector", "other_detector", "detectors_differ", "other_layers")
        return dict.fromkeys((*names, "other_probability", "other_area_um2"), "")
    is_seen = second.layers > 0
    differ = second.reason or " ".join(second.differs) or "no"
    return {
        "detector": second.leader,
        "other_detector": second.detector,
        "detectors_differ": differ,
        "other_layers": second.layers if is_seen else "",
        "other_probability": second.probability if is_seen else "",
        "other_area_um2": second.area_um2 if is_seen else "",
    }


def _cell(value: object) -> object:
    """A number short enough to read: 1 pm, 1e-6 of a ratio; "" for what is not a number."""
    if not isinstance(value, float):
        return value
    return round(value, 6) if math.isfinite(value) else ""


def _wkt(entry: CatalogueEntry, chip: ChipFound) -> str:
    """The outline with its holes as well-known text, on the 1 nm grid."""
    rings = [_closed(_on_grid(stage_to_chip_um(chip, ring))) for ring in _rings(entry)]
    if not rings:
        return ""
    spelled = (", ".join(f"{x} {y}" for x, y in ring) for ring in rings)
    return f"POLYGON ({', '.join(f'({ring})' for ring in spelled)})"


def _feature(kind: str, rings: Sequence[Ring], properties: Mapping[str, object]) -> Json:
    oriented = [
        _closed(_on_grid(_turning(ring, is_counter_clockwise=i == 0)))
        for i, ring in enumerate(rings)
    ]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": oriented} if oriented else None,
        "properties": {"kind": kind, **properties},
    }


def _turning(ring: Ring, *, is_counter_clockwise: bool) -> Ring:
    twice_area = sum(
        x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True)
    )
    return ring if (twice_area > 0) == is_counter_clockwise else ring[::-1]


def _on_grid(ring: Ring) -> list[Point]:
    """Rounded to 1 nm; + 0.0 turns -0.0 into 0.0."""
    return [(round(x, 3) + 0.0, round(y, 3) + 0.0) for x, y in ring]


def _closed(ring: Sequence[Point]) -> list[Point]:
    return [*ring, ring[0]]


def _middle(ring: Sequence[Point]) -> Point:
    return (
        sum(x for x, _ in ring) / len(ring),
        sum(y for _, y in ring) / len(ring),
    )


def _cosine_sine(chip: ChipFound) -> tuple[float, float]:
    angle = math.radians(chip.rotation_deg)
    return math.cos(angle), math.sin(angle)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json_bytes(content: Json) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


# Gives the CSV its header when the catalogue is empty.
_NOBODY = CatalogueEntry(
    entry_id=0,
    flake_id=0,
    rank=0,
    material="",
    layers=0,
    probability=0.0,
    layer_probabilities=(),
    thickness_nm=0.0,
    area_um2=0.0,
    aspect_ratio=1.0,
    outline_um=(),
    holes_um=(),
    stage_x_um=0.0,
    stage_y_um=0.0,
    chip_x_um=0.0,
    chip_y_um=0.0,
    contrast_rgb=(0.0, 0.0, 0.0),
    off_ladder=0.0,
    score=0.0,
    sharpness=0.0,
    tiles=(),
    revisit=None,
)
