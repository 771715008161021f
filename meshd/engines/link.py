"""A connection that is made anew in the background whenever it is lost, and what is asked over it.

Nothing is asked twice. What was sent when a connection broke may have been done or not: a compare-and-set that was
made and is sent again would be told as refused, and a take would be counted twice. So whoever asked is told at once
that nobody knows, and reads before it decides anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from meshd.engines.port import StoreClosed, StoreError, StoreUnable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_log = logging.getLogger("meshd.store")

FIRST_DELAY_S: Final = 0.05
DELAY_S_MAX: Final = 5.0
"""Longest that the next try is put off. The wait before each try is drawn from 0 to a bound that doubles up to this,
so that sidecars that lost a store together do not come back together."""


class Connection(Protocol):
    """What a link keeps."""

    @property
    def is_open(self) -> bool:
        """False from the moment at which it is known to be lost."""
        ...

    def abort(self, error: StoreError) -> None:
        """Let go at once; what is asked over it fails with `error`."""
        ...


C = TypeVar("C", bound=Connection)


class Link(Generic[C]):
    """Keeps one connection. Where there is none, `current` raises at once why; nobody waits for its return."""

    def __init__(
        self,
        where: str,
        dial: Callable[[], Awaitable[C]],
        *,
        timeout_s: float,
        restored: Callable[[], None] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`dial` connects and signs in, within `timeout_s`; `restored` is called after a loss was mended."""
        self.where = where
        self._dial = dial
        self._timeout_s = timeout_s
        self._restored = restored
        self._draw = draw
        self._current: C | None = None
        self._why = StoreError(f"{where} is not connected")
        self._task: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self._is_closed = False

    async def open(self) -> None:
        """Connect for the first time. Raises StoreError."""
        connection = await self._dialled()
        if not connection.is_open:  # lost before it was ours: nobody would hear of that again
            raise StoreError(f"{self.where} closed the connection")
        self._current = connection

    def current(self) -> C:
        """Return the connection. Raises StoreError or the kind of it that says why there is none."""
        if self._current is None:
            raise type(self._why)(str(self._why))
        return self._current

    @property
    def is_up(self) -> bool:
        """There is a connection, as far as is known."""
        return self._current is not None

    def lost(self, connection: object, error: StoreError) -> None:
        """Take note that a connection is gone, and begin to make another. May be called more than once."""
        if self._is_closed or self._current is None or connection is not self._current:
            return
        current, self._current = self._current, None
        self._why = error
        current.abort(error)
        _log.warning("%s; trying to connect again", error)
        self._task = asyncio.get_running_loop().create_task(self._redial())

    def hurry(self) -> None:
        """Try now where the next try is put off: another connection to the same server has just been made."""
        self._hurried.set()

    async def _redial(self) -> None:
        bound_s, tries, said = FIRST_DELAY_S, 0, ""
        # Whoever dials may tell that it was cancelled in other words, as that the server does not answer in time.
        while not self._is_closed:
            self._hurried.clear()
            try:
                async with asyncio.timeout(self._draw() * bound_s):
                    await self._hurried.wait()
            except TimeoutError:
                pass
            bound_s, tries = min(DELAY_S_MAX, bound_s * 2), tries + 1
            try:
                connection = await self._dialled()
            except StoreError as error:
                self._why = error
                if str(error) != said and not self._is_closed:
                    said = str(error)
                    _log.warning("no new connection: %s", error)
                continue
            if not connection.is_open:
                continue
            self._current = connection
            _log.info("%s is back after %d tries", self.where, tries)
            if self._restored is not None:
                self._restored()
            return

    async def _dialled(self) -> C:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._dial()
        except (OSError, TimeoutError) as error:
            raise told(error, self.where, self._timeout_s) from error

    async def close(self) -> None:
        """Stop trying and let go of the connection, which must have nothing under way."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._current is not None:
            current, self._current = self._current, None
            current.abort(StoreClosed(f"{self.where} was closed"))
        self._why = StoreClosed(f"{self.where} was closed")


def told(error: OSError | TimeoutError, where: str, timeout_s: float) -> StoreError:
    """Return why there is no connection, in words for an operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreUnable(
            f"{where} shows a certificate that is not trusted ({error.verify_message}); name its CA: ca="
        )
    if isinstance(error, ssl.SSLError):
        return StoreError(f"{where}: TLS failed ({error.reason or error}); does it speak TLS on that port?")
    if isinstance(error, TimeoutError):
        return StoreError(f"{where} did not answer within {timeout_s:g} s")
    if isinstance(error, socket.gaierror):
        return StoreError(f"{where} has no address: its name cannot be resolved")
    if isinstance(error, ConnectionRefusedError):
        return StoreError(f"{where} refuses connections: is it running, on that port?")
    return StoreError(f"{where} cannot be reached: {error.strerror or error}")


