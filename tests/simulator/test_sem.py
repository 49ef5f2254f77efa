"""The simulated SEM: lens, stigmator, beam and stage, each against what it is said to do.

What every instrument must do is tested in tests/drivers/test_contract.py.
"""

import asyncio
import math
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from drivers.api import Beam, Frame, Idle, Moving, Stigmator, Unknown
from drivers.errors import LinkLost, Refused
from simulator.clock import VirtualTimeLoop
from simulator.faults import FaultSettings
from simulator.scan import DetectorSettings, ScanSettings
from simulator.sem import (
    FieldSettings,
    FrameSettings,
    Lag,
    LensSettings,
    SemSettings,
    SemStageSettings,
    SimulatedSem,
    StigmatorSettings,
)
from simulator.specimen import SpecimenSettings

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "simulated_sem.toml"
STEADY = SemStageSettings(drift_um_per_min=0.0, wander_um=0.0, encoder_noise_um=0.0)
IDEAL = LensSettings(drift_um_per_min=0.0, wander_um=0.0, hysteresis_ratio=0.0, settle_ratio=0.0)


def settings(lens=IDEAL, **more):
    base = {
        "frame": FrameSettings(height_px=64, width_px=64),
        "stage_x": STEADY,
        "stage_y": STEADY,
    }
    return SemSettings(lens=lens, **{**base, **more})


def play(sem, scene):
    async def main():
        async with sem, asyncio.timeout(60):
            return await scene(sem)

    with asyncio.Runner(loop_factory=partial(VirtualTimeLoop, charges_compute=False)) as runner:
        return runner.run(main())


async def arrived(axis):
    for _ in range(10_000):
        if not isinstance(await axis.state(), Moving):
            break
        await asyncio.sleep(0.001)
    assert isinstance(await axis.state(), Idle)


async def focus_to(sem, z_um):
    await sem.focus.start_move_um(z_um)
    await arrived(sem.focus)
    await asyncio.sleep(sem.focus.kinematics.settle_s)


async def frame(sem):
    await sem.camera.trigger()
    item = await anext(aiter(sem.camera.frames()))
    assert isinstance(item, Frame)
    return item


def sharpness(pixels):
    grey = pixels.astype(float)
    return float(((grey[:, 2:] - grey[:, :-2]) ** 2).mean() / grey.var())


def test_a_longer_working_distance_is_a_lower_focus_and_a_negative_defocus():
    async def scene(sem):
        assert await sem.focus.position_um() == -10_000.0
        assert sem.truth().defocus_um == pytest.approx(0.0, abs=1e-9)
        await focus_to(sem, -10_007.0)  # the lens now focuses 7 um below the sample
        assert sem.truth().defocus_um == pytest.approx(-7.0)
        assert (await frame(sem)).optics["working_distance_mm"] == pytest.approx(10.007)
        await focus_to(sem, -9_996.0)
        assert sem.truth().defocus_um == pytest.approx(4.0)
        assert sem.truth().best_focus_z_um == pytest.approx(-10_000.0)

    play(SimulatedSem(settings()), scene)


def test_what_stands_higher_is_in_focus_at_a_shorter_working_distance():
    async def scene(sem):
        assert sem.truth().defocus_um == pytest.approx(-3.0, abs=0.01)
        await sem.stage.start_move_um(1_000.0, 0.0)
        await arrived(sem.stage)
        await asyncio.sleep(1.0)
        assert sem.truth().best_focus_z_um == pytest.approx(-10_000.0 + 3.0 + 5.0, abs=0.05)

    specimen = SpecimenSettings(height_um=3.0, tilt_um_per_mm=(5.0, 0.0))
    play(SimulatedSem(settings(specimen=specimen)), scene)


