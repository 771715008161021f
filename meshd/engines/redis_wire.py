"""One connection to a Redis: commands of one loop turn leave in one write, replies come back in their order.

hiredis parses and packs (RESP2). There is no pool and no client above it: those repeat commands after an error, which
a compare-and-set does not bear, and one connection with all that waits in flight needs no second.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

import hiredis

from meshd.engines.link import Asked
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

PING_EVERY_S: Final = 10.0
"""How often an idle connection is tried: one that a firewall has dropped says nothing."""

_NOTHING: Final = object()


class ReplyError(Exception):
    """What the server answered in place of a result; begins with a word that says its kind."""


class Wire(asyncio.Protocol):
    """See the module. `lost` is called once, with this connection, when it is gone."""

    def __init__(
        self,
        where: str,
        timeout_s: float,
        lost: Callable[[Wire, StoreError], None],
        pushed: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        self._where = where
        self._timeout_s = timeout_s
        self._lost = lost
        self._pushed = pushed
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_NOTHING)
        self._asked = Asked(self._late)
        self._sent = self._answered = 0
        self._packed: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._pinging: asyncio.TimerHandle | None = None
        self._why: StoreError | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def ask(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command, at the end of this loop turn, with others of it; its reply is the future's result.

        The future raises ReplyError, or StoreError where the connection is lost first.
        """
        if self._transport is None:
            raise self._why or StoreError(f"{self._where} is not connected")
        packed = cast("bytes", hiredis.pack_command(command))  # type: ignore[arg-type]
        if not self._packed:
            self._loop.call_soon(self._flush)
        self._packed.append(packed)
        self._sent += 1
        return self._asked.add(self._sent, self._timeout_s)

    def _flush(self) -> None:
        packed, self._packed = self._packed, []
        if self._transport is not None and packed:
            self._transport.write(b"".join(packed))

    def keep_alive(self) -> None:
        """Ping from now on, so that a dead connection is noticed where nothing is asked."""
        self._pinging = self._loop.call_later(PING_EVERY_S, self._ping)

    def _ping(self) -> None:
        if self._transport is not None:
            if not len(self._asked):
                self.ask("PING")
            self.keep_alive()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                if self._pushed is not None and isinstance(reply, list) and reply[0] == b"message":
                    self._pushed(reply[1], reply[2])
                    continue
                self._answered += 1
                self._asked.answer(self._answered, reply)
        except hiredis.ProtocolError:
            self.abort(StoreError(f"{self._where} does not speak Redis's protocol: is that the right port?"))

    def _late(self, seconds: float) -> None:
        self.abort(StoreError(f"{self._where} did not answer within {seconds:g} s"))

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc is not None and str(exc) else ""
        self.abort(StoreError(f"{self._where} closed the connection{reason}"))

    def abort(self, error: StoreError) -> None:
        """Let go at once; whoever waits is told `error`, and that what was asked may have been done or not."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        self._why = error
        transport.abort()
        if self._pinging is not None:
            self._pinging.cancel()
        self._asked.fail(error)
        self._lost(self, error)
