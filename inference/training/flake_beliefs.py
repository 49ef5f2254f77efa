"""How often the flake detectors are right when they are so sure: counted, fitted, written down.

    python -m inference.training.flake_beliefs --frames simulator.flake_frames:labelled_frame

needs neither torch nor a new network. Photographs come from whatever function of (seed, number,
domain, side in px) is named, because this room does not know who makes them; they should be of the
domain that the network was trained in, and none that it was trained on. Each is shown under its
nominal ladder and under one that was calibrated on the photograph itself, as a user would. The
network's curves go into its card, the physics' into a file of their own; see
`inference.flakes.belief`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from inference.api import FlakeAnswer
from inference.engine import card_path, load_card
from inference.flakes.belief import KNOTS, PHYSICS_FILE, Belief, Beliefs, faint_materials
from inference.flakes.flakenet import FlakeNetDetector
from inference.flakes.labelled import LabelledFrame
from inference.flakes.masks import cut_out
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, calibrate
from inference.flakes.scoring import instances_from_detections, iou_matrix, match_by_iou
from inference.onnx_engine import OnnxEngine

_LOG = logging.getLogger(__name__)
_WEIGHTS: Final = Path(__file__).parent.parent / "weights" / "flakenet.onnx"
_COUNTED_LAYERS: Final = 12
_UNSURE: Final = 0.25  # below it the ladder is as good as nominal
_ONE_PHOTOGRAPH: Final = 0.25  # share of calibrations that stand on one photograph
_LEAST_GROUP: Final = 25  # sayings that are averaged before a curve is drawn through them
_MOST_GROUPS: Final = 20
_PRIOR: Final = 3.0  # sayings' worth of trust, in each group, in what was said
_SURE: Final = 0.8  # a calibration's confidence from which its curve holds alone


@dataclass(frozen=True, slots=True)
class Saying:
    """One terrace that is there, and what was said of its layer number."""

    said: float
    is_right: bool
    confidence: float  # of the calibration
    is_faint: bool = False


def sayings(
    frame: LabelledFrame, answer: FlakeAnswer, faint: frozenset[str] = frozenset()
) -> list[Saying]:
    """Everything that an answer says of terraces that can be counted."""
    truths = [
        (cut_out(frame.instances == number), layers)
        for number, layers in enumerate(frame.instance_layers.tolist())
        if number and layers <= _COUNTED_LAYERS and (frame.instances == number).any()
    ]
    claims = instances_from_detections(answer.detections)
    ious = iou_matrix(claims, [instance for instance, _ in truths])
    found = []
    for match in match_by_iou(ious, [claim.score for claim in claims]):
        one = answer.detections[match.predicted]
        layers, said = one.layer_probabilities[0]
        is_right = layers == truths[match.true][1]
        confidence = answer.calibration.confidence
        found.append(Saying(said, is_right, confidence, one.material in faint))
    return found


def curve(found: Sequence[Saying]) -> Belief:
    """The rising curve through them; as it was said where there is nothing."""
    if not found:
        return Belief()
    order = sorted(found, key=lambda one: one.said)
    count = max(min(len(order) // _LEAST_GROUP, _MOST_GROUPS), 1)
    ends = [len(order) * k // count for k in range(count + 1)]
    groups = [order[a:b] for a, b in pairwise(ends)]
    said = np.array([np.mean([one.said for one in group]) for group in groups])
    weight = np.array([float(len(group)) for group in groups])
    hits = np.array([float(sum(one.is_right for one in group)) for group in groups])
    right = risen((hits + _PRIOR * said) / (weight + _PRIOR), weight)
    # Outside of what was said the curve goes on to 0 and, in the same proportion, to 1.
    last = min(float(right[-1] / said[-1]), 1.0) if said[-1] > 0.0 else 1.0
    at = np.interp(KNOTS, [0.0, *said, 1.0], [0.0, *right, max(last, float(right[-1]))])
    return Belief(tuple(float(v) for v in np.clip(np.maximum.accumulate(at), 0.0, 1.0)))


def risen(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest sequence that never falls: pool adjacent violators."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, mass, members = pools.pop()
            both = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / both, both, members + pool[2])
        pools.append(pool)
    return np.concatenate([np.full(members, mean) for mean, _, members in pools])


def fitted(found: Iterable[Saying]) -> Beliefs:
    """One curve for nominal ladders, one for calibrated ones, one for faint crystals.

    A calibration that stands on a single photograph of a strange microscope is wrong as a whole in
    one of seven, and does not know it; pooled ones of ordinary microscopes were right wherever they
    were tried (right 1.00 where .98 was said). Which of the two a user has is not known here.
    """
    kept = list(found)
    faint = [one for one in kept if one.is_faint]
    sure = [one for one in kept if one.confidence >= _SURE and not one.is_faint]
    nominal = [one for one in kept if one.confidence < _UNSURE and not one.is_faint]
    return Beliefs(curve(nominal), Belief().mixed(curve(sure), _ONE_PHOTOGRAPH), curve(faint))


def calibration_error(found: Sequence[Saying], bins: int = 10) -> float:
    """Mean gap between what was said and how often it was right (Guo et al., ICML 2017)."""
    said = np.array([one.said for one in found])
    right = np.array([one.is_right for one in found], dtype=np.float64)
    where = np.minimum((said * bins).astype(int), bins - 1)
    gaps = [abs(float((said - right)[where == k].sum())) for k in range(bins)]
    return sum(gaps) / max(len(found), 1)


def corrected(found: Sequence[Saying], beliefs: Beliefs) -> list[Saying]:
    """What would have been said with these curves."""
    return [
        replace(one, said=beliefs.applied(((1, one.said),), one.confidence, one.is_faint)[0][1])
        for one in found
    ]


def refit(
    frames: Iterable[LabelledFrame], network: Path, report: Callable[[str], None] = _LOG.info
) -> tuple[Beliefs, Beliefs]:
    """Ask both detectors, uncorrected, about every photograph; the physics' and the network's.

    Flagged answers are left out: nobody is to believe them.
    """
    engine = OnnxEngine(network)
    heard: tuple[list[Saying], list[Saying]] = ([], [])
    for done, frame in enumerate(frames, 1):
        settings = settings_for(frame)
        shown = frame.pixels, frame.pixel_size_nm, frame.bit_depth
        own = calibrate([frame.pixels], settings, *shown[1:])
        for wafers in (None, own):
            physics = PhysicsDetector(settings, wafers)
            both = FlakeNetDetector(engine, settings, wafers, beliefs=Beliefs())
            prepared = physics.prepared(*shown)
            faint = faint_materials(physics.wafer_of(prepared).ladders)
            answers = physics.detect_prepared(prepared), both.detect(*shown)
            for kept, answer in zip(heard, answers, strict=True):
                if answer.in_distribution:
                    kept += sayings(frame, answer, faint)
        report(f"{done} photographs, {len(heard[0])} and {len(heard[1])} terraces")
    found = fitted(heard[0]), fitted(heard[1])
    for name, kept, beliefs in zip(("physics", "network"), heard, found, strict=True):
        before = calibration_error(kept)
        after = calibration_error(corrected(kept, beliefs))
        report(f"{name}: mean gap of belief and truth {before:.3f}, corrected {after:.3f}")
    return found


def settings_for(frame: LabelledFrame) -> DetectorSettings:
    """What the user of such a microscope would write."""
    return DetectorSettings(
        materials=(frame.material,),
        oxide_nm=float(np.clip(frame.calibration.oxide_nm, 10.0, 1000.0)),
        numerical_aperture=frame.optics.numerical_aperture,
    )


def write(physics: Beliefs, network: Beliefs, model: Path, file: Path, command: str) -> None:
    """Put the network's curves into its card, the physics' into a file."""
    card = load_card(model)
    figures = {**card.figures, **network.as_figures()}
    card_text = json.dumps(card.model_copy(update={"figures": figures}).model_dump(), indent=1)
    card_path(model).write_text(card_text + "\n", encoding="utf-8")
    content = {"made_by": command, "figures": physics.as_figures()}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m inference.training.flake_beliefs")
    parser.add_argument("--frames", required=True, metavar="MODULE:FUNCTION")
    parser.add_argument("--photographs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=515)
    parser.add_argument("--side-px", type=int, default=768)
    parser.add_argument("--most-s", type=float, default=math.inf)
    parser.add_argument("--network", type=Path, default=_WEIGHTS)
    parser.add_argument("--physics-file", type=Path, default=PHYSICS_FILE)
    asked = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    module, _, name = asked.frames.partition(":")
    frame_of = getattr(import_module(module), name)
    began_s = time.monotonic()
    frames = (
        frame_of(asked.seed, number, "train", asked.side_px)
        for number in range(asked.photographs)
        if time.monotonic() - began_s < asked.most_s
    )
    physics, network = refit(frames, asked.network)
    command = f"--photographs {asked.photographs} --seed {asked.seed} --side-px {asked.side_px}"
    command = f"python -m inference.training.flake_beliefs --frames {asked.frames} {command}"
    write(physics, network, asked.network, asked.physics_file, command)


if __name__ == "__main__":
    main()
