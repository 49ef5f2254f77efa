"""Whether a restored frame may be believed, asked of the raw frame; and what is shown if not.

Three tests, each blind where another sees:
- What was taken away (raw - restored) must look like the frame's noise. A band of frequencies with
  more power than noise has lost structure, or gained structure that is not in the raw frame; so has
  a remainder whose neighbouring pixels are alike.
- The twin test: the frame's counts are thinned into two independent frames, one is restored, the
  other judges. Detail that the restorer adds to a plain radial Wiener estimate must be found in
  the judge; this has power against inventions far weaker than the noise, which no look at the
  remainder has. Where counts are not whole electrons, Gaussian noise of the same variance splits
  the frame: exact for Gaussian noise, uncorrelated for Poisson noise.
- The error itself, without truth: Stein's unbiased risk with one random probe (Ramani et al., IEEE
  Trans. Image Process. 17 (2008) 1540).

Correlated noise is tested against its own colour where that can be told (see `colour`); where it
can't, nothing is tested, the verdict says so and does not pass. Every Wiener filter keeps noise
where it keeps signal, so a band with LESS power than noise does not fail; it is counted in
`within_ratio`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from inference.restore.anchor import TwoStepWiener
from inference.restore.api import Frame, Grey, NoiseModel, Restored, Restorer, grey_of
from inference.restore.classical import (
    Gaussian,
    LocalWiener,
    RadialWiener,
    RingPower,
    cosine_transform,
    inverse_cosine_transform,
    ring_power,
)
from inference.restore.colour import WHITE, Colour, mixed, noise_colour, noise_for_filters
from inference.restore.noise import estimate_noise
from inference.restore.recursive import Recursive, RecursiveSettings

BANDS: Final = 24
BAND_TOLERANCE: Final = 0.05
LAG_TOLERANCE: Final = 0.03
LEAST_REMOVED_RATIO: Final = 0.3  # of the noise's power; less, and hardly anything was restored
LEAST_SLOPE: Final = 0.5  # of added detail that the judging half confirms; 1: all of it
SAID_RATIO: Final = 1.5  # of the variance said, that unconfirmed detail may have
LEAST_DETAIL_RATIO: Final = 0.02  # added power over the noise's, below which there's no detail

_NOISE_EVERY_FRAMES: Final = 8
_NEWEST: Final = 0.2  # share of the newest estimate of a stream's colour
_COLOUR_TOLERANCE: Final = 0.1  # of a band's power, as a fitted colour has it
_DEVIATES: Final = 3.5  # chance is allowed this many standard deviations
_STREAM: Final = 20_077  # a stream of random numbers of our own, whatever seeded the frame
_WHOLE: Final = 1e-3  # of an electron


@dataclass(frozen=True, slots=True)
class Whiteness:
    """What was taken away from a frame, in units of its noise."""

    bands: tuple[float, ...]  # power over that of the noise, low frequencies first
    within_ratio: float  # share of bands within the tolerance of 1, chance allowed for
    excess: float  # the largest power above 1, beyond chance; 0 where none is
    lag_correlation: float  # of neighbouring pixels, the larger of the two directions
    removed_ratio: float  # mean power over that of the noise


@dataclass(frozen=True, slots=True)
class Twin:
    """What one half of the counts says of a restorer that saw the other."""

    slope: float  # detail added to the radial Wiener estimate: 1 confirmed, 0 invented
    slope_sigma: float
    detail_ratio: float  # power of the added detail over that of the frame's noise
    mse_dn2: float  # of the restored half, whose noise has twice the variance
    said_ratio: float = 0.0  # variance that the restorer says beyond the estimate's, over noise's

    @property
    def is_failed(self) -> bool:
        """Detail was added that the judging half doesn't confirm.

        Noise that was left in isn't confirmed either, but is no invention where it was said.
        """
        likely = self.slope + _DEVIATES * self.slope_sigma
        unconfirmed = self.detail_ratio * (1.0 - likely)
        return (
            self.detail_ratio > LEAST_DETAIL_RATIO
            and likely < LEAST_SLOPE
            and unconfirmed > SAID_RATIO * self.said_ratio
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a restored frame passed."""

    passed: bool
    reason: str  # why not; "" when passed
    whiteness: Whiteness | None  # None: the noise model does not hold, nothing was tested
    twin: Twin | None  # None: not asked for, or nothing was tested

    @property
    def is_twin_failed(self) -> bool:
        """Whether what was added to a plain filter's answer is not borne out by the other half."""
        return self.twin is not None and self.twin.is_failed


