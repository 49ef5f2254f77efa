import math

import numpy as np
import pytest

from inference.focus.acnet import ACNet, Limits, fineness_all_round, fineness_of_rings
from inference.focus.aenet import AENet
from inference.focus.api import Done, FocusCommand, Measure
from inference.focus.astigmatism import most_telling
from inference.focus.likelihood import Prior
from inference.focus.posterior import believe

LOOK = AENet().look
PRIOR = Prior(astigmatism_dof=12.0)


def _views(instrument, commands):
    return [LOOK(instrument.frame(c), c) for c in commands]


def _run(instrument, has_stigmator, most=12):
    acnet = ACNet(Limits(has_stigmator=has_stigmator), PRIOR)
    command, views = FocusCommand(0.0), []
    for _ in range(most):
        views.append(LOOK(instrument.frame(command), command))
        step = acnet.next_step(views)
        if not isinstance(step, Measure):
            return step, views
        command = step.command
    pytest.fail(f"no end after {most} frames")


def _drawn(seed, most_dof=10.0):
    rng = np.random.default_rng([8, seed])
    z_dof, axis = float(rng.uniform(-20, 20)), rng.uniform(0, 2 * math.pi)
    amount = most_dof * math.sqrt(rng.uniform())
    return z_dof, (amount * math.cos(axis), amount * math.sin(axis))


@pytest.mark.parametrize("seed", range(4))
def test_defocus_and_astigmatism_are_corrected_in_eight_frames(make_instrument, seed):
    z_dof, stig = _drawn(seed)
    end, views = _run(make_instrument(seed, z_dof, stig), has_stigmator=True)
    assert isinstance(end, Done), end
    command = end.command
    off = (command.z_dof - z_dof, command.stig_x_dof - stig[0], command.stig_y_dof - stig[1])
    assert math.hypot(*off) < 0.25 and len(views) <= 8


@pytest.mark.parametrize("seed", range(10, 13))
def test_without_a_stigmator_it_ends_at_the_circle_of_least_confusion(make_instrument, seed):
    z_dof, stig = _drawn(seed, most_dof=8.0)
    end, views = _run(make_instrument(seed, z_dof, stig), has_stigmator=False)
    assert isinstance(end, Done), end
    assert end.command.z_dof == pytest.approx(z_dof, abs=0.5) and len(views) <= 9
    assert (end.command.stig_x_dof, end.command.stig_y_dof) == (0.0, 0.0)
    assert {(v.command.stig_x_dof, v.command.stig_y_dof) for v in views} == {(0.0, 0.0)}


@pytest.mark.parametrize("seed", [20, 21])
def test_a_round_lens_costs_hardly_more_frames_with_a_stigmator(make_instrument, seed):
    z_dof = _drawn(seed)[0]
    end, views = _run(make_instrument(seed, z_dof), has_stigmator=True)
    assert isinstance(end, Done), end
    command = end.command
    assert math.hypot(command.z_dof - z_dof, command.stig_x_dof, command.stig_y_dof) < 0.25
    assert len(views) <= 7


def test_a_line_focus_is_finer_than_the_circle_but_not_all_round(make_instrument):
    instrument = make_instrument(3, 0.0, (6.0, 0.0), dose=2_000.0)
    line, circle = _views(instrument, (FocusCommand(6.0), FocusCommand(0.0)))
    assert fineness_of_rings(line)[0] > fineness_of_rings(circle)[0] + 0.25
    assert fineness_all_round(line)[0] < fineness_all_round(circle)[0]


