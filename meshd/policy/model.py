"""The document as pydantic sees it: keys, types, units and defaults. `meshd schema` prints it as JSON Schema.

What a filter can be set to stands in the filter's own file; here these settings are put together. Limits and
upstreams become the objects of `meshd.policy.compiled`, whose defaults are the only ones.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from meshd.filters.allow_list_settings import AllowSettings
from meshd.filters.approval_settings import ApprovalSettings
from meshd.filters.breaker_settings import BreakerSettings
from meshd.filters.budget_settings import BudgetSettings
from meshd.filters.chain_settings import ChainSettings
from meshd.filters.concurrency_settings import ConcurrencySettings
from meshd.filters.contract import SECTION
from meshd.filters.delegation_settings import DelegateSettings
from meshd.filters.fallback_settings import RetrySettings
from meshd.filters.idempotency_settings import IdempotencySettings
from meshd.filters.routing_settings import RouteSettings
from meshd.filters.turns_settings import TurnsSettings
from meshd.filters.units import Count, Duration, Money, Rate, Size, Times
from meshd.policy.card_section import Talking
from meshd.policy.gateway import McpSettings, ServerSection
from meshd.policy.model_catalogue import MODEL_PATTERN, Catalogued
from meshd.policy.model_events import Subscribing
from meshd.policy.model_intents import Intended
from meshd.policy.model_prompts import Prompted
from meshd.policy.model_state import Stateful
from meshd.policy.process import ProcessSection

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
"""Names of upstreams and agents: they stand in paths, in host names and in metric labels."""
RULE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
HOST_PATTERN = r"^[A-Za-z0-9_.-]{1,253}$|^[0-9A-Fa-f:.]{2,45}$"

KindName = Literal["llm", "tool", "agent", "host"]
MatchedName = Literal["llm", "tool", "agent", "host", "event"]
_MATCHED = ["llm", "tool", "agent", "host", "event"]
_GLOB_LIST: dict[str, Any] = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}


def one_or_many(value: Any) -> Any:
    """Let one text stand for a list of one."""
    return (value,) if isinstance(value, str) else value


Glob = Annotated[str, Field(min_length=1, max_length=512)]
Globs = Annotated[
    tuple[Glob, ...],
    BeforeValidator(one_or_many),
    Field(min_length=1, max_length=1000),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": 512}, _GLOB_LIST]}),
]
Kinds = Annotated[
    tuple[MatchedName, ...],
    BeforeValidator(one_or_many),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"enum": _MATCHED}, {"type": "array", "items": {"enum": _MATCHED}, "minItems": 1}]}),
]
Unenforced = Annotated[Any, Field(json_schema_extra={"x-meshd-unenforced": True})]
"""Known, and not enforced by this build: refused at load unless `--accept-unenforced`."""


class Section(BaseModel):
    """A map of the document. Unknown keys are errors."""

    model_config = SECTION


class Governance(Section):
    """The short form: a few keys that hold for every call."""

    max_tokens_per_workflow: Annotated[Count, Field(ge=1)] | None = None
    """Tokens that one workflow may spend on LLMs, however many agents take part in it."""
    max_dollars_per_workflow: Annotated[Money, Field(ge=1)] | None = None
    """US dollars that one workflow may spend on LLMs, by the prices of the models. Beside the tokens, or alone."""
    human_in_the_loop_required: bool = False
    """A person must allow every tool call that can change something, and every call to an LLM that may cost more than
    `approvals.above_tokens` or `above_dollars`."""
    allowed_tools: tuple[str, ...] | None = None
    """Tools that may be offered to a model or called; an empty list allows none."""


class LimitsSection(Section):
    """Limits that hold for every call."""

    hops: int = Field(default=16, ge=0, le=1000)
    """Agent-to-agent edges from the beginning of a workflow. A tool call or an LLM call is not a hop. Unset: as
    `MESHD_HOPS` says, where that is set."""
    turns: TurnsSettings = TurnsSettings()
    """When agents that go in circles are stopped."""
    deadline: Annotated[Duration, Field(gt=0)] | None = None
    """Time that a workflow may take where its opener named no nearer deadline. Unset: no limit."""
    header_count: int = Field(default=100, ge=1, le=10_000)
    """Header fields of a request."""
    header_size: Size = Field(default=65_536, ge=1024, le=2**20)
    """Bytes of a request's header fields together."""
    url_size: Size = Field(default=16_384, ge=256, le=2**20)
    """Bytes of a request's URL."""
    request_body: Size = Field(default=32 * 2**20, ge=1024, le=2**31)
    """Bytes of a request that a dialect must read whole. Other requests stream, without a limit."""
    reply_body: Size = Field(default=32 * 2**20, ge=1024, le=2**31)
    """Bytes that are kept of an answer while it passes, to meter or judge it."""
    connections_per_peer: int = Field(default=1024, ge=1, le=1_000_000)
    """Connections from one address."""
    streams_per_connection: int = Field(default=100, ge=1, le=10_000)
    """HTTP/2 streams open at once on one connection."""
    resets_per_minute: int = Field(default=1000, ge=1, le=1_000_000)
    """HTTP/2 streams reset on one connection, by either side, in a minute."""
    header_timeout: Duration = Field(default=10.0, gt=0, le=3600)
    """Time in which a request's header fields must have arrived."""
    idle_timeout: Duration = Field(default=300.0, gt=0, le=86_400)
    """Time after which a connection without a call is closed."""
    body_rate_min: Size = Field(default=240, le=2**30)
    """Bytes per second that a caller must send of a body that is read whole, on average. 0: any rate."""
    drain: Duration = Field(default=30.0, ge=0, le=86_400)
    """Time that running calls have to finish when meshd ends."""
    names_workflows: bool = True
    """A caller may name the workflow that its call belongs to."""
    infers_context: bool = True
    """A call that does not say to which workflow it belongs is tied to an inbound call by what it quotes. It is then
    charged and restricted like that call, and nothing is granted for it."""
    unattributed_tokens: Count | None = None
    """Tokens for each agent and UTC day for calls that no evidence ties to a workflow. Not set: 100,000, or the
    smallest budget of a workflow where that is less."""


