"""The chip: reproducible, self-consistent, with enough of what a search is for."""

from collections import Counter

import numpy as np
import pytest
import shapely
from pydantic import ValidationError

from simulator import shapes
from simulator.chip import Chip, ChipSettings

SMALL = ChipSettings(seed=11, size_mm=(2.0, 1.5), materials=("graphene", "wte2"))


@pytest.fixture(scope="module")
def small() -> Chip:
    return Chip.generate(SMALL)


@pytest.fixture(scope="module")
def full() -> Chip:
    return Chip.generate(ChipSettings(seed=2))


def signature(chip: Chip) -> list[float]:
    rings = [ring for patch in chip.patches for ring in patch.rings_um]
    return [float(ring.sum()) for ring in rings] + [speck.x_um for speck in chip.specks]


def test_the_seed_decides_everything(small: Chip):
    again = Chip.generate(SMALL)
    assert signature(again) == signature(small)
    other = Chip.generate(SMALL.model_copy(update={"seed": 12}))
    assert signature(other) != signature(small)


def test_terraces_tile_their_flake(small: Chip):
    for flake in small.truth().flakes:
        outline = shapely.Polygon(flake.polygon_um)
        parts = [shapely.Polygon(terrace.polygon_um) for terrace in flake.terraces]
        assert outline.is_valid
        assert sum(part.area for part in parts) == pytest.approx(flake.area_um2, rel=1e-6)
        assert shapely.union_all(parts).symmetric_difference(outline).area < 1e-6 * outline.area
        for part, terrace in zip(parts, flake.terraces, strict=True):
            assert part.area == pytest.approx(terrace.area_um2, rel=1e-9)
            assert shapes.signed_area_um2(terrace.polygon_um) == pytest.approx(part.area)
            assert part.centroid.x == pytest.approx(terrace.centroid_um[0])
            nm = SMALL.material(flake.material).layer_thickness_nm
            assert terrace.thickness_nm == pytest.approx(terrace.layers * nm)


def test_terraces_that_touch_differ(full: Chip):
    for flake in full.truth().flakes:
        for i, one in enumerate(flake.terraces):
            for other in flake.terraces[i + 1 :]:
                if one.layers == other.layers:
                    first, second = (
                        shapely.Polygon(one.polygon_um),
                        shapely.Polygon(other.polygon_um),
                    )
                    assert first.distance(second) > 0.0


def test_flakes_lie_on_the_chip_and_apart(full: Chip):
    truth = full.truth()
    ground = shapely.Polygon(truth.outline_um)
    outlines = [shapely.Polygon(flake.polygon_um) for flake in truth.flakes]
    assert all(ground.contains(outline) for outline in outlines)
    tree = shapely.STRtree(outlines)
    pairs = tree.query(outlines, predicate="dwithin", distance=1.0)
    assert set(pairs[0][pairs[0] != pairs[1]]) == set()
    assert [flake.number for flake in truth.flakes] == list(range(len(truth.flakes)))


def test_a_default_chip_has_enough_to_find(full: Chip):
    truth = full.truth()
    found: Counter[int] = Counter()
    for flake in truth.flakes:
        found.update(terrace.layers for terrace in flake.terraces if terrace.area_um2 >= 100.0)
    assert all(found[layers] >= 10 for layers in (1, 2, 3, 4))
    thick = sum(max(t.layers for t in flake.terraces) > 40 for flake in truth.flakes)
    assert 0.4 < thick / len(truth.flakes) < 0.8
    areas = [flake.area_um2 for flake in truth.flakes]
    assert min(areas) >= full.settings.min_area_um2 * (1.0 - 1e-9)
    assert max(areas) <= full.settings.max_area_um2 * (1.0 + 1e-9)


def test_some_cracked_neighbours_stand_a_few_um_apart(full: Chip):
    outlines = [shapely.Polygon(flake.polygon_um) for flake in full.truth().flakes]
    tree = shapely.STRtree(outlines)
    pairs = tree.query(outlines, predicate="dwithin", distance=6.5)
    near = [(i, j) for i, j in pairs.T if i < j]
    assert len(near) >= 3


