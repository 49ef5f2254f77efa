"""Focus and stigmators from one HRTEM frame: from its Thon rings, and from its lattice's spots.

What scatters without order (defects, adatoms, amorphous carbon, edges) shows |2 sin chi|^2 times a
smooth fall in the power spectrum: Thon rings (F. Thon, Z. Naturforsch. 20a, 154, 1965). Each mode
of a periodogram is distributed exponentially about its mean, so the model is fitted by likelihood
(P. Whittle, Ark. Mat. 2, 423, 1953): no ring has to be seen by eye, and every figure comes with its
error. A lattice's spots are cut out of that fit; where the sheet's material is known they are
fitted beside it, by amplitude AND phase: the triplets of a honeycomb's spots tell bright atoms from
dark ones, hence the sign of sin chi.

What one frame cannot know is said: without a known lattice and with Cs near zero, D and -D give the
same rings (for a weak phase, Friedel's law), and the answer is then not sure of the sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from inference.api import BadImage
from inference.restore.api import Frame, grey_of
from inference.restore.electrons import (
    Doubles,
    Focus,
    Lens,
    atom_phase_nm2,
    frequencies_per_nm,
    phase_contrast,
    wavelength_nm,
)
from inference.restore.lattice import (
    CELLS,
    Material,
    coefficients,
    find_lattice,
    ideal_phase,
    orders,
)

_LEAST_SIDE_PX: Final = 64
_ORIGINS: Final = 36  # tried along each side of the cell
_SECTORS: Final = 12  # of the half-plane
_RINGS: Final = 72
_LOWEST_PER_NM: Final = 0.7  # below, what is seen is shapes: holes, contamination, illumination
_SPOT_RATIO: Final = 12.0  # over its ring's level: a spot, which chance reaches in e^-12 of modes
_SPOT_MODES: Final = 5  # about each spot that are left out
_SPOT_ERROR_RATIO: Final = 0.10  # by which a real sheet's spots differ from the ideal one's
_SPOT_FLOOR_RATIO: Final = 0.02  # likewise, of the strongest spot, or of all that it could be
_BLUR_SIGMA_NM: Final = 0.012
_COVER_RATIO: Final = (0.5, 1.05)  # of the field by the lattice that is seen
_BLUR_NM: Final = 0.008  # to begin with; thermal motion and the camera
_PEAKS: Final = 8  # of the coarse search that are climbed
_MODEL_SIGMA_NM: Final = 0.5  # of defocus and stigmators, by what the model leaves out
_LEAST_GAIN: Final = 30.0  # of log likelihood over noise alone: something is seen
_LEAST_LEAD: Final = 6.0  # over the next best focus: the choice is sure
_LEAD_RATIO: Final = 0.03  # of the gain, added to that: what the model leaves out may cost it
_LEAD_RATIO_RINGS: Final = 0.25  # likewise without a lattice to fit: its tails are not modelled
_MOST_SIGMA_RATIO: Final = 0.02  # of the range searched


@dataclass(frozen=True, slots=True)
class CtfEstimate:
    """Focus and stigmators as one frame shows them."""

    defocus_um: float  # > 0: sample further from the lens than focus
    defocus_sigma_um: float
    stig_um: tuple[float, float]
    stig_sigma_um: tuple[float, float]
    blur_nm: float  # one sd of a Gaussian, on top of the lens' own envelopes
    blur_sigma_nm: float
    is_sure: bool
    is_sign_known: bool  # of the defocus; False: `other_um` explains the frame about as well
    other_um: float | None  # the next best focus; None: none was found
    gain: float  # of log likelihood over noise alone
    spots: int  # of a lattice that took part
    reason: str  # why not sure, "" when sure

    @property
    def focus(self) -> Focus:
        """What the lens is said to be set to."""
        return Focus(self.defocus_um, self.stig_um)


def estimate_ctf(
    frame: Frame,
    pixel_size_nm: float,
    lens: Lens,
    *,
    material: Material | None = None,
    search_um: tuple[float, float] = (-0.06, 0.06),
    stig_sigma_um: float = 0.002,
) -> CtfEstimate:
    """Estimate defocus, stigmators and blur of one HRTEM frame; voltage and Cs are given.

    material: of a sheet whose lattice may be in the frame; None: unknown, spots are then not used.
    stig_sigma_um: how far off the stigmators may be; what the frame leaves open is taken from it.
    Raises BadImage for what is no frame, or one without electrons.
    """
    grey = grey_of(frame)
    if min(grey.shape) < _LEAST_SIDE_PX:
        raise BadImage(f"needs {_LEAST_SIDE_PX} px a side at least, got {grey.shape}")
    level = float(grey.mean(dtype=np.float64))
    if not level > 0.0:
        raise BadImage(f"needs a mean above zero, got {level:g}: take the camera's offset off")
    contrast = grey.astype(np.float64) / level - 1.0
    window = np.outer(np.hanning(grey.shape[0] + 2)[1:-1], np.hanning(grey.shape[1] + 2)[1:-1])
    contrast = (contrast - (contrast * window).sum() / window.sum()) * window
    rings = _rings(contrast, window, pixel_size_nm, lens)
    spots = None
    if material is not None:
        spots = _spots(contrast, window, pixel_size_nm, lens, material, rings)
    return _fitted(_Scene(rings, spots, lens, stig_sigma_um), search_um)


# --- what is measured --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Rings:
    """Mean power of the frame's contrast in cells of frequency and azimuth; (cells,) each."""

    power: Doubles
    modes: Doubles
    kx_per_nm: Doubles
    ky_per_nm: Doubles
    noise: Doubles  # expected, were there nothing but noise

    @property
    def square(self) -> Doubles:
        return np.asarray(self.kx_per_nm**2 + self.ky_per_nm**2)


