"""What is told by the one place where two payloads differ, and that it never tells another thing than all of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshd.turns.said import DIFFERENT, Said
from meshd.turns.seen import Seen
from meshd.turns.slot import brings_word, common
from meshd.turns.turn import LLM, TOOL


def said(text: str) -> bytes:
    return json.dumps(text).encode()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Summarise the report of the southern branch", "Summarise the report of the northern branch"),
        ("Summarise item 18 of the list", "Summarise item 17 of the list"),
        ("Name three risks, then translate", "Name three risks, then summarise"),
        ('Write {"query": "alpha"} down', 'Write {"query": "gamma"} down'),
        ("Line one\nand a window", "Line one\nand a mirror"),
    ],
)
def test_a_new_word_or_number_is_told(one: str, other: str) -> None:
    assert brings_word(said(one), said(other))
    assert brings_word(said(other), said(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Summarise attempt 18 of the list", "Summarise attempt 17 of the list"),
        ("Do it again (attempt 3)", "Do it again (attempt 2)"),
        ("Look at #18 of the list", "Look at #17 of the list"),
        ("It took 18 seconds in all", "It took 17 seconds in all"),
        ("It took 18 ms in all", "It took 17 ms in all"),
        ("Do it, thanks", "Do it, sorry"),
        ("trace 3f2a1b4c-aaaa-bbbb-cccc-1234567890ab please", "trace 9f2a1b4c-dddd-eeee-ffff-1234567890ab please"),
        ('Send {"trace_id": "alpha"} on', 'Send {"trace_id": "gamma"} on'),
        ("Name the risks", "Name the risk"),
        ("Naming the risks", "Name the risks"),
        ("The same text", "The same text"),
        ("x y z", "x z"),
        ("a", "b"),
        ("", ""),
        ("ein Fenster für Sie", "ein Fenster für Dich"),
    ],
)
def test_what_may_say_nothing_new_is_not_told(one: str, other: str) -> None:
    assert not brings_word(said(one), said(other))


SPOKEN = (
    "report risk risks naming name 17 18 attempt item (2) #3 page thanks please the of northern Berlin 12 seconds "
    '"trace_id": "q": alpha call_a1b2c3d4 2026-11-02 it\'s für \\n déjà running done'
)
WORDS = st.lists(
    st.sampled_from(SPOKEN.split()),
    min_size=3,
    max_size=24,
)


@settings(max_examples=500)
@given(WORDS, WORDS, st.integers(0, 24), st.sampled_from([LLM, TOOL]))
@example(["report"] * 8 + ["attempt"], ["report", "12"], 7, LLM)
def test_it_tells_nothing_that_all_of_both_would_not(one: list[str], middle: list[str], at: int, kind: str) -> None:
    first, second = " ".join(one), " ".join([*one[:at], *middle[:2], *one[at + 1 :]])
    if not brings_word(said(second), said(first)):
        return
    before, seen = Said(said(first)), Seen()
    before.learn(seen)  # so it is compared as a whole
    assert Said(said(second)).nearness(before, seen, kind) == DIFFERENT


@given(st.binary(max_size=64), st.binary(max_size=64), st.binary(max_size=64))
def test_no_bytes_harm_it(begin: bytes, one: bytes, other: bytes) -> None:
    assert common(begin + one, begin + other) >= len(begin)
    brings_word(begin + one, begin + other)
