"""The running focus on the simulated electron microscope: drives, stale frames, far starts, hold.

Where `bench focus` asks the controller alone, with the microscope as a function, everything runs
here as it does for a user: motion under its supervisor, frames through the stream, the beam's time
on the instrument's clock. Objects, pixels and optics are drawn as there; the truth is asked when a
run has ended, and the frames of a hold are judged one by one.

Mechanics: a gap of 5 DOF, hysteresis of 3 %, a drift of 0.3 DOF a second, and one frame in twenty
that is not the one asked for: it carries the right number and shows, and is stamped with, the
exposure before.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, Literal, TypeAlias, cast

import cv2
import numpy as np

from controller import app
from controller.bench import Report
from controller.bench.focus_baselines.methods import eye
from controller.bench.focus_baselines.problem import brightness
from controller.bench.numbers import quantile_row, share_row
from controller.errors import BadSettings, ControllerError
from controller.figures import Row
from controller.focusing.few_frames import FewFrames
from controller.focusing.hold import HoldSettings
from controller.focusing.holding import Hold, HoldFrame
from controller.focusing.once import focus_at, opened
from controller.focusing.play import measure_play, with_play
from controller.processes import processes
from controller.settings import Settings, validated
from drivers.api import Camera, Frame, Instrument, MissingFrames
from inference.focus.acnet import ACNet, Limits
from inference.focus.aenet import AENet
from inference.focus.likelihood import Prior
from simulator.clock import VirtualTimeLoop
from simulator.column import Column
from simulator.sem import SemSettings, SimulatedSem
from simulator.specimen import GENERATED

Task: TypeAlias = Literal["mechanics", "wide gap", "far", "hold", "hold still"]

TASKS: Final[tuple[Task, ...]] = ("mechanics", "far", "wide gap", "hold", "hold still")
_IN_FOCUS_DOF: Final = 0.5
_PARTIAL_EVERY_S: Final = 15.0
_DRIFT_DOF_PER_S: Final = 0.3
_STALE_RATIO: Final = 0.05
_GAP_DOF: Final = 5.0
_WIDE_GAP_DOF: Final = 10.0  # more than the last move that is made where nothing was measured
_HOLD_S: Final = 20.0
_SIDE_PX: Final = 256
_DWELL_NS: Final = 640.0  # 200 electrons a pixel at 50 pA
_QUICK: Final = {"mechanics": 10, "far": 8, "wide gap": 3, "hold": 1, "hold still": 1}
_FULL: Final = {"mechanics": 1_000, "far": 1_000, "wide gap": 100, "hold": 20, "hold still": 20}


@dataclass(frozen=True, slots=True)
class LoopRun:
    """One run; lengths in DOF."""

    task: Task
    number: int
    is_focused: bool
    off_dof: float  # |defocus| at the end
    start_dof: float
    frames: int
    stale_given: int
    stale_taken: int  # frames that a view was made of although they were stale
    gap_error_ratio: float | None  # of the measured gap over the true one, less 1; None: none
    live_off_dof: tuple[float, ...]  # of a hold, |defocus| of each live frame
    hold_s: float
    checks: int
    corrections: int
    reason: str


# --- one run --------------------------------------------------------------------------------


class _Tardy:
    """A camera some of whose frames are the ones before, under the new one's number."""

    def __init__(self, inner: Camera, ratio: float, seed: int) -> None:
        self._inner = inner
        self._ratio = ratio
        self._rng = np.random.default_rng([seed, 77])
        self.given = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the inner one has
        return getattr(self._inner, name)

    async def frames(self) -> AsyncIterator[Frame | MissingFrames]:
        before: Frame | None = None
        async for item in self._inner.frames():
            if isinstance(item, Frame):
                fresh = item
                if before is not None and self._rng.random() < self._ratio:
                    self.given += 1
                    item = replace(
                        item,
                        pixels=before.pixels,
                        exposed_from_s=before.exposed_from_s,
                        exposed_until_s=before.exposed_until_s,
                        pose=before.pose,
                    )
                before = fresh
            yield item


