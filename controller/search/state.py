"""What a search knows: the fold of its facts, pure.

`advance(state, fact)` is the only way the state changes, in a running search and in a resumed or
replayed one alike, so a resume continues from exactly what the journal holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.messages import (
    Analysed,
    CalibrationFitted,
    ChipFound,
    CommandRefused,
    Exposed,
    Fact,
    FocusMeasured,
    FramesMissing,
    LightChanged,
    Phase,
    PhaseStarted,
    Revisited,
    RevisitsPlanned,
    RunFinished,
    RunStarted,
    Saved,
    ScanPlanned,
    ShotKind,
    Skipped,
)

ShotKey = tuple[ShotKind, int]


@dataclass(slots=True)
class SearchState:
    """Facts by what they are about; later facts on the same shot replace earlier ones."""

    sessions: list[RunStarted] = field(default_factory=list)
    phases: list[PhaseStarted] = field(default_factory=list)
    exposed: dict[ShotKey, Exposed] = field(default_factory=dict)
    exposures: int = 0  # every Exposed fact, repeats included
    saved: dict[ShotKey, Saved] = field(default_factory=dict)
    analysed: dict[ShotKey, Analysed] = field(default_factory=dict)
    chip: ChipFound | None = None
    focus_points: list[FocusMeasured] = field(default_factory=list)
    calibrations: list[CalibrationFitted] = field(default_factory=list)
    outdated: set[ShotKey] = field(default_factory=set)  # analysed before the calibration
    light_changes: list[LightChanged] = field(default_factory=list)
    scan: ScanPlanned | None = None
    revisits: RevisitsPlanned | None = None
    revisited: dict[int, Revisited] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    missing: list[FramesMissing] = field(default_factory=list)
    refused: list[CommandRefused] = field(default_factory=list)
    finished: RunFinished | None = None  # of the latest session; None while it runs
    ended: list[RunFinished] = field(default_factory=list)

    @property
    def calibration(self) -> CalibrationFitted | None:
        """Of the commonest substrate; None: the nominal colours are used."""
        return self.calibrations[0] if self.calibrations else None

    def is_done(self, shot: ShotKind, index: int) -> bool:
        """Whether a shot needs no further exposure: its pixels are on disk."""
        return (shot, index) in self.saved

    def in_phase(self, phase: Phase) -> bool:
        """Whether the run ever entered `phase`."""
        return any(p.phase == phase for p in self.phases)

    def next_index(self, shot: ShotKind) -> int:
        """The first index of `shot` that was never exposed."""
        return 1 + max((i for kind, i in self.exposed if kind == shot), default=-1)


def advance(state: SearchState, fact: Fact) -> None:
    """Let `state` know one more fact."""
    match fact:
        case RunStarted():
            state.sessions.append(fact)
            state.finished = None
        case PhaseStarted():
            state.phases.append(fact)
        case Exposed():
            state.exposed[fact.shot, fact.index] = fact
            state.exposures += 1
        case Saved():
            state.saved[fact.shot, fact.index] = fact
        case Analysed():
            state.analysed[fact.shot, fact.index] = fact
            state.outdated.discard((fact.shot, fact.index))
        case ChipFound():
            state.chip = fact
        case FocusMeasured():
            state.focus_points.append(fact)
        case CalibrationFitted():
            state.calibrations.append(fact)
            state.outdated = {key for key in state.analysed if key[0] == "tile"}
        case LightChanged():
            state.light_changes.append(fact)
        case ScanPlanned():
            state.scan = fact
        case RevisitsPlanned():
            state.revisits = fact
        case Revisited():
            state.revisited[fact.entry_id] = fact
        case Skipped():
            state.skipped.append(fact)
        case FramesMissing():
            state.missing.append(fact)
        case CommandRefused():
            state.refused.append(fact)
        case RunFinished():
            state.finished = fact
            state.ended.append(fact)


def folded(facts: Iterable[Fact]) -> SearchState:
    """The state after all of `facts`."""
    state = SearchState()
    for fact in facts:
        advance(state, fact)
    return state
