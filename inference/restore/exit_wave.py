"""The wave that left the sample, from one HRTEM frame whose lens is known: amplitude and phase.

A thin sample is close to a weak phase object: its phase shows as contrast 2 sin(chi) phi, so a
Wiener deconvolution gives a first phase, with nothing where sin(chi) or the dose leaves nothing.
That is the anchor, and the classical answer. A network with one encoder and two decoders, one for
the amplitude and one for the phase (after C.-H. Lee et al., Nanomaterials 10, 1977, 2020), adds
what such samples have in common; both corrections are zero before it has learnt anything. The
known lens, applied to its wave, then gives the frame without noise; and without aberrations, or at
any other focus, the refocused one.

One frame does not determine a wave. Where lens or dose pass nothing, the answer is what samples of
the training look like, and no measurement; the frame itself is kept beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.api import BadImage, BadModel
from inference.engine import Engine
from inference.restore.api import Frame, Grey, NoiseModel, grey_of
from inference.restore.colour import noise_for_filters
from inference.restore.electrons import (
    Focus,
    Lens,
    Waves,
    frequencies_per_nm,
    phase_contrast,
    transfer,
)

PLANES: Final = 5
SCALE: Final = 0.05  # contrast and radians that the network calls 1
PIXEL_NM: Final = (0.012, 0.028)  # that it was trained on
VOLTAGE_KV: Final = (60.0, 300.0)
MARGIN_PX: Final = 24  # round the frame, mirrored; as much as the lens spreads an atom

_MULTIPLE_PX: Final = 16
_RING_GAIN_NEIGHBOURS: Final = 3
_SPOT_LEVEL: Final = 2.2  # mean power of 3 x 3 modes over noise, which chance passes in 1 of 2,000
_REST_SPOT_LEVEL: Final = 4.0
_CONTRAST_LIMIT2: Final = 0.02  # of 2 sin(chi), squared: below, it is not divided by it


@dataclass(frozen=True, slots=True)
class Microscope:
    """All that the frame's making is known to depend on."""

    lens: Lens
    focus: Focus
    pixel_size_nm: float
    mtf_ratio: float = 1.0  # of the camera: contrast left at Nyquist's frequency


@dataclass(frozen=True, slots=True, eq=False)
class ExitWave:
    """What left the sample; a computed answer, to be labelled as one. (h, w), y down."""

    amplitude: Grey  # 1: that of the wave that came in
    phase_rad: Grey
    image: Grey  # the frame without noise, in its digital numbers; see `recover`
    level_dn: float  # of the frame where there is no sample, without the camera's offset
    offset_dn: float
    microscope: Microscope
    in_distribution: bool
    method: str  # "cddae" or "weak_phase"
    reason: str  # why not in distribution, "" when it is

    def refocused(self, focus: Focus, lens: Lens | None = None) -> Grey:
        """The frame as the lens, or another one, would make it at another focus; no noise."""
        other = replace(self.microscope, focus=focus, lens=lens or self.microscope.lens)
        seen = intensity(self.amplitude * np.exp(1j * self.phase_rad), other)
        return np.asarray(seen * self.level_dn + self.offset_dn, np.float32)


class ExitWaveRestorer:
    """Question: which wave left the sample? Deterministic; one frame, no memory."""

    def __init__(self, engine: Engine | None = None) -> None:
        """engine: a network of `PLANES` planes to two; None: the classical answer alone."""
        self._engine = engine

    @property
    def name(self) -> str:
        """What answers: "cddae" or "weak_phase"."""
        return "weak_phase" if self._engine is None else "cddae"

    def recover(
        self, frame: Frame, microscope: Microscope, noise: NoiseModel | None = None
    ) -> ExitWave:
        """Recover the wave of one frame.

        The image is what the lens makes of the wave, and of what that leaves of the frame as much
        as stands out of the noise: where frame and wave disagree, the frame is right.
        noise: with the camera's true offset; None: estimated from the frame, which must then have
        none. Raises BadImage for what is no frame or holds no electrons, BadModel for a network
        that answers in another form.
        """
        grey, model, offset, level = beam_in(frame, noise)
        contrast = (grey - np.float32(offset + level)) / np.float32(level)
        sigma = model.sigma_dn(level + offset) / level
        wide, inner = padded(contrast)
        given = planes(wide, sigma, microscope)
        correction = np.zeros((2, *wide.shape), np.float32)
        if self._engine is not None:
            answer = self._engine.run(given[None])
            if answer.shape != (1, 2, *wide.shape):
                raise BadModel(f"needs an answer of (1, 2, {wide.shape}), got {answer.shape}")
            correction = answer[0] * np.float32(SCALE)
        amplitude = np.float32(1.0) + correction[0]
        phase = given[2] * np.float32(SCALE) + correction[1]
        wide_seen = intensity(amplitude * np.exp(1j * phase), microscope)
        unexplained = _unexplained(wide, wide_seen, sigma)[inner]
        seen = wide_seen[inner]
        # The wave's mean intensity is the frame's: only the contrast was looked at.
        level /= float(seen.mean(dtype=np.float64))
        reason = _strange(microscope) or ("" if np.isfinite(seen).all() else "no finite answer")
        return ExitWave(
            amplitude=np.ascontiguousarray(amplitude[inner]),
            phase_rad=np.ascontiguousarray(phase[inner]),
            image=np.asarray((seen + unexplained) * level + offset, np.float32),
            level_dn=level,
            offset_dn=offset,
            microscope=microscope,
            in_distribution=not reason,
            method=self.name,
            reason=reason,
        )


