"""Before and after, as one picture: a column a moment, the raw frame above what was computed.

One pixel of the frame is one of the picture, or a whole number of them: shrinking hides noise, and
smooth enlarging invents. Raw and computed have each their own scale of grey, because at low dose
the noise is far wider than the picture in it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from controller.restoring.stage import LiveView
from controller.search.report.figures import nice_length

Rgb = npt.NDArray[np.uint8]  # (h, w, 3)

TILE_PX: Final = 272
_CAPTION_PX: Final = 42
_GAP_PX: Final = 6
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
_INK: Final = (236, 236, 236)
_SOFT: Final = (158, 158, 158)
_WARN: Final = (246, 196, 84)
_GROUND: Final = 22
_FALSE_GREY: Final = (0.5, 99.5)  # percentiles that become black and white
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Levels of grey: noise fills a file, and nobody sees more of them in it.
_RAW_LEVELS: Final = 32
_COMPUTED_LEVELS: Final = 64


def strip(views: Sequence[LiveView], began_s: float) -> Rgb:
    """(h, w, 3) RGB; at least one view. began_s: the session's, on the frames' clock."""
    pitch_x, pitch_y = TILE_PX + _GAP_PX, _CAPTION_PX + TILE_PX + _GAP_PX
    shape = (2 * pitch_y + _GAP_PX, len(views) * pitch_x + _GAP_PX, 3)
    sheet = np.full(shape, _GROUND, dtype=np.uint8)
    for at, view in enumerate(views):
        left = _GAP_PX + at * pitch_x
        at_s = view.frame.exposed_until_s - began_s
        head = f"frame {view.frame.number}, {at_s:.2f} s"
        raw = coarse(tile(view.frame.pixels, view.frame.pixel_size_nm), _RAW_LEVELS)
        _put(sheet, left, _GAP_PX, ("raw", head), raw, _INK)
        restored, words = view.restored, described(view)
        if restored is None:
            empty = np.full((TILE_PX, TILE_PX, 3), _GROUND + 10, dtype=np.uint8)
            _put(sheet, left, _GAP_PX + pitch_y, ("nothing computed", words), empty, _WARN)
            continue
        computed = coarse(tile(restored.image, view.frame.pixel_size_nm), _COMPUTED_LEVELS)
        colour = _WARN if restored.is_fallback else _INK
        head = f"computed: {restored.method}"
        _put(sheet, left, _GAP_PX + pitch_y, (head, words), computed, colour)
    return sheet


def png(picture: Rgb) -> bytes:
    """As a PNG, in grey where there is no colour; unfiltered, as filters spread noise wider.

    Source: PNG specification, 3rd ed., sections 5.2 and 9.
    """
    has_colour = bool((picture != picture[..., :1]).any())
    shown = picture if has_colour else picture[..., :1]
    h_px, w_px = shown.shape[:2]
    rows = np.zeros((h_px, 1 + shown[0].size), dtype=np.uint8)  # each begins with its filter, none
    rows[:, 1:] = shown.reshape(h_px, -1)
    head = struct.pack(">IIBBBBB", w_px, h_px, 8, 2 if has_colour else 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def coarse(picture: Rgb, levels: int) -> Rgb:
    """In so many levels a colour, black and white among them."""
    step = 255.0 / (levels - 1)
    table = np.rint(np.rint(np.arange(256) / step) * step).astype(np.uint8)
    return np.asarray(table[picture], dtype=np.uint8)


def described(view: LiveView) -> str:
    """What is to be known of a computed image, in few words."""
    restored = view.restored
    if restored is None:
        return view.unable or "raw frames were asked for"
    frames = f"{restored.effective_frames:.1f} effective frames"
    return f"FALLBACK; {frames}" if restored.is_fallback else frames


def tile(pixels: npt.NDArray[Any], pixel_size_nm: float, side_px: int = TILE_PX) -> Rgb:
    """The middle of a frame, (side, side, 3) 8 bit with a scale bar, at a whole magnification."""
    h_px, w_px = pixels.shape[:2]
    times = max(1, side_px // max(1, min(h_px, w_px)))
    crop_h, crop_w = min(h_px, math.ceil(side_px / times)), min(w_px, math.ceil(side_px / times))
    top, left = (h_px - crop_h) // 2, (w_px - crop_w) // 2
    crop = pixels[top : top + crop_h, left : left + crop_w].astype(np.float32)
    if crop.ndim == 2:
        low, high = np.percentile(crop, _FALSE_GREY)
        crop = np.repeat(((crop - low) * (255.0 / max(float(high - low), 1e-6)))[..., None], 3, 2)
    elif pixels.dtype != np.uint8:
        crop *= np.float32(255.0 / np.iinfo(pixels.dtype).max)
    shown = np.clip(crop, 0.0, 255.0).astype(np.uint8).repeat(times, 0).repeat(times, 1)
    shown = shown[:side_px, :side_px]
    full = np.full((side_px, side_px, 3), _GROUND, dtype=np.uint8)
    y, x = (side_px - shown.shape[0]) // 2, (side_px - shown.shape[1]) // 2
    full[y : y + shown.shape[0], x : x + shown.shape[1]] = shown
    _scale_bar(full, pixel_size_nm / times)
    return full


def length_words(length_nm: float) -> str:
    """A length with the unit that keeps its number small."""
    if length_nm >= 1e6:
        return f"{length_nm * 1e-6:g} mm"
    if length_nm >= 1e3:
        return f"{length_nm * 1e-3:g} um"
    return f"{length_nm:g} nm"


def _scale_bar(image: Rgb, nm_per_px: float) -> None:
    """A bar of a round length, at most a third of the width, on a dark ground of its own."""
    side_px = image.shape[1]
    length_nm = nice_length(nm_per_px * side_px / 3.0)
    bar_px = max(2, round(length_nm / nm_per_px))
    words = length_words(length_nm)
    (text_w, text_h), _ = cv2.getTextSize(words, _FONT, 0.45, 1)
    box_w, box_h = max(bar_px, text_w) + 12, text_h + 20
    bottom = image.shape[0] - 6
    ground = image[bottom - box_h : bottom, 6 : 6 + box_w]
    ground[...] = (ground * 0.25).astype(np.uint8)
    cv2.putText(image, words, (12, bottom - 13), _FONT, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    cv2.rectangle(image, (12, bottom - 8), (11 + bar_px, bottom - 5), (255, 255, 255), -1)


def _put(
    sheet: Rgb,
    left: int,
    top: int,
    words: tuple[str, str],
    shown: Rgb,
    colour: tuple[int, int, int],
) -> None:
    sheet[top + _CAPTION_PX : top + _CAPTION_PX + TILE_PX, left : left + TILE_PX] = shown
    for line, (text, size, ink) in enumerate(((words[0], 0.5, colour), (words[1], 0.42, _SOFT))):
        said = fitted(text, size, TILE_PX - 4)
        at = (left + 2, top + 15 + 19 * line)
        cv2.putText(sheet, said, at, _FONT, size, ink, 1, cv2.LINE_AA)


def fitted(words: str, size: float, width_px: int) -> str:
    """Words cut to a width, in letters that OpenCV's fonts have."""
    said = words.encode("ascii", "replace").decode()
    if cv2.getTextSize(said, _FONT, size, 1)[0][0] <= width_px:
        return said
    while said and cv2.getTextSize(said + "...", _FONT, size, 1)[0][0] > width_px:
        said = said[:-1]
    return said + "..."
