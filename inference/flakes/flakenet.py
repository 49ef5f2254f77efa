"""FlakeNet: learnt shape, texture and dirt joined to the physics of the contrast ladder.

The physics detector knows colours and nothing else: a rag of glue whose colour happens to lie on
the ladder is a flake to it, and a flake whose colour was calibrated wrongly is none. The network
has seen a great many simulated chips under a great many microscopes, and judges every pixel of the
half-size image from its surroundings: bare, 1, 2, 3, 4, 5-6 layers, thicker, or dirt. It is shown
the ladder's evidence instead of colours (`inference.flakes.evidence`), so it serves any crystal.

How the two are joined: the physics' segmentation proposes terraces with borders at full resolution;
the network's own regions are proposals too, for what the physics missed. The probability that a
proposal is a flake and rightly cut follows from the network's posterior inside it and from the
borders that it sees along the edge and inside.

Who leads depends on the calibration. With a calibrated ladder nothing beats it: on real photographs
the physics' masks and layer numbers stay, the network lowers the score of what it takes for dirt
and adds what it is sure of (measured on 10 real photographs: AP50 .85 and layers right .97 either
way, and the network alone .73). With a nominal ladder under an unknown lamp and camera the network
leads: AP50 .69 against .61 on simulated laboratories that it never saw.

Where the network says that the frame is unlike anything it knows (`oddity` > 0), the physics
detector's answer is given instead, flagged, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadModel, Calibration, Detection, FlakeAnswer, ImageRGB
from inference.engine import Engine
from inference.flakes.calibration import SubstrateCalibration
from inference.flakes.evidence import (
    CLASSES,
    DIRT_CLASS,
    FIVE_CLASS,
    LEAST_CONTENT,
    NO_CONTENT,
    THICK_CLASS,
    evidence,
    rungs_of,
)
from inference.flakes.frame import PreparedFrame
from inference.flakes.ladder import Ladder
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, wafers_of

FloatArray = npt.NDArray[np.float32]
_Pixels = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]  # rows, columns

_LOGITS = 4 * len(CLASSES)
_WORTH_LOOKING = -3.0  # log odds against bare substrate below which a place is left out
_KERNEL3 = np.ones((3, 3), dtype=np.uint8)
_INNER_PX = 12  # half-resolution pixels that a judgement should rest on
_LEAST_FLAKE = 0.15  # of the mean posterior: less is dirt or substrate
_CALIBRATED = 0.25  # confidence of a calibration from which the physics' own verdict leads
_ADDED = 0.8  # probability of the network's own regions to be added to a calibrated answer
_ADDED_SCORE = 0.3  # ... with so much of it as score: the scale of the physics' scores
_OWN = 0.4  # the same where nothing is calibrated and the network leads
_LEAST_SCORE = 0.1  # there
_DOUBTED = 0.3  # share of the physics' score that is left where the network sees no flake at all
_NET_LAYERS = 0.25  # weight of the network's layer number beside an uncalibrated ladder's
# Logistic regressions on proposals in held-out simulated frames of the training domain, for the
# physics' terraces and for the network's own; terms in the order of `Signs`, then 1.
_PHYSICS_WEIGHTS = (0.90, -0.03, 2.76, 3.61, -2.32, 0.40, 0.50, -9.22)
_OWN_WEIGHTS = (0.66, 0.14, 1.94, 1.22, -0.53, -2.41, 0.28, -5.83)
# Photographs of 22 real chips reach 0.3, crowded ones 1.6 and 3.4, where simulated ones stay below
# 3; out of focus or under strange residue they lie mostly at 4 ... 18, other micrographs beyond.
ODDITY_OF_ORDINARY = 3.5
_OWN_SHARE = 0.45  # probability from which a pixel belongs to a region of the network's own
_SAME_SHARE = 0.5  # of the smaller one's pixels: two proposals for the same thing
_NAMED_LAYERS = 6
_GREY_SHARE = 0.995  # of the pixels: equal channels there are no accident


UNKNOWN_TO_NETWORK = "unlike any chip that the network knows"
"""So begins the reason of an answer that is the physics' alone because the frame is odd."""


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """What the network says of one photograph, for one material, on the half-resolution grid."""

    best: npt.NDArray[np.uint8]  # (h, w) index into CLASSES
    places: npt.NDArray[np.int32]  # (h // 2, w // 2) its n in `shares`, -1: bare substrate
    shares: FloatArray  # (4, len(CLASSES), n) probabilities of the four pixels of a place
    borders: FloatArray  # (4, n) probability of a border
    oddity: float  # > 0: unlike most simulated photographs of chips

    def at(
        self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
    ) -> tuple[FloatArray, FloatArray]:
        """Probabilities of half-resolution pixels, (n, len(CLASSES)), and of a border, (n,)."""
        place, part = self.places[rows >> 1, columns >> 1], (rows & 1) * 2 + (columns & 1)
        if not self.borders.size:
            shares = np.zeros((len(rows), len(CLASSES)), dtype=np.float32)
            shares[:, 0] = 1.0
            return shares, np.zeros(len(rows), dtype=np.float32)
        shares = self.shares[part, :, place]
        borders = self.borders[part, place]
        bare = place < 0
        if bare.any():
            shares[bare] = 0.0
            shares[bare, 0] = 1.0
            borders[bare] = 0.0
        return shares, borders

    def plane(self, number: int, rows: slice, columns: slice) -> FloatArray:
        """Probability of one class in a box of half-resolution pixels."""
        y, x = np.mgrid[rows, columns]
        return np.asarray(self.at(y.ravel(), x.ravel())[0][:, number].reshape(y.shape))