def test_a_frame_says_what_it_was_taken_with_and_the_truth_says_what_it_was():
    async def scene(sem):
        await sem.camera.set_exposure_s(0.02)
        await sem.stigmator.set_um(1.0, -2.0)
        await asyncio.sleep(sem.stigmator.settle_s)
        taken = await frame(sem)
        exposure = sem.truth().exposures[-1]
        assert taken.pixels.shape == (64, 64)
        assert taken.pixels.dtype == np.uint8
        assert taken.pixel_size_nm == 5.0
        assert taken.pose.focus_z_um == -10_000.0
        assert taken.pose.objective == "column"
        assert taken.exposed_until_s - taken.exposed_from_s == pytest.approx(0.02)
        dwell_ns = (0.02 / 64 - 20e-6) / 64 * 1e9
        assert taken.optics["dwell_ns"] == pytest.approx(dwell_ns)
        assert sem.beam.dwell_ns == pytest.approx(dwell_ns)
        assert taken.optics["electrons_per_px"] == pytest.approx(dwell_ns * 50 / 160.2177, rel=1e-4)
        dof_um = 5.0 / 6.0
        assert taken.optics["depth_of_field_um"] == pytest.approx(dof_um)
        assert sem.beam.depth_of_field_um(5.0) == pytest.approx(dof_um)
        assert sem.truth().depth_of_field_um == pytest.approx(dof_um)
        assert (taken.optics["stig_x_um"], taken.optics["stig_y_um"]) == (1.0, -2.0)
        assert exposure.number == taken.number
        # The column's own and what the coils add.
        assert (exposure.stig_x_um, exposure.stig_y_um) == pytest.approx((1.5, -1.5))
        assert exposure.defocus_um == pytest.approx(0.0, abs=1e-9)
        assert exposure.electrons_per_px == taken.optics["electrons_per_px"]

    play(SimulatedSem(settings(stigmator=StigmatorSettings(own_x_um=0.5, own_y_um=0.5))), scene)


def test_stigmator_and_beam_are_what_the_protocols_say():
    sem = SimulatedSem(settings())
    assert isinstance(sem.stigmator, Stigmator)
    assert isinstance(sem.beam, Beam)
    assert sem.illumination is None
    assert (sem.beam.voltage_kv, sem.beam.current_pa, sem.beam.convergence_mrad) == (5.0, 50.0, 6.0)


def test_the_stigmator_takes_away_what_the_column_has():
    async def scene(sem):
        before = sharpness((await frame(sem)).pixels)
        await sem.stigmator.set_um(-4.0, 3.0)
        assert await sem.stigmator.get_um() == (-4.0, 3.0)
        truth = sem.truth()
        assert (truth.stig_x_um, truth.stig_y_um) == pytest.approx((0.0, 0.0))
        after = sharpness((await frame(sem)).pixels)
        assert after > 1.5 * before
        for bad in ((51.0, 0.0), (0.0, -51.0), (math.nan, 0.0)):
            with pytest.raises(Refused):
                await sem.stigmator.set_um(*bad)
        assert await sem.stigmator.get_um() == (-4.0, 3.0)
        assert [each.device for each in sem.truth().commands] == ["stigmator"]

    own = StigmatorSettings(own_x_um=4.0, own_y_um=-3.0)
    play(SimulatedSem(settings(stigmator=own)), scene)


def test_the_field_lags_behind_by_3_percent_of_the_last_change_in_its_direction():
    async def scene(sem):
        found = []
        for z_um in (-9_900.0, -9_950.0, -9_900.0, -9_899.0):
            await focus_to(sem, z_um)
            await asyncio.sleep(1.0)
            truth = sem.truth()
            assert truth.focus_z_um - z_um == pytest.approx(truth.hysteresis_um, abs=1e-6)
            found.append(truth.hysteresis_um)
        assert await sem.focus.position_um() == -9_899.0  # the current is what it should be
        return found

    lens = IDEAL.model_copy(update={"hysteresis_ratio": 0.03})
    up, down, up_again, little = play(SimulatedSem(settings(lens)), scene)
    assert up == pytest.approx(-0.03 * 100)
    # Half of the larger change is worn off by the smaller one, which leaves a lag of its own.
    assert down == pytest.approx(0.03 * 50 - 3.0 / 2)
    assert up_again == pytest.approx(-0.03 * 50)
    assert little == pytest.approx(up_again * 0.98 - 0.03, abs=1e-6)  # most of it is still there


