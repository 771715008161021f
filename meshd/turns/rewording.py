"""A talk that goes round in other words: no two payloads of it are alike, and none says anything else.

Rounds of one edge are looked at together. Where the questions have words in common, and so have the answers, and
neither brings a name or a number that was not there in the first of them, the same is said again. A template with
something else at its open place has words in common too, but keeps them in one run: that is honest work.

Few talks get as far as that: words are compared as they stand before anybody works out what they say.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meshd.turns.lexicon import COURTESY, STOP
from meshd.turns.restating import ANY, MAYBE, restates, weighed
from meshd.turns.templates import TEMPLATE_RUN, TEMPLATE_RUN_OF_ANSWER, is_template
from meshd.turns.thanks import are_thanks
from meshd.turns.turn import AGENT, TOOL

if TYPE_CHECKING:
    from meshd.turns.said import Said

ROUNDS_KEPT: Final = 8
"""Of one edge."""
STRIDES: Final = 2
"""So many talks may take turns on one edge."""
_NONE: Final[frozenset[bytes]] = frozenset()
_WRAPPERS: Final = (
    "user agent assistant message messageid contextid taskid parts text data kind role task tasks result results "
    "content type jsonrpc id metadata artifacts status query input output answer question prompt request response"
)
"""What bodies have in common that say nothing in common."""
_COURTEOUS: Final = frozenset([word.encode() for word in COURTESY])
_STOP_WORDS: Final = frozenset([word.encode() for word in STOP] + [w.encode() for w in _WRAPPERS.split()]) - _COURTEOUS
_UNSPACED: Final = re.compile(rb"[\xe3-\xed][\x80-\xbf][\x80-\xbf]|\\u(?:0[3-9a-fA-F]|1|[3-9a-cA-C])")
"""Or escaped, as JSON may have what is not Latin: then words cannot be told apart as they stand either."""
SHARED_MIN: Final = 2
"""Words that all payloads of one side but one have in common."""
CORE_SHARE: Final = 4
"""They are one in so many of its words at least."""
CORE_SHARE_OF_LONG: Final = 2
LONG_WORDS: Final = 24
"""Longer payloads have words in common by chance."""
HEARD: Final = 0.7
"""Shares of both sides' words that were heard before on their side, together."""
HEARD_OF_ONE: Final = 0.2
HEARD_OF_LAST: Final = 0.15
HEARD_OF_QUESTION: Final = 0.35
"""Where the answers are the same, and say something."""
HEARD_OF_ORDER: Final = 0.8
"""Where they say little: `done`."""
SHARED_OF_ORDER: Final = 4
HEARD_OF_TOOL: Final = 0.6
SHARED_OF_TOOL: Final = 3
HEARD_OF_ANSWER: Final = 0.5
"""Where the questions are the same."""
SAYS_MUCH_WORDS: Final = 3
SLACK: Final = 0.7
"""Of the figures above, where the next question is not known yet."""
SEEMS_HEARD: Final = 0.05
SEEMS_HEARD_OF_BOTH: Final = 0.35
SEEMS_HEARD_OF_QUESTION: Final = 0.2
SEEMS_HEARD_OF_ORDER: Final = 0.55
ORDER_BYTES_MAX: Final = 32
"""As they stand: less than what is asked of words."""
DENIAL_BYTES_MAX: Final = 240
"""Longer ones are not looked at."""


class Round:
    """A question on an edge, and its answer once there is one."""

    __slots__ = ("answer", "asked", "at_s", "is_quiet", "is_underway", "mark")

    def __init__(self, asked: Said, mark: int, at_s: float, is_quiet: bool) -> None:
        self.asked = asked
        self.answer: Said | None = None
        self.mark = mark
        self.at_s = at_s
        self.is_quiet = is_quiet
        """The same was asked before, and nothing new came for either since."""
        self.is_underway = False
        """Its answer's status says that nothing is there yet."""


