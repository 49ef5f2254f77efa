"""Zarr in, and PNG, TIFF and Zarr out: the same numbers, labelled, never over another file."""

import struct

import cv2
import numpy as np
import pytest
import zarr

from controller.image_files.reading import open_images
from controller.image_files.writing import open_writer, png_labelled
from controller.image_files.zarr_images import open_zarr
from controller.record.frames import ome_attributes
from inference.api import BadImage

WORDS = "computed by a test (größe)"


def written(out, frames, pixel_nm=None):
    writer = open_writer(out, out.with_name("given.mrc"), len(frames), pixel_nm)
    for frame in frames:
        writer.append(frame, WORDS)
    writer.close()
    return open_images(out)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "f8"])
@pytest.mark.parametrize("channels", [0, 3, 4])
@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
def test_there_and_back(tmp_path, dtype, channels, name):
    shape = (5, 7, channels) if channels else (5, 7)
    frames = np.random.default_rng(1).integers(0, 200, (3, *shape)).astype(dtype)
    images = written(tmp_path / "new" / name, frames, 0.25)
    assert images.frames == 3
    assert images.shape_px == shape
    for number, frame in enumerate(frames):
        back = images.frame(number)
        assert back.dtype == frame.dtype
        assert np.array_equal(back, frame)
    if name.endswith("zarr"):
        assert images.pixel_size_nm == pytest.approx(0.25)


def test_a_tiffs_pages_say_what_they_are(tmp_path):
    frames = np.zeros((2, 5, 7), np.uint16)
    written(tmp_path / "a.tif", frames, 0.25)
    data = (tmp_path / "a.tif").read_bytes()
    (at,) = struct.unpack_from("<I", data, 4)
    pages = 0
    while at:
        (count,) = struct.unpack_from("<H", data, at)
        tags = {}
        for n in range(count):
            tag, code, length, value = struct.unpack_from("<HHII", data, at + 2 + 12 * n)
            tags[tag] = (code, length, value)
        assert sorted(tags) == list(tags)
        code, length, place = tags[270]
        assert data[place : place + length] == b"computed by a test (gr??e)\0"
        above, below = struct.unpack_from("<II", data, tags[282][2])
        assert above / below == pytest.approx(1e7 / 0.25)
        (at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
        pages += 1
    assert pages == 2


def test_a_labelled_png_holds_the_same_pixels(tmp_path):
    frame = np.random.default_rng(1).integers(0, 60_000, (5, 7)).astype(np.uint16)
    data = png_labelled(cv2.imencode(".png", frame)[1].tobytes(), b"word")
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), -1), frame)
    assert b"tEXtDescription\0word" in data
    assert np.array_equal(written(tmp_path / "a.png", [frame]).frame(0), frame)


def test_zarr_says_that_it_is_computed_and_is_there_only_when_whole(tmp_path):
    out = tmp_path / "a.zarr"
    writer = open_writer(out, out, 2, 1.0)
    writer.append(np.zeros((4, 5), np.uint8), "first")
    assert not out.exists()
    writer.append(np.zeros((4, 5), np.uint8), "second")
    writer.close()
    assert zarr.open_group(out, mode="r").attrs["scopeloop"]["label"] == "first; second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
def test_what_failed_leaves_nothing(tmp_path, name):
    writer = open_writer(tmp_path / name, tmp_path, 2, 1.0)
    writer.append(np.zeros((4, 5), np.uint8), WORDS)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.zarr"])
def test_nothing_is_written_over(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(BadImage, match="exists and is not written over"):
        open_writer(tmp_path / name, tmp_path / "given.mrc", 1, None)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_what_a_png_cannot_hold(tmp_path):
    with pytest.raises(BadImage, match="holds 2 frames, a PNG one"):
        open_writer(tmp_path / "a.png", tmp_path / "given.mrc", 2, None)
    writer = open_writer(tmp_path / "a.png", tmp_path / "given.mrc", 1, None)
    with pytest.raises(BadImage, match=r"given\.mrc: gives float32, which PNG cannot"):
        writer.append(np.zeros((4, 5), np.float32), WORDS)


# --- others' Zarr -----------------------------------------------------------------------------


def test_bare_arrays(tmp_path):
    frames = np.random.default_rng(1).integers(0, 200, (3, 5, 7)).astype(np.int16)
    zarr.save_array(tmp_path / "three", frames)
    zarr.save_array(tmp_path / "one", frames[0])
    zarr.save_array(tmp_path / "five", np.zeros((1, 1, 1, 5, 7), np.uint8))
    three = open_zarr(tmp_path / "three")
    assert np.array_equal(three.frame(2), frames[2])
    assert three.frame(2).dtype == np.float32
    assert open_zarr(tmp_path / "one").shape_px == (5, 7)
    with pytest.raises(BadImage, match="axes that end in y, x"):
        open_zarr(tmp_path / "five")


def test_zarr_of_version_2(tmp_path):
    frames = np.random.default_rng(1).integers(0, 200, (3, 5, 7)).astype(np.uint8)
    array = zarr.create_array(tmp_path / "two", data=frames, zarr_format=2)
    assert array.metadata.zarr_format == 2
    assert np.array_equal(open_images(tmp_path / "two").frame(1), frames[1])


def test_an_ome_image_of_a_run(tmp_path):
    planes = np.random.default_rng(1).integers(0, 200, (3, 5, 7)).astype(np.uint8)
    attributes = ome_attributes("tile/0", (0.0, 0.0), 250.0, 3, 8)
    group = zarr.create_group(tmp_path / "tile" / "0", attributes=attributes)
    group.create_array("0", data=planes)
    images = open_images(tmp_path / "tile" / "0")
    assert images.shape_px == (5, 7, 3)
    assert images.pixel_size_nm == pytest.approx(250.0)
    assert np.array_equal(images.frame(0), planes.transpose(1, 2, 0)[..., ::-1])


def test_time_and_depth_are_frames(tmp_path):
    data = np.random.default_rng(1).integers(0, 200, (2, 1, 3, 5, 7)).astype(np.uint16)
    axes = [{"name": name} for name in "tczyx"]
    image = {"axes": axes, "datasets": [{"path": "0"}]}
    group = zarr.create_group(tmp_path / "a", attributes={"ome": {"multiscales": [image]}})
    group.create_array("0", data=data)
    images = open_images(tmp_path / "a")
    assert (images.frames, images.pixel_size_nm) == (6, None)
    assert np.array_equal(images.frame(4), data[1, 0, 1])


@pytest.mark.parametrize("text", ["{}", "no json", '{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_zarr(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "zarr.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadImage, match=r"a: "):
        open_images(tmp_path / "a")


def test_a_store_of_many_images_names_them(tmp_path):
    group = zarr.create_group(tmp_path / "a")
    for name in ("tile", "focus"):
        group.create_group(name)
    with pytest.raises(BadImage, match="name one inside: focus, tile"):
        open_images(tmp_path / "a")


def test_missing_chunks_of_damaged_zarr(tmp_path):
    zarr.save_array(tmp_path / "a", np.ones((3, 5, 7), np.uint8))
    images = open_images(tmp_path / "a")
    for chunk in (tmp_path / "a" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"\1\2\3")
    with pytest.raises(BadImage, match="frame 0 cannot be read"):
        images.frame(0)
