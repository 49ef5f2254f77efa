"""A sheet's lattice, found where the simulator put it."""

import math

import numpy as np
import pytest

from inference.restore.lattice import CELLS, Lattice, find_lattice
from simulator.atoms import Sample, SampleSettings
from simulator.tem import Tem, TemSettings

PIXEL_NM = 0.02


def windowed(turn_deg, kind="graphene", dose=3e4):
    inside = SampleSettings(kind=kind, turn_deg=turn_deg, vacancy_ratio=0.01)
    settings = TemSettings(height_px=160, width_px=192, pixel_size_nm=PIXEL_NM, dose_e_per_a2=dose)
    shot = Tem(settings, Sample(inside)).expose(0.008)
    window = np.outer(np.hanning(162)[1:-1], np.hanning(194)[1:-1])
    contrast = shot.noisy_e / shot.noisy_e.mean() - 1.0
    weight = float(window.sum())
    noise = float((window**2).sum()) / weight**2 / shot.noisy_e.mean()
    return contrast * window, weight, noise


@pytest.mark.parametrize(
    ("kind", "turn_deg"), [("graphene", 7.0), ("graphene", 41.0), ("mos2", 13.0)]
)
def test_turn_and_size_are_found(kind, turn_deg):
    lattice = find_lattice(*windowed(turn_deg, kind), PIXEL_NM, kind)
    assert lattice is not None
    a1, a2 = lattice.cell_nm
    constant_nm = CELLS[kind][0]
    assert math.hypot(*a1) == pytest.approx(constant_nm, rel=2e-3)
    assert float(a1 @ a2) / constant_nm**2 == pytest.approx(-0.5, abs=5e-3)
    # The sample's first vector lies at its turn; ours may be any of six.
    turned = (math.degrees(math.atan2(a1[1], a1[0])) - turn_deg + 30.0) % 60.0 - 30.0
    assert turned == pytest.approx(0.0, abs=0.15)


def test_noise_has_no_lattice():
    rng = np.random.default_rng(4)
    window = np.outer(np.hanning(130)[1:-1], np.hanning(130)[1:-1])
    weight = float(window.sum())
    noise = 0.01 * float((window**2).sum()) / weight**2
    frame = 0.1 * rng.standard_normal((128, 128)) * window
    assert find_lattice(frame, weight, noise, PIXEL_NM, "graphene") is None


def test_sites_are_those_of_a_honeycomb():
    lattice = Lattice((4.69, 0.0), (2.345, 4.69 * math.sqrt(0.75)))
    places, kinds = lattice.sites((0.0, 0.0), 3.0, 2.0)
    assert len(places) == pytest.approx(2 * 24.0 / lattice.area_nm2, rel=0.03)
    assert np.hypot(*places.T).min() == pytest.approx(0.1421, abs=1e-3)  # the middle is empty
    first = places[np.hypot(*places.T).argmin()]
    gaps = np.sort(np.hypot(*(places - first).T))
    assert np.allclose(gaps[1:4], 0.1421, atol=1e-3)  # three neighbours, of the other kind
    assert set(kinds.tolist()) == {0, 1}
