"""Events that come while somebody waits for them, and what may go wrong between their coming and their handing over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from meshd.engines.bus_port import Bus, Delivery, Subscription, Verdict
from meshd.engines.bus_redis_scripts import TAKE
from meshd.engines.bus_table import open_bus
from meshd.engines.port import StoreClosed, StoreError
from tests.engines.buses import event, quiet
from tests.engines.servers import Line, Server, line_to, nats_server, redis_server, running
from tests.engines.test_bus_nats_breaks import PATIENCE_S, insist, told


class Engine(NamedTuple):
    """A server, its bus, and what shows that an attempt is begun with."""

    server: Callable[[Path], Server]
    url: str
    begins: Callable[[Bus], bytes]


ENGINES = {
    "nats": Engine(nats_server, "nats://{}?timeout=10&connect_timeout=10", lambda _: b"HPUB meshd.group."),
    "redis": Engine(
        redis_server,
        "redis://{}/0?timeout=10",
        lambda bus: bus._remote.asking._digests[TAKE].encode(),  # type: ignore[attr-defined]
    ),
}


class Place(NamedTuple):
    """Two sidecars: the line to one can be held or cut; and what begins an attempt of it."""

    bus: Bus
    other: Bus
    line: Line
    begins: bytes


@pytest.fixture(params=ENGINES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    engine = ENGINES[request.param]
    async with running(engine.server(tmp_path / "server")) as server, line_to(server.address) as line:
        bus = await open_bus(engine.url.format(line.address), tmp_path)
        other = await open_bus(engine.url.format(server.address), tmp_path)
        yield Place(bus, other, line, engine.begins(bus))
        await line.mend()
        await asyncio.gather(bus.close(), other.close())


async def held(place: Place, waiting: asyncio.Future[Delivery]) -> None:
    """Publish at the other sidecar, and return when this one begins with it, and the server has not heard of that."""
    await quiet(place.bus)
    place.line.hold(place.begins)
    await place.other.publish([event(id="a")])
    await asyncio.wait_for(place.line.is_held.wait(), PATIENCE_S)
    assert not waiting.done()


async def test_who_waits_is_handed_what_comes(place: Place) -> None:
    one = await place.bus.subscribe(">", "group")
    for publisher, id in ((place.other, "a"), (place.bus, "b")):
        waiting = asyncio.ensure_future(one.next())
        await quiet(place.bus)
        await publisher.publish([event(id=id)])
        delivery = await asyncio.wait_for(waiting, PATIENCE_S)
        assert told(delivery) == (id, 1, False)
        assert await one.settle(delivery, Verdict.SUCCESS)


async def test_where_another_sidecar_is_faster_who_waits_has_the_next(place: Place) -> None:
    one, its = await place.bus.subscribe(">", "group"), await place.other.subscribe(">", "group")
    waiting = asyncio.ensure_future(one.next())
    await held(place, waiting)
    assert told(await its.next()) == ("a", 1, False)
    await place.line.mend()
    await quiet(place.bus)
    assert not waiting.done()
    await place.other.publish([event(id="b")])
    assert told(await asyncio.wait_for(waiting, PATIENCE_S)) == ("b", 1, False)


async def test_what_came_as_its_connection_broke_is_handed_out_unmarked(place: Place) -> None:
    one = await place.bus.subscribe(">", "group")
    waiting = asyncio.ensure_future(one.next())
    await quiet(place.bus)
    place.line.lose_reply(place.begins)
    await place.other.publish([event(id="a")])
    with pytest.raises(StoreError):
        await asyncio.wait_for(waiting, PATIENCE_S)
    place.line.hear()
    assert told(await asyncio.wait_for(insist(one), PATIENCE_S)) == ("a", 1, False)


async def test_what_came_for_somebody_who_went_is_handed_to_another_unmarked(place: Place) -> None:
    gone, one = [await place.bus.subscribe(">", "group") for _ in range(2)]
    waiting = asyncio.ensure_future(gone.next())
    await held(place, waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    next_ = asyncio.ensure_future(one.next())
    await place.line.mend()
    assert told(await asyncio.wait_for(next_, PATIENCE_S)) == ("a", 1, False)


async def test_what_came_as_the_bus_was_closed_is_another_s_unmarked(place: Place) -> None:
    one, its = await place.bus.subscribe(">", "group"), await place.other.subscribe(">", "group")
    waiting = asyncio.ensure_future(one.next())
    await held(place, waiting)
    closing = asyncio.ensure_future(place.bus.close())
    with pytest.raises(StoreClosed):
        await waiting
    await place.line.mend()
    await asyncio.wait_for(closing, PATIENCE_S)
    assert told(await asyncio.wait_for(its.next(), PATIENCE_S)) == ("a", 1, False)


async def test_many_that_wait_are_handed_what_comes_by_and_by(place: Place) -> None:
    one, its = await place.bus.subscribe(">", "group"), await place.other.subscribe(">", "group")
    got: list[str] = []

    async def work(of: Subscription) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                delivery = await of.next()
                got.append(delivery.event.id)
                assert await of.settle(delivery, Verdict.SUCCESS)

    workers = [asyncio.ensure_future(work(of)) for of in (one, its) for _ in range(8)]
    ids = [f"{publisher}{number}" for number in range(60) for publisher in range(2)]
    for number in range(60):
        await asyncio.gather(
            place.bus.publish([event(id=f"0{number}", partition_key=str(number % 5))]),
            place.other.publish([event(id=f"1{number}")]),
        )
    async with asyncio.timeout(PATIENCE_S):
        while len(got) < len(ids):
            await quiet(place.bus)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers)
    assert sorted(got) == sorted(ids)
    for key in range(5):
        numbers = [int(id[1:]) for id in got if id[0] == "0" and int(id[1:]) % 5 == key]
        assert numbers == sorted(numbers)
