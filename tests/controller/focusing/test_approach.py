"""Ways that end alike, on an axis with a gap and iron in it; and what both come to."""

import itertools

import numpy as np
import pytest

from controller.focusing.approach import FoundFrom, LastMove, Play, play_of
from simulator.sem import Lag


class Iron:
    """An axis with a gap, and a lens of the simulated microscope's iron behind it."""

    def __init__(self, ratio: float = 0.03, gap_um: float = 0.0, left_um: float = 0.0) -> None:
        self.at_um = 0.0
        self.played_um = 0.3 * gap_um
        self.gap_um = gap_um
        self.ratio = ratio
        self.lag = Lag(left_um, left_um, 150.0 if left_um else 0.0)

    def go(self, z_um: float) -> None:
        self.lag = self.lag.changed(self.lag.after_um, z_um - self.at_um, self.ratio)
        half = self.gap_um / 2.0
        self.played_um = min(max(self.played_um, z_um - half), z_um + half)
        self.at_um = z_um

    @property
    def true_um(self) -> float:
        return self.played_um + self.lag.after_um


def offsets_um(iron: Iron, last: LastMove, places_um: list[float]) -> list[float]:
    found = []
    for z_um in places_um:
        for stop_um in last.way_to(z_um):
            iron.go(stop_um)
        found.append(iron.true_um - z_um)
    return found


PLACES_UM = [0.0, 8.0, -4.0, 5.0, -60.0, -52.0, 40.0, 44.0, 42.0]


@pytest.mark.parametrize("left_um", [0.0, 4.5])
def test_every_position_owes_the_same(left_um: float) -> None:
    found = offsets_um(Iron(gap_um=4.0, left_um=left_um), LastMove(6.7), PLACES_UM)
    assert np.ptp(found[1:]) < 0.15
    plain = Iron(gap_um=4.0, left_um=left_um)
    naive = []
    for z_um in PLACES_UM:
        plain.go(z_um)
        naive.append(plain.true_um - z_um)
    assert np.ptp(naive) > 4.0


def test_the_way_comes_down_last_and_stays_above() -> None:
    last = LastMove(5.0, highest_z_um=30.0)
    for z_um in [0.0, 20.0, 28.0, -10.0]:
        way = last.way_to(z_um)
        assert way[-1] == z_um
        assert way[-2] == pytest.approx(min(z_um + 5.0, 30.0))
        assert min(way) == z_um
        assert max(way) <= 30.0


def test_small_steps_cost_two_moves() -> None:
    last = LastMove(5.0)
    last.way_to(0.0)
    assert last.way_to(-3.0) == (2.0, -3.0)
    assert len(last.way_to(1.0)) <= 4
    assert len(last.way_to(60.0)) > 4


def test_a_lift_for_the_turret_is_worn_off() -> None:
    iron, last = Iron(), LastMove(6.7)
    before = offsets_um(iron, last, [0.0, 3.0])[-1]
    iron.go(153.0)
    iron.go(3.0)
    last.excursion(150.0)
    assert abs(iron.true_um - 3.0 - before) > 3.0
    after = offsets_um(iron, last, [3.0001])[-1]
    assert after == pytest.approx(before, abs=0.1)


def test_where_precision_is_not_wanted_two_moves_do() -> None:
    last = LastMove(5.0)
    last.way_to(0.0)
    assert len(last.way_to(100.0, is_exact=False)) == 2


@pytest.mark.parametrize(("gap_um", "ratio"), [(4.0, 0.0), (4.2, 0.03), (0.0, 0.03), (0.0, 0.0)])
def test_gap_and_share_are_read_from_disagreement(gap_um: float, ratio: float) -> None:
    moves = [-7.0, 7.0, 28.0]
    found = [FoundFrom(m, 100.0 + 0.5 * gap_um * np.sign(m) + ratio * m, 0.05) for m in moves]
    play = play_of(found)
    assert play.backlash_um == pytest.approx(gap_um, abs=1e-6)
    assert play.hysteresis_ratio == pytest.approx(ratio, abs=1e-9)
    assert 0.0 < play.backlash_sigma_um < 0.5


def test_two_directions_tell_the_gap_alone() -> None:
    play = play_of([FoundFrom(-7.0, 98.0, 0.1), FoundFrom(7.0, 102.0, 0.1)])
    assert play.backlash_um == pytest.approx(4.0)
    assert play.hysteresis_ratio == 0.0
    assert play.overshoot_um > 4.0


def test_one_direction_tells_nothing() -> None:
    for moves in itertools.permutations([-7.0, -28.0]):
        with pytest.raises(ValueError, match="from above and from below"):
            play_of([FoundFrom(m, 0.0, 0.1) for m in moves])
    assert Play(0.0, 0.0, 0.0, 0.0).overshoot_um == 0.0
