"""The bench of what restoring is good for: the same problem raw and restored, and its rows."""

import numpy as np
import pytest

from controller.bench import restore_uses
from controller.bench.flakes_baselines.photographs import Photograph
from controller.bench.focus_baselines.problem import RunResult, problem_of, subject_of
from controller.restoring.frames import EachAlone, RestorerChoice
from inference.api import BadImage
from inference.focus.api import FocusCommand
from inference.restore.classical import Gaussian


@pytest.fixture
def blur():
    return RestorerChoice("gaussian", lambda: EachAlone(Gaussian(2.0)), frozenset({"gaussian"}))


def test_a_problem_is_the_same_but_for_its_noise(blur):
    subject = subject_of(1, 0, ("gold_on_carbon",))
    condition = restore_uses.LOWEST
    raw, shown = problem_of(subject, condition), problem_of(subject, condition)
    first = raw.observe(raw.start).pixels.astype(float)
    second = restore_uses._Shown(shown, blur)
    pixels = second.observe(second.start).pixels
    assert pixels.dtype == np.uint8 or pixels.dtype == np.uint16
    assert second.half_range_dof == raw.half_range_dof
    assert shown.frames == raw.frames == 1
    assert pixels.std() < 0.9 * first.std()
    assert pixels.mean() == pytest.approx(first.mean(), rel=0.02)
    assert second.observe(FocusCommand(second.start.z_dof + 1.0)).command.z_dof != 0.0


def test_counting_anew_keeps_the_mean():
    pixels = np.full((200, 200, 3), 100, np.uint8)
    photograph = Photograph("flat", pixels, ())
    rng = np.random.default_rng(1)
    noisy = restore_uses.counted_anew(photograph, 200.0, rng).pixels
    assert noisy.mean() == pytest.approx(100.0, rel=0.01)
    electrons = 100 / 255 * 200.0
    assert noisy.std() == pytest.approx(100.0 / electrons**0.5, rel=0.05)


def test_focus_rows(blur, monkeypatch):
    """Everybody meets the same problems; who is shown restored frames is compared with raw."""
    met = []

    def run_one(problem, method, subject):
        met.append((subject.run, problem.condition.name, type(method).__name__))
        hit = not isinstance(method, restore_uses._After)
        return RunResult(
            "", "", 0, "", 0.2 if hit else 0.7, 0.0, 9.0, 0.0, True, False, 7, 1.0, 1.0, 0.1,
            None, (), None, "",
        )  # fmt: skip

    monkeypatch.setattr(restore_uses, "run_one", run_one)
    rows = {row.name: row for row in restore_uses.focus_rows(3, 3, (blur,))}
    assert len(rows) == 8
    raw, shown = (rows[f"focus_few_frames_20_e_per_px_{how}"] for how in ("raw", "gaussian"))
    assert (raw.value, raw.baseline, raw.n) == (1.0, None, 3)
    assert (shown.value, shown.baseline, shown.n) == (0.0, 1.0, 3)
    assert "3 sure and wrong" in shown.note
    assert met.count((2, "5 e-/px", "_After")) == 2


def test_detection_rows_name_raw_and_restored(blur, monkeypatch):
    seen = []

    def found_on(photographs):
        seen.append(photographs[0].pixels.std())
        raise BadImage("enough")

    monkeypatch.setattr(restore_uses, "found_on", found_on)
    with pytest.raises(BadImage):
        restore_uses.detection_rows(1, 1, (blur,))
    assert len(seen) == 1
