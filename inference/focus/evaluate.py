"""How good a way of focusing is: one problem for all, and real through-focus stacks to run it on.

The words of a comparison stand here, because simulated instruments and real stacks use the same:
a `FocusProblem` is something that gives a frame for a command and counts what that costs; a
`FocusMethod` is given one and ends with a `FocusOutcome`. No method sees the truth.

A real stack is a folder of images whose file names tell their position. It is replayed from every
start and in both directions (which is the sign of its axis), and every frame may be given a gain
and a flicker of its own. Between its planes a stack knows nothing: a command is answered by the
nearest plane, with that plane's position, and a plane that was asked for already is the same
pixels again, noise and all. Images of one stack may differ in size, for a lens that focuses
magnifies; all are cut to the common centre.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage
from inference.figures import Row, wilson_ci95
from inference.focus.api import FocusCommand

Image: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_LEAST_PLANES = 5
_FINER = 80.0  # 16-bit steps for one of 8 bits; three times the brightest of them still fits
_RESAMPLES = 1_000

Progress = Callable[[int, int], None]  # runs done, runs in all


# --- the words ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One frame and where it was really taken, as far as the instrument can say."""

    pixels: Image  # (h, w) or (h, w, 3)
    command: FocusCommand


@dataclass(frozen=True, slots=True)
class FocusOutcome:
    """Where a method ended: the harness goes there, and looks at the truth."""

    command: FocusCommand  # the start's own, where the method gives up
    is_confident: bool
    reason: str = ""  # why not, "" when confident
    sigma_dof: float | None = None  # None: the method has no idea
    trace_z_dof: tuple[float, ...] = ()  # where it believed focus after each frame
    aside_s: float = 0.0  # spent on the trace alone, which no instrument would ask for


class FocusProblem(Protocol):
    """An instrument to be focused, as every method is shown it."""

    @property
    def start(self) -> FocusCommand:
        """Where the instrument stands."""
        ...

    @property
    def half_range_dof(self) -> float:
        """Focus lies within this of the start."""
        ...

    @property
    def limits_dof(self) -> tuple[float, float]:
        """Commands outside are not carried out; infinite where there is no end in sight."""
        ...

    @property
    def blur_px_per_dof(self) -> float:
        """Nominal radius of blur a DOF off focus, at field_ratio 1; true within a fifth or so."""
        ...

    @property
    def stig_range_dof(self) -> float:
        """The most astigmatism that there may be; 0: none is expected."""
        ...

    @property
    def has_stigmator(self) -> bool:
        """Whether astigmatism can be commanded as well."""
        ...

    @property
    def widest_ratio(self) -> float:
        """The largest `field_ratio` of a command; 1: the field cannot be widened."""
        ...

    def observe(self, command: FocusCommand) -> Observation:
        """Go there, settle, and take one fresh frame."""
        ...

    def move(self, command: FocusCommand) -> None:
        """Go there; no frame is taken."""
        ...


class FocusMethod(Protocol):
    """A way of focusing."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    def run(self, problem: FocusProblem) -> FocusOutcome:
        """Focus; deterministic, and it keeps nothing from one run to the next."""
        ...


# --- real stacks ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """One image of a stack."""

    position: float  # in steps, from the file's name
    group: str  # what else the name tells, such as an exposure; "" where it does not
    name: str
    pixels: Image


@dataclass(frozen=True, slots=True)
class Levels:
    """What is done to the brightness of a stack's frames; all of it is drawn anew for each run."""

    name: str
    most_gain: float = 1.0  # one gain a run, between 1 / this and this
    flicker_ratio: float = 0.0  # sd of one more gain for every frame


AS_IT_IS = Levels("as it is")
LEVELS: tuple[Levels, ...] = (
    AS_IT_IS,
    Levels("gain x0.5-2", most_gain=2.0),
    Levels("flicker 10 %", flicker_ratio=0.1),
)


