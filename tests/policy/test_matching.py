"""Which rules fit, what they amount to, and that neither grows with what callers write."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshd.call import Kind, Target
from meshd.filters.plan import Hits, Plan
from meshd.policy.compiled import Policy
from meshd.policy.document import DocumentFile, parse
from meshd.policy.matching import GlobSet, Match, Matcher, Rule, covers, glob_regex, normal_operation

GLOB = st.text(alphabet="ab*?.", min_size=1, max_size=6)
TEXT = st.text(alphabet="ab.\n", max_size=8)
GPT = Target(Kind.LLM, "openai", "gpt-4o")


def read(rules: str, upstreams: str = "") -> Policy:
    return parse([DocumentFile("p.yaml", f"upstreams:\n  openai: {{url: 'https://api.openai.com'}}\n"
        f"  billing: {{url: 'http://x', kind: tool}}\n{upstreams}rules:\n{rules}".encode())])  # fmt: skip


@given(GLOB, TEXT)
def test_globs_are_those_of_the_standard_library_without_brackets(glob: str, text: str) -> None:
    expected = re.fullmatch(fnmatch.translate(glob), text) is not None
    assert GlobSet((glob,)).fits(text) is expected
    assert (glob_regex((glob,)).fullmatch(text) is not None) is expected


def test_brackets_and_expressions_stand_for_themselves() -> None:
    assert GlobSet(("a[bc]+",)).fits("a[bc]+")
    assert not GlobSet(("a[bc]+*",)).fits("ab")


def test_matching_is_linear_in_what_a_caller_writes() -> None:
    # Backtracking over eight stars would take some 10^30 steps here.
    assert not GlobSet(("*-*-*-*-*-*-*-*-mini",)).fits("-" * 20_000)


@given(st.lists(GLOB, min_size=1, max_size=3), st.lists(GLOB, min_size=1, max_size=2), TEXT)
@example(["?"], ["*"], "ab")
@example(["a*b"], ["a*b"], "ab")
def test_what_covers_fits_all_that_is_covered(wide: list[str], narrow: list[str], text: str) -> None:
    if covers(tuple(wide), tuple(narrow)) and GlobSet(tuple(narrow)).fits(text):
        assert GlobSet(tuple(wide)).fits(text)


def test_covers() -> None:
    assert covers(None, ("a",))
    assert covers(("*",), None)
    assert covers(("gpt-*", "x"), ("gpt-4*", "x"))
    assert not covers(("gpt-*",), None)
    assert not covers(("gpt-4*",), ("gpt-*",))


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("DELETE /invoices/7", "DELETE /invoices/7"),
        ("delete /%69nvoices/7?x=/y", "DELETE /invoices/7"),
        ("DELETE //invoices///7/", "DELETE /invoices/7/"),
        ("DELETE /a/./../invoices/7/.", "DELETE /invoices/7/"),
        ("DELETE /../../invoices%2f7#x", "DELETE /invoices/7"),
        ("DELETE /a\\..\\invoices\\7", "DELETE /invoices/7"),
        ("GET /", "GET /"),
        ("chat", "chat"),
        ("", ""),
    ],
)
def test_another_spelling_of_a_path_is_the_same_operation(written: str, read_as: str) -> None:
    assert normal_operation(written) == read_as
    policy = read("  - {match: {target: billing, operation: 'DELETE /invoices/*'}, deny: x}\n")
    plan = policy.plan(Target(Kind.TOOL, "billing"), "agent", written)
    assert (plan.allow is not None) is (read_as.startswith("DELETE /invoices/"))


@given(st.text(max_size=40))
def test_any_operation_is_read_the_same_twice(text: str) -> None:
    once = normal_operation(f"GET /{text}")
    assert "/../" not in once
    assert "/./" not in once


def test_the_first_rule_that_sets_a_filter_wins_and_every_budget_applies() -> None:
    policy = read("""\
  - {name: a, match: {model: 'gpt-*'}, budget: {tokens: 5}, retry: {attempts: 0}}
  - {name: b, match: {kind: llm}, budget: {tokens: 7}, retry: {attempts: 1}, breaker: {consecutive: 9}}