class _WithCamera:
    """The same instrument behind another camera."""

    def __init__(self, inner: SimulatedSem, camera: _Tardy) -> None:
        self._inner = inner
        self.camera = camera

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the inner one has
        return getattr(self._inner, name)

    async def __aenter__(self) -> _WithCamera:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._inner.__aexit__(*exc)


@cache
def _eye() -> AENet:
    return eye(threads=1)


def instrument_tables(seed: int, number: int, task: Task) -> tuple[dict[str, Any], float, float]:
    """Settings as a file would hold them, the depth of field in um, and the start in DOF."""
    rng = np.random.default_rng([seed, number, 11])
    kind = GENERATED[int(rng.integers(len(GENERATED)))]
    pixel_nm = float(np.exp(rng.uniform(math.log(3.0), math.log(40.0))))
    beam = {
        "convergence_mrad": float(rng.uniform(4.0, 9.0)),
        "spherical_mm": float(rng.uniform(0.0, 10.0)),
        "source_nm": float(rng.uniform(1.0, 3.0)),
        "current_pa": 50.0,
    }
    specimen = {
        "kind": kind,
        "seed": int(rng.integers(2**31)),
        "feature_nm": pixel_nm * float(np.exp(rng.uniform(math.log(12.0), math.log(50.0)))),
    }
    half_dof = 100.0 if task == "far" else 25.0
    start_dof = float(rng.uniform(-half_dof, half_dof))
    tables: dict[str, Any] = {
        "specimen": specimen,
        "beam": beam,
        "seed": seed * 100_003 + number,
        "frame": {"height_px": _SIDE_PX, "width_px": _SIDE_PX, "dwell_ns": _DWELL_NS},
        "fields": [
            {"name": "column", "pixel_size_nm": pixel_nm},
            {"name": "wide", "pixel_size_nm": 4.0 * pixel_nm},
        ],
    }
    plain = SemSettings.model_validate(tables)
    dof_um = plain.beam.depth_of_field_um(pixel_nm)
    bright, _ = brightness(Column(plain.column()), 0.002)
    tables["detector"] = {"gain_ratio": 0.9 / bright, "offset_ratio": 0.05}
    gap_dof = {"mechanics": _GAP_DOF, "wide gap": _WIDE_GAP_DOF}.get(task, 0.0)
    drift = 0.0 if task in ("far", "hold still") else _DRIFT_DOF_PER_S
    tables["lens"] = {
        "start_um": -10_000.0 + start_dof * dof_um,
        "backlash_um": min(gap_dof * dof_um, 100.0),
        "hysteresis_ratio": 0.03,
        "drift_um_per_min": 60.0 * drift * dof_um,
        "wander_um": 0.05 * dof_um,
    }
    return tables, dof_um, start_dof


def run_once(seed: int, number: int, task: Task) -> LoopRun:
    """One run on a loop whose clock jumps."""
    tables, dof_um, start_dof = instrument_tables(seed, number, task)
    settings = validated(
        Settings,
        {
            "instrument": {"driver": "simulated_sem", **tables},
            "run": {"clock": "ideal"},
            "safety": {"safe_lift_um": 0.0, "max_step_down_um": 5_000.0},
            "camera": {"exposure_s": _SIDE_PX * (_SIDE_PX * _DWELL_NS * 1e-9 + 20e-6)},
        },
        "bench",
    )
    inner = cast("SimulatedSem", app.open_instrument(settings, "bench"))
    tardy = _Tardy(inner.camera, _STALE_RATIO if task in ("mechanics", "hold") else 0.0, number)
    instrument = cast("Instrument", _WithCamera(inner, tardy))
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(charges_compute=False)) as runner:
        return runner.run(_ran(settings, instrument, inner, tardy, number, task, dof_um, start_dof))


