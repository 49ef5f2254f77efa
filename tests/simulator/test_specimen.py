"""Specimens: the same place looks the same, at any pixel size, and real pictures come through."""

import math

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from simulator import specimen as specimens
from simulator.specimen import GENERATED, Specimen, SpecimenSettings

ALL = (*GENERATED, "near_empty", "empty")


def specimen(kind, **more):
    return Specimen(SpecimenSettings(kind=kind, feature_nm=100.0, **more))


@pytest.mark.parametrize("kind", ALL)
def test_a_field_is_a_window_on_one_and_the_same_sample(kind):
    sample = specimen(kind, seed=5)
    first = sample.field(2.0, -1.0, 5.0, (120, 160), margin_px=20)
    again = specimen(kind, seed=5).field(2.0, -1.0, 5.0, (120, 160), margin_px=20)
    assert first.yield_ratio.shape == (160, 200)
    assert first.yield_ratio.dtype == np.float32
    assert not first.yield_ratio.flags.writeable
    assert np.array_equal(first.yield_ratio, again.yield_ratio)
    assert first.yield_ratio.min() >= 0.0
    # 30 px to the right and 10 px up: the same structure lies further left and further down.
    moved = sample.field(2.0 + 30 * 5e-3, -1.0 + 10 * 5e-3, 5.0, (120, 160), margin_px=20)
    inner = np.s_[15:-15, 15:-15]
    here = first.yield_ratio[:-10, 30:][inner]
    there = moved.yield_ratio[10:, :-30][inner]
    assert np.percentile(np.abs(here - there), 99.5) < 0.02


@pytest.mark.parametrize("kind", GENERATED)
def test_seeds_make_different_samples_with_something_to_see(kind):
    one, other = (specimen(kind, seed=seed).field(0, 0, 4.0, (200, 200)) for seed in (1, 2))
    a, b = one.yield_ratio, other.yield_ratio
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.3
    for y in (a, b):
        assert 0.15 < y.mean() < 0.9
        assert y.std() > 0.06
        assert (y > 1.55).mean() < 0.06  # what a gain of 0.6 and an offset of 0.05 can show
        edges = np.abs(np.diff(y, axis=1))
        assert np.percentile(edges, 99) > 4 * np.median(edges)


@pytest.mark.parametrize("kind", GENERATED)
def test_coarser_pixels_show_the_same_sample_from_further_off(kind):
    sample = specimen(kind, seed=3)
    fine = sample.field(1.0, 1.0, 4.0, (240, 240)).yield_ratio
    coarse = sample.field(1.0, 1.0, 8.0, (120, 120)).yield_ratio
    binned = fine.reshape(120, 2, 120, 2).mean(axis=(1, 3))
    assert np.corrcoef(binned.ravel(), coarse.ravel())[0, 1] > 0.85
    assert coarse.mean() == pytest.approx(fine.mean(), rel=0.12)


def test_a_slope_sends_out_more_and_a_ridge_shines():
    # One feature is 100 nm, one pixel 2 nm: a slope of 1 rises by 0.02 features a pixel.
    view = specimens._View(0.0, 0.0, 2.0, (200, 200), SpecimenSettings(feature_nm=100.0))
    columns = np.arange(200, dtype=np.float32)[None, :].repeat(200, axis=0)
    flat = specimens._emission(view, view.plane(), view.plane(0.4))
    assert flat[100, 100] == pytest.approx(0.4)
    slope = specimens._emission(view, 0.02 * columns, view.plane(0.4))
    assert slope[100, 100] == pytest.approx(0.4 * math.sqrt(2.0) ** 0.9, rel=1e-3)
    step = specimens._emission(view, np.where(columns < 100, 0.1, 0.0).astype(np.float32), flat)
    assert step[100, 97] > 1.1 * step[100, 50]  # the upper edge
    assert step[100, 103] < 0.9 * step[100, 150]  # the foot


def test_empty_is_empty_and_nearly_empty_nearly():
    empty = specimen("empty").field(0, 0, 5.0, (300, 300)).yield_ratio
    assert empty.max() - empty.min() < 0.02
    fields = [
        specimen("near_empty").field(x, y, 10.0, (300, 300)).yield_ratio
        for x in (0.0, 3.0, 6.0)
        for y in (0.0, 3.0, 6.0)
    ]
    specks = [(y > 0.45).mean() for y in fields]
    assert max(specks) < 0.02
    assert 0.1 < np.mean(np.array(specks) > 0) < 1.0


