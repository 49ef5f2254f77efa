"""What lies under the electron beam: surfaces that send out secondary electrons.

Every specimen is a function of place: seeded lattices of seeds, ridges and noise give a height and
a material anywhere, and a field of view is drawn from them at any pixel size. Features are given in
units of `feature_nm`, so one specimen serves every magnification. A real micrograph can take their
place: cleaned of its noise, resampled and mirrored at its edges.

Secondary electrons: a surface tilted by theta to the beam sends out delta0 / cos(theta)^n of them,
because more of the beam's path lies within their escape depth (L. Reimer, Scanning Electron
Microscopy, 2nd ed., ch. 4: n about 1 for light elements, 0.8 for heavy ones); capped, for the
path in an edge is short. Ridges and rims shine for the same reason over the range in which the
beam diffuses, hollows are dark for the detector does not look into them: both follow from how far
the surface stands above its own mean over that range. A yield of 1 is bright; 0 is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Plane = npt.NDArray[np.float32]
Spectrum = npt.NDArray[np.complex64]

SpecimenKind = Literal[
    "gold_on_carbon",
    "tin_balls",
    "square_grid",
    "laths",
    "superalloy",
    "fibres",
    "near_empty",
    "empty",
    "micrograph",
]
GENERATED: tuple[SpecimenKind, ...] = (
    "gold_on_carbon",
    "tin_balls",
    "square_grid",
    "laths",
    "superalloy",
    "fibres",
)
"""The kinds that are drawn and have something to focus on."""

Slope = Annotated[float, Field(ge=-1_000.0, le=1_000.0)]

_LARGEST_GAIN = 2.6  # of the yield by tilt: the path in an edge is short


class SpecimenSettings(BaseModel):
    """One specimen; everything follows from the seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: SpecimenKind = "gold_on_carbon"
    seed: int = Field(default=1, ge=0, le=2**31)
    feature_nm: float = Field(default=150.0, gt=0.0, le=1e7)  # an island, a ball, a mesh ...
    contrast_ratio: float = Field(default=1.0, ge=0.0, le=2.0)  # 0: all of one brightness
    insulating_ratio: float = Field(default=0.0, ge=0.0, le=1.0)  # of the bright parts; they charge
    height_um: float = Field(default=0.0, ge=-1e5, le=1e5)  # of the surface, where the stage is 0
    tilt_um_per_mm: tuple[Slope, Slope] = (0.0, 0.0)  # of the surface, along x and y
    bow_um: float = Field(default=0.0, ge=-1e4, le=1e4)  # of the surface, over `bow_radius_um`
    bow_radius_um: float = Field(default=5_000.0, gt=0.0, le=1e6)
    image: str | None = None  # the micrograph's path, for that kind only
    image_pixel_size_nm: float = Field(default=10.0, gt=0.0, le=1e6)  # as it is drawn
    image_binning: int = Field(default=2, ge=1, le=16)  # against its own blur and noise

    @model_validator(mode="after")
    def _image_goes_with_its_kind(self) -> SpecimenSettings:
        if (self.kind == "micrograph") != (self.image is not None):
            raise ValueError('image must be given for kind = "micrograph", and only then')
        return self


