"""An agent's handlers at work: which one a call or an event is for, in which context it runs, and how it ends.

Knows neither protobuf nor sockets: the session hands it what came, and so does a process without a sidecar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd_sdk.bodies import JSON, LINES, Reply, decode, encode
from meshd_sdk.ctx import Ctx
from meshd_sdk.current import using
from meshd_sdk.errors import ArgumentsInvalid, CallFailed, Drop, Failure, NoSidecar, Retry, TimedOut
from meshd_sdk.link import Piece
from meshd_sdk.log import log

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from meshd_sdk.handlers import Entrance, Handler, Subscription, Tool
    from meshd_sdk.link import Event, Given, Link

REASON_CHARS_MAX: Final = 1000


class Verdict(NamedTuple):
    """What became of an event."""

    word: str
    """SUCCESS, RETRY or DROP."""
    reason: str = ""
    after_s: float | None = None


class Serving:
    """What an agent offers. Complete before the first call comes."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.tools: dict[str, Tool] = {}
        self.entrance: Entrance | None = None
        self.subscriptions: list[Subscription] = []
        self.link: Link | None = None
        """Who carries out what handlers ask for; None before the agent has begun."""
        self.loop: asyncio.AbstractEventLoop | None = None

    def _ctx(self, given: Given, **more: Any) -> Ctx:
        assert self.link is not None
        return Ctx(self.link, given, agent=self.agent, loop=self.loop, **more)

    async def run_call(
        self,
        given: Given,
        operation: str,
        payload: bytes,
        content_type: str,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
    ) -> AsyncIterator[Piece]:
        """Carry out a call: yield the pieces of its reply. Raises a Failure, whatever the handler has raised."""
        import asyncio

        ctx = self._ctx(given, operation=operation, idempotency_key=idempotency_key)
        try:
            handler, arguments = self._find(operation, payload, content_type)
            ends_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
            if handler.is_stream:
                async for piece in _streamed(handler, ctx, arguments, ends_s):
                    yield piece
                return
            async with asyncio.timeout_at(ends_s):
                with using(ctx.current):
                    value = await handler.start(_face(handler, ctx), arguments)
            yield Piece(*encode(value))
        except GeneratorExit:
            raise
        except BaseException as error:
            if _is_cancelled(error):
                raise
            raise _failure(error, self.agent, operation) from error

    def _find(self, operation: str, payload: bytes, content_type: str) -> tuple[Handler, dict[str, Any]]:
        """Return who carries out an operation, and the arguments. Raises ArgumentsInvalid, CallFailed."""
        if (tool := self.tools.get(operation)) is not None:
            value = decode(payload, content_type)
            if isinstance(value, Reply):
                raise ArgumentsInvalid(
                    f"the arguments of {tool.name} are a JSON object, not {value.content_type}: send them as {JSON}"
                )
            return tool, tool.arguments(value)
        if self.entrance is not None:
            return self.entrance, self.entrance.arguments(decode(payload, content_type))
        there = ", ".join(sorted(self.tools)) or "none"
        if operation:
            raise CallFailed(f"{self.agent} has no tool {operation!r}; there are: {there}", code="NOT_FOUND")
        words = f"{self.agent} answers no call that names no tool (@agent.serve would); its tools are: {there}"
        raise CallFailed(words, code="NOT_FOUND")

    async def run_event(self, subscription: Subscription, event: Event, given: Given) -> Verdict:
        """Handle an event. Never raises but where it is cancelled."""
        import asyncio

        ctx = self._ctx(given, event=event, operation=event.topic)
        handler = subscription.handler
        try:
            arguments = {handler.payload: event} if handler.payload else {}
            with using(ctx.current):
                ended = handler.start(_face(handler, ctx), arguments)
                if handler.is_stream:
                    async for _ in ended:
                        pass
                else:
                    await ended
        except Drop as drop:
            return Verdict("DROP", drop.reason[:REASON_CHARS_MAX])
        except Retry as retry:
            return Verdict("RETRY", retry.reason[:REASON_CHARS_MAX], retry.after)
        except BaseException as error:
            if _is_cancelled(error):
                raise
            if not isinstance(error, Exception | asyncio.CancelledError):
                log().error("the handler of %s raised %s", event.topic, type(error).__name__)
                raise
            log().warning("the handler of %s failed: it is to be retried", event.topic, exc_info=error)
            after_s = error.retry_after_s if isinstance(error, Failure) else None
            return Verdict("RETRY", f"{type(error).__name__}: {error}"[:REASON_CHARS_MAX], after_s)
        return Verdict("SUCCESS")


async def _streamed(
    handler: Handler, ctx: Ctx, arguments: dict[str, Any], ends_s: float | None
) -> AsyncIterator[Piece]:
    """Yield what a handler yields: bytes as they are, all else as JSON in lines; what comes first says which."""
    import asyncio

    iterator = None
    kind = ""
    try:
        while True:
            async with asyncio.timeout_at(ends_s):
                with using(ctx.current):
                    if iterator is None:
                        iterator = handler.start(_face(handler, ctx), arguments)
                    try:
                        value = await anext(iterator)
                    except StopAsyncIteration:
                        break
            if not kind:
                is_bytes = isinstance(value, bytes | bytearray | memoryview | Reply)
                kind = encode(value)[1] if is_bytes else LINES
            if kind == LINES:
                yield Piece(encode(value, JSON)[0] + b"\n", LINES, is_of_stream=True)
            else:
                yield Piece(encode(value, kind)[0], kind, is_of_stream=True)
        if not kind:
            yield Piece(b"", LINES)
    finally:
        if iterator is not None:
            with using(ctx.current):
                await iterator.aclose()


def _face(handler: Handler, ctx: Ctx) -> Any:
    """Return the context as a handler can use it: a plain one runs in a thread, and cannot await."""
    if handler.is_async or not handler.ctx:
        return ctx
    from meshd_sdk.sync import face

    return face(ctx)


def _is_cancelled(error: BaseException) -> bool:
    """Say whether somebody has cancelled this task.

    Else what was cancelled is something that the handler waited for, and it has failed as by any error.
    """
    import asyncio

    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _failure(error: BaseException, agent: str, operation: str) -> Failure:
    """Return what the caller hears of an error."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ArgumentsInvalid):
        return CallFailed(str(error), code="INVALID_ARGUMENT")
    if isinstance(error, TimeoutError):
        return TimedOut(f"{agent} did not finish {operation or 'the call'} in time")
    if isinstance(error, NoSidecar):
        return CallFailed(str(error), code="UNAVAILABLE")
    log().error("%s failed at %s", agent, operation or "a call", exc_info=error)
    return CallFailed(f"{type(error).__name__}: {error}"[:REASON_CHARS_MAX], code="INTERNAL")
