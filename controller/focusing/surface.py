"""Where focus lies over the chip, and how surely: a plane, then a quadratic, then what is left.

The surface is a Gaussian process, z(x, y, t) = quadratic(x, y) + roughness(x, y) + drift(t), with
priors wide for the offset and the tilt, narrow for the bow. With one point it is flat, with three
a plane, with six or more that are spread out the bow is measured; the change is gradual because
it is the prior that yields, and no count has to be watched. Extrapolation stays tame for the same
reason, and `sigma_um` grows where nothing was measured. Drift is a steady rate plus a random
walk, so an old point says less about now than a fresh one.

One autofocus that locked onto dust must not tilt the chip: the point that the others predict
worst (leave-one-out predictive density, which a Gaussian process gives in closed form: Rasmussen
and Williams 2006, equations 5.10 to 5.12) may be set aside when it is out by more than
`outlier_sigmas`. Whether it lies or the chip is bent more than expected is decided by the evidence
for either, and what misfit then remains widens every sigma (the Birge ratio).

Coordinates are scaled by the chip's half size, which keeps the matrices well conditioned and lets
the bow's prior be said as a sag in um. Cost: n^3/3 for n points, n is about tiles / 25.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

FloatArray: TypeAlias = npt.NDArray[np.float64]
SurfaceOrder: TypeAlias = Literal["none", "offset", "plane", "quadratic"]

# A bow that many times the expected one, and the log of how much less likely it is to begin with.
_BOWS = ((1.0, 0.0), (4.0, -2.5), (16.0, -5.0))
_LOG_LIE = float(np.log(0.03 / 200.0))  # one autofocus in thirty locks on something else, anywhere
_NO_EVIDENCE_UM2 = 1e8


class FocusSurfaceSettings(BaseModel):
    """What is believed about a chip before the first focus; one standard deviation each."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tilt_um_per_mm: float = Field(10.0, gt=0, le=1_000)
    bow_um: float = Field(2.0, ge=0, le=1_000)
    """Sag at the chip's half size from its centre, along one axis."""
    roughness_um: float = Field(0.15, ge=0, le=100)
    """What a quadratic cannot follow: a warped chip, a speck under it."""
    roughness_length_um: float = Field(1_500.0, gt=0, le=1e6)
    """Over this distance the roughness is similar."""
    drift_um_per_s: float = Field(0.001, ge=0, le=10)
    """A steady warming of the stand."""
    walk_um_per_sqrt_s: float = Field(0.01, ge=0, le=10)
    """Drift without a direction: um after one second, growing with the root of time."""
    outlier_sigmas: float = Field(4.5, ge=2, le=100)
    least_sigma_um: float = Field(0.02, gt=0, le=10)
    """No measured point is believed better than this."""


@dataclass(frozen=True, slots=True)
class FocusPoint:
    """One successful autofocus."""

    x_um: float
    y_um: float
    z_um: float
    sigma_um: float
    at_s: float  # monotonic, the running loop's clock


@dataclass(frozen=True, slots=True)
class FocusExpectation:
    """What the surface says about one place and time; one standard deviation."""

    z_um: float
    sigma_um: float


@dataclass(frozen=True, slots=True)
class _Fit:
    alpha: FloatArray  # (n,) K^-1 (z - prior_z)
    inverse: FloatArray  # (n, n) K^-1
    misfit_ratio: float  # >= 1
    bow_ratio: float  # how much stronger a bow the points speak for than the settings expect
    outliers: tuple[int, ...]  # indices into the points, set aside