@dataclass(frozen=True, slots=True, eq=False)
class _Spots:
    """Coefficients of the contrast at a lattice's spots, half of them; (n,) each."""

    found: npt.NDArray[np.complex128]
    variance: float  # of each by noise
    kx_per_nm: Doubles
    ky_per_nm: Doubles
    ideal: npt.NDArray[np.complex128]  # of a perfect sheet's phase, origin in a hexagon's middle
    shifts: npt.NDArray[np.complex128]  # (n, origins): what moves the origin there


@dataclass(frozen=True, slots=True)
class _Scene:
    rings: _Rings
    spots: _Spots | None
    lens: Lens
    stig_sigma_um: float


def _rings(contrast: Doubles, window: Doubles, pixel_size_nm: float, lens: Lens) -> _Rings:
    height, width = contrast.shape
    power = np.abs(np.fft.fft2(contrast)) ** 2 / (window**2).sum()
    kx, ky = np.broadcast_arrays(*frequencies_per_nm((height, width), pixel_size_nm))
    k = np.hypot(kx, ky)
    nyquist = 0.5 / pixel_size_nm
    step = max(nyquist / _RINGS, 1.0 / (min(height, width) * pixel_size_nm))
    number = (k / step).astype(np.int64)
    is_used = (k >= _LOWEST_PER_NM) & (k <= 0.97 * nyquist)
    is_used &= ~_is_spot(power, number, is_used)
    is_used &= (kx > 0.0) | ((kx == 0.0) & (ky > 0.0))
    sector = (np.arctan2(ky, kx) / np.pi * _SECTORS + 0.5 * _SECTORS).astype(np.int64)
    cell = number * _SECTORS + np.clip(sector, 0, _SECTORS - 1)
    size = int(cell.max()) + 1
    modes = np.bincount(cell[is_used], minlength=size).astype(np.float64)
    kept = modes > 0.0

    def mean(values: Doubles) -> Doubles:
        total = np.bincount(cell[is_used], values[is_used], minlength=size)
        return np.asarray(total[kept] / modes[kept])

    rings = _Rings(mean(power), modes[kept], mean(kx), mean(ky), np.ones(int(kept.sum())))
    return replace(rings, noise=_noise(rings, nyquist, lens))


