"""Where focus lies over the chip, and how surely: a plane, then a quadratic, then what is left.

The surface is a Gaussian process, z(x, y, t) = quadratic(x, y) + roughness(x, y) + drift(t), with
priors wide for the offset and the tilt, narrow for the bow. With one point it is flat, with three
a plane, with six or more that are spread out the bow is measured; the change is gradual because
it is the prior that yields, and no count has to be watched. Extrapolation stays tame for the same
reason, and `sigma_um` grows where nothing was measured. Drift is a steady rate plus a random
walk, so an old point says less about now than a fresh one.

One autofocus that locked onto dust must not tilt the chip: the point that the others predict
worst (leave-one-out predictive density, which a Gaussian process gives in closed form: Rasmussen
and Williams 2006, equations 5.10 to 5.12) is set aside while it is out by more than
`outlier_sigmas`, and what misfit then remains widens every sigma (the Birge ratio).

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

    def _covariance(self, a: FloatArray, b: FloatArray) -> FloatArray:
        s = self.settings
        tilt_um = s.tilt_um_per_mm * self.half_size_um * 1e-3
        prior_um = np.array(
            [self.prior_sigma_um, tilt_um, tilt_um, s.bow_um, s.bow_um * 0.5, s.bow_um]
        )
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
        places = self._normalised(np.array([[p.x_um, p.y_um, p.at_s] for p in self.points]))
        z_um = np.array([p.z_um for p in self.points])
        variance = np.array([max(p.sigma_um, self.settings.least_sigma_um) for p in self.points])
        variance = variance**2
        covariance = self._covariance(places, places)
        residual_um = z_um - self.prior_z_um
        set_aside: list[int] = []
        while True:
            inverse = np.linalg.inv(covariance + np.diag(variance)).astype(np.float64)
            alpha = inverse @ residual_um
            left_out_variance = 1.0 / np.diag(inverse)
            sigmas = np.abs(alpha) * np.sqrt(left_out_variance)
            density = -0.5 * sigmas**2 - 0.5 * np.log(left_out_variance)
            density[set_aside] = np.inf
            worst = int(np.argmin(density))
            # Three points fit any plane: only from the fifth on can the others outvote one.
            enough = len(self.points) - len(set_aside) >= 5
            few = len(set_aside) < max(1, len(self.points) // 4)
            if not (enough and few and sigmas[worst] > self.settings.outlier_sigmas):
                break
            set_aside.append(worst)
            variance[worst] = 1e8
        kept = np.setdiff1d(np.arange(len(z_um)), set_aside)
        misfit = float(np.sqrt(np.mean(sigmas[kept] ** 2))) if len(kept) >= 4 else 1.0
        return _Fit(
            alpha=alpha,
            inverse=inverse,
            misfit_ratio=max(1.0, misfit),
            outliers=tuple(sorted(set_aside)),
        )

    def _posterior(self, where: FloatArray) -> tuple[FloatArray, FloatArray]:
        prior_um2 = self._covariance(where, where)
        if self._fit is None:
            return np.full(len(where), self.prior_z_um), prior_um2
        places = self._normalised(np.array([[p.x_um, p.y_um, p.at_s] for p in self.points]))
        cross = self._covariance(where, places)
        mean_um = self.prior_z_um + cross @ self._fit.alpha
        covariance_um2 = prior_um2 - cross @ self._fit.inverse @ cross.T
        return mean_um, covariance_um2 * self._fit.misfit_ratio**2


def _basis(where: FloatArray) -> FloatArray:
    x, y = where[:, 0], where[:, 1]
    return np.column_stack([np.ones_like(x), x, y, x * x, 2.0 * x * y, y * y])  # (n, 6)


def _variance_gain(covariance_um2: FloatArray, sigma_um: float) -> FloatArray:
    """How much the summed variance of all places falls when one of them is measured, per place."""
    gain = np.sum(covariance_um2**2, axis=0) / (np.diag(covariance_um2) + sigma_um**2)
    return np.asarray(gain, dtype=np.float64)
