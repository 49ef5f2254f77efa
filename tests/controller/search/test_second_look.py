"""The second detector: what counts as another reading, and whom nobody has to ask."""

from dataclasses import replace

import numpy as np
import pytest
from shapely.geometry import box

from controller.eyes import SearchEyes, of_its_own_mind
from controller.geometry import CameraGeometry
from controller.messages import (
    Analysed,
    CalibrationFitted,
    CatalogueEntry,
    Exposed,
    Piece,
    Saved,
)
from controller.search.merging import terrace_piece
from controller.search.second_look import (
    OtherEyes,
    OtherTile,
    best_tile,
    compared,
    second_look,
    spoken,
)
from controller.search.state import SearchState, advance
from controller.settings import WantedSettings
from drivers.api import Objective
from inference.api import Calibration, Detection, FlakeAnswer
from inference.flakes.calibration import SubstrateCalibration
from inference.flakes.flakenet import UNKNOWN_TO_NETWORK
from inference.flakes.physics_detector import DetectorSettings, PhysicsDetector

FIELD = (0.0, 0.0, 100.0, 80.0)
WANTED = WantedSettings(min_area_um2=50.0)


def ring(x, y, w, h):
    return tuple((float(a), float(b)) for a, b in ((x, y), (x + w, y), (x + w, y + h), (x, y + h)))


def piece(x, y, w, h, layers=1, **changes):
    plain = Piece(
        outline_um=ring(x, y, w, h),
        holes_um=(),
        material="graphene",
        layers=layers,
        layer_probabilities=((layers, 0.8), (layers + 1, 0.2)),
        thickness_nm=0.335 * layers,
        contrast_rgb=(-0.1, -0.1, -0.1),
        off_ladder=0.0,
        score=0.9,
        area_um2=float(w * h),
        touches_border=False,
    )
    return replace(plain, **changes)


def entry(x, y, w, h, layers=1, **changes):
    plain = CatalogueEntry(
        entry_id=1,
        flake_id=1,
        rank=1,
        material="graphene",
        layers=layers,
        probability=0.9,
        layer_probabilities=((layers, 0.9),),
        thickness_nm=0.335 * layers,
        area_um2=float(w * h),
        aspect_ratio=1.0,
        outline_um=ring(x, y, w, h),
        holes_um=(),
        stage_x_um=x + w / 2,
        stage_y_um=y + h / 2,
        chip_x_um=0.0,
        chip_y_um=0.0,
        contrast_rgb=(-0.1, -0.1, -0.1),
        off_ladder=0.0,
        score=0.9,
        sharpness=1.0,
        tiles=(0,),
        revisit=None,
    )
    return replace(plain, **changes)


def other(*pieces, reason=""):
    shapes = [terrace_piece(0, one, 0.0) for one in pieces]
    return OtherTile("flakenet", "physics", reason, tuple(shapes), pieces)


@pytest.mark.parametrize(
    ("seen", "differs"),
    [
        ([piece(10, 10, 20, 20)], ()),
        ([piece(10, 10, 20, 25)], ()),  # a quarter more
        ([piece(10, 10, 20, 27)], ("area",)),  # a third more
        ([piece(10, 10, 20, 13)], ("area",)),  # a third less
        ([piece(10, 10, 20, 20, layers=2)], ("layers",)),
        ([piece(10, 10, 20, 20, material="hbn")], ("material",)),
        ([piece(10, 10, 40, 40, layers=3)], ("layers", "area")),  # swallowed by its neighbour
        ([piece(10, 10, 20, 13), piece(10, 23, 20, 7)], ("area",)),  # cut in two
        ([piece(60, 50, 20, 20)], ("existence",)),
        ([piece(27, 10, 20, 20)], ("existence",)),  # a corner of another one
        ([], ("existence",)),
    ],
)
def test_what_counts_as_another_reading(seen, differs):
    read = compared(entry(10, 10, 20, 20), 0, other(*seen), FIELD)
    assert read.differs == differs
    assert (read.layers > 0) == ("existence" not in differs)
    assert (read.detector, read.leader, read.tile) == ("flakenet", "physics", 0)


def test_a_layer_more_or_less_of_a_thick_crystal_is_the_same():
    thick = entry(10, 10, 20, 20, layers=9)
    assert compared(thick, 0, other(piece(10, 10, 20, 20, layers=8)), FIELD).differs == ()
    assert compared(thick, 0, other(piece(10, 10, 20, 20, layers=6)), FIELD).differs == ("layers",)


