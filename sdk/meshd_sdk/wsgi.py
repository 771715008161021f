"""For web agents on WSGI (Flask, Django): the request's context is current while it is handled.

app.wsgi_app = Carrying(app.wsgi_app)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from meshd_sdk.current import Current, using

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Environ: TypeAlias = dict[str, Any]
    App: TypeAlias = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_PREFIX = "HTTP_"


class Carrying:
    """WSGI middleware, for answers that are generated while they are sent too."""

    def __init__(self, app: App) -> None:
        self.app = app

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle one request. One without a context has none: not that of the thread's last one."""
        now = Current.from_headers(
            (name[len(_PREFIX) :].replace("_", "-"), value)
            for name, value in environ.items()
            if name.startswith(_PREFIX)
        )
        with using(now):
            body = self.app(environ, start_response)
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(body, list | tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper)):
            return body
        return _Body(body, now)


class _Body:
    """An answer that is made piece by piece: each within the context."""

    def __init__(self, body: Iterable[bytes], now: Current | None) -> None:
        self._body = body
        self._now = now
        with using(now):
            self._pieces = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with using(self._now):
            return next(self._pieces)

    def close(self) -> None:
        """Close what the application returned, as PEP 3333 asks, where it can be closed."""
        if hasattr(self._body, "close"):
            with using(self._now):
                self._body.close()
