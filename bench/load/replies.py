"""Reads HTTP/1.1 replies as little as a load generator must: where one ends, and whether it is a 200."""

from __future__ import annotations


def reply_bytes(data: bytes) -> int:
    """Return the length of the first whole reply in `data`, 0 where it is not whole yet.

    Knows content-length and chunked. Raises ValueError on what is no HTTP reply of either kind.
    """
    head_bytes = data.find(b"\r\n\r\n") + 4
    if head_bytes < 4:
        return 0
    head = data[:head_bytes].lower()
    if not head.startswith(b"http/1."):
        raise ValueError(f"no HTTP reply: {data[:80]!r}")
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        end = head_bytes + int(head[at + 17 : head.find(b"\r\n", at + 17)])
        return end if len(data) >= end else 0
    if b"\r\ntransfer-encoding:" not in head:
        raise ValueError(f"a reply of unknown length: {data[:80]!r}")
    return _chunked_end(data, head_bytes)


def _chunked_end(data: bytes, at: int) -> int:
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return 0
        size = int(data[at:line_end].split(b";")[0], 16)
        after = line_end + 2 + size + 2
        if len(data) < after:
            return 0
        if size == 0:
            return after
        at = after


def is_good(data: bytes) -> bool:
    """Say whether a reply that begins so is a 200."""
    return data[8:12] == b" 200"