def whiteness(
    frame: Frame, restored: Restored, noise: NoiseModel, colour: Colour = WHITE
) -> Whiteness:
    """Look at what was taken away, band by band, in units of noise of that colour."""
    grey = grey_of(frame)
    # One variance for the frame where the estimate dips: a single false zero would outweigh all.
    least = np.float32(0.05) * noise.variance_dn2(float(grey.mean()))
    variance = np.maximum(noise.variance_dn2(restored.image), least)
    rest = (grey - restored.image) / np.sqrt(variance)
    spectrum = cosine_transform(rest)
    if colour != WHITE:
        spectrum /= np.sqrt(colour.power(*spectrum.shape))
        rest = inverse_cosine_transform(spectrum.copy(), rest.shape)
    rings = ring_power(spectrum)
    power, modes = _bands(rings)
    # Few modes scatter askew: Wilson and Hilferty's upper quantile of chi^2 / n.
    third = 2.0 / (9.0 * modes)
    chance = (1.0 - third + _DEVIATES * np.sqrt(third)) ** 3 - 1.0
    within = np.abs(power - 1.0) <= BAND_TOLERANCE + chance
    centred = rest - rest.mean()
    total = float(np.mean(np.square(centred)))
    lags = [
        float(np.mean(centred[1:] * centred[:-1])) / max(total, 1e-12),
        float(np.mean(centred[:, 1:] * centred[:, :-1])) / max(total, 1e-12),
    ]
    return Whiteness(
        bands=tuple(power.tolist()),
        within_ratio=float(within.mean()),
        excess=float(np.maximum(power - 1.0 - chance, 0.0).max()),
        lag_correlation=max(lags),
        removed_ratio=float(np.mean(np.square(rest))),
    )


def _bands(rings: RingPower) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Power and modes in bands of equal width, the mean's ring left out."""
    band = np.floor(rings.frequency_cyc_px[1:] / 0.7072 * BANDS).astype(int)
    band = np.minimum(band, BANDS - 1)
    modes = np.bincount(band, rings.modes[1:], minlength=BANDS)
    power = np.bincount(band, (rings.power * rings.modes)[1:], minlength=BANDS)
    filled = modes > 0
    counts = modes[filled].astype(np.float64)
    return power[filled] / counts, counts


# --- the twin test ---------------------------------------------------------------------------


def thinned(
    frame: Frame, noise: NoiseModel, rng: np.random.Generator, colour: Colour = WHITE
) -> tuple[Grey, Grey, NoiseModel]:
    """Split a frame into two of its own level, independent of each other, and their noise.

    Whole electrons are dealt out by coin (binomial thinning); else Gaussian noise splits them.
    """
    grey = grey_of(frame)
    halves = replace(
        noise,
        gain_dn=2.0 * noise.gain_dn,
        read_noise_dn=math.sqrt(2.0) * noise.read_noise_dn,
        gain_sigma_dn=2.0 * noise.gain_sigma_dn,
    )
    if colour == WHITE and noise.gain_dn > 0.0 and noise.read_noise_dn == 0.0:
        electrons = (grey - np.float32(noise.offset_dn)) / np.float32(noise.gain_dn)
        whole = np.rint(electrons)
        if float(whole.min()) >= 0.0 and float(np.abs(electrons - whole).max()) < _WHOLE:
            first = rng.binomial(whole.astype(np.int64), 0.5).astype(np.float32)
            twice = np.float32(2.0 * noise.gain_dn)
            offset = np.float32(noise.offset_dn)
            return first * twice + offset, (whole - first) * twice + offset, halves
    shift = rng.standard_normal(grey.shape, dtype=np.float32)
    if colour != WHITE:
        shift = coloured(shift, colour)
    shift *= np.sqrt(noise.variance_dn2(grey))
    return grey + shift, grey - shift, halves


