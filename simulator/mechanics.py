"""How a motorised axis really moves: trapezoid of speed, ring-down, backlash, drift, encoder noise.

Everything here is a pure function of a moment `now_s` and a seed; no clock, no state. A `Motion` is
a list of legs of constant acceleration that ends at rest; commanding an axis that is on its way
makes a new Motion from where it is and how fast it goes, so a halt decelerates and a reversal takes
the time it takes.

The encoder sits on the motor's side. Between it and the sample lie:

- backlash, as mechanical play: the sample is dragged by one flank of the thread or the other and
  stays put while the play is being crossed (G. Tao, P. V. Kokotovic, Adaptive Control of Systems
  with Actuator and Sensor Nonlinearities, Wiley 1996, ch. 2);
- ring-down: after a stop the carriage swings on the stiffness of its drive as a damped oscillator,
  x(t) = A exp(-t/tau) sin(2 pi f t), with A in proportion to the move's top speed and tau a quarter
  of the declared settling time, so 2 % of A are left when an image is promised to be sharp;
- drift, thermal and slow: a constant rate and a wander of slow sinusoids with random phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

_RINGS_PER_SETTLE = 4.0  # settle_s in units of the ring-down's time constant


class AxisSettings(BaseModel):
    """One motorised axis, travel and flaws."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_um: float = Field(default=-60_000.0, ge=-1e6, le=1e6)
    max_um: float = Field(default=60_000.0, ge=-1e6, le=1e6)
    start_um: float = Field(default=0.0, ge=-1e6, le=1e6)
    speed_um_per_s: float = Field(default=10_000.0, gt=0, le=1e6)
    acceleration_um_per_s2: float = Field(default=100_000.0, gt=0, le=1e8)
    settle_s: float = Field(default=0.05, ge=0, le=10)
    resolution_um: float = Field(default=0.1, gt=0, le=100)
    ring_amplitude_um: float = Field(default=2.0, ge=0, le=100)  # after a stop from full speed
    ring_frequency_hz: float = Field(default=40.0, gt=0, le=1000)
    backlash_um: float = Field(default=1.0, ge=0, le=100)  # width of the play
    encoder_noise_um: float = Field(default=0.02, ge=0, le=10)  # one standard deviation
    drift_um_per_min: float = Field(default=0.02, ge=0, le=100)  # constant, in a seeded direction
    wander_um: float = Field(default=0.05, ge=0, le=100)  # one standard deviation, over minutes

    @model_validator(mode="after")
    def _travel_holds_the_start(self) -> AxisSettings:
        if not self.min_um <= self.start_um <= self.max_um:
            raise ValueError("start_um must lie between min_um and max_um")
        if self.min_um == self.max_um:
            raise ValueError("min_um and max_um must differ")
        return self


@dataclass(frozen=True, slots=True)
class Leg:
    """A piece of constant acceleration without reversal; lasts until the next leg begins."""

    start_s: float
    position_um: float  # at its start, on the encoder
    velocity_um_per_s: float  # at its start
    acceleration_um_per_s2: float
    sample_um: float  # at its start, behind the backlash


@dataclass(frozen=True, slots=True)
class Motion:
    """One axis from the last command on. The last leg is rest."""

    legs: tuple[Leg, ...]
    play_um: float
    top_speed_um_per_s: float  # signed; what the ring-down after the stop grows with

    @property
    def ends_s(self) -> float:
        """When the axis stands still."""
        return self.legs[-1].start_s

    def is_moving(self, now_s: float) -> bool:
        """Whether the axis is on its way at `now_s`."""
        return now_s < self.ends_s

    def encoder_um(self, now_s: float) -> float:
        """Position on the motor's side, noise-free."""
        return self._at(now_s)[1]

    def velocity_um_per_s(self, now_s: float) -> float:
        """Speed on the motor's side."""
        leg, _ = self._at(now_s)
        since_s = max(0.0, now_s - leg.start_s)
        return leg.velocity_um_per_s + leg.acceleration_um_per_s2 * since_s

    def sample_um(self, now_s: float) -> float:
        """Position of the sample behind the play, without ring-down and drift."""
        leg, encoder_um = self._at(now_s)
        return _dragged_um(leg.sample_um, encoder_um, self.play_um)

    def _at(self, now_s: float) -> tuple[Leg, float]:
        leg = self.legs[0]
        for later in self.legs[1:]:
            if now_s < later.start_s:
                break
            leg = later
        since_s = max(0.0, now_s - leg.start_s)
        speed, acceleration = leg.velocity_um_per_s, leg.acceleration_um_per_s2
        return leg, leg.position_um + speed * since_s + 0.5 * acceleration * since_s**2


