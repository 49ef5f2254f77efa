"""Error against frames, as one SVG written by hand: what each method knew after each frame.

One curve a method, the median over its runs of the error of what it believed after so many frames,
at most as many as its median run took; a dot where that run ended. Both axes are logarithmic.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from controller.bench.focus_baselines.problem import RunResult

_WIDTH: Final = 960
_HEIGHT: Final = 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 640, 50, 500
_LEAST_DOF, _MOST_DOF = 0.01, 50.0
_FRAME_TICKS: Final = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50)
_DOF_TICKS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_INK: Final = (
    *("#7f7f7f", "#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2"),
    *("#bcbd22", "#17becf", "#aec7e8", "#ffbb78", "#98df8a", "#c5b0d5", "#c49c94"),
)


def error_against_frames(results: Sequence[RunResult], first: str) -> str:
    """The SVG; `first` is drawn last, in red, and stands first in the key."""
    names = sorted({r.method for r in results if r.trace_error_dof}, key=lambda n: (n != first, n))
    names = [n for n in names if not n.startswith("measure ")]
    most = max(
        [float(np.median([r.frames for r in results if r.method == n])) for n in names] or [10]
    )
    most = max(8.0, 1.05 * most)

    def x(frames: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * math.log(frames) / math.log(most)

    def y(dof: float) -> float:
        share = math.log(max(dof, _LEAST_DOF) / _LEAST_DOF) / math.log(_MOST_DOF / _LEAST_DOF)
        return _BOTTOM - (_BOTTOM - _TOP) * min(share, 1.0)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="28" font-size="16">Error against frames, median of runs</text>',
    ]
    for tick in _FRAME_TICKS:
        if tick <= most:
            parts += [
                _line(x(tick), _TOP, x(tick), _BOTTOM),
                _text(x(tick), _BOTTOM + 18, str(tick)),
            ]
    for dof in _DOF_TICKS:
        parts += [
            _line(_LEFT, y(dof), _RIGHT, y(dof)),
            _text(_LEFT - 8, y(dof) + 4, f"{dof:g}", "end"),
        ]
    parts += [
        _text((_LEFT + _RIGHT) / 2, _BOTTOM + 40, "frames, verification included"),
        f'<text transform="translate(20 {(_TOP + _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">error of what is believed, DOF</text>',
        _line(_LEFT, y(0.5), _RIGHT, y(0.5), "#333", "4 3"),
    ]
    for k, name in reversed(list(enumerate(names))):
        ink = "#d62728" if name == first else _INK[k % len(_INK)]
        wide = 3 if name == first else 1.5
        runs = [r for r in results if r.method == name and r.trace_error_dof]
        last = max(1, round(float(np.median([r.frames for r in runs]))))
        points = []
        for frame in range(1, last + 1):
            # A run that ended sooner stays where it ended.
            errors = [r.trace_error_dof[min(frame, len(r.trace_error_dof)) - 1] for r in runs]
            points.append((x(frame), y(float(np.median(errors)))))
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        end_x, end_y = points[-1]
        row = _TOP + 8 + 24 * k
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="{wide}"/>',
            f'<circle cx="{end_x:.1f}" cy="{end_y:.1f}" r="{2 + wide}" fill="{ink}"/>',
            f'<line x1="{_RIGHT + 20}" x2="{_RIGHT + 44}" y1="{row}" y2="{row}" '
            f'stroke="{ink}" stroke-width="{wide}"/>',
            _text(_RIGHT + 50, row + 4, f"{name} ({last})", "start"),
        ]
    return "\n".join([*parts, "</svg>\n"])


def _line(
    x1: float, y1: float, x2: float, y2: float, ink: str = "#ddd", dashes: str = "none"
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{ink}" '
        f'stroke-dasharray="{dashes}"/>'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
