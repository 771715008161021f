"""Going down a chain: after what, to whom, and what is passed over. Pure: no socket, no clock."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.approvals.holding import Holding
from meshd.call import Ask, Call, Target
from meshd.dialects.table import DIALECTS
from meshd.filters.allow_list import judge
from meshd.filters.fallback import Fallback
from meshd.filters.substituting import SERVED_BY, Next
from meshd.filters.substitution import is_too_long
from meshd.outcome import Fault, Outcome
from meshd.policy.compiled import Policy
from meshd.refusal import Reason, Refused
from tests.filters.calls import NOW_S, call, outcome, policy

CHAT = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}'
BY_NAME = {"openai": "/v1/chat/completions", "claude": "/v1/messages"}


def chain(*links: str, on: str = "", match: str = "{kind: llm}", more: str = "") -> Policy:
    """Return the policy of filter tests with one chain, no retries, and whatever `more` rules say."""
    after = f", on: [{on}]" if on else ""
    return policy(
        f"rules:\n  - {{name: down, match: {match}, retry: {{attempts: 0}}, "
        f"fallback: {{to: [{', '.join(links)}]{after}}}}}\n{more}"
    )


def made(of: Policy, target: str = "openai", body: bytes = CHAT, **more: Any) -> Call:
    one = call(target, of=of, **more)
    if one.upstream.kind.value == "llm":
        one.path = BY_NAME.get(target, one.path)
        one.dialect = DIALECTS[one.upstream.dialect]
        one.body, one.ask = body, one.dialect.read("chat", body, one.path)
        one.target = Target(one.upstream.kind, target, one.ask.model if one.ask else "")
    else:
        one.dialect, one.body = DIALECTS["plain"], body
    one.credentials = [(b"authorization", b"Bearer sk")]
    operation = one.ask.operation if one.ask is not None else f"{one.method} {one.path}"
    one.plan = of.plan(one.target, one.agent, operation)
    return one


def following(one: Call, ended: Outcome) -> Next | None:
    return Fallback(lambda: 0.0, judge).next(one, ended)


ALL = "connect, reset, timeout, 5xx, backpressure, open, overloaded, budget, context"
CAUSES = {
    "connect": [outcome(0, fault) for fault in (Fault.CONNECT, Fault.CONNECT_TIMEOUT, Fault.REFUSED_STREAM, Fault.TLS)],
    "reset": [outcome(0, fault) for fault in (Fault.RESET, Fault.TRUNCATED, Fault.GARBAGE)],
    "timeout": [outcome(0, fault) for fault in (Fault.FIRST_BYTE_TIMEOUT, Fault.GAP_TIMEOUT)],
    "5xx": [outcome(status) for status in (500, 501, 502, 503, 504, 520, 529, 599)],
    "backpressure": [outcome(429), outcome(429, retry_after_s=60.0)],
    "open": [outcome(0, reason=Reason.CIRCUIT_OPEN)],
    "overloaded": [outcome(0, reason=Reason.OVERLOADED), outcome(0, Fault.POOL_FULL)],
    "budget": [outcome(0, reason=Reason.BUDGET_EXHAUSTED), outcome(0, reason=Reason.BUDGET_BUSY)],
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_word(cause: str) -> None:
    for ended in CAUSES[cause]:
        assert following(made(chain("{reply: x}", on=cause)), ended) is not None
        others = ", ".join(one for one in ALL.split(", ") if one != cause)
        assert following(made(chain("{reply: x}", on=others)), ended) is None


NEVER = [
    outcome(),
    *[outcome(status) for status in (400, 401, 403, 404, 408, 409, 413, 422)],
    *[outcome(0, fault) for fault in (Fault.CALLER_GONE, Fault.CUT, Fault.DEADLINE, Fault.SHUTDOWN, Fault.INTERNAL)],
    *[
        outcome(0, reason=reason)
        for reason in Reason
        if reason not in (Reason.CIRCUIT_OPEN, Reason.OVERLOADED, Reason.BUDGET_EXHAUSTED, Reason.BUDGET_BUSY)
    ],
    outcome(503, is_answered=True),
    outcome(0, Fault.RESET, is_answered=True),
]


@pytest.mark.parametrize("ended", NEVER, ids=lambda one: f"{one.status} {one.fault.value} {one.reason}")
def test_after_all_else_nothing_takes_the_targets_place(ended: Outcome) -> None:
    assert following(made(chain("{reply: x}", on=ALL)), ended) is None


def test_what_is_too_long_for_its_model_and_is_known_to_be() -> None:
    ended = outcome(400)
    ended.is_too_long = True
    assert following(made(chain("{reply: x}", on="context")), ended) is not None
    counted = Ask("chat", "gpt-4o", input_bound=128_001)
    counted.bound_by = "count"
    assert is_too_long(counted, "gpt-4o")
    counted.input_bound = 128_000
    assert not is_too_long(counted, "gpt-4o")
    # A bound of bytes is four times too many: only where even six bytes for a token are too many is it sure.
    by_bytes = Ask("chat", "gpt-4o", input_bound=6 * 128_000)
    assert not is_too_long(by_bytes, "gpt-4o")
    by_bytes.input_bound += 1
    assert is_too_long(by_bytes, "gpt-4o")
    assert not is_too_long(by_bytes, "a-model-that-nobody-knows")


def test_a_request_too_long_for_its_model_is_not_even_sent() -> None:
    body = CHAT.replace(b"hi", b"x" * (6 * 128_000))
    of = chain("{upstream: backup, model: gpt-4o-mini}", "{upstream: backup, model: gpt-4.1}", on="context")
    one = made(of, body=body)
    fallback = Fallback(lambda: 0.0, judge)
    found = fallback.chain.before(one, outcome(0))
    assert found is not None
    assert found.target.model == "gpt-4.1"
    assert one.substitution.tried == ["backup/gpt-4o-mini (the request is too long for gpt-4o-mini)"]
    assert fallback.chain.before(made(of), outcome(0)) is None
    assert fallback.chain.before(made(chain("{reply: x}"), body=body), outcome(0)) is None


def test_a_substitute_is_judged_as_if_it_had_been_asked_for() -> None:
    rules = """\
  - {match: {target: backup, model: bad}, deny: "not here"}
  - {match: {target: backup, model: narrow}, allow: {models: [other]}}
  - {match: {target: backup, model: asks}, approval: {reads: true}}
  - {match: {target: backup, model: fine}, allow: {models: [fine]}, budget: {tokens: 5}}