class TlsSection(Section):
    """How an upstream's certificate is verified."""

    ca: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """File of PEM certificates that are trusted in place of the system's."""


class KeySection(Section):
    """A provider's key that meshd attaches, so that the agent need not have it. Sent to this upstream's origin only."""

    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] | None = None
    """Header field for the key. Unset: `x-api-key` for anthropic, `x-goog-api-key` for gemini, else `authorization` (as
    `Bearer KEY`)."""
    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")] | None = None
    """Environment variable of meshd that holds the key."""
    file: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """File that holds the key."""


class PoolSection(Section):
    """Connections to an upstream."""

    connections: int = Field(default=1024, ge=1, le=100_000)
    """Connections open at once."""
    pending: int = Field(default=1024, ge=0, le=100_000)
    """Calls that may wait for a connection."""
    connect_timeout: Duration = Field(default=5.0, gt=0, le=300)
    """Time to connect, TLS included."""
    idle_timeout: Duration = Field(default=60.0, gt=0, le=3600)
    """Time that an unused connection is kept."""


class TimeoutsSection(Section):
    """How long an upstream may be silent."""

    first_byte: Duration = Field(default=600.0, gt=0, le=86_400)
    """Time from the end of the request to the first byte of the reply."""
    first_token: Annotated[Duration, Field(gt=0, le=86_400)] | None = None
    """Time from the request to a model's first output where a stream is asked for: neither the reply's head nor a ping
    is one. The stream is held back until then, so that another attempt can be made. Unset: no limit of its own."""
    gap: Duration = Field(default=300.0, gt=0, le=86_400)
    """Time between two pieces of a reply."""


class LongSection(Section):
    """What a model costs where a call's input is long: US dollars for a million tokens."""

    above: Annotated[Count, Field(ge=1)]
    """Input tokens above which the whole call is charged so."""
    input: Rate
    """Input, no less than without `long`."""
    cached_input: Rate | None = None
    """Input that was in the provider's cache. Unset: as `input` here."""
    cache_write: Rate | None = None
    """Input that the provider puts into its cache. Unset: as `input` here."""
    cache_write_long: Rate | None = None
    """The same, to be kept for longer. Unset: as `cache_write` here."""
    output: Rate
    """Output, reasoning included."""


class PriceSection(Section):
    """What a model costs: US dollars for a million tokens."""

    input: Rate
    """Input. 0 is a price: nothing is held for it."""
    cached_input: Rate | None = None
    """Input that was in the provider's cache. Unset: as `input`."""
    cache_write: Rate | None = None
    """Input that the provider puts into its cache. Unset: as `input`."""
    cache_write_long: Rate | None = None
    """The same, to be kept for longer. Unset: as `cache_write`."""
    output: Rate
    """Output, reasoning included; 0 for embeddings."""
    priority: Times | None = None
    """Times all of this costs where the provider may serve a call with priority, which holds unless the request says
    that it does not. Unset: 1."""
    long: LongSection | None = None
    """Other prices for long inputs."""


