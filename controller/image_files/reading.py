"""Which reader a file is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from controller.image_files.api import ImageFile
from controller.image_files.digital_micrograph import open_dm
from controller.image_files.mrc import open_mrc
from controller.image_files.pictures import SUFFIXES as PICTURES
from controller.image_files.pictures import open_picture
from controller.image_files.tia import open_ser
from controller.image_files.zarr_images import is_zarr, open_zarr
from inference.api import BadImage

_READERS: Final[dict[str, Callable[[Path], ImageFile]]] = {
    **dict.fromkeys(PICTURES, open_picture),
    ".mrc": open_mrc,
    ".mrcs": open_mrc,
    ".dm3": open_dm,
    ".dm4": open_dm,
    ".ser": open_ser,
}
SUFFIXES: Final = tuple(_READERS)
# Known, and not read: what to do instead.
_REFUSED: Final = {
    ".emi": "holds no pixels; name the .ser file beside it",
    ".emd": "is HDF5, which is not read here; export it as TIFF or MRC from Velox, or with ncempy",
    ".h5": "is HDF5, which is not read here; export it as TIFF or MRC",
    ".czi": "is Zeiss's own; export it as OME-TIFF or TIFF of 16 bits",
    ".nd2": "is Nikon's own; export it as TIFF of 16 bits",
    ".jpg": "is compressed, which leaves no noise that could be measured; take the original",
    ".jpeg": "is compressed, which leaves no noise that could be measured; take the original",
}


def open_images(path: Path) -> ImageFile:
    """The frames of a file, or of a Zarr folder. Raises BadImage, naming it."""
    if is_zarr(path):
        return open_zarr(path)
    suffix = path.suffix.lower()
    if (refusal := _REFUSED.get(suffix)) is not None:
        raise BadImage(f"{path}: {refusal}")
    reader = _READERS.get(suffix)
    if reader is None:
        raise BadImage(f"{path}: only {', '.join(SUFFIXES)} and Zarr are read here")
    return reader(path)


def is_frame_file(path: Path) -> bool:
    """Whether something in a folder is to be read, or refused with a reason."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return is_zarr(path)
    return suffix in _READERS or (suffix in _REFUSED and suffix not in (".jpg", ".jpeg"))