""")
    plan = policy.plan(GPT, "agent", "chat")
    assert [(budget.tokens, budget.rule) for budget in plan.budgets] == [(5, "a"), (7, "b")]
    assert plan.retry is not None
    assert plan.breaker is not None
    assert (plan.retry.rule, plan.breaker.rule) == ("a", "b")
    assert plan.rules == ("a", "b")
    other = policy.plan(Target(Kind.LLM, "openai", "o3"), "agent", "chat")
    assert other.retry is not None
    assert (other.retry.rule, other.rules) == ("b", ("b",))


def test_every_key_of_a_match_must_fit() -> None:
    policy = read(
        "  - match: {target: 'open*', kind: [llm, tool], agent: [x, y], model: 'gpt-*', operation: chat}\n    deny: x\n"
    )

    def is_denied(target: Target = GPT, agent: str = "x", operation: str = "chat") -> bool:
        return policy.plan(target, agent, operation).allow is not None

    assert is_denied()
    assert is_denied(agent="y")
    assert not is_denied(agent="z")
    assert not is_denied(operation="embeddings")
    assert not is_denied(GPT._replace(name="billing"))
    assert not is_denied(GPT._replace(kind=Kind.HOST))
    assert not is_denied(GPT._replace(model="o3"))


def test_an_allow_takes_the_lists_it_does_not_set_from_later_ones() -> None:
    policy = read("""\
  - {name: a, match: {kind: llm, agent: x}, allow: {models: [m]}}
  - {name: b, match: {kind: llm}, allow: {models: [n], tools: [t]}}
  - {name: c, deny: nothing else}
""")
    allow = policy.plan(GPT, "x", "chat").allow
    assert allow is not None
    assert (allow.models, allow.tools, allow.denied, allow.rule) == (("m",), ("t",), None, "a+b")
    allow = policy.plan(GPT, "y", "chat").allow
    assert allow is not None
    assert (allow.models, allow.tools, allow.rule) == (("n",), ("t",), "b")
    allow = policy.plan(Target(Kind.TOOL, "billing"), "x", "GET /").allow
    assert allow is not None
    assert (allow.denied, allow.rule) == ("nothing else", "c")


def test_a_deny_that_comes_first_ends_the_matter() -> None:
    policy = read(
        "  - {name: a, match: {agent: x}, deny: never}\n  - {name: b, match: {kind: llm}, allow: {models: [n]}}\n"
    )
    allow = policy.plan(GPT, "x", "chat").allow
    assert allow is not None
    assert (allow.denied, allow.models) == ("never", None)


def test_a_rule_in_shadow_never_takes_the_place_of_one_that_binds() -> None:
    policy = read("""\
  - name: s
    match: {kind: llm}
    allow: {models: [m]}
    breaker: {consecutive: 1}
    retry: {attempts: 0}
    budget: {tokens: 1}
    route: {model: z}
    shadow: true
  - {name: b, match: {kind: llm, agent: x}, allow: {models: [n]}}
""")
    bound = policy.plan(GPT, "x", "chat")
    assert bound.allow is not None
    assert (bound.allow.rule, bound.allow.is_shadow) == ("b", False)
    assert {type(trial).__name__ for trial in bound.trials} == {
        "AllowSettings", "BreakerSettings", "RetrySettings", "RouteSettings"
    }  # fmt: skip
    alone = policy.plan(GPT, "y", "chat")
    assert alone.allow is not None
    assert (alone.allow.rule, alone.allow.is_shadow) == ("s", True)
    assert alone.route is None
    assert alone.breaker is not None
    assert alone.breaker.rule == "default"
    assert [(budget.tokens, budget.is_shadow) for budget in alone.budgets] == [(1, True)]
    assert all(trial.is_shadow and trial.rule == "s" for trial in (*bound.trials, *alone.trials))


def test_hits_are_counted_for_the_rules_that_set_something() -> None:
    policy = read("""\
  - {name: a, match: {agent: x}, retry: {attempts: 0}}
  - {name: b, match: {kind: llm}, retry: {attempts: 1}}
  - {name: c, match: {agent: nobody}, retry: {attempts: 2}}