def test_the_same_loop_of_hysteresis_is_run_through_again_and_again():
    lag, found = Lag(), []
    for change_um in (50.0, -50.0) * 3:
        lag = lag.changed(lag.after_um, change_um, 0.03)
        found.append(lag.after_um)
    assert found == pytest.approx([-1.5, 1.5] * 3)
    assert lag.changed(lag.after_um, 0.0, 0.03).after_um == lag.after_um


def test_the_field_settles_after_the_current():
    async def scene(sem):
        await sem.focus.start_move_um(-9_900.0)
        await arrived(sem.focus)
        found = []
        for _ in range(3):
            found.append(sem.truth().defocus_um - 100.0)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert sem.truth().defocus_um == pytest.approx(100.0, abs=1e-3)
        return found

    lens = IDEAL.model_copy(update={"settle_ratio": 0.2, "settle_tau_s": 0.05})
    first, second, third = play(SimulatedSem(settings(lens)), scene)
    assert first == pytest.approx(-20.0, rel=0.05)
    assert second == pytest.approx(first / math.e, rel=0.05)
    assert third == pytest.approx(first / math.e**2, rel=0.05)


def test_a_reversal_in_the_middle_of_a_move_leaves_no_jump():
    async def scene(sem):
        found = []

        async def watch(seconds):
            for _ in range(round(seconds / 0.0005)):
                found.append((asyncio.get_running_loop().time(), sem.truth().focus_z_um))
                await asyncio.sleep(0.0005)

        await sem.focus.start_move_um(-9_800.0)
        await watch(0.02)
        await sem.focus.start_move_um(-10_050.0)
        await watch(0.03)
        await sem.focus.halt()
        await watch(0.3)
        stopped_um = await sem.focus.position_um()
        assert -10_050.0 < stopped_um < -9_800.0
        return found

    lens = IDEAL.model_copy(update={"settle_ratio": 0.1, "hysteresis_ratio": 0.03})
    at_s, focus_um = np.array(play(SimulatedSem(settings(lens)), scene)).T
    assert np.ptp(focus_um) > 20.0
    speed = np.abs(np.diff(focus_um) / np.diff(at_s))
    assert 4_000.0 < speed.max() < 1.2 * 5_000.0  # never much faster than the lens


def test_backlash_if_asked_for():
    async def scene(sem):
        await focus_to(sem, -9_990.0)
        up_um = sem.truth().focus_z_um
        await focus_to(sem, -9_980.0)
        await focus_to(sem, -9_990.0)
        return sem.truth().focus_z_um - up_um

    lens = IDEAL.model_copy(update={"backlash_um": 4.0})
    assert play(SimulatedSem(settings(lens)), scene) == pytest.approx(4.0)


def test_focus_and_place_drift():
    async def scene(sem):
        before = sem.truth()
        await asyncio.sleep(30.0)
        after = sem.truth()
        return after.defocus_um - before.defocus_um, after.x_um - before.x_um

    lens = IDEAL.model_copy(update={"drift_um_per_min": 3.0})
    stage = STEADY.model_copy(update={"drift_um_per_min": 0.5})
    defocus_um, x_um = play(SimulatedSem(settings(lens, stage_x=stage)), scene)
    assert abs(defocus_um) == pytest.approx(1.5)
    assert abs(x_um) == pytest.approx(0.25)


