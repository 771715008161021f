"""Where a test may keep a store: one place per engine, of its own for each test, and removed behind it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiormq
import asyncpg
import hiredis
import pytest

from meshd.engines import nats_server
from meshd.engines.port import Store
from meshd.engines.table import open_store
from meshd.engines.url import StoreUrl

REDIS, NATS, POSTGRES = "127.0.0.1:6379", "127.0.0.1:4222", "127.0.0.1:5432"
RABBITMQ = "127.0.0.1:5672"
"""Where the engines listen that the machine runs; those that a test starts itself are elsewhere."""


class Place:
    """Where one test keeps its store."""

    address = ""
    """HOST:PORT of the running server; empty where there is none."""
    record_bytes_max = 2**20 - 4096
    batch = 1500
    """Changes of one large write."""
    stores = 16
    """That are opened at once."""
    """Of the longest record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"meshd_test_{secrets.token_hex(6)}"
        self.url = ""

    async def open(self, options: str = "") -> Store:
        """Open the store; a second one in the same place sees what the first one wrote."""
        return await open_store(self.url + options, self.path)

    async def remove(self) -> None:
        """Remove what was kept there."""


class Memory(Place):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.url = "memory:"


class Sqlite(Place):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.url = f"sqlite://{path / 'store.db'}"


class Redis(Place):
    address = REDIS

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.url = f"redis://{self.address}/0?prefix={self.name}"

    async def remove(self) -> None:
        redis_remove(self.name)


class Nats(Place):
    address = NATS

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.url = f"nats://{self.address}?bucket={self.name}&timeout=5"

    async def remove(self) -> None:
        await nats_api(f"STREAM.DELETE.KV_{self.name}")


class Postgres(Place):
    address = POSTGRES

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.url = f"postgres://root@{self.address}/test?schema={self.name}"

    async def remove(self) -> None:
        await postgres_command(f"DROP SCHEMA IF EXISTS {self.name} CASCADE")


class Dynamo(Place):
    """A table of moto's server, which stands in for DynamoDB: it is no DynamoDB, and keeps nothing when it ends."""

    record_bytes_max = 400_000
    batch, stores = 250, 6  # the server takes some milliseconds for each thing

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            os.environ.setdefault(name, "testing")
        self.url = f"dynamodb://eu-central-1/{self.name}?endpoint={moto_server()}&poll=0.05&timeout=10"


@functools.cache
def moto_server() -> str:
    """Return the address of a server for this process, started with the first that asks; without the package the test
    is skipped, which `.ci/run` counts as failed."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("aiobotocore") is None:
        pytest.skip("moto is not installed")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("moto_alone.py")), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.kill)
    ends_s = time.monotonic() + 60
    while time.monotonic() < ends_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return f"http://127.0.0.1:{port}"
        assert process.poll() is None, "moto's server ended"
        time.sleep(0.02)
    raise AssertionError("moto's server does not listen")


# A new engine gets its line here.
PLACES: dict[str, type[Place]] = {
    "memory": Memory,
    "sqlite": Sqlite,
    "redis": Redis,
    "nats": Nats,
    "postgres": Postgres,
    "dynamodb": Dynamo,
}
SHARED = ("redis", "nats", "postgres", "dynamodb")
"""Engines that more than one process may use at once."""
BROKEN = ("redis", "nats", "postgres")
"""Those whose server tests kill, cut off and freeze: it is the real one, over one connection."""


@contextlib.asynccontextmanager
async def place_of(engine: str, path: Path) -> AsyncIterator[Place]:
    """Yield a place of an engine; the test is skipped where its server does not run."""
    kind = PLACES[engine]
    if kind.address:
        require(engine, kind.address)
    place = kind(path)
    try:
        yield place
    finally:
        await place.remove()


async def until_it_fails(ask: Callable[[], Awaitable[object]]) -> None:
    """Ask again and again until that raises: what has been broken is noticed when the news arrives."""
    while True:
        await ask()


def require(engine: str, address: str) -> None:
    """Skip the test, which `.ci/run` counts as failed, where nobody listens at an address."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError:
        pytest.skip(f"no {engine} listens at {address}")


def redis_command(*command: str | bytes, address: str = REDIS) -> Any:
    """Run one command, as another program would, and return its reply."""
    host, _, port = address.rpartition(":")
    reader = hiredis.Reader()
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(hiredis.pack_command(command))
        while (reply := reader.gets()) is False:
            reader.feed(connection.recv(65536))
    return reply


def redis_remove(prefix: str) -> None:
    """Remove all keys that begin with a prefix."""
    found, cursor = [], b"0"
    while True:
        cursor, names = redis_command("SCAN", cursor.decode(), "MATCH", f"{prefix}:*", "COUNT", "1000")
        found += names
        if cursor == b"0":
            break
    for at in range(0, len(found), 500):
        redis_command("DEL", *found[at : at + 500])


async def nats_api(call: str, data: bytes = b"", address: str = NATS) -> bytes:
    """Ask JetStream's API, as another program would, and return its answer."""
    wire = await nats_server.connected(
        StoreUrl(f"nats://{address}"), "the test's nats", 5.0, f"_INBOX.{secrets.token_hex(8)}", lambda *_: None
    )
    answer = await wire.ask(f"$JS.API.{call}", data)
    wire.abort(nats_server.StoreError("done"))
    return answer.data


async def postgres_command(command: str, address: str = POSTGRES) -> None:
    """Run SQL, as another program would."""
    host, _, port = address.rpartition(":")
    connection = await asyncpg.connect(host=host, port=int(port), user="root", database="test")
    try:
        await connection.execute(command)
    finally:
        await connection.close()


def rabbitmq_remove(prefix: str, address: str = RABBITMQ) -> None:
    """Delete the queues of a bus."""
    names = (f"{prefix}.{name}" for name in ("log", "gone", "copies"))
    asyncio.run(rabbitmq_delete(*names, address=address))


async def rabbitmq_delete(*queues: str, address: str = RABBITMQ) -> None:
    connection = await aiormq.connect(f"amqp://guest:guest@{address}/")
    channel = await connection.channel()
    for queue in queues:
        await channel.queue_delete(queue)
    await connection.close()
