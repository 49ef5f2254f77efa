"""An instrument that lives in memory and costs nothing, so that what is measured is the controller.

Its pictures are prepared beforehand and handed out by reference, its exposures take no time, its
axes arrive when arithmetic says so. What a link does to frames on their way (dropping, doubling,
reordering) is a function that the bench hands in.
"""

# ruff: noqa: D102 - the Protocols in drivers.api say what their methods mean

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence

from controller.motion import Motion
from controller.safety import Envelope, Supervisor
from controller.settings import MotionSettings, SafetySettings
from drivers.api import (
    AxisLimits,
    Frame,
    Idle,
    Kinematics,
    MissingFrames,
    MotionState,
    Moving,
    Objective,
    Pixels,
    Pose,
)
from drivers.software_camera import FrameBuffer

OBJECTIVE = Objective("20x", 20.0, 0.45, 384.0)
_POSE = Pose(0.0, 0.0, 0.0, OBJECTIVE.name)
_LIMITS = AxisLimits(-50_000.0, 50_000.0)

# What the link makes of a number: the numbers that arrive now, in order.
Link = Callable[[int], Sequence[int]]


class MemoryCamera:
    """Hands out prepared pictures in turn; `picture_of` makes one for each number instead."""

    def __init__(
        self,
        pictures: Sequence[Pixels],
        *,
        buffer_frames: int = 64,
        link: Link | None = None,
        picture_of: Callable[[int], Pixels] | None = None,
    ) -> None:
        self._pictures = tuple(pictures)
        self._picture_of = picture_of
        self._link = link
        self._buffer = FrameBuffer(buffer_frames)
        self._taken: dict[int, Frame] = {}  # exposed, and still in the link's hands
        self.triggered = 0

    @property
    def name(self) -> str:
        return "camera in memory"

    @property
    def shape_px(self) -> tuple[int, int]:
        h_px, w_px = self._pictures[0].shape[:2]
        return h_px, w_px

    @property
    def bit_depth(self) -> int:
        return 8 * self._pictures[0].itemsize

    @property
    def exposure_s(self) -> float:
        return 0.0

    async def set_exposure_s(self, exposure_s: float) -> None:
        return

    async def trigger(self) -> int:
        return self._expose(asyncio.get_running_loop().time())

    async def start_live(self) -> None:
        return

    async def stop_live(self) -> None:
        return

    def frames(self) -> FrameBuffer:
        return self._buffer

    async def run_at(self, rate_hz: float, duration_s: float) -> float:
        """Free-run on the loop's clock; what the loop was too late for comes at once.

        Returns how far behind its schedule the loop fell at worst, in s.
        """
        loop = asyncio.get_running_loop()
        began_s, wanted, latest_s = loop.time(), 0, 0.0
        frames = round(rate_hz * duration_s)
        while wanted < frames:
            now_s = loop.time()
            due = min(frames, math.floor((now_s - began_s) * rate_hz) + 1)
            latest_s = max(latest_s, now_s - began_s - wanted / rate_hz)
            for _ in range(wanted, due):
                self._expose(now_s)
            wanted = max(wanted, due)
            await asyncio.sleep(max(0.0, began_s + wanted / rate_hz - loop.time()))
        return latest_s

    def close(self) -> None:
        self._buffer.end()

    def _expose(self, now_s: float) -> int:
        number = self.triggered
        self.triggered += 1
        if self._picture_of is not None:
            pixels = self._picture_of(number)
        else:
            pixels = self._pictures[number % len(self._pictures)]
        frame = Frame(
            pixels=pixels,
            number=number,
            exposed_from_s=now_s,
            exposed_until_s=now_s,
            pose=_POSE,
            pixel_size_nm=OBJECTIVE.pixel_size_nm,
            bit_depth=self.bit_depth,
        )
        if self._link is None:
            self._buffer.put(frame)
            return number
        self._taken[number] = frame
        for arrived in self._link(number):
            self._buffer.put(self._taken[arrived])
        while len(self._taken) > 8:
            del self._taken[next(iter(self._taken))]
        return number


