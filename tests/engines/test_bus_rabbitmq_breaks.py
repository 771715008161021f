"""Events in RabbitMQ while connections break, the server is killed and started again, and sidecars are killed."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from meshd.engines.bus_port import Bus, Delivery, Subscription, Verdict
from meshd.engines.bus_rabbitmq import RabbitBus
from meshd.engines.port import StoreError, StoreFull, StoreUnable
from meshd.engines.url import StoreUrl
from tests.engines.buses import TERMS, Hands, event, handle
from tests.engines.crew import Crew
from tests.engines.places import rabbitmq_delete as delete
from tests.engines.places import until_it_fails
from tests.engines.servers import RabbitServer, line_to

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One for all tests of this file: it takes seconds to start."""
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq") / "server")
    try:
        asyncio.run(started(server))
        yield server
    finally:
        server.thaw()
        server.kill()


async def started(server: RabbitServer) -> None:
    await server.start()
    await server.remember()


@pytest.fixture
def server(node: RabbitServer) -> RabbitServer:
    return node


@pytest.fixture
def prefix() -> str:
    return f"test{secrets.token_hex(6)}"


async def opened(address: str, prefix: str, clock: Hands | None = None, options: str = "") -> RabbitBus:
    url = f"amqp://{address}?prefix={prefix}{options or '&timeout=10&connect_timeout=20'}"
    return await RabbitBus.open(StoreUrl(url), terms=TERMS, clock=clock, gone_s=0.2)


async def until_it_works(bus: Bus) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await bus.positions()
                return
            except StoreError:
                await asyncio.sleep(0.01)


async def test_a_server_that_is_killed_and_started_again(server: RabbitServer, prefix: str) -> None:
    buses = [await opened(server.address, prefix) for _ in range(2)]
    crew = Crew(150)
    subscriptions = [await bus.subscribe(">", "group", handling_s=60.0) for bus in buses for _ in range(3)]
    workers = [asyncio.ensure_future(crew.handle(one)) for one in subscriptions]
    publishers = [asyncio.ensure_future(crew.publish(bus, name)) for bus, name in zip(buses, "ab", strict=True)]
    await crew.have_published(100)
    server.kill()
    await server.start()
    await asyncio.gather(*publishers)
    async with asyncio.timeout(120):
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


@pytest.mark.parametrize("verdict", [Verdict.SUCCESS, Verdict.DROP])
async def test_what_was_said_while_the_server_was_away_is_said_again(
    server: RabbitServer, prefix: str, verdict: Verdict
) -> None:
    bus = await opened(server.address, prefix)
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=name, partition_key="k") for name in "ab"])
    first = await one.next()
    server.kill()
    with pytest.raises(StoreError):
        await until_it_fails(bus.positions)
    waiting = asyncio.ensure_future(_next(one))
    for _ in range(2):
        with pytest.raises(StoreError):
            await one.settle(first, verdict)
    await server.start()
    assert (await waiting).event.id == "b"
    assert (await bus.positions())[0].dropped == (verdict is Verdict.DROP)
    assert not await one.settle(first, Verdict.SUCCESS)
    await bus.close()


async def _next(one: Subscription) -> Delivery:
    while True:
        try:
            return await one.next()
        except StoreError:
            await asyncio.sleep(0.01)


async def test_who_waits_hears_what_was_published_while_it_was_cut_off(server: RabbitServer, prefix: str) -> None:
    other = await opened(server.address, prefix)
    async with line_to(server.address) as line:
        bus = await opened(line.address, prefix)
        one = await bus.subscribe(">", "group")
        waiting = asyncio.ensure_future(_next(one))
        await until_it_works(bus)
        line.cut()
        with pytest.raises(StoreError):
            await until_it_fails(bus.positions)
        await other.publish([event(id="a")])
        await line.mend()
        assert (await waiting).event.id == "a"
        await bus.close()
    await other.close()


async def test_a_server_that_does_not_answer_is_given_up(server: RabbitServer, prefix: str) -> None:
    bus = await opened(server.address, prefix, options="&timeout=0.5&connect_timeout=10")
    server.freeze()
    with pytest.raises(StoreError, match=r"did not answer within 0\.5 s"):
        await bus.publish([event(id="a")])
    server.thaw()
    await until_it_works(bus)
    await bus.publish([event(id="a")])
    await bus.close()


