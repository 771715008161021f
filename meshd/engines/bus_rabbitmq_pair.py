"""The two connections of one sidecar to a RabbitMQ, as one: over one it publishes, over the other it hears."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from aiormq.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity

from meshd.engines import bus_rabbitmq_server as server
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiormq.abc import AbstractChannel, DeliveredMessage

    from meshd.engines.bus_terms import Clock
    from meshd.engines.url import StoreUrl


class Pair:
    """See the module (`meshd.engines.link.Connection`)."""

    def __init__(self, url: StoreUrl, where: str, epoch: int, names: server.Names, sizes: server.Sizes) -> None:
        self.epoch = epoch
        self.where = where
        self.names = names
        self._sizes = sizes
        self.hello = b""
        """The first entry."""
        self.is_first_read = True
        self._sender, self._hearer = server.Wire(url, where), server.Wire(url, where)
        self._is_let_go = False
        self._server_s = 0.0
        self._will = ""
        self._sending: AbstractChannel
        self._hearing: AbstractChannel
        self._mourning: AbstractChannel
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, lost: Callable[[StoreError], None], sidecar: str) -> None:
        """Connect, make what is not there, ask for the time and leave a will. Raises StoreError."""
        for wire in (self._sender, self._hearer):
            await wire.open(lost)
        self._sending = await self._sender.channel()
        self._hearing, self._mourning = await self._hearer.channel(), await self._hearer.channel()
        for channel in (self._sending, self._hearing, self._mourning):
            channel.closing.add_done_callback(lambda future: lost(server.ended(self.where, future)))
        self._hearing.on_consumer_cancel_callbacks.add(
            lambda _: lost(StoreError(f"{self.where}: the log was deleted or moved"))
        )
        await server.declare(self.where, self._hearing, self.names, self._sizes)
        self._server_s = await server.server_time_s(self.where, self._mourning, self._sending)
        self._will = self.names.will(sidecar, self.epoch)
        await server.leave_will(self.where, self._mourning, self._sending, self.names, self._will)

    def take_time(self, clock: Clock) -> None:
        """Set a clock that can be by the server's."""
        if isinstance(clock, server.ServerClock):
            clock.set(self._server_s)

    @property
    def is_open(self) -> bool:
        return not self._is_let_go and self._sender.is_open and self._hearer.is_open

    @property
    def is_blocked(self) -> bool:
        return self._sender.connection.connected.is_set() and self._sender.is_blocked

    async def publish(self, queue: str, body: bytes) -> None:
        properties = server.body_properties()
        await server.asked(self.where, self._sending.basic_publish(body, routing_key=queue, properties=properties))

    @contextlib.asynccontextmanager
    async def confirming(self) -> AsyncIterator[AbstractChannel]:
        """Yield a channel of its own, on which the server confirms what it has written."""
        channel = await server.asked(self.where, self._sender.connection.channel(publisher_confirms=True))
        try:
            yield channel
        finally:
            with contextlib.suppress(StoreError):
                await server.asked(self.where, channel.close())

    @contextlib.asynccontextmanager
    async def messages(self, queue: str, offset: str) -> AsyncIterator[asyncio.Queue[DeliveredMessage]]:
        """Yield what a stream holds, and is given, from an offset on: `first`, or the `last` that came together."""
        found: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
        async with self.confirming() as channel:

            async def take(message: DeliveredMessage) -> None:
                found.put_nowait(message)
                with contextlib.suppress(StoreError):
                    await server.asked(self.where, channel.basic_ack(server.tag_of(message), wait=False))

            await server.asked(self.where, channel.basic_qos(prefetch_count=4))
            arguments: dict[str, Any] = {"x-stream-offset": offset}
            await server.asked(self.where, channel.basic_consume(queue, take, arguments=arguments))
            yield found

    async def put(self, channel: AbstractChannel, queue: str, body: bytes) -> None:
        """Publish, and wait until it is written."""
        properties = server.body_properties()
        await server.asked(self.where, channel.basic_publish(body, routing_key=queue, properties=properties))

    async def has_queue(self, name: str) -> bool:
        async with self.confirming() as channel:
            try:
                await channel.queue_declare(name, passive=True)
            except ChannelNotFoundEntity:
                return False
            except (AMQPError, ChannelInvalidStateError) as error:
                raise server.told(self.where, error) from error
        return True

    async def delete(self, queue: str) -> None:
        async with self.confirming() as channel:
            await server.asked(self.where, channel.queue_delete(queue))

    async def read(self, queue: str, offset: int, heard: Callable[[Pair, DeliveredMessage], None]) -> None:
        """Read a stream from an offset on."""

        async def take(message: DeliveredMessage) -> None:
            heard(self, message)

        await server.asked(self.where, self._hearing.basic_qos(prefetch_count=server.UNACKNOWLEDGED_MAX))
        arguments: dict[str, Any] = {"x-stream-offset": offset}
        await server.asked(self.where, self._hearing.basic_consume(queue, take, arguments=arguments))

    async def acknowledge(self, tag: int) -> None:
        await server.asked(self.where, self._hearing.basic_ack(tag, multiple=True, wait=False))

    async def hear_gone(self, heard: Callable[[Pair, DeliveredMessage], None]) -> None:
        """Hear of sidecars whose connection is gone: one of those that are there hears of each."""

        async def take(message: DeliveredMessage) -> None:
            heard(self, message)

        await server.asked(self.where, self._mourning.basic_consume(self.names.gone, take))

    async def acknowledge_gone(self, tag: int) -> None:
        await server.asked(self.where, self._mourning.basic_ack(tag, wait=False))

    async def revoke_will(self) -> None:
        await server.asked(self.where, self._hearing.queue_delete(self._will))

    def abort(self, error: StoreError) -> None:
        """Let go at once."""
        if not self._is_let_go:
            self._is_let_go = True
            for wire in (self._sender, self._hearer):
                wire.abort()
                task = asyncio.get_running_loop().create_task(wire.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Take leave of the server."""
        self._is_let_go = True
        await asyncio.gather(self._sender.close(), self._hearer.close())