@dataclass(slots=True, eq=False)
class SpecimenField:
    """A field of view and a margin round it, as the probe would have to be convolved with.

    yield_ratio, charging_ratio: (h + 2 margin, w + 2 margin) float32, y down, read-only.
    """

    yield_ratio: Plane
    charging_ratio: Plane | None  # None: nothing charges
    pixel_size_nm: float
    shape_px: tuple[int, int]  # (h, w) of the field itself
    margin_px: int
    centre_x_um: float
    centre_y_um: float
    _spectra: dict[tuple[str, tuple[int, int]], Spectrum] = field(default_factory=dict)

    def spectrum(self, what: Literal["yield", "charging"], padded_px: tuple[int, int]) -> Spectrum:
        """`rfft2` of the middle `padded_px` of it; kept, for a field is looked at many times."""
        found = self._spectra.get((what, padded_px))
        if found is None:
            plane = self.yield_ratio if what == "yield" else self.charging_ratio
            if plane is None:
                raise ValueError("nothing charges in this field")
            top, left = ((s - p) // 2 for s, p in zip(plane.shape, padded_px, strict=True))
            middle = plane[top : top + padded_px[0], left : left + padded_px[1]]
            found = np.fft.rfft2(middle).astype(np.complex64)
            self._spectra[what, padded_px] = found
        return found


class Specimen:
    """A specimen on its holder: what the beam sees anywhere, and how high it lies there."""

    def __init__(self, settings: SpecimenSettings) -> None:
        self.settings = settings

    def surface_z_um(self, x_um: float, y_um: float) -> float:
        """Height of the surface; what is higher is closer to the lens."""
        settings = self.settings
        tilt_x, tilt_y = settings.tilt_um_per_mm
        bow = (x_um**2 + y_um**2) / settings.bow_radius_um**2
        tilted_um = (tilt_x * x_um + tilt_y * y_um) * 1e-3
        return settings.height_um + tilted_um + settings.bow_um * bow

    def field(
        self,
        x_um: float,
        y_um: float,
        pixel_size_nm: float,
        shape_px: tuple[int, int],
        margin_px: int = 0,
    ) -> SpecimenField:
        """The field whose middle is (x, y) on the stage; the same place looks the same each time.

        Averaged over each pixel, as far as edges go: features below a pixel fade away.
        """
        settings = self.settings
        view = _View(
            x_um * 1e3,
            y_um * 1e3,
            pixel_size_nm,
            (shape_px[0] + 2 * margin_px, shape_px[1] + 2 * margin_px),
            settings,
        )
        if settings.kind == "micrograph":
            signal = _micrograph(view)
        else:
            signal = _PAINTERS[settings.kind](view)
        mean = np.float32(signal.mean())
        if settings.contrast_ratio != 1.0:
            signal = mean + np.float32(settings.contrast_ratio) * (signal - mean)
        np.maximum(signal, np.float32(0.0), out=signal)
        charging = None
        if settings.insulating_ratio > 0.0:
            # What is brighter than most is where a beam of a few kV leaves charge behind.
            charging = np.maximum(signal - mean, np.float32(0.0))
            charging *= np.float32(settings.insulating_ratio)
            charging.flags.writeable = False
        signal.flags.writeable = False
        return SpecimenField(
            yield_ratio=signal,
            charging_ratio=charging,
            pixel_size_nm=pixel_size_nm,
            shape_px=shape_px,
            margin_px=margin_px,
            centre_x_um=x_um,
            centre_y_um=y_um,
        )


# --- places ---------------------------------------------------------------------------------


class _View:
    """A grid of pixels on the specimen, in nm, y up."""

    def __init__(
        self,
        x_nm: float,
        y_nm: float,
        pixel_nm: float,
        shape_px: tuple[int, int],
        settings: SpecimenSettings,
    ) -> None:
        height, width = shape_px
        self.shape_px = shape_px
        self.pixel_nm = pixel_nm
        self.settings = settings
        self.feature_nm = settings.feature_nm
        self.seed = settings.seed
        self.x_nm = x_nm + (np.arange(width) - (width - 1) / 2) * pixel_nm
        self.y_nm = y_nm - (np.arange(height) - (height - 1) / 2) * pixel_nm
        self._turns: dict[float, tuple[Plane, Plane]] = {}

    @property
    def features_per_pixel(self) -> float:
        return self.pixel_nm / self.feature_nm

    def plane(self, value: float = 0.0) -> Plane:
        return np.full(self.shape_px, value, np.float32)

    def turned(self, angle_rad: float) -> tuple[Plane, Plane]:
        """Coordinates in features along axes turned by an angle."""
        found = self._turns.get(angle_rad)
        if found is None:
            x, y = self.x_nm[None, :] / self.feature_nm, self.y_nm[:, None] / self.feature_nm
            cos, sin = math.cos(angle_rad), math.sin(angle_rad)
            found = (
                (cos * x + sin * y).astype(np.float32),
                (cos * y - sin * x).astype(np.float32),
            )
            self._turns[angle_rad] = found
        return found

    def noise(self, size: float, channel: int) -> Plane:
        """Smooth, mean 0, standard deviation about 1, with lumps of `size` features."""
        pitch_nm = size * self.feature_nm
        left, bottom = (math.floor(a.min() / pitch_nm) - 2 for a in (self.x_nm, self.y_nm))
        right, top = (math.floor(a.max() / pitch_nm) + 4 for a in (self.x_nm, self.y_nm))
        columns, rows = np.arange(left, right), np.arange(bottom, top)
        nodes = _random(columns[None, :], rows[:, None], self.seed, channel) * 4.0 - 2.0
        scale = self.pixel_nm / pitch_nm
        # Where the pixel [0, 0] lies among the nodes; rows of nodes go up, those of pixels down.
        start_x = self.x_nm[0] / pitch_nm - left
        start_y = self.y_nm[0] / pitch_nm - bottom
        matrix = np.array([[scale, 0.0, start_x], [0.0, -scale, start_y]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        found = cv2.warpAffine(
            nodes.astype(np.float32),
            matrix,
            self.shape_px[::-1],
            flags=flags,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        return np.asarray(found, np.float32)

    def rough(self, size: float, channel: int, octaves: int = 5) -> Plane:
        """Noise of ever finer lumps, halved in size and strength, down to about two pixels."""
        total = self.plane()
        share = 1.0
        for octave in range(octaves):
            if size < 2.0 * self.features_per_pixel:
                break
            total += np.float32(share) * self.noise(size, channel + 101 * octave)
            size, share = size / 2.0, share / 1.7
        return total

    def cells(self, size: float, u: Plane, v: Plane) -> _Cells:
        """The lattice of squares of `size` features that coordinates fall into."""
        return _Cells(u / np.float32(size), v / np.float32(size), self.seed)


class _Cells:
    """Seeds, one in each square of a lattice, and what every pixel's nine nearest are like."""

    def __init__(self, u: Plane, v: Plane, seed: int) -> None:
        self._u, self._v, self._seed = u, v, seed
        self._left, self._bottom = math.floor(u.min()) - 1, math.floor(v.min()) - 1
        self._columns = math.floor(u.max()) + 2 - self._left
        self._rows = math.floor(v.max()) + 2 - self._bottom
        iu = np.floor(u).astype(np.int64) - self._left
        iv = np.floor(v).astype(np.int64) - self._bottom
        self._index = iv * self._columns + iu

    def values(self, channel: int) -> Plane:
        """A uniform random number for each square of the lattice, flat."""
        columns = np.arange(self._columns) + self._left
        rows = np.arange(self._rows) + self._bottom
        found = _random(columns[None, :], rows[:, None], self._seed, channel)
        return found.astype(np.float32).ravel()

    def neighbours(
        self, jitter: float, *, nearest: bool = False
    ) -> Iterator[tuple[npt.NDArray[np.int64], Plane, Plane]]:
        """(flat index, du, dv) of seeds round each pixel; the pixel less the seed.

        nearest: the four of the nearest squares, else all nine: enough for what reaches no further
        than 1 - jitter / 2 squares from its seed.
        """
        lattice_u = np.arange(self._columns, dtype=np.float32)[None, :] + self._left
        lattice_v = np.arange(self._rows, dtype=np.float32)[:, None] + self._bottom
        shape = self._rows, self._columns
        seed_u = lattice_u + 0.5 + jitter * (self.values(1).reshape(shape) - 0.5)
        seed_v = lattice_v + 0.5 + jitter * (self.values(2).reshape(shape) - 0.5)
        flat_u = seed_u.astype(np.float32).ravel()
        flat_v = seed_v.astype(np.float32).ravel()
        first = self._index
        if nearest:
            first = first - (self._u - np.floor(self._u) < 0.5)
            first -= self._columns * (self._v - np.floor(self._v) < 0.5)
        steps = (0, 1) if nearest else (-1, 0, 1)
        for down in steps:
            for right in steps:
                index = first + (down * self._columns + right)
                yield index, self._u - flat_u[index], self._v - flat_v[index]


def _random(
    column: npt.NDArray[np.int64], row: npt.NDArray[np.int64], seed: int, channel: int
) -> npt.NDArray[np.float64]:
    """Uniform in [0, 1), one for each place, seed and channel; the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        word = column.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        word = word ^ (row.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))
        word = word + np.uint64((seed * 0xD1342543DE82EF95 + channel * 0x632BE59BD9B4E019) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
        word = word ^ (word >> np.uint64(31))
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


# --- secondary electrons --------------------------------------------------------------------


def _emission(
    view: _View,
    height: Plane,
    material: Plane,
    *,
    power: float = 0.9,
    escape: float = 0.08,
    rim: float = 1.0,
) -> Plane:
    """Yield of a surface: height in features, the material's own yield, both (h, w).

    escape: the range of diffusion, in features; rim: how much edges shine for it.
    """
    step = np.float32(0.5 / view.features_per_pixel)
    across = cv2.Scharr(height, cv2.CV_32F, 1, 0) * (step / 16.0)
    down = cv2.Scharr(height, cv2.CV_32F, 0, 1) * (step / 16.0)
    secant = np.sqrt(1.0 + across**2 + down**2)
    gain = np.minimum(secant ** np.float32(power), np.float32(_LARGEST_GAIN))
    sigma_px = min(escape / view.features_per_pixel, 40.0)
    if sigma_px > 0.3:
        mean = cv2.GaussianBlur(height, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101)
        gain *= np.clip(1.0 + np.float32(rim / escape) * 0.5 * (height - mean), 0.25, 3.0)
    np.minimum(gain, np.float32(_LARGEST_GAIN), out=gain)
    return np.asarray(material * gain, np.float32)


def _ramp(signed: Plane, width: float) -> Plane:
    """0 outside, 1 inside, over an edge of `width`, smoothly."""
    t = np.clip(signed / np.float32(width) + np.float32(0.5), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def _gold_on_carbon(view: _View) -> Plane:
    """Islands of evaporated gold, with gaps between them, on carbon."""
    angle = math.pi * float(_random(np.array([0]), np.array([0]), view.seed, 9)[0])
    u, v = view.turned(angle)
    cells = view.cells(1.0, u, v)
    weight = 0.3 * cells.values(3) ** 2
    first, second = view.plane(9.0), view.plane(9.0)
    owner = np.zeros(view.shape_px, np.int64)
    for index, du, dv in cells.neighbours(jitter=0.95):
        distance = np.sqrt(du**2 + dv**2) - weight[index]
        is_nearer = distance < first
        np.minimum(second, np.maximum(first, distance), out=second)
        np.copyto(owner, index, where=is_nearer)
        np.minimum(first, distance, out=first)
    gap = 0.10 + 0.25 * cells.values(4)[owner] ** 4
    gap[cells.values(5)[owner] < 0.06] = 9.0  # an island that is not there
    inside = second - first - gap + 0.05 * view.rough(0.35, 20, 3)
    edge = max(0.05, 1.5 * view.features_per_pixel)
    cover = _ramp(inside, edge)
    dome = np.sqrt(np.clip(inside, 0.0, 0.5) + 1e-4)
    height = cover * (0.12 + 0.25 * dome) + 0.006 * view.rough(0.15, 30, 3)
    gold = 0.60 + 0.14 * cells.values(6)[owner] + 0.02 * view.rough(0.2, 40, 3)
    carbon = 0.24 + 0.015 * view.rough(2.0, 50, 6)
    return _emission(
        view, height, carbon + cover * (gold - carbon), power=0.65, escape=0.05, rim=0.5
    )


def _tin_balls(view: _View) -> Plane:
    """Balls of tin of many sizes on carbon: bright rims, a dark foot where each one stands."""
    u, v = view.turned(0.0)
    ground = 0.01 * view.rough(1.0, 20, 5)
    height, material = ground.copy(), 0.27 + 0.02 * view.rough(1.5, 30, 6)
    secant = view.plane(1.0)
    blur = 1.2 * view.features_per_pixel
    for layer, (size, share) in enumerate(((2.6, 0.55), (1.2, 0.5), (0.55, 0.5), (0.26, 0.4))):
        if size < 6.0 * view.features_per_pixel:
            break
        cells = _Cells(u / np.float32(size), v / np.float32(size), view.seed + 7919 * layer)
        radius = np.float32(size) * (0.12 + 0.30 * cells.values(3) ** 1.5)
        radius[cells.values(4) > share] = -9.0
        shade = 0.5 + 0.12 * cells.values(5)
        for index, du, dv in cells.neighbours(jitter=0.6, nearest=True):
            r = radius[index]
            d = np.float32(size) * np.sqrt(du * du + dv * dv)
            is_foot = np.flatnonzero((d > r) & (d < 2.2 * r) & (height < r))
            r_foot = r.flat[is_foot]
            foot = np.exp((r_foot - d.flat[is_foot]) / (0.3 * r_foot))
            material.flat[is_foot] *= 1.0 - 0.45 * foot
            is_ball = np.flatnonzero(d < r)
            r, d = r.flat[is_ball], d.flat[is_ball]
            depth = np.sqrt(r * r - d * d)
            top = r + depth  # it lies on the ground
            is_upper = top > height.flat[is_ball]
            is_ball, r, depth = is_ball[is_upper], r[is_upper], depth[is_upper]
            height.flat[is_ball] = top[is_upper]
            secant.flat[is_ball] = r / np.maximum(depth, 0.2 * r + np.float32(blur))
            material.flat[is_ball] = shade[index.flat[is_ball]]
    material += 0.02 * view.rough(0.12, 60, 3)
    gain = np.minimum(secant**0.85, np.float32(_LARGEST_GAIN))
    soft = cv2.GaussianBlur(material * gain, (0, 0), 0.55)
    fine = _emission(view, 0.012 * view.rough(0.1, 70, 3), view.plane(1.0), escape=0.03)
    return np.asarray(soft * fine, np.float32)


def _square_grid(view: _View) -> Plane:
    """A metal mesh: bars with rounded rims over dark holes, a little dirt."""
    angle = 2.0 * math.pi * float(_random(np.array([0]), np.array([0]), view.seed, 9)[0])
    u, v = view.turned(angle)
    wobble = 0.012
    u = u + wobble * view.noise(0.6, 20)
    v = v + wobble * view.noise(0.6, 21)
    hole_u = np.abs(u - np.floor(u) - 0.5)
    hole_v = np.abs(v - np.floor(v) - 0.5)
    half = 0.33
    power = 6.0
    reach = (hole_u**power + hole_v**power) ** np.float32(1.0 / power)
    inside = reach - np.float32(half)  # > 0: on the bar
    edge = max(0.06, 1.5 * view.features_per_pixel)
    cover = _ramp(inside, edge)
    height = 0.35 * cover + 0.01 * view.rough(0.12, 30, 5)
    bar = 0.52 + 0.03 * view.rough(0.4, 40, 6)
    hole = 0.10 + 0.01 * view.rough(0.3, 50, 5)
    dirt = _ramp(view.noise(0.11, 60) - 1.75, 0.25)
    height += 0.04 * dirt
    return _emission(view, height, hole + cover * (bar - hole) + 0.2 * dirt, escape=0.05)


def _laths(view: _View) -> Plane:
    """Blocks of parallel laths, each block its own way, etched so that boundaries stand out."""
    u, v = view.turned(0.0)
    blocks = view.cells(7.0, u, v)
    first, second = view.plane(9.0), view.plane(9.0)
    owner = np.zeros(view.shape_px, np.int64)
    for index, du, dv in blocks.neighbours(jitter=0.9):
        distance = np.sqrt(du**2 + dv**2)
        is_nearer = distance < first
        np.minimum(second, np.maximum(first, distance), out=second)
        np.copyto(owner, index, where=is_nearer)
        np.minimum(first, distance, out=first)
    border = 7.0 * (second - first)  # features
    angle = (np.pi * blocks.values(3))[owner]
    across = (
        np.cos(angle) * u
        + np.sin(angle) * v
        + 0.3 * view.noise(9.0, 20)
        + 0.06 * view.rough(1.5, 21, 4)
    )
    along = np.cos(angle) * v - np.sin(angle) * u
    across += 50.0 * blocks.values(4)[owner]
    # Laths of unequal width: the lattice of boundaries is jittered, and they end somewhere.
    cell = np.floor(across).astype(np.int64)
    shift = np.floor(along / 6.0 + 3.0 * _random(cell, owner, view.seed, 5)).astype(np.int64)
    place = across - cell
    low = 0.4 * (_random(cell, owner, view.seed, 6).astype(np.float32) - 0.5)
    high = 1.0 + 0.4 * (_random(cell + 1, owner, view.seed, 6).astype(np.float32) - 0.5)
    is_below, is_above = place < low, place > high
    cell = cell - is_below + is_above
    to_edge = np.minimum(np.abs(place - low), np.abs(high - place))
    tone = np.asarray(_random(cell, owner + 65_537 * shift, view.seed, 7), np.float32)
    edge = max(0.10, 1.5 * view.features_per_pixel)
    ridge = 1.0 - _ramp(to_edge - np.float32(0.04), edge)
    ridge = np.maximum(ridge, 1.0 - _ramp(border - np.float32(0.10), 2.0 * edge))
    height = 0.10 * ridge + 0.03 * view.rough(0.3, 30, 4) + 0.05 * tone * (1.0 - ridge)
    height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), 0.6)
    carbides = _ramp(view.noise(0.22, 60) - 1.6, 0.4) * (1.0 - ridge)
    material = 0.34 + 0.12 * tone + 0.10 * ridge + 0.2 * carbides + 0.01 * view.rough(0.5, 40, 5)
    return _emission(view, height + 0.05 * carbides, material.astype(np.float32), escape=0.12)


def _superalloy(view: _View) -> Plane:
    """Cuboids of gamma prime, in rows along the crystal's axes, in channels of gamma."""
    angle = math.pi * float(_random(np.array([0]), np.array([0]), view.seed, 9)[0])
    u, v = view.turned(angle)
    u = u + 0.22 * view.noise(5.0, 20) + 0.04 * view.noise(1.2, 22)
    v = v + 0.22 * view.noise(5.0, 21) + 0.04 * view.noise(1.2, 23)
    cells = _Cells(u, v, view.seed)
    half = 0.30 + 0.16 * cells.values(3)
    nearest = view.plane(9.0)
    owner = np.zeros(view.shape_px, np.int64)
    for index, du, dv in cells.neighbours(jitter=0.22, nearest=True):
        distance = np.sqrt(np.sqrt((du * du) ** 2 + (dv * dv) ** 2)) - half[index]
        np.copyto(owner, index, where=distance < nearest)
        np.minimum(nearest, distance, out=nearest)
    inside = np.asarray(0.015 * view.rough(0.3, 30, 3) - nearest, np.float32)
    edge = max(0.06, 1.5 * view.features_per_pixel)
    cover = _ramp(inside, edge)
    fine = _ramp(view.noise(0.09, 60) - 0.9, 0.5) * (1.0 - _ramp(inside + 0.06, 0.06))
    height = 0.10 * (1.0 - cover) - 0.03 * fine + 0.012 * view.rough(0.25, 40, 4)
    prime = 0.33 + 0.05 * cells.values(5)[owner] + 0.012 * view.rough(0.4, 50, 4)
    material = 0.55 + cover * (prime - 0.55) - 0.12 * fine
    return _emission(view, height, material.astype(np.float32), escape=0.07)


def _fibres(view: _View) -> Plane:
    """A felt of fibres, one over the other; those below are darker."""
    height, tone, secant = view.plane(-3.0), view.plane(0.05), view.plane(1.0)
    blur = 1.2 * view.features_per_pixel
    layers = 7
    draws = _random(np.arange(layers), np.zeros(layers, np.int64), view.seed, 9)
    for layer in range(layers):
        angle = math.pi * (layer + 0.7 * float(draws[layer])) / layers
        angle += 1.3 * layer * math.pi  # neighbours in height cross steeply
        _, v = view.turned(angle % math.pi)
        bent = v + 0.8 * view.noise(9.0, 20 + layer) + 0.25 * view.noise(3.5, 40 + layer)
        pitch = 2.8
        row = np.round(bent / np.float32(pitch)).astype(np.int64)
        base = 0.22 + 0.11 * layer
        for step in (-1, 0):
            draws_r = _random(row + step, np.full((1, 1), layer), view.seed, 60)
            middle = row + step + 0.5 + 0.8 * (draws_r - 0.5)
            size = _random(row + step, np.full((1, 1), layer), view.seed, 61)
            r = (0.22 + 0.30 * size).astype(np.float32)
            d = np.abs(bent - (pitch * middle).astype(np.float32))
            depth = np.sqrt(np.maximum(r**2 - d**2, 0.0))
            top = np.float32(2.0 * base) + depth
            gap = d - r
            is_foot = (gap > 0.0) & (gap < 0.8) & (top > height)
            shadow = 1.0 - 0.4 * np.exp(-np.maximum(gap, 0.0) / 0.18)
            np.multiply(tone, shadow, out=tone, where=is_foot)
            is_upper = (gap < 0.0) & (top > height)
            np.copyto(height, top, where=is_upper)
            np.copyto(secant, r / np.maximum(depth, 0.22 * r + blur), where=is_upper)
            np.copyto(tone, np.float32(0.10 + 0.055 * layer), where=is_upper)
    scales = 1.0 + 0.05 * view.rough(0.25, 80, 4)
    gain = np.minimum(secant**0.9, np.float32(_LARGEST_GAIN))
    soft = cv2.GaussianBlur((tone * gain).astype(np.float32), (0, 0), 0.55)
    return np.asarray(soft * scales, np.float32)


def _near_empty(view: _View) -> Plane:
    """A bare wafer with a few specks, a hundred features from one to the next."""
    u, v = view.turned(0.0)
    signal = _empty(view)
    cells = view.cells(25.0, u, v)
    radius = 0.15 + 0.5 * cells.values(3) ** 2
    radius[cells.values(4) > 0.4] = -9.0
    edge = max(0.08, 1.5 * view.features_per_pixel)
    for index, du, dv in cells.neighbours(jitter=0.9):
        gap = radius[index] - np.float32(25.0) * np.sqrt(du**2 + dv**2)
        cover = _ramp(gap, edge)
        rim = np.exp(-((gap / np.float32(0.08)) ** 2)) * cover
        signal += cover * 0.25 + 0.3 * rim
    return signal


def _empty(view: _View) -> Plane:
    """A bare wafer: even, but for a shading too slow to focus on."""
    return np.asarray(0.35 + 0.004 * view.noise(300.0, 20), np.float32)


_PAINTERS: dict[str, Callable[[_View], Plane]] = {
    "gold_on_carbon": _gold_on_carbon,
    "tin_balls": _tin_balls,
    "square_grid": _square_grid,
    "laths": _laths,
    "superalloy": _superalloy,
    "fibres": _fibres,
    "near_empty": _near_empty,
    "empty": _empty,
}


# --- real micrographs -----------------------------------------------------------------------


def _micrograph(view: _View) -> Plane:
    """A real picture laid out at its own pixel size, mirrored without end."""
    settings = view.settings
    picture = _cleaned(str(settings.image), settings.image_binning)
    scale = view.pixel_nm / settings.image_pixel_size_nm
    while scale > 1.5 and min(picture.shape) >= 16:  # coarser pixels than the picture's: average
        half = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        picture = half.reshape(half.shape[0] // 2, 2, half.shape[1] // 2, 2).mean(axis=(1, 3))
        scale /= 2.0
    height, width = picture.shape
    pitch_nm = view.pixel_nm / scale
    columns = view.x_nm / pitch_nm + width / 2 - 0.5
    rows = height / 2 - 0.5 - view.y_nm / pitch_nm
    map_x = np.broadcast_to(_mirrored(columns, width)[None, :], view.shape_px)
    map_y = np.broadcast_to(_mirrored(rows, height)[:, None], view.shape_px)
    found = cv2.remap(
        picture.astype(np.float32),
        np.ascontiguousarray(map_x, np.float32),
        np.ascontiguousarray(map_y, np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.array(found, np.float32)


def _mirrored(place: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Places folded into [0, size - 1], as between two mirrors."""
    period = 2.0 * (size - 1)
    folded = np.abs((place + size - 1) % period - (size - 1))
    return np.asarray(folded)


@lru_cache(maxsize=32)
def _cleaned(path: str, binning: int) -> Plane:
    """A micrograph as a yield: binned, its white noise taken off, from 0.05 to 1.

    The noise is measured in the corners of the spectrum, which the picture's own probe leaves
    empty, and taken off by Wiener's filter on the radial mean of the spectrum.
    """
    picture = cv2.imread(path, cv2.IMREAD_UNCHANGED) if Path(path).is_file() else None
    if picture is None:
        raise FileNotFoundError(f"specimen.image: {path!r} is no image that can be read")
    if picture.ndim == 3:
        picture = picture[..., :3].mean(axis=2)
    grey = picture.astype(np.float32)
    if binning > 1:
        h, w = grey.shape[0] // binning * binning, grey.shape[1] // binning * binning
        grey = grey[:h, :w].reshape(h // binning, binning, w // binning, binning).mean(axis=(1, 3))
    if min(grey.shape) < 32:
        raise ValueError(f"specimen.image: {path!r} has fewer than 32 pixels a side once binned")
    mean = float(grey.mean())
    # Mirrored to a torus, so that opposite edges fit and make no cross in the spectrum.
    torus = np.concatenate([grey, grey[:, ::-1]], axis=1)
    torus = np.concatenate([torus, torus[::-1]], axis=0) - mean
    spectrum = np.fft.rfft2(torus)
    power = np.abs(spectrum) ** 2
    fy, fx = np.fft.fftfreq(torus.shape[0])[:, None], np.fft.rfftfreq(torus.shape[1])[None, :]
    radius = np.hypot(fx, fy)
    floor = float(np.median(power[radius > 0.55])) / math.log(2.0)  # the mean of an exponential
    bins = np.minimum((radius * 256).astype(np.int64), 181)
    counts = np.maximum(np.bincount(bins.ravel()), 1)
    radial = np.bincount(bins.ravel(), power.ravel()) / counts
    gain = np.maximum(1.0 - floor / np.maximum(radial, 1e-12), 0.0)
    clean = np.fft.irfft2(spectrum * gain[bins], s=torus.shape)[: grey.shape[0], : grey.shape[1]]
    low, high = np.percentile(clean, [0.5, 99.5])
    scaled = 0.05 + 0.85 * (clean - low) / max(float(high - low), 1e-6)
    result = np.clip(scaled, 0.0, 1.2).astype(np.float32)
    result.flags.writeable = False
    return np.asarray(result)
