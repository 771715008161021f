"""Kafka's clients, which are threads of librdkafka's, as one loop sees them: nothing here makes the loop wait.

`Sender` writes records; what became of each is said on the loop. `Tail` reads partitions as they grow, and says so on
the loop, many records at a time. `Shelves` reads single records again, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec

from meshd.engines.bus_kafka_server import told
from meshd.engines.port import StoreClosed, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import Message
    from confluent_kafka.admin import AdminClient

log = logging.getLogger("meshd")

POLL_S: Final = 0.1
LEADER_S: Final = 5.0
ENDED_S: Final = 5.0
"""How long a producer that is let go may take to say what became of its records."""
READ_MAX: Final = 500
"""Records that come to the loop at once."""
AHEAD_BYTES: Final = 16 * 2**20
"""What librdkafka fetches ahead of all partitions together."""

Headers = list[tuple[str, bytes]]


class Record(NamedTuple):
    """One record as it stands; without a value, where a partition ends now."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    at_ms: int
    is_end: bool = False


def _record(message: Message) -> Record:
    key, value, headers = message.key(), message.value(), message.headers()
    return Record(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        key if isinstance(key, bytes) else None,
        value if isinstance(value, bytes) else b"",
        [(name, text if isinstance(text, bytes) else b"") for name, text in headers or []],
        message.timestamp()[1],
    )


class Sender:
    """Writes records. Belongs to the loop on which it was made."""

    def __init__(self, config: dict[str, Any], where: str, give_up_s: float) -> None:
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._told: deque[tuple[Callable[[int, Exception | None], None], int, Exception | None]] = deque()
        self._is_telling = False
        self._is_closed = False
        self._config = {
            **config,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0,
            "message.timeout.ms": round(give_up_s * 1000),
            "message.max.bytes": 8 * 2**20,
            "queue.buffering.max.kbytes": 131_072,
            "allow.auto.create.topics": False,
        }
        self._producer = Producer(self._config)
        self._thread = threading.Thread(target=self._poll, name="meshd-kafka-send", daemon=True)
        self._thread.start()

    def send(
        self,
        topic: str,
        value: bytes,
        done: Callable[[int, Exception | None], None],
        *,
        key: bytes | None = None,
        partition: int = 0,
        headers: Headers | None = None,
        at_ms: int = 0,
    ) -> None:
        """Write a record; `done(offset, error)` is called on the loop, with an offset of -1 where that is not known.

        Raises StoreError, or EventMalformed for one that is too long.
        """

        def delivered(error: KafkaError | None, message: Message) -> None:
            # On the thread that polls. Many are told to the loop at once.
            offset = message.offset() if error is None else None
            why = None if error is None else told(error, self._where)
            self._told.append((done, -1 if offset is None or offset < 0 else offset, why))
            if not self._is_telling:
                self._is_telling = True
                self._call(self._tell)

        try:
            self._producer.produce(
                topic,
                value=value,
                key=key,
                partition=partition,
                on_delivery=delivered,
                timestamp=at_ms,
                headers=headers or [],
            )
        except KafkaException as error:
            raise told(error.args[0], self._where) from None
        except BufferError:
            raise told(KafkaError(KafkaError._QUEUE_FULL), self._where) from None

    def _poll(self) -> None:
        while not self._is_closed:
            try:
                self._producer.poll(POLL_S)
            except KafkaException as error:
                # What an idempotent producer cannot go on from, another one can.
                log.warning("a new producer goes on for %s: %s", self._where, error.args[0].str())
                old, self._producer = self._producer, Producer(self._config)
                self._end_one(old)

    def _end_one(self, producer: Producer) -> None:
        """Say of all that has not been written that it was not: of what was on its way, that comes a moment later."""
        with contextlib.suppress(KafkaException):
            producer.purge()
        ends_s = time.monotonic() + ENDED_S
        while len(producer) and time.monotonic() < ends_s:
            with contextlib.suppress(KafkaException):  # as before
                producer.poll(POLL_S)

    def _tell(self) -> None:
        self._is_telling = False  # before it is looked: who appends from here on calls again
        while self._told:
            done, offset, error = self._told.popleft()
            done(offset, error)

    def _call(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop is closed
            self._is_closed = True

    async def close(self) -> None:
        """Let go. What has not been written is not written."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._thread.join()
        self._end_one(self._producer)
        # Which waits for librdkafka's threads: not on the loop.
        del self._producer


class Tail:
    """Reads partitions as they grow."""

    def __init__(self, config: dict[str, Any], where: str, fetch_wait_s: float) -> None:
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._consumer = _consumer(config, fetch_wait_s)

    def start(
        self,
        offsets: dict[tuple[str, int], int],
        read: Callable[[list[Record]], None],
        failed: Callable[[StoreError], None],
    ) -> None:
        """Read from `offsets` on, for as long as this is open."""
        self._consumer.assign([TopicPartition(topic, number, offset) for (topic, number), offset in offsets.items()])
        topics = {topic for topic, _ in offsets}
        self._thread = threading.Thread(
            target=self._run, args=(topics, read, failed), name="meshd-kafka-read", daemon=True
        )
        self._thread.start()

    def _run(
        self, topics: set[str], read: Callable[[list[Record]], None], failed: Callable[[StoreError], None]
    ) -> None:
        with contextlib.suppress(KafkaException, RuntimeError):
            for topic in topics:
                _find_leader(self._consumer, topic)
        is_taken = threading.Semaphore(4)  # so many lots may wait for the loop: what is fetched ahead is bounded
        while not self._is_closed:
            messages: list[Message] = []
            try:
                if (first := self._consumer.poll(POLL_S)) is not None:
                    messages.append(first)  # which is not read again, whatever becomes of the next
                    messages += self._consumer.consume(READ_MAX, 0)
            except (KafkaException, RuntimeError) as error:
                log.warning("events cannot be read from %s: %s", self._where, error)
            if not messages:
                continue
            records, errors = _sorted(messages, self._where)
            while not self._is_closed and not is_taken.acquire(timeout=POLL_S):
                pass
            try:
                self._loop.call_soon_threadsafe(_take, read, failed, records, errors, is_taken)
            except RuntimeError:  # the loop is closed
                return

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._consumer.close()


class Ends:
    """Says how far partitions reach."""

    def __init__(self, admin: AdminClient, where: str, timeout_s: float) -> None:
        self._where = where
        self._timeout_s = timeout_s
        self._admin: AdminClient | None = admin

    async def first(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the offset of the first record of each partition that is kept. Raises StoreError."""
        return await self._ask(partitions, OffsetSpec.earliest())

    async def next(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the offset that the next record of each partition will have. Raises StoreError."""
        return await self._ask(partitions, OffsetSpec.latest())

    async def _ask(self, partitions: Sequence[tuple[str, int]], what: OffsetSpec) -> dict[tuple[str, int], int]:
        if self._admin is None:
            raise StoreClosed("the bus was closed")
        asked = self._admin.list_offsets(
            {TopicPartition(*one): what for one in partitions}, request_timeout=self._timeout_s
        )
        try:
            found = await asyncio.gather(*map(asyncio.wrap_future, asked.values()))
        except KafkaException as error:
            raise _store_error(error.args[0], self._where) from None
        return {(one.topic, one.partition): info.offset for one, info in zip(asked, found, strict=True)}

    async def close(self) -> None:
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._admin = None


class Shelves:
    """Reads single records again."""

    def __init__(self, config: dict[str, Any], where: str, fetch_wait_s: float) -> None:
        self._where = where
        self._consumer = _consumer(config, fetch_wait_s)
        self._next: tuple[str, int, int] | None = None
        self._led: set[str] = set()
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "meshd-kafka-again")

    async def read(self, topic: str, partition: int, offsets: Sequence[int], timeout_s: float) -> dict[int, Record]:
        """Return those of the records that are still kept, and others that lie between. Raises StoreError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._read, topic, partition, sorted(offsets), timeout_s)

    def _read(self, topic: str, partition: int, offsets: list[int], timeout_s: float) -> dict[int, Record]:
        found: dict[int, Record] = {}
        try:
            for offset in offsets:
                if offset not in found:
                    self._seek(topic, partition, offset)
                    self._read_to(topic, partition, offset, found, timeout_s)
        except KafkaException as error:
            self._next = None
            raise _store_error(error.args[0], self._where) from None
        except RuntimeError:
            raise StoreClosed("the bus was closed") from None
        return found

    def _seek(self, topic: str, partition: int, offset: int) -> None:
        if self._next is not None and self._next[:2] == (topic, partition) and 0 <= offset - self._next[2] <= READ_MAX:
            return
        self._consumer.assign([TopicPartition(topic, partition, offset)])
        if topic not in self._led:
            _find_leader(self._consumer, topic)
            self._led.add(topic)
        self._next = (topic, partition, offset)

    def _read_to(self, topic: str, partition: int, offset: int, found: dict[int, Record], timeout_s: float) -> None:
        while self._next is not None and self._next[2] <= offset:
            message = self._consumer.poll(timeout_s)
            if message is None:
                self._next = None
                raise StoreError(f"{self._where} does not answer")
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    self._next = None
                    return
                if error.retriable() or error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                    continue
                raise KafkaException(error)
            record = _record(message)
            # Where it is not kept any more, reading goes on with the oldest one that is.
            self._next = (topic, partition, record.offset + 1)
            found[record.offset] = record

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._consumer.close)
        self._executor.shutdown(wait=False)


