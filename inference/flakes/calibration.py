"""What a microscope's colours say about its optics: an effective oxide and three gains, fitted.

The ladder's physics is right up to a few numbers that nobody knows exactly: the oxide's thickness,
the lamp, the camera's filters and curve, stray light. An effective oxide and one gain per channel
absorb them; the part of the gains that stray light (flare) explains comes cheaper in the fit. They
are constants of a microscope and a wafer, not of a picture: the fit pools the contrasts of many
clean terraces from many tiles with the same substrate colour. A single tile is ambiguous (one
lonely bilayer fits as a trilayer with gain 0.8), hence the strong pull towards gains of one and the
nominal oxide, and hence the confidence, which says when the fit is not to be used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inference.api import BadModel, Calibration
from inference.flakes.ladder import Optics, bare_signal, layer_grid, model_contrast
from inference.flakes.materials import curves, curves_of

FloatArray = npt.NDArray[np.float32]

USABLE_FIT = 0.25
"""A fit explaining less of the terraces is worse than none; measured .35-.57 where right."""

_GAIN_COST = 0.3  # per unit of |ln gain|, against a fit of 0..1
_GAIN_RANGE = (0.7, 1.45)
_FLARE_COST = 3.0  # per share of a mirror's light; 0.01 is a tenth of a bare substrate's
_FLARES = (0.0, 0.006, 0.015, 0.03, 0.05)
_OXIDE_SIGMA = 0.15  # of ln(oxide / nominal)
_OXIDE_COST = 0.1
_CURVE_COST = 0.04  # another laboratory's index must explain that much more than the usual one
_LAMPS = (0.8, 1.25, 1.6, 2.0)  # colour temperatures tried, relative to the usual one
_LAMP_COST = 0.05  # another lamp must explain that much more, and
_LAMP_LEVELS = 8  # fewer terraces do not tell a lamp from gains
_COARSE_OXIDES = np.linspace(-0.3, 0.3, 13)  # of ln(oxide / nominal), to start from
_FINE_OXIDES = np.linspace(-0.3, 0.3, 31)
_STARTS, _APART = 4, 0.03
_FINE_COST = 0.05
_WELL = 0.975  # share of the terraces explained: no need to look further
_PULL_LEVELS = 10.0
_PLAUSIBLE = 0.06  # a level further from the nominal ladder than this,
_PLAUSIBLE_RELATIVE = 0.25  # plus this share of its contrast, is no crystal of these materials
_PLAUSIBLE_FLARES = (1.0, 0.8, 0.62)  # contrasts may be weaker than the ladder's all together
_MOST_LEVELS = 240  # more say nothing new


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
    index_curves: tuple[tuple[str, str], ...] = ()  # (material, measurement) where not the usual
    lamp_k: float | None = None  # that explains the terraces clearly better; None: the usual one


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


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """What the fit works on."""

    colours: FloatArray  # (n, 3)
    weights: FloatArray  # (n,) summing to 1
    materials: tuple[str, ...]
    nominal_oxide_nm: float
    pull: float  # of the nominal values; the fewer the levels the stronger


@dataclass(frozen=True, slots=True)
class _Guess:
    """A point of the fit: everything that the contrasts may depend on."""

    oxide_nm: float
    flare: float  # light without an image, as a share of what a mirror would send
    rest: tuple[float, float, float]  # gains that flare does not explain
    optics: Optics

    def gains(self) -> FloatArray:
        """Measured contrast over model contrast, (3,)."""
        bare = bare_signal(round(self.oxide_nm, 1), self.optics)
        return np.asarray(self.rest, dtype=np.float32) * bare / (bare + np.float32(self.flare))

    def merit(self, levels: _Levels) -> float:
        """Share of the levels explained, 0..1."""
        return _merit(levels, self.oxide_nm, self.gains(), self.optics)

    def value(self, levels: _Levels) -> float:
        """What the fit makes as large as it can: the merit, less the cost of being odd."""
        detour = np.log(self.oxide_nm / levels.nominal_oxide_nm) / _OXIDE_SIGMA
        cost = _OXIDE_COST * detour**2 + _FLARE_COST * self.flare
        cost += _GAIN_COST * sum(abs(float(np.log(g))) for g in self.rest)
        return self.merit(levels) - levels.pull * float(cost)


def fit_calibration(
    levels: Sequence[Level],
    materials: Sequence[str],
    nominal_oxide_nm: float,
    optics: Optics,
    substrate_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> SubstrateCalibration:
    """Fit effective oxide, flare and gains to pooled terraces; nominal when they explain little.

    Where `optics` does not say which measurement of a material's index to use, the one that
    explains the terraces clearly best is taken: laboratories disagree, and monolayer curves are
    wrong for multilayers of the dichalcogenides.
    """
    nominal = nominal_calibration(nominal_oxide_nm)
    pooled = _pooled(levels, tuple(materials), nominal_oxide_nm, optics)
    if pooled is None:
        return SubstrateCalibration(substrate_rgb, nominal)
    best = _fitted(pooled, optics)
    for _ in range(2):  # an index and a lamp, or the indices of two materials
        if best.merit(pooled) > _WELL:
            break
        better, least = best, 0.0
        for other, cost in _alternatives(best.optics, optics, materials, len(pooled.colours)):
            guess = _fitted(pooled, other)
            gained = guess.value(pooled) - best.value(pooled) - pooled.pull * cost
            if gained > least:
                better, least = guess, gained
        if better is best:
            break
        best = better
    chosen = best.optics.index_curves[len(optics.index_curves) :]
    lamp_k = None if best.optics.lamp_k == optics.lamp_k else best.optics.lamp_k
    explained = best.merit(pooled)
    count = len(pooled.colours)
    if explained < USABLE_FIT:
        source = f"nominal: a fit on {count} regions explained only {explained:.2f}"
        return SubstrateCalibration(substrate_rgb, replace(nominal, source=source))
    confidence = float(np.clip((explained - 0.1) / 0.4, 0.0, 1.0))
    confidence *= float(1.0 - np.exp(-count / 6.0))
    gains = best.gains()
    source = f"fitted on {count} regions"
    if chosen:
        source += ", index " + ", ".join("/".join(curve) for curve in chosen)
    if lamp_k is not None:
        source += f", lamp {lamp_k:.0f} K"
    return SubstrateCalibration(
        substrate_rgb,
        Calibration(
            round(best.oxide_nm, 1),
            (round(float(gains[0]), 3), round(float(gains[1]), 3), round(float(gains[2]), 3)),
            round(confidence, 3),
            source,
        ),
        chosen,
        lamp_k,
    )


def _alternatives(
    optics: Optics, usual: Optics, materials: Sequence[str], levels: int
) -> list[tuple[Optics, float]]:
    """Other laboratories' indices and other lamps, each with what it must explain more."""
    found = []
    for material in materials:
        if material in dict(optics.index_curves):
            continue
        for measurement in curves_of(material):
            other = replace(optics, index_curves=(*optics.index_curves, (material, measurement)))
            if other.material(material).curve.key != optics.material(material).curve.key:
                found.append((other, _CURVE_COST))
    if optics.lamp_k == usual.lamp_k and levels >= _LAMP_LEVELS:
        found += [
            (replace(optics, lamp_k=float(round(usual.lamp_k * ratio))), _LAMP_COST)
            for ratio in _LAMPS
        ]
    return found


