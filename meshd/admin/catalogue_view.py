"""What the daemon lets the admin port see of the catalogue; see `meshd.admin.view`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class FindingDump:
    """One flaw of one entry."""

    flaw: str
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class OwnerDump:
    """One who offers something: an upstream, an agent with a session, or one that another sidecar has."""

    owner: str
    origin: str
    """How it is known: policy, session, mcp, a2a, reflection or openapi."""
    state: str
    """new, healthy, unhealthy or gone; `told` where it is not asked, `shared` where another sidecar has it."""
    why: str = ""
    """Why it did not answer the last time."""
    answered_s_ago: float | None = None
    description: str = ""
    version: str = ""
    breaker: str = ""
    """The state of the most open breaker of the upstream; empty where nothing was sent to it."""
    is_listened_to: bool = False
    """It says when what it offers changes."""
    sidecar: str = ""
    """The other sidecar."""
    offered: int = 0
    quarantined: int = 0
    refused: Sequence[FindingDump] = ()
    noted: Sequence[FindingDump] = ()


@dataclass(frozen=True, slots=True)
class EntryDump:
    """One thing that can be called, or that could be if it were not in quarantine."""

    sort: str
    owner: str
    name: str
    title: str
    description: str
    origin: str
    version: str
    intents: Sequence[str]
    is_read_only: bool
    digest: str
    """Of what a model is shown of it."""
    is_local: bool
    """This sidecar has it itself."""
    quarantined: str = ""
    """Why it is not offered; empty where it is."""
    why: str = ""
    """The same in words."""
    findings: Sequence[FindingDump] = ()
    input_schema: Any = None
    """Left out of lists, as the next two are."""
    output_schema: Any = None
    annotations: Any = None


@dataclass(frozen=True, slots=True)
class MatchDump:
    """Something that was found."""

    score: float
    """0 to 1."""
    entry: EntryDump


@dataclass(frozen=True, slots=True)
class CandidateDump:
    """One agent that might serve what is wanted."""

    name: str
    score: float
    """0 to 1, as the next four."""
    words: float
    """By the words of all that is said of it (BM25)."""
    near: float
    """By the nearest thing that it can be asked for."""
    nearest: str
    examples: float
    """By what was learned from examples; 0 where that knows nothing of it."""
    is_named: bool
    """The words are its name, or what an operator wrote that it can be asked for."""
    shared: Sequence[str] = ()
    """Words, without their endings, that are wanted and said of it."""
    barred: str = ""
    """policy, quarantine, health or self, where it is passed over."""
    why: str = ""
    """The same in words."""


@dataclass(frozen=True, slots=True)
class RouteDump:
    """Whom a call goes to that only says what it wants, and why."""

    wanted: str
    agent: str
    """Who wants it."""
    choice: str
    """named, chosen, fanned_out, fallback, unclear, forbidden or away."""
    targets: Sequence[str]
    score: float
    why: str
    threshold: float
    margin: float
    fan_out: int
    fallback: str
    candidates: Sequence[CandidateDump]
    """All there are, the best first."""
    learned_words: Sequence[tuple[str, float]] = ()
    """What of the words spoke for what was learned best, in log-odds; empty where nothing was learned."""
    learned_examples: Sequence[tuple[str, float]] = ()
    """The nearest examples of that, and how near they are."""


class ApprovalGone(Exception):
    """There is nothing to approve under this name, or it has changed since; the message is for the operator."""


class PinsAway(Exception):
    """What was approved cannot be kept; the message is for the operator."""


class CatalogueView(Protocol):
    """The catalogue, as the admin port knows it."""

    def owners(self) -> Sequence[OwnerDump]:
        """Return who offers something, or should."""
        ...

    def entries(self, *, owner: str, sorts: Sequence[str], limit: int, after: int) -> tuple[Sequence[EntryDump], int]:
        """Return at most `limit` entries from the number `after` on, and the number to go on with, or 0."""
        ...

    def entry(self, owner: str, name: str) -> Sequence[EntryDump]:
        """Return all that has a name, whole: what is offered and what is in quarantine."""
        ...

    def search(self, words: str, limit: int) -> Sequence[MatchDump]:
        """Return what is found for words, the best first."""
        ...

    def route(self, wanted: str, agent: str) -> RouteDump:
        """Return whom a call of `agent` (empty: the one here) would go to for what it wants. Raises Refused."""
        ...

    async def approve(self, owner: str, name: str, digest: str) -> Sequence[EntryDump]:
        """Let what has this digest out of quarantine. Raises ApprovalGone and PinsAway."""
        ...
