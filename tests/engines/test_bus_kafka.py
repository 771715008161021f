"""The bus on Kafka, against librdkafka's mock cluster: brokers that go and come, sidecars that die, foreign records.

What the mock cannot show (tests.engines.kafka_mock) is not tested.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from meshd.engines.bus_kafka import KafkaBus
from meshd.engines.bus_kafka_journal import Begin, Join, Journal, SetBack
from meshd.engines.bus_kafka_log import Log
from meshd.engines.bus_kafka_server import Names, _promise
from meshd.engines.bus_kafka_wire import Record
from meshd.engines.bus_port import Delivery, EventMalformed, Start, Subscription, Verdict
from meshd.engines.bus_table import LateBus, open_bus
from meshd.engines.bus_terms import Terms
from meshd.engines.port import (
    Ability,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreNewer,
    StoreUnable,
)
from meshd.engines.url import StoreUrl
from tests.engines.buses import DAY_S, START_S, TERMS, Hands, event, fail, handle, is_waiting, quiet, take
from tests.engines.kafka_mock import PRODUCE, MockCluster
from tests.engines.places import until_it_fails
from tests.ports import free_port


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    one = MockCluster()
    one.make("meshd.events", 1)
    yield one
    one.close()


async def opened(
    cluster: MockCluster, options: str = "", *, clock: Hands | None = None, terms: Terms = TERMS
) -> KafkaBus:
    url = StoreUrl(f"kafka://{cluster.address}?fetch_wait=0.01&connect_timeout=10{options}")
    bus = await KafkaBus.open(url, terms=terms, clock=clock)
    while bus._log._newest[0] < -1:  # until the first snapshot is written, and nothing else is on its way
        await asyncio.sleep(0)
    return bus


@pytest.fixture
async def bus(cluster: MockCluster) -> AsyncIterator[KafkaBus]:
    one = await opened(cluster)
    yield one
    await one.close()


async def put(cluster: MockCluster, topic: str, value: bytes, **more: object) -> int:
    """Write a record as any other program does; return its offset."""
    producer = confluent_kafka.Producer({"bootstrap.servers": cluster.address})
    offsets: list[int] = []
    producer.produce(
        topic, value=value, partition=0, on_delivery=lambda _, message: offsets.append(message.offset()), **more
    )
    await asyncio.to_thread(producer.flush, 10)
    return offsets[0]


async def test_what_it_says_of_itself(bus: KafkaBus) -> None:
    assert (bus.name, bus.abilities) == ("kafka", {Ability.SHARED, Ability.REPLAYS})
    assert "does not tell" in bus.caution


@pytest.mark.parametrize("partitions", [3, 8])
async def test_events_over_several_partitions_keep_their_order_by_key(cluster: MockCluster, partitions: int) -> None:
    cluster.make("many.events", partitions)
    buses = [await opened(cluster, "&prefix=many") for _ in range(2)]
    for number in range(60):
        await buses[number % 2].publish([event(id=str(number), partition_key=f"k{number % 7}")])
    subscribers = [await bus.subscribe(">", "group", starts_at_oldest=True) for bus in buses]
    handled: list[str] = []
    everything = asyncio.Event()

    async def work(number: int) -> None:
        while True:
            one = subscribers[number % 2]
            delivery = await one.next()
            handled.append(delivery.event.id)
            assert await one.settle(delivery, Verdict.SUCCESS)
            if len(handled) == 60:
                everything.set()

    workers = [asyncio.ensure_future(work(number)) for number in range(6)]
    await everything.wait()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert sorted(map(int, handled)) == list(range(60))
    for key in range(7):
        of_key = [int(id) for id in handled if int(id) % 7 == key]
        assert of_key == sorted(of_key)
    again = await buses[0].publish([event(id="7", partition_key="k0")])
    assert again[0].is_duplicate
    for bus in buses:
        await bus.close()


async def test_what_is_kept_in_several_partitions_has_no_one_order_to_replay(cluster: MockCluster) -> None:
    cluster.make("many.events", 3)
    bus = await opened(cluster, "&prefix=many")
    assert bus.abilities == {Ability.SHARED}
    for asked in (bus.subscribe(">", "late", start=Start(at_s=1.0)), bus.kept(">"), bus.topics()):
        with pytest.raises(StoreUnable, match="cannot begin a group at a moment"):
            await asked
    await bus.close()


async def test_what_is_replayed_is_read_again_where_it_is_held_no_more(cluster: MockCluster) -> None:
    clock = Hands()
    bus = await opened(cluster, clock=clock)
    for number in range(6):
        await bus.publish([event(id=str(number), data=b"x" * number)])
        clock.move(1.0)
    await bus.close()
    bus = await opened(cluster, clock=clock)
    bus._log.index._data.clear()
    one = await bus.subscribe(">", "late", start=Start(at_s=START_S + 1.5))
    found = await take(one, 4)
    assert [(each.event.id, len(each.event.data)) for each in found] == [
        (str(number), number) for number in (2, 3, 4, 5)
    ]
    bus._log.index._data.clear()
    cluster.remove("meshd.events", 3)  # what Kafka has let go of is passed over
    assert [one.id for one in await bus.kept(">")] == ["3", "4", "5"]
    await bus.close()


async def test_what_was_gone_before_a_group_began_is_no_loss_of_it(cluster: MockCluster) -> None:
    clock = Hands()
    bus = await opened(cluster, clock=clock)
    await bus.subscribe(">", "early")
    await bus.publish([event(id="a"), event(id="b")])
    clock.move(8 * DAY_S)
    await quiet(bus)
    await bus.subscribe(">", "late", starts_at_oldest=True)
    await bus.close()
    # Which reads both again.
    bus = await opened(cluster, clock=clock)
    assert [(one.group, one.expired) for one in await bus.positions()] == [("early", 2), ("late", 0)]
    await bus.close()


async def test_an_id_is_known_for_as_long_as_events_are_kept_and_no_longer(cluster: MockCluster) -> None:
    clock = Hands()
    bus = await opened(cluster, clock=clock)
    one = await bus.subscribe(">", "group", handling_s=7 * DAY_S)
    await bus.publish([event(id="a")])
    clock.move(6 * DAY_S)
    first = await one.next()
    assert [done.is_duplicate for done in await bus.publish([event(id="a")])] == [True]
    clock.move(2 * DAY_S)
    await quiet(bus)
    assert [(at.under_way, at.waiting) for at in await bus.positions()] == [(1, 0)]
    # Which sidecar has come how far with what groups have done is no matter: all know the same ids.
    assert [done.is_duplicate for done in await bus.publish([event(id="a")])] == [False]
    assert await one.settle(first, Verdict.SUCCESS)
    assert (await one.next()).event.id == "a"
    await bus.close()


async def test_two_sidecars_publish_the_same_at_the_same_time(cluster: MockCluster) -> None:
    buses = [await opened(cluster) for _ in range(2)]
    one = await buses[0].subscribe(">", "group")
    cluster.slow(20)  # so that neither has heard of the other's
    done = await asyncio.gather(*(bus.publish([event(id=str(n)) for n in range(5)]) for bus in buses))
    cluster.slow(0)
    assert sorted(each.is_duplicate for each in done[0] + done[1]) == [False] * 5 + [True] * 5
    assert [each.sequence for each in done[0]] == [each.sequence for each in done[1]]
    assert await handle(one, 5) == list("01234")
    assert await is_waiting(buses[0], one)
    for bus in buses:
        await bus.close()


async def test_who_publishes_the_same_as_one_that_is_cancelled_is_answered(cluster: MockCluster, bus: KafkaBus) -> None:
    cluster.slow(100)
    one, other = (asyncio.ensure_future(bus.publish([event(id="a")])) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    assert [done.is_duplicate for done in await other] == [True]
    assert [one.id for one in await bus.kept(">")] == ["a"]


class Failing:
    """A consumer that fails once, when it has read a record."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._has_record = self.has_failed = False

    def poll(self, timeout: float) -> Any:
        message = self._consumer.poll(timeout)
        self._has_record = message is not None and message.error() is None
        return message

    def consume(self, *arguments: Any) -> Any:
        if self._has_record and not self.has_failed:
            self.has_failed = True
            raise confluent_kafka.KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._FAIL))
        return self._consumer.consume(*arguments)

    def close(self) -> None:
        self._consumer.close()


