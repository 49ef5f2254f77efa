"""Focus and the stigmator's two errors together, believed from any number of frames.

Along a direction theta an astigmatic lens acts as a round one whose focus lies at
z + a cos 2 theta + b sin 2 theta: frames at different defocus tell the astigmatism too, without a
step of the stigmator. With astigmatism the space has four dimensions and a shape, and is sampled by
a population that is re-drawn around its best members while the temperature falls (population Monte
Carlo; Cappe et al., J. Comput. Graph. Stat. 13, 907, 2004), from fixed numbers: the same frames
give the same belief. A history that grows by one frame starts from the population before it.

The population also says where to look next: every member predicts what a frame would show, and
the frame whose power goes together most with the members' focus and astigmatism tells most about
them (the covariance of a linear Gaussian model; Lindley, Ann. Math. Stat. 27, 986, 1956).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from inference.focus import blur
from inference.focus.api import FocusBelief, FocusCommand, FocusView
from inference.focus.likelihood import (
    F64,
    SECTOR_STRIDE,
    Cells,
    Prior,
    coadded,
    fitted,
    on_grid,
    profiled,
    ring_cells,
    scale_grid,
    sector_cells,
    summary,
    variance_of,
)
from inference.focus.spectrum import SECTORS

_FIRST = 640
_MEMBERS = 384
_CLOSE = 0.25  # of the wide kernel's size
_MOST_ROUNDS = 10
_LEAST_ROUNDS = 1
_LEAST_EFFECTIVE = 48.0  # members that share the weight, while the temperature falls
_AT_ONCE = 64  # candidates whose arrays stay in a core's second cache together
_DRAWN = 256  # around the modes
_ENOUGH_DRAWN = 20.0  # of them that share the weight
_LEAST_DRAWN = 5.0  # fewer have missed the posterior
_WIDER = 1.15  # than the parabola says
_FAR_EVERY = 12  # draws, one from the whole range
_LOG_T4 = math.log(6.0 / (16.0 * math.pi**2))  # Student's t, four dimensions and degrees
_TRIED = 128  # members of one frame less
_CLIMBED = 8  # of them
_CLIMBS = 4
_GOOD_MISFIT = 1.15  # one run in ten is worse, on counted images
# Errors of the last frames against their sigma, 400 runs on development specimens: what a near
# bracket leaves, what the shape of the blur leaves per DOF of astigmatism that is still there.
_LEAST_SIGMA_DOF = 0.01
_LEFT_RATIO = 0.012
_BRACKET_RATIO = 0.01  # per DOF that the bracket is wider than the nearest that is asked for
_NEAR_DOF = 1.5
_NO_BRACKET_DOF = 6.0
_ROUND_DOF = 1.5  # of astigmatism left: frames that bracket focus as those of a round lens do
_STIG_SIGMA_RATIO = 0.9
_ALIKE_PX = np.array([0.0, 3.0, 10.0, 30.0, 100.0], dtype=np.float32)  # blur of all frames
_ALIKE_SHAPE = blur.SHAPES.index("disc")
_ASKED = 96  # members that predict a frame


@dataclass(frozen=True, slots=True, eq=False)
class _Population:
    point: F64  # (n, 4): z, stigmator x, stigmator y, log of the blur's scale
    shape: npt.NDArray[np.intp]  # (n,)


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """A population with weights that sum to one."""

    population: _Population
    weight: F64  # (n,)
    height: float  # mean log-likelihood
    misfit: float
    mean: F64  # (4,), of the heaviest neighbourhood
    var: F64  # (4,), of everything about it


def believe_astigmatic(views: Sequence[FocusView], prior: Prior) -> FocusBelief:
    """Posterior over focus and the stigmator's two errors, by a population of candidates."""
    sample = _sample(tuple(views), prior)
    mean, var = sample.mean, sample.var
    first_z = views[0].command.z_dof
    population, weight = sample.population, sample.weight
    side = float(weight[population.point[:, 0] > first_z].sum())
    widening = math.sqrt(max(sample.misfit, 1.0))
    shapes = np.bincount(population.shape, weights=weight, minlength=len(blur.SHAPES))
    least = _model_sigma_dof(views, mean)
    return FocusBelief(
        z_dof=float(mean[0]),
        sigma_dof=math.hypot(math.sqrt(float(var[0])), least) * widening,
        stig_x_dof=float(mean[1]),
        stig_y_dof=float(mean[2]),
        stig_sigma_dof=math.hypot(math.sqrt(float(var[1] + var[2])), _LEAST_SIGMA_DOF)
        * (_STIG_SIGMA_RATIO * widening),
        sign_probability=side if mean[0] > first_z else 1.0 - side,
        evidence=_evidence(views, sample, prior),
        misfit=sample.misfit,
        scale=float(np.exp(mean[3])),
        scale_log_sd=math.sqrt(float(var[3]) + 1e-4),
        shape_probabilities=tuple(float(p) for p in shapes),
    )


