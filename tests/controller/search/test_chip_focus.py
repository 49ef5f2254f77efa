"""The search's focus, closed loop on the simulated microscope: networks first, sweep behind."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from controller import app
from controller.bench.search import Outcome, searched, tables
from controller.errors import ControllerError
from inference.focus.aenet import AENet
from simulator.optical_microscope import MicroscopeSettings

LENSES = {o.name: o.objective() for o in MicroscopeSettings().turret.objectives}


def asked(**focus: object) -> dict:
    found = tables(4, (1.3, 1.0))
    found["run"]["clock"] = "ideal"
    found["instrument"]["camera"] = {"width_px": 960, "height_px": 720}
    found["overview"] = {"width_um": 1_900.0, "height_um": 1_500.0}
    found["scan"] = {"max_tiles": 2}
    found["revisit"] = {"max_flakes": 1}
    found["focus"] = {"seed_points": 2, "most_seed_points": 2, **focus}
    return found


def errors_dof(outcome: Outcome) -> list[float]:
    chip = outcome.truth.chip
    assert chip is not None
    found = []
    for point in outcome.state.focus_points:
        lens = LENSES[point.objective]
        true_um = float(chip.surface_z_um(point.stage_x_um, point.stage_y_um))
        off_um = point.focus_z_um - lens.parfocal_z_um - true_um
        found.append(abs(off_um) / lens.depth_of_field_um())
    return found


@dataclass(frozen=True)
class Stranger:
    """A network to which every frame is new."""

    def run(self, inputs):
        return np.tile(np.float32([1.0, 0.0, -1.0]), (len(inputs), 1))

    def describe(self):
        return "stranger"


@pytest.fixture(scope="module")
def by_networks(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return searched(asked(), tmp_path_factory.mktemp("runs"))


def test_the_networks_focus_by_default_and_in_a_handful_of_frames(by_networks: Outcome) -> None:
    points = by_networks.state.focus_points
    assert [p.purpose for p in points].count("seed") == 2
    assert all(p.is_confident for p in points)
    assert {p.method for p in points} == {"few_frames"}
    assert all(not p.doubt for p in points)
    assert sum(p.frames for p in points) <= 7 * len(points)
    assert all(len(p.samples) == p.frames for p in points)
    assert max(errors_dof(by_networks)) < 0.5
    assert by_networks.truth.collisions == 0


def test_a_focus_says_how_sure_it_is_and_where_it_looked(by_networks: Outcome) -> None:
    seeds = [p for p in by_networks.state.focus_points if p.purpose == "seed"]
    for point in seeds:
        assert 0.05 < point.sigma_um / LENSES["20x"].depth_of_field_um() < 0.3


def test_a_network_that_knows_nothing_like_it_leaves_it_to_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    make = app.eyes

    def strange(*args, **kwargs):
        return replace(make(*args, **kwargs), aenet=AENet(Stranger()))

    monkeypatch.setattr(app, "eyes", strange)
    outcome = searched(asked(), tmp_path)
    points = [p for p in outcome.state.focus_points if p.is_confident]
    assert points
    assert {p.method for p in points} == {"sweep"}
    assert all(p.doubt.startswith("out of distribution") for p in points)
    assert max(errors_dof(outcome)) < 0.5


def test_sweeps_alone_if_the_settings_say_so(tmp_path) -> None:
    outcome = searched(asked(method="sweep"), tmp_path)
    points = outcome.state.focus_points
    assert {p.method for p in points} == {"sweep"}
    assert all(not p.doubt for p in points)


def test_a_chip_without_anything_on_it_is_refused_and_not_swept_again(tmp_path) -> None:
    bare = asked()
    names = ("flakes", "debris", "trails", "residue", "films", "bubbles", "scratches", "dust")
    bare["instrument"]["chip"] |= {f"{name}_per_mm2": 0.0 for name in names}
    bare["instrument"]["chip"] |= {"fiducials": False, "size_mm": [4.0, 4.0]}
    with pytest.raises(ControllerError, match=r"no focus at 5 places.*nothing to focus on"):
        searched(bare, tmp_path)
