"""Focus and stigmators of a lens that images phases, from a few frames at known steps of the focus.

A thin object in an HRTEM frame shows |2 sin chi(k)|^2 |phi(k)|^2 in its power spectrum, chi of the
lens (`inference.restore.electrons`), phi the object's phase. A sharpness measure is no guide there:
contrast is LEAST at Gaussian focus, comes and goes with defocus, and over a lattice it repeats
itself every 1 / (lambda k^2) (the Fourier images of J. M. Cowley, A. F. Moodie, Proc. Phys. Soc. B
70, 486, 1957). One frame cannot tell |phi| from sin chi; frames of the same object at D, D + d1,
D + d2 ... can, whatever the object is: |phi(k)|^2 is the same in all, and the way the power there
rises and falls from frame to frame follows from D and the astigmatism alone. Power
spectra do not care where the object has drifted to.

The fit is by likelihood. A periodogram's mode is distributed exponentially about its mean (P.
Whittle, Ark. Mat. 2, 423, 1953), S = N + |phi|^2 s with N the shot noise, read off beyond what the
lens lets through, and |phi|^2 >= 0 profiled out mode by mode (by multiplicative updates, as in C.
Fevotte, N. Bertin, J.-L. Durrieu, Neural Comput. 21, 793, 2009). Its rival is power that stays the
same in all frames. What is not much likelier than the next best focus is not sure, and is said so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from inference.restore.electrons import Doubles, Focus, Lens, wavelength_nm

Singles = npt.NDArray[np.float32]
Place = tuple[float, float, float, float]  # Gaussian focus, stigmators x and y in nm, eta in rad
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]

_SIDE_PX: Final = 512  # of the middle of a frame that is looked at
_LEAST_SIDE_PX: Final = 64
_LOWEST_PER_NM: Final = 0.6  # below, what is seen is shapes: holes, illumination
_FAINTEST_RATIO: Final = 0.01  # of the power that the spread of focus leaves: the highest frequency
_WINDOW_MODES: Final = 2.25  # that one independent mode is worth under a Hann window
_WINDOW_SD_MODES: Final = 0.6  # of a spectral line under it
_SECTORS: Final = 12  # of the half-plane; a bin is one of a ring that is a mode wide
_SPOT_RATIO: Final = 12.0  # over its ring's level in the mean: a lattice's, and a bin of its own
_SPOT_REACH: Final = 2  # modes about it that belong to it
_GROUP_MODES: Final = 3  # width of the rings in which an object is about as strong
_COARSE_STEP_NM: Final = 0.5
_COARSE_STIG_NM: Final = 1.5  # one sd of the astigmatism that the search allows for
_PEAKS: Final = 5  # that are climbed
_APART_NM: Final = 1.5  # between two of them
_UPDATES: Final = 8
_FAINTEST_STRENGTH: Final = 1e-3  # of an object, to begin with; over shot noise
_ETA_SD_RAD: Final = 0.25  # of the turn by which strong scatterers differ from weak ones
# Of log likelihood over the next best, and over power that stays. On simulated series noise alone
# gained 15 at most and a perfect lattice led by 23 at a wrong place.
_LEAST_LEAD: Final = 30.0
_LEAD_RATIO: Final = 0.05  # of the gain, added to that: what the model leaves out may cost it
_LEAST_LOOKS: Final = 3
_WAYS: Final = (  # to climb; along the last, eta makes up for defocus, about where a lattice is
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 0.1),
    (1.0, 0.0, 0.0, -0.25),
)
_LEAST_CURVATURE: Final = 0.04  # of log likelihood along a way: an sd of five steps
_MODEL_SIGMA_NM: Final = 0.2  # of the answer, by what the model leaves out


@dataclass(frozen=True, slots=True, eq=False)
class PhaseLook:
    """One frame's modes over its own noise, and where focus and stigmators were set."""

    power_ratio: Doubles  # (n,): of shot noise, which is 1
    at: Focus  # as set; the zero is that of the axis


