"""For web agents on aiohttp: the request's context is current while it is handled.

web.Application(middlewares=[carrying_middleware])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from meshd_sdk.current import Current, using

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Answer = TypeVar("Answer")


async def carrying_middleware(request: Any, handler: Callable[[Any], Awaitable[Answer]]) -> Answer:
    """Handle one request, an answer that it streams and a WebSocket included. Put it first of all middlewares."""
    with using(Current.from_headers(request.headers)):
        return await handler(request)


# What aiohttp.web.middleware sets; aiohttp itself is not imported.
carrying_middleware.__middleware_version__ = 1  # type: ignore[attr-defined]
