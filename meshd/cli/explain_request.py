"""The request that `meshd explain` is asked about: raw HTTP/1.1, or a JSON document. Both go through the real wire."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from meshd.policy.model import NAME_PATTERN
from meshd.wire.http1_request import RequestReader

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.limits import Limits
    from meshd.wire.message import Request

HOST_DEFAULT = "127.0.0.1:7400"
_KEYS = {"method", "url", "headers", "body", "agent"}
_LINE = re.compile(r"[^\r\n\0]*\Z")
_REQUEST_LINE = re.compile(rb"\s*[^\r\n]+ HTTP/")
_NO_REQUEST = (
    "this is no whole HTTP/1.1 request: a request line, header fields, an empty line, then the body; "
    'or a JSON document such as {"method": "POST", "url": "/openai/v1/chat/completions", "body": {...}}'
)


class RequestError(Exception):
    """The file holds no request that could be sent; the message says why."""


class Asked:
    """One whole request."""

    def __init__(self) -> None:
        self.request: Request | None = None
        self.requests = 0
        self.body = b""
        self.is_whole = False
        self.agent = ""
        """Who calls, where the JSON document says so."""

    # The sink of the wire's reader.

    def request_head(self, request: Request) -> None:
        """Take the head."""
        self.requests += 1
        self.request = request
        # A tunnel has no end that the wire would see.
        self.is_whole = request.method == "CONNECT" or bool(request.upgrade)

    def request_data(self, data: bytes) -> None:
        """Take a piece of the body."""
        self.body += data

    def request_end(self, _trailers: Headers) -> None:
        """Take the end."""
        self.is_whole = True


def read_request(data: bytes, limits: Limits) -> Asked:
    """Read a file's content. Raises RequestError where it holds no request, Refused where the wire would refuse it."""
    asked = Asked()
    if data.lstrip()[:1] == b"{":
        raw, asked.agent = _from_json(data)
    elif has_request_line(data):
        raw = _with_framing(data)
    else:
        # To the wire any line is a request with a method that it does not know: of a file of prose that says nothing.
        raise RequestError(_NO_REQUEST)
    reader = RequestReader(
        asked,
        header_count_max=limits.header_count_max,
        header_bytes_max=limits.header_bytes_max,
        url_bytes_max=limits.url_bytes_max,
    )
    reader.takes_grpc = True
    reader.feed(raw)
    if asked.requests > 1:
        raise RequestError("there are two requests in the file; explain takes one")
    if asked.request is None:
        raise RequestError(_NO_REQUEST)
    if not asked.is_whole:
        raise RequestError(f"the body ends after {len(asked.body)} bytes, before its framing says so")
    return asked


def has_request_line(data: bytes) -> bool:
    """Say whether this begins as a request in HTTP/1.1 does, well formed or not."""
    return _REQUEST_LINE.match(data) is not None


def _with_framing(data: bytes) -> bytes:
    """Give a request that was written by hand the line ends and the Content-Length that a client would send.

    Where it has carriage returns it was not written by hand, and stays as it is, so that the wire can judge it.
    """
    head, separator, body = data.partition(b"\n\n")
    if b"\r" in head:
        return data
    if not separator:
        head, body = data.rstrip(b"\n"), b""
    lines = head.lstrip(b"\n").split(b"\n")
    names = {line.partition(b":")[0].strip().lower() for line in lines[1:]}
    if b"host" not in names:
        lines.append(b"host: " + HOST_DEFAULT.encode())
    if body and not names & {b"content-length", b"transfer-encoding"}:
        # The line feed with which editors end a file is no part of a body.
        body = body.removesuffix(b"\n")
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _from_json(data: bytes) -> tuple[bytes, str]:
    try:
        asked: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {error}") from None
    if unknown := set(asked) - _KEYS:
        raise RequestError(f"unknown key {min(unknown)!r}; known: {', '.join(sorted(_KEYS))}")
    method, url, agent = (
        asked.get(key, default) for key, default in (("method", "POST"), ("url", None), ("agent", ""))
    )
    if not all(isinstance(text, str) and _LINE.match(text) for text in (method, url, agent)) or not url:
        raise RequestError("url is needed, and method, url and agent are texts of one line")
    if agent and re.fullmatch(NAME_PATTERN[1:-1], agent) is None:
        raise RequestError(f"{agent!r} is no name of an agent: a-z, 0-9, '-', '_' and '.', at most 63")
    headers = _headers(asked.get("headers", {}))
    body = asked.get("body", b"")
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    elif not isinstance(body, bytes):
        body = json.dumps(body).encode()
        if not any(name.lower() == "content-type" for name, _ in headers):
            headers.append(("content-type", "application/json"))
    if not any(name.lower() == "host" for name, _ in headers):
        headers.append(("host", HOST_DEFAULT))
    if body and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
        headers.append(("content-length", str(len(body))))
    lines = [f"{method} {url} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body, agent


def _headers(given: Any) -> list[tuple[str, str]]:
    if not isinstance(given, dict):
        raise RequestError("headers is a map of names to texts, or to lists of texts")
    headers = []
    for name, values in given.items():
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or not _LINE.match(value) or not _LINE.match(name):
                raise RequestError(f"the header field {name!r} is not a text of one line")
            headers.append((name, value))
    return headers
