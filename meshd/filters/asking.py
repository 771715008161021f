"""What Approval asks of people about a call: whether it must, what exactly, what it may cost, and in which words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.approvals.question import Question, canonical
from meshd.call import Direction, Kind
from meshd.claims.keys import principal_of
from meshd.filters.purse import account_of, price_for, terms_for
from meshd.filters.units import dollars
from meshd.ledger.cost import bound_of
from meshd.prices.price import quoted

if TYPE_CHECKING:
    from meshd.approvals.record import Approval
    from meshd.call import Call
    from meshd.filters.approval_settings import ApprovalSettings
    from meshd.ledger import Ledger

READ_ONLY: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110 section 9.2.1, without TRACE)."""
_OVERRIDES: Final = frozenset({b"upgrade", b"x-http-method", b"x-http-method-override", b"x-method-override"})
"""Fields that make a GET something else."""
_UNBOUND: Final = frozenset(
    {
        # How bytes travel, and who is told what on the way.
        b"host", b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"content-length", b"expect",
        b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"accept-charset", b"cache-control",
        b"pragma", b"priority", b"date", b"origin", b"referer", b"via", b"forwarded", b"proxy-connection",
        # Who calls, which the upstream judges, and which is new with each call where it is a signature.
        b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"api-key", b"x-goog-api-key",
        b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256", b"amz-sdk-invocation-id", b"amz-sdk-request",
        # Names of the call, new with each.
        b"x-request-id", b"request-id", b"x-correlation-id", b"correlation-id", b"idempotency-key", b"last-event-id",
        b"traceparent", b"tracestate", b"baggage", b"b3", b"sentry-trace", b"x-cloud-trace-context",
        b"x-amzn-trace-id", b"grpc-timeout", b"grpc-accept-encoding", b"a2a-version",
        # Which attempt at an event it is, that is handed over (`meshd.api.pushing`).
        b"meshd-event-attempt", b"meshd-event-may-have-been-handled",
    }
)  # fmt: skip
_UNBOUND_PREFIXES: Final = (b"x-meshd-", b"x-stainless-", b"x-forwarded-", b"x-b3-", b"x-datadog-", b"sec-", b"mcp-")

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_AGENT: Final = Kind.AGENT
_LLM: Final = Kind.LLM
_TOOL: Final = Kind.TOOL
_OUTBOUND: Final = Direction.OUTBOUND


class Cost(NamedTuple):
    """The most that a call may cost; None where nobody knows."""

    tokens: int | None
    microdollars: int | None


def why_asked(call: Call, settings: ApprovalSettings) -> str:
    """Say why a person must allow this call first; empty where nobody must."""
    if not settings.required:
        return ""
    kind = call.target.kind
    if settings.is_short and (call.direction is not _OUTBOUND or (kind is not _TOOL and kind is not _LLM)):
        return ""
    if settings.reads:
        return "the rule asks for every call"
    has_threshold = settings.above_tokens is not None or settings.above_dollars is not None
    if has_threshold and not (settings.is_short and kind is _TOOL):
        return _above(call, settings)
    if kind is _LLM and (settings.is_short or call.ask is not None):
        return ""
    if is_read_only(call):
        return ""
    rpc: Any = getattr(call, "rpc", None)
    if rpc is not None:
        return f"{rpc.tool or rpc.method} may change something"
    return f"{call.method} may change something"


def is_read_only(call: Call) -> bool:
    """Say whether a call surely changes nothing, as far as its protocol says so."""
    rpc: Any = getattr(call, "rpc", None)
    if rpc is not None:
        return bool(rpc.is_read_only)
    return call.method in READ_ONLY and not any(name in _OVERRIDES for name, _ in call.headers)


def _above(call: Call, settings: ApprovalSettings) -> str:
    kind = call.target.kind
    if kind is _LLM and call.ask is None:
        if call.dialect is None or call.dialect.is_free(call.method, call.path):
            return ""
        return "nobody can say what it may cost"
    if kind is not _LLM and kind is not _AGENT:
        return ""
    cost = cost_of(call, has_money=settings.above_dollars is not None)
    if settings.above_tokens is not None:
        if cost.tokens is None:
            return "" if kind is _AGENT else "nobody can say what it may cost"
        if cost.tokens > settings.above_tokens:
            return f"it may cost {cost.tokens:,} tokens, more than {settings.above_tokens:,}"
    if settings.above_dollars is not None:
        if cost.microdollars is None:
            # Where tokens bind too, they have had their say.
            is_known = kind is _AGENT or settings.above_tokens is not None
            return "" if is_known else "nobody can say what it may cost"
        if cost.microdollars > settings.above_dollars:
            return f"it may cost {dollars(cost.microdollars)}, more than {dollars(settings.above_dollars)}"
    return ""


