"""What the rules of a policy set for one sort of call: made by the policy, read by every filter.

It stands here and not beside the policy so that filters know its type: compiled, each reads its own settings at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Kind

if TYPE_CHECKING:
    from meshd.call import Call
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


_TOOL: Final = Kind.TOOL


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


def operation_of(call: Call) -> str:
    """Return what rules match as the operation: an LLM request's (chat), the method of a JSON-RPC message, else method
    and path without its query. What A2A has over REST and gRPC is both, in two lines, or three."""
    if call.ask is not None:
        return call.ask.operation
    rpc, upstream = call.rpc, call.upstream
    if rpc is None or upstream is None or upstream.dialect != rpc.protocol:
        return f"{call.method} {call.path.partition('?')[0]}"
    if rpc.binding != "jsonrpc":
        names = f"{rpc.method}\n{rpc.also}" if rpc.also else rpc.method
        return f"{call.method} {call.path.partition('?')[0]}\n{names}"
    return rpc.method or "reply"


def tool_of(call: Call) -> str:
    """Return what rules match as the tool: the one that an MCP call names, or an upstream of kind tool by its name.

    Only of an upstream of which the policy says that it speaks MCP: of others the caller alone would say so, and could
    call one tool by the name of another.
    """
    upstream = call.upstream
    assert upstream is not None
    if upstream.dialect == "mcp":
        return call.rpc.tool if call.rpc is not None else ""
    return upstream.name if upstream.kind is _TOOL else ""
