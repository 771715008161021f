"""What is asked and what is answered: sizes as a small agent's call has them."""

from __future__ import annotations

import json

CHAT_PATH = "/v1/chat/completions"
UNARY_PATH = "/bench.Echo/Unary"
STREAM_PATH = "/bench.Echo/Stream"
FLOOD_PATH = "/bench.Echo/Flood"
FLOOD_MESSAGES = 1000
"""Messages of one kB that a call of Flood is answered with."""
COUNTERS_PATH = "/bench/counters"
SPANS_PATH = "/v1/traces"

MODEL = "gpt-4o-mini"
MODEL_BILLED_IN_FULL = "bench-bills-its-cap"
"""Asked for this model the stand-in bills every token that the forwarded request allows."""
STREAM_HEADER = "x-bench-stream"
"""`chunks;gap_ms`: how the answer to a streaming request is cut, a header that proxies pass on."""

USAGE = {"prompt_tokens": 300, "completion_tokens": 60, "total_tokens": 360}
_TEXT = "The sidecar saw this answer pass, counted its tokens, and let it go. "


def chat_request(*, body_bytes: int = 1300, is_stream: bool = False, model: str = MODEL, cap: int = 100) -> bytes:
    """Return a chat request of `body_bytes` (or the least that is possible), as the OpenAI SDK would send it."""
    request: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a careful assistant. Answer in one sentence."},
            {"role": "user", "content": ""},
        ],
        "max_tokens": cap,
        "temperature": 0.2,
    }
    if is_stream:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    missing = max(0, body_bytes - len(_json(request)))
    words = "summarise the quarterly report and name the three risks that matter most; "
    text = (words * (missing // len(words) + 1))[:missing]
    request["messages"] = [request["messages"][0], {"role": "user", "content": text}]  # type: ignore[index]
    return _json(request)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def chat_reply(usage: dict[str, int], *, body_bytes: int = 600) -> bytes:
    """Return a chat completion of `body_bytes`, usage last, as the OpenAI API words it."""

    def reply(text: str) -> bytes:
        return _json(
            {
                "id": "chatcmpl-bench0000000000000000000",
                "object": "chat.completion",
                "created": 1_790_000_000,
                "model": MODEL,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": usage,
            }
        )

    missing = max(0, body_bytes - len(reply("")))
    return reply((_TEXT * (missing // len(_TEXT) + 1))[:missing])


def stream_events(chunks: int, *, with_usage: bool = True) -> list[bytes]:
    """Return the server-sent events of one answer: `chunks` deltas, the finish, usage where asked for, `[DONE]`."""

    def event(choices: list[object], usage: dict[str, int] | None = None) -> bytes:
        value: dict[str, object] = {
            "id": "chatcmpl-bench0000000000000000000",
            "object": "chat.completion.chunk",
            "created": 1_790_000_000,
            "model": MODEL,
            "choices": choices,
        }
        if with_usage:
            value["usage"] = usage
        return b"data: " + _json(value) + b"\n\n"

    def delta(content: str, finish: str | None = None) -> bytes:
        part = {"role": "assistant", "content": content} if content else {}
        return event([{"index": 0, "delta": part, "logprobs": None, "finish_reason": finish}])

    events = [delta(" token") for _ in range(chunks)]
    events.append(delta("", "stop"))
    if with_usage:
        events.append(event([], USAGE))
    events.append(b"data: [DONE]\n\n")
    return events


def grpc_frame(message_bytes: int = 1024) -> bytes:
    """Return one gRPC message, uncompressed: a flag byte, the length in four bytes, the message."""
    return b"\0" + message_bytes.to_bytes(4, "big") + b"\x5a" * message_bytes
