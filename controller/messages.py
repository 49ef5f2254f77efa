"""What happened: the facts of a run, in the order in which they became true.

A run is the fold of its facts. The journal stores them, resume and replay read them back, the
report is drawn from them; nothing else is remembered. So a fact is plain data: frozen, closed
under JSON, with its units in its names, and it says everything that a later decision may need.

Facts are appended only after they are true: `Saved` after the chunk is on disk, `Exposed` after
the light was taken. Intentions are not facts; what a crash interrupted is found by what is missing.

Coordinates are stage um (x right, y up) unless a name says `chip`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, TypeAdapter

Point: TypeAlias = tuple[float, float]
Ring: TypeAlias = tuple[Point, ...]  # closed implicitly: the first point is not repeated
ShotKind: TypeAlias = Literal["overview", "focus", "tile", "revisit"]
Phase: TypeAlias = Literal["overview", "focus", "scan", "revisit", "report"]
FocusPurpose: TypeAlias = Literal["overview", "seed", "track", "revisit"]
Outcome: TypeAlias = Literal["complete", "stopped", "failed"]
Difference: TypeAlias = Literal["existence", "material", "layers", "area"]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The first fact of every session of a run; a resumed run has one for each session."""

    run_id: str
    name: str
    settings_toml: str  # the settings in force, as written by the user
    versions: dict[str, str]
    instrument: dict[str, str]
    started_at_utc: str  # ISO 8601
    session: int  # 0 for the first, 1 for the first resume ...
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """The run entered a phase."""

    phase: Phase
    at_s: float
    kind: Literal["phase_started"] = "phase_started"


@dataclass(frozen=True, slots=True)
class Exposed:
    """Light was taken: frame `number` of the camera is shot `index` of its kind."""

    shot: ShotKind
    index: int
    number: int  # the camera's own counter
    exposed_from_s: float
    exposed_until_s: float
    stage_x_um: float
    stage_y_um: float
    focus_z_um: float
    objective: str
    pixel_size_nm: float
    exposure_s: float
    kind: Literal["exposed"] = "exposed"


@dataclass(frozen=True, slots=True)
class Saved:
    """The pixels of a shot are on disk, complete, under `path` (relative to the run's folder)."""

    shot: ShotKind
    index: int
    path: str
    checksum: str  # "crc32:%08x" of the raw pixels in C order
    kind: Literal["saved"] = "saved"


@dataclass(frozen=True, slots=True)
class Piece:
    """One terrace as one image shows it."""

    outline_um: Ring
    holes_um: tuple[Ring, ...]
    material: str
    layers: int
    layer_probabilities: tuple[tuple[int, float], ...]
    thickness_nm: float
    contrast_rgb: tuple[float, float, float]
    off_ladder: float
    score: float
    area_um2: float
    touches_border: bool
    # Holds 95 % of the probability; None: nobody worked it out.
    thickness_interval_nm: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Analysed:
    """The detector's answer to a shot."""

    shot: ShotKind
    index: int
    detector: str
    sharpness: float
    substrate_rgb: tuple[float, float, float]
    in_distribution: bool
    reason: str
    pieces: tuple[Piece, ...]
    compute_s: float
    kind: Literal["analysed"] = "analysed"


@dataclass(frozen=True, slots=True)
class ChipFound:
    """The chip's outline, and the frame in which a flake can be found again on another stage."""

    outline_um: Ring
    origin_x_um: (
        float  # stage position of the chip frame's origin (the outline's lower left corner)
    )
    origin_y_um: float
    rotation_deg: float  # counter-clockwise from stage x to chip x
    confidence: float
    kind: Literal["chip_found"] = "chip_found"


@dataclass(frozen=True, slots=True)
class FocusMeasured:
    """One autofocus, whether it found focus or not."""

    stage_x_um: float
    stage_y_um: float
    focus_z_um: float
    sigma_um: float
    is_confident: bool
    reason: str
    objective: str
    frames: int
    at_s: float
    purpose: FocusPurpose
    # (focus_z_um, sharpness or score) of the method that ended it, in order of exposure
    samples: tuple[tuple[float, float], ...] = ()
    method: Literal["few_frames", "sweep"] = "sweep"  # the one that ended it
    doubt: str = ""  # why the networks' answer was not taken; "" where it was, or none was asked
    kind: Literal["focus_measured"] = "focus_measured"


@dataclass(frozen=True, slots=True)
class CalibrationFitted:
    """What the detector takes the microscope's colours to mean from here on.

    One fact for each kind of substrate that was seen, the commonest first; normally one.
    """

    oxide_nm: float
    gain_rgb: tuple[float, float, float]
    confidence: float
    source: str
    substrate_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)  # digital numbers, where fitted
    objective: str = ""  # the one it was fitted with
    # Material and the measurement of its index that explains the colours best: (material, curve).
    index_curves: tuple[tuple[str, str], ...] = ()
    lamp_k: float | None = None  # colour temperature that explains them best; None: the settings'
    kind: Literal["calibration_fitted"] = "calibration_fitted"


