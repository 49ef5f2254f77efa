"""What pixels say about blur that a spectrum does not: how structure is spread over the frame.

A band's power is the same for one sharp edge and for soft texture everywhere, so a spectrum alone
takes a smooth object in focus for a blurred one. Where energy lies tells some of it: edges in focus
are few and strong, blur makes their energy wide, even and Gaussian. Here the frame is split into
octaves (a Laplacian pyramid; Burt and Adelson, IEEE Trans. Commun. 31, 532, 1983), each octave's
energy is summed in 64 blocks, and what is kept is how energies are distributed over the blocks,
which blocks have more of the finer octave, and how peaked each octave's values are. And the widths
of the steepest edges, at three scales: an edge's rise over its slope knows nothing of the rest.

Energies are counted from the frame's own total, so gain and offset drop out. Grey levels are told
by their quantiles about the mean, in spreads, and by how many pixels lie at either end of what is
there: a clipped highlight has a sharp edge at any defocus.
"""

from __future__ import annotations

import itertools
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

F32: TypeAlias = npt.NDArray[np.float32]

OCTAVES: Final = 6
_BLOCKS: Final = 8  # a side
_RANKS: Final = (63, 59, 48, 32, 12, 2)  # of the 64 blocks, by energy
_SHARP_BLOCKS: Final = 8  # of the most energy in an octave: whether they hold the finer one too
_QUANTILES: Final = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
_EDGE_SCALES: Final = 3
_EDGE_CELLS: Final = 16  # a side; each offers its steepest point
_EDGES: Final = 24
_EDGE_RANKS: Final = (2, 11, 21)  # of those, by width
_RISE_PX: Final = 9
_PER_OCTAVE: Final = 1 + len(_RANKS) + 2
OCTAVE_FEATURES: Final = (
    OCTAVES * _PER_OCTAVE + (OCTAVES - 1) + len(_QUANTILES) + _EDGE_SCALES * len(_EDGE_RANKS) + 2
)
_TINY: Final = 1e-9  # of the frame's variance: what counts as none
_AT_THE_END: Final = 0.004  # of the span of grey levels


def octave_features(grey: F32) -> F32:
    """How structure is spread over octaves and blocks, (OCTAVE_FEATURES,), each about -2..2.

    grey: (256, 256), of any gain and offset.
    """
    means, spreads = cv2.meanStdDev(grey)
    mean, spread = float(means[0, 0]), float(spreads[0, 0])
    scale = 1.0 / max(spread, _TINY * abs(mean), _TINY)
    normal = (grey - np.float32(mean)) * np.float32(scale)
    level = normal
    row: list[float] = []
    energies: list[F32] = []
    widths: list[float] = []
    for octave in range(OCTAVES):
        coarse = np.asarray(cv2.pyrDown(level), dtype=np.float32)
        detail = level - cv2.pyrUp(coarse, dstsize=(level.shape[1], level.shape[0]))
        square = np.asarray(detail * detail, dtype=np.float32)
        if square.shape[0] > _BLOCKS:
            blocks = cv2.resize(square, (_BLOCKS, _BLOCKS), interpolation=cv2.INTER_AREA)
        else:
            blocks = square
        energy = np.asarray(blocks, dtype=np.float32).ravel() + np.float32(_TINY)
        total = float(energy.mean())
        ranked = np.log(np.sort(energy)[list(_RANKS)]) - np.log(total)
        fourth = max(float(cv2.mean(square * square)[0]), _TINY * _TINY)
        peak = max(float(square.max()), _TINY)
        row += [0.25 * np.log(total), *(0.5 * ranked)]
        row += [0.5 * np.log(fourth / total**2) - 0.5, 0.25 * np.log(peak / total)]
        energies.append(energy)
        if octave < _EDGE_SCALES:
            fine = level if octave else cv2.GaussianBlur(level, (5, 5), 0.8)
            widths += _edge_widths(np.asarray(fine, dtype=np.float32))
        level = coarse
        if octave == 1:
            levels = 0.5 * np.quantile(level, _QUANTILES)  # noise is averaged away here
    for finer, coarser in itertools.pairwise(energies):
        sharp = np.argpartition(coarser, -_SHARP_BLOCKS)[-_SHARP_BLOCKS:]
        row.append(0.25 * float(np.mean(np.log(finer[sharp] / coarser[sharp]))))
    row += widths
    row += list(levels)
    low, high = float(grey.min()), float(grey.max())
    margin = _AT_THE_END * (high - low)
    for at_end in (grey >= high - margin, grey <= low + margin):
        row.append(0.5 * float(np.log10(np.count_nonzero(at_end) / grey.size + 1e-5)) + 1.0)
    return np.asarray(np.clip(row, -4.0, 4.0), dtype=np.float32)


def _edge_widths(level: F32) -> list[float]:
    """Logarithms of rise over slope at the steepest points, a few ranks of them."""
    across = cv2.Sobel(level, cv2.CV_32F, 1, 0, scale=0.125)
    down = cv2.Sobel(level, cv2.CV_32F, 0, 1, scale=0.125)
    slope2 = across * across + down * down
    side = level.shape[0] // _EDGE_CELLS
    grid = slope2.reshape(_EDGE_CELLS, side, _EDGE_CELLS, side).swapaxes(1, 2)
    cells = grid.reshape(_EDGE_CELLS * _EDGE_CELLS, side * side)
    at = cells.argmax(axis=1)
    steep = cells[np.arange(len(cells)), at]
    chosen = np.argpartition(steep, -_EDGES)[-_EDGES:]
    rows = chosen // _EDGE_CELLS * side + at[chosen] // side
    cols = chosen % _EDGE_CELLS * side + at[chosen] % side
    reach = _RISE_PX // 2
    padded = cv2.copyMakeBorder(level, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_RISE_PX, _RISE_PX))[rows, cols]
    rise = windows.max(axis=(1, 2)) - windows.min(axis=(1, 2))
    width = np.sort(np.log((rise + _TINY) / (np.sqrt(steep[chosen]) + _TINY)))
    return [0.8 * float(width[rank]) - 1.0 for rank in _EDGE_RANKS]