@dataclass(frozen=True, slots=True, eq=False)
class PhaseModes:
    """The frequencies that are looked at, for frames of one size and one lens."""

    lens: Lens
    shape_px: tuple[int, int]  # of the part of a frame that is looked at
    pixel_size_nm: float
    kx_per_nm: Doubles  # (n,), half of the plane; y UP
    ky_per_nm: Doubles
    width_per_nm: float  # of a spectral line, one sd

    @classmethod
    def of(cls, lens: Lens, shape_px: tuple[int, int], pixel_size_nm: float) -> PhaseModes | None:
        """None: too few pixels, or so coarse that hardly a phase is seen."""
        height, width = (min(side, _SIDE_PX) for side in shape_px)
        if min(height, width) < _LEAST_SIDE_PX:
            return None
        kx, ky = _half_plane(height, width, pixel_size_nm)
        k_per_nm = np.hypot(kx, ky)
        highest = min(highest_per_nm(lens), 0.66 / (2.0 * pixel_size_nm))
        chosen = (k_per_nm > _LOWEST_PER_NM) & (k_per_nm < highest) & ((kx > 0.0) | (ky > 0.0))
        if int(chosen.sum()) < 200:
            return None
        line = _WINDOW_SD_MODES / (min(height, width) * pixel_size_nm)
        return cls(lens, (height, width), pixel_size_nm, kx[chosen], ky[chosen], line)

    def look(self, pixels: Pixels, at: Focus) -> PhaseLook:
        """What one frame, (h, w), tells; `at`: focus and stigmators as set for it."""
        height, width = self.shape_px
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        part = pixels[top : top + height, left : left + width].astype(np.float32)
        window = np.hanning(height)[:, None] * np.hanning(width)[None, :]
        windowed = (part - part.mean()) * window.astype(np.float32)
        power = np.abs(np.fft.rfft2(windowed)).astype(np.float64) ** 2
        kx, ky = _half_plane(height, width, self.pixel_size_nm)
        k_per_nm = np.hypot(kx, ky)
        chosen_k = np.hypot(self.kx_per_nm, self.ky_per_nm)
        found = np.zeros(len(chosen_k))
        highest = min(highest_per_nm(self.lens), 0.66 / (2.0 * self.pixel_size_nm))
        chosen = (k_per_nm > _LOWEST_PER_NM) & (k_per_nm < highest) & ((kx > 0.0) | (ky > 0.0))
        found[:] = power[chosen] / _noise_at(power, k_per_nm, chosen_k, self)
        return PhaseLook(found, at)


@dataclass(frozen=True, slots=True)
class SeriesFocus:
    """Where a lens stands, and how sure that is."""

    gaussian_um: float  # on the focus axis
    sigma_um: float
    stig_um: tuple[float, float]  # of the lens itself: what coils must take away
    stig_sigma_um: float
    gain: float  # of log likelihood over power that stays the same
    lead: float  # over the next best focus
    other_um: float | None  # that one; None: there is none
    is_sure: bool
    reason: str  # why not

    @classmethod
    def unknown(cls, reason: str) -> SeriesFocus:
        """Nothing was seen."""
        nan, inf = math.nan, math.inf
        return cls(nan, inf, (nan, nan), inf, 0.0, 0.0, None, is_sure=False, reason=reason)

    def wanted_um(self, lens: Lens) -> float:
        """Where the axis belongs."""
        return self.gaussian_um + scherzer_um(lens)


def scherzer_um(lens: Lens) -> float:
    """The defocus of widest pass band, 1.2 sqrt(Cs lambda); against the sign of Cs.

    Where Cs is all but 0, a quarter of a turn at the highest frequency instead: atoms dark.
    """
    length_nm = wavelength_nm(lens.voltage_kv)
    wide_nm = 1.2 * math.sqrt(abs(lens.spherical_mm) * 1e6 * length_nm)
    least_nm = 0.5 / (length_nm * highest_per_nm(lens) ** 2)
    return -math.copysign(max(wide_nm, least_nm) * 1e-3, lens.spherical_mm)


def highest_per_nm(lens: Lens) -> float:
    """The frequency at which spread of focus or aperture have all but ended what is seen."""
    length_nm = wavelength_nm(lens.voltage_kv)
    opened = 1e-3 * lens.aperture_mrad / length_nm
    spread_nm = 1e3 * lens.focal_spread_um
    if spread_nm == 0.0:
        return opened
    square = math.sqrt(-math.log(_FAINTEST_RATIO)) / (math.pi * length_nm * spread_nm)
    return min(opened, math.sqrt(square))


