"""Classical searches for the peak of a sharpness curve, as generators: positions out, values in.

A search yields `Look(z)` and is sent the value measured there, or yields `Go(z)`, a move without a
frame, and is sent anything. It returns `Found`. Lengths are in depths of field. Nothing here
knows what is measured, so every search runs with every measure.

Most of them have no idea whether they succeeded, as published: they are always confident. Sweeps
can tell a peak from noise, and do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0
_BEYOND: Final = 1.05  # how far a sweep goes over the range, so that focus at its end is a peak


@dataclass(frozen=True, slots=True)
class Look:
    """Measure one frame at this place."""

    z_dof: float


@dataclass(frozen=True, slots=True)
class Go:
    """Move there; no frame is wanted."""

    z_dof: float


@dataclass(frozen=True, slots=True)
class Found:
    """Where the search ends."""

    z_dof: float
    is_confident: bool = True
    reason: str = ""  # why not, "" when confident


Search: TypeAlias = Generator[Look | Go, float, Found]
SearchAround: TypeAlias = Callable[[float, float], Search]  # (centre, half range) in DOF


@dataclass(frozen=True, slots=True)
class PeakFit:
    """A parabola through the samples around the best one."""

    points: int = 3
    curve: Literal["value", "log", "inverse"] = "value"  # what is taken to be a parabola

    def vertex(self, z_dof: Sequence[float], values: Sequence[float]) -> float:
        """Place of the peak: the best sample's own where the fit has none between neighbours."""
        z, v = (np.array(part, dtype=np.float64) for part in (z_dof, values))
        order = np.argsort(z, kind="stable")
        z, v = z[order], v[order]
        best = int(np.argmax(v))
        if best in (0, len(z) - 1) or not v[best] > 0:
            return float(z[best])
        half = min(self.points // 2, best, len(z) - 1 - best)
        part = np.s_[best - half : best + half + 1]
        u, height = z[part] - z[best], np.maximum(v[part], 0.02 * v[best])
        match self.curve:
            case "value":
                shaped = v[part]
            case "log":
                shaped = np.log(height)
            case "inverse":
                shaped = -1.0 / height
        scale = float(np.max(np.abs(u)))
        if scale <= 0.0:
            return float(z[best])
        bend, slope, _ = np.polyfit(u / scale, shaped, 2)
        if bend >= 0.0:
            return float(z[best])
        offset = -slope / (2.0 * bend) * scale
        return float(z[best] + np.clip(offset, z[best - 1] - z[best], z[best + 1] - z[best]))


@dataclass(frozen=True, slots=True)
class _Curve:
    z_dof: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def best_z_dof(self) -> float:
        return self.z_dof[int(np.argmax(self.values))]


def _look_at(places: Iterable[float]) -> Generator[Look | Go, float, _Curve]:
    z_dof = tuple(float(z) for z in places)
    values: list[float] = []
    for z in z_dof:
        value = yield Look(z)
        values.append(value)
    return _Curve(z_dof, tuple(values))


def _stands_out(values: Sequence[float], least_ratio: float) -> bool:
    """A peak inside the sweep, above its roughness: from second differences, away from the peak."""
    v = np.array(values, dtype=np.float64)
    best = int(np.argmax(v))
    if best in (0, len(v) - 1):
        return False
    bends = np.abs(v[2:] - 2.0 * v[1:-1] + v[:-2])
    noise = float(np.median(bends)) / (0.6745 * math.sqrt(6.0))
    return float(v[best] - np.median(v)) > least_ratio * noise


def sweep(
    centre_dof: float, half_dof: float, planes: int = 21, fit: PeakFit | None = None
) -> Search:
    """Evenly spaced planes over the whole range, and a parabola (None: the best plane)."""
    reach = _BEYOND * half_dof
    curve = yield from _look_at(np.linspace(centre_dof - reach, centre_dof + reach, planes))
    if not _stands_out(curve.values, 4.0):
        return Found(curve.best_z_dof, False, "no peak that stands out from the sweep's roughness")
    return Found(fit.vertex(curve.z_dof, curve.values) if fit else curve.best_z_dof)


def two_pass(
    centre_dof: float, half_dof: float, planes: int = 11, fit: PeakFit | None = None
) -> Search:
    """A coarse pass, and one five times finer about its best: openFIBSEM, 50 um / 5 um, 10 / 1.

    Without a fit it is as published: the best plane, always sure of itself.
    """
    coarse = yield from _look_at(np.linspace(centre_dof - half_dof, centre_dof + half_dof, planes))
    middle = fit.vertex(coarse.z_dof, coarse.values) if fit else coarse.best_z_dof
    reach = half_dof / 5.0
    fine = yield from _look_at(np.linspace(middle - reach, middle + reach, planes))
    if fit is None:
        return Found(fine.best_z_dof)
    return Found(fit.vertex(fine.z_dof, fine.values))


def hill_climb(
    centre_dof: float,
    half_dof: float,
    first_step_dof: float = 6.0,
    last_step_dof: float = 0.75,
    stop_ratio: float = 0.85,
    fit: PeakFit | None = None,
) -> Search:
    """Climb until the value falls under `stop_ratio` of the best; turn with a quarter of the step.

    Squid's early stop. Ends with a parabola through the last, finest climb.
    """
    fit = fit or PeakFit()
    low, high = centre_dof - _BEYOND * half_dof, centre_dof + _BEYOND * half_dof
    step = first_step_dof
    z = centre_dof
    seen: dict[float, float] = {z: (yield Look(z))}
    while True:
        # Which way is up: one look on each side of the best, if not seen already.
        best_z = max(seen, key=seen.__getitem__)
        climbed = {best_z: seen[best_z]}
        for side in (1.0, -1.0):
            z, top = best_z, seen[best_z]
            while low <= z + side * step <= high:
                z += side * step
                value = yield Look(z)
                seen[z] = climbed[z] = value
                top = max(top, value)
                if value < stop_ratio * top:
                    break
            if max(climbed, key=climbed.__getitem__) != best_z:
                break  # it went up on this side: the other side is behind
        if step <= last_step_dof:
            top_z = max(seen, key=seen.__getitem__)
            around = {k: v for k, v in seen.items() if abs(k - top_z) <= 4.0 * step}
            return Found(fit.vertex(tuple(around), tuple(around.values())))
        step = max(step / 4.0, last_step_dof)


def golden_section(centre_dof: float, half_dof: float, tolerance_dof: float = 0.25) -> Search:
    """Shrink the bracket by 0.618 a frame until it is twice the tolerance wide."""
    low, high = centre_dof - half_dof, centre_dof + half_dof
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left = yield Look(left)
    at_right = yield Look(right)
    while high - low > 2.0 * tolerance_dof:
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = yield Look(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = yield Look(right)
    return Found(left if at_left >= at_right else right)


def fibonacci(centre_dof: float, half_dof: float, tolerance_dof: float = 0.25) -> Search:
    """Like the golden section, with the ratios that make the most of a known number of frames."""
    low, high = centre_dof - half_dof, centre_dof + half_dof
    numbers = [1, 1]
    while numbers[-1] < (high - low) / tolerance_dof:
        numbers.append(numbers[-1] + numbers[-2])
    last = len(numbers) - 1
    unit = (high - low) / numbers[last]
    left, right = low + numbers[last - 2] * unit, low + numbers[last - 1] * unit
    at_left = yield Look(left)
    at_right = yield Look(right)
    for n in range(last - 1, 2, -1):
        if at_left >= at_right:
            right, at_right = left, at_left
            left = low + numbers[n - 2] * unit
            at_left = yield Look(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + numbers[n - 1] * unit
            at_right = yield Look(right)
    return Found(left if at_left >= at_right else right)


def brent(
    centre_dof: float,
    half_dof: float,
    tolerance_dof: float = 0.25,
    relative: float = 1e-9,
    most_frames: int = 100,
) -> Search:
    """Brent's minimiser on the whole interval, started in its middle, as OughtaFocus calls it.

    OughtaFocus: [z - R/2, z + R/2] with R the search range (10 um), absolute tolerance 1 um,
    relative 1e-9, at most 100 evaluations. A micrometre is a quarter of the depth of field of the
    dry 20x lenses that this default serves; that ratio is kept.
    Source: R. P. Brent, Algorithms for Minimization Without Derivatives (1973), ch. 5.
    """
    share = 1.0 - _GOLDEN
    low, high = centre_dof - half_dof, centre_dof + half_dof
    x = w = v = centre_dof
    at_x = at_w = at_v = -(yield Look(x))
    frames, step, before = 1, 0.0, 0.0
    while frames < most_frames:
        middle = 0.5 * (low + high)
        tol = relative * abs(x) + tolerance_dof
        if abs(x - middle) <= 2.0 * tol - 0.5 * (high - low):
            break
        p = q = r = 0.0
        if abs(before) > tol:
            r = (x - w) * (at_x - at_v)
            q = (x - v) * (at_x - at_w)
            p = (x - v) * q - (x - w) * r
            q = 2.0 * (q - r)
            p, q = (-p, q) if q > 0.0 else (p, -q)
            r, before = before, step
        is_parabolic = q * (low - x) < p < q * (high - x) and abs(p) < abs(0.5 * q * r)
        if is_parabolic:
            step = p / q
            if x + step - low < 2.0 * tol or high - (x + step) < 2.0 * tol:
                step = math.copysign(tol, middle - x)
        else:
            before = (high if x < middle else low) - x
            step = share * before
        u = x + (step if abs(step) >= tol else math.copysign(tol, step))
        at_u = -(yield Look(u))
        frames += 1
        if at_u <= at_x:
            low, high = (low, x) if u < x else (x, high)
            v, at_v, w, at_w, x, at_x = w, at_w, x, at_x, u, at_u
        else:
            low, high = (u, high) if u < x else (low, u)
            if at_u <= at_w or w == x:
                v, at_v, w, at_w = w, at_w, u, at_u
            elif at_u <= at_v or v in (x, w):
                v, at_v = u, at_u
    return Found(x)


def sweep_and_return(
    centre_dof: float,
    half_dof: float,
    planes: int = 41,
    backlash_dof: float = 8.0,
    fit: PeakFit | None = None,
) -> Search:
    """One upward sweep in video frames; back below the start, then up to the peak: OpenFlexure.

    The peak must bend down by more than the sweep's roughness, as its test of a parabola asks.
    """
    reach = _BEYOND * half_dof
    yield Go(centre_dof - reach - backlash_dof)
    curve = yield from _look_at(np.linspace(centre_dof - reach, centre_dof + reach, planes))
    if not _stands_out(curve.values, 4.0):
        return Found(curve.best_z_dof, False, "the sweep has no peak")
    peak = (fit or PeakFit()).vertex(curve.z_dof, curve.values)
    yield Go(peak - backlash_dof)
    return Found(peak)


def three_point(
    centre_dof: float,
    half_dof: float,
    spread_ratio: float = 0.7,
    rounds: int = 1,
    curve: Literal["value", "inverse"] = "inverse",
) -> Search:
    """Three frames and the vertex of the parabola through them.

    M. E. Rudnaya, H. G. ter Morsche, J. M. L. Maubach, R. M. M. Mattheij, J. Math. Imaging Vis. 44,
    38 (2012): a derivative with enough artificial blur is close to quadratic in defocus. A
    further round repeats it about the vertex, at a quarter of the spread.
    """
    spread = spread_ratio * half_dof
    middle = centre_dof
    for _ in range(rounds):
        places = np.array([middle - spread, middle, middle + spread])
        seen = yield from _look_at(places)
        v = np.maximum(np.array(seen.values), 1e-3 * max(max(seen.values), 1e-30))
        bend, slope, _ = np.polyfit((-1.0, 0.0, 1.0), -1.0 / v if curve == "inverse" else v, 2)
        offset = -slope / (2.0 * bend) if bend < 0.0 else float(np.argmax(v)) - 1.0
        middle += float(np.clip(offset, -1.5, 1.5)) * spread
        middle = float(np.clip(middle, centre_dof - half_dof, centre_dof + half_dof))
        spread /= 4.0
    return Found(middle)
