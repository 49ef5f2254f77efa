import json

import cv2
import numpy as np
import pytest

from inference.api import BadImage, BadModel
from inference.flakes.evaluate import (
    cut_out,
    evaluate_folder,
    read_coco,
    read_labels,
    read_rgb,
    rle_counts,
    rle_mask,
    truth_for,
)
from inference.flakes.physics_detector import DetectorSettings

SETTINGS = DetectorSettings()


def write(path, image):
    done, data = cv2.imencode(path.suffix, image)
    assert done
    path.write_bytes(data.tobytes())
    return path


def values(evaluation):
    return {row.name: row.value for row in evaluation.rows}


@pytest.fixture
def folder(tmp_path):
    """Two photographs of two and one bilayers, with label images; names beyond ASCII."""
    images, masks = tmp_path / "bílder", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    for name, places in (("a", [(40, 40), (200, 120)]), ("µ b", [(100, 60)])):
        picture = np.full((240, 320, 3), (88.0, 66.0, 70.0))  # B, G, R
        labels = np.zeros((240, 320), np.uint8)
        for number, (x, y) in enumerate(places, 1):
            picture[y : y + 40, x : x + 50] *= 1 + np.array([-0.169, -0.252, -0.245])
            labels[y : y + 40, x : x + 50] = number
        picture = cv2.GaussianBlur(picture, (0, 0), 1.0) + rng.normal(0, 1, picture.shape)
        write(images / f"{name}.png", np.clip(picture + 0.5, 0, 255).astype(np.uint8))
        write(masks / f"{name}.png", labels)
    return images, masks


def test_own_detector(folder):
    images, masks = folder
    seen = []
    evaluation = evaluate_folder(
        images, masks, SETTINGS, progress=lambda done, total: seen.append((done, total))
    )
    figures = values(evaluation)
    assert figures["ap50"] == 1.0
    assert figures["precision"] == figures["recall"] == 1.0
    assert figures["mean_iou"] > 0.9
    assert figures["ms_per_image"] > 0
    assert seen == [(1, 2), (2, 2)]
    assert [r.name for r in evaluation.images] == ["a.png", "µ b.png"]
    assert len(evaluation.calibrations) == 1
    for name in ("ap50", "ap", "precision", "recall"):
        (row,) = [r for r in evaluation.rows if r.name == name]
        assert row.ci95 is not None
        assert row.ci95[0] <= row.value <= row.ci95[1]


def test_predictions_of_another_program_go_through_the_same_code(folder, tmp_path):
    images, masks = folder
    perfect = evaluate_folder(images, masks, SETTINGS, predictions=masks)
    assert values(perfect)["ap"] == 1.0
    assert values(perfect)["ms_per_image"] is None
    assert perfect.calibrations == ()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    labels = read_labels(masks / "a.png").astype(np.uint16)
    labels[labels == 2] = 0
    labels[200:230, 5:60] = 900  # one found, one missed, one false
    write(theirs / "a.png", labels)
    write(theirs / "µ b.png", np.zeros((240, 320), np.uint8))
    figures = values(evaluate_folder(images, masks, SETTINGS, predictions=theirs))
    assert figures["precision"] == pytest.approx(1 / 2)
    assert figures["recall"] == pytest.approx(1 / 3)
    assert figures["ap50"] == pytest.approx(0.5 * 34 / 101)


def test_layers_are_judged_where_the_truth_names_them(folder, tmp_path):
    images, masks = folder
    entries, annotations = [], []
    for number, path in enumerate(sorted(images.iterdir())):
        labels = read_labels(masks / path.name)
        entries.append({"id": number, "file_name": path.name, "height": 240, "width": 320})
        for value in np.unique(labels)[1:]:
            runs = counts_of(labels == value)
            annotations.append(
                {
                    "image_id": number,
                    "segmentation": {"size": [240, 320], "counts": runs},
                    "layers": 3 if (number, value) == (0, 2) else 2,  # one truth is wrong
                }
            )
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": entries, "annotations": annotations}))
    figures = values(evaluate_folder(images, path, SETTINGS, is_timed=False))
    assert figures["ap50"] == 1.0
    assert figures["recall_2_layers"] == 1.0
    assert figures["precision_2_layers"] == pytest.approx(2 / 3)
    assert figures["recall_3_layers"] == 0.0
    assert figures["precision_3_layers"] is None


