"""Where the chip lies: its outline on the stage, and the frame in which its flakes are named.

The overview frames are laid on one coarse map. A chip of oxidised silicon is brighter or more
coloured than the dark holder around it, so the map is split in two by its brightest channel
(Otsu's threshold); a split that does not separate two kinds of surface means that the chip fills
the whole overview, or that there is none, which brightness tells apart. The polygon is the largest
region, closed over flakes and dust; its straight sides give the rotation, and its lower left corner
the origin of the chip's own frame.

Coordinates in that frame survive the transfer to another microscope: `ChipFrame` is rigid (turn
and shift, no scale), and `fit_frame` finds it again from three or more marks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from shapely.geometry import Polygon

FloatArray: TypeAlias = npt.NDArray[np.float64]


class OutlineSettings(BaseModel):
    """How the chip is told from what it lies on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    map_um_per_px: float = Field(10.0, gt=0, le=1_000)
    least_chip_mm2: float = Field(0.25, gt=0, le=1e5)
    least_separation: float = Field(0.75, gt=0, lt=1)
    """Share of the map's variance that lies between the two kinds of surface (Otsu's criterion)."""
    least_brightness_ratio: float = Field(0.08, ge=0, le=1)
    """Darker than this everywhere, of full scale, there is no chip."""
    simplify_um: float = Field(15.0, ge=0, le=1_000)


@dataclass(frozen=True, slots=True, eq=False)
class OverviewFrame:
    """One overview image, flat-fielded if possible.

    pixels: (h, w, 3) RGB, uint8 or uint16, y down, image axes along the stage's (x right, y up).
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    centre_x_um: float
    centre_y_um: float
    um_per_px: float
    bit_depth: int = 8


@dataclass(frozen=True, slots=True)
class ChipFrame:
    """The chip's own axes: origin at a corner, x along a side; the same um as the stage's."""

    origin_x_um: float
    origin_y_um: float
    rotation_deg: float  # of the chip's x axis from the stage's, counter-clockwise

    def to_chip(self, stage_x_um: float, stage_y_um: float) -> tuple[float, float]:
        """Stage to chip."""
        cos, sin = self._turn()
        dx_um, dy_um = stage_x_um - self.origin_x_um, stage_y_um - self.origin_y_um
        return cos * dx_um + sin * dy_um, -sin * dx_um + cos * dy_um

    def to_stage(self, chip_x_um: float, chip_y_um: float) -> tuple[float, float]:
        """Chip to stage."""
        cos, sin = self._turn()
        return (
            self.origin_x_um + cos * chip_x_um - sin * chip_y_um,
            self.origin_y_um + sin * chip_x_um + cos * chip_y_um,
        )

    def _turn(self) -> tuple[float, float]:
        angle = math.radians(self.rotation_deg)
        return math.cos(angle), math.sin(angle)


@dataclass(frozen=True, slots=True, eq=False)
class ChipOutline:
    """The chip that was found."""

    polygon: Polygon  # stage um
    frame: ChipFrame
    corners_um: tuple[tuple[float, float], ...]  # stage um, counter-clockwise from the origin
    confidence: float  # 0..1
    is_complete: bool  # False: the chip goes on beyond what the overview shows
    fills_overview: bool  # True: no ground was seen at all
    chip_rgb: tuple[float, float, float]  # of full scale, median


@dataclass(frozen=True, slots=True)
class NoChip:
    """Nothing that could be a chip, and why."""

    reason: str


def find_chip(
    frames: Sequence[OverviewFrame], settings: OutlineSettings | None = None
) -> ChipOutline | NoChip:
    """Find the chip on the overview. Raises ValueError for images of a wrong form."""
    settings = settings or OutlineSettings()
    if not frames:
        return NoChip("there are no overview frames")
    for frame in frames:
        _check(frame)
    canvas = _compose(frames, settings.map_um_per_px)
    return _find_on(canvas, settings)


def fit_frame(
    chip_um: Sequence[tuple[float, float]], stage_um: Sequence[tuple[float, float]]
) -> tuple[ChipFrame, float]:
    """Find the rigid frame that carries chip marks to stage marks, and its RMS residual in um.

    At least two marks. Least squares over turn and shift (Kabsch 1976, two dimensions).
    """
    if len(chip_um) != len(stage_um) or len(chip_um) < 2:
        message = f"needs two or more pairs of marks, got {len(chip_um)} and {len(stage_um)}"
        raise ValueError(message)
    chip, stage = np.asarray(chip_um, dtype=np.float64), np.asarray(stage_um, dtype=np.float64)
    chip_mean, stage_mean = chip.mean(axis=0), stage.mean(axis=0)
    u, v = chip - chip_mean, stage - stage_mean
    if np.sum(u**2) <= 0 or np.sum(v**2) <= 0:
        message = "the marks lie on one point: no rotation can be found from them"
        raise ValueError(message)
    angle = math.atan2(float(np.sum(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])), float(np.sum(u * v)))
    turned = ChipFrame(0.0, 0.0, math.degrees(angle))
    origin = stage_mean - turned.to_stage(float(chip_mean[0]), float(chip_mean[1]))
    frame = ChipFrame(float(origin[0]), float(origin[1]), turned.rotation_deg)
    residual = np.array([frame.to_stage(x, y) for x, y in chip.tolist()]) - stage
    return frame, float(np.sqrt(np.mean(np.sum(residual**2, axis=1))))


@dataclass(frozen=True, slots=True, eq=False)
class _Map:
    rgb: npt.NDArray[np.float32]  # (h, w, 3) of full scale, y down
    seen: npt.NDArray[np.bool_]  # (h, w)
    left_um: float  # stage x of the outer edge of the first column
    top_um: float  # stage y of the outer edge of the first row
    um_per_px: float

    def to_stage_um(self, points_px: FloatArray) -> FloatArray:
        """(n, 2) x, y in px, (0, 0) the first pixel's centre -> (n, 2) stage um."""
        stage = np.empty_like(points_px, dtype=np.float64)
        stage[:, 0] = self.left_um + (points_px[:, 0] + 0.5) * self.um_per_px
        stage[:, 1] = self.top_um - (points_px[:, 1] + 0.5) * self.um_per_px
        return stage