async def _ran(
    settings: Settings,
    instrument: Instrument,
    inner: SimulatedSem,
    tardy: _Tardy,
    number: int,
    task: Task,
    dof_um: float,
    start_dof: float,
) -> LoopRun:
    range_dof = 110.0 if task == "far" else 27.5

    def make(_: float, __: bool) -> FewFrames:
        return FewFrames(_eye(), ACNet(Limits(), Prior(range_dof=range_dof)), dof_um)

    gap_error: float | None = None
    live: list[HoldFrame] = []
    checks = corrections = frames = 0
    is_focused, reason = False, ""
    async with opened(settings, instrument, make) as stand:
        try:
            if task == "wide gap":
                # A focus with too short a last move may be off by the gap: it is only a start.
                await focus_at(stand, _look_away)
                measured = await measure_play(stand)
                if measured.play is not None:
                    gap_error = measured.play.backlash_um / (_WIDE_GAP_DOF * dof_um) - 1.0
                    stand = with_play(stand, measured.play)
            result = await focus_at(stand, _look_away)
            is_focused, reason, frames = result.is_focused, result.reason, len(result.steps)
            stale_taken = sum(
                step.frame.exposed_from_s < before.frame.exposed_until_s
                for before, step in zip(result.steps, result.steps[1:], strict=False)
            )
            # As for a picture: when everything has settled.
            await asyncio.sleep(max(0.0, stand.motion.settled_at_s - stand.motion.clock()))
            off_um = abs(inner.truth().defocus_um)
            if task in ("hold", "hold still") and is_focused:
                hold = Hold(stand, HoldSettings(), live.append)
                held = await hold.run(_HOLD_S)
                checks, corrections = held.checks, held.corrections
        except ControllerError as error:
            reason, stale_taken, off_um = str(error), 0, abs(inner.truth().defocus_um)
    taken = {exposure.number: abs(exposure.defocus_um) for exposure in inner.truth().exposures}
    return LoopRun(
        task=task,
        number=number,
        is_focused=is_focused,
        off_dof=off_um / dof_um,
        start_dof=start_dof,
        frames=frames,
        stale_given=tardy.given,
        stale_taken=stale_taken,
        gap_error_ratio=gap_error,
        live_off_dof=tuple(taken[f.frame.number] / dof_um for f in live if f.purpose == "live"),
        hold_s=_HOLD_S if live else 0.0,
        checks=checks,
        corrections=corrections,
        reason=reason,
    )


def _look_away(_: object) -> None:
    return


# --- all runs -------------------------------------------------------------------------------


def run_job(seed: int, number: int, plan: dict[str, int]) -> list[LoopRun]:
    """All that is asked of one number, in a worker."""
    cv2.setNumThreads(1)
    most = max(plan.values())
    return [
        run_once(seed, number, task) for task in TASKS if number * plan[task] % most < plan[task]
    ]


