"""What `meshd trace` prints: a line for each event, in words."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from meshd.trace import kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshd.trace.indexing import Part
    from meshd.trace.record import Event
    from meshd.trace.story import Branch
    from meshd.trace.verified import Verified

WORDS_MAX = 160
WIDTH_MAX = 40
"""Of a tree's branches: what is deeper is printed at this depth, with its depth in front."""
_WITHOUT_VERSION = frozenset({"release", "drop"})


def at(hlc_us: int, *, with_day: bool = False) -> str:
    """Return a time of Unix microseconds, in the local zone."""
    moment = datetime.fromtimestamp(hlc_us / 1e6).astimezone()
    shown = moment.strftime("%H:%M:%S.") + f"{hlc_us % 1_000_000 // 1000:03d}"
    return f"{moment:%Y-%m-%d} {shown}" if with_day else shown


def table(parts: dict[str, Part], limit: int) -> str:
    """Return the workflows that were heard of last, the newest first."""
    named = sorted(((part.last_us, name, part) for name, part in parts.items() if name), reverse=True)[:limit]
    if not named:
        return "The trace has no workflow yet."
    width = max(len("workflow"), *(len(_visible(name)) for _, name, _ in named))
    lines = [f"{'workflow':<{width}}  {'last event':<23}  events   calls  refused   tokens"]
    lines += [
        f"{_visible(name):<{width}}  {at(last, with_day=True)}  {part.events:>6}  {part.calls:>6}  {part.refused:>7}  "
        f"{part.tokens:>7}"
        for last, name, part in named
    ]
    return "\n".join(lines)


def tree(branches: Iterator[Branch], said: Callable[[Event], bytes]) -> Iterator[str]:
    """Yield a line for each branch."""
    for depth, event, ended in branches:
        indent = "  " * min(depth, WIDTH_MAX) + (f"[{depth}] " if depth > WIDTH_MAX else "")
        yield f"{at(event.payload.hlc_us)}  {indent}{words(event, said)}{_ending(ended)}"


def line(event: Event, said: Callable[[Event], bytes]) -> str:
    """Return an event as a line of the timeline."""
    shown = words(event, said)
    if event.payload.kind == kinds.ENDED:
        shown = f"{_whom(event)}{_ending(event)}"
    return f"{at(event.payload.hlc_us)}  {event.id:<22}  {event.kind:<10}  {shown}"


def words(event: Event, said: Callable[[Event], bytes]) -> str:
    """Say what an event is."""
    payload, facts = event.payload, event.facts
    kind = payload.kind
    if kinds.STEP <= kind <= kinds.NOTE:
        return f"{_visible(payload.agent)}: {_entry(event.kind, said(event))}{' FAILED' if facts.get('failed') else ''}"
    if kind in (kinds.REFUSED, kinds.SHADOWED):
        verb = "refused" if kind == kinds.REFUSED else "would have been refused"
        rule = f" by {facts['rule']}" if facts.get("rule") else ""
        return (
            f"{_whom(event)} {_what(facts)}: {verb}{rule}: {facts.get('reason')}: {_visible(facts.get('message', ''))}"
        )
    if kind == kinds.ARRIVED:
        return f"{_visible(payload.agent)} is called {_what(facts)}"
    if kind in (kinds.FORWARDED, kinds.ANSWERED):
        attempt = facts.get("attempt", 1)
        again = f", attempt {attempt}" if isinstance(attempt, int) and attempt > 1 else ""
        here = ", answered by meshd" if kind == kinds.ANSWERED else ""
        return f"{_whom(event)} {_what(facts)}{again}{here}"
    if kind == kinds.REPLIED:
        return f"{_visible(payload.target)} replies"
    if kind == kinds.ROUTED:
        return f"routed to {facts.get('targets')} ({facts.get('choice')}, {facts.get('score')})"
    if kind == kinds.PROMPT:
        return f"{_visible(payload.agent)}: prompt {facts.get('prompt')}@{facts.get('version')}"
    if kind == kinds.SUPERVISED:
        return f"{_whom(event)}: the supervisor was asked by {facts.get('way')}: {facts.get('result')}"
    if kind in (kinds.PUBLISHED, kinds.UNPUBLISHED, kinds.HANDED, kinds.HANDLED):
        return _of_an_event(event)
    if kind in (kinds.WRITING, kinds.STATE, kinds.READ):
        return _of_state(event)
    shown = ", ".join(f"{name} {_visible(str(value))}" for name, value in facts.items() if value not in ("", None, b""))
    who = f"{_visible(payload.agent)}: " if payload.agent else ""
    return f"{who}{event.kind}{': ' if shown else ''}{shown}"


def verified(found: Verified, name: str) -> str:
    """Say what was found."""
    lines = [f"{name}: {found.records} records of sidecar {found.sidecar or '-'} in {found.segments} segments"]
    if found.heads_held:
        lines[0] += f", {found.heads_held} of them held by peers"
    lines += [f"  note: {note}" for note in found.notes]
    lines += [f"  BAD: {problem}" for problem in found.problems]
    if found.is_sound:
        lines.append("  The chain is whole.")
    return "\n".join(lines)


