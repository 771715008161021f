"""Events that are set aside while people decide: until when, and where approvals cannot be read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from meshd.api import setting_aside
from meshd.api.setting_aside import KEEP_S, SettingAside
from meshd.approvals.desk import Desk
from meshd.engines.memory import MemoryStore
from meshd.engines.port import Store
from tests.approvals.asking import KEYS, Clock, desk, question
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


class Event:
    """One event on a bus, as far as setting it aside is concerned."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.lapses: list[str] = []

    async def defer(self, wait_s: float) -> bool:
        self.waits.append(wait_s)
        return True

    async def lapse(self, why: str) -> bool:
        self.lapses.append(why)
        return True


@pytest.fixture
async def asked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Desk, Clock]]:
    monkeypatch.setattr(setting_aside, "RENEW_S", 0.02)
    clock = Clock()
    made = desk(MemoryStore(), clock=clock)
    yield made, clock
    await made.close()


async def ids_of(at: Desk, *lasts_s: float) -> list[str]:
    return [(await at.ask(question(call=f"c-{s}", arguments=b"%g" % s, lasts_s=s))).approval.id for s in lasts_s]


async def test_an_event_waits_no_longer_than_the_shortest_of_its_approvals(asked: tuple[Desk, Clock]) -> None:
    at, clock = asked
    long, short = await ids_of(at, 600.0, 60.0)
    aside, event = SettingAside(at), Event()
    aside.watch((long, short), event.defer, event.lapse)
    await until(lambda: len(event.waits) > 1)
    assert set(event.waits) == {KEEP_S}
    clock.now_s += 61.0
    await until(lambda: not len(aside))
    assert event.lapses == [f"nobody decided on the approval {short} in time, and no answer is a no"]


async def test_an_event_is_handed_out_once_the_last_is_decided(asked: tuple[Desk, Clock]) -> None:
    at, _ = asked
    first, second = await ids_of(at, 600.0, 601.0)
    aside, event = SettingAside(at), Event()
    aside.watch((first, second), event.defer, event.lapse)
    await at.decide(second, KEYS["ana"], approver="", is_allowed=True, reason="")
    await until(lambda: len(event.waits) > 1)
    assert set(event.waits) == {KEEP_S}
    await at.decide(first, KEYS["ana"], approver="", is_allowed=False, reason="no")
    await until(lambda: not len(aside))
    assert (event.waits[-1], event.lapses) == (0.0, [])


async def test_what_was_allowed_and_not_used_is_told_from_what_nobody_decided(asked: tuple[Desk, Clock]) -> None:
    at, clock = asked
    (id,) = await ids_of(at, 60.0)
    await at.decide(id, KEYS["ana"], approver="", is_allowed=True, reason="")
    clock.now_s += 61.0
    aside, event = SettingAside(at), Event()
    aside.watch((id,), event.defer, event.lapse)
    await until(lambda: not len(aside))
    assert event.lapses == [f"what the approval {id} allows was not done in time, and it holds no more"]
