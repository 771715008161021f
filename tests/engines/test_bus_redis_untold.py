"""Events on Redis whose end could not be said, or that could not be given back: it is said once the server is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha1
from pathlib import Path

import pytest

from meshd.engines.bus_port import Delivery, Subscription, Verdict
from meshd.engines.bus_redis import RedisBus
from meshd.engines.bus_redis_scripts import GIVE_BACK, SETTLE
from meshd.engines.port import StoreCorrupt, StoreError
from tests.engines.buses import event, is_waiting
from tests.engines.places import redis_command, until_it_fails
from tests.engines.servers import Line, Server, line_to, redis_server, running
from tests.engines.test_bus_redis_breaks import SYNCED, cut_while, heard, insist, opened, until_it_works

PATIENCE_S = 20.0
"""Far less than the time to handle an event, after which any is handed out again."""


def call(script: str) -> bytes:
    """Return what the asking for a script holds."""
    return sha1(script.encode(), usedforsecurity=False).hexdigest().encode()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(redis_server(tmp_path / "server", *SYNCED)) as one:
        yield one


def told(delivery: Delivery) -> tuple[str, int, bool]:
    return delivery.event.id, delivery.attempt, delivery.may_have_been_handled


async def soon(one: Subscription) -> tuple[str, int, bool]:
    return told(await asyncio.wait_for(insist(one), PATIENCE_S))


async def end(one: Subscription, delivery: Delivery, how: str) -> None:
    if how == "retry":
        await one.settle(delivery, Verdict.RETRY, retry_after_s=0.0)
    elif how == "close":
        await one.close()
    else:
        await one.give_back(delivery, is_unseen=how == "unseen")


AFTER = {"retry": ("a", 2, False), "close": ("a", 2, True), "seen": ("a", 2, True), "unseen": ("a", 1, False)}
"""By how its first attempt has ended, how the event comes again."""


@pytest.mark.parametrize("how", AFTER)
async def test_beside_what_was_handed_to_nobody_it_is_told_what_somebody_had(server: Server, how: str) -> None:
    async with line_to(server.address) as line:
        bus = await opened(line.address)
        gone, one = [await bus.subscribe(">", "group") for _ in range(2)]
        await bus.publish([event(id=name) for name in "ab"])
        first = await gone.next()
        await cut_while(line, server, bus, one)
        with pytest.raises(StoreError):
            await end(gone, first, how)
        await line.mend()
        await until_it_works(bus)
        assert sorted([await soon(one), await soon(one)]) == [AFTER[how], ("b", 1, False)]
        await bus.close()


async def fail_to(line: Line, bus: RedisBus, when: str, one: Subscription, delivery: Delivery, how: str) -> None:
    """Let the connection break before the end of an attempt is asked for, on its way there, or on its way back."""
    await heard(bus)
    script = call(SETTLE if how == "retry" else GIVE_BACK)
    if when == "never asked":
        line.cut()
        with pytest.raises(StoreError):
            await until_it_fails(bus.positions)
        with pytest.raises(StoreError):
            await end(one, delivery, how)
    elif when == "never written":
        line.hold(script)
        ending = asyncio.ensure_future(end(one, delivery, how))
        await asyncio.wait_for(line.is_held.wait(), PATIENCE_S)
        line.cut()
        with pytest.raises(StoreError):
            await ending
    else:
        line.lose_reply(script)
        with pytest.raises(StoreError):
            await end(one, delivery, how)
        assert line.is_reply_lost


@pytest.mark.parametrize("how", AFTER)
@pytest.mark.parametrize("when", ["never asked", "never written", "written"])
async def test_what_could_not_be_given_back_does_not_wait_for_its_time(server: Server, when: str, how: str) -> None:
    async with line_to(server.address) as line:
        bus = await opened(line.address)
        gone, one = [await bus.subscribe(">", "group") for _ in range(2)]
        await bus.publish([event(id="a")])
        await fail_to(line, bus, when, gone, await gone.next(), how)
        line.hear()
        await line.mend()
        assert await soon(one) == AFTER[how]
        assert await is_waiting(bus, one)
        await bus.close()


async def test_what_nobody_saw_is_not_taken_from_who_has_it_now(server: Server) -> None:
    async with line_to(server.address) as line:
        bus, other = await opened(line.address), await opened(server.address)
        one, its = await bus.subscribe(">", "group"), await other.subscribe(">", "group")
        await bus.publish([event(id="a")])
        await fail_to(line, bus, "written", one, await one.next(), "unseen")
        delivery = await its.next()
        assert told(delivery) == ("a", 1, False)  # the same number
        line.hear()
        async with asyncio.timeout(PATIENCE_S):
            while bus._remote.untold.is_any:
                await asyncio.sleep(0.01)
        await one.close()
        assert await its.settle(delivery, Verdict.DROP)
        await bus.close()
        await other.close()


async def test_what_was_begun_beside_an_event_that_could_not_be_buried_is_handed_out(server: Server) -> None:
    async with line_to(server.address) as line:
        bus = await opened(line.address)
        one = await bus.subscribe(">", "group")
        await bus.publish([event(id="a")])
        fields = {"topic": "t", "key": "", "source": "s", "id": "i", "at": "1", "data": "", "event": b"\xc1"}
        entry = [part for pair in fields.items() for part in pair]
        redis_command("XADD", "meshd:bus:events", "2-0", *entry, address=server.address)
        await heard(bus)
        line.lose_reply(call(SETTLE))
        waiting = [asyncio.ensure_future(one.next()) for _ in range(2)]
        for each in waiting:
            with pytest.raises(StoreError):
                await each
        assert line.is_reply_lost
        line.hear()
        assert await soon(one) == ("a", 1, False)
        assert await is_waiting(bus, one)
        await bus.close()


@pytest.mark.parametrize("verdict", [None, Verdict.SUCCESS])
async def test_what_could_not_be_said_over_a_connection_that_holds_is_said_at_the_end(
    server: Server, verdict: Verdict | None
) -> None:
    bus, other = await opened(server.address), await opened(server.address)
    gone, its = await bus.subscribe(">", "group"), await other.subscribe(">", "group")
    await bus.publish([event(id="a")])
    delivery = await gone.next()
    rows = "meshd:bus:group:1:pending"
    redis_command("RENAME", rows, "aside", address=server.address)
    redis_command("SET", rows, "of another kind", address=server.address)
    with pytest.raises(StoreCorrupt):
        await (gone.close() if verdict is None else gone.settle(delivery, verdict))
    redis_command("RENAME", "aside", rows, address=server.address)
    await bus.close()
    if verdict is None:
        assert await soon(its) == ("a", 2, True)
    else:
        assert (await other.positions())[0][3:6] == (0, 0, 0)
    await other.close()
