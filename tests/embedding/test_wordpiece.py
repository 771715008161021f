"""Text in pieces: as BERT's own code reads it, and nothing that is written becomes a mark of the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.embedding.wordpiece import END, START, UNKNOWN, WordPiece

VOCABULARY = [
    "[PAD]", UNKNOWN, START, END, "un", "##aff", "##able", "cafe", "do", "##n", "n", "'", "t", ",", "[", "]", "sep",
    "中", "国", "¿", "que", "##e", "a",
]  # fmt: skip
PIECES = WordPiece(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("UNAFFABLE, Café", ["un", "##aff", "##able", ",", "cafe"]),
        ("Cafe\u0301\u00a0cafe\tcafe\r\ncafe", ["cafe"] * 4),
        ("don't", ["do", "##n", "'", "t"]),
        ("中国que", ["中", "国", "que"]),
        ("¿Que?", ["¿", "que", UNKNOWN]),
        # A word of which any part is not known is not known; so is one that is too long.
        ("cafex unaffx cafe", [UNKNOWN, UNKNOWN, "cafe"]),
        ("a" * 101, [UNKNOWN]),
        # What nobody sees parts nothing.
        ("ca\0\u200b\ufefffe", ["cafe"]),
        ("ca\x1f\x0bfe", ["cafe"]),
        ("\ufffd\ud800\u202e", []),
        ("", []),
        # The marks of the model are the model's.
        ("[SEP]", ["[", "sep", "]"]),
    ],
)
def test_text_is_read_as_the_model_was_trained(text, pieces):
    assert [VOCABULARY[at] for at in PIECES.read(text, 32)] == [START, *pieces, END]


def test_what_is_too_long_is_cut_and_still_ends():
    numbers = PIECES.read("unaffable " * 1000, 8)
    assert [VOCABULARY[at] for at in numbers] == [START, "un", "##aff", "##able", "un", "##aff", "##able", END]


@given(st.text(st.characters(), max_size=80))
def test_no_text_raises(text):
    numbers = PIECES.read(text, 16)
    assert 2 <= len(numbers) <= 16
    assert VOCABULARY.index(END) not in numbers[1:-1]


def test_what_is_no_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"it has no \[CLS\], \[SEP\], \[UNK\]"):
        WordPiece(["a", "b"])
