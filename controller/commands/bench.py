"""`scopeloop bench`: the budgets, measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.status import Status

from controller import figures
from controller.errors import BadSettings
from controller.record import rundir


def print_benches(
    name: str,
    console: Console,
    *,
    quick: bool,
    seed: int,
    jobs: int | None,
    only: Sequence[str],
    most_s: float | None,
    out: Path | None,
) -> None:
    """Run one bench, or all; prints its table and writes its JSON.

    A long bench says how far it is and leaves its rows so far in `out`, so that an end from outside
    loses nothing.
    """
    from controller.bench import BENCHES, Report, run_bench

    if name == "list":
        for key, entry in BENCHES.items():
            console.print(f"[bold]{key}[/]  {entry.description}")
        return
    if name != "all" and name not in BENCHES:
        raise BadSettings("", "bench", repr(name), f"all, list, {', '.join(BENCHES)}")
    rows: list[figures.Row] = []

    def write(found: Sequence[figures.Row] = ()) -> None:
        if out is not None:
            with rundir.writing(out):
                figures.write_json(out, name, [*rows, *found], seed)

    for key in BENCHES if name == "all" else (name,):
        with console.status(f"bench {key}") as status:

            def say(words: str, key: str = key, status: Status = status) -> None:
                status.update(f"bench {key}: {words}")

            report = Report(say, jobs=jobs, only=tuple(only), most_s=most_s, partial=write)
            found = run_bench(key, quick=quick, seed=seed, report=report)
        figures.show(console, key, found)
        rows += found
        if out is not None:
            for title, svg in report.pictures.items():
                picture = out.with_name(f"{out.stem}_{title}.svg")
                with rundir.writing(picture):
                    picture.parent.mkdir(parents=True, exist_ok=True)
                    picture.write_text(svg, encoding="utf-8")
    write()