class Side:
    """What the questions of some rounds have in common, or their answers."""

    __slots__ = ("count", "heard", "is_same", "shared", "words")

    def __init__(self) -> None:
        self.count = 0
        self.is_same = False
        """They are equal but for counters."""
        self.heard = 0.0
        """The mean share of words that were heard in those before."""
        self.shared = 0
        """Words and names that all but one have."""
        self.words = 0
        """Of the last one."""


def gist_of(raw: bytes, words: frozenset[bytes]) -> frozenset[bytes]:
    """Return those of a payload's words, as they stand, that may say something."""
    return ANY if _UNSPACED.search(raw) is not None else words - _STOP_WORDS


def goes_round(rounds: list[Round], periods: int, kind: str, *, is_polled: bool) -> bool:
    """Say whether the last question of an edge, not answered yet, goes on with `periods` rounds in other words.

    `is_polled`: so much time has passed that an answer in other words may tell how something stands.
    """
    return _goes_round(rounds, periods, kind, 1, is_polled) or (
        _take_turns(rounds) and _goes_round(rounds, periods, kind, STRIDES, is_polled)
    )


def _goes_round(rounds: list[Round], periods: int, kind: str, stride: int, is_polled: bool) -> bool:
    last = rounds[-1]
    first = len(rounds) - 1 - stride * periods
    if first < 0:
        return False
    before = rounds[first : len(rounds) - 1 : stride]
    questions: list[Said] = []
    answers: list[Said] = []
    for one in before:
        if one.answer is None or one.mark != last.mark or one.is_underway:
            return False
        questions.append(one.asked)
        answers.append(one.answer)
    questions.append(last.asked)
    if says_the_same(questions, answers, kind, is_polled=is_polled):
        return True
    if is_polled or not last.is_quiet or not all(one.is_quiet for one in before[1:]):
        return False
    return _are_denials(questions, answers)


def goes_round_beside(rounds: list[Round], periods: int, others: list[list[Round]]) -> bool:
    """Say whether the last question of an edge may go on in other words, and the rounds of another one do, as where a
    circle has several edges."""
    last = rounds[-1]
    before = rounds[-1 - periods : -1]
    questions: list[Said] = []
    answers: list[Said] = []
    for one in before:
        if one.answer is None or one.mark != last.mark or one.is_underway:
            return False
        questions.append(one.asked)
        answers.append(one.answer)
    questions.append(last.asked)
    if not _may_say_the_same(questions, answers) or _is_underway(answers) or weighed(questions, answers) < MAYBE:
        return False
    if not _are_equal(questions) and _are_orders(questions):
        return False
    return any(_is_beside(some[-periods:], before[0].at_s) for some in others)


def _is_beside(rounds: list[Round], since_s: float) -> bool:
    """Say whether the last rounds of another edge say the same, and were made meanwhile."""
    questions: list[Said] = []
    answers: list[Said] = []
    for one in rounds:
        if one.answer is None or one.at_s < since_s or one.mark != rounds[0].mark:
            return False
        questions.append(one.asked)
        answers.append(one.answer)
    return says_the_same(questions, answers, AGENT, is_polled=False)


def _take_turns(rounds: list[Round]) -> bool:
    """Say whether the last question has more in common with the one before the one before it, as where two talks take
    turns on an edge."""
    if len(rounds) < 3:
        return False
    gist = rounds[-1].asked.gist
    near, far = rounds[-2].asked, rounds[-3].asked
    return gist is ANY or len(gist & far.gist) > len(gist & near.gist)


def may_go_round(rounds: list[Round], periods: int, kind: str) -> bool:
    """Say whether the last `periods` rounds of an edge may be such that the next question decides."""
    for stride in range(1, STRIDES + 1):
        first = len(rounds) - 1 - stride * (periods - 1)
        if first < 0:
            return False
        some = rounds[first::stride]
        questions = [one.asked for one in some]
        answers = [one.answer for one in some if one.answer is not None]
        if not answers:
            return _seems_heard(questions) >= SEEMS_HEARD
        if len(answers) < len(some):
            continue
        if says_the_same(questions, answers, kind, is_polled=False, slack=SLACK):
            return True
        if all(one.is_quiet for one in some[1:]) and _are_denials(questions, answers):
            return True
    return False


