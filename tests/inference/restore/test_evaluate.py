"""Folders of pairs and of single frames, and the rows they end in."""

import cv2
import numpy as np
import pytest

from inference.api import BadImage
from inference.figures import Row
from inference.restore.classical import Gaussian, LocalWiener, RadialWiener
from inference.restore.evaluate import (
    Scene,
    at_dose,
    evaluate_folder,
    evaluate_scenes,
    read_grey,
    scenes_in,
)
from inference.restore.scores import psnr_db, ssim


def write(path, image):
    path.parent.mkdir(exist_ok=True)
    ok, data = cv2.imencode(path.suffix, image)
    assert ok
    path.write_bytes(data.tobytes())


@pytest.fixture
def counts(truth):
    frame, true = at_dose(truth * 200.0, 60.0)
    return frame.astype(np.uint8), np.rint(true).astype(np.uint8)


def named(evaluation):
    return {row.name: row for row in evaluation.rows}


def test_pairs_by_name(tmp_path, counts):
    noisy, clean = counts
    write(tmp_path / "größe_noisy.png", noisy)
    write(tmp_path / "größe_clean.tif", clean)
    seen = []
    evaluation = evaluate_folder(
        tmp_path,
        (RadialWiener(), LocalWiener()),
        is_timed=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    rows = named(evaluation)
    image = RadialWiener().restore(noisy).image
    span = float(np.ptp(clean))
    assert all(isinstance(row, Row) for row in evaluation.rows)
    assert rows["psnr_db_radial_wiener"].value == pytest.approx(psnr_db(image, clean, span))
    assert rows["ssim_radial_wiener"].value == pytest.approx(ssim(image, clean, span))
    assert rows["psnr_db"].value == rows["psnr_db_radial_wiener"].value
    assert "radial_wiener" in rows["psnr_db"].note
    assert rows["psnr_db_local_wiener"].value > 20.0
    assert rows["psnr_db_local_wiener"].unit == "dB"
    # Chance in the noise's mean square, 0.6 % of it, is a fifth of the error looked for.
    assert rows["sure_snr_db"].value == pytest.approx(rows["snr_db"].value, abs=1.5)
    assert rows["psnr_db"].ci95 is None
    assert rows["flagged"].value == 0.0
    assert seen == [(1, 1)]


def test_pairs_in_two_folders(tmp_path, counts):
    noisy, clean = counts
    write(tmp_path / "noisy" / "a.png", noisy)
    write(tmp_path / "clean" / "a.png", clean)
    (scene,) = scenes_in(tmp_path)
    assert scene.name == "a"
    assert np.array_equal(scene.truth, clean)
    write(tmp_path / "noisy" / "b.png", noisy)
    with pytest.raises(BadImage, match=r"b\.png"):
        scenes_in(tmp_path)


def test_single_frames_have_no_truth(tmp_path, counts):
    write(tmp_path / "a.png", counts[0])
    write(tmp_path / "b_noisy.png", counts[0])  # its clean one is missing: a single frame
    evaluation = evaluate_folder(tmp_path, (Gaussian(),), is_timed=False)
    rows = named(evaluation)
    assert [one.scene for one in evaluation.results] == ["a", "b_noisy"]
    assert rows["psnr_db"].value is None
    assert rows["psnr_db"].n == 0
    assert "no truth" in rows["psnr_db"].note
    assert rows["sure_snr_db"].value > 5.0
    assert rows["sure_snr_db"].n == 2
    assert rows["sure_snr_db"].ci95 is not None
    assert rows["mp_per_s_gaussian"].value > 0.0


def test_correlated_noise_gets_no_estimate_of_error(counts):
    blurred = cv2.GaussianBlur(counts[0].astype(np.float32), (0, 0), 0.7)
    rows = named(evaluate_scenes([Scene("a", blurred, None)], (Gaussian(),), is_timed=False))
    assert rows["sure_snr_db"].value is None
    assert "white noise" in rows["sure_snr_db"].note
    assert rows["flagged"].value == 1.0


def test_what_cannot_be_read_is_named(tmp_path, counts):
    with pytest.raises(BadImage, match="no such folder"):
        evaluate_folder(tmp_path / "none")
    with pytest.raises(BadImage, match="no frame"):
        evaluate_folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(BadImage, match=r"broken\.png"):
        evaluate_folder(tmp_path)
    (tmp_path / "broken.png").unlink()
    write(tmp_path / "x_noisy.png", counts[0])
    write(tmp_path / "x_clean.png", counts[1][:64])
    with pytest.raises(BadImage, match="x_clean"):
        evaluate_folder(tmp_path)


def test_colour_is_read_as_green(tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 1] = 7
    write(tmp_path / "a.png", image)
    assert np.all(read_grey(tmp_path / "a.png") == 7)


def test_dose_is_that_of_the_brightest_pixel(truth):
    frame, true = at_dose(truth, 32.0)
    assert float(true.max()) == pytest.approx(32.0, rel=1e-5)
    assert float(frame.mean()) == pytest.approx(float(true.mean()), rel=0.01)
    assert np.array_equal(frame, at_dose(truth, 32.0)[0])
    assert not np.array_equal(frame, at_dose(truth, 32.0, seed=1)[0])