async def test_what_was_read_before_reading_failed_is_looked_at(cluster: MockCluster, bus: KafkaBus) -> None:
    one = await bus.subscribe(">", "group")
    failing = bus._log.tail._consumer = Failing(bus._log.tail._consumer)  # type: ignore[assignment]
    other = await opened(cluster)
    await other.publish([event(id="a")])
    await other.publish([event(id="b")])
    assert await handle(one, 2) == ["a", "b"]
    assert failing.has_failed
    await other.close()


async def test_while_the_brokers_are_away_and_after(cluster: MockCluster) -> None:
    bus = await opened(cluster, "&timeout=1")
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
    delivery = await one.next()
    waiting = asyncio.ensure_future(one.next())
    await quiet(bus)
    cluster.set_up(is_up=False)
    with pytest.raises(StoreError, match="does not answer"):
        await bus.publish([event(id="refused")])
    with pytest.raises(StoreError, match="does not answer"):
        await one.settle(delivery, Verdict.SUCCESS)
    assert not waiting.done()
    cluster.set_up(is_up=True)
    # The verdict is said again by itself, and the next of its key is free.
    assert (await waiting).event.id == "b"
    async with asyncio.timeout(30):
        while True:
            try:
                await bus.publish([event(id="refused")])
                break
            except StoreError:
                await asyncio.sleep(0.05)
    assert await handle(one, 1) == ["refused"]
    await bus.close()


