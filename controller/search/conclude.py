"""The end of a run: from its record to catalogue, map, exports and report.

Everything here is read from the run's folder, so it can be done again at any time, for a run that
ended, was stopped, or was cut off; nothing is asked of the instrument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from controller.focusing.surface import FocusPoint, FocusSurface
from controller.geometry import CameraGeometry, axis_point_um, stage_to_pixel
from controller.messages import (
    CatalogueEntry,
    ChipFound,
    Exposed,
    PhaseStarted,
    Ring,
    RunFinished,
    ShotKind,
)
from controller.record.catalogue import write_catalogue
from controller.record.frames import FrameStore
from controller.record.rundir import RunDir
from controller.search.colours import write_colours
from controller.search.entries import catalogue_of
from controller.search.exports import KeptImage, stage_to_chip_um, write_exports
from controller.search.mosaic import Mosaic, MosaicBuilder, write_mosaic
from controller.search.report import (
    Crop,
    Download,
    EntryCrops,
    Ladder,
    LoneTerrace,
    MapImage,
    PhaseTime,
    ReportContent,
    ScanBound,
    SurfaceGrid,
    TileQuality,
    TruthRow,
    write_report,
)
from controller.search.second_look import Everybody, LoneReading, OtherEyes, second_look
from controller.search.state import SearchState
from controller.settings import Settings
from drivers.api import Objective, Pose
from inference.api import ModelError

RGB8: TypeAlias = npt.NDArray[np.uint8]

_CROP_PX = 420  # a card's picture, at most
_CROP_MARGIN = 1.5  # of the terrace's own size
_LEAST_CROP_UM = 60.0
_SURFACE_POINTS = 41
_MOST_ALONE = 24  # terraces that only the second look saw, with a picture each
_LIGHT_TOLD = 5  # changes of the light that the report names one by one


def conclude(
    state: SearchState,
    settings: Settings,
    run: RunDir,
    frames: FrameStore,
    objectives: Sequence[Objective],
    shape_px: tuple[int, int],
    ladders: Sequence[Ladder],
    truth: Callable[[tuple[CatalogueEntry, ...]], tuple[TruthRow, ...]] | None = None,
    note: Callable[[str], None] = lambda _: None,
    everybody: Everybody | None = None,
) -> tuple[CatalogueEntry, ...]:
    """Write catalogue, map, exports and report into the run's folder; returns the catalogue.

    truth: how a simulated run did, asked once the catalogue stands; None: a real sample.
    everybody: who may read the cards' flakes a second time; None: nobody does.
    """
    entries = catalogue_of(state, settings.wanted)
    by_name = {objective.name: objective for objective in objectives}
    camera = settings.camera
    geometry = CameraGeometry(camera.rotation_deg, camera.flip_x, camera.flip_y)
    most = settings.report.max_cards
    alone: tuple[LoneReading, ...] = ()
    warnings = _light_warnings(state)
    if everybody is not None:
        note("asking the other detector")
        other = OtherEyes(state, frames, by_name, geometry, everybody)
        shown = _worth_a_card(entries, most)
        try:
            looked = second_look(entries, shown, state, settings.wanted, other)
            entries, alone = looked.entries, looked.alone[:_MOST_ALONE]
        except ModelError as error:  # what was found by the one that led is worth its report
            warnings += (f"No second detector was asked: {error}.",)
    write_catalogue(run.journal_path, entries)
    note("stitching the map")
    pictures = _Pictures(state, frames, by_name, geometry, shape_px)
    mosaic = pictures.mosaic(settings.report.map_um_per_px)
    if mosaic is not None:
        write_mosaic(run.mosaic_path, mosaic)
    downloads: tuple[Download, ...] = ()
    if state.chip is not None:
        note("exporting")
        paths = write_exports(
            run.exports_path, entries, state.chip, state.scan, pictures.kept_images()
        )
        downloads = tuple(_download(path, run.path) for path in paths)
    colours = write_colours(run.path, settings, state.calibrations)
    if colours is not None:
        downloads += (Download("Colours", colours.name, "for [detector] calibration"),)
    note("writing the report")
    finished = _timed(state, settings)
    content = ReportContent(
        started=state.sessions[0],
        finished=finished,
        sessions=len(state.sessions),
        instrument_time_s=_last_known_s(state),
        wanted=wanted_in_words(settings),
        entries=entries,
        crops=pictures.crops(_worth_a_card(entries, most)),
        alone=pictures.lone(alone, state.chip),
        chip=state.chip,
        mosaic=None
        if mosaic is None
        else MapImage(mosaic.pixels, mosaic.x_um, mosaic.y_um, mosaic.um_per_px),
        calibration=state.calibration,
        ladders=tuple(ladders),
        tiles=() if state.scan is None else state.scan.tiles,
        field_w_um=0.0 if state.scan is None else state.scan.field_w_um,
        field_h_um=0.0 if state.scan is None else state.scan.field_h_um,
        tile_quality=tuple(
            TileQuality(index, seen.sharpness, seen.in_distribution, seen.reason)
            for (shot, index), seen in sorted(state.analysed.items())
            if shot == "tile"
        ),
        focus_points=tuple(state.focus_points),
        focus_surface=_surface_grid(state, settings, by_name),
        phases=tuple(phase_times(state)),
        scan_bound=_scan_bound(finished),
        skipped=tuple(state.skipped),
        refused=tuple(state.refused),
        frames_missing=tuple(state.missing),
        warnings=warnings,
        truth=() if truth is None else truth(entries),
        downloads=downloads,
    )
    write_report(run.report_path, content)
    return entries


def _light_warnings(state: SearchState) -> tuple[str, ...]:
    """What the first tile after each change of the light showed."""
    first, rest = state.light_changes[:_LIGHT_TOLD], state.light_changes[_LIGHT_TOLD:]
    told = tuple(f"From {change.shot} {change.index} on {change.reason}." for change in first)
    return (*told, f"{len(rest)} more changes of the light.") if rest else told


def wanted_in_words(settings: Settings) -> str:
    """What the user asked for, as a phrase."""
    wanted = settings.wanted
    layers = ", ".join(str(count) for count in wanted.layers)
    words = (
        f"{' or '.join(wanted.materials)}, {layers} layers, at least {wanted.min_area_um2:g} µm²"
    )
    if wanted.max_aspect_ratio is not None:
        words += f", aspect ratio up to {wanted.max_aspect_ratio:g}"
    return words


def phase_times(state: SearchState) -> Iterable[PhaseTime]:
    """Instrument time by phase, from one start to the next and to the end of the session."""
    starts: list[PhaseStarted] = list(state.phases)
    end_s = _last_known_s(state)
    total: dict[str, float] = {}
    for here, then in zip(starts, [*starts[1:], None], strict=True):
        until_s = max(here.at_s, end_s) if then is None else then.at_s
        total[here.phase] = total.get(here.phase, 0.0) + max(0.0, until_s - here.at_s)
    return [PhaseTime(phase, duration_s) for phase, duration_s in total.items()]


def _timed(state: SearchState, settings: Settings) -> RunFinished | None:
    """How it ended; a replay's stage takes no time, so its scan has none worth showing."""
    if state.finished is None or settings.instrument.driver != "replay":
        return state.finished
    return replace(state.finished, scan_s=0.0, scan_bound_s=0.0)