def _find_leader(consumer: Consumer, topic: str) -> None:
    """Have a consumer know who leads what it reads: by itself it asks up to a second after that was assigned. Raises
    KafkaException."""
    consumer.list_topics(topic, timeout=LEADER_S)


def _consumer(config: dict[str, Any], fetch_wait_s: float) -> Consumer:
    return Consumer(
        {
            **config,
            "group.id": "meshd",  # librdkafka asks for one; nothing is ever committed
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": round(fetch_wait_s * 1000),
            "fetch.error.backoff.ms": 50,
            "fetch.message.max.bytes": 4 * 2**20,
            "queued.max.messages.kbytes": AHEAD_BYTES // 1024,
            "allow.auto.create.topics": False,
        }
    )


def _sorted(messages: list[Message], where: str) -> tuple[list[Record], list[StoreError]]:
    records: list[Record] = []
    errors: list[StoreError] = []
    for message in messages:
        error = message.error()
        if error is None:
            records.append(_record(message))
        elif error.code() == KafkaError._PARTITION_EOF:
            offset = message.offset()
            if offset is not None and offset != OFFSET_INVALID:
                topic, number = message.topic() or "", message.partition() or 0
                records.append(Record(topic, number, offset, None, None, [], 0, is_end=True))
        elif not error.retriable() and error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
            errors.append(_store_error(error, where))
    return records, errors


def _take(
    read: Callable[[list[Record]], None],
    failed: Callable[[StoreError], None],
    records: list[Record],
    errors: list[StoreError],
    is_taken: threading.Semaphore,
) -> None:
    try:
        for error in errors:
            failed(error)
        if records:
            read(records)
    finally:
        is_taken.release()


def _store_error(error: KafkaError, where: str) -> StoreError:
    found = told(error, where)
    return found if isinstance(found, StoreError) else StoreError(str(found))
