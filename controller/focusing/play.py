"""Measuring what a focus axis owes to the direction it comes from, by focusing from both sides.

Four focuses on the same place: from above, from below, from below after a longer way, and from
above again. Their disagreement is the gap and the share of hysteresis; the first and the last tell
what drifted meanwhile. Some twenty frames, once for an instrument; after it every last move is as
long as that gap needs (`approach.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from controller.focusing.approach import FoundFrom, Play, play_of
from controller.focusing.once import Stand

_SHORT_UNITS: Final = 14.0  # of the last move; beyond any gap worth living with
_LONG_RATIO: Final = 2.5
_RANGE_UNITS: Final = 30.0  # a gap off, and the way back


@dataclass(frozen=True, slots=True)
class PlayFound:
    """What was measured, or why not."""

    play: Play | None  # None: `reason` says why
    reason: str
    frames: int
    found: tuple[FoundFrom, ...]


async def measure_play(stand: Stand) -> PlayFound:
    """Focus from above and from below; ends in focus, from above, or where it began.

    The lens must stand within its range of focus: call it after a focus.
    """
    few, motion = stand.few, stand.motion
    short_um = _SHORT_UNITS * few.depth_of_field_um
    prior = replace(few.acnet.prior, range_dof=_RANGE_UNITS, astigmatism_dof=0.0)
    limits = replace(few.acnet.limits, has_stigmator=False)
    found: list[FoundFrom] = []
    frames = 0
    for last_move_um in (-short_um, short_um, _LONG_RATIO * short_um, -short_um):
        side = replace(
            few, overshoot_um=-last_move_um, acnet=replace(few.acnet, prior=prior, limits=limits)
        )
        result = await side.focus(motion, stand.observe, stand.z_um, None, stand.thread)
        frames += len(result.steps) + result.stale_frames
        if not result.is_focused:
            way = "above" if last_move_um < 0.0 else "below"
            return PlayFound(None, f"no focus from {way}: {result.reason}", frames, tuple(found))
        frame = result.steps[-1].frame
        at_s = (frame.exposed_from_s + frame.exposed_until_s) / 2.0
        found.append(FoundFrom(last_move_um, result.focus_z_um, result.sigma_um, at_s))
    return PlayFound(play_of(found), "", frames, tuple(found))


def with_play(stand: Stand, play: Play) -> Stand:
    """The same with a last move that takes the measured gap up."""
    few = stand.few
    return replace(stand, few=replace(few, overshoot_um=max(few.overshoot_um, play.overshoot_um)))
