"""What types cannot say of events: rules that are for them, who gets them pushed, and who routes those that say what
they want."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.engines.bus_event import check_group, check_pattern
from meshd.engines.bus_moment import unix_ns
from meshd.engines.bus_port import EventMalformed
from meshd.policy.addressing import APP
from meshd.policy.matching import GlobSet
from meshd.policy.problem import shown
from meshd.policy.report import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.policy.model import Document, MatchSection, RuleSection
    from meshd.policy.model_events import SubscriptionSection
    from meshd.policy.report import Location, Report
    from meshd.upstream import Upstream

JUDGED: Final = ("allow", "deny", "turns")
"""What a rule can set for events."""
VERBS: Final = ("PUBLISH", "HANDLE")
_TOPIC_GLOB: Final = re.compile(r"[A-Za-z0-9_.*?-]+")
_CALLS_ONLY: Final = ("target", "tool", "model")
_SETS: Final = (
    "budget", "breaker", "retry", "fallback", "concurrency", "approval", "delegate", "route", "idempotency",
)  # fmt: skip


def is_for_events(match: MatchSection) -> bool:
    """Say whether a match is about events."""
    return match.topic is not None or "event" in (match.kind or ())


def check_event_rule(here: Location, rule: RuleSection, report: Report) -> None:
    """Report what a rule for events asks for that events do not have."""
    match = rule.match
    if any(kind != "event" for kind in match.kind or ()):
        report.error((*here, "match", "kind"), "events are no calls: a rule is for the one or for the other")
    for key in _CALLS_ONLY:
        if getattr(match, key) is not None:
            words = f"an event has no {key}" + ("; name its topic" if key == "target" else "")
            report.error((*here, "match", key), words, is_key=True)
    for index, glob in enumerate(match.topic or ()):
        _topic_glob((*here, "match", "topic", index), glob, report)
    for index, glob in enumerate(match.operation or ()):
        verb, space, _ = glob.partition(" ")
        if not any(map(GlobSet((verb,)).fits, VERBS)) or (not space and "*" not in verb):
            report.error(
                (*here, "match", "operation", index),
                f"{shown(glob)} fits no event: the operations are PUBLISH TOPIC and HANDLE TOPIC",
            )
    for key in _SETS:
        if getattr(rule, key) is not None:
            words = f"{key} is not set for events: a rule that is for them sets one of {', '.join(JUDGED)}"
            report.error((*here, key), words, is_key=True)
    allow = rule.allow
    if allow is None:
        return
    if allow.denied is not None:
        report.error((*here, "allow", "denied"), "write deny: beside match: instead", is_key=True)
    for key in ("models", "tools", "hosts"):
        if getattr(allow, key) is not None:
            report.error((*here, "allow", key), "events have topics alone: name them in targets", is_key=True)
    for index, glob in enumerate(allow.targets or ()):
        _topic_glob((*here, "allow", "targets", index), glob, report)
    if allow.targets is None and allow.denied is None:
        report.error((*here, "allow"), "allow sets nothing: it needs targets, which are topics here", is_key=True)


def _topic_glob(here: Location, glob: str, report: Report) -> None:
    """Report a glob that fits no topic; above all a subscriber's `>`, which would silently fit none."""
    if _TOPIC_GLOB.fullmatch(glob) is None:
        hint = "; here * stands for any run of characters, dots too" if ">" in glob else ""
        report.error(here, f"no topic fits {shown(glob)}{hint}")


def check_events(document: Document, upstreams: Mapping[str, Upstream], report: Report) -> None:
    """Report what is wrong with `subscriptions`, `park` and `intents.events`."""
    for index, glob in enumerate(document.park):
        _topic_glob(("park", index), glob, report)
    seen: dict[tuple[str, str], int] = {}
    for index, one in enumerate(document.subscriptions):
        here: Location = ("subscriptions", index)
        group = one.group or one.to
        for key, text, check in (("topic", one.topic, check_pattern), ("group", group, check_group)):
            try:
                check(text)
            except EventMalformed as error:
                report.error((*here, key) if getattr(one, key) else here, str(error))
        first = seen.setdefault((one.topic, group), index)
        if first != index:
            words = f"number {first + 1} is of the same topic and group already: each event would go to either"
            report.error(here, words, is_key=True)
        _beginning(here, one, report)
        if one.to != APP:
            _taker((*here, "to"), one.to, upstreams, report)
    semantic = document.intents.events
    if semantic is not None and semantic.router is not None:
        _agent(("intents", "events", "router"), semantic.router, upstreams, report)


def _beginning(here: Location, one: SubscriptionSection, report: Report) -> None:
    """Report a place to begin at that is none."""
    said = [key for key in ("starts_at_oldest", "starts_at", "starts_after") if getattr(one, key)]
    if len(said) > 1:
        report.error((*here, said[1]), f"a group begins at one place: {said[0]} names another", is_key=True)
    if one.starts_at is not None:
        try:
            unix_ns("starts_at", one.starts_at)
        except EventMalformed as error:
            report.error((*here, "starts_at"), str(error))


def _taker(here: Location, name: str, upstreams: Mapping[str, Upstream], report: Report) -> None:
    upstream = _agent(here, name, upstreams, report)
    if upstream is None:
        return
    if upstream.is_session:
        report.error(here, f"{shown(name)} keeps a session, in which it subscribes by itself")
    elif upstream.is_peer:
        report.error(here, f"{shown(name)} is another sidecar's: its own document says what it gets from the bus")
    elif upstream.dialect != "plain":
        report.error(here, f"{shown(name)} speaks {upstream.dialect}, in which there are no events")


def _agent(here: Location, name: str, upstreams: Mapping[str, Upstream], report: Report) -> Upstream | None:
    upstream = upstreams.get(name)
    if upstream is None:
        agents = sorted(other.name for other in upstreams.values() if other.kind is Kind.AGENT)
        hint = nearest(name, agents) or f"; there are: {', '.join(agents) or 'none'}"
        report.error(here, f"there is no upstream {shown(name)}{hint}")
    elif upstream.kind is not Kind.AGENT:
        report.error(here, f"{shown(name)} is of kind {upstream.kind.value}: events go to agents")
        return None
    return upstream
