import numpy as np
import pytest

from inference.flakes.scoring import (
    Instance,
    average_precision,
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
