"""aiohttp's client: the request, which is made anew for each hop of a redirect."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from meshd_sdk.seams.seam import Patch, needed, replaced, switch

if TYPE_CHECKING:
    from types import ModuleType


def hook(module: ModuleType) -> list[Patch]:
    """Hook `ClientRequest.send`, which writes one request's head; WebSockets begin with it too."""
    needed(module, "ClientRequest.send", "ClientRequest.is_ssl")
    return [replaced(module.ClientRequest, "send", _around)]


def _around(send: Any) -> Any:
    @wraps(send)
    async def send_with_context(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.method != "CONNECT":
            proxy = None if self.proxy is None else (self.proxy.host.lower(), self.proxy.port)
            scheme = "https" if self.is_ssl() else "http"
            added = switch.due(scheme, self.url.host, self.url.port, proxy, self.headers.__contains__)
            self.headers.update(added)
        return await send(self, *args, **kwargs)

    return send_with_context