def read_stack(folder: Path, pattern: str) -> tuple[Plane, ...]:
    r"""Read a folder; `pattern` is a regular expression for file names, e.g. `(?P<z>-?\d+)\.png`.

    Its group `z` (or the first one) is the position; a group `group` parts stacks from one another.
    Sorted by group and position. Raises BadImage where nothing fits or an image cannot be read.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise BadImage(f"{pattern!r} is no regular expression: {error}") from error
    if expression.groups < 1:
        raise BadImage(f"{pattern!r} needs a group for the position, e.g. (?P<z>-?[0-9.]+)")
    if not folder.is_dir():
        raise BadImage(f"{folder} is no folder")
    planes = []
    for path in sorted(folder.iterdir()):
        found = expression.fullmatch(path.name)
        if found is None or path.suffix.lower() not in _IMAGE_SUFFIXES:
            continue
        named = found.groupdict()
        text = named.get("z") or found.group(1)
        try:
            position = float(text)
        except ValueError:
            raise BadImage(f"{path.name}: {text!r} is no position") from None
        planes.append(Plane(position, named.get("group") or "", path.name, _read(path)))
    if not planes:
        raise BadImage(f"no image in {folder} has a name like {pattern!r}")
    height = min(plane.pixels.shape[0] for plane in planes)
    width = min(plane.pixels.shape[1] for plane in planes)
    planes = [Plane(p.position, p.group, p.name, _centre(p.pixels, height, width)) for p in planes]
    return tuple(sorted(planes, key=lambda plane: (plane.group, plane.position)))


def _read(path: Path) -> Image:
    try:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise BadImage(f"{path}: {error}") from error
    decoded: npt.NDArray[Any] | None = None
    if data.size:
        decoded = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if decoded is not None and decoded.ndim == 3:
        decoded = np.ascontiguousarray(decoded[..., 2::-1])
    if decoded is not None and decoded.dtype == np.uint8:
        return decoded.view(np.uint8)
    if decoded is not None and decoded.dtype == np.uint16:
        return decoded.view(np.uint16)
    raise BadImage(f"{path} is no image of 8 or 16 bits a channel")


def _centre(pixels: Image, height: int, width: int) -> Image:
    row, col = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[row : row + height, col : col + width].copy()


@dataclass(slots=True, eq=False)
class StackProblem:
    """A stack as an instrument; a `FocusProblem`. Positions are DOF from the plane at the start."""

    planes: Sequence[Plane]
    start_index: int
    direction: float  # 1 or -1: which way the axis counts
    dof_steps: float  # steps of the stack in one depth of field
    levels: Levels = AS_IT_IS
    seed: int = 0
    blur_px_per_dof: float = 1.0
    frames: int = 0
    seen_names: list[str] = field(default_factory=list)
    busy_s: float = 0.0  # spent in here, not in the method

    @property
    def start(self) -> FocusCommand:
        """The plane where a run begins, at 0."""
        return FocusCommand(0.0)

    @property
    def half_range_dof(self) -> float:
        """The whole stack, from wherever the run starts."""
        here = self.planes[self.start_index].position
        ends = (self.planes[0].position, self.planes[-1].position)
        return max(abs(end - here) for end in ends) / self.dof_steps

    @property
    def limits_dof(self) -> tuple[float, float]:
        """The first and the last plane."""
        ends = [self.command_at(self.planes[k].position).z_dof for k in (0, -1)]
        return min(ends), max(ends)

    @property
    def stig_range_dof(self) -> float:
        """None is expected of a light microscope."""
        return 0.0

    @property
    def has_stigmator(self) -> bool:
        """Never."""
        return False

    @property
    def widest_ratio(self) -> float:
        """The field is what it is."""
        return 1.0

    def position(self, command: FocusCommand) -> float:
        """Of a command, in steps of the stack."""
        here = self.planes[self.start_index].position
        return here + self.direction * command.z_dof * self.dof_steps

    def command_at(self, position: float) -> FocusCommand:
        """The command that leads to a position in steps."""
        here = self.planes[self.start_index].position
        return FocusCommand((position - here) * self.direction / self.dof_steps)

    def observe(self, command: FocusCommand) -> Observation:
        """The nearest plane, and where that lies."""
        began_s = time.perf_counter()
        wanted = self.position(command)
        plane = min(self.planes, key=lambda each: abs(each.position - wanted))
        pixels = self._levelled(plane.pixels)
        self.frames += 1
        self.seen_names.append(plane.name)
        self.busy_s += time.perf_counter() - began_s
        return Observation(pixels, self.command_at(plane.position))

    def move(self, command: FocusCommand) -> None:
        """A stack has no backlash."""

    def _levelled(self, pixels: Image) -> Image:
        levels = self.levels
        if levels.most_gain == 1.0 and levels.flicker_ratio == 0.0:
            return pixels
        run = np.random.default_rng([self.seed, self.start_index, int(self.direction > 0)])
        gain = math.exp(run.uniform(-1.0, 1.0) * math.log(levels.most_gain))
        frame = np.random.default_rng(
            [self.seed, self.start_index, int(self.direction > 0), self.frames + 1]
        )
        gain *= max(0.2, 1.0 + levels.flicker_ratio * float(frame.standard_normal()))
        # In finer steps and with room above: the frame was digitised already, and is not again.
        room = np.float32(gain * (_FINER if pixels.dtype == np.uint8 else 1.0))
        scaled: npt.NDArray[np.float32] = np.rint(pixels.astype(np.float32) * room)
        return np.minimum(scaled, np.float32(65_535.0)).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class StackRun:
    """One run of one method on a stack."""

    method: str
    levels: str
    start_position: float
    direction: float
    error_steps: float  # end less truth, in the stack's own direction
    start_error_steps: float
    is_confident: bool
    frames: int
    planes: int  # different ones among the frames
    wall_s: float  # the method's own, all frames together
    reason: str


def run_on_stack(
    planes: Sequence[Plane],
    method: FocusMethod,
    levels: Levels = AS_IT_IS,
    *,
    truth: float = 0.0,
    dof_steps: float = 1.0,
    seed: int = 0,
) -> list[StackRun]:
    """Run one method from every plane of one stack, in both directions."""
    runs = []
    for direction in (1.0, -1.0):
        for index, plane in enumerate(planes):
            problem = StackProblem(planes, index, direction, dof_steps, levels, seed)
            began_s = time.perf_counter()
            outcome = method.run(problem)
            wall_s = time.perf_counter() - began_s - problem.busy_s - outcome.aside_s
            runs.append(
                StackRun(
                    method=method.name,
                    levels=levels.name,
                    start_position=plane.position,
                    direction=direction,
                    error_steps=problem.position(outcome.command) - truth,
                    start_error_steps=plane.position - truth,
                    is_confident=outcome.is_confident,
                    frames=problem.frames,
                    planes=len(set(problem.seen_names)),
                    wall_s=wall_s,
                    reason=outcome.reason,
                )
            )
    return runs


@dataclass(frozen=True, slots=True)
class StackBars:
    """What is asked of a stack."""

    tolerance_steps: float = 0.3
    most_frames: int = 6


def summary_rows(
    runs: Sequence[StackRun], bars: StackBars = StackBars(), prefix: str = ""
) -> list[Row]:
    """The rows of one method under one kind of levels; success: near enough, sure, soon enough."""
    n = len(runs)
    good = [
        run
        for run in runs
        if run.is_confident
        and abs(run.error_steps) <= bars.tolerance_steps
        and run.frames <= bars.most_frames
    ]
    errors = np.array([abs(run.error_steps) for run in runs])
    frames = np.array([run.frames for run in runs], dtype=np.float64)
    wrong = [r for r in runs if r.is_confident and abs(r.error_steps) > bars.tolerance_steps]
    worse = [r for r in runs if abs(r.error_steps) > abs(r.start_error_steps) + 0.25]
    asked = f"sure, within {bars.tolerance_steps:g} step, in <= {bars.most_frames} frames"
    close = int(np.count_nonzero(errors <= bars.tolerance_steps))
    return [
        Row(
            f"{prefix}success_rate",
            len(good) / n,
            "",
            1.0,
            n=n,
            ci95=wilson_ci95(len(good), n),
            note=asked,
        ),
        _quantile(f"{prefix}median_error_steps", errors, 0.5, "steps"),
        _quantile(f"{prefix}p95_error_steps", errors, 0.95, "steps"),
        Row(
            f"{prefix}median_frames",
            float(np.median(frames)),
            "frames",
            float(bars.most_frames),
            "lower",
            n=n,
            ci95=bootstrap(frames, 0.5),
            note=f"at most {int(frames.max())}",
        ),
        Row(
            f"{prefix}within_tolerance",
            close / n,
            "",
            n=n,
            ci95=wilson_ci95(close, n),
            note=f"within {bars.tolerance_steps:g} step, sure or not, however many frames",
        ),
        Row(
            f"{prefix}confidently_wrong",
            len(wrong) / n,
            "",
            better="lower",
            n=n,
            ci95=wilson_ci95(len(wrong), n),
        ),
        Row(
            f"{prefix}harm_rate",
            len(worse) / n,
            "",
            0.0,
            "lower",
            n=n,
            ci95=wilson_ci95(len(worse), n),
            note="ends more than 0.25 step worse than it began",
        ),
    ]


def _quantile(name: str, values: npt.NDArray[np.float64], share: float, unit: str) -> Row:
    return Row(
        name,
        float(np.quantile(values, share)),
        unit,
        better="lower",
        n=values.size,
        ci95=bootstrap(values, share),
    )


def bootstrap(values: npt.NDArray[np.float64], share: float) -> tuple[float, float] | None:
    """95 % interval of a quantile, from runs drawn with replacement; None for fewer than two."""
    if values.size < 2:
        return None
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLES // 100):  # by the hundred: memory
        drawn = values[rng.integers(0, values.size, (100, values.size))]
        found.append(np.quantile(drawn, share, axis=1))
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


# --- |defocus| of single frames ---------------------------------------------------------------


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: Pearson's correlation of ranks, ties shared."""
    a, b = _ranks(np.asarray(one, np.float64)), _ranks(np.asarray(other, np.float64))
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0.0 else 0.0


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    order = np.argsort(values, kind="stable")
    ranks = np.empty(values.size)
    ranks[order] = np.arange(values.size, dtype=np.float64)
    for value in np.unique(values):
        same = values == value
        ranks[same] = ranks[same].mean()
    return ranks


def rank_rows(
    planes: Sequence[Plane], defocus_of: Mapping[str, Callable[[Image], float]], bar: float = 0.98
) -> list[Row]:
    """Rank correlation of each estimate of |defocus| with the file's own, in each group and in all.

    Within a group the object is lit alike; across groups exposure must not pass for defocus.
    """
    truth = [abs(plane.position) for plane in planes]
    groups = sorted({plane.group for plane in planes})
    rows = []
    for name, estimate in defocus_of.items():
        values = [estimate(plane.pixels) for plane in planes]
        within = []
        for group in groups:
            chosen = [k for k, plane in enumerate(planes) if plane.group == group]
            within.append(rank_correlation([values[k] for k in chosen], [truth[k] for k in chosen]))
        across = rank_correlation(values, truth)
        rows.append(
            Row(
                f"{name}: rank correlation within",
                min(within),
                "",
                bar,
                n=len(planes),
                note=f"the least of {len(groups)} exposures",
            )
        )
        rows.append(Row(f"{name}: rank correlation across", across, "", bar, n=len(planes)))
    return rows
