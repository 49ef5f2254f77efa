import cv2
import numpy as np
import pytest

from drivers.api import Objective
from inference.api import Calibration
from inference.flakes.ladder import Optics, contrast_at
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector
from inference.flakes.scoring import Instance, instances_from_detections, iou_matrix, match_by_iou
from inference.flakes.thickness import estimate_thickness
from simulator.chip import Chip, ChipSettings
from simulator.optics import OpticsSettings
from simulator.render import Renderer
from simulator.sensor import SensorSettings

CERTAIN = {nm: Calibration(nm, (1.0, 1.0, 1.0), 1.0, "fitted") for nm in (90.0, 285.0)}


def colour(material, thickness_nm, oxide_nm, curve=None):
    optics = Optics(index_curves=((material, curve),) if curve else ())
    return contrast_at(material, oxide_nm, optics, np.array([float(thickness_nm)]))[0]


def read(contrast, oxide_nm=90.0, material="hbn", share=0.04, **more):
    sigma = (0.012 + share * np.abs(contrast)).astype(np.float32)
    optics = more.pop("optics", Optics())
    return estimate_thickness(contrast, sigma, material, CERTAIN[oxide_nm], optics, **more)


@pytest.mark.parametrize("curve", ["lee", "grudinin", "rah"])
@pytest.mark.parametrize("oxide_nm", [90.0, 285.0])
@pytest.mark.parametrize("nm", [5.0, 8.0, 12.0, 20.0, 30.0, 40.0])
def test_whoever_measured_the_index_the_thickness_is_within_10_percent(curve, oxide_nm, nm):
    found = read(colour("hbn", nm, oxide_nm, curve), oxide_nm)
    assert found.nm == pytest.approx(nm, rel=0.1)
    assert found.low_nm <= nm <= found.high_nm
    assert found.high_nm - found.low_nm < 0.35 * nm


def test_a_known_curve_weighs_most():
    contrast = colour("hbn", 20.0, 90.0, "grudinin")
    right = Optics(index_curves=(("hbn", "grudinin"),))
    found = read(contrast, optics=right, is_curve_known=True, share=0.01)
    assert found.nm == pytest.approx(20.0, rel=0.015)
    wide = read(contrast, optics=right, share=0.04)
    assert wide.high_nm - wide.low_nm > found.high_nm - found.low_nm


def test_noise_widens_the_interval():
    contrast = colour("hbn", 12.0, 90.0)
    sharp, blurred = read(contrast, share=0.02), read(contrast, share=0.2)
    assert blurred.high_nm - blurred.low_nm > 1.5 * (sharp.high_nm - sharp.low_nm)


def test_a_saturated_camera_says_at_least():
    contrast = colour("hbn", 35.0, 90.0)
    ceiling = np.array([1.5, 1.5, 1.5], np.float32)
    found = read(np.minimum(contrast, ceiling), ceiling_rgb=ceiling)
    assert found.low_nm < 35.0 < found.high_nm
    assert found.high_nm - found.low_nm > 20.0


def test_another_thickness_of_that_colour_is_named():
    """20 nm on 90 nm of oxide is pale, and so is a crystal after interference has come round."""
    found = read(colour("hbn", 20.0, 90.0), share=0.6)
    assert found.nm < 40.0
    assert found.other_nm > 60.0
    assert read(colour("hbn", 20.0, 90.0), share=0.05).other_nm is None


# --- through the detector -------------------------------------------------------------------


@pytest.mark.parametrize(("oxide_nm", "curve"), [(90.0, "grudinin"), (285.0, "rah")])
def test_thick_hbn_on_a_simulated_chip(oxide_nm, curve):
    """Painted with another laboratory's index than the detector's usual one."""
    shape, pixel_nm = (720, 1200), 384.0
    chip = Chip.generate(
        ChipSettings(
            seed=11,
            size_mm=(0.62, 0.42),
            oxide_nm=oxide_nm,
            materials=("hbn",),
            index_curves={"hbn": curve},
            flakes_per_mm2=90.0,
            thick_fraction=0.2,
            max_layers=60,
            layer_exponent=0.0,
            folded_fraction=0.0,
            empty_fraction=0.0,
            residue_per_mm2=0.0,
            films_per_mm2=0.0,
        )
    )
    full_well_s = 0.016 if oxide_nm < 200.0 else 0.030
    sensor = SensorSettings(bit_depth=12, exposure_for_full_well_s=full_well_s)
    renderer = Renderer(chip, OpticsSettings(), sensor, 11)
    pixels = renderer.render(Objective("20x", 20.0, 0.45, pixel_nm), 0.0, 0.0, 0.0, shape)
    settings = DetectorSettings(materials=("hbn",), oxide_nm=oxide_nm, max_thickness_nm=45.0)
    answer = PhysicsDetector(settings).detect(pixels, pixel_nm, 12)
    mine = instances_from_detections(answer.detections)
    true, nm = _truth(chip, shape, pixel_nm * 1e-3)
    matches = match_by_iou(iou_matrix(mine, true), [m.score for m in mine])
    found = {m.true: answer.detections[m.predicted] for m in matches}
    asked = [k for k, t in enumerate(nm) if 5.0 <= t <= 40.0]
    assert len(asked) >= 6
    seen = [k for k in asked if k in found]
    assert len(seen) >= 0.8 * len(asked)
    for k in seen:
        low_nm, high_nm = found[k].thickness_interval_nm
        assert low_nm <= found[k].thickness_nm <= high_nm
        assert low_nm <= nm[k] <= high_nm
        assert found[k].thickness_nm == pytest.approx(nm[k], rel=0.1)
    # Without the setting only what can be counted is reported.
    thin = PhysicsDetector(settings.model_copy(update={"max_thickness_nm": None}))
    assert all(d.thickness_nm < 5.0 for d in thin.detect(pixels, pixel_nm, 12).detections)


def _truth(chip, shape, um_per_px):
    instances, nm = [], []
    for flake in chip.truth().flakes:
        for terrace in flake.terraces:
            p = chip.chip_to_stage_um(terrace.polygon_um) / um_per_px
            corners = np.stack([p[:, 0] + (shape[1] - 1) / 2, (shape[0] - 1) / 2 - p[:, 1]], axis=1)
            inside = (
                corners.min() > 2 and (corners.max(axis=0) < [shape[1] - 3, shape[0] - 3]).all()
            )
            if not inside or terrace.area_um2 < 100.0:
                continue
            left, top = np.floor(corners.min(axis=0)).astype(int) - 1
            right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 2
            mask = np.zeros((bottom - top, right - left), np.uint8)
            fine = np.round((corners - [left, top]) * 256).astype(np.int32)
            cv2.fillPoly(mask, [fine], 1, shift=8)
            instances.append(Instance(mask > 0, left, top, 1.0, terrace.layers, "hbn"))
            nm.append(terrace.thickness_nm)
    return instances, nm