def _check(frame: OverviewFrame) -> None:
    pixels = frame.pixels
    is_rgb = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0
    if not is_rgb or pixels.dtype not in (np.uint8, np.uint16):
        message = (
            f"an overview frame must be (h, w, 3) uint8 or uint16, "
            f"got {pixels.shape} {pixels.dtype}"
        )
        raise ValueError(message)
    numbers = (frame.centre_x_um, frame.centre_y_um, frame.um_per_px)
    if not all(math.isfinite(number) for number in numbers) or frame.um_per_px <= 0:
        message = f"an overview frame needs finite coordinates and um_per_px > 0, got {numbers}"
        raise ValueError(message)


def _compose(frames: Sequence[OverviewFrame], map_um_per_px: float) -> _Map:
    """Lay all frames on one map; where they overlap, the mean."""
    um_per_px = max(map_um_per_px, min(frame.um_per_px for frame in frames))
    extents = []
    for frame in frames:
        half_w_um = 0.5 * frame.pixels.shape[1] * frame.um_per_px
        half_h_um = 0.5 * frame.pixels.shape[0] * frame.um_per_px
        extents.append(
            (
                frame.centre_x_um - half_w_um,
                frame.centre_y_um - half_h_um,
                frame.centre_x_um + half_w_um,
                frame.centre_y_um + half_h_um,
            )
        )
    left_um = min(extent[0] for extent in extents)
    top_um = max(extent[3] for extent in extents)
    width_px = max(1, round((max(extent[2] for extent in extents) - left_um) / um_per_px))
    height_px = max(1, round((top_um - min(extent[1] for extent in extents)) / um_per_px))
    total = np.zeros((height_px, width_px, 3), dtype=np.float32)
    count = np.zeros((height_px, width_px), dtype=np.float32)
    for frame, extent in zip(frames, extents, strict=True):
        col = round((extent[0] - left_um) / um_per_px)
        row = round((top_um - extent[3]) / um_per_px)
        w_px = min(max(1, round((extent[2] - extent[0]) / um_per_px)), width_px - col)
        h_px = min(max(1, round((extent[3] - extent[1]) / um_per_px)), height_px - row)
        if w_px < 1 or h_px < 1:
            continue
        small = cv2.resize(frame.pixels, (w_px, h_px), interpolation=cv2.INTER_AREA)
        scale = 1.0 / (2**frame.bit_depth - 1)
        total[row : row + h_px, col : col + w_px] += small.astype(np.float32) * np.float32(scale)
        count[row : row + h_px, col : col + w_px] += 1
    seen = count > 0
    rgb = (total / np.maximum(count, 1)[:, :, None]).astype(np.float32)
    return _Map(rgb, seen, left_um, top_um, um_per_px)


