"""Streams of events whose agents settle nothing, or too late; and a bus that goes away and comes back meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from meshd.api import taking
from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_redis import RedisBus
from meshd.engines.url import StoreUrl
from tests.api.house import House, house, until
from tests.api.test_event_http import CE, post, stream
from tests.api.test_events import POLICY
from tests.engines.servers import redis_server, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, POLICY) as made:
        made.mesh.bus = MemoryBus()
        yield made
        await made.mesh.bus.close()


async def settle(one: House, delivery: str, verdict: str = "success") -> tuple[int, bool]:
    status, said = await post(one, "t/settle", json.dumps({"delivery": delivery, "verdict": verdict}))
    return status, said.get("is_counted")


async def test_who_settles_nothing_is_handed_the_event_again_and_at_last_it_is_a_dead_letter(one: House) -> None:
    async with stream(one, "t?group=g&credit=1&handling_time=0.1s") as following:
        await post(one, "t", b"", CE)
        attempts = [await following() for _ in range(8)]
        assert [each["attempt"] for each in attempts] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert all(each["may_have_been_handled"] for each in attempts[1:])
        async with asyncio.timeout(20):
            while not (letters := await one.mesh.bus.dead_letters("g")):
                await asyncio.sleep(0.01)
        assert [letter.event.id for letter in letters] == ["e1"]


async def test_what_is_settled_late_counts_and_what_was_never_handed_out_is_refused(one: House) -> None:
    async with stream(one, "t?group=g&credit=1&handling_time=0.1s") as following:
        await post(one, "t", b"", CE)
        first = await following()
        second = await following()
        assert await settle(one, first["delivery"]) == (200, True)
        assert await settle(one, first["delivery"]) == (200, False)
        assert await settle(one, second["delivery"]) == (200, False)
        of_stream = first["delivery"].partition(".")[0]
        for number in ("0", "99", "x", "", "9" * 5000):
            assert (await settle(one, f"{of_stream}.{number}"))[0] == 404
    await until(lambda: not one.mesh.events._takings)
    assert not one.mesh.events._causes


async def test_only_so_many_late_ones_are_known(one: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "LATE_MAX", 1)
    async with stream(one, "t?group=g&credit=1&handling_time=0.1s") as following:
        await post(one, "t", b"", CE)
        first, _, _ = [await following() for _ in range(3)]
        assert await settle(one, first["delivery"]) == (200, False)
        assert len(one.mesh.events._causes) == 2


async def test_a_stream_outlives_its_bus_and_what_it_handed_out_is_settled(tmp_path: Path) -> None:
    server = redis_server(tmp_path / "server", "--appendonly", "yes", "--appendfsync", "always")
    async with running(server), house(tmp_path, POLICY) as one:
        one.mesh.bus = await RedisBus.open(StoreUrl(f"redis://{server.address}/0"))
        async with stream(one, "t?group=g&credit=2") as following:
            await post(one, "t", b"", CE)
            first = await following()
            server.kill()
            assert (await post(one, "t", b"", {**CE, "ce-id": "e2"}))[0] == 503
            assert (await settle(one, first["delivery"]))[0] == 503
            await server.start()
            async with asyncio.timeout(20):
                while (await post(one, "t", b"", {**CE, "ce-id": "e2"}))[0] == 503:
                    await asyncio.sleep(0.01)
            # The bus may have said it again by itself by now.
            assert (await settle(one, first["delivery"]))[0] == 200
            second = await following()
            assert (second["event"]["id"], second["attempt"]) == ("e2", 1)
            (position,) = await one.mesh.bus.positions()
            assert (position.under_way, position.waiting) == (1, 0)
        await one.mesh.bus.close()
