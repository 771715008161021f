"""What the daemon lets the admin ports see and do. No secret may be put into any of it.

Every method is called on the loop's thread and must not block; what is returned is encoded as JSON by field name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshd.admin.catalogue_view import CatalogueView
    from meshd.admin.events import EventsView
    from meshd.approvals.desk import Desk
    from meshd.prompts.desk import PromptDesk


@dataclass(frozen=True, slots=True)
class Check:
    """One reason why the sidecar is ready or not."""

    name: str
    is_ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RuleDump:
    """One rule of the policy and how many calls used it."""

    name: str
    hits: int
    is_shadow: bool = False


@dataclass(frozen=True, slots=True)
class PolicyDump:
    """The document in force."""

    source: str
    digest: str
    agent: str
    rules: Sequence[RuleDump]
    never_matched: Sequence[str]
    warnings: Sequence[str] = ()
    reload_error: str = ""
    """Why the newest document was not taken; empty where it was."""
    taken_at_s: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class LeaseDump:
    """What one holder (a sidecar) has of an account, by the owner's books; the one that was asked knows better."""

    holder: str
    outstanding: int
    """It may still spend so much. Whether it is alive nobody can say without a clock."""
    spent: int
    is_open: bool
    is_own: bool = False
    """The holder is the sidecar that was asked."""


@dataclass(frozen=True, slots=True)
class AccountDump:
    """One account, all amounts in `unit`: the owner's books, and what this sidecar knows beyond them."""

    id: str
    scope: str
    """What is counted together: workflow, agent and so on."""
    unit: str
    """tokens or microdollars."""
    total: int
    """The limit, with what operators added."""
    extra: int
    """Of it, what operators added."""
    used: int
    """Spent, with what this sidecar has not reported yet."""
    settled: int
    """Spent, as the books have it."""
    reserved: int
    """Held for calls in flight, here. What is in flight elsewhere is a part of `leases`."""
    delegated: int
    left: int
    """May still be spent: neither used, reserved here nor delegated."""
    available: int
    """Nobody has spent it or has it on lease."""
    leases: Sequence[LeaseDump] = ()
    wants: Mapping[str, int] = field(default_factory=dict)
    """By holder: what it waits for."""
    children: Mapping[str, int] = field(default_factory=dict)
    """By account: what was delegated to it and has not come back."""
    parent: str = ""
    is_closed: bool = False
    is_open_here: bool = False
    """This sidecar has it in memory."""
    frozen: str = ""
    """Why nothing is granted any more; empty where something is."""
    damage: str = ""
    """Why its books cannot be read; then no amount means anything."""


@dataclass(frozen=True, slots=True)
class AccountsPage:
    """Accounts in the order of their ids. `next_after` is empty on the last page."""

    accounts: Sequence[AccountDump]
    next_after: str = ""


@dataclass(frozen=True, slots=True)
class Ordered:
    """What an order to an account led to."""

    account: AccountDump
    is_new: bool = False
    """Nobody had used the account before."""
    written_off: int = 0


class BooksAway(Exception):
    """The books cannot be reached or kept; the message is for the operator."""


class UnknownAccount(Exception):
    """Nobody has used an account of this name, or the holder has no lease on it."""


class OrderRefused(Exception):
    """An order that would do harm, or mean nothing; the message says what to do."""


class Books(Protocol):
    """The accounts, as these ports know them. Every method may raise BooksAway."""

    async def page(self, *, after: str, limit: int) -> AccountsPage:
        """Return at most `limit` accounts whose ids sort after `after`."""
        ...

    async def account(self, id: str) -> AccountDump:
        """Return one account. Raises UnknownAccount."""
        ...

    async def top_up(self, id: str, amount: int, unit: str) -> Ordered:
        """Add to an account's limit. Raises OrderRefused where it counts another unit or would hold too much."""
        ...

    async def close(self, id: str) -> Ordered:
        """Let an account grant nothing more. Raises UnknownAccount."""
        ...

    async def reopen(self, id: str) -> Ordered:
        """Undo a close or a freeze. Raises UnknownAccount."""
        ...

    async def write_off(self, id: str, holder: str) -> Ordered:
        """Count a holder's lease as spent. Raises UnknownAccount, and OrderRefused for the lease of a living one."""
        ...


@dataclass(frozen=True, slots=True)
class TakenDump:
    """What an attempt took from one account, in `unit`."""

    account: str
    unit: str
    limit: int
    bound: int
    """Reserved."""
    charged: int


