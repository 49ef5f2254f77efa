"""The simulated TEM as an instrument: dose, places, hops, modes and faults.

What every instrument must do is tested in tests/drivers/test_contract.py; what a frame shows, in
test_tem.py.
"""

import asyncio
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from controller import app
from controller.settings import Settings
from drivers.api import Beam, Frame, Idle, PhaseContrast, Stigmator
from drivers.errors import LinkLost, Refused
from simulator.atoms import SampleSettings
from simulator.clock import VirtualTimeLoop
from simulator.potential import phase_spectrum
from simulator.tem import Tem, TemSettings
from simulator.tem_instrument import (
    FieldSettings,
    FrameSettings,
    SimulatedTem,
    StigmatorSettings,
    TemFocusSettings,
    TemInstrumentSettings,
    TemStageSettings,
)

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "simulated_tem.toml"
STEADY = {"drift_um_per_min": 0.0, "wander_um": 0.0, "encoder_noise_um": 0.0}
FIELDS = (FieldSettings(), FieldSettings(name="stem", mode="haadf", pixel_size_nm=0.03))


def settings(**more):
    base = {
        "frame": FrameSettings(height_px=64, width_px=80),
        "sample": SampleSettings(kind="mos2", width_nm=8.0, height_nm=8.0),
        "fields": FIELDS,
        "stage_x": TemStageSettings(**STEADY),
        "stage_y": TemStageSettings(**STEADY),
        "focus": TemFocusSettings(start_um=0.006, **STEADY),
    }
    return TemInstrumentSettings(**{**base, **more})


def play(tem, scene):
    async def main():
        async with tem, asyncio.timeout(60):
            return await scene(tem)

    with asyncio.Runner(loop_factory=partial(VirtualTimeLoop, charges_compute=False)) as runner:
        return runner.run(main())


async def frame(tem):
    await tem.camera.trigger()
    item = await anext(aiter(tem.camera.frames()))
    assert isinstance(item, Frame)
    return item


async def to(tem, axis, *target_um):
    await axis.start_move_um(*target_um)
    for _ in range(10_000):
        if isinstance(await axis.state(), Idle):
            break
        await asyncio.sleep(0.001)
    await asyncio.sleep(axis.kinematics.settle_s)


def electrons(tem, taken):
    optics = taken.optics
    return (taken.pixels - optics["offset_dn"]) / optics["gain_dn_per_e"]


def test_exposure_is_dose_and_the_ledger_counts_it():
    async def scene(tem):
        taken = []
        for exposure_s in (0.05, 0.2):
            await tem.camera.set_exposure_s(exposure_s)
            taken.append(await frame(tem))
        return taken

    tem = SimulatedTem(settings())
    short, long = play(tem, scene)
    assert short.optics["dose_e_per_a2"] == pytest.approx(500.0)
    assert short.optics["electrons_per_px"] == pytest.approx(20.0)
    assert electrons(tem, long).mean() == pytest.approx(80.0, rel=0.03)  # less the aperture's
    assert long.pixels.dtype == np.uint16
    ledger = tem.truth().ledger
    assert [each.electrons_per_px for each in ledger.entries] == pytest.approx([20.0, 80.0])
    assert ledger.electrons_per_um2_at(0.0, 0.0) == pytest.approx(2_500.0 * 1e8)
    assert ledger.electrons_per_um2_at(0.001, 0.0) == 0.0


def test_the_truth_gives_every_frame_once_more():
    async def scene(tem):
        frames = [await frame(tem)]
        await to(tem, tem.stage, 0.0007, -0.0004)
        frames.append(await frame(tem))
        await tem.turret.select("stem")
        return [*frames, await frame(tem)]

    sample = SampleSettings(kind="mos2", width_nm=8.0, height_nm=8.0, adatoms=9, hop_ratio=0.5)
    tem = SimulatedTem(settings(sample=sample, stage_x=TemStageSettings(drift_um_per_min=0.02)))
    for taken, exposure in zip(play(tem, scene), tem.truth().exposures, strict=True):
        shot = tem.shot(taken.number)
        again = settings().camera.digital(shot.noisy_e)
        assert np.abs(again.astype(int) - taken.pixels).max() <= 1  # a core's rounding
        assert shot.x_nm == pytest.approx(1e3 * exposure.x_um, abs=abs(exposure.moving_nm[0]))
    with pytest.raises(KeyError):
        tem.shot(7)


