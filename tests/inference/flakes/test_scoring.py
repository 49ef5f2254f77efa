from dataclasses import replace

import numpy as np
import pytest

from inference.flakes.masks import cut_out
from inference.flakes.scoring import (
    Instance,
    average_precision,
    ignored_shares,
    instances_from_labels,
    iou_matrix,
    match_by_iou,
    score_images,
)


def square(x, y, side, score=1.0):
    return Instance(np.ones((side, side), dtype=np.bool_), x, y, score)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (square(0, 0, 10), square(0, 0, 10), 1.0),
        (square(0, 0, 10), square(5, 0, 10), 50 / 150),
        (square(0, 0, 10), square(10, 0, 10), 0.0),
        (square(3, 4, 2), square(0, 0, 10), 4 / 100),
    ],
)
def test_overlap_of_two_boxes(a, b, expected):
    assert iou_matrix([a], [b])[0, 0] == pytest.approx(expected)


def test_overlap_counts_pixels_not_boxes():
    checked = Instance(np.indices((10, 10)).sum(axis=0) % 2 == 0, 0, 0)
    inverse = Instance(~checked.mask, 0, 0)
    assert iou_matrix([checked], [inverse])[0, 0] == 0.0
    assert iou_matrix([checked], [square(0, 0, 10)])[0, 0] == pytest.approx(0.5)


def test_label_image_to_instances():
    labels = np.zeros((20, 30), dtype=np.uint16)
    labels[2:5, 3:7] = 700
    labels[10:12, 20:30] = 3
    labels[0, 0] = 3
    found = instances_from_labels(labels, {700: 0.25})
    assert [i.area_px for i in found] == [21, 12]
    assert (found[0].box_x_px, found[0].box_y_px, found[0].mask.shape) == (0, 0, (12, 30))
    assert (found[1].box_x_px, found[1].box_y_px, found[1].score) == (3, 2, 0.25)
    assert instances_from_labels(np.zeros((4, 4), dtype=np.uint8)) == ()


def test_better_score_takes_the_truth_and_each_truth_once():
    ious = np.array([[0.6], [0.9]])
    matches = match_by_iou(ious, [0.9, 0.1])
    assert [(m.predicted, m.true) for m in matches] == [(0, 0)]
    # The second prediction's best truth is taken; it gets its second best.
    ious = np.array([[0.9, 0.0], [0.8, 0.6]])
    assert [(m.predicted, m.true) for m in match_by_iou(ious, [1.0, 0.5])] == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("scores", "hits", "n_true", "expected"),
    [
        ([0.9, 0.8, 0.7], [1, 1, 1], 3, 1.0),
        ([0.9, 0.8], [0, 1], 1, 0.5),
        ([0.9, 0.8], [1, 0], 2, 51 / 101),  # recalls 0 to .50 at precision 1, then nothing
        ([], [], 2, 0.0),
        # Equal scores are one step, whatever their order: precision 1/2 up to recall 1.
        ([0.5, 0.5], [1, 0], 1, 0.5),
        ([0.5, 0.5], [0, 1], 1, 0.5),
    ],
)
def test_average_precision(scores, hits, n_true, expected):
    value = average_precision(np.array(scores, float), np.array(hits, bool), n_true)
    assert value == pytest.approx(expected)


def test_average_precision_without_truth_is_no_number():
    assert np.isnan(average_precision(np.ones(1), np.zeros(1, bool), 0))


def test_pooled_scores():
    truth = [square(0, 0, 10), square(50, 50, 10)]
    predicted = [square(0, 0, 10, 0.9), square(50, 52, 10, 0.8), square(90, 90, 10, 0.1)]
    scores = score_images([(predicted, truth), ([], [square(5, 5, 5)])])
    assert (scores.n_true, scores.n_predicted, scores.n_matched) == (3, 3, 2)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.mean_iou == pytest.approx((1 + 80 / 120) / 2)
    # The second match is worth IoU .67: it counts at .50 and .65, not at .75.
    assert scores.ap50 == pytest.approx(67 / 101)
    assert scores.ap75 == pytest.approx(34 / 101)
    cut = score_images([(predicted, truth)], score_cut=0.5)
    assert (cut.n_predicted, cut.precision, cut.ap50) == (2, 1.0, 1.0)


def test_nothing_at_all():
    scores = score_images([([], [])])
    assert scores.n_true == 0
    assert np.isnan(scores.precision)
    assert np.isnan(scores.recall)