def _pooled(
    levels: Sequence[Level], materials: tuple[str, ...], nominal_oxide_nm: float, optics: Optics
) -> _Levels | None:
    """The levels that could be these materials at all; None if too few are."""
    if len(levels) < 3:
        return None
    colours = np.array([level.contrast_rgb for level in levels], dtype=np.float32)
    weights = np.sqrt(np.array([level.area_px for level in levels], dtype=np.float32))
    size = np.linalg.norm(colours, axis=1)
    plausible = np.zeros(len(levels), dtype=np.bool_)
    for material in materials:
        curve = model_contrast(material, nominal_oxide_nm, optics)[1:]
        for scale in _PLAUSIBLE_FLARES:
            nearest = np.sqrt(_squared_distances(colours, scale * curve).min(axis=1))
            plausible |= nearest < _PLAUSIBLE + _PLAUSIBLE_RELATIVE * size
    keep = np.flatnonzero(plausible)
    if keep.size < 3:
        return None
    if keep.size > _MOST_LEVELS:
        by_area = keep[np.argsort(-weights[keep], kind="stable")]
        keep = by_area[np.linspace(0, by_area.size - 1, _MOST_LEVELS).astype(np.int64)]
    weights = weights[keep] / weights[keep].sum()
    pull = 1.0 + _PULL_LEVELS / keep.size
    return _Levels(colours[keep], weights, materials, nominal_oxide_nm, pull)