def _model_sigma_dof(views: Sequence[FocusView], mean: F64) -> float:
    """What errors of the blur's model leave, for the last frame's astigmatism and its bracket."""
    last = views[-1].command
    left = math.hypot(last.stig_x_dof - mean[1], last.stig_y_dof - mean[2])
    if left > _ROUND_DOF:
        return math.hypot(_LEAST_SIGMA_DOF, _LEFT_RATIO * left)
    offsets = [
        view.command.z_dof - float(mean[0])
        for view in views
        if math.hypot(view.command.stig_x_dof - mean[1], view.command.stig_y_dof - mean[2])
        < _ROUND_DOF
    ]
    above = min((off for off in offsets if off > 1.0), default=_NO_BRACKET_DOF)
    below = min((-off for off in offsets if off < -1.0), default=_NO_BRACKET_DOF)
    wide = min(max(above, below, _NEAR_DOF), _NO_BRACKET_DOF) - _NEAR_DOF
    return _LEAST_SIGMA_DOF + _BRACKET_RATIO * wide + _LEFT_RATIO * left


def _evidence(views: Sequence[FocusView], sample: _Sample, prior: Prior) -> float:
    """Log-likelihood of what is believed, over that of frames which are all blurred alike."""
    alike = np.zeros(len(_ALIKE_PX))
    for group in sector_cells(coadded(views)):
        k = len(group.command)
        radius = np.broadcast_to(_ALIKE_PX / np.float32(group.pixel), (k, 1, len(_ALIKE_PX)))
        steps = blur.radius_steps(radius[0, 0]).astype(np.intp)
        kept = blur.table(SECTOR_STRIDE)[_ALIKE_SHAPE][group.band][:, steps]
        m2 = np.broadcast_to(kept, (k, *kept.shape))
        alike -= profiled(group, m2, radius, prior)[0]
    return sample.height - float(alike.max()) / prior.sector_temperature


