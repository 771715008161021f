"""librdkafka's mock cluster, which stands in for Kafka: brokers in one process that speak the protocol on loopback.

It is no Kafka. It keeps what is written in memory (the last 5 MiB of each partition), has no replicas, makes no topics
when it is asked to (CreateTopics), tells no settings (DescribeConfigs), finds no offset by time, compacts and expires
nothing, does not see what an idempotent producer sends twice, and lets nobody sign in. It can be taken down and up
again, be slow, and refuse what it is told to refuse. `python -m tests.engines.kafka_mock` hosts one.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import confluent_kafka

from tests.engines.servers import Server

PRODUCE, FETCH, LIST_OFFSETS = 0, 1, 2
"""What requests are called in the protocol."""


def _library() -> Any:
    # The library that the package brings. Its module is loaded, so this is the same one.
    folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


class MockCluster:
    """Brokers that live until they are closed."""

    def __init__(self, brokers: int = 1) -> None:
        self._library = _library()
        self._brokers = brokers
        text = ctypes.create_string_buffer(512)
        conf = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        # It says that it knows no brokers, which it is about to be.
        assert not self._library.rd_kafka_conf_set(conf, b"log_level", b"0", text, len(text)), text.value
        self._client = ctypes.c_void_p(self._library.rd_kafka_new(0, conf, text, len(text)))
        assert self._client, text.value
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._client, brokers))
        self._library.rd_kafka_mock_set_controller_id(self._cluster, 1)
        self.address: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode().split(",")[0]

    def make(self, topic: str, partitions: int) -> None:
        error = self._library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 1)
        assert not error, error

    def set_up(self, *, is_up: bool) -> None:
        """Let all brokers go, connections too, or come back with all that they had."""
        what = self._library.rd_kafka_mock_broker_set_up if is_up else self._library.rd_kafka_mock_broker_set_down
        for number in range(1, self._brokers + 1):
            assert not what(self._cluster, number)

    def slow(self, milliseconds: int) -> None:
        """Let each answer take so long."""
        for number in range(1, self._brokers + 1):
            assert not self._library.rd_kafka_mock_broker_set_rtt(self._cluster, number, milliseconds)

    def refuse(self, request: int, *codes: int) -> None:
        """Answer the next requests of a kind with these errors."""
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(codes)), (ctypes.c_int * len(codes))(*codes)
        )

    def remove(self, topic: str, before: int) -> None:
        """Let go of what stands before an offset, as retention does."""
        error = self._library.rd_kafka_mock_partition_delete_records(
            self._cluster, topic.encode(), 0, ctypes.c_int64(before)
        )
        assert not error, error

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


class MockProcess(Server):
    """A cluster in a process of its own, which forgets what it had when that ends."""

    def __init__(self, path: Path) -> None:
        super().__init__([sys.executable, "-m", "tests.engines.kafka_mock"], 0)

    async def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        self.port = int(line.decode().rpartition(":")[2])


@functools.cache
def shared_cluster() -> MockCluster:
    """Return one for this process, which ends with it."""
    return MockCluster()


if __name__ == "__main__":
    cluster = MockCluster()
    cluster.make("meshd.events", 1)
    print(cluster.address, flush=True)
    sys.stdin.read()
