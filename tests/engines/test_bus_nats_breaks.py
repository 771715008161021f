"""Events on NATS whose handing out, or giving back, is cut off: nobody has them, and they are handed out at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshd.engines.bus_nats import NatsBus
from meshd.engines.bus_nats_shelf import INSIST_S
from meshd.engines.bus_port import Delivery, Event, Subscription, Verdict
from meshd.engines.port import StoreError
from meshd.engines.url import StoreUrl
from tests.engines.buses import TERMS, Hands, event, is_waiting
from tests.engines.places import until_it_fails
from tests.engines.servers import Line, Server, line_to, nats_server, running
from tests.engines.test_bus_nats import PATIENCE, opened, put, until_it_works

ENTRY = b"HPUB meshd.group."
"""How the writing of an entry into a group's journal begins."""
LETTER = b"HPUB meshd.dead."
PATIENCE_S = 20.0
"""Far less than the time to handle an event, after which any is handed out again."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(nats_server(tmp_path / "nats")) as one:
        yield one


async def insist(one: Subscription) -> Delivery:
    """Return the next event, whatever fails meanwhile."""
    while True:
        try:
            return await one.next()
        except StoreError:
            await asyncio.sleep(0.01)


async def lose_handing_out(line: Line, one: Subscription) -> None:
    """Let an attempt be written down, and its sidecar not hear of that."""
    line.lose_reply(ENTRY)
    with pytest.raises(StoreError):
        await one.next()
    assert line.is_reply_lost
    line.hear()


def told(delivery: Delivery) -> tuple[str, int, bool]:
    return delivery.event.id, delivery.attempt, delivery.may_have_been_handled


async def test_what_was_begun_for_nobody_is_handed_out_even_if_another_sidecar_is_faster(server: Server) -> None:
    async with line_to(server.address) as line:
        bus, other = await opened(server, address=line.address), await opened(server)
        one, its = await bus.subscribe(">", "group"), await other.subscribe(">", "group")
        await other.publish([event(id="a")])
        await lose_handing_out(line, one)
        await until_it_works(bus)
        await other.publish([event(id="b")])
        # It gives back what it has begun with in vain; but meanwhile another writes the entry that was to say so.
        line.hold(ENTRY)
        waiting = asyncio.ensure_future(insist(one))
        await asyncio.wait_for(line.is_held.wait(), PATIENCE_S)
        assert told(await its.next()) == ("b", 1, False)
        await line.mend()
        assert told(await asyncio.wait_for(waiting, PATIENCE_S)) == ("a", 1, False)
        await bus.close()
        await other.close()


async def test_what_was_begun_beside_an_event_that_could_not_be_buried_is_handed_out(server: Server) -> None:
    async with line_to(server.address) as line:
        bus = await opened(server, address=line.address)
        one = await bus.subscribe(">", "group")
        await bus.publish([event(id="a")])
        await put(server, "meshd.event.task.done", b"no event of ours")
        line.lose_reply(LETTER)
        waiting = [asyncio.ensure_future(one.next()) for _ in range(2)]
        for each in waiting:
            with pytest.raises(StoreError):
                await each
        assert line.is_reply_lost
        line.hear()
        assert told(await asyncio.wait_for(insist(one), PATIENCE_S)) == ("a", 1, False)
        assert await is_waiting(bus, one)
        assert len(await bus.dead_letters("group")) == 1
        await bus.close()


async def test_an_event_whose_fetching_is_the_last_that_a_connection_brings_is_handed_out(server: Server) -> None:
    bus = await opened(server)
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a", partition_key="key"), event(id="b", partition_key="key"), event(id="c")])
    first, third = await one.next(), await one.next()
    assert (first.event.id, third.event.id) == ("a", "c")  # what waits for the first of its key is read past
    asked, idle = [asyncio.ensure_future(one.next()) for _ in range(2)]
    await bus.positions()
    group = bus._rows._numbers[0].group
    fetch, fetched = group.event, list[int]()

    async def fetch_and_lose(place: int, letter: int) -> tuple[Event, str]:
        found = await fetch(place, letter)
        bus._link.lost(bus._streams.wire, StoreError("cut"))
        fetched.append(place)
        return found

    group.event = fetch_and_lose  # type: ignore[method-assign]
    assert await one.settle(first, Verdict.SUCCESS)
    second = await asyncio.wait_for(asked, PATIENCE_S)
    assert fetched == [2]
    assert told(second) == ("b", 1, False)
    assert await one.settle(second, Verdict.SUCCESS)
    assert await one.settle(third, Verdict.SUCCESS)
    await until_it_works(bus)
    assert [(at.under_way, at.waiting) for at in await bus.positions()] == [(0, 0)]
    await bus.close()
    with pytest.raises(StoreError):
        await idle


@pytest.mark.parametrize("how", ["never asked", "never written", "written"])
async def test_what_is_given_back_while_the_connection_breaks_is_handed_out_marked(server: Server, how: str) -> None:
    async with line_to(server.address) as line:
        bus = await opened(server, address=line.address)
        gone, one = [await bus.subscribe(">", "group") for _ in range(2)]
        await bus.publish([event(id="a")])
        assert told(await gone.next()) == ("a", 1, False)
        if how == "never asked":
            line.cut()
            with pytest.raises(StoreError):
                await until_it_fails(bus.positions)
            with pytest.raises(StoreError):
                await gone.close()
        elif how == "never written":
            line.hold(ENTRY)
            closing = asyncio.ensure_future(gone.close())
            await asyncio.wait_for(line.is_held.wait(), PATIENCE_S)
            line.cut()
            with pytest.raises(StoreError):
                await closing
        else:
            line.lose_reply(ENTRY)
            with pytest.raises(StoreError):
                await gone.close()
            assert line.is_reply_lost
            line.hear()
        await line.mend()
        # Its handler may have run, and is known to have begun.
        assert told(await asyncio.wait_for(insist(one), PATIENCE_S)) == ("a", 2, True)
        await bus.close()


async def test_what_nobody_saw_is_not_taken_from_who_has_it_now(server: Server) -> None:
    async with line_to(server.address) as line:
        bus = await opened(server, address=line.address)
        gone, one = [await bus.subscribe(">", "group") for _ in range(2)]
        await bus.publish([event(id="a")])
        delivery = await gone.next()
        line.lose_reply(ENTRY)
        with pytest.raises(StoreError):
            await gone.give_back(delivery, is_unseen=True)
        assert line.is_reply_lost
        line.hear()
        again = await asyncio.wait_for(insist(one), PATIENCE_S)
        assert told(again) == ("a", 1, False)  # the same number
        await gone.close()
        assert await one.settle(again, Verdict.DROP)
        await bus.close()


@pytest.mark.parametrize("turns", [1, 50])
async def test_success_that_is_waiting_ends_with_the_bus(server: Server, turns: int) -> None:
    bus = await opened(server)
    one = await bus.subscribe(">", "group")
    await bus.publish([event()])
    delivery = await one.next()
    server.kill()
    with pytest.raises(StoreError):
        await one.settle(delivery, Verdict.DROP)
    settling = asyncio.ensure_future(one.settle(delivery, Verdict.SUCCESS))
    for _ in range(turns):  # until it is asked for the first time, or waits for the server to come back
        await asyncio.sleep(0)
    async with asyncio.timeout(INSIST_S / 3):
        await bus.close()
    with pytest.raises(StoreError):
        await settling


class Pair:
    """A sidecar behind a line, and another that asks whether it is there when it is told to."""

    def __init__(self, line: Line, bus: NatsBus, other: NatsBus) -> None:
        self.line = line
        self.bus = bus
        self.other = other

    async def blink(self, *, is_over: bool) -> None:
        """Let the other ask while the line is cut; mend it then, where that `is_over`."""
        self.line.cut()
        wire, said = self.other._streams.wire, list[int]()
        inbox = wire.new_inbox()
        wire.subscribe(inbox, lambda message: said.append(message.status))
        async with asyncio.timeout(PATIENCE_S):
            while 503 not in said:  # the server has yet to see that it is gone
                wire.publish(self.other._presence(self.bus._sidecar), reply=inbox)
                await self.other.positions()
        await self.other._look()
        if is_over:
            await self.line.mend()
            await until_it_works(self.bus)


@contextlib.asynccontextmanager
async def pair(server: Server, clock: Hands | None = None) -> AsyncIterator[Pair]:
    async with line_to(server.address) as line:
        url = f"?{PATIENCE}"
        bus = await NatsBus.open(StoreUrl(f"nats://{line.address}{url}"), terms=TERMS, clock=clock, absent_s=600.0)
        other = await NatsBus.open(StoreUrl(f"nats://{server.address}{url}"), terms=TERMS, clock=clock, absent_s=600.0)
        yield Pair(line, bus, other)
        await bus.close()
        await other.close()


async def test_what_a_sidecar_was_handed_since_it_was_missed_is_its_own(server: Server) -> None:
    async with pair(server) as both:
        one, its = [await bus.subscribe(">", "group", handling_s=3600.0) for bus in (both.bus, both.other)]
        await both.other.publish([event(id="a")])
        assert told(await one.next()) == ("a", 1, False)
        await both.blink(is_over=True)
        await both.other.publish([event(id="b")])
        since = await one.next()
        await both.blink(is_over=False)
        assert one.is_sure(since)
        assert told(await its.next()) == ("a", 2, True)
        assert await is_waiting(both.other, its)
        await both.other._look()
        assert told(await its.next()) == ("b", 2, True)


async def test_nobody_is_sure_of_what_was_handed_over_a_connection_that_is_gone(server: Server) -> None:
    async with pair(server, clock := Hands()) as both:
        one, its = [await bus.subscribe(">", "group", handling_s=3600.0) for bus in (both.bus, both.other)]
        await both.other.publish([event(id="a")])
        delivery = await one.next()
        clock.move(601.0)
        assert await one.holds(delivery)  # it is asked for, and there
        await both.blink(is_over=True)
        clock.move(601.0)
        assert not await one.holds(delivery)
        assert told(await its.next()) == ("a", 1, False)