def measure(quick: bool, seed: int) -> list[Row]:
    """Run everything; see the module."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """Run what is asked for, and say how far it is."""
    for part in report.only:
        if part not in TASKS:
            raise BadSettings("", "bench focus_loop --only", repr(part), ", ".join(TASKS))
    plan = {
        task: count if not report.only or task in report.only else 0
        for task, count in (_QUICK if quick else _FULL).items()
    }
    return rows_of(_all(plan, seed, report, lambda runs: rows_of(runs)))


def _all(
    plan: dict[str, int],
    seed: int,
    report: Report,
    rows: Callable[[Sequence[LoopRun]], list[Row]],
) -> list[LoopRun]:
    total = max(plan.values())
    found: dict[int, list[LoopRun]] = {}
    began_s = told_s = time.perf_counter()
    with processes(max(1, min(report.jobs or os.cpu_count() or 1, total))) as pool:
        waiting: dict[Future[list[LoopRun]], int] = {
            pool.submit(run_job, seed, number, plan): number for number in range(total)
        }
        for future in as_completed(waiting):
            if future.cancelled():
                continue
            found[waiting[future]] = future.result()
            if report.progress is not None:
                report.progress(f"{len(found)} of {total} instruments")
            now_s = time.perf_counter()
            if report.most_s is not None and now_s - began_s > report.most_s:
                for other in waiting:
                    other.cancel()
            elif report.partial is not None and now_s - told_s > _PARTIAL_EVERY_S:
                told_s = now_s
                report.partial(rows(_from_the_first(found)))
    return _from_the_first(found)


def _from_the_first(found: dict[int, list[LoopRun]]) -> list[LoopRun]:
    """Up to the first that is missing: a cut must not leave out the slow ones."""
    runs: list[LoopRun] = []
    for number in range(len(found)):
        if number not in found:
            break
        runs += found[number]
    return runs


def rows_of(runs: Sequence[LoopRun]) -> list[Row]:
    """The figures."""

    def of(task: Task) -> list[LoopRun]:
        return [run for run in runs if run.task == task]

    rows: list[Row] = []
    for task, name, bar in (
        ("mechanics", "backlash 5 DOF, hysteresis 3 %, drift 0.3 DOF/s, 5 % stale: success", 0.98),
        ("far", "100 DOF, wide field: success", 0.97),
        ("wide gap", "backlash 10 DOF, measured first: success", 0.98),
    ):
        mine = of(cast("Task", task))
        good = sum(run.is_focused and run.off_dof <= _IN_FOCUS_DOF for run in mine)
        sure = [run for run in mine if run.is_focused]
        rows.append(share_row(name, good, len(mine), bar))
        rows.append(
            share_row(
                f"{task}: sure and wrong",
                sum(run.off_dof > _IN_FOCUS_DOF for run in sure),
                len(mine),
                0.005,
                better="lower",
            )
        )
        rows.append(quantile_row(f"{task}: error, median", [r.off_dof for r in sure], 0.5, "DOF"))
        frames = [float(r.frames) for r in mine]
        rows.append(quantile_row(f"{task}: frames, median", frames, 0.5, "frames"))
        rows.append(quantile_row(f"{task}: frames, p95", frames, 0.95, "frames"))
    given = sum(run.stale_given for run in runs)
    rows.append(
        Row(
            "stale frames taken for fresh",
            float(sum(run.stale_taken for run in runs)),
            "frames",
            0.0,
            "lower",
            n=given,
            note="n: stale frames that were given",
        )
    )
    gaps = [abs(r.gap_error_ratio) for r in of("wide gap") if r.gap_error_ratio is not None]
    rows.append(quantile_row("backlash measured, error, p95", gaps, 0.95, "", 0.2))
    for task, name in (("hold", "hold, drift 0.3 DOF/s"), ("hold still", "hold, no drift")):
        mine = [run for run in of(cast("Task", task)) if run.hold_s > 0.0]
        live = [off for run in mine for off in run.live_off_dof]
        minutes = sum(run.hold_s for run in mine) / 60.0
        rows.append(
            share_row(
                f"{name}: live frames within 0.5 DOF",
                sum(off <= _IN_FOCUS_DOF for off in live),
                len(live),
                0.99,
            )
        )
        rows.append(quantile_row(f"{name}: error, p95", live, 0.95, "DOF", 0.5))
        for what, count in (
            ("corrections", sum(run.corrections for run in mine)),
            ("checks", sum(run.checks for run in mine)),
        ):
            most = 1.0 if task == "hold still" and what == "corrections" else None
            note = "of two blurred frames each" if what == "checks" else ""
            a_minute = count / minutes if minutes else None
            row = Row(f"{name}: {what}", a_minute, "1/min", most, "lower", n=len(mine), note=note)
            rows.append(row)
    return [row for row in rows if row.n]