def _scan_bound(end: RunFinished | None) -> ScanBound | None:
    if end is None or end.scan_s <= 0.0:
        return None
    return ScanBound(end.scan_moves_s, end.scan_settling_s, end.scan_exposures_s)


def _last_known_s(state: SearchState) -> float:
    """Instrument time of all sessions; of one that was cut off, up to its last dated fact."""
    dated = [*(p.at_s for p in state.phases), *(p.at_s for p in state.focus_points)]
    return max([sum(end.elapsed_s for end in state.ended), *dated])


def _worth_a_card(entries: Sequence[CatalogueEntry], most: int) -> list[CatalogueEntry]:
    """The wanted by rank, then the others by score."""
    wanted = sorted((e for e in entries if e.rank), key=lambda e: e.rank)
    others = sorted((e for e in entries if not e.rank), key=lambda e: -e.score)
    return [*wanted, *others][:most]


def _download(path: Path, root: Path) -> Download:
    labels = {
        ".csv": ("CSV", "one row a terrace, units in the headings"),
        ".json": ("COCO", "instance masks on the scan tiles, run-length encoded"),
        ".geojson": ("GeoJSON", "outlines in chip um"),
        ".gds": ("GDS", "outlines in chip um, a layer per material"),
    }
    label, note = labels.get(path.suffix, (path.suffix, ""))
    return Download(label, path.relative_to(root).as_posix(), note)


