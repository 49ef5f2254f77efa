"""What every part of a running search works with: the open instrument and the facts so far.

It decides nothing and owns nothing. The parts (darkroom, chip_focus, overview, scan, revisits) are
handed one of these when the links are open, and from then on it stays as it is; whatever they have
to remember of their own, they keep themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from shapely.geometry import Polygon, box

from controller.errors import SearchFailed
from controller.geometry import CameraGeometry, axis_point_um, footprint_um
from controller.messages import Fact, Phase, PhaseStarted, PlannedTile
from controller.motion import Motion
from controller.safety import Expose, Supervisor
from controller.search.ports import Watcher
from controller.search.state import SearchState
from controller.search.tiling import MoveTime, trapezoid_move_time
from controller.settings import Settings
from controller.stream import FrameStream
from drivers.api import Instrument, Objective, Pose


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One session of a run, while its links are open."""

    settings: Settings
    instrument: Instrument
    supervisor: Supervisor
    motion: Motion
    stream: FrameStream
    geometry: CameraGeometry
    objectives: Mapping[str, Objective]  # by name
    analyst: Executor  # the one thread that looks at pixels
    watcher: Watcher
    state: SearchState  # the fold of all facts; read it, never write it
    post: Callable[[Fact], None]  # makes a fact known now, and durable soon
    now_s: Callable[[], float]  # on the run's clock, earlier sessions included

    def enter(self, phase: Phase, total: int, done: int) -> None:
        """A phase begins."""
        self.post(PhaseStarted(phase, self.now_s()))
        self.watcher.phase(phase, total, done)

    # --- optics ----------------------------------------------------------------------------

    @property
    def shape_px(self) -> tuple[int, int]:
        """(h, w) of a frame."""
        return self.instrument.camera.shape_px

    def objective(self) -> Objective:
        """The lens that is in; raises SearchFailed where nobody knows."""
        objective = self.motion.objective
        if objective is None:
            raise SearchFailed("the turret's position is not known")
        return objective

    def field_um(self, objective: Objective) -> tuple[float, float]:
        """Width and height of what one frame shows of the sample."""
        return footprint_um(self.shape_px, objective.pixel_size_nm, self.geometry)

    def centre_um(self, pose: Pose) -> tuple[float, float]:
        """The sample point in the middle of an image."""
        return axis_point_um(pose.stage_x_um, pose.stage_y_um, self.objectives[pose.objective])

    def light(self, source: str) -> Expose:
        """One exposure through the lens that is in, for the supervisor to permit."""
        width_um, height_um = self.field_um(self.objective())
        return Expose(self.settings.camera.exposure_s, width_um, height_um, source)

    # --- the plan --------------------------------------------------------------------------

    @property
    def move_time(self) -> MoveTime:
        """How long the stage takes between two points."""
        return trapezoid_move_time(self.instrument.stage.kinematics)

    def overview_rectangle(self) -> Polygon:
        """Where the chip is looked for, within the envelope."""
        overview, envelope = self.settings.overview, self.supervisor.envelope
        x_um, y_um = overview.centre_x_um, overview.centre_y_um
        here = self.motion.where
        x_um = here.x.low_um if x_um is None else x_um
        y_um = here.y.low_um if y_um is None else y_um
        wanted = box(
            x_um - overview.width_um / 2,
            y_um - overview.height_um / 2,
            x_um + overview.width_um / 2,
            y_um + overview.height_um / 2,
        )
        allowed = box(envelope.x.min_um, envelope.y.min_um, envelope.x.max_um, envelope.y.max_um)
        area = wanted.intersection(allowed)
        if not isinstance(area, Polygon) or area.is_empty:
            raise SearchFailed("the overview's rectangle lies outside the safety envelope")
        return area

    def chip_polygon(self) -> Polygon:
        """The chip, or the area in which it is looked for."""
        if self.state.chip is not None:
            return Polygon(self.state.chip.outline_um)
        return self.overview_rectangle()

    @property
    def tiles(self) -> tuple[PlannedTile, ...]:
        """Of the scan; () before it is planned."""
        return () if self.state.scan is None else self.state.scan.tiles

    def is_scanned(self) -> bool:
        """Whether every tile is on the disk."""
        return bool(self.tiles) and all(self.state.is_done("tile", t.index) for t in self.tiles)