Prices = dict[Annotated[str, Field(pattern=MODEL_PATTERN)], PriceSection]


class UpstreamSection(Catalogued, ServerSection, Talking, Section):
    """An address that serves a target."""

    url: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """`http` or `https`, host, port, and the path that precedes every call's own. No user, query or fragment. Only
    with `session: true` or `process` there is none."""
    kind: KindName | None = None
    """What it is. May be left out for a well-known LLM and where `dialect` is one of an LLM's."""
    dialect: Literal["openai", "anthropic", "gemini", "ollama", "bedrock", "plain", "mcp", "a2a"] | None = None
    """What its bodies mean: one of an LLM's; `mcp` or `a2a` of a tool or an agent, by which rules see the tool that is
    called. Unset: a well-known LLM's own, else `plain`."""
    protocol: Literal["auto", "http/1.1", "h2"] = "auto"
    """`auto` asks by ALPN over TLS and takes HTTP/1.1 without; `h2` without TLS begins with prior knowledge."""
    session: bool = False
    """An agent that opens a session with this sidecar and is called through it, in place of at a `url`."""
    process: ProcessSection | None = None
    """An MCP server that meshd starts and speaks to over its standard input and output, in place of at a `url`."""
    transport: Literal["http", "sse"] = "http"
    """Of `dialect: mcp`: `sse` for a server of 2024-11-05, whose `url` is the one of its event stream."""
    unmetered: bool = False
    """Let calls and tunnels to an LLM pass whose tokens nobody can count."""
    peer: bool = False
    """The address is another sidecar's inbound port: it gets the context token, and mints its own from it."""
    sends_trace: bool | None = None
    """`traceparent` and `baggage` leave to it. Unset: to agents only."""
    tls: TlsSection = TlsSection()
    """How its certificate is verified."""
    key: KeySection | None = None
    """The provider's key that meshd attaches."""
    pool: PoolSection = PoolSection()
    """Connections to it."""
    timeouts: TimeoutsSection = TimeoutsSection()
    """How long it may be silent."""
    prices: Prices = {}
    """What its models cost, before the document's own `prices`."""
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,32}$")] | None = None
    """Of an MCP server behind the gateway: its tools are called by this, two underscores, and their names. Empty: by
    their names alone. Unset: the upstream's name."""
    endpoint: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,63}){1,8}/?$")] | None = None
    """Path below `url` at which an MCP server takes the gateway's messages. Unset: that of `url`, else `/mcp`."""


class MatchSection(Section):
    """Which calls a rule is for. Every key that is set must fit; `*` fits any run of characters and `?` one."""

    target: Globs | None = None
    """Names of upstreams; `app` for calls that come in to the agent beside this sidecar."""
    kind: Kinds | None = None
    """`llm`, `tool`, `agent` or `host`; `event` for what is published and handed out."""
    agent: Globs | None = None
    """Name of the agent that calls."""
    tool: Globs | None = None
    """Name of the tool that a call to an upstream of `dialect: mcp` names, or of any other upstream of kind tool."""
    model: Globs | None = None
    """Model that an LLM call asks for."""
    operation: Globs | None = None
    """`chat`, `responses` and others that dialects of LLMs read; of `dialect: mcp` and `a2a` a message's method, as in
    `tools/call`; else method and path, as in `DELETE /invoices/*`; a gRPC call's service and method too, as in
    `research.v1.Research/*`. Of an event, `PUBLISH` or `HANDLE` and its topic."""
    topic: Globs | None = None
    """Topic of an event. A rule that names one is for events alone."""


