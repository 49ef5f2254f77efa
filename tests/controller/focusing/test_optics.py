"""Blur of a lens in the few-frame focus's own unit."""

from types import SimpleNamespace

import pytest

from controller.focusing.optics import focus_optics
from drivers.api import Objective


class Gun:
    name = "gun"
    voltage_kv = 5.0
    current_pa = 50.0
    convergence_mrad = 6.0
    dwell_ns = 640.0

    def depth_of_field_um(self, pixel_size_nm: float) -> float:
        return max(pixel_size_nm, 8.0) * 1e-3 / 6e-3

    async def blank(self, is_blanked: bool) -> None: ...


def test_a_beam_blurs_by_a_pixel_in_a_depth_of_field_or_by_its_own_width() -> None:
    sem = SimpleNamespace(beam=Gun())
    field = Objective("column", 1e4, 0.006, 20.0)
    assert focus_optics(sem, field).unit_um == pytest.approx(20.0e-3 / 6e-3)
    assert focus_optics(sem, field).blur_px_per_unit == pytest.approx(1.0)
    fine = Objective("column", 1e4, 0.006, 4.0)
    assert focus_optics(sem, fine).blur_px_per_unit == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("magnification", "na"), [(5.0, 0.15), (20.0, 0.45), (50.0, 0.8), (100.0, 0.9)]
)
def test_light_blurs_by_a_pixel_or_so_in_a_unit(magnification: float, na: float) -> None:
    lens = Objective("lens", magnification, na, 384.0 * 20.0 / magnification)
    optics = focus_optics(SimpleNamespace(), lens)
    assert optics.depth_of_field_um == lens.depth_of_field_um()
    assert optics.unit_um == pytest.approx(0.25 * lens.depth_of_field_um())
    assert 0.8 < optics.blur_px_per_unit < 2.5
    radius_um = optics.blur_px_per_unit * lens.pixel_size_nm * 1e-3
    assert radius_um == pytest.approx(optics.unit_um * na)
