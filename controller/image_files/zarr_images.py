"""Zarr arrays and OME-Zarr images: those of a run or a session here, and others'.

An OME image says what its axes are; a bare array is (h, w), or (frames, h, w). Channels come in
OpenCV's order, as in every other file. Of a pyramid the finest level is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from zarr.storage import LocalStore

from controller.image_files.api import (
    ImageFile,
    Pixels,
    checked_size,
    length_nm,
    usable,
)
from inference.api import BadImage

MARKS: Final = ("zarr.json", ".zattrs", ".zgroup", ".zarray")

_COLOURS: Final = (1, 3, 4)
_UNITS: Final = {"nanometer": "nm", "micrometer": "um", "angstrom": "A", "millimeter": "mm"}
# What zarr and its codecs raise for what is damaged.
_DAMAGED = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError)


def is_zarr(path: Path) -> bool:
    """Whether a folder is one."""
    return path.is_dir() and any((path / mark).is_file() for mark in MARKS)


def open_zarr(path: Path) -> ImageFile:
    """The image that a folder holds. Raises BadImage."""
    try:
        return _opened(path)
    except _DAMAGED as error:
        raise BadImage(f"{path}: not readable as Zarr: {type(error).__name__}: {error}") from error


def _opened(path: Path) -> ImageFile:
    node = zarr.open(LocalStore(path, read_only=True), mode="r")
    if isinstance(node, zarr.Array):
        names = ("t", "y", "x")[-node.ndim :] if node.ndim in (2, 3) else ()
        return _image(path, node, names, None)
    attributes: Mapping[str, Any] = dict(node.attrs)
    said = attributes.get("ome", attributes)
    multiscales = said.get("multiscales") if isinstance(said, Mapping) else None
    if not multiscales:
        inside = sorted(name for name, _ in node.members())
        shown = ", ".join(inside[:6]) + (" ..." if len(inside) > 6 else "")
        raise BadImage(f"{path}: a group without an image of its own; name one inside: {shown}")
    image = multiscales[0]
    axes = image["axes"]
    names = tuple(str(axis if isinstance(axis, str) else axis["name"]) for axis in axes)
    level = image["datasets"][0]
    array = node[level["path"]]
    if not isinstance(array, zarr.Array):
        raise BadImage(f"{path}: {level['path']} is no array: damaged")
    return _image(path, array, names, _pixel_nm(axes, names, level))


def _pixel_nm(axes: Sequence[Any], names: Sequence[str], level: Mapping[str, Any]) -> float | None:
    at = names.index("x")
    unit = axes[at].get("unit", "") if isinstance(axes[at], Mapping) else ""
    for step in level.get("coordinateTransformations", ()):
        if step.get("type") == "scale":
            return length_nm(float(step["scale"][at]), _UNITS.get(unit, unit))
    return None


def _image(
    path: Path, array: zarr.Array[Any], names: Sequence[str], pixel_nm: float | None
) -> ImageFile:
    if len(names) != array.ndim or tuple(names[-2:]) != ("y", "x"):
        raise BadImage(f"{path}: shape {array.shape}; needs axes that end in y, x, not {names}")
    sizes = dict(zip(names, array.shape, strict=True))
    channels = sizes.get("c", 1)
    frames = math.prod(sizes[name] for name in names[:-2] if name != "c")
    checked_size(path, sizes["x"], sizes["y"], frames)
    if channels not in _COLOURS:
        raise BadImage(f"{path}: has {channels} channels; 1, 3 or 4 are read here")
    counted = [name for name in names[:-2] if name != "c"]
    counted_sizes = tuple(sizes[name] for name in counted)

    def frame(number: int) -> Pixels:
        places = np.unravel_index(number, counted_sizes) if counted else ()
        chosen = dict(zip(counted, map(int, places), strict=True))
        try:
            planes = np.asarray(array[tuple(chosen.get(name, slice(None)) for name in names)])
        except _DAMAGED as error:
            raise BadImage(f"{path}: frame {number} cannot be read: {error}") from error
        if channels == 1:
            return usable(planes.reshape(planes.shape[-2:]), path)
        return usable(in_opencv_order(planes.transpose(1, 2, 0)), path)

    shape = (sizes["y"], sizes["x"]) if channels == 1 else (sizes["y"], sizes["x"], channels)
    return ImageFile(path, "Zarr", frames, shape, pixel_nm, frame)


def in_opencv_order(pixels: Pixels) -> Pixels:
    """Red and blue changed places; its own inverse."""
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        return np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=-1)
    return pixels
