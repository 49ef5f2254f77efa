"""From facts to catalogue: where tiles really looked, what is numbered how, what is left out."""

import math
from dataclasses import replace

import pytest

from controller.messages import (
    Analysed,
    ChipFound,
    Exposed,
    Fact,
    Piece,
    PlannedTile,
    Revisited,
    ScanPlanned,
)
from controller.search.entries import catalogue_of, tile_boxes_um
from controller.search.state import folded
from controller.settings import WantedSettings
from inference.flakes.flakenet import UNKNOWN_TO_NETWORK
from inference.flakes.physics_detector import OTHER_LIGHT

W_UM, H_UM = 100.0, 80.0
PITCH_UM = 90.0  # tiles overlap by 10 um
PARCENTRIC_UM = (30.0, -20.0)
WANTED = WantedSettings(min_area_um2=50.0)
SCAN = ScanPlanned(
    tuple(PlannedTile(index, PITCH_UM * index, 0.0) for index in range(3)),
    "20x",
    W_UM,
    H_UM,
    0.1,
)
CHIP = ChipFound(
    ((-50.0, -40.0), (230.0, -40.0), (230.0, 40.0), (-50.0, 40.0)), -50.0, -40.0, 0.0, 0.9
)


def exposed(index: int, off_um: tuple[float, float] = (0.0, 0.0)) -> Exposed:
    """The stage stood `off_um` from where it should have."""
    return Exposed(
        shot="tile",
        index=index,
        number=index,
        exposed_from_s=0.0,
        exposed_until_s=0.01,
        stage_x_um=PITCH_UM * index - PARCENTRIC_UM[0] + off_um[0],
        stage_y_um=-PARCENTRIC_UM[1] + off_um[1],
        focus_z_um=0.0,
        objective="20x",
        pixel_size_nm=384.0,
        exposure_s=0.01,
    )


def square(x_um: float, y_um: float = 0.0, side_um: float = 10.0, layers: int = 1) -> Piece:
    """A terrace around (x, y)."""
    low_x, low_y, half = x_um - side_um / 2, y_um - side_um / 2, side_um
    ring = (
        (low_x, low_y),
        (low_x + half, low_y),
        (low_x + half, low_y + half),
        (low_x, low_y + half),
    )
    return Piece(
        outline_um=ring,
        holes_um=(),
        material="graphene",
        layers=layers,
        layer_probabilities=((layers, 0.9), (layers + 1, 0.1)),
        thickness_nm=0.335 * layers,
        contrast_rgb=(-0.1, -0.08, 0.01),
        off_ladder=0.004,
        score=0.9,
        area_um2=side_um**2,
        touches_border=False,
    )


def seen(index: int, *pieces: Piece, is_sound: bool = True) -> Analysed:
    return Analysed(
        "tile", index, "physics", 3.0, (150.0, 120.0, 140.0), is_sound, "", pieces, 0.01
    )


def catalogue(*facts: Fact, wanted: WantedSettings = WANTED):
    tiles = [exposed(index) for index in range(3)]
    return catalogue_of(folded([CHIP, SCAN, *tiles, *facts]), wanted)


# --- where tiles looked -------------------------------------------------------------------------


def test_boxes_lie_where_the_plan_says() -> None:
    """The constant offset of the objective cancels; nothing was planned around the stage's zero."""
    boxes = tile_boxes_um(folded([SCAN, *(exposed(index) for index in range(3))]))
    assert list(boxes) == [0, 1, 2]
    for index, box in boxes.items():
        middle = PITCH_UM * index
        assert box == pytest.approx((middle - 50.0, -40.0, middle + 50.0, 40.0))


def test_a_box_follows_the_stage() -> None:
    boxes = tile_boxes_um(folded([SCAN, exposed(0), exposed(1, (3.0, -2.0)), exposed(2)]))
    assert boxes[1] == pytest.approx((PITCH_UM - 47.0, -42.0, PITCH_UM + 53.0, 38.0))
    assert boxes[0] == pytest.approx((-50.0, -40.0, 50.0, 40.0))


@pytest.mark.parametrize("facts", [[SCAN], [SCAN, exposed(1)]], ids=["none", "one"])
def test_boxes_of_tiles_that_were_not_exposed(facts) -> None:
    boxes = tile_boxes_um(folded(facts))
    assert boxes[2] == pytest.approx((130.0, -40.0, 230.0, 40.0))


def test_no_plan_no_boxes() -> None:
    assert tile_boxes_um(folded([exposed(0)])) == {}


# --- the catalogue ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [CHIP, SCAN], ids=lambda fact: fact.kind)
def test_nothing_before_chip_and_plan_are_known(missing) -> None:
    facts = [fact for fact in (CHIP, SCAN) if fact is not missing]
    assert catalogue_of(folded([*facts, exposed(0), seen(0, square(0.0))]), WANTED) == ()


