"""Copies of the tables that the log has made, so that the log need not be kept for ever nor read whole.

A copy is a SQLite file in a stream of its own, a part in each message. That it is complete is said in the log, for all
sidecars, and in the stream of copies, of which those who come new read the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sqlite3
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.engines import bus_rabbitmq_server as server
from meshd.engines.bus_rabbitmq_entry import TYPES, Copied, encode
from meshd.engines.port import StoreCorrupt

if TYPE_CHECKING:
    from pathlib import Path

    from aiormq.abc import DeliveredMessage

    from meshd.engines.bus_rabbitmq_pair import Pair

_log = logging.getLogger("meshd.store")

PART_BYTES: Final = 2**20
COPY_BYTES_MAX: Final = 4 * 2**30
LAST_S: Final = 2.0
"""How long the newest word of a copy may take to come, where there has ever been one."""
PART_S: Final = 10.0


def write(source: Path, target: Path) -> tuple[int, int]:
    """Write a copy of the tables as they are now; return the offset, and the bytes of the log, up to which they go.

    It runs on a thread of its own, and keeps nobody who writes waiting.
    """
    with contextlib.closing(sqlite3.connect(source)) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))
    with contextlib.closing(sqlite3.connect(target)) as connection:
        found = dict(connection.execute("SELECT name, value FROM counter"))
    return found["offset"], found["logged"]


async def put(pair: Pair, path: Path, copied: Copied) -> None:
    """Put a copy on the server, and the word of it. Raises StoreError."""
    async with pair.confirming() as channel:
        arguments = server.stream(COPY_BYTES_MAX)
        await server.asked(pair.where, channel.queue_declare(copied.name, durable=True, arguments=arguments))
        whole = hashlib.sha256()
        with path.open("rb") as file:
            while part := await asyncio.to_thread(file.read, PART_BYTES):
                whole.update(part)
                await pair.put(channel, copied.name, part)
        # The end of it, by which it is known to be whole.
        await pair.put(channel, copied.name, b"")
        await pair.put(channel, copied.name, whole.digest())
        arguments = server.stream(server.COPIES_BYTES, server.COPIES_BYTES // 2)
        await server.asked(pair.where, channel.queue_declare(pair.names.copies, durable=True, arguments=arguments))
        await pair.put(channel, pair.names.copies, encode(copied))


async def get(pair: Pair, path: Path, without: str) -> str:
    """Write the newest copy to a file; return its name, empty where there is none. `without`: one that is no use."""
    if not await pair.has_queue(pair.names.copies):
        return ""
    async with pair.messages(pair.names.copies, "last") as messages:
        copied: Copied | None = None
        try:
            async with asyncio.timeout(LAST_S):
                while True:
                    copied = _decoded(await messages.get()) or copied
                    if messages.empty():
                        break
        except TimeoutError:
            pass
    if copied is None or copied.name == without or not await pair.has_queue(copied.name):
        return ""
    whole, is_ended = hashlib.sha256(), False
    async with pair.messages(copied.name, "first") as messages:
        with path.open("wb") as file:
            while True:
                async with asyncio.timeout(PART_S):
                    body = (await messages.get()).body
                if is_ended:
                    break
                is_ended = not body
                whole.update(body)
                await asyncio.to_thread(file.write, body)
    if body != whole.digest():
        raise StoreCorrupt(f"{pair.where}: the copy {copied.name} of the bus's state is damaged")
    _log.info("%s: the state of the bus is taken from the copy %s", pair.where, copied.name)
    return copied.name


def _decoded(message: DeliveredMessage) -> Copied | None:
    if message.header.properties.message_type in TYPES:
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.msgpack.decode(message.body, type=Copied)
    return None
