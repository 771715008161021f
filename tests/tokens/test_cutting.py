"""A text is cut only where that changes nothing about its count."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.tokens.counter import tokens_of, whole
from meshd.tokens.cutting import PIECE_MAX, pieces_of
from tests.tokens.texts import AWKWARD, ENCODINGS, MIB, any_text, encode

of_each = pytest.mark.parametrize("encoding", ENCODINGS)
words = st.lists(
    st.sampled_from([*AWKWARD, "word", " word", "Word", "42", "\n", ". ", ", ", "/", "'s", "\u4e2d", "(x)", "=", "\t"]),
    max_size=40,
).map("".join)


@given(text=any_text | words, least=st.integers(1, 20), more=st.integers(1, 20))
@settings(max_examples=300)
def test_pieces_are_the_text(text: str, least: int, more: int) -> None:
    pieces = list(pieces_of(text, least=least, most=least + more))
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text and (len(piece.text) <= least + more or not piece.is_countable) for piece in pieces)


@of_each
@given(text=any_text | words, least=st.integers(1, 12), more=st.integers(1, 12))
@settings(max_examples=500)
def test_pieces_that_can_be_counted_add_up_to_the_whole(encoding: str, text: str, least: int, more: int) -> None:
    text = whole(text)
    pieces = list(pieces_of(text, least=least, most=least + more))
    found = [len(encode(encoding)(piece.text)) for piece in pieces]
    assert sum(found) == len(encode(encoding)(text)), [piece.text for piece in pieces]


def test_a_cut_anywhere_would_be_no_bound() -> None:
    # Why the rule is as strict as it is.
    count = encode("cl100k_base")
    assert len(count("dan")) + len(count("nr")) < len(count("dannr"))


@of_each
@given(text=any_text | words)
@settings(max_examples=300)
def test_a_count_is_exact_and_never_above_the_bytes(encoding: str, text: str) -> None:
    text = whole(text)
    found = tokens_of(text, encode(encoding))
    assert found == len(encode(encoding)(text)) <= len(text.encode())


MEGABYTES = {
    "spaces": " " * MIB,
    "one letter": "a" * MIB,
    "one emoji": "\U0001f600" * (MIB // 4),
    "digits": "7" * MIB,
    "marks": "!" * MIB,
    "combining": "\u0301" * (MIB // 2),
    "line ends": "\n" * MIB,
    "zero": "\0" * MIB,
    "Chinese": "\u4e2d" * (MIB // 3),
}


@of_each
@pytest.mark.parametrize("name", MEGABYTES)
def test_a_megabyte_of_one_thing_is_counted_as_its_bytes_at_most_and_soon(encoding: str, name: str) -> None:
    text = MEGABYTES[name]
    begin = time.process_time()
    found = tokens_of(text, encode(encoding))
    # As one text some of these panic the library, and others keep it busy for minutes.
    assert time.process_time() - begin < 5
    assert 0 < found <= len(text.encode())


@of_each
def test_a_long_honest_text_is_counted_exactly(encoding: str) -> None:
    text = (
        "The keeper's log, 1987: wind NNW 7; lamp trimmed at 04:10, oil 3.5 l. \u706f\u53f0\u306e\u65e5\u8a8c\u3002\n"
        * 2_000
    )
    assert len(text) > 20 * PIECE_MAX
    assert tokens_of(text, encode(encoding)) == len(encode(encoding)(text))
    assert all(piece.is_countable for piece in pieces_of(text))


def test_what_has_no_safe_end_is_taken_whole_up_to_the_next() -> None:
    text = "a word " * 400 + "\U0001f600" * 9_000 + "b word " * 400
    pieces = list(pieces_of(text))
    assert sum(not piece.is_countable for piece in pieces) == 1
    assert "".join(piece.text for piece in pieces) == text
