"""Holding focus: when it pays to look and to move; and the running loop on the simulated SEM."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from controller import app
from controller.commands.overrides import overridden
from controller.focusing.few_frames import FewFrames
from controller.focusing.hold import (
    Check,
    Correct,
    Held,
    HoldSettings,
    Watch,
    begin_hold,
    found,
    moved_by_hand,
    next_hold_step,
    not_found,
    predicted,
    seen,
)
from controller.focusing.holding import Hold, HoldFrame, HoldResult
from controller.focusing.once import Stand, focus_at, opened
from controller.focusing.play import measure_play, with_play
from controller.settings import Settings, load_toml, validated
from inference.focus.acnet import ACNet, Limits
from inference.focus.aenet import AENet
from inference.focus.likelihood import Prior
from simulator.clock import VirtualTimeLoop
from simulator.sem import SimulatedSem

SETTINGS = HoldSettings()


def followed(rate: float, for_s: float, noise: float = 0.05) -> tuple[list[float], int, int]:
    """A lens under the policy alone; |error| of each live frame, checks and corrections."""
    rng = np.random.default_rng(1)
    held, lens, now_s = begin_hold(0.0, 0.05, 0.0, SETTINGS), 0.0, 0.0
    off, checks, corrections = list[float](), 0, 0
    while now_s < for_s:
        match next_hold_step(held, lens, now_s, SETTINGS):
            case Check():
                now_s += 0.6
                held = found(
                    held, rate * now_s + noise * rng.standard_normal(), noise, now_s, SETTINGS
                )
                lens, checks = predicted(held, now_s, SETTINGS).z, checks + 1
            case Correct(z):
                lens, corrections, now_s = z, corrections + 1, now_s + 0.05
            case Watch():
                pass
        now_s += 0.1
        off.append(abs(lens - rate * now_s))
    return off, checks, corrections


@pytest.mark.parametrize("rate", [0.3, -0.3, 0.05])
def test_a_steady_drift_is_followed_with_hardly_a_check(rate: float) -> None:
    off, checks, corrections = followed(rate, 120.0)
    assert max(off) < 0.5
    assert checks < 40
    assert corrections >= 10


def test_without_drift_nothing_moves() -> None:
    off, checks, corrections = followed(0.0, 300.0)
    assert corrections == 0
    assert max(off) < 0.2
    assert checks < 60


def held_with(**changes: float) -> Held:
    plain = begin_hold(0.0, 0.02, 0.0, SETTINGS)
    values = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    return Held(**{**values, "rate_variance": 0.0, **changes})


@pytest.mark.parametrize(
    ("held", "lens", "now_s", "expected"),
    [
        (held_with(), 0.0, 1.0, Watch),
        (held_with(), 0.1, 1.0, Watch),  # not worth a move
        (held_with(), 0.3, 1.0, Correct),
        (held_with(z_variance=0.2**2), 0.3, 1.0, Check),  # not sure enough to move
        (held_with(), 0.0, 61.0, Check),  # late
        (held_with(is_doubtful=True), 0.0, 1.0, Check),
        (held_with(is_doubtful=True, rests_until_s=5.0), 0.0, 1.0, Watch),
    ],
)
def test_what_pays(held: Held, lens: float, now_s: float, expected: type) -> None:
    assert isinstance(next_hold_step(held, lens, now_s, SETTINGS), expected)


def test_a_plain_drift_is_met_half_a_move_ahead() -> None:
    step = next_hold_step(held_with(rate=0.3), 0.0, 1.0, SETTINGS)
    assert isinstance(step, Correct)
    assert step.z == pytest.approx(0.3 + 0.5 * SETTINGS.least_move)


def test_sigma_grows_with_time_and_falls_with_a_check() -> None:
    held = begin_hold(0.0, 0.05, 0.0, SETTINGS)
    later = predicted(held, 2.0, SETTINGS)
    assert later.z_variance > 0.3**2
    checked = found(held, 0.4, 0.05, 2.0, SETTINGS)
    assert checked.z == pytest.approx(0.4, abs=0.02)
    assert checked.rate == pytest.approx(0.2, abs=0.02)
    assert math.sqrt(checked.z_variance) < 0.06
    assert checked.rate_variance < held.rate_variance


def test_a_jump_is_believed_and_the_drift_forgotten() -> None:
    held = held_with(rate=0.3)
    after = found(held, 9.0, 0.05, 1.0, SETTINGS)
    assert after.z == 9.0
    assert after.rate_variance == SETTINGS.first_rate_sd**2


def test_a_blurred_frame_is_reason_to_look() -> None:
    held = seen(begin_hold(0.0, 0.05, 0.0, SETTINGS), 5.0, 0.02, SETTINGS)
    assert not seen(held, 4.95, 0.02, SETTINGS).is_doubtful
    blurred = seen(held, 4.0, 0.02, SETTINGS)
    assert blurred.is_doubtful
    assert not not_found(blurred, 1.0, SETTINGS).is_doubtful
    # An old reference yields: the view may have moved on to something plainer.
    for _ in range(200):
        held = seen(held, 4.0, 0.02, SETTINGS)
    assert held.sharp == pytest.approx(4.0, abs=0.2)


def test_what_the_operator_chose_is_where_it_goes_on() -> None:
    held = moved_by_hand(held_with(rate=0.3), 7.0, 3.0, SETTINGS)
    assert (held.z, held.rate) == (7.0, 0.0)


# --- the loop ---------------------------------------------------------------------------------

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "simulated_sem.toml"
SMALL = (
    "run.clock=ideal",
    "instrument.frame.height_px=256",
    "instrument.frame.width_px=256",
    "camera.exposure_s=0.047",
    "instrument.stigmator.own_x_um=0.0",
    "instrument.stigmator.own_y_um=0.0",
    "instrument.lens.start_um=-10_003.0",
    "instrument.lens.wander_um=0.0",
)
DOF_UM = 5.0e-3 / 6.0e-3


def on_the_sem(use, *overrides):
    """Run `use(stand, instrument)` on an opened simulated SEM in focus."""
    settings = validated(Settings, overridden(load_toml(CONFIG)[0], [*SMALL, *overrides]), "test")
    instrument = app.open_instrument(settings, "test")
    assert isinstance(instrument, SimulatedSem)

    def make(dof_um: float, has_stigmator: bool) -> FewFrames:
        return FewFrames(AENet(), ACNet(Limits(), Prior(range_dof=25.0)), dof_um)

    async def run():
        async with opened(settings, instrument, make) as stand:
            assert (await focus_at(stand, lambda _: None)).is_focused
            return await use(stand, instrument)

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(charges_compute=False)) as runner:
        return runner.run(run())


def held_for(for_s: float, *overrides: str) -> tuple[HoldResult, list[float]]:
    frames: list[HoldFrame] = []

    async def use(stand: Stand, instrument: SimulatedSem) -> tuple[HoldResult, list[float]]:
        result = await Hold(stand, HoldSettings(), frames.append).run(for_s)
        off = {e.number: abs(e.defocus_um) / DOF_UM for e in instrument.truth().exposures}
        return result, [off[f.frame.number] for f in frames if f.purpose == "live"]

    return on_the_sem(use, *overrides)


def test_a_drift_of_a_third_of_a_dof_a_second_is_held() -> None:
    result, live = held_for(12.0, f"instrument.lens.drift_um_per_min={0.3 * 60 * DOF_UM}")
    assert len(live) > 100
    assert max(live) <= 0.5
    assert abs(result.rate_per_s) == pytest.approx(0.3, abs=0.03)
    assert result.corrections >= 5
    assert result.checks <= 8


def test_no_hunting_without_drift() -> None:
    result, live = held_for(12.0, "instrument.lens.drift_um_per_min=0.0")
    assert result.corrections == 0
    assert result.checks <= 6
    assert max(live) <= 0.5


def test_while_the_operator_has_it_nothing_is_moved() -> None:
    async def use(stand: Stand, instrument: SimulatedSem) -> tuple[int, int, HoldResult]:
        hold = Hold(stand, HoldSettings())
        await hold.run(2.0)
        supervisor = stand.motion.supervisor
        assert supervisor.take_lease("operator", stand.motion.clock(), 3.0) is not None
        before = len(instrument.truth().commands)
        await hold.run(2.5)
        during = len(instrument.truth().commands) - before
        await stand.motion.move_focus_um(stand.z_um + 2.0, "operator")
        supervisor.release_lease("operator")
        chosen_um = stand.z_um
        after = await hold.run(0.05)
        return during, round(abs(stand.z_um - chosen_um) / DOF_UM), after

    during, jumped, _ = on_the_sem(use, f"instrument.lens.drift_um_per_min={0.3 * 60 * DOF_UM}")
    assert during == 0
    assert jumped <= 4  # a check's width at most: it goes on from what the operator chose


@pytest.mark.parametrize("purpose", ["live", "check"])
def test_a_cancel_ends_it_within_a_frame_and_in_focus(purpose: str) -> None:
    async def use(stand: Stand, instrument: SimulatedSem) -> tuple[float, float]:
        task: asyncio.Task[HoldResult]
        asked_s: list[float] = []

        def on_frame(frame: HoldFrame) -> None:
            if frame.purpose == purpose and not asked_s:
                asked_s.append(stand.motion.clock())
                task.cancel()

        task = asyncio.create_task(Hold(stand, HoldSettings(), on_frame).run(60.0))
        with pytest.raises(asyncio.CancelledError):
            await task
        took_s = stand.motion.clock() - asked_s[0]
        await asyncio.sleep(0.3)
        return took_s, abs(instrument.truth().defocus_um) / DOF_UM

    took_s, off_dof = on_the_sem(use)
    assert took_s < 0.25
    assert off_dof < 0.5


def test_backlash_is_measured_from_both_sides_and_taken_up() -> None:
    async def use(stand: Stand, instrument: SimulatedSem) -> tuple[object, Stand, float]:
        measured = await measure_play(stand)
        assert measured.play is not None, measured.reason
        wider = with_play(stand, measured.play)
        result = await focus_at(wider, lambda _: None)
        assert result.is_focused
        await asyncio.sleep(0.3)
        return measured.play, wider, abs(instrument.truth().defocus_um) / DOF_UM

    play, wider, off_dof = on_the_sem(use, f"instrument.lens.backlash_um={9.0 * DOF_UM}")
    assert play.backlash_um == pytest.approx(9.0 * DOF_UM, rel=0.2)
    assert play.hysteresis_ratio == pytest.approx(0.03, abs=0.02)
    assert wider.few.overshoot_um > 9.0 * DOF_UM
    assert off_dof < 0.5