def asked(event: Event) -> str:
    """Say who has called whom for what."""
    return f"{_whom(event)} {_what(event.facts)}"


def _whom(event: Event) -> str:
    return f"{_visible(event.payload.agent) or '?'} -> {_visible(event.payload.target) or '?'}"


def _what(facts: dict[str, Any]) -> str:
    """Say what a call asks for."""
    shown = []
    if facts.get("tool"):
        shown.append(str(facts["tool"]))
    elif facts.get("rpc"):
        shown.append(str(facts["rpc"]))
    elif facts.get("operation"):
        shown += [str(facts["operation"]), str(facts.get("model") or "")]
    else:
        shown += [str(facts.get("method") or ""), str(facts.get("path") or "")]
    return _visible(" ".join(filter(None, shown)))


def _of_an_event(event: Event) -> str:
    """Say what is done with an event of the bus."""
    facts, kind = event.facts, event.payload.kind
    who, topic = _visible(event.payload.agent), facts.get("topic")
    named = _visible(f"{topic} ({facts.get('event_id')})")
    if kind == kinds.PUBLISHED:
        key = f", key {_visible(facts['key'])}" if facts.get("key") else ""
        return f"{who} publishes {named}{key}"
    if kind == kinds.UNPUBLISHED:
        return f"{who} has not published {named}: {_visible(str(facts.get('why')))}"
    group = f" for {facts.get('group')}" if facts.get("group") not in ("", event.payload.agent) else ""
    if kind == kinds.HANDLED:
        return f"{who}: {named}{group}{_ending(event)}"
    attempt = facts.get("attempt", 1)
    again = f", attempt {attempt}" if isinstance(attempt, int) and attempt > 1 else ""
    marked = ", which may have been handled" if facts.get("may_have_been_handled") else ""
    return f"{who} is handed {named}{group}{again}{marked}"


def _of_state(event: Event) -> str:
    """Say what is done with an object of shared state."""
    facts = event.facts
    who, key = _visible(event.payload.agent), _visible(str(facts.get("key")))
    act, version = facts.get("act"), facts.get("version")
    if event.payload.kind == kinds.WRITING:
        return f"{who}: {act} {key}, from version {facts.get('base')}"
    if event.payload.kind == kinds.STATE:
        return f"{who}: {act} {key}{_ending(event)}"
    writer = f" by {_visible(facts['writer'])}" if facts.get("writer") else ""
    found = f"version {version}{writer}" if version else "nothing there"
    result = f", {facts.get('result')}" if facts.get("result") not in ("found", "absent", "done") else ""
    return f"{who}: {act} {key}: {found}{result}"


def _ending(ended: Event | None) -> str:
    if ended is None:
        return ""
    facts = ended.facts
    if ended.payload.kind == kinds.HANDLED:
        why = f": {_visible(facts['why'])}" if facts.get("why") else ""
        return f"  = {facts.get('result')}{why}"
    if ended.payload.kind == kinds.STATE:
        result, version = facts.get("result"), facts.get("version")
        if result == "done":
            return f"  = version {version}" if version else "  = done"
        return f"  = {result}" if facts.get("act") in _WITHOUT_VERSION else f"  = conflict: {result}, at {version}"
    shown = [str(facts["status"])] if facts.get("status") else []
    if facts.get("fault") not in ("none", None):
        shown.append(str(facts["fault"]))
    elif facts.get("verdict") not in ("success", None):
        shown.append(str(facts["verdict"]))
    given, made = facts.get("input_tokens", -1), facts.get("output_tokens", -1)
    if given >= 0:
        shown.append(f"{given}+{made} tokens")
    if facts.get("reserved"):
        shown.append(f"reserved {facts['reserved']}, charged {facts['charged']}")
    if facts.get("microdollars"):
        shown.append(f"${facts['microdollars'] / 1e6:.6f}")
    shown.append(f"{facts.get('took_ms', 0)} ms")
    return f"  = {', '.join(shown)}"


def _entry(kind: str, data: bytes) -> str:
    if not data:
        return f"{kind} (its words are not there: erased, or changed)"
    from meshd_sdk.v1 import trace_pb2

    entry = trace_pb2.TraceEntry.FromString(data)
    if kind == "step":
        shown = entry.step.name + (f": {entry.step.summary}" if entry.step.summary else "")
    elif kind == "tool_call":
        shown = f"tool {entry.tool_call.tool}"
    elif kind == "decision":
        why = f" ({entry.decision.rationale})" if entry.decision.rationale else ""
        shown = f"decides {entry.decision.question} -> {entry.decision.choice}{why}"
    else:
        shown = entry.note.text
    return _visible(shown)


def _visible(text: str) -> str:
    """Return a text on one line, short, without what a terminal would obey."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= WORDS_MAX else f"{shown[: WORDS_MAX - 3]}..."