def _fitted(levels: _Levels, optics: Optics) -> _Guess:
    """The best of a coarse grid, improved step by step; of a finer one if that is clearly better.

    With a handful of terraces the finer grid's optimum differs by chance, and a start near the
    nominal values is the better guess.
    """
    coarse = _best(levels, optics, _COARSE_OXIDES, 3, 0.0)
    if coarse.merit(levels) > _WELL:
        return coarse
    fine = _best(levels, optics, _FINE_OXIDES, _STARTS, _APART)
    gained = fine.value(levels) - coarse.value(levels)
    return fine if gained > levels.pull * _FINE_COST else coarse


def _best(
    levels: _Levels, optics: Optics, logs: npt.NDArray[np.float64], most: int, apart: float
) -> _Guess:
    """Descents from the `most` best points of a grid whose ln(oxide) differ by `apart`."""
    grid = [
        _Guess(float(oxide_nm), flare, (red, 1.0, 1.0), optics)
        for oxide_nm in levels.nominal_oxide_nm * np.exp(logs)
        for flare in _FLARES
        for red in (0.75, 0.85, 1.0, 1.15)
    ]
    grid.sort(key=lambda guess: -guess.value(levels))
    starts: list[_Guess] = []
    for guess in grid:
        if len(starts) < most and all(
            abs(np.log(guess.oxide_nm / other.oxide_nm)) >= apart for other in starts
        ):
            starts.append(guess)
    improved = [_descended(guess, levels) for guess in starts]
    return max(improved, key=lambda guess: guess.value(levels))


def _descended(guess: _Guess, levels: _Levels) -> _Guess:
    """Coordinate descent with shrinking steps."""
    best = guess.value(levels)
    for step in (0.06, 0.03, 0.015):
        for _ in range(4):
            before = best
            for other in _neighbours(guess, step):
                value = other.value(levels)
                if value > best:
                    best, guess = value, other
            if best <= before + 1e-6:
                break
    return guess


def _neighbours(guess: _Guess, step: float) -> list[_Guess]:
    found = [replace(guess, oxide_nm=guess.oxide_nm * (1.0 + sign * step / 2)) for sign in (-1, 1)]
    found += [replace(guess, flare=max(guess.flare + sign * 0.1 * step, 0.0)) for sign in (-1, 1)]
    for channel in range(3):
        for sign in (-1, 1):
            rest = list(guess.rest)
            rest[channel] *= 1.0 + sign * step
            if _GAIN_RANGE[0] <= rest[channel] <= _GAIN_RANGE[1]:
                found.append(replace(guess, rest=(rest[0], rest[1], rest[2])))
    return found


def _merit(levels: _Levels, oxide_nm: float, gains: FloatArray, optics: Optics) -> float:
    """Weighted share of terraces explained, 0..1.

    Near the curve counts a little, near a rung counts fully where rungs are far enough apart to be
    told from each other.
    """
    colours = levels.colours
    size = np.linalg.norm(colours, axis=1)
    explained = np.zeros(len(colours), dtype=np.float32)
    for material in levels.materials:
        first, whole = _places(optics.material(material).layer_thickness_nm)
        curve = model_contrast(material, round(oxide_nm, 1), optics) * gains
        rungs = curve[whole]
        to_curve = _squared_distances(colours, curve[first:])
        to_rung = _squared_distances(colours, rungs)
        nearest = np.argmin(to_rung, axis=1)
        spacing = np.linalg.norm(np.diff(rungs, axis=0), axis=1)
        spacing = np.r_[spacing, spacing[-1:]]
        trust = 0.5 * np.minimum(1.0, spacing[nearest] / 0.08)
        loose = np.exp(-0.5 * to_curve.min(axis=1) / (0.02 + 0.05 * size) ** 2)
        tight = np.exp(-0.5 * to_rung.min(axis=1) / 0.02**2)
        explained = np.maximum(explained, (1.0 - trust) * loose + trust * tight)
    return float(np.dot(levels.weights, explained))


