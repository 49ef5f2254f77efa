"""Foreign atoms in a graphene sheet, each with its likelihood ratio against the raw frame.

The lattice is found, an ideal sheet put where it lies, and the frame that the known lens would make
of it is taken from the raw one. What is left holds the noise, and whatever is not carbon on its
site. Every site is then asked how much better the raw counts are explained by another atom there,
or by none: the correlation of the rest with the difference that this atom would make, over the
noise, is the log likelihood ratio (in nats; for known templates no test finds more at equal false
alarms, J. Neyman, E. S. Pearson, Phil. Trans. R. Soc. A 231, 289, 1933). The best that are no
neighbours are put into the sheet, the frame is computed anew with all of them, and so on until
none is left that stands out. At the end every atom is weighed once more among the others.

An atom is only called an element if nothing else explains its place as well: no other amount of
the template, and no rest about it beyond noise. Neither a network nor its phase decides; the phase
of the exit wave is told beside each atom.

Not seen: sites within a fifth of a nanometre of the edge, second grains (whose blocks are left out
as not searched), atoms off the lattice's sites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from inference.restore.api import Frame, NoiseModel
from inference.restore.electrons import (
    Doubles,
    atom_phase_nm2,
    frequencies_per_nm,
    phase_contrast,
    transfer,
)
from inference.restore.exit_wave import ExitWave, Microscope, beam_in, mtf
from inference.restore.lattice import (
    Lattice,
    coefficients,
    find_lattice,
    ideal_phase,
    orders,
)

LEAST_LLR: Final = 10.0  # nats over carbon; chance passes a few sites in a million

_CARBON: Final = 6
_NONE: Final = 0
_ADATOM: Final = -6  # one more carbon on top
_ADATOM_LLR: Final = -6.0  # against it beforehand: carbon does not sit on top of carbon
_MARGIN_NM: Final = 0.8  # of sheet round the frame
_BORDER_NM: Final = 0.2  # of the frame where nothing is searched
_APART_NM: Final = 0.32  # of atoms that are accepted in one round
_ROUNDS: Final = 24
_THERMAL_NM: Final = 0.006
_AMOUNT_RATIO: Final = (0.8, 1.25)  # of the template, within which it is that element
_AMOUNT_SIGMAS: Final = 2.0
_REST_RADIUS_NM: Final = 0.3
_MOST_REST_RATIO: Final = 0.15  # of the rest's power over the noise's about a site
_MOST_REST_SIGMAS: Final = 4.0  # added to that, of chance
_SETTLING: Final = (0, 1, 3, 5)  # rounds before which the sheet is moved to where it fits best
_MOST_SHIFT_NM: Final = 0.02  # a round
_MOST_STRAIN: Final = 0.01


@dataclass(frozen=True, slots=True)
class Impurity:
    """One foreign atom."""

    number: int  # of the element
    x_px: float  # column and row, (0, 0) the centre of the first pixel
    y_px: float
    llr: float  # nats, that atom over carbon or nothing on its site, given all others
    amount_ratio: float  # of the element's template that fits best; 1: just that element
    amount_sigma: float
    probability: float  # of this element among those asked for, carbon and nothing
    phase_rad: float | None  # of the exit wave there, about its mean; None: no wave was given


@dataclass(frozen=True, slots=True)
class Impurities:
    """All foreign atoms of one frame."""

    found: tuple[Impurity, ...]
    odd: tuple[tuple[float, float], ...]  # (x, y) px of what stands out and fits no element
    missing: tuple[tuple[float, float], ...]  # likewise of empty sites
    sites: int  # that were asked
    searched_a2: float
    expected_llr: dict[int, float]  # of one such atom at this dose and focus, by element
    in_distribution: bool
    reason: str  # why not, "" when it is


def find_impurities(
    frame: Frame,
    microscope: Microscope,
    noise: NoiseModel | None = None,
    *,
    wave: ExitWave | None = None,
    elements: tuple[int, ...] = (14, 29),
    least_llr: float = LEAST_LLR,
    ntf_ratio: float = 1.0,
) -> Impurities:
    """Find foreign atoms on the sites of graphene in one HRTEM frame.

    noise: with the camera's true offset; None: estimated, the frame must then have none. wave: only
    told beside each atom. ntf_ratio: of the camera's noise left at Nyquist's frequency. Raises
    BadImage for what is no frame or holds no electrons.
    """
    grey, model, offset, level = beam_in(frame, noise)
    ratio = (grey.astype(np.float64) - offset) / level
    sigma = model.sigma_dn(level + offset) / level
    placed = _place(ratio - 1.0, microscope, sigma)
    if placed is None:
        reason = "no lattice of graphene stands out of the noise"
        return Impurities((), (), (), 0, 0.0, {}, False, reason)
    return _search(_Scene(ratio, sigma, ntf_ratio, microscope, *placed), elements, least_llr, wave)


# --- where the sheet lies ------------------------------------------------------------------------


def _place(
    contrast: Doubles, microscope: Microscope, sigma: float
) -> tuple[Lattice, tuple[float, float]] | None:
    """Lattice, and the middle of a hexagon in nm from the frame's middle; None: not found."""
    height, width = contrast.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    weight = float(window.sum())
    variance = sigma**2 * float((window**2).sum()) / weight**2
    windowed = (contrast - float((contrast * window).sum()) / weight) * window
    pixel_nm = microscope.pixel_size_nm
    lattice = find_lattice(windowed, weight, variance, pixel_nm, "graphene")
    if lattice is None:
        return None
    hk = orders(0.2461, min(9.0, 0.4 / pixel_nm))
    gx, gy = lattice.spots(hk)
    found = coefficients(windowed, weight, pixel_nm, gx, gy)
    seen = phase_contrast(microscope.lens, microscope.focus, gx, gy)
    model = seen * ideal_phase("graphene", lattice, hk, microscope.lens.voltage_kv)
    u, v = (axis.ravel() / 48.0 for axis in np.mgrid[0:48, 0:48])
    cell = lattice.cell_nm
    places = np.outer(u, cell[0]) + np.outer(v, cell[1])
    best = places[int(_fit(found, model, gx, gy, places).argmax())]
    step_nm = 0.003
    offsets = np.array([(i, j) for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0)])
    for _ in range(12):
        around = best + step_nm * offsets
        top = int(_fit(found, model, gx, gy, around).argmax())
        best = around[top]
        step_nm *= 1.0 if top != 4 else 0.5
    return lattice, (float(best[0]), float(best[1]))


