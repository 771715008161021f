"""What is Redis's own as a bus: what other programs read, put into its stream and into the place of its keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from meshd.engines.bus_port import Bus, Event, Verdict
from meshd.engines.bus_redis_shelf import GROUP_KINDS, KINDS
from meshd.engines.port import StoreCorrupt, StoreError, StoreNewer
from tests.engines.buses import Redis, event, handle, is_waiting
from tests.engines.places import redis_command, until_it_fails


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Redis]:
    one = Redis(tmp_path)
    yield one
    one.remove()


@pytest.fixture
async def bus(place: Redis) -> AsyncIterator[Bus]:
    one = place.open()
    yield one
    await one.close()


def ask(place: Redis, command: str, key: str, *arguments: str | bytes) -> object:
    return redis_command(command, f"{place.name}:bus:{key}", *arguments)


# What another program reads and writes.


async def test_any_client_of_redis_reads_the_stream(bus: Bus, place: Redis) -> None:
    await bus.publish([event(id="a", data=b'{"x": 1}', partition_key="k", subject="s")])
    ((id, fields),) = ask(place, "XRANGE", "events", "-", "+")  # type: ignore[attr-defined]
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    assert id == b"1-0"
    assert (found[b"topic"], found[b"source"], found[b"id"]) == (b"task.done", b"me", b"a")
    assert (found[b"key"], found[b"data"], found[b"at"]) == (b"k", b'{"x": 1}', b"1800000000000")
    assert msgspec.msgpack.decode(found[b"event"], type=Event).subject == "s"


@pytest.mark.parametrize(
    ("entry", "topic", "data"),
    [
        (("*", "anything", "at all"), "", b'["anything","at all"]'),
        (("*", "topic", "task.x", "data", b"\xff\x00"), "task.x", None),
        (("77-5", "topic", "../../x"), "../../x", None),
        (("*", "topic", "t", "key", "", "source", "s", "id", "i", "at", "soon", "data", "", "event", ""), "t", None),
    ],
)
async def test_what_another_program_put_into_the_stream(
    bus: Bus, place: Redis, entry: tuple[str | bytes, ...], topic: str, data: bytes | None
) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="before")])
    assert await handle(one, 1) == ["before"]
    ask(place, "XADD", "events", *entry)
    late = await bus.subscribe(">", "late")
    await bus.publish([event(id="after", partition_key="k"), event(id="second", partition_key="k")])
    ask(place, "XADD", "events", *("*", *entry[1:]))
    await bus.publish([event(id="third")])
    assert await handle(one, 3) == ["after", "second", "third"]
    letters = await bus.dead_letters("group")
    assert [letter.reason for letter in letters] == ["another program put it into the stream"] * 2
    assert [letter.event.topic for letter in letters] == [topic] * 2
    if data is not None:
        assert letters[0].event.data == data
    # One that has begun behind it hears nothing of the first.
    assert await handle(late, 3) == ["after", "second", "third"]
    assert len(await bus.dead_letters("late")) == 1
    # Redriven it is what it was.
    assert await bus.redrive("group", [letters[0].id]) == 1
    assert await is_waiting(bus, one)
    assert len(await bus.dead_letters("group")) == 2
    await place.check(bus)


async def test_a_damaged_event_becomes_a_dead_letter_and_holds_nobody_up(bus: Bus, place: Redis) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=name, partition_key="k") for name in "abcd"])
    first = await one.next()
    await one.settle(first, Verdict.RETRY)
    ask(place, "XDEL", "events", "1-0")  # it waits for its retry
    good = ("topic", "task.done", "key", "k", "source", "me", "id", "x", "at", "1800000000000", "data", "d", "event")
    ask(place, "XADD", "events", "5-0", *good, b"\xff")
    ask(place, "XADD", "events", "6-0", *good, msgspec.msgpack.encode(["task.done", 5]))
    ask(place, "XADD", "events", "7-0", *good[:5], b"\xff\xfe", *good[6:], msgspec.msgpack.encode(["t", "me"]))
    place.clock.move(1.0)
    await bus.publish([event(id="last", partition_key="k")])
    assert await handle(one, 4) == ["b", "c", "d", "last"]
    letters = await bus.dead_letters("group")
    assert [letter.reason for letter in letters] == ["its record is damaged"] * 4
    assert letters[1].event.data == b"d"
    assert await is_waiting(bus, one)
    assert (await bus.positions())[0][3:6] == (0, 0, 4)


@pytest.mark.parametrize("name", KINDS)
async def test_what_stands_in_the_place_of_a_key(place: Redis, name: str) -> None:
    ask(place, "SET", name, "of another program")
    with pytest.raises(StoreCorrupt, match=rf"what stands under {place.name}:bus:{name} in .* is not what meshd put"):
        await place.open().positions()
    assert ask(place, "GET", name) == b"of another program"


@pytest.mark.parametrize("name", [*(f":{name}" for name in ("events", "known", "positions")), *GROUP_KINDS])
async def test_what_is_put_into_the_place_of_a_key_later(bus: Bus, place: Redis, name: str) -> None:
    key = name[1:] if name in (":events", ":known", ":positions") else f"group:1{name}"
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=str(number), partition_key="k") for number in range(2)])
    await one.settle(await one.next(), Verdict.RETRY, retry_after_s=1000.0)
    kept = redis_command("DUMP", f"{place.name}:bus:{key}")
    ask(place, "SET", key, "of another program")

    async def everything() -> None:
        await bus.publish([event(), event(partition_key="k")])
        await one.settle(await one.next(), Verdict.RETRY, retry_after_s=0.0)
        await bus.positions()

    with pytest.raises(StoreCorrupt, match=rf"what stands under {place.name}:bus:{key} in"):
        await until_it_fails(everything)
    assert ask(place, "GET", key) == b"of another program"
    ask(place, "DEL", key)
    if kept is not None:
        ask(place, "RESTORE", key, "0", kept)  # type: ignore[arg-type]
    await bus.publish([event(id="after")])


@pytest.mark.parametrize("record", ["", "nonsense", "O 1 0 0 0 0", "R one 0 0 0 0 - k"])
async def test_a_damaged_record_of_what_is_under_way(bus: Bus, place: Redis, record: str) -> None:
    one = await bus.subscribe(">", "group")
    other = await bus.subscribe(">", "other")
    await bus.publish([event(id="a")])
    delivery = await one.next()
    ask(place, "HSET", "group:1:pending", "1", record)
    for verdict in Verdict:
        with pytest.raises(StoreCorrupt, match=f"what stands under {place.name}:bus:group:1:pending in"):
            await one.settle(delivery, verdict)
    place.clock.move(1000.0)
    with pytest.raises(StoreCorrupt, match=f"what stands under {place.name}:bus:group:1:pending in"):
        await one.next()
    # Nobody else is held up.
    assert await handle(other, 1) == ["a"]


async def test_a_bus_of_another_format(bus: Bus, place: Redis) -> None:
    await bus.positions()
    ask(place, "HSET", "meta", "format", "2")
    with pytest.raises(StoreNewer, match="written by a newer meshd"):
        await place.open().positions()
    ask(place, "HSET", "meta", "format", "1", "latest", "many")
    with pytest.raises(StoreCorrupt, match=f"{place.name}:bus:meta"):
        await place.open().positions()


async def test_a_bus_that_was_emptied(bus: Bus, place: Redis) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="gone")])
    waiting = asyncio.ensure_future(one.next())
    assert (await waiting).event.id == "gone"
    for key in redis_command("KEYS", f"{place.name}:*"):
        redis_command("DEL", key)
    with pytest.raises(StoreCorrupt, match="was emptied or replaced"):
        await bus.publish([event(id="refused")])
    while True:
        try:
            await bus.publish([event(id="a")])
            break
        except StoreError:
            await asyncio.sleep(0)
    # Its groups were joined again, from the beginning.
    assert await handle(one, 1) == ["a"]


async def test_scripts_that_the_server_has_forgotten_are_sent_again(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    for name in "ab":
        redis_command("SCRIPT", "FLUSH")
        waiting = asyncio.ensure_future(one.next())
        await asyncio.sleep(0)
        await bus.publish([event(id=name)])
        redis_command("SCRIPT", "FLUSH")
        await one.settle(await waiting, Verdict.SUCCESS)


async def test_two_buses_of_one_server_are_apart(place: Redis, tmp_path: Path) -> None:
    elsewhere = Redis(tmp_path)
    one, other = place.open(), elsewhere.open()
    subscribed = [await bus.subscribe(">", "group") for bus in (one, other)]
    await one.publish([event(id="a")])
    assert await is_waiting(other, subscribed[1])
    assert await handle(subscribed[0], 1) == ["a"]
    for bus in (one, other):
        await bus.close()
    elsewhere.remove()
