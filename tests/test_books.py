"""Books that cannot be opened at the start are opened later, and budgets then go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd import books
from meshd.assembly import build_chain
from meshd.call import Wait
from meshd.engines.port import StoreError, StoreLocked, StoreUnable
from meshd.filters.budget import Budget
from meshd.ledger import Ledger
from meshd.refusal import Reason, Refused
from tests.filters.calls import SUCCESS, Keys
from tests.filters.test_budget import asked, small

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "RETRY_S", 0.0)
    monkeypatch.setattr(books, "RETRY_S_MAX", 0.0)


@pytest.mark.parametrize("store", ["", "sqlite:", "memory:"])
async def test_they_are_opened(tmp_path: Path, store: str) -> None:
    ledger = await books.open_books(tmp_path, store)
    assert ledger.state == "ok"
    await ledger.close()


@pytest.mark.parametrize("store", ["kafka://x", "redis", "nobody://x", "memory:?a=b", "sqlite://host/x", "\x00://"])
async def test_what_no_engine_can_do_is_said(tmp_path: Path, store: str) -> None:
    with pytest.raises(StoreUnable):
        await books.open_books(tmp_path, store)


async def test_an_engine_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as why:
        await books.open_books(tmp_path, "redis://me:secret-word@127.0.0.1:1/0?timeout=0.2")
    assert "127.0.0.1:1" in str(why.value)
    assert "secret-word" not in str(why.value)


async def test_they_are_tried_again_until_they_are_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = await Ledger.open(tmp_path)
    with pytest.raises(StoreLocked) as locked:
        await books.open_books(tmp_path, "")
    found: list[Ledger] = []
    trying = asyncio.create_task(books.keep_trying(tmp_path, "", locked.value, found.append))
    for _ in range(5):
        await asyncio.sleep(0.001)
    assert not found
    assert "still cannot be opened" not in caplog.text, "a reason that stays is said once"
    await other.close()
    await trying
    assert [one.state for one in found] == ["ok"]
    assert "budgets are kept again" in caplog.text
    await found[0].close()


async def test_filters_go_on_with_the_new_books(tmp_path: Path) -> None:
    ledger = Ledger.failed(StoreError("away"))
    keys: Any = Keys()
    chain = build_chain(keys=keys, ledger=ledger, agent="", shadowed=lambda *_: None)
    budget = next(one for one in chain.per_attempt if isinstance(one, Budget))
    call = asked("rules: [{match: {kind: llm}, budget: {tokens: 1000}}]", small())
    with pytest.raises(Refused) as refused:
        budget.admit(call)
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
    opened = await books.open_books(tmp_path, "")
    chain.keep_books(opened)
    decision = budget.admit(call)
    assert isinstance(decision, Wait)
    (await decision.coroutine).settle(SUCCESS)
    await opened.close()
