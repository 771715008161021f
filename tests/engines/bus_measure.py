"""What a bus costs: `python -m tests.engines.bus_measure [ENGINE...]`. Prints latencies and events a second.

`publish` is the time from asking to the acknowledgement; `hand over` from publishing to the event in the hands of a
subscriber that waits, `to another` where that is at another sidecar, or comes by another connection of the client
library; `round` all of one event: publish, take, settle.
Payloads are 200 bytes. Those on a server get one that this starts; below each of their rows stands what the client
library alone does on that server, in turns with it: it publishes, takes and acknowledges, and does nothing else of what
a bus promises. `of it` is what part of that meshd does, in events a second, or in how fast one is handed over, beside
the goal. Where the library (`pip install redis nats-py aiormq`) is not installed, it is absent. `kafka mock` is no
Kafka: librdkafka's mock cluster in a process of its own, which writes nothing to a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from meshd.engines.bus_port import Bus, Event, Verdict
from meshd.engines.bus_table import open_bus
from tests.engines.kafka_mock import MockProcess
from tests.engines.servers import RabbitServer, Server, nats_server, redis_server, running

EMBEDDED = {"memory": "memory:", "sqlite fast": "sqlite:", "sqlite durable": "sqlite:?mode=durable"}
MANY = 64
SECONDS = 2.0
TURNS = 40
"""In so many turns are two measured that are compared: the machine is as busy for the one as for the other."""
DATA = b"x" * 200
BATCH = 100
GOAL = 0.7
"""Of what the client library alone does."""

Ask = Callable[[], Awaitable[object]]


class Row(NamedTuple):
    """What is done, by how many at once, with how many events at a time."""

    operation: str
    callers: int
    ask: Ask
    """Where it returns a number, so many seconds it took, and the rest of it does not count."""
    events: int = 1


def rows(publish: Ask, batch: Ask, hand_over: Ask, to_another: Ask | None, round_: Ask, many_rounds: Ask) -> list[Row]:
    """Return what is measured, in the same order of a bus and of a client library."""
    return [
        Row("publish", 1, publish),
        Row("publish", MANY, publish),
        Row(f"publish {BATCH}", 1, batch, BATCH),
        Row("hand over", 1, hand_over),
        *([Row("to another", 1, to_another)] if to_another is not None else []),
        Row("round", 1, round_),
        Row("round", MANY, many_rounds),
    ]


async def handed_over(waiting: asyncio.Future[Any], publish: Ask) -> float:
    """Publish when a subscriber waits; return after how many seconds it has the event."""
    await asyncio.sleep(0.001)  # so that a server knows of it
    began_s = time.perf_counter()
    await publish()
    await waiting
    return time.perf_counter() - began_s


# Of a bus.


async def bus_rows(bus: Bus, other: Bus | None = None) -> list[Row]:
    """Return the rows of a bus; `other` is it at another sidecar."""
    one = await bus.subscribe("task.*", "group")
    batch = [Event("other", "me", data=DATA)] * BATCH

    async def hand_over(publisher: Bus) -> float:
        waiting = asyncio.ensure_future(one.next())
        took_s = await handed_over(waiting, lambda: publisher.publish([Event("task.done", "me", data=DATA)]))
        await one.settle(waiting.result(), Verdict.SUCCESS)
        return took_s

    async def round_() -> None:
        await bus.publish([Event("task.done", "me", data=DATA)])
        await one.settle(await one.next(), Verdict.SUCCESS)

    return rows(
        lambda: bus.publish([Event("other", "me", data=DATA)]),
        lambda: bus.publish(batch),
        lambda: hand_over(bus),
        None if other is None else lambda: hand_over(other),
        round_,
        round_,
    )


# Of client libraries.


@contextlib.asynccontextmanager
async def redis_py(address: str) -> AsyncIterator[list[Row]]:
    """Yield the rows of redis-py: XADD, XREADGROUP and XACK."""
    client = importlib.import_module("redis.asyncio").Redis.from_url(f"redis://{address}/0")
    fields = {"topic": "task.done", "source": "me", "data": DATA}

    async def batch() -> None:
        pipeline = client.pipeline(transaction=False)
        for _ in range(BATCH):
            pipeline.xadd("other", fields)
        await pipeline.execute()

    async def take(**options: int) -> Any:
        ((_, entries),) = await client.xreadgroup("group", "me", {"events": ">"}, count=1, **options)
        return entries[0][0]

    async def hand_over() -> float:
        waiting = asyncio.ensure_future(take(block=5000))
        took_s = await handed_over(waiting, lambda: client.xadd("events", fields))
        await client.xack("events", "group", waiting.result())
        return took_s

    async def round_() -> None:
        await client.xadd("events", fields)
        await client.xack("events", "group", await take())

    await client.xgroup_create("events", "group", mkstream=True)
    # To hand over is to another: a command that waits holds one connection, and what is published goes by another.
    yield rows(lambda: client.xadd("other", fields), batch, hand_over, hand_over, round_, round_)
    await client.aclose()


@contextlib.asynccontextmanager
async def nats_py(address: str) -> AsyncIterator[list[Row]]:
    """Yield the rows of nats-py: a stream, pull consumers, and acknowledgements that are confirmed."""
    connect = importlib.import_module("nats").connect
    client, other = [await connect(f"nats://{address}") for _ in range(2)]
    stream, at_other = client.jetstream(), other.jetstream()
    await stream.add_stream(name="bare", subjects=["bare.>"])
    one = await stream.pull_subscribe("bare.task", "one")
    rounds: dict[bytes, asyncio.Future[None]] = {}
    pulling = asyncio.ensure_future(_pull(await stream.pull_subscribe("bare.many", "many"), rounds))
    counter = itertools.count()

    async def batch() -> None:
        await asyncio.gather(*(stream.publish("bare.other", DATA) for _ in range(BATCH)))

    async def hand_over(publisher: Any) -> float:
        waiting = asyncio.ensure_future(one.fetch(1))
        took_s = await handed_over(waiting, lambda: publisher.publish("bare.task", DATA))
        await waiting.result()[0].ack_sync()
        return took_s

    async def round_() -> None:
        await stream.publish("bare.task", DATA)
        for message in await one.fetch(1):
            await message.ack_sync()

    async def many_rounds() -> None:
        number = b"%08d" % next(counter)
        done = rounds[number] = asyncio.get_running_loop().create_future()
        await stream.publish("bare.many", number + DATA[8:])
        await done

    publish = functools.partial(stream.publish, "bare.other", DATA)
    here, there = functools.partial(hand_over, stream), functools.partial(hand_over, at_other)
    yield rows(publish, batch, here, there, round_, many_rounds)
    pulling.cancel()
    await asyncio.gather(pulling, return_exceptions=True)
    await asyncio.gather(client.close(), other.close())


@contextlib.asynccontextmanager
async def aiormq_alone(address: str) -> AsyncIterator[list[Row]]:
    """Yield the rows of aiormq: a quorum queue, confirmed publishing, and acknowledgements, which have no answer."""
    aiormq = importlib.import_module("aiormq")
    connection = await aiormq.connect(f"amqp://{address}/")
    channel = await connection.channel(publisher_confirms=True)
    received: asyncio.Queue[Any] = asyncio.Queue()

    async def publish(queue: str) -> None:
        await channel.basic_publish(DATA, routing_key=queue, properties=aiormq.spec.Basic.Properties(delivery_mode=2))

    async def batch() -> None:
        await asyncio.gather(*(publish("other") for _ in range(BATCH)))

    async def acknowledge() -> None:
        message = await received.get()
        await channel.basic_ack(message.delivery.delivery_tag, wait=False)

    async def hand_over() -> float:
        return await handed_over(asyncio.ensure_future(acknowledge()), lambda: publish("task"))

    async def round_() -> None:
        await publish("task")
        await acknowledge()

    for queue in ("other", "task"):
        await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    await channel.basic_qos(prefetch_count=100)
    await channel.basic_consume("task", received.put)
    yield rows(lambda: publish("other"), batch, hand_over, hand_over, round_, round_)
    await connection.close()


@contextlib.asynccontextmanager
async def confluent_alone(address: str) -> AsyncIterator[list[Row]]:
    """Yield the rows of confluent-kafka: an idempotent producer, a consumer, and a commit for each event."""
    kafka = importlib.import_module("confluent_kafka")
    servers = {"bootstrap.servers": address}
    producer = kafka.Producer({**servers, "enable.idempotence": True, "linger.ms": 0})
    consumer = kafka.Consumer({**servers, "group.id": "one", "enable.auto.commit": False, "fetch.wait.max.ms": 10})
    consumer.assign([kafka.TopicPartition("task", 0, 0)])

    async def publish(topic: str, many: int = 1) -> None:
        for _ in range(many):
            producer.produce(topic, value=DATA, partition=0)
        await asyncio.sleep(0)  # so that all who ask now share a flush, which waits on the loop's own thread
        producer.flush()

    async def acknowledge() -> None:
        while (message := await asyncio.to_thread(consumer.poll, 1.0)) is None or message.error() is not None:
            pass
        consumer.commit(message, asynchronous=False)

    async def hand_over() -> float:
        return await handed_over(asyncio.ensure_future(acknowledge()), lambda: publish("task"))

    async def round_() -> None:
        await publish("task")
        await acknowledge()

    yield rows(lambda: publish("other"), lambda: publish("other", BATCH), hand_over, hand_over, round_, round_)
    await asyncio.to_thread(consumer.close)


async def _pull(many: Any, rounds: dict[bytes, asyncio.Future[None]]) -> None:
    """Fetch and acknowledge as many as there are, for all that wait: `fetch` takes no two callers."""

    async def acknowledge(message: Any) -> None:
        await message.ack_sync()
        rounds.pop(message.data[:8]).set_result(None)

    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.gather(*map(acknowledge, await many.fetch(MANY, timeout=1)))


# Measuring.


async def timed(ask: Ask, callers: int, seconds: float) -> list[float]:
    """Return how long each operation took, in seconds, of `callers` that ask one after the other."""
    took: list[float] = []
    ends_s = time.perf_counter() + seconds

    async def call() -> None:
        while (began_s := time.perf_counter()) < ends_s:
            told = await ask()
            took.append(told if isinstance(told, float) else time.perf_counter() - began_s)

    await asyncio.gather(*(call() for _ in range(callers)))
    return took


def show(label: str, row: Row, took: list[float], more: str = "") -> None:
    """Print one row."""
    took.sort()
    p50, p99 = took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6
    # Between two that are handed over there are pauses.
    rate = "" if _is_time(row) else f"{len(took) * row.events / SECONDS:,.0f}"
    print(f"{label:<16}{row.operation:<16}{row.callers:>8}{rate:>12}{p50:>10,.0f}{p99:>10,.0f}{more}", flush=True)


def _is_time(row: Row) -> bool:
    return row.operation in ("hand over", "to another")


def part(row: Row, took: list[float], bare: list[float]) -> float:
    """Return what part of `bare` is done: in events, or by the median time of one."""
    if not _is_time(row):
        return len(took) / len(bare)
    return sorted(bare)[len(bare) // 2] / sorted(took)[len(took) // 2]


async def measure(label: str, of_bus: list[Row], library: str = "", of_library: list[Row] | None = None) -> None:
    """Print the rows of a bus, and below each that of its client library, measured in turns."""
    for row, bare in itertools.zip_longest(of_bus, of_library or []):
        took, bare_took = list[float](), list[float]()
        for _ in range(TURNS):
            took += await timed(row.ask, row.callers, SECONDS / TURNS)
            if bare is not None:
                bare_took += await timed(bare.ask, bare.callers, SECONDS / TURNS)
        if bare is None:
            show(label, row, took, f"{'absent':>8}" if library else "")
        else:
            show(label, row, took, f"{part(row, took, bare_took):>8.2f}{GOAL:>8.2f}")
            show(f"  {library}", bare, bare_took)


class Served(NamedTuple):
    """A bus on a server, and the client library that it is compared with."""

    start: Callable[[Path], Server]
    url: str
    library: str
    bare: Callable[[str], contextlib.AbstractAsyncContextManager[list[Row]]]


SYNCED = ("--appendonly", "yes", "--appendfsync", "always")
# An engine on a server gets its line here.
SERVED = {
    "redis": Served(redis_server, "redis://{}/0?timeout=10", "redis-py", redis_py),
    "redis synced": Served(lambda path: redis_server(path, *SYNCED), "redis://{}/0?timeout=10", "redis-py", redis_py),
    "nats": Served(nats_server, "nats://{}?timeout=10", "nats-py", nats_py),
    "rabbitmq": Served(RabbitServer, "amqp://{}?timeout=30&connect_timeout=20", "aiormq", aiormq_alone),
    "kafka mock": Served(MockProcess, "kafka://{}?timeout=30&fetch_wait=0.01", "confluent", confluent_alone),
}


async def measure_served(label: str, served: Served, home: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(served.start(home / "server")))
        bus, other = [await open_bus(served.url.format(server.address), home) for _ in range(2)]
        for one in (bus, other):
            stack.push_async_callback(one.close)
        of_library = None
        with contextlib.suppress(ModuleNotFoundError):
            of_library = await stack.enter_async_context(served.bare(server.address))
        await measure(label, await bus_rows(bus, other), served.library, of_library)


async def main(arguments: list[str]) -> None:
    print(
        f"{'bus':<16}{'':<16}{'callers':>8}{'events/s':>12}{'p50 us':>10}{'p99 us':>10}{'of it':>8}{'goal':>8}",
        flush=True,
    )
    for label in [*EMBEDDED, *SERVED]:
        if arguments and label.split()[0] not in arguments:
            continue
        with tempfile.TemporaryDirectory() as name:
            if label in SERVED:
                await measure_served(label, SERVED[label], Path(name))
            else:
                bus = await open_bus(EMBEDDED[label], Path(name))
                await measure(label, await bus_rows(bus))
                await bus.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
