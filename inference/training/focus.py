"""Train AENet: features of one frame -> |defocus|, its sigma, and whether the frame is familiar.

    scopeloop train focus --out inference/weights

Needs torch (extra `train`), imported only when training starts. Everything follows from the seed,
whatever the number of processes; frames are made on all cores, which takes most of the time.

Two kinds of objects are kept from the network. Half of their frames set one number, how much every
sigma is widened so that it holds for objects never seen; the other half, and outliers of families
that were not shown either, give the figures in the card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from inference.api import NoEngine
from inference.engine import Card, Tensor, card_path
from inference.focus.aenet import FEATURES
from inference.training.focus_frames import Block, Examples, joined, make_examples
from inference.training.focus_objects import KINDS
from inference.training.focus_outliers import SEEN, UNSEEN

_LOG = logging.getLogger(__name__)
_SMALLEST_DOF: Final = 0.25  # of |defocus| that one frame can tell from none
HELD_OUT: Final = ("grains", "laths")
_BLOCK_OBJECTS: Final = 16
_FIELDS_EACH: Final = 10
_WITHIN_1_SIGMA: Final = 0.683

F32: TypeAlias = npt.NDArray[np.float32]
Report: TypeAlias = Callable[[int, int, str], None]  # done, of how much, doing what


@dataclass(frozen=True, slots=True)
class FocusTraining:
    """What is trained, on how much, and where the result goes."""

    out: Path  # a folder; aenet.onnx and its card are written there
    objects: int = 3_088  # 57,000 frames: half an hour on two cores
    epochs: int = 24
    seed: int = 7
    jobs: int = 0  # processes that make frames; 0: one a core
    device: str = ""  # "cpu" or "cuda"; "": the GPU where there is one


def train(settings: FocusTraining, report: Report = lambda *_: None) -> Card:
    """Make frames, train, measure, export; what `scopeloop train focus` calls.

    report: is given what is done, of how much, and what it is doing. Raises NoEngine without torch.
    """
    try:
        import torch

        from inference.training import focus_network as network
    except ImportError as error:
        message = "torch is not installed: pip install scopeloop[train]"
        raise NoEngine(message) from error
    frames, held_out, seen, unseen = _made(settings, report)
    work = _Work(settings, report)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(max(1, min(_jobs(settings), 8)))
    module = network.fitted(
        frames,
        seen.features,
        settings.epochs,
        settings.seed,
        device,
        work.after_epoch,
    )
    half = len(held_out.features) // 2
    said = network.answers(module, held_out.features[:half])
    network.widen(module, _widening(said, held_out.defocus_dof[:half]))
    said = network.answers(module, held_out.features[half:])
    figures = _figures(said, held_out.defocus_dof[half:])
    strange = network.answers(module, unseen.features)
    figures["auroc_unseen_outliers"] = round(auroc(said[:, 2], strange[:, 2]), 4)
    figures["unseen_outliers_flagged"] = round(float(np.mean(strange[:, 2] < 0.0)), 4)
    figures["train_frames"] = float(len(frames.features))
    if not all(math.isfinite(v) for v in figures.values()):
        message = f"training diverged: {figures}"
        raise RuntimeError(message)
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "aenet.onnx"
    card = _card(path, network.export(module, path), figures, settings)
    text = json.dumps(card.model_dump(), indent=1)
    card_path(path).write_text(text + "\n", encoding="utf-8")
    report(work.total, work.total, ", ".join(f"{k} {v:g}" for k, v in figures.items()))
    return card


@dataclass(frozen=True, slots=True)
class _Work:
    """How much there is to do: blocks of frames, then epochs."""

    settings: FocusTraining
    report: Report

    @property
    def blocks(self) -> int:
        return sum(len(role) for role in _blocks(self.settings))

    @property
    def total(self) -> int:
        return self.blocks + self.settings.epochs

    def after_epoch(self, epoch: int, loss: float) -> None:
        self.report(self.blocks + epoch, self.total, f"epoch {epoch}: loss {loss:.4f}")


def _jobs(settings: FocusTraining) -> int:
    return settings.jobs or os.cpu_count() or 2


def _blocks(settings: FocusTraining) -> tuple[list[Block], ...]:
    """Work to learn from, to measure on, outliers to learn from, outliers to measure on."""
    known = tuple(kind for kind in sorted(KINDS) if kind not in HELD_OUT)
    many = settings.objects
    return (
        _blocks_of(settings.seed, 0, known, many, _FIELDS_EACH),
        _blocks_of(settings.seed, 1, HELD_OUT, max(many // 8, 4), _FIELDS_EACH),
        _blocks_of(settings.seed, 2, tuple(SEEN), max(many // 2, 2 * len(SEEN)), 0),
        _blocks_of(settings.seed, 3, tuple(UNSEEN), max(many // 16, 2 * len(UNSEEN)), 0),
    )


def _blocks_of(
    seed: int, role: int, kinds: tuple[str, ...], objects: int, fields_each: int
) -> list[Block]:
    """Blocks of one role; a block's seed is its number, whoever does it. 0 fields: outliers."""
    return [
        Block(
            (seed, role, first // _BLOCK_OBJECTS),
            kinds[first % len(kinds) :] + kinds[: first % len(kinds)],
            min(_BLOCK_OBJECTS, objects - first),
            fields_each,
        )
        for first in range(0, objects, _BLOCK_OBJECTS)
    ]


def _made(settings: FocusTraining, report: Report) -> list[Examples]:
    """All examples of the four roles, in the order of their blocks."""
    roles = _blocks(settings)
    blocks = [block for role in roles for block in role]
    parts = list(_computed(settings, blocks, report))
    made, start = [], 0
    for role in roles:
        made.append(joined(parts[start : start + len(role)]))
        start += len(role)
    return made


def _computed(
    settings: FocusTraining, blocks: Sequence[Block], report: Report
) -> Iterator[Examples]:
    total = len(blocks) + settings.epochs
    jobs = min(_jobs(settings), len(blocks))
    if jobs == 1:
        for done, block in enumerate(blocks, start=1):
            yield make_examples(block)
            report(done, total, "frames")
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for done, part in enumerate(pool.imap(make_examples, blocks, chunksize=2), start=1):
            yield part
            report(done, total, "frames")


def _off(said: F32, defocus_dof: F32) -> F32:
    """Error of the logarithm in its own sigmas."""
    wanted = np.log(defocus_dof + _SMALLEST_DOF)
    off: F32 = np.abs(said[:, 0] - wanted) / np.exp(said[:, 1])
    return off


def _widening(said: F32, defocus_dof: F32) -> float:
    """By how much to multiply sigma so that 68.3 % of the errors lie within one."""
    return float(np.clip(np.quantile(_off(said, defocus_dof), _WITHIN_1_SIGMA), 0.5, 3.0))


def _figures(said: F32, truth: F32) -> dict[str, float]:
    found = np.maximum(np.exp(said[:, 0]) - _SMALLEST_DOF, 0.0)
    off = _off(said, truth)
    ranks = np.argsort(np.argsort(found)), np.argsort(np.argsort(truth))
    return {
        "median_error_dof": round(float(np.median(np.abs(found - truth))), 3),
        "within_1_sigma": round(float(np.mean(off < 1.0)), 3),
        "within_2_sigma": round(float(np.mean(off < 2.0)), 3),
        "rank_correlation": round(float(np.corrcoef(*ranks)[0, 1]), 3),
        "familiar": round(float(np.mean(said[:, 2] > 0.0)), 4),
        "test_frames": float(len(truth)),
    }


def auroc(inside: F32, outside: F32) -> float:
    """Chance that a frame of the first kind looks more familiar than one of the second."""
    both = np.concatenate([inside, outside])
    ranks = np.empty(len(both))
    ranks[np.argsort(both, kind="stable")] = np.arange(1, len(both) + 1)
    least = len(inside) * (len(inside) + 1) / 2.0
    return float((ranks[: len(inside)].sum() - least) / (len(inside) * len(outside)))


def _card(path: Path, parameters: int, figures: dict[str, float], settings: FocusTraining) -> Card:
    return Card(
        name="AENet",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameters=parameters,
        input=Tensor(
            name="features",
            shape=(-1, FEATURES),
            meaning="of 16 bands: log power over the weighted mean, a quarter of it; share of "
            "signal, 0..1; unevenness of modes; spread over directions. Then the distribution of "
            "structure over octaves and blocks (inference.focus.octaves)",
        ),
        output=Tensor(
            name="answer",
            shape=(-1, 3),
            meaning="log(|defocus| in DOF of the pixel + 0.25); log of its standard deviation; "
            "familiar where > 0",
        ),
        training_command=f"scopeloop train focus --objects {settings.objects} "
        f"--epochs {settings.epochs} --seed {settings.seed}",
        training_data="random objects, geometric probes and cameras of "
        f"inference.training.focus_frames; measured on objects kept out: {', '.join(HELD_OUT)}",
        figures=figures,
        licence="MIT",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a training from the command line."""
    parser = argparse.ArgumentParser(description="Train AENet")
    parser.add_argument("--out", type=Path, default=Path("inference/weights"))
    parser.add_argument("--objects", type=int, default=FocusTraining(Path()).objects)
    parser.add_argument("--epochs", type=int, default=FocusTraining(Path()).epochs)
    parser.add_argument("--seed", type=int, default=FocusTraining(Path()).seed)
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0: one a core")
    parser.add_argument("--device", default="", help="cpu or cuda; the GPU where there is one")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def logged(done: int, total: int, words: str) -> None:
        if words != "frames" or done % max(total // 20, 1) == 0:
            _LOG.info("%d of %d: %s", done, total, words)

    train(
        FocusTraining(given.out, given.objects, given.epochs, given.seed, given.jobs, given.device),
        logged,
    )


if __name__ == "__main__":
    main()