async def test_a_log_that_was_deleted(server: RabbitServer, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    bus = await opened(server.address, prefix, options="&timeout=0.5&connect_timeout=20")
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="kept"), event(id="forgotten")])
    assert await handle(one, 1) == ["kept"]
    forgotten = await one.next()
    await delete(f"{prefix}.log", address=server.address)
    with pytest.raises(StoreError):
        await until_it_fails(bus.positions)
    await until_it_works(bus)
    # Its groups begin with the oldest that is there, and what was handed out before is nobody's.
    await bus.publish([event(id="new"), event(id="newer")])
    assert await handle(one, 1) == ["new"]
    newer = await one.next()
    assert newer.place > forgotten.place + 1
    assert not await one.settle(forgotten, Verdict.SUCCESS)
    assert await one.settle(newer, Verdict.SUCCESS)
    assert "was made anew" in caplog.text
    await bus.close()


async def test_an_alarm_refuses_events_in_time_and_loses_nothing(server: RabbitServer, prefix: str) -> None:
    bus = await opened(server.address, prefix, options="&timeout=0.5&connect_timeout=10")
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
    first = await one.next()
    await asyncio.to_thread(server.control, "set_vm_memory_high_watermark", "0.00001")
    try:
        # The one that the server does not read any more may be kept or not; those after it are refused at once.
        with pytest.raises(StoreFull, match="may have been done or not"):
            await until_it_fails(lambda: bus.publish([event(id="doubt")]))
        with pytest.raises(StoreFull, match="memory and disk"):
            await bus.publish([event(id="c")])
        with pytest.raises(StoreFull):
            await one.settle(first, Verdict.SUCCESS)
        with pytest.raises(StoreFull, match="memory and disk"):
            await opened(server.address, prefix, options="&connect_timeout=1")
    finally:
        await asyncio.to_thread(server.control, "set_vm_memory_high_watermark", "0.6")
    assert (await one.next()).event.id == "b"  # the verdict was said again
    assert not await one.settle(first, Verdict.SUCCESS)
    await bus.close()


@pytest.mark.parametrize("how", ["away", "cut off", "silent", "silent for long", "in alarm", "in alarm for long"])
async def test_closing_waits_for_no_server(server: RabbitServer, prefix: str, how: str) -> None:
    async with line_to(server.address) as line:
        bus = await opened(line.address, prefix, options="&timeout=0.5&connect_timeout=20")
        one = await bus.subscribe(">", "group")
        if how.startswith("in alarm"):
            await asyncio.to_thread(server.control, "set_vm_memory_high_watermark", "0.00001")
            with pytest.raises(StoreFull):
                await until_it_fails(lambda: bus.publish([event()]))
        elif how == "away":
            line.cut()
            with pytest.raises(StoreError):
                await until_it_fails(bus.positions)
        else:
            line.silence()
        if how == "silent for long":
            epoch = bus._log._epoch
            with pytest.raises(StoreError):
                await bus.positions()
            while bus._log._epoch == epoch:  # it has begun to make another connection
                await asyncio.sleep(0)
        if how == "in alarm for long":
            before = bus._log._newest
            line.cut()
            await line.mend()
            while (pair := bus._log._newest) is before or pair is None or not pair.is_blocked:  # and so is the next
                await asyncio.sleep(0.01)
        try:
            waiting = asyncio.ensure_future(one.next())
            while not bus._log._queue and not bus._log._flying:  # it has asked for an event
                await asyncio.sleep(0)
            closing = asyncio.ensure_future(bus.close())
            await asyncio.sleep(0)
            if how == "cut off":
                line.cut()
            await asyncio.wait_for(closing, 10.0)
            with pytest.raises(StoreError):
                await waiting
            assert [one for one in asyncio.all_tasks() if "_redial" in repr(one)] == []
        finally:
            if how.startswith("in alarm"):
                await asyncio.to_thread(server.control, "set_vm_memory_high_watermark", "0.6")


