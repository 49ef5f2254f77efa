"""A crystal that nobody has built in, told by a card of n, k and thickness, or taught with flakes.

Both ways lead to the detector that the search uses. By the card alone it is shown what it is asked
about and nothing else: colours are fitted on photographs without any truth. The other way it is
shown five more photographs on which every flake is outlined and counted, as a user could who does
not trust a card: `scopeloop adapt flakes` fits its colour correction on them.

The crystals are painted with another laboratory's indices than those on the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from controller.bench.flakes_baselines.methods import Finder, asked, leading, told_by
from controller.bench.flakes_baselines.photographs import COUNTED_LAYERS, Photograph
from inference.flakes.adapt import Point, adapt, examples_in
from inference.flakes.materials import MATERIALS, curves
from inference.flakes.microscope import save_microscope
from inference.flakes.physics_detector import DetectorSettings
from inference.flakes.scoring import Instance

BY_CARD: Final = "by n, k and thickness"
BY_FLAKES: Final = "after five photographs with their flakes"
TAUGHT_PHOTOGRAPHS: Final = 5
CARDS: Final = {"mose2": "bulk_munkhbat", "ws2": "hsu_1l"}
"""Whose measurement stands on the card; `PAINTED` has whose the crystal is painted with."""
PAINTED: Final = {"mose2": "hsu_3l", "ws2": "hsu_3l"}
_WAVELENGTHS_NM: Final = np.arange(400.0, 721.0, 10.0)


def both_ways(
    photographs: Sequence[Photograph], examples: Sequence[Photograph], folder: Path
) -> dict[str, Finder]:
    """Finders for these photographs, by card and after examples; files go into the folder."""
    settings = DetectorSettings(
        materials=(f"new_{photographs[0].material}",),
        material_cards=(str(written_card(photographs[0].material, folder)),),
        oxide_nm=photographs[0].oxide_nm,
        numerical_aperture=photographs[0].numerical_aperture,
    )
    found = {BY_CARD: asked(leading(settings, told_by(photographs, settings)))}
    shown = [
        examples_in(p.name, p.pixels, float(2**p.bit_depth - 1), points_in(p.true), labels_of(p))
        for p in examples
    ]
    adapted = adapt([one for one in shown if one is not None], settings)
    path = folder / "microscope.json"
    save_microscope(path, adapted.microscope)
    taught = settings.model_copy(update={"calibration": str(path)})
    found[BY_FLAKES] = asked(leading(taught, adapted.microscope.wafers))
    return found


def written_card(material: str, folder: Path) -> Path:
    """A card as a user would write it, from a published table."""
    source = f"{material}/{CARDS[material]}"
    index = np.asarray(curves()[source].at(_WAVELENGTHS_NM))
    path = folder / f"new_{material}.toml"
    path.write_text(
        f'name = "{material}"\n'
        f"layer_thickness_nm = {MATERIALS[material].layer_thickness_nm}\n"
        f'source = "{source}"\n'
        "[index]\n"
        f"wavelength_nm = {_WAVELENGTHS_NM.tolist()}\n"
        f"n = {np.round(index.real, 4).tolist()}\n"
        f"k = {np.round(np.abs(index.imag), 4).tolist()}\n",
        encoding="utf-8",
    )
    return path


def labels_of(photograph: Photograph) -> npt.NDArray[np.uint16]:
    """What a user would outline: every flake that can be counted, each with a value of its own."""
    labels = np.zeros(photograph.pixels.shape[:2], dtype=np.uint16)
    for value, one in enumerate(photograph.true, start=1):
        height, width = one.mask.shape
        rows = slice(one.box_y_px, one.box_y_px + height)
        columns = slice(one.box_x_px, one.box_x_px + width)
        labels[rows, columns][one.mask] = value
    return labels


def points_in(true: Sequence[Instance]) -> tuple[Point, ...]:
    """A click into each of them that says its layers."""
    found = []
    for one in true:
        if one.layers is None or one.layers > COUNTED_LAYERS:
            continue
        rows, columns = np.nonzero(one.mask)
        middle = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
        x_px = float(columns[middle] + one.box_x_px)
        y_px = float(rows[middle] + one.box_y_px)
        found.append(Point(x_px, y_px, one.layers))
    return tuple(found)