def cost_of(call: Call, *, has_money: bool = True) -> Cost:
    """Return the most that a call may cost: of an LLM's its bound, of an agent's what is delegated to it. Without
    `has_money` no price is looked up."""
    ask = call.ask
    if ask is None or ask.unbounded:
        delegate = call.plan.delegate
        return Cost(delegate.tokens if delegate is not None and call.target.kind is _AGENT else None, None)
    terms = terms_for(call)
    cap, tokens = bound_of(ask, terms.output_default)
    if not has_money:
        return Cost(tokens, None)
    if terms.has_money:
        price = price_for(call, ask, terms)
    else:
        price = None if ask.other_models else call.policy.prices.find(call.target.name, call.target.model)
    if price is None:
        return Cost(tokens, None)
    quote = quoted(price, ask, call.body)
    return Cost(tokens, quote.most(ask.input_bound, cap * max(ask.choices, 1)))


async def left_of(call: Call, ledger: Ledger | None) -> Cost:
    """Return what the budgets of a call have left, of each unit the least. Never raises StoreError: people may decide
    without knowing."""
    from meshd.engines.port import StoreError

    least: dict[bool, int] = {}
    if ledger is None or not call.plan.budgets:
        return Cost(None, None)
    for purse in terms_for(call).binding:
        account, limit = account_of(call, purse)
        entry = ledger.accounts.get(account)
        holder = entry.holder if entry is not None else None
        if holder is not None:
            left = holder.whole(limit) - holder.elsewhere - holder.spent - holder.reserved
        else:
            try:
                owner = await ledger.orders.books(account)
            except StoreError:
                continue
            left = limit + owner.extra - owner.settled - owner.delegated
        least[purse.is_money] = min(left, least.get(purse.is_money, left))
    return Cost(least.get(False), least.get(True))


def question_of(call: Call, settings: ApprovalSettings, why: str, left: Cost) -> Question:
    """Return what is asked about a call. `call.body` must be there, where it has one."""
    policy, context, target = call.policy, call.context, call.target
    rpc: Any = getattr(call, "rpc", None)
    operation, tool, definition = f"{call.method} {call.path}", "", ""
    if rpc is not None:
        # One upstream may serve several servers or agents, each at a path of its own.
        operation, tool = f"{rpc.protocol} {rpc.method} at {call.path}", rpc.tool
        definition = getattr(rpc, "definition", "") or ""
        arguments: bytes = rpc.arguments or b""
    else:
        arguments = canonical(call.body or b"")
    cost = cost_of(call)
    return Question(
        workflow=(context.workflow or context.account) if context is not None else "",
        agent=call.agent,
        kind=target.kind.value,
        target=target.name,
        operation=operation,
        arguments=arguments,
        model=target.model,
        tool=tool,
        definition=definition,
        fields=bound_fields(call),
        also=substitutes(call),
        approvers=approvers_of(call, settings),
        owner=policy.owner,
        quorum=settings.quorum,
        lasts_s=settings.expires,
        rule=settings.rule,
        principal=principal_of(call),
        why=why,
        evidence=call.evidence.value,
        is_inferred=call.evidence.is_inferred,
        cost_tokens=cost.tokens,
        cost_microdollars=cost.microdollars,
        left_tokens=left.tokens,
        left_microdollars=left.microdollars,
        call=call.id,
        key=call.claim.identity if call.claim is not None else "",
    )


def approvers_of(call: Call, settings: ApprovalSettings) -> tuple[str, ...]:
    """Return who may decide on a call: of those whom the rule names, or all, whoever is not the agent or its owner."""
    policy = call.policy
    named = settings.approvers or tuple(policy.approvers)
    return tuple([one for one in named if one in policy.approvers and one not in (policy.owner, call.agent)])


def bound_fields(call: Call) -> tuple[tuple[bytes, bytes], ...]:
    """Return the header fields that an approval holds for: all but those of which it is known that they do not change
    what the call does. An operation may stand in one (`x-amz-target`)."""
    return tuple(
        sorted(
            [(name, value) for name, value in call.headers if not is_unbound(name)],
            # Of values under one name the order counts: some readers take the first, others the last.
            key=lambda field: field[0],
        )
    )


def is_unbound(name: bytes) -> bool:
    """Say whether an approval holds whatever a header field says."""
    return name in _UNBOUND or name[:1] == b":" or name.startswith(_UNBOUND_PREFIXES)


