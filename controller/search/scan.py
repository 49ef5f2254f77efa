"""The scan: every tile once at high magnification, in focus, in the order of the shortest way.

Light is taken and the stage moves on; what becomes of the frame is the darkroom's. So the scan's
time is moves, settling and exposures, and everything else hides behind the moves. `ScanTime` sets
what it took against that bound.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from shapely.geometry import Polygon, box

from controller.errors import SearchFailed
from controller.messages import PlannedTile, ScanPlanned, Skipped
from controller.motion import ideal_move_s
from controller.search.chip_focus import FOCUS_TRIES, ChipFocus
from controller.search.darkroom import BLACK, RETAKES, Darkroom
from controller.search.outline import OverviewFrame
from controller.search.session import Session
from controller.search.tiling import cover_polygon
from drivers.api import Objective

_TILES_TO_RETRY: Final = 4  # after a focus that failed on the way
_MOST_TILES: Final = 100_000  # of one plan: a year's travel is a slip in a number


@dataclass(slots=True, eq=False)
class ScanTime:
    """What the scan of this session took, and the least that it could have taken."""

    taken_s: float = 0.0
    least_s: npt.NDArray[np.float64] = field(  # (3,): moves, settling, exposures
        default_factory=lambda: np.zeros(3)
    )


class Scan:
    """`prepare` plans and seeds the focus; `run` takes the tiles."""

    def __init__(
        self, session: Session, darkroom: Darkroom, focus: ChipFocus, scan_time: ScanTime
    ) -> None:
        """scan_time: told when the tiles are done."""
        self._session = session
        self._darkroom = darkroom
        self._focus = focus
        self._scan_time = scan_time
        self._tiles_since_focus = 0

    async def prepare(self) -> None:
        """Plan the tiles, swing the lens in, and seed the focus surface."""
        session = self._session
        state, settings = session.state, session.settings
        objective = session.objectives.get(settings.scan.objective)
        if objective is None:
            known = ", ".join(session.objectives)
            raise SearchFailed(f"no objective {settings.scan.objective!r}; there are {known}")
        if session.is_scanned():
            return
        if state.scan is None:
            self._plan_scan(objective)
        await self._focus.first_focus(objective.name)
        seeded = sum(p.purpose == "seed" and p.is_confident for p in state.focus_points)
        wanted = min(settings.focus.seed_points, len(session.tiles))
        if not settings.focus.enabled or seeded >= wanted:
            return
        session.enter("focus", wanted, seeded)
        tries = 0
        failed: set[int] = set()
        # A chip that is bent more than the seeds could tell gets more of them, one at a time,
        # until one lies where it was expected.
        most = min(max(wanted, settings.focus.most_seed_points), len(session.tiles))
        enough_um = settings.focus.refresh_sigma_dof * objective.depth_of_field_um()
        is_surprised = False
        while (seeded < wanted or (is_surprised and seeded < most)) and tries < most + FOCUS_TRIES:
            tries += 1
            candidates = [t for t in self._focus_candidates() if t.index not in failed]
            if not candidates or self._focus.surface is None:
                break
            choice = self._focus.surface.where_next(
                [(t.x_um, t.y_um) for t in candidates], session.now_s()
            )
            if choice is None:
                break
            tile, before = candidates[choice], self._focus.surface
            await self._focus.go(tile.x_um, tile.y_um, objective)
            z_um, sigma_um = self._focus.expected_z_um(tile.x_um, tile.y_um, objective)
            result = await self._focus.autofocus("seed", tile.x_um, tile.y_um, z_um, sigma_um)
            failed.add(tile.index)
            if result.is_focused:
                seeded += 1
                point = state.focus_points[-1]
                off_um = (
                    point.focus_z_um
                    - objective.parfocal_z_um
                    - before.at(point.stage_x_um, point.stage_y_um, point.at_s).z_um
                )
                is_surprised = abs(off_um) > enough_um
                session.watcher.step("focus", min(seeded, wanted), session.now_s())
            else:
                session.post(Skipped(f"focus seed at tile {tile.index}", result.reason))

    def _plan_scan(self, objective: Objective) -> None:
        session = self._session
        settings = session.settings.scan
        width_um, height_um = session.field_um(objective)
        here = session.motion.where
        kinematics = session.instrument.stage.kinematics
        chip = session.chip_polygon()
        check_size(chip, width_um, height_um, settings.overlap_ratio, "scan")
        plan = cover_polygon(
            chip,
            width_um,
            height_um,
            settings.overlap_ratio,
            session.move_time,
            edge_margin_um=settings.edge_margin_um,
            per_tile_s=kinematics.settle_s + session.settings.camera.exposure_s,
            start_um=(here.x.low_um, here.y.low_um),
        )
        tiles = plan.tiles[: settings.max_tiles]
        if not tiles:
            raise SearchFailed("no tile fits on the chip inside its edge margin")
        session.post(
            ScanPlanned(
                tiles=tuple(PlannedTile(t.index, t.x_um, t.y_um) for t in tiles),
                objective=objective.name,
                field_w_um=width_um,
                field_h_um=height_um,
                overlap_ratio=settings.overlap_ratio,
            )
        )

    # --- taking the tiles ------------------------------------------------------------------

    async def run(self) -> None:
        """Every tile once, in order; lost ones again at the end."""
        session = self._session
        state = session.state
        tiles = session.tiles
        objective = session.objectives[session.settings.scan.objective]
        for tile in tiles:  # seen by an earlier session, but not looked at
            if state.is_done("tile", tile.index) and ("tile", tile.index) not in state.analysed:
                await self._darkroom.look_again("tile", tile.index)
        todo = [t for t in tiles if not state.is_done("tile", t.index)]
        if todo:
            session.enter("scan", len(tiles), len(tiles) - len(todo))
            await self._focus.first_focus(objective.name)
            await self._scan_tiles(todo, objective)
        await self._darkroom.finish_calibration()

    async def _scan_tiles(self, todo: Sequence[PlannedTile], objective: Objective) -> None:
        session = self._session
        loop = asyncio.get_running_loop()
        tiles = len(session.tiles)
        is_resumed, planned = len(todo) < tiles, len(todo)
        # The first move, from wherever the stage stood, belongs to neither side of the ratio.
        await self._focus.go(todo[0].x_um, todo[0].y_um, objective)
        began_s = loop.time()
        least_s, at = np.zeros(3), todo[0]
        self._tiles_since_focus = session.settings.focus.most_tiles_between if is_resumed else 0
        for round_ in range(1 + RETAKES):
            for tile in todo:
                await self._focus.go(tile.x_um, tile.y_um, objective)
                await self._track_focus(tile, objective)
                await self._darkroom.take("tile", tile.index)
                least_s += self._least_s(at, tile)
                at = tile
                done = tiles - len(todo) + todo.index(tile) + 1
                session.watcher.step("scan", done, session.now_s())
            await self._darkroom.drain()
            lost = self._darkroom.lost_indices("tile")
            todo = [t for t in todo if t.index in lost]
            if not todo:
                break
            if round_ == RETAKES:
                for tile in todo:
                    session.post(Skipped(f"tile {tile.index}", "its frame was lost every time"))
                session.watcher.note(f"{len(todo)} tiles were lost every time and are left out")
        if self._darkroom.blacks and self._darkroom.blacks == planned:
            raise SearchFailed(f"all {planned} tiles were {BLACK}; then begin a new run")
        if not any(session.state.is_done("tile", tile.index) for tile in session.tiles):
            raise SearchFailed(f"no tile could be taken, the last loss: {self._darkroom.last_loss}")
        self._scan_time.taken_s += loop.time() - began_s
        self._scan_time.least_s += least_s

    def _least_s(self, a: PlannedTile, b: PlannedTile) -> npt.NDArray[np.float64]:
        """The least time from the exposure of one tile to the end of that of the next.

        (3,): move, settling, exposure, in seconds; focus moves hide behind the stage's.
        """
        kinematics = self._session.instrument.stage.kinematics
        distance_um = max(abs(a.x_um - b.x_um), abs(a.y_um - b.y_um))
        settle_s = kinematics.settle_s if distance_um > 0.0 else 0.0
        move_s = ideal_move_s(distance_um, kinematics)
        return np.array([move_s, settle_s, self._session.settings.camera.exposure_s])

    # --- focus on the way ------------------------------------------------------------------

    async def _track_focus(self, tile: PlannedTile, objective: Objective) -> None:
        """Refresh the surface now and then, on a tile that has something to focus on."""
        session = self._session
        if not session.settings.focus.enabled:
            return
        settings = session.settings.focus
        self._tiles_since_focus += 1
        if self._tiles_since_focus <= settings.least_tiles_between:
            return
        z_um, sigma_um = self._focus.expected_z_um(tile.x_um, tile.y_um, objective)
        is_unsure = sigma_um > settings.refresh_sigma_dof * objective.depth_of_field_um()
        is_late = self._tiles_since_focus > settings.most_tiles_between
        if not (is_unsure or is_late):
            return
        # An empty field cannot be focused: wait for a better one, but not for ever.
        patience = settings.least_tiles_between * 1.5
        if tile not in self._focus_candidates() and self._tiles_since_focus < patience:
            return
        result = await self._focus.autofocus("track", tile.x_um, tile.y_um, z_um, sigma_um)
        self._tiles_since_focus = 0
        if not result.is_focused:
            # The surface is no surer than before: soon again, on another tile.
            self._tiles_since_focus = settings.least_tiles_between - _TILES_TO_RETRY
            session.post(Skipped(f"focus tracking at tile {tile.index}", result.reason))

    def _focus_candidates(self) -> list[PlannedTile]:
        """The tiles with the most structure in the overview: an empty field cannot be focused."""
        tiles = list(self._session.tiles)
        if not self._darkroom.small:
            return tiles
        scored = sorted(tiles, key=self._structure_of, reverse=True)
        return scored[: max(3, len(scored) // 3)]

    def _structure_of(self, tile: PlannedTile) -> float:
        """How much the overview shows within a tile's field, away from the chip's edge."""
        scan = self._session.state.scan
        if scan is None:
            return 0.0
        view = box(
            tile.x_um - scan.field_w_um / 2,
            tile.y_um - scan.field_h_um / 2,
            tile.x_um + scan.field_w_um / 2,
            tile.y_um + scan.field_h_um / 2,
        )
        if not self._session.chip_polygon().buffer(-20.0).contains(view):
            return 0.0
        return max(_structure(picture, tile, scan) for picture in self._darkroom.small.values())


# --- pure helpers --------------------------------------------------------------------------


def _structure(picture: OverviewFrame, tile: PlannedTile, scan: ScanPlanned) -> float:
    """Mean gradient of the overview within a tile's field; 0 where this picture misses it."""
    h_px, w_px = picture.pixels.shape[:2]
    col = (tile.x_um - picture.centre_x_um) / picture.um_per_px + (w_px - 1) / 2
    row = (picture.centre_y_um - tile.y_um) / picture.um_per_px + (h_px - 1) / 2
    half_w_px = scan.field_w_um / picture.um_per_px / 2
    half_h_px = scan.field_h_um / picture.um_per_px / 2
    left, right = math.floor(col - half_w_px), math.ceil(col + half_w_px)
    top, bottom = math.floor(row - half_h_px), math.ceil(row + half_h_px)
    if left < 0 or top < 0 or right >= w_px or bottom >= h_px:
        return 0.0
    grey = picture.pixels[top : bottom + 1, left : right + 1].mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def check_size(
    area: Polygon, width_um: float, height_um: float, overlap_ratio: float, what: str
) -> None:
    """Raises SearchFailed for an area that nobody means to cover."""
    tiles = area.area / (width_um * height_um * (1.0 - overlap_ratio) ** 2)
    if not tiles <= _MOST_TILES:
        x_min, y_min, x_max, y_max = area.bounds
        raise SearchFailed(
            f"the {what} of {x_max - x_min:.4g} x {y_max - y_min:.4g} um would take {tiles:.3g} "
            f"frames of {width_um:.4g} x {height_um:.4g} um, at most {_MOST_TILES} are planned; "
            f"narrow [safety], or choose another {what}.objective"
        )
