"""HTTP/1.1 as aiohttp speaks it, but for what it answers by itself: what cannot be read comes to no route."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from meshd.admin.doors import put_seal
from meshd.api.json_http import failed
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    import asyncio

LINE_BYTES_MAX: Final = 8190
"""Of the request line, and of each field."""
FIELDS_MAX: Final = 64
LINGER_S: Final = 1.0
WHY_CHARACTERS_MAX: Final = 128

# Of each malformed head aiohttp logs a traceback: whoever reaches the port could fill the disk.
_unheard = logging.getLogger("meshd.api.unheard")
_unheard.setLevel(logging.CRITICAL + 1)


class HttpProtocol(web.RequestHandler):
    """One connection; `idle_s`: how long it may wait between two requests."""

    __slots__ = ()

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop, idle_s: float) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            logger=_unheard,
            keepalive_timeout=idle_s,
            lingering_time=LINGER_S,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            max_headers=FIELDS_MAX,
            auto_decompress=False,
        )

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what was no request as every other refusal is answered."""
        answer: Any = super().handle_error(request, status, exc, message)
        if isinstance(exc, BadHttpMessage):
            answer = failed(_refused(exc))
            put_seal(answer.headers)
            answer.force_close()
        return answer  # type: ignore[no-any-return]


def _refused(error: BadHttpMessage) -> Refused:
    if isinstance(error, LineTooLong):
        return Refused(Reason.TOO_LARGE, f"The request line and each field have at most {LINE_BYTES_MAX} bytes.")
    why = error.message.splitlines()[0].rstrip(":.")[:WHY_CHARACTERS_MAX] if error.message else "it is malformed"
    return Refused(Reason.MALFORMED, f"This is no request of HTTP/1.1: {why}.")
