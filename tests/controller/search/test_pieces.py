"""Masks become polygons of the right place and area."""

import numpy as np
import pytest

from controller.search.pieces import pieces_of, region_px
from inference.api import Calibration, Detection, FlakeAnswer


def detection(mask, x=0, y=0):
    rows, cols = np.nonzero(mask)
    return Detection(
        mask=mask,
        box_x_px=x,
        box_y_px=y,
        area_px=int(mask.sum()),
        centroid_x_px=float(cols.mean() + x),
        centroid_y_px=float(rows.mean() + y),
        outline_px=np.zeros((0, 2), np.float32),
        material="graphene",
        layers=1,
        layer_probabilities=((1, 0.9),),
        thickness_nm=0.335,
        contrast_rgb=(-0.1, -0.1, -0.1),
        off_ladder=0.0,
        score=0.9,
        touches_border=False,
    )


def test_a_rectangle_keeps_its_whole_area_and_place():
    region = region_px(detection(np.ones((10, 20), bool), x=30, y=40))
    assert region.area == pytest.approx(200.0)
    assert region.bounds == pytest.approx((29.5, 39.5, 49.5, 49.5))


def test_a_hole_is_a_hole():
    mask = np.ones((30, 30), bool)
    mask[10:20, 5:15] = False
    region = region_px(detection(mask))
    assert len(region.interiors) == 1
    assert region.area == pytest.approx(mask.sum(), rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_thin_regions_survive(shape):
    assert region_px(detection(np.ones(shape, bool))).area == pytest.approx(np.prod(shape))


def test_a_disc_keeps_area_and_centre():
    rows, cols = np.mgrid[:61, :61]
    mask = (rows - 30) ** 2 + (cols - 30) ** 2 <= 28**2
    region = region_px(detection(mask, x=5))
    assert region.area == pytest.approx(mask.sum(), rel=0.01)
    assert region.centroid.x == pytest.approx(35.0, abs=0.05)


def test_pieces_are_in_stage_um():
    answer = FlakeAnswer(
        detections=(detection(np.ones((10, 20), bool), x=30, y=40),),
        substrate_rgb=(100.0, 90.0, 120.0),
        calibration=Calibration(90.0, (1.0, 1.0, 1.0), 0.0, "nominal"),
        in_distribution=True,
        reason="",
    )
    (piece,) = pieces_of(answer, lambda c, r: (1000 + 0.5 * c, 2000 - 0.5 * r), 0.25)
    xs, ys = zip(*piece.outline_um, strict=True)
    assert piece.area_um2 == pytest.approx(50.0)
    assert (min(xs), max(xs)) == pytest.approx((1014.75, 1024.75))
    assert (min(ys), max(ys)) == pytest.approx((1975.25, 1980.25))
