"""Train FlakeNet: evidence of a photograph -> what each pixel is, and how odd it all is.

Takes any iterable of `Example`s (the simulator makes them; this room does not know it), needs torch
and onnx (extra `train`), and everything follows from the seed. A few thousand photographs of 1 Mpx
and 20,000 steps take some 5 minutes on one large GPU; `Recipe.quick()` is the same in miniature.

The network is a plain U-Net of convolutions, ReLUs and nearest-neighbour enlargement, whose skips
add instead of concatenating: half the cost at the same accuracy on these data. It works on the
quarter-resolution grid and answers for the four half-resolution pixels of each place, so the fine
result costs one 1 x 1 convolution. Batch normalisation is folded into the weights on export.

Loss: cross entropy per pixel, small flakes weighing more and bare substrate less, so that one large
crystal is not worth fifty small ones; binary cross entropy for borders; and for oddity, taught on
frames that are no frames (outlier exposure, D. Hendrycks et al., ICLR 2019) and joined after
training with the Mahalanobis distance of the deepest features from those of ordinary frames (K. Lee
et al., NeurIPS 2018), both as fixed layers of the exported network. The temperature of the classes
(C. Guo et al., ICML 2017) is fitted on held-out frames and folded into the last layer. How often a
whole detector's layer numbers are right is another question, answered afterwards and without torch
by `inference.training.flake_beliefs`; a card without that answer leaves probabilities as they are.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from inference.engine import Card, Tensor, card_path
from inference.flakes.evidence import (
    CLASSES,
    DIRT_CLASS,
    LEAST_CONTENT,
    NO_CONTENT,
    PLANES,
    RUNG_PLANE,
)
from inference.training.flake_examples import IGNORED, Example

_LOG = logging.getLogger(__name__)
_CLASS_LOGITS = 4 * len(CLASSES)
OUTPUTS = _CLASS_LOGITS + 4 + 1
"""Class logits of four pixels, border logits of four pixels, oddity."""

_WIDTHS = (16, 32, 64, 96)
_SUBSTRATE_WEIGHT = 0.5
_AVERAGING = 0.998  # of the weights over the steps
_BELIEF = 8.0  # logits between a rung that fits and one that does not, before training


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how to train."""

    seed: int = 1
    steps: int = 20_000
    batch: int = 48
    crop: int = 96  # places of the grid along one side
    rate: float = 3e-3
    most_seconds: float = 3_600.0  # training proper ends then, its schedule shortened to fit
    device: str = "cpu"
    command: str = "scopeloop train flakes"

    @classmethod
    def quick(cls) -> Recipe:
        """A miniature that runs everything and learns a little."""
        return cls(steps=60, batch=4, crop=64)