def crowded_scene():
    """Six images of rectangles: truths, crowds, predictions off by a few px, and false ones."""
    rng = np.random.default_rng(0)

    def rectangles(count, has_scores):
        found = []
        for _ in range(count):
            mask = np.zeros((120, 160), bool)
            x, y = rng.integers(0, 120), rng.integers(0, 90)
            w, h = rng.integers(8, 40, 2)
            mask[y : y + h, x : x + w] = True
            found.append((mask, float(rng.random()) if has_scores else 1.0))
        return found

    images = []
    for _ in range(6):
        truths, crowds, predictions = (
            rectangles(8, False),
            rectangles(2, False),
            rectangles(4, True),
        )
        for mask, _ in truths:
            if rng.random() < 0.8:
                dx, dy = rng.integers(-4, 5, 2)
                predictions.append((np.roll(mask, (dy, dx), (0, 1)), float(rng.random())))
        for mask, _ in crowds:
            half = mask.copy()
            half[::2] = False
            predictions.append((half, float(rng.random())))
        images.append(
            (
                [cut_out(mask, score) for mask, score in predictions],
                [cut_out(mask) for mask, _ in truths]
                + [replace(cut_out(mask), is_crowd=True) for mask, _ in crowds],
            )
        )
    return images


def test_the_reference_program_says_the_same():
    """pycocotools 2.0 (COCOeval, segm, one category) says so of this very scene.

    Run once beside this on numpy 2: AP 0.15206888554873, AP50 0.37936425164638,
    AP75 0.12224166805956, AR (100 detections) 0.32916666666667; crowds as `iscrowd`.
    """
    scores = score_images(crowded_scene())
    assert scores.n_true == 48
    assert scores.ap == pytest.approx(0.15206888554873, abs=1e-12)
    assert scores.ap50 == pytest.approx(0.37936425164638, abs=1e-12)
    assert scores.ap75 == pytest.approx(0.12224166805956, abs=1e-12)
    assert scores.ar == pytest.approx(0.32916666666667, abs=1e-12)


def test_average_precision_by_hand():
    """Two truths, three predictions: hit at .9, false at .8, hit at .7, each hit with IoU .8.

    Up to IoU .8 the precision is 1 to recall .5 (51 of 101 points), then 2/3 (50 points);
    beyond it nothing matches. Seven of ten overlaps count: .50 to .80.
    """
    truth = [square(0, 0, 10), square(50, 50, 10)]
    tall = np.ones((8, 10), dtype=np.bool_)
    predicted = [
        Instance(tall, 0, 0, 0.9),
        Instance(tall, 80, 80, 0.8),
        Instance(tall, 50, 50, 0.7),
    ]
    scores = score_images([(predicted, truth)])
    by_hand = (51 * 1.0 + 50 * 2 / 3) / 101
    assert scores.ap50 == pytest.approx(by_hand)
    assert scores.ap == pytest.approx(0.7 * by_hand)
    assert scores.ar == pytest.approx(0.7)


def test_what_lies_on_a_crowd_counts_neither_way():
    crowd = replace(square(100, 100, 40), is_crowd=True)
    truth = [square(0, 0, 10), crowd]
    predicted = [
        square(0, 0, 10, 0.5),
        square(105, 105, 10, 0.9),  # wholly on it
        square(134, 100, 10, 0.8),  # 60 % on it: left out at IoU .5, false at .75
        square(95, 95, 10, 0.7),  # 25 % on it
    ]
    scores = score_images([(predicted, truth)])
    assert (scores.n_true, scores.n_predicted, scores.n_ignored) == (1, 2, 2)
    assert scores.precision == pytest.approx(1 / 2)
    assert scores.ap50 == pytest.approx(1 / 2)
    assert scores.ap75 == pytest.approx(1 / 3)
    # A truth inside a crowd is a hit, and regions given apart count like crowds.
    inside = score_images([([square(105, 105, 10)], [square(105, 105, 10), crowd])])
    assert (inside.n_matched, inside.n_ignored) == (1, 0)
    assert ignored_shares([square(95, 100, 10)], [square(100, 100, 5), square(100, 105, 40)]) == [
        pytest.approx(0.5)
    ]


def test_holds_a_pixel():
    assert square(3, 4, 2).holds(4, 5)
    for x, y in ((2, 4), (5, 4), (3, 6), (3, 3)):
        assert not square(3, 4, 2).holds(x, y)
