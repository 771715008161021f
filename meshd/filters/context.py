"""Context: tie every call to its workflow, by evidence that the agent cannot forge.

Outbound, strongest first: the token that this sidecar issued (header), the per-run address, a name that the caller
gives its workflow (where the policy lets it), and what Correlation infers of calls that say nothing. Without any, a
call is charged to its agent's `unattributed` account of the day, which all such calls share: a workflow each would hand
every turn of a loop a fresh budget.

Inbound: the token of another sidecar, or none, which opens a workflow. A name in an inbound call is not read: names
are for the agent beside us, and a stranger's would let it spend from, or hide in, anybody's workflow.

One increment an edge. To an agent that we reach directly we mint its own token: hop + 1, path + the caller. To a
peer, which is another sidecar, we send the hops as they are and path + the caller; the peer adds the hop when it
mints for the agent beside it. Either way the callee's hops are its caller's plus one.
"""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.call import Direction, Evidence, Kind
from meshd.filters.correlation import Correlation
from meshd.filters.minting import WORKFLOW, Minting, moved, refused, with_deadline
from meshd.filters.talks import Talks
from meshd.refusal import Reason, Refused
from meshd_sdk import context as codec
from meshd_sdk import trace_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call, Headers
    from meshd.filters.contract import Ticket
    from meshd.mesh_key import MeshKeys
    from meshd.outcome import Outcome

KNOWN_MAX: Final = 16_384
"""Verified tokens that are remembered."""
NAMED_MAX: Final = 1024

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
BAGGAGE: Final = b"baggage"
TRACE_FIELDS: Final = frozenset({TRACEPARENT, TRACESTATE, BAGGAGE})
"""Never passed through as they came: `forward_headers` adds them where the policy lets them leave."""

_READ: Final = frozenset(
    {codec.HEADER_CONTEXT, codec.HEADER_WORKFLOW, codec.HEADER_HOPS, codec.HEADER_DEADLINE, TRACEPARENT}
)
_EPOCH: Final = date(1970, 1, 1).toordinal()
_HOPS: Final = re.compile(rb"(?:0|[1-9][0-9]{0,3})\Z")
_DEADLINE: Final = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,3})?\Z")

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_CONTEXT_FIELD: Final = codec.HEADER_CONTEXT
_WORKFLOW_FIELD: Final = codec.HEADER_WORKFLOW
_INBOUND: Final = Direction.INBOUND
_AGENT: Final = Kind.AGENT
_LOCAL: Final = codec.Audience.LOCAL
_PEER: Final = codec.Audience.PEER
_RUN: Final = codec.Audience.RUN
_BY_TOKEN: Final = Evidence.TOKEN
_BY_ADDRESS: Final = Evidence.RUN_ADDRESS
_BY_NAME: Final = Evidence.NAMED
_BY_OPENING: Final = Evidence.OPENED
_BY_RELAY: Final = Evidence.RELAYED
_BY_NOTHING: Final = Evidence.NONE
_WEAKER: Final = frozenset({Evidence.OPENED, Evidence.HISTORY, Evidence.QUOTED, Evidence.ALONE, _BY_NOTHING})
"""What says less of whose a message is than the context that it names."""
_A2A: Final = "a2a"


def is_stripped(name: bytes) -> bool:
    """Say whether a request field (lower case) is meshd's to write: the proxy forwards none that came in."""
    return name.startswith(codec.HEADER_PREFIX) or name in TRACE_FIELDS


class _Known(NamedTuple):
    """A token that verified; for a peer's, the context as it is here, one hop on."""

    context: codec.Context
    audience: codec.Audience
    expires_s: int


class _Pair:
    """Two tickets of one call."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Ticket, second: Ticket) -> None:
        self._first = first
        self._second = second

    def settle(self, outcome: Outcome) -> None:
        self._second.settle(outcome)
        self._first.settle(outcome)


class Context:
    """First of all filters. Sets `call.context`, `call.agent` and `call.evidence`; owes to correlation alone.

    `forward_headers` is its other half: what the forwarded request carries, once Routing knows where it goes.
    """

    __slots__ = (
        "_agent", "_correlation", "_generation", "_keys", "_known", "_minting", "_named", "_random_bytes", "_talks",
        "_unattributed",
    )  # fmt: skip

    name = "context"

    def __init__(self, keys: MeshKeys, random_bytes: Callable[[int], bytes], agent: str = "") -> None:
        """`random_bytes(n)` returns n random bytes; `agent` is the name of the agent here, empty for the policy's."""
        self._keys = keys
        self._random_bytes = random_bytes
        self._agent = agent
        self._correlation = Correlation()
        self._talks = Talks()
        self._generation = keys.generation
        self._known: dict[bytes, _Known] = {}
        self._named: dict[bytes, codec.Context] = {}
        self._minting = Minting(keys, random_bytes)
        self._unattributed: tuple[int, str, codec.Context] = (-1, "", codec.Context("", ""))

    def admit(self, call: Call) -> Ticket | None:
        """Establish the context. Raises Refused for every value of ours that is malformed or does not verify."""
        policy = call.policy
        agent = self._agent or policy.agent
        found = _ours(call.governed) if call.governed else None
        token = name = None
        ticket: Ticket | None = None
        if found is not None:
            token, name = found.pop(_CONTEXT_FIELD, None), found.pop(_WORKFLOW_FIELD, None)
            if name is not None and name not in self._named and WORKFLOW.match(name) is None:
                raise Refused(
                    Reason.MALFORMED,
                    "x-meshd-workflow must be 1 to 64 letters, digits, dots, dashes, underscores or colons.",
                )
        if call.direction is _INBOUND:
            context = self._from_peer(token, call, agent) if token is not None else self._opened(agent)
            evidence = _BY_TOKEN if token is not None else _BY_OPENING
        elif call.handed is not None:
            context, evidence = call.handed, _BY_TOKEN
        elif token is not None:
            context, evidence = self._from_agent(token, call, agent), _BY_TOKEN
        elif call.run_token:
            context, evidence = self._from_run(call), _BY_ADDRESS
        elif name is not None and policy.limits.names_workflows:
            context, evidence = self._by_name(name, agent), _BY_NAME
        else:
            speaker = call.agent or agent
            # Where nobody may name workflows, a name that a session chose is no purse of its own either.
            payer = speaker if policy.limits.names_workflows else agent
            context, evidence = self._without_evidence(call.wall_s, speaker, payer), _BY_NOTHING
            # A session says who speaks: what others of this sidecar have in hand is no evidence of it.
            if policy.limits.infers_context and not call.agent:
                trace = found.get(TRACEPARENT, b"").decode("latin-1") if found is not None else ""
                inferred = self._correlation.infer(call, trace[3:35] if trace_context.parse_traceparent(trace) else "")
                if inferred is not None:
                    ticket = inferred.ticket
                    if inferred.context is not None:
                        context, evidence = inferred.context, inferred.evidence
        if call.rpc is not None and call.rpc.protocol == _A2A and policy.limits.infers_context:
            context, evidence, ticket = self._in_talk(call, context, evidence, ticket)
        if call.timeout_s is not None:
            call.lasting = None if found else context
            context = _due(context, call.wall_s + call.timeout_s)
        call.context = _attenuated(context, found, call.wall_s) if found else context
        if context.parent and call.span is not None:
            call.span.adopt(context.parent)
        if call.handed is None:  # else it stays meshd's own: that a handler is tried again is no turn
            call.agent = context.agent
        call.evidence = evidence
        if call.direction is _INBOUND and policy.limits.infers_context:
            live = call.heard_by = self._correlation.begin(call, call.context)
            return live if ticket is None else _Pair(live, ticket)
        return ticket

    def _in_talk(
        self, call: Call, context: codec.Context, evidence: Evidence, ticket: Ticket | None
    ) -> tuple[codec.Context, Evidence, Ticket | None]:
        """Tie a message to the workflow of the context or task with which it goes on, where nothing stronger says
        whose it is; note the workflow of those that it, and the answer to it, names."""
        if evidence in _WEAKER and not call.agent:
            found = self._talks.find(call)
            # Who says a context's id is not thereby the agent that began it.
            if found is not None and found.agent == context.agent:
                context, evidence = found, _BY_RELAY
        if not context.workflow:
            return context, evidence, ticket
        hearing = self._talks.begin(call, context)
        if hearing is not None:
            call.reply_heard_by = hearing
            # Of a call that no dialect of an LLM reads, no other ticket has come of inferring.
            ticket = ticket or hearing
        return context, evidence, ticket

    def speaker(self, call: Call) -> str:
        """Return who makes a call, as `admit` will find it; of those of the agents here alone. Raises Refused."""
        agent, found = self._agent or call.policy.agent, _ours(call.governed) or {}
        if token := found.get(_CONTEXT_FIELD):
            return self._from_agent(token, call, agent).agent
        return self._from_run(call).agent if call.run_token else call.agent or agent

    def forward_headers(self, call: Call) -> Headers:
        """Return the fields that the request to `call.upstream` carries, in place of all that `is_stripped` names.

        The token goes to agents, to peers and to the agent beside us, and to nobody else; the trace where the
        upstream's `sends_trace` says so. Raises Refused where the context does not fit into a token.
        """
        upstream, context = call.upstream, call.context
        headers: Headers = []
        if context is None or upstream is None:
            return headers
        if call.direction is _INBOUND:
            headers.append((codec.HEADER_CONTEXT, self._minting.token(call, context, _LOCAL, "")))
        elif upstream.is_peer:
            headers.append((codec.HEADER_CONTEXT, self._minting.token(call, context, _PEER, "")))
        elif upstream.kind is _AGENT:
            headers.append((codec.HEADER_CONTEXT, self._minting.token(call, context, _LOCAL, upstream.name)))
        if headers and context.deadline_s is not None:
            left_s = max(context.deadline_s - call.wall_s, 0.0)  # not when: clocks differ between hosts
            headers.append((codec.HEADER_DEADLINE, b"%.3f" % min(left_s, 999_999_999.0)))
        if upstream.sends_trace:
            _add_trace(headers, call, context)
        return headers

    def explain(self, call: Call) -> str:
        """Say to which workflow the call belongs, and by what evidence."""
        context = call.context
        if context is None:
            return "no context yet"
        workflow = f"workflow {context.workflow}" if context.workflow else "no workflow"
        path = " > ".join((*context.path, context.agent))
        evidence = call.evidence.value + (", inferred" if call.evidence.is_inferred else "")
        return f"{workflow} ({evidence}), hop {context.hops}, {path}, charged to {context.account}"

    def _verified(self, token: bytes, call: Call, agent: str) -> _Known:
        if self._generation != self._keys.generation:
            self._generation = self._keys.generation  # a key that was taken away must not live on in what it verified
            self._known.clear()
        known = self._known.get(token)
        if known is not None and known.expires_s > call.wall_s:
            return known
        try:
            context, audience, expires_s = codec.verify(token, self._keys.ring, now_s=call.wall_s)
        except codec.TokenInvalidError as error:
            raise refused(f"The context token does not verify: {error}.") from error
        if audience is _PEER:
            # The one place where an edge between two sidecars is counted. Whatever port it came in on: what is
            # remembered of a token must not depend on where it was shown first.
            context = moved(context, agent, context.hops + 1, context.path, policy=call.policy)
        known = _Known(context, audience, expires_s)
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[token] = known
        return known

    def _from_agent(self, token: bytes, call: Call, agent: str) -> codec.Context:
        known = self._verified(token, call, agent)
        context = known.context
        if known.audience is not _LOCAL:
            raise refused("The context token was not issued to an agent, but for a sidecar or a run's address.")
        if context.agent != agent and not _is_beside(context.agent, call):
            raise refused(
                f"The context token was issued to the agent {context.agent}, and the one here is {agent}. Where they "
                "are one, its upstream's name must be its own name."
            )
        if call.run_token and self._from_run(call).workflow != context.workflow:
            raise refused("The context token and the run's address belong to different workflows.")
        return context

    def _from_run(self, call: Call) -> codec.Context:
        try:
            known = self._verified(call.run_token.encode("ascii"), call, "")
        except UnicodeEncodeError as error:
            raise refused("The run's address is not a token.") from error
        if known.audience is not _RUN:
            raise refused("The token in the address was not issued as a run's address.")
        return known.context

    def _from_peer(self, token: bytes, call: Call, agent: str) -> codec.Context:
        known = self._verified(token, call, agent)
        context = known.context
        if known.audience is not _PEER:
            raise refused(
                f"The context token was issued to the agent {context.agent} for its own sidecar, not for another's. "
                "The agent's calls to other agents go through the sidecar beside it."
            )
        if context.agent != agent:
            context = moved(context, agent, context.hops, context.path, policy=call.policy)
        return context

    def _opened(self, agent: str) -> codec.Context:
        workflow = "wf-" + self._random_bytes(12).hex()
        return codec.Context(workflow, agent, account="workflow/" + workflow)

    def _by_name(self, name: bytes, agent: str) -> codec.Context:
        context = self._named.get(name)
        if context is None or context.agent != agent:
            workflow = name.decode("ascii")
            context = codec.Context(workflow, agent, account="workflow/" + workflow)
            if len(self._named) >= NAMED_MAX:
                del self._named[next(iter(self._named))]
            self._named[name] = context
        return context

    def _without_evidence(self, wall_s: float, agent: str, payer: str) -> codec.Context:
        day = int(wall_s // 86_400)
        known_day, known_payer, context = self._unattributed
        if day != known_day or context.agent != agent or payer != known_payer:
            context = codec.Context("", agent, account=f"unattributed/{payer}/{date.fromordinal(_EPOCH + day)}")
            self._unattributed = (day, payer, context)
        return context


def _ours(headers: Headers) -> dict[bytes, bytes] | None:
    found: dict[bytes, bytes] | None = None
    for name, value in headers:
        if name in _READ:
            if found is None:
                found = {name: value}
            elif name not in found:
                found[name] = value
            elif name == TRACEPARENT:
                found[name] = b""
            else:
                raise Refused(
                    Reason.CONTEXT_INVALID if name == codec.HEADER_CONTEXT else Reason.MALFORMED,
                    f"{name.decode()} stands more than once in the request: which one holds cannot be told.",
                )
    return found


def _attenuated(context: codec.Context, found: dict[bytes, bytes], wall_s: float) -> codec.Context:
    """Return the context as the caller narrowed it: its claims can raise the hops and bring the deadline nearer."""
    hops, deadline_s, parent = context.hops, context.deadline_s, context.parent
    if (claim := found.get(codec.HEADER_HOPS)) is not None:
        if _HOPS.match(claim) is None or int(claim) > codec.HOPS_MAX:
            raise Refused(Reason.MALFORMED, f"x-meshd-hops must be a whole number from 0 to {codec.HOPS_MAX}.")
        hops = max(hops, int(claim))
    if (claim := found.get(codec.HEADER_DEADLINE)) is not None:
        if _DEADLINE.match(claim) is None:
            raise Refused(Reason.MALFORMED, "x-meshd-deadline must be the seconds left, such as 30 or 2.5.")
        claimed_s = wall_s + float(claim)
        deadline_s = claimed_s if deadline_s is None else min(deadline_s, claimed_s)
    if (claim := found.get(TRACEPARENT)) and (span := trace_context.parse_traceparent(claim.decode("latin-1"))):
        parent = str(span)
    if hops == context.hops and deadline_s == context.deadline_s and parent == context.parent:
        return context
    return codec.Context(
        context.workflow,
        context.agent,
        hops,
        context.path,
        deadline_s,
        context.account,
        context.ceiling,
        parent,
        context.memory,
        context.ceiling_microdollars,
    )


def _due(context: codec.Context, deadline_s: float) -> codec.Context:
    """Return the context with a deadline that is no later than this."""
    is_nearer = context.deadline_s is not None and context.deadline_s <= deadline_s
    return context if is_nearer else with_deadline(context, deadline_s)


def _is_beside(agent: str, call: Call) -> bool:
    """Say whether `agent` is one that this sidecar reaches directly, so that the token is of its own issue."""
    upstream = call.policy.upstreams.get(agent)
    return upstream is not None and upstream.kind is _AGENT and not upstream.is_peer


def _add_trace(headers: Headers, call: Call, context: codec.Context) -> None:
    span = call.span
    parent = span.traceparent if span is not None else context.parent
    state: list[str] = []
    baggage: list[str] = []
    has_parent = False
    for name, value in call.governed:
        if name in TRACE_FIELDS:
            text = value.decode("latin-1")
            if name == TRACEPARENT:
                has_parent = trace_context.parse_traceparent(text) is not None
            else:
                (state if name == TRACESTATE else baggage).append(text)
    if parent:
        headers.append((TRACEPARENT, parent.encode("ascii")))
        # A tracestate belongs to the traceparent it came with (section 3.3): without that it says nothing.
        members = trace_context.parse_tracestate(",".join(state)) if state and has_parent else None
        if members and (line := trace_context.format_tracestate(members)):
            headers.append((TRACESTATE, line.encode("ascii")))
    entries = trace_context.parse_baggage(",".join(baggage)) if baggage else None
    if entries:
        headers.append((BAGGAGE, trace_context.format_baggage(entries).encode("ascii")))
