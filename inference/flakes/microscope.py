"""What one microscope does to colours, whatever lies under it: kept in a file and used again.

Three things, each known or not:

- a correction of contrasts, affine per channel (`ladder.Correction`): camera curve, colour matrix,
  stray light. Fitted once, from outlined flakes (`adapt`) or from what searches found, it holds for
  every chip seen with that camera and lamp;
- the white: which digital numbers a mirror would give. With it the bare substrate's TINT tells the
  oxide, without a single flake: 10 nm move R/G and B/G by 20 % each, at 90 and at 285 nm alike;
- calibrations of wafers seen before, each with its substrate's colour, to be found again by it.

The file is JSON, one for a microscope; `save_microscope` and `load_microscope` belong together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.api import BadModel, Calibration
from inference.flakes.calibration import (
    SubstrateCalibration,
    checked_number,
    checked_three,
    entry_of,
    read_entries,
    read_json,
)
from inference.flakes.ladder import NO_CORRECTION, Correction, Optics, bare_signal

_TINT_SIGMA = 0.02  # of ln(R/G) and ln(B/G): a good white and a good substrate
_OXIDE_SIGMA = 0.15  # of ln(oxide / nominal)
_TINT_FITS = 3.0  # sigmas: a tint further from all oxides is no such substrate under such a lamp
_SUBSTRATE_CONFIDENCE = 0.6  # of an oxide read from a substrate: better than nominal, less than fit
_UNKNOWN = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Microscope:
    """What is known of one."""

    correction: Correction = NO_CORRECTION
    white_rgb: tuple[float, float, float] = _UNKNOWN  # of a mirror; (0, 0, 0): not known
    confidence: float = 0.0  # of the correction: 0 none was fitted, 1 many flakes agree
    source: str = "nominal"
    wafers: tuple[SubstrateCalibration, ...] = ()


def white_of(wafers: Sequence[SubstrateCalibration], optics: Optics) -> tuple[float, float, float]:
    """Digital numbers of a mirror, from wafers whose oxide terraces have told; else (0, 0, 0)."""
    weights, logs = [], []
    for wafer in wafers:
        if min(wafer.substrate_rgb) <= 0.0 or wafer.calibration.confidence <= 0.0:
            continue
        bare = bare_signal(round(wafer.calibration.oxide_nm, 1), optics)
        logs.append(np.log(np.asarray(wafer.substrate_rgb) / bare))
        weights.append(wafer.calibration.confidence)
    if not logs:
        return _UNKNOWN
    red, green, blue = np.exp(np.average(np.array(logs), axis=0, weights=weights))
    return float(red), float(green), float(blue)


def microscope_of(
    wafers: Sequence[SubstrateCalibration], optics: Optics, source: str
) -> Microscope:
    """What wafers have in common becomes the microscope's, what is left stays theirs.

    optics: those that the wafers were fitted with, their own correction included.
    """
    weights = np.array([wafer.calibration.confidence for wafer in wafers])
    if weights.sum() <= 0.0:
        return Microscope(optics.correction, wafers=tuple(wafers))
    logs = np.log([wafer.calibration.gain_rgb for wafer in wafers])
    common = np.exp(np.average(logs, axis=0, weights=weights))
    old = optics.correction
    gain = np.asarray(old.gain_rgb) * common
    offset = np.asarray(old.offset_rgb) * common
    kept = []
    for wafer in wafers:
        own = np.asarray(wafer.calibration.gain_rgb) / common
        kept.append(
            replace(wafer, calibration=replace(wafer.calibration, gain_rgb=_rounded(own, 4)))
        )
    return Microscope(
        Correction(_rounded(gain, 4), _rounded(offset, 5)),
        _rounded(np.asarray(white_of(wafers, optics)), 2),
        float(weights.max()),
        source,
        tuple(kept),
    )


def oxide_from_substrate(
    substrate_rgb: tuple[float, float, float],
    white_rgb: tuple[float, float, float],
    nominal_oxide_nm: float,
    optics: Optics,
) -> Calibration | None:
    """The oxide that gives a substrate its tint; None where none near the nominal one does.

    Exposure cancels. A lamp that burns hotter than when the white was taken looks like a thicker
    oxide: use the white of the same lamp.
    """
    if min(substrate_rgb) <= 0.0 or min(white_rgb) <= 0.0:
        return None
    seen = np.log(np.asarray(substrate_rgb) / np.asarray(white_rgb))
    tint = seen[[0, 2]] - seen[1]
    oxides_nm = nominal_oxide_nm * np.exp(np.linspace(-0.3, 0.3, 121))
    bare = np.log(np.array([bare_signal(round(float(nm), 1), optics) for nm in oxides_nm]))
    off = (bare[:, [0, 2]] - bare[:, [1]] - tint) / _TINT_SIGMA
    misfit = np.einsum("ij,ij->i", off, off)
    detour = (np.log(oxides_nm / nominal_oxide_nm) / _OXIDE_SIGMA) ** 2
    best = int(np.argmin(misfit + detour))
    if misfit[best] > _TINT_FITS**2:
        return None
    weights = np.exp(-0.5 * (misfit + detour - (misfit + detour)[best]))
    oxide_nm = float(np.average(oxides_nm, weights=weights))
    return Calibration(
        round(oxide_nm, 1), (1.0, 1.0, 1.0), _SUBSTRATE_CONFIDENCE, "oxide read from the substrate"
    )


def save_microscope(path: Path, microscope: Microscope) -> None:
    """Write it as JSON."""
    content = {
        "format": "flake-calibration",
        "version": 2,
        "microscope": {
            "gain_rgb": list(microscope.correction.gain_rgb),
            "offset_rgb": list(microscope.correction.offset_rgb),
            "white_rgb": list(microscope.white_rgb),
            "confidence": microscope.confidence,
            "source": microscope.source,
        },
        "entries": [entry_of(wafer) for wafer in microscope.wafers],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_microscope(path: Path) -> Microscope:
    """Read what `save_microscope` or `save_calibration` wrote. Raises BadModel: file and field."""
    content = read_json(path)
    wafers = read_entries(path, content)
    table = content.get("microscope")
    if table is None:
        return Microscope(wafers=wafers, source=path.name)
    where = f"{path}: microscope"
    if not isinstance(table, dict):
        raise BadModel(f"{where} is not an object")
    return Microscope(
        Correction(
            checked_three(table, "gain_rgb", where, 0.2, 5.0),
            checked_three(table, "offset_rgb", where, -0.5, 0.5),
        ),
        checked_three(table, "white_rgb", where, 0.0, 1e7),
        checked_number(table, "confidence", where, 0.0, 1.0),
        str(table.get("source", path.name)),
        wafers,
    )


def _rounded(values: np.ndarray, digits: int) -> tuple[float, float, float]:
    red, green, blue = (round(float(v), digits) for v in values)
    return red, green, blue
