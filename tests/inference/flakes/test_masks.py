"""What truth and predictions come as: label images, single masks, COCO in all its spellings."""

import json

import cv2
import numpy as np
import pytest

from inference.api import BadImage, BadModel
from inference.flakes.masks import (
    cut_out,
    layer_points,
    layers_of_name,
    mask_counts,
    predictions_for,
    read_coco,
    read_rgb,
    rle_counts,
    rle_mask,
    truth_for,
)


def write(path, image):
    done, data = cv2.imencode(path.suffix, image)
    assert done
    path.write_bytes(data.tobytes())
    return path


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
    (instance,) = read_coco(path).instances["x"]
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


def test_empty_mask_cannot_be_cut_out():
    with pytest.raises(ValueError, match="empty"):
        cut_out(np.zeros((3, 3), bool))


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (20, 7)])
def test_run_lengths_there_and_back(shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    np.testing.assert_array_equal(rle_mask(mask_counts(mask), *shape), mask)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("2L", 2),
        ("3 layers", 3),
        ("graphene_4L", 4),
        ("Monolayer", 1),
        ("bi-layer graphene", 2),
        ("12", 12),
        ("MoS2", None),
        ("few layer", None),
        ("thick", None),
        ("0L", None),
    ],
)
def test_layers_of_a_category(name, layers):
    assert layers_of_name(name) == layers


def coco_file(path, annotations, **more):
    content = {
        "images": [{"id": 7, "file_name": "x.png", "height": 40, "width": 50}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "1L"}, {"id": 2, "name": "2L"}],
        **more,
    }
    path.write_text(json.dumps(content))
    return path


BOX = [10, 5, 30, 5, 30, 15, 10, 15]


def test_categories_may_name_layers_and_crowds_are_told(tmp_path):
    path = coco_file(
        tmp_path / "truth.json",
        [
            {"image_id": 7, "category_id": 2, "segmentation": [BOX]},
            {"image_id": 7, "category_id": 2, "layers": 5, "segmentation": [BOX], "iscrowd": 1},
        ],
    )
    first, second = read_coco(path).instances["x"]
    assert (first.layers, first.is_crowd) == (2, False)
    assert (second.layers, second.is_crowd) == (5, True)


def test_results_of_another_program(tmp_path):
    image = write(tmp_path / "x.png", np.zeros((40, 50, 3), np.uint8))
    truth = coco_file(tmp_path / "truth.json", [])
    results = tmp_path / "results.json"
    for image_id in (7, "x", "x.png"):
        said = [
            {"image_id": image_id, "category_id": 1, "segmentation": [BOX], "score": 0.25},
        ]
        results.write_text(json.dumps(said))
        ((found,),) = predictions_for([image], results, truth)
        assert (found.score, found.layers) == (0.25, 1)
        assert found.area_px == pytest.approx(200, abs=35)
    results.write_text("[]")
    assert predictions_for([image], results, truth) == [()]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 8, "segmentation": [BOX]}, r"\[0\]: image_id 8 is no photograph's"),
        ({"segmentation": [BOX]}, r"\[0\]: no 'image_id'"),
        ({"image_id": 7}, r"\[0\]: no 'segmentation'"),
        ({"image_id": 7, "segmentation": [BOX], "score": "high"}, r"\[0\]: could not convert"),
    ],
)
def test_bad_results_are_named(tmp_path, entry, message):
    image = write(tmp_path / "x.png", np.zeros((40, 50, 3), np.uint8))
    truth = coco_file(tmp_path / "truth.json", [])
    results = tmp_path / "results.json"
    results.write_text(json.dumps([entry]))
    with pytest.raises(BadModel, match=message) as caught:
        predictions_for([image], results, truth)
    assert "results.json" in str(caught.value)


def test_one_mask_an_instance(tmp_path):
    image = write(tmp_path / "x.png", np.zeros((40, 50, 3), np.uint8))
    first, second = np.zeros((2, 40, 50), np.uint8)
    first[2:5, 3:9] = 255
    second[20:30, 3:9] = 1
    own = tmp_path / "own" / "x"
    own.mkdir(parents=True)
    side = tmp_path / "side"
    side.mkdir()
    for folder, names in ((own, ("a", "b")), (side, ("x_1", "x_2"))):
        for name, mask in zip(names, (first, second), strict=True):
            write(folder / f"{name}.png", mask)
    for place in (own.parent, side):
        (found,) = truth_for([image], place)
        assert [i.area_px for i in found] == [18, 60]
    write(side / "x_2.png", np.zeros((40, 50), np.uint8))
    with pytest.raises(BadImage, match=r"x_2\.png: the mask is empty"):
        truth_for([image], side)
    for path in own.iterdir():
        path.unlink()
    assert truth_for([image], own.parent) == [()]  # a folder of its own that says: nothing here


def test_layer_points_are_read_and_bad_ones_named(tmp_path):
    path = coco_file(tmp_path / "a.json", [], layer_points={"x.png": [[3, 4, 2]]})
    assert layer_points(path) == {"x": ((3, 4, 2),)}
    assert layer_points(coco_file(tmp_path / "b.json", [])) == {}
    with pytest.raises(BadModel, match=r"c\.json: layer_points"):
        layer_points(coco_file(tmp_path / "c.json", [], layer_points={"x.png": [[3, 4]]}))
