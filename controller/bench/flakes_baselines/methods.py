"""Everybody who looks for flakes, in one form: taught with photographs, then asked about one.

Teaching shows the photographs that one user has of one wafer, never their truth, with one exception
that is named for what it is: the refitted mixture is told the labels of other photographs, which is
what its authors ask of a user. What cannot be used on a wafer says so with None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

import inference
from controller.bench.flakes_baselines import classical
from controller.bench.flakes_baselines.gaussian_mixture import (
    GaussianMixture,
    Layer,
    read_layers,
    refitted,
)
from controller.bench.flakes_baselines.photographs import Photograph, data_folder
from inference.api import FlakeAnswer, FlakeDetector, ImageRGB
from inference.engine import Engine
from inference.flakes.calibration import SubstrateCalibration
from inference.flakes.flakenet import FlakeNetDetector, detector_that_leads
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, calibrate
from inference.flakes.scoring import Instance, instances_from_detections
from inference.onnx_engine import OnnxEngine

PHYSICS: Final = "physics ladder"
NET: Final = "FlakeNet"
USED: Final = "in use"  # by a search: whichever of the two leads

_SAME_TINT: Final = 0.12  # of ln(R/G) and ln(B/G): one kind of wafer


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was found on one photograph."""

    instances: tuple[Instance, ...]
    top_probability: tuple[float | None, ...]  # of the layer number; None: none is given
    thickness_nm: tuple[float | None, ...] = ()  # (): nobody says
    strangeness: float | None = None  # how unlike a photograph of a chip; None: is not asked


Finder = Callable[[Photograph], Found]


class Method(Protocol):
    """A way to find flakes."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        ...

    def taught(self, photographs: Sequence[Photograph]) -> Finder | None:
        """Ready to look at any of these photographs; None: not for this crystal on this wafer."""
        ...


@dataclass(frozen=True, slots=True)
class Ours:
    """One of our detectors: calibrated on the photographs themselves."""

    name: str
    make: Callable[[DetectorSettings, Sequence[SubstrateCalibration]], FlakeDetector]

    def taught(self, photographs: Sequence[Photograph]) -> Finder:
        """Fit oxide and gains per substrate; no flake is named."""
        settings, wafers = calibrated(tuple(photographs))
        return asked(self.make(settings, wafers))


@lru_cache(maxsize=1)  # each of ours asks for the same
def calibrated(
    photographs: tuple[Photograph, ...],
) -> tuple[DetectorSettings, tuple[SubstrateCalibration, ...]]:
    """The settings that a user would write for these, and what the photographs tell."""
    first = photographs[0]
    settings = DetectorSettings(
        materials=(first.material,),
        oxide_nm=first.oxide_nm,
        numerical_aperture=first.numerical_aperture,
        max_thickness_nm=first.max_thickness_nm,
    )
    return settings, told_by(photographs, settings)


def told_by(
    photographs: Sequence[Photograph], settings: DetectorSettings
) -> tuple[SubstrateCalibration, ...]:
    """The calibrations that photographs tell without any truth."""
    pixels = (photograph.pixels for photograph in photographs)
    return calibrate(pixels, settings, photographs[0].pixel_size_nm, photographs[0].bit_depth)


def leading(settings: DetectorSettings, wafers: Sequence[SubstrateCalibration]) -> FlakeDetector:
    """The detector that a search would use under these calibrations."""
    engine = _engine()
    if engine is None:
        return PhysicsDetector(settings, wafers)
    return detector_that_leads(engine, settings, wafers)


def who_leads(photographs: Sequence[Photograph]) -> str:
    """Which of ours a search would use on these."""
    detector = leading(*calibrated(tuple(photographs)))
    return NET if isinstance(detector, FlakeNetDetector) else PHYSICS


def asked(detector: FlakeDetector) -> Finder:
    """A detector as a finder."""

    def find(photograph: Photograph) -> Found:
        shown = photograph.pixels, photograph.pixel_size_nm, photograph.bit_depth
        if isinstance(detector, FlakeNetDetector):
            view = detector.view(*shown)
            return _found(view.answer, view.oddity)
        answer = detector.detect(*shown)
        return _found(answer, 0.0 if answer.in_distribution else 1.0)

    return find


def _found(answer: FlakeAnswer, strangeness: float) -> Found:
    tops = tuple(d.layer_probabilities[0][1] for d in answer.detections)
    thickness_nm = tuple(d.thickness_nm for d in answer.detections)
    instances = instances_from_detections(answer.detections)
    return Found(instances, tops, thickness_nm, strangeness)


def eight_bits(photograph: Photograph) -> npt.NDArray[np.uint8]:
    """What a method that was made for 8 bits gets to see."""
    pixels = photograph.pixels >> (photograph.bit_depth - 8)
    return np.asarray(pixels, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Textbook:
    """A segmentation that knows no crystal and no layer."""

    name: str
    segment: Callable[[ImageRGB], tuple[Instance, ...]]

    def taught(self, photographs: Sequence[Photograph]) -> Finder:
        """Nothing to be taught."""
        return lambda photograph: _without_odds(self.segment(eight_bits(photograph)))


def _without_odds(instances: tuple[Instance, ...]) -> Found:
    return Found(instances, (None,) * len(instances))


@dataclass(frozen=True, slots=True)
class Mixture:
    """The Gaussian mixture with its authors' parameters for the wafer, where they have any."""

    name: str = "Gaussian mixture"

    def taught(self, photographs: Sequence[Photograph]) -> Finder | None:
        """Parameters come from the authors."""
        layers = shipped(photographs[0].material, photographs[0].oxide_nm)
        if layers is None:
            return None
        mixture = GaussianMixture(layers)
        return lambda photograph: _without_odds(mixture.find(eight_bits(photograph)))


