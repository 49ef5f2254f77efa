"""Photographs as an instrument: every pixel where the layout says, every bad file by its name."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from drivers.api import Frame
from drivers.errors import BadReply, DriverError, LinkLost
from drivers.replay import ReplayMicroscope, ReplaySettings
from simulator.clock import VirtualTimeLoop

H, W = 60, 96
PIXEL_NM = 2_000.0  # 2 um: a photograph is 192 x 120 um


def photograph(number: int, dtype: type = np.uint8) -> np.ndarray:
    """Noise on a colour of its own, even along its border."""
    random = np.random.default_rng(number)
    picture = random.integers(0, 200, (H, W, 3)).astype(dtype)
    for edge in (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]):
        edge[:] = (10 * number + 5, 100, 240 - 10 * number)
    return picture


def written(folder: Path, count: int, suffix: str = ".png") -> Path:
    for number in range(count):
        cv2.imwrite(str(folder / f"tile_{number}{suffix}"), photograph(number)[..., ::-1])
    return folder


def settings(folder: Path, **others: Any) -> ReplaySettings:
    return ReplaySettings(images=str(folder), pixel_size_nm=PIXEL_NM, **others)


def replay(wanted: ReplaySettings, scene: Callable[[ReplayMicroscope], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with ReplayMicroscope(wanted) as microscope, asyncio.timeout(30):
            return await scene(microscope)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


async def seen(microscope: ReplayMicroscope, x_um: float, y_um: float) -> Frame:
    await microscope.stage.start_move_um(x_um, y_um)
    await microscope.camera.trigger()
    frame = await anext(microscope.camera.frames())
    assert isinstance(frame, Frame)
    return frame


def test_names_are_taken_in_the_order_a_person_counts(tmp_path: Path) -> None:
    written(tmp_path, 12)
    (tmp_path / "notes.txt").write_text("not a photograph")
    layout = ReplayMicroscope(settings(tmp_path, columns=4)).layout
    assert [each.file for each in layout] == [f"tile_{number}.png" for number in range(12)]


def test_the_mosaic_runs_right_and_down_around_the_middle(tmp_path: Path) -> None:
    layout = ReplayMicroscope(settings(written(tmp_path, 6), columns=3, gutter_px=4)).layout
    first, second, below = layout[0], layout[1], layout[3]
    assert first.x_max_um - first.x_min_um == pytest.approx(W * 2)
    assert first.y_max_um - first.y_min_um == pytest.approx(H * 2)
    assert second.x_min_um - first.x_max_um == pytest.approx(8)  # 4 px of 2 um
    assert first.y_min_um - below.y_max_um == pytest.approx(8)
    assert below.x_min_um == first.x_min_um
    assert sum(each.x_min_um + each.x_max_um for each in layout) == pytest.approx(0)
    assert sum(each.y_min_um + each.y_max_um for each in layout) == pytest.approx(0)
    assert first.holds(first.x_min_um + 1, first.y_max_um - 1)
    assert not first.holds(second.x_min_um + 1, first.y_max_um - 1)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 1), (4, 2), (6, 2), (12, 3), (10, 2)])
def test_a_mosaic_has_no_empty_places_where_that_can_be(
    tmp_path: Path, count: int, columns: int
) -> None:
    layout = ReplayMicroscope(settings(written(tmp_path, count))).layout
    assert len({each.x_min_um for each in layout}) == columns


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_each_photograph_comes_back_to_the_bit(tmp_path: Path, suffix: str) -> None:
    written(tmp_path, 4, suffix)

    async def scene(microscope: ReplayMicroscope) -> None:
        assert microscope.camera.shape_px == (H + 6, W + 6)
        for number, placed in enumerate(microscope.layout):
            x_um = (placed.x_min_um + placed.x_max_um) / 2
            y_um = (placed.y_min_um + placed.y_max_um) / 2
            frame = await seen(microscope, x_um, y_um)
            np.testing.assert_array_equal(frame.pixels[3:-3, 3:-3], photograph(number))
            np.testing.assert_array_equal(frame.pixels[0, 0], photograph(number)[0, 0])
            assert frame.optics["photographs"] == placed.file

    replay(settings(tmp_path, gutter_px=6), scene)


def test_the_gutter_is_the_border_s_colour_and_frames_show_their_neighbours(
    tmp_path: Path,
) -> None:
    async def scene(microscope: ReplayMicroscope) -> None:
        left, right = microscope.layout
        frame = await seen(microscope, (left.x_max_um + right.x_min_um) / 2, 0.0)
        middle = frame.pixels.shape[1] // 2
        np.testing.assert_array_equal(frame.pixels[30, middle - 1], photograph(0)[0, 0])
        np.testing.assert_array_equal(frame.pixels[30, middle], photograph(1)[0, 0])
        shown = W - (middle - 5)  # the last columns of the left photograph, then 5 of gutter
        np.testing.assert_array_equal(frame.pixels[5:-5, : middle - 5], photograph(0)[:, shown:])
        assert frame.optics["photographs"] == "tile_0.png, tile_1.png"

    replay(settings(written(tmp_path, 2), columns=2, gutter_px=10), scene)


def test_stage_up_is_image_up(tmp_path: Path) -> None:
    async def scene(microscope: ReplayMicroscope) -> None:
        placed = microscope.layout[0]
        frame = await seen(microscope, placed.x_min_um + 20, placed.y_max_um - 10)
        h, w = frame.pixels.shape[:2]
        # 20 um right of and 10 um below the outer corner: pixel (column 10, row 5) is the middle.
        np.testing.assert_array_equal(
            frame.pixels[h // 2 :, w // 2 :], photograph(0)[5 : 5 + h // 2, 10 : 10 + w // 2]
        )

    replay(settings(written(tmp_path, 1), height_px=20, width_px=30), scene)


@pytest.mark.parametrize(("objective", "factor"), [("10x", 0.5), ("50x", 2.5), ("5x", 0.25)])
def test_other_magnifications_show_the_same_place(
    tmp_path: Path, objective: str, factor: float
) -> None:
    picture = np.full((H, W, 3), 60, np.uint8)
    picture[24:32, 44:60] = 180
    cv2.imwrite(str(tmp_path / "block.png"), picture)

    async def scene(microscope: ReplayMicroscope) -> None:
        await microscope.turret.select(objective)
        frame = await seen(microscope, 0.0, 0.0)
        assert frame.pixel_size_nm == pytest.approx(PIXEL_NM / factor)
        rows, columns = np.nonzero(frame.pixels[..., 1] > 120)
        h, w = frame.pixels.shape[:2]
        column = columns.mean() + 0.5 - w / 2
        row = rows.mean() + 0.5 - h / 2
        assert column == pytest.approx((52 - W / 2) * factor, abs=0.6)
        assert row == pytest.approx((28 - H / 2) * factor, abs=0.6)
        if factor < 1:
            assert len(rows) == pytest.approx(8 * 16 * factor**2, rel=0.15)

    replay(settings(tmp_path), scene)


def test_positions_from_a_table(tmp_path: Path) -> None:
    written(tmp_path, 2)
    table = "file,stage_x_um,stage_y_um\ntile_1.png,1000,500\ntile_0.png,-1000,-500\n"
    (tmp_path / "positions.csv").write_text(table)

    async def scene(microscope: ReplayMicroscope) -> None:
        first = microscope.layout[0]
        assert (first.file, first.x_min_um, first.y_max_um) == ("tile_1.png", 904.0, 560.0)
        frame = await seen(microscope, 1000, 500)
        np.testing.assert_array_equal(frame.pixels[8:-8, 8:-8], photograph(1))
        frame = await seen(microscope, -1000, -500)
        np.testing.assert_array_equal(frame.pixels[8:-8, 8:-8], photograph(0))

    replay(settings(tmp_path, positions_csv="positions.csv"), scene)


def test_a_table_allows_photographs_of_mixed_size(tmp_path: Path) -> None:
    written(tmp_path, 1)
    cv2.imwrite(str(tmp_path / "odd.png"), photograph(7)[:30, :40, ::-1])
    (tmp_path / "p.csv").write_text(
        "file,stage_x_um,stage_y_um\ntile_0.png,0,0\nodd.png,400,0\n", encoding="utf-8-sig"
    )

    async def scene(microscope: ReplayMicroscope) -> None:
        frame = await seen(microscope, 400, 0)
        h, w = frame.pixels.shape[:2]
        inner = frame.pixels[h // 2 - 15 : h // 2 + 15, w // 2 - 20 : w // 2 + 20]
        np.testing.assert_array_equal(inner, photograph(7)[:30, :40])

    replay(settings(tmp_path, positions_csv="p.csv"), scene)


def test_sixteen_bit_photographs(tmp_path: Path) -> None:
    picture = photograph(1, np.uint16) * 16
    cv2.imwrite(str(tmp_path / "deep.tif"), picture[..., ::-1])

    async def scene(microscope: ReplayMicroscope) -> None:
        frame = await seen(microscope, 0, 0)
        assert (frame.bit_depth, microscope.camera.bit_depth) == (12, 12)
        np.testing.assert_array_equal(frame.pixels[8:-8, 8:-8], picture)

    replay(settings(tmp_path, bit_depth=12), scene)
    with pytest.raises(BadReply, match=r"deep\.tif.*bit_depth = 8"):
        ReplayMicroscope(settings(tmp_path, bit_depth=8))


def test_out_of_focus_is_blurred_if_asked_for(tmp_path: Path) -> None:
    async def scene(microscope: ReplayMicroscope) -> list[float]:
        spreads = []
        for z_um in (0.0, 3.0, -3.0, 9.0):
            await microscope.focus.start_move_um(z_um)
            frame = await seen(microscope, 0, 0)
            assert frame.pose.focus_z_um == z_um
            spreads.append(float(frame.pixels[20:-20, 20:-20].std()))
        return spreads

    written(tmp_path, 1)
    sharp, near, other_side, far = replay(settings(tmp_path, blur_um=3.0), scene)
    assert sharp > 2 * near
    assert near == other_side
    assert near > 1.5 * far
    assert len(set(replay(settings(tmp_path), scene))) == 1  # without it focus changes nothing


def test_a_stage_with_a_speed_takes_its_time(tmp_path: Path) -> None:
    async def scene(microscope: ReplayMicroscope) -> None:
        begun_s = asyncio.get_running_loop().time()
        start_um = await microscope.stage.position_um()
        await microscope.stage.start_move_um(start_um[0] + 90, start_um[1])
        await asyncio.sleep(0.45)
        x_um, _ = await microscope.stage.position_um()
        elapsed_s = asyncio.get_running_loop().time() - begun_s
        assert x_um - start_um[0] == pytest.approx(100 * elapsed_s, abs=1)

    replay(settings(written(tmp_path, 1), speed_um_per_s=100.0), scene)


def test_only_the_last_photographs_are_kept(tmp_path: Path) -> None:
    big = np.zeros((600, 600, 3), np.uint8)
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), big)
    microscope = ReplayMicroscope(settings(tmp_path, cache_mib=3))
    chip = microscope._chip
    for index in (0, 1, 2, 3, 0, 3):
        chip._photograph(index)
    assert chip._kept_bytes == sum(pixels.nbytes for pixels in chip._kept.values())
    assert chip._kept_bytes <= 3 * 2**20
    assert (3, 1.0) in chip._kept


def cut_off(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-200])


BAD_FOLDERS: list[tuple[str, Callable[[Path], object], type[DriverError], str]] = [
    ("missing", lambda folder: folder.rmdir(), LinkLost, "no such folder"),
    ("empty", lambda folder: None, LinkLost, "no photograph in it"),
    ("text", lambda folder: (folder / "a.png").write_text("hello"), BadReply, r"a\.png"),
    ("no bytes", lambda folder: (folder / "a.jpg").touch(), BadReply, r"a\.jpg"),
    (
        "cut png",
        lambda folder: cut_off(written(folder, 3), "tile_1.png"),
        BadReply,
        r"tile_1\.png.*cut off",
    ),
    (
        "cut jpg",
        lambda folder: cut_off(written(folder, 3, ".jpg"), "tile_2.jpg"),
        BadReply,
        r"tile_2\.jpg.*cut off",
    ),
    (
        "mixed sizes",
        lambda folder: cv2.imwrite(
            str(written(folder, 2) / "x.png"), np.zeros((8, 9, 3), np.uint8)
        ),
        BadReply,
        r"tile_0\.png is 96 x 60 px and .*x\.png is 9 x 8 px",
    ),
    (
        "numbers with a point",
        lambda folder: cv2.imwrite(str(folder / "f.tif"), np.full((H, W, 3), np.nan, np.float32)),
        BadReply,
        r"f\.tif.*float32.*8 or 16 bit",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [each[1:] for each in BAD_FOLDERS],
    ids=[each[0] for each in BAD_FOLDERS],
)
def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], error: type[DriverError], message: str
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(error, match=message):
        ReplayMicroscope(settings(folder))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,x,y\ntile_0.png,0,0\n", "first line"),
        ("file,stage_x_um,stage_y_um\ntile_0.png,0,nan\n", "line 2"),
        ("file,stage_x_um,stage_y_um\ntile_0.png,0,0\ntile_0.png,12\n", "line 3"),
        ("file,stage_x_um,stage_y_um\ngone.png,0,0\n", r"gone\.png"),
        ("file,stage_x_um,stage_y_um\n", "no photograph"),
        (None, r"positions\.csv"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(
    tmp_path: Path, table: str | None, message: str
) -> None:
    written(tmp_path, 1)
    if table is not None:
        (tmp_path / "positions.csv").write_text(table)
    with pytest.raises(DriverError, match=message):
        ReplayMicroscope(settings(tmp_path, positions_csv="positions.csv"))


def test_a_photograph_damaged_inside_ends_the_frames_with_its_name(tmp_path: Path) -> None:
    written(tmp_path, 2)
    path = tmp_path / "tile_1.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)  # header and end are in order
    path.write_bytes(bytes(data))

    async def scene(microscope: ReplayMicroscope) -> None:
        placed = microscope.layout[1]
        with pytest.raises(BadReply, match=r"tile_1\.png"):
            await seen(microscope, placed.x_min_um + 96, placed.y_min_um + 60)

    replay(settings(tmp_path), scene)


def test_mixed_depths_are_named_when_they_come_into_view(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph(0))
    cv2.imwrite(str(tmp_path / "b.png"), photograph(1, np.uint16))

    async def scene(microscope: ReplayMicroscope) -> None:
        placed = microscope.layout[1]
        with pytest.raises(BadReply, match=r"b\.png holds uint16 .*a\.png uint8"):
            await seen(microscope, placed.x_min_um + 96, placed.y_min_um + 60)

    replay(settings(tmp_path), scene)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixel_size_nm": 0},
        {"pixel_size_nm": float("nan")},
        {"objective": "63x"},
        {"pictures": "elsewhere"},
        {"speed_um_per_s": -1},
        {"blur_um": 0},
        {"cache_mib": 0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReplaySettings.model_validate({"images": "x", "pixel_size_nm": 384.0, **wrong})


def test_ten_real_photographs(shared_data: Path) -> None:
    folder = shared_data / "flakes" / "graphene_masked" / "images"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}")
    wanted = ReplaySettings(images=str(folder), pixel_size_nm=384.0)

    async def scene(microscope: ReplayMicroscope) -> None:
        layout = microscope.layout
        assert len(layout) == 10
        assert microscope.camera.shape_px == (1216, 1936)
        for placed in (layout[0], layout[7]):
            x_um = (placed.x_min_um + placed.x_max_um) / 2
            y_um = (placed.y_min_um + placed.y_max_um) / 2
            frame = await seen(microscope, x_um, y_um)
            stored = cv2.imread(str(folder / placed.file))
            assert stored is not None
            np.testing.assert_array_equal(frame.pixels[8:-8, 8:-8], stored[..., ::-1])

    replay(wanted, scene)
