"""The picture: which light reaches which pixel when this chip lies under that objective.

Chain, each step linear until the last: colours of what lies there (thin-film interference) ->
exact area per pixel -> dirt with a relief -> blur of the lens at the local defocus -> smear of a
moving stage -> vignetting, stray light -> the sensor.

The pixel (column, row) shows the point of the stage

    x + (column - (w - 1) / 2) pixel_size,    y - (row - (h - 1) / 2) pixel_size,

y up on the stage and down in the image; neighbouring tiles agree because what lies just outside a
frame is drawn too and blurs into it. Defocus may change across the field, as the chip is tilted or
bowed: the field is then blurred in cells, each with its own kernel, which differ by steps too
small to see. Where nothing but even ground lies there is nothing to blur.

A frame depends on the settings, the seed and its number alone; rendering twice gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from drivers.api import Objective, Pixels
from simulator.chip import GROUND, SUBSTRATE, Chip, Paint
from simulator.optics import ObjectiveOptics, OpticsSettings
from simulator.raster import add_coverage, to_picture
from simulator.relief import HAZE_PITCH_UM, Relief, haze, relief
from simulator.sensor import Exposure, SensorSettings, expose

Planes = npt.NDArray[np.float32]  # (3, h, w), linear light, a mirror is 1

_CELL_PX = 128
_SAME_DEFOCUS_DOF = 0.25  # less change than this across the field is none
_BINNED_FROM_PX = 12.0  # discs of confusion larger than this are blurred on coarser pixels
_GLUE_STEP_NM = 2.0
_GLUE_MAX_NM = 2_000.0


@dataclass(frozen=True, slots=True, eq=False)
class _Edges:
    """All patches of a chip, flattened for quick selection."""

    start_um: npt.NDArray[np.float64]  # (e, 2)
    end_um: npt.NDArray[np.float64]
    patch: npt.NDArray[np.intp]  # (e,)
    low_um: npt.NDArray[np.float64]  # (p, 2) corner of each patch's bounding box
    high_um: npt.NDArray[np.float64]
    paint: npt.NDArray[np.intp]  # (p,) into the table of paints
    under: npt.NDArray[np.intp]
    opacity: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Palette:
    """Colours under one objective."""

    optics: ObjectiveOptics
    ground: npt.NDArray[np.float32]  # (3,)
    change: npt.NDArray[np.float64]  # (p, 3) of each patch against what is under it
    glue: npt.NDArray[np.float32]  # (n, 3) ratio to the bare substrate, in steps of thickness


class Renderer:
    """A chip, a light path and a camera; keeps what can be kept between frames."""

    def __init__(
        self,
        chip: Chip,
        optics: OpticsSettings | None = None,
        sensor: SensorSettings | None = None,
        seed: int = 0,
    ) -> None:
        self._chip = chip
        self._optics = optics or OpticsSettings()
        self._sensor = sensor or SensorSettings()
        self._seed = seed
        self._paints: dict[Paint, int] = {}
        self._edges = self._flatten()
        self._palettes: dict[Objective, _Palette] = {}
        self._reliefs: dict[int, Relief] = {}
        self._light_fields: dict[tuple[Objective, tuple[int, int]], npt.NDArray[np.float32]] = {}
        self._haze = haze(chip.settings.seed)
        self._speck_um = np.array([[s.x_um, s.y_um] for s in chip.specks]).reshape(-1, 2)
        self._speck_reach_um = np.array([2.0 * s.radius_um + 4.0 for s in chip.specks])

    @property
    def sensor(self) -> SensorSettings:
        """The camera's settings."""
        return self._sensor

    def render(
        self,
        objective: Objective,
        stage_x_um: float,
        stage_y_um: float,
        defocus_um: float = 0.0,
        shape_px: tuple[int, int] = (1200, 1920),
        *,
        frame_number: int = 0,
        exposure_s: float = 0.012,
        lamp_ratio: float = 1.0,
        started_s: float = 0.0,
        velocity_um_per_s: tuple[float, float] = (0.0, 0.0),
    ) -> Pixels:
        """One frame, (h, w, 3) RGB, read-only, uint8 at 8 bits and uint16 above.

        stage_x_um, stage_y_um: the point on the optical axis (the caller adds parcentric offsets),
        in the middle of the exposure. defocus_um: at that point, > 0 with the sample too far away;
        the slope of the chip makes it differ elsewhere. velocity_um_per_s: of that point.
        """
        planes = self.light(objective, stage_x_um, stage_y_um, defocus_um, shape_px)
        if velocity_um_per_s != (0.0, 0.0):
            planes = self._smeared(planes, objective, velocity_um_per_s, exposure_s)
        palette = self._palette(objective)
        key = (objective, shape_px)
        if key not in self._light_fields:
            self._light_fields[key] = palette.optics.light_field(shape_px)
        exposure = Exposure(
            self._seed,
            frame_number,
            exposure_s,
            started_s,
            lamp_ratio * palette.optics.brightness_ratio(),
        )
        return expose(planes, self._light_fields[key], self._sensor, exposure)

    def light(
        self,
        objective: Objective,
        stage_x_um: float,
        stage_y_um: float,
        defocus_um: float = 0.0,
        shape_px: tuple[int, int] = (1200, 1920),
    ) -> Planes:
        """The image on the sensor before vignetting and noise, (3, h, w) float32, fresh."""
        palette = self._palette(objective)
        optics = palette.optics
        pixel_um = objective.pixel_size_nm * 1e-3
        h, w = shape_px
        defocus = self._defocus_um(stage_x_um, stage_y_um, defocus_um, shape_px, pixel_um)
        corners = np.array([defocus(column, row) for column in (0.0, w) for row in (0.0, h)])
        sharpest = 0.0 if corners.min() < 0.0 < corners.max() else float(np.abs(corners).min())
        binning = 1
        while optics.blur_radius_px(sharpest) / binning > _BINNED_FROM_PX:
            binning *= 2
        widest = optics.kernels(float(corners[np.abs(corners).argmax()]), binning)
        margin = (max(kernel.shape[0] for kernel in widest) // 2 + 1) * binning
        canvas_h = -(-(h + 2 * margin) // binning) * binning
        canvas_w = -(-(w + 2 * margin) // binning) * binning

        # Chip frame (um) to canvas (px, (0, 0) the outer corner of the first pixel): p @ turn + at.
        turn = np.deg2rad(self._chip.settings.rotation_deg)
        matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        matrix = matrix @ np.diag([1.0, -1.0]) / pixel_um
        centre = np.asarray(self._chip.settings.centre_um) - (stage_x_um, stage_y_um)
        at = centre * (1.0, -1.0) / pixel_um + (w / 2.0 + margin, h / 2.0 + margin)

        canvas = np.zeros((3, canvas_h, canvas_w + 1), dtype=np.float32)
        busy = np.zeros((canvas_h, canvas_w), dtype=np.uint8)
        self._draw_patches(canvas, busy, palette, matrix, at)
        planes = to_picture(canvas)
        planes += palette.ground[:, None, None]
        self._draw_specks(planes, busy, palette, matrix, at, pixel_um)
        if binning > 1:
            small = (canvas_w // binning, canvas_h // binning)
            area = cv2.INTER_AREA
            planes = np.stack([cv2.resize(plane, small, interpolation=area) for plane in planes])
            busy = np.ones(small[::-1], dtype=np.uint8)

        def defocus_at_canvas(column: float, row: float) -> float:
            return defocus(column * binning - margin, row * binning - margin)

        if float(np.ptp(corners)) < _SAME_DEFOCUS_DOF * objective.depth_of_field_um():
            middle = defocus(w / 2.0, h / 2.0)
            blurred = _blurred(planes, busy, optics, lambda _c, _r: middle, binning)
        else:
            blurred = _blurred(planes, busy, optics, defocus_at_canvas, binning)
        if binning > 1:
            full = (canvas_w, canvas_h)
            linear = cv2.INTER_LINEAR
            blurred = np.stack([cv2.resize(plane, full, interpolation=linear) for plane in blurred])
        found = blurred[:, margin : margin + h, margin : margin + w]
        self._add_haze(found, palette, matrix, at - margin)
        stray = self._optics.stray_light_ratio
        if stray > 0.0:
            found = found + np.float32(stray)
        return np.ascontiguousarray(found)

    def _flatten(self) -> _Edges:
        starts, ends, owners, lows, highs = [], [], [], [], []
        paint, under = [], []
        for number, patch in enumerate(self._chip.patches):
            for ring in patch.rings_um:
                starts.append(ring)
                ends.append(np.roll(ring, -1, axis=0))
                owners.append(np.full(len(ring), number, dtype=np.intp))
            lows.append(patch.rings_um[0].min(axis=0))
            highs.append(patch.rings_um[0].max(axis=0))
            paint.append(self._paints.setdefault(patch.paint, len(self._paints)))
            under.append(self._paints.setdefault(patch.under, len(self._paints)))
        return _Edges(
            np.concatenate(starts),
            np.concatenate(ends),
            np.concatenate(owners),
            np.asarray(lows),
            np.asarray(highs),
            np.asarray(paint, dtype=np.intp),
            np.asarray(under, dtype=np.intp),
            np.asarray([patch.opacity for patch in self._chip.patches]),
        )

    def _palette(self, objective: Objective) -> _Palette:
        if objective not in self._palettes:
            optics = ObjectiveOptics(objective, self._optics)
            settings = self._chip.settings
            table = optics.colours(tuple(self._paints), settings).astype(np.float64)
            edges = self._edges
            change = (table[edges.paint] - table[edges.under]) * edges.opacity[:, None]
            ground, bare = optics.colours((GROUND, SUBSTRATE), settings)
            film_nm = np.arange(0.0, _GLUE_MAX_NM, _GLUE_STEP_NM)
            films = tuple(Paint("organic", float(nm)) for nm in film_nm)
            glue = optics.colours(films, settings) / bare
            self._palettes[objective] = _Palette(optics, ground, change, glue.astype(np.float32))
        return self._palettes[objective]

    def _defocus_um(
        self,
        stage_x_um: float,
        stage_y_um: float,
        defocus_um: float,
        shape_px: tuple[int, int],
        pixel_um: float,
    ) -> Callable[[float, float], float]:
        h, w = shape_px
        focused_z_um = float(self._chip.surface_z_um(stage_x_um, stage_y_um))

        def at(column: float, row: float) -> float:
            x = stage_x_um + (column - w / 2.0) * pixel_um
            y = stage_y_um - (row - h / 2.0) * pixel_um
            return defocus_um + focused_z_um - float(self._chip.surface_z_um(x, y))

        return at

    def _draw_patches(
        self,
        canvas: Planes,
        busy: npt.NDArray[np.uint8],
        palette: _Palette,
        matrix: npt.NDArray[np.float64],
        at: npt.NDArray[np.float64],
    ) -> None:
        h, w = busy.shape
        corners_px = np.array([[0.0, 0.0], [w, 0.0], [0.0, h], [w, h]])
        corners_um = (corners_px - at) @ np.linalg.inv(matrix)
        low, high = corners_um.min(axis=0), corners_um.max(axis=0)
        edges = self._edges
        seen = np.all((edges.low_um <= high) & (edges.high_um >= low), axis=1)
        chosen = np.flatnonzero(seen[edges.patch])
        start = edges.start_um[chosen] @ matrix + at
        end = edges.end_um[chosen] @ matrix + at
        weights = palette.change[edges.patch[chosen]]
        rows, columns = add_coverage(canvas, start, end, weights)
        busy[rows, columns] = 1

    def _draw_specks(
        self,
        planes: Planes,
        busy: npt.NDArray[np.uint8],
        palette: _Palette,
        matrix: npt.NDArray[np.float64],
        at: npt.NDArray[np.float64],
        pixel_um: float,
    ) -> None:
        h, w = busy.shape
        centres = self._speck_um @ matrix + at
        reach = self._speck_reach_um / pixel_um
        seen = np.all((centres > -reach[:, None]) & (centres < [w, h] + reach[:, None]), axis=1)
        for number in np.flatnonzero(seen).tolist():
            if number not in self._reliefs:
                self._reliefs[number] = relief(self._chip.specks[number])
            found = self._reliefs[number]
            x, y = centres[number]
            left, right = max(0, int(x - reach[number])), min(w, int(x + reach[number]) + 1)
            top, bottom = max(0, int(y - reach[number])), min(h, int(y + reach[number]) + 1)
            if left >= right or top >= bottom:
                continue
            values = _placed(
                found, matrix, (float(x) - left, float(y) - top), (bottom - top, right - left)
            )
            box = (slice(None), slice(top, bottom), slice(left, right))
            if self._chip.specks[number].kind == "dust":
                planes[box] *= np.maximum(1.0 - values, 0.0)
            else:
                step = np.minimum(values / _GLUE_STEP_NM, len(palette.glue) - 1.001)
                low = step.astype(np.intp)
                share = (step - low)[..., None]
                ratio = palette.glue[low] * (1.0 - share) + palette.glue[low + 1] * share
                planes[box] *= np.moveaxis(ratio, 2, 0)
            busy[top:bottom, left:right] = 1

    def _add_haze(
        self,
        planes: Planes,
        palette: _Palette,
        matrix: npt.NDArray[np.float64],
        at: npt.NDArray[np.float64],
    ) -> None:
        """A film far thinner than the wavelength scales the light by its thickness, to first order.

        Its mottles are wider than the blur, so it is put on afterwards.
        """
        rms_nm = self._chip.settings.haze_nm
        if rms_nm == 0.0:
            return
        _, h, w = planes.shape
        coarse = max(1, int(float(np.hypot(matrix[0, 0], matrix[1, 0]))))  # pixels of 1 um
        size = (-(-w // coarse) + 2, -(-h // coarse) + 2)  # one more on each side
        affine = _affine(matrix / coarse, at / coarse + 1.0, HAZE_PITCH_UM, (0.0, 0.0))
        flags, wrap = cv2.INTER_LINEAR, cv2.BORDER_WRAP
        film = cv2.warpAffine(self._haze, affine, size, flags=flags, borderMode=wrap)
        full = (size[0] * coarse, size[1] * coarse)
        film = cv2.resize(film, full, interpolation=cv2.INTER_LINEAR)
        film = film[coarse : coarse + h, coarse : coarse + w]
        per_nm = (palette.glue[1] - palette.glue[0]) / _GLUE_STEP_NM
        for plane, slope in zip(planes, per_nm, strict=True):
            factor = film * np.float32(slope * rms_nm)
            factor += np.float32(1.0)
            plane *= factor

    def _smeared(
        self,
        planes: Planes,
        objective: Objective,
        velocity_um_per_s: tuple[float, float],
        exposure_s: float,
    ) -> Planes:
        """A moving stage: each row smears along its path, and under a rolling shutter lags."""
        pixel_um = objective.pixel_size_nm * 1e-3
        speed = np.array([-velocity_um_per_s[0], velocity_um_per_s[1]]) / pixel_um  # px/s, y down
        _, h, w = planes.shape
        moved = planes
        if self._sensor.shutter == "rolling":
            per_row = speed * self._sensor.readout_s / h
            # Image row r shows what a global shutter would have had at r - shift: linear in r.
            shear = np.array([[1.0, -per_row[0], 0.0], [0.0, 1.0 - per_row[1], 0.0]])
            shear[:, 2] = per_row * (h - 1) / 2.0
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            edge = cv2.BORDER_REPLICATE
            moved = np.stack(
                [
                    cv2.warpAffine(plane, shear, (w, h), flags=flags, borderMode=edge)
                    for plane in moved
                ]
            )
        path_px = float(np.hypot(*speed)) * exposure_s
        if path_px > 0.25:
            kernel = _line_kernel(speed * exposure_s)
            moved = np.stack([cv2.filter2D(plane, -1, kernel) for plane in moved])
        return moved


def _placed(
    found: Relief,
    matrix: npt.NDArray[np.float64],
    centre_px: tuple[float, float],
    shape_px: tuple[int, int],
) -> npt.NDArray[np.float32]:
    """A relief's map as it lies in a part of the canvas; zero outside of it."""
    values, pitch_um = found.values, found.pitch_um
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))  # px per um
    shrink = 1.0 / (pitch_um * scale)  # pixels of the map per pixel of the canvas
    if shrink > 1.5:
        side = max(3, round(values.shape[0] / shrink))
        pitch_um *= values.shape[0] / side
        small = cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA)
        values = np.asarray(small, dtype=np.float32)
    middle = (values.shape[0] - 1) / 2.0
    affine = _affine(matrix, np.asarray(centre_px), pitch_um, (middle, middle))
    size = (shape_px[1], shape_px[0])
    return np.asarray(cv2.warpAffine(values, affine, size, flags=cv2.INTER_LINEAR))


def _affine(
    matrix: npt.NDArray[np.float64],
    at_px: npt.NDArray[np.float64],
    pitch_um: float,
    origin_px: tuple[float, float],
) -> npt.NDArray[np.float64]:
    """From a map's (column, row), y up along decreasing rows, to pixels of the canvas.

    The map's pixel `origin_px` lies at `at_px`, which counts from the outer corner of the first
    pixel, as all drawing here does; OpenCV counts from its centre.
    """
    linear = matrix.T @ np.diag([pitch_um, -pitch_um])
    offset = at_px - 0.5 - linear @ np.asarray(origin_px)
    return np.concatenate([linear, offset[:, None]], axis=1)


def _line_kernel(path_px: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """A line through the middle of a kernel, along `path_px`, sum 1."""
    half = max(1, int(np.ceil(np.abs(path_px).max() / 2.0)) + 1)
    kernel = np.zeros((2 * half + 1, 2 * half + 1), dtype=np.float32)
    steps = np.linspace(-0.5, 0.5, 8 * half + 1)
    for share in steps:
        x, y = half + share * path_px
        column, row = int(x), int(y)
        u, v = x - column, y - row
        kernel[row, column] += (1 - u) * (1 - v)
        kernel[row, column + 1] += u * (1 - v)
        kernel[row + 1, column] += (1 - u) * v
        kernel[row + 1, column + 1] += u * v
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def _blurred(
    planes: Planes,
    busy: npt.NDArray[np.uint8],
    optics: ObjectiveOptics,
    defocus_um: Callable[[float, float], float],
    binning: int,
) -> Planes:
    """Each cell through the kernel of its own defocus; even ground is left as it is."""
    _, h, w = planes.shape
    out = planes.copy()
    for top in range(0, h, _CELL_PX):
        for left in range(0, w, _CELL_PX):
            bottom, right = min(top + _CELL_PX, h), min(left + _CELL_PX, w)
            here = defocus_um((left + right) / 2.0, (top + bottom) / 2.0)
            kernels = optics.kernels(here, binning)
            reach = max(kernel.shape[0] for kernel in kernels) // 2
            y0, y1 = max(top - reach, 0), min(bottom + reach, h)
            x0, x1 = max(left - reach, 0), min(right + reach, w)
            if not busy[y0:y1, x0:x1].any():
                continue
            inner = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
            for channel, kernel in enumerate(kernels):
                source = planes[channel, y0:y1, x0:x1]
                filtered = cv2.filter2D(source, -1, kernel, borderType=cv2.BORDER_REPLICATE)
                out[channel, top:bottom, left:right] = filtered[inner]
    return out
