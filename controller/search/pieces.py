"""From a detector's answer in pixels to terraces in stage um. Pure.

A mask's contour, as OpenCV gives it, runs through the centres of the border pixels; the region
itself reaches half a pixel further. The outline is therefore grown by half a pixel, else every
terrace would lose one pixel in width and a 10 um flake at 0.38 um a pixel 8 % of its area.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from controller.messages import Piece, Ring
from inference.api import Detection, FlakeAnswer

ToStage = Callable[
    [npt.NDArray[np.float64], npt.NDArray[np.float64]],
    tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
]  # columns, rows -> x_um, y_um
SIMPLIFY_PX = 0.35  # below the precision of a pixel mask
MIN_HOLE_PX = 6.0


def region_px(detection: Detection) -> Polygon:
    """The mask as a polygon in image pixels, holes included; the largest part if there are many."""
    mask = np.pad(detection.mask.astype(np.uint8), 1)
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts: list[BaseGeometry] = []
    for i, contour in enumerate(contours):
        if hierarchy[0][i][3] != -1:
            continue  # a hole; taken with its parent
        body = _grown(contour)
        hole = int(hierarchy[0][i][2])
        while hole != -1:
            # A hole's contour runs through the region's own pixels around it: it shrinks.
            if len(contours[hole]) >= 4:
                gap = Polygon(contours[hole][:, 0, :].astype(np.float64)).buffer(-0.5, join_style=2)
                if gap.area >= MIN_HOLE_PX:
                    body = body.difference(gap)
            hole = int(hierarchy[0][hole][0])
        parts.append(body)
    if not parts:
        return Polygon()
    largest: BaseGeometry = max(parts, key=lambda part: float(part.area))
    if isinstance(largest, MultiPolygon):
        largest = max(largest.geoms, key=lambda part: float(part.area))
    largest = largest.simplify(SIMPLIFY_PX)
    offset = np.array([detection.box_x_px - 1.0, detection.box_y_px - 1.0])
    if not isinstance(largest, Polygon) or largest.is_empty:
        return Polygon()
    return Polygon(
        np.asarray(largest.exterior.coords) + offset,
        [np.asarray(ring.coords) + offset for ring in largest.interiors],
    )


def _grown(contour: npt.NDArray[Any]) -> BaseGeometry:
    points = contour[:, 0, :].astype(np.float64)
    if len(points) >= 3:
        body: BaseGeometry = Polygon(points)
        if not body.is_valid:
            body = body.buffer(0)
        if body.area > 0.0:
            return body.buffer(0.5, join_style=2)
    low, high = points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
    return Polygon([(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])])


def _ring_um(coords: npt.NDArray[np.float64], to_stage: ToStage) -> Ring:
    x_um, y_um = to_stage(coords[:-1, 0], coords[:-1, 1])
    return tuple((round(float(x), 3), round(float(y), 3)) for x, y in zip(x_um, y_um, strict=True))


def pieces_of(answer: FlakeAnswer, to_stage: ToStage, um2_per_px: float) -> tuple[Piece, ...]:
    """Every detection as a `Piece` in stage um; regions too small to have an outline fall away.

    um2_per_px: area of one pixel in the plane of the sample.
    """
    pieces = []
    for detection in answer.detections:
        region = region_px(detection)
        if region.is_empty:
            continue
        pieces.append(
            Piece(
                outline_um=_ring_um(np.asarray(region.exterior.coords), to_stage),
                holes_um=tuple(
                    _ring_um(np.asarray(ring.coords), to_stage) for ring in region.interiors
                ),
                material=detection.material,
                layers=detection.layers,
                layer_probabilities=detection.layer_probabilities,
                thickness_nm=detection.thickness_nm,
                contrast_rgb=detection.contrast_rgb,
                off_ladder=detection.off_ladder,
                score=detection.score,
                area_um2=detection.area_px * um2_per_px,
                touches_border=detection.touches_border,
                thickness_interval_nm=detection.thickness_interval_nm,
            )
        )
    return tuple(pieces)