@dataclass(frozen=True, slots=True, eq=False)
class FlakeView:
    """What the network makes of one photograph."""

    answer: FlakeAnswer  # the one to use
    is_physics: bool  # the network did not speak: there was nothing to see, or it does not know it
    oddity: float  # > 0: unlike any photograph of a chip
    dirt_share: float  # of the photograph that is neither substrate nor the crystals


@dataclass(frozen=True, slots=True)
class Signs:
    """What tells a proposal that is a flake, rightly cut, from others; each 0..1 but the area."""

    flake: float  # mean probability of its inner pixels to be any flake
    wanted: float  # of these, that it is not too thick
    agreement: float  # of these, that they are of its own class
    rim_border: float  # mean probability of a border along its edge
    inner_border: float  # and inside
    rim_share: float  # pixels of its edge over all
    area_px: float
    is_own: bool  # the network's proposal, not the physics'

    def probability(self) -> float:
        """That it overlaps a real flake by half or more."""
        terms = (
            _odds(self.flake),
            _odds(self.wanted),
            self.agreement,
            self.rim_border,
            self.inner_border,
            self.rim_share,
            math.log(self.area_px),
            1.0,
        )
        weights = _OWN_WEIGHTS if self.is_own else _PHYSICS_WEIGHTS
        value = sum(w * t for w, t in zip(weights, terms, strict=True))
        return 1.0 / (1.0 + math.exp(-value))


def _odds(share: float) -> float:
    return math.log((share + 1e-3) / (1.0 - share + 1e-3))


