"""What a session leaves: figures, movies, the strip and the page."""

import json
import math
import re

import cv2
import numpy as np
import pytest
import zarr

from controller.commands.watch import figures_of
from controller.record.rundir import BadRecord, DiskFull
from controller.restoring.log import Curve, Point, Thinned, WatchLog, dose_e_per_a2
from controller.restoring.movie import MovieWriter
from controller.restoring.page import page
from controller.restoring.strip import TILE_PX, coarse, fitted, length_words, png, strip, tile

# --- figures ----------------------------------------------------------------------------------


def test_memory_is_bounded_and_evenly_spread(make_view):
    kept = Thinned(8)
    for number in range(1_000):
        kept.add(make_view(number))
    numbers = [view.frame.number for view in kept.all]
    assert len(numbers) <= 9
    assert (numbers[0], numbers[-1]) == (0, 999)
    assert max(np.diff(numbers)) <= 256
    assert [view.frame.number for view in kept.spread(3)][::2] == [0, 999]


def test_a_curve_is_bounded():
    curve = Curve(64)
    for number in range(10_000):
        curve.add(Point(float(number), 0.1, 0.1, 1.0, False))
    assert 32 <= len(curve.points) <= 64
    assert curve.points[0].at_s == 0.0
    assert curve.points[-1].at_s > 9_500


def test_a_session_in_figures(make_view, make_frame):
    log = WatchLog(began_s=0.0)
    for number in range(20):
        log.exposed_frames += 1
        log.recorded(make_frame(number))
        reason = f"network_live: 0.{number} of it invented" if number % 5 == 0 else ""
        log.viewed(make_view(number, reason=reason, fallback=bool(reason)))
    log.viewed(make_view(20, method="", reason="halving: BadImage: 13"))
    log.ended_s = 2.0
    said = dict(figures_of(log))
    assert said["exposed"] == "20 frames in 2.00 s, 10.0 a second"
    assert said["restored"].startswith("20 (10.0 a second); 21 skipped")
    assert said["fall-backs"].startswith("4;")
    assert said["latency"].startswith("20.0 ms")
    assert said["effective frames"].startswith("3.0")
    assert said["dose"] == "0.004 electrons/A^2 a frame, 0.08 in all"
    assert log.reasons == {"network_live: # of it invented": 4, "halving: BadImage: #": 1}


def test_an_empty_session_in_figures():
    log = WatchLog()
    assert math.isnan(log.rate_hz(3))
    assert math.isnan(log.latency_ms(50))
    assert math.isnan(log.effective_frames())
    assert "made by" not in dict(figures_of(log))
    assert "dose" not in dict(figures_of(log))


def test_reasons_are_bounded(make_view):
    log = WatchLog(began_s=0.0)
    for number in range(100):
        log.viewed(make_view(number, reason="x" * (number + 1)))
    assert len(log.reasons) == 33
    assert log.reasons["other reasons"] == 68


def test_dose(make_frame):
    frame = make_frame()
    assert dose_e_per_a2(frame) == pytest.approx(10.0 / 2_500.0)
    frame.optics["electrons_per_px"] = "many"
    assert dose_e_per_a2(frame) is None
    del frame.optics["electrons_per_px"]
    assert dose_e_per_a2(frame) is None