def _surface_grid(
    state: SearchState, settings: Settings, objectives: Mapping[str, Objective]
) -> SurfaceGrid | None:
    """The focus surface that all confident points tell, in the scan objective's z."""
    scan_objective = objectives.get(settings.scan.objective)
    points = [p for p in state.focus_points if p.is_confident and p.purpose != "overview"]
    if state.chip is None or scan_objective is None or len(points) < 3:
        return None
    ring = np.array(state.chip.outline_um)
    (x_min, y_min), (x_max, y_max) = ring.min(axis=0), ring.max(axis=0)
    surface = FocusSurface(
        settings.focus.surface,
        (x_min + x_max) / 2,
        (y_min + y_max) / 2,
        max(x_max - x_min, y_max - y_min) / 2,
        points[0].focus_z_um - objectives[points[0].objective].parfocal_z_um,
        settings.focus.start_sigma_um,
    )
    for p in points:
        reference_z_um = p.focus_z_um - objectives[p.objective].parfocal_z_um
        surface = surface.with_point(
            FocusPoint(p.stage_x_um, p.stage_y_um, reference_z_um, p.sigma_um, p.at_s)
        )
    x_um = np.linspace(x_min, x_max, _SURFACE_POINTS)
    y_um = np.linspace(y_min, y_max, _SURFACE_POINTS)
    grid = np.stack(np.meshgrid(x_um, y_um), axis=-1).reshape(-1, 2)
    z_um, _ = surface.at_many(grid, points[-1].at_s)
    return SurfaceGrid(
        x_um,
        y_um,
        z_um.reshape(len(y_um), len(x_um)) + scan_objective.parfocal_z_um,
        surface.order,
    )


