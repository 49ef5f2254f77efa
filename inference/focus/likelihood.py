"""How likely frames are, given where focus is: the model, and the sums every posterior needs.

Log-power model of frame k in cell b (a band of frequency, or a band and a sector of direction):

    log P_bk = log(S_b exp(g_k) <M^2(f R_k)>_b + N_k) + error
    R_k^2 = c^2 [z_k^2 + A_k^2 + 2 z_k (a_k cos 2 theta + b_k sin 2 theta)]

with z_k the command less the focus sought, (a_k, b_k) likewise for the stigmator, A^2 = a^2 + b^2.
S, the object, is profiled out with a weak prior; g, the frame's gain, is a nuisance; the noise
floor N is the frame's own; the blur's scale c and the probe's shape are summed over. Errors of the
power in neighbouring bands go together, so the log-likelihood is divided by a temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from inference.focus import blur
from inference.focus.api import FocusBelief, FocusCommand, FocusView
from inference.focus.spectrum import SECTORS, BandPower, band_edges_cyc_px

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.floating[Any]]
SECTOR_STRIDE = 2  # bands taken together where sectors are told apart
PEDESTAL_LOG_SD = 1.5  # of the noise's colour, where there is one
_CARRIED_LOG_SD = 0.05  # of the blur's scale, from one run to the next
_PEDESTAL_LOG = np.float32(0.7)  # what coloured noise has over the highest frequencies' floor


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known before the first frame; `carried_over` adds what earlier runs taught."""

    range_dof: float = 30.0  # focus lies within this of the first frame's command
    astigmatism_dof: float = 0.0  # the most there may be; 0: not asked about
    blur_px_per_dof: float = 1.0  # blur radius: 1 when a DOF is one pixel over the half-angle
    blur_log_sd: float = 0.2
    shape_probabilities: tuple[float, ...] = (1.0 / len(blur.SHAPES),) * len(blur.SHAPES)
    gain_log_sd: float = 0.15  # of the power, frame to frame
    spectrum_log_sd: float = 2.5
    temperature: float = 0.85  # what errors of neighbouring bands share, less what they overstate
    sector_temperature: float = 1.8
    model_log_sd: float = 0.06
    pedestal_log_sd: float = 0.0  # 0: noise is white, with each frame's own floor; see `believe`
    least_sigma_dof: float = 0.025  # lens errors that no frame tells, in the best of cases

    def carried_over(self, belief: FocusBelief) -> Prior:
        """What is known after a run that ended in focus, for the next one on the same instrument.

        The scale is widened, for apertures and voltages drift; every shape stays possible. Carry
        over only what a verified run believed; a run that gave up teaches nothing.
        """
        log_sd = math.hypot(belief.scale_log_sd, _CARRIED_LOG_SD)
        shapes = belief.shape_probabilities
        return replace(
            self,
            blur_px_per_dof=belief.scale,
            blur_log_sd=min(log_sd, max(self.blur_log_sd, _CARRIED_LOG_SD)),
            shape_probabilities=tuple(0.7 * p + 0.3 / len(shapes) for p in shapes),
            pedestal_log_sd=self.pedestal_log_sd if belief.is_noise_white else PEDESTAL_LOG_SD,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Frames of one pixel size, measured at one binning."""

    log_power: F32  # (k, cells, 1)
    floor: F32  # (k, 1, 1)
    modes: F32  # (k, cells, 1)
    floor_modes: F32  # (k, 1, 1)
    unevenness: F32  # (k, cells, 1), 1 over the number of modes that carry the power
    ring: F32  # (cells, 1), cycles per pixel
    band: npt.NDArray[np.intp]  # (cells,), row of the blur table
    cos: F32  # (cells, 1), of twice the sector's angle
    sin: F32
    command: F64  # (k, 3): z, stigmator x and y
    pixel: float  # size of a pixel here over the finest one's


def coadded(views: Sequence[FocusView]) -> list[FocusView]:
    """Frames at one command and one pixel size as one: at low dose the same places are repeated."""
    groups: dict[tuple[FocusCommand, float], list[FocusView]] = {}
    for view in views:
        groups.setdefault((view.command, view.pixel_ratio), []).append(view)
    result = []
    for members in groups.values():
        levels = tuple(_sum_of(same) for same in zip(*(v.levels for v in members), strict=False))
        result.append(replace(members[0], levels=levels))
    return result


def _sum_of(levels: Sequence[BandPower]) -> BandPower:
    if len(levels) == 1:
        return levels[0]
    return replace(
        levels[0],
        power=np.mean([level.power for level in levels], axis=0),
        squares=np.mean([level.squares for level in levels], axis=0),
        modes=np.sum([level.modes for level in levels], axis=0),
        floor=float(np.mean([level.floor for level in levels])),
        floor_modes=float(np.sum([level.floor_modes for level in levels])),
    )


def scale_grid(
    prior: Prior, around: tuple[float, float] | None = None, points: int = 5
) -> tuple[F64, F64]:
    """Blur radii in pixels per DOF that are summed over, and their log-weights.

    around: mean and standard deviation of the radius's logarithm, where they are known better.
    """
    middle = math.log(prior.blur_px_per_dof)
    if around is None:
        half = 1.8 * prior.blur_log_sd
        points = max(points, math.ceil(2.0 * half / 0.25) + 1)
        logs = middle + np.linspace(-half, half, points)
    else:
        logs = around[0] + np.linspace(-1.8, 1.8, points) * around[1]
    step = float(logs[1] - logs[0])
    weights = -0.5 * np.square((logs - middle) / prior.blur_log_sd)
    weights += math.log(step / (prior.blur_log_sd * math.sqrt(2.0 * math.pi)))
    return np.exp(logs), weights


def _groups(views: Sequence[FocusView]) -> list[tuple[float, list[tuple[FocusView, BandPower]]]]:
    groups: dict[float, list[tuple[FocusView, BandPower]]] = {}
    for view in views:
        for level in view.levels:
            pixel = round(view.pixel_ratio * level.binning, 3)
            groups.setdefault(pixel, []).append((view, level))
    return sorted(groups.items())


def _commands(views: Sequence[FocusView]) -> F64:
    return np.array([(v.command.z_dof, v.command.stig_x_dof, v.command.stig_y_dof) for v in views])


def _column(values: F64) -> F32:
    """(k, cells) -> (k, cells, 1), for candidates to broadcast over."""
    return values[:, :, None].astype(np.float32)


def ring_cells(views: Sequence[FocusView], sectors: Sequence[int] = range(SECTORS)) -> list[Cells]:
    """Cells of one band; of a few sectors, the cells without modes there are left out."""
    edges = band_edges_cyc_px()
    ring = np.sqrt(edges[:-1] * edges[1:]).astype(np.float32)[:, None]
    data = []
    for pixel, members in _groups(views):
        modes = np.array([m[1].modes[:, list(sectors)] for m in members])  # (k, bands, sectors)
        total = modes.sum(axis=2)
        kept = np.flatnonzero(total[0] >= 0.5)
        power = (np.array([m[1].power[:, list(sectors)] for m in members]) * modes).sum(axis=2)
        squares = (np.array([m[1].squares[:, list(sectors)] for m in members]) * modes).sum(axis=2)
        data.append(
            Cells(
                log_power=_column(np.log(power[:, kept] / total[:, kept])),
                floor=_column(np.array([[m[1].floor] for m in members])),
                modes=_column(total[:, kept]),
                floor_modes=_column(np.array([[m[1].floor_modes] for m in members])),
                unevenness=_column(squares[:, kept] / np.square(power[:, kept])),
                ring=ring[kept],
                band=kept,
                cos=np.zeros_like(ring[kept]),
                sin=np.zeros_like(ring[kept]),
                command=_commands([m[0] for m in members]),
                pixel=pixel,
            )
        )
    return data


def sector_cells(views: Sequence[FocusView]) -> list[Cells]:
    """Cells of two bands and one sector; cells without modes are left out."""
    edges = band_edges_cyc_px()[::SECTOR_STRIDE]
    bands = len(edges) - 1
    ring = np.repeat(np.sqrt(edges[:-1] * edges[1:]), SECTORS)
    angle = np.tile(np.arange(SECTORS) * (2.0 * math.pi / SECTORS), bands)  # twice the direction
    data = []
    for pixel, members in _groups(views):
        split = (len(members), bands, SECTOR_STRIDE, SECTORS)
        modes = np.array([m[1].modes for m in members])
        merged = modes.reshape(split).sum(axis=2).reshape((len(members), -1))
        flat = (len(members), -1)
        power = (np.array([m[1].power for m in members]) * modes).reshape(split).sum(axis=2)
        squares = (np.array([m[1].squares for m in members]) * modes).reshape(split).sum(axis=2)
        power, squares = power.reshape(flat), squares.reshape(flat)
        kept = np.flatnonzero(merged[0] >= 0.5)
        data.append(
            Cells(
                log_power=_column(np.log(power[:, kept] / merged[:, kept])),
                floor=_column(np.array([[m[1].floor] for m in members])),
                modes=_column(merged[:, kept]),
                floor_modes=_column(np.array([[m[1].floor_modes] for m in members])),
                unevenness=_column(squares[:, kept] / np.square(power[:, kept])),
                ring=ring[kept][:, None].astype(np.float32),
                band=np.repeat(np.arange(bands), SECTORS)[kept],
                cos=np.cos(angle[kept])[:, None].astype(np.float32),
                sin=np.sin(angle[kept])[:, None].astype(np.float32),
                command=_commands([m[0] for m in members]),
                pixel=pixel,
            )
        )
    return data


def on_grid(
    data: Sequence[Cells],
    grid: F64,
    scales: F64,
    scale_weights: F64,
    prior: Prior,
    shapes: tuple[int, ...] = tuple(range(len(blur.SHAPES))),
) -> tuple[F64, F64]:
    """Log-posterior and misfit, (shapes, scales, grid)."""
    shape = (len(shapes), len(scales), len(grid))
    total = np.zeros(shape)
    misfit = np.zeros(shape)
    cells = 0
    tables = blur.table()[list(shapes)]
    for group in data:
        k = len(group.command)
        distance = np.abs(group.command[:, 0, None, None] - grid)  # (k, 1, grid)
        radius = (distance * scales[None, :, None] / group.pixel).astype(np.float32)
        steps = blur.radius_steps(radius)
        low = steps.astype(np.intp)
        part = steps - low
        # (shapes, bands, k, scales, grid) -> (k, bands, candidates)
        of_bands = tables[:, group.band]
        m2 = of_bands[:, :, low] * (1.0 - part) + of_bands[:, :, low + 1] * part
        m2 = m2.transpose(2, 1, 0, 3, 4).reshape(k, len(group.ring), -1)
        wide = np.broadcast_to(radius[:, None], (k, shape[0], *radius.shape[1:])).reshape(k, 1, -1)
        cost, chi2 = profiled(group, m2, wide, prior)
        total -= cost.reshape(shape)
        misfit += chi2.reshape(shape)
        cells += k * len(group.ring)
    total /= prior.temperature
    total += scale_weights[None, :, None]
    shape_p = np.array(prior.shape_probabilities)[list(shapes)]
    total += np.log(np.maximum(shape_p, 1e-6))[:, None, None]
    return total, misfit / cells


def profiled(group: Cells, m2: F32, radius: F32, prior: Prior) -> tuple[F64, F64]:
    """Negative log-likelihood with object and gains fitted, and the squared residuals, (g,)."""
    fit = fitted(group, m2, radius, prior)
    return fit.cost, fit.chi2


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The best object, gains and noise for each of g candidates."""

    cost: F64  # (g,), negative log-likelihood
    chi2: F64  # (g,)
    log_object: F32  # (cells, g)
    noise: F32  # (k or 1, cells or 1, g or 1)
    residual: F32  # (k, cells, g), half of whose squares is the robust part of `cost`


def fitted(group: Cells, m2: F32, radius: F32, prior: Prior) -> Fit:
    """Fit the object, the gains, and with `prior.pedestal_log_sd` the noise's colour.

    m2: (k, cells, g); radius (k, cells or 1, g) px. Gauss-Newton in the logarithm of the object and
    of the noise, gains in turn; Huber's weights at 2.5.
    """
    y = group.log_power
    k = len(y)
    is_coloured = prior.pedestal_log_sd > 0.0
    noise = floor = np.min(group.floor, axis=0, keepdims=True) if is_coloured else group.floor
    signal = np.maximum(np.exp(y) - floor, 0.1 * floor / np.sqrt(group.modes))
    # Mean log power of micrographs and random textures in focus: a power law, a weak prior only.
    mean_s = (-4.6 - 2.6 * np.log(group.ring / 0.1)).astype(np.float32)
    log_s = np.log((signal * m2).sum(axis=0) / (m2 * m2).sum(axis=0))  # (cells, g)
    log_s = np.clip(log_s, mean_s - 8.0, mean_s + 8.0)
    gain = np.zeros((k, 1, m2.shape[2]), dtype=np.float32)
    s_precision = np.float32(1.0 / prior.spectrum_log_sd**2)
    g_precision = np.float32(1.0 / prior.gain_log_sd**2)
    q_precision = np.float32(1.0 / prior.pedestal_log_sd**2 if is_coloured else 0.0)
    lift = np.full_like(log_s, _PEDESTAL_LOG)
    variance = weight = np.ones_like(m2)
    rounds = 6 if is_coloured else 3
    for i in range(rounds):
        if is_coloured:
            noise = floor * np.exp(lift)
        object_ = np.exp(log_s + gain)
        total = object_ * m2 + noise
        share = object_ * m2 / total
        r = y - np.log(total)
        if i < rounds - 1:
            variance = variance_of(share, group, group.ring * radius, radius, prior)
        robust = np.minimum(1.0, 2.5 * np.sqrt(variance) / (np.abs(r) + 1e-6))
        if is_coloured:
            # Both at once: what is object and what is noise pull at each other.
            weight = robust / variance
            rest = 1.0 - share
            ss = (weight * share * share).sum(axis=0) + s_precision
            sq = (weight * share * rest).sum(axis=0)
            qq = (weight * rest * rest).sum(axis=0) + q_precision
            along_s = (weight * share * r).sum(axis=0) - s_precision * (log_s - mean_s)
            along_q = (weight * rest * r).sum(axis=0) - q_precision * (lift - _PEDESTAL_LOG)
            det = ss * qq - sq * sq
            change = np.clip((qq * along_s - sq * along_q) / det, -2.0, 2.0)
            rise = np.clip((ss * along_q - sq * along_s) / det, -1.0, 1.0)
            log_s, lift = log_s + change, lift + rise
            weight = weight * share
            curved = weight * share
            r = r - share * change - rest * rise
        else:
            weight = share / variance * robust
            curved = weight * share
            along_s = (weight * r).sum(axis=0) - s_precision * (log_s - mean_s)
            change = np.clip(along_s / (curved.sum(axis=0) + s_precision), -2.0, 2.0)
            log_s = log_s + change
            r = r - share * change
        if k > 1:
            gain = gain + ((weight * r).sum(axis=1, keepdims=True) - g_precision * gain) / (
                curved.sum(axis=1, keepdims=True) + g_precision
            )
    if is_coloured:
        noise = floor * np.exp(lift)
    r = y - np.log(np.exp(log_s + gain) * m2 + noise)
    norm = r * r / variance
    loss = np.where(norm < 6.25, 0.5 * norm, 2.5 * np.sqrt(norm) - 3.125)
    cost = (loss + 0.5 * np.log(variance)).sum(axis=(0, 1), dtype=np.float64)
    cost += 0.5 * g_precision * np.square(gain).sum(axis=(0, 1), dtype=np.float64)
    cost += 0.5 * s_precision * np.square(log_s - mean_s).sum(axis=0, dtype=np.float64)
    # The object is integrated out, not only fitted: without this a fit that leaves no residual wins
    # by claiming the smallest errors, and one frame alone would always seem to be in focus.
    known = (share * share / variance).sum(axis=0) + s_precision
    if is_coloured:
        rest = 1.0 - share
        crossed = np.square((share * rest / variance).sum(axis=0))
        known = known * ((rest * rest / variance).sum(axis=0) + q_precision) - crossed
        cost += 0.5 * q_precision * np.square(lift - _PEDESTAL_LOG).sum(axis=0, dtype=np.float64)
        cost -= 0.5 * math.log(q_precision) * len(group.ring)
    cost += 0.5 * np.log(known).sum(axis=0, dtype=np.float64)
    chi2 = np.minimum(norm, 25.0).sum(axis=(0, 1), dtype=np.float64)
    return Fit(cost, chi2, log_s, noise, np.copysign(np.sqrt(2.0 * loss), r))


def variance_of(share: F32, group: Cells, x: F32, radius: F32, prior: Prior) -> F32:
    """Variance of a log power: what counting scatters, and what the model leaves out.

    share: signal over all power; x: frequency times blur radius. Strong blur shows the shape, which
    is not known, and brings in what lies outside the field; power in a few peaks is not blurred by
    the band's average. The first two were fitted on micrographs blurred by shapes outside the
    family; for the third a Gaussian's log M^2 changes by 2 (pi x)^2 d log f, and a band's
    frequencies scatter by 0.065 of themselves.
    """
    share2 = share * share
    x2 = x * x
    shape_error = np.square(0.35 * x2 / (x2 + 0.36))
    exchange = np.square(radius * np.float32(1.0 / 37.0)) * (2.5 / group.modes)
    peaks = group.unevenness * np.square(1.3 * x2 / (1.0 + x2))
    model = np.float32(prior.model_log_sd**2) + shape_error + exchange + peaks
    counted = (1.0 - share2) / group.modes + np.square(1.0 - share) / group.floor_modes
    variance: F32 = counted + share2 * model + np.float32(3e-5)
    return variance


def summary(grid: F64, log_post: F64) -> tuple[float, float]:
    """Mean of the peak that holds most, and the whole posterior's spread about it.

    Not of the highest: where two sides are possible, a narrow peak may stand on the less likely.
    """
    weights = np.exp(log_post - log_post.max()).sum(axis=(0, 1))
    weights /= weights.sum()
    left = weights.copy()
    best, z = 0.0, float(grid[int(np.argmax(weights))])
    while float(left.sum()) > best:
        low = high = int(np.argmax(left))
        while low > 0 and 1e-9 < left[low - 1] <= 1.02 * left[low]:
            low -= 1
        while high < len(grid) - 1 and 1e-9 < left[high + 1] <= 1.02 * left[high]:
            high += 1
        part = np.s_[low : high + 1]
        held = float(left[part].sum())
        if held > best:
            best, z = held, float(left[part] @ grid[part]) / held
        left[part] = 0.0
    step = float(grid[1] - grid[0])
    return z, math.sqrt(float(weights @ np.square(grid - z)) + step**2 / 12.0)