def in_doubt(error: StoreError) -> StoreError:
    """Return what those are told who had asked when the connection was lost; whoever asks later is told `error`."""
    return type(error)(f"{error}; what was asked may have been done or not")


class AtOnce:
    """In place of a future, of what was asked: what follows the answer is done when it comes, and not a turn later.

    `tell` is called with the answer, or with what came in its place, and must neither wait nor raise.
    """

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell

    def done(self) -> bool:
        return False

    def set_result(self, reply: object) -> None:
        self._tell(reply)

    def set_exception(self, error: Exception) -> None:
        self._tell(error)

    def exception(self) -> None:
        """Nobody need look at it."""


def relayed(tell: Callable[[Any], None]) -> Callable[[asyncio.Future[Any]], None]:
    """Return what calls `tell` with the result of a future that is done, or with the StoreError that it raises."""

    def done(future: asyncio.Future[Any]) -> None:
        error = future.exception()
        tell(future.result() if error is None else error if isinstance(error, StoreError) else StoreError(str(error)))

    return done


class Look:
    """A call some time from now, by when what came until then has been read.

    A process that is paused (a container that is frozen, a machine that sleeps) finds its timers due when it goes on,
    before it has read what came meanwhile: that was not waited for in vain. So what comes late itself is put off, once.
    """

    __slots__ = ("_call", "_due_s", "_loop", "_slack_s", "_timer")

    def __init__(self, after_s: float, slack_s: float, call: Callable[[], None]) -> None:
        """`slack_s`: how late it may come, and by how much it is put off where it comes later."""
        self._loop = asyncio.get_running_loop()
        self._due_s = self._loop.time() + after_s
        self._slack_s = slack_s
        self._call = call
        self._timer = self._loop.call_at(self._due_s, self._come)

    def _come(self) -> None:
        if self._loop.time() - self._due_s > self._slack_s:
            self._timer = self._loop.call_later(self._slack_s, self._call)
        else:
            self._call()

    def cancel(self) -> None:
        """Call nothing. Where it has been called that does nothing."""
        self._timer.cancel()


@contextlib.asynccontextmanager
async def answered_within(timeout_s: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, for what a server is to answer: with a `Look` for its end."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        look = Look(timeout_s, timeout_s / 4, lambda: limit.reschedule(loop.time()))
        try:
            yield
        finally:
            look.cancel()


class Asked:
    """What was asked over one connection and has no answer yet, with one timer for all of it."""

    __slots__ = ("_asked", "_late", "_loop", "_timer")

    def __init__(self, late: Callable[[float], None]) -> None:
        """`late` is called with the seconds that something was waited for in vain."""
        self._loop = asyncio.get_running_loop()
        self._late = late
        self._asked: dict[int, tuple[asyncio.Future[Any] | AtOnce, float, float]] = {}
        self._timer: Look | None = None

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, key: int, timeout_s: float) -> asyncio.Future[Any]:
        """Return what the answer to `key` will be given to."""
        future = self._loop.create_future()
        self.give(key, timeout_s, future)
        return future

    def give(self, key: int, timeout_s: float, to: asyncio.Future[Any] | AtOnce) -> None:
        """Give the answer to `key` to that."""
        self._asked[key] = (to, self._loop.time() + timeout_s, timeout_s)
        if self._timer is None:
            self._look_in(timeout_s / 4)

    def _look_in(self, every_s: float) -> None:
        self._timer = Look(every_s, every_s, lambda: self._look(every_s))

    def _look(self, every_s: float) -> None:
        self._timer = None
        if not self._asked:
            return
        now_s = self._loop.time()
        for _, due_s, timeout_s in self._asked.values():
            if due_s <= now_s:
                self._late(timeout_s)
                return
        self._look_in(every_s)

    def answer(self, key: int, reply: object) -> None:
        """Give an answer; an exception is raised where it is awaited. For what is not asked any more: nothing."""
        if (found := self._asked.pop(key, None)) is None or found[0].done():
            return
        if isinstance(reply, Exception):
            found[0].set_exception(reply)
            found[0].exception()
        else:
            found[0].set_result(reply)

    def fail(self, error: StoreError) -> None:
        """Tell everybody who waits that no answer will come, and that nobody knows what became of their asking."""
        asked, self._asked = self._asked, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for future, _, _ in asked.values():
            if not future.done():
                future.set_exception(in_doubt(error))
                future.exception()  # of several asked as one, only the first is awaited to its end
