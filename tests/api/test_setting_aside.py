"""Events that are set aside while people decide, where approvals cannot be read."""

from __future__ import annotations

import asyncio
import logging

import pytest

from meshd.api import setting_aside
from meshd.api.setting_aside import SettingAside
from meshd.approvals.desk import Desk
from meshd.engines.memory import MemoryStore
from meshd.engines.port import Store
from tests.filters.calls import policy
from tests.proxy.harness import until


async def test_while_the_store_is_away_the_bus_is_told_no_more_often_and_the_log_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(setting_aside, "AGAIN_S", 0.0)
    of = policy()
    stores: list[Store | None] = [None]
    asked = 0

    def store() -> Store | None:
        nonlocal asked
        asked += 1
        return stores[0]

    desk = Desk(store, lambda: of)
    aside = SettingAside(desk)
    waits: list[float] = []

    async def defer(wait_s: float) -> bool:
        waits.append(wait_s)
        return True

    async def lapse(_why: str) -> bool:
        raise AssertionError

    with caplog.at_level(logging.WARNING, "meshd.api"):
        for id in ("one", "two"):
            aside.watch((id,), defer, lapse)
        await until(lambda: asked > 20)
        assert waits == []
        assert len(caplog.records) == 1
        stores[0] = MemoryStore()
        await until(lambda: not len(aside))
    # There are no such approvals: who asked asks anew.
    assert waits == [0.0, 0.0]
    aside.end()
    await asyncio.sleep(0)
    await desk.close()