@dataclass(frozen=True, slots=True)
class FocusSurface:
    """Immutable: `with_point` returns the next surface, so a replay meets the same ones.

    Before the first point it knows `prior_z_um` with `prior_sigma_um` at the centre.
    """

    settings: FocusSurfaceSettings
    centre_x_um: float
    centre_y_um: float
    half_size_um: float  # half the chip's longer side
    prior_z_um: float
    prior_sigma_um: float
    points: tuple[FocusPoint, ...] = ()
    _fit: _Fit | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.half_size_um > 0 and self.prior_sigma_um > 0):
            message = (
                f"half_size_um and prior_sigma_um must be > 0, "
                f"got {self.half_size_um} and {self.prior_sigma_um}"
            )
            raise ValueError(message)
        for point in self.points:
            values = (point.x_um, point.y_um, point.z_um, point.sigma_um, point.at_s)
            if not np.all(np.isfinite(values)) or point.sigma_um < 0:
                message = f"a focus point must be finite with sigma_um >= 0, got {point}"
                raise ValueError(message)
        if self.points:
            object.__setattr__(self, "_fit", self._solve())

    def with_point(self, point: FocusPoint) -> FocusSurface:
        """Return the surface that also knows this point; raises ValueError if it is not finite."""
        return FocusSurface(
            self.settings,
            self.centre_x_um,
            self.centre_y_um,
            self.half_size_um,
            self.prior_z_um,
            self.prior_sigma_um,
            (*self.points, point),
        )

    def at(self, x_um: float, y_um: float, at_s: float) -> FocusExpectation:
        """Expect focus at one place and time."""
        where = self._normalised(np.array([[x_um, y_um, at_s]]))
        mean_um, covariance_um2 = self._posterior(where)
        return FocusExpectation(float(mean_um[0]), float(np.sqrt(max(covariance_um2[0, 0], 0.0))))

    def at_many(self, xy_um: FloatArray, at_s: float) -> tuple[FloatArray, FloatArray]:
        """Expect focus at many places, (n, 2) -> z (n,) and sigma (n,), both in um."""
        times = np.full((len(xy_um), 1), at_s)
        mean_um, covariance_um2 = self._posterior(self._normalised(np.hstack([xy_um, times])))
        return mean_um, np.sqrt(np.maximum(np.diag(covariance_um2), 0.0))

    @property
    def outliers(self) -> tuple[FocusPoint, ...]:
        """The points that the others contradict; they do not shape the surface."""
        return () if self._fit is None else tuple(self.points[i] for i in self._fit.outliers)

    @property
    def order(self) -> SurfaceOrder:
        """The highest order that the points themselves, without the prior, determine."""
        kept = [p for p in self.points if p not in self.outliers]
        if not kept:
            return "none"
        basis = _basis(self._normalised(np.array([[p.x_um, p.y_um, p.at_s] for p in kept])))
        for order, columns in (("quadratic", 6), ("plane", 3)):
            if len(kept) >= columns:
                smallest = np.linalg.svd(basis[:, :columns], compute_uv=False)[-1]
                # Below a tenth per root of the count the points lie on a line (or a conic).
                if smallest > 0.1 * np.sqrt(len(kept)) * (0.5 if columns == 6 else 1.0):
                    return order  # type: ignore[return-value]
        return "offset"

    def where_next(
        self, candidates_um: Sequence[tuple[float, float]], at_s: float, sigma_um: float = 0.2
    ) -> int | None:
        """Index of the candidate whose measurement would make all candidates surest.

        None when there are no candidates. sigma_um: what an autofocus there is likely to leave.
        """
        if not candidates_um:
            return None
        xy_um = np.asarray(candidates_um, dtype=np.float64)
        times = np.full((len(xy_um), 1), at_s)
        _, covariance_um2 = self._posterior(self._normalised(np.hstack([xy_um, times])))
        return int(np.argmax(_variance_gain(covariance_um2, sigma_um)))

    def seed_points(
        self,
        candidates_um: Sequence[tuple[float, float]],
        count: int,
        at_s: float,
        sigma_um: float = 0.2,
    ) -> tuple[int, ...]:
        """Indices of the `count` candidates to focus on first, the most telling one first."""
        if not candidates_um:
            return ()
        xy_um = np.asarray(candidates_um, dtype=np.float64)
        times = np.full((len(xy_um), 1), at_s)
        _, covariance_um2 = self._posterior(self._normalised(np.hstack([xy_um, times])))
        chosen: list[int] = []
        for _ in range(min(count, len(candidates_um))):
            gain = _variance_gain(covariance_um2, sigma_um)
            gain[chosen] = -1.0
            best = int(np.argmax(gain))
            chosen.append(best)
            column = covariance_um2[:, best]
            covariance_um2 = covariance_um2 - np.outer(column, column) / (
                covariance_um2[best, best] + sigma_um**2
            )
        return tuple(chosen)

    def _normalised(self, xyt: FloatArray) -> FloatArray:
        scaled = np.empty_like(xyt)
        scaled[:, 0] = (xyt[:, 0] - self.centre_x_um) / self.half_size_um
        scaled[:, 1] = (xyt[:, 1] - self.centre_y_um) / self.half_size_um
        scaled[:, 2] = xyt[:, 2] - (self.points[0].at_s if self.points else 0.0)
        return scaled

    def _covariance(self, a: FloatArray, b: FloatArray, bow_ratio: float) -> FloatArray:
        s = self.settings
        tilt_um, bow_um = s.tilt_um_per_mm * self.half_size_um * 1e-3, s.bow_um * bow_ratio
        prior_um = np.array([self.prior_sigma_um, tilt_um, tilt_um, bow_um, bow_um * 0.5, bow_um])
        covariance = (_basis(a) * prior_um**2) @ _basis(b).T
        squared = (a[:, None, 0] - b[None, :, 0]) ** 2 + (a[:, None, 1] - b[None, :, 1]) ** 2
        length = s.roughness_length_um / self.half_size_um
        covariance += s.roughness_um**2 * np.exp(-0.5 * squared / length**2)
        # Time runs from the first point; what lies before it walked the other way, independently.
        t_a, t_b = a[:, None, 2], b[None, :, 2]
        together_s = np.where(t_a * t_b > 0, np.minimum(np.abs(t_a), np.abs(t_b)), 0.0)
        covariance += s.drift_um_per_s**2 * t_a * t_b + s.walk_um_per_sqrt_s**2 * together_s
        return np.asarray(covariance, dtype=np.float64)

    def _solve(self) -> _Fit:
        """Choose among stronger bows and liars what explains the points best."""
        places = self._normalised(np.array([[p.x_um, p.y_um, p.at_s] for p in self.points]))
        residual_um = np.array([p.z_um for p in self.points]) - self.prior_z_um
        sigma_um = np.array([max(p.sigma_um, self.settings.least_sigma_um) for p in self.points])
        best: tuple[float, _Fit] | None = None
        for bow_ratio, log_odds in _BOWS:
            covariance = self._covariance(places, places, bow_ratio)
            for log_evidence, fit in self._fits(covariance, residual_um, sigma_um, bow_ratio):
                if best is None or log_evidence + log_odds > best[0]:
                    best = (log_evidence + log_odds, fit)
        if best is None:
            message = "a focus surface needs at least one point to be solved"
            raise ValueError(message)
        return best[1]

    def _fits(
        self,
        covariance: FloatArray,
        residual_um: FloatArray,
        sigma_um: FloatArray,
        bow_ratio: float,
    ) -> list[tuple[float, _Fit]]:
        """Fit with no point set aside, then with one, and so on, each with its log evidence."""
        count = len(residual_um)
        variance = sigma_um**2
        set_aside: list[int] = []
        fits = []
        while True:
            kept = np.setdiff1d(np.arange(count), set_aside)
            inverse = np.linalg.inv(covariance + np.diag(variance)).astype(np.float64)
            alpha = inverse @ residual_um
            left_out_variance = 1.0 / np.diag(inverse)
            sigmas = np.abs(alpha) * np.sqrt(left_out_variance)
            inner = (covariance + np.diag(variance))[np.ix_(kept, kept)]
            r_um = residual_um[kept]
            log_evidence = -0.5 * float(r_um @ np.linalg.solve(inner, r_um))
            log_evidence -= 0.5 * float(np.linalg.slogdet(2.0 * np.pi * inner)[1])
            log_evidence += len(set_aside) * _LOG_LIE
            misfit = float(np.sqrt(np.mean(sigmas[kept] ** 2))) if len(kept) >= 4 else 1.0
            fits.append(
                (
                    log_evidence,
                    _Fit(alpha, inverse, max(1.0, misfit), bow_ratio, tuple(sorted(set_aside))),
                )
            )
            density = -0.5 * sigmas**2 - 0.5 * np.log(left_out_variance)
            density[set_aside] = np.inf
            worst = int(np.argmin(density))
            # Three points fit any plane: only from the fifth on can the others outvote one.
            may_lie = len(kept) >= 5 and len(set_aside) < max(1, count // 4)
            if not (may_lie and sigmas[worst] > self.settings.outlier_sigmas):
                return fits
            set_aside.append(worst)
            variance = variance.copy()
            variance[worst] = _NO_EVIDENCE_UM2

    def _posterior(self, where: FloatArray) -> tuple[FloatArray, FloatArray]:
        if self._fit is None:
            prior_um2 = self._covariance(where, where, 1.0)
            return np.full(len(where), self.prior_z_um), prior_um2
        fit = self._fit
        places = self._normalised(np.array([[p.x_um, p.y_um, p.at_s] for p in self.points]))
        cross = self._covariance(where, places, fit.bow_ratio)
        mean_um = self.prior_z_um + cross @ fit.alpha
        prior_um2 = self._covariance(where, where, fit.bow_ratio)
        covariance_um2 = prior_um2 - cross @ fit.inverse @ cross.T
        return mean_um, covariance_um2 * fit.misfit_ratio**2


def _basis(where: FloatArray) -> FloatArray:
    x, y = where[:, 0], where[:, 1]
    return np.column_stack([np.ones_like(x), x, y, x * x, 2.0 * x * y, y * y])  # (n, 6)


def _variance_gain(covariance_um2: FloatArray, sigma_um: float) -> FloatArray:
    """How much the summed variance of all places falls when one of them is measured, per place."""
    gain = np.sum(covariance_um2**2, axis=0) / (np.diag(covariance_um2) + sigma_um**2)
    return np.asarray(gain, dtype=np.float64)
