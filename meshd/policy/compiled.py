"""What a policy document becomes: frozen objects that the hot path reads, with nothing left to parse.

A call keeps the `Policy` that it began with; a reload puts a new one beside it. Everything here is immutable but
for two things that no decision depends on: the bounded memo of plans and the hit counters of rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from meshd.discovery.intent_terms import IntentTerms
from meshd.prompts.terms import PromptTerms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.call import Kind, Target
    from meshd.discovery.told import Told
    from meshd.filters.plan import Plan
    from meshd.policy.gateway import McpSettings
    from meshd.policy.matching import GlobSet, Matcher, Rule
    from meshd.policy.model import ApprovalsSection, SupervisorSection
    from meshd.policy.model_events import SubscriptionSection
    from meshd.policy.model_intents import SemanticSection
    from meshd.policy.model_state import StateSection
    from meshd.policy.pricing import PriceBook
    from meshd.policy.process import Process

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
    process: Process | None = None
    """An MCP server that is started and spoken to over its standard input and output: it has no address."""
    is_sse: bool = False
    """An MCP server of 2024-11-05: the address is that of its event stream."""
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
    card_keys: tuple[str, ...] = ()
    """Files with the keys that may sign its card; empty where nobody verifies that."""
    is_card_signed: bool = False
    """A card that is not signed is refused."""
    card_origins: tuple[tuple[str, int], ...] = ()
    """Host and port of each other address by which its card names it."""
    takes_extension: bool | None = None
    """It is told of the workflow by meshd's A2A extension; None: where its card declares that."""
    charges_usage: bool | None = None
    """Charge what the metadata of its A2A answers reports; None: see `meshd.filters.hearsay`."""
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
    prefix: str = ""
    """Of an MCP server behind the gateway: what its tools are called by, the separator included."""
    endpoint: str = ""
    """The path at which the gateway sends messages to it, with the base path."""
    result_tokens_max: int | None = None
    """Of a result that comes through the gateway; None for what that says of all."""
    is_gateway: bool = False
    """It has no address: calls to it go to one of the MCP servers, or are answered for all of them."""

    @property
    def is_bridged(self) -> bool:
        """Whether its clients speak streamable HTTP and it speaks something else: see `meshd.bridge`."""
        return self.process is not None or self.is_sse


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
    gateway: Upstream | None = None
    """Stands for all MCP servers together, under a name of its own; None where there are none."""
    mcp: McpSettings | None = None
    """What the gateway shows."""
    told: Mapping[str, Told] = field(default_factory=dict)
    """By upstream: what the document says of it for the catalogue."""
    intents: IntentTerms = field(default_factory=IntentTerms)
    """How an agent is found by what is wanted."""
    subscriptions: tuple[SubscriptionSection, ...] = ()
    """Topics whose events go to agents as calls."""
    parked: GlobSet
    """Topics whose events are not handed out again where nothing was heard of an attempt."""
    semantic: SemanticSection | None = None
    """How events are led that say what is wanted; None where this sidecar leads none."""
    prompts: PromptTerms = field(default_factory=PromptTerms)
    """Where prompts are, and in whose messages they are looked for."""
    state: StateSection | None = None
    """What agents may share, and how much of it is kept."""
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
