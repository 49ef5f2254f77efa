"""Restoring a video: what averaging in time adds, and what it takes from a scene that changes.

Graphene with adatoms in the simulated transmission microscope, drifting steadily with some unrest.
After `_STILL_FRAMES` frames all adatoms hop at once to a neighbouring site, where they stay. Each
frame is restored by itself and by `Recursive` with the same restorer; both estimate the noise.

An adatom's contrast is what the restored frame holds of the difference between the true frames
with the hop and without it, round the site: at the new site 1 where all of the atom is shown, at
the old site what is missing of the change is a ghost, as far as it's more than in the frame
restored by itself. An adatom is seen when half of its contrast is shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from controller.figures import Row
from inference.figures import wilson_ci95
from inference.restore.api import Grey, Restorer
from inference.restore.colour import WHITE, noise_colour
from inference.restore.features import Feature, features, llr_of_chance
from inference.restore.noise import estimate_noise
from inference.restore.recursive import Recursive
from inference.restore.scores import psnr_db
from simulator.atoms import Sample, SampleSettings
from simulator.tem import Shot, Tem, TemSettings

_STILL_FRAMES: Final = 20
_AFTER_FRAMES: Final = 3
_SIDE_PX: Final = 256
_PIXEL_NM: Final = 0.02
_ADATOMS: Final = 6
_DRIFT_PX: Final = (0.3, -0.2)
_UNREST_PX: Final = 0.15
_SITE_PX: Final = 5  # to either side of an atom
_DOSES: Final = (300.0, 1e3, 1e4)  # electrons per square angstrom
_SETTLED_FRAMES: Final = 12  # before which an average is still growing


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One run of one restorer."""

    gains_db: tuple[float, ...]  # over the single frame, of the last still frames
    singles_db: tuple[float, ...]
    drift_errors_px: tuple[float, ...]
    effective_frames: float
    shown: tuple[tuple[float, ...], ...]  # (frames after the hop, adatoms)
    shown_single: tuple[float, ...]  # in the frame of the hop, restored by itself
    ghosts: tuple[tuple[float, ...], ...]
    time_ratio: float
    restarts: int


class _Scene:
    """A place on a sample whose adatoms all hop once."""

    def __init__(self, dose_e_per_a2: float, seed: int, adatom: Literal["Si", "Au"]) -> None:
        width_nm = _SIDE_PX * _PIXEL_NM + 2.0
        before, after = (
            Sample(
                SampleSettings(
                    seed=seed,
                    width_nm=width_nm,
                    height_nm=width_nm,
                    adatoms=_ADATOMS,
                    adatom=adatom,
                    hop_ratio=ratio,
                )
            )
            for ratio in (0.0, 1.0)
        )
        self._samples = before, after
        self._dose_e_per_a2, self._seed = dose_e_per_a2, seed
        rng = np.random.default_rng([seed, 9])
        frames = np.arange(_STILL_FRAMES + _AFTER_FRAMES)[:, None]
        unrest = np.cumsum(_UNREST_PX * rng.standard_normal((len(frames), 2)), axis=0)
        drift = frames * np.array(_DRIFT_PX) + unrest
        self._drift_px = drift - drift[0]

    def shot(self, frame: int, *, has_hopped: bool | None = None) -> Shot:
        """has_hopped: None: as it is by then."""
        late = frame >= _STILL_FRAMES if has_hopped is None else has_hopped
        settings = TemSettings(
            seed=1_000 * self._seed + frame,
            height_px=_SIDE_PX,
            width_px=_SIDE_PX,
            pixel_size_nm=_PIXEL_NM,
            dose_e_per_a2=self._dose_e_per_a2,
        )
        right_nm, up_nm = _PIXEL_NM * self._drift_px[frame]
        tem = Tem(settings, self._samples[late])
        return tem.expose(settings.lens.scherzer_um, number=int(late), x_nm=-right_nm, y_nm=-up_nm)

    def drift_px(self, frame: int) -> npt.NDArray[np.float64]:
        """To the right, and down."""
        return np.asarray(self._drift_px[frame] * (1.0, -1.0), dtype=np.float64)