def _is_spot(
    power: Doubles, number: npt.NDArray[np.int64], is_used: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Modes that stand far above their ring, and those round them."""
    size = int(number.max()) + 1
    order = np.argsort(number[is_used], kind="stable")
    values, which = power[is_used][order], number[is_used][order]
    level = np.full(size, np.inf)
    edges = np.flatnonzero(np.diff(which)) + 1
    for part, ring in zip(
        np.split(values, edges), which[np.concatenate([[0], edges])], strict=True
    ):
        level[ring] = np.median(part) / math.log(2.0)
    is_high = (power > _SPOT_RATIO * level[number]) & is_used
    near = is_high.copy()
    for dy in range(-_SPOT_MODES, _SPOT_MODES + 1):
        for dx in range(-_SPOT_MODES, _SPOT_MODES + 1):
            if dx * dx + dy * dy <= _SPOT_MODES**2:
                near |= np.roll(is_high, (dy, dx), (0, 1))
    return near


def _noise(rings: _Rings, nyquist_per_nm: float, lens: Lens) -> Doubles:
    """N0 / (1 + c u^2)^2, u = k over Nyquist, from where the lens passes nothing."""
    length_nm = wavelength_nm(lens.voltage_kv)
    temporal = (np.pi * length_nm * 1e3 * lens.focal_spread_um * rings.square) ** 2
    is_dark = (temporal > 9.0) | (rings.square * length_nm**2 > (1e-3 * lens.aperture_mrad) ** 2)
    if rings.modes[is_dark].sum() < 200.0:
        top = np.quantile(rings.square, 0.8)
        level = float(np.average(rings.power, weights=rings.modes * (rings.square >= top)))
        return np.full(len(rings.power), level)
    u2 = rings.square / nyquist_per_nm**2
    best = -math.inf
    chosen: Doubles = np.ones(len(u2))
    for c in np.linspace(0.0, 2.0, 41):
        shape = 1.0 / (1.0 + c * u2) ** 2
        ratio = rings.power[is_dark] / shape[is_dark]
        weight = rings.modes[is_dark]
        level = float(np.average(ratio, weights=weight))
        score = -float((weight * np.log(level * shape[is_dark])).sum())
        if score > best:
            best = score
            chosen = np.asarray(level * shape)
    return chosen


def _spots(
    contrast: Doubles,
    window: Doubles,
    pixel_size_nm: float,
    lens: Lens,
    material: Material,
    rings: _Rings,
) -> _Spots | None:
    """Read a lattice's spots; None where none stands out."""
    weight = float(window.sum())
    variance = float(np.median(rings.noise)) * float((window**2).sum()) / weight**2
    lattice = find_lattice(contrast, weight, variance, pixel_size_nm, material)
    if lattice is None:
        return None
    open_per_nm = 1e-3 * lens.aperture_mrad / wavelength_nm(lens.voltage_kv)
    hk = orders(CELLS[material][0], min(0.8 * 0.5 / pixel_size_nm, open_per_nm))
    gx, gy = lattice.spots(hk)
    found = coefficients(contrast, weight, pixel_size_nm, gx, gy)
    ideal = ideal_phase(material, lattice, hk, lens.voltage_kv)
    u, v = (axis.ravel() / _ORIGINS for axis in np.mgrid[0:_ORIGINS, 0:_ORIGINS])
    shifts = np.exp(2j * np.pi * (np.outer(hk[:, 0], u) + np.outer(hk[:, 1], v)))
    return _Spots(found, variance, gx, gy, ideal, shifts)


# --- what explains it --------------------------------------------------------------------------

_AMOUNTS: Final = 2  # of scatterers without order, and of shapes' edges


def _shares(scene: _Scene, blur_nm: float) -> Doubles:
    """Power of one carbon atom a square nanometre, and of edges, before the lens; (2, cells)."""
    rings = scene.rings
    k = np.sqrt(rings.square)
    one = atom_phase_nm2(6, k, scene.lens.voltage_kv) ** 2
    one = one * np.exp(-((2.0 * np.pi * blur_nm) ** 2) * rings.square)
    return np.stack([one, one / np.maximum(k, _LOWEST_PER_NM) ** 3])


def _rings_gain(
    rings: _Rings, shares: Doubles, contrast2: Doubles, rounds: int = 12
) -> tuple[Doubles, Doubles]:
    """Log likelihood over that of noise alone, (n,), with the best amounts, (n, 2).

    contrast2: (n, cells). Multiplicative updates keep the amounts above zero and only ever raise
    the likelihood (C. Fevotte, N. Bertin, J.-L. Durrieu, Neural Comput. 21, 793, 2009).
    """
    shape = shares[None] * contrast2[:, None]  # (n, 2, cells)
    excess = np.maximum((rings.modes * (rings.power - rings.noise)).sum(), 1e-12)
    amounts = 0.5 * excess / np.maximum((rings.modes * shape).sum(axis=2), 1e-30)
    for _ in range(rounds):
        total = rings.noise + np.einsum("na,nac->nc", amounts, shape)
        weight = rings.modes / total
        up = np.einsum("nac,nc->na", shape, weight * rings.power / total)
        down = np.einsum("nac,nc->na", shape, weight)
        amounts = amounts * np.sqrt(up / np.maximum(down, 1e-30))
    total = rings.noise + np.einsum("na,nac->nc", amounts, shape)
    before = rings.power / rings.noise
    gain = rings.modes * (before - np.log(total / rings.noise) - rings.power / total)
    return gain.sum(axis=1), amounts


def _spots_gain(spots: _Spots, contrast: Doubles, blur_nm: float) -> Doubles:
    """Log likelihood over that of noise alone with the best origin and strength; (n,).

    contrast: (n, spots).
    """
    square = spots.kx_per_nm**2 + spots.ky_per_nm**2
    seen = contrast * np.exp(-2.0 * (np.pi * blur_nm) ** 2 * square)
    best = np.full(len(contrast), -np.inf)
    strength = np.abs(spots.found)
    variance = spots.variance + (_SPOT_ERROR_RATIO * strength) ** 2  # (n,)
    # Where the lens shows a spot hardly at all, what is not linear in the phase is as strong.
    floor = max(float(strength.max()), 2.0 * float(np.abs(spots.ideal).max()))
    variance = variance + (_SPOT_FLOOR_RATIO * floor) ** 2
    for ideal in (spots.ideal, spots.ideal.conj()):  # a sheet may lie on its face
        model = seen * ideal  # (n, spots)
        fit = (model.conj() @ (spots.found[:, None] * spots.shifts / variance[:, None])).real
        norm = (np.abs(model) ** 2 / variance).sum(axis=1)
        top = fit.max(axis=1)
        cover = np.clip(top / np.maximum(norm, 1e-30), *_COVER_RATIO)
        best = np.maximum(best, 2.0 * cover * top - cover**2 * norm)
    return best


def _settled(spots: _Spots, lens: Lens, at: Doubles) -> _Spots:
    """The origin held where it fits best: it moves phases, focus amplitudes, so neither cares."""
    focus = Focus(1e-3 * at[0], (1e-3 * at[1], 1e-3 * at[2]))
    seen = phase_contrast(lens, focus, spots.kx_per_nm, spots.ky_per_nm)[None]
    best = -math.inf
    chosen = spots
    for ideal in (spots.ideal, spots.ideal.conj()):
        one = replace(spots, ideal=ideal)
        fit = ((seen * ideal).conj() @ (one.found[:, None] * one.shifts)).real[0]
        if fit.max() > best:
            best = float(fit.max())
            chosen = replace(one, shifts=one.shifts[:, [int(fit.argmax())]])
    return chosen


def _gain(scene: _Scene, focuses: list[Focus], blur_nm: float) -> Doubles:
    """Of every focus; (n,)."""
    rings, spots = scene.rings, scene.spots
    off = np.array([math.hypot(*each.stig_um) for each in focuses]) / scene.stig_sigma_um
    odd = (blur_nm - _BLUR_NM) / _BLUR_SIGMA_NM
    squares = np.stack(
        [
            phase_contrast(scene.lens, each, rings.kx_per_nm, rings.ky_per_nm) ** 2
            for each in focuses
        ]
    )
    total, _ = _rings_gain(rings, _shares(scene, blur_nm), squares)
    if spots is not None:
        seen = np.stack(
            [phase_contrast(scene.lens, each, spots.kx_per_nm, spots.ky_per_nm) for each in focuses]
        )
        total = total + _spots_gain(spots, seen, blur_nm)
    return np.asarray(total - 0.5 * (off**2 + odd**2))


def _fitted(scene: _Scene, search_um: tuple[float, float]) -> CtfEstimate:
    length_nm = wavelength_nm(scene.lens.voltage_kv)
    # chi moves by less than a quarter of a radian from step to step where it is seen best.
    step_um = 1e-3 * 0.25 / (np.pi * length_nm * 36.0)
    count = max(int((search_um[1] - search_um[0]) / step_um) + 1, 3)
    line = [Focus(float(d)) for d in np.linspace(*search_um, count)]
    stigs = [(0.0, 0.0)] + [
        (ratio * scene.stig_sigma_um * math.cos(turn), ratio * scene.stig_sigma_um * math.sin(turn))
        for ratio in (0.8, 1.8)
        for turn in np.arange(6) * math.pi / 3.0
    ]
    gains = np.stack(
        [_gain(scene, [Focus(each.defocus_um, stig) for each in line], _BLUR_NM) for stig in stigs]
    )  # (stigs, line)
    tried = []
    for row, i in _peaks(gains):
        x_um, y_um = stigs[row]
        start = np.array([1e3 * line[i].defocus_um, 1e3 * x_um, 1e3 * y_um, _BLUR_NM])
        tried.append(_climbed(scene, start, step_um * 1e3))
    tried.sort(key=lambda one: -one[1])
    return _answer(scene, tried, search_um)


def _peaks(gains: Doubles) -> list[tuple[int, int]]:
    """The highest places of the coarse search, (stigmators, defocus), no crowd of neighbours."""
    high = np.pad(gains, ((0, 0), (1, 1)), constant_values=-np.inf)
    is_peak = (gains >= high[:, :-2]) & (gains >= high[:, 2:])
    rows, columns = np.nonzero(is_peak)
    found: list[tuple[int, int]] = []
    for n in np.argsort(-gains[rows, columns]):
        row, column = int(rows[n]), int(columns[n])
        if sum(abs(column - at) <= 2 for _, at in found) < 2:
            found.append((row, column))
        if len(found) == _PEAKS:
            break
    return found


def _at(scene: _Scene, places: Doubles) -> Doubles:
    """Gain at rows of (D nm, X nm, Y nm, blur nm)."""
    return np.array(
        [
            float(_gain(scene, [Focus(1e-3 * d, (1e-3 * x, 1e-3 * y))], abs(blur))[0])
            for d, x, y, blur in places
        ]
    )


def _climbed(scene: _Scene, start: Doubles, step_nm: float) -> tuple[Doubles, float]:
    """Uphill along each number, then along the ridges that the likelihood has up there."""
    steps = np.diag([step_nm, 0.7, 0.7, 0.004])
    at, best = _stepped(scene, start, float(_at(scene, start[None])[0]), steps, 0.1)
    values, vectors = np.linalg.eigh(_covariance(scene, at))
    steps = vectors * np.sqrt(np.clip(values, 1e-8, 4.0))
    return _stepped(scene, at, best, steps.T, 0.05)


def _stepped(
    scene: _Scene, at: Doubles, best: float, steps: Doubles, least: float
) -> tuple[Doubles, float]:
    """By steps, the rows, halved where none helps until they are `least` of what they were."""
    at, share = at.copy(), 1.0
    for _ in range(40):
        before = best
        for step in steps:
            both = np.stack([at + share * step, at - share * step])
            both[:, 3] = np.clip(np.abs(both[:, 3]), 0.0, 0.06)
            gains = _at(scene, both)
            if gains.max() > best + 1e-3:
                at, best = both[int(gains.argmax())], float(gains.max())
        if best == before:
            share *= 0.5
            if share < least:
                break
    return at, best


def _covariance(scene: _Scene, at: Doubles) -> Doubles:
    """From the curvature of the likelihood at its top; (4, 4)."""
    steps = np.array([0.3, 0.3, 0.3, 0.002])
    at = at.copy()
    if scene.spots is not None:
        scene = replace(scene, spots=_settled(scene.spots, scene.lens, at))
    at[3] = max(at[3], 1.5 * steps[3])
    centre = float(_at(scene, at[None])[0])
    bend = np.zeros((4, 4))
    for i in range(4):
        for j in range(i, 4):
            e_i, e_j = np.eye(4)[i] * steps, np.eye(4)[j] * steps
            if i == j:
                up, down = _at(scene, np.stack([at + e_i, at - e_i]))
                bend[i, i] = -(up + down - 2.0 * centre) / steps[i] ** 2
            else:
                pp, mm, pm, mp = _at(
                    scene,
                    np.stack([at + e_i + e_j, at - e_i - e_j, at + e_i - e_j, at - e_i + e_j]),
                )
                bend[i, j] = bend[j, i] = -(pp + mm - pm - mp) / (4.0 * steps[i] * steps[j])
    values, vectors = np.linalg.eigh(bend * np.outer(steps, steps))
    values = np.maximum(values, 1e-4)
    scaled = vectors @ np.diag(1.0 / values) @ vectors.T
    return np.asarray(scaled * np.outer(steps, steps))


def _answer(
    scene: _Scene,
    tried: list[tuple[Doubles, float]],
    search_um: tuple[float, float],
) -> CtfEstimate:
    at, gain = tried[0]
    sigma = np.sqrt(np.diagonal(_covariance(scene, at)))
    sigma[:3] = np.hypot(sigma[:3], _MODEL_SIGMA_NM)
    apart = [one for one in tried[1:] if abs(one[0][0] - at[0]) > max(3.0 * sigma[0], 1.0)]
    other = apart[0] if apart else None
    lead = math.inf if other is None else gain - other[1]
    turned = [one for one in apart if one[0][0] * at[0] <= 0.0]
    lead_ratio = _LEAD_RATIO if scene.spots is not None else _LEAD_RATIO_RINGS
    least_lead = _LEAST_LEAD + lead_ratio * max(gain, 0.0)
    is_sign_known = not turned or gain - turned[0][1] >= least_lead
    width_nm = 1e3 * (search_um[1] - search_um[0])
    reason = ""
    if gain < _LEAST_GAIN:
        reason = "no rings stand out of the noise, and no lattice that is known"
    elif sigma[0] > _MOST_SIGMA_RATIO * width_nm:
        reason = f"the frame leaves it open by {sigma[0]:.1f} nm"
    elif other is not None and lead < least_lead:
        place = f"{other[0][0]:+.1f} nm"
        reason = f"a focus of {place} explains the frame about as well"
        if not is_sign_known:
            reason = f"over- or underfocus cannot be told: {place} explains it about as well"
    elif not 1e3 * search_um[0] < at[0] < 1e3 * search_um[1]:
        reason = "the best focus lies at the edge of what was searched"
    elif math.hypot(at[1], at[2]) > 3e3 * scene.stig_sigma_um:
        reason = "more astigmatism than was thought possible"
    return CtfEstimate(
        defocus_um=1e-3 * float(at[0]),
        defocus_sigma_um=1e-3 * float(sigma[0]),
        stig_um=(1e-3 * float(at[1]), 1e-3 * float(at[2])),
        stig_sigma_um=(1e-3 * float(sigma[1]), 1e-3 * float(sigma[2])),
        blur_nm=float(at[3]),
        blur_sigma_nm=float(sigma[3]),
        is_sure=not reason,
        is_sign_known=is_sign_known,
        other_um=None if other is None else 1e-3 * float(other[0][0]),
        gain=gain,
        spots=0 if scene.spots is None else len(scene.spots.found),
        reason=reason,
    )
