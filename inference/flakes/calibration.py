"""What a microscope's colours say about its optics: one effective oxide and three gains, fitted.

The ladder's physics is right up to a few numbers that nobody knows exactly: the oxide's thickness,
the lamp, the camera's filters and curve, stray light. An effective oxide and one gain per channel
absorb them. They are constants of a microscope and a wafer, not of a picture: the fit pools the
contrasts of many clean terraces from many tiles with the same substrate colour. A single tile is
ambiguous (one lonely bilayer fits as a trilayer with gain 0.8), hence the strong pull towards gains
of one and the nominal oxide, and hence the confidence, which says when the fit is not to be used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inference.api import BadModel, Calibration
from inference.flakes.ladder import Optics, layer_grid, model_contrast
from inference.flakes.materials import MATERIALS

FloatArray = npt.NDArray[np.float32]

USABLE_FIT = 0.25
"""A fit explaining less of the terraces is worse than none; measured .35-.57 where right."""

_GAIN_STEPS = np.exp(np.linspace(np.log(0.7), np.log(1.4), 13)).astype(np.float32)
_GAIN_COST = 0.3  # per unit of |ln gain|, against a fit of 0..1
_OXIDE_SIGMA = 0.15  # of ln(oxide / nominal)
_OXIDE_COST = 0.1
_PULL_LEVELS = 10.0
_PLAUSIBLE = 0.06  # a level further from the nominal ladder than this,
_PLAUSIBLE_RELATIVE = 0.25  # plus this share of its contrast, is no crystal of these materials


@dataclass(frozen=True, slots=True)
class Level:
    """One clean terrace: a colour that the ladder has to explain."""

    contrast_rgb: tuple[float, float, float]
    area_px: int


@dataclass(frozen=True, slots=True)
class SubstrateCalibration:
    """A calibration with the substrate colour that it was made on, to notice drift."""

    substrate_rgb: tuple[float, float, float]  # digital numbers
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a substrate's colour has moved since the calibration, as natural logarithms."""

    red_over_green: float
    blue_over_green: float
    brightness: float

    @property
    def is_warning(self) -> bool:
        """More than a good chip's wobble between tiles (R/G 0.08, B/G 0.20)."""
        return abs(self.red_over_green) > 0.08 or abs(self.blue_over_green) > 0.20

    @property
    def is_deviant(self) -> bool:
        """The light has changed: another filter (R -21 %, B +13 %), half or twice the strength."""
        is_tinted = abs(self.red_over_green) > 0.12 or abs(self.blue_over_green) > 0.30
        return is_tinted or abs(self.brightness) > 0.7


def nominal_calibration(oxide_nm: float) -> Calibration:
    """Nothing fitted: what the wafer's maker says."""
    return Calibration(oxide_nm, (1.0, 1.0, 1.0), 0.0, "nominal")


def drift(
    substrate_rgb: tuple[float, float, float], reference_rgb: tuple[float, float, float]
) -> Drift:
    """Compare a substrate's colour with the calibration's."""
    now = np.log(np.maximum(substrate_rgb, 1e-6))
    then = np.log(np.maximum(reference_rgb, 1e-6))
    moved = now - then
    return Drift(float(moved[0] - moved[1]), float(moved[2] - moved[1]), float(moved[1]))


