"""Events on NATS whose handing out, or giving back, is cut off: nobody has them, and they are handed out at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshd.engines.bus_nats_shelf import INSIST_S
from meshd.engines.bus_port import Delivery, Subscription, Verdict
from meshd.engines.port import StoreError
from tests.engines.buses import event, is_waiting
from tests.engines.places import until_it_fails
from tests.engines.servers import Line, Server, line_to, nats_server, running
from tests.engines.test_bus_nats import opened, put, until_it_works

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