""")
    policy.plan(GPT, "x", "chat")
    assert policy.hits() == {"a": 0, "b": 0, "c": 0}
    policy.plan(GPT, "x", "chat").hit()
    policy.plan(GPT, "x", "embeddings").hit()
    policy.plan(GPT, "y", "chat").hit()
    assert policy.hits() == {"a": 2, "b": 1, "c": 0}
    assert policy.never_matched() == ("c",)


def counting_matcher(rules: list[Rule], *, size: int) -> tuple[Matcher, Hits]:
    built = Hits()

    def build(fitting: list[Rule], target: Target) -> Plan:
        built.count += 1
        return Plan(rules=tuple(rule.name for rule in fitting))

    return Matcher(rules, build, memo_entries_max=size), built


def test_a_plan_is_built_once_however_many_rules_there_are() -> None:
    rules = [Rule(name=f"r{i}", match=Match(agent=(f"a{i}",))) for i in range(1000)]
    matcher, built = counting_matcher(rules, size=8)
    first = matcher.plan(GPT, "a7", "chat", "")
    assert first.rules == ("r7",)
    assert matcher.plan(Target(Kind.LLM, "openai", "gpt-4o"), "a7", "embeddings", "t") is first
    assert built.count == 1


def test_operations_are_looked_at_only_where_a_rule_does() -> None:
    rules = [Rule(name="r", match=Match(target=("billing",), operation=("DELETE *",)))]
    matcher, built = counting_matcher(rules, size=8)
    for number in range(50):
        matcher.plan(GPT, "a", f"GET /{number}", "")
    assert built.count == 1
    assert matcher.plan(Target(Kind.TOOL, "billing"), "a", "DELETE /1", "").rules == ("r",)
    assert matcher.plan(Target(Kind.TOOL, "billing"), "a", "GET /1", "").rules == ()


@given(
    st.lists(st.tuples(st.sampled_from(["openai", "billing"]), st.text(max_size=2), st.text(max_size=2)), max_size=60)
)
def test_the_memo_is_bounded_and_changes_no_answer(calls: list[tuple[str, str, str]]) -> None:
    rules = [
        Rule(name="r", match=Match(target=("billing",), operation=("a*", "b?"))),
        Rule(name="s", match=Match(agent=("*x*",))),
    ]
    matcher, _ = counting_matcher(rules, size=3)
    for name, agent, operation in calls:
        expected = tuple(
            rule
            for rule, fits in (
                ("r", name == "billing" and (operation[:1] == "a" or (operation[:1] == "b" and len(operation) == 2))),
                ("s", "x" in agent),
            )
            if fits
        )
        assert matcher.plan(Target(Kind.LLM, name), agent, operation, "").rules == expected
        assert matcher.memo_entries <= 12


def test_long_texts_are_judged_and_not_kept() -> None:
    matcher, _ = counting_matcher([Rule(name="r", match=Match(operation=("GET /a*",)))], size=8)
    assert matcher.plan(GPT, "a", "GET /" + "a" * 10_000, "").rules == ("r",)
    assert matcher.plan(Target(Kind.LLM, "openai", "m" * 10_000), "a", "GET /b", "").rules == ()
    assert matcher.memo_entries <= 2


def test_a_workflow_is_remembered_for_the_longest_span_that_is_set() -> None:
    other = "  - {match: {}, retry: {attempts: 1}}\n"
    assert read(other).turns_span_s == 86_400
    assert read(f"{other}limits: {{turns: {{span: 1h}}}}\n").turns_span_s == 3600
    longer = f"  - {{match: {{target: billing}}, turns: {{span: 48h}}}}\n{other}"
    assert read(f"{longer}limits: {{turns: {{span: 1h}}}}\n").turns_span_s == 2 * 86_400
