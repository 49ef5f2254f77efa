"""Exact coverage against shapely's exact intersections."""

import numpy as np
import pytest
import shapely

from simulator.raster import add_coverage, to_picture


def coverage(rings, shape_px):
    """Coverage of one polygon given by rings with y DOWN, the outline first."""
    h, w = shape_px
    target = np.zeros((1, h, w + 1), dtype=np.float32)
    for ring in rings:
        points = np.asarray(ring, dtype=np.float64)
        add_coverage(target, points, np.roll(points, -1, axis=0), np.ones((len(points), 1)))
    return to_picture(target)[0]


def exact(rings, shape_px):
    polygon = shapely.Polygon(rings[0], rings[1:])
    h, w = shape_px
    cells = [[shapely.box(x, y, x + 1, y + 1) for x in range(w)] for y in range(h)]
    return np.array([[polygon.intersection(cell).area for cell in row] for row in cells])


# Counter-clockwise as seen with y up is clockwise in these coordinates, which have y down.
TRIANGLE = [(2.3, 1.2), (7.1, 6.9), (9.7, 3.3)]
SPIKY = [(1.0, 1.0), (4.5, 8.5), (5.0, 3.0), (5.25, 9.75), (8.0, 2.0), (6.0, 0.5)]
SQUARE = [(2.0, 2.0), (2.0, 6.0), (6.0, 6.0), (6.0, 2.0)]
HOLE = [(3.0, 3.5), (4.5, 3.5), (4.5, 4.75), (3.0, 4.75)]
BEYOND = [(-5.0, -4.0), (-5.0, 5.5), (4.5, 15.0), (17.0, 7.0), (6.2, -9.0)]


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        ("triangle", [TRIANGLE]),
        ("spiky", [SPIKY]),
        ("on the grid's lines", [SQUARE]),
        ("with a hole", [SQUARE, HOLE]),
        ("larger than the image", [BEYOND]),
        ("left of it", [[(x - 5.5, y) for x, y in SQUARE]]),
        ("above it", [[(x, y - 4.5) for x, y in SQUARE]]),
        ("outside", [[(x + 30, y) for x, y in SQUARE]]),
    ],
)
def test_coverage_is_exact(name, rings):
    shape_px = (10, 12)
    sign = 1.0 if shapely.LinearRing(rings[0]).is_ccw else -1.0
    assert sign == -1.0, "the rings of this table turn counter-clockwise with y up"
    assert coverage(rings, shape_px) == pytest.approx(exact(rings, shape_px), abs=1e-5)


def test_neighbours_meet_without_a_seam():
    rng = np.random.default_rng(4)
    middle = rng.uniform(3.0, 7.0, 2)
    corners = np.array([(0.0, 0.0), (0.0, 10.0), (12.0, 10.0), (12.0, 0.0)])
    fans = [np.stack([middle, corners[i - 1], corners[i]]) for i in range(4)]
    together = sum(coverage([fan], (10, 12)) for fan in fans)
    assert together == pytest.approx(1.0, abs=1e-5)


def test_weights_and_busy_pixels():
    points = np.array(SQUARE) + 0.5
    target = np.zeros((3, 10, 13), dtype=np.float32)
    weights = np.tile([0.25, -0.5, 2.0], (4, 1))
    rows, columns = add_coverage(target, points, np.roll(points, -1, axis=0), weights)
    picture = to_picture(target)
    assert picture[:, 4, 4] == pytest.approx([0.25, -0.5, 2.0])
    assert picture[:, 2, 4] == pytest.approx([0.125, -0.25, 1.0])
    busy = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert (3, 2) in busy
    assert (4, 4) not in busy
