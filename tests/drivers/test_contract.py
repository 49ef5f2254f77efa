"""What every instrument must do, whatever it is made of: one list of tests over all of them.

A new driver adds one `Case` to `CASES`. A case opens an instrument on the event loop it belongs to
and says where it is safe to move; everything else follows from the Protocols.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from drivers.api import (
    Frame,
    Idle,
    Illumination,
    Instrument,
    MissingFrames,
    Moving,
    Objective,
    Pixels,
)
from drivers.errors import LinkLost, Refused
from drivers.replay import ReplayMicroscope, ReplaySettings
from simulator.clock import VirtualTimeLoop
from simulator.optical_microscope import (
    CameraSettings,
    MicroscopeSettings,
    SimulatedMicroscope,
    View,
)
from simulator.sem import FrameSettings, SemSettings, SimulatedSem
from simulator.tem_instrument import FrameSettings as TemFrameSettings
from simulator.tem_instrument import SimulatedTem, TemInstrumentSettings


@dataclass(frozen=True)
class Case:
    """One instrument under test."""

    name: str
    open: Callable[[Path], AbstractAsyncContextManager[Instrument]]
    loop: Callable[[], asyncio.AbstractEventLoop] | None
    reach_um: float  # the stage may go this far from where it stands at the start
    lift_um: float  # and the focus axis this far up
    halt_within_s: float


class EvenScene:
    """Nothing to see: an even grey field in focus at z = 0."""

    def surface_z_um(self, x_um: float, y_um: float) -> float:
        return 0.0

    def picture(self, view: View) -> Pixels:
        return np.full((*view.shape_px, 3), 100, np.uint8)


def simulated(folder: Path) -> AbstractAsyncContextManager[Instrument]:
    settings = MicroscopeSettings(camera=CameraSettings(height_px=60, width_px=96))
    return SimulatedMicroscope(settings, EvenScene())


def scanned(folder: Path) -> AbstractAsyncContextManager[Instrument]:
    return SimulatedSem(SemSettings(frame=FrameSettings(height_px=60, width_px=96)))


def transmitted(folder: Path) -> AbstractAsyncContextManager[Instrument]:
    frame = TemFrameSettings(height_px=60, width_px=96)
    return SimulatedTem(TemInstrumentSettings(frame=frame))


def replay(folder: Path, speed_um_per_s: float | None = None) -> ReplayMicroscope:
    random = np.random.default_rng(3)
    for number in range(4):
        cv2.imwrite(str(folder / f"{number}.png"), random.integers(0, 255, (60, 96, 3), np.uint8))
    return ReplayMicroscope(
        ReplaySettings(images=str(folder), pixel_size_nm=2_000, speed_um_per_s=speed_um_per_s)
    )


CASES = [
    Case("simulated", simulated, VirtualTimeLoop, reach_um=500, lift_um=200, halt_within_s=0.2),
    Case("simulated SEM", scanned, VirtualTimeLoop, reach_um=500, lift_um=200, halt_within_s=0.2),
    Case("simulated TEM", transmitted, VirtualTimeLoop, reach_um=5, lift_um=2, halt_within_s=0.2),
    Case("replay", replay, None, reach_um=80, lift_um=20, halt_within_s=0.1),
    Case(
        "replay that takes its time",
        lambda folder: replay(folder, speed_um_per_s=2_000),
        VirtualTimeLoop,
        reach_um=80,
        lift_um=20,
        halt_within_s=0.1,
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def play(case: Case, tmp_path: Path) -> Callable[[Callable[[Instrument], Awaitable[Any]]], Any]:
    """Run a scene with the opened instrument; afterwards nothing may be left running."""

    def run(scene: Callable[[Instrument], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with case.open(tmp_path) as instrument, asyncio.timeout(30):
                result = await scene(instrument)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"still running after closing: {left}"
            return result

        with asyncio.Runner(loop_factory=case.loop) as runner:
            return runner.run(main())

    return run


Play = Callable[[Callable[[Instrument], Awaitable[Any]]], Any]


async def arrived(axis: Any) -> None:
    """Wait until a stage or focus axis reports that it stands still."""
    async with asyncio.timeout(20):
        while True:
            match await axis.state():
                case Idle():
                    return
                case Moving():
                    await asyncio.sleep(0.002)
                case other:
                    pytest.fail(f"unexpected state {other}")


async def next_frame(instrument: Instrument) -> Frame:
    async with asyncio.timeout(10):
        item = await anext(aiter(instrument.camera.frames()))
    assert isinstance(item, Frame)
    return item


def test_it_says_who_it_is(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        devices = [instrument, instrument.camera, instrument.stage, instrument.focus]
        names = [each.name for each in [*devices, instrument.turret]]
        assert all(names)
        assert all(isinstance(v, str) and v for v in instrument.describe().values())
        assert instrument.illumination is None or isinstance(instrument.illumination, Illumination)

    play(scene)


def test_a_frame_is_what_was_promised(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        camera, loop = instrument.camera, asyncio.get_running_loop()
        await camera.set_exposure_s(0.01)
        assert camera.exposure_s == 0.01
        called_s = loop.time()
        number = await camera.trigger()
        ended_s = loop.time()
        frame = await next_frame(instrument)
        objective = await instrument.turret.current()
        assert frame.number == number == 0
        assert called_s <= frame.exposed_from_s < frame.exposed_until_s <= ended_s
        assert frame.exposed_until_s - frame.exposed_from_s >= 0.01 - 1e-9
        assert frame.pixels.shape in (camera.shape_px, (*camera.shape_px, 3))
        assert frame.pixels.dtype == (np.uint8 if camera.bit_depth == 8 else np.uint16)
        assert frame.bit_depth == camera.bit_depth
        assert not frame.pixels.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            frame.pixels[0, 0] = 1
        assert frame.pose.objective == objective.name
        assert frame.pixel_size_nm == objective.pixel_size_nm

    play(scene)


def test_numbers_count_up_and_frames_come_in_order(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        last_s = -math.inf
        for expected in range(6):
            assert await instrument.camera.trigger() == expected
            frame = await next_frame(instrument)
            assert frame.number == expected
            assert frame.exposed_from_s > last_s
            last_s = frame.exposed_until_s

    play(scene)


def test_frames_that_nobody_fetches_are_reported_missing(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        exposed = [await instrument.camera.trigger() for _ in range(40)]
        accounted: list[int] = []
        async with asyncio.timeout(10):
            async for item in instrument.camera.frames():
                match item:
                    case Frame():
                        accounted.append(item.number)
                    case MissingFrames():
                        accounted += range(item.first, item.last + 1)
                if len(accounted) >= len(exposed):
                    break
        assert sorted(accounted) == exposed

    play(scene)


def test_a_move_arrives_and_the_frame_says_so(play: Play, case: Case) -> None:
    async def scene(instrument: Instrument) -> None:
        stage, loop = instrument.stage, asyncio.get_running_loop()
        x_um, y_um = await stage.position_um()
        target_um = (x_um + case.reach_um, y_um - case.reach_um / 2)
        begun_s = loop.time()
        await stage.start_move_um(*target_um)
        await arrived(stage)
        settled_s = loop.time()
        distance_um, kinematics = case.reach_um, stage.kinematics
        ramp_s = kinematics.speed_um_per_s / kinematics.acceleration_um_per_s2
        assert settled_s - begun_s <= distance_um / kinematics.speed_um_per_s + 2 * ramp_s + 0.5
        tolerance_um = 2 * kinematics.resolution_um
        assert await stage.position_um() == pytest.approx(target_um, abs=tolerance_um)
        await instrument.camera.trigger()
        frame = await next_frame(instrument)
        assert frame.exposed_from_s >= settled_s
        pose_um = frame.pose.stage_x_um, frame.pose.stage_y_um
        assert pose_um == pytest.approx(target_um, abs=tolerance_um)

    play(scene)


def test_the_focus_axis_arrives(play: Play, case: Case) -> None:
    async def scene(instrument: Instrument) -> None:
        focus = instrument.focus
        target_um = await focus.position_um() + case.lift_um
        await focus.start_move_um(target_um)
        await arrived(focus)
        tolerance_um = 2 * focus.kinematics.resolution_um
        assert await focus.position_um() == pytest.approx(target_um, abs=tolerance_um)
        await instrument.camera.trigger()
        frame = await next_frame(instrument)
        assert frame.pose.focus_z_um == pytest.approx(target_um, abs=tolerance_um)

    play(scene)


@pytest.mark.parametrize("device", ["stage", "focus"])
def test_halt_stops_a_move_in_the_middle(play: Play, case: Case, device: str) -> None:
    async def scene(instrument: Instrument) -> None:
        loop = asyncio.get_running_loop()
        axis: Any = getattr(instrument, device)
        await axis.halt()  # also when nothing moves
        start_um = np.atleast_1d(await axis.position_um())
        way_um = (case.reach_um, -case.reach_um / 2) if device == "stage" else (case.lift_um,)
        target_um = start_um + way_um
        await axis.start_move_um(*target_um.tolist())
        was_moving = isinstance(await axis.state(), Moving)
        for _ in range(3):
            await asyncio.sleep(0.002)
        halted_s = loop.time()
        await axis.halt()
        await arrived(axis)
        assert loop.time() - halted_s <= case.halt_within_s
        stopped_um = np.atleast_1d(await axis.position_um())
        if was_moving:
            assert np.all(abs(target_um - stopped_um) > 3 * axis.kinematics.resolution_um)
        await asyncio.sleep(0.1)
        later_um = np.atleast_1d(await axis.position_um())
        assert later_um == pytest.approx(stopped_um, abs=3 * axis.kinematics.resolution_um)

    play(scene)


def test_beyond_the_travel_is_refused_and_nothing_moves(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        stage, focus = instrument.stage, instrument.focus
        at_um, z_um = await stage.position_um(), await focus.position_um()
        x_limits, y_limits = stage.limits_um
        assert x_limits.min_um < x_limits.max_um
        assert y_limits.min_um < y_limits.max_um
        for x_um, y_um in (
            (x_limits.max_um + 1, at_um[1]),
            (at_um[0], y_limits.min_um - 1),
            (math.nan, at_um[1]),
            (at_um[0], math.inf),
        ):
            with pytest.raises(Refused):
                await stage.start_move_um(x_um, y_um)
        for bad_um in (focus.limits_um.min_um - 1, focus.limits_um.max_um + 1, math.nan):
            with pytest.raises(Refused):
                await focus.start_move_um(bad_um)
        assert isinstance(await stage.state(), Idle)
        assert isinstance(await focus.state(), Idle)
        tolerance_um = 3 * stage.kinematics.resolution_um
        assert await stage.position_um() == pytest.approx(at_um, abs=tolerance_um)
        tolerance_um = 3 * focus.kinematics.resolution_um
        assert await focus.position_um() == pytest.approx(z_um, abs=tolerance_um)

    play(scene)


@pytest.mark.parametrize("exposure_s", [0.0, -1.0, 1e9, math.nan])
def test_an_impossible_exposure_is_refused(play: Play, exposure_s: float) -> None:
    async def scene(instrument: Instrument) -> None:
        before_s = instrument.camera.exposure_s
        with pytest.raises(Refused):
            await instrument.camera.set_exposure_s(exposure_s)
        assert instrument.camera.exposure_s == before_s

    play(scene)


def test_one_exposure_at_a_time(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        await instrument.camera.set_exposure_s(0.05)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(instrument.camera.trigger())
            await asyncio.sleep(0.01)
            with pytest.raises(Refused):
                await instrument.camera.trigger()
        assert first.result() == 0
        assert (await next_frame(instrument)).number == 0

    play(scene)


def test_live_frames_come_by_themselves_until_stopped(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        camera = instrument.camera
        await camera.start_live()
        with pytest.raises(Refused):
            await camera.trigger()
        numbers = [(await next_frame(instrument)).number for _ in range(5)]
        await camera.stop_live()
        await camera.stop_live()  # twice does no harm
        assert numbers == [0, 1, 2, 3, 4]
        after = await camera.trigger()
        assert after >= 5
        while (frame := await next_frame(instrument)).number < after:
            pass
        assert frame.number == after

    play(scene)


def test_the_turret_brings_what_was_asked_and_refuses_the_unknown(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        turret = instrument.turret
        names = [objective.name for objective in turret.objectives]
        assert len(set(names)) == len(names)
        at_start = await turret.current()
        with pytest.raises(Refused):
            await turret.select("the one that is not there")
        assert await turret.current() == at_start
        for objective in turret.objectives:
            assert isinstance(objective, Objective)
            await turret.select(objective.name)
            assert await turret.current() == objective
            await instrument.camera.trigger()
            frame = await next_frame(instrument)
            assert frame.pose.objective == objective.name
            assert frame.pixel_size_nm == objective.pixel_size_nm

    play(scene)


def test_the_lamp_if_there_is_one(play: Play) -> None:
    async def scene(instrument: Instrument) -> None:
        lamp = instrument.illumination
        if lamp is None:
            return
        await lamp.set_intensity_ratio(0.25)
        assert await lamp.intensity_ratio() == pytest.approx(0.25, abs=0.01)
        for bad in (-0.1, 1.1, math.nan):
            with pytest.raises(Refused):
                await lamp.set_intensity_ratio(bad)
        assert await lamp.intensity_ratio() == pytest.approx(0.25, abs=0.01)

    play(scene)


def test_closing_ends_the_frames(case: Case, tmp_path: Path) -> None:
    async def main() -> list[int]:
        async with case.open(tmp_path) as instrument:
            frames = instrument.camera.frames()
            number = await instrument.camera.trigger()
            seen: list[int] = []

            async def consume() -> None:
                async for item in frames:
                    seen.append(item.number if isinstance(item, Frame) else item.last)

            consumer = asyncio.create_task(consume())
            await asyncio.sleep(0.5)
            assert seen == [number]
            await instrument.camera.trigger()
        async with asyncio.timeout(5):
            await consumer
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return seen

    with asyncio.Runner(loop_factory=case.loop) as runner:
        assert runner.run(main()) == [0, 1]  # the second as a frame, or as a missing one


def test_closing_in_the_middle_of_everything(case: Case, tmp_path: Path) -> None:
    async def main() -> None:
        async with case.open(tmp_path) as instrument:
            x_um, y_um = await instrument.stage.position_um()
            await instrument.stage.start_move_um(x_um + case.reach_um, y_um)
            await instrument.camera.start_live()
            await asyncio.sleep(0.03)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(LinkLost):
            await instrument.stage.start_move_um(x_um, y_um)
        with pytest.raises(LinkLost):
            await instrument.camera.trigger()

    with asyncio.Runner(loop_factory=case.loop) as runner:
        runner.run(main())


def test_an_error_inside_passes_through_the_closing(case: Case, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with case.open(tmp_path) as instrument:
                await instrument.camera.trigger()
                raise ZeroDivisionError
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=case.loop) as runner:
        runner.run(main())
