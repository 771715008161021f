"""Thanks for thanks, wishes and farewells: two that are polite to one another say nothing new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

from meshd.turns.lexicon import COURTESY, PHATIC, stem
from meshd.turns.restating import ANY

if TYPE_CHECKING:
    from meshd.turns.said import Said

COURTESY_WORDS_MAX: Final = 3
"""That say something else."""
COURTESY_BYTES_MAX: Final = 160
"""Longer ones are not looked at."""
_PHATIC: Final = frozenset([word.encode() for word in PHATIC | COURTESY])
_PHATIC_MARKS: Final = frozenset([crc32(stem(word).encode()) for word in PHATIC])


def are_thanks(questions: list[Said], answers: list[Said]) -> bool:
    """Say whether all that is said is thanks, wishes and farewells, and nothing is asked."""
    for one in questions + answers:
        gist = one.gist
        if one.size > COURTESY_BYTES_MAX or (gist and gist is not ANY and _PHATIC.isdisjoint(gist)):
            return False
    thanks = 0
    for at, one in enumerate(questions + answers):
        words, names = one.content()
        if names or len(words - _PHATIC_MARKS) > COURTESY_WORDS_MAX:
            return False
        if at < len(questions) and "?" in one.text:
            return False
        thanks += one.is_courteous
    return thanks * 2 >= len(questions)
