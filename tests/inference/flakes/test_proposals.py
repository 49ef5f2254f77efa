"""What the posterior says of regions, all at once, against the same worked out one by one."""

import cv2
import numpy as np
import pytest

from inference.flakes.evidence import CLASSES, DIRT_CLASS
from inference.flakes.frame import prepared_frame
from inference.flakes.proposals import LOGITS, Region, decoded, measured, own_regions

OUTPUTS = LOGITS + 5


def answered(classes: np.ndarray, seed: int = 1):
    """A noisy answer whose likeliest class is the one asked for at each half-resolution pixel."""
    rng = np.random.default_rng(seed)
    height, width = classes.shape
    answer = rng.normal(0.0, 1.0, (OUTPUTS, height // 2, width // 2)).astype(np.float32)
    logits = answer[:LOGITS].reshape(4, len(CLASSES), height // 2, width // 2)
    for k in range(4):
        part = classes[k // 2 :: 2, k % 2 :: 2]
        for number in range(len(CLASSES)):
            logits[k, number] += 12.0 * (part == number)
    return answer


def squares(*boxes, shape=(64, 96)):
    """(x, y, side, class) on bare substrate."""
    classes = np.zeros(shape, dtype=np.uint8)
    for x, y, side, number in boxes:
        classes[y : y + side, x : x + side] = number
    return classes


def one_by_one(region, posterior):
    """The definition: inside twice eroded, once or not at all, and the rim."""
    height, width = posterior.best.shape
    full = np.zeros((2 * height, 2 * width), dtype=np.uint8)
    h, w = region.mask.shape
    full[region.top : region.top + h, region.left : region.left + w] = region.mask
    small = np.pad(full[::2, ::2], 1)
    once = cv2.erode(small, np.ones((3, 3), np.uint8))
    twice = cv2.erode(once, np.ones((3, 3), np.uint8))
    inside = next((m for m in (twice, once) if m.sum() >= 12), small)[1:-1, 1:-1]
    rim = (small - once)[1:-1, 1:-1]
    y, x = np.nonzero(inside)
    shares = [posterior.share(n, y, x).mean() for n in range(len(CLASSES))]
    return (
        shares,
        posterior.border(y, x).mean(),
        posterior.border(*np.nonzero(rim)).mean(),
        rim.sum(),
    )


BOXES = [
    (4, 4, 20, 1),
    (24, 4, 9, 2),
    (50, 10, 5, 3),
    (70, 30, 3, 4),
    (0, 50, 14, 5),
    (82, 0, 14, 6),
]


@pytest.mark.parametrize("shift", [0, 1])
def test_all_at_once_is_one_by_one(shift):
    posterior = decoded(answered(squares(*BOXES)), 64, 96)
    regions = []
    for x, y, side, _ in BOXES:
        mask = np.ones((2 * side - shift, 2 * side - shift), dtype=np.bool_)
        regions.append(Region(mask, 2 * x + shift, 2 * y + shift, (0.0, 0.0, 0.0), None))
    seen = measured(regions, posterior)
    for k, region in enumerate(regions):
        shares, inner, rim, rim_px = one_by_one(region, posterior)
        assert seen.shares[k] == pytest.approx(shares, abs=1e-5)
        assert seen.inner_border[k] == pytest.approx(inner, abs=1e-5)
        assert seen.rim_border[k] == pytest.approx(rim, abs=1e-5)
        assert seen.rim_px[k] == rim_px


def test_a_region_between_the_pixels_says_nothing():
    posterior = decoded(answered(squares()), 64, 96)
    thin = Region(np.ones((1, 1), dtype=np.bool_), 11, 11, (0.0, 0.0, 0.0), None)
    seen = measured([thin], posterior)
    assert not seen.shares.any()
    assert seen.rim_px.tolist() == [0]


def test_own_regions_are_the_classes_pieces():
    boxes = [
        (4, 4, 20, 1),
        (24, 4, 10, 2),
        (50, 10, 16, 1),
        (60, 40, 12, DIRT_CLASS),
        (80, 40, 3, 3),
    ]
    classes = squares(*boxes)
    image = np.full((128, 192, 3), 100, dtype=np.uint8)
    for x, y, side, number in boxes:
        image[2 * y : 2 * (y + side), 2 * x : 2 * (x + side)] += np.uint8(10 * number)
    image += np.random.default_rng(2).integers(0, 2, image.shape, dtype=np.uint8)
    frame = prepared_frame(image, 384.0)
    assert not frame.background.reason
    found = own_regions(decoded(answered(classes), 64, 96), frame, 100.0)
    assert len(found) == 3  # no dirt, nothing too small
    for region, (x, y, side, number) in zip(found, [boxes[0], boxes[2], boxes[1]], strict=True):
        assert region.physics is None
        ys, xs = np.nonzero(region.mask)
        assert xs.mean() + region.left == pytest.approx(2 * x + side - 0.5, abs=0.7)
        assert ys.mean() + region.top == pytest.approx(2 * y + side - 0.5, abs=0.7)
        assert region.mask.sum() == pytest.approx(4 * side * side, rel=0.1)
        assert region.contrast_rgb == pytest.approx([0.1 * number] * 3, abs=0.035)


def test_nothing_to_see_has_no_regions():
    image = np.full((128, 192, 3), 100, dtype=np.uint8)
    posterior = decoded(answered(squares()), 64, 96)
    assert own_regions(posterior, prepared_frame(image, 384.0), 100.0) == []
