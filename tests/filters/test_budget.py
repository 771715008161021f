"""Budget: what is reserved, what is granted, what is charged, and what a refusal says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshd.call import Ask, Call, Usage, Wait
from meshd.dialects.event import Event
from meshd.dialects.openai import OpenAI
from meshd.engines.memory import MemoryStore
from meshd.engines.port import StoreError
from meshd.filters.budget import Budget
from meshd.filters.budget_settings import BudgetSettings
from meshd.filters.context import Context as ContextFilter
from meshd.filters.contract import Cut
from meshd.filters.held import Held, HeldStream
from meshd.filters.minting import mint_run
from meshd.filters.routing import Routing
from meshd.ledger import Ledger
from meshd.outcome import Fault, Outcome
from meshd.refusal import Reason, Refused
from meshd_sdk.context import Context
from tests.filters.calls import WALL_S, Bytes, Keys, chat, outcome, policy
from tests.filters.calls import call as make_call

pytestmark = pytest.mark.both_loops

ONE = "rules: [{name: all, match: {kind: llm}, budget: {tokens: 1000}}]"
CONTEXT = Context(workflow="w1", agent="researcher", account="workflow/w1")
CLAMPED = b"x-meshd-budget-clamped"


def asked(
    text: str = ONE, ask: Ask | None = None, *, target: str = "openai", context: Context = CONTEXT, **fields: Any
) -> Call:
    """A call as it comes to Budget: read, routed, with its plan and context."""
    document = policy(text)
    made = make_call(target, ask=ask, of=document, **fields)
    made.agent = context.agent
    made.context = context
    made.dialect = OpenAI()
    made.plan = document.plan(made.target, made.agent, ask.operation if ask is not None else "")
    return made


def small(input_bound: int = 100, cap: int | None = 50, **fields: Any) -> Ask:
    return chat("gpt-x", input_bound=input_bound, output_cap=cap, **fields)


def usage(given: int, made: int, **fields: Any) -> Usage:
    return Usage(given, made, **fields)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    one = Ledger.in_memory()
    yield one
    await one.close()


@pytest.fixture
def budget(ledger: Ledger) -> Budget:
    return Budget(ledger)


async def admitted(budget: Budget, call: Call) -> Held | None:
    """Admit a call, waiting where it must wait."""
    decision = budget.admit(call)
    if isinstance(decision, Wait):
        decision = await decision.coroutine
    assert decision is None or isinstance(decision, Held)
    return decision


async def held(budget: Budget, call: Call) -> Held:
    ticket = await admitted(budget, call)
    assert ticket is not None
    return ticket


async def refused(budget: Budget, call: Call) -> Refused:
    with pytest.raises(Refused) as info:
        await admitted(budget, call)
    return info.value


def spent(ledger: Ledger, account: str = "workflow/w1") -> int:
    return {view.id: view.spent for view in ledger.snapshot()}[account]


def reserved(ledger: Ledger, account: str = "workflow/w1") -> int:
    return {view.id: view.reserved for view in ledger.snapshot()}[account]


async def settle(ticket: Held, used: Usage | None = None, **fields: Any) -> None:
    ticket.settle(outcome(is_forwarded=True, usage=used, **fields))


# What is owed


async def test_without_a_budget_nothing_is_owed(budget: Budget) -> None:
    assert budget.admit(asked("", small())) is None


@pytest.mark.parametrize("target", ["billing", "writer", "web"])
async def test_a_call_that_no_dialect_read_owes_nothing_unless_it_is_to_an_llm(budget: Budget, target: str) -> None:
    everything = "rules: [{name: all, match: {target: '*'}, budget: {tokens: 1000}}]"
    assert budget.admit(asked(everything, target=target)) is None


async def test_an_llm_path_that_nobody_can_bound_is_refused(budget: Budget) -> None:
    error = await refused(budget, asked(path="/v1/audio/speech?key=1"))
    assert error.reason is Reason.NOT_ALLOWED
    assert "/v1/audio/speech" in error.message
    assert "key=1" not in error.message
    assert "unmetered" in error.message


async def test_a_request_that_is_read_but_that_nothing_bounds_is_refused(ledger: Ledger, budget: Budget) -> None:
    ask = small(100, 50)
    ask.unbounded = "what an image of this model costs is not published"
    error = await refused(budget, asked(ask=ask, path="/v1/images/generations"))
    assert error.reason is Reason.NOT_ALLOWED
    assert "not published" in error.message
    assert not ledger.snapshot()
    assert budget.explain(asked(ask=ask)) == "owes no tokens"


async def test_a_free_path_passes(budget: Budget) -> None:
    assert budget.admit(asked(method="GET", path="/v1/models")) is None


async def test_an_unmetered_upstream_passes(budget: Budget) -> None:
    text = ONE + '\nupstreams: {open: {url: "https://llm.example.com", kind: llm, dialect: openai, unmetered: true}}'
    document = policy(text, upstreams="agent: researcher\n")
    call = asked(path="/v1/audio/speech")
    call.upstream = document.upstreams["open"]
    assert budget.admit(call) is None


# What is reserved


@pytest.mark.parametrize(
    ("ask", "bound", "granted"),
    [
        (small(100, 50), 150, 50),
        (small(100, 50, choices=4), 300, 50),
        (small(100, None), 4196, 4096),
        (small(100, 0), 100, 0),
        (small(100, -5), 100, 0),
        (chat("gpt-x", input_bound=70, has_output=False), 70, None),
        (small(0, 0), 1, 0),
    ],
)
async def test_the_bound_is_the_input_and_every_answer_at_its_cap(
    ledger: Ledger, budget: Budget, ask: Ask, bound: int, granted: int | None
) -> None:
    call = asked(ONE.replace("1000", "10000"), ask)
    await held(budget, call)
    assert reserved(ledger) == bound
    assert ask.output_cap_granted == granted
    assert not call.reply_headers


async def test_the_default_cap_is_the_policys(budget: Budget) -> None:
    ask = small(100, None)
    await held(budget, asked("rules: [{match: {kind: llm}, budget: {tokens: 1000, output_default: 300}}]", ask))
    assert ask.output_cap_granted == 300


async def test_the_cap_is_clamped_to_what_is_left(ledger: Ledger, budget: Budget) -> None:
    await settle(await held(budget, asked(ask=small(800, 100))), usage(750, 0))
    ask = small(100, 4000)
    call = asked(ask=ask)
    await held(budget, call)
    assert ask.output_cap_granted == 150
    assert (CLAMPED, b"150") in call.reply_headers
    assert reserved(ledger) == 250


async def test_a_clamp_is_shared_by_every_answer(ledger: Ledger, budget: Budget) -> None:
    ask = small(100, 4000, choices=7)
    await held(budget, asked(ask=ask))
    assert ask.output_cap_granted == 128
    assert reserved(ledger) == 100 + 7 * 128


async def test_below_the_floor_it_is_refused(ledger: Ledger, budget: Budget) -> None:
    ask = small(990, 4000)
    error = await refused(budget, asked(ask=ask))
    assert error.reason is Reason.BUDGET_EXHAUSTED
    assert ask.output_cap_granted is None
    assert reserved(ledger) == 0


async def test_a_short_cap_below_the_floor_is_honoured(budget: Budget) -> None:
    await held(budget, asked(ask=small(990, 10)))


async def test_each_attempt_is_reserved_and_clamped_on_its_own(ledger: Ledger, budget: Budget) -> None:
    call = asked(ask=small(100, 4000))
    first = await held(budget, call)
    first.settle(outcome(503, is_forwarded=True))
    call.attempt = 2
    await settle(await held(budget, asked(ask=small(100, 100))), usage(100, 100))
    await held(budget, call)
    assert call.ask is not None
    assert call.ask.output_cap_granted == 700
    assert [value for name, value in call.reply_headers if name == CLAMPED] == [b"700"]


# Whose tokens


async def test_workflows_are_apart(ledger: Ledger, budget: Budget) -> None:
    other = Context(workflow="w2", agent="researcher", account="workflow/w2")
    await settle(await held(budget, asked(ask=small(900, 100))), usage(900, 100))
    assert (await refused(budget, asked(ask=small()))).reason is Reason.BUDGET_EXHAUSTED
    await held(budget, asked(ask=small(), context=other))


async def test_a_budget_per_agent(ledger: Ledger, budget: Budget) -> None:
    text = "rules: [{match: {kind: llm}, budget: {tokens: 1000, per: agent}}]"
    await settle(await held(budget, asked(text, small())), usage(1, 2))
    assert spent(ledger, "agent/researcher") == 3


async def test_a_ceiling_holds_beside_the_budget(ledger: Ledger, budget: Budget) -> None:
    narrow = Context(workflow="w1", agent="researcher", account="workflow/w1", ceiling=300)
    await settle(await held(budget, asked(ask=small())), usage(100, 50))
    error = await refused(budget, asked(ask=small(200, 50), context=narrow))
    assert "150 of its 300" in error.message
    assert "whoever opened this work or delegated it" in error.message
    await held(budget, asked(ask=small(200, 50)))


NARROW = Context(workflow="w1", agent="researcher", account="workflow/w1", ceiling=300)
PER_AGENT = "rules: [{name: each, match: {kind: llm}, budget: {tokens: 1000, per: agent}}]"
NAMED = "rules: [{name: own, match: {kind: llm}, budget: {tokens: 1000, account: own}}]"
ON_TRIAL = "rules: [{name: trial, match: {kind: llm}, budget: {tokens: 9, output_default: 7}, shadow: true}]"


@pytest.mark.parametrize("text", ["", PER_AGENT, NAMED, ON_TRIAL])
async def test_a_ceiling_is_a_limit_without_a_budget_on_the_same_tokens(
    text: str, ledger: Ledger, budget: Budget
) -> None:
    """As `meshd exec --budget` sets it, whatever the policy says."""
    budget = Budget(ledger, lambda _, __: None)
    await settle(await held(budget, asked(text, small(100, 50), context=NARROW)), usage(100, 50))
    assert spent(ledger) == 150
    error = await refused(budget, asked(text, small(200, 50), context=NARROW))
    assert (error.reason, error.rule, error.is_shadow) == (Reason.BUDGET_EXHAUSTED, "", False)
    assert "150 of its 300" in error.message
    assert "`meshd exec --budget`" in error.message
    ask = small(100, None)
    await held(budget, asked(text, ask, context=NARROW))
    assert ask.output_cap_granted == 50, "clamped to what the ceiling leaves"
    other = budget.admit(asked("", small(10_000), context=CONTEXT))
    assert other is None, "without a ceiling and a rule nothing is owed"


async def test_a_run_that_was_given_tokens_has_no_more(ledger: Ledger, budget: Budget) -> None:
    """`meshd exec --budget 300`, under a policy that sets no budget: from the run's address to the refusal."""
    keys = Keys()
    run = mint_run(keys, workflow="r", agent="researcher", wall_s=WALL_S, nonce=b"12345678", ceiling=300)  # type: ignore[arg-type]
    reasons = []
    for _ in range(4):
        call = make_call(ask=small(100, 50), run_token=run)
        call.dialect = OpenAI()
        ContextFilter(keys, Bytes()).admit(call)  # type: ignore[arg-type]
        Routing().admit(call)
        try:
            await settle(await held(budget, call), usage(80, 20))
        except Refused as error:
            reasons.append(error.reason)
    assert spent(ledger, "workflow/r") == 200
    assert reasons == [Reason.BUDGET_EXHAUSTED] * 2


