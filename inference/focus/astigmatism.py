"""Focus and the stigmator's two errors together, believed from any number of frames.

Along a direction theta an astigmatic lens acts as a round one whose focus lies at
z + a cos 2 theta + b sin 2 theta: frames at different defocus tell the astigmatism too, without a
step of the stigmator. With astigmatism the space has four dimensions and a shape, and is sampled by
a population that is re-drawn around its best members while the temperature falls (population Monte
Carlo; Cappe et al., J. Comput. Graph. Stat. 13, 907, 2004), from fixed numbers: the same frames
give the same belief.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from inference.focus import blur
from inference.focus.api import FocusBelief, FocusView
from inference.focus.likelihood import (
    F64,
    SECTOR_STRIDE,
    Cells,
    Prior,
    on_grid,
    profiled,
    ring_cells,
    scale_grid,
    sector_cells,
    summary,
)
from inference.focus.spectrum import SECTORS

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


def believe_astigmatic(
    views: Sequence[FocusView],
    prior: Prior,
    start: FocusBelief,
    before: FocusBelief | None = None,
) -> FocusBelief:
    """Posterior over focus and the stigmator's two errors, by a population of candidates.

    start: of the same frames, without astigmatism; before: of all frames but the last.
    """
    data = sector_cells(views)
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
    scales, scale_weights = scale_grid(prior)
    for quarter in range(4):
        angle = 0.5 * math.pi * quarter
        data = []
        for group in ring_cells(views, sectors=[(2 * quarter + i) % SECTORS for i in (-1, 0, 1)]):
            along = group.command @ np.array([1.0, math.cos(angle), math.sin(angle)])
            data.append(replace(group, command=along[:, None]))
        reach = min(4.0 * start.sigma_dof + prior.astigmatism_dof + 4.0, prior.range_dof)
        steps = math.ceil(reach / step)
        grid = start.z_dof + np.arange(-steps, steps + 1) * step
        log_post, _ = on_grid(data, grid, scales[::2], scale_weights[::2], prior, shapes=(0, 1))
        z, sd = summary(grid, log_post)
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
    data: Sequence[Cells], population: _Population, prior: Prior, first_z: float
) -> tuple[F64, F64]:
    """Log-posterior and misfit of every candidate, (n,)."""
    tables = blur.table(SECTOR_STRIDE)
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
        cost, chi2 = profiled(group, m2, radius, prior)
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
