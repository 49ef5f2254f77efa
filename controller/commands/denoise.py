"""`scopeloop denoise`: computed frames without their noise, written beside the frames themselves.

PNG, TIFF, Zarr, MRC, DM3, DM4 and SER, of any number of frames; written as PNG, TIFF or Zarr, in
the frame's own number type where restorers have it. A computed file says that it is one, in its
metadata; no file that exists is ever written over. Of other tags only the pixel size is carried
over. The views `refocus` and `magnify` are computed by networks that show what was in no frame.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from rich.console import Console
from rich.markup import escape

from controller import app
from controller.commands.screen import Told, bar
from controller.errors import BadSettings
from controller.image_files.api import ImageFile, Pixels
from controller.image_files.reading import SUFFIXES, is_frame_file, open_images
from controller.image_files.writing import SUFFIXES as OUT_SUFFIXES
from controller.image_files.writing import open_writer
from controller.image_files.zarr_images import is_zarr
from controller.restoring import choice
from controller.restoring.frames import FrameRestorer, RestoredFrame, RestorerChoice
from inference.api import BadImage

Method: TypeAlias = Literal[
    "auto",
    "live",
    "quality",
    "two-step-wiener",
    "radial-wiener",
    "local-wiener",
    "nlm",
    "gaussian",
    "refocus",
    "magnify",
]

_NAMED: Final[dict[Method, choice.Method]] = {
    "auto": "auto",
    "live": "live",
    "quality": "quality",
    "two-step-wiener": "two_step_wiener",
    "radial-wiener": "radial_wiener",
    "local-wiener": "local_wiener",
    "nlm": "nlm",
    "gaussian": "gaussian",
}
_KEPT_SUFFIXES: Final = frozenset({".png", ".tif", ".tiff"})  # others' results become TIFF
_STACKED: Final = ".tif"
_MOST_REASONS: Final = 3  # printed of one file


def denoise(
    given: Path, out: Path, method: Method, console: Console, *, recursive: bool = False
) -> int:
    """Restore a file, or all of a folder; the exit status is 1 where some could not be done.

    recursive: the frames of a file, or the files of a folder by name, are one scene.
    """

    def say(words: str) -> None:
        console.print(f"[yellow]{escape(words)}[/]")

    if method in ("refocus", "magnify"):
        if recursive:
            raise BadSettings("", "--recursive", method, "a method that takes noise off")
        chosen = app.view_named(method, say)
    else:
        chosen = app.restorer_named(_NAMED[method], recursive=recursive, say=say)
    if not given.is_dir() or is_zarr(given):
        if out.suffix.lower() not in OUT_SUFFIXES:
            raise BadSettings("", "--out", out, f"a file with one of {', '.join(OUT_SUFFIXES)}")
        with bar(console, "denoise") as progress:
            _tell(console, out, _denoise_file(given, out, FrameRestorer(chosen), progress))
        return 0
    return _denoise_folder(given, out, chosen, console, recursive=recursive)


def _denoise_folder(
    given: Path, out: Path, chosen: RestorerChoice, console: Console, *, recursive: bool
) -> int:
    """A file that cannot be done is named, and the others go on."""
    if out.suffix.lower() in OUT_SUFFIXES or out.is_file():
        raise BadSettings("", "--out", out, f"a folder, as {given} is one")
    paths = sorted(path for path in given.iterdir() if is_frame_file(path))
    if not paths:
        raise BadImage(f"{given}: no frame with one of {', '.join(SUFFIXES)}")
    refused = 0
    restorer = FrameRestorer(chosen)
    with bar(console, "denoise") as progress:
        for done, path in enumerate(paths):
            progress(done, len(paths), path.name)
            suffix = path.suffix if path.suffix.lower() in _KEPT_SUFFIXES else _STACKED
            written = out / f"{path.stem}_denoised{suffix}"
            if not recursive:
                restorer = FrameRestorer(chosen)
            try:
                _tell(console, written, _denoise_file(path, written, restorer, None))
            except BadImage as error:
                console.print(f"[red]not done[/] {escape(str(error))}", soft_wrap=True)
                refused += 1
    console.print(f"{len(paths) - refused} of {len(paths)} files denoised")
    return 1 if refused else 0


@dataclass(slots=True, eq=False)
class _Made:
    """By what the frames of a file were made, and what is to be known of them."""

    frames: int = 0
    fallbacks: int = 0
    effective_frames: float = 1.0  # of the last
    methods: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, None] = field(default_factory=dict)

    def add(self, restored: RestoredFrame) -> None:
        """One more frame."""
        self.frames += 1
        self.fallbacks += restored.is_fallback
        self.effective_frames = restored.effective_frames
        self.methods[restored.method] += 1
        if restored.reason and len(self.reasons) < _MOST_REASONS:
            self.reasons[restored.reason] = None


def _denoise_file(path: Path, out: Path, restorer: FrameRestorer, told: Told | None) -> _Made:
    """Restore one file, frame by frame; what is not whole in the end is not left behind."""
    images = open_images(path)
    pixel_nm = images.pixel_size_nm
    pixel_nm = None if pixel_nm is None else pixel_nm / restorer.choice.scale
    writer = open_writer(out, path, images.frames, pixel_nm)
    made = _Made()
    try:
        for number in range(images.frames):
            if told is not None:
                told(number, images.frames, path.name)
            image, restored = _restored(images, number, restorer)
            made.add(restored)
            words = f"computed by scopeloop denoise ({restored.method}); not a raw frame"
            writer.append(image, words)
        writer.close()
    except BaseException:
        writer.discard()
        raise
    return made


def _restored(
    images: ImageFile, number: int, restorer: FrameRestorer
) -> tuple[Pixels, RestoredFrame]:
    """A computed frame, with the opacity that the frame itself has."""
    pixels = images.frame(number)
    has_alpha = pixels.ndim == 3 and pixels.shape[2] == 4
    try:
        restored = restorer.restore(pixels[..., :3] if has_alpha else pixels)
    except BadImage as error:
        raise BadImage(f"{images.path}: {error}") from error
    if has_alpha:
        scale = restorer.choice.scale
        alpha = pixels[..., 3:].repeat(scale, 0).repeat(scale, 1)
        return np.concatenate([restored.image, alpha], axis=-1), restored
    return restored.image, restored


def _tell(console: Console, out: Path, made: _Made) -> None:
    methods = ", ".join(made.methods)
    many = f" {made.frames} frames" if made.frames > 1 else ""
    deep = f", {made.effective_frames:.1f} effective frames" if made.effective_frames > 1 else ""
    doubt = f" [yellow]{escape('; '.join(made.reasons))}[/]" if made.reasons else ""
    console.print(f"[bold]{escape(str(out))}[/]{many} {methods}{deep}{doubt}", soft_wrap=True)