def _fit(
    found: npt.NDArray[np.complex128],
    model: npt.NDArray[np.complex128],
    gx: Doubles,
    gy: Doubles,
    places_nm: Doubles,
) -> Doubles:
    """How well the spots' phases agree with a hexagon's middle at each place (n, 2)."""
    turned = np.exp(-2j * np.pi * (np.outer(places_nm[:, 0], gx) + np.outer(places_nm[:, 1], gy)))
    return np.asarray(((turned * model).conj() @ found).real)


# --- what is on its sites ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    ratio: Doubles  # (h, w): frame over its mean
    sigma: float
    ntf_ratio: float
    microscope: Microscope
    lattice: Lattice
    origin_nm: tuple[float, float]


class _Sheet:
    """Sites with an atom each, and the frame that the lens makes of them."""

    def __init__(self, scene: _Scene, elements: tuple[int, ...]) -> None:
        self._scene = scene
        height, width = scene.ratio.shape
        self.pixel_nm = scene.microscope.pixel_size_nm
        margin = math.ceil(_MARGIN_NM / self.pixel_nm)
        self.shape = (
            16 * math.ceil((height + 2 * margin) / 16),
            16 * math.ceil((width + 2 * margin) / 16),
        )
        self._top, self._left = margin, margin
        self.height, self.width = height, width
        rows, columns = self.shape
        # The frame's middle is the origin; the padded grid's lies elsewhere.
        self._x0_nm = -((width - 1) / 2 + margin) * self.pixel_nm
        self._y0_nm = ((height - 1) / 2 + margin) * self.pixel_nm
        self.places, self.kinds = scene.lattice.sites(
            scene.origin_nm,
            width * self.pixel_nm / 2 + _MARGIN_NM,
            height * self.pixel_nm / 2 + _MARGIN_NM,
        )
        self.number = np.full(len(self.places), _CARBON)
        kx, ky = np.broadcast_arrays(*frequencies_per_nm((rows, columns), self.pixel_nm))
        self._kx, self._ky = kx, ky
        lens, focus = scene.microscope.lens, scene.microscope.focus
        self._passed = transfer(lens, focus, kx, ky)
        self._damping = mtf((rows, columns), scene.microscope.mtf_ratio)
        k = np.hypot(kx, ky)
        blur = np.exp(-2.0 * (np.pi * _THERMAL_NM * k) ** 2) / self.pixel_nm**2
        self._form = {
            number: atom_phase_nm2(number, k, lens.voltage_kv) * blur
            for number in (_CARBON, *elements)
        }
        self._form[_NONE] = np.zeros_like(k)
        self._form[_ADATOM] = 2.0 * self._form[_CARBON]
        x_phase = np.fft.fftfreq(columns, self.pixel_nm)
        y_phase = np.fft.fftfreq(rows, self.pixel_nm)
        self._across = np.exp(
            -2j * np.pi * np.outer(self.places[:, 0] - self._x0_nm, x_phase)
        ).astype(np.complex64)  # (sites, W)
        self._down = np.exp(
            -2j * np.pi * np.outer(self._y0_nm - self.places[:, 1], y_phase)
        ).astype(np.complex64)  # (sites, H)
        self._sum = self._form[_CARBON] * self._factor(np.arange(len(self.places)))

    def put(self, site: int, number: int) -> None:
        """Another atom on a site."""
        change = self._form[number] - self._form[int(self.number[site])]
        self._sum = self._sum + change * np.outer(self._down[site], self._across[site])
        self.number[site] = number

    def frame(self) -> Doubles:
        """What the lens makes of it, (h, w), over its own mean."""
        return self._frame_of(self._sum)

    def difference(self, kind: int, number: int) -> npt.NDArray[np.complex128]:
        """Transform of what an atom on a site of that kind adds to carbon's frame; its place at 0.

        By the site of that kind nearest to the middle, the sheet about it as it is ideally.
        """
        centre = np.hypot(self.places[:, 0], self.places[:, 1]) + 1e3 * (self.kinds != kind)
        site = int(centre.argmin())
        ideal = self._form[_CARBON] * self._factor(np.arange(len(self.places)))
        own = np.outer(self._down[site], self._across[site])
        other = ideal + (self._form[number] - self._form[_CARBON]) * own
        change = self._wide(other) - self._wide(ideal)
        return np.asarray(np.fft.fft2(change) / own)

    def responses(self, rest: Doubles, shapes: npt.NDArray[np.complex128]) -> Doubles:
        """Correlation of a rest (h, w) with each shape (n, H, W) at every site, (n, sites)."""
        wide = np.zeros(self.shape)
        wide[self._inner] = rest
        spectrum = np.fft.fft2(wide) / self.noise_power()
        found = np.empty((len(shapes), len(self.places)))
        for at, shape in enumerate(shapes):
            product = (spectrum * shape.conj()).astype(np.complex64)
            along = self._down.conj() @ product  # (sites, W)
            found[at] = (along * self._across.conj()).sum(axis=1).real
        return np.asarray(found / (self.shape[0] * self.shape[1]))

    def response(self, rest: Doubles, shape: npt.NDArray[np.complex128], site: int) -> float:
        """The same of one shape at one site."""
        wide = np.zeros(self.shape)
        wide[self._inner] = rest
        product = np.fft.fft2(wide) / self.noise_power() * shape.conj()
        own = np.outer(self._down[site], self._across[site]).conj()
        return float((product * own).sum().real / (self.shape[0] * self.shape[1]))

    def noise_power(self) -> Doubles:
        """Variance of each mode of `fft2`, over the number of pixels."""
        shape = mtf((self.shape[0], self.shape[1]), self._scene.ntf_ratio) ** 2
        return np.asarray(self._scene.sigma**2 * shape)

    @property
    def _inner(self) -> tuple[slice, slice]:
        return (
            slice(self._top, self._top + self.height),
            slice(self._left, self._left + self.width),
        )

    def _factor(self, sites: npt.NDArray[np.int64]) -> npt.NDArray[np.complex64]:
        return np.asarray(self._down[sites].T @ self._across[sites])

    def _wide(self, total: npt.NDArray[np.complexfloating]) -> Doubles:
        phase = np.fft.ifft2(total).real
        wave = np.fft.fft2(np.exp(1j * phase)) * self._passed
        seen = np.abs(np.fft.ifft2(wave)) ** 2
        return np.asarray(np.fft.ifft2(np.fft.fft2(seen) * self._damping).real)

    def _frame_of(self, total: npt.NDArray[np.complexfloating]) -> Doubles:
        inner = self._wide(total)[self._inner]
        return np.asarray(inner / inner.mean())


