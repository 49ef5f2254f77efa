"""The frames of a run as OME-Zarr 0.5 (Zarr 3): one image a shot, each there wholly or not at all.

    frames.ome.zarr/            group: `ome` = bioformats2raw layout 3
        OME/                    group: `ome.series` lists the images, for readers that browse
        overview/0  tile/17  revisit/2 ...        one multiscale image each, array `0`, axes c, y, x

A shot is written beside the store and then renamed into it, a step that no operating system does
by halves: under its final name a shot is complete, whatever happened to the process and whichever
version of zarr wrote it. (zarr's own LocalStore renames single files only since 3.1.4, and writes
the pixels of an image after its metadata, so a reader could meet metadata without pixels.) The
checksum of the raw pixels stands in the image's own attributes, so that after a crash between the
rename and the journal the frame can be adopted without having been acknowledged.

Pixels are stored as three planes, one chunk a frame, blosc-lz4 with bitshuffle: on simulated tiles
they shrink to 0.51 in 3 ms; zstd level 1 would make 0.43 of them in 14 ms, zstd 3 takes 37 ms (2
cores EPYC). Time counts more here: what the writer takes, the detector beside it lacks. A dark
frame is written like any other: zarr would otherwise leave out its chunk, and absence must mean
loss.

Frame of the image: x = stage x and y = MINUS stage y, both in um, because image rows run down and
OME-Zarr 0.5 knows no mirror. `scale` is the pixel's side, `translation` the centre of the first
pixel. A camera that is mounted turned or mirrored cannot be said in these words; then the middle of
the image lies right, the turn stands in the attributes, and `scopeloop` is the authority.

Source: OME-NGFF 0.5, sections "multiscales", "omero" (transitional), "bioformats2raw.layout"
(transitional); Zarr core specification 3.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, cast

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from controller.errors import ControllerError
from controller.geometry import CameraGeometry
from controller.messages import Exposed, Point, Saved, ShotKind
from controller.record.rundir import (
    BadRecord,
    TooNew,
    reading,
    require_free,
    retrying,
    writing,
)
from drivers.api import Frame, Pixels

ATTRIBUTES_FORMAT = 1
OME_VERSION = "0.5"
_SHOT_KINDS: tuple[ShotKind, ...] = ("overview", "focus", "tile", "revisit")
_CHANNELS = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))

_CURE = "; delete this folder and resume the run: the frame is taken again"

_DISCARD_TRIES = 20
_DISCARD_PAUSE_S = 0.005

Json: TypeAlias = dict[str, Any]


class FrameStore:
    """The kept frames of one run; one thread at a time writes, any number may read."""

    def __init__(
        self,
        path: Path | str,
        *,
        geometry: CameraGeometry | None = None,
        min_free_gib: float = 0.0,
        is_power_safe: bool = False,
        is_read_only: bool = False,
    ) -> None:
        """Open the store, or begin one where none is; what a crash left half written is removed.

        geometry: how the camera is mounted; None means upright. is_power_safe: flush every frame
        to the disk before it counts as saved, for a computer that may lose power.
        """
        self.path = Path(path)
        self._geometry = geometry or CameraGeometry()
        self._min_free_gib = min_free_gib
        self._is_power_safe = is_power_safe
        self._is_read_only = is_read_only
        self._staging = self.path.with_name(self.path.name + ".partial")
        if is_read_only or self.path.exists():
            self._check()
        if not is_read_only:
            with writing(self.path):
                self._begin()

    def save(
        self, shot: ShotKind, index: int, frame: Frame, *, centre_um: Point | None = None
    ) -> tuple[str, str]:
        """Write one frame; when this returns it is there for good.

        centre_um: the sample point in the middle of the image; None means the pose's stage
        position, which is right for an objective without parcentric offset. Returns the path
        relative to the run's folder and the checksum, as `Saved` wants them. A frame that stood
        there under the same name is replaced. Raises DiskFull, with nothing of this frame left.
        """
        pixels = frame.pixels
        checksum = checksum_of(pixels)
        planes = _planes(pixels)  # (c, h, w)
        attributes = self._attributes(shot, index, frame, checksum, centre_um)
        target = self._image_path(shot, index)
        staged = self._staging / f"{shot}-{index}"
        with writing(target):
            require_free(self.path, self._min_free_gib, coming_bytes=pixels.nbytes)
            try:
                _write_image(staged, [planes], attributes, chunk_px=None)
                if self._is_power_safe:
                    _flush(staged)
                if target.exists():
                    retrying(lambda: shutil.rmtree(target))
                retrying(lambda: staged.rename(target))
            except BaseException:
                _discard(staged)
                raise
            if self._is_power_safe:
                _flush_folder(target.parent)
        return f"{self.path.name}/{shot}/{index}", checksum

    def load(self, shot: ShotKind, index: int) -> Pixels:
        """The raw pixels as the camera gave them, (h, w, 3) or (h, w), read-only.

        Raises BadRecord where the image is absent or is not, to the bit, what was saved.
        """
        path = self._image_path(shot, index)
        facts = self.attributes(shot, index)
        with _reading_zarr(path, _CURE):
            array = zarr.open_array(LocalStore(path / "0", read_only=True), mode="r")
            # zarr reads an absent chunk as zeros.
            if not (path / "0" / "c" / "0" / "0" / "0").is_file():
                raise BadRecord(path, f"the pixels are gone, only metadata is left{_CURE}")
            planes = np.asarray(array[...])
        pixels = planes[0] if facts.get("is_grey") else planes.transpose(1, 2, 0)
        pixels = np.ascontiguousarray(pixels)
        if checksum_of(cast("Pixels", pixels)) != facts["checksum"]:
            reason = f"the pixels are damaged: not {facts['checksum']} as written"
            raise BadRecord(path, reason + _CURE)
        pixels.flags.writeable = False
        return cast("Pixels", pixels)

    def attributes(self, shot: ShotKind, index: int) -> Mapping[str, Any]:
        """What was written down with the frame: see `scopeloop` in the image's attributes."""
        path = self._image_path(shot, index)
        if not path.is_dir():
            raise BadRecord(path, "no such frame was saved")
        with _reading_zarr(path, _CURE):
            group = zarr.open_group(LocalStore(path, read_only=True), mode="r")
            facts = group.attrs.get("scopeloop")
        if not isinstance(facts, dict) or not isinstance(facts.get("checksum"), str):
            reason = "the metadata is damaged: attribute `scopeloop` is not whole"
            raise BadRecord(path, reason + _CURE)
        return facts

    def exists_complete(self, shot: ShotKind, index: int) -> bool:
        """Whether the frame is there with its pixels; `verify` says whether they are sound."""
        path = self._image_path(shot, index)
        return (path / "zarr.json").is_file() and (path / "0/c/0/0/0").is_file()

    def verify(self, shot: ShotKind, index: int, checksum: str) -> None:
        """Raise BadRecord unless the pixels on the disk are those of `checksum`."""
        found = checksum_of(self.load(shot, index))
        if found != checksum:
            path = self._image_path(shot, index)
            raise BadRecord(path, f"the pixels are {found}, the journal says {checksum}")

    def adopt(self, exposed: Exposed) -> Saved | None:
        """The `Saved` that a crash kept from being journalled; None: there is no such frame.

        Only a whole frame whose source number is that of the exposure is taken.
        """
        if not self.exists_complete(exposed.shot, exposed.index):
            return None
        try:
            facts = self.attributes(exposed.shot, exposed.index)
            self.load(exposed.shot, exposed.index)
        except BadRecord:
            return None
        if facts.get("number") != exposed.number:
            return None
        path = f"{self.path.name}/{exposed.shot}/{exposed.index}"
        return Saved(exposed.shot, exposed.index, path, str(facts["checksum"]))

    def shots(self) -> tuple[tuple[ShotKind, int], ...]:
        """All complete frames, by kind and index."""
        with reading(self.path):
            return tuple(
                (kind, index)
                for kind in _SHOT_KINDS
                if (self.path / kind).is_dir()
                for index in sorted(
                    int(entry.name)
                    for entry in (self.path / kind).iterdir()
                    if entry.name.isdecimal()
                )
                if self.exists_complete(kind, index)
            )

    def write_listing(self) -> None:
        """List the images in `OME/`, for readers that browse a store; `close` does it too."""
        series = [f"{kind}/{index}" for kind, index in self.shots()]
        with writing(self.path):
            zarr.create_group(
                LocalStore(self.path),
                path="OME",
                overwrite=True,
                attributes={"ome": {"version": OME_VERSION, "series": series}},
            )

    def close(self) -> None:
        """List what is there; safe to call twice."""
        if not self._is_read_only:
            self.write_listing()
            shutil.rmtree(self._staging, ignore_errors=True)

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            self.close()
            return
        with contextlib.suppress(ControllerError):  # the listing can be made again, `exc` not
            self.close()

    def _check(self) -> None:
        """Refuse a folder that is not such a store."""
        if not self.path.is_dir():
            raise BadRecord(self.path, "there are no frames here")
        with _reading_zarr(self.path):
            root = zarr.open_group(LocalStore(self.path, read_only=True), mode="r")
            said = root.attrs.get("scopeloop")
        if not isinstance(said, dict) or not isinstance(said.get("format"), int):
            raise BadRecord(self.path, "this Zarr group does not hold the frames of a run")
        if said["format"] > ATTRIBUTES_FORMAT:
            reason = f"the frames have format {said['format']}, newer than {ATTRIBUTES_FORMAT}"
            raise TooNew(self.path, f"{reason}; update the program")

    def _begin(self) -> None:
        if self._staging.exists():
            shutil.rmtree(self._staging)
        if not self.path.exists():
            # Like a shot: staged, then renamed, so that a store is never met without its root.
            store = LocalStore(self._staging)
            attributes: Json = {
                "ome": {"version": OME_VERSION, "bioformats2raw.layout": 3},
                "scopeloop": {"format": ATTRIBUTES_FORMAT},
            }
            zarr.create_group(store, attributes=attributes)
            for kind in _SHOT_KINDS:
                zarr.create_group(store, path=kind)
            series: Json = {"ome": {"version": OME_VERSION, "series": []}}
            zarr.create_group(store, path="OME", attributes=series)
            retrying(lambda: self._staging.rename(self.path))
        self._staging.mkdir()

    def _image_path(self, shot: ShotKind, index: int) -> Path:
        return self.path / shot / str(index)

    def _attributes(
        self,
        shot: ShotKind,
        index: int,
        frame: Frame,
        checksum: str,
        centre_um: Point | None,
    ) -> Json:
        pose = frame.pose
        x_um, y_um = centre_um or (pose.stage_x_um, pose.stage_y_um)
        h_px, w_px = frame.pixels.shape[:2]
        channels = 1 if frame.pixels.ndim == 2 else frame.pixels.shape[2]
        first = first_pixel_um((x_um, y_um), (h_px, w_px), frame.pixel_size_nm)
        return {
            "ome": ome_attributes(
                f"{shot}/{index}", first, frame.pixel_size_nm, channels, frame.bit_depth
            ),
            "scopeloop": {
                "format": ATTRIBUTES_FORMAT,
                "shot": shot,
                "index": index,
                "number": frame.number,
                "checksum": checksum,
                "is_grey": frame.pixels.ndim == 2,
                "exposed_from_s": frame.exposed_from_s,
                "exposed_until_s": frame.exposed_until_s,
                "stage_x_um": pose.stage_x_um,
                "stage_y_um": pose.stage_y_um,
                "focus_z_um": pose.focus_z_um,
                "objective": pose.objective,
                "centre_x_um": x_um,
                "centre_y_um": y_um,
                "pixel_size_nm": frame.pixel_size_nm,
                "bit_depth": frame.bit_depth,
                "camera_rotation_deg": self._geometry.rotation_deg,
                "camera_flip_x": self._geometry.flip_x,
                "camera_flip_y": self._geometry.flip_y,
                "optics": dict(frame.optics),
                "frame_of_coordinates": (
                    "OME x = stage x, OME y = -stage y; stage: x right, y up, um"
                ),
            },
        }


