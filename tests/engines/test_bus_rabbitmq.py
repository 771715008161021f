"""What holds of a bus on RabbitMQ alone: its log, copies of what it says, and what others do to its queues."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import aiormq
import pytest
from pamqp.commands import Basic

from meshd.engines.bus_port import Delivery, Event, EventMalformed, Subscription, Verdict
from meshd.engines.bus_rabbitmq import RabbitBus
from meshd.engines.bus_rabbitmq_entry import (
    FORMAT,
    TYPE,
    Command,
    Entry,
    Group,
    HandOut,
    Hello,
    Keep,
    encode,
    numbers_of,
)
from meshd.engines.bus_rabbitmq_server import ServerClock, Sizes, body_properties, stream
from meshd.engines.port import StoreError, StoreFull, StoreNewer, StoreUnable
from meshd.engines.url import StoreUrl
from tests.engines.buses import TERMS, RabbitMq, event, handle, take
from tests.engines.places import RABBITMQ, until_it_fails
from tests.engines.servers import Line, line_to

SMALL = Sizes(log_bytes=400_000, segment_bytes=50_000, copy_bytes=100_000)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RabbitMq]:
    one = RabbitMq(tmp_path)
    yield one
    one.remove()


async def opened(place: RabbitMq, sizes: Sizes | None = None, *, address: str = RABBITMQ) -> RabbitBus:
    url = StoreUrl(f"amqp://{address}?prefix={place.name}&timeout=30&connect_timeout=30")
    return await RabbitBus.open(
        url, terms=TERMS._replace(keep_bytes=50_000) if sizes else TERMS, gone_s=0.2, sizes=sizes
    )


async def put(place: RabbitMq, body: bytes, kind: str | None) -> None:
    """Put a message into the log, as another program would."""
    connection = await aiormq.connect(f"amqp://{RABBITMQ}/")
    channel = await connection.channel(publisher_confirms=True)
    await channel.basic_publish(body, routing_key=f"{place.name}.log", properties=Basic.Properties(message_type=kind))
    await connection.close()


async def test_a_copy_takes_the_place_of_what_the_log_has_lost(place: RabbitMq) -> None:
    bus = await opened(place, SMALL)
    one = await bus.subscribe("task.*", "group")
    await bus.publish([event(id="held")])
    held = await one.next()
    (published,) = await bus.publish([event(id="known")])
    assert await handle(one, 1) == ["known"]
    waiting = asyncio.ensure_future(one.next())
    number = 0
    while (await first_offset(place)) == 0:
        await bus.publish([event("other", id=str(number), data=bytes(5000))])
        number += 1
    other = await opened(place, SMALL)
    assert other._log._reader._from_copy
    # What stood in the part that is gone is known all the same.
    assert await other.publish([event(id="known")]) == [(published.id, published.sequence, True)]
    assert await bus.positions() == await other.positions()
    assert await one.settle(held, Verdict.SUCCESS)
    await other.publish([event(id="late")])
    assert (await waiting).event.id == "late"
    # The one before the last is kept for who is reading it; those before are deleted.
    assert len(await copies(place)) <= 2
    for each in (bus, other):
        await each.close()
    for name in await copies(place):
        await queue(place, name, delete=True)


async def first_offset(place: RabbitMq) -> int:
    connection = await aiormq.connect(f"amqp://{RABBITMQ}/")
    channel = await connection.channel()
    found = asyncio.get_running_loop().create_future()

    async def heard(message: aiormq.abc.DeliveredMessage) -> None:
        if not found.done():
            found.set_result((message.header.properties.headers or {})["x-stream-offset"])

    await channel.basic_qos(prefetch_count=1)
    await channel.basic_consume(f"{place.name}.log", heard, arguments={"x-stream-offset": "first"})
    offset = await found
    await connection.close()
    return int(offset)


async def copies(place: RabbitMq) -> list[str]:
    """Return the copies that were made and are still there."""
    connection = await aiormq.connect(f"amqp://{RABBITMQ}/")
    channel = await connection.channel()
    found: set[str] = set()
    last = asyncio.Event()

    async def heard(message: aiormq.abc.DeliveredMessage) -> None:
        found.add(message.body.split(place.name.encode())[1][:22].decode())
        last.set()

    await channel.basic_qos(prefetch_count=1000)
    await channel.basic_consume(f"{place.name}.copies", heard, arguments={"x-stream-offset": "first"})
    await last.wait()
    await connection.close()
    return [name for one in found if await queue(place, name := place.name + one)]


async def queue(place: RabbitMq, name: str, *, delete: bool = False) -> bool:
    connection = await aiormq.connect(f"amqp://{RABBITMQ}/")
    channel = await connection.channel()
    try:
        await channel.queue_declare(name, passive=True)
        if delete:
            await channel.queue_delete(name)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return False
    finally:
        await connection.close()
    return True


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (None, b"nonsense"),
        ("meshd.bus.", b""),
        ("meshd.bus.1", b""),
        ("meshd.bus.1", b"\xff" * 300),
        ("meshd.bus.1", encode(["someone", 1, 1, 0, [[99]]])),
        ("meshd.bus.1", encode(["someone", "one", 1, 0, []])),
        # It looks like a sidecar, which never came.
        ("meshd.bus.1", encode(Entry("someone", 1, 1, 0, [HandOut(Group("group", ">"), [1000])]))),
    ],
)
async def test_what_another_program_puts_into_the_log_is_passed_over(
    place: RabbitMq, kind: str | None, body: bytes
) -> None:
    bus = await opened(place)
    one = await bus.subscribe(">", "group")
    await put(place, body, kind)
    await bus.publish([event(id="a")])
    assert await handle(one, 1) == ["a"]
    assert [position[3:] for position in await bus.positions()] == [(0, 0, 0, 0, 0)]
    await bus.close()


async def test_commands_that_cannot_be_carried_out_harm_nothing(place: RabbitMq) -> None:
    bus = await opened(place)
    one = await bus.subscribe(">", "group")
    # A number that SQLite does not hold.
    commands: list[Command] = [
        Hello(numbers_of(TERMS), 0),
        Keep([Event("t", "me", "id", "t")]),
        HandOut(Group("group", ">"), [2**63]),
    ]
    await put(place, encode(Entry("rogue", 1, 0, 10**12, commands)), "meshd.bus.1")
    await bus.publish([event(id="a")])
    assert [delivery.event.id for delivery in await take(one, 2)] == ["id", "a"]
    await bus.close()


async def test_a_log_of_a_newer_meshd_is_not_read_on(place: RabbitMq) -> None:
    bus = await opened(place)
    await put(place, b"", f"{TYPE}{FORMAT + 1}")
    with pytest.raises(StoreError):
        await until_it_fails(lambda: bus.publish([event()]))
    with pytest.raises(StoreNewer, match="newer meshd"):
        await opened(place)
    await bus.close()


@pytest.mark.parametrize("name", ["log", "gone"])
async def test_a_queue_of_one_of_its_names_that_is_another_s(place: RabbitMq, name: str) -> None:
    connection = await aiormq.connect(f"amqp://{RABBITMQ}/")
    channel = await connection.channel()
    await channel.queue_declare(f"{place.name}.{name}", arguments={"x-max-length": 5})
    with pytest.raises(StoreUnable, match=r"is another's.*prefix="):
        await opened(place)
    await channel.queue_delete(f"{place.name}.{name}")
    await connection.close()


async def test_what_is_too_much_is_refused_before_it_is_sent(place: RabbitMq) -> None:
    bus = await opened(place)
    with pytest.raises(EventMalformed, match="data"):
        await bus.publish([event(data=bytes(100 * 2**20))])
    with pytest.raises(StoreFull, match="at once: publish fewer"):
        await bus.publish([event(data=bytes(2**20)) for _ in range(16)])
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=str(number), data=bytes(2**20)) for number in range(14)])
    assert len(await handle(one, 14)) == 14
    await bus.close()


async def test_what_came_while_this_process_stood_still_came_in_time(place: RabbitMq) -> None:
    url = StoreUrl(f"amqp://{RABBITMQ}?prefix={place.name}&timeout=2&connect_timeout=30")
    bus = await RabbitBus.open(url, terms=TERMS, gone_s=0.2)
    pair = bus._log._pair
    published = asyncio.ensure_future(bus.publish([event(id="a")]))
    while not bus._log._flying:
        await asyncio.sleep(0)
    time.sleep(3)  # as in a container that is frozen
    assert [one.id for one in await published] == ["a"]
    assert bus._log._pair is pair
    await bus.close()


async def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="refuses connections"):
        await RabbitBus.open(StoreUrl("amqp://127.0.0.1:1"))
    with pytest.raises(StoreUnable, match="refuses this user and password") as told:
        await RabbitBus.open(StoreUrl(f"amqp://guest:canary@{RABBITMQ}"))
    assert "canary" not in str(told.value)


def test_time_is_the_server_s_where_the_machine_s_is_another() -> None:
    clock = ServerClock()
    before_s = clock.now_s()
    clock.set(before_s - 1.5)  # the server says whole seconds
    assert before_s <= clock.now_s() < before_s + 60
    clock.set(before_s + 3600)
    assert before_s + 3600 <= clock.now_s() < before_s + 3660
    clock.set(before_s)
    assert clock.now_s() < before_s + 60


async def test_a_sidecar_whose_clock_is_wrong_takes_the_server_s(place: RabbitMq) -> None:
    bus = await opened(place)
    assert isinstance(bus._clock, ServerClock)
    bus._clock.set(1_000_000_000.0)
    assert bus._log._newest is not None
    bus._log._newest.take_time(bus._clock)
    assert abs(bus._clock.now_s() - time.time()) < 60
    await bus.close()


async def test_a_connection_that_breaks_as_an_event_is_handed_out_loses_it_to_nobody(place: RabbitMq) -> None:
    bus = await opened(place)
    one = await bus.subscribe(">", "group", handling_s=600.0)
    pair = bus._log._newest
    assert pair is not None

    async def broken(tag: int) -> None:
        raise StoreError(f"broken at {tag}")

    waiting = asyncio.ensure_future(one.next())
    await bus.positions()
    pair.acknowledge = broken  # type: ignore[method-assign]
    with contextlib.suppress(StoreError):
        await bus.publish([event(id="a")])
    delivery = await waiting
    assert (delivery.event.id, delivery.attempt) == ("a", 1)
    # Also where it was said while there was no connection.
    with contextlib.suppress(StoreError):
        await one.settle(delivery, Verdict.SUCCESS)
    while bus._log._pair is None:
        await asyncio.sleep(0.01)
    assert not await one.settle(delivery, Verdict.SUCCESS)
    await bus.close()


async def test_what_was_handed_out_unheard_and_handled_elsewhere_is_not_begun_again(place: RabbitMq) -> None:
    other = await opened(place)
    elsewhere = await other.subscribe(">", "group", handling_s=600.0)
    async with line_to(RABBITMQ) as line:
        bus = await opened(place, address=line.address)
        one = await bus.subscribe(">", "group", handling_s=600.0)
        await other.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
        waiting = await _waits_unheard(bus, one, line)
        # It was handed out, and is given back as this sidecar is gone.
        (delivery,) = await take(elsewhere, 1)
        assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 2, True)
        assert await elsewhere.settle(delivery, Verdict.SUCCESS)
        line.hear()
        assert (await waiting).event.id == "b"
        assert [position[3:] for position in await other.positions()] == [(1, 0, 0, 0, 0)]
        await bus.close()
    await other.close()


async def test_what_was_handed_out_unheard_and_is_nobody_s_is_handed_out_unmarked(place: RabbitMq) -> None:
    async with line_to(RABBITMQ) as line:
        bus = await opened(place, address=line.address)
        one = await bus.subscribe(">", "group", handling_s=600.0)
        await bus.publish([event(id="a")])
        waiting = await _waits_unheard(bus, one, line)
        line.hear()
        delivery = await waiting
        assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 1, False)
        assert await one.settle(delivery, Verdict.SUCCESS)
        assert [position[3:] for position in await bus.positions()] == [(0, 0, 0, 0, 0)]
        await bus.close()


async def _waits_unheard(bus: RabbitBus, one: Subscription, line: Line) -> asyncio.Task[Delivery]:
    """Wait for an event; return when the server has heard of that, and this sidecar is cut off from the answer."""
    await bus.positions()  # it has read all that there is, so that no other answer comes
    line.lose_reply(b"group")
    waiting = asyncio.ensure_future(one.next())
    while not line.is_reply_lost:
        await asyncio.sleep(0)
    with pytest.raises(StoreError):
        await until_it_fails(bus.positions)
    return waiting


async def test_a_log_that_has_lost_its_end_is_read_anew(place: RabbitMq) -> None:
    async with line_to(RABBITMQ) as line:
        bus = await opened(place, address=line.address)
        one = await bus.subscribe(">", "group", handling_s=600.0)
        await bus.publish([event(id="a"), event(id="held")])
        assert await handle(one, 1) == ["a"]
        held = await one.next()
        entries = bus._log._reader._replica.offset
        (lost,) = await bus.publish([event(id="lost")])
        line.cut()
        with pytest.raises(StoreError):
            await until_it_fails(bus.positions)
        await lose_end(place, entries)
        await line.mend()
        waiting = asyncio.ensure_future(one.next())
        async with asyncio.timeout(60):
            while not bus._log.link.is_up:
                await asyncio.sleep(0.01)
            known, again = await bus.publish([event(id="a"), event(id="lost")])
        assert (known.is_duplicate, again.is_duplicate) == (True, False)
        assert again.sequence > lost.sequence
        assert (await waiting).event.id == "lost"
        assert await one.settle(held, Verdict.SUCCESS)
        await bus.close()


async def lose_end(place: RabbitMq, entries: int) -> None:
    """Let the log have no more than so many entries, as after a power cut."""
    connection = await aiormq.connect(f"amqp://{RABBITMQ}/")
    channel = await connection.channel(publisher_confirms=True)
    found: asyncio.Queue[bytes] = asyncio.Queue()

    async def heard(message: aiormq.abc.DeliveredMessage) -> None:
        found.put_nowait(message.body)

    await channel.basic_qos(prefetch_count=1000)
    await channel.basic_consume(f"{place.name}.log", heard, arguments={"x-stream-offset": "first"})
    bodies = [await found.get() for _ in range(entries)]
    await channel.queue_delete(f"{place.name}.log")
    await channel.queue_declare(f"{place.name}.log", durable=True, arguments=stream(Sizes().log_bytes))
    for body in bodies:
        await channel.basic_publish(body, routing_key=f"{place.name}.log", properties=body_properties())
    await connection.close()
