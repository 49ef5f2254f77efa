"""The restoring network as a torch module, and how it becomes an ONNX file.

A plain U-Net of convolutions and ReLUs, nothing normalised: on a processor it restores twice to
five times the pixels a second of networks of the same cost with finer blocks. Skips add instead of
concatenating. It works on places of 2 x 2 pixels and two scales below; every pixel of the answer
depends on 48 pixels around it at most, so frames can be cut into tiles without a seam.

The correction starts at zero: an untrained network answers with the linear estimate.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from inference.restore.anchor import CHANNELS, PHASES

F32 = npt.NDArray[np.float32]

_LOG_SIGMA: Final = (-4.0, 3.0)  # what the network may say of its error, in units


class RestoreNetwork(nn.Module):  # type: ignore[misc, unused-ignore]
    """(n, CHANNELS, h / 2, w / 2) -> (n, 2, scale h, scale w): correction, log of its error.

    Both in units of the linear estimate's error; h and w must be multiples of 8.
    """

    def __init__(self, widths: tuple[int, int, int], scale: int = 1) -> None:
        super().__init__()
        w2, w4, w8 = widths
        self.fine = nn.Sequential(_block(CHANNELS, w2), _block(w2, w2))
        self.down4 = nn.Conv2d(w2, w4, 2, 2)
        self.at4 = nn.Sequential(_block(w4, w4), _block(w4, w4))
        self.down8 = nn.Conv2d(w4, w8, 2, 2)
        self.at8 = nn.Sequential(_block(w8, w8), _block(w8, w8))
        self.lift4 = nn.ConvTranspose2d(w8, w4, 2, 2)
        self.up4 = nn.Sequential(_block(w4, w4), _block(w4, w4))
        self.lift2 = nn.ConvTranspose2d(w4, w2, 2, 2)
        self.up2 = _block(w2, w2)
        self.head = nn.Conv2d(w2, 2 * (scale * PHASES) ** 2, 3, padding=1)
        self.out = nn.PixelShuffle(scale * PHASES)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """See the class."""
        fine = self.fine(seen)
        at4 = self.at4(self.down4(fine))
        at8 = self.at8(self.down8(at4))
        at4 = self.up4(at4 + self.lift4(at8))
        answer = self.out(self.head(self.up2(fine + self.lift2(at4))))
        low, high = _LOG_SIGMA
        return torch.cat([answer[:, :1], torch.clamp(answer[:, 1:], low, high)], dim=1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True))


def loss(answer: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(what's minimised, log error over the linear estimate's; both means over frames).

    answer: (n, 2, h, w); target: (n, h, w). The correction is judged by the logarithm of its
    error, so that no frame outweighs another; the error that's said, by its likelihood.
    """
    correction, log_sigma = answer[:, 0], answer[:, 1]
    rest = correction - target
    gain = torch.log(rest.square().mean(dim=(1, 2)) + 1e-4)
    gain = gain - torch.log(target.square().mean(dim=(1, 2)) + 1e-4)
    fixed = rest.detach().square()
    likely = 0.5 * fixed * torch.exp(-2.0 * log_sigma) + log_sigma
    ratio = gain.mean()
    return ratio + 0.1 * likely.mean(), ratio.detach()


def answers(module: nn.Module, seen: F32) -> F32:
    """What the module says of one frame, (2, h, w)."""
    with torch.no_grad():
        found: F32 = module(torch.from_numpy(seen[None])).numpy()[0]
    return found


def export(module: nn.Module, path: Path) -> int:
    """Write the ONNX file, of any size of frame; returns how many parameters it has."""
    free = {0: "n", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        # The newer exporter needs one more package.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            (torch.zeros(1, CHANNELS, 32, 32),),
            str(path),
            input_names=["seen"],
            output_names=["answer"],
            dynamic_axes={"seen": dict(free), "answer": dict(free)},
            opset_version=17,
            dynamo=False,
        )
    return sum(int(each.numel()) for each in module.parameters())