def fit_calibration(
    levels: Sequence[Level],
    materials: Sequence[str],
    nominal_oxide_nm: float,
    optics: Optics,
) -> Calibration:
    """Fit effective oxide and gains to pooled terraces; nominal when they explain little."""
    if len(levels) < 3:
        return nominal_calibration(nominal_oxide_nm)
    colours = np.array([level.contrast_rgb for level in levels], dtype=np.float32)
    weights = np.sqrt(np.array([level.area_px for level in levels], dtype=np.float32))
    plausible = np.zeros(len(levels), dtype=np.bool_)
    size = np.linalg.norm(colours, axis=1)
    for material in materials:
        curve = model_contrast(material, nominal_oxide_nm, optics)
        nearest = np.sqrt(_squared_distances(colours, curve[1:]).min(axis=1))
        plausible |= nearest < _PLAUSIBLE + _PLAUSIBLE_RELATIVE * size
    colours, weights = colours[plausible], weights[plausible]
    if len(colours) < 3:
        return nominal_calibration(nominal_oxide_nm)
    weights = weights / weights.sum()

    # Few terraces say little about four numbers: the fewer, the stronger the pull to nominal.
    pull = 1.0 + _PULL_LEVELS / len(colours)
    best = (-np.inf, nominal_oxide_nm, np.ones(3, dtype=np.float32))
    coarse = nominal_oxide_nm * np.exp(np.linspace(-0.3, 0.3, 13))
    starts = [
        np.array([red, rest, rest], dtype=np.float32)
        for red in (0.75, 0.85, 1.0, 1.15)
        for rest in (0.85, 1.0, 1.15)
    ]
    tried: list[tuple[float, float, FloatArray]] = []
    for oxide_nm in coarse:
        for gains in starts:
            value = _merit(colours, weights, materials, float(oxide_nm), gains, optics)
            value -= pull * _cost(float(oxide_nm), nominal_oxide_nm, gains)
            tried.append((value, float(oxide_nm), gains))
    tried.sort(key=lambda entry: -entry[0])
    for _, start_oxide_nm, start_gains in tried[:3]:
        found = _descended(
            colours, weights, materials, start_oxide_nm, start_gains, nominal_oxide_nm, optics, pull
        )
        if found[0] > best[0]:
            best = found
    _, oxide_nm, gains = best
    explained = _merit(colours, weights, materials, oxide_nm, gains, optics)
    if explained < USABLE_FIT:
        nominal = nominal_calibration(nominal_oxide_nm)
        return Calibration(
            nominal.oxide_nm,
            nominal.gain_rgb,
            0.0,
            f"nominal: a fit on {len(colours)} regions explained only {explained:.2f}",
        )
    confidence = float(np.clip((explained - 0.1) / 0.4, 0.0, 1.0))
    confidence *= float(1.0 - np.exp(-len(colours) / 6.0))
    return Calibration(
        round(oxide_nm, 1),
        (round(float(gains[0]), 3), round(float(gains[1]), 3), round(float(gains[2]), 3)),
        round(confidence, 3),
        f"fitted on {len(colours)} regions",
    )


def _cost(oxide_nm: float, nominal_oxide_nm: float, gains: FloatArray) -> float:
    detour = (np.log(oxide_nm / nominal_oxide_nm) / _OXIDE_SIGMA) ** 2
    return float(_OXIDE_COST * detour + _GAIN_COST * np.abs(np.log(gains)).sum())


def _descended(
    colours: FloatArray,
    weights: FloatArray,
    materials: Sequence[str],
    oxide_nm: float,
    gains: FloatArray,
    nominal_oxide_nm: float,
    optics: Optics,
    pull: float,
) -> tuple[float, float, FloatArray]:
    """Coordinate descent with shrinking steps."""

    def value(oxide: float, gain: FloatArray) -> float:
        merit = _merit(colours, weights, materials, round(oxide, 1), gain, optics)
        return merit - pull * _cost(oxide, nominal_oxide_nm, gain)

    best = value(oxide_nm, gains)
    for step in (0.06, 0.03, 0.015):
        for _ in range(4):
            before = best
            for scale in (1.0 - step / 2, 1.0 + step / 2):
                new = value(oxide_nm * scale, gains)
                if new > best:
                    best, oxide_nm = new, oxide_nm * scale
            for channel in range(3):
                for scale in (1.0 - step, 1.0 + step):
                    other = gains.copy()
                    other[channel] *= scale
                    if not 0.6 <= other[channel] <= 1.5:
                        continue
                    new = value(oxide_nm, other)
                    if new > best:
                        best, gains = new, other
            if best <= before + 1e-6:
                break
    return best, oxide_nm, gains


