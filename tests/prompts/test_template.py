"""Texts with variables: what they come to, and what is no template."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.prompts.template import (
    RENDERED_CHARACTERS_MAX,
    TEXT_BYTES_MAX,
    Template,
    TemplateError,
    VariableError,
    parse,
)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("Summarise {{topic}}.", "Summarise bees."),
        ("{{ topic }}{{topic}}", "beesbees"),
        (r"\{{topic}}", "{{topic}}"),
        (r"\\{{topic}}", "\\bees"),
        (r"\\\{{topic}}", r"\{{topic}}"),
        (r"C:\topic \ {{topic}}", r"C:\topic \ bees"),
        ("}} { } {{topic}} }}", "}} { } bees }}"),
        ("no variable", "no variable"),
    ],
)
def test_what_a_text_comes_to(text: str, rendered: str) -> None:
    template = parse(text)
    assert template.render({"topic": "bees"} if "bees" in rendered else {}) == rendered


def test_a_value_is_data() -> None:
    template = parse("{{a}} and {{b}}")
    assert template.render({"a": "{{b}}", "b": r"\{{a}} prompt://other"}) == r"{{b}} and \{{a}} prompt://other"


def test_variables_stand_in_their_order_once() -> None:
    assert parse("{{b}} {{a}} {{b}}").variables == ("b", "a")


@given(st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip))
def test_an_escaped_text_stands_for_itself(text: str) -> None:
    # Backslashes before the braces are doubled, and one more says that the braces are meant.
    escaped, at = "", 0
    while (found := text.find("{{", at)) != -1:
        slashes = len(text[at:found]) - len(text[at:found].rstrip("\\"))
        escaped += text[at:found] + "\\" * slashes + "\\{{"
        at = found + 2
    assert parse(escaped + text[at:]).render({}) == text


@pytest.mark.parametrize(
    ("text", "line", "column", "word"),
    [
        ("", 1, 1, "has a text"),
        (" \n ", 1, 1, "has a text"),
        ("one\ntwo {{}}", 2, 5, "begins no variable"),
        ("{{", 1, 1, "begins no variable"),
        ("{{1st}}", 1, 1, "begins no variable"),
        ("{{topic}", 1, 1, "begins no variable"),
        ("{{to pic}}", 1, 1, "begins no variable"),
        ("a\nb\x1b[31m", 2, 2, "control character"),
        ("nul \x00", 1, 5, "control character"),
        ("half \ud800", 1, 6, "surrogate"),
        ("x" * (TEXT_BYTES_MAX + 1), 1, 1, "bytes"),
        ("".join(f"{{{{v{n}}}}}" for n in range(65)), 1, 1, "65 variables"),
        ("{{" + "a" * 65 + "}}", 1, 1, "begins no variable"),
    ],
)
def test_what_is_no_template(text: str, line: int, column: int, word: str) -> None:
    with pytest.raises(TemplateError, match=word) as caught:
        parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_a_long_run_of_backslashes_is_read_in_one_pass() -> None:
    text = "\\" * (TEXT_BYTES_MAX - 1)
    assert parse(text + "x").pieces == (text + "x",)


def test_missing_variables_are_named() -> None:
    with pytest.raises(VariableError, match="no value is given for a, b"):
        parse("{{a}} {{b}} {{c}}").render({"c": "x"})


def test_what_becomes_too_long() -> None:
    with pytest.raises(VariableError, match="longer than"):
        Template(("", "a", "", "a", "")).render({"a": "x" * (RENDERED_CHARACTERS_MAX // 2 + 1)})
