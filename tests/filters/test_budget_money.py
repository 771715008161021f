"""Budgets in dollars: reserved by bound and price, settled by usage and price, beside tokens or alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from meshd.call import Ask, Usage, Wait
from meshd.dialects.openai import OpenAI
from meshd.filters.allow_list import judge
from meshd.filters.bounds import Bounds
from meshd.filters.budget import CLAMPED, Budget
from meshd.filters.context import Context as ContextFilter
from meshd.filters.held import Held, HeldStream
from meshd.filters.minting import mint_run
from meshd.filters.routing import Routing
from meshd.ledger import Ledger
from meshd.outcome import Fault
from meshd.prices.billed import Billed
from meshd.refusal import Reason, Refused
from meshd.tokens.counter import Counter
from meshd_sdk.context import NO_CEILING, Context
from tests.filters.calls import WALL_S, Bytes, Keys, outcome, policy
from tests.filters.calls import call as make_call
from tests.filters.purses import admitted, asked, books, document, header, held, read, refused, settle

pytestmark = pytest.mark.both_loops

DOLLARS = document('{name: cents, match: {kind: llm}, budget: {dollars: "0.01"}}')
BOTH = document('{name: both, match: {kind: llm}, budget: {tokens: 1000, dollars: "0.01"}}')
USD = "workflow/w1/@usd"


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    one = Ledger.in_memory()
    yield one
    await one.close()


@pytest.fixture
def budget(ledger: Ledger) -> Budget:
    return Budget(ledger)


async def test_a_call_reserves_its_bound_at_its_price_and_is_charged_its_usage(ledger: Ledger, budget: Budget) -> None:
    ticket = await held(budget, asked(DOLLARS))
    assert books(ledger) == {USD: (0, 100 * 10 + 50 * 40)}
    settle(ticket, 80, 7)
    assert books(ledger) == {USD: (80 * 10 + 7 * 40, 0)}
    assert (ledger.spent_tokens, ledger.spent_microdollars) == (0, 1080)
    assert (ledger.reserved_tokens, ledger.reserved_microdollars) == (0, 0)


async def test_tokens_and_dollars_are_two_accounts(ledger: Ledger, budget: Budget) -> None:
    ticket = await held(budget, asked(BOTH))
    assert books(ledger) == {"workflow/w1": (0, 150), USD: (0, 3000)}
    assert (ledger.reserved_tokens, ledger.reserved_microdollars) == (150, 3000)
    settle(ticket, 80, 7)
    assert books(ledger) == {"workflow/w1": (87, 0), USD: (1080, 0)}
    assert (ledger.spent_tokens, ledger.spent_microdollars) == (87, 1080)


async def test_two_budgets_on_one_call_need_no_task_once_their_leases_are_there(budget: Budget) -> None:
    settle(await held(budget, asked(BOTH)), 1, 1)
    decision = budget.admit(asked(BOTH))
    assert isinstance(decision, Held)
    settle(decision, 1, 1)


async def test_the_tightest_decides_and_says_so(ledger: Ledger, budget: Budget) -> None:
    settle(await held(budget, asked(BOTH)), 100, 50)
    settle(await held(budget, asked(BOTH)), 100, 50)
    settle(await held(budget, asked(BOTH)), 100, 25)
    error = await refused(budget, asked(BOTH, input_bound=150))
    assert (error.reason, error.rule, error.is_retryable) == (Reason.BUDGET_EXHAUSTED, "both", False)
    for part in (
        USD,
        "rule both, per workflow",
        "$0.008 of its $0.01",
        "$0.0035",
        "at least $0.00214",
        "budget.dollars",
    ):
        assert part in error.message
    assert books(ledger)["workflow/w1"] == (425, 0), "what tokens had been held is given back"


async def test_an_answer_is_clamped_to_what_the_dollars_buy(ledger: Ledger, budget: Budget) -> None:
    call = asked(BOTH, output_cap=5000)
    ticket = await held(budget, call)
    assert call.ask is not None
    assert call.ask.output_cap_granted == 225, "(10,000 - 100 x 10) / 40"
    assert header(call, CLAMPED) == ["225"]
    assert books(ledger) == {"workflow/w1": (0, 325), USD: (0, 10_000)}
    settle(ticket, 100, 225)


async def test_amounts_can_be_hidden(budget: Budget) -> None:
    quiet = document('{name: q, match: {kind: llm}, budget: {dollars: "0.001"}}', "errors: {expose_amounts: false}")
    error = await refused(budget, asked(quiet))
    assert "too few dollars" in error.message
    assert "$" not in error.message


async def test_a_budget_of_zero_dollars_refuses_and_says_so(budget: Budget) -> None:
    nothing = document("{name: nil, match: {kind: llm}, budget: {dollars: 0}}")
    error = await refused(budget, asked(nothing))
    assert error.reason is Reason.BUDGET_EXHAUSTED
    assert "The budget is zero" in error.message


async def test_a_budget_of_zero_tokens_refuses_and_says_so(budget: Budget) -> None:
    error = await refused(budget, asked(document("{match: {kind: llm}, budget: {tokens: 0}}")))
    assert "The budget is zero" in error.message


async def test_a_limit_lowered_below_what_is_spent_refuses_and_shows_both(budget: Budget) -> None:
    settle(await held(budget, asked(DOLLARS)), 100, 50)
    lower = document('{name: cents, match: {kind: llm}, budget: {dollars: "0.002"}}')
    error = await refused(budget, asked(lower))
    assert "$0.003 of its $0.002" in error.message


# Prices


async def test_a_free_model_holds_no_dollars(ledger: Ledger, budget: Budget) -> None:
    assert await admitted(budget, asked(DOLLARS, "free", input_bound=10**9)) is None
    ticket = await held(budget, asked(BOTH, "free"))
    assert books(ledger) == {"workflow/w1": (0, 150)}
    settle(ticket, 10, 10)


async def test_without_a_price_nothing_passes_on_dollars_alone(ledger: Ledger, budget: Budget) -> None:
    error = await refused(budget, asked(DOLLARS, "mystery"))
    assert (error.reason, error.rule, error.is_retryable) == (Reason.NOT_ALLOWED, "cents", False)
    for part in ("'mystery'", "openai", "rule cents", 'prices: {"mystery"', "`tokens`"):
        assert part in error.message
    assert budget.tally.unpriced == {"cents": 1}
    assert books(ledger) == {}


async def test_without_a_price_tokens_still_hold(ledger: Ledger, budget: Budget) -> None:
    ticket = await held(budget, asked(BOTH, "mystery"))
    assert books(ledger) == {"workflow/w1": (0, 150)}
    settle(ticket, 10, 10)
    assert books(ledger) == {"workflow/w1": (20, 0)}
    assert budget.tally.unpriced == {"both": 1}
    assert (await refused(budget, asked(BOTH, "mystery", input_bound=1000))).reason is Reason.BUDGET_EXHAUSTED


async def test_a_ceiling_in_tokens_binds_a_call_without_a_price(ledger: Ledger, budget: Budget) -> None:
    narrow = Context(workflow="w1", agent="researcher", account="workflow/w1", ceiling=300)
    settle(await held(budget, asked(DOLLARS, "mystery", context=narrow)), 100, 50)
    assert books(ledger) == {"workflow/w1": (150, 0)}


@pytest.mark.parametrize("model", ['a"}} {', "a\nb", "", "x" * 5000])
async def test_a_strange_name_of_a_model_is_refused_without_harm(budget: Budget, model: str) -> None:
    error = await refused(budget, asked(DOLLARS, model))
    assert error.reason is Reason.NOT_ALLOWED
    assert "\n" not in error.message
    assert len(error.message) < 600


async def test_an_upstreams_prices_come_before_the_documents(ledger: Ledger, budget: Budget) -> None:
    text = (
        "agent: researcher\nupstreams:\n  openai: {url: 'https://api.openai.com', dialect: openai, kind: llm,\n"
        '           prices: {"b*": {input: 2, output: 3}}}\n'
    )
    of = policy('prices: {"big": {input: 10, output: 40}}\nrules: [{match: {kind: llm}, budget: {dollars: 1}}]', text)
    await held(budget, asked(of))
    assert books(ledger)[USD] == (0, 100 * 2 + 50 * 3)


async def test_the_table_that_ships_is_asked_last(ledger: Ledger, budget: Budget) -> None:
    of = document("{match: {kind: llm}, budget: {dollars: 1}}")
    await held(budget, asked(of, "text-embedding-3-small", input_bound=1_000_000, output_cap=0))
    assert books(ledger)[USD] == (0, 20_000)


async def test_the_model_that_is_sent_is_the_one_that_is_priced(ledger: Ledger, budget: Budget) -> None:
    of = document(
        '{match: {kind: llm, model: "big"}, route: {model: small}}, {match: {kind: llm}, budget: {dollars: 1}}'
    )
    call = asked(of)
    Routing().admit(call)
    await held(budget, call)
    assert books(ledger)[USD] == (0, 100 * 1 + 50 * 4)


async def test_the_tier_that_the_request_asks_for_is_priced(ledger: Ledger, budget: Budget) -> None:
    of = document(
        "{match: {kind: llm}, budget: {dollars: 1}}",
        '  "tiered": {input: 1, output: 0, priority: 2}\n',
    )
    bound = len(read(of, "tiered").body or b"")
    for tier, times in ((None, 2), ("auto", 2), ("priority", 2), ("default", 1), ("flex", 1)):
        call = read(of, "tiered", **({} if tier is None else {"service_tier": tier}))
        assert call.ask is not None
        ticket = await held(budget, call)
        assert books(ledger)[USD][1] == call.ask.input_bound * times
        ticket.settle(outcome())
    assert bound


# What is charged


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({"is_forwarded": False}, 0),
        ({"is_forwarded": True}, 3000),
        ({"is_forwarded": True, "usage": Usage(80, 7)}, 1080),
        ({"is_forwarded": True, "usage": Usage(500, 500)}, 25_000),
        ({"is_forwarded": True, "status": 400}, 0),
        ({"is_forwarded": True, "status": 504}, 3000),
        ({"is_forwarded": True, "fault": Fault.RESET}, 3000),
        ({"is_forwarded": True, "fault": Fault.RESET, "is_terminal": False, "usage": Usage(80, 7)}, 80 * 10 + 50 * 40),
        ({"is_forwarded": True, "fault": Fault.RESET, "is_terminal": False, "usage": Usage(80, 70)}, 80 * 10 + 70 * 40),
        ({"is_forwarded": True, "fault": Fault.RESET, "is_terminal": False, "usage": Usage(0, 7)}, 3000),
    ],
)
async def test_dollars_are_charged_as_tokens_are(
    ledger: Ledger, budget: Budget, fields: dict[str, object], cost: int
) -> None:
    ticket = await held(budget, asked(DOLLARS))
    ended = outcome(**fields)  # type: ignore[arg-type]
    ticket.settle(ended)
    assert books(ledger)[USD] == (cost, 0)
    assert ended.microdollars == cost
    ticket.settle(ended)
    assert books(ledger)[USD] == (cost, 0), "twice is as once"


async def test_usage_above_the_bound_is_charged_in_full_and_counted(ledger: Ledger, budget: Budget) -> None:
    settle(await held(budget, asked(DOLLARS)), 10**9, 10**9)
    assert books(ledger)[USD][0] == 50 * 10**9
    assert ledger.bound_violations == 1
    assert (await refused(budget, asked(DOLLARS))).reason is Reason.BUDGET_EXHAUSTED


async def test_what_the_provider_cached_is_charged_at_its_own_price(ledger: Ledger, budget: Budget) -> None:
    of = document(
        "{match: {kind: llm}, budget: {dollars: 1}}",
        '  "kept": {input: 10, cached_input: 1, cache_write: 12.5, cache_write_long: 20, output: 40}\n',
    )
    ticket = await held(budget, asked(of, "kept"))
    assert books(ledger)[USD] == (0, 100 * 20 + 50 * 40), "nothing is known of the body: the dearest holds"
    ticket.settle(outcome(is_forwarded=True, usage=Usage(100, 0, 50, billed=Billed(40, 8))))
    assert books(ledger)[USD] == (10 * 10 + 50 * 1 + 32 * 12.5 + 8 * 20, 0)


async def test_a_stream_that_ran_on_is_charged_what_it_ran(ledger: Ledger, budget: Budget) -> None:
    from meshd.dialects.event import Event

    ticket = await held(budget, asked(document("{match: {kind: llm}, budget: {dollars: 1}}"), is_stream=True))
    assert isinstance(ticket, HeldStream)
    event = Event()
    event.output_estimate = 1000
    ticket.on_event(event)
    ticket.settle(outcome(fault=Fault.CUT, is_forwarded=True))
    assert books(ledger)[USD] == (100 * 10 + 1000 * 40, 0)


# On trial


async def test_dollars_on_trial_count_and_never_bind(ledger: Ledger) -> None:
    told: list[Refused] = []
    budget = Budget(ledger, lambda _, error: told.append(error))
    of = document(
        "{name: real, match: {kind: llm}, budget: {tokens: 1000}}, "
        '{name: trial, match: {kind: llm}, budget: {dollars: "0.004"}, shadow: true}'
    )
    settle(await held(budget, asked(of)), 100, 50)
    assert books(ledger) == {"workflow/w1": (150, 0), "shadow/workflow/w1/@usd": (3000, 0)}
    settle(await held(budget, asked(of)), 100, 50)
    assert [(error.rule, error.reason) for error in told] == [("trial", Reason.BUDGET_EXHAUSTED)]
    await held(budget, asked(of, "mystery"))
    assert [error.reason for error in told[1:]] == [Reason.NOT_ALLOWED]
    assert budget.tally.unpriced == {"trial": 1}


async def test_dollars_on_trial_alone_are_told_by_the_chain(budget: Budget) -> None:
    of = document('{name: trial, match: {kind: llm}, budget: {dollars: "0.001"}, shadow: true}')
    error = await refused(budget, asked(of))
    assert (error.is_shadow, error.rule) == (True, "trial")
    assert (await refused(budget, asked(of, "mystery"))).is_shadow


# The rest


async def test_explain_says_each_account_its_limit_and_what_would_be_reserved(budget: Budget) -> None:
    of = document(
        '{name: a, match: {kind: llm}, budget: {tokens: 5000, dollars: "0.50"}}, '
        "{name: b, match: {kind: llm}, budget: {dollars: 20, per: model, window: 1d}}"
    )
    call = asked(of)
    await held(budget, call)
    line = budget.explain(call)
    for part in (
        "reserves up to 150 tokens and $0.003",
        "workflow/w1 (limit 5,000)",
        "workflow/w1/@usd (limit $0.50)",
        "model/big/@1d/2026-09-21T00:00/@usd (limit $20.00, rule b, per model, window 1d, resets 2026-09-22 00:00 UTC)",
        "priced by prices of the policy",
    ):
        assert part in line
    assert "price of mystery is not known" in budget.explain(asked(of, "mystery"))
    assert "holds nothing" in budget.explain(asked(of, "free"))
    assert "OpenAI" not in line


async def test_a_caller_that_never_waits_leaves_no_dollars_held(ledger: Ledger, budget: Budget) -> None:
    decision = budget.admit(asked(BOTH))
    assert isinstance(decision, Wait)
    decision.coroutine.close()
    assert (ledger.reserved_tokens, ledger.reserved_microdollars) == (0, 0)


# A ceiling in the context, as `meshd exec --dollars` sets it

CAPPED = Context(
    workflow="w1", agent="researcher", account="workflow/w1", ceiling=NO_CEILING, ceiling_microdollars=5000
)


@pytest.mark.parametrize(
    "rules",
    [
        "",
        "{match: {kind: llm}, budget: {dollars: 1}}",
        "{match: {kind: llm}, budget: {dollars: 1, per: agent}}",
        "{match: {kind: llm}, budget: {tokens: 100000}}",
        '{match: {kind: llm}, budget: {dollars: "0.001"}, shadow: true}',
    ],
)
async def test_a_ceiling_in_dollars_is_a_limit_whatever_the_policy_says(ledger: Ledger, rules: str) -> None:
    budget = Budget(ledger, lambda _, __: None)
    of = document(rules)
    settle(await held(budget, asked(of, context=CAPPED)), 100, 50)
    assert books(ledger)[USD] == (3000, 0)
    error = await refused(budget, asked(of, context=CAPPED, input_bound=150))
    assert error.reason is Reason.BUDGET_EXHAUSTED
    for part in ("$0.003 of its $0.005", "`meshd exec --dollars`"):
        assert part in error.message
    assert books(ledger)[USD] == (3000, 0)


async def test_ceilings_in_tokens_and_dollars_hold_at_once(ledger: Ledger, budget: Budget) -> None:
    both = replace(CAPPED, ceiling=160)
    of = document("")
    settle(await held(budget, asked(of, "small", context=both)), 100, 50)
    assert books(ledger) == {"workflow/w1": (150, 0), USD: (300, 0)}
    assert "`meshd exec --budget`" in (await refused(budget, asked(of, "small", context=both))).message


async def test_a_ceiling_in_dollars_alone_lets_no_unknown_price_pass(ledger: Ledger, budget: Budget) -> None:
    error = await refused(budget, asked(document(""), "mystery", context=CAPPED))
    assert error.reason is Reason.NOT_ALLOWED
    assert "what its workflow may spend in dollars" in error.message
    assert books(ledger) == {}


async def test_a_smaller_budget_of_the_policy_holds_under_a_ceiling(budget: Budget) -> None:
    of = document('{name: less, match: {kind: llm}, budget: {dollars: "0.002"}}')
    error = await refused(budget, asked(of, context=CAPPED, input_bound=150))
    assert error.rule == "less"


async def test_a_run_that_was_given_dollars_has_no_more(ledger: Ledger, budget: Budget) -> None:
    """From the run's address to the refusal, over the token."""
    keys = Keys()
    run = mint_run(
        keys,
        workflow="r",
        agent="researcher",
        wall_s=WALL_S,
        nonce=b"12345678",
        ceiling_microdollars=5000,  # type: ignore[arg-type]
    )
    of = document("")
    reasons = []
    for _ in range(3):
        call = make_call(ask=Ask("chat", "big", input_bound=100, output_cap=50), run_token=run, of=of)
        call.dialect = OpenAI()
        ContextFilter(keys, Bytes()).admit(call)  # type: ignore[arg-type]
        Routing().admit(call)
        try:
            ticket = await held(budget, call)
            assert call.ask is not None
            settle(ticket, 100, min(40, call.ask.output_cap_granted or 40))
        except Refused as error:
            reasons.append(error.reason)
    assert reasons == [Reason.BUDGET_EXHAUSTED]
    assert books(ledger)["workflow/r/@usd"] == (5000, 0), "the second answer was clamped to 35 tokens"


