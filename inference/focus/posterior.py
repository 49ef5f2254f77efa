"""Where focus is, from any number of frames: one posterior over defocus, and over astigmatism.

likelihood.py says how likely frames are. For two Gaussian blurs the log-ratio of their powers is
c^2 f^2 (w2 - w1)(w1 + w2 - 2 z): a single frame cannot tell the sign of its defocus, two at a known
step can, an error of scale acts only on the distance from the midpoint, and frames that bracket
focus cancel it. Defocus alone is summed on a grid here; with astigmatism the space is sampled
(astigmatism.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from inference.focus import blur
from inference.focus.api import FocusBelief, FocusView
from inference.focus.astigmatism import believe_astigmatic
from inference.focus.likelihood import (
    F64,
    PEDESTAL_LOG_SD,
    Cells,
    Prior,
    coadded,
    fitted,
    on_grid,
    profiled,
    ring_cells,
    scale_grid,
    summary,
    variance_of,
)

_HALF_STEPS = 60  # of the first grid over the range
_BAD_MISFIT = 0.9  # one run in ten on a counted, unprocessed image
_UNKNOWN_LOG_SD = 0.4  # of the scale, where the image is not what the instrument was said to give
_UNKNOWN_SIGMA_DOF = 0.1  # what such an image leaves untold, in the best of cases
_LEAST_GAIN = 3.0  # of log-evidence
_HALF_FINE = 24  # of the grid around the peak


def believe(views: Sequence[FocusView], prior: Prior) -> FocusBelief:
    """Sum up all frames; with `prior.astigmatism_dof` > 0 the stigmator's error too.

    The last few answers are kept: a history that grows by one frame starts from what it believed.
    Noise is white where a detector counts. Interpolation, filters and compression colour it, and
    leave a floor that differs from band to band: frames that fit badly are judged again with such a
    floor, which the most blurred of them show, and with a scale that nobody measured. What makes
    all frames likelier is believed.
    """
    if not views:
        message = "at least one frame is needed"
        raise ValueError(message)
    return _believed(tuple(views), prior)


@functools.lru_cache(maxsize=32)
def _believed(views: tuple[FocusView, ...], prior: Prior) -> FocusBelief:
    if prior.astigmatism_dof > 0 and len(views) > 1:
        return believe_astigmatic(views, prior)
    summed = coadded(views)
    round_belief, log_evidence = _round_belief(summed, prior)
    if round_belief.misfit > _BAD_MISFIT and prior.pedestal_log_sd <= 0.0:
        unknown = replace(
            prior,
            pedestal_log_sd=PEDESTAL_LOG_SD,
            blur_log_sd=max(prior.blur_log_sd, _UNKNOWN_LOG_SD),
            least_sigma_dof=max(prior.least_sigma_dof, _UNKNOWN_SIGMA_DOF),
        )
        again, log_evidence_again = _round_belief(summed, unknown)
        if log_evidence_again > log_evidence + _LEAST_GAIN:
            return again
    return round_belief


def believe_round(views: Sequence[FocusView], prior: Prior) -> FocusBelief:
    """Posterior over focus alone, by grids: the whole range first, then around the peak."""
    return _round_belief(views, prior)[0]


def _round_belief(views: Sequence[FocusView], prior: Prior) -> tuple[FocusBelief, float]:
    """The posterior and the logarithm of its evidence."""
    data = ring_cells(views)
    first = views[0].command.z_dof
    scales, scale_weights = scale_grid(prior)
    step = prior.range_dof / _HALF_STEPS
    grid = first + np.arange(-_HALF_STEPS, _HALF_STEPS + 1) * step
    # Fine pixels have narrow peaks that a coarse grid steps over: wide fields first.
    wide = [group for group in data if group.pixel >= 1.6 * step]
    log_post, misfit = on_grid(wide or data, grid, scales, scale_weights, prior)
    z, sd = summary(grid, log_post)
    if wide and len(wide) < len(data):
        reach = min(max(4.0 * sd, 4.0 * step), prior.range_dof)
        step = reach / _HALF_STEPS
        grid = z + np.arange(-_HALF_STEPS, _HALF_STEPS + 1) * step
        log_post, misfit = on_grid(data, grid, scales, scale_weights, prior)
        z, sd = summary(grid, log_post)
    for _ in range(2):
        step_new = max(5.0 * max(sd, 0.3 * step) / _HALF_FINE, 1e-3)
        if sd > 8.0 * step or step_new >= 0.8 * step:
            break
        step = step_new
        grid = z + np.arange(-_HALF_FINE, _HALF_FINE + 1) * step
        scales, scale_weights = scale_grid(prior, _scale_of(scales, log_post))
        log_post, misfit = on_grid(data, grid, scales, scale_weights, prior)
        z, sd = summary(grid, log_post)
    weights = np.exp(log_post - log_post.max())
    total = float(weights.sum())
    evidence = math.log(total * step) + float(log_post.max())
    weights /= total
    fit = float((weights * misfit).sum())
    log_scale, scale_sd = _scale_of(scales, log_post)
    side = float(weights.sum(axis=(0, 1))[grid > first].sum())
    belief = FocusBelief(
        z_dof=z,
        sigma_dof=math.hypot(sd, prior.least_sigma_dof) * math.sqrt(max(fit, 1.0)),
        stig_x_dof=views[-1].command.stig_x_dof,
        stig_y_dof=views[-1].command.stig_y_dof,
        stig_sigma_dof=0.0,
        sign_probability=side if z > first else 1.0 - side,
        evidence=_evidence(data, fit, prior),
        misfit=fit,
        scale=math.exp(log_scale),
        scale_log_sd=scale_sd,
        shape_probabilities=tuple(float(p) for p in weights.sum(axis=(1, 2))),
        is_noise_white=prior.pedestal_log_sd <= 0.0,
    )
    return belief, evidence


def _scale_of(scales: F64, log_post: F64) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm of the blur's scale."""
    weights = np.exp(log_post - log_post.max()).sum(axis=(0, 2))
    weights /= weights.sum()
    logs = np.log(scales)
    mean = float(weights @ logs)
    step = float(logs[1] - logs[0])
    return mean, math.sqrt(float(weights @ np.square(logs - mean)) + 0.16 * step**2 + 1e-5)


