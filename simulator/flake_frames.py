"""Photographs of chips with their truth, as different from each other as laboratories are.

What `simulator.render` paints is one microscope, faithfully; a network has to meet hundreds, and
some that are wrong. So each scene draws its own lamp, colour filters, aperture, oxide, indices,
blur, vignette, flare, colour matrix, tone curve, noise, sharpening and JPEG, and its own mixture of
flakes and dirt from `Chip`. Speed matters more than fidelity: one scene in about a second.

Two domains share the chips and nothing else that a network could learn by heart:

- "train": black-body lamps, Gaussian filters, Gaussian blur, one set of index measurements and
  smooth errors on them, power-law tone curves, the simulator's own dirt.
- "test": LED and filtered halogen lamps, skewed filters with leaks, wave-optical point spreads with
  a chromatic shift, the index measurements of other laboratories, another silicon, a crystal that
  training never shows, S-shaped tone curves, a second kind of residue.

`is_strange` frames are what must be refused: far out of focus, or no photograph of a chip at all.
In training they are blurred frames and heaps of shapes; in the test double blur, other textures,
and residue of the second kind all over the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import shapely
import shapely.errors

from inference.api import Calibration
from inference.flakes.labelled import DIRT, SUBSTRATE, UNKNOWN, LabelledFrame
from inference.flakes.ladder import Optics, layer_grid, model_contrast
from inference.flakes.materials import MATERIALS, SIO2, IndexCurve, constant_curve, curves
from inference.flakes.thin_film import WAVELENGTHS_NM, Illuminant, reflectance
from simulator import shapes
from simulator.chip import SUBSTRATE as BARE
from simulator.chip import Chip, ChipSettings, Paint, Patch
from simulator.flake_troubles import Trouble, troubled_chip
from simulator.optics import point_spread
from simulator.raster import add_coverage, to_picture
from simulator.relief import HAZE_PITCH_UM, haze, relief

Domain: TypeAlias = Literal["train", "test"]
Oddity: TypeAlias = Literal["none", "blur", "texture", "residue"]
FloatArray: TypeAlias = npt.NDArray[np.float64]
Planes: TypeAlias = npt.NDArray[np.float32]  # (3, h, w), 1 is the bare substrate

INDEX_CURVES: dict[Domain, dict[str, tuple[str, ...]]] = {
    "train": {
        "graphene": ("weber", "graphite_djurisic"),
        "hbn": ("lee", "rah"),
        "mos2": ("hsu_1l", "bulk_munkhbat"),
        "wse2": ("hsu_1l", "bulk_munkhbat"),
        "wte2": ("munkhbat_alpha",),
        "ws2": ("hsu_1l", "bulk_munkhbat"),
        "tas2": ("bulk_munkhbat",),
    },
    "test": {
        "graphene": ("song_1l", "blake"),
        "hbn": ("grudinin",),
        "mos2": ("hsu_3l", "song_1l"),
        "wse2": ("hsu_3l", "gu_1l"),
        "wte2": ("munkhbat_beta",),
        "mose2": ("hsu_3l",),  # a material that training never shows
    },
}
"""Measurements of the crystals' indices, disjoint between the domains."""

