"""The exit wave's network as a torch module: one encoder, a decoder for each of two corrections.

A plain U-Net of 3 x 3 convolutions and ReLUs on blocks of 2 x 2 pixels, its skips added. The last
layers start at zero, so that it begins as the classical answer. The lens is no part of it: what it
says of the wave is put through the known transfer, both in training (`seen`) and in use.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from inference.restore.exit_wave import PLANES, SCALE

WIDTHS = (24, 48, 96, 128)


def _pair(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1),
        nn.ReLU(),
    )


class _Decoder(nn.Module):  # type: ignore[misc, unused-ignore]
    """From the deepest features back to one plane."""

    def __init__(self) -> None:
        super().__init__()
        steps = list(zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(high, low, 2, 2) for high, low in steps)
        self.mix = nn.ModuleList(_pair(low, low) for _, low in steps)
        self.last = nn.Conv2d(WIDTHS[0], 4, 3, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, levels: list[torch.Tensor]) -> torch.Tensor:
        """levels: features, finest first."""
        at = levels[-1]
        for up, mix, skip in zip(self.up, self.mix, levels[-2::-1], strict=True):
            at = mix(up(at) + skip)
        return functional.pixel_shuffle(self.last(at), 2)


class ExitWaveModule(nn.Module):  # type: ignore[misc, unused-ignore]
    """(n, PLANES, h, w) -> (n, 2, h, w): what to add to amplitude and phase, in `SCALE`."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (4 * PLANES, *WIDTHS[:-1])
        self.encoder = nn.ModuleList(
            _pair(few, many, 1 if level == 0 else 2)
            for level, (few, many) in enumerate(zip(inputs, WIDTHS, strict=True))
        )
        self.amplitude = _Decoder()
        self.phase = _Decoder()

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """See the class."""
        at = functional.pixel_unshuffle(planes, 2)
        levels = []
        for block in self.encoder:
            at = block(at)
            levels.append(at)
        return torch.cat([self.amplitude(levels), self.phase(levels)], dim=1)


def wave_of(planes: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """The wave, (n, h, w) complex, of the network's inputs and its answer."""
    amplitude = 1.0 + SCALE * correction[:, 0].float()
    phase = SCALE * (planes[:, 2] + correction[:, 1].float())
    return torch.polar(amplitude, phase)


def seen(wave: torch.Tensor, passed: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """What the camera sees: passed, the lens; damping, the camera's; both (n, h, w) of `fft2`."""
    image = torch.fft.ifft2(torch.fft.fft2(wave) * passed).abs().square()
    return torch.fft.ifft2(torch.fft.fft2(image) * damping).real


def export(module: ExitWaveModule, path: Path) -> int:
    """Write the ONNX file; returns how many parameters it has."""
    with warnings.catch_warnings():
        # The newer exporter needs one more package.
        warnings.simplefilter("ignore", DeprecationWarning)
        free = {0: "n", 2: "h", 3: "w"}
        torch.onnx.export(
            module,
            (torch.zeros(1, PLANES, 64, 64),),
            str(path),
            input_names=["planes"],
            output_names=["correction"],
            dynamic_axes={"planes": free, "correction": free},
            opset_version=17,
            dynamo=False,
        )
    return sum(int(p.numel()) for p in module.parameters())
