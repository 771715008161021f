"""For web agents on ASGI (Starlette, FastAPI, Quart, Django): the request's context is current while it is handled.

app.add_middleware(Carrying)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from meshd_sdk.current import Current, using

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class Carrying:
    """ASGI middleware for HTTP and WebSocket requests, their streamed answers and Starlette's background tasks."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. One without a context has none: not that of whatever opened the connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        with using(Current.from_headers(scope["headers"])):
            await self.app(scope, receive, send)
