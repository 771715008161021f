"""One intercepted exchange, in the words that every filter shares.

A `Call` is made by a wire (a filter never knows which), completed by a dialect (`Ask`), judged by the filters in order,
sent in one or more attempts, and ends in one `Outcome` per attempt.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from meshd.span import Span
    from meshd.upstream import Upstream
    from meshd_sdk.context import Context

Headers = list[tuple[bytes, bytes]]
"""Header fields in wire order; names are lower case on every wire."""
NO_FIELDS: Final[Headers] = []
"""Stands where most calls have none: whoever has some puts another list in its place. Never changed."""


class Kind(str, Enum):
    """What sort of thing a call is for."""

    LLM = "llm"
    TOOL = "tool"
    AGENT = "agent"
    HOST = "host"
    EVENT = "event"
    """No upstream's: what is published to a topic, and handed out of it. The target's name is the topic."""


class Direction(str, Enum):
    """Whose call it is: the agent's own (7400), or one that another sidecar brings to the agent (7401)."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"


OWN_PEER: Final = "meshd"
"""The address of a caller that is meshd itself."""
OURS: Final = "meshd:"
"""Begins the name of who makes a call of meshd's own; no agent has such a one, since a colon stands in no name."""


class Target(NamedTuple):
    """What a call is for: an upstream by its name in the policy, and the model where there is one."""

    kind: Kind
    name: str
    model: str = ""

    def with_model(self, model: str) -> Target:
        """The same with another model; made without the function of Python's that the class is made with."""
        return tuple.__new__(Target, (self[0], self[1], model))


class Evidence(str, Enum):
    """How a call was tied to its workflow, strongest first. What is inferred may restrict and be charged, never
    grant."""

    TOKEN = "token"
    RUN_ADDRESS = "run_address"
    NAMED = "named"
    OPENED = "opened"
    TRACE = "trace"
    RELAYED = "relayed"
    HISTORY = "history"
    QUOTED = "quoted"
    ALONE = "alone"
    NONE = "none"

    @property
    def is_inferred(self) -> bool:
        """Whether it is a conclusion of the sidecar's: a likely one, and no proof."""
        return self in _INFERRED


_INFERRED: Final = frozenset({Evidence.TRACE, Evidence.RELAYED, Evidence.HISTORY, Evidence.QUOTED, Evidence.ALONE})


