import numpy as np
import pytest

from inference.focus.aenet import FEATURES
from inference.focus.spectrum import power_of
from inference.training.focus_frames import Block, joined, make_examples, random_field, random_pair
from inference.training.focus_objects import KINDS, random_object
from inference.training.focus_outliers import SEEN, UNSEEN, random_outlier


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_objects_are_brightness_of_mean_1(kind):
    for seed in range(3):
        plane = random_object(np.random.default_rng(seed), kind)
        assert plane.shape == (512, 512) and plane.dtype == np.float32
        assert plane.min() >= 0.0 and plane.mean() == pytest.approx(1.0, abs=1e-3)
        assert plane.std() > 1e-3


def _fine_share(spectrum, z_dof, seed):
    rng = np.random.default_rng(seed)
    frame, _ = random_pair(random_field(spectrum, z_dof, 1.0, rng), rng)
    level = power_of(frame)
    power, _ = level.isotropic
    fine = max(float(power[7:10].mean()) - level.floor, 1e-3 * level.floor)
    return float(np.log(fine / power[:3].mean()))


@pytest.mark.parametrize("kind", ["leaves", "lines", "grains"])
def test_defocus_takes_fine_power(kind):
    """The median over cameras: one alone may have nothing but noise there."""
    spectrum = np.fft.rfft2(random_object(np.random.default_rng(3), kind)).astype(np.complex64)
    sharp, off = (np.median([_fine_share(spectrum, z, s) for s in range(9)]) for z in (0.0, 12.0))
    assert sharp > off + 1.0


def test_frames_are_tiles_of_finite_grey():
    rng = np.random.default_rng(4)
    spectrum = np.fft.rfft2(random_object(rng, "spots")).astype(np.complex64)
    for _ in range(20):
        for frame in random_pair(random_field(spectrum, 3.0, 1.0, rng), rng):
            assert frame.shape == (256, 256) and frame.dtype == np.float32
            assert np.all(np.isfinite(frame)) and frame.min() >= 0.0


@pytest.mark.parametrize("kind", [*SEEN, *UNSEEN])
def test_outliers_are_images(kind):
    plane = random_outlier(np.random.default_rng(5), kind)
    assert plane.shape == (256, 256) and plane.dtype == np.float32
    assert plane.min() >= 0.0 and plane.max() <= 255.0 and plane.std() > 1.0


def test_outliers_of_the_exam_are_not_those_of_the_lessons():
    assert not set(SEEN) & set(UNSEEN)


def test_a_block_is_its_seed():
    block = Block((1, 0, 3), ("leaves", "hills"), 2, 3)
    one, two = make_examples(block), make_examples(block)
    other = make_examples(Block((1, 0, 4), ("leaves", "hills"), 2, 3))
    np.testing.assert_array_equal(one.features, two.features)
    np.testing.assert_array_equal(one.defocus_dof, two.defocus_dof)
    assert one.features.shape[1] == FEATURES and np.all(np.isfinite(one.features))
    assert np.all(one.defocus_dof >= 0.0)
    assert one.features.shape != other.features.shape or np.any(one.features != other.features)


def test_partners_are_two_frames_of_one_field():
    parts = [make_examples(Block((1, 0, k), ("leaves",), 1, 4)) for k in range(2)]
    both = joined(parts)
    assert len(both.features) == sum(len(part.features) for part in parts)
    np.testing.assert_array_equal(both.partner[both.partner], np.arange(len(both.partner)))
    np.testing.assert_array_equal(both.defocus_dof[both.partner], both.defocus_dof)
    assert np.any(both.partner != np.arange(len(both.partner)))
    assert both.partner[-1] >= len(parts[0].features)


def test_outliers_have_no_defocus():
    found = make_examples(Block((1, 2, 0), tuple(SEEN), 5, 0))
    assert len(found.features) > 0 and np.all(found.defocus_dof == -1.0)
