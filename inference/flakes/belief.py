"""Layer probabilities that mean what they say: of those called 0.9, nine in ten are right.

A likelihood knows the noise that it was told of. It does not know how often a calibration is
wrong, or that the errors of a whole photograph go together, so it is right more or less often than
it says. How often, is counted on simulated photographs whose truth is known, and kept as a curve:
what was said of the most probable layer number against how often that was right, never falling,
through a few knots (isotonic regression: B. Zadrozny and C. Elkan, KDD 2002). There are three
curves: for a nominal ladder and for a calibrated one, between which the calibration's confidence
decides, and for crystals as faint as hBN, whose rungs lie so close that any calibration explains
any terrace: there a confident fit was hardly ever right. The layer numbers keep their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from inference.api import BadModel, FlakeAnswer
from inference.flakes.ladder import Ladder

Ranked = tuple[tuple[int, float], ...]  # (layers, probability), falling

KNOTS: Final = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 1.0)
"""What is said, where a curve is written down."""

PHYSICS_FILE: Final = Path(__file__).with_name("physics_beliefs.json")
"""The physics' curves, written by `python -m inference.training.flake_beliefs`."""

_KINDS: Final = ("nominal", "calibrated", "faint")
_FAINT: Final = 0.06  # contrast of a monolayer, over the three channels
_CALIBRATED: Final = 0.8  # a calibration's confidence from which its curve holds alone


@dataclass(frozen=True, slots=True)
class Belief:
    """How often the most probable layer number is right, at each of `KNOTS`; never falling."""

    right: tuple[float, ...] = KNOTS

    def of(self, said: float) -> float:
        """How often what was said so surely is right."""
        return float(np.interp(said, (0.0, *KNOTS), (0.0, *self.right)))

    def mixed(self, other: Belief, share: float) -> Belief:
        """With so much of the other."""
        pairs = zip(self.right, other.right, strict=True)
        return Belief(tuple((1.0 - share) * mine + share * theirs for mine, theirs in pairs))


@dataclass(frozen=True, slots=True)
class Beliefs:
    """A detector's curves; those it begins with change nothing."""

    nominal: Belief = Belief()
    calibrated: Belief = Belief()
    faint: Belief = Belief()  # crystals, whatever the calibration

    def applied(self, ranked: Ranked, confidence: float, is_faint: bool = False) -> Ranked:
        """Layer probabilities as they should be said under a calibration of that confidence.

        is_faint: the crystal is one of `faint_materials`. What the first one loses goes to the
        others in proportion, and to no layer number at all where these would overtake it.
        """
        if not ranked:
            return ranked
        (layers, said), rest = ranked[0], ranked[1:]
        share = min(confidence / _CALIBRATED, 1.0)
        belief = self.faint if is_faint else self.nominal.mixed(self.calibrated, share)
        first = belief.of(said)
        others = max(1.0 - said, sum(p for _, p in rest))
        factor = (1.0 - first) / others if others > 0.0 else 0.0
        return ((layers, first), *((n, min(factor * p, first)) for n, p in rest))

    def as_figures(self) -> dict[str, float]:
        """By name, as a model's card keeps them."""
        return {
            _key(kind, knot): round(right, 4)
            for kind, belief in zip(
                _KINDS, (self.nominal, self.calibrated, self.faint), strict=True
            )
            for knot, right in zip(KNOTS, belief.right, strict=True)
        }


def beliefs_in(figures: Mapping[str, float]) -> Beliefs:
    """Those that a card's figures hold; a card without any changes nothing. Raises BadModel."""
    curves = []
    for kind in _KINDS:
        right = [figures.get(_key(kind, knot)) for knot in KNOTS]
        known = [value for value in right if value is not None]
        if not known:
            curves.append(Belief())
            continue
        is_whole = len(known) == len(KNOTS)
        if not is_whole or known != sorted(known) or not 0.0 <= known[0] <= known[-1] <= 1.0:
            raise BadModel(f"{_key(kind, KNOTS[0])} ...: no curve of probabilities: {right}")
        curves.append(Belief(tuple(known)))
    return Beliefs(*curves)


@cache
def physics_beliefs() -> Beliefs:
    """The physics detector's. Raises BadModel where its file is broken."""
    try:
        figures = json.loads(PHYSICS_FILE.read_text(encoding="utf-8"))["figures"]
        return beliefs_in({str(name): float(value) for name, value in figures.items()})
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise BadModel(f"{PHYSICS_FILE.name} is no file of beliefs: {error}") from error


def faint_materials(ladders: Iterable[Ladder]) -> frozenset[str]:
    """Those whose monolayer is hardly to be seen."""
    return frozenset(
        steps.material for steps in ladders if float(np.linalg.norm(steps.at(1.0))) < _FAINT
    )


def believed(answer: FlakeAnswer, beliefs: Beliefs, ladders: Iterable[Ladder]) -> FlakeAnswer:
    """The same answer with layer probabilities as they should be said.

    ladders: that its layers were counted by.
    """
    faint, confidence = faint_materials(ladders), answer.calibration.confidence
    detections = tuple(
        replace(
            d,
            layer_probabilities=beliefs.applied(
                d.layer_probabilities, confidence, d.material in faint
            ),
        )
        for d in answer.detections
    )
    return replace(answer, detections=detections)


def _key(kind: str, knot: float) -> str:
    return f"right_{kind}_of_{knot:g}"