class Usage:
    """Tokens that one attempt cost.

    `input_tokens` includes cached ones and those put into a cache, `output_tokens` includes reasoning: a dialect folds
    its own fields so.
    """

    __slots__ = ("billed", "cached_tokens", "input_tokens", "is_estimated", "output_tokens", "reasoning_tokens")

    def __init__(
        self,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        is_estimated: bool = False,
        billed: Any = None,
    ) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens
        self.reasoning_tokens = reasoning_tokens
        self.is_estimated = is_estimated
        self.billed = billed
        """`meshd.prices.billed.Billed`: what the answer says that its price depends on; None where it says nothing."""

    @property
    def total(self) -> int:
        """Tokens to charge."""
        return self.input_tokens + self.output_tokens

    def _values(self) -> tuple[Any, ...]:
        tokens = (self.input_tokens, self.output_tokens, self.cached_tokens, self.reasoning_tokens)
        return (*tokens, self.is_estimated, self.billed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"Usage{self._values()}"


class Ask:
    """What an LLM request asks for, as its dialect read it and never changes it, and what filters grant of that:
    `Dialect.rewrite` honours it, so that what was judged is what is forwarded."""

    __slots__ = (
        "begins", "bound_by", "choices", "degraded_by", "fields", "has_output", "input_bound", "is_sealed", "is_stream",
        "is_usage_asked", "model", "model_granted", "operation", "other_models", "output_cap", "output_cap_granted",
        "tier", "tools", "unbounded",
    )  # fmt: skip

    def __init__(
        self,
        operation: str,
        model: str,
        is_stream: bool = False,
        input_bound: int = 0,
        output_cap: int | None = None,
        choices: int = 1,
        has_output: bool = True,
        tools: tuple[str, ...] = (),
        is_usage_asked: bool = False,
        fields: Any = None,
        tier: str = "",
        unbounded: str = "",
    ) -> None:
        self.operation = operation
        """`gen_ai.operation.name`: chat, embeddings, and the others that `docs/dialects.md` lists."""
        self.model = model
        self.is_stream = is_stream
        self.input_bound = input_bound
        """Tokens that the input cannot exceed."""
        self.bound_by = "bytes"
        """What that was made of: see `meshd.tokens.encodings`."""
        self.output_cap = output_cap
        """Output cap in tokens for each choice as the client set it; None where it set none."""
        self.choices = choices
        """How many answers are generated (`n`): they multiply the output bound."""
        self.has_output = has_output
        """False where the request has no cap of its output to be set: `input_bound` then bounds all that it costs."""
        self.tools = tools
        """Names of the tools that the request offers to the model."""
        self.is_usage_asked = is_usage_asked
        """The client itself asked for usage in the stream."""
        self.fields = fields
        """The dialect's own decoded map of the body, for `rewrite`; nobody else reads it."""
        self.tier = tier
        """The tier of service that the request asks for, empty where it asks for none: prices differ by it."""
        self.begins = False
        """The reply may come before the work is done: a later call reads what it has cost (OpenAI's `background`)."""
        self.unbounded = unbounded
        """Why no number of tokens is known that the call cannot exceed; empty where `input_bound` is one."""
        self.other_models: tuple[str, ...] = ()
        """Models that the provider may take besides, because the request says so."""
        self.is_sealed = False
        """The request is signed: it can be forwarded as it came, or not at all."""
        self.model_granted: str | None = None
        self.output_cap_granted: int | None = None  # by a budget: the client's own where all of it fits
        self.degraded_by = ""
        """The rule whose budget put a cheaper model in the place of the one that was asked for."""

    @property
    def model_sent(self) -> str:
        """The model that the upstream will be asked for."""
        return self.model_granted if self.model_granted is not None else self.model


class Rpc:
    """What a JSON-RPC call (MCP, A2A) asks for, as its dialect read it and never changes it."""

    __slots__ = (
        "also", "arguments", "binding", "context_id", "declares_tasks", "elicits_urls", "forwarded", "id",
        "is_declined", "is_impatient", "is_json_taken", "is_read_only", "is_reply", "is_resumable", "is_stream", "key",
        "leg", "method", "progress_token", "protocol", "state", "takes_task", "task", "task_id", "tool", "tool_call_id",
    )  # fmt: skip

    def __init__(
        self,
        protocol: str,
        method: str = "",
        id: bytes = b"",
        *,
        tool: str = "",
        arguments: bytes = b"",
        is_read_only: bool = False,
        key: str = "",
        is_stream: bool = False,
        is_json_taken: bool = True,
        progress_token: bytes = b"",
    ) -> None:
        self.protocol = protocol
        """`mcp` or `a2a`."""
        self.method = method
        """As the caller wrote it (`tools/call`, `SendMessage`, `message/send`); empty for the reply to a request that
        the server made."""
        self.id = id
        """Raw JSON, to be echoed; empty for a notification and for a reply, which nobody answers. An MCP client makes
        a new one for every attempt, so it does not say what is the same call."""
        self.tool = tool
        """Of `tools/call`."""
        self.arguments = arguments
        """What decides what the call does, as canonical JSON (RFC 8785): the arguments of `tools/call`, A2A's message,
        else the parameters; without `_meta`, which clients write anew for every attempt."""
        self.is_read_only = is_read_only
        """It changes nothing, by what the protocol says of its method. `tools/call` may change something."""
        self.key = key
        """What names the call when it is made again: A2A's `messageId`, or `meshd/idempotency-key` in `_meta`; empty
        where it has none."""
        self.tool_call_id = ""
        """Which of the model's tool calls it carries out, where its client says so in `_meta`."""
        self.is_stream = is_stream
        """The caller takes an event stream for an answer."""
        self.is_json_taken = is_json_taken
        """The caller takes a plain answer too."""
        self.progress_token = progress_token
        """Raw JSON: by it the caller wants to be told how far the call is; empty where it asked for nothing."""
        self.is_reply = False
        """It answers what the server has asked of its client."""
        self.is_resumable = False
        """Its client makes the call again by itself when it is told that it must wait (MCP from 2026-07-28)."""
        self.leg = 0
        """How often it has done so, by the state that it brings along."""
        self.state = ""  # that state, where it is of our making; see `meshd.filters.resuming`
        self.is_declined = False  # its user did not want to be shown where people decide
        self.elicits_urls = False  # its client can show its user an address
        self.forwarded: bytes | None = None
        """The body to forward in place of the one that came: without what was told to the client and nobody else."""
        self.task = ""  # the id of a task that it names, where that looks like one of ours
        self.takes_task = False  # its client takes a task for an answer
        self.declares_tasks = False  # its client declares MCP's tasks extension
        self.is_impatient = False  # its client wants an answer at once, though it be a task that is not over
        self.context_id = ""  # of A2A: to which conversation the message belongs
        self.task_id = ""  # of A2A: which task it is about, whoever made that
        self.also = ""  # of A2A over REST: the method's name in the other version, where that may be meant
        self.binding = "jsonrpc"  # of A2A: how it came; else `rest` or `grpc`


# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_EVIDENCE_NONE: Final = Evidence.NONE
_NOWHERE: Final = Target(Kind.HOST, "")


class Reply:
    """An answer that meshd gives itself, here and now."""

    __slots__ = ("body", "headers", "rest", "size", "status", "trailers")

    def __init__(
        self, status: int, headers: Headers, body: bytes = b"", trailers: Headers | None = None, rest: Any = None,
        size: int | None = None,
    ) -> None:  # fmt: skip
        self.status = status
        self.headers = headers
        self.body = body
        self.trailers: Headers = [] if trailers is None else trailers
        self.rest = rest
        """`meshd.claims.rest.Rest`: what follows `body`, read while it is sent; None where `body` is all."""
        self.size = len(body) if rest is None else size  # of both; None where that shows only at the end


class ReplyHead(NamedTuple):
    """The status and header fields of an upstream's reply, as the wire read them."""

    status: int
    headers: Headers


class Wait:
    """A decision that is not there yet: the coroutine ends in a ticket, a Reply or None, or raises Refused."""

    __slots__ = ("coroutine", "is_hold")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, is_hold: bool = False) -> None:
        self.coroutine = coroutine
        self.is_hold = is_hold
        """A person or a supervisor is waited for, for so long that the caller must be shown signs of life. The
        coroutine is cancelled where the caller hangs up or the sidecar drains: before its end it must not have taken
        anything."""


