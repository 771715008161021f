"""What the policy says of finding an agent by what is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meshd.discovery.ranking import MARGIN, THRESHOLD

if TYPE_CHECKING:
    from meshd.discovery.intents import Router


class IntentTerms(NamedTuple):
    """How sure one must be, and what follows where nobody is."""

    fallback: str = ""
    """The upstream that serves what nobody else does; empty for a refusal."""
    threshold: float = THRESHOLD
    """Score from which on an agent is chosen, 0 to 1."""
    margin: float = MARGIN
    """By how much the best must lead, or nobody can tell which of them is meant."""
    fan_out: int = 1
    """Most agents that one call may go to."""
    examples: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """By an upstream's name, or an intent of one: what people would say."""
    router: Router | None = None
    """What was learned from the examples; None where they are too few to learn from."""
