"""Ranking: every criterion says no on its own, and among the wanted the better comes first."""

import dataclasses
import math

import numpy as np
import pytest
from shapely import affinity
from shapely.geometry import Polygon, box

from controller.search.merging import Terrace
from controller.search.ranking import aspect_ratio, rank
from controller.settings import WantedSettings

WISH = WantedSettings(
    materials=("graphene", "mos2"), layers=(1, 2), min_area_um2=100.0, max_aspect_ratio=5.0
)


def terrace(x_um=0.0, width_um=20.0, height_um=10.0, **changes):
    polygon = box(x_um, 0.0, x_um + width_um, height_um)
    made = Terrace(
        polygon=polygon,
        x_um=polygon.centroid.x,
        y_um=polygon.centroid.y,
        area_um2=polygon.area,
        material="graphene",
        layers=1,
        layer_probabilities=((1, 0.95), (2, 0.03)),
        thickness_nm=0.335,
        contrast_rgb=(-0.1, -0.1, 0.0),
        off_ladder=0.01,
        score=0.9,
        sharpness=1.0,
        is_cut=False,
        pieces=(0,),
        tiles=(0,),
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("unwanted", "reason"),
    [
        (terrace(material="hbn"), "material hbn"),
        (terrace(layers=3), "3 layers"),
        (terrace(width_um=9.0), "area 90 um2 is less"),
        (terrace(width_um=60.0), "aspect 6.0"),
        (terrace(score=0.05), "score 0.05"),
    ],
)
def test_each_criterion_says_no_by_name(unwanted, reason):
    first, second = rank([unwanted, terrace(500.0)], WISH)
    assert (first.rank, first.worth) == (0, 0.0)
    assert reason in first.reason
    assert (second.rank, second.reason) == (1, "")


def test_too_large_can_be_unwanted_too():
    wish = WISH.model_copy(update={"max_area_um2": 150.0})
    (only,) = rank([terrace()], wish)
    assert "is more than 150" in only.reason


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (terrace(width_um=30.0), terrace(1e4)),
        (terrace(), terrace(1e4, score=0.6)),
        (terrace(), terrace(1e4, layer_probabilities=((1, 0.5), (3, 0.4)))),
        (terrace(width_um=20.0, height_um=20.0), terrace(1e4, width_um=42.0, height_um=9.6)),
    ],
)
def test_the_better_one_comes_first_whatever_the_order(better, worse):
    assert [r.rank for r in rank([better, worse], WISH)] == [1, 2]
    assert [r.rank for r in rank([worse, better], WISH)] == [2, 1]


def test_a_lonely_flake_is_worth_more():
    crowded = [terrace(0.0), terrace(22.0, material="hbn"), terrace(1e4)]
    answers = rank(crowded, WISH)
    assert answers[0].isolation_um == pytest.approx(2.0)
    assert answers[2].isolation_um > 9_000.0
    assert answers[2].rank == 1
    assert rank([terrace()], WISH)[0].isolation_um == math.inf


def test_ranks_are_one_to_n_without_gaps_and_worths_fall():
    rng = np.random.default_rng(0)
    many = [
        terrace(200.0 * i, float(rng.uniform(8, 60)), score=float(rng.uniform())) for i in range(50)
    ]
    answers = rank(many, WISH)
    wanted = sorted((a for a in answers if a.rank), key=lambda a: a.rank)
    assert [a.rank for a in wanted] == list(range(1, len(wanted) + 1))
    assert [a.worth for a in wanted] == sorted((a.worth for a in wanted), reverse=True)
    assert all(0 < a.worth <= 1 for a in wanted)
    assert rank([], WISH) == ()


def test_the_aspect_of_a_turned_rectangle():
    assert aspect_ratio(affinity.rotate(box(0, 0, 30, 10), 33)) == pytest.approx(3.0)
    assert aspect_ratio(Polygon([(0, 0), (1, 1), (2, 2)])) == math.inf
