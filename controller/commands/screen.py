"""What commands share on the screen: a bar, and figures with their file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import Progress

from controller import figures
from controller.record import rundir


class Told(Protocol):
    """What long work tells of itself."""

    def __call__(self, done: int, total: int, doing: str = "") -> None:
        """How many are done, of how many; of what, where that changes."""
        ...


@contextmanager
def bar(console: Console, words: str) -> Iterator[Told]:
    """A progress bar with the time left; call what it gives."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(words, total=None)

        def told(done: int, total: int, doing: str = "") -> None:
            description = f"{words}: {doing}" if doing else words
            progress.update(task, completed=done, total=total, description=description)

        yield told


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
