"""AENet as a torch module: what it is, how it is fitted, and how it becomes an ONNX file.

Four small networks look at the same features and answer with a mean and a spread of
log(|z| + 1/4 DOF); where they disagree the spread grows, which is most of what they can know about
objects they never saw (deep ensembles; Lakshminarayanan et al., NeurIPS 30, 2017). Beside them, two
judges of familiarity: distance from the training features as a whitened cloud, and a network that
was shown images of no use. The stricter one decides.

Nothing here reads files or makes frames: arrays in, a module out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from inference.focus.aenet import FEATURES
from inference.training.focus_frames import Examples

F32 = npt.NDArray[np.float32]

SMALLEST_DOF = 0.25
_MEMBERS = 4
_BATCH = 1_024
_AGREEMENT = 1.0  # how much two frames of one field must agree, against the likelihood
_KEPT = 0.998  # of the training's own frames are familiar to each judge


class AENetModule(nn.Module):  # type: ignore[misc, unused-ignore]
    """(n, FEATURES) -> (n, 3): log(|z| + 1/4 DOF), log of its sd, familiar if > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(_layers(2) for _ in range(_MEMBERS))
        self.judge = nn.Sequential(
            nn.Linear(FEATURES, 96), nn.GELU(), nn.Linear(96, 32), nn.GELU(), nn.Linear(32, 1)
        )
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))
        self.register_buffer("whitening", torch.eye(FEATURES))
        self.register_buffer("most_far2", torch.ones(()))
        self.register_buffer("least_logit", torch.zeros(()))
        self.register_buffer("log_widening", torch.zeros(()))

    def normal(self, features: torch.Tensor) -> torch.Tensor:
        """Features about their mean, in spreads; what never varied stays quiet."""
        return torch.clamp((features - self.mean) / self.spread, -8.0, 8.0)

    def opinions(self, normal: torch.Tensor) -> torch.Tensor:
        """Every member's mean and log sd, (members, n, 2)."""
        answers = torch.stack([member(normal) for member in self.members])
        return torch.cat([answers[:, :, :1], torch.clamp(answers[:, :, 1:], -3.0, 1.5)], dim=2)

    def doubt(self, normal: torch.Tensor) -> torch.Tensor:
        """Squared distance from the training features, (n, 1)."""
        white = normal @ self.whitening
        return (white * white).mean(dim=1, keepdim=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        normal = self.normal(features)
        answers = self.opinions(normal)
        mean = answers[:, :, :1].mean(dim=0)
        apart = answers[:, :, :1] - mean
        variance = (torch.exp(2.0 * answers[:, :, 1:]) + apart * apart).mean(dim=0)
        log_sd = 0.5 * torch.log(variance) + self.log_widening
        near = 1.0 - self.doubt(normal) / self.most_far2
        known = self.judge(normal) - self.least_logit
        return torch.cat([mean, log_sd, torch.minimum(near, known)], dim=1)


def _layers(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, 160),
        nn.GELU(),
        nn.Linear(160, 128),
        nn.GELU(),
        nn.Linear(128, 64),
        nn.GELU(),
        nn.Linear(64, outputs),
    )


def fitted(
    frames: Examples,
    outliers: F32,
    epochs: int,
    seed: int,
    device: str,
    after_epoch: Callable[[int, float], None],
) -> AENetModule:
    """Train on frames and on outliers; the module comes back on the processor."""
    torch.manual_seed(seed)
    features = frames.features
    module = AENetModule()
    module.mean.copy_(torch.from_numpy(features.mean(axis=0)))
    module.spread.copy_(torch.from_numpy(np.maximum(features.std(axis=0), 0.02)))
    module.to(device)
    x = torch.from_numpy(features).to(device)
    target = torch.log(torch.from_numpy(frames.defocus_dof).to(device) + SMALLEST_DOF)
    partner = torch.from_numpy(frames.partner).to(device)
    strange = torch.from_numpy(outliers).to(device)
    steps = epochs * (len(x) // _BATCH)
    optimiser = torch.optim.AdamW(
        [*module.members.parameters(), *module.judge.parameters()], lr=2e-3, weight_decay=2e-2
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        order = torch.randperm(len(x)).to(device)
        total, many = 0.0, 0
        for start in range(0, len(x) - _BATCH + 1, _BATCH):
            chosen = order[start : start + _BATCH]
            normal = module.normal(x[chosen])
            normal = normal + 0.03 * torch.randn_like(normal)
            answers = module.opinions(normal)
            other = module.opinions(module.normal(x[partner[chosen]]))
            apart = nn.functional.smooth_l1_loss(answers[:, :, 0], other[:, :, 0], beta=0.3)
            off = (answers[:, :, 0] - target[chosen]) * torch.exp(-answers[:, :, 1])
            likely = (0.5 * torch.clamp(off * off, max=50.0) + answers[:, :, 1]).mean()
            odd = strange[torch.randint(len(strange), (_BATCH // 4,), device=device)]
            odd = module.normal(odd) + 0.03 * torch.randn((len(odd), FEATURES), device=device)
            right = nn.functional.softplus(-module.judge(normal)).mean()
            wrong = nn.functional.softplus(module.judge(odd)).mean()
            loss = likely + _AGREEMENT * apart + right + wrong
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if start % (8 * _BATCH) == 0:
                total, many = total + float(likely.detach()), many + 1
        after_epoch(epoch + 1, total / max(many, 1))
    _set_familiar(module, x)
    module.to("cpu").eval()
    return module


def _set_familiar(module: AENetModule, x: torch.Tensor) -> None:
    with torch.no_grad():
        normal = module.normal(x)
        logits = module.judge(normal).cpu().numpy()
    values, vectors = np.linalg.eigh(np.cov(normal.cpu().numpy().T.astype(np.float64)))
    whitening = vectors / np.sqrt(np.maximum(values, 1e-2))
    module.whitening.copy_(torch.from_numpy(whitening.astype(np.float32)))
    with torch.no_grad():
        far = module.doubt(normal).cpu().numpy()
    module.most_far2.fill_(float(np.quantile(far, _KEPT)))
    module.least_logit.fill_(float(np.quantile(logits, 1.0 - _KEPT)))


def answers(module: AENetModule, features: F32) -> F32:
    """What the module says, (n, 3)."""
    with torch.no_grad():
        found: F32 = module(torch.from_numpy(features)).numpy()
    return found


def widen(module: AENetModule, ratio: float) -> None:
    """Multiply every spread from now on."""
    module.log_widening.add_(math.log(ratio))


def export(module: AENetModule, path: Path) -> int:
    """Write the ONNX file; returns how many parameters it has."""
    with warnings.catch_warnings():
        # The newer exporter needs one more package.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            (torch.zeros(1, FEATURES),),
            str(path),
            input_names=["features"],
            output_names=["answer"],
            dynamic_axes={"features": {0: "n"}, "answer": {0: "n"}},
            opset_version=17,
            dynamo=False,
        )
    learned = sum(int(p.numel()) for p in module.parameters())
    return learned + sum(int(b.numel()) for b in module.buffers())