def most_telling(
    views: Sequence[FocusView],
    prior: Prior,
    commands: Sequence[FocusCommand],
    *,
    has_stigmator: bool,
) -> tuple[int, F64]:
    """Which command's frame would leave least uncertainty, and what each would leave, in DOF.

    Of focus and, where it can be corrected, of the astigmatism; one standard deviation of all
    together.
    """
    sample = _sample(tuple(views), prior)
    summed = coadded(views)
    data = sector_cells(summed)
    finest = min(data, key=lambda group: group.pixel)
    # Systematic resampling: members in the proportion of their weights.
    where = (np.arange(_ASKED) + 0.5) / _ASKED
    drawn = np.minimum(np.searchsorted(np.cumsum(sample.weight), where), len(sample.weight) - 1)
    members = _Population(sample.population.point[drawn], sample.population.shape[drawn])
    m2, radius = _blurred(finest, finest.command, members)
    fit = fitted(finest, m2, radius, prior)
    object_ = np.exp(fit.log_object)  # (cells, n)
    noise = fit.noise.mean(axis=0)  # (cells or 1, n or 1)
    asked = members.point[:, : 3 if has_stigmator else 1]
    asked = asked - asked.mean(axis=0)
    # How well the object is known: what all frames so far together show of it.
    share = object_ * m2 / (object_ * m2 + fit.noise)
    spread = variance_of(share, finest, finest.ring * radius, radius, prior)
    known = (share * share / spread).sum(axis=0) + np.float32(1.0 / prior.spectrum_log_sd**2)
    one = replace(
        finest,
        modes=finest.modes[:1],
        unevenness=finest.unevenness[:1],
        floor_modes=finest.floor_modes[:1],
    )
    left = np.empty(len(commands))
    for i, command in enumerate(commands):
        at = np.array([[command.z_dof, command.stig_x_dof, command.stig_y_dof]])
        m2, radius = _blurred(finest, at, members)
        total = object_ * m2[0] + noise
        share = object_ * m2[0] / total
        variance = variance_of(share[None], one, finest.ring * radius, radius, prior)[0]
        variance = (variance + share * share / known).mean(axis=1) * prior.sector_temperature
        predicted = np.log(total).astype(np.float64)
        predicted -= predicted.mean(axis=1, keepdims=True)
        white = predicted / np.sqrt(variance)[:, None]
        gain = share.mean(axis=1) / np.sqrt(variance) * prior.gain_log_sd
        scatter = np.eye(len(white)) + np.outer(gain, gain)
        n = len(drawn)
        joint = white @ asked / n
        explained = np.linalg.solve(white @ white.T / n + scatter, joint)
        left[i] = float((np.square(asked).sum() / n) - (joint * explained).sum())
    left = np.sqrt(np.maximum(left, 1e-6))
    return int(np.argmin(left)), left


@functools.lru_cache(maxsize=64)
def _sample(views: tuple[FocusView, ...], prior: Prior) -> _Sample:
    summed = coadded(views)
    data = sector_cells(summed)
    first = views[0].command
    fallback = None
    if len(views) > 2:
        before = _sample(views[:-1], prior)
        size = np.sqrt(before.var) + 1e-3
        found, effective = _around_modes(data, _drawn_from(before), size, prior, first)
        if effective < _ENOUGH_DRAWN:
            # The last frame moved the peak further than was climbed: on from the best draws.
            found, effective = _around_modes(data, found.population, size, prior, first)
        if effective < _ENOUGH_DRAWN or found.misfit > _GOOD_MISFIT:
            # All may stand on the wrong peak: look over the whole range once more.
            pool = _first_population(summed, prior)
            again, others = _around_modes(data, pool, size, prior, first)
            if others >= _LEAST_DRAWN and (
                effective < _LEAST_DRAWN or again.height > found.height + 2.0
            ):
                found, effective = again, others
        if effective >= _ENOUGH_DRAWN:
            return found
        fallback = found if effective >= _LEAST_DRAWN else None
    population = _first_population(summed, prior)
    log_proposal: F64 = np.zeros(len(population.point))
    heat = 3_000.0
    weight: F64 = np.full(len(population.point), 1.0 / len(population.point))
    for round_ in range(_MOST_ROUNDS):
        if round_ > 0:
            population, log_proposal = _redrawn(population, weight, round_)
        log_likelihood, misfit = _of_candidates(data, population, prior)
        log_prior = _log_prior(population, prior, first) - log_proposal
        heat = _heat(log_likelihood, log_prior, heat)
        weight = _weights(log_likelihood / heat + log_prior)
        if heat <= 1.0 and round_ >= _LEAST_ROUNDS:
            break
    if heat > 1.0 and fallback is not None:
        return fallback
    return _summed(population, weight, log_likelihood, misfit)


def _summed(population: _Population, weight: F64, log_likelihood: F64, misfit: F64) -> _Sample:
    """The mode's neighbourhood is the answer; what lies elsewhere widens the spread about it."""
    mean = _local_mean(population.point, weight)
    var = weight @ np.square(population.point - mean)
    return _Sample(
        population, weight, float(weight @ log_likelihood), float(weight @ misfit), mean, var
    )


@functools.cache
def _numbers(round_: int, n: int) -> F64:
    """Fixed uniform numbers, (n, 8), scrambled by round so that rounds do not repeat."""
    return np.random.default_rng([20_041, round_]).random((n, 8))