def test_an_entry_says_what_the_tile_saw() -> None:
    (entry,) = catalogue(seen(0, square(5.0, 7.0)))
    assert (entry.entry_id, entry.flake_id, entry.rank, entry.tiles) == (1, 1, 1, (0,))
    assert (entry.material, entry.layers, entry.probability) == ("graphene", 1, 0.9)
    assert (entry.stage_x_um, entry.stage_y_um) == pytest.approx((5.0, 7.0))
    assert (entry.chip_x_um, entry.chip_y_um) == pytest.approx((55.0, 47.0))
    assert entry.area_um2 == pytest.approx(100.0)
    assert entry.aspect_ratio == pytest.approx(1.0)
    assert entry.sharpness == 3.0
    assert entry.revisit is None
    assert set(entry.outline_um) == {(0.0, 2.0), (10.0, 2.0), (10.0, 12.0), (0.0, 12.0)}


def test_a_turned_chip_has_a_frame_of_its_own() -> None:
    turned = replace(CHIP, rotation_deg=90.0)
    facts = [turned, SCAN, exposed(0), seen(0, square(5.0, 7.0))]
    (entry,) = catalogue_of(folded(facts), WANTED)
    # Stage offset (55, 47) from the origin; chip x points along stage y.
    assert (entry.chip_x_um, entry.chip_y_um) == pytest.approx((47.0, -55.0))


def test_entries_are_numbered_in_scan_order_then_to_the_right() -> None:
    """Whatever the order in which the analyses came."""
    facts = [seen(2, square(190.0)), seen(1, square(100.0)), seen(0, square(30.0), square(-30.0))]
    entries = catalogue(*facts)
    assert [entry.entry_id for entry in entries] == [1, 2, 3, 4]
    assert [round(entry.stage_x_um) for entry in entries] == [-30, 30, 100, 190]
    assert entries == catalogue(*reversed(facts))


def test_the_first_tile_comes_first_whatever_lies_further_left() -> None:
    entries = catalogue(seen(0, square(45.0, -30.0)), seen(1, square(42.0, 30.0)))
    assert [(entry.tiles, round(entry.stage_x_um)) for entry in entries] == [((0,), 45), ((1,), 42)]


def test_seen_by_two_tiles_it_is_one() -> None:
    (entry,) = catalogue(seen(0, square(45.0, side_um=8.0)), seen(1, square(45.0, side_um=8.0)))
    assert entry.tiles == (0, 1)
    assert entry.area_um2 == pytest.approx(64.0)


def test_terraces_that_touch_are_one_flake() -> None:
    entries = catalogue(seen(0, square(0.0), square(10.5, layers=2), square(-30.0)))
    flakes = {round(entry.stage_x_um): entry.flake_id for entry in entries}
    assert flakes[0] == flakes[10]
    assert flakes[-30] != flakes[0]


@pytest.mark.parametrize(
    ("piece", "wanted"),
    [
        (square(0.0, side_um=5.0), WANTED),  # too small
        (square(0.0, layers=7), WANTED),
        (square(0.0), WantedSettings(materials=("mos2",))),
        (replace(square(0.0), score=0.05), WANTED),
    ],
    ids=["small", "layers", "material", "score"],
)
def test_the_unwanted_are_listed_and_not_ranked(piece, wanted) -> None:
    (entry,) = catalogue(seen(0, piece), wanted=wanted)
    assert entry.rank == 0


def test_ranks_are_one_to_n_among_the_wanted() -> None:
    pieces = [square(-30.0, side_um=8.0), square(0.0, side_um=20.0), square(30.0, side_um=4.0)]
    entries = catalogue(seen(0, *pieces))
    assert [(round(entry.stage_x_um), entry.rank) for entry in entries] == [
        (-30, 2),
        (0, 1),
        (30, 0),
    ]


def test_what_is_left_out() -> None:
    """A tile that could not be judged, other shots, and outlines that enclose nothing."""
    line = replace(square(0.0), outline_um=((0.0, 0.0), (5.0, 0.0)))
    flat = replace(square(0.0), outline_um=((0.0, 0.0), (5.0, 0.0), (9.0, 0.0)))
    revisit = replace(seen(0, square(0.0)), shot="revisit")
    assert catalogue(seen(0, square(0.0), is_sound=False), revisit, seen(1, line, flat)) == ()


def test_where_the_network_stood_back_the_physics_counts() -> None:
    flagged = seen(0, square(0.0), is_sound=False)
    assert len(catalogue(replace(flagged, reason=f"{UNKNOWN_TO_NETWORK}: physics only"))) == 1
    assert catalogue(replace(flagged, reason=f"{OTHER_LIGHT}: ln(R/G) moved by +0.30")) == ()


def test_the_latest_look_counts() -> None:
    entries = catalogue(seen(0, square(0.0)), seen(0, square(20.0)))
    assert [round(entry.stage_x_um) for entry in entries] == [20]


def test_a_revisit_is_filed_with_its_entry() -> None:
    revisited = Revisited(
        2, 0, math.nan, 30.0, 0.0, 100.0, "graphene", 1, 0.99, (0.0, 0.0, 0.0), 5.0, True, ""
    )
    first, second = catalogue(seen(0, square(-30.0), square(30.0)), revisited)
    assert first.revisit is None
    assert second.revisit is revisited