@lru_cache(maxsize=64)
def _places(layer_nm: float) -> tuple[int, npt.NDArray[np.int64]]:
    """On a ladder's grid: where half a layer is reached, and where the whole numbers lie."""
    grid = layer_grid(layer_nm)
    whole = np.flatnonzero(np.isclose(grid, np.round(grid)) & (grid >= 1.0))
    return int(np.searchsorted(grid, 0.5)), whole


def _squared_distances(points: FloatArray, curve: FloatArray) -> FloatArray:
    products = points @ curve.T
    sums = np.einsum("ij,ij->i", points, points)[:, None] + np.einsum("ij,ij->i", curve, curve)
    return np.asarray(np.maximum(sums - 2.0 * products, 0.0), dtype=np.float32)


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
    entries = [entry_of(calibration) for calibration in calibrations]
    text = json.dumps({"format": "flake-calibration", "version": 1, "entries": entries}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def entry_of(wafer: SubstrateCalibration) -> dict[str, object]:
    """One wafer as JSON has it."""
    return {
        "substrate_rgb": list(wafer.substrate_rgb),
        "oxide_nm": wafer.calibration.oxide_nm,
        "gain_rgb": list(wafer.calibration.gain_rgb),
        "confidence": wafer.calibration.confidence,
        "source": wafer.calibration.source,
        "index_curves": [list(pair) for pair in wafer.index_curves],
        "lamp_k": wafer.lamp_k,
    }


def load_calibration(path: Path) -> tuple[SubstrateCalibration, ...]:
    """Read what `save_calibration` wrote. Raises BadModel, naming file and field."""
    return read_entries(path, read_json(path))


def read_json(path: Path) -> dict[str, object]:
    """A calibration file's content. Raises BadModel, naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadModel(f"{path}: cannot be read as a flake calibration: {error}") from error
    if not isinstance(content, dict) or content.get("format") != "flake-calibration":
        raise BadModel(f"{path}: 'format' is not 'flake-calibration'")
    return content


def read_entries(path: Path, content: dict[str, object]) -> tuple[SubstrateCalibration, ...]:
    """The wafers of a calibration file. Raises BadModel, naming file and field."""
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
                checked_three(entry, "substrate_rgb", where, 0.0, 65535.0),
                Calibration(
                    checked_number(entry, "oxide_nm", where, 1.0, 2000.0),
                    checked_three(entry, "gain_rgb", where, 0.1, 10.0),
                    checked_number(entry, "confidence", where, 0.0, 1.0),
                    str(entry.get("source", path.name)),
                ),
                _curve_choice(entry, where),
                None
                if entry.get("lamp_k") is None
                else checked_number(entry, "lamp_k", where, 1500.0, 20000.0),
            )
        )
    return tuple(found)


def checked_number(
    entry: dict[str, object], key: str, where: str, low: float, high: float
) -> float:
    """A number of a calibration file. Raises BadModel, naming place and range."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadModel(f"{where}.{key} is {value!r}, not a number in {low:g}..{high:g}")
    return float(value)


def _curve_choice(entry: dict[str, object], where: str) -> tuple[tuple[str, str], ...]:
    value = entry.get("index_curves", [])
    if not isinstance(value, list):
        raise BadModel(f"{where}.index_curves is {value!r}, not a list of pairs")
    found = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or "/".join(map(str, pair)) not in curves():
            raise BadModel(f"{where}.index_curves has {pair!r}, no (material, measurement) known")
        found.append((str(pair[0]), str(pair[1])))
    return tuple(found)


def checked_three(
    entry: dict[str, object], key: str, where: str, low: float, high: float
) -> tuple[float, float, float]:
    """Three numbers of a calibration file. Raises BadModel, naming place and range."""
    value = entry.get(key)
    if not isinstance(value, list) or len(value) != 3:
        raise BadModel(f"{where}.{key} is {value!r}, not three numbers")
    red, green, blue = (checked_number({key: v}, key, where, low, high) for v in value)
    return red, green, blue
