"""Clean frames of every kind, for training and testing what takes noise away.

Three families: atoms in a transmission microscope, surfaces under an electron beam, chips under
light; and random pictures that stand for whatever else there is: dead leaves, fields of 1/f noise,
grains, particles. A frame follows from seed and number. No noise: that's put on by whoever uses
them.

What tests show, training has not seen: MoS2 and platinum, microscopes of 70 to 100 kV and defoci
of 4 to 7 nm; superalloys and square grids; leaves with other shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from drivers.api import Objective
from simulator.atoms import SampleKind, SampleSettings
from simulator.chip import Chip, ChipSettings
from simulator.render import Renderer
from simulator.specimen import Specimen, SpecimenKind, SpecimenSettings
from simulator.tem import CameraSettings, LensSettings, Mode, Tem, TemSettings

Domain: TypeAlias = Literal["train", "test"]
Family: TypeAlias = Literal["hrtem", "stem", "surface", "picture", "chip"]
Grey: TypeAlias = npt.NDArray[np.float32]

FAMILIES: Final[tuple[Family, ...]] = ("hrtem", "stem", "surface", "picture", "chip")

_SIDE_PX: Final = 256
_SHARES: Final[dict[Family, float]] = {
    "hrtem": 0.34,
    "stem": 0.12,
    "surface": 0.22,
    "picture": 0.26,
    "chip": 0.06,
}
_SAMPLES: Final[dict[Domain, tuple[SampleKind, ...]]] = {
    "train": ("graphene", "graphene", "graphene", "hbn", "gold_particle"),
    "test": ("mos2", "mos2", "platinum_particle"),
}
_SPECIMENS: Final[dict[Domain, tuple[SpecimenKind, ...]]] = {
    "train": ("gold_on_carbon", "tin_balls", "laths", "fibres"),
    "test": ("superalloy", "square_grid"),
}
_DOSES_E: Final[dict[Family, tuple[float, float]]] = {
    "stem": (2.0, 1e3),
    "surface": (1.0, 300.0),
    "picture": (1.0, 300.0),
    "chip": (100.0, 2e4),
}
_HRTEM_E_PER_A2: Final = (300.0, 1e5)
_UNSEEN_KV: Final = (70.0, 100.0)
_UNSEEN_DEFOCUS_NM: Final = (4.0, 7.0)
_CHIPS: Final = 12


@dataclass(frozen=True, slots=True, eq=False)
class CleanFrame:
    """What a microscope would show if electrons and light came without number."""

    family: Family
    kind: str
    level: Grey  # (h, w); 1: electrons a pixel that come in (hrtem), else a bright pixel
    pixel_size_nm: float

    @property
    def doses_e(self) -> tuple[float, float]:
        """Electrons a pixel where the level is 1, from the least to the most that's usual."""
        if self.family == "hrtem":
            low, high = ((10.0 * self.pixel_size_nm) ** 2 * dose for dose in _HRTEM_E_PER_A2)
            return low, high
        return _DOSES_E[self.family]


def clean_frame(
    seed: int,
    number: int,
    domain: Domain = "train",
    *,
    family: Family | None = None,
    side_px: int = _SIDE_PX,
) -> CleanFrame:
    """One frame; the same arguments give the same. family: None to draw it."""
    rng = np.random.default_rng([0x4E57, domain == "test", seed, number])
    drawn = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
    family = next(each for each in FAMILIES if each == (family or drawn))
    if family in ("hrtem", "stem"):
        return _atoms(rng, domain, family, side_px)
    if family == "surface":
        return _surface(rng, domain, side_px)
    if family == "chip":
        return _chip(rng, seed, domain, side_px)
    return _picture(rng, domain, side_px)


def graphene_at_80_kv(seed: int, number: int, side_px: int = _SIDE_PX) -> CleanFrame:
    """The graphene that everybody reports on, whose voltage and defoci training has not seen.

    0.154 A a pixel, spherical aberration within 20 um, defocus within 10 nm, astigmatism to 2 nm;
    vacancies, foreign atoms and a hole; the camera is perfect.
    """
    rng = np.random.default_rng([0x4752, seed, number])
    lens = LensSettings(voltage_kv=80.0, spherical_mm=float(rng.uniform(-0.02, 0.02)))
    size = 0.0154
    sample = _sheet(rng, "graphene", side_px * size + 1.8)
    return _photographed(rng, lens, size, side_px, sample, "hrtem", (-10.0, 10.0), 1.0)


# --- atoms -----------------------------------------------------------------------------------