def test_only_what_lies_on_the_tile_is_compared():
    """The entry goes on in the next tile; the second detector was shown this one."""
    cut = entry(80, 10, 60, 20, tiles=(0, 1))
    read = compared(cut, 0, other(piece(80, 10, 20, 20)), FIELD)
    assert read.differs == ()
    assert read.area_ratio == pytest.approx(1.0)


def test_a_reading_carries_the_others_words_and_outline():
    seen = piece(10, 10, 20, 14, layers=2)
    read = compared(entry(10, 10, 20, 20), 0, other(seen), FIELD)
    assert (read.layers, read.probability, read.area_um2) == (2, 0.8, 280.0)
    assert read.area_ratio == pytest.approx(0.7)
    assert read.outline_um == seen.outline_um


def test_a_detector_that_does_not_know_the_frame_contradicts_nobody():
    read = compared(entry(10, 10, 20, 20), 0, other(reason="never seen such a thing"), FIELD)
    assert (read.differs, read.reason) == ((), "never seen such a thing")


def test_the_tile_that_shows_it_best_is_asked():
    boxes = {0: FIELD, 1: (90.0, 0.0, 190.0, 80.0)}
    assert best_tile(entry(80, 30, 15, 15, tiles=(0, 1)), boxes) == 0
    assert best_tile(entry(96, 30, 15, 15, tiles=(0, 1)), boxes) == 1


def analysed(index=0, detector="physics(graphene)", reason=""):
    return Analysed(
        "tile", index, detector, 1.0, (150.0, 120.0, 140.0), not reason, reason, (), 0.0
    )


def looked(entries, on_cards, tile, monkeypatch, wanted=WANTED):
    """A second look at one tile that shows all of it."""
    state = SearchState()
    advance(state, analysed())
    monkeypatch.setattr("controller.search.second_look.tile_boxes_um", lambda _: {0: FIELD})
    return second_look(entries, on_cards, state, wanted, lambda *_: tile)


def test_only_the_cards_are_read_again(monkeypatch):
    first, second = entry(10, 10, 20, 20), entry(50, 50, 10, 10, entry_id=2)
    tile = other(piece(10, 10, 20, 20), piece(50, 50, 10, 10))
    result = looked([first, second], [first], tile, monkeypatch)
    assert result.entries[0].second.differs == ()
    assert result.entries[1] is second
    assert result.alone == ()


def test_what_only_the_second_sees_is_told_where_it_is_wanted(monkeypatch):
    known = entry(10, 10, 20, 20)
    lone = piece(50, 40, 10, 10)
    tile = other(
        piece(10, 10, 20, 20),
        lone,
        piece(51, 41, 9, 9, layers=2),  # the same again
        piece(70, 40, 5, 5),  # too small
        piece(70, 50, 10, 10, layers=9),  # not asked for
        piece(70, 65, 10, 10, score=0.01),
        piece(90, 0, 10, 10, touches_border=True),
        piece(25, 10, 10, 20),  # half of it lies on what is known
    )
    (found,) = looked([known], [known], tile, monkeypatch).alone
    assert found.piece is lone
    assert (found.stage_x_um, found.stage_y_um) == (55.0, 45.0)
    assert (found.detector, found.leader) == ("flakenet", "physics")


def test_nobody_else_nothing_said(monkeypatch):
    known = entry(10, 10, 20, 20)
    assert looked([known], [known], None, monkeypatch).entries == (known,)


# --- who is asked --------------------------------------------------------------------------


class Named:
    def __init__(self, name, answer=None):
        self.name, self.answer, self.asked = name, answer, 0

    def detect(self, pixels, pixel_size_nm, bit_depth=8):
        self.asked += 1
        return self.answer


class Frames:
    def load(self, *_):
        return np.zeros((80, 100, 3), np.uint8)

    def attributes(self, *_):
        return {}


def eyes_of(*detectors):
    state = SearchState()
    advance(state, Exposed("tile", 0, 0, 0.0, 0.01, 50.0, 40.0, 0.0, "20x", 1000.0, 0.01))
    advance(state, Saved("tile", 0, "", ""))
    lenses = {"20x": Objective("20x", 20.0, 0.45, 1000.0)}
    return OtherEyes(state, Frames(), lenses, CameraGeometry(), lambda *_: detectors)


