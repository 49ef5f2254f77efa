"""The report's figures: pictures as data URIs and small inline SVG, from plain numbers.

SVG user units are stage um wherever a figure shows the sample, so a coordinate in the figure is a
coordinate on the stage; y is negated, because pictures run downwards and the stage runs upwards.
`svg_xy` is the only place that does so. Sizes that belong to the screen (markers, labels) are CSS
multiples of `--u`, the user units per screen pixel, which the page's script keeps up to date.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from controller.messages import Point, Ring

RGB8: TypeAlias = npt.NDArray[np.uint8]  # (h, w, 3) R, G, B, y down
Grid: TypeAlias = npt.NDArray[np.float64]

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NNBSP = "\N{NARROW NO-BREAK SPACE}"
# Low to high; lightness rises all the way, so it survives grey printing and colour blindness.
HEAT_STOPS = ((45, 27, 84), (61, 74, 144), (44, 128, 148), (94, 178, 128), (238, 226, 140))


@dataclass(frozen=True, slots=True)
class Extent:
    """A rectangle of the stage."""

    left_um: float
    bottom_um: float
    right_um: float
    top_um: float

    @property
    def width_um(self) -> float:
        """Along stage x."""
        return self.right_um - self.left_um

    @property
    def height_um(self) -> float:
        """Along stage y."""
        return self.top_um - self.bottom_um

    def grown(self, margin_um: float) -> Extent:
        """The same with a margin on all sides."""
        return Extent(
            self.left_um - margin_um,
            self.bottom_um - margin_um,
            self.right_um + margin_um,
            self.top_um + margin_um,
        )

    def view_box(self) -> str:
        """As an SVG viewBox."""
        x, y = svg_xy((self.left_um, self.top_um))
        return f"{fixed(x, 1)} {fixed(y, 1)} {fixed(self.width_um, 1)} {fixed(self.height_um, 1)}"


def extent_of(points: Iterable[Point]) -> Extent | None:
    """The smallest rectangle around all finite points, or None where there is none."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return None
    xs, ys = [p[0] for p in finite], [p[1] for p in finite]
    return Extent(min(xs), min(ys), max(xs), max(ys))


def svg_xy(point: Point) -> Point:
    """Stage um to SVG user units; the one flip of y."""
    return point[0], -point[1]


def fixed(value: float, digits: int) -> str:
    """For SVG attributes: no exponent, no trailing zeros, no negative zero."""
    text = f"{value:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def number(value: float, digits: int) -> str:
    """For readers: a true minus sign, and a dash for what is not a number."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    is_zero = not text.strip("-0.")
    return text.lstrip("-") if is_zero else text.replace("-", MINUS)


def nice_length(limit: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that does not exceed `limit`."""
    if not (math.isfinite(limit) and limit > 0.0):
        return 1.0
    power = 10.0 ** math.floor(math.log10(limit))
    return float(max(step * power for step in (1.0, 2.0, 5.0) if step * power <= limit * 1.000001))


def length_text(length_um: float) -> str:
    """A scale bar's label."""
    if length_um >= 1_000.0:
        return f"{length_um / 1_000.0:g}{NNBSP}mm"
    return f"{length_um:g}{NNBSP}µm"


def picture_uri(
    pixels: RGB8, max_side_px: int, quality: int, max_bytes: int | None = None
) -> str | None:
    """A JPEG data URI of an RGB picture, shrunk to `max_side_px`; None for an empty picture.

    Colour is kept at full resolution: layer contrast is a matter of colour. With `max_bytes` the
    quality is lowered in steps until the file fits or 40 is reached.
    """
    if pixels.size == 0:
        return None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        msg = f"a report picture is (h, w, 3) uint8, got {pixels.shape} {pixels.dtype}"
        raise ValueError(msg)
    height_px, width_px = pixels.shape[:2]
    shrink_ratio = max_side_px / max(height_px, width_px)
    if shrink_ratio < 1.0:
        size = (max(1, round(width_px * shrink_ratio)), max(1, round(height_px * shrink_ratio)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    while True:
        sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])
        if max_bytes is None or data.size <= max_bytes or quality <= 40:
            return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
        quality -= 12


def _slimmed(ring: Ring, tolerance: float) -> list[Point]:
    """The ring with fewer points, none further than `tolerance` from the old line."""
    finite = [p for p in ring if math.isfinite(p[0]) and math.isfinite(p[1])]
    if len(finite) < 4 or tolerance <= 0.0:
        return finite
    origin = np.asarray(finite[0], dtype=np.float64)  # float32 below: keep the numbers small
    local = (np.asarray(finite, dtype=np.float64) - origin).astype(np.float32)
    slim = cv2.approxPolyDP(local.reshape(-1, 1, 2), tolerance, closed=True).reshape(-1, 2)
    kept = slim if len(slim) >= 3 else local
    return [(float(x) + float(origin[0]), float(y) + float(origin[1])) for x, y in kept]