def _gauss(u: F64) -> F64:
    """Four normal numbers a row, from the uniform columns 1 to 4 (Box and Muller)."""
    normal = np.sqrt(-2.0 * np.log(u[:, 1:5:2] + 1e-12))
    turn = 2.0 * math.pi * u[:, 2:6:2]
    return np.column_stack([normal * np.cos(turn), normal * np.sin(turn)])


def _anywhere(first: FocusCommand, prior: Prior, u: F64) -> F64:
    """Points from the whole prior, (n, 4)."""
    amount = 1.1 * prior.astigmatism_dof * u[:, 3]
    axis = 2.0 * math.pi * u[:, 4]
    return np.column_stack(
        [
            first.z_dof + prior.range_dof * (2.0 * u[:, 1] - 1.0),
            first.stig_x_dof + amount * np.cos(axis),
            first.stig_y_dof + amount * np.sin(axis),
            math.log(prior.blur_px_per_dof) + prior.blur_log_sd * (3.4 * u[:, 5] - 1.7),
        ]
    )


def _log_anywhere(point: F64, first: FocusCommand, prior: Prior) -> F64:
    """Logarithm of the density that `_anywhere` and `_any_shape` draw from, (n,)."""
    most = 1.1 * prior.astigmatism_dof
    amount = np.hypot(point[:, 1] - first.stig_x_dof, point[:, 2] - first.stig_y_dof)
    volume = 2.0 * prior.range_dof * 3.4 * prior.blur_log_sd * len(blur.SHAPES)
    density = -np.log(2.0 * math.pi * most * np.maximum(amount, 1e-3) * volume)
    off = np.abs(point[:, 3] - math.log(prior.blur_px_per_dof)) / (1.7 * prior.blur_log_sd)
    off = np.maximum(off, np.abs(point[:, 0] - first.z_dof) / prior.range_dof)
    result: F64 = np.where(np.maximum(off, amount / most) > 1.0, -np.inf, density)
    return result


def _any_shape(u: F64) -> npt.NDArray[np.intp]:
    return np.minimum((u * len(blur.SHAPES)).astype(np.intp), len(blur.SHAPES) - 1)


def _first_population(views: Sequence[FocusView], prior: Prior) -> _Population:
    """Draw around what four directions say, and a few from the whole range."""
    u = _numbers(0, _FIRST)
    mean, sd = _four_directions(views, prior)
    point = _anywhere(views[0].command, prior, u)
    wideness = np.where(u[:, 0] < 0.5, 1.0, 3.0)[:, None]
    around = u[:, 0] < 0.75
    point[around, :3] = (mean + _gauss(u)[:, :3] * sd * wideness)[around]
    return _Population(point, _any_shape(u[:, 6]))


