"""How well one frame is focused: a score that no magnification changes, |defocus|, and a flag.

One frame of a symmetric lens cannot tell the sign of its defocus, and its sharpness cannot be told
from the object's own smoothness; what it does tell is how its spectrum falls, and objects are alike
enough that a small network makes |defocus| with an honest sigma of it. The network sees band powers
only, over the noise floor: no pixels, no magnification, no gain. It is a guide for the first step
and a score for the operator; where focus is, the posterior over several frames says.

Without a network (or where it says the frame is unlike anything it knows) the same question is
answered by the physics alone, with a wider sigma, and the view says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from inference.api import BadModel
from inference.engine import Engine
from inference.focus.api import FocusCommand, FocusView
from inference.focus.likelihood import Prior
from inference.focus.posterior import believe_round
from inference.focus.spectrum import BANDS, BandPower, Grey, band_powers

F32: TypeAlias = npt.NDArray[np.float32]

FEATURES = 2 * BANDS
LEAST_PRESENCE = 5.0  # standard deviations of noise
_MOST_SATURATED_RATIO = 0.2
_SCORE_HALF_DOF = 4.0  # |defocus| at which the score is half of 9
_SMALLEST_DOF = 0.25  # of |defocus| that one frame can tell from none
_FULL_SCALES = (255, 1_023, 4_095, 16_383, 65_535)


@dataclass(frozen=True, slots=True)
class AENet:
    """Look at one frame; `engine` None means physics only."""

    engine: Engine | None = None
    most_binning: int = 4

    @property
    def name(self) -> str:
        """What answers."""
        return "spectral physics" if self.engine is None else f"AENet on {self.engine.describe()}"

    def look(
        self, pixels: Grey, command: FocusCommand, pixel_ratio: float = 1.0, bit_depth: int = 0
    ) -> FocusView:
        """Reduce a frame to what it says about focus.

        pixels: (h, w) or (h, w, 3), at least 256 px a side, y down. `pixel_ratio`: size of a pixel
        over that of the frame to be focused. bit_depth 0: guessed from what the frame holds.
        Raises BadImage for other shapes, BadModel if the engine breaks its promise.
        """
        levels = band_powers(pixels, self.most_binning)
        present = max(presence(level) for level in levels)
        view = FocusView(
            command=command,
            pixel_ratio=pixel_ratio,
            levels=levels,
            presence=present,
            score=0.0,
            defocus_dof=0.0,
            defocus_sigma_dof=math.inf,
            in_distribution=True,
            reason="",
        )
        if not levels[0].mean > 0:
            return replace(view, in_distribution=False, reason="black frame")
        saturated = _saturated_ratio(pixels, bit_depth)
        if saturated > _MOST_SATURATED_RATIO:
            reason = f"saturated: {saturated:.0%} of the pixels"
            return replace(view, in_distribution=False, reason=reason)
        if present < LEAST_PRESENCE:
            reason = f"nothing in the field stands out of the noise ({present:.1f} sigma)"
            return replace(view, in_distribution=False, reason=reason)
        if self.engine is None:
            return self._by_physics(view, "no network: physics only")
        return self._by_network(view)

    def _by_physics(self, view: FocusView, reason: str) -> FocusView:
        believed = believe_round([view], Prior())
        # One frame's posterior is symmetric about its own command: its spread is the answer.
        off = math.hypot(believed.sigma_dof, believed.z_dof - view.command.z_dof)
        return replace(
            view,
            score=_score(0.8 * off),
            defocus_dof=0.8 * off,
            defocus_sigma_dof=0.6 * off + 1.0,
            reason=reason,
        )

    def _by_network(self, view: FocusView) -> FocusView:
        if self.engine is None:
            return view
        # The finest level that has structure answers; a wide one counts pixels of its own size.
        level = next(lv for lv in view.levels if presence(lv) >= LEAST_PRESENCE)
        answer = self.engine.run(features(level)[None])
        if answer.shape != (1, 3) or not np.all(np.isfinite(answer)):
            message = f"AENet promised (1, 3) finite numbers, got {answer.shape}"
            raise BadModel(message)
        pixel = view.pixel_ratio * level.binning
        log_defocus, log_sd, familiar = (float(a) for a in answer[0])
        defocus = max(math.exp(log_defocus) - _SMALLEST_DOF, 0.0) * pixel
        sigma = (math.exp(log_defocus) * math.expm1(min(math.exp(log_sd), 3.0)) + 0.1) * pixel
        if familiar < 0.0:
            return self._by_physics(view, "unlike what the network knows: physics only")
        return replace(view, score=_score(defocus), defocus_dof=defocus, defocus_sigma_dof=sigma)


def _score(defocus_dof: float) -> float:
    return 9.0 / (1.0 + (defocus_dof / _SCORE_HALF_DOF) ** 2) if math.isfinite(defocus_dof) else 0.0


def features(level: BandPower) -> F32:
    """What the network sees, (2 * BANDS,): log power over the floor, and share of signal.

    Gain and contrast drop out: the log power is counted from its own weighted mean.
    """
    power, modes = level.isotropic
    signal = np.maximum(power - level.floor, 0.05 * level.floor / np.sqrt(modes))
    share = np.clip((power - level.floor) / power, 0.0, 1.0)
    log_signal = np.log(signal)
    log_signal -= float((share * log_signal).sum() / max(float(share.sum()), 1e-6))
    return np.concatenate([np.clip(log_signal / 4.0, -4.0, 4.0), share]).astype(np.float32)


def presence(level: BandPower) -> float:
    """Structure in the frame, in standard deviations of what noise alone scatters.

    Power of n modes of noise is a Gamma variate; Wilson and Hilferty's cube root makes it normal.
    """
    power, modes = level.isotropic
    best = -math.inf
    for low, high in ((0, 6), (6, 8), (8, 10), (10, 12), (12, 14)):
        n = float(modes[low:high].sum())
        ratio = float((power[low:high] * modes[low:high]).sum()) / n / level.floor
        spread = math.sqrt(1.0 / (9.0 * n) + 1.0 / (9.0 * level.floor_modes))
        best = max(best, (ratio ** (1.0 / 3.0) - (1.0 - 1.0 / (9.0 * n))) / spread)
    return best


def _saturated_ratio(pixels: Grey, bit_depth: int) -> float:
    if pixels.dtype == np.float32:
        return 0.0
    brightest = int(pixels[::2, ::2].max())
    full = 2**bit_depth - 1 if bit_depth else next(f for f in _FULL_SCALES if f >= brightest)
    if pixels.dtype == np.uint8:
        full = min(full, 255)
    return float(np.count_nonzero(pixels >= full)) / pixels.size
