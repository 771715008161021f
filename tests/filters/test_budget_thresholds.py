"""Before a budget is used up: a warning in the reply, then a cheaper model, judged as if it had been asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from meshd.dialects.gemini import Gemini
from meshd.filters.allow_list import judge
from meshd.filters.budget import CLAMPED, Budget
from meshd.filters.held import Held
from meshd.filters.thresholds import DEGRADED, OTHER, RULES_MAX, WARNING, count
from meshd.ledger import Ledger
from meshd.policy.compiled import Policy
from meshd.refusal import Reason
from tests.filters.calls import outcome
from tests.filters.purses import admitted, asked, books, document, header, held, read, refused, settle

pytestmark = pytest.mark.both_loops

USD = "workflow/w1/@usd"


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    one = Ledger.in_memory()
    yield one
    await one.close()


@pytest.fixture
def budget(ledger: Ledger) -> Budget:
    return Budget(ledger, judge=judge)


def spend(dollars: str, more: str = "", match: str = "target: openai", rules: str = "", also: str = "") -> Policy:
    """A policy whose rule `d` has so many dollars, and `more`."""
    return document(f'{{name: d, match: {{{match}}}, budget: {{dollars: "{dollars}"{more}}}}}{rules}', also)


# Warnings


async def test_a_reply_warns_from_the_threshold_on(budget: Budget) -> None:
    of = document("{name: t, match: {kind: llm}, budget: {tokens: 1000, warn_at: 0.5}}")
    for number, warned in enumerate((False, False, False, False, True)):
        call = asked(of)
        settle(await held(budget, call), 100, 10)
        assert bool(header(call, WARNING)) is warned, number
    assert header(call, WARNING) == ["rule=t; per=workflow; unit=tokens; at=0.5; limit=1000; remaining=410"]
    assert budget.tally.warned == {"t": 1}


async def test_what_is_reserved_counts_too(budget: Budget) -> None:
    call = asked(document("{match: {kind: llm}, budget: {tokens: 1000, warn_at: 0.9}}"), output_cap=800)
    await held(budget, call)
    assert header(call, WARNING)


async def test_a_warning_of_dollars_and_a_window(budget: Budget) -> None:
    of = document('{name: d, match: {kind: llm}, budget: {dollars: "0.01", per: agent, window: 1d, warn_at: 0.25}}')
    call = asked(of)
    settle(await held(budget, call), 1, 1)
    assert header(call, WARNING) == [
        "rule=d; per=agent; unit=dollars; at=0.25; limit=$0.01; remaining=$0.007; resets=2026-09-22 00:00 UTC"
    ]


async def test_a_warning_can_hide_amounts(budget: Budget) -> None:
    of = document(
        "{name: t, match: {kind: llm}, budget: {tokens: 100, warn_at: 0.1}}", "errors: {expose_amounts: false}"
    )
    call = asked(of, input_bound=50, output_cap=10)
    await held(budget, call)
    assert header(call, WARNING) == ["rule=t; per=workflow; unit=tokens; at=0.1"]


async def test_each_attempt_warns_anew(budget: Budget) -> None:
    call = asked(document("{match: {kind: llm}, budget: {tokens: 1000, warn_at: 0.15}}"))
    (await held(budget, call)).settle(outcome(503))
    assert len(header(call, WARNING)) == 1
    call.attempt = 2
    await held(budget, call)
    assert len(header(call, WARNING)) == 1


async def test_two_budgets_on_one_account_warn_by_their_own_limits(budget: Budget) -> None:
    of = document(
        "{name: wide, match: {kind: llm}, budget: {tokens: 10000, warn_at: 0.02}}, "
        "{name: tight, match: {kind: llm}, budget: {tokens: 1000, warn_at: 0.9}}"
    )
    call = asked(of, output_cap=110)
    await held(budget, call)
    assert header(call, WARNING)[0].startswith("rule=wide;"), "210 of 10,000 is past a fiftieth"
    assert budget.tally.warned == {"wide": 1}


async def test_a_warning_on_trial_is_counted_and_not_sent(budget: Budget) -> None:
    call = asked(document("{name: t, match: {kind: llm}, budget: {tokens: 1000, warn_at: 0.1}, shadow: true}"))
    await held(budget, call)
    assert header(call, WARNING) == []
    assert budget.tally.warned == {"t": 1}


# A cheaper model

CHEAPER = ", degrade: {at: 0.5, to: small}"


async def test_above_the_threshold_a_cheaper_model_is_sent(ledger: Ledger, budget: Budget) -> None:
    of = spend("0.01", CHEAPER)
    first = asked(of)
    settle(await held(budget, first), 100, 100)
    assert first.ask is not None
    assert (first.ask.model_sent, header(first, DEGRADED)) == ("big", [])
    second = asked(of)
    ticket = await held(budget, second)
    assert second.ask is not None
    assert (second.ask.model, second.ask.model_sent, second.target.model) == ("big", "small", "small")
    assert header(second, DEGRADED) == ["small; rule=d"]
    assert second.ask.degraded_by == "d"
    assert books(ledger)[USD] == (5000, 100 * 1 + 50 * 4), "reserved at the cheaper price"
    settle(ticket, 100, 50)
    assert books(ledger)[USD] == (5300, 0), "and charged at it"
    assert budget.tally.degraded == {"d": 1}


async def test_it_needs_no_task_once_the_leases_are_there(budget: Budget) -> None:
    of = spend("0.01", CHEAPER)
    settle(await held(budget, asked(of)), 100, 100)
    assert isinstance(budget.admit(asked(of)), Held)


async def test_tokens_have_a_threshold_too(ledger: Ledger, budget: Budget) -> None:
    of = document("{name: t, match: {target: openai}, budget: {tokens: 1000, degrade: {at: 0.1, to: small}}}")
    settle(await held(budget, asked(of)), 100, 0)
    call = asked(of)
    await held(budget, call)
    assert call.ask is not None
    assert call.ask.model_sent == "small"
    assert books(ledger) == {"workflow/w1": (100, 150)}


async def test_before_it_is_refused_a_call_gets_the_cheaper_model(ledger: Ledger, budget: Budget) -> None:
    """Clamp, queue, degrade, refuse: below the threshold too, where the dearer model does not fit at all."""
    of = spend("0.001", ", degrade: {at: 1, to: small}")
    call = asked(of)
    await held(budget, call)
    assert call.ask is not None
    assert (call.ask.model_sent, call.ask.output_cap_granted) == ("small", 50)
    assert books(ledger)[USD] == (0, 300)


async def test_it_clamps_before_it_degrades(budget: Budget) -> None:
    of = spend("0.01", ", degrade: {at: 1, to: small}")
    call = asked(of, output_cap=1000)
    await held(budget, call)
    assert call.ask is not None
    assert (call.ask.model_sent, header(call, CLAMPED)) == ("big", ["225"])


async def test_it_queues_before_it_degrades(ledger: Ledger, budget: Budget) -> None:
    of = spend("0.004", ", queue: 0, degrade: {at: 1, to: small}")
    first = await held(budget, asked(of))
    second = asked(of)
    await held(budget, second)
    assert second.ask is not None
    assert second.ask.model_sent == "small", "a dearer one would have had to wait"
    settle(first, 0, 0)


async def test_when_the_cheaper_one_does_not_fit_either_it_is_refused(ledger: Ledger, budget: Budget) -> None:
    error = await refused(budget, asked(spend("0.0001", ", degrade: {at: 1, to: small}")))
    assert error.reason is Reason.BUDGET_EXHAUSTED
    assert books(ledger)[USD] == (0, 0)


async def test_a_later_attempt_stays_with_the_cheaper_model(ledger: Ledger, budget: Budget) -> None:
    of = spend("0.01", CHEAPER)
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of)
    (await held(budget, call)).settle(outcome(503))
    call.attempt = 2
    await held(budget, call)
    assert call.ask is not None
    assert (call.ask.model_sent, header(call, DEGRADED)) == ("small", ["small; rule=d"])
    assert books(ledger)[USD][1] == 300


async def test_the_cheaper_models_own_rules_hold(ledger: Ledger, budget: Budget) -> None:
    of = spend(
        "0.01", CHEAPER, rules=", {name: s, match: {kind: llm, model: small}, budget: {tokens: 120, account: s}}"
    )
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of)
    await held(budget, call)
    assert header(call, CLAMPED) == ["20"]
    assert books(ledger) == {USD: (5000, 180), "workflow/w1/s": (0, 120)}
    assert of.hits()["s"] == 1


async def test_a_chain_of_cheaper_models_ends(ledger: Ledger, budget: Budget) -> None:
    of = spend(
        "0.01",
        ", degrade: {at: 0.1, to: small}",
        match="target: openai, model: big",
        rules=", {name: e, match: {target: openai, model: small}, "
        'budget: {dollars: "0.01", degrade: {at: 0.1, to: big}}}',
    )
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of)
    await held(budget, call)
    assert call.ask is not None
    assert call.ask.model_sent == "small", "never back to what was asked for"


async def test_a_model_that_is_not_allowed_is_not_sent(ledger: Ledger, budget: Budget) -> None:
    of = spend(
        "0.01",
        CHEAPER,
        match="target: openai, operation: chat",
        rules=", {match: {operation: chat}, allow: {models: big}}",
    )
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of)
    await held(budget, call)
    assert call.ask is not None
    assert (call.ask.model_sent, call.target.model, header(call, DEGRADED)) == ("big", "big", [])
    assert call.plan is of.plan(call.target, call.agent, "chat")
    assert budget.tally.degraded == {}


async def test_a_rule_that_denies_the_cheaper_model_keeps_it_out(budget: Budget) -> None:
    of = spend(
        "0.01",
        CHEAPER,
        rules=", {match: {model: small, operation: chat}, deny: not here}",
        match="target: openai, operation: chat",
    )
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of)
    await held(budget, call)
    assert call.target.model == "big"


async def test_a_model_with_other_tools_is_not_sent(budget: Budget) -> None:
    """The answer is watched by the plan that the call was admitted with."""
    of = spend(
        "0.01",
        CHEAPER,
        match="target: openai",
        rules=", {match: {kind: llm, model: small}, allow: {tools: [calculator]}}",
    )
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of)
    await held(budget, call)
    assert call.target.model == "big"


async def test_without_a_judge_nothing_that_an_allow_is_about_is_sent(ledger: Ledger) -> None:
    of = spend("0.01", CHEAPER, rules=", {match: {kind: llm}, allow: {models: '*'}}")
    budget = Budget(ledger)
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of)
    await held(budget, call)
    assert call.target.model == "big"


async def test_what_has_no_output_keeps_its_model(budget: Budget) -> None:
    """An embedding of another model is of no use to anybody."""
    of = spend("0.01", ", degrade: {at: 0.0001, to: small}")
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of, has_output=False)
    await admitted(budget, call)
    assert call.target.model == "big"


async def test_the_input_is_bounded_anew_for_the_cheaper_model(budget: Budget) -> None:
    """gpt-4o's tokens are bytes; of another model's tokenizer less is known, so its bound has a margin."""
    of = document(
        '{name: d, match: {target: openai}, budget: {dollars: 1, degrade: {at: 0.0001, to: "small"}}}',
    )
    settle(await held(budget, read(of, "gpt-4o")), 100, 100)
    call = read(of, "gpt-4o")
    assert call.ask is not None
    before = call.ask.input_bound
    await held(budget, call)
    assert call.ask.model_sent == "small"
    assert call.ask.input_bound > before
    assert b'"small"' in call.dialect.rewrite(call.ask, call.body)


async def test_a_signed_request_keeps_its_model(budget: Budget) -> None:
    of = spend("0.01", CHEAPER)
    settle(await held(budget, asked(of)), 100, 100)
    for is_sealed in (True, False):
        call = asked(of)
        assert call.ask is not None
        call.ask.is_sealed = is_sealed
        settle(await held(budget, call), 0, 0)
        assert call.ask.model_sent == ("big" if is_sealed else "small")


@pytest.mark.parametrize(("cheaper", "is_sent"), [("gemini-3-pro-image-preview", False), ("gemini-3-flash", True)])
async def test_a_model_that_nothing_bounds_is_not_sent(budget: Budget, cheaper: str, is_sent: bool) -> None:
    of = document(
        f"{{name: d, match: {{target: openai}}, budget: {{dollars: 1, degrade: {{at: 0.0001, to: {cheaper}}}}}}}",
        f'\n  "{cheaper}": {{input: 1, output: 1}}',
    )
    dialect, path = Gemini(), "/v1beta/models/big:generateContent"
    body = b'{"contents":[{"parts":[{"text":"x"}]}]}'
    for _ in range(2):
        call = asked(of)
        call.ask, call.body, call.path, call.dialect = dialect.read("chat", body, path), body, path, dialect
        ticket = await held(budget, call)
        settle(ticket, 100, 100)
    assert call.ask is not None
    assert call.ask.model_sent == call.target.model == (cheaper if is_sent else "big")


async def test_on_trial_it_is_counted_and_changes_nothing(budget: Budget) -> None:
    of = document(
        "{name: t, match: {target: openai}, budget: {tokens: 1000, degrade: {at: 0.05, to: small}}, shadow: true}"
    )
    settle(await held(budget, asked(of)), 100, 0)
    call = asked(of)
    await held(budget, call)
    assert (call.target.model, header(call, DEGRADED)) == ("big", [])
    assert budget.tally.degraded == {"t": 1}


async def test_explain_says_that_the_model_is_another(budget: Budget) -> None:
    of = spend("0.01", CHEAPER)
    settle(await held(budget, asked(of)), 100, 100)
    call = asked(of)
    await held(budget, call)
    assert "x-meshd-model-degraded: small by rule d" in budget.explain(call)


def test_counts_are_bounded() -> None:
    counts: dict[str, int] = {}
    for number in range(RULES_MAX + 10):
        count(counts, f"rule-{number}")
    assert len(counts) == RULES_MAX + 1
    assert counts[OTHER] == 10