def focus_of(
    looks: Sequence[PhaseLook], modes: PhaseModes, search_um: tuple[float, float]
) -> SeriesFocus:
    """The focus and the astigmatism that all the looks agree on.

    search_um: of Gaussian focus on the focus axis.
    """
    if len(looks) < _LEAST_LOOKS:
        return SeriesFocus.unknown(f"{len(looks)} frames; {_LEAST_LOOKS} are needed")
    low_nm, high_nm = (1e3 * um for um in search_um)
    whole = _Scene.of(looks, modes)
    grid_nm = np.arange(low_nm, high_nm + _COARSE_STEP_NM, _COARSE_STEP_NM)
    heights = np.array(
        [_likelihood(whole, (float(at), 0.0, 0.0, 0.0), _COARSE_STIG_NM) for at in grid_nm]
    )
    still = _of_still(whole)
    tops = [_climbed(whole, float(grid_nm[i])) for i in _peaks(grid_nm, heights)]
    tops.sort(key=lambda top: -top[1])
    place, best = tops[0]
    others = [top for top in tops[1:] if abs(top[0][0] - place[0]) > _APART_NM]
    gain = best - still
    lead = best - others[0][1] if others else gain
    other_um = None if not others else 1e-3 * float(others[0][0][0])
    sigma_nm, stig_sigma_nm = _sigmas_nm(whole, place)
    asked = _LEAST_LEAD + _LEAD_RATIO * max(gain, 0.0)
    reason = ""
    if gain < asked:
        reason = "nothing in the frames changes as a phase does with focus"
    elif place[0] - low_nm < _APART_NM or high_nm - place[0] < _APART_NM:
        reason = "the best focus lies at the end of what was searched"
    elif lead < asked:
        reason = (
            f"two places explain the frames alike, {1e-3 * place[0]:.4f} and {other_um:.4f} um, "
            "as a lattice alone does"
        )
    return SeriesFocus(
        gaussian_um=1e-3 * float(place[0]),
        sigma_um=1e-3 * sigma_nm,
        stig_um=(1e-3 * float(place[1]), 1e-3 * float(place[2])),
        stig_sigma_um=1e-3 * stig_sigma_nm,
        gain=gain,
        lead=lead,
        other_um=other_um,
        is_sure=not reason,
        reason=reason,
    )


def _half_plane(height: int, width: int, pixel_size_nm: float) -> tuple[Doubles, Doubles]:
    kx = np.fft.rfftfreq(width, pixel_size_nm)[None, :]
    ky = -np.fft.fftfreq(height, pixel_size_nm)[:, None]
    wide_kx, wide_ky = np.broadcast_arrays(kx, ky)
    return np.asarray(wide_kx, np.float64), np.asarray(wide_ky, np.float64)


def _noise_at(
    power: Doubles, k_per_nm: Doubles, wanted_per_nm: Doubles, modes: PhaseModes
) -> Doubles:
    """Shot noise as the camera passes it on: straight in log power over k^2, from beyond the image.

    An intensity holds up to twice the frequencies of its wave, but the cross terms there are faint.
    """
    nyquist = 0.5 / modes.pixel_size_nm
    from_per_nm = min(1.3 * highest_per_nm(modes.lens), 0.7 * nyquist)
    edges = np.linspace(from_per_nm, 0.98 * nyquist, 9)
    squares, levels = [], []
    for low, high in pairwise(edges.tolist()):
        ring = power[(k_per_nm >= low) & (k_per_nm < high)]
        if ring.size >= 50:
            squares.append(0.5 * (low**2 + high**2))
            levels.append(math.log(float(np.median(ring)) / math.log(2.0)))
    slope, level = np.polyfit(squares, levels, 1)
    return np.asarray(np.exp(level + min(slope, 0.0) * wanted_per_nm**2))


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """Looks in arrays: m of them at n bins."""

    power: Singles  # (m, n), the mean over a bin
    count: Singles  # (n,), of its independent modes
    group: npt.NDArray[np.int64]  # (n,): bins whose object is about as strong
    defocus_nm: Singles  # (m, 1), as set
    stig_nm: tuple[Singles, Singles]  # (m, 1) each
    square: Singles  # (n,), k^2
    along: Singles  # (n,), kx^2 - ky^2
    across: Singles  # (n,), 2 kx ky
    length_nm: float
    sphere_nm: Singles  # (n,), Cs lambda^2 k^2, as a defocus
    temporal: Singles  # (n,): what the spread of focus leaves of the power
    direction: float  # rad, one sd
    line_per_nm: float

    @classmethod
    def of(cls, looks: Sequence[PhaseLook], modes: PhaseModes) -> _Scene:
        lens, power = modes.lens, np.array([look.power_ratio for look in looks])
        label, group = _bins(power.mean(axis=0), modes)
        count = np.bincount(label).astype(np.float64)

        def mean(values: Doubles) -> Doubles:
            return np.asarray(np.bincount(label, values) / count)

        kx, ky = modes.kx_per_nm, modes.ky_per_nm
        square, length_nm = mean(kx**2 + ky**2), wavelength_nm(lens.voltage_kv)
        temporal = np.exp(-((np.pi * length_nm * 1e3 * lens.focal_spread_um * square) ** 2))

        def column(values: list[float]) -> Singles:
            return np.array(values, np.float32)[:, None] * np.float32(1e3)

        return cls(
            power=np.array([mean(each) for each in power], np.float32),
            count=(count / _WINDOW_MODES).astype(np.float32),
            group=group,
            defocus_nm=column([look.at.defocus_um for look in looks]),
            stig_nm=(
                column([look.at.stig_um[0] for look in looks]),
                column([look.at.stig_um[1] for look in looks]),
            ),
            square=square.astype(np.float32),
            along=mean(kx**2 - ky**2).astype(np.float32),
            across=mean(2.0 * kx * ky).astype(np.float32),
            length_nm=length_nm,
            sphere_nm=(lens.spherical_mm * 1e6 * length_nm**2 * square).astype(np.float32),
            temporal=temporal.astype(np.float32),
            direction=1e-3 * lens.direction_mrad,
            line_per_nm=modes.width_per_nm,
        )