def path_data(rings: Iterable[Ring], tolerance: float, digits: int) -> str:
    """Closed rings, already in SVG coordinates, as the `d` of a path."""
    parts = []
    for ring in rings:
        points = _slimmed(ring, tolerance)
        if len(points) >= 2:
            parts.append(
                "M" + "L".join(f"{fixed(x, digits)} {fixed(y, digits)}" for x, y in points) + "Z"
            )
    return "".join(parts)


def stage_path(rings: Iterable[Ring], tolerance_um: float) -> str:
    """Stage rings as the `d` of a path in user units."""
    return path_data((tuple(svg_xy(p) for p in ring) for ring in rings), tolerance_um, 1)


def crop_path(
    rings: Iterable[Ring], centre_um: Point, um_per_px: float, width_px: int, height_px: int
) -> str:
    """Stage rings as the `d` of a path in the pixels of a crop, (0, 0) its upper left corner."""
    return path_data(
        (
            tuple(
                (
                    (x - centre_um[0]) / um_per_px + width_px / 2,
                    (centre_um[1] - y) / um_per_px + height_px / 2,
                )
                for x, y in ring
            )
            for ring in rings
        ),
        0.4,
        1,
    )


def rectangles_path(centres_um: Iterable[Point], width_um: float, height_um: float) -> str:
    """Fields of view as one path."""
    parts = []
    for centre in centres_um:
        x, y = svg_xy(centre)
        parts.append(
            f"M{fixed(x - width_um / 2, 1)} {fixed(y - height_um / 2, 1)}"
            f"h{fixed(width_um, 1)}v{fixed(height_um, 1)}h{fixed(-width_um, 1)}z"
        )
    return "".join(parts)