@dataclass(frozen=True, slots=True, eq=False)
class _Shapes:
    """What each state of a site adds to the frame of an ideal sheet; carbon, the first, nothing."""

    states: tuple[int, ...]
    spectra: npt.NDArray[np.complex128]  # (2 kinds, states, H, W)
    gram: Doubles  # (2 kinds, states, states): their products in units of the noise

    @classmethod
    def of(cls, sheet: _Sheet, states: tuple[int, ...]) -> _Shapes:
        spectra = np.array([[sheet.difference(kind, one) for one in states] for kind in (0, 1)])
        flat = (spectra / np.sqrt(sheet.noise_power())).reshape(2, len(states), -1)
        pixels = sheet.shape[0] * sheet.shape[1]
        gram = np.einsum("ksp,ktp->kst", flat, flat.conj()).real / pixels
        return cls(states, spectra, np.asarray(gram))

    def likelihoods(self, sheet: _Sheet, rest: Doubles) -> Doubles:
        """Log likelihood of every state at every site, over the present one; (states, sites)."""
        products = np.where(
            sheet.kinds[None] == 0,
            sheet.responses(rest, self.spectra[0]),
            sheet.responses(rest, self.spectra[1]),
        )
        at = np.arange(len(sheet.kinds))
        now = np.array([self.states.index(int(one)) for one in sheet.number])
        gram = self.gram[sheet.kinds]  # (sites, states, states)
        own = gram[at, now, now][:, None]
        norm = np.diagonal(gram, axis1=1, axis2=2) - 2.0 * gram[at, now] + own  # (sites, states)
        likely = np.asarray(products - products[now, at][None] - 0.5 * norm.T)
        before = np.array([_ADATOM_LLR * (one == _ADATOM) for one in self.states])
        return np.asarray(likely + before[:, None] - before[now][None])