def _find_on(canvas: _Map, settings: OutlineSettings) -> ChipOutline | NoChip:
    smooth = cv2.medianBlur(np.clip(canvas.rgb * 255.0, 0, 255).astype(np.uint8), 3)
    # The brightest channel tells silicon from black whatever the oxide's colour.
    level = smooth.max(axis=2)
    threshold, separation = _otsu(level[canvas.seen])
    brightest = float(np.percentile(level[canvas.seen], 90)) / 255.0
    if brightest < settings.least_brightness_ratio:
        return NoChip(
            f"the overview is dark everywhere ({brightest:.3f} of full scale): lamp off, or no chip"
        )
    fills = separation < settings.least_separation
    mask = canvas.seen.copy() if fills else canvas.seen & (level > threshold)
    mask = _tidied(mask)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return NoChip("no bright region is large enough to be a chip")
    contour = max(contours, key=cv2.contourArea)
    points_um = canvas.to_stage_um(contour[:, 0, :].astype(np.float64))
    if len(points_um) < 4:
        return NoChip("no bright region is large enough to be a chip")
    # The contour runs through pixel centres: half a pixel outwards is the region's edge.
    polygon = Polygon(points_um).buffer(0.5 * canvas.um_per_px, join_style="mitre")
    polygon = polygon.simplify(settings.simplify_um)
    if polygon.area < settings.least_chip_mm2 * 1e6:
        return NoChip(
            f"the largest bright region has {polygon.area * 1e-6:.3f} mm2, "
            f"a chip must have {settings.least_chip_mm2:g}"
        )
    corners_um, rotation_deg = _box_corners(polygon)
    frame = ChipFrame(corners_um[0][0], corners_um[0][1], rotation_deg)
    is_complete = not fills and not _meets_rim(mask, canvas.seen)
    chip = np.median(canvas.rgb[mask], axis=0)
    confidence = (0.5 if fills else separation) * (1.0 if is_complete else 0.7)
    return ChipOutline(
        polygon=polygon,
        frame=frame,
        corners_um=corners_um,
        confidence=float(min(1.0, confidence)),
        is_complete=is_complete,
        fills_overview=fills,
        chip_rgb=(float(chip[0]), float(chip[1]), float(chip[2])),
    )


def _otsu(values: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Threshold, and the share of the variance that lies between the two sides of it."""
    histogram = np.bincount(values, minlength=256).astype(np.float64)
    weight = np.cumsum(histogram)
    total = weight[-1]
    moment = np.cumsum(histogram * np.arange(256))
    mean = moment[-1] / total
    variance = float(np.sum(histogram * (np.arange(256) - mean) ** 2) / total)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean * weight - moment) ** 2 / (weight * (total - weight))
    between = np.nan_to_num(between, nan=0.0, posinf=0.0)
    best = int(np.argmax(between))
    return float(best), float(between[best] / variance) if variance > 0 else 0.0


def _tidied(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Close gaps of a few pixels, drop specks, fill holes, keep the largest region."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 4, 4, 4, 4, cv2.BORDER_REPLICATE)
    padded = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)
    padded = cv2.morphologyEx(padded, cv2.MORPH_OPEN, kernel)[4:-4, 4:-4]
    contours, _ = cv2.findContours(
        np.ascontiguousarray(padded), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    filled = np.zeros(mask.shape, dtype=np.uint8)
    if contours:
        largest = max(contours, key=cv2.contourArea)
        cv2.drawContours(filled, [largest], -1, 1, thickness=cv2.FILLED)
    return filled.astype(np.bool_)


def _meets_rim(mask: npt.NDArray[np.bool_], seen: npt.NDArray[np.bool_]) -> bool:
    """Say whether the region reaches the end of what was seen."""
    inner = cv2.erode(
        seen.astype(np.uint8),
        np.ones((3, 3), np.uint8),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return bool(np.any(mask & (inner == 0)))


def _box_corners(polygon: Polygon) -> tuple[tuple[tuple[float, float], ...], float]:
    """Corners of the smallest enclosing rectangle, counter-clockwise from the lower left one.

    The rotation is the one within 45 degrees of the stage's x axis.
    """
    points = np.asarray(polygon.minimum_rotated_rectangle.exterior.coords)[:4]
    edge = points[1] - points[0]
    angle_deg = math.degrees(math.atan2(edge[1], edge[0]))
    rotation_deg = (angle_deg + 45.0) % 90.0 - 45.0
    frame = ChipFrame(0.0, 0.0, rotation_deg)
    local = np.array([frame.to_chip(float(x), float(y)) for x, y in points])
    x0, y0 = local.min(axis=0)
    x1, y1 = local.max(axis=0)
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return tuple(frame.to_stage(float(x), float(y)) for x, y in corners), rotation_deg