# Counting, where the byte bound costs too much

LONG = [{"role": "user", "content": "Please summarise what was said about the harbour. " * 60}]


async def test_what_is_too_dear_by_its_bytes_is_counted(ledger: Ledger) -> None:
    """3,000 bytes are some 600 tokens: at a hundred micro-dollars each only these fit."""
    bounds = Bounds(Counter())
    budget = Budget(ledger, None, bounds)
    of = document(
        '{name: t, match: {kind: llm}, budget: {tokens: 100000, dollars: "0.12"}}',
        '  "gpt-4o": {input: 100, output: 100}\n',
    )
    call = read(of, "gpt-4o", messages=LONG, max_tokens=50)
    assert call.ask is not None
    by_bytes = call.ask.input_bound
    await held(budget, call)
    counted = call.ask.input_bound
    assert (call.ask.bound_by, bounds.counted) == ("count", 1)
    assert counted * 3 < by_bytes
    assert call.ask.output_cap_granted == 50
    assert books(ledger) == {"workflow/w1": (0, counted + 50), USD: (0, (counted + 50) * 100)}, "tokens held less too"
    assert ledger.refused == 0


async def test_a_cheaper_model_is_counted_anew(ledger: Ledger) -> None:
    budget = Budget(ledger, None, Bounds(Counter()), judge)
    of = document(
        '{name: t, match: {target: openai}, budget: {dollars: "0.12", degrade: {at: 1, to: gpt-4o-mini}}}',
        '  "gpt-4o": {input: 1000, output: 100}\n  "gpt-4o-mini": {input: 100, output: 100}\n',
    )
    call = read(of, "gpt-4o", messages=LONG, max_tokens=50)
    await held(budget, call)
    assert call.ask is not None
    assert (call.ask.model_sent, call.ask.bound_by) == ("gpt-4o-mini", "count")
    assert books(ledger)[USD] == (0, (call.ask.input_bound + 50) * 100)


async def test_models_that_may_be_taken_besides_are_held_and_charged_at_the_dearest(
    ledger: Ledger, budget: Budget
) -> None:
    call = asked(DOLLARS, "small")
    assert call.ask is not None
    call.ask.other_models = ("big", "free")
    ticket = await held(budget, call)
    assert books(ledger) == {USD: (0, 100 * 10 + 50 * 40)}
    assert "the dearest of" in budget.explain(call)
    settle(ticket, 80, 7)
    assert books(ledger) == {USD: (80 * 10 + 7 * 40, 0)}


async def test_one_of_them_without_a_price_is_named(ledger: Ledger, budget: Budget) -> None:
    call = asked(DOLLARS)
    assert call.ask is not None
    call.ask.other_models = ("small", "nobody-knows")
    error = await refused(budget, call)
    assert error.reason is Reason.NOT_ALLOWED
    assert "'nobody-knows'" in error.message
    beside = asked(BOTH)
    assert beside.ask is not None
    beside.ask.other_models = ("nobody-knows",)
    await held(budget, beside)
    assert books(ledger) == {"workflow/w1": (0, 150)}, "tokens hold, dollars are not counted"