def checksum_of(pixels: Pixels) -> str:
    """CRC-32 of the raw pixels in C order, "crc32:%08x"; one GB takes 0.2 s."""
    return f"crc32:{zlib.crc32(np.ascontiguousarray(pixels).data):08x}"


def first_pixel_um(centre_um: Point, shape_px: tuple[int, int], pixel_size_nm: float) -> Point:
    """OME (x, y) of the centre of the first pixel of an upright image around a stage point."""
    pixel_um = pixel_size_nm * 1e-3
    h_px, w_px = shape_px
    return (
        centre_um[0] - (w_px - 1) / 2 * pixel_um,
        -centre_um[1] - (h_px - 1) / 2 * pixel_um,
    )


def ome_attributes(
    name: str,
    first_um: Point,
    pixel_size_nm: float,
    channels: int,
    bit_depth: int,
    levels: int = 1,
) -> Json:
    """The `ome` attributes of one image with axes c, y, x, each level half as fine as the last.

    first_um: OME (x, y) of the centre of the first pixel of level 0. A pixel of level n covers
    2**n x 2**n of them, hence its centre lies (2**n - 1) / 2 of them further in.
    """
    top = 2**bit_depth - 1
    shown = _CHANNELS if channels == 3 else (("grey", "FFFFFF"),)
    datasets = []
    for level in range(levels):
        pixel_um = pixel_size_nm * 1e-3
        inwards_um = (2**level - 1) / 2 * pixel_um
        side_um = pixel_um * 2**level
        start = [0.0, first_um[1] + inwards_um, first_um[0] + inwards_um]
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, side_um, side_um]},
                    {"type": "translation", "translation": start},
                ],
            }
        )
    return {
        "version": OME_VERSION,
        "multiscales": [
            {
                "name": name,
                "axes": [
                    {"name": "c", "type": "channel"},
                    {"name": "y", "type": "space", "unit": "micrometer"},
                    {"name": "x", "type": "space", "unit": "micrometer"},
                ],
                "datasets": datasets,
            }
        ],
        "omero": {
            "channels": [
                {
                    "label": label,
                    "color": colour,
                    "active": True,
                    "window": {"min": 0, "max": top, "start": 0, "end": top},
                }
                for label, colour in shown
            ]
        },
    }


