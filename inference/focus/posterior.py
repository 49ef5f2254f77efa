"""Where focus is, from any number of frames: one posterior over defocus and astigmatism.

Log-power model of frame k in cell b (a band of frequency, or a band and a sector of direction):

    log P_bk = log(S_b exp(g_k) <M^2(f R_k)>_b + N_k) + error
    R_k^2 = c^2 [z_k^2 + A_k^2 + 2 z_k (a_k cos 2 theta + b_k sin 2 theta)]

with z_k the command less the focus sought, (a_k, b_k) likewise for the stigmator, A^2 = a^2 + b^2.
S, the object, is profiled out with a weak prior; g, the frame's gain, is a nuisance; the noise
floor N is the frame's own; the blur's scale c and the probe's shape are summed over. Errors of the
power in neighbouring bands go together, so the log-likelihood is divided by a temperature.

For two Gaussian blurs the log-ratio is c^2 f^2 (w2 - w1)(w1 + w2 - 2 z): a single frame cannot tell
the sign of its defocus, two at a known step can, an error of scale acts only on the distance from
the midpoint, and frames that bracket focus cancel it. Along a direction theta an astigmatic lens
acts as a round one whose focus lies at z + a cos 2 theta + b sin 2 theta: frames at different
defocus tell the astigmatism too, without a step of the stigmator.

Defocus alone is summed on a grid. With astigmatism the space has four dimensions and a shape, and
is sampled by a population that is re-drawn around its best members while the temperature falls
(population Monte Carlo; Cappe et al., J. Comput. Graph. Stat. 13, 907, 2004), from fixed numbers:
the same frames give the same belief.
"""

from __future__ import annotations

import functools
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

