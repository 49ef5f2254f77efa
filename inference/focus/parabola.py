"""Where focus is, from a sweep: a parabola through the inverse of the best samples.

Gradient energy falls off on both sides of focus about as 1 / (1 + (z / w)^2) once the noise's own
share is taken off (an edge blurred by a width that grows with defocus), so its inverse is a
parabola over the whole peak, where the energy itself is one only at the very top. The fit is
linear and closed: weighted least squares over the samples that carry the peak. The weights follow
from the noise of the energy, and the covariance of the fit gives the sigma, widened when the
samples scatter more than noise should let them.

An honest estimator says no. It abstains when nothing in the field can be focused on, when the peak
lies at the edge of what was looked at, when the curve is flat, has two peaks, or one that is
narrower than optics allows (a flash of light, a passing dust grain).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from inference.api import FocusEstimate, FocusSample

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class InverseParabola:
    """Focus by sweep and parabola; a `FocusEstimator`."""

    top_ratio: float = 0.45  # samples above this share of the peak carry the fit
    least_samples: int = 5  # in the fit, where the sweep has so many
    relative_noise: float = 0.015  # of one sharpness value: flicker that the mean leaves, wobble
    background_noise: float = 0.03  # of the noise's own share
    least_drop_ratio: float = 0.1  # the curve must fall by this share of the peak on each side
    most_second_peak_ratio: float = 0.3  # prominence of a second peak over the height of the first
    least_width_dof: float = 0.1  # half width at half height
    most_width_dof: float = 12.0
    least_sigma_dof: float = 0.03  # no sweep is believed better
    most_sigma_dof: float = 0.5  # a worse estimate is not worth moving for

    @property
    def name(self) -> str:
        """The estimator."""
        return "inverse parabola"

    def estimate(self, samples: Sequence[FocusSample], depth_of_field_um: float) -> FocusEstimate:
        """Estimate focus; samples in any order, several at one place are averaged.

        `focus_z_um` of an answer that is not confident is the sharpest sample's place.
        """
        if not depth_of_field_um > 0 or not math.isfinite(depth_of_field_um):
            message = f"depth_of_field_um must be finite and > 0, got {depth_of_field_um}"
            raise ValueError(message)
        measured = [
            s for s in samples if s.sharpness.value > 0 and math.isfinite(s.sharpness.value)
        ]
        if len(measured) < 3:
            z_um = samples[0].focus_z_um if samples else 0.0
            reason = f"only {len(measured)} usable samples, three are the least"
            return FocusEstimate(z_um, math.inf, False, reason)
        curve = _curve(measured, 0.05 * depth_of_field_um, self)
        best = int(np.argmax(curve.signal))
        best_z_um = float(curve.z_um[best])
        refusal = self._refusal(curve, best, depth_of_field_um)
        if refusal:
            return FocusEstimate(best_z_um, math.inf, False, refusal)
        fit = self._fit(curve, best)
        if isinstance(fit, str):
            return FocusEstimate(best_z_um, math.inf, False, fit)
        return self._judged(fit, curve, best, depth_of_field_um)

    def _refusal(self, curve: _Curve, best: int, depth_of_field_um: float) -> str:
        """Say why the curve has no trustworthy peak, "" if it has one."""
        if not curve.is_usable[best]:
            return f"nothing to focus on: {curve.reason[best]}"
        signal, peak = curve.signal, float(curve.signal[best])
        if len(signal) < 3:
            return "fewer than three places were measured"
        lowest = float(signal.min())
        if peak - lowest < self.least_drop_ratio * peak or peak - lowest < 4 * curve.sigma[best]:
            return f"the curve is too flat: it falls by {(peak - lowest) / peak:.0%}"
        for side, name in ((signal[:best], "lower"), (signal[best + 1 :], "upper")):
            if len(side) == 0 or peak - float(side.min()) < self.least_drop_ratio * peak:
                return f"the peak lies at the {name} edge of the sweep"
        rival = self._second_peak(curve, best, depth_of_field_um)
        if rival is not None:
            return (
                f"two peaks, at {curve.z_um[best]:.2f} and {curve.z_um[rival]:.2f} um: "
                f"which one is the sample cannot be told"
            )
        return ""

    def _second_peak(self, curve: _Curve, best: int, depth_of_field_um: float) -> int | None:
        """Index of a peak that stands out on its own, None if there is none."""
        signal = curve.signal
        height = float(signal[best])
        for i in range(len(signal)):
            if abs(curve.z_um[i] - curve.z_um[best]) < depth_of_field_um:
                continue
            between = signal[min(i, best) : max(i, best) + 1]
            prominence = float(signal[i] - between.min())
            spread = 5.0 * math.hypot(float(curve.sigma[i]), float(curve.sigma[best]))
            if prominence > max(self.most_second_peak_ratio * height, spread):
                return i
        return None

    def _fit(self, curve: _Curve, best: int) -> _Parabola | str:
        """Fit 1 / signal = a u^2 + b u + c around the best sample, u in um from it."""
        first = last = best
        peak = float(curve.signal[best])
        while first > 0 and curve.signal[first - 1] > self.top_ratio * peak:
            first -= 1
        while last < len(curve.signal) - 1 and curve.signal[last + 1] > self.top_ratio * peak:
            last += 1
        # At least one on each side, and the nearest ones until there are enough.
        first, last = min(first, max(best - 1, 0)), max(last, min(best + 1, len(curve.signal) - 1))
        while last - first + 1 < min(self.least_samples, len(curve.signal)):
            below = curve.signal[first - 1] if first > 0 else -math.inf
            above = curve.signal[last + 1] if last < len(curve.signal) - 1 else -math.inf
            if max(below, above) < 0.1 * peak:
                break
            first, last = (first - 1, last) if below >= above else (first, last + 1)
        part = np.s_[first : last + 1]
        signal = np.maximum(curve.signal[part], 1e-3 * peak)
        u_um = curve.z_um[part] - curve.z_um[best]
        scale_um = float(np.max(np.abs(u_um)))
        inverse = peak / signal
        # d(1/s) = ds / s^2
        weight = (signal**2 / (peak * curve.sigma[part])) ** 2
        basis = np.column_stack([(u_um / scale_um) ** 2, u_um / scale_um, np.ones_like(u_um)])
        normal = basis.T @ (basis * weight[:, None])
        try:
            covariance = np.linalg.inv(normal)
        except np.linalg.LinAlgError:
            return "the samples do not determine a parabola"
        a, b, c = covariance @ (basis.T @ (weight * inverse))
        if a <= 0:
            return "the samples around the best one do not form a peak"
        residual = inverse - basis @ np.array([a, b, c])
        freedom = len(u_um) - 3
        # Three samples fit any parabola; the prior keeps one more from promising too much.
        misfit = (1.5 + float(np.sum(weight * residual**2))) / (1.5 + freedom)
        slope = np.array([b / (2 * a**2), -1.0 / (2 * a), 0.0])
        variance = float(slope @ covariance @ slope) * max(misfit, 1.0)
        top = c - b**2 / (4 * a)
        if top <= 0:
            return "the samples around the best one do not form a peak"
        return _Parabola(
            z_um=float(curve.z_um[best] - b / (2 * a) * scale_um),
            sigma_um=math.sqrt(max(variance, 0.0)) * scale_um,
            half_width_um=math.sqrt(float(top / a)) * scale_um,
            low_um=float(curve.z_um[first]),
            high_um=float(curve.z_um[last]),
        )

    def _judged(
        self, fit: _Parabola, curve: _Curve, best: int, depth_of_field_um: float
    ) -> FocusEstimate:
        best_z_um = float(curve.z_um[best])
        sigma_um = math.hypot(fit.sigma_um, self.least_sigma_dof * depth_of_field_um)
        reason = ""
        if not fit.low_um <= fit.z_um <= fit.high_um:
            reason = f"the parabola peaks at {fit.z_um:.2f} um, outside the samples it is fitted to"
        elif not self.least_width_dof <= fit.half_width_um / depth_of_field_um:
            reason = f"the peak is only {fit.half_width_um:.3g} um wide: a flash, not focus"
        elif fit.half_width_um / depth_of_field_um > self.most_width_dof:
            reason = f"the peak is {fit.half_width_um:.3g} um wide: no focus looks like that"
        elif sigma_um > self.most_sigma_dof * depth_of_field_um:
            reason = f"focus is uncertain by {sigma_um:.2f} um"
        if reason:
            return FocusEstimate(best_z_um, sigma_um, False, reason)
        return FocusEstimate(fit.z_um, sigma_um, True, "")


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    z_um: FloatArray  # ascending
    signal: FloatArray  # sharpness less the noise's own share
    sigma: FloatArray  # of the signal
    is_usable: list[bool]
    reason: list[str]


@dataclass(frozen=True, slots=True)
class _Parabola:
    z_um: float
    sigma_um: float
    half_width_um: float  # at half height
    low_um: float  # of the samples that carry the fit
    high_um: float


def _curve(samples: Sequence[FocusSample], same_um: float, noise: InverseParabola) -> _Curve:
    """Sort by z, take off the noise's share, average what was measured at one place."""
    ordered = sorted(samples, key=lambda s: s.focus_z_um)
    groups: list[list[FocusSample]] = []
    for sample in ordered:
        if groups and sample.focus_z_um - groups[-1][0].focus_z_um <= same_um:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    z_um, signal, sigma = [], [], []
    for group in groups:
        values = np.array([s.sharpness.value for s in group])
        ratios = np.array([max(s.sharpness.texture_ratio, 1e-6) for s in group])
        share = np.minimum(values / ratios, values)
        spread = np.hypot(noise.relative_noise * values, noise.background_noise * share)
        z_um.append(float(np.mean([s.focus_z_um for s in group])))
        signal.append(float(np.mean(values - share)))
        sigma.append(float(np.sqrt(np.mean(spread**2) / len(group))))
    return _Curve(
        z_um=np.array(z_um),
        signal=np.array(signal),
        sigma=np.maximum(np.array(sigma), 1e-300),
        is_usable=[any(s.sharpness.in_distribution for s in group) for group in groups],
        reason=[group[0].sharpness.reason for group in groups],
    )