def flake_answer(**changes):
    mask = np.ones((10, 20), bool)
    found = Detection(
        mask, 30, 20, 200, 39.5, 24.5, np.zeros((4, 2), np.float32), "graphene", 2,
        ((2, 0.9),), 0.67, (-0.2, -0.2, -0.1), 0.0, 0.8, False,
    )  # fmt: skip
    plain = FlakeAnswer(
        (found,), (150.0, 120.0, 140.0), Calibration(90.0, (1, 1, 1), 0, ""), True, ""
    )
    return replace(plain, **changes)


def test_the_one_that_did_not_lead_is_asked():
    physics, network = Named("physics(graphene)"), Named("flakenet(graphene)", flake_answer())
    tile = eyes_of(physics, network)(0, analysed())
    assert (tile.detector, tile.leader, tile.reason) == ("flakenet", "physics", "")
    (told,) = tile.seen
    # columns 30 to 49 and rows 20 to 29 of 100 x 80 pixels of 1 um, y up, (50, 40) in the middle
    assert tile.pieces[0].polygon.equals_exact(box(30, 50, 50, 60), 0.01, normalize=True)
    assert (told.layers, told.area_um2) == (2, 200.0)
    assert physics.asked == 0
    led_by_network = analysed(detector="flakenet(graphene)")
    physics.answer = flake_answer()
    assert eyes_of(physics, network)(0, led_by_network).detector == "physics"


def test_a_flagged_answer_is_a_reason_and_no_reading():
    network = Named("flakenet(x)", flake_answer(in_distribution=False, reason="no colour"))
    tile = eyes_of(Named("physics(x)"), network)(0, analysed())
    assert (tile.reason, tile.pieces) == ("no colour", ())


def test_where_the_network_stood_back_nobody_is_asked():
    physics, network = Named("physics(x)"), Named("flakenet(x)")
    reason = f"{UNKNOWN_TO_NETWORK}: physics only"
    tile = eyes_of(physics, network)(0, analysed(detector="flakenet(x)", reason=reason))
    assert (tile.detector, tile.leader, tile.reason) == ("flakenet", "physics", reason)
    assert physics.asked == network.asked == 0


def test_a_lone_detector_and_a_lost_frame_leave_it_at_that():
    assert eyes_of(Named("physics(x)"))(0, analysed()) is None
    assert eyes_of(Named("physics(x)"), Named("flakenet(x)"))(7, analysed(7)) is None


def test_names():
    assert spoken("flakenet(graphene+hbn)") == "flakenet"


@pytest.mark.parametrize("known", ["nothing", "one", "wafers"])
def test_for_a_second_opinion_nobody_is_sure_of_the_colours(known):
    sure = Calibration(92.0, (1.1, 1.0, 0.9), 0.8, "fitted")
    given = {
        "nothing": None,
        "one": sure,
        "wafers": [SubstrateCalibration((1.0, 2.0, 3.0), sure, (("graphene", "weber"),))],
    }[known]
    told = []
    of_its_own_mind(lambda settings, calibrations: told.append(calibrations))(None, given)
    if known == "nothing":
        assert told == [None]
        return
    wafers = told[0] if known == "wafers" else [SubstrateCalibration((1.0, 2.0, 3.0), told[0])]
    assert wafers[0].calibration == replace(sure, confidence=0.0)
    if known == "wafers":
        assert wafers[0].index_curves == (("graphene", "weber"),)


def test_calibrations_of_the_journal_reach_everybody():
    asked = []

    def make(settings, calibrations):
        asked.append(calibrations)
        return PhysicsDetector(settings, calibrations)

    eyes = SearchEyes(DetectorSettings(), make, None, None, None, (make, make))
    lens = Objective("20x", 20.0, 0.45, 384.0)
    fitted = CalibrationFitted(91.0, (1, 1, 1), 0.7, "", (150.0, 120.0, 140.0), "20x")
    assert len(eyes.everybody(lens, [fitted])) == 2
    assert [wafers[0].calibration.oxide_nm for wafers in asked] == [91.0, 91.0]
    other_lens = Objective("50x", 50.0, 0.8, 154.0)
    eyes.everybody(other_lens, [fitted])
    assert asked[-1].oxide_nm == 91.0
