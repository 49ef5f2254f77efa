"""The score against a known truth: a table of small scenes and what must be counted."""

import math

import pytest
from shapely.geometry import Polygon, box

from controller.messages import CatalogueEntry
from controller.search.scorecard import TruthTerrace, score, shape_of

SIDE_UM = 20.0  # 400 um2


def entry(
    x_um: float = 0.0,
    layers: int = 1,
    material: str = "graphene",
    side_um: float = SIDE_UM,
    holes: tuple = (),
    off_um: float = 0.0,
) -> CatalogueEntry:
    """A square with its lower left corner at x; `off_um`: the catalogue's position is out."""
    ring = ((x_um, 0.0), (x_um + side_um, 0.0), (x_um + side_um, side_um), (x_um, side_um))
    return CatalogueEntry(
        entry_id=1,
        flake_id=1,
        rank=1,
        material=material,
        layers=layers,
        probability=0.9,
        layer_probabilities=((layers, 0.9),),
        thickness_nm=0.3,
        area_um2=side_um**2,
        aspect_ratio=1.0,
        outline_um=ring,
        holes_um=holes,
        stage_x_um=x_um + side_um / 2 + off_um,
        stage_y_um=side_um / 2,
        chip_x_um=0.0,
        chip_y_um=0.0,
        contrast_rgb=(0.0, 0.0, 0.0),
        off_ladder=0.0,
        score=0.9,
        sharpness=1.0,
        tiles=(0,),
        revisit=None,
    )


def truth(
    x_um: float = 0.0, layers: int = 1, material: str = "graphene", side_um: float = SIDE_UM
) -> TruthTerrace:
    return TruthTerrace(material, layers, box(x_um, 0.0, x_um + side_um, side_um))


# name, catalogue, truth, what layer 1 of graphene must count:
# present, found, missed, mislabelled, entries, false
SCENES = [
    ("nothing at all", [], [], (0, 0, 0, 0, 0, 0)),
    ("found", [entry()], [truth()], (1, 1, 0, 0, 1, 0)),
    ("missed", [], [truth()], (1, 0, 1, 0, 0, 0)),
    ("false", [entry()], [], (0, 0, 0, 0, 1, 1)),
    ("elsewhere", [entry(100.0)], [truth()], (1, 0, 1, 0, 1, 1)),
    ("a little off", [entry(4.0)], [truth()], (1, 1, 0, 0, 1, 0)),  # IoU 16 / 24
    ("too far off", [entry(8.0)], [truth()], (1, 0, 1, 0, 1, 1)),  # IoU 12 / 28
    ("half of it", [entry(side_um=15.0)], [truth()], (1, 1, 0, 0, 1, 0)),  # IoU 225 / 400
    ("less than half", [entry(side_um=14.0)], [truth()], (1, 0, 1, 0, 1, 1)),  # 196 / 400
    ("another layer number", [entry(layers=2)], [truth()], (1, 0, 1, 1, 0, 0)),
    ("another material", [entry(material="mos2")], [truth()], (1, 0, 1, 1, 0, 0)),
    ("a label too many", [entry()], [truth(layers=2)], (0, 0, 0, 0, 1, 1)),
    ("twice", [entry(), entry(1.0)], [truth()], (1, 1, 0, 0, 2, 0)),
    ("two beside each other", [entry(), entry(25)], [truth(), truth(25)], (2, 2, 0, 0, 2, 0)),
    ("one of two", [entry()], [truth(), truth(25)], (2, 1, 1, 0, 1, 0)),
    ("too small to count", [entry(side_um=9.0)], [truth(side_um=9.0)], (0, 0, 0, 0, 0, 0)),
    ("large entry on small truth", [entry(side_um=10.1)], [truth(side_um=9.9)], (0, 0, 0, 0, 1, 0)),
    ("small entry on large truth", [entry(side_um=9.9)], [truth(side_um=10.1)], (1, 1, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(
    ("entries", "terraces", "counts"), [s[1:] for s in SCENES], ids=[s[0] for s in SCENES]
)
def test_scene(entries, terraces, counts) -> None:
    (row,) = score(entries, terraces, ["graphene"], [1], min_area_um2=100.0).rows
    found = (row.present, row.found, row.missed, row.mislabelled, row.entries, row.false)
    assert found == counts


def test_rows_for_everything_asked_and_nothing_else() -> None:
    card = score([entry(material="wse2")], [], ["graphene", "mos2"], [1, 3], 0.0)
    assert [(row.material, row.layers) for row in card.rows] == [
        ("graphene", 1),
        ("graphene", 3),
        ("mos2", 1),
        ("mos2", 3),
    ]
    assert all(row.entries == 0 for row in card.rows)


def test_ratios() -> None:
    entries, terraces = [entry(), entry(300.0)], [truth(), truth(100.0), truth(200.0), truth(400)]
    (row,) = score(entries, terraces, ["graphene"], [1], 0.0).rows
    assert row.recall == 0.25
    assert row.precision == 0.5
    (row,) = score([], [], ["graphene"], [1], 0.0).rows
    assert row.recall is None
    assert row.precision is None


def test_positions_and_duplicates() -> None:
    entries = [entry(off_um=3.0), entry(100.0, off_um=-4.0), entry(101.0, off_um=-1.0)]
    card = score(entries, [truth(), truth(100.0)], ["graphene"], [1], 0.0)
    assert card.position_rms_um == pytest.approx(math.sqrt((9.0 + 16.0 + 0.0) / 3))
    assert card.duplicates == 1
    assert score([entry(layers=2)], [truth()], ["graphene"], [1], 0.0).position_rms_um is None


def test_holes_count() -> None:
    hole = ((2.0, 2.0), (18.0, 2.0), (18.0, 18.0), (2.0, 18.0))
    assert shape_of(entry(holes=(hole,))).area == pytest.approx(400 - 256)
    (row,) = score([entry(holes=(hole,))], [truth()], ["graphene"], [1], 0.0).rows
    assert row.found == 0


def test_an_outline_that_crosses_itself_is_still_a_shape() -> None:
    bow = entry()
    ring = ((0.0, 0.0), (20.0, 20.0), (20.0, 0.0), (0.0, 20.0))
    assert not Polygon(ring).is_valid
    crossed = CatalogueEntry(**{**{f: getattr(bow, f) for f in bow.__slots__}, "outline_um": ring})
    assert shape_of(crossed).is_valid
    score([crossed], [truth()], ["graphene"], [1], 0.0)
