"""PNG and TIFF, of one page or several, as OpenCV decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np

from controller.image_files.api import ImageFile, Pixels
from inference.api import BadImage

SUFFIXES: Final = (".png", ".tif", ".tiff")


def open_picture(path: Path) -> ImageFile:
    """All pages of a file, which are read at once. Raises BadImage."""
    try:
        # Not cv2.imread: it cannot open paths with letters beyond ASCII on Windows.
        data = np.fromfile(path, dtype=np.uint8)
        pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1] if data.size else ()
    except (OSError, cv2.error) as error:
        raise BadImage(f"{path}: cannot be read: {error}") from error
    if not pages:
        raise BadImage(f"{path}: not an image that can be decoded")
    first = np.asarray(pages[0])
    for number, page in enumerate(pages):
        if page.shape != first.shape or page.dtype != first.dtype:
            raise BadImage(
                f"{path}: page {number} is {page.dtype} {page.shape}, the first {first.dtype} "
                f"{first.shape}; save the pages as files of their own"
            )

    def frame(number: int) -> Pixels:
        return np.asarray(pages[number])

    return ImageFile(path, path.suffix[1:].upper(), len(pages), first.shape, None, frame)