_MATERIAL_SHARES = {
    "graphene": 0.32, "hbn": 0.2, "mos2": 0.12, "wse2": 0.12,
    "wte2": 0.1, "ws2": 0.08, "tas2": 0.06, "mose2": 0.12,
}  # fmt: skip
_GLUE = constant_curve("organic", 1.5 + 0.0j)
_GLUE_STEP_NM = 4.0
_GLUE_MAX_NM = 1_600.0
_GRID_UM = 1e-3  # on which shapes are cut: exact enough, and never inconsistent
_ATTEMPTS = 8
_HAZES = 12
_CRUMB_PX = 60  # a smaller crystal is dirt; up to the smallest flake it is nobody's business


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """How one microscope shows things: everything between the stack of films and the file."""

    domain: Domain
    numerical_aperture: float
    oxide_nm: float
    weights: FloatArray  # (3, n) lamp times filter, each row summing to 1
    silicon: npt.NDArray[np.complex128]
    oxide_index: npt.NDArray[np.complex128]
    crystal: IndexCurve
    layer_nm: float
    px_per_um: float
    blur_px: float  # standard deviation of the Gaussian, or defocus in depths of field
    vignette: tuple[float, float, float, float]  # loss in the corners, centre x and y, slope
    flare: float  # share of the substrate's light
    level_rgb: tuple[float, float, float]  # of the substrate, share of full scale, before colours
    colour_matrix: FloatArray  # (3, 3)
    gamma: float
    s_curve: float  # 0: none
    full_well_e: float
    read_e: float
    sharpening: float
    smoothing: bool  # a camera's own denoising
    jpeg_quality: int  # 0: none
    bit_depth: int

    def shown(self, ratio: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Light over the substrate's, (..., 3), to share of full scale; no blur and no noise."""
        x = (ratio + self.flare) / (1.0 + self.flare)
        return self.developed((x * np.asarray(self.level_rgb)).astype(np.float32))

    def developed(self, signal: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Colour matrix and tone curve on linear signals, (..., 3), shares of full scale."""
        mixed = np.clip(signal @ self.colour_matrix.T.astype(np.float32), 0.0, 1.0)
        if self.gamma != 1.0:
            mixed = mixed ** np.float32(1.0 / self.gamma)
        if self.s_curve:
            bent = mixed * mixed * (3.0 - 2.0 * mixed)
            mixed = mixed + np.float32(self.s_curve) * (bent - mixed)
        return np.asarray(mixed, dtype=np.float32)


def labelled_frames(
    seed: int, domain: Domain, count: int, side_px: int = 1024, strange_share: float = 0.12
) -> Iterator[LabelledFrame]:
    """Frames by one seed; the same arguments give the same bytes."""
    for number in range(count):
        yield labelled_frame(seed, number, domain, side_px, strange_share=strange_share)


def labelled_frame(
    seed: int,
    number: int,
    domain: Domain,
    side_px: int = 1024,
    *,
    strange_share: float = 0.0,
    oddity: Oddity | None = None,
    material: str | None = None,
    trouble: Trouble | None = None,
) -> LabelledFrame:
    """One scene, photographed once. oddity: None to draw it with `strange_share`.

    trouble: what to lay out instead of a crowded chip; None for the chip.
    """
    for attempt in range(_ATTEMPTS):
        domain_code = 0 if domain == "train" else 1
        rng = np.random.default_rng([0xF1A, domain_code, seed, number, attempt])
        with suppress(shapely.errors.GEOSException):  # one outline in thousands cuts itself
            return _drawn(rng, domain, side_px, strange_share, oddity, material, trouble)
    raise RuntimeError(f"no chip could be drawn for seed {seed}, number {number}")


def _drawn(
    rng: np.random.Generator,
    domain: Domain,
    side_px: int,
    strange_share: float,
    oddity: Oddity | None,
    material: str | None,
    trouble: Trouble | None,
) -> LabelledFrame:
    if oddity is None:
        kinds: tuple[Oddity, ...] = ("blur", "texture", "residue")
        oddity = kinds[int(rng.integers(3))] if rng.random() < strange_share else "none"
    if material is None:
        names = tuple(INDEX_CURVES[domain])
        shares = np.array([_MATERIAL_SHARES[name] for name in names])
        material = str(rng.choice(names, p=shares / shares.sum()))
    look, measurement = _random_look(rng, domain, material)
    if oddity == "blur":
        worse = _log_uniform(rng, 2.4, 8.0) if domain == "train" else float(rng.uniform(2.5, 8.0))
        look = replace(look, blur_px=worse)
    asked = _random_chip(rng, material, side_px / look.px_per_um)
    if trouble is not None:
        asked = _emptied(asked)
    sample = _Sample(Chip.generate(asked), look, material, side_px, rng, trouble)
    planes = sample.planes()
    if oddity == "texture":
        planes = _texture(rng, side_px, domain)
    elif oddity == "residue":
        planes = planes * _strange_residue(rng, side_px, domain, dense=True)
    elif domain == "test" and rng.random() < 0.3:
        other = _strange_residue(rng, side_px, domain, dense=False)
        sample.mark_dirt(other)
        planes = planes * other
    pixels = _photograph(planes, look, rng)
    if oddity == "texture" and rng.random() < 0.5:  # most other microscopes see no colour
        pixels[..., 0] = pixels[..., 2] = pixels[..., 1]
    layers, instances, instance_layers = sample.truth()
    optics = Optics(look.numerical_aperture, 3200.0)
    if rng.random() < 0.5 and domain == "train":
        optics = replace(optics, index_curves=((material, measurement),))
    return LabelledFrame(
        pixels=pixels,
        bit_depth=look.bit_depth,
        pixel_size_nm=1e3 / look.px_per_um,
        material=material,
        calibration=_calibration(look, material, optics, rng),
        optics=optics,
        layers=layers,
        instances=instances,
        instance_layers=instance_layers,
        is_strange=oddity != "none",
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _sometimes(rng: np.random.Generator, share: float, low: float, high: float) -> float:
    """0, or with this chance a number spread evenly in its logarithm."""
    return _log_uniform(rng, low, high) if rng.random() < share else 0.0


def _oxide(rng: np.random.Generator, material: str) -> float:
    """Mostly the wafers that people buy, and anything from 50 to 330 nm."""
    style = rng.random()
    if style < 0.4:
        return float(rng.normal(90.0, 5.0))
    if style < 0.65:
        return float(rng.normal(285.0, 8.0))
    if style < 0.78:
        return float(rng.normal(70.0, 4.0))
    low = 50.0 if material != "hbn" else 55.0
    return float(rng.uniform(low, 330.0))


def _random_look(rng: np.random.Generator, domain: Domain, material: str) -> tuple[Look, str]:
    grid = WAVELENGTHS_NM
    aperture = float(rng.choice([0.15, 0.3, 0.42, 0.45, 0.5, 0.6, 0.75, 0.8, 0.9]))
    aperture = float(np.clip(aperture * rng.uniform(0.95, 1.05), 0.1, 0.93))
    measurement = str(rng.choice(INDEX_CURVES[domain][material]))
    crystal = curves()[f"{material}/{measurement}"]
    if domain == "train":
        lamp = Illuminant(float(rng.uniform(2700.0, 6500.0))).spectrum(grid)
        filters = _gaussian_filters(rng)
        crystal = _perturbed(rng, crystal, 0.05, 0.15)
        silicon = curves()["si/green"].at(grid)
        blur_px = _log_uniform(rng, 0.5, 1.8)
        gamma = 1.0 if rng.random() < 0.5 else float(rng.uniform(0.75, 1.4))
        s_curve = 0.0
    else:
        lamp = _strange_lamp(rng)
        filters = _skewed_filters(rng)
        crystal = _perturbed(rng, crystal, 0.01, 0.03)
        silicon = curves()["si/aspnes"].at(grid)
        blur_px = float(abs(rng.normal(0.0, 0.35)))
        gamma = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.85, 1.25))
        s_curve = float(rng.uniform(0.05, 0.3)) if rng.random() < 0.3 else 0.0
    weights = filters * lamp
    weights = weights / weights.sum(axis=1, keepdims=True)
    mixing = rng.normal(0.0, 0.09, (3, 3)) * (rng.random() < 0.6)
    np.fill_diagonal(mixing, 0.0)
    matrix = np.eye(3) + mixing - np.diag(mixing.sum(axis=1))
    brightness = float(rng.uniform(0.25, 0.75))
    tint = np.exp(rng.normal(0.0, 0.18, 3))
    look = Look(
        domain=domain,
        numerical_aperture=aperture,
        oxide_nm=float(np.clip(_oxide(rng, material), 50.0, 330.0)),
        weights=weights,
        silicon=silicon,
        oxide_index=SIO2.at(grid) * (1.0 + 0.004 * rng.normal()),
        crystal=crystal,
        layer_nm=MATERIALS[material].layer_thickness_nm * float(1.0 + 0.015 * rng.normal()),
        px_per_um=_log_uniform(rng, 1.6, 5.5),
        blur_px=blur_px,
        vignette=(
            float(rng.uniform(0.0, 0.35)),
            float(rng.normal(0.0, 0.15)),
            float(rng.normal(0.0, 0.15)),
            float(rng.normal(0.0, 0.04)),
        ),
        flare=_sometimes(rng, 0.6, 0.01, 0.15),
        level_rgb=tuple(np.clip(brightness * tint, 0.12, 0.85).tolist()),
        colour_matrix=matrix,
        gamma=gamma,
        s_curve=s_curve,
        full_well_e=_log_uniform(rng, 4e3, 8e4),
        read_e=float(rng.uniform(2.0, 12.0)),
        sharpening=_sometimes(rng, 0.3, 0.1, 0.9),
        smoothing=bool(rng.random() < 0.15),
        jpeg_quality=int(rng.integers(70, 99)) if rng.random() < 0.6 else 0,
        bit_depth=8 if rng.random() < 0.85 else 12,
    )
    if look.bit_depth > 8:
        look = replace(look, jpeg_quality=0)
    return look, measurement


def _gaussian_filters(rng: np.random.Generator) -> FloatArray:
    centre = np.array([rng.uniform(588, 622), rng.uniform(522, 550), rng.uniform(448, 474)])
    sigma = rng.uniform(20.0, 46.0, 3)
    bell = np.exp(-0.5 * ((WAVELENGTHS_NM - centre[:, None]) / sigma[:, None]) ** 2)
    if rng.random() < 0.5:
        bell[0] *= rng.uniform(560.0, 580.0) <= WAVELENGTHS_NM
    leak = rng.uniform(0.0, 0.06)
    return np.asarray(bell + leak, dtype=np.float64)


def _skewed_filters(rng: np.random.Generator) -> FloatArray:
    """Steep on one side, shallow on the other, with a second lobe and an infrared cut."""
    centre = np.array([rng.uniform(590, 615), rng.uniform(522, 542), rng.uniform(452, 470)])
    left = np.array([rng.uniform(10, 22), rng.uniform(26, 42), rng.uniform(18, 34)])
    right = np.array([rng.uniform(38, 60), rng.uniform(28, 48), rng.uniform(24, 40)])
    away = WAVELENGTHS_NM - centre[:, None]
    sigma = np.where(away < 0.0, left[:, None], right[:, None])
    lobe = np.exp(-(np.abs(away / sigma) ** rng.uniform(1.6, 2.6)))
    second = np.array([rng.uniform(440, 480), rng.uniform(620, 690), rng.uniform(530, 560)])
    leak = np.array([rng.uniform(0, 0.08), rng.uniform(0, 0.1), rng.uniform(0, 0.2)])
    lobe += leak[:, None] * np.exp(-0.5 * ((WAVELENGTHS_NM - second[:, None]) / 25.0) ** 2)
    cut = 1.0 / (1.0 + np.exp((WAVELENGTHS_NM - rng.uniform(635, 690)) / rng.uniform(4, 12)))
    return np.asarray(lobe * cut, dtype=np.float64)


def _strange_lamp(rng: np.random.Generator) -> FloatArray:
    """A white LED, or a halogen lamp behind a blue or a heat filter; never a bare black body."""
    grid = WAVELENGTHS_NM
    if rng.random() < 0.5:
        pump = np.exp(-0.5 * ((grid - rng.uniform(442, 460)) / rng.uniform(8, 12)) ** 2)
        phosphor = np.exp(-0.5 * ((grid - rng.uniform(550, 590)) / rng.uniform(48, 65)) ** 2)
        return np.asarray(pump * rng.uniform(0.5, 1.6) + phosphor, dtype=np.float64)
    lamp = Illuminant(float(rng.uniform(2800.0, 3300.0))).spectrum(grid)
    blue = np.exp(-((grid - 400.0) / rng.uniform(150, 400)) * rng.uniform(0.0, 2.0))
    return np.asarray(lamp * blue / (1.0 + np.exp((grid - 680.0) / 15.0)), dtype=np.float64)


def _perturbed(
    rng: np.random.Generator, curve: IndexCurve, n_sigma: float, k_sigma: float
) -> IndexCurve:
    """The same crystal in a laboratory that measures it a little differently, smoothly so."""
    slope = (curve.wavelength_nm - 550.0) / 150.0
    n = curve.index.real * (1.0 + n_sigma * (rng.normal() + 0.4 * rng.normal() * slope))
    k = curve.index.imag * np.exp(k_sigma * (rng.normal() + 0.4 * rng.normal() * slope))
    return replace(curve, index=np.maximum(n, 1.05) + 1j * k)


def _random_chip(rng: np.random.Generator, material: str, side_um: float) -> ChipSettings:
    """A crowded little chip, about as large as the frame; some of them bare, some filthy."""
    size_mm = 1.7e-3 * side_um
    area_mm2 = size_mm**2
    median_um2 = _log_uniform(rng, 60.0, 900.0)
    crowd = float(rng.choice([0.0, 5.0, 15.0, 40.0, 80.0], p=[0.05, 0.12, 0.25, 0.33, 0.25]))
    keys = [material]
    if rng.random() < 0.12:  # a second crystal, which is off the first one's ladder
        others = [key for key in ("graphene", "hbn", "mos2", "wse2") if key != material]
        keys.append(str(rng.choice(others)))

    def per_mm2(share: float, low: float, high: float) -> float:
        """A density that puts low ... high of them on the chip."""
        return min(_sometimes(rng, share, low, high) / area_mm2, 1_999.0)

    return ChipSettings(
        seed=int(rng.integers(2**31)),
        size_mm=(size_mm, size_mm),
        rotation_deg=float(rng.uniform(-180.0, 180.0)) if rng.random() < 0.3 else 0.0,
        materials=tuple(keys),
        flakes_per_mm2=min(crowd / area_mm2, 1_999.0),
        thick_fraction=float(rng.beta(1.5, 3.0)),
        max_layers=int(rng.integers(5, 13)),
        layer_exponent=float(rng.uniform(0.2, 1.0)),
        median_area_um2=median_um2,
        area_spread=float(rng.uniform(0.6, 1.2)),
        max_area_um2=max(0.05 * side_um**2, 2_000.0),
        terraces_mean=float(rng.uniform(1.0, 4.5)),
        cracked_fraction=float(rng.uniform(0.0, 0.3)),
        folded_fraction=float(rng.uniform(0.0, 0.25)),
        empty_fraction=0.1,
        debris_per_mm2=per_mm2(0.7, 5.0, 250.0),
        trails_per_mm2=per_mm2(0.3, 1.0, 6.0),
        residue_per_mm2=per_mm2(0.45, 1.0, 12.0),
        films_per_mm2=per_mm2(0.25, 0.5, 3.0),
        haze_nm=_sometimes(rng, 0.7, 0.03, 0.4),
        bubbles_per_mm2=per_mm2(0.3, 1.0, 10.0),
        dust_per_mm2=per_mm2(0.3, 1.0, 10.0),
        scratches_per_mm2=per_mm2(0.12, 0.5, 3.0),
        fiducials=False,
    )


def _sheet_of_flakes(rng: np.random.Generator, below: ChipSettings) -> ChipSettings:
    """A second, cleaner sheet over the same ground."""
    return below.model_copy(
        update={
            "seed": int(rng.integers(2**31)),
            "rotation_deg": 0.0,
            "materials": below.materials[:1],
            "flakes_per_mm2": max(0.4 * below.flakes_per_mm2, 1.0),
            "thick_fraction": 0.5 * below.thick_fraction,
            "median_area_um2": float(np.clip(0.7 * below.median_area_um2, 35.0, 2e4)),
            "debris_per_mm2": 0.0,
            "trails_per_mm2": 0.0,
            "residue_per_mm2": 0.0,
            "films_per_mm2": 0.0,
            "bubbles_per_mm2": 0.0,
            "dust_per_mm2": 0.0,
            "scratches_per_mm2": 0.0,
        }
    )


def _emptied(asked: ChipSettings) -> ChipSettings:
    """The same chip before anything was put on it but what the air leaves."""
    densities = {name: 0.0 for name in ChipSettings.model_fields if name.endswith("_per_mm2")}
    return asked.model_copy(update={**densities, "rotation_deg": 0.0})


@dataclass(frozen=True, slots=True, eq=False)
class _Sheet:
    """One chip's worth of things, laid under the microscope by an affine transform."""

    chip: Chip
    matrix: FloatArray  # (2, 2): um to px
    at: FloatArray  # (2,) px
    cracks: tuple[Patch, ...]

    def placed(self, ring_um: FloatArray) -> FloatArray:
        """(n, 2) px, (0, 0) the outer corner of the first pixel."""
        return np.asarray(ring_um @ self.matrix + self.at, dtype=np.float64)

    @property
    def patches(self) -> tuple[Patch, ...]:
        """Everything with an outline."""
        return (*self.chip.patches, *self.cracks)

    def is_edge(self, patch: Patch) -> bool:
        """Whether it spans the chip: its outline, or the bevel along it."""
        spans_um = np.ptp(patch.rings_um[0], axis=0)
        return bool((spans_um > 900.0 * np.asarray(self.chip.settings.size_mm)).any())


def _random_cracks(rng: np.random.Generator, chip: Chip, px_per_um: float) -> tuple[Patch, ...]:
    """Lines of bare substrate across some flakes: hairlines, and flakes shattered to pieces."""
    found = []
    share, shattered = float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.0, 0.25))
    for flake in chip.truth().flakes:
        is_shattered = rng.random() < shattered
        if not is_shattered and rng.random() >= share:
            continue
        for terrace in flake.terraces if is_shattered else flake.terraces[:1]:
            if terrace.thickness_nm > 15.0:
                continue
            region = shapely.Polygon(terrace.polygon_um).buffer(0.0)
            size_um = float(np.sqrt(terrace.area_um2))
            bands = []
            for _ in range(int(rng.integers(2, 7)) if is_shattered else 1):
                line = shapes.wandering_line(rng, 2.5 * size_um, 0.08, 16)
                off = rng.normal(0.0, 0.25 * size_um, 2) if is_shattered else 0.0
                line = line - line.mean(axis=0) + np.asarray(region.centroid.coords[0]) + off
                width_px = rng.uniform(1.0, 7.0) if is_shattered else rng.uniform(0.7, 3.0)
                ring = shapes.ribbon(line, float(width_px) / px_per_um)
                bands.append(shapely.Polygon(ring).buffer(0.0))
            gap = shapely.union_all(bands, grid_size=_GRID_UM)
            gap = shapely.intersection(gap, region, grid_size=_GRID_UM)
            paint = Paint("crystal", terrace.thickness_nm, flake.material)
            for part in shapes.polygons(gap):
                oriented = shapely.geometry.polygon.orient(part)
                rings = (oriented.exterior, *oriented.interiors)
                points = tuple(np.asarray(ring.coords)[:-1] for ring in rings)
                found.append(Patch(points, BARE, under=paint))
    return tuple(found)


