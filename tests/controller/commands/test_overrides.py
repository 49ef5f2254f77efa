"""What the command line changes, and how it is remembered."""

from pathlib import Path

import pytest

from controller.commands.overrides import (
    detector_table,
    material_words,
    overridden,
    with_words,
    words_in,
)
from controller.errors import BadSettings

CARDS = [Path("cards/MoTe2.toml"), Path('odd "name".toml')]
CHANGES: list[tuple[dict, list[str], dict]] = [
    ({}, ["a.b=1"], {"a": {"b": 1}}),
    ({"a": {"b": 1, "c": 2}}, ["a.b=[1, 2]"], {"a": {"b": [1, 2], "c": 2}}),
    ({}, ["a=plain words", "b='quoted'", "c="], {"a": "plain words", "b": "quoted", "c": ""}),
    ({}, ["a.b.c=true", "a.b.d=1.5"], {"a": {"b": {"c": True, "d": 1.5}}}),
]


@pytest.mark.parametrize(("tables", "words", "wanted"), CHANGES)
def test_values_are_toml_or_bare_words(tables, words, wanted):
    assert overridden(tables, words) == wanted


@pytest.mark.parametrize("word", ["", "a", "=1", "a=1\nb=2"])
def test_what_is_no_pair_is_refused(word):
    with pytest.raises(BadSettings, match="KEY=VALUE"):
        overridden({}, [word])


def test_a_key_under_a_number_is_refused():
    with pytest.raises(BadSettings, match="b is none"):
        overridden({"a": {"b": 1}}, ["a.b.c=1"])


@pytest.mark.parametrize("words", [[], ["a=1"], ["a='x'", "b.c=[1]"]])
def test_words_come_back(words):
    text = "[run]\nname = 'x'\n# --set never=mind\n"
    assert words_in(with_words(text, words)) == words
    assert words_in(with_words(with_words(text, ["old=1"]), words)) == (words or ["old=1"])


def test_materials_are_looked_for_and_wanted_too():
    tables = {"detector": {"materials": ["mos2"]}, "wanted": {"materials": ["mos2", "mote2"]}}
    changed = overridden(tables, material_words(tables, CARDS, ("graphene",)))
    assert changed["detector"]["materials"] == ["mos2", "mote2", 'odd "name"']
    assert changed["detector"]["material_cards"] == [str(card) for card in CARDS]
    assert changed["wanted"]["materials"] == ["mos2", "mote2", 'odd "name"']


def test_materials_where_the_settings_say_nothing():
    changed = overridden({}, material_words({}, CARDS[:1], ("graphene",)))
    assert changed["detector"]["materials"] == ["graphene", "mote2"]
    assert changed["wanted"]["materials"] == ["graphene", "mote2"]
    assert material_words({}, [], ("graphene",)) == []


def test_a_table_without_a_file():
    table = detector_table(("graphene", "mote2"), CARDS[:1], 285.0)
    assert table["materials"] == ["graphene", "mote2"]
    assert table["material_cards"] == [str(CARDS[0])]
    assert table["oxide_nm"] == 285.0
