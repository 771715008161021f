"""What a policy document becomes: frozen objects that the hot path reads, with nothing left to parse.

A call keeps the `Policy` that it began with; a reload puts a new one beside it. Everything here is immutable but
for two things that no decision depends on: the bounded memo of plans and the hit counters of rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.call import Kind, Target
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.filters.approval_settings import ApprovalSettings
    from meshd.filters.breaker_settings import BreakerSettings
    from meshd.filters.budget_settings import BudgetSettings
    from meshd.filters.chain_settings import ChainSettings
    from meshd.filters.concurrency_settings import ConcurrencySettings
    from meshd.filters.contract import Settings
    from meshd.filters.delegation_settings import DelegateSettings
    from meshd.filters.fallback_settings import RetrySettings
    from meshd.filters.idempotency_settings import IdempotencySettings
    from meshd.filters.routing_settings import RouteSettings
    from meshd.filters.turns_settings import TurnsSettings
    from meshd.policy.matching import Matcher, Rule
    from meshd.policy.model import ApprovalsSection, SupervisorSection
    from meshd.policy.pricing import PriceBook

DialectName = Literal["openai", "anthropic", "gemini", "ollama", "bedrock", "plain", "mcp", "a2a"]
Protocol = Literal["auto", "http/1.1", "h2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """An address that serves a target, with everything that sending to it needs."""

    name: str
    kind: Kind
    url: str
    """As the document has it, without a trailing slash."""
    scheme: Literal["http", "https"]
    host: str
    """Host name in lower case, or an address; an IPv6 address stands without its brackets."""
    port: int
    base_path: str
    """What precedes the call's own path: empty, or begins with a slash and does not end with one."""
    authority: bytes
    """For the Host field: with the port where it is not the scheme's own."""
    dialect: DialectName
    protocol: Protocol = "auto"
    is_unmetered: bool = False
    """Calls to an LLM that no dialect reads may pass, and tunnels too: nobody counts their tokens."""
    is_dialect_told: bool = True
    """The document says which dialect it speaks; else a call's own fields may say that it is MCP or A2A."""
    is_session: bool = False
    """An agent that is reached by the session which it keeps with this sidecar: it has no address."""
    is_peer: bool = False
    """The address is another sidecar's inbound port, which verifies the context token and mints its own."""
    sends_trace: bool = False
    """`traceparent` and `baggage` leave to this upstream."""
    ca_file: str | None = None
    """PEM bundle that replaces the system's; None for the system's."""
    key_header: bytes | None = None
    """Header field, in lower case, in which meshd sends the provider's key; None where the agent sends its own."""
    key_prefix: bytes = b""
    """What stands before the key in that field: `Bearer ` for authorization."""
    key_env: str | None = None
    key_file: str | None = None
    connections_max: int = 1024
    pending_max: int = 1024
    """Calls that wait for a connection."""
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 60.0
    first_byte_timeout_s: float = 600.0
    first_token_timeout_s: float | None = None
    """Longest from sending to a model's first output in a stream; None for no such limit."""
    gap_timeout_s: float = 300.0
    """Longest silence between two pieces of a reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that hold for every call, whatever its target."""

    hops: int = 16
    """Agent-to-agent edges from the workflow's beginning."""
    deadline_s: float | None = None
    """Seconds that a workflow may take, where its opener named no nearer deadline; None for no limit."""
    header_count_max: int = 100
    header_bytes_max: int = 65_536
    url_bytes_max: int = 16_384
    request_body_bytes_max: int = 32 * 2**20
    """Of a request that a dialect must read whole; others stream without a limit."""
    reply_body_bytes_max: int = 32 * 2**20
    """Of a reply that is kept while it passes, to be metered or judged."""
    connections_per_peer_max: int = 1024
    streams_per_connection_max: int = 100
    resets_per_minute_max: int = 1000
    header_timeout_s: float = 10.0
    idle_timeout_s: float = 300.0
    body_rate_min_bytes_s: int = 240
    """A caller that sends its body slower than this, on average after the first seconds, is dropped."""
    drain_s: float = 30.0
    names_workflows: bool = True
    """A caller may name the workflow that its call belongs to."""
    infers_context: bool = True
    """A call that does not say to which workflow it belongs may be tied to one by other evidence."""
    unattributed_tokens: int = 100_000
    """Tokens for each agent and UTC day for calls that no evidence ties to a workflow."""


