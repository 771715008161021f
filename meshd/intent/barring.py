"""Why an agent may or can not be called: by the policy for whoever calls, and by how it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.call import Call, Direction, Target
from meshd.discovery.entry import Sort
from meshd.filters.allow_list import judge
from meshd.filters.circuit import State
from meshd.intent.deciding import Bar, Barred
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from meshd.filters.breaker import BreakerView
    from meshd.policy.compiled import Policy
    from meshd.upstream import Upstream

_OF_CARD: Final = frozenset({Sort.AGENT.value, Sort.SKILL.value})


class Health(NamedTuple):
    """How the agents stand, as far as this sidecar knows. Each is asked on the loop's thread, and may not wait."""

    has_session: Callable[[str], bool] = lambda name: True
    breakers: Callable[[], Iterable[BreakerView]] = tuple
    lapsed: Callable[[], Collection[str]] = tuple
    """Those that were asked what they offer, and have not answered for as long as their lease."""
    quarantine: Callable[[], Mapping[str, Collection[tuple[str, str]]]] = dict
    """By who offers it: the sort and the name of all that a person must look at first."""


def barred_by(policy: Policy, health: Health, agent: str, method: str, path: str) -> Callable[[str], Barred | None]:
    """Return what says of an upstream's name why `agent` is not led there; None where nothing stands in the way.

    `path` is what is called there, below the upstream's own. What only the body says (a method of JSON-RPC) is not
    known yet: the filters judge it.
    """
    open_now: dict[str, bool] = {}
    held = health.quarantine()
    lapsed: list[Collection[str]] = []

    def is_open(name: str) -> bool:
        if not open_now:
            open_now.update(_open(health.breakers()))
            open_now.setdefault("", False)  # Asked once, though there be none.
        return open_now.get(name, False)

    def bar(name: str) -> Barred | None:
        upstream = policy.upstreams.get(name)
        if upstream is None:
            return Barred(Bar.POLICY, "the policy has no upstream of this name")
        if name == agent:
            return Barred(Bar.SELF, "it is who asks")
        why = _forbidden(policy, upstream, agent, method, path)
        if why:
            return Barred(Bar.POLICY, why)
        if name in held and (why := _in_quarantine(name, held[name])):
            return Barred(Bar.QUARANTINE, why)
        if upstream.is_session and not health.has_session(name):
            return Barred(Bar.HEALTH, "it has no session with this sidecar now")
        if not lapsed:
            lapsed.append(health.lapsed())
        if name in lapsed[0]:
            return Barred(Bar.HEALTH, "its lease is over: it has not answered for too long")
        if is_open(name):
            return Barred(Bar.HEALTH, "its breaker is open")
        return None

    return bar


def _forbidden(policy: Policy, upstream: Upstream, agent: str, method: str, path: str) -> str:
    """Return what AllowList would say, empty where it would let the call pass."""
    target = Target(upstream.kind, upstream.name)
    whole = upstream.base_path + path
    # What is called may be a method in the body, for which other rules hold: then the filters have the last word.
    operation = f"{method} {whole.partition('?')[0]}" if upstream.dialect == "plain" else ""
    allow: Any = policy.plan(target, agent, operation).allow
    if allow is None or allow.is_shadow:
        return ""
    try:
        judge(_call(target, upstream, method, whole), allow)
    except Refused as refused:
        return f"it may not be called here{f' (rule {refused.rule})' if refused.rule else ''}"
    return ""


def _in_quarantine(agent: str, held: Collection[tuple[str, str]]) -> str:
    """Return what of an agent's card is in quarantine, empty where nothing is. Operations that a service
    describes by reflection say nothing of the agent."""
    named = sorted(name for sort, name in held if sort in _OF_CARD)
    if not named:
        return ""
    what = "its card" if any(sort == Sort.AGENT.value for sort, _ in held) else f"its skill {named[0][:64]}"
    return f"{what} is in quarantine until somebody has approved it (meshd tools show {agent}/{named[0][:64]})"


def _call(target: Target, upstream: Upstream, method: str, path: str) -> Call:
    """Return the call as AllowList would see it before anybody has read its body."""
    # Of MCP a body says which tool is called: until it is read, nothing is, as in what only listens.
    call = Call("", Direction.OUTBOUND, "GET" if upstream.dialect == "mcp" else method, path, "", [], 0.0, 0.0)
    call.target, call.upstream = target, upstream
    return call


def _open(views: Iterable[BreakerView]) -> dict[str, bool]:
    """Return which upstreams have an open breaker and none that lets calls through; keys differ in their breakers."""
    found: dict[str, bool] = {}
    for view in views:
        is_open = view.state is State.OPEN and (view.reopens_s is None or view.reopens_s > 0)
        found[view.upstream] = found.get(view.upstream, True) and is_open
    return found
