"""The stand-in on HTTP/1.1: chat answers, token streams, a span collector, and the counters of what it saw."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import asdict, dataclass
from functools import lru_cache

from bench.upstream.bodies import (
    COUNTERS_PATH,
    MODEL_BILLED_IN_FULL,
    SPANS_PATH,
    STREAM_HEADER,
    USAGE,
    chat_reply,
    stream_events,
)


@dataclass(slots=True)
class Counters:
    """What this process saw, for the proofs: calls, tokens billed, span bytes received."""

    calls: int = 0
    tokens_billed: int = 0
    streams: int = 0
    chunks: int = 0
    spans_bytes: int = 0
    unary: int = 0


def message(body: bytes, content_type: bytes = b"application/json") -> bytes:
    """Return a whole 200 reply."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-request-id: req_bench\r\ncontent-length: %d\r\n\r\n"
    return head % (content_type, len(body)) + body


_CHAT = message(chat_reply(USAGE))
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"x-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n"
)
_BILLED = b'"' + MODEL_BILLED_IN_FULL.encode() + b'"'
_STREAM_HEADER = b"\r\n" + STREAM_HEADER.encode() + b":"
_SHOWN = b"POST /v1/chat/"


@lru_cache(maxsize=8)
def _framed(chunks: int, with_usage: bool) -> list[bytes]:
    events = [b"%x\r\n%b\r\n" % (len(e), e) for e in stream_events(chunks, with_usage=with_usage)]
    events[-1] += b"0\r\n\r\n"
    return events


def billed_in_full(body: bytes) -> tuple[int, bytes]:
    """Return the tokens that the forwarded request allows, and the reply that bills them all."""
    request = json.loads(body)
    output = request.get("max_completion_tokens") or request.get("max_tokens") or 100_000
    # One token in two bytes of text: more than real text costs, less than the one per byte that bounds it.
    prompt = sum(len(m["content"]) // 2 for m in request["messages"])
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return prompt + output, message(chat_reply(usage))


class Upstream(asyncio.Protocol):
    """One connection. Reads as little of a request as it needs to answer it."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.transport: asyncio.Transport
        self.kept = bytearray()
        self.timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self.is_paused = False
        self.pending: list[bytes] = []
        self.gap_s = 0.0
        self.due_s = 0.0
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self.timer is not None:
            self.timer.cancel()
        self.pending = []

    def data_received(self, data: bytes) -> None:
        if self.kept:
            self.kept += data
            data = bytes(self.kept)
        while data:
            taken = self._take(data)
            if not taken:
                break
            data = data[taken:]
        self.kept = bytearray(data)

    def _take(self, data: bytes) -> int:
        """Answer the first request if it is whole, and return its length; else 0."""
        head_bytes = data.find(b"\r\n\r\n") + 4
        if head_bytes < 4:
            return 0
        head = data[:head_bytes].lower()
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            end = head_bytes + int(head[at + 17 : head.find(b"\r\n", at + 17)])
            if len(data) < end:
                return 0
            body = data[head_bytes:end]
        elif b"\r\ntransfer-encoding:" in head:
            last = data.find(b"0\r\n\r\n", head_bytes)
            # Bodies here are one line of JSON, so a line that is "0" can only be the last chunk's size.
            if last < 0 or data[last - 1 : last] not in (b"\n",):
                return 0
            end, body = last + 5, data[head_bytes:last]
        else:
            end, body = head_bytes, b""
        self._answer(data, head, body)
        return end

    def _answer(self, data: bytes, head: bytes, body: bytes) -> None:
        if data.startswith(_SHOWN):
            self.counters.calls += 1
            if b'"stream":true' in body:
                self._stream(head, body)
            elif _BILLED in body:
                tokens, reply = billed_in_full(body)
                self.counters.tokens_billed += tokens
                self.loop.call_later(random.uniform(0.005, 0.05), self.transport.write, reply)
            else:
                self.counters.tokens_billed += USAGE["total_tokens"]
                self.transport.write(_CHAT)
            return
        path = data[: data.find(b"\r\n")].split(b" ")[1].decode("latin-1")
        if path == SPANS_PATH:
            self.counters.spans_bytes += len(body)
            self.transport.write(message(b"", b"application/x-protobuf"))
        elif path == COUNTERS_PATH:
            self.transport.write(message(json.dumps(asdict(self.counters)).encode()))
        else:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def _stream(self, head: bytes, body: bytes) -> None:
        chunks, gap_ms = 200, 0
        at = head.find(_STREAM_HEADER)
        if at >= 0:
            value = head[at + len(_STREAM_HEADER) : head.find(b"\r\n", at + 2)]
            chunks, gap_ms = (int(part) for part in value.split(b";"))
        self.pending = list(reversed(_framed(chunks, b'"include_usage":true' in body)))
        self.counters.streams += 1
        self.counters.tokens_billed += USAGE["total_tokens"]
        self.gap_s = gap_ms / 1000
        self.due_s = self.loop.time() + self.gap_s
        self.transport.write(_STREAM_HEAD + self.pending.pop())
        self.counters.chunks += 1
        self._next()

    def _next(self) -> None:
        if self.gap_s:
            self.timer = self.loop.call_at(self.due_s, self._pump)
            self.due_s += self.gap_s
        else:
            self.timer = self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self.timer = None
        if self.is_paused or not self.pending:
            return
        self.transport.write(self.pending.pop())
        self.counters.chunks += 1
        if self.pending:
            self._next()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self.timer is None and self.pending:
            self._pump()