@pytest.mark.parametrize("corner_deg", [60.0, 90.0])
def test_edges_follow_the_lattice(corner_deg: float):
    rng = np.random.default_rng(7)
    lattice = 0.3
    on_lattice = total = 0.0
    for _ in range(60):
        outline = shapes.crystal(rng, 300.0, corner_deg, lattice)
        assert outline.area == pytest.approx(300.0, rel=1e-6)
        points = np.asarray(outline.exterior.coords)
        steps = np.diff(points, axis=0)
        length = np.hypot(steps[:, 0], steps[:, 1])
        # An edge runs across its normal; normals lie at lattice + k corner_deg.
        heading = np.rad2deg(np.arctan2(steps[:, 1], steps[:, 0]) - lattice - np.pi / 2)
        off = np.abs((heading + corner_deg / 2) % corner_deg - corner_deg / 2)
        on_lattice += length[off < 4.0].sum()
        total += length.sum()
    # Directions at random would give 8 deg out of the corner's.
    assert on_lattice / total > 2.0 * 8.0 / corner_deg


def test_frames_are_inverse_and_turn_counter_clockwise():
    settings = ChipSettings(
        size_mm=(0.5, 0.5), rotation_deg=90.0, centre_um=(100.0, -50.0), flakes_per_mm2=0.0
    )
    chip = Chip.generate(settings)
    assert chip.chip_to_stage_um((10.0, 0.0)) == pytest.approx([100.0, -40.0])
    points = np.random.default_rng(0).uniform(-1e3, 1e3, (20, 2))
    assert chip.stage_to_chip_um(chip.chip_to_stage_um(points)) == pytest.approx(points)


def test_the_surface_tilts_and_bows():
    settings = ChipSettings(
        size_mm=(6.0, 8.0),
        centre_um=(1_000.0, 2_000.0),
        height_um=50.0,
        tilt_um_per_mm=(3.0, -2.0),
        bow_um=4.0,
        flakes_per_mm2=0.0,
        debris_per_mm2=0.0,
    )
    chip = Chip.generate(settings)
    assert chip.surface_z_um(1_000.0, 2_000.0) == pytest.approx(54.0)
    assert chip.surface_z_um(2_000.0, 2_000.0) == pytest.approx(50.0 + 3.0 + 4.0 * (1 - 1 / 25))
    assert chip.surface_z_um(4_000.0, 6_000.0) == pytest.approx(50.0 + 9.0 - 8.0)
    x = np.array([1_000.0, 2_000.0])
    assert chip.surface_z_um(x, np.full(2, 2_000.0)).shape == (2,)


def test_fiducials_stand_near_the_corners_and_nothing_lies_on_them(full: Chip):
    marks = np.asarray(full.fiducials_um)
    assert marks.shape == (4, 2)
    assert np.all(np.abs(marks) < 3_000.0)
    assert np.all(np.abs(marks) > 2_500.0)
    for flake in full.truth().flakes:
        outline = shapely.Polygon(flake.polygon_um)
        assert all(outline.distance(shapely.Point(mark)) > 60.0 for mark in marks)
    bare = Chip.generate(SMALL.model_copy(update={"fiducials": False}))
    assert bare.fiducials_um == ()


def test_density_follows_the_settings():
    one = Chip.generate(ChipSettings(seed=1, size_mm=(3.0, 3.0), flakes_per_mm2=5.0))
    two = Chip.generate(
        ChipSettings(seed=1, size_mm=(3.0, 3.0), flakes_per_mm2=5.0, materials=("hbn", "mos2"))
    )
    assert len(two.truth().flakes) > 1.5 * len(one.truth().flakes)
    none = Chip.generate(ChipSettings(seed=1, size_mm=(3.0, 3.0), flakes_per_mm2=0.0))
    assert none.truth().flakes == ()
    thin = Chip.generate(ChipSettings(seed=1, size_mm=(3.0, 3.0), thick_fraction=0.0, max_layers=4))
    assert all(f.terraces[0].layers <= 4 for f in thin.truth().flakes)


def test_the_tape_left_places_empty(full: Chip):
    centres = np.array([flake.polygon_um.mean(axis=0) for flake in full.truth().flakes])
    counts, _, _ = np.histogram2d(*centres.T, bins=8, range=[[-3_000.0, 3_000.0]] * 2)
    assert (counts == 0).mean() > 0.05


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"materials": ("unobtainium",)}, "unobtainium"),
        ({"materials": ("graphene", "graphene")}, "twice"),
        ({"materials": ()}, "materials"),
        ({"index_curves": {"graphene": "nobody"}}, "nobody"),
        ({"oxide_nm": float("nan")}, "oxide_nm"),
        ({"tilt_um_per_mm": (99.0, 0.0)}, "tilt_um_per_mm"),
        ({"thick_fraction": 1.5}, "thick_fraction"),
        ({"size_mm": (200.0, 200.0)}, "at most"),
        ({"min_area_um2": 400.0, "max_area_um2": 300.0}, "min_area_um2"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_settings_refuse(change: dict[str, object], said: str):
    with pytest.raises(ValidationError, match=said):
        ChipSettings(**change)