def video_rows(
    restorers: Sequence[Restorer],
    *,
    quick: bool,
    seed: int,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Rows of each restorer, each dose and adatoms of silicon and gold."""
    rows = []
    for restorer in restorers:
        for dose in _DOSES[1:2] if quick else _DOSES:
            for adatom in ("Si", "Au"):
                if progress is not None:
                    progress(f"video, {restorer.name}, {dose:.0f} e/A2, {adatom}")
                runs = [
                    _outcome(_Scene(dose, seed + i, adatom), restorer)
                    for i in range(2 if quick else 6)
                ]
                rows += _rows(runs, f"{restorer.name}_{adatom}_{dose:.0f}e", is_barred=dose == 1e3)
    return rows


def _outcome(scene: _Scene, restorer: Restorer) -> _Outcome:
    live = Recursive(restorer)
    gains, singles, drifts = [], [], []
    shown, shown_single, ghosts = [], [], []
    spent_s = np.zeros(2)  # averaging, and frame by frame
    effective = 0.0
    for frame in range(_STILL_FRAMES + _AFTER_FRAMES):
        shot = scene.shot(frame)
        begun_s = time.process_time()
        answer = live.push(shot.noisy_e)
        middle_s = time.process_time()
        # The same noise for both: the gain is that of averaging. Its estimate is timed apart.
        estimate_noise(shot.noisy_e)
        single = restorer.restore(shot.noisy_e, live.noise)
        spent_s += middle_s - begun_s, time.process_time() - middle_s
        if frame < _STILL_FRAMES:
            drifts.append(float(np.hypot(*(live.drift_px - scene.drift_px(frame)))))
            effective = live.effective_frames
        if _SETTLED_FRAMES <= frame < _STILL_FRAMES:
            data_range = float(np.ptp(shot.clean_e))
            singles.append(psnr_db(single.image, shot.clean_e, data_range))
            gains.append(psnr_db(answer.image, shot.clean_e, data_range) - singles[-1])
        if frame >= _STILL_FRAMES:
            old = scene.shot(frame, has_hopped=False)
            shown.append(_contrasts(answer.image, shot, old, at=shot))
            # Beyond what the restorer itself leaves there by blurring.
            alone, here = (
                _contrasts(image, shot, old, at=old) for image in (single.image, answer.image)
            )
            ghosts.append(tuple(one - other for one, other in zip(alone, here, strict=True)))
            if frame == _STILL_FRAMES:
                shown_single = list(_contrasts(single.image, shot, old, at=shot))
    return _Outcome(
        gains_db=tuple(gains),
        singles_db=tuple(singles),
        drift_errors_px=tuple(drifts[1:]),
        effective_frames=effective,
        shown=tuple(shown),
        shown_single=tuple(shown_single),
        ghosts=tuple(ghosts),
        time_ratio=float(spent_s[0] / spent_s[1]),
        restarts=live.restarts,
    )


def _contrasts(image: Grey, new: Shot, old: Shot, at: Shot) -> tuple[float, ...]:
    """Of each adatom that lies well inside the frame, at its new or old site."""
    change = new.clean_e - old.clean_e
    gap = image - old.clean_e
    found = []
    for defect in at.defects:
        if defect.kind != "adatom":
            continue
        column = round(_SIDE_PX / 2 - 0.5 + defect.x_nm / _PIXEL_NM)
        row = round(_SIDE_PX / 2 - 0.5 - defect.y_nm / _PIXEL_NM)
        if min(row, column) < 16 or max(row, column) >= _SIDE_PX - 16:
            continue
        site = np.s_[row - _SITE_PX : row + _SITE_PX + 1, column - _SITE_PX : column + _SITE_PX + 1]
        power = float(np.square(change[site], dtype=np.float64).sum())
        found.append(float((gap[site] * change[site]).sum(dtype=np.float64)) / power)
    return tuple(found)


def _rows(runs: Sequence[_Outcome], label: str, *, is_barred: bool) -> list[Row]:
    gains = np.array([gain for run in runs for gain in run.gains_db])
    single = float(np.mean([one for run in runs for one in run.singles_db]))
    drifts = np.array([error for run in runs for error in run.drift_errors_px])
    first = np.array([one for run in runs for one in run.shown[0]])
    alone = np.array([one for run in runs for one in run.shown_single])
    ghosts = np.array([one for run in runs for one in run.ghosts[1]])
    spread = 1.96 * float(gains.std()) / math.sqrt(len(runs))  # frames of one run are alike
    seen = int((first >= 0.5).sum())

    def bar(value: float) -> float | None:
        return value if is_barred else None

    return [
        Row(
            f"video_gain_db_{label}",
            float(gains.mean()),
            "dB",
            bar=bar(4.0),
            baseline=0.0,
            n=len(gains),
            ci95=(float(gains.mean()) - spread, float(gains.mean()) + spread),
            note=f"PSNR over the single frame's {single:.2f} dB, still scene that drifts; range: "
            "largest less smallest of the clean frame",
        ),
        Row(
            f"video_effective_frames_{label}",
            float(np.median([run.effective_frames for run in runs])),
            "frames",
            bar=bar(16.0),
            n=len(runs),
            note=f"after {_STILL_FRAMES} frames; restarts: {sum(run.restarts for run in runs)}",
        ),
        Row(
            f"video_drift_error_px_{label}",
            float(np.sqrt(np.mean(drifts**2))),
            "px",
            bar=bar(0.2),
            better="lower",
            n=len(drifts),
            note=f"root mean square of all frames, largest {drifts.max():.2f}",
        ),
        Row(
            f"video_hop_seen_ratio_{label}",
            seen / max(len(first), 1),
            bar=bar(0.95),
            baseline=float((alone >= 0.5).mean()),
            n=len(first),
            ci95=wilson_ci95(seen, len(first)),
            note="half of the atom's contrast or more, in the frame of the hop; baseline: that "
            "frame restored by itself",
        ),
        Row(
            f"video_ghost_ratio_{label}",
            float(ghosts.mean()),
            bar=bar(0.05),
            better="lower",
            n=len(ghosts),
            note="contrast left at the old site in the second frame, over that of the frame alone",
        ),
        Row(
            f"video_time_ratio_{label}",
            float(np.median([run.time_ratio for run in runs])),
            bar=bar(1.25),
            better="lower",
            baseline=1.0,
            n=len(runs),
            note=f"CPU time over frame by frame, noise estimated in both, {_SIDE_PX} px a side",
        ),
    ]


# --- features --------------------------------------------------------------------------------

_ATOM_PX: Final = 2.2  # one standard deviation of an atom's image here
_FALSE_AREA_A2: Final = 1e5
_ASKED_FALSE: Final = 0.5  # in that area; half of the bar


def feature_rows(restorers: Sequence[Restorer], *, quick: bool, seed: int) -> list[Row]:
    """False atoms on frames of noise alone, and adatoms on graphene that are found."""
    rows = []
    side_px = 1_024
    frame_a2 = (side_px * 10.0 * _PIXEL_NM) ** 2
    frames = math.ceil((0.4 if quick else 2.0) * _FALSE_AREA_A2 / frame_a2)
    least = llr_of_chance(_FALSE_AREA_A2 / (10.0 * _PIXEL_NM) ** 2, _ATOM_PX, _ASKED_FALSE)
    for restorer in restorers:
        false = drawn = 0
        for number in range(frames):
            settings = TemSettings(
                seed=seed + number,
                height_px=side_px,
                width_px=side_px,
                pixel_size_nm=_PIXEL_NM,
                dose_e_per_a2=(1e3, 1e4)[number % 2],
                sample=SampleSettings(kind="vacuum"),
            )
            frame = Tem(settings).expose(settings.lens.scherzer_um).noisy_e
            found = _found(frame, restorer, least)
            false += sum(one.is_supported for one in found)
            drawn += len(found)
        rate = false / (frames * frame_a2 / _FALSE_AREA_A2)
        rows.append(
            Row(
                f"false_atoms_per_1e5_a2_{restorer.name}",
                rate,
                bar=1.0,
                better="lower",
                n=frames,
                note=f"noise alone, 1e3 and 1e4 e/A2; {drawn} spots drawn by the restorer were "
                f"asked about, least log-likelihood ratio {least:.1f}",
            )
        )
        for adatom in ("Si", "Au"):
            hits = total = 0
            for i in range(1 if quick else 5):
                shot = _Scene(1e3, seed + i, adatom).shot(0)
                found = _found(shot.noisy_e, restorer, least)
                places = np.array([(one.x_px, one.y_px) for one in found if one.is_supported])
                for defect in shot.defects:
                    x = _SIDE_PX / 2 - 0.5 + defect.x_nm / _PIXEL_NM
                    y = _SIDE_PX / 2 - 0.5 - defect.y_nm / _PIXEL_NM
                    if min(x, y) < 16 or max(x, y) > _SIDE_PX - 17:
                        continue
                    total += 1
                    gaps = np.hypot(*(places - (x, y)).T) if len(places) else np.array([np.inf])
                    hits += bool(gaps.min() < 3.0)
            rows.append(
                Row(
                    f"adatom_recall_{adatom}_1000e_{restorer.name}",
                    hits / max(total, 1),
                    n=total,
                    ci95=wilson_ci95(hits, total),
                    note="a supported spot within 3 px in one frame, at that rate of false ones",
                )
            )
    return rows


def _found(frame: Grey, restorer: Restorer, least_llr: float) -> tuple[Feature, ...]:
    noise = estimate_noise(frame)
    colour = noise_colour(frame, noise) or WHITE
    image = restorer.restore(frame, noise).image
    return features(frame, image, noise, _ATOM_PX, least_llr=least_llr, colour=colour)