def _shifted(scene: _Scene, sheet: _Sheet) -> _Scene:
    """The sheet moved and strained by what brings its frame nearest to the raw one."""
    frame = sheet.frame()
    rest = scene.ratio - frame
    down, right = np.gradient(frame, sheet.pixel_nm)
    slopes = (right, -down)  # along x and y, y UP
    height, width = frame.shape
    x_nm = (np.arange(width) - (width - 1) / 2)[None, :] * sheet.pixel_nm
    y_nm = ((height - 1) / 2 - np.arange(height))[:, None] * sheet.pixel_nm
    columns = [-slope * along for slope in slopes for along in (np.ones_like(x_nm), x_nm, y_nm)]
    flat = np.stack([column.ravel() for column in columns])
    # What the sheet does not explain at all, another grain, must not draw it away.
    weighted = flat * (np.maximum(_rest_power(scene, rest), 1.0) ** -2.0).ravel()
    found = np.linalg.solve(weighted @ flat.T + 1e-12 * np.eye(6), weighted @ rest.ravel())
    found[[0, 3]] = np.clip(found[[0, 3]], -_MOST_SHIFT_NM, _MOST_SHIFT_NM)
    found[[1, 2, 4, 5]] = np.clip(found[[1, 2, 4, 5]], -_MOST_STRAIN, _MOST_STRAIN)
    strain = np.eye(2) + found.reshape(2, 3)[:, 1:]
    origin = strain @ np.array(scene.origin_nm) + found[[0, 3]]
    vectors = np.array([scene.lattice.g1_per_nm, scene.lattice.g2_per_nm]) @ np.linalg.inv(strain)
    (x1, y1), (x2, y2) = vectors.tolist()
    lattice = Lattice((x1, y1), (x2, y2))
    return replace(scene, lattice=lattice, origin_nm=(float(origin[0]), float(origin[1])))


