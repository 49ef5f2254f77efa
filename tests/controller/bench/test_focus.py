"""The bench of focus: who runs when, how runs become rows, and that processes agree."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from controller.bench import BENCHES, Report, focus
from controller.bench.focus import Plan, measure_with, run_all, run_job
from controller.bench.focus_baselines.conditions import BASE as BASE_CONDITION
from controller.bench.focus_baselines.conditions import EMPTY as EMPTY_CONDITION
from controller.bench.focus_baselines.methods import rivals
from controller.bench.focus_baselines.problem import RunResult
from controller.bench.focus_baselines.rows import OURS, our_rows, rival_rows
from controller.errors import BadSettings
from controller.figures import Row

NOTHING = Plan(0, 0, 0, 0, 0, 0, 0, 0, 0)
BASE, FAR, EMPTY = "25 DOF, 200 e-/px", "100 DOF", "empty field"


@pytest.fixture(autouse=True)
def _forget_methods() -> Iterator[None]:
    yield
    focus._methods.cache_clear()


def _result(run: int = 0, **changes: object) -> RunResult:
    plain = RunResult(
        condition=BASE,
        method=OURS,
        run=run,
        kind="laths",
        error_dof=0.05,
        stig_error_dof=0.0,
        start_error_dof=10.0,
        start_stig_error_dof=0.0,
        is_confident=True,
        is_restored=False,
        frames=5,
        electrons_per_px=1000.0,
        final_electrons_per_px=4000.0,
        method_s=0.1,
        sigma_dof=0.1,
        trace_error_dof=(10.0, 2.0, 0.3, 0.1, 0.05),
        has_right_sign=True,
        reason="",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def _by_name(rows: list[Row]) -> dict[str, Row]:
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def _ours(*results: RunResult) -> dict[str, Row]:
    return _by_name(our_rows(results))


def test_it_is_listed() -> None:
    assert BENCHES["focus"].name == "focus"


def test_success_asks_for_nearness_and_confidence() -> None:
    rows = _ours(
        _result(0),
        _result(1, error_dof=0.51),
        _result(2, is_confident=False, is_restored=True, error_dof=10.0),
        _result(3, error_dof=0.5),
    )
    assert rows["success within 25 DOF"].value == pytest.approx(0.5)
    assert rows["success within 25 DOF"].n == 4
    assert rows["success within 25 DOF"].ci95 is not None
    assert rows["sure and wrong"].value == pytest.approx(0.25)
    assert rows["abstains on a good field"].value == pytest.approx(0.25)
    # The error is that of the runs that claimed one.
    assert rows["error, median"].value == pytest.approx(0.5)
    assert rows["error, median"].n == 3


def test_harm_counts_only_what_ends_worse() -> None:
    rows = _ours(
        _result(0, start_error_dof=0.2, error_dof=0.4),
        _result(1, start_error_dof=0.2, error_dof=0.46),
        _result(2, start_stig_error_dof=3.0, start_error_dof=0.0, error_dof=3.2),
        _result(3, condition=FAR, start_error_dof=50.0, error_dof=70.0),
    )
    assert rows["harm: ends worse by > 0.25 DOF"].value == pytest.approx(1 / 3)
    assert rows["harm, all conditions"].value == pytest.approx(2 / 4)
    assert rows["harm: ends worse by > 0.25 DOF"].met is False


def test_an_empty_field_must_be_refused_and_left_as_it_was() -> None:
    rows = _ours(
        _result(0, condition=EMPTY, is_confident=False, is_restored=True),
        _result(1, condition=EMPTY, is_confident=False, is_restored=False),
        _result(2, condition=EMPTY),
        _result(3, condition=EMPTY, method="golden section"),
    )
    assert rows["empty field: cannot focus, position restored"].value == pytest.approx(1 / 3)
    assert rows["empty field: false lock"].value == pytest.approx(1 / 3)
    assert rows["empty field: false lock"].baseline == 1.0


def test_loss_is_counted_on_the_same_runs() -> None:
    worse = {"error_dof": 0.9}
    rows = _ours(
        *(_result(k) for k in range(10)),
        *(_result(k, condition="gamma 0.7-1.4", **(worse if k < 2 else {})) for k in range(8)),
    )
    row = rows["gamma 0.7-1.4: success lost"]
    assert row.value == pytest.approx(0.25)
    assert row.n == 8
    assert row.met is False
    assert "2 of 8" in row.note
    assert rows["gain x0.5-2: success lost"].value is None


def test_dose_is_over_that_of_the_final_picture() -> None:
    rows = _ours(_result())
    assert rows["dose of all frames"].value == pytest.approx(0.25)
    whole = 5 * 200.0 * 256**2 / (4000.0 * 2048 * 1536)
    assert rows["electrons of all frames"].value == pytest.approx(whole)


def test_the_best_rival_stands_beside_us() -> None:
    results = [
        _result(0),
        *(_result(k, method="golden section", error_dof=0.6 * k) for k in range(2)),
        *(_result(k, method="Fibonacci", frames=11, error_dof=0.2) for k in range(2)),
    ]
    rows = _ours(*results)
    assert rows["success within 25 DOF"].baseline == 1.0
    assert "Fibonacci" in rows["success within 25 DOF"].note
    assert rows["frames, median"].baseline == 11.0
    theirs = _by_name(rival_rows(results))
    assert theirs["golden section: success"].value == pytest.approx(0.5)
    assert theirs["Fibonacci: frames"].value == 11.0


def test_calibration_is_two_sided() -> None:
    sure = [_result(k, error_dof=0.1 * k, sigma_dof=0.1) for k in range(4)]
    rows = _ours(*sure)
    assert rows["within 1 sigma, at least"].value == pytest.approx(0.5)
    assert rows["within 1 sigma, at least"].met is False
    assert rows["within 1 sigma, at most"].met is True
    assert rows["within 2 sigma"].value == pytest.approx(0.75)


def test_astigmatism_and_defocus_must_both_be_gone_in_eight_frames() -> None:
    stig = {"condition": "astigmatism 10 DOF", "start_stig_error_dof": 7.0}
    rows = _ours(
        _result(0, **stig, stig_error_dof=0.2),
        _result(1, **stig, error_dof=0.2, stig_error_dof=0.2),
        _result(2, **stig, frames=9),
        _result(3, **stig, is_confident=False),
        _result(4, condition="astigmatism, no stigmator", start_stig_error_dof=7.0, error_dof=6.5),
        _result(5, condition="astigmatism, no stigmator", start_stig_error_dof=7.0, error_dof=0.1),
    )
    assert rows["astigmatism corrected with defocus"].value == pytest.approx(1 / 4)
    assert rows["no stigmator: line focus"].value == pytest.approx(1 / 2)
    assert rows["no stigmator: circle of least confusion"].value == pytest.approx(1 / 2)


def test_signs_that_nobody_could_tell_are_left_out() -> None:
    rows = _ours(_result(0), _result(1, has_right_sign=False), _result(2, has_right_sign=None))
    assert rows["sign after two frames, >= 1 DOF off"].value == pytest.approx(0.5)
    assert rows["sign after two frames, >= 1 DOF off"].n == 2


def test_a_job_does_what_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus, "CONDITIONS", (BASE_CONDITION, EMPTY_CONDITION))
    some = tuple(m for m in rivals() if m.name in ("golden section", "Fibonacci"))
    monkeypatch.setattr(focus, "rivals", lambda: some)
    found = run_job(1, [0, 1], replace(NOTHING, ours=2, rivals=1))
    done = [(r.run, r.condition, r.method) for r in found]
    assert done.count((0, BASE, OURS)) == 1
    assert done.count((1, EMPTY, OURS)) == 1
    assert (0, BASE, "golden section") in done
    assert (1, BASE, "golden section") not in done
    assert len(done) == 2 * 2 + 2


def test_processes_agree_with_one_another_and_say_how_far_they_are() -> None:
    plan = replace(NOTHING, measures=5)
    said: list[str] = []
    spread = run_all(plan, 3, Report(said.append, jobs=2))
    alone = run_job(3, [4], plan)
    assert said[-1] == "5 of 5 objects"
    theirs = [r for r in spread if r.run == 4]
    assert [(r.method, r.error_dof, r.frames) for r in theirs] == [
        (r.method, r.error_dof, r.frames) for r in alone
    ]


def test_the_whole_leaves_rows_and_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus, "run_all", lambda plan, *_: [_result(k) for k in range(plan.ours)])
    report = Report()
    rows = measure_with(True, 1, report)
    assert {row.name for row in rows} >= {"success within 25 DOF", "Brent, as OughtaFocus: success"}
    assert report.pictures["error_against_frames"].count("<polyline") == 1
    timing = next(row for row in rows if row.name.startswith("estimator"))
    assert timing.value is not None


def test_what_is_asked_of_fewer_objects_is_spread_over_all() -> None:
    plan = replace(NOTHING, ours=10, rivals=3, astigmatic=5)
    asked = [list(focus._todo(run, plan, ())) for run in range(10)]
    with_rivals = [
        run for run in range(10) if any(m != OURS and "," not in m for _, m in asked[run])
    ]
    assert len(with_rivals) == 3
    assert max(with_rivals) - min(with_rivals) >= 5
    astigmatic = [sum(c.name == "astigmatism 10 DOF" for c, _ in todo) for todo in asked]
    assert astigmatic == [1, 0] * 5


@pytest.mark.parametrize(
    ("only", "conditions", "methods"),
    [
        (("ours", "100 dof"), {FAR}, {OURS}),
        (("rivals", "empty"), {EMPTY}, {m.name for m in rivals()}),
        (("e-/px",), {BASE, "20 e-/px", "5 e-/px"}, {"ours, traced", OURS, "Fibonacci"}),
    ],
)
def test_parts_can_be_picked(
    only: tuple[str, ...], conditions: set[str], methods: set[str]
) -> None:
    plan = Plan(1, 1, 1, 1, 1, 1, 1, 1, 1)
    todo = list(focus._todo(0, plan, only))
    assert {condition.name for condition, _ in todo} == conditions
    assert {name for _, name in todo} >= methods
    assert len({name for _, name in todo}) >= len(methods)


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(BadSettings, match=r"100 DOF"):
        measure_with(True, 1, Report(only=("1000 DOF",)))


def test_a_bench_cut_short_counts_whole_stretches_only() -> None:
    plan = replace(NOTHING, measures=40)
    cut = run_all(plan, 3, Report(jobs=2, most_s=0.0))
    runs = sorted({r.run for r in cut})
    assert runs == list(range(len(runs)))
    assert 0 < len(runs) < 40
    found = {0: [_result(0)], 1: [_result(1)], 3: [_result(3)]}
    assert [r.run for r in focus._from_the_first(found)] == [0, 1]


def test_rows_are_handed_on_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus, "_PARTIAL_EVERY_S", 0.0)
    counts: list[int] = []
    run_all(replace(NOTHING, measures=4), 3, Report(jobs=1), lambda r: counts.append(len(r)))
    assert counts == sorted(counts)
    assert counts[-1] > 0