@dataclass(frozen=True, slots=True)
class LightChanged:
    """The bare substrate looks otherwise than on the tiles just before: lamp, filter or camera.

    Told of the first tile after. No label changes by it: what is read under another tint than the
    calibration's is set aside until colours were fitted for it, which is a fact of its own.
    """

    shot: ShotKind
    index: int
    before_rgb: tuple[float, float, float]  # digital numbers of the substrate
    after_rgb: tuple[float, float, float]
    is_tint: bool  # not the brightness alone, which cancels in a contrast
    reason: str
    kind: Literal["light_changed"] = "light_changed"


@dataclass(frozen=True, slots=True)
class PlannedTile:
    """One field of the scan."""

    index: int
    x_um: float
    y_um: float


@dataclass(frozen=True, slots=True)
class ScanPlanned:
    """The tiles in the order of the scan."""

    tiles: tuple[PlannedTile, ...]
    objective: str
    field_w_um: float
    field_h_um: float
    overlap_ratio: float
    kind: Literal["scan_planned"] = "scan_planned"


@dataclass(frozen=True, slots=True)
class PlannedRevisit:
    """One terrace to go back to; `entry_id` is the catalogue's."""

    entry_id: int
    x_um: float
    y_um: float


@dataclass(frozen=True, slots=True)
class RevisitsPlanned:
    """The revisits in the order of the tour."""

    revisits: tuple[PlannedRevisit, ...]
    objective: str
    kind: Literal["revisits_planned"] = "revisits_planned"


@dataclass(frozen=True, slots=True)
class Revisited:
    """What the higher magnification said of one catalogue entry."""

    entry_id: int
    shot_index: int
    centred_error_um: float  # distance of the terrace's centre from the image's centre
    x_um: float  # the terrace's centroid, measured at the higher magnification
    y_um: float
    area_um2: float
    material: str
    layers: int
    probability: float
    contrast_rgb: tuple[float, float, float]
    sharpness: float
    found: bool  # False: nothing there matched; the numbers above are then the scan's
    reason: str
    kind: Literal["revisited"] = "revisited"


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something planned was not done, and why."""

    what: str
    reason: str
    kind: Literal["skipped"] = "skipped"


@dataclass(frozen=True, slots=True)
class FramesMissing:
    """The camera's counter jumped: these numbers never arrived."""

    first: int
    last: int
    reason: str
    kind: Literal["frames_missing"] = "frames_missing"


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """The safety supervisor said no; nothing was sent."""

    command: str
    reason: str
    kind: Literal["command_refused"] = "command_refused"


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The last fact of a session."""

    outcome: Outcome
    reason: str
    elapsed_s: float  # on the instrument's clock, this session
    scan_s: float  # scan phase only
    scan_bound_s: float  # moves + settling + exposures of that scan, nothing else
    tiles: int
    frames_received: int
    frames_missing: int
    frames_unaccounted: int
    autofocus_runs: int  # for the scan: seeds and tracking, all sessions together
    scan_moves_s: float = 0.0  # the three parts of `scan_bound_s`
    scan_settling_s: float = 0.0
    scan_exposures_s: float = 0.0
    kind: Literal["run_finished"] = "run_finished"


Fact: TypeAlias = (
    RunStarted
    | PhaseStarted
    | Exposed
    | Saved
    | Analysed
    | ChipFound
    | FocusMeasured
    | CalibrationFitted
    | LightChanged
    | ScanPlanned
    | RevisitsPlanned
    | Revisited
    | Skipped
    | FramesMissing
    | CommandRefused
    | RunFinished
)

FACT: TypeAdapter[Fact] = TypeAdapter(Annotated[Fact, Discriminator("kind")])


@dataclass(frozen=True, slots=True)
class SecondReading:
    """What another detector than the one that led says of a catalogue entry, on one tile.

    Asked after the run, of the entries that the report shows on cards.
    """

    detector: str  # whose reading this is: "physics", "flakenet"
    leader: str  # whose reading the catalogue follows there
    tile: int
    reason: str = ""  # why it has none; "" where it has
    differs: tuple[Difference, ...] = ()  # (): they agree, or there is a reason
    material: str = ""
    layers: int = 0  # 0: it sees no such terrace
    probability: float = 0.0
    area_um2: float = 0.0  # within the tile
    area_ratio: float = 0.0  # over the entry's own area within the tile
    outline_um: Ring = ()
    holes_um: tuple[Ring, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One terrace of the finished catalogue: merged across tiles, ranked, perhaps revisited."""

    entry_id: int  # stable within the run; 1 is the first found in scan order
    flake_id: int  # terraces that touch share one
    rank: int  # 1 is the best by what the user asked for; 0 means not wanted
    material: str
    layers: int
    probability: float
    layer_probabilities: tuple[tuple[int, float], ...]
    thickness_nm: float
    area_um2: float
    aspect_ratio: float  # longest over shortest side of the smallest enclosing rectangle, >= 1
    outline_um: Ring
    holes_um: tuple[Ring, ...]
    stage_x_um: float  # centroid
    stage_y_um: float
    chip_x_um: float
    chip_y_um: float
    contrast_rgb: tuple[float, float, float]
    off_ladder: float
    score: float
    sharpness: float
    tiles: tuple[int, ...]  # scan tiles that show it
    revisit: Revisited | None  # None: not revisited
    # Holds 95 % of the probability; None: nobody worked it out.
    thickness_interval_nm: tuple[float, float] | None = None
    second: SecondReading | None = None  # None: nobody else was asked