def beam_in(frame: Frame, noise: NoiseModel | None) -> tuple[Grey, NoiseModel, float, float]:
    """The frame as float32, its noise, the camera's offset, and the beam's level above that.

    noise: None: estimated from the frame, whose offset must then be zero. Raises BadImage for what
    is no frame or holds no electrons.
    """
    grey = grey_of(frame)
    model = noise or noise_for_filters(frame)
    offset = model.offset_dn if noise is not None else 0.0
    level = float(grey.mean(dtype=np.float64)) - offset
    if not level > 0.0:
        raise BadImage(f"needs a mean above the offset of {offset:g}, got {level + offset:g}")
    return grey, model, offset, level


def intensity(wave: npt.NDArray[np.complexfloating], microscope: Microscope) -> Grey:
    """What the camera sees of a wave, 1 where there is no sample; (h, w), taken as periodic."""
    shape = wave.shape[0], wave.shape[1]
    kx, ky = frequencies_per_nm(shape, microscope.pixel_size_nm)
    passed: Waves = transfer(microscope.lens, microscope.focus, kx, ky)
    seen = np.abs(np.fft.ifft2(np.fft.fft2(wave) * passed)) ** 2
    if microscope.mtf_ratio < 1.0:
        damping = mtf(shape, microscope.mtf_ratio)
        seen = np.fft.irfft2(np.fft.rfft2(seen) * damping[:, : shape[1] // 2 + 1], shape)
    return np.asarray(seen, np.float32)


def mtf(shape_px: tuple[int, int], ratio: float) -> npt.NDArray[np.float64]:
    """A Lorentzian that is 1 at frequency 0 and `ratio` at Nyquist's; (h, w) of `fft2`."""
    fy, fx = np.fft.fftfreq(shape_px[0])[:, None], np.fft.fftfreq(shape_px[1])[None, :]
    return np.asarray(1.0 / (1.0 + (1.0 / ratio - 1.0) * 4.0 * (fy**2 + fx**2)))


def planes(contrast: Grey, sigma: float, microscope: Microscope) -> Grey:
    """What the network sees of a frame, (PLANES, h, w); plane 2 is the weak phase's anchor.

    contrast: intensity over its mean, less 1, with noise of standard deviation `sigma`. Planes, in
    units of `SCALE`: contrast; contrast filtered; phase filtered and deconvolved; phase of every
    frequency turned right and nothing else; log10 of the noise.
    """
    kx, ky = frequencies_per_nm((contrast.shape[0], contrast.shape[1]), microscope.pixel_size_nm)
    kept = kx[:, : contrast.shape[1] // 2 + 1]
    # One half of the plane is enough; its last column is Nyquist's, of either sign.
    seen = phase_contrast(microscope.lens, microscope.focus, np.abs(kept), ky)
    if microscope.mtf_ratio < 1.0:
        seen = seen * mtf(contrast.shape, microscope.mtf_ratio)[:, : kept.shape[1]]
    spectrum = np.fft.rfft2(contrast)
    gain = wiener_gain(spectrum, contrast.shape, sigma)
    filtered = spectrum * gain
    phase = filtered * seen / (seen**2 + _CONTRAST_LIMIT2)
    turned = spectrum * seen * 0.5
    shape = contrast.shape
    out = np.empty((PLANES, *shape), np.float32)
    out[0] = contrast
    for at, one in ((1, filtered), (2, phase), (3, turned)):
        out[at] = np.fft.irfft2(one, shape)
    out[:4] /= np.float32(SCALE)
    out[4] = math.log10(max(sigma, 1e-4) / SCALE)
    return out


def wiener_gain(
    spectrum: npt.NDArray[np.complexfloating],
    shape_px: tuple[int, int],
    sigma: float,
    *,
    spot_level: float = _SPOT_LEVEL,
    ring_sigmas: float = 0.0,
) -> npt.NDArray[np.float32]:
    """A gain per mode of `rfft2`: that of its ring, or of the spot that it belongs to.

    spot_level: mean power of 3 x 3 modes over noise that makes a spot. ring_sigmas: by how many
    standard deviations of chance a ring's power is lowered before it is believed.
    """
    power = (np.abs(spectrum) ** 2 / (shape_px[0] * shape_px[1] * max(sigma, 1e-6) ** 2)).astype(
        np.float32
    )
    fy = np.fft.fftfreq(shape_px[0])[:, None] * shape_px[0]
    fx = np.arange(power.shape[1])[None, :] * (shape_px[0] / shape_px[1])
    ring = np.hypot(fy, fx).astype(np.int64)
    near = cv2.blur(power, (3, 3), borderType=cv2.BORDER_REFLECT_101)
    is_spot = near > spot_level
    size = int(ring.max()) + 1
    modes = np.bincount(ring[~is_spot], minlength=size).astype(np.float64)
    total = np.bincount(ring[~is_spot], power[~is_spot], minlength=size)
    kernel = np.ones(_RING_GAIN_NEIGHBOURS)
    many = np.maximum(np.convolve(modes, kernel, "same"), 1.0)
    mean = np.convolve(total, kernel, "same") / many - ring_sigmas / np.sqrt(many)
    by_ring = np.maximum(1.0 - 1.0 / np.maximum(mean, 1e-6), 0.0)[ring]
    by_spot = np.where(is_spot, 1.0 - 1.0 / np.maximum(near, 1.0), 0.0)
    return np.asarray(np.maximum(by_ring, by_spot), np.float32)


def padded(contrast: Grey) -> tuple[Grey, tuple[slice, slice]]:
    """Mirrored outwards to whole multiples, fading to nothing at the seam; and where it lies."""
    height, width = contrast.shape
    rows, columns = (
        math.ceil((side + 2 * MARGIN_PX) / _MULTIPLE_PX) * _MULTIPLE_PX for side in (height, width)
    )
    below, right = rows - height - MARGIN_PX, columns - width - MARGIN_PX
    wide = cv2.copyMakeBorder(contrast, MARGIN_PX, below, MARGIN_PX, right, cv2.BORDER_REFLECT)
    down, across = _fade(rows, MARGIN_PX, below), _fade(columns, MARGIN_PX, right)
    faded = np.asarray(wide * down[:, None] * across[None, :], np.float32)
    return faded, (slice(MARGIN_PX, MARGIN_PX + height), slice(MARGIN_PX, MARGIN_PX + width))


def _unexplained(contrast: Grey, seen: Grey, sigma: float) -> Grey:
    """What of the frame stands out of the noise, and not in what the wave would make."""
    rest = contrast - (seen / seen.mean(dtype=np.float64) - 1.0)
    spectrum = np.fft.rfft2(rest)
    # Nearly all of it is noise: what is believed has to stand out more than in a frame.
    shape = rest.shape[0], rest.shape[1]
    spectrum *= wiener_gain(spectrum, shape, sigma, spot_level=_REST_SPOT_LEVEL, ring_sigmas=3.0)
    spectrum[0, 0] = 0.0
    return np.asarray(np.fft.irfft2(spectrum, rest.shape), np.float32)


def _fade(side_px: int, before_px: int, after_px: int) -> npt.NDArray[np.float32]:
    fade = np.ones(side_px, np.float32)
    half_before, half_after = before_px // 2, after_px // 2
    fade[:half_before] = np.sin(0.5 * np.pi * (np.arange(half_before) + 0.5) / half_before) ** 2
    fade[side_px - half_after :] = (
        np.sin(0.5 * np.pi * (np.arange(half_after) + 0.5) / half_after)[::-1] ** 2
    )
    return fade


def _strange(microscope: Microscope) -> str:
    if not PIXEL_NM[0] <= microscope.pixel_size_nm <= PIXEL_NM[1]:
        return (
            f"pixels of {microscope.pixel_size_nm:g} nm: learnt on {PIXEL_NM[0]} to {PIXEL_NM[1]}"
        )
    voltage_kv = microscope.lens.voltage_kv
    if not VOLTAGE_KV[0] <= voltage_kv <= VOLTAGE_KV[1]:
        return f"{voltage_kv:g} kV: learnt on {VOLTAGE_KV[0]:g} to {VOLTAGE_KV[1]:g} kV"
    return ""