def test_the_picture_follows_the_stage():
    async def scene(sem):
        first = await frame(sem)
        await sem.stage.start_move_um(20 * 5e-3, 10 * 5e-3)
        await arrived(sem.stage)
        await asyncio.sleep(1.0)
        second = await frame(sem)
        return first.pixels.astype(float), second.pixels.astype(float)

    stage = STEADY.model_copy(update={"backlash_um": 0.0, "ring_amplitude_um": 0.0})
    long = FrameSettings(height_px=96, width_px=96, dwell_ns=20_000.0)
    sem = SimulatedSem(settings(stage_x=stage, stage_y=stage, frame=long))
    first, second = play(sem, scene)
    # 20 px to the right and 10 px up on the sample: structures go left and down in the image.
    assert np.corrcoef(first[:-10, 20:].ravel(), second[10:, :-20].ravel())[0, 1] > 0.95


def test_a_blanked_beam_shows_nothing_and_costs_nothing():
    async def scene(sem):
        seen = (await frame(sem)).pixels
        dose_e = sem.truth().ledger.electrons_per_px
        assert dose_e == pytest.approx(200.0, rel=0.01)
        await sem.beam.blank(True)
        dark = await frame(sem)
        assert dark.pixels.max() == dark.pixels.min() < seen.mean() / 2
        assert dark.optics["electrons_per_px"] == 0.0
        assert sem.truth().ledger.electrons_per_px == dose_e
        await sem.beam.blank(False)
        assert (await frame(sem)).pixels.std() > 5.0
        assert sem.truth().ledger.electrons_per_px == pytest.approx(2 * dose_e)
        assert [each.electrons_per_px > 0 for each in sem.truth().exposures] == [True, False, True]

    play(SimulatedSem(settings()), scene)


def test_frames_that_get_lost_have_cost_their_dose_all_the_same():
    async def scene(sem):
        for _ in range(3):
            await sem.camera.trigger()
        await asyncio.sleep(0.1)
        return len(sem.truth().ledger.entries)

    faults = (FaultSettings(device="camera", kind="dropped", at_call=1, calls=3),)
    assert play(SimulatedSem(settings(faults=faults)), scene) == 3


def test_a_wider_field_is_another_entry_of_the_turret():
    async def scene(sem):
        names = [each.name for each in sem.turret.objectives]
        assert names == ["column", "wide"]
        narrow = await frame(sem)
        await sem.turret.select("wide")
        wide = await frame(sem)
        assert (narrow.pixel_size_nm, wide.pixel_size_nm) == (5.0, 20.0)
        assert wide.optics["depth_of_field_um"] == pytest.approx(20.0 / 6.0)
        areas = [each.width_um * each.height_um for each in sem.truth().ledger.entries]
        assert areas[1] == pytest.approx(16 * areas[0])
        magnification = sem.turret.objectives[0].magnification
        assert magnification == pytest.approx(127e3 / (64 * 5e-3))

    fields = (FieldSettings(), FieldSettings(name="wide", pixel_size_nm=20.0))
    play(SimulatedSem(settings(fields=fields)), scene)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_bit_depths(bits):
    async def scene(sem):
        taken = await frame(sem)
        assert taken.bit_depth == sem.camera.bit_depth == bits
        assert taken.pixels.max() < 2**bits
        assert taken.pixels.max() > 2 ** (bits - 2)

    play(SimulatedSem(settings(detector=DetectorSettings(bit_depth=bits))), scene)


def test_a_run_is_the_same_to_the_last_bit():
    async def scene(sem):
        pixels = []
        for z_um in (-10_003.0, -9_999.0, -10_000.0):
            await focus_to(sem, z_um)
            pixels.append((await frame(sem)).pixels)
        return np.array(pixels)

    one, two = (play(SimulatedSem(SemSettings(frame=FRAME)), scene) for _ in range(2))
    assert np.array_equal(one, two)
    other = play(SimulatedSem(SemSettings(frame=FRAME, seed=2)), scene)
    assert not np.array_equal(one, other)


FRAME = FrameSettings(height_px=48, width_px=48)


