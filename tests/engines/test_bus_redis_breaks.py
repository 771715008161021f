"""Events in Redis while connections break, the server is killed and started again, and sidecars are killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshd.engines.bus_port import Bus, Delivery, Subscription, Verdict
from meshd.engines.bus_redis import RedisBus
from meshd.engines.port import StoreError
from meshd.engines.url import StoreUrl
from tests.engines.buses import TERMS, Hands, event, handle, is_waiting
from tests.engines.crew import Crew
from tests.engines.places import redis_command, until_it_fails
from tests.engines.servers import Line, Server, line_to, redis_server, running

SYNCED = ("--appendonly", "yes", "--appendfsync", "always")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(redis_server(tmp_path / "server", *SYNCED)) as one:
        yield one


async def opened(address: str, clock: Hands | None = None) -> RedisBus:
    return await RedisBus.open(StoreUrl(f"redis://{address}/0?timeout=5"), terms=TERMS, clock=clock)


async def until_it_works(bus: Bus) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await bus.positions()
                return
            except StoreError:
                await asyncio.sleep(0.01)


async def test_a_server_that_is_killed_and_started_again(server: Server) -> None:
    buses = [await opened(server.address) for _ in range(2)]
    crew = Crew(150)
    subscriptions = [await bus.subscribe(">", "group", handling_s=60.0) for bus in buses for _ in range(3)]
    workers = [asyncio.ensure_future(crew.handle(one)) for one in subscriptions]
    publishers = [asyncio.ensure_future(crew.publish(bus, name)) for bus, name in zip(buses, "ab", strict=True)]
    for many in (60, 150, 240):
        await crew.have_published(many)
        server.kill()
        await server.start()
    await asyncio.gather(*publishers)
    async with asyncio.timeout(60):
        while True:
            await until_it_works(buses[0])
            (position,) = await buses[0].positions()
            if int(position.sequence) >= 300 and position[3:6] == (0, 0, 0):
                break
            await asyncio.sleep(0.01)
    # Nothing that was acknowledged is lost, and no handler that was acknowledged ran again. (That of a SUCCESS whose
    # acknowledgement was lost did not, either: it was said again.)
    assert set(crew.begun) == {f"{name}/{number}" for name in "ab" for number in range(150)} >= set(crew.published)
    assert crew.again == []
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    for bus in buses:
        await bus.close()


async def test_an_event_whose_handing_out_was_cut_off_was_not_begun(server: Server) -> None:
    async with line_to(server.address) as line:
        bus = await opened(line.address)
        one = await bus.subscribe(">", "group")
        await bus.publish([event(id="a"), event(id="b")])
        first = await one.next()
        await cut_while(line, server, bus, one)
        await line.mend()
        await until_it_works(bus)
        # At once, and not when its handling time is over; what this sidecar still has, it has.
        again = await one.next()
        assert (again.event.id, again.attempt, again.may_have_been_handled) == ("b", 1, False)
        for delivery in (first, again):
            assert await one.settle(delivery, Verdict.SUCCESS)
        assert await is_waiting(bus, one)
        await bus.close()


async def cut_while(line: Line, server: Server, bus: RedisBus, one: Subscription) -> None:
    """Ask for an event, let the server hand it out, and lose its reply."""
    await heard(bus)  # nothing else is on its way
    server.freeze()
    waiting = asyncio.ensure_future(one.next())
    passed = line.bytes_passed
    while line.bytes_passed == passed:
        await asyncio.sleep(0)
    line.silence()
    server.thaw()
    while redis_command("ZCARD", "meshd:bus:group:1:out", address=server.address) != 2:
        await asyncio.sleep(0)
    line.cut()
    with pytest.raises(StoreError):
        await waiting


@pytest.mark.parametrize("verdict", [Verdict.SUCCESS, Verdict.DROP])
async def test_what_was_said_while_the_server_was_away_is_said_again(server: Server, verdict: Verdict) -> None:
    bus = await opened(server.address)
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=name, partition_key="k") for name in "ab"])
    first = await one.next()
    server.kill()
    with pytest.raises(StoreError):
        await until_it_fails(bus.positions)
    waiting = asyncio.ensure_future(insist(one))
    for _ in range(2):
        with pytest.raises(StoreError):
            await one.settle(first, verdict)
    await server.start()
    assert (await waiting).event.id == "b"
    assert (await bus.positions())[0].dropped == (verdict is Verdict.DROP)
    assert not await one.settle(first, Verdict.SUCCESS)
    await bus.close()


async def insist(one: Subscription) -> Delivery:
    while True:
        try:
            return await one.next()
        except StoreError:
            await asyncio.sleep(0.01)


async def test_who_waits_hears_what_was_published_while_it_was_cut_off(server: Server) -> None:
    other = await opened(server.address)
    async with line_to(server.address) as line:
        bus = await opened(line.address)
        one = await bus.subscribe(">", "group")
        waiting = asyncio.ensure_future(insist(one))
        await until_it_works(bus)
        line.cut()
        with pytest.raises(StoreError):
            await until_it_fails(bus.positions)
        await other.publish([event(id="a")])
        await line.mend()
        assert (await waiting).event.id == "a"
        await bus.close()
    await other.close()


async def test_who_asks_while_there_is_no_connection_is_in_no_doubt(server: Server) -> None:
    bus = await opened(server.address)
    one = await bus.subscribe(">", "group")
    server.kill()
    with pytest.raises(StoreError):
        await until_it_fails(bus.positions)
    with pytest.raises(StoreError):
        await one.next()
    # Else what the next connection has out would be taken back while it is on its way.
    assert bus._remote.untold.doubtful == []
    await bus.close()


async def test_a_server_that_does_not_answer_is_given_up(server: Server) -> None:
    bus = await RedisBus.open(StoreUrl(f"redis://{server.address}/0?timeout=0.2"), terms=TERMS)
    server.freeze()
    with pytest.raises(StoreError, match=r"did not answer within 0\.2 s"):
        await bus.publish([event(id="a")])
    server.thaw()
    await until_it_works(bus)
    await bus.publish([event(id="a")])
    await bus.close()


async def test_a_server_that_lost_everything(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server")) as server:
        bus = await opened(server.address)
        one = await bus.subscribe(">", "group")
        await bus.publish([event(id="gone")])
        server.kill()
        await server.start()
        await until_it_works(bus)
        await bus.publish([event(id="a")])
        assert await handle(one, 1) == ["a"]
        await bus.close()


async def test_what_a_server_forgot_is_not_taken_for_what_came_after(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server")) as server:
        bus = await opened(server.address)
        one = await bus.subscribe(">", "group")
        await bus.publish([event(id="kept")])
        kept = await one.next()
        redis_command("SAVE", address=server.address)
        # All this it will have forgotten: events, verdicts, a group.
        assert await one.settle(kept, Verdict.SUCCESS)
        await bus.publish([event(id="forgotten")])
        forgotten = await one.next()
        late = await bus.subscribe(">", "late")
        server.kill()
        await server.start()
        other = await opened(server.address)
        others = await other.subscribe("others.*", "others")
        (published,) = await other.publish([event(id="new")])
        await other.publish([event("others.a", id="theirs")])
        assert int(published.sequence) > forgotten.place
        await until_it_works(bus)
        assert not await one.settle(forgotten, Verdict.SUCCESS)
        assert sorted(await handle(one, 2)) == ["new", "theirs"]
        assert await handle(others, 1) == ["theirs"]
        await other.publish([event(id="newer")])
        # It was joined anew at some moment since the restart.
        while await handle(late, 1) != ["newer"]:
            pass
        assert await handle(one, 1) == ["newer"]
        for each in (bus, other):
            await each.close()


WORKER = """
import asyncio, sys
from meshd.engines.bus_port import Event, Verdict
from meshd.engines.bus_redis import RedisBus
from meshd.engines.url import StoreUrl

