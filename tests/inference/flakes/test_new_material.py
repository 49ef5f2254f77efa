"""A crystal known from its card alone, against the same one after five calibration photographs.

The chip is painted with an index that is 4 % larger than the card's, under another lamp and other
colour filters, on an oxide 4 nm off its label: a card is never the crystal itself.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from drivers.api import Objective
from inference.flakes.material_cards import load_card
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector, calibrate
from inference.flakes.scoring import (
    Instance,
    instances_from_detections,
    overlaps_of,
    score_overlaps,
)
from simulator.chip import Chip, ChipSettings
from simulator.optics import OpticsSettings
from simulator.render import Renderer
from simulator.sensor import SensorSettings

CARD = Path(__file__).resolve().parents[3] / "configs" / "materials" / "mote2.toml"
PIXEL_NM, SHAPE = 384.0, (720, 1200)


def other_card(folder):
    """The crystal that is really there."""
    card = load_card(CARD)
    lines = [
        'name = "MoTe2"',
        f"layer_thickness_nm = {card.layer_thickness_nm}",
        'source = "4 % more"',
        "[index]",
        f"wavelength_nm = {list(card.wavelength_nm)}",
        f"n = {[round(1.04 * n, 4) for n in card.n]}",
        f"k = {[round(1.04 * k, 4) for k in card.k]}",
    ]
    path = folder / "mote2.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def photographs(card, oxide_nm, seed, count):
    """Photographs with all their terraces as truths, thin ones to be found."""
    optics = OpticsSettings(
        colour_temperature_k=3_000.0,
        white_balance_k=3_000.0,
        filter_centre_nm=(603.0, 538.0, 463.0),
        vignetting_ratio=0.15,
    )
    sensor = SensorSettings(exposure_for_full_well_s=0.013 if oxide_nm > 200.0 else 0.009)
    objective = Objective("20x", 20.0, 0.45, PIXEL_NM)
    made = []
    for k in range(count):
        chip = Chip.generate(
            ChipSettings(
                seed=seed + k,
                size_mm=(0.6, 0.4),
                oxide_nm=oxide_nm,
                material_cards=(str(card),),
                materials=("mote2",),
                flakes_per_mm2=90.0,
                thick_fraction=0.2,
                max_layers=6,
                folded_fraction=0.0,
                empty_fraction=0.0,
            )
        )
        pixels = Renderer(chip, optics, sensor, seed + k).render(objective, 0.0, 0.0, 0.0, SHAPE)
        made.append((pixels, truths(chip)))
    return made


def truths(chip):
    found = []
    for flake in chip.truth().flakes:
        for terrace in flake.terraces:
            p = chip.chip_to_stage_um(terrace.polygon_um) / (PIXEL_NM * 1e-3)
            corners = np.stack([p[:, 0] + (SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2 - p[:, 1]], axis=1)
            inside = (
                corners.min() > 2 and (corners.max(axis=0) < [SHAPE[1] - 3, SHAPE[0] - 3]).all()
            )
            if corners.max() < 2 or (corners.min(axis=0) > [SHAPE[1] - 3, SHAPE[0] - 3]).any():
                continue
            left, top = np.floor(corners.min(axis=0)).astype(int) - 1
            right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 2
            mask = np.zeros((bottom - top, right - left), np.uint8)
            fine = np.round((corners - [left, top]) * 256).astype(np.int32)
            cv2.fillPoly(mask, [fine], 1, shift=8)
            # Cut by the frame, a sliver, too thick to count: neither a hit nor a false alarm.
            is_crowd = not inside or terrace.layers > 12 or terrace.area_um2 < 50.0
            found.append(Instance(mask > 0, left, top, 1.0, terrace.layers, "mote2", is_crowd))
    return found


def ap50(detector, made):
    """Class-agnostic, and with the layer number right."""
    plain, exact = [], []
    for pixels, true in made:
        found = [d for d in detector.detect(pixels, PIXEL_NM).detections if not d.touches_border]
        mine = instances_from_detections(found)
        overlaps = overlaps_of(mine, true)
        asked = [t for t in true if not t.is_crowd]
        same = np.array([[m.layers == t.layers for t in asked] for m in mine])
        plain.append(overlaps)
        exact.append(replace(overlaps, ious=overlaps.ious * same.reshape(overlaps.ious.shape)))
    return score_overlaps(plain).ap50, score_overlaps(exact).ap50


@pytest.mark.parametrize(("label_nm", "oxide_nm"), [(90.0, 94.0), (285.0, 281.0)])
def test_zero_photographs_are_nearly_as_good_as_five(tmp_path, label_nm, oxide_nm):
    card = other_card(tmp_path)
    settings = DetectorSettings(
        material_cards=(str(CARD),), materials=("mote2",), oxide_nm=label_nm
    )
    judged = photographs(card, oxide_nm, 400, 3)
    unseen = [pixels for pixels, _ in photographs(card, oxide_nm, 500, 5)]
    # With nothing known but the card, the search calibrates itself on what it scans, as always.
    itself = calibrate([pixels for pixels, _ in judged], settings, PIXEL_NM)
    zero, zero_exact = ap50(PhysicsDetector(settings, itself), judged)
    five, five_exact = ap50(
        PhysicsDetector(settings, calibrate(unseen, settings, PIXEL_NM)), judged
    )
    assert sum(len(true) for _, true in judged) >= 20
    assert zero > 0.8
    assert zero > five - 0.05
    assert zero_exact > five_exact - 0.05
    assert zero_exact > 0.75