def _atoms(
    rng: np.random.Generator, domain: Domain, family: Literal["hrtem", "stem"], side_px: int
) -> CleanFrame:
    kind: SampleKind = _SAMPLES[domain][int(rng.integers(len(_SAMPLES[domain])))]
    mode: Mode = "hrtem" if family == "hrtem" else "haadf"
    size = float(rng.uniform(0.010, 0.021) if rng.random() < 0.75 else rng.uniform(0.021, 0.04))
    if kind == "gold_particle" or kind == "platinum_particle":
        sample = SampleSettings(
            kind=kind,
            seed=int(rng.integers(2**31)),
            width_nm=side_px * size + 1.8,
            height_nm=side_px * size + 1.8,
            particle_radius_nm=float(rng.uniform(0.8, 2.2)),
            particle_tilt_deg=float(rng.choice([0.0, rng.uniform(0.0, 45.0)])),
            support_nm=float(rng.choice([0.0, 1.0, 2.0])),
        )
    else:
        sample = _sheet(rng, kind, side_px * size + 1.8)
    low, high = _UNSEEN_KV
    kv = float(rng.uniform(low, high))
    if domain == "train":
        kv = float(rng.choice([rng.uniform(40.0, low), rng.uniform(high, 300.0)]))
    reach = float(rng.choice([12.0, 30.0]))
    lens = LensSettings(
        voltage_kv=kv,
        spherical_mm=float(rng.uniform(-0.02, 0.02) * rng.choice([1.0, 1.0, 3.0])),
        focal_spread_um=float(rng.uniform(0.001, 0.005)),
        source_nm=float(rng.uniform(0.01, 0.06)),
        probe_mrad=float(rng.uniform(18.0, 35.0)),
    )
    mtf = 1.0 if rng.random() < 0.5 else float(rng.uniform(0.4, 1.0))
    span = (-reach, reach) if mode == "hrtem" else (-4.0, 4.0)
    hidden = _UNSEEN_DEFOCUS_NM if domain == "train" and mode == "hrtem" else None
    return _photographed(rng, lens, size, side_px, sample, mode, span, mtf, hidden)


def _sheet(rng: np.random.Generator, kind: SampleKind, side_nm: float) -> SampleSettings:
    return SampleSettings(
        kind=kind,
        seed=int(rng.integers(2**31)),
        width_nm=side_nm,
        height_nm=side_nm,
        vacancy_ratio=float(rng.choice([0.0, 0.003, 0.01, 0.03])),
        dopant_ratio=float(rng.choice([0.0, 0.003, 0.01])),
        holes=int(rng.choice([0, 0, 1, 2])),
        hole_radius_nm=float(rng.uniform(0.2, 0.9)),
        boundary_deg=float(rng.choice([0.0, 0.0, rng.uniform(5.0, 30.0)])),
        adatoms=int(rng.choice([0, 0, 2, 6])),
        adatom=("C", "Si", "Cu", "Au")[int(rng.integers(4))],
    )


def _photographed(
    rng: np.random.Generator,
    lens: LensSettings,
    pixel_size_nm: float,
    side_px: int,
    sample: SampleSettings,
    mode: Mode,
    span_nm: tuple[float, float],
    mtf_ratio: float,
    hidden_nm: tuple[float, float] | None = None,
) -> CleanFrame:
    settings = TemSettings(
        seed=int(rng.integers(2**31)),
        height_px=side_px,
        width_px=side_px,
        pixel_size_nm=pixel_size_nm,
        dose_e_per_a2=1e4,
        lens=lens,
        sample=sample,
        camera=CameraSettings(mtf_ratio=mtf_ratio, ntf_ratio=1.0, dqe_ratio=1.0, read_noise_e=0.0),
    )
    defocus_nm = float(rng.uniform(*span_nm))
    while hidden_nm is not None and hidden_nm[0] <= abs(defocus_nm) <= hidden_nm[1]:
        defocus_nm = float(rng.uniform(*span_nm))
    amount, turn = 2e-3 * math.sqrt(rng.random()), rng.uniform(0.0, 2.0 * math.pi)
    stig = (amount * math.cos(turn), amount * math.sin(turn))
    shot = Tem(settings).expose(1e-3 * defocus_nm, stig, mode=mode)
    scale = settings.dose_e_per_px if mode == "hrtem" else _bright(shot.clean_e)
    level = shot.clean_e / np.float32(scale)
    if mode == "haadf":  # what scatters between the atoms, and the detector's own
        base = float(rng.uniform(0.0, 0.4))
        level = np.float32(base) + np.float32(1.0 - base) * level
    family: Family = "hrtem" if mode == "hrtem" else "stem"
    return CleanFrame(family, sample.kind, np.ascontiguousarray(level), pixel_size_nm)


# --- surfaces and chips ----------------------------------------------------------------------


