"""What is asked of the finders, cut into tasks for several processes, and what comes back.

A task is a set of photographs of one user on one wafer and the methods that look at them; its
results are small enough to travel: overlaps for average precision, and one line an instance.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from controller.bench.flakes_baselines.methods import (
    USED,
    Finder,
    Found,
    Method,
    ours,
    rivals,
    who_leads,
)
from controller.bench.flakes_baselines.photographs import (
    COUNTED_LAYERS,
    LEAST_UM2,
    Photograph,
    Scene,
    micrographs,
    real_masked,
    simulated,
)
from controller.bench.flakes_baselines.unseen import TAUGHT_PHOTOGRAPHS, both_ways
from controller.processes import processes
from inference.api import BadImage
from inference.flakes.evaluate import Fate, image_result
from inference.flakes.masks import cut_out
from inference.flakes.materials import MATERIALS
from inference.flakes.scoring import Instance, Overlaps, ignored_shares, instances_from_labels
from simulator.flake_frames import labelled_frame

Who: TypeAlias = Literal["ours", "everybody"]

REAL: Final = "real"  # the labelled photographs; a seed for each micrograph shown beside them
LABORATORY: Final = "laboratory"  # one photograph of the simulator's other domain
MICROGRAPHS: Final = "electron micrographs"
BLUR: Final = "twice the blur"
RESIDUE: Final = "unseen residue"
UNSEEN: Final = "unseen"  # a crystal that is not built in; the last seeds are examples of it

_STRANGE_PX: Final = 1024
_BLURRED_SIGMA_PX: Final = 2.0  # on edges of about 1 px: more than twice as wide


@dataclass(frozen=True, slots=True)
class Task:
    """Some photographs and who is to look at them."""

    group: str  # the rows that they belong to
    seeds: tuple[int, ...]
    scene: Scene | None = None  # None: the group's name says what is shown
    who: Who = "ours"
    only: tuple[str, ...] = ()  # of those, these methods; (): all of them
    at_most: int | None = None  # of the real photographs; None: all of them


@dataclass(frozen=True, slots=True)
class Truth:
    """One terrace that is there, and how it fared."""

    layers: int | None  # None: nobody knows
    area_um2: float
    is_met: bool
    said_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One terrace that was claimed, and how right that was."""

    layers: int | None
    area_um2: float
    fate: Fate
    is_thick: bool  # it lies on a crystal that no layer number should be given to
    true_layers: int | None
    top_probability: float | None
    thickness_nm: float | None = None
    true_nm: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What one method found on a task's photographs."""

    task: Task
    method: str
    overlaps: tuple[Overlaps, ...]
    labels_only: tuple[Overlaps, ...]  # as if nothing were ignored
    truths: tuple[Truth, ...]
    claims: tuple[Claim, ...]
    strangeness: tuple[float | None, ...]
    with_layers: tuple[Overlaps, ...] = ()  # as if a wrong layer number were no overlap at all


def run_task(task: Task) -> list[Result]:
    """Do it; a method that does not serve this wafer is left out."""
    cv2.setNumThreads(1)
    photographs = _photographs(task)
    if task.group == UNSEEN:
        return _run_unseen(task, photographs)
    methods = _asked(task)
    results = _looked_at(task, photographs, [m for m in methods if m.name != USED])
    if USED in {method.name for method in methods} and photographs:
        leader = who_leads(photographs)  # it has looked already
        results += [replace(r, method=USED) for r in results if r.method == leader]
    return results


def _looked_at(
    task: Task, photographs: Sequence[Photograph], methods: Sequence[Method]
) -> list[Result]:
    results = []
    for method in methods:
        finder = method.taught(photographs) if photographs else None
        if finder is None:
            continue
        found = [finder(photograph) for photograph in photographs]
        results.append(_result(task, method.name, photographs, found))
        if found and found[0].strangeness is not None:
            for group, strange in _strange(task):
                seen = [_asked_of(finder, photograph) for photograph in strange]
                results.append(_result(replace(task, group=group), method.name, strange, seen))
    return results


def _run_unseen(task: Task, photographs: Sequence[Photograph]) -> list[Result]:
    """One crystal, told by its card and taught with examples; a method a way."""
    shown, examples = photographs[:-TAUGHT_PHOTOGRAPHS], photographs[-TAUGHT_PHOTOGRAPHS:]
    with TemporaryDirectory(prefix="scopeloop-bench-") as folder:
        ways = both_ways(shown, examples, Path(folder))
        return [
            _result(task, name, shown, [find(photograph) for photograph in shown])
            for name, find in ways.items()
        ]


def _asked(task: Task) -> Sequence[Method]:
    methods = (*ours(), *rivals()) if task.who == "everybody" else ours()
    return [method for method in methods if not task.only or method.name in task.only]


def _photographs(task: Task) -> Sequence[Photograph]:
    if task.scene is not None:
        return [simulated(task.scene, seed) for seed in task.seeds]
    if task.group == REAL:
        return _real()[: task.at_most]
    return [laboratory(seed) for seed in task.seeds]


def _strange(task: Task) -> Iterator[tuple[str, Sequence[Photograph]]]:
    """What no detector should believe, to be shown beside a task's photographs."""
    if task.group == REAL:
        pictures = micrographs(len(task.seeds))
        yield MICROGRAPHS, [Photograph("micrograph", pixels, ()) for pixels in pictures]
        yield BLUR, [replace(p, pixels=_blurred(p)) for p in _real()[: task.at_most]]
    elif task.group == LABORATORY:
        yield RESIDUE, [laboratory(seed, is_residue=True) for seed in task.seeds]


