"""Looking at what a stream of events holds, some of it at a time, for no group."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from meshd.engines import nats_server as server
from meshd.engines.bus_nats_message import kept_ms, size_of
from meshd.engines.link import answered_within
from meshd.engines.nats_consumer import Made, Numbers, numbers
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshd.engines.bus_nats_streams import Streams
    from meshd.engines.nats_wire import Message

LISTED_S: Final = 10.0
"""How long listing may take."""
STORED_S: Final = 0.5
"""How long it may take until what the server has acknowledged can be pulled."""
BYTES_MAX: Final = 8 << 20
"""Of events that one pull may bring."""

T = TypeVar("T")


class Listed(NamedTuple):
    """An event, without its body."""

    place: int
    topic: str
    at_ms: int
    """When it was kept."""
    bytes: int
    is_own: bool
    """It is an event of meshd's."""


async def listed(streams: Streams, place: int, many: int, topic: str = ">") -> list[Listed]:
    """Return up to so many events of a topic from a place on. Raises StoreError."""

    def read(message: Message, told: Numbers) -> Listed:
        name = message.subject.removeprefix(streams.topics)
        size = size_of(message.headers) + len(message.headers) + len(message.subject)
        at_ms = kept_ms(message.headers)
        return Listed(told.sequence, name, told.time_ns // 10**6 if at_ms is None else at_ms, size, at_ms is not None)

    return await looked_at(streams, topic, place, many, read, is_whole=False)


async def looked_at(
    streams: Streams, topic: str, place: int, many: int, read: Callable[[Message, Numbers], T], *, is_whole: bool
) -> list[T]:
    """Return what `read` makes of up to so many events of a topic from a place on, fewer where they are long; none
    where there is none. With `is_whole` it gets their bodies. Raises StoreError."""
    wire, stream = streams.wire, streams.events
    found: list[T] = []
    config = {"filter_subject": f"{streams.topics}{topic}", "headers_only": not is_whole}
    async with _consumer(streams, config, place) as made:
        if not made.num_pending:
            return found
        is_all = asyncio.Event()

        def heard(message: Message) -> None:
            told = numbers(message.reply)
            if told is not None:
                found.append(read(message, told))
            if told is None or not told.pending or len(found) == many:
                is_all.set()

        inbox = wire.new_inbox()
        sid = wire.subscribe(inbox, heard)
        try:
            request = {"batch": many, "max_bytes": BYTES_MAX, "expires": int(STORED_S * 1e9)}
            call = f"{server.API}CONSUMER.MSG.NEXT.{stream}.{made.name}"
            wire.publish(call, msgspec.json.encode(request), reply=inbox)
            async with answered_within(max(LISTED_S, streams.timeout_s)):
                await is_all.wait()
        except TimeoutError:
            raise StoreError(f"{streams.where} did not list its events in time") from None
        finally:
            wire.unsubscribe(sid)
    return found


@contextlib.asynccontextmanager
async def _consumer(streams: Streams, config: dict[str, Any], place: int) -> AsyncIterator[Made]:
    wire, stream = streams.wire, streams.events
    request = {"stream_name": stream, "config": {**consumer(max(1, place), LISTED_S), **config}}
    made = await streams.api(f"CONSUMER.CREATE.{stream}", request, Made, wire=wire)
    if made.error is not None:
        raise streams.told(made.error)
    try:
        yield made
    finally:
        if wire.is_open:
            wire.publish(f"{server.API}CONSUMER.DELETE.{stream}.{made.name}")


def consumer(place: int, forgotten_s: float) -> dict[str, Any]:
    """Return what makes a consumer one that takes nothing away and is forgotten when it is not asked."""
    return {
        "ack_policy": "none",
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": place,
        "max_deliver": -1,
        "num_replicas": 1,
        "mem_storage": True,
        "inactive_threshold": int(forgotten_s * 1e9),
    }
