"""Frames of one stream on the disk: an OME-Zarr 0.5 image with a time axis, and a line a frame.

    raw.ome.zarr/        every frame as it came
    raw.jsonl            a line each: source number, times, pose, optics, checksum
    computed.ome.zarr/   what was restored, in the same type; its attributes say that it is computed
    computed.jsonl       a line each: the raw frame it was made from, by what, and how sure

A frame's line is written after its pixels, so a line is an acknowledgement: what a crash left
behind the last line is not a frame. The array grows by leaps and is cut to length at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TextIO, cast

import numpy as np
import zarr
from zarr.storage import LocalStore

from controller.record.frames import checksum_of
from controller.record.movies import movie_array, movie_attributes
from controller.record.rundir import BadRecord, require_free, writing
from controller.restoring.stage import LiveView
from drivers.api import Frame, Pixels

LABEL: Final = "computed, not raw"

_GROWTH_FRAMES: Final = 32

Kind = Literal["raw", "computed"]


class MovieWriter:
    """One movie; one thread at a time writes. Frames of another size than the first are refused."""

    def __init__(self, folder: Path, kind: Kind, min_free_gib: float = 0.0) -> None:
        """Nothing is written before the first frame."""
        self.path = folder / f"{kind}.ome.zarr"
        self.lines_path = folder / f"{kind}.jsonl"
        self.frames = 0
        self._kind = kind
        self._min_free_gib = min_free_gib
        self._array: zarr.Array[Any] | None = None
        self._lines: TextIO | None = None

    def append(self, frame: Frame) -> None:
        """Write a raw frame. Raises DiskFull or BadRecord."""
        pose = frame.pose
        self._write(
            frame.pixels,
            frame,
            {
                "number": frame.number,
                "exposed_from_s": frame.exposed_from_s,
                "exposed_until_s": frame.exposed_until_s,
                "stage_x_um": pose.stage_x_um,
                "stage_y_um": pose.stage_y_um,
                "focus_z_um": pose.focus_z_um,
                "objective": pose.objective,
                "pixel_size_nm": frame.pixel_size_nm,
                "bit_depth": frame.bit_depth,
                "optics": dict(frame.optics),
                "checksum": checksum_of(frame.pixels),
            },
        )

    def append_view(self, view: LiveView) -> None:
        """Write what was computed, if anything was. Raises DiskFull or BadRecord."""
        restored = view.restored
        if restored is None:
            return
        self._write(
            cast("Pixels", restored.image),
            view.frame,
            {
                "computed_from": view.frame.number,
                "method": restored.method,
                "is_fallback": restored.is_fallback,
                "reason": restored.reason,
                "in_distribution": restored.in_distribution,
                "effective_frames": round(restored.effective_frames, 3),
                "latency_s": round(view.latency_s, 6),
            },
        )

    def close(self) -> None:
        """Cut the array to its length; safe to call twice."""
        lines, self._lines = self._lines, None
        array, self._array = self._array, None
        if lines is not None:
            with writing(self.lines_path):
                lines.close()
        if array is not None:
            with writing(self.path):
                array.resize((self.frames, *array.shape[1:]))

    def __enter__(self) -> MovieWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, pixels: Pixels, frame: Frame, facts: Mapping[str, Any]) -> None:
        planes = pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # (c, h, w)
        with writing(self.path):
            require_free(self.path.parent, self._min_free_gib, coming_bytes=pixels.nbytes)
            if self._array is None or self._lines is None:
                self._array = self._begun(planes, frame)
                self._lines = self.lines_path.open("w", encoding="utf-8", newline="\n")
            array = self._array
            if planes.shape != array.shape[1:] or planes.dtype != array.dtype:
                reason = (
                    f"frame {frame.number} is {planes.dtype} {planes.shape}, the movie "
                    f"{array.dtype} {array.shape[1:]}; begin another session for another camera"
                )
                raise BadRecord(self.path, reason)
            if self.frames >= array.shape[0]:
                array.resize((self.frames + _GROWTH_FRAMES, *array.shape[1:]))
            array[self.frames] = planes
            line = json.dumps({"index": self.frames, **facts})
            self._lines.write(line + "\n")
            self._lines.flush()
        self.frames += 1

    def _begun(self, planes: Pixels, frame: Frame) -> zarr.Array[Any]:
        group = zarr.create_group(LocalStore(self.path), attributes=self._attributes(frame))
        return movie_array(group, _GROWTH_FRAMES, planes)

    def _attributes(self, frame: Frame) -> dict[str, Any]:
        said: dict[str, Any] = {"kind": self._kind, "lines": self.lines_path.name}
        if self._kind == "computed":
            said["label"] = LABEL
        name = LABEL if self._kind == "computed" else "raw"
        return {
            "ome": movie_attributes(name, frame.pixel_size_nm * 1e-3),
            "scopeloop": said,
        }
