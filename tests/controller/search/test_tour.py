"""Tours against the Held-Karp lower bound, small ones against every permutation."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.search.tiling import trapezoid_move_time
from controller.search.tour import visit_order
from drivers.api import Kinematics

CHEBYSHEV_TIME = trapezoid_move_time(Kinematics(20_000.0, 100_000.0, 0.05, 0.1))


def euclid(dx_um, dy_um):
    return np.hypot(dx_um, dy_um)


def cost_matrix(places, start, move):
    xy = np.array([start, *places])
    return move(xy[:, None, 0] - xy[None, :, 0], xy[:, None, 1] - xy[None, :, 1])


def spanning_tree(cost):
    """Prim: total and the degree of each node."""
    count = len(cost)
    degree = np.zeros(count, dtype=int)
    best, parent = cost[0].copy(), np.zeros(count, dtype=int)
    outside = np.ones(count, dtype=bool)
    outside[0] = False
    total = 0.0
    for _ in range(count - 1):
        node = int(np.argmin(np.where(outside, best, np.inf)))
        outside[node] = False
        total += best[node]
        degree[node] += 1
        degree[parent[node]] += 1
        closer = cost[node] < best
        best = np.where(closer, cost[node], best)
        parent = np.where(closer, node, parent)
    return total, degree


def held_karp_bound(cost, guess, rounds=120):
    """Lower bound of an open path from node 0, by subgradient ascent on spanning trees.

    A Hamiltonian path from 0 is a spanning tree with degree 1 at node 0 and at a free end, 2
    elsewhere. A depot at no distance from everywhere but tied to 0 makes it a tour; its 1-tree,
    with the depot as the special node, is a spanning tree of the rest plus the depot's two links.
    """
    count = len(cost)
    price = np.zeros(count)
    bound, step = -math.inf, 2.0
    for turn in range(rounds):
        total, degree = spanning_tree(cost + price[:, None] + price[None, :])
        # The depot is linked to 0 and to the cheapest other node: each link pays the node's price.
        end = 1 + int(np.argmin(price[1:])) if count > 1 else 0
        value = total + price[0] + price[end] - 2 * price.sum()
        slope = degree - 2
        slope[0] += 1
        slope[end] += 1
        if value > bound:
            bound = value
        elif turn % 10 == 9:
            step *= 0.85
        norm = float(np.sum(slope**2))
        if norm == 0:
            break
        price = price + step * max(guess - value, 1e-9 * guess) / norm * slope
    return bound


@pytest.mark.parametrize(
    ("count", "kind", "move"),
    [
        (40, "even", euclid),
        (200, "even", euclid),
        (200, "clustered", euclid),
        (200, "clustered", CHEBYSHEV_TIME),
    ],
)
def test_within_five_per_cent_of_the_bound_and_a_second(count, kind, move):
    rng = np.random.default_rng(count)
    if kind == "even":
        xy = rng.uniform(0, 10_000, (count, 2))
    else:
        xy = rng.uniform(0, 10_000, (12, 2))[rng.integers(12, size=count)]
        xy = xy + rng.normal(0, 300, (count, 2))
    places = [tuple(p) for p in xy.tolist()]
    began_s = time.process_time()
    tour = visit_order(places, (0.0, 0.0), move)
    took_s = time.process_time() - began_s
    bound_s = held_karp_bound(cost_matrix(places, (0.0, 0.0), move), tour.travel_s)
    assert sorted(tour.order) == list(range(count))
    assert tour.travel_s <= 1.05 * bound_s
    assert tour.travel_s >= bound_s * (1 - 1e-9)
    assert took_s < 2.0  # half a second when the machine is idle


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 7))
def test_small_tours_are_the_best_ones(seed, count):
    xy = np.random.default_rng(seed).uniform(0, 10_000, (count, 2))
    places = [tuple(p) for p in xy.tolist()]
    tour = visit_order(places, (5_000.0, 5_000.0), CHEBYSHEV_TIME)
    cost = cost_matrix(places, (5_000.0, 5_000.0), CHEBYSHEV_TIME)
    best_s = min(
        sum(cost[a, b] for a, b in itertools.pairwise((0, *order)))
        for order in itertools.permutations(range(1, count + 1))
    )
    assert tour.travel_s <= best_s * (1 + 1e-9) + (0.02 * best_s if count > 5 else 0.0)
    along = (0, *(i + 1 for i in tour.order))
    assert tour.travel_s == pytest.approx(sum(cost[a, b] for a, b in itertools.pairwise(along)))


def test_it_is_better_than_the_order_of_the_list():
    xy = np.random.default_rng(3).uniform(0, 10_000, (60, 2))
    places = [tuple(p) for p in xy.tolist()]
    cost = cost_matrix(places, (0.0, 0.0), euclid)
    as_listed = sum(cost[a, b] for a, b in itertools.pairwise(range(61)))
    assert visit_order(places, (0.0, 0.0), euclid).travel_s < 0.25 * as_listed


def test_a_line_is_walked_along():
    places = [(float(x), 0.0) for x in (700, 100, 500, 300, 900)]
    assert visit_order(places, (0.0, 0.0), euclid).order == (1, 3, 2, 0, 4)


def test_the_same_call_gives_the_same_tour():
    xy = np.random.default_rng(5).uniform(0, 10_000, (80, 2))
    places = [tuple(p) for p in xy.tolist()]
    first, second = (visit_order(places, (0.0, 0.0), euclid, seed=7) for _ in range(2))
    assert first == second


def test_places_on_top_of_each_other_are_all_visited():
    tour = visit_order([(5.0, 5.0)] * 30, (0.0, 0.0), CHEBYSHEV_TIME)
    assert sorted(tour.order) == list(range(30))


def test_nothing_to_visit():
    tour = visit_order([], (0.0, 0.0), euclid)
    assert tour.order == ()
    assert tour.travel_s == 0.0


def test_a_place_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        visit_order([(0.0, math.nan)], (0.0, 0.0), euclid)