def _surface(rng: np.random.Generator, domain: Domain, side_px: int) -> CleanFrame:
    kind = _SPECIMENS[domain][int(rng.integers(len(_SPECIMENS[domain])))]
    pixel_nm = 10.0
    settings = SpecimenSettings(
        kind=kind,
        seed=int(rng.integers(2**31)),
        feature_nm=float(pixel_nm * math.exp(rng.uniform(math.log(5.0), math.log(70.0)))),
        contrast_ratio=float(rng.uniform(0.3, 1.3)),
    )
    place = rng.uniform(-500.0, 500.0, 2)
    field = Specimen(settings).field(float(place[0]), float(place[1]), pixel_nm, (side_px,) * 2, 16)
    blur_px = float(rng.uniform(0.3, 1.6))
    blurred: Grey = np.asarray(cv2.GaussianBlur(field.yield_ratio, (0, 0), blur_px), np.float32)
    blurred = blurred[16:-16, 16:-16]
    return CleanFrame("surface", kind, _over_black(rng, blurred), pixel_nm)


def _chip(rng: np.random.Generator, seed: int, domain: Domain, side_px: int) -> CleanFrame:
    chip_seed = int(rng.integers(_CHIPS)) + _CHIPS * (2 * seed + (domain == "test"))
    renderer, half_um = _renderer(chip_seed % 2**31)
    magnification = float(rng.choice([10.0, 20.0, 50.0]))
    aperture = {10.0: 0.3, 20.0: 0.45, 50.0: 0.8}[magnification]
    objective = Objective("lens", magnification, aperture, 7_680.0 / magnification)
    place = rng.uniform(-half_um, half_um, 2)
    planes = renderer.light(objective, float(place[0]), float(place[1]), 0.0, (side_px, side_px))
    plane = planes[int(rng.integers(3))]
    return CleanFrame("chip", "chip", _over_black(rng, plane), objective.pixel_size_nm)


@lru_cache(maxsize=_CHIPS)
def _renderer(seed: int) -> tuple[Renderer, float]:
    chip = Chip.generate(
        ChipSettings(seed=seed, size_mm=(2.0, 2.0), flakes_per_mm2=25.0, empty_fraction=0.0)
    )
    return Renderer(chip), 800.0


def _bright(plane: Grey) -> float:
    """What counts as bright: above all but a few specks."""
    return max(float(np.percentile(plane, 99.5)), 0.2 * float(plane.max()), 1e-9)


def _over_black(rng: np.random.Generator, plane: Grey) -> Grey:
    """Non-negative, its bright pixels 1, over a background that some detectors add."""
    plane = np.maximum(plane, np.float32(0.0))
    plane = plane / np.float32(_bright(plane))
    base = float(rng.choice([0.0, rng.uniform(0.0, 0.5)]))
    return np.ascontiguousarray(np.float32(base) + np.float32(1.0 - base) * plane)


# --- pictures --------------------------------------------------------------------------------


def _picture(rng: np.random.Generator, domain: Domain, side_px: int) -> CleanFrame:
    kinds = ("leaves", "field", "grains", "particles") if domain == "train" else ("leaves",)
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "leaves":
        plane = _leaves(rng, side_px, is_round=domain == "train" and rng.random() < 0.5)
    elif kind == "field":
        plane = _power_law(rng, side_px, float(rng.uniform(0.6, 1.8)))
        if rng.random() < 0.6:
            cut = float(rng.uniform(-0.7, 0.7))
            soft = float(rng.uniform(5.0, 60.0))
            step = 1.0 / (1.0 + np.exp(-np.clip(soft * (plane - cut), -30.0, 30.0)))
            plane = np.asarray(step + rng.uniform(0.0, 0.15) * plane, np.float32)
    elif kind == "grains":
        plane = _grains(rng, side_px)
    else:
        plane = _particles(rng, side_px)
    if rng.random() < 0.4:  # texture upon it
        amount = float(rng.uniform(0.01, 0.12)) * float(np.ptp(plane))
        plane = plane + np.float32(amount) * _power_law(rng, side_px, float(rng.uniform(0.2, 1.2)))
    blurred = cv2.GaussianBlur(plane, (0, 0), float(rng.uniform(0.3, 1.4)))
    blurred = blurred - blurred.min()
    return CleanFrame("picture", kind, _over_black(rng, blurred), 10.0)


