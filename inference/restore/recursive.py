"""A scene averaged over the frames that show it, while it drifts and while parts of it change.

Each frame is registered to the scene as restored so far, shifted onto its grid by a fraction of a
pixel, compared with it, and averaged in wherever nothing changed; the restorer then sees the
average and is told how much noise is left in it. What decides:

- Drift. The likelihood of a shift, given white noise, is the correlation of frame and restored
  scene over the noise's variance. A filter that expects steady drift (Kalman's, of position and
  speed) says where to look; the most probable of both is taken. A lattice is alike after each
  period: where another shift is nearly as probable, nobody knows, and the average starts anew.
- No wander of interpolation. The scene lies on a grid that moves by whole pixels only, so each
  frame is interpolated once, by a windowed sinc which leaves noise white but for the highest
  frequencies, and nothing is interpolated twice. What is shown is shifted back.
- Change. The difference between frame and average, in units of its noise, is summed over places
  as large as an atom and larger, in this frame and over the last ones. Where that is more than
  noise does, the average is given up for the frame itself; so an atom that hops is shown by one
  frame's electrons, and not as two halves. The unit is what nearly all places show, so noise that
  is correlated and small errors of registration do not look like change.
- A cut. A frame in which the scene isn't found, or that differs nearly everywhere, starts anew.

Memory is bounded: six images. Every answer follows from the frames pushed since the last reset.
Noise that stays where it is while the scene drifts (a gain pattern) belongs corrected before.

Averaging while counting variances: R. E. Kalman, J. Basic Eng. 82 (1960) 35. The likelihood of
shifts: C. H. Knapp, G. C. Carter, IEEE Trans. Acoust. 24 (1976) 320.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from inference.api import BadImage
from inference.restore.api import Frame, Grey, MapRestorer, NoiseModel, Restored, Restorer, grey_of
from inference.restore.colour import noise_for_filters

FloatArray = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]  # (2,): down, to the right
Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8]  # (h, w), 0 or 1

_Number = TypeVar("_Number", np.float32, np.uint8)
_Pixels = Annotated[float, Field(gt=0.0, le=100.0)]

_REACH_PX: Final = 4  # of the interpolating kernel, to either side
_TAPER_RATIO: Final = 0.125  # of a side, at either end
_LARGEST_SIDE_PX: Final = 1_024  # registration bins larger frames
_SMALLEST_SHIFT_PX: Final = 0.02  # not worth an interpolation
_CHANCE: Final = 2.5  # standard deviations
_LEFT_RATIO: Final = 0.05  # of the noise's power, after a restorer that doesn't say
_ODDS: Final = 4.0  # natural logarithm: a second shift this much less probable is ruled out
_SEEN_SIGMA: Final = 12.0  # a scene this strong must be found in a frame that shows it
_FOUND_SIGMA: Final = 4.5  # beyond the best of many shifts of a scene that isn't there
_SIZES_PX: Final = (1.5, 4.0)  # one sd of the places over which a change is summed
_SOFT_PX: Final = 1.0  # between what is shown from the average and from the frame alone
_YOUNG_FRAMES: Final = (2.0, 6.0)  # shown from the frame alone up to, from the average beyond
_FINE_PX: Final = 3.0  # larger places are looked for on every other pixel
_KEPT: Final = 0.6  # of a place's evidence, from one frame to the next
_FALSE_PLACES: Final = 0.08  # taken for changes by chance, a frame
_NEAR_SIGMA: Final = 2.8  # enough near a sure change: what hopped left a gap behind
_AGAIN_SIGMA: Final = 2.0  # enough where the frame before was doubted,
_AGAIN_RATIO: Final = 0.4  # if it's also this share of what raised the doubt
_NEAR_PX: Final = 12
_CUT_RATIO: Final = 0.4  # of all pixels changed
_BLOCK_PX: Final = 16
_NOISE_EVERY_FRAMES: Final = 8


class RecursiveSettings(BaseModel):
    """How long to remember, and how a scene may move."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    most_frames: int = Field(default=32, ge=2, le=128)  # that an average may be worth
    speed_px: _Pixels = 2.0  # of drift between two frames, before anything is known: one sd
    unrest_px: _Pixels = 0.3  # by which a frame strays from steady drift: one sd


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """The average, all (h, w) float32 on one grid."""

    mean: Grey
    counts: Mask  # frames that each pixel was seen in, up to 255; 0: never
    fresh: Grey  # the last frame
    doubted: Mask  # where it differs from the average, and is shown instead of it
    level: Grey  # restored
    evidence: tuple[Grey, ...]  # of change, one a size, unit variance


