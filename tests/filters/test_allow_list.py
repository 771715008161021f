"""AllowList: what is not allowed is neither asked for, nor offered, nor delivered."""

from __future__ import annotations

import pytest

from meshd.call import Call
from meshd.dialects.event import Event
from meshd.dialects.openai import OpenAI
from meshd.filters.allow_list import AllowList, ToolWatch
from meshd.filters.allow_list_settings import AllowSettings
from meshd.filters.contract import Cut
from meshd.filters.globs import Names
from meshd.filters.plan import Plan
from meshd.filters.routing import Routing
from meshd.policy.compiled import Policy
from meshd.refusal import Reason, Refused
from tests.filters.calls import SUCCESS, call, chat, policy

TOOLS = policy('governance: {allowed_tools: ["web_search", "db_*"]}')


def routed(made: Call) -> Call:
    made.dialect = OpenAI()
    Routing().admit(made)
    return made


def refused(made: Call) -> Refused:
    with pytest.raises(Refused) as caught:
        AllowList().admit(routed(made))
    assert caught.value.reason is Reason.NOT_ALLOWED
    return caught.value


def rule(settings: str, match: str = "kind: [llm, tool, agent, host]") -> Policy:
    return policy(f"rules: [{{name: r1, match: {{{match}}}, {settings}}}]")


def test_without_a_rule_all_is_allowed() -> None:
    made = routed(call(ask=chat("any", "any_tool")))
    assert AllowList().admit(made) is None
    assert AllowList().explain(made) == "no rule restricts this"


def test_a_denied_call_gets_the_rules_message() -> None:
    error = refused(call("billing", of=rule("deny: ask the billing team")))
    assert "ask the billing team" in error.message
    assert (error.rule, error.status) == ("r1", 403)


def test_models() -> None:
    of = rule("allow: {models: ['gpt-*-mini', exact]}", "kind: llm")
    for model in ("gpt-5-mini", "exact"):
        assert AllowList().admit(routed(call(ask=chat(model), of=of))) is None
    for model in ("gpt-5", "exactly", "EXACT", "", "gpt-5-mini\n", "x" * 9999):
        assert "is not allowed. Allowed: gpt-*-mini, exact." in refused(call(ask=chat(model), of=of)).message


def test_models_that_the_provider_may_take_besides_are_judged_too() -> None:
    of = rule("allow: {models: ['gpt-*-mini']}", "kind: llm")
    ask = chat("gpt-5-mini")
    ask.other_models = ("gpt-4-mini", "gpt-6")
    assert "'gpt-6', which the request lets the provider take besides" in refused(call(ask=ask, of=of)).message
    ask.other_models = ("gpt-4-mini",)
    assert AllowList().admit(routed(call(ask=ask, of=of))) is None


def test_a_key_in_the_query_is_not_said() -> None:
    of = rule("allow: {models: ['gpt-*']}", "kind: llm")
    assert "AIza-secret" not in refused(call(path="/v1/brand-new?key=AIza-secret", of=of)).message


def test_an_alias_is_judged_by_what_it_stands_for() -> None:
    of = policy(
        "rules:\n- {name: a, match: {model: big}, route: {model: small}}\n"
        "- {name: b, match: {kind: llm}, allow: {models: [small]}}\n"
    )
    assert AllowList().admit(routed(call(ask=chat("big"), of=of))) is None


@pytest.mark.parametrize("settings", ["allow: {models: ['gpt-*']}", "allow: {tools: [web_search]}"])
def test_an_llm_request_that_cannot_be_read_is_not_allowed(settings: str) -> None:
    of = rule(settings, "kind: llm")
    assert "cannot be checked" in refused(call(path="/v1/brand-new", of=of)).message
    assert AllowList().admit(routed(call(method="GET", path="/v1/models", of=of))) is None


def test_targets_hosts_and_tools_by_upstream() -> None:
    assert "The upstream billing" in refused(call("billing", of=rule("allow: {targets: [openai]}"))).message
    assert AllowList().admit(routed(call(ask=chat(), of=rule("allow: {targets: ['open*']}")))) is None
    assert "The host www.example.com" in refused(call("web", of=rule("allow: {hosts: ['*.org']}"))).message
    assert AllowList().admit(routed(call("web", of=rule("allow: {hosts: ['*.example.com']}")))) is None
    assert "The tool billing" in refused(call("billing", of=TOOLS)).message
    assert AllowList().admit(routed(call("billing", of=rule("allow: {tools: [billing]}")))) is None


def test_the_first_forbidden_tool_of_a_request_is_named() -> None:
    error = refused(call(ask=chat("m", "web_search", "db_query", "rm_rf", "exec"), of=TOOLS))
    assert "'rm_rf'" in error.message
    assert "Allowed: web_search, db_*." in error.message
    assert "exec" not in error.message


def test_an_empty_list_allows_nothing() -> None:
    made = routed(call(ask=chat("m", "web_search")))
    made.plan = Plan(allow=AllowSettings(tools=()))
    with pytest.raises(Refused, match="Allowed: none"):
        AllowList().admit(made)