class _Sample:
    """What lies under one microscope: its light, and the truth on the same pixels.

    A second sheet of flakes may lie across the first, some of it drawn out into slivers; where the
    two overlap nothing is known.
    """

    def __init__(
        self,
        chip: Chip,
        look: Look,
        material: str,
        side_px: int,
        rng: np.random.Generator,
        trouble: Trouble | None = None,
    ) -> None:
        self._chip, self._look, self._material = chip, look, material
        self._side_px = side_px
        half_um = 0.5 * 1e3 * chip.settings.size_mm[0]
        slack_um = half_um - 0.5 * side_px / look.px_per_um
        reach = 1.4 if rng.random() < 0.12 and trouble is None else 0.5  # over the chip's edge
        centre = rng.uniform(-slack_um, slack_um, 2) * reach
        self._sheets = [self._sheet(chip, centre, chip.settings.rotation_deg, 1.0, rng)]
        if trouble is not None:
            other = troubled_chip(rng, trouble, material, side_px, look.px_per_um)
            matrix = np.eye(2) * look.px_per_um
            self._sheets.append(_Sheet(other, matrix, np.full(2, side_px / 2.0), ()))
        elif rng.random() < 0.45:
            other = Chip.generate(_sheet_of_flakes(rng, chip.settings))
            stretch = _log_uniform(rng, 1.0, 4.0) if rng.random() < 0.6 else 1.0
            turn_deg = float(rng.uniform(-180.0, 180.0))
            self._sheets.append(self._sheet(other, np.zeros(2), turn_deg, stretch, rng))
        self._speck_dirt: npt.NDArray[np.bool_] = np.zeros((side_px, side_px), dtype=np.bool_)

    def _sheet(
        self,
        chip: Chip,
        centre_um: FloatArray,
        turn_deg: float,
        stretch: float,
        rng: np.random.Generator,
    ) -> _Sheet:
        turn, scale = np.deg2rad(turn_deg), self._look.px_per_um
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        longer = np.diag([stretch**0.5, -(stretch**-0.5)])
        matrix = rotation @ longer * scale
        if stretch > 1.0:
            matrix = matrix @ rotation[::-1]
        at = np.full(2, self._side_px / 2.0) - centre_um @ matrix
        return _Sheet(chip, matrix, at, _random_cracks(rng, chip, scale))

    def planes(self) -> Planes:
        """Light over the bare substrate's, before the lens."""
        side = self._side_px
        patches = [patch for sheet in self._sheets for patch in sheet.patches]
        paints = list(dict.fromkeys(p for patch in patches for p in (patch.paint, patch.under)))
        numbers = {paint: k for k, paint in enumerate(paints)}
        colours = self._colours(paints)
        starts, ends, weights = [], [], []
        for number, sheet in enumerate(self._sheets):
            for patch in sheet.patches:
                if number and sheet.is_edge(patch):
                    continue  # only the first sheet has an edge
                change = colours[numbers[patch.paint]] - colours[numbers[patch.under]]
                change = change * patch.opacity
                is_mirrored = np.linalg.det(sheet.matrix) > 0.0
                for ring in patch.rings_um:
                    points = sheet.placed(ring)
                    low, high = points.min(axis=0), points.max(axis=0)
                    if (high < 0.0).any() or (low > side).any():
                        continue
                    if is_mirrored:
                        points = points[::-1]
                    starts.append(points)
                    ends.append(np.roll(points, -1, axis=0))
                    weights.append(np.broadcast_to(change, (len(points), 3)))
        canvas = np.zeros((3, side, side + 1), dtype=np.float32)
        if starts:
            add_coverage(
                canvas, np.concatenate(starts), np.concatenate(ends), np.concatenate(weights)
            )
        planes = to_picture(canvas) + self._ground()[:, None, None]
        planes = np.asarray(np.maximum(planes, 0.0), dtype=np.float32)
        self._add_specks(planes)
        self._add_haze(planes)
        return planes

    def _stack(self, films: list[tuple[npt.NDArray[np.complex128], FloatArray]]) -> FloatArray:
        look = self._look
        oxide = (look.oxide_index, look.oxide_nm)
        reflected = reflectance(
            WAVELENGTHS_NM, [*films, oxide], look.silicon, look.numerical_aperture, angles=6
        )
        return np.asarray(reflected @ look.weights.T, dtype=np.float64)

    def _ground(self) -> npt.NDArray[np.float32]:
        return np.asarray(0.02 / self._stack([]), dtype=np.float32)

    def _colours(self, paints: list[Paint]) -> FloatArray:
        """Signal over the bare substrate's, (n, 3)."""
        bare = self._stack([])
        table = np.ones((len(paints), 3))
        groups: dict[tuple[str, str], list[int]] = {}
        for k, paint in enumerate(paints):
            groups.setdefault((paint.kind, paint.material), []).append(k)
        for (kind, key), members in groups.items():
            nm = np.array([paints[k].thickness_nm for k in members])
            if kind == "crystal":
                own = key == self._material
                curve = self._look.crystal if own else MATERIALS[key].curve
                scale = self._look.layer_nm / MATERIALS[key].layer_thickness_nm if own else 1.0
                table[members] = self._stack([(curve.at(WAVELENGTHS_NM), nm * scale)]) / bare
            elif kind == "organic":
                table[members] = self._stack([(_GLUE.at(WAVELENGTHS_NM), nm)]) / bare
            elif kind == "etched":
                left = np.maximum(self._look.oxide_nm - nm, 0.0)
                look = self._look
                etched = reflectance(
                    WAVELENGTHS_NM,
                    [(look.oxide_index, left)],
                    look.silicon,
                    look.numerical_aperture,
                    angles=6,
                )
                table[members] = etched @ look.weights.T / bare
            elif kind == "gold":
                table[members] = 0.8 / bare
            elif kind in ("ground", "black"):
                table[members] = (0.02 if kind == "ground" else 0.0) / bare
        return table

    def _add_specks(self, planes: Planes) -> None:
        side, specks = self._side_px, self._chip.specks
        if not specks:
            return
        film_nm = np.arange(0.0, _GLUE_MAX_NM, _GLUE_STEP_NM)
        glue = (self._stack([(_GLUE.at(WAVELENGTHS_NM), film_nm)]) / self._stack([])).astype(
            np.float32
        )
        for speck in specks:
            x, y = self._sheets[0].placed(np.array([speck.x_um, speck.y_um]))
            reach = (1.4 * speck.radius_um + 2.0) * self._look.px_per_um
            left, right = max(0, int(x - reach)), min(side, int(x + reach) + 1)
            top, bottom = max(0, int(y - reach)), min(side, int(y + reach) + 1)
            if left >= right or top >= bottom:
                continue
            found = relief(speck)
            scale = found.pitch_um * self._look.px_per_um
            middle = (found.values.shape[0] - 1) / 2.0
            affine = np.array(
                [[scale, 0.0, x - left - scale * middle], [0.0, scale, y - top - scale * middle]]
            )
            values = cv2.warpAffine(
                found.values, affine, (right - left, bottom - top), flags=cv2.INTER_LINEAR
            )
            box = (slice(top, bottom), slice(left, right))
            if speck.kind == "dust":
                planes[:, *box] *= np.maximum(1.0 - values, 0.0)
                self._speck_dirt[box] |= values > 0.05
            else:
                step = np.minimum(values / _GLUE_STEP_NM, len(glue) - 1.001)
                low = step.astype(np.intp)
                share = (step - low)[..., None].astype(np.float32)
                ratio = glue[low] * (1.0 - share) + glue[low + 1] * share
                planes[:, *box] *= np.moveaxis(ratio, 2, 0)
                self._speck_dirt[box] |= values > 0.3

    def _add_haze(self, planes: Planes) -> None:
        rms_nm = self._chip.settings.haze_nm
        if rms_nm == 0.0:
            return
        side = self._side_px
        scale = HAZE_PITCH_UM * self._look.px_per_um
        seed = self._chip.settings.seed
        away = np.random.default_rng(seed).uniform(-900.0, 0.0, 2) * scale
        affine = np.array([[scale, 0.0, away[0]], [0.0, scale, away[1]]])
        wrap = cv2.BORDER_WRAP
        film = cv2.warpAffine(_haze(seed % _HAZES), affine, (side, side), borderMode=wrap)
        thin = self._stack([(_GLUE.at(WAVELENGTHS_NM), np.array([4.0]))])[0] / self._stack([])
        for plane, slope in zip(planes, (thin - 1.0) / 4.0, strict=True):
            plane *= 1.0 + film * np.float32(slope * rms_nm)

    def mark_dirt(self, factor: Planes) -> None:
        """What a second kind of residue changes by more than 1 % is dirt."""
        self._speck_dirt |= np.abs(factor - 1.0).max(axis=0) > 0.01

    def truth(
        self,
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32], npt.NDArray[np.int16]]:
        """Layers, terraces and the terraces' layers."""
        layers, instances, numbers = self._truth_of(self._sheets[0])
        for sheet in self._sheets[1:]:
            above, pieces, more = self._truth_of(sheet)
            pieces[pieces > 0] += len(numbers) - 1
            numbers += more[1:]
            crossed = (layers != SUBSTRATE) & (above != SUBSTRATE)
            layers = np.where(above != SUBSTRATE, above, layers).astype(np.int16)
            layers[crossed] = UNKNOWN
            instances = np.where(pieces > 0, pieces, instances).astype(np.int32)
            instances[crossed] = 0
        instances[layers == DIRT] = 0
        clean = ~self._speck_dirt
        layers[~clean & (instances == 0)] = DIRT
        layers[~clean & (instances > 0)] = UNKNOWN
        return layers, *_renumbered(instances, numbers)

    def _truth_of(
        self, sheet: _Sheet
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32], list[int]]:
        side = self._side_px
        layers = np.zeros((side, side), dtype=np.int16)
        instances = np.zeros((side, side), dtype=np.int32)
        self._label_patches(sheet, layers)
        numbers = [0]
        for flake in sheet.chip.truth().flakes:
            if flake.material != self._material:
                continue
            for terrace in flake.terraces:
                points = sheet.placed(terrace.polygon_um)
                _fill(layers, [points], terrace.layers)
                _fill(instances, [points], len(numbers))
                numbers.append(terrace.layers)
        for patch in sheet.chip.patches:  # folds, and the dark rims of thick crystals
            if patch.under.kind == "crystal" and patch.paint.kind in ("crystal", "black"):
                _fill(layers, [sheet.placed(ring) for ring in patch.rings_um], UNKNOWN)
        for patch in sheet.cracks:
            rings = [sheet.placed(ring) for ring in patch.rings_um]
            _fill(layers, rings, SUBSTRATE)
            _fill(instances, rings, 0)
        return layers, instances, numbers

    def _label_patches(self, sheet: _Sheet, layers: npt.NDArray[np.int16]) -> None:
        """Everything that is no flake: dirt, crumbs, the ground beside the chip."""
        if sheet is self._sheets[0]:
            layers[:] = DIRT
            for patch in sheet.chip.patches:
                if patch.paint.kind == "substrate":
                    _fill(layers, [sheet.placed(ring) for ring in patch.rings_um], SUBSTRATE)
        px_um2 = self._look.px_per_um**2
        for patch in sheet.chip.patches:
            kind = patch.paint.kind
            if kind == "substrate" or sheet.is_edge(patch):
                continue
            value = DIRT
            if kind == "black":
                value = UNKNOWN
            elif kind == "crystal" and patch.paint.material == self._material:
                area_px = abs(shapes.signed_area_um2(patch.rings_um[0])) * px_um2
                value = DIRT if area_px < _CRUMB_PX else UNKNOWN
            elif kind == "organic" and patch.paint.thickness_nm < 0.6:
                value = UNKNOWN  # hardly there
            _fill(layers, [sheet.placed(ring) for ring in patch.rings_um], value)