def _block(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _linear(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class FlakeNetModule(nn.Module):  # type: ignore[misc, unused-ignore]
    """The network; see the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        w4, w8, w16, w32 = _WIDTHS
        self.fine = nn.Sequential(_block(PLANES, w4, size=1), _block(w4, w4))
        self.down8 = nn.Sequential(_block(w4, w8, 2), _block(w8, w8))
        self.down16 = nn.Sequential(_block(w8, w16, 2), _block(w16, w16))
        self.down32 = nn.Sequential(_block(w16, w32, 2), _block(w32, w32), _block(w32, w32))
        self.lift16, self.up16 = _linear(w32, w16), _block(w16, w16)
        self.lift8, self.up8 = _linear(w16, w8), _block(w8, w8)
        self.lift4, self.up4 = _linear(w8, w4), _block(w4, w4 + w4 // 2)
        # The ladder's evidence also goes straight to the answer, 16 planes being too narrow a door,
        # and training starts from what the ladder alone would say.
        self.glance = _block(PLANES, w8, size=1)
        self.head = nn.Conv2d(w4 + w4 // 2 + w8 + PLANES, _CLASS_LOGITS + 4, 1)
        _believe_the_ladder(self.head)
        self.odd = nn.Sequential(nn.Conv2d(w32, 32, 1), nn.ReLU(), nn.Conv2d(32, 1, 1))
        self.whiten = nn.Conv2d(w32, w32, 1)  # set after training, not learnt
        self.register_buffer("distance_gain", torch.zeros(()))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """(n, PLANES, h, w) -> (n, OUTPUTS, h, w); the odder, the larger the last plane."""
        fine = self.fine(planes)
        at8 = self.down8(fine)
        at16 = self.down16(at8)
        at32 = self.down32(at16)
        oddity = self.odd(at32) + self.distance_gain * self.distance(at32)
        at16 = self.up16(at16 + _enlarged(self.lift16(at32), 2))
        at8 = self.up8(at8 + _enlarged(self.lift8(at16), 2))
        fine = self.up4(fine + _enlarged(self.lift4(at8), 2))
        answer = self.head(torch.cat([fine, self.glance(planes), planes], dim=1))
        return torch.cat([answer, _enlarged(oddity, 8)], dim=1)

    def distance(self, at32: torch.Tensor) -> torch.Tensor:
        """Logarithm of the squared Mahalanobis distance per place and feature, (n, 1, h, w)."""
        white = self.whiten(at32)
        return torch.log((white * white).mean(dim=1, keepdim=True) + 0.01)

    def deepest(self, planes: torch.Tensor) -> torch.Tensor:
        """Features that the distance is measured in."""
        return self.down32(self.down16(self.down8(self.fine(planes))))


@torch.no_grad()  # type: ignore[misc, untyped-decorator, unused-ignore]
def _believe_the_ladder(head: nn.Conv2d) -> None:
    """Set the weights so that each place is of the class whose rung is nearest."""
    first = head.in_channels - PLANES
    head.weight *= 0.1
    head.bias[:_CLASS_LOGITS] = 0.0
    for k in range(4):
        for number in range(DIRT_CLASS):
            head.weight[k * len(CLASSES) + number, first + RUNG_PLANE + number] = -_BELIEF
        head.bias[k * len(CLASSES) + DIRT_CLASS] = -0.75 * _BELIEF
        head.bias[k * len(CLASSES)] = 0.1 * _BELIEF


def _enlarged(planes: torch.Tensor, times: int) -> torch.Tensor:
    return functional.interpolate(planes, scale_factor=times, mode="nearest")


@dataclass(frozen=True, slots=True, eq=False)
class _Shelf:
    """All examples on the device, as bytes."""

    planes: torch.Tensor  # (n, PLANES, h, w) int8
    classes: torch.Tensor  # (n, 2 h, 2 w) uint8
    borders: torch.Tensor
    weights: torch.Tensor
    strange: torch.Tensor  # (n,) float

    def __len__(self) -> int:
        return len(self.strange)


def _shelf(examples: Iterable[Example], device: str) -> _Shelf:
    kept = list(examples)
    if not kept:
        raise ValueError("there is not one example to learn from")
    if len({e.planes.shape for e in kept}) != 1:
        raise ValueError("examples must all have the same size")

    def stacked(name: str) -> torch.Tensor:
        first = getattr(kept[0], name)
        shelf = torch.empty((len(kept), *first.shape), dtype=torch.from_numpy(first).dtype)
        for k, example in enumerate(kept):
            shelf[k] = torch.from_numpy(getattr(example, name))
        return shelf.to(device)

    return _Shelf(
        stacked("planes"),
        stacked("classes"),
        stacked("borders"),
        stacked("weights"),
        torch.tensor([float(e.is_strange) for e in kept], device=device),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    planes: torch.Tensor  # (n, PLANES, h, w)
    classes: torch.Tensor  # (n, 4, h, w) int64
    borders: torch.Tensor  # (n, 4, h, w)
    weights: torch.Tensor
    strange: torch.Tensor  # (n,)


_ACROSS = [3 * k + c for k in (1, 0, 3, 2) for c in range(3)]  # of the four pixels' contrasts
_DOWN = [3 * k + c for k in (2, 3, 0, 1) for c in range(3)]
_TURNED = [3 * k + c for k in (0, 2, 1, 3) for c in range(3)]


def _drawn(shelf: _Shelf, recipe: Recipe, generator: torch.Generator) -> _Batch:
    """A batch of random crops, each flipped and turned at random."""
    rows, columns = shelf.planes.shape[2:]
    crop = min(recipe.crop, rows, columns)
    numbers = torch.randint(len(shelf), (recipe.batch,), generator=generator).tolist()
    tops = torch.randint(rows - crop + 1, (recipe.batch,), generator=generator).tolist()
    lefts = torch.randint(columns - crop + 1, (recipe.batch,), generator=generator).tolist()
    shown = _cut(shelf.planes, numbers, tops, lefts, crop).float() / 127.0
    twice = [(2 * top, 2 * left) for top, left in zip(tops, lefts, strict=True)]
    low, right = [top for top, _ in twice], [left for _, left in twice]
    maps = (shelf.classes, shelf.borders, shelf.weights)
    known = torch.cat([_cut(m[:, None], numbers, low, right, 2 * crop) for m in maps], dim=1)
    across, down, turned = (torch.rand(3, generator=generator) < 0.5).tolist()
    if across:
        shown, known = _permuted(shown.flip(3), _ACROSS), known.flip(3)
    if down:
        shown, known = _permuted(shown.flip(2), _DOWN), known.flip(2)
    if turned:
        shown = _permuted(shown.transpose(2, 3), _TURNED)
        known = known.transpose(2, 3)
    four = _by_four(known)
    return _Batch(
        shown.contiguous(),
        four[:, 0].long(),
        four[:, 1].float(),
        four[:, 2].float() / 16.0,
        shelf.strange[numbers],
    )


def _cut(
    shelf: torch.Tensor, numbers: list[int], tops: list[int], lefts: list[int], side: int
) -> torch.Tensor:
    """Squares out of (n, c, h, w), one a number, in one gather."""
    device = shelf.device
    along = torch.arange(side, device=device)
    places = torch.tensor([numbers, tops, lefts], device=device)[:, :, None, None, None]
    channels = torch.arange(shelf.shape[1], device=device)[None, :, None, None]
    rows, columns = places[1] + along[:, None], places[2] + along
    return shelf[places[0], channels, rows, columns]


def _permuted(planes: torch.Tensor, order: list[int]) -> torch.Tensor:
    return torch.cat([planes[:, order], planes[:, 12:]], dim=1)


def _by_four(labels: torch.Tensor) -> torch.Tensor:
    """(n, m, 2 h, 2 w) -> (n, m, 4, h, w), rows first."""
    parts = [labels[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]
    return torch.stack(parts, dim=2)


def _loss(answer: torch.Tensor, batch: _Batch) -> torch.Tensor:
    count, _, rows, columns = answer.shape
    logits = answer[:, :_CLASS_LOGITS].reshape(count * 4, len(CLASSES), rows, columns)
    classes = batch.classes.reshape(count * 4, rows, columns)
    weights = batch.weights.reshape(count * 4, rows, columns)
    weights = weights * torch.where(classes == 0, _SUBSTRATE_WEIGHT, 1.0)
    weights = weights * (classes != IGNORED)
    entropy = functional.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="none")
    loss = (entropy * weights).sum() / weights.sum().clamp(min=1.0)
    ordinary = (1.0 - batch.strange)[:, None, None, None].expand_as(batch.borders)
    borders = functional.binary_cross_entropy_with_logits(
        answer[:, _CLASS_LOGITS : _CLASS_LOGITS + 4],
        batch.borders,
        weight=ordinary * (1.0 + 3.0 * batch.borders),
    )
    oddity = functional.binary_cross_entropy_with_logits(_frame_oddity(answer), batch.strange)
    return loss + 0.5 * borders + 0.1 * oddity


def _content(answer: torch.Tensor) -> torch.Tensor:
    """How much there is to see around each of the deepest places, (n, h / 8, w / 8)."""
    count, _, rows, columns = answer.shape
    logits = answer[:, :_CLASS_LOGITS].detach().reshape(count, 4, len(CLASSES), rows, columns)
    there = 1.0 - logits.softmax(dim=2)[:, :, 0].mean(dim=1)
    there = there * (there > NO_CONTENT)
    return functional.avg_pool2d(there, 8) + LEAST_CONTENT


def _frame_oddity(answer: torch.Tensor) -> torch.Tensor:
    """Mean oddity of what there is to see, (n,): bare substrate is ordinary in any frame."""
    weights = _content(answer)
    return (weights * answer[:, -1, ::8, ::8]).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


def train(
    examples: Iterable[Example],
    held_out: Iterable[Example],
    out: Path,
    recipe: Recipe | None = None,
    report: Callable[[int, int, str], None] | None = None,
) -> Card:
    """Train on some examples, calibrate on others, write `out`/flakenet.onnx and its card.

    Of `held_out` a third or so should be strange, or nothing is learnt about what to refuse.
    report: called every 100 steps with the steps done, their number and the loss in words.
    """
    recipe = recipe or Recipe()
    torch.manual_seed(recipe.seed)
    shelf = _shelf(examples, recipe.device)
    checks = _shelf(held_out, recipe.device)
    _LOG.info("photographs: %d to learn from, %d held out", len(shelf), len(checks))
    module = FlakeNetModule().to(recipe.device)
    averaged = _fit(module, shelf, recipe, out, report)
    _set_distance(averaged, shelf, recipe)
    figures = _calibrate(averaged, checks, recipe)
    _LOG.info("%s", figures)
    return export(averaged, figures, out, recipe)


def _fit(
    module: FlakeNetModule,
    shelf: _Shelf,
    recipe: Recipe,
    out: Path,
    report: Callable[[int, int, str], None] | None,
) -> FlakeNetModule:
    """Train; returns the running average of the weights. Now and then what there is is kept."""
    generator = torch.Generator().manual_seed(recipe.seed)
    if recipe.device != "cpu":
        module = module.to(memory_format=torch.channels_last)
    learnt = [p for name, p in module.named_parameters() if not name.startswith("whiten")]
    optimiser = torch.optim.AdamW(learnt, lr=recipe.rate, weight_decay=1e-3)
    averaged = copy.deepcopy(module)
    pairs = list(zip(averaged.state_dict().values(), module.state_dict().values(), strict=True))
    pairs = [pair for pair in pairs if pair[0].dtype.is_floating_point]
    on_gpu = recipe.device != "cpu"
    started_s = time.monotonic()
    progress, step = 0.0, 0
    while progress < 1.0:
        for group in optimiser.param_groups:
            warm = min(1.0, 50.0 * progress + 0.02)
            group["lr"] = recipe.rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        batch = _drawn(shelf, recipe, generator)
        with torch.autocast(recipe.device, dtype=torch.bfloat16, enabled=on_gpu):
            planes = batch.planes
            if on_gpu:
                planes = planes.to(memory_format=torch.channels_last)
            answer = module(planes)
        loss = _loss(answer.float(), batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            keep = min(_AVERAGING, 1.0 - 1.0 / (1.0 + 0.1 * step))
            torch._foreach_lerp_([p[0] for p in pairs], [p[1] for p in pairs], 1.0 - keep)
        step += 1
        if report is not None and step % 100 == 0:
            report(step, recipe.steps, f"loss {float(loss.detach()):.3f}")
        if step % 500 == 0:
            elapsed_s = time.monotonic() - started_s
            _LOG.info("step %d, %.0f s, loss %.4f", step, elapsed_s, float(loss.detach()))
        if step % 4_000 == 0:
            export(averaged, {"unfinished_at_step": float(step)}, out, recipe)
        elapsed = (time.monotonic() - started_s) / recipe.most_seconds
        progress = max(step / recipe.steps, elapsed if elapsed > 1.2 * step / recipe.steps else 0.0)
    averaged.eval()
    return averaged


def _in_parts(shelf: _Shelf, most: int) -> Iterable[tuple[int, torch.Tensor]]:
    for n in range(min(len(shelf), most)):
        yield n, shelf.planes[n : n + 1].float() / 127.0


@torch.no_grad()  # type: ignore[misc, untyped-decorator, unused-ignore]
def _set_distance(module: FlakeNetModule, shelf: _Shelf, recipe: Recipe) -> None:
    """Whiten the deepest features of ordinary frames."""
    rows = []
    for n, planes in _in_parts(shelf, 600):
        if not shelf.strange[n]:
            found = module.deepest(planes)
            rows.append(found.permute(0, 2, 3, 1).reshape(-1, found.shape[1])[::7].double())
    if not rows:
        return
    features = torch.cat(rows)
    mean = features.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    floor = float(values.max()) * 1e-4 + 1e-9
    whitening = (vectors / values.clamp(min=floor).sqrt()).T
    module.whiten.weight.copy_(whitening.float()[:, :, None, None])
    module.whiten.bias.copy_(-(whitening @ mean).float())


@torch.no_grad()  # type: ignore[misc, untyped-decorator, unused-ignore]
def _calibrate(module: FlakeNetModule, checks: _Shelf, recipe: Recipe) -> dict[str, float]:
    """Fit temperature and oddity on held-out frames, fold them in; figures after that."""
    logits, classes, odd = [], [], []
    for n, planes in _in_parts(checks, len(checks)):
        answer = module(planes)
        weights = _content(answer)
        deep = module.distance(module.deepest(planes))[:, 0]
        far = float((weights * deep).sum() / weights.sum())
        odd.append((float(_frame_oddity(answer)), far, float(checks.strange[n])))
        truth = _by_four(checks.classes[n : n + 1, None])[:, 0].long()
        scores = answer[:, :_CLASS_LOGITS].reshape(4, len(CLASSES), *answer.shape[2:])
        scores = scores.permute(0, 2, 3, 1).reshape(-1, len(CLASSES))
        known = truth.reshape(-1)
        chosen = torch.nonzero(known != IGNORED)[::17, 0]
        logits.append(scores[chosen].cpu())
        classes.append(known[chosen].cpu())
    scores, truth = torch.cat(logits), torch.cat(classes)
    figures: dict[str, float] = {"held_out_frames": float(len(checks))}
    if len(truth):
        temperature = _temperature(scores, truth)
        module.head.weight[:_CLASS_LOGITS] /= temperature
        module.head.bias[:_CLASS_LOGITS] /= temperature
        figures |= _pixel_figures(scores / temperature, truth) | {"temperature": temperature}
    figures |= _join_oddity(module, np.array(odd))
    return figures


def _temperature(scores: torch.Tensor, truth: torch.Tensor) -> float:
    grid = [0.5 * 1.05**k for k in range(45)]
    return float(min(grid, key=lambda t: float(functional.cross_entropy(scores / t, truth))))


def _pixel_figures(scores: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    probabilities = scores.softmax(dim=1)
    sure, found = probabilities.max(dim=1)
    figures: dict[str, float] = {}
    for number, name in enumerate(CLASSES):
        mine = truth == number
        both = int(((found == number) & mine).sum())
        either = int(((found == number) | mine).sum())
        figures[f"iou_{name}"] = round(both / max(either, 1), 4)
    flakes = truth > 0
    error = 0.0
    for low in np.arange(0.0, 1.0, 0.1):
        inside = flakes & (sure > low) & (sure <= low + 0.1)
        if bool(inside.any()):
            gap = float(sure[inside].mean() - (found == truth)[inside].float().mean())
            error += abs(gap) * float(inside.sum()) / max(float(flakes.sum()), 1.0)
    figures["ece_not_substrate"] = round(error, 4)
    return figures


@torch.no_grad()  # type: ignore[misc, untyped-decorator, unused-ignore]
def _join_oddity(module: FlakeNetModule, rows: np.ndarray) -> dict[str, float]:
    """Logistic regression of learnt oddity and distance, folded in; 0 flags few ordinary frames."""
    strange = rows[:, 2] > 0.5
    if strange.all() or not strange.any():
        return {}
    inputs = np.concatenate([rows[:, :2], np.ones((len(rows), 1))], axis=1)
    balance = np.where(strange, 0.5 / strange.mean(), 0.5 / (~strange).mean())
    weights = np.array([1.0, 0.0, 0.0])
    for _ in range(200):  # Newton steps, a little ridge
        p = 1.0 / (1.0 + np.exp(-np.clip(inputs @ weights, -30.0, 30.0)))
        slope = inputs.T @ (balance * (p - strange)) + 1e-2 * weights
        bend = (inputs * (balance * p * (1.0 - p))[:, None]).T @ inputs + 1e-2 * np.eye(3)
        weights = weights - 0.5 * np.linalg.solve(bend, slope)
    score = inputs @ weights
    level = float(np.quantile(score[~strange], 0.98))
    gain, distance_gain, bias = (float(w) for w in weights)
    last = module.odd[2]
    last.weight *= gain
    last.bias.copy_(last.bias * gain + bias - level)
    module.distance_gain.fill_(distance_gain)
    ordinary = np.sort(score[~strange])
    ranks = np.searchsorted(ordinary, score[strange]) / len(ordinary)
    return {
        "odd_auroc": round(float(ranks.mean()), 4),
        "odd_found": round(float((score[strange] > level).mean()), 4),
    }


def export(
    module: FlakeNetModule,
    figures: dict[str, float],
    out: Path,
    recipe: Recipe,
    fixed: tuple[int, int] | None = None,
) -> Card:
    """Write the network and its card. fixed: rows and columns of the grid, None for any size."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "flakenet.onnx"
    rows, columns = fixed or (64, 64)
    axes = {0: "n"} if fixed else {0: "n", 2: "rows", 3: "columns"}
    with warnings.catch_warnings():
        # The newer exporter needs one more package and folds no normalisation.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            copy.deepcopy(module).cpu().float().eval(),
            (torch.zeros(1, PLANES, rows, columns),),
            str(path),
            input_names=["evidence"],
            output_names=["answer"],
            dynamic_axes={"evidence": axes, "answer": axes},
            opset_version=17,
            dynamo=False,
        )
    side = fixed or (-1, -1)
    card = Card(
        name="FlakeNet",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameters=sum(p.numel() for p in module.parameters()),
        input=Tensor(
            name="evidence",
            shape=(-1, PLANES, *side),
            meaning="planes of inference.flakes.evidence on a quarter of the photograph, -1..1; "
            "rows and columns multiples of 8",
        ),
        output=Tensor(
            name="answer",
            shape=(-1, OUTPUTS, *side),
            meaning="of four half-resolution pixels each: logits of "
            + ", ".join(CLASSES)
            + "; then four logits of a border; then oddity of the place, > 0 odd",
        ),
        training_command=f"{recipe.command} --seed {recipe.seed}",
        training_data="simulator.flake_frames, domain train",
        figures={name: float(value) for name, value in figures.items()},
        licence="MIT",
    )
    text = json.dumps(card.model_dump(), indent=1)
    card_path(path).write_text(text + "\n", encoding="utf-8")
    if not all(math.isfinite(v) for v in figures.values()):
        raise RuntimeError(f"training diverged: {figures}")
    return card


def with_device(recipe: Recipe) -> Recipe:
    """The recipe on a GPU where there is one."""
    return replace(recipe, device="cuda") if torch.cuda.is_available() else recipe
