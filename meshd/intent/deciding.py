"""Who serves what is wanted: the best of those that may and can be called, several, or nobody. Pure."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshd.discovery.intent_terms import IntentTerms
    from meshd.discovery.ranking import Score

NEAR_MAX: Final = 3
"""Agents that a refusal names."""
WORDS_SHOWN_MAX: Final = 64


class Bar(str, Enum):
    """What stands in the way of calling an agent."""

    POLICY = "policy"
    QUARANTINE = "quarantine"
    """What it says of itself has changed, or is for a person to look at."""
    HEALTH = "health"
    SELF = "self"


class Barred(NamedTuple):
    """Why an agent is passed over."""

    bar: Bar
    why: str


class Choice(str, Enum):
    """What was decided."""

    NAMED = "named"
    """The words are the name of an agent, or of an intent that an operator gave it."""
    CHOSEN = "chosen"
    FANNED_OUT = "fanned_out"
    FALLBACK = "fallback"
    UNCLEAR = "unclear"
    """Nobody is near enough, or several are as near; and there is no fallback."""
    FORBIDDEN = "forbidden"
    """Only such would serve it as the policy does not let the caller call, or as are in quarantine."""
    AWAY = "away"
    """Only such would serve it as cannot be called now."""


class Decision(NamedTuple):
    """Whom a call goes to, and why."""

    choice: Choice
    targets: tuple[str, ...]
    """Names of upstreams; none where the call is refused."""
    score: float
    """Of the best that could be called; 0 where none could."""
    why: str
    """For people."""


def decide(
    scores: Iterable[Score], bar: Callable[[str], Barred | None], terms: IntentTerms, fan_out: int = 1
) -> Decision:
    """Choose. `scores` has the best first; `bar(name)` says why one is passed over; `fan_out` is how many may share.

    Those that are passed over take nobody's place, and no margin is measured against them.
    """
    open_to: list[Score] = []
    barred: list[tuple[Score, Barred]] = []
    for score in scores:
        if score.score < terms.threshold and open_to:
            break  # Whoever else there is comes too late to matter.
        found = bar(score.name)
        if found is None:
            open_to.append(score)
        elif score.score >= terms.threshold:
            barred.append((score, found))
    passing = [one for one in open_to if one.score >= terms.threshold]
    if any(score.is_named and found.bar in (Bar.POLICY, Bar.QUARANTINE) for score, found in barred):
        # Whoever asks for one by its name does not mean the next best.
        passing = [one for one in passing if one.is_named]
    if passing:
        return _among(passing, terms, fan_out, has_fallback=_has_fallback(terms, bar))
    best = open_to[0].score if open_to else 0.0
    if _has_fallback(terms, bar):
        why = f"nobody comes up to {terms.threshold:g}: it goes to the fallback"
        return Decision(Choice.FALLBACK, (terms.fallback,), best, why)
    near = "; ".join(f"{one.name} ({one.score:.2f}) would, but {found.why}" for one, found in barred[:NEAR_MAX])
    if any(found.bar is not Bar.HEALTH for _, found in barred):
        return Decision(Choice.FORBIDDEN, (), best, near)
    if barred:
        return Decision(Choice.AWAY, (), best, near)
    shown = ", ".join(f"{one.name} ({one.score:.2f})" for one in open_to[:NEAR_MAX]) or "nobody"
    return Decision(Choice.UNCLEAR, (), best, f"it takes a score of {terms.threshold:g}, and nearest come: {shown}")


def _has_fallback(terms: IntentTerms, bar: Callable[[str], Barred | None]) -> bool:
    """Say whether there is one, and it is not who asks, which would be sent its own call, nor in quarantine, of which
    no filter knows. Whether it may be called, and is there, the filters judge."""
    if not terms.fallback:
        return False
    barred = bar(terms.fallback)
    return barred is None or barred.bar not in (Bar.SELF, Bar.QUARANTINE)


def _among(passing: list[Score], terms: IntentTerms, fan_out: int, *, has_fallback: bool) -> Decision:
    best = passing[0]
    rivals = [one for one in passing if one.is_named or best.score - one.score < terms.margin]
    if best.is_named:
        # Who was named is meant: several that bear one name are as good as one another.
        rivals = [one for one in rivals if one.is_named]
    names = tuple(one.name for one in rivals[:fan_out])
    if len(rivals) > 1 and fan_out > 1:
        return Decision(Choice.FANNED_OUT, names, best.score, f"{len(rivals)} are as good: it goes to {len(names)}")
    if best.is_named:
        return Decision(Choice.NAMED, (best.name,), best.score, "it was asked for by this name")
    if len(rivals) > 1:
        shown = ", ".join(f"{one.name} ({one.score:.2f})" for one in rivals[:NEAR_MAX])
        why = f"{shown} are within {terms.margin:g} of one another"
        if has_fallback:
            return Decision(Choice.FALLBACK, (terms.fallback,), best.score, f"{why}: it goes to the fallback")
        return Decision(Choice.UNCLEAR, (), best.score, f"{why}, so it cannot be told which is meant")
    return Decision(Choice.CHOSEN, (best.name,), best.score, f"it comes up to {terms.threshold:g}, and leads")


def refusal(decision: Decision, words: str) -> Refused:
    """Return the refusal of a call for which nobody was found."""
    shown = ascii(words[:WORDS_SHOWN_MAX])
    if decision.choice is Choice.FORBIDDEN:
        return Refused(Reason.NOT_ALLOWED, f"Nobody who may be called serves {shown}: {decision.why}.")
    if decision.choice is Choice.AWAY:
        return Refused(Reason.UNKNOWN_TARGET, f"Nobody who is there serves {shown}: {decision.why}.")
    return Refused(
        Reason.UNKNOWN_TARGET,
        f"No agent is found for {shown}: {decision.why}. Say it in other words, name the agent "
        "(http://<sidecar>/<agent>/...), or set intents.fallback in the policy. `meshd route` shows the scores.",
    )