def _fill(
    image: npt.NDArray[np.int16] | npt.NDArray[np.int32], rings_px: list[FloatArray], value: int
) -> None:
    """Fill rings, (0, 0) the outer corner of the first pixel; even-odd, so holes stay."""
    fixed = [np.round((ring - 0.5) * 16.0).astype(np.int32)[:, None] for ring in rings_px]
    cv2.fillPoly(image, fixed, (value,), cv2.LINE_8, 4)


def _renumbered(
    instances: npt.NDArray[np.int32], numbers: list[int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]:
    """Each connected piece of a terrace becomes one instance; shreds are dropped."""
    found = np.zeros_like(instances)
    layers = [0]
    rows, columns = np.nonzero(instances)
    owner = instances[rows, columns]
    order = np.argsort(owner, kind="stable")
    starts = np.flatnonzero(np.diff(owner[order], prepend=0)).tolist()
    for start, end in pairwise([*starts, len(order)]):
        ys, xs = rows[order[start:end]], columns[order[start:end]]
        number = int(owner[order[start]])
        box = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
        part = (instances[box] == number).astype(np.uint8)
        count, pieces, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=4)
        for piece in range(1, count):
            if stats[piece, cv2.CC_STAT_AREA] >= _CRUMB_PX:
                found[box][pieces == piece] = len(layers)
                layers.append(numbers[number])
    return found, np.asarray(layers, dtype=np.int16)