# --- movies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 3)])
def test_a_movie(tmp_path, make_frame, make_view, shape):
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 255, shape).astype(np.uint8) for _ in range(40)]
    with MovieWriter(tmp_path, "raw") as raw, MovieWriter(tmp_path, "computed") as computed:
        for number, pixels in enumerate(frames):
            raw.append(make_frame(number, pixels))
            computed.append_view(make_view(number, pixels=pixels, method="a" if number % 2 else ""))
    array = zarr.open_array(tmp_path / "raw.ome.zarr" / "0", mode="r")
    wanted = np.stack(frames).reshape(40, 24, 32, -1).transpose(0, 3, 1, 2)
    assert np.array_equal(array[...], wanted)
    half = zarr.open_array(tmp_path / "computed.ome.zarr" / "0", mode="r")
    assert np.array_equal(half[...], wanted[1::2] // 2)
    assert zarr.open_group(tmp_path / "computed.ome.zarr").attrs["scopeloop"]["label"]
    lines = (tmp_path / "computed.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["computed_from"] for line in lines] == list(range(1, 40, 2))
    lines = (tmp_path / "raw.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(40))


def test_a_line_acknowledges_a_frame_that_is_there(tmp_path, make_frame):
    """What a kill leaves: every frame with a line can be read, though nothing was closed."""
    raw = MovieWriter(tmp_path, "raw")
    for number in range(3):
        raw.append(make_frame(number, np.full((24, 32), number + 1, np.uint8)))
    array = zarr.open_array(tmp_path / "raw.ome.zarr" / "0", mode="r")
    lines = (tmp_path / "raw.jsonl").read_text(encoding="utf-8").splitlines()
    assert [int(array[json.loads(line)["index"], 0, 0, 0]) for line in lines] == [1, 2, 3]
    raw.close()
    assert zarr.open_array(tmp_path / "raw.ome.zarr" / "0", mode="r").shape[0] == 3


def test_movies_refuse(tmp_path, make_frame):
    with MovieWriter(tmp_path, "raw") as raw:
        raw.append(make_frame(0))
        with pytest.raises(BadRecord, match=r"frame 7 is uint8 \(1, 10, 32\)"):
            raw.append(make_frame(7, np.zeros((10, 32), np.uint8)))
        assert raw.frames == 1
    (tmp_path / "b").mkdir()
    with pytest.raises(DiskFull), MovieWriter(tmp_path / "b", "raw", 1e9) as raw:
        raw.append(make_frame(0))


# --- pictures ---------------------------------------------------------------------------------


def test_the_strip(make_view):
    views = [
        make_view(0, pixels=np.random.default_rng(1).integers(0, 255, (400, 500)).astype(np.uint8)),
        make_view(1, fallback=True, reason="why"),
        make_view(2, method="", reason="nothing worked"),
        make_view(3, pixels=np.zeros((40, 30, 3), np.uint16)),
    ]
    sheet = strip(views, 0.0)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] >= 4 * TILE_PX
    assert sheet.shape[0] >= 2 * TILE_PX


def test_a_picture_without_colour_is_a_small_file():
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 1)).astype(np.uint8).repeat(3, 2)
    grey = png(noise)
    back = cv2.imdecode(np.frombuffer(grey, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(back, noise[..., 0])
    assert len(png(coarse(noise, 32))) < 0.75 * len(grey)
    noise[0, 0] = 10, 20, 30
    back = cv2.imdecode(np.frombuffer(png(noise), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(back, noise[..., ::-1])


def test_words_stay_in_their_tile():
    long = "computed: " + "a_very_long_name " * 8
    said = fitted(long, 0.5, TILE_PX)
    assert said.endswith("...")
    assert cv2.getTextSize(said, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] <= TILE_PX
    assert fitted("größe", 0.5, TILE_PX) == "gr??e"


@pytest.mark.parametrize(("pixel_nm", "words"), [(0.02, "1 nm"), (5.0, "200 nm"), (400.0, "20 um")])
def test_the_scale_bar_is_as_long_as_it_says(pixel_nm, words):
    image = tile(np.full((600, 600), 90, np.uint8), pixel_nm)
    row = image[-12, 12:, 0]
    bar_px = int(np.argmin(row == 255))
    number, unit = words.split()
    length_nm = float(number) * {"nm": 1.0, "um": 1e3}[unit]
    assert bar_px * pixel_nm == pytest.approx(length_nm, rel=0.02)
    assert length_words(length_nm) == words


def test_the_bar_follows_the_magnification():
    """Small frames are shown larger, by a whole number, and so is the bar."""
    small = tile(np.full((96, 96), 90, np.uint8), 3.0)
    bar_px = int(np.argmin(small[-12, 12:, 0] == 255))
    assert bar_px * 1.5 == pytest.approx(100.0, abs=1.0)


def test_a_tile_shows_the_middle_pixel_by_pixel():
    pixels = np.random.default_rng(1).integers(0, 4_000, (400, 500)).astype(np.uint16)
    shown = tile(pixels, 1.0)[: TILE_PX // 2, :, 0].astype(float)
    top, left = (400 - TILE_PX) // 2, (500 - TILE_PX) // 2
    crop = pixels[top : top + TILE_PX // 2, left : left + TILE_PX]
    inside = (shown > 0) & (shown < 255)
    assert np.corrcoef(shown[inside], crop[inside])[0, 1] > 0.999


def test_the_page_is_whole_by_itself(make_view):
    log = WatchLog(began_s=0.0, ended_s=3.0)
    for number in range(6):
        log.viewed(make_view(number, reason="<b>why</b>" if number == 3 else "", fallback=True))
    log.viewed(make_view(6, method="", reason="nothing"))
    text = page("A <session>", "lead & more", log, figures_of(log), {"raw.ome.zarr": "frames"})
    assert "{{" not in text
    assert "A &lt;session&gt;" in text
    assert "&lt;b&gt;why&lt;/b&gt;" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("computed") >= 6
    assert "default-src 'none'" in text


def test_a_page_of_nothing():
    text = page("t", "l", WatchLog(), figures_of(WatchLog()), {})
    assert "No frame was viewed" in text
