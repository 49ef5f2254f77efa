"""A crystal that nobody has built in: its card says thickness and index, and that is enough.

A card is a TOML file:

    name = "MoTe2"
    layer_thickness_nm = 0.70
    source = "B. Munkhbat et al., ACS Photonics 9, 2398 (2022), in plane"

    [index]                       # n + ik, k >= 0 absorbing; in the plane of the layers
    wavelength_nm = [400, 500, 600, 700]
    n = [3.42, 4.56, 4.37, 4.86]
    k = [2.68, 2.56, 1.90, 2.13]

or, for a crystal whose index hardly changes, `n = 2.2` and `k = 0.0` without wavelengths. The key
by which settings call it is the name of the file, `mote2.toml`. A table has to cover 450 to 650 nm,
where a colour camera sees; outside of it the end values hold.

A wrong card is refused with its file, its key, what stood there and what is allowed: an index with
a slipped comma would otherwise count layers, wrongly and with confidence.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from inference.api import BadModel
from inference.flakes.materials import MATERIALS, IndexCurve, Material, constant_curve

_KEYS = ("name", "layer_thickness_nm", "source", "corner_deg", "index")
_INDEX_KEYS = ("wavelength_nm", "n", "k")
_MUST_COVER_NM = (450.0, 650.0)
_MOST_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class MaterialCard:
    """What a card says; equal cards are equal, so that ladders can be remembered."""

    key: str  # what settings call it: the file's name
    name: str
    layer_thickness_nm: float
    source: str
    wavelength_nm: tuple[float, ...]  # (): n and k have one value each
    n: tuple[float, ...]
    k: tuple[float, ...]
    corner_deg: float = 60.0

    def material(self) -> Material:
        """The crystal, as those built in are."""
        return _material(self)


@lru_cache(maxsize=64)
def _material(card: MaterialCard) -> Material:
    curve = constant_curve(f"{card.key}/card", complex(card.n[0], card.k[0]), card.source)
    if card.wavelength_nm:
        index = np.asarray(card.n) + 1j * np.asarray(card.k)
        grid = np.asarray(card.wavelength_nm)
        curve = IndexCurve(f"{card.key}/card", card.source, "", grid, index)
    return Material(card.key, card.name, card.layer_thickness_nm, curve, card.corner_deg)


def load_cards(places: Iterable[str | Path]) -> tuple[MaterialCard, ...]:
    """Cards from files, and from all `*.toml` of folders. Raises BadModel, naming file and key."""
    found: dict[str, tuple[MaterialCard, Path]] = {}
    for place in map(Path, places):
        files = sorted(place.glob("*.toml")) if place.is_dir() else [place]
        if not files:
            raise BadModel(f"{place}: a folder without material cards (*.toml)")
        for file in files:
            card = load_card(file)
            if card.key in found and found[card.key][1].resolve() != file.resolve():
                raise BadModel(f"{file}: {card.key!r} is the card {found[card.key][1]} as well")
            found[card.key] = card, file
    return tuple(card for card, _ in found.values())


def load_card(path: Path) -> MaterialCard:
    """Read one card. Raises BadModel, naming file, key, value and what is allowed."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadModel(f"{path}: cannot be read as a material card: {error}") from error
    _only_known(path, "", table, _KEYS)
    key = path.stem.lower()
    if re.fullmatch(r"[a-z][a-z0-9_]{0,31}", key) is None:
        raise BadModel(
            f"{path}: the file's name is the material's key: a letter, then letters, digits and _"
        )
    if key in MATERIALS:
        raise BadModel(f"{path}: {key!r} is built in; give the file another name")
    index = table.get("index")
    if not isinstance(index, dict):
        raise _bad(path, "index", index, "a table with n, k and, unless they are constants, "
                   "wavelength_nm")  # fmt: skip
    _only_known(path, "index.", index, _INDEX_KEYS)
    wavelength_nm: tuple[float, ...] = ()
    if "wavelength_nm" in index:
        wavelength_nm = _numbers(path, index, "wavelength_nm", 100.0, 5_000.0)
        if any(b <= a for a, b in pairwise(wavelength_nm)):
            raise _bad(path, "index.wavelength_nm", "not rising", "numbers that rise")
        first, last = _MUST_COVER_NM
        if wavelength_nm[0] > first or wavelength_nm[-1] < last:
            span = f"{wavelength_nm[0]:g}..{wavelength_nm[-1]:g}"
            raise _bad(path, "index.wavelength_nm", span, f"at least {first:g}..{last:g} nm")
    n = _numbers(path, index, "n", 0.05, 12.0, wavelength_nm)
    k = _numbers(path, index, "k", 0.0, 12.0, wavelength_nm)
    return MaterialCard(
        key=key,
        name=_text(path, table, "name"),
        layer_thickness_nm=_number(path, table, "layer_thickness_nm", 0.1, 10.0),
        source=_text(path, table, "source"),
        wavelength_nm=wavelength_nm,
        n=n,
        k=k,
        corner_deg=_number(path, {"corner_deg": 60.0, **table}, "corner_deg", 30.0, 120.0),
    )


def _only_known(path: Path, prefix: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise BadModel(f"{path}: no such key {prefix}{key}; known here: {', '.join(known)}")


def _bad(path: Path, key: str, value: object, allowed: str) -> BadModel:
    shown = "missing" if value is None else str(value)[:60]
    return BadModel(f"{path}: {key} is {shown}; allowed: {allowed}")


def _text(path: Path, table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= 500:
        raise _bad(path, key, value, "a text of 1 to 500 characters")
    return value.strip()


def _number(path: Path, table: Mapping[str, Any], key: str, low: float, high: float) -> float:
    return _checked(path, key, table.get(key), low, high)


def _checked(path: Path, key: str, value: object, low: float, high: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise _bad(path, key, value, f"a number in {low:g}..{high:g}")
    return float(value)  # type: ignore[arg-type]


def _numbers(
    path: Path,
    index: Mapping[str, Any],
    key: str,
    low: float,
    high: float,
    beside: tuple[float, ...] | None = None,
) -> tuple[float, ...]:
    """A list as long as `beside`; where that is empty, one number. None: a list of any length."""
    value, where = index.get(key), f"index.{key}"
    if beside == ():
        if isinstance(value, list):
            raise _bad(path, where, "a list", "one number, as long as there is no wavelength_nm")
        return (_checked(path, where, value, low, high),)
    if not isinstance(value, list):
        raise _bad(path, where, value, f"a list of numbers in {low:g}..{high:g}")
    if beside is None and not 2 <= len(value) <= _MOST_ROWS:
        raise _bad(path, where, f"{len(value)} numbers", f"2 to {_MOST_ROWS} of them")
    if beside is not None and len(value) != len(beside):
        wanted = f"{len(beside)}, one for each wavelength_nm"
        raise _bad(path, where, f"{len(value)} numbers", wanted)
    return tuple(_checked(path, f"{where}[{i}]", v, low, high) for i, v in enumerate(value))