@dataclass(frozen=True, slots=True, eq=False)
class _Track:
    """Position and speed of the scene, down and right each, and their covariance."""

    place_px: Vector
    speed_px: Vector
    covariance: Matrix  # (4, 4): place, speed


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """How a frame lies to a reference."""

    shift_px: Vector  # of the scene in the frame: down, to the right
    information: Matrix  # (2, 2), from the frame alone: inverse covariance, 1 / px^2
    amplitude: float  # of the reference within the frame; 1: all of it, 0: none
    amplitude_sigma: float
    odds: float  # natural logarithm, over the next best; inf where there's no other


class Recursive:
    """Averages a stream and restores the average; see `api.LiveRestorer`."""

    def __init__(self, restorer: Restorer, settings: RecursiveSettings | None = None) -> None:
        self._restorer = restorer
        self._settings = settings or RecursiveSettings()
        self.reset()

    @property
    def name(self) -> str:
        """The restorer's, and that it was given an average."""
        return f"{self._restorer.name}_recursive"

    @property
    def effective_frames(self) -> float:
        """Frames that the average is worth; the median over the frame. 0 before the first."""
        return self._effective_frames

    @property
    def drift_px(self) -> tuple[float, float]:
        """Of the scene since it was first seen: to the right, and down."""
        return float(self._track.place_px[1]), float(self._track.place_px[0])

    @property
    def drift_sigma_px(self) -> float:
        """One standard deviation of the last step's registration, the larger axis."""
        return float(np.sqrt(np.linalg.eigvalsh(self._track.covariance[:2, :2]).max()))

    @property
    def noise(self) -> NoiseModel | None:
        """Of one frame; None before the first."""
        return self._noise

    @property
    def restarts(self) -> int:
        """How often the average was given up altogether: cuts, and drift that nobody knew."""
        return self._restarts

    def reset(self) -> None:
        """Forget all frames."""
        self._scene: _Scene | None = None
        self._noise: NoiseModel | None = None
        self._noise_age_frames = 0
        self._grid_px = np.zeros(2, np.int64)
        self._scales = [1.0] * len(_SIZES_PX)  # of what a change of that size usually comes to
        self._compared_frames = 0
        self._effective_frames = 0.0
        self._level_variance_dn2 = 0.0
        self._restarts = 0
        self._track = self._unknown(np.zeros(2))

    def push(self, frame: Frame, noise: NoiseModel | None = None) -> Restored:
        """Take in one frame and restore the scene as it lies in it."""
        grey = grey_of(frame)
        model = self._noise_of(grey, noise)
        scene = self._scene
        if scene is None or scene.mean.shape != grey.shape:
            if scene is not None:
                self.reset()
            return self._begin(grey, model, "")
        variance = model.variance_dn2(float(cv2.mean(grey)[0]))
        self._track = _predicted(self._track, self._settings.unrest_px)
        scene = self._regridded(scene)
        expected = self._track.place_px - self._grid_px
        found = registered(
            scene.level,
            grey,
            float(variance),
            expected,
            self._track.covariance[:2, :2],
            self._level_variance_dn2,
        )
        if found.amplitude_sigma < 1.0 / _SEEN_SIGMA and found.amplitude < (
            _FOUND_SIGMA * found.amplitude_sigma
        ):
            self._track = self._unknown(np.zeros(2))
            return self._begin(grey, model, "another scene: averaging starts anew")
        if found.odds < _ODDS:
            self._track = self._unknown(self._track.place_px)
            return self._begin(grey, model, "drift is not known: averaging starts anew")
        self._track = _updated(self._track, found, self._grid_px)
        scene = self._regridded(scene)
        rest_px = self._track.place_px - self._grid_px
        aligned = shifted(grey, -rest_px)
        averaged = self._averaged(scene, aligned, model)
        if averaged is None:
            self._track = self._unknown(np.zeros(2))
            return self._begin(grey, model, "nearly everything changed: averaging starts anew")
        return self._shown(averaged, model)

    def _noise_of(self, grey: Grey, noise: NoiseModel | None) -> NoiseModel:
        """Noise is a detector's: from frame to frame it stays, so it's not estimated on each."""
        if noise is not None:
            self._noise = noise
        elif self._noise is None or self._noise_age_frames >= _NOISE_EVERY_FRAMES:
            self._noise = noise_for_filters(grey)
            self._noise_age_frames = 0
        self._noise_age_frames += 1
        return self._noise

    def _unknown(self, place_px: Vector) -> _Track:
        sigma = self._settings.speed_px
        return _Track(place_px, np.zeros(2), np.diag([0.0, 0.0, sigma**2, sigma**2]))

    def _begin(self, grey: Grey, noise: NoiseModel, reason: str) -> Restored:
        """One frame is all there is."""
        self._restarts += bool(reason)
        self._grid_px = np.rint(self._track.place_px).astype(np.int64)
        self._track = replace(self._track, place_px=self._grid_px.astype(np.float64))
        answer = self._restorer.restore(grey, noise)
        nothing = np.zeros_like(grey)
        self._scene = _Scene(
            mean=grey,
            counts=np.ones(grey.shape, np.uint8),
            fresh=grey,
            doubted=np.zeros(grey.shape, np.uint8),
            level=answer.image,
            evidence=tuple(np.zeros_like(_summed(nothing, size_px)) for size_px in _SIZES_PX),
        )
        self._effective_frames = 1.0
        self._level_variance_dn2 = _left(answer, noise, 1.0)
        return replace(answer, reason="; ".join(filter(None, (answer.reason, reason))))

    def _regridded(self, scene: _Scene) -> _Scene:
        """The scene on the grid of whole pixels nearest to where it is."""
        wanted = np.rint(self._track.place_px).astype(np.int64)
        by = wanted - self._grid_px
        if not by.any():
            return scene
        self._grid_px = wanted
        level = float(cv2.mean(scene.level)[0])
        return _Scene(
            mean=_rolled(scene.mean, by, level),
            counts=_rolled(scene.counts, by, 0),
            fresh=_rolled(scene.fresh, by, level),
            doubted=_rolled(scene.doubted, by, 0),
            level=_rolled(scene.level, by, level),
            evidence=tuple(
                _rolled(one, by // _step(size_px), 0.0)
                for size_px, one in zip(_SIZES_PX, scene.evidence, strict=True)
            ),
        )

    def _averaged(self, scene: _Scene, aligned: Grey, noise: NoiseModel) -> _Scene | None:
        """The scene with one more frame in it; None if hardly anything is as it was."""
        worth, share = _weights(self._settings.most_frames)
        is_new = scene.counts == 0
        gap = aligned - scene.mean
        np.copyto(gap, np.float32(0.0), where=is_new)
        flicker = _flicker(gap)
        gap -= flicker
        np.copyto(gap, np.float32(0.0), where=is_new)
        level = np.asarray(cv2.GaussianBlur(scene.mean, (5, 5), 1.0), np.float32)
        spread = noise.variance_dn2(level + flicker)
        spread *= _looked_up(scene.counts, 1.0 + 1.0 / np.maximum(worth, 1.0))
        now, lately = self._evidence(scene, np.asarray(gap / np.sqrt(spread), dtype=np.float32))
        doubted = _changed(aligned.shape, now, lately, self._scales)
        if float(cv2.mean(doubted)[0]) > _CUT_RATIO:
            return None
        mean = aligned - gap * _looked_up(scene.counts, 1.0 - share)
        counts = np.minimum(scene.counts, np.uint8(254)) + np.uint8(1)
        # A doubt is raised by one frame, shown at once, and confirmed by the next one or forgotten.
        was_doubted = scene.doubted > 0
        if was_doubted.any():
            is_confirmed = _confirmed(was_doubted, now, scene.evidence, self._scales)
            change = np.float32(0.5) * (scene.fresh - scene.mean + gap)
            np.copyto(mean, scene.mean + (flicker + change), where=is_confirmed)
            np.copyto(counts, np.uint8(2), where=is_confirmed)
            is_settled = ~was_doubted
            lately = tuple(
                one
                * is_settled[:: _step(size_px), :: _step(size_px)][: one.shape[0], : one.shape[1]]
                for size_px, one in zip(_SIZES_PX, lately, strict=True)
            )
        np.copyto(doubted, np.uint8(0), where=was_doubted | is_new)
        is_doubted = doubted > 0
        np.copyto(mean, scene.mean + flicker, where=is_doubted)
        np.copyto(counts, scene.counts, where=is_doubted)
        return _Scene(mean, counts, aligned, doubted, scene.level, lately)

    def _evidence(self, scene: _Scene, surprise: Grey) -> tuple[tuple[Grey, ...], tuple[Grey, ...]]:
        """Of change, in this frame and in the last ones; one image for each size of place."""
        now, lately = [], []
        for i, size_px in enumerate(_SIZES_PX):
            summed = _summed(surprise, size_px)
            usual = 1.4826 * float(np.median(np.abs(summed[::5, ::5])))
            weight = max(0.2, 1.0 / (1.0 + self._compared_frames))
            self._scales[i] += weight * (min(max(usual, 0.8), 3.0) - self._scales[i])
            now.append(summed)
            fresh = np.float32(math.sqrt(1.0 - _KEPT**2))
            lately.append(np.float32(_KEPT) * scene.evidence[i] + fresh * summed)
        self._compared_frames += 1
        return tuple(now), tuple(lately)

    def restored_by(self, restorer: Restorer) -> Restored:
        """The scene as another restorer has it, as it lies in the last frame.

        Raises BadImage before the first frame.
        """
        if self._scene is None or self._noise is None:
            raise BadImage("no frame was pushed yet")
        return self._seen_by(restorer, self._scene, self._noise)[1]

    def _shown(self, scene: _Scene, noise: NoiseModel) -> Restored:
        """Restore the average, and keep it as what the next frame is compared with."""
        level, answer = self._seen_by(self._restorer, scene, noise)
        worth, _ = self._worth(scene)
        self._scene = replace(scene, level=level)
        self._level_variance_dn2 = _left(answer, noise, worth)
        self._effective_frames = worth
        return answer

    def _worth(self, scene: _Scene) -> tuple[float, Mask]:
        """Frames that the average is worth, and how often each pixel was seen as it is shown."""
        counts = np.where(scene.doubted > 0, np.uint8(1), scene.counts)
        table, _ = _weights(self._settings.most_frames)
        return float(table[int(np.median(counts[::8, ::8]))]), counts

    def _seen_by(
        self, restorer: Restorer, scene: _Scene, noise: NoiseModel
    ) -> tuple[Grey, Restored]:
        """The average restored: on its own grid, and shifted to where the frame has it."""
        worth, counts = self._worth(scene)
        if isinstance(restorer, MapRestorer) and restorer.takes_sigma:
            table, _ = _weights(self._settings.most_frames)
            sigma = np.sqrt(noise.variance_dn2(scene.level))
            sigma *= _looked_up(counts, 1.0 / np.sqrt(table))
            shown = np.where(scene.doubted > 0, scene.fresh, scene.mean)
            answer = restorer.restore(shown, noise, sigma)
        else:
            answer = _blended(restorer, scene, counts, noise, worth)
        rest_px = self._track.place_px - self._grid_px
        sigma_image = None if answer.sigma is None else shifted(answer.sigma, rest_px)
        return answer.image, replace(
            answer, image=shifted(answer.image, rest_px), sigma=sigma_image
        )


# --- averages --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _weights(most_frames: int) -> tuple[FloatArray, FloatArray]:
    """By the number of times that a pixel was seen: frames it's worth, and the next one's share.

    (256,) each. All frames weigh alike at first, the newest more than the older ones then.
    """
    worth, share = np.ones(256), np.ones(256)
    for seen in range(1, 256):
        share[seen] = max(1.0 / (worth[seen] + 1.0), 2.0 / (most_frames + 1.0))
        if seen < 255:
            worth[seen + 1] = 1.0 / ((1.0 - share[seen]) ** 2 / worth[seen] + share[seen] ** 2)
    return worth, share


def _looked_up(counts: Mask, table: FloatArray) -> Grey:
    return np.asarray(cv2.LUT(counts, table.astype(np.float32)), dtype=np.float32)


def averaged_noise(noise: NoiseModel, frames: float) -> NoiseModel:
    """Noise of an average that is worth so many frames."""
    return replace(
        noise,
        gain_dn=noise.gain_dn / frames,
        gain_sigma_dn=noise.gain_sigma_dn / frames,
        read_noise_dn=noise.read_noise_dn / math.sqrt(frames),
    )


def _blended(
    restorer: Restorer, scene: _Scene, counts: Mask, noise: NoiseModel, worth: float
) -> Restored:
    """The average restored, but the single frame restored where the average is young.

    One strength of noise for the whole frame: the average's, which is more in such places.
    """
    answer = restorer.restore(scene.mean, averaged_noise(noise, worth))
    seen = np.arange(256.0)
    full, none = _YOUNG_FRAMES[0], min(_YOUNG_FRAMES[1], worth)
    table = np.clip((none - seen) / max(none - full, 1e-6), 0.0, 1.0) * (seen < worth)
    part = _looked_up(counts, table)
    if not part.any():
        return answer
    single = restorer.restore(scene.fresh, noise)
    part = np.asarray(cv2.GaussianBlur(part, (0, 0), _SOFT_PX), dtype=np.float32)
    image = answer.image + part * (single.image - answer.image)
    sigma = None
    if answer.sigma is not None and single.sigma is not None:
        sigma = answer.sigma + part * (single.sigma - answer.sigma)
    return replace(answer, image=image, sigma=sigma)


def _left(answer: Restored, noise: NoiseModel, frames: float) -> float:
    """Variance of what is left of the noise, a pixel."""
    if answer.sigma is not None:
        return float(np.mean(np.square(answer.sigma[::4, ::4], dtype=np.float64)))
    level = float(cv2.mean(answer.image)[0])
    return _LEFT_RATIO * float(noise.variance_dn2(level)) / frames


# --- change ----------------------------------------------------------------------------------


def _summed(surprise: Grey, size_px: float) -> Grey:
    """Sums over places, unit variance for unit white noise; (h, w), or half of it."""
    if _step(size_px) == 2:
        halves = surprise.shape[1] // 2, surprise.shape[0] // 2
        even = surprise[: 2 * halves[1], : 2 * halves[0]]
        surprise = 2.0 * cv2.resize(even, halves, interpolation=cv2.INTER_AREA)
        size_px /= 2.0
    side = 2 * math.ceil(2.5 * size_px) + 1
    kernel = cv2.getGaussianKernel(side, size_px, cv2.CV_32F)
    kernel = kernel / np.float32(np.linalg.norm(kernel))
    summed = cv2.sepFilter2D(surprise, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(summed, dtype=np.float32)


@functools.lru_cache(maxsize=4)
def _sure_sigma(height: int, width: int) -> float:
    """What the largest sum in a frame of noise exceeds once in 1 / _FALSE_PLACES frames.

    Expected number of peaks of a smooth Gaussian field above t: area t exp(-t^2 / 2) / (2 pi)^1.5
    times the variance of its slope, here 1 / (2 size^2) (R. J. Adler, The Geometry of Random
    Fields, 1981, ch. 6); both signs, in this frame and over the last ones.
    """
    density = sum(1.0 / (2.0 * size_px**2) for size_px in _SIZES_PX)
    scale = 4.0 * height * width * density / (2.0 * math.pi) ** 1.5
    low, high = 2.0, 9.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        too_many = scale * middle * math.exp(-0.5 * middle**2) > _FALSE_PLACES
        low, high = (middle, high) if too_many else (low, middle)
    return high


def _step(size_px: float) -> int:
    return 2 if size_px >= _FINE_PX else 1


def _changed(
    shape: tuple[int, int],
    now: Sequence[Grey],
    lately: Sequence[Grey],
    usual: Sequence[float],
) -> Mask:
    """Which pixels are not what they were, by evidence and what it usually comes to."""
    sure = np.zeros(shape, np.uint8)
    likely = np.zeros(shape, np.uint8)
    for size_px, one, other, scale in zip(_SIZES_PX, now, lately, usual, strict=True):
        larger = np.maximum(np.abs(one), np.abs(other))
        for mask, least in ((sure, _sure_sigma(*shape)), (likely, _NEAR_SIGMA)):
            mask |= _spread((larger > least * scale).astype(np.uint8), 1.5 * size_px, shape)
    if not sure.any():
        return sure
    return np.asarray(sure | (likely & _grown(sure, _NEAR_PX)), dtype=np.uint8)


def _confirmed(
    doubted: npt.NDArray[np.bool_],
    now: Sequence[Grey],
    doubt: Sequence[Grey],
    usual: Sequence[float],
) -> npt.NDArray[np.bool_]:
    """Where a doubt that the frame before raised is borne out: as it was, and about as strong."""
    height, width = now[0].shape
    likely = np.zeros((height, width), np.uint8)
    for size_px, one, other, scale in zip(_SIZES_PX, now, doubt, usual, strict=True):
        step = _step(size_px)
        at = np.nonzero(doubted[::step, ::step][: one.shape[0], : one.shape[1]])
        here, before = one[at], other[at]
        least = np.maximum(_AGAIN_SIGMA * scale, _AGAIN_RATIO * np.abs(before))
        is_again = np.zeros(one.shape, np.uint8)
        is_again[at] = np.copysign(here, here * before) > least
        likely |= _spread(is_again, size_px, (height, width))
    return np.asarray((likely > 0) & doubted, dtype=np.bool_)


def _spread(mask: Mask, radius_px: float, shape: tuple[int, int]) -> Mask:
    """A mask, whole or half the size, grown to whole size."""
    if mask.shape == shape:
        return _grown(mask, math.ceil(radius_px))
    coarse = _grown(mask, math.ceil(radius_px / 2.0))
    size = shape[1], shape[0]
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)


def _flicker(gap: Grey) -> np.float32:
    """How much brighter the frame is; by blocks, whose median is not askew as that of counts is."""
    height, width = gap.shape
    size = max(width // _BLOCK_PX, 1), max(height // _BLOCK_PX, 1)
    return np.float32(np.median(cv2.resize(gap, size, interpolation=cv2.INTER_AREA)))


def _grown(mask: Mask, radius_px: int) -> Mask:
    side = 2 * radius_px + 1
    return np.asarray(cv2.dilate(mask, np.ones((side, side), np.uint8)), dtype=np.uint8)


# --- drift -----------------------------------------------------------------------------------


def _predicted(track: _Track, unrest_px: float) -> _Track:
    """Where the scene will be a frame later."""
    step = np.eye(4)
    step[:2, 2:] = np.eye(2)
    unrest = unrest_px**2
    added = np.diag([unrest, unrest, 0.1 * unrest, 0.1 * unrest])
    covariance = step @ track.covariance @ step.T + added
    return _Track(track.place_px + track.speed_px, track.speed_px, covariance)


def _updated(track: _Track, found: Shift, grid_px: npt.NDArray[np.int64]) -> _Track:
    """What a registration says, taken in; its shift is already the most probable of both."""
    prior = track.covariance[:2, :2]
    precision = np.linalg.inv(prior)
    posterior = np.linalg.inv(precision + found.information)
    gain = track.covariance[:, :2] @ precision
    step = gain @ (found.shift_px + grid_px - track.place_px)
    covariance = track.covariance - gain @ (prior - posterior) @ gain.T
    return _Track(track.place_px + step[:2], track.speed_px + step[2:], covariance)


def registered(
    reference: Grey,
    frame: Grey,
    variance_dn2: float,
    expected_px: Vector,
    covariance: Matrix,
    reference_variance_dn2: float = 0.0,
) -> Shift:
    """The most probable shift of a reference within a noisy frame.

    expected_px, covariance: what is known before, down and right, normal. The variances are those
    of a pixel's noise.
    """
    factor = -(-max(frame.shape) // _LARGEST_SIDE_PX)
    seen, known = _prepared(frame, factor), _prepared(reference, factor)
    variance = max(variance_dn2 / factor**2, 1e-12)
    # Packed as half a spectrum: an order of magnitude quicker than complex numbers.
    product = cv2.mulSpectrums(cv2.dft(seen), cv2.dft(known), 0, conjB=True)
    lags = np.asarray(cv2.idft(product, flags=cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT))
    own = max(float(np.square(known).sum()), 1e-6 * variance)
    height, width = seen.shape
    centre = np.rint(expected_px / factor).astype(int)
    spread = 4.0 * np.sqrt(np.diag(covariance)) / factor
    reach = np.minimum(np.ceil(spread).astype(int) + 3, np.array([height, width]) // 4)
    rows = np.arange(centre[0] - reach[0], centre[0] + reach[0] + 1)
    columns = np.arange(centre[1] - reach[1], centre[1] + reach[1] + 1)
    lags = lags[np.ix_(rows % height, columns % width)].astype(np.float64) / variance
    precision = np.linalg.inv(covariance) * factor**2
    off_y = (rows - expected_px[0] / factor)[:, None]
    off_x = (columns - expected_px[1] / factor)[None, :]
    prior = -0.5 * (
        precision[0, 0] * off_y**2
        + 2.0 * precision[0, 1] * off_y * off_x
        + precision[1, 1] * off_x**2
    )
    # Of unknown strength: the likelihood at the best one, for each shift.
    likelihood = 0.5 * lags * np.abs(lags) * (variance / own)
    peaks = _peaks(likelihood + prior)
    apart, near = likelihood[peaks[:, 0], peaks[:, 1]], prior[peaks[:, 0], peaks[:, 1]]
    # Noise left in the reference makes one period of a lattice seem likelier than another; what
    # is no more than that is left to what was known before.
    left = math.sqrt(2.0 * reference_variance_dn2 / variance_dn2 * seen.size)
    chance = _CHANCE * left * max(float(lags[tuple(peaks[0])]) * variance / own, 0.0)
    is_rival = apart >= apart.max() - chance
    chosen = int(np.argmax(np.where(is_rival, near, -np.inf)))
    ahead = apart[chosen] - apart
    ahead = np.copysign(np.maximum(np.abs(ahead) - chance, 0.0), ahead) + near[chosen] - near
    odds = float(np.delete(ahead, chosen).min(initial=math.inf))
    best = int(peaks[chosen, 0]), int(peaks[chosen, 1])
    amplitude = max(float(lags[best]) * variance / own, 0.0)
    lags *= amplitude
    # Between whole pixels: Newton steps on what is interpolated.
    first = np.array([rows[0], columns[0]])
    at = np.array(best, dtype=np.float64)
    for _ in range(3):
        gradient, bend = _curved(lags, at)
        slope = gradient - precision @ (first + at - expected_px / factor)
        step = np.linalg.solve(_definite(-bend) + precision, slope)
        at = np.clip(at + np.clip(step, -0.5, 0.5), np.array(best) - 1.0, np.array(best) + 1.0)
    _, bend = _curved(lags, at)
    return Shift(
        shift_px=(first + at) * factor,
        information=_definite(-bend) / factor**2,
        amplitude=amplitude,
        amplitude_sigma=math.sqrt(variance / own),
        odds=odds,
    )


def _peaks(total: Matrix) -> npt.NDArray[np.intp]:
    """Where the local maxima are, (n, 2), the largest first; the edges count for nothing."""
    inner = total[1:-1, 1:-1]
    values = np.ascontiguousarray(total, dtype=np.float32)
    largest = np.asarray(cv2.dilate(values, np.ones((3, 3), np.uint8)))[1:-1, 1:-1]
    found = np.argwhere(values[1:-1, 1:-1] >= largest)
    if not len(found):
        found = np.argwhere(inner == inner.max())
    heights = inner[found[:, 0], found[:, 1]]
    return np.asarray(found[np.argsort(-heights, kind="stable")] + 1)


def _curved(values: Matrix, at: Vector) -> tuple[Vector, Matrix]:
    """Gradient and second derivatives of band-limited values, between their places."""
    step = 0.25
    offsets = np.array([-step, 0.0, step])
    rows = _sinc_rows(at[0] + offsets, values.shape[0])  # (3, rows)
    columns = _sinc_rows(at[1] + offsets, values.shape[1])
    v = rows @ values @ columns.T  # (3, 3)
    gradient = np.array([v[2, 1] - v[0, 1], v[1, 2] - v[1, 0]]) / (2.0 * step)
    yy = (v[2, 1] - 2.0 * v[1, 1] + v[0, 1]) / step**2
    xx = (v[1, 2] - 2.0 * v[1, 1] + v[1, 0]) / step**2
    xy = (v[2, 2] - v[2, 0] - v[0, 2] + v[0, 0]) / (4.0 * step**2)
    return gradient, np.array([[yy, xy], [xy, xx]])


def _sinc_rows(at: Vector, length: int) -> Matrix:
    away = at[:, None] - np.arange(length)[None, :]
    weight = np.sinc(away) * np.sinc(away / _REACH_PX) * (np.abs(away) < _REACH_PX)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True), dtype=np.float64)


def _definite(matrix: Matrix) -> Matrix:
    """The nearest matrix that is an information: no negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T, dtype=np.float64)


def _prepared(grey: Grey, factor: int) -> Grey:
    """Binned, its mean taken away, and faded at the edges."""
    if factor > 1:
        height, width = grey.shape[0] // factor, grey.shape[1] // factor
        inner = grey[: height * factor, : width * factor]
        grey = cv2.resize(inner, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    level = np.float32(cv2.mean(grey)[0])
    return np.asarray((grey - level) * _window(*grey.shape), dtype=np.float32)


@functools.lru_cache(maxsize=2)  # 4 bytes a pixel
def _window(height: int, width: int) -> Grey:
    sides = []
    for length in (height, width):
        edge = max(1, round(_TAPER_RATIO * length))
        ramp = 0.5 - 0.5 * np.cos(math.pi * (np.arange(edge) + 0.5) / edge)
        side = np.ones(length)
        side[:edge], side[-edge:] = ramp, ramp[::-1]
        sides.append(side)
    return np.outer(*sides).astype(np.float32)


# --- shifts ----------------------------------------------------------------------------------


def shifted(grey: Grey, by_px: Vector) -> Grey:
    """An image moved down and right by a fraction of a pixel; its edges are mirrored."""
    if float(np.abs(by_px).max()) < _SMALLEST_SHIFT_PX:
        return grey
    taps = np.arange(-_REACH_PX, _REACH_PX + 1)
    kernels = []
    for by in by_px:
        away = taps + by
        kernel = np.sinc(away) * np.sinc(away / (_REACH_PX + 0.5))
        kernels.append((kernel / kernel.sum()).astype(np.float32))
    return np.asarray(
        cv2.sepFilter2D(grey, cv2.CV_32F, kernels[1], kernels[0], borderType=cv2.BORDER_REFLECT),
        dtype=np.float32,
    )


def _rolled(
    grey: npt.NDArray[_Number], by_px: npt.NDArray[np.int64], fill: float
) -> npt.NDArray[_Number]:
    """Moved by whole pixels; what comes in from outside gets one value."""
    moved = np.full_like(grey, fill)
    height, width = grey.shape
    down, right = int(by_px[0]), int(by_px[1])
    if abs(down) >= height or abs(right) >= width:
        return moved
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = grey[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved
