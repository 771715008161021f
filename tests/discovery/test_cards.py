"""Agent cards: which entries one makes, and what is no card."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.discovery import cards
from meshd.discovery.cards import CardError, entries_of, read_card
from meshd.discovery.catalogue import Catalogue
from meshd.discovery.entry import Origin, Sort


def card(**changes: Any) -> dict[str, Any]:
    return {
        "name": "Recipe Agent",
        "description": "Helps with cooking",
        "version": "1.2.0",
        "skills": [
            {
                "id": "find",
                "name": "Find a recipe",
                "description": "By what is in the house",
                "tags": ["cooking", " food "],
                "examples": ["What can I make of eggs?", "cooking"],
                "x-unknown": 1,
            }
        ],
    } | changes


def test_a_card_is_the_agent_and_its_skills() -> None:
    agent, skill = entries_of(card(), "cook")

    assert (agent.sort, agent.owner, agent.name, agent.title) == (Sort.AGENT, "cook", "cook", "Recipe Agent")
    assert (agent.description, agent.version, agent.origin) == ("Helps with cooking", "1.2.0", Origin.A2A)
    assert (skill.sort, skill.owner, skill.name, skill.title) == (Sort.SKILL, "cook", "find", "Find a recipe")
    assert skill.intents == ("cooking", "food", "What can I make of eggs?")
    assert json.loads(skill.definition)["x-unknown"] == 1
    assert not skill.is_read_only
    assert "skills" not in json.loads(agent.definition)


def test_the_catalogue_takes_them() -> None:
    catalogue = Catalogue()
    catalogue.replace("cook", Origin.A2A, entries_of(card(), "cook"))

    assert [entry.key for entry in catalogue] == [(Sort.AGENT, "cook", "cook"), (Sort.SKILL, "cook", "find")]


@pytest.mark.parametrize(
    "skills",
    [None, [], [None, 1, "x", [], {}, {"id": 7}, {"id": ""}]],
)
def test_what_is_no_skill_is_left_out(skills: Any) -> None:
    assert [entry.sort for entry in entries_of(card(skills=skills), "cook")] == [Sort.AGENT]


def test_fields_of_the_wrong_type_are_empty() -> None:
    agent, skill = entries_of(
        card(description=[1], version={"a": 1}, skills=[{"id": "x", "tags": "t", "examples": [1, None, " "]}]), "cook"
    )

    assert (agent.description, agent.version) == ("", "")
    assert (skill.title, skill.description, skill.intents) == ("", "", ())


def test_a_second_skill_of_one_id_does_not_take_the_place_of_the_first() -> None:
    twice = [{"id": "find", "name": "first"}, {"id": "find", "name": "second"}]

    assert [entry.title for entry in entries_of(card(skills=twice), "cook")[1:]] == ["first"]


def test_long_texts_are_cut() -> None:
    agent, skill = entries_of(
        card(name="n" * 10_000, description="d" * 100_000, skills=[{"id": "x", "tags": [str(n) for n in range(500)]}]),
        "cook",
    )

    assert (len(agent.title), len(agent.description)) == (cards.NAME_CHARACTERS_MAX, cards.TEXT_CHARACTERS_MAX)
    assert len(skill.intents) == cards.INTENTS_MAX


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", 'no "name"'),
        (b'{"name": 7}', 'no "name"'),
        (b'{"name": "x", "skills": {"id": 1}}', "no list"),
        (b'{"name": "x", "a": ' + b"[" * 100 + b"]" * 100 + b"}", "more than 64 deep"),
        (b'{"name": "x", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "more than 64 deep"),
        (json.dumps(card(skills=[{"id": str(n)} for n in range(10_000)])).encode(), "10000 skills"),
        (b'{"name": "' + b"x" * 10_000_000 + b'"}', "10000012 bytes"),
    ],
)
def test_what_is_no_card_is_said_to_be_none(body: bytes, words: str) -> None:
    with pytest.raises(CardError, match=words):
        read_card(body)


def test_a_card_that_came_by_another_way_is_held_to_the_same() -> None:
    with pytest.raises(CardError, match="deep"):
        entries_of(card(capabilities=nested(70)), "cook")
