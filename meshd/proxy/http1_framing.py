"""How the body of a reply to an HTTP/1.1 caller ends: by its length, by chunks, or by the connection's own end."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from meshd.call import Headers

RAW, LENGTH, CHUNKED, NONE, UNTIL_CLOSE = range(5)
_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)


def frame(fields: Headers, status: int, content_length: int | None, *, has_body: bool, has_chunks: bool) -> int:
    """Add the fields that say where the reply's body ends; return by what it does.

    `has_chunks` is False for a caller of HTTP/1.0, who cannot read them.
    """
    if content_length is not None and status != 204:
        fields.append((b"content-length", b"%d" % content_length))
    if not has_body:
        return NONE
    if content_length is not None:
        return LENGTH
    if has_chunks:
        fields.append((b"transfer-encoding", b"chunked"))
        return CHUNKED
    return UNTIL_CLOSE


def break_off(transport: Any, framing: int) -> None:
    """Close a connection on which a reply is not whole, so that it shows."""
    if framing == UNTIL_CLOSE:
        # Here a plain close would make the reply look whole; only a reset says that it is not.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        transport.abort()
    else:
        transport.close()