def _around_modes(
    data: Sequence[Cells], pool: _Population, size: F64, prior: Prior, first: FocusCommand
) -> tuple[_Sample, float]:
    """Climb from the likeliest of a pool, and draw around where that ends.

    size: (4,), within which two of the pool are as good as one. Returns how many draws share the
    weight, too: few have missed the posterior.
    """
    start = _likeliest(data, pool, size, prior, first)
    modes, log_post, root = _climbed(data, start, prior, first)
    # A mode's share of the posterior: its height times its volume.
    volume = np.log(np.abs(np.diagonal(root, axis1=1, axis2=2))).sum(axis=1)
    share = _weights(log_post + volume)
    share = 0.9 * share + 0.1 * _weights(0.25 * (log_post + volume))
    u = _numbers(30, _DRAWN)
    where = (np.arange(_DRAWN) + u[:, 0]) / _DRAWN
    parent = np.minimum(np.searchsorted(np.cumsum(share), where), len(share) - 1)
    # Student's t with four degrees of freedom: its tails reach where the parabola is wrong.
    tail = np.sqrt(2.0 / -(np.log(u[:, 5] + 1e-12) + np.log(u[:, 6] + 1e-12)))
    off = np.einsum("nij,nj->ni", root[parent], _gauss(u) * tail[:, None])
    point, shape = modes.point[parent] + _WIDER * off, modes.shape[parent]
    # A few from the whole range: where frames tell little, they carry the weight.
    far = np.arange(_DRAWN) % _FAR_EVERY == 0
    point[far] = _anywhere(first, prior, _numbers(31, _DRAWN))[far]
    shape[far] = _any_shape(_numbers(32, _DRAWN)[:, 0])[far]
    population = _Population(point, shape)
    log_density = _log_anywhere(point, first, prior) - math.log(_FAR_EVERY)
    for i in range(len(share)):
        white = np.linalg.solve(root[i], (population.point - modes.point[i]).T) / _WIDER
        density = (
            math.log((1.0 - 1.0 / _FAR_EVERY) * share[i] + 1e-300)
            - volume[i]
            + _LOG_T4
            - 4.0 * (np.log1p(np.square(white).sum(axis=0) / 4) + math.log(_WIDER))
        )
        density[population.shape != modes.shape[i]] = -np.inf
        log_density = np.logaddexp(log_density, density)
    log_likelihood, misfit = _of_candidates(data, population, prior)
    log_prior = _log_prior(population, prior, first) - log_density
    weight = _weights(log_likelihood + log_prior)
    sample = _summed(population, weight, log_likelihood, misfit)
    return sample, 1.0 / float(weight @ weight)


def _drawn_from(before: _Sample) -> _Population:
    """A few of a sample's members, in the proportion of their weights."""
    where = (np.arange(_TRIED) + 0.5) / _TRIED
    drawn = np.minimum(np.searchsorted(np.cumsum(before.weight), where), len(before.weight) - 1)
    drawn = np.unique(drawn)
    return _Population(before.population.point[drawn], before.population.shape[drawn])


def _likeliest(
    data: Sequence[Cells], pool: _Population, size: F64, prior: Prior, first: FocusCommand
) -> _Population:
    """The best of a pool, apart from one another; and the very best with every shape."""
    point, shape = pool.point, pool.shape
    height = _of_candidates(data, pool, prior)[0] + _log_prior(pool, prior, first)
    chosen: list[int] = []
    for i in np.argsort(-height):
        apart = [
            np.abs((point[i] - point[j])[:3] / size[:3]).max() > 0.8 or shape[i] != shape[j]
            for j in chosen
        ]
        if all(apart):
            chosen.append(int(i))
        if len(chosen) == _CLIMBED:
            break
    best = point[chosen[0]]
    others = [s for s in range(len(blur.SHAPES)) if s not in {int(shape[i]) for i in chosen}]
    return _Population(
        np.vstack([point[chosen], np.tile(best, (len(others), 1))]),
        np.concatenate([shape[chosen], np.array(others, dtype=np.intp)]),
    )


def _climbed(
    data: Sequence[Cells], start: _Population, prior: Prior, first: FocusCommand
) -> tuple[_Population, F64, F64]:
    """Climb to the posterior's modes by Gauss and Newton; their heights and their spreads' roots.

    The slope is that of the whole log-posterior; its curvature comes from the residuals alone.
    """
    point, shape = start.point.copy(), start.shape
    step = np.array([0.08, 0.08, 0.08, 0.02])
    prior_precision = _prior_precision(prior)
    for climb in range(_CLIMBS):
        n = len(point)
        corners = np.concatenate(
            [
                point[None],
                point[None] + np.diag(step)[:, None],
                point[None] - np.diag(step)[:, None],
            ]
        )  # (9, n, 4)
        members = _Population(corners.reshape(-1, 4), np.tile(shape, 9))
        likelihood, residual = _with_residuals(data, members, prior)
        post = (likelihood + _log_prior(members, prior, first)).reshape(9, n)
        slope = (post[1:5] - post[5:9]).T / (2.0 * step)  # (n, 4)
        jacobian = (residual[:, n : 5 * n] - residual[:, 5 * n :]).reshape(-1, 4, n)
        jacobian /= (2.0 * step)[None, :, None]
        curved = np.einsum("cin,cjn->nij", jacobian, jacobian) / prior.sector_temperature
        curved += np.diag(prior_precision)
        height = post[0]
        root = np.linalg.cholesky(np.linalg.inv(curved))
        if climb == _CLIMBS - 1:
            break
        # Those that are far behind have lost.
        kept = height > height.max() - (40.0 if climb == 0 else 16.0)
        point, shape, slope, curved = point[kept], shape[kept], slope[kept], curved[kept]
        damped = curved * (1.0 + 0.05 * np.eye(4))
        move = np.linalg.solve(damped, slope[:, :, None])[:, :, 0]
        most = np.array([2.0, 2.0, 2.0, 0.15])
        move *= np.minimum(1.0, (most / np.maximum(np.abs(move), 1e-9)).min(axis=1))[:, None]
        point = point + move
    return _Population(point, shape), height, root