def _photograph(
    planes: Planes, look: Look, rng: np.random.Generator
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Lens, light field, sensor, and whatever the camera's firmware does to the file."""
    side = planes.shape[1]
    light = _light_field(look, side)
    signal = np.empty((side, side, 3), dtype=np.float32)
    kernels = _kernels(look, rng)
    for c in range(3):
        blurred = kernels[c](planes[c])
        blurred = (blurred + np.float32(look.flare)) / np.float32(1.0 + look.flare)
        signal[..., c] = blurred * light * np.float32(look.level_rgb[c])
    electrons = np.float32(look.full_well_e)
    variance = np.maximum(signal, 0.0) * electrons + np.float32(look.read_e**2)
    noise = rng.standard_normal(signal.shape, dtype=np.float32) * np.sqrt(variance) / electrons
    if rng.random() < 0.5:  # colours between a mosaic's pixels are interpolated
        weight = np.float32(rng.uniform(1.0, 1.6))
        soft = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.4, 0.8)))
        noise = np.asarray(soft * weight, dtype=np.float32)
    shown = look.developed(signal + noise)
    if look.smoothing:
        shown = np.asarray(cv2.bilateralFilter(shown, 5, 0.03, 1.5), dtype=np.float32)
    if look.sharpening:
        soft = cv2.GaussianBlur(shown, (0, 0), float(rng.uniform(0.7, 1.6)))
        shown = np.asarray(shown + look.sharpening * (shown - soft), dtype=np.float32)
    largest = 2**look.bit_depth - 1
    numbers = np.clip(shown * np.float32(largest) + np.float32(0.5), 0.0, largest)
    if look.bit_depth > 8:
        return np.asarray(numbers, dtype=np.uint16)
    pixels = np.asarray(numbers, dtype=np.uint8)
    if look.jpeg_quality:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, look.jpeg_quality])
        decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)
        pixels = np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    return np.ascontiguousarray(pixels)