"""
    links = [f"{{upstream: backup, model: {model}}}" for model in ("bad", "narrow", "asks", "fine")]
    of = policy(
        "rules:\n" + rules + f"  - {{match: {{target: openai}}, retry: {{attempts: 0}}, fallback: {{to: "
        f"[{', '.join(links)}]}}}}\n"
    )
    one = made(of)
    plan, target, ask = one.plan, one.target, one.ask
    fallback = Fallback(lambda: 0.0, judge)
    found = fallback.next(one, outcome(0, Fault.CONNECT))
    assert found is not None
    assert found.target == Target(target.kind, "backup", "fine")
    assert [words.partition(" (")[0] for words in one.substitution.tried] == [
        "backup/bad", "backup/narrow", "backup/asks",
    ]  # fmt: skip
    # Nothing has changed yet: the attempt that failed is still to be settled.
    assert (one.plan, one.target, one.ask) == (plan, target, ask)
    fallback.chain.take(one, found)
    assert one.target.model == "fine"
    assert one.upstream.name == "backup"
    assert one.path == "/base/v1/chat/completions"
    assert one.plan.budgets[0].tokens == 5
    assert one.ask is not None
    assert one.ask is not ask
    assert one.ask.model_sent == "fine"
    assert one.credentials == []
    assert dict(one.reply_headers)[SERVED_BY] == b"backup/fine"
    assert one.plan.hits[0].count == 1


def test_an_approval_is_of_the_target_that_people_were_told_of() -> None:
    """The same rule asks about both. What was allowed at the one is not allowed at the other; a read asks nobody."""
    of = policy(
        "rules:\n  - {match: {target: [billing, second]}, retry: {attempts: 0}, approval: {required: true}, "
        "fallback: {to: [{upstream: second}, {reply: closed}]}}\n",
        upstreams="upstreams:\n"
        '  billing: {url: "http://127.0.0.1:9003", kind: tool}\n'
        '  second: {url: "http://127.0.0.1:9004", kind: tool}\n',
    )
    one = made(of, "billing", method="POST")
    found = following(one, outcome(0, Fault.CONNECT))
    assert found is not None
    assert found.standing is None
    assert one.substitution.tried == ["second (its rules need an approval that the call does not have)"]
    found = following(made(of, "billing", method="GET"), outcome(0, Fault.CONNECT))
    assert found is not None
    assert found.standing is not None


def test_no_judge_no_substitute_that_an_allow_is_about() -> None:
    of = chain("{upstream: backup}", more="  - {match: {target: backup}, allow: {models: [gpt-4o]}}\n")
    assert Fallback(lambda: 0.0).next(made(of), outcome(503)) is None
    assert Fallback(lambda: 0.0, judge).next(made(of), outcome(503)) is not None


def test_other_tools_than_the_answer_is_watched_for_are_passed_over() -> None:
    tools = b', "tools": [{"type": "function", "function": {"name": "look"}}]}'
    of = policy(
        "rules:\n"
        "  - {match: {target: openai}, retry: {attempts: 0}, allow: {tools: [look]}, "
        "fallback: {to: {upstream: backup}}}\n"
        "  - {match: {target: backup}, allow: {tools: [look, push]}}\n"
    )
    assert following(made(of), outcome(503)) is not None
    assert following(made(of, body=CHAT[:-1] + tools), outcome(503)) is None


def test_a_kind_and_a_dialect_that_do_not_fit() -> None:
    found = following(made(chain("{upstream: claude, model: c}")), outcome(503))
    assert found is not None
    assert found.standing is not None
    assert found.standing.translation is not None
    assert (found.standing.path, found.standing.dialect.name) == ("/v1/messages", "anthropic")
    assert b'"model":"c"' in (found.standing.body or b"")
    # What has no equal there.
    asked = CHAT[:-1] + b', "n": 2}'
    assert following(made(chain("{upstream: claude, model: c}"), body=asked), outcome(503)) is None
    one = made(chain("{upstream: claude, model: c}", "{reply: x}"), body=asked)
    assert following(one, outcome(503)) is not None
    assert one.substitution.tried[0].startswith("claude/c (it cannot be said in anthropic")


def test_what_may_change_something_is_shown_to_another_only_where_it_did_not_arrive() -> None:
    match = "{target: [billing, shop]}"
    of = policy(
        "rules:\n  - {match: " + match.replace("shop", "ledger") + ", retry: {attempts: 0}, fallback: {to: "
        "[{upstream: ledger}, {reply: closed}]}}\n",
        upstreams="upstreams:\n"
        '  billing: {url: "http://127.0.0.1:9003", kind: tool}\n'
        '  ledger: {url: "http://127.0.0.1:9004", kind: tool}\n',
    )
    arrived, lost = outcome(0, Fault.RESET, is_forwarded=True), outcome(0, Fault.CONNECT)
    for method, ended, is_shown in (
        ("POST", arrived, False), ("PATCH", outcome(503, is_forwarded=True), False), ("POST", lost, True),
        ("POST", outcome(0, reason=Reason.CIRCUIT_OPEN), True), ("POST", outcome(429, is_forwarded=True), True),
        ("GET", arrived, True), ("PUT", outcome(503, is_forwarded=True), True),
    ):  # fmt: skip
        found = following(made(of, "billing", method=method), ended)
        assert found is not None
        assert (found.standing is not None) is is_shown, (method, ended)


@pytest.mark.parametrize("is_substitute", [False, True])
def test_an_earlier_attempt_that_may_have_arrived_counts_as_the_last(is_substitute: bool) -> None:
    of = policy(
        "rules:\n  - {match: {target: [billing, second]}, retry: {attempts: 1, on: [reset]}, fallback: {to: "
        "[{upstream: second}, {upstream: third}, {reply: closed}]}}\n",
        upstreams="upstreams:\n"
        '  billing: {url: "http://127.0.0.1:9003", kind: tool}\n'
        '  second: {url: "http://127.0.0.1:9004", kind: tool}\n'
        '  third: {url: "http://127.0.0.1:9005", kind: tool}\n',
    )
    one, fallback = made(of, "billing", method="POST"), Fallback(lambda: 0.0, judge)
    one.attempt = 1
    if is_substitute:
        found = fallback.next(one, outcome(0, Fault.CONNECT))
        assert found is not None
        fallback.chain.take(one, found)
        one.attempt += 1
    again = fallback.next(one, outcome(0, Fault.RESET, is_forwarded=True))
    assert again is not None
    assert again.link is None
    one.is_forwarded = True  # as the attempt says when it is settled
    one.attempt += 1
    found = fallback.next(one, outcome(0, reason=Reason.CIRCUIT_OPEN))
    assert found is not None
    assert found.standing is None
    assert one.substitution.tried[-1].endswith("(not sent to)")


def test_it_stays_so_however_far_the_chain_goes() -> None:
    of = chain("{upstream: backup, model: a}", "{upstream: backup, model: b}", "{reply: x}", on="connect, budget")
    fallback, one = Fallback(lambda: 0.0, judge), made(of)
    first = fallback.next(one, outcome(0, Fault.CONNECT))
    assert first is not None
    fallback.chain.take(one, first)
    one.attempt += 1
    second = fallback.next(one, outcome(0, reason=Reason.BUDGET_EXHAUSTED))
    assert second is not None
    assert second.standing is None
    assert one.substitution.tried == ["backup/a (no budget)", "backup/b (not sent to)"]


def test_no_target_is_tried_twice_and_every_chain_ends() -> None:
    of = chain("{upstream: openai}", "{upstream: backup}", match="{target: [openai, backup]}")
    fallback, one = Fallback(lambda: 0.0, judge), made(of)
    seen = []
    while (found := fallback.next(one, outcome(503))) is not None:
        seen.append(found.target.name)
        fallback.chain.take(one, found)
        one.attempt += 1
        assert len(seen) < 5
    assert seen == ["backup"]


def test_retries_of_a_substitute_are_its_own() -> None:
    of = policy(
        "rules:\n  - {match: {target: openai}, retry: {attempts: 1}, fallback: {to: [{upstream: backup}, "
        "{reply: x}]}}\n  - {match: {target: backup}, retry: {attempts: 2}}\n"
    )
    fallback, one = Fallback(lambda: 0.0, judge), made(of)
    seen = []
    while (found := fallback.next(one, outcome(503))) is not None:
        seen.append("again" if found.link is None else "reply" if found.standing is None else found.target.name)
        if found.link is not None:
            fallback.chain.take(one, found)
        if seen[-1] == "reply":
            break
        one.attempt += 1
    assert seen == ["again", "backup", "again", "again", "reply"]


def test_what_comes_in_to_the_agent_itself_and_what_no_text_answers() -> None:
    embed = call("openai", of=chain("{reply: x}"), ask=Ask("embeddings", "e"), body=b"{}")
    embed.dialect = DIALECTS["openai"]
    embed.plan = embed.policy.plan(embed.target, "", "embeddings")
    assert following(embed, outcome(503)) is None


def test_explain_says_the_chain_and_what_of_it_cannot_serve_this() -> None:
    of = chain(
        "{upstream: openai}", "{upstream: backup, model: m}", "{upstream: claude, model: c}", "{cached: 60s}",
        '{command: ["true"]}', "{reply: x}", on="5xx, open",
    )  # fmt: skip
    said = Fallback(lambda: 0.0, judge).explain(made(of))
    assert said == (
        "no attempt is made again; then, after 5xx, open (rule down): openai (passed over: the target itself), "
        "backup/m, claude/c (translated into anthropic), cache (an answer of at most 60 s), command, reply"
    )


def test_a_refusal_while_a_substitute_is_judged_leaves_the_call_as_it_was() -> None:
    of = chain("{upstream: backup}", more='  - {match: {target: backup}, deny: "no"}\n')
    one = made(of)
    before = (one.target, one.upstream, one.dialect, one.ask, one.path, one.body, one.plan, one.credentials)
    assert following(one, outcome(503)) is None
    assert (one.target, one.upstream, one.dialect, one.ask, one.path, one.body, one.plan, one.credentials) == before
    assert one.substitution is None
    assert one.now_s == NOW_S
    allow = of.plan(Target(one.target.kind, "backup", "x"), "", "chat").allow
    assert allow is not None
    with pytest.raises(Refused):
        judge(one, allow)


DEAR = (
    "  - {match: {kind: llm}, approval: {above_dollars: 0.01}}\n"
    f'approvers: {{ana: {{key: "sha256:{"0" * 64}"}}}}\n'
    "prices: {gpt-4o: {input: 1, output: 1}, o3: {input: 900, output: 900}}\n"
)


def test_a_substitute_that_must_ask_serves_no_call_that_has_not() -> None:
    one = made(chain("{model: o3}", more=DEAR))
    assert one.plan.approval is not None
    assert following(one, outcome(503)) is None
    # Whoever was asked was told of the substitutes.
    one = made(chain("{model: o3}", more=DEAR))
    one.holding = Holding()
    found = following(one, outcome(503))
    assert found is not None
    assert found.target.model == "o3"
