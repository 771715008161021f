"""Frames of Amazon's event streams, made by hand after their published encoding, with no code of meshd's."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

EVENT = [(":event-type", "chunk"), (":content-type", "application/json"), (":message-type", "event")]


def text_header(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value.encode())) + value.encode()


def frame(headers: bytes, payload: bytes) -> bytes:
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


def event(payload: bytes, headers: list[tuple[str, str]] = EVENT) -> bytes:
    return frame(b"".join(text_header(name, value) for name, value in headers), payload)


def chunk(value: Any) -> bytes:
    """A chunk of Bedrock's, with the padding that it brings."""
    carried = base64.b64encode(json.dumps(value).encode()).decode()
    return event(json.dumps({"bytes": carried, "p": "abcd"}).encode())
