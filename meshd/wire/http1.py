"""HTTP/1.1 as meshd writes it: heads always afresh, fields never spliced in from elsewhere, bodies framed by us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshd.call import Headers

_PHRASES: Final = {
    100: b"Continue", 101: b"Switching Protocols", 200: b"OK", 201: b"Created", 202: b"Accepted", 204: b"No Content",
    206: b"Partial Content", 301: b"Moved Permanently", 302: b"Found", 303: b"See Other", 304: b"Not Modified",
    307: b"Temporary Redirect", 308: b"Permanent Redirect", 400: b"Bad Request", 401: b"Unauthorized",
    402: b"Payment Required", 403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed",
    408: b"Request Timeout", 409: b"Conflict", 413: b"Content Too Large", 414: b"URI Too Long",
    417: b"Expectation Failed", 421: b"Misdirected Request", 422: b"Unprocessable Content",
    428: b"Precondition Required", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large",
    500: b"Internal Server Error", 501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable",
    504: b"Gateway Timeout", 505: b"HTTP Version Not Supported", 529: b"Overloaded",
}  # fmt: skip
_STATUS_LINES: Final = {status: b"HTTP/1.1 %d %s\r\n" % (status, phrase) for status, phrase in _PHRASES.items()}
LAST_CHUNK: Final = b"0\r\n\r\n"
_CHUNK_HEADS: Final = [b"%x\r\n" % size for size in range(2048)]
"""Before the data of chunks that are as short as most pieces of a stream: to format costs more than to look up."""


def encode_reply_head(status: int, headers: Headers) -> bytes:
    """Return a reply's head, framing fields included in `headers`."""
    parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
    _add_lines(parts, headers)
    return b"".join(parts)


def encode_request_head(method: str, path: str, authority: bytes, fields: bytes, added: Headers) -> bytes:
    """Return a request's head in origin form: `fields` as lines, then those `added`, framing included."""
    parts = [method.encode("ascii"), b" ", path.encode("latin-1"), b" HTTP/1.1\r\nhost: ", authority, b"\r\n", fields]
    _add_lines(parts, added)
    return b"".join(parts)


def _add_lines(parts: list[bytes], headers: Headers) -> None:
    """Add the lines of fields, and the one that ends them. Compiled, four appends cost a third of one of a tuple."""
    for name, value in headers:
        parts.append(name)
        parts.append(b": ")
        parts.append(value)
        parts.append(b"\r\n")
    parts.append(b"\r\n")


def encode_chunk(data: bytes) -> bytes:
    """Return `data` as one chunk."""
    size = len(data)
    return b"".join((_CHUNK_HEADS[size] if size < len(_CHUNK_HEADS) else b"%x\r\n" % size, data, b"\r\n"))


def encode_last_chunk(trailers: Headers) -> bytes:
    """Return the end of a chunked body with its trailers."""
    if not trailers:
        return LAST_CHUNK
    return b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in trailers) + b"\r\n"
