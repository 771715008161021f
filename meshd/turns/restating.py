"""How likely a talk only says again, in other words, what it has said: evidence, weighed.

Where hardly a word stays, no single sign decides. So several small ones are added up: parts of words that come again
(`erstatten`, `Rückerstattung`), words that nearly all have, what was heard on either side before, answers that hand the
question back, thanks; and against it, each message that brings a name or a number. The weights are those of a logistic
regression over the scenarios of tests/loops; docs/loops.md says what they reach on talks that were held out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from zlib import crc32

from meshd.turns.lexicon import CONTENT, NUMERAL, ORDINAL, UNSPACED, look_up, words_of
from meshd.turns.templates import NO_TEXT

if TYPE_CHECKING:
    from meshd.turns.said import Said

SKETCH_BYTES: Final = 128
GRAM_BYTES: Final = 4
"""Of a part of a word."""
GRAM_BYTES_UNSPACED: Final = 6
"""Two characters, in scripts without blanks."""
SKETCH_CHARACTERS_MAX: Final = 600
"""Of a text that are looked at: paraphrases are short."""
BIAS: Final = -3.7
WEIGHTS: Final = (1.1, 1.4, 1.1, 0.9, 1.0, 0.5, -0.85, -0.25, 0.85, 2.05, 2.0, 1.3)
LIKELY: Final = -0.25
"""The sum from which on a talk is taken for a loop."""
MAYBE: Final = -1.2
"""The sum from which on the next question may decide that it is one."""
NEVER: Final = -100.0
BRINGING_MAX: Final = 2
"""So many messages may bring a name or a number: some names are only words with a capital."""
HEARD_MIN: Final = 0.15
"""Of the questions: who answers something else each time is asked in circles, and does not go in them."""
QUESTION_WORDS_MIN: Final = 2
"""A question that says less is one of many: `yes`, `go on`."""
ACK_WORDS: Final = 2.5
"""Answers that say less, and hand nothing back, report that something was done."""
FRESH_WORDS_MAX: Final = 6.0
"""Of a message, on average: who brings more says something."""
FRESH_CHARACTERS_MAX: Final = 18.0
"""Where a character stands for a word."""
HANDED_BACK: Final = 0.6
CORE_MAX: Final = 4
FRESH_NAMES_MAX: Final = 5
ANY: Final = frozenset([b""])
"""The gist of a script without blanks: nothing can be told by its words as they stand."""
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_BACK: Final = words_of(
    "need needs needed require requires required must first before beforehand until unless without once missing lack "
    "lacks lacking pending depend depends ask asks only please provide tell wait waiting belong belongs responsible "
    "owns instead "
    "brauche brauchen braucht benötige benötigen erst zuerst ohne nennen frage fragen wenden fehlt zuständig müsste "
    "muss faut faudrait avant sans veuillez manque dois indiquez indiquer voyez demander demandez relève seul seule "
    "necesito necesita necesitamos primero antes sin falta faltan indíqueme dígame hasta debe pendiente "
    "serve servirebbe bisogno senza prima dica comunicarmi "
    "preciso precisa precisamos primeiro sem depois depende aguardamos"
)
"""Who answers so wants something of who asks, or sends him on."""
_DENIES: Final = words_of(
    "don't doesn't didn't won't can't couldn't cannot unable denied failed refused error sorry unclear clarify "
    "clarification kein keine keinen keiner nicht pas impossible puedo tengo não nao non нет"
)
_DENIED: Final = words_of("do does did will could can")
"""Before `not`."""
_BACK_SIGNS: Final = ("请", "需要", "没有", "先", "必要", "ください", "いただけ", "无法", "ません")
"""In scripts without blanks."""


_NO_NUMERALS: Final[frozenset[str]] = frozenset()


class Gloss:
    """What a message has of its own, in a few bytes."""

    __slots__ = ("denies", "hands_back", "numerals", "parts")

    def __init__(self, parts: int, numerals: frozenset[str], denies: bool, hands_back: bool) -> None:
        self.parts = parts
        """A set of parts of its words: a bit each, of `SKETCH_BYTES`."""
        self.numerals = numerals
        """Numbers that are written as words."""
        self.denies = denies
        """It says that something cannot be done."""
        self.hands_back = hands_back
        """It denies or asks something, or says what must come first, or who else is to be asked."""


def gloss_of(text: str) -> Gloss:
    """Read the text of a message."""
    text = NO_TEXT.sub(" ", text[:SKETCH_CHARACTERS_MAX])
    parts = bytearray(SKETCH_BYTES)
    numerals: list[str] = []
    denies = False
    hands_back = "?" in text or "？" in text
    before = ""
    for word in _WORD.findall(text.lower()):
        kind = look_up(word)[0]
        if word in _BACK:
            hands_back = True
        elif word in _DENIES or (word == "not" and before in _DENIED):
            denies = True
        before = word
        if kind == CONTENT:
            _note(parts, word.encode("utf-8", "replace"), 1, GRAM_BYTES)
        elif kind == UNSPACED:
            _note(parts, word.encode("utf-8", "replace"), 3, GRAM_BYTES_UNSPACED)
            hands_back = hands_back or any(sign in word for sign in _BACK_SIGNS)
        elif kind in (NUMERAL, ORDINAL):
            numerals.append(word)
    return Gloss(int.from_bytes(parts, "little"), frozenset(numerals), denies, denies or hands_back)


def _note(parts: bytearray, word: bytes, step: int, size: int) -> None:
    """Note all parts of a word that are so many bytes long, or the whole of a shorter one."""
    for at in range(0, max(1, len(word) - size + 1), step):
        mark = crc32(word[at : at + size])
        parts[mark >> 3 & (SKETCH_BYTES - 1)] |= 1 << (mark & 7)


def restates(questions: list[Said], answers: list[Said], slack: float) -> bool:
    """Say whether questions and the answers to all but the last very likely say the same. Oldest first.

    With less than 1 for `slack`: whether the next question may decide.
    """
    return weighed(questions, answers) >= (LIKELY if slack >= 1.0 else MAYBE)


def weighed(questions: list[Said], answers: list[Said]) -> float:
    """Return how much speaks for that: above 0 more than against it."""
    signs = signs_of(questions, answers)
    if signs is None:
        return NEVER
    total = BIAS
    for at, sign in enumerate(signs):
        total += WEIGHTS[at] * sign
    return total


def signs_of(questions: list[Said], answers: list[Said]) -> list[float] | None:
    """Return the evidence, in the order of `WEIGHTS`; None where it is none of the talks that can be told by it."""
    if not _ask_something(questions) or _brought(questions, answers, False) > BRINGING_MAX:
        return None
    heard: set[int] = set()
    for one in questions[:-1]:
        # What was only heard in an answer is what that had asked for.
        heard |= one.content()[0]
    last, last_words = questions[-1], questions[-1].content()[0]
    is_asked = len(answers) < len(questions)
    if is_asked and (heard.isdisjoint(last_words) or (_are_one(questions[:-1]) and last.loose != questions[0].loose)):
        # Something else is asked, for once.
        return None
    asked, told = _Side(questions), _Side(answers)
    most = FRESH_WORDS_MAX if questions[0].gist is not ANY else FRESH_CHARACTERS_MAX
    if asked.fresh > most or told.fresh > most or asked.core + told.core < 1:
        return None
    # What was read so far is known of every payload; what follows is worked out for few.
    told.gloss()
    if told.size < ACK_WORDS and told.handed_back <= HANDED_BACK and told.courteous <= HANDED_BACK:
        return None
    asked.gloss()
    if asked.heard < HEARD_MIN:
        return None
    if asked.alike >= 1.0 and (told.names or told.denied + told.courteous <= HANDED_BACK):
        return None
    bringing = _brought(questions, answers, True)
    if bringing > BRINGING_MAX:
        return None
    return [
        asked.heard,
        told.heard,
        asked.alike,
        told.alike,
        len(last_words & heard) / len(last_words) if last_words else 0.0,
        float(told.core),
        float(bringing),
        float(told.names),
        told.denied,
        told.handed_back,
        asked.courteous,
        told.courteous,
    ]


def _are_one(said: list[Said]) -> bool:
    return len(said) > 1 and all(one.loose == said[0].loose for one in said)


def _ask_something(questions: list[Said]) -> bool:
    """Say whether the last question says something, and all others but one do."""
    little = 0
    for one in questions:
        words, names = one.content()
        is_little = len(words) + len(names) < QUESTION_WORDS_MIN
        little += is_little
        if is_little and (one is questions[-1] or little > 1):
            return False
    return True


class _Side:
    """The signs of the questions, or of the answers."""

    __slots__ = ("_said", "alike", "core", "courteous", "denied", "fresh", "handed_back", "heard", "names", "size")

    def __init__(self, said: list[Said]) -> None:
        self._said = said
        count = len(said)
        words_seen, names_seen = said[0].content()
        size = len(words_seen) + len(names_seen)
        counts = dict.fromkeys(words_seen, 1)
        fresh = names_new = 0
        for one in said[1:]:
            words, names = one.content()
            size += len(words) + len(names)
            for word in words:
                counts[word] = counts.get(word, 0) + 1
            fresh += len(words - words_seen)
            names_new += len(names - names_seen)
            words_seen = words_seen | words
            names_seen = names_seen | names
        self.fresh = fresh / (count - 1)
        self.core = min(CORE_MAX, sum([number >= count - 1 for number in counts.values()]))
        """Words that all but one have."""
        self.names = min(FRESH_NAMES_MAX, names_new)
        self.size = size / count
        self.courteous = sum([one.is_courteous for one in said]) / count
        self.alike = self.heard = self.denied = self.handed_back = 0.0
        """Known after `gloss`. `heard`: the mean share of parts of words that were heard in those before; `alike`: the
        least share that two have in common."""

    def gloss(self) -> None:
        """Look at the parts of words, and at what is done with them."""
        count = len(self._said)
        denied = handed_back = parts_seen = 0
        heard, alike = 0.0, 1.0
        every: list[int] = []
        for one in self._said:
            gloss = one.gloss
            denied += gloss.denies
            handed_back += gloss.hands_back
            parts = gloss.parts
            bits = parts.bit_count()
            if every:
                heard += (parts & parts_seen).bit_count() / bits if bits else 0.5
            for before in every:
                least = min(bits, before.bit_count())
                alike = min(alike, (parts & before).bit_count() / least if least else 0.0)
            parts_seen |= parts
            every.append(parts)
        self.heard, self.alike = heard / (count - 1), alike
        self.denied, self.handed_back = denied / count, handed_back / count


def _brought(questions: list[Said], answers: list[Said], with_numerals: bool) -> int:
    """Return how many messages brought a name or a number that neither side had heard."""
    names = questions[0].content()[1]
    numerals = questions[0].gloss.numerals if with_numerals else _NO_NUMERALS
    bringing = 0
    for at, answer in enumerate(answers):
        for one in (answer, questions[at + 1]) if at + 1 < len(questions) else (answer,):
            called = one.content()[1]
            counted = one.gloss.numerals if with_numerals else _NO_NUMERALS
            # Who answers first may name what the talk is about.
            if (at or one is not answer) and not (called <= names and counted <= numerals):
                bringing += 1
            names = names | called
            numerals = numerals | counted
    return bringing