async def test_what_is_not_permitted_is_said(server: RabbitServer, prefix: str) -> None:
    for arguments in (
        ("add_user", prefix, "canary"),
        ("set_permissions", prefix, f"{prefix}.*", "^$", ".*"),
        ("add_vhost", f"{prefix}/v"),
    ):
        await asyncio.to_thread(server.control, *arguments)
    where = f"{prefix}:canary@{server.address}"
    with pytest.raises(StoreUnable, match="does not permit what a bus needs") as told:
        await RabbitBus.open(StoreUrl(f"amqp://{where}?prefix={prefix}"))
    with pytest.raises(StoreUnable, match="virtual host"):
        await RabbitBus.open(StoreUrl(f"amqp://{where}/{prefix}%2Fv?prefix={prefix}"))
    with pytest.raises(StoreUnable, match="refuses this user and password"):
        await RabbitBus.open(StoreUrl(f"amqp://{prefix}:wrong@{server.address}"))
    assert "canary" not in str(told.value)
    # What it takes at least.
    await asyncio.to_thread(
        server.control,
        "set_permissions",
        "-p",
        f"{prefix}/v",
        prefix,
        *[rf"^({prefix}\..*|amq\.gen.*|amq\.default)$"] * 3,
    )
    bus = await RabbitBus.open(StoreUrl(f"amqp://{where}/{prefix}%2Fv?prefix={prefix}&connect_timeout=20&timeout=10"))
    await bus.publish([event()])
    await bus.close()


WORKER = """
import asyncio, sys
from meshd.engines.bus_port import Event, Verdict
from meshd.engines.bus_rabbitmq import RabbitBus
from meshd.engines.url import StoreUrl

async def main():
    bus = await RabbitBus.open(StoreUrl(sys.argv[1]), gone_s=0.2)
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


def worker(server: RabbitServer, prefix: str, handling_s: float) -> subprocess.Popen[str]:
    """Start a sidecar that handles events, and wait until it does."""
    one = subprocess.Popen(
        [
            sys.executable,
            "-c",
            WORKER,
            f"amqp://{server.address}?prefix={prefix}&timeout=10&connect_timeout=20",
            str(handling_s),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert one.stdout is not None
    assert one.stdout.readline() == "ready\n"
    return one


async def test_a_sidecar_that_is_killed_while_it_handles_an_event(server: RabbitServer, prefix: str) -> None:
    bus = await opened(server.address, prefix)
    gone = worker(server, prefix, 600.0)
    await bus.publish([event(id="stuck", partition_key="k"), event(id="next", partition_key="k")])
    assert gone.stdout is not None
    assert await asyncio.to_thread(gone.stdout.readline) == "begun stuck\n"
    one = await bus.subscribe(">", "group")
    waiting = asyncio.ensure_future(one.next())
    gone.kill()
    gone.communicate()
    # Its connection is gone, and another heard of that.
    delivery = await waiting
    assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("stuck", 2, True)
    assert await one.settle(delivery, Verdict.SUCCESS)
    assert await handle(one, 1) == ["next"]
    await bus.close()


async def test_two_processes_share_a_group(server: RabbitServer, prefix: str) -> None:
    bus = await opened(server.address, prefix)
    workers = [worker(server, prefix, 60.0) for _ in range(2)]
    await asyncio.gather(
        *(bus.publish([event(id=f"{batch}/{n}", partition_key=str(n % 3)) for n in range(20)]) for batch in range(20))
    )
    async with asyncio.timeout(120):
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


async def test_order_within_a_key_holds_over_sidecars(server: RabbitServer, prefix: str) -> None:
    buses = [await opened(server.address, prefix) for _ in range(3)]
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


async def test_who_waits_elsewhere_is_told_when_something_is_due(server: RabbitServer, prefix: str) -> None:
    clock = Hands()
    buses = [await opened(server.address, prefix, clock) for _ in range(2)]
    one, other = [await bus.subscribe(">", "group", handling_s=1000.0) for bus in buses]
    await buses[0].publish([event(id="a")])
    delivery = await one.next()
    waiting = asyncio.ensure_future(other.next())
    await _heard(*buses)
    # Nobody waits at the sidecar that says it, and none that it hears of is due before the handler's end.
    await one.settle(delivery, Verdict.RETRY, retry_after_s=5.0)
    await _heard(*buses)
    clock.move(4.99)
    await _heard(*buses)
    assert not waiting.done()
    clock.move(0.01)
    assert (await waiting).attempt == 2
    for bus in buses:
        await bus.close()


async def _heard(*buses: RabbitBus) -> None:
    """Return when each has done what it was told of."""
    for _ in range(4):
        for bus in buses:
            await bus.positions()
