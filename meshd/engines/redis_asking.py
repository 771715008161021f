"""What is asked of one Redis over one link: commands whose replies are awaited together, and scripts by digest."""

from __future__ import annotations

import asyncio
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from meshd.engines import redis_server
from meshd.engines.link import Link
from meshd.engines.port import StoreClosed, StoreError, StoreReadOnly
from meshd.engines.redis_wire import ReplyError, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class Asking:
    """One link, the scripts that are loaded at each connection, and how many wait for a reply."""

    def __init__(
        self,
        where: str,
        dial: Callable[[], Awaitable[Wire]],
        scripts: Sequence[str],
        *,
        connect_timeout_s: float,
        restored: Callable[[], None],
    ) -> None:
        self.where = where
        self.link = Link(where, dial, timeout_s=connect_timeout_s, restored=restored)
        self._digests = {script: sha1(script.encode(), usedforsecurity=False).hexdigest() for script in scripts}
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False

    def check(self) -> None:
        """Raises StoreClosed."""
        if self._is_closed:
            raise StoreClosed(f"{self.where} was closed")

    async def load(self, wire: Wire) -> None:
        """Let a server know the scripts. Raises StoreError."""
        for script in self._digests:
            await redis_server.asked(wire, self.where, "SCRIPT", "LOAD", script)

    async def all(self, *asked: asyncio.Future[Any]) -> list[Any]:
        """Return replies, ReplyErrors among them. Raises StoreError where the connection broke."""
        self._begin()
        try:
            replies = await asyncio.gather(*asked, return_exceptions=True)
        finally:
            self._end()
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, ReplyError):
                raise reply
        return replies

    async def one(self, asked: asyncio.Future[Any]) -> Any:
        """Return a reply, which may be a ReplyError. Raises StoreError where the connection broke."""
        self._begin()
        try:
            return await asked
        except ReplyError as error:
            return error
        finally:
            self._end()

    def _begin(self) -> None:
        self._under_way += 1
        self._idle.clear()

    def _end(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    async def run(self, script: str, names: Sequence[bytes], arguments: Sequence[bytes | str | int]) -> Any:
        """Run a script and return its reply, a ReplyError too.

        Raises StoreError; where that came in place of a reply, nobody knows whether it ran.
        """
        wire = self.link.current()
        reply = await self.one(wire.ask("EVALSHA", self._digests[script], len(names), *names, *arguments))
        if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
            # The server has forgotten its scripts (a restart, SCRIPT FLUSH). It says so before it runs anything, so
            # this is the one case in which asking again cannot do a thing twice.
            reply = await self.one(wire.ask("EVAL", script, len(names), *names, *arguments))
        return reply

    def told(self, text: str) -> StoreError:
        """Return what a refusal of the server means; where another server may do better, look for it."""
        error = redis_server.told(self.where, text)
        if isinstance(error, StoreReadOnly) or text.partition(" ")[0] in ("LOADING", "NOAUTH"):
            # It is a replica now, or has lost what it knew of us: its name may lead to another server by now.
            self.dial_anew(error)
        return error

    def dial_anew(self, error: StoreError) -> None:
        """Give up the connection, if there is one, and make another."""
        try:
            self.link.lost(self.link.current(), error)
        except StoreError:
            pass

    async def finish(self) -> None:
        """Take nothing more on, and wait for what was asked."""
        self._is_closed = True
        await self._idle.wait()