async def test_a_ceiling_binds_only_what_costs_tokens(budget: Budget) -> None:
    assert budget.admit(asked("", target="billing", context=NARROW)) is None
    assert budget.admit(asked("", method="GET", path="/v1/models", context=NARROW)) is None
    error = await refused(budget, asked("", path="/v1/unknown", context=NARROW))
    assert error.reason is Reason.NOT_ALLOWED
    assert "its workflow has a token limit" in error.message


async def test_a_ceiling_of_a_call_without_a_workflow(ledger: Ledger, budget: Budget) -> None:
    nobody = Context(workflow="", agent="researcher", account="unattributed/researcher/2026-09-01", ceiling=120)
    error = await refused(budget, asked("", small(200), context=nobody))
    assert "of its 120" in error.message


async def test_the_ceiling_is_explained(budget: Budget) -> None:
    assert "workflow/w1 (limit 300)" in budget.explain(asked("", small(), context=NARROW))


async def test_a_ceiling_does_not_wait_once_its_account_is_known(ledger: Ledger, budget: Budget) -> None:
    await settle(await held(budget, asked("", small(10, 5), context=NARROW)), usage(1, 1))
    assert isinstance(budget.admit(asked("", small(10, 5), context=NARROW)), Held)


async def test_calls_without_a_workflow_share_their_small_account(ledger: Ledger, budget: Budget) -> None:
    nobody = Context(workflow="", agent="researcher", account="unattributed/researcher/2026-09-01")
    text = ONE + "\nlimits: {unattributed_tokens: 200}"
    await settle(await held(budget, asked(text, small(), context=nobody)), usage(100, 50))
    error = await refused(budget, asked(text, small(), context=nobody))
    assert "next day (UTC)" in error.message
    assert "150 of its 200" in error.message