async def main():
    bus = await RedisBus.open(StoreUrl(sys.argv[1]))
    one = await bus.subscribe(">", "group", handling_s=float(sys.argv[2]))
    print("ready", flush=True)
    while True:
        delivery = await one.next()
        print("begun", delivery.event.id, flush=True)
        if delivery.event.id.startswith("stuck"):
            await asyncio.Event().wait()
        await one.settle(delivery, Verdict.SUCCESS)
        print("settled", delivery.event.id, flush=True)

asyncio.run(main())
"""


def worker(server: Server, handling_s: float) -> subprocess.Popen[str]:
    """Start a sidecar that handles events, and wait until it does."""
    one = subprocess.Popen(
        [sys.executable, "-c", WORKER, f"redis://{server.address}/0", str(handling_s)],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert one.stdout is not None
    assert one.stdout.readline() == "ready\n"
    return one


async def test_a_sidecar_that_is_killed_while_it_handles_an_event(server: Server) -> None:
    bus = await opened(server.address)
    gone = worker(server, 0.5)
    await bus.publish([event(id="stuck", partition_key="k"), event(id="next", partition_key="k")])
    assert gone.stdout is not None
    assert await asyncio.to_thread(gone.stdout.readline) == "begun stuck\n"
    one = await bus.subscribe(">", "group")
    waiting = asyncio.ensure_future(one.next())
    gone.kill()
    gone.communicate()
    # Nobody is left to say so, but who waits was told when it would be due.
    delivery = await waiting
    assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("stuck", 2, True)
    assert await one.settle(delivery, Verdict.SUCCESS)
    assert await handle(one, 1) == ["next"]
    await bus.close()


async def test_two_processes_share_a_group(server: Server) -> None:
    bus = await opened(server.address)
    workers = [worker(server, 60.0) for _ in range(2)]
    await asyncio.gather(
        *(bus.publish([event(id=f"{batch}/{n}", partition_key=str(n % 3)) for n in range(20)]) for batch in range(20))
    )
    async with asyncio.timeout(60):
        while True:
            (position,) = await bus.positions()
            if int(position.sequence) == 400 and position[3:6] == (0, 0, 0):
                break
            await asyncio.sleep(0.01)
    said: list[list[str]] = []
    for one in workers:
        one.kill()
        said.append(one.communicate()[0].splitlines())
    settled = [line.split()[1] for lines in said for line in lines if line.startswith("settled")]
    assert all(any(line.startswith("begun") for line in lines) for lines in said)
    # The last line of each may not have been written when it was killed.
    assert len(settled) == len(set(settled)) >= 398
    begun = [line.split()[1] for lines in said for line in lines if line.startswith("begun")]
    assert sorted(begun) == sorted(f"{batch}/{n}" for batch in range(20) for n in range(20))
    await bus.close()


async def test_order_within_a_key_holds_over_sidecars(server: Server) -> None:
    buses = [await opened(server.address) for _ in range(3)]
    order: list[str] = []
    done = asyncio.Event()

    async def work(one: Subscription) -> None:
        while True:
            delivery = await one.next()
            order.append(delivery.event.id)
            await one.settle(delivery, Verdict.SUCCESS)
            if len(order) == 200:
                done.set()

    workers = [asyncio.ensure_future(work(await bus.subscribe(">", "group"))) for bus in buses for _ in range(2)]
    for number in range(200):
        await buses[number % 3].publish([event(id=f"{number % 4}/{number:03}", partition_key=str(number % 4))])
    await done.wait()
    for key in "0123":
        of_key = [id for id in order if id[0] == key]
        assert of_key == sorted(of_key)
    for one in workers:
        one.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    for bus in buses:
        await bus.close()


async def test_who_waits_elsewhere_is_told_when_something_is_due(server: Server) -> None:
    clock = Hands()
    buses = [await opened(server.address, clock) for _ in range(2)]
    one, other = [await bus.subscribe(">", "group", handling_s=1000.0) for bus in buses]
    await buses[0].publish([event(id="a")])
    delivery = await one.next()
    waiting = asyncio.ensure_future(other.next())
    await heard(*buses)
    # Nobody waits at the sidecar that says it, and none that it hears of is due before the handler's end.
    await one.settle(delivery, Verdict.RETRY, retry_after_s=5.0)
    await heard(*buses)
    clock.move(4.99)
    await heard(*buses)
    assert not waiting.done()
    clock.move(0.01)
    assert (await waiting).attempt == 2
    for bus in buses:
        await bus.close()


async def heard(*buses: RedisBus) -> None:
    """Return when each has done what it was told of."""
    for _ in range(4):
        for bus in buses:
            await bus.positions()
            await bus._ear.current().ask("PING")
