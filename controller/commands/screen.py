"""What commands share on the screen: a bar, and figures with their file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from controller import figures
from controller.record import rundir


@contextmanager
def bar(console: Console, words: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; call what it gives with how many are done, of how many."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(words, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def publish(
    console: Console,
    command: str,
    rows: Sequence[figures.Row],
    *,
    seed: int | None = None,
    out: Path | None = None,
) -> None:
    """Print the table of a command such as "evaluate focus", and write its JSON where asked."""
    figures.show(console, command, rows)
    if out is not None:
        with rundir.writing(out):
            figures.write_json(out, command.split()[-1], rows, seed)
