import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference.api import BadImage, BadModel, Calibration, FlakeAnswer
from inference.flakes import evaluate
from inference.flakes.contact_sheet import write_sheets
from inference.flakes.evaluate import evaluate_folder
from inference.flakes.masks import images_in, mask_counts, read_labels, truth_for
from inference.flakes.physics_detector import DetectorSettings
from inference.flakes.scoring import ignored_shares, score_overlaps

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
    assert figures["cpu_ms_per_image"] > 0
    assert figures["recall_100_300_um2"] == 1.0
    assert figures["precision_300_1000_um2"] is None or figures["precision_300_1000_um2"] == 1.0
    for name in ("ap50", "ap", "ar", "precision", "recall"):
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
            runs = mask_counts(labels == value)
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
    assert figures["layers_right_to_6"] == pytest.approx(2 / 3)


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
    with pytest.raises(BadImage, match=r"a\.png: 640 x 480 px, but a\.png has 320 x 240 px"):
        evaluate_folder(images, masks, SETTINGS)


def test_real_photographs(shared_data):
    """No training, one set of settings; a trained rival's AP50 on these is 0.276."""
    folder = shared_data / "flakes" / "graphene_masked"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    places = folder / "images", folder / "masks"
    ignore = Path(evaluate.__file__).with_name("real_terraces_graphene_masked.json")
    found = evaluate_folder(*places, SETTINGS, ignore=ignore, is_timed=False)
    figures = values(found)
    assert found.scores.n_true == 51
    assert figures["ap50"] >= 0.78
    assert figures["recall"] >= 0.85
    assert figures["precision"] >= 0.65
    assert figures["layers_right_to_6"] >= 0.90
    assert all(r.answer.in_distribution for r in found.images)
    labels_only = score_overlaps(
        [replace(r.overlaps, ignored=np.zeros(len(r.predicted))) for r in found.images]
    )
    assert labels_only.ap50 >= 0.72
    assert labels_only.precision < figures["precision"]


def test_regions_that_nobody_judges(folder, tmp_path):
    images, masks = folder
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    labels = read_labels(masks / "a.png").copy()
    labels[200:230, 5:65] = 7  # inside the region, most of it
    labels[200:230, 75:85] = 8  # inside the region, a shred
    labels[5:25, 250:290] = 9  # elsewhere
    write(theirs / "a.png", labels)
    write(theirs / "µ b.png", read_labels(masks / "µ b.png"))
    region = np.zeros((240, 320), bool)
    region[200:230, 5:90] = True
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 240, "width": 320}],
        "annotations": [{"image_id": 1, "segmentation": {"counts": mask_counts(region)}}],
        "layer_points": {"a.png": [[45, 45, 2], [205, 125, 3]]},
    }
    ignore = tmp_path / "ignore.json"
    ignore.write_text(json.dumps(content))
    found = evaluate_folder(images, masks, SETTINGS, predictions=theirs, ignore=ignore)
    figures = values(found)
    assert figures["precision"] == pytest.approx(3 / 4)
    assert figures["ignored"] == 2
    assert figures["precision_strict"] == pytest.approx(4 / 6)
    assert figures["recall"] == 1.0
    assert sorted(t.layers for t in found.images[0].true) == [2, 3]
    lines = found.csv().splitlines()
    assert lines[0].startswith("image,fate,x_px")
    assert sorted(line.split(",")[1] for line in lines[1:]) == [
        "false alarm", "hit", "hit", "hit", "ignored", "ignored"
    ]  # fmt: skip
    paths = images_in(images)
    written = write_sheets(tmp_path / "sheets", paths, found)
    assert [p.name for p in written] == [
        "a.jpg", "µ b.jpg", "all_hit.jpg", "all_false_alarm.jpg", "all_ignored.jpg"
    ]  # fmt: skip
    assert all(p.stat().st_size > 500 for p in written)

    content["layer_points"] = {"a.png": [[0, 0, 2]]}
    ignore.write_text(json.dumps(content))
    with pytest.raises(BadModel, match=r"layer_points: a\.png: no mask at \(0, 0\)"):
        evaluate_folder(images, masks, SETTINGS, predictions=theirs, ignore=ignore)
    content["images"][0]["width"] = 10
    content["annotations"] = []
    ignore.write_text(json.dumps(content))
    with pytest.raises(BadImage, match=r"a\.png is not"):
        evaluate_folder(images, masks, SETTINGS, predictions=theirs, ignore=ignore)


def test_another_detector_is_judged_alike(folder):
    images, masks = folder
    asked = []

    class Blind:
        name = "blind"
        budget_s = 1.0

        def detect(self, pixels, pixel_size_nm, bit_depth=8):
            asked.append(pixels.shape)
            return FlakeAnswer((), (1.0, 1.0, 1.0), Calibration(90.0, (1, 1, 1), 0.0, ""), True, "")

    found = evaluate_folder(
        images, masks, SETTINGS, make_detector=lambda s, c: Blind(), is_timed=False
    )
    assert values(found)["recall"] == 0.0
    assert values(found)["precision"] is None
    assert len(asked) == 2


def test_the_list_of_real_terraces_fits_the_photographs(shared_data):
    """It keeps clear of the labels, names its rule, and gives layers to labelled instances only."""
    folder = shared_data / "flakes" / "graphene_masked"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    listed = Path(evaluate.__file__).with_name("real_terraces_graphene_masked.json")
    paths = images_in(folder / "images")
    truths = truth_for(paths, folder / "masks")
    regions = evaluate.ignored_in(paths, listed)
    assert sum(len(r) for r in regions) == 64
    assert min(r.area_px for image in regions for r in image) >= 150
    for true, ignored in zip(truths, regions, strict=True):
        assert np.all(ignored_shares(ignored, true) < 0.15)  # outlines are pixelated
    numbered = evaluate.with_layers(paths, truths, listed)
    layers = [t.layers for image in numbered for t in image if t.layers is not None]
    assert len(layers) == 36
    assert set(layers) == {1, 2, 3, 4, 5, 6}
