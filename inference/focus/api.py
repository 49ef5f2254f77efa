"""The words of the few-frame focus: what was seen where, what is believed, what to do next.

Lengths are in depths of field (DOF) here; `Scale` says what one is in micrometres, and only the
caller converts. Position and astigmatism are the instrument's commands; the truth sought is the
command at which the sample is in focus. w - z > 0 in this file's sense means that the lens's focus
lies beyond the sample by that much, whichever way the instrument's axis points: only differences
of commands matter to the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from inference.focus.spectrum import BandPower


@dataclass(frozen=True, slots=True)
class FocusCommand:
    """Where an instrument was told to be, or is to go; all in DOF."""

    z_dof: float
    stig_x_dof: float = 0.0  # cos(2 theta) part: x axis against y axis
    stig_y_dof: float = 0.0  # sin(2 theta) part: one diagonal against the other
    field_ratio: float = 1.0  # field of view (and pixel) over the one that is to be focused


@dataclass(frozen=True, slots=True, eq=False)
class FocusView:
    """What was seen of one frame, and the command it was seen at."""

    command: FocusCommand
    pixel_ratio: float  # size of the frame's pixel over that of the frame to be focused
    levels: tuple[BandPower, ...]  # fine first; wider fields where the frame had the pixels
    presence: float  # structure over what noise scatters, in standard deviations; < 6: nothing
    score: float  # 0..9, 9 in focus, independent of magnification
    defocus_dof: float  # |defocus| from this frame alone
    defocus_sigma_dof: float
    in_distribution: bool
    reason: str  # why not, "" when in distribution


@dataclass(frozen=True, slots=True)
class FocusBelief:
    """Where focus is believed to be, after all frames."""

    z_dof: float
    sigma_dof: float
    stig_x_dof: float
    stig_y_dof: float
    stig_sigma_dof: float  # 0 where the stigmator was not asked about
    sign_probability: float  # that focus lies on the believed side of the first frame
    evidence: float  # log-likelihood over that of frames which no focus tells apart
    misfit: float  # squared residual over what the model allows; about 1 when it holds
    scale: float  # blur radius, pixels per DOF, posterior mean
    scale_log_sd: float
    shape_probabilities: tuple[float, ...]  # in the order of blur.SHAPES
    is_noise_white: bool = True  # False: the floor was found to differ from band to band


@dataclass(frozen=True, slots=True)
class Measure:
    """Take one frame there."""

    command: FocusCommand
    purpose: str


@dataclass(frozen=True, slots=True)
class Done:
    """Focus is at `command`, verified by the last frame; the instrument is there or goes there."""

    command: FocusCommand
    belief: FocusBelief
    reason: str  # "" or what was out of the ordinary


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Cannot focus: `command` is where the instrument was, and where it goes back to."""

    command: FocusCommand
    belief: FocusBelief | None
    reason: str


NextStep: TypeAlias = Measure | Done | GiveUp
