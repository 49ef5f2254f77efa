"""Where to look next, when to stop, and when to give up: the controller of a few-frame focus.

Pure: a history of views goes in, one step comes out; the caller moves, waits and exposes. All
frames count, the operator's own too, and one posterior (posterior.py) is kept over all of them.

The first step is a probe: two frames at a known distance tell on which side focus lies. After it,
frames bracket focus instead of sitting on it: at focus the spectrum does not change with defocus to
first order, so a frame there says where focus is no better than a blind one; two frames on both
sides are equally sharp exactly when focus is half way, whatever the shape and the scale of the
blur. The last frame is taken at the answer and must be as sharp as every other.

Where there may be astigmatism, each frame is taken where it is expected to tell most, with the
stigmator as it is or as it is believed to be right, until focus is known and bracketed. Without a
stigmator the answer is the circle of least confusion, which is sharper than any other plane only
when little is left: the posterior vouches for it then.

Far from focus the wide field leads (blur of a hundred pixels needs a field of a thousand) and the
fine one follows. A history that no focus explains better than none, that runs out of frames or of
range, or whose last frame disappoints, ends in `GiveUp` with the command to go back to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from inference.focus.api import (
    Done,
    FocusBelief,
    FocusCommand,
    FocusView,
    GiveUp,
    Measure,
    NextStep,
)
from inference.focus.astigmatism import most_telling
from inference.focus.likelihood import F64, Prior
from inference.focus.posterior import believe, best_bracket_dof
from inference.focus.spectrum import BandPower

_COARSE_DOF = 40.0  # a range beyond this begins in the wide field
_LOCATED_DOF = 5.0  # sigma at which the fine field takes over from the wide
_LEAST_PROBE = 0.4  # of the usual step
_PROBE_PER_DEFOCUS = 2.0  # step over what one frame says of |defocus|
_LONGEST_ARM_DOF = 10.0  # of a bracket
_TAUGHT_LOG_SD = 0.1  # a scale known as well as this came from earlier runs
_NOMINAL_LOG_SD = 0.2  # of the scale, whatever earlier runs taught
_UNKNOWN_BRACKET_DOF = 6.0  # of an instrument unlike what is known: near, and on both sides
_DISTANCES_DOF = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 12.0)  # off focus, asked about
_LESS_SURE = 1.1  # than of a round lens, for a fit of three more numbers
_BRACKET_MARGIN = 1.4  # belief moves with the frames that are still to come
_MOST_STIG_SEEN_DOF = 3.0  # left in a frame whose sharpness is compared with others'
_SEEN_FINE_DOF = 30.0  # fine frames further from focus than this are left out then


@dataclass(frozen=True, slots=True)
class Limits:
    """How the controller may act, and when it is sure enough."""

    most_frames: int = 12
    most_frames_low_dose: int = 60  # where noise is what is left, and more frames will end it
    lowest_z_dof: float = -math.inf  # commands outside are not asked for
    highest_z_dof: float = math.inf
    probe_step_dof: float = 10.0  # signed: the side on which moving is safe or free of backlash
    least_bracket_dof: float = 4.0
    most_bracket_dof: float = 12.0
    wide_ratio: float = 4.0  # field of the wide frames over the fine; 1: there are none
    most_sigma_dof: float = 0.2
    most_stig_sigma_dof: float = 0.25
    least_evidence: float = 8.0  # log-likelihood over "no focus"
    least_presence: float = 5.0  # of the frame that shows most, in standard deviations of noise
    most_misfit: float = 6.0
    has_stigmator: bool = False


@dataclass(frozen=True, slots=True)
class ACNet:
    """The controller; `next_step` is a function of its arguments."""

    limits: Limits = field(default_factory=Limits)
    prior: Prior = field(default_factory=Prior)

    def next_step(self, views: Sequence[FocusView]) -> NextStep:
        """Say what to do after `views`, the first of which is where the instrument stood."""
        if not views:
            message = "the history holds no frame: the first is the one that is there"
            raise ValueError(message)
        start = replace(views[0].command, field_ratio=1.0)
        usable = [v for v in views if v.levels[0].mean > 0 and not v.reason.startswith("saturated")]
        if len(usable) < 2:
            if len(views) >= 4:
                return GiveUp(start, None, f"no usable frame: {views[-1].reason}")
            return self._probe(views)
        prior = self.prior
        wide = [v for v in usable if v.command.field_ratio > 1.0]
        if self._wants_wide(views[0]) or wide:
            if len(wide) < 2:
                return self._probe(views)
            far = believe(wide, replace(self.prior, astigmatism_dof=0.0))
            if not self._is_located(wide, far):
                return self._bracket_wide(wide, views, far)
            near = [v for v in usable if abs(v.command.z_dof - far.z_dof) < _SEEN_FINE_DOF]
            fine = [v for v in near if v.command.field_ratio == 1.0]
            # Three fine frames say more than the wide ones, and owe nothing to them.
            usable = fine if len(fine) >= 3 else wide + fine
            if len(fine) >= 3:
                prior = replace(prior, range_dof=min(prior.range_dof, 1.2 * _SEEN_FINE_DOF))
        belief = believe(usable, prior)
        out_of_frames = len(views) >= self._frames_allowed(views, belief)
        last = views[-1]
        was_verified = self._is_verification(views, belief)
        if was_verified:
            refusal = self._disappointment(usable, belief)
            if not refusal:
                return Done(self._target(belief, start), belief, _remark(views))
            if out_of_frames:
                return GiveUp(start, belief, refusal)
        if out_of_frames:
            reason = f"not sure after {len(views)} frames: sigma {belief.sigma_dof:.2f} DOF"
            return GiveUp(start, belief, reason)
        if max(v.presence for v in usable) < self.limits.least_presence:
            if len(views) >= 6:
                return GiveUp(start, belief, "nothing in the field stands out of the noise")
            return self._search(views, belief)
        is_ready = self._is_sure(usable, belief) or self._may_be_sure(usable, belief)
        if is_ready and not was_verified and last.command.field_ratio == 1.0:
            return self._bounded(self._target(belief, start), "verify", views, belief)
        return self._bracket(usable, views, belief)

    def _frames_allowed(self, views: Sequence[FocusView], belief: FocusBelief) -> int:
        """More than usual only if counting noise is what keeps sigma up: it falls with frames."""
        limits = self.limits
        ratio = belief.sigma_dof / limits.most_sigma_dof
        if limits.has_stigmator:
            ratio = max(ratio, belief.stig_sigma_dof / limits.most_stig_sigma_dof)
        enough = 1.3 * ratio * ratio * len(views) + 2
        # Far surer than asked and still not done: more of the same will not end it.
        if ratio < 0.6 or (self.prior.astigmatism_dof > 0.0 and self._is_known(belief)):
            return limits.most_frames
        if ratio < 4.0 and enough <= limits.most_frames_low_dose and belief.misfit < 1.5:
            return max(limits.most_frames, limits.most_frames_low_dose)
        return limits.most_frames

    def _target(self, belief: FocusBelief, start: FocusCommand) -> FocusCommand:
        stig = (
            (belief.stig_x_dof, belief.stig_y_dof)
            if self.limits.has_stigmator
            else (
                start.stig_x_dof,
                start.stig_y_dof,
            )
        )
        return FocusCommand(belief.z_dof, *stig)

    def _probe(self, views: Sequence[FocusView]) -> NextStep:
        """Step off to learn the side; far from focus the wide field looks first from here."""
        first = views[0].command
        wide = self._wants_wide(views[0])
        if wide and len(views) == 1:
            ratio = self.limits.wide_ratio
            return Measure(replace(first, field_ratio=ratio), "wide field")
        step = self.limits.probe_step_dof
        is_round = self.prior.astigmatism_dof <= 0.0  # else a line focus looks sharp from afar
        if wide:
            step *= self.limits.wide_ratio
        elif is_round and len(views) == 1 and views[0].in_distribution:
            # Near focus a wide step drowns a small defocus in what is not known of the scale.
            most = views[0].defocus_dof + views[0].defocus_sigma_dof
            step *= min(1.0, max(_LEAST_PROBE, _PROBE_PER_DEFOCUS * most / abs(step)))
        step *= -0.8 if len(views) == 3 else 1.0
        ratio = self.limits.wide_ratio if wide else 1.0
        command = replace(first, z_dof=first.z_dof + step, field_ratio=ratio)
        return self._bounded(command, "probe", views, None)

    def _is_located(self, wide: Sequence[FocusView], far: FocusBelief) -> bool:
        """Whether the wide field has done its part: both sides seen, or as often as it may."""
        if len(wide) >= 8:
            return True
        side = 0.5 * self.limits.least_bracket_dof * self.limits.wide_ratio
        off = [v.command.z_dof - far.z_dof for v in wide]
        return far.sigma_dof < _LOCATED_DOF and max(off) > side and min(off) < -side

    def _bracket_wide(
        self, wide: Sequence[FocusView], views: Sequence[FocusView], belief: FocusBelief
    ) -> NextStep:
        """The wide field's own bracket, until focus is near enough for the fine one."""
        ratio = self.limits.wide_ratio
        if len(wide) >= 3 and max(v.presence for v in wide) < self.limits.least_presence:
            if len(wide) >= 7:
                start = replace(views[0].command, field_ratio=1.0)
                return GiveUp(start, belief, "nothing in the field stands out of the noise")
            return self._search(views, belief)
        distance = min(
            max(1.2 * belief.sigma_dof, self.limits.least_bracket_dof * ratio),
            self.limits.most_bracket_dof * ratio,
        )
        near = [v.command.z_dof - belief.z_dof for v in wide]
        above, below = sum(d > 0.3 * distance for d in near), sum(d < -0.3 * distance for d in near)
        middle = float(np.mean([v.command.z_dof for v in wide]))
        side = math.copysign(1.0, belief.z_dof - middle if above == below else below - above)
        low, high = self._range(views)
        taken = np.array([v.command.z_dof for v in wide])
        for offset in (side, -side, 0.5 * side, -0.5 * side):
            z_dof = belief.z_dof + offset * distance
            if low <= z_dof <= high and np.abs(taken - z_dof).min() > ratio:
                break
        command = replace(views[0].command, z_dof=z_dof, field_ratio=ratio)
        return self._bounded(command, "wide bracket", views, belief)

    def _search(self, views: Sequence[FocusView], belief: FocusBelief) -> NextStep:
        """Nothing seen yet: go where nobody looked, near first."""
        first = views[0].command
        reach = self.prior.range_dof
        ratio = views[-1].command.field_ratio
        offsets = np.linspace(-0.75, 0.75, 7) * math.copysign(reach, self.limits.probe_step_dof)
        taken = np.array([v.command.z_dof for v in views])
        gaps = np.abs(first.z_dof + offsets[:, None] - taken).min(axis=1)
        best = int(np.argmax(gaps - 0.2 * np.abs(offsets)))
        command = replace(first, z_dof=first.z_dof + float(offsets[best]), field_ratio=ratio)
        return self._bounded(command, "search", views, belief)

    def _wants_wide(self, first: FocusView) -> bool:
        if self.limits.wide_ratio <= 1.0 or self.prior.range_dof <= _COARSE_DOF:
            return False
        if not first.in_distribution or first.reason:
            return True
        return first.defocus_dof + 2.0 * first.defocus_sigma_dof > 25.0

    def _is_sure(
        self, views: Sequence[FocusView], belief: FocusBelief, margin: float = 1.0
    ) -> bool:
        """Sigmas small enough, and frames on both sides of focus, about equally far.

        With a stigmator the bracket has to be seen with most of the astigmatism gone: what an
        error of scale leaves grows with it. A scale that earlier runs taught leaves less, and
        arms may be longer and less equal. margin < 1: the bracket was good enough a frame ago.
        """
        offsets = self._offsets(views, belief)
        return self._is_known(belief) and self._is_bracket(offsets, belief, margin)

    def _may_be_sure(self, views: Sequence[FocusView], belief: FocusBelief) -> bool:
        """Whether the frame at the answer may well be what is missing; of a taught scale only."""
        if self.prior.blur_log_sd > _TAUGHT_LOG_SD or self.prior.astigmatism_dof > 0.0:
            return False
        if abs(views[-1].command.z_dof - belief.z_dof) < 1.0:
            return False
        enough = belief.sigma_dof <= 2.0 * self.limits.most_sigma_dof
        return enough and self._is_bracket(self._offsets(views, belief), belief)

    def _is_known(self, belief: FocusBelief) -> bool:
        limits = self.limits
        if limits.has_stigmator and belief.stig_sigma_dof > limits.most_stig_sigma_dof:
            return False
        most = limits.most_sigma_dof
        if self.prior.astigmatism_dof > 0.0:
            most *= _LESS_SURE
        return belief.sigma_dof <= most

    def _offsets(self, views: Sequence[FocusView], belief: FocusBelief) -> list[float]:
        """How far off focus the frames were taken that a bracket can be made of."""
        return [
            view.command.z_dof - belief.z_dof
            for view in views
            if view.command.field_ratio == 1.0 and self._stig_off_dof(view.command, belief) <= 1.5
        ]

    def _is_bracket(
        self, offsets: Sequence[float], belief: FocusBelief, margin: float = 1.0
    ) -> bool:
        """Whether there is one on both sides, about equally far off; margin > 1: more equally."""
        least, uneven, most = 2.0 * margin, 2.0, _LONGEST_ARM_DOF
        if self.prior.blur_log_sd <= _TAUGHT_LOG_SD:
            uneven, most = 2.0 * uneven, 2.0 * most
        if self.prior.astigmatism_dof > 0.0:
            # What is left of the astigmatism puts its line foci as far off on both sides.
            least, uneven, most = 1.0, 2.5, 5.0 if self.limits.has_stigmator else 13.0
        if not belief.is_noise_white:
            uneven, most = 2.0, min(most, _UNKNOWN_BRACKET_DOF + 1.0)
        above = [off for off in offsets if least <= off < most]
        below = [-off for off in offsets if least <= -off < most]
        return any(margin / uneven < a / b < uneven / margin for a in above for b in below)

    def _stig_off_dof(self, command: FocusCommand, belief: FocusBelief) -> float:
        return self._stig_left_dof(command, belief) if self.limits.has_stigmator else 0.0

    def _stig_left_dof(self, command: FocusCommand, belief: FocusBelief) -> float:
        return math.hypot(
            command.stig_x_dof - belief.stig_x_dof, command.stig_y_dof - belief.stig_y_dof
        )

    def _is_verification(self, views: Sequence[FocusView], belief: FocusBelief) -> bool:
        """Whether the last frame lies where focus is believed to be, and all is known."""
        last = views[-1].command
        if last.field_ratio != 1.0 or not self._is_sure(views[:-1], belief, 0.8):
            return False
        off = math.hypot(last.z_dof - belief.z_dof, self._stig_off_dof(last, belief))
        return off <= 0.6

    def _disappointment(self, views: Sequence[FocusView], belief: FocusBelief) -> str:
        """Say why the verification fails, "" if it does not."""
        if belief.misfit > self.limits.most_misfit:
            return f"the frames do not fit any focus: misfit {belief.misfit:.1f}"
        if belief.evidence < self.limits.least_evidence:
            return "nothing in the field changes with focus"
        off = abs(math.log(belief.scale / self.prior.blur_px_per_dof))
        # Near focus, where an astigmatic lens is bracketed, scale and shape are hardly told apart.
        most = 2.5 if self.prior.astigmatism_dof <= 0.0 else 3.0
        if off > most * max(self.prior.blur_log_sd, _NOMINAL_LOG_SD):
            return f"the blur's scale is off by {math.expm1(off):.0%}: no optics looks like that"
        if max(v.presence for v in views) < self.limits.least_presence:
            return "nothing in the field stands out of the noise"
        last = views[-1]
        if self._stig_left_dof(last.command, belief) > _MOST_STIG_SEEN_DOF:
            return ""  # the circle of least confusion is no sharper than a line, where noise counts
        fineness = fineness_all_round if self.prior.astigmatism_dof > 0.0 else fineness_of_rings
        mine, spread = fineness(last)
        for other in views[:-1]:
            if other.pixel_ratio != last.pixel_ratio:
                continue
            theirs, their_spread = fineness(other)
            if theirs - mine > 3.0 * math.hypot(spread, their_spread) + 0.25:
                return f"the frame at {other.command.z_dof:.2f} DOF was sharper than the last"
        return ""

    def _bracket(
        self, usable: Sequence[FocusView], views: Sequence[FocusView], belief: FocusBelief
    ) -> NextStep:
        """Look from the other side of focus than the frames that count most."""
        if self.prior.astigmatism_dof > 0.0:
            return self._telling(usable, views, belief)
        limits = self.limits
        z = belief.z_dof
        telling = best_bracket_dof(usable, belief, self.prior)
        most = limits.most_bracket_dof if belief.is_noise_white else _UNKNOWN_BRACKET_DOF
        distance = min(max(1.2 * belief.sigma_dof, telling, limits.least_bracket_dof), most)
        near = [
            v.command.z_dof - z
            for v in usable
            if v.command.field_ratio == 1.0 and abs(v.command.z_dof - z) < 2.5 * distance
        ]
        # What stands at about that distance counts: two frames that are equally sharp bracket best.
        above = sum(0.6 * distance < d < 1.7 * distance for d in near)
        below = sum(0.6 * distance < -d < 1.7 * distance for d in near)
        if above == below:
            middle = float(np.mean([v.command.z_dof for v in usable]))
            side = math.copysign(1.0, z - middle)
        else:
            side = 1.0 if above < below else -1.0
        command = replace(views[-1].command, z_dof=z + side * distance, field_ratio=1.0)
        if len(views) >= 6 and belief.sigma_dof < 1.5:
            # What is left is noise: the same places again, so that their frames can be summed.
            for view in usable:
                near_by = abs(view.command.z_dof - command.z_dof) < 0.3 * distance
                if near_by and replace(view.command, z_dof=command.z_dof) == command:
                    command = view.command
                    break
        return self._bounded(command, "bracket", views, belief)

    def _telling(
        self, usable: Sequence[FocusView], views: Sequence[FocusView], belief: FocusBelief
    ) -> NextStep:
        """Look where a frame is expected to tell most about focus and astigmatism."""
        limits = self.limits
        z, last = belief.z_dof, views[-1].command
        stigs = {(last.stig_x_dof, last.stig_y_dof)}
        if limits.has_stigmator:
            stigs.add((belief.stig_x_dof, belief.stig_y_dof))
        low, high = self._range(views)
        commands = [
            FocusCommand(z + side * distance, *stig)
            for stig in sorted(stigs)
            for distance in _DISTANCES_DOF
            for side in (-1.0, 1.0)
            if low <= z + side * distance <= high
        ]
        if not commands:
            return self._bounded(FocusCommand(z), "bracket", views, belief)
        if self._is_known(belief):
            # What is missing is the bracket.
            offsets = self._offsets(usable, belief)
            commands = [
                c
                for c in commands
                if self._stig_off_dof(c, belief) <= 1.5
                and self._is_bracket([*offsets, c.z_dof - z], belief, _BRACKET_MARGIN)
            ] or commands
        best, _ = most_telling(usable, self.prior, commands, has_stigmator=limits.has_stigmator)
        return self._bounded(commands[best], "bracket", views, belief)

    def _range(self, views: Sequence[FocusView]) -> tuple[float, float]:
        """Commands that may be asked for: the limits, and no further out than a bracket needs."""
        first = views[0].command.z_dof
        is_coarse = self.prior.range_dof > _COARSE_DOF
        beyond = self.limits.most_bracket_dof * (2.0 if is_coarse else 1.0)
        reach = self.prior.range_dof + beyond
        return max(self.limits.lowest_z_dof, first - reach), min(
            self.limits.highest_z_dof, first + reach
        )

    def _bounded(
        self,
        command: FocusCommand,
        purpose: str,
        views: Sequence[FocusView],
        belief: FocusBelief | None,
    ) -> NextStep:
        """Keep a step within the limits: the other side of focus, or nearer, or not at all."""
        low, high = self._range(views)
        if low <= command.z_dof <= high:
            return Measure(command, purpose)
        start = replace(views[0].command, field_ratio=1.0)
        if purpose == "probe":
            other = replace(command, z_dof=2.0 * start.z_dof - command.z_dof)
            if low <= other.z_dof <= high:
                return Measure(other, purpose)
        if purpose != "verify":
            inside = min(max(command.z_dof, low), high)
            taken = min(abs(v.command.z_dof - inside) for v in views)
            if taken > 1.0:
                return Measure(replace(command, z_dof=inside), purpose)
        reason = f"focus is believed at {command.z_dof:.1f} DOF, outside {low:.1f} to {high:.1f}"
        return GiveUp(start, belief, reason)