def test_the_most_telling_frame_corrects_the_stigmator_and_brackets(make_instrument):
    instrument = make_instrument(4, 5.0, (5.0, -3.0))
    views = _views(instrument, (FocusCommand(0.0), FocusCommand(10.0), FocusCommand(2.0)))
    belief = believe(views, PRIOR)
    there = (belief.stig_x_dof, belief.stig_y_dof)
    commands = [
        FocusCommand(belief.z_dof + off, *stig)
        for stig in ((0.0, 0.0), there)
        for off in (-30.0, 0.0, 3.0, 30.0)
    ]
    best, left = most_telling(views, PRIOR, commands, has_stigmator=True)
    assert commands[best] == FocusCommand(belief.z_dof + 3.0, *there)
    # Far away everything is blurred: such a frame teaches next to nothing.
    now = math.hypot(belief.sigma_dof, belief.stig_sigma_dof)
    assert left[3] > 0.8 * now > left[best]


def test_what_is_left_of_focus_alone_is_less(make_instrument):
    instrument = make_instrument(5, 2.0, (4.0, 0.0))
    views = _views(instrument, (FocusCommand(0.0), FocusCommand(10.0)))
    commands = [FocusCommand(0.0), FocusCommand(5.0)]
    both = most_telling(views, PRIOR, commands, has_stigmator=True)[1]
    alone = most_telling(views, PRIOR, commands, has_stigmator=False)[1]
    assert np.all(alone < both)


@pytest.mark.parametrize("stig_x", [0.0, 8.0])
def test_sigma_knows_that_astigmatism_left_is_an_error_of_the_model(make_instrument, stig_x):
    views = _views(
        make_instrument(11, 0.0, (stig_x, 0.0), dose=5_000.0),
        map(FocusCommand, (0.0, 8.0, -8.0, 4.0, -4.0, 2.0, -2.0)),
    )
    belief = believe(views, PRIOR)
    assert (belief.sigma_dof > 0.09) == (stig_x > 0.0)
    assert abs(belief.z_dof) < 3.0 * belief.sigma_dof


def test_far_from_its_line_foci_it_probes_as_far_as_ever(make_instrument):
    view = LOOK(make_instrument(12).frame(FocusCommand(0.0)), FocusCommand(0.0))
    near, far = ACNet(prior=Prior()).next_step([view]), ACNet(prior=PRIOR).next_step([view])
    assert isinstance(near, Measure) and isinstance(far, Measure)
    # A sharp frame is near focus, if the lens is round; else it may be a line focus.
    assert abs(near.command.z_dof) <= abs(far.command.z_dof) == Limits().probe_step_dof


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_gain_of_a_frame_does_not_matter(make_instrument, gain):
    instrument = make_instrument(6, -4.0, (3.0, 2.0))
    commands = [FocusCommand(0.0), FocusCommand(10.0), FocusCommand(-8.0)]
    frames = [instrument.frame(c).astype(np.float32) for c in commands]
    plain = believe([LOOK(f, c) for f, c in zip(frames, commands, strict=True)], PRIOR)
    frames[1] = frames[1] * np.float32(gain)
    other = believe([LOOK(f, c) for f, c in zip(frames, commands, strict=True)], PRIOR)
    assert other.z_dof == pytest.approx(plain.z_dof, abs=0.02)
    assert other.stig_x_dof == pytest.approx(plain.stig_x_dof, abs=0.02)


def test_turned_by_an_eighth_the_astigmatism_is_the_other_one(make_instrument):
    one = _views(make_instrument(7, 3.0, (5.0, 0.0)), map(FocusCommand, (0.0, 10.0, -6.0)))
    other = _views(make_instrument(7, 3.0, (0.0, 5.0)), map(FocusCommand, (0.0, 10.0, -6.0)))
    first, second = believe(one, PRIOR), believe(other, PRIOR)
    assert first.stig_x_dof == pytest.approx(5.0, abs=1.5) and abs(first.stig_y_dof) < 1.5
    assert second.stig_y_dof == pytest.approx(5.0, abs=1.5) and abs(second.stig_x_dof) < 1.5


def test_an_empty_field_tells_nothing(make_instrument):
    views = _views(make_instrument(9, contrast=0.0), map(FocusCommand, (0.0, 10.0, -6.0)))
    belief = believe(views, PRIOR)
    assert belief.evidence < 8.0 and belief.sigma_dof > 5.0
