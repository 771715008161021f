"""Which agent serves what somebody wants, by what is known of each: by its words, and by examples.

Three judges, each from 0 to 1: BM25 over all that is said of an agent; how near the words are to the nearest thing
that it can be asked for (hashed pieces of words, so that "refnd" is near "refund"); and, where the policy has
examples, the router that was learned from them. Who is asked for by the very name of an intent is the one, whatever
the judges say.

What an operator wrote is taken at its word. What an agent says of itself counts less the more it says: whoever claims
to be good for everything is found for nothing.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.discovery.document import Document
from meshd.discovery.index import Index
from meshd.discovery.nearness import Near, pieces
from meshd.discovery.words import clean, terms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.discovery.intents import Router

THRESHOLD: Final = 0.3
MARGIN: Final = 0.05
"""What holds where the policy says nothing: chosen on draws of CLINC150, see docs/intent.md."""
WORDS_SHARE: Final = 0.5
"""Of the score, what BM25 says; the rest is nearness."""
CLAIMS_MAX: Final = 256
"""Of what an agent says of itself, what is compared."""
CLAIMS_FREE: Final = 12
"""Things that an agent may say of itself to be asked for before each of them counts less."""
_NOTHING: Final = (0.0, "")
_CERTAIN_MAX: Final = 0.99
"""Only the name of an intent itself is certain."""


class Candidate(NamedTuple):
    """One agent, and all that is known of it."""

    name: str
    title: str = ""
    description: str = ""
    told: tuple[str, ...] = ()
    """What it can be asked for, by the word of an operator: names of intents, labels, examples. Who asks for one of
    these, or for the agent's own name, in these very words has named it."""
    claimed: tuple[str, ...] = ()
    """The same by its own word: skills and their examples, on a card or in a session."""
    tools: tuple[str, ...] = ()
    """Names and descriptions of what it has tools for."""


class Score(NamedTuple):
    """What speaks for one agent."""

    name: str
    score: float
    """0 to 1."""
    words: float
    near: float
    nearest: str
    """The thing it can be asked for that is nearest; empty where nothing is near."""
    examples: float
    """By the router, as a score; 0 where it knows nothing of this agent."""
    is_named: bool
    """It was asked for by its name, or in the very words of an operator."""


class Ranking:
    """Made once for what is known; asked for each new text."""

    __slots__ = ("_candidates", "_claimed", "_index", "_labels", "_router", "_routes", "_threshold", "_told")

    def __init__(
        self, candidates: Iterable[Candidate], *, router: Router | None = None, threshold: float = THRESHOLD
    ) -> None:
        """`router` has for intents names of candidates, or what they were told that they can be asked for.

        `threshold` is the score from which on one is chosen: what the router is sure of comes above it.
        """
        self._candidates = {one.name: one for one in candidates}
        self._router = router
        self._threshold = threshold
        self._index: Index[str] = Index()
        self._told: Near[str] = Near()
        self._claimed: Near[str] = Near()
        self._labels: dict[str, set[str]] = {}
        """By the words of what an operator wrote: whose it is."""
        self._routes: dict[str, tuple[str, ...]] = {}
        """By an intent of the router: who serves it."""
        for one in self._candidates.values():
            self._index.put(one.name, _document(one))
            self._told.put(one.name, (one.name, one.title, *one.told))
            self._claimed.put(one.name, islice((one.description, *one.claimed, *one.tools), CLAIMS_MAX))
            for label in (one.name, *one.told):
                if words := words_of(label):
                    self._labels.setdefault(words, set()).add(one.name)
        for intent in router.names if router is not None else ():
            named = self._labels.get(words_of(intent), set())
            self._routes[intent] = (intent,) if intent in self._candidates else tuple(named)

    def rank(self, text: str) -> list[Score]:
        """Return all candidates, the best first; of two alike the one that came first. Never raises."""
        words = {found.key: found.score for found in self._index.search(text, len(self._candidates))}
        asked = pieces(text)
        told, claimed = self._told.nearest(asked), self._claimed.nearest(asked)
        learned = self._learned(text)
        named = self._labels.get(words_of(text), set())
        found = []
        for name in self._candidates:
            near, nearest = told.get(name, _NOTHING)
            claim, claims = claimed.get(name, _NOTHING)
            claim *= min(1.0, CLAIMS_FREE / max(1, self._claimed.count(name)))
            if claim > near:
                near, nearest = claim, claims
            by_words, by_examples, is_named = words.get(name, 0.0), learned.get(name, 0.0), name in named
            lexical = WORDS_SHARE * by_words + (1 - WORDS_SHARE) * near
            score = 1.0 if is_named else min(_CERTAIN_MAX, max(lexical, by_examples))
            found.append(Score(name, score, by_words, near, nearest, by_examples, is_named))
        return sorted(found, key=lambda one: -one.score)

    def shared(self, text: str, name: str) -> list[str]:
        """Return which terms of `text` are said of a candidate, in their order."""
        document = _document(self._candidates[name])
        said = {term for part in document for one in ([part] if isinstance(part, str) else part) for term in terms(one)}
        return [term for term in dict.fromkeys(terms(text)) if term in said]

    def explain(self, text: str) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """Return which words spoke for what was learned best, and which of its examples are nearest."""
        if self._router is None or not terms(text):
            return [], []
        explained = self._router.explain(text)
        return list(explained.words), list(explained.examples)

    def _learned(self, text: str) -> dict[str, float]:
        """Return what the router makes of `text`, on the scale of the other judges, by candidate."""
        router = self._router
        if router is None or not terms(text):
            return {}
        routed = router.route(text)
        best = routed.ranked[0].share
        found: dict[str, float] = {}
        for one in routed.ranked:
            confidence = routed.confidence * one.share / best if best else 0.0
            score = _rescaled(confidence, routed.threshold, self._threshold)
            for name in self._routes[one.intent]:
                found[name] = max(found.get(name, 0.0), score)
        return found


def words_of(text: str) -> str:
    """Return the words of a name as they are compared: `market_analysis`, `Market analysis` and `marketAnalysis` are
    one."""
    return " ".join(terms(text)) or " ".join(clean(text).casefold().split())


def _rescaled(value: float, threshold: float, onto: float) -> float:
    """Move a value so that `threshold` comes to lie on `onto`, and 0 and 1 where they are."""
    if value < threshold:
        return value * onto / threshold
    return onto + (value - threshold) * (1 - onto) / (1 - threshold) if threshold < 1 else value


def _document(one: Candidate) -> Document:
    return Document(
        name=one.name,
        title=one.title,
        description=one.description,
        intents=(*one.told, *one.claimed),
        parameters=one.tools,
    )