TWO = """
rules:
  - {name: wide, match: {kind: llm}, budget: {tokens: 1000}}
  - {name: narrow, match: {kind: llm}, budget: {tokens: 400, per: agent}}
"""


async def test_every_budget_must_hold(ledger: Ledger, budget: Budget) -> None:
    ticket = await held(budget, asked(TWO, small()))
    assert reserved(ledger) == reserved(ledger, "agent/researcher") == 150
    await settle(ticket, usage(100, 20))
    assert spent(ledger) == spent(ledger, "agent/researcher") == 120
    error = await refused(budget, asked(TWO, small(300, 10)))
    assert error.rule == "narrow"
    assert reserved(ledger) == reserved(ledger, "agent/researcher") == 0


async def test_the_smallest_grant_of_all_is_what_each_holds(ledger: Ledger, budget: Budget) -> None:
    ask = small(100, 4000)
    await held(budget, asked(TWO, ask))
    assert ask.output_cap_granted == 300
    assert reserved(ledger) == reserved(ledger, "agent/researcher") == 400


async def test_budgets_on_the_same_tokens_are_charged_once(ledger: Ledger, budget: Budget) -> None:
    text = """
rules:
  - {name: wide, match: {kind: llm}, budget: {tokens: 1000}}
  - {name: small, match: {model: "gpt-*"}, budget: {tokens: 400}}
"""
    await settle(await held(budget, asked(text, small())), usage(100, 20))
    assert spent(ledger) == 120
    assert (await refused(budget, asked(text, small(300, 10)))).rule == "small"


