import json

import pytest

from controller.messages import CalibrationFitted
from controller.search.colours import CALIBRATION_FILE, wafer_of, write_colours
from controller.settings import Settings, validated
from inference.flakes.ladder import Correction
from inference.flakes.microscope import Microscope, load_microscope, save_microscope
from inference.flakes.physics_detector import DetectorSettings

FITTED = CalibrationFitted(
    91.5,
    (0.95, 1.0, 1.02),
    0.8,
    "fitted on 12 regions",
    (70.0, 66.0, 88.0),
    "20x",
    (("mos2", "song_1l"),),
    4000.0,
)
NOMINAL = CalibrationFitted(90.0, (1.0, 1.0, 1.0), 0.0, "nominal", (60.0, 60.0, 60.0), "20x")


def settings(**detector):
    return validated(
        Settings, {"instrument": {"driver": "simulated_optical"}, "detector": detector}, "test"
    )


def test_what_was_fitted_is_found_again_by_the_next_run(tmp_path):
    path = write_colours(tmp_path, settings(), [FITTED, NOMINAL])
    assert path == tmp_path / CALIBRATION_FILE
    (wafer,) = DetectorSettings(calibration=str(path)).microscope.wafers
    assert wafer == wafer_of(FITTED)
    assert (wafer.lamp_k, wafer.index_curves) == (4000.0, (("mos2", "song_1l"),))


def test_gains_stay_with_the_correction_they_were_fitted_beyond(tmp_path):
    known = tmp_path / "mine.json"
    save_microscope(known, Microscope(Correction((0.8, 1.0, 1.0)), (600.0, 800.0, 500.0), 0.9))
    path = write_colours(tmp_path, settings(calibration=str(known)), [FITTED])
    found = load_microscope(path)
    assert found.correction == Correction((0.8, 1.0, 1.0))
    assert found.wafers == (wafer_of(FITTED),)
    known.unlink()
    assert write_colours(tmp_path, settings(calibration=str(known)), [FITTED]) is None


@pytest.mark.parametrize("calibrations", [[], [NOMINAL]])
def test_nothing_fitted_nothing_written(tmp_path, calibrations):
    assert write_colours(tmp_path, settings(), calibrations) is None
    assert list(tmp_path.iterdir()) == []


def test_it_is_a_file_for_people_too(tmp_path):
    content = json.loads(write_colours(tmp_path, settings(), [FITTED]).read_text())
    assert content["format"] == "flake-calibration"
    assert content["entries"][0]["oxide_nm"] == 91.5
