"""Exit waves, focus and foreign atoms from one HRTEM frame, on simulated samples with known truth.

Samples are held out by their seeds; "unseen" ones by their material and voltage too. PSNR is of the
frame without noise, its range the clean frame's largest value less its smallest; the Wiener filters
are named, for they differ by 7 dB and more. Every method is told the true lens, except where a row
says that the lens was estimated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from controller import app
from controller.bench import Report
from controller.bench.numbers import share_row
from controller.figures import Row
from inference.api import NoEngine
from inference.restore.api import Grey, NoiseModel, Restorer
from inference.restore.classical import LocalWiener, RadialWiener
from inference.restore.ctf import estimate_ctf
from inference.restore.electrons import Focus, Lens
from inference.restore.exit_wave import MARGIN_PX, ExitWaveRestorer, Microscope, intensity
from inference.restore.impurities import find_impurities
from inference.restore.scores import psnr_db, ssim
from simulator.exit_waves import Role, WaveScene, wave_scene

_DOSES: Final = (1e3, 1e4, 1e5)
_IMPURITY_DOSES: Final = (3e3, 1e4, 2e4, 1e5)
_STATED_DOSE: Final = 2e4  # at which the bar on foreign atoms is asked
_NEAR_NM: Final = 0.07  # half a bond: an atom found there is that atom
_BORDER_NM: Final = 0.2
_FRAME_PX: Final = 256


def measure(quick: bool, seed: int) -> list[Row]:
    """Rows: denoising and phase over dose, focus from one frame, foreign atoms over dose."""
    return measure_with(quick, seed, Report())


def measure_with(quick: bool, seed: int, report: Report) -> list[Row]:
    """The same, telling how far it is."""
    said = report.progress or (lambda _: None)
    rows: list[Row] = []
    said("exit waves")
    rows += _wave_rows("graphene", 3 if quick else 12, seed)
    rows += _wave_rows("unseen", 2 if quick else 12, seed)
    said("focus from one frame")
    rows += _focus_rows(4 if quick else 40, seed)
    said("foreign atoms")
    doses = (_STATED_DOSE,) if quick else _IMPURITY_DOSES
    for dose in doses:
        rows += _impurity_rows(3 if quick else 64, dose, seed)
        said(f"foreign atoms at {dose:.0e} electrons per square angstrom")
    return rows


# --- frames --------------------------------------------------------------------------------------


def _microscope(rng: np.random.Generator, scene: WaveScene) -> Microscope:
    """A corrected lens near focus, as field set A."""
    stig_x, stig_y = rng.normal(0.0, 0.0008, 2)
    defocus_um = float(rng.uniform(0.003, 0.012) * rng.choice((-1.0, 1.0)))
    lens = Lens(scene.voltage_kv, float(rng.uniform(-0.02, 0.02)))
    return Microscope(lens, Focus(defocus_um, (float(stig_x), float(stig_y))), scene.pixel_size_nm)


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    scene: WaveScene
    microscope: Microscope
    noisy: Grey  # electrons
    clean: Grey
    phase_rad: Grey


def _frame(role: Role, number: int, dose_e_per_a2: float, seed: int) -> _Frame:
    scene = wave_scene(1_000 + seed, number, role, _FRAME_PX + 2 * MARGIN_PX)
    rng = np.random.default_rng([seed, number, 77])
    microscope = _microscope(rng, scene)
    per_px = dose_e_per_a2 * (10.0 * scene.pixel_size_nm) ** 2
    inner = slice(MARGIN_PX, -MARGIN_PX)
    clean = np.asarray(intensity(scene.wave, microscope)[inner, inner] * per_px, np.float32)
    noisy = rng.poisson(clean).astype(np.float32)
    phase = np.asarray(np.angle(scene.wave)[inner, inner], np.float32)
    return _Frame(scene, microscope, noisy, clean, phase)


_NOISE: Final = NoiseModel(1.0, 0.0, 0.0)  # counts


# --- exit waves ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Scores:
    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    phase_rad: list[float] = field(default_factory=list)


def _wave_rows(role: Role, frames: int, seed: int) -> list[Row]:
    rivals: tuple[Restorer, ...] = (LocalWiener(), RadialWiener())
    weak = ExitWaveRestorer()
    try:
        net = app.exit_wave_restorer()
    except NoEngine as error:
        return [Row(f"psnr_db_cddae_{role}", None, "dB", note=str(error))]
    rows: list[Row] = []
    for dose in _DOSES:
        scores = {
            name: _Scores() for name in ("cddae", "weak_phase", "local_wiener", "radial_wiener")
        }
        for number in range(frames):
            frame = _frame(role, number, dose, seed)
            span = float(np.ptp(frame.clean))
            for restorer in (net, weak):
                wave = restorer.recover(frame.noisy, frame.microscope, _NOISE)
                mine = scores[restorer.name]
                mine.psnr_db.append(psnr_db(wave.image, frame.clean, span))
                mine.ssim.append(ssim(wave.image, frame.clean, span))
                mine.phase_rad.append(float(np.std(wave.phase_rad - frame.phase_rad)))
            for rival in rivals:
                image = rival.restore(frame.noisy, _NOISE).image
                scores[rival.name].psnr_db.append(psnr_db(image, frame.clean, span))
                scores[rival.name].ssim.append(ssim(image, frame.clean, span))
        at = f"{role}_{dose:.0e}".replace("+0", "")
        mean = {name: float(np.mean(one.psnr_db)) for name, one in scores.items()}
        local = np.array(scores["local_wiener"].psnr_db)
        for name, one in scores.items():
            rows.append(_mean_row(f"psnr_db_{name}_{at}", one.psnr_db, "dB"))
            rows.append(_mean_row(f"ssim_{name}_{at}", one.ssim, ""))
        gains = (np.array(scores["cddae"].psnr_db) - local).tolist()
        note = "over the local Wiener filter; bar: the paper's gain is 1.55 dB"
        rows.append(_mean_row(f"gain_db_local_wiener_{at}", gains, "dB", 6.0, 1.55, note))
        gain = mean["cddae"] - mean["radial_wiener"]
        rows.append(Row(f"gain_db_radial_wiener_{at}", gain, "dB", n=frames))
        errors = scores["cddae"].phase_rad
        rows.append(
            Row(
                f"phase_rmse_rad_{at}",
                float(np.mean(errors)),
                "rad",
                better="lower",
                baseline=float(np.mean(scores["weak_phase"].phase_rad)),
                n=frames,
                note="about the mean; beside it, the weak phase's deconvolution",
            )
        )
    return rows


def _mean_row(
    name: str,
    values: list[float],
    unit: str,
    bar: float | None = None,
    baseline: float | None = None,
    note: str = "",
) -> Row:
    mean = float(np.mean(values))
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    span = (mean - half, mean + half)
    return Row(name, mean, unit, bar, baseline=baseline, n=len(values), ci95=span, note=note)


# --- focus ---------------------------------------------------------------------------------------


def _focus_rows(frames: int, seed: int) -> list[Row]:
    """Graphene at 1e4 electrons per square angstrom."""
    sure, right, errors, gains = 0, 0, [], []
    restorer: ExitWaveRestorer | None
    try:
        restorer = app.exit_wave_restorer()
    except NoEngine:
        restorer = None
    for number in range(frames):
        frame = _frame("impurities", number, 1e4, seed + 1)
        true = frame.microscope
        found = estimate_ctf(frame.noisy, true.pixel_size_nm, true.lens, material="graphene")
        if not found.is_sure:
            continue
        sure += 1
        error_nm = 1e3 * (found.defocus_um - true.focus.defocus_um)
        errors.append(abs(error_nm))
        right += abs(error_nm) <= 3e3 * found.defocus_sigma_um
        if restorer is not None:
            told = Microscope(true.lens, found.focus, true.pixel_size_nm)
            image = restorer.recover(frame.noisy, told, _NOISE).image
            local = LocalWiener().restore(frame.noisy, _NOISE).image
            span = float(np.ptp(frame.clean))
            gains.append(psnr_db(image, frame.clean, span) - psnr_db(local, frame.clean, span))
    rows = [
        share_row("focus_sure", sure, frames, note="graphene, 1e4 e/A2: others say so"),
        share_row("focus_within_3_sigma", right, sure, note="of those that are sure"),
    ]
    median = float(np.median(errors)) if errors else None
    rows.append(Row("focus_median_error_nm", median, "nm", better="lower", n=len(errors)))
    if gains:
        note = "with the lens estimated from the frame itself, where it is sure"
        rows.append(_mean_row("gain_db_local_wiener_estimated_1e4", gains, "dB", 6.0, 1.55, note))
    return rows


# --- foreign atoms -------------------------------------------------------------------------------


def _impurity_rows(frames: int, dose: float, seed: int) -> list[Row]:
    hits, of_element, atoms, false, area_a2 = {14: 0, 29: 0}, {14: 0, 29: 0}, 0, 0, 0.0
    seen = 0
    for number in range(frames):
        frame = _frame("impurities", number, dose, seed + 2)
        pixel_nm = frame.scene.pixel_size_nm
        found = find_impurities(frame.noisy, frame.microscope, _NOISE)
        half_nm = 0.5 * _FRAME_PX * pixel_nm - _BORDER_NM
        truth = [
            (one.x_nm, one.y_nm, one.number)
            for one in frame.scene.defects
            if one.kind == "dopant" and max(abs(one.x_nm), abs(one.y_nm)) <= half_nm
        ]
        area_a2 += found.searched_a2
        atoms += len(truth)
        for _, _, element in truth:
            of_element[element] += 1
        left = list(truth)
        for one in found.found:
            x_nm = (one.x_px - (_FRAME_PX - 1) / 2) * pixel_nm
            y_nm = ((_FRAME_PX - 1) / 2 - one.y_px) * pixel_nm
            near = [t for t in left if math.hypot(t[0] - x_nm, t[1] - y_nm) <= _NEAR_NM]
            if not near:
                false += 1
                continue
            left.remove(near[0])
            seen += 1
            hits[near[0][2]] += one.number == near[0][2]
    at = f"{dose:.0e}".replace("+0", "")
    is_stated = dose == _STATED_DOSE
    named = sum(hits.values())
    rows = [
        share_row(
            f"impurity_recall_{at}", named, atoms, 0.9 if is_stated else None, note="by element"
        ),
        share_row(f"impurity_seen_{at}", seen, atoms, note="as a foreign atom of either element"),
        *(
            share_row(f"impurity_recall_{name}_{at}", hits[number], of_element[number])
            for name, number in (("si", 14), ("cu", 29))
        ),
    ]
    rate = 1e5 * false / max(area_a2, 1.0)
    note = f"{false} in {area_a2:.0f} square angstroms"
    rows.append(
        Row(
            f"impurity_false_per_1e5_a2_{at}",
            rate,
            "",
            1.0 if is_stated else None,
            "lower",
            note=note,
        )
    )
    return rows
