"""What `scopeloop search` shows: a bar while it runs, a table at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from controller.messages import CatalogueEntry, Phase
from controller.search.run import SearchResult
from controller.search.scorecard import Scorecard
from controller.search.state import SearchState
from controller.settings import Settings


class _Rate(ProgressColumn):
    """Steps a minute on the instrument's clock."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("per_min")
        return Text("" if not rate else f"{rate:.0f}/min", style="cyan")


class SearchProgress:
    """A bar that names the phase, the rate and the time left; a `Watcher`."""

    def __init__(self, console: Console, clock: str) -> None:
        self._clock = clock
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: Any = None
        self._began: tuple[int, float | None] = (0, None)

    def __enter__(self) -> SearchProgress:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def phase(self, phase: Phase, total: int, done: int) -> None:
        """Begin a bar."""
        self._task = self._progress.add_task(f"{phase:9s}", total=total, completed=done)
        self._began = (done, None)

    def step(self, phase: Phase, done: int, at_s: float) -> None:
        """Move it."""
        done_before, began_s = self._began
        if began_s is None:
            self._began = (done, at_s)
        rate = None
        if began_s is not None and at_s > began_s:
            rate = 60.0 * (done - done_before) / (at_s - began_s)
        if self._task is not None:
            self._progress.update(self._task, completed=done, per_min=rate)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(f"[dim]{escape(text)}[/]", highlight=False)


def print_result(
    console: Console,
    settings: Settings,
    state: SearchState,
    entries: Sequence[CatalogueEntry],
    result: SearchResult,
    card: Scorecard | None,
) -> None:
    """The closing table."""
    finished = result.finished
    least = f"{settings.wanted.min_area_um2:g} µm²"
    table = Table(
        title=f"terraces of at least {least}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("material")
    for heading in ("layers", "entries"):
        table.add_column(heading, justify="right")
    if card is not None:
        for heading in ("present", "found", "missed", "false", "recall", "precision"):
            table.add_column(heading, justify="right")
        for row in card.rows:
            table.add_row(
                row.material,
                str(row.layers),
                str(row.entries),
                str(row.present),
                str(row.found),
                str(row.missed),
                str(row.false),
                "-" if row.recall is None else f"{row.recall:.3f}",
                "-" if row.precision is None else f"{row.precision:.3f}",
            )
    else:
        for material in settings.wanted.materials:
            for layers in settings.wanted.layers:
                count = sum(
                    (e.material, e.layers) == (material, layers)
                    and e.area_um2 >= settings.wanted.min_area_um2
                    and e.score >= settings.wanted.min_score
                    for e in entries
                )
                table.add_row(material, str(layers), str(count))
    console.print(table)
    doubtful = [
        seen.reason.partition(":")[0]
        for (shot, _), seen in state.analysed.items()
        if shot == "tile" and not seen.in_distribution
    ]
    if doubtful:
        reason, times = Counter(doubtful).most_common(1)[0]
        console.print(
            f"[yellow]{len(doubtful)} of {finished.tiles} tiles could not be judged[/], "
            f"{times} of them: {escape(reason)}"
        )
    if finished.scan_s > 0.0 and settings.instrument.driver != "replay":
        per_min = 60.0 * finished.tiles / finished.scan_s
        share = finished.scan_bound_s / finished.scan_s
        console.print(
            f"{finished.tiles} tiles at {per_min:.0f} tiles/min on the instrument's clock, "
            f"{100 * share:.1f} % of the scan-time bound "
            f"(moves, settling and exposures alone: {finished.scan_bound_s:.1f} s "
            f"of {finished.scan_s:.1f} s); waited {result.stalled_s:.2f} s for disk or detector"
        )
    console.print(
        f"{finished.autofocus_runs} autofocus runs for the scan, "
        f"{len(state.revisited)} flakes revisited, "
        f"{finished.frames_received} frames, {finished.frames_missing} missing, "
        f"{finished.frames_unaccounted} unaccounted for"
    )
    _print_focus(console, state)
    if card is not None and card.position_rms_um is not None:
        console.print(
            f"positions of found terraces: {card.position_rms_um:.2f} um RMS from the truth; "
            f"{card.duplicates} duplicates"
        )


def _print_focus(console: Console, state: SearchState) -> None:
    """Who focused, at what cost, and why the networks did not where they did not."""
    points = state.focus_points
    if not points:
        return
    by = Counter(point.method for point in points)
    console.print(
        f"focus measured {len(points)} times in {sum(point.frames for point in points)} frames: "
        f"{by['few_frames']} by the networks, {by['sweep']} by sweeps"
    )
    doubts = Counter(point.doubt.partition(":")[0] for point in points if point.doubt)
    for doubt, times in doubts.most_common(2):
        console.print(f"  [dim]{times} x the networks did not know: {escape(doubt)}[/]")
