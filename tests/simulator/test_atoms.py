"""Samples atom by atom: lattices of the right density, listed defects, adatoms that hop."""

import numpy as np
import pytest

from simulator.atoms import NUMBERS, Sample, SampleSettings


def sample(kind="graphene", **more):
    return Sample(SampleSettings(kind=kind, **{"seed": 3, **more}))


def nearest_nm(atoms, count=None):
    places = atoms.places_nm[:count]
    gaps = np.linalg.norm(places[:, None] - atoms.places_nm[None], axis=2)
    gaps[gaps < 1e-9] = np.inf
    return gaps.min(axis=1)


@pytest.mark.parametrize(
    ("kind", "per_nm2", "bond_nm", "shares"),
    [
        ("graphene", 38.1, 0.1421, {"C": 1.0}),
        ("hbn", 36.8, 0.1446, {"B": 0.5, "N": 0.5}),
        ("mos2", 34.7, 0.2417, {"Mo": 1 / 3, "S": 2 / 3}),  # bond: measured 0.241 to 0.242
    ],
)
def test_a_sheet_has_its_density_its_bonds_and_its_elements(kind, per_nm2, bond_nm, shares):
    atoms = sample(kind, width_nm=10.0, height_nm=7.0).atoms()
    assert len(atoms.number) / 70.0 == pytest.approx(per_nm2, rel=0.01)
    assert np.median(nearest_nm(atoms)) == pytest.approx(bond_nm, abs=2e-4)
    for name, share in shares.items():
        assert (atoms.number == NUMBERS[name]).mean() == pytest.approx(share, abs=0.01)
    assert np.abs(atoms.x_nm).max() <= 5.0
    assert np.abs(atoms.y_nm).max() <= 3.5


def test_a_sample_follows_from_its_seed():
    kinds = {"vacancy_ratio": 0.02, "dopant_ratio": 0.02, "holes": 2, "adatoms": 3}
    one, two, other = sample(**kinds), sample(**kinds), sample(**kinds, seed=4)
    assert one.defects_in(5) == two.defects_in(5)
    assert np.array_equal(one.atoms(5).places_nm, two.atoms(5).places_nm)
    assert one.defects != other.defects


def test_every_defect_is_listed_and_is_there():
    found = sample(vacancy_ratio=0.02, dopant_ratio=0.03, holes=2, hole_radius_nm=0.7)
    atoms = found.atoms()
    kinds = [each.kind for each in found.defects]
    ideal = len(sample().atoms().number)
    assert kinds.count("hole") == 2
    assert kinds.count("vacancy") == pytest.approx(0.02 * ideal, abs=4 * np.sqrt(0.02 * ideal))
    assert kinds.count("dopant") == (atoms.number != 6).sum() > 30
    for each in found.defects:
        gap = np.hypot(atoms.x_nm - each.x_nm, atoms.y_nm - each.y_nm)
        if each.kind == "dopant":
            assert atoms.number[gap.argmin()] == each.number
            assert gap.min() < 1e-9
        elif each.kind == "vacancy":
            assert each.number == 6
            assert gap.min() > 0.14
        else:
            assert gap.min() > each.radius_nm


def test_only_one_of_two_sulphurs_is_missing():
    found = sample("mos2", vacancy_ratio=0.05)
    lone = [each for each in found.defects if each.number == NUMBERS["S"]]
    atoms = found.atoms()
    left = [
        int((np.hypot(atoms.x_nm - each.x_nm, atoms.y_nm - each.y_nm) < 1e-6).sum())
        for each in lone
    ]
    assert left.count(1) > 0.8 * len(left) > 10


def test_two_grains_meet_without_atoms_on_top_of_each_other():
    whole, broken = sample(), sample(boundary_deg=22.0)
    assert nearest_nm(broken.atoms()).min() >= 0.8 * 0.142
    assert 0.93 < len(broken.atoms().number) / len(whole.atoms().number) < 1.0
    assert nearest_nm(broken.atoms()).max() < 0.2


def test_adatoms_hop_to_neighbours_as_often_as_they_should():
    found = sample(adatoms=40, hop_ratio=0.2)
    hops, steps = 0, []
    for frame in range(1, 40):
        before, now = found.atoms(frame - 1), found.atoms(frame)
        moved = np.hypot(*(now.places_nm - before.places_nm)[-40:, :2].T)
        assert np.array_equal(moved > 1e-9, found.hopped(frame))
        hops += int(found.hopped(frame).sum())
        steps += list(moved[moved > 1e-9])
        assert len(found.defects_in(frame)) == 40
    assert hops == pytest.approx(0.2 * 39 * 40, abs=50)
    assert np.median(steps) == pytest.approx(0.142, abs=1e-3)
    assert not found.hopped(0).any()


def test_a_particle_is_metal_in_bulk_order():
    bare = sample("gold_particle", particle_radius_nm=1.5).atoms()
    assert set(bare.number) == {79}
    assert np.allclose(nearest_nm(bare), 0.4078 / np.sqrt(2.0))
    assert bare.places_nm.max() <= 1.5 * np.sqrt(1.5)
    # Down [110] atoms stand in columns.
    columns = np.unique(np.round(bare.places_nm[:, :2], 4), axis=0)
    assert len(columns) < 0.25 * len(bare.number)
    held = sample("gold_particle", support_nm=1.0).atoms()
    carbon = held.chosen(held.number == 6)
    assert len(carbon.number) == pytest.approx(6_400, rel=0.05)
    assert carbon.z_nm.max() < held.chosen(held.number == 79).z_nm.min()


def test_nothing_hops_where_there_is_no_sheet():
    assert len(sample("vacuum", adatoms=3).atoms(4).number) == 0
