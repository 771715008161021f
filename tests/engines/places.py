"""Where a test may keep a store: one place per engine, of its own for each test, and removed behind it."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import hiredis
import pytest

from meshd.engines import nats_server
from meshd.engines.port import Store
from meshd.engines.table import open_store
from meshd.engines.url import StoreUrl

REDIS, NATS, POSTGRES = "127.0.0.1:6379", "127.0.0.1:4222", "127.0.0.1:5432"
"""Where the engines listen that the machine runs; those that a test starts itself are elsewhere."""


class Place:
    """Where one test keeps its store."""

    address = ""
    """HOST:PORT of the running server; empty where there is none."""

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
        found, cursor = [], b"0"
        while True:
            cursor, names = redis_command("SCAN", cursor.decode(), "MATCH", f"{self.name}:*", "COUNT", "1000")
            found += names
            if cursor == b"0":
                break
        for at in range(0, len(found), 500):
            redis_command("DEL", *found[at : at + 500])


class Nats(Place):
    address = NATS

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.url = f"nats://{self.address}?bucket={self.name}"

    async def remove(self) -> None:
        await nats_api(f"STREAM.DELETE.KV_{self.name}")


class Postgres(Place):
    address = POSTGRES

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.url = f"postgres://root@{self.address}/test?schema={self.name}"

    async def remove(self) -> None:
        await postgres_command(f"DROP SCHEMA IF EXISTS {self.name} CASCADE")


# A new engine gets its line here.
PLACES: dict[str, type[Place]] = {
    "memory": Memory,
    "sqlite": Sqlite,
    "redis": Redis,
    "nats": Nats,
    "postgres": Postgres,
}
SHARED = ("redis", "nats", "postgres")
"""Engines that more than one process may use at once."""


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


def redis_command(*command: str | bytes, address: str = REDIS) -> object:
    """Run one command, as another program would, and return its reply."""
    host, _, port = address.rpartition(":")
    reader = hiredis.Reader()
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(hiredis.pack_command(command))
        while (reply := reader.gets()) is False:
            reader.feed(connection.recv(65536))
    return reply


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