def substitutes(call: Call) -> tuple[str, ...]:
    """Return what may serve a call in its target's place by the policy, as people read it."""
    plan = call.plan
    found = [f"model {one.degrade.to}" for one in plan.budgets if one.degrade is not None and not one.is_shadow]
    if plan.chain is not None:
        found += [_link(one) for one in plan.chain.to]
    return tuple(found)


def _link(link: Any) -> str:
    if link.upstream or link.model:
        return " ".join(part for part in (link.upstream and f"upstream {link.upstream}", link.model) if part)
    for key in ("cached", "command", "python", "reply"):
        if getattr(link, key):
            return f"a {key} answer"
    return "another answer"


def covered(settings: ApprovalSettings) -> str:
    """Say of which calls a rule asks, for `meshd explain`."""
    above = [f"{settings.above_tokens:,} tokens"] if settings.above_tokens is not None else []
    above += [dollars(settings.above_dollars)] if settings.above_dollars is not None else []
    costs = f"calls that may cost more than {' or '.join(above)}"
    if settings.is_short:
        llm = f", and {costs.replace('calls', 'calls to LLMs')}" if above else "; nothing else, since no budget is set"
        return f"calls to tools that are not read-only{llm}"
    if settings.reads:
        return "every call that it fits"
    return costs if above else "calls to tools, agents and hosts that are not read-only"


def asked_words(approval: Approval, call: Call, settings: ApprovalSettings) -> str:
    """Return what the caller is told while nobody has decided."""
    return (
        f"{_what(call)} needs a person's approval ({settings.rule or 'the policy'}: {approval.why}). "
        f"{_so_far(approval)} Make the same call again later, unchanged: it attaches to the same approval."
    )


def task_words(approval: Approval) -> str:
    """Return what a task says of itself while nobody has decided."""
    what = approval.tool or approval.operation.partition(" at ")[0]
    return (
        f"{what} at the {approval.kind} {approval.target} needs a person's approval "
        f"({approval.rule or 'the policy'}: {approval.why}). {_so_far(approval)} Ask for this task again until then."
    )


def _so_far(approval: Approval) -> str:
    who = ", ".join(approval.approvers[:5])
    more = len(approval.allowed_by)
    so_far = f"{more} of {approval.quorum} have allowed it" if approval.quorum > 1 and more else "nobody has decided"
    return (
        f"It was asked for as {approval.id}, and {so_far} yet. {who} can decide with "
        f"`meshd approvals approve {approval.id}`, until {moment(approval.expires_s)}; no answer is a no."
    )


def denied_words(approval: Approval, call: Call, state: str) -> str:
    """Return what the caller is told of a call that was not allowed."""
    denial = approval.denied_by
    if denial is not None:
        reason = denial.reason.strip()
        end = "" if reason.endswith((".", "!", "?")) else "."
        return (
            f"{_what(call)} was denied by {denial.approver} (approval {approval.id}): {reason}{end} "
            "Do not make this call again."
        )
    if state == "expired":
        return (
            f"{_what(call)} was not allowed: nobody decided on the approval {approval.id} in time, and no answer is a "
            "no. The same call made again asks anew."
        )
    why = approval.cancelled_for or "taken back"
    return f"{_what(call)} was not allowed: the approval {approval.id} is {state} ({why})."


def changed_words(approval: Approval, call: Call) -> str:
    """Return what is told of a call that was allowed, and is another by the time that it is made."""
    return (
        f"{_what(call)} is not what was allowed as {approval.id} any more: who must be asked, or a header field, is "
        "another by now. It was not sent; make it again, and people are asked anew."
    )


def nobody_words(call: Call, settings: ApprovalSettings, why: str) -> str:
    """Return what the caller is told where there is nobody who could allow the call."""
    policy = call.policy
    rule = settings.rule or "the policy"
    if not policy.approvers:
        what = (
            "the policy names no approvers. Its operator makes a key with `meshd approvals key NAME` and puts the "
            "line that this prints under `approvers`"
        )
    else:
        what = (
            f"too few of its approvers may decide on calls of {call.agent}: {settings.quorum} must, and neither the "
            "agent nor its owner counts"
        )
    return f"{_what(call)} needs a person's approval ({rule}: {why}), and nobody can give it: {what}. Do not try again."


def _what(call: Call) -> str:
    rpc: Any = getattr(call, "rpc", None)
    did = (rpc.tool or rpc.method) if rpc is not None else f"{call.method} {call.path.partition('?')[0][:200]}".lstrip()
    return f"{did} at the {call.target.kind.value} {call.target.name}"


def moment(unix_s: float) -> str:
    """Return a time as people read it."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
