"""Focus from one frame: right where it is sure, and not sure where it cannot know."""

import numpy as np
import pytest

from inference.api import BadImage
from inference.restore.ctf import estimate_ctf
from inference.restore.electrons import Lens
from simulator.atoms import SampleSettings
from simulator.tem import LensSettings, Tem, TemSettings

SHEET = {"vacancy_ratio": 0.02, "dopant_ratio": 0.005}


def shot(kind, seed, defocus_um, stig_um, spherical_mm=0.01, dose=3e4, **sample):
    settings = TemSettings(
        seed=seed,
        height_px=192,
        width_px=192,
        dose_e_per_a2=dose,
        lens=LensSettings(spherical_mm=spherical_mm),
        sample=SampleSettings(kind=kind, seed=seed, **sample),
    )
    return Tem(settings).expose(defocus_um, stig_um)


@pytest.mark.parametrize(
    ("kind", "defocus_um", "stig_um"),
    [("mos2", 0.011, (-0.001, 0.002)), ("mos2", -0.008, (0.001, 0.0))],
)
def test_a_known_sheet_tells_focus_sign_and_stigmators(kind, defocus_um, stig_um):
    frame = shot(kind, 3, defocus_um, stig_um, **SHEET)
    found = estimate_ctf(frame.noisy_e, 0.02, Lens(80.0, 0.01), material=kind)
    assert found.is_sure, found.reason
    assert found.is_sign_known
    assert found.defocus_um == pytest.approx(defocus_um, abs=0.0015)
    assert found.stig_um == pytest.approx(stig_um, abs=0.0015)
    assert abs(found.defocus_um - defocus_um) < 3.0 * found.defocus_sigma_um


def test_without_spherical_aberration_or_a_known_lattice_the_sign_is_left_open():
    frame = shot("graphene", 3, 0.012, (0.0, 0.0), 0.0, 1e5, **SHEET)
    found = estimate_ctf(frame.noisy_e, 0.02, Lens(80.0, 0.0))
    assert not found.is_sure
    assert not found.is_sign_known
    assert "over- or underfocus" in found.reason
    tried = sorted([found.defocus_um, found.other_um])
    assert tried == pytest.approx([-0.012, 0.012], abs=0.002)


def test_noise_alone_is_not_believed():
    frame = np.random.default_rng(1).poisson(100.0, (128, 128)).astype(np.float32)
    for material in (None, "graphene"):
        found = estimate_ctf(frame, 0.02, Lens(80.0), material=material)
        assert not found.is_sure
        assert found.spots == 0


def test_what_is_no_frame_of_electrons_is_refused():
    with pytest.raises(BadImage, match="64 px a side"):
        estimate_ctf(np.ones((32, 128), np.float32), 0.02, Lens(80.0))
    with pytest.raises(BadImage, match="offset"):
        estimate_ctf(np.zeros((128, 128), np.float32), 0.02, Lens(80.0))