def _power_law(rng: np.random.Generator, side_px: int, exponent: float) -> Grey:
    """Gaussian field of amplitude 1/f^exponent; zero mean, unit variance; not always isotropic."""
    fy, fx = np.fft.fftfreq(2 * side_px)[:, None], np.fft.rfftfreq(2 * side_px)[None, :]
    stretch, turn = math.exp(rng.normal(0.0, 0.4)), rng.uniform(0.0, math.pi)
    u = (fx * math.cos(turn) + fy * math.sin(turn)) * stretch
    v = (fy * math.cos(turn) - fx * math.sin(turn)) / stretch
    radius = np.maximum(np.hypot(u, v), 1.0 / side_px)
    white = np.fft.rfft2(rng.standard_normal((2 * side_px, 2 * side_px), dtype=np.float32))
    found = np.fft.irfft2(white * radius**-exponent)[:side_px, :side_px]
    return np.asarray((found - found.mean()) / max(float(found.std()), 1e-9), np.float32)


def _leaves(rng: np.random.Generator, side_px: int, *, is_round: bool) -> Grey:
    """Shapes that cover one another, their sizes distributed as 1/r^3, drawn twice as fine."""
    side = 2 * side_px
    image = np.full((side, side), float(rng.random()), np.float32)
    least, most = float(rng.uniform(4.0, 12.0)), float(rng.uniform(60.0, 200.0))
    for _ in range(int(rng.integers(60, 700))):
        radius = least / math.sqrt(1.0 - rng.random() * (1.0 - (least / most) ** 2))
        x, y = rng.uniform(-0.1, 1.1, 2) * side
        grey = float(rng.random())
        if is_round:
            axes = (int(radius), max(1, int(radius * rng.uniform(0.3, 1.0))))
            turn = float(rng.uniform(0.0, 180.0))
            cv2.ellipse(image, (int(x), int(y)), axes, turn, 0.0, 360.0, grey, -1)
        else:
            corners = int(rng.integers(3, 9))
            angles = np.sort(rng.uniform(0.0, 2.0 * math.pi, corners))
            reach = radius * rng.uniform(0.5, 1.2, corners)
            ring = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)
            cv2.fillPoly(image, [ring.astype(np.int32)], grey)
    return np.asarray(cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_AREA))


def _grains(rng: np.random.Generator, side_px: int) -> Grey:
    """Polycrystal: cells of one brightness each, some striped with twins, dark or light between."""
    count = int(rng.integers(5, 120))
    seeds = rng.uniform(0.0, side_px, (count, 2))
    canvas = np.ones((side_px, side_px), np.uint8)
    for x, y in seeds.astype(int):
        canvas[y, x] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        canvas, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    greys = rng.random(int(labels.max()) + 1).astype(np.float32)
    image = greys[labels]
    y, x = np.mgrid[:side_px, :side_px].astype(np.float32)
    for label in rng.permutation(int(labels.max()))[: count // 3] + 1:
        turn, pitch = rng.uniform(0.0, math.pi), rng.uniform(4.0, 24.0)
        wave = np.sin((x * math.cos(turn) + y * math.sin(turn)) * (2.0 * math.pi / pitch))
        amount = np.float32(rng.uniform(0.05, 0.4))
        image = np.where(labels == label, image + amount * np.sign(wave), image)
    edges = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    edge = float(rng.uniform(-0.4, 0.6))
    image = image + np.float32(edge) * edges
    return np.asarray(image + rng.uniform(-0.01, 0.01) * distance, np.float32)


def _particles(rng: np.random.Generator, side_px: int) -> Grey:
    """Balls or flat discs on a slope, of one size or of many."""
    y, x = np.mgrid[:side_px, :side_px].astype(np.float32)
    slope = rng.uniform(-0.5, 0.5, 2) / side_px
    image = np.asarray(slope[0] * x + slope[1] * y, np.float32)
    typical, spread = math.exp(rng.uniform(math.log(1.5), math.log(25.0))), rng.uniform(0.0, 0.6)
    is_ball, grey = rng.random() < 0.6, float(rng.uniform(-1.0, 1.0))
    most = int(0.5 * side_px**2 / (math.pi * typical**2))
    for _ in range(min(int(rng.integers(3, 400)), max(most, 3))):
        radius = typical * math.exp(rng.normal(0.0, spread))
        column, row = rng.uniform(0.0, side_px, 2)
        reach = math.ceil(radius + 2.0)
        rows = slice(max(int(row) - reach, 0), int(row) + reach + 1)
        columns = slice(max(int(column) - reach, 0), int(column) + reach + 1)
        gap = np.hypot(x[rows, columns] - column, y[rows, columns] - row)
        cover = np.clip(radius + 0.5 - gap, 0.0, 1.0)
        height = np.sqrt(np.clip(1.0 - (gap / radius) ** 2, 0.0, 1.0)) if is_ball else cover
        image[rows, columns] += np.float32(grey) * (height if is_ball else cover)
    return image
