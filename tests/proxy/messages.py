"""HTTP/1.1 as the tests read it: a strict parser of its own, so that what meshd writes is judged by other eyes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_TEXT = rb"[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?"
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:" + _TEXT + rb")?)[ \t]*\Z")
_REQUEST_LINE = re.compile(rb"([A-Z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2}) [\t \x21-\x7e\x80-\xff]*\Z")


class Incomplete(Exception):
    """The peer closed before the message was whole; `so_far` is what came of its body."""

    def __init__(self, so_far: bytes) -> None:
        super().__init__(f"closed after {so_far[-200:]!r}")
        self.so_far = so_far


@dataclass
class Message:
    """A request or a reply."""

    start: tuple[bytes, ...]
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    informational: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start[1])

    @property
    def method(self) -> bytes:
        return self.start[0]

    @property
    def target(self) -> bytes:
        return self.start[1]

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    def get(self, name: bytes) -> bytes | None:
        found = self.all(name)
        assert len(found) < 2, f"{name!r} came {len(found)} times"
        return found[0] if found else None


async def read_head(reader: asyncio.StreamReader, pattern: re.Pattern[bytes]) -> Message:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except EOFError as error:
        raise Incomplete(getattr(error, "partial", b"")) from None
    lines = raw[:-4].split(b"\r\n")
    start = pattern.match(lines[0])
    assert start is not None, f"not a start line: {lines[0]!r}"
    return Message(start.groups(), _fields(lines[1:]))


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    fields = []
    for line in lines:
        match = _FIELD.match(line)
        assert match is not None, f"not a field: {line!r}"
        fields.append((match[1].lower(), match[2]))
    return fields


async def read_body(reader: asyncio.StreamReader, message: Message, *, is_until_close: bool) -> None:
    length, coding = message.get(b"content-length"), message.get(b"transfer-encoding")
    assert length is None or coding is None, "both Content-Length and Transfer-Encoding"
    if coding is not None:
        assert coding == b"chunked"
        await _read_chunks(reader, message)
    elif length is not None:
        assert re.fullmatch(rb"[0-9]+", length)
        message.body = await _exactly(reader, int(length), b"")
    elif is_until_close:
        message.body = await reader.read(-1)


async def _read_chunks(reader: asyncio.StreamReader, message: Message) -> None:
    while True:
        try:
            line = await reader.readuntil(b"\r\n")
        except EOFError:
            raise Incomplete(message.body) from None
        assert re.fullmatch(rb"[0-9a-fA-F]{1,8}\r\n", line), f"not a chunk size: {line!r}"
        size = int(line, 16)
        if size == 0:
            break
        message.body += await _exactly(reader, size, message.body)
        assert await _exactly(reader, 2, message.body) == b"\r\n"
    lines = []
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        lines.append(line[:-2])
    message.trailers = _fields(lines)


async def _exactly(reader: asyncio.StreamReader, size: int, so_far: bytes) -> bytes:
    try:
        return await reader.readexactly(size)
    except EOFError as error:
        raise Incomplete(so_far + getattr(error, "partial", b"")) from None
    except ConnectionError:
        raise Incomplete(so_far) from None


async def read_request(reader: asyncio.StreamReader) -> Message:
    """Read one request whole. Raises Incomplete, and AssertionError for what no proxy may send."""
    message = await read_head(reader, _REQUEST_LINE)
    await read_body(reader, message, is_until_close=False)
    return message


async def read_reply(reader: asyncio.StreamReader, method: str = "GET") -> Message:
    """Read one reply whole, the informational ones before it included."""
    informational = []
    while True:
        message = await read_head(reader, _STATUS_LINE)
        if message.status >= 200 or message.status == 101:
            break
        informational.append(message)
    message.informational = informational
    if method != "HEAD" and message.status not in (101, 204, 304):
        await read_body(reader, message, is_until_close=True)
    return message
