"""A sidecar that stands still between taking an event and handing it over: stopped, or on a machine that is suspended.

Meanwhile others may have had the event and settled it. So whoever waits there is handed what is still theirs, and
nothing else, when it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshd.engines.bus_port import Bus, Verdict
from meshd.engines.bus_table import ENGINES
from meshd.engines.table import driver_of
from meshd.engines.url import StoreUrl
from tests.engines.buses import BUS_PLACES, BusPlace, KafkaMock, Nats, Served, bus_place, event, quiet
from tests.engines.places import NATS, RABBITMQ, REDIS
from tests.engines.servers import line_to

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
SHARED = ["redis", "nats", "rabbitmq", "kafka mock"]

WORKER = """
import asyncio, json, os, signal, sys
from meshd.engines.port import StoreError
from meshd.engines.bus_port import Verdict
from meshd.engines.bus_table import ENGINES
from meshd.engines.table import driver_of
from meshd.engines.url import StoreUrl

async def main():
    url = StoreUrl(sys.argv[1])
    bus = await driver_of(ENGINES[url.scheme], "bus").open(url, **json.loads(sys.argv[3]))
    one = await bus.subscribe(">", "group", handling_s=float(sys.argv[2]))
    take, is_to_stand = bus._shelf.hand_out, True

    def stand():
        nonlocal is_to_stand
        is_to_stand = False
        os.kill(os.getpid(), signal.SIGSTOP)

    async def take_and_stand(group, times):
        handed = await take(group, times)
        if handed.deliveries and is_to_stand:
            stand()
        return handed

    def take_at_once_and_stand(group, times, tell):
        def told(handed):
            if getattr(handed, "deliveries", None) and is_to_stand:
                stand()
            tell(handed)

        return take_at_once(group, times, told)

    if sys.argv[4] == "taken":
        bus._shelf.hand_out = take_and_stand
        if (take_at_once := one._line._at_once) is not None:
            one._line._at_once = take_at_once_and_stand
    print("ready", flush=True)
    while True:
        try:
            delivery = await one.next()
        except StoreError:  # its connection is gone
            await asyncio.sleep(0.01)
            continue
        print(delivery.event.id, delivery.attempt, delivery.may_have_been_handled, flush=True)
        verdicts = [Verdict.SUCCESS]
        if sys.argv[4] == "handed" and is_to_stand:
            stand()
            verdicts = [Verdict.RETRY, Verdict.DROP, Verdict.SUCCESS]
        print(*[await one.settle(delivery, verdict) for verdict in verdicts], flush=True)