def heat_rgb(ratio: float) -> tuple[int, int, int]:
    """The colour of `ratio` in 0..1 on the page's one scale from low to high."""
    at = min(max(ratio, 0.0), 1.0) * (len(HEAT_STOPS) - 1)
    index = min(int(at), len(HEAT_STOPS) - 2)
    low, high = HEAT_STOPS[index], HEAT_STOPS[index + 1]
    red, green, blue = (round(a + (b - a) * (at - index)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def heat_css(ratio: float) -> str:
    """The same as a CSS colour."""
    red, green, blue = heat_rgb(ratio)
    return f"rgb({red},{green},{blue})"


def heat_gradient_css(steps: int) -> str:
    """The scale as a CSS gradient of `steps` bands, low at the left."""
    stops = []
    for index in range(steps):
        colour = heat_css(index / max(1, steps - 1))
        stops.append(f"{colour} {100 * index / steps:.4g}% {100 * (index + 1) / steps:.4g}%")
    return f"linear-gradient(90deg,{','.join(stops)})"


def band_step(low: float, high: float, bands: int) -> float:
    """A round step that cuts low..high into at most about `bands` bands."""
    span = high - low
    if not (math.isfinite(span) and span > 0.0):
        return 1.0
    raw = span / bands
    power = 10.0 ** math.floor(math.log10(raw))
    return float(min(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= raw * 0.999))


def bands_uri(values: Grid, low: float, step: float, bands: int, side_px: int = 480) -> str:
    """A PNG data URI of a grid cut into bands, its first row at the BOTTOM; NaN is transparent.

    Bands instead of a smooth ramp: their borders are the contour lines.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, np.nanmean(values) if known.any() else 0.0)
    scale = max(1.0, side_px / max(values.shape))
    size = (max(2, round(values.shape[1] * scale)), max(2, round(values.shape[0] * scale)))
    smooth = cv2.resize(filled[::-1], size, interpolation=cv2.INTER_LINEAR)
    alpha = cv2.resize(known[::-1].astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    index = np.clip(np.floor((smooth - low) / step), 0, bands - 1).astype(np.intp)
    palette = np.array([heat_rgb(i / max(1, bands - 1)) for i in range(bands)], dtype=np.uint8)
    rgba = np.dstack([palette[index][..., ::-1], np.where(alpha > 0.5, 255, 0).astype(np.uint8)])
    _, data = cv2.imencode(".png", rgba)
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode("ascii")


@dataclass(frozen=True, slots=True)
class Measured:
    """One contrast to be laid over the ladder."""

    contrast_rgb: tuple[float, float, float]
    is_revisit: bool


def _ladder_range(layers: int, longest: float) -> float:
    """How many layers the plot shows: the thin end matters most, and jumping scales confuse."""
    for stop in (6.0, 12.0, 25.0):
        if layers <= stop - 1 and longest > stop:
            return stop
    return max(longest, float(layers), 1.0)


def ladder_plot(
    curve_layers: Grid, curve_rgb: Grid, chosen_layers: int, measured: Sequence[Measured]
) -> str:
    """Contrast over layer number: the physics as curves, the measurement as points on them."""
    width, height, left, right, top, bottom = 180.0, 146.0, 30.0, 5.0, 5.0, 27.0
    layers_max = _ladder_range(
        chosen_layers, float(curve_layers[-1]) if curve_layers.size else chosen_layers + 1.0
    )
    shown = curve_layers <= layers_max
    values = [v for m in measured for v in m.contrast_rgb if math.isfinite(v)]
    values += [float(v) for v in curve_rgb[shown].ravel() if math.isfinite(v)]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    pad = 0.06 * max(high - low, 0.02)
    low, high = low - pad, high + pad

    def at_x(layers: float) -> float:
        return left + (width - left - right) * layers / layers_max

    def at_y(contrast: float) -> float:
        return top + (height - top - bottom) * (high - contrast) / (high - low)

    out = [f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img"']
    said = "; ".join(
        f"{'revisit' if m.is_revisit else 'scan'} "
        + ", ".join(f"{c} {number(v, 3)}" for c, v in zip("RGB", m.contrast_rgb, strict=True))
        for m in measured
    )
    out.append(f' aria-label="Contrast against the ladder at {chosen_layers} layers: {said}">')
    x = at_x(chosen_layers)
    band = (width - left - right) / layers_max
    layer_class = f"l{min(max(chosen_layers, 1), 5)}"
    out.append(
        f'<rect class="chosen {layer_class}" x="{fixed(x - band / 2, 1)}" y="{top:g}" '
        f'width="{fixed(min(band, width - right - x + band / 2), 1)}" '
        f'height="{height - top - bottom:g}"/>'
    )
    step = band_step(low, high, 6)
    for k in range(math.ceil(low / step), math.floor(high / step) + 1):
        y = at_y(k * step)
        kind = "zero" if k == 0 else "grid"
        out.append(f'<path class="{kind}" d="M{left:g} {fixed(y, 1)}H{width - right:g}"/>')
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        out.append(
            f'<text x="{left - 4:g}" y="{fixed(y + 3, 1)}" class="end">'
            f"{number(k * step, digits)}</text>"
        )
    tick = 1 if layers_max <= 8 else 2 if layers_max <= 14 else 5
    out.extend(
        f'<text x="{fixed(at_x(layer), 1)}" y="{height - 14:g}" class="mid">{layer}</text>'
        for layer in range(0, int(layers_max) + 1, tick)
    )
    middle = fixed((left + width - right) / 2, 1)
    out.append(f'<text x="{middle}" y="{height - 2:g}" class="mid">layers</text>')
    for channel, name in enumerate("rgb"):
        points = [
            f"{fixed(at_x(float(n)), 1)} {fixed(at_y(float(v)), 1)}"
            for n, v in zip(curve_layers[shown], curve_rgb[shown, channel], strict=True)
            if math.isfinite(v)
        ]
        if len(points) > 1:
            out.append(f'<path class="curve {name}" d="M{"L".join(points)}"/>')
    for spot in measured:
        for name, value in zip("rgb", spot.contrast_rgb, strict=True):
            if math.isfinite(value):
                look, radius = ("again", 4.6) if spot.is_revisit else ("dot", 3.4)
                out.append(
                    f'<circle class="{look} {name}" cx="{fixed(x, 1)}" '
                    f'cy="{fixed(at_y(value), 1)}" r="{radius}"/>'
                )
    out.append("</svg>")
    return "".join(out)


def chip_axes(origin_um: Point, rotation_deg: float, length_um: float) -> str:
    """The chip's own axes, drawn at its origin."""
    cosine, sine = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    ends = {
        "x": (origin_um[0] + length_um * cosine, origin_um[1] + length_um * sine),
        "y": (origin_um[0] - length_um * sine, origin_um[1] + length_um * cosine),
    }
    x0, y0 = svg_xy(origin_um)
    out = []
    for name, end in ends.items():
        x1, y1 = svg_xy(end)
        out.append(
            f'<path class="axis" d="M{fixed(x0, 1)} {fixed(y0, 1)}L{fixed(x1, 1)} {fixed(y1, 1)}"/>'
            f'<text class="axis-name" x="{fixed(x1, 1)}" y="{fixed(y1, 1)}" '
            f'dx="{"0.35em" if name == "x" else "0"}" dy="{"0.3em" if name == "x" else "-0.35em"}" '
            f'text-anchor="{"start" if name == "x" else "middle"}">{html.escape(name)}</text>'
        )
    out.append(f'<circle class="origin" cx="{fixed(x0, 1)}" cy="{fixed(y0, 1)}"/>')
    return "".join(out)