def is_unanswered(rounds: list[Round], periods: int, apart_s: float) -> bool:
    """Say whether a question is asked in other words again and again, and none of them is answered."""
    last = rounds[-1]
    before = rounds[-1 - periods : -1]
    if len(before) < periods:
        return False
    at_s = last.at_s
    for one in reversed(before):
        if one.answer is not None or one.mark != last.mark or at_s - one.at_s < apart_s:
            return False
        at_s = one.at_s
    questions = [one.asked for one in before]
    questions.append(last.asked)
    if _seems_heard(questions) < SEEMS_HEARD:
        return False
    side = _side(questions)
    return (
        side is not None
        and not side.is_same
        and side.shared >= SHARED_MIN
        and side.heard >= HEARD_OF_ANSWER
        and not is_template(questions, TEMPLATE_RUN)
    )


def says_the_same(
    questions: list[Said], answers: list[Said], kind: str, *, is_polled: bool, slack: float = 1.0
) -> bool:
    """Say whether questions, and the answers to all but the last, say the same in other words. Oldest first.

    With less than 1 for `slack` less needs to have been heard before.
    """
    if kind != TOOL and are_thanks(questions, answers):
        return True
    if not _may_say_the_same(questions, answers) or _is_underway(answers):
        return False
    if _have_a_core(questions, answers, kind, is_polled, slack):
        return True
    return (
        kind != TOOL
        and not is_polled
        and restates(questions, answers, slack)
        and (_are_equal(questions) or not _are_orders(questions))
        and (_are_equal(answers) or not is_template(answers, TEMPLATE_RUN_OF_ANSWER))
    )


def _are_orders(questions: list[Said]) -> bool:
    """Say whether questions are a template with something else in it, or two of them by turns."""
    if is_template(questions, TEMPLATE_RUN):
        return True
    evens, odds = questions[::2], questions[1::2]
    return len(odds) > 1 and is_template(evens, TEMPLATE_RUN) and is_template(odds, TEMPLATE_RUN)


def _have_a_core(questions: list[Said], answers: list[Said], kind: str, is_polled: bool, slack: float) -> bool:
    asked = _side(questions)
    if asked is None:
        return False
    told = _side(answers)
    if told is None or (asked.is_same and told.is_same):
        return False
    if kind == TOOL:
        return (
            told.is_same
            and (told.words >= SAYS_MUCH_WORDS or answers[-1].says_no)
            and asked.heard >= HEARD_OF_TOOL * slack
            and asked.shared >= SHARED_OF_TOOL
            and not is_template(questions, TEMPLATE_RUN)
        )
    if asked.is_same:
        return (
            (not is_polled or all(answer.says_no for answer in answers))
            and told.shared >= SHARED_MIN
            and told.shared * CORE_SHARE_OF_LONG >= told.words
            and told.heard >= HEARD_OF_ANSWER * slack
            and not is_template(answers, TEMPLATE_RUN_OF_ANSWER)
        )
    if told.is_same:
        says_much = told.words >= SAYS_MUCH_WORDS or answers[-1].says_no
        return (
            asked.heard >= (HEARD_OF_QUESTION if says_much else HEARD_OF_ORDER) * slack
            and asked.shared >= (SHARED_MIN if says_much else SHARED_OF_ORDER)
            and not is_template(questions, TEMPLATE_RUN)
        )
    return (
        asked.shared > 0
        and told.shared > 0
        and asked.shared + told.shared >= 2 * SHARED_MIN
        and asked.heard >= HEARD_OF_ONE * slack
        and told.heard >= HEARD_OF_ONE * slack
        and asked.heard + told.heard >= HEARD * slack
        and (asked.heard >= 1.0 or not is_template(questions, TEMPLATE_RUN))
        and (told.heard >= 1.0 or not is_template(answers, TEMPLATE_RUN_OF_ANSWER))
    )