_STRIDE = 2  # bands taken together where sectors are told apart
_HALF_STEPS = 60  # of the first grid over the range
_BAD_MISFIT = 2.2  # one run in a hundred on a counted, unprocessed image
_HALO_RATIO = 0.03  # a JPEG's, at a quality of about 90
_HALF_FINE = 24  # of the grid around the peak


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known before the first frame; `carried_over` adds what earlier runs taught."""

    range_dof: float = 30.0  # focus lies within this of the first frame's command
    astigmatism_dof: float = 0.0  # the most there may be; 0: not asked about
    blur_px_per_dof: float = 1.0  # blur radius: 1 when a DOF is one pixel over the half-angle
    blur_log_sd: float = 0.2
    shape_probabilities: tuple[float, ...] = (0.2, 0.2, 0.2, 0.2, 0.2)
    gain_log_sd: float = 0.15  # of the power, frame to frame
    spectrum_log_sd: float = 2.5
    temperature: float = 1.2
    sector_temperature: float = 1.8
    model_log_sd: float = 0.06
    halo_ratio: float = 0.0  # of the object's power that no blur takes away; see `believe`
    least_sigma_dof: float = 0.05  # lens errors that no frame tells, in the best of cases


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
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


def believe(views: Sequence[FocusView], prior: Prior) -> FocusBelief:
    """Sum up all frames; with `prior.astigmatism_dof` > 0 the stigmator's error too.

    The last few answers are kept: a history that grows by one frame starts from what it believed.
    Compressed or filtered images, and glare, leave power in a blurred frame that is neither signal
    nor white. Frames that fit badly without such a halo are judged again with one.
    """
    if not views:
        message = "at least one frame is needed"
        raise ValueError(message)
    return _believed(tuple(views), prior)


@functools.lru_cache(maxsize=32)
def _believed(views: tuple[FocusView, ...], prior: Prior) -> FocusBelief:
    summed = coadded(views)
    round_belief = believe_round(summed, prior)
    if round_belief.misfit > _BAD_MISFIT and prior.halo_ratio < _HALO_RATIO:
        with_halo = replace(prior, halo_ratio=_HALO_RATIO)
        again = believe_round(summed, with_halo)
        if again.misfit < 0.8 * round_belief.misfit:
            round_belief, prior = again, with_halo
    if prior.astigmatism_dof <= 0 or len(views) < 2:
        return round_belief
    before = _believed(views[:-1], prior) if len(views) > 2 else None
    return believe_astigmatic(summed, prior, round_belief, before)


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


def believe_round(views: Sequence[FocusView], prior: Prior) -> FocusBelief:
    """Posterior over focus alone, by grids: the whole range first, then around the peak."""
    data = _rings(views)
    first = views[0].command.z_dof
    scales, scale_weights = _scale_grid(prior)
    step = prior.range_dof / _HALF_STEPS
    grid = first + np.arange(-_HALF_STEPS, _HALF_STEPS + 1) * step
    # Fine pixels have narrow peaks that a coarse grid steps over: wide fields first.
    wide = [group for group in data if group.pixel >= 1.6 * step]
    log_post, misfit = _on_grid(wide or data, grid, scales, scale_weights, prior)
    z, sd = _summary(grid, log_post)
    if wide and len(wide) < len(data):
        reach = min(max(4.0 * sd, 4.0 * step), prior.range_dof)
        step = reach / _HALF_STEPS
        grid = z + np.arange(-_HALF_STEPS, _HALF_STEPS + 1) * step
        log_post, misfit = _on_grid(data, grid, scales, scale_weights, prior)
        z, sd = _summary(grid, log_post)
    for _ in range(2):
        step_new = max(5.0 * max(sd, 0.3 * step) / _HALF_FINE, 1e-3)
        if sd > 8.0 * step or step_new >= 0.8 * step:
            break
        step = step_new
        grid = _peak(grid, log_post) + np.arange(-_HALF_FINE, _HALF_FINE + 1) * step
        log_post, misfit = _on_grid(data, grid, scales, scale_weights, prior)
        z, sd = _summary(grid, log_post)
    weights = np.exp(log_post - log_post.max())
    weights /= weights.sum()
    fit = float((weights * misfit).sum())
    scale_p = weights.sum(axis=(0, 2))
    log_scale = float(scale_p @ np.log(scales))
    side = float(weights.sum(axis=(0, 1))[grid > first].sum())
    return FocusBelief(
        z_dof=z,
        sigma_dof=math.hypot(sd, prior.least_sigma_dof) * math.sqrt(max(fit, 1.0)),
        stig_x_dof=views[-1].command.stig_x_dof,
        stig_y_dof=views[-1].command.stig_y_dof,
        stig_sigma_dof=0.0,
        sign_probability=side if z > first else 1.0 - side,
        evidence=_evidence(data, fit, prior),
        misfit=fit,
        scale=math.exp(log_scale),
        scale_log_sd=math.sqrt(float(scale_p @ np.square(np.log(scales) - log_scale)) + 1e-4),
        shape_probabilities=tuple(float(p) for p in weights.sum(axis=(1, 2))),
    )


def believe_astigmatic(
    views: Sequence[FocusView],
    prior: Prior,
    start: FocusBelief,
    before: FocusBelief | None = None,
) -> FocusBelief:
    """Posterior over focus and the stigmator's two errors, by a population of candidates.

    start: of the same frames, without astigmatism; before: of all frames but the last.
    """
    data = _sectors(views)
    first = views[0].command
    population = _first_population(views, prior, start, before)
    log_target, misfit = _of_candidates(data, population, prior, first.z_dof)
    log_proposal: F64 = np.zeros(len(population.point))
    heat = _heat(log_target, log_proposal, math.inf)
    weight = _weights(log_target / heat - log_proposal)
    for round_ in range(_MOST_ROUNDS):
        if heat <= 1.0 and round_ >= _LEAST_ROUNDS:
            break
        population, log_proposal = _redrawn(population, weight, round_)
        log_target, misfit = _of_candidates(data, population, prior, first.z_dof)
        heat = _heat(log_target, log_proposal, heat)
        weight = _weights(log_target / heat - log_proposal)
    point = population.point
    # The mode's neighbourhood is the answer; what lies elsewhere widens the spread about it.
    mean = _local_mean(point, weight)
    off = point - mean
    var = weight @ np.square(off)
    side = float(weight[point[:, 0] > first.z_dof].sum())
    widening = math.sqrt(max(float(weight @ misfit), 1.0))
    shapes = np.bincount(population.shape, weights=weight, minlength=len(blur.SHAPES))
    return FocusBelief(
        z_dof=float(mean[0]),
        sigma_dof=math.hypot(math.sqrt(float(var[0])), prior.least_sigma_dof) * widening,
        stig_x_dof=float(mean[1]),
        stig_y_dof=float(mean[2]),
        stig_sigma_dof=math.hypot(math.sqrt(float(var[1] + var[2])), prior.least_sigma_dof)
        * widening,
        sign_probability=side if mean[0] > first.z_dof else 1.0 - side,
        evidence=start.evidence,
        misfit=float(weight @ misfit),
        scale=float(np.exp(mean[3])),
        scale_log_sd=math.sqrt(float(var[3]) + 1e-4),
        shape_probabilities=tuple(float(p) for p in shapes),
    )


def _scale_grid(prior: Prior) -> tuple[F64, F64]:
    offsets = np.array([-1.8, -0.9, 0.0, 0.9, 1.8])
    return prior.blur_px_per_dof * np.exp(prior.blur_log_sd * offsets), -0.5 * offsets**2


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


def _rings(views: Sequence[FocusView], sectors: Sequence[int] = range(SECTORS)) -> list[_Data]:
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
            _Data(
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


def _sectors(views: Sequence[FocusView]) -> list[_Data]:
    """Cells of two bands and one sector; cells without modes are left out."""
    edges = band_edges_cyc_px()[::_STRIDE]
    bands = len(edges) - 1
    ring = np.repeat(np.sqrt(edges[:-1] * edges[1:]), SECTORS)
    angle = np.tile(np.arange(SECTORS) * (2.0 * math.pi / SECTORS), bands)  # twice the direction
    data = []
    for pixel, members in _groups(views):
        split = (len(members), bands, _STRIDE, SECTORS)
        modes = np.array([m[1].modes for m in members])
        merged = modes.reshape(split).sum(axis=2).reshape((len(members), -1))
        flat = (len(members), -1)
        power = (np.array([m[1].power for m in members]) * modes).reshape(split).sum(axis=2)
        squares = (np.array([m[1].squares for m in members]) * modes).reshape(split).sum(axis=2)
        power, squares = power.reshape(flat), squares.reshape(flat)
        kept = np.flatnonzero(merged[0] >= 0.5)
        data.append(
            _Data(
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


def _on_grid(
    data: Sequence[_Data],
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
        cost, chi2 = _profiled(group, m2, wide, prior)
        total -= cost.reshape(shape)
        misfit += chi2.reshape(shape)
        cells += k * len(group.ring)
    total /= prior.temperature
    total += scale_weights[None, :, None]
    shape_p = np.array(prior.shape_probabilities)[list(shapes)]
    total += np.log(np.maximum(shape_p, 1e-6))[:, None, None]
    return total, misfit / cells


def _profiled(group: _Data, m2: F32, radius: F32, prior: Prior) -> tuple[F64, F64]:
    """Negative log-likelihood with object and gains fitted, and the squared residuals, (g,)."""
    cost, chi2, _ = _fitted(group, m2, radius, prior)
    return cost, chi2


def _fitted(group: _Data, m2: F32, radius: F32, prior: Prior) -> tuple[F64, F64, F32]:
    """As `_profiled`, and the object's log power, (cells, g).

    m2: (k, cells, g); radius (k, cells or 1, g) px. Gauss-Newton in the logarithm of the object,
    gains in turn; Huber's weights at 2.5.
    """
    y, floor = group.log_power, group.floor
    k = len(y)
    signal = np.maximum(np.exp(y) - floor, 0.1 * floor / np.sqrt(group.modes))
    # Mean log power of micrographs and random textures in focus: a power law, a weak prior only.
    mean_s = (-4.6 - 2.6 * np.log(group.ring / 0.1)).astype(np.float32)
    log_s = np.log((signal * m2).sum(axis=0) / (m2 * m2).sum(axis=0))  # (cells, g)
    log_s = np.clip(log_s, mean_s - 8.0, mean_s + 8.0)
    gain = np.zeros((k, 1, m2.shape[2]), dtype=np.float32)
    s_precision = np.float32(1.0 / prior.spectrum_log_sd**2)
    g_precision = np.float32(1.0 / prior.gain_log_sd**2)
    variance = weight = np.ones_like(m2)
    for i in range(3):
        part = np.exp(log_s + gain) * m2
        total = part + floor
        share = part / total
        r = y - np.log(total)
        if i < 2:
            variance = _variance(
                share, np.exp(log_s + gain) / total, group, group.ring * radius, radius, prior
            )
        weight = share / variance * np.minimum(1.0, 2.5 * np.sqrt(variance) / (np.abs(r) + 1e-6))
        curved = weight * share
        along_s = (weight * r).sum(axis=0) - s_precision * (log_s - mean_s)
        change = np.clip(along_s / (curved.sum(axis=0) + s_precision), -2.0, 2.0)
        log_s = log_s + change
        if k > 1:
            r = r - share * change
            gain = gain + ((weight * r).sum(axis=1, keepdims=True) - g_precision * gain) / (
                curved.sum(axis=1, keepdims=True) + g_precision
            )
    r = y - np.log(np.exp(log_s + gain) * m2 + floor)
    norm = r * r / variance
    robust = np.where(norm < 6.25, 0.5 * norm, 2.5 * np.sqrt(norm) - 3.125)
    cost = (robust + 0.5 * np.log(variance)).sum(axis=(0, 1), dtype=np.float64)
    cost += 0.5 * g_precision * np.square(gain).sum(axis=(0, 1), dtype=np.float64)
    cost += 0.5 * s_precision * np.square(log_s - mean_s).sum(axis=0, dtype=np.float64)
    # The object is integrated out, not only fitted: without this a fit that leaves no residual wins
    # by claiming the smallest errors, and one frame alone would always seem to be in focus.
    known = (share * share / variance).sum(axis=0) + s_precision
    cost += 0.5 * np.log(known).sum(axis=0, dtype=np.float64)
    return cost, np.minimum(norm, 25.0).sum(axis=(0, 1), dtype=np.float64), log_s


def _variance(share: F32, halo: F32, group: _Data, x: F32, radius: F32, prior: Prior) -> F32:
    """Variance of a log power: what counting scatters, and what the model leaves out.

    share: signal over all power; halo: the same without blur; x: frequency times blur radius.
    Strong blur shows the shape, which is not known, and brings in what lies outside the field;
    power in a few peaks is not blurred by the band's average. The first two were fitted on
    micrographs blurred by shapes outside the family; for the third a Gaussian's log M^2 changes by
    2 (pi x)^2 d log f, and a band's frequencies scatter by 0.065 of themselves.
    """
    share2 = share * share
    x2 = x * x
    shape_error = np.square(0.35 * x2 / (x2 + 0.36))
    exchange = np.square(radius * np.float32(1.0 / 37.0)) * (2.5 / group.modes)
    peaks = group.unevenness * np.square(1.3 * x2 / (1.0 + x2))
    model = np.float32(prior.model_log_sd**2) + shape_error + exchange + peaks
    counted = (1.0 - share2) / group.modes + np.square(1.0 - share) / group.floor_modes
    kept = np.square(np.float32(prior.halo_ratio) * halo)
    variance: F32 = counted + share2 * model + kept + np.float32(3e-5)
    return variance


def _evidence(data: Sequence[_Data], misfit: float, prior: Prior) -> float:
    """Half of what squared residuals grow by if all frames are called equally sharp."""
    chi2, cells = 0.0, 0
    for group in data:
        ones = np.ones((len(group.command), len(group.ring), 1), dtype=np.float32)
        chi2 += float(_profiled(group, ones, np.zeros_like(ones), prior)[1][0])
        cells += len(group.command) * len(group.ring)
    return 0.5 * (chi2 - misfit * cells)


def best_bracket_dof(views: Sequence[FocusView], belief: FocusBelief, prior: Prior) -> float:
    """Distance from focus at which one more frame would tell most about where focus is.

    Fisher information of the log powers: the derivative of what blur leaves, over its variance, for
    the object and the noise that the frames have shown so far.
    """
    data = [g for g in _rings(views) if g.pixel == min(h.pixel for h in _rings(views))]
    shape = int(np.argmax(belief.shape_probabilities))
    table = blur.table()[shape]
    distances = np.geomspace(2.0, 24.0, 26)
    information = np.zeros(len(distances))
    for group in data:
        off = np.abs(group.command[:, 0] - belief.z_dof)[:, None, None]
        radius = (off * belief.scale / group.pixel).astype(np.float32)
        steps = blur.radius_steps(radius)
        m2 = table[group.band[None, :, None], steps.astype(np.intp)]
        log_s = _fitted(group, m2, radius, prior)[2][:, 0]
        ahead = (distances * belief.scale / group.pixel).astype(np.float32)
        low = blur.radius_steps(ahead).astype(np.intp)
        kept = table[group.band][:, low]  # (cells, distances)
        further = table[group.band][:, low + 1]
        apart = np.expm1(np.float32(blur.U_STEP)) * (1.0 + ahead)
        slope = (np.log(kept) - np.log(further)) / apart
        signal = np.exp(log_s)[:, None] * kept
        total = signal + group.floor.mean()
        share, halo = signal / total, np.exp(log_s)[:, None] / total
        variance = _variance(share, halo, group, group.ring * ahead, ahead[None, :], prior).mean(
            axis=0
        )
        information += (np.square(share * slope) / variance).sum(axis=0)
    return float(distances[int(np.argmax(information))])


def _peak(grid: F64, log_post: F64) -> float:
    weights = np.exp(log_post - log_post.max()).sum(axis=(0, 1))
    return float(grid[int(np.argmax(weights))])


def _summary(grid: F64, log_post: F64) -> tuple[float, float]:
    """Mean of the highest peak's neighbourhood, and the whole posterior's spread about it."""
    weights = np.exp(log_post - log_post.max()).sum(axis=(0, 1))
    weights /= weights.sum()
    low = high = int(np.argmax(weights))
    while low > 0 and 1e-9 < weights[low - 1] <= 1.02 * weights[low]:
        low -= 1
    while high < len(grid) - 1 and 1e-9 < weights[high + 1] <= 1.02 * weights[high]:
        high += 1
    part = np.s_[low : high + 1]
    z = float(weights[part] @ grid[part] / weights[part].sum())
    step = float(grid[1] - grid[0])
    return z, math.sqrt(float(weights @ np.square(grid - z)) + step**2 / 12.0)


# Population Monte Carlo

_FIRST = 768
_MEMBERS = 512
_CLOSE = 0.25  # of the wide kernel's size
_LEAST_ROUNDS = 3
_MOST_ROUNDS = 10
_LEAST_EFFECTIVE = 48.0  # members that share the weight, while the temperature falls


@dataclass(frozen=True, slots=True, eq=False)
class _Population:
    point: F64  # (n, 4): z, stigmator x, stigmator y, log of the blur's scale
    shape: npt.NDArray[np.intp]  # (n,)


@functools.cache
def _numbers(round_: int, n: int) -> F64:
    """Fixed uniform numbers, (n, 8), scrambled by round so that rounds do not repeat."""
    return np.random.default_rng([20_041, round_]).random((n, 8))


def _first_population(
    views: Sequence[FocusView], prior: Prior, start: FocusBelief, before: FocusBelief | None
) -> _Population:
    """Draw around the last belief and what four directions say, and a few from the whole range."""
    first = views[0].command
    u = _numbers(0, _FIRST)
    normal = np.sqrt(-2.0 * np.log(u[:, 1:5:2] + 1e-12))
    turn = 2.0 * math.pi * u[:, 2:6:2]
    gauss = np.column_stack([normal * np.cos(turn), normal * np.sin(turn)])
    mean, sd = _four_directions(views, prior, start)
    point = np.empty((_FIRST, 4))
    wideness = np.where(u[:, 0] < 0.5, 1.0, 3.0)[:, None]
    point[:, :3] = mean + gauss[:, :3] * sd * wideness
    if before is not None:
        again = u[:, 7] < 0.4
        last = np.array([before.z_dof, before.stig_x_dof, before.stig_y_dof])
        stig_sd = 0.7 * before.stig_sigma_dof
        spread_again = 1.5 * np.array([before.sigma_dof, stig_sd, stig_sd]) * wideness
        point[again, :3] = (last + gauss[:, :3] * spread_again)[again]
    anywhere = u[:, 0] > 0.85
    spread = math.hypot(2.0 * start.sigma_dof, 0.7 * prior.astigmatism_dof) + 1.0
    amount = 1.1 * prior.astigmatism_dof * u[:, 3]
    axis = 2.0 * math.pi * u[:, 4]
    point[anywhere, 0] = (start.z_dof + spread * (2.0 * u[:, 1] - 1.0))[anywhere]
    point[anywhere, 1] = (first.stig_x_dof + amount * np.cos(axis))[anywhere]
    point[anywhere, 2] = (first.stig_y_dof + amount * np.sin(axis))[anywhere]
    point[:, 3] = math.log(prior.blur_px_per_dof) + prior.blur_log_sd * (3.4 * u[:, 5] - 1.7)
    shape = np.minimum((u[:, 6] * len(blur.SHAPES)).astype(np.intp), len(blur.SHAPES) - 1)
    return _Population(point, shape)


def _four_directions(
    views: Sequence[FocusView], prior: Prior, start: FocusBelief
) -> tuple[F64, F64]:
    """Mean and spread of (z, a, b) from z + a, z + b, z - a, z - b, each a round lens's focus."""
    found, spreads = [], []
    step = 1.0
    scales, scale_weights = _scale_grid(prior)
    for quarter in range(4):
        angle = 0.5 * math.pi * quarter
        data = []
        for group in _rings(views, sectors=[(2 * quarter + i) % SECTORS for i in (-1, 0, 1)]):
            along = group.command @ np.array([1.0, math.cos(angle), math.sin(angle)])
            data.append(replace(group, command=along[:, None]))
        reach = min(4.0 * start.sigma_dof + prior.astigmatism_dof + 4.0, prior.range_dof)
        steps = math.ceil(reach / step)
        grid = start.z_dof + np.arange(-steps, steps + 1) * step
        log_post, _ = _on_grid(data, grid, scales[::2], scale_weights[::2], prior, shapes=(0, 1))
        z, sd = _summary(grid, log_post)
        found.append(z)
        spreads.append(1.5 * sd + 0.5 * step)
    foci = np.array(found)
    sds = np.array(spreads)
    mean = np.array([foci.mean(), 0.5 * (foci[0] - foci[2]), 0.5 * (foci[1] - foci[3])])
    spread = np.array(
        [0.5 * sds.mean(), 0.5 * math.hypot(sds[0], sds[2]), 0.5 * math.hypot(sds[1], sds[3])]
    )
    return mean, np.maximum(spread, 0.3)


