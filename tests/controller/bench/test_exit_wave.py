"""The bench of exit waves, in miniature and with the classical answer in the network's place."""

import pytest

from controller import app
from controller.bench import BENCHES
from controller.bench import exit_wave as bench
from inference.api import NoEngine
from inference.restore.exit_wave import ExitWaveRestorer


class Named(ExitWaveRestorer):
    """The classical answer under the network's name."""

    name = "cddae"


def test_it_is_registered():
    assert "exit_wave" in BENCHES


def test_rows_of_waves(monkeypatch):
    monkeypatch.setattr(app, "exit_wave_restorer", lambda: Named())
    monkeypatch.setattr(bench, "_DOSES", (1e4,))
    rows = {row.name: row for row in bench._wave_rows("graphene", 1, 1)}
    assert rows["gain_db_local_wiener_graphene_1e4"].bar == 6.0
    assert rows["psnr_db_radial_wiener_graphene_1e4"].value > 20.0
    assert rows["phase_rmse_rad_graphene_1e4"].value < 0.1


def test_without_its_network_a_row_says_so(monkeypatch):
    def absent():
        raise NoEngine("not here")

    monkeypatch.setattr(app, "exit_wave_restorer", absent)
    (row,) = bench._wave_rows("graphene", 1, 1)
    assert row.value is None
    assert row.note == "not here"


def test_rows_of_foreign_atoms_carry_the_bar_at_the_stated_dose():
    rows = {row.name: row for row in bench._impurity_rows(1, 2e4, 1)}
    assert rows["impurity_recall_2e4"].bar == 0.9
    assert rows["impurity_false_per_1e5_a2_2e4"].bar == 1.0
    assert rows["impurity_false_per_1e5_a2_2e4"].value == pytest.approx(0.0)