@dataclass(frozen=True, slots=True)
class AttemptDump:
    """One attempt that has ended."""

    number: int
    accounts: Sequence[TakenDump]
    """Empty where no budget counts the call."""
    input_bound: int
    bound_by: str
    """What the input's bound is made of, where that is known."""
    choices: int
    output_cap_asked: int | None
    output_cap: int | None
    """As it was sent; smaller than the one asked for where the budget had no more."""
    model_sent: str
    """Empty where it is the one that was asked for."""
    charged_tokens: int
    is_estimated: bool
    is_bound_passed: bool
    input_tokens: int | None
    """As reported, or meshd's own count; None where nothing is known."""
    output_tokens: int | None
    cached_tokens: int | None
    status: int
    verdict: str
    fault: str
    is_forwarded: bool
    first_byte_s: float | None
    took_s: float
    """From the call's first byte to the attempt's end."""


@dataclass(frozen=True, slots=True)
class RefusalDump:
    """One refusal, in the words that the client got."""

    attempt: int
    """The attempt that was refused; 0 where it never came to one."""
    reason: str
    status: int
    rule: str
    message: str
    is_shadow: bool
    """The rule only would have refused."""
    account: str = ""
    """Where an account had too little: which, and how it stood, in `unit`."""
    unit: str = ""
    limit: int | None = None
    used: int | None = None
    reserved: int | None = None
    bound: int | None = None
    least: int | None = None


@dataclass(frozen=True, slots=True)
class CallDump:
    """What was decided of one call."""

    id: str
    began_at_s: float
    """Unix seconds."""
    is_open: bool
    """Still in flight."""
    direction: str
    agent: str
    workflow: str
    evidence: str
    """How it was tied to its workflow: see docs/context.md."""
    kind: str
    target: str
    model: str
    operation: str
    attempts: Sequence[AttemptDump] = ()
    refusals: Sequence[RefusalDump] = ()


@dataclass(frozen=True, slots=True)
class CallsPage:
    """Calls, the newest first; only those that are still remembered."""

    calls: Sequence[CallDump]


@dataclass(frozen=True, slots=True)
class BreakerDump:
    """One breaker: which upstream, model and credential (by a hash, never itself), its state, and who is under way."""

    upstream: str
    model: str
    credential: str
    state: str
    """closed, half_open or open."""
    reopens_in_s: float | None = None
    """Seconds until a probe is let through; None where it is not open."""
    reopens_at_s: float | None = None
    """The same in unix seconds."""
    limit: int | None = None
    """Attempts that may be under way at once; None where nothing limits them."""
    in_flight: int = 0
    """Attempts under way."""
    queued: int = 0
    """Attempts that wait for their turn."""
    held_for_s: float = 0.0
    """Seconds for which the upstream has asked (Retry-After) to be left alone."""
    error_share: float = 0.0
    """Failed share, from 0 to 1, of the attempts that ended within the breaker's window."""
    last_failure: str = ""
    """A status, or the fault where no whole reply came; empty where nothing has failed."""
    last_failure_at_s: float | None = None
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class StatusDump:
    """The process."""

    version: str
    agent: str
    uptime_s: float
    connections_outbound: int
    connections_inbound: int
    calls_open: int
    is_draining: bool
    store: str = "ok"
    """ "ok", or what is wrong with the books, in words for the operator."""


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload led to. `problems` hold one line each, with file, line and column."""

    is_taken: bool
    digest: str
    problems: Sequence[str] = ()


class AdminView(Protocol):
    """The daemon, as these ports know it."""

    def ready(self, *, outbound_only: bool = False) -> Sequence[Check]:
        """Return all checks; ready means that every one is ok. With `outbound_only` those that concern calls of the
        agent alone: neither the app nor the drain of the inbound side."""
        ...

    def policy(self) -> PolicyDump | None:
        """Return the document in force, None before the first."""
        ...

    @property
    def books(self) -> Books: ...

    @property
    def desk(self) -> Desk | None:
        """Where people are asked; None where nobody is."""
        ...

    @property
    def prompts(self) -> PromptDesk | None:
        """Where prompts are kept; None where they are not."""
        ...

    @property
    def catalogue(self) -> CatalogueView | None:
        """What can be called; None where none is kept."""
        ...

    @property
    def events(self) -> EventsView | None:
        """The bus; None where there is none."""
        ...

    def call(self, id: str) -> CallDump | None:
        """Return what was decided of a call; None where it is not known, or not any more."""
        ...

    def calls(self, *, is_refused: bool, limit: int) -> CallsPage:
        """Return the last calls, or the last of those that were refused."""
        ...

    def breakers(self) -> Sequence[BreakerDump]: ...

    def status(self) -> StatusDump: ...

    async def reload(self) -> ReloadResult:
        """Read the policy anew; keep the old document where that fails."""
        ...

    def drain(self) -> None:
        """Begin to drain. A second call changes nothing."""
        ...
