"""The few-frame focus, closed loop on the simulated SEM, which has a probe of its own."""

import asyncio
from pathlib import Path

import pytest

from controller import app
from controller.commands.overrides import overridden
from controller.focusing.few_frames import FewFrames
from controller.focusing.once import focus_instrument, strip
from controller.settings import Settings, load_toml, validated
from simulator.clock import VirtualTimeLoop

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "simulated_sem.toml"
OWN_X_UM, OWN_Y_UM = 1.5, -1.0  # astigmatism of the column in the configuration


class Stop(Exception):
    """Whatever ends a focus from outside."""


def focused(*overrides, on_step=lambda _: None):
    tables = overridden(load_toml(CONFIG)[0], ["run.clock=ideal", *overrides])
    settings = validated(Settings, tables, str(CONFIG))
    instrument = app.open_instrument(settings, str(CONFIG))

    def make(dof_um: float, has_stigmator: bool) -> FewFrames:
        engine = app.open_network("aenet", settings.inference)
        return app.few_frames(dof_um, has_stigmator, settings.focus.range_dof, engine)

    async def run():
        try:
            return await focus_instrument(settings, instrument, make, on_step)
        finally:
            truths.append(instrument.truth())

    truths = []
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(charges_compute=False)) as runner:
        try:
            result, dof_um = runner.run(run())
        except Stop:
            return None, 0.0, truths[0]
    return result, dof_um, truths[0]


@pytest.mark.parametrize("seed", [4, 6])
def test_focus_and_astigmatism_are_taken_away_together(seed):
    result, dof_um, truth = focused(f"instrument.seed={seed}", f"instrument.specimen.seed={seed}")
    assert result.is_focused, result.reason
    assert abs(truth.defocus_um) <= 0.5 * dof_um
    assert result.stig_x_um == pytest.approx(-OWN_X_UM, abs=0.5 * dof_um)
    assert result.stig_y_um == pytest.approx(-OWN_Y_UM, abs=0.5 * dof_um)
    assert len(result.steps) <= 9


def test_from_the_other_side():
    result, dof_um, truth = focused("instrument.lens.start_um=-9_991.0")
    assert result.is_focused, result.reason
    assert abs(truth.defocus_um) <= 0.5 * dof_um


def test_nothing_to_focus_on_restores_the_lens():
    result, _, _ = focused("instrument.specimen.kind=empty")
    assert not result.is_focused
    assert result.reason
    assert result.focus_z_um == pytest.approx(-10_012.0, abs=0.1)
    assert (result.stig_x_um, result.stig_y_um) == (0.0, 0.0)


def test_what_ends_it_from_outside_restores_the_lens():
    taken = []

    def interrupt(step):
        taken.append(step)
        if len(taken) == 3:
            raise Stop

    result, _, truth = focused(on_step=interrupt)
    assert result is None
    assert taken[-1].focus_z_um != taken[0].focus_z_um
    assert truth.defocus_um == pytest.approx(-12.0, abs=2.5)  # the lens has hysteresis


def test_the_strip_shows_every_frame():
    result, dof_um, _ = focused()
    picture = strip(result.steps, dof_um)
    assert picture.shape[1] == 260 * len(result.steps)
    assert picture[:256].std() > 20