async def test_what_came_while_this_process_stood_still_came_in_time(cluster: MockCluster) -> None:
    bus = await opened(cluster, "&timeout=2")
    joined = asyncio.ensure_future(bus.subscribe(">", "group"))
    while not bus._log._asked:
        await asyncio.sleep(0)
    time.sleep(3)  # as in a container that is frozen
    one = await joined
    await bus.publish([event(id="a")])
    assert await handle(one, 1) == ["a"]
    await bus.close()


async def test_what_was_begun_and_not_heard_of_is_given_back(cluster: MockCluster) -> None:
    bus = await opened(cluster, "&timeout=1")
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a")])
    cluster.set_up(is_up=False)
    with pytest.raises(StoreError):
        await one.next()
    cluster.set_up(is_up=True)
    delivery = None
    async with asyncio.timeout(30):
        while delivery is None:
            try:
                delivery = await one.next()
            except StoreError:
                await asyncio.sleep(0.05)
    assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 1, False)
    await bus.close()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED, StoreUnable, "does not let this user"),
        (confluent_kafka.KafkaError.CLUSTER_AUTHORIZATION_FAILED, StoreUnable, "does not let this user"),
        (confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE, EventMalformed, "max.message.bytes"),
    ],
)
async def test_what_a_broker_refuses(
    cluster: MockCluster, bus: KafkaBus, code: int, kind: type[Exception], words: str
) -> None:
    await bus.publish([event()])
    cluster.refuse(PRODUCE, code)
    with pytest.raises(kind, match=words):
        await bus.publish([event(id="a")])


async def test_too_few_replicas_are_waited_for(cluster: MockCluster, bus: KafkaBus) -> None:
    cluster.refuse(PRODUCE, *[confluent_kafka.KafkaError.NOT_ENOUGH_REPLICAS] * 2)
    assert not (await bus.publish([event()]))[0].is_duplicate


DYING = """
import asyncio, sys
from meshd.engines.bus_kafka import KafkaBus
from meshd.engines.bus_port import Verdict
from meshd.engines.url import StoreUrl

async def main():
    bus = await KafkaBus.open(StoreUrl(sys.argv[1]))
    one = await bus.subscribe(">", "group", starts_at_oldest=True, handling_s=3.0)
    while True:
        delivery = await one.next()
        print("begun", delivery.event.id, flush=True)
        if int(delivery.event.id) % 5 != 3:
            await one.settle(delivery, Verdict.SUCCESS)
            print("settled", delivery.event.id, flush=True)

asyncio.run(main())
"""