def counts_of(mask):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    runs = np.diff(np.r_[0, edges, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def test_run_lengths():
    mask = np.zeros((3, 4), bool)
    mask[1:, 1] = True
    np.testing.assert_array_equal(rle_mask([4, 2, 6], 3, 4), mask)
    np.testing.assert_array_equal(rle_mask([0, 12], 3, 4), np.ones((3, 4), bool))
    for bad in ([4, 2, 5], [4, -2, 10]):
        with pytest.raises(ValueError, match="runs sum"):
            rle_mask(bad, 3, 4)


def compressed(counts):
    """COCO's text, written independently: 5 bits a character, low first, differences later."""
    text = ""
    for k, count in enumerate(counts):
        value = count - counts[k - 2] if k > 2 else count
        while True:
            bits = value & 31
            value >>= 5
            is_done = (value == 0 and not bits & 16) or (value == -1 and bits & 16)
            text += chr(48 + bits + (0 if is_done else 32))
            if is_done:
                break
    return text


@pytest.mark.parametrize(
    "counts", [[0], [12], [4, 2, 6], [100000, 3, 77, 2, 76, 5, 1, 900], [0, 40, 1, 39, 2, 38]]
)
def test_compressed_run_lengths(counts):
    assert rle_counts(compressed(counts)) == counts


def test_known_compressed_text():
    assert rle_counts("52203") == [5, 2, 2, 2, 5]


@pytest.mark.parametrize("text", ["P", "5é", "\x01"])
def test_bad_compressed_text(text):
    with pytest.raises(ValueError, match=r"ends|occur"):
        rle_counts(text)


def test_polygons(tmp_path):
    path = tmp_path / "coco.json"
    ring = [10.0, 5.0, 30.0, 5.0, 30.0, 15.0, 10.0, 15.0]  # between pixels: 20 x 10 px
    content = {
        "images": [{"id": 1, "file_name": "folder/x.jpg", "height": 40, "width": 50}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "segmentation": [ring], "score": 0.5},
        ],
        "categories": [{"id": 7, "name": "graphene"}],
    }
    path.write_text(json.dumps(content))
    (instance,) = read_coco(path)["x"]
    assert (instance.box_x_px, instance.box_y_px) in {(9, 4), (10, 5)}
    assert instance.area_px == pytest.approx(200, abs=35)
    assert (instance.score, instance.material, instance.layers) == (0.5, "graphene", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "COCO"),
        (lambda c: c["annotations"][0].update(image_id=99), r"annotations\[0\]"),
        (lambda c: c["annotations"][0].update(segmentation=5), r"annotations\[0\]"),
        (
            lambda c: c["annotations"][0].update(segmentation={"counts": [1, 2]}),
            r"annotations\[0\].*runs sum",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"counts": [4], "size": [2, 2]}),
            r"annotations\[0\].*size",
        ),
    ],
)
def test_bad_coco_is_named(tmp_path, change, message):
    path = tmp_path / "coco.json"
    content = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 4, "width": 5}],
        "annotations": [{"image_id": 1, "segmentation": {"counts": [3, 4, 13]}}],
    }
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BadModel, match=message) as caught:
        read_coco(path)
    assert "coco.json" in str(caught.value)


def test_depth_and_channels_of_photographs(tmp_path):
    deep = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 900
    read = read_rgb(write(tmp_path / "deep.png", deep))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, deep[..., ::-1])
    grey = read_rgb(write(tmp_path / "grey.png", deep[..., 0]))
    np.testing.assert_array_equal(grey[..., 1], deep[..., 0])
    with_alpha = np.dstack([np.full((4, 5, 3), 9, np.uint8), np.zeros((4, 5), np.uint8)])
    assert read_rgb(write(tmp_path / "alpha.png", with_alpha)).shape == (4, 5, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_a_corrupt_photograph_is_named(folder, content):
    images, masks = folder
    (images / "a.png").write_bytes(content)
    with pytest.raises(BadImage, match=r"a\.png"):
        evaluate_folder(images, masks, SETTINGS)


def test_bad_folders(folder, tmp_path):
    images, masks = folder
    empty = tmp_path / "empty"
    empty.mkdir()
    for bad_images, bad_masks, message in (
        (tmp_path / "nowhere", masks, "nowhere: no such folder"),
        (empty, masks, "empty: no images"),
        (images, tmp_path / "nowhere", "nowhere: neither"),
        (images, empty, r"no label image for a\.png"),
    ):
        with pytest.raises(BadImage, match=message):
            evaluate_folder(bad_images, bad_masks, SETTINGS)
    (masks / "a.png").unlink()
    with pytest.raises(BadImage, match=r"no label image for a\.png"):
        truth_for(sorted(images.iterdir()), masks)


def test_colour_masks_and_masks_of_another_size_are_refused(folder):
    images, masks = folder
    write(masks / "a.png", np.random.default_rng(0).integers(0, 9, (240, 320, 3)).astype(np.uint8))
    with pytest.raises(BadImage, match=r"a\.png: a label image has one channel"):
        evaluate_folder(images, masks, SETTINGS)
    write(masks / "a.png", np.ones((480, 640), np.uint8))
    with pytest.raises(BadImage, match=r"the mask of a\.png is larger"):
        evaluate_folder(images, masks, SETTINGS)


def test_empty_mask_cannot_be_cut_out():
    with pytest.raises(ValueError, match="empty"):
        cut_out(np.zeros((3, 3), bool))


def test_real_photographs(shared_data):
    """No training, one set of settings; a trained rival's AP50 on these is 0.276."""
    folder = shared_data / "flakes" / "graphene_masked"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    evaluation = evaluate_folder(folder / "images", folder / "masks", SETTINGS, is_timed=False)
    figures = values(evaluation)
    assert evaluation.scores.n_true == 51
    assert figures["ap50"] >= 0.60
    assert figures["recall"] >= 0.80
    assert figures["precision_at_0.2"] >= 0.55  # the labels leave many real flakes out
    assert all(r.answer.in_distribution for r in evaluation.images)
