"""References: what is one, what is none, and what can be nothing else and is wrong."""

from __future__ import annotations

import pytest

from meshd.prompts.reference import (
    REFERENCE_CHARACTERS_MAX,
    BadReference,
    read_label,
    read_reference,
    read_version,
)


@pytest.mark.parametrize(
    ("text", "name", "selector", "label", "exact", "variables"),
    [
        ("prompt://summarise", "summarise", "production", "production", "", {}),
        ("prompt://summarise@", "summarise", "production", "production", "", {}),
        ("prompt://a.b-c_1@staging", "a.b-c_1", "staging", "staging", "", {}),
        ("prompt://summarise@^1.2", "summarise", "^1.2", "", "", {}),
        ("prompt://summarise@1.2.0", "summarise", "1.2.0", "", "1.2.0", {}),
        ("prompt://summarise@1.2", "summarise", "1.2", "", "", {}),
        ("prompt://summarise@v1.2.0", "summarise", "v1.2.0", "", "", {}),
        ("prompt://summarise@2.0.0-beta.1", "summarise", "2.0.0-beta.1", "", "2.0.0-beta.1", {}),
        ("prompt://summarise@>=1 <2", "summarise", ">=1 <2", "", "", {}),
        ("prompt://summarise@%5E1.2", "summarise", "^1.2", "", "", {}),
        ("prompt://summarise?topic=the+bees&n=%C3%BC%26", "summarise", "production", "production", "",
         {"topic": "the bees", "n": "ü&"}),
        ("prompt://summarise@^1?topic=", "summarise", "^1", "", "", {"topic": ""}),
        ("prompt://summarise@^1?topic=a?b@c=d", "summarise", "^1", "", "", {"topic": "a?b@c=d"}),
    ],
)  # fmt: skip
def test_what_is_a_reference(
    text: str, name: str, selector: str, label: str, exact: str, variables: dict[str, str]
) -> None:
    found = read_reference(text)
    assert found is not None
    assert (found.name, found.selector.text, found.selector.label, found.selector.exact) == (
        name, selector, label, exact,
    )  # fmt: skip
    assert found.variables == variables


@pytest.mark.parametrize(
    "text",
    [
        "",
        "summarise",
        "see prompt://summarise",
        " prompt://summarise",
        "prompt:summarise",
        "prompt://summarise is broken, why?",
        "prompt://summarise\n",
        "prompt://summarise?\nWhat does this mean?",
        "prompt://summarise@^1\nand more",
        "PROMPT://summarise",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    assert read_reference(text) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("prompt://", "no name"),
        ("prompt://Summarise", "no name"),
        ("prompt://../../etc/passwd", "no name"),
        ("prompt://a/b", "no name"),
        ("prompt://" + "a" * 64, "no name"),
        ("prompt://ü", "no name"),
        ("prompt://summarise@^^1", "no range"),
        ("prompt://summarise@Production", "no range"),
        ("prompt://summarise@%FF", "UTF-8"),
        ("prompt://summarise?topic", "no variable"),
        ("prompt://summarise?=x", "no variable"),
        ("prompt://summarise?a=1&", "no variable"),
        ("prompt://summarise?a=1&a=2", "two values"),
        ("prompt://summarise?a=%FF", "UTF-8"),
        ("prompt://summarise?" + "&".join(f"v{n}=" for n in range(65)), "more than 64"),
        ("prompt://summarise?a=" + "x" * REFERENCE_CHARACTERS_MAX, "more than"),
        ("prompt://summarise@" + "1 || " * 20 + "1", "alternatives"),
    ],
)
def test_what_can_be_nothing_else_and_is_wrong(text: str, word: str) -> None:
    with pytest.raises(BadReference, match=word):
        read_reference(text)


@pytest.mark.parametrize(
    "text", ["1", "1.2", "v1.2.0", "1.2.0+build", "01.2.0", "1.2.0 ", "", "1.2.0-" + "a" * 80, "x"]
)
def test_what_is_no_version_of_a_prompt(text: str) -> None:
    with pytest.raises(ValueError, match="no version"):
        read_version(text)


@pytest.mark.parametrize("text", ["x", "v1", "Production", "", "1", "a b", "a" * 33, "*"])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(ValueError, match="no label"):
        read_label(text)