def write_ome_image(path: Path, levels: list[Pixels], attributes: Json, chunk_px: int) -> None:
    """Write an image with its pyramid, (c, h, w) each, wholly or not at all.

    What is there is replaced. Raises DiskFull or BadRecord, and then leaves it in place.
    """
    staged = path.with_name(path.name + ".partial")
    with writing(path):
        shutil.rmtree(staged, ignore_errors=True)
        try:
            _write_image(staged, levels, attributes, chunk_px=chunk_px)
            if path.exists():
                retrying(lambda: shutil.rmtree(path))
            retrying(lambda: staged.rename(path))
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def _discard(staged: Path) -> None:
    """Remove what a failed write left; zarr may still be at work on the rest of it."""
    for _ in range(_DISCARD_TRIES):
        shutil.rmtree(staged, ignore_errors=True)
        time.sleep(_DISCARD_PAUSE_S)
        if not staged.exists():
            return


def _write_image(
    folder: Path, levels: list[Pixels], attributes: Json, *, chunk_px: int | None
) -> None:
    """A group with one array a level; chunk_px None: one chunk holds the whole level."""
    group = zarr.create_group(LocalStore(folder), attributes=attributes)
    for level, planes in enumerate(levels):
        channels, h_px, w_px = planes.shape
        side_px = chunk_px or max(h_px, w_px)
        array = group.create_array(
            str(level),
            shape=planes.shape,
            dtype=planes.dtype,
            chunks=(channels, min(side_px, h_px), min(side_px, w_px)),
            compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
            dimension_names=["c", "y", "x"],
            fill_value=0,
            # A frame of zeros is a frame. It also spares a comparison of every pixel with zero
            # (20 ms of 30 on 1920 x 1200 x 3).
            config={"write_empty_chunks": True},
        )
        array[...] = planes


def _planes(pixels: Pixels) -> Pixels:
    """(h, w, 3) or (h, w) -> (c, h, w), contiguous. Raises BadRecord for anything else."""
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.size == 0:
        raise BadRecord("frame", f"cannot be kept: {pixels.dtype} pixels, shape {pixels.shape}")
    if pixels.ndim == 2:
        return cast("Pixels", np.ascontiguousarray(pixels[np.newaxis]))
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return cast("Pixels", np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    raise BadRecord("frame", f"cannot be kept: shape {pixels.shape}, not (h, w) or (h, w, 3)")


@contextlib.contextmanager
def _reading_zarr(path: Path, cure: str = "") -> Iterator[None]:
    """Turn what zarr and its codecs say of a damaged image into BadRecord; cure: what to do."""
    try:
        yield
    except OSError as error:
        raise BadRecord(path, f"cannot be read: {error.strerror or error}{cure}") from error
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise BadRecord(path, f"is damaged: {type(error).__name__}: {error}{cure}") from error


def _flush(folder: Path) -> None:
    """Bring a folder's files and entries to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("r+b") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(parent))


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no such call; NTFS journals its entries
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
