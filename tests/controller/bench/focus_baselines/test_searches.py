"""Searches on curves whose peak is known: where they end, what they cost, what they promise."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from controller.bench.focus_baselines import searches
from controller.bench.focus_baselines.searches import Found, Go, Look, PeakFit, Search

_HALF = 25.0
Curve = Callable[[float], float]


def _driven(search: Search, curve: Curve) -> tuple[Found, list[Look | Go]]:
    steps: list[Look | Go] = []
    try:
        step = next(search)
        while True:
            steps.append(step)
            step = search.send(curve(step.z_dof) if isinstance(step, Look) else math.nan)
    except StopIteration as stop:
        return stop.value, steps


def _looks(steps: list[Look | Go]) -> int:
    return sum(isinstance(step, Look) for step in steps)


def _peak(at: float, width: float = 5.0) -> Curve:
    return lambda z: 1.0 / (1.0 + ((z - at) / width) ** 2)


INVERSE = PeakFit(3, "inverse")
SEARCHES: list[tuple[str, Callable[[float, float], Search], float, int]] = [
    ("21 planes", partial(searches.sweep, fit=INVERSE), 0.01, 21),
    ("two-pass, best plane", searches.two_pass, 0.51, 22),
    ("two-pass + parabola", partial(searches.two_pass, fit=INVERSE), 0.01, 22),
    ("hill climb", partial(searches.hill_climb, first_step_dof=8.0, last_step_dof=2.0), 0.3, 12),
    ("golden section", searches.golden_section, 0.25, 12),
    ("Fibonacci", searches.fibonacci, 0.25, 12),
    ("Brent", searches.brent, 0.5, 12),
    ("sweep and return", searches.sweep_and_return, 0.05, 41),
    ("three-image", partial(searches.three_point, spread_ratio=1.0), 0.01, 3),
    ("three-image, twice", partial(searches.three_point, rounds=2), 0.01, 6),
]


@pytest.mark.parametrize(("name", "search", "tolerance", "most"), SEARCHES)
@pytest.mark.parametrize("truth", [-23.3, -11.1, -0.4, 0.0, 7.7, 19.9, 24.0])
@pytest.mark.parametrize("centre", [0.0, 130.0])
def test_the_peak_is_found_within_the_frames(
    name: str,
    search: Callable[[float, float], Search],
    tolerance: float,
    most: int,
    truth: float,
    centre: float,
) -> None:
    found, steps = _driven(search(centre, _HALF), _peak(centre + truth))
    assert found.is_confident, name
    assert abs(found.z_dof - centre - truth) <= tolerance
    assert _looks(steps) <= most


@pytest.mark.parametrize(("name", "search", "tolerance", "most"), SEARCHES)
def test_no_search_looks_far_outside_its_range(
    name: str, search: Callable[[float, float], Search], tolerance: float, most: int
) -> None:
    _, steps = _driven(search(0.0, _HALF), _peak(40.0))
    furthest = max(abs(s.z_dof) for s in steps if isinstance(s, Look))
    assert furthest <= (_HALF * 1.2 if "two" not in name else _HALF * 1.2 + 5.0), name
    if name == "three-image, twice":
        assert furthest <= _HALF + 0.25 * 0.7 * _HALF + 1e-9


def test_published_settings() -> None:
    _, steps = _driven(searches.two_pass(0.0, 50.0), _peak(3.0))
    z = [s.z_dof for s in steps]
    assert z[:11] == pytest.approx(np.arange(-50.0, 51.0, 10.0))
    assert z[11:] == pytest.approx(np.arange(-10.0, 11.0, 2.0))
    _, steps = _driven(searches.brent(7.0, 20.0), _peak(9.0))
    assert steps[0] == Look(7.0)  # commons-math starts in the middle of the interval
    assert _looks(_driven(searches.brent(0.0, 20.0), lambda z: 1.0)[1]) < 100


def test_brent_is_brents() -> None:
    # Against the golden section's own bound: a smooth peak takes far fewer.
    exact = partial(searches.brent, tolerance_dof=1e-6)
    found, steps = _driven(exact(0.0, 25.0), _peak(3.3))
    assert abs(found.z_dof - 3.3) < 1e-5
    assert _looks(steps) < 20


def test_golden_and_fibonacci_keep_their_bracket_ratios() -> None:
    _, steps = _driven(searches.golden_section(0.0, 10.0, 0.05), _peak(2.0, 30.0))
    assert _looks(steps) == 2 + math.ceil(math.log(0.1 / 20.0) / math.log(0.6180339887))
    for truth in (-9.0, -3.0, 0.5, 4.0, 8.8):
        found, steps = _driven(searches.fibonacci(0.0, 10.0, 0.1), _peak(truth))
        assert abs(found.z_dof - truth) <= 0.21
        assert _looks(steps) <= 13


def test_hill_climb_stops_at_its_ratio_and_turns() -> None:
    climb = searches.hill_climb(0.0, _HALF, first_step_dof=4.0, last_step_dof=4.0)
    found, steps = _driven(climb, _peak(-9.0, 6.0))
    z = [s.z_dof for s in steps]
    assert z[:3] == [0.0, 4.0, -4.0]  # up first: 0.18 is under 0.85 of 0.31, so it turns
    assert min(z) == -12.0  # under 0.85 of what -8 had
    assert abs(found.z_dof + 9.0) < 0.5


def test_hill_climb_on_a_plateau_ends() -> None:
    found, steps = _driven(searches.hill_climb(0.0, _HALF), lambda z: 1.0)
    assert _looks(steps) < 200
    assert abs(found.z_dof) <= 1.05 * _HALF


def test_return_comes_from_below_and_by_more_than_the_backlash() -> None:
    found, steps = _driven(searches.sweep_and_return(0.0, _HALF, backlash_dof=8.0), _peak(5.0))
    assert isinstance(steps[0], Go)
    assert steps[0].z_dof == pytest.approx(-1.05 * _HALF - 8.0)
    looked = [s.z_dof for s in steps if isinstance(s, Look)]
    assert looked == sorted(looked)
    assert steps[-1] == Go(found.z_dof - 8.0)


def test_sweeps_refuse_noise_and_edges() -> None:
    rng = np.random.default_rng(3)
    locks = 0
    for _ in range(60):
        found, _ = _driven(searches.sweep(0.0, _HALF, fit=INVERSE), lambda z: rng.normal(1.0, 0.05))
        locks += found.is_confident
    assert locks <= 6
    found, _ = _driven(searches.sweep(0.0, _HALF), lambda z: 30.0 + z)
    assert not found.is_confident
    assert found.reason


def test_best_plane_is_always_sure() -> None:
    found, _ = _driven(searches.two_pass(0.0, _HALF), lambda z: 1.0)
    assert found.is_confident


# --- the parabola ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "value"),
    [
        ("value", lambda u: 9.0 - u * u),
        ("log", lambda u: math.exp(-u * u / 8.0)),
        ("inverse", lambda u: 1.0 / (2.0 + u * u)),
    ],
)
@pytest.mark.parametrize("points", [3, 5])
def test_each_parabola_is_exact_for_its_own_curve(
    curve: str, value: Callable[[float], float], points: int
) -> None:
    z = [-2.0, -1.0, 0.0, 1.0, 2.0]
    fit = PeakFit(points, curve)  # type: ignore[arg-type]
    vertex = fit.vertex(z, [value(each - 0.3) for each in z])
    assert vertex == pytest.approx(0.3, abs=1e-9)


def test_order_of_samples_does_not_matter_and_steps_may_differ() -> None:
    z = [4.0, -1.0, 1.0, 0.0]
    assert PeakFit().vertex(z, [9.0 - (each - 0.2) ** 2 for each in z]) == pytest.approx(0.2)


def test_a_vertex_never_leaves_the_best_samples_neighbours() -> None:
    assert PeakFit().vertex([0.0, 1.0, 2.0], [1.0, 1.0001, 1.0]) == pytest.approx(1.0)
    assert PeakFit().vertex([0.0, 1.0, 2.0], [3.0, 2.0, 1.0]) == 0.0
    wild = PeakFit(5).vertex([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 2.9, 3.0, 2.99, 2.98])
    assert 1.0 <= wild <= 3.0
    assert PeakFit(3, "log").vertex([0.0, 1.0, 2.0], [-1.0, -0.5, -1.0]) == 1.0
