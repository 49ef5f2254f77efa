"""The fold of a run's facts: what each fact changes, and that nothing else matters."""

from dataclasses import replace
from typing import get_args

import pytest

from controller import messages
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
    PhaseStarted,
    PlannedRevisit,
    PlannedTile,
    Revisited,
    RevisitsPlanned,
    RunFinished,
    RunStarted,
    Saved,
    ScanPlanned,
    Skipped,
)
from controller.search.state import SearchState, advance, folded

STARTED = RunStarted("id", "chip", "[run]\n", {}, {}, "2025-01-31T00:00:00+00:00", 0)
EXPOSED = Exposed("tile", 4, 10, 1.0, 1.01, 100.0, 50.0, 3.0, "20x", 384.0, 0.01)
SAVED = Saved("tile", 4, "frames.ome.zarr/tile/4", "crc32:00000001")
ANALYSED = Analysed("tile", 4, "physics", 2.0, (150.0, 120.0, 140.0), True, "", (), 0.01)
CHIP = ChipFound(((0.0, 0.0), (9.0, 0.0), (9.0, 9.0)), 0.0, 0.0, 1.0, 0.9)
FOCUS = FocusMeasured(1.0, 2.0, 3.0, 0.1, True, "", "20x", 7, 15.0, "seed")
CALIBRATION = CalibrationFitted(90.0, (1.0, 1.0, 1.0), 0.9, "12 regions")
SCAN = ScanPlanned((PlannedTile(4, 100.0, 50.0),), "20x", 120.0, 90.0, 0.06)
REVISITS = RevisitsPlanned((PlannedRevisit(1, 100.0, 50.0),), "50x")
REVISITED = Revisited(
    1, 0, 0.5, 100.0, 50.0, 200.0, "graphene", 1, 0.9, (-0.1, -0.1, 0.0), 3.0, True, ""
)
FINISHED = RunFinished("stopped", "by the operator", 9.0, 5.0, 4.0, 1, 3, 0, 0, 1)
FACTS: tuple[Fact, ...] = (
    STARTED,
    PhaseStarted("scan", 1.0),
    EXPOSED,
    SAVED,
    ANALYSED,
    CHIP,
    FOCUS,
    CALIBRATION,
    LightChanged("tile", 4, (70.0, 66.0, 88.0), (60.0, 56.5, 75.0), False, "green -15 %"),
    SCAN,
    REVISITS,
    REVISITED,
    Skipped("tile 5", "its frame was lost every time"),
    FramesMissing(11, 12, "gap"),
    CommandRefused("move", "limit"),
    FINISHED,
)


def test_every_kind_of_fact_is_here() -> None:
    assert {type(fact) for fact in FACTS} == set(get_args(messages.Fact))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.kind)
def test_every_fact_leaves_a_trace(fact) -> None:
    assert folded([fact]) != SearchState()


def test_the_state_is_the_fold() -> None:
    """Fact by fact and all at once, in one session or cut in two, it is the same."""
    state = SearchState()
    for fact in FACTS:
        advance(state, fact)
    assert state == folded(FACTS)
    assert state == folded(iter(FACTS))


def test_what_is_known_at_the_end() -> None:
    state = folded(FACTS)
    assert state.sessions == [STARTED]
    assert state.exposed == {("tile", 4): EXPOSED}
    assert state.saved == {("tile", 4): SAVED}
    assert state.analysed == {("tile", 4): ANALYSED}
    assert (state.chip, state.scan, state.revisits) == (CHIP, SCAN, REVISITS)
    assert state.focus_points == [FOCUS]
    assert state.calibration == CALIBRATION
    assert state.revisited == {1: REVISITED}
    assert [s.what for s in state.skipped] == ["tile 5"]
    assert [(m.first, m.last) for m in state.missing] == [(11, 12)]
    assert [r.reason for r in state.refused] == ["limit"]
    assert (state.finished, state.ended) == (FINISHED, [FINISHED])


def test_a_shot_is_done_when_its_pixels_are_on_the_disk() -> None:
    assert not folded([EXPOSED]).is_done("tile", 4)
    state = folded([EXPOSED, SAVED])
    assert state.is_done("tile", 4)
    assert not state.is_done("tile", 5)
    assert not state.is_done("overview", 4)


def test_a_shot_taken_again_replaces_the_first_and_both_are_counted() -> None:
    again = replace(EXPOSED, number=99)
    state = folded([EXPOSED, SAVED, again])
    assert state.exposed["tile", 4] == again
    assert state.exposures == 2


def test_indices_go_on_after_the_highest_ever_exposed() -> None:
    state = folded([EXPOSED, replace(EXPOSED, index=2), replace(EXPOSED, shot="revisit", index=0)])
    assert state.next_index("tile") == 5
    assert state.next_index("revisit") == 1
    assert state.next_index("overview") == 0


def test_a_calibration_makes_the_tiles_before_it_outdated() -> None:
    overview, revisit = replace(ANALYSED, shot="overview"), replace(ANALYSED, shot="revisit")
    other = replace(ANALYSED, index=5)
    state = folded([ANALYSED, other, overview, revisit, CALIBRATION])
    assert state.outdated == {("tile", 4), ("tile", 5)}
    advance(state, ANALYSED)
    assert state.outdated == {("tile", 5)}
    advance(state, replace(ANALYSED, index=6))
    assert state.outdated == {("tile", 5)}


def test_the_commonest_substrate_comes_first() -> None:
    second = replace(CALIBRATION, oxide_nm=285.0)
    state = folded([CALIBRATION, second])
    assert state.calibration == CALIBRATION
    assert state.calibrations == [CALIBRATION, second]
    assert folded([]).calibration is None


def test_a_new_session_is_not_finished_but_remembers_the_old_end() -> None:
    state = folded([STARTED, FINISHED, replace(STARTED, session=1)])
    assert state.finished is None
    assert state.ended == [FINISHED]
    assert [s.session for s in state.sessions] == [0, 1]


def test_phases() -> None:
    state = folded([PhaseStarted("scan", 1.0)])
    assert state.in_phase("scan")
    assert not state.in_phase("revisit")
