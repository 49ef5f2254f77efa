"""Holding focus during a live view: when to look, when to move, and when to leave it alone. Pure.

What is believed is where focus lies and how fast it drifts, with the covariance of both: a Kalman
filter whose rate may wander. Two things cost something. A frame out of focus costs whoever watches,
with the square of how far; a correction costs a move, during which the frame at hand is spoilt, and
a check costs two frames that are blurred on purpose, on both sides of focus, because a frame in
focus says next to nothing about where focus went.

So: correct when the believed error is beyond what a move is worth and plainly more than its own
sigma; check when the sigma of the belief has grown to what must not be missed, or when a frame
shows that it is blurred; otherwise watch. A lens that drifts at a steady rate is then followed by
small moves with hardly a check; one that does not drift is checked less and less, and never moved.

Lengths are in the few-frame focus's unit (a depth of field of a beam), times in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, Field

_RISK_RATIO = 0.8  # of the tolerance


class HoldSettings(BaseModel):
    """How closely focus is held, in the few-frame focus's units."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tolerance: float = Field(0.5, gt=0.0, le=10.0)
    """Further off than this is out of focus."""
    most_sigma: float = Field(0.15, gt=0.0, le=5.0)
    """Surer than this, nothing has to be looked at."""
    least_move: float = Field(0.15, ge=0.0, le=5.0)
    """A smaller error is not worth the move that mends it."""
    move_sigmas: float = Field(2.0, ge=0.0, le=10.0)
    """Nor is one that is not that many of its own sigmas."""
    first_rate_sd: float = Field(0.3, gt=0.0, le=10.0)
    """Drift to be expected before it was seen, per second."""
    rate_walk: float = Field(0.004, ge=0.0, le=1.0)
    """How much the drift's rate changes in a second, with the root of time."""
    walk: float = Field(0.01, ge=0.0, le=1.0)
    """What focus itself wanders, likewise."""
    check_distance: float = Field(4.0, ge=1.0, le=20.0)
    longest_s: float = Field(60.0, gt=0.0, le=86_400.0)
    """Between two checks, however sure."""
    rest_s: float = Field(2.0, ge=0.0, le=3_600.0)
    """After a check that found nothing."""
    blurred_sigmas: float = Field(5.0, ge=2.0, le=100.0)
    """A frame that has lost that much of its sharpness is reason enough for a check."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is believed of focus: its command at `at_s`, its drift, and how surely."""

    z: float
    rate: float  # per second
    z_variance: float
    covariance: float
    rate_variance: float
    at_s: float
    checked_s: float  # when it was last looked for
    sharp: float | None = None  # log sharpness of a frame in focus; None: none was seen yet
    is_doubtful: bool = False  # a frame was more blurred than it should be
    rests_until_s: float = -math.inf  # no second doubt before this


@dataclass(frozen=True, slots=True)
class Watch:
    """Leave it alone; take the next frame."""


@dataclass(frozen=True, slots=True)
class Correct:
    """Move there; no frame is wanted."""

    z: float


@dataclass(frozen=True, slots=True)
class Check:
    """Take a frame on each side, then go back to what is believed."""

    first_z: float
    second_z: float


HoldStep: TypeAlias = Watch | Correct | Check


def begin_hold(z: float, sigma: float, now_s: float, settings: HoldSettings) -> Held:
    """After a focus at z."""
    return Held(z, 0.0, sigma**2, 0.0, settings.first_rate_sd**2, now_s, now_s)


def predicted(held: Held, now_s: float, settings: HoldSettings) -> Held:
    """What is believed at a later time, with nothing seen meanwhile."""
    t = max(0.0, now_s - held.at_s)
    q = settings.rate_walk**2
    return replace(
        held,
        z=held.z + held.rate * t,
        z_variance=held.z_variance
        + 2.0 * t * held.covariance
        + t**2 * held.rate_variance
        + q * t**3 / 3.0
        + settings.walk**2 * t,
        covariance=held.covariance + t * held.rate_variance + q * t**2 / 2.0,
        rate_variance=held.rate_variance + q * t,
        at_s=max(now_s, held.at_s),
    )


def found(held: Held, z: float, sigma: float, at_s: float, settings: HoldSettings) -> Held:
    """After a check that found focus at z, at that time."""
    before = predicted(held, at_s, settings)
    variance = before.z_variance + sigma**2
    off = z - before.z
    # A jump that neither drift nor wandering explains: the old belief of where it is goes.
    if off**2 > 25.0 * variance:
        return replace(
            before,
            z=z,
            z_variance=sigma**2,
            covariance=0.0,
            rate_variance=settings.first_rate_sd**2,
            checked_s=at_s,
            is_doubtful=False,
        )
    gain_z, gain_rate = before.z_variance / variance, before.covariance / variance
    return replace(
        before,
        z=before.z + gain_z * off,
        rate=before.rate + gain_rate * off,
        z_variance=(1.0 - gain_z) * before.z_variance,
        covariance=(1.0 - gain_z) * before.covariance,
        rate_variance=before.rate_variance - gain_rate * before.covariance,
        checked_s=at_s,
        is_doubtful=False,
    )


def not_found(held: Held, now_s: float, settings: HoldSettings) -> Held:
    """After a check that found nothing: leave it alone for a while."""
    rests_until_s = now_s + settings.rest_s
    return replace(held, checked_s=now_s, is_doubtful=False, rests_until_s=rests_until_s)


def seen(held: Held, log_sharpness: float, spread: float, settings: HoldSettings) -> Held:
    """After a live frame: doubt, where it is not as sharp as those in focus were.

    The sharpest few make the reference, which forgets slowly: the view moves on.
    """
    if held.sharp is None:
        return replace(held, sharp=log_sharpness)
    lost = held.sharp - log_sharpness
    if lost > settings.blurred_sigmas * spread + 0.15:
        return replace(held, is_doubtful=True, sharp=held.sharp - 0.05 * lost)
    return replace(held, sharp=held.sharp - 0.05 * lost if lost > 0.0 else log_sharpness)


def moved_by_hand(held: Held, z: float, now_s: float, settings: HoldSettings) -> Held:
    """After somebody else moved the lens: what they chose is in focus, as far as anybody knows."""
    return begin_hold(z, settings.tolerance, now_s, settings)


def next_hold_step(held: Held, lens_z: float, now_s: float, settings: HoldSettings) -> HoldStep:
    """Say what pays now, with the lens at `lens_z`."""
    here = predicted(held, now_s, settings)
    sigma, off = math.sqrt(here.z_variance), here.z - lens_z
    is_worth_it = abs(off) > max(settings.least_move, settings.move_sigmas * sigma)
    if now_s >= held.rests_until_s:
        is_late = now_s - held.checked_s > settings.longest_s
        # Perhaps out of focus already, and not sure enough to mend it blindly.
        is_risky = not is_worth_it and abs(off) + 2.0 * sigma > _RISK_RATIO * settings.tolerance
        if held.is_doubtful or is_late or is_risky or sigma > settings.most_sigma:
            d = settings.check_distance
            return Check(here.z + d, here.z - d)
    if is_worth_it:
        # A drift that is plain goes on: half a move ahead, the mean is nought.
        is_plain = abs(here.rate) > 2.0 * math.sqrt(max(here.rate_variance, 0.0))
        ahead = 0.5 * settings.least_move if is_plain else 0.0
        return Correct(here.z + math.copysign(ahead, here.rate))
    return Watch()
