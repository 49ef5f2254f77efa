"""What every movie on the disk is: an OME-Zarr 0.5 image over time, channel, row and column.

Each frame is a chunk of its own, written even where it is empty, so what is there was written.
Source: OME-NGFF 0.5, sections multiscales and axes.
"""

from __future__ import annotations

from typing import Any

import zarr
from zarr.codecs import BloscCodec

from controller.record.frames import OME_VERSION
from drivers.api import Pixels


def movie_attributes(name: str, pixel_um: float | None) -> dict[str, Any]:
    """The `ome` attribute of a movie's group; pixel_um: None where nobody knows it."""
    space = {"type": "space"} | ({} if pixel_um is None else {"unit": "micrometer"})
    side = 1.0 if pixel_um is None else pixel_um
    scale = {"type": "scale", "scale": [1.0, 1.0, side, side]}
    image = {
        "name": name,
        "axes": [
            {"name": "t", "type": "time"},
            {"name": "c", "type": "channel"},
            {"name": "y", **space},
            {"name": "x", **space},
        ],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    return {"version": OME_VERSION, "multiscales": [image]}


def movie_array(group: zarr.Group, frames: int, planes: Pixels) -> zarr.Array[Any]:
    """Room for so many frames like `planes`, (c, h, w), in the movie's group."""
    return group.create_array(
        "0",
        shape=(frames, *planes.shape),
        dtype=planes.dtype,
        chunks=(1, *planes.shape),
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
        dimension_names=["t", "c", "y", "x"],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
