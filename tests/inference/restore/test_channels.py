"""Colour frames, number types and the contact sheet."""

import numpy as np
import pytest

from inference.api import BadImage
from inference.restore.api import NoiseModel
from inference.restore.channels import restore_image
from inference.restore.classical import LocalWiener, RadialWiener
from inference.restore.contact_sheet import contact_sheet
from inference.restore.evaluate import Scene, at_dose


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_channel_is_restored_by_itself(truth, dtype):
    planes = [at_dose(truth, peak, seed)[0] for seed, peak in enumerate((20.0, 60.0, 200.0))]
    pixels = np.stack(planes, axis=-1).astype(dtype)
    answer = restore_image(pixels, RadialWiener())
    assert answer.pixels.dtype == dtype
    assert answer.pixels.shape == pixels.shape
    assert len(answer.channels) == 3
    for c in range(3):
        alone = restore_image(pixels[..., c], RadialWiener())
        assert np.array_equal(alone.pixels, answer.pixels[..., c])
        assert np.abs(alone.channels[0].image - answer.pixels[..., c].astype(float)).max() <= 0.51


def test_values_are_limited_to_the_type_not_wrapped():
    pixels = np.random.default_rng(0).integers(250, 256, (64, 64)).astype(np.uint8)
    pixels[:, 32:] = 0
    answer = restore_image(pixels, RadialWiener())
    assert answer.pixels[:, 40:].max() < 40
    assert answer.pixels[:, :24].min() > 200


def test_other_shapes_are_refused():
    with pytest.raises(BadImage):
        restore_image(np.zeros((2, 64, 64, 3), np.uint8), RadialWiener())


def test_sheet_has_a_row_a_frame_and_a_column_a_method(truth):
    frame, true = at_dose(truth, 30.0)
    noise = NoiseModel(1.0, 0.0, 0.0)
    scenes = [Scene("pair", frame, true, noise), Scene("single", frame[:100, :90], None, noise)]
    sheet = contact_sheet(scenes, (RadialWiener(), LocalWiener()), side_px=128)
    assert sheet.shape == (2 * (128 + 20), 4 * (128 + 4) - 4)
    for column in range(4):
        left = column * 132
        assert sheet[:20, left : left + 128].max() > 200  # a caption
        assert sheet[20:148, left : left + 128].std() > 10
    assert sheet[168:, 3 * 132 :].max() == 0  # no truth of the second