def decoded(answer: FloatArray, height: int, width: int) -> Posterior:
    """The network's planes, (OUTPUTS, rows, columns), for a half-size image of (height, width)."""
    rows, columns = answer.shape[1:]
    logits = answer[:_LOGITS].reshape(4, len(CLASSES), rows * columns)
    other = logits[0, 1].copy()
    for k in range(4):
        for number in range(1, len(CLASSES)):
            np.maximum(other, logits[k, number], out=other)
    bare = np.minimum(np.minimum(logits[0, 0], logits[1, 0]), np.minimum(*logits[2:, 0]))
    looked_at = np.flatnonzero(other - bare > _WORTH_LOOKING)
    places = np.full(rows * columns, -1, dtype=np.int32)
    places[looked_at] = np.arange(looked_at.size)
    shares = np.take(logits, looked_at, axis=2)  # (4, classes, n)
    largest = shares[:, 0].copy()
    winner = np.zeros(largest.shape, dtype=np.uint8)
    for number in range(1, len(CLASSES)):
        winner[shares[:, number] > largest] = number
        np.maximum(largest, shares[:, number], out=largest)
    shares -= largest[:, None]
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=1)[:, None]
    best = np.zeros((2 * rows, 2 * columns), dtype=np.uint8)
    y, x = np.divmod(looked_at, columns)
    for k in range(4):
        best[2 * y + k // 2, 2 * x + k % 2] = winner[k]
    borders = np.take(answer[_LOGITS : _LOGITS + 4].reshape(4, -1), looked_at, axis=1)
    there = np.zeros(rows * columns, dtype=np.float32)
    there[looked_at] = 1.0 - shares[:, 0].mean(axis=0)
    there[there <= NO_CONTENT] = 0.0
    content = there.reshape(rows // 8, 8, columns // 8, 8).mean(axis=(1, 3)) + LEAST_CONTENT
    return Posterior(
        best=best[:height, :width],
        places=places.reshape(rows, columns),
        shares=shares,
        borders=np.asarray(1.0 / (1.0 + np.exp(-borders)), dtype=np.float32),
        oddity=float((content * answer[-1, ::8, ::8]).sum() / content.sum()),
    )


class FlakeNetDetector:
    """The `FlakeDetector` that has both: physics and learnt judgement."""

    def __init__(
        self,
        engine: Engine,
        settings: DetectorSettings,
        calibration: Calibration
        | SubstrateCalibration
        | Sequence[SubstrateCalibration]
        | None = None,
        flat_field: ImageRGB | None = None,
    ) -> None:
        """Arguments as of `PhysicsDetector`, and the engine that runs the network."""
        self._engine = engine
        self._settings = settings
        self._physics = PhysicsDetector(settings, calibration, flat_field)
        generous = settings.model_copy(
            update={
                "score_min": 0.0,
                "off_ladder_max": min(2.0 * settings.off_ladder_max, 0.5),
                "spread_max": min(1.6 * settings.spread_max, 0.5),
            }
        )
        self._generous = PhysicsDetector(generous, calibration, flat_field)

    @property
    def name(self) -> str:
        """Detector and materials."""
        return f"flakenet({'+'.join(self._settings.materials)})"

    @property
    def budget_s(self) -> float:
        """Declared time for one full frame on two cores."""
        return 0.060

    @property
    def settings(self) -> DetectorSettings:
        """As given."""
        return self._settings

    @property
    def calibration(self) -> Calibration:
        """In use unless a photograph's substrate asks for another of those given."""
        return self._physics.calibration

    def detect(self, pixels: ImageRGB, pixel_size_nm: float, bit_depth: int = 8) -> FlakeAnswer:
        """Find flakes; raises BadImage for anything but (h, w, 3) uint8 or uint16."""
        return self.view(pixels, pixel_size_nm, bit_depth).answer

    def view(self, pixels: ImageRGB, pixel_size_nm: float, bit_depth: int = 8) -> FlakeView:
        """Find flakes, and say what the network thinks of the frame."""
        frame = self._physics.prepared(pixels, pixel_size_nm, bit_depth)
        without = frame.background.reason or _without_colour(pixels, bit_depth)
        if without:
            answer = _flagged(self._physics.detect_prepared(frame), without)
            return FlakeView(answer, is_physics=True, oddity=math.inf, dirt_share=0.0)
        chosen = self._physics.wafer_of(frame)
        calibration = chosen.wafer.calibration
        is_calibrated = calibration.confidence >= _CALIBRATED
        proposer = self._physics if is_calibrated else self._generous
        # Physics proposes on one core while the network looks on the other.
        with ThreadPoolExecutor(1, "flakes.propose") as beside:
            proposing = beside.submit(proposer.detect_prepared, frame)
            seen = {steps.material: self._posterior(frame, steps) for steps in chosen.ladders}
            proposed = proposing.result()
        oddity = min(posterior.oddity for posterior in seen.values()) - ODDITY_OF_ORDINARY
        dirt = np.logical_and.reduce([p.best == DIRT_CLASS for p in seen.values()])
        dirt_share = float(dirt.mean())
        if oddity > 0.0:
            answer = proposed if is_calibrated else self._physics.detect_prepared(frame)
            answer = _flagged(answer, f"{UNKNOWN_TO_NETWORK}: physics only")
            return FlakeView(answer, is_physics=True, oddity=oddity, dirt_share=dirt_share)
        min_area_px = self._settings.min_area_um2 / (pixel_size_nm * 1e-3) ** 2
        judge = _Judge(self._settings, calibration, frame.background.shape_px, min_area_px)
        found: list[_Judged] = []
        for steps in chosen.ladders:
            posterior = seen[steps.material]
            theirs = [_Region.of(d) for d in proposed.detections if d.material == steps.material]
            mine = own_regions(posterior, frame, min_area_px)
            found += judge.judged([*theirs, *mine], posterior, steps)
        answer = replace(proposed, detections=tuple(_apart(found, is_calibrated)))
        return FlakeView(answer, is_physics=False, oddity=oddity, dirt_share=dirt_share)

    def _posterior(self, frame: PreparedFrame, steps: Ladder) -> Posterior:
        planes = evidence(frame.half, frame.inverse_half, rungs_of(steps), frame.full_scale)
        answer = self._engine.run(planes[None])
        if answer.shape != (1, _LOGITS + 5, *planes.shape[1:]) or not np.isfinite(answer).all():
            raise BadModel(
                f"FlakeNet promised finite {(1, _LOGITS + 5, *planes.shape[1:])}, "
                f"got {answer.shape}"
            )
        return decoded(answer[0], *frame.half.shape[:2])


def _flagged(answer: FlakeAnswer, reason: str) -> FlakeAnswer:
    """Not in distribution, for this reason unless there is another already."""
    return replace(answer, in_distribution=False, reason=answer.reason or reason)


def detector_that_leads(
    engine: Engine,
    settings: DetectorSettings,
    calibration: Calibration | SubstrateCalibration | Sequence[SubstrateCalibration] | None = None,
) -> PhysicsDetector | FlakeNetDetector:
    """The physics where every calibration holds, else FlakeNet.

    With a fitted ladder the network gained nothing on photographs, at three times the time
    (`evaluate flakes --detector network`, then `physics`); a nominal ladder is what it is for.
    """
    wafers = wafers_of(calibration, settings)
    if all(wafer.calibration.confidence >= _CALIBRATED for wafer in wafers):
        return PhysicsDetector(settings, calibration)
    return FlakeNetDetector(engine, settings, calibration)


def _without_colour(pixels: ImageRGB, bit_depth: int) -> str:
    """Why a photograph says nothing about layers: its channels are one; "" where they are not."""
    some = pixels[::16, ::3].astype(np.int32)
    apart = np.abs(some[..., ::2] - some[..., 1:2]).max(axis=2)
    if float((apart <= 2 ** max(bit_depth - 8, 0)).mean()) < _GREY_SHARE:
        return ""
    return "no colour: the channels are equal, and layers are counted by colour"


@dataclass(frozen=True, slots=True, eq=False)
class _Region:
    """A proposal: where something may lie, and which contrast it has."""

    mask: npt.NDArray[np.bool_]  # (h, w) inside its box
    left: int
    top: int
    contrast_rgb: tuple[float, float, float]
    physics: Detection | None  # None: the network's own

    @classmethod
    def of(cls, detection: Detection) -> _Region:
        """A terrace of the physics' segmentation."""
        return cls(
            detection.mask,
            detection.box_x_px,
            detection.box_y_px,
            detection.contrast_rgb,
            detection,
        )

    def parts(self, shape: tuple[int, int]) -> tuple[_Pixels, _Pixels]:
        """Half-resolution pixels inside it and along its edge; both may be few, not the first none.

        shape: of the half-size image.
        """
        top, left = (self.top + 1) // 2, (self.left + 1) // 2
        small = self.mask[self.top & 1 :: 2, self.left & 1 :: 2]
        small = small[: shape[0] - top, : shape[1] - left].astype(np.uint8)
        padded = np.pad(small, 1).astype(np.uint8)
        once = np.asarray(cv2.erode(padded, _KERNEL3), dtype=np.uint8)
        twice = np.asarray(cv2.erode(once, _KERNEL3), dtype=np.uint8)
        inside = padded
        for core in (twice, once):
            if int(core.sum()) >= _INNER_PX:
                inside = core
                break
        rim = padded - once
        found = []
        for part in (inside, rim):
            rows, columns = np.nonzero(part[1:-1, 1:-1])
            found.append((rows + top, columns + left))
        return found[0], found[1]


def own_regions(posterior: Posterior, frame: PreparedFrame, min_area_px: float) -> list[_Region]:
    """Connected pixels of one flake class, as the network alone would cut them."""
    is_flake = cv2.inRange(posterior.best, (1,), (DIRT_CLASS - 1,))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(is_flake, connectivity=4)
    found = []
    for blob in range(1, count):
        left, top, w, h, area = stats[blob].tolist()
        if 4 * area < min_area_px:
            continue
        box = slice(top, top + h), slice(left, left + w)
        classes = np.where(labels[box] == blob, posterior.best[box], 0).astype(np.uint8)
        for number in (np.flatnonzero(np.bincount(classes.ravel())[1:]) + 1).tolist():
            layer = (classes == number).astype(np.uint8)
            pieces, parts, sizes, _ = cv2.connectedComponentsWithStats(layer, connectivity=4)
            for k in range(1, pieces):
                x, y, wide, high, px = sizes[k].tolist()
                if 4 * px < min_area_px:
                    continue
                part = (parts[y : y + high, x : x + wide] == k).astype(np.uint8)
                found.append(_own_region(posterior, frame, number, part, left + x, top + y))
    return [region for region in found if region is not None]


def _own_region(
    posterior: Posterior,
    frame: PreparedFrame,
    number: int,
    part: npt.NDArray[np.uint8],
    left: int,
    top: int,
) -> _Region | None:
    """One piece at full resolution: where the class's interpolated probability is high enough."""
    height, width = posterior.best.shape
    x0, y0 = max(left - 1, 0), max(top - 1, 0)
    x1, y1 = min(left + part.shape[1] + 1, width), min(top + part.shape[0] + 1, height)
    around = (top - y0, y1 - top - part.shape[0]), (left - x0, x1 - left - part.shape[1])
    wider = np.pad(part, around)
    ys, xs = np.nonzero(cv2.erode(np.pad(part, 1), _KERNEL3)[1:-1, 1:-1])
    if ys.size < _INNER_PX:
        ys, xs = np.nonzero(part)
    ratio = frame.half[ys + top, xs + left] * frame.inverse_half[ys + top, xs + left]
    red, green, blue = (float(v) for v in np.median(ratio, axis=0) - 1.0)
    share = posterior.plane(number, slice(y0, y1), slice(x0, x1))
    share *= cv2.dilate(wider, _KERNEL3)
    size = (2 * (x1 - x0), 2 * (y1 - y0))
    fine = cv2.resize(share, size, interpolation=cv2.INTER_LINEAR)
    mask = _largest(np.asarray(fine > _OWN_SHARE, dtype=np.bool_))
    return None if mask is None else _Region(mask, 2 * x0, 2 * y0, (red, green, blue), None)


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
    """Its largest connected piece; None where it is empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    if count < 2:
        return None
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """A proposal that was taken, and whose it was."""

    detection: Detection
    is_own: bool


def _apart(found: Sequence[_Judged], physics_first: bool) -> list[Detection]:
    """The best of each heap of overlapping detections, best first.

    physics_first: the network's own only where the physics found nothing.
    """
    kept: list[Detection] = []
    for one in sorted(found, key=lambda j: (physics_first and j.is_own, -j.detection.score)):
        if all(_shared(one.detection, other) < _SAME_SHARE for other in kept):
            kept.append(one.detection)
    return sorted(kept, key=lambda d: -d.score)


def _shared(one: Detection, other: Detection) -> float:
    """Common pixels over those of the smaller."""
    left, top = max(one.box_x_px, other.box_x_px), max(one.box_y_px, other.box_y_px)
    right = min(one.box_x_px + one.mask.shape[1], other.box_x_px + other.mask.shape[1])
    bottom = min(one.box_y_px + one.mask.shape[0], other.box_y_px + other.mask.shape[0])
    if right <= left or bottom <= top:
        return 0.0
    parts = [
        d.mask[top - d.box_y_px : bottom - d.box_y_px, left - d.box_x_px : right - d.box_x_px]
        for d in (one, other)
    ]
    common = int(np.count_nonzero(parts[0] & parts[1]))
    return common / max(min(one.area_px, other.area_px), 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """Turns proposals into detections."""

    settings: DetectorSettings
    calibration: Calibration
    shape_px: tuple[int, int]
    min_area_px: float

    def judged(
        self, regions: Sequence[_Region], posterior: Posterior, steps: Ladder
    ) -> list[_Judged]:
        """Those that are flakes and wanted, with scores."""
        taken = [self._taken(region, posterior, steps) for region in regions]
        pairs = zip(taken, regions, strict=True)
        return [_Judged(d, region.physics is None) for d, region in pairs if d is not None]

    def _taken(self, region: _Region, posterior: Posterior, steps: Ladder) -> Detection | None:
        is_calibrated = self.calibration.confidence >= _CALIBRATED
        inside, rim = region.parts(posterior.best.shape[:2])
        shares, borders = posterior.at(*inside)
        mean = shares.mean(axis=0) if len(shares) else np.zeros(len(CLASSES), dtype=np.float32)
        flake = float(mean[1:DIRT_CLASS].sum())
        layers = self._layers(mean, np.asarray(region.contrast_rgb, dtype=np.float32), steps)
        wanted = layers[: self.settings.max_layers]
        best = int(np.argmax(wanted))
        signs = Signs(
            flake=flake,
            wanted=float(wanted.sum()),
            agreement=float(mean[_class_of(best + 1)]) / max(flake, 1e-6),
            rim_border=float(posterior.at(*rim)[1].mean()) if rim[0].size else 0.0,
            inner_border=float(borders.mean()) if borders.size else 0.0,
            rim_share=rim[0].size / max(float(region.mask.sum()) / 4.0, 1.0),
            area_px=float(max(region.mask.sum(), 1)),
            is_own=region.physics is None,
        )
        share = signs.probability() if flake >= _LEAST_FLAKE else 0.0
        if region.physics is not None and is_calibrated:
            trust = _DOUBTED + (1.0 - _DOUBTED) * share
            return replace(region.physics, score=region.physics.score * trust)
        ranked = sorted(enumerate(wanted.tolist(), 1), key=lambda pair: -pair[1])[:_NAMED_LAYERS]
        if region.physics is not None:
            if share < max(_LEAST_SCORE, self.settings.score_min):
                return None
            return _relabelled(region.physics, ranked, share, steps)
        if share < (_ADDED if is_calibrated else _OWN):
            return None
        named = tuple(pair for pair in ranked if pair[1] > 1e-4 or pair == ranked[0])
        score = share * _ADDED_SCORE if is_calibrated else share
        return self._own_detection(region, steps, named, score)

    def _layers(self, mean: FloatArray, contrast: FloatArray, steps: Ladder) -> FloatArray:
        """Probability of 1, 2 ... layers, given that it is a flake at all."""
        most = max(int(steps.thickness_layers[-1]), self.settings.max_layers, 8)
        doubt = 1.0 - self.calibration.confidence
        sigma = 0.012 + 0.008 * doubt + (0.04 + 0.14 * doubt) * np.abs(contrast)
        logs = steps.log_likelihoods(contrast, sigma.astype(np.float32), most)
        number = np.arange(1, most + 1)
        # Among thick crystals every decade of thickness is as frequent as any other.
        prior = np.where(number <= 6, 1.0, 7.0 / number)
        likelihood = np.exp(np.maximum(logs - logs.max(), -60.0)) * prior
        found = np.zeros(most, dtype=np.float32)
        flake = max(float(mean[1:DIRT_CLASS].sum()), 1e-6)
        groups = [(k, slice(k - 1, k)) for k in range(1, 5)]
        groups += [(FIVE_CLASS, slice(4, 6)), (THICK_CLASS, slice(6, most))]
        for k, part in groups:
            inside = likelihood[part]
            found[part] = float(mean[k]) / flake * inside / max(float(inside.sum()), 1e-30)
        return found

    def _own_detection(
        self,
        region: _Region,
        steps: Ladder,
        ranked: tuple[tuple[int, float], ...],
        score: float,
    ) -> Detection | None:
        layers = ranked[0][0]
        _, distance = steps.nearest(np.asarray(region.contrast_rgb, dtype=np.float32))
        height, width = self.shape_px
        mask = region.mask[: height - region.top, : width - region.left]
        area_px = int(np.count_nonzero(mask))
        if area_px < self.min_area_px:
            return None
        ys, xs = np.nonzero(mask)
        top, left = int(ys.min()), int(xs.min())
        mask = np.ascontiguousarray(mask[top : int(ys.max()) + 1, left : int(xs.max()) + 1])
        padded = np.pad(mask.astype(np.uint8), 1)
        inscribed = float(cv2.distanceTransform(padded, cv2.DIST_L2, 3).max())
        if inscribed < self.settings.half_width_min_px:
            return None
        contours, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outline = max(contours, key=len)[:, 0, :]
        x0, y0 = region.left + left, region.top + top
        return Detection(
            mask=mask,
            box_x_px=x0,
            box_y_px=y0,
            area_px=area_px,
            centroid_x_px=float(xs.mean()) + region.left,
            centroid_y_px=float(ys.mean()) + region.top,
            outline_px=(outline + np.array([x0 - 1, y0 - 1])).astype(np.float32),
            material=steps.material,
            layers=layers,
            layer_probabilities=ranked,
            thickness_nm=layers * steps.layer_nm,
            contrast_rgb=region.contrast_rgb,
            off_ladder=float(distance[0]),
            score=score,
            touches_border=x0 == 0
            or y0 == 0
            or x0 + mask.shape[1] >= width
            or y0 + mask.shape[0] >= height,
        )


def _relabelled(
    detection: Detection,
    ranked: Sequence[tuple[int, float]],
    score: float,
    steps: Ladder,
) -> Detection:
    """Layer numbers of an uncalibrated ladder, with the network's: a geometric mean of both."""
    theirs, mine = dict(detection.layer_probabilities), dict(ranked)
    joint = {
        n: max(theirs.get(n, 0.0), 1e-3) ** (1.0 - _NET_LAYERS)
        * max(mine.get(n, 0.0), 1e-3) ** _NET_LAYERS
        for n in {*theirs, *mine}
    }
    total = sum(joint.values())
    pairs = sorted(((n, p / total) for n, p in joint.items()), key=lambda pair: -pair[1])
    layers = pairs[0][0]
    found = replace(
        detection, layer_probabilities=tuple(pairs[:_NAMED_LAYERS]), layers=layers, score=score
    )
    if layers == detection.layers:
        return found
    return replace(found, thickness_nm=layers * steps.layer_nm, thickness_interval_nm=None)


def _class_of(layers: int) -> int:
    return layers if layers < FIVE_CLASS else FIVE_CLASS if layers <= 6 else THICK_CLASS
