"""What was found is green, what was missed red, what nobody labelled yellow."""

import numpy as np

from inference.flakes.contact_sheet import contact_sheet, crop_sheet, write_sheet
from inference.flakes.evaluate import Judged
from inference.flakes.scoring import Instance


def square(x, y, score=1.0):
    return Instance(np.ones((20, 20), bool), x, y, score)


def colours(sheet):
    return {tuple(int(v) for v in c) for c in np.unique(sheet.reshape(-1, 3), axis=0)}


def test_the_three_colours():
    grey = np.full((100, 200, 3), 90, np.uint8)
    sheet = contact_sheet(grey, [square(10, 10), square(150, 50)], [square(11, 10), square(80, 60)])
    assert colours(sheet) == {(90, 90, 90), (60, 220, 60), (255, 60, 60), (255, 225, 40)}
    assert tuple(sheet[10, 15]) == (60, 220, 60)
    assert tuple(sheet[60, 85]) == (255, 60, 60)


def test_below_the_cut_it_is_missed():
    grey = np.full((100, 200, 3), 90, np.uint8)
    sheet = contact_sheet(grey, [square(10, 10, 0.1)], [square(10, 10)], score_cut=0.5)
    assert colours(sheet) == {(90, 90, 90), (255, 60, 60)}


def test_sixteen_bits_are_shown_and_written(tmp_path):
    sheet = contact_sheet(np.full((100, 200, 3), 40_000, np.uint16), [], [])
    assert colours(sheet) == {(156, 156, 156)}
    write_sheet(tmp_path / "a" / "b.jpg", sheet)
    assert (tmp_path / "a" / "b.jpg").stat().st_size > 100


def test_crops_of_any_place_and_depth():
    """An instance in the corner, and one of 16 bits; pairs of 200 px, five in a row."""
    deep = np.random.default_rng(0).integers(0, 60_000, (90, 120, 3)).astype(np.uint16)
    judged = [Judged("hit", square(0, 0), None, 0.9), Judged("miss", square(100, 70), None, 0.0)]
    sheet = crop_sheet([(deep, one) for one in judged])
    assert sheet.shape == (200, 2000, 3)
    assert np.all(sheet[:60, :60] == 40)  # beyond the photograph
    assert crop_sheet([(deep, judged[0])] * 6).shape == (400, 2000, 3)
    assert crop_sheet([]).shape == (200, 2000, 3)
    plain, outlined = sheet[:, :200].astype(int), sheet[:, 200:400].astype(int)
    assert np.any(np.abs(plain - outlined) > 20)
