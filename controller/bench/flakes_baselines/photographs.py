"""Photographs with their truth: simulated microscopes that differ in one thing, and real ones.

The simulated crystals are painted with other measurements of their indices than a detector uses by
default, at the objective's wave-optical blur, with the simulator's dirt, a vignette and noise. What
a detector is told is what its user knows: the material, the wafer's nominal oxide, the objective.

Truth: terraces of at most `COUNTED_LAYERS` layers and 30 um2 of which no more than a tenth lies
beyond the frame. What is smaller, cut off or thicker counts neither way, as nobody asked for it;
a thick crystal that is given a thin one's layer number is wrong all the same, see `is_thick`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from drivers.api import Objective
from inference.api import ImageRGB
from inference.flakes import evaluate
from inference.flakes.masks import cut_out, images_in, read_rgb, truth_for
from inference.flakes.materials import MATERIALS
from inference.flakes.scoring import Instance
from simulator.chip import Chip, ChipSettings
from simulator.optics import OpticsSettings
from simulator.render import Renderer
from simulator.sensor import SensorSettings

FULL_PX: Final = (1200, 1920)
PIXEL_NM: Final = 384.0
COUNTED_LAYERS: Final = 12
LEAST_UM2: Final = 30.0
IGNORED_FILE: Final = Path(evaluate.__file__).with_name("real_terraces_graphene_masked.json")

_CURVES: Final[Mapping[str, str]] = {
    "graphene": "blake",
    "hbn": "grudinin",
    "mos2": "hsu_3l",
    "wse2": "hsu_3l",
    "wte2": "munkhbat_beta",
}
"""Other measurements than those that a detector takes where nobody names one."""


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """One image, what its user knows about it, and what is true."""

    name: str
    pixels: ImageRGB
    true: tuple[Instance, ...]
    ignored: tuple[Instance, ...] = ()  # regions that nobody judges
    thick: tuple[Instance, ...] = ()  # crystals that no layer number should be given to
    material: str = "graphene"
    oxide_nm: float = 90.0  # nominal, as it says on the wafer's box
    numerical_aperture: float = 0.45
    pixel_size_nm: float = PIXEL_NM
    bit_depth: int = 8
    max_thickness_nm: float | None = None  # asked for beyond what can be counted; None: nothing


@dataclass(frozen=True, slots=True)
class Scene:
    """What a simulated photograph shows and how: everything that a condition may change."""

    material: str = "graphene"
    oxide_nm: float = 90.0  # nominal
    oxide_error_nm: float = 0.0
    numerical_aperture: float = 0.45
    lamp_k: float = 3_200.0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vignette: float = 0.12
    curve: str | None = None  # measurement of the index to paint with; None: the usual one
    jpeg_quality: int = 0  # 0: none
    blur_px: float = 0.0  # sigma, added to the lens's own
    shape_px: tuple[int, int] = FULL_PX
    max_thickness_nm: float | None = None  # what is wanted beyond countable layers; None: nothing
    chip: Mapping[str, float] = field(default_factory=dict)  # other settings of the chip


def simulated(scene: Scene, seed: int) -> Photograph:
    """The photograph of this scene and seed; conditions of one seed share chip and noise."""
    height_px, width_px = scene.shape_px
    size_um = (width_px * PIXEL_NM * 1e-3, height_px * PIXEL_NM * 1e-3)
    asked: dict[str, object] = {
        "seed": seed,
        # The frame's middle; the rim of the chip, its marks and its bevel stay outside.
        "size_mm": (1e-3 * size_um[0] + 0.2, 1e-3 * size_um[1] + 0.2),
        "oxide_nm": scene.oxide_nm + scene.oxide_error_nm,
        "materials": (scene.material,),
        "index_curves": {scene.material: scene.curve or _CURVES[scene.material]},
        "flakes_per_mm2": 150.0,
        "thick_fraction": 0.3,
        "max_layers": 6,
        "layer_exponent": 0.3,
        "median_area_um2": 330.0,
        "empty_fraction": 0.0,
        "fiducials": False,
        **scene.chip,
    }
    chip = Chip.generate(ChipSettings.model_validate(asked))
    optics = OpticsSettings(
        colour_temperature_k=scene.lamp_k,
        white_balance_k=scene.lamp_k,
        vignetting_ratio=scene.vignette,
    )
    largest = max(scene.gains)
    sensor = SensorSettings(white_balance_rgb=scene.gains)
    objective = Objective("bench", 20.0, scene.numerical_aperture, PIXEL_NM)
    renderer = Renderer(chip, optics, sensor, seed)
    exposure_s = 0.02 if scene.oxide_nm < 150.0 else 0.012
    if scene.max_thickness_nm is not None:
        exposure_s *= 0.45  # thick crystals are brighter than their substrate
    pixels = renderer.render(
        objective, 0.0, 0.0, 0.0, scene.shape_px, exposure_s=exposure_s / largest
    )
    if scene.blur_px:
        noise = np.random.default_rng(seed).normal(0.0, 0.8, pixels.shape)
        blurred = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), scene.blur_px)
        pixels = np.clip(blurred + noise + 0.5, 0, 255).astype(np.uint8)
    if scene.jpeg_quality:
        quality = [cv2.IMWRITE_JPEG_QUALITY, scene.jpeg_quality]
        data = cv2.imencode(".jpg", pixels[..., ::-1], quality)[1]
        decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
        pixels = np.ascontiguousarray(decoded[..., ::-1])
    most = COUNTED_LAYERS
    if scene.max_thickness_nm is not None:
        most = int(scene.max_thickness_nm / MATERIALS[scene.material].layer_thickness_nm)
    true, ignored, thick = _truth(chip, scene.shape_px, most)
    return Photograph(
        f"{scene.material}-{scene.oxide_nm:g}-{seed}",
        pixels,
        true,
        ignored,
        thick,
        scene.material,
        scene.oxide_nm,
        scene.numerical_aperture,
        max_thickness_nm=scene.max_thickness_nm,
    )


def _truth(
    chip: Chip, shape_px: tuple[int, int], most_layers: int
) -> tuple[tuple[Instance, ...], tuple[Instance, ...], tuple[Instance, ...]]:
    """Terraces to be found, those that count neither way, and the thick ones among these."""
    height_px, width_px = shape_px
    pixel_um = PIXEL_NM * 1e-3
    true, ignored, thick = [], [], []
    for flake in chip.truth().flakes:
        for terrace in flake.terraces:
            corners = chip.chip_to_stage_um(terrace.polygon_um) / pixel_um
            x = corners[:, 0] + (width_px - 1) / 2.0
            y = (height_px - 1) / 2.0 - corners[:, 1]
            if x.max() < 0 or y.max() < 0 or x.min() > width_px - 1 or y.min() > height_px - 1:
                continue
            found = _polygon(np.stack([x, y], axis=1), shape_px)
            if found is None:
                continue
            found = replace(found, layers=terrace.layers, material=flake.material)
            seen_um2 = found.area_px * pixel_um**2
            if terrace.layers > most_layers:
                thick.append(found)
                ignored.append(found)
            elif terrace.area_um2 < LEAST_UM2 or seen_um2 < 0.9 * terrace.area_um2:
                ignored.append(found)
            else:
                true.append(found)
    return tuple(true), tuple(ignored), tuple(thick)


def _polygon(corners_px: npt.NDArray[np.float64], shape_px: tuple[int, int]) -> Instance | None:
    """The pixels inside a polygon, cut at the frame; None where there are none."""
    low = np.maximum(np.floor(corners_px.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(corners_px.max(axis=0)).astype(int) + 2, [shape_px[1], shape_px[0]])
    if np.any(high <= low):
        return None
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=np.uint8)
    cv2.fillPoly(mask, [np.round((corners_px - low) * 16).astype(np.int32)], 1, shift=4)
    if not mask.any():
        return None
    cut = cut_out(mask > 0)
    return replace(cut, box_x_px=cut.box_x_px + int(low[0]), box_y_px=cut.box_y_px + int(low[1]))


# --- real ones -------------------------------------------------------------------------------


def data_folder() -> Path:
    """Where the real photographs are, if they are anywhere."""
    return Path(
        os.environ.get("SCOPELOOP_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data"
    )


def real_masked(at_most: int | None = None) -> list[Photograph]:
    """The labelled photographs of graphene; none where there is no such folder."""
    folder = data_folder() / "flakes" / "graphene_masked"
    if not folder.is_dir():
        return []
    paths = images_in(folder / "images")[:at_most]
    truths = evaluate.with_layers(paths, truth_for(paths, folder / "masks"), IGNORED_FILE)
    unjudged = evaluate.ignored_in(paths, IGNORED_FILE)
    return [
        Photograph(path.name, read_rgb(path), true, ignored)
        for path, true, ignored in zip(paths, truths, unjudged, strict=True)
    ]


def micrographs(at_most: int | None = None) -> list[ImageRGB]:
    """Electron micrographs: no photographs of chips."""
    folder = data_folder() / "micrographs"
    paths: Sequence[Path] = sorted(folder.glob("*/*.png")) if folder.is_dir() else []
    return [read_rgb(path) for path in paths[:at_most]]
