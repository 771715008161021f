"""For agents that serve gRPC: the call's context is current while it is handled.

grpc.server(ThreadPoolExecutor(), interceptors=[Carrying()])
grpc.aio.server(interceptors=[AioCarrying()])
"""

from __future__ import annotations

from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshd_sdk.current import Current, become, using

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Carrying(grpc.ServerInterceptor):
    """For `grpc.server`: all four kinds of call, streamed replies and the reading of streamed requests included."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler, run with the call's context; None where there is no such method."""
        handler = continuation(handler_call_details)
        return handler and _carrying(handler, _said(handler_call_details))


class AioCarrying(grpc.aio.ServerInterceptor):
    """For `grpc.aio.server`, which runs a call and its interceptors in one task, and plain functions in a thread."""

    async def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler, run with the call's context; it stays current to the end of the call's task."""
        now = _said(handler_call_details)
        become(now)
        handler = await continuation(handler_call_details)
        behaviour = handler and _behaviour(handler)
        if behaviour is None or iscoroutinefunction(behaviour) or isasyncgenfunction(behaviour):
            return handler
        return _carrying(handler, now)


def _said(details: Any) -> Current | None:
    return Current.from_headers(details.invocation_metadata or ())


def _behaviour(handler: Any) -> Callable[[Any, Any], Any]:
    if handler.response_streaming:
        return handler.stream_stream if handler.request_streaming else handler.unary_stream  # type: ignore[no-any-return]
    return handler.stream_unary if handler.request_streaming else handler.unary_unary  # type: ignore[no-any-return]


def _carrying(handler: Any, now: Current | None) -> Any:
    behaviour = _behaviour(handler)
    if handler.response_streaming:
        behaviour = _streaming(behaviour, now)
        streamed, single = grpc.stream_stream_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    else:
        behaviour = _unary(behaviour, now)
        streamed, single = grpc.stream_unary_rpc_method_handler, grpc.unary_unary_rpc_method_handler
    make: Any = streamed if handler.request_streaming else single
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _unary(behaviour: Callable[[Any, Any], Any], now: Current | None) -> Callable[[Any, Any], Any]:
    def handle(request: Any, context: Any) -> Any:
        with using(now):
            return behaviour(request, context)

    return handle


def _streaming(behaviour: Callable[[Any, Any], Any], now: Current | None) -> Callable[[Any, Any], Iterator[Any]]:
    def handle(request: Any, context: Any) -> Iterator[Any]:
        with using(now):
            replies = iter(behaviour(request, context))
        try:
            while True:
                # Each step by itself: between two of them the thread may serve another call.
                with using(now):
                    try:
                        reply = next(replies)
                    except StopIteration:
                        return
                yield reply
        finally:
            close = getattr(replies, "close", None)
            if close is not None:
                with using(now):
                    close()

    return handle