def _is_underway(answers: list[Said]) -> bool:
    some = answers[-1:] if _are_equal(answers) else answers
    return any(answer.is_underway or answer.is_not_yet for answer in some)


def _are_denials(questions: list[Said], answers: list[Said]) -> bool:
    """Say whether the same question is denied in other words: most answers say no, and none brings a name."""
    if any(one.loose != questions[0].loose for one in questions):
        return False
    denials = 0
    names: set[int] | None = None
    for one in answers:
        if one.size > DENIAL_BYTES_MAX or one.is_underway or one.is_not_yet:
            return False
        denials += one.says_no
        called = one.content()[1]
        if names is None:
            names = called
        elif not called <= names:
            return False
    return denials * 2 > len(answers)


def _may_say_the_same(questions: list[Said], answers: list[Said]) -> bool:
    """Say whether the words as they stand leave it open that both sides say the same again."""
    asked = _seems_heard(questions)
    if asked < SEEMS_HEARD:
        return False
    if _are_equal(answers):
        return asked >= (SEEMS_HEARD_OF_ORDER if answers[-1].size <= ORDER_BYTES_MAX else SEEMS_HEARD_OF_QUESTION)
    told = _seems_heard(answers)
    if _are_equal(questions):
        return told >= SEEMS_HEARD_OF_QUESTION
    return told >= SEEMS_HEARD and asked + told >= SEEMS_HEARD_OF_BOTH


def _are_equal(said: list[Said]) -> bool:
    first = said[0].mark
    return first != 0 and all(one.mark == first for one in said)


def _seems_heard(said: list[Said]) -> float:
    """Return about how much of payloads was heard in those before; 0 where they have nothing in common."""
    if _are_equal(said):
        return 1.0
    before = said[0].gist
    if before is ANY:
        return 1.0
    heard = 0.0
    once, twice = before, _NONE
    for one in said[1:]:
        gist = one.gist
        if gist is ANY:
            return 1.0
        again = gist & once
        if again:
            heard += len(again) / len(gist)
            twice = twice | again
            once = once | gist
        elif gist:
            once = once | gist
        else:
            # Nothing but numbers or little words: only all of it can tell.
            heard += 1.0
    if not twice and once:
        return 0.0
    return heard / (len(said) - 1)


def _side(said: list[Said]) -> Side | None:
    """Return what payloads have in common; None where one brings a name that was not there, or nobody knows."""
    side = Side()
    found = [one.content() for one in (said[-1:] if _are_equal(said) else said)]
    side.is_same = len(found) == 1 or all(one.loose == said[0].loose for one in said)
    last_words, last_names = found[-1]
    side.words = len(last_words) + len(last_names)
    if side.is_same:
        side.heard = 1.0
        side.shared = side.words
        return side
    words, names = set(found[0][0]), set(found[0][1])
    counts: dict[int, int] = dict.fromkeys(words | names, 1)
    heard = 0.0
    share = 0.0
    for some, called in found[1:]:
        if not called <= names:
            return None
        share = len(some & words) / len(some) if some else 0.0
        heard += share
        words |= some
        for word in some | called:
            counts[word] = counts.get(word, 0) + 1
    least = len(said) - 1
    side.heard = heard / least
    side.shared = sum([count >= least for count in counts.values()])
    core_share = CORE_SHARE if sum(counts.values()) <= LONG_WORDS * len(said) else CORE_SHARE_OF_LONG
    if side.shared * core_share * len(said) < sum(counts.values()) or share < HEARD_OF_LAST:
        # What they have in common is no core of them.
        return None
    return side
