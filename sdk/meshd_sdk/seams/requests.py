"""requests: the adapter, which sends one request and is told its proxies."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from meshd_sdk.seams.seam import Patch, needed, replaced, switch
from meshd_sdk.sidecar import place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType


def hook(module: ModuleType) -> list[Patch]:
    """Hook `HTTPAdapter.send`: adapters of one's own are most often made of that one."""
    _, select_proxy = needed(module, "adapters.HTTPAdapter.send", "utils.select_proxy")

    def around(send: Any) -> Any:
        return _around(send, select_proxy)

    return [replaced(module.adapters.HTTPAdapter, "send", around)]


def _around(send: Any, select_proxy: Callable[[str, Mapping[str, str] | None], str | None]) -> Any:
    @wraps(send)
    def send_with_context(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        # send(request, stream, timeout, verify, cert, proxies)
        proxies = kwargs.get("proxies") if len(args) < 5 else args[4]
        scheme, host, port = _parts(request.url)
        proxy = _proxy(select_proxy(request.url, proxies)) if proxies else None
        added = switch.due(scheme, host, port, proxy, request.headers.__contains__)
        request.headers.update(added)
        try:
            return send(self, request, *args, **kwargs)
        finally:
            # A redirect is made of a copy of this request, wherever it leads.
            for name in added:
                request.headers.pop(name, None)

    return send_with_context


def _parts(url: str | None) -> tuple[str, str | None, int | None]:
    try:
        split = urlsplit(url or "")
        return split.scheme, split.hostname, split.port
    except ValueError:
        return "", None, None


def _proxy(address: str | None) -> tuple[str, int] | None:
    if not address:
        return None
    try:
        return place(address if "://" in address else f"http://{address}")
    except ValueError:
        # SOCKS is a tunnel: its other end reads the request.
        return None