class _MemoryAxis:
    """One or two coordinates on a straight way at constant speed."""

    def __init__(self, size: int, speed_um_per_s: float) -> None:
        self._from_um = self._to_um = (0.0,) * size
        self._began_s, self._lasts_s = -math.inf, 0.0
        self.speed_um_per_s = speed_um_per_s
        self.halted_at: float | None = None  # perf_counter at the last halt

    @property
    def kinematics(self) -> Kinematics:
        return Kinematics(self.speed_um_per_s, math.inf, 0.0, 0.01)

    def start(self, to_um: tuple[float, ...]) -> None:
        self._from_um, self._to_um = self.position(), to_um
        self._began_s = asyncio.get_running_loop().time()
        self._lasts_s = max(
            abs(b - a) / self.speed_um_per_s
            for a, b in zip(self._from_um, self._to_um, strict=True)
        )

    def position(self) -> tuple[float, ...]:
        since_s = asyncio.get_running_loop().time() - self._began_s
        if since_s >= self._lasts_s:
            return self._to_um
        share = since_s / self._lasts_s
        return tuple(a + share * (b - a) for a, b in zip(self._from_um, self._to_um, strict=True))

    def state(self) -> MotionState:
        since_s = asyncio.get_running_loop().time() - self._began_s
        return Idle() if since_s >= self._lasts_s else Moving()

    def halt(self) -> None:
        self.halted_at = time.perf_counter()
        self._from_um = self._to_um = self.position()
        self._lasts_s = 0.0


class MemoryStage:
    """`drivers.api.Stage`."""

    def __init__(self, speed_um_per_s: float) -> None:
        self.axis = _MemoryAxis(2, speed_um_per_s)

    @property
    def name(self) -> str:
        return "stage in memory"

    @property
    def limits_um(self) -> tuple[AxisLimits, AxisLimits]:
        return _LIMITS, _LIMITS

    @property
    def kinematics(self) -> Kinematics:
        return self.axis.kinematics

    async def start_move_um(self, x_um: float, y_um: float) -> None:
        self.axis.start((x_um, y_um))

    async def position_um(self) -> tuple[float, float]:
        x_um, y_um = self.axis.position()
        return x_um, y_um

    async def state(self) -> MotionState:
        return self.axis.state()

    async def halt(self) -> None:
        self.axis.halt()


class MemoryFocus:
    """`drivers.api.FocusAxis`."""

    def __init__(self, speed_um_per_s: float) -> None:
        self.axis = _MemoryAxis(1, speed_um_per_s)

    @property
    def name(self) -> str:
        return "focus in memory"

    @property
    def limits_um(self) -> AxisLimits:
        return _LIMITS

    @property
    def kinematics(self) -> Kinematics:
        return self.axis.kinematics

    async def start_move_um(self, z_um: float) -> None:
        self.axis.start((z_um,))

    async def position_um(self) -> float:
        return self.axis.position()[0]

    async def state(self) -> MotionState:
        return self.axis.state()

    async def halt(self) -> None:
        self.axis.halt()


class MemoryTurret:
    """`drivers.api.Turret` with one position."""

    @property
    def name(self) -> str:
        return "turret in memory"

    @property
    def objectives(self) -> Sequence[Objective]:
        return (OBJECTIVE,)

    async def select(self, objective: str) -> None:
        return

    async def current(self) -> Objective:
        return OBJECTIVE


class MemoryInstrument:
    """The devices above, joined."""

    def __init__(self, camera: MemoryCamera, speed_um_per_s: float = 1e6) -> None:
        self._camera = camera
        self._stage = MemoryStage(speed_um_per_s)
        self._focus = MemoryFocus(speed_um_per_s)
        self._turret = MemoryTurret()

    @property
    def name(self) -> str:
        return "instrument in memory"

    @property
    def camera(self) -> MemoryCamera:
        return self._camera

    @property
    def stage(self) -> MemoryStage:
        return self._stage

    @property
    def focus(self) -> MemoryFocus:
        return self._focus

    @property
    def turret(self) -> MemoryTurret:
        return self._turret

    @property
    def illumination(self) -> None:
        return None

    async def __aenter__(self) -> MemoryInstrument:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._camera.close()

    def describe(self) -> Mapping[str, str]:
        return {"instrument": self.name}

    def motion(self) -> Motion:
        """The controller's motion over this instrument, with its supervisor."""
        safety = SafetySettings()
        envelope = Envelope.within(safety, self.stage.limits_um, self.focus.limits_um)
        supervisor = Supervisor(envelope, self.turret.objectives, safety)
        return Motion(self, supervisor, MotionSettings())


def without_gaps(item: Frame | MissingFrames) -> Frame:
    """The frame; a gap is an error of the bench itself."""
    if isinstance(item, MissingFrames):
        raise TypeError(f"frames {item.first} to {item.last} are missing: {item.reason}")
    return item
