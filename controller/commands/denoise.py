"""`scopeloop denoise`: computed frames without their noise, written beside the frames themselves.

PNG and TIFF, of any number of channels, in the frame's own number type. A computed file says that
it is one, in the Description of a PNG and the ImageDescription of a TIFF; no file that exists is
ever written over. Other tags (pixel size, orientation) are not carried over.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape

from controller.commands.screen import bar
from controller.errors import BadSettings
from controller.record import rundir
from inference.api import BadImage
from inference.restore.api import Restorer
from inference.restore.channels import restore_image
from inference.restore.classical import Gaussian, LocalWiener, NonLocalMeans, RadialWiener
from inference.restore.guard import BestClassical

Method: TypeAlias = Literal["auto", "radial-wiener", "local-wiener", "nlm", "gaussian"]

SUFFIXES: Final = (".png", ".tif", ".tiff")

_RESTORERS: Final[dict[Method, Callable[[], Restorer]]] = {
    "auto": BestClassical,
    "radial-wiener": RadialWiener,
    "local-wiener": LocalWiener,
    "nlm": NonLocalMeans,
    "gaussian": Gaussian,
}
_OTHER_FORMATS: Final = {
    ".mrc": "MRC",
    ".mrcs": "MRC",
    ".dm3": "DM3",
    ".dm4": "DM4",
    ".ser": "SER",
    ".emi": "SER",
    ".zarr": "Zarr",
}
_ZARR_MARKS: Final = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_PNG_HEAD_BYTES: Final = 33  # signature and IHDR
_TIFF_DESCRIPTION: Final = 270
_TIFF_ASCII: Final = 2


def denoise(given: Path, out: Path, method: Method, console: Console) -> int:
    """Restore a file, or all of a folder; the exit status is 1 where some could not be done."""
    restorer = _RESTORERS[method]()
    if not given.is_dir() or _format_of(given):
        _refuse_others(given)
        if out.suffix.lower() not in SUFFIXES:
            raise BadSettings("", "--out", out, f"a file with one of {', '.join(SUFFIXES)}")
        with bar(console, "denoise") as progress:
            progress(0, 1, given.name)
            _tell(console, out, *_denoise_file(given, out, restorer))
        return 0
    return _denoise_folder(given, out, restorer, console)


def _denoise_folder(given: Path, out: Path, restorer: Restorer, console: Console) -> int:
    """A file that cannot be done is named, and the others go on."""
    if out.suffix.lower() in SUFFIXES or out.is_file():
        raise BadSettings("", "--out", out, f"a folder, as {given} is one")
    paths = sorted(
        path for path in given.iterdir() if path.suffix.lower() in SUFFIXES or _format_of(path)
    )
    if not paths:
        raise BadImage(f"{given}: no frame with one of {', '.join(SUFFIXES)}")
    refused = 0
    with bar(console, "denoise") as progress:
        for done, path in enumerate(paths):
            progress(done, len(paths), path.name)
            written = out / f"{path.stem}_denoised{path.suffix}"
            try:
                _tell(console, written, *_denoise_file(path, written, restorer))
            except BadImage as error:
                console.print(f"[red]not done[/] {escape(str(error))}", soft_wrap=True)
                refused += 1
    console.print(f"{len(paths) - refused} of {len(paths)} frames denoised")
    return 1 if refused else 0


def _denoise_file(path: Path, out: Path, restorer: Restorer) -> tuple[str, str]:
    """Restore one file; returns the filters that made it and what is to be known of it."""
    if out.exists():
        raise BadImage(f"{path}: {out} exists and is not written over; name another --out")
    pixels = read_pixels(path)
    has_alpha = pixels.ndim == 3 and pixels.shape[2] == 4
    colours = pixels[..., :3] if has_alpha else pixels
    try:
        restored = restore_image(colours, restorer)
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error
    image = restored.pixels
    if has_alpha:
        image = np.concatenate([image, pixels[..., 3:]], axis=-1)
    methods = ", ".join(dict.fromkeys(one.method for one in restored.channels))
    words = f"computed by scopeloop denoise ({methods}); not a raw frame"
    data = _encoded(image, path, out.suffix.lower(), words)
    with rundir.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("xb") as file:
            file.write(data)
    return methods, restored.reason


def _tell(console: Console, out: Path, methods: str, reason: str) -> None:
    doubt = f" [yellow]{escape(reason)}[/]" if reason else ""
    console.print(f"[bold]{escape(str(out))}[/] {methods}{doubt}", soft_wrap=True)


# --- files -----------------------------------------------------------------------------------


def read_pixels(path: Path) -> npt.NDArray[Any]:
    """Read a PNG or a TIFF of one page as it is; colours come in OpenCV's order.

    Raises BadImage, naming the file.
    """
    _refuse_others(path)
    try:
        # Not cv2.imread: it cannot open paths with letters beyond ASCII on Windows.
        data = np.fromfile(path, dtype=np.uint8)
        pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1] if data.size else ()
    except (OSError, cv2.error) as error:
        raise BadImage(f"{path}: cannot be read: {error}") from error
    if not pages:
        raise BadImage(f"{path}: not an image that can be decoded")
    if len(pages) > 1:
        raise BadImage(f"{path}: holds {len(pages)} pages; only single frames are read here")
    return np.asarray(pages[0])


def _refuse_others(path: Path) -> None:
    if named := _format_of(path):
        raise BadImage(f"{path}: {named} is not read here; export it as TIFF of 16 bits or floats")
    if path.suffix.lower() not in SUFFIXES:
        raise BadImage(f"{path}: only {', '.join(SUFFIXES)} are read here")


def _format_of(path: Path) -> str:
    """Name of a microscope's format that is known but not read; "" for all others."""
    if path.is_dir() and any((path / mark).exists() for mark in _ZARR_MARKS):
        return "Zarr"
    return _OTHER_FORMATS.get(path.suffix.lower(), "")


