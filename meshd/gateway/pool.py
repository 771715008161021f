"""What stands in a pool's place for calls that the gateway answers itself: there is nothing to connect to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from meshd.gateway.answering import Answer, answer_get, answer_message, end_session
from meshd.gateway.messages import LAST_EVENT_FIELD, as_event
from meshd.gateway.streams import Stream
from meshd.proxy.pool import Pool
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from meshd.call import Headers
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.proxy import Proxy


class GatewayPool(Pool):
    """Answers in the place of an upstream."""

    __slots__ = ()

    @property
    def connections_open(self) -> int:
        """Clients with a session."""
        return len(self._proxy.gateway.clients)

    def acquire(self, attempt: Attempt) -> Any:
        """Return what answers the call. Raises Refused for what is neither a message nor a stream."""
        if self._wire != "gateway":
            raise Refused(Reason.NOT_ALLOWED, "The MCP gateway takes messages by POST, and no tunnels")
        return Answering(self._proxy)

    def forget(self, attempt: Attempt) -> None:
        """Nobody waits."""

    def expire(self, now_s: float) -> None:
        """End sessions that nobody uses."""
        self._proxy.gateway.expire(now_s)

    def retire(self) -> None:
        """Calls that run end by themselves."""

    def close(self) -> None:
        """Nothing is open."""


class Answering:
    """One call that the gateway answers, as a connection and as a stream."""

    __slots__ = ("_attempt", "_proxy", "_stream", "_task")

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._attempt: Any = None
        self._stream: Stream | None = None
        self._task: asyncio.Task[None] | None = None

    def open(
        self,
        attempt: Attempt,
        *,
        method: str,
        path: str,
        added: Headers,
        has_body: bool,
        content_length: int | None,
        body: bytes | None,
        upgrade: bytes = b"",
    ) -> None:
        """Answer, now or when the servers have said what is asked of them. Raises Refused."""
        self._attempt = attempt
        attempt.stream = self
        self._proxy.commit()
        gateway, call = self._proxy.gateway, attempt.call
        if method == "POST":
            made = answer_message(gateway, call)
        elif method == "DELETE":
            made = end_session(gateway, call)
        else:
            made = answer_get(gateway, call, method, attempt.exchange.request.target)
        if isinstance(made, Answer):
            self._put(made)
        else:
            self._task = self._proxy.loop.create_task(self._later(made))

    async def _later(self, making: Coroutine[Any, Any, Answer]) -> None:
        attempt = self._attempt
        try:
            answer = await making
        except asyncio.CancelledError:
            raise
        except Refused as refused:
            self._task = None
            told = refused
            self._proxy.run(lambda: self._refuse(told), attempt.exchange)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the call must end
            self._task = None
            failed = Refused(Reason.INTERNAL, f"The gateway could not answer: {error!r}"[:500])
            self._proxy.run(lambda: self._refuse(failed), attempt.exchange)
            return
        self._task = None
        self._proxy.run(lambda: self._put(answer, is_late=True), attempt.exchange)

    def _refuse(self, refused: Refused) -> None:
        if not self._attempt.is_over:
            self._attempt.exchange.refuse_attempt(refused)

    def _put(self, answer: Answer, *, is_late: bool = False) -> None:
        attempt = self._attempt
        if attempt.is_over:
            return
        rpc = attempt.call.rpc
        body, headers = answer.body, list(answer.headers)
        if answer.is_stream:
            headers.append((b"content-type", b"text/event-stream"))
            headers.append((b"cache-control", b"no-cache"))
            attempt.reply_head(answer.status, headers, None)
            stream = self._stream = Stream(
                attempt, wanted=answer.wanted, uris=answer.uris, subscription=answer.subscription
            )
            if body:
                attempt.reply_data(body if answer.is_event else as_event(body))
            self._proxy.gateway.attach(answer.client, stream, attempt.call.header(LAST_EVENT_FIELD) or b"")
            return
        # What had to be waited for is a stream where its client takes one, as most servers have it.
        if body and rpc is not None and rpc.is_stream and (is_late or not rpc.is_json_taken):
            headers.append((b"content-type", b"text/event-stream"))
            body = as_event(body)
        elif body:
            headers.append((b"content-type", b"application/json"))
        attempt.reply_head(answer.status, headers, len(body))
        if body:
            attempt.reply_data(body)
        attempt.reply_end([])

    # ------------------------------------------------------------------ Stream

    def send_data(self, data: bytes, is_last: bool = False) -> None:
        """The body is here whole."""

    def send_end(self, trailers: Headers) -> None:
        """As above."""

    def cancel(self) -> None:
        """The call is given up."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if self._stream is not None:
            self._proxy.gateway.detach(self._stream)

    def pause_reply(self) -> None:
        """The client cannot take more for now."""
        if self._stream is not None:
            self._stream.pause()

    def resume_reply(self) -> None:
        """The client can take more again."""
        if self._stream is not None:
            self._stream.resume()
