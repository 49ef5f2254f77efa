"""Where the chip lies: its outline on the stage, and the frame in which its flakes are named.

The overview frames are laid on one coarse map. A chip of oxidised silicon is brighter or more
coloured than the dark holder around it, so the map is split in two by its brightest channel
(Otsu's threshold); a split that does not separate two kinds of surface means that the chip fills
the whole overview, or that there is none, which brightness tells apart. The polygon is the largest
region, closed over flakes and dust. Lines fitted to its sides, to a fraction of a map pixel, give
the rotation, and their lower left corner is the origin of the chip's own frame.

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
from shapely.geometry import MultiPolygon, Polygon

FloatArray: TypeAlias = npt.NDArray[np.float64]
_PROFILE_PX = 8  # of the map, to either side of an edge


class OutlineSettings(BaseModel):
    """How the chip is told from what it lies on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    map_um_per_px: float = Field(10.0, gt=0, le=1_000)
    least_chip_mm2: float = Field(0.25, gt=0, le=1e5)
    least_separation: float = Field(0.75, gt=0, lt=1)
    """Share of the map's variance that lies between the two kinds of surface (Otsu's criterion)."""
    least_brightness_ratio: float = Field(0.08, ge=0, le=1)
    """Darker than this everywhere, of full scale, there is no chip."""
    most_ground_ratio: float = Field(0.65, gt=0, lt=1)
    """The ground must be darker than this share of the chip."""
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

    def levels_at(self, level: npt.NDArray[np.float32], stage_um: FloatArray) -> FloatArray:
        """Brightness at stage points (n, m, 2), NaN where nothing was seen."""
        x_px = (stage_um[..., 0] - self.left_um) / self.um_per_px - 0.5
        y_px = (self.top_um - stage_um[..., 1]) / self.um_per_px - 0.5
        at = (x_px.astype(np.float32), y_px.astype(np.float32))
        values = cv2.remap(level, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        seen = cv2.remap(
            self.seen.astype(np.uint8), *at, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT
        )
        return np.where(seen > 0, values.astype(np.float64), np.nan)


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
    """Lay all frames on one map, to a fraction of its pixels; where they overlap, the mean."""
    um_per_px = max(map_um_per_px, min(frame.um_per_px for frame in frames))
    half_um = [
        (
            0.5 * frame.pixels.shape[1] * frame.um_per_px,
            0.5 * frame.pixels.shape[0] * frame.um_per_px,
        )
        for frame in frames
    ]
    left_um = min(f.centre_x_um - w for f, (w, _) in zip(frames, half_um, strict=True))
    right_um = max(f.centre_x_um + w for f, (w, _) in zip(frames, half_um, strict=True))
    top_um = max(f.centre_y_um + h for f, (_, h) in zip(frames, half_um, strict=True))
    bottom_um = min(f.centre_y_um - h for f, (_, h) in zip(frames, half_um, strict=True))
    width_px = max(1, math.ceil((right_um - left_um) / um_per_px))
    height_px = max(1, math.ceil((top_um - bottom_um) / um_per_px))
    total = np.zeros((height_px, width_px, 3), dtype=np.float32)
    count = np.zeros((height_px, width_px), dtype=np.float32)
    for frame, (half_w_um, half_h_um) in zip(frames, half_um, strict=True):
        small, ratio = _shrunk(frame, um_per_px)
        # The map pixels whose centres lie inside the frame.
        x_px = (frame.centre_x_um - half_w_um - left_um) / um_per_px  # the frame's left edge
        y_px = (top_um - frame.centre_y_um - half_h_um) / um_per_px
        col, row = math.ceil(x_px - 0.5 - 1e-6), math.ceil(y_px - 0.5 - 1e-6)
        end_col = min(width_px, math.floor(x_px + 2 * half_w_um / um_per_px - 0.5 + 1e-6) + 1)
        end_row = min(height_px, math.floor(y_px + 2 * half_h_um / um_per_px - 0.5 + 1e-6) + 1)
        col, row = max(col, 0), max(row, 0)
        if end_col <= col or end_row <= row:
            continue
        # From map pixel centres to the small frame's.
        matrix = np.array(
            [
                [1 / ratio, 0.0, (col + 0.5 - x_px) / ratio - 0.5],
                [0.0, 1 / ratio, (row + 0.5 - y_px) / ratio - 0.5],
            ]
        )
        laid = cv2.warpAffine(
            small,
            matrix,
            (end_col - col, end_row - row),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        total[row:end_row, col:end_col] += laid
        count[row:end_row, col:end_col] += 1
    rgb = (total / np.maximum(count, 1)[:, :, None]).astype(np.float32)
    return _Map(rgb, count > 0, left_um, top_um, um_per_px)


def _shrunk(frame: OverviewFrame, um_per_px: float) -> tuple[npt.NDArray[np.float32], float]:
    """Average whole pixels down to about the map's; also the size of one, in map pixels."""
    pixels = frame.pixels
    times = max(1, int(um_per_px / frame.um_per_px + 1e-6))
    h_px, w_px = pixels.shape[0], pixels.shape[1]
    times = min(times, h_px, w_px)
    scale = np.float32(1.0 / (2**frame.bit_depth - 1))
    if times > 1:
        # Repeated up to a multiple: the left and the top edge, from which is measured, stay.
        whole = cv2.copyMakeBorder(
            np.ascontiguousarray(pixels),
            0,
            -h_px % times,
            0,
            -w_px % times,
            cv2.BORDER_REPLICATE,
        )
        size = (whole.shape[1] // times, whole.shape[0] // times)
        small = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    else:
        small = np.ascontiguousarray(pixels)
    return small.astype(np.float32) * scale, times * frame.um_per_px / um_per_px


def _find_on(canvas: _Map, settings: OutlineSettings) -> ChipOutline | NoChip:
    # The brightest channel tells silicon from black whatever the oxide's colour.
    level = cv2.medianBlur(canvas.rgb.max(axis=2), 3)
    seen = level[canvas.seen]
    brightest = float(np.percentile(seen, 99.9))
    if brightest < settings.least_brightness_ratio:
        return NoChip(
            f"the overview is dark everywhere ({brightest:.3f} of full scale): lamp off, or no chip"
        )
    threshold, separation, dark, bright = _two_kinds(seen, brightest)
    fills = separation < settings.least_separation or dark > settings.most_ground_ratio * bright
    mask = _tidied(canvas.seen if fills else canvas.seen & (level > threshold))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea, default=None)
    if contour is None or len(contour) < 4:
        return NoChip("no bright region is large enough to be a chip")
    # The contour runs through pixel centres: half a pixel outwards is the region's edge.
    edge = Polygon(canvas.to_stage_um(contour[:, 0, :].astype(np.float64)))
    edge = _largest(edge.buffer(0.5 * canvas.um_per_px, join_style="mitre"))
    if edge.area < settings.least_chip_mm2 * 1e6:
        return NoChip(
            f"the largest bright region has {edge.area * 1e-6:.3f} mm2, "
            f"a chip must have {settings.least_chip_mm2:g}"
        )
    is_complete = not fills and not _meets_rim(mask, canvas.seen)
    sides = _sides(edge, canvas, level)
    corners_um, rotation_deg, straight = _corners(sides)
    chip = np.median(canvas.rgb[mask], axis=0)
    confidence = 0.4 if fills else min(1.0, separation) * (0.5 + 0.5 * straight)
    return ChipOutline(
        polygon=_polygon(edge, corners_um, settings.simplify_um),
        frame=ChipFrame(corners_um[0][0], corners_um[0][1], rotation_deg),
        corners_um=corners_um,
        confidence=float(confidence * (1.0 if is_complete else 0.7)),
        is_complete=is_complete,
        fills_overview=bool(fills),
        chip_rgb=(float(chip[0]), float(chip[1]), float(chip[2])),
    )


def _two_kinds(
    seen: npt.NDArray[np.float32], brightest: float
) -> tuple[float, float, float, float]:
    """Threshold, how well it separates two kinds (Otsu 1979), and their typical levels.

    The threshold lies half way between the two kinds, where a blurred edge has its middle.
    """
    counts = np.clip(seen * (255.0 / brightest), 0, 255).astype(np.uint8)
    split, separation = _otsu(counts)
    low, high = seen[counts <= split], seen[counts > split]
    if len(low) == 0 or len(high) == 0:
        level = float(np.median(seen))
        return level, 0.0, level, level
    dark, bright = float(np.median(low)), float(np.median(high))
    return 0.5 * (dark + bright), separation, dark, bright


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


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of the chip as a line: n . p = distance, n the outward normal, p on the stage."""

    normal_x: float
    normal_y: float
    distance_um: float
    weight_um: float  # length over which the edge really is straight


def _sides(edge: Polygon, canvas: _Map, level: npt.NDArray[np.float32]) -> list[_Side]:
    """Fit the four sides, counter-clockwise from the lower one, to a fraction of a map pixel.

    The smallest enclosing rectangle says where to look. Along each of its sides the brightness is
    read across the edge; where it passes half way between inside and outside is a point, and a
    line through the points is the side. Chips break: points off the line are left out.
    """
    corners = np.asarray(edge.minimum_rotated_rectangle.exterior.coords)[:4]
    first = corners[1] - corners[0]
    turn_deg = (math.degrees(math.atan2(first[1], first[0])) + 45.0) % 90.0 - 45.0
    local = ChipFrame(0.0, 0.0, turn_deg)
    xy = np.array([local.to_chip(float(x), float(y)) for x, y in corners])
    (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
    box = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    stage = np.array([local.to_stage(float(x), float(y)) for x, y in box])
    return [_fitted_side(stage[i], stage[(i + 1) % 4], canvas, level) for i in range(4)]


def _fitted_side(
    start: FloatArray, end: FloatArray, canvas: _Map, level: npt.NDArray[np.float32]
) -> _Side:
    length_um = float(np.hypot(*(end - start)))
    along = (end - start) / max(length_um, 1e-9)
    normal = np.array([along[1], -along[0]])  # outwards: the sides run counter-clockwise
    plain = _Side(float(normal[0]), float(normal[1]), float(normal @ start), 0.0)
    step_um = canvas.um_per_px
    positions_um = np.arange(0.06 * length_um, 0.94 * length_um, step_um)
    depths_um = np.arange(-_PROFILE_PX, _PROFILE_PX + 0.25, 0.5) * step_um
    if len(positions_um) < 8:
        return plain
    at = (
        start + positions_um[:, None, None] * along + depths_um[None, :, None] * normal
    )  # (n, m, 2)
    profiles = canvas.levels_at(level, at)  # (n, m), NaN where nothing was seen
    crossing_um = _crossings_um(profiles, depths_um)
    good = np.isfinite(crossing_um)
    if np.count_nonzero(good) < 8:
        return plain
    t_um, d_um = positions_um[good], crossing_um[good]
    slope, offset_um = _robust_line(t_um, d_um, 0.5 * step_um)
    is_near = np.abs(d_um - slope * t_um - offset_um) < 1.0 * step_um
    straight_um = float(np.count_nonzero(is_near)) * step_um
    if straight_um < 0.3 * length_um or abs(slope) > 0.1:
        return plain
    turned = along + slope * normal
    turned = turned / np.hypot(*turned)
    outward = np.array([turned[1], -turned[0]])
    point = start + offset_um * normal
    return _Side(float(outward[0]), float(outward[1]), float(outward @ point), straight_um)


def _crossings_um(profiles: FloatArray, depths_um: FloatArray) -> FloatArray:
    """Where each profile, inside to outside, falls through its own half height; NaN for none."""
    inside = np.nanmedian(np.where(np.isfinite(profiles), profiles, 0.0)[:, :8], axis=1)
    outside = np.median(np.where(np.isfinite(profiles), profiles, 0.0)[:, -8:], axis=1)
    half = 0.5 * (inside + outside)
    above = profiles > half[:, None]
    falls = above[:, :-1] & ~above[:, 1:]
    found = np.full(len(profiles), np.nan)
    for i in np.flatnonzero(falls.any(axis=1) & (inside > 1.5 * outside)):
        j = int(np.flatnonzero(falls[i])[-1])  # the outermost: dust inside falls too
        upper, lower = profiles[i, j], profiles[i, j + 1]
        if not (np.isfinite(upper) and np.isfinite(lower)):
            continue
        share = (upper - half[i]) / max(float(upper - lower), 1e-9)
        found[i] = depths_um[j] + share * (depths_um[j + 1] - depths_um[j])
    return found


def _robust_line(t: FloatArray, d: FloatArray, scale: float) -> tuple[float, float]:
    """Slope and offset of d over t; points far off lose their weight (Geman and McClure)."""
    middle = float(t.mean())
    basis = np.column_stack([t - middle, np.ones_like(t)])
    slope, offset = 0.0, float(np.median(d))
    for width in (16.0, 8.0, 4.0, 2.0, 1.0, 1.0, 1.0):
        residual = d - slope * (t - middle) - offset
        weight = 1.0 / (1.0 + (residual / (width * scale)) ** 2) ** 2
        normal = basis.T @ (basis * weight[:, None]) + 1e-9 * np.eye(2)
        slope, offset = np.linalg.solve(normal, basis.T @ (weight * d)).tolist()
    return float(slope), float(offset - slope * middle)


def _corners(
    sides: Sequence[_Side],
) -> tuple[tuple[tuple[float, float], ...], float, float]:
    """Corners counter-clockwise from the lower left, the rotation, and the straight share."""
    corners = []
    for i in range(4):
        a, b = sides[i - 1], sides[i]
        matrix = np.array([[a.normal_x, a.normal_y], [b.normal_x, b.normal_y]])
        x_um, y_um = np.linalg.solve(matrix, np.array([a.distance_um, b.distance_um])).tolist()
        corners.append((float(x_um), float(y_um)))
    # Each side gives the angle of the chip's x axis; four times the angle is free of quarter turns.
    weights = np.array([side.weight_um for side in sides])
    if weights.sum() <= 0:
        weights = np.ones(4)
    directions = [math.atan2(side.normal_y, side.normal_x) for side in sides]
    four = sum(w * np.exp(4j * angle) for w, angle in zip(weights, directions, strict=True))
    rotation_deg = math.degrees(float(np.angle(four))) / 4.0
    lengths_um = [math.dist(corners[i], corners[(i + 1) % 4]) for i in range(4)]
    straight = sum(side.weight_um for side in sides) / max(0.88 * sum(lengths_um), 1e-9)
    return tuple(corners), rotation_deg, min(1.0, straight)


def _polygon(
    edge: Polygon, corners_um: Sequence[tuple[float, float]], simplify_um: float
) -> Polygon:
    """Trim the traced edge to the fitted sides: the map's pixels are coarse, the lines are not."""
    fitted = Polygon(corners_um)
    if fitted.is_valid and fitted.symmetric_difference(edge).area < 0.03 * edge.area:
        return fitted
    trimmed = edge.intersection(fitted) if fitted.is_valid else edge
    return _largest(trimmed if not trimmed.is_empty else edge).simplify(simplify_um)


def _largest(shape: Polygon | MultiPolygon) -> Polygon:
    if isinstance(shape, Polygon):
        return shape
    return max(shape.geoms, key=lambda part: part.area)
