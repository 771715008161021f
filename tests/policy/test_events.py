"""What a document says of events: rules that are for them, subscriptions, and what is wrong with either."""

from __future__ import annotations

import pytest

from meshd.call import Kind, Target
from meshd.policy.document import DocumentFile, LoadError, parse

UPSTREAMS = """
upstreams:
  worker: {url: "http://127.0.0.1:9001", kind: agent}
  talker: {kind: agent, session: true}
  far: {url: "http://127.0.0.1:9002", kind: agent, peer: true}
  openai: {url: "https://api.openai.com"}
"""


def loaded(text: str):  # type: ignore[no-untyped-def]
    return parse([DocumentFile("p.yaml", (UPSTREAMS + text).encode())])


def problems(text: str) -> str:
    with pytest.raises(LoadError) as caught:
        loaded(text)
    return str(caught.value)


def test_rules_for_events_are_for_nothing_else_and_others_not_for_events() -> None:
    policy = loaded(
        "rules:\n"
        "  - {name: all, match: {agent: eve}, deny: no calls}\n"
        "  - {name: topics, match: {topic: 'task.*', operation: 'PUBLISH *'}, deny: none there}\n"
        "  - {name: kinds, match: {kind: event, agent: eve}, allow: {targets: ['open.*']}}\n"
    )
    event = policy.plan(Target(Kind.EVENT, "task.done"), "ann", "PUBLISH task.done")
    assert event.allow is not None
    assert event.allow.denied == "none there"
    assert policy.plan(Target(Kind.EVENT, "task.done"), "ann", "HANDLE task.done").allow is None
    assert policy.plan(Target(Kind.EVENT, "other"), "eve", "PUBLISH other").allow.targets == ("open.*",)
    assert policy.plan(Target(Kind.AGENT, "task.done"), "ann", "POST /").allow is None
    assert policy.plan(Target(Kind.AGENT, "worker"), "eve", "POST /").allow.denied == "no calls"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: [{match: {kind: [event, agent]}, deny: x}]", "events are no calls"),
        ("rules: [{match: {topic: t, target: worker}, deny: x}]", "an event has no target; name its topic"),
        ("rules: [{match: {kind: event, model: x}, deny: x}]", "an event has no model"),
        ("rules: [{match: {kind: event}, breaker: {}}]", "breaker is not set for events"),
        ("rules: [{match: {kind: event}, budget: {tokens: 5}}]", "budget is not set for events"),
        ("rules: [{match: {kind: event}, allow: {tools: [x]}}]", "events have topics alone"),
        ("rules: [{match: {kind: event}, allow: {}}]", "allow sets nothing"),
        ("rules: [{match: {topic: 'task.>'}, deny: x}]", "any run of characters, dots too"),
        ("rules: [{match: {kind: event}, allow: {targets: [a/b]}}]", "no topic fits"),
        ("rules: [{match: {kind: event}}]", "this rule sets nothing"),
        ("rules: [{match: {topic: t, operation: 'POST /x'}, deny: x}]", "PUBLISH TOPIC and HANDLE TOPIC"),
        ("rules: [{match: {topic: [t, t]}, deny: x}, {match: {topic: t}, deny: y}]", "can match nothing"),
        ("subscriptions: [{topic: ../../x, to: worker}]", "topic"),
        ("park: ['payment.>']", "any run of characters, dots too"),
        ("park: [a/b]", "no topic fits"),
        ("park: payment", "list"),
        ("subscriptions: [{topic: t, to: worker, group: 'a b'}]", "group"),
        ("subscriptions: [{topic: t, to: worke}]", "did you mean"),
        ("subscriptions: [{topic: t, to: openai}]", "events go to agents"),
        ("subscriptions: [{topic: t, to: talker}]", "keeps a session"),
        ("subscriptions: [{topic: t, to: far}]", "another sidecar's"),
        ("subscriptions: [{topic: t, to: worker}, {topic: t, to: worker}]", "same topic and group"),
        ("subscriptions: [{topic: t, to: worker, path: x}]", "7:"),
        ("subscriptions: [{topic: t, to: worker, at_once: 0}]", "greater than or equal to 1"),
        ("subscriptions: [{topic: t, to: worker, handling_time: 1ms}]", "greater than or equal to 0.1"),
        ("subscriptions: [{topic: t, to: worker, starts_at: yesterday}]", "no time of RFC 3339"),
        ("subscriptions: [{topic: t, to: worker, starts_after: x}]", "a text that fits"),
        ("subscriptions: [{topic: t, to: worker, starts_after: -1}]", "a text that fits"),
        ("subscriptions: [{topic: t, to: worker, starts_after: true}]", "expected a text"),
        (
            "subscriptions: [{topic: t, to: worker, starts_at_oldest: true, starts_after: 7}]",
            "a group begins at one place: starts_at_oldest names another",
        ),
        ("intents: {events: {router: nobody}}", "there is no upstream"),
        ("intents: {events: {agents: 0}}", "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, words: str) -> None:
    found = problems(text)
    assert words in found
    assert "p.yaml:8:" in found or "p.yaml:7:" in found


def test_subscriptions_are_taken() -> None:
    policy = loaded("subscriptions: [{topic: 'task.>', to: worker}, {topic: t, to: app, handling_time: 2m}]")
    first, second = policy.subscriptions
    assert (first.topic, first.to, first.path, first.at_once) == ("task.>", "worker", "/events", 8)
    assert second.handling_time == 120.0
    text = "subscriptions: [{topic: a, to: app, starts_after: 7}, {topic: b, to: app, starts_at: 2026-11-27T12:00:00Z}]"
    first, second = loaded(text).subscriptions
    assert (first.starts_after, second.starts_at) == ("7", "2026-11-27T12:00:00Z")
