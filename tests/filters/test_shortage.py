"""What a refusal says is to be done: something that helps."""

from __future__ import annotations

import asyncio

import pytest

from meshd.filters.budget import Budget
from meshd.filters.purse import UNATTRIBUTED
from meshd.ledger import Ledger
from meshd_sdk.context import Context
from tests.filters.purses import CONTEXT, asked, document, held, read, refused, settle

UNNAMED = Context(workflow="", agent="researcher", account=f"{UNATTRIBUTED}/researcher/2026-09-21")


@pytest.mark.parametrize(
    "budget", ["tokens: 1000", "tokens: 1000, window: 1h", "tokens: 1000, per: agent", "dollars: 0.001"]
)
@pytest.mark.parametrize("spent", [0, 20])
async def test_a_call_that_no_unused_account_covers_is_told_to_be_less(budget: str, spent: int) -> None:
    """Neither a new workflow nor the next window has more than the whole limit."""
    ledger = Ledger.in_memory()
    of = document(f"{{name: all, match: {{kind: llm}}, budget: {{{budget}}}}}")
    one = Budget(ledger, lambda _, __: None)
    if spent:
        settle(await held(one, asked(of, input_bound=20, output_cap=10)), spent, 0)
    said = (await refused(one, asked(of, input_bound=5000, output_cap=10))).message
    assert said.endswith("in the policy, or send a shorter request.")
    # One that an unused account does cover is told where there is one.
    if spent:
        said = (await refused(one, asked(of, input_bound=990 if "tokens" in budget else 60, output_cap=10))).message
        assert "shorter" not in said
    await ledger.close()


async def test_calls_without_a_workflow_are_not_sent_to_the_next_day_in_vain() -> None:
    ledger = Ledger.in_memory()
    of = document("{name: all, match: {kind: llm}, budget: {tokens: 1M}}", "limits: {unattributed_tokens: 500}")
    one = Budget(ledger, lambda _, __: None)
    said = (await refused(one, asked(of, context=UNNAMED, input_bound=5000, output_cap=10))).message
    assert "of its 500 tokens" in said
    assert said.endswith("raise `limits.unattributed_tokens`, or send a shorter request.")
    await ledger.close()


async def test_what_only_a_window_bounds_is_named() -> None:
    """A shorter text would be refused just so."""
    ledger = Ledger.in_memory()
    of = document("{name: all, match: {kind: llm}, budget: {tokens: 10k}}")
    call = read(of, web_search_options={})
    said = (await refused(Budget(ledger, lambda _, __: None), call)).message
    assert "whole context window" in said
    assert "shorter" not in said
    await ledger.close()


async def test_what_a_closed_account_could_never_cover_is_told_that_it_is_closed() -> None:
    """More of a budget that is closed would help nobody."""
    ledger = Ledger.in_memory()
    of = document("{name: all, match: {kind: llm}, budget: {tokens: 1000}}")
    one = Budget(ledger, lambda _, __: None)
    settle(await held(one, asked(of)), 100, 50)
    await ledger.orders.close(CONTEXT.account)
    for _ in range(10):
        await asyncio.sleep(0)  # the word of it is on its way
    for _ in range(3):
        for input_bound in (100, 5000):
            said = (await refused(one, asked(of, input_bound=input_bound))).message
            assert "was closed. Begin a new workflow, or ask whoever closed it." in said
    await ledger.close()