def _merit(
    colours: FloatArray,
    weights: FloatArray,
    materials: Sequence[str],
    oxide_nm: float,
    gains: FloatArray,
    optics: Optics,
) -> float:
    """Weighted share of terraces explained, 0..1.

    Near the curve counts a little, near a rung counts fully where rungs are far enough apart to be
    told from each other.
    """
    size = np.linalg.norm(colours, axis=1)
    explained = np.zeros(len(colours), dtype=np.float32)
    for material in materials:
        layer_nm = MATERIALS[material].layer_thickness_nm
        grid = layer_grid(layer_nm)
        curve = model_contrast(material, round(oxide_nm, 1), optics) * gains
        whole = np.isclose(grid, np.round(grid)) & (grid >= 1.0)
        rungs = curve[whole]
        to_curve = _squared_distances(colours, curve[grid >= 0.5])
        to_rung = _squared_distances(colours, rungs)
        nearest = np.argmin(to_rung, axis=1)
        spacing = np.linalg.norm(np.diff(rungs, axis=0), axis=1)
        spacing = np.r_[spacing, spacing[-1:]]
        trust = 0.5 * np.minimum(1.0, spacing[nearest] / 0.08)
        loose = np.exp(-0.5 * to_curve.min(axis=1) / (0.02 + 0.05 * size) ** 2)
        tight = np.exp(-0.5 * to_rung.min(axis=1) / 0.02**2)
        explained = np.maximum(explained, (1.0 - trust) * loose + trust * tight)
    return float(np.dot(weights, explained))


def _squared_distances(points: FloatArray, curve: FloatArray) -> FloatArray:
    difference = points[:, None, :] - curve[None, :, :]
    return np.asarray(np.einsum("ijk,ijk->ij", difference, difference), dtype=np.float32)


def same_substrate(a_rgb: tuple[float, float, float], b_rgb: tuple[float, float, float]) -> bool:
    """Equal tint within 6 % and equal brightness within 15 %: one wafer under one lamp."""
    moved = drift(a_rgb, b_rgb)
    tint = max(abs(moved.red_over_green), abs(moved.blue_over_green))
    return tint < 0.06 and abs(moved.brightness) < 0.15


def grouped_by_substrate(
    substrates_rgb: Sequence[tuple[float, float, float]],
) -> list[list[int]]:
    """Indices of photographs whose substrates look the same, each in exactly one group."""
    groups: list[list[int]] = []
    for k, colour in enumerate(substrates_rgb):
        for group in groups:
            if same_substrate(colour, substrates_rgb[group[0]]):
                group.append(k)
                break
        else:
            groups.append([k])
    return groups


def save_calibration(path: Path, calibrations: Sequence[SubstrateCalibration]) -> None:
    """Write calibrations as JSON, one entry a substrate."""
    entries = [
        {
            "substrate_rgb": list(c.substrate_rgb),
            "oxide_nm": c.calibration.oxide_nm,
            "gain_rgb": list(c.calibration.gain_rgb),
            "confidence": c.calibration.confidence,
            "source": c.calibration.source,
        }
        for c in calibrations
    ]
    text = json.dumps({"format": "flake-calibration", "version": 1, "entries": entries}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def load_calibration(path: Path) -> tuple[SubstrateCalibration, ...]:
    """Read what `save_calibration` wrote. Raises BadModel, naming file and field."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadModel(f"{path}: cannot be read as a flake calibration: {error}") from error
    if not isinstance(content, dict) or content.get("format") != "flake-calibration":
        raise BadModel(f"{path}: 'format' is not 'flake-calibration'")
    entries = content.get("entries")
    if not isinstance(entries, list):
        raise BadModel(f"{path}: 'entries' is not a list")
    found = []
    for number, entry in enumerate(entries):
        where = f"{path}: entries[{number}]"
        if not isinstance(entry, dict):
            raise BadModel(f"{where} is not an object")
        found.append(
            SubstrateCalibration(
                _three(entry, "substrate_rgb", where, 0.0, 65535.0),
                Calibration(
                    _number(entry, "oxide_nm", where, 1.0, 2000.0),
                    _three(entry, "gain_rgb", where, 0.1, 10.0),
                    _number(entry, "confidence", where, 0.0, 1.0),
                    str(entry.get("source", path.name)),
                ),
            )
        )
    return tuple(found)


def _number(entry: dict[str, object], key: str, where: str, low: float, high: float) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadModel(f"{where}.{key} is {value!r}, not a number in {low:g}..{high:g}")
    return float(value)


def _three(
    entry: dict[str, object], key: str, where: str, low: float, high: float
) -> tuple[float, float, float]:
    value = entry.get(key)
    if not isinstance(value, list) or len(value) != 3:
        raise BadModel(f"{where}.{key} is {value!r}, not three numbers")
    red, green, blue = (_number({key: v}, key, where, low, high) for v in value)
    return red, green, blue