def at_rest(position_um: float, play_um: float, now_s: float = 0.0) -> Motion:
    """An axis that stands at `position_um`, having come from below."""
    return _motion([], now_s, position_um, position_um - play_um / 2, play_um, 0.0)


def moved(axis: AxisSettings, motion: Motion, now_s: float, target_um: float) -> Motion:
    """The motion after the command "go to `target_um`", given at `now_s`."""
    limit, rate = axis.speed_um_per_s, axis.acceleration_um_per_s2
    from_um, speed = motion.encoder_um(now_s), motion.velocity_um_per_s(now_s)
    stop_um = from_um + speed * abs(speed) / (2 * rate)  # where a full brake would end
    sign = math.copysign(1.0, target_um - stop_um)
    distance_um, ahead = (target_um - from_um) * sign, speed * sign
    # ahead^2 may exceed what the distance needs by rounding only: full brake is the worst case.
    top = min(limit, math.sqrt(max(0.0, rate * distance_um + ahead**2 / 2)))
    steps: list[tuple[float, float]] = []  # (duration_s, acceleration)
    if ahead < 0:  # turn round first; a leg never holds a reversal
        steps.append((-ahead / rate, rate * sign))
        ahead = 0.0
        distance_um = abs(target_um - stop_um)
    top = max(top, ahead)
    steps.append(((top - ahead) / rate, rate * sign))
    cruise_um = distance_um - (top**2 - ahead**2) / (2 * rate) - top**2 / (2 * rate)
    if top > 0:
        steps.append((max(0.0, cruise_um) / top, 0.0))
    steps.append((top / rate, -rate * sign))
    return _planned(motion, now_s, steps, target_um, top * sign)


def halted(axis: AxisSettings, motion: Motion, now_s: float) -> Motion:
    """The motion after a halt at `now_s`: full deceleration, then rest."""
    speed, rate = motion.velocity_um_per_s(now_s), axis.acceleration_um_per_s2
    if not motion.is_moving(now_s):
        return motion
    steps = [(abs(speed) / rate, -math.copysign(rate, speed))]
    stop_um = motion.encoder_um(now_s) + speed * abs(speed) / (2 * rate)
    return _planned(motion, now_s, steps, stop_um, speed)


def ring_um(axis: AxisSettings, motion: Motion, now_s: float) -> float:
    """How far the carriage swings out at `now_s` after the stop."""
    since_s = now_s - motion.ends_s
    if since_s < 0 or axis.settle_s == 0 or motion.top_speed_um_per_s == 0:
        return 0.0
    amplitude_um = axis.ring_amplitude_um * motion.top_speed_um_per_s / axis.speed_um_per_s
    damping = math.exp(-_RINGS_PER_SETTLE * since_s / axis.settle_s)
    return amplitude_um * damping * math.sin(2 * math.pi * axis.ring_frequency_hz * since_s)


def noise_um(axis: AxisSettings, seed: int, now_s: float) -> float:
    """The encoder's error at `now_s`: Gaussian, white, the same for the same moment."""
    word = (round(now_s * 1e9) * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95) & _WORD
    first, second = _mixed(word), _mixed(word ^ 0x5851F42D4C957F2D)
    radius = math.sqrt(-2 * math.log((first + 1) / (_WORD + 2)))
    return axis.encoder_noise_um * radius * math.cos(2 * math.pi * second / _WORD)