def _bins(power: Doubles, modes: PhaseModes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(bin of each mode, group of each bin): a spot is one, the rest goes by ring and sector."""
    kx, ky = modes.kx_per_nm, modes.ky_per_nm
    step = modes.width_per_nm / _WINDOW_SD_MODES
    ring = np.floor(np.hypot(kx, ky) / step).astype(np.int64)
    angle = np.arctan2(ky, kx)  # kx >= 0
    sector = np.clip(((angle / np.pi + 0.5) * _SECTORS).astype(np.int64), 0, _SECTORS - 1)
    levels = {int(i): float(np.median(power[ring == i])) / math.log(2.0) for i in np.unique(ring)}
    level = np.array([levels[int(i)] for i in ring])
    label = ring * _SECTORS + sector
    group = ring // _GROUP_MODES
    is_free = np.ones(len(power), np.bool_)
    next_label, next_group = int(label.max()) + 1, int(group.max()) + 1
    for i in np.argsort(-power / level):
        if power[i] < _SPOT_RATIO * level[i]:
            break
        if is_free[i]:
            far = np.maximum(np.abs(kx - kx[i]), np.abs(ky - ky[i]))
            near = is_free & (far < (_SPOT_REACH + 0.5) * step)
            label[near], group[near], is_free[near] = next_label, next_group, False
            next_label, next_group = next_label + 1, next_group + 1
    _, first, label = np.unique(label, return_index=True, return_inverse=True)
    return label, np.unique(group[first], return_inverse=True)[1]


def _shares(scene: _Scene, place: Place, loose_nm: float) -> Singles:
    """(m, n): sin^2 chi, damped, in the mean over a line; loose_nm: and over stigmators, one sd."""
    gaussian_nm, stig_x_nm, stig_y_nm, eta = place
    defocus = scene.defocus_nm - np.float32(gaussian_nm)
    stig_x, stig_y = (
        each + np.float32(own)
        for each, own in zip(scene.stig_nm, (stig_x_nm, stig_y_nm), strict=True)
    )
    twice = np.float32(2.0 * np.pi * scene.length_nm) * (
        (defocus + np.float32(0.5) * scene.sphere_nm) * scene.square
        + stig_x * scene.along
        + stig_y * scene.across
    ) - np.float32(2.0 * eta)
    # Half of how fast 2 chi turns along k, over 2 pi: lambda (D + Cs lambda^2 k^2) k.
    slope = (defocus + scene.sphere_nm) ** 2 * scene.square
    spatial = np.exp(np.float32(-4.0 * (np.pi * scene.direction) ** 2) * slope)
    line = np.float32(0.5 * (4.0 * np.pi * scene.length_nm * scene.line_per_nm) ** 2) * slope
    free = np.float32(0.5 * (2.0 * np.pi * scene.length_nm * loose_nm) ** 2) * scene.square**2
    waves = np.cos(twice) * np.exp(-line - free)
    found = (np.float32(0.5) - np.float32(0.5) * waves) * scene.temporal * spatial
    return np.asarray(np.maximum(found, np.float32(1e-5)), np.float32)


def _profiled(scene: _Scene, shares: Singles) -> float:
    """Log likelihood with the object at its best, over that of noise alone.

    A bin's strength is its group's times speckle, which is distributed as a mean of `count`
    exponentials: that keeps what is weak from being fitted to the noise of each bin.
    """
    power, count, group = scene.power, scene.count, scene.group
    weight = count * (shares**2).sum(axis=0)
    signal = np.bincount(group, count * ((power - 1.0) * shares).sum(axis=0))
    level = np.maximum(signal / np.bincount(group, weight), _FAINTEST_STRENGTH)
    total = np.bincount(group, count)
    mean = level.astype(np.float32)[group]
    strength = mean
    for _ in range(_UPDATES):
        expected = 1.0 + strength * shares
        share = shares / expected
        rise = (share * power / expected).sum(axis=0) + 1.0 / strength
        strength = strength * rise / (share.sum(axis=0) + 1.0 / mean)
        mean = (np.bincount(group, count * strength) / total).astype(np.float32)[group]
    expected = 1.0 + strength * shares
    gain = (power - power / expected - np.log(expected)).sum(axis=0)
    speckle = np.log(strength / mean) - strength / mean + 1.0
    return float((count * (gain + speckle)).sum(dtype=np.float64))


def _likelihood(scene: _Scene, place: Place, loose_nm: float = 0.0) -> float:
    return _profiled(scene, _shares(scene, place, loose_nm)) - 0.5 * (place[3] / _ETA_SD_RAD) ** 2


def _of_still(scene: _Scene) -> float:
    """Of power that does not change from frame to frame."""
    return _profiled(scene, np.ones_like(scene.power))


def _peaks(grid_nm: Doubles, heights: Doubles) -> list[int]:
    """The best places that are apart, the highest first."""
    chosen: list[int] = []
    for i in np.argsort(-heights):
        if all(abs(grid_nm[i] - grid_nm[j]) > _APART_NM for j in chosen):
            chosen.append(int(i))
        if len(chosen) == _PEAKS:
            break
    return chosen


def _climbed(scene: _Scene, gaussian_nm: float) -> tuple[Place, float]:
    """Uphill from a focus without astigmatism, by turns along each axis."""
    place: Place = (gaussian_nm, 0.0, 0.0, 0.0)
    best = _likelihood(scene, place)
    step = 1.0
    while step > 0.05:
        has_moved = False
        for way in _WAYS:
            for sign in (1.0, -1.0):
                tried = _going(place, way, sign * step)
                height = _likelihood(scene, tried)
                if height > best:
                    place, best, has_moved = tried, height, True
                    break
        if not has_moved:
            step *= 0.5
    return place, best


def _going(place: Place, way: Place, by: float) -> Place:
    a, b, c, d = (here + by * step for here, step in zip(place, way, strict=True))
    return a, b, c, d


def _sigmas_nm(scene: _Scene, place: Place) -> tuple[float, float]:
    """One sd of the focus and of the stigmators, from the curvature of the likelihood."""
    ways, step = _WAYS[:4], 0.4
    middle = _likelihood(scene, place)
    matrix = np.zeros((4, 4))
    for i, first in enumerate(ways):
        up, down = (_likelihood(scene, _going(place, first, sign * step)) for sign in (1, -1))
        matrix[i, i] = (2.0 * middle - up - down) / step**2
        for j in range(i + 1, 4):
            corners = [
                a
                * b
                * _likelihood(scene, _going(_going(place, first, a * step), ways[j], b * step))
                for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))
            ]
            matrix[i, j] = matrix[j, i] = -sum(corners) / (4.0 * step**2)
    values, vectors = np.linalg.eigh(matrix)
    # Where a lattice's few spots leave a direction open the curvature is nothing, or noise.
    variances = (vectors**2 / np.maximum(values, _LEAST_CURVATURE)).sum(axis=1)
    stig_nm = math.sqrt(float(max(variances[1], variances[2])))
    return math.hypot(math.sqrt(float(variances[0])), _MODEL_SIGMA_NM), stig_nm
