"""A folder of real photographs as an instrument: an old scan can be searched again.

The photographs become one virtual chip: a mosaic in the order of their names, or each where a CSV
file `file,stage_x_um,stage_y_um` says its centre was. The camera returns the crop of that chip at
the stage's position under the objective in use; what lies between photographs has the median colour
of their border pixels, so that no edge is invented where two of them meet. At the photographs' own
magnification a crop is made of their very pixels, placed to the nearest whole one.

The default frame is one photograph with the gutter around it, so tiles laid edge to edge show each
photograph once and whole. `ReplayMicroscope.layout` says which photograph lies where.

Every file's header and end are looked at when the instrument is made, so a missing, truncated or
odd-sized photograph is named before anything moves; pixels are decoded when they come into view and
the last ones kept (`cache_mib`), so folders may be large.

Nothing here needs to be waited for but the exposure and, if `speed_um_per_s` is given, the moves.
"""

# ruff: noqa: D102 - the Protocols in drivers.api say what their methods mean

from __future__ import annotations

import asyncio
import csv
import math
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from drivers.api import (
    AxisLimits,
    Frame,
    Idle,
    Kinematics,
    MotionState,
    Moving,
    Objective,
    Pixels,
    Pose,
)
from drivers.errors import BadReply, LinkLost, Refused
from drivers.software_camera import CameraTiming, SoftwareCamera, until

_NAME = "replay"
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
_BORDER_PX = 4  # of a photograph, whose median colour fills what lies around it
_INSTANT_UM_PER_S = 1e7  # declared where moves take no time
_RESOLUTION_UM = 0.05


class ReplayObjective(BaseModel):
    """One position of the turret; its pixel size follows from that of the photographs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=32)
    magnification: float = Field(gt=0, le=1000)
    numerical_aperture: float = Field(gt=0, lt=1.6)


_OBJECTIVES = tuple(
    ReplayObjective(name=f"{magnification}x", magnification=magnification, numerical_aperture=na)
    for magnification, na in ((5, 0.15), (10, 0.30), (20, 0.45), (50, 0.80), (100, 0.90))
)


class ReplaySettings(BaseModel):
    """Where the photographs are, what they show, and what kind of instrument they make."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    images: str = Field(min_length=1)  # folder; png, jpg, tif and bmp in it are taken
    positions_csv: str | None = None  # None: a mosaic. Relative to the folder of images
    columns: int | None = Field(default=None, ge=1, le=100_000)  # None: as square as may be
    gutter_px: int = Field(default=16, ge=0, le=10_000)  # between photographs of the mosaic
    pixel_size_nm: float = Field(gt=0, le=1e5)  # of the photographs, in the plane of the sample
    bit_depth: Literal[8, 10, 12, 14, 16] | None = None  # None: 8 or 16, as the files are
    objective: str = "20x"  # the one they were taken with; the turret starts there
    objectives: tuple[ReplayObjective, ...] = Field(default=_OBJECTIVES, min_length=1)
    height_px: int | None = Field(default=None, ge=8, le=16_384)  # None: photograph and gutter
    width_px: int | None = Field(default=None, ge=8, le=16_384)
    exposure_s: float = Field(default=0.01, ge=1e-4, le=10)  # when the instrument is opened
    readout_s: float = Field(default=0.0, ge=0, le=60)
    max_rate_hz: float = Field(default=50.0, gt=0, le=100_000)
    buffer_frames: int = Field(default=8, ge=1, le=10_000)
    speed_um_per_s: float | None = Field(default=None, gt=0, le=1e6)  # None: moves take no time
    focus_range_um: float = Field(default=1_000.0, gt=0, le=1e5)  # either way from focus
    blur_um: float | None = Field(default=None, gt=0, le=1e4)  # defocus that blurs by 1 px; None: 0
    cache_mib: int = Field(default=256, ge=1, le=100_000)

    @model_validator(mode="after")
    def _objective_is_there(self) -> ReplaySettings:
        names = [objective.name for objective in self.objectives]
        if len(set(names)) != len(names):
            raise ValueError("every objective needs a name of its own")
        if self.objective not in names:
            raise ValueError(f"objective must be one of {', '.join(names)}")
        return self


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """One photograph and the rectangle of the stage it covers, outer edges of its pixels."""

    file: str  # name within the folder
    x_min_um: float
    y_min_um: float
    x_max_um: float
    y_max_um: float

    def holds(self, x_um: float, y_um: float) -> bool:
        """Whether a point of the stage lies on it."""
        return self.x_min_um <= x_um <= self.x_max_um and self.y_min_um <= y_um <= self.y_max_um