@dataclass(frozen=True, slots=True)
class Drift:
    """Slow creep of the sample against the optical axis, 0 at 0 s."""

    rate_um_per_s: float
    waves: tuple[tuple[float, float, float], ...]  # (amplitude_um, angular frequency 1/s, phase)

    def at_um(self, since_s: float) -> float:
        """Creep `since_s` seconds after the instrument was opened."""
        wander_um = sum(
            amplitude_um * (math.sin(omega * since_s + phase) - math.sin(phase))
            for amplitude_um, omega, phase in self.waves
        )
        return self.rate_um_per_s * since_s + wander_um


def seeded_drift(axis: AxisSettings, seed: int) -> Drift:
    """The drift of one axis: direction, periods (2 to 30 min) and phases follow from the seed."""
    random = np.random.default_rng([seed, 0xD41F7])
    waves = 6
    # A sinusoid that starts at 0 has a mean square of its amplitude^2 over all phases.
    amplitude_um = axis.wander_um / math.sqrt(waves)
    periods_s = np.exp(random.uniform(math.log(120), math.log(1800), waves))
    phases = random.uniform(0, 2 * math.pi, waves)
    sign = 1.0 if random.random() < 0.5 else -1.0
    return Drift(
        rate_um_per_s=sign * axis.drift_um_per_min / 60,
        waves=tuple(
            (amplitude_um, 2 * math.pi / float(period_s), float(phase))
            for period_s, phase in zip(periods_s, phases, strict=True)
        ),
    )


def move_time_s(distance_um: float, speed_um_per_s: float, acceleration_um_per_s2: float) -> float:
    """Shortest time for a move from rest to rest."""
    distance_um = abs(distance_um)
    if distance_um < speed_um_per_s**2 / acceleration_um_per_s2:
        return 2 * math.sqrt(distance_um / acceleration_um_per_s2)
    return distance_um / speed_um_per_s + speed_um_per_s / acceleration_um_per_s2


_WORD = 0xFFFF_FFFF_FFFF_FFFF


def _mixed(word: int) -> int:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the word."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _dragged_um(sample_um: float, encoder_um: float, play_um: float) -> float:
    """The sample after a one-way motion of the screw to `encoder_um`."""
    return min(max(sample_um, encoder_um - play_um / 2), encoder_um + play_um / 2)


def _planned(
    motion: Motion,
    now_s: float,
    steps: Sequence[tuple[float, float]],
    end_um: float,
    top_speed_um_per_s: float,
) -> Motion:
    """Legs from `steps` of (duration_s, acceleration), then rest exactly at `end_um`."""
    play_um = motion.play_um
    position_um, speed = motion.encoder_um(now_s), motion.velocity_um_per_s(now_s)
    sample_um, start_s = motion.sample_um(now_s), now_s
    legs: list[Leg] = []
    for duration_s, acceleration in steps:
        if duration_s <= 0:
            continue
        legs.append(Leg(start_s, position_um, speed, acceleration, sample_um))
        position_um += speed * duration_s + 0.5 * acceleration * duration_s**2
        speed += acceleration * duration_s
        sample_um = _dragged_um(sample_um, position_um, play_um)
        start_s += duration_s
    return _motion(legs, start_s, end_um, sample_um, play_um, top_speed_um_per_s)


def _motion(
    legs: list[Leg],
    ends_s: float,
    end_um: float,
    sample_um: float,
    play_um: float,
    top_speed_um_per_s: float,
) -> Motion:
    rest = Leg(ends_s, end_um, 0.0, 0.0, _dragged_um(sample_um, end_um, play_um))
    return Motion((*legs, rest), play_um, top_speed_um_per_s)
