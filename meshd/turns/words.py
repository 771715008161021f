"""What the model is told: who, what repeated how often, and what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.turns.turn import MAX_TURNS

if TYPE_CHECKING:
    from meshd.turns.turn import Judgement, Turn

PARTIES_SHOWN_MAX: Final = 8
_INSTEAD: Final = (
    "Do not make this call again. Answer with what you have, say what is missing, or go another way that does not "
    "depend on this answer"
)


def told(judgement: Judgement, turn: Turn, workflow: str) -> str:
    """Return the message of a judgement that stops a turn."""
    source, target = turn.source, turn.target
    what = _what(judgement, source, target)
    key = _KEYS.get(judgement.detector, "")
    more = f"; or raise {key} in the policy." if key else "."
    return f"{what} ({workflow}; {judgement.detector}). {_INSTEAD}{more}"


def _what(judgement: Judgement, source: str, target: str) -> str:
    amount, limit, detector = judgement.amount, judgement.limit, judgement.detector
    if judgement.verdict == MAX_TURNS:
        if detector == "edge":
            return f"{source} has called {target} in {amount} turns, and {limit} are allowed"
        if detector == "connected":
            return f"{_listed(judgement.parties)} have called one another in {amount} turns, and {limit} are allowed"
        return f"The agents of this task have called one another in {amount} turns, and {limit} are allowed"
    if detector == "reentry":
        parties = judgement.parties
        return (
            f"{target} was called again {amount} times by agents that it had called itself "
            f"({_listed(parties, ' > ')} > {target}), and {limit} are allowed"
        )
    if detector == "history":
        return f"The last {amount} rounds of this conversation are the same: the same answer, and the same result"
    if detector == "spending":
        return f"{amount:,} tokens were spent since anything new was said, and {limit:,} are allowed"
    if detector == "open":
        return f"{source} has asked {target} the same {amount} times, and none of them is answered yet"
    if detector == "period":
        return f"{source} and {target} have gone through the same round {amount} times"
    if detector == "unheeded":
        return f"{source} was refused {amount} times in a row and goes on, so its model is not asked any more"
    if detector == "stopped":
        return f"The supervisor has stopped this task, so {source} may not call {target}"
    return f"{source} has asked {target} the same {amount} times, and the answer brought nothing new"


def _listed(parties: tuple[str, ...], between: str = ", ") -> str:
    shown = parties[:PARTIES_SHOWN_MAX]
    return between.join(shown) + (" ..." if len(parties) > PARTIES_SHOWN_MAX else "")


_KEYS: Final = {
    "reentry": "limits.turns.reentry",
    "edge": "limits.turns.edge",
    "connected": "limits.turns.connected",
    "workflow": "limits.turns.workflow",
    "repetition": "limits.turns.periods",
    "open": "limits.turns.periods",
    "period": "limits.turns.periods",
    "history": "limits.turns.periods",
    "unheeded": "limits.turns.periods",
    "spending": "limits.turns.stale_spend",
}
