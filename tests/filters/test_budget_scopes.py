"""Whose tokens and dollars are counted together, and for how long: the names of accounts, and what a refusal says."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from meshd.engines.memory import MemoryStore
from meshd.filters.budget import Budget
from meshd.filters.purse import NAME_CHARACTERS_MAX, safe
from meshd.ledger import Ledger
from meshd.refusal import Reason
from meshd_sdk.context import Context
from tests.filters.calls import WALL_S
from tests.filters.purses import admitted, asked, books, document, held, refused, settle

DAY_S = 86_400.0
TODAY = "2026-09-21T00:00"
"""WALL_S is 2026-09-21 14:13:20 UTC."""


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    one = Ledger.in_memory()
    yield one
    await one.close()


@pytest.fixture
def budget(ledger: Ledger) -> Budget:
    return Budget(ledger)


@pytest.mark.parametrize(
    ("per", "account"),
    [
        ("workflow", "workflow/w1"),
        ("agent", "agent/researcher"),
        ("model", "model/big"),
        ("upstream", "upstream/openai"),
        ("tenant", "tenant/acme"),
    ],
)
async def test_each_scope_has_its_account(ledger: Ledger, budget: Budget, per: str, account: str) -> None:
    of = document(f"{{match: {{kind: llm}}, budget: {{tokens: 1000, dollars: 1, per: {per}}}}}", "tenant: acme")
    settle(await held(budget, asked(of)), 80, 7)
    assert books(ledger) == {account: (87, 0), f"{account}/@usd": (1080, 0)}


async def test_a_model_is_counted_over_workflows_and_apart_from_others(ledger: Ledger, budget: Budget) -> None:
    of = document("{name: m, match: {kind: llm}, budget: {tokens: 300, per: model}}")
    other = Context(workflow="w2", agent="writer", account="workflow/w2")
    settle(await held(budget, asked(of)), 100, 50)
    settle(await held(budget, asked(of, context=other)), 100, 50)
    error = await refused(budget, asked(of))
    assert "model/big" in error.message
    assert "rule m, per model" in error.message
    assert "finish with less" in error.message
    settle(await held(budget, asked(of, "small")), 100, 50)


async def test_a_tenant_is_never_taken_from_a_caller(ledger: Ledger, budget: Budget) -> None:
    of = document("{match: {kind: llm}, budget: {tokens: 1000, per: tenant}}", "tenant: acme")
    await held(budget, asked(of, headers=[(b"x-meshd-tenant", b"rich"), (b"tenant", b"rich")]))
    assert set(books(ledger)) == {"tenant/acme"}


async def test_several_scopes_hold_at_once_and_the_tightest_is_named(ledger: Ledger, budget: Budget) -> None:
    of = document(
        "{name: flow, match: {kind: llm}, budget: {tokens: 1000}}, "
        "{name: daily, match: {kind: llm}, budget: {tokens: 400, per: agent, window: 1d}}, "
        "{name: hourly, match: {kind: llm}, budget: {dollars: 1, per: upstream, window: 1h}}"
    )
    settle(await held(budget, asked(of)), 200, 50)
    assert books(ledger) == {
        "workflow/w1": (250, 0),
        f"agent/researcher/@1d/{TODAY}": (250, 0),
        "upstream/openai/@1h/2026-09-21T14:00/@usd": (4000, 0),
    }
    error = await refused(budget, asked(of, input_bound=150))
    assert (error.reason, error.rule, error.is_retryable) == (Reason.BUDGET_EXHAUSTED, "daily", False)
    for part in ("agent/researcher", "per agent", "window 1d", "resets 2026-09-22 00:00 UTC", "wait until 2026-09-22"):
        assert part in error.message
    assert {reserved for _, reserved in books(ledger).values()} == {0}


# Windows


async def test_a_new_window_begins_anew(ledger: Ledger, budget: Budget) -> None:
    of = document("{match: {kind: llm}, budget: {tokens: 200, window: 1d}}")
    settle(await held(budget, asked(of)), 100, 50)
    assert (await refused(budget, asked(of))).reason is Reason.BUDGET_EXHAUSTED
    settle(await held(budget, asked(of, wall_s=WALL_S + DAY_S)), 100, 50)
    assert (await refused(budget, asked(of, wall_s=WALL_S + DAY_S))).reason is Reason.BUDGET_EXHAUSTED
    assert len(books(ledger)) == 2


async def test_what_was_reserved_in_a_window_is_settled_there(ledger: Ledger, budget: Budget) -> None:
    """Whenever the answer ends: the books of the next window know nothing of it."""
    of = document("{match: {kind: llm}, budget: {tokens: 200, window: 1h}}")
    before = await held(budget, asked(of, wall_s=WALL_S))
    after = await held(budget, asked(of, wall_s=WALL_S + 3600))
    settle(before, 100, 50)
    settle(after, 1, 1)
    assert books(ledger) == {
        "workflow/w1/@1h/2026-09-21T14:00": (150, 0),
        "workflow/w1/@1h/2026-09-21T15:00": (2, 0),
    }


async def test_every_attempt_of_a_call_is_in_the_window_in_which_it_began(ledger: Ledger, budget: Budget) -> None:
    of = document("{match: {kind: llm}, budget: {tokens: 1000, window: 1h}}")
    call = asked(of, wall_s=WALL_S)
    settle(await held(budget, call), 10, 0)
    call.attempt, call.now_s = 2, call.now_s + 7200
    settle(await held(budget, call), 10, 0)
    assert books(ledger) == {"workflow/w1/@1h/2026-09-21T14:00": (20, 0)}


async def test_old_windows_leave_memory_and_are_not_forgotten() -> None:
    store = MemoryStore()
    ledger = Ledger.in_memory(store=store, open_max=8)
    budget = Budget(ledger)
    of = document("{match: {kind: llm}, budget: {tokens: 200, window: 1h}}")
    for hour in range(100):
        settle(await held(budget, asked(of, wall_s=WALL_S + 3600 * hour)), 100, 50)
        assert len(ledger.snapshot()) <= 8
    assert (await refused(budget, asked(of, wall_s=WALL_S))).reason is Reason.BUDGET_EXHAUSTED, (
        "an old clock gains nothing"
    )
    await ledger.close()


async def test_windows_of_one_scope_and_an_account_of_its_own_are_apart(ledger: Ledger, budget: Budget) -> None:
    of = document(
        "{match: {kind: llm}, budget: {tokens: 1000, window: 1d}}, "
        "{match: {kind: llm}, budget: {tokens: 1000, window: month, account: dear}}, "
        "{match: {kind: llm}, budget: {tokens: 1000}}"
    )
    settle(await held(budget, asked(of)), 1, 1)
    assert set(books(ledger)) == {"workflow/w1", f"workflow/w1/@1d/{TODAY}", "workflow/w1/@month/2026-09-01T00:00/dear"}


async def test_a_call_of_no_workflow_has_a_dollar_budget_of_its_agents_day(ledger: Ledger, budget: Budget) -> None:
    nobody = Context(workflow="", agent="researcher", account="unattributed/researcher/2026-09-21")
    of = document('{name: cents, match: {kind: llm}, budget: {tokens: 500, dollars: "0.004"}}')
    settle(await held(budget, asked(of, context=nobody)), 100, 50)
    error = await refused(budget, asked(of, context=nobody))
    assert "unattributed/researcher/2026-09-21/@usd" in error.message
    assert "$0.003 of its $0.004" in error.message


async def test_a_window_on_trial(ledger: Ledger, budget: Budget) -> None:
    of = document("{match: {kind: llm}, budget: {tokens: 1000, window: 1d, per: model}, shadow: true}")
    settle(await held(budget, asked(of)), 1, 1)
    assert set(books(ledger)) == {f"shadow/model/big/@1d/{TODAY}"}


async def test_one_windowed_budget_is_held_at_once(budget: Budget) -> None:
    of = document("{match: {kind: llm}, budget: {tokens: 1000, window: 1d, per: upstream}}")
    settle(await held(budget, asked(of)), 1, 1)
    assert budget.admit(asked(of)).__class__.__name__ == "Held"


# Names


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "a/@usd",
        "@usd",
        "~",
        "a b",
        "é",
        "\ud800",
        "a" * 65,
        "x" * 100_000,
        "..",
        "meta-llama/Llama-3-8B",
        "a\n",
    ],
)
def test_a_strange_name_is_short_plain_and_its_own(name: str) -> None:
    found = safe(name)
    assert 0 < len(found) <= NAME_CHARACTERS_MAX
    assert found.isascii()
    assert not set(found) & set("/@ \n")
    assert found == safe(name)
    if name not in ("..",):
        assert "~" in found
        assert safe(name + "x") != found


@pytest.mark.parametrize("name", ["gpt-4o", "claude-opus-5-5", "researcher", "a.b_c:d-9", "a" * 64])
def test_a_plain_name_stands_for_itself(name: str) -> None:
    assert safe(name) == name


async def test_no_name_of_a_model_reaches_another_account(ledger: Ledger, budget: Budget) -> None:
    of = document("{match: {kind: llm}, budget: {dollars: 1, per: model}}", '  "*": {input: 1, output: 1}\n')
    for model in ("a", "a/@usd", "a/@1d/2026-09-21T00:00", "a\ud800"):
        await admitted(budget, asked(of, model))
    assert len(books(ledger)) == 4
    assert books(ledger)["model/a/@usd"] == (0, 150)