def _of_candidates(
    data: Sequence[_Data], population: _Population, prior: Prior, first_z: float
) -> tuple[F64, F64]:
    """Log-posterior and misfit of every candidate, (n,)."""
    tables = blur.table(_STRIDE)
    point = population.point
    n = len(point)
    total, misfit, cells = np.zeros(n), np.zeros(n), 0
    for group in data:
        z = (group.command[:, 0, None] - point[:, 0])[:, None, :]  # (k, 1, n)
        a = (group.command[:, 1, None] - point[:, 1])[:, None, :]
        b = (group.command[:, 2, None] - point[:, 2])[:, None, :]
        plain = (z * z + a * a + b * b).astype(np.float32)
        squared = plain + (2 * z * a).astype(np.float32) * group.cos
        squared += (2 * z * b).astype(np.float32) * group.sin
        scale = (np.exp(point[:, 3]) / group.pixel).astype(np.float32)
        radius = np.sqrt(np.maximum(squared, 0.0)) * scale
        steps = blur.radius_steps(radius)
        low = steps.astype(np.intp)
        part = steps - low
        kind, band = population.shape[None, None, :], group.band[None, :, None]
        m2 = tables[kind, band, low] * (1.0 - part) + tables[kind, band, low + 1] * part
        cost, chi2 = _profiled(group, m2, radius, prior)
        total -= cost
        misfit += chi2
        cells += len(group.command) * len(group.ring)
    total /= prior.sector_temperature
    total -= 0.5 * np.square((point[:, 3] - math.log(prior.blur_px_per_dof)) / prior.blur_log_sd)
    total += np.log(np.maximum(np.array(prior.shape_probabilities), 1e-6))[population.shape]
    # Little astigmatism is commoner than much: the commands' own frame is where it is counted from.
    amount = np.hypot(point[:, 1] - data[0].command[0, 1], point[:, 2] - data[0].command[0, 2])
    total -= 0.5 * np.square(amount / (0.6 * prior.astigmatism_dof))
    total -= np.where(np.abs(point[:, 0] - first_z) > 1.1 * prior.range_dof, 50.0, 0.0)
    return total, misfit / cells


