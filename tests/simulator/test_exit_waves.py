"""Exit waves to learn from: the same again, and what is held out stays out."""

import numpy as np

from simulator.exit_waves import wave_scene


def test_the_same_arguments_give_the_same_scene():
    first, again = wave_scene(4, 2, side_px=96), wave_scene(4, 2, side_px=96)
    assert np.array_equal(first.wave, again.wave)
    assert first.defects == again.defects
    assert not np.array_equal(first.wave, wave_scene(4, 3, side_px=96).wave)
    assert first.wave.shape == (96, 96)


def test_roles_keep_apart_what_is_held_out():
    learnt = [wave_scene(1, number, "train", 64) for number in range(12)]
    assert {scene.kind for scene in learnt} <= {"graphene", "mos2"}
    assert min(scene.voltage_kv for scene in learnt) >= 75.0
    unseen = [wave_scene(1, number, "unseen", 64) for number in range(4)]
    assert {scene.kind for scene in unseen} == {"hbn"}
    assert max(scene.voltage_kv for scene in unseen) < 75.0


def test_scenes_for_foreign_atoms_have_them_and_nothing_that_hides_them():
    scenes = [wave_scene(1, number, "impurities", 192) for number in range(6)]
    kinds = {one.kind for scene in scenes for one in scene.defects}
    assert "dopant" in kinds
    assert "adatom" not in kinds
    for scene in scenes:
        assert np.abs(np.abs(scene.wave) - 1.0).max() < 0.35  # thin: hardly anything is absorbed
        for one in scene.defects:
            assert max(abs(one.x_nm), abs(one.y_nm)) <= 96 * scene.pixel_size_nm