def _prior_precision(prior: Prior) -> F64:
    amount = 1.0 / (0.6 * prior.astigmatism_dof) ** 2
    return np.array([1e-4, amount, amount, 1.0 / prior.blur_log_sd**2])


def _with_residuals(
    data: Sequence[Cells], population: _Population, prior: Prior
) -> tuple[F64, F64]:
    """Log-likelihood of every candidate, (n,), and all residuals, (cells of all frames, n)."""
    n = len(population.point)
    total = np.zeros(n)
    found = []
    for group in data:
        rows = np.empty((len(group.command) * len(group.ring), n))
        for start in range(0, n, _AT_ONCE):
            part = np.s_[start : start + _AT_ONCE]
            some = _Population(population.point[part], population.shape[part])
            m2, radius = _blurred(group, group.command, some)
            fit = fitted(group, m2, radius, prior)
            total[part] -= fit.cost
            rows[:, part] = fit.residual.reshape(len(rows), -1)
        found.append(rows)
    return total / prior.sector_temperature, np.concatenate(found)


def _four_directions(views: Sequence[FocusView], prior: Prior) -> tuple[F64, F64]:
    """Mean and spread of (z, a, b) from z + a, z + b, z - a, z - b, each a round lens's focus."""
    found, spreads = [], []
    step = 1.25
    scales, scale_weights = scale_grid(prior)
    for quarter in range(4):
        angle = 0.5 * math.pi * quarter
        data = []
        for group in ring_cells(views, sectors=[(2 * quarter + i) % SECTORS for i in (-1, 0, 1)]):
            along = group.command @ np.array([1.0, math.cos(angle), math.sin(angle)])
            data.append(replace(group, command=along[:, None]))
        reach = prior.range_dof + prior.astigmatism_dof
        steps = math.ceil(reach / step)
        grid = views[0].command.z_dof + np.arange(-steps, steps + 1) * step
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