class Plan:
    """The settings of every filter for one sort of call, as the rules matched. Shared by all calls of that sort."""

    __slots__ = (
        "allow", "approval", "breaker", "budgets", "chain", "concurrency", "delegate", "hits", "idempotency", "retry",
        "route", "rules", "terms", "trials", "turns",
    )  # fmt: skip

    def __init__(
        self,
        *,
        route: RouteSettings | None = None,
        allow: AllowSettings | None = None,
        budgets: tuple[BudgetSettings, ...] = (),
        breaker: BreakerSettings | None = None,
        retry: RetrySettings | None = None,
        approval: ApprovalSettings | None = None,
        delegate: DelegateSettings | None = None,
        chain: ChainSettings | None = None,
        concurrency: ConcurrencySettings | None = None,
        idempotency: IdempotencySettings | None = None,
        turns: TurnsSettings | None = None,
        trials: tuple[Settings, ...] = (),
        rules: tuple[str, ...] = (),
        hits: tuple[Hits, ...] = (),
    ) -> None:
        self.route = route
        self.allow = allow
        self.budgets = budgets
        """Every budget that matched, in the order of the rules: each must admit."""
        self.breaker = breaker
        self.retry = retry
        self.approval = approval
        self.delegate = delegate
        self.chain = chain
        self.concurrency = concurrency
        self.idempotency = idempotency
        self.turns = turns
        self.trials = trials
        """Settings of shadow rules that stand beside one which binds: they decide, are counted, and never bind."""
        self.rules = rules
        """Names of the rules that set something here, in their order."""
        self.hits = hits
        self.terms: Any = None
        """What Budget has worked out of `budgets`: kept here, since a plan is shared by many calls."""

    def hit(self) -> None:
        """Count a call that used this plan, for each rule that set something in it."""
        for hits in self.hits:
            hits.count += 1


class Hits:
    """How many calls used what a rule sets."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One document, compiled. Swapped whole, never changed."""

    agent: str
    """Name of the agent beside this sidecar."""
    limits: Limits
    upstreams: Mapping[str, Upstream]
    rules: tuple[Rule, ...]
    """In the document's order; the last is the short form's, where it sets something."""
    matcher: Matcher
    prices: PriceBook
    turns_span_s: float = 86_400.0
    """How long a workflow without a turn is remembered: the longest of what `limits.turns` and the rules say."""
    tenant: str = ""
    """Whose sidecar this is, for budgets that are counted so."""
    workflow_tokens: int | None = None
    """Tokens of the smallest budget that counts a workflow's own account; None where there is none."""
    expose_amounts: bool = True
    """Refusals and warnings say how much was used and allowed."""
    owner: str = ""
    """The approver whose agent this is; empty where none is named."""
    approvers: Mapping[str, str] = field(default_factory=dict)
    """By name: SHA-256 of the key, in hex."""
    approvals: ApprovalsSection | None = None
    """How approvers learn that they are asked."""
    supervisor: SupervisorSection | None = None
    """Whom to ask about a workflow that goes in circles; None for nobody."""
    hosts_allowed: tuple[str, ...] = ()
    """Host names that the listener accepts besides its own, for pods; lower case, without ports."""
    digest: str = ""
    """SHA-256 over the documents' bytes, in hex."""
    source: str = ""
    """Where the document was read, for logs."""
    warnings: tuple[str, ...] = ()

    def plan(self, target: Target, agent: str, operation: str, tool: str = "") -> Plan:
        """Return the settings that the rules give to a call. Never raises; the cost does not grow with the rules."""
        return self.matcher.plan(target, agent, operation, tool)

    def hits(self) -> dict[str, int]:
        """Return how many calls used each rule, by the rule's name, in the document's order."""
        return {rule.name: rule.hits.count for rule in self.rules}

    def never_matched(self) -> tuple[str, ...]:
        """Return the names of the rules that no call has used."""
        return tuple(rule.name for rule in self.rules if not rule.hits.count)
