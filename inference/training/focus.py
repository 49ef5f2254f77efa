"""Train AENet: band powers of one frame -> |defocus|, its sigma, and whether the frame is familiar.

    python -m inference.training.focus --out inference/weights

Needs torch and onnx (extra `train`). Everything follows from the seed; frames are made on all
cores, the network (about 30,000 parameters) is trained on the processor in a few minutes, faster
than a GPU could be fed. It should reach, on objects it has not seen, the figures in its card.

Loss: negative log-likelihood of a normal distribution in log(|z| + 1/4 DOF), which is about as much
as one frame can tell from none. Familiar means near the training features in Mahalanobis' sense:
nearer than all but a thousandth of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from inference.engine import Card, Tensor, card_path
from inference.focus.aenet import FEATURES
from inference.training.focus_frames import Examples, make_examples

_LOG = logging.getLogger(__name__)
_SMALLEST_DOF = 0.25
_WIDTH = 128
_FRAMES_EACH = 40


class AENetModule(nn.Module):  # type: ignore[misc, unused-ignore]
    """Three layers, and a distance from what was seen in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, _WIDTH),
            nn.GELU(),
            nn.Linear(_WIDTH, _WIDTH),
            nn.GELU(),
            nn.Linear(_WIDTH, 64),
            nn.GELU(),
            nn.Linear(64, 2),
        )
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("whitening", torch.eye(FEATURES))
        self.register_buffer("radius2", torch.ones(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, FEATURES) -> (n, 3): log(|z| + 1/4 DOF), log of its sd, familiar if > 0."""
        answer = self.body(features)
        white = (features - self.mean) @ self.whitening
        familiar = 1.0 - (white * white).sum(dim=1, keepdim=True) / self.radius2
        log_sd = torch.clamp(answer[:, 1:2], -3.0, 1.5)
        return torch.cat([answer[:, 0:1], log_sd, familiar], dim=1)


def main() -> None:
    """Make frames, train, export, write the card."""
    parser = argparse.ArgumentParser(description="Train AENet")
    parser.add_argument("--out", type=Path, default=Path("inference/weights"))
    parser.add_argument("--objects", type=int, default=2_400)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--micrographs", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(options)


def train(options: argparse.Namespace) -> Card:
    """Train and export; also what `scopeloop train focus` calls."""
    train_set = _examples(options, range(options.seed * 10_000, options.seed * 10_000 + 96))
    test_set = _examples(
        options, range(options.seed * 10_000 + 5_000, options.seed * 10_000 + 5_012)
    )
    _LOG.info("frames: %d to train, %d to test", len(train_set.features), len(test_set.features))
    torch.manual_seed(options.seed)
    torch.set_num_threads(max(1, min(options.workers, 8)))
    module = AENetModule()
    _set_familiar(module, train_set.features)
    _fit(module, train_set, options.epochs, options.seed)
    figures = _measure(module, test_set)
    _LOG.info("%s", figures)
    return _export(module, figures, options)


def _examples(options: argparse.Namespace, seeds: range) -> Examples:
    each = max(1, options.objects // 96)
    jobs = [(seed, each, _FRAMES_EACH, tuple(options.micrographs)) for seed in seeds]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        parts = pool.starmap(make_examples, jobs)
    return Examples(
        np.concatenate([p.features for p in parts]), np.concatenate([p.defocus_dof for p in parts])
    )


def _set_familiar(module: AENetModule, features: npt.NDArray[np.float32]) -> None:
    mean = features.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    whitening = vectors / np.sqrt(np.maximum(values, 1e-4))
    distance2 = np.square((features - mean) @ whitening).sum(axis=1)
    module.mean.copy_(torch.from_numpy(mean))
    module.whitening.copy_(torch.from_numpy(whitening.astype(np.float32)))
    module.radius2.fill_(float(np.quantile(distance2, 0.999)))


def _fit(module: AENetModule, examples: Examples, epochs: int, seed: int) -> None:
    x = torch.from_numpy(examples.features)
    target = torch.log(torch.from_numpy(examples.defocus_dof) + _SMALLEST_DOF)
    batch = 512
    steps = epochs * (len(x) // batch)
    optimiser = torch.optim.AdamW(module.body.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    shuffle = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=shuffle)
        total = 0.0
        for start in range(0, len(x) - batch + 1, batch):
            chosen = order[start : start + batch]
            inputs = x[chosen] + 0.01 * torch.randn(batch, FEATURES, generator=shuffle)
            answer = module(inputs)
            off = (answer[:, 0] - target[chosen]) * torch.exp(-answer[:, 1])
            loss = (0.5 * torch.clamp(off * off, max=50.0) + answer[:, 1]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        if epoch % 10 == 9:
            _LOG.info("epoch %d loss %.4f", epoch + 1, total * batch / len(x))


def _measure(module: AENetModule, examples: Examples) -> dict[str, float]:
    with torch.no_grad():
        answer = module(torch.from_numpy(examples.features)).numpy()
    truth = examples.defocus_dof
    found = np.maximum(np.exp(answer[:, 0]) - _SMALLEST_DOF, 0.0)
    off = np.abs(answer[:, 0] - np.log(truth + _SMALLEST_DOF)) / np.exp(answer[:, 1])
    ranks = np.argsort(np.argsort(found)), np.argsort(np.argsort(truth))
    return {
        "median_error_dof": round(float(np.median(np.abs(found - truth))), 3),
        "within_1_sigma": round(float(np.mean(off < 1.0)), 3),
        "within_2_sigma": round(float(np.mean(off < 2.0)), 3),
        "rank_correlation": round(float(np.corrcoef(*ranks)[0, 1]), 3),
        "familiar": round(float(np.mean(answer[:, 2] > 0.0)), 4),
        "test_frames": float(len(truth)),
    }


def _export(module: AENetModule, figures: dict[str, float], options: argparse.Namespace) -> Card:
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "aenet.onnx"
    torch.onnx.export(
        module.eval(),
        (torch.zeros(1, FEATURES),),
        str(path),
        input_names=["features"],
        output_names=["answer"],
        dynamic_axes={"features": {0: "n"}, "answer": {0: "n"}},
        opset_version=17,
        dynamo=False,
    )
    card = Card(
        name="AENet",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameters=sum(p.numel() for p in module.parameters()),
        input=Tensor(
            name="features",
            shape=(-1, FEATURES),
            meaning="16 log band powers over their weighted mean, a quarter of them; "
            "16 shares of signal, 0..1",
        ),
        output=Tensor(
            name="answer",
            shape=(-1, 3),
            meaning="log(|defocus| in DOF of the pixel + 0.25); log of its standard deviation; "
            "familiar where > 0",
        ),
        training_command=f"python -m inference.training.focus --objects {options.objects} "
        f"--epochs {options.epochs} --seed {options.seed}",
        training_data="random objects and geometric probes of inference.training.focus_frames"
        + (f"; {len(options.micrographs)} real micrographs" if options.micrographs else ""),
        figures=figures,
        licence="MIT",
    )
    text = json.dumps(card.model_dump(), indent=1)
    card_path(path).write_text(text + "\n", encoding="utf-8")
    if not all(math.isfinite(v) for v in figures.values()):
        message = f"training diverged: {figures}"
        raise RuntimeError(message)
    return card


if __name__ == "__main__":
    main()