def _blurred(
    group: Cells, command: F64, population: _Population
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What blur leaves of the cells' power, and its radius in pixels, (k, cells, n) each."""
    tables = blur.table(SECTOR_STRIDE)
    point = population.point
    z = (command[:, 0, None] - point[:, 0])[:, None, :].astype(np.float32)  # (k, 1, n)
    a = (command[:, 1, None] - point[:, 1])[:, None, :].astype(np.float32)
    b = (command[:, 2, None] - point[:, 2])[:, None, :].astype(np.float32)
    squared = (2 * z * a) * group.cos + (2 * z * b) * group.sin
    squared += z * z + a * a + b * b
    scale = (np.exp(point[:, 3]) / group.pixel).astype(np.float32)
    radius = np.sqrt(np.maximum(squared, np.float32(0.0))) * scale
    steps = blur.radius_steps(radius)
    low = steps.astype(np.intp)
    part = steps - low
    bands, rows = tables.shape[1:]
    flat = tables.reshape(-1)
    low += (population.shape * (bands * rows))[None, None, :] + (group.band * rows)[None, :, None]
    below = flat[low]
    low += 1
    m2 = below + (flat[low] - below) * part
    return m2, radius


def _of_candidates(data: Sequence[Cells], population: _Population, prior: Prior) -> tuple[F64, F64]:
    """Log-likelihood and misfit of every candidate, (n,)."""
    point = population.point
    n = len(point)
    total, misfit, cells = np.zeros(n), np.zeros(n), 0
    for group in data:
        for start in range(0, n, _AT_ONCE):
            part = np.s_[start : start + _AT_ONCE]
            some = _Population(point[part], population.shape[part])
            m2, radius = _blurred(group, group.command, some)
            cost, chi2 = profiled(group, m2, radius, prior)
            total[part] -= cost
            misfit[part] += chi2
        cells += len(group.command) * len(group.ring)
    return total / prior.sector_temperature, misfit / cells


def _log_prior(population: _Population, prior: Prior, first: FocusCommand) -> F64:
    """Little astigmatism is commoner than much: the first frame's command is its origin."""
    point = population.point
    amount = np.hypot(point[:, 1] - first.stig_x_dof, point[:, 2] - first.stig_y_dof)
    total = -0.5 * np.square(amount / (0.6 * prior.astigmatism_dof))
    total -= 0.5 * np.square((point[:, 3] - math.log(prior.blur_px_per_dof)) / prior.blur_log_sd)
    total += np.log(np.maximum(np.array(prior.shape_probabilities), 1e-6))[population.shape]
    beyond = np.abs(point[:, 0] - first.z_dof) / prior.range_dof - 1.1
    beyond = np.maximum(beyond, amount / prior.astigmatism_dof - 1.2)
    result: F64 = total - np.where(beyond > 0.0, 1e6, 0.0)
    return result


def _weights(log_weight: F64) -> F64:
    weight: F64 = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return weight


def _heat(log_likelihood: F64, log_prior: F64, most: float) -> float:
    """Lowest temperature that leaves enough members with a weight, or the one that leaves most."""
    best, effective = max(most, 1.0), 0.0
    for heat in np.geomspace(1.0, max(most, 1.0), 24):
        weight = _weights(log_likelihood / heat + log_prior)
        found = 1.0 / float(weight @ weight)
        if found >= _LEAST_EFFECTIVE:
            return float(heat)
        if found > effective:
            best, effective = float(heat), found
    return best


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
    point = centre + reach * (_gauss(u) @ root.T)
    stay = u[:, 6] < 0.85
    shape = np.where(stay, population.shape[parent], _any_shape(u[:, 7]))
    # Density of the mixture drawn from, over the members that can have been drawn at all.
    heavy = np.flatnonzero(weight > 1e-5 / len(weight))
    inverse = np.linalg.inv(root)
    white = (point @ inverse.T).astype(np.float32)
    parents = (population.point[heavy] @ inverse.T).astype(np.float32)
    offset = white.mean(axis=0)
    white, parents = white - offset, parents - offset
    apart = (
        np.square(white).sum(axis=1)[:, None]
        + np.square(parents).sum(axis=1)[None, :]
        - 2.0 * white @ parents.T
    )
    apart = np.maximum(apart, np.float32(0.0))
    same = shape[:, None] == population.shape[heavy][None, :]
    kind = np.where(
        same, np.float32(0.85 + 0.15 / len(blur.SHAPES)), np.float32(0.15 / len(blur.SHAPES))
    )
    wide = np.exp(np.float32(-0.5) * apart)
    near = np.exp(np.float32(-0.5 / _CLOSE**2) * apart) * np.float32(1.0 / _CLOSE**4)
    density = ((wide + near) * kind) @ weight[heavy].astype(np.float32)
    return _Population(point, shape), np.log(density.astype(np.float64) + 1e-30)


def _local_mean(point: F64, weight: F64) -> F64:
    """Mean of the heaviest neighbourhood: the mean itself where there is one peak."""
    mean = weight @ point
    for _ in range(3):
        spread = np.sqrt(weight @ np.square(point[:, :3] - mean[:3])) + 1e-3
        near = np.exp(-0.5 * np.square((point[:, :3] - mean[:3]) / (2.0 * spread)).sum(axis=1))
        local = weight * near
        mean = (local / local.sum()) @ point
    return mean