async def test_a_killed_sidecar_s_acknowledged_events_never_come_back(cluster: MockCluster, bus: KafkaBus) -> None:
    await bus.publish([event(id=str(number)) for number in range(200)])
    command = [sys.executable, "-c", DYING, f"kafka://{cluster.address}?fetch_wait=0.01"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said: list[tuple[str, str]] = []
    while len(said) < 150:
        kind, id = (await process.stdout.readline()).decode().split()
        said.append((kind, id))
    process.send_signal(signal.SIGKILL)
    said += [tuple(line.decode().split()) for line in (await process.stdout.read()).splitlines()]  # type: ignore[misc]
    await process.wait()
    settled = {id for kind, id in said if kind == "settled"}
    begun = {id for kind, id in said if kind == "begun"}
    assert settled
    assert begun - settled
    # It may have been killed when it had settled one, or begun one, and not said so yet.
    unsure = {said[-1][1]} if said[-1][0] == "begun" else set()
    one = await bus.subscribe(">", "group")
    ids: list[str] = []
    marked: set[str] = set()
    # What it was at goes to others when its time is over.
    async with asyncio.timeout(60):
        while {str(number) for number in range(200)} - settled - unsure - set(ids):
            delivery = await one.next()
            ids.append(delivery.event.id)
            if delivery.may_have_been_handled:
                marked.add(delivery.event.id)
    assert len(marked - (begun - settled)) <= 1
    assert len(ids) == len(set(ids))
    assert not settled & set(ids)


async def test_records_of_another_program_harm_nobody(cluster: MockCluster, bus: KafkaBus) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a")])
    for value, headers in ((b"hello", []), (b"", [("meshd", b"\xff")]), (b"x", [("ce_id", b"1"), ("meshd", b"\x93")])):
        await put(cluster, "meshd.events", value, headers=headers)
    await put(cluster, "meshd.snapshots", b"hello")
    await put(cluster, "meshd.snapshots", b"hello", key=b"0:0", headers=[("part", b"9:0:1")])
    await bus.publish([event(id="b")])
    assert await handle(one, 2) == ["a", "b"]
    assert await is_waiting(bus, one)
    await bus.close()
    again = await opened(cluster)
    assert await is_waiting(again, await again.subscribe(">", "group"))
    await again.close()


@pytest.mark.parametrize(("value", "kind"), [(b"hello", StoreCorrupt), (b"\x92\x63\x91\xa1x", StoreNewer)])
async def test_a_command_that_is_not_ours_stops_the_bus(
    cluster: MockCluster, bus: KafkaBus, value: bytes, kind: type[StoreError]
) -> None:
    one = await bus.subscribe(">", "group")
    await put(cluster, "meshd.groups", value)
    with pytest.raises(kind):
        await until_it_fails(lambda: bus.publish([event()]))
    with pytest.raises(kind):
        await one.next()
    with pytest.raises(kind):
        await opened(cluster)


async def test_snapshots_carry_on_where_commands_are_gone(cluster: MockCluster) -> None:
    clock = Hands()
    terms = TERMS._replace(attempts_max=2)
    bus = await opened(cluster, clock=clock, terms=terms)
    bus._log.snapshot_bytes = 10_000
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="dead"), event(id="held", partition_key="k"), event(id="next", partition_key="k")])
    await fail(one, clock, (1, 2), reason="x" * 1000)
    await one.next()
    await bus.subscribe("other.>", "other")
    for number in range(20):
        await bus.publish([event("more", id=f"{number}/{each}") for each in range(30)])
        await handle(one, 30)
    cluster.remove("meshd.groups", bus._log._newest[0] - 5)
    assert bus._log._newest[0] > 100
    (letter,) = await bus.dead_letters("group")
    assert letter.reason == "x" * 1000
    before = await bus.positions()
    await bus.close()
    bus = await opened(cluster, clock=clock, terms=terms)
    after = await bus.positions()
    assert [each._replace(under_way=0, waiting=0) for each in after] == [
        each._replace(under_way=0, waiting=0) for each in before
    ]
    one = await bus.subscribe(">", "group")
    assert [(each.event.id, each.attempt) for each in await take(one, 1)] == [("held", 2)]
    assert await is_waiting(bus, one)
    (letter,) = await bus.dead_letters("group")
    assert letter.event.id == "dead"
    await bus.close()