def test_the_picture_follows_the_stage_by_nanometres():
    async def scene(tem):
        before = await frame(tem)
        await to(tem, tem.stage, 0.0002, 0.0001)  # the point under the middle: 10 right, 5 up
        return before, await frame(tem)

    tem = SimulatedTem(settings())
    for each in play(tem, scene):
        assert each.pixel_size_nm == 0.02
    before, after = (tem.shot(number).clean_e for number in (0, 1))
    inner, shifted = before[12:-12, 16:-16], after[12 + 5 : -12 + 5, 16 - 10 : -16 - 10]
    assert np.corrcoef(inner.ravel(), shifted.ravel())[0, 1] > 0.999


def test_defocus_is_focus_less_the_height_of_the_sample_there():
    async def scene(tem):
        await to(tem, tem.focus, 0.030)
        await to(tem, tem.stage, 2.0, -1.0)
        await frame(tem)
        return tem.truth()

    tilted = settings(sample_height_um=0.010, tilt_um_per_mm=(4.0, 2.0))
    truth = play(SimulatedTem(tilted), scene)
    assert truth.defocus_um == pytest.approx(0.030 - 0.010 - 0.008 + 0.002, abs=1e-6)
    assert truth.exposures[0].defocus_um == pytest.approx(truth.defocus_um, abs=1e-6)
    wanted_um = tilted.lens.scherzer_um
    assert truth.best_focus_z_um == pytest.approx(0.030 - truth.defocus_um + wanted_um)


def test_drift_moves_the_sample_and_smears_a_long_frame():
    drifting = TemStageSettings(drift_um_per_min=0.06, wander_um=0.0, encoder_noise_um=0.0)

    async def scene(tem):
        await tem.camera.set_exposure_s(0.2)
        await frame(tem)
        await asyncio.sleep(1.0)
        await frame(tem)

    tem = SimulatedTem(settings(stage_x=drifting))
    play(tem, scene)
    first, later = tem.truth().exposures
    assert abs(later.x_um - first.x_um) == pytest.approx(0.001 * 1.2, rel=0.02)  # 1 nm/s
    assert abs(first.moving_nm[0]) == pytest.approx(0.2, rel=0.02)
    assert np.sign(first.moving_nm[0]) == -np.sign(later.x_um - first.x_um)
    still = SimulatedTem(settings())
    play(still, scene)
    assert tem.shot(0).clean_e.std() < 0.8 * still.shot(0).clean_e.std()


def test_adatoms_hop_from_frame_to_frame():
    sample = SampleSettings(width_nm=8.0, height_nm=8.0, adatoms=20, hop_ratio=0.5)

    async def scene(tem):
        for _ in range(3):
            await frame(tem)

    tem = SimulatedTem(settings(sample=sample, frame=FrameSettings(height_px=256, width_px=256)))
    play(tem, scene)
    places = [
        sorted((d.x_nm, d.y_nm) for d in tem.shot(i).defects if d.kind == "adatom")
        for i in range(3)
    ]
    assert places[0] != places[1] != places[2]
    moved = tem.truth().sample.hopped(1)
    assert 2 <= moved.sum() <= 18


def test_a_scan_is_another_entry_of_the_turret():
    async def scene(tem):
        assert isinstance(tem.beam, Beam)
        assert isinstance(tem.phase_contrast, PhaseContrast)
        told = []
        for name in ("hrtem", "stem"):
            await tem.turret.select(name)
            taken = await frame(tem)
            told.append((taken, tem.phase_contrast.is_in_use, tem.beam.dwell_ns))
            told[-1] = (*told[-1], tem.beam.current_pa, tem.beam.convergence_mrad)
        return told

    (broad, is_phase, whole_ns, _, _), (scan, is_scan_phase, dwell_ns, current_pa, mrad) = play(
        SimulatedTem(settings()), scene
    )
    assert (is_phase, is_scan_phase) == (True, False)
    assert (broad.optics["mode"], scan.optics["mode"]) == ("hrtem", "haadf")
    assert whole_ns == pytest.approx(1e8)
    assert dwell_ns == pytest.approx(1e8 / (64 * 80))
    assert current_pa == pytest.approx(20.0)
    assert mrad == 30.0
    assert scan.optics["electrons_per_px"] == pytest.approx(20.0 * 0.1 / 1.602e-7 / (64 * 80), 1e-3)
    assert scan.pixel_size_nm == 0.03