def _encoded(image: npt.NDArray[Any], path: Path, suffix: str, words: str) -> bytes:
    if suffix == ".png" and image.dtype not in (np.uint8, np.uint16):
        raise BadImage(f"{path}: holds {image.dtype}, which PNG cannot; name a .tif as --out")
    try:
        is_done, encoded = cv2.imencode(suffix, image)
    except cv2.error as error:
        raise BadImage(f"{path}: cannot be written as {suffix}: {error}") from error
    if not is_done:
        raise BadImage(f"{path}: cannot be written as {suffix}")
    label = words.encode("ascii", "replace")
    return (png_labelled if suffix == ".png" else tiff_labelled)(encoded.tobytes(), label)


def png_labelled(data: bytes, label: bytes) -> bytes:
    """The same PNG with a text chunk "Description" behind its header."""
    body = b"tEXt" + b"Description\0" + label
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:_PNG_HEAD_BYTES] + chunk + data[_PNG_HEAD_BYTES:]


def tiff_labelled(data: bytes, label: bytes) -> bytes:
    """The same TIFF, of one page and little-endian, with its directory anew and a description."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [data[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(count)]
    text = label + b"\0" * (2 - len(label) % 2)  # ends in 0; the directory begins on an even byte
    body = data + b"\0" * (len(data) % 2)
    entries = [entry for entry in entries if _tag_of(entry) != _TIFF_DESCRIPTION]
    entries.append(struct.pack("<HHII", _TIFF_DESCRIPTION, _TIFF_ASCII, len(text), len(body)))
    entries.sort(key=_tag_of)
    directory = struct.pack("<H", len(entries)) + b"".join(entries)
    head = body[:4] + struct.pack("<I", len(body) + len(text))
    return head + body[8:] + text + directory + struct.pack("<I", 0)


def _tag_of(entry: bytes) -> int:
    return int.from_bytes(entry[:2], "little")
