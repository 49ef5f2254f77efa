"""`scopeloop denoise` and `evaluate restore`: what is written, what it says, what is refused."""

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from controller import app, cli
from controller.errors import BadSettings
from controller.image_files.reading import open_images
from inference.api import BadImage, NoEngine
from inference.restore.api import Restored

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


@pytest.fixture(autouse=True)
def no_weights(request, monkeypatch):
    """The filters alone, whatever was trained; a test that wants networks says so."""
    if "with_networks" not in request.fixturenames:
        monkeypatch.setattr("controller.app.models", tuple)


@pytest.fixture
def with_networks():
    if not any(model.stem.startswith("denoise_live") for model in app.models()):
        pytest.skip("no weights of the live network; scopeloop train restore makes them")


@pytest.fixture(scope="module")
def clean():
    y, x = np.mgrid[:96, :130].astype(np.float32)
    return 100.0 + 60.0 * np.sin(x / 17.0) * np.cos(y / 13.0)


@pytest.fixture(scope="module")
def noisy(clean):
    return np.clip(np.rint(np.random.default_rng(1).normal(clean, 12.0)), 0, 255).astype(np.uint8)


def read_pixels(path):
    images = open_images(path)
    assert images.frames == 1
    return images.frame(0)


def mrc(pixels):
    words = np.zeros(256, "<i4")
    words[:4] = pixels.shape[2], pixels.shape[1], len(pixels), 6
    head = bytearray(words.tobytes())
    head[208:216] = b"MAP \x44\x44\0\0"
    return bytes(head) + pixels.astype("<u2").tobytes()


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
    assert "c.mrc: ends early" in said
    assert "broken.png: not an image" in said
    assert "2 of 4 files" in said
    first = (out / "a_denoised.png").read_bytes()
    status, said = called("denoise", folder, "--out", out)
    assert status == 1
    assert "not written over" in said
    assert (out / "a_denoised.png").read_bytes() == first


@pytest.mark.parametrize("name", ["a.emd", "a.jpg", "a.txt"])
def test_other_formats_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadImage, match=rf"{name}: "):
        called("denoise", tmp_path / name, "--out", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("suffix", ["tif", "zarr"])
def test_a_stack_frame_by_frame(tmp_path, clean, suffix):
    rng = np.random.default_rng(3)
    frames = np.stack([rng.poisson(clean * scale) for scale in (1.0, 2.0, 3.0)])
    (tmp_path / "stack.mrc").write_bytes(mrc(frames))
    out = tmp_path / f"b.{suffix}"
    status, said = called("denoise", tmp_path / "stack.mrc", "--out", out, "--method", "gaussian")
    images = open_images(out)
    assert status == 0
    assert "3 frames gaussian" in said
    assert images.frames == 3
    for number, scale in enumerate((1.0, 2.0, 3.0)):
        error = error_rms(images.frame(number), clean * scale)
        assert error < 0.7 * error_rms(frames[number], clean * scale)


def test_a_still_scene_is_averaged(tmp_path):
    rng = np.random.default_rng(3)
    grain = cv2.GaussianBlur(rng.standard_normal((128, 128)), (0, 0), 2.0)
    clean = (40.0 + 15.0 * grain / grain.std()).clip(4.0)
    frames = np.stack([rng.poisson(clean) for _ in range(12)])
    (tmp_path / "movie.mrc").write_bytes(mrc(frames))
    errors = []
    for word in ("--recursive", "--method=radial-wiener"):
        out = tmp_path / f"{word[2:5]}.tif"
        words = ["denoise", tmp_path / "movie.mrc", "--out", out, "--method", "radial-wiener"]
        status, said = called(*words, word)
        assert status == 0
        assert ("effective frames" in said) == (word == "--recursive")
        errors.append(error_rms(open_images(out).frame(11), clean))
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.usefixtures("with_networks")
@pytest.mark.parametrize("method", ["auto", "live"])
def test_the_network_where_its_weights_are(tmp_path, clean, noisy, method):
    given = write(tmp_path / "a.png", noisy)
    status, said = called("denoise", given, "--out", tmp_path / "b.png", "--method", method)
    assert status == 0
    assert "network_live" in said
    assert error_rms(read_pixels(tmp_path / "b.png"), clean) < 0.3 * error_rms(noisy, clean)


class Twice:
    """A view of twice the size."""

    name, scale = "magnify", 2

    def view(self, frame, noise=None):
        image = np.asarray(frame, np.float32).repeat(2, 0).repeat(2, 1)
        return Restored(image, None, True, self.name, "")


def test_a_computed_view(tmp_path, noisy, monkeypatch):
    monkeypatch.setattr("controller.app.computed_view", lambda name, say=None: Twice())
    image = np.dstack([noisy, noisy // 2, noisy // 3, noisy // 4])
    given = write(tmp_path / "a.png", image)
    status, said = called("denoise", given, "--out", tmp_path / "b.png", "--method", "magnify")
    assert status == 0
    assert "magnify" in said
    back = read_pixels(tmp_path / "b.png")
    assert np.array_equal(back, image.repeat(2, 0).repeat(2, 1))
    assert LABEL + b" (magnify); not a raw frame" in (tmp_path / "b.png").read_bytes()
    with pytest.raises(BadSettings, match="--recursive is magnify"):
        called("denoise", given, "--out", tmp_path / "c.png", "--method", "magnify", "--recursive")


@pytest.mark.parametrize("method", ["refocus", "magnify"])
def test_a_view_without_weights_is_refused(tmp_path, noisy, method):
    given = write(tmp_path / "a.png", noisy)
    with pytest.raises(NoEngine, match=method):
        called("denoise", given, "--out", tmp_path / "b.png", "--method", method)
    assert not (tmp_path / "b.png").exists()


def test_a_network_that_is_not_here_is_said(tmp_path, noisy):
    given = write(tmp_path / "a.png", noisy)
    with pytest.raises(NoEngine, match="scopeloop train restore"):
        called("denoise", given, "--out", tmp_path / "b.png", "--method", "quality")
    status, said = called("denoise", given, "--out", tmp_path / "b.png")
    assert status == 0
    assert "wiener" in said


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
