"""Work that goes on when its call is answered: held until a later call reads its end, and charged once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshd.dialects.event import Event
from meshd.dialects.openai import OpenAI
from meshd.filters.budget import Budget
from meshd.filters.underway import UNDERWAY_MAX, UNDERWAY_S_MAX, Begun, Reading
from meshd.ledger import Ledger
from tests.filters.calls import NOW_S, call, chat, outcome, policy
from tests.filters.test_budget import CONTEXT, asked, held, reserved, small, spent, usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshd.call import Ask, Call

pytestmark = pytest.mark.both_loops

ONE = "rules: [{name: all, match: {kind: llm}, budget: {tokens: 1000}}]"
TWO = "rules: [{match: {kind: llm}, budget: {tokens: 1000}}, {match: {kind: llm}, budget: {tokens: 9000, per: agent}}]"


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    one = Ledger.in_memory()
    yield one
    await one.close()


@pytest.fixture
def budget(ledger: Ledger) -> Budget:
    return Budget(ledger)


def background() -> Ask:
    ask = small(100, 200)
    ask.begins = True
    return ask


def said(begun: str = "", ended: str = "") -> Event:
    event = Event()
    event.begun, event.ended = begun, ended
    return event


async def begin(budget: Budget, id: str = "resp_1", text: str = ONE, now_s: float = NOW_S) -> Ask:
    """Have a request answered that goes on."""
    ask = background()
    ticket = await held(budget, asked(text, ask))
    assert isinstance(ticket, Begun)
    ticket.on_event(said(begun=id))
    ticket.settle(outcome(now_s=now_s, is_forwarded=True))
    return ask


def reading(
    budget: Budget, id: str = "resp_1", text: str = ONE, target: str = "openai", now_s: float = NOW_S
) -> tuple[Reading | None, Call]:
    made = asked(text, method="GET", path=f"/v1/responses/{id}", target=target, now_s=now_s)
    decision = budget.admit(made)
    assert decision is None or isinstance(decision, Reading)
    return decision, made


def settled(decision: Reading, event: Event, **fields: object) -> None:
    assert decision.on_event(event) is event
    decision.settle(outcome(is_forwarded=True, **fields))  # type: ignore[arg-type]


async def test_tokens_stay_held_until_a_reading_says_what_it_cost(ledger: Ledger, budget: Budget) -> None:
    ask = await begin(budget)
    assert (reserved(ledger), spent(ledger)) == (300, 0)
    first, made = reading(budget)
    assert made.earlier is ask, "the reply is read as that of the request which began the work"
    assert first is not None
    settled(first, said(begun="resp_1"))
    assert (reserved(ledger), spent(ledger)) == (300, 0), "it goes on"
    second, _ = reading(budget)
    assert second is not None
    settled(second, said(ended="resp_1"), usage=usage(60, 70))
    assert (reserved(ledger), spent(ledger)) == (0, 130)
    assert reading(budget)[0] is None, "it is over, so nothing is read for"
    assert ledger.estimated == 0


async def test_every_account_that_holds_pays_once(ledger: Ledger, budget: Budget) -> None:
    await begin(budget, text=TWO)
    one, _ = reading(budget, text=TWO)
    other, _ = reading(budget, text=TWO)
    assert one is not None
    assert other is not None
    for each in (one, other):
        settled(each, said(ended="resp_1"), usage=usage(60, 70))
    for account in ("workflow/w1", "agent/researcher"):
        assert (reserved(ledger, account), spent(ledger, account)) == (0, 130)


async def test_what_is_over_and_says_no_usage_costs_its_bound(ledger: Ledger, budget: Budget) -> None:
    await begin(budget)
    decision, _ = reading(budget)
    assert decision is not None
    settled(decision, said(ended="resp_1"))
    assert (reserved(ledger), spent(ledger)) == (0, 300)
    assert ledger.estimated == 1


@pytest.mark.parametrize(
    ("event", "status"), [(said(ended="resp_2"), 200), (said(), 200), (said(ended="resp_1"), 404), (said(), 500)]
)
async def test_a_reply_that_does_not_say_its_end_settles_nothing(
    ledger: Ledger, budget: Budget, event: Event, status: int
) -> None:
    await begin(budget)
    decision, _ = reading(budget)
    assert decision is not None
    decision.on_event(event)
    decision.settle(outcome(status, is_forwarded=True, usage=usage(1, 1)))
    assert (reserved(ledger), spent(ledger)) == (300, 0)


async def test_an_id_is_of_its_upstream(budget: Budget) -> None:
    await begin(budget)
    assert reading(budget, target="backup")[0] is None
    assert reading(budget, "resp_2")[0] is None
    assert reading(budget, "resp_1/input_items")[0] is None


async def test_a_reading_is_free_where_nothing_is_left_and_where_no_rule_fits_it(
    ledger: Ledger, budget: Budget
) -> None:
    await begin(budget)
    ticket = await held(budget, asked(ONE, small(100, 600)))
    ticket.settle(outcome(is_forwarded=True, usage=usage(100, 600)))
    assert reading(budget)[0] is not None
    unruled = call("openai", method="GET", path="/v1/responses/resp_1", of=policy(""))
    unruled.dialect, unruled.context = OpenAI(), CONTEXT
    unruled.plan = unruled.policy.plan(unruled.target, "researcher", "")
    assert isinstance(budget.admit(unruled), Reading)


@pytest.mark.parametrize(
    ("event", "fields", "tokens"),
    [
        (said(begun="resp_1"), {"usage": usage(60, 70)}, 130),
        (said(begun="resp_1", ended="resp_1"), {"usage": usage(60, 70)}, 130),
        (said(begun="resp_1", ended="resp_1"), {}, 300),
        (said(), {}, 300),
        (said(begun="resp_1"), {"status": 500}, 0),
    ],
)
async def test_an_answer_that_is_whole_settles_as_every_other(
    ledger: Ledger, budget: Budget, event: Event, fields: dict[str, object], tokens: int
) -> None:
    ticket = await held(budget, asked(ONE, background()))
    assert isinstance(ticket, Begun)
    ticket.on_event(event)
    ticket.settle(outcome(is_forwarded=True, **fields))  # type: ignore[arg-type]
    assert (reserved(ledger), spent(ledger)) == (0, tokens)
    assert reading(budget)[0] is None


async def test_a_second_work_of_the_same_id_is_charged_at_its_bound(ledger: Ledger, budget: Budget) -> None:
    await begin(budget)
    await begin(budget)
    assert (reserved(ledger), spent(ledger)) == (300, 300)


async def test_what_nobody_reads_is_charged_at_its_bound_in_the_end(ledger: Ledger, budget: Budget) -> None:
    await begin(budget)
    late_s = NOW_S + UNDERWAY_S_MAX + 1
    assert reading(budget, now_s=NOW_S + UNDERWAY_S_MAX - 1)[0] is not None
    assert reading(budget, now_s=late_s)[0] is None
    assert (reserved(ledger), spent(ledger)) == (0, 300)


async def test_there_is_a_most_of_works(ledger: Ledger, budget: Budget) -> None:
    many = ONE.replace("1000", "1M")
    for number in range(UNDERWAY_MAX + 1):
        await begin(budget, f"resp_{number}", many)
    assert (reserved(ledger), spent(ledger)) == (300 * UNDERWAY_MAX, 300)
    assert reading(budget, "resp_0")[0] is None
    assert reading(budget, f"resp_{UNDERWAY_MAX}")[0] is not None


async def test_an_id_of_any_length_is_not_kept(ledger: Ledger, budget: Budget) -> None:
    await begin(budget, "x" * 5_000)
    assert (reserved(ledger), spent(ledger)) == (0, 300)


async def test_a_chat_is_never_held_for_later(budget: Budget) -> None:
    assert not isinstance(await held(budget, asked(ONE, chat("gpt-x", input_bound=9, output_cap=9))), Begun)
