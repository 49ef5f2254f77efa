import math

import cv2
import numpy as np
import pytest

from inference.focus.aenet import AENet
from inference.focus.api import FocusCommand
from inference.focus.likelihood import Prior, coadded
from inference.focus.posterior import believe, best_bracket_dof

LOOK = AENet().look


def _views(instrument, *commands):
    return [LOOK(instrument.frame(c), c) for c in commands]


def _at(*z_dof):
    return [FocusCommand(z) for z in z_dof]


@pytest.mark.parametrize("z_dof", [-14.0, -6.0, 3.0, 11.0])
def test_two_frames_tell_the_side(make_instrument, z_dof):
    belief = believe(_views(make_instrument(1, z_dof), *_at(0.0, 10.0)), Prior())
    assert math.copysign(1, belief.z_dof) == math.copysign(1, z_dof)
    assert belief.sign_probability > 0.7
    assert abs(belief.z_dof - z_dof) < max(0.5, 4 * belief.sigma_dof)  # no bracket yet


@pytest.mark.parametrize("seed", [2, 3])
def test_one_frame_has_no_sign_and_says_so(make_instrument, seed):
    belief = believe(_views(make_instrument(seed, 8.0), *_at(0.0)), Prior())
    assert belief.sign_probability < 0.75 and belief.sigma_dof > 3


@pytest.mark.parametrize("z_dof", [-9.3, 4.7])
def test_a_bracket_finds_focus_whatever_the_scale(make_instrument, z_dof):
    views = _views(make_instrument(4, z_dof), *_at(0.0, 10.0, z_dof + 5.0, z_dof - 5.0))
    for scale in (0.8, 1.0, 1.25):
        belief = believe(views, Prior(blur_px_per_dof=scale))
        assert belief.z_dof == pytest.approx(z_dof, abs=0.4)
        assert belief.sigma_dof < 0.4


def test_frames_of_different_gain_agree(make_instrument):
    instrument = make_instrument(5, 6.0)
    commands = _at(0.0, 10.0, 2.0)
    frames = [instrument.frame(c) for c in commands]
    plain = believe([LOOK(f, c) for f, c in zip(frames, commands, strict=True)], Prior())
    gains = (1.0, 2.0, 0.5)
    scaled = [(f * g).astype("float32") for f, g in zip(frames, gains, strict=True)]
    other = believe([LOOK(f, c) for f, c in zip(scaled, commands, strict=True)], Prior())
    assert other.z_dof == pytest.approx(plain.z_dof, abs=0.02)


@pytest.mark.parametrize("stig", [(4.0, 0.0), (-2.0, 3.0), (0.0, -5.0)])
def test_frames_at_different_defocus_tell_astigmatism(make_instrument, stig):
    views = _views(make_instrument(6, 5.0, stig), *_at(0.0, 10.0, -4.0, 14.0))
    belief = believe(views, Prior(astigmatism_dof=12.0))
    off = math.hypot(belief.stig_x_dof - stig[0], belief.stig_y_dof - stig[1])
    assert off < max(0.8, 3 * belief.stig_sigma_dof)
    assert abs(belief.z_dof - 5.0) < max(0.5, 3 * belief.sigma_dof)


def test_the_same_frames_give_the_same_belief(make_instrument):
    views = _views(make_instrument(7, 5.0, (2.0, 1.0)), *_at(0.0, 10.0, 3.0))
    prior = Prior(astigmatism_dof=12.0)
    first = believe(views, prior)
    believe.__globals__["_believed"].cache_clear()
    assert believe(views, prior) == first


def test_repeated_places_are_summed(make_instrument):
    views = _views(make_instrument(8, 3.0, dose=5.0), *_at(0.0, 6.0, 0.0, 6.0, 0.0))
    summed = coadded(views)
    assert [v.command.z_dof for v in summed] == [0.0, 6.0]
    single, triple = views[0].levels[0], summed[0].levels[0]
    assert triple.modes.sum() == pytest.approx(3 * single.modes.sum())


def test_low_dose_wants_a_wider_bracket(make_instrument):
    widths = []
    for dose in (1_000.0, 3.0):
        views = _views(make_instrument(9, 2.0, dose=dose), *_at(0.0, 8.0, -4.0))
        belief = believe(views, Prior())
        widths.append(best_bracket_dof(views, belief, Prior()))
    assert 2.0 <= widths[0] < widths[1] <= 24.0


def _processed(instrument, command):
    """What interpolation leaves: noise that falls with frequency, alike in all frames."""
    frame = instrument.frame(command).astype(np.float32)
    return cv2.GaussianBlur(frame, (0, 0), 0.7)


@pytest.mark.parametrize("z_dof", [-9.3, 2.0, 4.7])
def test_coloured_noise_does_not_move_focus(make_instrument, z_dof):
    instrument = make_instrument(13, z_dof)
    commands = _at(0.0, 10.0, z_dof + 6.0, z_dof - 5.0, z_dof + 0.4)
    belief = believe([LOOK(_processed(instrument, c), c) for c in commands], Prior(range_dof=20.0))
    assert not belief.is_noise_white
    assert abs(belief.z_dof - z_dof) < min(0.3, 3.0 * belief.sigma_dof)


def test_counted_noise_is_believed_white(make_instrument):
    belief = believe(_views(make_instrument(14, 3.0), *_at(0.0, 10.0, -4.0)), Prior())
    assert belief.is_noise_white and belief.misfit < 1.7


def test_a_scale_off_by_a_third_is_found(make_instrument):
    """Blur a DOF off is one pixel there; the prior says 0.7."""
    views = _views(make_instrument(15, 2.0), *_at(-8.0, 2.0, 9.0, -3.0))
    belief = believe(views, Prior(blur_px_per_dof=0.7, blur_log_sd=0.4))
    assert belief.scale == pytest.approx(1.06, rel=0.12)  # a hole in the disc adds 4 %
    assert belief.scale_log_sd < 0.1


def test_what_a_run_taught_is_carried_over(make_instrument):
    prior = Prior(blur_px_per_dof=0.8)
    first = believe(_views(make_instrument(16, 3.0), *_at(0.0, 10.0, -3.0)), prior)
    taught = prior.carried_over(first)
    assert taught.blur_px_per_dof == first.scale != prior.blur_px_per_dof
    assert 0.05 <= taught.blur_log_sd < prior.blur_log_sd
    assert sum(taught.shape_probabilities) == pytest.approx(1.0)
    assert min(taught.shape_probabilities) > 0.03  # no shape is ruled out
    views = _views(make_instrument(17, -7.0), *_at(0.0, 10.0))
    untaught, helped = believe(views, prior), believe(views, taught)
    assert abs(helped.z_dof + 7.0) < abs(untaught.z_dof + 7.0)


def test_an_empty_field_is_no_evidence(make_instrument):
    views = _views(make_instrument(10, 2.0, contrast=0.0), *_at(0.0, 10.0, -10.0, 5.0))
    belief = believe(views, Prior())
    assert belief.sigma_dof > 2.0


def test_needs_a_frame():
    with pytest.raises(ValueError, match="at least one"):
        believe([], Prior())
