"""Routing: names only, once, and within kind and dialect."""

from __future__ import annotations

import json

import pytest

from meshd.call import Call, Kind, Target
from meshd.dialects.gemini import Gemini
from meshd.dialects.openai import OpenAI
from meshd.filters.routing import Routing
from meshd.refusal import Reason, Refused
from tests.filters.calls import POLICY, call, chat, policy

FILTER = Routing()


def refused(made: Call) -> Refused:
    with pytest.raises(Refused) as caught:
        FILTER.admit(made)
    return caught.value


def test_an_unknown_name_is_told_what_there_is() -> None:
    error = refused(call("opneai", path="/v1/x"))
    assert (error.reason, error.status) == (Reason.UNKNOWN_TARGET, 404)
    assert (
        "'opneai', and no agent of that name is connected; there are: backup, billing, claude, far, openai, web, writer"
        in error.message
    )
    assert "http://127.0.0.1:7400/openai/v1" in error.message
    many = policy(upstreams="agent: a\nupstreams:\n" + "".join(
        f'  up{n:02d}: {{url: "http://127.0.0.1:{n + 1}", kind: tool}}\n' for n in range(30)
    ))  # fmt: skip
    assert "up09 and 20 more" in refused(call("x", of=many)).message
    assert len(refused(call("x" * 10_000)).message) < 500


@pytest.mark.parametrize("name", ["", "http://evil.example", "../openai", "OPENAI", "openai.mesh", "169.254.169.254"])
def test_only_an_exact_name_is_a_name(name: str) -> None:
    assert refused(call(name)).reason is Reason.UNKNOWN_TARGET


def test_it_finds_the_upstream_sets_the_target_and_counts_the_rule() -> None:
    of = policy("rules: [{name: mini, match: {model: 'gpt-*'}, allow: {models: ['gpt-*']}}]")
    made = call("openai", ask=chat("gpt-x"), of=of)
    made.upstream = None
    FILTER.admit(made)
    assert made.upstream is of.upstreams["openai"]
    assert made.target == Target(Kind.LLM, "openai", "gpt-x")
    assert made.plan.allow.rule == "mini"
    assert of.hits() == {"mini": 1}
    assert FILTER.explain(made) == "llm openai at https://api.openai.com for gpt-x; rules: mini"


def test_an_alias_of_a_model_is_judged_as_what_it_stands_for() -> None:
    of = policy(
        "rules:\n"
        "- {name: cheap, match: {model: big}, route: {model: small}}\n"
        "- {name: only-small, match: {model: small}, allow: {models: [small]}}\n"
    )
    made = call("openai", ask=chat("big"), of=of)
    FILTER.admit(made)
    assert made.ask is not None
    assert (made.ask.model, made.ask.model_sent, made.target.model) == ("big", "small", "small")
    assert made.plan.allow.models == ("small",)
    assert of.hits() == {"cheap": 1, "only-small": 1}
    assert "for small (asked: big)" in FILTER.explain(made)


def test_a_route_leads_to_another_upstream_once() -> None:
    of = policy(
        "rules:\n"
        "- {name: there, match: {target: openai}, route: {upstream: backup}}\n"
        "- {name: back, match: {target: backup}, route: {upstream: openai}}\n"
    )
    made = call("openai", ask=chat(), of=of)
    FILTER.admit(made)
    assert (made.target.name, made.upstream.name) == ("backup", "backup")
    assert made.path == "/base/v1/chat/completions"
    assert made.plan.rules == ("back",)
    made = call("backup", ask=chat(), of=of, path="/base/v1/chat/completions")
    FILTER.admit(made)
    assert (made.target.name, made.path) == ("openai", "/v1/chat/completions")


class _Route:
    """A policy whose document was checked by somebody else: every call is routed to `upstream`."""

    def __init__(self, upstream: str) -> None:
        from meshd.filters.plan import Plan
        from meshd.filters.routing_settings import RouteSettings

        self.upstreams = POLICY.upstreams
        self._plan = Plan(route=RouteSettings(upstream=upstream))

    def plan(self, *_: object) -> object:
        return self._plan


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("writer", Reason.NOT_ALLOWED),
        ("billing", Reason.NOT_ALLOWED),
        ("claude", Reason.NOT_ALLOWED),
        ("gone", Reason.UNKNOWN_TARGET),
    ],
)
def test_a_route_never_leaves_kind_and_dialect(name: str, reason: Reason) -> None:
    made = call("openai", ask=chat())
    made.policy = _Route(name)
    assert refused(made).reason is reason


def test_no_tool_is_routed_to_an_agent_past_the_hop_limit() -> None:
    made = call("billing")
    made.policy = _Route("writer")
    assert refused(made).reason is Reason.NOT_ALLOWED


def test_a_model_cannot_be_set_where_it_cannot_be_read() -> None:
    of = policy("rules: [{name: cheap, match: {kind: llm}, route: {model: small}}]")
    made = call("openai", path="/v1/something-new", of=of)
    made.dialect = OpenAI()
    assert refused(made).reason is Reason.NOT_ALLOWED
    listing = call("openai", method="GET", path="/v1/models", of=of)
    listing.dialect = OpenAI()
    FILTER.admit(listing)


def test_the_operation_of_a_plain_call_is_its_method_and_path() -> None:
    of = policy('rules: [{name: no-deletes, match: {target: billing, operation: "DELETE *"}, deny: ask}]')
    for method, path, is_denied in (("DELETE", "/v1/a?x=1", True), ("GET", "/v1/a", False), ("POST", "/DELETE", False)):
        made = call("billing", method=method, path=path, of=of)
        FILTER.admit(made)
        assert (made.plan.allow is not None) is is_denied


def test_the_input_is_bounded_for_the_model_that_a_route_sends() -> None:
    """An image costs 1,500 tokens at most in front of gpt-4o, and 48,000 in front of gpt-4o-mini."""
    of = policy("rules: [{name: cheap, match: {model: gpt-4o}, route: {model: gpt-4o-mini}}]")
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": [image]}]}).encode()
    dialect = OpenAI()
    one = call(ask=dialect.read("chat", body), of=of, body=body)
    one.dialect = dialect
    assert one.ask is not None
    before = one.ask.input_bound
    Routing().admit(one)
    assert one.ask.model_sent == "gpt-4o-mini"
    assert one.ask.input_bound - before > 40_000
    assert dialect.rewrite(one.ask, body) != body


def test_a_route_to_a_model_that_nothing_bounds_leaves_the_call_without_a_bound() -> None:
    of = policy("rules: [{name: draw, match: {model: big}, route: {model: gemini-3-pro-image-preview}}]")
    path, body, dialect = "/v1beta/models/big:generateContent", b'{"contents":[]}', Gemini()
    one = call(ask=dialect.read("chat", body, path), of=of, body=body, path=path)
    one.dialect = dialect
    assert one.ask is not None
    assert not one.ask.unbounded
    Routing().admit(one)
    assert one.ask.unbounded