def _moved(old: _Sheet, scene: _Scene, elements: tuple[int, ...]) -> _Sheet:
    """A sheet where the scene's lattice now is, with the same atoms on it."""
    sheet = _Sheet(scene, elements)
    for site in np.flatnonzero(old.number != _CARBON):
        off = np.hypot(*(sheet.places - old.places[site]).T)
        nearest = int(off.argmin())
        if off[nearest] < 0.05:
            sheet.put(nearest, int(old.number[site]))
    return sheet


def _rest_side_px(scene: _Scene) -> int:
    return 2 * round(_REST_RADIUS_NM / scene.microscope.pixel_size_nm) + 1


def _rest_power(scene: _Scene, rest: Doubles) -> Doubles:
    """Mean power of a rest about each pixel, over the noise's; (h, w)."""
    side = _rest_side_px(scene)
    power = cv2.blur(np.square(rest / scene.sigma), (side, side), borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(power, np.float64)


def _is_explained(scene: _Scene, sheet: _Sheet) -> npt.NDArray[np.bool_]:
    """Whether the rest about each site is no more than noise; (sites,)."""
    power = _rest_power(scene, scene.ratio - sheet.frame())
    side = _rest_side_px(scene)
    column = np.rint(sheet.places[:, 0] / sheet.pixel_nm + (sheet.width - 1) / 2).astype(int)
    row = np.rint((sheet.height - 1) / 2 - sheet.places[:, 1] / sheet.pixel_nm).astype(int)
    at = power[np.clip(row, 0, sheet.height - 1), np.clip(column, 0, sheet.width - 1)]
    return np.asarray(at <= 1.0 + _MOST_REST_RATIO + _MOST_REST_SIGMAS * math.sqrt(2.0) / side)


def _search(
    scene: _Scene, elements: tuple[int, ...], least_llr: float, wave: ExitWave | None
) -> Impurities:
    sheet = _Sheet(scene, elements)
    shapes = _Shapes.of(sheet, (_CARBON, *elements, _NONE, _ADATOM))
    for number in range(_ROUNDS):
        if number in _SETTLING:
            scene = _shifted(scene, sheet)
            sheet = _moved(sheet, scene, elements)
        gains = shapes.likelihoods(sheet, scene.ratio - sheet.frame())
        moves = _moves(sheet, gains, least_llr)
        if not moves and number > max(_SETTLING):
            break
        for site, state in moves:
            sheet.put(site, shapes.states[state])
    half_x = scene.ratio.shape[1] * sheet.pixel_nm / 2 - _BORDER_NM
    half_y = scene.ratio.shape[0] * sheet.pixel_nm / 2 - _BORDER_NM
    is_asked = (np.abs(sheet.places[:, 0]) <= half_x) & (np.abs(sheet.places[:, 1]) <= half_y)
    is_asked &= _is_explained(scene, sheet)
    if not is_asked.any():
        reason = "too small a frame, or one that a sheet of graphene does not explain"
        return Impurities((), (), (), 0, 0.0, {}, False, reason)
    return _told(scene, sheet, shapes, is_asked, least_llr, wave)


def _moves(sheet: _Sheet, gains: Doubles, least_llr: float) -> list[tuple[int, int]]:
    """The best changes that are no neighbours; a change back to carbon needs no evidence."""
    state = gains.argmax(axis=0)
    gain = gains[state, np.arange(gains.shape[1])]
    needed = np.where((sheet.number != _CARBON) | (state == 0), 0.5, 0.5 * least_llr)
    found: list[tuple[int, int]] = []
    for site in np.argsort(-gain):
        if gain[site] <= 0.5:
            break
        if gain[site] <= needed[site]:
            continue
        near = [sheet.places[other] for other, _ in found]
        if near and np.hypot(*(np.array(near) - sheet.places[site]).T).min() < _APART_NM:
            continue
        found.append((int(site), int(state[site])))
    return found


def _told(
    scene: _Scene,
    sheet: _Sheet,
    shapes: _Shapes,
    is_asked: npt.NDArray[np.bool_],
    least_llr: float,
    wave: ExitWave | None,
) -> Impurities:
    rest = scene.ratio - sheet.frame()
    gains = shapes.likelihoods(sheet, rest)
    plain = [shapes.states.index(one) for one in (_CARBON, _NONE)]
    found, odd, missing = [], [], []
    for site in np.flatnonzero(is_asked & (sheet.number != _CARBON)):
        number = int(sheet.number[site])
        state = shapes.states.index(number)
        x_px = float((sheet.places[site, 0] / sheet.pixel_nm) + (sheet.width - 1) / 2)
        y_px = float((sheet.height - 1) / 2 - sheet.places[site, 1] / sheet.pixel_nm)
        place = x_px, y_px
        if number == _NONE:
            missing.append(place)
            continue
        llr = -float(gains[plain, site].max())
        if llr < least_llr:
            continue
        kind = int(sheet.kinds[site])
        norm = float(shapes.gram[kind, state, state])
        response = sheet.response(rest, shapes.spectra[kind, state], int(site))
        amount, sigma = 1.0 + response / norm, 1.0 / math.sqrt(norm)
        slack = _AMOUNT_SIGMAS * sigma
        fits = _AMOUNT_RATIO[0] - slack <= amount <= _AMOUNT_RATIO[1] + slack
        if number == _ADATOM or not fits:
            odd.append(place)
            continue
        odds = np.exp(np.minimum(gains[:, site], 50.0))
        found.append(
            Impurity(
                number=number,
                x_px=x_px,
                y_px=y_px,
                llr=llr,
                amount_ratio=amount,
                amount_sigma=sigma,
                probability=float(odds[state] / odds.sum()),
                phase_rad=_phase_at(wave, place),
            )
        )
    expected = {
        number: 0.5 * float(shapes.gram[:, at, at].mean())
        for at, number in enumerate(shapes.states)
        if number > 0 and number != _CARBON
    }
    searched = float(is_asked.sum()) * 0.5 * scene.lattice.area_nm2 * 100.0
    found.sort(key=lambda one: -one.llr)
    return Impurities(
        found=tuple(found),
        odd=tuple(odd),
        missing=tuple(missing),
        sites=int(is_asked.sum()),
        searched_a2=searched,
        expected_llr=expected,
        in_distribution=True,
        reason="",
    )


def _phase_at(wave: ExitWave | None, place_px: tuple[float, float]) -> float | None:
    if wave is None:
        return None
    height, width = wave.phase_rad.shape
    row = min(max(round(place_px[1]), 0), height - 1)
    column = min(max(round(place_px[0]), 0), width - 1)
    near = wave.phase_rad[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    return float(near.max() - wave.phase_rad.mean(dtype=np.float64))
