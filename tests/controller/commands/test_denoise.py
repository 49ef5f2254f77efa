"""`scopeloop denoise` and `evaluate restore`: what is written, what it says, what is refused."""

import json
import struct

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from controller import cli
from controller.commands.denoise import png_labelled, read_pixels, tiff_labelled
from controller.errors import BadSettings
from inference.api import BadImage

LABEL = b"computed by scopeloop denoise"
METHODS = {
    "radial-wiener": "radial_wiener",
    "local-wiener": "local_wiener",
    "nlm": "nlm",
    "gaussian": "gaussian",
}


def called(*words):
    result = CliRunner().invoke(cli.cli, [str(word) for word in words], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def write(path, image):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


@pytest.fixture(scope="module")
def clean():
    y, x = np.mgrid[:96, :130].astype(np.float32)
    return 100.0 + 60.0 * np.sin(x / 17.0) * np.cos(y / 13.0)


@pytest.fixture(scope="module")
def noisy(clean):
    return np.clip(np.rint(np.random.default_rng(1).normal(clean, 12.0)), 0, 255).astype(np.uint8)


def error_rms(image, clean):
    return float(np.sqrt(np.mean((image.astype(np.float32) - clean) ** 2)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_a_file(tmp_path, clean, noisy, suffix, method):
    given = write(tmp_path / f"größe{suffix}", noisy)
    before, out = given.read_bytes(), tmp_path / "new" / f"computed{suffix}"
    status, said = called("denoise", given, "--out", out, "--method", method)
    image = read_pixels(out)
    assert status == 0
    assert image.dtype == noisy.dtype
    assert image.shape == noisy.shape
    assert error_rms(image, clean) < 0.8 * error_rms(noisy, clean)
    assert LABEL in out.read_bytes()
    assert METHODS.get(method, "wiener") in said
    assert f"({METHODS.get(method, '')}".encode() in out.read_bytes()
    assert given.read_bytes() == before


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_a_labelled_tiff_holds_the_same_pixels(noisy, dtype):
    for image in (noisy.astype(dtype), np.dstack([noisy, noisy // 2, noisy // 3]).astype(dtype)):
        data = cv2.imencode(".tif", image)[1].tobytes()
        for label in (b"odd", b"even"):
            twice = tiff_labelled(tiff_labelled(data, b"before"), label)
            back = cv2.imdecode(np.frombuffer(twice, np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(back, image)
            assert label + b"\0" in twice
            (at,) = struct.unpack_from("<I", twice, 4)
            (count,) = struct.unpack_from("<H", twice, at)
            tags = [struct.unpack_from("<H", twice, at + 2 + 12 * n)[0] for n in range(count)]
            assert tags == sorted(set(tags))


def test_a_labelled_png_holds_the_same_pixels(noisy):
    data = png_labelled(cv2.imencode(".png", noisy)[1].tobytes(), b"word")
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(back, noisy)
    assert b"tEXtDescription\0word" in data


def test_colours_and_depth_stay_and_transparency_is_not_touched(tmp_path, clean, noisy):
    scales = (256, 200, 100)
    alpha = np.random.default_rng(2).integers(0, 65_535, noisy.shape)
    image = np.dstack([*(noisy.astype(np.int64) * scale for scale in scales), alpha])
    given = write(tmp_path / "a.png", image.astype(np.uint16))
    called("denoise", given, "--out", tmp_path / "b.png")
    back = read_pixels(tmp_path / "b.png")
    assert back.dtype == np.uint16
    assert np.array_equal(back[..., 3], alpha)
    for channel, scale in enumerate(scales):
        before = error_rms(image[..., channel], clean * scale)
        assert error_rms(back[..., channel], clean * scale) < 0.7 * before


def test_a_folder_goes_on_past_what_cannot_be_read(tmp_path, noisy):
    folder, out = tmp_path / "in", tmp_path / "out"
    write(folder / "a.png", noisy)
    write(folder / "b.tif", noisy)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "c.mrc").write_bytes(b"x")
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    status, said = called("denoise", folder, "--out", out, "--method", "gaussian")
    assert status == 1
    assert sorted(path.name for path in out.iterdir()) == ["a_denoised.png", "b_denoised.tif"]
    assert "c.mrc: MRC is not read here" in said
    assert "broken.png: not an image" in said
    assert "2 of 4 frames" in said
    first = (out / "a_denoised.png").read_bytes()
    status, said = called("denoise", folder, "--out", out)
    assert status == 1
    assert "not written over" in said
    assert (out / "a_denoised.png").read_bytes() == first


@pytest.mark.parametrize("name", ["a.mrc", "a.dm3", "a.DM4", "a.ser", "a.jpg"])
def test_other_formats_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadImage, match=rf"{name}.*read here"):
        called("denoise", tmp_path / name, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zarr_is_refused_whatever_its_name(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "zarr.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadImage, match="frames: Zarr"):
        called("denoise", tmp_path / "frames", "--out", tmp_path / "out")


def test_a_stack_of_pages_is_refused(tmp_path, noisy):
    path = tmp_path / "stack.tif"
    path.write_bytes(cv2.imencodemulti(".tif", [noisy, noisy])[1].tobytes())
    with pytest.raises(BadImage, match=r"stack\.tif: holds 2 pages"):
        called("denoise", path, "--out", tmp_path / "b.tif")


def test_nothing_is_written_over(tmp_path, noisy):
    given = write(tmp_path / "a.png", noisy)
    before = given.read_bytes()
    with pytest.raises(BadImage, match="not written over"):
        called("denoise", given, "--out", tmp_path / "." / "a.png")
    assert given.read_bytes() == before


def test_output_must_fit_the_input(tmp_path, noisy):
    given = write(tmp_path / "a.png", noisy)
    with pytest.raises(BadSettings, match=r"--out is .*b\.jpg"):
        called("denoise", given, "--out", tmp_path / "b.jpg")
    with pytest.raises(BadSettings, match="a folder"):
        called("denoise", tmp_path, "--out", tmp_path / "b.png")
    floats = write(tmp_path / "f.tif", noisy.astype(np.float32))
    with pytest.raises(BadImage, match="float32, which PNG cannot"):
        called("denoise", floats, "--out", tmp_path / "b.png")
    with pytest.raises(BadImage, match=r"none\.png: cannot be read"):
        called("denoise", tmp_path / "none.png", "--out", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_evaluate_restore(tmp_path, clean, noisy):
    folder = tmp_path / "in"
    write(folder / "a_noisy.png", noisy)
    write(folder / "a_clean.png", np.rint(clean).astype(np.uint8))
    out, sheets = tmp_path / "rows.json", tmp_path / "new" / "sheets"
    status, said = called(
        "evaluate", "restore", "--images", folder, "--out", out, "--sheet", sheets
    )
    assert status == 0
    assert "psnr_db_nlm" in said
    assert '"psnr_db"' in json.dumps(json.loads(out.read_text(encoding="utf-8")))
    assert read_pixels(sheets / "restore_001.png").shape[1] > 5 * 130