@dataclass(frozen=True, slots=True)
class _Spot:
    """A photograph on the chip, in its own pixels: x right, y down, (0, 0) at the stage's zero."""

    path: Path
    left_px: float
    top_px: float
    w_px: int
    h_px: int


@dataclass(frozen=True, slots=True)
class _Latent:
    number: int
    from_s: float
    until_s: float
    exposure_s: float
    pose: Pose
    objective: Objective


class ReplayMicroscope:
    """Photographs behind `drivers.api.Instrument`; opened and closed with `async with`.

    Raises LinkLost if there is no such folder or nothing in it, BadReply if a photograph or the
    table of positions cannot be used; the message names the file.
    """

    def __init__(self, settings: ReplaySettings) -> None:
        self._settings = settings
        self._chip = _Chip(settings)
        self._body = _Body(settings, self._chip)
        self._film = _Film(self._body, self._chip)
        timing = CameraTiming(
            min_exposure_s=1e-4,
            max_exposure_s=10.0,
            readout_s=settings.readout_s,
            max_rate_hz=settings.max_rate_hz,
            buffer_frames=settings.buffer_frames,
        )
        self._camera = SoftwareCamera(
            f"{_NAME} camera",
            self._chip.frame_px,
            self._chip.bit_depth,
            settings.exposure_s,
            timing,
            self._film,
        )
        self._stage = ReplayStage(self._body)
        self._focus = ReplayFocusAxis(self._body)
        self._turret = ReplayTurret(self._body)

    @property
    def name(self) -> str:
        return _NAME

    @property
    def camera(self) -> SoftwareCamera[_Latent]:
        return self._camera

    @property
    def stage(self) -> ReplayStage:
        return self._stage

    @property
    def focus(self) -> ReplayFocusAxis:
        return self._focus

    @property
    def turret(self) -> ReplayTurret:
        return self._turret

    @property
    def illumination(self) -> None:
        return None

    @property
    def layout(self) -> tuple[PlacedImage, ...]:
        """Which photograph lies where on the stage, in the order of the mosaic or the table."""
        return self._chip.layout

    async def __aenter__(self) -> ReplayMicroscope:
        self._body.open()
        self._camera.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stage.halt()
        await self._focus.halt()
        await self._camera.close()
        self._film.close()
        self._body.is_open = False

    def describe(self) -> Mapping[str, str]:
        return {
            "instrument": self.name,
            "images": self._settings.images,
            "photographs": str(len(self._chip.layout)),
            "opencv": cv2.__version__,
        }


