"""Who is asked before a workflow is stopped, and what may be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Action = Literal["continue", "redirect", "finish", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTold:
    """One edge of a workflow."""

    source: str
    target: str
    kind: str
    turns: float
    """How many, where one that brought something new counts a tenth."""
    rounds: int
    """How often the question that came again most was asked with the same answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What a supervisor is told of a workflow that goes in circles."""

    workflow: str
    """Empty for calls that belong to none; `account` then says whose they are."""
    account: str
    source: str
    """Who makes the call that is held."""
    target: str
    operation: str
    call_id: str
    detector: str
    why: str
    """In words, as the model would be told."""
    path: tuple[str, ...] = ()
    """The agents that called one another to get here, `source` last."""
    edges: tuple[EdgeTold, ...] = ()
    tokens_stale: int = 0
    """Spent since anything new was said."""
    tokens_budget: int = 0
    """Of the workflow; 0 where none is set."""
    payloads: tuple[str, ...] = ()
    """SHA-256 of what was asked last on this edge, in hexadecimal digits, the newest last. No content."""
    actions: tuple[Action, ...] = ("continue", "redirect", "finish", "stop")
    """What may be answered here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a supervisor answers."""

    action: Action
    turns: int = 0
    """With `continue`: how many turns more the workflow gets, over all its edges."""
    target: str = ""
    """With `redirect`: the upstream that is called in place of the one that the call names."""
    answer: bytes = b""
    """With `finish`: the body of the answer that the caller gets."""
    content_type: str = "application/json"
    reason: str = ""
    """For the trace, and with `stop` for the caller."""
    by: str = ""
    """Who has decided."""


class Supervisor(Protocol):
    """Whom `on_exceeded` names."""

    async def ask(self, story: Story) -> Verdict | None:
        """Return the verdict; None where nobody answered in time. Raises nothing but CancelledError."""
        ...
