"""For agents that serve gRPC: the call's context is current while it is handled.

grpc.server(ThreadPoolExecutor(), interceptors=[Carrying()])
grpc.aio.server(interceptors=[AioCarrying()])
"""

from __future__ import annotations

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
        if handler is None:
            return None
        now = Current.from_headers(handler_call_details.invocation_metadata or ())
        streams_in, streams_out = handler.request_streaming, handler.response_streaming
        if streams_out:
            behaviour = _streaming(handler.stream_stream if streams_in else handler.unary_stream, now)
            make: Any = grpc.stream_stream_rpc_method_handler if streams_in else grpc.unary_stream_rpc_method_handler
        else:
            behaviour = _unary(handler.stream_unary if streams_in else handler.unary_unary, now)
            make = grpc.stream_unary_rpc_method_handler if streams_in else grpc.unary_unary_rpc_method_handler
        return make(behaviour, handler.request_deserializer, handler.response_serializer)


class AioCarrying(grpc.aio.ServerInterceptor):
    """For `grpc.aio.server`, which runs a call and its interceptors in one task of its own."""

    async def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler; the context stays to the end of the call's task."""
        become(Current.from_headers(handler_call_details.invocation_metadata or ()))
        return await continuation(handler_call_details)


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
