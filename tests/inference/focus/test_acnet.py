import math
from dataclasses import replace

import numpy as np
import pytest

from inference.focus.acnet import ACNet, Limits
from inference.focus.aenet import AENet
from inference.focus.api import Done, FocusCommand, GiveUp, Measure
from inference.focus.evaluate import StackProblem, read_stack
from inference.focus.likelihood import Prior

LOOK = AENet().look


HERE = FocusCommand(0.0)


def _run(instrument, acnet, start=HERE, most=40):
    command, views = start, []
    for _ in range(most):
        frame = instrument.frame(command)
        views.append(LOOK(frame, command, pixel_ratio=command.field_ratio))
        step = acnet.next_step(views)
        if not isinstance(step, Measure):
            return step, views
        command = step.command
    pytest.fail(f"no end after {most} frames")


@pytest.mark.parametrize("seed", range(8))
def test_focuses_from_25_dof_in_a_few_frames(make_instrument, seed):
    z_dof = float(np.random.default_rng(seed).uniform(-25, 25))
    end, views = _run(make_instrument(seed, z_dof), ACNet())
    assert isinstance(end, Done), end
    assert end.command.z_dof == pytest.approx(z_dof, abs=0.5)
    assert len(views) <= 8
    assert abs(views[-1].command.z_dof - z_dof) < 0.7  # the last frame was taken at the answer


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_corrects_astigmatism_too(make_instrument, seed):
    rng = np.random.default_rng(seed)
    z_dof, axis = float(rng.uniform(-15, 15)), rng.uniform(0, 2 * math.pi)
    stig = (6 * math.cos(axis), 6 * math.sin(axis))
    acnet = ACNet(Limits(has_stigmator=True), Prior(astigmatism_dof=12.0))
    end, views = _run(make_instrument(seed, z_dof, stig), acnet)
    assert isinstance(end, Done), end
    off = math.hypot(end.command.stig_x_dof - stig[0], end.command.stig_y_dof - stig[1])
    assert abs(end.command.z_dof - z_dof) < 0.5 and off < 0.5 and len(views) <= 10


@pytest.mark.parametrize("z_dof", [-85.0, 60.0])
def test_far_away_the_wide_field_leads(make_instrument, z_dof):
    end, views = _run(make_instrument(31, z_dof), ACNet(prior=Prior(range_dof=110.0)))
    assert isinstance(end, Done), end
    assert end.command.z_dof == pytest.approx(z_dof, abs=0.5)
    assert views[1].command.field_ratio == 4.0 and views[-1].command.field_ratio == 1.0


@pytest.mark.parametrize("seed", [41, 42, 43])
def test_an_empty_field_is_given_up_where_it_began(make_instrument, seed):
    start = FocusCommand(3.5, 0.2, -0.1)
    end, views = _run(make_instrument(seed, 5.0, contrast=0.0), ACNet(), start)
    assert isinstance(end, GiveUp) and end.command == start
    assert "nothing" in end.reason and len(views) <= 8


def test_low_dose_takes_more_frames_or_says_no(make_instrument):
    end, _ = _run(make_instrument(51, 7.0, dose=4.0, contrast=0.1), ACNet())
    assert isinstance(end, GiveUp) or abs(end.command.z_dof - 7.0) < 0.5


@pytest.mark.parametrize("probe", [10.0, -10.0])
def test_commands_stay_within_limits(make_instrument, probe):
    limits = Limits(lowest_z_dof=-6.0, highest_z_dof=12.0, probe_step_dof=probe)
    for z_dof in (-3.0, 4.0, 20.0):
        end, views = _run(make_instrument(61, z_dof), ACNet(limits))
        assert all(-6.0 <= v.command.z_dof <= 12.0 for v in views)
        assert z_dof != 20.0 or isinstance(end, GiveUp)


@pytest.mark.parametrize("z_dof", [0.0, 1.5, -20.0])
def test_the_probe_is_near_where_focus_is_near(make_instrument, z_dof):
    first = LOOK(make_instrument(81, z_dof).frame(HERE), HERE)
    told = replace(first, defocus_dof=abs(z_dof), defocus_sigma_dof=0.5, reason="")
    step = ACNet().next_step([told])
    assert isinstance(step, Measure) and step.purpose == "probe"
    assert step.command.z_dof == (10.0 if z_dof == -20.0 else pytest.approx(4.0))


def test_a_taught_prior_needs_fewer_frames(make_instrument):
    counts = []
    for prior in (Prior(), Prior(blur_px_per_dof=1.04, blur_log_sd=0.06)):
        frames = 0
        for seed in (91, 92, 93):
            z_dof = float(np.random.default_rng(seed).uniform(-25, 25))
            end, views = _run(make_instrument(seed, z_dof), ACNet(prior=prior))
            assert isinstance(end, Done) and abs(end.command.z_dof - z_dof) < 0.5
            frames += len(views)
        counts.append(frames)
    assert counts[1] < counts[0]


def test_black_frames_are_no_evidence():
    views = []
    for i in range(6):
        views.append(LOOK(np.zeros((256, 256), np.uint8), FocusCommand(float(i))))
        step = ACNet().next_step(views)
        if isinstance(step, GiveUp):
            break
    assert isinstance(step, GiveUp) and "no usable frame" in step.reason


def test_is_pure(make_instrument):
    instrument = make_instrument(71, 6.0)
    views = [LOOK(instrument.frame(c), c) for c in map(FocusCommand, (0.0, 10.0, 2.0))]
    assert ACNet().next_step(views) == ACNet().next_step(list(views))
    with pytest.raises(ValueError, match="no frame"):
        ACNet().next_step([])


@pytest.mark.parametrize("start", [-9, -4, 0, 2, 7])
def test_a_real_stack_is_focused_without_knowing_its_blur(shared_data, start):
    folder = shared_data / "focus" / "smear"
    if not folder.is_dir():
        pytest.skip("no real stack here")
    planes = read_stack(folder, r"(?P<z>-?\d+)\.png")
    index = [plane.position for plane in planes].index(start)
    for direction in (1.0, -1.0):
        problem = StackProblem(planes, index, direction, 1.0)
        lowest, highest = problem.limits_dof
        limits = Limits(wide_ratio=1.0, lowest_z_dof=lowest, highest_z_dof=highest)
        acnet = ACNet(limits, Prior(range_dof=20.0, blur_log_sd=0.5))
        views, step = [], Measure(problem.start, "start")
        while isinstance(step, Measure):
            seen = problem.observe(step.command)
            views.append(LOOK(seen.pixels, seen.command))
            step = acnet.next_step(views)
        assert isinstance(step, Done), step
        assert abs(problem.position(step.command)) <= 0.3
        assert problem.frames <= 7  # 6 with the network's one-frame |defocus|
