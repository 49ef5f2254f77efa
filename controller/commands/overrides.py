"""What the command line changes in a file of settings, and how a run remembers it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.errors import BadSettings

_CHANGES = "# changed by the command line:"
_CHANGE = "# --set "


def overridden(tables: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Settings with `KEY=VALUE` words applied; VALUE is TOML, or a bare string."""
    for word in overrides:
        key, is_pair, text = word.partition("=")
        if not is_pair or not key.strip() or len(word.splitlines()) > 1:
            raise BadSettings("--set", "", repr(word), "KEY=VALUE, as in scan.max_tiles=20")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *path, last = key.strip().split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise BadSettings("--set", key, repr(text), f"a key in a table; {part} is none")
        table[last] = value
    return tables


def material_words(
    tables: Mapping[str, Any], cards: Iterable[Path], materials: Sequence[str]
) -> list[str]:
    """What to change so that crystals of these cards are looked for and wanted as well.

    materials: looked for, and wanted, where the settings say nothing.
    """
    files = [str(path) for path in cards]
    if not files:
        return []
    keys = [Path(file).stem.lower() for file in files]
    added = {
        "detector.material_cards": (files, ()),
        "detector.materials": (keys, materials),
        "wanted.materials": (keys, materials),
    }
    words = []
    for name, (more, usual) in added.items():
        section, key = name.split(".")
        before = tables.get(section, {}).get(key, usual)
        if not isinstance(before, list | tuple):
            before = [before]  # wrong, and refused as such later
        kept = [*before, *(one for one in more if one not in before)]
        words.append(f"{name}={json.dumps(kept)}")  # a JSON list of strings is a TOML one
    return words


def detector_table(
    materials: Sequence[str], cards: Sequence[Path], oxide_nm: float
) -> dict[str, Any]:
    """The `[detector]` of a command without a file of settings."""
    keys = [path.stem.lower() for path in cards]
    return {
        "materials": [*materials, *(key for key in keys if key not in materials)],
        "material_cards": [str(path) for path in cards],
        "oxide_nm": oxide_nm,
    }


def with_words(text: str, words: Sequence[str]) -> str:
    """The settings as the user wrote them, and below what the command line changed."""
    if not words:
        return text
    return "\n".join([text.rstrip(), "", _CHANGES, *(f"{_CHANGE}{word}" for word in words), ""])


def words_in(text: str) -> list[str]:
    """What the command line changed, out of a run's settings."""
    lines = text.splitlines()
    if _CHANGES not in lines:
        return []
    last = len(lines) - 1 - lines[::-1].index(_CHANGES)
    return [line.removeprefix(_CHANGE) for line in lines[last + 1 :] if line.startswith(_CHANGE)]
