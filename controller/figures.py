"""Figures that anyone can print: the one form of every `bench` and `evaluate` result.

A table for the eye and a JSON file for the record:
`{"name", "machine", "versions", "seed", "rows": [{"name", "value", "unit", "bar", "met",
"baseline", "n", "ci95"}]}`. Fields that don't apply are null; `met` is null where there is no bar.
A missed bar is a row, not an error.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inference.figures import Row as Row

VERSIONS_OF = ("scopeloop", "numpy", "opencv-python-headless", "zarr", "pydantic")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor()


def versions() -> dict[str, str]:
    """Installed versions of what computes the figures."""
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def as_json(name: str, rows: Sequence[Row], seed: int | None) -> dict[str, Any]:
    """The record of one bench or evaluation."""
    listed = []
    for row in rows:
        fields = asdict(row)
        fields["met"] = row.met
        for key in ("value", "bar", "baseline"):  # JSON knows no NaN and no infinity
            number = fields[key]
            fields[key] = number if number is None or math.isfinite(number) else None
        listed.append(fields)
    return {
        "name": name,
        "machine": machine(),
        "versions": versions(),
        "seed": seed,
        "rows": listed,
    }


def write_json(path: Path, name: str, rows: Sequence[Row], seed: int | None) -> None:
    """Write the record; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(name, rows, seed), indent=1) + "\n", encoding="utf-8")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def _interval(ci95: tuple[float, float]) -> str:
    return "..".join(f"{end:.3g}" if math.isfinite(end) else str(end) for end in ci95)


def _bar(row: Row) -> str:
    if row.bar is None:
        return ""
    return f"{'<=' if row.better == 'lower' else '>='} {_number(row.bar)}"


def show(console: Console, name: str, rows: Sequence[Row]) -> None:
    """Print the table; columns in which nothing stands are left out."""
    table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    columns: dict[str, list[str]] = {
        "figure": [row.name for row in rows],
        "value": [_number(row.value) for row in rows],
        "95 %": ["" if row.ci95 is None else _interval(row.ci95) for row in rows],
        "unit": [row.unit for row in rows],
        "bar": [_bar(row) for row in rows],
        "met": [{None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.met] for row in rows],
        "baseline": ["" if row.baseline is None else _number(row.baseline) for row in rows],
        "n": ["" if row.n is None else str(row.n) for row in rows],
        "note": [escape(row.note) for row in rows],
    }
    numbers = {"value", "95 %", "bar", "baseline", "n"}
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    for heading in shown:
        table.add_column(
            heading,
            justify="right" if heading in numbers else "left",
            no_wrap=heading not in {"figure", "note"},  # numbers are never cut
            ratio=1 if heading == "note" else None,
            min_width=20 if heading == "note" else None,
        )
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    console.print(table)