def test_a_blanked_beam_shows_nothing_and_costs_nothing():
    async def scene(tem):
        await tem.beam.blank(True)
        dark = await frame(tem)
        await tem.beam.blank(False)
        return dark, await frame(tem)

    tem = SimulatedTem(settings())
    dark, bright = play(tem, scene)
    assert dark.pixels.mean() == pytest.approx(200.0, abs=1.0)
    assert bright.pixels.mean() > 500.0
    assert dark.optics["dose_e_per_a2"] == 0.0
    assert len(tem.truth().ledger.entries) == 1
    with pytest.raises(KeyError):
        tem.shot(0)


def test_the_stigmator_adds_to_what_the_lens_has():
    async def scene(tem):
        assert isinstance(tem.stigmator, Stigmator)
        await tem.stigmator.set_um(-0.004, 0.002)
        with pytest.raises(Refused):
            await tem.stigmator.set_um(0.0, 0.6)
        with pytest.raises(Refused):
            await tem.stigmator.set_um(float("nan"), 0.0)
        assert await tem.stigmator.get_um() == (-0.004, 0.002)
        return tem.truth()

    own = StigmatorSettings(own_x_um=0.004, own_y_um=-0.001)
    truth = play(SimulatedTem(settings(stigmator=own)), scene)
    assert (truth.stig_x_um, truth.stig_y_um) == pytest.approx((0.0, 0.001))


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("black", lambda taken: not taken.pixels.any()),
        ("saturated", lambda taken: taken.pixels.min() == 65_535),
        ("wrong_size", lambda taken: taken.pixels.shape == (32, 80)),
    ],
)
def test_faults_of_the_picture(kind, check):
    faults = ({"device": "camera", "kind": kind, "at_call": 1},)
    assert check(play(SimulatedTem(settings(faults=faults)), frame))


def test_a_run_is_the_same_to_the_last_bit_and_over_after_closing():
    tem, twin = SimulatedTem(settings()), SimulatedTem(settings())
    assert np.array_equal(play(tem, frame).pixels, play(twin, frame).pixels)

    async def late():
        await tem.camera.trigger()

    with pytest.raises(LinkLost):
        asyncio.run(late())


def test_what_stays_is_drawn_once(monkeypatch):
    """The live view's pace hangs on it: of 12 drifting frames, only few draw the sample's atoms."""
    drawn = []

    def counted(atoms, *grid):
        drawn.append(len(atoms.number))
        return phase_spectrum(atoms, *grid)

    monkeypatch.setattr("simulator.tem.phase_spectrum", counted)
    sample = SampleSettings(width_nm=8.0, height_nm=8.0, adatoms=30)
    column = Tem(
        TemSettings(
            height_px=64, width_px=64, drift_nm_per_frame=(0.03, 0.0), sample=sample, unrest_nm=0.0
        )
    )
    list(column.video(12, 0.006))
    assert sum(count > 100 for count in drawn) <= 3
    assert sum(count <= 30 for count in drawn) >= 9


def test_the_configuration_opens_and_shows_its_atoms():
    tables = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    whole = Settings.model_validate(tables)
    tem = app.open_instrument(whole, str(CONFIG))
    assert isinstance(tem, SimulatedTem)

    async def scene(tem):
        await tem.camera.set_exposure_s(tables["camera"]["exposure_s"])
        return await frame(tem)

    taken = play(tem, scene)
    assert taken.pixels.shape == (512, 512)
    assert taken.optics["dose_e_per_a2"] == pytest.approx(1e3)
    kinds = {each.kind for each in tem.shot(0).defects}
    assert kinds == {"vacancy", "dopant", "adatom"}
    assert app.true_defocus_um(tem) == pytest.approx(0.0, abs=1e-4)  # it starts at Scherzer's


@pytest.mark.parametrize(
    "bad",
    [
        {"fields": ({"name": "a"}, {"name": "a"})},
        {"fields": ()},
        {"start_field": "nowhere"},
        {"stigmator": {"start_x_um": 0.6}},
        {"frame": {"exposure_s": 1e-4}},
        {"focus": {"start_um": 30.0}},
        {"fields": ({"mode": "ctem"},)},
        {"voltage": 80.0},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        TemInstrumentSettings.model_validate(bad)
