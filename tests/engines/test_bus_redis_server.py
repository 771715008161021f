"""A Redis that is a bus: what the server promises, whom it lets do what, and what happens where it is full."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd.engines.bus_port import EventMalformed, Verdict
from meshd.engines.bus_redis import RedisBus
from meshd.engines.port import Ability, StoreError, StoreFull, StoreReadOnly, StoreUnable
from meshd.engines.url import StoreUrl
from tests.engines.buses import DAY_S, TERMS, Hands, Redis, event, handle, is_waiting, quiet, take
from tests.engines.places import redis_command
from tests.engines.servers import Server, line_to, redis_server, running
from tests.ports import free_port


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Redis]:
    one = Redis(tmp_path)
    yield one
    one.remove()


async def opened(server: Server, *, user: str = "", clock: Hands | None = None) -> RedisBus:
    return await RedisBus.open(StoreUrl(f"redis://{user}{server.address}/0"), terms=TERMS, clock=clock)


@pytest.mark.parametrize(
    ("options", "is_durable", "caution"),
    [
        (("--appendonly", "yes", "--appendfsync", "always"), True, ""),
        (("--appendonly", "yes", "--appendfsync", "everysec"), False, "appendfsync is everysec"),
        (("--appendonly", "no"), False, "appendonly is off"),
    ],
)
async def test_what_a_server_promises(options: tuple[str, ...], is_durable: bool, caution: str, tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server", *options)) as server:
        bus = await opened(server)
        assert (Ability.DURABLE in bus.abilities) == is_durable
        assert Ability.SHARED in bus.abilities
        assert caution in bus.caution
        assert bool(bus.caution) == (not is_durable)
        await bus.close()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), StoreUnable, "evicts keys .* never handled"),
        (("--cluster-enabled", "yes", "--cluster-port", str(free_port())), StoreUnable, "is a node of a Redis Cluster"),
        (("--replicaof", "127.0.0.1", "1"), StoreReadOnly, "is a replica"),
        (("--requirepass", "canary"), StoreUnable, "asks for a password"),
        (("--rename-command", "EVALSHA", ""), StoreError, "unknown command"),
        (("--rename-command", "SUBSCRIBE", ""), StoreError, "unknown command"),
    ],
)
async def test_a_server_that_cannot_be_used(
    options: tuple[str, ...], kind: type[StoreError], words: str, tmp_path: Path
) -> None:
    async with running(redis_server(tmp_path / "server", *options)) as server:
        with pytest.raises(kind, match=words):  # noqa: PT012
            bus = await opened(server)
            try:
                await bus.subscribe(">", "group")
            finally:
                await bus.close()


async def test_a_user_that_may_too_little(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server")) as server:
        docs = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
        listed = docs.partition("- Redis, as a bus: a user needs ")[2].partition(", and `INFO`")[0]
        commands = [word.strip("`\n ").lower().replace(" ", "|") for word in listed.replace("\n", " ").split(", ")]
        assert len(commands) > 20
        redis_command("ACL", "SETUSER", "few", "on", ">pw", "~meshd:bus:*", "&meshd:bus:*", address=server.address)
        rights = [f"+{one}" for one in commands]
        assert redis_command("ACL", "SETUSER", "few", *rights, address=server.address) == b"OK"
        bus = await opened(server, user="few:pw@")
        assert "does not let this user look" in bus.caution
        one = await bus.subscribe(">", "group")
        await bus.publish([event(id=name, partition_key="k") for name in "abc"])
        await one.settle(await one.next(), Verdict.RETRY, retry_after_s=0.0)
        assert await handle(one, 3) == ["a", "b", "c"]
        await bus.positions()
        await bus.close()
        clock = Hands()
        for command in commands:
            if command in ("ping", "time"):  # at leisure; and not where a clock is handed in
                continue
            redis_command("ACL", "SETUSER", "few", f"-{command}", address=server.address)
            with pytest.raises(StoreUnable, match="does not let this user do what meshd must"):
                await _everything(server, clock, command)
            redis_command("ACL", "SETUSER", "few", f"+{command}", address=server.address)
        await _everything(server, clock, "nothing")


async def _everything(server: Server, clock: Hands, group: str) -> None:
    """Do all that a bus does, as a group of its own."""
    bus = await opened(server, user="few:pw@", clock=clock)
    try:
        await bus.publish([event(partition_key="k") for _ in range(3)])
        one = await bus.subscribe(">", group.replace("|", "-"))
        await bus.publish([event(partition_key="k") for _ in range(3)])
        for _ in range(8):
            await one.settle(await one.next(), Verdict.RETRY, retry_after_s=0.0)
            clock.move(1.0)
        (letter, *_) = await bus.dead_letters(group.replace("|", "-"))
        await take(one, 1)
        for _ in range(2):
            clock.move(9 * DAY_S)
            while await bus._shelf.trim():
                pass
            await bus.redrive(letter.group, [letter.id])
        await bus.positions()
    finally:
        await bus.close()


async def test_a_full_server_refuses_events_and_loses_none(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server", "--maxmemory-policy", "noeviction")) as server:
        bus = await opened(server)
        one = await bus.subscribe(">", "group")
        await bus.publish([event(id=str(number), data=bytes(1000), partition_key="k") for number in range(3)])
        await bus.publish([event(id=str(number), data=bytes(1000)) for number in range(3, 300)])
        redis_command("CONFIG", "SET", "maxmemory", "1mb", address=server.address)
        for _ in range(2):
            with pytest.raises(StoreFull, match="is full: raise its maxmemory"):
                await bus.publish([event(id="refused")])
        with pytest.raises(StoreFull):
            await bus.subscribe(">", "another")
        # Whoever is at work goes on, or there would never be room again.
        first = await one.next()
        assert await one.settle(first, Verdict.RETRY, retry_after_s=0.0)
        assert len(await handle(one, 300)) == 300
        assert await is_waiting(bus, one)
        redis_command("CONFIG", "SET", "maxmemory", "0", address=server.address)
        await bus.publish([event(id="refused")])
        assert await handle(one, 1) == ["refused"]
        await bus.close()


async def test_a_full_server_lets_go_of_what_nobody_needs(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server", "--maxmemory-policy", "noeviction")) as server:
        bus = await opened(server)
        one = await bus.subscribe(">", "group")
        used = int(redis_command("INFO", "memory", address=server.address).split(b"used_memory:")[1].split()[0])
        redis_command("CONFIG", "SET", "maxmemory", str(used + 8_000_000), address=server.address)
        for number in range(300):
            await bus.publish([event(id=str(number), data=bytes(100_000))])
            assert await handle(one, 1) == [str(number)]
        assert (await bus.publish([event(id="0")]))[0].is_duplicate
        await bus.close()


async def test_room_is_made_behind_many_that_are_needed(place: Redis) -> None:
    bus = place.open(TERMS._replace(keep_bytes=2_000_000))
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=str(number)) for number in range(3000)])
    held = await take(one, 3000)
    for number in range(300):
        for _ in range(20):
            try:
                await bus.publish([event(id=f"more {number}", data=bytes(20_000))])
                break
            except StoreFull:  # it is looked for meanwhile
                await quiet(bus)
        assert await handle(one, 1) == [f"more {number}"]
    await place.check(bus)
    assert await one.settle(held[0], Verdict.SUCCESS)
    assert (await bus.positions())[0].under_way == 2999
    await bus.close()


async def test_what_is_too_large_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    server = redis_server(tmp_path / "server")
    async with running(server), line_to(server.address) as line:
        bus = await RedisBus.open(StoreUrl(f"redis://{line.address}/0"), terms=TERMS)
        before = line.bytes_passed
        with pytest.raises(EventMalformed, match="data"):
            await bus.publish([event(data=bytes(100_000_000))])
        with pytest.raises(StoreUnable, match="too many to be published together"):
            await bus.publish([event(data=bytes(2**20)) for _ in range(65)])
        with pytest.raises(StoreUnable, match="10001 events"):
            await bus.publish([event() for _ in range(10_001)])
        assert line.bytes_passed == before
        await bus.close()


async def test_a_verdict_that_the_server_refuses_is_said_again(tmp_path: Path) -> None:
    clock = Hands()
    async with running(redis_server(tmp_path / "server")) as server:
        bus = await opened(server, clock=clock)
        one = await bus.subscribe(">", "group")
        await bus.publish([event(id=name, partition_key="k") for name in "ab"])
        delivery = await one.next()
        redis_command("CONFIG", "SET", "min-replicas-to-write", "1", address=server.address)
        with pytest.raises(StoreError, match="too few of its replicas"):
            await one.settle(delivery, Verdict.SUCCESS)
        redis_command("CONFIG", "SET", "min-replicas-to-write", "0", address=server.address)
        clock.move(61.0)  # until what is too old is looked for
        while (await bus.positions())[0].under_way:
            await asyncio.sleep(0)
        assert await handle(one, 1) == ["b"]
        await bus.close()


async def test_large_events_are_taken_a_few_at_a_time(place: Redis) -> None:
    bus = place.open()
    subscribers = [await bus.subscribe(">", "group") for _ in range(20)]
    waiting = [asyncio.ensure_future(one.next()) for one in subscribers]
    await quiet(bus)
    for number in range(20):
        await bus.publish([event(id=str(number), data=bytes(2**20))])
    got = await asyncio.gather(*waiting)
    assert sorted(int(one.event.id) for one in got) == list(range(20))
    await bus.close()


async def test_times_are_the_server_s(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server")) as server:
        bus = await opened(server)
        one = await bus.subscribe(">", "group")
        await bus.publish([event()])
        seconds, _ = redis_command("TIME", address=server.address)
        ((_, fields),) = redis_command("XRANGE", "meshd:bus:events", "-", "+", address=server.address)
        assert abs(int(fields[9]) / 1000 - int(seconds)) < 60
        assert await one.settle(await one.next(), Verdict.RETRY, retry_after_s=0.05)
        assert (await one.next()).attempt == 2
        await bus.close()