def fineness_of_rings(view: FocusView) -> tuple[float, float]:
    """Logarithm of gradient energy over the noise, gain left in, and its standard deviation."""
    power, modes = view.levels[0].isotropic
    found, spread = _gradient_energy(view.levels[0], power[:, None], modes[:, None])
    return float(found[0]), float(spread[0])


def fineness_all_round(view: FocusView) -> tuple[float, float]:
    """As `fineness_of_rings`, the mean of the logarithms along all directions.

    A line focus is sharp along one direction and worst across it: the mean is highest at the circle
    of least confusion, where the energy itself is not.
    """
    level = view.levels[0]
    found, spread = _gradient_energy(level, level.power, level.modes)
    return float(found.mean()), float(np.sqrt(np.square(spread).mean() / len(spread)))


def _gradient_energy(level: BandPower, power: F64, modes: F64) -> tuple[F64, F64]:
    """Logarithm and its standard deviation, (directions,); power and modes (bands, directions)."""
    rings = np.arange(len(power))[:, None]
    weight = modes * np.exp(2.0 * 0.22 * rings) * (rings < 14)
    signal = (weight * (power - level.floor)).sum(axis=0)
    variance = (np.square(weight * level.floor) / np.maximum(modes, 0.1)).sum(axis=0)
    variance += np.square(weight.sum(axis=0) * level.floor) / level.floor_modes
    noise = np.sqrt(variance)
    floored = np.maximum(signal, noise)
    return np.log(floored), noise / floored


def _remark(views: Sequence[FocusView]) -> str:
    return next((v.reason for v in views if v.reason), "")