def _evidence(data: Sequence[Cells], misfit: float, prior: Prior) -> float:
    """Half of what squared residuals grow by if all frames are called equally sharp."""
    chi2, cells = 0.0, 0
    for group in data:
        ones = np.ones((len(group.command), len(group.ring), 1), dtype=np.float32)
        chi2 += float(profiled(group, ones, np.zeros_like(ones), prior)[1][0])
        cells += len(group.command) * len(group.ring)
    return 0.5 * (chi2 - misfit * cells)


def best_bracket_dof(views: Sequence[FocusView], belief: FocusBelief, prior: Prior) -> float:
    """Distance from focus at which one more frame would tell most about where focus is.

    Fisher information of the log powers: the derivative of what blur leaves, over its variance, for
    the object and the noise that the frames have shown so far.
    """
    if not belief.is_noise_white:
        prior = replace(prior, pedestal_log_sd=PEDESTAL_LOG_SD)
    data = [g for g in ring_cells(views) if g.pixel == min(h.pixel for h in ring_cells(views))]
    shape = int(np.argmax(belief.shape_probabilities))
    table = blur.table()[shape]
    distances = np.geomspace(2.0, 24.0, 26)
    information = np.zeros(len(distances))
    for group in data:
        off = np.abs(group.command[:, 0] - belief.z_dof)[:, None, None]
        radius = (off * belief.scale / group.pixel).astype(np.float32)
        steps = blur.radius_steps(radius)
        m2 = table[group.band[None, :, None], steps.astype(np.intp)]
        fit = fitted(group, m2, radius, prior)
        ahead = (distances * belief.scale / group.pixel).astype(np.float32)
        low = blur.radius_steps(ahead).astype(np.intp)
        kept = table[group.band][:, low]  # (cells, distances)
        further = table[group.band][:, low + 1]
        apart = np.expm1(np.float32(blur.U_STEP)) * (1.0 + ahead)
        slope = (np.log(kept) - np.log(further)) / apart
        signal = np.exp(fit.log_object) * kept
        share = signal / (signal + fit.noise.mean(axis=0))
        variance = variance_of(share, group, group.ring * ahead, ahead[None, :], prior).mean(axis=0)
        information += (np.square(share * slope) / variance).sum(axis=0)
    return float(distances[int(np.argmax(information))])
