"""A decision as the admin port and `meshd route` tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.admin.catalogue_view import CandidateDump, RouteDump
from meshd.intent.asking import read_words

if TYPE_CHECKING:
    from meshd.discovery.ranking import Ranking
    from meshd.intent.resolver import Resolver, Seen
    from meshd.policy.compiled import Policy

SHOWN_MAX: Final = 100
"""Candidates."""
TEXT_CHARACTERS_MAX: Final = 120
_DIGITS: Final = 3


def routed(resolver: Resolver, policy: Policy, wanted: str, agent: str = "") -> RouteDump:
    """Return whom a call of `agent` would go to for what it wants. Raises Refused(MALFORMED) for what is no intent."""
    words = read_words(wanted.encode("utf-8", "surrogatepass"))
    agent = agent or policy.agent
    decision, seen = resolver.look(policy, words, agent)
    ranking, terms = resolver.ranking(policy), policy.intents
    learned_words, learned_examples = ranking.explain(words)
    return RouteDump(
        wanted=words,
        agent=agent,
        choice=decision.choice.value,
        targets=decision.targets,
        score=round(decision.score, _DIGITS),
        why=decision.why,
        threshold=terms.threshold,
        margin=terms.margin,
        fan_out=terms.fan_out,
        fallback=terms.fallback,
        candidates=[_candidate(one, ranking, words) for one in seen[:SHOWN_MAX]],
        learned_words=[(word, round(weight, _DIGITS)) for word, weight in learned_words],
        learned_examples=[(text[:TEXT_CHARACTERS_MAX], round(near, _DIGITS)) for text, near in learned_examples],
    )


def _candidate(one: Seen, ranking: Ranking, words: str) -> CandidateDump:
    score = one.score
    return CandidateDump(
        score.name,
        round(score.score, _DIGITS),
        round(score.words, _DIGITS),
        round(score.near, _DIGITS),
        score.nearest[:TEXT_CHARACTERS_MAX],
        round(score.examples, _DIGITS),
        score.is_named,
        ranking.shared(words, score.name),
        "" if one.barred is None else one.barred.bar.value,
        "" if one.barred is None else one.barred.why,
    )