def test_faults_of_the_lens_are_those_of_the_stigmator():
    async def scene(sem):
        with pytest.raises(Refused):
            await sem.stigmator.set_um(1.0, 1.0)
        assert await sem.stigmator.get_um() == (0.0, 0.0)
        await sem.focus.start_move_um(-9_990.0)  # ignored
        await arrived(sem.focus)
        assert await sem.focus.position_um() == -10_000.0
        await sem.focus.start_move_um(-9_990.0)  # stalled half-way
        await arrived(sem.focus)
        assert await sem.focus.position_um() == pytest.approx(-9_995.0)
        await sem.focus.start_move_um(-9_990.0)
        assert isinstance(await sem.focus.state(), Unknown)

    faults = (
        FaultSettings(device="focus", kind="refused", at_call=1),
        FaultSettings(device="focus", kind="ignored_move", at_call=2),
        FaultSettings(device="focus", kind="stalled_move", at_call=3),
        FaultSettings(device="focus", kind="unknown_state", at_call=4),
    )
    play(SimulatedSem(settings(faults=faults)), scene)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("black", lambda pixels: pixels.max() == 0),
        ("saturated", lambda pixels: pixels.min() == 255),
        ("wrong_size", lambda pixels: pixels.shape == (32, 64)),
    ],
)
def test_faults_of_the_picture(kind, check):
    async def scene(sem):
        assert check((await frame(sem)).pixels)
        assert not check((await frame(sem)).pixels)

    faults = (FaultSettings(device="camera", kind=kind, at_call=1),)
    play(SimulatedSem(settings(faults=faults)), scene)


def test_after_closing_nothing_answers_and_the_beam_is_off():
    sem = SimulatedSem(settings())

    async def scene(sem):
        await sem.focus.start_move_um(-9_000.0)

    play(sem, scene)
    assert sem._body.is_blanked

    async def later():
        with pytest.raises(LinkLost):
            await sem.focus.start_move_um(-10_000.0)
        with pytest.raises(LinkLost):
            await sem.stigmator.set_um(0.0, 0.0)
        with pytest.raises(LinkLost):
            await sem.beam.blank(False)
        with pytest.raises(Refused):
            await sem.__aenter__()

    asyncio.run(later())


def test_wobble_moves_the_image_with_the_focus():
    async def scene(sem):
        in_focus = await frame(sem)
        await focus_to(sem, -9_998.0)
        off = await frame(sem)
        return in_focus.pixels.astype(float), off.pixels.astype(float)

    lens = IDEAL.model_copy(update={"wobble_nm_per_um": (20.0, 0.0)})  # 8 px at 2 um
    long = FrameSettings(height_px=96, width_px=96, dwell_ns=20_000.0)
    quiet = ScanSettings(jitter_px=0.0, mains_px=0.0)
    first, second = play(SimulatedSem(settings(lens, frame=long, scan=quiet)), scene)
    spectrum = np.fft.fft2(second) * np.fft.fft2(first).conj()
    peak = np.unravel_index(np.abs(np.fft.ifft2(spectrum)).argmax(), first.shape)
    assert peak == (0, 96 - 8)


def test_the_configuration_opens():
    tables = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    instrument = {key: value for key, value in tables["instrument"].items() if key != "driver"}
    sem = SimulatedSem(SemSettings.model_validate(instrument))

    async def scene(sem):
        await sem.camera.set_exposure_s(tables["camera"]["exposure_s"])
        taken = await frame(sem)
        assert taken.optics["electrons_per_px"] == pytest.approx(200.0, rel=0.1)
        truth = sem.truth()
        assert truth.defocus_um == pytest.approx(-12.0, abs=0.1)
        assert truth.defocus_um / truth.depth_of_field_um == pytest.approx(-14.4, abs=0.2)

    play(sem, scene)


@pytest.mark.parametrize(
    "bad",
    [
        {"fields": ({"name": "a"}, {"name": "a"})},
        {"start_field": "nowhere"},
        {"stigmator": {"start_x_um": 60.0}},
        {"frame": {"dwell_ns": 1.0}},
        {"lens": {"start_um": 10.0}},
        {"voltage": 5.0},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        SemSettings.model_validate(bad)
