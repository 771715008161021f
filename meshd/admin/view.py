"""What the daemon lets the admin ports see and do. No secret may be put into any of it.

Every method is called on the loop's thread and must not block; what is returned is encoded as JSON by field name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


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
class AccountDump:
    """One account of the ledger, in tokens."""

    id: str
    total: int
    spent: int
    reserved: int


@dataclass(frozen=True, slots=True)
class AccountsPage:
    """Accounts in the order of their ids. `next_after` is empty on the last page."""

    accounts: Sequence[AccountDump]
    next_after: str = ""


@dataclass(frozen=True, slots=True)
class BreakerDump:
    """One breaker: which upstream, model and credential (by a hash, never itself), and its state."""

    upstream: str
    model: str
    credential: str
    state: str
    """closed, half_open or open."""
    reopens_in_s: float | None = None
    """Seconds until a probe is let through; None where it is not open."""


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

    def accounts(self, *, after: str, limit: int) -> AccountsPage:
        """Return at most `limit` accounts whose ids sort after `after`."""
        ...

    def breakers(self) -> Sequence[BreakerDump]: ...

    def status(self) -> StatusDump: ...

    async def reload(self) -> ReloadResult:
        """Read the policy anew; keep the old document where that fails."""
        ...

    def drain(self) -> None:
        """Begin to drain. A second call changes nothing."""
        ...