async def test_dead_letters_stand_in_a_topic_that_others_can_read(cluster: MockCluster) -> None:
    clock = Hands()
    bus = await opened(cluster, clock=clock)
    one = await bus.subscribe("task.*", "group")
    await bus.publish([event(id="a", data=b"data")])
    await fail(one, clock, range(1, 9), reason="no")
    await quiet(bus)
    await bus.close()  # which waits for what is on its way
    consumer = confluent_kafka.Consumer({"bootstrap.servers": cluster.address, "group.id": "x"})
    consumer.assign([confluent_kafka.TopicPartition("meshd.dead", 0, 0)])
    message = await asyncio.to_thread(consumer.poll, 20)
    headers = dict(message.headers())
    assert (message.value(), message.key()) == (b"data", b"group")
    assert (headers["group"], headers["topic"], headers["attempts"], headers["reason"]) == (
        b"group", b"task.*", b"8", b"no",
    )  # fmt: skip
    assert (headers["ce_specversion"], headers["ce_id"], headers["ce_source"]) == (b"1.0", b"a", b"me")
    consumer.close()


async def test_what_is_too_large_is_refused_before_it_is_sent(cluster: MockCluster, bus: KafkaBus) -> None:
    await bus.publish([event(id="large", data=bytes(2**20))])
    with pytest.raises(EventMalformed, match="data"):
        await bus.publish([event(data=bytes(100_000_000))])
    many = {f"a{number}": "x" * 4096 for number in range(64)}
    bus._log.record_bytes = 200_000  # as a topic may say
    with pytest.raises(EventMalformed, match=r"max\.message\.bytes"):
        await bus.publish([event(), event(extensions=many)])
    with pytest.raises(StoreUnable, match="10001 events"):
        await bus.publish([event() for _ in range(10_001)])
    assert (await bus.publish([event(id="other")]))[0].sequence.endswith("2")


async def test_topics_that_are_not_what_they_were(cluster: MockCluster) -> None:
    bus = await opened(cluster)
    one = await bus.subscribe(">", "group")
    await bus.publish([event()])
    await handle(one, 1)
    bus._log._write_snapshot()
    while bus._log._newest[0] < 1:
        await asyncio.sleep(0)
    cluster.make("anew.events", 1)
    taken: list[bytes] = []
    consumer = confluent_kafka.Consumer({"bootstrap.servers": cluster.address, "group.id": "x"})
    consumer.assign([confluent_kafka.TopicPartition("meshd.snapshots", 0, 0)])
    messages = await asyncio.to_thread(consumer.consume, 2, 20)
    for message in messages:
        await put(cluster, "anew.snapshots", message.value(), key=message.key(), headers=message.headers())
        taken.append(message.value())
    assert len(taken) == 2
    consumer.close()
    # A snapshot of a journal that is gone.
    with pytest.raises(StoreCorrupt, match=r"remove anew\.snapshots"):
        await opened(cluster, "&prefix=anew")
    cluster.make("more.events", 2)
    await put(cluster, "more.snapshots", taken[0], key=messages[0].key(), headers=messages[0].headers())
    with pytest.raises(StoreUnable, match="had 1 partitions and have 2"):
        await opened(cluster, "&prefix=more")
    # One that forgets while it is used.
    bus._log.journal.as_of += 10
    with pytest.raises(StoreCorrupt, match="have lost"):
        await bus.positions()
    with pytest.raises(StoreCorrupt):
        await bus.publish([event()])
    await bus.close()