async def test_a_named_budget_counts_its_own_tokens(ledger: Ledger, budget: Budget) -> None:
    text = """
rules:
  - {name: wide, match: {kind: llm}, budget: {tokens: 1000}}
  - {name: costly, match: {model: "gpt-*"}, budget: {tokens: 400, account: costly}}
"""
    await settle(await held(budget, asked(text, small())), usage(100, 20))
    assert spent(ledger) == spent(ledger, "workflow/w1/costly") == 120


# What is charged


async def _charged(ledger: Ledger, budget: Budget, end: Outcome) -> int:
    ticket = await held(budget, asked(ask=small()))
    ticket.settle(end)
    assert reserved(ledger) == 0
    return spent(ledger)


BOUND = 150
ENDS = [
    ("not forwarded", outcome(0, Fault.CONNECT), 0, 0),
    ("whole", outcome(is_forwarded=True, usage=usage(90, 10)), 100, 0),
    ("whole, counted here", outcome(is_forwarded=True, usage=usage(90, 10, is_estimated=True)), 100, 1),
    ("whole, usage missing", outcome(is_forwarded=True), BOUND, 1),
    ("above its bound", outcome(is_forwarded=True, usage=usage(400, 10)), 410, 0),
    ("refused by the provider", outcome(429, is_forwarded=True), 0, 0),
    ("failed before answering", outcome(500, is_forwarded=True), 0, 0),
    ("failed, but billed", outcome(500, is_forwarded=True, usage=usage(5, 0)), 5, 0),
    ("a gateway gave up waiting", outcome(504, is_forwarded=True), BOUND, 1),
    ("no answer in time", outcome(0, Fault.FIRST_BYTE_TIMEOUT, is_forwarded=True), BOUND, 1),
    ("reset before the head", outcome(0, Fault.RESET, is_forwarded=True), BOUND, 1),
    ("broken mid-stream", outcome(200, Fault.TRUNCATED, is_forwarded=True), BOUND, 1),
    ("ended without its end", outcome(200, is_terminal=False, is_forwarded=True), BOUND, 1),
    ("broken after a first report", outcome(200, Fault.RESET, is_forwarded=True, usage=usage(20, 1)), 20 + 50, 1),
    ("hung up", outcome(200, Fault.CALLER_GONE, is_forwarded=True), BOUND, 1),
]