class _Body:
    """Where everything stands, shared by the devices."""

    def __init__(self, settings: ReplaySettings, chip: _Chip) -> None:
        self.chip = chip
        native = next(o for o in settings.objectives if o.name == settings.objective)
        self.objectives = tuple(
            Objective(
                name=each.name,
                magnification=each.magnification,
                numerical_aperture=each.numerical_aperture,
                pixel_size_nm=settings.pixel_size_nm * native.magnification / each.magnification,
            )
            for each in settings.objectives
        )
        self.objective = self.objective_named(settings.objective)
        first = chip.layout[0]
        centre_um = (first.x_min_um + first.x_max_um) / 2, (first.y_min_um + first.y_max_um) / 2
        self.stage = _Travel(centre_um, settings.speed_um_per_s)
        self.focus = _Travel((0.0,), settings.speed_um_per_s)
        self.focus_limits = AxisLimits(-settings.focus_range_um, settings.focus_range_um)
        self.is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        if self._loop is not None:
            raise Refused(_NAME, "it was opened before; make a new one")
        self._loop = asyncio.get_running_loop()
        self.is_open = True

    def now_s(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()

    def check_link(self) -> None:
        if not self.is_open:
            raise LinkLost(_NAME, "it is closed; open it first")

    def objective_named(self, name: str) -> Objective:
        for objective in self.objectives:
            if objective.name == name:
                return objective
        known = ", ".join(objective.name for objective in self.objectives)
        raise Refused(f"{_NAME} turret", f"asked for objective {name!r}; there are {known}")


class _Travel:
    """One or two axes on a straight way at constant speed, or at once."""

    def __init__(self, start_um: tuple[float, ...], speed_um_per_s: float | None) -> None:
        self._speed_um_per_s = speed_um_per_s
        self._from_um = self._to_um = start_um
        self._from_s = self._to_s = 0.0

    def at_um(self, now_s: float) -> tuple[float, ...]:
        if now_s >= self._to_s:
            return self._to_um
        share = (now_s - self._from_s) / (self._to_s - self._from_s)
        return tuple(a + share * (b - a) for a, b in zip(self._from_um, self._to_um, strict=True))

    def state(self, now_s: float) -> MotionState:
        return Moving() if now_s < self._to_s else Idle()

    def start(self, target_um: tuple[float, ...], now_s: float) -> None:
        self._from_um, self._to_um = self.at_um(now_s), target_um
        self._from_s = self._to_s = now_s
        if self._speed_um_per_s is not None:
            self._to_s += math.dist(self._from_um, target_um) / self._speed_um_per_s

    def halt(self, now_s: float) -> None:
        self._from_um = self._to_um = self.at_um(now_s)
        self._to_s = min(self._to_s, now_s)

    def kinematics(self) -> Kinematics:
        speed = _INSTANT_UM_PER_S if self._speed_um_per_s is None else self._speed_um_per_s
        return Kinematics(
            speed_um_per_s=speed,
            acceleration_um_per_s2=speed * 1e3,
            settle_s=0.0,
            resolution_um=_RESOLUTION_UM,
        )


def _check_target(device: str, letter: str, target_um: float, limits: AxisLimits) -> None:
    if not limits.min_um <= target_um <= limits.max_um:  # nan too is refused here
        raise Refused(
            device,
            f"asked for {letter} = {target_um} um; travel is {limits.min_um:g} to "
            f"{limits.max_um:g} um; nothing moved",
        )


class ReplayStage:
    """`drivers.api.Stage` over the virtual chip."""

    def __init__(self, body: _Body) -> None:
        self._body = body

    @property
    def name(self) -> str:
        return f"{_NAME} stage"

    @property
    def limits_um(self) -> tuple[AxisLimits, AxisLimits]:
        return self._body.chip.limits_um

    @property
    def kinematics(self) -> Kinematics:
        return self._body.stage.kinematics()

    async def start_move_um(self, x_um: float, y_um: float) -> None:
        self._body.check_link()
        for letter, target_um, limits in zip("xy", (x_um, y_um), self.limits_um, strict=True):
            _check_target(self.name, letter, target_um, limits)
        self._body.stage.start((x_um, y_um), self._body.now_s())

    async def position_um(self) -> tuple[float, float]:
        self._body.check_link()
        x_um, y_um = self._body.stage.at_um(self._body.now_s())
        return x_um, y_um

    async def state(self) -> MotionState:
        self._body.check_link()
        return self._body.stage.state(self._body.now_s())

    async def halt(self) -> None:
        self._body.stage.halt(self._body.now_s())


class ReplayFocusAxis:
    """`drivers.api.FocusAxis`; focus is at 0."""

    def __init__(self, body: _Body) -> None:
        self._body = body

    @property
    def name(self) -> str:
        return f"{_NAME} focus"

    @property
    def limits_um(self) -> AxisLimits:
        return self._body.focus_limits

    @property
    def kinematics(self) -> Kinematics:
        return self._body.focus.kinematics()

    async def start_move_um(self, z_um: float) -> None:
        self._body.check_link()
        _check_target(self.name, "z", z_um, self.limits_um)
        self._body.focus.start((z_um,), self._body.now_s())

    async def position_um(self) -> float:
        self._body.check_link()
        return self._body.focus.at_um(self._body.now_s())[0]

    async def state(self) -> MotionState:
        self._body.check_link()
        return self._body.focus.state(self._body.now_s())

    async def halt(self) -> None:
        self._body.focus.halt(self._body.now_s())


class ReplayTurret:
    """`drivers.api.Turret`: other magnifications are the same photographs, resized."""

    def __init__(self, body: _Body) -> None:
        self._body = body

    @property
    def name(self) -> str:
        return f"{_NAME} turret"

    @property
    def objectives(self) -> Sequence[Objective]:
        return self._body.objectives

    async def select(self, objective: str) -> None:
        self._body.check_link()
        self._body.objective = self._body.objective_named(objective)

    async def current(self) -> Objective:
        self._body.check_link()
        return self._body.objective


class _Film:
    """What the camera sees: the chip."""

    def __init__(self, body: _Body, chip: _Chip) -> None:
        self._body = body
        self._chip = chip
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="replay-camera")

    def check_link(self) -> None:
        self._body.check_link()

    def begin(self, number: int) -> None:
        self._body.check_link()

    def expose(self, number: int, from_s: float, until_s: float, exposure_s: float) -> _Latent:
        body, middle_s = self._body, (from_s + until_s) / 2
        x_um, y_um = body.stage.at_um(middle_s)
        z_um = body.focus.at_um(middle_s)[0]
        pose = Pose(x_um, y_um, z_um, body.objective.name)
        return _Latent(number, from_s, until_s, exposure_s, pose, body.objective)

    async def develop(self, latent: _Latent, due_s: float) -> Sequence[Frame]:
        loop = asyncio.get_running_loop()
        pixels, files = await loop.run_in_executor(
            self._worker, self._chip.picture, latent.pose, latent.objective
        )
        await until(due_s)
        frame = Frame(
            pixels=pixels,
            number=latent.number,
            exposed_from_s=latent.from_s,
            exposed_until_s=latent.until_s,
            pose=latent.pose,
            pixel_size_nm=latent.objective.pixel_size_nm,
            bit_depth=self._chip.bit_depth,
            optics={"exposure_s": latent.exposure_s, "photographs": ", ".join(files)},
        )
        return (frame,)

    def left_over(self) -> Sequence[Frame]:
        return ()

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)