def _blurred(photograph: Photograph) -> npt.NDArray[np.uint8]:
    blurred = cv2.GaussianBlur(photograph.pixels, (0, 0), _BLURRED_SIGMA_PX)
    return np.asarray(blurred, dtype=np.uint8)


@cache
def _real() -> Sequence[Photograph]:
    return tuple(real_masked())


def laboratory(seed: int, *, is_residue: bool = False) -> Photograph:
    """A photograph of the simulator's other domain: lamps, filters, indices of its own.

    is_residue: covered with residue of a kind that training never shows, not to be believed.
    """
    frame = labelled_frame(seed, 0, "test", _STRANGE_PX, oddity="residue" if is_residue else "none")
    px_um2 = (frame.pixel_size_nm * 1e-3) ** 2
    true, ignored, thick = [], [], []
    for value in np.unique(frame.instances)[1:].tolist():
        layers = int(frame.instance_layers[value])
        one = replace(cut_out(frame.instances == value), layers=layers, material=frame.material)
        if layers > COUNTED_LAYERS:
            thick.append(one)
        elif one.area_px * px_um2 >= LEAST_UM2 and not _is_cut(one, frame.instances.shape):
            true.append(one)
        else:
            ignored.append(one)
    unknown = (frame.layers == -2).astype(np.uint8)
    ignored += [*thick, *instances_from_labels(unknown)]
    return Photograph(
        f"laboratory-{seed}",
        frame.pixels,
        tuple(true),
        tuple(ignored),
        tuple(thick),
        frame.material,
        float(np.clip(frame.calibration.oxide_nm, 10.0, 1_000.0)),
        frame.optics.numerical_aperture,
        frame.pixel_size_nm,
        frame.bit_depth,
    )


def _is_cut(one: Instance, shape_px: tuple[int, ...]) -> bool:
    height, width = one.mask.shape
    return (
        one.box_x_px == 0
        or one.box_y_px == 0
        or one.box_x_px + width == shape_px[1]
        or one.box_y_px + height == shape_px[0]
    )


def _asked_of(finder: Finder, photograph: Photograph) -> Found:
    try:
        return finder(photograph)
    except BadImage:
        return Found((), (), strangeness=math.inf)  # refused: as strange as can be


def _result(
    task: Task, method: str, photographs: Sequence[Photograph], found: Sequence[Found]
) -> Result:
    overlaps, labels_only, strict = [], [], []
    truths: list[Truth] = []
    claims: list[Claim] = []
    for photograph, one in zip(photographs, found, strict=True):
        px_um2 = (photograph.pixel_size_nm * 1e-3) ** 2
        thickness_nm = one.thickness_nm or (None,) * len(one.instances)
        kept = [
            (instance, top, nm)
            for instance, top, nm in zip(
                one.instances, one.top_probability, thickness_nm, strict=True
            )
            if task.group == REAL or instance.area_px * px_um2 >= LEAST_UM2
        ]
        instances = [instance for instance, _, _ in kept]
        layer_nm = MATERIALS[photograph.material].layer_thickness_nm
        judged = image_result(photograph.name, photograph.true, instances, photograph.ignored)
        overlaps.append(judged.overlaps)
        labels_only.append(replace(judged.overlaps, ignored=np.zeros(len(instances))))
        strict.append(with_layers(judged.overlaps, instances, photograph.true))
        on_thick = ignored_shares(instances, photograph.thick) >= 0.5
        rows = judged.judged()
        for k, (row, (instance, top, nm)) in enumerate(zip(rows, kept, strict=False)):
            true_layers = None if row.truth is None else row.truth.layers
            area_um2 = instance.area_px * px_um2
            claims.append(
                Claim(
                    instance.layers,
                    area_um2,
                    row.fate,
                    bool(on_thick[k]),
                    true_layers,
                    top,
                    nm,
                    None if true_layers is None else true_layers * layer_nm,
                )
            )
            if row.truth is not None:
                real_um2 = row.truth.area_px * px_um2
                truths.append(Truth(true_layers, real_um2, True, instance.layers))
        truths += [
            Truth(row.instance.layers, row.instance.area_px * px_um2, False)
            for row in rows[len(kept) :]
        ]
    return Result(
        task,
        method,
        tuple(overlaps),
        tuple(labels_only),
        tuple(truths),
        tuple(claims),
        tuple(one.strangeness for one in found),
        tuple(strict),
    )


def with_layers(overlaps: Overlaps, said: Sequence[Instance], true: Sequence[Instance]) -> Overlaps:
    """The same, where only what has the right layer number overlaps."""
    is_right = [[s.layers == t.layers for t in true] for s in said]
    return replace(
        overlaps, ious=np.where(np.array(is_right).reshape(overlaps.ious.shape), overlaps.ious, 0.0)
    )


# --- processes -------------------------------------------------------------------------------


def run_all(
    tasks: Sequence[Task],
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
    most_s: float | None = None,
) -> list[Result]:
    """All results in the tasks' order, whatever process they came from.

    jobs: processes, None: one a core. most_s: what has not begun by then is left out.
    """
    workers = min(jobs or os.cpu_count() or 1, len(tasks))
    began_s = time.monotonic()
    found: dict[int, list[Result]] = {}
    with processes(workers) as pool:
        waiting: dict[Future[list[Result]], int] = {
            pool.submit(run_task, task): number for number, task in enumerate(tasks)
        }
        for future in as_completed(waiting):
            if future.cancelled():
                continue
            found[waiting[future]] = future.result()
            if progress is not None:
                progress(f"{len(found)} of {len(tasks)} sets of photographs")
            if most_s is not None and time.monotonic() - began_s > most_s:
                for other in waiting:
                    other.cancel()
    return [result for number in sorted(found) for result in found[number]]
