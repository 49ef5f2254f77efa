"""The video bench: its scene does what it says, and its rows tell gain, drift, hops and ghosts."""

import numpy as np

from controller.bench.restore_video import _contrasts, _outcome, _rows, _Scene
from inference.restore.classical import RadialWiener


def test_a_scene_hops_once_and_drifts_as_it_says():
    scene = _Scene(1e4, 1, "Au")
    assert np.array_equal(scene.drift_px(0), (0.0, 0.0))
    assert np.hypot(*scene.drift_px(19)) > 3.0
    new, old = scene.shot(21), scene.shot(21, has_hopped=False)
    assert np.allclose(_contrasts(new.clean_e, new, old, at=new), 1.0)
    assert np.allclose(_contrasts(old.clean_e, new, old, at=new), 0.0)


def test_rows():
    run = _outcome(_Scene(1e3, 1, "Au"), RadialWiener())
    rows = {row.name: row for row in _rows([run], "x", is_barred=True)}
    assert len(rows) == 6
    for name in ("gain_db", "effective_frames", "drift_error_px", "ghost_ratio"):
        assert rows[f"video_{name}_x"].met, rows[f"video_{name}_x"]
    assert rows["video_hop_seen_ratio_x"].n >= 2
    assert rows["video_time_ratio_x"].value > 0.0
    assert all(row.bar is None for row in _rows([run], "x", is_barred=False))
