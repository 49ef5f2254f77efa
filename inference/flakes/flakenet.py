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
from inference.flakes.belief import Beliefs, beliefs_in, believed, physics_beliefs
from inference.flakes.calibration import SubstrateCalibration
from inference.flakes.evidence import (
    DIRT_CLASS,
    FIVE_CLASS,
    THICK_CLASS,
    evidence,
    rungs_of,
)
from inference.flakes.frame import PreparedFrame
from inference.flakes.ladder import Ladder
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, wafers_of
from inference.flakes.proposals import (
    LOGITS,
    Measures,
    Posterior,
    Region,
    decoded,
    measured,
    own_regions,
)

FloatArray = npt.NDArray[np.float32]

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
_SAME_SHARE = 0.5  # of the smaller one's pixels: two proposals for the same thing
_NAMED_LAYERS = 6
_GREY_SHARE = 0.995  # of the pixels: equal channels there are no accident


PHYSICS, NETWORK = "physics", "network"
"""Of `Detection.source`: whose segmentation drew the outline."""

UNKNOWN_TO_NETWORK = "unlike any chip that the network knows"
"""So begins the reason of an answer that is the physics' alone because the frame is odd."""


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
        if self.flake < _LEAST_FLAKE:
            return 0.0
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
        *,
        beliefs: Beliefs | None = None,
    ) -> None:
        """Arguments as of `PhysicsDetector`, and the engine that runs the network.

        beliefs: None for those of the network's card. Raises BadModel where these are broken.
        """
        self._engine = engine
        self._beliefs = beliefs_in(engine.card.figures) if beliefs is None else beliefs
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
        chosen = self._physics.wafer_of(frame)
        without = frame.background.reason or _without_colour(pixels, bit_depth)
        if without:
            answer = self._physics.detect_prepared(frame)
            answer = _flagged(believed(answer, physics_beliefs(), chosen.ladders), without)
            return FlakeView(answer, is_physics=True, oddity=math.inf, dirt_share=0.0)
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
            answer = believed(answer, physics_beliefs(), chosen.ladders)
            answer = _flagged(answer, f"{UNKNOWN_TO_NETWORK}: physics only")
            return FlakeView(answer, is_physics=True, oddity=oddity, dirt_share=dirt_share)
        min_area_px = self._settings.min_area_um2 / (pixel_size_nm * 1e-3) ** 2
        judge = _Judge(self._settings, calibration, frame.background.shape_px, min_area_px)
        found: list[_Judged] = []
        for steps in chosen.ladders:
            posterior = seen[steps.material]
            theirs = [Region.of(d) for d in proposed.detections if d.material == steps.material]
            mine = own_regions(posterior, frame, min_area_px)
            # Apart: of regions that overlap only one would be measured there.
            found += judge.judged(theirs, posterior, steps)
            found += judge.judged(mine, posterior, steps)
        answer = replace(proposed, detections=tuple(_apart(found, is_calibrated)))
        answer = believed(answer, self._beliefs, chosen.ladders)
        return FlakeView(answer, is_physics=False, oddity=oddity, dirt_share=dirt_share)

    def _posterior(self, frame: PreparedFrame, steps: Ladder) -> Posterior:
        planes = evidence(frame.half, frame.inverse_half, rungs_of(steps), frame.full_scale)
        answer = self._engine.run(planes[None])
        if answer.shape != (1, LOGITS + 5, *planes.shape[1:]) or not np.isfinite(answer).all():
            raise BadModel(
                f"FlakeNet promised finite {(1, LOGITS + 5, *planes.shape[1:])}, got {answer.shape}"
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
class _Judged:
    """A proposal that was taken, and whose it was."""

    detection: Detection
    is_own: bool


def _apart(found: Sequence[_Judged], physics_first: bool) -> list[Detection]:
    """The best of each heap of overlapping detections, best first.

    physics_first: the network's own only where the physics found nothing.
    """
    order = sorted(found, key=lambda j: (physics_first and j.is_own, -j.detection.score))
    ranked = [one.detection for one in order]
    meets = _boxes_meet(ranked)
    kept: list[int] = []
    for k, one in enumerate(ranked):
        others = (ranked[j] for j in kept if meets[k, j])
        if all(_shared(one, other) < _SAME_SHARE for other in others):
            kept.append(k)
    return sorted((ranked[k] for k in kept), key=lambda d: -d.score)


def _boxes_meet(found: Sequence[Detection]) -> npt.NDArray[np.bool_]:
    """Whether the boxes of two detections have pixels in common, (n, n)."""
    left, top = (np.array([d.box_x_px for d in found]), np.array([d.box_y_px for d in found]))
    right = left + np.array([d.mask.shape[1] for d in found], dtype=left.dtype)
    bottom = top + np.array([d.mask.shape[0] for d in found], dtype=top.dtype)
    across = (left[:, None] < right) & (left < right[:, None])
    return np.asarray(across & (top[:, None] < bottom) & (top < bottom[:, None]), dtype=np.bool_)


def _shared(one: Detection, other: Detection) -> float:
    """Common pixels over those of the smaller; their boxes meet."""
    left, top = max(one.box_x_px, other.box_x_px), max(one.box_y_px, other.box_y_px)
    right = min(one.box_x_px + one.mask.shape[1], other.box_x_px + other.mask.shape[1])
    bottom = min(one.box_y_px + one.mask.shape[0], other.box_y_px + other.mask.shape[0])
    parts = [
        d.mask[top - d.box_y_px : bottom - d.box_y_px, left - d.box_x_px : right - d.box_x_px]
        for d in (one, other)
    ]
    common = int(np.count_nonzero(parts[0] & parts[1]))
    return common / max(min(one.area_px, other.area_px), 1)


def _signs(region: Region, seen: Measures, k: int, wanted: FloatArray) -> Signs:
    """Those of one region, its layers' probabilities being `wanted`."""
    shares = seen.shares[k]
    flake = float(shares[1:DIRT_CLASS].sum())
    area_px = float(max(int(np.count_nonzero(region.mask)), 1))
    return Signs(
        flake=flake,
        wanted=float(wanted.sum()),
        agreement=float(shares[_class_of(int(np.argmax(wanted)) + 1)]) / max(flake, 1e-6),
        rim_border=float(seen.rim_border[k]),
        inner_border=float(seen.inner_border[k]),
        rim_share=int(seen.rim_px[k]) / max(area_px / 4.0, 1.0),
        area_px=area_px,
        is_own=region.physics is None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """Turns proposals into detections."""

    settings: DetectorSettings
    calibration: Calibration
    shape_px: tuple[int, int]
    min_area_px: float

    def judged(
        self, regions: Sequence[Region], posterior: Posterior, steps: Ladder
    ) -> list[_Judged]:
        """Those that are flakes and wanted, with scores."""
        if not regions:
            return []
        seen = measured(regions, posterior)
        contrast = np.array([region.contrast_rgb for region in regions], dtype=np.float32)
        layers = self._layers(seen.shares, contrast, steps)
        _, off_ladder = steps.nearest(contrast)
        found = []
        for k, region in enumerate(regions):
            share = _signs(region, seen, k, layers[k, : self.settings.max_layers]).probability()
            one = self._taken(region, share, layers[k], float(off_ladder[k]), steps)
            if one is not None:
                found.append(_Judged(one, region.physics is None))
        return found

    def _taken(
        self,
        region: Region,
        share: float,
        layers: FloatArray,
        off_ladder: float,
        steps: Ladder,
    ) -> Detection | None:
        is_calibrated = self.calibration.confidence >= _CALIBRATED
        if region.physics is not None and is_calibrated:
            trust = _DOUBTED + (1.0 - _DOUBTED) * share
            score = region.physics.score * trust
            return replace(region.physics, score=score, source=PHYSICS)
        wanted = layers[: self.settings.max_layers].tolist()
        ranked = sorted(enumerate(wanted, 1), key=lambda pair: -pair[1])[:_NAMED_LAYERS]
        if region.physics is not None:
            if share < max(_LEAST_SCORE, self.settings.score_min):
                return None
            return _relabelled(region.physics, ranked, share, steps)
        if share < (_ADDED if is_calibrated else _OWN):
            return None
        named = tuple(pair for pair in ranked if pair[1] > 1e-4 or pair == ranked[0])
        score = share * _ADDED_SCORE if is_calibrated else share
        return self._own_detection(region, steps, named, score, off_ladder)

    def _layers(self, shares: FloatArray, contrast: FloatArray, steps: Ladder) -> FloatArray:
        """Probabilities of 1, 2 ... layers, (n, layers), given that it is a flake at all."""
        most = max(int(steps.thickness_layers[-1]), self.settings.max_layers, 8)
        doubt = 1.0 - self.calibration.confidence
        sigma = 0.012 + 0.008 * doubt + (0.04 + 0.14 * doubt) * np.abs(contrast)
        number = np.arange(1, most + 1)
        off = (steps.at(number)[None] - contrast[:, None]) / sigma[:, None]  # (n, most, 3)
        logs = -0.5 * np.einsum("ijc,ijc->ij", off, off)
        # Among thick crystals every decade of thickness is as frequent as any other.
        prior = np.where(number <= 6, 1.0, 7.0 / number)
        likelihood = np.exp(np.maximum(logs - logs.max(axis=1)[:, None], -60.0)) * prior
        found = np.zeros(likelihood.shape, dtype=np.float32)
        flake = np.maximum(shares[:, 1:DIRT_CLASS].sum(axis=1), 1e-6)
        groups = [(k, slice(k - 1, k)) for k in range(1, 5)]
        groups += [(FIVE_CLASS, slice(4, 6)), (THICK_CLASS, slice(6, most))]
        for k, part in groups:
            inside = likelihood[:, part]
            total = np.maximum(inside.sum(axis=1), 1e-30)
            found[:, part] = (shares[:, k] / flake / total)[:, None] * inside
        return found

    def _own_detection(
        self,
        region: Region,
        steps: Ladder,
        ranked: tuple[tuple[int, float], ...],
        score: float,
        off_ladder: float,
    ) -> Detection | None:
        layers = ranked[0][0]
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
            off_ladder=off_ladder,
            score=score,
            touches_border=x0 == 0
            or y0 == 0
            or x0 + mask.shape[1] >= width
            or y0 + mask.shape[0] >= height,
            source=NETWORK,
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
        detection,
        layer_probabilities=tuple(pairs[:_NAMED_LAYERS]),
        layers=layers,
        score=score,
        source=PHYSICS,
    )
    if layers == detection.layers:
        return found
    return replace(found, thickness_nm=layers * steps.layer_nm, thickness_interval_nm=None)


def _class_of(layers: int) -> int:
    return layers if layers < FIVE_CLASS else FIVE_CLASS if layers <= 6 else THICK_CLASS
