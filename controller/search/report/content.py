"""What a report is made of: plain data and pictures, nothing that has to be looked up.

Coordinates are stage um (x right, y up) unless a name says `chip`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from controller.messages import (
    CalibrationFitted,
    CatalogueEntry,
    ChipFound,
    CommandRefused,
    FocusMeasured,
    FramesMissing,
    Piece,
    PlannedTile,
    Ring,
    RunFinished,
    RunStarted,
    Skipped,
)

RGB8: TypeAlias = npt.NDArray[np.uint8]  # (h, w, 3), R, G, B, y down


Grid: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class MapImage:
    """The stitched chip; y down in the picture is decreasing stage y."""

    pixels: RGB8
    x_um: float  # stage position of the CENTRE of pixel (0, 0), the upper left one
    y_um: float
    um_per_px: float


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One picture of one entry; the crop's centre lies at (stage_x_um, stage_y_um)."""

    pixels: RGB8
    pixel_size_nm: float
    stage_x_um: float
    stage_y_um: float
    objective: str
    outline_um: Ring = ()  # as seen in this picture; empty: the catalogue's outline is drawn
    holes_um: tuple[Ring, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class EntryCrops:
    """The pictures of one catalogue entry."""

    entry_id: int
    scan: Crop | None  # None: no picture was kept
    revisit: Crop | None  # None: not revisited, or no picture was kept


@dataclass(frozen=True, slots=True, eq=False)
class LoneTerrace:
    """A wanted terrace that only the detector saw that did not lead there."""

    detector: str
    leader: str
    piece: Piece
    stage_um: tuple[float, float]
    chip_um: tuple[float, float] | None  # None: no chip outline was found
    crop: Crop | None  # None: no picture was kept


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The contrast that physics expects of a material on this substrate, as a curve."""

    material: str
    layers: Grid  # (n,) ascending; fractions allowed
    contrast_rgb: Grid  # (n, 3), I / I_substrate - 1


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceGrid:
    """The focus surface, sampled."""

    x_um: Grid  # (nx,) ascending
    y_um: Grid  # (ny,) ascending
    focus_z_um: Grid  # (ny, nx); NaN where the surface is not claimed
    model: str  # "plane", "quadratic" ...


@dataclass(frozen=True, slots=True)
class TileQuality:
    """What the detector said of one tile's picture."""

    index: int  # `PlannedTile.index`
    sharpness: float
    in_distribution: bool
    reason: str


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Instrument time spent in one phase, all sessions together."""

    phase: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class ScanBound:
    """What the scan's time bound is made of."""

    moves_s: float
    settling_s: float
    exposures_s: float


@dataclass(frozen=True, slots=True)
class TruthRow:
    """Found against present, for runs on a simulated chip, whose truth is known."""

    material: str
    layers: int
    present: int
    found: int  # of those present
    false: int  # in the catalogue, not on the chip


@dataclass(frozen=True, slots=True)
class Download:
    """A file that lies beside the report."""

    label: str
    path: str  # relative to the report
    note: str


@dataclass(frozen=True, slots=True, eq=False)
class ReportContent:
    """All that the page shows."""

    started: RunStarted  # of the first session
    finished: RunFinished | None  # None: the last session was cut off
    sessions: int
    instrument_time_s: float  # on the instrument's clock, all sessions together
    wanted: str  # what the user asked for, in words
    entries: tuple[CatalogueEntry, ...]
    crops: tuple[EntryCrops, ...] = ()
    alone: tuple[LoneTerrace, ...] = ()
    chip: ChipFound | None = None  # None: no outline was found
    mosaic: MapImage | None = None  # None: no tile was saved
    calibration: CalibrationFitted | None = None  # None: the nominal optics were used
    ladders: tuple[Ladder, ...] = ()
    tiles: tuple[PlannedTile, ...] = ()
    field_w_um: float = 0.0
    field_h_um: float = 0.0
    tile_quality: tuple[TileQuality, ...] = ()
    focus_points: tuple[FocusMeasured, ...] = ()
    focus_surface: SurfaceGrid | None = None  # None: too few points
    phases: tuple[PhaseTime, ...] = ()
    scan_bound: ScanBound | None = None  # None: only the sum is known
    skipped: tuple[Skipped, ...] = ()
    refused: tuple[CommandRefused, ...] = ()
    frames_missing: tuple[FramesMissing, ...] = ()
    warnings: tuple[str, ...] = ()
    truth: tuple[TruthRow, ...] = ()  # empty: a real sample
    downloads: tuple[Download, ...] = ()
