"""How well one frame is focused: a score that no magnification changes, |defocus|, and a flag.

One frame of a symmetric lens cannot tell the sign of its defocus, and its sharpness cannot be told
from the object's own smoothness; what it does tell is how its spectrum falls, and objects are alike
enough that a small network makes |defocus| with an honest sigma of it. The network sees how power
falls over bands and directions and how it is spread over the frame (octaves.py); no pixels, no
magnification, no gain. It is a guide for the first step and a score for the operator; where focus
is, the posterior over several frames says.

The score is taken at the upper end of what is believed, one sigma out: a frame that may be a smooth
object in focus or a sharp one far off is not praised. A frame larger than the tile is asked in five
places, and at coarser pixels too; the pixel size that knows best answers.

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
from inference.focus.octaves import OCTAVE_FEATURES, octave_features
from inference.focus.posterior import believe_round
from inference.focus.spectrum import (
    BANDS,
    SIDE_PX,
    BandPower,
    Grey,
    band_powers,
    grey_tile,
    power_of,
)

F32: TypeAlias = npt.NDArray[np.float32]

FEATURES = 4 * BANDS + OCTAVE_FEATURES
LEAST_PRESENCE = 5.0  # standard deviations of noise
_MOST_SATURATED_RATIO = 0.2
_SCORE_HALF_DOF = 4.0  # |defocus| at which the score is half of 9
_SMALLEST_DOF = 0.25  # of |defocus| that one frame can tell from none
_WIDE_ENOUGH_RATIO = 1.5  # of a tile: a frame that is larger is looked at in its corners too
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
            marked = replace(view, in_distribution=False, reason=reason)
            return marked if present < LEAST_PRESENCE else self._guessed(marked, pixels)
        if present < LEAST_PRESENCE:
            reason = f"nothing in the field stands out of the noise ({present:.1f} sigma)"
            return replace(view, in_distribution=False, reason=reason)
        if self.engine is None:
            return self._by_physics(view, "no network: physics only")
        return self._by_network(view, pixels)

    def _guessed(self, view: FocusView, pixels: Grey) -> FocusView:
        """What may be said of a frame that is marked already: a guess, and no praise."""
        said = self._by_network(view, pixels) if self.engine else self._by_physics(view, "")
        return replace(
            view,
            defocus_dof=said.defocus_dof,
            defocus_sigma_dof=2.0 * said.defocus_sigma_dof,
        )

    def _by_physics(self, view: FocusView, reason: str) -> FocusView:
        believed = believe_round([view], Prior())
        # One frame's posterior is symmetric about its own command: its spread is the answer.
        off = math.hypot(believed.sigma_dof, believed.z_dof - view.command.z_dof)
        return replace(
            view,
            score=_score(1.4 * off + 1.0),
            defocus_dof=0.8 * off,
            defocus_sigma_dof=0.6 * off + 1.0,
            reason=reason,
        )

    def _by_network(self, view: FocusView, pixels: Grey) -> FocusView:
        if self.engine is None:
            return view
        answers = [
            self._asked(pixels, level, view.pixel_ratio)
            for level in view.levels
            if presence(level) >= LEAST_PRESENCE
        ]
        best = min(answers, key=lambda answer: answer.sigma_dof)
        if best.familiar < 0.0:
            return self._unfamiliar(view, best)
        return replace(
            view,
            score=_score(best.defocus_dof + best.sigma_dof),
            defocus_dof=best.defocus_dof,
            defocus_sigma_dof=best.sigma_dof,
        )

    def _unfamiliar(self, view: FocusView, best: _Answer) -> FocusView:
        """Physics answers, its sigma wide enough for what the network would have said."""
        found = self._by_physics(view, "unlike what the network knows: physics only")
        apart = abs(best.defocus_dof - found.defocus_dof)
        return replace(
            found,
            score=min(found.score, _score(best.defocus_dof + 2.0 * best.sigma_dof)),
            defocus_dof=max(found.defocus_dof, best.defocus_dof),
            defocus_sigma_dof=max(found.defocus_sigma_dof, 2.0 * best.sigma_dof, apart),
            in_distribution=False,
        )

    def _asked(self, pixels: Grey, level: BandPower, pixel_ratio: float) -> _Answer:
        """What the network says of one binning, from all tiles that show something."""
        rows = [features(level, grey_tile(pixels, level.binning))]
        for across, down in _corners(pixels, level.binning):
            grey = grey_tile(pixels, level.binning, across, down)
            beside = power_of(grey, level.binning)
            if beside.mean > 0 and presence(beside) >= LEAST_PRESENCE:
                rows.append(features(beside, grey))
        answer = self._run(np.array(rows))
        log_defocus, sd = answer[:, 0], np.exp(np.minimum(answer[:, 1], 1.5))
        weight = sd**-2.0 / np.sum(sd**-2.0)
        mean = float(weight @ log_defocus)
        # Tiles share optics and camera: they agree in what is wrong, and do not average it away.
        spread = math.sqrt(float(weight @ (sd**2 + np.square(log_defocus - mean))))
        pixel = pixel_ratio * level.binning
        return _Answer(
            defocus_dof=max(math.exp(mean) - _SMALLEST_DOF, 0.0) * pixel,
            sigma_dof=(math.exp(mean) * math.expm1(min(spread, 3.0)) + 0.1) * pixel,
            familiar=float(np.median(answer[:, 2])),
        )

    def _run(self, rows: F32) -> F32:
        if self.engine is None:
            raise BadModel("no network was given")
        answer = self.engine.run(rows)
        if answer.shape != (len(rows), 3) or not np.all(np.isfinite(answer)):
            message = f"AENet promised ({len(rows)}, 3) finite numbers, got {answer.shape}"
            raise BadModel(message)
        return answer


@dataclass(frozen=True, slots=True)
class _Answer:
    defocus_dof: float
    sigma_dof: float
    familiar: float  # > 0: like what the network learned from


def _corners(pixels: Grey, binning: int) -> list[tuple[float, float]]:
    """Where else in the frame to look: (across, down), none where tiles would mostly overlap."""
    least_px = _WIDE_ENOUGH_RATIO * SIDE_PX * binning
    down = (0.0, 1.0) if pixels.shape[0] >= least_px else (0.5,)
    across = (0.0, 1.0) if pixels.shape[1] >= least_px else (0.5,)
    return [] if len(down) + len(across) == 2 else [(x, y) for x in across for y in down]


def _score(defocus_dof: float) -> float:
    return 9.0 / (1.0 + (defocus_dof / _SCORE_HALF_DOF) ** 2) if math.isfinite(defocus_dof) else 0.0


def features(level: BandPower, grey: F32) -> F32:
    """What the network sees of one tile, (FEATURES,); gain and contrast drop out.

    Of each band: log power over the floor, counted from its own weighted mean; share of signal;
    how uneven its modes are; how much directions differ. Then how structure is spread.
    """
    power, modes = level.isotropic
    signal = np.maximum(power - level.floor, 0.05 * level.floor / np.sqrt(modes))
    share = np.clip((power - level.floor) / power, 0.0, 1.0)
    log_signal = np.log(signal)
    log_signal -= float((share * log_signal).sum() / max(float(share.sum()), 1e-6))
    squares = (level.squares * level.modes).sum(axis=1) / modes
    uneven = 0.5 * (np.log(squares / np.square(power)) - math.log(2.0))  # 0 for noise
    off = np.where(level.modes > 0.0, np.log(level.power / power[:, None]), 0.0)
    directed = np.sqrt((level.modes * np.square(off)).sum(axis=1) / modes)
    bands = np.concatenate([np.clip(log_signal / 4.0, -4.0, 4.0), share, uneven, directed])
    return np.concatenate([np.clip(bands, -4.0, 4.0), octave_features(grey)]).astype(np.float32)


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