class _Pictures:
    """What the kept frames show."""

    def __init__(
        self,
        state: SearchState,
        frames: FrameStore,
        objectives: Mapping[str, Objective],
        geometry: CameraGeometry,
        shape_px: tuple[int, int],
    ) -> None:
        self._shape_px = shape_px
        self._state = state
        self._frames = frames
        self._objectives = objectives
        self._geometry = geometry

    def _saved(self, shot: ShotKind) -> list[Exposed]:
        return [
            exposed
            for (kind, index), exposed in sorted(self._state.exposed.items())
            if kind == shot and (kind, index) in self._state.saved
        ]

    def _centre_um(self, exposed: Exposed) -> tuple[float, float]:
        return axis_point_um(
            exposed.stage_x_um, exposed.stage_y_um, self._objectives[exposed.objective]
        )

    def mosaic(self, um_per_px: float) -> Mosaic | None:
        """Overview first, scan tiles over it."""
        shots = [*self._saved("overview"), *self._saved("tile")]
        bounds = _bounds_um([self._centre_um(e) for e in shots], [self._half_um(e) for e in shots])
        if bounds is None:
            return None
        chip = self._state.chip
        if chip is not None:
            # The ground around the chip says nothing: a margin is enough.
            ring = np.array(chip.outline_um)
            low, high = ring.min(axis=0) - 150.0, ring.max(axis=0) + 150.0
            bounds = (
                max(bounds[0], float(low[0])),
                max(bounds[1], float(low[1])),
                min(bounds[2], float(high[0])),
                min(bounds[3], float(high[1])),
            )
        builder = MosaicBuilder(bounds, um_per_px, geometry=self._geometry)
        for exposed in shots:
            facts = self._frames.attributes(exposed.shot, exposed.index)
            builder.add(
                self._frames.load(exposed.shot, exposed.index),
                *self._centre_um(exposed),
                exposed.pixel_size_nm,
                int(facts.get("bit_depth", 8)),
            )
        return builder.build()

    def _half_um(self, exposed: Exposed) -> float:
        return float(max(self._shape_px)) * exposed.pixel_size_nm * 1e-3 / 2

    def kept_images(self) -> list[KeptImage]:
        """The scan tiles, for exports."""
        return [
            KeptImage(
                tile=exposed.index,
                path=self._state.saved["tile", exposed.index].path,
                shape_px=self._shape_px,
                pose=_pose(exposed),
                objective=self._objectives[exposed.objective],
                geometry=self._geometry,
            )
            for exposed in self._saved("tile")
        ]

    def crops(self, entries: Sequence[CatalogueEntry]) -> tuple[EntryCrops, ...]:
        """A picture of each entry at scan magnification, and one of its revisit."""
        by_tile: dict[int, list[CatalogueEntry]] = {}
        for entry in entries:
            by_tile.setdefault(self._best_tile(entry), []).append(entry)
        scans: dict[int, Crop] = {}
        for tile, shown in sorted(by_tile.items()):
            pixels = self._eight_bit("tile", tile)
            if pixels is None:
                continue
            for entry in shown:
                at = (entry.stage_x_um, entry.stage_y_um)
                scans[entry.entry_id] = self._crop(pixels, "tile", tile, entry.outline_um, at)
        return tuple(
            EntryCrops(entry.entry_id, scans.get(entry.entry_id), self._revisit_crop(entry))
            for entry in entries
        )

    def lone(
        self, readings: Sequence[LoneReading], chip: ChipFound | None
    ) -> tuple[LoneTerrace, ...]:
        """What only the second look saw, each with a picture."""
        found = []
        for lone in readings:
            pixels = self._eight_bit("tile", lone.tile)
            at = (lone.stage_x_um, lone.stage_y_um)
            crop = None
            if pixels is not None:
                crop = replace(
                    self._crop(pixels, "tile", lone.tile, lone.piece.outline_um, at),
                    outline_um=lone.piece.outline_um,
                    holes_um=lone.piece.holes_um,
                )
            chip_um = None if chip is None else stage_to_chip_um(chip, [at])[0]
            found.append(LoneTerrace(lone.detector, lone.leader, lone.piece, at, chip_um, crop))
        return tuple(found)

    def _best_tile(self, entry: CatalogueEntry) -> int:
        """The tile whose middle is nearest to the entry."""
        return min(
            entry.tiles,
            key=lambda tile: math.dist(
                self._centre_um(self._state.exposed["tile", tile]),
                (entry.stage_x_um, entry.stage_y_um),
            ),
        )

    def _revisit_crop(self, entry: CatalogueEntry) -> Crop | None:
        if entry.revisit is None:
            return None
        pixels = self._eight_bit("revisit", entry.revisit.shot_index)
        if pixels is None:
            return None
        seen = self._state.analysed.get(("revisit", entry.revisit.shot_index))
        at = (entry.revisit.x_um, entry.revisit.y_um)
        outline: tuple[tuple[float, float], ...] = ()
        holes: tuple[tuple[tuple[float, float], ...], ...] = ()
        if seen is not None and entry.revisit.found:
            near = min(
                (p for p in seen.pieces if p.layers == entry.revisit.layers),
                key=lambda p: math.dist(np.mean(p.outline_um, axis=0), at),
                default=None,
            )
            if near is not None:
                outline, holes = near.outline_um, near.holes_um
        crop = self._crop(pixels, "revisit", entry.revisit.shot_index, entry.outline_um, at)
        return Crop(
            crop.pixels,
            crop.pixel_size_nm,
            crop.stage_x_um,
            crop.stage_y_um,
            crop.objective,
            outline,
            holes,
        )

    def _eight_bit(self, shot: ShotKind, index: int) -> RGB8 | None:
        if (shot, index) not in self._state.saved:
            return None
        pixels = self._frames.load(shot, index)
        bit_depth = int(self._frames.attributes(shot, index).get("bit_depth", 8))
        shown = np.right_shift(pixels, max(0, bit_depth - 8)).astype(np.uint8)
        return np.repeat(shown[:, :, None], 3, axis=2) if shown.ndim == 2 else shown

    def _crop(
        self,
        pixels: RGB8,
        shot: ShotKind,
        index: int,
        outline_um: Ring,
        at_um: tuple[float, float],
    ) -> Crop:
        """A square around `at_um` that holds the outline."""
        exposed = self._state.exposed[shot, index]
        objective = self._objectives[exposed.objective]
        um_per_px = exposed.pixel_size_nm * 1e-3
        x_um, y_um = at_um
        ring = np.array(outline_um)
        size_um = max(float(np.ptp(ring, axis=0).max()) * _CROP_MARGIN, _LEAST_CROP_UM)
        h_px, w_px = pixels.shape[:2]
        col, row = stage_to_pixel(
            x_um, y_um, _pose(exposed), objective, (h_px, w_px), self._geometry
        )
        half_px = round(size_um / um_per_px / 2)
        left = min(max(round(float(col)) - half_px, 0), max(w_px - 2 * half_px, 0))
        top = min(max(round(float(row)) - half_px, 0), max(h_px - 2 * half_px, 0))
        right, bottom = min(left + 2 * half_px, w_px), min(top + 2 * half_px, h_px)
        window = pixels[top:bottom, left:right]
        step = max(1, -(-max(window.shape[:2]) // _CROP_PX))
        if step > 1:
            h, w = (window.shape[0] // step) * step, (window.shape[1] // step) * step
            window = (
                window[:h, :w]
                .reshape(h // step, step, w // step, step, 3)
                .mean(axis=(1, 3))
                .astype(np.uint8)
            )
            right, bottom = left + w, top + h
        turn = self._geometry.matrix()
        offset = turn @ np.array(
            [
                (left + right - 1) / 2 - (w_px - 1) / 2,
                (h_px - 1) / 2 - (top + bottom - 1) / 2,
            ]
        )
        centre_x_um, centre_y_um = self._centre_um(exposed)
        return Crop(
            pixels=np.ascontiguousarray(window),
            pixel_size_nm=exposed.pixel_size_nm * step,
            stage_x_um=centre_x_um + float(offset[0]) * um_per_px,
            stage_y_um=centre_y_um + float(offset[1]) * um_per_px,
            objective=exposed.objective,
        )


def _pose(exposed: Exposed) -> Pose:
    return Pose(exposed.stage_x_um, exposed.stage_y_um, exposed.focus_z_um, exposed.objective)


def _bounds_um(
    centres: Sequence[tuple[float, float]], halves: Sequence[float]
) -> tuple[float, float, float, float] | None:
    if not centres:
        return None
    x, y, half = np.array([c[0] for c in centres]), np.array([c[1] for c in centres]), max(halves)
    return (
        float(x.min() - half),
        float(y.min() - half),
        float(x.max() + half),
        float(y.max() + half),
    )
