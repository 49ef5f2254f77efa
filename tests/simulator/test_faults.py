"""Which fault holds when: the script alone, without an instrument."""

from typing import Any

import pytest

from simulator.faults import KINDS, LASTING, FaultScript, FaultSettings


def script(seed: int = 1, *faults: dict[str, Any]) -> FaultScript:
    return FaultScript([FaultSettings.model_validate(fault) for fault in faults], seed)


@pytest.mark.parametrize(
    ("fault", "hit_calls"),
    [
        ({"kind": "ignored_move", "at_call": 3}, [3]),
        ({"kind": "ignored_move", "at_call": 2, "calls": 3}, [2, 3, 4]),
        ({"kind": "ignored_move", "at_s": 2.5}, [3, 4, 5, 6]),
        ({"kind": "ignored_move", "at_s": 2.5, "duration_s": 2.0}, [3, 4]),
        ({"kind": "stuck_moving", "at_call": 2}, [2, 3, 4, 5, 6]),
        ({"kind": "stuck_moving", "at_call": 2, "duration_s": 1.5}, [2, 3]),
        ({"kind": "stuck_moving", "at_s": 4.0, "duration_s": 1.0}, [4]),
        ({"kind": "refused", "probability": 1.0}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_calls_hit_by_a_fault_with_one_call_a_second(
    fault: dict[str, Any], hit_calls: list[int]
) -> None:
    faults = script(1, {"device": "stage", **fault})
    hit = []
    for call in range(1, 7):
        assert faults.struck("focus", float(call)) == frozenset()
        if fault["kind"] in faults.struck("stage", float(call)):
            hit.append(call)
    assert hit == hit_calls


def test_asking_for_lasting_faults_counts_nothing() -> None:
    faults = script(1, {"device": "stage", "kind": "stuck_moving", "at_call": 2})
    for _ in range(5):
        assert faults.lasting("stage", 1.0) == frozenset()
    assert faults.struck("stage", 1.0) == frozenset()
    assert faults.struck("stage", 2.0) == {"stuck_moving"}
    assert faults.lasting("stage", 1e6) == {"stuck_moving"}


def test_chance_keeps_its_rate_and_its_seed() -> None:
    fault = {"device": "camera", "kind": "dropped", "probability": 0.1}

    def hits(seed: int) -> list[bool]:
        faults = script(seed, fault)
        return ["dropped" in faults.struck("camera", 0.0) for _ in range(4000)]

    assert hits(1) == hits(1)
    assert hits(1) != hits(2)
    assert sum(hits(1)) == pytest.approx(400, abs=80)


def test_several_faults_hold_together() -> None:
    faults = script(
        1,
        {"device": "camera", "kind": "doubled", "at_call": 1},
        {"device": "camera", "kind": "black", "at_call": 1},
    )
    assert faults.struck("camera", 0.0) == {"doubled", "black"}
    assert faults.struck("camera", 0.0) == frozenset()


def test_every_lasting_fault_belongs_to_some_device() -> None:
    assert frozenset().union(*KINDS.values()) >= LASTING
