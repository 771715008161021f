"""urllib3: the pool of one origin's connections."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from meshd_sdk.seams.seam import Patch, needed, replaced, switch

if TYPE_CHECKING:
    from types import ModuleType


def hook(module: ModuleType) -> list[Patch]:
    """Hook `HTTPConnectionPool.urlopen`, by which the pool manager sends each hop of a redirect."""
    needed(module, "HTTPConnectionPool.urlopen")
    return [replaced(module.HTTPConnectionPool, "urlopen", _around)]


def _around(urlopen: Any) -> Any:
    @wraps(urlopen)
    def urlopen_with_context(
        self: Any, method: Any, url: Any, body: Any = None, headers: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        given = self.headers if headers is None else headers
        names = {name.lower() for name in given or ()}
        # Plain http through a proxy has the proxy as its pool; https has a tunnel, and its own host.
        added = switch.due(self.scheme, self.host, self.port, None, names.__contains__)
        if added:
            headers = given.copy() if hasattr(given, "copy") else dict(given or ())
            headers.update(added)
        return urlopen(self, method, url, body, headers, *args, **kwargs)

    return urlopen_with_context