def test_contrast_can_be_taken_away():
    full = specimen("superalloy").field(0, 0, 5.0, (100, 100)).yield_ratio
    half = specimen("superalloy", contrast_ratio=0.5).field(0, 0, 5.0, (100, 100)).yield_ratio
    assert half.std() == pytest.approx(full.std() / 2, rel=0.01)
    assert half.mean() == pytest.approx(full.mean(), rel=0.01)


def test_only_what_insulates_charges():
    assert specimen("fibres").field(0, 0, 5.0, (64, 64)).charging_ratio is None
    field = specimen("fibres", insulating_ratio=0.5).field(0, 0, 5.0, (64, 64))
    bright = field.yield_ratio > field.yield_ratio.mean()
    assert (field.charging_ratio[bright] > 0).all()
    assert (field.charging_ratio[~bright] == 0).all()


def test_the_surface_is_tilted_and_bowed_as_asked():
    sample = specimen(
        "laths", height_um=3.0, tilt_um_per_mm=(2.0, -1.0), bow_um=4.0, bow_radius_um=1000.0
    )
    assert sample.surface_z_um(0.0, 0.0) == 3.0
    assert sample.surface_z_um(1000.0, 0.0) == pytest.approx(3.0 + 2.0 + 4.0)
    assert sample.surface_z_um(0.0, 500.0) == pytest.approx(3.0 - 0.5 + 1.0)


@pytest.fixture
def drawn(tmp_path):
    """A picture with known content: noise on broad blobs."""
    random = np.random.default_rng(4)
    blobs = cv2.GaussianBlur(random.standard_normal((240, 320)).astype(np.float32), (0, 0), 5)
    truth = 128 + 60 * blobs / blobs.std()
    noisy = np.clip(truth + 12 * random.standard_normal(truth.shape), 0, 255).astype(np.uint8)
    path = tmp_path / "blobs.png"
    cv2.imwrite(str(path), noisy)
    return str(path), truth


def micrograph(path, **more):
    return Specimen(
        SpecimenSettings(kind="micrograph", image=path, image_pixel_size_nm=10.0, **more)
    )


def test_a_micrograph_is_cleaned_of_its_noise(drawn):
    path, truth = drawn
    found = micrograph(path, image_binning=1).field(0, 0, 10.0, (200, 280)).yield_ratio
    wanted = truth[20:-20, 20:-20]
    # Grey values are stretched: compare up to gain and offset.
    gain, offset = np.polyfit(found.ravel(), wanted.ravel(), 1)
    assert (gain * found + offset - wanted).std() < 7.0  # 12 before


def test_a_micrograph_is_mirrored_without_end_and_scales(drawn):
    path, _ = drawn
    sample = micrograph(path)
    tall = sample.field(0.0, 0.0, 10.0, (400, 60)).yield_ratio  # taller than the 120 rows it has
    row = 200 - 60  # the upper edge of the picture
    assert tall[row - 30 : row] == pytest.approx(tall[row : row + 30][::-1], abs=0.25)
    fine = sample.field(0.1, 0.1, 5.0, (160, 160)).yield_ratio
    coarse = sample.field(0.1, 0.1, 10.0, (80, 80)).yield_ratio
    binned = fine.reshape(80, 2, 80, 2).mean(axis=(1, 3))
    assert np.corrcoef(binned.ravel(), coarse.ravel())[0, 1] > 0.99
    far = sample.field(0.1, 0.1, 40.0, (40, 40)).yield_ratio
    inner = coarse.reshape(20, 4, 20, 4).mean(axis=(1, 3))
    assert np.corrcoef(far[10:30, 10:30].ravel(), inner.ravel())[0, 1] > 0.9


def test_a_micrograph_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        micrograph(str(tmp_path / "nothing.png")).field(0, 0, 5.0, (64, 64))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FileNotFoundError, match="text"):
        micrograph(str(tmp_path / "text.png")).field(0, 0, 5.0, (64, 64))


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "micrograph"},
        {"kind": "laths", "image": "x.png"},
        {"kind": "granite"},
        {"feature_nm": 0.0},
        {"contrast_ratio": float("nan")},
        {"colour": "red"},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        SpecimenSettings(**bad)


@pytest.mark.parametrize("folder", ["sem_superalloy", "sem_oxide"])
def test_real_micrographs_lie_under_the_beam(shared_data, folder):
    paths = sorted((shared_data / "micrographs" / folder).glob("*.png"))
    if not paths:
        pytest.skip("no micrographs here")
    for path in paths[:3]:
        y = micrograph(str(path)).field(0, 0, 10.0, (256, 256), 64).yield_ratio
        assert y.shape == (384, 384)
        assert np.isfinite(y).all()
        assert 0.05 < y.std() < 0.6
        # Far less than its own noise is left between neighbours where it is smooth.
        assert np.median(np.abs(np.diff(y, axis=1))) < 0.05