def event(*names: str) -> Event:
    made = Event()
    made.tool_names = names
    return made


def test_a_forbidden_tool_call_in_the_answer_ends_it() -> None:
    ticket = AllowList().admit(routed(call(ask=chat("m", "web_search"), of=TOOLS)))
    assert isinstance(ticket, ToolWatch)
    assert ticket.judges_whole
    for good in (event(), event("web_search"), event("db_x", "web_search")):
        assert ticket.on_event(good) is good
    cut = ticket.on_event(event("web_search", "rm_rf"))
    assert isinstance(cut, Cut)
    assert cut.is_error
    assert "'rm_rf'" in cut.message
    ticket.settle(SUCCESS)


def test_an_answer_that_cannot_call_tools_is_not_watched() -> None:
    assert AllowList().admit(routed(call(ask=chat("m"), of=TOOLS))) is None
    assert AllowList().admit(routed(call(ask=chat("m", "db_a", has_output=False), of=TOOLS))) is None


def test_a_rule_in_shadow_decides_and_does_not_bind() -> None:
    told: list[Refused] = []
    one = AllowList(lambda _, error: told.append(error))
    of = rule("allow: {tools: [web_search]}, shadow: true")
    with pytest.raises(Refused) as caught:
        one.admit(routed(call(ask=chat("m", "rm_rf"), of=of)))
    assert caught.value.is_shadow
    ticket = one.admit(routed(call(ask=chat("m", "web_search"), of=of)))
    assert ticket is not None
    answer = event("rm_rf")
    assert ticket.on_event(answer) is answer
    assert [error.is_shadow for error in told] == [True]


def test_a_rule_on_trial_beside_one_that_binds_is_told() -> None:
    told: list[Refused] = []
    of = policy(
        "rules:\n- {name: binds, match: {kind: llm}, allow: {models: [small, big]}}\n"
        "- {name: trial, match: {kind: llm}, allow: {models: [small]}, shadow: true}\n"
    )
    one = AllowList(lambda _, error: told.append(error))
    assert one.admit(routed(call(ask=chat("big"), of=of))) is None
    assert [(error.rule, error.is_shadow) for error in told] == [("trial", True)]
    assert one.admit(routed(call(ask=chat("small"), of=of))) is None
    assert len(told) == 1


def test_it_explains_itself() -> None:
    made = routed(call(ask=chat("m", "web_search"), of=TOOLS))
    assert "tools web_search, db_*" in AllowList().explain(made)


@pytest.mark.parametrize(
    ("glob", "fits", "foreign"),
    [
        ("a*c", ["ac", "abc", "abcc"], ["abcd", "bac", ""]),
        ("*", ["", "a\nb"], []),
        ("a?", ["ab", "a\n"], ["a", "abc"]),
        ("*b*b", ["bb", "abab"], ["b", "ab"]),
        ("a.c", ["a.c"], ["abc"]),
        ("[ab]*", ["[ab]", "[ab]c"], ["a", "b"]),
        ("", [""], ["a"]),
    ],
)
def test_globs(glob: str, fits: list[str], foreign: list[str]) -> None:
    for names in (Names((glob,)), Names(("zzz", glob, "y*y"))):
        assert all(names.admits(name) for name in fits)
        assert not any(names.admits(name) for name in foreign)
        assert names.first_foreign(tuple(fits)) is None
    assert not Names(()).admits("")


def test_a_glob_takes_linear_time_in_what_a_caller_writes() -> None:
    assert not Names(("*a" * 30 + "b",)).admits("a" * 20_000)


def test_what_was_allowed_a_moment_ago_allows_nothing_else() -> None:
    of, routing, judging = rule("allow: {models: ['gpt-*'], tools: [web_search]}", "kind: llm"), Routing(), AllowList()

    def judged(made: Call) -> bool:
        made.dialect = OpenAI()
        routing.admit(made)
        try:
            judging.admit(made)
        except Refused:
            return False
        return True

    more = chat("gpt-x")
    more.other_models = ("claude",)
    others = [
        call(ask=chat("claude"), of=of),
        call(ask=chat(""), of=of),
        call(ask=chat("gpt-x", "rm_rf"), of=of),
        call(ask=more, of=of),
        call(path="/v1/brand-new", of=of),
        call(ask=chat("gpt-x"), of=rule("allow: {models: [other]}", "kind: llm")),
        call(ask=chat("gpt-x"), of=rule("allow: {targets: []}", "kind: llm")),
    ]
    for other in others:
        for _ in range(2):
            assert judged(call(ask=chat("gpt-x"), of=of))
        assert not judged(other)
    # What names prompts is judged by its body, each time.
    of = rule("allow: {prompts: [summarise]}", "kind: llm")
    assert judged(call(ask=chat("gpt-x"), of=of, body=b'{"model":"gpt-x","messages":[]}'))
    named = b'{"model":"gpt-x","messages":[{"role":"user","content":"prompt://translate@^1"}]}'
    assert not judged(call(ask=chat("gpt-x"), of=of, body=named))