def twin_test(
    frame: Frame, restorer: Restorer, noise: NoiseModel, seed: int = 0, colour: Colour = WHITE
) -> Twin:
    """Restore one half of the counts and let the other half judge."""
    first, second, halves = thinned(frame, noise, np.random.default_rng((_STREAM, seed)), colour)
    halves = colour.for_filters(halves)
    simple = RadialWiener().restore(first, halves)
    plain = simple.image
    answer = restorer.restore(first, halves)
    image = answer.image
    detail = image - plain
    left = second - plain
    detail = detail - detail.mean()
    own = float(np.mean(np.square(detail, dtype=np.float64)))
    variance = float(noise.variance_dn2(float(second.mean())))
    mse = float(np.mean(np.square(image - second, dtype=np.float64))) - 2.0 * variance
    if own <= 1e-9 * max(variance, 1e-12):
        return Twin(1.0, math.inf, 0.0, mse)
    slope = float(np.mean(detail * left, dtype=np.float64)) / own
    # The judge's noise, twice the frame's, is all that scatters the slope.
    power = 2.0 * variance
    if colour != WHITE:
        spectrum = np.square(cosine_transform(detail))
        share = float((spectrum * colour.power(*spectrum.shape)).sum()) / float(spectrum.sum())
        power *= share
    sigma = math.sqrt(power / (own * detail.size))
    said = 0.0
    if answer.sigma is not None and simple.sigma is not None:
        more = np.square(answer.sigma, dtype=np.float64) - np.square(simple.sigma)
        said = max(float(more.mean()), 0.0) / variance
    return Twin(slope, sigma, own / variance, mse, said)


def coloured(white: Grey, colour: Colour) -> Grey:
    """White noise given a colour."""
    spectrum = cosine_transform(white)
    spectrum *= np.sqrt(colour.power(*spectrum.shape))
    return inverse_cosine_transform(spectrum, white.shape)


# --- error without truth ---------------------------------------------------------------------


def sure_mse_dn2(frame: Frame, restorer: Restorer, noise: NoiseModel, seed: int = 0) -> float:
    """Stein's unbiased estimate of a restorer's mean squared error, by one random probe.

    May come out below zero by chance on small frames. The noise model is held fixed.
    """
    return _sure(grey_of(frame), restorer.restore(frame, noise), restorer, noise, seed)


def sure_snr_db(frame: Frame, restorer: Restorer, noise: NoiseModel, seed: int = 0) -> float:
    """Signal variance of the frame over the estimated error; nan where there is no signal."""
    grey = grey_of(frame)
    mse = sure_mse_dn2(frame, restorer, noise, seed)
    signal = float(np.var(grey)) - float(np.mean(noise.variance_dn2(grey)))
    if signal <= 0.0:
        return math.nan
    return 10.0 * math.log10(signal / max(mse, 1e-6 * signal))


def _sure(
    grey: Grey, restored: Restored, restorer: Restorer, noise: NoiseModel, seed: int
) -> float:
    variance = noise.variance_dn2(grey)
    sigma = np.sqrt(variance)
    rng = np.random.default_rng((_STREAM, seed))
    probe = rng.standard_normal(grey.shape, dtype=np.float32)
    # Small: a step adds its square to the power that adaptive filters take their gain from.
    step = np.float32(0.03)
    shifted = restorer.restore(grey + step * sigma * probe, noise).image
    divergence = np.mean(probe * sigma * (shifted - restored.image), dtype=np.float64) / step
    rest = np.mean(np.square(restored.image - grey), dtype=np.float64)
    return float(rest - np.mean(variance, dtype=np.float64) + 2.0 * divergence)