asyncio.run(main())
"""


class Standing:
    """A sidecar in a process of its own, which stops itself once: as soon as it has been given an event by the engine,
    or, where `what` is `handed`, has given it to its subscriber."""

    def __init__(self, url: str, handling_s: float, what: str, options: dict[str, float]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(handling_s), json.dumps(options), what],
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    async def stands(self) -> None:
        """Return once it has stopped."""
        _, status = await asyncio.to_thread(os.waitpid, self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def goes_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def handles(self) -> str:
        """Return what its next handler is given: id, attempt and mark; and whether its verdicts counted."""
        return " ".join([await asyncio.to_thread(self.line) for _ in range(2)])


@contextlib.asynccontextmanager
async def standing(url: str, handling_s: float, what: str = "taken", **options: float) -> AsyncIterator[Standing]:
    one = Standing(url, handling_s, what, options)
    try:
        assert await asyncio.to_thread(one.line) == "ready"
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


@pytest.fixture(params=SHARED)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusPlace]:
    with bus_place(request.param, tmp_path) as one:
        yield one


def url_of(place: BusPlace, address: str = "") -> str:
    """Return where a place of an engine is, over another address than its own where one is given."""
    assert isinstance(place, Served)
    if isinstance(place, KafkaMock):
        return f"kafka://{place.cluster.address}?prefix={place.name}&timeout=10&fetch_wait=0.01"
    return {
        "redis": f"redis://{address or REDIS}/0?prefix={place.name}&timeout=10",
        "nats": f"nats://{address or NATS}?stream={place.name}&timeout=5&connect_timeout=10",
        "rabbitmq": f"amqp://{address or RABBITMQ}?prefix={place.name}&timeout=10&connect_timeout=20",
    }[place.engine]


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Bus]:
    scheme = StoreUrl(url).scheme
    bus: Bus = await driver_of(ENGINES[scheme], "bus").open(StoreUrl(url), **options)
    try:
        yield bus
    finally:
        await bus.close()


async def test_what_others_have_settled_meanwhile_is_handed_to_nobody(place: BusPlace) -> None:
    url = url_of(place)
    async with opened(url) as other:
        elsewhere = await other.subscribe(">", "group", handling_s=600.0)
        async with standing(url, 2.0) as stopped:
            await other.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
            await stopped.stands()
            # Its time is over, and the event another's.
            delivery = await elsewhere.next()
            assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 2, True)
            assert await elsewhere.settle(delivery, Verdict.SUCCESS)
            stopped.goes_on()
            assert await stopped.handles() == "b 1 False True"


async def test_what_was_handed_over_before_is_settled_no_more(place: BusPlace) -> None:
    url = url_of(place)
    async with opened(url) as other:
        elsewhere = await other.subscribe(">", "group", handling_s=600.0)
        async with standing(url, 2.0, "handed") as stopped:
            await other.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
            await stopped.stands()
            delivery = await elsewhere.next()
            assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 2, True)
            assert await elsewhere.settle(delivery, Verdict.SUCCESS)
            stopped.goes_on()
            assert await stopped.handles() == "a 1 False False False False"
            assert await stopped.handles() == "b 1 False True"


async def test_what_nobody_else_has_taken_keeps_its_attempt(place: BusPlace) -> None:
    url = url_of(place)
    async with opened(url) as other, standing(url, 0.5) as stopped:
        apart = await other.subscribe(">", "apart", handling_s=0.5)
        await other.publish([event(id="a")])
        await stopped.stands()
        # What is taken now is over later.
        assert [(await apart.next()).attempt for _ in range(2)] == [1, 2]
        stopped.goes_on()
        assert await stopped.handles() == "a 1 False True"


@pytest.mark.parametrize("place", ["nats", "rabbitmq"], indirect=True)
async def test_what_others_were_given_since_its_connection_was_gone_is_handed_to_nobody(place: BusPlace) -> None:
    # Long before its handling time is over: these engines tell others of a connection that is gone.
    is_nats = isinstance(place, Nats)
    options = {"absent_s" if is_nats else "gone_s": 0.2}
    async with line_to(NATS if is_nats else RABBITMQ) as line, opened(url_of(place), **options) as other:
        elsewhere = await other.subscribe(">", "group", handling_s=600.0)
        async with standing(url_of(place, line.address), 600.0, **options) as stopped:
            await other.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
            await stopped.stands()
            line.cut()
            delivery = await elsewhere.next()
            assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 2, True)
            assert await elsewhere.settle(delivery, Verdict.SUCCESS)
            await line.mend()
            stopped.goes_on()
            assert await stopped.handles() == "b 1 False True"


@pytest.mark.parametrize("is_waited_for", [False, True])
@pytest.mark.parametrize("place", BUS_PLACES, indirect=True)
async def test_a_subscriber_knows_what_it_holds(place: BusPlace, is_waited_for: bool) -> None:
    bus = place.open()
    one, other = [await bus.subscribe(">", "group", handling_s=60.0) for _ in range(2)]
    waiting = asyncio.ensure_future(one.next())
    if is_waited_for:
        await quiet(bus)
    await bus.publish([event(id="a")])
    delivery = await waiting
    # Longer than any engine takes to find a sidecar gone: those that do are asked.
    place.clock.move(6.0)
    assert await one.holds(delivery)
    assert one.is_sure(delivery)
    assert not await other.holds(delivery)
    assert not other.is_sure(delivery)
    # Too little is left: nobody has seen it.
    place.clock.move(50.0)
    assert not one.is_sure(delivery)
    assert not await one.holds(delivery)
    assert not await one.holds(delivery)
    again = await other.next()
    assert (again.event.id, again.attempt, again.may_have_been_handled) == ("a", 1, False)
    assert await other.settle(again, Verdict.SUCCESS)
    assert not await other.holds(again)
    await bus.close()
