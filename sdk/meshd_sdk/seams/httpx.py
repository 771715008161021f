"""httpx and httpx2, and with them openai, anthropic, mcp, a2a and whatever else sends by them."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from meshd_sdk.seams.seam import Patch, needed, replaced, switch

if TYPE_CHECKING:
    from types import ModuleType


def hook(module: ModuleType) -> list[Patch]:
    """Hook the method of both clients that sends one request, without redirects: those come through it again."""
    needed(
        module,
        "Client._send_single_request",
        "AsyncClient._send_single_request",
        "Client._transport_for_url",
        "AsyncClient._transport_for_url",
    )
    return [
        replaced(module.Client, "_send_single_request", _around),
        replaced(module.AsyncClient, "_send_single_request", _around_async),
    ]


def _around(send: Any) -> Any:
    @wraps(send)
    def _send_single_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        added = _add(self, request)
        try:
            return send(self, request, *args, **kwargs)
        finally:
            _remove(request, added)

    return _send_single_request


def _around_async(send: Any) -> Any:
    @wraps(send)
    async def _send_single_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        added = _add(self, request)
        try:
            return await send(self, request, *args, **kwargs)
        finally:
            _remove(request, added)

    return _send_single_request


def _add(client: Any, request: Any) -> dict[str, str]:
    url, headers = request.url, request.headers
    added = switch.due(url.scheme, url.host, url.port, _proxy(client, url), headers.__contains__)
    for name, value in added.items():
        headers[name] = value
    return added


def _remove(request: Any, added: dict[str, str]) -> None:
    """Take out what we added: a redirect is made of the request's headers, wherever it leads."""
    for name in added:
        request.headers.pop(name, None)


def _proxy(client: Any, url: Any) -> tuple[str, int] | None:
    """Return the HTTP proxy that this client sends this request through: its own, or the environment's."""
    proxy = getattr(getattr(client._transport_for_url(url), "_pool", None), "_proxy_url", None)
    if proxy is None or not proxy.scheme.startswith(b"http"):
        return None
    return proxy.host.decode("latin-1").lower(), proxy.port or (443 if proxy.scheme == b"https" else 80)
