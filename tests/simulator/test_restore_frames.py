"""Clean frames: every family, the same twice, and tests that training has not seen."""

import numpy as np
import pytest

from simulator import restore_frames
from simulator.restore_frames import FAMILIES, clean_frame, graphene_at_80_kv


@pytest.mark.parametrize("domain", ["train", "test"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, domain):
    frame = clean_frame(1, 2, domain, family=family, side_px=96)
    assert frame.family == family
    assert frame.level.shape == (96, 96) and frame.level.dtype == np.float32
    assert frame.level.min() >= 0.0 and frame.level.std() > 0.0
    least_e, most_e = frame.doses_e
    assert 0.0 < least_e < most_e
    if family == "hrtem":
        assert frame.level.mean() == pytest.approx(1.0, abs=0.15)  # of what comes in
        assert most_e == pytest.approx(1e5 * (10.0 * frame.pixel_size_nm) ** 2)
    else:
        assert np.percentile(frame.level, 99.9) > 0.9


def test_the_same_number_is_the_same_frame():
    first, again = (clean_frame(3, 5, side_px=64) for _ in range(2))
    assert np.array_equal(first.level, again.level)
    other = clean_frame(3, 6, side_px=64, family=first.family)
    assert not np.array_equal(first.level, other.level)


def test_what_tests_show_training_has_not_seen(monkeypatch):
    shown = {"train": [], "test": []}

    def photographed(rng, lens, size, side, sample, mode, span, mtf, hidden=None):
        shown[domain].append((sample.kind, lens.voltage_kv, hidden))
        raise StopIteration

    monkeypatch.setattr(restore_frames, "_photographed", photographed)
    for domain in shown:
        for number in range(40):
            with pytest.raises(StopIteration):
                clean_frame(1, number, domain, family="hrtem")
    assert {kind for kind, _, _ in shown["train"]} == {"graphene", "hbn", "gold_particle"}
    assert {kind for kind, _, _ in shown["test"]} == {"mos2", "platinum_particle"}
    assert all(not 70.0 <= kv <= 100.0 and hidden for _, kv, hidden in shown["train"])
    assert all(70.0 <= kv <= 100.0 for _, kv, _ in shown["test"])


def test_hidden_defoci_are_not_drawn(monkeypatch):
    drawn = []

    class Microscope:
        def __init__(self, settings):
            pass

        def expose(self, defocus_um, stig_um, mode):
            drawn.append(abs(1e3 * defocus_um))
            raise StopIteration

    monkeypatch.setattr(restore_frames, "Tem", Microscope)
    for number in range(60):
        with pytest.raises(StopIteration):
            clean_frame(1, number, "train", family="hrtem")
    assert not any(4.0 < nm < 7.0 for nm in drawn)
    assert min(drawn) < 4.0 and max(drawn) > 7.0


def test_surfaces_are_of_other_kinds():
    kinds = {
        domain: {clean_frame(1, n, domain, family="surface", side_px=32).kind for n in range(20)}
        for domain in ("train", "test")
    }
    assert not kinds["train"] & kinds["test"]


def test_graphene_as_everybody_shows_it():
    frame = graphene_at_80_kv(1, 0)
    assert frame.level.shape == (256, 256) and frame.pixel_size_nm == 0.0154
    assert 0.005 < frame.level.std() < 0.08
    # The honeycomb's six spots, at 1 / 0.213 nm.
    power = np.abs(np.fft.fft2(frame.level - frame.level.mean())) ** 2
    fy, fx = (np.fft.fftfreq(256, frame.pixel_size_nm) for _ in range(2))
    radius = np.hypot(fy[:, None], fx[None, :])
    ring = (radius > 4.4) & (radius < 5.0)
    assert power[ring].mean() > 20.0 * power[(radius > 5.5) & (radius < 6.5)].mean()