class NeedBody:
    """A decision that needs the body of a call which streams: the proxy keeps it, sets `call.body` and asks again."""

    __slots__ = ("is_wish",)

    def __init__(self, is_wish: bool) -> None:
        self.is_wish = is_wish
        """Where the body is not whole soon, or long, the call goes on without: it then has `is_body_late`."""


NEED_BODY: Final = NeedBody(is_wish=False)
WANT_BODY: Final = NeedBody(is_wish=True)


class Call:
    """One intercepted exchange, from the last byte that had to be read to the last ticket settled."""

    __slots__ = (
        "agent", "ask", "attempt", "authority", "body", "card", "claim", "context", "credentials", "dialect",
        "direction", "earlier", "event", "evidence", "governed", "hand", "handed", "headers", "heard_by", "holding",
        "id", "inject", "is_body_late", "is_forwarded", "keyed", "lasting", "method", "now_s", "on_gone", "passage",
        "path", "peer", "plan", "policy", "prompts", "reply_headers", "reply_heard_by", "resumes", "rpc", "run_token",
        "span", "substitution", "target", "timeout_s", "upstream", "wall_s",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        direction: Direction,
        method: str,
        path: str,
        authority: str,
        headers: Headers,
        now_s: float,
        wall_s: float,
        peer: str = "",
        governed: Headers | None = None,
        credentials: Headers | None = None,
        keyed: Headers | None = None,
    ) -> None:
        self.id = id
        self.direction = direction
        self.method = method
        self.path = path  # and query, below the upstream's prefix, as it will be forwarded
        self.authority = authority
        self.headers = headers  # as received, names in lower case; filters never change them: see `inject`
        self.governed: Headers = headers if governed is None else governed  # of these, ours and the trace's
        self.credentials: Headers = headers if credentials is None else credentials  # of these, those with a key
        self.keyed: Headers = headers if keyed is None else keyed  # of these, those by which a call is known again
        self.now_s = now_s  # monotonic seconds at which the call began
        self.wall_s = wall_s  # the same in Unix seconds
        self.peer = peer
        self.timeout_s: float | None = None  # of the caller, where its wire says so: Context narrows the deadline by it
        self.body: bytes | None = None  # whole, where the dialect or a filter had to read it; None where it streams
        self.is_body_late = False  # a filter has waited for it as long as it may
        self.agent = self.run_token = ""  # who calls or, inbound, is called, set by Context; what a run's address holds
        self.target: Target = _NOWHERE
        self.upstream: Upstream | None = None  # of `target`; None until Routing has found it
        self.dialect: Any = None
        self.ask: Ask | None = None  # what the body asks for; None where the dialect has no request to read
        self.rpc: Rpc | None = None  # what a JSON-RPC body asks for (MCP, A2A)
        self.earlier: Ask | None = None  # what an earlier call asked for, whose cost this one's reply may tell
        self.context: Context | None = None
        self.lasting: Context | None = None  # the context before `timeout_s` narrowed it; None where that did not
        self.evidence: Evidence = _EVIDENCE_NONE
        self.heard_by: Any = None  # what hears the body as it passes, though nobody reads it whole: `hear(data)`
        self.reply_heard_by: Any = None  # the same of a reply that no meter reads
        self.policy: Any = None  # the frozen document this call began with; a reload does not change it
        self.plan: Any = None  # every filter's settings for this call, as the rules of `policy` match: set by Routing
        self.inject: Headers = NO_FIELDS  # header fields that meshd adds to the forwarded request
        self.reply_headers: Headers = []  # the same of the reply
        self.holding: Any = None  # what holds it while people decide: `leave()` says that its caller has gone
        self.is_forwarded = False  # of an attempt that has ended, at least one byte may have reached an upstream
        self.handed: Context | None = None  # that of whoever published the event which it hands over
        self.hand: Any = None  # that event, as those who ask people know it
        self.resumes: str | None = None  # approval of a call that was held as a task; empty where it asks for its task
        self.attempt = 0  # number of the current one, from 1; 0 before the first
        self.event = 0  # in the trace: sequence of what was written down of it last; 0 before anything was
        self.span: Span | None = None
        self.substitution: Any = None  # `filters.substitution.Substitution`, once something takes the target's place
        self.card: Any = None  # `proxy.card_answer.Asked`, where the answer is an agent's card; None for most
        self.claim: Any = None  # `meshd.claims.claim.Claim`; None for most
        self.on_gone: Any = None  # called when nobody waits for the call any more while it waits itself; None for most
        self.prompts: Any = None  # `prompts.finding.Named`, once it was looked for them; None before
        self.passage: Any = None  # `gateway.passage.Passage`, or `proxy.listed.Listed`: what an MCP answer goes through

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header field, or None. `name` is in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None
