"""Delegation: an agent gets what it was given and no more, and what is left comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshd.call import Wait
from meshd.engines.memory import MemoryStore
from meshd.engines.port import StoreError
from meshd.filters.budget import Budget
from meshd.filters.delegation import Delegated, Delegation
from meshd.ledger import Ledger
from meshd.refusal import Reason, Refused
from tests.filters.calls import SUCCESS, Bytes, outcome
from tests.filters.test_budget import CONTEXT, asked, held, refused, small, spent, usage

if TYPE_CHECKING:
    from meshd.call import Call, Headers

pytestmark = pytest.mark.both_loops

RULES = """
rules:
  - {name: all, match: {kind: llm}, budget: {tokens: 10000, queue: 0s}}
  - {name: part, match: {target: writer}, delegate: {tokens: 3000, queue: 0s}}
"""
BUDGET_ONLY = "rules: [{name: all, match: {kind: llm}, budget: {tokens: 10000, queue: 0s}}]"


@pytest.fixture
def ledger() -> Ledger:
    return Ledger.in_memory()


@pytest.fixture
def delegation(ledger: Ledger) -> Delegation:
    return Delegation(ledger, Bytes())


def to_agent(text: str = RULES, *, headers: Headers | None = None, target: str = "writer", **fields: Any) -> Call:
    return asked(text, target=target, headers=headers, path="/run", **fields)


async def delegated(delegation: Delegation, call: Call) -> Delegated:
    wait = delegation.admit(call)
    assert isinstance(wait, Wait)
    ticket = await wait.coroutine
    assert isinstance(ticket, Delegated)
    return ticket


async def test_an_agent_spends_from_its_part_and_the_rest_flows_back(ledger: Ledger, delegation: Delegation) -> None:
    budget = Budget(ledger)
    call = to_agent()
    ticket = await delegated(delegation, call)
    context = call.context
    assert context is not None
    assert context.account == "delegated/0000000000000001/workflow/w1"
    assert context.ceiling == 3000
    one = await held(budget, asked(RULES, small(1000, 1000), context=context))
    one.settle(outcome(is_forwarded=True, usage=usage(800, 700)))
    assert spent(ledger, context.account) == 1500
    why = await refused(budget, asked(RULES, small(1600, 10), context=context))
    assert why.reason is Reason.BUDGET_EXHAUSTED
    # Meanwhile the caller has only what it kept.
    why = await refused(budget, asked(RULES, small(7001, 10)))
    assert why.reason is Reason.BUDGET_BUSY, "the part may come back"
    ticket.settle(SUCCESS)
    await ledger.orders.finish()
    patient = RULES.replace("10000, queue: 0s", "10000, queue: 9s")
    (await held(budget, asked(patient, small(8400, 100)))).settle(outcome(is_forwarded=True, usage=usage(8400, 100)))
    assert (await refused(budget, asked(patient, small(1, 1)))).reason is Reason.BUDGET_EXHAUSTED


async def test_a_caller_gives_less_than_the_rule(ledger: Ledger, delegation: Delegation) -> None:
    call = to_agent(headers=[(b"x-meshd-delegate", b"500")])
    await delegated(delegation, call)
    assert call.context is not None
    assert call.context.ceiling == 500


async def test_a_caller_cannot_give_more_than_the_rule(ledger: Ledger, delegation: Delegation) -> None:
    call = to_agent(headers=[(b"x-meshd-delegate", b"999999")])
    await delegated(delegation, call)
    assert call.context is not None
    assert call.context.ceiling == 3000


async def test_without_a_rule_the_caller_may_give(ledger: Ledger, delegation: Delegation) -> None:
    call = to_agent(BUDGET_ONLY, headers=[(b"x-meshd-delegate", b"2000")])
    await delegated(delegation, call)
    assert (await ledger.orders.books("workflow/w1")).children == {"delegated/0000000000000001/workflow/w1": 2000}


async def test_nobody_gives_more_than_the_workflow_has(ledger: Ledger, delegation: Delegation) -> None:
    call = to_agent(BUDGET_ONLY, headers=[(b"x-meshd-delegate", b"50000")])
    await delegated(delegation, call)
    assert call.context is not None
    assert call.context.ceiling == 10_000
    with pytest.raises(Refused) as why:
        await delegated(delegation, to_agent(BUDGET_ONLY, headers=[(b"x-meshd-delegate", b"50000")]))
    assert why.value.reason is Reason.BUDGET_BUSY


async def test_with_nothing_to_say_nothing_is_set_aside(delegation: Delegation) -> None:
    assert delegation.admit(to_agent(BUDGET_ONLY)) is None
    assert delegation.admit(asked(RULES, small(), headers=[(b"x-meshd-delegate", b"5")])) is None, "an LLM is no agent"
    assert delegation.admit(to_agent(target="billing")) is None


@pytest.mark.parametrize("value", [b"", b"0", b"-1", b"1e3", b"5k", b" 5", b"1" * 16, b"\xff", b"5, 6"])
async def test_nonsense_in_the_header_is_malformed_and_never_nothing(delegation: Delegation, value: bytes) -> None:
    with pytest.raises(Refused) as why:
        delegation.admit(to_agent(BUDGET_ONLY, headers=[(b"x-meshd-delegate", value)]))
    assert why.value.reason is Reason.MALFORMED


async def test_two_headers_are_malformed(delegation: Delegation) -> None:
    headers = [(b"x-meshd-delegate", b"5"), (b"x-meshd-delegate", b"5000")]
    with pytest.raises(Refused):
        delegation.admit(to_agent(BUDGET_ONLY, headers=headers))


async def test_too_little_left_is_refused(ledger: Ledger, delegation: Delegation) -> None:
    one = await held(Budget(ledger), asked(RULES, small(9500, 100)))
    one.settle(outcome(is_forwarded=True, usage=usage(9500, 100)))
    with pytest.raises(Refused) as why:
        await delegated(delegation, to_agent())
    assert why.value.reason is Reason.BUDGET_EXHAUSTED
    assert (await ledger.orders.books("workflow/w1")).children == {}


async def test_a_part_of_a_part(ledger: Ledger, delegation: Delegation) -> None:
    call = to_agent()
    first = await delegated(delegation, call)
    assert call.context is not None
    inner = to_agent(BUDGET_ONLY, headers=[(b"x-meshd-delegate", b"1000")], context=call.context)
    second = await delegated(delegation, inner)
    assert inner.context is not None
    assert inner.context.account == "delegated/0000000000000002/workflow/w1"
    assert (await ledger.orders.books(call.context.account)).children == {inner.context.account: 1000}
    second.settle(SUCCESS)
    first.settle(SUCCESS)
    await ledger.orders.finish()
    assert (await ledger.orders.books("workflow/w1")).children == {}


async def test_a_part_opens_no_second_purse(ledger: Ledger, delegation: Delegation) -> None:
    text = RULES + "  - {name: dear, match: {kind: llm}, budget: {tokens: 1000, account: dear, queue: 0s}}\n"
    budget = Budget(ledger)
    one = await held(budget, asked(text, small(800, 100)))
    one.settle(outcome(is_forwarded=True, usage=usage(800, 100)))
    call = to_agent(text)
    await delegated(delegation, call)
    assert call.context is not None
    why = await refused(budget, asked(text, small(200, 10), context=call.context))
    assert "workflow/w1/dear" in why.message


async def test_a_store_that_is_away_gives_nothing(delegation: Delegation) -> None:
    store = MemoryStore()
    one = Delegation(Ledger.in_memory(store=store), Bytes())
    store.fault = StoreError("away")
    with pytest.raises(Refused) as why:
        await delegated(one, to_agent())
    assert why.value.reason is Reason.STORE_UNAVAILABLE


async def test_it_explains_itself(delegation: Delegation) -> None:
    call = to_agent()
    assert "from the caller's own account" in delegation.explain(call)
    await delegated(delegation, call)
    assert "gives the called agent 3,000 tokens of its own" in delegation.explain(call)
    assert CONTEXT.account == "workflow/w1"
