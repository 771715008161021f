"""Routing: the upstream and model that will really be called.

A route changes the upstream once; what the rules say of the new target is then looked up, but its own route is not
followed. It stays within the kind and the dialect: a filter that ran before (HopLimit) and the wire format of the
body hold for the new target too. A body is never translated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Kind, Target
from meshd.dialects.rebounding import bound_anew
from meshd.filters.plan import operation_of, tool_of
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.filters.plan import Plan
    from meshd.filters.routing_settings import RouteSettings

UPSTREAMS_SHOWN_MAX: Final = 10
KNOWN_MAX: Final = 4096
NAME_CHARACTERS_MAX: Final = 256
"""Longer names of models and paths are routed, but not remembered: callers write them, and would fill the memory."""

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_LLM: Final = Kind.LLM


class Routing:
    """Sets `call.upstream`, `call.target` and `call.plan`, and counts the rules of the plan; owes nothing."""

    __slots__ = ("_agent", "_known", "_method", "_path", "_policy", "_usual")

    name = "routing"

    def __init__(self) -> None:
        self._policy: Any = None
        """The policy that `_known` is of."""
        self._known: dict[tuple[str, str, str, str], tuple[Target, Plan, Any]] = {}
        """By upstream, model or tool, agent and operation; of plans in which no route leads elsewhere."""
        self._usual: tuple[Target, Plan, Any] | None = None
        """What was found for the last call that no dialect reads, and, next, what it was found by."""
        self._agent = self._method = self._path = ""

    def admit(self, call: Call) -> None:
        """Raise Refused(UNKNOWN_TARGET) where the policy has no such upstream, NOT_ALLOWED for a route across kinds."""
        upstream, ask, rpc = call.upstream, call.ask, call.rpc
        if upstream is None:
            upstream = call.policy.upstreams.get(call.target.name)
            if upstream is None:
                raise _unknown(call, call.target.name)
            call.upstream = upstream
        if self._policy is not call.policy:
            self._policy, self._known, self._usual = call.policy, {}, None
        if ask is None and rpc is None:
            usual = self._usual
            # One method is called again and again: to compare is cheaper than to build the key and look it up.
            if (
                usual is not None
                and usual[2] is upstream
                and call.path == self._path
                and call.method == self._method
                and call.agent == self._agent
            ):
                self._take(call, usual)
                return
        if ask is not None:
            model = ask.model if ask.model_granted is None else ask.model_granted
        else:
            # No call has both: the key below has one place for them.
            model = "" if rpc is None else rpc.tool
        operation = operation_of(call)
        known = self._known.get((upstream.name, model, call.agent, operation))
        if known is None or known[2] is not upstream:
            self._resolve(call, upstream, model, operation)
            return
        if ask is None and rpc is None:
            self._usual, self._path, self._method, self._agent = known, call.path, call.method, call.agent
        self._take(call, known)

    @staticmethod
    def _take(call: Call, known: tuple[Target, Plan, Any]) -> None:
        call.target, plan, _ = known
        call.plan = plan
        for hits in plan.hits:
            hits.count += 1

    def _resolve(self, call: Call, upstream: Any, model: str, operation: str) -> None:
        target = call.target = Target(upstream.kind, upstream.name, "" if call.ask is None else model)
        plan = call.policy.plan(target, call.agent, operation, tool_of(call))
        plan.hit()
        if plan.route is not None:
            _reroute(call, plan.route)
            if call.target != target:
                plan = call.policy.plan(call.target, call.agent, operation_of(call), tool_of(call))
                plan.hit()
        elif len(model) + len(call.agent) + len(operation) <= NAME_CHARACTERS_MAX:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[upstream.name, model, call.agent, operation] = (target, plan, upstream)
        call.plan = plan

    def explain(self, call: Call) -> str:
        """Say what will be called, and which rules set something for it."""
        target = call.target
        model = f" for {target.model}" if target.model else ""
        ask = call.ask
        if ask is not None and ask.model_granted not in (None, ask.model):
            model += f" (asked: {ask.model})"
        rules = ", ".join(call.plan.rules) or "none"
        assert call.upstream is not None
        return f"{target.kind.value} {target.name} at {call.upstream.url}{model}; rules: {rules}"


def _reroute(call: Call, route: RouteSettings) -> None:
    model = call.target.model
    if route.upstream is not None and route.upstream != call.target.name:
        _retarget(call, route, route.upstream)
    if route.model is not None and call.target.kind is _LLM:
        ask = call.ask
        if ask is not None:
            ask.model_granted = model = route.model
            if model != ask.model:
                bound_anew(call, ask)
        elif call.dialect is None or not call.dialect.is_free(call.method, call.path):
            raise Refused(
                Reason.NOT_ALLOWED,
                f"The rule {route.rule} sets the model, and {operation_of(call)[:200]} is no request whose model "
                f"meshd can read on {call.target.name}.",
                rule=route.rule,
            )
    call.target = call.target.with_model(model)


def _retarget(call: Call, route: RouteSettings, name: str) -> None:
    old: Any = call.upstream
    new = call.policy.upstreams.get(name)
    if new is None:
        raise _unknown(call, name, route.rule)
    if new.kind is not old.kind or new.dialect != old.dialect or new.is_peer != old.is_peer:
        raise Refused(
            Reason.NOT_ALLOWED,
            f"The rule {route.rule} routes {old.name} ({old.kind.value}, {old.dialect}) to {name} ({new.kind.value}, "
            f"{new.dialect}): a route stays within one kind and dialect.",
            rule=route.rule,
        )
    if call.path.startswith(old.base_path):
        call.path = new.base_path + call.path[len(old.base_path) :]
    call.upstream = new
    call.target = Target(new.kind, name, call.target.model)


def _unknown(call: Call, name: str, rule: str = "") -> Refused:
    known = sorted(call.policy.upstreams)
    more = f" and {len(known) - UPSTREAMS_SHOWN_MAX} more" if len(known) > UPSTREAMS_SHOWN_MAX else ""
    named = ", ".join(known[:UPSTREAMS_SHOWN_MAX]) + more if known else "none"
    return Refused(
        Reason.UNKNOWN_TARGET,
        f"The policy has no upstream {name[:64]!r}, and no agent of that name is connected; there are: {named}. An "
        "address is http://HOST:PORT/<upstream>/<path>, for example http://127.0.0.1:7400/openai/v1.",
        rule=rule,
    )
