"""Bounds: counted where they do not fit, raised where they were none. The rest of Budget is in test_budget.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshd.call import Ask, Call, Usage, Wait
from meshd.dialects.anthropic import Anthropic
from meshd.dialects.openai import OpenAI
from meshd.filters.bounds import CLASSES, MODELS_MAX, Bounds
from meshd.filters.budget import Budget
from meshd.filters.held import Held
from meshd.ledger import Ledger
from meshd.refusal import Reason, Refused
from meshd.tokens.counter import Counter
from meshd_sdk.context import Context
from tests.filters.calls import call as make_call
from tests.filters.calls import outcome, policy

pytestmark = pytest.mark.both_loops

ENGLISH = "The keeper trims the lamp and writes the wind down. " * 40
CONTEXT = Context(workflow="w1", agent="researcher", account="workflow/w1")
COUNTED = 40 * 11 + 9
"""Its tokens and those around it; it has 2,080 bytes."""


def document(tokens: int, *, more: str = "", other: str = "") -> str:
    return f"rules: [{{name: all, match: {{kind: llm}}, budget: {{tokens: {tokens}{more}}}}}{other}]"


def asked(
    tokens: int, *, model: str = "gpt-4o", cap: int = 50, more: str = "", other: str = "", **members: Any
) -> Call:
    body = {"model": model, "messages": [{"role": "user", "content": ENGLISH}], "max_tokens": cap} | members
    dialect: Any = Anthropic() if model.startswith("claude") else OpenAI()
    raw = json.dumps(body).encode()
    ask = dialect.read("chat", raw)
    read = policy(document(tokens, more=more, other=other))
    made = make_call("openai", ask=ask, of=read, body=raw)
    made.agent = CONTEXT.agent
    made.context = CONTEXT
    made.dialect = dialect
    made.plan = read.plan(made.target, made.agent, "chat")
    return made


def ask_of(call: Call) -> Ask:
    assert call.ask is not None
    return call.ask


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    one = Ledger.in_memory()
    yield one
    await one.close()


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def bounds(counter: Counter) -> Bounds:
    return Bounds(counter)


@pytest.fixture
def budget(ledger: Ledger, bounds: Bounds) -> Budget:
    return Budget(ledger, None, bounds)


async def held(budget: Budget, call: Call) -> Held:
    decision = budget.admit(call)
    if isinstance(decision, Wait):
        decision = await decision.coroutine
    assert isinstance(decision, Held)
    return decision


async def refused(budget: Budget, call: Call) -> Refused:
    with pytest.raises(Refused) as info:
        await held(budget, call)
    return info.value


def reserved(ledger: Ledger, account: str = "workflow/w1") -> int:
    return {view.id: view.reserved for view in ledger.snapshot()}[account]


async def opened(ledger: Ledger, tokens: int, *accounts: str) -> None:
    """Open accounts, so that their leases are there."""
    for account in accounts or ("workflow/w1",):
        got = await ledger.wait(account, tokens, 1, 1, queue_s=0)
        got.settle(0)  # type: ignore[union-attr]


# Counting


async def test_what_fits_is_not_counted(budget: Budget, bounds: Bounds, ledger: Ledger) -> None:
    await opened(ledger, 100_000)
    call = asked(100_000)
    assert isinstance(budget.admit(call), Held), "at once"
    assert (bounds.counted, bounds.uncounted) == (0, 0)
    assert ask_of(call).bound_by == "bytes"


@pytest.mark.parametrize("more", ["", ", mode: durable", ", per: agent"])
@pytest.mark.parametrize("is_open", [True, False])
async def test_what_does_not_fit_by_its_bytes_is_counted(
    budget: Budget, bounds: Bounds, ledger: Ledger, more: str, is_open: bool
) -> None:
    account = "agent/researcher" if "agent" in more else "workflow/w1"
    if is_open:
        await opened(ledger, 1_000, account)
    call = asked(1_000, more=more)
    assert ask_of(call).input_bound > 2_000
    await held(budget, call)
    assert ask_of(call).bound_by == "count"
    assert ask_of(call).input_bound == COUNTED
    assert reserved(ledger, account) == ask_of(call).input_bound + 50
    assert ask_of(call).output_cap_granted == ask_of(call).output_cap
    assert (bounds.counted, bounds.uncounted) == (1, 0)
    assert ledger.refused == 0, "the first miss was no refusal"


async def test_an_answer_is_not_clamped_for_a_loose_bound(budget: Budget, ledger: Ledger) -> None:
    await opened(ledger, 2_500)
    # By bytes some 350 tokens would be left for the answer.
    call = asked(2_500, cap=1_500)
    await held(budget, call)
    assert ask_of(call).output_cap_granted == ask_of(call).output_cap
    assert call.reply_headers == []
    assert reserved(ledger) == ask_of(call).input_bound + 1_500


async def test_what_does_not_fit_after_a_count_is_clamped_or_refused(
    budget: Budget, ledger: Ledger, bounds: Bounds
) -> None:
    call = asked(1_000, cap=4_000)
    ticket = await held(budget, call)
    granted = ask_of(call).output_cap_granted
    assert granted == 1_000 - ask_of(call).input_bound
    assert reserved(ledger) == 1_000
    ticket.settle(outcome())
    error = await refused(budget, asked(300))
    assert error.reason is Reason.BUDGET_EXHAUSTED
    assert f"may take {ask_of(call).input_bound + 50:,}" in error.message, "it names the count, not the bytes"
    assert ledger.refused == 1
    assert bounds.counted == 2


@pytest.mark.parametrize("model", ["claude-opus-5-5", "unheard-of", "gemini-2.5-pro", "gpt-6-sol"])
async def test_models_without_a_published_tokenizer_keep_their_bound(
    budget: Budget, bounds: Bounds, model: str
) -> None:
    call = asked(1_000, model=model)
    error = await refused(budget, call)
    assert error.reason is Reason.BUDGET_EXHAUSTED
    assert ask_of(call).bound_by == "bytes"
    assert (bounds.counted, bounds.uncounted) == (0, 0)


async def test_what_the_body_does_not_show_is_not_counted(budget: Budget, bounds: Bounds) -> None:
    part = {"type": "file", "file": {"file_id": "f"}}
    call = asked(1_000, messages=[{"role": "user", "content": [part]}])
    await refused(budget, call)
    assert ask_of(call).input_bound == 128_000
    assert bounds.counted + bounds.uncounted == 0


async def test_a_count_that_lowers_nothing_is_made_once(budget: Budget, bounds: Bounds) -> None:
    call = asked(60, messages=[{"role": "user", "content": "x"}], cap=1_000, more=", floor: 90")
    await refused(budget, call)
    await refused(budget, call)
    assert ask_of(call).bound_by in ("count", "kept")
    assert bounds.counted + bounds.uncounted == 1


async def test_where_nothing_can_be_counted_the_bound_stands(ledger: Ledger) -> None:
    def missing(_name: str) -> None:
        raise ImportError("no library")

    broken = Bounds(Counter(load=missing))  # type: ignore[arg-type]
    call = asked(1_000)
    assert (await refused(Budget(ledger, None, broken), call)).reason is Reason.BUDGET_EXHAUSTED
    assert (broken.counted, broken.uncounted) == (0, 1)
    assert ask_of(call).bound_by == "kept"


OTHER = ", {name: narrow, match: {kind: llm}, budget: {tokens: 900, per: agent}}"


@pytest.mark.parametrize("first_tokens", [800, 100_000])
async def test_every_account_holds_what_was_counted_and_no_more(
    budget: Budget, ledger: Ledger, first_tokens: int
) -> None:
    call = asked(first_tokens, other=OTHER)
    ticket = await held(budget, call)
    expected = ask_of(call).input_bound + 50
    assert reserved(ledger) == reserved(ledger, "agent/researcher") == expected < 700
    ticket.settle(outcome(is_forwarded=True, usage=Usage(500, 20)))
    assert reserved(ledger) == reserved(ledger, "agent/researcher") == 0


async def test_a_budget_on_trial_is_told_only_of_what_the_count_would_refuse(ledger: Ledger, bounds: Bounds) -> None:
    told: list[Refused] = []
    budget = Budget(ledger, lambda _call, refused: told.append(refused), bounds)
    trial = ", {name: trial, match: {kind: llm}, budget: {tokens: 1000, account: small}, shadow: true}"
    call = asked(100_000, other=trial)
    await held(budget, call)
    assert told == []
    await held(budget, asked(100_000, other=trial.replace("1000", "300")))
    assert [one.rule for one in told] == ["trial"]
    assert reserved(ledger) > 0


async def test_a_caller_that_hangs_up_while_counting_holds_nothing(budget: Budget, ledger: Ledger) -> None:
    await opened(ledger, 1_000)
    decision = budget.admit(asked(1_000))
    assert isinstance(decision, Wait)
    waiting = asyncio.ensure_future(decision.coroutine)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert reserved(ledger) == 0


async def test_calls_at_once_are_all_admitted_in_the_end(budget: Budget, ledger: Ledger) -> None:
    calls = [asked(5_000, more=", queue: 30s") for _ in range(20)]

    async def one(call: Call) -> None:
        ticket = await held(budget, call)
        assert reserved(ledger) <= 5_000
        await asyncio.sleep(0)
        ticket.settle(outcome(is_forwarded=True, usage=Usage(150, 20)))

    await asyncio.gather(*(one(call) for call in calls))
    assert reserved(ledger) == 0
    assert {ask_of(call).bound_by for call in calls} == {"bytes", "count"}


# Raising


async def test_a_model_that_passed_its_bound_has_larger_ones_from_then_on(
    budget: Budget, ledger: Ledger, bounds: Bounds
) -> None:
    call = asked(100_000, model="unheard-of")
    before = ask_of(call).input_bound
    ticket = await held(budget, call)
    ticket.settle(outcome(is_forwarded=True, usage=Usage(before * 3 // 2, 1)))
    assert ledger.bound_violations == 1
    assert bounds.raised == {"unheard-of": 150}
    again = asked(100_000, model="unheard-of")
    await held(budget, again)
    assert ask_of(again).input_bound == -(-before * 150 // 100)
    assert ask_of(again).bound_by == "raised bytes"
    budget.admit(again)
    assert ask_of(again).input_bound == -(-before * 150 // 100), "once for a request, whatever its attempts"
    other = asked(100_000, model="another")
    await held(budget, other)
    assert ask_of(other).bound_by == "bytes"


async def test_a_raised_model_is_counted_with_its_raise(budget: Budget, bounds: Bounds) -> None:
    bounds.passed("gpt-4o", 100, 190)
    call = asked(2_000)
    await held(budget, call)
    assert ask_of(call).bound_by == "count"
    assert ask_of(call).input_bound == COUNTED * 2


async def test_a_raised_window_is_not_counted(budget: Budget, bounds: Bounds) -> None:
    bounds.passed("gpt-4o", 100, 110)
    call = asked(1_000, messages=[{"role": "user", "content": [{"type": "file"}]}])
    await refused(budget, call)
    assert (ask_of(call).input_bound, ask_of(call).bound_by) == (160_000, "raised window")


@pytest.mark.parametrize(
    ("bound", "reported", "percent"),
    [(100, 101, 125), (100, 126, 150), (100, 1_500, 1_600), (100, 10**9, 1_600), (0, 5, 800), (1, 10**9, 1_600)],
)
def test_classes(bound: int, reported: int, percent: int) -> None:
    bounds = Bounds()
    bounds.passed("m", bound, reported)
    assert bounds.raised["m"] == percent
    bounds.passed("m", bound or 1, reported + 1)
    assert bounds.raised["m"] >= percent, "never lower"
    assert bounds.raised["m"] <= CLASSES[-1]


def test_names_that_an_agent_makes_up_grow_nothing() -> None:
    bounds = Bounds()
    for number in range(MODELS_MAX * 2):
        bounds.passed(f"m-{number}", 1, 2)
    assert len(bounds.raised) == MODELS_MAX
    bounds.passed("m-0", 1, 9)
    assert bounds.raised["m-0"] == 1_600


async def test_an_estimate_of_ours_raises_nothing(budget: Budget, bounds: Bounds) -> None:
    ticket = await held(budget, asked(100_000, model="unheard-of"))
    ticket.settle(outcome(is_forwarded=True, usage=Usage(10**6, 1, is_estimated=True)))
    assert bounds.raised == {}