class _Chip:
    """The photographs laid out; pixels are decoded on demand, in one worker thread."""

    def __init__(self, settings: ReplaySettings) -> None:
        self._settings = settings
        self._pixel_um = settings.pixel_size_nm * 1e-3
        folder = Path(settings.images)
        if settings.positions_csv is None:
            self._spots = _mosaic(_photographs(folder), settings)
        else:
            self._spots = _table(folder, folder / settings.positions_csv, self._pixel_um)
        self._kept: OrderedDict[tuple[int, float], Pixels] = OrderedDict()
        self._kept_bytes = 0
        self._fills: dict[int, npt.NDArray[np.generic]] = {}
        self._dtype: np.dtype[np.uint8] | np.dtype[np.uint16] | None = None  # of the first one
        self._dtype = self._photograph(0).dtype
        largest = 8 * self._dtype.itemsize
        self.bit_depth = settings.bit_depth or largest
        if self.bit_depth > largest or (largest == 16 and self.bit_depth == 8):
            raise BadReply(
                _NAME,
                f"{self._spots[0].path}: bit_depth = {self.bit_depth} asked for, but the file "
                f"holds {largest}-bit numbers",
            )
        first = self._spots[0]
        self.frame_px = (
            settings.height_px or first.h_px + settings.gutter_px,
            settings.width_px or first.w_px + settings.gutter_px,
        )

    @property
    def layout(self) -> tuple[PlacedImage, ...]:
        pixel_um = self._pixel_um
        return tuple(
            PlacedImage(
                file=spot.path.name,
                x_min_um=spot.left_px * pixel_um,
                y_min_um=-(spot.top_px + spot.h_px) * pixel_um,
                x_max_um=(spot.left_px + spot.w_px) * pixel_um,
                y_max_um=-spot.top_px * pixel_um,
            )
            for spot in self._spots
        )

    @property
    def limits_um(self) -> tuple[AxisLimits, AxisLimits]:
        """The rectangle around all photographs and half a gutter."""
        placed, rim_um = self.layout, self._settings.gutter_px / 2 * self._pixel_um
        return (
            AxisLimits(
                min(each.x_min_um for each in placed) - rim_um,
                max(each.x_max_um for each in placed) + rim_um,
            ),
            AxisLimits(
                min(each.y_min_um for each in placed) - rim_um,
                max(each.y_max_um for each in placed) + rim_um,
            ),
        )

    def picture(self, pose: Pose, objective: Objective) -> tuple[Pixels, tuple[str, ...]]:
        """What the camera sees, and the names of the photographs it is made of."""
        h, w = self.frame_px
        scale = self._settings.pixel_size_nm / objective.pixel_size_nm  # frame px per own px
        # The frame's outer top left corner on the chip, in the photographs' pixels.
        left = pose.stage_x_um / self._pixel_um - w / scale / 2
        top = -pose.stage_y_um / self._pixel_um - h / scale / 2
        out = np.empty((h, w, 3), self._dtype)
        out[:] = self._fill(0)
        rim = self._settings.gutter_px / 2
        seen = [
            index
            for index, spot in enumerate(self._spots)
            if spot.left_px - rim < left + w / scale
            and spot.left_px + spot.w_px + rim > left
            and spot.top_px - rim < top + h / scale
            and spot.top_px + spot.h_px + rim > top
        ]
        for index in seen:
            spot = self._spots[index]
            x0, x1 = (spot.left_px - rim - left, spot.left_px + spot.w_px + rim - left)
            y0, y1 = (spot.top_px - rim - top, spot.top_px + spot.h_px + rim - top)
            rows = slice(max(0, round(y0 * scale)), max(0, round(y1 * scale)))
            columns = slice(max(0, round(x0 * scale)), max(0, round(x1 * scale)))
            out[rows, columns] = self._fill(index)
        for index in seen:
            spot = self._spots[index]
            self._paste(out, index, spot.left_px - left, spot.top_px - top, scale)
        self._defocus(out, pose.focus_z_um)
        out.setflags(write=False)
        return cast(Pixels, out), tuple(self._spots[index].path.name for index in seen)

    def _paste(
        self, out: npt.NDArray[np.generic], index: int, x_px: float, y_px: float, scale: float
    ) -> None:
        """Put a photograph into a frame; (x_px, y_px) is its outer corner in its own pixels."""
        h, w = out.shape[:2]
        if scale <= 1:  # whole pixels, as they are or averaged
            source = self._photograph(index, scale)
            x, y = round(x_px * scale), round(y_px * scale)
            y0, y1 = max(0, y), min(h, y + source.shape[0])
            x0, x1 = max(0, x), min(w, x + source.shape[1])
            if y0 < y1 and x0 < x1:
                out[y0:y1, x0:x1] = source[y0 - y : y1 - y, x0 - x : x1 - x]
            return
        source = self._photograph(index)
        x0, x1 = max(0, round(x_px * scale)), min(w, round((x_px + source.shape[1]) * scale))
        y0, y1 = max(0, round(y_px * scale)), min(h, round((y_px + source.shape[0]) * scale))
        if y0 >= y1 or x0 >= x1:
            return
        # Centre of source pixel s lies at scale (s + 1/2 + x_px) - 1/2 in the frame.
        shift_x, shift_y = scale * (0.5 + x_px) - 0.5 - x0, scale * (0.5 + y_px) - 0.5 - y0
        out[y0:y1, x0:x1] = cv2.warpAffine(
            source,
            np.array([[scale, 0.0, shift_x], [0.0, scale, shift_y]]),
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def _defocus(self, out: npt.NDArray[np.generic], focus_z_um: float) -> None:
        if self._settings.blur_um is None:
            return
        sigma_px = abs(focus_z_um) / self._settings.blur_um
        if sigma_px > 0.2:
            out[:] = cv2.GaussianBlur(cast(Pixels, out), (0, 0), min(sigma_px, 50.0))

    def _fill(self, index: int) -> npt.NDArray[np.generic]:
        """The colour of what lies around a photograph, (3,)."""
        if index not in self._fills:
            source, b = self._photograph(index), _BORDER_PX
            edges = (source[:b], source[-b:], source[:, :b], source[:, -b:])
            border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
            self._fills[index] = np.rint(np.median(border, axis=0)).astype(source.dtype)
        return self._fills[index]

    def _photograph(self, index: int, scale: float = 1.0) -> Pixels:
        """(h, w, 3) RGB; scale <= 1 shrinks it."""
        key = index, scale
        pixels = self._kept.pop(key, None)
        if pixels is None:
            if scale == 1.0:
                pixels = self._decoded(index)
            else:
                spot = self._spots[index]
                size = max(1, round(spot.w_px * scale)), max(1, round(spot.h_px * scale))
                whole = self._photograph(index)
                pixels = cast(Pixels, cv2.resize(whole, size, interpolation=cv2.INTER_AREA))
            self._kept_bytes += pixels.nbytes
        self._kept[key] = pixels
        while self._kept_bytes > self._settings.cache_mib * 2**20 and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes
        return pixels

    def _decoded(self, index: int) -> Pixels:
        spot = self._spots[index]
        pixels = _decoded(spot.path)
        if pixels.shape[:2] != (spot.h_px, spot.w_px):
            raise BadReply(_NAME, f"{spot.path}: it changed while the instrument was open")
        if self._dtype is not None and pixels.dtype != self._dtype:
            raise BadReply(
                _NAME,
                f"{spot.path} holds {pixels.dtype} numbers and {self._spots[0].path} "
                f"{self._dtype}; photographs of one chip must agree",
            )
        return pixels


def _photographs(folder: Path) -> list[Path]:
    """The photographs in a folder in the order of their names, 2 before 10."""
    if not folder.is_dir():
        raise LinkLost(_NAME, f"images = {str(folder)!r}: there is no such folder")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES]
    if not paths:
        kinds = ", ".join(sorted(suffix[1:] for suffix in _SUFFIXES))
        raise LinkLost(_NAME, f"images = {str(folder)!r}: no photograph in it ({kinds})")

    def natural(path: Path) -> list[tuple[int, int, str]]:
        pieces = re.findall(r"\d+|\D+", path.name.lower())
        return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces]

    return sorted(paths, key=natural)