def _weights(log_weight: F64) -> F64:
    weight: F64 = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return weight


def _heat(log_target: F64, log_proposal: F64, most: float) -> float:
    """Lowest temperature that leaves enough members with a weight, 1 at best, `most` at worst."""
    if not math.isfinite(most):
        most = 3_000.0
    for heat in np.geomspace(1.0, max(most, 1.0), 24):
        weight = _weights(log_target / heat - log_proposal)
        if 1.0 / float(weight @ weight) >= _LEAST_EFFECTIVE:
            return float(heat)
    return max(0.8 * most, 1.0)


def _redrawn(population: _Population, weight: F64, round_: int) -> tuple[_Population, F64]:
    """Draw anew around the heavy members; also the logarithm of the density drawn from."""
    u = _numbers(round_ + 1, _MEMBERS)
    where = (np.arange(_MEMBERS) + u[:, 0]) / _MEMBERS
    parent = np.minimum(np.searchsorted(np.cumsum(weight), where), len(weight) - 1)
    centre = population.point[parent]
    spread = np.cov(population.point.T, aweights=weight) * 0.35 + np.diag([1e-5, 1e-5, 1e-5, 1e-5])
    root = np.linalg.cholesky(spread)
    # Half of the draws stay close: the peak may be far narrower than where its rivals lie.
    reach = np.where(np.arange(_MEMBERS) % 2 == 0, 1.0, _CLOSE)[:, None]
    normal = np.sqrt(-2.0 * np.log(u[:, 1:5:2] + 1e-12))
    turn = 2.0 * math.pi * u[:, 2:6:2]
    gauss = np.column_stack([normal * np.cos(turn), normal * np.sin(turn)])
    point = centre + reach * (gauss @ root.T)
    stay = u[:, 6] < 0.85
    free = np.minimum((u[:, 7] * len(blur.SHAPES)).astype(np.intp), len(blur.SHAPES) - 1)
    shape = np.where(stay, population.shape[parent], free)
    # Density of the mixture drawn from, over the members that can have been drawn at all.
    heavy = np.flatnonzero(weight > 1e-5 / len(weight))
    inverse = np.linalg.inv(root)
    white = point @ inverse.T
    parents = population.point[heavy] @ inverse.T
    apart = (
        np.square(white).sum(axis=1)[:, None]
        + np.square(parents).sum(axis=1)[None, :]
        - 2.0 * white @ parents.T
    )
    same = shape[:, None] == population.shape[heavy][None, :]
    kind = 0.15 / len(blur.SHAPES) + 0.85 * same
    apart = np.maximum(apart, 0.0)
    kernel = np.exp(-0.5 * apart) + np.exp(-0.5 / _CLOSE**2 * apart) / _CLOSE**4
    density = (kernel * kind) @ weight[heavy]
    return _Population(point, shape), np.log(density + 1e-300)


def _local_mean(point: F64, weight: F64) -> F64:
    """Mean of the heaviest neighbourhood: the mean itself where there is one peak."""
    mean = weight @ point
    for _ in range(3):
        spread = np.sqrt(weight @ np.square(point[:, :3] - mean[:3])) + 1e-3
        near = np.exp(-0.5 * np.square((point[:, :3] - mean[:3]) / (2.0 * spread)).sum(axis=1))
        local = weight * near
        mean = (local / local.sum()) @ point
    return mean
