"""The running focus of a lens that images phases, on the simulated transmission microscope."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from controller.errors import MoveFailed
from controller.focusing.phase import PhaseTask, focus_by_phase, phase_lens
from controller.motion import Motion
from controller.safety import Envelope, Expose, Supervisor
from controller.settings import MotionSettings, SafetySettings
from controller.stream import FrameStream
from simulator.atoms import SampleSettings
from simulator.clock import VirtualTimeLoop
from simulator.sem import SemSettings, SimulatedSem
from simulator.tem_instrument import (
    BeamSettings,
    FieldSettings,
    FrameSettings,
    SimulatedTem,
    StigmatorSettings,
    TemFocusSettings,
    TemInstrumentSettings,
)

DOF_UM = 0.0047
NANOMETRES = MotionSettings(
    stage_tolerance_um=0.002, focus_tolerance_um=0.0002, focus_overshoot_um=0.0
)
FREE = SafetySettings(safe_lift_um=0.0, max_step_down_um=40.0)


def microscope(start_um, sample=None, dose=4e5, **more):
    return SimulatedTem(
        TemInstrumentSettings(
            sample=SampleSettings(
                **{"width_nm": 12.0, "height_nm": 12.0, "dopant_ratio": 0.01, **(sample or {})}
            ),
            frame=FrameSettings(height_px=256, width_px=256),
            fields=(FieldSettings(name="hrtem", pixel_size_nm=0.03),),
            beam=BeamSettings(dose_rate_e_per_a2_per_s=dose),
            focus=TemFocusSettings(start_um=start_um),
            stigmator=StigmatorSettings(own_x_um=0.0015, own_y_um=-0.001),
            **more,
        )
    )


def focused(tem, range_um=0.05, lowest_um=-1.0, highest_um=1.0, watch=lambda step: None):
    async def main():
        supervisor = Supervisor(
            Envelope.within(FREE, tem.stage.limits_um, tem.focus.limits_um),
            tem.turret.objectives,
            FREE,
        )
        async with tem, Motion(tem, supervisor, NANOMETRES) as motion:
            async with FrameStream(tem.camera) as stream:
                light = Expose(0.1, 0.01, 0.01, "focus")
                start_um = await tem.focus.position_um()
                task = PhaseTask(start_um, lowest_um, highest_um, DOF_UM, range_um)
                with ThreadPoolExecutor(1) as thread:
                    result = await focus_by_phase(
                        phase_lens(tem),
                        task,
                        motion,
                        lambda: stream.snap(motion, light, 5.0),
                        tem.stigmator,
                        thread,
                        watch,
                    )
            return result, tem.truth(), await tem.focus.position_um(), await tem.stigmator.get_um()

    factory = partial(VirtualTimeLoop, charges_compute=False)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


@pytest.mark.parametrize("off_um", [0.03, -0.02])
def test_it_ends_at_scherzers_defocus_without_astigmatism(off_um):
    result, truth, z_um, _ = focused(microscope(0.00775 + off_um))
    assert result.is_focused, result.reason
    assert z_um == pytest.approx(result.focus_z_um, abs=2e-4)
    assert abs(truth.focus_z_um - truth.best_focus_z_um) < 0.25 * DOF_UM
    assert (truth.stig_x_um, truth.stig_y_um) == pytest.approx((0.0, 0.0), abs=7e-4)
    assert len(result.steps) <= 7
    assert result.steps[-1].purpose == "verify"


@pytest.mark.parametrize(
    ("sample", "word"), [({"kind": "vacuum"}, "nothing"), ({"dopant_ratio": 0.0}, "lattice")]
)
def test_where_it_cannot_know_it_says_why_and_goes_back(sample, word):
    result, _, z_um, stig_um = focused(microscope(0.02, sample, dose=1e4))
    assert not result.is_focused
    assert word in result.reason
    assert z_um == pytest.approx(0.02, abs=2e-4)
    assert stig_um == (0.0, 0.0)


def test_a_failing_lens_is_sent_back_to_where_it_stood():
    faults = ({"device": "focus", "kind": "refused", "at_call": 4},)
    tem = microscope(0.02, faults=faults)
    with pytest.raises(MoveFailed):
        focused(tem)
    assert tem.truth().focus_z_um == pytest.approx(0.02, abs=1e-3)


def test_who_images_phases():
    settings = TemInstrumentSettings(
        fields=(FieldSettings(), FieldSettings(name="stem", mode="haadf")), start_field="stem"
    )
    assert phase_lens(SimulatedTem(settings)) is None
    assert phase_lens(SimulatedSem(SemSettings())) is None
    lens = phase_lens(SimulatedTem(TemInstrumentSettings()))
    assert lens is not None
    assert lens.spherical_mm == -0.01
