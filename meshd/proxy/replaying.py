"""A reply of ours that is read while it is sent: its beginning has left, and the rest follows at the caller's pace, or
when there is something to tell.

It ends as the wire ends a whole reply, or so that it shows: a rest that cannot be read never makes a short reply that
looks whole. This is the task of one such call; no other reply costs one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from meshd.filters.following import Following
from meshd.outcome import Fault
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.claims.rest import Rest
    from meshd.proxy.exchange import Exchange

log = logging.getLogger("meshd.proxy")

_CALLER_GONE: Final = Fault.CALLER_GONE
_INTERNAL: Final = Fault.INTERNAL


class Replaying:
    """The rest of one reply, on its way to the caller."""

    __slots__ = ("_error", "_exchange", "_is_over", "_is_paused", "_moved_s", "_piece", "_rest", "_resumed",
                 "_trailers")  # fmt: skip

    def __init__(self, exchange: Exchange, rest: Rest, trailers: Headers) -> None:
        self._exchange = exchange
        self._rest = rest
        self._trailers = trailers
        self._piece = b""
        self._error = ""
        self._is_over = False
        self._is_paused = False
        self._resumed: asyncio.Future[None] | None = None
        self._moved_s = exchange.proxy.now_s
        """Monotonic seconds at which the caller last took something."""

    async def run(self) -> None:
        """Send it. Whatever it ends in, the call ends with it."""
        exchange, rest = self._exchange, self._rest
        proxy = exchange.proxy
        try:
            while not self._is_over:
                # What was sent before leaves first, so that a caller who can take no more has said so.
                await asyncio.sleep(0)
                if self._is_paused:
                    self._resumed = asyncio.get_running_loop().create_future()
                    await self._resumed
                    continue
                self._piece = await rest.next()
                proxy.run(self._send, exchange)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reply must not look whole
            self._error = str(error)
            proxy.run(self._break, exchange)
        finally:
            rest.close()

    def _send(self) -> None:
        exchange, piece = self._exchange, self._piece
        self._piece = b""
        if self._is_over:
            return
        self._moved_s = exchange.proxy.now_s
        if piece:
            exchange.caller.send_data(piece)
        else:
            exchange.caller.send_end(self._trailers)
            exchange.finish(exchange.attempt, Fault.NONE)

    def _break(self) -> None:
        if self._is_over:
            return
        exchange = self._exchange
        log.error("the replay for the call %s breaks off: %s", exchange.call.id, self._error)
        message = f"The answer that is given again breaks off ({self._error}). It is not carried out again."
        exchange.break_reply(Refused(Reason.KEY_UNKNOWN, message), _INTERNAL)

    def pause(self) -> None:
        """The caller cannot take more for now."""
        self._is_paused = True

    def resume(self) -> None:
        """The caller can take more again."""
        if self._is_paused:
            self._is_paused = False
            self._moved_s = self._exchange.proxy.now_s
            self._wake()

    def expire(self, now_s: float) -> None:
        """End it where its caller has taken nothing for too long; called about twice a second."""
        exchange = self._exchange
        if self._is_paused and now_s - self._moved_s > exchange.call.policy.limits.idle_timeout_s:
            exchange.break_reply(Refused(Reason.MALFORMED, "The reply was not read", status=408), _CALLER_GONE)

    def stop(self) -> None:
        """The call has ended: nothing more of it is sent."""
        self._is_over = True
        self._rest.close()
        self._wake()

    def let_go(self) -> None:
        """The drain has begun: what only waits for people ends here, and can be asked for elsewhere."""
        if isinstance(self._rest, Following):
            self._rest.close()

    def _wake(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)