async def test_a_producer_that_cannot_go_on_is_followed_by_another(cluster: MockCluster, bus: KafkaBus) -> None:
    await bus.publish([event()])
    before = bus._log.events._producer

    async def publish() -> None:
        cluster.refuse(PRODUCE, confluent_kafka.KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
        await bus.publish([event()])

    with pytest.raises(StoreError):
        await until_it_fails(publish)
    async with asyncio.timeout(30):
        while bus._log.events._producer is before:
            await asyncio.sleep(0.01)
    await bus.publish([event(id="after")])


async def test_brokers_that_are_away_at_start(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        await open_bus(f"kafka://127.0.0.1:{free_port()}?connect_timeout=0.3", tmp_path)
    late = LateBus(f"kafka://127.0.0.1:{free_port()}?connect_timeout=0.3", tmp_path)
    for _ in range(2):
        with pytest.raises(StoreError, match="does not answer"):
            await late.publish([event()])
    await late.close()


async def test_signing_in_where_the_broker_does_not_let_anybody(cluster: MockCluster) -> None:
    for user in ("user:canary@", "canary:@"):
        url = StoreUrl(f"kafka://{user}{cluster.address}?connect_timeout=1&sasl=plain")
        with pytest.raises(StoreError) as told:
            await KafkaBus.open(url)
        assert "canary" not in str(told.value)
    with pytest.raises(StoreError):
        await KafkaBus.open(StoreUrl(f"kafka+tls://{cluster.address}?connect_timeout=1"))
    with pytest.raises(StoreError, match="password_file=/nonexistent"):
        await KafkaBus.open(StoreUrl(f"kafka://user@{cluster.address}?password_file=/nonexistent"))


GOOD = {
    "cleanup.policy": "delete", "retention.ms": str(10**10), "retention.bytes": "-1", "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false", "max.message.bytes": "2097152",
}  # fmt: skip


def promised(replicas: int = 3, **changed: str) -> tuple[bool, str]:
    """What is made of what a cluster tells, which the mock does not."""
    names = Names.of("meshd")
    configs = {name: dict(GOOD) for name in names}
    configs[names.snapshots]["cleanup.policy"] = "compact"
    configs[names.events] |= {name.replace("_", "."): text for name, text in changed.items()}
    promise = _promise(names, Terms(), 1, replicas, configs, "here")
    return promise.is_durable, promise.caution


def test_what_a_cluster_promises() -> None:
    assert promised() == (True, "")
    assert promised(1) == (False, "its topics have one replica")
    assert promised(min_insync_replicas="1") == (False, "min.insync.replicas is 1")
    assert promised(unclean_leader_election_enable="true") == (False, "unclean.leader.election.enable is true")
    assert "retention.bytes" in promised(retention_bytes="1000")[1]
    assert promised(retention_ms="-1") == (True, "")
    for changed in ({"cleanup_policy": "compact"}, {"cleanup_policy": "compact,delete"}, {"retention_ms": "1000"}):
        with pytest.raises(StoreUnable, match=r"meshd\.events"):
            promised(**changed)


def test_a_command_means_the_same_to_everybody() -> None:
    one, other = Journal(TERMS, 1, "here"), Journal(TERMS, 1, "here")
    commands = [
        Join("s", 1, 1000, 8, "g", ">", {}, 1),
        Join("t", 1, 900, 8, "h", ">", {}, 1),
        Begin("s", 2, 1000, 8, 0, [50, 50], [(1, b"k"), (2, b"k"), (3, b"")], {0: 2}),
        Begin("t", 2, 1100, 8, 0, [50], [(3, b"")], {0: 2}),
        Begin("t", 3, 1100, 8, 7, [50], [], {}),
        SetBack("t", 4, 10, 8),
    ]
    done = [one.carry_out(offset, command) for offset, command in enumerate(commands)]
    assert done[0] == 0
    assert isinstance(done[1], StoreFull)
    assert [place for place, _ in done[2].rows] == [1, 3]
    # Another came to the same a moment later: the time of the first is over, and it was not new.
    assert ([place for place, _ in done[3].rows], done[3].are_new) == ([1], False)
    assert isinstance(done[4], StoreCorrupt)
    assert one.latest_ms == 10
    for offset, command in enumerate(commands):
        other.carry_out(offset, other.decode(one.encode(command), offset))
        restored = Journal(TERMS, 1, "here")
        restored.restore(other.snapshot())
        assert restored.snapshot() == other.snapshot()
    assert one.snapshot() == other.snapshot()


async def test_what_was_given_back_while_the_brokers_were_away_counts_and_is_marked(cluster: MockCluster) -> None:
    bus = await opened(cluster, "&timeout=0.5")
    gone, one = [await bus.subscribe(">", "group") for _ in range(2)]
    await bus.publish([event(id="a")])
    await gone.next()
    cluster.set_up(is_up=False)
    with pytest.raises(StoreError):
        await gone.close()
    cluster.set_up(is_up=True)
    async with asyncio.timeout(20.0):  # and not the time to handle it
        delivery = await one.next()
    assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 2, True)
    await bus.close()


async def test_closing_waits_for_no_broker(cluster: MockCluster) -> None:
    bus = await opened(cluster, "&timeout=0.5")
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=name) for name in "ab"])
    await one.next()
    cluster.set_up(is_up=False)
    waiting = asyncio.ensure_future(one.next())
    await asyncio.sleep(0)  # it has asked for an event
    async with asyncio.timeout(10.0):
        await bus.close()
    with pytest.raises(StoreError):
        await waiting


