"""What the command line changes in a file of settings, and how a run remembers it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
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