@dataclass(frozen=True, slots=True)
class RefittedMixture:
    """The same, refitted from the labels of the other photographs of such a wafer."""

    name: str = "Gaussian mixture, refitted on labels"

    def taught(self, photographs: Sequence[Photograph]) -> Finder | None:
        """Keep the photographs; each is looked at with what the others say."""
        layers = shipped(photographs[0].material, photographs[0].oxide_nm)
        if layers is None:
            return None

        def find(photograph: Photograph) -> Found:
            mine = tint(photograph)
            others = [
                other
                for other in photographs
                if other is not photograph and np.abs(tint(other) - mine).max() < _SAME_TINT
            ]
            mixture = GaussianMixture(refitted(others, layers))
            return _without_odds(mixture.find(eight_bits(photograph)))

        return find


def tint(photograph: Photograph) -> npt.NDArray[np.float64]:
    """ln(R/G) and ln(B/G) of the substrate."""
    red, green, blue = np.median(photograph.pixels[::7, ::7].reshape(-1, 3), axis=0)
    ratios = [max(red, 1.0) / max(green, 1.0), max(blue, 1.0) / max(green, 1.0)]
    return np.asarray(np.log(ratios), dtype=np.float64)


def shipped(material: str, oxide_nm: float) -> tuple[Layer, ...] | None:
    """The authors' parameters for this crystal and oxide; None: they have none."""
    path = data_folder() / "flakes" / "gmm_parameters" / f"{material}_{oxide_nm:g}nm.json"
    return read_layers(path) if path.is_file() else None


@cache
def rivals() -> tuple[Method, ...]:
    """Those that are not ours."""
    return (
        Mixture(),
        RefittedMixture(),
        Textbook("Otsu", classical.otsu),
        Textbook("adaptive threshold", classical.adaptive_threshold),
        Textbook("watershed", classical.watershed),
    )


@cache
def _engine() -> Engine | None:
    """What runs FlakeNet; None: its weights are not here."""
    weights = Path(inference.__file__).parent / "weights" / "flakenet.onnx"
    return OnnxEngine(weights) if weights.is_file() else None


@cache
def ours() -> tuple[Method, ...]:
    """Our detectors, the one in use first."""
    physics = Ours(PHYSICS, PhysicsDetector)
    engine = _engine()
    if engine is None:
        return (physics,)
    return Ours(USED, leading), Ours(NET, partial(FlakeNetDetector, engine)), physics