class Behind:
    """A sidecar that writes, and for now looks at nothing of what stands in Kafka."""

    def __init__(self, bus: KafkaBus) -> None:
        self._log = bus._log
        self._records: list[Record] = []
        self._log._look_at = lambda record, now_ms: self._records.append(record)  # type: ignore[method-assign]
        self._log._carry_out = lambda offset, command, size: None  # type: ignore[method-assign]

    async def waits(self, one: Subscription, other: KafkaBus) -> asyncio.Future[Delivery]:
        """Wait for an event, which stands in Kafka as begun: `other` has read that."""
        waiting = asyncio.ensure_future(one.next())
        async with asyncio.timeout(30):
            while self._log.sidecar not in other._log.journal.groups[0].out:
                await asyncio.sleep(0)
        return waiting

    async def fetched(self, offset: int) -> None:
        """Return when the journal has come up to an offset."""
        async with asyncio.timeout(30):
            while not any(self._is_at(record, offset) for record in self._records):
                await asyncio.sleep(0)

    async def read_on(self, *, upto: int | None = None) -> None:
        """Look at all that has come, or first at what stands up to an offset of the journal."""
        del self._log._carry_out
        if upto is not None:
            await self.fetched(upto)
            (end,) = [number for number, record in enumerate(self._records) if self._is_at(record, upto)]
            for record in self._records[: end + 1]:
                Log._look_at(self._log, record, self._log.now_ms())
            self._records = self._records[end + 1 :]
            for _ in range(100):  # whoever would go on with what was read does so
                await asyncio.sleep(0)
        del self._log._look_at
        self._log._read(self._records)

    def _is_at(self, record: Record, offset: int) -> bool:
        return (record.topic, record.offset, record.is_end) == (self._log.names.groups, offset, False)


async def test_closing_waits_for_no_trim_that_cannot_read_on(cluster: MockCluster) -> None:
    bus, other = await opened(cluster, "&timeout=0.5"), await opened(cluster)
    await bus.publish([event(id="a")])
    await quiet(bus)
    Behind(bus)
    await other.subscribe(">", "group")
    bus._begin_to_trim()
    async with asyncio.timeout(20.0):
        while not bus._log._waits._waiting:  # until it knows what it has not read
            await asyncio.sleep(0)
        await bus.close()
    await other.close()


@pytest.mark.parametrize("is_known", [True, False], ids=["read", "not read yet"])
async def test_what_was_begun_unheard_and_handled_elsewhere_is_not_begun_again(
    cluster: MockCluster, is_known: bool
) -> None:
    clock = Hands()
    # Where all that is known is what has been read, it is by another's clock that the time is over.
    ahead = Hands() if is_known else clock
    bus, other = await opened(cluster, "&timeout=60", clock=clock), await opened(cluster, clock=ahead)
    one = await bus.subscribe(">", "group", handling_s=60.0)
    elsewhere = await other.subscribe(">", "group", handling_s=60.0)
    await other.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
    await quiet(bus)
    behind = Behind(bus)
    waiting = await behind.waits(one, other)
    begun = other._log.journal.as_of
    ahead.move(61.0)
    (delivery,) = await take(elsewhere, 1)
    assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 2, True)
    assert await elsewhere.settle(delivery, Verdict.SUCCESS)
    if is_known:
        await behind.fetched(other._log.journal.as_of)
    await behind.read_on(upto=None if is_known else begun)
    assert ((await waiting).event.id, (await waiting).attempt) == ("b", 1)
    for each in (bus, other):
        await each.close()


async def test_what_was_begun_unheard_and_by_nobody_else_keeps_its_attempt(cluster: MockCluster) -> None:
    clock = Hands()
    bus, other = [await opened(cluster, "&timeout=60", clock=clock) for _ in range(2)]
    one = await bus.subscribe(">", "group", handling_s=60.0)
    await other.publish([event(id="a")])
    await quiet(other)  # which knows the group then
    await quiet(bus)
    behind = Behind(bus)
    waiting = await behind.waits(one, other)
    clock.move(61.0)
    await behind.read_on(upto=other._log.journal.as_of)
    delivery = await waiting
    assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("a", 1, False)
    assert await one.settle(delivery, Verdict.SUCCESS)
    for each in (bus, other):
        await each.close()