# --- what is shown ---------------------------------------------------------------------------


def judge(
    frame: Frame,
    restored: Restored,
    noise: NoiseModel,
    restorer: Restorer | None = None,
    seed: int = 0,
    colour: Colour | None = None,
) -> Verdict:
    """Whether a restored frame may be believed.

    restorer: the one that made it, for the twin test; None to leave that out, as it costs another
    restoration. colour: of the noise; None for white, or for looking where the model isn't sure.
    """
    if colour is None and noise.in_distribution:
        colour = WHITE
    elif colour is None:
        told = noise_colour(frame, noise)
        if told is None:
            return Verdict(False, f"cannot be checked: {noise.reason}", None, None)
        colour = told
    # What the noise is to blame for is not held against the restorer where its colour is known.
    if not restored.in_distribution and (
        noise.in_distribution or noise.reason not in restored.reason
    ):
        return Verdict(False, restored.reason or "not in distribution", None, None)
    if not np.isfinite(restored.image).all():
        return Verdict(False, "holds values that are not finite numbers", None, None)
    rest = whiteness(frame, restored, noise, colour)
    twin = None if restorer is None else twin_test(frame, restorer, noise, seed, colour)
    # A noise model that is off by some per cent raises every band alike.
    tolerance = BAND_TOLERANCE + 3.0 * noise.variance_sigma_ratio
    tolerance += 0.0 if colour == WHITE else _COLOUR_TOLERANCE
    chance = _DEVIATES / math.sqrt(frame.size)
    reason = ""
    if rest.excess > tolerance:
        reason = f"a band of what was taken away holds {rest.excess:.2f} times noise too much"
    elif rest.lag_correlation > LAG_TOLERANCE + chance:
        reason = f"what was taken away is alike from pixel to pixel: {rest.lag_correlation:.3f}"
    elif rest.removed_ratio < LEAST_REMOVED_RATIO:
        reason = f"only {rest.removed_ratio:.2f} of the noise was taken away"
    elif twin is not None and twin.is_failed:
        reason = f"half of the counts confirms {twin.slope:.2f} of the detail seen in the other"
    return Verdict(not reason, reason, rest, twin)


