"""The stitched chip: tiles shrunk, laid where the stage says, evened out, blended at the seams.

`MosaicBuilder.add` is cheap (about 4 ms for 1920 x 1200) and runs while the scan goes on: it only
shrinks the tile by whole pixels and keeps that. Painting waits until many tiles are there, because
what makes seams visible is the lamp's own unevenness, and that is measured from the tiles
themselves: the median over tiles of each place in the image is the light, since flakes lie
elsewhere in every tile and the substrate everywhere. A smooth surface (even up to the fourth order,
as a lens' fall-off is) is fitted to that median, so a flake that survives it cannot print through.

Memory is bounded: when the waiting tiles exceed `max_waiting_mib` the oldest are painted, one for
one, and a map that would have more than `max_map_px` pixels is made coarser.

Neighbours are blended by a weight that falls from the tile's middle to its border. Positions are
taken from the stage as they are: the map shows what the stage believes, it does not register.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import cv2
import numpy as np
import numpy.typing as npt

from controller.geometry import CameraGeometry
from controller.messages import Point
from controller.record.frames import ome_attributes, write_ome_image
from drivers.api import Pixels

RGB8: TypeAlias = npt.NDArray[np.uint8]  # (h, w, 3)
Floats: TypeAlias = npt.NDArray[np.float32]
Grids: TypeAlias = npt.NDArray[np.float64]
Bounds: TypeAlias = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max, stage um

_GRID_PX = (32, 20)  # (w, h) at which the light is measured
_MAX_GRIDS = 400  # more tiles tell nothing new about the lamp
_LEVEL_PX = 512  # the pyramid ends when a level fits into this
_CHUNK_PX = 1024
_MIB = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Mosaic:
    """The stitched chip; stage x runs right, stage y runs UP: a row further down is less y."""

    pixels: RGB8  # black where nothing was seen
    is_covered: npt.NDArray[np.bool_]  # (h, w)
    x_um: float  # stage position of the centre of pixel (0, 0), the upper left one
    y_um: float
    um_per_px: float

    def stage_um(self, col: float, row: float) -> Point:
        """The stage position under a pixel of the map."""
        return self.x_um + col * self.um_per_px, self.y_um - row * self.um_per_px

    def map_px(self, x_um: float, y_um: float) -> Point:
        """(col, row) of the map that shows a stage position."""
        return (x_um - self.x_um) / self.um_per_px, (self.y_um - y_um) / self.um_per_px


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """A shrunk tile that waits to be painted."""

    pixels: RGB8
    to_stage: Grids  # (2, 3): (col, row, 1) of `pixels` -> stage um


class MosaicBuilder:
    """Collects tiles while they come and paints the map from them."""

    def __init__(
        self,
        bounds_um: Bounds,
        um_per_px: float,
        *,
        geometry: CameraGeometry | None = None,
        is_flattened: bool = True,
        min_flat_tiles: int = 6,
        max_map_px: int = 60_000_000,
        max_waiting_mib: float = 256.0,
    ) -> None:
        """An empty map over `bounds_um`; `um_per_px` grows if it would exceed `max_map_px`.

        is_flattened: even out the light, once `min_flat_tiles` of one kind are there to tell it.
        """
        x_min, y_min, x_max, y_max = bounds_um
        if not (x_max > x_min and y_max > y_min and um_per_px > 0.0):
            msg = f"a map needs an area and a scale, got bounds {bounds_um} at {um_per_px} um/px"
            raise ValueError(msg)
        area_um2 = (x_max - x_min) * (y_max - y_min)
        self.um_per_px = max(um_per_px, math.sqrt(area_um2 / max_map_px))
        self.shape_px = (
            math.ceil((y_max - y_min) / self.um_per_px),
            math.ceil((x_max - x_min) / self.um_per_px),
        )
        self._x_um = x_min + self.um_per_px / 2
        self._y_um = y_max - self.um_per_px / 2
        self._turn = (geometry or CameraGeometry()).matrix()
        self._is_flattened = is_flattened
        self._min_flat_tiles = min_flat_tiles
        self._max_waiting_bytes = max_waiting_mib * _MIB
        self._waiting: deque[_Tile] = deque()
        self._waiting_bytes = 0
        # Tiles of one shape share one light.
        self._grids: dict[tuple[int, ...], list[Floats]] = defaultdict(list)
        self._lights: dict[tuple[int, ...], tuple[int, Floats]] = {}
        self._pixels: RGB8 = np.zeros((*self.shape_px, 3), dtype=np.uint8)
        self._weights: Floats = np.zeros(self.shape_px, dtype=np.float32)

    def add(
        self, pixels: Pixels, x_um: float, y_um: float, pixel_size_nm: float, bit_depth: int = 8
    ) -> None:
        """Lay a tile whose middle shows the sample point (x, y); grey tiles are shown as grey."""
        small, to_image_px = _shrunk(pixels, self.um_per_px / (pixel_size_nm * 1e-3), bit_depth)
        h_px, w_px = pixels.shape[:2]
        # (col, row) of the image -> (right, up) of its middle in um -> stage
        to_middle = np.array([[1.0, 0.0, -(w_px - 1) / 2], [0.0, -1.0, (h_px - 1) / 2]])
        to_stage = (self._turn * (pixel_size_nm * 1e-3)) @ to_middle @ to_image_px
        to_stage[:, 2] += (x_um, y_um)
        self._waiting.append(_Tile(small, to_stage))
        self._waiting_bytes += small.nbytes
        grids = self._grids[small.shape]
        if self._is_flattened and len(grids) < _MAX_GRIDS:
            grids.append(_light_grid(small))
        while self._waiting_bytes > self._max_waiting_bytes:
            self._paint_oldest()

    def build(self) -> Mosaic:
        """The map as far as it is known; more tiles may follow."""
        while self._waiting:
            self._paint_oldest()
        return Mosaic(
            self._pixels.copy(), self._weights > 0.0, self._x_um, self._y_um, self.um_per_px
        )

    def _paint_oldest(self) -> None:
        tile = self._waiting.popleft()
        self._waiting_bytes -= tile.pixels.nbytes
        self._lay(tile, self._light(tile.pixels.shape))

    def _light(self, shape: tuple[int, ...]) -> Floats | None:
        """The light of tiles of one shape, measured again when a quarter more of them are known."""
        grids = self._grids[shape]
        if len(grids) < self._min_flat_tiles:
            return None
        known, light = self._lights.get(shape, (0, None))
        if light is None or len(grids) >= 1.25 * known:
            light = fitted_light(grids, shape[:2])
            self._lights[shape] = (len(grids), light)
        return light

    def _lay(self, tile: _Tile, light: Floats | None) -> None:
        scale = 1.0 / self.um_per_px
        to_map = np.array([[scale, 0.0, -self._x_um * scale], [0.0, -scale, self._y_um * scale]])
        to_map = to_map @ np.vstack([tile.to_stage, [0.0, 0.0, 1.0]])  # (col, row, 1) -> map
        h_px, w_px = tile.pixels.shape[:2]
        corners = to_map @ np.array(
            [
                [-0.5, w_px - 0.5, w_px - 0.5, -0.5],
                [-0.5, -0.5, h_px - 0.5, h_px - 0.5],
                [1.0, 1.0, 1.0, 1.0],
            ]
        )
        low = np.maximum(np.floor(corners.min(axis=1)).astype(int), 0)
        high = np.minimum(np.ceil(corners.max(axis=1)).astype(int) + 1, self.shape_px[::-1])
        size = high - low
        if size.min() <= 0:
            return
        to_map[:, 2] -= low
        pixels = tile.pixels.astype(np.float32)
        if light is not None:
            pixels /= light
        side = (int(size[0]), int(size[1]))
        laid = cv2.warpAffine(pixels, to_map, side, borderMode=cv2.BORDER_REPLICATE)
        share = cv2.warpAffine(_hat(tile.pixels.shape), to_map, side, borderValue=0.0)
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        total = self._weights[window] + share
        ratio = np.divide(share, total, out=np.zeros_like(share), where=total > 0.0)
        before = self._pixels[window].astype(np.float32)
        blended = before + (laid - before) * ratio[..., np.newaxis]
        self._pixels[window] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
        self._weights[window] = total


def bounds_of(centres_um: list[Point], field_w_um: float, field_h_um: float) -> Bounds:
    """The smallest area that holds fields around all the centres."""
    xs, ys = [x for x, _ in centres_um], [y for _, y in centres_um]
    half_w, half_h = field_w_um / 2, field_h_um / 2
    return min(xs) - half_w, min(ys) - half_h, max(xs) + half_w, max(ys) + half_h


def write_mosaic(path: Path, mosaic: Mosaic, name: str = "mosaic") -> None:
    """Write the map as an OME-Zarr pyramid, x and y as in `record.frames`; whole or not at all."""
    levels: list[RGB8] = [np.ascontiguousarray(mosaic.pixels.transpose(2, 0, 1))]  # (3, h, w)
    while max(levels[-1].shape[1:]) > _LEVEL_PX:
        levels.append(_halved(levels[-1]))
    attributes = {
        "ome": ome_attributes(
            name, (mosaic.x_um, -mosaic.y_um), mosaic.um_per_px * 1e3, 3, 8, len(levels)
        ),
        "scopeloop": {
            "x_um": mosaic.x_um,
            "y_um": mosaic.y_um,
            "um_per_px": mosaic.um_per_px,
            "frame_of_coordinates": "OME x = stage x, OME y = -stage y; stage: x right, y up, um",
        },
    }
    write_ome_image(path, cast("list[Pixels]", levels), attributes, _CHUNK_PX)


def fitted_light(grids: list[Floats], shape_px: tuple[int, ...]) -> Floats:
    """(h, w, 3): how bright each place of the image is, mean 1, from what many tiles showed there.

    grids: (gh, gw, 3) each, every tile divided by its own median. The surface is
    1, x, y, x2, xy, y2, r4 with x, y in -1..1, fitted with Tukey's weights.
    """
    typical = np.median(np.stack(grids), axis=0)
    grid_h_px, grid_w_px = typical.shape[:2]
    terms = _light_terms(grid_h_px, grid_w_px)
    fine = _light_terms(shape_px[0], shape_px[1])
    channels = []
    for channel in range(3):
        values = typical[..., channel].ravel().astype(np.float64)
        weights = np.ones_like(values)
        for _ in range(5):
            root = np.sqrt(weights)
            fit = np.linalg.lstsq(terms * root[:, np.newaxis], values * root, rcond=None)[0]
            residual = values - terms @ fit
            spread = 1.4826 * float(np.median(np.abs(residual))) + 1e-6
            weights = np.clip(1.0 - (residual / (4.7 * spread)) ** 2, 0.0, None) ** 2
        surface = (fine @ fit).reshape(shape_px[:2])
        channels.append(np.clip(surface / surface.mean(), 0.4, 2.5))
    return np.stack(channels, axis=2).astype(np.float32)


def _light_terms(h_px: int, w_px: int) -> Grids:
    y = np.repeat((np.arange(h_px) + 0.5) / h_px * 2.0 - 1.0, w_px)
    x = np.tile((np.arange(w_px) + 0.5) / w_px * 2.0 - 1.0, h_px)
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, (x * x + y * y) ** 2], axis=1)


def _light_grid(small: RGB8) -> Floats:
    grid = cv2.resize(small, _GRID_PX, interpolation=cv2.INTER_AREA).astype(np.float32)
    medians = np.maximum(np.median(grid.reshape(-1, 3), axis=0), 1.0)
    return cast("Floats", (grid / medians).astype(np.float32))


def _shrunk(pixels: Pixels, ratio: float, bit_depth: int) -> tuple[RGB8, Grids]:
    """The tile averaged over whole blocks, 8 bit RGB, and (col, row, 1) of it -> of the tile."""
    h_px, w_px = pixels.shape[:2]
    block = max(1, min(math.floor(ratio + 1e-6), h_px, w_px))
    small_w, small_h = w_px // block, h_px // block
    left, top = (w_px - small_w * block) // 2, (h_px - small_h * block) // 2
    part: Any = pixels[top : top + small_h * block, left : left + small_w * block]
    if block > 1:
        part = cv2.resize(part, (small_w, small_h), interpolation=cv2.INTER_AREA)
    if part.dtype != np.uint8:
        part = cv2.convertScaleAbs(part, alpha=255.0 / (2**bit_depth - 1))
    if part.ndim == 2:
        part = cv2.cvtColor(part, cv2.COLOR_GRAY2RGB)
    inset = (block - 1) / 2
    to_image = np.array([[block, 0.0, left + inset], [0.0, block, top + inset], [0.0, 0.0, 1.0]])
    # A copy, or the whole frame would be kept alive by a view of it.
    return (part.copy() if block == 1 else part), to_image


def _hat(shape: tuple[int, ...]) -> Floats:
    """Weight of a tile's pixels: 1 in the middle, nearly 0 at the border."""
    ramps = [1.0 - np.abs((np.arange(size) + 0.5) / size * 2.0 - 1.0) + 1e-3 for size in shape[:2]]
    return np.outer(ramps[0], ramps[1]).astype(np.float32)


def _halved(planes: Pixels) -> RGB8:
    """(c, h, w) averaged over 2 x 2; an odd border is doubled first."""
    _, h_px, w_px = planes.shape
    even = np.pad(planes, ((0, 0), (0, h_px % 2), (0, w_px % 2)), mode="edge").astype(np.uint16)
    total = even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]
    mean: RGB8 = ((total + 2) // 4).astype(np.uint8)
    return mean