def _mosaic(paths: Sequence[Path], settings: ReplaySettings) -> tuple[_Spot, ...]:
    """Row by row from the top left; the stage's zero is the middle."""
    h, w = _size_px(paths[0])
    for path in paths[1:]:
        other_h, other_w = _size_px(path)
        if (other_h, other_w) != (h, w):
            raise BadReply(
                _NAME,
                f"{paths[0]} is {w} x {h} px and {path} is {other_w} x {other_h} px; a mosaic "
                "needs one size, or give positions_csv",
            )
    pitch_x, pitch_y = w + settings.gutter_px, h + settings.gutter_px
    columns = settings.columns or _columns(len(paths), pitch_x / pitch_y)
    rows = math.ceil(len(paths) / columns)
    left = (settings.gutter_px - columns * pitch_x) / 2
    top = (settings.gutter_px - rows * pitch_y) / 2
    return tuple(
        _Spot(path, left + index % columns * pitch_x, top + index // columns * pitch_y, w, h)
        for index, path in enumerate(paths)
    )


def _columns(images: int, aspect_ratio: float) -> int:
    """Columns of a mosaic without many empty places that is not much longer than wide."""

    def cost(columns: int) -> tuple[int, float]:
        rows = math.ceil(images / columns)
        stretch = abs(math.log(columns * aspect_ratio / rows))
        return (columns * rows - images if stretch < math.log(4) else images), stretch

    return min(range(1, images + 1), key=cost)


def _table(folder: Path, table: Path, pixel_um: float) -> tuple[_Spot, ...]:
    """Photographs where a CSV file `file,stage_x_um,stage_y_um` says their centres were."""
    if not folder.is_dir():
        raise LinkLost(_NAME, f"images = {str(folder)!r}: there is no such folder")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LinkLost(_NAME, f"positions_csv = {str(table)!r}: {error}") from error
    reader = csv.DictReader(text.splitlines())
    wanted = ["file", "stage_x_um", "stage_y_um"]
    if not set(wanted) <= set(reader.fieldnames or ()):
        raise BadReply(
            _NAME, f"{table}: the first line is {reader.fieldnames}, not {','.join(wanted)}"
        )
    spots = []
    for line, row in enumerate(reader, start=2):
        try:
            x_um, y_um = float(row["stage_x_um"]), float(row["stage_y_um"])
        except (TypeError, ValueError):
            x_um = y_um = math.nan
        if not (math.isfinite(x_um) and math.isfinite(y_um) and row["file"]):
            raise BadReply(_NAME, f"{table}, line {line}: {row} is not a file and two numbers")
        path = folder / row["file"]
        h, w = _size_px(path)
        spots.append(_Spot(path, x_um / pixel_um - w / 2, -y_um / pixel_um - h / 2, w, h))
    if not spots:
        raise LinkLost(_NAME, f"{table}: no photograph in it")
    return tuple(spots)


def _size_px(path: Path) -> tuple[int, int]:
    """(h, w) from the file's header, its end checked, without decoding where that can be."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
            file.seek(max(0, path.stat().st_size - 4096))
            tail = file.read()
            if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
                if b"IEND" not in tail:
                    raise BadReply(_NAME, f"{path}: the file is cut off")
                w, h = struct.unpack(">II", head[16:24])
                return int(h), int(w)
            if head.startswith(b"\xff\xd8"):
                if b"\xff\xd9" not in tail:
                    raise BadReply(_NAME, f"{path}: the file is cut off")
                file.seek(2)
                while (marker := file.read(4)) and len(marker) == 4 and marker[0] == 0xFF:
                    length = int.from_bytes(marker[2:], "big")
                    # Start of frame; C4, C8 and CC are tables (ITU-T T.81, table B.1).
                    if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
                        h, w = struct.unpack(">HH", file.read(5)[1:])
                        return int(h), int(w)
                    file.seek(length - 2, 1)
    except (OSError, struct.error) as error:
        raise BadReply(_NAME, f"{path}: {error}") from error
    h, w = _decoded(path).shape[:2]
    return h, w


def _decoded(path: Path) -> Pixels:
    """(h, w, 3) RGB, uint8 or uint16, as stored: a camera's tag to turn the picture is ignored."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        # Not imread: it cannot open every name on Windows.
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except (OSError, cv2.error) as error:
        raise BadReply(_NAME, f"{path}: {error}") from error
    if pixels is None or pixels.size == 0:
        raise BadReply(_NAME, f"{path}: this is no picture, or a damaged one")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadReply(
            _NAME, f"{path}: it holds {pixels.dtype} numbers; 8 or 16 bit whole ones are needed"
        )
    return cast(Pixels, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