def _light_field(look: Look, side: int) -> npt.NDArray[np.float32]:
    loss, x0, y0, slope = look.vignette
    along = (np.arange(side) - (side - 1) / 2.0) / (side / 2.0)
    x, y = along[None, :] - x0, along[:, None] - y0
    r2 = (x * x + y * y) / 2.0
    if look.domain == "train":
        field = 1.0 - loss * r2
    else:  # cos^4 of a tilted field, the lamp's image on top
        field = (1.0 / (1.0 + r2 * ((1.0 - loss) ** -0.4 - 1.0))) ** 2 * np.exp(-0.15 * loss * r2)
    return np.asarray(field * (1.0 + slope * x), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Kernel:
    kernel: npt.NDArray[np.float32] | None  # None: a Gaussian of this width
    sigma_px: float

    def __call__(self, plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.kernel is None:
            return np.asarray(
                cv2.GaussianBlur(plane, (0, 0), self.sigma_px, borderType=cv2.BORDER_REFLECT),
                dtype=np.float32,
            )
        found = cv2.filter2D(plane, -1, self.kernel, borderType=cv2.BORDER_REFLECT)
        return np.asarray(found, dtype=np.float32)


def _kernels(look: Look, rng: np.random.Generator) -> list[_Kernel]:
    """One blur a channel; blue is a little sharper, red a little softer."""
    if look.domain == "train":
        spread = np.array([1.08, 1.0, 0.92]) * np.exp(0.04 * rng.normal(size=3))
        return [_Kernel(None, max(look.blur_px * float(s), 0.3)) for s in spread]
    # The picture's scale is free, so the lens is the one that resolves its pixels about right.
    pixel_um = float(rng.uniform(0.8, 2.2)) * 0.3 * 0.55 / look.numerical_aperture
    dof_um = 0.55 / look.numerical_aperture**2
    shift = rng.normal(0.0, 0.12, 3)
    return [
        _Kernel(
            point_spread(
                look.numerical_aperture,
                nm,
                (look.blur_px + float(shift[k])) * dof_um,
                pixel_um,
            ),
            0.0,
        )
        for k, nm in enumerate((605.0, 535.0, 462.0))
    ]


def _calibration(
    look: Look, material: str, optics: Optics, rng: np.random.Generator
) -> Calibration:
    """What a user would have: nominal with a wafer's tolerance, or fitted with a fit's errors."""
    nominal_nm = float(look.oxide_nm * (1.0 + 0.025 * rng.normal()))
    if look.domain == "test" or rng.random() < 0.35:
        return Calibration(round(nominal_nm, 1), (1.0, 1.0, 1.0), 0.0, "nominal")
    counts = np.arange(1, 9)
    layer_nm = MATERIALS[material].layer_thickness_nm
    stack = look.crystal.at(WAVELENGTHS_NM), np.asarray(counts * look.layer_nm, dtype=np.float64)
    oxide = (look.oxide_index, look.oxide_nm)
    aperture = look.numerical_aperture
    flake = reflectance(WAVELENGTHS_NM, [stack, oxide], look.silicon, aperture, angles=6)
    bare = reflectance(WAVELENGTHS_NM, [oxide], look.silicon, aperture, angles=6)
    ratio = (flake @ look.weights.T) / (bare @ look.weights.T)
    seen = look.shown(ratio) / np.maximum(look.shown(np.ones(3)), 1e-3) - 1.0  # (8, 3)
    grid = layer_grid(layer_nm)
    whole = [int(np.argmin(np.abs(grid - count))) for count in counts]
    best: tuple[float, float, FloatArray] | None = None
    for oxide_nm in look.oxide_nm * np.array([0.94, 0.98, 1.02, 1.06]):
        model = model_contrast(material, round(float(oxide_nm), 1), optics)[whole]
        gains = (seen * model).sum(axis=0) / np.maximum((model * model).sum(axis=0), 1e-6)
        gains = np.clip(gains, 0.7, 1.45)
        error = float(np.square(seen - gains * model).sum())
        if best is None or error < best[0]:
            best = error, float(oxide_nm), gains
    if best is None:
        raise RuntimeError("no oxide was tried")
    gains = best[2] * np.exp(0.03 * rng.normal(size=3))
    oxide_nm = best[1] * (1.0 + 0.008 * rng.normal())
    red, green, blue = (round(float(g), 3) for g in gains)
    return Calibration(round(float(oxide_nm), 1), (red, green, blue), 0.7, "fitted")


@lru_cache(maxsize=_HAZES)
def _haze(seed: int) -> npt.NDArray[np.float32]:
    """One of a few films: making one takes as long as all else in a frame."""
    return haze(seed)


def _noise_map(rng: np.random.Generator, side: int, cells: float) -> npt.NDArray[np.float32]:
    coarse = rng.standard_normal((int(cells) + 4, int(cells) + 4)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))


def _strange_residue(rng: np.random.Generator, side: int, domain: Domain, *, dense: bool) -> Planes:
    """A factor on the light, 1 where it is clean: dirt that the chips do not know."""
    if domain == "train":
        # Films torn into islands at several scales, each colour on its own.
        field = sum(_noise_map(rng, side, 6.0 * 2**k) / 1.5**k for k in range(5))
        field = np.asarray(field, dtype=np.float32)
        level = float(rng.uniform(-0.6, 0.4))
        height = np.maximum(field - level, 0.0) * np.float32(rng.uniform(0.5, 3.0))
        phase = rng.uniform(0.6, 2.2, 3)
        depth = rng.uniform(0.1, 0.5, 3)
        factor = [1.0 - depth[c] * np.sin(phase[c] * height) ** 2 for c in range(3)]
        return np.stack(factor).astype(np.float32)
    # Rings of drops that dried, drops in drops, and stripes as of a finger.
    height = np.zeros((side, side), dtype=np.float32)
    drops = int(rng.integers(60, 300)) if dense else int(rng.integers(2, 10))
    for _ in range(drops):
        radius = _log_uniform(rng, 4.0, 70.0)
        x, y = (int(v) for v in rng.uniform(0, side, 2))
        squeeze = float(rng.uniform(0.6, 1.0))
        axes = (max(int(radius), 1), max(int(radius * squeeze), 1))
        turn = float(rng.uniform(0, 180))
        cv2.ellipse(height, (x, y), axes, turn, 0, 360, float(rng.uniform(0.1, 0.6)), -1)
        rim = max(1, int(0.15 * radius))
        cv2.ellipse(height, (x, y), axes, turn, 0, 360, float(rng.uniform(0.5, 1.5)), rim)
    if dense and rng.random() < 0.6:
        along = np.arange(side, dtype=np.float32)
        period = float(rng.uniform(14.0, 50.0))
        wave = along[None, :] * np.float32(np.cos(0.5)) + along[:, None] * np.float32(np.sin(0.5))
        bent = wave + 30.0 * _noise_map(rng, side, 4)
        height += np.maximum(np.sin(2 * np.pi * bent / period), 0.0) * np.float32(0.5)
    phase, depth = rng.uniform(0.8, 2.5, 3), rng.uniform(0.1, 0.45, 3)
    factor = [1.0 - depth[c] * np.sin(phase[c] * height) ** 2 for c in range(3)]
    return np.stack(factor).astype(np.float32)


def _texture(rng: np.random.Generator, side: int, domain: Domain) -> Planes:
    """No chip at all: heaps of shapes, or noise with a power law, as of other microscopes."""
    field = np.ones((side, side), dtype=np.float32)
    size = _log_uniform(rng, 6.0, 80.0)
    if rng.random() < 0.5:
        for _ in range(min(int(2.0 * (side / size) ** 2), 4_000)):
            x, y = (int(v) for v in rng.uniform(0, side, 2))
            axes = np.maximum(size * rng.uniform(0.3, 1.2, 2), 1.0).astype(int)
            shade = float(rng.uniform(0.3, 1.8))
            if domain == "train" or rng.random() < 0.3:
                axis = (int(axes[0]), int(axes[1]))
                cv2.ellipse(field, (x, y), axis, float(rng.uniform(0, 180)), 0, 360, shade, -1)
            else:
                box = cv2.boxPoints(
                    ((x, y), (2.0 * axes[0], 0.6 * axes[1]), float(rng.uniform(0, 90)))
                )
                cv2.fillConvexPoly(field, box.astype(np.int32), shade)
    else:
        total = sum(_noise_map(rng, side, 8.0 * 2**k) * 0.6**k for k in range(6))
        strength = float(rng.uniform(0.1, 0.5))
        field = np.exp(strength * np.asarray(total, dtype=np.float32))
    tint = 1.0 + (rng.normal(0.0, 0.05, 3) if rng.random() < 0.5 else np.zeros(3))
    return np.asarray(field[None] ** tint[:, None, None], dtype=np.float32)
