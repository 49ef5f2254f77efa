"""The register of benches, and the statistics that all of them share."""

import importlib
import inspect
import random
import subprocess
import sys

import pytest

from controller.bench import BENCHES, run_bench
from controller.bench.numbers import (
    quantile,
    quantile_ci95,
    quantile_row,
    share_row,
)
from controller.errors import BadSettings
from inference.figures import wilson_ci95


def test_every_bench_has_its_module_and_one_line() -> None:
    for name, bench in BENCHES.items():
        assert name == bench.name
        assert "\n" not in bench.description
        assert len(bench.description) < 90
        measure = importlib.import_module(f"controller.bench.{name}").measure
        assert list(inspect.signature(measure).parameters) == ["quick", "seed"]


def test_a_bench_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(BadSettings, match=r"franes.*frames, labels"):
        run_bench("franes")


def test_a_bench_runs_by_name() -> None:
    rows = run_bench("tour", quick=True, seed=2)
    assert [row.met for row in rows if row.bar is not None] == [True] * 3


def test_the_register_alone_imports_nothing_heavy() -> None:
    program = (
        "import sys, controller.bench; "
        "print([m for m in ('cv2', 'zarr', 'simulator.chip') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 0.5, 3.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([4.0, 1.0, 3.0, 2.0], 0.0, 1.0),
        ([4.0, 1.0, 3.0, 2.0], 1.0, 4.0),
        (list(range(101)), 0.99, 99.0),
    ],
)
def test_quantile(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == pytest.approx(expected)


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    chance = random.Random(3)
    covered = 0
    for _ in range(400):
        low, high = quantile_ci95([chance.gauss(0.0, 1.0) for _ in range(40)], 0.5)
        covered += low <= 0.0 <= high
    assert 0.90 <= covered / 400 <= 0.99


def test_the_interval_of_a_share() -> None:
    assert wilson_ci95(0, 20) == pytest.approx((0.0, 0.161), abs=1e-3)
    assert wilson_ci95(20, 20) == pytest.approx((0.839, 1.0), abs=1e-3)
    assert wilson_ci95(50, 100) == pytest.approx((0.404, 0.596), abs=1e-3)


def test_rows_without_a_measurement_have_no_verdict() -> None:
    assert quantile_row("x", [], 0.5, "ms", 1.0).met is None
    assert share_row("x", 0, 0, 1.0).met is None
    assert quantile_row("x", [2.0, 2.0], 0.5, "ms", 1.0).met is False
    assert share_row("x", 3, 3, 1.0).met is True
