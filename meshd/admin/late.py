"""A server of aiohttp that is imported and built for the first connection that needs it.

Importing it takes 11 MB and a tenth of a second, and most sidecars never hear a request for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    Runner = web.AppRunner
    Make = Callable[[], tuple[Runner, Callable[[web.Server], asyncio.Protocol]]]

FIRST_BYTES_S: Final = 15.0
"""How long a connection may take to send its first bytes."""

_log = logging.getLogger("meshd.admin")


class LateServer:
    """One such server. `load` imports what it needs, in a thread, and returns what then makes the server, on the loop:
    a runner, and how one connection is spoken on."""

    def __init__(self, load: Callable[[], Make]) -> None:
        self._load = load
        self._runner: Runner | None = None
        self._handler: Callable[[web.Server], asyncio.Protocol] | None = None
        self._starting = asyncio.Lock()
        self._waiting: set[Waiting] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def connections(self) -> int:
        """How many there are, with those that wait."""
        server = self._runner.server if self._runner is not None else None
        return len(self._waiting) + (len(server.connections) if server is not None else 0)

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return self._protocol() or Waiting(self)

    def _protocol(self) -> asyncio.Protocol | None:
        if self._runner is None or self._handler is None or self._runner.server is None:
            return None
        return self._handler(self._runner.server)

    def take(self, transport: Any, first: bytes) -> None:
        """Serve a connection on which `first` has come and which another protocol held until now."""
        handler = self._protocol()
        if handler is not None:
            _hand_over(transport, handler, first)
            return
        waiting = Waiting(self)
        transport.set_protocol(waiting)
        waiting.connection_made(transport)
        waiting.data_received(first)

    async def _serve(self, waiting: Waiting) -> None:
        try:
            async with self._starting:
                if self._runner is None and not self._is_closed:
                    make = await asyncio.to_thread(self._load)
                    runner, self._handler = make()
                    await runner.setup()
                    self._runner = runner
            handler = self._protocol()
        except Exception:  # noqa: BLE001 - whatever it is, the connection must end
            _log.exception("a connection could not be served")
            handler = None
        if handler is None:
            waiting.abort()
        elif waiting in self._waiting:
            self._waiting.discard(waiting)
            # Before the handler has anything: it may hold the peer back at once, and that stands.
            waiting.transport.resume_reading()
            _hand_over(waiting.transport, handler, waiting.first)

    async def handed_over(self) -> None:
        """Wait until no connection that has spoken waits."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End everything now. Closing twice is fine."""
        self._is_closed = True
        for waiting in tuple(self._waiting):
            waiting.abort()
        await self.handed_over()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()


class Waiting(asyncio.Protocol):
    """Stands on a connection until the server is there."""

    def __init__(self, late: LateServer) -> None:
        self._late = late
        self._timer: asyncio.TimerHandle | None = None
        self.transport: Any = None
        self.first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._late._waiting.add(self)
        self._timer = asyncio.get_running_loop().call_later(FIRST_BYTES_S, self.abort)

    def data_received(self, data: bytes) -> None:
        self._heard()
        self.first += data
        self.transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._late._serve(self))
        self._late._tasks.add(task)
        task.add_done_callback(self._late._tasks.discard)

    def connection_lost(self, error: Exception | None) -> None:
        self._late._waiting.discard(self)
        self._heard()

    def _heard(self) -> None:
        """From now on the time is the server's own."""
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Close now."""
        self.transport.abort()


def _hand_over(transport: Any, handler: asyncio.Protocol, first: bytes) -> None:
    transport.set_protocol(handler)
    handler.connection_made(transport)
    handler.data_received(first)