@dataclass(frozen=True, slots=True)
class BestClassical:
    """The filter with the least estimated error on this very frame."""

    restorers: tuple[Restorer, ...] = (
        TwoStepWiener(),
        RadialWiener(),
        LocalWiener(),
        Gaussian(),
    )
    name: str = "best_classical"

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Run each filter twice and keep the best; `method` names it."""
        grey = grey_of(frame)
        model = noise or noise_for_filters(frame)
        answers = [restorer.restore(grey, model) for restorer in self.restorers]
        risks = [
            _sure(grey, answer, restorer, model, 0)
            for answer, restorer in zip(answers, self.restorers, strict=True)
        ]
        return answers[int(np.argmin(risks))]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A restorer whose failures are replaced by the best classical filter, which says so."""

    inner: Restorer
    fallback: Restorer = BestClassical()
    is_twin_tested: bool = True

    @property
    def name(self) -> str:
        """The inner one's: what a frame was really made by stands in its `method`."""
        return self.inner.name

    def restore(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Restore, judge, and fall back where the judgement is against it."""
        return self.restore_and_judge(frame, noise)[0]

    def restore_and_judge(
        self, frame: Frame, noise: NoiseModel | None = None
    ) -> tuple[Restored, Verdict]:
        """The same, with the verdict on what the inner restorer made."""
        model = noise or estimate_noise(frame)
        # Noise that a caller knows is white, as far as its model says.
        colour = noise_colour(frame, model) if noise is None else None
        shown = model if colour is None else colour.for_filters(model)
        answer = self.inner.restore(frame, shown)
        tested = self.inner if self.is_twin_tested else None
        verdict = judge(frame, answer, model, tested, colour=colour)
        if verdict.passed:
            return answer, verdict
        instead = self.fallback.restore(frame, shown)
        return replace(instead, reason=f"{self.inner.name}: {verdict.reason}"), verdict


class GuardedLive:
    """A stream, averaged or frame by frame, whose failures are replaced; see `api.LiveRestorer`.

    The guard stands outside of the average and looks at each frame as it came, whose noise is
    white where that of an average of shifted frames is not. The twin test is sampled, on the
    frame alone; once it has failed, every frame is tested until one passes.
    """

    def __init__(
        self,
        inner: Restorer,
        *,
        recursion: RecursiveSettings | None = None,
        fallback: Restorer | None = None,
        twin_every_frames: int = 16,
    ) -> None:
        """recursion: None for frame by frame. twin_every_frames: 0 for no twin test."""
        self._inner = inner
        self._live = None if recursion is None else Recursive(inner, recursion)
        self._fallback = fallback or BestClassical()
        self._twin_every_frames = twin_every_frames
        self.reset()

    @property
    def name(self) -> str:
        """The inner one's: what a frame was really made by stands in its `method`."""
        return self._inner.name if self._live is None else self._live.name

    @property
    def effective_frames(self) -> float:
        """See `api.LiveRestorer`."""
        return self._frames if self._live is None else self._live.effective_frames

    @property
    def drift_px(self) -> tuple[float, float]:
        """See `api.LiveRestorer`; (0, 0) frame by frame."""
        return (0.0, 0.0) if self._live is None else self._live.drift_px

    @property
    def verdict(self) -> Verdict | None:
        """On what the inner restorer made of the last frame; None before the first."""
        return self._verdict

    def reset(self) -> None:
        """Forget all frames; the next one is twin-tested."""
        if self._live is not None:
            self._live.reset()
        self._verdict: Verdict | None = None
        self._frames = 0.0
        self._untested_frames = self._twin_every_frames - 1
        self._noise: NoiseModel | None = None
        self._colour: Colour | None = None
        self._noise_age_frames = 0
        self._colours = 0

    def push(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Take in one frame, restore, judge, and fall back where the judgement is against it."""
        model, colour = self._noise_of(frame, noise)
        shown = model if colour is None else colour.for_filters(model)
        if self._live is None:
            answer = self._inner.restore(frame, shown)
        else:
            answer = self._live.push(frame, shown)
        self._frames = 1.0
        self._untested_frames += 1
        is_due = 0 < self._twin_every_frames <= self._untested_frames
        verdict = judge(frame, answer, model, self._inner if is_due else None, colour=colour)
        if verdict.twin is not None and not verdict.is_twin_failed:
            self._untested_frames = 0
        self._verdict = verdict
        if verdict.passed:
            return answer
        if self._live is None:
            instead = self._fallback.restore(frame, shown)
        else:
            instead = self._live.restored_by(self._fallback)
        return replace(instead, reason=f"{self._inner.name}: {verdict.reason}")

    def _noise_of(self, frame: Frame, noise: NoiseModel | None) -> tuple[NoiseModel, Colour | None]:
        """Noise and its colour are a detector's: they are not estimated on each frame."""
        if noise is not None:  # known to be white, as far as it says
            return noise, None
        if self._noise is None or self._noise_age_frames >= _NOISE_EVERY_FRAMES:
            self._noise = estimate_noise(frame)
            self._colours += 1
            share = max(1.0 / self._colours, _NEWEST)
            self._colour = mixed(self._colour, noise_colour(frame, self._noise), share)
            self._noise_age_frames = 0
        self._noise_age_frames += 1
        return self._noise, self._colour