class RuleSection(Section):
    """One rule: which calls, and what is set for them."""

    name: Annotated[str, Field(pattern=RULE_NAME_PATTERN)] | None = None
    """Name in messages, metrics and counters. Unset: `rule-` and its number."""
    match: MatchSection = MatchSection()
    """Which calls. Unset: all."""
    shadow: bool = False
    """Decide, count and trace, but let every call pass."""
    budget: BudgetSettings | None = None
    """A budget of tokens, dollars or both. Every budget that matches applies."""
    breaker: BreakerSettings | None = None
    """When to stop calling a failing upstream. Unset: on, with its defaults."""
    retry: RetrySettings | None = None
    """Which failed attempts to make again. Unset: on, with its defaults."""
    fallback: ChainSettings | None = None
    """What takes the place of a target that fails."""
    concurrency: ConcurrencySettings | None = None
    """How many attempts may be under way at once. Unset: on, with its defaults."""
    turns: TurnsSettings | None = None
    """When these calls are a loop. Unset: as `limits.turns` says."""
    approval: ApprovalSettings | None = None
    """Whose consent a call needs."""
    allow: AllowSettings | None = None
    """What the call may use. An `allow` also takes the lists that it does not set from later rules that match."""
    deny: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Refuse, with this message."""
    delegate: DelegateSettings | None = None
    """How many of the caller's tokens a called agent is given. Needs calls to agents."""
    route: RouteSettings | None = None
    """Where the call goes in place of what it names."""
    idempotency: IdempotencySettings | None = None
    """How a call that is made again gets the first one's answer. Unset: on, with its defaults."""


class SupervisorSection(Section):
    """Whom to ask about a workflow that goes in circles, before it is stopped. Exactly one of `agent`, `url`, `topic`
    and `people` is set."""

    agent: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """An upstream of kind agent, which gets the story as a POST."""
    url: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """An address that gets the same."""
    topic: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """A topic of the bus: the story is published there, and the answer is an event that names it as its cause."""
    people: bool = False
    """Those who approve: the question stands among the approvals."""
    timeout: Annotated[Duration, Field(gt=0, le=86_400)] = 60.0
    """Time to answer in. No answer stops the workflow."""


class ApproverSection(Section):
    """A person who may allow calls."""

    key: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """What meshd knows of that person's key: `meshd approvals key NAME` makes one, and prints this."""


class WebhookKeySection(Section):
    """A secret that whoever listens shares with meshd. Exactly one of the two is set."""

    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")] | None = None
    """Environment variable of meshd that holds it."""
    file: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """File that holds it."""


class ApprovalsSection(Section):
    """How people learn that they are asked."""

    webhook: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """An address that gets each approval as a POST when it is asked for, and when it is decided."""
    webhook_key: WebhookKeySection | None = None
    """Signs each of these, as Standard Webhooks has it. Unset: they are not signed."""
    topic: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """A topic of the bus, which gets the same as events."""
    page: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """Where people decide, for clients of MCP that can show their user an address (elicitation by URL). `{id}` in it
    stands for the approval's id. Showing it decides nothing. Unset: nobody is shown one."""
    above_tokens: Annotated[Count, Field(ge=1)] | None = None
    """With `governance.human_in_the_loop_required`: calls to LLMs that may cost more tokens than this ask, too. Unset:
    half of the workflow's budget."""
    above_dollars: Annotated[Money, Field(ge=1)] | None = None
    """The same in money."""


class ErrorsSection(Section):
    """What refusals say."""

    expose_amounts: bool = True
    """Say how many tokens and dollars were used and allowed."""


class Document(Prompted, Intended, Stateful, Subscribing, Section):
    """A policy: what a sidecar does with each call of its agent."""

    agent: Annotated[str, Field(pattern=NAME_PATTERN)] = "agent"
    """Name of the agent beside this sidecar."""
    tenant: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Whose sidecar this is, for budgets `per: tenant`. No caller can say it."""
    governance: Governance = Governance()
    """The short form."""
    limits: LimitsSection = LimitsSection()
    """Limits that hold for every call."""
    upstreams: dict[Annotated[str, Field(pattern=NAME_PATTERN)], UpstreamSection] | None = None
    """Addresses by name. Unset: the well-known LLM APIs."""
    rules: tuple[RuleSection, ...] = ()
    """Rules, in order: for each filter the first that matches and sets it wins."""
    prices: Prices = {}
    """What models cost, by name or glob; the first that fits, before the table that comes with meshd."""
    errors: ErrorsSection = ErrorsSection()
    """What refusals say."""
    mcp: McpSettings = McpSettings()
    """The gateway to all MCP servers."""
    owner: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The approver whose agent this is: the agent's calls are never theirs to allow."""
    approvers: dict[Annotated[str, Field(pattern=NAME_PATTERN)], ApproverSection] = {}
    """Who may allow calls."""
    approvals: ApprovalsSection = ApprovalsSection()
    """How they learn of it."""
    on_exceeded: SupervisorSection | None = None
    """Whom to ask about a workflow that goes in circles. Unset: nobody, it is stopped."""
    hosts_allowed: tuple[Annotated[str, Field(pattern=HOST_PATTERN)], ...] = ()
    """Host names that the listener accepts besides its own."""