@pytest.mark.parametrize(("end", "tokens", "estimated"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
async def test_how_each_end_is_charged(
    ledger: Ledger, budget: Budget, end: Outcome, tokens: int, estimated: int
) -> None:
    assert await _charged(ledger, budget, end) == tokens
    assert ledger.estimated == estimated
    assert ledger.bound_violations == (tokens > BOUND)


async def test_hanging_up_costs_what_the_drained_reply_reports(ledger: Ledger, budget: Budget) -> None:
    end = outcome(200, Fault.CALLER_GONE, is_forwarded=True, usage=usage(90, 10))
    end.is_terminal = True
    assert await _charged(ledger, budget, end) == 100


# The second line


def _event(estimate: int) -> Event:
    event = Event()
    event.output_estimate = estimate
    return event


async def test_a_stream_that_runs_past_its_cap_and_the_margin_is_cut(ledger: Ledger, budget: Budget) -> None:
    ticket = await held(budget, asked(ask=small(100, 100, is_stream=True)))
    assert isinstance(ticket, HeldStream)
    for estimate in (0, 100, 406):
        assert isinstance(ticket.on_event(_event(estimate)), Event)
    cut = ticket.on_event(_event(407))
    assert isinstance(cut, Cut)
    assert not cut.is_error
    ticket.settle(outcome(200, Fault.CUT, is_forwarded=True))
    assert spent(ledger) == 100 + 407, "the upstream ignored its cap: what it was seen to make is charged"


async def test_a_cut_as_an_error_where_the_policy_says_so(budget: Budget) -> None:
    text = "rules: [{match: {kind: llm}, budget: {tokens: 1000, on_exhausted: error}}]"
    ticket = await held(budget, asked(text, small(is_stream=True)))
    assert isinstance(ticket, HeldStream)
    cut = ticket.on_event(_event(10_000))
    assert isinstance(cut, Cut)
    assert cut.is_error
    assert "ask for more tokens, or use a model that does" in cut.message


async def test_a_plain_answer_is_not_watched(budget: Budget) -> None:
    assert not hasattr(await held(budget, asked(ask=small())), "on_event")


# What a refusal says


async def test_a_refusal_says_who_which_limit_and_what_to_do(budget: Budget) -> None:
    await settle(await held(budget, asked(ask=small(900, 50))), usage(900, 50))
    error = await refused(budget, asked(ask=small()))
    assert (error.reason, error.rule, error.is_retryable) == (Reason.BUDGET_EXHAUSTED, "all", False)
    for part in ("workflow/w1", "rule all", "950 of its 1,000", "150", "at least 116", "`budget.tokens`"):
        assert part in error.message


async def test_amounts_can_be_hidden(budget: Budget) -> None:
    text = ONE + "\nerrors: {expose_amounts: false}"
    error = await refused(budget, asked(text, small(5000)))
    assert "workflow/w1" in error.message
    assert not any(part in error.message for part in ("1,000", "1000", "5,050", "5050"))


async def test_busy_is_worth_trying_again(budget: Budget) -> None:
    text = "rules: [{match: {kind: llm}, budget: {tokens: 1000, queue: 0}}]"
    first = await held(budget, asked(text, small(900, 50)))
    error = await refused(budget, asked(text, small()))
    assert (error.reason, error.is_retryable) == (Reason.BUDGET_BUSY, True)
    await settle(first, usage(1, 1))
    await held(budget, asked(text, small()))


# Waiting


async def test_only_the_first_call_of_a_workflow_waits(budget: Budget) -> None:
    await settle(await held(budget, asked(ask=small())), usage(1, 1))
    assert isinstance(budget.admit(asked(ask=small())), Held)


async def test_a_wait_that_nobody_began_reserves_nothing(ledger: Ledger, budget: Budget) -> None:
    decision = budget.admit(asked(ask=small()))
    assert isinstance(decision, Wait)
    decision.coroutine.close()
    assert ledger.reserved_tokens == 0


async def test_a_caller_that_gives_up_waiting_leaves_nothing(ledger: Ledger, budget: Budget) -> None:
    first = await held(budget, asked(TWO, small(350, 50)))
    decision = budget.admit(asked(TWO, small()))
    assert isinstance(decision, Wait)
    task = asyncio.ensure_future(decision.coroutine)
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle(first, usage(0, 0))
    assert ledger.reserved_tokens == 0


async def test_durable_waits_every_time(budget: Budget) -> None:
    text = "rules: [{match: {kind: llm}, budget: {tokens: 1000, mode: durable}}]"
    for _ in range(2):
        decision = budget.admit(asked(text, small()))
        assert isinstance(decision, Wait)
        await settle(await decision.coroutine, usage(1, 1))


# Faults of the store


@pytest.mark.parametrize("setting", ["refuse", "pass"])
async def test_without_books_the_call_is_refused_unless_the_policy_says_otherwise(setting: str) -> None:
    store = MemoryStore()
    store.fault = StoreError("the disk is full")
    budget = Budget(Ledger.in_memory(store=store))
    call = asked(f"rules: [{{match: {{kind: llm}}, budget: {{tokens: 1000, on_store_error: {setting}}}}}]", small())
    if setting == "pass":
        assert await admitted(budget, call) is None
    else:
        error = await refused(budget, call)
        assert (error.reason, error.is_retryable) == (Reason.STORE_UNAVAILABLE, True)
        assert "the disk is full" in error.message


async def test_a_ledger_that_never_opened_refuses_at_once() -> None:
    budget = Budget(Ledger.failed(StoreError("written by a newer meshd")))
    with pytest.raises(Refused, match="written by a newer meshd"):
        budget.admit(asked(ask=small()))


# Shadow

SHADOW = "rules: [{name: trial, match: {kind: llm}, budget: {tokens: 200}, shadow: true}]"


async def test_a_shadow_budget_counts_and_never_binds(ledger: Ledger, budget: Budget) -> None:
    ask = small(100, None)
    ticket = await held(budget, asked(SHADOW, ask))
    assert ask.output_cap_granted is None
    await settle(ticket, usage(100, 70))
    assert spent(ledger, "shadow/workflow/w1") == 170
    error = await refused(budget, asked(SHADOW, small()))
    assert error.is_shadow


async def test_a_shadow_budget_beside_a_binding_one_is_told_apart(ledger: Ledger) -> None:
    told: list[Refused] = []
    budget = Budget(ledger, lambda _, error: told.append(error))
    text = SHADOW[:-1] + ", {name: real, match: {kind: llm}, budget: {tokens: 1000}}]"
    await settle(await held(budget, asked(text, small(300, 50))), usage(300, 50))
    assert [error.rule for error in told] == ["trial"]
    assert spent(ledger) == 350


# The rest


async def test_explain_says_what_is_reserved(budget: Budget) -> None:
    call = asked(ask=small())
    await held(budget, call)
    line = budget.explain(call)
    assert "150 tokens" in line
    assert "workflow/w1 (limit 1,000)" in line
    assert budget.explain(asked("", small())) == "no rule sets a budget"
    assert "owes no tokens" in budget.explain(asked(method="GET", path="/v1/models"))


async def test_a_thousand_calls_at_once_spend_no_more_than_the_budget(ledger: Ledger, budget: Budget) -> None:
    text = "rules: [{match: {kind: llm}, budget: {tokens: 20000, queue: 60s}}]"
    answers = {"spent": 0}
    reasons: list[Reason] = []

    async def one(number: int) -> None:
        try:
            ticket = await held(budget, asked(text, small(100, 50)))
        except Refused as error:
            reasons.append(error.reason)
            return
        await asyncio.sleep(0)
        tokens = number % 50
        answers["spent"] += 100 + tokens
        await settle(ticket, usage(100, tokens))

    await asyncio.gather(*(one(number) for number in range(1000)))
    assert 20_000 - 116 < answers["spent"] <= 20_000
    assert len(reasons) > 800
    assert set(reasons) == {Reason.BUDGET_EXHAUSTED}
    assert ledger.reserved_tokens == 0


def test_every_setting_has_its_unit_or_a_meaning() -> None:
    with pytest.raises(ValueError):
        BudgetSettings.model_validate({"tokens": -1})
    with pytest.raises(ValueError):
        BudgetSettings.model_validate({"tokens": 1, "account": "a/b"})
    with pytest.raises(ValueError):
        BudgetSettings.model_validate({"tokens": 1, "queue": "1h"})
